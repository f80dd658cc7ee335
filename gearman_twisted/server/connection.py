"""The server's connections: bytes in, engine, bytes out.

Everything that the engine wants done is done in ``GearmanServerFactory.perform``.
"""

from __future__ import annotations

import itertools
import typing
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from gearman_twisted.engine.jobserver import JobServer
from gearman_twisted.engine.outbox import Outbox, Shutdown
from gearman_twisted.runtime.transport import close, unsent_bytes
from gearman_twisted.server.settings import ConnectionLimits
from gearman_twisted.store.batch import GroupCommit
from gearman_twisted.store.contract import IJobStore
from gearman_twisted.wire.codec import Decoder
from gearman_twisted.wire.constants import REQ, PacketType
from gearman_twisted.wire.packet import Packet

# Chunks that are longer together are sent one by one rather than copied into one.
_JOIN_BYTES = 65536

# Answers to the text protocol that a turn makes for one peer before others have theirs.
_ANSWER_BYTES = 1 << 20

# Seconds until jobs are asked for again that the store could not give back.
_LOAD_RETRY = 1.0

# Seconds after which a commit that was just begun may be over.
_COMMIT_TIME = 0.05

_NEVER = float("inf")


class Peer(typing.Protocol):
    """A connection as the factory sees it, whatever is spoken on it.

    It reports to the factory: ``connected``, then ``received`` any number of times, then ``lost`` once.

    Attributes:
        number: what ``new_number`` gave it.
    """

    number: int

    @property
    def peer(self) -> str:
        """Where it comes from, as the text command ``workers`` shows it."""

    def send(self, chunks: list[bytes]) -> None:
        """Takes packets that the engine wrote for it: all those of one turn, cut anywhere."""

    def close(self) -> None:
        """Closes the connection once all that was sent is taken."""

    def abort(self) -> None:
        """Closes the connection at once."""

    def stop_reading(self) -> None:
        """Reports nothing as received until ``start_reading``."""

    def start_reading(self) -> None:
        """Reads again."""


class GearmanServerProtocol(Protocol):
    """A peer that speaks the Gearman protocol.

    Attributes:
        number: the peer's number, never given twice.
    """

    transport: Any  # ITransport and IPushProducer, with abortConnection: PromptServer, TLS or UNIX

    def __init__(self, server: GearmanServerFactory, number: int, limits: ConnectionLimits) -> None:
        self.factory = server
        self.number = number
        self._server = server
        self._decoder = Decoder(REQ, takes_text=True, max_packet_bytes=limits.max_packet_bytes)
        # Whether something of what was sent before may wait still.
        self._is_behind = False

    def connectionMade(self) -> None:
        """Makes the peer known to the engine."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)
        self._server.connected(self)

    def dataReceived(self, data: bytes) -> None:
        """Gives all packets of one read to the engine at once."""
        decoder = self._decoder
        packets = decoder.feed(data)
        if decoder.has_text:
            self._server.received_text(self, packets)
        elif packets:
            self._server.received(self, packets)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tells the engine that the peer is gone."""
        self._server.lost(self)

    @property
    def peer(self) -> str:
        """The peer's address, without its port."""
        return peer_host(self.transport)

    def send(self, chunks: list[bytes]) -> None:
        """Sends what the engine wants to be sent, in one piece if it is small."""
        transport = self.transport
        if self._is_behind and self._server.gives_up(self, unsent_bytes(transport)):
            return
        if len(chunks) == 1:
            self._is_behind = not transport.write(chunks[0])
        elif sum(map(len, chunks)) <= _JOIN_BYTES:
            self._is_behind = not transport.write(b"".join(chunks))
        else:
            self._is_behind = True
            for chunk in chunks:
                transport.write(chunk)

    def close(self) -> None:
        """Closes the connection once all that was sent is taken."""
        close(self.transport)

    def abort(self) -> None:
        """Closes the connection at once."""
        self.transport.abortConnection()

    def stop_reading(self) -> None:
        """Reads nothing until ``start_reading``."""
        self.transport.pauseProducing()

    def start_reading(self) -> None:
        """Reads again."""
        self.transport.resumeProducing()


def _needs_jobs(packet: Packet) -> bool:
    """Whether an answer has to wait until the stored jobs are back."""
    if packet.type == PacketType.TEXT_LINE:
        return packet.args[0].lstrip().lower().startswith(b"cancel")
    return packet.type not in (PacketType.ECHO_REQ, PacketType.BAD_STREAM)


def peer_host(transport: Any) -> str:
    """The address of a transport's peer, without its port; ``-`` where it has none."""
    address = transport.getPeer()
    return address.host if isinstance(address, IPv4Address | IPv6Address) else "-"


