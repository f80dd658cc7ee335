"""Twisted as the event loop of client and worker."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast

import attrs
from twisted.application.internet import backoffPolicy
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost, ProcessExitedAlready
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocolFactory,
    ISSLTransport,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import ProcessProtocol, Protocol, connectionDone
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from gearman_twisted.runtime.address import client_endpoint, endpoint_name
from gearman_twisted.runtime.clocks import wall_clock
from gearman_twisted.runtime.interfaces import LOOP_ENDS, Log, Peer, Place, ProcessPeer, Runtime, Timer
from gearman_twisted.runtime.threads import DAEMON_THREADS
from gearman_twisted.runtime.tls import error_text
from gearman_twisted.runtime.transport import close, sender, unsent_bytes

_T = TypeVar("_T")


class DeferredPromise(Deferred[Any]):
    """A Deferred that core code settles, whichever loop it runs in."""

    _on_cancel: Callable[[], object] | None = None

    succeed = Deferred.callback

    def cancel(self) -> None:
        # Not given to Deferred as its canceller, which would take a function more for each promise.
        if not self.called and self._on_cancel is not None:
            self._on_cancel()
        super().cancel()

    def fail(self, error: BaseException) -> None:
        """Settle it with an error."""
        self.errback(Failure(error))  # type: ignore[no-untyped-call]


class _Transport:
    """A Twisted transport as client and worker write to it.

    Args:
        transport: of TCP, TLS or UNIX, with ``abortConnection``.
    """

    __slots__ = ("_transport", "is_tls", "write")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.is_tls: bool = ISSLTransport.providedBy(transport)
        # Its own function, to save a call for each packet.
        self.write: Callable[[bytes], object] = sender(transport)

    def unsent(self) -> int:
        return unsent_bytes(self._transport)

    def close(self) -> None:
        close(self._transport)

    def abort(self) -> None:
        self._transport.abortConnection()


class PeerProtocol(Protocol):
    """A Twisted protocol that hands everything to a peer.

    Args:
        peer: the protocol of the connection.
    """

    transport: Any

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            # Otherwise a server that vanished is waited for, for ever, where pings are turned off.
            self.transport.setTcpKeepAlive(True)
        # Twisted calls this one; it saves a call for each read.
        self.dataReceived = self._peer.received  # type: ignore[method-assign]
        self._peer.connected(_Transport(self.transport))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        # A reactor that is stopped closes all connections, as if they were lost.
        reactor = getattr(self.transport, "reactor", None)
        is_ending = isinstance(reason.value, ConnectionLost) and not getattr(reactor, "running", True)
        self._peer.lost(LOOP_ENDS if is_ending else error_text(reason.value))


@implementer(IProtocolFactory)
@attrs.frozen
class _PeerFactory:
    peer: Peer

    def buildProtocol(self, _addr: IAddress) -> PeerProtocol:
        return PeerProtocol(self.peer)

    def doStart(self) -> None: ...

    def doStop(self) -> None: ...


@attrs.frozen
class EndpointPlace(Place):
    """A place that is reached by a Twisted endpoint.

    Attributes:
        name: as the user wrote it.
        endpoint: the endpoint.
    """

    name: str
    endpoint: IStreamClientEndpoint

    @classmethod
    def of(cls, reactor: Any, server: str | IStreamClientEndpoint | Place) -> Place:
        """Return the place of a server, as ``client_endpoint`` takes it, named by its address.

        A place is returned as it is.

        Raises:
            ConfigError: the address makes no sense.
        """
        if not isinstance(server, str) and isinstance(server, Place):
            return server
        endpoint = client_endpoint(reactor, server)
        return cls(server if isinstance(server, str) else endpoint_name(endpoint), endpoint)

    def connect(self, peer: Peer) -> Deferred[Any]:
        return self.endpoint.connect(_PeerFactory(peer))


class _Process(ProcessProtocol):
    """A child process.

    Args:
        reactor: what it is started with.
        peer: receives its events.
    """

    transport: Any

    def __init__(self, reactor: Any, peer: ProcessPeer) -> None:
        self._reactor = reactor
        self._peer = peer
        self._has_exited = False
        self._reaping: IDelayedCall | None = None

    @property
    def pid(self) -> int:
        return cast("int", self.transport.pid)

    def write(self, descriptor: int, data: bytes) -> None:
        if descriptor in self.transport.pipes:
            self.transport.writeToChild(descriptor, data)

    def close_pipe(self, descriptor: int) -> None:
        if descriptor in self.transport.pipes:
            self.transport.closeChildFD(descriptor)
        if descriptor > 2:
            self._expect_end()

    def signal(self, number: int) -> None:
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess(number)
        self._expect_end()

    def close(self) -> None:
        self.transport.loseConnection()

    def childDataReceived(self, childFD: int, data: bytes) -> None:  # noqa: N803 - IProcessProtocol
        self._peer.output(childFD, data)

    def childConnectionLost(self, childFD: int) -> None:  # noqa: N803 - IProcessProtocol
        self._peer.pipe_closed(childFD)

    def processExited(self, reason: Failure) -> None:
        self._has_exited = True
        if self._reaping is not None and self._reaping.active():
            self._reaping.cancel()
        error: Any = reason.value
        self._peer.exited(-error.signal if error.signal is not None else error.exitCode)

    def _expect_end(self) -> None:
        # Not every reactor is told by the system when a process ends.
        if self._reaping is None:
            self._reap(0.005)

    def _reap(self, pause: float) -> None:
        if not self._has_exited:
            self.transport.reapProcess()
        if not self._has_exited:
            self._reaping = self._reactor.callLater(pause, self._reap, min(2 * pause, 0.5))


class _Timer(Timer):
    __slots__ = ("_call",)

    def __init__(self, call: IDelayedCall) -> None:
        self._call = call

    def cancel(self) -> None:
        if self._call.active():
            self._call.cancel()


class _Log:
    """The log of a part of the package, in Twisted's logging system."""

    def __init__(self, namespace: str) -> None:
        self._log = Logger(namespace)

    def debug(self, text: str, /, **fields: object) -> None:
        self._log.debug(text, **fields)

    def info(self, text: str, /, **fields: object) -> None:
        self._log.info(text, **fields)

    def warning(self, text: str, /, **fields: object) -> None:
        self._log.warn(text, **fields)

    def error(self, text: str, /, **fields: object) -> None:
        self._log.error(text, **fields)

    def failure(self, text: str, error: BaseException, /, **fields: object) -> None:
        self._log.failure(text, Failure(error), LogLevel.error, **fields)  # type: ignore[no-untyped-call]


