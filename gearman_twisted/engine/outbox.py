"""What should be done: the engine's answer to everything that happens.

The engine does nothing itself. Whoever called it performs the Outbox: sends, saves and closes.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from typing import NamedTuple

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


class Shutdown(enum.Enum):
    """How an operator wants the server to end."""

    NOW = "now"
    GRACEFUL = "graceful"


@attrs.define
class Outbox:
    """What should be done, each list in order.

    Attributes:
        writes: for each connection, by the number that ``connect`` was told, the chunks of bytes to
            send it.
        saves: jobs to bring onto stable storage; each is answered with ``saved`` or ``save_failed``.
        forgets: ids of jobs that the store should drop, after the saves; needs no answer. An id that
            was forgotten is never saved again.
        loads: ids of jobs to read from the store, each list with the number under which ``loaded`` wants
            to be told.
        closes: the numbers of connections to close once their writes are sent.
        shutdown: how the whole server shall end, if it shall.
        accepted: submissions that were answered with JOB_CREATED, for the log: function, unique, and seconds
            since 1970, reducer or schedule. None where there are none, or ``notes_accepted`` is not set.
    """

    writes: defaultdict[int, list[bytes]] = attrs.field(factory=lambda: defaultdict(list))
    saves: list[StoredJob] = attrs.field(factory=list)
    forgets: list[int] = attrs.field(factory=list)
    loads: list[tuple[int, list[int]]] = attrs.field(factory=list)
    closes: list[int] = attrs.field(factory=list)
    shutdown: Shutdown | None = None
    accepted: list[tuple[bytes, bytes, bytes]] | None = None
