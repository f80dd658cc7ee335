"""How long the supervisor waits before it starts a process again: processes and time are moved by hand."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from twisted.internet.error import ProcessTerminated
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from gearman_twisted.worker.service.child import CONNECTED, REPORTS_FD, RUNNING
from gearman_twisted.worker.service.config import FunctionConfig, WorkerConfig
from gearman_twisted.worker.service.supervisor import Supervisor
from tests.kit.worker_rig import Lines

CONFIG = WorkerConfig(processes=1, functions={"f": FunctionConfig(call="a:b")})


class _Transport:
    """A process as the supervisor has it; nothing runs."""

    pid = 1
    pipes = frozenset({3})

    def __init__(self) -> None:
        self.signals: list[Any] = []

    def reapProcess(self) -> None:
        """Asks the system whether it has ended."""

    def writeToChild(self, child_fd: int, data: bytes) -> None:
        """Takes an order."""

    def closeChildFD(self, descriptor: int) -> None:
        """Closes a descriptor."""

    def loseConnection(self) -> None:
        """Closes all of them."""

    def signalProcess(self, name: Any) -> None:
        """Takes a signal."""
        self.signals.append(name)


def die(process: Any, **how: Any) -> None:
    """Has a process end, and all that it wrote read."""
    process.processExited(Failure(ProcessTerminated(**how)))
    for descriptor in (1, 2, REPORTS_FD):
        process.childConnectionLost(descriptor)


def report(process: Any, kind: str) -> None:
    """Has a process report something."""
    process.childDataReceived(REPORTS_FD, json.dumps([kind, "", "info"]).encode() + b"\n")


class Machine(MemoryReactorClock):
    """A reactor whose processes are started by nobody, and die when they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[Any] = []

    def spawnProcess(self, process: Any, *_args: object, **_options: object) -> None:
        """Starts nothing."""
        process.transport = _Transport()
        self.processes.append(process)

    def run_hooks(self) -> None:
        """Does what is to be done when the reactor runs."""
        while self.whenRunningHooks:
            hook, args, options = self.whenRunningHooks.pop(0)
            hook(*args, **options)

    def pause_after_death(self) -> float:
        """Has the last process die; the seconds until another one is started."""
        number = len(self.processes)
        die(self.processes[-1], exitCode=7)
        assert len(self.processes) == number
        [call] = self.getDelayedCalls()
        pause = call.getTime() - self.seconds()
        self.advance(pause)
        assert len(self.processes) == number + 1
        return float(pause)


def test_pauses_grow_to_half_a_minute_and_no_further() -> None:
    """However many die at once, the next one comes within 30 seconds; one that has lived starts it anew."""
    machine = Machine()
    supervisor = Supervisor(CONFIG, lambda: CONFIG, machine)
    supervisor.startService()
    machine.run_hooks()
    pauses = [machine.pause_after_death() for _ in range(2000)]
    assert pauses[0] < pauses[4] < pauses[7] < 30
    assert pauses[8:] == [pytest.approx(30)] * 1992
    machine.advance(29.9)
    assert machine.pause_after_death() == pytest.approx(30)
    machine.advance(30.1)
    assert machine.pause_after_death() < 2
    supervisor.stopService()
    die(machine.processes[-1], exitCode=0)
    assert machine.getDelayedCalls() == []


def supervise(machine: Machine) -> Supervisor:
    """A supervisor whose only process was started."""
    supervisor = Supervisor(CONFIG, lambda: CONFIG, machine)
    supervisor.startService()
    machine.run_hooks()
    return supervisor


def test_process_that_hangs_while_importing_is_reported(log: Lines) -> None:
    """Once, after ten seconds; it is not killed, as functions may take long to import."""
    machine = Machine()
    supervise(machine)
    machine.advance(9.9)
    assert log.warnings == []
    machine.advance(0.1)
    assert log.warnings == ["process 1 (pid 1) still imports its functions after 10 seconds"]
    machine.advance(1000)
    assert (len(log.warnings), machine.processes[0].transport.signals) == (1, [])


def test_process_that_runs_is_not_reported(log: Lines) -> None:
    """What comes up in time is no news."""
    machine = Machine()
    supervise(machine)
    report(machine.processes[0], RUNNING)
    report(machine.processes[0], CONNECTED)
    machine.advance(1000)
    assert log.warnings == []


def test_reload_does_not_wait_for_ever(log: Lines) -> None:
    """A new process that hangs while importing is killed after a minute; the old one stays."""
    machine = Machine()
    supervisor = supervise(machine)
    report(machine.processes[0], CONNECTED)
    supervisor.reload()
    machine.advance(59.9)
    assert machine.processes[1].transport.signals == []
    machine.advance(0.1)
    assert machine.processes[1].transport.signals == [signal.SIGKILL]
    die(machine.processes[1], signal=9)
    assert log.warnings[-1] == (
        "not reloaded, the old processes stay: the new process cannot start: "
        "its functions were not imported within 60 seconds"
    )
    supervisor.reload()
    report(machine.processes[2], CONNECTED)
    assert log.lines[-1] == "reloaded"


@pytest.mark.parametrize(("is_running", "patience"), [(False, 1.0), (True, CONFIG.drain_timeout + 15.0)])
def test_stop_does_not_wait_for_an_import(patience: float, *, is_running: bool) -> None:
    """A process that still imports its functions is killed after a second; others may end their jobs."""
    machine = Machine()
    supervisor = supervise(machine)
    [process] = machine.processes
    if is_running:
        report(process, RUNNING)
    stopped = supervisor.stopService()
    assert process.transport.signals == [signal.SIGTERM]
    machine.pump([patience - 0.1, 0.2])
    assert process.transport.signals == [signal.SIGTERM, signal.SIGKILL]
    die(process, signal=9)
    assert stopped.called
    assert machine.getDelayedCalls() == []
