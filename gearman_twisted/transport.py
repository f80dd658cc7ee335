"""A TCP transport that sends at once, how much a transport still has to send, and how it is closed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet import abstract, main, tcp

from gearman_twisted.readers import Readers

# How much is read at a time: at first, and at most from a peer that sends large packets.
_FIRST_READ = 65_536
_LARGEST_READ = 1 << 20


def _write_at_once(transport: Any, data: bytes) -> bool:
    """Sends what the socket takes now, and leaves the rest to the reactor; returns whether there is no rest.

    Twisted's own ``write`` registers for writability, polls, and sends then: two ``epoll_ctl`` and a poll for
    each packet. Nearly always the socket could have taken it at once.
    """
    if transport.connected and not (
        transport._tempDataLen or transport.dataBuffer or transport.TLS or transport.disconnecting
    ):
        try:
            sent = transport.socket.send(data)
        except OSError:
            # Full, or broken: the reactor finds out which and says so in the usual way.
            sent = 0
        if sent == len(data):
            return True
        if sent:
            # The rest waits where it is, and is not copied.
            transport.dataBuffer = data
            transport.offset = sent
            transport.startWriting()
            return False
    tcp.Connection.write(transport, data)  # type: ignore[no-untyped-call]
    return False


class PromptServer(tcp.Server):
    """The server's side of a TCP connection, which does not wait for writability before it sends.

    And Twisted's own moves 64 KiB in and 128 KiB out with each turn of the reactor; a large packet is moved
    in a fraction of the turns here.

    Args:
        readers: reads it.
        arguments: those of ``tcp.Server``.
    """

    write = _write_at_once  # type: ignore[assignment] # Twisted's says nothing of what is left

    bufferSize = _FIRST_READ  # noqa: N815 - Twisted names it

    def __init__(self, readers: Readers, *arguments: Any) -> None:
        self._readers = readers
        super().__init__(*arguments)

    def startReading(self) -> None:
        """Wants to be read."""
        self._readers.add(self)

    def stopReading(self) -> None:
        """Does not want to be read."""
        self._readers.remove(self)

    def doRead(self) -> Any:
        """Reads what is there; returns why the connection is lost, if it is."""
        size = self.bufferSize
        try:
            data = self.socket.recv(size)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return main.CONNECTION_LOST
        if not data:
            return main.CONNECTION_DONE
        if len(data) == size:
            self.bufferSize = min(2 * size, _LARGEST_READ)
        elif size > _FIRST_READ:
            self.bufferSize = max(size // 2, _FIRST_READ)
        self.protocol.dataReceived(data)
        return None

    def writeSomeData(self, data: Any) -> Any:
        """Sends as much as the socket takes, without a limit."""
        try:
            return self.socket.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            return tcp.Server.writeSomeData(self, data)


def sender(transport: Any) -> Callable[[bytes], object]:
    """What to send with over a connection that was just made: at once, where it is plain TCP or UNIX."""
    return partial(_write_at_once, transport) if isinstance(transport, tcp.Connection) else transport.write


def unsent_bytes(transport: object) -> int:
    """How many bytes a transport keeps until its peer reads; 0 where that cannot be told."""
    if isinstance(transport, abstract.FileDescriptor):
        return len(transport.dataBuffer) - transport.offset + transport._tempDataLen
    lower = getattr(transport, "transport", None)  # TLS over TCP
    return unsent_bytes(lower) if lower is not None else 0


def close(transport: Any) -> None:
    """Closes a transport once all that was written is sent.

    Over TLS, Twisted's own way waits for the goodbye of the peer, which may never come, and is not read where
    reading is paused.
    """
    transport.loseConnection()
    if not isinstance(transport, abstract.FileDescriptor):
        lower = getattr(transport, "transport", None)  # TLS over TCP
        if lower is not None:
            lower.loseConnection()
