"""``gearmand -q``: the options of the original lead to our stores, in real databases."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from getpass import getuser
from pathlib import Path
from uuid import uuid4

import pytest

from gearman_twisted.commands.gearmand.options import GearmandOptions, parse
from gearman_twisted.commands.gearmand.stores import PASSWORD_VARIABLE
from gearman_twisted.wire.constants import PacketType
from tests.commands.test_gearmand import Foreground, gearmand
from tests.commands.test_store import BINARY, GEARMAN_STORE
from tests.kit.databases import MariaDB, Postgres
from tests.kit.gearmand import Gearmand
from tests.kit.redis_server import RedisServer
from tests.kit.servers import PATIENCE, WirePeer, run

SECRET = "open sésame&?"


def parsed(*words: str, **environment: str) -> GearmandOptions:
    """The options, whatever the machine has in /etc."""
    return parse(["--config-file=", *words], environment)


def mysql(*words: str, **environment: str) -> str:
    """Return the URL of -q mysql."""
    return parsed(
        "-q", "mysql", "--mysql-db=d", *words, MYSQL_UNIX_PORT="/no/socket", **environment
    ).store_url


def postgres_of(conninfo: str, **environment: str) -> str:
    """The URL of -q postgres."""
    return parsed("-q", "Postgres", f"--libpq-conninfo={conninfo}", **environment).store_url


def test_mysql_options() -> None:
    """Host, port, user and database of -q mysql make the URL of a store."""
    assert mysql() == "mysql://localhost/d"
    assert mysql("--mysql-host=db", "--mysql-port=3307", "--mysql-user=me") == "mysql://me@db:3307/d"
    assert mysql("--mysql-host=::1", "--mysql-user=a@b:c") == "mysql://a%40b%3Ac@[::1]/d"
    assert parsed("-q", "mysql", "--mysql-host=db", "--mysql-db=a/b?c").store_url == "mysql://db/a%2Fb%3Fc"


def test_mysql_socket(tmp_path: Path) -> None:
    """The host localhost is MySQL's socket, if there is one, as for the original."""
    socket = tmp_path / "my.sock"
    socket.touch()
    words = ("-q", "mysql", "--mysql-db=d", "--mysql-user=me", "--mysql-port=3306")
    for host in [], ["--mysql-host=localhost"]:
        assert (
            parsed(*words, *host, MYSQL_UNIX_PORT=str(socket)).store_url
            == f"mysql://me@/d?unix_socket={socket}"
        )
    assert parsed(*words, "--mysql-host=127.0.0.1").store_url == "mysql://me@127.0.0.1:3306/d"


def test_redis_options() -> None:
    """Host, port and prefix of -q redis make the URL of a store, in the database that gearmand uses."""
    assert parsed("-q", "Redis").store_url == "redis://127.0.0.1/0"
    place = ("--redis-server=db", "--redis-port=6380")
    assert parsed("-q", "redis", *place, "--redis-prefix=a&b").store_url == "redis://db:6380/0?prefix=a%26b"
    options = parsed("-q", "redis", "--redis-password", SECRET)
    assert options.queue.password == SECRET
    assert options.store_url == f"redis://127.0.0.1/0?password_env={PASSWORD_VARIABLE}"


def test_postgres_options() -> None:
    """What libpq takes makes the URL of a store, also from its environment and its own URLs."""
    me = getuser()
    assert postgres_of("host=db user=me dbname=d") == "postgresql://me@db/d"
    assert postgres_of("host=db port=5433 user=me") == "postgresql://me@db:5433/me"
    assert postgres_of("") == f"postgresql://{me}@/{me}"
    assert postgres_of("", PGUSER="u", PGDATABASE="d") == "postgresql://u@/d"
    assert postgres_of("host=a,b port=1,2 user=me dbname=d") == "postgresql://me@a:1,b:2/d"
    assert postgres_of("host=a,b port=1 user=me dbname=d") == "postgresql://me@a:1,b:1/d"
    assert postgres_of("host=/run/pg user=me dbname=d") == "postgresql://me@/d?host=/run/pg"
    assert (
        postgres_of("postgresql://me@db/d?sslmode=verify-full&connect_timeout=9")
        == "postgresql://me@db/d?sslmode=verify-full&connect_timeout=9"
    )


