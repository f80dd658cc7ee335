"""The command ``gearadmin``: sends commands of the text protocol to a job server, and prints the replies."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gearman_twisted.commands.arguments import (
    TLS_HELP,
    OneLineParser,
    add_information_options,
    add_server_options,
)
from gearman_twisted.errors import LocalProtocolError
from gearman_twisted.wire.shown import shown_reply
from gearman_twisted.wire.text import check_limits

if TYPE_CHECKING:
    from gearman_twisted.commands.connection import ServerConnection

_EXAMPLES = f"""\
examples:
  gearadmin --status                    per function: jobs, of these running, workers
  gearadmin --priority-status           per function: queued jobs of high, normal, low priority, workers
  gearadmin --show-jobs                 per job: handle, attempts, 0, 1 if in the background
  gearadmin --max-queue resize 1000     further jobs are refused once 1000 are queued
  gearadmin --max-queue resize          no limit any more
  gearadmin --show-scheduled            per job: handle, function, unique, next time, schedule
  gearadmin --ready --timeout 2         a health check: exit status 0 if the server serves jobs

Several commands run in the given order. Without -h and -p the server is localhost:4730. In the environment,
GEARMAN_SERVER=host:port,host:port overrides -h and -p, and the servers of GEARMAN_SERVERS come after those of
-h and -p, or replace the default. The first server that accepts a connection is used.

