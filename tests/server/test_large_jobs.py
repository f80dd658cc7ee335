"""Jobs of several GiB, there and back, and what they take of the server's memory."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.servers import TwistdGearman

pytestmark = pytest.mark.soak

GIB = 1 << 30
LARGE = 3 * GIB
# Seconds that the whole of a test may take.
PATIENCE = 600

WORKER = """
import sys
from twisted.internet import reactor
from gearman_twisted import GearmanWorker

worker = GearmanWorker(sys.argv[1], max_packet_bytes=0xFFFFFFFF)
worker.register("echo", lambda job: job.workload)
worker.register("length", lambda job: b"%d" % len(job.workload))
worker.startService()
reactor.run()
"""
CLIENT = """
import sys
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from gearman_twisted import GearmanClient

async def main(reactor):
    async with GearmanClient(sys.argv[1], max_packet_bytes=0xFFFFFFFF) as client:
        workload = b"gearman!" * (int(sys.argv[3]) // 8)
        result = await client.submit(sys.argv[2], workload)
        print(result == workload if sys.argv[2] == "echo" else int(result) == len(workload))

react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
"""
PHP_WORKER = """
$worker = new GearmanWorker();
$worker->addServer("127.0.0.1", (int) $argv[1]);
$worker->addFunction("length", function ($job) { return (string) strlen($job->workload()); });
while ($worker->work());
"""


def need_memory(wanted: int) -> None:
    """Skip the test where the machine has less memory available."""
    available = int(re.findall(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())[0]) * 1024
    if available < wanted:
        pytest.skip(f"needs {wanted / GIB:.0f} GiB of memory, and {available / GIB:.1f} are available")


def peak_bytes(process: subprocess.Popen[str]) -> int:
    """The most memory that a process has had."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TwistdGearman]:
    """A server that takes the largest packets."""
    with TwistdGearman(tmp_path, "--store=memory:", "--max-packet-bytes=4G") as server:
        yield server


def run_job(server: TwistdGearman, worker: list[str], function: str, size: int) -> float:
    """Run one job; return the memory that the server took for it, in sizes of the workload."""
    before = peak_bytes(server.process)
    with subprocess.Popen(worker) as working:
        try:
            client = [sys.executable, "-c", CLIENT, f"127.0.0.1:{server.port}", function, str(size)]
            done = subprocess.run(client, capture_output=True, timeout=PATIENCE, check=False)
        finally:
            working.kill()
    assert (done.stdout, done.stderr) == (b"True\n", b"")
    return (peak_bytes(server.process) - before) / size


@pytest.mark.parametrize(("function", "kept"), [("length", 1), ("echo", 2)])
def test_job_of_3_gib(server: TwistdGearman, function: str, kept: int) -> None:
    """The server keeps the workload while the job runs, and the result while it arrives; no third copy."""
    # The client has the workload, and the result; the worker has the workload.
    need_memory((kept + kept + 1 + 1) * LARGE)
    worker = [sys.executable, "-c", WORKER, f"127.0.0.1:{server.port}"]
    assert run_job(server, worker, function, LARGE) < 1.1 * kept


@pytest.mark.skipif(shutil.which("php") is None, reason="php is not installed")
def test_job_for_libgearman(server: TwistdGearman) -> None:
    """A worker of libgearman gets 1900 MiB; it does not take 3 GiB, and sends far slower than it reads."""
    need_memory(6 * 1900 << 20)
    worker = ["php", "-d", "memory_limit=-1", "-r", PHP_WORKER, str(server.port)]
    assert run_job(server, worker, "length", 1900 << 20) < 1.1
