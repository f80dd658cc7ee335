"""Client and worker of ours, on Twisted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import react

import gearman_twisted
from benchmarks.libraries.marks import FUNCTION, WORKLOAD, begin, end, names
from gearman_twisted import GearmanClient, GearmanWorker, Job
from gearman_twisted.client.many import Task


async def submit(reactor: Any, server: str, jobs: int, outstanding: int) -> None:
    """Submit jobs, one at a time or more."""
    async with GearmanClient(server, reactor=reactor) as client:
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


async def work(reactor: Any, server: str) -> None:
    """Return workloads, until it is stopped."""
    worker = GearmanWorker(server, reactor=reactor)
    worker.register(FUNCTION, lambda job: job.workload)
    worker.startService()
    await Deferred()


async def register(reactor: Any, server: str, count: int) -> None:
    """Register functions, and take the job of the last one."""
    done: Deferred[None] = Deferred()

    def take(_job: Job) -> bytes:
        done.callback(None)
        return b""

    begin()
    worker = GearmanWorker(server, reactor=reactor)
    for name in names(count):
        worker.register(name, take)
    worker.startService()
    await done
    end()


def main(reactor: Any) -> Deferred[None]:
    """For ``react``."""
    mode, port, *numbers = sys.argv[1:]
    modes: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
        "client": submit,
        "worker": work,
        "functions": register,
    }
    return ensureDeferred(modes[mode](reactor, f"127.0.0.1:{port}", *map(int, numbers)))


if __name__ == "__main__":
    if sys.argv[1] == "version":
        sys.stdout.write(f"gearman_twisted {gearman_twisted.__version__}\n")
    else:
        react(main)
