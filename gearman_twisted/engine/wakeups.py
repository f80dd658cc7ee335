"""Which sleeping worker is woken for a job: one, and the next one if it does not grab in time.

A function's ``sleepers`` are workers that *may* be asleep. A worker that wakes stays listed with its other
functions until it surfaces there and is dropped; when it sleeps again, it is listed again where it was
dropped (``to_relist``). So sleeping and waking cost the same however many functions a worker has and however
many workers sleep.
"""

from __future__ import annotations

from collections import deque

from gearman_twisted.engine.outbox import Turn
from gearman_twisted.engine.records import Connection, FunctionQueue
from gearman_twisted.wire.codec import respond
from gearman_twisted.wire.constants import PacketType

NOOP = respond(PacketType.NOOP)


class Wakeups:
    """The sleeping workers.

    Args:
        turn: the call being handled.
        timeout: seconds that a woken worker has to grab before the next one is woken.

    Attributes:
        asleep: how many workers sleep.
    """

    def __init__(self, turn: Turn, timeout: float) -> None:
        self._turn = turn
        self._timeout = timeout
        self._woken: deque[tuple[float, Connection, FunctionQueue]] = deque()
        self.asleep = 0

    def register(self, conn: Connection, function: FunctionQueue) -> None:
        """A worker can do a function."""
        if conn.is_sleeping:
            function.sleepers[conn] = None
        elif conn not in function.sleepers:
            conn.to_relist[function] = None

    def unregister(self, conn: Connection, function: FunctionQueue) -> None:
        """A worker can no longer do a function."""
        function.sleepers.pop(conn, None)
        conn.to_relist.pop(function, None)

    def sleep(self, conn: Connection) -> None:
        """A worker goes to sleep."""
        self.mark_awake(conn)
        conn.is_sleeping = True
        self.asleep += 1
        for function in conn.to_relist:
            function.sleepers[conn] = None
        conn.to_relist.clear()

    def mark_awake(self, conn: Connection) -> FunctionQueue | None:
        """A worker is up, or gone; return the function that it had been woken for, if it was."""
        woken_for, conn.woken_for = conn.woken_for, None
        if conn.is_sleeping:
            conn.is_sleeping = False
            self.asleep -= 1
        return woken_for

    def wake(self, function: FunctionQueue) -> None:
        """Wake a worker for a job of the function: the one that has been listed the longest."""
        sleepers = function.sleepers
        while self.asleep and sleepers:
            conn, _ = sleepers.popitem(last=False)
            conn.to_relist[function] = None
            if conn.is_sleeping:
                self.mark_awake(conn)
                turn = self._turn
                conn.woken_for = function
                conn.wakeup_deadline = deadline = turn.now + self._timeout
                self._woken.append((deadline, conn, function))
                turn.due_by = min(turn.due_by, deadline)
                conn.write(turn.out, NOOP)
                return

    def wake_if_queued(self, function: FunctionQueue | None) -> None:
        """Hand a wake-up on to the next worker, if the function still has queued jobs."""
        if function is not None and function.has_queued:
            self.wake(function)

    def next_deadline(self) -> float:
        """Return when the next woken worker is late; infinity if none can be."""
        woken = self._woken
        while woken:
            deadline, conn, function = woken[0]
            if conn.woken_for is function and conn.wakeup_deadline == deadline:
                return deadline
            woken.popleft()
        return float("inf")

    def take_late(self) -> list[FunctionQueue]:
        """Give up on the workers that are late; return the functions that they had been woken for."""
        functions: list[FunctionQueue] = []
        while self.next_deadline() <= self._turn.now:
            _, conn, function = self._woken.popleft()
            conn.woken_for = None
            functions.append(function)
        return functions
