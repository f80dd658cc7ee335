"""The memory budget of the whole server: who is slowed down, and who is closed, when it is used up.

The engine counts what it keeps, ``Usage``, and refuses new jobs at the limit. Here what connections keep is
added: packets that are not complete, and output that was not sent. From the limit on::

              100 %                                        110 % of the limit
    ───────────┼─────────────────────────────────────────────┼──────────────────────
     all are   │ new jobs are refused, but foreground jobs   │ all jobs are refused;
     served    │ of small peers; large peers are not read,   │ the largest peers are
               │ and closed if that lasts                    │ closed at once

A large peer keeps more than a hundredth of the limit. Connections have a tenth of it for themselves: below
that, none is slowed down or closed, however many jobs are queued, as only their workers' results can free the
memory. For the same reason a worker that runs a job is read until 110 %.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from gearman_twisted.engine.jobserver import JobServer
from gearman_twisted.engine.usage import HEADROOM, SMALL
from gearman_twisted.server.connected import ConnectedPeer

# From this part of the limit on, what connections keep is looked at every so many seconds: what was sent
# meanwhile goes unnoticed otherwise.
_WATCHED = 0.75
_CHECK_SECONDS = 0.1

# Seconds that a large peer is not read before it is closed.
_PATIENCE = 5.0
_NOT_YET = float("inf")

# The budget counts as used up until no more than this part of it is used, so that the log does not flutter.
_FREE_AGAIN = 0.95

# Closing a peer that keeps less is of no use.
_WORTH_CLOSING = 65_536


class Budget:
    """The memory budget.

    Args:
        engine: counts what jobs take.
        clock: the time.
        peers: who is connected, by number.
        kept_by: returns what a peer keeps outside the engine.
        resumed: called when a peer may be read again.
    """

    log = Logger()

    def __init__(
        self,
        engine: JobServer,
        clock: IReactorTime,
        peers: Mapping[int, ConnectedPeer],
        kept_by: Callable[[ConnectedPeer], int],
        resumed: Callable[[ConnectedPeer], object],
    ) -> None:
        self._engine = engine
        self._usage = engine.usage
        self._clock = clock
        self._peers = peers
        self._kept_by = kept_by
        self._resumed = resumed
        # What was last known of those that keep anything.
        self._kept: dict[ConnectedPeer, int] = {}
        # Who is not read, and since when: since the next look at all, so that those are judged together
        # that are large at the same time, and the largest is closed first.
        self._paused: dict[ConnectedPeer, float] = {}
        self._timer: IDelayedCall | None = None
        self._is_urgent = False
        self._is_used_up = False
        self._is_stopped = False

    def is_paused(self, peer: ConnectedPeer) -> bool:
        """Return whether a peer is not to be read."""
        return peer in self._paused

    def keeps(self, peer: ConnectedPeer) -> None:
        """Count what a peer keeps, which may be more than before or less."""
        if peer.number not in self._peers:
            return
        if self._count(peer) > 0 and self._usage.is_full:
            self._slow_down(peer, _NOT_YET)
            if self._usage.is_over:
                self._check_soon()
        if self._timer is None and self._is_to_be_watched:
            self._set_timer(_CHECK_SECONDS)

    def forget(self, peer: ConnectedPeer) -> None:
        """Count out a peer that is gone."""
        self._usage.add_for_peer(-self._kept.pop(peer, 0))
        self._paused.pop(peer, None)
        if not self._is_to_be_watched:
            self._cancel_timer()

    def used_up(self) -> None:
        """Note that a job was refused because the budget is used up."""
        if not self._is_used_up:
            self._is_used_up = True
            self.log.warn(
                "memory used up, refusing jobs: {used} bytes are kept, {kept} of them for connections; "
                "the limit of --max-memory is {limit}",
                used=self._usage.bytes,
                kept=self._usage.of_peers,
                limit=self._usage.limit,
            )
            # What was known of connections may be out of date.
            self._check_soon()

    def stop(self) -> None:
        """Look no more. Idempotent."""
        self._is_stopped = True
        self._cancel_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._is_urgent = False

    def _count(self, peer: ConnectedPeer) -> int:
        """Take what a peer keeps into account; return the change."""
        kept = self._kept_by(peer)
        change = kept - self._kept.get(peer, 0)
        if kept:
            self._kept[peer] = kept
        else:
            self._kept.pop(peer, None)
        self._usage.add_for_peer(change)
        return change

    @property
    def _are_peers_to_blame(self) -> bool:
        return self._usage.is_full and self._usage.of_peers >= self._usage.limit * HEADROOM

    @property
    def _is_to_be_watched(self) -> bool:
        is_near = self._usage.bytes >= self._usage.limit * _WATCHED
        return self._is_used_up or bool(self._paused) or (is_near and bool(self._kept))

    def _may_read(self, peer: ConnectedPeer) -> bool:
        """Return whether a peer may be read although the budget is used up."""
        if self._usage.is_over:
            return False
        is_small = self._kept.get(peer, 0) <= self._usage.limit * SMALL
        return is_small or self._engine.runs_jobs(peer.number)

    def _slow_down(self, peer: ConnectedPeer, since: float) -> None:
        if self._are_peers_to_blame and not self._may_read(peer):
            self._paused[peer] = min(since, self._paused.get(peer, _NOT_YET))
            peer.stop_reading()

    # The timer.

    def _check_soon(self) -> None:
        if not self._is_urgent:
            self._cancel_timer()
            self._set_timer(0)
            self._is_urgent = True

    def _set_timer(self, delay: float) -> None:
        if not self._is_stopped:
            self._timer = self._clock.callLater(delay, self._check)

    def _check(self) -> None:
        """See what connections keep now, and close or resume some."""
        self._timer = None
        for peer in list(self._kept):
            self._count(peer)
        usage = self._usage
        has_closed = False
        if self._are_peers_to_blame:
            if usage.is_over:
                has_closed = self._close_largest(self._peers.values(), usage.limit * (1 + HEADROOM / 2))
            else:
                now = self._clock.seconds()
                # Also those that have sent nothing since: they keep others out all the same.
                for peer in list(self._kept):
                    if self._paused.get(peer, _NOT_YET) == _NOT_YET:
                        self._slow_down(peer, now)
                slow = [peer for peer, since in self._paused.items() if since <= now - _PATIENCE]
                has_closed = self._close_largest(slow, usage.limit)
        for peer in list(self._paused):
            if not self._are_peers_to_blame or self._may_read(peer):
                del self._paused[peer]
                self._resumed(peer)
        if self._is_used_up and usage.bytes < usage.limit * _FREE_AGAIN:
            self._is_used_up = False
            self.log.info("memory is free again: {used} bytes are kept", used=usage.bytes)
        # If nobody was closed, to look again at once would find the same.
        self._is_urgent = self._is_urgent and not has_closed and usage.is_over
        if self._is_to_be_watched:
            self._set_timer(_CHECK_SECONDS)

    def _close_largest(self, peers: Iterable[ConnectedPeer], target: float) -> bool:
        """Close peers, the largest first, until no more than the target is used; return whether any was."""
        sizes = [(self._kept.get(peer, 0) + self._engine.kept_bytes(peer.number), peer) for peer in peers]
        sizes.sort(key=lambda pair: pair[0], reverse=True)
        used = self._usage.bytes
        has_closed = False
        for size, peer in sizes:
            if used <= target or size < _WORTH_CLOSING:
                break
            self.log.warn(
                "closed {peer}: {size} bytes are kept for it, and the memory for all, {limit}, is used up",
                peer=peer.peer,
                size=size,
                limit=self._usage.limit,
            )
            peer.abort()
            used -= size
            has_closed = True
        return has_closed
