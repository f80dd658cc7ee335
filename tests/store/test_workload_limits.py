"""How long a workload may be that a store takes, against the real databases."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import pytest

from gearman_twisted.errors import StoreError
from gearman_twisted.store.conformance import a_job
from gearman_twisted.store.contract import StoredJob
from gearman_twisted.store.sql.sqlite import SQLiteFile
from gearman_twisted.store.sql.tables import ROW_BYTES, SqlStore
from tests.kit.databases import PrivateMariaDB, opened, stored
from tests.kit.redis_server import RedisServer
from tests.kit.redis_server import opened as opened_redis

MIB = 1024 * 1024


def longest(workload_bytes: int) -> StoredJob:
    """A job whose other fields are as long as they can be."""
    names = {"function": b"f" * 8191, "unique": b"u" * 64, "handle": b"h" * 64}
    return a_job(1, workload=b"x" * workload_bytes, schedule=b"s" * (5 * 8192 - 1), **names)


class SmallFile(SQLiteFile):
    """A file whose rows may have 1 MiB."""

    def _connect(self, locking_mode: str) -> sqlite3.Connection:
        session = super()._connect(locking_mode)
        session.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MIB)
        self.note_limit(session)
        return session


@pytest.mark.skipif(sys.version_info < (3, 11), reason="setlimit is new in Python 3.11")
def test_sqlite(tmp_path: Path) -> None:
    """A file takes any job up to its limit, and the limit is that of SQLite less the other columns."""
    store = SqlStore(SmallFile(tmp_path / "jobs.db"))
    store.connect()
    try:
        assert store.max_workload_bytes == MIB - ROW_BYTES
        job = longest(store.max_workload_bytes)
        store.apply([job], [])
        assert store.load([1]) == [job]
        with pytest.raises(StoreError, match="too big"):
            store.apply([longest(MIB)], [])
    finally:
        store.disconnect()


def test_sqlite_by_default(tmp_path: Path) -> None:
    """A file takes workloads of nearly a billion bytes."""
    store = SqlStore(SQLiteFile(tmp_path / "jobs.db"))
    store.connect()
    assert store.max_workload_bytes == 1_000_000_000 - ROW_BYTES
    store.disconnect()


def test_mariadb(own_mariadb: PrivateMariaDB) -> None:
    """The limit is max_allowed_packet of the server, less what surrounds a statement."""
    before = own_mariadb.run("SELECT @@global.max_allowed_packet")[0][0]
    own_mariadb.run(f"SET GLOBAL max_allowed_packet = {MIB}")
    try:
        with own_mariadb.database() as name, opened(own_mariadb.url(name)) as store:
            assert store.max_workload_bytes == MIB - 1024
            store.apply([a_job(1, workload=b"x" * (MIB - 2048))], [])
            with pytest.raises(StoreError, match="max_allowed_packet"):
                store.apply([a_job(2, workload=b"x" * (MIB - 1023))], [])
            assert stored(store) == [1]
    finally:
        own_mariadb.run(f"SET GLOBAL max_allowed_packet = {before}")


def test_postgres(postgres_url: str) -> None:
    """A message of PostgreSQL's protocol has at most 1 GiB."""
    with opened(postgres_url) as store:
        assert store.max_workload_bytes == (1 << 30) - 1 - ROW_BYTES


def test_redis(own_redis: RedisServer) -> None:
    """The limit is proto-max-bulk-len of the server, less the other fields."""
    own_redis.start(proto_max_bulk_len="1mb")
    with opened_redis(own_redis.url()) as store:
        assert store.max_workload_bytes == MIB - 64 * 1024
        job = longest(store.max_workload_bytes)
        store.apply([job], [])
        assert store.load([1]) == [job]
        with pytest.raises(StoreError, match="too large"):
            store.apply([longest(MIB)], [])
