"""A worker over a reactor in memory, for tests that play its servers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from zope.interface import implementer

from gearman_twisted import GearmanWorker
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from gearman_twisted.worker import Job
from tests.kit.peers import MemoryServer, Peer, memory_reactor

P = PacketType
GRAB = Packet(P.GRAB_JOB_UNIQ, [])
PING = Packet(P.ECHO_REQ, [b"ping"])


def log_warnings() -> Iterator[list[LogEvent]]:
    """What is logged from warnings up, while a test runs; a fixture."""
    events: list[LogEvent] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event["log_level"] >= LogLevel.warn:
            events.append(event)

    observer = cast("ILogObserver", observe)
    globalLogPublisher.addObserver(observer)
    yield events
    globalLogPublisher.removeObserver(observer)


class Rig:
    """A worker over a reactor in memory, connected to its servers."""

    def __init__(self, *servers: str, **options: Any) -> None:
        self.reactor = memory_reactor()
        self.server = MemoryServer(self.reactor)
        self.pending: list[tuple[Job, Deferred[Any]]] = []
        options.setdefault("retry_policy", lambda _attempt: 5.0)
        self.worker = GearmanWorker(servers or ("127.0.0.1:4730",), reactor=self.reactor, **options)
        self.worker.register("wait", self.wait)

    def wait(self, job: Job) -> Deferred[Any]:
        """A function that ends when the test says so."""
        done: Deferred[Any] = Deferred()
        self.pending.append((job, done))
        return done

    def connect(self) -> Peer:
        """Starts the worker and takes what it says first."""
        self.worker.startService()
        peer = self.server.accept()
        peer.taken()
        return peer


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
