"""The worker for asyncio, against real servers."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gearman_twisted.aio import GearmanClient, GearmanWorker, Job, Task, gather, in_thread
from gearman_twisted.errors import (
    ConfigError,
    JobException,
    JobFailed,
    LocalProtocolError,
    RetryLater,
)
from gearman_twisted.wire.constants import PacketType
from tests.kit.asyncio_peers import in_loop
from tests.kit.gearmand import Gearmand
from tests.kit.servers import TwistdGearman, run

P = PacketType


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TwistdGearman]:
    """A ``twistd gearman`` that keeps its jobs in memory."""
    with TwistdGearman(tmp_path, "--store", "memory:") as server:
        yield server


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "gearman_twisted.worker")


def reverse(job: Job) -> bytes:
    """What most workers here do."""
    return job.workload[::-1]


# With real servers.


async def basics(port: int) -> None:
    """What a worker, a client and any server have to do together."""
    worker = GearmanWorker(f"127.0.0.1:{port}", concurrency=5, client_id="me")
    worker.register("reverse", reverse)

    @worker.function("talk")
    async def talk(job: Job) -> bytes:
        job.send_data(b"part")
        job.send_warning(b"warning")
        await asyncio.sleep(0)
        job.send_status(1, 2)
        return job.unique

    @worker.function("thread")
    @in_thread
    def thread(job: Job) -> bytes:
        job.send_data(b"from ")
        return threading.current_thread().name.encode()

    @worker.function("raise")
    def fail(job: Job) -> None:
        raise ValueError(job.workload.decode())

    @worker.function("fail")
    async def fail_plainly(_job: Job) -> None:
        raise JobFailed("no")

    @worker.function("nothing")
    def nothing(_job: Job) -> None:
        pass

    async with worker, GearmanClient(f"127.0.0.1:{port}") as client:
        assert await client.submit("reverse", b"abc") == b"cba"
        told: list[object] = []
        result = await client.submit(
            "talk",
            unique=b"u",
            on_data=told.append,
            on_warning=told.append,
            on_status=lambda *numbers: told.append(numbers),
        )
        assert (result, told) == (b"u", [b"part", b"warning", (1, 2)])
        name = await client.submit("thread")
        assert name.startswith(b"from ")
        assert name.removeprefix(b"from ").decode() != threading.current_thread().name
        with pytest.raises(JobException) as raised:
            await client.submit("raise", b"why")
        assert raised.value.data == b"ValueError: why"
        with pytest.raises(JobFailed):
            await client.submit("fail")
        assert await client.submit("nothing") == b""
        tasks = [Task("reverse", b"%03d" % number) for number in range(100)]
        assert await gather(client, tasks) == [(b"%03d" % number)[::-1] for number in range(100)]


@in_loop
async def test_basics_with_our_server(server: TwistdGearman) -> None:
    """The worker does with our server what it is for."""
    await basics(server.port)


@in_loop
async def test_basics_with_gearmand(gearmand: Gearmand) -> None:
    """The worker does the same with Debian's gearmand."""
    await basics(gearmand.port)


@in_loop
async def test_job_that_is_given_back_comes_again(server: TwistdGearman) -> None:
    """RetryLater has a job tried again, here after a delay, or by whoever is free."""
    worker = GearmanWorker(f"127.0.0.1:{server.port}")
    attempts: list[int] = []

    @worker.function("retry")
    async def retry(job: Job) -> bytes:
        attempts.append(job.attempt)
        if len(attempts) == 1:
            raise RetryLater(0.01)
        if len(attempts) == 2:
            raise RetryLater
        return b"done"

    async with worker, GearmanClient(f"127.0.0.1:{server.port}") as client:
        assert await client.submit("retry") == b"done"
    assert attempts == [1, 2, 1]


