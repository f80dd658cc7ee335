"""Which sleeping worker is woken for a job: one, and the next one if it does not come in time.

A function's ``sleepers`` are workers that *may* be asleep: one that wakes stays listed with its other
functions until it surfaces there, and is listed again, where it was dropped, when it sleeps again
(``unlisted``). So sleeping and waking cost the same however many functions a worker has and however
many workers sleep.
"""

from __future__ import annotations

from collections import deque

from gearman_twisted.engine.connections import Connection
from gearman_twisted.engine.queues import FunctionQueue


class Wakeups:
    """The sleeping workers.

    Args:
        timeout: seconds that a woken worker has to grab before the next one is woken.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._asleep = 0
        self._woken: deque[tuple[float, Connection, FunctionQueue]] = deque()

    def register(self, conn: Connection, function: FunctionQueue) -> None:
        """A worker can do a function."""
        if conn.is_sleeping:
            function.sleepers[conn] = None
        elif conn not in function.sleepers:
            conn.unlisted[function] = None

    def unregister(self, conn: Connection, function: FunctionQueue) -> None:
        """A worker can no longer do a function."""
        function.sleepers.pop(conn, None)
        conn.unlisted.pop(function, None)

    def sleep(self, conn: Connection) -> None:
        """A worker goes to sleep."""
        self.rouse(conn)
        conn.is_sleeping = True
        self._asleep += 1
        for function in conn.unlisted:
            function.sleepers[conn] = None
        conn.unlisted.clear()

    def rouse(self, conn: Connection) -> FunctionQueue | None:
        """A worker is up, or gone; returns the function that it had been woken for, if it was."""
        woken_for, conn.woken_for = conn.woken_for, None
        if conn.is_sleeping:
            conn.is_sleeping = False
            self._asleep -= 1
        return woken_for

    def wake(self, function: FunctionQueue, now: float) -> Connection | None:
        """Chooses a sleeping worker for a job of the function: the one that has been listed the longest."""
        sleepers = function.sleepers
        while self._asleep and sleepers:
            conn, _ = sleepers.popitem(last=False)
            conn.unlisted[function] = None
            if conn.is_sleeping:
                self.rouse(conn)
                conn.woken_for = function
                conn.wakeup_deadline = now + self._timeout
                self._woken.append((conn.wakeup_deadline, conn, function))
                return conn
        return None

    def next_deadline(self) -> float:
        """When the next woken worker is late; infinity if none can be."""
        woken = self._woken
        while woken:
            deadline, conn, function = woken[0]
            if conn.woken_for is function and conn.wakeup_deadline == deadline:
                return deadline
            woken.popleft()
        return float("inf")

    def pass_over(self, now: float) -> list[FunctionQueue]:
        """Gives up on the workers that are late; returns what they had been woken for."""
        functions: list[FunctionQueue] = []
        while self.next_deadline() <= now:
            _, conn, function = self._woken.popleft()
            conn.woken_for = None
            functions.append(function)
        return functions
