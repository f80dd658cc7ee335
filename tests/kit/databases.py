"""Databases for tests: a fresh one on the machine's server, or on a server of our own on a free port."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import psycopg
import pymysql
import pytest

from gearman_twisted.store.sql.mysql import MySQLDatabase
from gearman_twisted.store.sql.postgres import PostgresDatabase
from gearman_twisted.store.sql.server import OPTIONS
from gearman_twisted.store.sql.tables import SqlStore
from gearman_twisted.store.url import StoreUrl

START_TIMEOUT = 40.0
_numbers = count(1)


def missing(reason: str) -> NoReturn:
    """Skips a test that needs what is not installed; where everything has to be, fails it."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def poll(is_done: Callable[[], bool], timeout: float = START_TIMEOUT) -> bool:
    """Waits for what another process does; whether it came to pass."""
    deadline = time.monotonic() + timeout
    while not is_done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def a_store(url: str) -> SqlStore:
    """The part of a store that works in its thread; here it may block the test."""
    parts = StoreUrl.parse(url, OPTIONS | {"host", "unix_socket"})
    kind = PostgresDatabase if parts.scheme == "postgresql" else MySQLDatabase
    interval = parts.sync_interval()
    return SqlStore(kind(parts, is_lax=interval > 0), interval)


@contextmanager
def opened(url: str) -> Iterator[SqlStore]:
    """A store, connected."""
    store = a_store(url)
    store.connect()
    try:
        yield store
    finally:
        store.disconnect()


def stored(store: SqlStore) -> list[int]:
    """The ids of all jobs."""
    jobs, after = store.page(-(2**63))
    assert after is None
    return [job.id for job in jobs]


class Server:
    """A database server, the machine's or one of our own.

    Attributes:
        scheme: what the URLs of its stores start with.
        port: where it listens, on 127.0.0.1.
        user: who may do everything, without a password.
    """

    scheme: str
    user: str

    def __init__(self, port: int) -> None:
        self.port = port

    def run(self, *statements: str, database: str = "") -> list[tuple[Any, ...]]:
        """Runs statements, each on its own, and returns the rows of the last."""
        raise NotImplementedError

    def drop(self, database: str) -> None:
        """Drops a database that may still be in use."""
        raise NotImplementedError

    def is_up(self) -> bool:
        """Whether it answers."""
        try:
            self.run("SELECT 1")
        except (psycopg.Error, pymysql.Error):
            return False
        return True

    def url(self, database: str, *, user: str = "", port: int | None = None) -> str:
        """The URL of a store in a database of it."""
        return f"{self.scheme}://{user or self.user}@127.0.0.1:{port or self.port}/{database}"

    @contextmanager
    def database(self) -> Iterator[str]:
        """The name of an empty database, which is dropped at the end."""
        name = f"gearman_test_{os.getpid()}_{next(_numbers)}"
        self.run(f"CREATE DATABASE {name}")
        try:
            yield name
        finally:
            self.drop(name)


class Postgres(Server):
    """A PostgreSQL server."""

    scheme = "postgresql"
    user = "postgres"

    def run(self, *statements: str, database: str = "") -> list[tuple[Any, ...]]:
        with psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=self.user,
            dbname=database or "postgres",
            connect_timeout=3,
            autocommit=True,
        ) as connection:
            rows: list[tuple[Any, ...]] = []
            for statement in statements:
                cursor = connection.execute(statement.encode())
                rows = cursor.fetchall() if cursor.description else []
            return rows

    def drop(self, database: str) -> None:
        self.run(f"DROP DATABASE {database} WITH (FORCE)")


class MariaDB(Server):
    """A MariaDB server."""

    scheme = "mysql"
    user = "root"

    def run(self, *statements: str, database: str = "") -> list[tuple[Any, ...]]:
        with pymysql.connect(
            host="127.0.0.1",
            port=self.port,
            user=self.user,
            database=database or None,
            connect_timeout=3,
            autocommit=True,
        ) as connection:
            cursor = connection.cursor()
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())

    def drop(self, database: str) -> None:
        self.run(f"DROP DATABASE {database}")


