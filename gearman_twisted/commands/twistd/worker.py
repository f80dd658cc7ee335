"""The command ``twistd gearman-worker``: a worker whose functions are named on the command line or in a file.

Whatever is wrong with the options, the file or the functions ends the process here, in the foreground, with
one line on standard error and status 1.
"""

from __future__ import annotations

import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.application.service import IService
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

from gearman_twisted.commands.twistd.log import reopen_log_files
from gearman_twisted.commands.twistd.options import OneLineOptions
from gearman_twisted.errors import ConfigError, GearmanError
from gearman_twisted.runtime.address import client_endpoint
from gearman_twisted.runtime.clocks import use_steady_clock
from gearman_twisted.runtime.malloc import give_memory_back
from gearman_twisted.runtime.signals import call_on_signal, stop_quietly_on_sigterm
from gearman_twisted.worker.service.config import (
    FUNCTION_KEYS,
    KEYS,
    FunctionConfig,
    WorkerConfig,
    from_word,
    worker_config,
)
from gearman_twisted.worker.service.configured import ConfiguredWorker, load_functions, look_for_modules_in
from gearman_twisted.worker.service.supervisor import Supervisor, check_in_process

_log = Logger()

# Options with one value, which the file has under the same names, but for their hyphens.
_SETTINGS = ("concurrency", "client-id", "drain-timeout", "processes", "max-jobs", "max-lifetime")
# Names of functions and values may have dots and equals signs of their own.
_SET = re.compile(r"(?P<function>.+?)\.(?P<key>[^.=]+)=(?P<value>.*)", re.DOTALL)


class WorkerOptions(OneLineOptions):
    """What ``twistd gearman-worker`` takes."""

    command = "twistd gearman-worker"
    synopsis = "[options]"
    longdesc = "A Gearman worker: calls Python functions and commands for the jobs of its servers."

    examples = f"""\
examples:
  twistd -n gearman-worker -f resize=images:resize   calls resize(job) of images.py
  twistd -n gearman-worker -f images                 what images.py marks with @gearman_twisted.function
  twistd -n gearman-worker --exec wc="wc -c"         a command: workload in, result out
  twistd -n gearman-worker -f images -s 10.0.0.1 -s 10.0.0.2:4731 --concurrency 4
  twistd -n gearman-worker -f images --processes 4 --max-jobs 1000
  twistd -n gearman-worker -f images --set resize.timeout=30 --set resize.concurrency=2
  twistd -n gearman-worker --config worker.toml      all of it from a file

a file for --config:
  servers = ["10.0.0.1:4730"]
  processes = 4
  [functions.resize]
  call = "images:resize"
  timeout = 30
  run_in = "thread"
  [functions.wc]
  exec = "wc -c"

keys of --set and of [functions.NAME]:
  {", ".join(FUNCTION_KEYS)}

signals: TERM, INT and USR1 let running jobs end, for at most --drain-timeout. HUP reopens the log file and,
with --processes, reads the settings file again and replaces the processes one by one: new code runs, and no
job is lost.

exit status: 0 if a signal ended it; 1 if it could not start.
"""

    optParameters = [
        ["config", None, None, "a TOML settings file; command-line options override it"],
        ["concurrency", "c", None, "how many jobs run at a time, in each process (default: 1)"],
        ["client-id", "i", None, "the name that the servers' command `workers` shows (default: none)"],
        ["drain-timeout", "t", None, "how long SIGTERM waits for running jobs (default: 10)"],
        ["processes", "p", None, "keep this many worker processes running (default: only this process)"],
        ["max-jobs", None, None, "end a process after this many jobs; with --processes it is replaced"],
        ["max-lifetime", None, None, "the same after a time, or up to a tenth less"],
    ]
    groups = (
        ("what to run", ["function", "exec", "set", "config"]),
        ("where", ["server", "client-id"]),
        ("how", ["concurrency", "processes", "max-jobs", "max-lifetime", "drain-timeout"]),
        ("information", ["help", "version"]),
    )
    takes = {
        "config": "FILE",
        "concurrency": "N",
        "client-id": "NAME",
        "drain-timeout": "SECONDS",
        "processes": "N",
        "max-jobs": "N",
        "max-lifetime": "SECONDS",
        "server": "PLACE",
        "function": "WHAT",
        "exec": 'NAME="COMMAND"',
        "set": "FUNCTION.KEY=VALUE",
    }

    def __init__(self) -> None:
        super().__init__()
        self["servers"] = []
        self["functions"] = {}
        self["modules"] = []
        self["changes"] = {}

    def opt_server(self, address: str) -> None:
        """a job server, repeatable: HOST or HOST:PORT (default: 127.0.0.1:4730)"""  # noqa: D403, D415
        self["servers"].append(address)

    opt_s = opt_server

    def opt_function(self, text: str) -> None:
        """what to call, repeatable: NAME=package.module:callable, or a module with marked functions"""  # noqa: D403, D415
        name, equals, target = text.rpartition("=")
        if not equals and ":" not in text and text:
            self["modules"].append(text)
            return
        module, colon, path = target.partition(":")
        if not (name and equals and module and colon and path):
            self.refuse(
                f"--function takes NAME=package.module:callable, or a module, not {text!r}; see --help"
            )
        self._add(name, FunctionConfig(call=target))

    opt_f = opt_function

    def opt_exec(self, text: str) -> None:
        """a command as a function, repeatable: NAME="COMMAND ARGUMENTS", without a shell"""  # noqa: D403, D415
        name, equals, command = text.partition("=")
        if not (name and equals):
            self.refuse(f'--exec takes NAME="COMMAND ARGUMENTS", not {text!r}')
        try:
            self._add(name, FunctionConfig(exec=from_word(FUNCTION_KEYS, "exec", command)))
        except ConfigError as error:
            self.refuse(f"--exec {name}= {error}")

    opt_e = opt_exec

    def opt_set(self, text: str) -> None:
        """a setting of a function, repeatable, as in the file's [functions.FUNCTION]"""  # noqa: D403, D415
        setting = _SET.fullmatch(text)
        if setting is None:
            self.refuse(
                f"--set takes FUNCTION.KEY=VALUE, not {text!r}; there are the keys {', '.join(FUNCTION_KEYS)}"
            )
        function, key, word = setting.groups()
        try:
            value = from_word(FUNCTION_KEYS, key, word)
        except ConfigError as error:
            self.refuse(f"--set {function}.{key} {error}")
        self["changes"].setdefault(function, {})[key] = value

    def _add(self, name: str, function: FunctionConfig) -> None:
        if name in self["functions"]:
            self.refuse(f"the function {name!r} is given twice")
        self["functions"][name] = function

    def postOptions(self) -> None:
        super().postOptions()
        for option in _SETTINGS:
            if self[option] is not None:
                try:
                    self[option] = from_word(KEYS, option.replace("-", "_"), self[option])
                except ConfigError as error:
                    self.refuse(f"--{option} {error}")
        if self["config"] is not None:
            # The working directory may be another one when it is read again.
            self["config"] = Path(self["config"]).absolute()
        try:
            self["settings"] = self.read_config()
        except GearmanError as error:
            self.refuse(str(error))

    def read_config(self) -> WorkerConfig:
        """Return what the options say, and their file as it is now.

        Raises:
            ConfigError: the file cannot be read, or something in it is invalid.
        """
        from twisted.internet import reactor

        given = {option.replace("-", "_"): self[option] for option in _SETTINGS if self[option] is not None}
        if self["servers"]:
            given["servers"] = tuple(self["servers"])
        config = worker_config(
            {**given, "functions": self["functions"], "modules": self["modules"]},
            self["config"],
            self["changes"],
        )
        for server in config.servers:
            client_endpoint(reactor, server)
        return config


