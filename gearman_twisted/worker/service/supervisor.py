"""The supervisor of a worker's processes: starts them, replaces those that die, and rolls new code out.

It imports nothing of the functions: what runs them is ``worker/service/child.py``, in processes of its own,
so that new code needs new processes only.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from twisted.application.internet import backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger, LogLevel

from gearman_twisted.errors import ConfigError
from gearman_twisted.runtime.child import Child, how_it_ended
from gearman_twisted.runtime.on_twisted import TwistedRuntime
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
# Seconds after which a process that still imports its functions is reported.
_SLOW_START = 10.0
# Seconds after which a reload gives up such a process: the old ones go on.
_RELOAD_PATIENCE = 60.0
# Seconds that such a process has to stop.
_START_END_PATIENCE = 1.0

_CHILD = "from gearman_twisted.worker.service.child import {0}; {0}()"


def check_in_process(config: WorkerConfig) -> int:
    """Import the functions of the settings in a process of its own.

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
        self._children: set[WorkerProcess] = set()
        self._rolls: list[_Slot] = []
        self._next_config: WorkerConfig | None = None
        self._is_asked_again = False

    def startService(self) -> None:
        """Start the processes, once the reactor runs."""
        super().startService()  # type: ignore[no-untyped-call]
        # Not before: until then signals are held back, which a process would inherit.
        self.reactor.callWhenRunning(self._fill)

    def stopService(self) -> Deferred[Any]:
        """Tell all processes to stop.

        Returns:
            A Deferred that fires when they have ended.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        self._rolls = []
        for slot in self._slots:
            slot.cancel()
        running = list(self._children)
        for process in running:
            process.stop(self.config.drain_timeout + _END_PATIENCE)
        return DeferredList([process.ended for process in running])

    def reload(self) -> None:
        """Read the settings again, and replace all processes one by one.

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
            _log.error("not reloaded, nothing changed: {reason}", reason=error)
            return
        _log.info("reloading: {number} processes are replaced one by one", number=len(self._slots))
        self._next_config = config
        self._rolls = list(self._slots)
        self._roll()

    def start_process(
        self, slot: _Slot, config: WorkerConfig, patience: float | None = None
    ) -> WorkerProcess:
        """Start a process; called by a slot.

        Args:
            slot: whose it is.
            config: what it is.
            patience: seconds that it may take to import its functions, or None for ever.
        """
        process = WorkerProcess(slot, config, self.reactor)
        self._children.add(process)
        process.ended.addCallback(lambda _: self._children.discard(process))
        process.begin(patience)
        return process

    def delay(self, deaths: int) -> float:
        """Return the seconds that a slot waits after so many deaths in a row."""
        return min(self._retry_policy(deaths), _MAX_DELAY)

    def rolled(self, slot: _Slot, why_not: str | None) -> None:
        """Note that the new process of a slot is up, or has ended before; called by the slot."""
        if why_not is None:
            assert self._next_config is not None
            self.config = self._next_config
            self._roll()
        else:
            _log.error("not reloaded, the old processes stay: the new process {why}", why=why_not)
            self._rolls = []
            self._finish_reload()

    def _roll(self) -> None:
        """Replace the next process of a reload."""
        if not self.running or self._next_config is None:
            return
        if self._rolls:
            self._rolls.pop(0).replace(self._next_config)
            return
        self.config = self._next_config
        self._fill()
        _log.info("reloaded")
        self._finish_reload()

    def _finish_reload(self) -> None:
        self._next_config = None
        if self._is_asked_again:
            self._is_asked_again = False
            self.reload()

    def _fill(self) -> None:
        """Bring the number of slots to that of the settings."""
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
        self._process: WorkerProcess | None = None
        # Of a reload: what is to take its place.
        self._fresh: WorkerProcess | None = None
        self._is_closed = False

    def begin(self) -> None:
        """Start a process."""
        self._timer = None
        self._process = self._supervisor.start_process(self, self._supervisor.config)

    def cancel(self) -> None:
        """Start no more."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Retire its process, and start no more."""
        self.cancel()
        if self._process is not None:
            self._process.retire()
            self._process = None

    def replace(self, config: WorkerConfig) -> None:
        """Start a process that replaces the other one when it is up."""
        self._fresh = self._supervisor.start_process(self, config, _RELOAD_PATIENCE)

    def is_up(self, process: WorkerProcess) -> None:
        """Note that a process is up; called by the process."""
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

    def is_retiring(self, process: WorkerProcess) -> None:
        """Note that a process takes no more jobs, and start another one; called by the process."""
        if process is self._process and not self._is_closed:
            self._deaths = 0
            self.begin()

    def has_ended(self, process: WorkerProcess, why: str) -> None:
        """Note that a process has ended, and start another one; called by the process."""
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
                "{process} {why}; restarting in {delay:.1f} seconds{again}",
                process=process.name,
                why=why,
                delay=delay,
                again=f" (death {self._deaths} in a row)" if self._deaths > 1 else "",
            )
            self._timer = self._reactor.callLater(delay, self.begin)


