"""Who has the jobs in a Redis server: one job server, until it gives them back or stands still too long.

Two keys say so. ``owner`` is the server that took them last; it never expires, and whoever writes jobs
watches it. ``lock`` is the server that has them now; it expires, and is renewed.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import attrs
from twisted.logger import Logger

from gearman_twisted.errors import StoreError
from gearman_twisted.store.redis.link import Command, Link, Place

# Seconds that a server may stand still before another one may take over; a start after a crash waits so long.
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


@attrs.frozen
class Holder:
    """A server that has the jobs, as the keys name it.

    Attributes:
        token: chosen by chance each time that a store is opened.
        machine: the machine, and the part of it in which process ids mean something; empty if not known.
        process: its process id.
        host: the machine's name.
    """

    token: str
    machine: str
    process: int
    host: str

    @classmethod
    def me(cls) -> Holder:
        """This process, with a new token."""
        return cls(secrets.token_hex(8), _machine(), os.getpid(), socket.gethostname())

    @classmethod
    def parse(cls, text: bytes) -> Holder | None:
        """The holder that a key names; None if it was not written by a server of ours."""
        words = text.decode("utf-8", "replace").split(" ", 3)
        if len(words) != 4 or not (words[2].isascii() and words[2].isdecimal()):
            return None
        return cls(words[0], words[1], int(words[2]), words[3])

    def key_value(self) -> bytes:
        """What the keys hold."""
        return f"{self.token} {self.machine} {self.process} {self.host}".encode("utf-8", "surrogateescape")

    def is_alive(self) -> bool | None:
        """Whether its process runs; None where that cannot be told from here."""
        if not self.machine or self.machine != _machine():
            return None
        try:
            os.kill(self.process, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except OSError:
            pass  # there is one, of another user
        return True


class Held(Exception):
    """Somebody else has the jobs.

    Args:
        holder: what the key holds; empty if it is not there.
    """

    def __init__(self, holder: bytes) -> None:
        super().__init__(holder)
        self.holder = holder

    def __str__(self) -> str:
        known = Holder.parse(self.holder)
        return f"process {known.process} on {known.host}" if known else f"whoever wrote {self.holder!r:.100}"


def take(link: Link, keys: Keys, me: bytes, version: int, *, dead: bytes = b"", again: bool = False) -> None:
    """Takes the jobs, and watches the owner from then on.

    Args:
        link: where they are.
        keys: the names of the keys.
        me: what they shall hold.
        version: what to write as the layout's number where there is none.
        dead: a holder that may be set aside; empty if there is none.
        again: whether they were this server's before, and may only be taken if nobody had them meanwhile.

    Raises:
        Held: they cannot be taken.
        StoreError: Redis refused, or was lost.
    """
    words = (me, dead, _milliseconds(), "again" if again else "first", version)
    holder, _, owner = link.ask(
        ("EVAL", _TAKE, 3, keys.version, keys.owner, keys.lock, *words),
        ("WATCH", keys.owner),
        ("GET", keys.owner),
    )
    if holder is not None or owner != me:
        raise Held(holder or owner or b"")


def release(link: Link, keys: Keys, me: bytes) -> None:
    """Gives the jobs back, if they are still this server's; the lock expires where that fails."""
    with suppress(StoreError):
        link.ask(("EVAL", _RELEASE, 1, keys.lock, me))


def wait_for(link: Link, keys: Keys) -> bytes:
    """Waits until the jobs may be taken: nobody has them, or who has is dead, or stood still for too long.

    Returns:
        The dead holder, empty if there is none.

    Raises:
        Held: another server has them, and is alive.
        StoreError: Redis refused, or was lost.
    """
    deadline = time.monotonic() + LOCK_SECONDS + 1.0
    last: int | None = None
    while True:
        text, milliseconds = link.ask(("GET", keys.lock), ("PTTL", keys.lock))
        if text is None:
            return b""
        holder = Holder.parse(text)
        is_alive = holder.is_alive() if holder is not None else None
        if is_alive is False:
            return bytes(text)
        never_expires = milliseconds == -1
        was_renewed = last is not None and milliseconds > last
        if is_alive or never_expires or was_renewed or time.monotonic() > deadline:
            raise Held(text)
        if last is None:
            _log.info(
                "Waiting for the lock of {holder}, which may be dead, for up to {milliseconds} ms",
                holder=str(Held(text)),
                milliseconds=milliseconds,
            )
        last = milliseconds
        time.sleep(_POLL)


class Renewal(threading.Thread):
    """Renews a lock while the store's thread has nothing to do, or too much; on a link of its own.

    Args:
        place: where the jobs are.
        keys: the names of the keys.
        me: what they hold.
    """

    def __init__(self, place: Place, keys: Keys, me: bytes) -> None:
        super().__init__(name="gearman job store lock", daemon=True)
        self._place = place
        self._script: Command = ("EVAL", _RENEW, 2, keys.owner, keys.lock, me, _milliseconds())
        self._interval = LOCK_SECONDS / 4
        self._stopped = threading.Event()

    def run(self) -> None:
        """Does so until it is stopped; what fails is tried again, and told by the store's own calls."""
        link: Link | None = None
        while not self._stopped.wait(self._interval):
            with suppress(StoreError):
                if link is None or not link.is_open:
                    link = Link(self._place)
                link.ask(self._script)
        if link is not None:
            link.close()

    def stop(self) -> None:
        """Has it end, and waits for that unless Redis hangs."""
        self._stopped.set()
        self.join(1.0)


def _milliseconds() -> int:
    return round(LOCK_SECONDS * 1000)


def _machine() -> str:
    """This machine since its start, and its view of process ids; empty if not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""
