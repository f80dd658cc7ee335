"""Jobs in a SQL database: the tables, and what is done in a transaction.

What differs from one kind of database to the next (how to connect, what must be held, how many jobs go
into a statement, what an error means) is asked of a ``Dialect``: those in ``store.sqlite``,
``store.postgres`` and ``store.mysql``.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    inspect,
    select,
)
from sqlalchemy.exc import SQLAlchemyError
from twisted.logger import Logger

from gearman_twisted.errors import StoreConfigError, StoreError, StoreUnavailable
from gearman_twisted.store.contract import StoredJob
from gearman_twisted.store.threaded import BlockingStore

metadata = MetaData()

# The columns stand in the order of StoredJob's fields, so that a job is a row of parameters as it is.
# In SQLite only an INTEGER primary key is the row's own number, and needs no second index.
jobs = Table(
    "gearman_jobs",
    metadata,
    Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=False),
    Column("handle", LargeBinary(64), nullable=False),
    Column("function", LargeBinary(8191), nullable=False),
    Column("unique_id", LargeBinary(64), nullable=False),
    Column("workload", LargeBinary(2**32 - 1), nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("run_at", BigInteger, nullable=False),
    Column("reducer", LargeBinary(8191), nullable=False),
    Column("schedule", LargeBinary(8191), nullable=False),
    # Of MySQL's engines only this one has transactions and survives a power cut.
    mysql_engine="InnoDB",
)
schema = Table("gearman_schema", metadata, Column("version", Integer, nullable=False), mysql_engine="InnoDB")


def _add_schedule(connection: Connection) -> None:
    connection.exec_driver_sql(f"ALTER TABLE {jobs.name} ADD COLUMN schedule BLOB NOT NULL DEFAULT x''")


# Each brings the tables from one version to the next; the first version has number 1. Tables of version 1
# were made by SQLite only. One that MySQL may meet has to bear being run again over a half of itself, as
# MySQL commits with every change of a table.
MIGRATIONS: tuple[Callable[[Connection], None], ...] = (_add_schedule,)
SCHEMA_VERSION = 1 + len(MIGRATIONS)
COLUMNS = tuple(column.name for column in jobs.columns)
_FIRST_COLUMNS = set(COLUMNS) - {"schedule"}

# A page of a replay ends after so many rows or bytes: enough to make a page's overhead small, little
# enough that the reactor is not held up, nor the memory filled, by adding one.
PAGE_ROWS = 2_000
PAGE_BYTES = 8 * 1024 * 1024

# Most drivers let go of the interpreter lock for each statement, and a busy reactor takes up to 5 ms to
# give it back; one statement for many rows pays that once (at 256 rows, with a reactor that never
# rests, 16 times as many saves as executemany). Drivers copy what they send, so large workloads have
# statements of their own.
ROWS_PER_STATEMENT = 2048
BYTES_PER_STATEMENT = 4 * 1024 * 1024

_log = Logger()


class Dialect(abc.ABC):
    """What is particular to one kind of database. All but ``check`` is called in the store's thread.

    Attributes:
        description: where the jobs are, in a line without secrets.
        quote: what stands around a name in a statement.
        max_page_rows: a limit to the rows of a replay's page.
        errors: what the driver raises when it is called past SQLAlchemy.
        connects_anew: whether a connection is thrown away when something failed on it.
        is_open: whether the store is open, so that what fails now has worked before; set by ``SqlStore``.
    """

    description: str
    quote: str = '"'
    max_page_rows: int = PAGE_ROWS
    errors: tuple[type[Exception], ...] = ()
    connects_anew: bool = False
    is_open: bool = False

    @abc.abstractmethod
    def check(self) -> None:
        """Does what ``IJobStore.check`` says."""

    @abc.abstractmethod
    def connect(self) -> Engine:
        """Takes what must be held while the store is open, and makes an engine of one connection.

        Raises:
            StoreError: it cannot be opened; nothing is held.
        """

    @abc.abstractmethod
    def disconnect(self, engine: Engine) -> None:
        """Lets go of all that ``connect`` took; never fails."""

    @abc.abstractmethod
    def save(self, connection: Connection, saves: Sequence[StoredJob]) -> None:
        """Inserts or replaces jobs, in the transaction that runs.

        Raises:
            StoreError: one is too large.
        """

    @abc.abstractmethod
    def forget(self, connection: Connection, ids: Sequence[int]) -> None:
        """Deletes jobs, in the transaction that runs."""

    @abc.abstractmethod
    def load(self, connection: Connection, ids: Sequence[int]) -> Iterable[Sequence[Any]]:
        """The rows of jobs, in any order, each with the columns in their order and values as they are."""

    def read(self, connection: Connection, statement: str) -> Iterable[Sequence[Any]]:
        """The rows of a statement without parameters, values as they are."""
        # Text of the driver's own has no result types, which would hide a value of the wrong type.
        return connection.exec_driver_sql(statement)

    @abc.abstractmethod
    def explain(self, error: Exception) -> StoreError:
        """The error for the operator: what the database said, and what to do."""

    def names(self) -> str:
        """The columns of the jobs, for a statement; ``function`` is a reserved word in MySQL."""
        return ", ".join(f"{self.quote}{name}{self.quote}" for name in COLUMNS)


class SqlStore(BlockingStore):
    """A job store in a SQL database; a ``ThreadedStore`` makes it one for the server."""

    def __init__(self, dialect: Dialect, sync_interval: float = 0.0) -> None:
        self.description = dialect.description
        self.sync_interval = sync_interval
        self._dialect = dialect
        self._engine: Engine | None = None

    def check(self) -> None:
        """Asks the dialect."""
        self._dialect.check()

    def connect(self) -> None:
        """Connects, and creates or migrates the tables."""
        engine = self._dialect.connect()
        try:
            with self._transaction(engine) as connection:
                _create_or_migrate(connection, self.description)
        except BaseException as error:
            self._dialect.disconnect(engine)
            if type(error) is StoreError:
                raise StoreUnavailable(str(error)) from error
            raise
        self._engine = engine
        self._dialect.is_open = True

    def disconnect(self) -> None:
        """Closes the connection and lets go of all that it held."""
        if self._engine is not None:
            engine, self._engine = self._engine, None
            self._dialect.is_open = False
            self._dialect.disconnect(engine)

    def page(self, after: int) -> tuple[list[StoredJob], int | None]:
        """The jobs that follow an id, and the id after which to go on, or None at the end."""
        if after == 2**63 - 1:
            return [], None
        limit = min(PAGE_ROWS, self._dialect.max_page_rows)
        # To PostgreSQL, -2**63 is no number that an index could be searched for.
        follow = f"FROM {jobs.name} WHERE id >= {after + 1}"
        # Most drivers fetch all that a statement finds, so it is made out first how much that will be.
        sizes_sql = f"SELECT id, LENGTH(workload) {follow} ORDER BY id LIMIT {limit}"
        page_bytes = rows = 0
        with self._transaction() as connection:
            for id_, size in self._dialect.read(connection, sizes_sql):
                rows += 1
                after = id_
                page_bytes += size or 0
                if page_bytes > PAGE_BYTES:
                    break
            if not rows:
                return [], None
            rows_sql = f"SELECT {self._dialect.names()} {follow} AND id <= {after} ORDER BY id"
            page = [self._job(row) for row in self._dialect.read(connection, rows_sql)]
        is_last = rows < limit and page_bytes <= PAGE_BYTES
        return [job for job in page if job is not None], None if is_last else after

    def load(self, ids: Sequence[int]) -> list[StoredJob]:
        """The jobs of these ids, in their order."""
        with self._transaction() as connection:
            rows = [self._job(row) for row in self._dialect.load(connection, ids)]
        found = {job.id: job for job in rows if job is not None}
        return [found[id_] for id_ in ids if id_ in found]

    def apply(self, saves: Sequence[StoredJob], forgets: Sequence[int]) -> None:
        """Saves and forgets jobs in one transaction."""
        if forgets:
            forgotten = set(forgets)
            saves = [job for job in saves if job.id not in forgotten]
        with self._transaction() as connection:
            if saves:
                self._dialect.save(connection, saves)
            if forgets:
                self._dialect.forget(connection, forgets)

    @contextmanager
    def _transaction(self, engine: Engine | None = None) -> Iterator[Connection]:
        engine = engine or self._engine
        if engine is None:
            raise StoreError(f"the job store is not open: {self.description}")
        # Drivers refuse a value that they cannot send with one of the latter three.
        errors: tuple[type[Exception], ...] = (
            SQLAlchemyError,
            *self._dialect.errors,
            OverflowError,
            TypeError,
            ValueError,
        )
        try:
            connection = engine.connect()
        except errors as error:
            raise self._dialect.explain(error) from error
        with connection:
            try:
                transaction = connection.begin()
                yield connection
                transaction.commit()
            except errors as error:
                if self._dialect.connects_anew:
                    # It is closed without a word, and the next call makes another.
                    connection.invalidate()
                raise self._dialect.explain(error) from error

    def _job(self, row: Sequence[Any]) -> StoredJob | None:
        """The job of a row, None for one that is damaged."""
        job = StoredJob._make(row)
        if _is_sound(job):
            return job
        _log.error(
            "The stored job with id {id} is damaged; it stays in {store}, but is not run",
            id=job.id,
            store=self.description,
        )
        return None


def look(connection: Connection, description: str) -> int | None:
    """Finds out whether the tables are there, ours, and of a version that this code knows.

    Args:
        connection: to the database.
        description: where that is.

    Returns:
        Their version, None where there are none, or they were not finished.

    Raises:
        StoreConfigError: tables of these names are not ours, of a newer version, or damaged.
    """
    inspector = inspect(connection)
    columns = {
        name: {column["name"] for column in inspector.get_columns(name)}
        for name in metadata.tables
        if inspector.has_table(name)
    }
    if not columns:
        return None
    # The schema's table is created first, so the other is never there without it.
    if (
        columns.get(schema.name) != {"version"}
        or not columns.get(jobs.name, _FIRST_COLUMNS) >= _FIRST_COLUMNS
    ):
        raise StoreConfigError(
            f"{description} has tables named {' and '.join(sorted(columns))} that are of something else, and "
            f"were left as they are; name another database"
        )
    versions = connection.execute(schema.select()).scalars().all()
    if not versions and (
        jobs.name not in columns or connection.execute(select(jobs.c.id).limit(1)).first() is None
    ):
        return None
    return check_version(versions, description)


def _create_or_migrate(connection: Connection, description: str) -> None:
    """Brings the tables to this version, in the transaction that runs.

    In MySQL every change of a table is a transaction of its own; the version comes last, so that the next
    start goes on where this one was interrupted.
    """
    version = look(connection, description)
    if version is None:
        schema.create(connection, checkfirst=True)
        jobs.create(connection, checkfirst=True)
        connection.execute(schema.insert().values(version=SCHEMA_VERSION))
        return
    for migrate in MIGRATIONS[version - 1 :]:
        migrate(connection)
    if version < SCHEMA_VERSION:
        connection.execute(schema.update().values(version=SCHEMA_VERSION))


def check_version(versions: Sequence[object], description: str) -> int:
    """Refuses tables that this code does not know.

    Args:
        versions: all rows of the schema's table.
        description: where the tables are.

    Returns:
        Their version.

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
    """Cuts jobs into parts that are worth a statement each; a part has one job or more."""
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
