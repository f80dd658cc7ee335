"""Timers of a reactor whose wall clock is set back go on."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from twisted.internet.task import Clock

from gearman_twisted.runtime.clocks import use_steady_clock, wall_clock
from gearman_twisted.runtime.on_twisted import TwistedRuntime
from tests.kit.servers import PATIENCE

SCRIPT = """
import time
ahead = 0
clock = time.time
time.time = lambda: clock() + ahead
from twisted.internet import {name}reactor
{name}reactor.install()
from twisted.internet import reactor
from gearman_twisted.runtime.clocks import use_steady_clock, wall_clock
use_steady_clock(reactor)
def set_back():
    global ahead
    ahead = -3600
reactor.callLater(0.1, reactor.stop)
reactor.callLater(0.01, set_back)
reactor.run()
assert abs(wall_clock(reactor)() - clock() + 3600) < 60
print("stopped")
"""


@pytest.mark.parametrize("name", ["epoll", "poll", "select", "asyncio"])
def test_timers_go_on(name: str) -> None:
    """What was scheduled before the clock was set back by an hour runs when its seconds are over."""
    words = [sys.executable, "-c", SCRIPT.format(name=name)]
    assert subprocess.run(words, capture_output=True, timeout=PATIENCE, text=True).stdout == "stopped\n"


def test_clock_that_is_in_use_stays() -> None:
    """A reactor on which something is scheduled keeps its clock: those times would mean something else."""
    clock = Clock()
    clock.callLater(1, lambda: None)
    use_steady_clock(clock)
    assert wall_clock(clock)() == clock.seconds() == 0.0


def test_runtime_knows_both() -> None:
    """A client that goes by a steady clock tells a date by the wall clock all the same."""
    clock = Clock()
    use_steady_clock(clock)
    runtime = TwistedRuntime(clock)
    assert abs(runtime.wall_time() - time.time()) < 60
    assert abs(runtime.now() - time.monotonic()) < 60
