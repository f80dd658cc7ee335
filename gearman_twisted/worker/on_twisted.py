"""The worker: runs functions for the jobs of one or more servers.

When to ask for a job and what packets mean is for ``worker/session.py``, the connections are for
``worker/connection.py``, the jobs that run for ``worker/run.py``; here is what users call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from twisted.application.internet import backoffPolicy
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger, LogLevel

from gearman_twisted.errors import ConfigError
from gearman_twisted.runtime.address import client_endpoint
from gearman_twisted.wire.constants import ErrorCode
from gearman_twisted.wire.names import check_client_id, check_function
from gearman_twisted.worker.connection import (
    GearmanWorkerFactory,
    GearmanWorkerProtocol,
    Server,
    WorkerConnection,
)
from gearman_twisted.worker.executors import Executor
from gearman_twisted.worker.groups import FunctionGroup, FunctionGroups, limit_of_server
from gearman_twisted.worker.job import Job
from gearman_twisted.worker.run import Registered, Runs, WorkerFunction
from gearman_twisted.worker.session import Assigned, Outcome, Refused
from gearman_twisted.worker.slots import Slots

__all__ = ["GearmanWorker", "GearmanWorkerFactory", "GearmanWorkerProtocol", "Job", "WorkerFunction"]

_F = TypeVar("_F", bound=WorkerFunction)

# How long a worker that has given a job back leaves the function to others.
_PAUSE = 1.0
# How long a server may take to read what is sent before a connection is closed.
_CLOSE_PATIENCE = 5.0


class GearmanWorker(MultiService):
    """A worker, as a service: connects to its servers while it runs, again and again where it must.

    A function takes a ``Job`` and returns the result: bytes, or None for an empty one, or a Deferred or a
    coroutine of either; ``in_thread`` and ``in_process`` make one of a function that blocks. If it raises,
    the client hears of it as an exception with the text ``TypeOfError: message``, and the log has the
    traceback; the same for a result that is something else, or too large (``ResultTooLarge``). Some errors
    say more: ``JobFailed`` fails the job without an exception and without a traceback, ``JobException`` fails
    it with the very data that it holds, and ``RetryLater`` has it tried again.

    When a connection is lost, the functions that run for it go on to their end, as they cannot be
    stopped safely. The server gives their jobs to another worker, or to this one again; their result is
    dropped. Functions should bear to be run twice.

    Args:
        servers: the servers, each as ``GearmanClient`` takes it.
        concurrency: how many jobs may run at a time, on all servers together. More than one is of use to
            functions that wait, or run in threads or processes.
        reactor: the reactor to connect with; the global one if None.
        client_id: the name that the servers' command ``workers`` shows for this worker.
        drain_timeout: how many seconds ``stopService`` waits for running jobs.
        retry_policy: seconds to wait before connection attempt number n, as ``ClientService`` takes it. A
            server that accepts connections but says nothing that makes sense counts as one that does not.
        ping_interval: seconds after which a server that has fallen silent without a word is given up; None
            leaves that to the system, which may take hours.
        max_packet_bytes: the largest packet that the servers take; what exceeds it fails its job with
            ``ResultTooLarge``. For a server that turns out to take less, that is remembered.
        max_waiting: how many jobs may wait for another try, see ``RetryLater``, without taking a slot. More
            keep theirs, so that a worker whose jobs can all not be done does not go on to take new ones.

    Raises:
        ConfigError: an address or a number makes no sense.
        LocalProtocolError: the client id cannot be sent.
    """

    _log = Logger()

    def __init__(
        self,
        servers: str | IStreamClientEndpoint | Iterable[str | IStreamClientEndpoint] = ("127.0.0.1:4730",),
        *,
        concurrency: int = 1,
        reactor: Any = None,
        client_id: str | bytes | None = None,
        drain_timeout: float = 10.0,
        retry_policy: Callable[[int], float] | None = None,
        ping_interval: float | None = 30.0,
        max_packet_bytes: int = 1_000_000_000,
        max_waiting: int = 100,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if reactor is None:
            from twisted.internet import reactor
        if concurrency < 1:
            raise ConfigError(f"concurrency takes a number of at least 1, not {concurrency!r}")
        if not drain_timeout >= 0:
            raise ConfigError(f"drain_timeout takes seconds, 0 or more, not {drain_timeout!r}")
        if ping_interval is not None and not 0.1 <= ping_interval <= 86_400:
            raise ConfigError(f"ping_interval takes 0.1 to 86400 seconds or None, not {ping_interval!r}")
        if not 1024 <= max_packet_bytes <= 0xFFFFFFFF:
            raise ConfigError(f"max_packet_bytes takes 1024 to {0xFFFFFFFF}, not {max_packet_bytes!r}")
        if max_waiting < 0:
            raise ConfigError(f"max_waiting takes a number of at least 0, not {max_waiting!r}")
        self.client_id = None if client_id is None else check_client_id(_encoded(client_id))
        self.slots = Slots(concurrency)
        self.reactor = reactor
        self.ping_interval = ping_interval
        # Also of functions that were unregistered: jobs of them may be on their way.
        self._functions: dict[bytes, Registered] = {}
        self._executors: set[Executor] = set()
        # Connections that take no more jobs, and go when they have none.
        self._retired: list[WorkerConnection] = []
        self._pauses: dict[bytes, Any] = {}
        self._runs = Runs(self.slots, reactor, max_waiting, self._flush, self._pause)
        self._drain_timeout = drain_timeout
        self._is_gathering = False
        self._drained: Deferred[None] | None = None
        if isinstance(servers, str) or IStreamClientEndpoint.providedBy(servers):
            servers = [servers]
        self._servers = [
            Server(
                server if isinstance(server, str) else repr(server),
                client_endpoint(reactor, server),
                retry_policy or backoffPolicy(initialDelay=0.2, maxDelay=15.0),
                max_packet_bytes,
            )
            for server in servers
        ]
        if not self._servers:
            raise ConfigError("a worker needs at least one server")
        self._groups: FunctionGroups[WorkerConnection] = FunctionGroups(
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
                ended: a Deferred or coroutine is cancelled, a process killed. A thread, or a coroutine that
                goes on in spite of it, keeps its slot to its end. What blocks the reactor's thread cannot be
                ended, nor told of.
            server_timeout: how many seconds the server waits for a job to end before it gives it to another
                worker, should this one be stuck; gearmand makes at least one second of it. None for five more
                than the timeout, or no limit if there is none; 0 for no limit.
            concurrency: how many jobs of the function may run at a time, on all servers together; None for as
                many as the worker has slots, or the executor processes. A limit below the number of slots
                takes a connection of its own to each server.

        Raises:
            LocalProtocolError: the name cannot be sent.
            ConfigError: a number makes no sense.
        """
        function_name = check_function(_encoded(name))
        server_timeout = limit_of_server(timeout, server_timeout)
        if isinstance(function, Executor):
            if concurrency is None:
                concurrency = function.concurrency
            function.bind(self.reactor)
            self._executors.add(function)
        if concurrency is not None and concurrency < 1:
            raise ConfigError(f"concurrency takes a number of at least 1, not {concurrency!r}")
        self._functions[function_name] = Registered(function, timeout, server_timeout)
        self._groups.offer(function_name, math.ceil(server_timeout * 1000), concurrency)
        self._flush()

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
        self._groups.withdraw(_encoded(name))
        self._flush()

    def startService(self) -> None:
        """Connects to all servers."""
        self._runs.start()
        super().startService()  # type: ignore[no-untyped-call]

    def stopService(self) -> Deferred[Any]:
        """Takes no more jobs, waits for those that run, at most for the drain timeout, and disconnects.

        Jobs that wait for another try go back to their servers.

        Returns:
            A Deferred that fires when all connections are closed and all processes ended. Jobs that run still
            are given to other workers then, and their results here are dropped.
        """
        if self._drained is not None:
            # Asked twice: whoever asks does not want to wait.
            return self._disconnect(None)
        drained = self._drained = Deferred()
        drained.addTimeout(self._drain_timeout, self.reactor, self._drain_timed_out)
        drained.addCallback(self._disconnect)
        self._log.info("Takes no more jobs; {count} are at work", count=len(self._runs.running))
        for pause in self._pauses.values():
            pause.cancel()
        self._pauses.clear()
        self._groups.end_pauses()
        for connection in self._connections():
            connection.drain()
        self._runs.stop_waiting()
        self._flush()
        return drained

    def take(self, protocol: GearmanWorkerProtocol, outcomes: list[Outcome]) -> None:
        """Called by a connection: does what its session learned, and answers in one write."""
        self._is_gathering = True
        try:
            for outcome in outcomes:
                if isinstance(outcome, Assigned):
                    function = self._functions.get(outcome.function)
                    self._runs.run(outcome, function, protocol.session, protocol.server)
                elif isinstance(outcome, Refused):
                    self._take_refusal(protocol, outcome)
                else:
                    protocol.give_up(str(outcome.reason))
        finally:
            self._is_gathering = False
        self._flush()

    def connection_lost(self, protocol: GearmanWorkerProtocol) -> None:
        """Called by a connection: the functions that run for it go on, but cannot be heard any more."""
        self._runs.detach(protocol.session)
        # Its slot may be of use to another session.
        self._flush()

    def _connections(self) -> Iterator[WorkerConnection]:
        """All of them, also those that are about to go."""
        for group in self._groups:
            yield from group.connections
        yield from self._retired

    def _connect(self, group: FunctionGroup[WorkerConnection]) -> list[WorkerConnection]:
        return [self._serve(server, group) for server in self._servers]

    def _serve(self, server: Server, group: FunctionGroup[WorkerConnection]) -> WorkerConnection:
        """A new connection, which connects while the worker runs."""
        connection = WorkerConnection(self, server, group)
        connection.service.setServiceParent(self)  # type: ignore[no-untyped-call]
        return connection

    def _retire(self, connection: WorkerConnection) -> None:
        self._retired.append(connection)
        connection.drain()

    def _pause(self, name: bytes) -> None:
        """A job was given back: for a moment its function is left to others, or jobs would go in circles."""
        if name in self._pauses or self._drained is not None:
            return
        self._groups.pause(name)
        self._pauses[name] = self.reactor.callLater(_PAUSE, self._resume, name)

    def _resume(self, name: bytes) -> None:
        del self._pauses[name]
        self._groups.resume(name)
        self._flush()

    def _take_refusal(self, protocol: GearmanWorkerProtocol, refused: Refused) -> None:
        if refused.code == ErrorCode.ARGUMENT_TOO_LARGE:
            # The job comes again, as the server closes the connection, and would for ever.
            largest = max(protocol.session.largest_bytes - 1, 1024)
            protocol.server.max_packet_bytes = min(protocol.server.max_packet_bytes, largest)
        self._log.emit(
            LogLevel.debug if refused.is_expected else LogLevel.warn,
            "{server} did not take what was sent of a job: {text} ({code})",
            server=protocol.server.name,
            text=refused.text.decode("utf-8", "replace"),
            code=refused.code.decode("utf-8", "replace"),
        )

    def _flush(self) -> None:
        """Sends what the sessions have to send, unless that is about to be done anyway."""
        if self._is_gathering:
            return
        for group in self._groups:
            for number, connection in enumerate(group.connections):
                if connection.session is not None and connection.session.is_held_up:
                    # A new connection takes jobs while those of the old one come to their end.
                    self._retire(connection)
                    group.connections[number] = self._serve(connection.server, group)
                connection.flush()
        for connection in list(self._retired):
            connection.flush()
            connection.stop_if_idle()
            if connection.is_finished:
                self._retired.remove(connection)
                connection.service.disownServiceParent()  # type: ignore[no-untyped-call]
        if self._drained is not None:
            self._go_on_draining()

    def _go_on_draining(self) -> None:
        for connection in self._connections():
            connection.stop_if_idle()
        is_idle = self._runs.is_idle and all(connection.is_idle for connection in self._connections())
        if is_idle and self._drained is not None and not self._drained.called:
            self._drained.callback(None)

    def _drain_timed_out(self, _result: object, timeout: float) -> None:
        self._log.warn(
            "Stops after {timeout} seconds with jobs that still run: {jobs}",
            timeout=timeout,
            jobs=self._runs.running,
        )

    def _disconnect(self, _result: None) -> Deferred[Any]:
        self._drained = None
        closed: Deferred[Any] = super().stopService()  # type: ignore[no-untyped-call]
        # A server that does not read would be waited for until it does.
        impatience = self.reactor.callLater(_CLOSE_PATIENCE, self._abort)

        def stop_executors(result: object) -> Deferred[Any]:
            # Not before, or jobs whose processes are killed would be told to have failed.
            if impatience.active():
                impatience.cancel()
            stopping = [executor.stop() for executor in self._executors]
            return gatherResults([stopped for stopped in stopping if stopped is not None])

        return closed.addBoth(stop_executors)

    def _abort(self) -> None:
        for connection in self._connections():
            connection.abort()


def _encoded(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
