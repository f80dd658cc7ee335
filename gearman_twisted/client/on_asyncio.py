"""The client of one server, in asyncio.

Which request a packet belongs to is known to ``client/session.py``, what comes of it to ``client/course.py``,
and when to connect to ``link.py``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from ssl import SSLContext
from typing import Any

from gearman_twisted.client.asyncio_calls import ClientCalls
from gearman_twisted.client.course import Callbacks, Course
from gearman_twisted.client.requests import Request, echo_request, option_request
from gearman_twisted.client.session import Broken, ClientSession, Outcome, Refused
from gearman_twisted.errors import ConnectionLost, NoServers, RemoteProtocolError
from gearman_twisted.runtime.asyncio_link import (
    Connection,
    Link,
    Place,
    backoff,
    check_ping_interval,
    describe_loss,
)
from gearman_twisted.wire.codec import Decoder
from gearman_twisted.wire.constants import RES
from gearman_twisted.wire.names import check_client_id, client_id_packet, text_or_bytes

_log = logging.getLogger("gearman_twisted.aio")


class GearmanClient(ClientCalls):
    """A client of one job server.

    It connects when it is first used, and again whenever the connection is lost, until it is closed. All its
    calls share one connection, any number of them at a time; they belong to one event loop.

    A call that is cancelled, by ``asyncio.wait_for`` or otherwise, is one to which nobody listens any more:
    what was not sent is not sent; a job that was submitted may still run, and its result is dropped. Other
    calls are not touched by that.

    Args:
        server: ``host``, ``host:port``, ``[IPv6]:port`` or ``unix:/path``.
        client_id: the name that the server's command ``workers`` shows for this connection.
        exceptions: whether to ask for the exceptions of workers; without, they come as ``JobFailed``.
        retry_policy: seconds to wait before connection attempt number n. A call does not wait for that: it
            tries at once.
        ping_interval: seconds after which a server that has fallen silent without a word is given up; None
            to leave that to the system, which may take hours.
        ssl: how TLS is spoken, if it is.

    Raises:
        ConfigError: the server's address, or a number, makes no sense.
        LocalProtocolError: the client id cannot be sent.
    """

    def __init__(
        self,
        server: str = "127.0.0.1:4730",
        *,
        client_id: str | bytes | None = None,
        exceptions: bool = True,
        retry_policy: Callable[[int], float] | None = None,
        ping_interval: float | None = 30.0,
        ssl: SSLContext | None = None,
    ) -> None:
        self._place = Place.of(server, ssl)
        self.server_name = self._place.name
        self.ping_interval = check_ping_interval(ping_interval)
        self.client_id = None if client_id is None else check_client_id(text_or_bytes(client_id, "client_id"))
        self.asks_for_exceptions = exceptions
        self._retry_policy = retry_policy or backoff
        self._watchers: list[Callable[[GearmanClient], object]] = []
        self._unsent: dict[Request, Call] = {}
        self._connection: _ClientConnection | None = None
        self._is_down = False
        self._is_closed = False
        # Made where the event loop is known.
        self._link: Link | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def close(self) -> None:
        """Disconnects; all that waits fails. A closed client refuses calls."""
        self._is_closed = True
        self._fail_unsent(f"the client of {self.server_name} was closed")
        if self._link is not None:
            await self._link.stop()

    # What a pool of servers needs to know.

    @property
    def is_connected(self) -> bool:
        """Whether requests can be sent now."""
        return self._connection is not None

    @property
    def is_down(self) -> bool:
        """Whether the last attempt to connect failed, or the connection was lost, and it is not back."""
        return self._is_down

    def watch(self, watcher: Callable[[GearmanClient], object]) -> None:
        """Has a callable told, with this client, whenever it has connected or lost its connection."""
        self._watchers.append(watcher)

    def hurry(self) -> None:
        """Connects now if it waits for the next attempt, or has not begun."""
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise RuntimeError(f"the client of {self.server_name} is used in another event loop")
        if self._is_closed or self._connection is not None:
            return
        if self._link is None:
            self._loop = loop
            self._link = Link(self._place, self)
        self._link.hurry()

    def begin(self, request: Request, callbacks: Callbacks) -> Call:
        """Sends a request, once, now or as soon as it is connected."""
        call = Call(request, callbacks)
        if self._is_closed:
            call.fail(NoServers(f"the client of {self.server_name} is closed"))
            return call
        # Also for those that are connected: it looks after the event loop.
        self.hurry()
        if self._connection is not None:
            self._connection.send(call)
        else:
            call.wait_in(self._unsent)
        return call

    async def _perform(
        self, make_request: Callable[[], Request], callbacks: Callbacks, _key: bytes, *, retry: bool
    ) -> Any:
        while True:
            try:
                return await self.begin(make_request(), callbacks).future
            except ConnectionLost:  # noqa: PERF203 - once per connection
                if not retry:
                    raise

    # What the link and the connection call.

    def make_connection(self) -> Connection:
        """Called by the link: it is about to connect."""
        return _ClientConnection(self)

    def attempt_failed(self, reason: str) -> None:
        """Called by the link: an attempt to connect has failed."""
        self._is_down = True
        self._fail_unsent(f"cannot connect to {self.server_name}: {reason}")

    def retry_delay(self, attempt: int) -> float:
        """Called by the link: how long to wait."""
        return 0.0 if self._unsent else self._retry_policy(attempt)

    def connection_ready(self, connection: _ClientConnection) -> None:
        """Called by the connection: it takes requests."""
        self._connection = connection
        self._is_down = False
        unsent, self._unsent = self._unsent, {}
        for call in unsent.values():
            connection.send(call)
        self._tell_watchers()

    def connection_gone(self, connection: _ClientConnection) -> None:
        """Called by the connection: it takes no more requests."""
        if self._connection is connection:
            self._connection = None
            self._is_down = True
            self._tell_watchers()

    def _tell_watchers(self) -> None:
        for watcher in self._watchers:
            watcher(self)

    def _fail_unsent(self, text: str) -> None:
        for call in list(self._unsent.values()):
            call.fail(NoServers(text))


class Call:
    """A request, and the future that its caller waits for.

    Attributes:
        request: the request.
        future: what its caller waits for; cancelling it is all that is needed to give the call up.
    """

    __slots__ = ("_course", "_holder", "future", "request")

    def __init__(self, request: Request, callbacks: Callbacks) -> None:
        self.request = request
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.future.add_done_callback(self._done)
        self._course = Course(request, callbacks)
        self._holder: dict[Request, Call] = {}

    def wait_in(self, holder: dict[Request, Call]) -> None:
        """Waits in a dictionary until it has ended or was cancelled, and leaves it then."""
        self._holder = holder
        holder[self.request] = self

    def take(self, outcome: Outcome) -> None:
        """Hears of an outcome of its request. If a callback raises, that is its end."""
        # Those that were cancelled just now are still known here.
        if self.future.done():
            return
        try:
            ended = self._course.take(outcome)
        except Exception as error:  # noqa: BLE001 - the caller's own callback; it fails the caller's own call
            self.fail(error)
            return
        if ended is None:
            return
        if ended.error is not None:
            self.fail(ended.error)
        else:
            self._leave()
            self.future.set_result(ended.value)

    def fail(self, error: Exception) -> None:
        """Ends with an error, unless it has ended."""
        self._leave()
        self.request.is_abandoned = True
        if not self.future.done():
            self.future.set_exception(error)

    def _done(self, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            # The session goes on to expect the reply, or replies would be taken for those of others.
            self.request.is_abandoned = True
            self._leave()

    def _leave(self) -> None:
        self._holder.pop(self.request, None)


class _ClientConnection(Connection):
    """A connection of a client to its server."""

    def __init__(self, client: GearmanClient) -> None:
        super().__init__()
        self._client = client
        self._session = ClientSession()
        self._decoder = Decoder(RES)
        self._calls: dict[Request, Call] = {}
        self._gathered: list[bytes] | None = None
        self._is_given_up = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends what goes before all requests, and what waited for the connection."""
        super().connection_made(transport)
        self._gathered = []
        if self._client.client_id is not None:
            self._gathered.append(client_id_packet(self._client.client_id))
        if self._client.asks_for_exceptions:
            self._gathered.append(self._session.send(option_request(b"exceptions")))
        self.watch(self._client.ping_interval, self._ping, self._give_up_silent)
        self._client.connection_ready(self)
        self._flush()

    def send(self, call: Call) -> None:
        """Sends a call's request, if it was not cancelled just now."""
        if call.future.done():
            return
        call.wait_in(self._calls)
        self._write(self._session.send(call.request))

    def data_received(self, data: bytes) -> None:
        """Tells the calls what came."""
        if self._is_given_up:
            return
        self.heard()
        self._gathered = []
        for outcome in self._session.receive(self._decoder.feed(data)):
            if isinstance(outcome, Broken):
                self._give_up(outcome)
                return
            call = self._calls.get(outcome.request)
            if call is not None:
                call.take(outcome)
            elif isinstance(outcome, Refused) and not outcome.request.is_abandoned:
                text = outcome.text.decode("utf-8", "replace")
                _log.warning("%s does not give exceptions to its clients: %s", self._client.server_name, text)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fails all that still waits for an answer."""
        super().connection_lost(exc)
        self._client.connection_gone(self)
        text = f"the connection to {self._client.server_name} was lost: {describe_loss(exc)}"
        for request, call in list(self._calls.items()):
            call.fail(ConnectionLost(text, function=request.function, handle=request.handle))

    def _ping(self) -> None:
        request = echo_request(b"ping")
        request.is_abandoned = True
        self._write(self._session.send(request))

    def _give_up_silent(self) -> None:
        _log.warning("%s has fallen silent; connecting anew", self._client.server_name)
        self.transport.abort()

    def _give_up(self, outcome: Broken) -> None:
        self._is_given_up = True
        self._gathered = None
        self._client.connection_gone(self)
        _log.error("gives up the connection to %s: %s", self._client.server_name, outcome.reason)
        self.transport.abort()
        for call in list(self._calls.values()):
            call.fail(RemoteProtocolError(f"{self._client.server_name}: {outcome.reason}"))

    def _write(self, packet: bytes) -> None:
        if self._gathered is None:
            self.transport.write(packet)
        else:
            self._gathered.append(packet)

    def _flush(self) -> None:
        gathered, self._gathered = self._gathered, None
        if gathered:
            self.transport.write(b"".join(gathered))
