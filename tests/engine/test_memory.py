"""What the engine keeps is bounded: functions that nothing needs, and all of it together."""

from __future__ import annotations

import tracemalloc

import pytest

from gearman_twisted.engine import queues
from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.engine.usage import FUNCTION_BYTES
from gearman_twisted.wire.codec import encode
from gearman_twisted.wire.constants import REQ, PacketType
from tests.kit.engine_farm import Farm, packet

P = PacketType


@pytest.fixture
def farm(monkeypatch: pytest.MonkeyPatch) -> Farm:
    """A farm that keeps about ten functions that nothing needs."""
    monkeypatch.setattr(queues, "IDLE_BYTES", 10 * FUNCTION_BYTES + 100)
    return Farm()


def names(farm: Farm) -> list[bytes]:
    return list(farm.engine.inspection.functions)


# Functions.


def test_functions_of_a_worker_that_left_are_forgotten(farm: Farm) -> None:
    """Of the functions that a lost worker had registered, the last ones are kept."""
    worker = farm.worker(*(b"f%d" % number for number in range(1000)))
    assert len(names(farm)) == 1000
    worker.leave()
    assert names(farm) == [b"f%d" % number for number in range(990, 1000)]
    assert farm.leftovers() == {}


def test_function_that_was_used_lately_is_kept(farm: Farm) -> None:
    """Functions are forgotten in the order in which they were used last."""
    client = farm.connect()
    for number in range(8):
        client.submit(function=b"f%d" % number)
    worker = farm.worker(*(b"f%d" % number for number in range(8)))
    handles = [handle for _ in range(8) if (handle := worker.grab())]
    for handle in handles:
        worker.complete(handle)
    worker.leave()
    again = farm.worker(b"f0")
    again.leave()
    farm.worker(*(b"g%d" % number for number in range(9))).leave()
    assert b"f0" in names(farm)
    assert b"f1" not in names(farm)


@pytest.mark.parametrize("need", ["job", "worker", "limit", "created", "recurring"])
def test_function_that_is_needed_is_kept(farm: Farm, need: str) -> None:
    """A function that has a job or a worker, or that an operator named, is never forgotten."""
    peer, operator = farm.connect(), farm.connect()
    match need:
        case "job":
            peer.submit(function=b"needed")
        case "worker":
            peer.send(P.CAN_DO, b"needed")
        case "limit":
            peer.send(P.CAN_DO, b"needed")
            assert operator.ask(b"maxqueue needed 5") == b"OK\r\n"
            peer.send(P.CANT_DO, b"needed")
        case "created":
            assert operator.ask(b"create function needed") == b"OK\r\n"
        case "recurring":
            peer.send(P.SUBMIT_JOB_SCHED, b"needed", b"", b"0", b"", b"", b"", b"", b"")
    for number in range(100):
        farm.worker(b"f%d" % number).leave()
    assert b"needed" in names(farm)
    assert len(names(farm)) == 11


def test_function_whose_limit_was_taken_off_is_forgotten(farm: Farm) -> None:
    """A function with a limit is kept until the limit is taken off."""
    operator = farm.connect()
    operator.send(P.CAN_DO, b"f")
    operator.ask(b"maxqueue f 1")
    operator.send(P.CANT_DO, b"f")
    operator.ask(b"maxqueue f 0")
    farm.worker(*(b"g%d" % number for number in range(20))).leave()
    assert b"f" not in names(farm)


def test_named_functions_take_little() -> None:
    """A function that was only named takes some hundred bytes, and a server keeps so many of them."""
    farm = Farm()
    worker = farm.connect()
    tracemalloc.start()
    try:
        worker.send_bytes(b"".join(encode(REQ, P.CAN_DO, b"function-%d" % number) for number in range(5000)))
        worker.send(P.RESET_ABILITIES)
        worker.read()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 5000 * FUNCTION_BYTES


# What counts for the setting ``memory``.


def test_foreground_jobs_count_for_the_memory() -> None:
    """With the memory full of foreground jobs, a stored job waits in the store."""
    farm = Farm(durable=True, settings=EngineSettings(memory=100))
    client = farm.connect()
    client.submit(bytes(100))
    client.send(P.SUBMIT_JOB_BG, b"g", b"", b"1")
    farm.save_all()
    assert farm.engine.inspection.workload_bytes == 100


