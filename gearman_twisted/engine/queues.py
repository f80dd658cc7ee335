"""Which job a worker gets, over the queues of all functions; and the agenda, what is due when.

Only data structures: nothing here decides anything about jobs. What is done per job costs the same however
many jobs, functions and workers there are. A cancelled job stays as a dead entry, which is dropped when it
surfaces, or when the dead outnumber the living.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from gearman_twisted.engine.lane import DEAD_ENTRIES, Segment
from gearman_twisted.engine.outbox import Turn
from gearman_twisted.engine.records import NO_LIMITS, Connection, FunctionQueue, Job, Limits
from gearman_twisted.engine.turns import Ready, Turns
from gearman_twisted.engine.usage import ABILITY_BYTES, FUNCTION_BYTES, LIMIT_BYTES, Usage
from gearman_twisted.wire.constants import Priority

# Up to so many functions, walking a worker's own list is at worst as dear as the heap of ``turns``.
FEW_ABILITIES = 64

# What functions may take that nothing needs, together: about 15,000 of them.
IDLE_BYTES = 16 * 1024 * 1024


class Queues:
    """The queues of all functions.

    Args:
        usage: what functions take is counted there.
        old_order: whether workers get jobs in the order of gearmand 1.1, see ``pop``.

    Attributes:
        functions: by name.
        to_refill: lanes that may soon run out of jobs in memory, with their functions and priorities; for the
            owner to refill and to clear.
    """

    def __init__(self, usage: Usage, *, old_order: bool = False) -> None:
        self._usage = usage
        self._old_order = old_order
        self.functions: dict[bytes, FunctionQueue] = {}
        self.to_refill: list[tuple[FunctionQueue, Priority]] = []
        self._limits: dict[bytes, Limits] = {}
        # Functions with capitals in their names, by these in lower case: operators need not mind the case.
        self._by_lower: dict[bytes, dict[FunctionQueue, None]] = {}
        # Functions that nothing needed when they were added here, oldest first, and what they take together.
        self._idle: OrderedDict[FunctionQueue, None] = OrderedDict()
        self._idle_bytes = 0
        self._ready: Ready[FunctionQueue] = Ready()
        self._ready_in_order = tuple(zip(_PRIORITIES, self._ready.lanes, strict=True))

    def function(self, name: bytes) -> FunctionQueue:
        """Return the queue of a function, a new one if the name is new."""
        queue = self.functions.get(name)
        if queue is None:
            queue = self.functions[name] = FunctionQueue(name)
            queue.limits = self._limits.get(name, queue.limits)
            lower = name.lower()
            if lower != name:
                self._by_lower.setdefault(lower, {})[queue] = None
            self._usage.bytes += _size(queue)
            self.release(queue)
        return queue

    def count_bytes(self) -> int:
        """Return what functions and limits take, without what their workers take; slow, for tests."""
        limits = sum(LIMIT_BYTES + len(name) for name in self._limits)
        return limits + sum(map(_size, self.functions.values()))

    def release(self, queue: FunctionQueue) -> None:
        """Note that a function may no longer be needed; forget those that were not for the longest time.

        Those that were needed lately are kept, so that the list of an operator does not change with each job.
        """
        if queue.is_needed or self.functions.get(queue.name) is not queue:
            return
        # Both are empty, but keep the room that their entries had.
        queue.workers.clear()
        queue.sleepers.clear()
        idle = self._idle
        if queue in idle:
            idle.move_to_end(queue)
            return
        idle[queue] = None
        self._idle_bytes += _size(queue)
        while self._idle_bytes > IDLE_BYTES:
            oldest, _ = idle.popitem(last=False)
            self._idle_bytes -= _size(oldest)
            if not oldest.is_needed:
                self.remove(oldest)

    def named(self, name: bytes) -> list[FunctionQueue]:
        """Return the functions of a name, in whatever case."""
        lower = name.lower()
        exact = self.functions.get(lower)
        return [*([exact] if exact is not None else ()), *self._by_lower.get(lower, ())]

    def remove(self, queue: FunctionQueue) -> None:
        """Forget a function that has neither jobs nor workers."""
        del self.functions[queue.name]
        self._usage.bytes -= _size(queue)
        if queue in self._idle:
            del self._idle[queue]
            self._idle_bytes -= _size(queue)
        lower = queue.name.lower()
        if lower != queue.name:
            same = self._by_lower[lower]
            del same[queue]
            if not same:
                del self._by_lower[lower]

    def limit(self, name: bytes, limits: Limits) -> None:
        """Set a function's limits, also before it is known."""
        known = self._limits.pop(name, None)
        if limits != NO_LIMITS:
            self._limits[name] = limits
        self._usage.bytes += (LIMIT_BYTES + len(name)) * ((limits != NO_LIMITS) - (known is not None))
        if name in self.functions:
            self.functions[name].limits = limits
            self.release(self.functions[name])

    def push(self, job: Job) -> None:
        """Add a job that is QUEUED at the end of its lane."""
        lane = job.function.lanes[job.priority]
        if not lane.live and job.function.workers:
            self._ready.add(job.priority, job.function)
        lane.push(job)

    def push_offloaded(self, job: Job) -> Segment:
        """Add a job that is QUEUED at the end of its lane; return the segment, which keeps id and unique."""
        lane = job.function.lanes[job.priority]
        if not lane.live and job.function.workers:
            self._ready.add(job.priority, job.function)
        return lane.push_offloaded(job.id, job.unique, len(job.workload))

    def deliver(self, queue: FunctionQueue, priority: int, jobs: Sequence[Job], asked: int) -> Segment | None:
        """Bring loaded jobs to the front of their lane; see ``Lane.deliver``."""
        return queue.lanes[priority].deliver(jobs, asked)

    def drop(self, job: Job) -> None:
        """Count out a job that is no longer QUEUED."""
        lane = job.function.lanes[job.priority]
        lane.drop()
        if not lane.live:
            self._ready.lanes[job.priority].pop(job.function, None)

    def add_worker(self, conn: Connection, queue: FunctionQueue) -> None:
        """A worker can do a function."""
        if conn not in queue.workers:
            if not queue.workers:
                self._usage.of_peers += _size(queue)
            queue.workers[conn] = None
            self._usage.add_for_peer(ABILITY_BYTES)
            conn.ability_bytes += ABILITY_BYTES + _size(queue)
        for priority, lane in zip(_PRIORITIES, queue.lanes, strict=True):
            if lane.live:
                self._ready.add(priority, queue)
        if conn.turns is not None:
            conn.turns.registered(queue)
        elif len(conn.abilities) > FEW_ABILITIES:
            conn.turns = Turns(conn.abilities, self._ready, old_order=self._old_order)

    def remove_worker(self, conn: Connection, queue: FunctionQueue) -> None:
        """A worker can no longer do a function."""
        del queue.workers[conn]
        self._usage.add_for_peer(-ABILITY_BYTES)
        conn.ability_bytes -= ABILITY_BYTES + _size(queue)
        if conn.turns is not None:
            conn.turns.given_up(queue)
        if not queue.workers:
            self._usage.of_peers -= _size(queue)
            for ready in self._ready.lanes:
                ready.pop(queue, None)
            self.release(queue)

    def pop(self, conn: Connection) -> Job | None:
        """Take the job that a worker gets next, None if there is none for it.

        High priority before normal before low, over all its functions; among functions with equal
        jobs, the one that comes last in its ``abilities``, which then goes to its front: they take turns.
        In the old order the last of ``abilities`` that has jobs of any priority gives all of them first.

        None also if that job is in the store only: others do not go before it.
        """
        choice = self._next_lane(conn)
        if choice is None:
            return None
        queue, priority = choice
        lane = queue.lanes[priority]
        job = lane.pop()
        if lane.overflows:
            self.to_refill.append(choice)
        if job is None:
            return None
        if not lane.live:
            del self._ready.lanes[priority][queue]
        abilities = conn.abilities
        if len(abilities) > 1 and not self._old_order:
            abilities.move_to_end(queue, last=False)
            abilities[queue].rank = next(_ranks_down)
        return job

    def has_job_for(self, conn: Connection) -> bool:
        """Return whether ``pop`` would find a job."""
        choice = self._next_lane(conn)
        if choice is None:
            return False
        queue, priority = choice
        lane = queue.lanes[priority]
        if not lane.can_pop:
            self.to_refill.append(choice)
        return lane.can_pop

    def can_pop(self, queue: FunctionQueue) -> bool:
        """Return whether the most urgent job of a function is in memory; if not, refill its lane."""
        for priority, lane in zip(_PRIORITIES, queue.lanes, strict=True):
            if lane.live:
                if not lane.can_pop:
                    self.to_refill.append((queue, priority))
                return lane.can_pop
        return False

    def ready(self) -> list[bytes]:
        """Return the names of the functions that have queued jobs and workers, once for each priority."""
        return [queue.name for ready in self._ready.lanes for queue in ready]

    def _next_lane(self, conn: Connection) -> tuple[FunctionQueue, Priority] | None:
        """Return the lane whose turn it is, as function and priority."""
        if conn.turns is not None:
            return conn.turns.next()
        abilities = conn.abilities
        if self._old_order:
            for queue in reversed(abilities):
                for priority, lane in zip(_PRIORITIES, queue.lanes, strict=True):
                    if lane.live:
                        return queue, priority
            return None
        for priority, ready in self._ready_in_order:
            if ready:
                for queue in reversed(abilities):
                    if queue in ready:
                        return queue, priority
        return None


