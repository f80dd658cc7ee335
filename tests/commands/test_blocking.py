"""The connection of ``gearman``, over real sockets."""

from __future__ import annotations

import socket
import tracemalloc
from collections.abc import Iterator
from threading import Thread

import pytest

from gearman_twisted.commands.blocking import Line, Timers

PIECES = [bytes([number]) * (1 << 20) for number in range(20)]


class Peer:
    """A protocol that says nothing, and keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def connected(self, _transport: object) -> None:
        """Do nothing."""

    def received(self, data: bytes) -> None:
        """Keep it."""
        self.told.append(f"{len(data)} bytes")

    def lost(self, reason: str) -> None:
        """Keep it."""
        self.told.append(reason)


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(20)
        yield ours, theirs


def test_large_workloads_are_not_copied(sockets: tuple[socket.socket, socket.socket]) -> None:
    """What a slow server has not taken is kept as it is, counted, and sent in its order."""
    ours, theirs = sockets
    line = Line(ours, Peer(), is_tls=False)
    tracemalloc.start()
    try:
        for piece in PIECES:
            line.write(piece)
            line.write(b"")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(PIECES[0])
    total = sum(map(len, PIECES))
    assert total - (1 << 20) < line.unsent() < total
    came = bytearray()

    def read() -> None:
        while len(came) < total:
            came.extend(theirs.recv(1 << 20))

    reader = Thread(target=read)
    reader.start()
    while line.unsent():
        line.turn(Timers())
    reader.join(20)
    assert came == b"".join(PIECES)


def test_server_that_is_gone(sockets: tuple[socket.socket, socket.socket]) -> None:
    """What can no longer be sent is dropped, and the end is noticed."""
    ours, theirs = sockets
    peer = Peer()
    line = Line(ours, peer, is_tls=False)
    line.write(PIECES[0])
    assert line.unsent()
    theirs.close()
    line.write(b"more")
    assert line.unsent() == 0
    line.turn(Timers())
    assert len(peer.told) == 1
    assert not line.is_open
