"""What tests of asyncio need: an event loop each, a server that does what the test says, a simple worker."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

from gearman_twisted.wire.codec import Decoder
from gearman_twisted.wire.constants import REQ, PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.peers import response
from tests.kit.servers import PATIENCE, WirePeer

P = PacketType
OPTION = Packet(P.OPTION_REQ, [b"exceptions"])
GRAB = Packet(P.GRAB_JOB_UNIQ, [])
SLEEP = Packet(P.PRE_SLEEP, [])


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test in an event loop of its own, and holds it to leaving no task behind."""

    async def main(*args: Any, **kwargs: Any) -> None:
        await asyncio.wait_for(test(*args, **kwargs), PATIENCE)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert left == set()

    def wrapper(*args: Any, **kwargs: Any) -> None:
        asyncio.run(main(*args, **kwargs))

    wrapper.__name__ = test.__name__
    wrapper.__doc__ = test.__doc__
    wrapper.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    return wrapper


class Peer:
    """The server's end of a connection.

    Attributes:
        packets: those that were read and not taken.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.packets: list[Packet] = []
        self._decoder = Decoder(REQ)

    async def take(self, count: int = 1) -> list[Packet]:
        """The next packets."""
        while len(self.packets) < count:
            data = await self.reader.read(65536)
            assert data, "closed"
            self.packets += self._decoder.feed(data)
        taken, self.packets = self.packets[:count], self.packets[count:]
        return taken

    def send(self, type_: PacketType, *args: bytes) -> None:
        """Sends a packet."""
        self.writer.write(response(type_, *args))

    def assign(self, handle: bytes, function: bytes, workload: bytes = b"") -> None:
        """Gives a worker a job."""
        self.send(P.JOB_ASSIGN_UNIQ, handle, function, b"", workload)

    async def closed(self) -> None:
        """Returns when the other end has closed the connection."""
        while await self.reader.read(65536):
            pass


class FakeServer:
    """Accepts connections, and does nothing else by itself."""

    def __init__(self) -> None:
        self.peers: asyncio.Queue[Peer] = asyncio.Queue()
        self.accepted: list[Peer] = []

    async def accept(self) -> Peer:
        """The next connection, behind what each begins with."""
        peer = await self.peers.get()
        assert await peer.take() == [OPTION]
        peer.send(P.OPTION_RES, b"exceptions")
        return peer

    async def accept_worker(self, *functions: bytes) -> Peer:
        """The next connection of a worker, behind what it begins with."""
        peer = await self.peers.get()
        assert await peer.take(len(functions) + 1) == [
            *(Packet(P.CAN_DO, [name]) for name in functions),
            GRAB,
        ]
        return peer

    async def start(self, port: int = 0) -> None:
        """Listens."""
        self.server = await asyncio.start_server(self._connected, "127.0.0.1", port)
        self.port: int = self.server.sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        self.accepted.append(peer)
        self.peers.put_nowait(peer)

    async def stop(self) -> None:
        """Listens no longer, and closes all connections."""
        self.server.close()
        for peer in self.accepted:
            peer.writer.close()
            with contextlib.suppress(ConnectionError):
                await peer.writer.wait_closed()
        await self.server.wait_closed()


@contextlib.asynccontextmanager
async def fake_server() -> AsyncIterator[FakeServer]:
    """A server that does what the test says."""
    server = FakeServer()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def work(port: int, function: bytes, answer: Callable[[WirePeer, bytes, bytes], None]) -> None:
    """Does one job of a function, as any worker would."""
    with WirePeer(port) as peer:
        peer.send(P.CAN_DO, function)
        peer.send(P.PRE_SLEEP)
        peer.receive()
        while (packet := peer.ask(P.GRAB_JOB)) is not None and packet.type != P.JOB_ASSIGN:
            assert packet.type in (P.NO_JOB, P.NOOP)
        assert packet is not None
        answer(peer, packet.args[0], packet.args[2])
        # All of it has arrived before the connection is closed.
        while (echoed := peer.ask(P.ECHO_REQ, b"")) is not None and echoed.type != P.ECHO_RES:
            pass


def working(port: int, function: bytes, answer: Callable[[WirePeer, bytes, bytes], None]) -> Awaitable[None]:
    """The same, beside the event loop."""
    return asyncio.ensure_future(asyncio.to_thread(work, port, function, answer))


def reverse(peer: WirePeer, handle: bytes, workload: bytes) -> None:
    """Ends a job with its workload from back to front."""
    peer.send(P.WORK_COMPLETE, handle, workload[::-1])


def talk(peer: WirePeer, handle: bytes, workload: bytes) -> None:
    """Sends all there is to send of a job, and ends it."""
    peer.send(P.WORK_DATA, handle, b"part")
    peer.send(P.WORK_WARNING, handle, b"warning")
    peer.send(P.WORK_STATUS, handle, b"1", b"2")
    peer.send(P.WORK_COMPLETE, handle, workload)
