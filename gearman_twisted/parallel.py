"""Many jobs at a time: streams of jobs, sets, map and reduce; with a client or a pool of servers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from gearman_twisted.errors import JobError
from gearman_twisted.wire.constants import Priority

if TYPE_CHECKING:
    from gearman_twisted.calls import ClientCalls

_T = TypeVar("_T")


@attrs.frozen
class Task:
    """A job to be submitted.

    Attributes:
        function: see ``GearmanClient.submit``; so are the others.
    """

    function: str | bytes
    workload: bytes = b""
    unique: bytes = b""
    priority: Priority = Priority.NORMAL


@attrs.frozen
class Outcome:
    """How a job of a stream ended.

    Attributes:
        index: which one of the stream it was, from 0.
        result: what the worker sent, or the handle of a background job; None if there is an error.
        error: why there is no result, else None.
    """

    index: int
    result: bytes | None
    error: Exception | None

    def get(self) -> bytes:
        """The result.

        Raises:
            Exception: the error, where there is one instead.
        """
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


class PartsFailed(JobError):
    """Some jobs of a set failed.

    Attributes:
        errors: why, by their indexes in the set.
        results: those of all jobs in order, None for the ones that failed.
    """

    def __init__(self, errors: dict[int, Exception], results: list[bytes | None]) -> None:
        first = min(errors)
        super().__init__(
            f"{len(errors)} of {len(results)} parts failed; the first is number {first}: {errors[first]}"
        )
        self.errors = errors
        self.results = results


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


async def gather(client: ClientCalls, tasks: Iterable[Task], *, outstanding: int = 100) -> list[bytes]:
    """Runs all jobs of a set, and waits for all of them.

    Args:
        client: what to submit them with.
        tasks: the jobs.
        outstanding: how many are on their way at a time.

    Returns:
        Their results, in the order of the tasks.

    Raises:
        PartsFailed: some failed; it has the results of the others.
    """
    results: list[bytes | None] = []
    errors: dict[int, Exception] = {}
    async with client.submit_many(tasks, outstanding=outstanding) as stream:
        async for outcome in stream:
            if outcome.index >= len(results):
                results += [None] * (outcome.index + 1 - len(results))
            if outcome.error is not None:
                errors[outcome.index] = outcome.error
            results[outcome.index] = outcome.result
    if errors:
        raise PartsFailed(errors, results)
    return [result for result in results if result is not None]


async def map_reduce(
    client: ClientCalls,
    function: str | bytes,
    parts: Iterable[bytes],
    reducer: Callable[[list[bytes]], _T],
    *,
    outstanding: int = 100,
) -> _T:
    """Runs a function for each part, and makes one value of the results, here.

    ``GearmanClient.submit_reduce`` has the server do the same, with a reducer that is a function of workers.

    Args:
        client: what to submit the jobs with.
        function: the name of the function.
        parts: a workload each.
        reducer: called with all results, in the order of the parts.
        outstanding: how many jobs are on their way at a time.

    Returns:
        What the reducer returns.

    Raises:
        PartsFailed: some parts failed; nothing is reduced then.
    """
    tasks = (Task(function, part) for part in parts)
    return reducer(await gather(client, tasks, outstanding=outstanding))
