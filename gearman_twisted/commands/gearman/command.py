"""The command of a worker: one process per job, fed with the workload, its output taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from gearman_twisted.errors import JobFailed, ProcessDied
from gearman_twisted.runtime.on_twisted import TwistedRuntime
from gearman_twisted.worker.command_process import CommandProcess
from gearman_twisted.worker.job import Job


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
        """Send all lines that this data completes."""
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
        """Send the rest that has no line end, if any."""
        last = b"".join(self._begun)
        if last:
            self._send(last)


class _JobProcess(CommandProcess):
    # All that have its output open are waited for.
    read_patience = None

    def __init__(self, reactor: Any, words: list[str], job: Job, take: Callable[[bytes], object]) -> None:
        super().__init__(TwistedRuntime(reactor), words, job, reads=[1])
        self._take = take
        self.ended: Deferred[int] = Deferred()

    def output(self, descriptor: int, data: bytes) -> None:
        self._take(data)

    def gone(self, status: int) -> None:
        self.ended.callback(status)


async def run_command(reactor: Any, words: list[str], job: Job, lines: str | None) -> bytes:
    """Run a job with a command.

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
    command = _JobProcess(reactor, words, job, splitter.feed if lines else output.append)
    try:
        command.start_command()
    except ProcessDied as error:
        raise _failed(job, str(error)) from error
    status = await command.ended
    splitter.close()
    result = b"".join(output)
    # DIFFERS: there, a command that was killed by a signal has done its job well.
    if status:
        if result:
            job.send_data(result)
        if status < 0:
            raise _failed(job, f"the command {words[0]!r} was killed by signal {-status}")
        raise _failed(job, f"the command {words[0]!r} ended with status {status}")
    return result


def _failed(job: Job, text: str) -> JobFailed:
    return JobFailed(text, function=job.function, handle=job.handle)
