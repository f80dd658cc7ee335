"""What a worker sends about a job that a time limit took from it, or that it ended with an exception."""

from __future__ import annotations

import pytest

from gearman_twisted.engine.records import MAX_LATE
from gearman_twisted.engine.settings import EngineSettings
from tests.kit.engine_farm import Farm, P, Peer, packet

NOT_FOUND = packet(P.ERROR, b"JOB_NOT_FOUND", b"Job given in work result not found")
REPORTS: list[tuple[P, list[bytes]]] = [
    (P.WORK_STATUS, [b"1", b"2"]),
    (P.WORK_DATA, [b"d"]),
    (P.WORK_WARNING, [b"w"]),
    (P.WORK_FAIL, []),
    (P.WORK_EXCEPTION, [b"e"]),
    (P.WORK_COMPLETE, [b"r"]),
]


def slow_worker(farm: Farm, *functions: bytes) -> Peer:
    """A worker that gets five seconds for a job."""
    worker = farm.connect()
    for function in functions or (b"f",):
        worker.send(P.CAN_DO_TIMEOUT, function, b"5000")
    return worker


def lose_in_time(farm: Farm, worker: Peer) -> bytes:
    """Have a worker take a job, and exceed its limit."""
    handle = worker.grab()
    assert handle
    farm.wait(6)
    assert worker.read() == []
    return handle


# Dropped.


@pytest.mark.parametrize(("type_", "args"), REPORTS)
def test_report_on_a_job_that_another_worker_runs_is_dropped(type_: P, args: list[bytes]) -> None:
    """Neither the late worker nor the clients are sent anything, and the other worker goes on."""
    farm = Farm()
    client, worker, other = farm.connect(), slow_worker(farm), farm.worker()
    handle = client.submit()
    lose_in_time(farm, worker)
    assert other.grab() == handle
    worker.send(type_, handle, *args)
    assert worker.read() == client.read() == []
    other.complete(handle, b"other")
    assert client.read() == [packet(P.WORK_COMPLETE, handle, b"other")]
    assert other.read() == []


@pytest.mark.parametrize(("type_", "args"), REPORTS[:-1])
def test_late_report_that_is_no_result_is_dropped_while_the_job_waits(type_: P, args: list[bytes]) -> None:
    """The job stays in its queue, and its progress is 0."""
    farm = Farm()
    client, worker, other = farm.connect(), slow_worker(farm), farm.worker()
    handle = client.submit()
    lose_in_time(farm, worker)
    worker.send(type_, handle, *args)
    assert worker.read() == client.read() == []
    client.send(P.GET_STATUS, handle)
    assert client.read() == [packet(P.STATUS_RES, handle, b"1", b"0", b"0", b"0")]
    assert other.grab() == handle


@pytest.mark.parametrize(("type_", "args"), REPORTS)
def test_report_on_a_job_whose_attempts_are_used_up_is_dropped(type_: P, args: list[bytes]) -> None:
    """The job has ended; each of its workers may still report once."""
    farm = Farm(settings=EngineSettings(handle_prefix=b"H:farm", job_retries=2))
    client, worker, other = farm.connect(), slow_worker(farm), slow_worker(farm)
    handle = client.submit()
    lose_in_time(farm, worker)
    lose_in_time(farm, other)
    assert client.read() == [packet(P.WORK_FAIL, handle)]
    for late in (worker, other):
        late.send(type_, handle, *args)
        assert late.read() == []
    assert client.read() == []


@pytest.mark.parametrize(("type_", "args"), REPORTS)
def test_report_on_a_cancelled_job_is_dropped_after_the_limit_too(type_: P, args: list[bytes]) -> None:
    """A cancelled job ends with its limit; its worker does not know."""
    farm = Farm()
    client, worker = farm.connect(), slow_worker(farm)
    handle = client.submit()
    assert worker.grab() == handle
    assert farm.connect().ask(b"cancel job " + handle) == b"OK\r\n"
    farm.wait(6)
    client.read()
    worker.send(type_, handle, *args)
    assert worker.read() == client.read() == []


@pytest.mark.parametrize(("type_", "args"), REPORTS[3:])
def test_end_is_taken_once(type_: P, args: list[bytes]) -> None:
    """After its end was reported, a second report is refused like any other."""
    farm = Farm()
    worker = slow_worker(farm)
    handle = farm.connect().submit()
    lose_in_time(farm, worker)
    worker.send(P.WORK_STATUS, handle, b"1", b"2")
    worker.send(type_, handle, *args)
    assert worker.read() == []
    worker.complete(handle)
    assert worker.read() == [NOT_FOUND]


