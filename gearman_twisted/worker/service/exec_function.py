"""Commands as worker functions: one process for each job, its output the result, its log ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ProcessExitedAlready, ProcessTerminated
from twisted.logger import Logger
from twisted.python.failure import Failure

from gearman_twisted.errors import ConfigError, JobFailed, ProcessDied
from gearman_twisted.worker.command_process import CommandProcess, find_command
from gearman_twisted.worker.executors import Executor
from gearman_twisted.worker.job import Job

_log = Logger()

# How long a command that was told to end may take to clean up after itself.
_END_PATIENCE = 3.0
# How long output is waited for that something else, which the command has left behind, has open too.
_READ_PATIENCE = 3.0
# More of a line on standard error is cut for the log.
_MAX_LINE_BYTES = 4096


def exec_function(words: Sequence[str], *, lines: bool = False) -> Executor:
    """Makes a worker function of a command.

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
        self._reactor: Any = None
        self._running: set[_Command] = set()

    def bind(self, reactor: Any) -> None:
        self._reactor = reactor

    def __call__(self, job: Job) -> Deferred[bytes | None]:
        command = _Command(self.words, job, self._reactor, is_by_lines=self._is_by_lines)
        command.start(self._reactor)
        self._running.add(command)
        command.ended.addCallback(lambda _: self._running.discard(command))
        return command.done

    def stop(self) -> Deferred[Any]:
        """Ends all commands that still run."""
        running = list(self._running)
        stopped: Deferred[Any] = DeferredList([command.ended for command in running])
        for command in running:
            command.end()
        return stopped


class _Command(CommandProcess):
    """A running command.

    Attributes:
        done: what the caller of the function has.
        ended: fires when the process has ended.
    """

    def __init__(self, words: Sequence[str], job: Job, reactor: Any, *, is_by_lines: bool) -> None:
        super().__init__(words, job)
        self._name = words[0]
        self._reactor = reactor
        self._is_by_lines = is_by_lines
        self._output: list[bytes] = []
        self._error_line = b""
        self._last_error = ""
        self._timer: Any = None
        self._has_exited = False
        self.done: Deferred[bytes | None] = Deferred(lambda _: self.end())
        self.ended: Deferred[None] = Deferred()

    def outReceived(self, data: bytes) -> None:
        """Takes output."""
        if not self._is_by_lines:
            self._output.append(data)
            return
        head, newline, rest = data.rpartition(b"\n")
        if newline:
            self._send(b"".join([*self._output, head, newline]))
            self._output = []
        if rest:
            self._output.append(rest)

    def errReceived(self, data: bytes) -> None:
        """Takes complaints, for the log and for what the client is told."""
        *lines, rest = (self._error_line + data).split(b"\n")
        self._error_line = rest[:_MAX_LINE_BYTES]
        for line in lines:
            self._log_line(line)

    def processExited(self, reason: Failure) -> None:
        """It has ended; what it has put out may still be unread."""
        self._has_exited = True
        # Unless something that it has left behind has the output open too: then that is not waited for.
        self._wait(_READ_PATIENCE, self.transport.loseConnection)

    def processEnded(self, reason: Failure) -> None:
        """It has ended, and all of its output was read."""
        self._cancel_timer()
        if self._error_line:
            self._log_line(self._error_line)
        if not self.done.called:
            self._tell(reason.value)
        self.ended.callback(None)

    def end(self) -> None:
        """Tells the command to end."""
        self._signal("TERM")
        if not self._has_exited:
            self._wait(_END_PATIENCE, self._signal, "KILL")

    def _wait(self, seconds: float, call: Callable[..., object], *args: object) -> None:
        self._cancel_timer()
        self._timer = self._reactor.callLater(seconds, call, *args)

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _tell(self, error: BaseException | None) -> None:
        output = b"".join(self._output)
        if not isinstance(error, ProcessTerminated):
            self.done.callback(output)
            return
        if output:
            # As gearman -w does it.
            self._send(output)
        if error.signal is not None:
            text = f"{self._name} was ended by signal {error.signal}"
        else:
            text = f"{self._name} ended with status {error.exitCode}"
        if self._last_error:
            text = f"{text}: {self._last_error}"
        # The command's name may be any bytes.
        warning = text.encode(errors="backslashreplace")
        self.job.send_warning(warning[: self.job.max_data_bytes])
        self.done.errback(JobFailed(text, function=self.job.function, handle=self.job.handle))

    def _send(self, data: bytes) -> None:
        """Sends output ahead, in as many parts as it takes."""
        size = self.job.max_data_bytes
        for start in range(0, len(data), size):
            self.job.send_data(data[start : start + size])

    def _signal(self, name: str) -> None:
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess(name)

    def _log_line(self, line: bytes) -> None:
        text = line[:_MAX_LINE_BYTES].decode("utf-8", "replace").rstrip()
        if text:
            self._last_error = text
            _log.info("{job}: {command} wrote: {text}", job=self.job, command=self._name, text=text)
