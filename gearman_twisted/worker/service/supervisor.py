"""The supervisor of a worker's processes: starts them, replaces those that die, and rolls new code out.

It imports nothing of the functions: what runs them is ``worker/service/child.py``, in processes of its own,
so that new code needs new processes only.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.application.internet import backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from gearman_twisted.errors import ConfigError
from gearman_twisted.worker.service import child
from gearman_twisted.worker.service.config import WorkerConfig

_log = Logger()

_MAX_DELAY = 30.0
# One that has lived so long has not failed to start.
_PROOF = 30.0
# How long a process has, beyond the drain timeout, to disconnect and end its own processes.
_END_PATIENCE = 15.0
# How long a new process waits for a server before it takes an old one's place all the same.
_CONNECT_PATIENCE = 10.0
# How long output is waited for that something else, which a process has left behind, has open too.
_READ_PATIENCE = 3.0
# More without a line end is cut for the log.
_MAX_LINE_BYTES = 4096

_CHILD = "from gearman_twisted.worker.service.child import {0}; {0}()"


def check_in_process(config: WorkerConfig) -> int:
    """Imports in a process of its own what the settings name.

    Returns:
        Its exit status: 0 if all is well; otherwise it has written a line on standard error.
    """
    return subprocess.run(
        [sys.executable, "-c", _CHILD.format("check")],
        input=child.start_line(config, sys.path),
        stdout=subprocess.DEVNULL,
        check=False,
        env=None,
    ).returncode


class Supervisor(Service):
    """A worker's processes, as a service.

    A process that dies is replaced, after a pause that grows with each that dies young, up to 30 seconds. One
    that retires, for its number of jobs or its lifetime, is replaced at once, while it ends its last jobs.

    Args:
        config: what the processes are; ``processes`` says how many.
        read_config: called at a reload for the settings as they are then; may raise ``ConfigError``.
        reactor: the reactor to run in.
        retry_policy: seconds to wait after so many deaths, from 0.
    """

    def __init__(
        self,
        config: WorkerConfig,
        read_config: Callable[[], WorkerConfig],
        reactor: Any,
        retry_policy: Callable[[int], float] | None = None,
    ) -> None:
        self.reactor = reactor
        self.config = config
        self._read_config = read_config
        self._retry_policy = retry_policy or backoffPolicy(initialDelay=0.2, maxDelay=_MAX_DELAY, factor=2)
        self._slots: list[_Slot] = []
        # All that have not ended, also those that have no slot any more.
        self._children: set[Process] = set()
        self._rolls: list[_Slot] = []
        self._next_config: WorkerConfig | None = None
        self._is_asked_again = False

    def startService(self) -> None:
        """Starts the processes, once the reactor runs."""
        super().startService()  # type: ignore[no-untyped-call]
        # Not before: until then signals are held back, which a process would inherit.
        self.reactor.callWhenRunning(self._fill)

    def stopService(self) -> Deferred[Any]:
        """Tells all processes to stop; fires when they have ended."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._rolls = []
        for slot in self._slots:
            slot.cancel()
        running = list(self._children)
        for process in running:
            process.stop(self.config.drain_timeout + _END_PATIENCE)
        return DeferredList([process.ended for process in running])

    def reload(self) -> None:
        """Reads the settings again, and replaces all processes one by one.

        Each new one is up before its old one takes no more jobs. If one does not come up, the others stay.
        """
        if not self.running:
            return
        if self._next_config is not None:
            self._is_asked_again = True
            return
        try:
            config = self._read_config()
        except ConfigError as error:
            _log.error("Not reloaded, all goes on as it was: {reason}", reason=error)
            return
        _log.info("Reloads: replaces {number} processes one by one", number=len(self._slots))
        self._next_config = config
        self._rolls = list(self._slots)
        self._roll()

    def start_process(self, slot: _Slot, config: WorkerConfig) -> Process:
        """Called by a slot: starts a process."""
        process = Process(slot, config, self.reactor)
        self._children.add(process)
        process.ended.addCallback(lambda _: self._children.discard(process))
        process.start()
        return process

    def delay(self, deaths: int) -> float:
        """How long a slot waits after so many deaths in a row."""
        return min(self._retry_policy(deaths), _MAX_DELAY)

    def rolled(self, slot: _Slot, why_not: str | None) -> None:
        """Called by a slot: its new process is up, or has ended without."""
        if why_not is None:
            assert self._next_config is not None
            self.config = self._next_config
            self._roll()
        else:
            _log.error("Not reloaded, the others go on as they were: the new process {why}", why=why_not)
            self._rolls = []
            self._finish_reload()

    def _roll(self) -> None:
        """Goes on with the next process of a reload."""
        if not self.running or self._next_config is None:
            return
        if self._rolls:
            self._rolls.pop(0).replace(self._next_config)
            return
        self.config = self._next_config
        self._fill()
        _log.info("Reloaded")
        self._finish_reload()

    def _finish_reload(self) -> None:
        self._next_config = None
        if self._is_asked_again:
            self._is_asked_again = False
            self.reload()

    def _fill(self) -> None:
        """Makes the slots as many as there are to be."""
        if not self.running:
            return
        number = self.config.processes or 1
        while len(self._slots) > number:
            self._slots.pop().close()
        while len(self._slots) < number:
            slot = _Slot(self, len(self._slots) + 1)
            self._slots.append(slot)
            slot.begin()


