"""Reduce jobs: SUBMIT_REDUCE_JOB and _BACKGROUND."""

from __future__ import annotations

import pytest

from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.wire.constants import ErrorCode
from tests.kit.engine_farm import Farm, P, Peer, packet


def reduce(client: Peer, type_: int = P.SUBMIT_REDUCE_JOB, unique: bytes = b"") -> bytes:
    """Submit a job for ``split`` whose parts go to ``sum``; return its handle."""
    client.send(type_, b"split", unique, b"sum", b"", b"work")
    [created] = client.read()
    assert created.type == P.JOB_CREATED
    return created.args[0]


def split(worker: Peer, *parts: bytes, last: bytes = b"") -> bytes:
    """Grab the job and split it into parts, the last of them with its end."""
    handle = worker.grab()
    assert handle is not None
    for part in parts:
        worker.send(P.WORK_DATA, handle, part)
    worker.complete(handle, last)
    return handle


def grab_part(worker: Peer) -> tuple[bytes, bytes]:
    """Grab a part; return its handle and workload."""
    worker.send(P.GRAB_JOB_UNIQ)
    [assigned] = worker.read()
    handle, function, unique, workload = assigned.args
    assert (function, unique) == (b"sum", b"")
    return handle, workload


def test_parts_are_reduced_and_joined_in_order() -> None:
    """The client gets the results of all parts in the order of the parts, whichever ended first."""
    farm = Farm()
    client, splitter, reducer = farm.connect(), farm.worker(b"split"), farm.worker(b"sum")
    handle = reduce(client)
    split(splitter, b"1", b"2", last=b"3")
    parts = [grab_part(reducer) for _ in range(3)]
    assert [workload for _, workload in parts] == [b"1", b"2", b"3"]
    assert client.read() == []
    for part, workload in reversed(parts):
        reducer.complete(part, b"<%b>" % workload)
    assert client.read() == [packet(P.WORK_COMPLETE, handle, b"<1><2><3>")]
    client.leave()
    splitter.leave()
    reducer.leave()
    assert farm.leftovers() == {}


def test_what_a_part_sends_ahead_belongs_to_its_result() -> None:
    """WORK_DATA of a reducer stands before the rest of its result; its warnings go to the client at once."""
    farm = Farm()
    client, splitter, reducer = farm.connect(), farm.worker(b"split"), farm.worker(b"sum")
    handle = reduce(client)
    split(splitter, b"1")
    part, _ = grab_part(reducer)
    reducer.send(P.WORK_DATA, part, b"a")
    reducer.send(P.WORK_STATUS, part, b"1", b"2")
    reducer.send(P.WORK_WARNING, part, b"careful")
    assert client.read() == [packet(P.WORK_WARNING, handle, b"careful")]
    reducer.complete(part, b"b")
    assert client.read() == [packet(P.WORK_COMPLETE, handle, b"ab")]


def test_parts_may_end_before_the_last_is_there() -> None:
    """Reducers begin while the job is still being split; it ends only when it has been split whole."""
    farm = Farm()
    client, splitter, reducer = farm.connect(), farm.worker(b"split"), farm.worker(b"sum")
    handle = reduce(client)
    assert splitter.grab() == handle
    splitter.send(P.WORK_DATA, handle, b"1")
    part, _ = grab_part(reducer)
    reducer.complete(part, b"one")
    assert client.read() == []
    splitter.send(P.WORK_STATUS, handle, b"1", b"1")
    assert client.read() == [packet(P.WORK_STATUS, handle, b"1", b"1")]
    splitter.complete(handle)
    assert client.read() == [packet(P.WORK_COMPLETE, handle, b"one")]


def test_without_parts_the_result_is_empty() -> None:
    """A job that was split into nothing ends with nothing."""
    farm = Farm()
    client, splitter = farm.connect(), farm.worker(b"split")
    handle = reduce(client)
    split(splitter)
    assert client.read() == [packet(P.WORK_COMPLETE, handle, b"")]


def test_it_is_running_until_it_is_reduced() -> None:
    """GET_STATUS says so also when its worker is done and its parts are not."""
    farm = Farm()
    client, splitter = farm.connect(), farm.worker(b"split")
    handle = reduce(client)
    split(splitter, b"1")
    client.send(P.GET_STATUS, handle)
    assert client.read() == [packet(P.STATUS_RES, handle, b"1", b"1", b"0", b"0")]


