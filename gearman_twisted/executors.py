"""Where a worker's functions run when not in the reactor's thread: ``in_thread`` and ``in_process``.

Both make something that is registered like a function. The child's side of a process is
``executor_child.py``.
"""

from __future__ import annotations

import abc
import contextlib
import inspect
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from gearman_twisted import executor_child as child
from gearman_twisted.errors import ConfigError, JobException, JobFailed, ProcessDied, RetryLater
from gearman_twisted.job import Job

PlainFunction = Callable[[Job], bytes | None]

_log = Logger()

# How long a child that was told to end may take to clean up after itself.
_END_PATIENCE = 3.0
# How long what an ended child has sent may take to be read.
_READ_PATIENCE = 3.0


class Executor(abc.ABC):
    """Runs a function somewhere else; called like a function, in the reactor's thread.

    Attributes:
        concurrency: how many jobs it can run at a time, or None.
        can_be_stopped: whether cancelling the Deferred of a call ends what runs.
    """

    concurrency: int | None = None
    can_be_stopped = True

    @abc.abstractmethod
    def __call__(self, job: Job) -> Deferred[bytes | None]:
        """Runs a job; fires with its result, or fails with what the function raised."""

    def bind(self, reactor: Any) -> None:  # noqa: B027 - many have nothing to do
        """Called when it is registered: what to run with."""

    def stop(self) -> Deferred[Any] | None:  # noqa: B027 - the same
        """Ends all that was started; fires when it has ended. It may be called again after that."""


class RaisedInProcess(JobException):
    """A function raised in its process.

    Attributes:
        traceback: where, as text.
    """

    def __init__(self, data: bytes, traceback: str) -> None:
        super().__init__(data)
        self.traceback = traceback


def in_thread(function: PlainFunction) -> Executor:
    """Makes a worker function of a blocking one: each job runs in a thread.

    What is sent of the job meanwhile may be sent from the thread. A thread cannot be stopped: at a timeout
    the job fails, but the slot is taken until the function returns. Threads that still run when the worker
    has stopped do not keep the process from ending.

    Args:
        function: takes a ``Job``, returns bytes or None; must bear to run in several threads at a time where
            the worker's concurrency is more than one.

    Raises:
        ConfigError: the function is a coroutine function.
    """
    _refuse_coroutines(function, "in_thread")
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
    if processes is None:
        processes = os.cpu_count() or 1
    if processes < 1:
        raise ConfigError(f"processes takes a number of at least 1, not {processes!r}")
    if max_jobs is not None and max_jobs < 1:
        raise ConfigError(f"max_jobs takes a number of at least 1 or None, not {max_jobs!r}")
    if on_death not in ("fail", "requeue"):
        raise ConfigError(f"on_death takes 'fail' or 'requeue', not {on_death!r}")
    return _ProcessExecutor(_target_of(function), processes, on_death == "requeue", max_jobs)


class _ThreadReports:
    """Reports from a thread, handed to the reactor's."""

    def __init__(self, reactor: Any, job: Job) -> None:
        self._reactor = reactor
        self._job = job

    @property
    def is_open(self) -> bool:
        """Whether they can still be heard."""
        return self._job.is_connected

    def send_data(self, data: bytes) -> None:
        """A part of the result."""
        self._reactor.callFromThread(self._job.send_data, data)

    def send_warning(self, data: bytes) -> None:
        """A warning."""
        self._reactor.callFromThread(self._job.send_warning, data)

    def send_status(self, numerator: int, denominator: int) -> None:
        """How far the job is."""
        self._reactor.callFromThread(self._job.send_status, numerator, denominator)


class _ThreadExecutor(Executor):
    can_be_stopped = False

    def __init__(self, function: PlainFunction) -> None:
        self._function = function
        self._reactor: Any = None
        # Not the reactor's own threads: those are waited for at the end of the process, for ever if need be.
        self._threads = _DaemonThreads()

    def bind(self, reactor: Any) -> None:
        self._reactor = reactor
        # That of tests in memory has something in the place of threads.
        self._threads = getattr(reactor, "job_threads", self._threads)

    def __call__(self, job: Job) -> Deferred[bytes | None]:
        done: Deferred[bytes | None] = Deferred()
        seen = job.with_reports(_ThreadReports(self._reactor, job))

        def run() -> None:
            try:
                result: Any = self._function(seen)
            except BaseException:  # noqa: BLE001 - whatever a function raises ends its job, and nothing else
                result = Failure()  # type: ignore[no-untyped-call]
            # Behind all that the function has sent.
            self._reactor.callFromThread(done.callback, result)

        self._threads.call(run)
        return done


class _DaemonThreads:
    """As many threads as have something to do at a time, kept for what comes."""

    def __init__(self) -> None:
        self._idle: list[queue.SimpleQueue[Callable[[], None]]] = []

    def call(self, function: Callable[[], None]) -> None:
        """Calls a function in a thread that is idle, or a new one."""
        try:
            calls = self._idle.pop()
        except IndexError:
            calls = queue.SimpleQueue()
            thread = threading.Thread(target=self._work, args=(calls,), name="gearman-job", daemon=True)
            thread.start()
        calls.put(function)

    def _work(self, calls: queue.SimpleQueue[Callable[[], None]]) -> None:
        while True:
            calls.get()()
            self._idle.append(calls)


