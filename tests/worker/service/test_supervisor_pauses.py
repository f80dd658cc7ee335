"""How long the supervisor waits before it starts a process again: processes and time are moved by hand."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.error import ProcessTerminated
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from gearman_twisted.worker.service.config import FunctionConfig, WorkerConfig
from gearman_twisted.worker.service.supervisor import Supervisor

CONFIG = WorkerConfig(processes=1, functions={"f": FunctionConfig(call="a:b")})


class _Transport:
    """A process as the supervisor has it; nothing runs."""

    pid = 1

    def writeToChild(self, child_fd: int, data: bytes) -> None:
        """Takes an order."""

    def closeChildFD(self, descriptor: int) -> None:
        """Closes a descriptor."""

    def loseConnection(self) -> None:
        """Closes all of them."""

    def signalProcess(self, name: str) -> None:
        """Takes a signal."""


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
        self.processes[-1].processEnded(Failure(ProcessTerminated(exitCode=7)))
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
    machine.processes[-1].processEnded(Failure(ProcessTerminated(exitCode=0)))
    assert machine.getDelayedCalls() == []
