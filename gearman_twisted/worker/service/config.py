"""The settings of a worker: those of ``twistd gearman-worker`` and the TOML file for them.

Only values are checked here. Functions are imported, and commands found, by
``worker/service/configured.py``.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeGuard

import attrs

from gearman_twisted.errors import ConfigError, GearmanError
from gearman_twisted.wire.names import check_client_id, check_function

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

    None stands for what is not said.

    Attributes:
        call: what to call, as ``package.module:callable``.
        exec: the words of a command.
        timeout: seconds that a job may take.
        server_timeout: seconds after which the server gives a job to another worker; 0 for never.
        concurrency: how many jobs of it may run at a time, in each process of the worker.
        run_in: ``thread`` or ``process``, or None for the reactor's thread.
        processes: with ``run_in="process"``, how many there may be.
        max_jobs: with ``run_in="process"``, after how many jobs a process is replaced.
        on_death: with ``run_in="process"``, what happens to a job whose process dies.
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
    on_death: str | None = None
    lines: bool | None = None

    def changed_by(self, other: FunctionConfig) -> FunctionConfig:
        """Return a copy with what the other one sets."""
        says = attrs.asdict(other, recurse=False, filter=lambda _, value: value is not None)
        return attrs.evolve(self, **says)

    def check(self) -> None:
        """Return whether its values make sense together.

        Raises:
            ConfigError: they do not; the message says which, and goes on from the function's name.
        """
        if self.call is not None and self.exec is not None:
            raise ConfigError("takes call or exec, not both")
        if self.exec is not None and self.run_in is not None:
            raise ConfigError("run_in is for call: a command has a process of its own anyway")
        if self.exec is None and self.lines is not None:
            raise ConfigError("lines is for exec")
        for key in ("processes", "max_jobs", "on_death"):
            if getattr(self, key) is not None and self.run_in != "process":
                raise ConfigError(f'{key} is for run_in = "process"')


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
        """Return the settings that ``to_json`` encoded."""
        values = json.loads(text)
        functions = {
            name: FunctionConfig(**{**one, "exec": None if one["exec"] is None else tuple(one["exec"])})
            for name, one in values.pop("functions").items()
        }
        values |= {key: tuple(values[key]) for key in ("servers", "modules")}
        return cls(**values, functions=functions)


def worker_config(
    given: Mapping[str, Any],
    path: Path | None = None,
    changes: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> WorkerConfig:
    """The worker that a command line and a file describe; what is in both holds as in the command line.

    Args:
        given: what the command line says, by the names of ``WorkerConfig``; checked before.
        path: the file, or None.
        changes: what the command line says of single functions, wherever these come from: by their names, and
            by the names of ``FunctionConfig``; checked before.

    Raises:
        ConfigError: the file cannot be read or makes no sense, a function's name cannot be sent, or there is
            no function in it all.
    """
    values = {} if path is None else read_config(path)
    functions = {**values.get("functions", {}), **given.get("functions", {})}
    for name, says in changes.items():
        functions[name] = functions.get(name, FunctionConfig()).changed_by(FunctionConfig(**says))
    for name in functions:
        _sendable(name, check_function)
    modules = tuple(dict.fromkeys([*values.get("modules", ()), *given.get("modules", ())]))
    config = WorkerConfig(**{**values, **given, "functions": functions, "modules": modules})
    if not (config.functions or config.modules):
        raise ConfigError(
            "no function given; use --function NAME=package.module:callable, --function MODULE, "
            '--exec NAME="COMMAND ARGUMENTS" or a file with --config'
        )
    return config


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings of a TOML file, by the names of ``WorkerConfig``.

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
    values = _checked(table, KEYS, f"{path}: ")
    tables = values.get("functions", {})
    values["functions"] = {
        name: FunctionConfig(**_checked(one, FUNCTION_KEYS, f"{path}: functions.{name}."))
        for name, one in _checked(tables, dict.fromkeys(tables, Key(_table)), f"{path}: functions.").items()
    }
    return values


class Key(NamedTuple):
    """A setting: its name, and the values that it takes.

    Attributes:
        check: makes of a value of TOML what is kept; raises ``ConfigError``, whose message goes on from the
            key's name.
        read: makes a value of TOML of a word of the command line, or leaves it as it is.
    """

    check: Callable[[object], Any]
    read: Callable[[str], object] = str


def from_word(keys: Mapping[str, Key], name: str, word: str) -> Any:
    """Return the value of a word of the command line, as the file would have it.

    Raises:
        ConfigError: there is no such key, or that is no value for it; the message goes on from its name.
    """
    key = _key(keys, name)
    return key.check(key.read(word))


def _number_of(word: str) -> int | float | str:
    with suppress(ValueError):
        return int(word)
    with suppress(ValueError):
        return float(word)
    return word


def _truth_of(word: str) -> bool | str:
    return {"true": True, "false": False}.get(word, word)


def _whole_number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_NUMBER:
        raise ConfigError(f"takes a whole number of at least 1, not {value!r}")
    return value


def _seconds_or_none(value: object) -> float:
    if not (_is_number(value) and 0 <= value <= _MAX_SECONDS):
        raise ConfigError(f"takes seconds, 0 or more, not {value!r}")
    return float(value)


def _seconds(value: object) -> float:
    if not (_is_number(value) and 0 < value <= _MAX_SECONDS):
        raise ConfigError(f"takes seconds, more than 0, not {value!r}")
    return float(value)


def _lifetime(value: object) -> float:
    """Check the lifetime of a process: at least a second, or it would do nothing but start."""
    if not (_is_number(value) and 1 <= value <= _MAX_SECONDS):
        raise ConfigError(f"takes seconds, 1 or more, not {value!r}")
    return float(value)


def _client_id(value: object) -> str:
    text = _text(value)
    try:
        _sendable(text, check_client_id)
    except ConfigError as error:
        raise ConfigError(f"takes another value: {error}") from error
    return text


def _sendable(text: str, check: Callable[[bytes], object]) -> None:
    """Check a name or text that is sent."""
    try:
        check(text.encode())
    except UnicodeEncodeError as error:
        raise ConfigError(f"{text!r} is not UTF-8") from error
    except GearmanError as error:
        raise ConfigError(str(error)) from error


def _target(value: object) -> str:
    module, _, path = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not (module and path):
        raise ConfigError(f'takes "package.module:callable", not {value!r}')
    return f"{module}:{path}"


def _command_words(value: object) -> tuple[str, ...]:
    """The words of a command, from a text, in which a shell's quotes hold, or a list."""
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


