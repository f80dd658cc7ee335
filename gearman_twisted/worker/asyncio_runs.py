"""The jobs of a worker in asyncio: functions that run, what comes of them, and another try."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from gearman_twisted.errors import JobFailed, JobTimeout, ProcessDied, RetryLater
from gearman_twisted.worker.asyncio_executors import Executor
from gearman_twisted.worker.job import Job, SessionReports, data_limit, describe, exception_data
from gearman_twisted.worker.processes import RaisedInProcess
from gearman_twisted.worker.session import Assigned, WorkerSession
from gearman_twisted.worker.slots import Slots

if TYPE_CHECKING:
    from gearman_twisted.worker.asyncio_serving import Serving
    from gearman_twisted.worker.on_asyncio import GearmanWorker

Result = bytes | None
WorkerFunction = Callable[[Job], Result | Awaitable[Result]]

_log = logging.getLogger("gearman_twisted.aio")


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


class _Wait:
    """The wait of a job for another try, in which its slot is of use to others.

    Args:
        slots: of the worker.
        session: of the job's connection.
        assigned: the job.
        is_aside: whether it gives its slot away.

    Attributes:
        limit: what bounds its session.
        has_job: yes, for the slots.
    """

    has_job = True

    def __init__(self, slots: Slots, session: WorkerSession, assigned: Assigned, *, is_aside: bool) -> None:
        self.limit = session.limit
        self._slots = slots
        self._session = session
        self._assigned = assigned
        self._is_aside = is_aside
        self._has_slot = asyncio.Event()
        if is_aside:
            session.set_aside(assigned)

    def slot_reserved(self) -> None:
        """Called by the slots."""
        self._has_slot.set()

    async def wait(self, delay: float) -> None:
        """Returns when the time has passed and the job has a slot; if it is cancelled, it has none."""
        try:
            await asyncio.sleep(delay)
            if self._is_aside:
                if self._slots.reserve(self):
                    self._has_slot.set()
                await self._has_slot.wait()
        except asyncio.CancelledError:
            if not self._is_aside:
                self._session.set_aside(self._assigned)
            elif self._has_slot.is_set():
                self._slots.release(self)
            else:
                self._slots.leave(self)
            raise
        if self._is_aside:
            self._session.take_up(self._assigned)


class Run:
    """A job that a worker has, from when it was assigned to its end.

    Args:
        worker: the worker.
        serving: the server that it is from.
        session: of the connection that it came by.
        assigned: what the server gave.
        registered: the function, None if there is none of that name.

    Attributes:
        job: the job, as the function sees it now.
        reports: what goes to its connection.
        session: the same.
        is_waiting: whether it waits for another try.
        is_aside: whether it has no slot meanwhile.
        is_lost: whether that connection is gone.
    """

    def __init__(
        self,
        worker: GearmanWorker,
        serving: Serving,
        session: WorkerSession,
        assigned: Assigned,
        registered: Registered | None,
    ) -> None:
        self.session = session
        self.is_waiting = False
        self.is_aside = False
        self.is_lost = False
        # Whether the server was told of its end, though the function goes on.
        self._is_told = False
        self._worker = worker
        self._serving = serving
        self._assigned = assigned
        self._registered = registered
        self._assigned_at = asyncio.get_running_loop().time()
        self._begin(1)

    def _begin(self, attempt: int) -> None:
        self.reports = SessionReports(self.session, self._assigned.handle, self._worker.flush)
        self.job = Job(
            self._assigned,
            self.reports,
            attempt=attempt,
            max_data_bytes=data_limit(self._serving.server.max_packet_bytes),
        )

    async def run(self) -> None:
        """Calls the function, as often as it wants to be called, and tells the server how the job ended."""
        while True:
            try:
                result = await self._call()
                if self._is_told:
                    return
                data = self.job.check_result(result)
            except RetryLater as error:
                if await self._waits(error.delay):
                    self._begin(self.job.attempt + 1)
                    continue
            except asyncio.CancelledError:
                # The worker stops, and its servers have taken the job back; or the function cancels itself.
                if not self._is_told:
                    self._fail(JobFailed("the function was cancelled"))
                if self._worker.is_stopping:
                    raise
            except Exception as error:  # noqa: BLE001 - whatever a function raises ends its job, and nothing else
                self._fail(error)
            else:
                if not self.reports.is_open:
                    self._log_unheard()
                self.reports.is_open = False
                self.session.complete(self._assigned, data)
            return

    async def _call(self) -> Any:
        if self._registered is None:
            raise JobFailed(
                "not a function of this worker", function=self.job.function, handle=self.job.handle
            )
        function, timeout, _ = self._registered
        result = function(self.job)
        if not inspect.isawaitable(result):
            return result
        running: asyncio.Future[Any] = asyncio.ensure_future(result)
        can_be_stopped = not isinstance(function, Executor) or function.can_be_stopped
        try:
            done, _ = await asyncio.wait([running], timeout=timeout)
            if not done:
                assert timeout is not None
                await self._time_out(running, timeout, can_be_stopped)
                return None
        except asyncio.CancelledError:
            # The worker stops. A thread goes on, and nobody hears of it.
            running.cancel()
            if can_be_stopped:
                await asyncio.wait([running])
            raise
        return running.result()

    async def _time_out(self, running: asyncio.Future[Any], timeout: float, can_be_stopped: bool) -> None:
        """Tells the server at once; the slot is free when the function has come to its end."""
        self._fail(JobTimeout(f"not finished within {timeout:g} seconds"), keeps_slot=True)
        self._is_told = True
        self._worker.flush()
        if can_be_stopped:
            running.cancel()
        try:
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()
                _log.info("%r has come to its end, after its timeout", self.job)
        finally:
            self.session.free_slot()

    async def _waits(self, delay: float | None) -> bool:
        """The function wants to be called again; returns whether it is."""
        job, registered, worker = self.job, self._registered, self._worker
        self.reports.is_open = False
        if not self._is_still_ours():
            return False
        may_wait = True
        if delay is not None and registered is not None and registered.server_timeout:
            ends = asyncio.get_running_loop().time() + delay + (registered.timeout or 0)
            may_wait = ends < self._assigned_at + registered.server_timeout
        if delay is None or worker.is_stopping or not may_wait:
            _log.info("%r goes back to %s", job, self._serving.server.place.name)
            worker.leave_to_others(job.function)
            self.session.give_back(self._assigned)
            return False
        _log.info("%r waits for %g seconds", job, delay)
        self.is_waiting = True
        self.is_aside = worker.may_set_aside()
        wait = _Wait(worker.slots, self.session, self._assigned, is_aside=self.is_aside)
        worker.flush()
        try:
            # Cancelled, the server takes it back, with the connection.
            await wait.wait(delay)
        finally:
            self.is_waiting = self.is_aside = False
        return True

    def _is_still_ours(self) -> bool:
        """Whether the server has not given the job to somebody else, as when the connection was lost."""
        if self.is_lost:
            self.session.fail(self._assigned)
        return not self.is_lost

    def _fail(self, error: BaseException, *, keeps_slot: bool = False) -> None:
        job = self.job
        if not self.reports.is_open:
            self._log_unheard()
        if isinstance(error, JobFailed):
            _log.info("%r failed: %s", job, describe(error))
        elif isinstance(error, JobTimeout | ProcessDied):
            _log.warning("%r failed: %s", job, describe(error))
        elif isinstance(error, RaisedInProcess):
            _log.error("%r failed in its process\n%s", job, error.traceback)
        else:
            _log.error("%r failed", job, exc_info=error)
        self.reports.is_open = False
        data = exception_data(error, job.max_data_bytes)
        if data is None:
            self.session.fail(self._assigned, keeps_slot=keeps_slot)
        else:
            self.session.raise_exception(self._assigned, data, keeps_slot=keeps_slot)

    def _log_unheard(self) -> None:
        _log.warning("The connection of %r was lost before its end: its result is dropped", self.job)
