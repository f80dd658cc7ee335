"""The scenarios, in groups, and the figures that each of them has."""

from __future__ import annotations

import attrs

from benchmarks.attacks import ATTACKS
from benchmarks.library_runs import registering, submitting, working
from benchmarks.measures import (
    CALM,
    STALL,
    Measure,
    Side,
    under_attack,
    under_load,
    until_first_job,
    while_store_stands,
    with_idle_workers,
)


@attrs.frozen
class Figure:
    """A number that a run returns.

    Attributes:
        name: by which the run has it.
        title: in tables, with the unit.
        is_more_better: whether the higher one wins.
        chart: what its bar shows in the chart, ``speed`` or ``CPU``; empty for no bar.
    """

    name: str
    title: str
    is_more_better: bool = False
    chart: str = ""


@attrs.frozen
class Scenario:
    """A load for two servers in turn, or a task for libraries in turn.

    Attributes:
        name: by which it is asked for.
        summary: what it shows, in a line.
        words: the load.
        figures: what is shown of the figures that it has.
        sides: two or more. Of two, ratios are the first one's figures over those of the second. Of more,
            they say how much better the first one is than each of them in the first figure.
        measure: does a run.
    """

    name: str
    summary: str
    words: str
    figures: tuple[Figure, ...]
    sides: tuple[Side, ...]
    measure: Measure = under_load


@attrs.frozen
class Group:
    """Scenarios that share a table.

    Attributes:
        name: by which they are asked for.
        summary: what they are.
        is_usual: whether they are measured when nothing is asked for by name.
        scenarios: in the order in which they run.
    """

    name: str
    summary: str
    is_usual: bool
    scenarios: tuple[Scenario, ...]


OURS, GEARMAND = Side("ours"), Side("gearmand", is_ours=False)
STORES = ("sqlite", "postgresql", "mysql", "redis")

_SPEED = Figure("jobs_per_s", "jobs/s", is_more_better=True, chart="speed")
_VOLUME = Figure("mib_per_s", "MiB/s", is_more_better=True, chart="speed")
_CPU = Figure("cpu_us_per_job", "server CPU per job, µs", chart="CPU")
_OWN_CPU = Figure("cpu_us_per_job", "its own CPU per job, µs")
_MEDIAN = Figure("p50_us", "median latency, µs")
_P99 = Figure("p99_us", "p99 latency, µs")
_CALM_P99 = Figure("calm_p99_us", "p99 latency before, µs")
_WORST = Figure("max_us", "worst latency, µs")
_ADDED_RSS = Figure("added_rss_mib", "memory that they take, MiB")
_RSS = Figure("rss_mib", "memory, MiB")
_SUBMITS = Figure("submits_per_s", "submits/s", is_more_better=True, chart="speed")
_DRAINS = Figure("drains_per_s", "drained jobs/s", is_more_better=True, chart="speed")
_SUBMIT_CPU = Figure("submit_cpu_us_per_job", "server CPU per submit, µs", chart="CPU")
_DRAIN_CPU = Figure("drain_cpu_us_per_job", "server CPU per drained job, µs", chart="CPU")
_QUEUED = Figure("queued_rss_mib", "memory with all queued, MiB")

_FOREGROUND = (_SPEED, _CPU, _P99, _RSS)
_BACKGROUND = (_SUBMITS, _DRAINS, _SUBMIT_CPU, _DRAIN_CPU, _QUEUED)
_BUSY = "foreground --clients=4 --workers=4 --depth=8 --jobs=60000"


_REGISTER = Figure("register_s", "seconds")
_REGISTER_CPU = Figure("register_cpu_us", "CPU per function, µs")
_LIBRARIES = {
    "ours": "ours",
    "aio": "ours, asyncio",
    "gear": "gear (Python)",
    "gearman3": "gearman3 (Python)",
    "libgearman": "libgearman (C)",
    "php": "PHP's extension",
    "perl": "Gearman::Client (Perl)",
}


