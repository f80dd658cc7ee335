"""Two clocks: one that is never set, for durations, and the wall clock, for dates.

Twisted's reactors know the wall clock only, so that their timers stand still for an hour when that is set
back by an hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def use_steady_clock(reactor: Any) -> None:
    """Have a reactor's timers go by a clock that is never set; nothing may be scheduled yet.

    For commands, whose reactor is their own. ``reactor.seconds()`` does not return the date any more.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic


def wall_clock(reactor: Any) -> Callable[[], float]:
    """Return what tells the seconds since 1970: the reactor's own clock, unless it is a steady one."""
    seconds: Callable[[], float] = reactor.seconds
    return time.time if seconds is time.monotonic else seconds
