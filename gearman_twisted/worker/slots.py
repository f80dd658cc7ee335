"""Who may take the next job: the slots of a worker, and the line of those who want one.

A slot is held from before a job is asked for until it has ended, so that none waits in a worker that has no
room for it.
"""

from __future__ import annotations

from typing import Protocol


class Waiter(Protocol):
    """Something that wants slots.

    Attributes:
        limit: what bounds it besides the number of slots, or None.
        has_job: whether it wants the slot for a job that it has already; those go first.
    """

    limit: Limit | None
    has_job: bool

    def slot_reserved(self) -> None:
        """Called by the slots: it is this one's turn, and a slot is its own."""


class Limit:
    """How many slots those who share it may hold together.

    Args:
        count: how many.
    """

    __slots__ = ("count", "free", "line")

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = count
        # Those whose turn came when nothing was free here.
        self.line: dict[Waiter, None] = {}


class Slots:
    """How many more jobs a worker may take.

    Args:
        count: how many jobs may run at a time.
    """

    __slots__ = ("_first", "_line", "count", "free")

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = count
        # Whoever had a slot goes to the end, so that a busy server does not keep a worker from the others.
        self._line: dict[Waiter, None] = {}
        # Those who have jobs already.
        self._first: dict[Waiter, None] = {}

    def reserve(self, waiter: Waiter) -> bool:
        """Takes a slot if one is free, else the waiter is called when it is its turn."""
        if waiter.limit is not None and not waiter.limit.free:
            waiter.limit.line[waiter] = None
            return False
        if not self.free:
            self._stand_in_line(waiter)
            return False
        self._take(waiter)
        return True

    def leave(self, waiter: Waiter) -> None:
        """The waiter wants no slot any more."""
        self._line.pop(waiter, None)
        self._first.pop(waiter, None)
        if waiter.limit is not None:
            waiter.limit.line.pop(waiter, None)

    def release(self, waiter: Waiter) -> None:
        """Gives a slot of the waiter back, to whoever has waited longest."""
        self.free += 1
        limit = waiter.limit
        if limit is not None:
            limit.free += 1
            if limit.line:
                first = next(iter(limit.line))
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
