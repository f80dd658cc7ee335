"""Clients and pools on both event loops, with our server and with Debian's, over real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from gearman_twisted.client import JobStatus, PartsFailed, Priority, Task, gather, map_reduce
from gearman_twisted.errors import ConnectionLost, JobException, JobFailed, NoServers, ServerError
from gearman_twisted.wire.constants import PacketType
from tests.kit.asyncio_peers import reverse, talk, work
from tests.kit.gearmand import Gearmand
from tests.kit.loops import RealLoop, in_real_loop
from tests.kit.servers import PATIENCE, TwistdGearman, WirePeer

P = PacketType

pytestmark = pytest.mark.usefixtures("no_calls_left")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TwistdGearman]:
    """A ``twistd gearman`` that keeps its jobs in memory."""
    with TwistdGearman(tmp_path, "--store", "memory:") as server:
        yield server


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[TwistdGearman]]:
    """Two of them."""
    directories = [tmp_path / name for name in ("one", "two")]
    for directory in directories:
        directory.mkdir()
    with (
        TwistdGearman(directories[0], "--store=memory:") as one,
        TwistdGearman(directories[1], "--store=memory:") as two,
    ):
        yield [one, two]


@pytest.fixture(params=["ours", "gearmand"])
def port(request: pytest.FixtureRequest) -> int:
    """The port of our server, then that of Debian's."""
    return int(request.getfixturevalue({"ours": "server", "gearmand": "gearmand"}[request.param]).port)


def client_of(real: RealLoop, port: int, **options: Any) -> Any:
    """A client of a server."""
    return real.face("client").GearmanClient(f"127.0.0.1:{port}", **options)


async def all_of(waiting: list[Any]) -> list[Any]:
    """What all of several calls return."""
    return [await each for each in waiting]


@in_real_loop
async def test_basics(real: RealLoop, port: int) -> None:
    """The client does with any server what it is for."""
    async with client_of(real, port, client_id="me") as client:
        worker = real.in_thread(work, port, b"reverse", reverse)
        assert await client.submit("reverse", b"abc", priority=Priority.HIGH) == b"cba"
        await worker
        told: list[object] = []
        worker = real.in_thread(work, port, b"talk", talk)
        result = await client.submit(
            "talk",
            b"end",
            unique=b"u",
            on_created=told.append,
            on_data=told.append,
            on_warning=told.append,
            on_status=lambda *numbers: told.append(numbers),
        )
        assert result == b"end"
        await worker
        assert told[1:] == [b"part", b"warning", (1, 2)]
        worker = real.in_thread(work, port, b"fail", lambda peer, job, _: peer.send(P.WORK_FAIL, job))
        with pytest.raises(JobFailed) as failed:
            await client.submit("fail")
        assert failed.value.handle
        await worker
        worker = real.in_thread(
            work, port, b"raise", lambda peer, job, _: peer.send(P.WORK_EXCEPTION, job, b"why")
        )
        with pytest.raises(JobException) as raised:
            await client.submit("raise")
        assert raised.value.data == b"why"
        await worker
        handle = await client.submit_background("later", b"w", unique=b"u1")
        assert await client.status(handle) == JobStatus(True, False, 0, 0)
        status = await client.status_by_unique(b"u1")
        assert (status.is_known, status.is_running) == (True, False)
        handle = await client.submit_at("later", b"w", datetime(2099, 1, 1, tzinfo=timezone.utc))
        assert (await client.status(handle)).is_known
        assert (await client.status(await client.submit_at("later", b"", timedelta(hours=1)))).is_known
        assert await client.echo(b"\0any\xff") == b"\0any\xff"
        assert await client.ping() >= 0
        assert await client.set_option("exceptions") == b"exceptions"


