"""The jobs of a worker in asyncio: functions that run, what comes of them, and another try."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from gearman_twisted.engine.worker import Assigned, WorkerSession
from gearman_twisted.errors import ConfigError, JobFailed, JobTimeout, RetryLater
from gearman_twisted.job import Job, SessionReports, data_limit, describe, exception_data

if TYPE_CHECKING:
    from gearman_twisted.aio.serving import Serving
    from gearman_twisted.aio.worker import GearmanWorker

Result = bytes | None
PlainFunction = Callable[[Job], Result]
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


def in_thread(function: PlainFunction) -> WorkerFunction:
    """Makes a worker function of a blocking one: each job runs in a thread of the loop's default executor.

    What is sent of the job meanwhile may be sent from the thread. A thread cannot be stopped: at a timeout
    the job fails, but the slot is taken until the function returns; and ``asyncio.run`` waits for it at its
    end.

    Raises:
        ConfigError: it is no function, or a coroutine function.
    """
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise ConfigError(f"in_thread takes an ordinary function, not {function!r}")
    return _InThread(function)


class _InThread:
    def __init__(self, function: PlainFunction) -> None:
        self._function = function

    def __call__(self, job: Job) -> Awaitable[Result]:
        seen = job.with_reports(_ThreadReports(asyncio.get_running_loop(), job))
        return asyncio.to_thread(self._function, seen)


class _ThreadReports:
    """Reports from a thread, handed to the event loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, job: Job) -> None:
        self._loop = loop
        self._job = job

    @property
    def is_open(self) -> bool:
        """Whether they can still be heard."""
        return self._job.is_connected

    def send_data(self, data: bytes) -> None:
        """A part of the result."""
        self._call(self._job.send_data, data)

    def send_warning(self, data: bytes) -> None:
        """A warning."""
        self._call(self._job.send_warning, data)

    def send_status(self, numerator: int, denominator: int) -> None:
        """How far the job is."""
        self._call(self._job.send_status, numerator, denominator)

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        # The loop may have been closed: the thread goes on.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)


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
            max_data_bytes=data_limit(self._serving.max_packet_bytes),
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
        can_be_stopped = not isinstance(function, _InThread)
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
            _log.info("%r goes back to %s", job, self._serving.place.name)
            worker.leave_to_others(job.function)
            self.session.give_back(self._assigned)
            return False
        _log.info("%r waits for %g seconds", job, delay)
        self.is_waiting = True
        try:
            await asyncio.sleep(delay)
        except asyncio.CancelledError:
            # The server takes it back, with the connection.
            self.session.set_aside(self._assigned)
            raise
        finally:
            self.is_waiting = False
        return self._is_still_ours()

    def _is_still_ours(self) -> bool:
        """Whether the server has not given the job to somebody else, as when the connection was lost."""
        if self.is_lost:
            self.session.fail(self._assigned)
        return not self.is_lost

    def _fail(self, error: BaseException, *, keeps_slot: bool = False) -> None:
        job = self.job
        if not self.reports.is_open:
            self._log_unheard()
        if isinstance(error, JobFailed | JobTimeout):
            _log.info("%r failed: %s", job, describe(error))
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
