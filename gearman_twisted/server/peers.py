"""Who is connected, whatever is spoken on the connection: Gearman's protocol or HTTP.

Between the connections and the ``Host``: gathers the output of a turn, holds packets back while stored jobs
are read, shares each turn of the reactor fairly, and slows down or closes peers that ask for too much.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from gearman_twisted.engine.jobserver import JobServer
from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.runtime.clocks import wall_clock
from gearman_twisted.server.budget import Budget
from gearman_twisted.server.connected import ConnectedPeer
from gearman_twisted.server.host import Host
from gearman_twisted.server.settings import ConnectionLimits, default_settings
from gearman_twisted.server.unfinished import Unfinished
from gearman_twisted.store.contract import IJobStore
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet

# What is handled of one peer in a turn of the reactor before others have theirs: so many packets, and as many
# bytes of answers to lines of text, which may be long lists.
_TURN_PACKETS = 512
_TURN_ANSWER_BYTES = 1 << 20

# Seconds of a turn after which each peer has no more than one slice of packets.
_TURN_SECONDS = 0.01

# Packets that the engine handles between two looks at the clock.
_SLICE = 64

# What a packet takes beside its data, once it is decoded.
_PACKET_BYTES = 200

# Seconds that a TLS handshake may take, and how many may be under way: more than the largest farm that
# reconnects at once.
_HANDSHAKE_SECONDS = 30.0
_MOST_HANDSHAKES = 5_000

# Seconds that peers have, when the server stops, to take what was sent to them.
_CLOSE_PATIENCE = 5.0


class Peers:
    """All connections of one job server, on whatever ports.

    Peers may connect before the host has started. Packets that need jobs wait until the stored jobs are back;
    ECHO_REQ, and lines of text other than ``cancel``, are answered before.

    Args:
        host: the server.
        limits: what one peer may make the server keep.

    Attributes:
        host: the same.
        limits: the same.
        handshakes: the peers that have not finished their TLS handshakes.
    """

    log = Logger()

    def __init__(self, host: Host, limits: ConnectionLimits | None = None) -> None:
        self.host = host
        self.limits = limits or ConnectionLimits()
        host.output = self
        self._clock = host.clock
        self.handshakes = Unfinished(host.clock, "TLS handshake", _HANDSHAKE_SECONDS, _MOST_HANDSHAKES)
        self._numbers = itertools.count(1)
        self._peers: dict[int, ConnectedPeer] = {}
        # Until the stored jobs are back.
        self._is_loading = True
        # Peers with too many unsaved jobs.
        self._paused: set[ConnectedPeer] = set()
        # Packets to be handled later, and what they take, by the peer's number.
        self._postponed: dict[int, list[Packet]] = {}
        self._postponed_bytes: dict[int, int] = {}
        self._budget = Budget(host.engine, host.clock, self._peers, self._kept_by, self._read_again)
        # Those whose packets may be handled as soon as there is time, the longest waiting first.
        self._waiting: deque[ConnectedPeer] = deque()
        # Those that are gone, and what they had in the engine is still to be ended.
        self._leaving: deque[ConnectedPeer] = deque()
        # The output of this turn.
        self._writes: dict[int, list[bytes]] = {}
        self._closes: list[int] = []
        self._is_in_turn = False
        # When the time of this turn is up; None if nobody has asked yet.
        self._turn_ends: float | None = None
        self._is_closing = False
        self._all_gone: list[Deferred[None]] = []

    def __len__(self) -> int:
        """Return how many are connected."""
        return len(self._peers)

    def new_number(self) -> int:
        """Return a number for a peer that is about to connect."""
        return next(self._numbers)

    async def stop(self, patience: float = _CLOSE_PATIENCE) -> None:
        """Stop reading, finish and answer what is being saved, close all connections, and then the store.

        Running jobs stay in the store: the next server runs them again.

        Args:
            patience: seconds that peers have to take what was sent to them.
        """
        for peer in self._peers.values():
            peer.stop_reading()
        await self.host.finish()
        self._flush()
        self._is_closing = True
        # What those that are gone had ends with the engine, and stored jobs are in the store.
        self._leaving.clear()
        self._waiting.clear()
        for number in list(self._peers):
            self._close(number)
        if self._peers:
            gone: Deferred[None] = Deferred()
            self._all_gone.append(gone)
            abort = self._clock.callLater(patience, self._abort_all)
            await gone
            if abort.active():
                abort.cancel()
        self._budget.stop()
        await self.host.store.close()

    def _abort_all(self) -> None:
        for peer in list(self._peers.values()):
            peer.abort()

    # What peers report.

    def connected(self, peer: ConnectedPeer) -> None:
        """Take in a peer."""
        self._peers[peer.number] = peer
        try:
            self.host.connect(peer.number, peer.peer)
        except Exception:  # noqa: BLE001 - it costs this peer alone
            self._fault(peer.number)
        if self.host.is_stopping and peer.number in self._peers:
            peer.stop_reading()

    def received(self, peer: ConnectedPeer, packets: list[Packet]) -> None:
        """Handle packets of a peer, now or later."""
        number = peer.number
        if number in self._postponed:
            self._postpone(peer, packets)
        elif self._is_loading or len(packets) > _SLICE:
            self.received_text(peer, packets)
        elif number in self._peers:  # or else it was aborted, and the engine may know it still
            try:
                if self.host.receive(number, packets):
                    self._limit_unsaved(peer)
            except Exception:  # noqa: BLE001 - it costs this peer alone
                self._fault(peer.number)

    def received_text(self, peer: ConnectedPeer, packets: list[Packet]) -> None:
        """Handle packets with lines of text among them, now or later."""
        if peer.number in self._postponed:
            self._postpone(peer, packets)
            return
        if peer.number not in self._peers:
            return
        if self._is_over():
            # Not even one: a line may ask for a long list.
            handled = 0
            self._wait(peer)
        else:
            began = self._clock.seconds()
            handled = self._handle(peer, packets)
            self._note_time(began)
        if peer.number in self._peers and (handled < len(packets) or self._has_more(peer)):
            self._postpone(peer, packets[handled:])
            peer.stop_reading()

    def keeps(self, peer: ConnectedPeer) -> None:
        """Count what a peer keeps, after that has changed."""
        self._budget.keeps(peer)

    def is_beyond_memory(self, peer: ConnectedPeer) -> bool:
        """Return whether a peer is not read because the memory is used up."""
        return self._budget.is_paused(peer)

    def lost(self, peer: ConnectedPeer) -> None:
        """Forget a peer. Idempotent."""
        if self._peers.pop(peer.number, None) is None:
            return
        self._paused.discard(peer)
        self._postponed.pop(peer.number, None)
        self._postponed_bytes.pop(peer.number, None)
        self._budget.forget(peer)
        if not self._is_closing:
            self._leave(peer)
        elif not self._peers:
            while self._all_gone:
                self._all_gone.pop().callback(None)

    def _leave(self, peer: ConnectedPeer) -> None:
        """End what a peer had in the engine: at once, or in a later turn if this one is over."""
        if self._is_over():
            self._leaving.append(peer)
        else:
            began = self._clock.seconds()
            self._disconnect(peer)
            self._note_time(began)

    def _disconnect(self, peer: ConnectedPeer) -> None:
        """End what a peer had in the engine."""
        try:
            self.host.disconnect(peer.number)
        except Exception:  # noqa: BLE001 - the connection has to end all the same
            self.log.failure("Bug in disconnecting {peer}", peer=peer.peer)

    def too_slow(self, peer: ConnectedPeer, unsent: int) -> bool:
        """Abort a peer for which too much output waits.

        Args:
            peer: the peer.
            unsent: the bytes that wait.

        Returns:
            Whether it was aborted.
        """
        if unsent <= self.limits.max_output_bytes:
            return False
        self.log.warn("closed {peer}: not reading, {unsent} bytes unsent", peer=peer.peer, unsent=unsent)
        peer.abort()
        return True

    def _kept_by(self, peer: ConnectedPeer) -> int:
        return peer.kept_bytes + self._postponed_bytes.get(peer.number, 0)

    def _read_again(self, peer: ConnectedPeer) -> None:
        """Read a peer again, unless something else keeps it from being read."""
        if not (
            peer in self._paused
            or peer.number in self._postponed
            or self._budget.is_paused(peer)
            or self.host.is_stopping
        ):
            peer.start_reading()

    # A peer's packets, no more in a turn than leaves time for others.

    def _postpone(self, peer: ConnectedPeer, packets: list[Packet]) -> None:
        """Keep packets of a peer for later."""
        number = peer.number
        size = sum(len(packet.args[-1]) for packet in packets if packet.args) + len(packets) * _PACKET_BYTES
        self._postponed.setdefault(number, []).extend(packets)
        self._postponed_bytes[number] = self._postponed_bytes.get(number, 0) + size
        self._budget.keeps(peer)

    def _handle(self, peer: ConnectedPeer, packets: list[Packet]) -> int:
        """Handle packets until the peer's share of the turn is used up; returns how many.

        If some are left, or a list for the peer is not complete, the peer waits for the time to go on.
        """
        began = self._clock.seconds()
        done = 0
        while self._has_more(peer) or (done < len(packets) and peer.number in self._peers):
            if self._has_more(peer):
                self._send_more(peer)
                if self._has_more(peer) and self._is_turn_over(peer, done, began):
                    self._wait(peer)
                    return done
                continue
            if self._is_loading and _needs_jobs(packets[done]):
                return done
            end = self._slice_end(packets, done)
            try:
                if self.host.receive(peer.number, packets[done:end]):
                    self._limit_unsaved(peer)
            except Exception:  # noqa: BLE001 - it costs this peer alone
                self._fault(peer.number)
            done = end
            if done < len(packets):
                if peer in self._paused:
                    return done
                if self._is_turn_over(peer, done, began):
                    self._wait(peer)
                    return done
        return done

    def _has_more(self, peer: ConnectedPeer) -> bool:
        """Return whether a list for a peer is not complete."""
        return peer.number in self._peers and self.host.engine.is_listing(peer.number)

    def _send_more(self, peer: ConnectedPeer) -> None:
        try:
            self.host.go_on(peer.number)
        except Exception:  # noqa: BLE001 - it costs this peer alone
            self._fault(peer.number)

    def _slice_end(self, packets: list[Packet], start: int) -> int:
        """Return up to where packets are given to the engine at once: a line of text by itself."""
        if self._is_loading or packets[start].type == PacketType.TEXT_LINE:
            return start + 1
        end = min(start + _SLICE, len(packets))
        for position in range(start, end):
            if packets[position].type == PacketType.TEXT_LINE:
                return position
        return end

    def _is_turn_over(self, peer: ConnectedPeer, packets: int, began: float) -> bool:
        if self._turn_ends is None:
            self._start_turn(began)
        return (
            packets >= _TURN_PACKETS
            or self._is_over()
            or sum(map(len, self._writes.get(peer.number, ()))) > _TURN_ANSWER_BYTES
        )

    def _is_over(self) -> bool:
        return self._turn_ends is not None and self._clock.seconds() >= self._turn_ends

    def _begin_next_turn(self) -> None:
        """Handle what waits, each peer in its turn, until this turn is over too.

        Those that are gone come first, as others wait for their jobs, and may take half of the turn. One of
        them, and one of those that wait, has its turn however long that takes.
        """
        self._turn_ends = None
        if not (self._leaving or self._waiting):
            return
        began = self._clock.seconds()
        self._start_turn(began)
        while self._leaving:
            self._disconnect(self._leaving.popleft())
            if self._clock.seconds() >= began + _TURN_SECONDS / 2:
                break
        for _ in range(len(self._waiting)):
            self._go_on(self._waiting.popleft())
            if self._is_over():
                break

    def _note_time(self, began: float) -> None:
        """End the turn if something has taken all of it."""
        if self._turn_ends is None and self._clock.seconds() >= began + _TURN_SECONDS:
            self._start_turn(began)

    def _start_turn(self, began: float) -> None:
        self._turn_ends = began + _TURN_SECONDS
        self._clock.callLater(0, self._begin_next_turn)

    def _wait(self, peer: ConnectedPeer) -> None:
        """Handle the rest of a peer's packets later."""
        self._waiting.append(peer)
        if self._turn_ends is None:
            self._start_turn(self._clock.seconds())

    def _go_on(self, peer: ConnectedPeer) -> None:
        """Handle packets that were postponed, and read the peer again if that was all."""
        if peer in self._paused or self.host.is_stopping:
            return
        packets = self._postponed.get(peer.number)
        if packets is None:
            return
        del packets[: self._handle(peer, packets)]
        if not packets and not self._has_more(peer):
            self._postponed.pop(peer.number, None)
            self._postponed_bytes.pop(peer.number, None)
            if peer.number in self._peers:
                self._budget.keeps(peer)
                self._read_again(peer)

    def _fault(self, number: int) -> None:
        """Abort a peer whose packets the engine could not handle, or whose output could not be sent."""
        peer = self._peers.get(number)
        if peer is not None:
            if isinstance(sys.exc_info()[1], MemoryError):
                self.log.error("closed {peer}: out of memory", peer=peer.peer)
            else:
                self.log.failure("closed {peer}: internal error", peer=peer.peer)
            peer.abort()
            self.lost(peer)

    # Back-pressure, far above what a commit takes: see ConnectionLimits.

    def _limit_unsaved(self, peer: ConnectedPeer) -> None:
        if self._has_unsaved(peer, 1):
            self._paused.add(peer)
            peer.stop_reading()

    def _has_unsaved(self, peer: ConnectedPeer, part: float) -> bool:
        """Return whether more than this part of what a peer may have unsaved waits for the store."""
        if peer.number not in self._peers:
            return False
        jobs, size = self.host.engine.waits_for_saves(peer.number)
        limits = self.limits
        return jobs > limits.max_unsaved_jobs * part or size > limits.max_unsaved_bytes * part

    # What the host reports.

    def opened(self) -> None:
        """Handle what has waited for the stored jobs."""
        self._is_loading = False
        for number in list(self._postponed):
            self._go_on(self._peers[number])

    def saves_answered(self) -> None:
        """Read again from peers whose jobs have been saved."""
        for peer in list(self._paused):
            if not self._has_unsaved(peer, 0.5):
                self._paused.discard(peer)
                if peer.number in self._postponed:
                    self._wait(peer)
                else:
                    self._read_again(peer)

    def memory_used_up(self) -> None:
        """Note that a job was refused because the memory is used up."""
        self._budget.used_up()

    def send(self, writes: dict[int, list[bytes]], closes: Sequence[int]) -> None:
        """Send this at the end of the turn: one system call for each peer, whatever came to pass."""
        gathered = self._writes
        if gathered:
            for number, chunks in writes.items():
                if number in gathered:
                    gathered[number] += chunks
                else:
                    gathered[number] = chunks
        else:
            if not (self._is_in_turn or self._closes):
                self._clock.callLater(0, self._flush)
            self._writes = writes
        if closes:
            self._closes += closes

    def begin_turn(self) -> None:
        """Note that several peers are about to report, and ``end_turn`` is called when they have."""
        self._is_in_turn = True

    def end_turn(self) -> None:
        """Send all output of the turn."""
        self._is_in_turn = False
        if self._writes or self._closes:
            self._flush()

    def _flush(self) -> None:
        writes, self._writes = self._writes, {}
        closes, self._closes = self._closes, []
        peers = self._peers
        for number, chunks in writes.items():
            if number in peers:
                try:
                    peers[number].send(chunks)
                except Exception:  # noqa: BLE001 - it costs this peer alone
                    self._fault(number)
        for number in closes:
            self._close(number)

    def _close(self, number: int) -> None:
        if number in self._peers:
            try:
                self._peers[number].close()
            except Exception:  # noqa: BLE001 - it costs this peer alone
                self._fault(number)


def make_peers(
    store: IJobStore, reactor: IReactorTime, settings: EngineSettings | None, limits: ConnectionLimits | None
) -> Peers:
    """Return the peers of a new server, with their host and its engine.

    Args:
        store: where background jobs are kept.
        reactor: the time.
        settings: how jobs and peers are treated; ``default_settings()`` if None.
        limits: what one peer may make the server keep; the defaults if None.
    """
    wall = wall_clock(reactor)
    # Ids go on from the clock, in microseconds: a restarted server then never gives a handle again that an
    # earlier one gave, even for jobs that the store has forgotten.
    engine = JobServer(settings or default_settings(), durable=store.durable, last_id=int(wall() * 1e6))
    return Peers(Host(engine, store, reactor, wall), limits)


def _needs_jobs(packet: Packet) -> bool:
    """Return whether an answer has to wait until the stored jobs are back."""
    if packet.type == PacketType.TEXT_LINE:
        return packet.args[0].lstrip().lower().startswith(b"cancel")
    return packet.type not in (PacketType.ECHO_REQ, PacketType.BAD_STREAM)
