"""The jobs that have not ended, by handle and by unique; ids and handles of new ones.

Offloaded jobs are not here, see ``backlog``.
"""

from __future__ import annotations

from typing import cast

from gearman_twisted.engine.records import FunctionQueue, Job
from gearman_twisted.engine.states import State
from gearman_twisted.engine.uniques import Uniques


class Register:
    """The jobs in memory.

    Args:
        handle_prefix: what every handle starts with.
        last_id: the id to go on from.

    Attributes:
        jobs: by handle, all but the recurring ones.
        scheduled: those of them that wait for their time, by handle.
        recurring: the recurring ones by handle.
        uniques: all but the recurring ones by unique, those with the unique ``-`` left out.
        recurring_uniques: the recurring ones by unique.
        last_id: the highest id so far.
    """

    def __init__(self, handle_prefix: bytes, last_id: int) -> None:
        self._handle_prefix = handle_prefix
        self.last_id = last_id
        self.jobs: dict[bytes, Job] = {}
        self.scheduled: dict[bytes, Job] = {}
        self.recurring: dict[bytes, Job] = {}
        self.uniques = Uniques()
        self.recurring_uniques = Uniques()

    def recurring_of(self, function: FunctionQueue, unique: bytes) -> Job | None:
        """Return the recurring job of a function and a unique."""
        return cast("Job | None", self.recurring_uniques.get(function, unique))

    def next_id(self) -> int:
        """Return an id that no job had before."""
        self.last_id += 1
        return self.last_id

    def handle_of(self, id_: int) -> bytes:
        """Return the handle that a job is given with its id."""
        return b"%b:%d" % (self._handle_prefix, id_)

    def id_of(self, handle: bytes) -> int | None:
        """Return the id of a handle that ``handle_of`` gave, None for any other."""
        digits = handle.rpartition(b":")[2]
        if not (digits.isdigit() and len(digits) < 20):
            return None
        id_ = int(digits)
        return id_ if handle == self.handle_of(id_) else None

    def add(self, job: Job) -> None:
        """Add a new job."""
        if job.schedule is not None:
            self.recurring[job.handle] = job
            job.function.recurring += 1
        else:
            self.jobs[job.handle] = job
            job.function.total += 1
        if job.unique == b"-" and job.schedule is None:
            if job.workload:
                job.function.by_workload.setdefault(job.workload, job)
        elif job.unique:
            self._uniques_of(job).add(job)

    def remove(self, job: Job) -> None:
        """Remove a job that has ended."""
        if job.schedule is not None:
            del self.recurring[job.handle]
            job.function.recurring -= 1
        else:
            del self.jobs[job.handle]
            job.function.total -= 1

    def free_unique(self, job: Job) -> None:
        """Let a new job have the unique, as soon as the outcome of this one is known."""
        if job.unique == b"-" and job.schedule is None:
            if job.function.by_workload.get(job.workload) is job:
                del job.function.by_workload[job.workload]
        elif self._uniques_of(job).remove(job):
            replaced = replaced_by(job)
            if replaced is not None:
                self.recurring_uniques.add(replaced)  # the new one never replaced it

    def _uniques_of(self, job: Job) -> Uniques:
        return self.uniques if job.schedule is None else self.recurring_uniques


def replaced_by(job: Job) -> Job | None:
    """Return the recurring job that one was to replace, if that has not ended."""
    while job.replaces is not None and job.replaces.state is State.DONE:
        job.replaces = job.replaces.replaces
    return job.replaces
