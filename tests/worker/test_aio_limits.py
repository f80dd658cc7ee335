"""An asyncio worker's limits by function, and jobs that wait for another try."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from gearman_twisted.aio import GearmanClient, GearmanWorker, Job
from gearman_twisted.errors import RetryLater
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.asyncio_peers import GRAB, SLEEP, FakeServer, Peer, fake_server, in_loop
from tests.kit.servers import TwistdGearman

P = PacketType


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TwistdGearman]:
    """A ``twistd gearman`` that keeps its jobs in memory."""
    with TwistdGearman(tmp_path, "--store", "memory:") as server:
        yield server


class Waits:
    """A function whose jobs end when the test says so."""

    def __init__(self) -> None:
        self._pending: dict[bytes, asyncio.Future[bytes]] = {}

    def __call__(self, job: Job) -> Awaitable[bytes]:
        return self._of(job.handle)

    def end(self, handle: bytes, result: bytes = b"r") -> None:
        """Ends a job, be it one that is still on its way."""
        self._of(handle).set_result(result)

    def _of(self, handle: bytes) -> asyncio.Future[bytes]:
        return self._pending.setdefault(handle, asyncio.get_running_loop().create_future())


def retry_once(job: Job) -> bytes:
    """Wants another try after as many seconds as its workload says."""
    if job.attempt == 1:
        raise RetryLater(float(job.workload))
    return b"%d" % job.attempt


def can_do(name: bytes) -> Packet:
    """What offers a function."""
    return Packet(P.CAN_DO, [name])


def complete(handle: bytes, data: bytes = b"r") -> Packet:
    """What ends a job."""
    return Packet(P.WORK_COMPLETE, [handle, data])


async def accept_two(server: FakeServer, *functions: bytes) -> list[Peer]:
    """Two connections, each with one function, in that order; both ask for a job."""
    peers = [await server.peers.get() for _ in functions]
    offered = [await peer.take(2) for peer in peers]
    assert sorted(offered) == [[can_do(name), GRAB] for name in sorted(functions)]
    return [peers[offered.index([can_do(name), GRAB])] for name in functions]


# Limits by function.


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
async def test_function_with_a_limit_has_its_own_connection() -> None:
    """It is not asked for while as many as allowed run, and the others are."""
    async with fake_server() as server:
        worker = GearmanWorker(server.address, concurrency=3, drain_timeout=0)
        wait = Waits()
        worker.register("wait", wait)
        worker.register("few", wait, concurrency=1)
        async with worker:
            shared, own = await accept_two(server, b"wait", b"few")
            own.assign(b"H:1", b"few")
            shared.assign(b"H:2", b"wait")
            assert await shared.take() == [GRAB]
            wait.end(b"H:1")
            assert await own.take(2) == [complete(b"H:1"), GRAB]
            # Two run, or are on their way; and a third with this one, so that it is not asked for another.
            shared.assign(b"H:3", b"wait")
            own.send(P.NO_JOB)
            assert await own.take() == [SLEEP]
            assert await shared.take() == [GRAB]


@in_loop
async def test_limit_of_a_function_may_change_while_running() -> None:
    """New connections take over, and the old ones go when their jobs have ended."""
    async with fake_server() as server:
        worker = GearmanWorker(server.address, concurrency=3, drain_timeout=0)
        wait = Waits()
        worker.register("wait", wait)
        worker.register("few", wait, concurrency=1)
        async with worker:
            shared, own = await accept_two(server, b"wait", b"few")
            own.assign(b"H:1", b"few")
            worker.register("few", wait, concurrency=1)
            worker.register("few", wait, concurrency=2)
            second = await server.accept_worker(b"few")
            wait.end(b"H:1")
            assert await own.take() == [complete(b"H:1")]
            await own.closed()
            shared.send(P.NO_JOB)
            assert await shared.take() == [SLEEP]
            # As many as there are slots: the shared connection has it now.
            worker.register("few", wait)
            assert await shared.take(2) == [can_do(b"few"), GRAB]
            second.send(P.NO_JOB)
            await second.closed()
            shared.send(P.NO_JOB)
            assert await shared.take() == [SLEEP]
            worker.register("few", wait, concurrency=2)
            assert await shared.take() == [Packet(P.CANT_DO, [b"few"])]
            third = await server.accept_worker(b"few")
            worker.unregister("few")
            third.send(P.NO_JOB)
            await third.closed()
            assert server.peers.empty()


@in_loop
async def test_function_comes_and_goes_before_the_start() -> None:
    """What was decided last holds; nothing connects for what was taken back."""
    async with fake_server() as server:
        worker = GearmanWorker(server.address, concurrency=3, drain_timeout=0)
        for concurrency in [1, 2, None, 1]:
            worker.register("wait", Waits(), concurrency=concurrency)
        worker.register("gone", Waits(), concurrency=1)
        worker.unregister("gone")
        async with worker:
            peers = [await server.peers.get() for _ in range(2)]
            asked = [asyncio.ensure_future(peer.take(2)) for peer in peers]
            (first,), (_,) = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            assert first.result() == [can_do(b"wait"), GRAB]
            for task in asked:
                task.cancel()
            await asyncio.wait(asked)
            assert server.peers.empty()


def test_functions_come_and_go_before_there_is_a_loop() -> None:
    """A worker is put together anywhere."""
    worker = GearmanWorker(concurrency=3)
    for concurrency in [1, 2, None, 1]:
        worker.register("wait", Waits(), concurrency=concurrency)
    worker.unregister("wait")
    assert worker._core.slots.free == 3


@in_loop
async def test_no_connection_is_made_during_the_stop() -> None:
    """A worker that stops makes no connection for a new function, nor anew one that is lost."""
    async with fake_server() as server:
        worker = GearmanWorker(
            server.address, concurrency=2, drain_timeout=3600, retry_policy=lambda _attempt: 0.0
        )
        wait = Waits()
        worker.register("wait", wait)
        async with worker:
            peer = await server.accept_worker(b"wait")
            peer.assign(b"H:1", b"wait")
            assert await peer.take() == [GRAB]
            stopping = asyncio.ensure_future(worker.stop())
            await asyncio.sleep(0)
            worker.register("few", wait, concurrency=1)
            peer.writer.close()
            while worker._core._groups.names() and any(link.session for link in worker._core._links()):
                await asyncio.sleep(0)
            wait.end(b"H:1")
            await stopping
        assert server.peers.empty()


@in_loop
async def test_lost_connection_of_a_limited_function_comes_again() -> None:
    """It offers the same, and its limit counts what runs for the old one."""
    async with fake_server() as server:
        worker = GearmanWorker(
            server.address, concurrency=3, drain_timeout=0, retry_policy=lambda _attempt: 0.0
        )
        wait = Waits()
        worker.register("wait", wait)
        worker.register("few", wait, concurrency=1)
        async with worker:
            shared, own = await accept_two(server, b"wait", b"few")
            own.assign(b"H:1", b"few")
            own.writer.close()
            again = await server.peers.get()
            assert await again.take() == [can_do(b"few")]
            shared.assign(b"H:2", b"wait")
            assert await shared.take() == [GRAB]
            wait.end(b"H:1")
            assert await again.take() == [GRAB]


@in_loop
async def test_limit_of_a_server_is_learned_for_all_connections() -> None:
    """What one connection was refused for its size, no other one sends."""
    async with fake_server() as server:
        worker = GearmanWorker(server.address, concurrency=2, drain_timeout=0)
        worker.register("large", lambda _job: bytes(5000))
        worker.register("few", lambda _job: bytes(5000), concurrency=1)
        async with worker:
            shared, own = await accept_two(server, b"large", b"few")
            shared.assign(b"H:1", b"large")
            assert await shared.take(2) == [complete(b"H:1", bytes(5000)), GRAB]
            shared.send(P.ERROR, b"ARGUMENT_TOO_LARGE", b"too large")
            shared.assign(b"H:2", b"large")
            assert (await shared.take())[0].type == P.WORK_EXCEPTION
            own.assign(b"H:3", b"few")
            assert (await own.take())[0].type == P.WORK_EXCEPTION


# Another try.


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


@in_loop
async def test_retry_that_is_due_stands_in_line_for_a_slot() -> None:
    """While another job has the slot it waits on; then it goes before jobs that are not here yet."""
    async with fake_server() as server:
        worker = GearmanWorker(server.address, drain_timeout=0)
        wait = Waits()
        worker.register("f", retry_once)
        worker.register("wait", wait)
        async with worker:
            peer = await server.accept_worker(b"f", b"wait")
            peer.assign(b"H:1", b"f", b"0")
            assert await peer.take() == [GRAB]
            peer.assign(b"H:2", b"wait")
            wait.end(b"H:2")
            assert await peer.take(3) == [complete(b"H:2"), complete(b"H:1", b"2"), GRAB]


@in_loop
async def test_no_more_jobs_wait_than_allowed() -> None:
    """Beyond that they keep their slots, and no new jobs are taken."""
    async with fake_server() as server:
        worker = GearmanWorker(server.address, max_waiting=1, drain_timeout=0)
        worker.register("f", retry_once)
        async with worker:
            peer = await server.accept_worker(b"f")
            peer.assign(b"H:1", b"f", b"3600")
            assert await peer.take() == [GRAB]
            peer.assign(b"H:2", b"f", b"0.01")
            assert await peer.take(2) == [complete(b"H:2", b"2"), GRAB]


@in_loop
async def test_retry_goes_with_its_connection() -> None:
    """The server gives the job to somebody else, so it is not tried again here, and keeps no slot."""
    async with fake_server() as server:
        worker = GearmanWorker(
            server.address,
            max_waiting=1,
            concurrency=2,
            drain_timeout=0,
            retry_policy=lambda _attempt: 0.0,
        )
        worker.register("f", retry_once)
        worker.register("wait", Waits())
        async with worker:
            peer = await server.accept_worker(b"f", b"wait")
            peer.assign(b"H:1", b"f", b"3600")
            assert await peer.take() == [GRAB]
            peer.assign(b"H:2", b"f", b"3600")
            assert await peer.take() == [GRAB]
            peer.writer.close()
            again = await server.accept_worker(b"f", b"wait")
            again.assign(b"H:3", b"wait")
            assert await again.take() == [GRAB]


@in_loop
async def test_retry_in_line_goes_with_its_connection() -> None:
    """One that waits for a slot, when its connection is lost, takes none."""
    async with fake_server() as server:
        worker = GearmanWorker(
            server.address, concurrency=2, drain_timeout=0, retry_policy=lambda _attempt: 0.0
        )
        wait = Waits()
        worker.register("f", retry_once)
        worker.register("wait", wait)
        async with worker:
            peer = await server.accept_worker(b"f", b"wait")
            peer.assign(b"H:2", b"wait")
            assert await peer.take() == [GRAB]
            peer.assign(b"H:1", b"f", b"0")
            assert await peer.take() == [GRAB]
            peer.assign(b"H:3", b"wait")
            peer.writer.close()
            again = await server.peers.get()
            assert await again.take(2) == [can_do(b"f"), can_do(b"wait")]
            wait.end(b"H:2")
            wait.end(b"H:3")
            assert await again.take() == [GRAB]
            again.assign(b"H:4", b"wait")
            assert await again.take() == [GRAB]


@in_loop
async def test_wait_that_its_server_does_not_bear_is_none() -> None:
    """If the server would take the job away before its next try could end, it goes back at once."""
    async with fake_server() as server:
        worker = GearmanWorker(server.address, drain_timeout=0)
        worker.register("f", retry_once, timeout=10, server_timeout=11)
        async with worker:
            peer = await server.peers.get()
            assert await peer.take(2) == [Packet(P.CAN_DO_TIMEOUT, [b"f", b"11000"]), GRAB]
            peer.assign(b"H:1", b"f", b"0.01")
            assert await peer.take() == [GRAB]
            peer.send(P.NO_JOB)
            assert await peer.take(2) == [SLEEP, complete(b"H:1", b"2")]
            peer.send(P.NOOP)
            assert await peer.take() == [GRAB]
            peer.assign(b"H:2", b"f", b"2")
            assert await peer.take() == [Packet(P.CANT_DO, [b"f"])]


@in_loop
async def test_new_connection_of_a_limit_leaves_the_function_to_others_too() -> None:
    """After a job was given back the function is not offered for a second, and is then."""
    async with fake_server() as server:
        worker = GearmanWorker(
            server.address,
            concurrency=2,
            drain_timeout=0,
            client_id="me",
            retry_policy=lambda _attempt: 0.0,
        )

        @worker.function("f", concurrency=1)
        def give_back(_job: Job) -> None:
            raise RetryLater

        name = Packet(P.SET_CLIENT_ID, [b"me"])
        async with worker:
            peers = [await server.peers.get() for _ in range(2)]
            for peer in peers:
                assert await peer.take() == [name]
            (own,) = [peer for peer in peers if peer.packets]
            assert await own.take(2) == [can_do(b"f"), GRAB]
            own.assign(b"H:1", b"f")
            assert await own.take() == [Packet(P.CANT_DO, [b"f"])]
            own.writer.close()
            again = await server.peers.get()
            assert await again.take() == [name]
            assert again.packets == []
            assert await again.take(2) == [can_do(b"f"), GRAB]


@pytest.mark.parametrize("is_lost", [False, True])
@pytest.mark.parametrize("max_waiting", [0, 1])
def test_no_slot_is_lost_when_the_end_comes(max_waiting: int, *, is_lost: bool) -> None:
    """However a slot that becomes free and the end of the wait for it fall together, all are free then."""

    async def end(pause: int, stop: Callable[[GearmanWorker, Peer], Awaitable[object]]) -> None:
        async with fake_server() as server:
            worker = GearmanWorker(server.address, concurrency=2, max_waiting=max_waiting, drain_timeout=0)
            wait = Waits()
            worker.register("f", retry_once)
            worker.register("wait", wait)
            async with worker:
                peer = await server.accept_worker(b"f", b"wait")
                peer.assign(b"H:1", b"wait")
                assert await peer.take() == [GRAB]
                peer.assign(b"H:2", b"f", b"0" if max_waiting else b"3600")
                if max_waiting:
                    assert await peer.take() == [GRAB]
                    peer.assign(b"H:3", b"wait")
                wait.end(b"H:1")
                for _ in range(pause):
                    await asyncio.sleep(0)
                await stop(worker, peer)
            assert worker._core.slots.free == 2

    async def stop(worker: GearmanWorker, _peer: Peer) -> None:
        await worker.stop()

    async def lose(_worker: GearmanWorker, peer: Peer) -> None:
        peer.writer.transport.abort()

    @in_loop
    async def test() -> None:
        for pause in range(12):
            await end(pause, lose if is_lost else stop)

    test()
