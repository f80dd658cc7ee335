"""The client in asyncio, against real servers and against peers that misbehave."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from gearman_twisted.aio import (
    GearmanClient,
    JobStatus,
    PartsFailed,
    Priority,
    ServerPool,
    Task,
    gather,
    map_reduce,
)
from gearman_twisted.client.course import Callbacks
from gearman_twisted.client.requests import echo_request
from gearman_twisted.errors import (
    ConfigError,
    ConnectionLost,
    JobException,
    JobFailed,
    LocalProtocolError,
    NoServers,
    RemoteProtocolError,
    ServerError,
)
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.asyncio_peers import FakeServer, fake_server, in_loop, reverse, talk, working
from tests.kit.gearmand import Gearmand
from tests.kit.peers import response
from tests.kit.servers import TwistdGearman, WirePeer, run

P = PacketType


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TwistdGearman]:
    """A ``twistd gearman`` that keeps its jobs in memory."""
    with TwistdGearman(tmp_path, "--store", "memory:") as server:
        yield server


# With real servers.


async def basics(port: int) -> None:
    """What a client and any server have to do together."""
    async with GearmanClient(f"127.0.0.1:{port}", client_id="me") as client:
        worker = working(port, b"reverse", reverse)
        assert await client.submit("reverse", b"abc", priority=Priority.HIGH) == b"cba"
        await worker
        told: list[object] = []
        worker = working(port, b"talk", talk)
        result = client.submit(
            "talk",
            b"end",
            unique=b"u",
            on_created=told.append,
            on_data=told.append,
            on_warning=told.append,
            on_status=lambda *numbers: told.append(numbers),
        )
        assert await result == b"end"
        await worker
        assert told[1:] == [b"part", b"warning", (1, 2)]
        worker = working(port, b"fail", lambda peer, handle, _: peer.send(P.WORK_FAIL, handle))
        with pytest.raises(JobFailed) as failed:
            await client.submit("fail")
        assert failed.value.handle
        await worker
        worker = working(port, b"raise", lambda peer, handle, _: peer.send(P.WORK_EXCEPTION, handle, b"why"))
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
        assert await client.echo(b"\0any\xff") == b"\0any\xff"
        assert await client.ping() >= 0
        assert await client.set_option("exceptions") == b"exceptions"


@in_loop
async def test_basics_with_our_server(server: TwistdGearman) -> None:
    """The client does with our server what it is for."""
    await basics(server.port)


@in_loop
async def test_basics_with_gearmand(gearmand: Gearmand) -> None:
    """The client does the same with Debian's gearmand."""
    await basics(gearmand.port)


@in_loop
async def test_what_only_our_server_does(server: TwistdGearman) -> None:
    """Recurring jobs are taken, and reduce jobs are reduced."""
    async with GearmanClient(f"127.0.0.1:{server.port}") as client:
        handle = await client.submit_recurring("nightly", b"", "0 3 * * *", unique=b"u")
        assert (await client.status(handle)).is_known
        reduced = asyncio.ensure_future(client.submit_reduce("split", b"ab", "reverse"))

        def split(peer: WirePeer, handle: bytes, workload: bytes) -> None:
            peer.send(P.WORK_DATA, handle, workload)
            peer.send(P.WORK_COMPLETE, handle, b"")

        await working(server.port, b"split", split)
        await working(server.port, b"reverse", reverse)
        assert await reduced == b"ba"
        with pytest.raises(ServerError) as refused:
            await client.set_option("no such thing")
        assert refused.value.code


