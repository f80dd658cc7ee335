"""Who may take the next job: the slots of a worker, and the line of those who want one.

A slot is held from before a job is asked for until it has ended, so that none waits in a worker that has no
room for it. A server that does not answer lends its slot: see ``WorkerSession.lend_slot``.
"""

from __future__ import annotations

from typing import Protocol


class Waiter(Protocol):
    """Something that wants a slot.

    Attributes:
        limit: bounds it besides the number of slots, or None.
        has_job: whether it wants the slot for a job that it already has; those go first.
    """

    limit: Limit | None
    has_job: bool

    def slot_reserved(self) -> None:
        """Take the slot that was reserved for it."""


class Limit:
    """A bound on the slots that those who share it may hold together.

    Args:
        count: the number of slots.
    """

    __slots__ = ("count", "free", "line")

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = count
        # Those whose turn came when nothing was free here.
        self.line: dict[Waiter, None] = {}


class Slots:
    """The slots of a worker.

    Args:
        count: the number of jobs that may run at a time.
    """

    __slots__ = ("_first", "_line", "count", "free")

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = count
        # A waiter that had a slot goes to the end, so that a busy server does not block the others.
        self._line: dict[Waiter, None] = {}
        # Those who have jobs already.
        self._first: dict[Waiter, None] = {}

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for a slot."""
        return bool(self._first or self._line)

    def reserve(self, waiter: Waiter) -> bool:
        """Reserve a slot if one is free; otherwise call ``slot_reserved`` when it is the waiter's turn."""
        if waiter.limit is not None and not waiter.limit.free:
            waiter.limit.line[waiter] = None
            return False
        if not self.free:
            self._stand_in_line(waiter)
            return False
        self._take(waiter)
        return True

    def leave(self, waiter: Waiter) -> None:
        """Stop waiting for a slot. Idempotent."""
        self._line.pop(waiter, None)
        self._first.pop(waiter, None)
        if waiter.limit is not None:
            waiter.limit.line.pop(waiter, None)

    def release(self, waiter: Waiter) -> None:
        """Return a slot of the waiter, and hand it to the one that has waited longest."""
        self.free += 1
        limit = waiter.limit
        if limit is not None:
            limit.free += 1
            if limit.line:
                first = next((each for each in limit.line if each.has_job), next(iter(limit.line)))
                del limit.line[first]
                self._stand_in_line(first)
        while self.free and (line := self._first or self._line):
            first = next(iter(line))
            del line[first]
            if first.limit is not None and not first.limit.free:
                first.limit.line[first] = None
                continue
            self._take(first)
            first.slot_reserved()

    def _stand_in_line(self, waiter: Waiter) -> None:
        (self._first if waiter.has_job else self._line)[waiter] = None

    def _take(self, waiter: Waiter) -> None:
        self.free -= 1
        if waiter.limit is not None:
            waiter.limit.free -= 1
