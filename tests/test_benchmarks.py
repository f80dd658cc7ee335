"""The tool that measures: its choices, its tables and its load generator; no speed is looked at here."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import attrs
import pytest

from benchmarks import places
from benchmarks.__main__ import CHART_TITLE, DOCS, listing, main, measured, write
from benchmarks.chart import Bar, chart
from benchmarks.machine import describe_machine, versions
from benchmarks.measures import Bench, Side
from benchmarks.page import bars, markdown_table, text_table, with_tables
from benchmarks.programs import Load, Missing, RunFailed, Server, ours
from benchmarks.results import Record, Result, Row, gain, medians, number
from benchmarks.scenarios import GROUPS, SCENARIOS, Figure, chosen
from tests.kit.gearmand import Gearmand

SYNC = SCENARIOS["sync"]
SPEED, COST = SYNC.figures[:2]
FAST = {"jobs_per_s": 20_000.0, "cpu_us_per_job": 25.0, "p99_us": 90.0, "rss_mib": 50.0}
SLOW = {"jobs_per_s": 10_000.0, "cpu_us_per_job": 50.0, "p99_us": 90.0, "rss_mib": 10.0}
RESULT = Result({"ours": FAST, "gearmand": SLOW}, {}, 3, "2026-01-31")
PAGE = "".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in ["machine", *(g.name for g in GROUPS)])


def record(**results: Result) -> Record:
    return Record("a machine", {"ours": "gearman_twisted 1"}, results)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """The load generator."""
    if shutil.which("cc") is None and not os.environ.get("CI"):
        pytest.skip("there is no C compiler here; on Debian: apt-get install gcc libc6-dev")
    return Load(tmp_path_factory.mktemp("load"))


# Which scenarios.


def test_all_usual_scenarios_run_when_nothing_is_named() -> None:
    """Without names, what takes minutes or installs packages is left out, and nothing else."""
    names = [scenario.name for scenario in chosen([])]
    long = {
        scenario.name
        for group in GROUPS
        if group.name in {"libraries", "patience"}
        for scenario in group.scenarios
    }
    assert set(SCENARIOS) - set(names) == {"restart", "memory", *long}


def test_groups_and_scenarios_are_chosen_by_name() -> None:
    """A scenario that is named twice, once by its group, runs once, in its usual place."""
    names = [scenario.name for scenario in chosen(["redis", "busy", "stores", "sync"])]
    assert names == ["sync", "busy", "sqlite", "postgresql", "mysql", "redis"]


def test_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that does not exist ends the command before anything is measured."""
    with pytest.raises(SystemExit) as ended:
        main(["sinc"])
    assert ended.value.code == 2
    assert "there is no scenario or group 'sinc'" in capsys.readouterr().err


def test_scaled_figures_are_never_written(capsys: pytest.CaptureFixture[str]) -> None:
    """Figures of fewer jobs than the page says do not get onto the page."""
    with pytest.raises(SystemExit):
        main(["--scale", "0.1", "--write", "sync"])
    assert "what is scaled is not written" in capsys.readouterr().err


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """`list` shows each group and each scenario."""
    assert main(["list"]) == 0
    words = capsys.readouterr().out.replace(":", " ").split()
    assert {*SCENARIOS, *(group.name for group in GROUPS)} <= set(words)
    assert listing().endswith("\n")


def test_only_the_number_of_jobs_is_scaled(load: Load) -> None:
    """`--scale` leaves connections and sizes as they are, and at least one job."""
    words = "submit --clients=4 --jobs=2000 --bytes=100"
    assert Bench(load, 0.1).scaled(words) == ["submit", "--clients=4", "--jobs=200", "--bytes=100"]
    assert Bench(load, 0.0001).scaled("submit --jobs=20") == ["submit", "--jobs=1"]


# Figures.


