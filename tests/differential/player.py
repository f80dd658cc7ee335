"""Plays steps to our server in memory and to gearmand over sockets: bytes in, packets and answers out.

After each step every connection that can still be talked to echoes a payload of its own (the barrier), so
what came of the step is known. gearmand runs with one I/O thread, or it would race with itself.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import socket

import attrs
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.engine.states import State
from gearman_twisted.server.connection import GearmanServerProtocol
from gearman_twisted.wire.codec import Decoder, encode
from gearman_twisted.wire.constants import HEADER_BYTES, REQ, RES, PacketType
from gearman_twisted.wire.packet import Packet
from gearman_twisted.wire.text import ReplyReader
from tests.differential.script import Fatal, Handle, Line, Piece, packet
from tests.kit.gearmand import Gearmand
from tests.kit.server_rig import ServerRig

# How the two are set up alike: our settings, gearmand's options.
PROFILES: dict[str, tuple[EngineSettings, tuple[str, ...]]] = {
    "plain": (EngineSettings(order="1.1"), ()),
    "strict": (EngineSettings(order="1.1", job_retries=2, exceptions=True), ("-j", "2", "--exceptions")),
}
NOON = 1_700_000_000.0
PATIENCE = 5.0

Item = tuple[bytes, ...]
"""What a peer received: the packet's name and its arguments, or ``text``, the command and its answer."""

CLOSED: Item = (b"closed",)

_WITH_HANDLE = {
    PacketType.JOB_CREATED,
    PacketType.JOB_ASSIGN,
    PacketType.JOB_ASSIGN_UNIQ,
    PacketType.JOB_ASSIGN_ALL,
    PacketType.WORK_STATUS,
    PacketType.WORK_COMPLETE,
    PacketType.WORK_FAIL,
    PacketType.WORK_EXCEPTION,
    PacketType.WORK_DATA,
    PacketType.WORK_WARNING,
    PacketType.STATUS_RES,
}
_ASSIGNS = {PacketType.JOB_ASSIGN, PacketType.JOB_ASSIGN_UNIQ, PacketType.JOB_ASSIGN_ALL}
_LISTS = {b"status", b"prioritystatus", b"workers", b"show jobs", b"show unique jobs"}
_PLAIN = re.compile(rb"(?i)(getpid|version)( |$)")


@attrs.frozen
class JobView:
    """What our server knows of a job.

    Attributes:
        function, unique, unique_bytes, state, priority, is_background: see ``engine.records.Job``.
        clients: the connections that get its packets.
        worker: the connection that runs it.
    """

    function: bytes
    unique: bytes
    unique_bytes: int
    state: State
    priority: int
    is_background: bool
    clients: frozenset[int]
    worker: int | None


class Hung(Exception):
    """The server neither answers nor closes the connection."""


class Wire:
    """What came on one connection and was not looked at yet, and which answers are due on it."""

    def __init__(self) -> None:
        self.buffer = b""
        self.commands: list[tuple[bytes, bytes]] = []

    def take(self) -> tuple[Packet | None, bytes, bytes] | None:
        """The next packet, or command and answer; None if it is not all there."""
        if not self.buffer:
            return None
        if self.buffer[0]:
            # None is due after bytes that gearmand would not answer.
            command, shown = self.commands[0] if self.commands else (b"", b"")
            replies = ReplyReader()
            replies.feed(self.buffer)
            reply = replies.take(command)
            if reply is None:
                return None
            del self.commands[:1]
            self.buffer = bytes(replies.received)
            return None, shown, reply
        if len(self.buffer) < HEADER_BYTES:
            return None
        end = HEADER_BYTES + int.from_bytes(self.buffer[8:12], "big")
        if len(self.buffer) < end:
            return None
        [received] = Decoder(RES).feed(self.buffer[:end])
        self.buffer = self.buffer[end:]
        return received, b"", b""


