"""What only the PostgreSQL store has: settings of the session, and the meaning of SQLSTATEs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest

from gearman_twisted.errors import StoreConfigError, StoreError, StoreUnavailable
from gearman_twisted.store.conformance import a_job
from gearman_twisted.store.sql.postgres import PostgresDatabase
from gearman_twisted.store.url import StoreUrl
from tests.kit.databases import Postgres, PrivatePostgres, opened, poll, stored


@pytest.mark.parametrize(
    ("state", "kind", "says"),
    [
        ("08006", StoreUnavailable, ""),
        ("22003", StoreError, ""),
        ("23502", StoreError, ""),
        ("25006", StoreUnavailable, "name the hosts of all servers"),
        ("28P01", StoreConfigError, "password_file"),
        ("3D000", StoreConfigError, 'CREATE DATABASE "jobs" OWNER "gearman"'),
        ("40001", StoreUnavailable, ""),
        ("40P01", StoreUnavailable, ""),
        ("42501", StoreConfigError, 'GRANT USAGE, CREATE ON SCHEMA public TO "gearman"'),
        ("42P01", StoreConfigError, "its tables are gone"),
        ("53100", StoreUnavailable, "make room on its disk"),
        ("53300", StoreUnavailable, ""),
        ("54000", StoreError, ""),
        ("55P03", StoreUnavailable, ""),
        ("57014", StoreUnavailable, "timeout="),
        ("57P01", StoreUnavailable, ""),
        ("57P03", StoreUnavailable, ""),
        ("58030", StoreUnavailable, "log"),
        ("XX000", StoreError, ""),
        ("XX001", StoreUnavailable, "disk"),
    ],
)
def test_meaning_of_an_error(state: str, kind: type[StoreError], says: str) -> None:
    """What PostgreSQL says decides whether the server comes again, and what the operator is told."""
    database = PostgresDatabase(StoreUrl.parse("postgresql://gearman@host/jobs", ()), is_lax=False)
    error = database.explain(psycopg.errors.lookup(state)("it failed"))
    assert type(error) is kind
    assert "PostgreSQL database jobs on host as gearman: it failed" in str(error)
    assert says in str(error)
    database.is_open = True
    is_for_good = kind is StoreError
    assert type(database.explain(psycopg.errors.lookup(state)("it failed"))) is (
        StoreError if is_for_good else StoreUnavailable
    )


def test_commit_waits_for_the_disk(postgres: Postgres) -> None:
    """A database that says to be quick rather than safe is not listened to."""
    with postgres.database() as name:
        postgres.run(f"ALTER DATABASE {name} SET synchronous_commit = off")
        postgres.run("CREATE TABLE seen (setting text)", database=name)
        with opened(postgres.url(name)) as store:
            store.apply([a_job(1)], [])
            postgres.run(
                "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                "INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NEW; END $$",
                "CREATE TRIGGER note BEFORE INSERT ON gearman_jobs EXECUTE FUNCTION note()",
                database=name,
            )
            store.apply([a_job(2)], [])
            assert stored(store) == [1, 2]
        assert postgres.run("SELECT setting FROM seen", database=name) == [("on",)]


def test_first_schema_of_the_search_path(postgres: Postgres) -> None:
    """The tables stand where the user's search_path says."""
    with postgres.database() as name:
        postgres.run("CREATE SCHEMA queue", f"ALTER DATABASE {name} SET search_path = queue", database=name)
        for _ in range(2):
            with opened(postgres.url(name)) as store:
                store.apply([a_job(1)], [])
                assert stored(store) == [1]
        assert postgres.run("SELECT id FROM queue.gearman_jobs", database=name) == [(1,)]


@pytest.fixture
def missing_standby(
    own_postgres: PrivatePostgres,
) -> Iterator[tuple[PrivatePostgres, str, Callable[[str], None]]]:
    """A server of our own, a database, and what names the standby that all commits wait for."""

    def wait_for(standby: str) -> None:
        own_postgres.run(
            f"ALTER SYSTEM SET synchronous_standby_names = '{standby}'", "SELECT pg_reload_conf()"
        )
        assert poll(lambda: own_postgres.run("SHOW synchronous_standby_names") == [(standby,)])

    with own_postgres.database() as name:
        try:
            yield own_postgres, name, wait_for
        finally:
            wait_for("")


def test_commit_that_the_standby_has_not_is_not_acknowledged(
    missing_standby: tuple[PrivatePostgres, str, Callable[[str], None]],
) -> None:
    """A wait for a standby that the time limit ends is no success, however often it is tried again."""
    server, name, wait_for = missing_standby
    with opened(f"{server.url(name)}?timeout=1") as store:
        store.apply([a_job(1)], [])
        wait_for("nobody")
        for saves, forgets in [([a_job(2)], []), ([a_job(2)], []), ([a_job(3)], [1])]:
            with pytest.raises(StoreUnavailable, match=name):
                store.apply(saves, forgets)
        wait_for("")
        store.apply([a_job(2)], [])
        assert stored(store)[-1] >= 2


def test_wait_for_a_standby_that_an_operator_cancels(
    missing_standby: tuple[PrivatePostgres, str, Callable[[str], None]],
) -> None:
    """A commit whose wait is cancelled is not acknowledged, and the warning of PostgreSQL says why."""
    server, name, wait_for = missing_standby
    with opened(server.url(name)) as store:
        wait_for("nobody")
        errors: list[Exception] = []

        def apply() -> None:
            try:
                store.apply([a_job(1)], [])
            except StoreUnavailable as error:
                errors.append(error)

        thread = threading.Thread(target=apply)
        thread.start()
        waits = f"FROM pg_stat_activity WHERE datname = '{name}' AND wait_event = 'SyncRep'"
        assert poll(lambda: server.run(f"SELECT count(*) {waits}") == [(1,)])
        server.run(f"SELECT pg_cancel_backend(pid) {waits}")
        thread.join()
        wait_for("")
        assert ["canceling wait for synchronous replication" in str(error) for error in errors] == [True]
        store.apply([a_job(1)], [])
        assert stored(store) == [1]
