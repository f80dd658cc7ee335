"""The SQLite store: files that it must not touch, servers that must not share, and crashes."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as default_reactor
from twisted.logger import capturedLogs

from gearman_twisted.errors import StoreConfigError, StoreError, StoreInUse, StoreUnavailable
from gearman_twisted.store import open_store
from gearman_twisted.store.conformance import a_job
from gearman_twisted.store.contract import IJobStore, StoredJob
from gearman_twisted.store.sql import sqlite
from gearman_twisted.store.sql import tables as sql
from gearman_twisted.store.sql.sqlite import SQLiteFile

reactor: Any = default_reactor
ensure_deferred: Callable[[Callable[..., object]], Callable[..., None]] = pytest_twisted.ensureDeferred

CRASH = """
import sys
from twisted.internet import task
from twisted.internet.defer import Deferred
from gearman_twisted.store import open_store
from gearman_twisted.store.conformance import a_job

async def main(reactor):
    store = open_store(sys.argv[1], reactor)
    await store.open()
    print("open", flush=True)
    number = 0
    while True:
        batch = [a_job(number + i, workload=b"x" * 500) for i in range(1, 101)]
        await store.apply(batch, [])
        number += 100
        print(number, flush=True)

task.react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
"""


def make(path: Path) -> IJobStore:
    return open_store(f"sqlite:{path}", reactor)


async def replayed(store: IJobStore) -> list[StoredJob]:
    jobs: list[StoredJob] = []
    await store.open()
    try:
        await store.replay(jobs.extend)
    finally:
        await store.close()
    return jobs


async def fill(path: Path, jobs: Sequence[StoredJob]) -> None:
    store = make(path)
    await store.open()
    await store.apply(jobs, [])
    await store.close()


def snapshot(directory: Path) -> dict[str, tuple[str, int]]:
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in directory.iterdir()
        # A -shm is memory shared by those who have the file open, not content.
        if path.is_file() and not path.name.endswith("-shm")
    }


@contextmanager
def crashing(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that opens a store and saves jobs, and says how far it got."""
    with subprocess.Popen(
        [sys.executable, "-c", CRASH, f"sqlite:{path}"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


async def refused(path: Path, kind: type[StoreError], says: str) -> None:
    """Neither check nor open takes the path, both name it, and nothing changes around it."""
    before = snapshot(path.parent)
    store = make(path)
    with pytest.raises(kind, match=says) as caught:
        store.check()
    assert str(path) in str(caught.value)
    assert snapshot(path.parent) == before
    with pytest.raises(kind, match=says):
        await store.open()
    assert snapshot(path.parent) == before
    await store.close()


# Files that are not ours


def foreign_bytes(path: Path) -> None:
    path.write_bytes(b"Dear diary, today I did not use a database.\n" * 100)


def short_file(path: Path) -> None:
    path.write_bytes(b"x")


def foreign_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")


def foreign_database_with_log(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE recipes (name TEXT)")


def our_names_only(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE gearman_schema (x INTEGER)")


def torn(path: Path) -> None:
    foreign_database(path)
    path.write_bytes(path.read_bytes()[:4096])


def scribbled(path: Path) -> None:
    foreign_database(path)
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"\xff" * 900 + content[1000:])


@pytest.mark.parametrize(
    ("spoil", "kind", "says"),
    [
        (foreign_bytes, StoreConfigError, "not a SQLite database"),
        (short_file, StoreConfigError, "not a SQLite database"),
        (foreign_database, StoreConfigError, "database of something else"),
        (foreign_database_with_log, StoreConfigError, "database of something else"),
        (our_names_only, StoreConfigError, "database of something else"),
        (torn, StoreUnavailable, "malformed.*backup"),
        (scribbled, StoreUnavailable, "malformed.*backup"),
    ],
)
@ensure_deferred
async def test_file_that_is_not_ours(
    tmp_path: Path, spoil: Callable[[Path], None], kind: type[StoreError], says: str
) -> None:
    """A file that is foreign or damaged is refused by name, and it and its directory stay as they were."""
    spoil(tmp_path / "jobs.db")
    await refused(tmp_path / "jobs.db", kind, says)


@ensure_deferred
async def test_foreign_database_in_use(tmp_path: Path) -> None:
    """A foreign database whose tables still stand in its log alone is refused too, and not touched."""
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE recipes (name TEXT)")
        await refused(tmp_path / "jobs.db", StoreConfigError, "database of something else")


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE gearman_schema SET version = 99", "version 99.*newer release"),
        ("UPDATE gearman_schema SET version = 'x'", "one version number"),
        ("DELETE FROM gearman_schema", "one version number"),
        ("INSERT INTO gearman_schema VALUES (1)", "one version number"),
    ],
)
@ensure_deferred
async def test_version(tmp_path: Path, statement: str, says: str) -> None:
    """Tables of a newer release, or without one version, are refused and left as they are."""
    path = tmp_path / "jobs.db"
    await fill(path, [a_job(1)])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)
    await refused(path, StoreConfigError, says)


