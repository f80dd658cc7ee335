"""Clients and workers that are lost, retries and time limits."""

from __future__ import annotations

import pytest

from gearman_twisted.engine.settings import EngineSettings
from tests.kit.engine_farm import Farm, P, packet


def farm_with_retries(retries: int) -> Farm:
    """A farm whose server takes a job away so often."""
    return Farm(settings=EngineSettings(handle_prefix=b"H:farm", job_retries=retries))


# Clients.


@pytest.mark.parametrize("unique", [b"", b"u", b"-"])
def test_queued_job_that_nobody_waits_for_vanishes(unique: bytes) -> None:
    """When its last client leaves, a queued foreground job is gone at once, and its unique is free."""
    farm = Farm()
    client, other, worker = farm.connect(), farm.connect(), farm.worker()
    handle = client.submit(b"w", unique)
    client.leave()
    assert other.ask(b"status") == b"f\t0\t0\t1\n.\n"
    other.send(P.GET_STATUS, handle)
    assert other.read() == [packet(P.STATUS_RES, handle, b"0", b"0", b"0", b"0")]
    assert worker.grab() is None
    assert other.submit(b"w", unique) != handle


def test_job_lives_while_one_client_waits() -> None:
    """As long as one client is left, the job goes on, and only that one hears of it."""
    farm = Farm()
    one, other, worker = farm.connect(), farm.connect(), farm.worker()
    handle = one.submit(unique=b"u")
    other.submit(unique=b"u")
    one.leave()
    assert worker.grab() == handle
    worker.complete(handle)
    assert other.read() == [packet(P.WORK_COMPLETE, handle, b"")]


def test_client_that_submitted_twice_leaves_as_one() -> None:
    """A connection that is attached twice leaves nothing behind."""
    farm = Farm()
    client = farm.connect()
    client.submit(unique=b"u")
    client.submit(unique=b"u")
    client.leave()
    assert farm.leftovers() == {}


def test_background_job_needs_no_client() -> None:
    """A background job runs though its submitter left."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    handle = client.submit(type_=P.SUBMIT_JOB_BG)
    client.leave()
    assert worker.grab() == handle


@pytest.mark.parametrize("order", ["background first", "foreground first"])
def test_background_job_outlives_its_foreground_clients(order: str) -> None:
    """A job that was submitted in the background too still runs when the last foreground client left."""
    farm = Farm()
    owner, guest, worker = farm.connect(), farm.connect(), farm.worker()
    submits = [(owner, P.SUBMIT_JOB_BG), (guest, P.SUBMIT_JOB)]
    if order == "foreground first":
        submits.reverse()
    [handle] = {peer.submit(unique=b"u", type_=type_) for peer, type_ in submits}
    guest.leave()
    assert worker.grab() == handle


def test_running_job_that_nobody_waits_for_goes_on() -> None:
    """A worker is not told that its client left, and gets no error for what it sends."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    handle = client.submit()
    worker.grab()
    client.leave()
    worker.send(P.WORK_DATA, handle, b"x")
    worker.complete(handle)
    assert worker.read() == []


def test_abandoned_running_job_is_joined() -> None:
    """A new client with the same unique gets the result of a job whose client left."""
    farm = Farm()
    client, late, worker = farm.connect(), farm.connect(), farm.worker()
    handle = client.submit(unique=b"u")
    worker.grab()
    client.leave()
    assert late.submit(unique=b"u") == handle
    worker.complete(handle, b"r")
    assert late.read() == [packet(P.WORK_COMPLETE, handle, b"r")]


def test_abandoned_running_job_is_dropped_with_its_worker() -> None:
    """When nobody waits for it, a job that its worker loses is not run again; its unique is free."""
    farm = Farm()
    client, late, worker, other = farm.connect(), farm.connect(), farm.worker(), farm.worker()
    handle = client.submit(unique=b"u")
    worker.grab()
    client.leave()
    worker.leave()
    assert other.grab() is None
    assert late.submit(unique=b"u") != handle


def test_abandoned_running_job_that_was_joined_is_run_again() -> None:
    """Once joined, a job counts: when its worker is lost, another one gets it."""
    farm = Farm()
    client, late, worker, other = farm.connect(), farm.connect(), farm.worker(), farm.worker()
    handle = client.submit(unique=b"u")
    worker.grab()
    client.leave()
    late.submit(unique=b"u")
    worker.leave()
    assert other.grab() == handle