@in_real_loop
async def test_what_only_our_server_does(real: RealLoop, server: TwistdGearman) -> None:
    """Recurring jobs are taken once, and reduce jobs are reduced."""
    async with client_of(real, server.port) as client:
        handle = await client.submit_recurring("nightly", b"", "0 3 * * *", unique=b"u")
        assert (await client.status(handle)).is_known
        assert await client.submit_recurring("nightly", b"", "0 3 * * *", unique=b"u") == handle
        assert await client.submit_recurring("nightly", b"", "5 3 * * *", unique=b"u") != handle
        reduced = real.start(client.submit_reduce("split", b"ab", "reverse"))

        def split(peer: WirePeer, handle: bytes, workload: bytes) -> None:
            peer.send(P.WORK_DATA, handle, workload)
            peer.send(P.WORK_COMPLETE, handle, b"")

        await real.in_thread(work, server.port, b"split", split)
        await real.in_thread(work, server.port, b"reverse", reverse)
        assert await reduced == b"ba"


@in_real_loop
async def test_refused_option(real: RealLoop, port: int) -> None:
    """An option that a server does not know is refused with its words, and the connection goes on."""
    async with client_of(real, port) as client:
        with pytest.raises(ServerError) as caught:
            await client.set_option("nonsense")
        assert caught.value.code == "UNKNOWN_OPTION"
        assert await client.echo(b"x") == b"x"


@in_real_loop
async def test_debian_worker_counts_for_us(real: RealLoop, gearmand: Gearmand) -> None:
    """Our client has Debian's worker run a command, through gearmand; one that fails is a job that fails."""
    gearmand.start_worker("-f", "wc", "--", "wc", "-c")
    gearmand.start_worker("-f", "no", "--", "false")
    created: list[bytes] = []
    async with client_of(real, gearmand.port) as client:
        counted = await client.submit("wc", b"x" * 1234, on_created=created.append)
        assert counted.split() == [b"1234"]
        assert len(created) == 1
        assert await client.status(created[0]) == JobStatus(False, False, 0, 0)
        with pytest.raises(JobFailed):
            await client.submit("no", b"x")


@in_real_loop
async def test_large_and_many_jobs(real: RealLoop, gearmand: Gearmand) -> None:
    """A large workload, and many jobs at once, come back whole and to whom they belong."""
    gearmand.start_worker("-f", "echo", "--", "cat")
    workloads = [b"%d" % number for number in range(50)]
    async with client_of(real, gearmand.port) as client:
        jobs = [real.start(client.submit("echo", workload)) for workload in workloads]
        assert await all_of(jobs) == workloads
        large = bytes(range(256)) * 4096
        assert await client.echo(large) == large


@in_real_loop
async def test_coalesced_jobs_through_gearmand(real: RealLoop, gearmand: Gearmand) -> None:
    """Each of the submits that share a unique gets one of the copies that gearmand sends."""
    async with client_of(real, gearmand.port) as client:
        jobs = [real.start(client.submit("wc", b"12345", unique=b"u")) for _ in range(3)]
        await client.echo(b"they are there")
        assert await client.status_by_unique(b"u") == JobStatus(True, False, 0, 0, 3)
        gearmand.start_worker("-f", "wc", "--", "wc", "-c")
        assert [answer.strip() for answer in await all_of(jobs)] == [b"5"] * 3
        assert await client.echo(b"in step") == b"in step"


@in_real_loop
async def test_client_survives_a_restart_of_gearmand(real: RealLoop, gearmand: Gearmand) -> None:
    """A lost job and a dead server are reported at once, and the new server is used when it is there."""
    async with client_of(real, gearmand.port, retry_policy=lambda _attempt: 3600.0) as client:
        job = real.start(client.submit("nobody", b""))
        assert await client.echo(b"x") == b"x"
        gearmand.end()
        with pytest.raises(ConnectionLost):
            await job
        for _ in range(3):
            with pytest.raises(NoServers, match=f"cannot connect to {gearmand.address}"):
                await client.echo(b"x")
        gearmand.start()
        assert await client.echo(b"x") == b"x"


@in_real_loop
async def test_unix_socket(real: RealLoop, tmp_path: Path) -> None:
    """A server may be reached by a UNIX socket."""
    path = tmp_path / "socket"
    with TwistdGearman(tmp_path, "--store", "memory:", f"--listen=unix:{path}"):
        async with real.face("client").GearmanClient(f"unix:{path}") as client:
            assert await client.echo(b"1") == b"1"


