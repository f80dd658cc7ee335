"""Twisted as the event loop of client and worker."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

import attrs
from twisted.application.internet import backoffPolicy
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocolFactory,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from gearman_twisted.runtime.address import client_endpoint, endpoint_name
from gearman_twisted.runtime.interfaces import Log, Peer, Place, Runtime, Timer
from gearman_twisted.runtime.transport import close, sender, unsent_bytes

_T = TypeVar("_T")


class DeferredPromise(Deferred[Any]):
    """A Deferred that core code settles, whichever loop it runs in."""

    succeed = Deferred.callback

    def fail(self, error: BaseException) -> None:
        """Settle it with an error."""
        self.errback(Failure(error))  # type: ignore[no-untyped-call]


class _Transport:
    """A Twisted transport as client and worker write to it.

    Args:
        transport: of TCP, TLS or UNIX, with ``abortConnection``.
    """

    __slots__ = ("_transport", "write")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
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
        peer: what is spoken on the connection.
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
        self._peer.lost(reason.getErrorMessage())


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
        self.wall_time: Callable[[], float] = reactor.seconds

    def later(self, delay: float, call: Callable[[], object]) -> _Timer:
        return _Timer(self.reactor.callLater(delay, call))

    def from_thread(self, call: Callable[..., object], *arguments: object) -> None:
        self.reactor.callFromThread(call, *arguments)

    def promise(self, on_cancel: Callable[[], object] | None = None) -> DeferredPromise:
        return DeferredPromise(None if on_cancel is None else lambda _: cast("None", on_cancel()))

    def start(self, work: Coroutine[Any, Any, _T]) -> Deferred[_T]:
        return Deferred.fromCoroutine(work)

    def background(self, work: Coroutine[Any, Any, object]) -> Deferred[object]:
        started: Deferred[object] = Deferred.fromCoroutine(work)
        return started.addErrback(self._background_failed)

    def log(self, name: str) -> Log:
        return _Log(f"gearman_twisted.{name}")

    def _background_failed(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):
            self.log("runtime").failure("Bug in a background task", failure.value)  # type: ignore[arg-type]


def default_retry_policy() -> Callable[[int], float]:
    """Return the seconds to wait before connection attempt number n, a little different each time."""
    return backoffPolicy(initialDelay=0.2, maxDelay=15.0)
