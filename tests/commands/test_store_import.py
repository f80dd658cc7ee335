"""``gearman-store import``: queues that Debian's gearmand filled run on our server."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import attrs
import pytest

from gearman_twisted.store.contract import StoredJob
from gearman_twisted.wire.constants import PacketType
from tests.commands.test_store import BINARY, assert_refused, gearman_store, jobs_in, put
from tests.kit.databases import MariaDB, Postgres
from tests.kit.gearmand import Gearmand
from tests.kit.redis_server import RedisServer
from tests.kit.servers import PATIENCE, TwistdGearman, WirePeer, run

# Each starts several programs and databases: more than `make test` has time for.
pytestmark = pytest.mark.soak


@attrs.frozen
class Queue:
    """A queue of gearmand.

    Attributes:
        options: with which gearmand uses it.
        url: by which it is imported.
        execute: changes it, in its own language.
    """

    options: tuple[str, ...]
    url: str
    execute: Callable[..., Any]


def sqlite_queue(directory: Path) -> Iterator[Queue]:
    path = directory / "queue.db"

    def execute(statement: str) -> Any:
        with closing(sqlite3.connect(path)) as file:
            rows = file.execute(statement).fetchall()
            file.commit()
            return rows

    yield Queue(("-q", "libsqlite3", f"--libsqlite3-db={path}"), f"sqlite:{path}", execute)


def postgres_queue(server: Postgres) -> Iterator[Queue]:
    with server.database() as name:
        info = f"host=127.0.0.1 port={server.port} user={server.user} dbname={name}"
        yield Queue(
            ("-q", "Postgres", f"--libpq-conninfo={info}"),
            server.url(name),
            partial(server.run, database=name),
        )


def mysql_queue(server: MariaDB) -> Iterator[Queue]:
    with server.database() as name:
        options = (f"--mysql-port={server.port}", f"--mysql-user={server.user}", f"--mysql-db={name}")
        yield Queue(
            ("-q", "MySQL", "--mysql-host=127.0.0.1", *options),
            server.url(name),
            partial(server.run, database=name),
        )


def redis_queue(server: RedisServer) -> Iterator[Queue]:
    prefix = f"import_{uuid4().hex}_[*]"

    def execute(command: str, key: str, *args: Any) -> Any:
        return server.execute(command, f"{prefix}-{key}", *args)

    place = ("--redis-server=127.0.0.1", f"--redis-port={server.port}", f"--redis-prefix={prefix}")
    yield Queue(("-q", "redis", *place), server.url(f"prefix={prefix}"), execute)


@pytest.fixture(params=["sqlite", "postgres", "mariadb", "redis"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Queue]:
    """A place for a queue of gearmand, of each kind in turn."""
    if request.param == "sqlite":
        yield from sqlite_queue(tmp_path)
    elif request.param == "postgres":
        yield from postgres_queue(request.getfixturevalue("postgres"))
    elif request.param == "mariadb":
        yield from mysql_queue(request.getfixturevalue("mariadb"))
    else:
        yield from redis_queue(request.getfixturevalue("safe_redis"))


@pytest.fixture
def sqlite_only(tmp_path: Path) -> Iterator[Queue]:
    """A place for a queue in SQLite."""
    yield from sqlite_queue(tmp_path)


@pytest.fixture
def redis_only(safe_redis: RedisServer) -> Iterator[Queue]:
    """A place for a queue in Redis."""
    yield from redis_queue(safe_redis)


def fill(queue: Queue, directory: Path, hand_in: Callable[[Gearmand], object]) -> None:
    """Has a gearmand of Debian take jobs, and ends it."""
    server = Gearmand(directory, *queue.options)
    try:
        hand_in(server)
        server.end()
    finally:
        server.close()


def gearman(server: Gearmand, data: bytes, *words: str) -> None:
    """Hands in a background job with Debian's tool; the data come from standard input."""
    subprocess.run(server.command("-b", *words), input=data, timeout=PATIENCE, check=True)


