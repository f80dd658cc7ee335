"""Jobs in a PostgreSQL database: the session's settings, its lock, and statements over arrays."""

from __future__ import annotations

import select
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.abc import PQGen
from psycopg.waiting import Ready, Wait
from twisted.internet.interfaces import IReactorFromThreads

from gearman_twisted.errors import StoreConfigError, StoreError, StoreUnavailable
from gearman_twisted.store.contract import IJobStore, StoredJob
from gearman_twisted.store.holder import Holder
from gearman_twisted.store.sql.server import OPTIONS, LockSession, ServerDialect
from gearman_twisted.store.sql.tables import COLUMNS, JOBS, ROW_BYTES, SCHEMA, SqlStore, in_statements
from gearman_twisted.store.threaded import ThreadedStore
from gearman_twisted.store.url import StoreUrl

# The number of our advisory lock, which PostgreSQL keeps apart by database.
LOCK = int.from_bytes(b"gearman", "big")

# A message of the protocol, and a row, have to fit one piece of the server's memory.
_MAX_MESSAGE_BYTES = 0x3FFFFFFF

_SSL_OPTIONS = ("sslmode", "sslrootcert", "sslcert", "sslkey")

_TYPES = ("bigint", "bytea", "bytea", "bytea", "bytea", "smallint", "bigint", "bytea", "bytea")
# One array for each column: a statement is parsed and planned the same for any number of rows, and bytes are
# sent unchanged. At 256 rows that is 3 times as fast as VALUES with a parameter for each field.
_ARRAYS = ", ".join(f"%b::{type_}[]" for type_ in _TYPES)

_POLL = {Wait.R: select.POLLIN, Wait.W: select.POLLOUT, Wait.RW: select.POLLIN | select.POLLOUT}
_READY = {(True, False): Ready.R, (False, True): Ready.W, (True, True): Ready.RW}

# What PostgreSQL's SQLSTATE says, by its start, what that means for us, and what the operator can do.
_ADVICE: tuple[tuple[str, type[StoreError], str], ...] = (
    ("08", StoreUnavailable, ""),
    ("25006", StoreUnavailable, "it is read-only; name the hosts of all servers in the URL, with commas"),
    ("28", StoreConfigError, "give its password with ?password_file=PATH, or see pg_hba.conf"),
    ("3D000", StoreConfigError, "create it: {create}"),
    ("3F000", StoreConfigError, "create a schema that is in the user's search_path"),
    ("40", StoreUnavailable, ""),
    ("42501", StoreConfigError, "{grant}"),
    (
        "42P01",
        StoreConfigError,
        "its tables are gone; restore them, or restart this server to begin without jobs",
    ),
    ("53100", StoreUnavailable, "make room on its disk"),
    ("53", StoreUnavailable, ""),
    ("55", StoreUnavailable, ""),
    ("57014", StoreUnavailable, "it took longer than ?timeout= allows"),
    ("57", StoreUnavailable, ""),
    ("58", StoreUnavailable, "see the database's log"),
    ("XX001", StoreUnavailable, "see the database's log, its disk may be failing"),
    ("XX002", StoreUnavailable, "see the database's log, its disk may be failing"),
)
# A refused connection has no SQLSTATE, only words.
_WORDS: tuple[tuple[str, type[StoreError], str], ...] = (
    ("password", StoreConfigError, "give its password with ?password_file=PATH or ?password_env=VARIABLE"),
    ("authentication failed", StoreConfigError, "see pg_hba.conf, and the user in the URL"),
    ("pg_hba.conf", StoreConfigError, "let this host in, in the database's pg_hba.conf"),
    ("role ", StoreConfigError, "name another user in the URL, or create it: CREATE ROLE … LOGIN"),
    ("database ", StoreConfigError, "create it: {create}"),
    ("permission denied", StoreConfigError, "{grant}"),
    ("certificate", StoreConfigError, "see ?sslmode= and ?sslrootcert="),
    ("sslmode", StoreConfigError, "see ?sslmode= and ?sslrootcert="),
    ("read-only", StoreUnavailable, "name the hosts of all servers in the URL, with commas"),
)


def open_postgres(url: str, reactor: IReactorFromThreads) -> IJobStore:
    """Return a store in a PostgreSQL database; nothing is connected to yet.

    Args:
        url: ``postgresql://USER@HOST:PORT,HOST:PORT/DATABASE?OPTION=VALUE``.
        reactor: the reactor that the store will live in.

    Raises:
        StoreConfigError: the URL is invalid, or its password cannot be read.
    """
    parts = StoreUrl.parse(url, OPTIONS | {"host"})
    interval = parts.sync_interval()
    return ThreadedStore(SqlStore(PostgresDatabase(parts, is_lax=interval > 0), interval), reactor)


