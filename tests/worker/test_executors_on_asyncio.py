"""Functions of an asyncio worker in processes of their own, with Debian's gearmand."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gearman_twisted.aio import GearmanClient, GearmanWorker, Job, in_process, in_thread
from gearman_twisted.errors import ConfigError, JobError, JobException, JobFailed
from gearman_twisted.runtime.on_asyncio import AsyncioRuntime
from gearman_twisted.worker.session import Assigned
from tests.kit import process_functions
from tests.kit.asyncio_peers import in_loop
from tests.kit.gearmand import Gearmand
from tests.kit.paths import ROOT
from tests.kit.servers import PATIENCE, WirePeer


class Pair:
    """A client and a worker of one server."""

    def __init__(self, address: str, **options: Any) -> None:
        self.client = GearmanClient(address)
        self.worker = GearmanWorker(address, **options)

    async def __aenter__(self) -> Pair:
        self.worker.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.worker.stop()
        await self.client.close()


def is_running(pid: int) -> bool:
    """Whether there is such a process, be it dead and not yet asked for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def children() -> list[str]:
    """The processes that this one has started, dead ones that were not asked for among them."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


async def until(condition: Callable[[], bool]) -> None:
    """Looks again and again."""
    while not condition():
        await asyncio.sleep(0.01)


def counts(port: int) -> list[tuple[int, int]]:
    """Of each function of a server: how many jobs there are, and how many of them run."""
    with WirePeer(port) as peer:
        lines = peer.text(b"status", b".\n").splitlines()[:-1]
    return [(int(total), int(running)) for _, total, running, _ in (line.split(b"\t") for line in lines)]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of those who look after the worker."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@in_loop
async def test_process_runs_and_tells(gearmand: Gearmand) -> None:
    """A function in a process has a job like any other."""
    told: list[object] = []
    async with Pair(gearmand.address) as pair:
        pair.worker.register("tell", in_process(process_functions.tell, processes=1))
        result = await pair.client.submit(
            "tell",
            on_status=lambda *numbers: told.append(numbers),
            on_data=told.append,
            on_warning=told.append,
        )
        assert (result, told) == (b"tell H: 1", [(1, 2), b"data ", b"warning"])


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ("raise", JobException, "ValueError: no \\udcff"),
        ("exit", JobException, "SystemExit: 3"),
        ("fail", JobFailed, "the job failed"),
        ("exception", JobException, "\ufffd\0data"),
        ("die", JobException, "ProcessDied: the process that ran the job ended with status 7"),
        ("kill", JobException, "ProcessDied: the process that ran the job was ended by signal 9"),
        ("text", JobException, "TypeError: a worker function returns bytes or None, not str"),
        ("lock", JobException, "TypeError: a worker function returns bytes or None, not lock"),
        ("large", JobException, "ResultTooLarge: 961 bytes are more than the 960 that the server takes"),
    ],
)
@in_loop
async def test_process_that_fails(
    gearmand: Gearmand, caplog: pytest.LogCaptureFixture, what: str, error: type[JobError], text: str
) -> None:
    """Whatever becomes of its process, the client is told, it is logged once, and the next job runs."""
    async with Pair(gearmand.address, max_packet_bytes=1024) as pair:
        pair.worker.register("f", in_process("tests.kit.process_functions:misbehave", processes=1))
        with pytest.raises(error) as caught:
            await pair.client.submit("f", what.encode())
        assert text in str(caught.value)
        assert await pair.client.submit("f", b"none") == b""
    assert len(warnings(caplog)) == (what != "fail")
    if what == "raise":
        assert 'process_functions.py", line' in caplog.text


@in_loop
async def test_function_that_cannot_be_imported_fails_its_jobs(
    gearmand: Gearmand, caplog: pytest.LogCaptureFixture
) -> None:
    """What its module raises is told to the client."""
    async with Pair(gearmand.address) as pair:
        pair.worker.register("f", in_process("tests.kit.broken_module:nothing", processes=1))
        for _ in range(2):
            with pytest.raises(JobException, match="the function cannot be imported: ZeroDivisionError"):
                await pair.client.submit("f")
    assert len(warnings(caplog)) == 2


@in_loop
async def test_process_that_cannot_be_started_fails_its_job(
    gearmand: Gearmand, caplog: pytest.LogCaptureFixture
) -> None:
    """With no file descriptor left the client hears why, and the worker goes on when there are some."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with Pair(gearmand.address) as pair:
        pair.worker.register("f", in_process(process_functions.reverse, processes=1))
        await pair.client.echo(b"")
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            with pytest.raises(JobException, match=r"could not be started: .*Too many open files"):
                await pair.client.submit("f", b"ab")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert await pair.client.submit("f", b"ab") == b"ba"
    assert len(warnings(caplog)) == 1


