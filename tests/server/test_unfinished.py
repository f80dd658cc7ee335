"""Peers that begin something and never finish it are closed: TLS handshakes, requests over HTTP."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.threads import blockingCallFromThread, deferToThread
from twisted.logger import LogEvent, capturedLogs

from gearman_twisted.runtime.tls import ServerTls
from gearman_twisted.server import peers as peers_module
from gearman_twisted.server.connection import PeersFactory
from gearman_twisted.server.listening import ListeningEndpoint
from gearman_twisted.server.web import jobs as jobs_module
from gearman_twisted.server.web.jobs import HttpFactory
from tests.kit.certificates import Certificates
from tests.kit.server_rig import ServerRig
from tests.kit.servers import PATIENCE

reactor: Any = installed_reactor


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def logged() -> Iterator[Sequence[LogEvent]]:
    with capturedLogs() as events:
        yield events


def server_tls(certificates: Certificates) -> ServerTls:
    return ServerTls(certificates["local.pem"], certificates["local.key"])


def closed(logged: Sequence[LogEvent]) -> list[tuple[str, str]]:
    """Who was closed and why, as the log has it."""
    return [(event["peer"], event["reason"]) for event in logged if "reason" in event]


class Story:
    """A server on real sockets with a clock that the test moves; runs in a thread beside the reactor.

    Attributes:
        rig: the server.
    """

    def __init__(self, port: int, rig: ServerRig) -> None:
        self._port = port
        self.rig = rig
        self._sockets = ExitStack()

    def connect(self) -> socket.socket:
        """Connect, and wait until the server knows it."""
        peer = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)
        self._sockets.enter_context(peer)
        self.ask(lambda: None)
        return peer

    def ask(self, call: Callable[[], Any]) -> Any:
        """Return what a call in the reactor's turn returns, in which it has read all that was sent."""
        # The first one may run in a turn that had begun before.
        blockingCallFromThread(reactor, lambda: None)
        return blockingCallFromThread(reactor, call)

    def peers(self) -> int:
        """How many connections the server has."""
        count: int = self.ask(lambda: len(self.rig.peers))
        return count

    def advance(self, seconds: float) -> None:
        """Let time pass for the server, which has read all that was sent."""
        self.ask(lambda: self.rig.clock.advance(seconds))

    def close(self) -> None:
        self._sockets.close()


async def told(factory: Callable[[ServerRig], Factory], tls: ServerTls | None, story: Any) -> None:
    """Tell a story, in a thread, to a server with these connections."""
    rig = ServerRig(clock=Clock())
    port: Any = await ListeningEndpoint(reactor, "127.0.0.1", 0, tls=tls).listen(factory(rig))
    teller = Story(port.getHost().port, rig)
    try:
        await deferToThread(story, teller)
    finally:
        teller.close()
        await port.stopListening()


def is_closed(peer: socket.socket) -> bool:
    """Wait for the end of a connection; False if something comes instead."""
    try:
        return peer.recv(1) == b""
    except ConnectionResetError:
        return True


def gearman(rig: ServerRig) -> Factory:
    return PeersFactory(rig.peers)


def http(rig: ServerRig) -> Factory:
    return HttpFactory(rig.peers, rig.clock)


# TLS.


@pytest.mark.parametrize("factory", [gearman, http])
@pytest_twisted.ensureDeferred
async def test_handshake_that_never_ends(
    certificates: Certificates, logged: Sequence[LogEvent], factory: Callable[[ServerRig], Factory]
) -> None:
    """A peer that connects for TLS and sends nothing, or half a handshake, is closed after 30 seconds."""

    def story(server: Story) -> None:
        silent, half = server.connect(), server.connect()
        half.sendall(b"\x16\x03\x01\x02\x00\x01")
        server.advance(29.9)
        assert server.peers() == 2
        server.advance(0.1)
        assert is_closed(silent)
        assert is_closed(half)

    await told(factory, server_tls(certificates), story)
    assert closed(logged) == [("127.0.0.1", "TLS handshake too slow")] * 2


@pytest_twisted.ensureDeferred
async def test_peer_with_tls_may_be_silent(certificates: Certificates) -> None:
    """After its handshake a peer may sleep as long as it likes, as workers do."""

    def story(server: Story) -> None:
        context = ssl.create_default_context(cafile=certificates["ca.pem"])
        with context.wrap_socket(server.connect(), server_hostname="127.0.0.1"):
            server.advance(100_000)
            assert server.peers() == 1

    await told(gearman, server_tls(certificates), story)