class _Task(NamedTuple):
    """A job for a process, and the Deferred that its caller has."""

    job: Job
    done: Deferred[bytes | None]


class _ProcessExecutor(Executor):
    def __init__(self, target: str, processes: int, is_requeued: bool, max_jobs: int | None) -> None:
        self.target = target
        self.concurrency = processes
        self._is_requeued = is_requeued
        self._max_jobs = max_jobs
        self._reactor: Any = None
        self._substitute: _ThreadExecutor | None = None
        # All that can be given jobs, and those of them that have none; the one that had one last is last.
        self._children: set[_Child] = set()
        self._idle: list[_Child] = []
        self._waiting: deque[_Task] = deque()
        # Those that were told to end, and have not.
        self._ending: set[_Child] = set()

    def bind(self, reactor: Any) -> None:
        self._reactor = reactor
        if hasattr(reactor, "job_threads"):
            # That of tests in memory, which starts no processes.
            self._substitute = _ThreadExecutor(child.find_target(self.target))
            self._substitute.bind(reactor)

    def __call__(self, job: Job) -> Deferred[bytes | None]:
        if self._substitute is not None:
            return self._substitute(job)
        done: Deferred[bytes | None] = Deferred(self._cancelled)
        self._waiting.append(_Task(job, done))
        self._run_waiting()
        return done

    def stop(self) -> Deferred[Any]:
        tasks = [*self._waiting]
        self._waiting.clear()
        for running in list(self._children):
            self.end(running, kills=running.task is not None)
            task = running.take_task()
            if task is not None:
                tasks.append(task)
        stopped: Deferred[Any] = DeferredList([running.ended() for running in self._ending])
        for task in tasks:
            task.done.errback(ProcessDied("the worker has stopped"))
        return stopped

    def freed(self, running: _Child) -> None:
        """Called by a child: its job is done."""
        if running.jobs_done == self._max_jobs:
            self.end(running, kills=False)
        elif running in self._children:
            self._idle.append(running)
        self._run_waiting()

    def end(self, running: _Child, *, kills: bool) -> None:
        """A child gets no more jobs."""
        if running in self._children:
            self._children.remove(running)
            self._ending.add(running)
            if running in self._idle:
                self._idle.remove(running)
            running.end(kills=kills)

    def gone(self, running: _Child, why: str) -> None:
        """Called by a child: its process has ended, wanted or not."""
        self.end(running, kills=True)
        self._ending.discard(running)
        task = running.take_task()
        if task is not None:
            if self._is_requeued:
                _log.warn("The process of {job} died: it {why}", job=task.job, why=why)
                task.done.errback(RetryLater())
            else:
                task.done.errback(ProcessDied(f"the process that ran the job {why}"))
        self._run_waiting()

    def _run_waiting(self) -> None:
        while self._waiting and (self._idle or len(self._children) < (self.concurrency or 0)):
            if self._idle:
                running = self._idle.pop()
            else:
                running = _Child(self, self._reactor)
                self._children.add(running)
                running.start(self.target)
            running.run(self._waiting.popleft())

    def _cancelled(self, done: Deferred[bytes | None]) -> None:
        for task in self._waiting:
            if task.done is done:
                self._waiting.remove(task)
                return
        for running in self._children:
            if running.task is not None and running.task.done is done:
                running.take_task()
                self.end(running, kills=True)
                break
        # With the Deferred's own end, not before it.
        self._reactor.callLater(0, self._run_waiting)


