"""The life of a job, from submission to its end: every step that it may take, and who is told.

Knows connections only as where replies go to and where jobs run; packets are read in ``jobserver``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from gearman_twisted.engine.connections import Connection, Gap
from gearman_twisted.engine.job import NO_PROGRESS, Job, State
from gearman_twisted.engine.outbox import Outbox, Shutdown, StoredJob
from gearman_twisted.engine.queues import Agenda, FunctionQueue, Queues
from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.engine.wakeups import Wakeups
from gearman_twisted.wire.codec import encode_head, respond
from gearman_twisted.wire.constants import MAX_UNIQUE_BYTES, RES, ErrorCode, PacketType, Priority
from gearman_twisted.wire.schedule import Schedule

Gaps = list[tuple[Connection, Gap]]

NOOP = respond(PacketType.NOOP)
_NEVER = float("inf")
# Data that is no longer is sent in one piece with what goes before it, which costs less than two pieces.
_SMALL_BYTES = 4096


class Lifecycle:
    """All jobs that have not ended; ``JobServer`` adds the peers.

    Attributes:
        due_by: no ``tick`` is wanted before this time; cheaper than ``next_deadline``, which sets it right.
    """

    def __init__(self, settings: EngineSettings, *, durable: bool, last_id: int) -> None:
        self.settings = settings
        self._durable = durable
        self._last_id = last_id
        # Of the call that is being worked on: its time, and what comes of it.
        self._now = 0.0
        self._out = Outbox()
        self._queues = Queues(old_order=settings.order == "1.1")
        self._agenda = Agenda()
        self._wakeups = Wakeups(settings.wakeup_timeout)
        self._jobs: dict[bytes, Job] = {}
        self._recurring: dict[bytes, Job] = {}
        # The jobs that are on their way to the store, by id, with the replies that wait for them.
        self._saving: dict[int, tuple[Job, Gaps]] = {}
        self.due_by = _NEVER

    def saved(self, ids: Sequence[int], now: float) -> Outbox:
        """The store has these jobs: their clients may be told."""
        self._now = now
        for job, gaps in self._end_saving(ids):
            job.is_stored = True
            if job.state is State.SAVING:
                self._admit(job)
            self._fill_gaps_well(job, gaps)
        return self._take_outbox()

    def save_failed(self, ids: Sequence[int], reason: str, now: float) -> Outbox:
        """The store does not have these jobs: their clients are told that they were not accepted."""
        self._now = now
        # As short as an argument has to be; a reason may hold a whole SQL statement.
        text = f"The job was not stored: {reason:.1000}".replace("\0", " ").encode(errors="replace")
        for job, gaps in self._end_saving(ids):
            self._fill_gaps(gaps, respond(PacketType.ERROR, ErrorCode.QUEUE_ERROR, text))
            job.is_background = False
            # A commit that failed may have come through all the same; nothing may run from it later.
            self._out.forget(job.id)
            if job.state is State.SAVING:
                self._finish(job)
            else:
                # It was a foreground job that a background submission joined: it stays one. If another
                # one joins it, the store must not take its save for the one that it was told to forget.
                self._last_id = job.id = self._last_id + 1
                self._drop_if_unwanted(job)
        return self._take_outbox()

    def restore(self, stored: StoredJob, now: float) -> None:
        """The store had this job when the server started.

        Raises:
            ValueError: it is a recurring job, and its schedule makes no sense; nothing was done.
        """
        self._now = now
        self._last_id = max(self._last_id, stored.id)
        twin = self._jobs.get(stored.handle)
        if twin is None and stored.handle != self._handle(stored.id):
            twin = self._find_away(stored.handle)
        if twin is not None:
            # Its first save was reported as failed and came through, it was saved again under this id,
            # and the server died before the store could be told to forget the first. Either will do.
            if twin.is_away:
                self._out.forget(stored.id)
            else:
                self._out.forget(twin.id)
                twin.id = stored.id
            return
        schedule = Schedule(stored.schedule.split()) if stored.schedule else None
        function = self._queues.function(stored.function)
        if schedule is not None and stored.unique in function.recurring:
            # The server died before the store had forgotten the one that this one replaced.
            self.cancel(function.recurring[stored.unique].handle)
        state = State.SCHEDULED if stored.run_at > now else State.QUEUED
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
            state=State.RECURRING if schedule is not None else state,
            is_stored=True,
            schedule=schedule,
        )
        self._enlist(job)
        self._put(job)

    def tick(self, now: float) -> Outbox:
        """Time has passed: does all that is due."""
        self._now = now
        for job in self._agenda.pop_due(now):
            if job.state is State.SCHEDULED:
                job.enter(State.QUEUED)
                self._put(job)
            elif job.state is State.RECURRING:
                self._make_job_of(job)
                self._put(job)
            else:
                self._take_away(job)
        for function in self._wakeups.pass_over(now):
            self._wake_if_queued(function)
        return self._take_outbox()

    def next_deadline(self) -> float:
        """When ``tick`` is wanted next: seconds since 1970, infinity for not at all."""
        self.due_by = min(self._wakeups.next_deadline(), self._agenda.next_due())
        return self.due_by

    def _take_outbox(self) -> Outbox:
        if self._queues.hungry:
            self._feed()
        out, self._out = self._out, Outbox()
        return out

    def _feed(self) -> None:
        self._queues.hungry.clear()  # see Overflowing

    # What operators may ask for, see engine/admin.py.

    @property
    def queues(self) -> Queues:
        """The queues, to look at and to set limits."""
        return self._queues

    def jobs(self) -> Iterable[Job]:
        """All jobs that have not ended."""
        return self._jobs.values()

    def cancel(self, handle: bytes) -> bool:
        """Cancels a job: its clients get WORK_FAIL, what its worker still sends is dropped.

        Returns:
            Whether there was such a job.
        """
        job = self._find(handle)
        if job is None:
            return False
        if job.state is State.CANCELLED:
            return True
        self._tell_clients(job, respond(PacketType.WORK_FAIL, job.handle))
        self._end_early(job)
        return True

    def cancel_unique(self, function: bytes, unique: bytes) -> bool:
        """Cancels the job that has a unique, and the recurring one; returns whether there was either."""
        queue = self._queues.functions.get(function)
        if queue is None:
            return False
        is_known = False
        # A recurring job may stand before one that it was about to take the place of.
        while (job := queue.recurring.get(unique) or self._job_of_unique(queue, unique)) is not None:
            is_known = self.cancel(job.handle)
        return is_known

    def scheduled(self) -> Iterable[Job]:
        """All jobs that wait for their time, the recurring ones last."""
        yield from (job for job in self._jobs.values() if job.state is State.SCHEDULED)
        yield from self._recurring.values()

    def shut_down(self, how: Shutdown) -> None:
        """Has the server end."""
        self._out.shutdown = how

    @property
    def job_count(self) -> int:
        """How many jobs have not ended."""
        return len(self._jobs)

    def drop_function(self, queue: FunctionQueue) -> bool:
        """Forgets a function that has neither jobs nor workers; returns whether it could."""
        if queue.total or queue.workers or any(job.function is queue for job in self._recurring.values()):
            return False
        del self._queues.functions[queue.name]
        return True

    # The steps.

    def _submit(
        self,
        priority: Priority,
        is_background: bool,
        conn: Connection,
        args: list[bytes],
        *,
        run_at: int = 0,
        reducer: bytes = b"",
    ) -> None:
        name, unique, workload = args
        if unique and self._refuses(conn, unique):
            return
        function = self._queues.function(name)
        index = function.index_of(unique, workload) if unique else None
        job = index[0].get(index[1]) if index else None
        if isinstance(job, int):
            job = self._job_of_unique(function, unique)
        if job is not None:
            self._join(conn, job, is_background)
            return
        if function.is_full(priority):
            self._error(conn, ErrorCode.QUEUE_ERROR, b"Job queue is full")
            return
        job = self._new_job(
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
        self._begin(job)
        self._promise(conn, job)

    def _refuses(self, conn: Connection, name: bytes) -> bool:
        """Whether a unique, or a reducer, is too long, which its client is told."""
        if len(name) <= MAX_UNIQUE_BYTES:
            return False
        # COMPAT: gearmand has the same limit for reducers, and the same words.
        self._error(conn, ErrorCode.ARGUMENT_TOO_LARGE, b"Unique value too large")
        return True

    def _submit_recurring(
        self, conn: Connection, name: bytes, unique: bytes, schedule: Schedule, workload: bytes
    ) -> None:
        if self._refuses(conn, unique):
            return
        function = self._queues.function(name)
        job = function.recurring.get(unique) if unique else None
        if (
            job is None
            or job.schedule is None
            or (job.schedule.text, job.workload) != (schedule.text, workload)
        ):
            # An application may submit its schedule each time it starts: the same one stays, another one
            # takes its place.
            replaced = job
            job = self._new_job(
                function, unique, workload, Priority.NORMAL, is_background=True, schedule=schedule
            )
            if replaced is not None:
                job.replaces = replaced
                function.recurring[unique] = job
            self._begin(job)
        self._promise(conn, job)

    def _make_job_of(self, recurring: Job) -> None:
        """Makes a job of a recurring one that is due, if its last one has ended and the queue is not full."""
        function = recurring.function
        index = function.index_of(recurring.unique, recurring.workload)
        if (index and index[1] in index[0]) or function.is_full(recurring.priority):
            return
        job = self._new_job(
            function, recurring.unique, recurring.workload, recurring.priority, is_background=True
        )
        self._begin(job)

    def _new_job(
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
        self._last_id = id_ = self._last_id + 1
        job = Job(
            id_,
            self._handle(id_),
            function,
            unique,
            workload,
            priority,
            is_background,
            run_at,
            reducer,
            schedule=schedule,
        )
        self._enlist(job)
        return job

    def _handle(self, id_: int) -> bytes:
        """The handle that a job is given with its id."""
        return b"%b:%d" % (self.settings.handle_prefix, id_)

    def _begin(self, job: Job) -> None:
        """Brings a new job to the store, or at once to where it waits."""
        if job.is_background and self._durable:
            job.state = State.SAVING
            self._save(job)
        else:
            job.state = self._waiting_state(job)
            self._put(job)

    def _waiting_state(self, job: Job) -> State:
        if job.schedule is not None:
            return State.RECURRING
        return State.SCHEDULED if job.run_at > self._now else State.QUEUED

    def _promise(self, conn: Connection, job: Job) -> None:
        """Answers a submission: once the store has the job, if it is about to."""
        saving = self._saving.get(job.id)
        if saving is not None:
            saving[1].append((conn, conn.leave_gap()))
        else:
            # A worker that is woken went first: gearmand sends NOOP before JOB_CREATED too.
            conn.write(self._out, respond(PacketType.JOB_CREATED, job.handle))
            self._note_accepted(job, 1)

    def _join(self, conn: Connection, job: Job, is_background: bool) -> None:
        """Coalesces a submission with the job that has its unique already."""
        if not is_background:
            self._attach(conn, job)
        elif not job.is_background:
            # DIFFERS: gearmand leaves it a foreground job, unstored, that dies with its last client.
            job.is_background = True
            if self._durable:
                self._save(job)
        # A background submission is promised what the store has; so is everyone, of a new job.
        if is_background or job.state is State.SAVING:
            self._promise(conn, job)
        else:
            conn.write(self._out, respond(PacketType.JOB_CREATED, job.handle))
            self._note_accepted(job, 1)

    def _note_accepted(self, job: Job, times: int) -> None:
        """Notes for the log that so many submissions were answered with JOB_CREATED, if it wants that."""
        if self.settings.notes_accepted and times:
            # COMPAT: gearmand has the reducer in the place of the time.
            text = job.schedule.text if job.schedule is not None else job.reducer or b"%d" % job.run_at
            noted = self._out.accepted = self._out.accepted or []
            noted += [(job.function.name, job.unique, text)] * times

    def _job_of_unique(self, queue: FunctionQueue, unique: bytes) -> Job | None:
        job = queue.uniques.get(unique)
        assert not isinstance(job, int)  # see Overflowing
        return job

    def _find(self, handle: bytes) -> Job | None:
        return self._jobs.get(handle) or self._recurring.get(handle) or self._find_away(handle)

    def _find_away(self, _handle: bytes) -> Job | None:
        return None  # see Overflowing

    def _enlist(self, job: Job) -> None:
        """Makes a new job known."""
        if job.schedule is not None:
            self._recurring[job.handle] = job
        else:
            self._jobs[job.handle] = job
            job.function.total += 1
        if job.unique:
            index = _index_of(job)
            if index:
                index[0].setdefault(index[1], job)

    def _save(self, job: Job) -> None:
        self._saving[job.id] = job, []
        self._out.save(job.stored())

    def _end_saving(self, ids: Sequence[int]) -> Iterable[tuple[Job, Gaps]]:
        for id_ in ids:
            # One that ended meanwhile is no longer there; it was forgotten behind its save.
            saving = self._saving.pop(id_, None)
            if saving is not None:
                yield saving

    def _admit(self, job: Job) -> None:
        """Lets a job that was being saved run."""
        job.enter(self._waiting_state(job))
        self._put(job)

    def _put(self, job: Job) -> None:
        """Puts a job where its state says, and wakes a worker for it."""
        if job.state is State.SCHEDULED:
            self._schedule(job, job.run_at)
        elif job.schedule is not None:
            while (replaced := _replaced_by(job)) is not None:
                self.cancel(replaced.handle)
            job.replaces = None
            self._schedule(job, job.schedule.next_after(self._now))
        else:
            self._queues.push(job)
            self._wake(job.function)

    def _attach(self, conn: Connection, job: Job) -> None:
        """A client gets the job's packets from now on, once for each time that it asked.

        COMPAT: Perl's Gearman::Client counts one ending for each of its submissions.
        """
        if job.clients is None:
            job.clients = {conn: 1}
        else:
            job.clients[conn] = job.clients.get(conn, 0) + 1
        conn.waiting_for[job] = None

    def _assign(self, conn: Connection, job: Job) -> None:
        job.enter(State.RUNNING)
        job.worker = conn
        conn.running[job] = None
        job.function.running += 1
        timeout = conn.abilities[job.function].timeout
        if timeout:
            self._schedule(job, self._now + timeout)

    def _take_away(self, job: Job) -> None:
        """Takes a job from its worker: back to the end of its lane, or failed if that was too often."""
        was_cancelled = job.state is State.CANCELLED
        self._leave_worker(job)
        job.attempts += 1
        job.progress = NO_PROGRESS
        retries = self.settings.job_retries
        if was_cancelled or not (job.is_background or job.clients):
            self._finish(job)
        elif 0 <= retries <= job.attempts:
            self._tell_clients(job, respond(PacketType.WORK_FAIL, job.handle))
            self._finish(job)
        else:
            job.enter(State.QUEUED)
            self._put(job)

    def _leave_worker(self, job: Job) -> None:
        if job.due:
            self._agenda.drop(job)
        if job.worker is not None:
            del job.worker.running[job]
            job.worker = None
            job.function.running -= 1

    def _end_early(self, job: Job) -> None:
        """Ends a job that may be with a worker."""
        if job.state is State.RUNNING:
            # The worker would be startled by an ERROR for a job that it was given (libgearman takes it
            # for the answer to its next grab), so it may go on; nobody hears of it.
            job.enter(State.CANCELLED)
            self._release(job)
        else:
            self._finish(job)

    def _drop_if_unwanted(self, job: Job) -> None:
        """Ends a job that waits and that nobody waits for; a running one may finish."""
        if not job.is_background and not job.clients and job.state in (State.QUEUED, State.SCHEDULED):
            self._finish(job)

    def _finish(self, job: Job) -> None:
        """Ends a job: nothing knows it any more."""
        was_queued = job.state is State.QUEUED
        was_cancelled = job.state is State.CANCELLED
        self._leave_worker(job)
        job.enter(State.DONE)
        if was_queued:
            self._queues.drop(job)
        if job.schedule is not None:
            del self._recurring[job.handle]
        else:
            del self._jobs[job.handle]
            job.function.total -= 1
        if not was_cancelled:
            self._release(job)

    def _release(self, job: Job) -> None:
        """Lets go of all that a job no longer needs when its outcome is known."""
        saving = self._saving.pop(job.id, None)
        if saving is not None:
            # Its outcome is a better promise than its save.
            self._fill_gaps_well(job, saving[1])
        for client in job.clients or ():
            del client.waiting_for[job]
        job.clients = None
        index = _index_of(job) if job.unique else None
        if index and index[0].get(index[1]) is job:
            del index[0][index[1]]
            replaced = _replaced_by(job)
            if replaced is not None:
                index[0][index[1]] = replaced  # it never took its place
        if job.is_stored or saving is not None:
            self._out.forget(job.id)

    def _fill_gaps_well(self, job: Job, gaps: Gaps) -> None:
        self._note_accepted(job, len(gaps))
        self._fill_gaps(gaps, respond(PacketType.JOB_CREATED, job.handle))

    def _fill_gaps(self, gaps: Gaps, reply: bytes) -> None:
        for conn, gap in gaps:
            conn.fill_gap(self._out, gap, reply)

    def _tell_clients(self, job: Job, packet: bytes) -> None:
        for client, times in (job.clients or {}).items():
            for _ in range(times):
                client.write(self._out, packet)

    def _forward(self, job: Job, type_: PacketType, args: list[bytes]) -> None:
        """Sends a worker's packet on to the job's clients; its data is not copied for each."""
        if not job.clients:
            return
        if len(args) == 1:
            self._tell_clients(job, respond(type_, *args))
            return
        handle, data = args
        packet = with_data(type_, handle + b"\0", data)
        for client, times in job.clients.items():
            for _ in range(times):
                for chunk in packet:
                    client.write(self._out, chunk)

    def _tell_exception(self, job: Job, args: list[bytes]) -> None:
        """Tells the clients of an exception, each as it wants to hear of it."""
        # DIFFERS: who did not ask for exceptions gets WORK_FAIL; gearmand leaves a NUL behind the handle,
        # with which libgearman does not know its own job, and waits for ever.
        failed = respond(PacketType.WORK_FAIL, job.handle)
        excepted = respond(PacketType.WORK_EXCEPTION, *args)
        for client, times in (job.clients or {}).items():
            for _ in range(times):
                client.write(self._out, excepted if client.wants_exceptions else failed)

    def _error(self, conn: Connection, code: bytes, text: bytes) -> None:
        conn.write(self._out, respond(PacketType.ERROR, code, text))

    def _wake(self, function: FunctionQueue) -> None:
        conn = self._wakeups.wake(function, self._now)
        if conn is not None:
            self.due_by = min(self.due_by, conn.wakeup_deadline)
            conn.write(self._out, NOOP)

    def _schedule(self, job: Job, due: float) -> None:
        self._agenda.put(job, due)
        self.due_by = min(self.due_by, due)

    def _wake_if_queued(self, function: FunctionQueue | None) -> None:
        """Hands a wake-up on, if there is still something to wake for."""
        if function is not None and function.has_queued:
            self._wake(function)


def with_data(type_: PacketType, head: bytes, data: bytes) -> tuple[bytes, ...]:
    """A packet in as many pieces as its data should be copied into: one if it is small."""
    start = encode_head(RES, type_, head, len(data))
    return (start + data,) if len(data) <= _SMALL_BYTES else (start, data)


def _replaced_by(job: Job) -> Job | None:
    """The recurring job that one was to take the place of, if that has not ended."""
    while job.replaces is not None and job.replaces.state is State.DONE:
        job.replaces = job.replaces.replaces
    return job.replaces


def _index_of(job: Job) -> tuple[dict[bytes, Job | int], bytes] | None:
    """Where a job is found by its unique, if it is."""
    if job.schedule is not None:
        return (cast("dict[bytes, Job | int]", job.function.recurring), job.unique) if job.unique else None
    return job.function.index_of(job.unique, job.workload)
