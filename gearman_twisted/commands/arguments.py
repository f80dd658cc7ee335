"""The options of ``gearman``, as Debian's tool has them, and what both commands share of options."""

from __future__ import annotations

import argparse
import os
import re
import socket
from collections.abc import Sequence
from typing import NoReturn

from gearman_twisted.wire.constants import (
    DEFAULT_PACKET_BYTES,
    DEFAULT_PORT,
    LARGEST_PACKET_BYTES,
    MAX_UNIQUE_BYTES,
)

# The files of TLS, as libgearman and gearmand find them where nothing else is said.
CA_VARIABLE = "GEARMAND_CA_CERTIFICATE"
TLS_DIRECTORY = "/etc/ssl/certs"
DEFAULT_CA_FILE = f"{TLS_DIRECTORY}/gearmand-ca.pem"

# Of both commands.
TLS_HELP = """\
With TLS the server's certificate has to be signed by the CA in the file that GEARMAND_CA_CERTIFICATE names;
the host's name is not compared. GEARMAN_CLIENT_PEM and GEARMAN_CLIENT_KEY name the certificate and the key
that are shown to a server that asks. The files are otherwise gearmand-ca.pem, gearman.pem and gearman.key in
/etc/ssl/certs; the last two may be missing.
"""

_EXAMPLES = f"""\
examples:
  gearman -w -f wc -- wc -c &           a worker: counts the bytes of each workload
  gearman -f wc < /etc/passwd           a client: all of standard input is one job
  gearman -f wc -n < /etc/passwd        one job per line
  gearman -f reverse "Hello World!"     one job per word of data
  gearman -b -f resize < photo.jpg      hands the job to the server and does not wait
  gearman -b -f report -u '#' today     as before; equal data is one job while it waits or runs
  gearman --ping -h 10.0.0.1            a health check: does the server answer?

Without -h and -p the server is localhost:4730. In the environment, GEARMAN_SERVER=host:port,host:port
overrides -h and -p, and the servers of GEARMAN_SERVERS come after those of -h and -p, or instead of the
default. A client uses the first server that it can connect to, a worker works for all of them. The command
of a worker finds GEARMAN_HANDLE, GEARMAN_FUNCTION and GEARMAN_UNIQUE in its environment.

{TLS_HELP}
exit status: 0 if all went well; 1 if a job failed or was refused, no server could be reached, or an option
is invalid. A worker that is told to stop (SIGTERM, SIGINT) ends the job that runs, and exits with 0.
"""


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line and exit status 1, as those of Debian's tools."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 1."""
        self.exit(1, f"{self.prog}: {message}; see {self.prog} --help\n")

    def _get_formatter(self) -> argparse.HelpFormatter:
        # Made for each option too, for which argparse would load what it needs to ask for the width.
        return argparse.RawDescriptionHelpFormatter(self.prog, width=_columns() - 2)


def _columns() -> int:
    try:
        return int(os.environ.get("COLUMNS") or os.get_terminal_size(1).columns or 80)
    except (OSError, ValueError):
        return 80


class GearmanOptions(argparse.Namespace):
    """The options of ``gearman``, parsed.

    Attributes:
        functions: at least one.
        words: data of the client, or the worker's command; may be empty.
        host: as given, or None.
        port: as given, or None.
        tls: whether ``-S`` was given.
        timeout_ms: negative or 0 to wait for ever.
        max_packet_bytes: the largest packet that the server takes.
        lines: None, or ``-n`` or ``-N``, whichever came last.
        priority: ``high``, ``normal`` or ``low``.
        count: rounds of the worker; 0 for no end.
        ping: only ask whether the server answers.
    """

    functions: list[str]
    words: list[str]
    host: str | None
    port: int | None
    tls: bool
    timeout_ms: int
    max_packet_bytes: int
    pidfile: str | None
    daemon: bool
    verbose: bool
    background: bool
    priority: str
    unique: str
    lines: str | None
    prefix: bool
    no_input: bool
    count: int
    is_worker: bool
    ping: bool


def parse(argv: Sequence[str]) -> GearmanOptions:
    """Return the options of a command line; invalid ones end the process with status 1.

    Args:
        argv: the words behind the command.
    """
    parser = _parser()
    # Everything behind "--" is data, whatever it looks like: the worker's command has options of its own.
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_intermixed_args(words[:end], GearmanOptions())
    options.words += words[end + 1 :]
    if not options.functions and not options.ping:
        parser.error("no function was given; name one with -f")
    if "" in options.functions:
        parser.error("the name of a function cannot be empty")
    if len(options.unique.encode(errors="surrogateescape")) > MAX_UNIQUE_BYTES:
        parser.error(f"the unique key (-u) is at most {MAX_UNIQUE_BYTES} bytes long")
    return options


