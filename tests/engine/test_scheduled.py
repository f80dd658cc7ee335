"""Jobs that may not run before a time: SUBMIT_JOB_EPOCH."""

from __future__ import annotations

import pytest

from gearman_twisted.engine.outbox import Outbox
from tests.kit.engine_farm import NOON, Farm, P, Peer, packet


def schedule(peer: Peer, run_at: float, unique: bytes = b"") -> bytes:
    """Submit a job for a time and return its handle."""
    peer.send(P.SUBMIT_JOB_EPOCH, b"f", unique, b"%d" % run_at, b"w")
    [created] = peer.read()
    assert created.type == P.JOB_CREATED
    return created.args[0]


def test_job_runs_at_its_time_and_not_before() -> None:
    """A sleeping worker is woken in the second in which the job is due."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    handle = schedule(client, NOON + 60)
    assert worker.sleep() == []
    farm.wait(59.9)
    assert worker.read() == []
    assert worker.grab() is None
    worker.sleep()
    farm.wait(0.1)
    assert worker.read() == [packet(P.NOOP)]
    assert worker.grab() == handle


@pytest.mark.parametrize("epoch", [b"0", b"-5", b"now", b"", b"%d" % NOON, b"000", b"-" + b"9" * 5000])
def test_time_that_has_come_means_at_once(epoch: bytes) -> None:
    """Past times, the current second and what is no number mean at once."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    client.send(P.SUBMIT_JOB_EPOCH, b"f", b"", epoch, b"")
    assert client.read_types() == [P.JOB_CREATED]
    assert worker.grab()


@pytest.mark.parametrize("epoch", [b"%d" % (1 << 63), b"9" * 20, b"9" * 21, b"9" * 8191])
def test_time_beyond_64_bits_is_refused(epoch: bytes) -> None:
    """Where gearmand drops the connection, we answer, however many digits there are."""
    client = Farm().connect()
    client.send(P.SUBMIT_JOB_EPOCH, b"f", b"", epoch, b"")
    text = b"The epoch takes seconds since 1970 in 64 bits"
    assert client.read() == [packet(P.ERROR, b"INVALID_ARGUMENT", text)]


@pytest.mark.parametrize("epoch", [b"%d" % ((1 << 63) - 1), b"0" * 5000 + b"%d" % (NOON + 1)])
def test_time_within_64_bits_is_taken(epoch: bytes) -> None:
    """The last second of 64 bits is a time, and so is one with many zeros before it."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    client.send(P.SUBMIT_JOB_EPOCH, b"f", b"", epoch, b"")
    assert client.read_types() == [P.JOB_CREATED]
    assert worker.grab() is None
    assert farm.engine.next_deadline() == float(epoch[-20:])  # Python converts no more than 4300


def test_jobs_run_in_the_order_of_their_times() -> None:
    """Jobs that became due while nobody grabbed are served by time, equal times by submission."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    later, soon, also_soon = (schedule(client, NOON + seconds) for seconds in (9, 5, 5))
    farm.wait(10)
    assert [worker.grab() for _ in range(3)] == [soon, also_soon, later]


def test_job_has_normal_priority() -> None:
    """A job that is due is behind high jobs and before low ones."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    handle = schedule(client, NOON + 5)
    low, high = client.submit(type_=P.SUBMIT_JOB_LOW), client.submit(type_=P.SUBMIT_JOB_HIGH)
    farm.wait(5)
    assert [worker.grab() for _ in range(3)] == [high, handle, low]


def test_client_may_leave() -> None:
    """A scheduled job is a background job."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    handle = schedule(client, NOON + 5)
    client.leave()
    farm.wait(5)
    assert worker.grab() == handle


@pytest.mark.parametrize("type_", [P.SUBMIT_JOB, P.SUBMIT_JOB_HIGH_BG])
def test_submission_that_joins_waits_for_the_time(type_: int) -> None:
    """A submission with the unique of a scheduled job gets that job, when its time comes."""
    farm = Farm()
    client, other, worker = farm.connect(), farm.connect(), farm.worker()
    handle = schedule(client, NOON + 5, b"u")
    assert other.submit(unique=b"u", type_=type_) == handle
    assert worker.grab() is None
    farm.wait(5)
    assert worker.grab() == handle
    worker.complete(handle)
    assert other.read_types() == ([P.WORK_COMPLETE] if type_ == P.SUBMIT_JOB else [])


def test_scheduled_submission_that_joins_changes_nothing() -> None:
    """The time of a submission that joins a job is ignored, as its workload is."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    handle = client.submit(unique=b"u")
    assert schedule(client, NOON + 60, b"u") == handle
    assert worker.grab() == handle


def test_scheduled_job_is_counted_but_not_queued() -> None:
    """Until its time it is a normal job of its function, known and not running, but none to be grabbed."""
    farm = Farm()
    client = farm.connect()
    handle = schedule(client, NOON + 5)
    assert client.ask(b"status") == b"f\t1\t0\t0\n.\n"
    assert client.ask(b"prioritystatus") == b"f\t0\t1\t0\t0\n.\n"
    assert farm.worker().grab() is None
    client.send(P.GET_STATUS, handle)
    assert client.read() == [packet(P.STATUS_RES, handle, b"1", b"0", b"0", b"0")]
    farm.wait(5)
    assert client.ask(b"prioritystatus") == b"f\t0\t1\t0\t1\n.\n"


def test_job_whose_time_comes_while_it_is_saved_is_queued() -> None:
    """A slow store does not make a job wait any longer than it has to."""
    farm = Farm(durable=True)
    client, worker = farm.connect(), farm.worker()
    client.send(P.SUBMIT_JOB_EPOCH, b"f", b"", b"%d" % (NOON + 5), b"")
    farm.wait(6)
    worker.sleep()
    farm.save_all()
    assert worker.read() == [packet(P.NOOP)]


def test_tick_too_early_changes_nothing() -> None:
    """A timer that fires before anything is due finds nothing to do."""
    farm = Farm()
    schedule(farm.connect(), NOON + 5)
    out = farm.engine.tick(farm.now + 4.999)
    assert out == Outbox()
    assert farm.engine.next_deadline() == NOON + 5
