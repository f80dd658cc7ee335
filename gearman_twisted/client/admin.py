"""The admin client: the commands of the text protocol as Deferreds.

How commands and replies look is for ``wire/text.py``; here is the connection, and what the columns mean.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from gearman_twisted.errors import (
    ConnectionLost,
    GearmanError,
    LocalProtocolError,
    NoServers,
    RemoteProtocolError,
    ServerError,
)
from gearman_twisted.runtime.address import client_endpoint
from gearman_twisted.wire.constants import MAX_TEXT_LINE_BYTES
from gearman_twisted.wire.text import END, take_reply

_log = Logger()

_ERROR_CODE = re.compile(r"([A-Z_]+)(?: |$)")


@attrs.frozen
class FunctionStatus:
    """A function, as ``status`` shows it.

    Attributes:
        name: its name.
        total: jobs that are queued or running.
        running: jobs that are running.
        workers: workers that offer it.
    """

    name: bytes
    total: int
    running: int
    workers: int


@attrs.frozen
class PriorityStatus:
    """A function, as ``prioritystatus`` shows it: queued jobs by priority, and workers that offer it."""

    name: bytes
    high: int
    normal: int
    low: int
    workers: int


@attrs.frozen
class ConnectionInfo:
    """A connection, as ``workers`` shows it; clients and the asking one are connections too.

    Attributes:
        number: what the server calls it: the file descriptor in gearmand.
        address: the peer's address, without its port.
        client_id: the name that the peer gave itself, ``-`` if it gave none.
        functions: what it offers as a worker; may be empty.
    """

    number: int
    address: str
    client_id: bytes
    functions: tuple[bytes, ...]


@attrs.frozen
class JobInfo:
    """A job, as ``show jobs`` shows it.

    Attributes:
        handle: its handle.
        attempts: how often its worker was lost.
        is_ignored: whether it was cancelled while it was running or queued.
        is_background: whether it is a background job.
    """

    handle: bytes
    attempts: int
    is_ignored: bool
    is_background: bool


class AdminClient:
    """Asks one job server, by the commands of its text protocol.

    It connects when a command is given and there is no connection. Commands go out in the order of the
    calls, and any number may wait for their answers at once.

    Every method returns a Deferred, and all errors come through it. It fails with ``NoServers`` when the
    server cannot be reached, ``ConnectionLost`` when the connection is lost before the answer is there (the
    command may have been carried out), ``LocalProtocolError`` when the command cannot be sent, and
    ``RemoteProtocolError`` when the answer makes no sense. All but ``command`` fail with ``ServerError``
    when the server refuses. Cancelling it means that nobody listens any more.

    Args:
        server: ``host``, ``host:port``, ``[IPv6]:port``, the string of a Twisted client endpoint, or an
            ``IStreamClientEndpoint``.
        reactor: the reactor to connect with; the global one if None.

    Raises:
        ConfigError: the server's address makes no sense.
    """

    def __init__(
        self, server: str | IStreamClientEndpoint = "127.0.0.1:4730", *, reactor: Any = None
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self.server_name = server if isinstance(server, str) else repr(server)
        self._endpoint = client_endpoint(reactor, server)
        self._waiting: deque[_Command] = deque()
        self._protocol: _AdminProtocol | None = None
        self._connecting: Deferred[Any] | None = None
        self._closed: list[Deferred[None]] = []

    def command(self, line: str | bytes) -> Deferred[bytes]:
        """Sends a command as it is.

        Args:
            line: the command, without a line end; text as UTF-8.

        Returns:
            A Deferred that fires with the whole reply as it was sent, line ends included. An ``ERR`` reply is
            a reply too.
        """
        data = line.encode() if isinstance(line, str) else line
        if b"\n" in data or b"\r" in data or data.startswith(b"\0") or len(data) + 2 > MAX_TEXT_LINE_BYTES:
            return fail(
                LocalProtocolError(
                    f"a command is one line of at most {MAX_TEXT_LINE_BYTES - 2} bytes: {data!r:.200}"
                )
            )
        command = _Command(data)
        self._waiting.append(command)
        if self._protocol is not None:
            self._protocol.send(command)
        elif self._connecting is None:
            self._connecting = self._endpoint.connect(_AdminFactory(self))
            self._connecting.addErrback(self._connect_failed)
        return command.deferred

    def status(self) -> Deferred[list[FunctionStatus]]:
        """All functions, in the server's order; may be empty."""
        return self._table(b"status", 4, lambda row: FunctionStatus(row[0], *map(int, row[1:])))

    def priority_status(self) -> Deferred[list[PriorityStatus]]:
        """All functions with their queued jobs by priority, in the server's order; may be empty."""
        return self._table(b"prioritystatus", 5, lambda row: PriorityStatus(row[0], *map(int, row[1:])))

    def show_jobs(self) -> Deferred[list[JobInfo]]:
        """All jobs, in the server's order; may be empty."""
        return self._table(
            b"show jobs", 4, lambda row: JobInfo(row[0], int(row[1]), row[2] != b"0", row[3] != b"0")
        )

    def workers(self) -> Deferred[list[ConnectionInfo]]:
        """All connections, in the server's order; at least the asking one."""
        return self._rows(b"workers", _connection_info)

    def version(self) -> Deferred[str]:
        """The server's version."""
        return self._value(b"version")

    def verbose(self) -> Deferred[str]:
        """The server's log level, such as ``ERROR``."""
        return self._value(b"verbose")

    def getpid(self) -> Deferred[int]:
        """The server's process id."""
        return self._checked(b"getpid").addCallback(_parsed, b"getpid", lambda reply: int(reply[3:]))

    def cancel(self, handle: bytes) -> Deferred[None]:
        """Takes a job that waits out of its queue; fails with code ``UNKNOWN_JOB`` if there is none."""
        return self._done(b"cancel job %b", handle)

    def create_function(self, function: str | bytes) -> Deferred[None]:
        """Makes the server know a function before there is a worker or a job for it."""
        return self._done(b"create function %b", function)

    def drop_function(self, function: str | bytes) -> Deferred[None]:
        """Makes the server forget a function, unless workers or jobs are there for it."""
        return self._done(b"drop function %b", function)

    def max_queue(self, function: str | bytes, *limits: int) -> Deferred[None]:
        """Limits how many jobs of a function may be queued.

        Args:
            function: the function's name.
            limits: one for all priorities, or those for high, normal and low; 0, or nothing, for no limit.
        """
        return self._done(b"maxqueue %b" + b" %d" * len(limits), function, *limits)

    def close(self) -> Deferred[None]:
        """Disconnects; what waits for an answer fails. Fires when the connection is closed, never fails.

        A command that is given later connects again.
        """
        if self._connecting is not None:
            self._connecting.cancel()
        if self._protocol is None:
            return succeed(None)
        closed: Deferred[None] = Deferred()
        self._closed.append(closed)
        self._protocol.transport.loseConnection()
        return closed

    async def __aenter__(self) -> AdminClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # What the connection reports.

    def connection_made(self, protocol: _AdminProtocol) -> None:
        """Called by the protocol: commands can be sent."""
        self._connecting = None
        self._protocol = protocol
        for command in self._waiting:
            protocol.send(command)

    def received(self, data: bytes) -> bytes:
        """Called by the protocol: takes all replies that are complete, and returns what is not."""
        while data:
            if not self._waiting:
                # Replies belong to commands by their order: nothing after this can be trusted.
                _log.error(
                    "gives up the connection to {server}: it sent {data!r}, and nothing was asked",
                    server=self.server_name,
                    data=data[:80],
                )
                if self._protocol is not None:
                    self._protocol.transport.abortConnection()
                return b""
            taken = take_reply(self._waiting[0].line, data)
            if taken is None:
                break
            reply, data = taken
            self._waiting.popleft().answer(reply)
        return data

    def connection_lost(self, reason: Failure) -> None:
        """Called by the protocol: all that still waits fails."""
        self._protocol = None
        closed, self._closed = self._closed, []
        self._fail_all(
            lambda: ConnectionLost(
                f"the connection to {self.server_name} was lost: {reason.getErrorMessage()}", function=b""
            )
        )
        for waiting in closed:
            waiting.callback(None)

    def _connect_failed(self, failure: Failure) -> None:
        self._connecting = None
        text = failure.getErrorMessage() or type(failure.value).__name__
        self._fail_all(lambda: NoServers(f"cannot connect to {self.server_name}: {text}"))

    def _fail_all(self, make_error: Callable[[], GearmanError]) -> None:
        # What errbacks ask in turn belongs to the next connection.
        waiting, self._waiting = self._waiting, deque()
        for command in waiting:
            command.fail(make_error())

    # What replies mean.

    def _checked(self, line: bytes) -> Deferred[bytes]:
        return self.command(line).addCallback(_refuse_error)

    def _done(self, template: bytes, name: str | bytes, *numbers: int) -> Deferred[None]:
        word = name.encode() if isinstance(name, str) else name
        if not word or re.search(rb"[\s\0]", word):
            # The server would take the blank for the end of the name.
            return fail(
                LocalProtocolError(f"a name in a text command has no blanks, and is not empty: {word!r:.200}")
            )
        return self._checked(template % (word, *numbers)).addCallback(lambda _: None)

    def _value(self, line: bytes) -> Deferred[str]:
        return self._checked(line).addCallback(
            _parsed, line, lambda reply: reply[3:].rstrip(b"\r\n").decode("utf-8", "replace")
        )

    def _rows(self, line: bytes, parse: Any) -> Deferred[list[Any]]:
        return self._checked(line).addCallback(
            _parsed, line, lambda reply: [parse(row) for row in reply.removesuffix(END).split(b"\n")[:-1]]
        )

    def _table(self, line: bytes, columns: int, make: Any) -> Deferred[list[Any]]:
        # From the right: what gearmand was given as a name may hold tabs.
        return self._rows(line, lambda row: make(row.rsplit(b"\t", columns - 1)))