@in_loop
async def test_drain_ends_what_runs(server: TwistdGearman) -> None:
    """A worker that stops ends the job that it has, and takes no other."""
    worker = GearmanWorker(f"127.0.0.1:{server.port}")
    begun, goes_on = asyncio.Event(), asyncio.Event()

    @worker.function("slow")
    async def slow(_job: Job) -> bytes:
        begun.set()
        await goes_on.wait()
        return b"in time"

    running = asyncio.ensure_future(worker.run())
    async with GearmanClient(f"127.0.0.1:{server.port}") as client:
        first = asyncio.ensure_future(client.submit("slow"))
        await begun.wait()
        handle = await client.submit_background("slow")
        stopping = asyncio.ensure_future(worker.stop())
        await asyncio.sleep(0)
        assert not stopping.done()
        goes_on.set()
        assert await first == b"in time"
        await stopping
        await running
        await worker.stop()
        status = await client.status(handle)
        assert (status.is_known, status.is_running) == (True, False)
        # It can be started again.
        goes_on.set()
        async with worker:
            while (await client.status(handle)).is_known:
                pass


@in_loop
async def test_drain_has_an_end(server: TwistdGearman) -> None:
    """What does not end in time is cancelled, may clean up, and goes to another worker."""
    worker = GearmanWorker(f"127.0.0.1:{server.port}", drain_timeout=0.05)
    begun = asyncio.Event()
    cleaned = []

    @worker.function("stuck")
    async def stuck(_job: Job) -> bytes:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)
        return b"never"

    @worker.function("retry")
    async def retry(_job: Job) -> bytes:
        raise RetryLater(3600)

    running = asyncio.ensure_future(worker.run())
    async with GearmanClient(f"127.0.0.1:{server.port}") as client:
        handle = await client.submit_background("stuck")
        await begun.wait()
        # The same as for Ctrl-C: whoever runs the worker is cancelled.
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert cleaned == [True]
        while (await client.status(handle)).is_running:
            pass
        # One that waits for another try holds nothing up.
        other = GearmanWorker(f"127.0.0.1:{server.port}", drain_timeout=3600)
        other.register("retry", retry)
        async with other:
            handle = await client.submit_background("retry")
            while not (await client.status(handle)).is_running:
                pass
        while (await client.status(handle)).is_running:
            pass


@in_loop
async def test_timeout_ends_a_coroutine(server: TwistdGearman) -> None:
    """The job fails with the reason, the coroutine is cancelled, and its slot is free again."""
    worker = GearmanWorker(f"127.0.0.1:{server.port}")
    cancelled = []

    async def stuck(_job: Job) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    worker.register("stuck", stuck, timeout=0.01)
    worker.register("reverse", reverse)
    async with worker, GearmanClient(f"127.0.0.1:{server.port}") as client:
        with pytest.raises(JobException, match=r"JobTimeout: not finished within 0\.01 seconds"):
            await client.submit("stuck")
        assert await client.submit("reverse", b"ab") == b"ba"
        assert cancelled == [True]


@in_loop
async def test_timeout_of_a_thread_keeps_its_slot(server: TwistdGearman) -> None:
    """The job fails at once; the next one waits until the thread has come to its end."""
    worker = GearmanWorker(f"127.0.0.1:{server.port}")
    goes_on = threading.Event()

    def wait(_job: Job) -> None:
        goes_on.wait()

    worker.register("stuck", in_thread(wait), timeout=0.01)
    worker.register("reverse", reverse)
    async with worker, GearmanClient(f"127.0.0.1:{server.port}") as client:
        with pytest.raises(JobException, match="JobTimeout"):
            await client.submit("stuck")
        handle = await client.submit_background("reverse")
        for _ in range(10):
            assert not (await client.status(handle)).is_running
        goes_on.set()
        while (await client.status(handle)).is_known:
            pass


@in_loop
async def test_functions_come_and_go(server: TwistdGearman) -> None:
    """What is registered while the worker runs is offered, and what is unregistered is not any more."""
    worker = GearmanWorker(f"127.0.0.1:{server.port}")
    async with worker, GearmanClient(f"127.0.0.1:{server.port}") as client:
        worker.register("reverse", reverse)
        assert await client.submit("reverse", b"ab") == b"ba"
        worker.register("reverse", lambda job: job.workload)
        assert await client.submit("reverse", b"ab") == b"ab"
        worker.unregister("reverse")
        worker.unregister("never there")
        worker.register("other", reverse)
        handle = await client.submit_background("reverse")
        assert await client.submit("other", b"ab") == b"ba"
        status = await client.status(handle)
        assert (status.is_known, status.is_running) == (True, False)


def retry_once(job: Job) -> bytes:
    """Wants another try after as many seconds as its workload says."""
    if job.attempt == 1:
        raise RetryLater(float(job.workload))
    return b"%d" % job.attempt


