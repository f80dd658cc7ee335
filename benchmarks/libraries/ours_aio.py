"""Client and worker of ours, on asyncio."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import gearman_twisted
from benchmarks.libraries.marks import FUNCTION, WORKLOAD, begin, end, names
from gearman_twisted.aio import GearmanClient, GearmanWorker, Job
from gearman_twisted.client.many import Task


async def submit(server: str, jobs: int, outstanding: int) -> None:
    """Submit jobs, one at a time or more."""
    async with GearmanClient(server) as client:
        await client.submit(FUNCTION, WORKLOAD)
        begin()
        if outstanding == 1:
            for _ in range(jobs):
                await client.submit(FUNCTION, WORKLOAD)
        else:
            tasks = (Task(FUNCTION, WORKLOAD) for _ in range(jobs))
            async for outcome in client.submit_many(tasks, outstanding=outstanding):
                outcome.get()
        end()


async def work(server: str) -> None:
    """Return workloads, until it is stopped."""

    # No coroutine, as in ours.py: that would add the cost of a task to each job.
    def give_back(job: Job) -> bytes:
        return job.workload

    worker = GearmanWorker(server)
    worker.register(FUNCTION, give_back)
    await worker.run()


async def register(server: str, count: int) -> None:
    """Register functions, and take the job of the last one."""
    done = asyncio.Event()

    async def take(_job: Job) -> bytes:
        done.set()
        return b""

    begin()
    worker = GearmanWorker(server)
    for name in names(count):
        worker.register(name, take)
    async with worker:
        await done.wait()
        end()


def main() -> None:
    """Run the task of the command line."""
    mode, port, *numbers = sys.argv[1:]
    modes: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
        "client": submit,
        "worker": work,
        "functions": register,
    }
    asyncio.run(modes[mode](f"127.0.0.1:{port}", *map(int, numbers)))


if __name__ == "__main__":
    if sys.argv[1] == "version":
        sys.stdout.write(f"gearman_twisted {gearman_twisted.__version__}\n")
    else:
        main()