class Private(Server):
    """What a server of our own can do beside; it ends with the process that started it."""

    account: str
    stop_signal: signal.Signals

    def __init__(self) -> None:
        super().__init__(free_port())
        self.directory = Path(tempfile.mkdtemp(prefix="gearman-test-"))
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)
        if os.geteuid() == 0:
            # Database servers refuse to be root.
            shutil.chown(self.directory, self.account)
        self.create()

    def create(self) -> None:
        """Makes the files of an empty server."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """What runs the server in the foreground."""
        raise NotImplementedError

    def start(self, *options: str) -> None:
        """Starts the server, and waits until it answers."""
        command = [*self._as_account(), *self.command(), *options]
        deadline = time.monotonic() + START_TIMEOUT
        with (self.directory / "log").open("ab") as log:
            while True:
                self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.directory)
                poll(lambda: self.is_up() or self._has_ended())
                if not self._has_ended():
                    return
                # After a crash, PostgreSQL waits for its last processes to end.
                assert time.monotonic() < deadline, (self.directory / "log").read_text(errors="replace")
                time.sleep(0.1)

    def stop(self, how: signal.Signals | None = None) -> None:
        """Ends the server as its operator does, or with another signal, and waits for its end."""
        if self._process is not None:
            children = _children(self._process.pid)
            self._process.send_signal(how or self.stop_signal)
            self._process.wait(START_TIMEOUT)
            self._process = None
            # PostgreSQL's sessions are processes that may answer once more.
            assert poll(lambda: not any(map(_runs, children)))

    def kill(self) -> None:
        """Ends the server as a crash does."""
        self.stop(signal.SIGKILL)

    def close(self) -> None:
        """Ends the server and removes its files."""
        atexit.unregister(self.close)
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def prepare(self, *command: str) -> None:
        """Runs a command that makes files, as the server's account."""
        done = subprocess.run(
            [*self._as_account(), *command], capture_output=True, text=True, cwd=self.directory
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _as_account(self) -> list[str]:
        # The signal comes when the tests end without a chance to clean up.
        command = ["setpriv", "--pdeathsig", "KILL"]
        if os.geteuid() == 0:
            command += ["--reuid", self.account, "--regid", self.account, "--clear-groups"]
        return command


class PrivatePostgres(Private, Postgres):
    """A PostgreSQL server of our own."""

    account = "postgres"
    stop_signal = signal.SIGINT

    def create(self) -> None:
        self._programs = _newest("/usr/lib/postgresql/*/bin/postgres", "PostgreSQL").parent
        self.prepare(
            str(self._programs / "initdb"), "-D", "data", "-U", self.user, "-A", "trust", "--no-sync"
        )
        rules = self.directory / "data" / "pg_hba.conf"
        rules.write_text("host all locked 127.0.0.1/32 scram-sha-256\n" + rules.read_text())

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.directory,
            "max_connections": 30,
            "shared_buffers": "16MB",
        }
        command = [str(self._programs / "postgres"), "-D", "data"]
        return command + [f"--{name}={value}" for name, value in settings.items()]


class PrivateMariaDB(Private, MariaDB):
    """A MariaDB server of our own."""

    account = "mysql"
    stop_signal = signal.SIGTERM

    def create(self) -> None:
        self._program = _newest("/usr/sbin/mariadbd", "MariaDB")
        self.prepare(
            "mariadb-install-db",
            "--no-defaults",
            f"--datadir={self.directory}/data",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        )

    def command(self) -> list[str]:
        return [
            str(self._program),
            "--no-defaults",
            f"--datadir={self.directory}/data",
            f"--socket={self.directory}/socket",
            f"--pid-file={self.directory}/pid",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            "--innodb-buffer-pool-size=32M",
        ]


Own = PrivatePostgres | PrivateMariaDB


def _children(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []


def _runs(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _newest(pattern: str, name: str) -> Path:
    found = sorted(Path("/").glob(pattern.lstrip("/")))
    if not found or shutil.which("setpriv") is None:
        missing(f"no server of {name} is installed here")
    return found[-1]


@pytest.fixture(scope="session")
def own_postgres() -> Iterator[PrivatePostgres]:
    """A PostgreSQL server that a test may stop and kill, if it starts it again."""
    server = PrivatePostgres()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def own_mariadb() -> Iterator[PrivateMariaDB]:
    """A MariaDB server that a test may stop and kill, if it starts it again."""
    server = PrivateMariaDB()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(params=["own_postgres", "own_mariadb"])
def server(request: pytest.FixtureRequest) -> Own:
    """A server of our own, of each kind."""
    server: Own = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def database(server: Own) -> Iterator[str]:
    """An empty database of it."""
    with server.database() as name:
        yield name


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Postgres:
    """The machine's PostgreSQL server, or ours where it has none."""
    server = Postgres(5432)
    if server.is_up():
        return server
    own: PrivatePostgres = request.getfixturevalue("own_postgres")
    return own


@pytest.fixture(scope="session")
def mariadb(request: pytest.FixtureRequest) -> MariaDB:
    """The machine's MariaDB server, or ours where it has none."""
    server = MariaDB(3306)
    if server.is_up():
        return server
    own: PrivateMariaDB = request.getfixturevalue("own_mariadb")
    return own


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """The URL of an empty PostgreSQL database."""
    with postgres.database() as name:
        yield postgres.url(name)


@pytest.fixture
def mysql_url(mariadb: MariaDB) -> Iterator[str]:
    """The URL of an empty MariaDB database."""
    with mariadb.database() as name:
        yield mariadb.url(name)