class _Command:
    """A command, and the Deferred that its caller has."""

    __slots__ = ("deferred", "line")

    def __init__(self, line: bytes) -> None:
        self.line = line
        # Cancelled, it keeps its place: the reply comes all the same.
        self.deferred: Deferred[bytes] = Deferred()

    def answer(self, reply: bytes) -> None:
        if not self.deferred.called:
            self.deferred.callback(reply)

    def fail(self, error: GearmanError) -> None:
        if not self.deferred.called:
            self.deferred.errback(error)


class _AdminProtocol(Protocol):
    """The connection of an admin client."""

    transport: Any  # ITransport with abortConnection: TCP, TLS or UNIX

    def __init__(self, client: AdminClient) -> None:
        self._client = client
        self._received: list[bytes] = []

    def connectionMade(self) -> None:
        self._client.connection_made(self)

    def send(self, command: _Command) -> None:
        # gearmand cuts the last character off the name in "create function" unless the line ends so.
        self.transport.write(command.line + b"\r\n")

    def dataReceived(self, data: bytes) -> None:
        self._received.append(data)
        # Each reply ends with a line end, so only then can one be complete. Long lists come in many
        # pieces, and are not searched again with each.
        if data.endswith(b"\n"):
            rest = self._client.received(b"".join(self._received))
            self._received = [rest] if rest else []

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._client.connection_lost(reason)


