"""The options of ``gearmand``: those of the table of settings, and those that only a drop-in needs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from gearman_twisted.commands.arguments import (
    CA_VARIABLE,
    DEFAULT_CA_FILE,
    TLS_DIRECTORY,
    OneLineParser,
    port_or_service,
)
from gearman_twisted.errors import ConfigError
from gearman_twisted.package import __version__
from gearman_twisted.server.settings import JOBS, MEMORY, NETWORK, STORE, number, offered
from gearman_twisted.wire.constants import DEFAULT_PORT

DEFAULT_CONFIG_FILE = "/etc/gearmand.conf"
DEFAULT_LOG_FILE = "/var/log/gearmand.log"
LEVELS = ("FATAL", "ALERT", "CRITICAL", "ERROR", "WARNING", "NOTICE", "INFO", "DEBUG")

_USAGE = """\
gearmand [options]
       gearmand --daemon --pid-file FILE --log-file FILE [options]"""

_EXAMPLES = f"""\
examples:
  gearmand -L 127.0.0.1 -l stderr                in the foreground, for this machine alone
  gearmand -q libsqlite3 --libsqlite3-db=/var/lib/gearman/jobs.db
                                                 background jobs survive a restart
  gearmand -d -P /run/gearmand.pid -u gearman    in the background, as the user gearman
  gearmand -r http --http-port 8080              takes jobs over HTTP too
  gearmand --ssl --ssl-certificate=server.pem --ssl-key=server.key
                                                 speaks TLS

Without -L it listens on all addresses, and the protocol knows no passwords: anyone who reaches the port can
run, read and cancel jobs. Without -q or --store background jobs are kept in memory, and lost when it ends.

The config file has the same options, in words that blanks or line ends separate: --verbose=INFO or
--port 4731. The command line overrides the file. GEARMAND_PORT in the environment overrides the default port
{DEFAULT_PORT}.

signals: TERM and INT end it at once; USR1 ends it when no job is left; HUP reopens the log file.

exit status: 0 if a signal or `shutdown` ended it; 1 if it could not start. With -d the first process ends
with 0 as soon as the server is ready, or with 1 if it could not start.
"""

# The stores of gearmand by the names that -q takes, each with its options.
QUEUES: dict[str, tuple[str, ...]] = {
    "builtin": (),
    "libsqlite3": ("libsqlite3-db", "libsqlite3-table"),
    "mysql": ("mysql-host", "mysql-port", "mysql-user", "mysql-password", "mysql-db", "mysql-table"),
    "postgres": ("libpq-conninfo", "libpq-table"),
    "redis": ("redis-server", "redis-port", "redis-password", "redis-prefix"),
    "libmemcached": ("libmemcached-servers", "libmemcached-prefix"),
    "libtokyocabinet": ("libtokyocabinet-file", "libtokyocabinet-optimize"),
    "libdrizzle": (
        *("libdrizzle-host", "libdrizzle-port", "libdrizzle-uds", "libdrizzle-user"),
        *("libdrizzle-password", "libdrizzle-db", "libdrizzle-table", "libdrizzle-mysql"),
    ),
}
# The files of TLS: option, variable of the environment, default, and what is in them.
TLS_FILES = (
    ("ssl-ca-file", CA_VARIABLE, DEFAULT_CA_FILE, "certificates of the CA"),
    ("ssl-certificate", "GEARMAND_SERVER_PEM", f"{TLS_DIRECTORY}/gearmand.pem", "the server's certificate"),
    ("ssl-key", "GEARMAND_SERVER_KEY", f"{TLS_DIRECTORY}/gearmand.key", "the key of the certificate"),
)
_OURS = {"builtin", "libsqlite3", "mysql", "postgres", "redis"}
_TABLES = ("libsqlite3-table", "mysql-table", "libpq-table")
_QUEUE_FLAGS = {"libtokyocabinet-optimize", "libdrizzle-mysql"}


class _ShowVersion(argparse.Action):
    """``-V``, whose answer begins with an empty line."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print the version and exit."""
        print(f"\ngearmand {__version__} - gearman_twisted, http://gearman.org/")
        parser.exit()


