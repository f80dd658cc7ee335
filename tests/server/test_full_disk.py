"""A server process whose disk is full: it goes on, ends and starts again, and loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from gearman_twisted.wire.constants import PacketType
from tests.kit.disk import fill_disk, small_disk
from tests.kit.servers import TwistdGearman, WirePeer

P = PacketType
# Large enough for the reserve that a store keeps for forgetting jobs.
DISK = "128M"
WORKLOAD_BYTES = 200_000


def submit_until_full(peer: WirePeer, prefix: bytes, limit: int = 10_000) -> list[bytes]:
    """Submit jobs until one is refused; returns the workloads of those that were acknowledged."""
    promised: list[bytes] = []
    for number in range(limit):
        workload = b"%b %d " % (prefix, number) + bytes(WORKLOAD_BYTES)
        answer = peer.ask(P.SUBMIT_JOB_BG, b"f", b"", workload)
        assert answer is not None
        if answer.type == P.ERROR:
            assert answer.args[0] == b"QUEUE_ERROR"
            return promised
        promised.append(workload)
    raise AssertionError("the disk does not become full")


@pytest.mark.parametrize("filler", [True, False], ids=["by others", "by jobs"])
def test_full_disk(tmp_path: Path, filler: bool) -> None:
    """What was acknowledged comes back after a start on the full disk; a drained queue takes jobs again.

    If others fill what is free while no server runs, it does so when they have made room.
    """
    with small_disk(DISK) as disk:
        store = (f"--store=sqlite:{disk / 'jobs.db'}", "--save-timeout=1")
        with TwistdGearman(tmp_path, *store) as server, WirePeer(server.port) as peer:
            promised = submit_until_full(peer, b"first")
            assert peer.ask(P.ECHO_REQ, b"still here") is not None
            assert server.end() == 0
        assert len(promised) > 100
        if filler:
            fill_disk(disk)
        with TwistdGearman(tmp_path, *store) as server:
            with WirePeer(server.port) as worker:
                assert list(worker.drain(b"f")) == promised
            (disk / "filler").unlink(missing_ok=True)
            with WirePeer(server.port) as peer:
                again = submit_until_full(peer, b"second")
            assert server.end() == 0
        assert len(again) > len(promised) // 2
        with TwistdGearman(tmp_path, *store) as server, WirePeer(server.port) as worker:
            assert list(worker.drain(b"f")) == again
            assert server.end() == 0
        assert "Traceback" not in server.log.read_text()
