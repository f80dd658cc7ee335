"""A connection that is kept up: where to, when again, and its end. What is said on it is for others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from ssl import SSLContext
from typing import Protocol

import attrs

from gearman_twisted.errors import ConfigError
from gearman_twisted.runtime.keepalive import Keepalive
from gearman_twisted.runtime.on_asyncio import AsyncioRuntime
from gearman_twisted.wire.hostport import split_host_port

# As long as Twisted's endpoints try.
_CONNECT_PATIENCE = 30.0
# How long a server has to take what was sent to it before the connection was closed.
_CLOSE_PATIENCE = 5.0


@attrs.frozen
class Place:
    """Where a server is.

    Attributes:
        name: as it was written.
        host: by TCP.
        port: by TCP.
        path: of a UNIX socket, else empty.
        tls: how TLS is spoken, if it is.
    """

    name: str
    host: str
    port: int
    path: str
    tls: SSLContext | None

    @classmethod
    def of(cls, server: str, context: SSLContext | None = None) -> Place:
        """The place that a text stands for: ``host``, ``host:port``, ``[IPv6]:port`` or ``unix:/path``.

        Raises:
            ConfigError: it makes no sense.
        """
        if not isinstance(server, str):
            raise ConfigError(f"a server is given as text, not as {server!r}")
        if server.startswith("unix:"):
            path = server.removeprefix("unix:")
            if not path:
                raise ConfigError(f"{server!r} is not an address: write unix:/path")
            return cls(server, "", 0, path, context)
        host, port = split_host_port(server)
        return cls(server, host, port, "", context)

    async def connect(self, make_protocol: Callable[[], asyncio.Protocol]) -> None:
        """Connects once."""
        loop = asyncio.get_running_loop()
        if self.path:
            await loop.create_unix_connection(
                make_protocol, self.path, ssl=self.tls, server_hostname="localhost" if self.tls else None
            )
        else:
            await loop.create_connection(make_protocol, self.host, self.port, ssl=self.tls)


def backoff(attempt: int) -> float:
    """Seconds to wait before connection attempt number n, a little different each time."""
    return min(15.0, 0.2 * 1.5 ** min(attempt, 20)) * random.uniform(0.8, 1.2)


def check_ping_interval(ping_interval: float | None) -> float | None:
    """The interval, if it makes sense.

    Raises:
        ConfigError: it does not.
    """
    if ping_interval is not None and not 0.1 <= ping_interval <= 86_400:
        raise ConfigError(f"ping_interval takes 0.1 to 86400 seconds or None, not {ping_interval!r}")
    return ping_interval


class LinkOwner(Protocol):
    """Whose connection a link keeps up."""

    def make_connection(self) -> Connection:
        """A protocol for a connection that is about to be made."""

    def attempt_failed(self, reason: str) -> None:
        """An attempt to connect has failed."""

    def retry_delay(self, attempt: int) -> float:
        """Seconds to wait before attempt number n."""


class Connection(asyncio.Protocol):
    """What all connections have in common.

    Attributes:
        transport: the transport, once connected.
        lost: set when the connection is gone.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self._keepalive: Keepalive | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        if self._keepalive is not None:
            self._keepalive.stop()
        self.lost.set()

    def watch(self, interval: float | None, ask: Callable[[], None], give_up: Callable[[], None]) -> None:
        """Has the peer asked for signs of life; see ``Keepalive``."""
        if interval is not None:
            self._keepalive = Keepalive(
                AsyncioRuntime("a client"),
                interval,
                ask=ask,
                unsent=self.transport.get_write_buffer_size,
                give_up=give_up,
            )
            self._keepalive.answered()
            self._keepalive.start()

    def heard(self) -> None:
        """The peer has sent something."""
        if self._keepalive is not None:
            self._keepalive.heard()


class Link:
    """Connects, and again whenever the connection is lost, until it is stopped.

    Args:
        place: to what.
        owner: whose.
    """

    def __init__(self, place: Place, owner: LinkOwner) -> None:
        self._place = place
        self._owner = owner
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._is_stopped = False
        self._connection: Connection | None = None

    def start(self) -> None:
        """Begins, if it has not."""
        if self._task is None and not self._is_stopped:
            self._task = asyncio.get_running_loop().create_task(self._keep_connected())

    def hurry(self) -> None:
        """Does not wait for the next attempt."""
        self.start()
        self._hurry.set()

    async def stop(self) -> None:
        """Disconnects, once all that was written is sent, and waits for that; may be called twice."""
        self._is_stopped = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        connection = self._connection
        if connection is not None and hasattr(connection, "transport"):
            connection.transport.close()
            try:
                await asyncio.wait_for(connection.lost.wait(), _CLOSE_PATIENCE)
            except asyncio.TimeoutError:
                connection.transport.abort()
                await connection.lost.wait()

    def _make_connection(self) -> Connection:
        self._connection = self._owner.make_connection()
        return self._connection

    async def _keep_connected(self) -> None:
        attempt = 0
        while not self._is_stopped:
            try:
                await asyncio.wait_for(self._place.connect(self._make_connection), _CONNECT_PATIENCE)
            except asyncio.TimeoutError:
                attempt += 1
                self._owner.attempt_failed(f"no answer within {_CONNECT_PATIENCE:g} seconds")
            except Exception as error:  # noqa: BLE001 - whatever stands in the way, those who wait have to hear
                attempt += 1
                self._owner.attempt_failed(str(error) or type(error).__name__)
            else:
                await self._until_lost()
                attempt = 1
            await self._pause(attempt)

    async def _until_lost(self) -> None:
        # Before Python 3.12 wait_for loses a cancellation that comes just when it has its result.
        if self._connection is not None and not self._is_stopped:
            await self._connection.lost.wait()

    async def _pause(self, attempt: int) -> None:
        # Whoever was in a hurry before has been told of the last attempt.
        self._hurry.clear()
        if self._is_stopped:
            return
        timer = asyncio.get_running_loop().call_later(self._owner.retry_delay(attempt), self._hurry.set)
        try:
            await self._hurry.wait()
        finally:
            timer.cancel()


def describe_loss(error: Exception | None) -> str:
    """Why a connection was lost, for a person."""
    return "it was closed" if error is None else str(error) or type(error).__name__
