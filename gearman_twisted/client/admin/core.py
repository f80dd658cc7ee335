"""The admin client without an event loop: commands of the text protocol, and what their replies mean.

How commands and replies look is for ``wire/text.py``.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import attrs

from gearman_twisted.errors import (
    ConnectionLost,
    GearmanError,
    LocalProtocolError,
    NoServers,
    RemoteProtocolError,
    ServerError,
)
from gearman_twisted.runtime.interfaces import Place, Promise, Runtime, Started, Transport
from gearman_twisted.wire.constants import MAX_TEXT_LINE_BYTES
from gearman_twisted.wire.names import text_or_bytes
from gearman_twisted.wire.text import END, ReplyReader, check_done, check_limits, is_unknown

_T = TypeVar("_T")

_ERROR_CODE = re.compile(r"([A-Z_]+)(?: |$)")
# Seconds that a server has to take what was sent to it before the connection was closed.
_CLOSE_PATIENCE = 5.0


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


@attrs.frozen
class ScheduledJob:
    """A job that waits for its time, as ``show scheduled`` shows it.

    Attributes:
        handle: its handle.
        function: its function.
        unique: its unique; may be empty.
        due: when it runs next, in seconds since 1970.
        schedule: of a recurring job, as ``submit_recurring`` takes it; None for a job that runs once.
    """

    handle: bytes
    function: bytes
    unique: bytes
    due: int
    schedule: str | None


class AdminCore:
    """Gives commands to one job server, over a connection that is made when it is needed.

    Args:
        runtime: the event loop.
        place: where the server is.
    """

    def __init__(self, runtime: Runtime, place: Place) -> None:
        self.name = place.name
        self._runtime = runtime
        self._place = place
        self._log = runtime.log("client")
        self._connection: _AdminConnection | None = None
        self._closing: dict[_AdminConnection, Promise[None]] = {}

    def command(self, line: str | bytes) -> Promise[bytes]:
        """Send a command as it is; the promise is settled with its whole reply."""
        data = line.encode() if isinstance(line, str) else line
        if b"\n" in data or b"\r" in data or data.startswith(b"\0") or len(data) + 2 > MAX_TEXT_LINE_BYTES:
            text = f"a command is one line of at most {MAX_TEXT_LINE_BYTES - 2} bytes: {data!r:.200}"
            promise = self._runtime.promise()
            promise.fail(LocalProtocolError(text))
            return promise
        command = _PendingCommand(data, self._runtime)
        promise = command.promise
        if self._connection is None:
            connection = self._connection = _AdminConnection(self)
            connection.add(command)
            connection.connecting = self._runtime.background(self._connect(connection))
        else:
            self._connection.add(command)
        return promise

    async def status(self) -> list[FunctionStatus]:
        """Return all functions."""
        return await self._table(b"status", 4, lambda row: FunctionStatus(row[0], *map(int, row[1:])))

    async def priority_status(self) -> list[PriorityStatus]:
        """Return all functions with their queued jobs by priority."""
        return await self._table(b"prioritystatus", 5, lambda row: PriorityStatus(row[0], *map(int, row[1:])))

    async def show_jobs(self) -> list[JobInfo]:
        """Return all jobs."""
        return await self._table(
            b"show jobs", 4, lambda row: JobInfo(row[0], int(row[1]), row[2] != b"0", row[3] != b"0")
        )

    async def show_scheduled(self) -> list[ScheduledJob]:
        """Return all jobs that wait for their time."""

        def make(row: list[bytes]) -> ScheduledJob:
            schedule = None if row[4] == b"-" else row[4].decode("utf-8", "replace")
            return ScheduledJob(row[0], row[1], row[2], int(row[3]), schedule)

        return await self._table(b"show scheduled", 5, make)

    async def show_unique_jobs(self) -> list[bytes]:
        """Return the uniques of all jobs."""
        return await self._rows(b"show unique jobs", bytes)

    async def workers(self) -> list[ConnectionInfo]:
        """Return all connections."""
        return await self._rows(b"workers", _connection_info)

    async def ready(self) -> bool:
        """Return whether the server has read its stored jobs."""
        try:
            await self._checked(b"ready")
        except ServerError as error:
            if error.code != "LOADING":
                raise
            return False
        return True

    async def value(self, line: bytes) -> str:
        """Return the answer to a command that asks for one value."""
        reply = await self._checked(line)
        return _parsed(reply, line, lambda: reply[3:].rstrip(b"\r\n").decode("utf-8", "replace"))

    async def number(self, line: bytes) -> int:
        """Return the answer to a command that asks for one number."""
        reply = await self._checked(line)
        return _parsed(reply, line, lambda: int(reply[3:]))

    async def change(self, command: bytes, *words: str | bytes | int) -> None:
        """Give a command that changes something.

        Args:
            command: the command.
            words: what follows: names, and numbers.
        """
        line = [command]
        for word in words:
            data = b"%d" % word if isinstance(word, int) else text_or_bytes(word, "a name")
            if not data or re.search(rb"[\s\0]", data):
                # The server would take the blank for the end of the name.
                raise LocalProtocolError(
                    f"a name in a text command has no blanks, and is not empty: {data!r:.200}"
                )
            line.append(data)
        text = b" ".join(line)
        check_done(text, await self._checked(text))

    async def max_queue(self, function: str | bytes, *limits: int) -> None:
        """Limit how many jobs of a function may be queued."""
        # Servers take anything else for "no limit", and answer OK.
        check_limits(limits)
        await self.change(b"maxqueue", function, *limits)

    async def close(self) -> None:
        """Disconnect; what waits for an answer fails. A command that is given later connects again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if connection.transport is None:
                connection.fail(NoServers(f"the client of {self.name} was closed"))
                if connection.connecting is not None:
                    connection.connecting.cancel()
            else:
                self._closing[connection] = self._runtime.promise()
                timer = self._runtime.later(_CLOSE_PATIENCE, connection.transport.abort)
                connection.transport.close()
                await self._closing[connection]
                timer.cancel()

    async def _connect(self, connection: _AdminConnection) -> None:
        try:
            await self._place.connect(connection)
        except Exception as error:  # noqa: BLE001 - whatever fails, the waiting calls have to fail
            self._forget(connection)
            connection.fail(NoServers(f"cannot connect to {self.name}: {error or type(error).__name__}"))

    async def _checked(self, line: bytes) -> bytes:
        reply = await self.command(line)
        if not reply.startswith(b"ERR"):
            return reply
        text = reply[4:].rstrip(b"\r\n").decode("utf-8", "replace")
        if is_unknown(reply):
            code = text.partition(" ")[0]
            raise ServerError(code, f"it does not know, or not allow, the command {line.decode()!r}")
        # Not all errors of gearmand have a code: "ERR function not found".
        found = _ERROR_CODE.match(text)
        code = found[1] if found else "ERR"
        said = text[found.end() :] if found else text
        raise ServerError(code, said.replace("+", " ") or "the server refused the command")

    async def _rows(self, line: bytes, parse: Callable[[bytes], _T]) -> list[_T]:
        reply = await self._checked(line)
        return _parsed(reply, line, lambda: [parse(row) for row in reply.removesuffix(END).split(b"\n")[:-1]])

    async def _table(self, line: bytes, columns: int, make: Callable[[list[bytes]], _T]) -> list[_T]:
        # From the right: what gearmand was given as a name may hold tabs.
        return await self._rows(line, lambda row: make(row.rsplit(b"\t", columns - 1)))

    # What the connection calls.

    def is_wanted(self, connection: _AdminConnection) -> bool:
        """Return whether a connection that was just made is still of use."""
        return connection is self._connection

    def connection_lost(self, connection: _AdminConnection, reason: str) -> None:
        """Fail what waits on a connection that is gone."""
        self._forget(connection)
        text = f"the connection to {self.name} was lost: {reason}"
        connection.fail(ConnectionLost(text, function=b""))
        closed = self._closing.pop(connection, None)
        if closed is not None:
            closed.succeed(None)

    def given_up(self, connection: _AdminConnection, reason: RemoteProtocolError) -> None:
        """Use a connection no more whose replies make no sense."""
        self._forget(connection)
        self._log.error("closing connection to {server}: {reason}", server=self.name, reason=str(reason))

    def _forget(self, connection: _AdminConnection) -> None:
        if self._connection is connection:
            self._connection = None


