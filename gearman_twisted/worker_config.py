"""What a worker is told to be: the settings of ``twistd gearman-worker`` and the TOML file for them.

Only values are looked at here. Functions are imported, and commands looked for, by ``configured_worker.py``.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard

import attrs

from gearman_twisted.engine.requests import check_client_id, check_function
from gearman_twisted.errors import ConfigError, GearmanError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_SERVER = "127.0.0.1:4730"

_MAX_NUMBER = 1_000_000
_MAX_SECONDS = 4_000_000


@attrs.frozen(kw_only=True)
class FunctionConfig:
    """A function of the worker. With neither ``call`` nor ``exec`` it changes one that a module has marked.

    Attributes:
        call: what to call, as ``package.module:callable``.
        exec: the words of a command.
        timeout: seconds that a job may take.
        server_timeout: seconds after which the server gives a job to another worker; 0 for never.
        concurrency: how many jobs of it may run at a time, in each process of the worker.
        run_in: ``thread`` or ``process``, or None for the reactor's thread.
        processes: with ``run_in="process"``, how many there may be.
        max_jobs: with ``run_in="process"``, after how many jobs a process is replaced.
        on_death: with ``run_in="process"``, what becomes of a job whose process dies.
        lines: with ``exec``, whether output is sent line by line.
    """

    call: str | None = None
    exec: tuple[str, ...] | None = None
    timeout: float | None = None
    server_timeout: float | None = None
    concurrency: int | None = None
    run_in: str | None = None
    processes: int | None = None
    max_jobs: int | None = None
    on_death: str = "fail"
    lines: bool = False


@attrs.frozen(kw_only=True)
class WorkerConfig:
    """A whole worker.

    Attributes:
        servers: their addresses.
        client_id: the name that the servers' command ``workers`` shows.
        concurrency: how many jobs may run at a time, in each process.
        drain_timeout: seconds that running jobs are waited for when the worker is told to stop.
        processes: how many processes there are; None for the one that was started, unsupervised.
        max_jobs: after how many jobs a process ends.
        max_lifetime: after how many seconds a process ends.
        modules: modules with marked functions.
        functions: by their names.
    """

    servers: tuple[str, ...] = (DEFAULT_SERVER,)
    client_id: str | None = None
    concurrency: int = 1
    drain_timeout: float = 10.0
    processes: int | None = None
    max_jobs: int | None = None
    max_lifetime: float | None = None
    modules: tuple[str, ...] = ()
    functions: Mapping[str, FunctionConfig] = attrs.field(factory=dict)

    def to_json(self) -> str:
        """The same as one line of text, for another process."""
        return json.dumps(attrs.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> WorkerConfig:
        """What ``to_json`` made a text of."""
        values = json.loads(text)
        functions = {
            name: FunctionConfig(**{**one, "exec": None if one["exec"] is None else tuple(one["exec"])})
            for name, one in values.pop("functions").items()
        }
        values |= {key: tuple(values[key]) for key in ("servers", "modules")}
        return cls(**values, functions=functions)


def worker_config(given: Mapping[str, Any], path: Path | None = None) -> WorkerConfig:
    """The worker that a command line and a file describe; what is in both holds as in the command line.

    Args:
        given: what the command line says, by the names of ``WorkerConfig``; checked before.
        path: the file, or None.

    Raises:
        ConfigError: the file cannot be read or makes no sense, or there is no function in it all.
    """
    values = {} if path is None else read_config(path)
    functions = {**values.get("functions", {}), **given.get("functions", {})}
    modules = tuple(dict.fromkeys([*values.get("modules", ()), *given.get("modules", ())]))
    config = WorkerConfig(**{**values, **given, "functions": functions, "modules": modules})
    if not (config.functions or config.modules):
        raise ConfigError(
            "no function given; use --function NAME=package.module:callable, --function MODULE, "
            '--exec NAME="COMMAND ARGUMENTS" or a file with --config'
        )
    return config


def read_config(path: Path) -> dict[str, Any]:
    """What a TOML file says, by the names of ``WorkerConfig``.

    Raises:
        ConfigError: it cannot be read, is not TOML, or has keys or values that make no sense; the message
            has the file, the key and what that takes.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    values = _checked(table, _KEYS, str(path), "")
    values["functions"] = {
        name: _function(name, one, path) for name, one in values.get("functions", {}).items()
    }
    return values


def number_of(text: str) -> int | float | str:
    """The number that a word of a command line stands for; the word itself if that is none."""
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return float(text)
    return text


