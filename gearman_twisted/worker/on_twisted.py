"""The worker for Twisted: a service with several servers, and a factory for any endpoint.

What it does is written in ``worker/core.py``; here is what users call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar, overload

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
from twisted.internet.protocol import Factory

from gearman_twisted.runtime.on_twisted import (
    EndpointPlace,
    PeerProtocol,
    TwistedRuntime,
    default_retry_policy,
)
from gearman_twisted.wire.constants import DEFAULT_PACKET_BYTES
from gearman_twisted.worker.connection import WorkerConnection
from gearman_twisted.worker.core import WorkerCore, places_of
from gearman_twisted.worker.job import Job
from gearman_twisted.worker.marks import MarkedFunctions, function_decorator, register_marked
from gearman_twisted.worker.run import WorkerFunction

__all__ = ["GearmanWorker", "GearmanWorkerFactory", "GearmanWorkerProtocol", "Job", "WorkerFunction"]

_F = TypeVar("_F", bound=WorkerFunction)


class _Functions:
    """What a worker and a factory have in common: their functions."""

    _core: WorkerCore

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
                ended: a Deferred or coroutine is cancelled, a process killed. A thread, or a coroutine that
                goes on in spite of it, keeps its slot to its end. What blocks the reactor's thread cannot be
                ended, nor reported.
            server_timeout: seconds that the server waits for a job to end before it gives it to another
                worker, should this one be stuck; gearmand makes at least one second of it. None for five more
                than the timeout, or no limit if there is none; 0 for no limit.
            concurrency: how many jobs of the function may run at a time, on all servers together; None for as
                many as the worker has slots, or the executor processes. A limit below the number of slots
                takes a connection of its own to each server, so a ``GearmanWorkerFactory`` refuses it.

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


class GearmanWorker(_Functions, MultiService):
    """A worker, as a service: connects to its servers while it runs, and reconnects.

    A function takes a ``Job`` and returns the result: bytes, or None for an empty one, or a Deferred or a
    coroutine of either; ``in_thread`` and ``in_process`` make one of a function that blocks. If it raises,
    the client gets an exception with the text ``TypeOfError: message``, and the log has the traceback; the
    same for a result that is something else, or too large (``ResultTooLarge``). Some errors say more:
    ``JobFailed`` fails the job without an exception and without a traceback, ``JobException`` fails it with
    the data that it holds, and ``RetryLater`` has it tried again.

    When a connection is lost, the functions that run for it go on to their end, as they cannot be
    stopped safely. The server gives their jobs to another worker, or to this one again; their result is
    dropped. Functions should be idempotent.

    A server that does not answer does not keep jobs of others waiting: after about a second its slot is used
    for them. If it assigns a job later, that runs as soon as a slot is free.

    Args:
        servers: the servers, each as ``GearmanClient`` takes it.
        functions: functions or modules that are marked with ``gearman_twisted.function``.
        concurrency: how many jobs may run at a time, on all servers together. More than one is of use to
            functions that wait, or run in threads or processes.
        reactor: the reactor to connect with; the global one if None.
        client_id: the name that the servers' command ``workers`` shows for this worker.
        drain_timeout: how many seconds ``stopService`` waits for running jobs.
        retry_policy: seconds to wait before connection attempt number n, as ``ClientService`` takes it. A
            server that accepts connections but says nothing that makes sense counts as one that does not.
        ping_interval: seconds after which a silent server is given up, if it answers pings or owes an
            answer; None leaves that to the system, which may take hours.
        max_packet_bytes: the largest packet that the servers take; what exceeds it fails its job with
            ``ResultTooLarge``. For a server that turns out to take less, that is remembered. Workloads may
            be as large, up to 4 GiB.
        max_waiting: how many jobs may wait for another try, see ``RetryLater``, without taking a slot. More
            keep theirs, so that a worker whose jobs can all not be done does not go on to take new ones.

    Raises:
        ConfigError: an address or a number makes no sense.
        LocalProtocolError: the client id cannot be sent.
    """

    def __init__(
        self,
        servers: str | IStreamClientEndpoint | Iterable[str | IStreamClientEndpoint] = ("127.0.0.1:4730",),
        *,
        functions: MarkedFunctions = (),
        concurrency: int = 1,
        reactor: Any = None,
        client_id: str | bytes | None = None,
        drain_timeout: float = 10.0,
        retry_policy: Callable[[int], float] | None = None,
        ping_interval: float | None = 30.0,
        max_packet_bytes: int = DEFAULT_PACKET_BYTES,
        max_waiting: int = 100,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        reactor = _reactor(reactor)
        places = places_of(servers, partial(EndpointPlace.of, reactor))
        self._core = WorkerCore(
            TwistedRuntime(reactor),
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

    def startService(self) -> None:
        """Connect to all servers."""
        self._core.start()
        super().startService()  # type: ignore[no-untyped-call]

    def stopService(self) -> Deferred[Any]:
        """Take no more jobs, wait for those that run, at most for the drain timeout, and disconnect.

        Jobs that wait for another try go back to their servers, and so do those that still run at the end;
        their Deferreds and coroutines are cancelled, their processes killed. Asked a second time, it waits no
        longer. The service can be started again after that.

        Returns:
            A Deferred that fires when all connections are closed and all processes have ended. Cancelling it
            does not keep the worker from stopping.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        return self._core.stop()  # type: ignore[return-value]