def test_peer_that_runs_its_own_job_leaves_nothing() -> None:
    """A connection that is its job's only client and its worker takes the job along, and wakes nobody."""
    farm = farm_with_retries(1)
    peer, other = farm.worker(), farm.worker()
    peer.submit()
    peer.grab()
    other.sleep()
    peer.leave()
    assert other.read() == []
    assert other.ask(b"status") == b"f\t0\t0\t1\n.\n"


# Workers.


def test_jobs_of_a_lost_worker_are_queued_again() -> None:
    """They go to the end of their queue, the last assigned first; their clients hear nothing."""
    farm = Farm()
    client, worker, other = farm.connect(), farm.worker(), farm.worker()
    first, second, third = client.submit(), client.submit(), client.submit()
    worker.grab()
    worker.grab()
    worker.leave()
    assert [other.grab() for _ in range(3)] == [third, second, first]
    assert client.read() == []


def test_job_keeps_its_priority_when_it_is_queued_again() -> None:
    """A high job that is run again is still before normal ones."""
    farm = Farm()
    client, worker, other = farm.connect(), farm.worker(), farm.worker()
    high = client.submit(type_=P.SUBMIT_JOB_HIGH)
    worker.grab()
    client.submit()
    worker.leave()
    assert other.grab() == high


def test_progress_starts_anew_with_each_worker() -> None:
    """A job that was taken from its worker has no progress."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    handle = client.submit(type_=P.SUBMIT_JOB_BG)
    worker.grab()
    worker.send(P.WORK_STATUS, handle, b"1", b"2")
    worker.leave()
    client.send(P.GET_STATUS, handle)
    assert client.read() == [packet(P.STATUS_RES, handle, b"1", b"0", b"0", b"0")]


@pytest.mark.parametrize(("retries", "attempts"), [(0, 1), (1, 1), (2, 2), (3, 3)])
@pytest.mark.parametrize("loss", ["leave", "CANT_DO"])
def test_job_that_is_lost_too_often_fails(retries: int, attempts: int, loss: str) -> None:
    """With a limit a job gets so many attempts, and then its clients get WORK_FAIL; 0 and 1 are the same."""
    farm = farm_with_retries(retries)
    client = farm.connect()
    handle = client.submit(unique=b"u")
    for _ in range(attempts):
        assert client.read() == []
        worker = farm.worker()
        assert worker.grab() == handle
        if loss == "leave":
            worker.leave()
        else:
            worker.send(P.CANT_DO, b"f")
    assert client.read() == [packet(P.WORK_FAIL, handle)]
    assert farm.worker().grab() is None
    assert client.submit(unique=b"u") != handle


def test_job_is_retried_for_ever_by_default() -> None:
    """Without a limit no number of lost workers makes a job fail."""
    farm = Farm()
    client = farm.connect()
    handle = client.submit()
    for _ in range(300):
        worker = farm.worker()
        assert worker.grab() == handle
        worker.leave()
    assert client.read() == []
    assert client.ask(b"show jobs") == handle + b"\t300\t0\t0\n.\n"


def test_failed_background_job_is_forgotten_by_the_store() -> None:
    """A stored job that was lost too often does not come back with a restart."""
    farm = Farm(durable=True, settings=EngineSettings(job_retries=1))
    client, worker = farm.connect(), farm.worker()
    client.send(P.SUBMIT_JOB_BG, b"f", b"", b"")
    farm.save_all()
    worker.grab()
    worker.leave()
    assert farm.kept == {}


# CAN_DO_TIMEOUT.


def test_job_that_takes_too_long_is_given_to_another_worker() -> None:
    """After its time a job is queued again; nobody is told, and the late result is dropped."""
    farm = Farm()
    client, slow, other = farm.connect(), farm.connect(), farm.worker()
    slow.send(P.CAN_DO_TIMEOUT, b"f", b"5000")
    handle = client.submit()
    assert slow.grab() == handle
    farm.wait(4.9)
    assert other.grab() is None
    farm.wait(0.2)
    assert other.grab() == handle
    slow.complete(handle, b"late")
    assert slow.read() == client.read() == []
    other.complete(handle, b"r")
    assert client.read() == [packet(P.WORK_COMPLETE, handle, b"r")]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"1500", 1.5),
        (b"1", 1),
        (b"999", 1),
        (b" 2000ms", 2),
        (b"0002000", 2),
        (b"+2000", 2),
        (b"9" * 20, 1e17),
    ],
)
def test_time_limit_is_in_milliseconds(text: bytes, seconds: float) -> None:
    """The limit is in milliseconds, at least a second; what is behind the digits is overlooked."""
    farm = Farm()
    worker = farm.connect()
    worker.send(P.CAN_DO_TIMEOUT, b"f", text)
    farm.connect().submit()
    worker.grab()
    assert farm.engine.next_deadline() - farm.now == pytest.approx(seconds)


@pytest.mark.parametrize("text", [b"0", b"-1", b"", b"never", b"-"])
def test_no_time_limit(text: bytes) -> None:
    """Nothing, zero and less mean that a job may take as long as it likes."""
    farm = Farm()
    worker = farm.connect()
    worker.send(P.CAN_DO_TIMEOUT, b"f", text)
    farm.connect().submit()
    worker.grab()
    assert farm.engine.next_deadline() == float("inf")


def test_time_limit_of_more_than_20_digits_is_refused() -> None:
    """Where gearmand drops the connection, we answer; the function is not registered."""
    worker = Farm().connect()
    worker.send(P.CAN_DO_TIMEOUT, b"f", b"1" * 21)
    text = b"The timeout takes at most 20 digits"
    assert worker.read() == [packet(P.ERROR, b"INVALID_ARGUMENT", text)]
    assert worker.ask(b"status") == b".\n"


def test_time_limit_is_per_job() -> None:
    """Two jobs with limits on one connection have a clock each, and ending one leaves the other's alone."""
    farm = Farm()
    client, worker, other = farm.connect(), farm.connect(), farm.worker()
    worker.send(P.CAN_DO_TIMEOUT, b"f", b"10000")
    first, second, third = client.submit(), client.submit(), client.submit()
    assert worker.grab() == first
    farm.wait(3)
    assert worker.grab() == second
    farm.wait(3)
    assert worker.grab() == third
    worker.complete(third)
    assert farm.engine.next_deadline() == farm.now + 4
    farm.wait(4)
    assert other.grab() == first
    assert other.grab() is None
    worker.complete(second)
    farm.wait(100)
    assert worker.read() == []
    assert other.grab() is None


