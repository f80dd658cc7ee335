"""Results: medians, ratios, and the file with the last figures of each scenario."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from benchmarks.measures import Figures, Side
from benchmarks.scenarios import Figure, Scenario


@attrs.frozen
class Result:
    """The figures of a scenario.

    Attributes:
        medians: of each side, by its title, the median of each figure over the rounds; empty for a side
            that failed.
        failures: why runs failed, by the title of the side.
        rounds: how many there were.
        date: when, as ``2026-01-31``.
        note: what a reader should know of the circumstances, may be empty.
    """

    medians: Mapping[str, Figures]
    failures: Mapping[str, str]
    rounds: int
    date: str
    note: str = ""


@attrs.frozen
class Row:
    """A figure of both sides.

    Attributes:
        figure: which.
        values: of the first and the second side, None where its run failed.
    """

    figure: Figure
    values: tuple[float | None, float | None]

    @property
    def ratio(self) -> float | None:
        """Return the first over the second; None if one is missing or the second is 0."""
        first, second = self.values
        return first / second if first is not None and second else None

    @property
    def verdict(self) -> str:
        """Return ``ahead``, ``behind``, or nothing within 3 %, for the first side."""
        if self.ratio is None or 0.97 <= self.ratio <= 1.03:
            return ""
        return "ahead" if (self.ratio > 1) == self.figure.is_more_better else "behind"


def medians(runs: Sequence[Figures]) -> Figures:
    """Return the median of each figure that all runs have."""
    names = [name for name in runs[0] if all(name in run for run in runs)] if runs else []
    return {name: statistics.median(run[name] for run in runs) for name in names}


def rows(scenario: Scenario, result: Result) -> Iterator[Row]:
    """Return the shown figures of a scenario with two sides, in order."""
    first, second = (result.medians.get(side.title, {}) for side in scenario.sides)
    for figure in scenario.figures:
        yield Row(figure, (first.get(figure.name), second.get(figure.name)))


def gain(scenario: Scenario, result: Result, side: Side) -> float | None:
    """Return how many times better the first side is than another one, in the first figure.

    Args:
        scenario: one of more than two sides.
        result: its figures.
        side: the other one.

    Returns:
        1 for the same, less where the other one is better; None where a figure is missing or 0.
    """
    figure = scenario.figures[0]
    first = result.medians.get(scenario.sides[0].title, {}).get(figure.name)
    other = result.medians.get(side.title, {}).get(figure.name)
    if not first or not other:
        return None
    return first / other if figure.is_more_better else other / first


def number(value: float | None) -> str:
    """Return a figure with two or three significant digits; a hyphen for none."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 or not value else f"{value:.2g}"


@attrs.define
class Record:
    """The last result of each scenario, all from one machine.

    Attributes:
        machine: what it is, in a few words.
        versions: what ran on it, by what it is.
        results: by the names of the scenarios.
    """

    machine: str
    versions: dict[str, str]
    results: dict[str, Result]

    @classmethod
    def read(cls, path: Path) -> Record:
        """Return the record in a file; an empty one if there is none."""
        if not path.exists():
            return cls("", {}, {})
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        results = {name: Result(**fields) for name, fields in content["results"].items()}
        return cls(content["machine"], content["versions"], results)

    def write(self, path: Path) -> None:
        """Write it to a file."""
        path.write_text(json.dumps(attrs.asdict(self), indent=1, ensure_ascii=False) + "\n", "utf-8")

    def joined(self, newer: Record) -> Record:
        """Return this with newer results merged in; those from another machine are dropped."""
        if newer.machine != self.machine:
            return newer
        return Record(self.machine, self.versions | newer.versions, self.results | newer.results)
