"""Both event loops under a clock that stands still, so that one test runs in either.

A test takes the fixture ``loop``, makes what it tests with ``loop.runtime``, and moves time with ``advance``.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from gearman_twisted.runtime.interfaces import Peer, Runtime, Transport
from gearman_twisted.runtime.on_asyncio import AsyncioRuntime
from gearman_twisted.runtime.on_twisted import TwistedRuntime
from tests.kit.servers import PATIENCE

_T = TypeVar("_T")


class TestLoop:
    """An event loop whose clock the test moves.

    Attributes:
        name: ``twisted`` or ``asyncio``.
        runtime: the loop as client and worker see it.
        options: what clients and workers are made with, so that they run in this loop.
    """

    __test__ = False
    name: str
    runtime: Runtime
    options: dict[str, Any]

    def __init__(self) -> None:
        self._at_end: list[Callable[[], object]] = []

    def face(self, role: str) -> Any:
        """Return what users of this loop import.

        Args:
            role: ``client``, ``client.admin`` or ``worker``.
        """
        return importlib.import_module(f"gearman_twisted.{role}.on_{self.name}")

    def settle(self) -> None:
        """Run all that is due now."""

    def is_running(self) -> bool:
        """Return whether this is called from within the loop."""
        return False

    def advance(self, seconds: float) -> None:
        """Let time pass, and run what becomes due, in order."""

    def call(self, function: Callable[[], _T]) -> _T:
        """Call a function inside the loop, then settle; returns what it returned."""
        raise NotImplementedError

    def outcome(self, awaited: Awaitable[Any]) -> Outcome:
        """Watch what a promise, or a coroutine that was started, ends with."""
        raise NotImplementedError

    def timers(self) -> int:
        """Return how many timers run."""
        raise NotImplementedError

    def at_end(self, call: Callable[[], object]) -> None:
        """Arrange for a call at the end of the test."""
        self._at_end.append(call)

    def close(self) -> None:
        """Make the last calls, and check that no timer is left."""
        for call in self._at_end:
            call()
        self.settle()
        assert self.timers() == 0


class Outcome:
    """What something awaited has come to, so far.

    Attributes:
        value: its result.
        error: its error.
        is_settled: whether there is either.

    Args:
        loop: the event loop.
    """

    value: Any = None
    error: BaseException | None = None
    is_settled = False
    awaited: Any

    def __init__(self, loop: TestLoop) -> None:
        self._loop = loop

    def cancel(self) -> None:
        """Wait for it no longer."""
        self.awaited.cancel()
        if not self._loop.is_running():
            self._loop.settle()

    def end(self) -> Any:
        """Return the result or the error, whichever it has come to."""
        assert self.is_settled, "it has not ended"
        return self.value if self.error is None else self.error

    def get(self) -> Any:
        """Return the result, or raise the error."""
        assert self.is_settled, "it has not ended"
        if self.error is not None:
            raise self.error
        return self.value


class TwistedTestLoop(TestLoop):
    """Twisted, with its ``Clock``."""

    name = "twisted"

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.options = {"reactor": self.clock}
        self.clock.callFromThread = lambda call, *args: self.clock.callLater(0, call, *args)  # type: ignore[attr-defined]
        self.runtime = TwistedRuntime(self.clock)

    def settle(self) -> None:
        self.clock.advance(0)

    def advance(self, seconds: float) -> None:
        end = self.clock.seconds() + seconds
        while True:
            due = [call.getTime() for call in self.clock.getDelayedCalls() if call.getTime() <= end]
            if not due:
                break
            self.clock.advance(max(0.0, min(due) - self.clock.seconds()))
        self.clock.advance(end - self.clock.seconds())

    def call(self, function: Callable[[], _T]) -> _T:
        result = function()
        self.settle()
        return result

    def outcome(self, awaited: Awaitable[Any]) -> Outcome:
        outcome = Outcome(self)

        def take(result: Any) -> None:
            outcome.is_settled = True
            if isinstance(result, Failure):
                outcome.error = result.value
            else:
                outcome.value = result

        if not isinstance(awaited, Deferred):
            awaited = Deferred.fromCoroutine(cast("Any", awaited))
        outcome.awaited = awaited
        awaited.addBoth(take)
        self.settle()
        return outcome

    def timers(self) -> int:
        return len(self.clock.getDelayedCalls())


class _StandingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self.standing_time = 1000.0

    def time(self) -> float:
        return self.standing_time


class AsyncioTestLoop(TestLoop):
    """asyncio, with a loop whose time stands still."""

    name = "asyncio"

    def __init__(self) -> None:
        super().__init__()
        self.loop = _StandingLoop()
        self.options = {}
        self.runtime = AsyncioRuntime("the test")

    def is_running(self) -> bool:
        return self.loop.is_running()

    def settle(self) -> None:
        loop: Any = self.loop
        while True:
            loop.call_soon(loop.stop)
            loop.run_forever()
            if not loop._ready and not any(handle._when <= loop.time() for handle in self._timers()):
                return

    def advance(self, seconds: float) -> None:
        end = self.loop.standing_time + seconds
        self.settle()
        while True:
            due = [handle._when for handle in self._timers() if handle._when <= end]
            if not due:
                break
            self.loop.standing_time = max(self.loop.standing_time, min(due))
            self.settle()
        self.loop.standing_time = end
        self.settle()

    def call(self, function: Callable[[], _T]) -> _T:
        async def inside() -> _T:
            return function()

        result = self.loop.run_until_complete(inside())
        self.settle()
        return result

    def outcome(self, awaited: Awaitable[Any]) -> Outcome:
        outcome = Outcome(self)

        async def watch() -> None:
            try:
                outcome.value = await awaited
            except BaseException as error:  # noqa: BLE001 - it is looked at by the test
                outcome.error = error
            outcome.is_settled = True

        outcome.awaited = self.loop.create_task(watch())
        self.settle()
        return outcome

    def timers(self) -> int:
        return len(self._timers())

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.loop.close()

    def _timers(self) -> list[Any]:
        return [handle for handle in cast("Any", self.loop)._scheduled if not handle.cancelled()]


@pytest.fixture(params=[TwistedTestLoop, AsyncioTestLoop], ids=["twisted", "asyncio"])
def loop(request: pytest.FixtureRequest) -> Iterator[TestLoop]:
    """Each event loop in turn; no timer may be left at the end."""
    made: TestLoop = request.param()
    yield made
    made.close()


class RealLoop:
    """An event loop with real time and real sockets.

    Attributes:
        name: ``twisted`` or ``asyncio``.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def face(self, role: str) -> Any:
        """Return what users of this loop import; see ``TestLoop.face``."""
        return importlib.import_module(f"gearman_twisted.{role}.on_{self.name}")

    def run(self, test: Coroutine[Any, Any, None]) -> Deferred[None] | None:
        """Run a test in the loop; no task may be left there."""
        if self.name == "twisted":
            return Deferred.fromCoroutine(test).addTimeout(PATIENCE, _reactor())

        async def main() -> None:
            await asyncio.wait_for(test, PATIENCE)
            assert asyncio.all_tasks() - {asyncio.current_task()} == set()

        asyncio.run(main())
        return None

    def start(self, work: Awaitable[_T]) -> Awaitable[_T]:
        """Run a coroutine beside the test; a Deferred does so already."""
        if self.name == "asyncio":
            return asyncio.ensure_future(work)
        return work if isinstance(work, Deferred) else Deferred.fromCoroutine(cast("Any", work))

    def in_thread(self, function: Callable[..., _T], *arguments: object) -> Awaitable[_T]:
        """Call a function that blocks, beside the test."""
        if self.name == "twisted":
            return deferToThread(function, *arguments)
        return asyncio.ensure_future(asyncio.to_thread(function, *arguments))

    def sleep(self, seconds: float) -> Awaitable[object]:
        """Wait."""
        return deferLater(_reactor(), seconds) if self.name == "twisted" else asyncio.sleep(seconds)


