"""The command ``twistd gearman-worker``: a worker whose functions are named on the command line."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from twisted.application.service import IService

from gearman_twisted.address import client_endpoint
from gearman_twisted.engine.requests import check_client_id, check_function
from gearman_twisted.errors import GearmanError
from gearman_twisted.options import OneLineOptions
from gearman_twisted.signals import stop_quietly_on_sigterm
from gearman_twisted.worker import GearmanWorker, WorkerFunction

_DEFAULT_SERVER = "127.0.0.1:4730"


class Options(OneLineOptions):
    """The options of ``twistd gearman-worker``."""

    command = "twistd gearman-worker"
    synopsis = "[options]"
    longdesc = "Runs a Gearman worker: Python functions, called for the jobs of one or more job servers."

    optParameters = [
        [
            "concurrency",
            "c",
            "1",
            "How many jobs may run at a time; of use to functions that return Deferreds.",
        ],
        ["client-id", "i", None, "The name that the servers' command `workers` shows."],
        ["drain-timeout", "t", "10", "How many seconds SIGTERM waits for running jobs."],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["servers"] = []
        self["functions"] = {}

    def opt_server(self, address: str) -> None:
        """A job server, as HOST:PORT; may be given several times. [default: 127.0.0.1:4730]."""
        self["servers"].append(address)

    opt_s = opt_server

    def opt_function(self, text: str) -> None:
        """A function and what to call for it, as NAME=package.module:callable; once or more."""
        name, equals, target = text.rpartition("=")
        module, colon, path = target.partition(":")
        if not (name and equals and module and colon and path):
            Options.refuse(f"--function takes NAME=package.module:callable, not {text!r}")
        self["functions"][name] = (module, path)

    opt_f = opt_function

    def postOptions(self) -> None:
        """Checks all that can be, and imports the functions."""
        from twisted.internet import reactor

        self["servers"] = self["servers"] or [_DEFAULT_SERVER]
        if not self["functions"]:
            Options.refuse("no function given; use --function NAME=package.module:callable")
        self["concurrency"] = _whole_number(self["concurrency"])
        self["drain-timeout"] = _seconds(self["drain-timeout"])
        try:
            for server in self["servers"]:
                client_endpoint(reactor, server)
            for name in self["functions"]:
                check_function(name.encode())
            if self["client-id"] is not None:
                check_client_id(self["client-id"].encode())
        except GearmanError as error:
            Options.refuse(str(error))
        # twistd, as a script of its own, does not look for modules where it is started.
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.insert(0, here)
        self["functions"] = {name: _load(*target) for name, target in self["functions"].items()}


def makeService(options: Options) -> IService:
    """The worker that the options describe."""
    from twisted.internet import reactor

    worker = GearmanWorker(
        options["servers"],
        concurrency=options["concurrency"],
        client_id=options["client-id"],
        drain_timeout=options["drain-timeout"],
        reactor=reactor,
    )
    for name, function in options["functions"].items():
        worker.register(name, function)
    stop_quietly_on_sigterm(reactor)
    service: IService = worker
    return service


def _load(module: str, path: str) -> WorkerFunction:
    """What ``module:path`` names."""
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - whatever the user's module raises is a reason not to start
        Options.refuse(f"cannot import {module!r}: {type(error).__name__}: {error}")
    for name in path.split("."):
        if not hasattr(found, name):
            Options.refuse(f"{module!r} has no {path!r}")
        found = getattr(found, name)
    if not callable(found):
        Options.refuse(f"{module}:{path} is {type(found).__name__}, not something to call")
    function: WorkerFunction = found
    return function


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 1_000_000):
        Options.refuse(f"--concurrency takes a whole number of at least 1, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 4_000_000:
        Options.refuse(f"--drain-timeout takes seconds, 0 or more, not {text!r}")
    return seconds
