"""Connections that are read together, as one event of the reactor; with real sockets and no reactor."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet import error, reactor
from twisted.internet.protocol import Protocol
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from gearman_twisted.server.readers import Readers
from gearman_twisted.server.transport import PromptServer


class Watcher:
    """As much of a reactor as is needed to see what it is asked to watch."""

    def __init__(self) -> None:
        self.watched: set[Any] = set()

    def addReader(self, reader: Any) -> None:
        """Watches."""
        self.watched.add(reader)

    def removeReader(self, reader: Any) -> None:
        """Watches no longer."""
        self.watched.discard(reader)


class Listener(Protocol):
    """Keeps what it hears."""

    transport: PromptServer

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        """Something came."""
        if data == b"bug":
            raise RuntimeError("this is the bug")
        self.heard.append(data)

    def connectionLost(self, reason: Failure = Failure(error.ConnectionDone())) -> None:  # noqa: B008
        """The connection is gone."""
        self.lost = reason


class Rig:
    """Connections, and what reads them."""

    def __init__(self) -> None:
        self.watcher = Watcher()
        self.turns: list[str] = []
        self.readers = Readers(
            self.watcher, lambda: self.turns.append("begins"), lambda: self.turns.append("ends")
        )
        self.pairs: list[tuple[socket.socket, Listener]] = []
        self._listening = socket.create_server(("127.0.0.1", 0))

    def connect(self) -> tuple[socket.socket, Listener]:
        """A peer, and the protocol at the server's end."""
        peer = socket.create_connection(self._listening.getsockname())
        peer.settimeout(10)
        accepted, address = self._listening.accept()
        accepted.setblocking(False)
        protocol = Listener()
        transport = PromptServer(self.readers, accepted, protocol, address, None, 1, reactor)
        protocol.makeConnection(transport)
        self.pairs.append((peer, protocol))
        return peer, protocol

    def close(self) -> None:
        """Leave nothing open."""
        for peer, protocol in self.pairs:
            protocol.transport.connectionLost(Failure(error.ConnectionDone()))
            peer.close()
        self._listening.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A rig that is taken down."""
    rig = Rig()
    yield rig
    rig.close()


def test_all_that_is_ready_is_read_in_one_turn(rig: Rig) -> None:
    """Who has said something is heard, once, between the beginning and the end of one turn."""
    pairs = [rig.connect() for _ in range(5)]
    assert rig.watcher.watched == {rig.readers}
    for number, (peer, _) in enumerate(pairs):
        if number != 2:
            peer.sendall(b"from %d" % number)
    rig.readers.doRead()
    heard = [protocol.heard for _, protocol in pairs]
    assert heard == [[b"from 0"], [b"from 1"], [], [b"from 3"], [b"from 4"]]
    assert rig.turns == ["begins", "ends"]


def test_who_is_paused_is_not_read(rig: Rig) -> None:
    """A connection that does not want to be read is left alone; saying so twice is no harm."""
    peer, protocol = rig.connect()
    peer.sendall(b"later")
    protocol.transport.pauseProducing()
    protocol.transport.pauseProducing()
    rig.readers.doRead()
    assert protocol.heard == []
    protocol.transport.resumeProducing()
    protocol.transport.resumeProducing()
    rig.readers.doRead()
    assert protocol.heard == [b"later"]


def test_nothing_is_watched_when_nobody_is_read(rig: Rig) -> None:
    """The reactor may end when there is nothing to read."""
    _, protocol = rig.connect()
    protocol.transport.pauseProducing()
    assert rig.watcher.watched == set()
    protocol.transport.resumeProducing()
    assert rig.watcher.watched == {rig.readers}


def test_one_that_pauses_another_in_the_same_turn(rig: Rig) -> None:
    """A connection that is paused, or gone, by the time that it is its turn is not read."""
    peers = [rig.connect() for _ in range(2)]
    for number, (_, protocol) in enumerate(peers):
        other = peers[1 - number][1]
        hears = protocol.dataReceived

        def pause_other(data: bytes, other: Listener = other, hears: Any = hears) -> None:
            hears(data)
            other.transport.pauseProducing()

        protocol.dataReceived = pause_other  # type: ignore[method-assign]
    for peer, _ in peers:
        peer.sendall(b"x")
    rig.readers.doRead()
    assert sorted(protocol.heard for _, protocol in peers) == [[], [b"x"]]


def test_end_of_a_connection(rig: Rig) -> None:
    """A peer that closes is gone, cleanly; the others are read on."""
    peer, protocol = rig.connect()
    other, other_protocol = rig.connect()
    peer.close()
    other.sendall(b"still here")
    rig.readers.doRead()
    assert protocol.lost is not None
    assert protocol.lost.check(error.ConnectionDone)
    assert other_protocol.heard == [b"still here"]
    assert other_protocol.lost is None


def test_reset_of_a_connection(rig: Rig) -> None:
    """A peer that resets the connection is lost."""
    peer, protocol = rig.connect()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()
    rig.readers.doRead()
    assert protocol.lost is not None
    assert protocol.lost.check(error.ConnectionLost)


def test_a_bug_costs_one_connection(rig: Rig) -> None:
    """Where reading raises, the connection is given up, the log says why, and the others are read."""
    pairs = [rig.connect() for _ in range(3)]
    for (peer, _), data in zip(pairs, [b"good", b"bug", b"good"], strict=True):
        peer.sendall(data)
    with capturedLogs() as events:
        rig.readers.doRead()
    assert [protocol.heard for _, protocol in pairs] == [[b"good"], [], [b"good"]]
    lost = pairs[1][1].lost
    assert lost is not None
    assert lost.check(RuntimeError)
    assert pairs[1][0].recv(1) == b""
    assert [event["log_failure"].getErrorMessage() for event in events if "log_failure" in event] == [
        "this is the bug"
    ]
    assert rig.turns == ["begins", "ends"]


def test_end_of_the_reactor(rig: Rig) -> None:
    """When the reactor ends, all connections do."""
    _, protocol = rig.connect()
    rig.readers.connectionLost(Failure(error.ConnectionLost()))
    assert protocol.lost is not None
