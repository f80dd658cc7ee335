"""The queues of jobs: per function three priorities, uniques and limits; and the agenda.

Only data structures: nothing here decides anything about jobs. Whatever is done per job costs the same
however many jobs, functions and workers there are. What is cancelled stays where it is as a dead entry, which
is dropped when it surfaces, or when the dead outnumber the living.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import attrs

from gearman_twisted.engine.job import Job
from gearman_twisted.engine.lane import DEAD_ENTRIES, Lane
from gearman_twisted.wire.constants import Priority

if TYPE_CHECKING:
    from gearman_twisted.engine.connections import Connection

# Up to so many functions, walking a worker's own list is quicker than anything clever.
_FEW_ABILITIES = 8


@attrs.define(eq=False)
class FunctionQueue:
    """All that the server knows of one function.

    Attributes:
        name: the function's name.
        lanes: its queued jobs by priority.
        total: jobs that have not ended, in whatever state.
        running: jobs that are with a worker.
        limits: by priority, the total from which a new job is refused; None for no limit.
        uniques: its jobs by unique; of one that is in the store alone, its id.
        recurring: its recurring jobs by unique, those without one left out.
        by_workload: its jobs with the unique ``-``, which coalesce when their workloads are equal.
        workers: the connections that registered it.
        sleepers: those of them that may be asleep, longest first; see ``wakeups``.
    """

    name: bytes
    lanes: tuple[Lane, Lane, Lane] = attrs.field(factory=lambda: (Lane(), Lane(), Lane()))
    total: int = 0
    running: int = 0
    limits: tuple[int | None, int | None, int | None] = (None, None, None)
    uniques: dict[bytes, Job | int] = attrs.field(factory=dict)
    recurring: dict[bytes, Job] = attrs.field(factory=dict)
    by_workload: dict[bytes, Job | int] = attrs.field(factory=dict)
    workers: dict[Connection, None] = attrs.field(factory=dict)
    sleepers: OrderedDict[Connection, None] = attrs.field(factory=OrderedDict)

    @property
    def has_queued(self) -> bool:
        """Whether jobs of it are queued."""
        high, normal, low = self.lanes
        return bool(normal.live or high.live or low.live)

    def is_full(self, priority: int) -> bool:
        """Whether a new job of a priority is one too many."""
        limit = self.limits[priority]
        return limit is not None and self.total >= limit

    def index_of(self, unique: bytes, workload: bytes) -> tuple[dict[bytes, Job | int], bytes] | None:
        """Where a job is looked up for coalescing: a dictionary and the key, None where it never is.

        An empty unique never coalesces; ``-`` stands for the workload itself, unless that is empty.
        """
        if not unique:
            return None
        if unique != b"-":
            return self.uniques, unique
        return (self.by_workload, workload) if workload else None


class Queues:
    """The queues of all functions.

    Args:
        old_order: whether workers get jobs in the order of gearmand 1.1, see ``pop``.

    Attributes:
        functions: by name.
        workload_bytes: how long the workloads of all queued jobs are together, of those that are in memory.
        hungry: lanes that a worker may empty soon of what they have in memory, with their functions and
            priorities; for the owner to feed and to clear.
    """

    def __init__(self, *, old_order: bool = False) -> None:
        self._old_order = old_order
        self.functions: dict[bytes, FunctionQueue] = {}
        self.workload_bytes = 0
        self.hungry: list[tuple[FunctionQueue, Priority]] = []
        self._limits: dict[bytes, tuple[int | None, int | None, int | None]] = {}
        # By priority: the functions that have queued jobs of it, and workers.
        self._ready: tuple[dict[FunctionQueue, None], ...] = ({}, {}, {})
        self._ready_in_order = tuple(zip(_PRIORITIES, self._ready, strict=True))

    def function(self, name: bytes) -> FunctionQueue:
        """The queue of a function, made if it is the first that is heard of it."""
        queue = self.functions.get(name)
        if queue is None:
            queue = self.functions[name] = FunctionQueue(name)
            queue.limits = self._limits.get(name, queue.limits)
        return queue

    def limit(self, name: bytes, limits: tuple[int | None, int | None, int | None]) -> None:
        """Sets a function's limits, also those of one that is not known yet."""
        self._limits[name] = limits
        if name in self.functions:
            self.functions[name].limits = limits

    def push(self, job: Job) -> None:
        """Queues a job that is QUEUED at the end of its lane."""
        lane = job.function.lanes[job.priority]
        if not lane.live and job.function.workers:
            self._ready[job.priority][job.function] = None
        lane.push(job)
        self.workload_bytes += len(job.workload)

    def push_away(self, job: Job) -> None:
        """Queues a job that is QUEUED at the end of its lane, which keeps its id alone."""
        lane = job.function.lanes[job.priority]
        if not lane.live and job.function.workers:
            self._ready[job.priority][job.function] = None
        lane.push_away(job.id, job.unique, len(job.workload))

    def deliver(self, queue: FunctionQueue, priority: int, jobs: Sequence[Job], asked: int) -> None:
        """Brings jobs to memory that were in the store alone; see ``Lane.deliver``."""
        queue.lanes[priority].deliver(jobs, asked)
        self.workload_bytes += sum(len(job.workload) for job in jobs)

    def drop(self, job: Job) -> None:
        """Counts out a job that was queued and is QUEUED no more."""
        lane = job.function.lanes[job.priority]
        lane.drop()
        if not job.is_away:
            self.workload_bytes -= len(job.workload)
        if not lane.live:
            self._ready[job.priority].pop(job.function, None)

    def add_worker(self, conn: Connection, queue: FunctionQueue) -> None:
        """A worker can do a function."""
        queue.workers[conn] = None
        for ready, lane in zip(self._ready, queue.lanes, strict=True):
            if lane.live:
                ready[queue] = None

    def remove_worker(self, conn: Connection, queue: FunctionQueue) -> None:
        """A worker can no longer do a function."""
        del queue.workers[conn]
        if not queue.workers:
            for ready in self._ready:
                ready.pop(queue, None)

    def pop(self, abilities: OrderedDict[FunctionQueue, Ability]) -> Job | None:
        """Takes the job that a worker gets next, None if there is none for it.

        High priority before normal before low, over all its functions; among functions with equal
        jobs, the one that comes last in ``abilities``, which then goes to its front: they take turns.
        In the old order the last of ``abilities`` that has jobs of any priority gives all of them first.

        If that job is in the store alone there is none: others do not go before it.
        """
        choice = self._choice(abilities)
        if choice is None:
            return None
        queue, priority = choice
        lane = queue.lanes[priority]
        job = lane.pop()
        if lane.overflows:
            self.hungry.append(choice)
        if job is None:
            return None
        self.workload_bytes -= len(job.workload)
        if not lane.live:
            del self._ready[priority][queue]
        if len(abilities) > 1 and not self._old_order:
            abilities.move_to_end(queue, last=False)
            abilities[queue].rank = next(_ranks_down)
        return job

    def has_job_for(self, abilities: OrderedDict[FunctionQueue, Ability]) -> bool:
        """Whether ``pop`` would find a job."""
        choice = self._choice(abilities)
        if choice is None:
            return False
        queue, priority = choice
        lane = queue.lanes[priority]
        if not lane.can_pop:
            self.hungry.append(choice)
        return lane.can_pop

    def can_pop(self, queue: FunctionQueue) -> bool:
        """Whether the most urgent one of a function's jobs is in memory; if not, its lane is hungry."""
        for priority, lane in zip(_PRIORITIES, queue.lanes, strict=True):
            if lane.live:
                if not lane.can_pop:
                    self.hungry.append((queue, priority))
                return lane.can_pop
        return False

    def _choice(
        self, abilities: OrderedDict[FunctionQueue, Ability]
    ) -> tuple[FunctionQueue, Priority] | None:
        """The lane whose turn it is."""
        if self._old_order:
            chosen = [queue for ready in self._ready if (queue := _choose(ready, abilities)) is not None]
            queue = max(chosen, key=lambda queue: abilities[queue].rank, default=None)
            return None if queue is None else (queue, next(p for p in _PRIORITIES if queue.lanes[p].live))
        for priority, ready in self._ready_in_order:
            if ready:
                queue = _choose(ready, abilities)
                if queue is not None:
                    return queue, priority
        return None


