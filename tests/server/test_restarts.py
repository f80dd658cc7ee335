"""A server that is killed again and again under many clients and workers: nothing hangs, every call ends."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from gearman_twisted import GearmanClient, GearmanWorker
from gearman_twisted.errors import ConnectionLost, NoServers
from gearman_twisted.worker.job import Job
from tests.kit.servers import BIN, ServerProcess

reactor: Any = installed_reactor


class Restarting:
    """A server on one port, in one life after the other."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._process: ServerProcess | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        words = ("--nodaemon", "--pidfile=", "--logfile=server.log", "gearman")
        listen = f"--listen=tcp:{self.port}:interface=127.0.0.1"
        self._process = ServerProcess(self._directory, BIN / "twistd", *words, listen)

    def end(self, number: int) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            process.end(number)


async def reverse(job: Job) -> bytes:
    """Take a moment, so that servers die while jobs run."""
    await deferLater(reactor, 0.01 * random.random())
    return job.workload[::-1]


async def submit_for_ever(
    client: GearmanClient, name: bytes, ends: Counter[str], is_over: list[bool]
) -> None:
    """Submit one job after the other, and count how they end."""
    number = 0
    while not is_over:
        number += 1
        workload = b"%b %d" % (name, number)
        try:
            result = await client.submit("reverse", workload)
        except (ConnectionLost, NoServers) as error:
            ends[type(error).__name__] += 1
            await deferLater(reactor, 0.05)
        else:
            assert result == workload[::-1]
            ends["result"] += 1


async def restart(directory: Path, *, crowd: int, restarts: int, seed: int) -> Counter[str]:
    """So many clients and workers, and so many lives of their server; returns how the jobs ended."""
    choice = random.Random(seed)
    server = Restarting(directory)
    ends: Counter[str] = Counter()
    is_over: list[bool] = []
    quick = dict[str, Any](reactor=reactor, retry_policy=lambda _attempt: 0.05 + 0.1 * random.random())
    workers = [GearmanWorker(server.address, concurrency=2, **quick) for _ in range(crowd)]
    clients = [GearmanClient(server.address, **quick) for _ in range(crowd)]
    await deferToThread(server.start)
    try:
        for worker in workers:
            worker.register("reverse", reverse)
            worker.startService()
        loops = [
            Deferred.fromCoroutine(submit_for_ever(client, b"%d" % number, ends, is_over))
            for number, client in enumerate(clients)
        ]
        for _ in range(restarts):
            await deferLater(reactor, 0.3 * choice.random())
            await deferToThread(server.end, choice.choice([signal.SIGKILL, signal.SIGTERM]))
            await deferToThread(server.start)
        # The last server must get every client its results again.
        before = ends["result"]
        while ends["result"] < before + 3 * crowd:
            await deferLater(reactor, 0.05)
        is_over.append(True)
        await gatherResults(loops, consumeErrors=True)
        await gatherResults([client.close() for client in clients])
        await gatherResults([worker.stopService() for worker in workers])
    finally:
        await deferToThread(server.end, signal.SIGKILL)
    return ends


@pytest_twisted.ensureDeferred
async def test_a_few_restarts(tmp_path: Path) -> None:
    """A server that is restarted a few times under ten clients and ten workers leaves nobody hanging."""
    ends = await restart(tmp_path, crowd=10, restarts=3, seed=1)
    assert ends["result"] >= 30


@pytest.mark.soak
@pytest_twisted.ensureDeferred
async def test_many_restarts(tmp_path: Path) -> None:
    """Fifty restarts under a hundred clients and workers: each submission ends, typed if in an error."""
    seed = int(os.environ.get("RESTART_SEED") or random.randrange(1 << 30))
    sys.stdout.write(f"RESTART_SEED={seed}\n")
    ends = await restart(tmp_path, crowd=100, restarts=50, seed=seed)
    sys.stdout.write(f"{dict(ends)}\n")
    assert ends["result"] >= 300
    assert ends["ConnectionLost"] >= 50
