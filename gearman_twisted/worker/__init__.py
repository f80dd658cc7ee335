"""The worker: runs functions for the jobs of job servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gearman_twisted.package import lazy_names

if TYPE_CHECKING:
    from gearman_twisted.wire.values import from_json, to_json
    from gearman_twisted.worker.executors import Executor, in_process, in_thread
    from gearman_twisted.worker.job import Job
    from gearman_twisted.worker.marks import function
    from gearman_twisted.worker.on_twisted import GearmanWorker, GearmanWorkerFactory, GearmanWorkerProtocol
    from gearman_twisted.worker.run import WorkerFunction

__all__ = [
    "Executor",
    "GearmanWorker",
    "GearmanWorkerFactory",
    "GearmanWorkerProtocol",
    "Job",
    "WorkerFunction",
    "from_json",
    "function",
    "in_process",
    "in_thread",
    "to_json",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Executor": "gearman_twisted.worker.executors",
        "GearmanWorker": "gearman_twisted.worker.on_twisted",
        "GearmanWorkerFactory": "gearman_twisted.worker.on_twisted",
        "GearmanWorkerProtocol": "gearman_twisted.worker.on_twisted",
        "Job": "gearman_twisted.worker.job",
        "WorkerFunction": "gearman_twisted.worker.run",
        "from_json": "gearman_twisted.wire.values",
        "function": "gearman_twisted.worker.marks",
        "in_process": "gearman_twisted.worker.executors",
        "in_thread": "gearman_twisted.worker.executors",
        "to_json": "gearman_twisted.wire.values",
    },
)
