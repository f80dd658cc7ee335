"""Gearman on Twisted: job server, client and worker.

The names below are imported when they are first used, so that the protocol and the engine, which are
pure Python, can be imported without Twisted's reactor machinery.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gearman_twisted.package import __version__, lazy_names

if TYPE_CHECKING:
    from gearman_twisted.client.on_twisted import GearmanClient, ServerPool
    from gearman_twisted.server.service import JobServerService
    from gearman_twisted.wire.constants import Priority
    from gearman_twisted.worker.job import Job
    from gearman_twisted.worker.marks import function
    from gearman_twisted.worker.on_twisted import GearmanWorker

__all__ = [
    "GearmanClient",
    "GearmanWorker",
    "Job",
    "JobServerService",
    "Priority",
    "ServerPool",
    "__version__",
    "function",
]

__getattr__ = lazy_names(
    __name__,
    {
        "GearmanClient": "gearman_twisted.client.on_twisted",
        "GearmanWorker": "gearman_twisted.worker.on_twisted",
        "Job": "gearman_twisted.worker.job",
        "JobServerService": "gearman_twisted.server.service",
        "Priority": "gearman_twisted.wire.constants",
        "ServerPool": "gearman_twisted.client.on_twisted",
        "function": "gearman_twisted.worker.marks",
    },
)
