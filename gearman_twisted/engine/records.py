"""The data that the rules work on: jobs, connections, functions.

Only what keeps a record consistent with itself is here; the rules are in the other modules.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Protocol

import attrs

from gearman_twisted.engine.lane import Lane
from gearman_twisted.engine.outbox import Outbox, StoredJob
from gearman_twisted.engine.states import TRANSITIONS, State
from gearman_twisted.engine.turns import Turns
from gearman_twisted.engine.usage import CONNECTION_BYTES, WAITING_BYTES, Usage
from gearman_twisted.wire.codec import respond
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.schedule import Schedule

NO_PROGRESS = (b"0", b"0")

# How many late jobs a connection may have; the oldest are dropped. More than a worker runs at a time, so only
# one that never reports on them has so many.
MAX_LATE = 1_000

Limits = tuple[int | None, int | None, int | None]

NO_LIMITS: Limits = (None, None, None)


@attrs.define(eq=False, weakref_slot=False)
class Job:
    """A job that has not ended. There may be millions: each attribute that is not here is memory saved.

    Attributes:
        id: see ``StoredJob``; so are handle, unique, workload, priority, run_at and reducer.
        function: the queue of its function.
        state: where it is; only ``enter`` changes it.
        is_background: it runs even when no client waits for it.
        is_stored: the store has it, so it has to be forgotten there when it ends.
        is_offloaded: workload and reducer are in the store only, see ``backlog``.
        worker: who runs it, in RUNNING and CANCELLED.
        clients: who gets its packets, with how often: once for each time that it submitted it.
        repeated: how many of these times were not the first one of a client.
        progress: numerator and denominator of the last WORK_STATUS, decimal text.
        attempts: how often it was taken from a worker.
        due: when it is due, 0 for never. In SCHEDULED it is queued then, in RECURRING a job is made of it,
            both in seconds since 1970; with a worker it is taken away, see ``Turn.now``.
        reduction: of a reduce job that the server splits, and of its parts.
        schedule: of a recurring job, when jobs are made of it.
        replaces: the recurring job that this one replaces once the store has it.
    """

    id: int
    handle: bytes
    function: FunctionQueue
    unique: bytes
    workload: bytes
    priority: int
    is_background: bool
    run_at: int = 0
    reducer: bytes = b""
    state: State = State.QUEUED
    is_stored: bool = False
    is_offloaded: bool = False
    worker: Connection | None = None
    # None while there is nothing: a million queued jobs need no collection each.
    clients: dict[Connection, int] | None = None
    repeated: int = 0
    progress: tuple[bytes, bytes] = NO_PROGRESS
    attempts: int = 0
    due: float = 0.0
    schedule: Schedule | None = None
    reduction: Reduction | None = None
    replaces: Job | None = None

    def enter(self, state: State) -> None:
        """Change the state; a transition that is not in the table is a bug."""
        if (self.state, state) not in TRANSITIONS:
            raise RuntimeError(f"job {self.handle!r} cannot go from {self.state.name} to {state.name}")
        self.state = state

    def add_client(self, conn: Connection) -> None:
        """Send a client its packets, once more for each time that it asks."""
        if self.clients is None:
            self.clients = {conn: 1}
        else:
            times = self.clients.get(conn, 0)
            self.clients[conn] = times + 1
            self.repeated += times > 0

    def remove_client(self, conn: Connection) -> None:
        """Send a client nothing more; a no-op if it is none."""
        times = self.clients.pop(conn, 0) if self.clients else 0
        self.repeated -= max(times - 1, 0)

    @property
    def client_count(self) -> int:
        """How often clients asked for its packets and still wait; not counted one by one."""
        return len(self.clients) + self.repeated if self.clients else 0

    def waiting_state(self, wall: float) -> State:
        """Return where it waits once it is accepted, at that time since 1970."""
        if self.schedule is not None:
            return State.RECURRING
        return State.SCHEDULED if self.run_at > wall else State.QUEUED

    def asks_for(self, schedule: Schedule, workload: bytes) -> bool:
        """Return whether it is a recurring job with this schedule and workload."""
        return self.schedule is not None and (self.schedule.text, self.workload) == (schedule.text, workload)

    def stored(self) -> StoredJob:
        """Return what the store keeps of it."""
        return StoredJob(
            self.id,
            self.handle,
            self.function.name,
            self.unique,
            self.workload,
            self.priority,
            self.run_at,
            self.reducer,
            self.schedule.text if self.schedule is not None else b"",
        )


class ReductionObserver(Protocol):
    """Notified of the results of a reduce job and of its parts."""

    def requeued(self, job: Job) -> None:
        """The job was taken from its worker, and another one starts again."""

    def ended(self, job: Job) -> None:
        """The job ended, a part without a result."""


@attrs.define(eq=False)
class Reduction:
    """The progress of a reduce job.

    Attributes:
        whole: the reduce job.
        observer: notified of the results of the whole and of its parts.
        open: its parts that have not ended, each with its place among all.
        results: the results of all its parts in order, in the pieces in which they came.
        result_bytes: how long they are together.
        kept_bytes: what they take, as ``Usage`` counts it.
    """

    whole: Job
    observer: ReductionObserver
    open: dict[Job, int] = attrs.field(factory=dict)
    results: list[list[bytes]] = attrs.field(factory=list)
    result_bytes: int = 0
    kept_bytes: int = 0


class Gap:
    """The place of a reply that is not known yet; later output of its connection waits behind it.

    Attributes:
        begun: what is known of the reply, and could not be sent yet.
        reply: the end of the reply, once that is known.
        size: how long the workload is that the reply waits for.
    """

    __slots__ = ("begun", "reply", "size")

    def __init__(self, size: int) -> None:
        self.begun: list[bytes] = []
        self.reply: bytes | None = None
        self.size = size


@attrs.define(eq=False)
class Connection:
    """A peer, which may be client, worker and operator all at once.

    Attributes:
        number: its own, never given twice.
        peer: its address.
        max_held_bytes: how much of its output may wait for the store.
        usage: what all connections and jobs take together.
        client_id: what it calls itself.
        wants_exceptions: it gets WORK_EXCEPTION rather than WORK_FAIL.
        abilities: what it can do; the last is served first (see ``Queues.pop``).
        turns: finds the function that is served next, if it has many; see ``Queues``.
        ability_bytes: what these and their functions take.
        running: the jobs it runs, in the order in which it got them; see ``Ability.running`` too.
        waiting_for: the jobs whose packets it gets, each with how long its workload was.
        waiting_bytes: what these jobs take together.
        unsaved_bytes: how long the workloads are whose saves it waits for.
        late: jobs that a time limit took from it and whose end it has not reported, by handle, oldest first.
        excepted: the handle of the last job that it ended with WORK_EXCEPTION, until its WORK_FAIL comes.
        is_open: it has not been lost.
        is_sleeping, woken_for, wakeup_deadline, to_relist: see ``wakeups``.
    """

    number: int
    peer: str
    max_held_bytes: int
    usage: Usage
    client_id: bytes = b"-"
    wants_exceptions: bool = False
    abilities: OrderedDict[FunctionQueue, Ability] = attrs.field(factory=OrderedDict)
    turns: Turns[FunctionQueue] | None = None
    ability_bytes: int = 0
    running: dict[Job, None] = attrs.field(factory=dict)
    waiting_for: dict[Job, int] = attrs.field(factory=dict)
    waiting_bytes: int = 0
    unsaved_bytes: int = 0
    late: dict[bytes, LateJob] = attrs.field(factory=dict)
    excepted: bytes | None = None
    is_open: bool = True
    is_sleeping: bool = False
    woken_for: FunctionQueue | None = None
    wakeup_deadline: float = 0.0
    to_relist: dict[FunctionQueue, None] = attrs.field(factory=dict)
    _held: deque[bytes | Gap] | None = None
    _held_bytes: int = 0
    _is_closing: bool = False

    def remember_late(self, handle: bytes, late: LateJob) -> None:
        """Remember a job that a time limit took from it."""
        self.late.pop(handle, None)
        self.late[handle] = late
        if len(self.late) > MAX_LATE:
            del self.late[next(iter(self.late))]

    def write(self, out: Outbox, data: bytes) -> None:
        """Send bytes, behind output that already waits."""
        if self._held is None:
            out.writes[self.number].append(data)
        else:
            self._hold(self._held, out, (data,))

    def write_all(self, out: Outbox, chunks: tuple[bytes, ...]) -> None:
        """Send many chunks; costs about as much as one."""
        if self._held is None:
            out.writes[self.number] += chunks
        else:
            self._hold(self._held, out, chunks)

    def _hold(self, held: deque[bytes | Gap], out: Outbox, chunks: tuple[bytes, ...]) -> None:
        if self._held_bytes > self.max_held_bytes:
            return  # it is being closed
        held.extend(chunks)
        self._count_held(out, sum(map(len, chunks)))

    def _count_held(self, out: Outbox, size: int) -> None:
        self._held_bytes += size
        self.usage.add_for_peer(size)
        if self._held_bytes > self.max_held_bytes and not self._is_closing:
            # The store hangs while the peer's other jobs go on: close the peer rather than fill the memory.
            self._is_closing = True
            out.close(self.number)

    def write_error(self, out: Outbox, code: bytes, text: bytes) -> None:
        """Send an ERROR packet."""
        self.write(out, respond(PacketType.ERROR, code, text))

    def close(self, out: Outbox) -> None:
        """Close the connection once all replies are sent."""
        if not self._is_closing:
            self._is_closing = True
            if self._held is None:
                out.close(self.number)

    def leave_gap(self, size: int) -> Gap:
        """Reserve the place of a reply; clients match replies to requests by their order.

        Args:
            size: how long the workload is that the reply waits for.
        """
        gap = Gap(size)
        self.unsaved_bytes += size
        if self._held is None:
            self._held = deque()
        self._held.append(gap)
        return gap

    def begin_reply(self, out: Outbox, gap: Gap, part: bytes) -> None:
        """Send part of the reply of a gap, whose end is to come; behind what else waits."""
        if self._held is None or self._held[0] is gap:
            out.writes[self.number].append(part)
        else:
            gap.begun.append(part)
            self._count_held(out, len(part))

    def fill_gap(self, out: Outbox, gap: Gap, reply: bytes) -> None:
        """Set the end of the reply of a gap, and send all output that no longer waits."""
        gap.reply = reply
        self.unsaved_bytes -= gap.size
        held = self._held
        if held is None or not self.is_open:
            return
        ready = out.writes[self.number]
        before = self._held_bytes
        while held:
            first = held[0]
            if isinstance(first, bytes):
                ready.append(first)
                self._held_bytes -= len(first)
            else:
                ready += first.begun
                self._held_bytes -= sum(map(len, first.begun))
                first.begun.clear()
                if first.reply is None:
                    break
                ready.append(first.reply)
            held.popleft()
        self.usage.add_for_peer(self._held_bytes - before)
        if not held:
            self._held = None
            if self._is_closing:
                out.close(self.number)
        if not ready:
            del out.writes[self.number]

    @property
    def held(self) -> int:
        """The number of chunks of output that wait, gaps included."""
        return len(self._held) if self._held else 0

    @property
    def kept_bytes(self) -> int:
        """What the engine keeps for it alone, and would not if it were gone."""
        return self._held_bytes + self.waiting_bytes + self.ability_bytes + CONNECTION_BYTES

    def wait_for(self, job: Job) -> None:
        """Add a job whose packets it gets. Idempotent."""
        if job not in self.waiting_for:
            self.waiting_for[job] = size = len(job.workload)
            self.waiting_bytes += size + WAITING_BYTES
            self.usage.bytes += WAITING_BYTES

    def stop_waiting_for(self, job: Job) -> None:
        """Remove a job that has ended."""
        self.waiting_bytes -= self.waiting_for.pop(job) + WAITING_BYTES
        self.usage.bytes -= WAITING_BYTES

    def lose(self) -> None:
        """Count out what was kept for it; it is gone."""
        self.usage.add_for_peer(-self._held_bytes)
        self.usage.bytes -= len(self.waiting_for) * WAITING_BYTES + CONNECTION_BYTES


@attrs.define(eq=False)
class Ability:
    """A worker's registration of a function.

    Attributes:
        timeout: seconds that it may take for a job, 0 for no limit.
        rank: orders a worker's abilities as their dictionary does; the highest is served first.
        running: the jobs of the function that the worker runs, in the order in which it got them.
        is_given_up: the worker took the registration back.
    """

    timeout: float
    rank: int
    running: dict[Job, None] = attrs.field(factory=dict)
    is_given_up: bool = False


@attrs.define(eq=False)
class LateJob:
    """What a connection remembers of a job that a time limit took from it.

    Attributes:
        ability: the registration of its function; the job is forgotten with it.
        attempts: the job's when it was taken; a higher number now says that somebody else has begun it.
        is_whole: no data that the worker sent since was dropped.
    """

    ability: Ability
    attempts: int
    is_whole: bool = True


@attrs.define(eq=False)
class FunctionQueue:
    """A function: its jobs, its workers and its limits.

    Attributes:
        name: the function's name.
        lanes: its queued jobs by priority.
        total: jobs that have not ended, in whatever state.
        running: jobs that are with a worker.
        limits: by priority, the total from which a new job is refused; None for no limit.
        recurring: how many recurring jobs it has; they are not in the total.
        is_created: an operator has created it.
        by_workload: its jobs with the unique ``-``, which coalesce when their workloads are equal.
        workers: the connections that registered it.
        sleepers: those of them that may be asleep, longest first; see ``wakeups``.
    """

    name: bytes
    lanes: tuple[Lane[Job], Lane[Job], Lane[Job]] = attrs.field(factory=lambda: (Lane(), Lane(), Lane()))
    total: int = 0
    running: int = 0
    limits: Limits = NO_LIMITS
    recurring: int = 0
    is_created: bool = False
    by_workload: dict[bytes, Job] = attrs.field(factory=dict)
    workers: dict[Connection, None] = attrs.field(factory=dict)
    sleepers: OrderedDict[Connection, None] = attrs.field(factory=OrderedDict)

    @property
    def has_queued(self) -> bool:
        """Whether jobs of it are queued."""
        high, normal, low = self.lanes
        return bool(normal.live or high.live or low.live)

    @property
    def is_needed(self) -> bool:
        """Whether jobs, workers or operators need it."""
        return (
            bool(self.total or self.workers or self.recurring or self.is_created)
            or self.limits != NO_LIMITS
            or any(lane.overflows for lane in self.lanes)
        )

    def is_full(self, priority: int) -> bool:
        """Return whether a new job of a priority would exceed the limit."""
        limit = self.limits[priority]
        return limit is not None and self.total >= limit
