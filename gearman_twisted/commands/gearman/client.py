"""``gearman`` as a client: jobs in, results out, one exit status for all of them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from gearman_twisted.client.on_twisted import GearmanClient
from gearman_twisted.client.session import JobStatus
from gearman_twisted.commands.arguments import GearmanOptions
from gearman_twisted.commands.endpoint import FirstThatConnects
from gearman_twisted.commands.gearman.terminal import ProgressBar
from gearman_twisted.commands.gearman.unique import unique_of
from gearman_twisted.commands.process import complain
from gearman_twisted.errors import (
    ConnectionLost,
    GearmanError,
    JobException,
    JobFailed,
    LocalProtocolError,
    NoServers,
    RemoteProtocolError,
    ServerError,
)
from gearman_twisted.runtime.tls import ClientTls
from gearman_twisted.wire.constants import Priority

_PRIORITIES = {"high": Priority.HIGH, "normal": Priority.NORMAL, "low": Priority.LOW}

# Seconds after which a job without a worker is mentioned.
_LOOK_AFTER = 2.0

_T = TypeVar("_T")


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
    return os.fsencode(option) or str(uuid.uuid4()).encode()


class ClientCommand:
    """One run of ``gearman`` as a client.

    Args:
        reactor: what it runs in.
        options: what to do.
        addresses: the servers; the first that can be connected to is used.
        tls: how to connect to them with TLS; None for without.
        stdin: where data is read.
        stdout: where results are written.
        stderr: where warnings and failures are written. On a terminal it also says that no worker takes a
            job, and how far one is if results go to a terminal too.

    Raises:
        ConfigError: an address is invalid.
    """

    def __init__(
        self,
        reactor: Any,
        options: GearmanOptions,
        addresses: list[str],
        tls: ClientTls | None,
        *,
        stdin: BinaryIO,
        stdout: BinaryIO,
        stderr: BinaryIO,
    ) -> None:
        self._reactor = reactor
        self._options = options
        self._stdin = stdin
        self._stdout = stdout
        self._stderr = stderr
        # DIFFERS: there, nobody asks for exceptions, and a failed job never says why.
        self._client = GearmanClient(
            FirstThatConnects(reactor, addresses, tls=tls),
            reactor=reactor,
            max_packet_bytes=options.max_packet_bytes,
        )
        self._is_server_gone = False
        self._bar = ProgressBar(stderr) if stderr.isatty() and stdout.isatty() else None

    async def run(self) -> int:
        """Run all jobs: those of one workload concurrently, one workload after the other.

        Returns:
            The exit status: 0 if all jobs ended well.
        """
        status = 0
        for workload in workloads(self._options, self._stdin):
            # Input was waited for: whatever happened to the connection meanwhile is noticed before it is
            # used, so that a restarted server is connected to again.
            await deferLater(self._reactor, 0)
            runs = [
                Deferred.fromCoroutine(self._run_job(os.fsencode(function), workload))
                for function in self._options.functions
            ]
            if not all([await run for run in runs]):
                status = 1
            if self._is_server_gone:
                break
        await self._client.close()
        return status

    async def _run_job(self, function: bytes, workload: bytes) -> bool:
        """Run one job to its end; return whether it succeeded, and print why not."""
        name = os.fsdecode(function)
        try:
            await self._submit(function, workload)
        except JobException as error:
            self._write(self._stderr, function, error.data + b"\n" * (not error.data.endswith(b"\n")))
            self._write(self._stderr, function, b"Job failed\n")
        except JobFailed:
            self._write(self._stderr, function, b"Job failed\n")
        except ServerError as error:
            # DIFFERS: there, these and all below are printed too, but the exit status is 0.
            complain(f"{name}: the server refused the job: {error}")
        except CancelledError:
            complain(f"{name}: no news of the job for {self._options.timeout_ms} ms (-t); it may still run")
        except LocalProtocolError as error:
            complain(str(error))
        except (NoServers, ConnectionLost, RemoteProtocolError) as error:
            if not self._is_server_gone:
                self._is_server_gone = True
                complain(str(error))
        else:
            return True
        return False

    async def _submit(self, function: bytes, workload: bytes) -> None:
        options = self._options
        unique = _unique(options.unique, workload)
        priority = _PRIORITIES[options.priority]
        if options.background:
            handle = await self._patiently(
                lambda _: self._client.submit_background(function, workload, unique=unique, priority=priority)
            )
            self._tell_created(handle)
            return

        def submit(news: Callable[[], None]) -> Deferred[bytes]:
            def created(handle: bytes) -> None:
                news()
                self._tell_created(handle)
                if self._stderr.isatty():
                    self._reactor.callLater(_LOOK_AFTER, self._look_at, function, handle)

            def data_came(data: bytes) -> None:
                news()
                self._write(self._stdout, function, data)

            def warned(data: bytes) -> None:
                news()
                self._write(self._stderr, function, data)

            def progressed(numerator: int, denominator: int) -> None:
                news()
                self._tell_status(function, numerator, denominator)

            return self._client.submit(
                function,
                workload,
                unique=unique,
                priority=priority,
                on_created=created,
                on_data=data_came,
                on_warning=warned,
                on_status=progressed,
            )

        self._write(self._stdout, function, await self._patiently(submit))

    async def _patiently(self, submit: Callable[[Callable[[], None]], Deferred[_T]]) -> _T:
        """Cancel what is submitted when there is no news of it for the time that the options allow."""
        # DIFFERS: there, a timeout of 0 makes every job fail at once.
        if self._options.timeout_ms <= 0:
            return await submit(lambda: None)
        seconds = self._options.timeout_ms / 1000
        deferred = submit(lambda: timer.reset(seconds))
        timer = self._reactor.callLater(seconds, deferred.cancel)
        try:
            return await deferred
        finally:
            if timer.active():
                timer.cancel()

    def _tell_created(self, handle: bytes) -> None:
        if self._options.verbose:
            self._stdout.write(b"Task created: %b\n" % handle)
            self._stdout.flush()

    def _look_at(self, function: bytes, handle: bytes) -> None:
        """Say so if no worker has taken a job yet."""

        def tell(status: JobStatus) -> None:
            if status.is_known and not status.is_running:
                name = os.fsdecode(function)
                complain(f"no worker has taken the job yet; gearadmin --status shows who offers {name}")

        def ignore(failure: Failure) -> None:
            # Whatever is wrong with the connection, the job itself says so.
            failure.trap(GearmanError)  # type: ignore[no-untyped-call]

        self._client.status(handle).addCallback(tell).addErrback(ignore)

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
