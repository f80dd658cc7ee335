"""The job server: what each packet of a peer means, and what happens when peers come and go."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from functools import partial

from gearman_twisted.engine.connections import Connection
from gearman_twisted.engine.job import Job, State
from gearman_twisted.engine.lifecycle import NOOP, with_data
from gearman_twisted.engine.outbox import Outbox
from gearman_twisted.engine.queues import Ability, FunctionQueue, ranks_up
from gearman_twisted.engine.reduce import Reducing, Reduction
from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.engine.text import AdminCommands
from gearman_twisted.engine.views import ConnectionView, FunctionView, Snapshot
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
from gearman_twisted.wire.schedule import Schedule

_NO_JOB = respond(PacketType.NO_JOB)
# No more digits than 64 bits have, and one: Python refuses to convert thousands of them.
_DIGITS = re.compile(rb"\s*([+-]?)0*([0-9]{1,20})")

_Handler = Callable[[Connection, list[bytes]], None]


class JobServer(Reducing):
    """The engine: no clock, no I/O.

    Every call that returns an ``Outbox`` expects it to be performed, in the order of the calls.

    Args:
        settings: how jobs and peers are treated.
        durable: background jobs are promised to clients only once the store has them; otherwise
            nothing is ever saved.
        last_id: the id to go on from, so that no job gets a handle that an earlier one had.

    Attributes:
        process_id: what the text command ``getpid`` answers; for its owner to set.
        is_loading: whether stored jobs are still to come, by ``restore``; for its owner to set.
    """

    def __init__(self, settings: EngineSettings, *, durable: bool = False, last_id: int = 0) -> None:
        super().__init__(settings, durable=durable, last_id=last_id)
        self.process_id = 0
        self.is_loading = False
        self._connections: dict[int, Connection] = {}
        self._admin = AdminCommands(self)
        self._handlers = self._make_handlers()

    # What happens, as the rim tells it.

    def connect(self, conn: int, peer: str, now: float) -> Outbox:
        """A peer has connected.

        Args:
            conn: the caller's number for it, never given twice; comes back in the Outbox. The text
                command ``workers`` shows it where gearmand shows a file descriptor.
            peer: its address.
            now: seconds since 1970, here and below.
        """
        self._now = now
        self._connections[conn] = Connection(
            conn, peer, self.settings.max_held_bytes, wants_exceptions=self.settings.exceptions
        )
        return self._take_outbox()

    def receive(self, conn: int, packets: Iterable[Packet], now: float) -> Outbox:
        """A peer has sent packets: all those of one read."""
        self._now = now
        connection = self._connections[conn]
        handlers = self._handlers
        for type_, args in packets:
            handlers[type_](connection, args)
        return self._take_outbox()

    def disconnect(self, conn: int, now: float) -> Outbox:
        """A peer is gone: its jobs go back to their queues, and nobody waits for what it submitted."""
        self._now = now
        connection = self._connections.pop(conn)
        connection.is_open = False
        # First as a client: a job that it ran for itself alone is not queued again, nor reported to it.
        for job in list(connection.waiting_for):
            if job.clients:
                job.clients.pop(connection, None)
            self._drop_if_unwanted(job)
        self._stop_waiting(connection)
        self._unregister(connection, dict(connection.abilities))
        self._wakeups.rouse(connection)
        return self._take_outbox()

    def snapshot(self) -> Snapshot:
        """The server as it is now; costs as much as there are functions and connections."""
        return Snapshot(
            [FunctionView.of(queue) for queue in self._queues.functions.values()],
            [ConnectionView.of(connection) for connection in self._connections.values()],
            self.job_count,
            len(self._saving),
        )

    def held(self, conn: int) -> int:
        """How many replies to a peer, and what is behind them, wait for the store."""
        return self._connections[conn].held

    # Packets, in the order of the protocol's table.

    def _make_handlers(self) -> dict[int, _Handler]:
        p = PacketType
        handlers: dict[int, _Handler] = {
            type_: self._unexpected for type_, spec in PACKETS.items() if spec.direction is Direction.RESPONSE
        }
        handlers |= {
            p.TEXT_LINE: self._text_line,
            p.BAD_PACKET: self._bad_packet,
            p.BAD_STREAM: self._bad_stream,
            p.CAN_DO: self._can_do,
            p.CANT_DO: self._cant_do,
            p.RESET_ABILITIES: self._reset_abilities,
            p.PRE_SLEEP: self._pre_sleep,
            p.UNUSED: self._unexpected,
            p.SUBMIT_JOB: partial(self._submit, Priority.NORMAL, False),
            p.GRAB_JOB: partial(self._grab, p.JOB_ASSIGN),
            p.WORK_STATUS: self._work_status,
            p.WORK_COMPLETE: partial(self._work_ended, p.WORK_COMPLETE),
            p.WORK_FAIL: partial(self._work_ended, p.WORK_FAIL),
            p.GET_STATUS: self._get_status,
            p.ECHO_REQ: self._echo,
            p.SUBMIT_JOB_BG: partial(self._submit, Priority.NORMAL, True),
            p.SUBMIT_JOB_HIGH: partial(self._submit, Priority.HIGH, False),
            p.SET_CLIENT_ID: self._set_client_id,
            p.CAN_DO_TIMEOUT: self._can_do_timeout,
            p.ALL_YOURS: self._unexpected,
            p.WORK_EXCEPTION: self._work_exception,
            p.OPTION_REQ: self._option,
            p.WORK_DATA: partial(self._work_data, p.WORK_DATA),
            p.WORK_WARNING: partial(self._work_data, p.WORK_WARNING),
            p.GRAB_JOB_UNIQ: partial(self._grab, p.JOB_ASSIGN_UNIQ),
            p.SUBMIT_JOB_HIGH_BG: partial(self._submit, Priority.HIGH, True),
            p.SUBMIT_JOB_LOW: partial(self._submit, Priority.LOW, False),
            p.SUBMIT_JOB_LOW_BG: partial(self._submit, Priority.LOW, True),
            p.SUBMIT_JOB_SCHED: self._submit_sched,
            p.SUBMIT_JOB_EPOCH: self._submit_epoch,
            p.SUBMIT_REDUCE_JOB: partial(self._submit_reduce, False),
            p.SUBMIT_REDUCE_JOB_BACKGROUND: partial(self._submit_reduce, True),
            p.GRAB_JOB_ALL: partial(self._grab, p.JOB_ASSIGN_ALL),
            p.GET_STATUS_UNIQUE: self._get_status_unique,
        }
        return handlers

    def _unexpected(self, conn: Connection, _args: list[bytes]) -> None:
        self._error(conn, ErrorCode.INVALID_COMMAND, b"Command not expected")

    def _bad_packet(self, conn: Connection, args: list[bytes]) -> None:
        self._error(conn, *args)

    def _bad_stream(self, conn: Connection, args: list[bytes]) -> None:
        self._error(conn, *args)
        conn.close(self._out)

    def _text_line(self, conn: Connection, args: list[bytes]) -> None:
        conn.write(self._out, self._admin.answer(args[0]))

    def _can_do(self, conn: Connection, args: list[bytes], timeout: float = 0.0) -> None:
        function = self._queues.function(args[0])
        conn.abilities[function] = Ability(timeout, next(ranks_up))
        conn.abilities.move_to_end(function)
        self._queues.add_worker(conn, function)
        self._wakeups.register(conn, function)
        if conn.is_sleeping:
            # DIFFERS: gearmand lets it sleep on, though there may be jobs that only it can do.
            self._wake_if_queued(function)

    def _can_do_timeout(self, conn: Connection, args: list[bytes]) -> None:
        if len(args[1]) > 20:
            self._error(conn, ErrorCode.INVALID_ARGUMENT, b"The timeout takes at most 20 digits")
            return
        milliseconds = _leading_int(args[1])
        # gearmand takes anything below a second for a second, and nothing below 1 for no limit.
        timeout = max(milliseconds / 1000, 1.0) if milliseconds > 0 else 0.0
        self._can_do(conn, args, timeout)

    def _cant_do(self, conn: Connection, args: list[bytes]) -> None:
        function = self._queues.functions.get(args[0])
        if function is not None and function in conn.abilities:
            self._unregister(conn, (function,))

    def _reset_abilities(self, conn: Connection, _args: list[bytes]) -> None:
        self._unregister(conn, dict(conn.abilities))

    def _unregister(self, conn: Connection, functions: Collection[FunctionQueue]) -> None:
        for function in functions:
            del conn.abilities[function]
            self._queues.remove_worker(conn, function)
            self._wakeups.unregister(conn, function)
        if conn.woken_for in functions:
            self._wake_if_queued(self._wakeups.rouse(conn))
        self._look_again(conn)
        for job in [job for job in reversed(conn.running) if job.function in functions]:
            self._take_away(job)

    def _pre_sleep(self, conn: Connection, _args: list[bytes]) -> None:
        if self._queues.has_job_for(conn.abilities):
            if conn.is_sleeping:
                self._wakeups.rouse(conn)
            # One that was woken is still waited for: if it never grabs, the next one is woken.
            conn.write(self._out, NOOP)
        else:
            self._wakeups.sleep(conn)
            if self._queues.hungry:
                self._wait_for_load(conn)

    def _grab(self, assign: PacketType, conn: Connection, _args: list[bytes]) -> None:
        woken_for = self._wakeups.rouse(conn)
        job = self._queues.pop(conn.abilities)
        if job is None:
            conn.write(self._out, _NO_JOB)
            if woken_for is not None and self._queues.can_pop(woken_for):
                # Something more urgent is being read for this one; another worker may have the job.
                self._wake(woken_for)
            return
        self._assign(conn, job)
        function = job.function
        if assign is PacketType.JOB_ASSIGN:
            head = b"%b\0%b\0" % (job.handle, function.name)
        else:
            head = b"%b\0%b\0%b\0" % (job.handle, function.name, job.unique)
        if assign is PacketType.JOB_ASSIGN_ALL:
            if job.reducer:
                head += job.reducer + b"\0"
            else:
                assign = PacketType.JOB_ASSIGN_UNIQ  # COMPAT: so gearmand does it, against PROTOCOL
        elif job.reducer:
            job.reduction = Reduction(job)
        for chunk in with_data(assign, head, job.workload):
            conn.write(self._out, chunk)
        if woken_for is not None and woken_for is not function:
            self._wake_if_queued(woken_for)

    def _own_job(self, conn: Connection, handle: bytes) -> Job | None:
        """The job of that handle if this connection runs it; a NUL may be behind the handle."""
        job = self._jobs.get(handle)
        if job is None and handle.endswith(b"\0"):
            job = self._jobs.get(handle[:-1])
        return job if job is not None and job.worker is conn else None

    def _work_status(self, conn: Connection, args: list[bytes]) -> None:
        job = self._own_job(conn, args[0])
        if job is None:
            self._error(conn, ErrorCode.JOB_NOT_FOUND, b"Job given in work result not found")
            return
        job.progress = (_shown_number(args[1]), _shown_number(args[2]))
        if not self._reduce(job, PacketType.WORK_STATUS, args):
            self._tell_clients(job, respond(PacketType.WORK_STATUS, *args))

    def _work_data(self, type_: PacketType, conn: Connection, args: list[bytes]) -> None:
        job = self._own_job(conn, args[0])
        if job is None:
            self._error(conn, ErrorCode.JOB_NOT_FOUND, b"Job does not exist on server")
        elif not self._reduce(job, type_, args):
            self._forward(job, type_, args)

    def _work_ended(self, type_: PacketType, conn: Connection, args: list[bytes]) -> None:
        job = self._own_job(conn, args[0])
        if job is None:
            self._error(conn, ErrorCode.JOB_NOT_FOUND, b"Job given in work result not found")
            return
        if not self._reduce(job, type_, args):
            self._forward(job, type_, args)
            self._finish(job)

    def _work_exception(self, conn: Connection, args: list[bytes]) -> None:
        job = self._own_job(conn, args[0])
        if job is None:
            text = b"An exception was received for a job that does not exist"
            self._error(conn, ErrorCode.JOB_NOT_FOUND, text)
            return
        if not self._reduce(job, PacketType.WORK_EXCEPTION, args):
            self._tell_exception(job, args)
            self._finish(job)

    def _get_status(self, conn: Connection, args: list[bytes]) -> None:
        handle = _up_to_nul(args[0])
        conn.write(self._out, respond(PacketType.STATUS_RES, handle, *_status_of(self._find(handle))))

    def _get_status_unique(self, conn: Connection, args: list[bytes]) -> None:
        unique = _up_to_nul(args[0])
        # The packet names no function, so all are asked; the newest job counts.
        queues = self._queues.functions.values()
        found = [self._job_of_unique(queue, unique) for queue in queues if unique in queue.uniques]
        found += [queue.recurring.get(unique) for queue in queues]
        job = max(filter(None, found), key=lambda job: job.id, default=None)
        clients = b"%d" % (sum(job.clients.values()) if job and job.clients else 0)
        conn.write(self._out, respond(PacketType.STATUS_RES_UNIQUE, unique, *_status_of(job), clients))

    def _echo(self, conn: Connection, args: list[bytes]) -> None:
        conn.write(self._out, respond(PacketType.ECHO_RES, *args))

    def _set_client_id(self, conn: Connection, args: list[bytes]) -> None:
        conn.client_id = args[0][:MAX_CLIENT_ID_BYTES]

    def _option(self, conn: Connection, args: list[bytes]) -> None:
        if args[0].removesuffix(b"\0").lower() == b"exceptions":
            conn.wants_exceptions = True
            conn.write(self._out, respond(PacketType.OPTION_RES, *args))
        else:
            self._error(conn, ErrorCode.UNKNOWN_OPTION, b"Server does not recognize given option")

    def _submit_reduce(self, is_background: bool, conn: Connection, args: list[bytes]) -> None:
        # libgearman sends the fourth string empty, and gearmand does not look at it.
        function, unique, reducer, _aggregator, workload = args
        if not self._refuses(conn, reducer):
            self._submit(Priority.NORMAL, is_background, conn, [function, unique, workload], reducer=reducer)

    def _submit_sched(self, conn: Connection, args: list[bytes]) -> None:
        function, unique, *fields, workload = args
        try:
            schedule = Schedule(fields)
        except ValueError as error:
            self._error(conn, ErrorCode.INVALID_ARGUMENT, str(error).encode())
            return
        self._submit_recurring(conn, function, unique, schedule, workload)

    def _submit_epoch(self, conn: Connection, args: list[bytes]) -> None:
        function, unique, epoch, workload = args
        run_at = _leading_int(epoch)
        if run_at >= 1 << 63:
            self._error(conn, ErrorCode.INVALID_ARGUMENT, b"The epoch takes seconds since 1970 in 64 bits")
            return
        self._submit(Priority.NORMAL, True, conn, [function, unique, workload], run_at=max(run_at, 0))


def _up_to_nul(text: bytes) -> bytes:
    """What C sees of a text; a NUL inside would shift the arguments of the reply."""
    return text.partition(b"\0")[0]


def _leading_int(text: bytes) -> int:
    """The number that a text starts with, 0 if it starts with none, as C reads it."""
    match = _DIGITS.match(text)
    return int(match[1] + match[2]) if match else 0


def _shown_number(text: bytes) -> bytes:
    """A progress number as it is shown: not negative, and in the 32 bits that clients keep."""
    return b"%d" % min(max(_leading_int(text[:20]), 0), 0xFFFFFFFF)


def _status_of(job: Job | None) -> tuple[bytes, bytes, bytes, bytes]:
    """Known, running, numerator and denominator."""
    if job is None:
        return b"0", b"0", b"0", b"0"
    is_running = job.worker is not None or job.state is State.REDUCING
    return b"1", b"1" if is_running else b"0", *job.progress
