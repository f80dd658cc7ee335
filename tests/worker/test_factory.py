"""``GearmanWorkerFactory`` without a ``GearmanWorker``: any endpoint, ``ClientService``, in memory."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.application.internet import ClientService
from twisted.internet import reactor as global_reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.test.iosim import FakeTransport, connectedServerAndClient

from gearman_twisted import GearmanClient, function
from gearman_twisted.errors import ConfigError, RetryLater
from gearman_twisted.wire.codec import Decoder
from gearman_twisted.wire.constants import REQ, PacketType
from gearman_twisted.wire.packet import Packet
from gearman_twisted.worker import GearmanWorkerFactory, GearmanWorkerProtocol, Job, in_thread
from tests.kit.gearmand import Gearmand
from tests.kit.peers import response
from tests.kit.worker_rig import GRAB, complete

P = PacketType
reactor: Any = global_reactor


def reverse(job: Job) -> bytes:
    return job.workload[::-1]


class Server(Protocol):
    """The other end, in memory."""

    transport: Any

    def connectionMade(self) -> None:
        self.packets: list[Packet] = []
        self.decoder = Decoder(REQ)
        self.is_lost = False

    def dataReceived(self, data: bytes) -> None:
        self.packets += self.decoder.feed(data)

    def connectionLost(self, _reason: Any = None) -> None:
        self.is_lost = True

    def taken(self) -> list[Packet]:
        """The packets that came since the last call."""
        packets, self.packets = self.packets, []
        return packets


class Simulation:
    """A connection of a factory, over ``twisted.test.iosim``."""

    def __init__(self, factory: GearmanWorkerFactory) -> None:
        address = IPv4Address("TCP", "10.0.0.1", 4730)
        client, self.server, self.pump = connectedServerAndClient(
            Server, lambda: factory.buildProtocol(address), clientTransportFactory=_AbortingTransport
        )
        assert isinstance(client, GearmanWorkerProtocol)

    def assign(self, name: bytes, handle: bytes = b"H:1", workload: bytes = b"abc") -> list[Packet]:
        """Give it a job and return what it sends."""
        self.server.transport.write(response(P.JOB_ASSIGN_UNIQ, handle, name, b"u", workload))
        self.pump.flush()
        return self.taken()

    def taken(self) -> list[Packet]:
        """What it has sent since the last call."""
        self.pump.flush()
        packets: list[Packet] = self.server.taken()
        return packets


def _AbortingTransport(protocol: Any) -> Any:
    return FakeTransport(protocol, False)


def test_factory_works_over_any_transport() -> None:
    """Two connections share the slots; functions come and go on both; a coroutine ends a job later."""
    clock = Clock()
    factory = GearmanWorkerFactory(client_id="me", reactor=clock, ping_interval=None)
    waiting: list[Deferred[bytes]] = []

    @factory.function
    async def slow(_job: Job) -> bytes:
        waiting.append(Deferred())
        return await waiting[-1]

    one, two = Simulation(factory), Simulation(factory)
    hello = [Packet(P.SET_CLIENT_ID, [b"me"]), Packet(P.CAN_DO, [b"slow"])]
    assert (one.taken(), two.taken()) == ([*hello, GRAB], hello)
    assert one.assign(b"slow") == []
    factory.register("reverse", reverse)
    assert (one.taken(), two.taken()) == ([Packet(P.CAN_DO, [b"reverse"])],) * 2
    waiting[0].callback(b"r")
    assert (one.taken(), two.taken()) == ([complete(b"H:1", b"r")], [GRAB])
    assert two.assign(b"reverse") == [complete(b"H:1", b"cba")]
    factory.unregister("slow")
    assert (one.taken(), two.taken()) == ([GRAB], [Packet(P.CANT_DO, [b"slow"])])


def test_factory_gives_a_job_back_on_its_only_connection() -> None:
    """Without a second connection, a function is offered again once its other jobs have ended."""
    clock = Clock()
    factory = GearmanWorkerFactory(concurrency=2, reactor=clock, ping_interval=None)
    waiting: Deferred[bytes] = Deferred()

    @factory.function("f")
    def mixed(job: Job) -> Any:
        if job.workload == b"back":
            raise RetryLater
        return waiting

    peer = Simulation(factory)
    peer.taken()
    assert peer.assign(b"f") == [GRAB]
    assert peer.assign(b"f", b"H:2", b"back") == []
    clock.advance(1)
    assert peer.taken() == []
    waiting.callback(b"r")
    assert peer.taken() == [
        complete(b"H:1", b"r"),
        Packet(P.CANT_DO, [b"f"]),
        Packet(P.CAN_DO, [b"f"]),
        GRAB,
    ]


def test_drained_factory_takes_no_more_jobs() -> None:
    """It fires when the jobs that run have ended; new connections offer nothing."""
    factory = GearmanWorkerFactory(concurrency=2, reactor=Clock(), ping_interval=None)
    waiting: Deferred[bytes] = Deferred()
    factory.register("f", lambda _job: waiting)
    peer = Simulation(factory)
    peer.taken()
    peer.assign(b"f")
    drained = factory.drain()
    peer.server.transport.write(response(P.NO_JOB))
    assert peer.taken() == []
    states = [drained.called]
    waiting.callback(b"r")
    assert peer.taken() == [complete(b"H:1", b"r")]
    assert [*states, drained.called] == [False, True]
    assert not peer.server.is_lost
    assert Simulation(factory).taken() == []


def test_factory_is_drained_for_all_who_ask() -> None:
    """Asked again, it tells both when the jobs have ended; one that is cancelled leaves the other alone."""
    factory = GearmanWorkerFactory(reactor=Clock(), ping_interval=None)
    waiting: Deferred[bytes] = Deferred()
    factory.register("f", lambda _job: waiting)
    peer = Simulation(factory)
    peer.taken()
    peer.assign(b"f")
    drains = [factory.drain() for _ in range(3)]
    drains.pop(1).addErrback(lambda failure: failure.trap(CancelledError)).cancel()
    assert [drained.called for drained in drains] == [False, False]
    waiting.callback(b"r")
    assert [drained.called for drained in drains] == [True, True]
    again = factory.drain()
    assert again.called


def test_lost_connection_of_a_factory_is_forgotten() -> None:
    """Its slot is of use to the next one."""
    factory = GearmanWorkerFactory(reactor=Clock(), ping_interval=None)
    factory.register("reverse", reverse)
    one = Simulation(factory)
    one.taken()
    one.server.transport.loseConnection()
    one.pump.flush()
    assert GRAB in Simulation(factory).taken()


@function
def marked(job: Job) -> bytes:
    return job.workload


def test_settings_of_a_factory() -> None:
    """Marked functions may be given; a limit of a function's own is refused, as are senseless numbers."""
    factory = GearmanWorkerFactory(functions=[marked], concurrency=3, reactor=Clock(), ping_interval=None)
    assert Simulation(factory).taken() == [Packet(P.CAN_DO, [b"marked"]), GRAB]
    factory.register("three", reverse, concurrency=3)
    with pytest.raises(ConfigError, match="use GearmanWorker, or a second factory"):
        factory.register("two", reverse, concurrency=2)
    with pytest.raises(ConfigError, match="concurrency takes a whole number"):
        GearmanWorkerFactory(concurrency=0, reactor=Clock())


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (IPv4Address("TCP", "10.0.0.1", 4730), "10.0.0.1:4730"),
        (IPv6Address("TCP", "::1", 4730), "[::1]:4730"),
        (UNIXAddress("/run/gearmand.sock"), "UNIXAddress('/run/gearmand.sock')"),
        (None, "its server"),
    ],
)
def test_connections_have_names_for_the_log(address: Any, name: str) -> None:
    """The address of the other end, as far as it is known."""
    protocol = GearmanWorkerFactory(reactor=Clock()).buildProtocol(address)
    assert protocol._peer.server.name == name  # type: ignore[attr-defined]


