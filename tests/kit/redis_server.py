"""Redis servers for tests: our own on a free port, with the options that a test wants."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from gearman_twisted.store.redis.connection import OPTIONS, RedisAddress
from gearman_twisted.store.redis.store import RedisStore
from gearman_twisted.store.url import StoreUrl
from tests.kit.databases import START_TIMEOUT, free_port, missing, poll

SAFE = {"appendonly": "yes", "appendfsync": "always"}
_prefixes = count(1)


class RedisServer:
    """A Redis server of our own, in a directory of its own; what it keeps stays from start to start."""

    def __init__(self) -> None:
        if shutil.which("redis-server") is None or shutil.which("setpriv") is None:
            missing("no redis-server is installed here")
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="gearman-test-"))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **options: str) -> None:
        """Starts it, and waits until it answers; takes what ``launch`` takes."""
        self.launch(**options)
        assert poll(self._is_up), (self.directory / "log").read_text(errors="replace")

    def launch(self, **options: str) -> None:
        """Starts it.

        Args:
            options: those of redis.conf, with underscores; it is safe unless they say something else.
        """
        settings = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.directory), "save": ""}
        settings |= SAFE | {name.replace("_", "-"): value for name, value in options.items()}
        # A word of several words is one argument for the shell, and several for Redis.
        # The signal comes when the tests end without a chance to clean up.
        command = ["setpriv", "--pdeathsig", "KILL", "redis-server"]
        for name, value in settings.items():
            command += [f"--{name}", *(value.split(" ") if value else [""])]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def execute(self, *words: Any) -> Any:
        """Does a command."""
        # Not tried again, as the driver does by default.
        once = Retry(NoBackoff(), 0)
        with redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=10, retry=once) as client:
            return client.execute_command(*words)

    def configure(self, **settings: str) -> None:
        """Changes settings while it runs."""
        for name, value in settings.items():
            self.execute("CONFIG", "SET", name.replace("_", "-"), value)

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Ends it as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(START_TIMEOUT)
            self._process = None

    def stop(self) -> None:
        """Ends it as its operator does."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(START_TIMEOUT)
        self._process = None

    def close(self) -> None:
        """Ends it and removes its files."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def url(self, options: str = "", user: str = "", number: int = 0) -> str:
        """The URL of a store in it."""
        at = f"{user}@" if user else ""
        return f"redis://{at}127.0.0.1:{self.port}/{number}{f'?{options}' if options else ''}"

    def content(self) -> dict[bytes, object]:
        """All that database 0 has."""
        return {key: self.execute("DUMP", key) for key in self.execute("KEYS", "*")}

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "log").read_text(errors="replace")
        try:
            self.execute("PING")
        except redis.ConnectionError:
            return False
        except redis.RedisError:
            pass  # it is up, but wants a password or is not done with its files
        return True


def a_store(url: str) -> RedisStore:
    """The part of a store that works in its thread; here it may block the test."""
    parts = StoreUrl.parse(url, OPTIONS)
    prefix = parts.options.get("prefix", "gearman").encode()
    must_keep = parts.is_on("durable", default=True)
    return RedisStore(RedisAddress.of(parts), prefix, parts.sync_interval(), must_keep=must_keep)


@contextmanager
def opened(url: str) -> Iterator[RedisStore]:
    """A store, connected."""
    store = a_store(url)
    store.connect()
    try:
        yield store
    finally:
        store.disconnect()


def stored(store: RedisStore) -> list[int]:
    """The ids of all jobs, in the order in which they come back."""
    ids: list[int] = []
    after: int | None = -(2**63)
    while after is not None:
        jobs, after = store.page(after)
        ids += [job.id for job in jobs]
    return ids


@pytest.fixture(scope="session")
def safe_redis() -> Iterator[RedisServer]:
    """A Redis server that keeps what it has, for tests that leave it so."""
    server = RedisServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def redis_url(safe_redis: RedisServer) -> str:
    """The URL of a store without jobs."""
    return safe_redis.url(f"prefix=test{next(_prefixes)}")


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis server, not started yet, with which a test may do what it likes."""
    server = RedisServer()
    try:
        yield server
    finally:
        server.close()


@contextmanager
def standard_url() -> Iterator[str]:
    """The URL of a store in the machine's own Redis server, which keeps nothing on its disk."""
    prefix = f"gearman-test-{os.getpid()}"
    with redis.Redis(host="127.0.0.1", socket_timeout=10) as client:
        try:
            client.ping()
        except redis.ConnectionError:
            missing("no Redis server listens on 127.0.0.1:6379")
        try:
            yield f"redis://127.0.0.1/0?prefix={prefix}&durable=no"
        finally:
            for key in client.scan_iter(match=f"{prefix}:*"):
                client.delete(key)
