"""The jobs as they must be: what the server was promised to keep, in which lane each waits, who has it.

It follows what happens to the server and its store; packets are judged in ``checker``.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from typing import NoReturn

from gearman_twisted.engine.job import Job
from gearman_twisted.engine.jobserver import JobServer
from gearman_twisted.engine.outbox import Outbox
from gearman_twisted.interfaces import StoredJob
from gearman_twisted.wire.constants import PacketType
from tests.simulation.records import Link, Record, Submission, Violation

P = PacketType


class Ledger:
    """All jobs of one server, over its restarts; ``Checker`` adds the packets.

    Args:
        rows: what the store has.
        durable: whether background jobs are promised to survive.
        prefix: what handles start with.
        retries: how often a job may be taken from a worker, -1 for ever.

    Attributes:
        now: the time; for the world to set.
        violation: what was wrong, None while nothing was; it may have been raised where it was caught.
        links: the connections by number.
        records: the jobs by handle.
    """

    def __init__(self, rows: dict[int, StoredJob], *, durable: bool, prefix: bytes, retries: int) -> None:
        self.now = 0.0
        self.violation: str | None = None
        self.links: dict[int, Link] = {}
        self.records: dict[bytes, Record] = {}
        self._rows = rows
        self._durable = durable
        self._prefix = prefix
        self._retries = retries
        self._lanes: dict[bytes, tuple[deque[tuple[int, Record]], ...]] = {}
        self._names: list[bytes] = []
        self._rank = 0
        # Scheduled jobs and time limits: when, a number for order, the job, its number of assignments.
        self._agenda: list[tuple[float, int, Record, int]] = []
        self._agenda_number = 0
        self._submitted: list[Submission] = []
        self._last_id = 0
        self._by_row: dict[int, Record] = {}
        self._forgotten: set[int] = set()
        self._forgotten_by_store: set[int] = set()

    def fail(self, text: str) -> NoReturn:
        """Something is wrong."""
        self.violation = self.violation or text
        raise Violation(text)

    # What happens to the server.

    def started(self, engine: JobServer) -> None:
        """A server starts, with what the store has; the one before it is gone with all connections."""
        self._jobs = engine._jobs
        self._recurring = engine._recurring
        self._engine = engine
        self._last_id = engine._last_id
        self._forgotten.clear()
        self.links.clear()
        self._agenda.clear()
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
            old = known.get(id_)
            if old is None or (*stored[1:7], stored.schedule) != (
                old.handle,
                old.asked.function,
                old.asked.unique,
                old.asked.workload,
                old.asked.priority,
                old.asked.run_at,
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

    def ticked(self) -> None:
        """The server is about to be told that time has passed."""
        agenda, now = self._agenda, self.now
        last = -1.0
        self._rank += 1
        while agenda and agenda[0][0] <= now:
            due, _, record, assignments = heapq.heappop(agenda)
            # A recurring job's next one may go between any two of these, so they share a rank then.
            self._rank += due != last and not self._recurring
            last = due
            if record.is_over and record.holder is None:
                continue
            if assignments == 0:
                self._queue(record)
            elif record.holder is not None and record.assignments == assignments:
                self._take_away(record)

    def saved(self, ids: Sequence[int]) -> None:
        """The server is about to be told that jobs were saved."""
        for id_ in ids:
            record = self._by_row.get(id_)
            if record is not None and record.awaits_save:
                record.awaits_save = False
                if not record.is_over:
                    self._admit(record)

    def applied(self, saves: Sequence[StoredJob], forgets: Sequence[int]) -> None:
        """The store is asked for a commit."""
        for job in saves:
            if job.id in self._forgotten_by_store:
                self.fail(f"{job.handle!r} is saved after it was forgotten")
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
        while self._last_id < self._engine._last_id:
            self._last_id += 1
            handle = b"%b:%d" % (self._prefix, self._last_id)
            job = self._jobs.get(handle) or self._recurring.get(handle)
            if job is None:
                continue  # an id that a job got anew, see Lifecycle.save_failed
            made = job.function.name, job.workload, job.schedule is not None
            for asked in submitted:
                if (asked.function, asked.workload, bool(asked.schedule)) == made:
                    break
            else:
                asked = self._asked_again(job)
            record = self.records[handle] = Record(handle, asked)
            if asked.is_background and self._durable:
                record.awaits_save = True
            elif asked in self._submitted:
                self._admit(record)
            else:
                self._queue(record)
        self._submitted.clear()

    def _asked_again(self, job: Job) -> Submission:
        """What a recurring job asks for, of which this must be the next one."""
        for handle in self._recurring:
            asked = self.records[handle].asked
            if (asked.function, asked.workload) == (job.function.name, job.workload):
                break
        else:
            self.fail(f"nobody submitted {job.handle!r}")
        return asked._replace(schedule=b"")

    def scan(self) -> None:
        """Whatever was promised is there, and every job is where it was last seen."""
        for record in self.records.values():
            if record.is_promised and not record.is_over:
                if record.handle not in self._jobs and record.handle not in self._recurring:
                    self.fail(f"{record.handle!r} was acknowledged, and the server has it no more")
                if self._durable and record.row_id not in self._rows:
                    self.fail(f"{record.handle!r} was acknowledged, and is not in the store")
            job = self._jobs.get(record.handle)
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
                if record.is_promised:
                    self.fail(f"{record.handle!r} was acknowledged, and the server has it no more")
            lane.popleft()
        return None

    def _admit(self, record: Record) -> None:
        if record.asked.schedule:
            return
        if record.asked.run_at > self.now:
            self._remind(record, record.asked.run_at, 0)
        else:
            self._rank += 1
            self._queue(record)

    def _queue(self, record: Record) -> None:
        record.rank = self._rank
        self._lanes_of(record.asked.function)[record.asked.priority].append((self._rank, record))

    def _remind(self, record: Record, due: float, assignments: int) -> None:
        self._agenda_number += 1
        heapq.heappush(self._agenda, (due, self._agenda_number, record, assignments))

    def _give_up(self, _link: Link, records: list[Record]) -> None:
        self._rank += 1
        for record in records:
            self._take_away(record)
        self._rank += 1

    def _take_away(self, record: Record) -> None:
        if record.holder is not None:
            del record.holder.running[record]
        record.holder = None
        record.attempts += 1
        if record.is_over:
            return
        if 0 <= self._retries <= record.attempts:
            record.is_over = True
            record.ending = (P.WORK_FAIL, b"")
        else:
            self._queue(record)

    def _finished(self, record: Record, type_: int, data: bytes) -> None:
        if record.holder is not None:
            del record.holder.running[record]
        record.holder = None
        if not record.is_over:
            record.is_over = True
            record.ending = (type_, data)
