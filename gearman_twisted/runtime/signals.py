"""Signal handlers of commands that run until they are stopped."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

_STOPPING = (signal.SIGTERM, signal.SIGINT)


def stop_quietly_on_sigterm(reactor: Any) -> None:
    """Make SIGTERM and SIGINT stop the reactor, so that the process ends with status 0.

    Twisted's own handlers make ``twistd`` end itself with the same signal after the shutdown, which a
    supervisor takes for a crash. Further signals during the shutdown are ignored.

    Args:
        reactor: the reactor that runs, or will; its handlers are replaced once it has set them. Signals that
            come before that wait for it.
    """
    is_stopping = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal is_stopping
        if not is_stopping:
            is_stopping = True
            # The only thing that a signal handler may ask of a reactor.
            reactor.callFromThread(reactor.stop)

    def install() -> None:
        for number in _STOPPING:
            signal.signal(number, stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)

    # Between its own handlers and ours a signal would end the process as if it had not been expected.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    reactor.callWhenRunning(install)


def call_on_signal(reactor: Any, number: int, function: Callable[[], object]) -> None:
    """Call a function in the reactor for each signal, once the reactor runs."""
    signal.signal(number, lambda _number, _frame: reactor.callFromThread(function))
