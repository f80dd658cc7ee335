"""``GearmanServerFactory`` by itself: with any endpoint, and over connections in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.test import iosim

from gearman_twisted.client import GearmanClient
from gearman_twisted.server import ConnectionLimits, GearmanServerFactory, default_settings
from gearman_twisted.store import open_store
from gearman_twisted.wire.codec import Decoder, encode
from gearman_twisted.wire.constants import REQ, RES, PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.server_rig import LoadingStore

P = PacketType
reactor: Any = installed_reactor


@pytest_twisted.ensureDeferred
async def test_listening_by_an_endpoint(tmp_path: Path) -> None:
    """A program gives it to an endpoint of Twisted's, and jobs of its store survive it."""

    async def serve() -> tuple[GearmanServerFactory, Any, GearmanClient]:
        factory = GearmanServerFactory(open_store(f"sqlite:{tmp_path / 'jobs.db'}", reactor))
        port: Any = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        return factory, port, GearmanClient(f"127.0.0.1:{port.getHost().port}")

    async def end(factory: GearmanServerFactory, port: Any, client: GearmanClient) -> None:
        await client.close()
        await maybeDeferred(port.stopListening)
        await factory.stop()
        await factory.stop()

    factory, port, client = await serve()
    handle = await client.submit_background("f", b"work")
    assert await factory.when_ready() == 0
    await end(factory, port, client)

    factory, port, client = await serve()
    assert (await client.status(handle)).is_known
    assert await factory.when_ready() == 1
    assert factory.engine.job_count == 1
    await end(factory, port, client)


class Packets(Protocol):
    """A peer that keeps what it is sent."""

    def __init__(self) -> None:
        self.packets: list[Packet] = []
        self._decoder = Decoder(RES)

    def dataReceived(self, data: bytes) -> None:
        self.packets += self._decoder.feed(data)


class Pump:
    """A server in memory, and peers over Twisted's ``iosim``."""

    def __init__(self, factory: GearmanServerFactory, clock: Clock) -> None:
        self.factory = factory
        self.clock = clock
        self.pumps: list[Any] = []

    def connect(self) -> Packets:
        """Connect a peer."""
        protocol, peer = self.factory.buildProtocol(None), Packets()
        # iosim has no way to abort.
        transport = iosim.FakeTransport(protocol, isServer=True)
        transport.abortConnection = transport.loseConnection  # type: ignore[method-assign]
        self.pumps.append(iosim.connect(protocol, transport, peer, iosim.FakeTransport(peer, isServer=False)))
        return peer

    def move(self) -> None:
        """Move all bytes."""
        for _ in range(3):
            self.clock.advance(0)
            for pump in self.pumps:
                pump.flush()


def test_without_a_port() -> None:
    """Over connections in memory it serves from the first one on, with nothing to be started."""
    clock = Clock()
    factory = GearmanServerFactory(
        reactor=clock, settings=default_settings(handle_prefix=b"H:x"), limits=ConnectionLimits()
    )
    pump = Pump(factory, clock)
    client, worker = pump.connect(), pump.connect()
    assert client.transport is not None
    assert worker.transport is not None
    client.transport.write(encode(REQ, P.SUBMIT_JOB, b"f", b"", b"work"))
    worker.transport.write(encode(REQ, P.CAN_DO, b"f") + encode(REQ, P.GRAB_JOB))
    pump.move()
    assert [packet.args for packet in worker.packets] == [[b"H:x:1", b"f", b"work"]]
    worker.transport.write(encode(REQ, P.WORK_COMPLETE, b"H:x:1", b"done"))
    pump.move()
    assert client.packets[-1] == Packet(P.WORK_COMPLETE, [b"H:x:1", b"done"])
    stopped: list[None] = []
    factory.stop().addCallback(stopped.append)
    pump.move()
    assert stopped == [None]
    assert clock.getDelayedCalls() == []


def test_packets_wait_for_stored_jobs() -> None:
    """Peers may connect while the store is read; their packets are handled when it is there."""
    clock, store = Clock(), LoadingStore()
    factory = GearmanServerFactory(store, reactor=clock)
    pump = Pump(factory, clock)
    peer = pump.connect()
    assert peer.transport is not None
    peer.transport.write(encode(REQ, P.CAN_DO, b"f") + encode(REQ, P.GRAB_JOB))
    pump.move()
    ready: Deferred[int] = factory.when_ready()
    assert not ready.called
    assert peer.packets == []
    store.add([])
    store.loaded.callback(0)
    pump.move()
    assert [packet.type for packet in peer.packets] == [P.NO_JOB]
