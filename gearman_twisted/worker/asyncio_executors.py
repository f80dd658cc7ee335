"""Where a worker's functions run when not in the event loop: ``in_thread`` and ``in_process``.

Both make something that is registered like a function. What is done with processes is for
``worker/processes.py``; here is what starts them, and their pipes.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import functools
import logging
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

from gearman_twisted.worker.job import Job, ThreadReports
from gearman_twisted.worker.processes import (
    Child,
    PlainFunction,
    Pool,
    Settings,
    Task,
    command,
    refuse_coroutines,
)

_log = logging.getLogger("gearman_twisted.aio")


class Executor(abc.ABC):
    """Runs a function somewhere else; called like a function, in the event loop.

    Attributes:
        concurrency: how many jobs it can run at a time, or None.
        can_be_stopped: whether cancelling a call ends what runs.
    """

    concurrency: int | None = None
    can_be_stopped = True

    @abc.abstractmethod
    def __call__(self, job: Job) -> Awaitable[bytes | None]:
        """Runs a job; returns its result, or raises what the function raised."""

    async def stop(self) -> None:  # noqa: B027 - many have nothing to do
        """Ends all that was started, and waits for that. It may be called again after that."""


def in_thread(function: PlainFunction) -> Executor:
    """Makes a worker function of a blocking one: each job runs in a thread of the loop's default executor.

    What is sent of the job meanwhile may be sent from the thread. A thread cannot be stopped: at a timeout
    the job fails, but the slot is taken until the function returns; and ``asyncio.run`` waits for it at its
    end.

    Args:
        function: takes a ``Job``, returns bytes or None; must bear to run in several threads at a time where
            the worker's concurrency is more than one.

    Raises:
        ConfigError: it is no function, or a coroutine function.
    """
    refuse_coroutines(function, "in_thread")
    return _ThreadExecutor(function)


def in_process(
    function: PlainFunction | str,
    *,
    processes: int | None = None,
    on_death: str = "fail",
    max_jobs: int | None = None,
) -> Executor:
    """Makes a worker function of one that is to run in processes of its own.

    The processes are new interpreters, started when jobs come, and used for one job after the other. They
    import the function by its name. One that dies is replaced.

    Args:
        function: takes a ``Job``, returns bytes or None; a function at the top of a module, or its name as
            ``package.module:function``.
        processes: how many there may be; as many as processors if None. The worker takes no more jobs at a
            time for the function.
        on_death: what becomes of a job whose process dies: ``fail``, with the text ``ProcessDied: …``, or
            ``requeue``, which gives it back to its server, for another try.
        max_jobs: after how many jobs a process is replaced, for functions that leak memory; None for never.

    Raises:
        ConfigError: the function has no name that another process could import, or an argument makes no
            sense.
    """
    return _ProcessExecutor(Settings.of(function, processes, on_death, max_jobs))


class _ThreadExecutor(Executor):
    can_be_stopped = False

    def __init__(self, function: PlainFunction) -> None:
        self._function = function

    def __call__(self, job: Job) -> Awaitable[bytes | None]:
        loop = asyncio.get_running_loop()

        def call(function: Callable[..., object], *arguments: Any) -> None:
            # The loop may have been closed: the thread goes on.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(function, *arguments)

        return asyncio.to_thread(self._function, job.with_reports(ThreadReports(job, call)))


class _ProcessExecutor(Executor):
    def __init__(self, settings: Settings) -> None:
        self.concurrency = settings.processes
        self._target = settings.target
        self._pool = Pool(
            settings,
            start=lambda: _Child(self._pool, self._target),
            log_given_back=lambda job, why: _log.warning("The process of %r died: it %s", job, why),
            log_line=lambda text: _log.info("%s wrote: %s", self._target, text),
        )

    async def __call__(self, job: Job) -> bytes | None:
        done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        settle = functools.partial(_settle, done)
        task = Task(job, settle, settle)
        self._pool.run(task)
        try:
            return await done
        except asyncio.CancelledError:
            self._pool.cancel(task)
            raise

    async def stop(self) -> None:
        for running in self._pool.stop():
            gone = asyncio.Event()
            running.whenever_gone(gone.set)
            await gone.wait()


def _settle(done: asyncio.Future[bytes], result: bytes | BaseException) -> None:
    """Says how a job ended, unless nobody waits for that any more."""
    if done.done():
        return
    if isinstance(result, bytes):
        done.set_result(result)
    else:
        done.set_exception(result)


class _Child(Child):
    """One process."""

    def __init__(self, pool: Pool, target: str) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(pool, loop.call_later)
        self._loop = loop
        self._process: asyncio.SubprocessTransport | None = None
        self._jobs: asyncio.WriteTransport | None = None
        self._reports: asyncio.ReadTransport | None = None
        # What is to be sent and done when there are pipes and a process.
        self._unsent: list[bytes] = []
        self._is_killed = False
        self._starting = loop.create_task(self._start(target))

    def started(self, process: asyncio.SubprocessTransport) -> None:
        """Called by its output: there is a process."""
        self._process = process
        if self._is_killed:
            self._kill()

    async def _start(self, target: str) -> None:
        try:
            with contextlib.ExitStack() as opened:
                its_jobs, jobs = os.pipe()
                opened.callback(os.close, its_jobs)
                self._jobs, _ = await self._loop.connect_write_pipe(
                    lambda: _JobsPipe(self), os.fdopen(jobs, "wb", 0)
                )
                reports, its_reports = os.pipe()
                opened.callback(os.close, its_reports)
                self._reports, _ = await self._loop.connect_read_pipe(
                    lambda: _ReportsPipe(self), os.fdopen(reports, "rb", 0)
                )
                unsent, self._unsent = self._unsent, []
                self._send(unsent)
                await self._loop.subprocess_exec(
                    lambda: _Output(self),
                    *command(target, its_jobs, its_reports),
                    stdin=subprocess.DEVNULL,
                    pass_fds=(its_jobs, its_reports),
                )
        except Exception as error:  # noqa: BLE001 - whatever stands in the way, its job has to hear of it
            self.not_started(str(error))

    def _send(self, pieces: Iterable[bytes]) -> None:
        if self._jobs is None:
            self._unsent += pieces
            return
        for piece in pieces:
            # Not all at once, which would make one of them.
            self._jobs.write(piece)

    def _close_jobs(self) -> None:
        if self._jobs is not None:
            self._jobs.close()

    def _kill(self) -> None:
        self._is_killed = True
        if self._process is not None and not self.has_ended:
            # Not by the transport, which in older Pythons may take the exit status from whoever waits for it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.get_pid(), signal.SIGKILL)

    def _close(self) -> None:
        # What nobody reads any more is not waited for. A pipe that is closed bears no abort.
        if self._jobs is not None and self._jobs.get_write_buffer_size():
            self._jobs.abort()
        for transport in (self._jobs, self._reports, self._process):
            if transport is not None:
                transport.close()


class _JobsPipe(asyncio.BaseProtocol):
    def __init__(self, running: _Child) -> None:
        self._running = running

    def connection_lost(self, exc: Exception | None) -> None:
        """The pipe is closed."""
        self._running.jobs_lost()


class _ReportsPipe(asyncio.Protocol):
    def __init__(self, running: _Child) -> None:
        self._running = running

    def data_received(self, data: bytes) -> None:
        """Takes reports."""
        self._running.reports_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The pipe is closed."""
        self._running.reports_lost()


class _Output(asyncio.SubprocessProtocol):
    """The process, and its standard output and error."""

    _process: asyncio.SubprocessTransport

    def __init__(self, running: _Child) -> None:
        self._running = running

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The process has started."""
        self._process = cast("asyncio.SubprocessTransport", transport)
        self._running.started(self._process)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Takes output for the log."""
        self._running.output_received(fd, data)

    def process_exited(self) -> None:
        """The process has ended."""
        status = self._process.get_returncode()
        assert status is not None
        self._running.exited(status)
