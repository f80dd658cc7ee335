"""The Redis store: what it asks of Redis, what it lets alone, and how its jobs stand there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as default_reactor
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs

from gearman_twisted.errors import StoreConfigError, StoreError, StoreUnavailable
from gearman_twisted.store import open_store
from gearman_twisted.store.conformance import a_job
from gearman_twisted.store.contract import StoredJob
from gearman_twisted.store.redis import store as redis_store
from tests.kit.databases import free_port, poll
from tests.kit.redis_server import RedisServer, a_store, opened, standard_url, stored

reactor: Any = default_reactor
make_reactor: Any = MemoryReactorClock
ensure_deferred: Callable[[Callable[..., object]], Callable[..., None]] = pytest_twisted.ensureDeferred


def refused(url: str, kind: type[StoreError], says: str) -> None:
    """Neither check nor connect takes it, in one line, and nothing that has a password is told."""
    for call in (a_store(url).check, a_store(url).connect):
        with pytest.raises(kind, match=says) as caught:
            call()
        assert "s3cret" not in str(caught.value)
        assert "\n" not in str(caught.value)


def replayed(url: str) -> list[StoredJob]:
    """All jobs of a store, page by page."""
    jobs: list[StoredJob] = []
    with opened(url) as store:
        after: int | None = -(2**63)
        while after is not None:
            page, after = store.page(after)
            jobs += page
    return jobs


# URLs


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis:gearman", "followed by //USER@HOST/NAME"),
        ("redis://host/jobs", "takes the number of a database, not 'jobs'"),
        ("redis://one,two/0", "takes one host"),
        ("redis://host:0/0", "takes a port"),
        ("redis://user:s3cret@host/0", "password in a URL can be read by everyone"),
        ("redis://host/0?prefix=", "prefix of at least a character"),
        ("redis://host/0?unix_socket=/run/s", "not both"),
        ("redis:///0?unix_socket=/run/s&tls=yes", "nor TLS"),
        ("redis://host/0?tls=maybe", "takes tls=yes or tls=no"),
        ("redis://host/0?sslrootcert=/ca.pem", "with tls=yes"),
        ("redis://host/0?tls=yes&sslrootcert=/no/such/file", "cannot read /no/such/file"),
        ("redis://host/0?durable=perhaps", "takes durable=yes or durable=no"),
        ("redis://host/0?sync=never", "takes sync=always or sync=interval"),
        ("redis://host/0?timeout=soon", "takes timeout=SECONDS, 1 to 3600, not timeout=soon"),
        ("redis://host/0?password_file=/no/such/file", "cannot read the password file"),
        ("redis://host/0?table=jobs", "has no option 'table'"),
    ],
)
def test_url_that_makes_no_sense(url: str, says: str) -> None:
    """A URL that makes no sense is refused with a hint, before anything is connected to."""
    with pytest.raises(StoreConfigError, match=says) as caught:
        open_store(url, make_reactor())
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "description", "interval"),
    [
        ("redis://", "Redis at localhost:6379/0, prefix gearman", 0.0),
        ("redis://u@db:1234/7?prefix=q", "Redis at db:1234/7, prefix q", 0.0),
        ("redis://[::1]/0?sync=interval=0.5", "Redis at [::1]:6379/0, prefix gearman", 0.5),
        ("redis:///2?unix_socket=/run/s", "Redis at /run/s/2, prefix gearman", 0.0),
        (
            "redis://db/0?durable=no",
            "Redis at db:6379/0, prefix gearman, which may lose jobs",
            0.0,
        ),
    ],
)
def test_description(url: str, description: str, interval: float) -> None:
    """A store says where it is and whether it may lose jobs; it saves them in any case."""
    store = open_store(url, make_reactor())
    assert (store.description, store.sync_interval, store.durable) == (description, interval, True)


def test_missing_driver() -> None:
    """Without the driver, the error says how to install it."""
    code = (
        "import sys; sys.modules['redis'] = None\n"
        "from gearman_twisted.store import open_store\n"
        "open_store('redis://host/0', None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith("-m pip install 'redis>=5'")


# Settings of Redis


@pytest.mark.parametrize(
    ("options", "settings", "says"),
    [
        ("", {"appendonly": "no"}, "say CONFIG SET appendonly yes there.*[?]durable=no"),
        ("", {"appendfsync": "everysec"}, "appendfsync always there.*[?]sync=interval=1; or.*[?]durable=no"),
        ("", {"appendonly": "no", "appendfsync": "no"}, "appendonly yes and CONFIG SET appendfsync always"),
        ("", {"no_appendfsync_on_rewrite": "yes"}, "say CONFIG SET no-appendfsync-on-rewrite no"),
        ("", {"maxmemory_policy": "allkeys-lru"}, "say CONFIG SET maxmemory-policy noeviction"),
        ("sync=interval=1", {"appendfsync": "no"}, "say CONFIG SET appendfsync always there, and"),
        ("sync=interval=1", {"appendonly": "no"}, "say CONFIG SET appendonly yes there, and"),
    ],
)
def test_redis_that_may_lose_jobs(
    own_redis: RedisServer, options: str, settings: dict[str, str], says: str
) -> None:
    """A Redis that may lose jobs is refused and told what to set, unless the operator accepts that."""
    own_redis.start(**settings)
    refused(own_redis.url(options), StoreConfigError, says)
    assert own_redis.content() == {}
    with capturedLogs() as logged, opened(own_redis.url(f"{options}&durable=no".lstrip("&"))) as store:
        store.apply([a_job(1)], [])
        assert stored(store) == [1]
    (warning,) = [event["text"] for event in logged if "may lose jobs" in event.get("text", "")]
    assert all(name.replace("_", "-") in warning for name in settings)


@pytest.mark.parametrize("fsync", ["everysec", "always"])
def test_lag_of_a_second(own_redis: RedisServer, fsync: str) -> None:
    """Whoever accepts to lose an interval may have a Redis that goes to the disk once a second."""
    own_redis.start(appendfsync=fsync)
    with opened(own_redis.url("sync=interval=1")) as store:
        store.apply([a_job(1)], [])
    own_redis.stop()
    own_redis.start(appendfsync=fsync)
    assert replayed(own_redis.url("sync=interval=1")) == [a_job(1)]


def test_first_append_only_file(own_redis: RedisServer) -> None:
    """A Redis that was just told to keep what it has is not trusted before it has written it."""
    own_redis.start(appendonly="no")
    for number in range(20):
        own_redis.execute("SET", f"key{number}", "value")
    own_redis.configure(rdb_key_save_delay="50000", appendonly="yes")  # microseconds for each key
    refused(own_redis.url(), StoreUnavailable, "still writes its first append-only file")

    def is_taken() -> bool:
        try:
            a_store(own_redis.url()).check()
        except StoreUnavailable:
            return False
        return True

    assert poll(is_taken)


def test_settings_that_are_not_told(own_redis: RedisServer) -> None:
    """Where CONFIG is forbidden INFO is asked, and what it does not know is told to the operator."""
    own_redis.start()
    own_redis.execute("ACL", "SETUSER", "mute", "on", "nopass", "~*", "+@all", "-config")
    with capturedLogs() as logged, opened(own_redis.url(user="mute")) as store:
        store.apply([a_job(1)], [])
    (warning,) = [event["text"] for event in logged if "does not say" in event.get("text", "")]
    assert "what it has for appendfsync, no-appendfsync-on-rewrite;" in warning
    own_redis.configure(maxmemory_policy="allkeys-lru")
    refused(own_redis.url(user="mute"), StoreConfigError, "CONFIG SET maxmemory-policy noeviction")
    own_redis.configure(maxmemory_policy="noeviction", appendonly="no")
    refused(own_redis.url(user="mute"), StoreConfigError, "CONFIG SET appendonly yes")
    own_redis.execute("ACL", "SETUSER", "mute", "-info")
    refused(own_redis.url(user="mute"), StoreConfigError, "does not say whether it keeps jobs")


@ensure_deferred
async def test_redis_that_keeps_nothing() -> None:
    """A Redis without any file is a store for those who say so: jobs survive the job server there."""
    with standard_url() as url:
        for jobs in ([], [a_job(1)]):
            store = open_store(url, reactor)
            store.check()
            await store.open()
            found: list[StoredJob] = []
            await store.replay(found.extend)
            assert found == jobs
            await store.apply([a_job(1)], [])
            await store.close()


# Who may come in


def test_passwords(own_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password comes from a file or the environment; without it, or with a wrong one, Redis refuses."""
    own_redis.start()
    own_redis.execute("ACL", "SETUSER", "gearman", "on", ">s3cret", "~gearman:*", "+@all")
    own_redis.execute("ACL", "SETUSER", "default", "on", "nopass", "+@all")
    good, wrong = tmp_path / "good", tmp_path / "wrong"
    good.write_text("s3cret\n")
    wrong.write_text("s3cret2")
    monkeypatch.setenv("REDIS_PASSWORD", "s3cret")
    for option in (f"password_file={good}", "password_env=REDIS_PASSWORD"):
        with opened(own_redis.url(option, user="gearman")) as store:
            store.apply([a_job(1)], [1])
    refused(own_redis.url(f"password_file={wrong}", user="gearman"), StoreConfigError, "[?]password_file=")
    refused(own_redis.url(user="gearman"), StoreConfigError, "[?]password_file=PATH")
    own_redis.execute("ACL", "SETUSER", "poor", "on", "nopass", "~*", "+@all", "-eval")
    refused(own_redis.url(user="poor"), StoreConfigError, "run the 'eval' command.*ACL SETUSER")
    refused(own_redis.url(f"password_file={good}&prefix=other", user="gearman"), StoreConfigError, "access")
    own_redis.execute("ACL", "SETUSER", "default", "resetpass", ">s3cret")
    store = a_store(own_redis.url())
    with pytest.raises(StoreConfigError, match=r"Authentication required.*\?password_file="):
        store.check()
    with opened(own_redis.url(f"password_file={good}")) as store:
        store.apply([a_job(1)], [1])


