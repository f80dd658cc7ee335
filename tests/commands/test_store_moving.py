"""``gearman-store`` between the kinds of stores: jobs move from one to the other and run there."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

from gearman_twisted.store.contract import StoredJob
from gearman_twisted.wire.constants import PacketType
from tests.commands.test_store import BINARY, JOBS, assert_refused, gearman_store, jobs_in, put
from tests.kit.servers import TwistdGearman, WirePeer

# Each starts several programs and databases: more than `make test` has time for.
pytestmark = pytest.mark.soak

KINDS = ("sqlite", "postgresql", "mysql", "redis")
FIXTURES = {"postgresql": "postgres_url", "mysql": "mysql_url", "redis": "redis_url"}


def url_of(kind: str, request: pytest.FixtureRequest) -> str:
    """An empty store of a kind."""
    if kind == "sqlite":
        return f"sqlite:{request.getfixturevalue('tmp_path') / 'store.db'}"
    url: str = request.getfixturevalue(FIXTURES[kind])
    return url


@pytest.fixture(params=KINDS[1:])
def url(request: pytest.FixtureRequest) -> str:
    """An empty store in a database, of each kind in turn."""
    return url_of(request.param, request)


@pytest.mark.parametrize(("source", "target"), list(permutations(KINDS, 2)))
def test_copy(source: str, target: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A copy from any kind of store to any other one loses nothing, and goes on where it was."""
    first, second, third = put(tmp_path / "1.db", JOBS), url_of(source, request), url_of(target, request)
    for from_url, to_url in (first, second), (second, third), (third, f"sqlite:{tmp_path / '2.db'}"):
        done = gearman_store("copy", from_url, to_url, "--batch", "3")
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"copied 7 of 7 jobs (777 bytes)" in done.stdout
    assert jobs_in(tmp_path / "2.db") == JOBS
    done = gearman_store("copy", second, third)
    assert b"copied 0 of 7 jobs (777 bytes)" in done.stdout
    assert b"; 7 were there already; all are there\n" in done.stdout


def test_looking_into_a_database(url: str, tmp_path: Path) -> None:
    """list, count and show print the same of a database as of a file."""
    file = put(tmp_path / "jobs.db", JOBS)
    assert gearman_store("copy", file, url).returncode == 0
    for words in ["list"], ["list", "--json", "-f", "resize", "-n", "2"], ["count"], ["show", "2"]:
        ours, theirs = (gearman_store(words[0], where, *words[1:]) for where in (url, file))
        assert (ours.returncode, ours.stderr, ours.stdout) == (0, b"", theirs.stdout)
    assert gearman_store("show", url, "H:here:2", "--workload").stdout == BINARY


def test_dry_run_makes_nothing(url: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A dry run makes neither tables nor keys, and so does not look for what is there already."""
    file = put(tmp_path / "jobs.db", JOBS)
    done = gearman_store("copy", file, url, "--dry-run")
    assert done.returncode == 0
    assert b"would copy 7 jobs (777 bytes) from SQLite file" in done.stdout
    assert done.stdout.endswith(b", except for those that are there already\n")
    if url.startswith("redis:"):
        prefix = url.rpartition("=")[2].encode()
        redis = request.getfixturevalue("safe_redis")
        assert [key for key in redis.content() if key.startswith(prefix + b":")] == []
        return
    server = request.getfixturevalue("postgres" if url.startswith("postgresql:") else "mariadb")
    name = url.rpartition("/")[2]
    tables = server.run(
        "SELECT count(*) FROM information_schema.tables WHERE table_name LIKE 'gearman%' "
        f"AND (table_catalog = '{name}' OR table_schema = '{name}')",
        database=name,
    )
    assert tables == [(0,)]


def test_other_jobs_are_refused(url: str, tmp_path: Path) -> None:
    """Another job under the same id is not overwritten in a database either."""
    other = StoredJob(3, b"H:there:3", b"f", b"", b"other", 1)
    assert gearman_store("copy", put(tmp_path / "other.db", [other]), url).returncode == 0
    done = gearman_store("copy", put(tmp_path / "jobs.db", JOBS), url)
    assert_refused(done, "1 id of FROM", "nothing was copied")
    assert gearman_store("show", url, "3", "--workload").stdout == b"other"


def test_copied_jobs_run(url: str, tmp_path: Path) -> None:
    """What a server left in a file, a server on a database runs; meanwhile the store is refused."""
    with TwistdGearman(tmp_path, "--store=sqlite:jobs.db") as server, WirePeer(server.port) as peer:
        for number in range(20):
            peer.ask(PacketType.SUBMIT_JOB_BG, b"f", b"", b"%d" % number + BINARY)
    assert gearman_store("copy", f"sqlite:{tmp_path / 'jobs.db'}", url).returncode == 0
    with TwistdGearman(tmp_path, f"--store={url}") as server, WirePeer(server.port) as peer:
        assert_refused(gearman_store("list", url), "in use by", "gearadmin --show-jobs")
        assert list(peer.drain(b"f")) == [b"%d" % number + BINARY for number in range(20)]
