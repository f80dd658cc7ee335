"""Worker in Python: reverses what it is given."""

from __future__ import annotations

from gearman_twisted import Job


def reverse(job: Job) -> bytes:
    """Returns the bytes of the workload from the last to the first."""
    return job.workload[::-1]
