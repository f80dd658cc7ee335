"""A worker against real servers and signals: large results, silent servers, the end in the middle of work."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent
from twisted.protocols.portforward import ProxyFactory, ProxyServer

from gearman_twisted import GearmanClient, GearmanWorker, Job, JobServerService
from gearman_twisted.client import AdminClient
from gearman_twisted.errors import JobException
from gearman_twisted.server.service import describe_address
from gearman_twisted.server.settings import ConnectionLimits
from gearman_twisted.store import open_store
from tests.kit.gearmand import PATIENCE, Gearmand
from tests.kit.worker_rig import log_warnings

reactor: Any = global_reactor
TWISTD = str(Path(sys.executable).parent / "twistd")

logged = pytest.fixture(log_warnings)

# By itself, so that the processes need not import a reactor.
BLOCKING = """
import os
import time
from pathlib import Path

gate = Path("gate")

def blocking(job):
    job.send_data(b"%d" % os.getpid())
    while not gate.exists():
        time.sleep(0.01)
    return job.workload
"""

FUNCTIONS = """
from twisted.internet import reactor
from twisted.internet.task import deferLater

from fault_blocking import blocking, gate
from gearman_twisted.worker.executors import in_process, in_thread

async def patient(job):
    job.send_data(b"started ")
    while not gate.exists():
        await deferLater(reactor, 0.01)
    return job.workload

thread = in_thread(blocking)
process = in_process(blocking, processes=20)
"""


def write_functions(directory: Path) -> None:
    """Puts the functions where the worker finds them."""
    (directory / "fault_blocking.py").write_text(BLOCKING)
    (directory / "fault_functions.py").write_text(FUNCTIONS)


@pytest_twisted.async_yield_fixture
async def small_server() -> AsyncIterator[str]:
    """The address of a server of ours that takes packets of up to a MiB."""
    endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    limits = ConnectionLimits(max_packet_bytes=1 << 20)
    server = JobServerService(reactor, [endpoint], open_store("memory:", reactor), limits=limits)
    server.startService()
    await server.when_ready()
    yield describe_address(server.addresses[0])
    await server.stopService()


@pytest_twisted.ensureDeferred
async def test_result_that_its_server_refuses_fails_its_job(
    small_server: str, no_calls_left: None, logged: list[LogEvent]
) -> None:
    """A server drops whoever sends too much; the job comes again once, and ends with a reason."""
    runs: list[bytes] = []
    worker = GearmanWorker(small_server, retry_policy=lambda _attempt: 0.05)

    @worker.function("f")
    def large(job: Job) -> bytes:
        runs.append(job.handle)
        return bytes(int(job.workload))

    worker.startService()
    async with GearmanClient(small_server) as client:
        with pytest.raises(JobException, match="ResultTooLarge: 8388608 bytes are more than"):
            await client.submit("f", b"%d" % (8 << 20))
        assert len(runs) == 2
        assert len(await client.submit("f", b"1000000")) == 1_000_000
    await worker.stopService()


@pytest_twisted.ensureDeferred
async def test_result_of_a_gigabyte_fails_its_job(
    gearmand: Gearmand, no_calls_left: None, logged: list[LogEvent]
) -> None:
    """What no packet takes is an error for the client, and the worker goes on."""
    worker = GearmanWorker(gearmand.address)
    worker.register("f", lambda job: bytes(int(job.workload)))
    worker.startService()
    async with GearmanClient(gearmand.address) as client:
        with pytest.raises(JobException, match="ResultTooLarge: 1000000000 bytes"):
            await client.submit("f", b"1000000000")
        assert await client.submit("f", b"3") == bytes(3)
    await worker.stopService()


class Line(ProxyServer):
    """A connection through a line that can be cut without either end being told."""

    factory: Any
    peer: Any
    transport: Any

    def connectionMade(self) -> None:
        super().connectionMade()
        self.factory.lines.append(self)

    def cut(self) -> None:
        """From now on nothing comes through."""
        self.transport.pauseProducing()
        self.peer.transport.pauseProducing()


class Lines(ProxyFactory):
    """All connections through a line."""

    noisy = False
    protocol = Line

    def __init__(self, port: int) -> None:
        super().__init__("127.0.0.1", port)
        self.lines: list[Line] = []


@pytest_twisted.ensureDeferred
async def test_line_that_is_cut_is_found_out(
    gearmand: Gearmand, no_calls_left: None, logged: list[LogEvent]
) -> None:
    """A job is done although the worker's first connection is dead at both ends and nobody said so."""
    lines = Lines(gearmand.port)
    port = reactor.listenTCP(0, lines, interface="127.0.0.1")
    worker = GearmanWorker(
        f"127.0.0.1:{port.getHost().port}", ping_interval=0.3, retry_policy=lambda _attempt: 0.05
    )
    worker.register("reverse", lambda job: job.workload[::-1])
    worker.startService()
    async with GearmanClient(gearmand.address) as client:
        assert await client.submit("reverse", b"one") == b"eno"
        # Only a server that is known to answer pings is given up for its silence.
        while not worker._core._places[0][1].answers_pings:
            await deferLater(reactor, 0.01)
        lines.lines[0].cut()
        assert await client.submit("reverse", b"two") == b"owt"
        assert len(lines.lines) >= 2
    await worker.stopService()
    await port.stopListening()
    for line in lines.lines:
        line.transport.abortConnection()
        line.peer.transport.abortConnection()
    await deferLater(reactor, 0)
    assert len(logged) >= 1


