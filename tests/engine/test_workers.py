"""Which job a worker gets, what it is told of it, and its abilities."""

from __future__ import annotations

import pytest

from gearman_twisted.engine.settings import EngineSettings
from tests.kit.engine_farm import Farm, P, Peer, packet

LATE = packet(P.ERROR, b"JOB_NOT_FOUND", b"Job given in work result not found")


def grab_all(worker: Peer) -> list[bytes | None]:
    """The functions of the jobs that a worker gets, one after the other."""
    functions: list[bytes | None] = []
    while True:
        worker.send(P.GRAB_JOB)
        [answer] = worker.read()
        if answer.type == P.NO_JOB:
            return functions
        functions.append(answer.args[1])


@pytest.mark.parametrize(
    ("grab", "assign"),
    [
        (P.GRAB_JOB, P.JOB_ASSIGN),
        (P.GRAB_JOB_UNIQ, P.JOB_ASSIGN_UNIQ),
        # Also libgearman's own way to grab; no job has a reducer.
        (P.GRAB_JOB_ALL, P.JOB_ASSIGN_UNIQ),
    ],
)
@pytest.mark.parametrize("workload", [b"", b"\0w\0"])
def test_job_is_assigned_in_the_form_asked_for(grab: int, assign: int, workload: bytes) -> None:
    """Each way to grab has its answer; the workload comes as it is, an empty one too."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    handle = client.submit(workload, b"u")
    worker.send(grab)
    unique = [b"u"] if assign == P.JOB_ASSIGN_UNIQ else []
    assert worker.read() == [packet(assign, handle, b"f", *unique, workload)]
    worker.send(grab)
    assert worker.read() == [packet(P.NO_JOB)]


def test_equal_jobs_are_served_first_come_first_served() -> None:
    """Jobs of one function and priority run in the order of their submission."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    handles = [client.submit(type_=t) for t in (P.SUBMIT_JOB, P.SUBMIT_JOB_BG, P.SUBMIT_JOB)]
    assert [worker.grab() for _ in handles] == handles


def test_priorities_count_over_all_functions() -> None:
    """A high job of any function is before every normal one, and that before every low one."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker(b"f", b"g")
    handles = {
        (function, type_): client.submit(function=function, type_=type_)
        for type_ in (P.SUBMIT_JOB_LOW_BG, P.SUBMIT_JOB, P.SUBMIT_JOB_HIGH)
        for function in (b"f", b"g")
    }
    wanted = [
        (b"g", P.SUBMIT_JOB_HIGH),
        (b"f", P.SUBMIT_JOB_HIGH),
        (b"g", P.SUBMIT_JOB),
        (b"f", P.SUBMIT_JOB),
        (b"g", P.SUBMIT_JOB_LOW_BG),
        (b"f", P.SUBMIT_JOB_LOW_BG),
    ]
    assert [worker.grab() for _ in wanted] == [handles[key] for key in wanted]


def test_functions_take_turns() -> None:
    """Three functions with three jobs each, registered A, B, C, are served C B A C B A C B A."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker(b"A", b"B", b"C")
    for function in (b"A", b"B", b"C"):
        for _ in range(3):
            client.submit(function=function)
    assert grab_all(worker) == [b"C", b"B", b"A"] * 3


def test_functions_take_turns_within_each_priority() -> None:
    """Three functions with a job of each priority: C B A for the high ones, and again, and again."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker(b"A", b"B", b"C")
    for type_ in (P.SUBMIT_JOB_LOW, P.SUBMIT_JOB, P.SUBMIT_JOB_HIGH):
        for function in (b"A", b"B", b"C"):
            client.submit(function=function, type_=type_)
    assert grab_all(worker) == [b"C", b"B", b"A"] * 3


def test_old_order() -> None:
    """In the order of gearmand 1.1 the last registered function goes first, with jobs of all priorities."""
    farm = Farm(settings=EngineSettings(order="1.1"))
    client, worker = farm.connect(), farm.worker(b"a", b"b", b"c")
    handles = {
        (function, type_): client.submit(function=function, type_=type_)
        for function in (b"a", b"b", b"c")
        for type_ in (P.SUBMIT_JOB_LOW, P.SUBMIT_JOB, P.SUBMIT_JOB_HIGH)
    }
    wanted = [
        handles[function, type_]
        for function in (b"c", b"b", b"a")
        for type_ in (P.SUBMIT_JOB_HIGH, P.SUBMIT_JOB, P.SUBMIT_JOB_LOW)
    ]
    assert [worker.grab() for _ in wanted] == wanted


def test_function_registered_again_comes_first() -> None:
    """Registering puts a function before all others, also one that was registered already."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker(b"A", b"B", b"A")
    for function in (b"A", b"B"):
        client.submit(function=function)
    assert grab_all(worker) == [b"A", b"B"]