{TLS_HELP}
exit status: 0 if all was answered; 1 if the server refused something, could not be reached or did not answer
in time, or an option is invalid.
"""

# Seconds that a server has for its answer: a busy one may need some, a probe should not wait for long.
_TIMEOUT = 10.0
_READY_TIMEOUT = 5.0

# Option, command, and what it takes.
_QUESTIONS: list[tuple[str, str, tuple[str, ...], str]] = [
    ("--status", "status", (), "all functions, their jobs and workers"),
    ("--priority-status", "prioritystatus", (), "all functions, their queued jobs by priority"),
    ("--workers", "workers", (), "all connections, and the functions that they offer"),
    ("--show-jobs", "show jobs", (), "all jobs"),
    ("--show-unique-jobs", "show unique jobs", (), "the uniques of all jobs"),
    ("--show-scheduled", "show scheduled", (), "all jobs that wait for their time, recurring ones too"),
    ("--ready", "ready", (), "whether the server has read its stored jobs; exit status 1 if it has not"),
    ("--getpid", "getpid", (), "the server's process id"),
    ("--server-version", "version", (), "the server's version"),
    ("--server-verbose", "verbose", (), "the server's log level"),
]
_CHANGES: list[tuple[str, str, tuple[str, ...], str]] = [
    ("--cancel-job", "cancel job", ("HANDLE",), "end a job, queued or running, without a result"),
    ("--cancel-unique", "cancel unique", ("FUNCTION", "UNIQUE"), "the same, also for a recurring job"),
    ("--create-function", "create function", ("FUNCTION",), "make the server know a function"),
    (
        "--drop-function",
        "drop function",
        ("FUNCTION",),
        "make the server forget a function that is not in use",
    ),
    ("--shutdown", "shutdown", (), "end a server that was started with --allow-shutdown"),
    ("--shutdown-graceful", "shutdown graceful", (), "the same, once no job is left"),
]

# Commands whose reply need not begin with OK: not even values do with every server.
_LISTS_AND_VALUES = ("status", "prioritystatus", "workers", "show", "getpid", "version", "verbose")


# Not what ``int`` takes besides: signs, underscores and the digits of other scripts.
_DIGITS = re.compile(r"[0-9]{1,18}")


class _AddCommand(argparse.Action):
    """Keep the commands in the order in which they stand."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        """Add one, formatted as the server takes it."""
        words = [values] if isinstance(values, str) else values or []
        if any(not word or word.split() != [word] for word in words):
            raise argparse.ArgumentError(self, f"a name is one word, without blanks: {words!r}")
        if self.const == "maxqueue":
            try:
                check_limits([int(word) if _DIGITS.fullmatch(word) else word for word in words[1:]])
            except LocalProtocolError as error:
                raise argparse.ArgumentError(self, str(error)) from error
        namespace.commands.append(" ".join([self.const, *words]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the words behind its name; those of the process if None.

    Returns:
        The exit status.
    """
    parser = _parser()
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if not options.commands:
        parser.error("nothing to do was given, such as --status")

    from gearman_twisted.commands.connection import ServerConnection
    from gearman_twisted.commands.process import complain, die_of_broken_pipe, reopen_standard_streams
    from gearman_twisted.commands.servers import server_addresses, tls_files
    from gearman_twisted.errors import GearmanError

    reopen_standard_streams()
    # Nothing has to be put in order: what dies by a signal says so in its status.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    timeout = options.timeout or (_READY_TIMEOUT if options.commands == ["ready"] else _TIMEOUT)
    addresses = server_addresses(options.host, options.port, os.environ)
    try:
        with ServerConnection(addresses, tls_files(options.tls, os.environ), timeout) as server:
            # DIFFERS: there, a refusal is printed too, but the exit status is 0; and several commands are run
            # in an order of their own.
            results = [_ask(server, command) for command in options.commands]
        return 0 if all(results) else 1
    except GearmanError as error:
        complain(str(error), "gearadmin")
    except BrokenPipeError:
        die_of_broken_pipe()
    except OSError as error:
        complain(str(error.strerror), "gearadmin")
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="gearadmin",
        usage="gearadmin [-h HOST] [-p PORT] [--timeout SECONDS] COMMAND ...",
        description="Ask a Gearman job server how it is, and change its queues.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.set_defaults(commands=[])
    server = parser.add_argument_group("server")
    add_server_options(server)
    server.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        help=f"how long to wait for an answer (default: {_TIMEOUT:g}; {_READY_TIMEOUT:g} for --ready)",
    )
    add_information_options(server)
    for title, rows in ("questions", _QUESTIONS), ("changes", _CHANGES):
        commands = parser.add_argument_group(title)
        for option, command, takes, text in rows:
            commands.add_argument(
                option,
                action=_AddCommand,
                const=command,
                nargs=0 if not takes else None if len(takes) == 1 else len(takes),
                metavar=takes[0] if len(takes) == 1 else takes,
                dest="commands",
                help=text,
            )
    commands.add_argument(
        "--max-queue",
        action=_AddCommand,
        const="maxqueue",
        nargs="+",
        metavar=("FUNCTION", "N"),
        dest="commands",
        help="limit queued jobs: one number for all priorities, or three for high, normal, low; or none",
    )
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"takes seconds, more than 0, not {text!r}")
    return seconds


def _ask(server: ServerConnection, command: str) -> bool:
    """Print the reply; return whether it is a good one."""
    from gearman_twisted.wire.text import check_done, is_unknown

    words = os.fsencode(command)
    reply = server.ask(words)
    is_list = reply.count(b"\n") > 1  # whose first function may have any name
    if reply.startswith(b"ERR") and not is_list:
        sys.stderr.buffer.write(b"Error: " + shown_reply(reply[4:]))
        if is_unknown(reply):
            text = b"gearadmin: the server does not know, or not allow, the command '%b'\n"
            sys.stderr.buffer.write(text % words)
        sys.stderr.buffer.flush()
        return False
    if command.split(maxsplit=1)[0] not in _LISTS_AND_VALUES:
        check_done(words, reply)
    if reply.startswith(b"OK") and not is_list:
        reply = (reply[3:] if reply.startswith(b"OK ") else reply).rstrip(b"\r\n") + b"\n"
    sys.stdout.buffer.write(shown_reply(reply))
    sys.stdout.buffer.flush()
    return True


if __name__ == "__main__":
    sys.exit(main())
