"""Where queued and scheduled jobs wait: in memory, or with what does not fit in the store only.

Theory of operation. While the workloads in memory are at their limit, a stored job that is about to be queued
is *offloaded*: its lane keeps id and unique, in its place, and the register forgets it::

                     limit reached                        next in its lane
    place(job) ─────────────────────> offloaded ─────────────────────────────> Outbox.loads
        │                            (id, unique)                                   │
        │ fits                            │ a client joins, or it is cancelled      │ loaded
        v                                 v                                         v
    in memory <───────────────────── revived ─────────────────────────────> in memory, QUEUED
     (Job)         loaded       (Job without workload)

- Before a lane has handed out what it has in memory, it asks for the next ones (``refill``). A worker that is
  quicker than the store is told NO_JOB, and woken when the jobs are there.
- For a status, an offloaded job is made from what is kept, as a *placeholder* that is thrown away afterwards.
- When a client joins it or an operator cancels it, it is *revived*: the placeholder becomes known to the
  register. Its lane keeps the id; the loaded workload is added to the job that is there then.
- Scheduled jobs lose their workload only; when their time has come they are queued as offloaded.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import attrs

from gearman_twisted.engine.lane import Lane, Segment
from gearman_twisted.engine.outbox import StoredJob, Turn
from gearman_twisted.engine.queues import Agenda, Queues
from gearman_twisted.engine.records import Connection, FunctionQueue, Job
from gearman_twisted.engine.register import Register
from gearman_twisted.engine.states import State
from gearman_twisted.engine.wakeups import NOOP, Wakeups
from gearman_twisted.wire.constants import Priority

_Place = tuple[FunctionQueue, Priority]

# An offloaded job is found by its id in the segments that have ids of the same block, so many at most. The
# smaller, the less to look through; the larger, the less memory.
_BLOCK_IDS = 64


# How far a time may be off that was converted from one clock to the other: a recurring job that is due must
# not be due at the same time again.
_ROUNDING = 1e-6


class Backlog(Protocol):
    """Where jobs wait.

    Attributes:
        offloaded_count: how many jobs are in the store only and not known to the register.
    """

    offloaded_count: int

    def place(self, job: Job) -> None:
        """Put a job where its state says, and wake a worker for it if that is a queue."""

    def find(self, handle: bytes) -> Job | None:
        """Return the job of a handle; a placeholder for an offloaded one."""

    def find_unique(self, function: FunctionQueue, unique: bytes) -> Job | None:
        """Return a function's job of a unique; a placeholder for an offloaded one."""

    def jobs(self) -> Iterable[Job]:
        """Iterate over all jobs that have not ended; placeholders for offloaded ones."""

    def leftovers(self) -> list[object]:
        """Return all that is remembered of offloaded jobs, and of workers that wait for them."""

    def revive(self, job: Job) -> None:
        """Make a placeholder known to the register; a no-op for any other job."""

    def ended(self, job: Job) -> None:
        """A job that was queued or offloaded has ended without a worker."""

    def refill(self) -> None:
        """Request the jobs that lanes in ``Queues.to_refill`` need next."""

    def loaded(self, number: int, jobs: Iterable[StoredJob], vanished: Callable[[Job], None]) -> None:
        """Queue jobs that the store has loaded.

        Args:
            number: that of the request.
            jobs: those that were found.
            vanished: called for each job whose row is gone.
        """

    def await_load(self, conn: Connection) -> None:
        """A worker fell asleep while a job that may be for it is being loaded."""

    def stop_awaiting(self, conn: Connection) -> None:
        """A worker is gone."""

    def recheck(self, conn: Connection) -> None:
        """Wake a worker that waits for a load: what it waits for may have changed."""


