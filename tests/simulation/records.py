"""What the checker knows of submissions, jobs and connections."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import attrs


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
    reducer: bytes = b""
    schedule: bytes = b""


@attrs.define(eq=False)
class Part:
    """A part of a reduce job, which is a job of its reducer.

    Attributes:
        whole: the reduce job.
        asked: what the server has to make of it.
        pieces: its result so far.
        is_open: its result is awaited.
        record: the job, None until the server has made it.
    """

    whole: Record
    asked: Submission
    pieces: list[bytes] = attrs.field(factory=list)
    is_open: bool = True
    record: Record | None = None


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
        parts: what it was split into, in order, since it was given to a worker that knows of no reducers;
            None if it was not.
        is_split: it was split whole, and ends with its parts.
        part: which part of a reduce job it is, None if it is none.
        knew_reducer: some worker was told of its reducer, and may have sent its clients what it liked.
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
    parts: list[Part] | None = None
    is_split: bool = False
    part: Part | None = None
    knew_reducer: bool = False

    @property
    def is_reducing(self) -> bool:
        """Whether it is a reduce job that waits for its parts, or one of those."""
        return not self.is_over and (self.is_split or (self.part is not None and self.part.is_open))


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
        late: the jobs that a time limit took from it and whose end it has not reported, with how often they
            had been taken from a worker then; -1 if data that it sent since were dropped.
        excepted: the handle of the job that it ended last with an exception, until its failure comes.
        is_asleep: it is to be woken for a job.
        noop_at: when it was woken, if it has not grabbed since.
        wants_exceptions: it asked for them.
    """

    number: int
    expected: deque[Submission | tuple[int, bytes]] = attrs.field(factory=deque)
    waiting: dict[bytes, int] = attrs.field(factory=dict)
    abilities: dict[bytes, float] = attrs.field(factory=dict)
    running: dict[Record, None] = attrs.field(factory=dict)
    late: dict[Record, int] = attrs.field(factory=dict)
    excepted: bytes | None = None
    is_asleep: bool = False
    noop_at: float | None = None
    wants_exceptions: bool = False