def work(server: TwistdGearman, function: str) -> bytes:
    """Does one job with Debian's tool, and returns its workload."""
    program = ["/usr/bin/gearman", "-h", "127.0.0.1", "-p", str(server.port), "-w", "-c", "1", "-f", function]
    return subprocess.run(program, capture_output=True, timeout=PATIENCE, check=True).stdout


def hand_in_all_kinds(server: Gearmand) -> None:
    """Hands in whatever Debian's tool can."""
    gearman(server, BINARY, "-f", "binary")
    gearman(server, b"", "-f", "empty", "-u", "nothing", "-s")
    gearman(server, b"x" * 1_000_000, "-f", "large", "-u", "one")
    gearman(server, "grün".encode(), "-f", "größe", "-u", "übermaß")
    for name in "low", "normal", "high":
        flags = {"low": ["-L"], "normal": [], "high": ["-I"]}[name]
        gearman(server, name.encode(), "-f", "by_priority", "-u", name, *flags)


def test_queue_is_imported_and_runs(queue: Queue, tmp_path: Path) -> None:
    """What Debian's gearmand had in its queue runs on our server, byte by byte and by priority."""
    fill(queue, tmp_path, hand_in_all_kinds)
    target = f"sqlite:{tmp_path / 'new.db'}"
    done = gearman_store("import", queue.url, target)
    assert done.returncode == 0, done.stderr
    assert b"imported 7 jobs" in done.stdout
    assert b"; 0 were there already; all are there\n" in done.stdout
    uniques = {job.function: job.unique for job in jobs_in(tmp_path / "new.db")}
    assert uniques[b"empty"] == b"nothing"
    assert uniques["größe".encode()] == "übermaß".encode()
    assert len(uniques[b"binary"]) == 36  # as libgearman makes them
    with TwistdGearman(tmp_path, f"--store={target}") as server:
        assert work(server, "binary") == BINARY
        assert work(server, "empty") == b""
        assert work(server, "large") == b"x" * 1_000_000
        assert work(server, "größe") == "grün".encode()
        assert [work(server, "by_priority") for _ in range(3)] == [b"high", b"normal", b"low"]
        with WirePeer(server.port) as peer:
            status = peer.text(b"status", b".\n")
        assert all(line.split(b"\t")[1:2] in ([b"0"], []) for line in status.splitlines())
        server.end()
    assert jobs_in(tmp_path / "new.db") == []


def test_import_is_done_once(queue: Queue, tmp_path: Path) -> None:
    """Importing twice brings no job twice, and what came to the queue later is added."""

    def hand_in(server: Gearmand) -> None:
        # With an empty workload in its SQLite file gearmand would not start again.
        for number in range(7):
            gearman(server, b"%d" % number, "-f", "f", "-u", str(number))

    fill(queue, tmp_path, hand_in)
    target = f"sqlite:{tmp_path / 'new.db'}"
    assert gearman_store("import", queue.url, target).returncode == 0
    first = jobs_in(tmp_path / "new.db")
    done = gearman_store("import", queue.url, target)
    assert b"imported 0 jobs (0 bytes)" in done.stdout
    assert b"; 7 were there already" in done.stdout
    assert jobs_in(tmp_path / "new.db") == first
    fill(queue, tmp_path, lambda server: gearman(server, b"new", "-f", "new", "-u", "new"))
    done = gearman_store("import", queue.url, target)
    assert done.returncode == 0
    *before, new = jobs_in(tmp_path / "new.db")
    assert (before, new[2:5]) == (first, (b"new", b"new", b"new"))