class Agenda:
    """The jobs that are due at some time.

    Those with a worker have a time limit, the others wait for a time by the wall clock, which may be set.

    Args:
        turn: the call being handled.
    """

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._limits = _DueJobs()
        self._calendar = _DueJobs()

    @property
    def live(self) -> int:
        """How many jobs are due at some time."""
        return self._limits.live + self._calendar.live

    @property
    def has_calendar(self) -> bool:
        """Whether a job waits for a time by the wall clock."""
        return self._calendar.live > 0

    def put(self, job: Job, due: float) -> None:
        """Set when a job is taken from its worker, see ``Turn.now``; it must not be due already."""
        self._limits.put(job, due)
        self._turn.due_by = min(self._turn.due_by, due)

    def put_at(self, job: Job, due: float) -> None:
        """Make a job due at a time since 1970; it must not be due already."""
        self._calendar.put(job, due)
        self._turn.due_by = min(self._turn.due_by, due - self._turn.wall_offset)

    def drop(self, job: Job) -> None:
        """Make a job due no more; a no-op if it is not due."""
        if job.due:
            (self._calendar if job.worker is None else self._limits).drop(job)

    def next_due(self) -> float:
        """Return when the next job is due, see ``Turn.now``; infinity if none is."""
        return min(self._limits.next_due(), self._calendar.next_due() - self._turn.wall_offset)

    def take_due(self) -> Iterator[Job]:
        """Take the jobs whose time has come, earliest first."""
        limits, calendar = self._limits, self._calendar
        while self.next_due() <= self._turn.now:
            is_limit = limits.next_due() <= calendar.next_due() - self._turn.wall_offset
            yield (limits if is_limit else calendar).take()


