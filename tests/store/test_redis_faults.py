"""The Redis store when things go wrong: servers that crash, stand still, fill up, or want the same jobs."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from twisted.logger import capturedLogs

from gearman_twisted.errors import StoreError, StoreInUse, StoreUnavailable
from gearman_twisted.store import holder
from gearman_twisted.store.conformance import a_job
from gearman_twisted.store.redis import lock as redis_lock
from gearman_twisted.store.redis.store import RedisStore
from tests.kit.databases import free_port, poll
from tests.kit.paths import ROOT
from tests.kit.redis_server import RedisServer, a_store, opened, stored

# Another job server: it does one thing for each line that it is sent, and says how it went.
PEER = """
import sys
from gearman_twisted.errors import StoreError
from gearman_twisted.store.redis import lock as redis_lock
from gearman_twisted.store.conformance import a_job
from tests.kit.redis_server import a_store
redis_lock.LOCK_SECONDS = float(sys.argv[2])
store = a_store(sys.argv[1])
store.connect()
print("open", flush=True)
for line in sys.stdin:
    first, last = map(int, line.split())
    try:
        store.apply([a_job(number) for number in range(first, last + 1)], [])
    except StoreError as error:
        print(type(error).__name__, error, flush=True)
    else:
        print("saved", flush=True)
"""


class Peer:
    """Another job server, in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self._stdin: IO[str] = process.stdin
        self._stdout: IO[str] = process.stdout

    def save(self, first: int, last: int) -> None:
        """Has it save jobs; ``answer`` says how that went."""
        self._stdin.write(f"{first} {last}\n")
        self._stdin.flush()

    def answer(self) -> str:
        return self._stdout.readline()


