"""Where servers keep jobs while they are measured: temporary files and databases.

Each kind is the same for both servers: the same disk, the same database server, the same settings of it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import attrs

from benchmarks.programs import Missing, end, free_port, program
from gearman_twisted.package import install_command

POSTGRES_PORT = 5432
MARIADB_PORT = 3306
_START_TIMEOUT = 20.0
_numbers = itertools.count(1)


@attrs.frozen
class Place:
    """A place that is empty at the start.

    Attributes:
        url: how our server is told of it.
        words: how gearmand is told of it.
        version: the database's own version, as a name and a number.
        held: while this context is open, nothing can be stored: what writes waits.
    """

    url: str
    words: tuple[str, ...]
    version: str
    held: Callable[[], AbstractContextManager[None]]


@contextlib.contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextlib.contextmanager
def memory(_directory: Path) -> Iterator[Place]:
    """No place: jobs are in the memory of the server."""
    yield Place("memory:", (), "", _nothing)


@contextlib.contextmanager
def sqlite(directory: Path) -> Iterator[Place]:
    """A SQLite file in a directory."""
    path = directory / "jobs.db"

    @contextlib.contextmanager
    def held() -> Iterator[None]:
        connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        try:
            connection.execute("BEGIN EXCLUSIVE")
            yield
        finally:
            connection.close()

    words = ("--queue-type=libsqlite3", f"--libsqlite3-db={path}")
    yield Place(f"sqlite:{path}", words, f"SQLite {sqlite3.sqlite_version}", held)


@contextlib.contextmanager
def postgresql(_directory: Path) -> Iterator[Place]:
    """A database of the PostgreSQL that runs on this machine, of the user postgres.

    Raises:
        Missing: there is none, or no driver for it.
    """
    try:
        import psycopg
    except ImportError:
        raise Missing(f"the driver is missing: {install_command('gearman-twisted[postgres]')}") from None

    def connect(database: str) -> psycopg.Connection[tuple[str]]:
        return psycopg.connect(
            host="127.0.0.1",
            port=POSTGRES_PORT,
            user="postgres",
            dbname=database,
            autocommit=True,
            connect_timeout=5,
        )

    name = _name()
    try:
        owner = connect("postgres")
    except psycopg.OperationalError as error:
        raise Missing(_not_reached("PostgreSQL", POSTGRES_PORT, "postgres", error)) from None

    @contextlib.contextmanager
    def held() -> Iterator[None]:
        with connect(name) as connection, connection.transaction():
            rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            for (table,) in rows.fetchall():
                statement = psycopg.sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE")
                connection.execute(statement.format(psycopg.sql.Identifier(table)))
            yield

    with owner:
        owner.execute(f"CREATE DATABASE {name}".encode())
        try:
            yield Place(
                f"postgresql://postgres@127.0.0.1:{POSTGRES_PORT}/{name}",
                (
                    "--queue-type=Postgres",
                    f"--libpq-conninfo=host=127.0.0.1 port={POSTGRES_PORT} user=postgres dbname={name}",
                ),
                f"PostgreSQL {owner.info.server_version // 10000}.{owner.info.server_version % 10000}",
                held,
            )
        finally:
            owner.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextlib.contextmanager
def mysql(_directory: Path) -> Iterator[Place]:
    """A database of the MariaDB or MySQL that runs on this machine, of the user root without a password.

    Raises:
        Missing: there is none, or no driver for it.
    """
    try:
        import pymysql
    except ImportError:
        raise Missing(f"the driver is missing: {install_command('gearman-twisted[mysql]')}") from None

    name = _name()
    try:
        owner = pymysql.connect(host="127.0.0.1", port=MARIADB_PORT, user="root", autocommit=True)
    except pymysql.err.OperationalError as error:
        raise Missing(_not_reached("MariaDB", MARIADB_PORT, "root", error)) from None

    @contextlib.contextmanager
    def held() -> Iterator[None]:
        with owner.cursor() as cursor:
            cursor.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = %s", [name])
            locks = ", ".join(f"`{name}`.`{table}` WRITE" for (table,) in cursor.fetchall())
            cursor.execute(f"LOCK TABLES {locks}")
            try:
                yield
            finally:
                cursor.execute("UNLOCK TABLES")

    with contextlib.closing(owner), owner.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
        try:
            cursor.execute("SELECT version()")
            (version,) = cursor.fetchone() or ("",)
            product = "MariaDB" if "MariaDB" in version else "MySQL"
            yield Place(
                f"mysql://root@127.0.0.1:{MARIADB_PORT}/{name}",
                (
                    "--queue-type=MySQL",
                    "--mysql-host=127.0.0.1",
                    f"--mysql-port={MARIADB_PORT}",
                    "--mysql-user=root",
                    f"--mysql-db={name}",
                ),
                f"{product} {version.partition('-')[0]}",
                held,
            )
        finally:
            cursor.execute(f"DROP DATABASE {name}")


@contextlib.contextmanager
def redis(directory: Path) -> Iterator[Place]:
    """A Redis server of its own, which syncs each write before it answers.

    Raises:
        Missing: it is not installed, or there is no driver for it.
    """
    try:
        from redis import Redis
        from redis.exceptions import RedisError
    except ImportError:
        raise Missing(f"the driver is missing: {install_command('gearman-twisted[redis]')}") from None

    port = free_port()
    settings = {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": str(directory),
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
    }
    words = [program("redis-server", "redis-server")]
    words += [word for name, value in settings.items() for word in (f"--{name}", value)]
    with (directory / "redis.log").open("wb") as log:
        process = subprocess.Popen([*words, "--save", ""], stdout=log, stderr=log)

    @contextlib.contextmanager
    def held() -> Iterator[None]:
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    try:
        with contextlib.closing(Redis(port=port)) as connection:
            deadline = time.monotonic() + _START_TIMEOUT
            while True:
                try:
                    version = str(connection.info("server")["redis_version"])
                    break
                except RedisError:
                    if time.monotonic() > deadline or process.poll() is not None:
                        raise Missing(f"redis-server does not start; see {directory}/redis.log") from None
                    time.sleep(0.02)
        yield Place(
            f"redis://127.0.0.1:{port}/0",
            ("--queue-type=redis", "--redis-server=127.0.0.1", f"--redis-port={port}"),
            f"Redis {version}",
            held,
        )
    finally:
        end(process)


KINDS: dict[str, Callable[[Path], AbstractContextManager[Place]]] = {
    "memory": memory,
    "sqlite": sqlite,
    "postgresql": postgresql,
    "mysql": mysql,
    "redis": redis,
}
"""Every kind of place by its name."""


def _name() -> str:
    return f"gearman_benchmark_{os.getpid()}_{next(_numbers)}"


def _not_reached(product: str, port: int, user: str, error: Exception) -> str:
    return (
        f"{product} on 127.0.0.1:{port} does not let {user} in without a password: "
        f"{str(error).splitlines()[0].rstrip('.')}"
    )
