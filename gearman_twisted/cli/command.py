"""The command of a worker: one process per job, fed with the workload, its output taken."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from gearman_twisted.errors import JobFailed
from gearman_twisted.job import Job


class Lines:
    """Cuts output into lines as it comes.

    Args:
        send: called with each line.
        keeps_ends: whether the line ends are a part of the lines.
    """

    def __init__(self, send: Callable[[bytes], object], *, keeps_ends: bool) -> None:
        self._send = send
        self._end = b"\n" if keeps_ends else b""
        self._begun: list[bytes] = []

    def feed(self, data: bytes) -> None:
        """Sends all lines that this completes."""
        first, newline, rest = data.partition(b"\n")
        if not newline:
            self._begun.append(data)
            return
        # DIFFERS: there, each line is sent together with all lines before it.
        self._send(b"".join([*self._begun, first]) + self._end)
        *lines, last = rest.split(b"\n")
        for line in lines:
            self._send(line + self._end)
        self._begun = [last]

    def close(self) -> None:
        """Sends what has no line end, if there is something."""
        last = b"".join(self._begun)
        if last:
            self._send(last)


class _CommandProcess(ProcessProtocol):
    """A running command. Input and output are served side by side, so neither can block the other.

    DIFFERS: gearman writes all input before it reads, and hangs with commands that do not.
    """

    transport: Any

    def __init__(self, workload: bytes, take: Callable[[bytes], object]) -> None:
        self._workload = workload
        self._take = take
        self.ended: Deferred[BaseException | None] = Deferred()

    def connectionMade(self) -> None:
        """Gives it the workload. If it ends before it has read all, the rest is dropped."""
        self.transport.write(self._workload)
        self.transport.closeStdin()
        self._workload = b""

    def outReceived(self, data: bytes) -> None:
        """Takes its output."""
        self._take(data)

    def processEnded(self, reason: Failure) -> None:
        """It has ended, and all that had its output open too."""
        self.ended.callback(reason.value)


async def run_command(reactor: Any, words: list[str], job: Job, lines: str | None) -> bytes:
    """Does a job with a command.

    Args:
        reactor: what to start it with.
        words: the command and its arguments.
        job: what it is for; goes into the environment too.
        lines: None, or ``-n`` or ``-N`` to send its output line by line.

    Returns:
        The result: its output, or nothing by lines.

    Raises:
        JobFailed: it could not be started, or ended with another status than 0 or by a signal.
    """
    output: list[bytes] = []
    splitter = Lines(job.send_data, keeps_ends=lines == "-n")
    process = _CommandProcess(job.workload, splitter.feed if lines else output.append)
    environment = {
        **os.environb,
        b"GEARMAN_HANDLE": job.handle,
        b"GEARMAN_FUNCTION": job.function,
        b"GEARMAN_UNIQUE": job.unique,
    }
    # Looked for at each job: a command may be installed while the worker runs. A child that cannot be
    # executed could only say so with a traceback.
    # DIFFERS: there, the job is reported as complete, and the child goes on as a second worker.
    program = shutil.which(words[0])
    if program is None:
        raise _failed(job, f"the command {words[0]!r} is not found, or not executable")
    try:
        reactor.spawnProcess(process, program, words, environment, childFDs={0: "w", 1: "r", 2: 2})
    except OSError as error:
        raise _failed(job, f"the command {words[0]!r} cannot be started: {error.strerror}") from error
    reason = await process.ended
    splitter.close()
    result = b"".join(output)
    # DIFFERS: there, a command that was killed by a signal has done its job well.
    if isinstance(reason, ProcessTerminated):
        if result:
            job.send_data(result)
        if reason.signal is not None:
            raise _failed(job, f"the command {words[0]!r} was killed by signal {reason.signal}")
        raise _failed(job, f"the command {words[0]!r} ended with status {reason.exitCode}")
    return result


def _failed(job: Job, text: str) -> JobFailed:
    return JobFailed(text, function=job.function, handle=job.handle)