@in_loop
async def test_many_jobs_with_our_server(server: TwistdGearman) -> None:
    """Streams, sets and map-reduce are those of the Twisted clients."""

    def drain(count: int) -> None:
        with WirePeer(server.port) as peer:
            peer.send(P.CAN_DO, b"reverse")
            while count:
                packet = peer.ask(P.GRAB_JOB)
                assert packet is not None
                if packet.type == P.JOB_ASSIGN:
                    count -= 1
                    type_ = P.WORK_FAIL if packet.args[2] == b"bad" else P.WORK_COMPLETE
                    peer.send(
                        type_, packet.args[0], *([] if type_ == P.WORK_FAIL else [packet.args[2][::-1]])
                    )
            peer.ask(P.ECHO_REQ, b"")

    worker = asyncio.ensure_future(asyncio.to_thread(drain, 200 + 20 + 3 + 2))
    async with GearmanClient(f"127.0.0.1:{server.port}") as client:
        tasks = [Task("reverse", b"%03d" % number) for number in range(200)]
        seen = {}
        async with client.submit_many(iter(tasks), outstanding=7) as stream:
            async for outcome in stream:
                seen[outcome.index] = outcome.get()
        assert seen == {number: (b"%03d" % number)[::-1] for number in range(200)}
        assert await gather(client, tasks[:20]) == [(b"%03d" % number)[::-1] for number in range(20)]
        assert await map_reduce(client, "reverse", [b"ab", b"cd", b"ef"], b"".join) == b"badcfe"
        with pytest.raises(PartsFailed) as failed:
            await gather(client, [Task("reverse", b"ok"), Task("reverse", b"bad")])
        assert failed.value.results == [b"ko", None]
        handles = [
            outcome.get()
            async for outcome in client.submit_many([Task("later"), Task("later")], background=True)
        ]
        assert len(set(handles)) == 2
    await worker


# With servers that misbehave.


@in_loop
async def test_calls_share_a_connection_in_order() -> None:
    """Nothing is connected before it is needed; what waited for the connection goes out in order, once."""
    async with fake_server() as server:
        client = GearmanClient(server.address)
        calls = [asyncio.ensure_future(client.echo(b"%d" % number)) for number in range(20)]
        peer = await server.accept()
        assert [packet.args for packet in await peer.take(20)] == [[b"%d" % number] for number in range(20)]
        for number in range(20):
            peer.send(P.ECHO_RES, b"%d" % number)
        assert await asyncio.gather(*calls) == [b"%d" % number for number in range(20)]
        assert len(server.accepted) == 1
        await client.close()
        await peer.closed()


@in_loop
async def test_timeout_does_not_desynchronize() -> None:
    """The replies to calls that were given up are not taken for those of others."""
    async with fake_server() as server, GearmanClient(server.address) as client:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.submit("slow", b"1"), 0.01)
        waiting = asyncio.ensure_future(client.submit("slow", b"2"))
        peer = await server.accept()
        sent = await peer.take()
        if sent[0].args[2] == b"1":
            # It was sent before it was given up.
            peer.send(P.JOB_CREATED, b"H:1")
            sent = await peer.take()
        assert sent[0].args[2] == b"2"
        cancelled = [
            asyncio.ensure_future(client.echo(b"3")),
            asyncio.ensure_future(client.submit("f", b"4")),
        ]
        await peer.take(2)
        for call in cancelled:
            call.cancel()
        peer.send(P.JOB_CREATED, b"H:2")
        peer.send(P.ECHO_RES, b"3")
        peer.send(P.JOB_CREATED, b"H:4")
        peer.send(P.WORK_COMPLETE, b"H:4", b"dropped")
        peer.send(P.WORK_COMPLETE, b"H:1", b"dropped")
        peer.send(P.WORK_COMPLETE, b"H:2", b"taken")
        assert await waiting == b"taken"
        assert all(call.cancelled() for call in cancelled)


@in_loop
async def test_refusal_of_a_call_that_was_given_up_is_nobodys(caplog: pytest.LogCaptureFixture) -> None:
    """An error that comes for a call that was cancelled is neither another call's nor said in the log."""
    async with fake_server() as server, GearmanClient(server.address) as client:
        cancelled, kept = asyncio.ensure_future(client.submit("f")), asyncio.ensure_future(client.submit("g"))
        peer = await server.accept()
        await peer.take(2)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        peer.send(P.ERROR, b"QUEUE_ERROR", b"full")
        peer.send(P.JOB_CREATED, b"H:2")
        peer.send(P.WORK_COMPLETE, b"H:2", b"done")
        assert await kept == b"done"
    assert caplog.text == ""


