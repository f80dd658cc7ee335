"""The server's end of connections that a client or a worker makes over a reactor in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet import error
from twisted.internet.interfaces import IProtocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from gearman_twisted.wire.codec import Decoder, encode
from gearman_twisted.wire.constants import REQ, RES, PacketType
from gearman_twisted.wire.packet import Packet


def requests(data: bytes) -> list[Packet]:
    """The packets in what was sent to a server."""
    return Decoder(REQ).feed(data)


def response(type_: PacketType, *args: bytes) -> bytes:
    """The bytes of a packet from a server."""
    return encode(RES, type_, *args)


def memory_reactor() -> MemoryReactorClock:
    """A reactor that connects nothing and whose time stands still."""
    return MemoryReactorClock()


class Transport(StringTransport):
    """A transport that counts its writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def write(self, data: bytes) -> None:
        """Take bytes."""
        self.writes += 1
        super().write(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Take bytes in pieces."""
        self.write(b"".join(data))


class Peer:
    """The server's end of a connection."""

    def __init__(self, protocol: IProtocol) -> None:
        self.protocol = protocol
        self.transport = Transport()
        protocol.makeConnection(self.transport)

    def taken(self) -> list[Packet]:
        """The packets that came since the last call."""
        data: bytes = self.transport.value()
        self.transport.clear()
        return requests(data)

    def types(self) -> list[PacketType]:
        """Their types."""
        return [PacketType(packet.type) for packet in self.taken()]

    def send(self, type_: PacketType, *args: bytes) -> None:
        """Send a packet in one read."""
        self.protocol.dataReceived(response(type_, *args))

    def send_bytes(self, data: bytes) -> None:
        """Send bytes in one read."""
        self.protocol.dataReceived(data)

    def is_closing(self) -> bool:
        """Whether the other end closes the connection."""
        return bool(self.transport.disconnecting)

    def is_aborted(self) -> bool:
        """Whether the other end has given the connection up."""
        return bool(self.transport.disconnected)

    def lose(self) -> None:
        """End the connection."""
        self.protocol.connectionLost(Failure(error.ConnectionDone()))


class MemoryServer:
    """Accepts or refuses what is connected over a ``MemoryReactorClock``, oldest first."""

    def __init__(self, reactor: MemoryReactorClock) -> None:
        self._reactor = reactor
        self._next = 0

    @property
    def attempts(self) -> int:
        """How many attempts wait for an answer."""
        return len(self._reactor.tcpClients) - self._next

    def accept(self) -> Peer:
        """Let the next attempt succeed."""
        return Peer(self._factory().buildProtocol(None))

    def refuse(self) -> None:
        """Let the next attempt fail."""
        factory = self._factory()
        factory.clientConnectionFailed(None, Failure(error.ConnectionRefusedError()))

    def _factory(self) -> Any:
        self._next += 1
        return self._reactor.tcpClients[self._next - 1][2]
