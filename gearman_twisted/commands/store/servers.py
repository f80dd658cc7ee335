"""The queues that the original gearmand leaves behind in database servers; see ``queue``.

The drivers are imported when a source is opened, as each of them is optional.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from gearman_twisted.commands.store.queue import (
    SSL_OPTIONS,
    Found,
    Source,
    Unusable,
    check_columns,
    found_in_row,
    found_or_not,
)
from gearman_twisted.errors import StoreConfigError, StoreUnavailable
from gearman_twisted.package import install_command
from gearman_twisted.store.url import DatabaseAddress, StoreUrl

# Rows that are fetched at once: each may hold a large workload.
_ROWS_PER_FETCH = 64
_KEYS_PER_SCAN = 500
_UUID = re.compile(rb"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class _ServerQueue(Source):
    """What the three have in common: a server, a driver, and how its errors are told."""

    module: str
    extra: str

    def __init__(self, url: StoreUrl) -> None:
        self._options = url.options
        self._server: DatabaseAddress = url.address()
        self._password = url.password()
        if len(self._server.hosts) != 1:
            raise StoreConfigError(f"{url.scheme}: a queue is imported from one host")
        self._host, self._port = self._server.hosts[0]
        try:
            self._driver: Any = import_module(self.module)
        except ImportError as error:
            raise StoreConfigError(
                f"{url.scheme}: needs a package that is not installed ({error}): "
                f"{install_command(f'gearman-twisted[{self.extra}]')}"
            ) from error
        self._connection: Any = None

    def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()

    @property
    def _where(self) -> str:
        # As gearmand's own default would be shown, and the same for the same place.
        host = self._host or "localhost"
        return host if self._port is None else f"{host}:{self._port}"

    @abc.abstractmethod
    def _errors(self) -> tuple[type[Exception], ...]:
        """Return the errors of the driver."""

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._errors() as error:
            said = " ".join(str(error.args[-1] if error.args else error).split())
            raise StoreUnavailable(f"cannot read {self.description}: {said}") from error


class _SqlQueue(_ServerQueue):
    """A table in a database server."""

    scheme: str
    default_table: str
    socket_option: str
    others: str
    quote: str

    def __init__(self, url: StoreUrl) -> None:
        super().__init__(url)
        if not self._server.database:
            raise StoreConfigError(f"{url.scheme}: write //USER@HOST/DATABASE, with the database of gearmand")
        self._table = url.options.get("table", self.default_table)
        self._quoted = self.quote + self._table.replace(self.quote, self.quote * 2) + self.quote
        where = url.options.get(self.socket_option) or self._where
        self.description = f"table {self._table} of {self.scheme}://{where}/{self._server.database}"

    def open(self) -> None:
        """Connect, and begin a transaction, so that what is counted is what is read."""
        with self._explained():
            self._connect()
            with self._connection.cursor() as cursor:
                cursor.execute(f"SELECT * FROM {self._quoted} LIMIT 0")
                check_columns([column[0] for column in cursor.description], self.description)

    def warning(self) -> str | None:
        """Tell of other connections to the database: one may be that of a gearmand."""
        others = self._number(self.others)
        if not others:
            return None
        return f"{others} other connections use the database {self._server.database}; none may be a gearmand"

    def count(self) -> int:
        return self._number(f"SELECT count(*) FROM {self._quoted}")

    def read(self) -> Iterator[Found | Unusable]:
        """Yield the rows as the database has them; gearmand knows no order there either."""
        with self._explained(), self._stream() as cursor:
            cursor.execute(f"SELECT * FROM {self._quoted}")
            names = [column[0] for column in cursor.description]
            while rows := cursor.fetchmany(_ROWS_PER_FETCH):
                for row in rows:
                    yield found_in_row(names, row, self._table)

    def _number(self, statement: str) -> int:
        with self._explained(), self._connection.cursor() as cursor:
            cursor.execute(statement)
            (number,) = cursor.fetchone()
        return int(number)

    @abc.abstractmethod
    def _connect(self) -> None:
        """Connect, and begin a read-only transaction."""

    @abc.abstractmethod
    def _stream(self) -> Any:
        """Return a cursor that does not fetch all at once."""


class PostgresQueue(_SqlQueue):
    """The table of ``gearmand -q Postgres``."""

    module = "psycopg"
    extra = "postgres"
    scheme = "postgresql"
    default_table = "queue"
    socket_option = "host"
    quote = '"'
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )

    def _connect(self) -> None:
        given = {
            "host": self._host or self._options.get("host"),
            "port": self._port,
            "user": self._server.user,
            "password": self._password,
            "dbname": self._server.database,
            "application_name": "gearman-store",
            **{name: self._options.get(name) for name in SSL_OPTIONS},
        }
        # As gearmand's own connection, this one does not convert: names come back byte by byte.
        connection = self._driver.connect(
            client_encoding="sql_ascii", **{name: value for name, value in given.items() if value}
        )
        self._connection = connection
        connection.read_only = True
        connection.isolation_level = self._driver.IsolationLevel.REPEATABLE_READ

    def _stream(self) -> Any:
        return self._connection.cursor(name="gearman_store")

    def _errors(self) -> tuple[type[Exception], ...]:
        return (self._driver.Error,)


class MySQLQueue(_SqlQueue):
    """The table of ``gearmand -q MySQL``."""

    module = "pymysql"
    extra = "mysql"
    scheme = "mysql"
    default_table = "gearman_queue"
    socket_option = "unix_socket"
    quote = "`"
    others = (
        "SELECT count(*) FROM information_schema.processlist WHERE db = database() AND id <> connection_id()"
    )

    def _connect(self) -> None:
        given = {
            "host": self._host or "localhost",
            "port": self._port,
            "user": self._server.user,
            # The driver would take text for Latin-1.
            "password": (self._password or "").encode(),
            "unix_socket": self._options.get("unix_socket"),
        }
        self._connection = self._driver.connect(
            database=self._server.database,
            charset="utf8mb4",
            **{name: value for name, value in given.items() if value},
        )
        with self._connection.cursor() as cursor:
            # A target that is slow to write may keep the server waiting.
            cursor.execute("SET SESSION net_write_timeout = 3600")
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")

    def _stream(self) -> Any:
        return self._connection.cursor(self._driver.cursors.SSCursor)

    def _errors(self) -> tuple[type[Exception], ...]:
        return (self._driver.MySQLError,)


class RedisQueue(_ServerQueue):
    """The keys of ``gearmand -q redis``.

    Args:
        url: where they are.
        functions: names of functions, to tell old keys apart.
    """

    module = "redis"
    extra = "redis"

    def __init__(self, url: StoreUrl, functions: Collection[bytes]) -> None:
        super().__init__(url)
        database = self._server.database or "0"
        if not (database.isascii() and database.isdecimal()):
            raise StoreConfigError(f"redis: takes the number of a database, not {database!r}")
        self._database = int(database)
        self._prefix = url.options.get("prefix", "_gear_").encode() + b"-"
        self._functions = functions
        where = f"redis://{self._where}/{self._database}"
        self.description = f"keys {self._prefix.decode()}… of {where}"

    def open(self) -> None:
        with self._explained():
            self._connection = self._driver.Redis(
                host=self._host or "localhost",
                port=self._port or 6379,
                db=self._database,
                username=self._server.user or None,
                password=self._password,
                socket_connect_timeout=10,
            )
            self._connection.ping()

    def warning(self) -> str | None:
        """Tell of other connections to the server: one may be that of a gearmand."""
        try:
            others = len(self._connection.client_list()) - 1
        except self._errors():  # the server may not allow to ask
            return None
        return f"{others} other connections use the server; none may be a gearmand" if others > 0 else None

    def count(self) -> int:
        """Count the keys of the database, as Redis does not count by prefix."""
        with self._explained():
            return int(self._connection.dbsize())

    def read(self) -> Iterator[Found | Unusable]:
        """Yield what the keys hold, in no order, like gearmand; what is new meanwhile may be missed."""
        pattern = re.sub(rb"([*?\[\]\\])", rb"\\\1", self._prefix) + b"*"
        with self._explained():
            for key in self._connection.scan_iter(match=pattern, count=_KEYS_PER_SCAN):
                kind = self._connection.type(key)
                if kind == b"hash":
                    yield self._of_hash(key)
                elif kind == b"string":
                    # This is how gearmand up to 1.1.15 had it.
                    yield self._of_key(key, self._connection.get(key), None, None)
                elif kind != b"none":
                    yield Unusable(f"key {key!r}", f"it is a {kind.decode()}, no job of gearmand")

    def _of_hash(self, key: bytes) -> Found | Unusable:
        fields: dict[bytes, bytes] = self._connection.hgetall(key)
        if b"data" not in fields:
            return Unusable(f"key {key!r}", "its hash has not got the fields of gearmand")
        data, numbers = fields[b"data"], (fields.get(b"priority"), fields.get(b"when_to_run"))
        if b"function" in fields and b"unique" in fields:
            return found_or_not(f"key {key!r}", fields[b"function"], fields[b"unique"], data, *numbers)
        return self._of_key(key, data, *numbers)

    def _of_key(self, key: bytes, data: bytes | None, *numbers: bytes | None) -> Found | Unusable:
        """Make a job of a key of gearmand 1.1, which kept function and unique in the key alone."""
        rest = key[len(self._prefix) :]
        splits = [(rest[: hyphen.start()], rest[hyphen.end() :]) for hyphen in re.finditer(b"-", rest)]
        known = [split for split in splits if split[0] in self._functions]
        # The UUIDs that libgearman makes have hyphens of their own.
        by_uuid = [split for split in splits if b"-" not in split[0] and _UUID.fullmatch(split[1])]
        for certain in known, splits, by_uuid:
            if len(certain) == 1:
                return found_or_not(f"key {key!r}", *certain[0], data, *numbers)
        return Unusable(
            f"key {key!r}",
            "where the function ends and the unique begins cannot be told; name the function with --function",
        )

    def _errors(self) -> tuple[type[Exception], ...]:
        return (self._driver.RedisError,)
