"""Jobs in a Redis server.

The keys, each behind the prefix and a colon:

- ``jobs:N``: a hash of the jobs whose ids divided by 4096 give N; from the id, in digits, to a record.
- ``jobs``: a sorted set of every N that has such a hash, or once had one.
- ``version``: the number of this layout.
- ``owner``: the server that opened the store last. It never expires, and every write watches it: a server
  that stood still while another one took over cannot write any more.
- ``lock``: the server that has the store open. It expires after some seconds unless renewed, and only says
  when another server may take over.

Why blocks: the ids of a server are consecutive, so blocks fill up, and key, index and hash cost next to
nothing per job: about 90 bytes beside its record, most of them the hash's own. A sorted set of all ids would
cost 80 more. A hash has no order, but the ids of one block are sorted here, so millions of jobs come back in
order without a list of them all. Saving a job replaces one with the same id, and one command saves or
forgets many.

Each ``apply`` that saves is one MULTI … EXEC, sent at once. Records never go through scripts: Lua hashes only
some bytes of a long string, and slows down without bound when many long strings differ in the other bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger

from gearman_twisted.errors import StoreConfigError, StoreError, StoreInUse, StoreUnavailable
from gearman_twisted.store.contract import IJobStore, StoredJob
from gearman_twisted.store.redis import lock as redis_lock
from gearman_twisted.store.redis.connection import (
    OPTIONS,
    Command,
    RedisAddress,
    RedisConnection,
    persistence_of,
)
from gearman_twisted.store.threaded import BlockingStore, ThreadedStore
from gearman_twisted.store.url import StoreUrl

VERSION = 1

BLOCK_BITS = 12
MAX_ID = 2**63 - 1

# A page of a replay ends after so many jobs or bytes, and covers so many blocks at most.
PAGE_JOBS = 2_000
PAGE_BYTES = 8 * 1024 * 1024
PAGE_BLOCKS = 64

# Version, priority, run_at; the lengths of handle, function, unique, reducer and schedule, which follow in
# that order; then the workload.
_RECORD = struct.Struct(">BBq5H")
_RECORD_VERSION = 1
# What stands before the workload at most: a function, a schedule of five fields, and less.
MAX_HEAD_BYTES = 64 * 1024

# KEYS: some blocks. ARGV: bytes; then for each block how many ids, and these. Answers how many of the ids,
# from the first on, have records that fit so many bytes, at least 1.
_FITTING = """
local left, fitting, at = tonumber(ARGV[1]), 0, 2
for _, key in ipairs(KEYS) do
  local last = at + tonumber(ARGV[at])
  for i = at + 1, last do
    left = left - redis.call('HSTRLEN', key, ARGV[i])
    if left < 0 and fitting > 0 then return fitting end
    fitting = fitting + 1
  end
  at = last + 1
end
return fitting
"""
# KEYS: owner, and some blocks. ARGV: this server; then for each block how many ids, and these. Answers who
# the owner is if that is somebody else, empty if there is none.
_FORGET = """
local owner, at = redis.call('GET', KEYS[1]), 2
if owner ~= ARGV[1] then return owner or '' end
for block = 2, #KEYS do
  local last = at + tonumber(ARGV[at])
  for i = at + 1, last do redis.call('HDEL', KEYS[block], ARGV[i]) end
  at = last + 1
