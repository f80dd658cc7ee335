"""The jobs of a worker: functions that run, how they end, and jobs that wait for another try or a slot."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

import attrs

from gearman_twisted.errors import JobFailed, JobTimeout, ProcessDied, ResultTooLarge, RetryLater
from gearman_twisted.runtime.interfaces import Promise, Runtime, Timer
from gearman_twisted.worker.connection import ServerFacts
from gearman_twisted.worker.executors import Executor
from gearman_twisted.worker.job import Job, SessionReports, data_limit, describe, exception_data
from gearman_twisted.worker.processes import RaisedInProcess
from gearman_twisted.worker.session import Assigned, WorkerSession
from gearman_twisted.worker.slots import Limit, Slots

Result = bytes | None
WorkerFunction = Callable[[Job], Result | Awaitable[Result] | Awaitable[bytes] | Awaitable[None]]

# Seconds that cancelled functions may take to clean up when the worker stops.
_CANCEL_PATIENCE = 3.0


class Registered(NamedTuple):
    """A function, and the limits of its jobs.

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
        assigned_at: when the server gave the job; 0 where the server has no limit.
        cancel: ends the function, if it waits for something.
        timer: of its timeout.
        error: why it was ended.
        is_told: whether the server was told of its end, though the function goes on.
    """

    job: Job
    reports: SessionReports
    session: WorkerSession
    server: ServerFacts
    registered: Registered | None
    assigned_at: float
    cancel: Callable[[], object] | None = None
    timer: Timer | None = None
    error: JobTimeout | None = None
    is_told: bool = False

    @property
    def can_be_stopped(self) -> bool:
        """Whether cancelling ends what runs: a thread goes on."""
        function = None if self.registered is None else self.registered.function
        return not isinstance(function, Executor) or function.can_be_stopped


@attrs.define(eq=False)
class _Waiting:
    """A job that waits: for another try, or for a slot because the server assigned it late.

    Attributes:
        run: its last one, or the one to be.
        attempt: the number of the next one.
        limit: of its session.
        slot_is_here: called when it has a slot.
        is_parked: whether others use its slot.
        has_slot: whether it has one again.
        timer: of the next try.
        has_job: yes, for the slots.
    """

    run: _Run
    attempt: int
    limit: Limit | None
    slot_is_here: Callable[[_Waiting], object]
    is_parked: bool
    has_slot: bool = False
    timer: Timer | None = None
    has_job: bool = True

    def slot_reserved(self) -> None:
        """Take the slot that was reserved for it."""
        self.has_slot = True
        self.slot_is_here(self)


class Runs:
    """The jobs that a worker has.

    Args:
        runtime: the event loop.
        slots: of the worker.
        max_waiting: how many jobs may wait for another try without a slot.
        flush: sends what the sessions have to send.
        pause: called with the name of a function when one of its jobs was given back.
    """

    def __init__(
        self,
        runtime: Runtime,
        slots: Slots,
        max_waiting: int,
        flush: Callable[[], None],
        pause: Callable[[bytes], None],
    ) -> None:
        self._runtime = runtime
        self._log = runtime.log("worker")
        self._slots = slots
        self._max_waiting = max_waiting
        self._flush = flush
        self._pause = pause
        self._running: dict[Job, _Run] = {}
        self._waiting: dict[_Waiting, None] = {}
        self._is_stopping = False
        # While functions are cancelled: settled when all of them have ended.
        self._all_ended: Promise[None] | None = None

    @property
    def running(self) -> list[Job]:
        """Those whose functions run, oldest first."""
        return list(self._running)

    @property
    def is_idle(self) -> bool:
        """Whether no function runs."""
        return not self._running

    def run(
        self,
        assigned: Assigned,
        registered: Registered | None,
        session: WorkerSession,
        server: ServerFacts,
    ) -> None:
        """Call the function for a job that was just assigned."""
        self._run(self._new_run(assigned, registered, session, server))

    def run_late(
        self,
        assigned: Assigned,
        registered: Registered | None,
        session: WorkerSession,
        server: ServerFacts,
    ) -> None:
        """Call the function for a job as soon as there is a slot for it."""
        run = self._new_run(assigned, registered, session, server)
        waiting = _Waiting(run, 1, session.limit, self._slot_is_here, is_parked=True)
        self._waiting[waiting] = None
        self._run_due(waiting)

    def detach(self, session: WorkerSession) -> None:
        """Let the functions of a lost connection go on unheard, and drop its jobs that wait."""
        for run in self._running.values():
            if run.session is session:
                run.reports.is_open = False
        for waiting in list(self._waiting):
            if waiting.run.session is session:
                self._drop(waiting)

    def start(self) -> None:
        """Let jobs wait."""
        self._is_stopping = False

    def stop_waiting(self) -> None:
        """Let no more jobs wait: servers take them back with their connections."""
        self._is_stopping = True
        for waiting in list(self._waiting):
            self._drop(waiting)

    async def cancel(self) -> None:
        """End the functions that still run, as far as they can be; their servers have their jobs again."""
        cancelled = [run for run in self._running.values() if run.can_be_stopped]
        for run in cancelled:
            run.reports.is_open = False
            run.is_told = True
            if run.cancel is not None:
                run.cancel()
        if any(run.job in self._running for run in cancelled):
            all_ended = self._all_ended = self._runtime.promise()
            timer = self._runtime.later(_CANCEL_PATIENCE, self._settle)
            await all_ended
            timer.cancel()

    def _settle(self) -> None:
        all_ended, self._all_ended = self._all_ended, None
        if all_ended is not None:
            all_ended.succeed(None)

    def _new_run(
        self,
        assigned: Assigned,
        registered: Registered | None,
        session: WorkerSession,
        server: ServerFacts,
        *,
        attempt: int = 1,
        assigned_at: float | None = None,
    ) -> _Run:
        reports = SessionReports(session, assigned.handle, self._flush)
        limit = data_limit(server.max_packet_bytes)
        job = Job(assigned, reports, attempt=attempt, max_data_bytes=limit)
        if assigned_at is None:
            has_limit = registered is not None and registered.server_timeout
            assigned_at = self._runtime.now() if has_limit else 0.0
        return _Run(job, reports, session, server, registered, assigned_at)

    def _run(self, run: _Run) -> None:
        job, registered = run.job, run.registered
        self._running[job] = run
        try:
            if registered is None:
                raise JobFailed("not a function of this worker", function=job.function, handle=job.handle)
            result = registered.function(job)
        except BaseException as error:  # noqa: BLE001 - whatever a function raises ends its job, and nothing else
            self._ended(run, None, error)
            return
        if type(result) is not bytes:
            # A Deferred that was fired before calls back at once.
            cancel = self._runtime.watch(result, partial(self._ended, run))
            if cancel is not None:
                if job in self._running:
                    run.cancel = cancel
                    if registered.timeout is not None:
                        run.timer = self._runtime.later(registered.timeout, partial(self._time_out, run))
                return
        self._ended(run, result, None)

    def _time_out(self, run: _Run) -> None:
        assert run.registered is not None
        assert run.cancel is not None
        run.timer = None
        run.error = JobTimeout(f"not finished within {run.registered.timeout:g} seconds")
        if run.can_be_stopped:
            run.cancel()
        if run.job in self._running:
            # A thread, or a coroutine that may take its time: the server does not wait for it.
            self._log.warning(
                "{job} failed: {reason}; its slot is free when it has ended", job=run.job, reason=run.error
            )
            self._fail(run.error, run, keeps_slot=True)
            run.is_told = True
            self._flush()

    def _ended(self, run: _Run, result: object, error: BaseException | None) -> None:
        """Tell the server how a job ended, where it can still be told."""
        job = run.job
        del self._running[job]
        if run.timer is not None:
            run.timer.cancel()
            run.timer = None
        if run.is_told:
            self._ended_late(run)
            return
        if not run.reports.is_open:
            self._log.warning("{job}: its connection was lost before its end, the result is dropped", job=job)
        if run.error is not None:
            error = run.error
        if error is None:
            try:
                data = job.check_result(result)
            except (TypeError, ResultTooLarge) as wrong:
                error = wrong
            else:
                run.reports.is_open = False
                run.session.complete(job.assigned, data)
        if error is not None:
            self._failed(error, run)
        self._flush()

    def _ended_late(self, run: _Run) -> None:
        """Free the slot of a job whose end was reported before, or is not needed any more."""
        if run.error is not None:
            self._log.info("{job} ended after its timeout", job=run.job)
            run.session.free_slot()
        else:
            run.session.fail(run.job.assigned)
        self._flush()
        if not self._running:
            self._settle()

    def _failed(self, error: BaseException, run: _Run) -> None:
        if isinstance(error, RetryLater):
            self._try_again(error, run)
            return
        if isinstance(error, self._runtime.cancelled):
            error = JobFailed("the function was cancelled", function=run.job.function, handle=run.job.handle)
        if isinstance(error, JobFailed):
            self._log.info("{job} failed: {reason}", job=run.job, reason=describe(error))
        elif isinstance(error, ProcessDied) or error is run.error:
            self._log.warning("{job} failed: {reason}", job=run.job, reason=describe(error))
        elif isinstance(error, RaisedInProcess):
            self._log.error(
                "{job} failed in its process\n{traceback}", job=run.job, traceback=error.traceback
            )
        else:
            self._log.failure("{job} failed", error, job=run.job)
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
        self._log.info("{job} is retried in {delay:g} seconds", job=job, delay=delay)
        is_parked = sum(waiting.is_parked for waiting in self._waiting) < self._max_waiting
        waiting = _Waiting(run, job.attempt + 1, session.limit, self._slot_is_here, is_parked)
        if is_parked:
            session.park(job.assigned)
        self._waiting[waiting] = None
        waiting.timer = self._runtime.later(delay, partial(self._is_due, waiting))

    def _may_wait(self, delay: float, run: _Run) -> bool:
        """Return whether its server leaves the job here for so long, and for another try."""
        if run.registered is None or not run.registered.server_timeout:
            return True
        ends = self._runtime.now() + delay + (run.registered.timeout or 0)
        return ends < run.assigned_at + run.registered.server_timeout

    def _is_due(self, waiting: _Waiting) -> None:
        self._run_due(waiting)
        self._flush()

    def _run_due(self, waiting: _Waiting) -> None:
        waiting.timer = None
        if waiting.is_parked and not waiting.has_slot:
            if not self._slots.reserve(waiting):
                return
            waiting.has_slot = True
        del self._waiting[waiting]
        run = waiting.run
        if waiting.is_parked:
            run.session.unpark(run.job.assigned)
        self._run(
            self._new_run(
                run.job.assigned,
                run.registered,
                run.session,
                run.server,
                attempt=waiting.attempt,
                assigned_at=run.assigned_at,
            )
        )

    def _slot_is_here(self, waiting: _Waiting) -> None:
        # Not at once: this is the middle of another job's end.
        waiting.timer = self._runtime.later(0, partial(self._is_due, waiting))

    def _drop(self, waiting: _Waiting) -> None:
        """Leave a job to its server."""
        del self._waiting[waiting]
        if waiting.timer is not None:
            waiting.timer.cancel()
        if not waiting.is_parked:
            waiting.run.session.park(waiting.run.job.assigned)
        elif waiting.has_slot:
            self._slots.release(waiting)
        else:
            self._slots.leave(waiting)
