"""Threads for functions that block. They do not keep the process from ending, as pools of threads do."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class DaemonThreads:
    """As many threads as have something to do at a time, kept for later calls."""

    def __init__(self) -> None:
        self._idle: list[queue.SimpleQueue[Callable[[], object]]] = []

    def call(self, function: Callable[[], object]) -> None:
        """Call a function that raises nothing in a thread that is idle, or in a new one."""
        try:
            calls = self._idle.pop()
        except IndexError:
            calls = queue.SimpleQueue()
            thread = threading.Thread(target=self._work, args=(calls,), name="gearman-job", daemon=True)
            thread.start()
        calls.put(function)

    def _work(self, calls: queue.SimpleQueue[Callable[[], object]]) -> None:
        while True:
            calls.get()()
            self._idle.append(calls)


# Of the whole process, so that no loop leaves idle threads behind.
DAEMON_THREADS = DaemonThreads()
