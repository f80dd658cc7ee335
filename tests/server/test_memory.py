"""What peers can make a server keep is bounded: a real process, with a healthy client beside each attack."""

from __future__ import annotations

import contextlib
import itertools
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from gearman_twisted.wire.codec import encode
from gearman_twisted.wire.constants import REQ, PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.servers import PATIENCE, TwistdGearman, WirePeer, resident_bytes, wait_until

P = PacketType

MIB = 1024 * 1024
BUDGET = 64 * MIB
# What a server may take beside its budget: Python and Twisted, and copies while data passes through.
OTHER_BYTES = 80 * MIB


class Attack:
    """A server with a small budget, its attackers, and a client and a worker that behave.

    Attributes:
        server: the server.
    """

    def __init__(self, server: TwistdGearman, peers: contextlib.ExitStack) -> None:
        self.server = server
        self._peers = peers
        self._client, self._worker = self.peer(), self.peer()
        self._worker.send(P.CAN_DO, b"healthy")

    def peer(self) -> WirePeer:
        """Another connection."""
        return self._peers.enter_context(WirePeer(self.server.port))

    def check(self, factor: float = 1.5) -> None:
        """Run a job from end to end, and look at what the server takes."""
        created = self._client.ask(P.SUBMIT_JOB, b"healthy", b"", b"workload")
        assert created is not None
        assert created.type == P.JOB_CREATED, created
        [handle] = created.args
        assert self._worker.ask(P.GRAB_JOB) == Packet(P.JOB_ASSIGN, [handle, b"healthy", b"workload"])
        self._worker.send(P.WORK_COMPLETE, handle, b"done")
        assert self._client.receive() == Packet(P.WORK_COMPLETE, [handle, b"done"])
        assert resident_bytes(self.server) < OTHER_BYTES + factor * BUDGET

    @property
    def log(self) -> str:
        """What the server has logged."""
        return self.server.log.read_text()


@contextlib.contextmanager
def attack(directory: Path, *words: str) -> Iterator[Attack]:
    """Run a server with a small budget; in the end its log has no exception."""
    with (
        TwistdGearman(directory, f"--max-memory={BUDGET}", *words) as server,
        contextlib.ExitStack() as peers,
    ):
        attack = Attack(server, peers)
        yield attack
        attack.check()
        assert "Traceback" not in attack.log


@pytest.fixture
def attacked(tmp_path: Path) -> Iterator[Attack]:
    with attack(tmp_path, "--store=memory:") as attacked:
        yield attacked


def send_while_read(peer: WirePeer, data: bytes, most: int) -> int:
    """Send the same data until the peer is not read, or has sent so many bytes; return how many."""
    peer.socket.settimeout(0.5)
    sent = 0
    with contextlib.suppress(OSError):
        while sent < most:
            start = sent % len(data)
            sent += peer.socket.send(data[start : start + most - sent])
    return sent


def answers(peer: WirePeer) -> Iterator[Packet]:
    """Everything that a peer gets, until the end."""
    peer.socket.settimeout(PATIENCE)
    while (packet := peer.receive()) is not None:
        yield packet


def test_jobs_that_no_worker_takes_are_refused_at_last(attacked: Attack) -> None:
    """Foreground jobs beyond the budget are refused; they go when their client goes."""
    peer = attacked.peer()
    for _ in range(200):
        peer.send(P.SUBMIT_JOB, b"f", b"", bytes(MIB))
    replies = [packet.type for packet in itertools.islice(answers(peer), 200)]
    assert 50 < replies.count(P.JOB_CREATED) < 65
    assert replies.count(P.ERROR) == 200 - replies.count(P.JOB_CREATED)
    attacked.check()
    assert "memory used up" in attacked.log
    other = attacked.peer()
    refused = other.ask(P.SUBMIT_JOB_BG, b"f", b"", bytes(MIB))
    assert refused is not None
    assert refused.args[0] == b"QUEUE_ERROR"
    assert b"--max-memory" in refused.args[1]
    peer.socket.close()
    wait_until(lambda: b"\nf\t0\t" in b"\n" + other.text(b"status", b".\n"))
    created = other.ask(P.SUBMIT_JOB_BG, b"f", b"", bytes(MIB))
    assert created is not None
    assert created.type == P.JOB_CREATED


def test_empty_jobs_count(attacked: Attack) -> None:
    """Jobs without a workload are refused too, once there are very many."""
    peer = attacked.peer()
    data = encode(REQ, P.SUBMIT_JOB_BG, b"f", b"", b"") * 5000
    refused = 0
    for _ in range(24):
        peer.socket.sendall(data)
        refused += sum(packet.type == P.ERROR for packet in itertools.islice(answers(peer), 5000))
    assert 120_000 - refused < BUDGET // 300
    assert refused