class Side:
    """One of the two servers, as the peers of a script see it.

    Attributes:
        handles: the handles in the order in which they were given.
        live: the connections that are open, in the order in which they were made.
    """

    def __init__(self, tag: bytes) -> None:
        self.tag = tag
        self.handles: list[bytes] = []
        self.live: list[int] = []
        self._assigned: dict[int, list[bytes]] = {}
        self._numbers = itertools.count()
        self._wires: dict[int, Wire] = {}

    # What a kind of server does.

    def _open(self, conn: int) -> None:
        raise NotImplementedError

    def _write(self, conn: int, data: bytes, cut: int) -> None:
        raise NotImplementedError

    def _shut(self, conn: int) -> None:
        raise NotImplementedError

    def settle(self) -> dict[int, list[Item]]:
        """Waits until all that was sent has had its effects; returns what each connection received."""
        raise NotImplementedError

    # What a script wants.

    def connect(self) -> int:
        """A new connection."""
        conn = next(self._numbers)
        self._wires[conn] = Wire()
        self._assigned[conn] = []
        self.live.append(conn)
        self._open(conn)
        return conn

    def leave(self, conn: int) -> None:
        """Closes a connection from the peer's side."""
        self.live.remove(conn)
        self._shut(conn)

    def send(self, conn: int, pieces: tuple[Piece, ...], cut: int = 0) -> None:
        """Sends pieces."""
        wire = self._wires[conn]
        data = b""
        for piece in pieces:
            if isinstance(piece, Fatal):
                own = self._own(piece.data)
                data += own if piece.type is None else packet(piece.type, own)
            elif isinstance(piece, Line):
                command = b"".join(self._resolve(conn, word) for word in piece.words)
                wire.commands.append((command, self.shown(conn, piece)))
                data += command + piece.end
            else:
                args = b"\0".join(self._resolve(conn, arg) for arg in piece.args)
                data += packet(piece.type, args, piece.magic)
        self._write(conn, data, cut if cut < len(data) else 0)

    def shown(self, conn: int, piece: Line) -> bytes:
        """A command with the names of its handles."""
        return b"".join(self.name(conn, word) if isinstance(word, Handle) else word for word in piece.words)

    def name(self, conn: int, handle: bytes | Handle) -> bytes:
        """The name of the handle that an argument stands for now."""
        return self._name(self._resolve(conn, handle))

    def _own(self, data: bytes) -> bytes:
        return data.replace(b"@", self.tag)

    def _resolve(self, conn: int, arg: bytes | Handle) -> bytes:
        if not isinstance(arg, Handle):
            return self._own(arg)
        known = self._assigned[conn] if arg.mine else self.handles
        return (known[-1 - arg.back % len(known)] if known else b"H:nobody:1") + arg.tail

    def _read(self, conn: int) -> list[Item]:
        """Takes what is there, made comparable."""
        items: list[Item] = []
        wire = self._wires[conn]
        while (taken := wire.take()) is not None:
            received, command, reply = taken
            if received is None:
                items.append(self._text_item(command, reply))
                continue
            args = list(received.args)
            if received.type == PacketType.JOB_CREATED and args[0] not in self.handles:
                self.handles.append(args[0])
            if received.type in _ASSIGNS:
                self._assigned[conn].append(args[0])
            if received.type in _WITH_HANDLE:
                args[0] = self._name(args[0])
            name = PacketType(received.type).name.encode()
            items.append((name, *(arg.replace(self.tag, b"@") for arg in args)))
        return items

    def _name(self, handle: bytes) -> bytes:
        bare = handle.rstrip(b"\0")
        if bare not in self.handles:
            return handle
        return b"H%d" % self.handles.index(bare) + handle[len(bare) :]

    def _text_item(self, command: bytes, reply: bytes) -> Item:
        if plain := _PLAIN.match(command):
            # Two servers have two of each.
            return b"text", command, re.sub(rb"^OK \S+\n$", b"OK %b\n" % plain[1].lower(), reply)
        kind = b" ".join(command.split()).lower()
        kind = next((known for known in _LISTS if kind.startswith(known)), b"")
        if not kind or not reply.endswith(b".\n") or reply.startswith(b"ERR "):
            return b"text", command, reply.replace(self.tag, b"@")
        rows: list[bytes] = []
        for line in reply[:-2].splitlines(keepends=True):
            row = line
            if kind == b"show jobs":
                handle, tab, rest = line.partition(b"\t")
                row = self._name(handle) + tab + rest
                if handle not in self.handles:
                    continue
            elif kind == b"workers":
                if b" warden :" in line:
                    continue
                row = line.partition(b" ")[2]
            elif self.tag not in line:
                # Left over from another script; ours has none, and the script's own names have its tag.
                continue
            rows.append(row.replace(self.tag, b"@"))
        return b"text", command, b"".join(sorted(rows)) + b".\n"