def test_medians_of_what_all_runs_have() -> None:
    """The median of each figure; one that a run has not got is left out."""
    assert medians([{"a": 1, "b": 1}, {"a": 9}, {"a": 2}]) == {"a": 2}
    assert medians([]) == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0.00"),
        (0.00123, "0.0012"),
        (1.234, "1.23"),
        (9.999, "10.00"),
        (12.34, "12.3"),
        (1234.5, "1,234"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    """Numbers are as long as they are worth reading."""
    assert number(value) == text


@pytest.mark.parametrize(
    ("figure", "values", "verdict"),
    [
        (SPEED, (200.0, 100.0), "ahead"),
        (SPEED, (100.0, 200.0), "behind"),
        (COST, (200.0, 100.0), "behind"),
        (COST, (100.0, 200.0), "ahead"),
        (SPEED, (102.0, 100.0), ""),
        (COST, (98.0, 100.0), ""),
        (SPEED, (None, 100.0), ""),
        (SPEED, (100.0, 0.0), ""),
    ],
)
def test_verdict(figure: Figure, values: tuple[float | None, float | None], verdict: str) -> None:
    """More speed is better, more CPU time is worse, and what is nearly the same is neither."""
    assert Row(figure, values).verdict == verdict


def test_text_table() -> None:
    """A table for a terminal has the figures, their ratio and who is ahead."""
    assert text_table(SYNC, RESULT).splitlines() == [
        "sync: one client, one worker, one job at a time",
        "                                          ours      gearmand    ratio",
        "  jobs/s                                20,000        10,000     2.00  ahead",
        "  server CPU per job, µs                  25.0          50.0     0.50  ahead",
        "  p99 latency, µs                         90.0          90.0     1.00",
        "  memory, MiB                             50.0          10.0     5.00  behind",
    ]


def test_failed_run_is_told() -> None:
    """A side whose run failed has no figures, and the reason stands below, in both kinds of table."""
    result = Result({"ours": FAST, "gearmand": {}}, {"gearmand": "it ended"}, 1, "2026-01-31")
    assert "  gearmand failed: it ended\n" in text_table(SYNC, result)
    lines = list(markdown_table(GROUPS[0], record(sync=result)))
    assert "| **sync**: one client, one worker, one job at a time | jobs/s | 20,000 | - | - |  |" in lines
    assert "sync, gearmand: the run failed, it ended." in lines


def test_table_of_many_sides_has_a_line_for_each() -> None:
    """Where more than two are compared, each line says how many times faster the first one is."""
    clients, functions = SCENARIOS["clients"], SCENARIOS["functions"]
    speed = {"jobs_per_s": 6000.0, "cpu_us_per_job": 50.0}
    result = Result(
        {"ours": speed, "libgearman (C)": speed | {"jobs_per_s": 4000.0}, "gear (Python)": {}},
        {"gear (Python)": "it is not here"},
        1,
        "2026-01-31",
    )
    lines = list(markdown_table(GROUPS[-1], record(clients=result)))
    assert lines[:2] == [
        f"| **clients**: {clients.summary} | jobs/s | its own CPU per job, µs | ours is faster, times |",
        "|---|--:|--:|--:|",
    ]
    assert "| ours | 6,000 | 50.0 |  |" in lines
    assert "| libgearman (C) | 4,000 | 50.0 | 1.50 |" in lines
    assert "| gear (Python) | - | - | - |" in lines
    assert "clients, gear (Python): the run failed, it is not here." in lines
    text = [line.split() for line in text_table(clients, result).splitlines()]
    assert ["libgearman", "(C)", "4,000", "50.0", "1.50"] in text
    slow = Result({"ours": {"register_s": 0.5}, "gear (Python)": {"register_s": 1.0}}, {}, 1, "2026-01-31")
    gear = next(side for side in functions.sides if side.kind == "gear")
    assert gain(functions, slow, gear) == 2


# The page.


def test_page_gets_the_tables_between_its_marks() -> None:
    """What stands around the marks stays, and a second time changes nothing."""
    page = with_tables(f"before\n{PAGE}after\n", record(sync=RESULT))
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "a machine. gearman_twisted 1." in page
    assert "|  | server CPU per job, µs | 25.0 | 50.0 | 0.50 | ahead |" in page
    assert "Measured on 2026-01-31, medians of 3 rounds." in page
    assert with_tables(page, record(sync=RESULT)) == page


def test_page_without_a_mark_is_refused() -> None:
    """A page that lost a mark is not written half."""
    with pytest.raises(ValueError, match="has no lines <!-- stores -->"):
        with_tables(PAGE.replace("<!-- stores -->", ""), record(sync=RESULT))


def test_notes_stand_below_what_they_are_about() -> None:
    """Scenarios that were measured differently are told apart."""
    noted = Result(RESULT.medians, {}, 1, "2026-02-01", "another disk")
    lines = list(markdown_table(GROUPS[0], record(sync=RESULT, busy=noted)))
    assert lines[-2:] == [
        "Measured on 2026-01-31, medians of 3 rounds: sync.",
        "Measured on 2026-02-01, 1 round; another disk: busy.",
    ]


def test_written_figures_are_joined_with_older_ones(tmp_path: Path) -> None:
    """New figures take the place of those of the same scenario; of another machine, none are kept."""
    (tmp_path / "performance.md").write_text(PAGE)
    write(record(sync=RESULT, busy=RESULT), tmp_path)
    newer = Result(RESULT.medians, {}, 1, "2026-02-01")
    write(record(sync=newer), tmp_path)
    joined = Record.read(tmp_path / "performance.json")
    assert joined == record(sync=newer, busy=RESULT)
    assert (tmp_path / "performance.md").read_text() == with_tables(PAGE, joined)
    write(Record("another", {}, {"sync": newer}), tmp_path)
    assert set(Record.read(tmp_path / "performance.json").results) == {"sync"}


def test_the_page_shows_the_figures() -> None:
    """The tables and the chart in the documentation are those of the figures beside them."""
    page = (DOCS / "performance.md").read_text()
    figures = Record.read(DOCS / "performance.json")
    assert with_tables(page, figures) == page, "run: python -m benchmarks page"
    drawn = (DOCS / "performance.svg").read_text()
    assert chart(CHART_TITLE, bars(figures)) == drawn, "run: python -m benchmarks page"


# The chart.


def test_bars_are_right_of_the_line_where_ours_is_ahead() -> None:
    """A bar for twice as good goes to the right, one for half as good as far to the left."""
    drawn = ET.fromstring(chart("a < b", [Bar("a", "speed", 2.0), Bar("a", "CPU", 0.5)]))
    space = "{http://www.w3.org/2000/svg}"
    right, left = (r for r in drawn.iter(f"{space}rect") if r.get("height") == "11" and r.get("y") != "28")
    middle = float(right.attrib["x"])
    assert float(left.attrib["x"]) + float(left.attrib["width"]) == pytest.approx(middle, abs=0.2)
    assert left.get("width") == right.get("width")
    assert "a < b" in [text.text for text in drawn.iter(f"{space}text")]


def test_bars_of_a_step_stand_together() -> None:
    """CPU time is turned round, so that longer is better everywhere, and stands with its speed."""
    both = {"submits_per_s": 100.0, "drains_per_s": 100.0}
    cost = {"submit_cpu_us_per_job": 10.0, "drain_cpu_us_per_job": 10.0}
    half = {name: value / 2 for name, value in (both | cost).items()}
    result = Result({"ours": both | cost, "gearmand": half}, {}, 1, "2026-01-31")
    assert bars(record(queue=result)) == [
        Bar("queue, submit", "speed", 2.0),
        Bar("queue, submit", "CPU", 0.5),
        Bar("queue, drain", "speed", 2.0),
        Bar("queue, drain", "CPU", 0.5),
    ]


# What really runs.


def test_load_generator_gives_all_figures(load: Load, tmp_path: Path) -> None:
    """Each way of loading ends with the figures that scenarios ask for, for as many jobs as it was told."""
    with ours(tmp_path, "--store=memory:") as server:
        found = load.run(server, ["foreground", "--jobs=50", "--sleepers=3"])
        assert found.keys() >= {"jobs_per_s", "mib_per_s", "cpu_us_per_job", "p50_us", "p99_us", "max_us"}
        assert found["jobs"] == 50
        assert found["rss_mib"] > 1
        found = load.run(server, ["background", "--jobs=50", "--uniques=1", "--bytes=70000"])
        assert found.keys() >= {"submits_per_s", "drains_per_s", "submit_cpu_us_per_job", "queued_rss_mib"}
        assert found["refused"] == 0
        assert load.run(server, ["submit", "--jobs=30"])["jobs"] == 30
        assert load.run(server, ["drain", "--jobs=30"])["drains_per_s"] > 0
        paced = load.run(server, ["foreground", "--rate=1000", "--jobs=30"])
        assert paced["jobs"] == 30


def test_load_generator_says_what_is_wrong(load: Load, tmp_path: Path) -> None:
    """A load that cannot be done has no figures but a reason."""
    with ours(tmp_path, "--store=memory:") as server:
        with pytest.raises(RunFailed, match="--jobs needs a number, not many"):
            load.run(server, ["foreground", "--jobs=many"])
        with pytest.raises(RunFailed, match="draining took more than 0 s"):
            load.run(server, ["drain", "--jobs=1", "--patience=0"])
        nobody = Server(1, server.process, 0.0)
        with pytest.raises(RunFailed, match="no connection to port 1"):
            load.run(nobody, ["foreground"])


def test_server_that_does_not_start_is_a_failed_run(load: Load, tmp_path: Path) -> None:
    """A run whose server ends at once says with which status and what it said last."""
    with (
        pytest.raises(RunFailed, match=r"ended with status 1: .*nosuch"),
        ours(tmp_path, "--store=nosuch:"),
    ):
        pass


@pytest.mark.usefixtures("gearmand")
def test_scenario_runs_on_both_sides(load: Load, tmp_path: Path) -> None:
    """A durable scenario has all of its figures, of ours and of gearmand, after two rounds."""
    scenario = SCENARIOS["durable"]
    # Fewer jobs may take less CPU time than the system counts.
    bench = Bench(load, scale=0.3)
    result = measured(bench, scenario, tmp_path, rounds=2)
    assert result.failures == {}
    assert result.medians.keys() == {"ours", "gearmand"}
    for figure in scenario.figures:
        assert all(found[figure.name] > 0 for found in result.medians.values()), figure.name
    assert bench.versions["sqlite"].startswith("SQLite 3.")


def test_restart_is_measured(load: Load, tmp_path: Path, gearmand: Gearmand) -> None:
    """A worker gets a stored job from either server after its restart, from gearmand's own table too."""
    assert gearmand.port
    result = measured(Bench(load, scale=0.0001), SCENARIOS["restart"], tmp_path, rounds=1)
    assert result.failures == {}
    assert all(found["ready_s"] > 0 for found in result.medians.values())


@pytest.mark.usefixtures("gearmand")
def test_idle_workers_are_measured(load: Load, tmp_path: Path) -> None:
    """Connections of either server take some memory."""
    # Of fewer the system may take as much memory back meanwhile.
    result = measured(Bench(load, scale=0.2), SCENARIOS["idle"], tmp_path, rounds=1)
    assert result.failures == {}
    assert all(found["rss_mib"] > found["added_rss_mib"] > 0 for found in result.medians.values())


@pytest.mark.usefixtures("gearmand")
@pytest.mark.parametrize("name", ["clients", "clients-100", "workers", "functions"])
def test_libraries_run(name: str, load: Load, tmp_path: Path) -> None:
    """Each program that needs nothing from PyPI has all figures; one whose library is not here says so."""
    scenario = SCENARIOS[name]
    sides = tuple(side for side in scenario.sides if side.kind not in {"gear", "gearman3"})
    bench = Bench(load, scale=0.01)
    result = measured(bench, attrs.evolve(scenario, sides=sides), tmp_path, rounds=1)
    for side in sides:
        if side.title in result.failures:
            assert not side.is_ours, result.failures[side.title]
            assert "not installed; on Debian: apt-get install" in result.failures[side.title]
        else:
            assert result.medians[side.title][scenario.figures[0].name] > 0
    assert set(bench.versions) == {side.kind for side in sides if not side.is_ours} - {
        side.kind for side in sides if side.title in result.failures
    }


def test_library_that_cannot_be_installed_is_told(
    monkeypatch: pytest.MonkeyPatch, load: Load, tmp_path: Path
) -> None:
    """Without PyPI a library of it has no figures but the reason, and the others go on."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    side = next(side for side in SCENARIOS["clients"].sides if side.kind == "gear")
    result = measured(
        Bench(load, scale=0.01), attrs.evolve(SCENARIOS["clients"], sides=(side,)), tmp_path, rounds=1
    )
    assert "gear could not be installed from PyPI: " in result.failures[side.title]


@pytest.mark.usefixtures("gearmand")
def test_program_that_fails_is_a_failed_run(load: Load, tmp_path: Path) -> None:
    """A library's program that ends too early is told with its last words."""
    bench = Bench(load, scale=0.01)
    bench.commands["ours"] = [sys.executable, "-c", "raise SystemExit('no such luck')"]
    for name in ("clients", "workers", "functions"):
        scenario = SCENARIOS[name]
        side = scenario.sides[0]
        result = measured(bench, attrs.evolve(scenario, sides=(side,)), tmp_path, rounds=1)
        assert result.failures == {side.title: "the program ended with status 1: no such luck"}


def test_missing_database_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, load: Load) -> None:
    """A scenario whose database is not there is left out with the reason; it is no failure of a server."""
    pytest.importorskip("psycopg")
    monkeypatch.setattr(places, "POSTGRES_PORT", 1)
    with (
        pytest.raises(Missing, match=r"PostgreSQL on 127\.0\.0\.1:1 does not let postgres in"),
        Bench(load).place(Side("ours", "postgresql"), tmp_path),
    ):
        pass


def test_machine_and_versions_are_known() -> None:
    """The page says on what it was measured."""
    assert "cores" in describe_machine()
    assert versions()["Twisted"].startswith("Twisted 2")