@pytest.mark.parametrize("factory", [gearman, http])
@pytest_twisted.ensureDeferred
async def test_tls_counts_for_the_memory(
    certificates: Certificates, factory: Callable[[ServerRig], Factory]
) -> None:
    """A connection with TLS counts with what OpenSSL takes for it, from its beginning until it is gone."""

    def story(server: Story) -> None:
        def used() -> int:
            size: int = server.ask(lambda: server.rig.engine.usage.bytes)
            return size

        before = used()
        with server.connect():
            server.ask(lambda: None)
            assert used() == before + 26_000
        while server.peers():
            pass
        assert used() == before

    await told(factory, server_tls(certificates), story)


@pytest_twisted.ensureDeferred
async def test_too_many_handshakes(
    certificates: Certificates, logged: Sequence[LogEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the limit a new handshake costs the oldest one."""
    monkeypatch.setattr(peers_module, "_MOST_HANDSHAKES", 2)

    def story(server: Story) -> None:
        first = server.connect()
        server.connect()
        assert server.peers() == 2
        server.connect()
        assert is_closed(first)
        assert server.peers() == 2

    await told(gearman, server_tls(certificates), story)
    assert closed(logged) == [("127.0.0.1", "too many connections without a complete TLS handshake")]


@pytest_twisted.ensureDeferred
async def test_silent_peer_in_the_clear() -> None:
    """Without TLS a peer that never sends anything is left alone, as workers may sleep for days."""

    def story(server: Story) -> None:
        server.connect()
        server.advance(100_000)
        assert server.peers() == 1

    await told(gearman, None, story)


# HTTP.


@pytest.mark.parametrize(
    ("request_", "trickle"),
    [
        (b"", b"G"),
        (b"GET /f HTTP/1.1\r\n", b"X: y\r\n"),
        (b"POST /f HTTP/1.1\r\nContent-Length: 1000\r\n\r\n", b"x"),
        (b"POST /f HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_request_that_trickles(request_: bytes, trickle: bytes, logged: Sequence[LogEvent]) -> None:
    """A request that comes byte by byte is closed after 90 seconds, wherever it is."""

    def story(server: Story) -> None:
        peer = server.connect()
        peer.sendall(request_)
        for _ in range(8):
            peer.sendall(trickle)
            server.advance(10)
        assert server.peers() == 1
        server.advance(11)
        assert is_closed(peer)

    await told(http, None, story)
    assert closed(logged) == [("127.0.0.1", "HTTP request too slow")]


@pytest_twisted.ensureDeferred
async def test_large_body_has_time() -> None:
    """A body that makes progress may take longer: a second for each 10 KB."""

    def story(server: Story) -> None:
        peer = server.connect()
        peer.sendall(b"POST /f HTTP/1.1\r\nContent-Length: 4000000\r\n\r\n")
        for part in range(1, 4):
            peer.sendall(bytes(1_000_000))
            while server.ask(lambda: received(server.rig)) < part * 1_000_000:
                pass
            server.advance(50)
        assert server.peers() == 1

    await told(http, None, story)


def received(rig: ServerRig) -> int:
    """How much the server has of the body of the only request."""
    [peer] = rig.peers._peers.values()
    assert isinstance(peer, jobs_module.HttpPeer)
    size: int = peer.requests[0].content.tell()
    return size


@pytest_twisted.ensureDeferred
async def test_kept_connection_waits_and_is_limited(
    logged: Sequence[LogEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that waits for its job is not unfinished; one that is done, and kept, is closed for another one."""
    monkeypatch.setattr(jobs_module, "_MOST_UNFINISHED", 1)

    def story(server: Story) -> None:
        waits = server.connect()
        waits.sendall(b"POST /f HTTP/1.1\r\nContent-Length: 1\r\n\r\nx")
        while not server.ask(lambda: server.rig.engine.job_count):
            pass
        done = server.connect()
        done.sendall(b"GET / HTTP/1.1\r\nConnection: keep-alive\r\n\r\n")
        assert b" 404 " in done.recv(1000)
        server.advance(50)
        server.connect()
        assert is_closed(done)
        server.advance(10_000)
        assert server.peers() == 1
        assert server.rig.engine.job_count == 1

    await told(http, None, story)
    assert closed(logged)[0] == ("127.0.0.1", "too many connections without a complete HTTP request")