class _Slot:
    """The place of one process, and of those that follow it."""

    def __init__(self, supervisor: Supervisor, number: int) -> None:
        self.number = number
        self._supervisor = supervisor
        self._reactor = supervisor.reactor
        self._deaths = 0
        self._timer: Any = None
        self._process: Process | None = None
        # Of a reload: what is to take its place.
        self._fresh: Process | None = None
        self._is_closed = False

    def begin(self) -> None:
        """Starts a process."""
        self._timer = None
        self._process = self._supervisor.start_process(self, self._supervisor.config)

    def cancel(self) -> None:
        """Starts no more."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """There are to be fewer."""
        self.cancel()
        if self._process is not None:
            self._process.retire()
            self._process = None

    def replace(self, config: WorkerConfig) -> None:
        """Starts a process that takes the place of the other one when it is up."""
        self._fresh = self._supervisor.start_process(self, config)

    def is_up(self, process: Process) -> None:
        """Called by a process: it works."""
        if process is not self._fresh:
            return
        self._fresh = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._process is not None:
            self._process.retire()
        self._process = process
        self._deaths = 0
        self._supervisor.rolled(self, None)

    def is_retiring(self, process: Process) -> None:
        """Called by a process: it takes no more jobs, so another one has to."""
        if process is self._process and not self._is_closed:
            self._deaths = 0
            self.begin()

    def has_ended(self, process: Process, why: str) -> None:
        """Called by a process: it is gone."""
        if process is self._fresh:
            self._fresh = None
            if not self._is_closed:
                self._supervisor.rolled(self, why)
        elif process is self._process:
            self._process = None
            if self._is_closed:
                return
            if process.age >= _PROOF:
                self._deaths = 0
            delay = self._supervisor.delay(self._deaths)
            self._deaths += 1
            _log.error(
                "{process} {why}; another one starts in {delay:.1f} seconds{again}",
                process=process.name,
                why=why,
                delay=delay,
                again=f" (death {self._deaths} in a row)" if self._deaths > 1 else "",
            )
            self._timer = self._reactor.callLater(delay, self.begin)


class Process(ProcessProtocol):
    """One process.

    Args:
        slot: whose it is.
        config: what it is.
        reactor: what it is started with.

    Attributes:
        ended: fires when it has ended.
    """

    transport: Any

    def __init__(self, slot: _Slot, config: WorkerConfig, reactor: Any) -> None:
        self._slot = slot
        self._config = config
        self._reactor = reactor
        self._rest = {1: b"", 2: b"", child.REPORTS_FD: b""}
        self._timer: Any = None
        self._why = ""
        self._is_up = False
        self._is_leaving = False
        self._has_ended = False
        self._started_at = reactor.seconds()
        self.name = f"Process {slot.number}"
        self.ended: Deferred[None] = Deferred()

    @property
    def age(self) -> float:
        """How many seconds ago it was started."""
        return float(self._reactor.seconds() - self._started_at)

    def start(self) -> None:
        """Starts it."""
        self._reactor.spawnProcess(
            self,
            sys.executable,
            [sys.executable, "-u", "-c", _CHILD.format("main")],
            env=None,
            childFDs={0: "w", 1: "r", 2: "r", child.ORDERS_FD: "w", child.REPORTS_FD: "r"},
        )
        self.transport.closeChildFD(0)
        self._write(child.start_line(self._config, sys.path))
        self.name = f"Process {self._slot.number} (pid {self.transport.pid})"
        _log.info("{process} starts", process=self.name)

    def retire(self) -> None:
        """Tells it to take no more jobs, and to end when those that run have ended."""
        if not self._is_leaving:
            self._is_leaving = True
            self._write(f"{child.RETIRE}\n".encode())

    def stop(self, patience: float) -> None:
        """Tells it to stop; it is killed if it has not within so many seconds."""
        self._is_leaving = True
        self._wait(patience, self._kill)
        self._signal("TERM")

    def childDataReceived(self, childFD: int, data: bytes) -> None:  # noqa: N803 - IProcessProtocol
        """Takes reports, and output for the log."""
        *lines, rest = (self._rest[childFD] + data).split(b"\n")
        if childFD == child.REPORTS_FD:
            self._rest[childFD] = rest
            for line in lines:
                self._take(*json.loads(line))
            return
        while len(rest) > _MAX_LINE_BYTES:
            lines.append(rest[:_MAX_LINE_BYTES])
            rest = rest[_MAX_LINE_BYTES:]
        self._rest[childFD] = rest
        for line in lines:
            self._log_output(line)

    def processExited(self, reason: Failure) -> None:
        """It has ended; what it has put out may still be unread."""
        # Unless something that it has left behind has the pipes open too: then that is not waited for.
        self._wait(_READ_PATIENCE, self._gone, reason.value)

    def processEnded(self, reason: Failure) -> None:
        """It has ended, and all of its output was read."""
        self._gone(reason.value)

    def _gone(self, error: BaseException | None) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        self._cancel_timer()
        self.transport.loseConnection()
        for descriptor in (1, 2):
            self._log_output(self._rest[descriptor])
        why = _how_it_ended(error)
        if self._why:
            why = f"cannot start: {self._why}"
        elif self._is_leaving:
            _log.info("{process} {why}", process=self.name, why=why)
        self._slot.has_ended(self, why)
        self.ended.callback(None)

    def _take(self, kind: str, text: str, level: str) -> None:
        """Takes a report."""
        if kind == child.LOG:
            text = text.replace("\n", "\n  ")
            _log.emit(LogLevel.levelWithName(level), "{process}: {text}", process=self.name, text=text)
        elif kind == child.FAILED:
            self._why = " ".join(text.split())
        elif kind == child.RUNNING:
            if not self._is_leaving:
                self._wait(_CONNECT_PATIENCE, self._come_up)
        elif kind == child.CONNECTED:
            if not self._is_leaving:
                self._cancel_timer()
            self._come_up()
        elif kind == child.RETIRING and not self._is_leaving:
            self._is_leaving = True
            self._cancel_timer()
            self._slot.is_retiring(self)

    def _come_up(self) -> None:
        if not self._is_up:
            self._is_up = True
            self._slot.is_up(self)

    def _log_output(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        if text:
            _log.info("{process} wrote: {text}", process=self.name, text=text)

    def _write(self, data: bytes) -> None:
        self.transport.writeToChild(child.ORDERS_FD, data)

    def _signal(self, name: str) -> None:
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess(name)

    def _kill(self) -> None:
        _log.warn("{process} does not end, and is killed", process=self.name)
        self._signal("KILL")

    def _wait(self, seconds: float, call: Callable[..., object], *args: object) -> None:
        self._cancel_timer()
        self._timer = self._reactor.callLater(seconds, call, *args)

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()


def _how_it_ended(error: BaseException | None) -> str:
    if isinstance(error, ProcessTerminated) and error.signal is not None:
        return f"was ended by signal {error.signal}"
    status = 0 if isinstance(error, ProcessDone) else getattr(error, "exitCode", None)
    return f"has ended with status {status}"
