"""Nothing that was acknowledged is lost when the server is killed."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from gearman_twisted.wire.codec import encode
from gearman_twisted.wire.constants import REQ, PacketType
from tests.servers import TwistdGearman, WirePeer

JOBS = 2000


def submit_until(server: TwistdGearman, acknowledged: int, number: int) -> set[bytes]:
    """Submits JOBS jobs at once, ends the server with a signal after some were acknowledged.

    Returns:
        The workloads of all that were acknowledged, also those whose acknowledgement came later.
    """
    with WirePeer(server.port) as peer:
        workloads = [b"job %d" % index for index in range(JOBS)]
        packets = [encode(REQ, PacketType.SUBMIT_JOB_BG, b"f", b"", workload) for workload in workloads]
        peer.socket.sendall(b"".join(packets))
        seen = 0
        while seen < acknowledged:
            packet = peer.receive()
            assert packet is not None
            assert packet.type == PacketType.JOB_CREATED
            seen += 1
        server.process.send_signal(number)
        while (packet := peer.receive()) is not None:
            assert packet.type == PacketType.JOB_CREATED
            seen += 1
    server.process.communicate()
    return set(workloads[:seen])


def jobs_after_restart(directory: Path) -> list[bytes]:
    """What runs when a new server takes over the store."""
    with TwistdGearman(directory) as server:
        with WirePeer(server.port) as worker:
            ran = list(worker.drain(b"f"))
        assert server.end() == 0
    with TwistdGearman(directory) as server, WirePeer(server.port) as worker:
        assert list(worker.drain(b"f")) == [], "finished jobs came back"
    return ran


def check(directory: Path, acknowledged: int, number: int) -> None:
    with TwistdGearman(directory) as server:
        promised = submit_until(server, acknowledged, number)
        if number == signal.SIGTERM:
            assert server.process.returncode == 0
    ran = jobs_after_restart(directory)
    assert promised <= set(ran)
    assert len(ran) == len(set(ran)), "a job was stored twice"
    assert ran == sorted(ran, key=lambda workload: int(workload[4:])), "the order was lost"


@pytest.mark.parametrize("acknowledged", [0, 1, 1000])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_acknowledged_jobs_survive(tmp_path: Path, acknowledged: int, number: int) -> None:
    """Each of 2,000 background jobs that was acknowledged before the server was ended runs afterwards."""
    check(tmp_path, acknowledged, number)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_acknowledged_jobs_survive_at_any_moment(tmp_path: Path, seed: int) -> None:
    """The same, killed at random moments, one after the other on the same store."""
    moments = random.Random(seed)
    for turn in range(3):
        directory = tmp_path / str(turn)
        directory.mkdir()
        check(directory, moments.randrange(JOBS), signal.SIGKILL)


def test_a_job_that_was_running_runs_again(tmp_path: Path) -> None:
    """A job that a worker had when the server was killed is given out again: at least once."""
    with TwistdGearman(tmp_path) as server, WirePeer(server.port) as worker:
        assert worker.ask(PacketType.SUBMIT_JOB_BG, b"f", b"", b"work") is not None
        worker.send(PacketType.CAN_DO, b"f")
        assigned = worker.ask(PacketType.GRAB_JOB)
        assert assigned is not None
        server.end(signal.SIGKILL)
    assert jobs_after_restart(tmp_path) == [b"work"]
