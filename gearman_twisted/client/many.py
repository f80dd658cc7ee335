"""Many jobs at a time: streams, sets, map and reduce; with a client or a pool, on either event loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol, TypeVar

import attrs

from gearman_twisted.client.call import Receiver, ReceiverOf
from gearman_twisted.errors import ConfigError, JobError, LocalProtocolError
from gearman_twisted.runtime.interfaces import Promise, Runtime
from gearman_twisted.wire.constants import Priority

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
    priority: Priority | str = Priority.NORMAL


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
        """Return the result.

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


class Submitted(Protocol):
    """A job that was submitted."""

    def cancel(self) -> object:
        """Do not wait for it any more; its receiver is told nothing."""


class JobStream:
    """The outcomes of many jobs, each as it comes: an asynchronous iterator.

    New jobs are submitted as outcomes are taken. So no more than ``outstanding`` are on their way or wait to
    be taken at any time, and the tasks may be made as they are needed, by a generator.

    ``close`` ends it early: what was submitted is cancelled. So does leaving it as a context manager, which
    is the way to be sure of that.

    Args:
        runtime: the event loop.
        submit: submits a task, and has its end told to a receiver.
        tasks: what to submit.
        outstanding: how many at a time.
    """

    def __init__(
        self,
        runtime: Runtime,
        submit: Callable[[Task, Receiver], Submitted],
        tasks: Iterable[Task],
        outstanding: int,
    ) -> None:
        if isinstance(outstanding, bool) or not isinstance(outstanding, int) or outstanding < 1:
            raise ConfigError(f"outstanding takes a number of at least 1, not {outstanding!r}")
        self._runtime = runtime
        self._submit = submit
        self._tasks: Iterator[tuple[int, Task]] = enumerate(tasks)
        self._outstanding = outstanding
        self._has_more = True
        # None for those that are being submitted.
        self._running: dict[int, Submitted | None] = {}
        self._ended: deque[Outcome] = deque()
        self._waiting: deque[Promise[None]] = deque()

    def __aiter__(self) -> JobStream:
        return self

    async def __anext__(self) -> Outcome:
        self._fill()
        while not self._ended:
            if not self._running:
                raise StopAsyncIteration
            await self._next_end()
        return self._ended.popleft()

    async def __aenter__(self) -> JobStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Submit nothing more, and cancel what is on its way."""
        self._has_more = False
        self._ended.clear()
        running, self._running = self._running, {}
        for submitted in running.values():
            if submitted is not None:
                submitted.cancel()
        self._wake()

    def _next_end(self) -> Promise[None]:
        waiting: Promise[None] = self._runtime.promise(lambda: self._waiting.remove(waiting))
        self._waiting.append(waiting)
        return waiting

    def _fill(self) -> None:
        while self._has_more and len(self._running) + len(self._ended) < self._outstanding:
            index, task = next(self._tasks, (-1, None))
            if task is None:
                self._has_more = False
                return
            if not isinstance(task, Task):
                raise TypeError(f"submit_many takes Tasks, not {type(task).__name__}")
            self._running[index] = None
            try:
                submitted = self._submit(task, ReceiverOf(partial(self._take, index)))
            except (TypeError, LocalProtocolError) as error:
                self._take(index, None, error)
            else:
                if index in self._running:
                    self._running[index] = submitted

    def _take(self, index: int, result: bytes | None, error: Exception | None) -> None:
        if index in self._running:
            del self._running[index]
            self._ended.append(Outcome(index, result, error))
            self._wake()

    def _wake(self) -> None:
        for _ in range(len(self._waiting)):
            if self._waiting:
                self._waiting.popleft().succeed(None)


class SubmitsMany(Protocol):
    """Clients and pools."""

    def submit_many(self, tasks: Iterable[Task], /, *, outstanding: int = 100) -> JobStream:
        """Submit jobs, a bounded number at a time."""


async def gather(client: SubmitsMany, tasks: Iterable[Task], *, outstanding: int = 100) -> list[bytes]:
    """Run all jobs of a set, and wait for all of them.

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
    client: SubmitsMany,
    function: str | bytes,
    parts: Iterable[bytes],
    reducer: Callable[[list[bytes]], _T],
    *,
    outstanding: int = 100,
) -> _T:
    """Run a function for each part, and make one value of the results, here.

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
