"""A farm for clients and workers of either event loop, as far as ``runtime/`` goes: connections and time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from gearman_twisted.runtime.interfaces import Peer, Promise, Transport
from gearman_twisted.runtime.link import Link
from gearman_twisted.runtime.on_twisted import TwistedRuntime
from gearman_twisted.testing import MemoryFarm
from gearman_twisted.wire.codec import Decoder, encode
from gearman_twisted.wire.constants import REQ, RES, PacketType
from gearman_twisted.worker.core import WorkerCore
from gearman_twisted.worker.executors import in_process, in_thread
from gearman_twisted.worker.job import Job
from tests.kit.process_functions import reverse
from tests.kit.servers import PATIENCE
from tests.kit.worker_rig import DEFAULTS

Run = Callable[[MemoryFarm, Callable[[MemoryFarm], Awaitable[None]]], None]


class Echo(Peer):
    """A client that can send one ECHO_REQ at a time; the owner of its link."""

    def __init__(self, farm: MemoryFarm) -> None:
        self.runtime = farm.runtime
        self.link = Link(farm.runtime, farm.places()[0], self)
        self.failures: list[str] = []
        self.losses: list[str] = []
        self._decoder = Decoder(RES)
        self._transport: Transport | None = None
        self._connected: Promise[None] | None = None
        self._answer: Promise[bytes] | None = None

    async def echo(self, data: bytes) -> bytes:
        """Send something and wait for it to come back."""
        if self._transport is None:
            self._connected = self.runtime.promise()
            await self._connected
        assert self._transport is not None
        self._answer = self.runtime.promise()
        self._transport.write(encode(REQ, PacketType.ECHO_REQ, data))
        assert self._transport.unsent() == 0
        return await self._answer

    # What the link asks for.

    def make_peer(self) -> Peer:
        return self

    def attempt_failed(self, reason: str) -> None:
        self.failures.append(reason)

    def retry_delay(self, attempt: int) -> float:
        return 10.0

    # What the connection tells.

    def connected(self, transport: Transport) -> None:
        self._transport = transport
        waiting, self._connected = self._connected, None
        if waiting is not None:
            waiting.succeed(None)

    def received(self, data: bytes) -> None:
        for packet in self._decoder.feed(data):
            assert self._answer is not None
            self._answer.succeed(packet.args[0])

    def lost(self, reason: str) -> None:
        self._transport = None
        self.losses.append(reason)


def run_on_twisted(farm: MemoryFarm, test: Callable[[MemoryFarm], Awaitable[None]]) -> None:
    """Run a test in a reactor, or as much of one as it takes."""
    reactor = Clock()
    farm.drive(reactor)
    ended: list[Any] = []
    running: Any = test(farm)
    Deferred.fromCoroutine(running).addBoth(ended.append)
    for _ in range(1000):
        if ended:
            break
        reactor.advance(0)
    assert ended == [None]


def run_on_asyncio(farm: MemoryFarm, test: Callable[[MemoryFarm], Awaitable[None]]) -> None:
    """Run a test in an event loop of asyncio, as a plugin of pytest does."""

    async def main() -> None:
        farm.on_asyncio()
        await test(farm)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


@pytest.fixture(params=[run_on_twisted, run_on_asyncio], ids=["twisted", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Each event loop in turn."""
    made: Run = request.param
    return made


def test_connection_and_time(run: Run) -> None:
    """A link connects to the farm's server, and again in the farm's time, which awaits no clock."""

    async def test(farm: MemoryFarm) -> None:
        client = Echo(farm)
        client.link.start()
        assert await client.echo(b"1") == b"1"
        farm.network.break_all(farm.server.name)
        began = farm.clock.seconds()
        await farm.advanced(9)
        assert len(client.losses) == 1
        assert farm.server.engine.snapshot().connections == []
        await farm.advanced(2)
        assert await client.echo(b"2") == b"2"
        assert farm.clock.seconds() == began + 11
        await client.link.stop()
        await farm.advanced(0)
        assert client.losses[1:] != []
        assert farm.server.engine.snapshot().connections == []

    run(MemoryFarm(), test)


def test_refused_connection(run: Run) -> None:
    """Where no server runs the attempt fails, with a reason for people; another is made later."""

    async def test(farm: MemoryFarm) -> None:
        stopped = farm.network.place("nowhere", farm.runtime)
        client = Echo(farm)
        client.link = Link(farm.runtime, stopped, client)
        client.link.start()
        await farm.advanced(25)
        assert len(client.failures) == 3
        assert "nothing listens at nowhere" in client.failures[0]
        await client.link.stop()
        await farm.advanced(100)
        assert len(client.failures) == 3

    run(MemoryFarm(), test)


def test_attempt_that_is_cancelled(run: Run) -> None:
    """A link that is stopped before it was connected leaves no connection behind."""

    async def test(farm: MemoryFarm) -> None:
        client = Echo(farm)
        client.link.start()
        await client.link.stop()
        await farm.advanced(1)
        assert farm.server.engine.snapshot().connections == []
        assert client.losses == []

    run(MemoryFarm(), test)


def test_tasks_run_at_each_time() -> None:
    """In asyncio, time stops where something is due until the tasks that come of it have run."""

    async def main() -> None:
        farm = MemoryFarm()
        farm.on_asyncio()
        seen: list[float] = []

        async def tick() -> None:
            for _ in range(3):
                due = farm.runtime.promise()
                farm.runtime.later(10, partial(due.succeed, None))
                await due
                seen.append(farm.runtime.now())

        ticking = farm.runtime.background(tick())
        await farm.advanced(25)
        assert seen == [10, 20]
        await farm.advanced(25)
        assert seen == [10, 20, 30]
        assert farm.clock.seconds() == 50
        await ticking
        farm.close()

    asyncio.run(main())


def test_worker_of_the_farm(run: Run) -> None:
    """A worker runs functions of each kind; what wants a thread or a process starts neither."""

    async def test(farm: MemoryFarm) -> None:
        worker = WorkerCore(farm.runtime, farm.places(), **{**DEFAULTS, "ping_interval": None})

        async def slow(job: Job) -> bytes:
            return job.workload[::-1]

        worker.register("coroutine", slow)
        worker.register("thread", in_thread(reverse))
        worker.register("process", in_process(reverse))
        worker.start()
        client = farm.client() if isinstance(farm.runtime, TwistedRuntime) else farm.on_asyncio().client()
        for name in ("coroutine", "thread", "process"):
            assert await client.submit(name, b"ab") == b"ba"
        await farm.advanced(1)
        assert {view.workers for view in farm.server.functions.values()} == {1}
        stopped = worker.stop()
        await farm.advanced(0)
        await stopped

    run(MemoryFarm(), test)


def test_threads_are_inline_and_there_are_no_processes() -> None:
    """In asyncio too, what is meant for a thread is called in the loop's, and nothing is started."""

    async def main() -> None:
        farm = MemoryFarm()
        farm.on_asyncio()
        called: list[int] = []
        farm.runtime.in_thread(lambda: farm.runtime.from_thread(called.append, threading.get_ident()))
        await farm.advanced(0)
        assert called == [threading.get_ident()]

        ended: list[object] = []

        async def function() -> bytes:
            return b"done"

        assert farm.runtime.watch(b"plain", print) is None
        farm.runtime.watch(function(), lambda value, error: ended.append((value, error)))
        await farm.advanced(0)
        assert ended == [(b"done", None)]
        assert not farm.runtime.can_spawn
        with pytest.raises(OSError, match="no processes"):
            farm.runtime.spawn(lambda _pipes: ["true"], cast("Any", None))
        farm.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
