"""The options of ``twistd gearman``, and the service that they describe.

Whatever is wrong with the options, the ports or the store ends the process here, in the foreground,
with one line on standard error and status 1.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any, NoReturn

from twisted.internet.error import CannotListenError
from twisted.logger import Logger
from twisted.python.failure import Failure

from gearman_twisted.commands.startup import collect_seldom, say_where
from gearman_twisted.commands.twistd.options import OneLineOptions
from gearman_twisted.engine.settings import size
from gearman_twisted.errors import ConfigError, GearmanError
from gearman_twisted.package import __version__
from gearman_twisted.runtime.signals import stop_quietly_on_sigterm
from gearman_twisted.server.listening import server_endpoints, why_cannot_listen
from gearman_twisted.server.service import JobServerService
from gearman_twisted.server.settings import default_settings
from gearman_twisted.store import installed_stores, open_store

_log = Logger()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


class Options(OneLineOptions):
    """What ``twistd gearman`` takes."""

    command = "twistd gearman"
    synopsis = "[options]"
    longdesc = """A Gearman job server, durable by default: when a client is told that a background job was
created, the job is on disk."""

    examples = """Examples:
  twistd -n gearman                                in the foreground, on loopback, jobs in ./gearman.db
  twistd -n gearman --listen 0.0.0.0:4730          reachable from other machines
  twistd gearman --store sqlite:/var/lib/gearman.db
  twistd gearman --store memory:                   nothing survives a restart
  twistd gearman --memory 1G                       what is beyond that waits in the store alone"""

    optParameters = [
        ["store", "s", "sqlite:gearman.db", "Where background jobs are kept; see --help-store."],
        [
            "job-retries",
            "j",
            "-1",
            "Attempts of a job whose worker is lost; -1 for no limit, 0 or 1 for one.",
        ],
        [
            "order",
            "o",
            "2.0",
            "The order of jobs for a worker of several functions: 2.0 or 1.1, as in gearmand.",
        ],
        [
            "memory",
            "m",
            None,
            "What workloads may take; other jobs wait in the store.  [default: no limit]",
        ],
        ["save-timeout", None, "30", "Seconds that a job waits for a store that cannot be reached."],
        ["handle-prefix", None, None, "What job handles start with.  [default: H: and the host's name]"],
    ]
    optFlags = [
        ["allow-shutdown", None, "Let the text command `shutdown` end the server."],
        ["exceptions", None, "Send WORK_EXCEPTION to every client, not only to those that ask for it."],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []
        self["http"] = []

    def opt_listen(self, endpoint: str) -> None:
        """Where to listen, repeatable: PORT (on loopback), HOST:PORT, [::1]:PORT, *:PORT (all addresses), or
        any Twisted endpoint string such as unix:/run/gearman.  [default: 4730]
        """  # noqa: D205, D415  # usage.Options prints it as it stands
        self["listen"].append(endpoint)

    opt_l = opt_listen

    def opt_http(self, endpoint: str) -> None:
        """Where to take jobs over HTTP, repeatable, written as for --listen.  [default: nowhere]"""  # noqa: D415
        self["http"].append(endpoint)

    def opt_help_store(self) -> NoReturn:
        """Show which stores are installed and how their URLs are written, and exit."""
        for factory in installed_stores():
            _say(f"{factory.scheme}: {factory.summary}")
            _say("".join(f"    {line}\n" for line in factory.argument_help.splitlines()))
        raise SystemExit(0)

    def opt_version(self) -> NoReturn:
        """Show the version of gearman_twisted, and exit."""
        _say(f"gearman_twisted {__version__}")
        raise SystemExit(0)


def makeService(options: Options) -> JobServerService:
    """The job server that the options describe, with its ports taken and its store looked at."""
    from twisted.internet import reactor as installed_reactor

    reactor: Any = installed_reactor
    try:
        retries = int(options["job-retries"])
    except ValueError:
        options.refuse(f"--job-retries takes a number, not {options['job-retries']!r}")
    try:
        save_timeout = float(options["save-timeout"])
    except ValueError:
        options.refuse(f"--save-timeout takes seconds, not {options['save-timeout']!r}")
    changes: dict[str, Any] = {
        "job_retries": retries,
        "save_timeout": save_timeout,
        "exceptions": bool(options["exceptions"]),
        "order": options["order"],
        "allows_shutdown": bool(options["allow-shutdown"]),
    }
    if options["handle-prefix"] is not None:
        changes["handle_prefix"] = os.fsencode(options["handle-prefix"])
    if options["memory"] is not None:
        try:
            changes["memory"] = size(options["memory"])
        except ConfigError as error:
            options.refuse(f"--memory {error}")
    try:
        store = open_store(options["store"], reactor)
        store.check()
        endpoints = [end for text in options["listen"] or ["4730"] for end in server_endpoints(reactor, text)]
        http_endpoints = [end for text in options["http"] for end in server_endpoints(reactor, text)]
        service = JobServerService(
            reactor,
            endpoints,
            store,
            settings=default_settings(**changes),
            http_endpoints=http_endpoints,
            on_shutdown=reactor.stop,
        )
        service.listen()
    except CannotListenError as error:
        option = "--listen or --http" if options["http"] else "--listen"
        options.refuse(f"{why_cannot_listen(error)}; choose another place with {option}")
    except GearmanError as error:
        options.refuse(str(error))
    stop_quietly_on_sigterm(reactor)
    service.when_ready().addErrback(_give_up, reactor)
    speaks_tls = [text.lower().startswith("ssl:") for text in options["listen"]]
    say_where(service, store.description, tls=bool(speaks_tls) and all(speaks_tls))
    # Not before: the process may be about to go to the background.
    reactor.callWhenRunning(collect_seldom)
    return service


def _give_up(failure: Failure, reactor: Any) -> None:
    """The store failed after the process had gone to the background: says so in the log, and ends with 1."""
    if isinstance(failure.value, GearmanError):
        _log.critical("gearman cannot start: {reason}", reason=failure.getErrorMessage())
    else:
        _log.failure("gearman cannot start", failure)
    # twistd has no other way to end with a status; its log and its pid file are closed by then.
    atexit.register(os._exit, 1)
    reactor.stop()
