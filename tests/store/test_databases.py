"""What the stores in PostgreSQL and in MariaDB have in common: whom they let in, and what they touch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs

from gearman_twisted.errors import StoreConfigError, StoreError, StoreInUse, StoreUnavailable
from gearman_twisted.store import open_store
from gearman_twisted.store.conformance import a_job
from gearman_twisted.store.sql import server as sql_server
from tests.kit.databases import Own, PrivatePostgres, a_store, opened, stored

make_reactor: Any = MemoryReactorClock
CERTIFICATE = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")


def refused(url: str, kind: type[StoreError], says: str) -> None:
    """Neither check nor connect takes it, and nothing that has a password is told."""
    for call in (a_store(url).check, a_store(url).connect):
        with pytest.raises(kind, match=says) as caught:
            call()
        assert "s3cret" not in str(caught.value)
        assert "\n" not in str(caught.value)


def tables(server: Own, database: str) -> list[tuple[str, str]]:
    """The tables and columns of a database."""
    where = f"table_schema = '{database}'" if server.scheme == "mysql" else "table_schema = 'public'"
    rows = server.run(
        f"SELECT table_name, column_name FROM information_schema.columns WHERE {where} ORDER BY 1, 2",
        database=database,
    )
    return [(str(table), str(column)) for table, column in rows]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://host/", "needs the name of a database"),
        ("mysql://host", "needs the name of a database"),
        ("postgresql:gearman", "followed by //USER@HOST/NAME"),
        ("mysql://a,b/gearman", "takes one host"),
        ("postgresql://host/db?host=/run", "takes //HOST or [?]host=DIRECTORY"),
        ("mysql://host/db?unix_socket=/run/s", "takes //HOST or [?]unix_socket=PATH"),
        ("postgresql://host/db?timeout=soon", "takes timeout=SECONDS, 1 to 3600, not timeout=soon"),
        ("mysql://host/db?connect_timeout=0", "takes connect_timeout=SECONDS"),
        ("mysql://host/db?sslmode=maybe", "takes sslmode=disable, require"),
        ("mysql://host/db?sslrootcert=/no/such/file", "cannot use /no/such/file for TLS"),
        ("postgresql://host/db?password_file=/no/such/file", "cannot read the password file"),
        ("mysql://host/db?table=jobs", "has no option 'table'"),
    ],
)
def test_url_that_makes_no_sense(url: str, says: str) -> None:
    """A URL that its store cannot make sense of is refused with a hint, before anything is connected to."""
    with pytest.raises(StoreConfigError, match=says):
        open_store(url, make_reactor())


def test_both_names_of_a_scheme() -> None:
    """The short names make the same stores."""
    reactor = make_reactor()
    for url, says in {
        "postgres://gearman@db1:5433,[::1]:5434/jobs": (
            "PostgreSQL database jobs on db1:5433, [::1]:5434 as gearman"
        ),
        "mariadb:///jobs?unix_socket=/run/s": "MariaDB database jobs on this machine, socket /run/s",
    }.items():
        assert open_store(url, reactor).description == says


@pytest.mark.parametrize(
    ("url", "driver", "extra"),
    [("postgresql://host/jobs", "psycopg", "postgres"), ("mariadb://host/jobs", "pymysql", "mysql")],
)
def test_driver_that_is_missing(url: str, driver: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that is not installed is named, with the command that installs it."""
    monkeypatch.setitem(sys.modules, driver, None)
    monkeypatch.delitem(sys.modules, f"gearman_twisted.store.sql.{extra}")
    with pytest.raises(StoreConfigError, match=rf"{driver}.*; .* -m pip install '?{driver}"):
        open_store(url, make_reactor())


def test_check_changes_nothing(server: Own, database: str) -> None:
    """A check finds that the tables can be made, and does not make them."""
    store = a_store(server.url(database))
    store.check()
    assert tables(server, database) == []
    store.connect()
    store.disconnect()
    assert {table for table, _ in tables(server, database)} == {"gearman_jobs", "gearman_schema"}