end
return nil
"""
# KEYS: jobs, and some blocks. ARGV: their numbers.
_DROP_EMPTY = """
for i = 2, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then redis.call('ZREM', KEYS[1], ARGV[i - 1]) end
end
"""
_log = Logger()


def open_redis(url: str, reactor: IReactorFromThreads) -> IJobStore:
    """Return a store in a Redis server; nothing is connected to yet.

    Args:
        url: ``redis://USER@HOST:PORT/NUMBER?OPTION=VALUE``.
        reactor: the reactor that the store will live in.

    Raises:
        StoreConfigError: the URL is invalid, or its password cannot be read.
    """
    parts = StoreUrl.parse(url, OPTIONS)
    prefix = parts.options.get("prefix", "gearman")
    if not prefix:
        raise StoreConfigError(f"{parts.scheme}: takes a prefix of at least a character")
    store = RedisStore(
        RedisAddress.of(parts),
        prefix.encode("utf-8", "surrogateescape"),
        parts.sync_interval(),
        must_keep=parts.is_on("durable", default=True),
    )
    return ThreadedStore(store, reactor)


class RedisStore(BlockingStore):
    """A job store in a Redis server; a ``ThreadedStore`` makes it one for the server.

    Args:
        address: of the server.
        prefix: the start of the names of all keys, before a colon.
        sync_interval: see ``IJobStore``; if it is not 0, Redis may sync to the disk once a second.
        must_keep: whether a server that may lose data is refused.
    """

    def __init__(
        self, address: RedisAddress, prefix: bytes, sync_interval: float, *, must_keep: bool
    ) -> None:
        self.description = f"{address.name}, prefix {prefix.decode('utf-8', 'replace')}" + (
            "" if must_keep else ", which may lose jobs"
        )
        self.sync_interval = sync_interval
        self._address = address
        self._must_keep = must_keep
        self._jobs = prefix + b":jobs"
        self._keys = redis_lock.Keys(prefix + b":version", prefix + b":owner", prefix + b":lock")
        self._max_value_bytes = 0
        self._warned: set[str] = set()
        # Set while the store is open; the connection is None after it was lost.
        self._me = b""
        self._connection: RedisConnection | None = None
        self._renewal: redis_lock.Renewal | None = None

    def check(self) -> None:
        connection = RedisConnection(self._address)
        try:
            self._check_server(connection, is_first=True)
            # Fails now if scripts are forbidden.
            connection.ask(("EVAL", "return 1", 0))
            redis_lock.wait_for(connection, self._keys)
        except redis_lock.Held as held:
            raise self._in_use(held) from None
        finally:
            connection.close()

    def connect(self) -> None:
        # Not earlier: the process is another one since it went to the background.
        self._me = redis_lock.key_value()
        try:
            self._connection = self._connect_and_lock(is_first=True)
        except BaseException as error:
            self._me = b""
            if isinstance(error, StoreError) and not isinstance(error, StoreConfigError | StoreUnavailable):
                raise StoreUnavailable(str(error)) from error
            raise
        self._renewal = redis_lock.Renewal(self._address, self._keys, self._me)
        self._renewal.start()

    def disconnect(self) -> None:
        if self._renewal is not None:
            self._renewal.stop()
            self._renewal = None
        connection, self._connection = self._connection, None
        if connection is not None:
            redis_lock.release(connection, self._keys, self._me)
            connection.close()
        self._me = b""

    def page(self, after: int) -> tuple[list[StoredJob], int | None]:
        connection = self._connected()
        first = max(after + 1, 0) >> BLOCK_BITS
        (answer,) = connection.ask(("ZRANGEBYSCORE", self._jobs, first, "+inf", "LIMIT", 0, PAGE_BLOCKS))
        blocks = [int(number) for number in answer]
        if not blocks:
            return [], None
        sizes = connection.ask(*[("HLEN", self._block(number)) for number in blocks])
        empty = [number for number, size in zip(blocks, sizes, strict=True) if not size]
        if empty:
            keys = [self._jobs, *map(self._block, empty)]
            connection.ask(("EVAL", _DROP_EMPTY, len(keys), *keys, *empty))
        chosen = []
        enough = PAGE_JOBS
        for number, size in zip(blocks, sizes, strict=True):
            if enough <= 0:
                break
            enough -= size
            chosen.append(number)
        ids = self._ids(connection, chosen, after)
        if not ids:
            return [], ((chosen[-1] + 1) << BLOCK_BITS) - 1
        ids = ids[: self._fitting(connection, ids[:PAGE_JOBS])]
        return self._read(connection, ids), ids[-1]

    def load(self, ids: Sequence[int]) -> list[StoredJob]:
        found = {job.id: job for job in self._read(self._connected(), ids)}
        return [found[id_] for id_ in ids if id_ in found]

    def apply(self, saves: Sequence[StoredJob], forgets: Sequence[int]) -> None:
        commands = self._saving(saves, set(forgets))
        connection = self._connected()
        key = self._keys.owner
        if commands:
            commands += [("HDEL", self._block(number), *ids) for number, ids in _by_block(forgets).items()]
            # Watched again at once, which saves the next one a round trip.
            *_, done, _, owner = connection.ask(
                ("MULTI",), *commands, ("EXEC",), ("WATCH", key), ("GET", key)
            )
            is_lost = done is None
        else:
            # A full Redis refuses every MULTI, and forgetting jobs is what makes room in it.
            keys, words = self._by_keys(forgets)
            (owner,) = connection.ask(("EVAL", _FORGET, 1 + len(keys), key, *keys, self._me, *words))
            is_lost = owner is not None
        if is_lost:
            connection.close()
            raise self._lost_to(redis_lock.Held(owner or b""))

    def _saving(self, saves: Sequence[StoredJob], forgets: set[int]) -> list[Command]:
        """Return the commands that save jobs, except those that are forgotten at once."""
        blocks: dict[int, list[bytes]] = {}
        try:
            for job in saves:
                if job.id in forgets:
                    continue
                record = _packed(job)
                if self._max_value_bytes and len(record) > self._max_value_bytes:
                    raise StoreError(
                        f"{self._address.name}: a job of {len(record)} bytes is too large; Redis takes up to "
                        f"{self._max_value_bytes}, see its proto-max-bulk-len"
                    )
                blocks.setdefault(job.id >> BLOCK_BITS, []).extend((b"%d" % job.id, record))
        except (TypeError, ValueError, OverflowError, struct.error) as error:
            raise StoreError(f"{self._address.name}: not a job that can be saved: {error}") from error
        commands: list[Command] = [("HSET", self._block(number), *words) for number, words in blocks.items()]
        if blocks:
            commands.append(("ZADD", self._jobs, *(number for block in blocks for number in (block, block))))
        return commands

    def _block(self, number: int) -> bytes:
        return b"%b:%d" % (self._jobs, number)

    def _by_keys(self, ids: Iterable[int]) -> tuple[list[bytes], list[int]]:
        """Return the keys of the ids' blocks, and for each block the number of ids, followed by them."""
        blocks = _by_block(ids)
        return [self._block(number) for number in blocks], [
            word for some in blocks.values() for word in (len(some), *some)
        ]

    def _connected(self) -> RedisConnection:
        """Return the connection; reconnect if it was lost, and check the server again."""
        if not self._me:
            raise StoreError(f"the job store is not open: {self.description}")
        if self._connection is None or not self._connection.is_open:
            self._connection = None
            try:
                self._connection = self._connect_and_lock(is_first=False)
            except StoreUnavailable:
                raise
            except StoreError as error:
                # It worked before, so it may work again.
                raise StoreUnavailable(str(error)) from error
        return self._connection

    def _connect_and_lock(self, *, is_first: bool) -> RedisConnection:
        """Return a connection to a server that was checked, and whose lock is ours."""
        connection = RedisConnection(self._address)
        try:
            # For CLIENT LIST. Not every user is allowed to.
            connection.ask_each(("CLIENT", "SETNAME", "gearman-twisted"))
            self._check_server(connection, is_first=is_first)
            dead = redis_lock.wait_for(connection, self._keys) if is_first else b""
            redis_lock.take(connection, self._keys, self._me, VERSION, dead=dead, again=not is_first)
        except redis_lock.Held as held:
            connection.close()
            raise (self._in_use(held) if is_first else self._lost_to(held)) from None
        except BaseException:
            connection.close()
            raise
        connection.has_worked = True
        return connection

    def _check_server(self, connection: RedisConnection, *, is_first: bool) -> None:
        """Refuse a server that does not keep jobs, and keys that are not ours."""
        self._check_settings(connection, is_first=is_first)
        version, owner, lock = self._keys.version, self._keys.owner, self._keys.lock
        keys = {version: b"string", owner: b"string", lock: b"string", self._jobs: b"zset"}
        types = dict(zip(keys, connection.ask(*[("TYPE", key) for key in keys]), strict=True))
        there = {key: kind for key, kind in types.items() if kind != b"none"}
        wrong = [key for key, kind in there.items() if kind != keys[key]]
        if wrong or (there and version not in there):
            names = ", ".join(key.decode("utf-8", "replace") for key in wrong or there)
            raise StoreConfigError(
                f"{self._address.name}: the keys {names} are of something else and were left as they are; "
                f"give another ?prefix="
            )
        if there:
            self._check_version(connection)
        elif not is_first:
            _log.error(
                "{name} has lost all of its jobs; new ones are saved there",
                name=self._address.name,
            )

    def _check_version(self, connection: RedisConnection) -> None:
        (answer,) = connection.ask(("GET", self._keys.version))
        text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else ""
        if not (text.isascii() and text.isdecimal() and int(text) >= 1):
            key = self._keys.version.decode("utf-8", "replace")
            raise StoreConfigError(
                f"{self._address.name}: the key {key} does not hold a version number; "
                f"restore it from a backup, or give another ?prefix="
            )
        if int(text) > VERSION:
            raise StoreConfigError(
                f"{self._address.name}: its keys have version {text}, and this release knows up to "
                f"{VERSION}; use the newer release that wrote them, or give another ?prefix="
            )

    def _check_settings(self, connection: RedisConnection, *, is_first: bool) -> None:
        """Refuse a server that may lose data; warn instead if the operator accepts that."""
        name = self._address.name
        kept = persistence_of(connection, may_lag=self.sync_interval > 0)
        self._max_value_bytes = kept.max_value_bytes
        self.max_workload_bytes = self._max_value_bytes - MAX_HEAD_BYTES
        if kept.is_cluster:
            raise StoreConfigError(f"{name} is a Redis Cluster, which is not supported; name a single server")
        if kept.is_replica:
            raise StoreUnavailable(f"{name} is a replica, which follows another server; name the primary")
        if kept.missing and self._must_keep:
            settings = " and ".join(f"CONFIG SET {setting}" for setting in kept.missing)
            once = "" if self.sync_interval else "; or accept a second's loss with ?sync=interval=1"
            lags = once if kept.missing == ["appendfsync always"] else ""
            raise StoreConfigError(
                f"{name} may lose jobs as it is set: say {settings} there, and the same in its file"
                f"{lags}; or accept that with ?durable=no"
            )
        if "appendonly" in kept.unknown and self._must_keep:
            raise StoreConfigError(
                f"{name} does not say whether it keeps jobs: allow this user CONFIG GET or INFO, "
                f"or accept that they may be lost with ?durable=no"
            )
        if kept.is_new and is_first and self._must_keep:
            # Until then a crash would leave it without one.
            raise StoreUnavailable(f"{name} still writes its first append-only file; try again in a moment")
        if kept.missing:
            self._warn_once(f"{name} may lose jobs: it lacks {', '.join(kept.missing)}")
        elif kept.unknown and self._must_keep:
            self._warn_once(
                f"{name} does not say what it has for {', '.join(kept.unknown)}; allow this user CONFIG GET "
                f"and INFO, or see for yourself that no jobs can be lost"
            )

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            _log.warn("{text}", text=text)

    def _in_use(self, held: redis_lock.Held) -> StoreInUse:
        return StoreInUse(
            f"{self.description} is in use by {held}; stop that server, or give this one a prefix of its own"
        )

    def _lost_to(self, held: redis_lock.Held) -> StoreUnavailable:
        if held.holder in {b"", self._me}:
            return StoreUnavailable(f"{self.description}: the key that says who writes there was changed")
        return StoreUnavailable(
            f"{self.description} was taken over by {held} while this server stood still; stop one of them"
        )

    def _ids(self, connection: RedisConnection, blocks: Sequence[int], after: int) -> list[int]:
        """Return all ids in some blocks that follow an id, in order."""
        ids: list[int] = []
        names = connection.ask(*[("HKEYS", self._block(number)) for number in blocks])
        for number, block_names in zip(blocks, names, strict=True):
            good = {int(name) for name in block_names if name.isdigit() and len(name) < 20}
            good = {id_ for id_ in good if id_ >> BLOCK_BITS == number and 1 <= id_ <= MAX_ID}
            if len(good) != len(block_names) and after < number << BLOCK_BITS:
                for name in block_names:
                    if name not in map(b"%d".__mod__, good):
                        self._report(name.decode("utf-8", "replace"))
            ids += sorted(id_ for id_ in good if id_ > after)
        return ids

    def _fitting(self, connection: RedisConnection, ids: Sequence[int]) -> int:
        """Return how many of the jobs, from the first on, fit a page."""
        keys, words = self._by_keys(ids)
        (fitting,) = connection.ask(("EVAL", _FITTING, len(keys), *keys, PAGE_BYTES, *words))
        return int(fitting)

    def _read(self, connection: RedisConnection, ids: Iterable[int]) -> list[StoredJob]:
        """Return the jobs of some ids, by blocks, without those that are missing or damaged."""
        blocks = _by_block(ids)
        if not blocks:
            return []
        answers = connection.ask(*[("HMGET", self._block(number), *some) for number, some in blocks.items()])
        jobs: list[StoredJob] = []
        for some, records in zip(blocks.values(), answers, strict=True):
            for id_, record in zip(some, records, strict=True):
                if record is None:
                    continue
                job = _unpacked(id_, record)
                if job is None:
                    self._report(str(id_))
                else:
                    jobs.append(job)
        return jobs

    def _report(self, id_: str) -> None:
        self.damaged += 1
        _log.error(
            "The stored job with id {id} is damaged; it stays in {store}, but is not run",
            id=id_,
            store=self.description,
        )