class Session(psycopg.Connection[tuple[Any, ...]]):
    """A connection that waits for the server for at most ``time_limit`` seconds at a time."""

    time_limit: float = 3600.0

    def wait(self, gen: PQGen[Any], *_args: Any, **_kwargs: Any) -> Any:
        """Run a generator of psycopg's.

        Raises:
            psycopg.OperationalError: nothing came from the server for too long; the connection is closed.
        """
        try:
            waits_for = next(gen)
            while True:
                poll = select.poll()
                poll.register(self.pgconn.socket, _POLL[waits_for])
                events = poll.poll(self.time_limit * 1000)
                if not events:
                    self.close()
                    raise psycopg.OperationalError(f"no answer for {self.time_limit:g} seconds")
                # The next read or write reports the error.
                has_read, has_write = events[0][1] & ~select.POLLOUT, events[0][1] & ~select.POLLIN
                waits_for = gen.send(_READY[bool(has_read), bool(has_write)])
        except StopIteration as stop:
            return stop.value


class PostgresDatabase(ServerDialect):
    """A PostgreSQL database; its tables are in the first schema of the user's search_path.

    Args:
        url: where it is.
        is_lax: whether the operator accepts the loss of jobs.
    """

    types = _TYPES
    errors = (psycopg.Error,)
    max_workload_bytes = _MAX_MESSAGE_BYTES - ROW_BYTES

    def __init__(self, url: StoreUrl, *, is_lax: bool) -> None:
        super().__init__(url, "PostgreSQL")
        self._is_lax = is_lax
        options = url.options
        hosts = self.address.hosts
        if "host" in options:
            if any(host for host, _ in hosts):
                raise StoreConfigError(f"{url.scheme}: takes //HOST or ?host=DIRECTORY, not both")
            hosts = ((options["host"], hosts[0][1]),)
            self.description += f", socket in {options['host']}"
        self._parameters: dict[str, Any] = {
            "dbname": self.address.database,
            "target_session_attrs": "read-write",
            "connect_timeout": round(self.connect_timeout),
            # Detect that the other end has vanished.
            "keepalives": 1,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": round(self.timeout * 1000),
            **{name: options[name] for name in _SSL_OPTIONS if name in options},
        }
        if self.address.user:
            self._parameters["user"] = self.address.user
        if any(host for host, _ in hosts):
            self._parameters["host"] = ",".join(host for host, _ in hosts)
        if any(port for _, port in hosts):
            self._parameters["port"] = ",".join(str(port or 5432) for _, port in hosts)
        self._former: tuple[int, Any] | None = None
        self._warnings: list[str] = []
        update = ", ".join(f'"{name}" = excluded."{name}"' for name in COLUMNS if name != "id")
        self._save = (
            f"INSERT INTO {JOBS} ({self.names()}) SELECT * FROM unnest({_ARRAYS}) "
            f"ON CONFLICT (id) DO UPDATE SET {update}"
        )
        self._forget = f"DELETE FROM {JOBS} WHERE id = ANY(%b::bigint[])"
        self._load = f"SELECT {self.names()} FROM {JOBS} WHERE id = ANY(%b::bigint[])"

    def open_session(self) -> Session:
        try:
            session = Session.connect(
                **self._parameters,
                password=self.password(),
                application_name=self.own_name,
                # Prepared statements gain little here, and break with connection poolers and fail-overs.
                prepare_threshold=None,
            )
        except psycopg.Error as error:
            raise self.explain(error) from error
        session.time_limit = self.timeout
        session.add_notice_handler(self._noticed)
        try:
            self._set_up(session)
        except BaseException as error:
            session.close()
            if isinstance(error, psycopg.Error):
                raise self.explain(error) from error
            raise
        return session

    def _set_up(self, session: Session) -> None:
        limit = f"{round(self.timeout * 1000)}ms"
        settings = {
            # Have the server end a statement that we no longer wait for, and a session whose client is gone.
            "statement_timeout": limit,
            "lock_timeout": limit,
            "idle_in_transaction_session_timeout": limit,
            "idle_session_timeout": "0",
            "client_connection_check_interval": "5s",
            "tcp_keepalives_idle": "10",
            "tcp_keepalives_interval": "5",
            "tcp_keepalives_count": "3",
            "tcp_user_timeout": limit,
        }
        # Not every version has all of them. Of the values of synchronous_commit only "off" does not wait for
        # the disk; the others differ in which standby servers they wait for.
        session.execute(
            "SELECT set_config(name, value, false) FROM pg_settings "
            "JOIN unnest(%s::text[], %s::text[]) AS wanted (name, value) USING (name)",
            [list(settings), list(settings.values())],
        )
        session.execute(
            "SELECT set_config('synchronous_commit', 'on', false) "
            "WHERE current_setting('synchronous_commit') = 'off'"
        )
        row = session.execute("SELECT current_setting('fsync')").fetchone()
        session.commit()
        if row != ("on",) and not self._is_lax:
            raise self.refuse(
                "it does not wait for its disk, so a power cut may lose jobs; set fsync = on in "
                "postgresql.conf, or write ?sync=interval=SECONDS if that is acceptable"
            )

    def try_lock(self, session: Session) -> bool:
        row = session.execute("SELECT pg_try_advisory_lock(%s)", [LOCK]).fetchone()
        if row == (True,):
            self._former = session.execute(
                "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
            ).fetchone()
        session.commit()
        return row == (True,)

    def release_lock(self, session: Session) -> None:
        session.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
        session.commit()

    def holder(self, session: Session) -> LockSession | None:
        row = session.execute(
            "SELECT pid, coalesce(application_name, ''), usename, host(client_addr), "
            "client_addr IS NOT DISTINCT FROM inet_client_addr() "
            "FROM pg_locks LEFT JOIN pg_stat_activity USING (pid) "
            "WHERE locktype = 'advisory' AND granted AND objsubid = 1 "
            "AND classid::bigint = %s AND objid::bigint = %s "
            "AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            [LOCK >> 32, LOCK & 0xFFFFFFFF],
        ).fetchone()
        session.commit()
        if row is None:
            return None
        pid, name, user, address, is_from_here = row
        server = Holder.parse(name)
        who = server.describe() if server else name or "a session without a name"
        label = f"{who} (from {address or 'its own machine'} as {user})"
        return LockSession(pid, server, label, is_from_here, f"SELECT pg_terminate_backend({pid})")

    def end_session(self, session: Session, holder: LockSession) -> None:
        try:
            session.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid = %s AND application_name = %s",
                [holder.number, str(holder.server)],
            )
        finally:
            session.rollback()

    def end_former(self, session: Session) -> None:
        if self._former is not None:
            # The process number may be reused by now, but not with the same start.
            with suppress(psycopg.errors.InsufficientPrivilege):
                session.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE pid = %s AND backend_start = %s",
                    self._former,
                )
            session.rollback()

    def columns(self, session: Session, table: str) -> set[str]:
        # Resolved by search_path, as in all statements.
        rows = session.execute(
            "SELECT attname FROM pg_attribute "
            "WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped",
            [table],
        )
        return {name for (name,) in rows}

    def check_tables(self, session: Session) -> None:
        row = session.execute(
            "SELECT coalesce(current_schema(), ''), to_regclass(%s) IS NOT NULL, "
            "coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)",
            [SCHEMA],
        ).fetchone()
        if row is not None and not row[1] and not row[2]:
            raise self.refuse(f"the user may not create tables in schema {row[0]!r}; {self._grant()}")

    def commit(self, session: Session) -> None:
        """Commit the transaction.

        Raises:
            StoreUnavailable: the wait for a standby was cut short, by a time limit or an operator.
        """
        self._warnings.clear()
        session.commit()
        # PostgreSQL reports that as a success with a warning. Only the primary has the commit then, and a
        # fail-over loses it: its outcome is unknown, so it is retried, which waits again.
        if self._warnings:
            raise StoreUnavailable(f"{self.description}: {self._warnings[0]}")

    def save(self, session: Session, saves: Sequence[StoredJob]) -> None:
        for some in in_statements(saves):
            session.execute(self._save, [list(column) for column in zip(*some, strict=True)], binary=True)

    def forget(self, session: Session, ids: Sequence[int]) -> None:
        session.execute(self._forget, [list(ids)])

    def load(self, session: Session, ids: Sequence[int]) -> Iterable[Sequence[Any]]:
        return session.execute(self._load, [list(ids)], binary=True).fetchall()

    def read(self, session: Session, statement: str) -> Iterable[Sequence[Any]]:
        # Binary: bytes come unchanged, and not in hexadecimal.
        return session.execute(statement, binary=True).fetchall()

    def judge(self, error: BaseException) -> tuple[type[StoreError], str, str]:
        said = str(error)
        create = f'CREATE DATABASE "{self.address.database}" OWNER "{self.address.user or "…"}"'
        state = error.sqlstate if isinstance(error, psycopg.Error) else None
        if state is None:
            if not isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
                return StoreError, said, ""
            found = ((kind, advice) for words, kind, advice in _WORDS if words in _told(said))
            kind, advice = next(found, (StoreUnavailable, ""))
        else:
            found = ((kind, advice) for start, kind, advice in _ADVICE if state.startswith(start))
            kind, advice = next(found, (StoreError, ""))
        return kind, said, advice.format(create=create, grant=self._grant())

    def _grant(self) -> str:
        user = self.address.user or "…"
        return (
            f'let it own the database: ALTER DATABASE "{self.address.database}" OWNER TO "{user}", '
            f'or the schema: GRANT USAGE, CREATE ON SCHEMA public TO "{user}"'
        )

    def _noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self._warnings.append(" ".join(filter(None, (notice.message_primary, notice.message_detail))))


def _told(said: str) -> str:
    """Return what the server said, without the names of hosts that psycopg puts before it."""
    _, fatal, told = said.partition("FATAL:")
    return told if fatal else said
