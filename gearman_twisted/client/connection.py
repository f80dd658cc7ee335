"""A connection of a client: its bytes, the calls on it, and how they end.

Which request a packet belongs to is known to ``session.py``; when to connect, to ``core.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from gearman_twisted.client.call import Call
from gearman_twisted.client.requests import Request, option_request, ping_request
from gearman_twisted.client.session import NO_ANSWER, Answered, Broken, ClientSession, Refused
from gearman_twisted.errors import (
    ConfigError,
    ConnectionLost,
    GearmanError,
    LocalProtocolError,
    RemoteProtocolError,
)
from gearman_twisted.runtime.interfaces import Log, Timers, Transport
from gearman_twisted.runtime.keepalive import Keepalive
from gearman_twisted.runtime.link import reason_of_loss
from gearman_twisted.wire.codec import Decoder, passed_on_bytes
from gearman_twisted.wire.constants import HEADER_BYTES, LARGEST_PACKET_BYTES, RES, PacketType
from gearman_twisted.wire.names import check_client_id, client_id_packet, text_or_bytes
from gearman_twisted.wire.pieces import write_all
from gearman_twisted.wire.shown import shown


class ConnectionSettings(NamedTuple):
    """Settings of a connection: client id, exceptions, pings, limits.

    Attributes:
        client_id: the name that the server's command ``workers`` shows; None for none.
        exceptions: whether to ask for the exceptions of workers.
        ping_interval: seconds after which a silent server is given up; None for never.
        max_packet_bytes: the largest packet that servers take, and so pass on.
    """

    client_id: bytes | None
    exceptions: bool
    ping_interval: float | None
    max_packet_bytes: int

    @classmethod
    def of(
        cls,
        client_id: str | bytes | None,
        exceptions: bool,
        ping_interval: float | None,
        max_packet_bytes: int,
    ) -> ConnectionSettings:
        """Return the settings that a user has given.

        Raises:
            ConfigError: a number makes no sense.
            LocalProtocolError: the client id cannot be sent.
        """
        if ping_interval is not None and not (
            isinstance(ping_interval, int | float) and 0.1 <= ping_interval <= 86_400
        ):
            raise ConfigError(f"ping_interval takes 0.1 to 86400 seconds or None, not {ping_interval!r}")
        if not (isinstance(max_packet_bytes, int) and 1024 <= max_packet_bytes <= LARGEST_PACKET_BYTES):
            raise ConfigError(
                f"max_packet_bytes takes 1024 to {LARGEST_PACKET_BYTES}, not {max_packet_bytes!r}"
            )
        if client_id is not None:
            client_id = check_client_id(text_or_bytes(client_id, "client_id"))
        return cls(client_id, exceptions, ping_interval, max_packet_bytes)


class ClientConnectionOwner(Protocol):
    """Whose connection it is."""

    def connection_ready(self, connection: ClientConnection) -> None:
        """It takes requests."""

    def connection_answers(self, connection: ClientConnection) -> None:
        """The server has sent something, for the first time."""

    def connection_gone(self, connection: ClientConnection) -> None:
        """It takes no more requests."""


class ClientConnection:
    """A connection of a client to its server.

    Args:
        runtime: the event loop; its timers are enough.
        settings: what to say first, and when to give up.
        server_name: what the server is called in logs and errors; may be set until it is connected.
        log: where to log.
        owner: notified when it is made and lost; may be None.

    Attributes:
        was_silent: whether it was given up because the server did not answer.
    """

    def __init__(
        self,
        runtime: Timers,
        settings: ConnectionSettings,
        server_name: str,
        log: Log,
        owner: ClientConnectionOwner | None = None,
    ) -> None:
        self.server_name = server_name
        self._runtime = runtime
        self._settings = settings
        self._log = log
        self._owner = owner
        self._session = ClientSession()
        self._decoder = Decoder(RES, max_packet_bytes=passed_on_bytes(settings.max_packet_bytes))
        self._calls: dict[Request, Call] = {}
        self._transport: Transport | None = None
        # Packets that go out in one write.
        self._gathered: list[bytes] | None = None
        self._keepalive: Keepalive | None = None
        self._has_answered = False
        self.was_silent = False
        self._is_closing = False
        self._ping: Request | None = None
        # Why it was given up, and why it takes no requests.
        self._given_up: str | None = None
        self._why_gone = "it was not made yet"

    def connected(self, transport: Transport) -> None:
        """Introduce the client, and send what waited for the connection."""
        self._transport = transport
        self._log.info("connected to {server}", server=self.server_name)
        self._gathered = []
        settings = self._settings
        if settings.client_id is not None:
            self._gathered.append(client_id_packet(settings.client_id))
        if settings.exceptions:
            self._send(option_request(b"exceptions"))
        if settings.ping_interval is not None:
            self._keepalive = Keepalive(
                self._runtime,
                settings.ping_interval,
                ask=self.ping,
                unsent=transport.unsent,
                give_up=self._give_up_silent,
                owes=self._session.owes_reply,
            )
            self._keepalive.start()
        if self._owner is not None:
            self._owner.connection_ready(self)
        self._flush()

    def begin(self, call: Call) -> None:
        """Send a call's request, unless it is larger than what the server takes: the call fails then."""
        if self._transport is None:
            call.fail(self._lost_error(call.request))
            return
        # A server that takes no more would close the connection, and end all other calls on it.
        size = sum(map(len, call.request.packet)) - HEADER_BYTES
        if size > self._settings.max_packet_bytes:
            call.fail(
                LocalProtocolError(
                    f"the request would be a packet of {size:,} bytes, and max_packet_bytes is "
                    f"{self._settings.max_packet_bytes:,}; if the server takes more, raise it"
                )
            )
            return
        call.wait_in(self._calls)
        packet = self._session.send(call.request)
        if self._gathered is None:
            write_all(self._transport.write, packet)
        else:
            self._gathered += packet

    def ping(self) -> None:
        """Ask for a sign of life. The answer to the last one, if it is still due, is one too."""
        if self._ping is None:
            self._ping = ping_request()
            self._send(self._ping)

    def received(self, data: bytes) -> None:
        """Tell the calls what came; what they call in turn goes out in one write."""
        if self._given_up is not None:
            return
        if self._keepalive is not None:
            self._keepalive.heard()
        calls = self._calls
        self._gathered = []
        for event in self._session.receive(self._decoder.feed(data)):
            if isinstance(event, Broken):
                self._give_up(event.reason)
                return
            call = calls.get(event.request)
            if call is None:
                self._take_own(event)
            else:
                if isinstance(event, Answered):
                    self._note_answer(event.request)
                if (error := call.take(event)) is not None:
                    self._log.failure("a callback raised after it had cancelled its own call", error)
        if not self._has_answered:
            self._has_answered = True
            if self._owner is not None:
                self._owner.connection_answers(self)
        self._flush()

    def lost(self, reason: str) -> None:
        """Fail all that still waits for an answer."""
        if not self._is_closing and self._given_up is None:
            reason = self._explained(reason)
        self._end(self._given_up or reason)
        self._fail_calls(self._lost_error)

    def closing(self) -> None:
        """Note that its owner closes it."""
        self._is_closing = True

    def _send(self, request: Request) -> None:
        """Send a request of the connection itself, without a call."""
        assert self._transport is not None
        packet = self._session.send(request)
        if self._gathered is None:
            write_all(self._transport.write, packet)
        else:
            self._gathered += packet

    def _flush(self) -> None:
        gathered, self._gathered = self._gathered, None
        if gathered and self._transport is not None:
            write_all(self._transport.write, gathered)

    def _take_own(self, event: Any) -> None:
        """Handle an event of a request without a call."""
        request = event.request
        if request.is_abandoned:
            return
        is_refused = isinstance(event, Refused)
        if request is self._ping:
            self._ping = None
        elif is_refused:
            text = shown(event.text)
            self._log.warning(
                "{server} does not forward exceptions: {text}", server=self.server_name, text=text
            )
        if not (is_refused and event.code == NO_ANSWER):
            self._note_answer(request)

    def _note_answer(self, request: Request) -> None:
        # A server that answers requests for options answers pings as well.
        if self._keepalive is not None and request.reply in (PacketType.ECHO_RES, PacketType.OPTION_RES):
            self._keepalive.answered()

    def _give_up_silent(self) -> None:
        self.was_silent = True
        self._given_up = f"no answer within {self._settings.ping_interval:g} seconds"
        self._abort()

    def _give_up(self, reason: RemoteProtocolError) -> None:
        self._given_up = self._explained(str(reason))
        self._gathered = None
        self._abort()
        text = f"{self.server_name}: {self._given_up}"
        self._end(self._given_up)
        self._fail_calls(lambda _: RemoteProtocolError(text))

    def _explained(self, reason: str) -> str:
        if self._transport is None:
            return reason
        return reason_of_loss(reason, self._transport, has_answered=self._has_answered)

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _end(self, reason: str) -> None:
        """Take no more requests. Idempotent."""
        if self._transport is None:
            return
        self._transport = None
        self._why_gone = reason
        if self._keepalive is not None:
            self._keepalive.stop()
        if self._is_closing:
            self._log.info("closed the connection to {server}", server=self.server_name)
        else:
            self._log.warning("lost {server}: {reason}", server=self.server_name, reason=reason)
        if self._owner is not None:
            self._owner.connection_gone(self)

    def _lost_error(self, request: Request) -> ConnectionLost:
        text = f"the connection to {self.server_name} was lost: {self._why_gone}"
        return ConnectionLost(text, function=request.function, handle=request.handle)

    def _fail_calls(self, make_error: Callable[[Request], GearmanError]) -> None:
        # Errbacks may cancel others.
        for call in list(self._calls.values()):
            if call.request in self._calls:
                call.fail(make_error(call.request))
