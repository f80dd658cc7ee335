"""Many jobs at a time: what is submitted, how it ends, sets, map and reduce; for clients of either kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

import attrs

from gearman_twisted.errors import JobError
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


class Outcomes(AbstractAsyncContextManager["Outcomes"], Protocol):
    """Outcomes as they come; leaving it ends what is on its way."""

    def __aiter__(self) -> AsyncIterator[Outcome]: ...


class SubmitsMany(Protocol):
    """Clients and pools, of either kind."""

    def submit_many(self, tasks: Iterable[Task], *, outstanding: int = 100) -> Outcomes:
        """Submits jobs, a bounded number at a time."""


async def gather(client: SubmitsMany, tasks: Iterable[Task], *, outstanding: int = 100) -> list[bytes]:
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
    client: SubmitsMany,
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
