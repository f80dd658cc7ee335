"""The tables: as text on a terminal, and in ``docs/reference/performance.md`` with its chart."""

from __future__ import annotations

import re
from collections.abc import Iterator

from benchmarks.chart import Bar
from benchmarks.measures import Side
from benchmarks.results import Record, Result, Row, gain, number, rows
from benchmarks.scenarios import GROUPS, Group, Scenario

_GAIN = "ours is faster, times"


def text_table(scenario: Scenario, result: Result) -> str:
    """Return the figures of a scenario, for a terminal."""
    if len(scenario.sides) > 2:
        return _text_of_many(scenario, result)
    first, second = (side.title for side in scenario.sides)
    lines = [
        f"{scenario.name}: {scenario.summary}",
        f"  {'':30}{first:>14}{second:>14}{'ratio':>9}",
    ]
    for row in rows(scenario, result):
        values = "".join(f"{number(value):>14}" for value in row.values)
        lines.append(f"  {row.figure.title:30}{values}{number(row.ratio):>9}  {row.verdict}".rstrip())
    lines += [f"  {title} failed: {reason}" for title, reason in result.failures.items()]
    return "\n".join(lines) + "\n"


def _text_of_many(scenario: Scenario, result: Result) -> str:
    """Return the figures with a line for each side, for more than two sides."""
    titles = [*(figure.title for figure in scenario.figures), _GAIN]
    lines = [
        f"{scenario.name}: {scenario.summary}",
        f"  {'':30}{''.join(f'{title:>26}' for title in titles)}",
    ]
    for side in scenario.sides:
        cells = "".join(f"{cell:>26}" for cell in _cells_of(scenario, result, side))
        lines.append(f"  {side.title:30}{cells}".rstrip())
    lines += [f"  {title} failed: {reason}" for title, reason in result.failures.items()]
    return "\n".join(lines) + "\n"


def _cells_of(scenario: Scenario, result: Result, side: Side) -> Iterator[str]:
    """Return the figures of a side, and how many times faster the first side is."""
    found = result.medians.get(side.title, {})
    for figure in scenario.figures:
        yield number(found.get(figure.name))
    yield "" if side == scenario.sides[0] else number(gain(scenario, result, side))


def with_tables(page: str, record: Record) -> str:
    """Return a page with the tables of a record between its marks.

    Args:
        page: has a line ``<!-- NAME -->`` and, below, a line ``<!-- /NAME -->`` for each group, and for
            ``machine``.
        record: what was measured.

    Raises:
        ValueError: a mark is missing.
    """
    page = _between(page, "machine", _machine(record))
    for group in GROUPS:
        page = _between(page, group.name, "\n".join(markdown_table(group, record)))
    return page


def _between(page: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if page.find(begin) < 0 or page.find(end) < page.find(begin):
        raise ValueError(f"the page has no lines {begin.strip()} and {end}")
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda _found: f"{begin}{content}\n{end}", page)


def _machine(record: Record) -> str:
    if not record.results:
        return "Nothing was measured yet."
    return f"{record.machine}. {', '.join(record.versions.values())}."


def markdown_table(group: Group, record: Record) -> Iterator[str]:
    """Return the lines of a group's table, and its notes."""
    measured = [scenario for scenario in group.scenarios if scenario.name in record.results]
    if not measured:
        yield "Not measured yet."
        return
    results = {scenario.name: record.results[scenario.name] for scenario in measured}
    if len(group.scenarios[0].sides) > 2:
        for scenario in measured:
            yield from _lines_of_many(scenario, results[scenario.name])
            yield ""
    else:
        first, second = (side.title for side in group.scenarios[0].sides)
        yield f"| load | figure | {first} | {second} | ratio | result |"
        yield "|---|---|--:|--:|--:|---|"
        for scenario in measured:
            label = f"**{scenario.name}**: {scenario.summary}"
            for row in rows(scenario, results[scenario.name]):
                yield f"| {label} | {row.figure.title} | {_cells(row)} |"
                label = ""
        yield ""
    failures: dict[tuple[str, str], list[str]] = {}
    for scenario in measured:
        for failure in results[scenario.name].failures.items():
            failures.setdefault(failure, []).append(scenario.name)
    for (title, reason), names in failures.items():
        yield f"{', '.join(names)}, {title}: the run failed, {reason}."
    for when, names in _circumstances(results).items():
        yield f"{when}: {', '.join(names)}." if len(_circumstances(results)) > 1 else f"{when}."


def _lines_of_many(scenario: Scenario, result: Result) -> Iterator[str]:
    """Return a table with a row for each side."""
    titles = " | ".join([*(figure.title for figure in scenario.figures), _GAIN])
    yield f"| **{scenario.name}**: {scenario.summary} | {titles} |"
    yield f"|---|{'--:|' * (len(scenario.figures) + 1)}"
    for side in scenario.sides:
        yield f"| {' | '.join([side.title, *_cells_of(scenario, result, side)])} |"


def _cells(row: Row) -> str:
    return " | ".join([*map(number, row.values), number(row.ratio), row.verdict])


def _circumstances(results: dict[str, Result]) -> dict[str, list[str]]:
    """Return when and how scenarios were measured."""
    found: dict[str, list[str]] = {}
    for name, result in results.items():
        rounds = "1 round" if result.rounds == 1 else f"medians of {result.rounds} rounds"
        when = f"Measured on {result.date}, {rounds}{'; ' if result.note else ''}{result.note}"
        found.setdefault(when, []).append(name)
    return found


def bars(record: Record) -> list[Bar]:
    """Return the bars of the chart: speed and CPU time in the two groups about gearmand's speed."""
    found = []
    for group in GROUPS[:2]:
        for scenario in group.scenarios:
            if scenario.name not in record.results:
                continue
            for row in rows(scenario, record.results[scenario.name]):
                if row.figure.chart and row.ratio:
                    step = next((s for s in ("submit", "drain") if row.figure.name.startswith(s)), "")
                    label = f"{scenario.name}{', ' if step else ''}{step}"
                    times = row.ratio if row.figure.is_more_better else 1 / row.ratio
                    found.append(Bar(label, row.figure.chart, times))
    # Stable: within a scenario, what is of the same step stands together.
    order = {bar.label: position for position, bar in reversed(list(enumerate(found)))}
    return sorted(found, key=lambda bar: order[bar.label])
