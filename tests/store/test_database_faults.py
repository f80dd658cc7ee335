"""Database servers that restart, crash, hang, fail over or turn read-only under an open store.

What holds for both kinds is tested on both: a call fails with ``StoreUnavailable``, never for ever, the
next one reconnects by itself, and nothing that was applied is lost.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pymysql
import pytest

from gearman_twisted.errors import StoreConfigError, StoreError, StoreInUse, StoreUnavailable
from gearman_twisted.store.conformance import a_job
from gearman_twisted.store.contract import StoredJob
from gearman_twisted.store.sql import server as sql_server
from gearman_twisted.store.sql.tables import SqlStore
from tests.kit.databases import (
    Own,
    PrivateMariaDB,
    PrivatePostgres,
    a_store,
    free_port,
    opened,
    poll,
    stored,
)

RETRY_TIMEOUT = 30.0


def apply_at_last(store: SqlStore, saves: list[StoredJob], forgets: list[int]) -> int:
    """Comes again as the server does, until it works; how often it failed."""
    failures = 0

    def works() -> bool:
        nonlocal failures
        try:
            store.apply(saves, forgets)
        except StoreUnavailable:
            failures += 1
            return False
        return True

    assert poll(works, RETRY_TIMEOUT)
    return failures


class Proxy:
    """Stands between a store and a database, and loses what it is told to lose."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._swallows = threading.Event()
        self._ends = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def swallow(self) -> None:
        """Takes all bytes of both sides and passes none on, as a network does that drops packets."""
        self._swallows.set()

    def resume(self) -> None:
        """Passes on what comes on new connections; both ends of the old ones wait on."""
        # What was swallowed is missing from the old ones, so they stay as they are.
        self._lost = dict(self._pairs)
        self._pairs.clear()
        self._swallows.clear()

    def close(self) -> None:
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._listener)
            while not self._ends.is_set():
                pairs = self._pairs
                readable, _, _ = select.select([self._listener, *pairs], [], [], 0.02)
                for one in readable:
                    if one is self._listener:
                        client = stack.enter_context(self._listener.accept()[0])
                        server = stack.enter_context(socket.create_connection(("127.0.0.1", self._target)))
                        pairs[client], pairs[server] = server, client
                    elif one in pairs:
                        self._pass_on(pairs, one)

    def _pass_on(self, pairs: dict[socket.socket, socket.socket], one: socket.socket) -> None:
        other = pairs[one]
        try:
            data = one.recv(65536)
        except OSError:
            data = b""
        if data:
            if not self._swallows.is_set():
                other.sendall(data)
        else:
            # The end of a connection gets lost like all else.
            pairs.pop(one)
            if not self._swallows.is_set():
                pairs.pop(other, None)
                other.close()
            one.close()


@contextmanager
def proxied(server: Own) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    try:
        yield proxy
    finally:
        proxy.close()


def close_for_good(server: Own) -> None:
    server.stop()


def crash(server: Own) -> None:
    server.kill()


@pytest.mark.parametrize("end", [close_for_good, crash], ids=["restart", "crash"])
def test_server_comes_back(server: Own, database: str, end: Callable[[Own], None]) -> None:
    """While the server is down each call says so; then they work again, and all that was applied is there."""
    with opened(server.url(database)) as store:
        store.apply([a_job(1), a_job(2)], [])
        end(server)
        try:
            calls: list[Callable[[], object]] = [
                lambda: store.apply([a_job(3)], [1]),
                lambda: store.page(0),
                lambda: store.load([1]),
            ]
            for call in calls * 2:
                with pytest.raises(StoreUnavailable, match=database):
                    call()
        finally:
            server.start()
        apply_at_last(store, [a_job(3)], [1])
        assert stored(store) == [2, 3]
        assert store.load([3, 1, 2]) == [a_job(3), a_job(2)]