def test_worker_that_has_the_job_again_ends_it_for_good() -> None:
    """Of two runs on one connection the first result counts; the second one is dropped."""
    farm = Farm()
    client, worker = farm.connect(), slow_worker(farm)
    handle = client.submit()
    lose_in_time(farm, worker)
    assert worker.grab() == handle
    worker.complete(handle, b"first")
    worker.complete(handle, b"second")
    assert worker.read() == []
    assert client.read() == [packet(P.WORK_COMPLETE, handle, b"first")]


# Accepted.


def test_result_of_a_job_that_still_waits_is_accepted() -> None:
    """Its clients get it, and nobody runs the job again; its unique is free."""
    farm = Farm()
    client, joiner, worker, other = farm.connect(), farm.connect(), slow_worker(farm), farm.connect()
    handle = client.submit(unique=b"u")
    lose_in_time(farm, worker)
    assert joiner.submit(unique=b"u") == handle
    worker.complete(handle, b"r")
    assert client.read() == joiner.read() == [packet(P.WORK_COMPLETE, handle, b"r")]
    other.send(P.CAN_DO, b"f")
    assert other.grab() is None
    assert client.submit(unique=b"u") != handle
    assert worker.read() == []


@pytest.mark.parametrize("memory", [None, 0])
def test_stored_job_that_still_waits_is_forgotten_with_its_result(memory: int | None) -> None:
    """Also beside jobs that are in the store only; those stay in their order."""
    farm = Farm(durable=True, settings=EngineSettings(handle_prefix=b"H:farm", memory=memory))
    client, worker = farm.connect(), slow_worker(farm)
    for number in range(3):
        client.send(P.SUBMIT_JOB_BG, b"f", b"", b"%d" % number)
    farm.save_all()
    first, second, third = (created.args[0] for created in client.read())
    if memory is not None:
        assert worker.grab() is None
        farm.load_all()
    assert worker.grab() == first
    client.send(P.SUBMIT_JOB_BG, b"f", b"", b"3")
    farm.save_all()
    [fourth] = (created.args[0] for created in client.read())
    farm.wait(6)
    worker.complete(first, b"r")
    assert worker.read() == []
    assert [job.handle for job in farm.kept.values()] == [second, third, fourth]
    handles = []
    for _ in range(3):
        farm.load_all()
        handles.append(worker.grab())
        worker.complete(handles[-1] or b"")
    assert handles == [second, third, fourth]
    worker.leave()
    client.leave()
    assert farm.leftovers() == {}


def test_result_is_not_accepted_if_somebody_else_has_begun() -> None:
    """Its clients may have been sent the start of another run: the job is run to its end by a third."""
    farm = Farm()
    client, worker, other, third = farm.connect(), slow_worker(farm), farm.worker(), farm.worker()
    handle = client.submit()
    lose_in_time(farm, worker)
    assert other.grab() == handle
    other.leave()
    worker.complete(handle, b"r")
    assert worker.read() == client.read() == []
    assert third.grab() == handle


def test_result_is_not_accepted_if_data_before_it_was_dropped() -> None:
    """A client never takes a part of what a worker sent for all of it."""
    farm = Farm()
    client, worker, other = farm.connect(), slow_worker(farm), farm.worker()
    handle = client.submit()
    lose_in_time(farm, worker)
    worker.send(P.WORK_DATA, handle, b"d")
    worker.complete(handle, b"r")
    assert worker.read() == client.read() == []
    assert other.grab() == handle


def test_result_of_a_reduce_job_is_not_accepted() -> None:
    """It may be one of several parts, and the job is split again."""
    farm = Farm()
    client, worker = farm.connect(), slow_worker(farm)
    client.send(P.SUBMIT_REDUCE_JOB, b"f", b"", b"g", b"", b"w")
    [created] = client.read()
    handle = lose_in_time(farm, worker)
    assert handle == created.args[0]
    worker.complete(handle, b"part")
    assert worker.read() == client.read() == []
    assert worker.grab() == handle


def test_result_of_a_part_is_not_accepted() -> None:
    """The part is run again, and its whole ends with that."""
    farm = Farm()
    client, splitter = farm.connect(), farm.worker(b"f")
    worker, other = slow_worker(farm, b"g"), farm.worker(b"g")
    client.send(P.SUBMIT_REDUCE_JOB, b"f", b"", b"g", b"", b"w")
    whole = splitter.grab()
    assert whole
    splitter.complete(whole, b"part")
    part = lose_in_time(farm, worker)
    client.read()
    worker.complete(part, b"late")
    assert worker.read() == client.read() == []
    assert other.grab() == part
    other.complete(part, b"r")
    assert client.read() == [packet(P.WORK_COMPLETE, whole, b"r")]