class Ours(Side):
    """Our server: rim, engine and decoder, with a transport and a clock in memory."""

    def __init__(self, tag: bytes, settings: EngineSettings) -> None:
        super().__init__(tag)
        self._clock = Clock()
        self._clock.advance(NOON)
        rig = ServerRig(settings=settings, clock=self._clock)
        self.engine, self._factory = rig.engine, rig.factory
        self._peers: dict[int, tuple[GearmanServerProtocol, StringTransport]] = {}
        self._conns: dict[int, int] = {}

    def _open(self, conn: int) -> None:
        protocol = self._factory.buildProtocol(None)
        transport = StringTransport(peerAddress=IPv4Address("TCP", "127.0.0.1", 1))
        self._peers[conn] = (protocol, transport)
        self._conns[protocol.number] = conn
        protocol.makeConnection(transport)

    def _write(self, conn: int, data: bytes, cut: int) -> None:
        protocol, _ = self._peers[conn]
        if cut:
            protocol.dataReceived(data[:cut])
            self._clock.advance(0)
        protocol.dataReceived(data[cut:])

    def _shut(self, conn: int) -> None:
        protocol, _ = self._peers[conn]
        protocol.connectionLost(Failure(ConnectionDone()))

    def settle(self) -> dict[int, list[Item]]:
        """Flushes what the server wants to be written."""
        seen: dict[int, list[Item]] = {}
        self._clock.advance(0)
        for conn in list(self.live):
            _, transport = self._peers[conn]
            self._wires[conn].buffer += transport.value()
            transport.clear()
            seen[conn] = self._read(conn)
            if transport.disconnecting:
                seen[conn].append(CLOSED)
                self.leave(conn)
                self._clock.advance(0)
        return seen

    def jobs(self) -> dict[bytes, JobView]:
        """The jobs that have not ended, by the name of their handle."""
        return {
            self._name(job.handle): JobView(
                job.function.name.replace(self.tag, b"@"),
                job.unique.replace(self.tag, b"@"),
                len(job.unique),
                job.state,
                job.priority,
                job.is_background,
                frozenset(self._conns[client.number] for client in job.clients or ()),
                None if job.worker is None else self._conns[job.worker.number],
            )
            for job in self.engine.views.jobs()
        }


class Theirs(Side):
    """gearmand, over sockets of loopback; other scripts were played to it before."""

    def __init__(self, tag: bytes, server: Gearmand) -> None:
        super().__init__(tag)
        self._server = server
        self._sockets: dict[int, socket.socket] = {}
        self._payloads = itertools.count()
        self._warden = self._connect()
        self._warden.sendall(encode(REQ, PacketType.SET_CLIENT_ID, b"warden"))

    def _connect(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self._server.port), timeout=PATIENCE)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def _open(self, conn: int) -> None:
        self._sockets[conn] = self._connect()

    def _write(self, conn: int, data: bytes, cut: int) -> None:
        # It may have closed the connection: the barrier finds out.
        with contextlib.suppress(OSError):
            if cut:
                self._sockets[conn].sendall(data[:cut])
                self._count()
            self._sockets[conn].sendall(data[cut:])

    def _shut(self, conn: int) -> None:
        self._sockets.pop(conn).close()
        self._until_gone()

    def settle(self) -> dict[int, list[Item]]:
        """Sends an echo on each connection and reads until it comes back."""
        echoes: dict[int, bytes] = {}
        for conn in self.live:
            echoes[conn] = b"%b barrier %d" % (self.tag, next(self._payloads))
            with contextlib.suppress(OSError):
                self._sockets[conn].sendall(encode(REQ, PacketType.ECHO_REQ, echoes[conn]))
        return {conn: self._until(conn, echo) for conn, echo in echoes.items()}

    def _until(self, conn: int, echo: bytes) -> list[Item]:
        items: list[Item] = []
        barrier = (b"ECHO_RES", echo.replace(self.tag, b"@"))
        while True:
            items += self._read(conn)
            if items[-1:] == [barrier]:
                return items[:-1]
            data = self._receive(self._sockets[conn])
            if not data:
                self.live.remove(conn)
                self._shut(conn)
                return [*items, CLOSED]
            self._wires[conn].buffer += data

    def _receive(self, from_: socket.socket) -> bytes:
        try:
            return from_.recv(1 << 18)
        except TimeoutError:
            raise Hung("gearmand neither answers nor closes") from None
        except OSError:
            return b""

    def _count(self) -> int:
        """How many connections gearmand has, ours alone; a round trip for it too."""
        self._warden.sendall(b"workers\n")
        answer = b""
        while not answer.endswith(b"\n.\n"):
            data = self._receive(self._warden)
            if not data:
                raise Hung("gearmand has died")
            answer += data
        return answer.count(b"\n") - 1

    def _until_gone(self) -> None:
        # A hang-up is an event of its own socket: it may be seen after what others sent later.
        while self._count() > len(self._sockets) + 1:
            pass

    def close(self) -> None:
        """Closes all connections, and waits until they are forgotten."""
        for conn in list(self._sockets):
            self._sockets.pop(conn).close()
        with contextlib.suppress(Hung, OSError):
            self._until_gone()
        self._warden.close()
