"""The server's connections: bytes in, engine, bytes out.

Everything that the engine wants done is done in ``GearmanServerFactory.perform``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from gearman_twisted.config import ConnectionLimits
from gearman_twisted.engine.jobserver import JobServer
from gearman_twisted.engine.outbox import Outbox
from gearman_twisted.interfaces import IJobStore
from gearman_twisted.store.batch import GroupCommit
from gearman_twisted.transport import unsent_bytes
from gearman_twisted.wire.codec import Decoder
from gearman_twisted.wire.constants import REQ
from gearman_twisted.wire.packet import Packet

# Chunks that are longer together are sent one by one rather than copied into one.
_JOIN_BYTES = 65536

_NEVER = float("inf")


class GearmanServerProtocol(Protocol):
    """One peer of the job server.

    Attributes:
        number: the peer's number, never given twice.
    """

    transport: Any  # ITransport and IPushProducer, with abortConnection: TCP, TLS or UNIX

    def __init__(self, server: GearmanServerFactory, number: int, limits: ConnectionLimits) -> None:
        self.factory = server
        self.number = number
        self._server = server
        self._limits = limits
        self._decoder = Decoder(REQ, takes_text=True, max_packet_bytes=limits.max_packet_bytes)

    def connectionMade(self) -> None:
        """Makes the peer known to the engine."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)
        self._server.connected(self)

    def dataReceived(self, data: bytes) -> None:
        """Gives all packets of one read to the engine at once."""
        packets = self._decoder.feed(data)
        if packets:
            self._server.received(self, packets)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tells the engine that the peer is gone."""
        self._server.lost(self)

    @property
    def peer(self) -> str:
        """The peer's address, without its port."""
        address = self.transport.getPeer()
        return address.host if isinstance(address, IPv4Address | IPv6Address) else "-"

    def send(self, chunks: list[bytes]) -> None:
        """Sends what the engine wants to be sent, in one piece if it is small."""
        transport = self.transport
        if unsent_bytes(transport) > self._limits.max_output_bytes:
            self._server.log.warn(
                "Closed the connection of {peer}, which does not read: {unsent} bytes waited for it",
                peer=self.peer,
                unsent=unsent_bytes(transport),
            )
            transport.abortConnection()
        elif len(chunks) == 1:
            transport.write(chunks[0])
        elif sum(map(len, chunks)) <= _JOIN_BYTES:
            transport.write(b"".join(chunks))
        else:
            for chunk in chunks:
                transport.write(chunk)