class TwistedRuntime(Runtime):
    """Twisted's event loop.

    Args:
        reactor: the reactor, or a clock where nothing is connected.
    """

    cancelled: type[BaseException] = CancelledError

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.now: Callable[[], float] = reactor.seconds
        self.wall_time: Callable[[], float] = wall_clock(reactor)
        # That of tests in memory has something in the place of threads and processes.
        threads = getattr(reactor, "job_threads", None)
        self.can_spawn = threads is None
        self._threads = threads or DAEMON_THREADS

    def later(self, delay: float, call: Callable[[], object]) -> _Timer:
        return _Timer(self.reactor.callLater(delay, call))

    def from_thread(self, call: Callable[..., object], *arguments: object) -> None:
        self.reactor.callFromThread(call, *arguments)

    def promise(self, on_cancel: Callable[[], object] | None = None) -> DeferredPromise:
        promise = DeferredPromise()
        promise._on_cancel = on_cancel
        return promise

    def start(self, work: Coroutine[Any, Any, _T]) -> Deferred[_T]:
        return Deferred.fromCoroutine(work)

    def background(self, work: Coroutine[Any, Any, object]) -> Deferred[object]:
        started: Deferred[object] = Deferred.fromCoroutine(work)
        return started.addErrback(self._background_failed)

    def watch(
        self, result: object, ended: Callable[[object, BaseException | None], object]
    ) -> Callable[[], object] | None:
        if isinstance(result, Coroutine):
            result = Deferred.fromCoroutine(result)
        if not isinstance(result, Deferred):
            return None

        def end(value: object) -> None:
            if isinstance(value, Failure):
                ended(None, value.value)
            else:
                ended(value, None)

        result.addBoth(end)
        return result.cancel

    def in_thread(self, call: Callable[[], object]) -> None:
        self._threads.call(call)

    def spawn(
        self,
        words: Callable[[Mapping[int, int]], Sequence[str | bytes]],
        peer: ProcessPeer,
        *,
        writes: Sequence[int] = (),
        reads: Sequence[int] = (),
        environment: Mapping[bytes, bytes] | None = None,
    ) -> _Process:
        pipes: dict[int, Any] = {
            0: "w",
            1: 1,
            2: 2,
            **dict.fromkeys(writes, "w"),
            **dict.fromkeys(reads, "r"),
        }
        arguments = words({descriptor: descriptor for descriptor in pipes})
        process = _Process(self.reactor, peer)
        self.reactor.spawnProcess(process, arguments[0], arguments, environment, childFDs=pipes)
        if 0 not in writes:
            process.transport.closeChildFD(0)
        return process

    def log(self, name: str) -> Log:
        return _Log(f"gearman_twisted.{name}")

    def _background_failed(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):
            self.log("runtime").failure("Bug in a background task", failure.value)  # type: ignore[arg-type]


def default_retry_policy() -> Callable[[int], float]:
    """Return the seconds to wait before connection attempt number n, a little different each time."""
    return backoffPolicy(initialDelay=0.2, maxDelay=15.0)