def _by_block(ids: Iterable[int]) -> dict[int, list[int]]:
    blocks: dict[int, list[int]] = {}
    for id_ in ids:
        blocks.setdefault(id_ >> BLOCK_BITS, []).append(id_)
    return blocks


def _packed(job: StoredJob) -> bytes:
    id_, handle, function, unique, workload, priority, run_at, reducer, schedule = job
    if not (1 <= id_ <= MAX_ID and 0 <= priority <= 2 and run_at >= 0):
        raise ValueError(f"id {id_}, priority {priority}, run_at {run_at}")
    lengths = len(handle), len(function), len(unique), len(reducer), len(schedule)
    head = _RECORD.pack(_RECORD_VERSION, priority, run_at, *lengths)
    return b"".join((head, handle, function, unique, reducer, schedule, workload))


def _unpacked(id_: int, record: bytes) -> StoredJob | None:
    """Return the job of a record; None if it is damaged."""
    if len(record) < _RECORD.size:
        return None
    version, priority, run_at, handle, function, unique, reducer, schedule = _RECORD.unpack_from(record)
    handle += _RECORD.size
    function += handle
    unique += function
    reducer += unique
    schedule += reducer
    if version != _RECORD_VERSION or priority > 2 or run_at < 0 or schedule > len(record):
        return None
    return StoredJob(
        id_,
        record[_RECORD.size : handle],
        record[handle:function],
        record[function:unique],
        record[schedule:],
        priority,
        run_at,
        record[unique:reducer],
        record[reducer:schedule],
    )
