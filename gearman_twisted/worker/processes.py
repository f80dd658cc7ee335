"""The processes of ``in_process``, as their parent sees them: which one gets which job, and when one ends.

What starts them, and reads and writes their pipes, is Twisted's in ``worker/executors.py`` and asyncio's in
``worker/asyncio_executors.py``. The child's side is ``worker/executor_child.py``.
"""

from __future__ import annotations

import abc
import inspect
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import attrs

from gearman_twisted.errors import ConfigError, JobException, JobFailed, ProcessDied, RetryLater
from gearman_twisted.worker import executor_child as child
from gearman_twisted.worker.job import Job

PlainFunction = Callable[[Job], bytes | None]

# How long a child that was told to end may take to clean up after itself.
_END_PATIENCE = 3.0
# How long what an ended child has sent may take to be read.
_READ_PATIENCE = 3.0
# More without a line end is cut for the log.
_MAX_LINE_BYTES = 4096


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
    """What ``in_process`` was told.

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
        cls, function: PlainFunction | str, processes: int | None, on_death: str, max_jobs: int | None
    ) -> Settings:
        """Those that the arguments stand for.

        Raises:
            ConfigError: the function has no name that another process could import, or an argument makes no
                sense.
        """
        if processes is None:
            processes = os.cpu_count() or 1
        if processes < 1:
            raise ConfigError(f"processes takes a number of at least 1, not {processes!r}")
        if max_jobs is not None and max_jobs < 1:
            raise ConfigError(f"max_jobs takes a number of at least 1 or None, not {max_jobs!r}")
        if on_death not in ("fail", "requeue"):
            raise ConfigError(f"on_death takes 'fail' or 'requeue', not {on_death!r}")
        return cls(_target_of(function), processes, on_death == "requeue", max_jobs)


class Timer(Protocol):
    """A call that is to come."""

    def cancel(self) -> object:
        """It is not to come."""


# Seconds, and what to call then.
CallLater = Callable[[float, Callable[[], object]], Timer]


@attrs.frozen(eq=False)
class Task:
    """A job for a process, and who is told how it ended.

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
        settings: what it was told.
        start: starts a process.
        log_given_back: called with a job that is given back because its process died, and how that ended.
        log_line: called with each line that a process wrote to its output.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        start: Callable[[], Child],
        log_given_back: Callable[[Job, str], object],
        log_line: Callable[[str], object],
    ) -> None:
        self.log_line = log_line
        self._settings = settings
        self._start = start
        self._log_given_back = log_given_back
        # All that can be given jobs, and those of them that have none; the one that had one last is last.
        self._children: set[Child] = set()
        self._idle: list[Child] = []
        self._waiting: deque[Task] = deque()
        # Those that were told to end, and have not.
        self._ending: set[Child] = set()

    def run(self, task: Task) -> None:
        """Has a job run as soon as a process is free."""
        self._waiting.append(task)
        self._run_waiting()

    def cancel(self, task: Task) -> None:
        """Nobody waits for a job any more: its process is killed. Jobs that wait run when that has ended."""
        if task in self._waiting:
            self._waiting.remove(task)
        for running in list(self._children):
            if running.task is task:
                running.take_task()
                self.end(running, kills=True)

    def stop(self) -> list[Child]:
        """Ends all processes, and fails what they do; returns those that are to be waited for."""
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

    def freed(self, running: Child) -> None:
        """Called by a child: its job is done."""
        if running.jobs_done == self._settings.max_jobs:
            self.end(running, kills=False)
        elif running in self._children:
            self._idle.append(running)
        self._run_waiting()

    def end(self, running: Child, *, kills: bool) -> None:
        """A child gets no more jobs."""
        if running in self._children:
            self._children.remove(running)
            self._ending.add(running)
            if running in self._idle:
                self._idle.remove(running)
            running.end(kills=kills)

    def gone(self, running: Child, why: str) -> None:
        """Called by a child: its process has ended, wanted or not."""
        self.end(running, kills=True)
        self._ending.discard(running)
        task = running.take_task()
        if task is not None:
            if self._settings.is_requeued:
                self._log_given_back(task.job, why)
                task.fail(RetryLater())
            else:
                task.fail(ProcessDied(f"the process that ran the job {why}"))
        self._run_waiting()

    def _run_waiting(self) -> None:
        while self._waiting and (self._idle or len(self._children) < self._settings.processes):
            task = self._waiting.popleft()
            if self._idle:
                running = self._idle.pop()
            else:
                try:
                    running = self._start()
                except OSError as error:
                    task.fail(
                        ProcessDied(f"the process that was to run the job could not be started: {error}")
                    )
                    continue
                self._children.add(running)
            running.run(task)


