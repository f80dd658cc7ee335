"""Many jobs at a time: streams of jobs, sets, map and reduce; with a client or a pool of servers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from gearman_twisted.client.many import Outcome, PartsFailed, Task, gather, map_reduce

__all__ = ["JobStream", "Outcome", "PartsFailed", "Task", "gather", "map_reduce"]


class JobStream:
    """The outcomes of many jobs, each as it comes: an asynchronous iterator.

    New jobs are submitted as outcomes are taken. So no more than ``outstanding`` are on their way or wait to
    be taken at any time, and the tasks may be made as they are needed, by a generator.

    ``close`` ends it early: what was submitted is cancelled. So does leaving it as a context manager, which
    is the way to be sure of that.

    Args:
        submit: submits a task.
        tasks: what to submit.
        outstanding: how many at a time.
    """

    def __init__(
        self, submit: Callable[[Task], Deferred[bytes]], tasks: Iterable[Task], outstanding: int
    ) -> None:
        if outstanding < 1:
            raise ValueError(f"outstanding takes a number of at least 1, not {outstanding!r}")
        self._submit = submit
        self._tasks: Iterator[tuple[int, Task]] = enumerate(tasks)
        self._outstanding = outstanding
        self._has_more = True
        self._running: dict[int, Deferred[bytes]] = {}
        self._ended: deque[Outcome] = deque()
        self._waiting: Deferred[None] | None = None

    def __aiter__(self) -> JobStream:
        return self

    async def __anext__(self) -> Outcome:
        self._fill()
        while not self._ended:
            if not self._running:
                raise StopAsyncIteration
            self._waiting = Deferred()
            await self._waiting
        return self._ended.popleft()

    async def __aenter__(self) -> JobStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Submits nothing more and cancels what is on its way."""
        self._has_more = False
        self._ended.clear()
        for running in list(self._running.values()):
            running.cancel()
        self._ended.clear()

    def _fill(self) -> None:
        while self._has_more and len(self._running) + len(self._ended) < self._outstanding:
            index, task = next(self._tasks, (-1, None))
            if task is None:
                self._has_more = False
                return
            running = self._running[index] = self._submit(task)
            running.addBoth(self._take, index)

    def _take(self, result: bytes | Failure, index: int) -> None:
        del self._running[index]
        if isinstance(result, Failure):
            error = result.value
            if not isinstance(error, Exception):
                error = RuntimeError(repr(error))
            self._ended.append(Outcome(index, None, error))
        else:
            self._ended.append(Outcome(index, result, None))
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(None)
