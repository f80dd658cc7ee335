"""Jobs in a SQL database: the tables and the statements.

What differs from one kind of database to the next (how to connect, what must be held, how a job is
replaced, what an error means) is asked of a ``Dialect``; ``store.sqlite`` has the one for SQLite.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    SmallInteger,
    Table,
    text,
)
from sqlalchemy.exc import SQLAlchemyError
from twisted.logger import Logger

from gearman_twisted.errors import StoreConfigError, StoreError, StoreUnavailable
from gearman_twisted.interfaces import StoredJob
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
)
schema = Table("gearman_schema", metadata, Column("version", Integer, nullable=False))


def _add_schedule(connection: Connection) -> None:
    connection.exec_driver_sql(f"ALTER TABLE {jobs.name} ADD COLUMN schedule BLOB NOT NULL DEFAULT x''")


# Each brings the tables from one version to the next; the first version has number 1. All of them may
# have been made by SQLite only, which is older than the other databases.
MIGRATIONS: tuple[Callable[[Connection], None], ...] = (_add_schedule,)
SCHEMA_VERSION = 1 + len(MIGRATIONS)

# A page of a replay ends after so many rows or bytes: enough to make a page's overhead small, little
# enough that the reactor is not held up, nor the memory filled, by adding one.
PAGE_ROWS = 2_000
PAGE_BYTES = 8 * 1024 * 1024

# Most drivers let go of the interpreter lock for each statement, and a busy reactor takes up to 5 ms to
# give it back; one statement for many rows pays that once (at 256 rows, with a reactor that never
# rests, 16 times as many saves as executemany). The driver copies its parameters, so rows with large
# workloads go one by one.
ROWS_PER_STATEMENT = 2048
BYTES_PER_STATEMENT = 4 * 1024 * 1024

_SELECT = f"SELECT {', '.join(column.name for column in jobs.columns)} FROM {jobs.name}"
_PAGE = text(f"{_SELECT} WHERE id > :after ORDER BY id LIMIT :size")
_log = Logger()


class Dialect(abc.ABC):
    """What is particular to one kind of database. All but ``check`` is called in the store's thread.

    Attributes:
        description: where the jobs are, in a line without secrets.
        placeholder: how the driver wants a parameter to be written.
        max_rows: how many rows of jobs fit one statement.
    """

    description: str
    placeholder: str
    max_rows: int = ROWS_PER_STATEMENT

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
    def save_sql(self, rows: int) -> str:
        """The statement that inserts or replaces so many jobs; its parameters are the jobs' fields."""

    @abc.abstractmethod
    def explain(self, error: Exception) -> StoreError:
        """The error for the operator: what the database said, and what to do."""


class SqlStore(BlockingStore):
    """A job store in a SQL database; a ``ThreadedStore`` makes it one for the server."""

    def __init__(self, dialect: Dialect, sync_interval: float = 0.0) -> None:
        self.description = dialect.description
        self.sync_interval = sync_interval
        self._dialect = dialect
        self._engine: Engine | None = None
        sizes = [1 << power for power in reversed(range(dialect.max_rows.bit_length()))]
        self._saves = {size: dialect.save_sql(size) for size in sizes}
        chosen = {size: f"WHERE id IN ({', '.join([dialect.placeholder] * size)})" for size in sizes}
        self._forgets = {size: f"DELETE FROM {jobs.name} {where}" for size, where in chosen.items()}
        self._loads = {size: f"{_SELECT} {where}" for size, where in chosen.items()}

    def check(self) -> None:
        """Asks the dialect."""
        self._dialect.check()

    def connect(self) -> None:
        """Connects, and creates or migrates the tables."""
        engine = self._dialect.connect()
        try:
            with engine.begin() as connection:
                _create_or_migrate(connection, self.description)
        except BaseException as error:
            self._dialect.disconnect(engine)
            if not isinstance(error, SQLAlchemyError):
                raise
            reason = self._dialect.explain(error)
            if isinstance(reason, (StoreConfigError, StoreUnavailable)):
                raise reason from error
            raise StoreUnavailable(str(reason)) from error
        self._engine = engine

    def disconnect(self) -> None:
        """Closes the connection and lets go of all that it held."""
        if self._engine is not None:
            engine, self._engine = self._engine, None
            self._dialect.disconnect(engine)

    def page(self, after: int) -> tuple[list[StoredJob], int | None]:
        """The jobs that follow an id, and the id after which to go on, or None at the end."""
        page: list[StoredJob] = []
        page_bytes = 0
        rows = 0
        with (
            self._transaction() as connection,
            # Plain text has no result types, which would hide a value of the wrong type.
            connection.execute(_PAGE, {"after": after, "size": PAGE_ROWS}) as result,
        ):
            for row in result:
                rows += 1
                after = row[0]
                job = self._job(row)
                if job is None:
                    continue
                page.append(job)
                page_bytes += len(job.workload)
                if page_bytes > PAGE_BYTES:
                    return page, after
        return page, after if rows == PAGE_ROWS else None

    def load(self, ids: Sequence[int]) -> list[StoredJob]:
        """The jobs of these ids, in their order."""
        found: dict[int, StoredJob] = {}
        with self._transaction() as connection:
            for part in _parts(len(ids), self._loads):
                some = tuple(ids[part])
                for row in connection.exec_driver_sql(self._loads[len(some)], some):
                    job = self._job(row)
                    if job is not None:
                        found[job.id] = job
        return [found[id_] for id_ in ids if id_ in found]

    def apply(self, saves: Sequence[StoredJob], forgets: Sequence[int]) -> None:
        """Saves and forgets jobs in one transaction."""
        if forgets:
            forgotten = set(forgets)
            saves = [job for job in saves if job.id not in forgotten]
        with self._transaction() as connection:
            for part in _parts(len(saves), self._saves):
                some = saves[part]
                if len(some) > 1 and sum(len(job.workload) for job in some) > BYTES_PER_STATEMENT:
                    connection.exec_driver_sql(self._saves[1], list(some))
                else:
                    connection.exec_driver_sql(self._saves[len(some)], tuple(chain.from_iterable(some)))
            for part in _parts(len(forgets), self._forgets):
                some_ids = tuple(forgets[part])
                connection.exec_driver_sql(self._forgets[len(some_ids)], some_ids)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        if self._engine is None:
            raise StoreError(f"the job store is not open: {self.description}")
        try:
            with self._engine.begin() as connection:
                yield connection
        # Drivers refuse a value that they cannot send with one of the latter three.
        except (SQLAlchemyError, OverflowError, TypeError, ValueError) as error:
            raise self._dialect.explain(error) from error

    def _job(self, row: Row[Any]) -> StoredJob | None:
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


def _create_or_migrate(connection: Connection, description: str) -> None:
    """Brings the tables to this version, in the transaction that runs."""
    metadata.create_all(connection)
    versions = connection.execute(schema.select()).scalars().all()
    if not versions:
        connection.execute(schema.insert().values(version=SCHEMA_VERSION))
        return
    check_version(versions, description)
    for migrate in MIGRATIONS[versions[0] - 1 :]:
        migrate(connection)
    if versions[0] < SCHEMA_VERSION:
        connection.execute(schema.update().values(version=SCHEMA_VERSION))


def check_version(versions: Sequence[object], description: str) -> None:
    """Refuses tables that this code does not know.

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


def _parts(count: int, sizes: dict[int, str]) -> Iterator[slice]:
    """Cuts a sequence into parts of the sizes, which fall by halves to 1, with as few parts as possible."""
    start = 0
    for size in sizes:
        while count - start >= size:
            yield slice(start, start + size)
            start += size


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