class GearmanServerFactory(Factory):
    """All connections of one job server, on whatever ports; carries out what the engine decides.

    Peers may connect at any time, but are not read before ``open``.

    Args:
        engine: the rules.
        store: where background jobs are saved, if it is durable.
        clock: the time, and the one timer.
        limits: what one peer may make us keep.
    """

    log = Logger()
    noisy = False

    def __init__(
        self, engine: JobServer, store: IJobStore, clock: IReactorTime, limits: ConnectionLimits
    ) -> None:
        self.engine = engine
        self._clock = clock
        self._limits = limits
        self._commits = GroupCommit(store, self._saved, self._save_failed, clock=clock)
        self._numbers = itertools.count(1)
        self._protocols: dict[int, GearmanServerProtocol] = {}
        self._paused: set[GearmanServerProtocol] = set()
        self._writes: dict[int, list[bytes]] = {}
        self._closes: list[int] = []
        self._is_open = False
        self._is_closing = False
        self._all_gone: list[Deferred[None]] = []
        self._timer: IDelayedCall | None = None
        self._timer_at = _NEVER

    def buildProtocol(self, addr: IAddress | None) -> GearmanServerProtocol:
        """A protocol for a peer that has connected."""
        return GearmanServerProtocol(self, next(self._numbers), self._limits)

    def open(self) -> None:
        """Begins to read from the peers."""
        self._is_open = True
        for protocol in self._protocols.values():
            protocol.transport.resumeProducing()
        self._set_timer()

    async def close(self, patience: float) -> None:
        """Stops reading, waits for what is being saved, answers for it and closes all connections.

        Jobs that are running stay in the store: the next server runs them again.

        Args:
            patience: seconds that peers have to take what was sent to them.
        """
        self._is_open = False
        for protocol in self._protocols.values():
            protocol.transport.pauseProducing()
        await self._commits.flush()
        self._flush()
        self._is_closing = True
        self._set_timer()
        for protocol in list(self._protocols.values()):
            protocol.transport.loseConnection()
        if self._protocols:
            gone: Deferred[None] = Deferred()
            self._all_gone.append(gone)
            abort = self._clock.callLater(patience, self._abort_all)
            await gone
            if abort.active():
                abort.cancel()

    def _abort_all(self) -> None:
        for protocol in list(self._protocols.values()):
            protocol.transport.abortConnection()

    # What the protocols report.

    def connected(self, protocol: GearmanServerProtocol) -> None:
        """A peer has connected."""
        self._protocols[protocol.number] = protocol
        self.perform(self.engine.connect(protocol.number, protocol.peer, self._clock.seconds()))
        if not self._is_open:
            protocol.transport.pauseProducing()

    def received(self, protocol: GearmanServerProtocol, packets: list[Packet]) -> None:
        """A peer has sent packets."""
        out = self.engine.receive(protocol.number, packets, self._clock.seconds())
        self.perform(out)
        if out.saves and self._is_flooding(protocol, self._limits.max_unsaved_jobs):
            # Back-pressure, far above what a commit takes: see ConnectionLimits.
            self._paused.add(protocol)
            protocol.transport.pauseProducing()

    def lost(self, protocol: GearmanServerProtocol) -> None:
        """A peer is gone."""
        del self._protocols[protocol.number]
        self._paused.discard(protocol)
        if not self._is_closing:
            self.perform(self.engine.disconnect(protocol.number, self._clock.seconds()))
        elif not self._protocols:
            while self._all_gone:
                self._all_gone.pop().callback(None)

    def _is_flooding(self, protocol: GearmanServerProtocol, limit: float) -> bool:
        return protocol.number in self._protocols and self.engine.held(protocol.number) > limit

    # What the engine wants.

    def perform(self, out: Outbox) -> None:
        """Does what the engine says should be done; what it writes is sent at the end of the turn.

        Everything that one turn of the reactor brings about for a peer then takes one system call.
        """
        if out.writes or out.closes:
            if not self._writes and not self._closes:
                self._clock.callLater(0, self._flush)
            writes = self._writes
            for number, chunks in out.writes.items():
                if number in writes:
                    writes[number] += chunks
                else:
                    writes[number] = chunks
            self._closes += out.closes
        if out.saves or out.forgets:
            self._commits.add(out.saves, out.forgets)
        if self.engine.next_deadline() < self._timer_at:
            self._set_timer()

    def _flush(self) -> None:
        writes, self._writes = self._writes, {}
        closes, self._closes = self._closes, []
        for number, chunks in writes.items():
            protocol = self._protocols.get(number)
            if protocol is not None:
                protocol.send(chunks)
        for number in closes:
            protocol = self._protocols.get(number)
            if protocol is not None:
                protocol.transport.loseConnection()

    def _saved(self, ids: Sequence[int]) -> None:
        self.perform(self.engine.saved(ids, self._clock.seconds()))
        self._resume()

    def _save_failed(self, ids: Sequence[int], reason: str) -> None:
        self.perform(self.engine.save_failed(ids, reason, self._clock.seconds()))
        self._resume()

    def _resume(self) -> None:
        """Reads again from the peers whose jobs have been saved."""
        for protocol in list(self._paused):
            if not self._is_flooding(protocol, self._limits.max_unsaved_jobs / 2):
                self._paused.discard(protocol)
                if self._is_open:
                    protocol.transport.resumeProducing()

    def _set_timer(self) -> None:
        """Sets the timer for what is due next; one that is set too early finds nothing and comes back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = self.engine.next_deadline() if self._is_open else _NEVER
        if self._timer_at < _NEVER:
            delay = max(0.0, self._timer_at - self._clock.seconds())
            self._timer = self._clock.callLater(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._timer_at = _NEVER
        self.perform(self.engine.tick(self._clock.seconds()))
        self._set_timer()
