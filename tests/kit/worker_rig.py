"""A worker in memory, in either event loop, for tests that play its servers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

from gearman_twisted.runtime.interfaces import Promise
from gearman_twisted.wire.codec import Decoder
from gearman_twisted.wire.constants import REQ, PacketType
from gearman_twisted.wire.packet import Packet
from gearman_twisted.worker.core import WorkerCore
from gearman_twisted.worker.job import Job
from gearman_twisted.worker.marks import function_decorator
from tests.kit.loops import AsyncioTestLoop, MemoryConnection, MemoryPlace, Outcome, TestLoop, TwistedTestLoop
from tests.kit.peers import response

P = PacketType
GRAB = Packet(P.GRAB_JOB_UNIQ, [])
PING = Packet(P.ECHO_REQ, [b"ping"])

DEFAULTS: dict[str, Any] = {
    "concurrency": 1,
    "client_id": None,
    "drain_timeout": 10.0,
    "retry_policy": lambda _attempt: 5.0,
    "ping_interval": 30.0,
    "max_packet_bytes": 1_000_000_000,
    "max_waiting": 100,
}


def log_warnings() -> Iterator[list[LogEvent]]:
    """What Twisted logs from warnings up, while a test runs; a fixture."""
    events: list[LogEvent] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event["log_level"] >= LogLevel.warn:
            events.append(event)

    observer = cast("ILogObserver", observe)
    globalLogPublisher.addObserver(observer)
    yield events
    globalLogPublisher.removeObserver(observer)


class Lines(logging.Handler):
    """The log of either loop, as lines.

    Attributes:
        lines: those from info up.
        warnings: those from warnings up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._take(record.getMessage(), is_warning=record.levelno >= logging.WARNING)

    def observe(self, event: LogEvent) -> None:
        if event["log_level"] >= LogLevel.info and event["log_namespace"].startswith("gearman_twisted"):
            self._take(formatEvent(event), is_warning=event["log_level"] >= LogLevel.warn)

    def _take(self, line: str, *, is_warning: bool) -> None:
        self.lines.append(line)
        if is_warning:
            self.warnings.append(line)


@pytest.fixture
def log() -> Iterator[Lines]:
    """What is logged while a test runs, by either loop."""
    lines = Lines()

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        lines.observe(event)

    observer = cast("ILogObserver", observe)
    logger = logging.getLogger("gearman_twisted.worker")
    level = logger.level
    logger.setLevel(logging.INFO)

    def take(record: logging.LogRecord) -> bool:
        lines.emit(record)
        # Nobody else gets it: pytest would keep it, and pytest-xdist cannot send every text.
        return False

    logger.addFilter(take)
    globalLogPublisher.addObserver(observer)
    yield lines
    globalLogPublisher.removeObserver(observer)
    logger.removeFilter(take)
    logger.setLevel(level)


@pytest.fixture
def logged(log: Lines) -> list[str]:
    """What is logged from warnings up."""
    return log.warnings


class Waiting:
    """The end of a function that waits for the test."""

    def __init__(self, loop: TestLoop, promise: Promise[Any]) -> None:
        self._loop = loop
        self._promise = promise

    def succeed(self, value: bytes | None) -> None:
        """Have the function return; ignored if it was cancelled."""
        if not (isinstance(self._promise, asyncio.Future) and self._promise.cancelled()):
            self._loop.call(lambda: self._promise.succeed(value))

    def fail(self, error: BaseException) -> None:
        """Have the function raise."""
        self._loop.call(lambda: self._promise.fail(error))


class Peer:
    """The server's end of a connection."""

    def __init__(self, connection: MemoryConnection) -> None:
        self.connection = connection
        self.is_lost = False

    def taken(self) -> list[Packet]:
        """The packets that came since the last call."""
        return Decoder(REQ).feed(self.connection.take())

    def types(self) -> list[PacketType]:
        """Their types."""
        return [PacketType(packet.type) for packet in self.taken()]

    def send(self, type_: PacketType, *args: bytes) -> None:
        """Send a packet in one read."""
        self.connection.send(response(type_, *args))

    def send_bytes(self, data: bytes) -> None:
        """Send bytes in one read."""
        self.connection.send(data)

    def is_closing(self) -> bool:
        """Whether the other end closes the connection."""
        return self.connection.is_closing or self.connection.is_aborted

    def lose(self) -> None:
        """End the connection; one that was aborted has ended by itself."""
        if not (self.is_lost or self.connection.is_aborted):
            self.is_lost = True
            self.connection.lose()


