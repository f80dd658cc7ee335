"""The worker for asyncio. Imports no Twisted.

What it does is written in ``worker/core.py``; here is what users call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ssl import SSLContext
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from gearman_twisted.runtime.interfaces import Place
from gearman_twisted.runtime.on_asyncio import AddressPlace, AsyncioRuntime, default_retry_policy
from gearman_twisted.wire.constants import DEFAULT_PACKET_BYTES
from gearman_twisted.worker.core import WorkerCore, places_of
from gearman_twisted.worker.marks import MarkedFunctions, function_decorator, register_marked
from gearman_twisted.worker.run import WorkerFunction

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["GearmanWorker", "WorkerFunction"]

_F = TypeVar("_F", bound=WorkerFunction)


class GearmanWorker:
    """A worker: connects to its servers from ``start`` to ``stop``, and reconnects.

    A function takes a ``Job`` and returns the result, bytes or None, or an awaitable of these. ``in_thread``
    and ``in_process`` make one of a function that blocks. See
    ``gearman_twisted.GearmanWorker`` for errors, lost connections and servers that do not answer.

    A worker runs in the event loop that runs when it is started, and can be started again after ``stop``.

    Args:
        servers: the servers, each as ``GearmanClient`` takes it.
        functions: functions or modules that are marked with ``gearman_twisted.function``.
        concurrency: how many jobs may run at a time, on all servers together.
        client_id: the name that the servers' command ``workers`` shows for this worker.
        drain_timeout: how many seconds ``stop`` waits for running jobs.
        retry_policy: seconds to wait before connection attempt number n.
        ping_interval: seconds after which a silent server is given up, if it answers pings or owes an
            answer; None leaves that to the system, which may take hours.
        max_packet_bytes: the largest packet that the servers take; what exceeds it fails its job with
            ``ResultTooLarge``. For a server that turns out to take less, that is remembered. Workloads may
            be as large, up to 4 GiB.
        max_waiting: how many jobs may wait for another try, see ``RetryLater``, without taking a slot. More
            keep theirs, so that a worker whose jobs can all not be done does not go on to take new ones.
        ssl: how TLS is spoken, if it is.
        runtime: the event loop and its time; the loop that runs if None. A farm gives its own.

    Raises:
        ConfigError: an address or a number makes no sense.
        LocalProtocolError: the client id cannot be sent.
    """

    def __init__(
        self,
        servers: str | Iterable[str | Place] = ("127.0.0.1:4730",),
        *,
        functions: MarkedFunctions = (),
        concurrency: int = 1,
        client_id: str | bytes | None = None,
        drain_timeout: float = 10.0,
        retry_policy: Callable[[int], float] | None = None,
        ping_interval: float | None = 30.0,
        max_packet_bytes: int = DEFAULT_PACKET_BYTES,
        max_waiting: int = 100,
        ssl: SSLContext | None = None,
        runtime: AsyncioRuntime | None = None,
    ) -> None:
        places = places_of(servers, lambda server: AddressPlace.of(server, ssl))
        self._core = WorkerCore(
            runtime or AsyncioRuntime("this worker"),
            places,
            concurrency=concurrency,
            client_id=client_id,
            drain_timeout=drain_timeout,
            retry_policy=retry_policy or default_retry_policy(),
            ping_interval=ping_interval,
            max_packet_bytes=max_packet_bytes,
            max_waiting=max_waiting,
        )
        register_marked(self._core.register, functions)

    def register(
        self,
        name: str | bytes,
        function: WorkerFunction,
        *,
        timeout: float | None = None,
        server_timeout: float | None = None,
        concurrency: int | None = None,
    ) -> None:
        """Offer a function, at once where the worker is connected; replaces one of the same name.

        Args:
            name: the function's name; 1 to 8191 bytes without NUL, text as UTF-8.
            function: called with each ``Job``.
            timeout: seconds that a job may take. Then it fails with ``JobTimeout: …``, and what runs is
                ended: a coroutine is cancelled, a process killed. A thread, or a coroutine that goes on in
                spite of it, keeps its slot to its end.
            server_timeout: seconds that the server waits for a job to end before it gives it to another
                worker. None for five more than the timeout, or no limit if there is none; 0 for no limit.
            concurrency: how many jobs of the function may run at a time, on all servers together; None for as
                many as the worker has slots, or the executor processes. A limit below the number of slots
                takes a connection of its own to each server.

        Raises:
            LocalProtocolError: the name cannot be sent.
            ConfigError: the function is none, or a number makes no sense.
        """
        self._core.register(
            name, function, timeout=timeout, server_timeout=server_timeout, concurrency=concurrency
        )

    @overload
    def function(self, name: _F) -> _F: ...

    @overload
    def function(
        self,
        name: str | bytes | None = None,
        *,
        timeout: float | None = None,
        server_timeout: float | None = None,
        concurrency: int | None = None,
    ) -> Callable[[_F], _F]: ...

    def function(
        self,
        name: Any = None,
        *,
        timeout: float | None = None,
        server_timeout: float | None = None,
        concurrency: int | None = None,
    ) -> Any:
        """Register a function; a decorator, with or without parentheses.

        Args:
            name: the function's name; its own if None.
            timeout: see ``register``.
            server_timeout: see ``register``.
            concurrency: see ``register``.
        """
        return function_decorator(
            self._core.register,
            name,
            timeout=timeout,
            server_timeout=server_timeout,
            concurrency=concurrency,
        )

    def unregister(self, name: str | bytes) -> None:
        """Withdraw a function. A no-op for one that is not registered.

        Jobs of the function that run, or are on their way, are done to their end.
        """
        self._core.unregister(name)

    def start(self) -> None:
        """Connect to all servers, in the event loop that runs. A no-op while it runs.

        Raises:
            RuntimeError: it is stopping.
        """
        self._core.start()

    async def stop(self) -> None:
        """Take no more jobs, wait for those that run, at most for the drain timeout, and disconnect.

        Jobs that wait for another try go back to their servers, and so do those that still run at the end;
        their coroutines are cancelled and their processes killed. Asked a second time, it waits no longer.
        Cancelling it does not keep the worker from stopping.
        """
        if self._core.is_running:
            await self._core.stop()

    async def run(self) -> None:
        """Start, and return when the worker was stopped. If it is cancelled it stops the worker first."""
        self.start()
        try:
            await self._core.stopped()
        except BaseException:
            await self.stop()
            raise

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
