"""A client over memory, in either event loop, and the server's end of its connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.loops import MemoryConnection, MemoryPlace, Outcome, TestLoop
from tests.kit.peers import requests, response

P = PacketType
OPTION = Packet(P.OPTION_REQ, [b"exceptions"])
PING = Packet(P.ECHO_REQ, [b"ping"])


class ServerEnd:
    """The server's end of a connection, in packets.

    Attributes:
        connection: the same, in bytes.
    """

    def __init__(self, connection: MemoryConnection) -> None:
        self.connection = connection

    def taken(self) -> list[Packet]:
        """Return the packets that came since the last call."""
        return requests(self.connection.take())

    def send(self, type_: PacketType, *args: bytes) -> None:
        """Send a packet in one read."""
        self.connection.send(response(type_, *args))

    def send_bytes(self, data: bytes) -> None:
        """Send bytes in one read."""
        self.connection.send(data)

    def lose(self) -> None:
        """Lose the connection."""
        self.connection.lose()


class MemoryServer(MemoryPlace):
    """A place whose connections are seen in packets."""

    def __init__(self, loop: TestLoop, name: str = "memory:4730") -> None:
        super().__init__(loop, name)
        self._loop = loop

    def accept_peer(self) -> ServerEnd:
        """Connect the attempt that waits."""
        return ServerEnd(self.accept())


class Calls:
    """Makes calls, and watches what they come to.

    Args:
        loop: the event loop.
        client: what has the calls.
    """

    def __init__(self, loop: TestLoop, client: Any) -> None:
        self._loop = loop
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Outcome]:
        def call(*args: Any, **options: Any) -> Outcome:
            return self._loop.outcome(getattr(self._client, name)(*args, **options))

        return call


class ClientRig:
    """A client of one server in memory.

    Attributes:
        loop: the event loop.
        server: where it connects to.
        client: the client.
        calls: its calls, which are begun at once and return an ``Outcome``.
    """

    def __init__(self, loop: TestLoop, **options: Any) -> None:
        self.loop = loop
        self.server = MemoryServer(loop)
        options.setdefault("retry_policy", lambda _attempt: 10.0)
        self.client = loop.face("client").GearmanClient(self.server, **loop.options, **options)
        self.calls = Calls(loop, self.client)
        loop.at_end(self.close)

    @property
    def attempts(self) -> int:
        """How many attempts to connect wait for an answer."""
        return len(self.server.attempts)

    def start(self) -> None:
        """Connect without a call."""
        self.loop.call(self.client._core.hurry)

    def connect(self) -> ServerEnd:
        """Connect, and take what the client says first."""
        self.start()
        peer = self.server.accept_peer()
        peer.taken()
        peer.send(P.OPTION_RES, b"exceptions")
        return peer

    def close(self) -> Outcome:
        """Close the client, and its connections at the server's end."""
        closed = self.calls.close()
        for connection in self.server.connections:
            if connection.is_closing and not connection.is_lost:
                connection.lose()
        return closed