@pytest.mark.parametrize("is_split", [True, False])
@pytest.mark.parametrize("wants", [True, False])
@pytest.mark.parametrize("ending", [P.WORK_FAIL, P.WORK_EXCEPTION])
def test_one_part_that_fails_fails_the_whole(ending: int, wants: bool, is_split: bool) -> None:
    """The client hears of it once, under the handle that it knows; what is left of the job is given up."""
    farm = Farm()
    client, splitter, reducer = farm.connect(), farm.worker(b"split"), farm.worker(b"sum")
    if wants:
        client.send(P.OPTION_REQ, b"exceptions")
        client.read()
    handle = reduce(client)
    assert splitter.grab() == handle
    for part in (b"1", b"2", b"3"):
        splitter.send(P.WORK_DATA, handle, part)
    if is_split:
        splitter.complete(handle)
    first, second = grab_part(reducer)[0], grab_part(reducer)[0]
    reducer.send(ending, first, *([b"why"] if ending == P.WORK_EXCEPTION else []))
    if ending == P.WORK_FAIL:
        assert client.read() == [packet(P.WORK_FAIL, handle)]
    elif wants:
        assert client.read() == [packet(P.WORK_EXCEPTION, handle, b"why")]
    else:
        assert client.read() == [packet(P.WORK_FAIL, handle)]
    assert reducer.grab() is None
    reducer.complete(second, b"too late")
    if not is_split:
        splitter.send(P.WORK_DATA, handle, b"4")
        splitter.complete(handle)
    assert [peer.read() for peer in (client, splitter, reducer)] == [[], [], []]
    assert farm.connect().ask(b"status") == b"split\t0\t0\t1\nsum\t0\t0\t1\n.\n"


def test_a_splitter_that_fails_gives_up_the_parts() -> None:
    """WORK_FAIL of the job's own worker ends it, whatever its parts are at."""
    farm = Farm()
    client, splitter, reducer = farm.connect(), farm.worker(b"split"), farm.worker(b"sum")
    handle = reduce(client)
    assert splitter.grab() == handle
    splitter.send(P.WORK_DATA, handle, b"1")
    splitter.send(P.WORK_FAIL, handle)
    assert client.read() == [packet(P.WORK_FAIL, handle)]
    assert reducer.grab() is None


def test_a_lost_splitter_begins_anew() -> None:
    """When the worker is lost the parts so far are given up, and another worker splits it again."""
    farm = Farm()
    client, splitter, reducer = farm.connect(), farm.worker(b"split"), farm.worker(b"sum")
    handle = reduce(client)
    assert splitter.grab() == handle
    splitter.send(P.WORK_DATA, handle, b"1")
    old, _ = grab_part(reducer)
    splitter.send(P.WORK_DATA, handle, b"2")
    splitter.leave()
    assert reducer.grab() is None
    split(farm.worker(b"split"), b"new")
    reducer.complete(old, b"nobody's")
    part, workload = grab_part(reducer)
    reducer.complete(part, workload)
    assert client.read() == [packet(P.WORK_COMPLETE, handle, b"new")]


def test_a_lost_reducer_is_replaced() -> None:
    """A part whose worker is lost goes to another one."""
    farm = Farm()
    client, splitter, reducer = farm.connect(), farm.worker(b"split"), farm.worker(b"sum")
    handle = reduce(client)
    split(splitter, b"1")
    part, _ = grab_part(reducer)
    reducer.leave()
    other = farm.worker(b"sum")
    assert grab_part(other) == (part, b"1")
    other.complete(part, b"one")
    assert client.read() == [packet(P.WORK_COMPLETE, handle, b"one")]


def test_a_part_begins_anew_with_another_worker() -> None:
    """What a lost worker had sent of a part is not in its result, and does not count for its length."""
    farm = Farm(settings=EngineSettings(max_reduced_bytes=5, handle_prefix=b"H:farm"))
    client, splitter, reducer = farm.connect(), farm.worker(b"split"), farm.worker(b"sum")
    handle = reduce(client)
    split(splitter, b"1", b"2")
    reducer.send(P.WORK_DATA, grab_part(reducer)[0], b"lost")
    reducer.leave()
    other = farm.worker(b"sum")
    for part in (grab_part(other)[0], grab_part(other)[0]):
        other.send(P.WORK_DATA, part, b"a")
        other.complete(part, b"b")
    assert client.read() == [packet(P.WORK_COMPLETE, handle, b"abab")]


def test_a_part_that_is_lost_too_often_fails_the_whole() -> None:
    """The limit of attempts holds for parts."""
    farm = Farm(settings=EngineSettings(job_retries=1, handle_prefix=b"H:farm"))
    client, splitter, reducer = farm.connect(), farm.worker(b"split"), farm.worker(b"sum")
    handle = reduce(client)
    split(splitter, b"1", b"2")
    grab_part(reducer)
    reducer.leave()
    assert client.read() == [packet(P.WORK_FAIL, handle)]
    client.leave()
    splitter.leave()
    assert farm.leftovers() == {}


@pytest.mark.parametrize("when", ["queued", "splitting", "reducing"])
def test_it_is_cancelled_with_its_parts(when: str) -> None:
    """Cancel job ends the whole and all parts, in each state."""
    farm = Farm()
    client, splitter, reducer = farm.connect(), farm.worker(b"split"), farm.worker(b"sum")
    handle = reduce(client)
    if when != "queued":
        assert splitter.grab() == handle
        splitter.send(P.WORK_DATA, handle, b"1")
    if when == "reducing":
        splitter.complete(handle)
    assert farm.connect().ask(b"cancel job " + handle) == b"OK\r\n"
    assert client.read() == [packet(P.WORK_FAIL, handle)]
    assert reducer.grab() is None
    if when == "splitting":
        splitter.complete(handle)
    assert splitter.read() == []


