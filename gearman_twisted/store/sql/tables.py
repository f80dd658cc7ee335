"""Jobs in a SQL database: the tables, and what is done in a transaction.

What differs between databases (how to connect, what must be held, how many jobs go into a statement, what an
error means) is asked of a ``Dialect``: those in ``sqlite``, ``postgres`` and ``mysql``. A session is a
connection of its driver.

There is no SQL toolkit between this and the drivers: two tables need no query builder, a store has one
connection and so no pool, and what makes a store fast and safe (arrays of bytes, statements of a chosen size,
time limits, a lock that goes with the session) is each driver's own.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from twisted.logger import Logger

from gearman_twisted.errors import StoreConfigError, StoreError, StoreUnavailable
from gearman_twisted.store.contract import StoredJob
from gearman_twisted.store.threaded import BlockingStore

JOBS = "gearman_jobs"
SCHEMA = "gearman_schema"
TABLES = frozenset({JOBS, SCHEMA})

# In the order of StoredJob's fields, so that a job is a row of parameters as it is.
COLUMNS = ["id", "handle", "function", "unique_id", "workload", "priority", "run_at", "reducer", "schedule"]
_FIRST_COLUMNS = set(COLUMNS) - {"schedule"}

# Each brings the tables from one version to the next; the first version has number 1. Tables of version 1
# were made by SQLite only. MySQL commits with every change of a table, so a migration that it may meet has to
# work again on a half of its own result.
MIGRATIONS = (f"ALTER TABLE {JOBS} ADD COLUMN schedule BLOB NOT NULL DEFAULT x''",)
SCHEMA_VERSION = 1 + len(MIGRATIONS)

# A page of a replay ends after so many rows or bytes: enough to make a page's overhead small, little
# enough that adding one neither holds up the reactor nor fills the memory.
PAGE_ROWS = 2_000
PAGE_BYTES = 8 * 1024 * 1024

# Most drivers release the interpreter lock for each statement, and a busy reactor takes up to 5 ms to
# give it back; one statement for many rows pays that once (at 256 rows, with a reactor that never
# rests, 16 times as many saves as executemany). Drivers copy what they send, so large workloads have
# statements of their own.
ROWS_PER_STATEMENT = 2048
BYTES_PER_STATEMENT = 4 * 1024 * 1024
# On a full disk jobs are forgotten in transactions of this many: each takes little room, and gives some back.
FORGETS_WHEN_FULL = 100

# What the columns of a row but its workload may take: a function, a schedule of five fields, and less.
ROW_BYTES = 64 * 1024

_log = Logger()


class Dialect(abc.ABC):
    """What is particular to one kind of database. All but ``check`` is called in the store's thread.

    Attributes:
        description: where the jobs are, in a line without secrets.
        types: the SQL types of ``COLUMNS``.
        table_options: what follows the columns in CREATE TABLE.
        quote: what stands around a name in a statement.
        max_page_rows: a limit to the rows of a replay's page.
        max_workload_bytes: see ``IJobStore``; set by ``open``.
        errors: what the driver raises.
        reconnects: whether a session is closed when something failed in it, and another one opened.
        is_open: whether the store is open, so that what fails now has worked before; set by ``SqlStore``.
    """

    description: str
    types: tuple[str, ...]
    table_options: str = ""
    quote: str = '"'
    max_page_rows: int = PAGE_ROWS
    max_workload_bytes: int
    errors: tuple[type[Exception], ...]
    reconnects: bool = False
    is_open: bool = False

    @abc.abstractmethod
    def check(self) -> None:
        """Do what ``IJobStore.check`` says."""

    @abc.abstractmethod
    def open(self) -> Any:
        """Take what must be held while the store is open, and return a session.

        Raises:
            StoreError: the database cannot be used; nothing is held.
        """

    @abc.abstractmethod
    def close(self, session: Any) -> None:
        """Release all that ``open`` took; never fails."""

    @abc.abstractmethod
    def columns(self, session: Any, table: str) -> set[str]:
        """Return the names of a table's columns; empty if there is no such table."""

    def check_tables(self, session: Any) -> None:  # noqa: B027 - most have nothing to add
        """Look for obstacles, before anything is created.

        Raises:
            StoreError: there is one.
        """

    def begin(self, session: Any) -> None:  # noqa: B027
        """Begin a transaction, if the driver does not do so by itself."""

    def commit(self, session: Any) -> None:
        """Commit the transaction."""
        session.commit()

    def make_room(self, session: Any, error: StoreError) -> bool:
        """Do what can be done about a full disk; return whether forgetting in small steps may work now."""
        return False

    @abc.abstractmethod
    def save(self, session: Any, saves: Sequence[StoredJob]) -> None:
        """Insert or replace jobs.

        Raises:
            StoreError: one is too large.
        """

    @abc.abstractmethod
    def forget(self, session: Any, ids: Sequence[int]) -> None:
        """Delete jobs."""

    @abc.abstractmethod
    def load(self, session: Any, ids: Sequence[int]) -> Iterable[Sequence[Any]]:
        """Return the rows of jobs in any order, with the columns in their order and values unchanged."""

    def read(self, session: Any, statement: str) -> Iterable[Sequence[Any]]:
        """Return the rows of a statement without parameters, values unchanged."""
        cursor = session.cursor()
        cursor.execute(statement)
        return cursor.fetchall()  # type: ignore[no-any-return]

    @abc.abstractmethod
    def explain(self, error: Exception) -> StoreError:
        """Return the error for the operator: what the database said, and what to do."""

    def names(self) -> str:
        """Return the columns for a statement; ``function`` is a reserved word in MySQL."""
        return ", ".join(f"{self.quote}{name}{self.quote}" for name in COLUMNS)

    def create_statements(self) -> tuple[str, str]:
        """Return the statements that create the tables: schema's first, so that jobs is never without it."""
        columns = "".join(
            f"{self.quote}{name}{self.quote} {type_} NOT NULL, "
            for name, type_ in zip(COLUMNS, self.types, strict=True)
        )
        return (
            f"CREATE TABLE IF NOT EXISTS {SCHEMA} (version INTEGER NOT NULL){self.table_options}",
            f"CREATE TABLE IF NOT EXISTS {JOBS} ({columns}PRIMARY KEY (id)){self.table_options}",
        )


