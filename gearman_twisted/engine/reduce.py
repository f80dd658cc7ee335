"""Reduce jobs: a job's worker splits it into parts, and a job of the reducer is made of each.

What libgearman does in its partition workers, the server does for all others: each WORK_DATA of the
worker is a part (and so is what comes with its WORK_COMPLETE, unless it is empty), each part becomes a
job of the function that is named as reducer, and when all of them have ended, the reduce job ends with
their results, joined in the order of the parts. If one fails, the reduce job fails.

A worker that grabs with GRAB_JOB_ALL is told of the reducer, and does all this itself.
"""

from __future__ import annotations

import attrs

from gearman_twisted.engine.job import Job, State
from gearman_twisted.engine.overflow import Overflowing
from gearman_twisted.wire.codec import respond
from gearman_twisted.wire.constants import PacketType


@attrs.define(eq=False)
class Reduction:
    """What has become of a reduce job so far.

    Attributes:
        whole: the reduce job.
        open: its parts that have not ended, each with its place among all.
        results: the results of all its parts in order, in the pieces in which they came.
        result_bytes: how long they are together.
    """

    whole: Job
    open: dict[Job, int] = attrs.field(factory=dict)
    results: list[list[bytes]] = attrs.field(factory=list)
    result_bytes: int = 0


class Reducing(Overflowing):
    """The life of jobs, with those that are reduced."""

    def _reduce(self, job: Job, type_: PacketType, args: list[bytes]) -> bool:
        """Takes what a worker sends of a job, if it belongs to a reduction; returns whether it did."""
        reduction = job.reduction
        if reduction is None:
            return False
        if job is not reduction.whole:
            self._take_from_part(reduction, job, type_, args)
            return True
        if type_ is PacketType.WORK_DATA:
            self._add_part(reduction, args[1])
            return True
        if type_ is PacketType.WORK_COMPLETE:
            if args[1]:
                self._add_part(reduction, args[1])
            self._leave_worker(job)
            job.enter(State.REDUCING)
            job.function.running += 1
            self._end_if_reduced(reduction)
            return True
        return False

    def _add_part(self, reduction: Reduction, workload: bytes) -> None:
        whole = reduction.whole
        function = self._queues.function(whole.reducer)
        # It is wanted as long as the whole is, and stored with it: if the server dies, all is split anew.
        part = self._new_job(function, b"", workload, whole.priority, is_background=True)
        part.reduction = reduction
        reduction.open[part] = len(reduction.results)
        reduction.results.append([])
        self._put(part)

    def _take_from_part(self, reduction: Reduction, part: Job, type_: PacketType, args: list[bytes]) -> None:
        whole = reduction.whole
        if type_ in (PacketType.WORK_DATA, PacketType.WORK_COMPLETE):
            reduction.results[reduction.open[part]].append(args[1])
            reduction.result_bytes += len(args[1])
            if reduction.result_bytes > self.settings.max_reduced_bytes:
                # It fails, and the whole with it; its worker may go on if it is not done.
                end = self._finish if type_ is PacketType.WORK_COMPLETE else self._end_early
                end(part)
                return
        if type_ is PacketType.WORK_WARNING:
            self._forward(whole, type_, [whole.handle, args[1]])
        elif type_ is PacketType.WORK_COMPLETE:
            del reduction.open[part]
            part.reduction = None
            self._finish(part)
            self._end_if_reduced(reduction)
        elif type_ is PacketType.WORK_FAIL:
            self._finish(part)
        elif type_ is PacketType.WORK_EXCEPTION:
            del reduction.open[part]
            part.reduction = None
            self._finish(part)
            self._tell_exception(whole, [whole.handle, args[1]])
            self._end_early(whole)

    def _end_if_reduced(self, reduction: Reduction) -> None:
        whole = reduction.whole
        if whole.state is State.REDUCING and not reduction.open:
            result = b"".join(piece for pieces in reduction.results for piece in pieces)
            self._forward(whole, PacketType.WORK_COMPLETE, [whole.handle, result])
            self._finish(whole)

    def _finish(self, job: Job) -> None:
        if job.state is State.REDUCING:
            job.function.running -= 1
        super()._finish(job)

    def _take_away(self, job: Job) -> None:
        reduction = job.reduction
        if reduction is not None and job is reduction.whole:
            # Another worker splits it anew.
            self._give_up_parts(job)
        elif reduction is not None:
            # Another worker begins the part anew.
            pieces = reduction.results[reduction.open[job]]
            reduction.result_bytes -= sum(map(len, pieces))
            pieces.clear()
        super()._take_away(job)

    def _release(self, job: Job) -> None:
        reduction = job.reduction
        if reduction is not None and job is not reduction.whole:
            # It ended without a result: failed, cancelled, or taken away too often.
            job.reduction = None
            del reduction.open[job]
            super()._release(job)
            self._tell_clients(reduction.whole, respond(PacketType.WORK_FAIL, reduction.whole.handle))
            self._end_early(reduction.whole)
            return
        self._give_up_parts(job)
        super()._release(job)

    def _give_up_parts(self, whole: Job) -> None:
        reduction, whole.reduction = whole.reduction, None
        if reduction is not None:
            for part in list(reduction.open):
                part.reduction = None
                self._end_early(part)
