"""How commands run in the reactor: a coroutine to its end, what is logged on standard error."""

from __future__ import annotations

import signal
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogBeginner
from twisted.python.failure import Failure
from zope.interface import provider

from gearman_twisted.commands.process import complain
from gearman_twisted.runtime.clocks import use_steady_clock


def log_to_stderr(level: Any, command: str = "gearman") -> None:
    """Print what is logged from a level upward, one line each; tracebacks are for bugs only."""

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event["log_level"] < level:
            return
        failure = event.get("log_failure")
        if failure is not None and not failure.check(CancelledError):
            complain(f"{formatEvent(event)}: {failure.getTraceback()}", command)
        else:
            complain(formatEvent(event), command)

    globalLogBeginner.beginLoggingTo([observe], discardBuffer=True, redirectStandardIO=False)


def run_and_stop(main: Callable[[Any], Coroutine[Any, Any, int]], command: str = "gearman") -> int:
    """Run a coroutine in the reactor, then stop it; SIGINT and SIGTERM end the process at once.

    Args:
        main: called with the reactor.
        command: what the lines on standard error are named after.

    Returns:
        What the coroutine returned; if it raised, that is raised.
    """
    from twisted.internet import reactor as installed

    reactor: Any = installed
    use_steady_clock(reactor)
    results: list[Any] = []

    def start() -> None:
        ended = Deferred.fromCoroutine(main(reactor))
        ended.addBoth(results.append)
        ended.addBoth(lambda _: reactor.stop())

    log_to_stderr(LogLevel.error, command)
    reactor.callWhenRunning(start)
    # Nothing has to be put in order: what dies by a signal says so in its status.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    reactor.run(installSignalHandlers=False)
    result = results[0]
    if isinstance(result, Failure):
        result.raiseException()
    return int(result)
