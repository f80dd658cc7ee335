"""Cancelling jobs in each of their states."""

from __future__ import annotations

import pytest

from tests.kit.engine_farm import NOON, Farm, P, packet


def cancel(farm: Farm, handle: bytes) -> bytes:
    """What an operator hears."""
    operator = farm.connect()
    answer = operator.ask(b"cancel job " + handle)
    operator.leave()
    return answer


def test_queued_job_is_gone_at_once() -> None:
    """Its clients get WORK_FAIL, no worker gets it, its unique is free, and a second time it is unknown."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    handle = client.submit(unique=b"u")
    kept = client.submit()
    assert cancel(farm, handle) == b"OK\r\n"
    assert client.read() == [packet(P.WORK_FAIL, handle)]
    assert cancel(farm, handle) == b"ERR UNKNOWN_JOB\r\n"
    assert worker.grab() == kept
    assert worker.grab() is None
    assert client.submit(unique=b"u") != handle


def test_running_job_goes_on_for_nobody() -> None:
    """Its clients get WORK_FAIL once; what its worker still sends is dropped without an ERROR."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    handle = client.submit(unique=b"u")
    worker.grab()
    assert cancel(farm, handle) == b"OK\r\n"
    assert cancel(farm, handle) == b"OK\r\n"
    assert client.read() == [packet(P.WORK_FAIL, handle)]
    worker.send(P.WORK_STATUS, handle, b"1", b"2")
    worker.send(P.WORK_DATA, handle, b"x")
    worker.send(P.WORK_WARNING, handle, b"x")
    assert worker.read() == []
    assert client.submit(unique=b"u") != handle
    worker.complete(handle)
    assert worker.read() == client.read() == []
    assert cancel(farm, handle) == b"ERR UNKNOWN_JOB\r\n"


