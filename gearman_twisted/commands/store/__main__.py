"""The command ``gearman-store``: looks into job stores, copies them, and imports what gearmand left."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

from gearman_twisted.commands.arguments import OneLineParser, add_information_options

_EXAMPLES = """\
examples:
  gearman-store count sqlite:/var/lib/gearman/jobs.db
  gearman-store list sqlite:jobs.db --function resize --limit 20
  gearman-store show sqlite:jobs.db H:db1:1792000000000001 --workload > photo.jpg
  gearman-store copy sqlite:jobs.db 'postgresql://gearman@db/jobs?password_file=/etc/gearman/password'
  gearman-store import sqlite:/var/lib/gearman/old.db sqlite:/var/lib/gearman/jobs.db --dry-run

A store is named as for the server, see twistd gearman --help-store. No server may run on it meanwhile; a
running one lists its jobs with gearadmin --show-jobs. "gearman-store COMMAND --help" explains a command.

exit status: 0 if all went well, 1 if something did not, or an option is invalid.
"""
_LIST_EXAMPLES = """\
examples:
  gearman-store list sqlite:jobs.db
  gearman-store list sqlite:jobs.db --function resize --json | jq .bytes

A line per job, in the order in which they were submitted: handle, function, unique, priority, bytes of the
workload, and when it may run: now, at a time (in UTC), or each time that fits a schedule.
"""
_COUNT_EXAMPLES = """\
example:
  gearman-store count sqlite:jobs.db

A line per function: its jobs of high, normal and low priority, how many of them wait for their time, their
number, and the bytes of their workloads; the last line has the totals.
"""
_SHOW_EXAMPLES = """\
examples:
  gearman-store show sqlite:jobs.db H:db1:1792000000000001
  gearman-store show sqlite:jobs.db 1792000000000001 --workload | gunzip
"""
_COPY_EXAMPLES = """\
examples:
  gearman-store copy sqlite:jobs.db sqlite:/mnt/backup/jobs.db
  gearman-store copy sqlite:jobs.db redis://127.0.0.1/1 --dry-run

Jobs keep their ids and handles. FROM is left as it is, and what is in TO stays there. Jobs that TO has
already are passed over, so a copy that was stopped goes on when it is run again. If TO has another job under
an id of FROM, nothing is copied. At the end all is read back and compared.
"""
_IMPORT_EXAMPLES = """\
FROM is where the original gearmand kept its queue:
  sqlite:PATH?table=gearman_queue               gearmand -q libsqlite3
  postgresql://USER@HOST/DATABASE?table=queue   gearmand -q Postgres
  mysql://USER@HOST/DATABASE?table=gearman_queue
                                                gearmand -q MySQL
  redis://HOST:PORT/0?prefix=_gear_             gearmand -q redis
Table and prefix are as shown where they are not given. A password goes into a file, ?password_file=PATH, or
into the environment, ?password_env=VARIABLE.

examples:
  gearman-store import sqlite:/var/lib/gearman/old.db sqlite:/var/lib/gearman/jobs.db --dry-run
  gearman-store import sqlite:/var/lib/gearman/old.db sqlite:/var/lib/gearman/jobs.db
  gearman-store import 'mysql://root@127.0.0.1/gearman?password_env=PASSWORD' sqlite:jobs.db