class Child(abc.ABC):
    """One process.

    Args:
        pool: whose it is.
        call_later: what it waits with.

    Attributes:
        task: what it does now, or None.
        jobs_done: how many jobs came to an end in it.
    """

    def __init__(self, pool: Pool, call_later: CallLater) -> None:
        self.task: Task | None = None
        self.jobs_done = 0
        self._pool = pool
        self._call_later = call_later
        self._frames = child.Frames()
        self._output: dict[int, bytes] = {1: b"", 2: b""}
        self._timers: list[Timer] = []
        self._is_silent = False
        self._how_it_ended: str | None = None
        self._is_gone = False
        self._whenever_gone: list[Callable[[], object]] = []

    @property
    def has_ended(self) -> bool:
        """Whether the process has; what it has sent may be unread."""
        return self._how_it_ended is not None

    def run(self, task: Task) -> None:
        """Gives it a job. What the process does not take at once waits here."""
        self.task = task
        self._send(child.job_frame(task.job))

    def take_task(self) -> Task | None:
        """Its job, which it has no longer."""
        task, self.task = self.task, None
        return task

    def end(self, *, kills: bool) -> None:
        """Tells the process to end when it has nothing to do, or at once."""
        self._close_jobs()
        if kills:
            self._kill()
        elif not self.has_ended:
            self._after(_END_PATIENCE, self._kill)

    def whenever_gone(self, call: Callable[[], object]) -> None:
        """Has somebody told when the process has ended and all that it has sent was read."""
        if self._is_gone:
            call()
        else:
            self._whenever_gone.append(call)

    # What the pipes and the system tell.

    def reports_received(self, data: bytes) -> None:
        """The process has sent something."""
        for kind, content in self._frames.feed(data):
            if self.task is not None:
                self._take(self.task, kind, content)

    def output_received(self, descriptor: int, data: bytes) -> None:
        """The process has written something to its standard output or error."""
        *lines, rest = (self._output[descriptor] + data).split(b"\n")
        while len(rest) > _MAX_LINE_BYTES:
            lines.append(rest[:_MAX_LINE_BYTES])
            rest = rest[_MAX_LINE_BYTES:]
        self._output[descriptor] = rest
        for line in lines:
            self._pool.log_line(line.decode("utf-8", "replace"))

    def jobs_lost(self) -> None:
        """The process has closed its pipe: it is as good as gone."""
        self._pool.end(self, kills=True)

    def reports_lost(self) -> None:
        """The same of the other pipe."""
        self._read_enough()
        self._pool.end(self, kills=True)

    def exited(self, status: int) -> None:
        """The process has ended; what it has sent before may still be unread.

        Args:
            status: its exit status, or a signal's number below zero.
        """
        self._how_it_ended = (
            f"was ended by signal {-status}" if status < 0 else f"ended itself with status {status}"
        )
        self._pool.end(self, kills=False)
        # Unless what it has left behind has the pipe open too: then that is not waited for.
        self._after(_READ_PATIENCE, self._read_enough)
        self._check_gone()

    def not_started(self, why: str) -> None:
        """There is no process."""
        self._how_it_ended = f"could not be started: {why}"
        self._read_enough()

    # What is done in one way by Twisted, and in another by asyncio.

    @abc.abstractmethod
    def _send(self, pieces: Iterable[bytes]) -> None:
        """Sends to the process, in order, as it reads."""

    @abc.abstractmethod
    def _close_jobs(self) -> None:
        """Closes the pipe to the process."""

    @abc.abstractmethod
    def _kill(self) -> None:
        """Kills the process, if it is there."""

    @abc.abstractmethod
    def _close(self) -> None:
        """Closes all pipes: the process has ended."""

    def _after(self, delay: float, call: Callable[[], object]) -> None:
        """Calls something, if the process is not gone by then."""

        def due() -> None:
            self._timers.remove(timer)
            call()

        timer = self._call_later(delay, due)
        self._timers.append(timer)

    def _read_enough(self) -> None:
        self._is_silent = True
        self._check_gone()

    def _check_gone(self) -> None:
        if not self._is_silent or self._how_it_ended is None or self._is_gone:
            return
        self._is_gone = True
        for descriptor in (1, 2):
            self.output_received(descriptor, b"\n" if self._output[descriptor] else b"")
        self._close()
        self._pool.gone(self, self._how_it_ended)
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        waiting, self._whenever_gone = self._whenever_gone, []
        for call in waiting:
            call()

    def _take(self, task: Task, kind: int, content: bytes) -> None:
        if kind == child.DATA:
            task.job.send_data(content)
        elif kind == child.WARNING:
            task.job.send_warning(content)
        elif kind == child.STATUS:
            task.job.send_status(*child.status_numbers(content))
        else:
            self.task = None
            self.jobs_done += 1
            # First the next job, then what comes of this one: it may well stop the worker.
            self._pool.freed(self)
            _tell(task, kind, content)