@pytest.mark.parametrize(
    "statements",
    [
        ("CREATE TABLE gearman_jobs (id INTEGER PRIMARY KEY, title VARCHAR(20))",),
        ("CREATE TABLE gearman_schema (version INTEGER, comment VARCHAR(20))",),
        (
            "CREATE TABLE gearman_schema (version INTEGER)",
            "CREATE TABLE gearman_jobs (id INTEGER, title VARCHAR(20))",
        ),
    ],
    ids=["jobs", "schema", "both"],
)
def test_tables_of_something_else(server: Own, database: str, statements: tuple[str, ...]) -> None:
    """Tables of our names that are not ours are refused and left as they are."""
    server.run(*statements, database=database)
    before = tables(server, database)
    refused(server.url(database), StoreConfigError, f"{database} .*of something else")
    assert tables(server, database) == before


@pytest.mark.parametrize(
    ("statements", "says"),
    [
        (("UPDATE gearman_schema SET version = 99",), "version 99, and this release knows up to"),
        (("INSERT INTO gearman_schema VALUES (3)",), "does not hold one version number"),
        (("DELETE FROM gearman_schema",), "does not hold one version number"),
    ],
    ids=["newer", "two", "none"],
)
def test_version_that_is_not_known(
    server: Own, database: str, statements: tuple[str, ...], says: str
) -> None:
    """Tables that hold jobs and are not of a known version are refused."""
    with opened(server.url(database)) as store:
        store.apply([a_job(1)], [])
    server.run(*statements, database=database)
    refused(server.url(database), StoreConfigError, says)


def test_damaged_rows_are_kept_and_skipped(server: Own, database: str) -> None:
    """A row that is no job is reported, skipped and kept, by a replay and by a load."""
    with opened(server.url(database)) as store:
        store.apply([a_job(number) for number in range(1, 5)], [])
        server.run(
            "UPDATE gearman_jobs SET priority = 7 WHERE id = 2",
            "UPDATE gearman_jobs SET run_at = -1 WHERE id = 3",
            database=database,
        )
        with capturedLogs() as logged:
            assert stored(store) == [1, 4]
            assert store.load([4, 3, 2, 1]) == [a_job(4), a_job(1)]
    assert sorted(event["id"] for event in logged) == [2, 2, 3, 3]
    assert server.run("SELECT COUNT(*) FROM gearman_jobs", database=database) == [(4,)]


def test_columns_that_somebody_made_text(server: Own, database: str) -> None:
    """A column with a type that is not ours makes rows that are reported and skipped, and no failure."""
    with opened(server.url(database)) as store:
        store.apply([a_job(1)], [])
        server.run(
            "ALTER TABLE gearman_jobs ALTER function TYPE text USING encode(function, 'escape')"
            if isinstance(server, PrivatePostgres)
            else "ALTER TABLE gearman_jobs MODIFY `function` TEXT CHARACTER SET utf8mb4",
            database=database,
        )
        with capturedLogs() as logged:
            assert store.page(0) == ([], None)
    assert [event["id"] for event in logged] == [1]


def test_unknown_database(server: Own) -> None:
    """A database that is not there is answered with the statement that makes it."""
    refused(server.url("gearman_test_no_such"), StoreConfigError, "CREATE DATABASE .gearman_test_no_such")


def test_user_without_rights(server: Own, database: str) -> None:
    """A user who may not create tables is answered with the statement that grants it."""
    if isinstance(server, PrivatePostgres):
        server.run("DROP ROLE IF EXISTS guest", "CREATE ROLE guest LOGIN")
        server.run("REVOKE CREATE ON SCHEMA public FROM PUBLIC", database=database)
        refused(server.url(database, user="guest"), StoreConfigError, "GRANT USAGE, CREATE ON SCHEMA public")
    else:
        server.run("CREATE OR REPLACE USER guest@'127.0.0.1'")
        refused(server.url(database, user="guest"), StoreConfigError, f"GRANT ALL ON `{database}`")
        server.run(f"GRANT SELECT ON {database}.* TO guest@'127.0.0.1'")
        with pytest.raises(StoreConfigError, match=r"CREATE command denied.*GRANT ALL ON"):
            a_store(server.url(database, user="guest")).connect()
    assert tables(server, database) == []


@pytest.fixture
def locked_url(server: Own, database: str) -> str:
    """The URL of a user who needs the password s3crét."""
    if isinstance(server, PrivatePostgres):
        if not server.run("SELECT 1 FROM pg_roles WHERE rolname = 'locked'"):
            server.run("CREATE ROLE locked LOGIN SUPERUSER")
        server.run("ALTER ROLE locked PASSWORD 's3crét'")
    else:
        server.run(
            "CREATE OR REPLACE USER locked@'127.0.0.1' IDENTIFIED BY 's3crét'",
            f"GRANT ALL ON {database}.* TO locked@'127.0.0.1'",
        )
    return server.url(database, user="locked")


