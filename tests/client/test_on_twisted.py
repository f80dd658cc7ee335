"""What is special to the client on Twisted: Deferreds, services, Protocol and Factory with any endpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.application.internet import ClientService
from twisted.application.service import Application, IServiceCollection
from twisted.internet import defer
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import MemoryReactorClock
from twisted.test.iosim import IOPump, connect, makeFakeClient, makeFakeServer
from zope.interface import implementer

from gearman_twisted import GearmanClient, ServerPool
from gearman_twisted.client import GearmanClientFactory, GearmanClientProtocol
from gearman_twisted.errors import ConfigError, ConnectionLost, LocalProtocolError, NoServers
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.client_rig import OPTION, PING
from tests.kit.peers import MemoryServer, Peer, memory_reactor, requests, response
from tests.kit.servers import TwistdGearman, WirePeer

P = PacketType
reactor: Any = installed_reactor


def result(deferred: Deferred[Any]) -> Any:
    """What a Deferred has fired with, or the exception that it has failed with."""
    outcome: list[Any] = []
    deferred.addBoth(outcome.append)
    assert outcome, "it has not fired"
    return getattr(outcome[0], "value", outcome[0])


@implementer(IStreamClientEndpoint)
class DeadEndpoint:
    """An endpoint that fails before it returns."""

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:  # noqa: N803 - IStreamClientEndpoint
        """Fail."""
        return defer.fail(OSError("at once"))


class Rig:
    """A client over a reactor in memory."""

    def __init__(self, **options: Any) -> None:
        self.reactor = memory_reactor()
        self.server = MemoryServer(self.reactor)
        options.setdefault("retry_policy", lambda _attempt: 10.0)
        self.client = GearmanClient("127.0.0.1:4730", reactor=self.reactor, **options)

    def connect(self) -> Peer:
        """Connect, and take what the client says first."""
        self.client.startService()
        peer = self.server.accept()
        peer.taken()
        peer.send(P.OPTION_RES, b"exceptions")
        return peer


# Deferreds.


def test_call_fires_while_its_packet_is_read() -> None:
    """Callbacks of a Deferred run in the same turn of the reactor; what they call goes out in one write."""
    rig = Rig()
    peer = rig.connect()
    for _ in range(3):
        rig.client.echo(b"x").addCallback(lambda _: rig.client.echo(b"y"))
    before = peer.transport.writes
    peer.send_bytes(response(P.ECHO_RES, b"x") * 3)
    assert peer.taken()[-3:] == [Packet(P.ECHO_REQ, [b"y"])] * 3
    assert peer.transport.writes == before + 1


def test_call_from_the_errback_of_a_lost_connection_is_sent_on_the_next() -> None:
    """Whoever tries again at once does not wait for the retry policy."""
    rig = Rig()
    peer = rig.connect()
    again: list[Deferred[bytes]] = []
    rig.client.submit("f").addErrback(lambda _: again.append(rig.client.echo(b"again")))
    peer.lose()
    rig.reactor.advance(0)
    second = rig.server.accept()
    second.send(P.OPTION_RES, b"exceptions")
    second.send(P.ECHO_RES, b"again")
    assert result(again[0]) == b"again"


def test_timeout_is_a_cancellation() -> None:
    """A call can be given a time limit."""
    rig = Rig()
    peer = rig.connect()
    job, other = rig.client.submit("f").addTimeout(5, rig.reactor), rig.client.echo(b"x")
    rig.reactor.advance(5)
    assert isinstance(result(job), defer.TimeoutError)
    peer.send(P.JOB_CREATED, b"H:1")
    peer.send(P.ECHO_RES, b"x")
    assert result(other) == b"x"


def test_cancelled_from_its_own_callback() -> None:
    """A callback may cancel its own call, and raise afterwards; the call ends once, as cancelled."""
    rig = Rig()
    peer = rig.connect()

    def stop(_data: bytes) -> None:
        job.cancel()
        raise ZeroDivisionError

    job = rig.client.submit("f", on_data=stop)
    peer.send(P.JOB_CREATED, b"H:1")
    peer.send(P.WORK_DATA, b"H:1", b"")
    assert isinstance(result(job), CancelledError)


def test_ping_and_retry_can_be_cancelled() -> None:
    """Every Deferred can be cancelled, whatever it stands for."""
    rig = Rig()
    peer = rig.connect()
    calls: list[Deferred[Any]] = [rig.client.ping(), rig.client.submit("f", retry=True)]
    for call in calls:
        call.cancel()
        assert isinstance(result(call), CancelledError)
    peer.lose()
    assert rig.server.attempts == 0


def test_question_is_cancelled_when_another_one_fails() -> None:
    """Of several that wait for a server, the first to be told that there is none may cancel the others."""
    pool = ServerPool([DeadEndpoint()], reactor=memory_reactor())
    first, second = pool.status(b"H:1"), pool.status(b"H:2")
    told: list[Any] = []
    first.addErrback(told.append).addCallback(lambda _: second.cancel())
    closed = pool.close()
    assert [failure.type for failure in told] == [NoServers]
    assert isinstance(result(second), CancelledError)
    assert [result(first), result(closed)] == [None, None]


def test_connection_that_fails_at_once_is_told() -> None:
    """An endpoint that fails before it returns fails the call that made it connect."""
    reactor = memory_reactor()
    client = GearmanClient(DeadEndpoint(), reactor=reactor)
    for _ in range(2):
        error = result(client.echo(b""))
        assert isinstance(error, NoServers)
        assert "at once" in str(error)
    pool = ServerPool([DeadEndpoint()], reactor=reactor, patience=1.0)
    waiting = pool.echo(b"")
    reactor.advance(1)
    assert isinstance(result(waiting), NoServers)
    for closed in (client.close(), pool.close()):
        assert result(closed) is None
    assert reactor.getDelayedCalls() == []


# Services.


@pytest.mark.parametrize("make", [GearmanClient, lambda server, **options: ServerPool([server], **options)])
def test_service(make: Any) -> None:
    """Clients and pools are services: they connect when started, and can be started again once stopped."""
    reactor = memory_reactor()
    server = MemoryServer(reactor)
    service = make("127.0.0.1:4730", reactor=reactor, exceptions=False)
    application: Any = Application("test")
    service.setServiceParent(IServiceCollection(application))
    for _ in range(2):
        service.startService()
        assert service.running
        peer = server.accept()
        echo = service.echo(b"1")
        assert peer.taken() == [Packet(P.ECHO_REQ, [b"1"])]
        peer.send(P.ECHO_RES, b"1")
        assert result(echo) == b"1"
        stopped = service.stopService()
        assert peer.is_closing()
        assert not stopped.called
        peer.lose()
        assert result(stopped) is None
        assert isinstance(result(service.echo(b"2")), NoServers)
        assert not service.running
    assert reactor.getDelayedCalls() == []


def test_names_are_addresses() -> None:
    """Errors and lists name servers by address, whatever endpoint leads there."""
    reactor = MemoryReactorClock()
    endpoints = [
        TCP4ClientEndpoint(reactor, "10.0.0.1", 4730),
        HostnameEndpoint(reactor, "jobs.example", 4731),
        UNIXClientEndpoint(reactor, "/run/gearmand.sock"),
    ]
    pool = ServerPool(endpoints, reactor=reactor, patience=0)
    error = result(pool.echo(b"")) if pool.close().called else None
    assert "10.0.0.1:4730, jobs.example:4731, unix:/run/gearmand.sock: the pool was closed" in str(error)
    assert GearmanClient(endpoints[1], reactor=reactor).server_name == "jobs.example:4731"


# The Protocol and the Factory.


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TwistdGearman]:
    """A ``twistd gearman`` that keeps its jobs in memory."""
    with TwistdGearman(tmp_path, "--store", "memory:") as server:
        yield server


@pytest_twisted.async_yield_fixture
async def endpoint(server: TwistdGearman, no_calls_left: None) -> AsyncIterator[TCP4ClientEndpoint]:
    """Leads to the server."""
    yield TCP4ClientEndpoint(reactor, "127.0.0.1", server.port)


async def closed(protocol: Any) -> None:
    """Close a connection, and wait until its calls fail."""
    last = protocol.submit("nobody")
    protocol.transport.loseConnection()
    with pytest.raises(ConnectionLost):
        await last


@pytest_twisted.ensureDeferred
async def test_protocol_with_a_plain_endpoint(server: TwistdGearman, endpoint: TCP4ClientEndpoint) -> None:
    """Any endpoint connects a protocol that has all the calls at once, by the options of its factory."""
    factory = GearmanClientFactory(client_id="me", exceptions=True, ping_interval=30.0)
    protocol: Any = await endpoint.connect(factory)
    assert isinstance(protocol, GearmanClientProtocol)
    assert protocol.factory is factory
    with WirePeer(server.port) as worker:
        worker.send(P.CAN_DO, b"reverse")
        job = protocol.submit("reverse", b"abc")
        handle = await protocol.submit_background("later")
        assert (await protocol.status(handle)).is_known
        assert await protocol.ping() >= 0
        assigned = worker.ask(P.GRAB_JOB)
        assert assigned is not None
        worker.send(P.WORK_EXCEPTION, assigned.args[0], b"why")
        error: Any = await job.addErrback(lambda failure: failure.value)
        assert error.data == b"why"
        outcomes = [outcome async for outcome in protocol.submit_many([], background=True)]
        assert outcomes == []
        worker.socket.sendall(b"workers\n")
        assert b" me :" in worker.socket.recv(65536)
    await closed(protocol)
    with pytest.raises(ConnectionLost, match=f"127.0.0.1:{server.port} was lost"):
        await protocol.echo(b"")


@pytest_twisted.ensureDeferred
async def test_protocol_in_a_client_service(endpoint: TCP4ClientEndpoint) -> None:
    """``ClientService`` keeps a protocol connected; its calls fail when the connection is lost."""
    service = ClientService(endpoint, GearmanClientFactory(), retryPolicy=lambda _attempt: 0.0)
    service.startService()
    try:
        first: Any = await service.whenConnected()
        assert await first.echo(b"1") == b"1"
        lost = first.submit("nobody", retry=True)
        first.transport.abortConnection()
        with pytest.raises(ConnectionLost):
            await lost
        await deferLater(reactor, 0)  # the service is told after the protocol
        second: Any = await service.whenConnected()
        assert second is not first
        assert await second.echo(b"2") == b"2"
    finally:
        await service.stopService()


class Recorder(Protocol):
    """The server's end, which keeps what came."""

    def __init__(self) -> None:
        self.received = b""

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def taken(self) -> list[Packet]:
        """Return the packets that came since the last call."""
        received, self.received = self.received, b""
        return requests(received)

    def send(self, type_: PacketType, *args: bytes) -> None:
        """Send a packet."""
        assert self.transport is not None
        self.transport.write(response(type_, *args))