@in_loop
async def test_call_cancelled_at_the_same_time_as_its_answer() -> None:
    """A call that is cancelled just when its answer comes is cancelled, and nothing breaks."""
    async with fake_server() as server, GearmanClient(server.address) as client:
        first = asyncio.ensure_future(client.submit("f", on_data=lambda _data: first.cancel()))
        peer = await server.accept()
        await peer.take()
        peer.writer.write(
            response(P.JOB_CREATED, b"H:1")
            + response(P.WORK_DATA, b"H:1", b"part")
            + response(P.WORK_DATA, b"H:1", b"part")
            + response(P.WORK_COMPLETE, b"H:1", b"end")
        )
        with pytest.raises(asyncio.CancelledError):
            await first
        echo = asyncio.ensure_future(client.echo(b"1"))
        await peer.take()
        peer.send(P.ECHO_RES, b"1")
        assert await echo == b"1"


@in_loop
async def test_what_was_not_sent_is_not_sent() -> None:
    """A call that is cancelled before there is a connection leaves no trace."""
    async with fake_server() as server, GearmanClient(server.address) as client:
        cancelled = asyncio.ensure_future(client.echo(b"1"))
        await asyncio.sleep(0)
        cancelled.cancel()
        kept = asyncio.ensure_future(client.echo(b"2"))
        peer = await server.accept()
        assert await peer.take() == [Packet(P.ECHO_REQ, [b"2"])]
        peer.send(P.ECHO_RES, b"2")
        assert await kept == b"2"


@in_loop
async def test_what_is_cancelled_just_before_it_is_sent_is_not_sent() -> None:
    """Nor is a call that is cancelled in the very turn in which the connection is made."""

    class Client(GearmanClient):
        def connection_ready(self, connection: Any) -> None:
            cancelled.future.cancel()
            super().connection_ready(connection)

    async with fake_server() as server, Client(server.address) as client:
        cancelled = client.begin(echo_request(b"1"), Callbacks())
        kept = client.begin(echo_request(b"2"), Callbacks())
        peer = await server.accept()
        assert await peer.take() == [Packet(P.ECHO_REQ, [b"2"])]
        peer.send(P.ECHO_RES, b"2")
        assert await kept.future == b"2"


@in_loop
async def test_callback_that_raises_fails_its_own_job_only() -> None:
    """The call ends with the callback's exception, and the connection goes on."""
    async with fake_server() as server, GearmanClient(server.address) as client:

        def fail(_data: bytes) -> None:
            raise ZeroDivisionError("mine")

        bad = asyncio.ensure_future(client.submit("f", on_data=fail))
        good = asyncio.ensure_future(client.submit("f"))
        peer = await server.accept()
        await peer.take(2)
        for packet in ((P.JOB_CREATED, b"H:1"), (P.JOB_CREATED, b"H:2"), (P.WORK_DATA, b"H:1", b"")):
            peer.send(*packet)
        with pytest.raises(ZeroDivisionError):
            await bad
        peer.send(P.WORK_COMPLETE, b"H:1", b"dropped")
        peer.send(P.WORK_DATA, b"H:2", b"a")
        peer.send(P.WORK_COMPLETE, b"H:2", b"b")
        assert await good == b"ab"


@in_loop
async def test_lost_connection_fails_what_waits_and_comes_back() -> None:
    """What waits fails with the job's name, what is retried is submitted anew, and the next call connects."""
    async with fake_server() as server, GearmanClient(server.address) as client:
        lost = asyncio.ensure_future(client.submit("f", b"1"))
        retried = asyncio.ensure_future(client.submit("f", b"2", retry=True))
        peer = await server.accept()
        await peer.take(2)
        peer.send(P.JOB_CREATED, b"H:1")
        peer.writer.close()
        with pytest.raises(ConnectionLost) as raised:
            await lost
        assert (raised.value.function, raised.value.handle) == (b"f", b"H:1")
        peer = await server.accept()
        assert (await peer.take())[0].args == [b"f", b"", b"2"]
        peer.send(P.JOB_CREATED, b"H:1")
        peer.send(P.WORK_COMPLETE, b"H:1", b"done")
        assert await retried == b"done"


