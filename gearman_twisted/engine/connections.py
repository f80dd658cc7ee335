"""What the server knows of a peer, and its output, whose replies stay in order."""

from __future__ import annotations

from collections import OrderedDict, deque

import attrs

from gearman_twisted.engine.job import Job
from gearman_twisted.engine.outbox import Outbox
from gearman_twisted.engine.queues import Ability, FunctionQueue


class Gap:
    """A reply that cannot be given yet; what comes after it on its connection waits behind it."""

    __slots__ = ("reply",)

    def __init__(self) -> None:
        self.reply: bytes | None = None


@attrs.define(eq=False)
class Connection:
    """A peer, which may be client, worker and operator all at once.

    Attributes:
        number: its own, never given twice.
        peer: its address.
        max_held_bytes: how much of its output may wait for the store.
        client_id: what it calls itself.
        wants_exceptions: it gets WORK_EXCEPTION rather than WORK_FAIL.
        abilities: what it can do; the last is served first (see ``Queues.pop``).
        running: the jobs it runs, in the order in which it got them.
        waiting_for: the jobs whose packets it gets.
        is_open: it has not been lost.
        is_sleeping, woken_for, wakeup_deadline, unlisted: see ``wakeups``.
    """

    number: int
    peer: str
    max_held_bytes: int
    client_id: bytes = b"-"
    wants_exceptions: bool = False
    abilities: OrderedDict[FunctionQueue, Ability] = attrs.field(factory=OrderedDict)
    running: dict[Job, None] = attrs.field(factory=dict)
    waiting_for: dict[Job, None] = attrs.field(factory=dict)
    is_open: bool = True
    is_sleeping: bool = False
    woken_for: FunctionQueue | None = None
    wakeup_deadline: float = 0.0
    unlisted: dict[FunctionQueue, None] = attrs.field(factory=dict)
    _held: deque[bytes | Gap] | None = None
    _held_bytes: int = 0
    _is_closing: bool = False

    def write(self, out: Outbox, data: bytes) -> None:
        """Sends some bytes, behind whatever waits already."""
        if self._held is None:
            out.writes[self.number].append(data)
            return
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > self.max_held_bytes and not self._is_closing:
            # The store hangs, and the peer's other jobs go on: it is given up rather than the memory.
            self._is_closing = True
            out.close(self.number)

    def close(self, out: Outbox) -> None:
        """Closes the connection once all replies are given."""
        if not self._is_closing:
            self._is_closing = True
            if self._held is None:
                out.close(self.number)

    def leave_gap(self) -> Gap:
        """Keeps the place of a reply; clients match replies to requests by their order."""
        gap = Gap()
        if self._held is None:
            self._held = deque()
        self._held.append(gap)
        return gap

    def fill_gap(self, out: Outbox, gap: Gap, reply: bytes) -> None:
        """Gives the reply, and sends all that no longer waits for one."""
        gap.reply = reply
        held = self._held
        if held is None or not self.is_open:
            return
        ready = out.writes[self.number]
        while held:
            first = held[0]
            if isinstance(first, bytes):
                ready.append(first)
                self._held_bytes -= len(first)
            elif first.reply is not None:
                ready.append(first.reply)
            else:
                break
            held.popleft()
        if not held:
            self._held = None
            if self._is_closing:
                out.close(self.number)
        if not ready:
            del out.writes[self.number]

    @property
    def held(self) -> int:
        """How many chunks of output, gaps included, wait."""
        return len(self._held) if self._held else 0
