"""The worker: runs functions for the jobs of one or more servers.

When to ask for a job and what packets mean is for ``engine/worker.py``, the connections are for
``worker_protocol.py``; here are the functions, and the jobs that they run for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from twisted.application.internet import backoffPolicy
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from twisted.python.reflect import safe_str

from gearman_twisted.address import client_endpoint
from gearman_twisted.engine.requests import check_client_id, check_function
from gearman_twisted.engine.worker import Assigned, Outcome, Refused, Slots, WorkerSession
from gearman_twisted.errors import ConfigError, JobException, JobFailed, LocalProtocolError
from gearman_twisted.job import Job
from gearman_twisted.worker_protocol import GearmanWorkerFactory, GearmanWorkerProtocol, WorkerConnection

__all__ = ["GearmanWorker", "GearmanWorkerFactory", "GearmanWorkerProtocol", "Job", "WorkerFunction"]

Result = bytes | None
WorkerFunction = Callable[[Job], Result | Deferred[Result] | Coroutine[Deferred[Any], Any, Result]]
_F = TypeVar("_F", bound=WorkerFunction)


class GearmanWorker(MultiService):
    """A worker, as a service: connects to its servers while it runs, again and again where it must.

    A function takes a ``Job`` and returns the result: bytes, or None for an empty one, or a Deferred or a
    coroutine of either. If it raises, the client hears of it as an exception with the text
    ``TypeOfError: message``, and the log has the traceback; the same for a result that is something else.
    Two errors say more: ``JobFailed`` fails the job without an exception and without a traceback, and
    ``JobException`` fails it with the very data that it holds.

    When a connection is lost, the functions that run for it go on to their end, as they cannot be
    stopped safely. The server gives their jobs to another worker, or to this one again; their result is
    dropped. Functions should bear to be run twice.

    Args:
        servers: the servers, each as ``GearmanClient`` takes it.
        concurrency: how many jobs may run at a time, on all servers together. More than one is of use to
            functions that wait, as they all run in the reactor's thread.
        reactor: the reactor to connect with; the global one if None.
        client_id: the name that the servers' command ``workers`` shows for this worker.
        drain_timeout: how many seconds ``stopService`` waits for running jobs.
        retry_policy: seconds to wait before connection attempt number n, as ``ClientService`` takes it.

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
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if reactor is None:
            from twisted.internet import reactor
        if concurrency < 1:
            raise ConfigError(f"concurrency takes a number of at least 1, not {concurrency!r}")
        if not drain_timeout >= 0:
            raise ConfigError(f"drain_timeout takes seconds, 0 or more, not {drain_timeout!r}")
        self.client_id = None if client_id is None else check_client_id(_encoded(client_id))
        self.slots = Slots(concurrency)
        # What is offered, with the limit in milliseconds; what to call, also for jobs that were on their
        # way when their function was unregistered.
        self.offered: dict[bytes, int] = {}
        self._functions: dict[bytes, WorkerFunction] = {}
        self._reactor = reactor
        self._drain_timeout = drain_timeout
        self._running: dict[Job, WorkerSession] = {}
        self._connections: list[WorkerConnection] = []
        self._is_gathering = False
        self._drained: Deferred[None] | None = None
        if isinstance(servers, str) or IStreamClientEndpoint.providedBy(servers):
            servers = [servers]
        for server in servers:
            endpoint = client_endpoint(reactor, server)
            name = server if isinstance(server, str) else repr(server)
            policy = retry_policy or backoffPolicy(initialDelay=0.2, maxDelay=15.0)
            connection = WorkerConnection(self, name, endpoint, reactor, policy)
            connection.service.setServiceParent(self)  # type: ignore[no-untyped-call]
            self._connections.append(connection)
        if not self._connections:
            raise ConfigError("a worker needs at least one server")

    def register(self, name: str | bytes, function: WorkerFunction, *, timeout: float | None = None) -> None:
        """Offers a function, at once where the worker is connected; replaces one of the same name.

        Args:
            name: the function's name; 1 to 8191 bytes without NUL, text as UTF-8.
            function: what to call with each ``Job``.
            timeout: how many seconds the server waits for a job to end before it gives it to another
                worker. gearmand makes at least one second of it. The function is not stopped then.

        Raises:
            LocalProtocolError: the name cannot be sent.
            ConfigError: the timeout makes no sense.
        """
        function_name = check_function(_encoded(name))
        if timeout is not None and not 0 < timeout <= 4_000_000:
            raise ConfigError(f"timeout takes seconds, up to 4000000, not {timeout!r}")
        timeout_ms = 0 if timeout is None else math.ceil(timeout * 1000)
        self._functions[function_name] = function
        self.offered[function_name] = timeout_ms
        for connection in self._connections:
            if connection.session is not None:
                connection.session.offer(function_name, timeout_ms)
        self._flush()

    def function(self, name: str | bytes, *, timeout: float | None = None) -> Callable[[_F], _F]:
        """The same as ``register``, as a decorator."""

        def decorate(function: _F) -> _F:
            self.register(name, function, timeout=timeout)
            return function

        return decorate

    def unregister(self, name: str | bytes) -> None:
        """Offers a function no longer; one that is not registered is ignored.

        Jobs of the function that run, or are on their way, are done to their end; a connection takes no
        new jobs until its own have ended.
        """
        function_name = _encoded(name)
        self.offered.pop(function_name, None)
        for connection in self._connections:
            if connection.session is not None:
                connection.session.withdraw(function_name)
        self._flush()

    def startService(self) -> None:
        """Connects to all servers."""
        super().startService()  # type: ignore[no-untyped-call]

    def stopService(self) -> Deferred[Any]:
        """Takes no more jobs, waits for those that run, at most for the drain timeout, and disconnects.

        Returns:
            A Deferred that fires when all connections are closed. Jobs that run still are given to other
            workers then, and their results here are dropped.
        """
        if self._drained is not None:
            # Asked twice: whoever asks does not want to wait.
            return self._disconnect(None)
        drained = self._drained = Deferred()
        drained.addTimeout(self._drain_timeout, self._reactor, self._drain_timed_out)
        drained.addCallback(self._disconnect)
        for connection in self._connections:
            connection.drain()
        self._flush()
        return drained

    def take(self, protocol: GearmanWorkerProtocol, outcomes: list[Outcome]) -> None:
        """Called by a connection: does what its session learned, and answers in one write."""
        self._is_gathering = True
        try:
            for outcome in outcomes:
                if isinstance(outcome, Assigned):
                    self._run(outcome, protocol.session)
                elif isinstance(outcome, Refused):
                    self._log_refusal(protocol, outcome)
                else:
                    protocol.give_up(outcome)
        finally:
            self._is_gathering = False
        self._flush()

    def connection_lost(self, protocol: GearmanWorkerProtocol) -> None:
        """Called by a connection: the functions that run for it go on, but cannot be heard any more."""
        for job, session in self._running.items():
            if session is protocol.session:
                job.detach()
        # Its slot may be of use to another session.
        self._flush()

    def _run(self, assigned: Assigned, session: WorkerSession) -> None:
        job = Job(assigned, session, self._flush)
        self._running[job] = session
        function = self._functions.get(assigned.function)
        try:
            if function is None:
                raise JobFailed("not a function of this worker", function=job.function, handle=job.handle)
            result: object = function(job)
        except BaseException:  # noqa: BLE001 - whatever a function raises ends its job, and nothing else
            self._ended(Failure(), job)  # type: ignore[no-untyped-call]
            return
        if result is None or isinstance(result, bytes):
            self._ended(result, job)
            return
        if isinstance(result, Coroutine):
            result = Deferred.fromCoroutine(result)
        if isinstance(result, Deferred):
            result.addBoth(self._ended, job)
        else:
            self._ended(result, job)

    def _ended(self, result: object, job: Job) -> None:
        """Tells the server how a job ended, where it can still be told."""
        session = self._running.pop(job)
        if not job.is_connected:
            self._log.warn("The connection of {job} was lost before its end: its result is dropped", job=job)
        job.detach()
        if not isinstance(result, Failure):
            try:
                session.complete(job.assigned, _checked(result))
            except (TypeError, LocalProtocolError):
                result = Failure()  # type: ignore[no-untyped-call]
        if isinstance(result, Failure):
            self._failed(result, job, session)
        self._flush()

    def _failed(self, failure: Failure, job: Job, session: WorkerSession) -> None:
        error = failure.value
        if isinstance(error, JobFailed):
            self._log.info("{job} failed: {reason}", job=job, reason=safe_str(error))
            session.fail(job.assigned)
            return
        self._log.failure("{job} failed", failure, LogLevel.error, job=job)
        if isinstance(error, JobException):
            data = error.data
        else:
            data = f"{type(error).__name__}: {safe_str(error)}".encode("utf-8", "backslashreplace")
        session.raise_exception(job.assigned, data)

    def _disconnect(self, _result: None) -> Deferred[Any]:
        self._drained = None
        stopped: Deferred[Any] = super().stopService()  # type: ignore[no-untyped-call]
        return stopped

    def _log_refusal(self, protocol: GearmanWorkerProtocol, refused: Refused) -> None:
        self._log.emit(
            LogLevel.debug if refused.is_expected else LogLevel.warn,
            "{server} did not take what was sent of a job: {text} ({code})",
            server=protocol.server_name,
            text=refused.text.decode("utf-8", "replace"),
            code=refused.code.decode("utf-8", "replace"),
        )

    def _flush(self) -> None:
        """Sends what the sessions have to send, unless that is about to be done anyway."""
        if self._is_gathering:
            return
        for connection in self._connections:
            connection.flush()
        if self._drained is not None:
            self._go_on_draining()

    def _go_on_draining(self) -> None:
        for connection in self._connections:
            connection.stop_if_idle()
        is_idle = not self._running and all(connection.is_idle for connection in self._connections)
        if is_idle and self._drained is not None and not self._drained.called:
            self._drained.callback(None)

    def _drain_timed_out(self, _result: object, timeout: float) -> None:
        self._log.warn(
            "Stops after {timeout} seconds with jobs that still run: {jobs}",
            timeout=timeout,
            jobs=list(self._running),
        )


def _checked(result: object) -> bytes:
    if result is None:
        return b""
    if not isinstance(result, bytes):
        raise TypeError(f"a worker function returns bytes or None, not {type(result).__name__}")
    return result


def _encoded(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
