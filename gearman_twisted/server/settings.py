"""The job server's settings: one row for each in ``SETTINGS``, the only place that describes it.

``twistd gearman`` and ``gearmand`` make their options, help and checks from the rows. The range and the
default of a setting are those of the field that it sets: in ``EngineSettings``, or in a class here.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from gearman_twisted.engine.settings import MIB, EngineSettings, between, packet_size, size
from gearman_twisted.errors import ConfigError
from gearman_twisted.package import __version__
from gearman_twisted.server.machine import memory_bytes
from gearman_twisted.wire.constants import DEFAULT_PACKET_BYTES, LARGEST_PACKET_BYTES

# The value of a keep-alive setting that leaves it to the operating system.
SYSTEM = -1


def _between_or_system(low: int, high: int) -> Callable[[Any, attrs.Attribute[Any], int], None]:
    def check(_instance: object, attribute: attrs.Attribute[Any], value: int) -> None:
        if value != SYSTEM and not low <= value <= high:
            raise ConfigError(
                f"{attribute.name} takes a number from {low} to {high}, or {SYSTEM}, not {value!r}"
            )

    return check


@attrs.frozen(kw_only=True)
class ConnectionLimits:
    """What one peer may make the server keep in memory.

    Attributes:
        max_packet_bytes: a packet that announces more is refused, and its connection closed. Stores may
            take less, see ``IJobStore.max_workload_bytes``.
        max_output_bytes: a peer that lets more than this wait to be read is closed. Many large results
            fit; a peer that has stopped reading is found before it fills the memory.
        max_unsaved_jobs: a peer with so many submits waiting for the store is not read until half of
            them are saved. Far more than a commit takes, so it never slows a peer that keeps up.
        max_unsaved_bytes: the same for what the workloads of these submits take together.
    """

    max_packet_bytes: int = attrs.field(
        default=DEFAULT_PACKET_BYTES, validator=between(1024, LARGEST_PACKET_BYTES)
    )
    max_output_bytes: int = attrs.field(default=256 * MIB, validator=between(65536, 1 << 40))
    max_unsaved_jobs: int = attrs.field(default=10_000, validator=between(1, 1 << 31))
    max_unsaved_bytes: int = attrs.field(default=64 * MIB, validator=between(1, 1 << 40))


@attrs.frozen(kw_only=True)
class ListeningSettings:
    """How the server listens by TCP.

    Attributes:
        backlog: connections that the system keeps until they are accepted. Farms reconnect all at once.
        keepalive_idle: seconds without traffic before the first keep-alive probe. ``SYSTEM`` leaves it to the
            system: two hours on Linux, for which the job of a worker whose host died would not run.
        keepalive_interval: seconds between probes, or ``SYSTEM``.
        keepalive_count: unanswered probes after which a peer is lost, or ``SYSTEM``.
    """

    backlog: int = attrs.field(default=1024, validator=between(0, 1 << 30))
    keepalive_idle: int = attrs.field(default=60, validator=_between_or_system(1, 32767))
    keepalive_interval: int = attrs.field(default=15, validator=_between_or_system(1, 32767))
    keepalive_count: int = attrs.field(default=4, validator=_between_or_system(1, 127))

    def socket_options(self) -> list[tuple[int, int, int]]:
        """Return the arguments of ``setsockopt`` for a listening socket; accepted ones inherit them."""
        numbers = (self.keepalive_idle, self.keepalive_interval, self.keepalive_count)
        chosen = dict(zip(("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"), numbers, strict=True))
        if SYSTEM not in numbers:
            # There are no probes while sent data is not acknowledged: that needs a limit of its own.
            idle, interval, count = numbers
            chosen["TCP_USER_TIMEOUT"] = (idle + interval * count) * 1000
        # Not every system has each of them.
        return [
            (socket.IPPROTO_TCP, getattr(socket, name), value)
            for name, value in chosen.items()
            if value != SYSTEM and hasattr(socket, name)
        ]


@attrs.frozen(kw_only=True)
class ServiceSettings:
    """What a job server is made of: places as ``server_endpoints`` takes them, and the URL of a store."""

    store: str = "sqlite:gearman.db"
    listen: tuple[str, ...] = ("4730",)
    http: tuple[str, ...] = ()


def default_settings(**changes: Any) -> EngineSettings:
    """The engine's settings with what is known of this process and machine."""
    host = "".join(c if c.isascii() and c.isprintable() and c != " " else "-" for c in socket.gethostname())
    known: dict[str, Any] = {
        "handle_prefix": f"H:{host}".encode()[:45],
        "server_version": __version__,
        "max_memory": max(memory_bytes() // 2, 1_000_000),
    }
    return EngineSettings(**(known | changes))


# Fields that no operator sets: what the server knows of itself, and what follows from its log level.
NO_SETTINGS = frozenset({"server_version", "log_level", "notes_accepted"})


@attrs.frozen
class Option:
    """How a command offers a setting on its command line.

    Attributes:
        long: the option's name, without hyphens in front.
        short: its short form, a letter, or empty.
        default: the command's own; None for that of the field.
    """

    long: str
    short: str = ""
    default: Any = None

    @property
    def flags(self) -> list[str]:
        """Return the option as it is written: ``-j``, ``--job-retries``."""
        return [*([f"-{self.short}"] if self.short else []), f"--{self.long}"]


def _text(text: str) -> str:
    return text


def number(text: str) -> int:
    """Return the whole number that a text stands for.

    Raises:
        ConfigError: it stands for none.
    """
    # int() takes blanks, underscores and digits of other scripts.
    if not re.fullmatch(r"[+-]?[0-9]{1,12}", text, re.ASCII):
        raise ConfigError(f"takes a number, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"takes seconds, not {text!r}") from None


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


@attrs.frozen
class Setting:
    """A setting of the job server.

    Attributes:
        name: how it is called, also in a settings file.
        group: the heading under which help lists it.
        sets: the class with its field, which has its default and its range.
        read: makes a value of the text of an option; None for a flag, which takes none.
        takes: what stands for the text in help.
        help: what it does, in one sentence for help.
        twistd: the option of ``twistd gearman``, or why there is none.
        gearmand: that of ``gearmand``, likewise.
        field: what the field is called, if not as the setting.
        shown_default: what help calls the default, where there is no value for it.
        warnings: what the operator is told when the server starts with a value, by value.
    """

    name: str
    group: str
    sets: type
    read: Callable[[str], Any] | None
    takes: str
    help: str
    twistd: Option | str
    gearmand: Option | str
    field: str = ""
    shown_default: str | None = None
    warnings: Mapping[Any, str] = attrs.field(factory=dict)

    @property
    def is_repeatable(self) -> bool:
        """Return whether the option may be given several times."""
        return isinstance(self.default, tuple)

    @property
    def field_name(self) -> str:
        """Return the name of the field in the class that has it."""
        return self.field or self.name

    @property
    def default(self) -> Any:
        """Return the default of the field."""
        return attrs.fields_dict(self.sets)[self.field_name].default

    def default_of(self, option: Option) -> Any:
        """Return the default of a command's option; None if the server makes it when it starts."""
        if self.shown_default is not None:
            return None
        return self.default if option.default is None else option.default

    def shown_default_of(self, option: Option) -> str:
        """Return the default of a command's option as people read it."""
        return _shown(self.default_of(option)) if self.shown_default is None else self.shown_default

    def help_of(self, option: Option) -> str:
        """Return what the help of a command says of its option."""
        return self.help if self.read is None else f"{self.help} (default: {self.shown_default_of(option)})"

    def value(self, text: str) -> Any:
        """Return the value that the text of an option stands for.

        Raises:
            ConfigError: it stands for none, or is out of range; the message says what the setting takes,
                to stand behind the name of the option.
        """
        if self.read is None:
            return True
        value = self.read(text)
        try:
            self.sets(**{self.field_name: (value,) if self.is_repeatable else value})
        except ConfigError as error:
            raise ConfigError(str(error).removeprefix(f"{self.field_name} ")) from error
        return value


def _file_only(name: str, sets: type, read: Callable[[str], Any], help_: str) -> Setting:
    reason = "it is seldom changed: programs set it, command lines do not"
    return Setting(name, MEMORY, sets, read, "", help_, twistd=reason, gearmand=reason)


JOBS, MEMORY, NETWORK, STORE = "jobs", "memory", "network", "store"

# In the order in which help shows them.
SETTINGS: tuple[Setting, ...] = (
    Setting(
        "listen",
        NETWORK,
        ServiceSettings,
        _text,
        "PLACE",
        "where to listen, repeatable: PORT (on loopback), HOST:PORT, [::1]:PORT, *:PORT (all addresses), "
        "or a Twisted endpoint string such as unix:/run/gearman",
        twistd=Option("listen", "l"),
        gearmand="gearmand has a host and a port for it, -L and -p, and listens on all addresses",
    ),
    Setting(
        "http",
        NETWORK,
        ServiceSettings,
        _text,
        "PLACE",
        "where to take jobs over HTTP, repeatable, written as for --listen",
        twistd=Option("http"),
        gearmand="gearmand has -r http and --http-port for it",
        shown_default="nowhere",
    ),
    Setting(
        "backlog",
        NETWORK,
        ListeningSettings,
        number,
        "N",
        "connections that the system keeps until they are accepted",
        twistd=Option("backlog"),
        gearmand=Option("backlog", "b"),
    ),
    Setting(
        "keepalive_idle",
        NETWORK,
        ListeningSettings,
        number,
        "SECONDS",
        f"silence of a peer before the first keep-alive probe; {SYSTEM} for the system's value",
        twistd=Option("keepalive-idle"),
        gearmand=Option("keepalive-idle"),
    ),
    Setting(
        "keepalive_interval",
        NETWORK,
        ListeningSettings,
        number,
        "SECONDS",
        f"time between keep-alive probes; {SYSTEM} for the system's value",
        twistd=Option("keepalive-interval"),
        gearmand=Option("keepalive-interval"),
    ),
    Setting(
        "keepalive_count",
        NETWORK,
        ListeningSettings,
        number,
        "N",
        f"unanswered probes after which a peer is lost; {SYSTEM} for the system's value",
        twistd=Option("keepalive-count"),
        gearmand=Option("keepalive-count"),
    ),
    Setting(
        "store",
        STORE,
        ServiceSettings,
        _text,
        "URL",
        "where background jobs are kept, such as sqlite:PATH; twistd gearman --help-store lists the stores",
        twistd=Option("store", "s"),
        gearmand=Option("store", default="memory:"),
    ),
    Setting(
        "save_timeout",
        STORE,
        EngineSettings,
        _seconds,
        "SECONDS",
        "how long a submission waits for a store that cannot be reached, before it is refused",
        twistd=Option("save-timeout"),
        gearmand=Option("save-timeout"),
    ),
    Setting(
        "job_retries",
        JOBS,
        EngineSettings,
        number,
        "N",
        "attempts of a job whose worker is lost or too slow; -1 for no limit, 0 and 1 both for one",
        twistd=Option("job-retries", "j"),
        gearmand=Option("job-retries", "j"),
        warnings={
            0: "--job-retries 0 gives up a job whose worker is lost once; before gearmand 2.0 it meant no "
            "limit, which is -1 now"
        },
    ),
    Setting(
        "order",
        JOBS,
        EngineSettings,
        _text,
        "ORDER",
        "which job a worker of several functions gets: 2.0, the highest priority, functions take turns; "
        "1.1, the function that was registered last",
        twistd=Option("order", "o"),
        gearmand=Option("order"),
    ),
    Setting(
        "handle_prefix",
        JOBS,
        EngineSettings,
        os.fsencode,
        "TEXT",
        "what job handles start with",
        twistd=Option("handle-prefix"),
        gearmand=Option("job-handle-prefix"),
        shown_default="H: and the host's name",
    ),
    Setting(
        "exceptions",
        JOBS,
        EngineSettings,
        None,
        "",
        "send WORK_EXCEPTION to every client, not only to those that asked for it",
        twistd=Option("exceptions"),
        gearmand=Option("exceptions"),
    ),
    Setting(
        "allow_shutdown",
        JOBS,
        EngineSettings,
        None,
        "",
        "let the text command `shutdown` end the server",
        twistd=Option("allow-shutdown"),
        gearmand=Option("allow-shutdown"),
        field="allows_shutdown",
    ),
    Setting(
        "memory",
        MEMORY,
        EngineSettings,
        size,
        "SIZE",
        "what the workloads of jobs may take, such as 512M; stored jobs beyond it wait in the store",
        twistd=Option("memory", "m"),
        gearmand=Option("memory"),
        shown_default="no limit",
    ),
    Setting(
        "max_packet_bytes",
        MEMORY,
        ConnectionLimits,
        packet_size,
        "SIZE",
        "the largest packet to take, up to 4G; the connection of one that announces more is closed",
        twistd=Option("max-packet-bytes"),
        gearmand=Option("max-packet-bytes"),
    ),
    Setting(
        "max_memory",
        MEMORY,
        EngineSettings,
        size,
        "SIZE",
        "what jobs, functions and unfinished transfers may take, such as 2G; beyond it jobs are refused",
        twistd=Option("max-memory"),
        gearmand=Option("max-memory"),
        shown_default="half of the memory of the machine or container",
    ),
    _file_only("wakeup_timeout", EngineSettings, _seconds, "how long a woken worker has to grab a job"),
    _file_only("max_held_bytes", EngineSettings, size, "output of a peer that may wait for the store"),
    _file_only("max_reduced_bytes", EngineSettings, size, "results of the parts of a reduce job, together"),
    _file_only("max_output_bytes", ConnectionLimits, size, "output that a peer may leave unread"),
    _file_only(
        "max_unsaved_jobs", ConnectionLimits, number, "submissions of a peer that may wait to be saved"
    ),
    _file_only("max_unsaved_bytes", ConnectionLimits, size, "workloads of these submissions, together"),
)


def offered(command: str) -> list[tuple[Setting, Option]]:
    """Return the settings that a command offers, with their options.

    Args:
        command: ``twistd`` or ``gearmand``.
    """
    options = [(setting, getattr(setting, command)) for setting in SETTINGS]
    return [(setting, option) for setting, option in options if isinstance(option, Option)]


def fields_of(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what values of settings, by their names, say of the fields of one class."""
    return {
        setting.field_name: values[setting.name]
        for setting in SETTINGS
        if setting.sets is cls and setting.name in values
    }


def warnings_of(values: Mapping[str, Any]) -> Iterable[str]:
    """Return what the operator should be told of values of settings, a line each."""
    for setting in SETTINGS:
        if setting.warnings and setting.name in values:
            warning = setting.warnings.get(values[setting.name])
            if warning is not None:
                yield warning
