"""Client and worker with ``gear`` from PyPI, in an environment of its own."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import threading
from collections.abc import Callable
from typing import Any

from benchmarks.libraries.marks import FUNCTION, WORKLOAD, begin, end, names

gear: Any = importlib.import_module("gear")


def submit(port: int, jobs: int, outstanding: int) -> None:
    """Submit jobs, one at a time or more."""
    slots = threading.Semaphore(outstanding)

    class Client(gear.Client):  # type: ignore[misc] # the library has no types
        def handleWorkComplete(self, packet: Any) -> None:
            super().handleWorkComplete(packet)
            slots.release()

    client = Client("benchmark")
    client.addServer("127.0.0.1", port)
    client.waitForServer()

    def submit_when_a_slot_is_free() -> None:
        slots.acquire()
        client.submitJob(gear.Job(FUNCTION.encode(), WORKLOAD))

    def wait_for_all() -> None:
        for _ in range(outstanding):
            slots.acquire()

    submit_when_a_slot_is_free()
    wait_for_all()
    slots.release(outstanding)
    begin()
    for _ in range(jobs):
        submit_when_a_slot_is_free()
    wait_for_all()
    end()


def work(port: int) -> None:
    """Return workloads, until it is stopped."""
    worker = connected_worker(port)
    worker.registerFunction(FUNCTION)
    while True:
        job = worker.getJob()
        job.sendWorkComplete(job.arguments)


def register(port: int, count: int) -> None:
    """Register functions, and take the job of the last one."""
    begin()
    worker = connected_worker(port)
    worker.setFunctions([gear.FunctionRecord(name.encode()) for name in names(count)])
    worker.getJob()
    end()


def connected_worker(port: int) -> Any:
    """Return a worker without functions."""
    worker = gear.Worker("benchmark")
    worker.addServer("127.0.0.1", port)
    worker.waitForServer()
    return worker


def main() -> None:
    """Run the task of the command line."""
    mode, *numbers = sys.argv[1:]
    if mode == "version":
        sys.stdout.write(f"gear {importlib.metadata.version('gear')}\n")
    else:
        modes: dict[str, Callable[..., None]] = {"client": submit, "worker": work, "functions": register}
        modes[mode](*map(int, numbers))


if __name__ == "__main__":
    main()
