"""Jobs that do not fit the memory: of stored ones only id and unique are kept, the rest is read back.

A stored job that is about to be queued while the workloads in memory are at their limit goes away: its
lane keeps its id, in its place. Before a lane has handed out what it has in memory, it asks for the next
ones. A worker that is quicker than the store is told NO_JOB, and woken when they are there.

What somebody asks for meanwhile is made anew from what is kept: for a status and a moment, or, if a client
joins the job or an operator cancels it, for good.

Scheduled jobs keep all but their workloads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from gearman_twisted.engine.connections import Connection
from gearman_twisted.engine.job import Job, State
from gearman_twisted.engine.lane import Lane
from gearman_twisted.engine.lifecycle import NOOP, Lifecycle
from gearman_twisted.engine.outbox import Outbox, StoredJob
from gearman_twisted.engine.queues import FunctionQueue
from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.wire.codec import respond
from gearman_twisted.wire.constants import PacketType, Priority


class Overflowing(Lifecycle):
    """The life of jobs, with those that are in the store alone."""

    def __init__(self, settings: EngineSettings, *, durable: bool, last_id: int) -> None:
        super().__init__(settings, durable=durable, last_id=last_id)
        self._limit = settings.memory if durable else None
        # Jobs of which only the ids are kept, but for those that were made anew, which stand here.
        self._away_count = 0
        self._made_anew: dict[int, Job] = {}
        self._overflowing: dict[Lane, tuple[FunctionQueue, Priority]] = {}
        self._load_numbers = itertools.count(1)
        # Workers that sleep, and may have been told NO_JOB only because the next one was being read.
        self._waiting_for_load: dict[Connection, None] = {}
        self._loads: dict[int, tuple[FunctionQueue, Priority, Sequence[tuple[int, bytes]]]] = {}

    def loaded(self, number: int, jobs: Iterable[StoredJob], now: float) -> Outbox:
        """The store has read jobs that ``Outbox.loads`` asked for.

        Args:
            number: that of the request.
            jobs: those that it has; the others are gone, and are counted out.
            now: seconds since 1970.
        """
        self._now = now
        queue, priority, entries = self._loads.pop(number)
        lane = queue.lanes[priority]
        found = {job.id: job for job in jobs}
        back = []
        for id_, unique in entries:
            job = self._made_anew.get(id_) or self._make_anew(self._remake(queue, priority, id_, unique))
            del self._made_anew[id_]
            stored = found.get(id_)
            if job.state is not State.QUEUED:
                continue  # it was cancelled meanwhile
            if stored is None:
                # Somebody has taken it from the store, or its row is damaged, which stays there.
                self._tell_clients(job, respond(PacketType.WORK_FAIL, job.handle))
                job.is_stored = False
                self._finish(job)
                continue
            job.is_away = False
            job.workload = stored.workload
            job.reducer = stored.reducer
            job.run_at = stored.run_at
            back.append(job)
        lane.is_loading = False
        self._queues.deliver(queue, priority, back, len(entries))
        for conn in list(self._waiting_for_load):
            self._look_again(conn)
        for _ in back:
            self._wake(queue)
        self._clear_if_dead(lane)
        if not lane.can_pop:
            self._queues.hungry.append((queue, priority))
        return self._take_outbox()

    def _wait_for_load(self, conn: Connection) -> None:
        """A worker fell asleep where a job that is being read may be for it."""
        self._waiting_for_load[conn] = None

    def _stop_waiting(self, conn: Connection) -> None:
        self._waiting_for_load.pop(conn, None)

    def _look_again(self, conn: Connection) -> None:
        """What a worker waits for may be for it no more, or may be there now."""
        if conn in self._waiting_for_load:
            del self._waiting_for_load[conn]
            if conn.is_sleeping:
                self._wakeups.rouse(conn)
                conn.write(self._out, NOOP)

    def _finish(self, job: Job) -> None:
        super()._finish(job)
        if job.is_away:
            self._clear_if_dead(job.function.lanes[job.priority])

    def _clear_if_dead(self, lane: Lane) -> None:
        """Forgets the ids that a lane keeps if all of their jobs were cancelled."""
        if not lane.live and lane.overflows and not lane.is_loading:
            for id_, _ in lane.away():
                del self._made_anew[id_]
            lane.clear()
            del self._overflowing[lane]

    def _feed(self) -> None:
        """Asks for the jobs that lanes want next."""
        for queue, priority in self._queues.hungry:
            lane = queue.lanes[priority]
            entries = lane.wanted()
            if entries:
                lane.is_loading = True
                number = next(self._load_numbers)
                self._loads[number] = queue, priority, entries
                self._out.load(number, [id_ for id_, _ in entries])
            elif not lane.overflows:
                self._overflowing.pop(lane, None)
        self._queues.hungry.clear()

    # Jobs that go away.

    def _put(self, job: Job) -> None:
        if self._limit is None or not _may_go_away(job):
            super()._put(job)
        elif job.state is State.SCHEDULED:
            job.is_away = True
            job.workload = b""
            super()._put(job)
        elif (
            job.is_away
            or job.function.lanes[job.priority].overflows
            or self._queues.workload_bytes + len(job.workload) > self._limit
        ):
            self._send_away(job)
            self._wake(job.function)
        else:
            super()._put(job)

    def _send_away(self, job: Job) -> None:
        queue, priority = job.function, Priority(job.priority)
        self._overflowing[queue.lanes[priority]] = queue, priority
        self._queues.push_away(job)
        job.is_away = True
        job.workload = b""
        if job.clients or job.handle != self._handle(job.id):
            self._made_anew[job.id] = job
            return
        del self._jobs[job.handle]
        self._away_count += 1
        if queue.uniques.get(job.unique) is job:
            queue.uniques[job.unique] = job.id

    # What is known of them.

    @property
    def job_count(self) -> int:
        """How many jobs have not ended."""
        return len(self._jobs) + self._away_count

    def jobs(self) -> Iterator[Job]:
        """All jobs that have not ended; those that are away are made for the occasion."""
        yield from self._jobs.values()
        for lane, (queue, priority) in self._overflowing.items():
            for id_, unique in lane.away():
                if id_ not in self._made_anew:
                    yield self._remake(queue, priority, id_, unique)

    def cancel(self, handle: bytes) -> bool:
        """Cancels a job: its clients get WORK_FAIL, what its worker still sends is dropped.

        Returns:
            Whether there was such a job.
        """
        job = self._find(handle)
        if job is not None and job.is_away and handle not in self._jobs:
            self._make_anew(job)
        return super().cancel(handle)

    def _find_away(self, handle: bytes) -> Job | None:
        """The job of a handle if it is in the store alone, made for the occasion."""
        if not self._away_count:
            return None
        prefix, _, digits = handle.rpartition(b":")
        if prefix != self.settings.handle_prefix or not (digits.isdigit() and len(digits) < 20):
            return None
        id_ = int(digits)
        if id_ in self._made_anew or handle != self._handle(id_):
            return None
        for lane, (queue, priority) in self._overflowing.items():
            unique = lane.unique_of(id_)
            if unique is not None:
                return self._remake(queue, priority, id_, unique)
        return None

    def _job_of_unique(self, queue: FunctionQueue, unique: bytes) -> Job | None:
        entry = queue.uniques.get(unique)
        if not isinstance(entry, int):
            return entry
        for priority in Priority:
            if queue.lanes[priority].unique_of(entry) is not None:
                return self._remake(queue, priority, entry, unique)
        raise RuntimeError(f"job {entry} is known by its unique and nowhere else")

    def _attach(self, conn: Connection, job: Job) -> None:
        if job.is_away and job.handle not in self._jobs:
            self._make_anew(job)
        super()._attach(conn, job)

    def _remake(self, queue: FunctionQueue, priority: int, id_: int, unique: bytes) -> Job:
        """A job from what is kept of it; nothing knows it yet."""
        job = Job(id_, self._handle(id_), queue, unique, b"", priority, is_background=True)
        job.is_stored = job.is_away = True
        return job

    def _make_anew(self, job: Job) -> Job:
        """Has a job that was away known again; its lane goes on to keep its id."""
        self._made_anew[job.id] = job
        self._away_count -= 1
        self._jobs[job.handle] = job
        if job.function.uniques.get(job.unique) == job.id:
            job.function.uniques[job.unique] = job
        return job


def _may_go_away(job: Job) -> bool:
    """Whether the store can give back all that matters of a job that waits."""
    # How often it was taken away is not stored; and the unique "-" is looked up by the workload.
    return (
        job.is_stored
        and not job.attempts
        and job.unique != b"-"
        and job.schedule is None
        and job.reduction is None
    )