def _tell(task: Task, kind: int, content: bytes) -> None:
    if kind == child.RESULT:
        task.succeed(content)
    elif kind == child.FAILED:
        task.fail(JobFailed(content.decode("utf-8", "replace")))
    elif kind == child.RETRY:
        task.fail(RetryLater(child.retry_delay(content)))
    else:
        task.fail(RaisedInProcess(*child.raised_texts(content)))


def command(target: str, jobs_fd: int, reports_fd: int) -> list[str]:
    """What starts a process.

    Args:
        target: its function, as ``module:qualified.name``.
        jobs_fd: the number of its end of the pipe by which jobs come.
        reports_fd: that of the other one.
    """
    code = (
        "import sys; target, jobs_fd, reports_fd = sys.argv[1:4]; sys.path[:] = sys.argv[4:]; "
        "del sys.argv[1:]; "
        "from gearman_twisted.worker.executor_child import main; main(target, int(jobs_fd), int(reports_fd))"
    )
    return [sys.executable, "-u", "-c", code, target, str(jobs_fd), str(reports_fd), *sys.path]


def refuse_coroutines(function: object, wrapper: str) -> None:
    """Checks what is to be run in a thread or a process.

    Raises:
        ConfigError: it is no function, or a coroutine function.
    """
    if not callable(function):
        raise ConfigError(f"{wrapper} takes a function, not {type(function).__name__}")
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"{wrapper} takes an ordinary function; an async one is registered as it is")


def _target_of(function: PlainFunction | str) -> str:
    """The name by which another process finds the function."""
    if isinstance(function, str):
        module, colon, path = function.partition(":")
        if not (module and colon and path):
            raise ConfigError(f"in_process takes a function or 'package.module:function', not {function!r}")
        return function
    refuse_coroutines(function, "in_process")
    target = f"{getattr(function, '__module__', None)}:{getattr(function, '__qualname__', None)}"
    try:
        is_found = not target.startswith("__main__:") and child.find_target(target) is function
    except (ImportError, AttributeError):
        is_found = False
    if not is_found:
        raise ConfigError(
            f"in_process needs a function that another process can import by its name, not {target}; "
            "put it at the top of a module of its own"
        )
    return target