def test_password_is_not_in_the_url() -> None:
    """A password is kept out of the URL, for the environment."""
    url = f"postgresql://me@db/d?password_env={PASSWORD_VARIABLE}"
    for options in (
        parsed("-q", "postgres", f"--libpq-conninfo=host=db user=me dbname=d password='{SECRET}'"),
        parsed("-q", "postgres", "--libpq-conninfo=postgresql://me:open%20s%C3%A9same%26%3F@db/d"),
    ):
        assert (options.store_url, options.queue.password) == (url, SECRET)
    options = parsed("-q", "mysql", "--mysql-host=db", "--mysql-db=d", "--mysql-password", SECRET)
    assert options.queue.password == SECRET
    assert options.store_url == f"mysql://db/d?password_env={PASSWORD_VARIABLE}"
    assert (
        parsed("-q", "mysql", "--mysql-host=db", "--mysql-db=d", "--mysql-password=").queue.password is None
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-q", "mysql"], "--mysql-db=NAME"),
        (["-q", "mysql", "--mysql-db=d", "--mysql-port=many"], "--mysql-port"),
        (["-q", "postgres", "--libpq-conninfo=password=secret host"], "--libpq-conninfo is not understood"),
        (["-q", "postgres", "--libpq-conninfo=service=jobs"], "service is not taken"),
        (["-q", "postgres", "--libpq-conninfo=host=a,b port=1,2,3"], "one port, or as many as hosts"),
    ],
)
def test_nonsense_is_refused(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What our stores cannot do is one line, which repeats no password."""
    with pytest.raises(SystemExit) as ended:
        parsed(*words)
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (1, 1)
    assert says in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-q", "mysql", "--mysql-db=d", "--mysql-table=t"], "--mysql-table has no effect"),
        (["-q", "postgres", "--libpq-table=t"], "--libpq-table has no effect"),
        (
            ["-q", "postgres", "--libpq-conninfo=application_name=gearmand"],
            "application_name in --libpq-conninfo has no effect",
        ),
        (["-q", "mysql", "--mysql-db=d", "--libpq-conninfo=host=x"], "--libpq-conninfo has no effect"),
    ],
)
def test_what_has_no_effect_is_said(words: list[str], says: str) -> None:
    """An option that our store does not need makes one note."""
    (note,) = parsed(*words).notes
    assert note.startswith(says)


@pytest.fixture
def postgres_words(postgres: Postgres) -> Iterator[list[str]]:
    """The options of the original for an empty database of PostgreSQL."""
    with postgres.database() as name:
        info = f"host=127.0.0.1 port={postgres.port} user={postgres.user} dbname={name} password=secret"
        yield ["-q", "Postgres", f"--libpq-conninfo={info}"]


@pytest.fixture
def mysql_words(mariadb: MariaDB) -> Iterator[list[str]]:
    """The options of the original for an empty database of MariaDB, as a user with a password."""
    user = f"u{uuid4().hex[:12]}"
    with mariadb.database() as name:
        mariadb.run(f"CREATE USER {user}@'%' IDENTIFIED BY 'secret'", f"GRANT ALL ON {name}.* TO {user}@'%'")
        try:
            place = ["--mysql-host=127.0.0.1", f"--mysql-port={mariadb.port}", f"--mysql-db={name}"]
            yield ["-q", "mysql", *place, f"--mysql-user={user}", "--mysql-password=secret"]
        finally:
            mariadb.run(f"DROP USER {user}@'%'")


@pytest.fixture
def redis_words(own_redis: RedisServer) -> list[str]:
    """The options of the original for an empty Redis server that wants a password."""
    own_redis.start()
    own_redis.configure(requirepass="secret")
    place = ["--redis-server=127.0.0.1", f"--redis-port={own_redis.port}", "--redis-prefix=mine"]
    return ["-q", "redis", *place, "--redis-password=secret"]


@pytest.fixture(params=["postgres_words", "mysql_words", "redis_words"])
def words(request: pytest.FixtureRequest) -> list[str]:
    """The options of the original for an empty database, of each kind in turn."""
    found: list[str] = request.getfixturevalue(request.param)
    return found


def test_jobs_survive(words: list[str], tmp_path: Path) -> None:
    """An acknowledged background job is there after a restart; no password is printed or logged."""
    with Foreground(tmp_path, *words) as server, WirePeer(server.port) as peer:
        assert peer.ask(PacketType.SUBMIT_JOB_BG, b"f", b"", BINARY) is not None
        assert server.end() == 0
        assert "secret" not in server.banner + server.printed
    with Foreground(tmp_path, *words) as server, WirePeer(server.port) as peer:
        assert list(peer.drain(b"f")) == [BINARY]


def test_password_from_the_config_file(mysql_words: list[str], tmp_path: Path) -> None:
    """The config file may have the password, so that no command line shows it."""
    config = tmp_path / "gearmand.conf"
    config.write_text("\n".join(mysql_words))
    for answers in [], [b"kept"]:
        with Foreground(tmp_path, f"--config-file={config}") as server, WirePeer(server.port) as peer:
            assert list(peer.drain(b"f")) == answers
            assert peer.ask(PacketType.SUBMIT_JOB_BG, b"f", b"", b"kept") is not None
            assert server.end() == 0


def test_wrong_password_is_one_line(mysql_words: list[str], tmp_path: Path) -> None:
    """A database that lets nobody in keeps it from starting, without the password being repeated."""
    ended = gearmand(*mysql_words[:-1], "--mysql-password=wrong", cwd=tmp_path)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "Access denied" in ended.stderr
    assert "wrong" not in ended.stderr


@pytest.mark.soak
def test_jobs_of_the_original_are_brought_over(words: list[str], tmp_path: Path) -> None:
    """Jobs that the original left are not passed over in silence: what is said brings them, and they run."""
    original = Gearmand(tmp_path, *words)
    try:
        submit = original.command("-b", "-f", "f", "-u", "u")
        subprocess.run(submit, input=BINARY, timeout=PATIENCE, check=True)
        original.end()
    finally:
        original.close()
    with Foreground(tmp_path, *words) as server, WirePeer(server.port) as peer:
        assert list(peer.drain(b"f")) == []
        assert server.end() == 0
    (said,) = [line for line in server.printed.splitlines() if line.startswith("gearmand: ")]
    assert "has jobs of the original gearmand" in said
    assert "secret" not in said
    command = re.search(r"gearman-store (import .*), or drop them", said)
    assert command is not None
    done = subprocess.run(
        [*GEARMAN_STORE, *shlex.split(command[1])],
        env={**os.environ, PASSWORD_VARIABLE: "secret"},
        capture_output=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    with Foreground(tmp_path, *words) as server, WirePeer(server.port) as peer:
        assert list(peer.drain(b"f")) == [BINARY]


def test_file_of_the_original_is_brought_over(tmp_path: Path) -> None:
    """The command that is named for the original's SQLite file brings its jobs."""
    old = tmp_path / "old queue.db"
    original = Gearmand(tmp_path, "-q", "libsqlite3", f"--libsqlite3-db={old}", "--libsqlite3-table=mine")
    try:
        submit = original.command("-b", "-f", "f", "-u", "u")
        subprocess.run(submit, input=BINARY, timeout=PATIENCE, check=True)
        original.end()
    finally:
        original.close()
    table = "--libsqlite3-table=mine"
    ended = gearmand("-q", "libsqlite3", f"--libsqlite3-db={old}", table, cwd=tmp_path)
    assert ended.returncode == 1
    command = re.search(r"gearman-store (import .*)$", ended.stderr.strip())
    assert command is not None
    *before, target = shlex.split(command[1])
    assert target == "sqlite:NEW"
    done = run(*GEARMAN_STORE, *before, f"sqlite:{tmp_path / 'new.db'}")
    assert done.returncode == 0, done.stderr
    with (
        Foreground(tmp_path, "-q", "libsqlite3", f"--libsqlite3-db={tmp_path / 'new.db'}", table) as server,
        WirePeer(server.port) as peer,
    ):
        assert list(peer.drain(b"f")) == [BINARY]
