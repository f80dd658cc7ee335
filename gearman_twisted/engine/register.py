"""The jobs that have not ended, by handle and by unique; ids and handles of new ones.

Offloaded jobs are not here, see ``backlog``.
"""

from __future__ import annotations

from typing import cast

from gearman_twisted.engine.records import FunctionQueue, Job
from gearman_twisted.engine.states import State
from gearman_twisted.engine.uniques import Uniques
from gearman_twisted.engine.usage import JOB_BYTES, OFFLOADED_BYTES, Usage


class Register:
    """The jobs in memory.

    Args:
        handle_prefix: what every handle starts with.
        last_id: the id to go on from.
        usage: what jobs take is counted there.

    Attributes:
        jobs: by handle, all but the recurring ones.
        scheduled: those of them that wait for their time, by handle.
        recurring: the recurring ones by handle.
        uniques: all but the recurring ones by unique, those with the unique ``-`` left out.
        recurring_uniques: the recurring ones by unique.
        workload_bytes: how long the workloads of all jobs in memory are together, whatever their states.
        last_id: the highest id so far.
    """

    def __init__(self, handle_prefix: bytes, last_id: int, usage: Usage) -> None:
        self._handle_prefix = handle_prefix
        self._usage = usage
        self.workload_bytes = 0
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
        self.workload_bytes += len(job.workload)
        self._usage.bytes += _size(job)
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
        self.workload_bytes -= len(job.workload)
        self._usage.bytes -= _size(job)
        if job.schedule is not None:
            del self.recurring[job.handle]
            job.function.recurring -= 1
        else:
            del self.jobs[job.handle]
            job.function.total -= 1

    def unload(self, job: Job) -> None:
        """Drop the workload of a job; the store has it."""
        job.is_offloaded = True
        self._set_workload(job, b"")

    def load(self, job: Job, workload: bytes) -> None:
        """Give a job its workload back."""
        job.is_offloaded = False
        self._set_workload(job, workload)

    def _set_workload(self, job: Job, workload: bytes) -> None:
        change = len(workload) - len(job.workload)
        job.workload = workload
        self.workload_bytes += change
        self._usage.bytes += change

    def offload(self, job: Job) -> None:
        """Forget an unloaded job; its lane keeps id and unique."""
        del self.jobs[job.handle]
        self._usage.bytes -= JOB_BYTES - OFFLOADED_BYTES

    def revive(self, job: Job) -> None:
        """Make an offloaded job known again."""
        self.jobs[job.handle] = job
        self._usage.bytes += JOB_BYTES - OFFLOADED_BYTES

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


def _size(job: Job) -> int:
    schedule = 0 if job.schedule is None else len(job.schedule.text)
    return JOB_BYTES + len(job.workload) + schedule


def replaced_by(job: Job) -> Job | None:
    """Return the recurring job that one was to replace, if that has not ended."""
    while job.replaces is not None and job.replaces.state is State.DONE:
        job.replaces = job.replaces.replaces
    return job.replaces