@in_loop
async def test_job_of_a_dead_process_may_be_requeued(
    gearmand: Gearmand, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """If that is wanted, a job whose process died goes back to its server and is done at the second try."""
    async with Pair(gearmand.address) as pair:
        executor = in_process(process_functions.die_first, processes=1, on_death="requeue")
        pair.worker.register("f", executor)
        assert await pair.client.submit("f", bytes(tmp_path / "mark")) == b"second"
    assert ["its process ended with status 1" in text for text in warnings(caplog)] == [True]


@in_loop
async def test_process_asks_for_another_try(gearmand: Gearmand) -> None:
    """RetryLater works from a process, which is told which attempt it is."""
    async with Pair(gearmand.address) as pair:
        pair.worker.register("f", in_process(process_functions.retry, processes=1))
        assert await pair.client.submit("f") == b"3"


@in_loop
async def test_processes_are_used_again_and_replaced(gearmand: Gearmand) -> None:
    """One process does job after job, as many as it may; one that died idle is replaced."""
    async with Pair(gearmand.address) as pair:
        pair.worker.register("kept", in_process(process_functions.pid, processes=1))
        pair.worker.register("used up", in_process(process_functions.pid, processes=1, max_jobs=2))
        kept = [int(await pair.client.submit("kept")) for _ in range(3)]
        assert len(set(kept)) == 1
        used = [int(await pair.client.submit("used up")) for _ in range(5)]
        assert [used.count(pid) for pid in dict.fromkeys(used)] == [2, 2, 1]
        os.kill(kept[0], signal.SIGKILL)
        await until(lambda: not is_running(kept[0]))
        assert int(await pair.client.submit("kept")) != kept[0]
    assert [pid for pid in {*kept, *used} if is_running(pid)] == []


@in_loop
async def test_no_more_jobs_are_taken_than_processes(gearmand: Gearmand, tmp_path: Path) -> None:
    """With both processes at work a third job stays with the server, although the worker has slots."""
    gate = tmp_path / "gate"
    started: list[bytes] = []
    async with Pair(gearmand.address, concurrency=5) as pair:
        pair.worker.register("wait", in_process(process_functions.wait, processes=2))
        jobs = [
            asyncio.ensure_future(pair.client.submit("wait", bytes(gate), on_data=started.append))
            for _ in range(3)
        ]
        await until(lambda: len(started) == 2)
        assert counts(gearmand.port) == [(3, 2)]
        gate.touch()
        await asyncio.gather(*jobs)
    assert (len(started), len({*started})) == (3, 2)


@in_loop
async def test_more_jobs_than_processes_wait_for_one(gearmand: Gearmand, tmp_path: Path) -> None:
    """With more slots for the function than processes, jobs that were taken run one after the other."""
    gate = tmp_path / "gate"
    async with Pair(gearmand.address, concurrency=3) as pair:
        executor = in_process(process_functions.wait, processes=1)
        pair.worker.register("wait", executor, concurrency=3, timeout=PATIENCE)
        # Times out while it waits for a process, and takes that of nobody.
        pair.worker.register("hurry", executor, concurrency=3, timeout=0.01)
        started: list[bytes] = []
        jobs = [
            asyncio.ensure_future(pair.client.submit("wait", bytes(gate), on_data=started.append))
            for _ in range(2)
        ]
        await until(lambda: bool(started))
        with pytest.raises(JobException, match="JobTimeout"):
            await pair.client.submit("hurry", bytes(tmp_path / "never"))
        assert len(started) == 1
        gate.touch()
        await asyncio.gather(*jobs)
        await pair.client.submit("wait", bytes(gate), on_data=started.append)
    assert (len(started), len({*started})) == (3, 1)


@in_loop
async def test_process_that_takes_too_long_is_killed(
    gearmand: Gearmand, caplog: pytest.LogCaptureFixture
) -> None:
    """At the timeout the job fails, the process is gone, and another one does the next job."""
    pids: list[bytes] = []
    async with Pair(gearmand.address) as pair:
        pair.worker.register("wait", in_process(process_functions.wait, processes=1), timeout=1)
        for _ in range(2):
            with pytest.raises(JobException, match="JobTimeout: not finished within 1 seconds"):
                await pair.client.submit("wait", on_data=pids.append)
    assert len({*pids}) == 2
    assert [pid for pid in pids if is_running(int(pid))] == []
    assert len(warnings(caplog)) == 2


@in_loop
async def test_timeout_before_the_process_has_started(gearmand: Gearmand, tmp_path: Path) -> None:
    """Nothing is left of a process whose job failed while it was about to be started."""
    before = children()
    async with Pair(gearmand.address) as pair:
        executor = in_process(process_functions.wait, processes=1)
        for timeout in [0.000_001, 0.001, 0.002, 0.005, 0.01]:
            pair.worker.register("f", executor, timeout=timeout)
            with pytest.raises(JobException, match="JobTimeout"):
                await pair.client.submit("f")
        pair.worker.register("f", executor)
        assert int(await pair.client.submit("f", bytes(tmp_path)))
    assert children() == before


@in_loop
async def test_call_may_be_cancelled_at_any_moment() -> None:
    """However far the start of its process is, nothing is left of it."""

    class Unheard:
        is_open = False

        def send_data(self, data: bytes) -> None: ...

        def send_warning(self, data: bytes) -> None: ...

        def send_status(self, numerator: int, denominator: int) -> None: ...

    before = children()
    executor = in_process(process_functions.wait, processes=1)
    executor.bind(AsyncioRuntime("the test"))
    for is_stopped_before in (False, True):
        for pause in range(12):
            job = Job(Assigned(b"H:1", b"f", b"", b""), Unheard())
            call = asyncio.ensure_future(executor(job))
            for _ in range(pause):
                await asyncio.sleep(0)
            call.cancel()
            if not is_stopped_before:
                await asyncio.wait([call])
            await executor.stop()
            await asyncio.wait([call])
            assert (call.cancelled(), children()) == (True, before)


@in_loop
async def test_pipes_that_somebody_else_keeps_open_are_not_waited_for(
    gearmand: Gearmand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has ended is replaced although another one that it left behind has its pipes."""
    monkeypatch.setattr("gearman_twisted.runtime.child.READ_PATIENCE", 0.05)
    gate = tmp_path / "gate"
    try:
        async with Pair(gearmand.address) as pair:
            executor = in_process(process_functions.leave_process, processes=1)
            pair.worker.register("f", executor)
            assert await pair.client.submit("f", bytes(gate)) == b""
            # Killed before it has read all of it.
            pair.worker.register("f", executor, timeout=0.000_001)
            with pytest.raises(JobException, match="JobTimeout"):
                await pair.client.submit("f", b"/" * 10_000_000)
            pair.worker.register("f", executor)
            assert await pair.client.submit("f", bytes(gate)) == b""
    finally:
        gate.touch()


@in_loop
async def test_process_that_does_not_end_is_killed(
    gearmand: Gearmand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that a function has left behind does not keep the worker from stopping."""
    monkeypatch.setattr("gearman_twisted.runtime.child.END_PATIENCE", 0.05)
    async with Pair(gearmand.address) as pair:
        pair.worker.register("f", in_process(process_functions.leave_thread, processes=1))
        pid = int(await pair.client.submit("f"))
    assert not is_running(pid)


@in_loop
async def test_stop_ends_processes_at_work(gearmand: Gearmand) -> None:
    """After the drain timeout processes are killed, and the server has the job again."""
    async with GearmanClient(gearmand.address) as client:
        worker = GearmanWorker(gearmand.address, drain_timeout=0.05)
        worker.register("wait", in_process(process_functions.wait, processes=1))
        pids: list[bytes] = []
        async with worker:
            job = asyncio.ensure_future(client.submit("wait", on_data=pids.append))
            await until(lambda: bool(pids))
        assert not is_running(int(pids[0]))
        await until(lambda: counts(gearmand.port) == [(1, 0)])
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job


@in_loop
async def test_executor_may_be_used_again(gearmand: Gearmand) -> None:
    """One that was stopped with its worker starts processes for another one."""
    executor = in_process(process_functions.reverse, processes=1)
    for _ in range(2):
        async with Pair(gearmand.address) as pair:
            pair.worker.register("f", executor)
            assert await pair.client.submit("f", b"ab") == b"ba"


@in_loop
async def test_output_of_processes_is_logged(gearmand: Gearmand, caplog: pytest.LogCaptureFixture) -> None:
    """What a function prints is in the log, each line one."""
    caplog.set_level(logging.INFO, "gearman_twisted.worker")
    async with Pair(gearmand.address) as pair:
        pair.worker.register("f", in_process(process_functions.misbehave, processes=1))
        with pytest.raises(JobException, match="ended with status 0"):
            await pair.client.submit("f", b"print")
    messages = [record.getMessage() for record in caplog.records]
    printed = [line for line in messages if "misbehave wrote: " in line]
    assert [line.split()[2] for line in printed] == ["printed", "no"]


@pytest.mark.parametrize("name", ["thread", "process"])
@in_loop
async def test_large_results(gearmand: Gearmand, name: str) -> None:
    """100 MiB go to a function and come back."""
    executors = {
        "thread": lambda: in_thread(process_functions.reverse),
        "process": lambda: in_process(process_functions.reverse, processes=1),
    }
    workload = b"ab" * (50 << 20)
    async with Pair(gearmand.address) as pair:
        pair.worker.register("reverse", executors[name]())
        assert await pair.client.submit("reverse", workload) == workload[::-1]


WORKER = """
import asyncio
import sys

from gearman_twisted.aio import GearmanWorker, in_process


async def main():
    worker = GearmanWorker(sys.argv[1])
    worker.register("wait", in_process("tests.kit.process_functions:wait", processes=1))
    worker.register("modules", in_process("aio_modules:modules", processes=1))
    await worker.run()


asyncio.run(main())
"""
MODULES = """
import sys

def modules(job):
    return repr([name for name in sys.modules if name.split(".")[0] in ("twisted", "zope")]).encode()
"""


@in_loop
async def test_processes_end_with_a_worker_that_was_killed(gearmand: Gearmand, tmp_path: Path) -> None:
    """A process whose worker is gone works for nobody, and ends in the middle of its job.

    The process has no module of Twisted; nor has the worker, see ``test_aio_worker.py``.
    """
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "aio_modules.py").write_text(MODULES)
    root = str(ROOT)
    worker = subprocess.Popen(
        [sys.executable, tmp_path / "worker.py", gearmand.address], env={**os.environ, "PYTHONPATH": root}
    )
    try:
        async with GearmanClient(gearmand.address) as client:
            assert await client.submit("modules") == b"[]"
            pids: list[bytes] = []
            job = asyncio.ensure_future(client.submit("wait", on_data=pids.append))
            await until(lambda: bool(pids))
            worker.kill()
            worker.wait(PATIENCE)
            await until(lambda: not is_running(int(pids[0])))
            job.cancel()
            with pytest.raises(asyncio.CancelledError):
                await job
    finally:
        worker.kill()
        worker.wait(PATIENCE)


async def coroutine_function(_job: Job) -> bytes:
    return b""


@pytest.mark.parametrize(
    "make",
    [
        lambda: in_process(coroutine_function),  # type: ignore[arg-type]
        lambda: in_process("module"),
        lambda: in_process(process_functions.pid, processes=0),
        lambda: in_process(process_functions.pid, max_jobs=0),
        lambda: in_process(process_functions.pid, on_death="cry"),  # type: ignore[arg-type]
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], object]) -> None:
    """A setting that makes no sense is refused."""
    with pytest.raises(ConfigError):
        make()