def test_workloads_of_unsaved_jobs(tmp_path: Path) -> None:
    """While the store stands still, peers are not read beyond some bytes of workloads."""
    store = tmp_path / "jobs.db"
    with attack(tmp_path, f"--store=sqlite:{store}", "--memory=16M") as attacked:
        with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            job = encode(REQ, P.SUBMIT_JOB_BG, b"f", b"", bytes(MIB))
            peers = [attacked.peer() for _ in range(3)]
            assert sum(send_while_read(peer, job, 100 * len(job)) for peer in peers) > 50 * MIB
            attacked.check()
            writer.execute("ROLLBACK")
        first = next(answers(peers[0]))
        assert first.type == P.JOB_CREATED


def test_one_unique_very_often(attacked: Attack) -> None:
    """A client that gets each packet thousands of times is closed, and takes no memory until then."""
    client, worker = attacked.peer(), attacked.peer()
    client.socket.sendall(encode(REQ, P.SUBMIT_JOB, b"f", b"u", b"") * 2500)
    handles = {packet.args[0] for packet in itertools.islice(answers(client), 2500)}
    worker.send(P.CAN_DO, b"f")
    assert worker.ask(P.GRAB_JOB) == Packet(P.JOB_ASSIGN, [*handles, b"f", b""])
    worker.send(P.WORK_DATA, *handles, bytes(MIB))
    attacked.check()
    with contextlib.suppress(OSError):
        while client.socket.recv(1 << 20):
            pass
    assert "closed 127.0.0.1: " in attacked.log


def test_functions_without_use(attacked: Attack) -> None:
    """Two hundred thousand functions take little once their worker has left, and not much before."""
    peer = attacked.peer()
    for start in range(0, 200_000, 10_000):
        with contextlib.suppress(OSError):
            peer.socket.sendall(
                b"".join(
                    encode(REQ, P.CAN_DO, b"function-%d" % number) for number in range(start, start + 10_000)
                )
            )
        attacked.check()
    peer.socket.close()
    attacked.check()


def test_limits_and_functions_that_operators_set(attacked: Attack) -> None:
    """Operators are refused too, once they have named very many functions."""
    peer = attacked.peer()
    answers = []
    for line, count in (
        (b"maxqueue f%d 5\n", 150_000),
        (b"create function g%d\n", 30_000),
        # Lines that wait count too; when they were handled there is room for some more.
        (b"maxqueue h%d 5\n", 20_000),
    ):
        for start in range(0, count, 10_000):
            peer.socket.sendall(b"".join(line % number for number in range(start, start + 10_000)))
            received = b""
            while received.count(b"\n") < 10_000:
                received += peer.socket.recv(65536)
        answers.append(received.splitlines()[-1].split()[:2])
    assert answers == [[b"OK"], [b"ERR", b"MEMORY"], [b"ERR", b"MEMORY"]]


@pytest.mark.parametrize("size", [20 * MIB, 900_000])
def test_unfinished_packets(attacked: Attack, size: int) -> None:
    """Of many peers that send large packets and never end them, the largest are closed."""
    peers = [attacked.peer() for _ in range(8 if size > MIB else 120)]
    packet = encode(REQ, P.SUBMIT_JOB_BG, b"f", b"", bytes(size))
    for peer in peers:
        send_while_read(peer, packet, size)
        attacked.check()
    # Some at once, or all that are not read some seconds later.
    wait_until(lambda: "closed 127.0.0.1: " in attacked.log)


def test_unread_output(attacked: Attack) -> None:
    """Of many peers that do not read large results, the largest are closed."""
    for number in range(20):
        client, worker = attacked.peer(), attacked.peer()
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        created = client.ask(P.SUBMIT_JOB, b"f%d" % number, b"", b"")
        assert created is not None
        worker.send(P.CAN_DO, b"f%d" % number)
        assert worker.ask(P.GRAB_JOB) is not None
        for _ in range(16):
            worker.send(P.WORK_DATA, created.args[0], bytes(MIB))
        attacked.check(2.5)
    assert "closed 127.0.0.1: " in attacked.log


def test_memory_is_given_back_after_a_burst(tmp_path: Path) -> None:
    """A server that has worked off many large jobs takes little more than before."""
    with TwistdGearman(tmp_path, "--store=memory:") as server, WirePeer(server.port) as peer:
        before = resident_bytes(server)
        for _ in range(400):
            peer.send(P.SUBMIT_JOB_BG, b"f", b"", bytes(500_000))
        for _ in range(400):
            assert peer.receive() is not None
        assert resident_bytes(server) > before + 100 * MIB
        assert sum(1 for _ in peer.drain(b"f")) == 400
        wait_until(lambda: resident_bytes(server) < before + 20 * MIB)