# twistd looks for this name.
Options = WorkerOptions


def makeService(options: WorkerOptions) -> IService:
    """Return the worker that the options describe, or with ``--processes`` its supervisor."""
    from twisted.internet import reactor as installed_reactor

    reactor: Any = installed_reactor
    use_steady_clock(reactor)
    config: WorkerConfig = options["settings"]
    give_memory_back()
    look_for_modules_in(str(Path.cwd()))
    service: Any
    if config.processes is None:
        service = _worker(config, reactor)
        reload = _say_no_reload
    else:
        _check(config)
        service = Supervisor(config, options.read_config, reactor)
        reload = service.reload

    def hang_up() -> None:
        reopen_log_files()
        reload()

    call_on_signal(reactor, signal.SIGHUP, hang_up)
    call_on_signal(reactor, signal.SIGUSR1, lambda: _stop(reactor))
    stop_quietly_on_sigterm(reactor)
    supervised: IService = service
    return supervised


def _stop(reactor: Any) -> None:
    with suppress(ReactorNotRunning):  # a signal came first
        reactor.stop()


def _worker(config: WorkerConfig, reactor: Any) -> ConfiguredWorker:
    try:
        return ConfiguredWorker(config, load_functions(config), reactor, on_ended=lambda: _stop(reactor))
    except GearmanError as error:
        WorkerOptions.refuse(str(error))


def _check(config: WorkerConfig) -> None:
    status = check_in_process(config)
    if status == 1:
        # It has said why.
        raise SystemExit(1)
    if status:
        WorkerOptions.refuse(
            f"the functions cannot be imported: a process that tried ended with status {status}"
        )


def _say_no_reload() -> None:
    _log.warn("SIGHUP: log reopened; to load code again restart it, or start it with --processes 1")