FUNCTION_KEYS: Mapping[str, Key] = {
    "call": Key(_target),
    "exec": Key(_command_words),
    "timeout": Key(_seconds, _number_of),
    "server_timeout": Key(_seconds_or_none, _number_of),
    "concurrency": Key(_whole_number, _number_of),
    "run_in": Key(_one_of("thread", "process")),
    "processes": Key(_whole_number, _number_of),
    "max_jobs": Key(_whole_number, _number_of),
    "on_death": Key(_one_of("fail", "requeue")),
    "lines": Key(_truth, _truth_of),
}

KEYS: Mapping[str, Key] = {
    "servers": Key(_texts),
    "client_id": Key(_client_id),
    "concurrency": Key(_whole_number, _number_of),
    "drain_timeout": Key(_seconds_or_none, _number_of),
    "processes": Key(_whole_number, _number_of),
    "max_jobs": Key(_whole_number, _number_of),
    "max_lifetime": Key(_lifetime, _number_of),
    "modules": Key(_texts),
    "functions": Key(_table),
}


def _key(keys: Mapping[str, Key], name: str) -> Key:
    if name not in keys:
        raise ConfigError(f"is no key; there are {', '.join(keys)}")
    return keys[name]


def _checked(table: Mapping[str, object], keys: Mapping[str, Key], where: str) -> dict[str, Any]:
    """The values of a table, each as its check returns it."""
    return {name: _value(keys, name, value, where) for name, value in table.items()}


def _value(keys: Mapping[str, Key], name: str, value: object, where: str) -> Any:
    try:
        return _key(keys, name).check(value)
    except ConfigError as error:
        raise ConfigError(f"{where}{name} {error}") from error
