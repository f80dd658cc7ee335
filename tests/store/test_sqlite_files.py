"""The files of a SQLite store: who may read and lock them, what is not followed, and a disk that is full."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from twisted.logger import capturedLogs

from gearman_twisted.errors import StoreConfigError, StoreUnavailable
from gearman_twisted.store.conformance import a_job
from gearman_twisted.store.sql import sqlite
from gearman_twisted.store.sql.sqlite import SQLiteFile
from gearman_twisted.store.sql.tables import SqlStore
from tests.kit.databases import missing, stored
from tests.kit.disk import fill_disk, small_disk

SOMEBODY = 65_534


def make(directory: Path) -> SqlStore:
    return SqlStore(SQLiteFile(directory / "jobs.db"))


@contextmanager
def opened(directory: Path) -> Iterator[SqlStore]:
    store = make(directory)
    store.check()
    store.connect()
    try:
        yield store
    finally:
        store.disconnect()


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


def symbolic_link(lock: Path, target: Path) -> None:
    lock.symlink_to(target)


def dangling_link(lock: Path, target: Path) -> None:
    lock.symlink_to(target.with_name("nothing"))


def second_name(lock: Path, target: Path) -> None:
    lock.hardlink_to(target)


def named_pipe(lock: Path, _target: Path) -> None:
    os.mkfifo(lock)


def directory(lock: Path, _target: Path) -> None:
    lock.mkdir()


@pytest.mark.parametrize("trap", [symbolic_link, dangling_link, second_name, named_pipe, directory])
def test_lock_that_is_no_plain_file(tmp_path: Path, trap: Callable[[Path, Path], None]) -> None:
    """What somebody puts in the place of the lock file is refused, and what it leads to stays as it is."""
    target = tmp_path / "precious"
    target.write_text("content")
    trap(tmp_path / "jobs.db.lock", target)
    for call in (make(tmp_path).check, make(tmp_path).connect):
        with pytest.raises(StoreConfigError, match=r"jobs\.db\.lock cannot be locked: "):
            call()
    assert target.read_text() == "content"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jobs.db.lock", "precious"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_files_are_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    """Nobody else reads the jobs, their log or the lock, also when the umask would let them."""
    before = os.umask(umask)
    try:
        with opened(tmp_path) as store:
            store.apply([a_job(1)], [])
            assert modes(tmp_path) == dict.fromkeys(
                ("jobs.db", "jobs.db-wal", "jobs.db-shm", "jobs.db.lock", "jobs.db.reserve"), 0o600
            )
    finally:
        os.umask(before)
    assert set(modes(tmp_path).values()) == {0o600}


def test_files_that_everybody_could_read(tmp_path: Path) -> None:
    """A start takes the permissions of others away; those of a group are the operator's, and stay."""
    with opened(tmp_path) as store:
        store.apply([a_job(1)], [])
        for path in tmp_path.iterdir():
            shutil.copy(path, tmp_path / f"copy-{path.name}")
    for path in tmp_path.glob("copy-*"):
        path.replace(tmp_path / path.name.removeprefix("copy-"))
    for path in tmp_path.iterdir():
        path.chmod(0o644)
    with opened(tmp_path) as store:
        assert stored(store) == [1]
        assert modes(tmp_path) == {
            "jobs.db": 0o640,
            "jobs.db-wal": 0o640,
            "jobs.db-shm": 0o640,
            "jobs.db.lock": 0o600,
            "jobs.db.reserve": 0o600,
        }