@contextmanager
def peer(url: str, lock_seconds: float = 10.0) -> Iterator[Peer]:
    with subprocess.Popen(
        [sys.executable, "-c", PEER, url, str(lock_seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        other = Peer(process)
        try:
            assert other.answer() == "open\n"
            yield other
        finally:
            process.kill()


def saves(store: RedisStore, number: int, told: list[str] | None = None) -> Callable[[], bool]:
    """Whether a job can be saved; what fails meanwhile has to be of the kind that is tried again."""

    def is_saved() -> bool:
        try:
            store.apply([a_job(number)], [])
        except StoreUnavailable as error:
            if told is not None:
                told.append(str(error))
            return False
        return True

    return is_saved


# Redis comes and goes


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_redis_restarts(own_redis: RedisServer, how: signal.Signals) -> None:
    """While Redis is away calls fail for now, and when it is back they work, with all that was saved."""
    own_redis.start()
    with opened(own_redis.url()) as store:
        store.apply([a_job(1), a_job(2)], [])
        store.apply([], [1])
        own_redis.stop() if how == signal.SIGTERM else own_redis.kill()
        for call in (lambda: store.apply([a_job(3)], []), lambda: store.load([2]), lambda: store.page(0)):
            with pytest.raises(StoreUnavailable, match=f"Redis at 127.0.0.1:{own_redis.port}/0: "):
                call()
        own_redis.start()
        assert store.load([2, 1]) == [a_job(2)]
        store.apply([a_job(4)], [])
        assert stored(store) == [2, 4]
        assert own_redis.execute("EXISTS", "gearman:lock") == 1


def test_redis_stands_still(own_redis: RedisServer) -> None:
    """A Redis that does not answer is given up after the time that the URL sets, and used when it is back."""
    own_redis.start()
    with opened(own_redis.url("timeout=1")) as store:
        own_redis.send(signal.SIGSTOP)
        with pytest.raises(StoreUnavailable, match="no answer within 1 seconds"):
            store.apply([a_job(1)], [])
        own_redis.send(signal.SIGCONT)
        store.apply([a_job(2)], [])
        assert stored(store)[-1:] == [2]


def test_connection_cut(own_redis: RedisServer) -> None:
    """A connection that was cut is made anew by the next call but one, whatever the call."""
    own_redis.start()
    with opened(own_redis.url()) as store:
        for number in range(1, 4):
            store.apply([a_job(number)], [])
            own_redis.execute("CLIENT", "KILL", "TYPE", "normal")
            with pytest.raises(StoreUnavailable):
                store.load([number])
            assert store.load([number]) == [a_job(number)]


def test_redis_reads_its_files(own_redis: RedisServer) -> None:
    """A Redis that still reads its files is waited for."""
    own_redis.start()
    with opened(own_redis.url()) as store:
        store.apply([a_job(1)], [])
        own_redis.execute("EVAL", "for i = 1, 16000 do redis.call('SET', 'key' .. i, i) end", 0)
        own_redis.kill()
        own_redis.launch(key_load_delay="50")  # microseconds for each key
        told: list[str] = []
        assert poll(saves(store, 3, told))
        assert stored(store) == [1, 3]
    assert any(
        "loading the dataset in memory; it can be used when it has read its files" in text for text in told
    )


def test_fail_over_to_a_redis_that_may_lose_jobs(own_redis: RedisServer) -> None:
    """After a reconnection Redis is looked at again, and nothing is saved there before it is safe."""
    own_redis.start()
    with opened(own_redis.url()) as store:
        store.apply([a_job(1)], [])
        own_redis.stop()
        own_redis.start(appendonly="no")
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                store.apply([a_job(2)], [])
        with pytest.raises(StoreUnavailable, match="say CONFIG SET appendonly yes there"):
            store.apply([a_job(2)], [])
        assert own_redis.execute("KEYS", "*") == []
        own_redis.configure(appendonly="yes")
        with capturedLogs() as logged:
            store.apply([a_job(3)], [])
        assert any("has lost all of its jobs" in str(event.get("log_format")) for event in logged)
        assert stored(store) == [3]


def test_redis_is_emptied(own_redis: RedisServer) -> None:
    """When somebody empties Redis that is reported, and what comes then is saved."""
    own_redis.start()
    with opened(own_redis.url()) as store:
        store.apply([a_job(1)], [])
        own_redis.execute("FLUSHALL")
        with pytest.raises(StoreUnavailable, match="the key that says who writes there was changed"):
            store.apply([a_job(2)], [])
        with capturedLogs() as logged:
            store.apply([a_job(3)], [])
        assert any("has lost all of its jobs" in str(event.get("log_format")) for event in logged)
        assert stored(store) == [3]


def test_new_password(own_redis: RedisServer, tmp_path: Path) -> None:
    """A password that changes while the server runs is read anew; until it is right, jobs wait."""
    own_redis.start()
    own_redis.execute("ACL", "SETUSER", "gearman", "on", ">one", "~*", "+@all")
    file = tmp_path / "password"
    file.write_text("one")
    with opened(own_redis.url(f"password_file={file}", user="gearman")) as store:
        own_redis.execute("ACL", "SETUSER", "gearman", "resetpass", ">two")
        own_redis.execute("CLIENT", "KILL", "TYPE", "normal")
        with pytest.raises(StoreUnavailable):
            store.apply([a_job(1)], [])
        with pytest.raises(StoreUnavailable, match="invalid username-password"):
            store.apply([a_job(1)], [])
        file.write_text("two")
        store.apply([a_job(2)], [])
        file.unlink()
        own_redis.execute("CLIENT", "KILL", "TYPE", "normal")
        with pytest.raises(StoreUnavailable):
            store.apply([a_job(3)], [])
        store.apply([a_job(3)], [])
        assert stored(store) == [2, 3]


# Redis refuses


def test_redis_is_full(own_redis: RedisServer) -> None:
    """A full Redis takes no batch, not even in part; jobs can be forgotten there, which makes room."""
    own_redis.start()
    with opened(own_redis.url()) as store:
        store.apply([a_job(1), a_job(2)], [])
        own_redis.configure(maxmemory="1mb")
        with pytest.raises(StoreUnavailable, match=r"command not allowed.*; raise its maxmemory"):
            store.apply([a_job(3)], [1])
        assert stored(store) == [1, 2]
        store.apply([], [1])
        own_redis.execute("CLIENT", "KILL", "TYPE", "normal")
        with pytest.raises(StoreUnavailable):
            store.apply([], [2])
        store.apply([], [2])
        assert stored(store) == []
        own_redis.configure(maxmemory="0")
        store.apply([a_job(4)], [])
        assert stored(store) == [4]
    own_redis.configure(maxmemory="1mb")
    with pytest.raises(StoreUnavailable, match="raise its maxmemory"):
        a_store(own_redis.url()).connect()


def test_redis_cannot_write_its_file(own_redis: RedisServer) -> None:
    """A Redis that has stopped taking writes because of its disk is waited for."""
    own_redis.start(save="3600 1")
    with opened(own_redis.url()) as store:
        store.apply([a_job(1)], [])
        (own_redis.directory / "dump.rdb").mkdir()
        own_redis.execute("BGSAVE")
        assert poll(lambda: "rdb_last_bgsave_status:err" in _info(own_redis))
        with pytest.raises(StoreUnavailable, match=r"MISCONF.*see its log"):
            store.apply([a_job(2)], [])
        (own_redis.directory / "dump.rdb").rmdir()
        own_redis.execute("BGSAVE")
        assert poll(saves(store, 3))
        assert stored(store) == [1, 3]


def test_redis_becomes_a_replica(own_redis: RedisServer) -> None:
    """A Redis that follows another one is not written to, even where it would take that."""
    own_redis.start()
    with opened(own_redis.url()) as store:
        store.apply([a_job(1)], [])
        own_redis.execute("REPLICAOF", "127.0.0.1", free_port())
        with pytest.raises(StoreUnavailable, match="it is a replica; name the primary"):
            store.apply([a_job(2)], [])
        with pytest.raises(StoreUnavailable, match="is a replica, which follows another server"):
            a_store(own_redis.url()).check()
        own_redis.execute("REPLICAOF", "NO", "ONE")
        store.apply([a_job(3)], [])
        assert stored(store) == [1, 3]


def test_cluster_is_refused(own_redis: RedisServer) -> None:
    """A Redis Cluster is refused at once."""
    own_redis.start(cluster_enabled="yes", cluster_port=str(free_port()))
    with pytest.raises(StoreError, match="is a Redis Cluster, which is not supported"):
        a_store(own_redis.url()).check()


# Two want the same jobs


def test_second_server_is_refused(own_redis: RedisServer) -> None:
    """A server that is told to use another one's jobs is refused, and told who has them."""
    own_redis.start()
    with peer(own_redis.url()) as other:
        for call in (a_store(own_redis.url()).check, a_store(own_redis.url()).connect):
            with pytest.raises(StoreInUse, match=f"in use by process {other.process.pid} on .*; stop"):
                call()
        other.save(1, 3)
        assert other.answer() == "saved\n"


def test_closed_server_gives_its_jobs_back(own_redis: RedisServer) -> None:
    """After a close the next server may start at once, wherever it is."""
    own_redis.start()
    for number in range(1, 4):
        with opened(own_redis.url()) as store:
            store.apply([a_job(number)], [])
        assert own_redis.execute("EXISTS", "gearman:lock") == 0


def test_killed_server(own_redis: RedisServer) -> None:
    """A server that was killed leaves whole batches, all that it had acknowledged, and no one in the way."""
    own_redis.start()
    with peer(own_redis.url(), lock_seconds=600) as other:
        for number in range(10):
            other.save(number * 1000 + 1, number * 1000 + 1000)
        acknowledged = 0
        while acknowledged < 3000:
            assert other.answer() == "saved\n"
            acknowledged += 1000
        other.process.kill()
        while other.answer() == "saved\n":
            acknowledged += 1000
        other.process.wait()
    a_store(own_redis.url()).check()
    with opened(own_redis.url()) as store:
        ids = stored(store)
    assert len(ids) >= acknowledged
    assert len(ids) % 1000 == 0
    assert ids == list(range(1, len(ids) + 1))


def test_server_on_another_machine(own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot be seen whether a process lives, its lock has to be renewed, or expires."""
    monkeypatch.setattr(redis_lock, "LOCK_SECONDS", 0.6)
    monkeypatch.setattr(holder, "machine", lambda: "-")
    own_redis.start()
    with opened(own_redis.url()) as store:
        for call in (a_store(own_redis.url()).check, a_store(own_redis.url()).connect):
            with pytest.raises(StoreInUse, match="in use by process"):
                call()
        store.apply([a_job(1)], [])
    owner = own_redis.execute("GET", "gearman:owner")
    own_redis.execute("SET", "gearman:lock", owner, "PX", 600)
    with capturedLogs() as logged, opened(own_redis.url()) as store:
        assert stored(store) == [1]
    assert any("for the lock of" in str(event.get("log_format")) for event in logged)


def test_lock_is_renewed_while_nothing_happens(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of a server that has nothing to save does not expire, also across a restart of Redis."""
    monkeypatch.setattr(redis_lock, "LOCK_SECONDS", 2.0)
    own_redis.start()

    def is_renewed() -> bool:
        return int(own_redis.execute("PTTL", "gearman:lock")) > 1900

    with opened(own_redis.url()):
        for _ in range(2):
            assert poll(lambda: 0 < own_redis.execute("PTTL", "gearman:lock") < 1800)
            assert poll(is_renewed)
            own_redis.kill()
            own_redis.start()
        assert own_redis.execute("DEL", "gearman:lock") in {0, 1}
        assert poll(is_renewed)


def test_server_that_stood_still(own_redis: RedisServer) -> None:
    """A server that stood still for too long loses its jobs to another one, and never writes again."""
    own_redis.start()
    url = own_redis.url()
    with peer(url, lock_seconds=0.4) as other:
        other.save(1, 3)
        assert other.answer() == "saved\n"
        other.process.send_signal(signal.SIGSTOP)
        store = a_store(url)

        def is_taken_over() -> bool:
            try:
                store.connect()
            except StoreUnavailable:
                return False
            return True

        assert poll(is_taken_over)
        try:
            store.apply([a_job(4)], [1])
            other.process.send_signal(signal.SIGCONT)
            for _ in range(2):
                other.save(5, 6)
                answer = other.answer()
                assert answer.startswith("StoreUnavailable Redis at")
                assert "was taken over by process" in answer
            assert stored(store) == [2, 3, 4]
        finally:
            store.disconnect()
        # Nor does it when the other one has ended: it does not know what that one did.
        other.save(5, 6)
        assert "was taken over by process" in other.answer()
    with opened(url) as store:
        assert stored(store) == [2, 3, 4]


def test_server_that_stood_still_alone(own_redis: RedisServer) -> None:
    """A server that stood still for too long goes on if nobody took over."""
    own_redis.start()
    with peer(own_redis.url(), lock_seconds=0.4) as other:
        other.process.send_signal(signal.SIGSTOP)
        assert poll(lambda: own_redis.execute("EXISTS", "gearman:lock") == 0)
        other.process.send_signal(signal.SIGCONT)
        other.save(1, 3)
        assert other.answer() == "saved\n"
        assert poll(lambda: own_redis.execute("EXISTS", "gearman:lock") == 1)


@pytest.mark.parametrize(("saved", "forgotten"), [([2], []), ([], [1]), ([2], [1])])
def test_nothing_is_written_by_who_lost_the_jobs(
    own_redis: RedisServer, saved: list[int], forgotten: list[int]
) -> None:
    """Once another server has taken over, no save and no forget comes through."""
    own_redis.start()
    with opened(own_redis.url()) as store:
        store.apply([a_job(1)], [])
        other = f"token {holder.Holder(17, '-', '-', 'elsewhere')}".encode()
        own_redis.execute("SET", "gearman:owner", other)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="was taken over by process 17 on elsewhere while"):
                store.apply([a_job(number) for number in saved], forgotten)
        assert own_redis.execute("HKEYS", "gearman:jobs:0") == [b"1"]
        assert own_redis.execute("GET", "gearman:owner") == other


def _info(server: RedisServer) -> str:
    return "\n".join(f"{name}:{value}" for name, value in server.execute("INFO", "persistence").items())
