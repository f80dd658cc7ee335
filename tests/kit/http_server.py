"""A job server with an HTTP door, in memory, and those who come through it."""

from __future__ import annotations

from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.server.settings import ConnectionLimits
from gearman_twisted.server.web.jobs import HttpFactory
from gearman_twisted.store.contract import IJobStore
from gearman_twisted.wire.constants import PacketType as P
from tests.kit.server_rig import Peer, ServerRig, SlowStore

POST = b"POST /f HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nwork"
POST_1_0 = POST.replace(b"HTTP/1.1", b"HTTP/1.0")


def post(*headers: bytes, body: bytes = b"work", path: bytes = b"/f", method: bytes = b"POST") -> bytes:
    """A request."""
    lines = [b"%b %b HTTP/1.1" % (method, path), b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class Browser:
    """An HTTP connection to the server, in memory."""

    def __init__(self, server: Server, sends: bytes = b"") -> None:
        self.clock = server.clock
        self.protocol = server.http.buildProtocol(None)
        self.transport = StringTransport()
        self.is_lost = False
        self.protocol.makeConnection(self.transport)
        self.send(sends)

    def send(self, data: bytes, step: int = 1 << 30) -> None:
        """Send bytes in pieces of a length, as long as the server reads."""
        for start in range(0, len(data), step):
            if not self.transport.disconnecting:
                self.protocol.dataReceived(data[start : start + step])

    def received(self) -> bytes:
        """What came since the last time."""
        for _ in range(5):  # each pipelined response takes a turn
            self.clock.advance(0)
        data: bytes = self.transport.value()
        self.transport.clear()
        if self.transport.disconnecting and not self.is_lost:
            self.lose()
        return data

    def status(self) -> int:
        """The status of the response that came."""
        return int(self.received().split(b" ")[1])

    def is_closed(self) -> bool:
        """Whether the server has closed the connection."""
        return bool(self.transport.disconnecting)

    def lose(self) -> None:
        """The connection is lost."""
        self.is_lost = True
        self.protocol.connectionLost(Failure(ConnectionDone()))


class Server:
    """A job server with both doors, in memory."""

    def __init__(
        self,
        *,
        store: IJobStore | None = None,
        durable: bool = False,
        limits: ConnectionLimits | None = None,
        settings: EngineSettings | None = None,
    ) -> None:
        self.store = SlowStore()
        self.rig = ServerRig(
            store or (self.store if durable else None),
            settings=settings or EngineSettings(server_version="9"),
            limits=limits,
        )
        self.clock, self.engine, self.factory = self.rig.clock, self.rig.engine, self.rig.factory
        self.http = HttpFactory(self.rig.peers, self.clock)

    def worker(self, function: bytes = b"f") -> Worker:
        """A worker."""
        return Worker(self, function)

    def text(self, command: bytes) -> bytes:
        """The answer to a text command."""
        peer = Peer(self.factory, self.clock)
        peer.protocol.dataReceived(command + b"\n")
        self.clock.advance(0)
        answer: bytes = peer.transport.value()
        peer.lose()
        return answer


class Worker(Peer):
    """A worker that does one function."""

    def __init__(self, server: Server, function: bytes) -> None:
        super().__init__(server.factory, server.clock)
        self.send(P.CAN_DO, function)

    def grab(self) -> tuple[bytes, bytes]:
        """Take the next job: its handle and its workload."""
        self.send(P.GRAB_JOB)
        assigned = self.received()[-1]
        assert assigned.type == P.JOB_ASSIGN, assigned
        return assigned.args[0], assigned.args[2]

    def has_job(self) -> bool:
        """Whether there is a job, which it takes."""
        self.send(P.GRAB_JOB)
        return self.received()[-1].type == P.JOB_ASSIGN

    def complete(self, result: bytes = b"done") -> bytes:
        """Does the next job; returns its workload."""
        handle, workload = self.grab()
        self.send(P.WORK_COMPLETE, handle, result)
        return workload


def ok(command: bytes, body: bytes = b"", number: int = 1) -> bytes:
    """The whole response to a request of HTTP/1.1 that did well."""
    return (
        b"HTTP/1.1 200 OK\r\nX-Gearman-Job-Handle: H:localhost:%d\r\nX-Gearman-Command: %b\r\n"
        b"Content-Length: %d\r\nServer: Gearman/9\r\nConnection: close\r\n\r\n%b"
    ) % (number, command, len(body), body)