@in_real_loop
async def test_pool_fails_over(real: RealLoop, servers: list[TwistdGearman]) -> None:
    """Of two servers one is killed; calls go on with the other, no job is with both, statuses find jobs."""
    names = [f"127.0.0.1:{server.port}" for server in servers]
    pool = real.face("client").ServerPool(names, choice="round_robin", patience=PATIENCE)
    async with pool:
        await pool.ping()
        while len(pool.connected) < 2:
            await real.sleep(0.01)
        handles = [await pool.submit_background("f", b"%d" % number) for number in range(20)]
        assert (await pool.status_by_unique(b"none")).is_known is False
        assert await pool.set_option("exceptions") == b"exceptions"
        assert [(await pool.status(handle)).is_known for handle in handles] == [True] * 20
        servers[0].process.kill()
        await real.in_thread(servers[0].process.wait)
        handles += [await pool.submit_background("f", b"%d" % number, retry=True) for number in range(20)]
        assert len(set(handles)) == 40
        known = [await pool.status(handle) for handle in handles]
        assert sum(status.is_known for status in known) == 30
        assert pool.connected == [names[1]]
    with pytest.raises(NoServers, match="was closed"):
        await pool.echo(b"")


def double_and_split(port: int) -> None:
    """Do jobs of ``double`` and ``split`` until the job ``stop`` comes."""
    with WirePeer(port) as peer:
        for function in (b"double", b"split", b"stop"):
            peer.send(P.CAN_DO, function)
        while True:
            packet = peer.ask(P.GRAB_JOB)
            assert packet is not None
            if packet.type != P.JOB_ASSIGN:
                if packet.type == P.NO_JOB:
                    peer.send(P.PRE_SLEEP)
                    peer.receive()
                continue
            handle, function, workload = packet.args
            if function == b"split":
                for word in workload.split():
                    peer.send(P.WORK_DATA, handle, word)
                peer.send(P.WORK_COMPLETE, handle, b"")
            elif workload == b"7":
                peer.send(P.WORK_FAIL, handle)
            else:
                peer.send(P.WORK_COMPLETE, handle, b"%d" % (2 * int(workload)))
            if function == b"stop":
                peer.ask(P.ECHO_REQ, b"")
                return


def tasks(count: int) -> Iterator[Task]:
    return (Task("double", b"%d" % number) for number in range(count))


@in_real_loop
async def test_many_jobs(real: RealLoop, server: TwistdGearman) -> None:
    """Streams, sets and reduce jobs, in the foreground and the background, run through a real server."""
    worker = real.in_thread(double_and_split, server.port)
    async with client_of(real, server.port) as client:
        numbers = [number for number in range(1_000) if number != 7]
        some = (Task("double", b"%d" % number) for number in numbers)
        assert await gather(client, some) == [b"%d" % (2 * number) for number in numbers]
        parts = (b"%d" % number for number in range(10) if number != 7)
        assert await map_reduce(client, "double", parts, lambda all_: sum(map(int, all_))) == 76
        with pytest.raises(PartsFailed, match="1 of 10 parts failed; the first is number 7") as caught:
            await gather(client, tasks(10))
        assert list(caught.value.errors) == [7]
        assert caught.value.results[6:9] == [b"12", None, b"16"]
        assert await client.submit_reduce("split", b"1 2 30", "double") == b"2460"
        with pytest.raises(JobFailed):
            await client.submit_reduce("split", b"1 7", "double")
        seen = {}
        async with client.submit_many(tasks(7), outstanding=3) as stream:
            async for outcome in stream:
                seen[outcome.index] = outcome.get()
        assert seen == {number: b"%d" % (2 * number) for number in range(7)}
        handles = [
            outcome.get()
            async for outcome in client.submit_many(
                (Task("nobody") for _ in range(50)), background=True, outstanding=10
            )
        ]
        assert len(set(handles)) == 50
        await client.submit("stop", b"0")
    await worker


@in_real_loop
async def test_a_hundred_thousand_jobs(real: RealLoop, server: TwistdGearman) -> None:
    """So many jobs go through with a few outstanding, and none is kept."""
    count = 100_000
    async with client_of(real, server.port) as client:
        seen = 0
        async with client.submit_many(tasks(count), background=True, outstanding=500) as stream:
            async for outcome in stream:
                seen += 1
                assert outcome.error is None
                assert len(stream._running) + len(stream._ended) <= 500
        assert seen == count
