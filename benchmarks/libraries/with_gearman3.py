"""Client and worker with ``gearman3`` from PyPI, in an environment of its own.

It calls ``array.fromstring``, which Python 3.9 took away, and so runs on no newer Python. That call is
replaced here by the one that took its place, as its users would have to, so that there is something to
compare with. Its worker knows its functions by bytes only.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from benchmarks.libraries.marks import FUNCTION, WORKLOAD, begin, end, names

gearman: Any = importlib.import_module("gearman")
connection: Any = importlib.import_module("gearman.connection")


def mend() -> None:
    """Make it run on current Python."""
    owner, name = connection.GearmanConnection, "read_data_from_socket"
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    made: dict[str, Any] = {}
    exec(source.replace(".fromstring(", ".frombytes("), vars(connection), made)
    setattr(owner, name, made[name])


def submit(port: int, jobs: int, outstanding: int) -> None:
    """Submit jobs, one at a time or in batches."""
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
    """Return workloads, until it is stopped."""
    worker = gearman.GearmanWorker([f"127.0.0.1:{port}"])
    worker.register_task(FUNCTION.encode(), lambda _worker, job: job.data)
    worker.work()


def register(port: int, count: int) -> None:
    """Register functions, and take the job of the last one."""

    def take(_worker: Any, _job: Any) -> str:
        end()
        return ""

    begin()
    worker = gearman.GearmanWorker([f"127.0.0.1:{port}"])
    for name in names(count):
        worker.register_task(name.encode(), take)
    worker.work()


def main() -> None:
    """Run the task of the command line."""
    mode, *numbers = sys.argv[1:]
    if mode == "version":
        sys.stdout.write(f"gearman3 {importlib.metadata.version('gearman3')}, mended\n")
        return
    modes: dict[str, Callable[..., None]] = {"client": submit, "worker": work, "functions": register}
    mend()
    modes[mode](*map(int, numbers))


if __name__ == "__main__":
    main()