class SqlStore(BlockingStore):
    """A job store in a SQL database; a ``ThreadedStore`` makes it one for the server."""

    def __init__(self, dialect: Dialect, sync_interval: float = 0.0) -> None:
        self.description = dialect.description
        self.sync_interval = sync_interval
        self._dialect = dialect
        # While the store is open this is None only after a connection was lost.
        self._session: Any = None

    def check(self) -> None:
        self._dialect.check()

    def connect(self) -> None:
        self._session = self._dialect.open()
        try:
            with self._transaction(self._session) as session:
                self._create_or_migrate(session)
        except BaseException as error:
            self.disconnect()
            if type(error) is StoreError:
                raise StoreUnavailable(str(error)) from error
            raise
        self._dialect.is_open = True
        self.max_workload_bytes = self._dialect.max_workload_bytes

    def disconnect(self) -> None:
        session, self._session = self._session, None
        if session is not None or self._dialect.is_open:
            self._dialect.is_open = False
            self._dialect.close(session)

    def page(self, after: int) -> tuple[list[StoredJob], int | None]:
        if after == 2**63 - 1:
            return [], None
        limit = min(PAGE_ROWS, self._dialect.max_page_rows)
        # Not "> after": -2**63 is no bigint literal in PostgreSQL, so the index would not be used.
        follow = f"FROM {JOBS} WHERE id >= {after + 1}"
        # Most drivers fetch everything that a statement finds, so find out first how much that is.
        sizes_sql = f"SELECT id, LENGTH(workload) {follow} ORDER BY id LIMIT {limit}"
        page_bytes = rows = 0
        with self._transaction() as session:
            for id_, size in self._dialect.read(session, sizes_sql):
                rows += 1
                after = id_
                page_bytes += size or 0
                if page_bytes > PAGE_BYTES:
                    break
            if not rows:
                return [], None
            rows_sql = f"SELECT {self._dialect.names()} {follow} AND id <= {after} ORDER BY id"
            page = [self._job(row) for row in self._dialect.read(session, rows_sql)]
        is_last = rows < limit and page_bytes <= PAGE_BYTES
        return [job for job in page if job is not None], None if is_last else after

    def load(self, ids: Sequence[int]) -> list[StoredJob]:
        with self._transaction() as session:
            rows = [self._job(row) for row in self._dialect.load(session, ids)]
        found = {job.id: job for job in rows if job is not None}
        return [found[id_] for id_ in ids if id_ in found]

    def apply(self, saves: Sequence[StoredJob], forgets: Sequence[int]) -> None:
        if forgets:
            forgotten = set(forgets)
            saves = [job for job in saves if job.id not in forgotten]
        try:
            self._apply(saves, forgets)
        except StoreUnavailable as error:
            if saves or not self._dialect.make_room(self._session, error):
                raise
            for start in range(0, len(forgets), FORGETS_WHEN_FULL):
                self._apply([], forgets[start : start + FORGETS_WHEN_FULL])

    def _apply(self, saves: Sequence[StoredJob], forgets: Sequence[int]) -> None:
        with self._transaction() as session:
            if saves:
                self._dialect.save(session, saves)
            if forgets:
                self._dialect.forget(session, forgets)

    @contextmanager
    def _transaction(self, session: Any = None) -> Iterator[Any]:
        """Commit what is done inside, or roll it back if something is raised; reconnect first if needed."""
        session = session or self._connected()
        # Drivers refuse a value that they cannot send with one of the latter three.
        errors: tuple[type[Exception], ...] = (*self._dialect.errors, OverflowError, TypeError, ValueError)
        try:
            self._dialect.begin(session)
            yield session
            self._dialect.commit(session)
        except BaseException as error:
            with suppress(*errors):
                if isinstance(error, errors) and self._dialect.reconnects:
                    self._session = None
                    session.close()
                else:
                    session.rollback()
            if isinstance(error, errors):
                raise self._dialect.explain(error) from error
            raise

    def _connected(self) -> Any:
        if not self._dialect.is_open:
            raise StoreError(f"the job store is not open: {self.description}")
        if self._session is None:
            self._session = self._dialect.open()
        return self._session

    def _create_or_migrate(self, session: Any) -> None:
        """Bring the tables to this version, in the transaction that runs.

        In MySQL every change of a table is a transaction of its own; the version comes last, so that the
        next start goes on where this one was interrupted.
        """
        version = read_version(self._dialect, session)
        self._dialect.check_tables(session)
        if version is None:
            statements = [
                *self._dialect.create_statements(),
                f"INSERT INTO {SCHEMA} VALUES ({SCHEMA_VERSION})",
            ]
        else:
            statements = [*MIGRATIONS[version - 1 :]]
            if statements:
                statements.append(f"UPDATE {SCHEMA} SET version = {SCHEMA_VERSION}")
        for statement in statements:
            session.cursor().execute(statement)

    def _job(self, row: Sequence[Any]) -> StoredJob | None:
        """Return the job of a row, None if it is damaged."""
        job = StoredJob._make(row)
        if _is_sound(job):
            return job
        self.damaged += 1
        _log.error(
            "The stored job with id {id} is damaged; it stays in {store}, but is not run",
            id=job.id,
            store=self.description,
        )
        return None