@pytest_twisted.ensureDeferred
async def test_factory_in_a_client_service(gearmand: Gearmand, no_calls_left: None) -> None:
    """It works in Twisted's own service, which connects again when the server was restarted."""
    factory = GearmanWorkerFactory(concurrency=4, client_id="mine")
    factory.register("reverse", reverse)
    factory.register("thread", in_thread(reverse))
    endpoint = clientFromString(reactor, f"tcp:127.0.0.1:{gearmand.port}")
    service = ClientService(endpoint, factory, retryPolicy=lambda _attempt: 0.05)
    service.startService()
    for name in ("reverse", "thread"):
        async with GearmanClient(gearmand.address) as client:
            assert await client.submit(name, b"ab") == b"ba"
        gearmand.end()
        gearmand.start()
    async with GearmanClient(gearmand.address) as client:
        assert await client.submit("reverse", b"ab") == b"ba"
    await factory.drain()
    await service.stopService()


@pytest_twisted.ensureDeferred
async def test_factory_on_an_endpoint(gearmand: Gearmand, no_calls_left: None) -> None:
    """Without any service: one connection, made and closed by hand."""
    factory = GearmanWorkerFactory()
    factory.register("reverse", reverse)
    endpoint = clientFromString(reactor, f"tcp:127.0.0.1:{gearmand.port}")
    protocol = await endpoint.connect(factory)
    async with GearmanClient(gearmand.address) as client:
        assert await client.submit("reverse", b"ab") == b"ba"
    await factory.drain()
    protocol.transport.loseConnection()
    while protocol.transport.connected:
        done: Deferred[None] = Deferred()
        reactor.callLater(0.01, done.callback, None)
        await done