@in_loop
async def test_connection_is_made_again_by_itself() -> None:
    """A client that has nothing to ask is connected again too."""
    async with fake_server() as server, GearmanClient(server.address, retry_policy=lambda _n: 0.01) as client:
        client.hurry()
        for _ in range(3):
            peer = await server.accept()
            peer.writer.close()
        await server.accept()
        assert not client.is_down


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\0RES\0\0\0\xff\0\0\0\0",
        response(P.ECHO_RES, b"another"),
        response(P.JOB_CREATED, b"H:1"),
        response(P.NOOP),
    ],
)
def test_garbage_ends_the_connection(data: bytes) -> None:
    """What makes no sense fails what waits, and the next call goes over a new connection."""

    @in_loop
    async def test() -> None:
        async with fake_server() as server, GearmanClient(server.address) as client:
            echo = asyncio.ensure_future(client.echo(b"1"))
            peer = await server.accept()
            await peer.take()
            peer.writer.write(data)
            with pytest.raises(RemoteProtocolError, match=server.address):
                await echo
            again = asyncio.ensure_future(client.echo(b"2"))
            peer = await server.accept()
            assert await peer.take() == [Packet(P.ECHO_REQ, [b"2"])]
            peer.send(P.ECHO_RES, b"2")
            assert await again == b"2"

    test()


@in_loop
async def test_silent_server_is_given_up() -> None:
    """A server that does not answer is given up after the ping interval."""
    async with fake_server() as server, GearmanClient(server.address, ping_interval=0.1) as client:
        waiting = asyncio.ensure_future(client.submit("f"))
        await server.accept()
        with pytest.raises(ConnectionLost):
            await waiting


@in_loop
async def test_server_that_is_not_there() -> None:
    """Each call says at once that nobody is there, and the one after the server's start goes through."""
    async with fake_server() as server:
        port = server.port
    client = GearmanClient(f"127.0.0.1:{port}", retry_policy=lambda _attempt: 3600.0)
    for _ in range(3):
        with pytest.raises(NoServers, match=f"cannot connect to 127.0.0.1:{port}"):
            await client.submit("f")
    assert client.is_down
    back = FakeServer()
    await back.start(port)
    # By itself it looks again after an hour.
    for _ in range(100):
        await asyncio.sleep(0)
    assert back.accepted == []
    echo = asyncio.ensure_future(client.echo(b"1"))
    peer = await back.accept()
    await peer.take()
    peer.send(P.ECHO_RES, b"1")
    assert await echo == b"1"
    await client.close()
    await back.stop()


@in_loop
async def test_host_that_cannot_be() -> None:
    """Whatever stands in the way of a connection is said to those who wait."""
    async with GearmanClient("a" * 70 + ".invalid") as client:
        with pytest.raises(NoServers, match="cannot connect"):
            await client.echo(b"1")


@in_loop
async def test_close_fails_what_waits() -> None:
    """Closing ends calls that were sent and calls that were not; later ones are refused; twice is once."""
    async with fake_server() as server:
        client = GearmanClient(server.address)
        sent = asyncio.ensure_future(client.submit("f"))
        peer = await server.accept()
        await peer.take()
        await client.close()
        with pytest.raises(ConnectionLost):
            await sent
        await client.close()
        with pytest.raises(NoServers, match="is closed"):
            await client.echo(b"1")
        other = GearmanClient(server.address)
        unsent = asyncio.ensure_future(other.submit("f"))
        await asyncio.sleep(0)
        await other.close()
        with pytest.raises(NoServers, match="was closed"):
            await unsent


@in_loop
async def test_refused_option_is_no_harm() -> None:
    """A server that knows no exceptions refuses the option, and all else goes on."""
    async with fake_server() as server, GearmanClient(server.address) as client:
        echo = asyncio.ensure_future(client.echo(b"1"))
        peer = await server.peers.get()
        await peer.take(2)
        peer.send(P.ERROR, b"UNKNOWN_OPTION", b"no")
        peer.send(P.ECHO_RES, b"1")
        assert await echo == b"1"


