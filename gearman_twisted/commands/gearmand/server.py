"""One run of ``gearmand``, in the order that matters: ports, user, log, store, pid file, reactor.

What is imported is imported before the user changes, as another user may not be able to read our files.
"""

from __future__ import annotations

import os
import shlex
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from twisted.logger import Logger, globalLogBeginner
from twisted.python.failure import Failure

from gearman_twisted.commands.gearmand.log import LevelObserver, LogFile, LogSink, StandardError, Syslog
from gearman_twisted.commands.gearmand.options import GearmandOptions
from gearman_twisted.commands.gearmand.parser import DEFAULT_LOG_FILE, LEVELS, TLS_FILES
from gearman_twisted.commands.gearmand.privileges import become_user, find_user, limit_descriptors
from gearman_twisted.commands.process import pid_file
from gearman_twisted.commands.startup import make_service, say_where, tune_memory
from gearman_twisted.engine.outbox import Shutdown
from gearman_twisted.errors import ConfigError, StoreConfigError
from gearman_twisted.package import __version__
from gearman_twisted.runtime.clocks import use_steady_clock
from gearman_twisted.runtime.signals import call_on_signal, stop_quietly_on_sigterm
from gearman_twisted.runtime.tls import ServerTls, require_tls
from gearman_twisted.server.service import JobServerService
from gearman_twisted.store import open_store
from gearman_twisted.store.contract import IJobStore

_log = Logger()


def complain(text: str) -> None:
    """Write a line to standard error that begins with the name of the command."""
    sys.stderr.write(f"gearmand: {' '.join(text.split())}\n")
    sys.stderr.flush()


class Gearmand:
    """One run of the server.

    Args:
        options: what was asked for.
        ready: called once nothing can go wrong any more.
    """

    def __init__(self, options: GearmandOptions, ready: Callable[[], None]) -> None:
        from twisted.internet import reactor

        self._options = options
        self._ready = ready
        self._reactor: Any = reactor
        use_steady_clock(reactor)
        self._log_file: LogFile | None = None
        self._failure: Failure | None = None
        self._speak_tls: list[bool] = []

    def run(self) -> None:
        """Serve until told to stop.

        Raises:
            CannotListenError: a port is taken.
            GearmanError: the store cannot be used, or an option has no effect on this machine.
            OSError: the pid file cannot be written.
        """
        options = self._options
        user = find_user(options.user) if options.user is not None else None
        if options.file_descriptors:
            limit_descriptors(options.file_descriptors)
        if options.store is None:
            options.queue.give_password()
        store = open_store(options.store_url, self._reactor)
        service = self._make_service(store)
        service.listen()
        # DIFFERS: gearmand does this first, and so cannot have a port below 1024.
        if user is not None:
            become_user(user)
        self._begin_logging()
        self._check(store)
        with pid_file(options.pid_file):
            self._serve(service, store)
        if self._failure is not None:
            self._failure.raiseException()

    def _make_service(self, store: IJobStore) -> JobServerService:
        options = self._options
        service, self._speak_tls = make_service(
            self._reactor,
            options.settings,
            store,
            listen=[options.address],
            http=[options.http_address] if options.protocols else [],
            tls=_tls(options),
            log_level=options.verbose,
            notes_accepted=LEVELS.index(options.verbose) >= LEVELS.index("NOTICE"),
        )
        return service

    def _check(self, store: IJobStore) -> None:
        """Check the store while somebody reads what is wrong with it."""
        options = self._options
        try:
            store.check()
        except StoreConfigError as error:
            path = options.libsqlite3_db if options.queue_type == "libsqlite3" else None
            if path is None or not _is_queue_of_gearmand(path, options.libsqlite3_table):
                raise
            table = f"?table={options.libsqlite3_table}" if options.libsqlite3_table else ""
            source = shlex.quote(f"sqlite:{path}{table}")
            raise StoreConfigError(
                f"{path} is the queue of the original gearmand and was left as it is: give --libsqlite3-db a "
                f"new file, and bring its jobs there with gearman-store import {source} sqlite:NEW"
            ) from error
        if options.store is None:
            left = options.queue.left_behind()
            if left is not None:
                complain(left)
                options.notes.append(left)

    def _begin_logging(self) -> None:
        options = self._options
        sinks: list[LogSink] = []
        if options.log_file == "stderr":
            sinks.append(StandardError())
        elif options.log_file != "none":
            try:
                self._log_file = LogFile(options.log_file or DEFAULT_LOG_FILE)
                sinks.append(self._log_file)
            except OSError as error:
                instead = "stderr, which ends when it is in the background" if options.daemon else "stderr"
                complain(f"cannot open the log file {error.filename}: {error.strerror}; logging to {instead}")
                sinks.append(StandardError())
        if options.syslog:
            sinks.append(Syslog())
        globalLogBeginner.beginLoggingTo([LevelObserver(options.verbose, sinks)], redirectStandardIO=False)

    def _serve(self, service: JobServerService, store: IJobStore) -> None:
        reactor = self._reactor
        _log.info("gearmand {version} starts with pid {pid}", version=__version__, pid=os.getpid())
        for note in self._options.notes:
            _log.info("{note}", note=note, gearmand_level="NOTICE")

        def started(_jobs: int) -> None:
            if not self._options.daemon:
                with suppress(OSError):  # nobody reads it
                    say_where(service, store.description, self._speak_tls)
            self._ready()

        def failed(failure: Failure) -> None:
            self._failure = failure
            if self._log_file is not None:  # on standard error it will stand anyway
                _log.critical(
                    "cannot start: {reason}", reason=failure.getErrorMessage(), gearmand_level="FATAL"
                )
            reactor.stop()

        stop_quietly_on_sigterm(reactor)
        call_on_signal(reactor, signal.SIGUSR1, lambda: service.shutdown(Shutdown.GRACEFUL))
        call_on_signal(reactor, signal.SIGHUP, self._reopen_log)
        service.when_ready().addCallbacks(started, failed)
        reactor.callWhenRunning(tune_memory)
        reactor.callWhenRunning(service.startService)
        reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
        reactor.run()
        _log.info("gearmand has ended")

    def _reopen_log(self) -> None:
        # DIFFERS: gearmand makes a file of the name "stderr" or "none" then.
        if self._log_file is not None:
            try:
                self._log_file.reopen()
            except OSError as error:
                _log.error(
                    "cannot reopen log file {path}: {reason}; still using the old one",
                    path=error.filename,
                    reason=error.strerror,
                )


def _tls(options: GearmandOptions) -> ServerTls | None:
    if not options.ssl:
        return None
    require_tls()
    try:
        return ServerTls(options.ssl_certificate, options.ssl_key, options.ssl_ca_file)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; name another one with --ssl-certificate, --ssl-key and --ssl-ca-file, or with "
            f"{', '.join(variable for _, variable, _, _ in TLS_FILES)} in the environment"
        ) from error


def _is_queue_of_gearmand(path: str, table: str | None) -> bool:
    """Return whether a file that is not ours has the table of the original's jobs."""
    try:
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?immutable=1", uri=True)) as file:
            found = file.execute(
                "SELECT 1 FROM sqlite_master WHERE name = ?", (table or "gearman_queue",)
            ).fetchone()
    except sqlite3.Error:
        return False
    return found is not None