@pytest.mark.parametrize(
    ("url", "kind", "says"),
    [
        ("redis://127.0.0.1:{port}/99", StoreConfigError, "DB index is out of range.*such as 0"),
        ("redis://127.0.0.1:{free}/0", StoreUnavailable, "Redis at 127.0.0.1:{free}/0: .*refused"),
        ("redis:///0?unix_socket=/no/such/socket", StoreUnavailable, "/no/such/socket/0: .*No such file"),
    ],
)
def test_places_that_cannot_be(safe_redis: RedisServer, url: str, kind: type[StoreError], says: str) -> None:
    """A database or a server that is not there is named."""
    places = {"port": safe_redis.port, "free": free_port()}
    refused(url.format(**places), kind, says.format(**places))


def test_unix_socket(own_redis: RedisServer) -> None:
    """Redis is reached by a Unix socket too."""
    path = own_redis.directory / "socket"
    own_redis.start(unixsocket=str(path))
    url = f"redis:///0?unix_socket={path}"
    with opened(url) as store:
        store.apply([a_job(1)], [])
    assert replayed(url) == [a_job(1)]


def test_tls(own_redis: RedisServer) -> None:
    """With TLS, the certificate has to be for the host and from who is trusted."""
    certificate, key, port = own_redis.directory / "cert.pem", own_redis.directory / "key.pem", free_port()
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=gearman",
    ]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    own_redis.start(
        tls_port=str(port), tls_cert_file=str(certificate), tls_key_file=str(key), tls_auth_clients="no"
    )
    with opened(f"redis://127.0.0.1:{port}/0?tls=yes&sslrootcert={certificate}") as store:
        store.apply([a_job(1)], [])
        assert stored(store) == [1]
    refused(f"redis://127.0.0.1:{port}/0?tls=yes", StoreConfigError, "CERTIFICATE_VERIFY_FAILED.*sslroot")
    refused(
        f"redis://localhost:{port}/0?tls=yes&sslrootcert={certificate}", StoreConfigError, "ostname mismatch"
    )


