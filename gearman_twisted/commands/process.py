"""What a command does with its own process: complaints, pid file, daemon, signals."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from gearman_twisted.wire.shown import shown_lines


def complain(text: str, command: str = "gearman") -> None:
    """Write a line to standard error that begins with the name of the command."""
    sys.stderr.write(f"{command}: {shown_lines(text)}\n")
    sys.stderr.flush()


def reopen_standard_streams() -> None:
    """Open closed standard streams on /dev/null: the next file or socket would be taken for one."""
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
    """Keep the process id in a file meanwhile, if there is a path; an existing file is replaced.

    Raises:
        OSError: the file cannot be written.
    """
    if path is None:
        yield
        return
    from pathlib import Path

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


def leave_out_openssl() -> None:
    """Have Twisted take pyOpenSSL for not installed, in a process that connects without TLS.

    Twisted loads it wherever it is installed, for all that it could need it for: a third of the time that a
    command takes to start.
    """
    sys.modules.setdefault("OpenSSL", None)  # type: ignore[arg-type] # None means that there is no such module


def become_daemon(*, keeps_stdin: bool = True) -> Callable[[], None]:
    """Continue in a new process with a session of its own; the old one waits until it is ready.

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
    """End this process by SIGPIPE, which Python ignores, as other programs end when nobody reads."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