def test_unsaved_jobs_count_for_the_memory() -> None:
    """While jobs wait for the store, those that it has leave the memory to them."""
    farm = Farm(durable=True, settings=EngineSettings(memory=100))
    client = farm.connect()
    for _ in range(20):
        client.send(P.SUBMIT_JOB_BG, b"f", b"", bytes(10))
    assert farm.engine.inspection.workload_bytes == 200
    farm.perform(farm.engine.saved(farm.commit()[:1], farm.now))
    assert farm.engine.inspection.workload_bytes == 190


# What counts for the budget, ``max_memory``.


def test_ended_jobs_keep_no_workload() -> None:
    """Dead entries of lanes and timers, which are dropped later, do not keep what the jobs had to do."""
    farm = Farm()
    worker = farm.connect()
    worker.send(P.CAN_DO_TIMEOUT, b"f", b"1000")
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(20):
            client = farm.connect()
            client.submit(bytes(100_000))
            client.submit(bytes(100_001))
            handle = worker.grab()
            assert handle is not None
            worker.complete(handle)
            client.leave()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert farm.engine.job_count == 0
    assert after - before < 500_000


@pytest.mark.parametrize("are_empty", [True, False], ids=["empty parts", "small results"])
def test_parts_and_their_results_count(are_empty: bool) -> None:
    """A reduce job with empty parts, or very many small results, is given up when the memory is used up."""
    farm = Farm(settings=EngineSettings(max_memory=1_000_000))
    client, worker, reducer = farm.connect(), farm.worker(b"f"), farm.worker(b"r")
    client.send(P.SUBMIT_REDUCE_JOB, b"f", b"", b"r", b"", b"w")
    whole = worker.grab()
    assert whole is not None
    if are_empty:
        for _ in range(3_000):
            worker.send(P.WORK_DATA, whole, b"")
    else:
        worker.send(P.WORK_DATA, whole, b"x")
        part = reducer.grab()
        assert part is not None
        for _ in range(20_000):
            reducer.send(P.WORK_DATA, part, b"y")
    assert client.read()[-1] == packet(P.WORK_FAIL, whole)
    assert farm.engine.usage.bytes < 1_200_000


def test_schedules_count() -> None:
    """Recurring jobs with long fields are refused when the memory is used up; one that is known is not."""
    farm = Farm(settings=EngineSettings(max_memory=1_000_000))
    client = farm.connect()
    minutes = b",".join([b"1"] * 2_000)
    for number in range(300):
        client.send(P.SUBMIT_JOB_SCHED, b"f", b"%d" % number, minutes, b"", b"", b"", b"", b"w")
    types = client.read_types()
    assert types.count(P.JOB_CREATED) < 250
    assert types[-1] == P.ERROR
    client.send(P.SUBMIT_JOB_SCHED, b"f", b"0", minutes, b"", b"", b"", b"", b"w")
    assert client.read_types() == [P.JOB_CREATED]


def test_names_of_functions_count_for_their_worker() -> None:
    """Long names are kept for the worker that registered them, until it has left."""
    farm = Farm()
    worker = farm.worker(*(b"F%d" % number + b"x" * 8_000 for number in range(100)))
    assert farm.engine.kept_bytes(worker.number) > 1_600_000
    assert farm.engine.usage.of_peers > 1_600_000
    worker.leave()
    assert farm.engine.usage.of_peers == 0


def test_dropped_function_stays_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that is dropped while its jobs, all ended, are loaded does not take a new one with it."""
    monkeypatch.setattr(queues, "IDLE_BYTES", 3 * FUNCTION_BYTES)
    farm = Farm(durable=True, settings=EngineSettings(memory=0))
    client = farm.connect()
    for number in range(3):
        client.send(P.SUBMIT_JOB_BG, b"f", b"%d" % number, b"w")
    farm.save_all()
    worker = farm.worker(b"f")
    worker.send(P.PRE_SLEEP)
    worker.send(P.RESET_ABILITIES)
    client.read()
    worker.read()
    for number in range(3):
        client.ask(b"cancel unique f %d" % number)
    assert client.ask(b"drop function f") == b"OK\r\n"
    farm.load_all()
    again = farm.worker(b"f")
    farm.worker(*(b"g%d" % number for number in range(20))).leave()
    assert b"f" in names(farm)
    again.leave()
    client.leave()
    worker.leave()
    assert farm.leftovers() == {}