def test_dry_run_changes_nothing(queue: Queue, tmp_path: Path) -> None:
    """A dry run says what would be imported, and makes no file."""
    fill(queue, tmp_path, hand_in_all_kinds)
    target = tmp_path / "new.db"
    done = gearman_store("import", queue.url, f"sqlite:{target}", "--dry-run")
    assert done.returncode == 0
    assert b"would import 7 jobs (1.0 MB)" in done.stdout
    assert not target.exists()
    assert gearman_store("import", queue.url, f"sqlite:{target}").returncode == 0
    done = gearman_store("import", queue.url, f"sqlite:{target}", "--dry-run")
    assert b"would import 0 jobs (0 bytes)" in done.stdout
    assert b"; 7 were there already" in done.stdout


# gearmand keeps no scheduled jobs in Redis.
@pytest.mark.parametrize("queue", ["sqlite", "postgres", "mariadb"], indirect=True)
def test_scheduled_jobs_keep_their_time(queue: Queue, tmp_path: Path) -> None:
    """A job for a later time keeps it, also if that has passed by now."""

    def hand_in(server: Gearmand) -> None:
        with WirePeer(server.port) as peer:
            for epoch in (1_000_000_000, 2_000_000_000):
                peer.ask(PacketType.SUBMIT_JOB_EPOCH, b"f", b"%d" % epoch, b"%d" % epoch, b"data")

    fill(queue, tmp_path, hand_in)
    assert gearman_store("import", queue.url, f"sqlite:{tmp_path / 'new.db'}").returncode == 0
    times = {job.unique: job.run_at for job in jobs_in(tmp_path / "new.db")}
    assert times == {b"1000000000": 1_000_000_000, b"2000000000": 2_000_000_000}


# A SQLite file is ours or gearmand's.
@pytest.mark.parametrize("queue", ["postgres", "mariadb", "redis"], indirect=True)
def test_database_may_be_the_same(queue: Queue, tmp_path: Path) -> None:
    """The store may stand where gearmand's table or keys are, which stay as they are."""
    fill(queue, tmp_path, hand_in_all_kinds)
    for count in b"7", b"0":
        done = gearman_store("import", queue.url, queue.url)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"imported %b jobs" % count in done.stdout
    with TwistdGearman(tmp_path, f"--store={queue.url}") as server:
        assert work(server, "binary") == BINARY
        assert [work(server, "by_priority") for _ in range(3)] == [b"high", b"normal", b"low"]
    assert b"would import 7 jobs" in gearman_store("import", queue.url, "sqlite:new.db", "--dry-run").stdout


def test_order_is_kept(sqlite_only: Queue, tmp_path: Path) -> None:
    """Jobs of one priority run in the order in which gearmand took them, also over several batches."""

    def hand_in(server: Gearmand) -> None:
        with WirePeer(server.port) as peer:
            for number in range(250):
                peer.ask(PacketType.SUBMIT_JOB_BG, b"f", b"%d" % (number * 7 % 250), b"%d" % number)

    fill(sqlite_only, tmp_path, hand_in)
    target = f"sqlite:{tmp_path / 'new.db'}"
    assert gearman_store("import", sqlite_only.url, target, "--batch", "100").returncode == 0
    with TwistdGearman(tmp_path, f"--store={target}") as server, WirePeer(server.port) as peer:
        assert list(peer.drain(b"f")) == [b"%d" % number for number in range(250)]
        # Its own jobs get ids behind those that were imported.
        peer.ask(PacketType.SUBMIT_JOB_BG, b"f", b"", b"own")
        assert list(peer.drain(b"f")) == [b"own"]


def test_jobs_of_our_own_stay(sqlite_only: Queue, tmp_path: Path) -> None:
    """What is in the target stays there, and is no hindrance though its function and unique are the same."""
    fill(sqlite_only, tmp_path, hand_in_all_kinds)
    own = StoredJob((1 << 62) + 5, b"H:here:5", b"large", b"one", b"own", 1)
    target = put(tmp_path / "new.db", [own])
    assert gearman_store("import", sqlite_only.url, target).returncode == 0
    first, *others = jobs_in(tmp_path / "new.db")
    assert first == own
    assert len(others) == 7


