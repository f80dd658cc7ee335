"""What is special to the client in asyncio: its event loop, its tasks, and that Twisted is not imported."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest

from gearman_twisted.aio import AdminClient, GearmanClient, GearmanWorker, ServerPool
from gearman_twisted.errors import ConfigError, NoServers
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.asyncio_peers import FakeServer, fake_server, in_loop
from tests.kit.client_rig import ClientRig, ServerEnd
from tests.kit.loops import AsyncioTestLoop, MemoryConnection
from tests.kit.servers import run

P = PacketType


@in_loop
async def test_calls_share_a_connection_in_order() -> None:
    """What tasks ask before there is a connection goes out in order, once, over one connection."""
    async with fake_server() as server:
        client = GearmanClient(server.address)
        calls = [asyncio.create_task(client.echo(b"%d" % number)) for number in range(20)]
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


def test_what_is_cancelled_just_before_it_is_sent_is_not_sent() -> None:
    """A call whose task is cancelled in the very turn in which the connection is made is not sent."""
    loop = AsyncioTestLoop()
    rig = ClientRig(loop)
    cancelled, kept = rig.calls.echo(b"1"), rig.calls.echo(b"2")
    peer, made = rig.server.attempts.pop()
    connection = MemoryConnection(loop, peer)
    rig.server.connections.append(connection)

    def connect() -> None:
        cancelled.cancel()
        peer.connected(connection)
        made.succeed(None)

    loop.call(connect)
    end = ServerEnd(connection)
    assert end.taken()[1:] == [Packet(P.ECHO_REQ, [b"2"])]
    end.send(P.OPTION_RES, b"exceptions")
    end.send(P.ECHO_RES, b"2")
    assert kept.end() == b"2"
    loop.close()


@in_loop
async def test_host_that_cannot_be() -> None:
    """Whatever stands in the way of a connection is said to those who wait."""
    async with GearmanClient("a" * 70 + ".invalid") as client:
        with pytest.raises(NoServers, match="cannot connect"):
            await client.echo(b"1")


@pytest.mark.parametrize(
    "make",
    [
        lambda: GearmanClient("unix:"),
        lambda: GearmanClient(4730),  # type: ignore[arg-type]
    ],
)
def test_bad_addresses_are_refused(make: Callable[[], object]) -> None:
    """Addresses that make no sense are refused at once."""
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize("kind", [GearmanClient, lambda server: ServerPool(server, patience=0)])
def test_another_event_loop_is_refused(kind: Callable[[str], GearmanClient | ServerPool]) -> None:
    """A client that was not closed in one event loop says so in another, rather than to wait for ever."""
    client = kind("127.0.0.1:1")

    async def use() -> None:
        with pytest.raises(NoServers):
            await client.echo(b"1")

    asyncio.run(use())
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(use())


@pytest.mark.parametrize("kind", [GearmanClient, ServerPool])
def test_another_event_loop_once_it_is_closed(kind: Callable[[str], GearmanClient | ServerPool]) -> None:
    """A client that was closed may be used again, also in another event loop."""
    server = FakeServer()
    clients: list[GearmanClient | ServerPool] = []

    async def use() -> None:
        await server.start(server.port if clients else 0)
        if not clients:
            clients.append(kind(server.address))
        async with clients[0] as client:
            echo = asyncio.ensure_future(client.echo(b"1"))
            peer = await server.accept()
            await peer.take()
            peer.send(P.ECHO_RES, b"1")
            assert await echo == b"1"
        await server.stop()

    for _ in range(2):
        server.peers = asyncio.Queue()
        server.accepted.clear()
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
    assert done.stdout == b"[]\n"
    # A program that has set up no logging is told why it waits, and nothing else.
    lines = done.stderr.splitlines()
    assert [line for line in lines if not line.startswith(b"cannot connect to 127.0.0.1:1: ")] == []


@pytest.mark.parametrize("make", [GearmanClient, ServerPool, AdminClient, GearmanWorker])
def test_ssl_takes_a_context(make: Any) -> None:
    """What is no context is refused when the client is made, not when it connects."""
    with pytest.raises(ConfigError, match=r"ssl takes an ssl\.SSLContext, not 3"):
        make("127.0.0.1:4730", ssl=3)
