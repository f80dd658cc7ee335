"""Connections that have not finished what comes first: a TLS handshake, or a request over HTTP."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger


class Closable(Protocol):
    """A connection that may take too long."""

    @property
    def peer(self) -> str:
        """Where it comes from."""

    def abort(self) -> None:
        """Close the connection at once."""


class Unfinished:
    """Closes connections that take too long, and the oldest one where there are too many.

    Args:
        clock: the time.
        what: what they have to finish, for the log.
        seconds: how long they may take.
        most: how many there may be.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, what: str, seconds: float, most: int) -> None:
        self._clock = clock
        self._what = what
        self._seconds = seconds
        self._most = most
        self._timers: OrderedDict[Closable, IDelayedCall] = OrderedDict()

    def begin(self, peer: Closable) -> None:
        """A connection has begun; a no-op if it has already."""
        if peer in self._timers:
            return
        if len(self._timers) >= self._most:
            self._close(next(iter(self._timers)), f"too many connections without a complete {self._what}")
        self._timers[peer] = self._clock.callLater(self._seconds, self._close, peer, f"{self._what} too slow")

    def grant(self, peer: Closable, seconds: float) -> None:
        """Give a connection more time; a no-op if it is not known."""
        timer = self._timers.get(peer)
        if timer is not None:
            timer.delay(seconds)

    def end(self, peer: Closable) -> None:
        """A connection has finished, or is lost. Idempotent."""
        timer = self._timers.pop(peer, None)
        if timer is not None and timer.active():
            timer.cancel()

    def _close(self, peer: Closable, reason: str) -> None:
        self.end(peer)
        self.log.info("closed {peer}: {reason}", peer=peer.peer, reason=reason)
        peer.abort()
