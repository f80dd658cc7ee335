"""For tests of programs that use Gearman: servers, clients and workers in memory, under one clock.

Everything is the real thing but for the network, which hands bytes over when ``flush`` says so, and the
clock, which moves when ``advance`` does. No port is opened, no thread started, and nothing waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from gearman_twisted.client.on_twisted import GearmanClient, ServerPool
from gearman_twisted.engine.jobserver import JobServer
from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.engine.views import FunctionView
from gearman_twisted.runtime.interfaces import Runtime
from gearman_twisted.runtime.on_twisted import TwistedRuntime
from gearman_twisted.server.service import JobServerService
from gearman_twisted.server.settings import default_settings
from gearman_twisted.store.contract import IJobStore, StoredJob
from gearman_twisted.testing.network import ManualClock, MemoryPlace, Network
from gearman_twisted.testing.on_asyncio import AsyncioFarm, MemoryRuntime
from gearman_twisted.worker.marks import Marked
from gearman_twisted.worker.on_twisted import GearmanWorker, WorkerFunction

__all__ = [
    "AsyncioFarm",
    "DurableMemoryStore",
    "EndlessLoop",
    "GearmanTestMixin",
    "MemoryFarm",
    "MemoryServer",
    "NotFinished",
]

_T = TypeVar("_T")

# Far more than a test with thousands of jobs needs.
_MAX_TURNS = 100_000

# Turns of asyncio's loop in which tasks that await one another come to rest.
_TASK_TURNS = 20


class NotFinished(AssertionError):
    """A result is not there yet; the message says what the server still has to do."""


class EndlessLoop(AssertionError):
    """Something goes on for ever and no time passes, such as a job that is retried at once."""


class MemoryFarm:
    """A job server and any number of clients and workers, all in memory.

    Nothing moves but in ``flush``, ``advance`` and ``result``, or, after ``drive``, in the next turn of the
    reactor. The same calls always bring about the same events in the same order.

    Args:
        store: where the first server keeps background jobs; a ``DurableMemoryStore`` if None. One that
            needs a real reactor, as those with a database do, cannot be used.
        settings: how the first server treats jobs and peers.
        start: the seconds since 1970 at which the clock stands first. Where the program reckons with the
            system's clock when a job is to run, give ``time.time()``.

    Attributes:
        clock: the time, to be given as ``reactor`` to whatever else takes part.
        network: makes endpoints for others that listen or connect.
        runtime: the event loop of clients and workers, as ``gearman_twisted.runtime`` has it: Twisted's,
            with the farm's clock, until ``on_asyncio``.
        servers: all servers, the first one in front.
        retry_delay: seconds after which the farm's clients and workers connect again.
    """

    retry_delay = 1.0
    _is_on_asyncio = False

    def __init__(
        self,
        store: IJobStore | None = None,
        *,
        settings: EngineSettings | None = None,
        start: float = 0.0,
    ) -> None:
        self.clock = ManualClock(start, self._wake)
        self.network = Network(self._wake)
        self.servers: list[MemoryServer] = []
        self.runtime: Runtime = TwistedRuntime(self.clock)
        self._is_flushing = False
        self._is_closed = False
        # How often there was something to move.
        self._wakes = 0
        # Calls in the next turn of the loop that drives it.
        self._call_soon: Callable[[Callable[[], None]], Any] | None = None
        self._driving: Any = None
        self.add_server(store, settings=settings)

    @property
    def server(self) -> MemoryServer:
        """The first server."""
        return self.servers[0]

    def add_server(
        self, store: IJobStore | None = None, *, settings: EngineSettings | None = None
    ) -> MemoryServer:
        """Start another job server, for clients, pools and workers that are made afterwards."""
        server = MemoryServer(self, f"server-{len(self.servers) + 1}", store, settings)
        self.servers.append(server)
        server.start()
        return server

    def client(self, **options: Any) -> GearmanClient:
        """Return a client of the first server, with the options of ``GearmanClient``."""
        return GearmanClient(self.server.endpoint, **self._with_defaults(options))

    def pool(self, **options: Any) -> ServerPool:
        """Return a client of all servers, with the options of ``ServerPool``."""
        return ServerPool([server.endpoint for server in self.servers], **self._with_defaults(options))

    def worker(
        self, functions: Mapping[str | bytes, WorkerFunction] | Marked | None = None, **options: Any
    ) -> GearmanWorker:
        """Return a worker of all servers, started.

        Args:
            functions: what it does, by name, or marked with ``gearman_twisted.function`` as ``GearmanWorker``
                takes it; more can be registered later.
            options: those of ``GearmanWorker``.
        """
        named = functions if isinstance(functions, Mapping) else {}
        marked = () if functions is None or named is functions else functions
        options = {"functions": marked, **self._with_defaults(options)}
        worker = GearmanWorker([server.endpoint for server in self.servers], **options)
        for name, function in named.items():
            worker.register(name, function)
        worker.startService()
        return worker

    def flush(self) -> None:
        """Move bytes, and do what is due at this time, until there is nothing left.

        Raises:
            EndlessLoop: there is always something left.
        """
        self._check_not_within()
        self._stop_driving()
        self._is_flushing = True
        try:
            for _ in range(_MAX_TURNS):
                # A test that ends in the middle of a turn closes the farm.
                if self._is_closed or not self._turn():
                    return
        finally:
            self._is_flushing = False
        raise EndlessLoop(
            f"the farm is still busy after {_MAX_TURNS} turns at one time; {self._what_is_left()}"
        )

    def advance(self, seconds: float) -> None:
        """Let time pass: stop at each time at which something is due, and flush there.

        Args:
            seconds: how much; 0 or more.
        """
        if seconds < 0:
            raise ValueError(f"time does not go back: advance takes 0 or more, not {seconds!r}")
        end = self.clock.seconds() + seconds
        self.flush()
        while (due := self.clock.next_due()) is not None and due <= end:
            self.clock.rightNow = due
            self.flush()
        self.clock.rightNow = end

    def advanced(self, seconds: float) -> Awaitable[None]:
        """The same as ``advance``, to be awaited by tests that an event loop runs; see ``drive``.

        Returns:
            A Deferred, or in asyncio a task, that is done when the time has passed.
        """
        if self._call_soon is None:
            raise RuntimeError("no event loop drives the farm: use advance, or call drive first")
        if self._is_on_asyncio:
            return asyncio.ensure_future(self._advance_with_tasks(seconds))
        done: Deferred[None] = Deferred()
        self._call_soon(partial(done.callback, None))
        return done.addCallback(lambda _: self.advance(seconds))

    async def _advance_with_tasks(self, seconds: float) -> None:
        """Let time pass, and tasks run at each time at which something is due."""
        end = self.clock.seconds() + seconds
        await self._settle()
        while (due := self.clock.next_due()) is not None and due <= end:
            self.clock.rightNow = due
            await self._settle()
        self.clock.rightNow = end

    async def _settle(self) -> None:
        """Flush, and let tasks run, until neither has anything left to do."""
        wakes = -1
        while wakes != self._wakes:
            self.flush()
            wakes = self._wakes
            for _ in range(_TASK_TURNS):
                await asyncio.sleep(0)

    def result(self, awaited: Deferred[_T] | Coroutine[Any, Any, _T], *, within: float = 0.0) -> _T:
        """Return what a Deferred fires with, or a coroutine returns, once everything has moved.

        Args:
            awaited: what to wait for.
            within: seconds of the clock that may pass until then; no more pass than are needed.

        Raises:
            NotFinished: it does not come to its end.
            Exception: what it has failed with.
        """
        self._check_not_within()
        deferred = awaited if isinstance(awaited, Deferred) else Deferred.fromCoroutine(awaited)
        outcome: list[_T | Failure] = []
        is_over = False

        def take(result: _T | Failure) -> Any:
            outcome.append(result)
            # A failure is raised here, unless nobody is here any more.
            return None if isinstance(result, Failure) and not is_over else result

        deferred.addBoth(take)
        self.flush()
        end = self.clock.seconds() + within
        while not outcome and (due := self.clock.next_due()) is not None and due <= end:
            self.clock.rightNow = due
            self.flush()
        is_over = True
        if not outcome:
            raise NotFinished(f"it is not finished, and nothing moves any more; {self._what_is_left()}")
        if isinstance(outcome[0], Failure):
            outcome[0].raiseException()
        return outcome[0]

    def lose_connections(self) -> None:
        """Break all connections. Workers reconnect after ``retry_delay``, clients when they need to."""
        for server in self.servers:
            server.lose_connections()

    def drive(self, loop: Any) -> None:
        """Flush from now on in the event loop's next turn whenever there is something to move.

        So a test that runs in the loop can await what clients return, and ``advanced``, without which the
        clock stands still. The fixture and the mixin do this where a reactor runs the tests.

        Args:
            loop: a reactor, or the event loop of asyncio.
        """
        self._is_on_asyncio = hasattr(loop, "call_soon")
        self._call_soon = loop.call_soon if self._is_on_asyncio else partial(loop.callLater, 0)
        self._wake()

    def on_asyncio(self) -> AsyncioFarm:
        """Return the farm for a test that asyncio runs, whose event loop drives it from now on.

        Raises:
            RuntimeError: no event loop of asyncio runs.
        """
        self.drive(asyncio.get_running_loop())
        runtime = self.runtime = MemoryRuntime(self.clock)
        return AsyncioFarm(self, runtime)

    def places(self) -> list[MemoryPlace]:
        """Return where the servers are, for clients and workers of ``runtime``."""
        return [self.network.place(server.name, self.runtime) for server in self.servers]

    def close(self) -> None:
        """End all servers. Clients and workers are not told: what waits for them waits for ever."""
        # This may be called in the middle of a turn, by a test that ends with what comes in that.
        self._is_closed = True
        self._stop_driving()
        self._call_soon = None
        self.network.close()
        for server in self.servers:
            server.service.stopService()
        for call in self.clock.getDelayedCalls():
            call.cancel()

    def _with_defaults(self, options: dict[str, Any]) -> dict[str, Any]:
        # Nothing that depends on chance, and no pings, as no connection falls silent here.
        defaults: dict[str, Any] = {
            "reactor": self.clock,
            "retry_policy": lambda _attempt: self.retry_delay,
            "ping_interval": None,
        }
        return {**defaults, **options}

    def _turn(self) -> bool:
        """Do the work that is due now, not the work that it causes; return whether there was any."""
        has_run = self.clock.run_due()
        return self.network.turn() or has_run

    def _wake(self) -> None:
        """Note that there is something to move."""
        self._wakes += 1
        if self._call_soon is not None and self._driving is None and not self._is_flushing:
            self._driving = self._call_soon(self._drive)

    def _drive(self) -> None:
        self._driving = None
        self.flush()

    def _check_not_within(self) -> None:
        if self._is_flushing:
            raise RuntimeError(
                "the farm is moving already: what it calls cannot wait for it; in a test that an event loop "
                "runs, await what clients return, and advanced(seconds)"
            )

    def _stop_driving(self) -> None:
        if self._driving is not None:
            self._driving.cancel()
            self._driving = None

    def _what_is_left(self) -> str:
        """Say what a test that waits in vain may want to know."""
        parts = [part for server in self.servers for part in server.describe_jobs()] or [
            "no server has a job"
        ]
        due = self.clock.next_due()
        if due is not None:
            parts.append(f"the next thing is due in {due - self.clock.seconds():g} s")
        return "; ".join(parts)


class MemoryServer:
    """A job server of a farm: a ``JobServerService`` that listens nowhere but in memory.

    Args:
        farm: the farm.
        name: what it is called.
        store: where it keeps background jobs; a ``DurableMemoryStore`` if None.
        settings: how it treats jobs and peers.

    Attributes:
        name: the same.
        store: the same.
        endpoint: an ``IStreamClientEndpoint`` that leads to it.
        service: the server itself; another one each time that it is started.
    """

    def __init__(
        self, farm: MemoryFarm, name: str, store: IJobStore | None, settings: EngineSettings | None
    ) -> None:
        self.name = name
        self.store = DurableMemoryStore() if store is None else store
        self.endpoint: IStreamClientEndpoint = farm.network.client_endpoint(name)
        self._farm = farm
        self._settings = settings or default_settings(handle_prefix=b"H:" + name.encode())
        self._started_at: float | None = None
        self.service = self._new_service()

    @property
    def engine(self) -> JobServer:
        """What it knows of jobs, functions and connections."""
        return self.service.engine

    @property
    def is_running(self) -> bool:
        """Whether connections are accepted."""
        return self._farm.network.is_listening(self.name)

    @property
    def functions(self) -> dict[str, FunctionView]:
        """Its functions by name, with the number of their jobs and workers."""
        return {
            view.name.decode("utf-8", "backslashreplace"): view for view in self.engine.snapshot().functions
        }

    @property
    def stored_jobs(self) -> list[StoredJob]:
        """The background jobs that have not ended, oldest first, if the store is a ``DurableMemoryStore``."""
        if not isinstance(self.store, DurableMemoryStore):
            raise TypeError(f"only a DurableMemoryStore can be looked into, not {type(self.store).__name__}")
        return list(self.store.jobs.values())

    def start(self) -> None:
        """Start it, with the jobs that the store keeps. Idempotent."""
        if self.is_running:
            return
        if self._started_at == self._farm.clock.seconds():
            # The numbers of jobs begin with the time, and no handle may be given twice.
            self._farm.advance(1.0)
        self._started_at = self._farm.clock.seconds()
        self.service = self._new_service()
        self.service.startService()

    def stop(self) -> None:
        """Stop it as on SIGTERM: connections are closed, and refused from then on. Idempotent."""
        if self.is_running:
            self._farm.result(self.service.stopService(), within=10.0)

    def restart(self) -> None:
        """Stop and start it, within ``retry_delay`` of the clock; workers have reconnected then."""
        self.stop()
        self._farm.advance(self._farm.retry_delay / 2)
        self.start()
        self._farm.advance(self._farm.retry_delay / 2)

    def lose_connections(self) -> None:
        """Break its connections, as a network does."""
        self._farm.network.break_all(self.name)
        self._farm.flush()

    def describe_jobs(self) -> list[str]:
        """Say what it has to do, function by function."""
        if not self.is_running:
            return [f"{self.name} is not running"]
        if self.engine.is_loading:
            return [f"{self.name} has not read its store"]
        return [
            f"{self.name} has {view.total} {'job' if view.total == 1 else 'jobs'} for {name!r}, "
            f"{view.running} of them running, and {view.workers or 'no'} "
            f"{'worker' if view.workers == 1 else 'workers'} for it"
            for name, view in self.functions.items()
            if view.total
        ]

    def _new_service(self) -> JobServerService:
        endpoint = self._farm.network.server_endpoint(self.name)
        return JobServerService(self._farm.clock, [endpoint], self.store, settings=self._settings)


@implementer(IJobStore)
class DurableMemoryStore:
    """A store in memory that keeps jobs from one start of a server to the next, as a durable one does.

    Attributes:
        jobs: what it keeps, by id, in the order of submission.
    """

    durable = True
    sync_interval = 0.0
    max_workload_bytes = None
    description = "memory, for tests"

    def __init__(self) -> None:
        self.jobs: dict[int, StoredJob] = {}

    def check(self) -> None:
        """Find nothing wrong."""

    def open(self) -> Deferred[None]:
        """A no-op."""
        return succeed(None)

    def replay(self, add: Callable[[Sequence[StoredJob]], None]) -> Deferred[int]:
        """Give all jobs back."""
        jobs = [self.jobs[number] for number in sorted(self.jobs)]
        add(jobs)
        return succeed(len(jobs))

    def load(self, ids: Sequence[int]) -> Deferred[list[StoredJob]]:
        """Give some jobs back."""
        return succeed([self.jobs[number] for number in ids if number in self.jobs])

    def apply(self, saves: Sequence[StoredJob], forgets: Sequence[int]) -> Deferred[None]:
        """Keep some jobs, and drop others."""
        for job in saves:
            self.jobs[job.id] = job
        for number in forgets:
            self.jobs.pop(number, None)
        return succeed(None)

    def close(self) -> Deferred[None]:
        """A no-op."""
        return succeed(None)


class GearmanTestMixin:
    """For ``unittest`` and ``twisted.trial``: a farm for each test, as ``self.farm``.

    It stands before the test case: ``class Tests(GearmanTestMixin, SynchronousTestCase)``. With trial's
    ``TestCase``, whose tests a reactor runs, that drives the farm.
    """

    farm: MemoryFarm

    def setUp(self) -> None:
        """Make the farm."""
        super().setUp()  # type: ignore[misc]
        self.farm = self.make_farm()
        self.addCleanup(self.farm.close)  # type: ignore[attr-defined]
        from twisted.trial.unittest import TestCase

        if isinstance(self, TestCase):
            from twisted.internet import reactor

            self.farm.drive(reactor)

    def make_farm(self) -> MemoryFarm:
        """Make it; to be overridden by tests that want another one."""
        return MemoryFarm()
