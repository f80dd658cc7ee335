"""What ``gearman -w`` does: a worker of one command, or one that prints workloads."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, BinaryIO

from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import LogLevel

from gearman_twisted.commands.arguments import GearmanOptions
from gearman_twisted.commands.endpoint import FirstThatConnects
from gearman_twisted.commands.gearman.command import run_command
from gearman_twisted.commands.process import complain
from gearman_twisted.commands.reactor import log_to_stderr
from gearman_twisted.errors import JobFailed
from gearman_twisted.runtime.signals import stop_quietly_on_sigterm
from gearman_twisted.runtime.tls import ClientTls
from gearman_twisted.worker.job import Job
from gearman_twisted.worker.on_twisted import GearmanWorker

# A job is waited for to its end, however long it takes: SIGKILL ends it at once.
_FOR_EVER = 1e9


class WorkerCommand:
    """One run of ``gearman -w``: one job at a time, from all servers.

    Args:
        reactor: what it runs in.
        options: what to do.
        addresses: the servers.
        tls: how to connect to them with TLS; None for without.
        stdout: where workloads are written if there is no command.

    Raises:
        ConfigError: an address is invalid.
        LocalProtocolError: a function's name cannot be sent.
    """

    def __init__(
        self,
        reactor: Any,
        options: GearmanOptions,
        addresses: list[str],
        tls: ClientTls | None,
        stdout: BinaryIO,
    ) -> None:
        self._reactor = reactor
        self._options = options
        self._stdout = stdout
        self._is_counting = options.count > 0
        self._rounds_left = options.count
        self._idle_timer: IDelayedCall | None = None
        self._stopped: Deferred[Any] | None = None
        self._was_connected = False
        self._is_broken = False
        servers = [_ServerWatch(self, reactor, address, tls).endpoint for address in addresses]
        self._worker = GearmanWorker(
            servers,
            reactor=reactor,
            drain_timeout=_FOR_EVER,
            max_packet_bytes=options.max_packet_bytes,
        )
        for function in options.functions:
            self._worker.register(os.fsencode(function), self._work)

    def run(self) -> int:
        """Work until the rounds are done, or SIGTERM or SIGINT comes.

        Returns:
            The exit status: 1 if no server was ever reached, or nobody reads what is printed.
        """
        log_to_stderr(LogLevel.warn)
        stop_quietly_on_sigterm(self._reactor)
        self._reactor.addSystemEventTrigger("before", "shutdown", self._stop)
        self._reactor.callWhenRunning(self._start)
        self._reactor.run()
        # One that was told to stop before the server came has done what it was told.
        gave_up = self._is_counting and self._rounds_left <= 0 and not self._was_connected
        return 1 if gave_up or self._is_broken else 0

    def connected(self) -> None:
        """Note that a server was connected to."""
        self._was_connected = True

    def _start(self) -> None:
        self._worker.startService()
        self._wait_for_job()

    def _stop(self) -> Deferred[Any]:
        """Let the running job end, and disconnect. Idempotent."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        if self._stopped is None:
            self._stopped = self._worker.stopService()
        return self._stopped

    def _end_round(self) -> None:
        """Take no more jobs if this was the last one of ``-c``."""
        if self._is_counting:
            self._rounds_left -= 1
            if self._rounds_left == 0:
                self._leave()

    def _leave(self) -> None:
        self._stop().addBoth(self._stop_reactor)

    def _stop_reactor(self, result: object) -> object:
        with suppress(ReactorNotRunning):  # a signal came first
            self._reactor.stop()
        return result

    def _wait_for_job(self) -> None:
        # DIFFERS: there, the timeout is an error message each time. It only matters for -c.
        if self._options.timeout_ms > 0 and self._is_counting and self._stopped is None:
            self._idle_timer = self._reactor.callLater(self._options.timeout_ms / 1000, self._waited)

    def _waited(self) -> None:
        self._idle_timer = None
        self._end_round()
        self._wait_for_job()

    async def _work(self, job: Job) -> bytes:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        # Before the work: the worker asks for the next job together with the end of this one.
        self._end_round()
        try:
            if not self._options.words:
                self._print(job)
                return b""
            return await run_command(self._reactor, self._options.words, job, self._options.lines)
        except JobFailed as error:
            complain(str(error))
            raise
        finally:
            self._wait_for_job()

    def _print(self, job: Job) -> None:
        try:
            self._stdout.write(job.workload)
            self._stdout.flush()
        except OSError as error:
            self._is_broken = True
            self._leave()
            text = f"cannot write to standard output: {error.strerror}"
            raise JobFailed(text, function=job.function, handle=job.handle) from error


class _ServerWatch:
    """Tells of a server that is down: once, and once when it is back."""

    def __init__(self, command: WorkerCommand, reactor: Any, address: str, tls: ClientTls | None) -> None:
        self._command = command
        self._address = address
        self._is_down = False
        self.endpoint = FirstThatConnects(reactor, [address], self._connected, self._failed, tls=tls)

    def _connected(self) -> None:
        if self._is_down:
            complain(f"connected to {self._address}")
        self._is_down = False
        self._command.connected()

    def _failed(self, reason: str) -> None:
        # DIFFERS: there, it is tried again without a pause, and the error printed each time.
        if not self._is_down:
            complain(f"cannot connect to {self._address}, goes on trying: {reason}")
        self._is_down = True
