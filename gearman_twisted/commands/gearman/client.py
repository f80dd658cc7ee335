"""``gearman`` as a client: jobs in, results out, one exit status for all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, BinaryIO

from gearman_twisted.client.call import NO_CALLBACKS, Call, Callbacks, ReceiverOf
from gearman_twisted.client.connection import ClientConnection, ConnectionSettings
from gearman_twisted.client.requests import Request, status_request, submit_request
from gearman_twisted.client.session import JobStatus
from gearman_twisted.commands.arguments import GearmanOptions
from gearman_twisted.commands.blocking import ErrorLog, Line, Timers
from gearman_twisted.commands.connection import connect, tls_context
from gearman_twisted.commands.gearman.terminal import ProgressBar
from gearman_twisted.commands.gearman.unique import unique_of
from gearman_twisted.commands.process import complain
from gearman_twisted.commands.servers import TlsFiles
from gearman_twisted.errors import (
    ConnectionLost,
    JobException,
    JobFailed,
    LocalProtocolError,
    NoServers,
    RemoteProtocolError,
    ServerError,
)

# Seconds after which a job without a worker is mentioned.
_LOOK_AFTER = 2.0
# Seconds to wait for a connection.
_CONNECT_PATIENCE = 30.0
# Takes what a request brought, or its error.
_Ended = Callable[[Any, Exception | None], object]


def workloads(options: GearmanOptions, stdin: BinaryIO) -> Iterator[bytes]:
    """Yield the workloads: the words of the command line, or what is read from standard input."""
    if options.words:
        yield from map(os.fsencode, options.words)
    elif options.no_input:
        yield b""
    elif options.lines:
        # DIFFERS: there, lines of more than 8191 bytes become several jobs, an empty line is refused under
        # -N, and the last line loses a byte if it has no line end.
        for line in stdin:
            yield line.removesuffix(b"\n") if options.lines == "-N" else line
    else:
        yield stdin.read()


def _unique(option: str, workload: bytes) -> bytes:
    if option == "#":
        return unique_of(workload)
    # As libgearman does: gearmand's stores keep only one job of those without a unique.
    if option:
        return os.fsencode(option)
    import uuid

    return str(uuid.uuid4()).encode()


class ClientCommand:
    """One run of ``gearman`` as a client.

    Args:
        options: what to do.
        addresses: the servers; the first that can be connected to is used.
        files: those of TLS; None to connect without.
        stdin: where data is read.
        stdout: where results are written.
        stderr: where warnings and failures are written. On a terminal it also says that no worker takes a
            job, and how far one is if results go to a terminal too.

    Raises:
        ConfigError: a file of TLS cannot be used.
    """

    def __init__(
        self,
        options: GearmanOptions,
        addresses: list[str],
        files: TlsFiles | None,
        *,
        stdin: BinaryIO,
        stdout: BinaryIO,
        stderr: BinaryIO,
    ) -> None:
        if files is not None:
            tls_context(files)
        self._options = options
        self._addresses = addresses
        self._files = files
        self._stdin = stdin
        self._stdout = stdout
        self._stderr = stderr
        # DIFFERS: there, nobody asks for exceptions, and a failed job never says why.
        self._settings = ConnectionSettings(
            client_id=None, exceptions=True, ping_interval=30.0, max_packet_bytes=options.max_packet_bytes
        )
        self._timers = Timers()
        self._line: Line | None = None
        self._connection: ClientConnection | None = None
        # Jobs that have not ended, of one workload.
        self._running = 0
        self._status = 0
        self._is_server_gone = False
        self._fatal: Exception | None = None
        self._bar = ProgressBar(stderr) if stderr.isatty() and stdout.isatty() else None

    def run(self) -> int:
        """Run all jobs: those of one workload concurrently, one workload after the other.

        Returns:
            The exit status: 0 if all jobs ended well.

        Raises:
            ConfigError: an address is invalid.
            OSError: nothing can be written.
        """
        for workload in workloads(self._options, self._stdin):
            try:
                self._connect()
            except NoServers as error:
                complain(str(error))
                return 1
            for function in self._options.functions:
                self._submit(os.fsencode(function), workload)
            while self._running and self._fatal is None:
                assert self._line is not None
                self._line.turn(self._timers)
            if self._fatal is not None:
                raise self._fatal
            if self._is_server_gone:
                break
        return self._status

    def _connect(self) -> None:
        """Connect, unless there is a connection."""
        if self._line is not None:
            # Input was waited for: whatever happened to the connection meanwhile is noticed before it is
            # used, so that a restarted server is connected to again.
            self._line.turn(self._timers, waits=False)
            if self._line.is_open:
                return
        seconds = self._options.timeout_ms / 1000
        patience = min(seconds, _CONNECT_PATIENCE) if seconds > 0 else _CONNECT_PATIENCE
        connected, address = connect(self._addresses, self._files, patience)
        self._connection = ClientConnection(self._timers, self._settings, address, ErrorLog())
        self._line = Line(connected, self._connection, is_tls=self._files is not None)

    def _begin(self, request: Request, ended: _Ended, callbacks: Callbacks = NO_CALLBACKS) -> Call:
        assert self._connection is not None
        call = Call(request, callbacks)
        call.receiver = ReceiverOf(ended)
        self._connection.begin(call)
        return call

    def _submit(self, function: bytes, workload: bytes) -> None:
        options = self._options
        seconds = options.timeout_ms / 1000
        news = monotonic()

        def heard() -> None:
            nonlocal news
            news = monotonic()

        def created(handle: bytes) -> None:
            heard()
            self._tell_created(handle)
            if self._stderr.isatty():
                self._timers.later(_LOOK_AFTER, lambda: self._look_at(function, handle))

        def data_came(data: bytes) -> None:
            heard()
            self._write(self._stdout, function, data)

        def warned(data: bytes) -> None:
            heard()
            self._write(self._stderr, function, data)

        def progressed(numerator: int, denominator: int) -> None:
            heard()
            self._tell_status(function, numerator, denominator)

        def ended(result: Any, error: Exception | None) -> None:
            self._running -= 1
            if error is not None:
                self._failed(function, error)
            elif options.background:
                self._tell_created(result)
            else:
                self._write(self._stdout, function, result)

        def look() -> None:
            left = news + seconds - monotonic()
            if not call.is_waiting:
                return
            if left > 0:
                self._timers.later(left, look)
                return
            call.cancel()
            self._running -= 1
            self._status = 1
            name = os.fsdecode(function)
            complain(f"{name}: no news of the job for {options.timeout_ms} ms (-t); it may still run")

        self._running += 1
        try:
            request = submit_request(
                function,
                workload,
                _unique(options.unique, workload),
                options.priority,
                background=options.background,
            )
        except LocalProtocolError as error:
            ended(None, error)
            return
        callbacks = NO_CALLBACKS if options.background else Callbacks(created, data_came, warned, progressed)
        call = self._begin(request, ended, callbacks)
        # DIFFERS: there, a timeout of 0 makes every job fail at once.
        if seconds > 0:
            self._timers.later(seconds, look)

    def _failed(self, function: bytes, error: Exception) -> None:
        """Print why a job failed."""
        self._status = 1
        if isinstance(error, JobFailed | JobException):
            if isinstance(error, JobException):
                data = error.data
                self._write(self._stderr, function, data + b"\n" * (not data.endswith(b"\n")))
            self._write(self._stderr, function, b"Job failed\n")
        elif isinstance(error, ServerError):
            # DIFFERS: there, these and all below are printed too, but the exit status is 0.
            complain(f"{os.fsdecode(function)}: the server refused the job: {error}")
        elif isinstance(error, LocalProtocolError):
            complain(str(error))
        elif isinstance(error, ConnectionLost | RemoteProtocolError):
            if not self._is_server_gone:
                self._is_server_gone = True
                complain(str(error))
        else:
            self._fatal = error

    def _tell_created(self, handle: bytes) -> None:
        if self._options.verbose:
            self._stdout.write(b"Task created: %b\n" % handle)
            self._stdout.flush()

    def _look_at(self, function: bytes, handle: bytes) -> None:
        """Say so if no worker has taken a job yet."""

        def answered(status: JobStatus | None, _error: Exception | None) -> None:
            # Whatever is wrong with the connection, the job itself says so.
            if status is not None and status.is_known and not status.is_running:
                name = os.fsdecode(function)
                complain(f"no worker has taken the job yet; gearadmin --status shows who offers {name}")

        self._begin(status_request(handle), answered)

    def _tell_status(self, function: bytes, numerator: int, denominator: int) -> None:
        # DIFFERS: there, a denominator of 0 kills the tool. Workers send it when they do not know the end.
        percent = numerator * 100 // denominator if denominator else 0
        if self._bar is not None:
            self._bar.show(function, percent)
        else:
            self._write(self._stdout, function, b"%d%% Complete\n" % percent)

    def _write(self, file: BinaryIO, function: bytes, data: bytes) -> None:
        if self._bar is not None:
            self._bar.clear()
        if self._options.prefix:
            file.write(b"%b: " % function)
        file.write(data)
        file.flush()