def pumped(clock: Clock, **options: Any) -> tuple[GearmanClientProtocol, Recorder, IOPump]:
    """A protocol and its server over Twisted's simulation of a network."""
    protocol = GearmanClientFactory(reactor=clock, **options).buildProtocol(None)
    recorder = Recorder()
    pump = connect(recorder, makeFakeServer(recorder), protocol, makeFakeClient(protocol))
    return protocol, recorder, pump


def test_protocol_over_iosim() -> None:
    """The protocol runs over ``twisted.test.iosim``, with a clock of the test's own."""
    clock = Clock()
    protocol, server, pump = pumped(clock, client_id="me", ping_interval=30.0)
    pump.flush()
    assert server.taken() == [Packet(P.SET_CLIENT_ID, [b"me"]), OPTION]
    server.send(P.OPTION_RES, b"exceptions")
    job, echo = protocol.submit("f", b"w"), protocol.echo(b"x")
    pump.flush()
    assert server.taken() == [Packet(P.SUBMIT_JOB, [b"f", b"", b"w"]), Packet(P.ECHO_REQ, [b"x"])]
    server.send(P.JOB_CREATED, b"H:1")
    server.send(P.ECHO_RES, b"x")
    server.send(P.WORK_COMPLETE, b"H:1", b"done")
    pump.flush()
    assert (result(job), result(echo)) == (b"done", b"x")
    lost = protocol.submit("g")
    for _ in range(2):
        clock.advance(10)
        pump.flush()
    assert server.taken()[-1] == PING
    clock.advance(10)
    clock.advance(0)
    pump.flush()
    assert isinstance(result(lost), ConnectionLost)
    assert "no answer within 30 seconds" in str(result(protocol.echo(b"")))
    assert clock.getDelayedCalls() == []


def test_protocol_without_options_or_pings() -> None:
    """A factory may be told to say nothing first, and to set no timer."""
    clock = Clock()
    protocol, server, pump = pumped(clock, exceptions=False, ping_interval=None)
    pump.flush()
    assert server.taken() == []
    assert clock.getDelayedCalls() == []
    call = protocol.submit("f\0")
    assert isinstance(result(call), LocalProtocolError)


def test_protocol_that_was_not_connected_yet() -> None:
    """Calls of a protocol that has no connection fail, rather than to wait for one."""
    factory = GearmanClientFactory(reactor=Clock())
    assert isinstance(factory, Factory)
    assert isinstance(result(factory.buildProtocol(None).echo(b"")), ConnectionLost)


def test_factory_checks_its_options() -> None:
    """What makes no sense is refused when the factory is made."""
    with pytest.raises(ConfigError, match="ping_interval"):
        GearmanClientFactory(ping_interval=0, reactor=Clock())
    with pytest.raises(LocalProtocolError, match="client id"):
        GearmanClientFactory(client_id="a b", reactor=Clock())
