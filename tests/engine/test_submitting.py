"""Submitting jobs, and joining those that have the same unique."""

from __future__ import annotations

import pytest

from tests.kit.engine_farm import Farm, P, packet

FOREGROUND = [P.SUBMIT_JOB, P.SUBMIT_JOB_HIGH, P.SUBMIT_JOB_LOW]
BACKGROUND = [P.SUBMIT_JOB_BG, P.SUBMIT_JOB_HIGH_BG, P.SUBMIT_JOB_LOW_BG]


def test_handles_are_prefix_and_number() -> None:
    """Each job gets a handle of its own, with the server's prefix."""
    client = Farm().connect()
    assert [client.submit() for _ in range(3)] == [b"H:farm:1", b"H:farm:2", b"H:farm:3"]


@pytest.mark.parametrize("type_", FOREGROUND)
def test_foreground_client_gets_all_that_its_worker_sends(type_: int) -> None:
    """Every packet about the job reaches its client as the worker sent it, in order."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    handle = client.submit(b"w", type_=type_)
    assert worker.grab() == handle
    worker.send(P.WORK_STATUS, handle, b"50%", b"1e2")
    worker.send(P.WORK_DATA, handle, b"\0part")
    worker.send(P.WORK_WARNING, handle, b"")
    worker.send(P.WORK_COMPLETE, handle, b"all\0")
    assert worker.read() == []
    assert client.read() == [
        packet(P.WORK_STATUS, handle, b"50%", b"1e2"),
        packet(P.WORK_DATA, handle, b"\0part"),
        packet(P.WORK_WARNING, handle, b""),
        packet(P.WORK_COMPLETE, handle, b"all\0"),
    ]


@pytest.mark.parametrize("type_", BACKGROUND)
def test_background_client_gets_its_handle_and_nothing_else(type_: int) -> None:
    """A background job's packets are for nobody, and it is no error to send them."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    handle = client.submit(type_=type_)
    assert worker.grab() == handle
    worker.send(P.WORK_DATA, handle, b"x")
    worker.send(P.WORK_STATUS, handle, b"1", b"2")
    worker.complete(handle)
    assert worker.read() == []
    assert client.read() == []


def test_job_that_failed_is_reported_as_the_worker_wrote_it() -> None:
    """WORK_FAIL is forwarded verbatim, also with the NUL that some workers put behind the handle."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    for tail in (b"", b"\0"):
        handle = client.submit()
        worker.grab()
        worker.send(P.WORK_FAIL, handle + tail)
        assert client.read() == [packet(P.WORK_FAIL, handle + tail)]


def test_one_connection_can_do_its_own_job() -> None:
    """There are no roles: who submitted a job may grab and complete it."""
    farm = Farm()
    peer = farm.worker()
    handle = peer.submit()
    assert peer.grab() == handle
    peer.complete(handle, b"r")
    assert peer.read() == [packet(P.WORK_COMPLETE, handle, b"r")]


@pytest.mark.parametrize("function", [b"", b"x" * 8191, b"\xff\t "])
def test_function_name_may_be_anything_that_fits(function: bytes) -> None:
    """Empty names, long ones and odd bytes are functions like all others."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker(function)
    handle = client.submit(b"w", b"u", function=function)
    worker.send(P.GRAB_JOB)
    assert worker.read() == [packet(P.JOB_ASSIGN, handle, function, b"w")]


# Uniques.


@pytest.mark.parametrize("second", FOREGROUND + BACKGROUND)
@pytest.mark.parametrize("first", FOREGROUND + BACKGROUND)
def test_equal_uniques_are_one_job(first: int, second: int) -> None:
    """A second submission gets the handle of the first, whatever kind and priority either is."""
    farm = Farm()
    one, other, worker = farm.connect(), farm.connect(), farm.worker()
    handle = one.submit(b"first", b"u", first)
    assert other.submit(b"second", b"u", second) == handle
    worker.send(P.GRAB_JOB_UNIQ)
    assert worker.read() == [packet(P.JOB_ASSIGN_UNIQ, handle, b"f", b"u", b"first")]
    assert worker.grab() is None
    worker.complete(handle)
    ending = [packet(P.WORK_COMPLETE, handle, b"")]
    assert one.read() == (ending if first in FOREGROUND else [])
    assert other.read() == (ending if second in FOREGROUND else [])