class _AdminFactory(Factory):
    noisy = False

    def __init__(self, client: AdminClient) -> None:
        self._client = client

    def buildProtocol(self, addr: Any) -> _AdminProtocol:
        return _AdminProtocol(self._client)


def _refuse_error(reply: bytes) -> bytes:
    if not reply.startswith(b"ERR"):
        return reply
    text = reply[4:].rstrip(b"\r\n").decode("utf-8", "replace")
    # Not all errors of gearmand have a code: "ERR function not found".
    found = _ERROR_CODE.match(text)
    code = found[1] if found else "ERR"
    said = text[found.end() :] if found else text
    raise ServerError(code, said.replace("+", " ") or "the server refused the command")


def _parsed(reply: bytes, line: bytes, parse: Any) -> Any:
    try:
        return parse(reply)
    except (ValueError, TypeError, IndexError) as error:
        raise RemoteProtocolError(f"the reply to {line.decode()!r} makes no sense: {reply!r:.200}") from error


def _connection_info(row: bytes) -> ConnectionInfo:
    fields = row.split(b" ")
    # A client id may hold blanks in gearmand, an address colons, but neither is a colon of its own.
    colon = fields.index(b":", 3)
    functions = tuple(field for field in fields[colon + 1 :] if field)
    address = fields[1].decode("utf-8", "replace")
    return ConnectionInfo(int(fields[0]), address, b" ".join(fields[2:colon]), functions)