class GearmanWorkerProtocol(PeerProtocol):
    """A connection of a worker to a server; ``GearmanWorkerFactory`` makes it."""

    def __init__(self, connection: WorkerConnection) -> None:
        super().__init__(connection)


class GearmanWorkerFactory(_Functions, Factory):
    """A worker whose connections somebody else makes, for any endpoint and for ``ClientService``.

    Example::

        factory = GearmanWorkerFactory(concurrency=4)
        factory.register("reverse", lambda job: job.workload[::-1])
        ClientService(endpoint, factory).startService()

    It may be connected several times; all its connections share its slots. What it does with jobs is said by
    ``GearmanWorker``, and so are the arguments.

    Args:
        functions: functions or modules that are marked with ``gearman_twisted.function``.
        concurrency: how many jobs may run at a time, on all connections together.
        reactor: what tells the time; the global reactor if None.
        client_id: the name that the servers' command ``workers`` shows for this worker.
        ping_interval: seconds after which a silent server is given up, if it answers pings or owes an
            answer; None leaves that to the system, which may take hours.
        max_packet_bytes: the largest packet that the servers take.
        max_waiting: how many jobs may wait for another try without taking a slot.

    Raises:
        ConfigError: a number makes no sense.
        LocalProtocolError: the client id cannot be sent.
    """

    noisy = False

    def __init__(
        self,
        *,
        functions: MarkedFunctions = (),
        concurrency: int = 1,
        reactor: Any = None,
        client_id: str | bytes | None = None,
        ping_interval: float | None = 30.0,
        max_packet_bytes: int = DEFAULT_PACKET_BYTES,
        max_waiting: int = 100,
    ) -> None:
        self._core = WorkerCore(
            TwistedRuntime(_reactor(reactor)),
            (),
            concurrency=concurrency,
            client_id=client_id,
            drain_timeout=0,
            retry_policy=lambda _attempt: 0.0,
            ping_interval=ping_interval,
            max_packet_bytes=max_packet_bytes,
            max_waiting=max_waiting,
        )
        register_marked(self._core.register, functions)

    def buildProtocol(self, addr: IAddress | None) -> GearmanWorkerProtocol:
        """Return a protocol for a connection that was just made."""
        name = "its server" if addr is None else _describe(addr)
        return GearmanWorkerProtocol(self._core.new_link(name).make_peer())

    def drain(self) -> Deferred[None]:
        """Take no more jobs, on no connection; close none.

        Returns:
            A Deferred that fires when the jobs that run have ended, and their processes. Then disconnect.
        """
        return Deferred.fromCoroutine(self._core.drain())


def _describe(address: IAddress) -> str:
    host, port = getattr(address, "host", None), getattr(address, "port", None)
    return str(address) if host is None else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reactor(reactor: Any) -> Any:
    if reactor is None:
        from twisted.internet import reactor
    return reactor
