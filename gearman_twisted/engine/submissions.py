"""A job is asked for: refused, joined with one that is there, or created; and accepted once it is saved."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from gearman_twisted.engine.arguments import leading_int
from gearman_twisted.engine.backlog import Backlog
from gearman_twisted.engine.endings import Endings
from gearman_twisted.engine.outbox import StoredJob, Turn
from gearman_twisted.engine.queues import Agenda, Queues
from gearman_twisted.engine.records import Connection, FunctionQueue, Job, Reduction
from gearman_twisted.engine.register import Register
from gearman_twisted.engine.saves import Saves
from gearman_twisted.engine.states import State
from gearman_twisted.engine.usage import HEADROOM, SMALL, Usage
from gearman_twisted.wire.constants import MAX_UNIQUE_BYTES, ErrorCode, Priority
from gearman_twisted.wire.schedule import Schedule

_OUT_OF_MEMORY = b"The server's memory is used up, see its option --max-memory"


@attrs.define(eq=False)
class Submissions:
    """What clients submit, and what the store had when the server started.

    Args:
        turn: the call being handled.
        usage: what the server keeps; new jobs are refused when that is too much.
        register, queues, agenda, backlog, saves, endings: the parts that new jobs go to.
    """

    _turn: Turn
    _usage: Usage
    _register: Register
    _queues: Queues
    _agenda: Agenda
    _backlog: Backlog
    _saves: Saves
    _endings: Endings

    # Packets.

    def submit(
        self,
        priority: Priority,
        is_background: bool,
        conn: Connection,
        args: list[bytes],
        *,
        run_at: int = 0,
        reducer: bytes = b"",
    ) -> None:
        """Handle SUBMIT_JOB and its kin; args are function, unique and workload."""
        name, unique, workload = args
        if unique and self._refuse_long(conn, unique):
            return
        function = self._queues.function(name)
        job = self._find(function, unique, workload) if unique else None
        if isinstance(job, int):
            job = self._backlog.find_unique(function, unique)
        if job is not None:
            self._join(conn, job, is_background)
            return
        if function.is_full(priority):
            conn.write_error(self._turn.out, ErrorCode.QUEUE_ERROR, b"Job queue is full")
            return
        if self._usage.is_full and self._refuse_beyond_memory(conn, is_background):
            return
        saves = self._saves
        if len(workload) > saves.max_workload_bytes and saves.refuse_large(
            conn, workload, is_background=is_background
        ):
            return
        job = self._create(
            function,
            unique,
            workload,
            priority,
            is_background=is_background,
            run_at=run_at,
            reducer=reducer,
        )
        if not is_background:
            self._attach(conn, job)
        self.begin(job)
        self._saves.promise(conn, job)

    def submit_at(self, conn: Connection, args: list[bytes]) -> None:
        """Handle SUBMIT_JOB_EPOCH."""
        function, unique, epoch, workload = args
        run_at = leading_int(epoch)
        if run_at >= 1 << 63:
            text = b"The epoch takes seconds since 1970 in 64 bits"
            conn.write_error(self._turn.out, ErrorCode.INVALID_ARGUMENT, text)
            return
        self.submit(Priority.NORMAL, True, conn, [function, unique, workload], run_at=max(run_at, 0))

    def submit_reduce(self, is_background: bool, conn: Connection, args: list[bytes]) -> None:
        """Handle SUBMIT_REDUCE_JOB and SUBMIT_REDUCE_JOB_BACKGROUND."""
        # libgearman sends the fourth string empty, and gearmand does not look at it.
        function, unique, reducer, _aggregator, workload = args
        if not self._refuse_long(conn, reducer):
            self.submit(Priority.NORMAL, is_background, conn, [function, unique, workload], reducer=reducer)

    def submit_recurring(self, conn: Connection, args: list[bytes]) -> None:
        """Handle SUBMIT_JOB_SCHED."""
        name, unique, *fields, workload = args
        try:
            schedule = Schedule(fields)
        except ValueError as error:
            conn.write_error(self._turn.out, ErrorCode.INVALID_ARGUMENT, str(error).encode())
            return
        if self._refuse_long(conn, unique) or self._saves.refuse_large(conn, workload, is_background=True):
            return
        is_new = self._same_recurring(name, unique, schedule, workload) is None
        if is_new and self._usage.is_full and self._refuse_beyond_memory(conn, is_background=True):
            return
        self._saves.promise(conn, self.add_recurring(name, unique, schedule, workload))

    def _refuse_long(self, conn: Connection, name: bytes) -> bool:
        """Refuse a unique, or a reducer, that is too long; return whether it is."""
        if len(name) <= MAX_UNIQUE_BYTES:
            return False
        # COMPAT: gearmand has the same limit for reducers, and the same words.
        conn.write_error(self._turn.out, ErrorCode.ARGUMENT_TOO_LARGE, b"Unique value too large")
        return True

    def _refuse_beyond_memory(self, conn: Connection, is_background: bool) -> bool:
        """Refuse a job because the memory is used up; return whether it was.

        A small client may use the headroom for foreground jobs: they go when it goes. Transfers of large
        peers do not matter to it, as these are closed.
        """
        usage = self._usage
        jobs = usage.bytes - usage.of_peers
        is_large = conn.kept_bytes > usage.limit * SMALL
        if not (is_background or is_large or jobs >= usage.limit * (1 + HEADROOM)):
            return False
        conn.write_error(self._turn.out, ErrorCode.QUEUE_ERROR, _OUT_OF_MEMORY)
        self._turn.out.is_out_of_memory = True
        return True

    def _find(self, function: FunctionQueue, unique: bytes, workload: bytes) -> Job | int | None:
        """Return the job that a submission joins, or the id of it if it is offloaded.

        ``-`` stands for the workload itself; that never joins if it is empty.
        """
        if unique != b"-":
            return self._register.uniques.get(function, unique)
        return function.by_workload.get(workload)

    # New jobs.

    def add_recurring(self, name: bytes, unique: bytes, schedule: Schedule, workload: bytes) -> Job:
        """Return the recurring job of a function and a unique; the same one stays, another one is replaced.

        So an application may submit its schedule each time it starts.
        """
        same = self._same_recurring(name, unique, schedule, workload)
        if same is not None:
            return same
        function = self._queues.function(name)
        known = self._register.recurring_of(function, unique) if unique else None
        job = self._create(function, unique, workload, Priority.NORMAL, is_background=True, schedule=schedule)
        if known is not None:
            job.replaces = known
            self._register.recurring_uniques.put(function, unique, job)
        self.begin(job)
        return job

    def _same_recurring(self, name: bytes, unique: bytes, schedule: Schedule, workload: bytes) -> Job | None:
        """Return the recurring job that a submission asks for once more."""
        function = self._queues.functions.get(name)
        known = self._register.recurring_of(function, unique) if function and unique else None
        return known if known is not None and known.asks_for(schedule, workload) else None

    def run_scheduled(self, job: Job) -> None:
        """Queue a job whose time has come."""
        del self._register.scheduled[job.handle]
        job.enter(State.QUEUED)
        self._backlog.place(job)

    def reschedule(self) -> None:
        """Look again when recurring jobs are due: the wall clock was set back."""
        for recurring in self._register.recurring.values():
            if recurring.state is State.RECURRING:
                self._agenda.drop(recurring)
                self._backlog.place(recurring)

    def run_recurring(self, recurring: Job) -> None:
        """Make a job of a recurring one that is due, if its last one has ended and the queue is not full."""
        function = recurring.function
        last = self._find(function, recurring.unique, recurring.workload)
        if last is not None or function.is_full(recurring.priority):
            return
        if self._usage.is_full:
            self._turn.out.is_out_of_memory = True
            return
        job = self._create(
            function, recurring.unique, recurring.workload, recurring.priority, is_background=True
        )
        self.begin(job)

    def make_part(self, reduction: Reduction, workload: bytes) -> Job:
        """Return a new job for a part of a reduce job; it is still to be placed, and never saved."""
        whole = reduction.whole
        function = self._queues.function(whole.reducer)
        part = self._create(function, b"", workload, whole.priority, is_background=True)
        part.reduction = reduction
        return part

    def _create(
        self,
        function: FunctionQueue,
        unique: bytes,
        workload: bytes,
        priority: int,
        *,
        is_background: bool,
        run_at: int = 0,
        schedule: Schedule | None = None,
        reducer: bytes = b"",
    ) -> Job:
        register = self._register
        id_ = register.next_id()
        job = Job(
            id_,
            register.handle_of(id_),
            function,
            unique,
            workload,
            priority,
            is_background,
            run_at,
            reducer,
            schedule=schedule,
        )
        register.add(job)
        return job

    def begin(self, job: Job) -> None:
        """Bring a new job to the store, or at once to where it waits."""
        if job.is_background and self._saves.durable:
            job.state = State.SAVING
            self._saves.save(job)
        else:
            job.state = job.waiting_state(self._turn.wall)
            self.place(job)

    def place(self, job: Job) -> None:
        """Put an accepted job where its state says."""
        if job.replaces is not None:
            self._endings.cancel_replaced(job)
        self._backlog.place(job)

    def _join(self, conn: Connection, job: Job, is_background: bool) -> None:
        """Coalesce a submission with the job that has its unique already."""
        if not is_background:
            self._attach(conn, job)
        elif not job.is_background:
            # DIFFERS: gearmand leaves it a foreground job, unstored, that dies with its last client.
            if self._saves.refuse_large(conn, job.workload, is_background=True):
                return
            job.is_background = True
            if self._saves.durable:
                self._saves.save(job)
        # A background submission is promised what the store has; so is everyone, of a new job.
        if is_background or job.state is State.SAVING:
            self._saves.promise(conn, job)
        else:
            self._saves.acknowledge(conn, job)

    def _attach(self, conn: Connection, job: Job) -> None:
        """Send a client the job's packets from now on, once for each time that it asked.

        COMPAT: Perl's Gearman::Client counts one ending for each of its submissions.
        """
        if job.is_offloaded:
            self._backlog.revive(job)
        job.add_client(conn)
        conn.wait_for(job)

    # The store.

    def saved(self, ids: Sequence[int]) -> None:
        """The store has these jobs: let them run, and tell their clients."""
        for job, gaps in self._saves.take(ids):
            job.is_stored = True
            if job.state is State.SAVING:
                self.admit(job)
            self._saves.fulfil(job, gaps)

    def admit(self, job: Job) -> None:
        """Let a job that was being saved run."""
        job.enter(job.waiting_state(self._turn.wall))
        self.place(job)

    def save_failed(self, ids: Sequence[int], reason: str) -> None:
        """The store does not have these jobs: tell their clients that they were not accepted."""
        for job, gaps in self._saves.take(ids):
            self._saves.refuse(gaps, reason)
            job.is_background = False
            # A commit that failed may have come through all the same; nothing may run from it later.
            self._turn.out.forget(job.id)
            if job.state is State.SAVING:
                self._endings.finish(job)
            else:
                # It was a foreground job that a background submission joined: it stays one. If another
                # one joins it, the store must not take its save for the one that it was told to forget.
                job.id = self._register.next_id()
                self._endings.drop_if_unwanted(job)

    def restore(self, stored: StoredJob) -> None:
        """Add a job that the store had when the server started.

        Raises:
            ValueError: it is a recurring job with an invalid schedule; nothing was done.
        """
        register = self._register
        register.last_id = max(register.last_id, stored.id)
        twin = register.jobs.get(stored.handle)
        if twin is None and stored.handle != register.handle_of(stored.id):
            twin = self._backlog.find(stored.handle)
        if twin is not None and twin.schedule is None:
            # Its first save was reported as failed and came through, it was saved again under this id,
            # and the server died before the store could be told to forget the first. Either will do.
            if twin.is_offloaded:
                self._turn.out.forget(stored.id)
            else:
                self._turn.out.forget(twin.id)
                twin.id = stored.id
            return
        schedule = Schedule(stored.schedule.split()) if stored.schedule else None
        function = self._queues.function(stored.function)
        if schedule is not None and (replaced := register.recurring_of(function, stored.unique)) is not None:
            # The server died before the store had forgotten the one that this one replaced.
            self._endings.cancel(replaced)
        job = Job(
            stored.id,
            stored.handle,
            function,
            stored.unique,
            stored.workload,
            min(max(stored.priority, Priority.HIGH), Priority.LOW),
            is_background=True,
            run_at=stored.run_at,
            reducer=stored.reducer,
            is_stored=True,
            schedule=schedule,
        )
        job.state = job.waiting_state(self._turn.wall)
        register.add(job)
        self._backlog.place(job)
