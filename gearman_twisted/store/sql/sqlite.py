"""Jobs in a SQLite file: the checks, the lock and the settings that make it safe.

A file that is not ours is never written to, and a file that is ours is held by one server at a time. All
files are created with mode 0600 whatever the umask: jobs are not for everybody's eyes, and whoever can open
the lock file can keep the server from starting. What an operator lets a group do afterwards is kept.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger

from gearman_twisted.errors import StoreConfigError, StoreError, StoreInUse, StoreUnavailable
from gearman_twisted.store.contract import IJobStore, StoredJob
from gearman_twisted.store.sql.tables import (
    BYTES_PER_STATEMENT,
    COLUMNS,
    JOBS,
    ROW_BYTES,
    ROWS_PER_STATEMENT,
    SCHEMA,
    TABLES,
    Dialect,
    SqlStore,
    check_version,
)
from gearman_twisted.store.threaded import ThreadedStore
from gearman_twisted.store.url import StoreUrl

MAGIC = b"SQLite format 3\0"
BUSY_TIMEOUT = 2.0

# Pages of 4 KiB in the write-ahead log before they are copied to the file. Four times SQLite's default:
# a job that is forgotten before that is never written to the file, and the log stays at 16 MiB.
CHECKPOINT_PAGES = 4_000
MAX_IDLE_LOG_BYTES = 64 * 1024 * 1024

# Forgetting jobs takes room in the log, and in the file for what is in the log already. On a full disk, jobs
# that ended would run again at the next start, and a drained queue would accept nothing. So many bytes are
# reserved while the store is open, and left to SQLite when the disk is full.
RESERVE_BYTES = 5 * 1024 * CHECKPOINT_PAGES
# How long SQLite lets a row be, where it was not built with another limit.
MAX_ROW_BYTES = 1_000_000_000

# Seconds until the next attempt to reserve them.
_RESERVE_AGAIN = 10.0

# What SQLite says, what that means for us, and what the operator can do.
_ADVICE: tuple[tuple[str, type[StoreError], str], ...] = (
    ("locked", StoreUnavailable, "end the process that works on it, perhaps a sqlite3 shell"),
    ("readonly", StoreUnavailable, "make the file and its directory writable for this user"),
    ("is full", StoreUnavailable, "make room on its disk"),
    ("disk i/o", StoreUnavailable, "see the system's log, its disk may be failing"),
    ("not a database", StoreConfigError, "name another file, or move this one away"),
    ("unable to open", StoreConfigError, "see that this user may read and write there"),
    ("malformed", StoreUnavailable, "restore it from a backup, or rescue it with sqlite3's .recover"),
)
_log = Logger()


def open_sqlite(url: str, reactor: IReactorFromThreads) -> IJobStore:
    """Return a store in a SQLite file; nothing is opened or created yet.

    Args:
        url: ``sqlite:PATH?sync=…``; a relative path starts at the current directory of now.
        reactor: the reactor that the store will live in.

    Raises:
        StoreConfigError: there is no path, or an option is invalid.
    """
    parts = StoreUrl.parse(url, {"sync"})
    if not parts.place or parts.place == ":memory:" or "\0" in parts.place:
        raise StoreConfigError("sqlite: needs the path of a file; for no file at all write memory:")
    return ThreadedStore(SqlStore(SQLiteFile(Path(parts.place)), parts.sync_interval()), reactor)


class SQLiteFile(Dialect):
    """A file that holds our tables and nothing else, and the lock file beside it."""

    # Only an INTEGER primary key is the row's own number, and needs no second index.
    types = ("INTEGER", "BLOB", "BLOB", "BLOB", "BLOB", "SMALLINT", "BIGINT", "BLOB", "BLOB")
    errors = (sqlite3.Error,)

    def __init__(self, path: Path) -> None:
        # One name per file, since the lock depends on it; and twistd changes the working directory later.
        self._path = path.resolve()
        self._lock_path = Path(f"{self._path}.lock")
        self._lock: int | None = None
        self._reserve_path = Path(f"{self._path}.reserve")
        self._reserve_at = 0.0
        self.description = f"SQLite file {self._path}"
        # SQLite takes 32,766 parameters, and before 3.32 (2020) took 999.
        max_rows = ROWS_PER_STATEMENT if sqlite3.sqlite_version_info >= (3, 32) else 64
        # The driver keeps prepared statements, so they come in a few sizes only.
        sizes = [1 << power for power in reversed(range(max_rows.bit_length()))]
        row = f"({', '.join('?' * len(COLUMNS))})"
        save = f"INSERT OR REPLACE INTO {JOBS} ({self.names()}) VALUES "
        chosen = {size: f"FROM {JOBS} WHERE id IN ({', '.join('?' * size)})" for size in sizes}
        self._saves = {size: save + ", ".join([row] * size) for size in sizes}
        self._forgets = {size: f"DELETE {where}" for size, where in chosen.items()}
        self._loads = {size: f"SELECT {self.names()} {where}" for size, where in chosen.items()}

    def check(self) -> None:
        # The lock comes first: closing a file that SQLite has open in this process would drop its locks.
        self._check_lock()
        directory = self._path.parent
        if not directory.is_dir():
            raise StoreConfigError(
                f"the directory {directory} does not exist; create it, or name another file"
            )
        if not os.access(directory, os.W_OK | os.X_OK):
            raise StoreConfigError(
                f"the directory {directory} is not writable for this user; SQLite writes there"
            )
        if not self._path.exists():
            return
        if not self._path.is_file():
            raise StoreConfigError(f"{self._path} is not a file; name another one")
        if not os.access(self._path, os.R_OK | os.W_OK):
            raise StoreConfigError(f"{self._path} is not readable and writable for this user")
        # After a power cut while it was created, a file may hold anything until it is rolled back.
        if not self._has_journal():
            self._check_content()

    def open(self) -> sqlite3.Connection:
        self.check()
        self._take_lock()
        try:
            self._roll_back()
            self._make_private()
            self._make_reserve()
            try:
                return self._connect("NORMAL")
            except sqlite3.OperationalError as error:
                if not _lacks_shared_memory(error):
                    raise
                # Do without, so that the jobs that are there can be run. Others cannot read the file then.
                session = self._connect("EXCLUSIVE")
                _log.warn("{path} is open for this server alone: {error}", path=self._path, error=str(error))
                return session
        except BaseException as error:
            self._release_lock()
            if isinstance(error, sqlite3.Error):
                raise self.explain(error) from error
            raise

    def close(self, session: sqlite3.Connection) -> None:
        try:
            # Do not wait for others that still read the file.
            session.execute("PRAGMA busy_timeout = 0")
            try:
                session.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.OperationalError as error:
                if not self.make_room(session, self.explain(error)):
                    raise
                session.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            # Nothing is lost: the next one to open the file finds the log.
            _log.warn(
                "cannot copy the log into the file while closing: {reason}", reason=str(self.explain(error))
            )
        session.close()
        self._reserve_path.unlink(missing_ok=True)
        self._release_lock()

    def columns(self, session: sqlite3.Connection, table: str) -> set[str]:
        return {row[1] for row in session.execute(f"PRAGMA table_info({table})")}

    def begin(self, session: sqlite3.Connection) -> None:
        # The driver begins by itself only before some statements; and a lock that is taken at once cannot be
        # lost to another writer half way.
        if self._reserve_at and time.monotonic() >= self._reserve_at:
            self._make_reserve()
        session.execute("BEGIN IMMEDIATE")

    def make_room(self, session: sqlite3.Connection, error: StoreError) -> bool:
        if "is full" not in str(error):
            return False
        self._reserve_path.unlink(missing_ok=True)
        self._reserve_at = time.monotonic() + _RESERVE_AGAIN
        with suppress(sqlite3.Error):
            # The log is reused from its start when all of it has been copied to the file.
            session.execute("PRAGMA wal_checkpoint(PASSIVE)")
        return True

    def save(self, session: sqlite3.Connection, saves: Sequence[StoredJob]) -> None:
        for part in _parts(len(saves), self._saves):
            some = saves[part]
            # The driver copies its parameters, so rows with large workloads go one by one.
            if len(some) > 1 and sum(len(job.workload) for job in some) > BYTES_PER_STATEMENT:
                session.executemany(self._saves[1], some)
            else:
                session.execute(self._saves[len(some)], tuple(chain.from_iterable(some)))

    def forget(self, session: sqlite3.Connection, ids: Sequence[int]) -> None:
        for part in _parts(len(ids), self._forgets):
            some = tuple(ids[part])
            session.execute(self._forgets[len(some)], some)

    def load(self, session: sqlite3.Connection, ids: Sequence[int]) -> Iterator[Sequence[Any]]:
        for part in _parts(len(ids), self._loads):
            some = tuple(ids[part])
            yield from session.execute(self._loads[len(some)], some)

    def read(self, session: sqlite3.Connection, statement: str) -> Iterable[Sequence[Any]]:
        return session.execute(statement)

    def explain(self, error: Exception) -> StoreError:
        said = str(error)
        for words, kind, advice in _ADVICE:
            if words in said.lower():
                return kind(f"{self._path}: {said}; {advice}")
        return StoreError(f"{self._path}: {said}")

    def _has_journal(self) -> bool:
        """Return whether a transaction from before the write-ahead log has to be rolled back."""
        journal = Path(f"{self._path}-journal")
        return self._path.exists() and journal.exists() and journal.stat().st_size > 0

    def _roll_back(self) -> None:
        """Let SQLite roll back an interrupted transaction, as for any reader, and check the result."""
        if self._has_journal():
            try:
                self._peek("mode=rw")
            except sqlite3.Error as error:
                raise self.explain(error) from error
            self._check_content()

    def _check_content(self) -> None:
        """Refuse what is neither empty nor ours."""
        if self._path.stat().st_size == 0:
            return
        with self._path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise StoreConfigError(
                    f"{self._path} is not a SQLite database and was left as it is; "
                    f"name another file, or move this one away"
                )
        # An immutable database is read without locks and without its log, so no file is created beside it.
        # After a crash, though, the log has what is new, and the file may be half way through a checkpoint:
        # if the file alone does not tell, it is read again with the log.
        log = Path(f"{self._path}-wal")
        has_log = log.exists() and log.stat().st_size > 0
        try:
            tables, versions = self._peek("immutable=1")
        except sqlite3.Error as error:
            if not has_log:
                raise self.explain(error) from error
            tables, versions = set(), []
        is_torn = tables <= TABLES and not (
            tables == TABLES and [type(version) for version in versions] == [int]
        )
        if is_torn and has_log:
            try:
                try:
                    tables, versions = self._peek("mode=ro")
                except sqlite3.OperationalError as error:
                    if not _lacks_shared_memory(error):
                        raise
                    tables, versions = self._peek("mode=rw", "EXCLUSIVE")
            except sqlite3.Error as error:
                raise self.explain(error) from error
        if not tables:
            return
        if not tables >= TABLES:
            raise StoreConfigError(
                f"{self._path} is the database of something else and was left as it is; "
                f"name another file, or move this one away"
            )
        check_version(versions, self.description)

    def _peek(self, how: str, locking_mode: str = "NORMAL") -> tuple[set[str], list[object]]:
        """Return the names of all tables, and the rows of gearman_schema if it is there."""
        with closing(
            sqlite3.connect(f"{self._path.as_uri()}?{how}", uri=True, timeout=BUSY_TIMEOUT)
        ) as connection:
            connection.execute(f"PRAGMA locking_mode = {locking_mode}")
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
            if not tables >= TABLES:
                return tables, []
            return tables, [row[0] for row in connection.execute(f"SELECT * FROM {SCHEMA}")]

    def _make_private(self) -> None:
        """Create the file, or take away the permissions of others: SQLite would go by the umask."""
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            for path in (self._path, *(Path(f"{self._path}{end}") for end in ("-wal", "-shm", "-journal"))):
                # Another user's file stays as it is: the operator has given it to this one on purpose.
                with suppress(FileNotFoundError, PermissionError):
                    mode = path.lstat().st_mode
                    if stat.S_ISREG(mode) and mode & stat.S_IRWXO:
                        path.chmod(stat.S_IMODE(mode) & ~stat.S_IRWXO)
        except OSError as error:
            raise StoreConfigError(f"{self._path} cannot be created: {error.strerror}") from error

    def _make_reserve(self) -> None:
        """Reserve blocks, if the disk has plenty of them."""
        self._reserve_at = time.monotonic() + _RESERVE_AGAIN
        with suppress(OSError):
            disk = os.statvfs(self._path.parent)
            if disk.f_bavail * disk.f_frsize < 4 * RESERVE_BYTES:
                return
            self._reserve_path.unlink(missing_ok=True)
            reserve = os.open(self._reserve_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(reserve, 0, RESERVE_BYTES)
                self._reserve_at = 0.0
            finally:
                os.close(reserve)

    def _connect(self, locking_mode: str) -> sqlite3.Connection:
        session = sqlite3.connect(
            self._path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        try:
            session.execute(f"PRAGMA locking_mode = {locking_mode}")
            _set_up(session)
            # In WAL mode a commit is one append and one fsync. The mode is kept in the file.
            (mode,) = session.execute("PRAGMA journal_mode = WAL").fetchone() or ("none",)
            if mode != "wal":
                raise StoreConfigError(
                    f"SQLite cannot keep a write-ahead log for {self._path}; put it on a local disk"
                )
        except BaseException:
            session.close()
            raise
        self.note_limit(session)
        return session

    def note_limit(self, session: sqlite3.Connection) -> None:
        """Note how long a workload may be: a row, and a value of it, have a limit."""
        limit = MAX_ROW_BYTES
        if hasattr(session, "getlimit"):  # from Python 3.11
            # The driver takes no longer values.
            limit = min(session.getlimit(sqlite3.SQLITE_LIMIT_LENGTH), 0x7FFFFFFF)
        self.max_workload_bytes = limit - ROW_BYTES

    def _check_lock(self) -> None:
        try:
            lock = self._open_lock(os.O_RDONLY)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._lock_failed(error.strerror) from error
        try:
            self._lock_or_refuse(lock, fcntl.LOCK_SH)
        finally:
            os.close(lock)

    def _take_lock(self) -> None:
        # The kernel releases it when the process ends, however it ends. The file stays, since removing it
        # would let two servers hold two files of that name.
        try:
            lock = self._open_lock(os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise self._lock_failed(error.strerror) from error
        try:
            # Every process that can open the file can hold the lock.
            with suppress(PermissionError):
                os.fchmod(lock, 0o600)
            self._lock_or_refuse(lock, fcntl.LOCK_EX)
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock
        # For the message of a server that is refused. A full disk has no room for it.
        with suppress(OSError):
            os.ftruncate(lock, 0)
            os.write(lock, b"%d\n" % os.getpid())

    def _open_lock(self, flags: int) -> int:
        """Open the lock file, if it is a plain file that nobody has put there to have another one written.

        Raises:
            OSError: it cannot be opened.
            StoreConfigError: it is something else.
        """
        # NONBLOCK: opening a named pipe would wait for its other end.
        lock = os.open(self._lock_path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        found = os.fstat(lock)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            os.close(lock)
            raise self._lock_failed("it is not a regular file of one name; remove it")
        return lock

    def _lock_or_refuse(self, lock: int, mode: int) -> None:
        try:
            fcntl.flock(lock, mode | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
            raise StoreInUse(
                f"{self._path} is in use by {f'process {holder}' if holder else 'another process'}; "
                f"stop that server, or give this one a file of its own"
            ) from error
        except OSError as error:
            raise self._lock_failed(error.strerror) from error

    def _lock_failed(self, reason: object) -> StoreError:
        return StoreConfigError(f"{self._lock_path} cannot be locked: {reason}")

    def _release_lock(self) -> None:
        if self._lock is not None:
            with suppress(OSError):
                os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None


def _lacks_shared_memory(error: sqlite3.OperationalError) -> bool:
    """Return whether a full disk has no room for the memory that SQLite shares with other programs."""
    return "disk i/o" in str(error).lower()


def _set_up(session: sqlite3.Connection) -> None:
    # FULL: a commit has reached the disk when it returns; NORMAL would lose the last ones in a power cut.
    session.execute("PRAGMA synchronous = FULL")
    # Debian's SQLite overwrites deleted rows with zeros by default: to forget a job would take as much of the
    # log as its workload is long, which a full disk does not have.
    session.execute("PRAGMA secure_delete = OFF")
    session.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    session.execute(f"PRAGMA journal_size_limit = {MAX_IDLE_LOG_BYTES}")
    # There is no text in our columns; a damaged row that has some must be reported, not fail to be read.
    session.text_factory = lambda data: data.decode("utf-8", "surrogateescape")


def _parts(count: int, sizes: dict[int, str]) -> Iterator[slice]:
    """Split a sequence into as few parts as possible, of the given sizes, which fall by halves to 1."""
    start = 0
    for size in sizes:
        while count - start >= size:
            yield slice(start, start + size)
            start += size
