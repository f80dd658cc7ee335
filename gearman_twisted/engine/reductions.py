"""Reduce jobs: a job's worker splits it into parts, and a job of the reducer is made of each.

libgearman does this in its partition workers; the server does it for all other workers. Each WORK_DATA is a
part, and so is the data of WORK_COMPLETE unless it is empty. A job of the reducer's function is made of each
part. When all of them have ended, the reduce job ends with their results, joined in the order of the parts.
If one fails, the reduce job fails.

A worker that grabs with GRAB_JOB_ALL gets the reducer's name, and does all this itself.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from gearman_twisted.engine.endings import Endings
from gearman_twisted.engine.records import Job, Reduction, ReductionObserver
from gearman_twisted.engine.states import State
from gearman_twisted.engine.submissions import Submissions
from gearman_twisted.engine.usage import PIECE_BYTES, Usage
from gearman_twisted.wire.constants import PacketType

_OUT_OF_MEMORY = "the server's memory is used up"


@attrs.define(eq=False)
class Reductions(ReductionObserver):
    """The rules of reduce jobs.

    Args:
        submissions: makes the parts.
        endings: ends jobs; tells of those that ended otherwise.
        usage: what results take is counted there.
        max_bytes: a reduce job whose results are longer together fails.
    """

    _submissions: Submissions
    _endings: Endings
    _usage: Usage
    _max_bytes: int

    def begin(self, job: Job) -> None:
        """A worker that knows nothing of reducers was given a reduce job."""
        job.reduction = Reduction(job, self)

    def receive(self, job: Job, type_: PacketType, args: list[bytes]) -> bool:
        """Take what a worker sent for a job of a reduction; return whether no more is to be done with it."""
        reduction = job.reduction
        if reduction is None:
            return False
        if job is not reduction.whole:
            self.receive_from_part(reduction, job, type_, args)
            return True
        is_part = type_ is PacketType.WORK_DATA or (type_ is PacketType.WORK_COMPLETE and args[1])
        if is_part and self._usage.is_over:
            self._endings.give_up(job, _OUT_OF_MEMORY)
            if type_ is PacketType.WORK_COMPLETE:
                self._endings.finish(job)
            return True
        if type_ is PacketType.WORK_DATA:
            self.add_part(reduction, args[1])
            return True
        if type_ is PacketType.WORK_COMPLETE:
            if is_part:
                self.add_part(reduction, args[1])
            self._endings.await_parts(job)
            self.end_if_complete(reduction)
            return True
        return False

    def add_part(self, reduction: Reduction, workload: bytes) -> None:
        """Make a job of a part."""
        # It is wanted as long as the whole is, and stored with it: after a crash the whole is split again.
        part = self._submissions.make_part(reduction, workload)
        reduction.open[part] = len(reduction.results)
        reduction.results.append([])
        self._keep(reduction, PIECE_BYTES)
        self._submissions.place(part)

    def receive_from_part(
        self, reduction: Reduction, part: Job, type_: PacketType, args: list[bytes]
    ) -> None:
        """Take what a worker sent for a part."""
        whole = reduction.whole
        if type_ in (PacketType.WORK_DATA, PacketType.WORK_COMPLETE):
            reduction.results[reduction.open[part]].append(args[1])
            reduction.result_bytes += len(args[1])
            self._keep(reduction, len(args[1]) + PIECE_BYTES)
            is_too_long = reduction.result_bytes > self._max_bytes
            if is_too_long or self._usage.is_over:
                # The worker of the part may go on if it is not done.
                is_done = type_ is PacketType.WORK_COMPLETE
                self._close_part(reduction, part, self._endings.finish if is_done else self._endings.abort)
                reason = f"the results of its parts are longer than {self._max_bytes} bytes"
                self._endings.give_up(whole, reason if is_too_long else _OUT_OF_MEMORY)
                return
        if type_ is PacketType.WORK_WARNING:
            self._endings.forward(whole, type_, [whole.handle, args[1]])
        elif type_ is PacketType.WORK_COMPLETE:
            self._close_part(reduction, part, self._endings.finish)
            self.end_if_complete(reduction)
        elif type_ is PacketType.WORK_FAIL:
            self._endings.finish(part)
        elif type_ is PacketType.WORK_EXCEPTION:
            self._close_part(reduction, part, self._endings.finish)
            self._endings.note_given_up(whole, f"its part {_shown(part)} ended with an exception")
            self._endings.tell_exception(whole, [whole.handle, args[1]])
            self._endings.abort(whole)

    def _keep(self, reduction: Reduction, size: int) -> None:
        reduction.kept_bytes += size
        self._usage.bytes += size

    def _close_part(self, reduction: Reduction, part: Job, end: Callable[[Job], None]) -> None:
        """End a part without giving up the whole."""
        del reduction.open[part]
        part.reduction = None
        end(part)

    def end_if_complete(self, reduction: Reduction) -> None:
        """End the whole if all of its parts have ended."""
        whole = reduction.whole
        if whole.state is State.REDUCING and not reduction.open:
            result = b"".join(piece for pieces in reduction.results for piece in pieces)
            self._endings.forward(whole, PacketType.WORK_COMPLETE, [whole.handle, result])
            self._endings.finish(whole)

    def requeued(self, job: Job) -> None:
        reduction = job.reduction
        assert reduction is not None
        if job is reduction.whole:
            self.abandon_parts(reduction)
        else:
            pieces = reduction.results[reduction.open[job]]
            size = sum(map(len, pieces))
            reduction.result_bytes -= size
            self._keep(reduction, -size - len(pieces) * PIECE_BYTES)
            pieces.clear()

    def ended(self, job: Job) -> None:
        reduction = job.reduction
        assert reduction is not None
        if job is reduction.whole:
            self.abandon_parts(reduction)
        else:
            # Failed, cancelled, or taken away too often.
            job.reduction = None
            del reduction.open[job]
            self._endings.give_up(reduction.whole, f"its part {_shown(job)} failed or was cancelled")

    def abandon_parts(self, reduction: Reduction) -> None:
        """End the parts of a whole that has ended, or that is split again."""
        reduction.whole.reduction = None
        self._keep(reduction, -reduction.kept_bytes)
        reduction.result_bytes = 0
        for part in list(reduction.open):
            part.reduction = None
            self._endings.abort(part)


def _shown(part: Job) -> str:
    return part.handle.decode("ascii", "backslashreplace")
