"""The outcomes of many jobs, each as it comes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

from gearman_twisted.client.many import Outcome, Task


class JobStream:
    """The same as ``gearman_twisted.client.parallel.JobStream``: an asynchronous iterator of ``Outcome``s.

    Args:
        submit: submits a task.
        tasks: what to submit.
        outstanding: how many are on their way, or wait to be taken, at a time.
    """

    def __init__(
        self,
        submit: Callable[[Task], Coroutine[Any, Any, bytes]],
        tasks: Iterable[Task],
        outstanding: int,
    ) -> None:
        if outstanding < 1:
            raise ValueError(f"outstanding takes a number of at least 1, not {outstanding!r}")
        self._submit = submit
        self._tasks: Iterator[tuple[int, Task]] = enumerate(tasks)
        self._outstanding = outstanding
        self._has_more = True
        self._running: dict[asyncio.Task[bytes], int] = {}
        self._ended: deque[Outcome] = deque()
        self._has_ended = asyncio.Event()

    def __aiter__(self) -> JobStream:
        return self

    async def __anext__(self) -> Outcome:
        self._fill()
        while not self._ended:
            if not self._running:
                raise StopAsyncIteration
            self._has_ended.clear()
            await self._has_ended.wait()
        return self._ended.popleft()

    async def __aenter__(self) -> JobStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Submits nothing more and cancels what is on its way."""
        self._has_more = False
        self._ended.clear()
        for running in self._running:
            running.cancel()
        self._running.clear()

    def _fill(self) -> None:
        while self._has_more and len(self._running) + len(self._ended) < self._outstanding:
            index, task = next(self._tasks, (-1, None))
            if task is None:
                self._has_more = False
                return
            running = asyncio.get_running_loop().create_task(self._submit(task))
            self._running[running] = index
            running.add_done_callback(self._take)

    def _take(self, running: asyncio.Task[bytes]) -> None:
        index = self._running.pop(running, None)
        if index is None:
            return  # it was closed meanwhile
        error = RuntimeError("the call was cancelled") if running.cancelled() else running.exception()
        if error is None:
            self._ended.append(Outcome(index, running.result(), None))
        elif isinstance(error, Exception):
            self._ended.append(Outcome(index, None, error))
        else:
            self._ended.append(Outcome(index, None, RuntimeError(repr(error))))
        self._has_ended.set()
