"""The server's TCP transport: it sends at once, and reads large packets in large pieces."""

from __future__ import annotations

from typing import Any

from twisted.internet import main, tcp

from gearman_twisted.runtime.transport import write_at_once
from gearman_twisted.server.readers import Readers

# How much is read at a time: at first, and at most from a peer that sends large packets. The first is small
# enough that to decode the tiny packets of ten peers takes about as long as a turn.
_FIRST_READ = 16_384
_LARGEST_READ = 1 << 20


class PromptServer(tcp.Server):
    """The server's side of a TCP connection; sends without waiting for writability.

    Twisted's own moves 64 KiB in and 128 KiB out with each turn of the reactor; here a large packet takes a
    fraction of the turns.

    Args:
        readers: reads it.
        arguments: those of ``tcp.Server``.
    """

    write = write_at_once  # type: ignore[assignment] # Twisted's says nothing of what is left

    bufferSize = _FIRST_READ  # noqa: N815 - Twisted names it

    def __init__(self, readers: Readers, *arguments: Any) -> None:
        self._readers = readers
        super().__init__(*arguments)

    def startReading(self) -> None:
        self._readers.add(self)

    def stopReading(self) -> None:
        self._readers.remove(self)
        # A paused peer had sent too much to be handled at once.
        self.bufferSize = _FIRST_READ

    def doRead(self) -> Any:
        """Read what is there; return why the connection is lost, if it is."""
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
        """Send as much as the socket takes, without a limit."""
        try:
            return self.socket.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            return tcp.Server.writeSomeData(self, data)