def test_unique_is_of_its_function() -> None:
    """Two functions may have jobs with the same unique."""
    client = Farm().connect()
    assert client.submit(unique=b"u", function=b"f") != client.submit(unique=b"u", function=b"g")


def test_empty_unique_never_joins() -> None:
    """Without a unique every submission is a new job."""
    client = Farm().connect()
    assert client.submit(b"same") != client.submit(b"same")


def test_dash_stands_for_the_workload() -> None:
    """Jobs with the unique ``-`` are one if their workloads are equal; empty ones never are."""
    client = Farm().connect()
    handle = client.submit(b"same", b"-")
    assert client.submit(b"same", b"-") == handle
    assert client.submit(b"other", b"-") != handle
    assert client.submit(b"same", b"-", function=b"g") != handle
    assert client.submit(b"", b"-") != client.submit(b"", b"-")


def test_hash_sign_is_a_unique_like_any_other() -> None:
    """libgearman replaces ``#`` before it sends; here it means nothing."""
    client = Farm().connect()
    assert client.submit(b"one", b"#") == client.submit(b"other", b"#")


@pytest.mark.parametrize("size", [63, 64])
def test_unique_of_64_bytes_is_whole(size: int) -> None:
    """A unique of up to 64 bytes joins, and reaches the worker with the workload untouched."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    handle = client.submit(b"w", b"u" * size)
    assert client.submit(b"w", b"u" * size) == handle
    assert client.submit(b"w", b"u" * (size - 1)) != handle
    worker.send(P.GRAB_JOB_UNIQ)
    assert worker.read() == [packet(P.JOB_ASSIGN_UNIQ, handle, b"f", b"u" * size, b"w")]


@pytest.mark.parametrize("type_", [*FOREGROUND, *BACKGROUND])
def test_unique_of_65_bytes_is_refused(type_: int) -> None:
    """A longer unique is an error, and no job, and no function either."""
    farm = Farm()
    client = farm.connect()
    client.send(type_, b"f", b"u" * 65, b"w")
    assert client.read() == [packet(P.ERROR, b"ARGUMENT_TOO_LARGE", b"Unique value too large")]
    assert client.ask(b"status") == b".\n"


def test_same_connection_twice_gets_everything_twice() -> None:
    """A connection that submits a job twice counts twice; Perl's client waits for both endings."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    handle = client.submit(unique=b"u")
    assert client.submit(unique=b"u") == handle
    client.send(P.GET_STATUS_UNIQUE, b"u")
    assert client.read()[0].args[-1] == b"2"
    worker.grab()
    worker.send(P.WORK_DATA, handle, b"x")
    worker.complete(handle, b"y")
    data, complete = packet(P.WORK_DATA, handle, b"x"), packet(P.WORK_COMPLETE, handle, b"y")
    assert client.read() == [data, data, complete, complete]


def test_running_job_is_joined_late() -> None:
    """Who joins a running job sees what the worker sends from then on."""
    farm = Farm()
    one, late, worker = farm.connect(), farm.connect(), farm.worker()
    handle = one.submit(unique=b"u")
    worker.grab()
    worker.send(P.WORK_DATA, handle, b"early")
    assert late.submit(unique=b"u") == handle
    worker.send(P.WORK_DATA, handle, b"late")
    assert late.read() == [packet(P.WORK_DATA, handle, b"late")]
    assert one.read() == [packet(P.WORK_DATA, handle, b"early"), packet(P.WORK_DATA, handle, b"late")]


@pytest.mark.parametrize("ending", [P.WORK_COMPLETE, P.WORK_FAIL, P.WORK_EXCEPTION])
def test_unique_is_free_when_its_job_ended(ending: int) -> None:
    """A job that ended absorbs nothing: the next submission is a new job."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    for unique, workload in ((b"u", b""), (b"-", b"w")):
        handle = client.submit(workload, unique)
        worker.grab()
        worker.send(ending, *([handle] if ending == P.WORK_FAIL else [handle, b""]))
        client.read()
        assert client.submit(workload, unique) != handle
        worker.complete(worker.grab() or b"")
        client.read()


def test_nothing_is_left_of_jobs_that_ended() -> None:
    """When all jobs ended and all peers left, the server remembers none of them."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker(b"f", b"g")
    for unique in (b"", b"u", b"-"):
        for function in (b"f", b"g"):
            client.submit(b"w", unique, function=function)
    while handle := worker.grab():
        worker.complete(handle)
    worker.sleep()
    client.leave()
    worker.leave()
    assert farm.leftovers() == {}
