"""The worker in asyncio: runs functions for the jobs of one or more servers.

When to ask for a job and what packets mean is for ``worker/session.py``; the connections are for
``serving.py``, the functions that run for ``runs.py``; here is what users call.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Iterable, Iterator
from ssl import SSLContext
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from gearman_twisted.errors import ConfigError
from gearman_twisted.runtime.asyncio_link import Place, backoff, check_ping_interval
from gearman_twisted.wire.names import check_client_id, check_function, text_or_bytes
from gearman_twisted.worker.asyncio_executors import Executor
from gearman_twisted.worker.asyncio_runs import Registered, Run, WorkerFunction
from gearman_twisted.worker.asyncio_serving import Server, Serving
from gearman_twisted.worker.groups import FunctionGroup, FunctionGroups, limit_of_server
from gearman_twisted.worker.session import Assigned, WorkerSession
from gearman_twisted.worker.slots import Slots

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["GearmanWorker", "WorkerFunction"]

_F = TypeVar("_F", bound=WorkerFunction)

_log = logging.getLogger("gearman_twisted.aio")

# How long a worker that has given a job back leaves the function to others.
_PAUSE = 1.0
# How long functions that were cancelled, when the worker stops, may take to clean up after themselves.
_CANCEL_PATIENCE = 3.0


class GearmanWorker:
    """A worker: connects to its servers from ``start`` to ``stop``, again and again where it must.

    A function takes a ``Job`` and returns the result, bytes or None, or an awaitable of these. ``in_thread``
    and ``in_process`` make one of a function that blocks. What becomes of errors is said by
    ``gearman_twisted.GearmanWorker``.

    When a connection is lost, the functions that run for it go on to their end. The server gives their jobs
    to another worker, or to this one again; their result is dropped. Functions should bear to be run twice.

    A worker that was stopped is not started again.

    Args:
        servers: the servers, each as ``GearmanClient`` takes it.
        concurrency: how many jobs may run at a time, on all servers together.
        client_id: the name that the servers' command ``workers`` shows for this worker.
        drain_timeout: how many seconds ``stop`` waits for running jobs.
        retry_policy: seconds to wait before connection attempt number n.
        ping_interval: see ``GearmanClient``.
        max_packet_bytes: the largest packet that the servers take; what exceeds it fails its job with
            ``ResultTooLarge``. For a server that turns out to take less, that is remembered.
        max_waiting: how many jobs may wait for another try, see ``RetryLater``, without taking a slot. More
            keep theirs, so that a worker whose jobs can all not be done does not go on to take new ones.
        ssl: how TLS is spoken, if it is.

    Raises:
        ConfigError: an address or a number makes no sense.
        LocalProtocolError: the client id cannot be sent.
    """

    def __init__(
        self,
        servers: str | Iterable[str] = ("127.0.0.1:4730",),
        *,
        concurrency: int = 1,
        client_id: str | bytes | None = None,
        drain_timeout: float = 10.0,
        retry_policy: Callable[[int], float] | None = None,
        ping_interval: float | None = 30.0,
        max_packet_bytes: int = 1_000_000_000,
        max_waiting: int = 100,
        ssl: SSLContext | None = None,
    ) -> None:
        if concurrency < 1:
            raise ConfigError(f"concurrency takes a number of at least 1, not {concurrency!r}")
        if not drain_timeout >= 0:
            raise ConfigError(f"drain_timeout takes seconds, 0 or more, not {drain_timeout!r}")
        if not 1024 <= max_packet_bytes <= 0xFFFFFFFF:
            raise ConfigError(f"max_packet_bytes takes 1024 to {0xFFFFFFFF}, not {max_packet_bytes!r}")
        if max_waiting < 0:
            raise ConfigError(f"max_waiting takes a number of at least 0, not {max_waiting!r}")
        self.ping_interval = check_ping_interval(ping_interval)
        self.client_id = None if client_id is None else check_client_id(text_or_bytes(client_id, "client_id"))
        self.slots = Slots(concurrency)
        self.retry_policy = retry_policy or backoff
        self._max_waiting = max_waiting
        self._drain_timeout = drain_timeout
        # Also of functions that were unregistered: jobs of them may be on their way.
        self._functions: dict[bytes, Registered] = {}
        self._executors: set[Executor] = set()
        # Functions that are not offered for a moment.
        self._pauses: dict[bytes, asyncio.TimerHandle] = {}
        self._runs: dict[Run, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()
        self._stopping: asyncio.Task[None] | None = None
        self._has_started = False
        self._quiet = asyncio.Event()
        # Connections that take no more jobs, and go when they have none.
        self._retired: list[Serving] = []
        self._servers = [
            Server(Place.of(server, ssl), max_packet_bytes)
            for server in ([servers] if isinstance(servers, str) else servers)
        ]
        if not self._servers:
            raise ConfigError("a worker needs at least one server")
        self._groups: FunctionGroups[Serving] = FunctionGroups(
            self.slots, connect=self._connect, retire=self._retire
        )

    def register(
        self,
        name: str | bytes,
        function: WorkerFunction,
        *,
        timeout: float | None = None,
        server_timeout: float | None = None,
        concurrency: int | None = None,
    ) -> None:
        """Offers a function, at once where the worker is connected; replaces one of the same name.

        Args:
            name: the function's name; 1 to 8191 bytes without NUL, text as UTF-8.
            function: what to call with each ``Job``.
            timeout: how many seconds a job may take. Then it fails with ``JobTimeout: …``, and what runs is
                ended: a coroutine is cancelled, a process killed. A thread, or a coroutine that goes on in
                spite of it, keeps its slot to its end.
            server_timeout: how many seconds the server waits for a job to end before it gives it to another
                worker. None for five more than the timeout, or no limit if there is none; 0 for no limit.
            concurrency: how many jobs of the function may run at a time, on all servers together; None for as
                many as the worker has slots, or the executor processes. A limit below the number of slots
                takes a connection of its own to each server.

        Raises:
            LocalProtocolError: the name cannot be sent.
            ConfigError: a number makes no sense.
        """
        function_name = check_function(text_or_bytes(name, "name"))
        server_timeout = limit_of_server(timeout, server_timeout)
        if isinstance(function, Executor):
            if concurrency is None:
                concurrency = function.concurrency
            self._executors.add(function)
        if concurrency is not None and concurrency < 1:
            raise ConfigError(f"concurrency takes a number of at least 1, not {concurrency!r}")
        self._functions[function_name] = Registered(function, timeout, server_timeout)
        pause = self._pauses.pop(function_name, None)
        if pause is not None:
            pause.cancel()
        self._groups.offer(function_name, math.ceil(server_timeout * 1000), concurrency)
        self.flush()

    def function(
        self,
        name: str | bytes,
        *,
        timeout: float | None = None,
        server_timeout: float | None = None,
        concurrency: int | None = None,
    ) -> Callable[[_F], _F]:
        """The same as ``register``, as a decorator."""

        def decorate(function: _F) -> _F:
            self.register(
                name, function, timeout=timeout, server_timeout=server_timeout, concurrency=concurrency
            )
            return function

        return decorate

    def unregister(self, name: str | bytes) -> None:
        """Offers a function no longer; one that is not registered is ignored.

        Jobs of the function that run, or are on their way, are done to their end.
        """
        self._groups.withdraw(text_or_bytes(name, "name"))
        self.flush()

    def start(self) -> None:
        """Connects to all servers, in the event loop that runs.

        Raises:
            RuntimeError: it was started before.
        """
        if self._has_started:
            raise RuntimeError("a worker is started once; make another one")
        self._has_started = True
        for serving in self._connections():
            serving.link.start()

    async def stop(self) -> None:
        """Takes no more jobs, waits for those that run, at most for the drain timeout, and disconnects.

        Jobs that wait for another try go back to their servers. Those that run still do so at the end; their
        coroutines are cancelled and their processes killed.
        """
        if not self._has_started:
            return
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop())
        # Whoever is cancelled while it waits does not keep the worker from stopping.
        await asyncio.shield(self._stopping)

    async def run(self) -> None:
        """Starts, and returns when the worker was stopped. If it is cancelled it stops the worker first."""
        self.start()
        try:
            while self._stopping is None:
                self._quiet.clear()
                await self._quiet.wait()
        finally:
            await self.stop()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # What the connections and the functions that run call.

    @property
    def is_stopping(self) -> bool:
        """Whether no more jobs are wanted."""
        return self._stopping is not None

    def may_set_aside(self) -> bool:
        """Whether one more job may wait for another try without a slot."""
        return sum(run.is_aside for run in self._runs) < self._max_waiting

    def take_job(self, serving: Serving, assigned: Assigned) -> None:
        """A server gave a job."""
        assert serving.session is not None
        run = Run(self, serving, serving.session, assigned, self._functions.get(assigned.function))
        task = self._runs[run] = asyncio.get_running_loop().create_task(run.run())
        task.add_done_callback(lambda _task: self._ended(run))

    def _ended(self, run: Run) -> None:
        task = self._runs.pop(run)
        if not task.cancelled() and task.exception() is not None:
            _log.error("Bug in ending %r", run.job, exc_info=task.exception())
        self.flush()

    def connection_lost(self, session: WorkerSession) -> None:
        """A connection is gone: what runs for it is not heard any more, and what waits is not tried again."""
        for run, task in self._runs.items():
            if run.session is session:
                run.reports.is_open = False
                run.is_lost = True
                if run.is_waiting:
                    task.cancel()
        self.flush()

    def leave_to_others(self, name: bytes) -> None:
        """A job was given back: for a moment its function is left to others, or jobs would go in circles."""
        if name not in self._pauses and not self.is_stopping:
            loop = asyncio.get_running_loop()
            self._pauses[name] = loop.call_later(_PAUSE, self._resume, name)
            self._groups.pause(name)

    def _resume(self, name: bytes) -> None:
        del self._pauses[name]
        self._groups.resume(name)
        self.flush()

    def flush(self) -> None:
        """Sends what the sessions have to send."""
        for group in self._groups:
            for number, serving in enumerate(group.connections):
                if serving.session is not None and serving.session.is_held_up:
                    # A new connection takes jobs while those of the old one come to their end.
                    self._retire(serving)
                    group.connections[number] = self._serve(serving.server, group)
                serving.flush()
        for serving in list(self._retired):
            serving.flush()
            if serving.is_idle:
                self._retired.remove(serving)
                self.start_task(serving.link.stop())
        self._quiet.set()

    def _connections(self) -> Iterator[Serving]:
        """All of them, also those that are about to go."""
        for group in self._groups:
            yield from group.connections
        yield from self._retired

    def _connect(self, group: FunctionGroup[Serving]) -> list[Serving]:
        return [self._serve(server, group) for server in self._servers]

    def _serve(self, server: Server, group: FunctionGroup[Serving]) -> Serving:
        """A new connection, which connects while the worker runs."""
        serving = Serving(self, server, group)
        if self._has_started and not self.is_stopping:
            serving.link.start()
        return serving

    def _retire(self, serving: Serving) -> None:
        serving.drain()
        if self._has_started:
            self._retired.append(serving)

    def start_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs something in the background, until the worker has stopped."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def _stop(self) -> None:
        for pause in self._pauses.values():
            pause.cancel()
        self._pauses.clear()
        for serving in self._connections():
            serving.drain()
        for run, task in self._runs.items():
            if run.is_waiting:
                task.cancel()
        self.flush()
        await self._until_idle()
        if self._runs:
            _log.warning(
                "Stops after %g seconds with jobs that still run: %r",
                self._drain_timeout,
                [run.job for run in self._runs],
            )
        await asyncio.gather(*(serving.link.stop() for serving in self._connections()))
        tasks = list(self._runs.values())
        for task in tasks:
            task.cancel()
        tasks += self._others
        if tasks:
            await asyncio.wait(tasks, timeout=_CANCEL_PATIENCE)
        # Not before, or jobs whose processes are killed would be told to have failed.
        await asyncio.gather(*(executor.stop() for executor in self._executors))
        self._quiet.set()

    async def _until_idle(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._drain_timeout
        timer = loop.call_at(deadline, self._quiet.set)
        try:
            while loop.time() < deadline and not (
                all(serving.is_idle for serving in self._connections()) and not self._runs
            ):
                self._quiet.clear()
                await self._quiet.wait()
        finally:
            timer.cancel()
