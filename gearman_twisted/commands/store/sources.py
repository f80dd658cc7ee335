"""Which queue of the original gearmand a URL names; and the queue in an SQLite file.

What is read is never changed. Everything here blocks, and is called in a thread. ``servers`` has the queues
in database servers.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gearman_twisted.commands.store.queue import (
    SSL_OPTIONS,
    Found,
    Source,
    Unusable,
    check_columns,
    found_in_row,
)
from gearman_twisted.errors import StoreConfigError, StoreUnavailable
from gearman_twisted.store.url import StoreUrl

PASSWORD_OPTIONS = ("password_file", "password_env")


def open_source(url: str, functions: Collection[bytes]) -> Source:
    """Make the source that a URL names; nothing is connected to yet.

    Args:
        url: ``sqlite:``, ``postgresql:``, ``mysql:`` or ``redis:``, and where the queue is.
        functions: the names of functions, as far as they are needed to tell old keys in Redis apart.

    Raises:
        StoreConfigError: it is invalid, or the driver is not installed.
    """
    scheme = url.partition(":")[0]
    if scheme == "sqlite":
        return SQLiteQueue(StoreUrl.parse(url, {"table"}))

    from gearman_twisted.commands.store.servers import MySQLQueue, PostgresQueue, RedisQueue

    if scheme in {"postgresql", "postgres"}:
        return PostgresQueue(StoreUrl.parse(url, {"table", "host", *SSL_OPTIONS, *PASSWORD_OPTIONS}))
    if scheme in {"mysql", "mariadb"}:
        return MySQLQueue(StoreUrl.parse(url, {"table", "unix_socket", *PASSWORD_OPTIONS}))
    if scheme == "redis":
        return RedisQueue(StoreUrl.parse(url, {"prefix", *PASSWORD_OPTIONS}), functions)
    raise StoreConfigError(
        f"jobs are imported from sqlite:, postgresql:, mysql: or redis:, not from {scheme + ':'!r}; "
        f"see gearman-store import --help"
    )


class SQLiteQueue(Source):
    """The file of ``gearmand -q libsqlite3``."""

    def __init__(self, url: StoreUrl) -> None:
        if not url.place:
            raise StoreConfigError("sqlite: needs the path of gearmand's file")
        self._path = Path(url.place).resolve()
        self._table = url.options.get("table", "gearman_queue")
        self._connection: sqlite3.Connection | None = None
        self.description = f"table {self._table} of gearmand's SQLite file {self._path}"

    def open(self) -> None:
        """Open the file, unless a process has it open."""
        if not self._path.is_file():
            raise StoreConfigError(f"there is no file {self._path}; name the one that gearmand wrote")
        holder = _holder_of(self._path)
        if holder is not None:
            raise StoreUnavailable(f"{self._path} is open in {holder}; stop it first, or its jobs run twice")
        # After a crash of gearmand SQLite first takes back what was half done, so it may have to write.
        mode = "rw" if os.access(self._path, os.W_OK) else "ro"
        with self._explained():
            self._connection = connection = sqlite3.connect(
                f"{self._path.as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
            )
            connection.text_factory = bytes
            connection.execute("PRAGMA query_only = ON")
            # Held to the end: nobody may change what has been counted and is being read.
            connection.execute("BEGIN")
            names = [
                name.decode() for _, name, *_ in connection.execute(f"PRAGMA table_info({self._quoted})")
            ]
        if not names:
            raise StoreConfigError(
                f"there is no table {self._table} in {self._path}; name gearmand's with ?table=NAME"
            )
        check_columns(names, self.description)

    def warning(self) -> None:
        """Return None: a process that has the file open is refused."""

    def count(self) -> int:
        with self._explained():
            (number,) = self._execute(f"SELECT count(*) FROM {self._quoted}").fetchone()
        return int(number)

    def read(self) -> Iterator[Found | Unusable]:
        """Yield the rows in the order of their numbers, as gearmand reads them."""
        with self._explained():
            rows = self._execute(f"SELECT * FROM {self._quoted} ORDER BY rowid")
            names = [column[0] for column in rows.description]
            for row in rows:
                yield found_in_row(names, row, self._table)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def _quoted(self) -> str:
        return '"' + self._table.replace('"', '""') + '"'

    def _execute(self, statement: str) -> sqlite3.Cursor:
        if self._connection is None:
            raise StoreConfigError(f"it is not open: {self.description}")
        return self._connection.execute(statement)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise StoreUnavailable(f"cannot read {self.description}: {error}") from error


def _holder_of(path: Path) -> str | None:
    """Return a process that has a file open, as far as this system shows it to this user."""
    wanted = path.stat()
    own = os.getpid()
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(own):
            continue
        with suppress(OSError):
            for name in os.listdir(process / "fd"):  # noqa: PTH208 - no need of a Path for each
                with suppress(OSError):
                    if os.path.samestat(os.stat(process / "fd" / name), wanted):  # noqa: PTH116
                        return f"process {process.name} ({(process / 'comm').read_text().strip()})"
    return None
