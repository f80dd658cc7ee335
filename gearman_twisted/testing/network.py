"""Connections in memory, and a clock that is moved by hand: what ``MemoryFarm`` has in place of a reactor.

It knows nothing of Gearman. Nothing moves but in ``Network.turn``. Twisted protocols connect by an endpoint,
peers of ``runtime/`` by a ``MemoryPlace``, in either event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

import attrs
from twisted.internet import error
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IPushProducer,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
    ITransport,
)
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from gearman_twisted.runtime.interfaces import Peer, Place, Runtime


class ManualClock(Clock):
    """A clock that is moved by hand; calls for threads are made without any.

    Args:
        start: seconds since 1970.
        wake: called when there is something to do at once.

    Attributes:
        job_threads: runs the functions of workers that want a thread or a process.
    """

    def __init__(self, start: float, wake: Callable[[], None]) -> None:
        super().__init__()
        self.rightNow = start
        self.job_threads = _InlineThreads(self)
        self._wake = wake

    def callLater(self, delay: float, callable: Any, *args: Any, **kwargs: Any) -> IDelayedCall:  # noqa: A002 - IReactorTime
        call: IDelayedCall = super().callLater(delay, callable, *args, **kwargs)
        if delay == 0:
            self._wake()
        return call

    def callFromThread(self, callable: Any, *args: Any, **kwargs: Any) -> None:  # noqa: A002 - IReactorFromThreads
        """Make a call in the next turn."""
        self.callLater(0, callable, *args, **kwargs)

    def next_due(self) -> float | None:
        """Return when the next call is due, None if there is none."""
        return min((call.getTime() for call in self.calls), default=None)

    def run_due(self) -> bool:
        """Make the calls that are due now, not those that they schedule; return whether there were any."""
        due = [call for call in self.calls if call.getTime() <= self.seconds()]
        for call in due:
            if call.active():
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)
        return bool(due)


class _InlineThreads:
    """Runs in the next turn what would have run in a thread."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock

    def call(self, function: Callable[[], None]) -> None:
        self._clock.callLater(0, function)


