"""The jobs as they must be: what the server was promised to keep, in which lane each waits, who has it.

It follows what happens to the server and its store; packets are judged in ``checker``.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NoReturn

from gearman_twisted.engine.jobserver import JobServer
from gearman_twisted.engine.outbox import Outbox
from gearman_twisted.engine.records import Job
from gearman_twisted.store.contract import StoredJob
from gearman_twisted.wire.constants import PacketType
from tests.simulation.records import Link, Part, Record, Submission, Violation

P = PacketType

_NEVER = float("inf")
_ROUNDING = 1e-6


class _Jobs:
    """All jobs that a server has, by handle, offloaded ones included."""

    def __init__(self, engine: JobServer) -> None:
        self._engine = engine
        self._in_memory = engine.inspection.jobs

    def get(self, handle: bytes) -> Job | None:
        return self._in_memory.get(handle) or self._engine.inspection.find(handle)

    def __contains__(self, handle: bytes) -> bool:
        return handle in self._in_memory or self._engine.inspection.find(handle) is not None

    def values(self) -> Iterable[Job]:
        return self._engine.views.jobs()


class Ledger:
    """All jobs of one server, over its restarts; ``Checker`` adds the packets.

    Args:
        rows: what the store has.
        durable: whether background jobs are promised to survive.
        prefix: what handles start with.
        retries: how often a job may be taken from a worker, -1 for ever.
        max_reduced_bytes: how long the results of a reduce job may be together.
        limited: the function that takes only so many jobs, None if none is so.

    Attributes:
        now: the time; for the world to set.
        wall_offset: how far the wall clock is ahead, as far as the server knows.
        violation: what was wrong, None while nothing was; it may have been raised where it was caught.
        links: the connections by number.
        records: the jobs by handle.
    """

    def __init__(
        self,
        rows: dict[int, StoredJob],
        *,
        durable: bool,
        prefix: bytes,
        retries: int,
        max_reduced_bytes: int,
        limited: bytes | None,
    ) -> None:
        self.now = 0.0
        self.wall_offset = 0.0
        self.violation: str | None = None
        self.links: dict[int, Link] = {}
        self.records: dict[bytes, Record] = {}
        self._rows = rows
        self._durable = durable
        self._prefix = prefix
        self._retries = retries
        self._max_reduced_bytes = max_reduced_bytes
        self._limited = limited
        self._lanes: dict[bytes, tuple[deque[tuple[int, Record]], ...]] = {}
        self._names: list[bytes] = []
        self._rank = 0
        # Time limits, and scheduled jobs by the wall clock: when, a number for order, the job, its number of
        # assignments.
        self._agenda: list[tuple[float, int, Record, int]] = []
        self._scheduled: list[tuple[float, int, Record, int]] = []
        self._agenda_number = 0
        # The recurring jobs: when each is due next, and those that are due now.
        self._calendar: dict[Record, int] = {}
        self._due: dict[Record, bool] = {}
        # What new jobs may come of, in order; parts are expected until they are there.
        self._submitted: list[Submission | Part] = []
        self._last_id = 0
        self._by_row: dict[int, Record] = {}
        self._forgotten: set[int] = set()
        self._forgotten_by_store: set[int] = set()
        # The handles of jobs whose cancel was answered with OK.
        self._confirmed_cancels: set[bytes] = set()

    def fail(self, text: str) -> NoReturn:
        """Something is wrong."""
        self.violation = self.violation or text
        raise Violation(text)

    # What happens to the server.

    def started(self, engine: JobServer) -> None:
        """A server starts, with what the store has; the one before it is gone with all connections."""
        self._jobs = _Jobs(engine)
        self._makers = engine.inspection.recurring
        self._engine = engine
        self._last_id = engine.inspection.last_id
        self._forgotten.clear()
        self.links.clear()
        self._agenda.clear()
        self._scheduled.clear()
        self._calendar.clear()
        for lanes in self._lanes.values():
            for lane in lanes:
                lane.clear()
        for record in self.records.values():
            if (
                self._durable
                and record.is_promised
                and not record.is_over
                and record.row_id not in self._rows
            ):
                self.fail(f"{record.handle!r} was acknowledged and is not in the store after the crash")
        self.records = {}
        known, self._by_row = self._by_row, {}
        for id_ in sorted(self._rows):
            stored = self._rows[id_]
            if stored.handle in self._confirmed_cancels:
                self.fail(f"{stored.handle!r} was cancelled, the operator was told, and it comes back")
            old = known.get(id_)
            if old is None or stored[1:] != (
                old.handle,
                old.asked.function,
                old.asked.unique,
                old.asked.workload,
                old.asked.priority,
                old.asked.run_at,
                old.asked.reducer,
                old.asked.schedule,
            ):
                self.fail(f"the store has {stored}, which is not what was submitted: {old}")
            if (twin := self.records.get(stored.handle)) is not None:
                # Its first save was reported as failed, and came through; the later one counts.
                twin.row_id = id_
                self._by_row[id_] = twin
                continue
            record = Record(old.handle, old.asked, old.is_promised, row_id=id_)
            self.records[stored.handle] = self._by_row[id_] = record
            self._admit(record)
        self._last_id = max([self._last_id, *self._rows])
        self.scan()

    def wall_clock_was_set(self, offset: float) -> None:
        """The server is about to be told how far the wall clock is ahead."""
        change, self.wall_offset = offset - self.wall_offset, offset
        if change <= -60:
            for record in self._calendar:
                self._calendar[record] = self._next_time(record)

    def _take_due(self) -> tuple[float, Record, int] | None:
        """Take what is due next, by the clock of ``now``: when, the job, its number of assignments."""
        limit = self._agenda[0][0] if self._agenda else _NEVER
        scheduled = self._scheduled[0][0] - self.wall_offset if self._scheduled else _NEVER
        due = min(limit, scheduled)
        if due > self.now:
            return None
        _, _, record, assignments = heapq.heappop(self._agenda if limit <= scheduled else self._scheduled)
        return due, record, assignments

    def ticked(self) -> None:
        """The server is about to be told that time has passed."""
        self._look_at_calendar()
        last = -1.0
        self._rank += 1
        while (taken := self._take_due()) is not None:
            due, record, assignments = taken
            # A recurring job's next one may go between any two of these, so they share a rank then.
            self._rank += due != last and not self._calendar
            last = due
            if record.is_over and record.holder is None:
                continue
            if assignments == 0:
                self._queue(record)
            elif (holder := record.holder) is not None and record.assignments == assignments:
                self._take_away(record)
                holder.late[record] = record.attempts

    def saved(self, ids: Sequence[int]) -> None:
        """The server is about to be told that jobs were saved."""
        for id_ in ids:
            record = self._by_row.get(id_)
            if record is not None and record.awaits_save:
                record.awaits_save = False
                if not record.is_over:
                    self._admit(record)

    def applied(self, saves: Sequence[StoredJob]) -> None:
        """The store is asked for a commit."""
        for job in saves:
            if job.id in self._forgotten_by_store:
                self.fail(f"{job.handle!r} is saved after it was forgotten")

    def committed(self, forgets: Sequence[int]) -> None:
        """The store reports a commit as done."""
        self._forgotten_by_store.update(forgets)

    def asked_of_store(self, out: Outbox) -> None:
        """The engine wants jobs to be saved and forgotten."""
        for job in out.saves:
            if not self._durable:
                self.fail(f"{job.handle!r} is saved, though nothing is durable")
            if job.id in self._forgotten:
                self.fail(f"{job.handle!r} is to be saved after it was to be forgotten")
            record = self.records.get(job.handle)
            if record is None:
                self.fail(f"the unknown {job.handle!r} is saved")
            if record.part is not None:
                self.fail(f"{job.handle!r} is saved, and is a part of {record.part.whole.handle!r}")
            record.row_id = job.id
            self._by_row[job.id] = record
        for id_ in out.forgets:
            if id_ in self._forgotten:
                self.fail(f"{id_} is forgotten twice")
            self._forgotten.add(id_)
            record = self._by_row.get(id_)
            if record is not None and record.is_promised and not record.is_over and record.row_id == id_:
                self.fail(f"{record.handle!r} is forgotten, and has not ended")

    def made_jobs(self) -> None:
        """The server has taken what it was sent: looks which jobs it made of it."""
        submitted = iter(self._submitted)
        while self._last_id < self._engine.inspection.last_id:
            self._last_id += 1
            handle = b"%b:%d" % (self._prefix, self._last_id)
            job = self._jobs.get(handle) or self._makers.get(handle)
            if job is None:
                continue  # a new id of an old job, see Submissions.save_failed, or a part that has ended
            made = job.function.name, job.workload, job.schedule is not None
            part = None
            for source in submitted:
                part, asked = (source, source.asked) if isinstance(source, Part) else (None, source)
                if (asked.function, asked.workload, bool(asked.schedule)) == made:
                    break
            else:
                self._made_again(handle, job)
                continue
            record = self.records[handle] = Record(handle, asked, part=part)
            if part is not None:
                part.record = record
            if asked.is_background and self._durable and part is None:
                record.awaits_save = True
            else:
                self._admit(record)
        for source in self._submitted:
            if isinstance(source, Part) and source.is_open and source.record is None:
                self.fail(f"no job was made of {source.asked.workload!r}, a part of {source.whole.handle!r}")
        self._submitted.clear()
        self._check_due()

    # Recurring jobs.

    def _take_place(self, record: Record) -> None:
        """A recurring job is there from now on instead of the one that had its unique, if there was one."""
        function, unique = record.asked.function, record.asked.unique
        for other in list(self._calendar):
            if unique and (other.asked.function, other.asked.unique) == (function, unique):
                self._end(other, P.WORK_FAIL)

    def _look_at_calendar(self) -> None:
        """Find those that are due, and whether a job has to be made of them."""
        for record in [r for r, time in self._calendar.items() if time - self.wall_offset <= self.now]:
            if record.is_over:
                del self._calendar[record]
                continue
            self._calendar[record] = self._next_time(record)
            name, unique = record.asked.function, record.asked.unique
            # One that was made before, and may end in the same tick, is enough; so is a full queue.
            is_there = any((job.function.name, job.unique) == (name, unique) for job in self._jobs.values())
            self._due[record] = not is_there and name != self._limited

    def _made_again(self, handle: bytes, job: Job) -> None:
        """A job was made of a recurring one, which must be due."""
        made = job.function.name, job.unique, job.workload
        for record in self._due:
            asked = record.asked
            if (asked.function, asked.unique, asked.workload) == made:
                break
        else:
            self.fail(f"{handle!r} was made, which nobody submitted, and no recurring job is due")
        del self._due[record]
        next_one = self.records[handle] = Record(handle, asked._replace(schedule=b""))
        if self._durable:
            next_one.awaits_save = True
        else:
            self._queue(next_one)

    def _next_time(self, record: Record) -> int:
        """When a recurring job is due next: in the minutes that are multiples of the first field's step."""
        seconds = 60 * int(record.asked.schedule.split()[0].partition(b"/")[2] or 1)
        return int((self.now + self.wall_offset + _ROUNDING) // seconds + 1) * seconds

    def _check_due(self) -> None:
        for record, has_to_run in self._due.items():
            if has_to_run:
                self.fail(f"{record.handle!r} is due, and no job was made of it")
        self._due.clear()

    def scan(self) -> None:
        """Whatever was promised is there, and every job is where it was last seen."""
        for record in self.records.values():
            if record.is_promised and not record.is_over:
                if record.handle not in self._jobs and record.handle not in self._makers:
                    self.fail(f"{record.handle!r} was acknowledged, and the server has it no more")
                if self._durable and record.row_id not in self._rows:
                    self.fail(f"{record.handle!r} was acknowledged, and is not in the store")
            job = self._jobs.get(record.handle)
            if job is None and record.is_reducing:
                self.fail(f"{record.handle!r} is being reduced, and the server has it no more")
            is_there = job is not None or record.handle in self._makers
            if is_there and record.is_over and record.holder is None:
                self.fail(f"{record.handle!r} is over, and the server still has it")
            holder = record.holder.number if record.holder is not None else None
            if (job.worker.number if job is not None and job.worker is not None else None) != holder:
                self.fail(f"{record.handle!r} is not with {holder}, to whom it was given last")

    # Jobs.

    def _lanes_of(self, function: bytes) -> tuple[deque[tuple[int, Record]], ...]:
        lanes = self._lanes.get(function)
        if lanes is None:
            lanes = self._lanes[function] = (deque(), deque(), deque())
            self._names.append(function)
        return lanes

    def _first(self, lane: deque[tuple[int, Record]]) -> Record | None:
        """The first that is queued in a lane; drops what is there no more."""
        while lane:
            rank, record = lane[0]
            if record.rank == rank and not record.is_over:
                if record.handle in self._jobs:
                    return record
                if record.is_promised or record.part is not None:
                    self.fail(f"{record.handle!r} was acknowledged, and the server has it no more")
            lane.popleft()
        return None

    def _admit(self, record: Record) -> None:
        if record.asked.schedule:
            self._take_place(record)
            self._calendar[record] = self._next_time(record)
            return
        if record.asked.run_at > self.now + self.wall_offset:
            self._agenda_number += 1
            heapq.heappush(self._scheduled, (record.asked.run_at, self._agenda_number, record, 0))
        else:
            self._rank += 1
            self._queue(record)

    def _queue(self, record: Record) -> None:
        record.rank = self._rank
        self._lanes_of(record.asked.function)[record.asked.priority].append((self._rank, record))

    def _remind(self, record: Record, due: float, assignments: int) -> None:
        self._agenda_number += 1
        heapq.heappush(self._agenda, (due, self._agenda_number, record, assignments))

    def _give_up(self, records: list[Record]) -> None:
        """A worker no longer has jobs, of which it got the first one first; they go the other way round."""
        self._rank += 1
        for record in reversed(records):
            self._take_away(record)
        self._rank += 1

    def _take_away(self, record: Record) -> None:
        self._drop_holder(record)
        record.attempts += 1
        if record.is_over:
            return
        if 0 <= self._retries <= record.attempts:
            self._end(record, P.WORK_FAIL)
            return
        # Whoever gets it next starts again.
        self._drop_parts(record)
        if record.part is not None:
            record.part.pieces.clear()
        self._queue(record)

    def _drop_holder(self, record: Record) -> None:
        if record.holder is not None:
            del record.holder.running[record]
        record.holder = None

    def _finished(self, record: Record, type_: int, data: bytes) -> None:
        """A job's worker has ended it."""
        self._drop_holder(record)
        if record.is_over:
            return
        if record.parts is not None and type_ == P.WORK_COMPLETE:
            if data:
                self._split_off(record, data)
            record.is_split = True
            self._end_if_reduced(record)
        elif record.part is not None and type_ == P.WORK_COMPLETE:
            self._add_result(record, record.part, data)
            if not record.is_over:
                record.is_over, record.part.is_open = True, False
                self._end_if_reduced(record.part.whole)
        else:
            self._end(record, type_, data)

    def _end(self, record: Record, type_: int, data: bytes = b"") -> None:
        """A job has ended; with a part that has no result, the whole has."""
        if record.is_over:
            return
        record.is_over = True
        record.ending = (type_, data)
        self._drop_parts(record)
        if record.part is not None and record.part.is_open:
            record.part.is_open = False
            self._end(record.part.whole, type_, data)

    # Reduce jobs.

    def _split_off(self, whole: Record, workload: bytes) -> None:
        """A worker has sent a part: a job has to be made of it."""
        asked = Submission(whole.asked.reducer, b"", workload, whole.asked.priority, True, 0)
        part = Part(whole, asked)
        if whole.parts is not None:
            whole.parts.append(part)
        self._submitted.append(part)

    def _add_result(self, record: Record, part: Part, data: bytes) -> None:
        part.pieces.append(data)
        results = (piece for other in part.whole.parts or () for piece in other.pieces)
        if sum(map(len, results)) > self._max_reduced_bytes:
            self._end(record, P.WORK_FAIL)

    def _end_if_reduced(self, whole: Record) -> None:
        parts = whole.parts or []
        if whole.is_split and not any(part.is_open for part in parts):
            self._end(whole, P.WORK_COMPLETE, b"".join(piece for part in parts for piece in part.pieces))

    def _drop_parts(self, whole: Record) -> None:
        """Nobody waits for the parts any more; a worker that has one may go on."""
        parts, whole.parts = whole.parts, None
        for part in parts or ():
            if part.is_open:
                part.is_open = False
                if part.record is not None:
                    part.record.is_over = True
