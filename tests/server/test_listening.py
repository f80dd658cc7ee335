"""Listening by TCP: which sockets there are, and what is set on them."""

from __future__ import annotations

import resource
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThread

from gearman_twisted.server.listening import ListeningEndpoint, server_endpoints, why_cannot_listen
from gearman_twisted.server.service import JobServerService
from gearman_twisted.server.settings import ListeningSettings
from gearman_twisted.store.memory import MemoryStore
from gearman_twisted.wire.constants import PacketType
from tests.commands.test_gearmand import Foreground
from tests.kit.servers import WirePeer


def endpoint(host: str, port: int = 0, **options: Any) -> ListeningEndpoint:
    return ListeningEndpoint(reactor, host, port, backlog=5, **options)


@pytest_twisted.ensureDeferred
async def test_ipv6_sockets_take_ipv6_alone() -> None:
    """So that the wildcard addresses of both families can be listened on at one port."""
    port: Any = await endpoint("::1").listen(Factory())
    assert port.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
    await maybeDeferred(port.stopListening)


@pytest_twisted.ensureDeferred
async def test_options_are_set_on_the_socket() -> None:
    """What is asked for is on the socket before it accepts anything."""
    option = (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
    port: Any = await endpoint("127.0.0.1", options=[option]).listen(Factory())
    assert port.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
    await maybeDeferred(port.stopListening)


def keepalive_of(connection: socket.socket) -> list[int]:
    """Idle time, interval and probes in seconds, and milliseconds for data that is not acknowledged."""
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
    return [connection.getsockopt(socket.IPPROTO_TCP, option) for option in options]


@pytest.mark.parametrize("address", ["127.0.0.1:0", "tcp:0:interface=127.0.0.1"])
@pytest_twisted.ensureDeferred
async def test_a_peer_whose_host_died_is_lost_in_two_minutes(address: str) -> None:
    """Keep-alive is on by default on whatever the service listens, so that such a worker's job runs again."""
    service = JobServerService(reactor, server_endpoints(reactor, address), MemoryStore())
    service.startService()
    await service.when_ready()
    port: Any = service.addresses[0]
    peer = await deferToThread(WirePeer, port.port)
    await deferToThread(peer.ask, PacketType.ECHO_REQ, b"")
    (accepted,) = service._peers._peers.values()
    transport: Any = accepted.transport  # type: ignore[attr-defined]
    assert keepalive_of(transport.socket) == [60, 15, 4, 120_000]
    assert transport.getTcpKeepAlive()
    peer.socket.close()
    await service.stopService()


@pytest_twisted.ensureDeferred
async def test_options_take_the_place_of_the_defaults() -> None:
    """Whoever sets options has these and no others."""
    ports: list[Any] = [
        await endpoint("127.0.0.1", options=options).listen(Factory()) for options in (None, ())
    ]
    assert keepalive_of(ports[0].socket) == [60, 15, 4, 120_000]
    with socket.socket() as fresh:
        assert keepalive_of(ports[1].socket) == keepalive_of(fresh)
    for port in ports:
        await maybeDeferred(port.stopListening)


@pytest.mark.parametrize(
    ("address", "backlog"),
    [("127.0.0.1:0", 7), ("tcp:0:interface=127.0.0.1", 7), ("tcp:0:interface=127.0.0.1:backlog=9", 9)],
)
@pytest_twisted.ensureDeferred
async def test_settings_hold_for_endpoint_strings(address: str, backlog: int) -> None:
    """Keep-alive and backlog that an operator has set are on each port by TCP, and on what it accepts."""
    how = ListeningSettings(keepalive_idle=77, keepalive_interval=7, keepalive_count=3)
    endpoints = server_endpoints(reactor, address, backlog=7, options=how.socket_options())
    service = JobServerService(reactor, endpoints, MemoryStore())
    service.startService()
    await service.when_ready()
    port: Any = service.addresses[0]
    peer = await deferToThread(WirePeer, port.port)
    await deferToThread(peer.ask, PacketType.ECHO_REQ, b"")
    (accepted,) = service._peers._peers.values()
    transport: Any = accepted.transport  # type: ignore[attr-defined]
    assert keepalive_of(transport.socket) == [77, 7, 3, 98_000]
    ports: Any = service._ports
    # Of a socket that listens, "sacked" is the backlog.
    info = ports[0].socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64)
    assert struct.unpack_from("=8x6I", info)[5] == backlog
    peer.socket.close()
    await service.stopService()


def test_no_file_descriptors_left_is_an_error(tmp_path: Path) -> None:
    """When connections cannot be accepted the log says so, at ERROR and once; others are served on."""
    with Foreground(tmp_path) as server, WirePeer(server.port) as other:
        assert other.ask(PacketType.ECHO_REQ, b"") is not None
        pid = server.process.pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(list(Path(f"/proc/{pid}/fd").iterdir())), hard))
        for _ in range(5):
            with WirePeer(server.port) as refused:
                assert refused.receive() is None
        assert other.ask(PacketType.ECHO_REQ, b"") is not None
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        with WirePeer(server.port) as accepted:
            assert accepted.ask(PacketType.ECHO_REQ, b"") is not None
        assert server.end() == 0
    [line] = [line for line in server.printed.splitlines() if "cannot accept" in line]
    assert line.startswith("  ERROR ")
    assert line.endswith("cannot accept connections: Too many open files; 1 refused since the last report")


@pytest_twisted.ensureDeferred
async def test_a_taken_port_is_named() -> None:
    """A port that another one has fails the Deferred, with an error that can be told in a line."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(CannotListenError) as caught:
            await endpoint("::1", number).listen(Factory())
    assert why_cannot_listen(caught.value) == f"cannot listen on [::1]:{number}: Address already in use"