class GearmanServerFactory(Factory):
    """All connections of one job server, on whatever ports; carries out what the engine decides.

    Peers may connect at any time. What they ask before ``open`` waits for it, but for what needs no jobs:
    lines of text other than ``cancel``, and ECHO_REQ.

    Args:
        engine: the rules.
        store: where background jobs are saved, if it is durable.
        clock: the time, and the one timer.
        limits: what one peer may make us keep.

    Attributes:
        limits: the same.
    """

    log = Logger()
    noisy = False

    def __init__(
        self, engine: JobServer, store: IJobStore, clock: IReactorTime, limits: ConnectionLimits
    ) -> None:
        self.engine = engine
        # For the owner to set: what an operator's wish to end the server does, and what is done each time
        # when no job is left.
        self.on_shutdown: Callable[[Shutdown], object] = lambda _how: None
        self.on_idle: Callable[[], object] | None = None
        self._clock = clock
        self._store = store
        self.limits = limits
        self._commits = GroupCommit(
            store, self._saved, self._save_failed, clock=clock, patience=engine.settings.save_timeout
        )
        self._numbers = itertools.count(1)
        self._peers: dict[int, Peer] = {}
        self._paused: set[Peer] = set()
        self._postponed: dict[int, list[Packet]] = {}
        self._writes: dict[int, list[bytes]] = {}
        self._is_in_turn = False
        self._closes: list[int] = []
        # What is to be forgotten once the store has been read.
        self._forgets: list[int] = []
        self._is_loading = True
        self._is_open = False
        self._is_closing = False
        self._all_gone: list[Deferred[None]] = []
        self._timer: IDelayedCall | None = None
        self._timer_at = _NEVER

    def buildProtocol(self, addr: IAddress | None) -> GearmanServerProtocol:
        """A protocol for a peer that has connected."""
        return GearmanServerProtocol(self, self.new_number(), self.limits)

    def new_number(self) -> int:
        """A number for a peer that is about to connect."""
        return next(self._numbers)

    def open(self) -> None:
        """The stored jobs are back: begins to serve."""
        self._is_loading = False
        self._is_open = True
        self._commits.add([], self._forgets)
        for number in list(self._postponed):
            self._go_on(self._peers[number])
        self._set_timer()

    async def close(self, patience: float) -> None:
        """Stops reading, waits for what is being saved, answers for it and closes all connections.

        Jobs that are running stay in the store: the next server runs them again.

        Args:
            patience: seconds that peers have to take what was sent to them.
        """
        self._is_loading = False
        self._is_open = False
        for peer in self._peers.values():
            peer.stop_reading()
        await self._commits.flush()
        self._flush()
        self._is_closing = True
        self._set_timer()
        for peer in list(self._peers.values()):
            peer.close()
        if self._peers:
            gone: Deferred[None] = Deferred()
            self._all_gone.append(gone)
            abort = self._clock.callLater(patience, self._abort_all)
            await gone
            if abort.active():
                abort.cancel()

    def _abort_all(self) -> None:
        for peer in list(self._peers.values()):
            peer.abort()

    # What the peers report.

    def connected(self, peer: Peer) -> None:
        """A peer has connected."""
        self._peers[peer.number] = peer
        self.perform(self.engine.connect(peer.number, peer.peer, self._clock.seconds()))
        if not (self._is_open or self._is_loading):
            peer.stop_reading()

    def received(self, peer: Peer, packets: list[Packet]) -> None:
        """A peer has sent packets, and no text so far."""
        if self._is_loading or peer.number in self._postponed:
            self.received_text(peer, packets)
        else:
            self._receive(peer, packets)

    def received_text(self, peer: Peer, packets: list[Packet]) -> None:
        """A peer has sent lines of text, or what has to wait."""
        if peer.number in self._postponed:
            self._postponed[peer.number] += packets
        elif self._is_loading:
            self._receive_while_loading(peer, packets)
        else:
            self._receive_text(peer, packets)

    def _receive_while_loading(self, peer: Peer, packets: list[Packet]) -> None:
        """Answers what needs no jobs, up to the first packet that does."""
        count = next((i for i, packet in enumerate(packets) if _needs_jobs(packet)), len(packets))
        self._receive_text(peer, packets[:count])
        if count < len(packets):
            self._postponed.setdefault(peer.number, []).extend(packets[count:])
            peer.stop_reading()

    def _receive_text(self, peer: Peer, packets: list[Packet]) -> None:
        """Answers lines of text, whose answers may be long lists: no more in a turn than a peer takes in."""
        for position, packet in enumerate(packets, start=1):
            self._receive(peer, [packet])
            answers = self._writes.get(peer.number, ())
            if position < len(packets) and sum(map(len, answers)) > _ANSWER_BYTES:
                self._postponed[peer.number] = packets[position:]
                peer.stop_reading()
                # Behind the flush, which gives up a peer that does not read.
                self._clock.callLater(0, self._go_on, peer)
                return

    def _go_on(self, peer: Peer) -> None:
        packets = self._postponed.pop(peer.number, None)
        if packets is not None and (self._is_open or self._is_loading):
            if peer not in self._paused:
                peer.start_reading()
            self.received_text(peer, packets)

    def _receive(self, peer: Peer, packets: list[Packet]) -> None:
        out = self.engine.receive(peer.number, packets, self._clock.seconds())
        self.perform(out)
        if out.saves and self._is_flooding(peer, self.limits.max_unsaved_jobs):
            # Back-pressure, far above what a commit takes: see ConnectionLimits.
            self._paused.add(peer)
            peer.stop_reading()

    def gives_up(self, peer: Peer, unsent: int) -> bool:
        """Whether so much output waits for a peer that it is closed rather than sent more.

        Args:
            peer: it has aborted its connection when this returns True.
            unsent: the bytes that wait.
        """
        if unsent <= self.limits.max_output_bytes:
            return False
        self.log.warn(
            "Closed the connection of {peer}, which does not read: {unsent} bytes waited for it",
            peer=peer.peer,
            unsent=unsent,
        )
        peer.abort()
        return True

    def lost(self, peer: Peer) -> None:
        """A peer is gone."""
        del self._peers[peer.number]
        self._paused.discard(peer)
        self._postponed.pop(peer.number, None)
        if not self._is_closing:
            self.perform(self.engine.disconnect(peer.number, self._clock.seconds()))
        elif not self._peers:
            while self._all_gone:
                self._all_gone.pop().callback(None)

    def _is_flooding(self, peer: Peer, limit: float) -> bool:
        return peer.number in self._peers and self.engine.held(peer.number) > limit

    # What the engine wants.

    def begin_turn(self) -> None:
        """Several peers may be about to report; ``end_turn`` is called when they have."""
        self._is_in_turn = True

    def end_turn(self) -> None:
        """Answers all of them."""
        self._is_in_turn = False
        if self._writes or self._closes:
            self._flush()

    def perform(self, out: Outbox) -> None:
        """Does what the engine says should be done; what it writes is sent at the end of the turn.

        Everything that one turn of the reactor brings about for a peer then takes one system call.
        """
        if out.writes or out.closes:
            writes = self._writes
            if not (self._is_in_turn or writes or self._closes):
                self._clock.callLater(0, self._flush)
            for number, chunks in out.writes.items():
                if number in writes:
                    writes[number] += chunks
                else:
                    writes[number] = chunks
            self._closes += out.closes
        if out.saves or out.forgets:
            if self._is_loading:
                self._forgets += out.forgets
            else:
                self._commits.add(out.saves, out.forgets)
        for number, ids in out.loads:
            self._load(number, ids)
        if self.engine.due_by < self._timer_at:
            self._set_timer()
        if out.accepted is not None:
            self._log_accepted(out.accepted)
        if out.shutdown is not None:
            self.on_shutdown(out.shutdown)
        if self.on_idle is not None and not self.engine.job_count:
            self.on_idle()

    def _log_accepted(self, submissions: list[tuple[bytes, bytes, bytes]]) -> None:
        # COMPAT: for those who take gearmand's log apart.
        for submission in submissions:
            names = (name.decode("utf-8", "replace").replace("\n", "?") for name in submission)
            self.log.info("accepted,{names}", names=",".join(names), gearmand_level="NOTICE")

    def _flush(self) -> None:
        writes, self._writes = self._writes, {}
        closes, self._closes = self._closes, []
        for number, chunks in writes.items():
            peer = self._peers.get(number)
            if peer is not None:
                try:
                    peer.send(chunks)
                except Exception:  # noqa: BLE001 - one connection's fault must not keep the others waiting
                    self.log.failure("Gives up the connection of {peer}", peer=peer.peer)
                    peer.abort()
        for number in closes:
            peer = self._peers.get(number)
            if peer is not None:
                peer.close()

    def _saved(self, ids: Sequence[int]) -> None:
        self.perform(self.engine.saved(ids, self._clock.seconds()))
        self._resume()

    def _save_failed(self, ids: Sequence[int], reason: str) -> None:
        self.perform(self.engine.save_failed(ids, reason, self._clock.seconds()))
        self._resume()

    def _load(self, number: int, ids: Sequence[int]) -> None:
        """Reads jobs that the engine wants back; for as long as it takes, since workers wait for them."""
        if not (self._is_open or self._is_loading):
            return
        if not self._commits.has(ids):
            self._clock.callLater(_COMMIT_TIME, self._load, number, ids)
            return
        self._store.load(ids).addCallbacks(
            lambda jobs: self.perform(self.engine.loaded(number, jobs, self._clock.seconds())),
            self._load_failed,
            errbackArgs=(number, ids),
        ).addErrback(lambda failure: self.log.failure("Bug in reading jobs back", failure))

    def _load_failed(self, failure: Failure, number: int, ids: Sequence[int]) -> None:
        self.log.error(
            "{count} jobs cannot be read back, and are tried again: {reason}",
            count=len(ids),
            reason=failure.getErrorMessage(),
        )
        self._clock.callLater(_LOAD_RETRY, self._load, number, ids)

    def _resume(self) -> None:
        """Reads again from the peers whose jobs have been saved."""
        for peer in list(self._paused):
            if not self._is_flooding(peer, self.limits.max_unsaved_jobs / 2):
                self._paused.discard(peer)
                if self._is_open:
                    peer.start_reading()

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