@in_loop
async def test_unix_socket(tmp_path: Path) -> None:
    """A server may be reached by a UNIX socket."""
    with TwistdGearman(tmp_path, "--store", "memory:", f"--listen=unix:{tmp_path / 'socket'}"):
        async with GearmanClient(f"unix:{tmp_path / 'socket'}", exceptions=False) as client:
            assert await client.echo(b"1") == b"1"


@in_loop
async def test_stream_is_bounded_and_can_be_left() -> None:
    """No more jobs are on their way than was said, and leaving a stream cancels them."""
    async with fake_server() as server, GearmanClient(server.address) as client:
        made: list[int] = []

        def tasks() -> Iterator[Task]:
            for number in range(1000):
                made.append(number)
                yield Task("f", b"%d" % number)

        async with client.submit_many(tasks(), outstanding=3) as stream:
            first = asyncio.ensure_future(stream.__anext__())
            peer = await server.accept()
            await peer.take(3)
            peer.send(P.JOB_CREATED, b"H:1")
            peer.send(P.WORK_COMPLETE, b"H:1", b"one")
            assert (await first).get() == b"one"
            assert len(made) == 3
        echo = asyncio.ensure_future(client.echo(b"1"))
        await peer.take()
        peer.send(P.JOB_CREATED, b"H:2")
        peer.send(P.JOB_CREATED, b"H:3")
        peer.send(P.ECHO_RES, b"1")
        assert await echo == b"1"
        with pytest.raises(ValueError, match="outstanding"):
            client.submit_many([], outstanding=0)


# What is checked before anything is sent.


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda client: client.submit("f", "text"), TypeError),
        (lambda client: client.submit("f\0"), LocalProtocolError),
        (lambda client: client.submit_at("f", b"", datetime(2033, 1, 1)), LocalProtocolError),
        (lambda client: client.submit_recurring("f", b"", "daily", unique=b"u"), LocalProtocolError),
        (lambda client: client.status("H:1"), TypeError),
    ],
)
@pytest.mark.parametrize("kind", [GearmanClient, lambda server: ServerPool([server])])
def test_bad_arguments_are_refused(kind: Any, call: Callable[[Any], Any], error: type[Exception]) -> None:
    """What cannot be sent raises before anything is connected."""

    @in_loop
    async def test() -> None:
        async with fake_server() as server:
            async with kind(server.address) as client:
                with pytest.raises(error):
                    await call(client)
            assert server.accepted == []

    test()


@pytest.mark.parametrize(
    "make",
    [
        lambda: GearmanClient("host:port"),
        lambda: GearmanClient("unix:"),
        lambda: GearmanClient(4730),  # type: ignore[arg-type]
        lambda: GearmanClient(ping_interval=0),
        lambda: ServerPool([]),
        lambda: ServerPool(["a", "a"]),
        lambda: ServerPool(["a"], choice="best"),
        lambda: ServerPool(["a"], patience=-1),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], object]) -> None:
    """Addresses and numbers that make no sense are refused at once."""
    with pytest.raises(ConfigError):
        make()


def test_another_event_loop_is_refused() -> None:
    """A client that was used in one event loop says so in another, rather than to wait for ever."""
    client = GearmanClient("127.0.0.1:1")

    async def use() -> None:
        await client.echo(b"1")

    with pytest.raises(NoServers):
        asyncio.run(use())
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(use())


def test_it_imports_nothing_of_twisted() -> None:
    """No module of Twisted or zope is imported, neither at the start nor while it runs."""
    code = (
        "import asyncio, sys\n"
        "from gearman_twisted.aio import GearmanClient, ServerPool\n"
        "from gearman_twisted.errors import NoServers\n"
        "async def main():\n"
        "    for client in (GearmanClient('127.0.0.1:1'), ServerPool(['127.0.0.1:1'], patience=0)):\n"
        "        try:\n"
        "            await client.submit('f')\n"
        "        except NoServers:\n"
        "            await client.close()\n"
        "        else:\n"
        "            raise SystemExit('it was there')\n"
        "asyncio.run(main())\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('twisted', 'zope')])\n"
    )
    done = run(sys.executable, "-c", code)
    assert (done.stdout, done.stderr) == (b"[]\n", b"")
