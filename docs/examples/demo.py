"""One job from end to end: a server, a worker and a client in one process, on a port of loopback.

Run it with ``make demo``. In life the three are processes of their own, often on different machines.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import react

from gearman_twisted import GearmanClient, GearmanWorker, Job, JobServerService
from gearman_twisted.server import describe_address
from gearman_twisted.store import open_store


def reverse(job: Job) -> bytes:
    """What the worker does with each job."""
    return job.workload[::-1]


async def demo(reactor: Any) -> None:
    """Starts all three, runs a job, and stops them."""
    endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    server = JobServerService(reactor, [endpoint], open_store("memory:", reactor))
    server.startService()
    await server.when_ready()
    address = describe_address(server.addresses[0])

    worker = GearmanWorker(address, reactor=reactor)
    worker.register("reverse", reverse)
    worker.startService()

    async with GearmanClient(address, reactor=reactor) as client:
        result = await client.submit("reverse", b"Hello World!")
        print(result.decode())

    await worker.stopService()
    await server.stopService()


def main(reactor: Any) -> Deferred[None]:
    """For ``react``, which runs the reactor until the Deferred fires."""
    return ensureDeferred(demo(reactor))


if __name__ == "__main__":
    react(main)
