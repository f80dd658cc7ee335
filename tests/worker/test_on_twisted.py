"""The worker for Twisted, against real servers."""

from __future__ import annotations

import os

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent

from gearman_twisted import GearmanClient, GearmanWorker
from gearman_twisted.errors import JobException
from gearman_twisted.worker import Job
from tests.kit.gearmand import Gearmand
from tests.kit.worker_rig import log_warnings

logged = pytest.fixture(log_warnings)


@pytest_twisted.ensureDeferred
async def test_debian_client_gets_our_result(gearmand: Gearmand, no_calls_left: None) -> None:
    """Debian's client has our worker reverse its data, through gearmand."""
    worker = GearmanWorker(gearmand.address, client_id="ours")
    worker.register("reverse", lambda job: job.workload[::-1])
    worker.startService()
    assert await deferToThread(gearmand.run_client, "-f", "reverse", "hello") == b"olleh"
    await worker.stopService()


@pytest_twisted.ensureDeferred
async def test_worker_comes_back_after_a_restart_of_gearmand(gearmand: Gearmand, no_calls_left: None) -> None:
    """A worker connects again to a server that was restarted, and offers its functions again."""
    worker = GearmanWorker(gearmand.address, retry_policy=lambda _attempt: 0.05)
    worker.register("reverse", lambda job: job.workload[::-1])
    worker.startService()
    async with GearmanClient(gearmand.address) as client:
        assert await client.submit("reverse", b"one") == b"eno"
    gearmand.end()
    gearmand.start()
    async with GearmanClient(gearmand.address) as client:
        assert await client.submit("reverse", b"two") == b"owt"
    await worker.stopService()


@pytest_twisted.ensureDeferred
async def test_exception_reaches_our_client_through_gearmand(
    gearmand: Gearmand, no_calls_left: None, logged: list[LogEvent]
) -> None:
    """What a worker function raises is what the client's Deferred fails with."""
    worker = GearmanWorker(gearmand.address, concurrency=4)

    @worker.function("fail")
    async def fail(job: Job) -> bytes:
        job.send_status(1, 2)
        raise ValueError(os.fsdecode(job.workload))

    worker.startService()
    async with GearmanClient(gearmand.address) as client:
        for number in range(3):
            told: list[tuple[int, int]] = []
            with pytest.raises(JobException) as caught:
                await client.submit("fail", b"%d" % number, on_status=lambda *numbers: told.append(numbers))  # noqa: B023
            assert caught.value.data == b"ValueError: %d" % number
            assert told == [(1, 2)]
    await worker.stopService()
    assert len(logged) == 3
