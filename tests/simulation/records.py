"""What the checker knows of submissions, jobs and connections."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import attrs

from gearman_twisted.wire.constants import PacketType, Priority

P = PacketType

SUBMITS: dict[int, tuple[Priority, bool]] = {
    P.SUBMIT_JOB: (Priority.NORMAL, False),
    P.SUBMIT_JOB_HIGH: (Priority.HIGH, False),
    P.SUBMIT_JOB_LOW: (Priority.LOW, False),
    P.SUBMIT_JOB_BG: (Priority.NORMAL, True),
    P.SUBMIT_JOB_HIGH_BG: (Priority.HIGH, True),
    P.SUBMIT_JOB_LOW_BG: (Priority.LOW, True),
    P.SUBMIT_JOB_EPOCH: (Priority.NORMAL, True),
    P.SUBMIT_JOB_SCHED: (Priority.NORMAL, True),
}
"""What may be submitted: priority, and whether it is a background job."""


class Violation(Exception):
    """The server did what it must not."""


class Submission(NamedTuple):
    """What a client asked for."""

    function: bytes
    unique: bytes
    workload: bytes
    priority: int
    is_background: bool
    run_at: int
    schedule: bytes = b""


@attrs.define(eq=False)
class Record:
    """What is known of a job.

    Attributes:
        handle: its handle.
        asked: the submission that made it.
        is_promised: a background submission of it was acknowledged.
        is_over: it was ended by its worker, cancelled, or taken away too often; none may get it again.
        ending: what its clients have to be told then: the type, and the data if there are any.
        holder: the worker that has it.
        attempts: how often it was taken from one.
        assignments: how often it was given to one.
        rank: its place in its lane, 0 if it is not there; lower ranks go first, equal ones as they like.
        row_id: under which id it was saved last, 0 if never.
        awaits_save: no worker may have it yet.
    """

    handle: bytes
    asked: Submission
    is_promised: bool = False
    is_over: bool = False
    ending: tuple[int, bytes] | None = None
    holder: Link | None = None
    attempts: int = 0
    assignments: int = 0
    rank: int = 0
    row_id: int = 0
    awaits_save: bool = False


@attrs.define(eq=False)
class Link:
    """What is known of a connection.

    Attributes:
        number: its own.
        expected: what it is still to be sent in reply, in order: a submission, or the kind of the reply
            with what it must say.
        waiting: how many endings it is to be sent for each handle.
        abilities: the functions that it registered, with their time limits.
        running: the jobs that it has, oldest first.
        is_asleep: it is to be woken for a job.
        noop_at: when it was woken, if it has not grabbed since.
        wants_exceptions: it asked for them.
    """

    number: int
    expected: deque[Submission | tuple[int, bytes]] = attrs.field(factory=deque)
    waiting: dict[bytes, int] = attrs.field(factory=dict)
    abilities: dict[bytes, float] = attrs.field(factory=dict)
    running: dict[Record, None] = attrs.field(factory=dict)
    is_asleep: bool = False
    noop_at: float | None = None
    wants_exceptions: bool = False
