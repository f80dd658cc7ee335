"""What should be done: the engine's answer to everything that happens.

The engine does nothing itself. Its caller performs the Outbox: sends, saves and closes.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import attrs


class StoredJob(NamedTuple):
    """A job as a store keeps it: all that is needed to run it after a restart.

    Attributes:
        id: a number of its own, never given twice, rising in the order of submission; 1 to 2**63 - 1.
        handle: the job's handle, which it keeps over restarts; at most 64 bytes.
        function: the function's name; 0 to 8191 bytes, any but NUL.
        unique: the client's unique; 0 to 64 bytes, any but NUL; not unique among stored jobs.
        workload: any bytes, may be empty.
        priority: 0 high, 1 normal, 2 low.
        run_at: seconds since 1970 before which it may not run, 0 for at once; fits 64 bits.
        reducer: the reducer's name for a reduce job, else empty.
        schedule: for a recurring job its five fields, with blanks between them; else empty.
    """

    id: int
    handle: bytes
    function: bytes
    unique: bytes
    workload: bytes
    priority: int
    run_at: int = 0
    reducer: bytes = b""
    schedule: bytes = b""


class GivenUp(NamedTuple):
    """A job that the engine ended by itself, for the log.

    Attributes:
        handle, function, unique: the job's.
        reason: why, in a few words.
    """

    handle: bytes
    function: bytes
    unique: bytes
    reason: str


class Shutdown(enum.Enum):
    """How an operator wants the server to end."""

    NOW = "now"
    GRACEFUL = "graceful"


# One Outbox is made for every read of every peer, and most have writes only: the lists are made when they are
# needed. Adding to the tuple by mistake is an error.
_NOTHING: list[Any] = cast("list[Any]", ())
_no_writes: Callable[[], defaultdict[int, list[bytes]]] = partial(defaultdict, list)


@attrs.define
class Outbox:
    """What should be done, each list in order.

    Attributes:
        writes: for each connection, by the number that ``connect`` was told, the chunks of bytes to
            send it.
        saves: jobs to bring onto stable storage; each is answered with ``saved`` or ``save_failed``.
        forgets: ids of jobs that the store should drop, after the saves; needs no answer. An id that
            was forgotten is never saved again.
        awaits: if not 0, the number under which ``forgotten`` wants to be told once the store has
            forgotten all that it was asked to so far, these forgets included.
        loads: ids of jobs to read from the store, each list with the number under which ``loaded`` wants
            to be told.
        closes: the numbers of connections to close once their writes are sent.
        shutdown: how the whole server has to end; None if it does not.
        accepted: submissions that were answered with JOB_CREATED, for the log: function, unique, and seconds
            since 1970, reducer or schedule. None where there are none, or ``notes_accepted`` is not set.
        given_up: jobs that the engine ended by itself, for the log: attempts used up, row gone,
            a part of a reduce job failed.
        has_gaps: a reply waits for the store.
        is_out_of_memory: a job was refused because the memory is used up.
    """

    writes: defaultdict[int, list[bytes]] = attrs.field(factory=_no_writes)
    saves: list[StoredJob] = _NOTHING
    forgets: list[int] = _NOTHING
    awaits: int = 0
    loads: list[tuple[int, list[int]]] = _NOTHING
    closes: list[int] = _NOTHING
    shutdown: Shutdown | None = None
    accepted: list[tuple[bytes, bytes, bytes]] | None = None
    given_up: list[GivenUp] = _NOTHING
    has_gaps: bool = False
    is_out_of_memory: bool = False

    def save(self, job: StoredJob) -> None:
        """Add a job to ``saves``."""
        if self.saves:
            self.saves.append(job)
        else:
            self.saves = [job]

    def forget(self, id_: int) -> None:
        """Add a job's id to ``forgets``."""
        if self.forgets:
            self.forgets.append(id_)
        else:
            self.forgets = [id_]

    def close(self, number: int) -> None:
        """Add a connection to ``closes``."""
        self.closes = [*self.closes, number]

    def load(self, number: int, ids: list[int]) -> None:
        """Add a request to ``loads``."""
        self.loads = [*self.loads, (number, ids)]


class Turn:
    """The call of the engine that is being handled.

    Attributes:
        now: its time in seconds, by a clock that is never set; durations are measured by it.
        wall_offset: how far the wall clock is ahead of that one.
        out: its effects so far.
        due_by: no ``tick`` is wanted before this time.
    """

    __slots__ = ("due_by", "now", "out", "wall_offset")

    def __init__(self) -> None:
        self.now = 0.0
        self.wall_offset = 0.0
        self.out = Outbox()
        self.due_by = float("inf")

    @property
    def wall(self) -> float:
        """The time by the wall clock, in seconds since 1970."""
        return self.now + self.wall_offset

    def take(self) -> Outbox:
        """End the call; return its effects."""
        out, self.out = self.out, Outbox()
        return out
