"""A farm for tests that asyncio runs: its clients and workers, and time that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gearman_twisted.aio import Job
from gearman_twisted.errors import ConnectionLost, JobException, NoServers, RetryLater
from gearman_twisted.testing import AsyncioFarm, MemoryFarm
from tests.kit.servers import PATIENCE


def run(test: Callable[[MemoryFarm, AsyncioFarm], Awaitable[None]]) -> None:
    """Run a test in an event loop of its own."""

    async def main() -> None:
        farm = MemoryFarm()
        try:
            await asyncio.wait_for(test(farm, farm.on_asyncio()), PATIENCE)
        finally:
            farm.close()

    asyncio.run(main())


async def reverse(job: Job) -> bytes:
    """Return the workload backwards."""
    return job.workload[::-1]


def test_job_runs() -> None:
    """What a client submits is run by a worker, and awaited without moving anything by hand."""

    async def test(_farm: MemoryFarm, aio: AsyncioFarm) -> None:
        aio.worker({"reverse": reverse})
        async with aio.client() as client:
            assert await client.submit("reverse", b"abc") == b"cba"

    run(test)


def test_errors_come_through() -> None:
    """An exception of the function is that of the call."""

    async def fail(_job: Job) -> bytes:
        raise ValueError("no")

    async def test(_farm: MemoryFarm, aio: AsyncioFarm) -> None:
        aio.worker({"fail": fail})
        async with aio.client() as client:
            with pytest.raises(JobException, match="ValueError: no"):
                await client.submit("fail")

    run(test)


def test_time_is_the_farms() -> None:
    """A job that waits for another try waits for the farm's clock."""
    attempts: list[int] = []

    async def later(job: Job) -> bytes:
        attempts.append(job.attempt)
        if job.attempt == 1:
            raise RetryLater(3600)
        return b"done"

    async def test(_farm: MemoryFarm, aio: AsyncioFarm) -> None:
        aio.worker({"later": later})
        async with aio.client() as client:
            result = asyncio.ensure_future(client.submit("later"))
            await aio.advanced(3599)
            assert (attempts, result.done()) == ([1], False)
            await aio.advanced(1)
            assert await result == b"done"

    run(test)


def test_pool_of_servers() -> None:
    """A pool goes on with the server that is left."""

    async def test(farm: MemoryFarm, aio: AsyncioFarm) -> None:
        farm.add_server()
        aio.worker({"reverse": reverse})
        async with aio.pool() as pool:
            assert await pool.submit("reverse", b"ab") == b"ba"
            farm.server.stop()
            await aio.advanced(0)
            assert await pool.submit("reverse", b"cd", retry=True) == b"dc"

    run(test)


def test_lost_connections() -> None:
    """A connection that breaks fails what waits for it; the worker comes back after the farm's delay."""

    async def test(farm: MemoryFarm, aio: AsyncioFarm) -> None:
        async with aio.client() as client:
            waiting = asyncio.ensure_future(client.submit("nobody"))
            await aio.advanced(0)
            farm.lose_connections()
            with pytest.raises(ConnectionLost):
                await waiting
            farm.server.stop()
            with pytest.raises(NoServers):
                await client.submit("nobody")

    run(test)


def test_needs_a_loop() -> None:
    """Outside asyncio there is no loop to drive the farm."""
    farm = MemoryFarm()
    with pytest.raises(RuntimeError, match="no running event loop"):
        farm.on_asyncio()
    farm.close()


def test_fixture(gearman_farm: MemoryFarm) -> None:
    """The fixture is the same for both loops."""

    async def test() -> bytes:
        aio = gearman_farm.on_asyncio()
        aio.worker({"reverse": reverse})
        async with aio.client() as client:
            return await client.submit("reverse", b"xyz")

    # A loop of its own: pytest-twisted has a reactor that runs in this thread.
    loop = asyncio.new_event_loop()
    try:
        assert loop.run_until_complete(test()) == b"zyx"
    finally:
        loop.close()