class WorkerProcess(Child):
    """One process.

    Args:
        slot: whose it is.
        config: what it is.
        reactor: what it is started with.

    Attributes:
        name: for the log.
        ended: fires when it has ended.
    """

    def __init__(self, slot: _Slot, config: WorkerConfig, reactor: Any) -> None:
        super().__init__(TwistedRuntime(reactor), (1, 2, child.REPORTS_FD))
        self._slot = slot
        self._config = config
        self._reactor = reactor
        self._report = b""
        self._why = ""
        self._is_running = False
        self._is_up = False
        self._is_leaving = False
        self._connecting: IDelayedCall | None = None
        self._started_at = reactor.seconds()
        self.name = f"process {slot.number}"
        self.ended: Deferred[None] = Deferred()

    @property
    def age(self) -> float:
        """The seconds since it was started."""
        return float(self._reactor.seconds() - self._started_at)

    def begin(self, patience: float | None) -> None:
        """Start it.

        Args:
            patience: seconds that it may take to import its functions, before it is killed; None for ever.
        """
        self.start(
            lambda _numbers: [sys.executable, "-u", "-c", _CHILD.format("main")], writes=[child.ORDERS_FD]
        )
        self.write(child.ORDERS_FD, child.start_line(self._config, sys.path))
        self.name = f"process {self._slot.number} (pid {self.pid})"
        _log.info("{process} starts", process=self.name)
        self.after(_SLOW_START, self._tell_of_slow_start)
        if patience is not None:
            self.after(patience, lambda: self._give_up_start(patience))

    def retire(self) -> None:
        """Tell it to take no more jobs, and to end when those that run have ended."""
        if not self._is_leaving:
            self._is_leaving = True
            self.write(child.ORDERS_FD, f"{child.RETIRE}\n".encode())

    def stop(self, patience: float) -> None:
        """Tell it to stop; it is killed if it has not within so many seconds."""
        self._is_leaving = True
        self._cancel_connecting()
        # One that still imports its functions has no job to end, and does not hear the signal.
        self.kill_in(patience if self._is_running else min(patience, _START_END_PATIENCE))
        self.signal(signal.SIGTERM)

    def output(self, descriptor: int, data: bytes) -> None:
        if descriptor != child.REPORTS_FD:
            super().output(descriptor, data)
            return
        *lines, self._report = (self._report + data).split(b"\n")
        for line in lines:
            self._take(*json.loads(line))

    def took_line(self, descriptor: int, line: str) -> None:
        _log.info("{process} wrote: {text}", process=self.name, text=line)

    def too_late(self) -> None:
        _log.warn("{process} does not end, and is killed", process=self.name)
        self.kill()

    def gone(self, status: int) -> None:
        self._cancel_connecting()
        why = how_it_ended(status)
        if self._why:
            why = f"cannot start: {self._why}"
        elif self._is_leaving:
            _log.info("{process} {why}", process=self.name, why=why)
        self._slot.has_ended(self, why)
        self.ended.callback(None)

    def _tell_of_slow_start(self) -> None:
        if not self._is_running and not self._is_leaving:
            _log.warn(
                "{process} still imports its functions after {seconds:g} seconds",
                process=self.name,
                seconds=_SLOW_START,
            )

    def _give_up_start(self, patience: float) -> None:
        if not self._is_running:
            self._why = f"its functions were not imported within {patience:g} seconds"
            self.kill()

    def _take(self, kind: str, text: str, level: str) -> None:
        """Take a report."""
        if kind == child.LOG:
            text = text.replace("\n", "\n  ")
            _log.emit(LogLevel.levelWithName(level), "{process}: {text}", process=self.name, text=text)
        elif kind == child.FAILED:
            self._why = " ".join(text.split())
        elif kind == child.RUNNING:
            self._is_running = True
            if not self._is_leaving:
                self._connecting = self._reactor.callLater(_CONNECT_PATIENCE, self._come_up)
        elif kind == child.CONNECTED:
            self._cancel_connecting()
            self._come_up()
        elif kind == child.RETIRING and not self._is_leaving:
            self._is_leaving = True
            self._cancel_connecting()
            self._slot.is_retiring(self)

    def _come_up(self) -> None:
        if not self._is_up:
            self._is_up = True
            self._slot.is_up(self)

    def _cancel_connecting(self) -> None:
        if self._connecting is not None and self._connecting.active():
            self._connecting.cancel()
