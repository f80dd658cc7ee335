"""Client and worker with ``gearman3`` from PyPI, which is in an environment of its own."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.libraries.marks import FUNCTION, WORKLOAD, begin, end, names

gearman: Any = importlib.import_module("gearman")


def submit(port: int, jobs: int, outstanding: int) -> None:
    """Submits jobs, one at a time or so many together."""
    client = gearman.GearmanClient([f"127.0.0.1:{port}"])
    workload = WORKLOAD.decode()
    client.submit_job(FUNCTION, workload)
    begin()
    if outstanding == 1:
        for _ in range(jobs):
            client.submit_job(FUNCTION, workload)
    else:
        for first in range(0, jobs, outstanding):
            together = min(outstanding, jobs - first)
            client.submit_multiple_jobs([{"task": FUNCTION, "data": workload} for _ in range(together)])
    end()


def work(port: int) -> None:
    """Sends workloads back, until it is stopped."""
    worker = gearman.GearmanWorker([f"127.0.0.1:{port}"])
    worker.register_task(FUNCTION, lambda _worker, job: job.data)
    worker.work()


def register(port: int, count: int) -> None:
    """Registers functions, and takes the job of the last one."""

    def take(_worker: Any, _job: Any) -> str:
        end()
        return ""

    begin()
    worker = gearman.GearmanWorker([f"127.0.0.1:{port}"])
    for name in names(count):
        worker.register_task(name, take)
    worker.work()


def main() -> None:
    """Does what the command line says."""
    mode, *numbers = sys.argv[1:]
    title = f"gearman3 {importlib.metadata.version('gearman3')}"
    if mode == "version":
        sys.stdout.write(f"{title}\n")
        return
    modes: dict[str, Callable[..., None]] = {"client": submit, "worker": work, "functions": register}
    try:
        modes[mode](*map(int, numbers))
    except AttributeError as error:
        # It calls array.fromstring, which Python 3.9 took away.
        sys.exit(f"{title} does not run on Python {platform.python_version()}: {error}")


if __name__ == "__main__":
    main()