class Agenda:
    """The jobs that time will do something to, by when."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Job]] = []
        self._live = 0

    def put(self, job: Job, due: float) -> None:
        """Makes a job due at that time; it must not be due already."""
        job.due = due
        self._live += 1
        heapq.heappush(self._entries, (due, job.id, job))

    def drop(self, job: Job) -> None:
        """Makes a job due no more, if it is."""
        if job.due:
            job.due = 0.0
            self._live -= 1
            if len(self._entries) > 2 * self._live + DEAD_ENTRIES:
                self._entries = [entry for entry in self._entries if entry[2].due == entry[0]]
                heapq.heapify(self._entries)

    def next_due(self) -> float:
        """When the next job is due; infinity if none is."""
        entries = self._entries
        while entries:
            due, _, job = entries[0]
            if job.due == due:
                return due
            heapq.heappop(entries)
        return float("inf")

    def pop_due(self, now: float) -> Iterator[Job]:
        """Takes the jobs whose time has come, earliest first."""
        while self.next_due() <= now:
            job = heapq.heappop(self._entries)[2]
            job.due = 0.0
            self._live -= 1
            yield job


@attrs.define(eq=False)
class Ability:
    """A worker's registration of a function.

    Attributes:
        timeout: seconds that it may take for a job, 0 for as long as it likes.
        rank: orders a worker's abilities as their dictionary does; the highest is served first.
    """

    timeout: float
    rank: int


_PRIORITIES = tuple(Priority)


# A function that is registered comes before all others, one that was served comes after all others.
ranks_up = itertools.count(1)
_ranks_down = itertools.count(-1, -1)


def _choose(
    ready: dict[FunctionQueue, None], abilities: OrderedDict[FunctionQueue, Ability]
) -> FunctionQueue | None:
    """The last of ``abilities`` that is ready."""
    # The more are ready, the sooner one of them turns up. If none has after so many steps, looking through
    # the ready ones takes no more.
    steps = len(abilities) if len(abilities) <= _FEW_ABILITIES else len(ready)
    for queue in itertools.islice(reversed(abilities), steps):
        if queue in ready:
            return queue
    if steps >= len(abilities):
        return None
    return max((q for q in ready if q in abilities), key=lambda q: abilities[q].rank, default=None)
