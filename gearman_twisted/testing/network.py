"""Connections in memory, and a clock that stands still: what ``testing/farm.py`` has in place of a reactor.

It knows nothing of Gearman. Nothing moves but in ``Network.turn``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

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


class StandingClock(Clock):
    """A time that is moved by hand; what is meant for threads is done without any.

    Args:
        start: seconds since 1970.
        stirred: called when there is something to do at once.

    Attributes:
        job_threads: what the functions of workers are run with that want a thread or a process.
    """

    def __init__(self, start: float, stirred: Callable[[], None]) -> None:
        super().__init__()
        self.rightNow = start
        self.job_threads = _InlineThreads(self)
        self._stirred = stirred

    def callLater(self, delay: float, callable: Any, *args: Any, **kwargs: Any) -> IDelayedCall:  # noqa: A002 - IReactorTime
        """Arranges for a call."""
        call: IDelayedCall = super().callLater(delay, callable, *args, **kwargs)
        if delay == 0:
            self._stirred()
        return call

    def callFromThread(self, callable: Any, *args: Any, **kwargs: Any) -> None:  # noqa: A002 - IReactorFromThreads
        """Arranges for a call in the next turn."""
        self.callLater(0, callable, *args, **kwargs)

    def next_due(self) -> float | None:
        """When the next call is due, None if there is none."""
        return min((call.getTime() for call in self.calls), default=None)

    def run_due(self) -> bool:
        """Makes the calls that are due now, but not those that they arrange for; whether there were any."""
        due = [call for call in self.calls if call.getTime() <= self.seconds()]
        for call in due:
            if call.active():
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)
        return bool(due)


class _InlineThreads:
    """Runs in the next turn what would have run in a thread."""

    def __init__(self, clock: StandingClock) -> None:
        self._clock = clock

    def call(self, function: Callable[[], None]) -> None:
        """Calls a function in the next turn."""
        self._clock.callLater(0, function)


class Network:
    """All places where something listens, and all connections.

    Args:
        stirred: called when there is something to move.
    """

    def __init__(self, stirred: Callable[[], None]) -> None:
        self.stirred = stirred
        self._listening: dict[str, IProtocolFactory] = {}
        self._attempts: list[_Attempt] = []
        self._ends: list[_End] = []

    def client_endpoint(self, place: str) -> ClientEndpoint:
        """What connects to a place."""
        return ClientEndpoint(self, place)

    def server_endpoint(self, place: str) -> ServerEndpoint:
        """What listens at a place."""
        return ServerEndpoint(self, place)

    def is_listening(self, place: str) -> bool:
        """Whether anything listens there."""
        return place in self._listening

    def turn(self) -> bool:
        """Moves what there is to move now, but not what comes of it; returns whether there was anything."""
        attempts = list(self._attempts)
        self._attempts.clear()
        for attempt in attempts:
            self._ends += attempt.make(self._listening.get(attempt.place))
        has_moved = bool(attempts)
        for end in list(self._ends):
            has_moved |= end.deliver()
        self._ends = [end for end in self._ends if not end.is_gone]
        return has_moved

    def break_all(self, place: str) -> None:
        """Breaks all connections to a place, as a network does; what is on its way is lost."""
        for end in self._ends:
            if end.place == place:
                end.lose()

    def close(self) -> None:
        """Breaks all connections at once. Those who have connected are not told, nor of anything else."""
        for attempt in self._attempts:
            attempt.is_over = True
        self._attempts.clear()
        ends, self._ends = self._ends, []
        for end in ends:
            if end.is_accepted:
                end.lose()
                end.deliver()
            else:
                end.is_gone = True

    def connect(self, place: str, factory: IProtocolFactory) -> Deferred[Any]:
        """Called by an endpoint: connects in the next turn."""
        attempt = _Attempt(self, place, factory)
        self._attempts.append(attempt)
        self.stirred()
        return attempt.connected

    def listen(self, place: str, factory: IProtocolFactory) -> _Port:
        """Called by an endpoint: accepts connections from now on."""
        if place in self._listening:
            raise error.CannotListenError(place, None, "something listens there already")  # type: ignore[no-untyped-call]
        self._listening[place] = factory
        return _Port(self, place)

    def stop_listening(self, place: str) -> None:
        """Called by a port: refuses connections from now on."""
        self._listening.pop(place, None)


@implementer(IAddress)
@attrs.frozen
class _Address:
    """Where something in memory is."""

    place: str

    def __str__(self) -> str:
        return f"memory:{self.place}"


@implementer(IStreamClientEndpoint)
@attrs.frozen(repr=False)
class ClientEndpoint:
    """Connects to a place in a network."""

    network: Network
    place: str

    def __repr__(self) -> str:
        return f"memory:{self.place}"

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:  # noqa: N803 - IStreamClientEndpoint
        """Connects."""
        return self.network.connect(self.place, protocolFactory)


@implementer(IStreamServerEndpoint)
@attrs.frozen
class ServerEndpoint:
    """Listens at a place in a network."""

    network: Network
    place: str

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:  # noqa: N803 - IStreamServerEndpoint
        """Listens."""
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
        """Does nothing: it listens since it was made."""

    def stopListening(self) -> None:
        """Refuses connections from now on."""
        self.network.stop_listening(self.place)

    def getHost(self) -> _Address:
        """Where it listens."""
        return _Address(self.place)


class _Attempt:
    """Something that is about to be connected.

    Attributes:
        place: to what.
        connected: fires with its protocol.
        is_over: whether it was cancelled.
    """

    def __init__(self, network: Network, place: str, factory: IProtocolFactory) -> None:
        self.place = place
        self.is_over = False
        self._network = network
        self._factory = factory
        self.connected: Deferred[Any] = Deferred(self._cancelled)

    def make(self, listening: IProtocolFactory | None) -> list[_End]:
        """Makes the connection; returns its ends, none if it is refused or was cancelled."""
        if self.is_over:
            return []
        accepted = None if listening is None else listening.buildProtocol(_Address("client"))
        connected = None if accepted is None else self._factory.buildProtocol(_Address(self.place))
        if accepted is None or connected is None:
            self.connected.errback(error.ConnectionRefusedError(f"nothing listens at {self.place}"))  # type: ignore[no-untyped-call]
            return []
        ends = [_End(self._network, self.place, connected), _End(self._network, self.place, accepted)]
        ends[0].peer, ends[1].peer = ends[1], ends[0]
        ends[1].is_accepted = True
        accepted.makeConnection(ends[1])
        connected.makeConnection(ends[0])
        self.connected.callback(connected)
        return ends

    def _cancelled(self, connected: Deferred[Any]) -> None:
        self.is_over = True
        connected.errback(error.ConnectingCancelledError(_Address(self.place)))  # type: ignore[no-untyped-call]


@implementer(ITransport, IPushProducer)
class _End:
    """One end of a connection.

    Attributes:
        place: to which the connection leads.
        is_accepted: whether it is the end at that place.
        is_gone: whether its protocol was told of the end.
        peer: the other end.
    """

    peer: _End

    def __init__(self, network: Network, place: str, protocol: IProtocol) -> None:
        self.place = place
        self.is_accepted = False
        self.is_gone = False
        self._network = network
        self._protocol = protocol
        self._received: list[bytes] = []
        self._is_paused = False
        # Why it is closed, at once; and why it is, once all that was received is taken.
        self._closes: Exception | None = None
        self._closes_later: Exception | None = None

    def deliver(self) -> bool:
        """Tells the protocol of one thing; returns whether there was any."""
        if self.is_gone:
            return False
        if self._closes is not None:
            self._end(self._closes)
        elif self._is_paused:
            return False
        elif self._received:
            data = b"".join(self._received)
            self._received.clear()
            self._protocol.dataReceived(data)
        elif self._closes_later is not None:
            self._end(self._closes_later)
        else:
            return False
        return True

    def lose(self) -> None:
        """Breaks the connection at both ends; what is on its way is lost."""
        for end in (self, self.peer):
            end._received.clear()
            end._closes = error.ConnectionLost()
        self._network.stirred()

    def _end(self, reason: Exception) -> None:
        self.is_gone = True
        self._protocol.connectionLost(Failure(reason))  # type: ignore[no-untyped-call]

    # What protocols call.

    def write(self, data: bytes) -> None:
        """Sends bytes."""
        if self._closes is None and not self.is_gone and data:
            self.peer._received.append(data)
            self._network.stirred()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Sends bytes in pieces."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """Closes the connection behind what was written."""
        if self._closes is None:
            self._closes = error.ConnectionDone()
            self.peer._closes_later = error.ConnectionDone()
            self._network.stirred()

    def abortConnection(self) -> None:
        """Closes the connection at once."""
        self.lose()
        self._closes = error.ConnectionAborted()

    def pauseProducing(self) -> None:
        """Tells the protocol of nothing."""
        self._is_paused = True

    def resumeProducing(self) -> None:
        """Tells the protocol of everything again."""
        self._is_paused = False
        self._network.stirred()

    def stopProducing(self) -> None:
        """Closes the connection."""
        self.loseConnection()

    def getPeer(self) -> _Address:
        """Where the other end is."""
        return _Address("client" if self.is_accepted else self.place)

    def getHost(self) -> _Address:
        """Where this end is."""
        return _Address(self.place if self.is_accepted else "client")
