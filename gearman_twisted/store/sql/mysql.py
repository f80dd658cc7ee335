"""Jobs in a MariaDB or MySQL database: the session's settings, its lock, and statements in bytes."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import pymysql
from twisted.internet.interfaces import IReactorFromThreads

from gearman_twisted.errors import StoreConfigError, StoreError, StoreUnavailable
from gearman_twisted.store.contract import IJobStore, StoredJob
from gearman_twisted.store.holder import Holder
from gearman_twisted.store.sql.server import OPTIONS, LockSession, ServerDialect
from gearman_twisted.store.sql.tables import (
    BYTES_PER_STATEMENT,
    JOBS,
    ROWS_PER_STATEMENT,
    TABLES,
    SqlStore,
    in_statements,
)
from gearman_twisted.store.threaded import ThreadedStore
from gearman_twisted.store.url import StoreUrl

# MySQL keeps locks for the whole server, under names of at most 64 bytes.
_LOCK = "CONCAT('gearman ', SHA1(DATABASE()))"

# The sizes of a page are read before its jobs, and to tell the length of a workload InnoDB reads all of it.
_MAX_PAGE_ROWS = 250

_YEAR = 365 * 24 * 3600

# The part of max_allowed_packet that is reserved for what surrounds the statement.
_PACKET_MARGIN = 1024

_ROW = b"(%d,_binary'%b',_binary'%b',_binary'%b',_binary'%b',%d,%d,_binary'%b',_binary'%b')"
_replace = bytes.replace

_GRANT = "grant it: {grant}"
# What MySQL's error numbers mean for us, and what the operator can do.
_ADVICE: dict[int, tuple[type[StoreError], str]] = {
    **dict.fromkeys(
        # Cut off, shut down, too busy, out of memory; deadlock, lock timeout, killed.
        (
            *(0, 1037, 1038, 1040, 1041, 1053, 1077, 1080, 1129, 1152, 1154, 1155, 1156, 1157, 1158, 1159),
            *(1160, 1161, 1180, 1184, 1203, 1205, 1206, 1213, 1226, 1317, 1927, 1969, 2002, 2003, 2005),
            *(2006, 2013, 2014, 2055, 3024, 4031),
        ),
        (StoreUnavailable, ""),
    ),
    **dict.fromkeys((3, 1021, 1114), (StoreUnavailable, "make room on its disk")),
    **dict.fromkeys((1026, 1030, 1034, 1035, 1194, 1195), (StoreUnavailable, "see the database's log")),
    **dict.fromkeys(
        (1290, 1792, 1836), (StoreUnavailable, "it is read-only; name the server that takes writes")
    ),
    **dict.fromkeys((1044, 1142, 1143, 1227), (StoreConfigError, _GRANT)),
    1045: (StoreConfigError, "give its password with ?password_file=PATH or ?password_env=VARIABLE"),
    1049: (StoreConfigError, "create it: CREATE DATABASE `{database}`"),
    1130: (StoreConfigError, _GRANT),
    1146: (
        StoreConfigError,
        "its tables are gone; restore them, or restart this server to begin without jobs",
    ),
    1698: (StoreConfigError, "this user logs in through a socket only: ?unix_socket=PATH"),
    2026: (StoreConfigError, "see ?sslmode= and ?sslrootcert="),
}


def open_mysql(url: str, reactor: IReactorFromThreads) -> IJobStore:
    """Return a store in a MariaDB or MySQL database; nothing is connected to yet.

    Args:
        url: ``mysql://USER@HOST:PORT/DATABASE?OPTION=VALUE``.
        reactor: the reactor that the store will live in.

    Raises:
        StoreConfigError: the URL is invalid, or its password cannot be read.
    """
    parts = StoreUrl.parse(url, OPTIONS | {"unix_socket"})
    interval = parts.sync_interval()
    return ThreadedStore(SqlStore(MySQLDatabase(parts, is_lax=interval > 0), interval), reactor)


class MySQLDatabase(ServerDialect):
    """A MariaDB or MySQL database.

    Args:
        url: where it is.
        is_lax: whether the operator accepts the loss of jobs.
    """

    types = (
        "BIGINT",
        "BLOB(64)",
        "BLOB(8191)",
        "BLOB(64)",
        "LONGBLOB",
        "SMALLINT",
        "BIGINT",
        *["BLOB(8191)"] * 2,
    )
    # Of MySQL's engines only this one has transactions and survives a power cut.
    table_options = " ENGINE=InnoDB"
    errors = (pymysql.Error,)
    quote = "`"
    max_page_rows = _MAX_PAGE_ROWS

    def __init__(self, url: StoreUrl, *, is_lax: bool) -> None:
        super().__init__(url, "MariaDB" if url.scheme == "mariadb" else "MySQL")
        self._is_lax = is_lax
        if len(self.address.hosts) != 1:
            raise StoreConfigError(
                f"{url.scheme}: takes one host; give it an address that moves with a fail-over"
            )
        ((host, port),) = self.address.hosts
        unix_socket = url.options.get("unix_socket")
        if host and unix_socket:
            raise StoreConfigError(f"{url.scheme}: takes //HOST or ?unix_socket=PATH, not both")
        self._parameters: dict[str, Any] = {
            "host": host or "localhost",
            "port": port or 3306,
            "database": self.address.database,
            "charset": "utf8mb4",
            "connect_timeout": self.connect_timeout,
            "read_timeout": self.timeout,
            "write_timeout": self.timeout,
            **_ssl_parameters(url),
        }
        if self.address.user:
            self._parameters["user"] = self.address.user
        if unix_socket:
            self._parameters["unix_socket"] = unix_socket
            self.description += f", socket {unix_socket}"
        self._max_packet = 0
        self._commit = b"COMMIT"
        self._former: tuple[int, str] | None = None
        self._save = f"REPLACE INTO {JOBS} ({self.names()}) VALUES ".encode()

    def open_session(self) -> pymysql.connections.Connection[Any]:
        password = self.password()
        name = self.own_name
        self._commit = f"COMMIT /* {name} */".encode()
        try:
            session = pymysql.connect(
                **self._parameters,
                # The driver would encode text as Latin-1.
                password=(password or "").encode(),
                program_name=name,
            )
        except pymysql.Error as error:
            raise self.explain(error) from error
        try:
            self._set_up(session)
        except BaseException as error:
            session.close()
            if isinstance(error, pymysql.Error):
                raise self.explain(error) from error
            raise
        return session

    def _set_up(self, session: pymysql.connections.Connection[Any]) -> None:
        with session.cursor() as cursor:
            # STRICT: what does not fit is an error, and not truncated. An idle session keeps its lock for
            # long; that its client is gone is detected by TCP keep-alives.
            cursor.execute(
                "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', "
                "wait_timeout = %s, innodb_lock_wait_timeout = %s",
                (_YEAR, max(1, round(self.timeout) - 1)),
            )
            cursor.execute(
                "SELECT @@max_allowed_packet, @@global.innodb_flush_log_at_trx_commit, "
                "@@global.log_bin, @@global.sync_binlog"
            )
            ((self._max_packet, flush, log_bin, sync_binlog),) = cursor.fetchall()
        session.rollback()
        # Some bytes take two in a statement, so a shorter workload may be too long as well; see ``save``.
        self.max_workload_bytes = self._max_packet - _PACKET_MARGIN
        wanted = []
        if flush not in {1, 3}:
            wanted.append("innodb_flush_log_at_trx_commit = 1")
        # After a crash, transactions that the binary log does not have are rolled back.
        if log_bin and sync_binlog != 1:
            wanted.append("sync_binlog = 1")
        if wanted and not self._is_lax:
            raise self.refuse(
                f"it does not wait for its disk, so a power cut may lose jobs; set {' and '.join(wanted)} in "
                f"its configuration, or write ?sync=interval=SECONDS if that is acceptable"
            )

    def try_lock(self, session: pymysql.connections.Connection[Any]) -> bool:
        with session.cursor() as cursor:
            cursor.execute(f"SELECT GET_LOCK({_LOCK}, 0)")
            is_ours: bool = cursor.fetchone() == (1,)
        if is_ours:
            own = self._process(session, session.thread_id())  # type: ignore[no-untyped-call]
            self._former = own[:2] if own else None
        session.rollback()
        return is_ours

    def release_lock(self, session: pymysql.connections.Connection[Any]) -> None:
        with session.cursor() as cursor:
            cursor.execute(f"DO RELEASE_LOCK({_LOCK})")
        session.rollback()

    def holder(self, session: pymysql.connections.Connection[Any]) -> LockSession | None:
        number = self._holder_id(session)
        if number is None:
            return None
        process = self._process(session, number)
        address, statement = process[1:] if process else ("", "")
        name = ""
        # MySQL knows, MariaDB only if its configuration enables that.
        with suppress(pymysql.Error), session.cursor() as cursor:
            cursor.execute(
                "SELECT attr_value FROM performance_schema.session_connect_attrs "
                "WHERE processlist_id = %s AND attr_name = 'program_name'",
                (number,),
            )
            name = (cursor.fetchone() or ("",))[0]
        own = self._process(session, session.thread_id())  # type: ignore[no-untyped-call]
        session.rollback()
        # A session that waits in a commit has it in the statement.
        server = Holder.parse(name) or Holder.parse(statement.partition("/* ")[2].partition(" */")[0])
        who = server.describe() if server else name or "another server"
        label = f"{who} (connection {number}{f' from {address}' if address else ''})"
        is_from_here = own is not None and _host(own[1]) == _host(address)
        return LockSession(number, server, label, is_from_here, f"KILL {number}")

    def end_session(self, session: pymysql.connections.Connection[Any], holder: LockSession) -> None:
        with session.cursor() as cursor:
            cursor.execute(f"KILL {holder.number:d}")
        session.rollback()

    def end_former(self, session: pymysql.connections.Connection[Any]) -> None:
        if self._former is None or self._holder_id(session) != self._former[0]:
            return
        # Numbers are reused after a restart of the database, but an address with a port is ours.
        process = self._process(session, self._former[0])
        if ":" in self._former[1] and process and process[:2] == self._former:
            with suppress(pymysql.Error), session.cursor() as cursor:
                cursor.execute(f"KILL {self._former[0]:d}")
        session.rollback()

    def columns(self, session: pymysql.connections.Connection[Any], table: str) -> set[str]:
        with session.cursor() as cursor:
            cursor.execute(
                "SELECT table_name, column_name FROM information_schema.columns "
                "WHERE table_schema = DATABASE() AND table_name = %s",
                (table,),
            )
            # The comparison there ignores case, in which tables may differ.
            return {column for name, column in cursor.fetchall() if name == table}

    def check_tables(self, session: pymysql.connections.Connection[Any]) -> None:
        with session.cursor() as cursor:
            cursor.execute(
                "SELECT table_name, engine FROM information_schema.tables "
                "WHERE table_schema = DATABASE() AND table_name IN %s",
                (sorted(TABLES),),
            )
            for name, engine in cursor.fetchall():
                if engine != "InnoDB":
                    raise self.refuse(
                        f"the table {name} has the engine {engine}, which loses jobs in a crash; "
                        f"ALTER TABLE {name} ENGINE = InnoDB"
                    )

    def commit(self, session: pymysql.connections.Connection[Any]) -> None:
        # The process list shows the statement, so that a commit that waits says which server it is of.
        session.query(self._commit)

    def save(self, session: pymysql.connections.Connection[Any], saves: Sequence[StoredJob]) -> None:
        for statement in self._save_statements(saves):
            session.query(statement)

    def forget(self, session: pymysql.connections.Connection[Any], ids: Sequence[int]) -> None:
        for some in _in_parts(ids):
            session.query(f"DELETE FROM {JOBS} WHERE id IN ({some})")

    def load(
        self, session: pymysql.connections.Connection[Any], ids: Sequence[int]
    ) -> Iterable[Sequence[Any]]:
        for some in _in_parts(ids):
            yield from self.read(session, f"SELECT {self.names()} FROM {JOBS} WHERE id IN ({some})")

    def judge(self, error: BaseException) -> tuple[type[StoreError], str, str]:
        if not isinstance(error, pymysql.Error):
            return StoreError, str(error), ""
        number = error.args[0] if error.args else None
        said = str(error.args[1]) if len(error.args) > 1 and error.args[1] else "the connection is lost"
        if number in {1153, 1301}:
            return StoreError, said, "raise max_allowed_packet in its configuration"
        if not isinstance(number, int):
            return StoreError, str(error), ""
        if isinstance(getattr(error, "original_exception", None), ssl.SSLError):
            number = 2026
        kind, advice = _ADVICE.get(number, (StoreError, ""))
        database, user = self.address.database, self.address.user or "…"
        grant = f"GRANT ALL ON `{database}`.* TO '{user}'@'%'"
        return kind, f"{said} ({number})", advice.format(database=database, grant=grant)

    def _save_statements(self, saves: Sequence[StoredJob]) -> Iterator[bytes]:
        """Return statements for jobs, each of a good size, and none larger than the server takes.

        They are written here and not by the driver, since that tells their size, and is twice as fast. Only
        the backslash and the quote have a meaning in literals, whatever the other bytes are.
        """
        limit = self._max_packet - _PACKET_MARGIN
        for some in in_statements(saves):
            rows: list[bytes] = []
            size = len(self._save)
            for job in some:
                row = _literal(job)
                if len(self._save) + len(row) > limit:
                    raise StoreError(
                        f"{self.description}: a job of {len(job.workload):,} bytes takes a statement of "
                        f"{len(self._save) + len(row):,}, and max_allowed_packet is {self._max_packet:,}; "
                        f"raise it in the database's configuration"
                    )
                if rows and size + len(row) > min(limit, 2 * BYTES_PER_STATEMENT):
                    yield self._save + b",".join(rows)
                    rows, size = [], len(self._save)
                rows.append(row)
                size += len(row) + 1
            yield self._save + b",".join(rows)

    def _holder_id(self, session: pymysql.connections.Connection[Any]) -> int | None:
        with session.cursor() as cursor:
            cursor.execute(f"SELECT IS_USED_LOCK({_LOCK})")
            number: int | None = (cursor.fetchone() or (None,))[0]
        return number

    def _process(
        self, session: pymysql.connections.Connection[Any], number: int
    ) -> tuple[int, str, str] | None:
        """Return a connection's number, the address that it comes from, and its statement."""
        with session.cursor() as cursor:
            cursor.execute(
                "SELECT id, host, coalesce(info, '') FROM information_schema.processlist WHERE id = %s",
                (number,),
            )
            row: tuple[int, str, str] | None = cursor.fetchone()
        return row