@pytest.mark.parametrize("ending", [P.WORK_FAIL, P.WORK_EXCEPTION])
def test_cancelled_job_may_end_in_any_way(ending: int) -> None:
    """Failures of a cancelled job are dropped as its results are, and leave nothing."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    handle = client.submit()
    worker.grab()
    cancel(farm, handle)
    client.read()
    worker.send(ending, handle, *([b"why"] if ending == P.WORK_EXCEPTION else []))
    assert worker.read() == client.read() == []
    client.leave()
    worker.leave()
    assert farm.leftovers() == {}


@pytest.mark.parametrize("how", ["leave", "RESET_ABILITIES", "timeout"])
def test_cancelled_job_is_not_run_again(how: str) -> None:
    """When the worker of a cancelled job is lost, the job is over."""
    farm = Farm()
    worker, other = farm.connect(), farm.worker()
    worker.send(P.CAN_DO_TIMEOUT, b"f", b"1000")
    handle = farm.connect().submit(type_=P.SUBMIT_JOB_BG)
    worker.grab()
    cancel(farm, handle)
    if how == "leave":
        worker.leave()
    elif how == "timeout":
        farm.wait(2)
    else:
        worker.send(P.RESET_ABILITIES)
    assert other.grab() is None
    assert farm.engine.snapshot().jobs == 0


def test_scheduled_job_is_cancelled() -> None:
    """A job whose time has not come is gone, and nothing happens when it would have come."""
    farm = Farm(durable=True)
    client, worker = farm.connect(), farm.worker()
    client.send(P.SUBMIT_JOB_EPOCH, b"f", b"", b"%d" % (NOON + 60), b"")
    farm.save_all()
    [created] = client.read()
    worker.sleep()
    assert cancel(farm, created.args[0]) == b"OK\r\n"
    assert farm.kept == {}
    assert farm.engine.next_deadline() == float("inf")
    farm.wait(100)
    assert worker.read() == []


def test_job_that_is_being_saved_is_cancelled() -> None:
    """Its clients hear that it was created and that it failed; when its save is done it is over."""
    farm = Farm(durable=True)
    owner, guest, worker = farm.connect(), farm.connect(), farm.worker()
    owner.send(P.SUBMIT_JOB_BG, b"f", b"u", b"w")
    guest.send(P.SUBMIT_JOB, b"f", b"u", b"w")
    handle = farm.saves[0].handle
    assert cancel(farm, handle) == b"OK\r\n"
    assert owner.read() == [packet(P.JOB_CREATED, handle)]
    assert guest.read() == [packet(P.JOB_CREATED, handle), packet(P.WORK_FAIL, handle)]
    farm.save_all()
    assert owner.read() == guest.read() == []
    assert worker.grab() is None
    assert farm.kept == {}


def test_stored_job_is_forgotten_when_it_is_cancelled() -> None:
    """A cancelled job does not come back with a restart, even while its worker still runs it."""
    farm = Farm(durable=True)
    client, worker = farm.connect(), farm.worker()
    client.send(P.SUBMIT_JOB_BG, b"f", b"", b"")
    farm.save_all()
    [created] = client.read()
    worker.grab()
    cancel(farm, created.args[0])
    assert farm.kept == {}
    worker.complete(created.args[0])
    worker.leave()
    client.leave()
    assert farm.leftovers() == {}


# When the operator is told.


@pytest.mark.parametrize("command", [b"cancel job H:farm:1", b"cancel unique f u"])
@pytest.mark.parametrize("state", ["saving", "queued", "running"])
def test_operator_is_told_when_the_store_has_forgotten(state: str, command: bytes) -> None:
    """OK means that the job cannot come back; its clients and other connections do not wait for that."""
    farm = Farm(durable=True)
    farm.forgets_at_once = False
    client, worker, operator, other = farm.connect(), farm.worker(), farm.connect(), farm.connect()
    client.send(P.SUBMIT_JOB_BG, b"f", b"u", b"")
    if state != "saving":
        farm.save_all()
    if state == "running":
        worker.grab()
    client.send(P.SUBMIT_JOB, b"f", b"u", b"")
    assert operator.ask(command + b"\nversion") == b""
    assert client.read_types() == [P.JOB_CREATED, P.JOB_CREATED, P.WORK_FAIL]
    assert other.ask(b"cancel job H:farm:9") == b"ERR UNKNOWN_JOB\r\n"
    farm.confirm_forgets()
    assert operator.unread == b"OK\r\nOK 0\n"
    assert farm.kept == {}


def test_job_that_is_cancelled_twice() -> None:
    """Who cancels a running job that is cancelled already is told no sooner than the first one."""
    farm = Farm(durable=True)
    farm.forgets_at_once = False
    client, worker, first, second = farm.connect(), farm.worker(), farm.connect(), farm.connect()
    client.send(P.SUBMIT_JOB_BG, b"f", b"", b"")
    farm.save_all()
    worker.grab()
    assert first.ask(b"cancel job H:farm:1") == second.ask(b"cancel job H:farm:1") == b""
    farm.confirm_forgets()
    assert first.unread == second.unread == b"OK\r\n"


def test_store_that_fails_to_forget() -> None:
    """The operator is told that the job is cancelled, but may come back, in a line that ends as errors do."""
    farm = Farm(durable=True)
    farm.forgets_at_once = False
    client, worker, operator = farm.connect(), farm.worker(), farm.connect()
    client.send(P.SUBMIT_JOB_BG, b"f", b"", b"")
    farm.save_all()
    assert operator.ask(b"cancel job H:farm:1") == b""
    farm.confirm_forgets("no\r\nconnection, \udcff")
    assert operator.unread == (
        b"ERR NOT_FORGOTTEN The+job+is+cancelled,+but+may+run+after+a+restart:+the+store+failed:"
        b"+no+connection,+?\r\n"
    )
    assert worker.grab() is None
    for peer in (client, worker, operator):
        peer.leave()
    assert farm.leftovers() == {}


def test_operator_that_leaves() -> None:
    """Nothing is left of one who does not wait for the answer."""
    farm = Farm(durable=True)
    farm.forgets_at_once = False
    client, operator = farm.connect(), farm.connect()
    client.send(P.SUBMIT_JOB_BG, b"f", b"", b"")
    farm.save_all()
    operator.ask(b"cancel job H:farm:1")
    assert farm.engine.waits_for_saves(operator.number) == (1, 0)
    operator.leave()
    client.leave()
    farm.confirm_forgets()
    assert farm.leftovers() == {}


def test_promoted_job_that_is_being_saved_is_cancelled() -> None:
    """A running foreground job whose background promise is being saved is cancelled for all."""
    farm = Farm(durable=True)
    client, owner, worker = farm.connect(), farm.connect(), farm.worker()
    handle = client.submit(unique=b"u")
    worker.grab()
    owner.send(P.SUBMIT_JOB_BG, b"f", b"u", b"")
    assert owner.read() == []
    cancel(farm, handle)
    assert owner.read() == [packet(P.JOB_CREATED, handle)]
    assert client.read() == [packet(P.WORK_FAIL, handle)]
    farm.save_all()
    worker.complete(handle)
    assert owner.read() == client.read() == worker.read() == []
    assert farm.kept == {}