def _clients(outstanding: int) -> tuple[Side, ...]:
    """Return clients, each with that many pending jobs."""
    return tuple(
        Side(title, kind, kind in {"ours", "aio"}, (str(outstanding),)) for kind, title in _LIBRARIES.items()
    )


def _workers() -> tuple[Side, ...]:
    return tuple(
        Side(title.replace("Client", "Worker"), kind, kind in {"ours", "aio"})
        for kind, title in _LIBRARIES.items()
    )


def _pair(kind: str) -> tuple[Side, Side]:
    return Side("ours", kind), Side("gearmand", kind, is_ours=False)


def _server(
    name: str, summary: str, words: str, figures: tuple[Figure, ...], kind: str = "memory"
) -> Scenario:
    return Scenario(name, summary, words, figures, _pair(kind))


GROUPS = (
    Group(
        "server",
        "our server beside gearmand, both with jobs in memory but for `durable`",
        True,
        (
            _server(
                "sync",
                "one client, one worker, one job at a time",
                "foreground --clients=1 --workers=1 --depth=1 --jobs=20000",
                _FOREGROUND,
            ),
            _server("busy", "4 clients, 4 workers, 8 jobs open for each client", _BUSY, _FOREGROUND),
            _server(
                "crowd",
                "200 clients, 200 workers, 2 jobs open for each client",
                "foreground --clients=200 --workers=200 --depth=2 --jobs=60000",
                _FOREGROUND,
            ),
            _server(
                "herd",
                "as busy, with 500 workers more that sleep",
                "foreground --clients=4 --workers=4 --depth=8 --jobs=20000 --sleepers=500",
                _FOREGROUND,
            ),
            Scenario(
                "idle",
                "10,000 workers connected, all asleep",
                "10000",
                (_ADDED_RSS, _RSS),
                _pair("memory"),
                with_idle_workers,
            ),
            _server(
                "large",
                "workloads of 4 MiB there and back",
                "foreground --clients=4 --workers=4 --depth=2 --jobs=400 --bytes=4194304",
                (_VOLUME, _CPU, _P99, _RSS),
            ),
            _server(
                "queue",
                "200,000 background jobs queued, then drained",
                "background --clients=4 --workers=4 --depth=64 --jobs=200000 --uniques=1",
                _BACKGROUND,
            ),
            _server(
                "deep",
                "1,000,000 background jobs queued, then drained",
                "background --clients=4 --workers=4 --depth=256 --jobs=1000000 --uniques=1 --patience=1200",
                _BACKGROUND,
            ),
            _server(
                "durable",
                "3,000 background jobs, each on disk (SQLite) before it is acknowledged",
                "background --clients=4 --workers=4 --depth=64 --jobs=3000 --uniques=1",
                _BACKGROUND,
                "sqlite",
            ),
        ),
    ),
    Group(
        "stores",
        "background jobs acknowledged for five seconds, then drained, on the same database",
        True,
        tuple(
            _server(
                kind,
                "4 clients, 64 jobs open for each",
                "background --clients=4 --workers=4 --depth=64 --jobs=2000000 --seconds=5 --uniques=1 "
                "--patience=600",
                (_SUBMITS, _DRAINS, _SUBMIT_CPU, _DRAIN_CPU),
                kind,
            )
            for kind in STORES
        ),
    ),
    Group(
        "beside",
        "foreground jobs on a server that has a store, beside one that has none",
        True,
        tuple(
            Scenario(
                f"beside-{kind}",
                "as busy",
                _BUSY,
                _FOREGROUND,
                (Side("with store", kind), Side("without")),
            )
            for kind in STORES
        ),
    ),
    Group(
        "stall",
        f"foreground jobs while the store stands still for {STALL} seconds and others wait for it",
        True,
        tuple(
            Scenario(
                f"stall-{kind}",
                "500 foreground jobs a second beside 50 background jobs a second",
                f"foreground --clients=4 --workers=4 --rate=500 --jobs=100000 --seconds={STALL + 1}",
                (_CALM_P99, _P99, _MEDIAN, _WORST, Figure("refused", "refused background jobs")),
                _pair(kind),
                while_store_stands,
            )
            for kind in STORES
        ),
    ),
    Group(
        "patience",
        "foreground jobs, one at a time, while ten peers each send up to 1 MiB of what is costly, and leave",
        False,
        tuple(
            Scenario(
                f"patience-{name}",
                attack.summary,
                name,
                (
                    Figure("max_ms", "longest wait, ms"),
                    Figure("p99_ms", "p99 wait, ms"),
                    Figure("attack_s", "seconds until all was answered, 4 at most"),
                ),
                (Side("attacked"), Side(CALM)),
                under_attack,
            )
            for name, attack in ATTACKS.items()
        ),
    ),
    Group(
        "restart",
        "the time until a worker has the first of 1,000,000 jobs that were stored in SQLite",
        False,
        (
            Scenario(
                "restart",
                "from the start of the process on; jobs of 100 bytes",
                "submit --clients=4 --depth=256 --jobs=1000000 --bytes=100 --uniques=1 --patience=900",
                (Figure("ready_s", "seconds"), _RSS),
                _pair("sqlite"),
                until_first_job,
            ),
        ),
    ),
    Group(
        "memory",
        "5,000,000 queued jobs of 1 KiB in SQLite, with `--memory 256M` and without",
        False,
        (
            Scenario(
                "memory",
                "queued, then drained by 4 workers",
                "background --clients=4 --workers=4 --depth=256 --jobs=5000000 --bytes=1024 --uniques=1 "
                "--patience=3600",
                (_QUEUED, _SUBMITS, _DRAINS, _DRAIN_CPU),
                (Side("with limit", "sqlite", words=("--memory=256M",)), Side("without", "sqlite")),
            ),
        ),
    ),
    Group(
        "libraries",
        "clients and workers of ours beside other libraries, all on gearmand",
        False,
        (
            Scenario(
                "clients",
                "foreground jobs, one at a time",
                "client --jobs=10000",
                (_SPEED, _OWN_CPU),
                _clients(1),
                submitting,
            ),
            Scenario(
                "clients-100",
                "foreground jobs, 100 on their way at a time, beside libgearman's loop of one at a time",
                "client --jobs=20000",
                (_SPEED, _OWN_CPU),
                (*_clients(100), Side("libgearman (C), one at a time", "libgearman", False, ("1",))),
                submitting,
            ),
            Scenario(
                "workers",
                "one worker that gives workloads back, while 100 jobs wait; for 5 seconds at most",
                "foreground --clients=1 --workers=0 --depth=100 --jobs=20000 --seconds=5 --patience=20",
                (_SPEED, _OWN_CPU),
                _workers(),
                working,
            ),
            Scenario(
                "functions",
                "a worker registers 10,000 functions and takes a job that waits for the last",
                "functions --jobs=10000",
                (_REGISTER, _REGISTER_CPU),
                _workers(),
                registering,
            ),
        ),
    ),
)
"""All groups."""

SCENARIOS = {scenario.name: scenario for group in GROUPS for scenario in group.scenarios}
"""All scenarios by name."""


def chosen(names: list[str]) -> list[Scenario]:
    """Return the named scenarios, each once, in their usual order.

    Args:
        names: of scenarios and groups; empty for all that are usual.

    Raises:
        ValueError: there is none of a name; the text says which there are.
    """
    for name in names:
        if name not in SCENARIOS and name not in {group.name for group in GROUPS}:
            raise ValueError(f"there is no scenario or group {name!r}; `list` shows those that there are")
    return [
        scenario
        for group in GROUPS
        for scenario in group.scenarios
        if scenario.name in names or group.name in names or (not names and group.is_usual)
    ]