def test_cancelling_a_part_fails_the_whole() -> None:
    """A part is a job like others, and can be cancelled."""
    farm = Farm()
    client, splitter, reducer = farm.connect(), farm.worker(b"split"), farm.worker(b"sum")
    handle = reduce(client)
    split(splitter, b"1")
    part, _ = grab_part(reducer)
    assert farm.connect().ask(b"cancel job " + part) == b"OK\r\n"
    assert client.read() == [packet(P.WORK_FAIL, handle)]
    reducer.complete(part)
    assert reducer.read() == []


def test_a_worker_that_knows_reducers_reduces_itself() -> None:
    """GRAB_JOB_ALL is answered with the reducer, and then all packets go to the client as they are."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker(b"split")
    handle = reduce(client, unique=b"u")
    worker.send(P.GRAB_JOB_ALL)
    assert worker.read() == [packet(P.JOB_ASSIGN_ALL, handle, b"split", b"u", b"sum", b"work")]
    worker.send(P.WORK_DATA, handle, b"1")
    worker.complete(handle, b"2")
    assert client.read() == [packet(P.WORK_DATA, handle, b"1"), packet(P.WORK_COMPLETE, handle, b"2")]


def test_without_a_reducer_it_is_an_ordinary_job() -> None:
    """An empty reducer means none."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker(b"split")
    client.send(P.SUBMIT_REDUCE_JOB, b"split", b"u", b"", b"", b"work")
    [created] = client.read()
    worker.send(P.GRAB_JOB_ALL)
    assert worker.read() == [packet(P.JOB_ASSIGN_UNIQ, created.args[0], b"split", b"u", b"work")]


def test_a_long_reducer_is_refused() -> None:
    """64 bytes are taken; one more is an ERROR, in gearmand's words."""
    client = Farm().connect()
    client.send(P.SUBMIT_REDUCE_JOB, b"split", b"", b"r" * 64, b"", b"")
    client.send(P.SUBMIT_REDUCE_JOB, b"split", b"", b"r" * 65, b"", b"")
    [_, error] = client.read()
    assert error == packet(P.ERROR, ErrorCode.ARGUMENT_TOO_LARGE, b"Unique value too large")


def test_a_background_one_survives_a_restart_with_its_reducer() -> None:
    """The job is stored with its reducer, its parts are not: after a restart it is split anew."""
    farm = Farm(durable=True)
    client, splitter = farm.connect(), farm.worker(b"split")
    client.send(P.SUBMIT_REDUCE_JOB_BACKGROUND, b"split", b"", b"sum", b"", b"work")
    farm.save_all()
    handle = split(splitter, b"1", b"2")
    assert farm.saves == []
    farm.restart()
    splitter, reducer = farm.worker(b"split"), farm.worker(b"sum")
    assert reducer.grab() is None
    assert split(splitter, b"1") == handle
    part, workload = grab_part(reducer)
    assert workload == b"1"
    reducer.complete(part)
    assert farm.kept == {}


def test_clients_join_it_by_unique() -> None:
    """A second submission with the same unique waits for the same result."""
    farm = Farm()
    first, second = farm.connect(), farm.connect()
    splitter, reducer = farm.worker(b"split"), farm.worker(b"sum")
    handle = reduce(first, unique=b"u")
    split(splitter, b"1")
    assert reduce(second, unique=b"u") == handle
    part, _ = grab_part(reducer)
    reducer.complete(part, b"one")
    assert first.read() == second.read() == [packet(P.WORK_COMPLETE, handle, b"one")]


@pytest.mark.parametrize("type_", [P.WORK_DATA, P.WORK_COMPLETE])
def test_results_are_bounded(type_: int) -> None:
    """Results that are too long together fail the job; they would not fit a packet in the end."""
    farm = Farm(settings=EngineSettings(max_reduced_bytes=10))
    client, splitter, reducer = farm.connect(), farm.worker(b"split"), farm.worker(b"sum")
    handle = reduce(client)
    split(splitter, b"1", b"2")
    first, second = grab_part(reducer)[0], grab_part(reducer)[0]
    reducer.complete(first, bytes(6))
    reducer.send(type_, second, bytes(6))
    assert client.read() == [packet(P.WORK_FAIL, handle)]
    if type_ == P.WORK_DATA:
        reducer.complete(second)
    assert reducer.read() == []
    assert client.ask(b"status") == b"split\t0\t0\t1\nsum\t0\t0\t1\n.\n"


def test_it_counts_as_running_until_it_is_reduced() -> None:
    """Status and prioritystatus do not show a job that is being reduced as one that a worker could grab."""
    farm = Farm()
    client, splitter = farm.connect(), farm.worker(b"split")
    reduce(client)
    split(splitter, b"1")
    assert client.ask(b"status") == b"split\t1\t1\t1\nsum\t1\t0\t0\n.\n"
    assert client.ask(b"prioritystatus") == b"split\t0\t0\t0\t1\nsum\t0\t1\t0\t0\n.\n"