class _PendingCommand:
    """A command, and the promise that its caller has."""

    __slots__ = ("_is_cancelled", "line", "promise")

    def __init__(self, line: bytes, runtime: Runtime) -> None:
        self.line = line
        self._is_cancelled = False
        self.promise: Promise[bytes] = runtime.promise(self._cancelled)

    def answer(self, reply: bytes) -> None:
        if not self._is_cancelled:
            self.promise.succeed(reply)

    def fail(self, error: GearmanError) -> None:
        if not self._is_cancelled:
            self.promise.fail(error)

    def _cancelled(self) -> None:
        # It keeps its place: the reply comes all the same.
        self._is_cancelled = True


class _AdminConnection:
    """A connection, and the commands that wait for their replies on it."""

    def __init__(self, core: AdminCore) -> None:
        self.transport: Transport | None = None
        self.connecting: Started[object] | None = None
        self._core = core
        self._waiting: deque[_PendingCommand] = deque()
        self._replies = ReplyReader()
        self._is_given_up = False

    def add(self, command: _PendingCommand) -> None:
        self._waiting.append(command)
        if self.transport is not None:
            self._send(command, self.transport)

    def fail(self, error: GearmanError) -> None:
        waiting, self._waiting = self._waiting, deque()
        for command in waiting:
            command.fail(error)

    def connected(self, transport: Transport) -> None:
        if not self._core.is_wanted(self):
            transport.abort()
            return
        self.transport = transport
        for command in self._waiting:
            self._send(command, transport)

    def received(self, data: bytes) -> None:
        if self._is_given_up:
            return
        self._replies.feed(data)
        try:
            self._take()
        except RemoteProtocolError as error:
            self._give_up(error)

    def lost(self, reason: str) -> None:
        self._core.connection_lost(self, reason)

    def _send(self, command: _PendingCommand, transport: Transport) -> None:
        # gearmand cuts the last character off the name in "create function" unless the line ends so.
        transport.write(command.line + b"\r\n")

    def _take(self) -> None:
        """Take all replies that are complete."""
        replies = self._replies
        while replies.received:
            if not self._waiting:
                # Replies belong to commands by their order: nothing after this can be trusted.
                said = bytes(replies.received[:80])
                raise RemoteProtocolError(f"the server sent {said!r}, and nothing was asked")
            reply = replies.take(self._waiting[0].line)
            if reply is None:
                break
            self._waiting.popleft().answer(reply)

    def _give_up(self, error: RemoteProtocolError) -> None:
        self._is_given_up = True
        self._replies = ReplyReader()
        self._core.given_up(self, error)
        self.fail(error)
        if self.transport is not None:
            self.transport.abort()


def _parsed(reply: bytes, line: bytes, parse: Callable[[], _T]) -> _T:
    try:
        return parse()
    except (ValueError, TypeError, IndexError) as error:
        raise RemoteProtocolError(f"the reply to {line.decode()!r} makes no sense: {reply!r:.200}") from error


def _connection_info(row: bytes) -> ConnectionInfo:
    fields = row.split(b" ")
    # A client id may hold blanks in gearmand, an address colons, but neither is a colon of its own.
    colon = fields.index(b":", 3)
    functions = tuple(field for field in fields[colon + 1 :] if field)
    address = fields[1].decode("utf-8", "replace")
    return ConnectionInfo(int(fields[0]), address, b" ".join(fields[2:colon]), functions)
