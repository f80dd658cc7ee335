"""The job server: its parts and how they are wired; which part handles which packet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from gearman_twisted.engine.backlog import Backlog, InMemory, Overflowing
from gearman_twisted.engine.endings import Endings
from gearman_twisted.engine.inspection import Inspection
from gearman_twisted.engine.operations import Operations
from gearman_twisted.engine.outbox import Outbox, StoredJob, Turn
from gearman_twisted.engine.queues import Agenda, Queues
from gearman_twisted.engine.records import Connection
from gearman_twisted.engine.reductions import Reductions
from gearman_twisted.engine.register import Register
from gearman_twisted.engine.saves import MAX_WORKLOAD_BYTES, Saves
from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.engine.states import State
from gearman_twisted.engine.submissions import Submissions
from gearman_twisted.engine.text import TextProtocol
from gearman_twisted.engine.usage import CONNECTION_BYTES, Usage
from gearman_twisted.engine.views import Snapshot, Views
from gearman_twisted.engine.wakeups import Wakeups
from gearman_twisted.engine.workers import Workers
from gearman_twisted.wire.codec import respond
from gearman_twisted.wire.constants import (
    MAX_CLIENT_ID_BYTES,
    PACKETS,
    Direction,
    ErrorCode,
    PacketType,
    Priority,
)
from gearman_twisted.wire.packet import Packet
from gearman_twisted.wire.schedule import SHORTEST_PERIOD

_Handler = Callable[[Connection, list[bytes]], None]


class JobServer:
    """The engine: no clock, no I/O.

    Every call that returns an ``Outbox`` expects it to be performed, in the order of the calls.

    Args:
        settings: how jobs and peers are treated.
        durable: background jobs are promised to clients only once the store has them; otherwise
            nothing is ever saved.
        last_id: the id to go on from, so that no job gets a handle that an earlier one had.

    Attributes:
        settings: as given.
        operations: what operators can do; its effects are in the Outbox of the next call.
        views: what can be asked about jobs, functions and connections.
        inspection: the inside, for tests.
        usage: what the server keeps for its peers; the owner adds what it keeps outside the engine.
        due_by: no ``tick`` is wanted before this time; cheaper than ``next_deadline``, which corrects it.
    """

    def __init__(self, settings: EngineSettings, *, durable: bool = False, last_id: int = 0) -> None:
        self.settings = settings
        self.due_by = float("inf")
        turn = self._turn = Turn()
        conns: dict[int, Connection] = {}
        self._connections = conns
        usage = self.usage = Usage(settings.max_memory or float("inf"))
        register = Register(settings.handle_prefix, last_id, usage)
        queues = self._queues = Queues(usage, old_order=settings.order == "1.1")
        agenda = self._agenda = Agenda(turn)
        wakeups = self._wakeups = Wakeups(turn, settings.wakeup_timeout)
        memory = InMemory(turn, register, queues, agenda, wakeups)
        backlog: Backlog = memory
        if durable and settings.memory is not None:
            backlog = Overflowing(turn, register, queues, wakeups, memory, settings.memory)
        self._backlog = backlog
        saves = self._saves = Saves(turn, durable, settings.notes_accepted)
        endings = self._endings = Endings(
            turn, settings.job_retries, register, queues, agenda, backlog, saves
        )
        submissions = self._submissions = Submissions(
            turn, usage, register, queues, agenda, backlog, saves, endings
        )
        reductions = Reductions(submissions, endings, usage, settings.max_reduced_bytes)
        self._workers = Workers(turn, register, queues, wakeups, backlog, endings, reductions)
        self.operations = Operations(turn, usage, register, queues, backlog, endings)
        self.views = Views(turn, register, queues, backlog, saves, conns)
        self._text = TextProtocol(turn, settings, self.operations, self.views, saves)
        self.inspection = Inspection(conns, register, queues, agenda, wakeups, backlog, saves, usage)
        self._handlers = self._make_handlers()

    def limit_workloads(self, max_bytes: int | None, store: str) -> None:
        """Refuse background jobs whose workload is longer than the store takes.

        Args:
            max_bytes: the limit of the store, or None.
            store: its description, for the clients.
        """
        if max_bytes is not None:
            self._saves.max_workload_bytes = min(max_bytes, MAX_WORKLOAD_BYTES)
            self._saves.store = store

    # Events.

    def connect(self, conn: int, peer: str, now: float) -> Outbox:
        """A peer has connected.

        Args:
            conn: the caller's number for it, never given twice; comes back in the Outbox. The text
                command ``workers`` shows it where gearmand shows a file descriptor.
            peer: its address.
            now: the time in seconds, here and below, by a clock that is never set; see ``set_wall_clock``.
        """
        self._turn.now = now
        self._connections[conn] = Connection(
            conn, peer, self.settings.max_held_bytes, self.usage, wants_exceptions=self.settings.exceptions
        )
        self.usage.bytes += CONNECTION_BYTES
        return self._end_turn()

    def receive(self, conn: int, packets: Iterable[Packet], now: float) -> Outbox:
        """A peer has sent packets: all those of one read."""
        self._turn.now = now
        connection = self._connections[conn]
        handlers = self._handlers
        for type_, args in packets:
            handlers[type_](connection, args)
        return self._end_turn()

    def is_listing(self, conn: int) -> bool:
        """Return whether a list for a peer is not complete, and ``go_on`` sends more of it."""
        return self._text.is_listing(self._connections[conn])

    def go_on(self, conn: int, now: float) -> Outbox:
        """Send more of a list to a peer; its next packets are best handled when the list is complete."""
        self._turn.now = now
        self._text.go_on(self._connections[conn])
        return self._end_turn()

    def disconnect(self, conn: int, now: float) -> Outbox:
        """A peer is gone: its jobs go back to their queues, and nobody waits for what it submitted."""
        self._turn.now = now
        connection = self._connections.pop(conn)
        connection.is_open = False
        self._text.disconnected(connection)
        # First as a client: a job that it ran for itself alone is not queued again, nor reported to it.
        for job in list(connection.waiting_for):
            job.remove_client(connection)
            self._endings.drop_if_unwanted(job)
        self._workers.disconnected(connection)
        connection.lose()
        return self._end_turn()

    def saved(self, ids: Sequence[int], now: float) -> Outbox:
        """The store has these jobs: their clients may be told."""
        self._turn.now = now
        self._submissions.saved(ids)
        return self._end_turn()

    def save_failed(self, ids: Sequence[int], reason: str, now: float) -> Outbox:
        """The store does not have these jobs: their clients are told that they were not accepted."""
        self._turn.now = now
        self._submissions.save_failed(ids, reason)
        return self._end_turn()

    def forgotten(self, number: int, error: str | None, now: float) -> Outbox:
        """The store has forgotten what ``Outbox.awaits`` asked about: operators may be told.

        Args:
            number: that of the request.
            error: why the store failed to; None if it did not. It may still forget it later.
            now: the time.
        """
        self._turn.now = now
        self._saves.forgotten(number, error)
        return self._end_turn()

    def loaded(self, number: int, jobs: Iterable[StoredJob], now: float) -> Outbox:
        """The store has loaded jobs that ``Outbox.loads`` asked for.

        Args:
            number: that of the request.
            jobs: those that it has; the others are gone, and fail.
            now: the time.
        """
        self._turn.now = now
        self._backlog.loaded(number, jobs, self._endings.vanish)
        return self._end_turn()

    def restore(self, stored: StoredJob, now: float) -> None:
        """The store had this job when the server started.

        Raises:
            ValueError: it is a recurring job with an invalid schedule; nothing was done.
        """
        self._turn.now = now
        self._submissions.restore(stored)

    def tick(self, now: float) -> Outbox:
        """Time has passed: do all that is due."""
        self._turn.now = now
        for job in self._agenda.take_due():
            if job.state is State.SCHEDULED:
                self._submissions.run_scheduled(job)
            elif job.state is State.RECURRING:
                self._submissions.run_recurring(job)
                self._backlog.place(job)
            else:
                self._endings.time_out(job)
        for function in self._wakeups.take_late():
            self._wakeups.wake_if_queued(function)
        return self._end_turn()

    def _end_turn(self) -> Outbox:
        if self._queues.to_refill:
            self._backlog.refill()
        turn = self._turn
        self.due_by = turn.due_by
        return turn.take()

    # The clocks.

    @property
    def wall_offset(self) -> float:
        """How many seconds the wall clock is ahead of the clock of ``now``."""
        return self._turn.wall_offset

    @property
    def waits_for_wall_clock(self) -> bool:
        """Whether a job waits for a time by the wall clock."""
        return self._agenda.has_calendar

    def set_wall_clock(self, offset: float) -> None:
        """Set how many seconds the wall clock is ahead of the clock of ``now``; 0 until this is called.

        Jobs that wait for a time by the wall clock are due by the new one: a recurring job is not left
        waiting when the clock was set back. Ask for ``next_deadline`` afterwards.
        """
        turn = self._turn
        change = offset - turn.wall_offset
        turn.wall_offset = offset
        # Set back by less, a job that has just run for its minute would run for it again.
        if change <= -SHORTEST_PERIOD:
            self._submissions.reschedule()

    # Queries.

    def next_deadline(self) -> float:
        """Return when ``tick`` is wanted next; infinity for not at all."""
        due_by = min(self._wakeups.next_deadline(), self._agenda.next_due())
        self.due_by = self._turn.due_by = due_by
        return due_by

    def waits_for_saves(self, conn: int) -> tuple[int, int]:
        """Return what of a peer waits for the store.

        Returns:
            How many replies, and what is behind them; and how long the submitted workloads are together.
        """
        connection = self._connections[conn]
        return connection.held, connection.unsaved_bytes

    def kept_bytes(self, conn: int) -> int:
        """Return what is kept for a peer alone, about, and would not be if it were gone."""
        return self._connections[conn].kept_bytes

    def runs_jobs(self, conn: int) -> bool:
        """Return whether a peer runs jobs."""
        return bool(self._connections[conn].running)

    def snapshot(self) -> Snapshot:
        """Return the state as it is now; costs as much as there are functions and connections."""
        return self.views.snapshot()

    @property
    def job_count(self) -> int:
        """How many jobs have not ended, recurring ones left out."""
        return self.views.job_count

    @property
    def process_id(self) -> int:
        """What the text command ``getpid`` answers; for the owner to set."""
        return self.views.process_id

    @process_id.setter
    def process_id(self, number: int) -> None:
        self.views.process_id = number

    @property
    def is_loading(self) -> bool:
        """Whether stored jobs are still to come, by ``restore``; for the owner to set."""
        return self.views.is_loading

    @is_loading.setter
    def is_loading(self, is_loading: bool) -> None:
        self.views.is_loading = is_loading

    # Packets, in the order of the protocol's table.

    def _make_handlers(self) -> dict[int, _Handler]:
        p = PacketType
        submit, workers = self._submissions.submit, self._workers
        handlers: dict[int, _Handler] = {
            type_: self._unexpected for type_, spec in PACKETS.items() if spec.direction is Direction.RESPONSE
        }
        handlers |= {
            p.TEXT_LINE: self._text.receive,
            p.BAD_PACKET: self._bad_packet,
            p.BAD_STREAM: self._bad_stream,
            p.CAN_DO: workers.can_do,
            p.CANT_DO: workers.cant_do,
            p.RESET_ABILITIES: workers.reset_abilities,
            p.PRE_SLEEP: workers.pre_sleep,
            p.UNUSED: self._unexpected,
            p.SUBMIT_JOB: partial(submit, Priority.NORMAL, False),
            p.GRAB_JOB: partial(workers.grab, p.JOB_ASSIGN),
            p.WORK_STATUS: workers.status,
            p.WORK_COMPLETE: partial(workers.ended, p.WORK_COMPLETE),
            p.WORK_FAIL: partial(workers.ended, p.WORK_FAIL),
            p.GET_STATUS: self.views.get_status,
            p.ECHO_REQ: self._echo,
            p.SUBMIT_JOB_BG: partial(submit, Priority.NORMAL, True),
            p.SUBMIT_JOB_HIGH: partial(submit, Priority.HIGH, False),
            p.SET_CLIENT_ID: self._set_client_id,
            p.CAN_DO_TIMEOUT: workers.can_do_timeout,
            p.ALL_YOURS: self._unexpected,
            p.WORK_EXCEPTION: workers.exception,
            p.OPTION_REQ: self._option,
            p.WORK_DATA: partial(workers.data, p.WORK_DATA),
            p.WORK_WARNING: partial(workers.data, p.WORK_WARNING),
            p.GRAB_JOB_UNIQ: partial(workers.grab, p.JOB_ASSIGN_UNIQ),
            p.SUBMIT_JOB_HIGH_BG: partial(submit, Priority.HIGH, True),
            p.SUBMIT_JOB_LOW: partial(submit, Priority.LOW, False),
            p.SUBMIT_JOB_LOW_BG: partial(submit, Priority.LOW, True),
            p.SUBMIT_JOB_SCHED: self._submissions.submit_recurring,
            p.SUBMIT_JOB_EPOCH: self._submissions.submit_at,
            p.SUBMIT_REDUCE_JOB: partial(self._submissions.submit_reduce, False),
            p.SUBMIT_REDUCE_JOB_BACKGROUND: partial(self._submissions.submit_reduce, True),
            p.GRAB_JOB_ALL: partial(workers.grab, p.JOB_ASSIGN_ALL),
            p.GET_STATUS_UNIQUE: self.views.get_status_unique,
        }
        return handlers

    def _unexpected(self, conn: Connection, _args: list[bytes]) -> None:
        conn.write_error(self._turn.out, ErrorCode.INVALID_COMMAND, b"Command not expected")

    def _bad_packet(self, conn: Connection, args: list[bytes]) -> None:
        conn.write_error(self._turn.out, *args)

    def _bad_stream(self, conn: Connection, args: list[bytes]) -> None:
        conn.write_error(self._turn.out, *args)
        conn.close(self._turn.out)

    def _echo(self, conn: Connection, args: list[bytes]) -> None:
        conn.write(self._turn.out, respond(PacketType.ECHO_RES, *args))

    def _set_client_id(self, conn: Connection, args: list[bytes]) -> None:
        conn.client_id = args[0][:MAX_CLIENT_ID_BYTES]

    def _option(self, conn: Connection, args: list[bytes]) -> None:
        if args[0].removesuffix(b"\0").lower() == b"exceptions":
            conn.wants_exceptions = True
            conn.write(self._turn.out, respond(PacketType.OPTION_RES, *args))
        else:
            text = b"Server does not recognize given option"
            conn.write_error(self._turn.out, ErrorCode.UNKNOWN_OPTION, text)
