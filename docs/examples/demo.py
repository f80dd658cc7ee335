"""One job from end to end: a server, a worker and a client in one process, on a port of loopback.

Run it with ``make demo``. In production the three are separate processes, often on different machines.
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
    """Return the result of a job."""
    return job.workload[::-1]


async def demo(reactor: Any) -> None:
    """Start all three, run a job, and stop them."""
    endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    server = JobServerService(reactor, [endpoint], open_store("memory:", reactor))
    server.startService()
    await server.when_ready()
    address = describe_address(server.addresses[0])
    print(f"server   listens on {address}, and keeps its jobs in memory")

    worker = GearmanWorker(address, reactor=reactor)
    worker.register("reverse", reverse)
    worker.startService()
    print("worker   offers the function reverse")

    async with GearmanClient(address, reactor=reactor) as client:
        print("client   submits a job: reverse, with 'Hello World!'")
        result = await client.submit("reverse", b"Hello World!")
        print(f"client   has the result: {result.decode()}")

    await worker.stopService()
    await server.stopService()


def main(reactor: Any) -> Deferred[None]:
    """Run the demo; for ``react``."""
    return ensureDeferred(demo(reactor))


if __name__ == "__main__":
    react(main)
