"""The command ``gearadmin``: asks a job server by its text protocol, and prints the answers."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gearman_twisted.commands.arguments import (
    TLS_HELP,
    OneLineParser,
    add_information_options,
    add_server_options,
)

if TYPE_CHECKING:
    from gearman_twisted.client import AdminClient

_EXAMPLES = f"""\
examples:
  gearadmin --status                    per function: jobs, of these running, workers
  gearadmin --priority-status           per function: queued jobs of high, normal, low priority, workers
  gearadmin --show-jobs                 per job: handle, attempts, 1 if cancelled, 1 if in the background
  gearadmin --max-queue resize 1000     further jobs are refused once 1000 are queued
  gearadmin --max-queue resize          no limit any more

Several questions are answered in the order in which they are asked. Without -h and -p the server is
localhost:4730, or the first of GEARMAN_SERVER or GEARMAN_SERVERS in the environment (host:port,host:port)
that can be connected to.

{TLS_HELP}
exit status: 0 if all was answered; 1 if the server refused something or could not be reached, or an option
makes no sense.
"""

# Option, command, and what it takes.
_COMMANDS: list[tuple[str, str, str | None, str]] = [
    ("--status", "status", None, "all functions, their jobs and workers"),
    ("--priority-status", "prioritystatus", None, "all functions, their queued jobs by priority"),
    ("--workers", "workers", None, "all connections, and the functions that they offer"),
    ("--show-jobs", "show jobs", None, "all jobs"),
    ("--show-unique-jobs", "show unique jobs", None, "the uniques of all jobs"),
    ("--ready", "ready", None, "whether the server has read its stored jobs; status 1 if it has not"),
    ("--cancel-job", "cancel job", "HANDLE", "take a queued job out of the queue"),
    ("--create-function", "create function", "FUNCTION", "make the server know a function"),
    ("--drop-function", "drop function", "FUNCTION", "make the server forget a function that is not in use"),
    ("--getpid", "getpid", None, "the server's process id"),
    ("--server-version", "version", None, "the server's version"),
    ("--server-verbose", "verbose", None, "the server's log level"),
]


class _AddCommand(argparse.Action):
    """Keeps the commands in the order in which they stand."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        """Adds one; it is formatted as the server takes it."""
        words = [values] if isinstance(values, str) else values or []
        if any(not word or word.split() != [word] for word in words):
            raise argparse.ArgumentError(self, f"a name is one word, without blanks: {words!r}")
        namespace.commands.append(" ".join([self.const, *words]))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: the words behind its name; those of the process if None.

    Returns:
        The exit status.
    """
    parser = _parser()
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if not options.commands:
        parser.error("nothing to do was given, such as --status")

    from gearman_twisted.commands.process import die_of_broken_pipe, reopen_standard_streams, run_and_stop
    from gearman_twisted.errors import GearmanError

    reopen_standard_streams()
    try:
        return run_and_stop(lambda reactor: _run(reactor, options))
    except GearmanError as error:
        sys.stderr.write(f"gearadmin: {error}\n")
    except BrokenPipeError:
        die_of_broken_pipe()
    except OSError as error:
        sys.stderr.write(f"gearadmin: {error.strerror}\n")
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="gearadmin",
        usage="gearadmin [-h HOST] [-p PORT] COMMAND ...",
        description="Asks a Gearman job server how it is, and changes its queues.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.set_defaults(commands=[])
    server = parser.add_argument_group("server")
    add_server_options(server)
    add_information_options(server)
    commands = parser.add_argument_group("commands")
    for option, command, metavar, text in _COMMANDS:
        nargs = 0 if metavar is None else None
        commands.add_argument(
            option,
            action=_AddCommand,
            const=command,
            nargs=nargs,
            metavar=metavar,
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


async def _run(reactor: Any, options: argparse.Namespace) -> int:
    from gearman_twisted.client import AdminClient
    from gearman_twisted.commands.servers import FirstThatConnects, client_tls, server_addresses

    addresses = server_addresses(options.host, options.port, os.environ)
    endpoint = FirstThatConnects(reactor, addresses, tls=client_tls(options.tls, os.environ))
    async with AdminClient(endpoint, reactor=reactor) as client:
        # DIFFERS: there, a refusal is printed too, but the exit status is 0; and several commands are run in
        # an order of their own.
        results = [await _ask(client, command) for command in options.commands]
        return 0 if all(results) else 1


async def _ask(client: AdminClient, command: str) -> bool:
    """Prints the answer; returns whether it is a good one."""
    reply = await client.command(os.fsencode(command))
    is_list = reply.count(b"\n") > 1  # whose first function may have any name
    if reply.startswith(b"ERR") and not is_list:
        sys.stderr.buffer.write(b"Error: " + reply[4:])
        sys.stderr.buffer.flush()
        return False
    if reply.startswith(b"OK") and not is_list:
        reply = (reply[3:] if reply.startswith(b"OK ") else reply).rstrip(b"\r\n") + b"\n"
    sys.stdout.buffer.write(reply)
    sys.stdout.buffer.flush()
    return True


if __name__ == "__main__":
    sys.exit(main())