# Forgotten.


@pytest.mark.parametrize(("type_", "args"), [(P.CANT_DO, [b"f"]), (P.RESET_ABILITIES, [])])
@pytest.mark.parametrize("comes_back", [False, True])
def test_late_job_is_forgotten_with_its_function(type_: P, args: list[bytes], comes_back: bool) -> None:
    """Who gave the function up says by that that no result comes."""
    farm = Farm()
    client, worker = farm.connect(), slow_worker(farm)
    handle = client.submit()
    lose_in_time(farm, worker)
    worker.send(type_, *args)
    if comes_back:
        worker.send(P.CAN_DO, b"f")
    worker.complete(handle, b"r")
    assert worker.read() == [NOT_FOUND]
    assert client.read() == []


def test_late_job_outlives_other_functions_and_registering_again() -> None:
    """Giving up another function, or registering the same one again, changes nothing."""
    farm = Farm()
    client, worker = farm.connect(), slow_worker(farm, b"f", b"g")
    handle = client.submit()
    lose_in_time(farm, worker)
    worker.send(P.CANT_DO, b"g")
    worker.send(P.CAN_DO, b"f")
    worker.complete(handle, b"r")
    assert worker.read() == []
    assert client.read() == [packet(P.WORK_COMPLETE, handle, b"r")]


def test_late_job_is_forgotten_with_its_connection() -> None:
    """Another connection of the same worker gets an ERROR, as it never had the job."""
    farm = Farm()
    worker, again = slow_worker(farm), farm.worker()
    handle = farm.connect().submit()
    lose_in_time(farm, worker)
    worker.leave()
    again.complete(handle, b"r")
    assert again.read() == [NOT_FOUND]


def test_so_many_late_jobs_are_remembered() -> None:
    """A worker that never reports does not fill the memory: the oldest are forgotten."""
    farm = Farm()
    client, worker = farm.connect(), slow_worker(farm)
    handles = [client.submit(type_=P.SUBMIT_JOB_BG) for _ in range(MAX_LATE + 2)]
    for handle in handles:
        assert worker.grab() == handle
    farm.wait(6)
    for handle in handles:
        worker.send(P.WORK_FAIL, handle)
    assert worker.read() == [NOT_FOUND] * 2


# A failure behind an exception.


@pytest.mark.parametrize("end", [b"", b"\0"])
@pytest.mark.parametrize("is_late", [False, True])
def test_failure_behind_an_exception_is_dropped(end: bytes, is_late: bool) -> None:
    """Perl's worker sends both; the second one is no mistake, the third one is."""
    farm = Farm()
    client, worker = farm.connect(), slow_worker(farm)
    handle = client.submit()
    assert worker.grab() == handle
    if is_late:
        farm.wait(6)
    worker.send(P.WORK_EXCEPTION, handle, b"why")
    worker.send(P.WORK_FAIL, handle + end)
    assert worker.read() == []
    assert client.read() == ([] if is_late else [packet(P.WORK_FAIL, handle)])
    worker.send(P.WORK_FAIL, handle)
    assert worker.read() == [NOT_FOUND]


def test_other_jobs_between_an_exception_and_its_failure_do_not_matter() -> None:
    """A worker with several jobs may send both in any order with what it sends about the others."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    first, second = client.submit(), client.submit()
    assert [worker.grab(), worker.grab()] == [first, second]
    worker.send(P.WORK_EXCEPTION, first, b"why")
    worker.complete(second)
    worker.send(P.WORK_FAIL, first)
    assert worker.read() == []


@pytest.mark.parametrize(("type_", "args"), [(t, a) for t, a in REPORTS if t != P.WORK_FAIL])
def test_anything_else_behind_an_exception_is_refused(type_: P, args: list[bytes]) -> None:
    """The job has ended; no library sends more than WORK_FAIL."""
    farm = Farm()
    worker = farm.worker()
    handle = farm.connect().submit()
    worker.grab()
    worker.send(P.WORK_EXCEPTION, handle, b"why")
    worker.send(type_, handle, *args)
    assert worker.read_types() == [P.ERROR]


def test_failure_behind_the_exception_of_somebody_else_is_refused() -> None:
    """Each connection has its own; and a failure without an exception is refused."""
    farm = Farm()
    worker, other = farm.worker(), farm.worker()
    handle = farm.connect().submit()
    worker.grab()
    worker.send(P.WORK_EXCEPTION, handle, b"why")
    for peer, its in ((other, handle), (worker, b"H:nobody:1"), (worker, b"")):
        peer.send(P.WORK_FAIL, its)
        assert peer.read() == [NOT_FOUND]
