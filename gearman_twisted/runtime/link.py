"""Keep a connection up: when to connect, when to retry, and its end. It knows nothing of the protocol."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from gearman_twisted.errors import ConfigError
from gearman_twisted.runtime.interfaces import (
    LOOP_ENDS,
    Log,
    Peer,
    Place,
    Promise,
    Runtime,
    Started,
    Timer,
    Transport,
)

# Seconds that a server has to take what was sent to it before the connection was closed.
_CLOSE_PATIENCE = 5.0


# Seconds until the next attempt where the user's policy does not say.
_DEFAULT_DELAY = 1.0


def checked_policy(policy: object, log: Log) -> Callable[[int], float]:
    """Return a retry policy that never raises: where the user's does, the failure is logged.

    Args:
        policy: takes the number of an attempt to connect, returns the seconds to wait before it.
        log: where failures go.

    Raises:
        ConfigError: the policy cannot be called.
    """
    if not callable(policy):
        raise ConfigError(f"retry_policy takes a callable, not {policy!r}")

    def delay(attempt: int) -> float:
        try:
            seconds = float(policy(attempt))
            if not 0 <= seconds < math.inf:
                raise ValueError(f"{seconds!r} is not a number of seconds to wait")
        except Exception as error:  # noqa: BLE001 - the user's own code, which must not keep us from connecting
            log.failure("the retry policy failed; waiting {seconds} s", error, seconds=_DEFAULT_DELAY)
            return _DEFAULT_DELAY
        return seconds

    return delay


def reason_of_loss(reason: str, transport: Transport, *, has_answered: bool) -> str:
    """Return why a connection was lost, for logs and errors.

    Servers of TLS close, or send an alert, when they are spoken to in the clear.

    Args:
        reason: what is known.
        transport: the connection.
        has_answered: whether anything came that makes sense.
    """
    if has_answered or transport.is_tls or reason is LOOP_ENDS:
        return reason
    return f"{reason.rstrip('.')}; does it speak TLS there?"


class LinkOwner(Protocol):
    """Whose connection a link keeps up."""

    def make_peer(self) -> Peer:
        """Return what to speak on a connection that is about to be made."""

    def attempt_failed(self, reason: str) -> None:
        """An attempt to connect has failed; the reason is for people."""

    def retry_delay(self, attempt: int) -> float:
        """Return the seconds to wait before the next attempt.

        Args:
            attempt: how many attempts in a row have failed; 1 as well after a connection was lost.
        """


class Link:
    """Keeps one connection to a place, from ``start`` to ``stop``; it can be started again after that.

    Args:
        runtime: the event loop.
        place: what to connect to.
        owner: whose connection it is.
    """

    def __init__(self, runtime: Runtime, place: Place, owner: LinkOwner) -> None:
        self._runtime = runtime
        self._place = place
        self._owner = owner
        self._keeping: Started[object] | None = None
        # What was begun by an earlier start, and still connects, is not wanted any more.
        self._generation = 0
        self._connection: _Connection | None = None
        self._lost: Promise[None] | None = None
        self._pause: Promise[None] | None = None
        self._closing: dict[_Connection, Timer] = {}
        self._stops: list[Promise[None]] = []

    @property
    def is_running(self) -> bool:
        """Whether it was started, and not stopped since."""
        return self._keeping is not None

    def start(self) -> None:
        """Connect, and again whenever the connection is lost. Idempotent."""
        if self._keeping is None:
            self._generation += 1
            # Known before it runs: on Twisted, it may be over before ``background`` returns.
            self._keeping = _Starting()
            generation = self._generation
            keeping = self._runtime.background(self._keep_connected(generation))
            if generation == self._generation:
                self._keeping = keeping

    def hurry(self) -> None:
        """Connect now: start if that was not done, and do not wait for the next attempt."""
        if self._keeping is None:
            self.start()
        else:
            self._end_pause()

    async def stop(self) -> None:
        """Disconnect once all that was written is sent, and wait until that is done. Idempotent."""
        keeping, self._keeping = self._keeping, None
        self._lost = self._pause = None
        self._generation += 1
        connection, self._connection = self._connection, None
        if connection is not None:
            self._closing[connection] = self._runtime.later(_CLOSE_PATIENCE, connection.transport.abort)
            connection.transport.close()
        if keeping is not None:
            keeping.cancel()
        if self._closing:
            stopped = self._runtime.promise()
            self._stops.append(stopped)
            await stopped

    async def _keep_connected(self, generation: int) -> None:
        attempt = 0
        while generation == self._generation:
            peer = _Connection(self, generation, self._owner.make_peer())
            try:
                await self._place.connect(peer)
            except Exception as error:  # noqa: BLE001 - whatever fails, the waiting calls have to fail
                if generation != self._generation:
                    return
                attempt += 1
                self._owner.attempt_failed(str(error) or type(error).__name__)
            else:
                await self._until_lost(peer)
                attempt = 1
            if generation == self._generation:
                await self._wait(attempt)

    async def _until_lost(self, connection: _Connection) -> None:
        if self._connection is connection:
            self._lost = self._runtime.promise()
            await self._lost

    async def _wait(self, attempt: int) -> None:
        delay = self._owner.retry_delay(attempt)
        pause = self._pause = self._runtime.promise()
        timer = self._runtime.later(delay, self._end_pause)
        try:
            await pause
        finally:
            timer.cancel()

    def _end_pause(self) -> None:
        pause, self._pause = self._pause, None
        if pause is not None:
            pause.succeed(None)

    def _connected(self, connection: _Connection) -> bool:
        """Note a new connection; returns whether it is still wanted."""
        if connection.generation != self._generation:
            return False
        self._connection = connection
        return True

    def _is_gone(self, connection: _Connection) -> None:
        timer = self._closing.pop(connection, None)
        if timer is not None:
            timer.cancel()
            if not self._closing:
                stops, self._stops = self._stops, []
                for stopped in stops:
                    stopped.succeed(None)
        elif self._connection is connection:
            self._connection = None
            lost, self._lost = self._lost, None
            if lost is not None:
                lost.succeed(None)


class _Connection:
    """A peer as its link sees it: it tells the link of its beginning and end."""

    transport: Transport

    def __init__(self, link: Link, generation: int, peer: Peer) -> None:
        self._link = link
        self._peer = peer
        self._is_wanted = False
        self.generation = generation
        # Not a method of its own, which would cost a call for each read.
        self.received: Callable[[bytes], None] = peer.received

    def connected(self, transport: Transport) -> None:
        self.transport = transport
        self._is_wanted = self._link._connected(self)
        if self._is_wanted:
            self._peer.connected(transport)
        else:
            transport.abort()

    def lost(self, reason: str) -> None:
        if self._is_wanted:
            self._peer.lost(reason)
            self._link._is_gone(self)


class _Starting:
    """Stands for a coroutine until that has begun."""

    def __await__(self) -> Any:
        raise RuntimeError("it has not begun")

    def cancel(self) -> None: ...