def test_import_of_a_job_that_is_too_large(
    sqlite_only: Queue, own_redis: RedisServer, tmp_path: Path
) -> None:
    """A job that the target does not take is named, the others are imported, and the exit status is 1."""
    own_redis.start(proto_max_bulk_len="2mb")
    fill(sqlite_only, tmp_path, hand_in_all_kinds)
    sqlite_only.execute("INSERT INTO gearman_queue SELECT 'big', 'f', 1, cast(zeroblob(2097152) AS TEXT), 0")
    done = gearman_store("import", sqlite_only.url, own_redis.url())
    assert done.returncode == 1
    assert b"not imported: the job of function b'f', unique b'big': its workload has 2,097,152" in done.stderr
    assert b"imported 7 jobs" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_import_that_was_stopped_goes_on(sqlite_only: Queue, tmp_path: Path, number: int) -> None:
    """An import that was stopped has kept what was saved; the next one brings the rest, and nothing twice."""
    fill(sqlite_only, tmp_path, hand_in_all_kinds)
    sqlite_only.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000) "
        "INSERT INTO gearman_queue SELECT 'u' || i, 'many', 1, 'data' || i, 0 FROM n"
    )
    target = put(tmp_path / "new.db", [])
    words = [
        sys.executable,
        "-m",
        "gearman_twisted.commands.store.__main__",
        "import",
        sqlite_only.url,
        target,
    ]
    with (
        subprocess.Popen(
            [*words, "--batch", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process,
        closing(sqlite3.connect(tmp_path / "new.db", timeout=PATIENCE)) as file,
    ):
        while file.execute("SELECT count(*) FROM gearman_jobs").fetchone() < (20,):
            assert process.poll() is None
        process.send_signal(number)
        process.wait(PATIENCE)
    there = len(jobs_in(tmp_path / "new.db"))
    assert 20 <= there < 4007
    done = run(*words)
    assert f"imported {4007 - there:,} jobs".encode() in done.stdout
    assert f"; {there:,} were there already".encode() in done.stdout
    jobs = jobs_in(tmp_path / "new.db")
    assert len(jobs) == len({(job.function, job.unique) for job in jobs}) == 4007
    assert [job.workload for job in jobs[7:]] == [b"data%d" % number for number in range(1, 4001)]


def test_import_stops_in_good_order(queue: Queue, tmp_path: Path) -> None:
    """An import of any kind that is interrupted ends with a line, and the next one brings the rest."""
    fill(queue, tmp_path, lambda server: gearman(server, b"data0", "-f", "f", "-u", "0"))
    numbers = {
        "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000) "
        "SELECT i FROM n",
        "postgresql": "SELECT i FROM generate_series(1, 1000) AS n(i)",
        "mysql": "SELECT seq AS i FROM seq_1_to_1000",
    }.get(queue.url.partition(":")[0])
    if numbers is None:
        for number in range(1, 1001):
            queue.execute("HSET", f"f-{number}", "data", f"data{number}", "priority", "1")
    else:
        table = "queue" if queue.url.startswith("postgresql:") else "gearman_queue"
        data = {"p": "convert_to('data' || i, 'UTF8')", "m": "concat('data', i)", "s": "'data' || i"}[
            queue.url[0]
        ]
        queue.execute(f"INSERT INTO {table} SELECT i, 'f', 1, {data}, 0 FROM ({numbers}) AS numbers")
    target = put(tmp_path / "new.db", [])
    words = [sys.executable, "-m", "gearman_twisted.commands.store", "import", queue.url, target]
    with (
        subprocess.Popen([*words, "--batch", "1"], stderr=subprocess.PIPE) as process,
        closing(sqlite3.connect(tmp_path / "new.db", timeout=PATIENCE)) as file,
    ):
        while file.execute("SELECT count(*) FROM gearman_jobs").fetchone() < (20,):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
    *_, last = said.splitlines()
    assert (process.returncode, last) == (1, b"gearman-store: stopped; run the same command again to go on")
    assert b"Traceback" not in said
    assert b"ignored" not in said
    assert run(*words).returncode == 0
    found = sorted(int(job.workload.removeprefix(b"data")) for job in jobs_in(tmp_path / "new.db"))
    assert found == list(range(1001))


def test_running_gearmand_is_noticed(queue: Queue, tmp_path: Path) -> None:
    """A gearmand that is on the queue keeps its file from being imported; of a database it is a warning."""
    server = Gearmand(tmp_path, *queue.options)
    try:
        gearman(server, b"data", "-f", "f", "-u", "u")
        target = tmp_path / "new.db"
        done = gearman_store("import", queue.url, f"sqlite:{target}")
        if queue.url.startswith("sqlite:"):
            assert_refused(done, f"is open in process {server.process.pid} (gearmand)")
            assert not target.exists()
        else:
            assert done.returncode == 0
            assert b"other connections use the " in done.stderr
            assert done.stderr.endswith(b"; none may be a gearmand\n")
    finally:
        server.close()


def test_rows_that_are_no_jobs_are_named(sqlite_only: Queue, tmp_path: Path) -> None:
    """Whatever cannot be a job is named with its reason and left where it is; all else is imported."""
    fill(sqlite_only, tmp_path, hand_in_all_kinds)
    sqlite_only.execute(
        "INSERT INTO gearman_queue VALUES"
        " ('a', 'f', 7, 'x', 0), ('b', 'f', 'high', 'x', 0), ('c', 'f', 1, 'x', 'soon'),"
        " ('d', NULL, 1, 'x', 0),"
        f" ('{'e' * 65}', 'f', 1, 'x', 0), ('g', '{'f' * 8192}', 1, 'x', 0)"
    )
    sqlite_only.execute(
        "INSERT INTO gearman_queue VALUES"
        " ('null', 'good', NULL, NULL, NULL), (NULL, 'good', 2, 'text', -1),"
        " ('', 'good', 0, x'00ff', 4294967296000), ('number', 'f', 1, 5, 0)"
    )
    done = gearman_store("import", sqlite_only.url, f"sqlite:{tmp_path / 'new.db'}")
    assert done.returncode == 1
    said = done.stderr.decode().splitlines()
    assert len(said) == 7
    for line, reason in zip(
        said,
        [
            "priority is 7",
            "priority is b'high'",
            "time is b'soon'",
            "names no function",
            "at most 64",
            "at most 8191",
            "one of them is not",
        ],
        strict=True,
    ):
        assert line.startswith("gearman-store: not imported: gearman_queue: function_name ")
        assert reason in line
    assert b"imported 10 jobs" in done.stdout
    good = [job[3:7] for job in jobs_in(tmp_path / "new.db") if job.function == b"good"]
    assert good == [(b"null", b"", 1, 0), (b"", b"text", 2, 0), (b"", b"\0\xff", 0, 4294967296000)]


def test_old_table_without_times(tmp_path: Path) -> None:
    """The table of an old gearmand, with no column for a time, is imported too; so is one of another name."""
    with closing(sqlite3.connect(tmp_path / "old.db")) as file:
        file.execute(
            'CREATE TABLE "my ""queue""" (unique_key TEXT, function_name TEXT, priority INTEGER, data BLOB)'
        )
        file.execute("INSERT INTO \"my \"\"queue\"\"\" VALUES ('u', 'f', 2, 'data')")
        file.commit()
    done = gearman_store(
        "import", f'sqlite:{tmp_path / "old.db"}?table=my%20"queue"', f"sqlite:{tmp_path / 'new.db'}"
    )
    assert done.returncode == 0, done.stderr
    assert [job[2:7] for job in jobs_in(tmp_path / "new.db")] == [(b"f", b"u", b"data", 2, 0)]


def test_jobs_without_unique_of_two_queues_are_two(tmp_path: Path) -> None:
    """Equal jobs of two queues are two jobs if they have no unique, and one if they have."""
    for name in "one", "two":
        with closing(sqlite3.connect(tmp_path / f"{name}.db")) as file:
            file.execute(
                "CREATE TABLE gearman_queue "
                "(unique_key TEXT, function_name TEXT, priority INTEGER, data BLOB, when_to_run INTEGER)"
            )
            file.execute("INSERT INTO gearman_queue VALUES ('', 'f', 1, 'x', 0), ('u', 'f', 1, 'x', 0)")
            file.execute("INSERT INTO gearman_queue VALUES ('v', 'f', 1, ?, 0)", (name,))
            file.commit()
        done = gearman_store("import", f"sqlite:{tmp_path / f'{name}.db'}", f"sqlite:{tmp_path / 'new.db'}")
        assert done.returncode == 0
    found = sorted(job[3:5] for job in jobs_in(tmp_path / "new.db"))
    assert found == [(b"", b"x"), (b"", b"x"), (b"u", b"x"), (b"v", b"one"), (b"v", b"two")]


def test_no_queue_to_import(queue: Queue, tmp_path: Path) -> None:
    """Where gearmand has left no table, or the file or server is not there, it is said in a line."""
    target = f"sqlite:{tmp_path / 'new.db'}"
    if queue.url.startswith("redis:"):
        assert_refused(gearman_store("import", "redis://127.0.0.1:1/0", target), "127.0.0.1:1/0", "refused")
        return
    assert_refused(gearman_store("import", queue.url, target), "queue")
    assert not (tmp_path / "new.db").exists()


def test_table_of_something_else(sqlite_only: Queue, tmp_path: Path) -> None:
    """A table with other columns is refused, as is a file that is no database."""
    sqlite_only.execute("CREATE TABLE gearman_queue (a, b)")
    target = f"sqlite:{tmp_path / 'new.db'}"
    assert_refused(gearman_store("import", sqlite_only.url, target), "has not got the columns of gearmand")
    assert_refused(gearman_store("import", f"{sqlite_only.url}?table=b", target), "there is no table b")
    (tmp_path / "text").write_text("no database at all" * 100)
    assert_refused(gearman_store("import", f"sqlite:{tmp_path / 'text'}", target), "not a database")


def test_password_of_a_database(mariadb: MariaDB, tmp_path: Path) -> None:
    """A password comes from the environment or a file; a wrong one is one line that does not repeat it."""
    user = f"u{uuid4().hex[:12]}"
    for queue in mysql_queue(mariadb):
        fill(queue, tmp_path, hand_in_all_kinds)
        queue.execute(f"CREATE USER {user}@'%' IDENTIFIED BY 'open sesame'")
        try:
            queue.execute(f"GRANT SELECT ON *.* TO {user}@'%'")
            url = queue.url.replace("root@", f"{user}@")
            words = [sys.executable, "-m", "gearman_twisted.commands.store", "import"]
            target = f"sqlite:{tmp_path / 'new.db'}"
            done = run(*words, f"{url}?password_env=WORD", target, "--dry-run", WORD="open sesame")
            assert b"would import 7 jobs" in done.stdout
            (tmp_path / "password").write_text("open sesame\n")
            done = run(*words, f"{url}?password_file={tmp_path / 'password'}", target, "--dry-run")
            assert b"would import 7 jobs" in done.stdout
            done = run(*words, f"{url}?password_env=WORD", target, WORD="close sesame")
            assert_refused(done, "Access denied")
            assert b"sesame" not in done.stderr
        finally:
            queue.execute(f"DROP USER {user}@'%'")


def test_redis_keys_that_can_be_read_two_ways(redis_only: Queue, tmp_path: Path) -> None:
    """Where a key does not tell function from unique nothing is guessed, until the function is given."""

    def hand_in(server: Gearmand) -> None:
        gearman(server, BINARY, "-f", "with-hyphen", "-u", "one-two")
        gearman(server, b"certain", "-f", "plain", "-u", "unique")
        gearman(server, b"uuid", "-f", "generated")

    fill(redis_only, tmp_path, hand_in)
    target = f"sqlite:{tmp_path / 'new.db'}"
    done = gearman_store("import", redis_only.url, target)
    assert (done.returncode, done.stderr.count(b"not imported")) == (1, 1)
    assert b"-with-hyphen-one-two" in done.stderr
    assert b"name the function with --function" in done.stderr
    assert b"imported 2 jobs" in done.stdout
    done = gearman_store("import", redis_only.url, target, "--function", "other", "--function", "with-hyphen")
    assert done.returncode == 0
    assert b"imported 1 job (768 bytes)" in done.stdout
    found = {job.function: (job.unique, job.workload) for job in jobs_in(tmp_path / "new.db")}
    assert found[b"with-hyphen"] == (b"one-two", BINARY)
    assert found[b"plain"] == (b"unique", b"certain")
    assert found[b"generated"][1] == b"uuid"


def test_redis_values_of_old_and_new_gearmands(redis_only: Queue, tmp_path: Path) -> None:
    """Plain strings of 1.1.15 and hashes that name function and unique are read; what is neither is named."""
    redis_only.execute("SET", "old-unique", b"\0plain")
    redis_only.execute("HSET", "a-b-c-d", "data", "new", "priority", "2", "function", "a-b", "unique", "c-d")
    redis_only.execute("HSET", "-", "data", "", "priority", "0", "function", "no-unique", "unique", "")
    redis_only.execute("HSET", "foreign-hash", "field", "value")
    redis_only.execute("RPUSH", "foreign-list", "value")
    redis_only.execute("SET", "nothing", "value")
    done = gearman_store("import", redis_only.url, f"sqlite:{tmp_path / 'new.db'}")
    assert done.returncode == 1
    assert done.stderr.count(b"not imported") == 3
    for key in b"foreign-hash", b"foreign-list", b"nothing":
        assert key in done.stderr
    assert sorted(job[2:6] for job in jobs_in(tmp_path / "new.db")) == [
        (b"a-b", b"c-d", b"new", 2),
        (b"no-unique", b"", b"", 0),
        (b"old", b"unique", b"\0plain", 1),
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may read what others must not")
def test_queue_that_may_only_be_read(sqlite_only: Queue, tmp_path: Path) -> None:
    """A file in which nothing may be written is imported."""
    fill(sqlite_only, tmp_path, hand_in_all_kinds)
    (tmp_path / "queue.db").chmod(0o400)
    assert gearman_store("import", sqlite_only.url, f"sqlite:{tmp_path / 'new.db'}").returncode == 0


def test_queue_of_a_killed_gearmand(sqlite_only: Queue, tmp_path: Path) -> None:
    """A gearmand that was killed while it wrote may leave a journal; what it promised is imported."""
    server = Gearmand(tmp_path, *sqlite_only.options)
    try:
        promised = []
        with WirePeer(server.port) as peer:
            for number in range(200):
                peer.ask(PacketType.SUBMIT_JOB_BG, b"f", b"%d" % number, b"%d" % number)
                promised.append(b"%d" % number)
            for number in range(200, 400):
                peer.send(PacketType.SUBMIT_JOB_BG, b"f", b"%d" % number, b"%d" % number)
            server.process.kill()
            server.process.wait()
    finally:
        server.close()
    assert gearman_store("import", sqlite_only.url, f"sqlite:{tmp_path / 'new.db'}").returncode == 0
    found = [job.workload for job in jobs_in(tmp_path / "new.db")]
    assert found[:200] == promised