def _host(address: str) -> str:
    """Return an address without its port; a socket has none."""
    return address.rpartition(":")[0] or address


def _literal(job: StoredJob) -> bytes:
    # bytes.replace raises TypeError for what is not bytes.
    handle, function, unique, workload, reducer, schedule = (
        _replace(_replace(value, b"\\", b"\\\\"), b"'", b"\\'")
        for value in (job.handle, job.function, job.unique, job.workload, job.reducer, job.schedule)
    )
    return _ROW % (
        *(job.id, handle, function, unique, workload),
        *(job.priority, job.run_at, reducer, schedule),
    )


def _in_parts(ids: Sequence[int]) -> Iterator[str]:
    for start in range(0, len(ids), ROWS_PER_STATEMENT):
        yield ",".join(f"{id_:d}" for id_ in ids[start : start + ROWS_PER_STATEMENT])


def _ssl_parameters(url: StoreUrl) -> dict[str, Any]:
    """Translate libpq's options for TLS, which the URLs of PostgreSQL have too, for the driver."""
    mode = url.options.get("sslmode")
    ca, cert, key = (url.options.get(name) for name in ("sslrootcert", "sslcert", "sslkey"))
    if mode == "disable":
        return {"ssl_disabled": True}
    if mode is None and not any((ca, cert, key)):
        return {}
    if mode not in {None, "require", "verify-ca", "verify-full"}:
        raise StoreConfigError(
            f"{url.scheme}: takes sslmode=disable, require, verify-ca or verify-full, not {mode}"
        )
    verifies = mode in {"verify-ca", "verify-full"} or (mode is None and ca is not None)
    try:
        context = ssl.create_default_context(cafile=ca)
        context.check_hostname = verifies and mode != "verify-ca"
        context.verify_mode = ssl.CERT_REQUIRED if verifies else ssl.CERT_NONE
        if cert is not None:
            context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(filter(None, chain((ca, cert, key))))
        raise StoreConfigError(f"{url.scheme}: cannot use {files} for TLS: {error}") from error
    return {"ssl": context}