def test_lock_of_another_user() -> None:
    """A user who may not write the jobs can neither take their lock nor share it."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("setpriv", "flock"))):
        missing("only root can be another user")
    directory = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    try:
        directory.chmod(0o755)
        before = os.umask(0o022)
        try:
            with opened(directory) as store:
                store.apply([a_job(1)], [])
        finally:
            os.umask(before)
        somebody = ["setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups"]
        command = f"flock --shared {directory}/jobs.db.lock sh -c 'echo taken; read line'"
        with subprocess.Popen(
            [*somebody, "sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            # Empty if it could not be taken: flock has ended then.
            assert holder.stdout.readline() == ""
            with opened(directory) as store:
                assert stored(store) == [1]
            holder.stdin.close()
    finally:
        shutil.rmtree(directory)


def save_until_full(store: SqlStore) -> None:
    for number in range(2, 100):
        store.apply([a_job(number, workload=bytes(20_000))], [])


def test_full_disk_does_not_prevent_a_start() -> None:
    """A server that ended on a full disk starts again with all of its jobs, and saves when there is room."""
    with small_disk() as disk:
        with opened(disk) as store:
            store.apply([a_job(1)], [])
            with pytest.raises(StoreUnavailable, match="make room on its disk"):
                save_until_full(store)
            ids = stored(store)
        fill_disk(disk)
        with opened(disk) as store:
            assert stored(store) == ids
            with pytest.raises(StoreUnavailable, match="make room on its disk"):
                store.apply([a_job(200, workload=bytes(20_000))], [])
            (disk / "filler").unlink(missing_ok=True)
        subprocess.run(["mount", "-o", "remount,size=8M", disk], check=True)
        with opened(disk) as store:
            store.apply([a_job(200)], [1])
            assert stored(store) == [*ids[1:], 200]


def test_disk_that_others_fill_between_two_starts() -> None:
    """What was closed well opens on a full disk, although SQLite has no room for a log then."""
    with small_disk() as disk:
        with opened(disk) as store:
            store.apply([a_job(number) for number in range(1, 50)], [])
        fill_disk(disk)
        with capturedLogs() as logged, opened(disk) as store:
            assert stored(store) == list(range(1, 50))
            with pytest.raises(StoreUnavailable, match="make room on its disk"):
                store.apply([a_job(200)], [])
            (disk / "filler").unlink()
            store.apply([a_job(200)], [1])
        assert [event["error"] for event in logged if "error" in event] == ["disk I/O error"]
        with opened(disk) as store:
            assert stored(store) == [*range(2, 50), 200]


def test_large_jobs_are_forgotten_with_little_room(tmp_path: Path) -> None:
    """What is deleted is not overwritten: the log does not grow by the length of the workloads."""
    ids = list(range(1, 51))
    with opened(tmp_path) as store:
        for number in ids:
            store.apply([a_job(number, workload=bytes(100_000))], [])
    with opened(tmp_path) as store:
        store.apply([], ids)
        assert (tmp_path / "jobs.db-wal").stat().st_size < 500_000
        assert stored(store) == []


@pytest.mark.parametrize("filler", [True, False], ids=["by others", "by jobs"])
def test_drained_queue_accepts_again_on_a_full_disk(monkeypatch: pytest.MonkeyPatch, filler: bool) -> None:
    """Jobs that ended are forgotten although the disk is full, and then there is room for new ones."""
    monkeypatch.setattr(sqlite, "CHECKPOINT_PAGES", 200)
    monkeypatch.setattr(sqlite, "RESERVE_BYTES", 1024 * 1024)
    with small_disk("8M") as disk, opened(disk) as store:
        saved = [number for number in range(1, 5_000) if is_saved(store, number)]
        assert 500 < len(saved) < 4_000
        if filler:
            fill_disk(disk)
        assert stored_pages(store) == saved
        for start in range(0, len(saved), 1000):
            store.apply([], saved[start : start + 1000])
        assert stored_pages(store) == []
        again = [number for number in range(5_000, 6_000) if is_saved(store, number)]
        assert len(again) > len(saved) // 2
        assert stored_pages(store) == again


def is_saved(store: SqlStore, number: int) -> bool:
    try:
        store.apply([a_job(number, workload=bytes(3_000))], [])
    except StoreUnavailable:
        return False
    return True


def stored_pages(store: SqlStore) -> list[int]:
    ids: list[int] = []
    after: int | None = 0
    while after is not None:
        jobs, after = store.page(after)
        ids += [job.id for job in jobs]
    return ids
