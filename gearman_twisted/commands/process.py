"""What a command does with its own process: complaints, pid file, daemon, signals, the reactor."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogBeginner
from twisted.python.failure import Failure
from zope.interface import provider


def complain(text: str, command: str = "gearman") -> None:
    """Writes a line to standard error, named after the command."""
    sys.stderr.write(f"{command}: {text}\n")
    sys.stderr.flush()


def reopen_standard_streams() -> None:
    """Gives closed standard streams a place: otherwise the next file or socket would be taken for one."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # noqa: PERF203 - three times
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - it stays open
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


@contextmanager
def pid_file(path: str | None) -> Iterator[None]:
    """Keeps the process id in a file meanwhile, if there is a path; a file that is there is replaced.

    Raises:
        OSError: the file cannot be written.
    """
    if path is None:
        yield
        return
    file = Path(path)
    content = f"{os.getpid()}\n"
    # Not written through a link that someone else has put there, nor stopped by another user's old file.
    file.unlink(missing_ok=True)
    with file.open("x") as new:
        new.write(content)
    try:
        yield
    finally:
        # By then it may be the file of a successor, and the directory may have changed hands.
        with suppress(OSError, ValueError):
            if file.read_text() == content:
                file.unlink()


def become_daemon(*, keeps_stdin: bool = True) -> Callable[[], None]:
    """Goes on in a new process of its own session; the old one waits until that is ready.

    The directory stays, as a worker's command may be relative to it.

    Args:
        keeps_stdin: standard input stays too: a client may have its data there.

    Returns:
        What the new process calls when nothing can go wrong any more: it lets go of the terminal and makes
        the old one end with 0. If it ends before, so does the old one, with its status, or 1 if that is 0.
    """
    readable, writable = os.pipe()
    child = os.fork()
    if child:
        os.close(writable)
        if os.read(readable, 1):
            os._exit(0)
        _, status = os.waitpid(child, 0)
        os._exit(max(1, os.waitstatus_to_exitcode(status)))
    os.close(readable)
    os.setsid()

    def ready() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (1, 2) if keeps_stdin else (0, 1, 2):
            os.dup2(null, standard)
        os.close(null)
        os.write(writable, b"1")
        os.close(writable)

    return ready


def die_of_broken_pipe() -> None:
    """Ends this process as one that nobody reads from any more usually ends (Python ignores the signal)."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)


def log_to_stderr(level: Any, command: str = "gearman") -> None:
    """Shows what is logged from a level upward, one line each; tracebacks are for bugs only."""

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
    """Runs a coroutine in the reactor, and no longer; SIGINT and SIGTERM end the process at once.

    Args:
        main: called with the reactor.
        command: what the lines on standard error are named after.

    Returns:
        What the coroutine returned; if it raised, that is raised.
    """
    from twisted.internet import reactor as installed

    reactor: Any = installed
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