def test_idle_store_after_a_restart(server: Own, database: str) -> None:
    """A store that had nothing to do while the server restarted fails once at most."""
    with opened(server.url(database)) as store:
        server.stop()
        server.start()
        assert apply_at_last(store, [a_job(1)], []) <= 1
        assert stored(store) == [1]


def test_crash_while_jobs_are_saved(server: Own, database: str) -> None:
    """A server that is killed in the middle of a stream of saves has all that it acknowledged."""
    acknowledged: list[int] = []
    is_enough = threading.Event()
    is_over = threading.Event()
    failures: list[int] = []

    def save() -> None:
        with opened(server.url(database)) as store:
            first = 1
            while not is_over.is_set():
                jobs = [a_job(number, workload=b"x" * 1000) for number in range(first, first + 50)]
                failures.append(apply_at_last(store, jobs, []))
                acknowledged.extend(job.id for job in jobs)
                first += 50
                if first > 500:
                    is_enough.set()

    thread = threading.Thread(target=save)
    thread.start()
    try:
        assert is_enough.wait(RETRY_TIMEOUT)
        server.kill()
        server.start()
        assert poll(lambda: any(failures))
        reached = len(acknowledged)
        assert poll(lambda: len(acknowledged) > reached)
    finally:
        is_over.set()
        thread.join(RETRY_TIMEOUT)
    found = server.run("SELECT id FROM gearman_jobs ORDER BY id", database=database)
    assert [number for (number,) in found] == acknowledged


def test_network_that_swallows_everything(server: Own, database: str) -> None:
    """Without a byte from the server a call ends after the time limit; then the same store works again.

    The server still thinks the old connection alive, with the lock; the store ends it.
    """
    with (
        proxied(server) as proxy,
        opened(f"{server.url(database, port=proxy.port)}?timeout=1&connect_timeout=2") as store,
    ):
        store.apply([a_job(1)], [])
        proxy.swallow()
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=database):
                store.apply([a_job(2)], [])
        proxy.resume()
        apply_at_last(store, [a_job(2)], [])
        assert stored(store) == [1, 2]


