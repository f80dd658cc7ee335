"""What the engine keeps is bounded: functions that nothing needs, and all of it together."""

from __future__ import annotations

import tracemalloc

import pytest

from gearman_twisted.engine import queues
from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.engine.usage import FUNCTION_BYTES
from gearman_twisted.wire.codec import encode
from gearman_twisted.wire.constants import REQ, PacketType
from tests.kit.engine_farm import Farm

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
