"""Many jobs at a time, on both event loops: streams, sets, map and reduce; and JSON."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from gearman_twisted.client import JobStream, Outcome, PartsFailed, Task, gather, map_reduce
from gearman_twisted.client.call import Receiver
from gearman_twisted.errors import ConfigError, ConnectionLost, JobFailed, LocalProtocolError
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.values import from_json, to_json
from tests.kit.client_rig import ClientRig
from tests.kit.loops import TestLoop
from tests.kit.peers import response

P = PacketType


class Job:
    """A job that was submitted."""

    def __init__(self, task: Task, receiver: Receiver) -> None:
        self.task = task
        self.receiver = receiver
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Submits:
    """Submits tasks by keeping them."""

    def __init__(self, loop: TestLoop) -> None:
        self._loop = loop
        self.jobs: list[Job] = []

    def __call__(self, task: Task, receiver: Receiver) -> Job:
        self.jobs.append(Job(task, receiver))
        return self.jobs[-1]

    def end(self, index: int, result: bytes | Exception = b"") -> None:
        """End a job."""
        receiver = self.jobs[index].receiver
        if isinstance(result, Exception):
            error = result
            self._loop.call(lambda: receiver.fail(error))
        else:
            self._loop.call(lambda: receiver.succeed(result))


@pytest.fixture
def submits(loop: TestLoop) -> Submits:
    """Takes what a stream submits."""
    return Submits(loop)


def tasks(count: int) -> Iterator[Task]:
    return (Task("f", b"%d" % number) for number in range(count))


def test_outcomes_come_as_jobs_end(loop: TestLoop, submits: Submits) -> None:
    """Whichever job ends first comes first, with its index; errors are outcomes too."""
    stream = JobStream(loop.runtime, submits, tasks(3), 10)
    first = loop.outcome(stream.__anext__())
    assert not first.is_settled
    submits.end(2, b"two")
    submits.end(0, JobFailed("no"))
    assert first.end() == Outcome(2, b"two", None)
    second = loop.outcome(stream.__anext__()).end()
    assert (second.index, type(second.error)) == (0, JobFailed)
    with pytest.raises(JobFailed):
        second.get()
    third = loop.outcome(stream.__anext__())
    submits.end(1, b"one")
    assert third.end().get() == b"one"


def test_no_more_than_outstanding_are_on_their_way(loop: TestLoop, submits: Submits) -> None:
    """New jobs are made and submitted as outcomes are taken, so that memory is bounded."""
    made: list[int] = []

    def endless() -> Iterator[Task]:
        while True:
            made.append(len(made))
            yield Task("f")

    stream = JobStream(loop.runtime, submits, endless(), 4)
    assert made == []
    loop.outcome(stream.__anext__())
    assert len(made) == 4
    for index in range(4):
        submits.end(index)
    assert len(made) == 4
    loop.outcome(stream.__anext__())
    assert len(made) == 5


def test_stream_ends(loop: TestLoop, submits: Submits) -> None:
    """After the last outcome the iteration ends, and no job is submitted without being asked for."""

    async def collect() -> list[int]:
        return [outcome.index async for outcome in JobStream(loop.runtime, submits, tasks(5), 2)]

    found = loop.outcome(collect())
    for index in range(5):
        submits.end(index)
    assert found.end() == [0, 1, 2, 3, 4]
    assert not loop.outcome(collect()).is_settled


def test_several_take_from_one_stream(loop: TestLoop, submits: Submits) -> None:
    """Each outcome goes to one of those who wait, and the end to all; one that gives up misses nothing."""
    stream = JobStream(loop.runtime, submits, tasks(3), 3)
    waiting = [loop.outcome(stream.__anext__()) for _ in range(5)]
    waiting[0].cancel()
    for index in range(3):
        submits.end(index)
    assert [each.end().index for each in waiting[1:4]] == [0, 1, 2]
    assert isinstance(waiting[4].error, StopAsyncIteration | RuntimeError)


def test_leaving_early_cancels_the_rest(loop: TestLoop, submits: Submits) -> None:
    """A stream that is left cancels what is on its way, submits nothing more, and keeps nothing alive."""

    async def leave() -> None:
        async with JobStream(loop.runtime, submits, tasks(100), 5) as stream:
            async for _ in stream:
                break

    left = loop.outcome(leave())
    submits.end(0, b"first")
    assert left.end() is None
    assert [job.is_cancelled for job in submits.jobs] == [False, True, True, True, True]
    submits.end(1, b"late")
    kept = [weakref.ref(job) for job in submits.jobs]
    submits.jobs.clear()
    gc.collect()
    assert [each() for each in kept] == [None] * 5


@pytest.mark.parametrize("outstanding", [0, -1, "3", 1.5, True])
def test_nonsense_is_refused(loop: TestLoop, submits: Submits, outstanding: Any) -> None:
    """At least one job has to be on its way."""
    with pytest.raises(ConfigError, match=f"outstanding takes a number of at least 1, not {outstanding!r}"):
        JobStream(loop.runtime, submits, [], outstanding)


def test_only_tasks_are_submitted(loop: TestLoop) -> None:
    """What is no task is an error that says so; the error of a task that cannot be sent is an outcome."""
    rig = ClientRig(loop)
    wrong: Any = ["f"]
    assert "submit_many takes Tasks, not str" in str(loop.outcome(gather(rig.client, wrong)).end())
    failed = loop.outcome(gather(rig.client, [Task(""), Task("f", "text")])).end()  # type: ignore[arg-type]
    assert [type(error) for error in failed.errors.values()] == [LocalProtocolError, TypeError]
    assert rig.attempts == 0


def test_stream_of_a_client(loop: TestLoop) -> None:
    """Jobs are submitted as their tasks say, a bounded number at a time, and ended by their packets."""
    rig = ClientRig(loop)
    peer = rig.connect()
    some = [Task("f", b"%d" % number, b"u", "low") for number in range(4)]
    stream = rig.client.submit_many(some, outstanding=3)
    first = loop.outcome(stream.__anext__())
    taken = peer.taken()
    assert [packet.args for packet in taken] == [[b"f", b"u", b"%d" % number] for number in range(3)]
    assert {packet.type for packet in taken} == {P.SUBMIT_JOB_LOW}
    peer.send_bytes(response(P.JOB_CREATED, b"H:1") + response(P.WORK_COMPLETE, b"H:1", b"one"))
    assert first.end().get() == b"one"
    assert peer.taken() == []
    loop.call(stream.close)
    # What was cancelled keeps its place.
    echo = rig.calls.echo(b"x")
    peer.send_bytes(response(P.JOB_CREATED, b"H:2") + response(P.JOB_CREATED, b"H:3"))
    peer.send(P.ECHO_RES, b"x")
    assert echo.end() == b"x"


def test_stream_of_background_jobs(loop: TestLoop) -> None:
    """In the background, outcomes are handles; a lost connection is an outcome, unless jobs are retried."""
    rig = ClientRig(loop)
    peer = rig.connect()
    plain = rig.client.submit_many(tasks(1), background=True)
    retried = rig.client.submit_many(tasks(1), background=True, retry=True)
    ends = [loop.outcome(stream.__anext__()) for stream in (plain, retried)]
    peer.lose()
    assert isinstance(ends[0].end().error, ConnectionLost)
    loop.advance(0)
    peer = rig.server.accept_peer()
    peer.send(P.OPTION_RES, b"exceptions")
    peer.send(P.JOB_CREATED, b"H:1")
    assert ends[1].end().get() == b"H:1"


def double(workload: bytes) -> bytes | None:
    return None if workload == b"7" else b"%d" % (2 * int(workload))


class Served(ClientRig):
    """A client whose server doubles numbers, and fails at 7."""

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine, and do the jobs that it submits."""
        peer = self.connect()
        outcome = self.loop.outcome(coroutine)
        for number, packet in enumerate(peer.taken()):
            handle, result = b"H:%d" % number, double(packet.args[2])
            peer.send(P.JOB_CREATED, handle)
            peer.send(*((P.WORK_FAIL, handle) if result is None else (P.WORK_COMPLETE, handle, result)))
        return outcome.end()


def test_sets(loop: TestLoop) -> None:
    """A set gives all results in order, or says which failed, with the results of the others."""
    rig = Served(loop)
    some = [Task("double", b"%d" % number) for number in range(6)]
    assert rig.run(gather(rig.client, some)) == [b"%d" % (2 * number) for number in range(6)]
    rig = Served(loop)
    failed = rig.run(gather(rig.client, (Task("double", b"%d" % number) for number in range(10))))
    assert isinstance(failed, PartsFailed)
    assert "1 of 10 parts failed; the first is number 7" in str(failed)
    assert list(failed.errors) == [7]
    assert failed.results[6:9] == [b"12", None, b"16"]


def test_map_and_reduce(loop: TestLoop) -> None:
    """One value is made of all results, in order."""
    rig = Served(loop)
    assert rig.run(map_reduce(rig.client, "double", [b"1", b"2", b"30"], b" ".join)) == b"2 4 60"


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