@ensure_deferred
async def test_places_that_cannot_be(tmp_path: Path) -> None:
    """A directory that is missing, and a path that is no file, are named."""
    await refused(tmp_path, StoreConfigError, "not a file")
    store = make(tmp_path / "missing" / "jobs.db")
    with pytest.raises(StoreConfigError, match=r"the directory .*/missing does not exist; create it"):
        store.check()
    with pytest.raises(StoreConfigError, match=r"the directory .*/missing does not exist; create it"):
        await store.open()


# Files that are ours


@ensure_deferred
async def test_check_creates_nothing(tmp_path: Path) -> None:
    """A check of a file that is not there leaves it so."""
    make(tmp_path / "jobs.db").check()
    assert list(tmp_path.iterdir()) == []


@ensure_deferred
async def test_empty_files_are_taken(tmp_path: Path) -> None:
    """A file without content, and a database without tables, become ours."""
    (tmp_path / "empty").touch()
    with closing(sqlite3.connect(tmp_path / "no-tables")) as connection:
        connection.execute("PRAGMA user_version = 1")
    for name in ("empty", "no-tables"):
        make(tmp_path / name).check()
        await fill(tmp_path / name, [a_job(1)])
        assert await replayed(make(tmp_path / name)) == [a_job(1)]


@ensure_deferred
async def test_close_leaves_one_file(tmp_path: Path) -> None:
    """After a close the whole content is in the file, which can be copied; only the lock stays beside it."""
    await fill(tmp_path / "jobs.db", [a_job(1)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jobs.db", "jobs.db.lock"]
    assert (tmp_path / "jobs.db.lock").read_text() == ""


@ensure_deferred
async def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path starts at the directory that is current when the store is made, not opened."""
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    store = open_store("sqlite:my jobs#1%.db", reactor)
    monkeypatch.chdir(tmp_path)
    await store.open()
    await store.close()
    store.check()
    assert (tmp_path / "there" / "my jobs#1%.db").exists()


@ensure_deferred
async def test_settings_that_keep_jobs_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file keeps a write-ahead log, and every commit reaches the disk before it is reported."""
    seen: list[object] = []

    def commit(_dialect: SQLiteFile, session: sqlite3.Connection) -> None:
        for name in ("journal_mode", "synchronous"):
            seen.extend(session.execute(f"PRAGMA {name}").fetchone())
        session.commit()

    monkeypatch.setattr(SQLiteFile, "commit", commit)
    await fill(tmp_path / "jobs.db", [a_job(1)])
    assert seen == ["wal", 2, "wal", 2]


@ensure_deferred
async def test_only_an_open_store_works(tmp_path: Path) -> None:
    """A store that is not open says so, and one that is open is not opened again."""
    store = make(tmp_path / "jobs.db")
    with pytest.raises(StoreError, match="not open"):
        await store.apply([a_job(1)], [])
    with pytest.raises(StoreError, match="not open"):
        await store.replay(lambda _jobs: None)
    await store.open()
    with pytest.raises(StoreError, match="already open"):
        await store.open()
    await store.close()


@ensure_deferred
async def test_close_finishes_what_runs(tmp_path: Path) -> None:
    """What was applied before a close is done before the file is closed."""
    store = make(tmp_path / "jobs.db")
    await store.open()
    applied = store.apply([a_job(number) for number in range(1, 3001)], [])
    await store.close()
    assert applied.called
    assert len(await replayed(make(tmp_path / "jobs.db"))) == 3000


# Two at once


@ensure_deferred
async def test_second_server_is_refused(tmp_path: Path) -> None:
    """A file that a server has open is refused to another, which is told the process that has it."""
    path = tmp_path / "jobs.db"
    first = make(path)
    await first.open()
    try:
        (tmp_path / "link.db").symlink_to(path)
        for name in ("jobs.db", "link.db"):
            second = make(tmp_path / name)
            with pytest.raises(StoreInUse, match=f"jobs.db is in use by process {os.getpid()};"):
                second.check()
            with pytest.raises(StoreInUse, match=f"jobs.db is in use by process {os.getpid()};"):
                await second.open()
        await first.apply([a_job(1)], [])
    finally:
        await first.close()
    assert await replayed(make(path)) == [a_job(1)]


@ensure_deferred
async def test_file_locked_by_a_shell(tmp_path: Path) -> None:
    """A file that another program has locked is reported as such after a moment, and can be tried again."""
    path = tmp_path / "jobs.db"
    await fill(path, [a_job(1)])
    store = make(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as shell:
        shell.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailable, match=r"jobs\.db: database is locked; end the process"):
            await store.open()
    assert await replayed(store) == [a_job(1)]


@ensure_deferred
async def test_lock_goes_with_the_process(tmp_path: Path) -> None:
    """A server that was killed leaves no lock behind, and everything that it had acknowledged."""
    path = tmp_path / "jobs.db"
    with crashing(path) as process:
        assert process.stdout is not None
        with pytest.raises(StoreInUse, match=f"in use by process {process.pid};"):
            make(path).check()
        acknowledged = 0
        while acknowledged < 2000:
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        for line in process.stdout:
            acknowledged = int(line)
    store = make(path)
    store.check()
    ids = [job.id for job in await replayed(store)]
    assert len(ids) >= acknowledged
    assert ids == list(range(1, len(ids) + 1))
    assert len(ids) % 100 == 0


@pytest.mark.parametrize("kills", range(5))
@ensure_deferred
async def test_killed_in_mid_commit(tmp_path: Path, kills: int) -> None:
    """A server that is killed at any moment, the first one included, leaves whole commits only."""
    path = tmp_path / "jobs.db"
    with crashing(path) as process:
        assert process.stdout is not None
        acknowledged = 0
        for _ in range(kills * 3):
            acknowledged = int(process.stdout.readline())
    make(path).check()
    ids = [job.id for job in await replayed(make(path))]
    assert len(ids) >= acknowledged
    assert ids == list(range(1, len(ids) + 1))
    assert len(ids) % 100 == 0


# Trouble while it runs


@ensure_deferred
async def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that does not fit is refused with SQLite's own words, and the next one that fits is taken."""

    def limit(session: sqlite3.Connection) -> None:
        session.execute("PRAGMA max_page_count = 20")

    monkeypatch.setattr(sqlite, "_set_up", limit)
    store = make(tmp_path / "jobs.db")
    try:
        await store.open()
        await store.apply([a_job(1)], [])
        with pytest.raises(StoreUnavailable, match=r"jobs\.db: database or disk is full; make room"):
            await store.apply([a_job(2), a_job(3, workload=b"x" * 100_000)], [1])
        await store.apply([a_job(4)], [])
    finally:
        monkeypatch.undo()
        await store.close()
    assert await replayed(make(tmp_path / "jobs.db")) == [a_job(1), a_job(4)]


@pytest.mark.parametrize(
    "wrong", [{"id": 2**63}, {"handle": None}, {"workload": object()}, {"workload": "\udc80"}]
)
@ensure_deferred
async def test_job_that_cannot_be_saved(tmp_path: Path, wrong: dict[str, object]) -> None:
    """Whatever the driver cannot send is a StoreError, and the store goes on."""
    store = make(tmp_path / "jobs.db")
    await store.open()
    with pytest.raises(StoreError):
        await store.apply([a_job(1), a_job(2, **wrong)], [])
    await store.apply([a_job(3)], [])
    await store.close()
    assert await replayed(make(tmp_path / "jobs.db")) == [a_job(3)]


@pytest.mark.parametrize(
    "change",
    [
        "workload = 'text'",
        "workload = CAST(X'FF' AS TEXT)",
        "workload = 5",
        "handle = 1.5",
        "function = 'f'",
        "unique_id = 'u'",
        "reducer = 'r'",
        "schedule = 's'",
        "priority = -1",
        "priority = 3",
        "priority = X'00'",
        "run_at = -1",
        "run_at = 'soon'",
        "id = -2",
    ],
)
@ensure_deferred
async def test_damaged_row(tmp_path: Path, change: str) -> None:
    """A row that is no job is logged by its id, stays where it is, and does not keep the others back."""
    path = tmp_path / "jobs.db"
    await fill(path, [a_job(1), a_job(2), a_job(3)])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"UPDATE gearman_jobs SET {change} WHERE id = 2")
    for _ in range(2):
        with capturedLogs() as logged:
            assert await replayed(make(path)) == [a_job(1), a_job(3)]
        assert [event["id"] for event in logged if "id" in event] == [-2 if change == "id = -2" else 2]


@ensure_deferred
async def test_damaged_page(tmp_path: Path) -> None:
    """A file whose pages are damaged is named when its jobs are read."""
    path = tmp_path / "jobs.db"
    await fill(path, [a_job(number, workload=b"x" * 1000) for number in range(1, 500)])
    content = bytearray(path.read_bytes())
    for page in range(20, len(content) // 4096):
        content[page * 4096 : page * 4096 + 200] = b"\xff" * 200
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"jobs\.db: .*malformed; restore it from a backup"):
        await replayed(make(path))


@ensure_deferred
async def test_replay_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay hands over a page of rows or of bytes at a time, and misses none at their edges."""
    path = tmp_path / "jobs.db"
    jobs = [a_job(number, workload=b"x" * 100) for number in range(1, 11)]
    await fill(path, jobs)
    for rows, size, wanted in ((5, 10**6, [5, 5]), (4, 10**6, [4, 4, 2]), (100, 250, [3, 3, 3, 1])):
        monkeypatch.setattr(sql, "PAGE_ROWS", rows)
        monkeypatch.setattr(sql, "PAGE_BYTES", size)
        pages: list[Sequence[StoredJob]] = []
        store = make(path)
        await store.open()
        assert await store.replay(pages.append) == 10
        await store.close()
        assert [len(page) for page in pages] == wanted
        assert [job for page in pages for job in page] == jobs


@pytest.mark.parametrize("count", [1, 2, 3, 31, 1000, 2047, 2048, 2049, 5000])
@ensure_deferred
async def test_every_batch_size(tmp_path: Path, count: int) -> None:
    """Batches of any size are saved and forgotten whole."""
    path = tmp_path / "jobs.db"
    jobs = [a_job(number) for number in range(1, count + 1)]
    await fill(path, jobs)
    assert await replayed(make(path)) == jobs
    store = make(path)
    await store.open()
    await store.apply([a_job(count + 1)], [job.id for job in jobs])
    await store.close()
    assert await replayed(make(path)) == [a_job(count + 1)]


@ensure_deferred
async def test_tables_of_the_first_version_are_migrated(tmp_path: Path) -> None:
    """A file whose tables know no schedules yet gets them, and keeps its jobs."""
    path = tmp_path / "jobs.db"
    await fill(path, [a_job(1), a_job(2)])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("ALTER TABLE gearman_jobs DROP COLUMN schedule")
        connection.execute("UPDATE gearman_schema SET version = 1")
    assert await replayed(make(path)) == [a_job(1), a_job(2)]
    await fill(path, [a_job(3)._replace(schedule=b"0 12 * * *")])
    assert [job.schedule for job in await replayed(make(path))] == [b"", b"", b"0 12 * * *"]


@ensure_deferred
async def test_file_that_is_half_way_through_a_checkpoint(tmp_path: Path) -> None:
    """What the file alone does not tell, as only a part of it was written, is read from its log."""
    path = tmp_path / "jobs.db"
    store = make(path)
    await store.open()
    await store.apply([a_job(1)], [])
    # As a power cut leaves it: the log is whole, and of the file a sector of zeros came after the others.
    log = Path(f"{path}-wal").read_bytes()
    await store.close()
    torn = tmp_path / "torn.db"
    whole = path.read_bytes()
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'gearman_schema'"
        ).fetchone()
    end = page * 4096
    torn.write_bytes(whole[: end - 512] + bytes(512) + whole[end:])
    Path(f"{torn}-wal").write_bytes(log)
    assert await replayed(make(torn)) == [a_job(1)]
