"""A process of a supervised worker: the child's side of ``worker/service/supervisor.py``.

The settings come in by a pipe, as the first line; another line tells it to retire, and the pipe's end that
its supervisor is gone. What there is to report, and the log, go out by another pipe, a line of JSON each.
Standard output and error are left to the functions.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any, BinaryIO

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogBeginner
from zope.interface import provider

from gearman_twisted.errors import GearmanError
from gearman_twisted.runtime.clocks import use_steady_clock
from gearman_twisted.runtime.malloc import give_memory_back
from gearman_twisted.runtime.signals import stop_quietly_on_sigterm
from gearman_twisted.worker.service.config import WorkerConfig
from gearman_twisted.worker.service.configured import ConfiguredWorker, load_functions

# The child's ends of the pipes.
ORDERS_FD, REPORTS_FD = 3, 4

RETIRE = "retire"

# What is reported: it runs; it has a connection to a server; it takes no more jobs, and why; it cannot start,
# and why; something for the log.
RUNNING, CONNECTED, RETIRING, FAILED, LOG = "running", "connected", "retiring", "failed", "log"


def start_line(config: WorkerConfig, path: list[str]) -> bytes:
    """Return the first line for a child: its settings, and its module path."""
    return json.dumps([path, config.to_json()]).encode() + b"\n"


def check() -> None:
    """Import the functions of the settings on standard input; on failure, exit with a line and status 1."""
    try:
        load_functions(_settings(sys.stdin.buffer.readline()))
    except GearmanError as error:
        raise SystemExit(f"twistd gearman-worker: {' '.join(str(error).split())}") from None


def main() -> None:
    """Work until told to stop, the supervisor is gone, or its number of jobs or lifetime is reached."""
    from twisted.internet import reactor as installed_reactor

    reactor: Any = installed_reactor
    use_steady_clock(reactor)
    for descriptor in (ORDERS_FD, REPORTS_FD):
        os.set_inheritable(descriptor, False)
    # A hang-up of the terminal, sent to the whole group, is for the supervisor.
    signal.signal(signal.SIGHUP, lambda _number, _frame: None)
    stop_quietly_on_sigterm(reactor)
    give_memory_back()
    reports = _Reports()
    orders = os.fdopen(ORDERS_FD, "rb")
    _log_to(reports)
    line = orders.readline()
    if not line:
        raise SystemExit(1)
    try:
        config = _settings(line)
        worker = ConfiguredWorker(
            config,
            load_functions(config),
            reactor,
            on_ended=reactor.stop,
            on_connected=lambda: reports.send(CONNECTED),
            on_retiring=lambda reason: reports.send(RETIRING, reason),
        )
    except GearmanError as error:
        reports.send(FAILED, str(error))
        raise SystemExit(1) from None
    threading.Thread(target=_take_orders, args=(orders, worker, reactor), daemon=True).start()
    reactor.addSystemEventTrigger("before", "shutdown", worker.stopService)
    reactor.callWhenRunning(worker.startService)
    reactor.callWhenRunning(reports.send, RUNNING)
    reactor.run()


def _settings(line: bytes) -> WorkerConfig:
    sys.path[:], config = json.loads(line)
    return WorkerConfig.from_json(config)


def _take_orders(orders: BinaryIO, worker: ConfiguredWorker, reactor: Any) -> None:
    for line in orders:
        if line.decode().strip() == RETIRE:
            reactor.callFromThread(worker.retire, "another process takes its place")
    # The same as SIGTERM, so that it is asked for once at most.
    os.kill(os.getpid(), signal.SIGTERM)


class _Reports:
    """Sends lines to the supervisor, from any thread."""

    def __init__(self) -> None:
        self._pipe = os.fdopen(REPORTS_FD, "wb")
        self._lock = threading.RLock()

    def send(self, kind: str, text: str = "", level: str = "info") -> None:
        """Send a line. A no-op if nobody reads it."""
        line = json.dumps([kind, text, level]).encode() + b"\n"
        with self._lock, suppress(OSError, ValueError):
            self._pipe.write(line)
            self._pipe.flush()


def _log_to(reports: _Reports) -> None:
    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event["log_level"] < LogLevel.info:
            return
        text = formatEvent(event)
        failure = event.get("log_failure")
        if failure is not None:
            text = f"{text}\n{failure.getTraceback()}"
        reports.send(LOG, text, event["log_level"].name)

    globalLogBeginner.beginLoggingTo([observe], discardBuffer=True, redirectStandardIO=False)