class _ChooseStore(argparse.Action):
    """``-q`` and ``--store``: whichever comes last, as the command line comes after the config file."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        """Keep this one and drop the other."""
        namespace.queue_type = namespace.store = None
        setattr(namespace, self.dest, values)


def make_parser() -> argparse.ArgumentParser:
    """Make a parser for the command line or the config file."""
    parser = OneLineParser(
        prog="gearmand",
        usage=_USAGE,
        description="A Gearman job server. It takes the options of the original gearmand.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    _add_general(parser.add_argument_group("general"))
    _add_network(parser.add_argument_group(NETWORK))
    _add_tls(parser.add_argument_group("TLS"))
    _add_stores(parser.add_argument_group(STORE))
    for title in (JOBS, MEMORY):
        _add_settings(parser.add_argument_group(title), title)
    _add_process(parser.add_argument_group("process"))
    ineffective = parser.add_argument_group("accepted, without effect")
    ineffective.add_argument("-t", "--threads", metavar="N", type=_number(0, 1 << 31))
    ineffective.add_argument("--hashtable-buckets", metavar="N", type=_number(1, 1 << 31))
    ineffective.add_argument("-R", "--round-robin", action="store_true")
    ineffective.add_argument("-w", "--worker-wakeup", metavar="N", type=_number(0, 255))
    ineffective.add_argument("--keepalive", action="store_true")
    ineffective.add_argument("--coredump", action="store_true")
    ineffective.add_argument("--store-queue-on-shutdown", action="store_true")
    for name in _TABLES:
        ineffective.add_argument(f"--{name}", metavar="NAME")
    # Options of stores that do not exist here.
    for name in (name for queue, names in QUEUES.items() if queue not in _OURS for name in names):
        flag: dict[str, Any] = {"action": "store_true"} if name in _QUEUE_FLAGS else {}
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS, **flag)
    parser.add_argument("--check-args", action="store_true", help=argparse.SUPPRESS)
    return parser


def _add_settings(
    group: argparse._ActionsContainer, title: str, **places: argparse._ActionsContainer
) -> None:
    """Add the options of the table that stand under a heading.

    Args:
        group: where to.
        title: the heading.
        places: by the name of a setting, where else to.
    """
    for setting, option in offered("gearmand"):
        if setting.group != title:
            continue
        kind: dict[str, Any] = {"action": "store_true"}
        if setting.read is not None:
            kind = {
                "metavar": setting.takes,
                "type": _for_argparse(setting.value),
                "default": setting.default_of(option),
            }
        if setting.name == "store":
            kind |= {"action": _ChooseStore, "default": None}
        text = setting.help_of(option).replace("%", "%%")
        places.get(setting.name, group).add_argument(*option.flags, dest=setting.name, help=text, **kind)


def _for_argparse(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def value(text: str) -> Any:
        try:
            return read(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return value


def _add_general(group: argparse._ActionsContainer) -> None:
    add = group.add_argument
    add("-h", "--help", action="help", help="show this, and exit")
    add(
        "-V",
        "--version",
        action=_ShowVersion,
        nargs=0,
        help="show the version, and exit",
    )
    add(
        "--config-file",
        metavar="FILE",
        help=f"more options (default: {DEFAULT_CONFIG_FILE} if it is there); empty for none",
    )


def _add_network(group: argparse._ActionsContainer) -> None:
    add = group.add_argument
    add(
        "-L",
        "--listen",
        metavar="HOST",
        default="",
        help="a host or an address, with all addresses that it resolves to (default: all)",
    )
    add(
        "-p",
        "--port",
        metavar="PORT",
        type=port_number,
        default=DEFAULT_PORT,
        help=f"a number or a service's name (default: {DEFAULT_PORT}); 0 for any free one",
    )
    add(
        "-r",
        "--protocol",
        dest="protocols",
        metavar="NAME",
        action="append",
        default=[],
        choices=("http",),
        help="http: take jobs over HTTP too",
    )
    add(
        "--http-port",
        metavar="PORT",
        type=port_number,
        default=8080,
        help="the port for HTTP (default: 8080)",
    )
    _add_settings(group, NETWORK)


def _add_tls(group: argparse._ActionsContainer) -> None:
    group.add_argument("--ssl", action="store_true", help="speak TLS, and nothing else, on the port of -p")
    for name, variable, default, what in TLS_FILES:
        group.add_argument(
            f"--{name}",
            metavar="FILE",
            help=f"{what} (default: {default}); {variable} in the environment overrides it",
        )


def _add_process(group: argparse._ActionsContainer) -> None:
    add = group.add_argument
    add("-d", "--daemon", action="store_true", help="go to the background once all is ready")
    add("-P", "--pid-file", metavar="FILE", help="keep the process id in a file (default: none)")
    add("-u", "--user", metavar="NAME", help="become this user; the ports are taken before")
    add(
        "-f",
        "--file-descriptors",
        metavar="N",
        type=_descriptors,
        help="how many files and connections may be open (default, and 0: the limit that it inherits)",
    )
    add(
        "-l",
        "--log-file",
        metavar="FILE",
        help=f"a file, stderr or none (default: {DEFAULT_LOG_FILE}, or stderr where that cannot be written)",
    )
    add("--syslog", action="store_true", help="log to syslog too")
    add(
        "--verbose",
        metavar="LEVEL",
        choices=LEVELS,
        default="ERROR",
        help=f"what is logged: {' '.join(LEVELS)} (default: ERROR)",
    )


def _add_stores(group: argparse._ActionsContainer) -> None:
    choice = group.add_mutually_exclusive_group()
    choice.add_argument(
        "-q",
        "--queue-type",
        metavar="NAME",
        action=_ChooseStore,
        help="as --store, by name: builtin (memory, the default), libsqlite3, mysql, postgres, redis",
    )
    _add_settings(group, STORE, store=choice)
    group.add_argument("--libsqlite3-db", metavar="FILE", help="the file of -q libsqlite3, made if missing")
    group.add_argument(
        "--libpq-conninfo",
        metavar="TEXT",
        help="-q postgres: 'host=HOST user=USER dbname=NAME' as for libpq (default: libpq's environment)",
    )
    group.add_argument(
        "--mysql-host", metavar="HOST", help="-q mysql: its host (default: localhost, by socket)"
    )
    group.add_argument("--mysql-port", metavar="PORT", type=port_number, help="its port (default: 3306)")
    group.add_argument("--mysql-user", metavar="NAME", help="its user (default: that of the process)")
    group.add_argument(
        "--mysql-password", metavar="TEXT", help="its password; better in the config file, as others see this"
    )
    group.add_argument("--mysql-db", metavar="NAME", help="its database, which has to be there")
    group.add_argument("--redis-server", metavar="HOST", help="-q redis: its host (default: 127.0.0.1)")
    group.add_argument("--redis-port", metavar="PORT", type=port_number, help="its port (default: 6379)")
    group.add_argument("--redis-password", metavar="TEXT", help="its password; better in the config file")
    group.add_argument("--redis-prefix", metavar="TEXT", help="what the names of its keys start with")


def _number(low: int, high: int) -> Callable[[str], int]:
    def value(text: str) -> int:
        if not low <= number(text) <= high:
            raise ConfigError(f"takes a number from {low} to {high}, not {text!r}")
        return number(text)

    return _for_argparse(value)


@_for_argparse
def _descriptors(text: str) -> int:
    # gearmand does not start with fewer either: it runs out of them.
    if number(text) and not 32 <= number(text) <= 1 << 30:
        raise ConfigError(f"takes 0, or a number from 32 to {1 << 30}, not {text!r}")
    return number(text)


def port_number(text: str) -> int:
    """Return the number of a port that is given by number or by the name of a service.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    # COMPAT: an empty name is that of our service, which not every machine's list has.
    return port_or_service(text, lowest=0) if text else DEFAULT_PORT