def test_worker_gets_only_what_it_can_do() -> None:
    """Jobs of functions that a worker did not register are not for it."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker(b"g")
    client.submit(function=b"f")
    assert worker.grab() is None


def test_worker_may_hold_several_jobs() -> None:
    """A worker may grab while it runs, and end its jobs in any order."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    first, second = client.submit(), client.submit()
    assert [worker.grab(), worker.grab()] == [first, second]
    worker.complete(second)
    worker.complete(first)
    assert [p.args[0] for p in client.read()] == [second, first]


def test_nul_behind_a_handle_is_overlooked() -> None:
    """Workers may write handles with a NUL at the end; the client gets what they wrote."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    handle = client.submit()
    worker.grab()
    worker.send(P.WORK_FAIL, handle + b"\0")
    assert worker.read() == []
    assert client.read() == [packet(P.WORK_FAIL, handle + b"\0")]


@pytest.mark.parametrize(
    ("type_", "rest", "text"),
    [
        (P.WORK_STATUS, [b"1", b"2"], b"Job given in work result not found"),
        (P.WORK_COMPLETE, [b""], b"Job given in work result not found"),
        (P.WORK_FAIL, [], b"Job given in work result not found"),
        (P.WORK_DATA, [b""], b"Job does not exist on server"),
        (P.WORK_WARNING, [b""], b"Job does not exist on server"),
        (P.WORK_EXCEPTION, [b""], b"An exception was received for a job that does not exist"),
    ],
)
def test_packets_about_a_job_come_from_its_worker_only(type_: int, rest: list[bytes], text: bytes) -> None:
    """Who does not run the job gets an ERROR: for none of that name, a queued, ended or someone else's."""
    farm = Farm()
    client, worker, other = farm.connect(), farm.worker(), farm.worker()
    error = packet(P.ERROR, b"JOB_NOT_FOUND", text)

    def is_refused(peer: Peer, handle: bytes) -> bool:
        peer.send(type_, handle, *rest)
        return peer.read() == [error] and client.read() == []

    assert is_refused(worker, b"H:nobody:1")
    handle = client.submit()
    assert is_refused(worker, handle)
    worker.grab()
    assert is_refused(other, handle)
    worker.complete(handle)
    client.read()
    assert is_refused(worker, handle)


# Abilities.


def test_abilities_are_registered_without_a_reply() -> None:
    """Workers do not read behind these packets."""
    farm = Farm()
    worker = farm.connect()
    worker.send(P.CAN_DO, b"f")
    worker.send(P.CAN_DO_TIMEOUT, b"g", b"1000")
    worker.send(P.CANT_DO, b"f")
    worker.send(P.CANT_DO, b"unheard of")
    worker.send(P.SET_CLIENT_ID, b"me")
    worker.send(P.RESET_ABILITIES)
    assert worker.read() == []


def test_function_given_up_brings_no_more_jobs() -> None:
    """After CANT_DO a worker gets jobs of its other functions only, after RESET_ABILITIES none."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker(b"f", b"g")
    for function in (b"f", b"g", b"g"):
        client.submit(function=function)
    worker.send(P.CANT_DO, b"f")
    worker.send(P.GRAB_JOB)
    assert worker.read()[0].args[1] == b"g"
    worker.send(P.RESET_ABILITIES)
    assert worker.grab() is None


@pytest.mark.parametrize("give_up", [[P.CANT_DO, b"f"], [P.RESET_ABILITIES]])
def test_running_job_of_a_function_given_up_is_queued_again(give_up: list[bytes | int]) -> None:
    """A worker that gives a function up loses its jobs of it: others get them, its results are refused."""
    farm = Farm()
    client, worker, other = farm.connect(), farm.worker(b"f"), farm.worker(b"f")
    handle = client.submit()
    worker.grab()
    type_, *args = give_up
    worker.send(int(type_), *(arg for arg in args if isinstance(arg, bytes)))
    assert worker.read() == []
    assert other.grab() == handle
    worker.complete(handle, b"too late")
    assert worker.read() == [LATE]
    other.complete(handle, b"r")
    assert client.read() == [packet(P.WORK_COMPLETE, handle, b"r")]


def test_other_jobs_of_the_worker_stay() -> None:
    """Giving up one function leaves the jobs of the others running."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker(b"f", b"g")
    handle = client.submit(function=b"g")
    worker.grab()
    worker.send(P.CANT_DO, b"f")
    worker.complete(handle, b"r")
    assert worker.read() == []
    assert client.read() == [packet(P.WORK_COMPLETE, handle, b"r")]


def test_repeated_registration_counts_once() -> None:
    """A worker that registers a function twice is one worker, and CANT_DO takes all of it back."""
    farm = Farm()
    worker = farm.worker(b"f", b"f")
    assert worker.ask(b"status") == b"f\t0\t0\t1\n.\n"
    worker.send(P.CANT_DO, b"f")
    assert worker.ask(b"status") == b"f\t0\t0\t0\n.\n"
