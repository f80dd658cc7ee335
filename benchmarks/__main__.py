"""``python -m benchmarks``: measure, print tables, and update the documentation."""

from __future__ import annotations

import argparse
import datetime as dt
import resource
import signal
import sys
import time
from pathlib import Path

from benchmarks.chart import chart
from benchmarks.machine import describe_machine, versions
from benchmarks.measures import Bench, Figures, Side
from benchmarks.page import bars, text_table, with_tables
from benchmarks.programs import Load, Missing, RunFailed, scratch
from benchmarks.results import Record, Result, medians
from benchmarks.scenarios import GROUPS, Scenario, chosen

CHART_TITLE = "How much ours does while gearmand does 1"
DOCS = Path(__file__).parents[1] / "docs" / "reference"
_EPILOG = """\
examples:
  python -m benchmarks                        all that is usual; writes docs/reference/performance.md
  python -m benchmarks --rounds 1 sync busy   two scenarios, and nothing is written
  python -m benchmarks stores                 background jobs beside gearmand on the same databases
  python -m benchmarks restart memory --write what takes long is measured only when it is named
  python -m benchmarks libraries              clients and workers beside other libraries, some from PyPI
  python -m benchmarks list                   the names
  python -m benchmarks page                   write page and chart again from docs/reference/performance.json

The sides run in turn, each started afresh for each run. Read the ratios: other figures differ from
machine to machine and from hour to hour. Nothing else should run meanwhile.

exit status: 0 if all was measured, 1 if a run failed or something was missing.
"""


def main(words: list[str]) -> int:
    """Run the command with these arguments; return its exit status."""
    options = _parser().parse_args(words)
    if "list" in options.names:
        sys.stdout.write(listing())
        return 0
    if "page" in options.names:
        write(Record.read(DOCS / "performance.json"), DOCS)
        return 0
    try:
        scenarios = chosen(options.names)
    except ValueError as error:
        _parser().error(str(error))
    writes = options.write if options.write is not None else not options.names
    if writes and options.scale != 1:
        _parser().error("what is scaled is not written: leave out --scale, or say --no-write")
    # The servers get it from here, and have 10,000 connections in one scenario.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        with scratch() as directory:
            bench = Bench(Load(directory), options.scale)
            record = Record(describe_machine(), {}, {})
            all_went_well = True
            for position, scenario in enumerate(scenarios, start=1):
                what = f"{position} of {len(scenarios)}: {scenario.name}"
                try:
                    result = measured(
                        bench, scenario, directory, rounds=options.rounds, note=options.note, what=what
                    )
                except Missing as error:
                    sys.stdout.write(f"{scenario.name} was not measured: {error}\n\n")
                    all_went_well = False
                    continue
                finally:
                    _show("")
                record.results[scenario.name] = result
                all_went_well = all_went_well and not result.failures
                sys.stdout.write(f"{text_table(scenario, result)}\n")
                sys.stdout.flush()
            record.versions = versions() | {kind: text for kind, text in bench.versions.items() if text}
    except Missing as error:
        sys.stderr.write(f"benchmarks: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nbenchmarks: stopped; nothing was written\n")
        return 1
    if writes and record.results:
        write(record, DOCS)
    return 0 if all_went_well else 1


def measured(
    bench: Bench, scenario: Scenario, directory: Path, *, rounds: int, note: str = "", what: str = ""
) -> Result:
    """Measure a scenario: its sides in turn, in reverse order in every other round.

    Args:
        bench: what runs share.
        scenario: which.
        directory: where each run gets a directory of its own.
        rounds: how many.
        note: goes into the result.
        what: shown while it runs, on a terminal.

    Raises:
        Missing: what it needs is not here.
    """
    runs: dict[str, list[Figures]] = {side.title: [] for side in scenario.sides}
    failures: dict[str, str] = {}
    start = time.monotonic()
    for turn in range(rounds):
        for side in scenario.sides if turn % 2 == 0 else reversed(scenario.sides):
            if side.title in failures:
                continue
            _show(f"{what}, round {turn + 1} of {rounds}, {side.title}, {time.monotonic() - start:.0f} s")
            try:
                runs[side.title].append(_run(bench, scenario, side, directory))
            except RunFailed as error:
                failures[side.title] = str(error)
    found = {title: {} if title in failures else medians(runs[title]) for title in runs}
    today = dt.datetime.now(tz=dt.timezone.utc).date().isoformat()
    return Result(found, failures, rounds, today, note)


def _run(bench: Bench, scenario: Scenario, side: Side, directory: Path) -> Figures:
    with scratch(directory) as own:
        return scenario.measure(bench, side, own, scenario.words)


def listing() -> str:
    """Return the groups with their scenarios, for a terminal."""
    lines = []
    for group in GROUPS:
        lines.append(f"{group.name}: {group.summary}{'' if group.is_usual else '; only when it is named'}")
        lines += [f"  {scenario.name:20} {scenario.summary}" for scenario in group.scenarios]
    return "\n".join(lines) + "\n"


def write(record: Record, docs: Path) -> None:
    """Merge a record with the one in a directory, and rewrite its page and its chart."""
    path = docs / "performance.json"
    joined = Record.read(path).joined(record)
    joined.write(path)
    page = docs / "performance.md"
    page.write_text(with_tables(page.read_text("utf-8"), joined), "utf-8")
    (docs / "performance.svg").write_text(chart(CHART_TITLE, bars(joined)), "utf-8")
    sys.stdout.write(f"written: {page}\n")


def _show(text: str) -> None:
    """Show a line of progress on a terminal, in place of the last one."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 upward")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures our job server beside Debian's gearmand, and our libraries beside others.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="scenarios or groups, or `list`, or `page`")
    parser.add_argument("--rounds", type=_positive, default=3, metavar="N", help="runs of each side (3)")
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="X", help="multiply the numbers of jobs, to try it"
    )
    parser.add_argument(
        "--write",
        action=argparse.BooleanOptionalAction,
        help="write docs/reference/performance.md, .svg and .json; by default, if nothing is named",
    )
    parser.add_argument("--note", default="", metavar="TEXT", help="stands below the tables that are written")
    return parser


if __name__ == "__main__":
    # As SIGINT does, it leaves no server running and no database behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