Stop gearmand first. FROM is left as it is; what cannot be imported is named, and the exit status is then 1.
Jobs get handles of their own, as gearmand stored none. One that is in TO already is not imported again, so an
import that was stopped goes on when it is run again. Once a server has run jobs, it would bring them back.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the words behind its name; those of the process if None.

    Returns:
        The exit status.
    """
    options = _parser().parse_args(sys.argv[1:] if argv is None else argv)

    from twisted.internet.defer import CancelledError

    from gearman_twisted.commands.process import (
        complain,
        die_of_broken_pipe,
        reopen_standard_streams,
    )
    from gearman_twisted.commands.reactor import run_and_stop
    from gearman_twisted.errors import GearmanError

    reopen_standard_streams()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return run_and_stop(lambda reactor: _until_stopped(reactor, options), command="gearman-store")
    except GearmanError as error:
        complain(str(error), "gearman-store")
    except CancelledError:
        may_go_on = options.command in {"copy", "import"}
        complain(f"stopped{'; run the same command again to go on' if may_go_on else ''}", "gearman-store")
    except BrokenPipeError:
        die_of_broken_pipe()
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error), "gearman-store")
    return 1


async def _until_stopped(reactor: Any, options: argparse.Namespace) -> int:
    """Run the command; SIGINT and SIGTERM cancel it in good order, a second one ends it at once."""
    from twisted.internet.defer import Deferred

    work: Deferred[int] = Deferred.fromCoroutine(_run(reactor, options))

    def stop(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        reactor.callFromThread(work.cancel)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    return await work


def _run(reactor: Any, options: argparse.Namespace) -> Coroutine[Any, Any, int]:
    from gearman_twisted.commands.store import listing as store_listing
    from gearman_twisted.commands.store import transfer as store_transfer

    if options.command == "list":
        return store_listing.list_jobs(
            reactor, options.store, function=options.function, limit=options.limit, is_json=options.json
        )
    if options.command == "count":
        return store_listing.count_jobs(reactor, options.store, is_json=options.json)
    if options.command == "show":
        return store_listing.show_job(reactor, options.store, options.job, is_workload=options.workload)
    if options.command == "copy":
        return store_transfer.copy(
            reactor, options.source, options.target, batch=options.batch, is_dry_run=options.dry_run
        )
    return store_transfer.import_queue(
        reactor,
        options.source,
        options.target,
        functions=options.functions,
        batch=options.batch,
        is_dry_run=options.dry_run,
    )


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="gearman-store",
        description="Looks into job stores, copies them, and imports the queues of the original gearmand.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    add_information_options(parser, "-h")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str, epilog: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
            allow_abbrev=False,
        )
        command.add_argument("-h", "--help", action="help", help="show this, and exit")
        return command

    listing = add("list", "list the jobs of a store", _LIST_EXAMPLES)
    listing.add_argument("store", metavar="STORE", help="its URL")
    listing.add_argument(
        "-f", "--function", metavar="NAME", type=os.fsencode, help="only the jobs of this function"
    )
    listing.add_argument("-n", "--limit", metavar="N", type=_number, help="at most so many")
    listing.add_argument("--json", action="store_true", help="print an object per line")

    counting = add("count", "count the jobs of a store by function and priority", _COUNT_EXAMPLES)
    counting.add_argument("store", metavar="STORE", help="its URL")
    counting.add_argument("--json", action="store_true", help="print an object per line")

    showing = add("show", "show one job of a store", _SHOW_EXAMPLES)
    showing.add_argument("store", metavar="STORE", help="its URL")
    showing.add_argument("job", metavar="HANDLE|ID", type=os.fsencode, help="the job's handle or its id")
    showing.add_argument("--workload", action="store_true", help="print the workload alone, byte by byte")

    copying = add("copy", "copy all jobs of a store to another one", _COPY_EXAMPLES)
    importing = add("import", "import the queue that the original gearmand left behind", _IMPORT_EXAMPLES)
    for command, source in (copying, "the store to read"), (importing, "the queue of gearmand"):
        command.add_argument("source", metavar="FROM", help=source)
        command.add_argument("target", metavar="TO", help="the store to write to")
        command.add_argument("--dry-run", action="store_true", help="only say what would be done")
        command.add_argument(
            "--batch",
            metavar="N",
            type=_number,
            default=1000,
            help="save so many jobs at once (default: 1000)",
        )
    importing.add_argument(
        "--function",
        dest="functions",
        metavar="NAME",
        type=os.fsencode,
        action="append",
        default=[],
        help="a function with a hyphen in its name, which keys in Redis may not tell from the unique; may be "
        "repeated",
    )
    return parser


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 upward")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
