"""The command ``twistd gearman``: its options, and the service that they describe.

Whatever is wrong with the options, the ports or the store ends the process here, in the foreground, with one
line on standard error and status 1.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from typing import Any, NoReturn

from twisted.internet.error import CannotListenError
from twisted.logger import Logger
from twisted.python.failure import Failure

from gearman_twisted.commands.startup import make_service, say_where, tune_memory
from gearman_twisted.commands.twistd.log import reopen_log_files
from gearman_twisted.commands.twistd.options import OneLineOptions
from gearman_twisted.engine.outbox import Shutdown
from gearman_twisted.errors import ConfigError, GearmanError
from gearman_twisted.runtime.clocks import use_steady_clock
from gearman_twisted.runtime.signals import call_on_signal, stop_quietly_on_sigterm
from gearman_twisted.server.listening import why_cannot_listen
from gearman_twisted.server.service import JobServerService
from gearman_twisted.server.settings import (
    JOBS,
    MEMORY,
    NETWORK,
    STORE,
    ServiceSettings,
    fields_of,
    offered,
    warnings_of,
)
from gearman_twisted.store import installed_stores, open_store

_log = Logger()


def _group(title: str) -> list[str]:
    return [option.long for setting, option in offered("twistd") if setting.group == title]


class ServerOptions(OneLineOptions):
    """What ``twistd gearman`` takes, made of the table of settings.

    Attributes:
        settings: what was given, by the names of the settings.
    """

    command = "twistd gearman"
    synopsis = "[options]"
    longdesc = """\
A Gearman job server, durable by default: when a client is told that a background job was created, the job is
on disk."""
    examples = """\
examples:
  twistd -n gearman                                in the foreground, on loopback, jobs in ./gearman.db
  twistd -n gearman --listen 0.0.0.0:4730          reachable from other machines
  twistd gearman --store sqlite:/var/lib/gearman.db
  twistd gearman --store memory:                   nothing survives a restart
  twistd gearman --memory 1G                       stored jobs beyond it wait in the store

The protocol knows no passwords: anyone who reaches the port can run, read and cancel jobs.

signals: TERM and INT end it; USR1 ends it when no job is left; HUP reopens the log file.

exit status: 0 if a signal or `shutdown` ended it; 1 if it could not start.
"""

    optParameters = [
        [option.long, option.short or None, None, setting.help_of(option)]
        for setting, option in offered("twistd")
        if setting.read is not None and not setting.is_repeatable
    ]
    optFlags = [
        [option.long, option.short or None, setting.help]
        for setting, option in offered("twistd")
        if setting.read is None
    ]
    groups = (
        *((title, _group(title)) for title in (NETWORK, STORE, JOBS, MEMORY)),
        ("information", ["help", "help-store", "version"]),
    )
    takes = {option.long: setting.takes for setting, option in offered("twistd")}

    def __init__(self) -> None:
        super().__init__()
        for setting, option in offered("twistd"):
            if setting.is_repeatable:
                self[option.long] = []
                self.docs[option.long] = setting.help_of(option)

    def opt_listen(self, place: str) -> None:
        """Take a place to listen."""
        self["listen"].append(place)

    opt_l = opt_listen

    def opt_http(self, place: str) -> None:
        """Take a place to listen for HTTP."""
        self["http"].append(place)

    def opt_help_store(self) -> NoReturn:
        """show the stores and how their URLs are written, and exit"""  # noqa: D403, D415
        for factory in installed_stores():
            sys.stdout.write(f"{factory.scheme}: {factory.summary}\n")
            sys.stdout.writelines(f"    {line}\n" for line in [*factory.argument_help.splitlines(), ""])
        raise SystemExit(0)

    def postOptions(self) -> None:
        super().postOptions()
        self.settings: dict[str, Any] = {}
        for setting, option in offered("twistd"):
            given = self[option.long]
            try:
                if setting.is_repeatable:
                    if given:
                        self.settings[setting.name] = tuple(map(setting.value, given))
                elif setting.read is None:
                    self.settings[setting.name] = bool(given)
                elif given is not None:
                    self.settings[setting.name] = setting.value(given)
            except ConfigError as error:
                self.refuse(f"--{option.long} {error}; see {self.command} --help")


# twistd looks for this name.
Options = ServerOptions


def makeService(options: ServerOptions) -> JobServerService:
    """Return the job server that the options describe, with its ports taken and its store checked."""
    from twisted.internet import reactor as installed_reactor

    reactor: Any = installed_reactor
    use_steady_clock(reactor)
    given = ServiceSettings(**fields_of(ServiceSettings, options.settings))
    for warning in warnings_of(options.settings):
        sys.stderr.write(f"{options.command}: {warning}\n")
    try:
        store = open_store(given.store, reactor)
        store.check()
        service, speak_tls = make_service(
            reactor, options.settings, store, listen=given.listen, http=given.http
        )
        service.listen()
    except CannotListenError as error:
        option = "--listen or --http" if given.http else "--listen"
        options.refuse(f"{why_cannot_listen(error)}; choose another place with {option}")
    except GearmanError as error:
        options.refuse(str(error))
    stop_quietly_on_sigterm(reactor)
    call_on_signal(reactor, signal.SIGUSR1, lambda: service.shutdown(Shutdown.GRACEFUL))
    call_on_signal(reactor, signal.SIGHUP, reopen_log_files)
    service.when_ready().addErrback(_give_up, reactor)
    say_where(service, store.description, speak_tls)
    # Not before: the process may be about to go to the background.
    reactor.callWhenRunning(tune_memory)
    return service


def _give_up(failure: Failure, reactor: Any) -> None:
    """End the process with 1 as the store failed after it had gone to the background; the log says why."""
    if isinstance(failure.value, GearmanError):
        _log.critical("cannot start: {reason}", reason=failure.getErrorMessage())
    else:
        _log.failure("cannot start", failure)
    # twistd has no other way to end with a status; its log and its pid file are closed by then.
    atexit.register(os._exit, 1)
    reactor.stop()