def whole_number(value: object) -> int:
    """A whole number of at least 1.

    Raises:
        ConfigError: it is something else; the message says what is taken.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_NUMBER:
        raise ConfigError(f"takes a whole number of at least 1, not {value!r}")
    return value


def seconds_or_none(value: object) -> float:
    """Seconds, 0 or more.

    Raises:
        ConfigError: it is something else; the message says what is taken.
    """
    if not (_is_number(value) and 0 <= value <= _MAX_SECONDS):
        raise ConfigError(f"takes seconds, 0 or more, not {value!r}")
    return float(value)


def seconds(value: object) -> float:
    """Seconds, more than 0.

    Raises:
        ConfigError: it is something else; the message says what is taken.
    """
    if not (_is_number(value) and 0 < value <= _MAX_SECONDS):
        raise ConfigError(f"takes seconds, more than 0, not {value!r}")
    return float(value)


def lifetime(value: object) -> float:
    """Seconds that a process may live: at least 1, or it would do nothing but start.

    Raises:
        ConfigError: it is something else; the message says what is taken.
    """
    if not (_is_number(value) and 1 <= value <= _MAX_SECONDS):
        raise ConfigError(f"takes seconds, 1 or more, not {value!r}")
    return float(value)


def client_id(value: object) -> str:
    """A client id.

    Raises:
        ConfigError: it is none; the message says what is taken.
    """
    text = _text(value)
    try:
        check_client_id(text.encode())
    except GearmanError as error:
        raise ConfigError(f"takes another value: {error}") from error
    return text


def target(value: object) -> str:
    """What names a callable: ``package.module:callable``.

    Raises:
        ConfigError: it is something else; the message says what is taken.
    """
    module, _, path = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not (module and path):
        raise ConfigError(f'takes "package.module:callable", not {value!r}')
    return f"{module}:{path}"


def command_words(value: object) -> tuple[str, ...]:
    """The words of a command, from a text, in which a shell's quotes hold, or a list.

    Raises:
        ConfigError: it is something else, or has no word; the message says what is taken.
    """
    try:
        words = tuple(shlex.split(value)) if isinstance(value, str) else _texts(value)
    except ValueError as error:
        raise ConfigError(f"takes a command, and {value!r} is none: {error}") from error
    if not (words and words[0]):
        raise ConfigError(f"takes a command, not {value!r}")
    if any("\0" in word for word in words):
        raise ConfigError(f"takes a command without NUL, not {value!r}")
    return words


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: object) -> str:
    if not (isinstance(value, str) and value):
        raise ConfigError(f"takes a text, not {value!r}")
    return value


def _texts(value: object) -> tuple[str, ...]:
    """A list of texts; one alone stands for a list of it."""
    if isinstance(value, str):
        value = [value]
    if not (isinstance(value, list) and value and all(isinstance(one, str) and one for one in value)):
        raise ConfigError(f"takes a list of texts, not {value!r}")
    return tuple(value)


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"takes true or false, not {value!r}")
    return value


def _one_of(*choices: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if value not in choices:
            raise ConfigError(f"takes {' or '.join(map(repr, choices))}, not {value!r}")
        return str(value)

    return check


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"takes a table, not {value!r}")
    return value


_FUNCTION_KEYS: dict[str, Callable[[object], Any]] = {
    "call": target,
    "exec": command_words,
    "timeout": seconds,
    "server_timeout": seconds_or_none,
    "concurrency": whole_number,
    "run_in": _one_of("thread", "process"),
    "processes": whole_number,
    "max_jobs": whole_number,
    "on_death": _one_of("fail", "requeue"),
    "lines": _truth,
}

_KEYS: dict[str, Callable[[object], Any]] = {
    "servers": _texts,
    "client_id": client_id,
    "concurrency": whole_number,
    "drain_timeout": seconds_or_none,
    "processes": whole_number,
    "max_jobs": whole_number,
    "max_lifetime": lifetime,
    "modules": _texts,
    "functions": _table,
}


def _checked(
    table: Mapping[str, object], keys: Mapping[str, Callable[[object], Any]], path: str, prefix: str
) -> dict[str, Any]:
    """The values of a table, each as its check returns it."""
    values = {}
    for key, value in table.items():
        if key not in keys:
            raise ConfigError(f"{path}: there is no key {prefix + key!r}; there are {', '.join(keys)}")
        try:
            values[key] = keys[key](value)
        except ConfigError as error:
            raise ConfigError(f"{path}: {prefix}{key} {error}") from error
    return values


def _function(name: str, value: object, path: Path) -> FunctionConfig:
    where = f"functions.{name}"
    try:
        check_function(name.encode())
        table = _table(value)
    except ConfigError as error:
        raise ConfigError(f"{path}: {where} {error}") from error
    except GearmanError as error:
        raise ConfigError(f"{path}: {where}: {error}") from error
    values = _checked(table, _FUNCTION_KEYS, str(path), f"{where}.")
    if "call" in values and "exec" in values:
        raise ConfigError(f"{path}: {where} takes call or exec, not both")
    if "exec" in values and "run_in" in values:
        raise ConfigError(f"{path}: {where}.run_in is for call: a command has a process of its own anyway")
    if "lines" in values and "exec" not in values:
        raise ConfigError(f"{path}: {where}.lines is for exec")
    only = [key for key in ("processes", "max_jobs", "on_death") if key in values]
    if only and values.get("run_in") != "process":
        raise ConfigError(f'{path}: {where}.{only[0]} is for run_in = "process"')
    return FunctionConfig(**values)
