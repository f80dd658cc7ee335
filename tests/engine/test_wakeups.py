"""Which sleeping workers are woken, and that no job waits for one that does not come."""

from __future__ import annotations

import pytest

from gearman_twisted.engine.settings import EngineSettings
from tests.kit.engine_farm import Farm, P, Peer, packet

LATE = EngineSettings().wakeup_timeout


def asleep(farm: Farm, *functions: bytes) -> Peer:
    """A new worker that sleeps."""
    worker = farm.worker(*functions)
    assert worker.sleep() == []
    return worker


def test_worker_with_nothing_to_do_sleeps_without_a_reply() -> None:
    """PRE_SLEEP has no answer of its own."""
    assert Farm().worker().sleep() == []


def test_worker_is_not_let_sleep_while_there_is_a_job() -> None:
    """PRE_SLEEP is answered with NOOP when there is a job, every time."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker(b"f", b"g")
    client.submit(function=b"f")
    assert worker.sleep() == [P.NOOP]
    assert worker.sleep() == [P.NOOP]


@pytest.mark.parametrize("type_", [P.SUBMIT_JOB, P.SUBMIT_JOB_LOW_BG])
def test_one_worker_is_woken_for_a_job(type_: int) -> None:
    """A job wakes one worker that can do it, the one asleep the longest."""
    farm = Farm()
    other = asleep(farm, b"g")
    first, second = asleep(farm), asleep(farm)
    client = farm.connect()
    client.submit(type_=type_)
    assert (first.read_types(), second.read_types(), other.read_types()) == ([P.NOOP], [], [])
    client.submit(type_=type_)
    assert (first.read_types(), second.read_types()) == ([], [P.NOOP])


def test_worker_that_is_up_is_not_woken() -> None:
    """A worker that has not said that it sleeps gets no NOOP."""
    farm = Farm()
    worker = farm.worker()
    farm.connect().submit()
    assert worker.read() == []


def test_grab_ends_the_sleep() -> None:
    """After a grab, even one that found nothing, a worker is up until it sleeps again."""
    farm = Farm()
    worker = asleep(farm)
    assert worker.grab() is None
    farm.connect().submit()
    assert worker.read() == []


def test_submitter_that_sleeps_gets_noop_before_its_handle() -> None:
    """A connection that is worker and client sees NOOP first, as with gearmand."""
    farm = Farm()
    peer = asleep(farm)
    peer.send(P.SUBMIT_JOB, b"f", b"", b"")
    assert peer.read_types() == [P.NOOP, P.JOB_CREATED]


def test_worker_that_does_not_come_is_passed_over() -> None:
    """When a woken worker does not grab in time, the next one is woken."""
    farm = Farm()
    stuck, next_ = asleep(farm), asleep(farm)
    farm.connect().submit()
    assert stuck.read_types() == [P.NOOP]
    farm.wait(LATE / 2)
    assert next_.read() == []
    farm.wait(LATE / 2)
    assert next_.read_types() == [P.NOOP]
    farm.wait(10 * LATE)
    assert (stuck.read(), next_.read()) == ([], [])


def test_nobody_is_woken_for_a_job_that_was_grabbed() -> None:
    """When another worker took the job meanwhile, nobody is woken in place of the late one."""
    farm = Farm()
    asleep(farm)
    second, busy = asleep(farm), farm.worker()
    handle = farm.connect().submit()
    assert busy.grab() == handle
    farm.wait(10 * LATE)
    assert second.read() == []
    assert farm.engine.next_deadline() == float("inf")


def test_late_worker_still_gets_the_job() -> None:
    """A worker that was passed over may grab all the same."""
    farm = Farm()
    worker = asleep(farm)
    handle = farm.connect().submit()
    farm.wait(10 * LATE)
    assert worker.read_types() == [P.NOOP]
    assert worker.grab() == handle


@pytest.mark.parametrize("how", ["leave", "CANT_DO", "RESET_ABILITIES"])
def test_wakeup_is_handed_on_at_once(how: str) -> None:
    """When a woken worker is lost, or gives the function up, the next one is woken without waiting."""
    farm = Farm()
    woken, next_ = asleep(farm, b"f", b"g"), asleep(farm)
    farm.connect().submit()
    if how == "leave":
        woken.leave()
    elif how == "CANT_DO":
        woken.send(P.CANT_DO, b"f")
    else:
        woken.send(P.RESET_ABILITIES)
    assert next_.read_types() == [P.NOOP]


def test_wakeup_is_handed_on_when_another_job_is_taken() -> None:
    """A worker woken for one function that gets a job of another leaves the first job to the next worker."""
    farm = Farm()
    woken, next_ = asleep(farm, b"f", b"g"), asleep(farm, b"f")
    client = farm.connect()
    client.submit(function=b"f")
    high = client.submit(function=b"g", type_=P.SUBMIT_JOB_HIGH)
    assert woken.read_types() == [P.NOOP]
    assert next_.read() == []
    assert woken.grab() == high
    assert next_.read_types() == [P.NOOP]


@pytest.mark.parametrize("how", ["leave", "late"])
def test_wakeup_survives_a_pre_sleep(how: str) -> None:
    """A woken worker that answers with PRE_SLEEP, and never comes, is passed over all the same."""
    farm = Farm()
    woken, next_ = asleep(farm), asleep(farm)
    farm.connect().submit()
    assert woken.sleep() == [P.NOOP, P.NOOP]
    if how == "leave":
        woken.leave()
    else:
        farm.wait(LATE)
    assert next_.read_types() == [P.NOOP]


def test_noop_answered_by_pre_sleep() -> None:
    """A worker that sleeps again instead of grabbing can be woken again."""
    farm = Farm()
    worker, other = asleep(farm), farm.worker()
    client = farm.connect()
    client.submit()
    assert worker.read_types() == [P.NOOP]
    other.grab()
    assert worker.sleep() == []
    client.submit()
    assert worker.read_types() == [P.NOOP]


def test_function_registered_while_asleep_wakes() -> None:
    """A sleeping worker that registers a function with jobs is woken for them."""
    farm = Farm()
    farm.connect().submit(function=b"g")
    worker = asleep(farm, b"f")
    worker.send(P.CAN_DO, b"g")
    assert worker.read_types() == [P.NOOP]


def test_function_registered_while_asleep_can_wake_later() -> None:
    """A function registered in the sleep wakes when a job of it comes."""
    farm = Farm()
    worker = asleep(farm, b"f")
    worker.send(P.CAN_DO, b"g")
    assert worker.read() == []
    farm.connect().submit(function=b"g")
    assert worker.read_types() == [P.NOOP]


@pytest.mark.parametrize("give_up", [P.CANT_DO, P.RESET_ABILITIES])
def test_function_given_up_while_asleep_wakes_no_more(give_up: int) -> None:
    """A sleeping worker is not woken for what it can no longer do."""
    farm = Farm()
    worker = asleep(farm, b"f", b"g")
    worker.send(give_up, *([b"f"] if give_up == P.CANT_DO else []))
    farm.connect().submit(function=b"f")
    assert worker.read() == []


def test_function_given_up_before_the_sleep_does_not_wake() -> None:
    """A worker is not woken for what it gave up while it was up."""
    farm = Farm()
    worker = farm.worker(b"f", b"g")
    worker.send(P.CANT_DO, b"f")
    worker.sleep()
    farm.connect().submit(function=b"f")
    assert worker.read() == []


def test_worker_that_was_passed_over_hands_nothing_on() -> None:
    """Its wake-up went to the next worker already, so its end wakes no third one."""
    farm = Farm()
    late, next_, third = asleep(farm), asleep(farm), asleep(farm)
    farm.connect().submit()
    farm.wait(LATE)
    assert next_.read_types() == [P.NOOP]
    late.leave()
    assert third.read() == []


def test_worker_woken_for_one_function_is_up_for_all() -> None:
    """One NOOP is enough: a job of another function does not send a second one."""
    farm = Farm()
    worker = asleep(farm, b"f", b"g")
    client = farm.connect()
    handles = {client.submit(function=function) for function in (b"f", b"g")}
    assert worker.read_types() == [P.NOOP]
    assert {worker.grab(), worker.grab()} == handles


def test_worker_sleeps_and_wakes_again_and_again() -> None:
    """A worker of several functions is woken for each of them, in any order, however often it slept."""
    farm = Farm()
    worker = farm.worker(b"f", b"g", b"h")
    client = farm.connect()
    for function in (b"f", b"f", b"g", b"h", b"g", b"f"):
        assert worker.sleep() == []
        handle = client.submit(function=function)
        assert worker.read() == [packet(P.NOOP)]
        assert worker.grab() == handle


def test_requeued_job_wakes() -> None:
    """A job that is taken from a lost worker wakes another one."""
    farm = Farm()
    busy = farm.worker()
    handle = farm.connect().submit(type_=P.SUBMIT_JOB_BG)
    assert busy.grab() == handle
    worker = asleep(farm)
    busy.leave()
    assert worker.read_types() == [P.NOOP]
    assert worker.grab() == handle


def test_server_wants_no_tick_when_nobody_is_late() -> None:
    """Sleeping workers and queued jobs need no timer."""
    farm = Farm()
    worker = asleep(farm)
    farm.connect().submit(function=b"g")
    assert farm.engine.next_deadline() == float("inf")
    farm.connect().submit()
    assert worker.read_types() == [P.NOOP]
    assert farm.engine.next_deadline() == farm.now + LATE
    worker.grab()
    assert farm.engine.next_deadline() == float("inf")
