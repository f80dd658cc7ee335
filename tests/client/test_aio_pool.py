"""The pool of servers in asyncio."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gearman_twisted.aio import ServerPool
from gearman_twisted.errors import ConnectionLost, NoServers
from gearman_twisted.wire.constants import PacketType
from tests.kit.asyncio_peers import FakeServer, fake_server, in_loop
from tests.kit.servers import PATIENCE, TwistdGearman

P = PacketType


@in_loop
async def test_pool_with_two_servers(tmp_path: Path) -> None:
    """Jobs of one unique meet; a status is found wherever the job is; a server that ends is passed over."""
    places = [tmp_path / "1", tmp_path / "2"]
    for place in places:
        place.mkdir()
    with (
        TwistdGearman(places[0], "--store", "memory:") as first,
        TwistdGearman(places[1], "--store", "memory:") as second,
    ):
        names = [f"127.0.0.1:{each.port}" for each in (first, second)]
        async with ServerPool(names, choice="round_robin", patience=PATIENCE) as pool:
            handles = [await pool.submit_background("later", unique=b"u%d" % number) for number in range(4)]
            assert [(await pool.status(handle)).is_known for handle in handles] == [True] * 4
            assert (await pool.status_by_unique(b"u2")).is_known
            assert await pool.set_option("exceptions") == b"exceptions"
            assert sorted(pool.connected) == sorted(names)
            await asyncio.to_thread(first.end)
            for _ in range(4):
                assert await pool.submit_background("later", retry=True)
            assert pool.connected == names[1:]
        with pytest.raises(NoServers, match="was closed"):
            await pool.echo(b"")


@in_loop
async def test_pool_waits_for_a_server_and_then_gives_up() -> None:
    """A call that finds no server waits; one that comes up is used, and one that never does is an error."""
    async with fake_server() as server:
        port = server.port
    late = ServerPool([f"127.0.0.1:{port}"], patience=0.05, retry_policy=lambda _attempt: 0.01)
    with pytest.raises(NoServers, match=r"none could be reached in 0.05 s"):
        await late.submit("f")
    await late.close()
    pool = ServerPool([f"127.0.0.1:{port}"], patience=PATIENCE, retry_policy=lambda _attempt: 0.01)
    echo = asyncio.ensure_future(pool.echo(b"1"))
    while not pool.clients[0].is_down:
        await asyncio.sleep(0.001)
    back = FakeServer()
    await back.start(port)
    peer = await back.accept()
    await peer.take()
    peer.send(P.ECHO_RES, b"1")
    assert await echo == b"1"
    await pool.close()
    await back.stop()


@in_loop
async def test_pool_submits_again_elsewhere() -> None:
    """A job with retry goes to the next server when its own is lost; one without fails."""
    async with (
        fake_server() as one,
        fake_server() as two,
        ServerPool([one.address, two.address], choice="first") as pool,
    ):
        plain = asyncio.ensure_future(pool.submit("f", b"plain"))
        retried = asyncio.ensure_future(pool.submit("f", b"retried", retry=True))
        peer, other = await one.accept(), await two.accept()
        await peer.take(2)
        peer.writer.close()
        with pytest.raises(ConnectionLost):
            await plain
        assert (await other.take())[0].args[2] == b"retried"
        other.send(P.JOB_CREATED, b"H:1")
        other.send(P.WORK_COMPLETE, b"H:1", b"done")
        assert await retried == b"done"


@in_loop
async def test_pool_that_is_closed_fails_what_waits() -> None:
    """Calls that wait for a server hear at once that there will be none."""
    async with fake_server() as server:
        port = server.port
    pool = ServerPool([f"127.0.0.1:{port}"], patience=3600)
    waiting = asyncio.ensure_future(pool.echo(b"1"))
    while not pool.clients[0].is_down:
        await asyncio.sleep(0.001)
    await pool.close()
    with pytest.raises(NoServers, match="the pool was closed"):
        await waiting