@in_loop
async def test_limit_leaves_the_slots_to_others(server: TwistdGearman) -> None:
    """No more jobs of a function run than its limit says, while those of others do."""
    worker = GearmanWorker(f"127.0.0.1:{server.port}", concurrency=5)
    goes_on = asyncio.Event()

    @worker.function("few", concurrency=2)
    async def few(_job: Job) -> None:
        await goes_on.wait()

    worker.register("reverse", lambda job: job.workload[::-1])
    async with worker, GearmanClient(f"127.0.0.1:{server.port}") as client:

        async def running() -> int:
            return sum([(await client.status(handle)).is_running for handle in handles])

        handles = [await client.submit_background("few") for _ in range(4)]
        while await running() < 2:
            pass
        for _ in range(10):
            assert await client.submit("reverse", b"ab") == b"ba"
            assert await running() == 2
        goes_on.set()
        while [handle for handle in handles if (await client.status(handle)).is_known]:
            pass


@in_loop
async def test_job_that_waits_leaves_its_slot_to_others(server: TwistdGearman) -> None:
    """A worker with one slot does other jobs in the meantime, and does not wait for the first to stop."""
    worker = GearmanWorker(f"127.0.0.1:{server.port}", drain_timeout=3600)
    worker.register("retry", retry_once)
    worker.register("reverse", lambda job: job.workload[::-1])
    async with GearmanClient(f"127.0.0.1:{server.port}") as client:
        async with worker:
            handle = await client.submit_background("retry", b"3600")
            assert await client.submit("retry", b"0.01") == b"2"
            assert await client.submit("reverse", b"ab") == b"ba"
            assert (await client.status(handle)).is_running
        while (await client.status(handle)).is_running:
            pass
        assert (await client.status(handle)).is_known


# What is checked before anything is sent.


@pytest.mark.parametrize(
    "make",
    [
        lambda: GearmanWorker([]),
        lambda: GearmanWorker("host:port"),
        lambda: GearmanWorker(concurrency=0),
        lambda: GearmanWorker(drain_timeout=-1),
        lambda: GearmanWorker(ping_interval=0),
        lambda: GearmanWorker(max_packet_bytes=1),
        lambda: GearmanWorker(max_waiting=-1),
        lambda: GearmanWorker().register("f", reverse, timeout=0),
        lambda: GearmanWorker().register("f", reverse, server_timeout=-1),
        lambda: GearmanWorker().register("f", reverse, concurrency=0),
        lambda: in_thread(asyncio.sleep),  # type: ignore[arg-type]
    ],
)
def test_bad_settings_are_refused(make: Callable[[], object]) -> None:
    """Addresses and numbers that make no sense are refused at once."""
    with pytest.raises(ConfigError):
        make()


def test_functions_come_and_go_before_there_is_a_loop() -> None:
    """A worker is put together anywhere."""
    worker = GearmanWorker(concurrency=3)
    for concurrency in [1, 2, None, 1]:
        worker.register("wait", reverse, concurrency=concurrency)
    worker.unregister("wait")
    assert worker._core.slots.free == 3


def test_bad_names_are_refused() -> None:
    """Names that cannot be sent are refused."""
    with pytest.raises(LocalProtocolError):
        GearmanWorker().register("a\0", reverse)
    with pytest.raises(LocalProtocolError):
        GearmanWorker(client_id="two words")


def test_it_imports_nothing_of_twisted(tmp_path: Path) -> None:
    """A worker runs a job, also in a thread, without any module of Twisted or zope."""
    code = (
        "import asyncio, sys\n"
        "from gearman_twisted.aio import GearmanClient, GearmanWorker, in_thread\n"
        "async def main(address):\n"
        "    worker = GearmanWorker(address)\n"
        "    worker.register('f', in_thread(lambda job: job.workload))\n"
        "    async with worker, GearmanClient(address) as client:\n"
        "        print(await client.submit('f', b'x'))\n"
        "asyncio.run(main(sys.argv[1]))\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('twisted', 'zope')])\n"
    )
    with TwistdGearman(tmp_path, "--store", "memory:") as server:
        done = run(sys.executable, "-c", code, f"127.0.0.1:{server.port}")
    assert (done.stdout, done.stderr) == (b"b'x'\n[]\n", b"")