# What is not ours


@pytest.mark.parametrize(
    ("commands", "says"),
    [
        (["RPUSH gearman:jobs one"], "the keys gearman:jobs are of something else.*[?]prefix="),
        (["ZADD gearman:jobs 1 one"], "the keys gearman:jobs are of something else"),
        (["SET gearman:lock me"], "the keys gearman:lock are of something else"),
        (["HSET gearman:owner a b", "SET gearman:version 1"], "the keys gearman:owner are of something"),
        (["SADD gearman:version 1"], "the keys gearman:version are of something else"),
        (["SET gearman:version 99"], "version 99, and this release knows up to 1; use the newer release"),
        (["SET gearman:version one"], "gearman:version does not hold a version number"),
        (["SET gearman:version 0"], "gearman:version does not hold a version number"),
        (["SET gearman:version 1", "SET gearman:lock me"], "in use by whoever wrote b'me'"),
    ],
)
def test_keys_that_are_not_ours(own_redis: RedisServer, commands: list[str], says: str) -> None:
    """Keys of our names that are foreign, or of a newer release, are refused and left as they are."""
    own_redis.start()
    for command in commands:
        own_redis.execute(*command.split())
    before = own_redis.content()
    refused(own_redis.url(), StoreError, says)
    assert own_redis.content() == before
    with opened(own_redis.url("prefix=other")) as store:
        store.apply([a_job(1)], [])
    after = own_redis.content()
    assert {key: value for key, value in after.items() if not key.startswith(b"other:")} == before


