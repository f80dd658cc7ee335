"""Many jobs at a time: streams, sets, map and reduce; and JSON."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from gearman_twisted import GearmanClient
from gearman_twisted.client.parallel import JobStream, Outcome, PartsFailed, Task, gather, map_reduce
from gearman_twisted.errors import JobFailed
from gearman_twisted.wire.values import from_json, to_json
from gearman_twisted.worker import GearmanWorker, Job
from tests.kit.servers import TwistdGearman

_T = TypeVar("_T")


class Submits:
    """Submits tasks by keeping their Deferreds."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.running: list[Deferred[bytes]] = []

    def __call__(self, task: Task) -> Deferred[bytes]:
        self.tasks.append(task)
        self.running.append(Deferred())
        return self.running[-1]


def start(coroutine: Callable[[], Awaitable[_T]]) -> list[_T]:
    """Starts a coroutine; returns a list that holds what it returns, once it has."""

    async def run() -> None:
        found.append(await coroutine())

    found: list[_T] = []
    Deferred.fromCoroutine(run())
    return found


def tasks(count: int) -> Iterator[Task]:
    return (Task("f", b"%d" % number) for number in range(count))


def test_outcomes_come_as_jobs_end() -> None:
    """Whichever job ends first comes first, with its index; errors are outcomes too."""
    submits = Submits()
    stream = JobStream(submits, tasks(3), 10)
    first = start(stream.__anext__)
    assert first == []
    submits.running[2].callback(b"two")
    submits.running[0].errback(JobFailed("no"))
    assert first == [Outcome(2, b"two", None)]
    [second] = start(stream.__anext__)
    assert (second.index, type(second.error)) == (0, JobFailed)
    with pytest.raises(JobFailed):
        second.get()
    third = start(stream.__anext__)
    submits.running[1].callback(b"one")
    assert third[0].get() == b"one"


def test_no_more_than_outstanding_are_on_their_way() -> None:
    """New jobs are made and submitted as outcomes are taken, so that memory is bounded."""
    made: list[int] = []

    def endless() -> Iterator[Task]:
        while True:
            made.append(len(made))
            yield Task("f")

    submits = Submits()
    stream = JobStream(submits, endless(), 4)
    assert made == []
    start(stream.__anext__)
    assert len(made) == 4
    for running in submits.running:
        running.callback(b"")
    assert len(made) == 4
    start(stream.__anext__)
    assert len(made) == 5


def test_stream_ends() -> None:
    """After the last outcome the iteration ends, and no job is submitted without being asked for."""
    submits = Submits()

    async def collect() -> list[int]:
        return [outcome.index async for outcome in JobStream(submits, tasks(5), 2)]

    found = start(collect)
    for position in range(5):
        submits.running[position].callback(b"")
    assert found == [[0, 1, 2, 3, 4]]
    assert start(collect) == []


def test_leaving_early_cancels_the_rest() -> None:
    """A stream that is left cancels what is on its way, and keeps nothing alive."""
    cancelled: list[int] = []
    running: list[weakref.ref[Any]] = []

    def submit(task: Task) -> Deferred[bytes]:
        job: Deferred[bytes] = Deferred(lambda _: cancelled.append(int(task.workload)))
        running.append(weakref.ref(job))
        if len(running) == 1:
            job.callback(b"first")
        return job

    async def leave() -> None:
        async with JobStream(submit, tasks(100), 5) as stream:
            async for _ in stream:
                break

    assert start(leave) == [None]
    assert cancelled == [1, 2, 3, 4]
    gc.collect()
    assert [each() for each in running] == [None] * 5


def test_nonsense_is_refused() -> None:
    """At least one job has to be on its way."""
    with pytest.raises(ValueError, match="outstanding takes a number of at least 1, not 0"):
        JobStream(Submits(), [], 0)


def test_json_there_and_back() -> None:
    """JSON is short, in UTF-8, and nothing but JSON."""
    value = {"text": "ä\0", "list": [1, 2.5, None, True]}
    assert to_json(value) == '{"text":"ä\\u0000","list":[1,2.5,null,true]}'.encode()
    assert from_json(to_json(value)) == value
    for bad in (float("nan"), {1, 2}, b"bytes"):
        with pytest.raises((TypeError, ValueError)):
            to_json(bad)
    for text in (b"", b"\xff", b"{"):
        with pytest.raises(ValueError, match=r"Expecting|decode"):
            from_json(text)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TwistdGearman]:
    """A real server."""
    with TwistdGearman(tmp_path, "--store=memory:") as server:
        yield server


def double(job: Job) -> bytes:
    if job.workload == b"7":
        raise JobFailed("seven")
    return b"%d" % (2 * int(job.workload))


def split(job: Job) -> bytes:
    for word in job.workload.split():
        job.send_data(word)
    return b""


@pytest_twisted.ensureDeferred
async def test_with_a_real_server(server: TwistdGearman) -> None:
    """Streams, sets and reduce jobs, in the foreground and the background, run through a real server."""
    address = f"127.0.0.1:{server.port}"
    worker = GearmanWorker(address, concurrency=4)
    worker.register("double", double)
    worker.register("split", split)
    worker.startService()
    try:
        async with GearmanClient(address) as client:
            numbers = [number for number in range(1_000) if number != 7]
            some = (Task("double", b"%d" % number) for number in numbers)
            assert await gather(client, some) == [b"%d" % (2 * number) for number in numbers]
            parts = (b"%d" % number for number in range(10) if number != 7)
            assert await map_reduce(client, "double", parts, lambda all_: sum(map(int, all_))) == 76
            with pytest.raises(PartsFailed, match="1 of 10 parts failed; the first is number 7") as caught:
                await gather(client, (Task("double", b"%d" % number) for number in range(10)))
            assert list(caught.value.errors) == [7]
            assert caught.value.results[6:9] == [b"12", None, b"16"]
            assert await client.submit_reduce("split", b"1 2 30", "double") == b"2460"
            with pytest.raises(JobFailed):
                await client.submit_reduce("split", b"1 7", "double")
            handles = [
                outcome.get()
                async for outcome in client.submit_many(tasks(50), background=True, outstanding=10)
            ]
            assert len(set(handles)) == 50
            recurring = await client.submit_recurring("f", b"w", "0 12 * * *", unique=b"noon")
            assert await client.submit_recurring("f", b"w", "0 12 * * *", unique=b"noon") == recurring
            assert await client.submit_recurring("f", b"w", "5 12 * * *", unique=b"noon") != recurring
    finally:
        await worker.stopService()


@pytest_twisted.ensureDeferred
async def test_a_hundred_thousand_jobs(server: TwistdGearman) -> None:
    """So many jobs go through with a few outstanding, and none is kept."""
    count = 100_000
    async with GearmanClient(f"127.0.0.1:{server.port}") as client:
        seen = 0
        async with client.submit_many(tasks(count), background=True, outstanding=500) as stream:
            async for outcome in stream:
                seen += 1
                assert outcome.error is None
                assert len(stream._running) + len(stream._ended) <= 500
        assert seen == count