class Rig:
    """A worker in an event loop whose time stands still."""

    def __init__(self, loop: TestLoop, *servers: str, **options: Any) -> None:
        self.loop = loop
        self.peers: list[Peer] = []
        self.pending: list[tuple[Job, Waiting]] = []
        self.places: list[MemoryPlace] = []
        for name in servers or ("127.0.0.1:4730",):
            place = MemoryPlace(loop)
            place.name = name
            self.places.append(place)
        self.core = WorkerCore(loop.runtime, self.places, **{**DEFAULTS, **options})
        self.register("wait", self.wait)

    def wait(self, job: Job) -> Promise[Any]:
        """A function that ends when the test says so."""
        promise = self.loop.runtime.promise()
        self.pending.append((job, Waiting(self.loop, promise)))
        return promise

    def register(self, *args: Any, **options: Any) -> None:
        """Register a function."""
        self.loop.call(lambda: self.core.register(*args, **options))

    def unregister(self, name: str) -> None:
        """Withdraw a function."""
        self.loop.call(lambda: self.core.unregister(name))

    def function(self, name: Any = None, **options: Any) -> Callable[[Any], Any]:
        """The decorator of a worker."""
        return cast("Callable[[Any], Any]", function_decorator(self.register, name, **options))

    def start(self) -> None:
        """Start the worker."""
        self.loop.call(self.core.start)

    def stop(self) -> Outcome:
        """Stop the worker."""
        return self.loop.outcome(self.loop.call(self.core.stop))

    def connect(self) -> Peer:
        """Start the worker and take what it says first."""
        self.start()
        peer = self.accept()
        peer.taken()
        return peer

    @property
    def attempts(self) -> int:
        """How many attempts to connect wait for an answer."""
        return sum(len(place.attempts) for place in self.places)

    def accept(self) -> Peer:
        """Let the first attempt succeed."""
        place = next(place for place in self.places if place.attempts)
        peer = Peer(place.accept())
        self.peers.append(peer)
        return peer

    def advance(self, *pauses: float) -> None:
        """Let time pass."""
        for pause in pauses:
            self.loop.advance(pause)

    def timers(self) -> list[Any]:
        """What is still to be called."""
        if isinstance(self.loop, TwistedTestLoop):
            return list(self.loop.clock.getDelayedCalls())
        assert isinstance(self.loop, AsyncioTestLoop)
        return self.loop._timers()

    def close(self) -> None:
        """Stop the worker without patience."""
        self.stop()
        self.stop()
        for peer in self.peers:
            peer.lose()
        self.advance(10)


@pytest.fixture
def make_rig(loop: TestLoop) -> Iterator[Callable[..., Rig]]:
    """Make rigs, with server names and the options of a worker; they are stopped at the end."""
    rigs: list[Rig] = []

    def make(*servers: str, **options: Any) -> Rig:
        rigs.append(Rig(loop, *servers, **options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


def assign(
    peer: Peer, function: bytes = b"f", handle: bytes = b"H:1", workload: bytes = b"abc"
) -> list[Packet]:
    """Gives the worker a job and returns what it sends."""
    peer.send(P.JOB_ASSIGN_UNIQ, handle, function, b"u", workload)
    return peer.taken()


def complete(handle: bytes, data: bytes) -> Packet:
    return Packet(P.WORK_COMPLETE, [handle, data])


def failed(handle: bytes, data: bytes) -> list[Packet]:
    """What a job ends with that raised."""
    return [Packet(P.WORK_EXCEPTION, [handle, data]), Packet(P.WORK_FAIL, [handle])]
