"""Connections that speak the Gearman protocol, and the factory that makes them."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import (
    IAddress,
    IHandshakeListener,
    INegotiated,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from gearman_twisted.engine.jobserver import JobServer
from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.engine.usage import CONNECTION_BYTES
from gearman_twisted.runtime.transport import close, sender, unsent_bytes
from gearman_twisted.server.peers import Peers, make_peers
from gearman_twisted.server.settings import ConnectionLimits
from gearman_twisted.store.contract import IJobStore
from gearman_twisted.store.memory import MemoryStore
from gearman_twisted.wire.codec import Decoder
from gearman_twisted.wire.constants import REQ
from gearman_twisted.wire.pieces import joined

# What TLS takes for a connection beside the rest of it: 26,000 bytes together, about.
_TLS_BYTES = 26_000 - CONNECTION_BYTES

# Chunks that are longer together are sent one by one rather than copied into one.
_JOIN_BYTES = 65536


@implementer(IHandshakeListener)
class GearmanServerProtocol(Protocol):
    """A connection that speaks the Gearman protocol.

    Args:
        peers: all connections of the server.

    Attributes:
        number: the connection's number, never given twice.
    """

    transport: Any  # ITransport and IPushProducer, with abortConnection: PromptServer, TLS or UNIX

    def __init__(self, peers: Peers) -> None:
        self.number = peers.new_number()
        self._peers = peers
        self._decoder = Decoder(REQ, takes_text=True, max_packet_bytes=peers.limits.max_packet_bytes)
        # Whether something of what was sent before may wait still, and the size of a packet beyond the limit
        # among it: one such packet is the answer that the peer has asked for.
        self._is_behind = False
        self._exempt_bytes = 0
        # What is kept of a packet that is not complete, and of output when that was last counted.
        self._pending = 0
        self._unsent = 0
        self._tls_bytes = 0

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)
        if INegotiated.providedBy(self.transport):
            self._peers.handshakes.begin(self)
        self._tls_bytes = tls_bytes(self.transport)
        self._peers.connected(self)
        if self._tls_bytes:
            self._peers.keeps(self)

    def handshakeCompleted(self) -> None:
        """TLS is spoken; in the clear this is never called, and a peer may be silent as long as it likes."""
        self._peers.handshakes.end(self)

    def dataReceived(self, data: bytes) -> None:
        decoder = self._decoder
        packets = decoder.feed(data)
        if decoder.buffered_bytes != self._pending:
            self._pending = decoder.buffered_bytes
            self._peers.keeps(self)
        if decoder.has_text:
            self._peers.received_text(self, packets)
        elif packets:
            self._peers.received(self, packets)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._peers.handshakes.end(self)
        self._peers.lost(self)

    # What ``Peers`` calls, see ``ConnectedPeer`` there.

    @property
    def peer(self) -> str:
        """The peer's address, without its port."""
        return peer_host(self.transport)

    @property
    def kept_bytes(self) -> int:
        """What it keeps of a packet that is not complete, of output that was not sent, and of TLS."""
        return self._tls_bytes + self._pending + unsent_bytes(self.transport)

    def send(self, chunks: list[bytes]) -> None:
        """Send what the engine wrote, in one piece if it is small."""
        transport = self.transport
        was_behind = self._is_behind
        if was_behind and self._is_too_slow():
            return
        if len(chunks) == 1:
            self._is_behind = not transport.write(chunks[0])
        elif sum(map(len, chunks)) <= _JOIN_BYTES:
            self._is_behind = not transport.write(b"".join(chunks))
        else:
            write = sender(transport)
            for piece in joined(chunks):
                # Here, as many copies of one packet take no memory until they are joined to be sent.
                if self._is_behind and self._is_too_slow():
                    return
                self._is_behind = not write(piece)
                self._exempt(piece)
        if self._is_behind or was_behind:
            unsent = unsent_bytes(transport)
            if unsent or self._unsent:
                self._unsent = unsent
                self._exempt(chunks[0])
                self._peers.keeps(self)

    def _exempt(self, piece: bytes) -> None:
        if self._is_behind and not self._exempt_bytes and len(piece) > self._peers.limits.max_output_bytes:
            self._exempt_bytes = len(piece)

    def _is_too_slow(self) -> bool:
        unsent = unsent_bytes(self.transport)
        if not unsent:
            self._exempt_bytes = 0
            return False
        return self._peers.too_slow(self, unsent - self._exempt_bytes)

    def close(self) -> None:
        """Close the connection once all that was sent is taken."""
        close(self.transport)

    def abort(self) -> None:
        """Close the connection at once."""
        self.transport.abortConnection()

    def stop_reading(self) -> None:
        """Read nothing until ``start_reading``."""
        self.transport.pauseProducing()

    def start_reading(self) -> None:
        """Read again."""
        self.transport.resumeProducing()


