"""A job server in memory with a store that the test commits by hand, and peers that speak packets to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from gearman_twisted.engine.jobserver import JobServer
from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.server.connection import GearmanServerProtocol, PeersFactory
from gearman_twisted.server.host import Host
from gearman_twisted.server.peers import Peers
from gearman_twisted.server.settings import ConnectionLimits
from gearman_twisted.store.contract import IJobStore, StoredJob
from gearman_twisted.store.memory import MemoryStore
from gearman_twisted.wire.codec import Decoder, encode
from gearman_twisted.wire.constants import REQ, RES, PacketType
from gearman_twisted.wire.packet import Packet


@implementer(IJobStore)
class SlowStore:
    """A store whose commits end when the test says so."""

    durable = True
    sync_interval = 0.0
    max_workload_bytes: int | None = None
    description = "slow"

    def __init__(self) -> None:
        self.commits: list[tuple[list[StoredJob], list[int], Deferred[None]]] = []

    def check(self) -> None:
        """Always fine."""

    def open(self) -> Deferred[None]:
        """Always open."""
        return succeed(None)

    def replay(self, add: Callable[[Sequence[StoredJob]], None]) -> Deferred[int]:
        """Empty."""
        return succeed(0)

    def load(self, ids: Sequence[int]) -> Deferred[list[StoredJob]]:
        """Empty."""
        return succeed([])

    def apply(self, saves: Sequence[StoredJob], forgets: Sequence[int]) -> Deferred[None]:
        """Wait for ``finish``."""
        done: Deferred[None] = Deferred()
        self.commits.append((list(saves), list(forgets), done))
        return done

    def close(self) -> Deferred[None]:
        """Always closed."""
        return succeed(None)

    def finish(self, error: Exception | None = None) -> None:
        """End the commit that runs."""
        done = self.commits[-1][2]
        if error is None:
            done.callback(None)
        else:
            done.errback(error)


class LoadingStore(SlowStore):
    """A store whose jobs come when the test says so.

    Attributes:
        add: takes jobs.
        loaded: to be fired when that were all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loaded: Deferred[int] = Deferred()

    def replay(self, add: Callable[[Sequence[StoredJob]], None]) -> Deferred[int]:
        self.add = add
        return self.loaded


class Peer:
    """A connection to a server, in memory."""

    def __init__(self, factory: Factory, clock: Clock) -> None:
        self.clock = clock
        protocol = factory.buildProtocol(None)
        assert isinstance(protocol, GearmanServerProtocol)
        self.protocol = protocol
        self.transport = StringTransport()
        self.decoder = Decoder(RES)
        self.protocol.makeConnection(self.transport)

    def send(self, type_: PacketType, *args: bytes) -> None:
        """The peer sends a packet."""
        self.protocol.dataReceived(encode(REQ, type_, *args))

    def received(self) -> list[Packet]:
        """What the peer got since the last time, at the end of this turn."""
        self.clock.advance(0)
        data = self.transport.value()
        self.transport.clear()
        return self.decoder.feed(data)

    def lose(self) -> None:
        """The connection is lost."""
        self.protocol.connectionLost(Failure(ConnectionDone()))


class ServerRig:
    """A job server in memory, which has started unless its store takes time.

    Args:
        store: where jobs are kept; in memory if None.
        settings: how jobs and peers are treated.
        limits: what one peer may make the server keep.
        clock: the time; one that starts at 1,000,000 if None.

    Attributes:
        clock: the same.
        engine: the rules; its first handle ends with 1.
        host: the engine with its store.
        peers: who is connected.
        factory: makes connections.
    """

    def __init__(
        self,
        store: IJobStore | None = None,
        *,
        settings: EngineSettings | None = None,
        limits: ConnectionLimits | None = None,
        clock: Clock | None = None,
    ) -> None:
        if clock is None:
            clock = Clock()
            clock.advance(1_000_000)
        store = store or MemoryStore()
        self.clock = clock
        self.engine = JobServer(settings or EngineSettings(), durable=store.durable)
        self.host = Host(self.engine, store, clock)
        self.peers = Peers(self.host, limits)
        self.factory = PeersFactory(self.peers)
        self.host.start()

    def connect(self) -> Peer:
        """Connect a peer."""
        return Peer(self.factory, self.clock)

    def stop(self, patience: float = 5.0) -> Deferred[None]:
        """Stop it."""
        return Deferred.fromCoroutine(self.peers.stop(patience))
