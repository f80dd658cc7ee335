"""A TCP transport that sends at once, how much a transport still has to send, and how it is closed."""

from __future__ import annotations

from typing import Any

from twisted.internet import abstract, tcp


class PromptServer(tcp.Server):
    """The server's side of a TCP connection, which does not wait for writability before it sends.

    Twisted's own registers for writability, polls, and sends then: two ``epoll_ctl`` and a poll for
    each reply. Nearly always the socket could have taken it at once.
    """

    def write(self, data: bytes) -> None:
        """Sends what the socket takes now, and leaves the rest to the reactor."""
        if self.connected and not (self._tempDataLen or self.dataBuffer or self.TLS or self.disconnecting):
            try:
                sent = self.socket.send(data)
            except OSError:
                # Full, or broken: the reactor finds out which and says so in the usual way.
                sent = 0
            if sent == len(data):
                return
            data = data[sent:]
        tcp.Server.write(self, data)  # type: ignore[no-untyped-call]


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