def test_check_creates_nothing(own_redis: RedisServer) -> None:
    """A check leaves an empty Redis empty, and finds nothing wrong with it."""
    own_redis.start()
    a_store(own_redis.url()).check()
    assert own_redis.content() == {}


# How jobs stand there


def test_jobs_of_servers_stay_apart(own_redis: RedisServer) -> None:
    """Two servers share a Redis by prefixes or databases; forgotten jobs leave nothing behind."""
    own_redis.start()
    urls = [own_redis.url(), own_redis.url("prefix=other"), own_redis.url(number=1)]
    with opened(urls[0]) as one, opened(urls[1]) as two, opened(urls[2]) as three:
        for number, store in enumerate((one, two, three), 1):
            store.apply([a_job(number), a_job(9)], [])
            store.apply([], [9])
    assert [replayed(url) for url in urls] == [[a_job(1)], [a_job(2)], [a_job(3)]]
    with opened(urls[0]) as one:
        one.apply([], [1])
        assert stored(one) == []
    keys = {key for key in own_redis.content() if key.startswith(b"gearman")}
    assert keys == {b"gearman:owner", b"gearman:version"}


def test_pages(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page has so many jobs or bytes, from as many blocks as it takes; a large job has one of its own."""
    monkeypatch.setattr(redis_store, "PAGE_JOBS", 10)
    monkeypatch.setattr(redis_store, "PAGE_BYTES", 4_000)
    monkeypatch.setattr(redis_store, "PAGE_BLOCKS", 4)
    large = [a_job(2**40 + number, workload=b"x" * 3_000) for number in range(3)]
    larger = [a_job(2**41, workload=b"x" * 5_000), a_job(2**41 + 1, workload=b"x" * 50_000)]
    many = [a_job(2**50 + number) for number in range(35)]
    sparse = [a_job(2**60 + number * 5_000) for number in range(25)]
    jobs = [a_job(1), *large, *larger, *many, *sparse, a_job(2**63 - 1)]
    with opened(redis_url) as store:
        store.apply(jobs, [])
        sizes, found = [], []
        after: int | None = -(2**63)
        while after is not None:
            page, after = store.page(after)
            sizes.append(len(page))
            found += page
        assert found == jobs
        assert max(sizes) == 10
        assert sizes[:5] == [2, 1, 1, 1, 1]
        assert store.page(2**50) == (many[1:11], 2**50 + 10)
        assert store.page(2**63 - 1) == ([], None)


def test_empty_blocks(own_redis: RedisServer) -> None:
    """A replay finds its way over any number of blocks whose jobs have ended, and clears them away."""
    own_redis.start()
    jobs = [a_job(number << redis_store.BLOCK_BITS) for number in range(1, 301)]
    with opened(own_redis.url()) as store:
        store.apply(jobs, [])
        store.apply([], [job.id for job in jobs[:-1]])
        assert own_redis.execute("ZCARD", "gearman:jobs") == 300
        assert stored(store) == [jobs[-1].id]
        assert own_redis.execute("ZRANGE", "gearman:jobs", 0, -1) == [b"300"]


@pytest.mark.parametrize(
    "record", [b"", b"\x01", b"\x02" + b"\0" * 40, b"\x01\x03" + b"\0" * 40, b"\x01\x01" + b"\xff" * 40]
)
def test_damaged_records(own_redis: RedisServer, record: bytes) -> None:
    """What is not a job is reported once, kept and skipped, and all others come back."""
    own_redis.start()
    jobs = [a_job(1), a_job(3), a_job(2**20)]
    with opened(own_redis.url()) as store:
        store.apply([*jobs, a_job(2)], [])
    own_redis.execute("HSET", "gearman:jobs:0", "2", record, "two", "x", "9" * 30, "x", "-4", "x")
    before = own_redis.execute("HGETALL", "gearman:jobs:0")
    with capturedLogs() as logged:
        assert replayed(own_redis.url()) == jobs
    damaged = [event["id"] for event in logged if "is damaged" in str(event.get("log_format"))]
    assert sorted(damaged) == sorted(["2", "two", "9" * 30, "-4"])
    assert own_redis.execute("HGETALL", "gearman:jobs:0") == before
    with opened(own_redis.url()) as store:
        assert store.load([3, 2, 1]) == [a_job(3), a_job(1)]
        store.apply([a_job(2)], [])
        assert stored(store) == [1, 2, 3, 2**20]


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": 2**63},
        {"id": 0},
        {"handle": None},
        {"handle": b"h" * 65_536},
        {"workload": "text"},
        {"priority": 3},
        {"run_at": 2**63},
        {"run_at": -1},
    ],
)
def test_job_that_cannot_be_saved(redis_url: str, wrong: dict[str, object]) -> None:
    """What is not a job is refused for good, with its batch, and the store goes on."""
    with opened(redis_url) as store:
        with pytest.raises(StoreError, match="not a job that can be saved") as caught:
            store.apply([a_job(1), a_job(2, **wrong)], [])
        assert not isinstance(caught.value, StoreUnavailable)
        store.apply([a_job(3)], [])
        assert stored(store) == [3]


def test_job_that_is_too_large(own_redis: RedisServer) -> None:
    """A job that is larger than what Redis takes is refused for good, and not sent."""
    own_redis.start(proto_max_bulk_len="1mb")
    with opened(own_redis.url()) as store:
        with pytest.raises(
            StoreError, match="too large; Redis takes up to 1048576, see its proto-max"
        ) as caught:
            store.apply([a_job(1), a_job(2, workload=b"x" * 2**20)], [])
        assert not isinstance(caught.value, StoreUnavailable)
        store.apply([a_job(3, workload=b"x" * (2**20 - 100))], [])
        assert stored(store) == [3]
