"""What workers ask for and report: functions, sleep, jobs, results."""

from __future__ import annotations

from collections.abc import Collection

import attrs

from gearman_twisted.engine.arguments import leading_int, progress_number
from gearman_twisted.engine.backlog import Backlog
from gearman_twisted.engine.endings import Endings, respond_with_data
from gearman_twisted.engine.outbox import Turn
from gearman_twisted.engine.queues import Queues, ranks_up
from gearman_twisted.engine.records import Ability, Connection, FunctionQueue, Job, LateJob
from gearman_twisted.engine.reductions import Reductions
from gearman_twisted.engine.register import Register
from gearman_twisted.engine.states import State
from gearman_twisted.engine.wakeups import NOOP, Wakeups
from gearman_twisted.wire.codec import respond
from gearman_twisted.wire.constants import ErrorCode, PacketType

_NO_JOB = respond(PacketType.NO_JOB)

_ENDS = (PacketType.WORK_COMPLETE, PacketType.WORK_FAIL, PacketType.WORK_EXCEPTION)

_NOT_FOUND = {
    PacketType.WORK_STATUS: b"Job given in work result not found",
    PacketType.WORK_COMPLETE: b"Job given in work result not found",
    PacketType.WORK_FAIL: b"Job given in work result not found",
    PacketType.WORK_DATA: b"Job does not exist on server",
    PacketType.WORK_WARNING: b"Job does not exist on server",
    PacketType.WORK_EXCEPTION: b"An exception was received for a job that does not exist",
}
"""The texts of gearmand for a report on a job that the worker does not run."""


