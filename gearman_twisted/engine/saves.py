"""No promise before its commit.

JOB_CREATED for a background job waits until the store has the job, and the OK of ``cancel`` until the store
has forgotten it. The replies that wait are gaps in their connections' output; what is behind a gap waits too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from gearman_twisted.engine.outbox import Turn
from gearman_twisted.engine.records import Connection, Gap, Job
from gearman_twisted.wire import text
from gearman_twisted.wire.codec import respond
from gearman_twisted.wire.constants import LARGEST_PACKET_BYTES, MAX_ARGUMENT_BYTES, ErrorCode, PacketType

Gaps = list[tuple[Connection, Gap]]

# Where it has no limit of its own, a workload has to fit the packet that assigns it, with a handle and names.
MAX_WORKLOAD_BYTES = LARGEST_PACKET_BYTES - 4 * (MAX_ARGUMENT_BYTES + 1)


@attrs.define(eq=False)
class Saves:
    """The jobs that are being saved and forgotten, with the replies that wait for that.

    Args:
        turn: the call being handled.
        durable: whether background jobs are saved at all.
        notes_accepted: whether the Outbox reports each accepted submission.

    Attributes:
        durable: as given.
        max_workload_bytes: the longest workload that can be saved.
        store: the store for clients whose workload is longer.
    """

    _turn: Turn
    durable: bool
    _notes_accepted: bool
    max_workload_bytes: int = attrs.field(default=MAX_WORKLOAD_BYTES, init=False)
    store: str = attrs.field(default="the store", init=False)
    _saving: dict[int, tuple[Job, Gaps]] = attrs.field(factory=dict, init=False)
    _cancels: dict[int, Gaps] = attrs.field(factory=dict, init=False)
    _last_await: int = attrs.field(default=0, init=False)

    def __len__(self) -> int:
        return len(self._saving)

    @property
    def unconfirmed(self) -> int:
        """How many turns with ``cancel`` wait for the store."""
        return len(self._cancels)

    def save(self, job: Job) -> None:
        """Have the store save a job."""
        self._saving[job.id] = job, []
        self._turn.out.save(job.stored())

    def refuse_large(self, conn: Connection, workload: bytes, *, is_background: bool) -> bool:
        """Refuse a workload that is too long to be saved, or sent to a worker; return whether it is."""
        limit = self.max_workload_bytes if is_background else MAX_WORKLOAD_BYTES
        if len(workload) <= limit:
            return False
        who = self.store if is_background else "the server"
        reason = f"{who} takes workloads of up to {limit:,} bytes, and this one has {len(workload):,}"
        conn.write_error(self._turn.out, ErrorCode.QUEUE_ERROR, _not_stored(reason))
        return True

    def promise(self, conn: Connection, job: Job) -> None:
        """Answer a submission with JOB_CREATED, once the store has the job if it is being saved."""
        saving = self._saving.get(job.id) if self._saving else None
        if saving is None:
            self.acknowledge(conn, job)
        else:
            self._turn.out.has_gaps = True
            saving[1].append((conn, conn.leave_gap(len(job.workload))))

    def acknowledge(self, conn: Connection, job: Job) -> None:
        """Answer a submission with JOB_CREATED."""
        # A worker that is woken went first: gearmand sends NOOP before JOB_CREATED too.
        conn.write(self._turn.out, respond(PacketType.JOB_CREATED, job.handle))
        if self._notes_accepted:
            self._note_accepted(job, 1)

    def take(self, ids: Sequence[int]) -> Iterable[tuple[Job, Gaps]]:
        """Take the jobs whose saves are over; those that ended meanwhile are not there any more."""
        for id_ in ids:
            saving = self._saving.pop(id_, None)
            if saving is not None:
                yield saving

    def fulfil(self, job: Job, gaps: Gaps) -> None:
        """Answer the submissions of a job that was saved."""
        if self._notes_accepted:
            self._note_accepted(job, len(gaps))
        self._fill(gaps, respond(PacketType.JOB_CREATED, job.handle))

    def refuse(self, gaps: Gaps, reason: str) -> None:
        """Answer the submissions of a job that could not be saved."""
        self._fill(gaps, respond(PacketType.ERROR, ErrorCode.QUEUE_ERROR, _not_stored(reason)))

    def confirm_cancel(self, conn: Connection) -> None:
        """Answer ``cancel`` with OK, once nothing that was forgotten so far can come back from the store."""
        if not self.durable:
            conn.write(self._turn.out, text.OK)
            return
        out = self._turn.out
        if not out.awaits:
            self._last_await = out.awaits = self._last_await + 1
            self._cancels[out.awaits] = []
        out.has_gaps = True
        self._cancels[out.awaits].append((conn, conn.leave_gap(0)))

    def forgotten(self, number: int, error: str | None) -> None:
        """The store has forgotten what ``Outbox.awaits`` was set for, or failed to."""
        reply = text.OK
        if error is not None:
            why = f"The job is cancelled, but may run after a restart: the store failed: {error:.1000}"
            reply = text.error(b"NOT_FORGOTTEN " + text.reason(why))
        self._fill(self._cancels.pop(number), reply)

    def release(self, job: Job) -> None:
        """A job's outcome is known: answer its submissions, and have the store forget it."""
        saving = self._saving.pop(job.id, None)
        if saving is not None:
            # Its outcome is a better promise than its save.
            self.fulfil(*saving)
        if job.is_stored or saving is not None:
            self._turn.out.forget(job.id)

    def _fill(self, gaps: Gaps, reply: bytes) -> None:
        for conn, gap in gaps:
            conn.fill_gap(self._turn.out, gap, reply)

    def _note_accepted(self, job: Job, times: int) -> None:
        """Note for the log that so many submissions were accepted."""
        if times:
            # COMPAT: gearmand has the reducer in the place of the time.
            text = job.schedule.text if job.schedule is not None else job.reducer or b"%d" % job.run_at
            noted = self._turn.out.accepted = self._turn.out.accepted or []
            noted += [(job.function.name, job.unique, text)] * times


def _not_stored(reason: str) -> bytes:
    # As short as an argument has to be; a reason may hold a whole SQL statement.
    return f"The job was not stored: {reason:.1000}".replace("\0", " ").encode(errors="replace")