class Network:
    """All places where something listens, and all connections.

    Args:
        wake: called when there is something to move.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        self._listening: dict[str, IProtocolFactory] = {}
        self._attempts: list[_Attempt] = []
        self._ends: list[_End] = []

    def client_endpoint(self, name: str) -> ClientEndpoint:
        """Return a Twisted endpoint that connects to a place."""
        return ClientEndpoint(self, name)

    def server_endpoint(self, name: str) -> ServerEndpoint:
        """Return a Twisted endpoint that listens at a place."""
        return ServerEndpoint(self, name)

    def place(self, name: str, runtime: Runtime) -> MemoryPlace:
        """Return a place to connect to, for the clients and workers of an event loop."""
        return MemoryPlace(self, name, runtime)

    def is_listening(self, name: str) -> bool:
        """Return whether anything listens at a place."""
        return name in self._listening

    def turn(self) -> bool:
        """Deliver what is pending now, not what that causes; return whether there was anything."""
        attempts = list(self._attempts)
        self._attempts.clear()
        for attempt in attempts:
            self._ends += self._make(attempt)
        has_moved = bool(attempts)
        for end in list(self._ends):
            has_moved |= end.deliver()
        self._ends = [end for end in self._ends if not end.is_gone]
        return has_moved

    def break_all(self, name: str) -> None:
        """Break all connections to a place, as a network does; what is on its way is lost."""
        for end in self._ends:
            if end.place == name:
                end.lose()

    def close(self) -> None:
        """Break all connections at once. Those who have connected are not told, nor of anything else."""
        for attempt in self._attempts:
            attempt.is_cancelled = True
        self._attempts.clear()
        ends, self._ends = self._ends, []
        for end in ends:
            if end.is_accepted:
                end.lose()
                end.deliver()
            else:
                end.is_gone = True

    def connect(self, attempt: _Attempt) -> None:
        """Connect in the next turn; called by endpoints and places."""
        self._attempts.append(attempt)
        self.wake()

    def listen(self, name: str, factory: IProtocolFactory) -> _Port:
        """Accept connections from now on; called by endpoints."""
        if name in self._listening:
            raise error.CannotListenError(name, None, "something listens there already")  # type: ignore[no-untyped-call]
        self._listening[name] = factory
        factory.doStart()
        return _Port(self, name)

    def stop_listening(self, name: str) -> None:
        """Refuse connections from now on; called by ports."""
        factory = self._listening.pop(name, None)
        if factory is not None:
            factory.doStop()

    def _make(self, attempt: _Attempt) -> list[_End]:
        """Make a connection; return its ends, none if it is refused or was cancelled."""
        if attempt.is_cancelled:
            return []
        listening = self._listening.get(attempt.place)
        protocol = None if listening is None else listening.buildProtocol(_Address("client"))
        receiver = None if protocol is None else attempt.receiver()
        if protocol is None or receiver is None:
            attempt.refused(error.ConnectionRefusedError(f"nothing listens at {attempt.place}"))  # type: ignore[no-untyped-call]
            return []
        accepted = _ProtocolReceiver(protocol)
        ends = [_End(self, attempt.place, receiver), _End(self, attempt.place, accepted)]
        ends[0].other, ends[1].other = ends[1], ends[0]
        ends[1].is_accepted = True
        accepted.connected(ends[1])
        receiver.connected(ends[0])
        attempt.connected()
        return ends


@implementer(IAddress)
@attrs.frozen
class _Address:
    place: str

    def __str__(self) -> str:
        return f"memory:{self.place}"


@attrs.define(eq=False)
class _Attempt:
    """A connection that is about to be made.

    Attributes:
        place: to what.
        receiver: makes the receiver of all its events; None refuses.
        connected: called when it was made.
        refused: called if it was not, with why.
    """

    place: str
    receiver: Callable[[], _Receiver | None]
    connected: Callable[[], object]
    refused: Callable[[Exception], object]
    is_cancelled: bool = False


class _Receiver(Protocol):
    """Receives all events of a connection."""

    def connected(self, end: _End) -> None: ...

    def received(self, data: bytes) -> None: ...

    def lost(self, reason: Exception) -> None: ...


class _ProtocolReceiver:
    def __init__(self, protocol: IProtocol) -> None:
        self._protocol = protocol

    def connected(self, end: _End) -> None:
        self._protocol.makeConnection(end)

    def received(self, data: bytes) -> None:
        self._protocol.dataReceived(data)

    def lost(self, reason: Exception) -> None:
        self._protocol.connectionLost(Failure(reason))  # type: ignore[no-untyped-call]


class _PeerReceiver:
    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def connected(self, end: _End) -> None:
        self._peer.connected(end)

    def received(self, data: bytes) -> None:
        self._peer.received(data)

    def lost(self, reason: Exception) -> None:
        self._peer.lost(str(reason))


@implementer(IStreamClientEndpoint)
@attrs.frozen(repr=False)
class ClientEndpoint:
    """Connects to a place in a network."""

    network: Network
    place: str

    def __repr__(self) -> str:
        return f"memory:{self.place}"

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:  # noqa: N803 - IStreamClientEndpoint
        """Connect."""
        made: list[IProtocol] = []

        def receiver() -> _ProtocolReceiver | None:
            protocol = protocolFactory.buildProtocol(_Address(self.place))
            if protocol is None:
                return None
            made.append(protocol)
            return _ProtocolReceiver(protocol)

        def cancel(connected: Deferred[Any]) -> None:
            attempt.is_cancelled = True
            connected.errback(error.ConnectingCancelledError(_Address(self.place)))  # type: ignore[no-untyped-call]

        connected: Deferred[Any] = Deferred(cancel)
        attempt = _Attempt(self.place, receiver, lambda: connected.callback(made[0]), connected.errback)
        self.network.connect(attempt)
        return connected


@attrs.frozen
class MemoryPlace(Place):
    """A place in a network, for clients and workers of an event loop.

    Attributes:
        network: the network.
        name: the place.
        runtime: the event loop.
    """

    network: Network
    name: str
    runtime: Runtime

    def connect(self, peer: Peer) -> Awaitable[object]:
        def cancel() -> None:
            attempt.is_cancelled = True

        connected = self.runtime.promise(cancel)
        attempt = _Attempt(
            self.name, lambda: _PeerReceiver(peer), lambda: connected.succeed(None), connected.fail
        )
        self.network.connect(attempt)
        return connected


@implementer(IStreamServerEndpoint)
@attrs.frozen
class ServerEndpoint:
    """Listens at a place in a network."""

    network: Network
    place: str

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:  # noqa: N803 - IStreamServerEndpoint
        """Listen."""
        try:
            return succeed(self.network.listen(self.place, protocolFactory))
        except error.CannotListenError:
            return fail()


@implementer(IListeningPort)
@attrs.frozen
class _Port:
    network: Network
    place: str

    def startListening(self) -> None:
        """A no-op: it listens since it was made."""

    def stopListening(self) -> None:
        self.network.stop_listening(self.place)

    def getHost(self) -> _Address:
        return _Address(self.place)


@implementer(ITransport, IPushProducer)
class _End:
    """One end of a connection: a transport of Twisted's and of ``runtime/``.

    Attributes:
        place: to which the connection leads.
        is_accepted: whether it is the end at that place.
        is_gone: whether its receiver was told of the end.
        other: the other end.
    """

    other: _End

    def __init__(self, network: Network, place: str, receiver: _Receiver) -> None:
        self.place = place
        self.is_accepted = False
        self.is_gone = False
        self._network = network
        self._receiver = receiver
        self._received: list[bytes] = []
        self._is_paused = False
        # Why it is closed, at once; and why it is, once all that was received is taken.
        self._closes: Exception | None = None
        self._closes_later: Exception | None = None

    def deliver(self) -> bool:
        """Tell the receiver of one thing; return whether there was any."""
        if self.is_gone:
            return False
        if self._closes is not None:
            self._end(self._closes)
        elif self._is_paused:
            return False
        elif self._received:
            data = b"".join(self._received)
            self._received.clear()
            self._receiver.received(data)
        elif self._closes_later is not None:
            self._end(self._closes_later)
        else:
            return False
        return True

    def lose(self) -> None:
        """Break the connection at both ends; what is on its way is lost."""
        for end in (self, self.other):
            end._received.clear()
            end._closes = error.ConnectionLost()
        self._network.wake()

    def _end(self, reason: Exception) -> None:
        self.is_gone = True
        self._receiver.lost(reason)

    # What a Transport of runtime/ has.

    is_tls = False

    def write(self, data: bytes, /) -> None:
        if self._closes is None and not self.is_gone and data:
            self.other._received.append(data)
            self._network.wake()

    def unsent(self) -> int:
        return 0

    def close(self) -> None:
        if self._closes is None:
            self._closes = error.ConnectionDone()
            self.other._closes_later = error.ConnectionDone()
            self._network.wake()

    def abort(self) -> None:
        self.lose()
        self._closes = error.ConnectionAborted()

    # What Twisted's has besides.

    loseConnection = close  # noqa: N815 - ITransport
    abortConnection = abort  # noqa: N815 - ITCPTransport
    stopProducing = close  # noqa: N815 - IPushProducer

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def pauseProducing(self) -> None:
        self._is_paused = True

    def resumeProducing(self) -> None:
        self._is_paused = False
        self._network.wake()

    def getPeer(self) -> _Address:
        return _Address("client" if self.is_accepted else self.place)

    def getHost(self) -> _Address:
        return _Address(self.place if self.is_accepted else "client")
