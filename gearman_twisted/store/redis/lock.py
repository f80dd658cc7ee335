"""Who has the jobs in a Redis server: one job server, until it releases them or stands still for too long.

Two keys say so. ``owner`` is the server that took them last: it never expires, and every write watches it.
``lock`` is the server that has them now: it expires, and is renewed.
"""

from __future__ import annotations

import secrets
import threading
import time
from contextlib import suppress

import attrs
from twisted.logger import Logger

from gearman_twisted.errors import StoreError
from gearman_twisted.store.holder import Holder
from gearman_twisted.store.redis.connection import Command, RedisAddress, RedisConnection

# A server that stands still for so many seconds may be replaced; a start after a crash waits as long.
LOCK_SECONDS = 10.0
_POLL = 0.1

# KEYS: version, owner, lock. ARGV: this server, another one that is dead, milliseconds, whether it had the
# jobs before, version. Answers who has the jobs, or nil when they were taken. A full Redis refuses SET, so
# that is done only where it changes something.
_TAKE = """
local owner, lock = redis.call('GET', KEYS[2]), redis.call('GET', KEYS[3])
if lock and lock ~= ARGV[1] and lock ~= ARGV[2] then return lock end
if ARGV[4] == 'again' and owner and owner ~= ARGV[1] then return owner end
if not redis.call('GET', KEYS[1]) then redis.call('SET', KEYS[1], ARGV[5]) end
if owner ~= ARGV[1] then redis.call('SET', KEYS[2], ARGV[1]) end
if lock == ARGV[1] then redis.call('PEXPIRE', KEYS[3], ARGV[3])
else redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[3]) end
return nil
"""
# KEYS: owner, lock. ARGV: this server, milliseconds.
_RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return nil end
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('PEXPIRE', KEYS[2], ARGV[2])
else redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2], 'NX') end
return nil
"""
# KEYS: lock. ARGV: this server.
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"
_log = Logger()


@attrs.frozen
class Keys:
    """The names of the keys that a lock works on.

    Attributes:
        version: the number of the layout, which is written with the first lock.
        owner: who took the jobs last.
        lock: who has them now.
    """

    version: bytes
    owner: bytes
    lock: bytes


class Held(Exception):
    """Somebody else has the jobs.

    Args:
        holder: the value of the key; empty if there is no key.
    """

    def __init__(self, holder: bytes) -> None:
        super().__init__(holder)
        self.holder = holder

    def __str__(self) -> str:
        known = parse(self.holder)
        return known.describe() if known else f"whoever wrote {self.holder!r:.100}"


def key_value() -> bytes:
    """Return the value of the keys: a new random token, and this process."""
    return f"{secrets.token_hex(8)} {Holder.me()}".encode("utf-8", "surrogateescape")


def parse(key_value: bytes) -> Holder | None:
    """Return the process that a key names; None if the key was not written by a server of ours."""
    return Holder.parse(key_value.decode("utf-8", "replace").partition(" ")[2])


def take(
    connection: RedisConnection,
    keys: Keys,
    me: bytes,
    version: int,
    *,
    dead: bytes = b"",
    again: bool = False,
) -> None:
    """Take the jobs, and watch the owner from then on.

    Args:
        connection: to the server that has the jobs.
        keys: the names of the keys.
        me: their new value.
        version: the layout's number, written if there is none.
        dead: a holder that may be replaced; empty if there is none.
        again: whether the jobs were this server's before; they are only taken if nobody had them meanwhile.

    Raises:
        Held: they cannot be taken.
        StoreError: Redis refused, or was lost.
    """
    words = (me, dead, _milliseconds(), "again" if again else "first", version)
    holder, _, owner = connection.ask(
        ("EVAL", _TAKE, 3, keys.version, keys.owner, keys.lock, *words),
        ("WATCH", keys.owner),
        ("GET", keys.owner),
    )
    if holder is not None or owner != me:
        raise Held(holder or owner or b"")


def release(connection: RedisConnection, keys: Keys, me: bytes) -> None:
    """Release the jobs, if they are still this server's; if that fails, the lock expires."""
    with suppress(StoreError):
        connection.ask(("EVAL", _RELEASE, 1, keys.lock, me))


def wait_for(connection: RedisConnection, keys: Keys) -> bytes:
    """Wait until the jobs may be taken: nobody has them, or their holder is dead or has not renewed its lock.

    Returns:
        The dead holder, empty if there is none.

    Raises:
        Held: another server has them, and is alive.
        StoreError: Redis refused, or was lost.
    """
    deadline = time.monotonic() + LOCK_SECONDS + 1.0
    last: int | None = None
    while True:
        text, milliseconds = connection.ask(("GET", keys.lock), ("PTTL", keys.lock))
        if text is None:
            return b""
        holder = parse(text)
        is_alive = holder.is_alive() if holder is not None else None
        if is_alive is False:
            return bytes(text)
        never_expires = milliseconds == -1
        was_renewed = last is not None and milliseconds > last
        if is_alive or never_expires or was_renewed or time.monotonic() > deadline:
            raise Held(text)
        if last is None:
            _log.info(
                "waiting up to {milliseconds} ms for the lock of {holder}, which may be dead",
                holder=str(Held(text)),
                milliseconds=milliseconds,
            )
        last = milliseconds
        time.sleep(_POLL)


class Renewal(threading.Thread):
    """Renews a lock independently of the store's thread, on a connection of its own.

    Args:
        address: of the server that has the jobs.
        keys: the names of the keys.
        me: their value.
    """

    def __init__(self, address: RedisAddress, keys: Keys, me: bytes) -> None:
        super().__init__(name="gearman job store lock", daemon=True)
        self._address = address
        self._script: Command = ("EVAL", _RENEW, 2, keys.owner, keys.lock, me, _milliseconds())
        self._interval = LOCK_SECONDS / 4
        self._stopped = threading.Event()

    def run(self) -> None:
        """Renew the lock until ``stop``. Failures are retried silently: the store's own calls report them."""
        connection: RedisConnection | None = None
        while not self._stopped.wait(self._interval):
            with suppress(StoreError):
                if connection is None or not connection.is_open:
                    connection = RedisConnection(self._address)
                connection.ask(self._script)
        if connection is not None:
            connection.close()

    def stop(self) -> None:
        """Stop, and wait for the end of the thread unless Redis hangs."""
        self._stopped.set()
        self.join(1.0)


def _milliseconds() -> int:
    return round(LOCK_SECONDS * 1000)