def read_version(dialect: Dialect, session: Any) -> int | None:
    """Return the version of the tables, None if there are none, or they were not finished.

    Raises:
        StoreConfigError: tables of these names are not ours, of a newer version, or damaged.
    """
    found = {name: columns for name in TABLES if (columns := dialect.columns(session, name))}
    if not found:
        return None
    # The schema's table is created first, so the other is never there without it.
    if found.get(SCHEMA) != {"version"} or not found.get(JOBS, _FIRST_COLUMNS) >= _FIRST_COLUMNS:
        raise StoreConfigError(
            f"{dialect.description} has tables named {' and '.join(sorted(found))} that are of something "
            f"else, and were left as they are; name another database"
        )
    versions = [version for (version,) in dialect.read(session, f"SELECT version FROM {SCHEMA}")]
    if not versions and (
        JOBS not in found or not list(dialect.read(session, f"SELECT id FROM {JOBS} LIMIT 1"))
    ):
        return None
    return check_version(versions, dialect.description)


def check_version(versions: Sequence[object], description: str) -> int:
    """Return the version of the tables.

    Args:
        versions: all rows of the schema's table.
        description: where the tables are.

    Raises:
        StoreConfigError: they are of a newer version, or damaged.
    """
    version = versions[0] if len(versions) == 1 else None
    if not isinstance(version, int) or version < 1:
        raise StoreConfigError(
            f"the table gearman_schema does not hold one version number: {description}; "
            f"restore it from a backup, or name another place"
        )
    if version > SCHEMA_VERSION:
        raise StoreConfigError(
            f"its tables have version {version}, and this release knows up to {SCHEMA_VERSION}: "
            f"{description}; use the newer release that wrote it, or name another place"
        )
    return version


def in_statements(saves: Sequence[StoredJob]) -> Iterator[Sequence[StoredJob]]:
    """Split jobs into parts that are worth a statement each; a part has one job or more."""
    start = size = 0
    for end, job in enumerate(saves):
        size += len(job.workload)
        if end > start and (end - start == ROWS_PER_STATEMENT or size > BYTES_PER_STATEMENT):
            yield saves[start:end]
            start, size = end, len(job.workload)
    if start < len(saves):
        yield saves[start:]


def _is_sound(job: StoredJob) -> bool:
    # isinstance would let the bool and bytes subclasses in, which no driver returns; type() is quicker.
    return (
        type(job.handle) is bytes
        and type(job.function) is bytes
        and type(job.unique) is bytes
        and type(job.workload) is bytes
        and type(job.reducer) is bytes
        and type(job.schedule) is bytes
        and type(job.priority) is int
        and 0 <= job.priority <= 2
        and type(job.run_at) is int
        and job.run_at >= 0
        and job.id >= 1
    )
