"""A server that is killed while its commit waits for a standby is no obstacle to its successor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from gearman_twisted.wire.constants import PacketType
from tests.kit.databases import PrivateMariaDB, PrivatePostgres, poll
from tests.kit.servers import TwistdGearman, WirePeer, wait_until


@attrs.frozen
class MissingStandby:
    """A database whose commits wait for a standby that is away, from a moment on.

    Attributes:
        url: of the store.
        leave: takes the standby away.
        is_waiting: whether a commit waits for it.
        come_back: ends the waits.
    """

    url: str
    leave: Callable[[], object]
    is_waiting: Callable[[], bool]
    come_back: Callable[[], object]


@pytest.fixture
def postgres_standby(own_postgres: PrivatePostgres) -> Iterator[MissingStandby]:
    def wait_for(names: str) -> None:
        own_postgres.run(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'", "SELECT pg_reload_conf()")
        assert poll(lambda: own_postgres.run("SHOW synchronous_standby_names") == [(names,)])

    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    with own_postgres.database() as name:
        try:
            yield MissingStandby(
                own_postgres.url(name),
                lambda: wait_for("nobody"),
                lambda: own_postgres.run(waits) == [(1,)],
                lambda: wait_for(""),
            )
        finally:
            wait_for("")


@pytest.fixture
def mariadb_standby() -> Iterator[MissingStandby]:
    own = PrivateMariaDB()
    waits = (
        "SELECT count(*) FROM information_schema.processlist WHERE state LIKE 'Waiting for semi-sync ACK%'"
    )
    try:
        own.start("--log-bin=bin", "--server-id=1", "--sync-binlog=1")
        own.run("CREATE DATABASE jobs", "SET GLOBAL rpl_semi_sync_master_timeout = 3600000")
        yield MissingStandby(
            own.url("jobs"),
            lambda: own.run("SET GLOBAL rpl_semi_sync_master_enabled = 1"),
            lambda: own.run(waits) == [(1,)],
            lambda: own.run("SET GLOBAL rpl_semi_sync_master_enabled = 0"),
        )
    finally:
        own.close()


@pytest.fixture(params=["postgres_standby", "mariadb_standby"])
def standby(request: pytest.FixtureRequest) -> MissingStandby:
    """A database of each kind."""
    found: MissingStandby = request.getfixturevalue(request.param)
    return found


def test_server_killed_in_a_commit(standby: MissingStandby, tmp_path: Path) -> None:
    """Its session keeps the lock for ever; its successor ends it, says so, and has the job of that commit."""
    with TwistdGearman(tmp_path, f"--store={standby.url}") as server, WirePeer(server.port) as peer:
        standby.leave()
        peer.send(PacketType.SUBMIT_JOB_BG, b"f", b"", b"work")
        wait_until(standby.is_waiting)
        dead = server.process.pid
        server.process.kill()
        server.process.wait()
    with TwistdGearman(tmp_path, f"--store={standby.url}") as server:
        log = server.log.read_text()
        assert "ended session " in log
        assert f"which had the lock; its server, process {dead} on " in log
        standby.come_back()
        with WirePeer(server.port) as peer:
            assert list(peer.drain(b"f")) == [b"work"]
        assert server.end() == 0
