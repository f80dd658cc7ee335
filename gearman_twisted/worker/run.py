"""The jobs of a worker: functions that run, what comes of them, and jobs that wait for another try."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from gearman_twisted.errors import (
    JobFailed,
    JobTimeout,
    ProcessDied,
    ResultTooLarge,
    RetryLater,
)
from gearman_twisted.worker.connection import Server
from gearman_twisted.worker.executors import Executor
from gearman_twisted.worker.job import Job, SessionReports, data_limit, describe, exception_data
from gearman_twisted.worker.processes import RaisedInProcess
from gearman_twisted.worker.session import Assigned, WorkerSession
from gearman_twisted.worker.slots import Limit, Slots

Result = bytes | None
# A Deferred of bytes is no Deferred of bytes or None.
_Later = Deferred[Result] | Deferred[bytes] | Deferred[None]
WorkerFunction = Callable[[Job], Result | _Later | Coroutine[Deferred[Any], Any, Result]]


class Registered(NamedTuple):
    """A function, and what holds for its jobs.

    Attributes:
        function: what to call.
        timeout: seconds that a job may take, or None.
        server_timeout: seconds after which its server gives a job to another worker, 0 for never.
    """

    function: WorkerFunction
    timeout: float | None
    server_timeout: float


@attrs.define(eq=False)
class _Run:
    """A job whose function runs.

    Attributes:
        job: the job.
        reports: what goes to its connection.
        session: of that connection.
        server: at its other end.
        registered: the function, None if there is none of that name.
        assigned_at: when the server gave the job.
        result: what the function's result is waited for with, if it is.
        timer: ends it, if it has a timeout.
        error: why it was ended.
        is_told: whether the server was told of its end, though the function goes on.
    """

    job: Job
    reports: SessionReports
    session: WorkerSession
    server: Server
    registered: Registered | None
    assigned_at: float
    result: Deferred[Any] | None = None
    timer: Any = None
    error: JobTimeout | None = None
    is_told: bool = False


@attrs.define(eq=False)
class _Retry:
    """A job that waits for another try.

    Attributes:
        run: its last one.
        limit: what bounds its session.
        has_job: yes, for the slots.
        is_aside: whether it has given its slot away.
        has_slot: whether it has one again.
        timer: when it is to be tried.
        is_due: called when it has a slot.
    """

    run: _Run
    limit: Limit | None
    is_due: Callable[[_Retry], None]
    is_aside: bool = False
    has_slot: bool = False
    timer: Any = None
    has_job: bool = True

    def slot_reserved(self) -> None:
        """Called by the slots."""
        self.has_slot = True
        self.is_due(self)


class Runs:
    """The jobs that a worker has.

    Args:
        slots: of the worker.
        reactor: tells the time and what passes.
        max_waiting: how many jobs may wait for another try without a slot.
        flush: sends what the sessions have to send.
        pause: called with the name of a function of which a job was given back.
    """

    _log = Logger()

    def __init__(
        self,
        slots: Slots,
        reactor: Any,
        max_waiting: int,
        flush: Callable[[], None],
        pause: Callable[[bytes], None],
    ) -> None:
        self._slots = slots
        self._reactor = reactor
        self._max_waiting = max_waiting
        self._flush = flush
        self._pause = pause
        self._running: dict[Job, _Run] = {}
        self._waiting: dict[_Retry, None] = {}
        self._is_stopping = False

    @property
    def running(self) -> list[Job]:
        """Those whose functions run, oldest first."""
        return list(self._running)

    @property
    def is_idle(self) -> bool:
        """Whether no function runs."""
        return not self._running

    def run(
        self, assigned: Assigned, registered: Registered | None, session: WorkerSession, server: Server
    ) -> None:
        """Calls the function for a job that was just assigned."""
        job, reports = self._job(assigned, session, server, 1)
        self._run(_Run(job, reports, session, server, registered, self._reactor.seconds()))

    def detach(self, session: WorkerSession) -> None:
        """A connection is lost: its functions go on unheard, and its jobs wait no longer."""
        for run in self._running.values():
            if run.session is session:
                run.reports.is_open = False
        for retry in list(self._waiting):
            if retry.run.session is session:
                self._drop(retry)

    def start(self) -> None:
        """The worker has started: jobs may wait."""
        self._is_stopping = False

    def stop_waiting(self) -> None:
        """The worker stops: servers take back the jobs that wait, with their connections."""
        self._is_stopping = True
        for retry in list(self._waiting):
            self._drop(retry)

    def _job(
        self, assigned: Assigned, session: WorkerSession, server: Server, attempt: int
    ) -> tuple[Job, SessionReports]:
        reports = SessionReports(session, assigned.handle, self._flush)
        limit = data_limit(server.max_packet_bytes)
        return Job(assigned, reports, attempt=attempt, max_data_bytes=limit), reports

    def _run(self, run: _Run) -> None:
        job, registered = run.job, run.registered
        self._running[job] = run
        try:
            if registered is None:
                raise JobFailed("not a function of this worker", function=job.function, handle=job.handle)
            result: object = registered.function(job)
        except BaseException:  # noqa: BLE001 - whatever a function raises ends its job, and nothing else
            self._ended(Failure(), run)  # type: ignore[no-untyped-call]
            return
        if isinstance(result, Coroutine):
            result = Deferred.fromCoroutine(result)
        if not isinstance(result, Deferred):
            self._ended(result, run)
            return
        run.result = result
        result.addBoth(self._ended, run)
        if registered.timeout is not None and job in self._running:
            run.timer = self._reactor.callLater(registered.timeout, self._timed_out, run)

    def _timed_out(self, run: _Run) -> None:
        assert run.registered is not None
        assert run.result is not None
        run.timer = None
        run.error = JobTimeout(f"not finished within {run.registered.timeout:g} seconds")
        function = run.registered.function
        if not isinstance(function, Executor) or function.can_be_stopped:
            run.result.cancel()
        if run.job in self._running:
            self._log.warn("{job} goes on after its timeout, and keeps its slot to its end", job=run.job)
            run.is_told = True
            self._fail(run.error, run, keeps_slot=True)
            self._flush()

    def _ended(self, result: object, run: _Run) -> None:
        """Tells the server how a job ended, where it can still be told."""
        job = run.job
        del self._running[job]
        if run.timer is not None:
            run.timer.cancel()
            run.timer = None
        if run.is_told:
            self._log.info("{job} has come to its end, after its timeout", job=job)
            run.session.free_slot()
            self._flush()
            return
        if not run.reports.is_open:
            self._log.warn("The connection of {job} was lost before its end: its result is dropped", job=job)
        if run.error is not None:
            result = Failure(run.error)  # type: ignore[no-untyped-call]
        if not isinstance(result, Failure):
            try:
                data = job.check_result(result)
            except (TypeError, ResultTooLarge):
                result = Failure()  # type: ignore[no-untyped-call]
            else:
                run.reports.is_open = False
                run.session.complete(job.assigned, data)
        if isinstance(result, Failure):
            self._failed(result, run)
        self._flush()

    def _failed(self, failure: Failure, run: _Run) -> None:
        error = failure.value
        assert error is not None
        if isinstance(error, RetryLater):
            self._try_again(error, run)
            return
        if isinstance(error, JobFailed):
            self._log.info("{job} failed: {reason}", job=run.job, reason=describe(error))
        elif isinstance(error, ProcessDied) or (run.error is not None and error is run.error):
            self._log.warn("{job} failed: {reason}", job=run.job, reason=describe(error))
        elif isinstance(error, RaisedInProcess):
            self._log.error(
                "{job} failed in its process\n{traceback}", job=run.job, traceback=error.traceback
            )
        else:
            self._log.failure("{job} failed", failure, LogLevel.error, job=run.job)
        self._fail(error, run)

    def _fail(self, error: BaseException, run: _Run, *, keeps_slot: bool = False) -> None:
        run.reports.is_open = False
        data = exception_data(error, run.job.max_data_bytes)
        if data is None:
            run.session.fail(run.job.assigned, keeps_slot=keeps_slot)
        else:
            run.session.raise_exception(run.job.assigned, data, keeps_slot=keeps_slot)

    def _try_again(self, error: RetryLater, run: _Run) -> None:
        job, session = run.job, run.session
        can_be_heard = run.reports.is_open
        run.reports.is_open = False
        if not can_be_heard:
            # The server has given it to somebody else already.
            session.fail(job.assigned)
            return
        delay = error.delay
        if delay is None or self._is_stopping or not self._may_wait(delay, run):
            self._log.info("{job} goes back to {server}", job=job, server=run.server.name)
            self._pause(job.function)
            session.give_back(job.assigned)
            return
        self._log.info("{job} waits for {delay} seconds", job=job, delay=delay)
        retry = _Retry(run, session.limit, self._has_slot)
        if sum(waiting.is_aside for waiting in self._waiting) < self._max_waiting:
            retry.is_aside = True
            session.set_aside(job.assigned)
        self._waiting[retry] = None
        retry.timer = self._reactor.callLater(delay, self._is_due, retry)

    def _may_wait(self, delay: float, run: _Run) -> bool:
        """Whether its server will leave the job here for so long, and for another try."""
        if run.registered is None or not run.registered.server_timeout:
            return True
        ends = self._reactor.seconds() + delay + (run.registered.timeout or 0)
        return bool(ends < run.assigned_at + run.registered.server_timeout)

    def _is_due(self, retry: _Retry) -> None:
        retry.timer = None
        if retry.is_aside and not retry.has_slot:
            if not self._slots.reserve(retry):
                return
            retry.has_slot = True
        del self._waiting[retry]
        run = retry.run
        if retry.is_aside:
            run.session.take_up(run.job.assigned)
        job, reports = self._job(run.job.assigned, run.session, run.server, run.job.attempt + 1)
        self._run(_Run(job, reports, run.session, run.server, run.registered, run.assigned_at))
        self._flush()

    def _has_slot(self, retry: _Retry) -> None:
        # Not at once: this is the middle of something else's end.
        retry.timer = self._reactor.callLater(0, self._is_due, retry)

    def _drop(self, retry: _Retry) -> None:
        """A job is not tried again here."""
        del self._waiting[retry]
        if retry.timer is not None:
            retry.timer.cancel()
        if not retry.is_aside:
            retry.run.session.set_aside(retry.run.job.assigned)
        elif retry.has_slot:
            self._slots.release(retry)
        else:
            self._slots.leave(retry)
