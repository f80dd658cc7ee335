"""Client and worker for programs that run in asyncio and have no Twisted reactor.

They are the same as on Twisted, written once over ``runtime/``. Importing this imports no module of Twisted.
"""

from __future__ import annotations

from gearman_twisted.client.admin.core import (
    ConnectionInfo,
    FunctionStatus,
    JobInfo,
    PriorityStatus,
    ScheduledJob,
)
from gearman_twisted.client.admin.on_asyncio import AdminClient
from gearman_twisted.client.balancing import Choice
from gearman_twisted.client.many import JobStream, Outcome, PartsFailed, Task, gather, map_reduce
from gearman_twisted.client.on_asyncio import ClientCalls, GearmanClient, ServerPool
from gearman_twisted.client.session import JobStatus
from gearman_twisted.wire.constants import Priority
from gearman_twisted.worker.executors import in_process, in_thread
from gearman_twisted.worker.job import Job
from gearman_twisted.worker.on_asyncio import GearmanWorker

__all__ = [
    "AdminClient",
    "Choice",
    "ClientCalls",
    "ConnectionInfo",
    "FunctionStatus",
    "GearmanClient",
    "GearmanWorker",
    "Job",
    "JobInfo",
    "JobStatus",
    "JobStream",
    "Outcome",
    "PartsFailed",
    "Priority",
    "PriorityStatus",
    "ScheduledJob",
    "ServerPool",
    "Task",
    "gather",
    "in_process",
    "in_thread",
    "map_reduce",
]