class _DueJobs:
    """Jobs in the order in which they are due, by one clock.

    Attributes:
        live: how many there are.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Job]] = []
        self.live = 0

    def put(self, job: Job, due: float) -> None:
        job.due = due
        self.live += 1
        heapq.heappush(self._entries, (due, job.id, job))

    def drop(self, job: Job) -> None:
        job.due = 0.0
        self.live -= 1
        if len(self._entries) > 2 * self.live + DEAD_ENTRIES:
            self._entries = [entry for entry in self._entries if entry[2].due == entry[0]]
            heapq.heapify(self._entries)

    def next_due(self) -> float:
        entries = self._entries
        while entries:
            due, _, job = entries[0]
            if job.due == due:
                return due
            heapq.heappop(entries)
        return float("inf")

    def take(self) -> Job:
        """Take the first one; there has to be one, which ``next_due`` has found."""
        job = heapq.heappop(self._entries)[2]
        job.due = 0.0
        self.live -= 1
        return job


def _size(queue: FunctionQueue) -> int:
    return FUNCTION_BYTES + 2 * len(queue.name)


_PRIORITIES = tuple(Priority)


# A function that is registered comes before all others, one that was served comes after all others.
ranks_up = itertools.count(1)
_ranks_down = itertools.count(-1, -1)
