"""The queues that the original gearmand leaves behind, to be read by ``gearman-store import``.

What is read is never changed. Everything here blocks, and is called in a thread; ``store_servers`` has the
queues in database servers, this module the SQLite file and what all of them share.
"""

from __future__ import annotations

import abc
import os
import sqlite3
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import attrs

from gearman_twisted.errors import StoreConfigError, StoreUnavailable
from gearman_twisted.store.contract import StoredJob
from gearman_twisted.store.url import StoreUrl
from gearman_twisted.wire.constants import MAX_ARGUMENT_BYTES, MAX_UNIQUE_BYTES, Priority

# What the handle of every imported job starts with: that it was imported, and is not imported twice.
HANDLE_PREFIX = b"H:imported:"
PASSWORD_OPTIONS = ("password_file", "password_env")
SSL_OPTIONS = ("sslmode", "sslrootcert", "sslcert", "sslkey")


@attrs.frozen
class Found:
    """A job in a queue of gearmand.

    Attributes:
        function: see ``StoredJob``; so are unique, workload, priority and run_at.
    """

    function: bytes
    unique: bytes
    workload: bytes
    priority: int
    run_at: int

    def handle(self, place: str) -> bytes:
        """The handle that the job gets, the same whenever it is imported.

        The queue does not keep the handle that the job had.

        Args:
            place: where the queue is. Jobs with a unique are the same job wherever they were found, as for
                a server; those without are not.
        """
        digest = blake2b(digest_size=16)
        numbers = b"%d %d" % (self.priority, self.run_at)
        where = b"" if self.unique else place.encode("utf-8", "surrogateescape")
        for part in (self.function, self.unique, self.workload, numbers, where):
            digest.update(b"%d:" % len(part))
            digest.update(part)
        return HANDLE_PREFIX + digest.hexdigest().encode()

    def job(self, id_: int, handle: bytes) -> StoredJob:
        """It as a job of ours."""
        return StoredJob(id_, handle, self.function, self.unique, self.workload, self.priority, self.run_at)


@attrs.frozen
class Unusable:
    """Something in a queue of gearmand that cannot be taken for a job.

    Attributes:
        where: how to find it there.
        reason: what is wrong with it.
    """

    where: str
    reason: str


class Source(abc.ABC):
    """A queue of gearmand.

    Attributes:
        description: where it is, in a line without secrets.
    """

    description: str

    @abc.abstractmethod
    def open(self) -> None:
        """Connects.

        Raises:
            StoreConfigError: there is no such queue, or a gearmand still has it.
            StoreUnavailable: it cannot be read now.
        """

    @abc.abstractmethod
    def warning(self) -> str | None:
        """What makes it likely that a gearmand still works on the queue; None if nothing does."""

    @abc.abstractmethod
    def count(self) -> int:
        """How many jobs there are, to be shown beside the progress."""

    @abc.abstractmethod
    def read(self) -> Iterator[Found | Unusable]:
        """Yields all that is there, in the order in which gearmand would take it up."""

    @abc.abstractmethod
    def close(self) -> None:
        """Disconnects; works before ``open`` too."""


def open_source(url: str, functions: Collection[bytes]) -> Source:
    """Makes the source that a URL names; nothing is connected to yet.

    Args:
        url: ``sqlite:``, ``postgresql:``, ``mysql:`` or ``redis:``, and where the queue is.
        functions: the names of functions, as far as they are needed to tell old keys in Redis apart.

    Raises:
        StoreConfigError: it makes no sense, or the driver is not installed.
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


def found_or_not(
    where: str, function: object, unique: object, data: object, *numbers: object
) -> Found | Unusable:
    """Takes what a queue holds for a job, if it can be one.

    Args:
        where: how to find it there.
        function: its name, None if there is none.
        unique: its unique, None for none.
        data: its workload; gearmand stores an empty one as None.
        numbers: priority, None for normal; and time, None for at once.

    Returns:
        A ``Found`` or an ``Unusable``.
    """
    priority, run_at = (None if number is None else _number(number) for number in numbers)
    name, key, workload = _bytes(function), _bytes(unique), _bytes(data)
    priority = Priority.NORMAL if numbers[0] is None else priority
    run_at = 0 if numbers[1] is None else run_at
    if name is None or key is None or workload is None:
        return Unusable(where, "function, unique and data are bytes, and here one of them is not")
    reason = None
    if not name:
        reason = "it names no function"
    elif len(name) > MAX_ARGUMENT_BYTES or b"\0" in name:
        reason = f"the name of a function has at most {MAX_ARGUMENT_BYTES} bytes, and no NUL"
    elif len(key) > MAX_UNIQUE_BYTES or b"\0" in key:
        reason = f"a unique has at most {MAX_UNIQUE_BYTES} bytes, and no NUL"
    elif priority is None or not Priority.HIGH <= priority <= Priority.LOW:
        reason = f"its priority is {numbers[0]!r:.40}, not 0, 1 or 2"
    elif run_at is None or run_at >= 1 << 63:
        reason = f"its time is {numbers[1]!r:.40}, not seconds since 1970"
    if reason is not None:
        return Unusable(where, reason)
    return Found(name, key, workload, int(priority or 0), max(run_at or 0, 0))


def found_in_row(names: Sequence[str], row: Sequence[Any], table: str) -> Found | Unusable:
    """Takes a row of gearmand's table for a job, if it can be one.

    Args:
        names: those of the columns; a table of an old gearmand has no ``when_to_run``.
        row: their values.
        table: the table's name.

    Returns:
        A ``Found`` or an ``Unusable``.
    """
    values = dict(zip(names, row, strict=True))
    function, unique = values.get("function_name"), values.get("unique_key")
    where = f"{table}: function_name {function!r:.100}, unique_key {unique!r:.100}"
    return found_or_not(
        where, function, unique, values.get("data"), values.get("priority"), values.get("when_to_run")
    )


def check_columns(names: Collection[str], description: str) -> None:
    """Refuses a table that is none of gearmand's.

    Raises:
        StoreConfigError: it has not got its columns.
    """
    if not {"unique_key", "function_name", "priority", "data"} <= set(names):
        raise StoreConfigError(f"the table has not got the columns of gearmand: {description}")


def _bytes(value: object) -> bytes | None:
    """A value's bytes, none of them for NULL; None for what has none, such as a number."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if value is None:
        return b""
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else None


def _number(value: object) -> int | None:
    with suppress(TypeError, ValueError):
        return int(value)  # type: ignore[call-overload, no-any-return]
    return None


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
        """Opens the file, unless a process has it open."""
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
        """Nothing: a process that has the file open is refused."""

    def count(self) -> int:
        """Counts the rows."""
        with self._explained():
            (number,) = self._execute(f"SELECT count(*) FROM {self._quoted}").fetchone()
        return int(number)

    def read(self) -> Iterator[Found | Unusable]:
        """Yields the rows in the order of their numbers, as gearmand reads them."""
        with self._explained():
            rows = self._execute(f"SELECT * FROM {self._quoted} ORDER BY rowid")
            names = [column[0] for column in rows.description]
            for row in rows:
                yield found_in_row(names, row, self._table)

    def close(self) -> None:
        """Closes the file."""
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
    """A process that has a file open, as far as this system shows it to this user."""
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


def shown_time(seconds: int) -> str:
    """A time as it is shown: in UTC, or its number if no calendar has it."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return str(seconds)
