"""Client and worker for programs that run in asyncio and have no Twisted reactor.

The rules are those of ``engine/``, as for the Twisted ones; here is what connects, waits and is cancelled. No
module of Twisted is imported by anything in this package.
"""

from __future__ import annotations

from gearman_twisted.client.asyncio_pool import ServerPool
from gearman_twisted.client.asyncio_stream import JobStream
from gearman_twisted.client.choice import Choice
from gearman_twisted.client.many import Outcome, PartsFailed, Task, gather, map_reduce
from gearman_twisted.client.on_asyncio import GearmanClient
from gearman_twisted.client.session import JobStatus
from gearman_twisted.wire.constants import Priority
from gearman_twisted.worker.asyncio_executors import in_process, in_thread
from gearman_twisted.worker.job import Job
from gearman_twisted.worker.on_asyncio import GearmanWorker

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