def test_second_store_is_refused(server: Own, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is held is refused by check and connect, with who holds it and how to end that."""
    monkeypatch.setattr(sql_server, "LOCK_WAIT", 0.2)
    url = server.url(database)
    ends = "KILL" if isinstance(server, PrivateMariaDB) else "pg_terminate_backend"
    with opened(url) as store:
        other = a_store(url)
        for call in (other.check, other.connect):
            with pytest.raises(StoreInUse, match=f"{database} .*in use by .*(127.0.0.1|localhost).*{ends}"):
                call()
        if isinstance(server, PrivatePostgres):
            with pytest.raises(StoreInUse, match=r"in use by process \d+ on "):
                other.check()
        store.apply([a_job(1)], [])
        with server.database() as another, opened(server.url(another)) as neighbour:
            assert stored(neighbour) == []
    other.check()
    other.connect()
    assert stored(other) == [1]
    other.disconnect()


def connections(server: Own, database: str) -> list[int]:
    """The numbers of the connections to a database, for the server's operator."""
    if isinstance(server, PrivatePostgres):
        query = f"SELECT pid FROM pg_stat_activity WHERE datname = '{database}'"
    else:
        query = f"SELECT id FROM information_schema.processlist WHERE db = '{database}'"
    return [number for (number,) in server.run(query)]


def disconnect_all(server: Own, database: str) -> None:
    """Ends the connections to a database, as its operator can."""
    for number in connections(server, database):
        server.run(
            f"SELECT pg_terminate_backend({number})"
            if isinstance(server, PrivatePostgres)
            else f"KILL {number}"
        )
    assert poll(lambda: not connections(server, database))


def test_lock_that_another_store_took_meanwhile(
    server: Own, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that lost its connection, and with it the lock, to another one writes nothing, and says why."""
    monkeypatch.setattr(sql_server, "LOCK_WAIT", 0.2)
    url = server.url(database)
    with opened(url) as store:
        store.apply([a_job(1)], [])
        disconnect_all(server, database)
        with opened(url) as other:
            other.apply([a_job(2)], [])
            with pytest.raises(StoreUnavailable):
                store.apply([a_job(3)], [2])
            for _ in range(2):
                with pytest.raises(StoreInUse, match=r"in use by .*(127\.0\.0\.1|localhost)"):
                    store.apply([a_job(3)], [2])
            assert stored(other) == [1, 2]
        assert apply_at_last(store, [a_job(3)], [2]) == 0
        assert stored(store) == [1, 3]


def test_lost_database(server: Own, database: str) -> None:
    """A database that is gone while the store is open is an error for later, and with advice."""
    with opened(server.url(database)) as store:
        server.drop(database)
        with pytest.raises(StoreUnavailable):
            store.apply([a_job(1)], [])
        with pytest.raises(StoreUnavailable, match="CREATE DATABASE"):
            store.apply([a_job(1)], [])
        server.run(f"CREATE DATABASE {database}")
        with pytest.raises(StoreUnavailable, match="its tables are gone"):
            store.apply([a_job(1)], [])


# What differs


def test_fail_over(own_postgres: PrivatePostgres) -> None:
    """Of several hosts the first that takes writes is used, wherever it stands, also after a loss."""
    first, second = free_port(), own_postgres.port
    with own_postgres.database() as name, contextlib.ExitStack() as stack:
        url = f"postgresql://postgres@127.0.0.1:{first},127.0.0.1:{second}/{name}"
        a_store(url).check()
        store = stack.enter_context(opened(url))
        store.apply([a_job(1)], [])
        disconnect_all(own_postgres, name)
        assert apply_at_last(store, [a_job(2)], []) == 1
        assert stored(store) == [1, 2]


def test_postgres_that_turns_read_only(own_postgres: PrivatePostgres) -> None:
    """A server that takes no writes any more, as after a fail-over, is an error for later."""
    with own_postgres.database() as name, opened(own_postgres.url(name)) as store:
        store.apply([a_job(1)], [])
        own_postgres.run(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        disconnect_all(own_postgres, name)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                store.apply([a_job(2)], [])
        with pytest.raises(StoreUnavailable, match=r"read-only.*name the hosts of all servers"):
            store.apply([a_job(2)], [])
        with pytest.raises(StoreUnavailable, match="read-only"):
            a_store(own_postgres.url(name)).check()
        own_postgres.run(
            "SET default_transaction_read_only = off",
            f"ALTER DATABASE {name} RESET default_transaction_read_only",
        )
        assert apply_at_last(store, [a_job(2)], []) == 0
        assert stored(store) == [1, 2]


def test_mariadb_that_turns_read_only(own_mariadb: PrivateMariaDB) -> None:
    """A server that takes no writes any more is an error for later."""
    with own_mariadb.database() as name:
        own_mariadb.run(
            "CREATE OR REPLACE USER worker@'127.0.0.1'", f"GRANT ALL ON {name}.* TO worker@'127.0.0.1'"
        )
        with opened(own_mariadb.url(name, user="worker")) as store:
            store.apply([a_job(1)], [])
            own_mariadb.run("SET GLOBAL read_only = 1")
            try:
                with pytest.raises(StoreUnavailable, match="read-only"):
                    store.apply([a_job(2)], [])
                assert stored(store) == [1]
            finally:
                own_mariadb.run("SET GLOBAL read_only = 0")
            assert apply_at_last(store, [a_job(2)], []) == 0


def test_rows_that_somebody_else_locks(server: Own, database: str) -> None:
    """Rows that another session holds are waited for, not for ever, and then saved by the same store."""
    with opened(f"{server.url(database)}?timeout=2") as store:
        store.apply([a_job(1)], [])
        with (
            holding(server, database, "SELECT id FROM gearman_jobs WHERE id = 1 FOR UPDATE"),
            pytest.raises(StoreUnavailable),
        ):
            store.apply([a_job(1, workload=b"new")], [])
        apply_at_last(store, [a_job(1, workload=b"new")], [])
        assert store.load([1]) == [a_job(1, workload=b"new")]


@contextmanager
def holding(server: Own, database: str, statement: str) -> Iterator[None]:
    """A session that runs a statement in a transaction, which stays open meanwhile."""
    session: Any
    if isinstance(server, PrivatePostgres):
        session = psycopg.connect(host="127.0.0.1", port=server.port, user=server.user, dbname=database)
    else:
        session = pymysql.connect(host="127.0.0.1", port=server.port, user=server.user, database=database)
    try:
        session.cursor().execute(statement)
        yield
    finally:
        session.close()


def test_postgres_that_does_not_sync(own_postgres: PrivatePostgres) -> None:
    """A server that never waits for its disk is refused, unless a loss is taken for granted."""
    own_postgres.stop()
    own_postgres.start("--fsync=off")
    try:
        with own_postgres.database() as name:
            url = own_postgres.url(name)
            for call in (a_store(url).check, a_store(url).connect):
                with pytest.raises(StoreConfigError, match="set fsync = on"):
                    call()
            with opened(f"{url}?sync=interval=1") as store:
                store.apply([a_job(1)], [])
    finally:
        own_postgres.stop()
        own_postgres.start()


def test_mariadb_that_does_not_sync(own_mariadb: PrivateMariaDB) -> None:
    """A server that does not wait for its disk is refused, unless a loss is taken for granted."""
    with own_mariadb.database() as name:
        url = own_mariadb.url(name)
        own_mariadb.run("SET GLOBAL innodb_flush_log_at_trx_commit = 2")
        try:
            for call in (a_store(url).check, a_store(url).connect):
                with pytest.raises(StoreConfigError, match="set innodb_flush_log_at_trx_commit = 1 in"):
                    call()
            with opened(f"{url}?sync=interval=1") as store:
                store.apply([a_job(1)], [])
        finally:
            own_mariadb.run("SET GLOBAL innodb_flush_log_at_trx_commit = 1")
        a_store(url).check()


def test_mariadb_binary_log_that_does_not_sync(own_mariadb: PrivateMariaDB) -> None:
    """A binary log that may lack the last commits is refused too, as recovery goes by it."""
    own_mariadb.stop()
    own_mariadb.start("--log-bin=binlog", "--sync-binlog=0")
    try:
        with own_mariadb.database() as name:
            with pytest.raises(StoreConfigError, match="set sync_binlog = 1 in"):
                a_store(own_mariadb.url(name)).check()
            own_mariadb.run("SET GLOBAL sync_binlog = 1")
            a_store(own_mariadb.url(name)).check()
    finally:
        own_mariadb.stop()
        own_mariadb.start()


def test_nothing_is_there(server: Own) -> None:
    """Where no server listens, check says so at once, and so does connect."""
    store = a_store(server.url("nothing", port=free_port()))
    for call in (store.check, store.connect):
        with pytest.raises(StoreError, match=r"nothing on 127\.0\.0\.1"):
            call()


def fill(store: SqlStore) -> None:
    """Saves more than 50 MB."""
    for number in range(2, 60):
        store.apply([a_job(number, workload=b"x" * 1_000_000)], [])


def test_mariadb_whose_disk_is_full(own_mariadb: PrivateMariaDB) -> None:
    """Without room for more a save is an error for later, and what is there can be read."""
    with own_mariadb.database() as name:
        own_mariadb.stop()
        own_mariadb.start(
            "--innodb-file-per-table=0", "--innodb-data-file-path=ibdata1:12M:autoextend:max:20M"
        )
        try:
            with opened(own_mariadb.url(name)) as store:
                store.apply([a_job(1)], [])
                with pytest.raises(StoreUnavailable, match=r"is full.*make room on its disk"):
                    fill(store)
                assert store.load([1]) == [a_job(1)]
        finally:
            own_mariadb.stop()
            own_mariadb.start()