def test_time_limit_ends_with_its_job() -> None:
    """A job that ended in time leaves no timer behind."""
    farm = Farm()
    client, worker = farm.connect(), farm.connect()
    worker.send(P.CAN_DO_TIMEOUT, b"f", b"10000")
    handle = client.submit()
    worker.grab()
    worker.complete(handle)
    assert farm.engine.next_deadline() == float("inf")


def test_sleep_does_not_stop_the_clock() -> None:
    """A worker that goes to sleep with a job still has to end it in time."""
    farm = Farm()
    worker, other = farm.connect(), farm.worker()
    worker.send(P.CAN_DO_TIMEOUT, b"f", b"10000")
    handle = farm.connect().submit()
    worker.grab()
    worker.sleep()
    farm.wait(10)
    assert other.grab() == handle


def test_newest_registration_decides_on_the_limit() -> None:
    """CAN_DO after CAN_DO_TIMEOUT takes the limit away, for jobs that come from then on."""
    farm = Farm()
    worker = farm.connect()
    worker.send(P.CAN_DO_TIMEOUT, b"f", b"10000")
    worker.send(P.CAN_DO, b"f")
    farm.connect().submit()
    worker.grab()
    assert farm.engine.next_deadline() == float("inf")


def test_time_limit_counts_as_an_attempt() -> None:
    """A job that always takes too long fails when its attempts are used up."""
    farm = farm_with_retries(2)
    client, worker = farm.connect(), farm.connect()
    worker.send(P.CAN_DO_TIMEOUT, b"f", b"10000")
    handle = client.submit()
    for _ in range(2):
        assert worker.grab() == handle
        farm.wait(10)
    assert client.read() == [packet(P.WORK_FAIL, handle)]
    assert worker.grab() is None