@attrs.define(eq=False)
class InMemory(Backlog):
    """All jobs are in memory."""

    _turn: Turn
    _register: Register
    _queues: Queues
    _agenda: Agenda
    _wakeups: Wakeups
    offloaded_count: int = 0

    def place(self, job: Job) -> None:
        if job.state is State.QUEUED:
            self._queues.push(job)
            self._wakeups.wake(job.function)
        elif job.schedule is not None:
            self._agenda.put_at(job, job.schedule.next_after(self._turn.wall + _ROUNDING))
        else:
            self._register.scheduled[job.handle] = job
            self._agenda.put_at(job, job.run_at)

    def find(self, handle: bytes) -> Job | None:
        return self._register.jobs.get(handle) or self._register.recurring.get(handle)

    def find_unique(self, function: FunctionQueue, unique: bytes) -> Job | None:
        job = self._register.uniques.get(function, unique)
        assert not isinstance(job, int)
        return job

    def jobs(self) -> Iterable[Job]:
        return self._register.jobs.values()

    def refill(self) -> None:
        self._queues.to_refill.clear()

    # No job is offloaded.

    def leftovers(self) -> list[object]:
        return []

    def revive(self, job: Job) -> None:
        pass

    def ended(self, job: Job) -> None:
        pass

    def loaded(self, number: int, jobs: Iterable[StoredJob], vanished: Callable[[Job], None]) -> None:
        pass

    def await_load(self, conn: Connection) -> None:
        pass

    def stop_awaiting(self, conn: Connection) -> None:
        pass

    def recheck(self, conn: Connection) -> None:
        pass