class _Child(ProcessProtocol):
    """One process."""

    transport: Any

    def __init__(self, executor: _ProcessExecutor, reactor: Any) -> None:
        self._executor = executor
        self._reactor = reactor
        self._frames = child.Frames()
        self._output: dict[int, bytes] = {1: b"", 2: b""}
        self._watching: Any = None
        self._reading: Any = None
        self._is_silent = False
        self._exit: BaseException | None = None
        self._has_ended = False
        self._whenever_ended: list[Deferred[None]] = []
        self.task: _Task | None = None
        self.jobs_done = 0

    def start(self, target: str) -> None:
        """Starts the process."""
        code = (
            "import sys; target = sys.argv[1]; sys.path[:] = sys.argv[2:]; del sys.argv[1:]; "
            "from gearman_twisted.executor_child import main; main(target)"
        )
        self._reactor.spawnProcess(
            self,
            sys.executable,
            [sys.executable, "-u", "-c", code, target, *sys.path],
            env=None,
            childFDs={0: "w", 1: "r", 2: "r", child.JOBS_FD: "w", child.REPORTS_FD: "r"},
        )
        self.transport.closeChildFD(0)

    def run(self, task: _Task) -> None:
        """Gives it a job. What the process does not take at once waits here."""
        self.task = task
        self.transport.pipes[child.JOBS_FD].writeSequence(child.job_frame(task.job))

    def take_task(self) -> _Task | None:
        """Its job, which it has no longer."""
        task, self.task = self.task, None
        return task

    def end(self, *, kills: bool) -> None:
        """Tells the process to end when it has nothing to do, or at once."""
        self.transport.closeChildFD(child.JOBS_FD)
        if kills:
            self._kill()
        self._watch(0.005, _END_PATIENCE)

    def ended(self) -> Deferred[None]:
        """Fires when the process has ended."""
        done: Deferred[None] = Deferred()
        self._whenever_ended.append(done)
        return done

    def childDataReceived(self, childFD: int, data: bytes) -> None:  # noqa: N803 - IProcessProtocol
        """Takes reports, and output for the log."""
        if childFD != child.REPORTS_FD:
            self._log_lines(childFD, data)
            return
        for kind, content in self._frames.feed(data):
            if self.task is not None:
                self._take(self.task, kind, content)

    def childConnectionLost(self, childFD: int) -> None:  # noqa: N803 - IProcessProtocol
        """The process is as good as gone if one of its own pipes is."""
        if childFD == child.REPORTS_FD:
            self._is_silent = True
            self._check_gone()
        if childFD in (child.REPORTS_FD, child.JOBS_FD):
            self._executor.end(self, kills=True)

    def processExited(self, reason: Failure) -> None:
        """The process has ended; what it has sent before may still be unread."""
        self._exit = reason.value
        self._executor.end(self, kills=False)
        # Unless what it has left behind has the pipe open too: then that is not waited for.
        self._reading = self._reactor.callLater(_READ_PATIENCE, self._read_enough)
        self._check_gone()

    def _read_enough(self) -> None:
        self._is_silent = True
        self._check_gone()

    def _check_gone(self) -> None:
        if self._is_silent and self._exit is not None and not self._has_ended:
            self._gone(self._exit)

    def _gone(self, error: BaseException) -> None:
        self._has_ended = True
        for timer in (self._watching, self._reading):
            if timer is not None and timer.active():
                timer.cancel()
        for descriptor in (1, 2):
            self._log_lines(descriptor, b"\n" if self._output[descriptor] else b"")
        self.transport.loseConnection()
        self._executor.gone(self, _how_it_ended(error))
        waiting, self._whenever_ended = self._whenever_ended, []
        for done in waiting:
            done.callback(None)

    def _take(self, task: _Task, kind: int, content: bytes) -> None:
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
            self._executor.freed(self)
            _fire(task.done, kind, content)

    def _log_lines(self, descriptor: int, data: bytes) -> None:
        *lines, rest = (self._output[descriptor] + data).split(b"\n")
        while len(rest) > _MAX_LINE_BYTES:
            lines.append(rest[:_MAX_LINE_BYTES])
            rest = rest[_MAX_LINE_BYTES:]
        self._output[descriptor] = rest
        for line in lines:
            text = line.decode("utf-8", "replace")
            _log.info("{target} wrote: {text}", target=self._executor.target, text=text)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessExitedAlready):
            self.transport.signalProcess("KILL")

    def _watch(self, pause: float, patience: float) -> None:
        """Waits for the end: not every reactor is told by the system, and not every process does as told."""
        if self._exit is None:
            self.transport.reapProcess()
        if self._exit is None:
            if patience <= 0:
                self._kill()
            pause = min(pause, 0.5)
            self._watching = self._reactor.callLater(pause, self._watch, 2 * pause, patience - pause)


# More without a line end is cut for the log.
_MAX_LINE_BYTES = 4096


def _fire(done: Deferred[bytes | None], kind: int, content: bytes) -> None:
    if kind == child.RESULT:
        done.callback(content)
    elif kind == child.FAILED:
        done.errback(JobFailed(content.decode("utf-8", "replace")))
    elif kind == child.RETRY:
        done.errback(RetryLater(child.retry_delay(content)))
    else:
        done.errback(RaisedInProcess(*child.raised_texts(content)))


def _how_it_ended(error: BaseException) -> str:
    if isinstance(error, ProcessTerminated) and error.signal is not None:
        return f"was ended by signal {error.signal}"
    status = 0 if isinstance(error, ProcessDone) else getattr(error, "exitCode", None)
    return f"ended itself with status {status}"


def _target_of(function: PlainFunction | str) -> str:
    """The name by which another process finds the function."""
    if isinstance(function, str):
        module, colon, path = function.partition(":")
        if not (module and colon and path):
            raise ConfigError(f"in_process takes a function or 'package.module:function', not {function!r}")
        return function
    _refuse_coroutines(function, "in_process")
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


def _refuse_coroutines(function: object, wrapper: str) -> None:
    if not callable(function):
        raise ConfigError(f"{wrapper} takes a function, not {type(function).__name__}")
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"{wrapper} takes an ordinary function; an async one is registered as it is")