def peer_host(transport: Any) -> str:
    """Return the address of a transport's peer, without its port; ``-`` where it has none."""
    address = transport.getPeer()
    return address.host if isinstance(address, IPv4Address | IPv6Address) else "-"


def tls_bytes(transport: Any) -> int:
    """Return what a transport takes beside others of its kind, because it speaks TLS."""
    return _TLS_BYTES if INegotiated.providedBy(transport) else 0


class PeersFactory(Factory):
    """Makes the Gearman connections of a server that is started and stopped by others.

    Args:
        peers: all connections of the server.
    """

    noisy = False

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def buildProtocol(self, addr: IAddress | None) -> GearmanServerProtocol:
        return GearmanServerProtocol(self._peers)


class GearmanServerFactory(PeersFactory):
    """A job server as a factory, for any endpoint.

    Such as::

        factory = GearmanServerFactory()
        await TCP4ServerEndpoint(reactor, 4730, interface="127.0.0.1").listen(factory)
        ...
        await factory.stop()

    It starts when it is first listened with, or makes its first connection. Peers may connect at once;
    packets that need jobs wait until the stored jobs are back. Several endpoints may listen with it; the end
    of a port leaves the connections that it accepted. ``JobServerService`` besides takes care of ports,
    is started and stopped by its parent, and reads many connections faster.

    Args:
        store: where background jobs are kept, such as ``open_store("sqlite:jobs.db", reactor)``; in memory
            if None.
        settings: how jobs and peers are treated; ``default_settings()`` if None.
        limits: what one peer may make the server keep; the defaults if None.
        reactor: the time; the installed reactor if None.
    """

    def __init__(
        self,
        store: IJobStore | None = None,
        *,
        settings: EngineSettings | None = None,
        limits: ConnectionLimits | None = None,
        reactor: IReactorTime | None = None,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor as installed

            reactor = installed
        super().__init__(make_peers(store or MemoryStore(), reactor, settings, limits))

    @property
    def engine(self) -> JobServer:
        """What the server knows of jobs, functions and connections."""
        return self._peers.host.engine

    def when_ready(self) -> Deferred[int]:
        """Wait until the stored jobs are back and all packets are handled.

        Returns:
            A new Deferred that fires with how many jobs the store had, or fails with ``StoreError``, after
            which the factory cannot be used. Cancelling it only stops the waiting.
        """
        return self._peers.host.when_ready()

    def stop(self) -> Deferred[None]:
        """Finish what is being saved, close all connections, and then the store.

        Ports are not this factory's: stop listening first.

        Returns:
            A Deferred that fires with None when nothing is left.
        """
        return ensureDeferred(self._peers.stop())

    def startFactory(self) -> None:
        """Start the server, if it was not started before; called when a port begins to listen."""
        if not self._peers.host.is_started:
            self._peers.host.start()

    def buildProtocol(self, addr: IAddress | None) -> GearmanServerProtocol:
        self.startFactory()
        return super().buildProtocol(addr)