class Mute(Protocol):
    """A server that takes connections and never reads."""

    factory: Any
    transport: Any

    def connectionMade(self) -> None:
        self.factory.peers.append(self)
        self.transport.pauseProducing()


@pytest_twisted.ensureDeferred
async def test_stop_does_not_wait_for_a_server_that_does_not_read(
    no_calls_left: None, logged: list[LogEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it does not take is dropped with the connection."""
    monkeypatch.setattr("gearman_twisted.runtime.link._CLOSE_PATIENCE", 0.05)
    factory: Any = Factory.forProtocol(Mute)
    factory.noisy = False
    factory.peers = []
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    worker = GearmanWorker(f"127.0.0.1:{port.getHost().port}", drain_timeout=0.05)
    for number in range(5000):
        worker.register(b"%d" % number * 1000, lambda job: job.workload)
    worker.startService()
    while not factory.peers:
        await deferLater(reactor, 0.01)
    await worker.stopService()
    await port.stopListening()
    factory.peers[0].transport.abortConnection()
    await deferLater(reactor, 0)


@pytest.mark.parametrize("kind", ["patient", "thread", "process"])
@pytest_twisted.ensureDeferred
async def test_sigterm_lets_twenty_jobs_end(
    gearmand: Gearmand, no_calls_left: None, tmp_path: Path, kind: str
) -> None:
    """All processes get the signal, as from a supervisor: what runs comes to its end, nothing is begun."""
    write_functions(tmp_path)
    worker = subprocess.Popen(
        [
            *(TWISTD, "--nodaemon", "--pidfile=", "--logfile=worker.log", "gearman-worker"),
            *(f"--server={gearmand.address}", f"--function=f=fault_functions:{kind}"),
            *("--concurrency=20", "--drain-timeout=60"),
        ],
        cwd=tmp_path,
        start_new_session=True,
    )
    started: list[bytes] = []
    try:
        async with GearmanClient(gearmand.address) as client, AdminClient(gearmand.address) as admin:
            jobs = [client.submit("f", b"%d" % number, on_data=started.append) for number in range(20)]
            while len(started) < 20:
                await deferLater(reactor, 0.01)
            os.killpg(worker.pid, signal.SIGTERM)
            late: Deferred[bytes] = client.submit_background("f", b"late")
            await late
            while "takes no more jobs, 20 running" not in (tmp_path / "worker.log").read_text():
                await deferLater(reactor, 0.01)
            (tmp_path / "gate").touch()
            assert sorted(await gatherResults(jobs), key=int) == [b"%d" % number for number in range(20)]
            assert await deferToThread(worker.wait, PATIENCE) == 0, (tmp_path / "worker.log").read_text()
            (status,) = await admin.status()
            assert (status.total, status.running) == (1, 0)
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait(PATIENCE)


@pytest_twisted.ensureDeferred
async def test_thread_that_never_ends_does_not_keep_the_process(gearmand: Gearmand, tmp_path: Path) -> None:
    """After the drain timeout the process ends with status 0, and the server has the job again."""
    write_functions(tmp_path)
    worker = subprocess.Popen(
        [
            *(TWISTD, "--nodaemon", "--pidfile=", "--logfile=worker.log", "gearman-worker"),
            *(f"--server={gearmand.address}", "--function=f=fault_functions:thread", "--drain-timeout=0.1"),
        ],
        cwd=tmp_path,
    )
    try:
        async with GearmanClient(gearmand.address) as client, AdminClient(gearmand.address) as admin:
            started: Deferred[bytes] = Deferred()
            job = client.submit("f", on_data=started.callback)
            job.addErrback(lambda _failure: None)
            await started
            worker.send_signal(signal.SIGTERM)
            assert await deferToThread(worker.wait, PATIENCE) == 0, (tmp_path / "worker.log").read_text()
            (status,) = await admin.status()
            assert (status.total, status.running) == (1, 0)
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.wait(PATIENCE)


@pytest_twisted.ensureDeferred
async def test_processes_end_with_a_worker_that_was_killed(
    gearmand: Gearmand, no_calls_left: None, tmp_path: Path
) -> None:
    """A process whose worker is gone works for nobody, and ends in the middle of its job."""
    write_functions(tmp_path)
    worker = subprocess.Popen(
        [
            *(TWISTD, "--nodaemon", "--pidfile=", "--logfile=worker.log", "gearman-worker"),
            *(f"--server={gearmand.address}", "--function=f=fault_functions:process"),
        ],
        cwd=tmp_path,
    )
    try:
        async with GearmanClient(gearmand.address) as client:
            started: Deferred[bytes] = Deferred()
            job = client.submit("f", on_data=started.callback)
            job.addErrback(lambda _failure: None)
            child = os.pidfd_open(int(await started))
            worker.kill()
            # It can be read from once the process has ended, whoever asks for its status then.
            readable, _, _ = await deferToThread(select.select, [child], [], [], PATIENCE)
            os.close(child)
            assert readable
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.wait(PATIENCE)
