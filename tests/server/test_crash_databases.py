"""Nothing that was acknowledged is lost when the database behind a server is killed, over and over."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.databases import PrivateMariaDB, PrivatePostgres
from tests.kit.load import Ledger, Load, drain, jobs_left
from tests.kit.redis_server import RedisServer
from tests.kit.servers import TwistdGearman, WirePeer

Database = PrivatePostgres | PrivateMariaDB | RedisServer
MAKERS: list[Callable[[], Database]] = [PrivatePostgres, PrivateMariaDB, RedisServer]

# A kill comes at most so many seconds after jobs were acknowledged again.
MAX_LIFE = 0.5
# The server starts to acknowledge again some seconds after the database is back.
BACK_TIMEOUT = 60.0


@pytest.fixture(params=MAKERS, ids=["postgres", "mariadb", "redis"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database server of our own, of each kind."""
    own: Database = request.param()
    try:
        own.start()
        yield own
    finally:
        own.close()


def url_of(database: Database, stack: contextlib.ExitStack) -> str:
    """The URL of an empty store in it."""
    if isinstance(database, RedisServer):
        return database.url()
    return database.url(stack.enter_context(database.database()))


def kill(database: Database) -> None:
    """Kills a database with all its processes, at one moment."""
    process = database._process
    assert process is not None
    # Else PostgreSQL's postmaster would see its children end, and the last of them would outlive it.
    process.send_signal(signal.SIGSTOP)
    for child in children(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    database.kill()


def children(parent: int) -> list[int]:
    """The processes that a process has started."""
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(word) for word in found.split()]


def campaign(database: Database, directory: Path, kills: int, seed: int, *options: str) -> Ledger:
    """Kills a database so many times under a server with a load; returns what was promised and what ran.

    The server stays, and so do all connections to it, and no job runs twice. In the end it is killed too:
    what nobody was there to do until then comes from the database alone.
    """
    chance = random.Random(seed)
    ledger = Ledger()
    directory.mkdir()
    with contextlib.ExitStack() as stack:
        store = f"--store={url_of(database, stack)}"
        words = (store, "--save-timeout=600", *options)
        with (
            TwistdGearman(directory, *words) as server,
            Load(server.port, ledger, chance, submits_later=True) as load,
        ):
            for _ in range(kills):
                before = len(ledger.promises)
                assert ledger.await_(lambda: len(ledger.promises) > before, BACK_TIMEOUT)  # noqa: B023
                # No condition is waited for here: any moment is one to be killed at.
                time.sleep(chance.uniform(0, MAX_LIFE))
                kill(database)
                database.start()
            before = len(ledger.promises)
            assert ledger.await_(lambda: len(ledger.promises) > before, BACK_TIMEOUT)
            load.stop_clients()
            assert ledger.await_(lambda: ledger.waiting <= 0)
            assert ledger.refused == 0
            assert ledger.repeats == 0
            load.end()
            server.end(signal.SIGKILL)
        with TwistdGearman(directory, *words) as server:
            drain(server.port, ledger, chance)
            assert server.end() == 0
        with TwistdGearman(directory, *words) as server, WirePeer(server.port) as peer:
            assert jobs_left(peer) == 0, "finished jobs came back"
            assert server.end() == 0
    return ledger


def test_a_database_that_is_killed(database: Database, tmp_path: Path) -> None:
    """What was acknowledged under load before the database was killed runs, and all connections stay."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")  # noqa: T201
    ledger = campaign(database, tmp_path / "server", 2, seed)
    assert ledger.check() == []


@pytest.mark.soak
def test_20_kills_under_load(database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same with 20 kills; the variable CRASH_SEED repeats the load and the moments of an earlier run."""
    seed = int(os.environ.get("CRASH_SEED") or secrets.randbits(32))
    start = time.monotonic()
    ledger = campaign(database, tmp_path / "server", 20, seed)
    with capsys.disabled():
        print(  # noqa: T201
            f"\n    CRASH_SEED={seed}, 20 kills: {ledger}; {time.monotonic() - start:.0f} s", end=""
        )
    assert ledger.check() == []
    assert len(ledger.promises) > 1_000
