"""What only the MariaDB store has: the size of statements, the engine, and tables that were not finished."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gearman_twisted.errors import StoreConfigError, StoreError, StoreUnavailable
from gearman_twisted.store.conformance import a_job
from tests.kit.databases import PrivateMariaDB, a_store, opened, stored

MIB = 1024 * 1024


@pytest.fixture
def small_packets(own_mariadb: PrivateMariaDB) -> Iterator[PrivateMariaDB]:
    """A server that takes statements of at most 1 MiB."""
    before = own_mariadb.run("SELECT @@global.max_allowed_packet")[0][0]
    own_mariadb.run(f"SET GLOBAL max_allowed_packet = {MIB}")
    yield own_mariadb
    own_mariadb.run(f"SET GLOBAL max_allowed_packet = {before}")


def test_job_that_is_too_large(small_packets: PrivateMariaDB) -> None:
    """A job beyond max_allowed_packet is refused with all of its batch, and the connection stays."""
    with small_packets.database() as name, opened(small_packets.url(name)) as store:
        store.apply([a_job(1)], [])
        query = f"SELECT id FROM information_schema.processlist WHERE db = '{name}'"
        before = small_packets.run(query)
        with pytest.raises(StoreError, match="max_allowed_packet is 1,048,576; raise it") as caught:
            store.apply([a_job(2), a_job(3, workload=b"x" * MIB), a_job(4)], [1])
        assert not isinstance(caught.value, StoreUnavailable)
        store.apply([a_job(5)], [])
        assert stored(store) == [1, 5]
        assert small_packets.run(query) == before


def test_jobs_that_fit_one_by_one(small_packets: PrivateMariaDB) -> None:
    """Statements stay below max_allowed_packet, also where every byte has to be escaped."""
    jobs = [a_job(number, workload=b"'\\" * 200_000) for number in range(1, 6)]
    jobs += [a_job(number, workload=b"y" * (MIB - 3_000)) for number in range(6, 9)]
    with small_packets.database() as name, opened(small_packets.url(name)) as store:
        store.apply(jobs, [])
        assert store.load([job.id for job in jobs]) == jobs


def test_packets_of_more_than_16_mib(own_mariadb: PrivateMariaDB) -> None:
    """A statement that goes over the wire in several packets comes back as it was."""
    before = own_mariadb.run("SELECT @@global.max_allowed_packet")[0][0]
    own_mariadb.run(f"SET GLOBAL max_allowed_packet = {64 * MIB}")
    try:
        with own_mariadb.database() as name, opened(own_mariadb.url(name)) as store:
            job = a_job(1, workload=bytes(range(256)) * (20 * MIB // 256))
            store.apply([job, a_job(2)], [])
            assert store.load([2, 1]) == [a_job(2), job]
    finally:
        own_mariadb.run(f"SET GLOBAL max_allowed_packet = {before}")


def test_modes_that_change_what_bytes_mean(own_mariadb: PrivateMariaDB) -> None:
    """Neither sql_mode nor a character set of the server's changes a byte, or lets one be cut off."""
    before = own_mariadb.run("SELECT @@global.sql_mode")[0][0]
    own_mariadb.run("SET GLOBAL sql_mode = 'NO_BACKSLASH_ESCAPES,ANSI_QUOTES'")
    try:
        with own_mariadb.database() as name:
            own_mariadb.run(f"ALTER DATABASE {name} CHARACTER SET utf16")
            with opened(own_mariadb.url(name)) as store:
                job = a_job(1, workload=bytes(range(256)), function=b"\\'\"`%s\0\x1a\xff")
                store.apply([job], [])
                assert store.load([1]) == [job]
                with pytest.raises(StoreError, match="Data too long"):
                    store.apply([a_job(2, unique=b"u" * 256)], [])
                assert stored(store) == [1]
    finally:
        own_mariadb.run(f"SET GLOBAL sql_mode = '{before}'")


@pytest.mark.parametrize("tables", [("gearman_schema",), ("gearman_schema", "gearman_jobs")], ids=len)
def test_creation_that_was_interrupted(own_mariadb: PrivateMariaDB, tables: tuple[str, ...]) -> None:
    """Tables that a server had begun to make when it was killed are finished by the next one."""
    with own_mariadb.database() as name, own_mariadb.database() as model:
        url = own_mariadb.url(name)
        with opened(own_mariadb.url(model)):
            for table in tables:
                own_mariadb.run(f"CREATE TABLE {name}.{table} LIKE {model}.{table}")
        a_store(url).check()
        for _ in range(2):
            with opened(url) as store:
                store.apply([a_job(1)], [])
                assert stored(store) == [1]
        assert own_mariadb.run("SELECT version FROM gearman_schema", database=name) == [(2,)]


def test_tables_without_transactions(own_mariadb: PrivateMariaDB) -> None:
    """Tables are made with InnoDB whatever the default is, and those of another engine are refused."""
    own_mariadb.run("SET GLOBAL default_storage_engine = MyISAM")
    try:
        with own_mariadb.database() as name:
            with opened(own_mariadb.url(name)) as store:
                store.apply([a_job(1)], [])
            a_store(own_mariadb.url(name)).check()
            own_mariadb.run("ALTER TABLE gearman_jobs ENGINE = MyISAM", database=name)
            for call in (a_store(own_mariadb.url(name)).check, a_store(own_mariadb.url(name)).connect):
                with pytest.raises(StoreConfigError, match="ALTER TABLE gearman_jobs ENGINE = InnoDB"):
                    call()
    finally:
        own_mariadb.run("SET GLOBAL default_storage_engine = InnoDB")
