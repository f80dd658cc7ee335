"""A connection of the client: its bytes, its calls, and how they end.

Which request a packet belongs to is known to ``client/session.py``; when to connect, to
``client/on_twisted.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IProtocolFactory, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gearman_twisted.client.course import Callbacks, Course
from gearman_twisted.client.requests import Request, echo_request, option_request
from gearman_twisted.client.session import Broken, ClientSession, Outcome, Refused
from gearman_twisted.errors import ConnectionLost, GearmanError, RemoteProtocolError
from gearman_twisted.runtime.keepalive import Keepalive
from gearman_twisted.runtime.on_twisted import TwistedRuntime
from gearman_twisted.runtime.transport import sender, unsent_bytes
from gearman_twisted.wire.codec import Decoder
from gearman_twisted.wire.constants import RES
from gearman_twisted.wire.names import client_id_packet

if TYPE_CHECKING:
    from gearman_twisted.client.on_twisted import GearmanClient

_log = Logger()


class Call:
    """A request, the Deferred that its caller has, and what the caller wants to be told on the way."""

    __slots__ = ("_course", "_holder", "deferred", "request")

    def __init__(self, request: Request, callbacks: Callbacks) -> None:
        self.request = request
        self.deferred: Deferred[Any] = Deferred(self._cancelled)
        self._course = Course(request, callbacks)
        self._holder: dict[Request, Call] = {}

    def wait_in(self, holder: dict[Request, Call]) -> None:
        """Waits in a dictionary until it is fired or cancelled, and leaves it then."""
        self._holder = holder
        holder[self.request] = self

    def take(self, outcome: Outcome) -> None:
        """Hears of an outcome of its request. If a callback raises, that is its end."""
        try:
            ended = self._course.take(outcome)
        except Exception as error:  # noqa: BLE001 - the caller's own callback; it fails the caller's own call
            self.request.is_abandoned = True
            if self.request in self._holder:
                self.fail(error)
            else:
                _log.failure(
                    "A callback for {request} raised after it had cancelled its call", request=self.request
                )
            return
        if ended is None:
            return
        if ended.error is not None:
            self.fail(ended.error)
        else:
            self._leave().callback(ended.value)

    def fail(self, error: Exception) -> None:
        """Ends with an error."""
        self._leave().errback(error)

    def _cancelled(self, _deferred: Deferred[Any]) -> None:
        # The session goes on to expect the reply, or replies would be taken for those of other requests.
        self.request.is_abandoned = True
        self._leave()

    def _leave(self) -> Deferred[Any]:
        del self._holder[self.request]
        # Deferred and call would keep each other alive until the garbage collector comes.
        deferred = self.deferred
        del self.deferred
        return deferred


class GearmanClientProtocol(Protocol):
    """A connection of a client to its server.

    Args:
        client: whose connection it is.
    """

    transport: Any  # ITransport with abortConnection: TCP, TLS or UNIX

    def __init__(self, client: GearmanClient) -> None:
        self._client = client
        self._session = ClientSession()
        self._decoder = Decoder(RES)
        self._calls: dict[Request, Call] = {}
        self._gathered: list[bytes] | None = None
        self._is_given_up = False
        self._keepalive: Keepalive | None = None

    def connectionMade(self) -> None:
        """The connection is there, and is told not to wait with small packets."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            # Otherwise a server that vanished without a word is waited for, for ever.
            self.transport.setTcpKeepAlive(True)
        self._write = sender(self.transport)

    def introduce(self, client_id: bytes | None, exceptions: bool) -> None:
        """Sends what goes before all requests, and what waited for the connection."""
        self._gathered = []
        if client_id is not None:
            self._gathered.append(client_id_packet(client_id))
        if exceptions:
            self._gathered.append(self._session.send(option_request(b"exceptions")))
        if self._client.ping_interval is not None:
            self._keepalive = Keepalive(
                TwistedRuntime(self._client.clock),
                self._client.ping_interval,
                ask=lambda: self.send(Call(echo_request(b"ping"), Callbacks())),
                unsent=lambda: unsent_bytes(self.transport),
                give_up=self._give_up_silent,
            )
            self._keepalive.answered()
            self._keepalive.start()
        self._client.connection_ready(self)
        self._flush()

    def send(self, call: Call) -> None:
        """Sends a call's request."""
        call.wait_in(self._calls)
        packet = self._session.send(call.request)
        if self._gathered is None:
            self._write(packet)
        else:
            self._gathered.append(packet)

    def dataReceived(self, data: bytes) -> None:
        """Tells the calls what came; what their callbacks call in turn goes out in one write."""
        if self._is_given_up:
            return
        if self._keepalive is not None:
            self._keepalive.heard()
        calls = self._calls
        self._gathered = []
        for outcome in self._session.receive(self._decoder.feed(data)):
            if isinstance(outcome, Broken):
                self._give_up(outcome)
                return
            call = calls.get(outcome.request)
            if call is not None:
                call.take(outcome)
            elif isinstance(outcome, Refused) and not outcome.request.is_abandoned:
                _log.warn(
                    "{server} does not give exceptions to its clients: {text}",
                    server=self._client.server_name,
                    text=outcome.text.decode("utf-8", "replace"),
                )
        self._flush()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fails all that still waits for an answer."""
        if self._keepalive is not None:
            self._keepalive.stop()
        self._client.connection_gone(self)
        why = f"the connection to {self._client.server_name} was lost: {reason.getErrorMessage()}"
        self._fail_calls(
            lambda request: ConnectionLost(why, function=request.function, handle=request.handle)
        )

    def _give_up_silent(self) -> None:
        _log.warn("{server} has fallen silent; connecting anew", server=self._client.server_name)
        self.transport.abortConnection()

    def _give_up(self, outcome: Broken) -> None:
        self._is_given_up = True
        self._gathered = None
        self._client.connection_gone(self)
        _log.error(
            "gives up the connection to {server}: {reason}",
            server=self._client.server_name,
            reason=str(outcome.reason),
        )
        self.transport.abortConnection()
        text = f"{self._client.server_name}: {outcome.reason}"
        self._fail_calls(lambda _: RemoteProtocolError(text))

    def _fail_calls(self, make_error: Callable[[Request], GearmanError]) -> None:
        for call in list(self._calls.values()):
            if call.request in self._calls:
                call.fail(make_error(call.request))

    def _flush(self) -> None:
        gathered, self._gathered = self._gathered, None
        if gathered:
            self._write(b"".join(gathered))


@implementer(IProtocolFactory)
class GearmanClientFactory(Factory):
    """Makes the connections of a client.

    Args:
        client: whose connections they are.
    """

    noisy = False

    def __init__(self, client: GearmanClient) -> None:
        self._client = client

    def buildProtocol(self, addr: IAddress | None) -> GearmanClientProtocol:
        """A connection that was just made."""
        return GearmanClientProtocol(self._client)
