"""The processes of ``in_process``, as their parent sees them: which one gets which job, and when one ends.

The child's side is ``worker/executor_child.py``.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections import deque
from collections.abc import Callable
from typing import Literal

import attrs

from gearman_twisted.errors import ConfigError, JobException, JobFailed, ProcessDied, RetryLater
from gearman_twisted.runtime.child import Child, how_it_ended
from gearman_twisted.runtime.interfaces import Runtime
from gearman_twisted.worker.executor_child import (
    DATA,
    FAILED,
    RESULT,
    RETRY,
    STATUS,
    WARNING,
    Frames,
    find_target,
    job_frame,
    raised_texts,
    retry_delay,
    status_numbers,
)
from gearman_twisted.worker.job import Job

PlainFunction = Callable[[Job], bytes | None]
OnDeath = Literal["fail", "requeue"]

# The child's ends of the pipes, where it can choose.
_JOBS_FD, _REPORTS_FD = 3, 4


class RaisedInProcess(JobException):
    """A function raised in its process.

    Attributes:
        traceback: where, as text.
    """

    def __init__(self, data: bytes, traceback: str) -> None:
        super().__init__(data)
        self.traceback = traceback


@attrs.frozen
class Settings:
    """The arguments of ``in_process``.

    Attributes:
        target: the function, as ``module:qualified.name``.
        processes: how many there may be.
        is_requeued: whether a job whose process dies is given back to its server.
        max_jobs: after how many jobs a process is replaced, or None.
    """

    target: str
    processes: int
    is_requeued: bool
    max_jobs: int | None

    @classmethod
    def of(
        cls, function: PlainFunction | str, processes: int | None, on_death: OnDeath, max_jobs: int | None
    ) -> Settings:
        """Check the arguments.

        Raises:
            ConfigError: the function has no name that another process could import, or an argument makes no
                sense.
        """
        if processes is None:
            processes = os.cpu_count() or 1
        if not isinstance(processes, int) or processes < 1:
            raise ConfigError(f"processes takes a whole number of at least 1, not {processes!r}")
        if max_jobs is not None and (not isinstance(max_jobs, int) or max_jobs < 1):
            raise ConfigError(f"max_jobs takes a whole number of at least 1 or None, not {max_jobs!r}")
        if on_death not in ("fail", "requeue"):
            raise ConfigError(f"on_death takes 'fail' or 'requeue', not {on_death!r}")
        return cls(_target_of(function), processes, on_death == "requeue", max_jobs)


@attrs.frozen(eq=False)
class QueuedJob:
    """A job for a process, and its callbacks.

    Attributes:
        job: the job.
        succeed: called with its result, or
        fail: called with why there is none.
    """

    job: Job
    succeed: Callable[[bytes], object]
    fail: Callable[[BaseException], object]


class Pool:
    """The processes of one function.

    Args:
        runtime: the event loop.
        settings: what ``in_process`` was told.
    """

    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        self._runtime = runtime
        self._log = runtime.log("worker")
        self._settings = settings
        # All that can be given jobs, and those of them that have none; the one that had one last is last.
        self._children: set[_Child] = set()
        self._idle: list[_Child] = []
        self._waiting: deque[QueuedJob] = deque()
        # Those that were told to end, and have not.
        self._ending: set[_Child] = set()

    def run(self, task: QueuedJob) -> None:
        """Run a job as soon as a process is free."""
        self._waiting.append(task)
        self._run_waiting()

    def cancel(self, task: QueuedJob) -> None:
        """Kill the process of a job whose result is not needed any more."""
        if task in self._waiting:
            self._waiting.remove(task)
        for running in list(self._children):
            if running.task is task:
                running.take_task()
                self.end(running, kills=True)

    def stop(self) -> list[_Child]:
        """End all processes, and fail their jobs; returns the processes to wait for."""
        tasks = [*self._waiting]
        self._waiting.clear()
        for running in list(self._children):
            self.end(running, kills=running.task is not None)
            task = running.take_task()
            if task is not None:
                tasks.append(task)
        ending = list(self._ending)
        for task in tasks:
            task.fail(ProcessDied("the worker has stopped"))
        return ending

    def freed(self, running: _Child) -> None:
        """Give a child whose job is done the next one; called by the child."""
        if running.jobs_done == self._settings.max_jobs:
            self.end(running, kills=False)
        elif running in self._children:
            self._idle.append(running)
        self._run_waiting()

    def end(self, running: _Child, *, kills: bool) -> None:
        """Give a child no more jobs, and end it."""
        if running in self._children:
            self._children.remove(running)
            self._ending.add(running)
            if running in self._idle:
                self._idle.remove(running)
            running.end(kills=kills)

    def gone(self, running: _Child, why: str) -> None:
        """Note that a process has ended; called by the child."""
        self.end(running, kills=True)
        self._ending.discard(running)
        task = running.take_task()
        if task is not None:
            if self._settings.is_requeued:
                self._log.warning(
                    "{job}: its process {why}, it goes back to its server", job=task.job, why=why
                )
                task.fail(RetryLater())
            else:
                task.fail(ProcessDied(f"the process that ran the job {why}"))
        self._run_waiting()

    def took_line(self, line: str) -> None:
        """Log a line that a process wrote to its output."""
        self._log.info("{target} wrote: {text}", target=self._settings.target, text=line)

    def _run_waiting(self) -> None:
        while self._waiting and (self._idle or len(self._children) < self._settings.processes):
            task = self._waiting.popleft()
            if self._idle:
                running = self._idle.pop()
            else:
                try:
                    running = _Child(self, self._runtime, self._settings.target)
                except OSError as error:
                    task.fail(
                        ProcessDied(f"the process that was to run the job could not be started: {error}")
                    )
                    continue
                self._children.add(running)
            running.run(task)


class _Child(Child):
    """One process of a pool.

    Args:
        pool: whose it is.
        runtime: the event loop.
        target: its function, as ``module:qualified.name``.

    Attributes:
        task: what it does now, or None.
        jobs_done: how many jobs came to an end in it.
    """

    def __init__(self, pool: Pool, runtime: Runtime, target: str) -> None:
        super().__init__(runtime, (1, 2, _REPORTS_FD), awaited={_REPORTS_FD})
        self.task: QueuedJob | None = None
        self.jobs_done = 0
        self._pool = pool
        self._frames = Frames()
        self.start(
            lambda numbers: command(target, numbers[_JOBS_FD], numbers[_REPORTS_FD]), writes=[_JOBS_FD]
        )

    def run(self, task: QueuedJob) -> None:
        """Give it a job. What the process does not take at once waits here."""
        self.task = task
        for piece in job_frame(task.job):
            self.write(_JOBS_FD, piece)

    def take_task(self) -> QueuedJob | None:
        """Return its job, which it has no longer."""
        task, self.task = self.task, None
        return task

    def end(self, *, kills: bool) -> None:
        """Tell the process to end when it has nothing to do, or at once."""
        self.close_pipe(_JOBS_FD)
        if kills:
            self.kill()
        else:
            self.kill_in()

    def output(self, descriptor: int, data: bytes) -> None:
        if descriptor != _REPORTS_FD:
            super().output(descriptor, data)
            return
        for kind, content in self._frames.feed(data):
            if self.task is not None:
                self._take(self.task, kind, content)

    def pipe_closed(self, descriptor: int) -> None:
        super().pipe_closed(descriptor)
        if descriptor in (_JOBS_FD, _REPORTS_FD):
            # The process is as good as gone.
            self._pool.end(self, kills=True)

    def exited(self, status: int) -> None:
        super().exited(status)
        self._pool.end(self, kills=False)

    def gone(self, status: int) -> None:
        self._pool.gone(self, how_it_ended(status))

    def took_line(self, descriptor: int, line: str) -> None:
        self._pool.took_line(line)

    def _take(self, task: QueuedJob, kind: int, content: bytes) -> None:
        if kind == DATA:
            task.job.send_data(content)
        elif kind == WARNING:
            task.job.send_warning(content)
        elif kind == STATUS:
            task.job.send_status(*status_numbers(content))
        else:
            self.task = None
            self.jobs_done += 1
            # First the next job, then the outcome of this one: that may well stop the worker.
            self._pool.freed(self)
            _tell(task, kind, content)


def _tell(task: QueuedJob, kind: int, content: bytes) -> None:
    if kind == RESULT:
        task.succeed(content)
    elif kind == FAILED:
        task.fail(JobFailed(content.decode("utf-8", "replace")))
    elif kind == RETRY:
        task.fail(RetryLater(retry_delay(content)))
    else:
        task.fail(RaisedInProcess(*raised_texts(content)))


def command(target: str, jobs_fd: int, reports_fd: int) -> list[str]:
    """Return the words that start a process.

    Args:
        target: its function, as ``module:qualified.name``.
        jobs_fd: the number that the pipe for jobs has in it.
        reports_fd: the number that the pipe for reports has in it.
    """
    code = (
        "import sys; target, jobs_fd, reports_fd = sys.argv[1:4]; sys.path[:] = sys.argv[4:]; "
        "del sys.argv[1:]; "
        "from gearman_twisted.worker.executor_child import main; main(target, int(jobs_fd), int(reports_fd))"
    )
    return [sys.executable, "-u", "-c", code, target, str(jobs_fd), str(reports_fd), *sys.path]


def refuse_coroutines(function: object, wrapper: str) -> None:
    """Check a function that is to run in a thread or a process.

    Raises:
        ConfigError: it is no function, or a coroutine function.
    """
    if not callable(function):
        raise ConfigError(f"{wrapper} takes a function, not {type(function).__name__}")
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"{wrapper} takes an ordinary function; an async one is registered as it is")


def _check_is_there(module: str, path: str) -> None:
    """Check the name of a function, as far as that can be done without importing its module.

    Raises:
        ConfigError: there is no such module, or it is imported and has no such function.
    """
    try:
        is_there = module in sys.modules or importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        is_there = False
    if not is_there:
        raise ConfigError(f"in_process cannot find the module {module!r}")
    if module in sys.modules:
        try:
            find_target(f"{module}:{path}")
        except AttributeError:
            raise ConfigError(f"in_process cannot find {path!r} in {module!r}") from None


def _target_of(function: PlainFunction | str) -> str:
    """Return the name by which another process finds the function."""
    if isinstance(function, str):
        module, colon, path = function.partition(":")
        if not (module and colon and path):
            raise ConfigError(f"in_process takes a function or 'package.module:function', not {function!r}")
        _check_is_there(module, path)
        return function
    refuse_coroutines(function, "in_process")
    target = f"{getattr(function, '__module__', None)}:{getattr(function, '__qualname__', None)}"
    try:
        is_found = not target.startswith("__main__:") and find_target(target) is function
    except (ImportError, AttributeError):
        is_found = False
    if not is_found:
        raise ConfigError(
            f"in_process needs a function that another process can import by its name, not {target}; "
            "put it at the top of a module of its own"
        )
    return target
