"""The options of ``gearmand``: command line, config file and environment, made into one set.

It knows which options make sense together, and starts nothing.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gearman_twisted.commands.gearmand.parser import (
    DEFAULT_CONFIG_FILE,
    QUEUES,
    TLS_FILES,
    make_parser,
    port_number,
)
from gearman_twisted.commands.gearmand.stores import QueueStore, queue_store
from gearman_twisted.errors import ConfigError
from gearman_twisted.server.settings import offered, warnings_of
from gearman_twisted.wire.constants import DEFAULT_PORT

# Why an option that is accepted has no effect.
_NO_EFFECT = {
    "threads": "the server runs in one thread, and so needs no locks",
    "hashtable_buckets": "the tables grow by themselves",
    "round_robin": "functions take turns as they do in gearmand 2.0",
    "keepalive": "it is always on",
    "coredump": "the system decides, see ulimit -c",
    "worker_wakeup": "a job wakes one sleeping worker, and the next one if that does not come",
    "store_queue_on_shutdown": "jobs are stored at once, so that a crash loses none",
    "libsqlite3_table": "the tables of this server have names of their own",
    "libpq_table": "the tables of this server have names of their own",
    "mysql_table": "the tables of this server have names of their own",
}
_STORES = ("builtin", "libsqlite3", "mysql", "postgres", "redis")


class GearmandOptions(argparse.Namespace):
    """The options, checked.

    Attributes:
        listen: a host or an address; empty for all.
        pid_file: None for none.
        log_file: a path, ``stderr`` or ``none``.
        store: the URL of a store; None stands for ``--queue-type``, see ``store_url``.
        queue: the store that ``--queue-type`` stands for.
        protocols: none, or ``http``.
        ssl: whether the port speaks TLS; only then the files are set.
        ssl_ca_file: None for none.
        notes: what the operator should know of the options, a sentence each.
        loud_notes: those of them that are also for standard error.

    All options of ``SETTINGS`` are attributes too, by the names of the settings.
    """

    daemon: bool
    file_descriptors: int | None
    log_file: str | None
    listen: str
    port: int
    pid_file: str | None
    protocols: list[str]
    http_port: int
    queue_type: str | None
    store: str | None
    queue: QueueStore
    config_file: str | None
    syslog: bool
    user: str | None
    verbose: str
    check_args: bool
    libsqlite3_db: str | None
    libsqlite3_table: str | None
    ssl: bool
    ssl_ca_file: str | None
    ssl_certificate: str
    ssl_key: str
    notes: list[str]
    loud_notes: list[str]

    @property
    def settings(self) -> dict[str, Any]:
        """Return the values of settings, by their names; those without a value have their default."""
        values = {setting.name: getattr(self, setting.name) for setting, _ in offered("gearmand")}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def store_url(self) -> str:
        """Return the URL of the store."""
        return self.queue.url if self.store is None else self.store

    @property
    def address(self) -> str:
        """Return where to listen, as ``server_endpoints`` takes it."""
        return f"{self._host}:{self.port}"

    @property
    def http_address(self) -> str:
        """Return where to listen for HTTP."""
        return f"{self._host}:{self.http_port}"

    @property
    def _host(self) -> str:
        return f"[{self.listen}]" if ":" in self.listen else self.listen or "*"


def parse(argv: Sequence[str], environment: Mapping[str, str]) -> GearmandOptions:
    """Return the options of command line, config file and environment.

    Invalid ones end the process with status 1 and one line on standard error.

    Args:
        argv: the words behind the command.
        environment: that of the process.
    """
    parser = make_parser()
    alone, surplus = parser.parse_known_args(argv, GearmandOptions())
    if surplus:
        parser.error(_surplus(surplus[0]))
    options, surplus = parser.parse_known_args(_config_words(parser, alone.config_file), GearmandOptions())
    for word in surplus:
        # COMPAT: other words are comments, or lines of another style.
        if word.startswith("-"):
            parser.error(f"in the config file: {_surplus(word)}")
    if options.check_args:
        parser.error("--check-args is not for the config file")
    parser.parse_args(argv, options)
    try:
        _check(options, environment)
    except ConfigError as error:
        parser.error(str(error))
    if options.check_args:
        parser.exit(0)
    return options


def _surplus(word: str) -> str:
    if word == "-v":
        return "there is no -v; write --verbose LEVEL"
    return f"{word!r} is not an option" if word.startswith("-") else f"takes only options, not {word!r}"


def _config_words(parser: argparse.ArgumentParser, path: str | None) -> list[str]:
    if path == "":
        return []
    file = Path(DEFAULT_CONFIG_FILE if path is None else path)
    try:
        text = os.fsdecode(file.read_bytes())
    except OSError as error:
        if path is None and isinstance(error, FileNotFoundError):
            return []
        parser.error(f"cannot read the config file {error.filename}: {error.strerror}")
    # COMPAT: a tab is a part of a word.
    return [word for word in re.split(r"[ \r\n]+", text) if word]


def _check(options: GearmandOptions, environment: Mapping[str, str]) -> None:
    """Set what follows from several options together.

    Raises:
        ConfigError: they do not go together, or ask for what there is not.
    """
    options.notes = []
    options.loud_notes = []
    queue = (options.queue_type or "builtin").lower()
    if queue not in QUEUES:
        raise ConfigError(f"-q takes {' or '.join(_STORES)}, not {options.queue_type!r}")
    if queue not in _STORES:
        raise ConfigError(
            f"there is no store {queue} here; choose -q {', -q '.join(_STORES)}, or --store URL"
        )
    options.queue_type = queue
    options.queue = queue_store(queue, options, environment)
    options.notes += options.queue.notes
    for warning in warnings_of(options.settings):
        options.notes.append(warning)
        options.loud_notes.append(warning)
    if options.settings["order"] == "1.1" and options.round_robin:
        raise ConfigError("--round-robin and --order 1.1 contradict each other; choose one")
    for name, reason in _NO_EFFECT.items():
        if _is_given(options, name):
            note = f"--{name.replace('_', '-')} has no effect: {reason}"
            options.notes.append(note)
            if name in {"threads", "hashtable_buckets"}:
                options.loud_notes.append(note)
    for name in (name for other, names in QUEUES.items() if other != queue for name in names):
        if not name.endswith("-table") and _is_given(options, name.replace("-", "_")):
            options.notes.append(f"--{name} has no effect without its store being chosen by -q")
    _take_port_of_environment(options, environment.get("GEARMAND_PORT", ""))
    _check_tls(options, environment)


def _is_given(options: GearmandOptions, name: str) -> bool:
    value = getattr(options, name)
    return value is not None and value is not False  # which 0 is not


def _take_port_of_environment(options: GearmandOptions, text: str) -> None:
    # COMPAT: also where the command line says 4730.
    if not text or options.port != DEFAULT_PORT:
        return
    if "://" in text:
        # DIFFERS: Kubernetes sets it so for every container beside a service of the name gearmand, which
        # would then not start.
        options.notes.append(f"GEARMAND_PORT={text} in the environment is ignored: it is not a port")
        return
    try:
        options.port = port_number(text)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"GEARMAND_PORT in the environment: {error}") from error


def _check_tls(options: GearmandOptions, environment: Mapping[str, str]) -> None:
    for name, variable, default, _ in TLS_FILES:
        attribute = name.replace("-", "_")
        given = getattr(options, attribute)
        if not options.ssl:
            # DIFFERS: gearmand ignores it, and serves in the clear what was meant to be secret.
            if given is not None:
                raise ConfigError(f"--{name} has no effect without --ssl; add --ssl, or leave it away")
            continue
        # COMPAT: the environment overrides the command line.
        path = environment.get(variable) or given or default
        # A certificate that a public CA has signed needs no file of the CA here.
        is_needless = path is default and name == "ssl-ca-file" and not Path(path).exists()
        setattr(options, attribute, None if is_needless else path)
