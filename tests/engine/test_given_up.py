"""Jobs that the server ends by itself, which it reports for the log."""

from __future__ import annotations

import pytest

from gearman_twisted.engine.outbox import GivenUp
from gearman_twisted.engine.settings import EngineSettings
from tests.kit.engine_farm import Farm, P, Peer


def reduce_job(farm: Farm, *workloads: bytes) -> tuple[bytes, Peer, list[bytes]]:
    """A reduce job that is split; returns its handle, a worker, and the handles of its parts that it runs."""
    client, worker = farm.connect(), farm.worker(b"split", b"sum")
    client.send(P.SUBMIT_REDUCE_JOB, b"split", b"u", b"sum", b"", b"")
    handle = client.read()[0].args[0]
    assert worker.grab() == handle
    for workload in workloads:
        worker.send(P.WORK_DATA, handle, workload)
    worker.complete(handle)
    return handle, worker, [worker.grab() or b"" for _ in workloads]


@pytest.mark.parametrize("loss", ["leave", "CANT_DO", "timeout"])
def test_job_that_was_taken_away_too_often_is_reported(loss: str) -> None:
    """With its names, how often it was tried, and once."""
    farm = Farm(settings=EngineSettings(job_retries=2))
    handle = farm.connect().submit(unique=b"u", type_=P.SUBMIT_JOB_BG)
    for _ in range(2):
        assert farm.given_up == []
        worker = farm.connect()
        worker.send(P.CAN_DO_TIMEOUT, b"f", b"1000")
        assert worker.grab() == handle
        if loss == "leave":
            worker.leave()
        elif loss == "CANT_DO":
            worker.send(P.CANT_DO, b"f")
        else:
            farm.wait(2)
            worker.leave()
    assert farm.given_up == [GivenUp(handle, b"f", b"u", "taken from its worker too often: 2")]


def test_job_whose_row_is_gone_is_reported() -> None:
    """A job that does not fit the memory and cannot be read back has ended, and nobody else says so."""
    farm = Farm(durable=True, settings=EngineSettings(memory=0))
    client, worker = farm.connect(), farm.worker()
    for unique in (b"u1", b"u2"):
        client.send(P.SUBMIT_JOB_BG, b"f", unique, b"w")
        farm.save_all()
    first, second = [created.args[0] for created in client.read()]
    del farm.kept[min(farm.kept)]
    assert worker.grab() is None
    farm.load_all()
    assert worker.grab() == second
    reason = "it is no longer in the store, or its row is damaged"
    assert farm.given_up == [GivenUp(first, b"f", b"u1", reason)]


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (P.WORK_FAIL, "its part {} failed or was cancelled"),
        (P.WORK_EXCEPTION, "its part {} ended with an exception"),
    ],
)
def test_reduce_job_with_a_part_that_failed_is_reported(ending: int, reason: str) -> None:
    """The whole ends for the sake of one part, which the reason names."""
    farm = Farm()
    handle, worker, parts = reduce_job(farm, b"1", b"2")
    worker.send(ending, parts[1], *([b"why"] if ending == P.WORK_EXCEPTION else []))
    assert farm.given_up == [GivenUp(handle, b"split", b"u", reason.format(parts[1].decode()))]


@pytest.mark.parametrize("type_", [P.WORK_DATA, P.WORK_COMPLETE])
def test_reduce_job_with_too_long_a_result_is_reported(type_: int) -> None:
    """The reason names the limit."""
    farm = Farm(settings=EngineSettings(max_reduced_bytes=10))
    handle, worker, parts = reduce_job(farm, b"1")
    worker.send(type_, parts[0], bytes(11))
    reason = "the results of its parts are longer than 10 bytes"
    assert farm.given_up == [GivenUp(handle, b"split", b"u", reason)]


def test_part_that_was_taken_away_too_often_is_reported_with_its_whole() -> None:
    """Both are jobs, and neither was ended by anybody."""
    farm = Farm(settings=EngineSettings(job_retries=1))
    handle, worker, parts = reduce_job(farm, b"1")
    worker.leave()
    assert farm.given_up == [
        GivenUp(parts[0], b"sum", b"", "taken from its worker too often: 1"),
        GivenUp(handle, b"split", b"u", f"its part {parts[0].decode()} failed or was cancelled"),
    ]


def test_other_endings_are_not_reported() -> None:
    """What a worker or an operator ended, or what nobody waits for any more, is no news."""
    farm = Farm(settings=EngineSettings(job_retries=1))
    client, worker = farm.connect(), farm.worker()
    for type_ in (P.WORK_COMPLETE, P.WORK_FAIL, P.WORK_EXCEPTION):
        handle = client.submit()
        worker.grab()
        worker.send(type_, handle, *([] if type_ == P.WORK_FAIL else [b""]))
        client.read()
    assert farm.connect().ask(b"cancel job " + client.submit()) == b"OK\r\n"
    client.read()
    client.submit()
    worker.grab()
    client.leave()
    worker.leave()
    assert farm.given_up == []