@attrs.define(eq=False)
class Workers:
    """Handles the packets of workers.

    Args:
        turn: the call being handled.
        register, queues, wakeups, backlog, endings, reductions: the parts that these packets go to.
    """

    _turn: Turn
    _register: Register
    _queues: Queues
    _wakeups: Wakeups
    _backlog: Backlog
    _endings: Endings
    _reductions: Reductions

    # Functions.

    def can_do(self, conn: Connection, args: list[bytes], timeout: float = 0.0) -> None:
        """Handle CAN_DO."""
        function = self._queues.function(args[0])
        known = conn.abilities.get(function)
        if known is None:
            conn.abilities[function] = Ability(timeout, next(ranks_up))
        else:
            known.timeout, known.rank = timeout, next(ranks_up)
            conn.abilities.move_to_end(function)
        self._queues.add_worker(conn, function)
        self._wakeups.register(conn, function)
        if conn.is_sleeping:
            # DIFFERS: gearmand lets it sleep on, though there may be jobs that only it can do.
            self._wakeups.wake_if_queued(function)

    def can_do_timeout(self, conn: Connection, args: list[bytes]) -> None:
        """Handle CAN_DO_TIMEOUT."""
        if len(args[1]) > 20:
            text = b"The timeout takes at most 20 digits"
            conn.write_error(self._turn.out, ErrorCode.INVALID_ARGUMENT, text)
            return
        milliseconds = leading_int(args[1])
        # gearmand takes anything below a second for a second, and nothing below 1 for no limit.
        timeout = max(milliseconds / 1000, 1.0) if milliseconds > 0 else 0.0
        self.can_do(conn, args, timeout)

    def cant_do(self, conn: Connection, args: list[bytes]) -> None:
        """Handle CANT_DO."""
        function = self._queues.functions.get(args[0])
        if function is not None and function in conn.abilities:
            self._unregister(conn, (function,), list(conn.abilities[function].running))

    def reset_abilities(self, conn: Connection, _args: list[bytes]) -> None:
        """Handle RESET_ABILITIES."""
        self._unregister(conn, conn.abilities, list(conn.running))

    def disconnected(self, conn: Connection) -> None:
        """A worker is gone: its jobs go back to their queues."""
        self._backlog.stop_awaiting(conn)
        self._unregister(conn, conn.abilities, list(conn.running))
        self._wakeups.mark_awake(conn)

    def _unregister(self, conn: Connection, functions: Collection[FunctionQueue], running: list[Job]) -> None:
        for function in functions:
            self._queues.remove_worker(conn, function)
            self._wakeups.unregister(conn, function)
        if conn.woken_for in functions:
            self._wakeups.wake_if_queued(self._wakeups.mark_awake(conn))
        self._backlog.recheck(conn)
        for job in reversed(running):
            self._endings.take_away(job)
        for function in list(functions):
            conn.abilities.pop(function).is_given_up = True

    # Jobs.

    def pre_sleep(self, conn: Connection, _args: list[bytes]) -> None:
        """Handle PRE_SLEEP."""
        if self._queues.has_job_for(conn):
            if conn.is_sleeping:
                self._wakeups.mark_awake(conn)
            # One that was woken is still waited for: if it never grabs, the next one is woken.
            conn.write(self._turn.out, NOOP)
        else:
            self._hand_on(self._wakeups.mark_awake(conn))
            self._wakeups.sleep(conn)
            if self._queues.to_refill:
                self._backlog.await_load(conn)

    def _hand_on(self, woken_for: FunctionQueue | None) -> None:
        """Wake another worker for a job that one was woken for and does not get.

        A more urgent job of another function is being loaded for that one.
        """
        if woken_for is not None and self._queues.can_pop(woken_for):
            self._wakeups.wake(woken_for)

    def grab(self, assign: PacketType, conn: Connection, _args: list[bytes]) -> None:
        """Handle GRAB_JOB and its kin.

        Args:
            assign: the type of the packet that the job is sent in.
            conn: the worker.
        """
        woken_for = self._wakeups.mark_awake(conn)
        job = self._queues.pop(conn)
        if job is None:
            conn.write(self._turn.out, _NO_JOB)
            self._hand_on(woken_for)
            return
        self._endings.assign(conn, job)
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
            self._reductions.begin(job)
        for chunk in respond_with_data(assign, head, job.workload):
            conn.write(self._turn.out, chunk)
        if woken_for is not None and woken_for is not function:
            self._wakeups.wake_if_queued(woken_for)

    # Reports.

    def _own_job(self, conn: Connection, handle: bytes) -> Job | None:
        """Return the job of that handle if this connection runs it; a NUL may be behind the handle."""
        jobs = self._register.jobs
        job = jobs.get(handle)
        if job is None and handle.endswith(b"\0"):
            job = jobs.get(handle[:-1])
        return job if job is not None and job.worker is conn else None

    def _not_its_own(self, type_: PacketType, conn: Connection, args: list[bytes]) -> None:
        """Handle a report on a job that the connection does not run.

        DIFFERS: gearmand answers all of them with ERROR, which ends Perl's worker, and PHP's ``work``.
        """
        handle = args[0].removesuffix(b"\0")
        late = conn.late.get(handle)
        if late is not None and not late.ability.is_given_up:
            self._report_late(late, type_, conn, args)
        elif type_ is PacketType.WORK_FAIL and conn.excepted == handle:
            conn.excepted = None  # Perl's worker sends it behind each WORK_EXCEPTION
        else:
            conn.write_error(self._turn.out, ErrorCode.JOB_NOT_FOUND, _NOT_FOUND[type_])

    def _report_late(self, late: LateJob, type_: PacketType, conn: Connection, args: list[bytes]) -> None:
        """Handle a report on a job that a time limit took from the worker: only a result is of use."""
        if type_ is PacketType.WORK_DATA:
            late.is_whole = False
        if type_ not in _ENDS:
            return
        handle = args[0].removesuffix(b"\0")
        del conn.late[handle]
        if type_ is PacketType.WORK_EXCEPTION:
            conn.excepted = handle
        elif type_ is PacketType.WORK_COMPLETE and late.is_whole:
            # In memory if it waits: a job that was taken from a worker is not offloaded.
            job = self._register.jobs.get(handle)
            if (
                job is not None
                and job.state is State.QUEUED
                and job.attempts == late.attempts
                and not job.reducer
                and job.reduction is None
            ):
                self._endings.forward(job, type_, args)
                self._endings.finish(job)

    def status(self, conn: Connection, args: list[bytes]) -> None:
        """Handle WORK_STATUS."""
        job = self._own_job(conn, args[0])
        if job is None:
            self._not_its_own(PacketType.WORK_STATUS, conn, args)
            return
        job.progress = (progress_number(args[1]), progress_number(args[2]))
        if job.reduction is None or not self._reductions.receive(job, PacketType.WORK_STATUS, args):
            self._endings.tell(job, respond(PacketType.WORK_STATUS, *args))

    def data(self, type_: PacketType, conn: Connection, args: list[bytes]) -> None:
        """Handle WORK_DATA and WORK_WARNING."""
        job = self._own_job(conn, args[0])
        if job is None:
            self._not_its_own(type_, conn, args)
        elif job.reduction is None or not self._reductions.receive(job, type_, args):
            self._endings.forward(job, type_, args)

    def ended(self, type_: PacketType, conn: Connection, args: list[bytes]) -> None:
        """Handle WORK_COMPLETE and WORK_FAIL."""
        job = self._own_job(conn, args[0])
        if job is None:
            self._not_its_own(type_, conn, args)
        elif job.reduction is None or not self._reductions.receive(job, type_, args):
            self._endings.forward(job, type_, args)
            self._endings.finish(job)

    def exception(self, conn: Connection, args: list[bytes]) -> None:
        """Handle WORK_EXCEPTION."""
        job = self._own_job(conn, args[0])
        if job is None:
            self._not_its_own(PacketType.WORK_EXCEPTION, conn, args)
            return
        conn.excepted = job.handle
        if job.reduction is None or not self._reductions.receive(job, PacketType.WORK_EXCEPTION, args):
            self._endings.tell_exception(job, args)
            self._endings.finish(job)
