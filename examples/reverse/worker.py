"""Worker in Python: reverses the workload."""

from __future__ import annotations

from gearman_twisted import Job


def reverse(job: Job) -> bytes:
    """Return the bytes of the workload in reverse order."""
    return job.workload[::-1]