def _reactor() -> Any:
    from twisted.internet import reactor

    return reactor


def in_real_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Any]:
    """Run a test in each event loop with real sockets; it takes the fixture ``real``."""

    @functools.wraps(test)
    def wrapper(real: RealLoop, **fixtures: Any) -> Deferred[None] | None:
        # pytest-twisted waits for what it returns.
        return real.run(test(real, **fixtures))

    return wrapper


@pytest.fixture(params=["twisted", "asyncio"])
def real(request: pytest.FixtureRequest) -> RealLoop:
    """Each event loop in turn, with real sockets."""
    return RealLoop(request.param)


class MemoryPlace:
    """A place whose connections are made by hand.

    Args:
        loop: the event loop.
        name: what it is called.

    Attributes:
        connections: those that were made, oldest first.
        attempts: the peers that wait to be connected.
    """

    def __init__(self, loop: TestLoop, name: str = "memory") -> None:
        self.name = name
        self._loop = loop
        self.attempts: list[tuple[Peer, Any]] = []
        self.connections: list[MemoryConnection] = []

    def connect(self, peer: Peer) -> Awaitable[object]:
        """Wait for ``accept`` or ``refuse``."""
        made = self._loop.runtime.promise(lambda: self.attempts.remove(attempt))
        attempt = (peer, made)
        self.attempts.append(attempt)
        return made

    def accept(self) -> MemoryConnection:
        """Connect the one that waits."""
        (peer, made) = self.attempts.pop(0)
        connection = MemoryConnection(self._loop, peer)
        self.connections.append(connection)

        def connect() -> None:
            peer.connected(connection)
            made.succeed(None)

        self._loop.call(connect)
        return connection

    def refuse(self, reason: str = "refused") -> None:
        """Fail the attempt that waits."""
        _, made = self.attempts.pop(0)
        self._loop.call(lambda: made.fail(OSError(reason)))


class MemoryConnection(Transport):
    """The server's end of a connection in memory.

    Attributes:
        written: what was sent to the server and not taken yet.
        writes: in how many pieces.
        is_closing: whether its owner closed it; it is lost with ``lose``.
        is_aborted: whether its owner ended it at once.
        is_lost: whether its owner was told that it is gone.
    """

    def __init__(self, loop: TestLoop, peer: Peer) -> None:
        self._loop = loop
        self._peer = peer
        self.is_tls = False
        self.written = b""
        self.writes = 0
        self.unsent_bytes = 0
        self.is_closing = False
        self.is_aborted = False
        self.is_lost = False

    def write(self, data: bytes) -> None:
        self.written += data
        self.writes += 1

    def unsent(self) -> int:
        return self.unsent_bytes

    def close(self) -> None:
        self.is_closing = True

    def abort(self) -> None:
        if not self.is_aborted:
            self.is_aborted = True
            self._loop.runtime.later(0, lambda: self._tell_lost("it was aborted"))

    def take(self) -> bytes:
        """Return what was sent to the server since the last time."""
        written, self.written = self.written, b""
        return written

    def send(self, data: bytes) -> None:
        """Send bytes to the client."""
        self._loop.call(lambda: self._peer.received(data))

    def lose(self, reason: str = "it was lost") -> None:
        """Lose the connection."""
        self._loop.call(lambda: self._tell_lost(reason))

    def _tell_lost(self, reason: str) -> None:
        if not self.is_lost:
            self.is_lost = True
            self._peer.lost(reason)
