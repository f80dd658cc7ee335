"""Where a worker's functions run when not in the reactor's thread: ``in_thread`` and ``in_process``.

Both make something that is registered like a function. What is done with processes is for
``worker/processes.py``; here is what starts them, and their pipes.
"""

from __future__ import annotations

import abc
import contextlib
import queue
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from gearman_twisted.worker import executor_child as child
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

_log = Logger()

# The child's ends of the pipes.
_JOBS_FD, _REPORTS_FD = 3, 4


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
        self._reactor: Any = None
        # Not the reactor's own threads: those are waited for at the end of the process, for ever if need be.
        self._threads = _DaemonThreads()

    def bind(self, reactor: Any) -> None:
        self._reactor = reactor
        # That of tests in memory has something in the place of threads.
        self._threads = getattr(reactor, "job_threads", self._threads)

    def __call__(self, job: Job) -> Deferred[bytes | None]:
        done: Deferred[bytes | None] = Deferred()
        seen = job.with_reports(ThreadReports(job, self._reactor.callFromThread))

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


class _ProcessExecutor(Executor):
    def __init__(self, settings: Settings) -> None:
        self.concurrency = settings.processes
        self._target = settings.target
        self._reactor: Any = None
        self._substitute: _ThreadExecutor | None = None
        self._pool = Pool(
            settings,
            start=self._start_child,
            log_given_back=lambda job, why: _log.warn(
                "The process of {job} died: it {why}", job=job, why=why
            ),
            log_line=lambda text: _log.info("{target} wrote: {text}", target=self._target, text=text),
        )

    def bind(self, reactor: Any) -> None:
        self._reactor = reactor
        if hasattr(reactor, "job_threads"):
            # That of tests in memory, which starts no processes.
            self._substitute = _ThreadExecutor(child.find_target(self._target))
            self._substitute.bind(reactor)

    def __call__(self, job: Job) -> Deferred[bytes | None]:
        if self._substitute is not None:
            return self._substitute(job)
        done: Deferred[bytes | None] = Deferred(lambda _done: self._pool.cancel(task))
        task = Task(job, done.callback, done.errback)
        self._pool.run(task)
        return done

    def stop(self) -> Deferred[Any]:
        return DeferredList([_gone(running) for running in self._pool.stop()])

    def _start_child(self) -> Child:
        return _Child(self._pool, self._target, self._reactor)


class _Child(Child, ProcessProtocol):
    """One process."""

    transport: Any

    def __init__(self, pool: Pool, target: str, reactor: Any) -> None:
        super().__init__(pool, reactor.callLater)
        reactor.spawnProcess(
            self,
            sys.executable,
            command(target, _JOBS_FD, _REPORTS_FD),
            env=None,
            childFDs={0: "w", 1: "r", 2: "r", _JOBS_FD: "w", _REPORTS_FD: "r"},
        )
        self.transport.closeChildFD(0)

    def end(self, *, kills: bool) -> None:
        """Tells the process to end when it has nothing to do, or at once."""
        super().end(kills=kills)
        self._reap(0.005)

    def childDataReceived(self, childFD: int, data: bytes) -> None:  # noqa: N803 - IProcessProtocol
        """Takes reports, and output for the log."""
        if childFD == _REPORTS_FD:
            self.reports_received(data)
        else:
            self.output_received(childFD, data)

    def childConnectionLost(self, childFD: int) -> None:  # noqa: N803 - IProcessProtocol
        """A pipe is closed."""
        if childFD == _REPORTS_FD:
            self.reports_lost()
        elif childFD == _JOBS_FD:
            self.jobs_lost()

    def processExited(self, reason: Failure) -> None:
        """The process has ended."""
        error: Any = reason.value
        self.exited(-error.signal if error.signal is not None else error.exitCode)

    def _send(self, pieces: Iterable[bytes]) -> None:
        self.transport.pipes[_JOBS_FD].writeSequence(pieces)

    def _close_jobs(self) -> None:
        self.transport.closeChildFD(_JOBS_FD)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessExitedAlready):
            self.transport.signalProcess("KILL")

    def _close(self) -> None:
        self.transport.loseConnection()

    def _reap(self, pause: float) -> None:
        """Asks for the end: not every reactor is told by the system."""
        if not self.has_ended:
            self.transport.reapProcess()
        if not self.has_ended:
            self._after(pause, lambda: self._reap(min(2 * pause, 0.5)))


def _gone(running: Child) -> Deferred[None]:
    gone: Deferred[None] = Deferred()
    running.whenever_gone(lambda: gone.callback(None))
    return gone