@attrs.define(eq=False)
class Overflowing(Backlog):
    """Stored jobs that do not fit the memory are in the store only.

    Args:
        memory: where the others wait.
        limit: bytes that the workloads of all jobs may take in memory.

    Attributes:
        _segments: where an offloaded job may be, by its id without the last digits.
        _revived: offloaded jobs that are known to the register all the same, by id.
        _awaiting_load: sleeping workers that may have been told NO_JOB only because a job was being loaded.
    """

    _turn: Turn
    _register: Register
    _queues: Queues
    _wakeups: Wakeups
    _memory: InMemory
    _limit: int
    offloaded_count: int = 0
    _revived: dict[int, Job] = attrs.field(factory=dict, init=False)
    _overflowing: dict[Lane[Job], _Place] = attrs.field(factory=dict, init=False)
    _segments: dict[int, dict[Segment, _Place]] = attrs.field(factory=dict, init=False)
    _load_numbers: Iterator[int] = attrs.field(factory=itertools.count, init=False)
    _loads: dict[int, tuple[FunctionQueue, Priority, Sequence[tuple[int, bytes]]]] = attrs.field(
        factory=dict, init=False
    )
    _awaiting_load: dict[Connection, None] = attrs.field(factory=dict, init=False)

    def place(self, job: Job) -> None:
        if not _may_be_offloaded(job):
            self._memory.place(job)
        elif job.state is State.SCHEDULED:
            self._register.unload(job)
            self._memory.place(job)
        elif (
            job.is_offloaded
            or job.function.lanes[job.priority].overflows
            or self._register.workload_bytes > self._limit
        ):
            self._offload(job)
            self._wakeups.wake(job.function)
        else:
            self._memory.place(job)

    def _offload(self, job: Job) -> None:
        queue, priority = job.function, Priority(job.priority)
        place = self._overflowing.setdefault(queue.lanes[priority], (queue, priority))
        segment = self._queues.push_offloaded(job)
        self._segments.setdefault(job.id // _BLOCK_IDS, {})[segment] = place
        self._register.unload(job)
        if job.clients or job.handle != self._register.handle_of(job.id):
            self._revived[job.id] = job
            return
        self._register.offload(job)
        self.offloaded_count += 1
        uniques = self._register.uniques
        if job.unique and uniques.get(queue, job.unique) is job:
            uniques.put(queue, job.unique, job.id)

    def _placeholder(self, queue: FunctionQueue, priority: int, id_: int, unique: bytes) -> Job:
        handle = self._register.handle_of(id_)
        job = Job(id_, handle, queue, unique, b"", priority, is_background=True)
        job.is_stored = job.is_offloaded = True
        return job

    def revive(self, job: Job) -> None:
        if not job.is_offloaded or job.handle in self._register.jobs:
            return
        self._revived[job.id] = job
        self.offloaded_count -= 1
        self._register.revive(job)
        uniques = self._register.uniques
        if job.unique and uniques.get(job.function, job.unique) == job.id:
            uniques.put(job.function, job.unique, job)

    def find(self, handle: bytes) -> Job | None:
        job = self._memory.find(handle)
        if job is not None or not self.offloaded_count:
            return job
        id_ = self._register.id_of(handle)
        if id_ is None or id_ in self._revived:
            return None
        return self._find_offloaded(id_)

    def _find_offloaded(self, id_: int) -> Job | None:
        for segment, (queue, priority) in self._segments.get(id_ // _BLOCK_IDS, {}).items():
            unique = segment.unique_of(id_)
            if unique is not None:
                return self._placeholder(queue, priority, id_, unique)
        return None

    def _forget_segment(self, segment: Segment) -> None:
        for block in {id_ // _BLOCK_IDS for id_ in segment.ids}:
            segments = self._segments[block]
            del segments[segment]
            if not segments:
                del self._segments[block]

    def find_unique(self, function: FunctionQueue, unique: bytes) -> Job | None:
        entry = self._register.uniques.get(function, unique)
        return self._find_offloaded(entry) if isinstance(entry, int) else entry

    def jobs(self) -> Iterator[Job]:
        yield from self._register.jobs.values()
        for lane, (queue, priority) in self._overflowing.items():
            for id_, unique in lane.offloaded():
                if id_ not in self._revived:
                    yield self._placeholder(queue, priority, id_, unique)

    def leftovers(self) -> list[object]:
        lanes = [(queue.name, priority) for queue, priority in self._overflowing.values()]
        found = [self._revived, self._loads, self._awaiting_load, self._segments, lanes, self.offloaded_count]
        return [each for each in found if each]

    def ended(self, job: Job) -> None:
        self._clear_if_dead(job.function.lanes[job.priority])

    def _clear_if_dead(self, lane: Lane[Job]) -> None:
        """Drop the ids that a lane keeps if all of their jobs were cancelled."""
        if not lane.live and lane.overflows and not lane.is_loading:
            for id_, _ in lane.offloaded():
                del self._revived[id_]
            for segment in lane.clear():
                self._forget_segment(segment)
            del self._overflowing[lane]

    def refill(self) -> None:
        for queue, priority in self._queues.to_refill:
            lane = queue.lanes[priority]
            entries = lane.next_to_load()
            if entries:
                lane.is_loading = True
                number = next(self._load_numbers)
                self._loads[number] = queue, priority, entries
                self._turn.out.load(number, [id_ for id_, _ in entries])
        self._queues.to_refill.clear()

    def loaded(self, number: int, jobs: Iterable[StoredJob], vanished: Callable[[Job], None]) -> None:
        queue, priority, entries = self._loads.pop(number)
        lane = queue.lanes[priority]
        found = {job.id: job for job in jobs}
        back = []
        for id_, unique in entries:
            job = self._revived.get(id_)
            if job is None:
                job = self._placeholder(queue, priority, id_, unique)
                self.revive(job)
            del self._revived[id_]
            stored = found.get(id_)
            if job.state is not State.QUEUED:
                continue  # it was cancelled meanwhile
            if stored is None:
                # Somebody has taken it from the store, or its row is damaged, which stays there.
                vanished(job)
                continue
            self._register.load(job, stored.workload)
            job.reducer = stored.reducer
            job.run_at = stored.run_at
            back.append(job)
        lane.is_loading = False
        used_up = self._queues.deliver(queue, priority, back, len(entries))
        if used_up is not None:
            self._forget_segment(used_up)
        for conn in list(self._awaiting_load):
            self.recheck(conn)
        for _ in back:
            self._wakeups.wake(queue)
        self._clear_if_dead(lane)
        if not lane.overflows:
            self._overflowing.pop(lane, None)
            self._queues.release(queue)
        if not lane.can_pop:
            self._queues.to_refill.append((queue, priority))

    def await_load(self, conn: Connection) -> None:
        self._awaiting_load[conn] = None

    def stop_awaiting(self, conn: Connection) -> None:
        self._awaiting_load.pop(conn, None)

    def recheck(self, conn: Connection) -> None:
        if conn in self._awaiting_load:
            del self._awaiting_load[conn]
            if conn.is_sleeping:
                self._wakeups.mark_awake(conn)
                conn.write(self._turn.out, NOOP)


def _may_be_offloaded(job: Job) -> bool:
    """Return whether the store can give back all that matters of a job that waits."""
    # How often it was taken away is not stored; and the unique "-" is looked up by the workload.
    return (
        job.is_stored
        and not job.attempts
        and job.unique != b"-"
        and job.schedule is None
        and job.reduction is None
    )
