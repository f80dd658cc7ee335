"""What happens to a job from its assignment to its end, and who is notified.

A job of a reduction tells its observer when it is taken from its worker and when it ends; see ``reductions``.
"""

from __future__ import annotations

import attrs

from gearman_twisted.engine.backlog import Backlog
from gearman_twisted.engine.outbox import GivenUp, Turn
from gearman_twisted.engine.queues import Agenda, Queues
from gearman_twisted.engine.records import NO_PROGRESS, Connection, Job, LateJob
from gearman_twisted.engine.register import Register, replaced_by
from gearman_twisted.engine.saves import Saves
from gearman_twisted.engine.states import State
from gearman_twisted.wire.codec import encode_head, respond
from gearman_twisted.wire.constants import RES, PacketType

# Data up to this length is sent in one piece with what precedes it, which costs less than two pieces.
_SMALL_BYTES = 4096

# A packet that a client gets many times is sent in blocks of about this length: short packets do not become
# many chunks, and long ones are not copied.
_BLOCK_BYTES = 65_536


@attrs.define(eq=False)
class Endings:
    """Jobs that are assigned, reported, taken away, cancelled, finished.

    Args:
        turn: the call being handled.
        retries: how often a job may be taken from its worker; -1 for no limit.
        register, queues, agenda, backlog, saves: the parts that keep the jobs.
    """

    _turn: Turn
    _retries: int
    _register: Register
    _queues: Queues
    _agenda: Agenda
    _backlog: Backlog
    _saves: Saves

    # Workers.

    def assign(self, conn: Connection, job: Job) -> None:
        """Give a job to a worker."""
        job.enter(State.RUNNING)
        job.worker = conn
        ability = conn.abilities[job.function]
        conn.running[job] = ability.running[job] = None
        job.function.running += 1
        if ability.timeout:
            self._agenda.put(job, self._turn.now + ability.timeout)

    def take_away(self, job: Job) -> None:
        """Take a job from its worker: back to the end of its lane, or failed if that was too often."""
        if job.reduction is not None:
            job.reduction.observer.requeued(job)
        was_cancelled = job.state is State.CANCELLED
        self._leave_worker(job)
        job.attempts += 1
        job.progress = NO_PROGRESS
        if was_cancelled or not (job.is_background or job.clients):
            self.finish(job)
        elif 0 <= self._retries <= job.attempts:
            self.give_up(job, f"taken from its worker too often: {job.attempts}")
        else:
            job.enter(State.QUEUED)
            self._backlog.place(job)

    def time_out(self, job: Job) -> None:
        """Take a job from a worker that exceeded its time limit, and that may still report about it."""
        conn = job.worker
        assert conn is not None
        ability = conn.abilities[job.function]
        self.take_away(job)
        conn.remember_late(job.handle, LateJob(ability, job.attempts))

    def await_parts(self, job: Job) -> None:
        """A reduce job's worker is done; its parts are not."""
        self._leave_worker(job)
        job.enter(State.REDUCING)
        job.function.running += 1

    def _leave_worker(self, job: Job) -> None:
        if job.due:
            self._agenda.drop(job)
        if job.worker is not None:
            del job.worker.running[job], job.worker.abilities[job.function].running[job]
            job.worker = None
            job.function.running -= 1
        elif job.state is State.REDUCING:
            job.function.running -= 1

    # The end.

    def cancel(self, job: Job) -> None:
        """Cancel a job: its clients get WORK_FAIL, what its worker still sends is dropped."""
        if job.state is not State.CANCELLED:
            self._backlog.revive(job)
            self.tell(job, respond(PacketType.WORK_FAIL, job.handle))
            self.abort(job)

    def cancel_replaced(self, job: Job) -> None:
        """Cancel the recurring jobs that a new one replaces, now that it is accepted."""
        while (replaced := replaced_by(job)) is not None:
            self.cancel(replaced)
        job.replaces = None

    def give_up(self, job: Job, reason: str) -> None:
        """End a job that neither its worker nor an operator ended, and tell its clients that it failed."""
        self.note_given_up(job, reason)
        self.tell(job, respond(PacketType.WORK_FAIL, job.handle))
        self.abort(job)

    def note_given_up(self, job: Job, reason: str) -> None:
        """Note for the log that a job was given up."""
        given_up = GivenUp(job.handle, job.function.name, job.unique, reason)
        self._turn.out.given_up = [*self._turn.out.given_up, given_up]

    def vanish(self, job: Job) -> None:
        """End a job whose row is gone from the store."""
        job.is_stored = False
        self.give_up(job, "it is no longer in the store, or its row is damaged")

    def abort(self, job: Job) -> None:
        """End a job that may be with a worker."""
        if job.state is State.RUNNING and job.worker is not None:
            # The worker would be startled by an ERROR for a job that it was given (libgearman takes it
            # for the answer to its next grab), so it may go on; its result is discarded.
            job.enter(State.CANCELLED)
            self._release(job)
        else:
            self.finish(job)

    def drop_if_unwanted(self, job: Job) -> None:
        """End a queued job without clients; a running one may finish."""
        if not job.is_background and not job.clients and job.state in (State.QUEUED, State.SCHEDULED):
            self.finish(job)

    def finish(self, job: Job) -> None:
        """End a job: nothing knows it any more."""
        before = job.state
        self._leave_worker(job)
        job.enter(State.DONE)
        if before is State.QUEUED:
            self._queues.drop(job)
        elif before is State.SCHEDULED:
            del self._register.scheduled[job.handle]
        self._register.remove(job)
        if before is not State.CANCELLED:
            self._release(job)
        if before is State.QUEUED or job.is_offloaded:
            self._backlog.ended(job)
        # Dead entries of lanes and heaps still have the job.
        job.workload = b""
        function = job.function
        if not (function.total or function.workers):
            self._queues.release(function)

    def _release(self, job: Job) -> None:
        """Let go of all that a job no longer needs when its outcome is known."""
        if job.reduction is not None:
            job.reduction.observer.ended(job)
        if job.clients:
            for client in job.clients:
                client.stop_waiting_for(job)
            job.clients = None
        if job.unique:
            self._register.free_unique(job)
        if job.is_background:
            self._saves.release(job)

    # Who is notified.

    def tell(self, job: Job, packet: bytes) -> None:
        """Send a packet to a job's clients."""
        for client, times in (job.clients or {}).items():
            self._write(client, packet, times)

    def _write(self, client: Connection, packet: bytes, times: int) -> None:
        """Send a packet so many times, in blocks of some length that are the same object."""
        if times == 1:
            client.write(self._turn.out, packet)
        else:
            in_block = min(max(_BLOCK_BYTES // len(packet), 1), times)
            blocks, rest = divmod(times, in_block)
            last = (packet * rest,) if rest else ()
            client.write_all(self._turn.out, (packet * in_block,) * blocks + last)

    def forward(self, job: Job, type_: PacketType, args: list[bytes]) -> None:
        """Send a worker's packet on to the job's clients; its data is not copied for each."""
        if not job.clients:
            return
        if len(args) == 1:
            self.tell(job, respond(type_, *args))
            return
        handle, data = args
        packet = respond_with_data(type_, handle + b"\0", data)
        out = self._turn.out
        for client, times in job.clients.items():
            if times == 1:
                for chunk in packet:
                    client.write(out, chunk)
            elif len(packet) == 1:
                self._write(client, packet[0], times)
            else:
                client.write_all(out, packet * times)

    def tell_exception(self, job: Job, args: list[bytes]) -> None:
        """Tell the clients of an exception, each in the packet that it wants."""
        # DIFFERS: who did not ask for exceptions gets WORK_FAIL; gearmand leaves a NUL behind the handle,
        # with which libgearman does not know its own job, and waits for ever.
        failed = respond(PacketType.WORK_FAIL, job.handle)
        excepted = respond(PacketType.WORK_EXCEPTION, *args)
        for client, times in (job.clients or {}).items():
            self._write(client, excepted if client.wants_exceptions else failed, times)


def respond_with_data(type_: PacketType, head: bytes, data: bytes) -> tuple[bytes, ...]:
    """Return a packet in as many pieces as its data should be copied into: one if it is small."""
    start = encode_head(RES, type_, head, len(data))
    return (start + data,) if len(data) <= _SMALL_BYTES else (start, data)
