"""Where a worker's functions run when not in the event loop: ``in_thread`` and ``in_process``.

Both make something that is registered like a function, with Twisted and with asyncio. What is done with
processes is for ``worker/processes.py``.
"""

from __future__ import annotations

import abc
from collections.abc import Awaitable
from typing import Any

from gearman_twisted.runtime.interfaces import Promise, Runtime
from gearman_twisted.worker.executor_child import find_target
from gearman_twisted.worker.job import Job, ThreadReports
from gearman_twisted.worker.processes import (
    OnDeath,
    PlainFunction,
    Pool,
    QueuedJob,
    Settings,
    refuse_coroutines,
)


class Executor(abc.ABC):
    """Runs a function somewhere else; called like a function, in the event loop.

    Attributes:
        concurrency: how many jobs it can run at a time, or None.
        can_be_stopped: whether cancelling what a call returns ends what runs.
    """

    concurrency: int | None = None
    can_be_stopped = True

    @abc.abstractmethod
    def __call__(self, job: Job) -> Awaitable[bytes | None]:
        """Run a job.

        Returns:
            A Deferred or Future that fires with its result, or fails with what the function raised.
        """

    def bind(self, runtime: Runtime) -> None:  # noqa: B027 - many have nothing to do
        """Take the event loop to run with; called when it is registered."""

    async def stop(self) -> None:  # noqa: B027 - the same
        """End all that was started, and wait for that. It may be called again after that."""


def in_thread(function: PlainFunction) -> Executor:
    """Make a worker function of a blocking one: each job runs in a thread.

    Data, warnings and progress may be sent from the thread. A thread cannot be stopped: at a timeout the job
    fails, but the slot is taken until the function returns. Threads that still run when the worker has
    stopped do not keep the process from ending.

    Args:
        function: takes a ``Job``, returns bytes or None. With a concurrency of more than one it runs in
            several threads at a time.

    Raises:
        ConfigError: it is no function, or a coroutine function.
    """
    refuse_coroutines(function, "in_thread")
    return _ThreadExecutor(function)


def in_process(
    function: PlainFunction | str,
    *,
    processes: int | None = None,
    on_death: OnDeath = "fail",
    max_jobs: int | None = None,
) -> Executor:
    """Wrap a function so that a worker runs it in separate processes.

    The processes are new interpreters, started when jobs come, and used for one job after the other. They
    import the function by its name. One that dies is replaced.

    Args:
        function: takes a ``Job``, returns bytes or None; a function at the top of a module, or its name as
            ``package.module:function``.
        processes: how many there may be; as many as processors if None. The worker takes no more jobs at a
            time for the function.
        on_death: what happens to a job whose process dies: ``fail``, with the text ``ProcessDied: …``, or
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

    def bind(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def __call__(self, job: Job) -> Awaitable[bytes | None]:
        runtime = self._runtime
        has_given_up: list[bool] = []
        done: Promise[Any] = runtime.promise(lambda: has_given_up.append(True))
        seen = job.with_reports(ThreadReports(job, runtime.from_thread))

        def settle(result: object, error: BaseException | None) -> None:
            if has_given_up:
                return
            if error is None:
                done.succeed(result)
            else:
                done.fail(error)

        def run() -> None:
            result: object = None
            error: BaseException | None = None
            try:
                result = self._function(seen)
            except StopIteration as stop:
                # A Future does not take it.
                error = RuntimeError(f"StopIteration: {stop}")
            except BaseException as raised:  # noqa: BLE001 - whatever a function raises ends its job only
                error = raised
            # Behind all that the function has sent.
            runtime.from_thread(settle, result, error)

        runtime.in_thread(run)
        return done


class _ProcessExecutor(Executor):
    def __init__(self, settings: Settings) -> None:
        self.concurrency = settings.processes
        self._settings = settings
        self._substitute: _ThreadExecutor | None = None

    def bind(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._pool = Pool(runtime, self._settings)
        if not runtime.can_spawn:
            self._substitute = _ThreadExecutor(find_target(self._settings.target))
            self._substitute.bind(runtime)

    def __call__(self, job: Job) -> Awaitable[bytes | None]:
        if self._substitute is not None:
            return self._substitute(job)
        done: Promise[Any] = self._runtime.promise(lambda: self._pool.cancel(task))
        task = QueuedJob(job, done.succeed, done.fail)
        self._pool.run(task)
        return done

    async def stop(self) -> None:
        for running in self._pool.stop():
            gone: Promise[None] = self._runtime.promise()
            running.whenever_gone(lambda gone=gone: gone.succeed(None))  # type: ignore[misc]
            await gone
