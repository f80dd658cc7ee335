"""Commands as worker functions: one process for each job, its output the result, its log ours."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

from gearman_twisted.errors import ConfigError, JobFailed, ProcessDied
from gearman_twisted.runtime.child import how_it_ended
from gearman_twisted.runtime.interfaces import Promise, Runtime
from gearman_twisted.worker.command_process import CommandProcess, find_command
from gearman_twisted.worker.executors import Executor
from gearman_twisted.worker.job import Job


def exec_function(words: Sequence[str], *, lines: bool = False) -> Executor:
    """Make a worker function of a command.

    The command has the workload as its standard input and ``GEARMAN_HANDLE``, ``GEARMAN_FUNCTION`` and
    ``GEARMAN_UNIQUE`` in its environment. If it ends with status 0, its output is the result. With any other
    status, or by a signal, the job fails, and a warning before that has the status and the last line of its
    standard error; what it has put out is sent as well, as ``gearman -w`` does. At a timeout, and when the
    worker stops before its end, it gets SIGTERM, and SIGKILL if it is still there after three seconds.

    Args:
        words: the command, looked for in ``PATH``, and its arguments. No shell sees them.
        lines: whether each line of its output is sent as a part of the result as soon as it is there.

    Raises:
        ConfigError: there is no such command, or it is not executable.
    """
    if not words:
        raise ConfigError("a command needs at least one word")
    try:
        find_command(words[0])
    except ProcessDied as error:
        raise ConfigError(str(error)) from None
    return _ExecFunction(words, is_by_lines=lines)


class _ExecFunction(Executor):
    def __init__(self, words: Sequence[str], *, is_by_lines: bool) -> None:
        self.words = list(words)
        self._is_by_lines = is_by_lines
        self._running: set[_ExecProcess] = set()

    def bind(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def __call__(self, job: Job) -> Awaitable[bytes | None]:
        command = _ExecProcess(self._runtime, self.words, job, is_by_lines=self._is_by_lines)
        command.start_command()
        self._running.add(command)
        command.whenever_gone(lambda: self._running.discard(command))
        return command.done

    async def stop(self) -> None:
        for command in list(self._running):
            gone: Promise[None] = self._runtime.promise()
            command.terminate()
            command.whenever_gone(lambda gone=gone: gone.succeed(None))  # type: ignore[misc]
            await gone


class _ExecProcess(CommandProcess):
    """A running command.

    Attributes:
        done: what the caller of the function has.
    """

    def __init__(self, runtime: Runtime, words: Sequence[str], job: Job, *, is_by_lines: bool) -> None:
        super().__init__(runtime, words, job)
        self._name = words[0]
        self._log = runtime.log("worker")
        self._is_by_lines = is_by_lines
        self._output: list[bytes] = []
        self._last_error = ""
        self._is_told = False
        self.done: Promise[Any] = runtime.promise(self._give_up)

    def output(self, descriptor: int, data: bytes) -> None:
        if descriptor != 1:
            super().output(descriptor, data)
        elif not self._is_by_lines:
            self._output.append(data)
        else:
            head, newline, rest = data.rpartition(b"\n")
            if newline:
                self._send(b"".join([*self._output, head, newline]))
                self._output = []
            if rest:
                self._output.append(rest)

    def took_line(self, descriptor: int, line: str) -> None:
        self._last_error = line
        self._log.info("{job}: {command} wrote: {text}", job=self.job, command=self._name, text=line)

    def gone(self, status: int) -> None:
        if self._is_told:
            return
        output = b"".join(self._output)
        if not status:
            self.done.succeed(output)
            return
        if output:
            # As gearman -w does it.
            self._send(output)
        text = f"{self._name} {how_it_ended(status)}"
        if self._last_error:
            text = f"{text}: {self._last_error}"
        # The command's name may be any bytes.
        warning = text.encode(errors="backslashreplace")
        self.job.send_warning(warning[: self.job.max_data_bytes])
        self.done.fail(JobFailed(text, function=self.job.function, handle=self.job.handle))

    def _give_up(self) -> None:
        self._is_told = True
        self.terminate()

    def _send(self, data: bytes) -> None:
        """Send output ahead, in as many parts as it takes."""
        size = self.job.max_data_bytes
        for start in range(0, len(data), size):
            self.job.send_data(data[start : start + size])
