"""Gearman on Twisted: job server, client and worker.

The names below are imported when they are first used, so that the protocol and the engine, which are
pure Python, can be imported without Twisted's reactor machinery.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gearman_twisted.client import GearmanClient
    from gearman_twisted.functions import function
    from gearman_twisted.job import Job
    from gearman_twisted.pool import ServerPool
    from gearman_twisted.service import JobServerService
    from gearman_twisted.wire.constants import Priority
    from gearman_twisted.worker import GearmanWorker

__version__ = "0.1.0"

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

_HOMES = {
    "GearmanClient": "gearman_twisted.client",
    "GearmanWorker": "gearman_twisted.worker",
    "Job": "gearman_twisted.job",
    "JobServerService": "gearman_twisted.service",
    "Priority": "gearman_twisted.wire.constants",
    "ServerPool": "gearman_twisted.pool",
    "function": "gearman_twisted.functions",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