def test_password(locked_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password comes from a file or from the environment, and a wrong or missing one is refused."""
    file = tmp_path / "password"
    file.write_text("s3crét\n")
    monkeypatch.setenv("GEARMAN_TEST_PASSWORD", "s3crét")
    for option in (f"password_file={file}", "password_env=GEARMAN_TEST_PASSWORD"):
        a_store(f"{locked_url}?{option}").check()
        with opened(f"{locked_url}?{option}") as store:
            store.apply([a_job(1)], [])
    refused(locked_url, StoreConfigError, "password")
    file.write_text("s3cret")
    refused(f"{locked_url}?password_file={file}", StoreConfigError, "password_file=PATH")


def test_new_password(server: Own, database: str, locked_url: str, tmp_path: Path) -> None:
    """A password that changes while the store is open is read again; until then it is an error for later."""
    file = tmp_path / "password"
    file.write_text("s3crét")
    with opened(f"{locked_url}?password_file={file}") as store:
        server.run(
            "ALTER ROLE locked PASSWORD 'other'"
            if isinstance(server, PrivatePostgres)
            else "ALTER USER locked@'127.0.0.1' IDENTIFIED BY 'other'"
        )
        server.stop()
        server.start()
        with pytest.raises(StoreUnavailable):
            store.apply([a_job(1)], [])
        with pytest.raises(StoreUnavailable, match="password"):
            store.apply([a_job(1)], [])
        file.write_text("other")
        store.apply([a_job(1)], [])
        assert stored(store) == [1]


def test_unix_socket(server: Own, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server is reached through its Unix socket."""
    monkeypatch.setattr(sql_server, "LOCK_WAIT", 0.2)
    option = (
        f"host={server.directory}"
        if isinstance(server, PrivatePostgres)
        else f"unix_socket={server.directory}/socket"
    )
    port = f":{server.port}" if isinstance(server, PrivatePostgres) else ""
    url = f"{server.scheme}://{server.user}@{port}/{database}?{option}"
    with opened(url) as store:
        store.apply([a_job(1)], [])
        assert stored(store) == [1]
        with pytest.raises(StoreInUse, match="in use by"):
            a_store(url).connect()


def test_tls(server: Own, tmp_path: Path) -> None:
    """With sslmode= the connection is encrypted, and the server's certificate checked, or it is refused."""
    key, certificate = server.directory / "key.pem", server.directory / "cert.pem"
    if not key.exists():
        names = "subjectAltName=IP:127.0.0.1"
        server.prepare(
            *(*CERTIFICATE, "-subj", "/CN=test", "-addext", names),
            *("-keyout", str(key), "-out", str(certificate)),
        )
    other = tmp_path / "other.pem"
    subprocess.run(
        [*CERTIFICATE, "-subj", "/CN=other", "-keyout", tmp_path / "other.key", "-out", other],
        check=True,
        capture_output=True,
    )
    server.stop()
    if isinstance(server, PrivatePostgres):
        server.start("--ssl=on", f"--ssl_cert_file={certificate}", f"--ssl_key_file={key}")
    else:
        server.start(f"--ssl-cert={certificate}", f"--ssl-key={key}", "--require-secure-transport=off")
    try:
        with server.database() as name:
            url = server.url(name)
            for options in ("sslmode=require", f"sslmode=verify-full&sslrootcert={certificate}"):
                with opened(f"{url}?{options}") as store:
                    assert stored(store) == []
                    if isinstance(server, PrivatePostgres):
                        assert server.run(
                            "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) "
                            f"WHERE datname = '{name}'"
                        ) == [(True,)]
            refused(f"{url}?sslmode=verify-full&sslrootcert={other}", StoreConfigError, "certificate")
    finally:
        server.stop()
        server.start()


def test_tls_that_the_server_does_not_have(server: Own, database: str) -> None:
    """A connection that shall be encrypted is not made in the clear."""
    refused(f"{server.url(database)}?sslmode=require", StoreError, "SSL|TLS")
