"""Client and worker for programs that run in asyncio and have no Twisted reactor.

The rules are those of ``engine/``, as for the Twisted ones; here is what connects, waits and is cancelled. No
module of Twisted is imported by anything in this package.
"""

from __future__ import annotations

from gearman_twisted.aio.client import GearmanClient
from gearman_twisted.aio.executors import in_process, in_thread
from gearman_twisted.aio.pool import ServerPool
from gearman_twisted.aio.stream import JobStream
from gearman_twisted.aio.worker import GearmanWorker
from gearman_twisted.engine.choice import Choice
from gearman_twisted.engine.client import JobStatus
from gearman_twisted.job import Job
from gearman_twisted.tasks import Outcome, PartsFailed, Task, gather, map_reduce
from gearman_twisted.wire.constants import Priority

__all__ = [
    "Choice",
    "GearmanClient",
    "GearmanWorker",
    "Job",
    "JobStatus",
    "JobStream",
    "Outcome",
    "PartsFailed",
    "Priority",
    "ServerPool",
    "Task",
    "gather",
    "in_process",
    "in_thread",
    "map_reduce",
]
