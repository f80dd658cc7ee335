"""The options of ``twistd gearman``, and the service that they describe.

Whatever is wrong with the options, the ports or the store ends the process here, in the foreground,
with one line on standard error and status 1.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import CannotListenError
from twisted.logger import Logger
from twisted.python.failure import Failure

from gearman_twisted import __version__
from gearman_twisted.address import server_endpoints
from gearman_twisted.errors import GearmanError
from gearman_twisted.options import OneLineOptions
from gearman_twisted.service import JobServerService, default_settings, describe_address
from gearman_twisted.signals import stop_quietly_on_sigterm
from gearman_twisted.store import installed_stores, open_store

_log = Logger()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


class Options(OneLineOptions):
    """What ``twistd gearman`` takes."""

    command = "twistd gearman"
    synopsis = "[options]"
    longdesc = """A Gearman job server, durable by default: when a client is told that a background job was
created, the job is on disk.

Examples:
  twistd -n gearman                                in the foreground, on loopback, jobs in ./gearman.db
  twistd -n gearman --listen 0.0.0.0:4730          reachable from other machines
  twistd gearman --store sqlite:/var/lib/gearman.db
  twistd gearman --store memory:                   nothing survives a restart"""

    optParameters = [
        ["store", "s", "sqlite:gearman.db", "Where background jobs are kept; see --help-store."],
        [
            "job-retries",
            "j",
            "-1",
            "Attempts of a job whose worker is lost; -1 for no limit, 0 or 1 for one.",
        ],
        ["handle-prefix", None, None, "What job handles start with.  [default: H: and the host's name]"],
    ]
    optFlags = [
        ["exceptions", None, "Send WORK_EXCEPTION to every client, not only to those that ask for it."]
    ]

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []

    def opt_listen(self, endpoint: str) -> None:
        """Where to listen, repeatable: PORT (on loopback), HOST:PORT, [::1]:PORT, *:PORT (all addresses), or
        any Twisted endpoint string such as unix:/run/gearman.  [default: 4730]
        """  # noqa: D205, D415  # usage.Options prints it as it stands
        self["listen"].append(endpoint)

    opt_l = opt_listen

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
    changes: dict[str, Any] = {"job_retries": retries, "exceptions": bool(options["exceptions"])}
    if options["handle-prefix"] is not None:
        changes["handle_prefix"] = os.fsencode(options["handle-prefix"])
    try:
        store = open_store(options["store"], reactor)
        store.check()
        endpoints = [end for text in options["listen"] or ["4730"] for end in server_endpoints(reactor, text)]
        service = JobServerService(reactor, endpoints, store, settings=default_settings(**changes))
        service.listen()
    except CannotListenError as error:
        host = f"[{error.interface}]" if ":" in str(error.interface) else error.interface
        where = f"{host}:{error.port}" if isinstance(error.port, int) else str(error.port)
        reason = getattr(error.socketError, "strerror", None) or error.socketError
        options.refuse(f"cannot listen on {where}: {reason}; choose another place with --listen")
    except GearmanError as error:
        options.refuse(str(error))
    stop_quietly_on_sigterm(reactor)
    service.when_ready().addErrback(_give_up, reactor)
    _say_where(service, store.description)
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


def _say_where(service: JobServerService, store: str) -> None:
    addresses = [describe_address(address) for address in service.addresses]
    _say(f"gearman_twisted {__version__}")
    _say(f"  listening on   {', '.join(addresses)}")
    _say(f"  keeping jobs   {store}")
    tcp = next((a for a in service.addresses if isinstance(a, IPv4Address | IPv6Address)), None)
    if tcp is not None:
        beside = Path(sys.executable).with_name("gearman")
        command = str(beside) if beside.exists() and not shutil.which("gearman") else "gearman"
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(tcp.host, tcp.host)
        _say(f"  try it         {command} -h {host} -p {tcp.port} -v -b -f reverse 'Hello World!'")
    sys.stdout.flush()
