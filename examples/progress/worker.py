"""Worker: does a number of steps, and reports its progress after each.

A job is the number of steps; its result is a sentence.
"""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.task import deferLater

from gearman_twisted import Job

# A step that only waits; replace it with your work.
SECONDS = 0.1


async def steps(job: Job) -> bytes:
    """Do the steps."""
    number = int(job.workload)
    for done in range(1, number + 1):
        await deferLater(reactor, SECONDS)
        job.send_status(done, number)
    return f"{number} steps are done".encode()
