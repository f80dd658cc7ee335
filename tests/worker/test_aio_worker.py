"""The worker in asyncio, against real servers and against peers that misbehave."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gearman_twisted.aio import GearmanClient, GearmanWorker, Job, Task, gather, in_thread
from gearman_twisted.errors import (
    ConfigError,
    JobException,
    JobFailed,
    LocalProtocolError,
    ResultTooLarge,
    RetryLater,
)
from gearman_twisted.wire.constants import ErrorCode, PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.asyncio_peers import GRAB, SLEEP, fake_server, in_loop
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


# With servers that misbehave.


@in_loop
async def test_result_of_a_lost_connection_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """The function goes on, its job is not answered for on the new connection, and the slot is kept."""
    async with fake_server() as server:
        worker = GearmanWorker(server.address, retry_policy=lambda _attempt: 0.0)
        goes_on = asyncio.Event()
        jobs: list[Job] = []

        @worker.function("slow")
        async def slow(job: Job) -> bytes:
            jobs.append(job)
            await goes_on.wait()
            job.send_data(b"ignored")
            return b"dropped"

        async with worker:
            peer = await server.accept_worker(b"slow")
            peer.assign(b"H:1", b"slow")
            while not jobs:
                await asyncio.sleep(0)
            peer.writer.close()
            again = await server.peers.get()
            assert await again.take() == [Packet(P.CAN_DO, [b"slow"])]
            assert not jobs[0].is_connected
            goes_on.set()
            assert await again.take() == [GRAB]
            again.send(P.NO_JOB)
            assert await again.take() == [SLEEP]
        assert "the result is dropped" in caplog.text


@in_loop
async def test_lost_job_is_not_tried_again() -> None:
    """A function that wants another try for a job that was lost with its connection does not get it."""
    async with fake_server() as server:
        worker = GearmanWorker(server.address, retry_policy=lambda _attempt: 0.0, drain_timeout=0)
        goes_on = asyncio.Event()
        attempts: list[int] = []

        @worker.function("retry")
        async def retry(job: Job) -> bytes:
            attempts.append(job.attempt)
            if len(attempts) == 1:
                await goes_on.wait()
                raise RetryLater(0)
            return b"done"

        async with worker:
            peer = await server.accept_worker(b"retry")
            peer.assign(b"H:1", b"retry")
            while not attempts:
                await asyncio.sleep(0)
            peer.writer.close()
            again = await server.peers.get()
            assert await again.take() == [Packet(P.CAN_DO, [b"retry"])]
            goes_on.set()
            assert await again.take() == [GRAB]
            again.assign(b"H:1", b"retry")
            assert (await again.take())[0].type == P.WORK_COMPLETE
        assert attempts == [1, 1]


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0RES\0\0\0\x15\0\0\0\0"])
def test_garbage_ends_the_connection(data: bytes) -> None:
    """A server that makes no sense is given up and connected anew, later each time."""

    @in_loop
    async def test() -> None:
        delays: list[int] = []

        def retry(attempt: int) -> float:
            delays.append(attempt)
            return 0.0

        async with fake_server() as server:
            worker = GearmanWorker(server.address, retry_policy=retry, drain_timeout=0)
            worker.register("reverse", reverse)
            async with worker:
                for _ in range(3):
                    peer = await server.accept_worker(b"reverse")
                    peer.writer.write(data)
                peer = await server.accept_worker(b"reverse")
                peer.assign(b"H:1", b"reverse", b"ab")
                assert await peer.take() == [Packet(P.WORK_COMPLETE, [b"H:1", b"ba"])]
            assert delays[:3] == [1, 2, 3]

    test()


@in_loop
async def test_silent_server_is_given_up() -> None:
    """A server that does not answer is given up after the ping interval; one that does is not."""
    async with fake_server() as server:
        worker = GearmanWorker(
            server.address, ping_interval=0.1, retry_policy=lambda _attempt: 0.0, drain_timeout=0
        )
        worker.register("reverse", reverse)
        async with worker:
            peer = await server.accept_worker(b"reverse")
            assert await peer.take() == [Packet(P.ECHO_REQ, [b"ping"])]
            # It is known to answer.
            peer.send(P.ECHO_RES, b"ping")
            peer = await server.accept_worker(b"reverse")
            assert await peer.take() == [Packet(P.ECHO_REQ, [b"ping"])]
            peer.send(P.ECHO_RES, b"ping")
            assert await peer.take() == [Packet(P.ECHO_REQ, [b"ping"])]


@in_loop
async def test_no_more_jobs_than_slots() -> None:
    """Two servers are asked for no more jobs together than the worker has slots."""
    async with fake_server() as one, fake_server() as two:
        worker = GearmanWorker([one.address, two.address], drain_timeout=0)
        goes_on = asyncio.Event()

        @worker.function("slow")
        async def slow(_job: Job) -> None:
            await goes_on.wait()

        async with worker:
            peers = [await one.peers.get(), await two.peers.get()]
            packets = [await peer.take() for peer in peers]
            assert packets == [[Packet(P.CAN_DO, [b"slow"])]] * 2
            asked = [asyncio.ensure_future(peer.take()) for peer in peers]
            done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            assert [task.result() for task in done] == [[GRAB]]
            assert len(waiting) == 1
            first = next(peer for peer, task in zip(peers, asked, strict=True) if task in done)
            first.assign(b"H:1", b"slow")
            goes_on.set()
            assert await first.take() == [Packet(P.WORK_COMPLETE, [b"H:1", b""])]
            assert await waiting.pop() == [GRAB]


@in_loop
async def test_job_given_back_while_another_runs() -> None:
    """A new connection takes jobs, while the old one ends the job that keeps it from telling the server."""
    async with fake_server() as server:
        worker = GearmanWorker(server.address, concurrency=2, drain_timeout=0)
        goes_on = asyncio.Event()

        @worker.function("mixed")
        async def mixed(job: Job) -> bytes:
            if job.workload == b"back":
                raise RetryLater
            await goes_on.wait()
            return b"done"

        @worker.function("other")
        def other(_job: Job) -> None:
            pass

        async with worker:
            peer = await server.accept_worker(b"mixed", b"other")
            peer.assign(b"H:1", b"mixed", b"stay")
            assert await peer.take() == [GRAB]
            peer.assign(b"H:2", b"mixed", b"back")
            fresh = await server.accept_worker(b"other")
            goes_on.set()
            assert await peer.take() == [Packet(P.WORK_COMPLETE, [b"H:1", b"done"])]
            await peer.closed()
            fresh.send(P.NO_JOB)
            assert await fresh.take() == [SLEEP]
            # After a moment it is offered again.
            assert await fresh.take(2) == [Packet(P.CAN_DO, [b"mixed"]), GRAB]


@in_loop
async def test_what_functions_do_wrong() -> None:
    """Results that cannot be sent, and functions that cancel themselves, fail their own job only."""
    async with fake_server() as server:
        worker = GearmanWorker(server.address, max_packet_bytes=1024, drain_timeout=0)

        async def cancels_itself(_job: Job) -> bytes:
            raise asyncio.CancelledError

        def unprintable(_job: Job) -> bytes:
            class Unprintable(Exception):
                def __str__(self) -> str:
                    raise ZeroDivisionError

            raise Unprintable

        results: list[Callable[[Job], Any]] = [
            lambda _job: "text",
            lambda _job: bytes(2000),
            cancels_itself,
            unprintable,
        ]
        worker.register("wrong", lambda job: results[int(job.workload)](job))
        async with worker:
            peer = await server.accept_worker(b"wrong")
            answers = []
            for number in range(4):
                peer.assign(b"H:1", b"wrong", b"%d" % number)
                while (packet := (await peer.take())[0]) != GRAB:
                    answers.append(packet)
            peer.assign(b"H:9", b"unheard of")
            assert await peer.take(2) == [Packet(P.WORK_FAIL, [b"H:9"]), GRAB]
        fail = Packet(P.WORK_FAIL, [b"H:1"])
        texts = [packet.args[1].partition(b":")[0] for packet in answers if packet.type == P.WORK_EXCEPTION]
        assert texts == [b"TypeError", b"ResultTooLarge", b"Unprintable"]
        assert answers.count(fail) == 4


@in_loop
async def test_server_that_takes_less_is_remembered() -> None:
    """A result that the server refuses for its size fails its job, when that comes again."""
    async with fake_server() as server:
        worker = GearmanWorker(server.address, retry_policy=lambda _attempt: 0.0, drain_timeout=0)
        worker.register("large", lambda _job: bytes(5000))
        async with worker:
            peer = await server.accept_worker(b"large")
            peer.assign(b"H:1", b"large")
            assert (await peer.take())[0].type == P.WORK_COMPLETE
            peer.send(P.ERROR, ErrorCode.ARGUMENT_TOO_LARGE, b"too large")
            peer.writer.close()
            peer = await server.accept_worker(b"large")
            peer.assign(b"H:1", b"large")
            answer = (await peer.take())[0]
            assert answer.type == P.WORK_EXCEPTION
            assert answer.args[1].startswith(ResultTooLarge.__name__.encode())


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