def add_server_options(group: argparse._ActionsContainer) -> None:
    """Add ``-h``, ``-p`` and ``-S``, which both commands have."""
    group.add_argument("-h", "--host", metavar="HOST", help="the job server's host (default: localhost)")
    group.add_argument(
        "-p",
        "--port",
        metavar="PORT",
        type=port_or_service,
        help=f"its port or the name of one (default: {DEFAULT_PORT})",
    )
    group.add_argument(
        "-S",
        "--ssl",
        dest="tls",
        action="store_true",
        help="connect with TLS; GEARMAND_CA_CERTIFICATE in the environment does so too",
    )


def add_information_options(group: argparse._ActionsContainer, *help_flags: str) -> None:
    """Add ``--help`` and ``--version``."""
    from gearman_twisted.package import __version__

    group.add_argument(*help_flags, "--help", action="help", help="show this, and exit")
    group.add_argument(
        "--version", action="version", version=f"gearman_twisted {__version__}", help="the version"
    )


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="gearman",
        usage="gearman [options] [data ...]\n       gearman -w [options] [-- command [argument ...]]\n"
        "       gearman --ping [-h HOST] [-p PORT] [-t MS]",
        description="Runs jobs on a Gearman job server, or works for one with a command.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    both = parser.add_argument_group("client and worker")
    both.add_argument(
        "-f",
        dest="functions",
        metavar="NAME",
        action="append",
        default=[],
        help="the function; may be repeated",
    )
    add_server_options(both)
    both.add_argument(
        "-t",
        dest="timeout_ms",
        metavar="MS",
        type=int,
        default=-1,
        help="client: give a job up after so many milliseconds without news of it; "
        "worker: that long without a job counts as a job for -c",
    )
    both.add_argument(
        "--max-packet-bytes",
        metavar="SIZE",
        type=_packet_size,
        default=DEFAULT_PACKET_BYTES,
        help="the largest packet that the server takes, up to 4G (default: %(default)s)",
    )
    both.add_argument("-i", dest="pidfile", metavar="FILE", help="keep the process id in a file")
    both.add_argument("-d", dest="daemon", action="store_true", help="run as a daemon")
    both.add_argument("-v", dest="verbose", action="store_true", help="verbose: print the handles of jobs")
    add_information_options(both, "-H")
    parser.add_argument_group("health check").add_argument(
        "--ping",
        action="store_true",
        help="end with 0 if the server answers in the time of -t (here 2000 by default), with 1 if not; "
        "needs neither function nor worker",
    )

    client = parser.add_argument_group("client")
    client.add_argument("-b", dest="background", action="store_true", help="do not wait for the result")
    client.add_argument(
        "-I", dest="priority", action="store_const", const="high", default="normal", help="before other jobs"
    )
    client.add_argument("-L", dest="priority", action="store_const", const="low", help="after other jobs")
    client.add_argument(
        "-u",
        dest="unique",
        metavar="KEY",
        default="",
        help="jobs of one key are one job; # makes it of the data",
    )
    client.add_argument("-P", dest="prefix", action="store_true", help="put 'NAME: ' before all output")
    client.add_argument(
        "-s", dest="no_input", action="store_true", help="empty data; do not read standard input"
    )

    worker = parser.add_argument_group("worker")
    worker.add_argument(
        "-w",
        dest="is_worker",
        action="store_true",
        help="be a worker: run the command for each job, or write the data to standard output without one",
    )
    worker.add_argument("-c", dest="count", metavar="N", type=_count, default=0, help="end after N jobs")

    lines = parser.add_argument_group("client and worker, by lines")
    lines.add_argument(
        "-n",
        dest="lines",
        action="store_const",
        const="-n",
        help="client: one job per line of standard input; worker: send each line of output when it is there",
    )
    lines.add_argument("-N", dest="lines", action="store_const", const="-N", help="-n without the line ends")
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    return parser


def whole_number(text: str) -> int | None:
    """Return the number that a text stands for, None if it stands for none.

    COMPAT: as in C, blanks, a plus sign and zeros may come first: ``gearman "-p 4730"``.
    """
    # int() takes underscores and digits of other scripts.
    match = re.fullmatch(r"\s*\+?0*([0-9]{1,12})\s*", text, re.ASCII)
    return int(match[1]) if match else None


def _packet_size(text: str) -> int:
    from gearman_twisted.engine.settings import packet_size
    from gearman_twisted.errors import ConfigError

    try:
        number = packet_size(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not 1024 <= number <= LARGEST_PACKET_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size from 1024 to 4G")
    return number


def port_or_service(text: str, lowest: int = 1) -> int:
    """Return the number of a port that is given by number or by the name of a service.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    try:
        port = whole_number(text)
        port = socket.getservbyname(text, "tcp") if port is None else port
    except OSError:
        port = -1
    if not lowest <= port < 65536:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a port: a number from {lowest} to 65535, or a service's name"
        )
    return port


def _count(text: str) -> int:
    count = whole_number(text)
    if count is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of jobs")
    return count
