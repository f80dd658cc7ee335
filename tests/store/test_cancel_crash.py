"""A job whose ``cancel`` was answered with OK does not come back when the server is killed."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import pytest

from gearman_twisted.wire.codec import encode
from gearman_twisted.wire.constants import REQ, PacketType
from tests.kit.servers import TwistdGearman, WirePeer

JOBS = 200
ROUNDS = 3


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store of each kind: a file, a database, a server of another protocol."""
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'jobs.db'}"
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


def submit(peer: WirePeer) -> list[bytes]:
    """Submit the jobs; return their handles."""
    peer.socket.sendall(encode(REQ, PacketType.SUBMIT_JOB_BG, b"f", b"", b"work") * JOBS)
    created = [peer.receive() for _ in range(JOBS)]
    return [packet.args[0] for packet in created if packet is not None]


def cancel_and_kill(server: TwistdGearman, peer: WirePeer, handles: list[bytes]) -> int:
    """Cancel all jobs at once, kill the server with the first answer; return how many were answered."""
    peer.socket.sendall(b"".join(b"cancel job %b\n" % handle for handle in handles))
    answers = peer.socket.recv(65536)
    server.process.send_signal(signal.SIGKILL)
    with contextlib.suppress(ConnectionResetError):
        while data := peer.socket.recv(65536):
            answers += data
    server.process.communicate()
    assert not answers.replace(b"OK\r\n", b"")
    return answers.count(b"OK\r\n")


def test_cancelled_jobs_do_not_come_back(tmp_path: Path, url: str) -> None:
    """Of jobs that are cancelled when the server is killed, those whose operator was told OK are gone."""
    cancelled: set[bytes] = set()
    for _ in range(ROUNDS):
        with TwistdGearman(tmp_path, f"--store={url}") as server, WirePeer(server.port) as peer:
            handles = submit(peer)
            told = cancel_and_kill(server, peer, handles)
            assert told
            cancelled.update(handles[:told])
    with TwistdGearman(tmp_path, f"--store={url}") as server, WirePeer(server.port) as peer:
        rows = peer.text(b"show jobs", b".\n").splitlines()[:-1]
        assert cancelled.isdisjoint(row.split(b"\t")[0] for row in rows)
