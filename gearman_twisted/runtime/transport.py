"""Twisted transports: sending at once, what is still unsent, and closing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet import abstract, tcp


def write_at_once(transport: Any, data: bytes) -> bool:
    """Send what the socket takes now, leave the rest to the reactor; return whether all was sent.

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


def sender(transport: Any) -> Callable[[bytes], object]:
    """Return the function to write to a new connection with: at once, where it is plain TCP or UNIX."""
    return partial(write_at_once, transport) if isinstance(transport, tcp.Connection) else transport.write


def unsent_bytes(transport: object) -> int:
    """Return how many bytes a transport keeps until its peer reads; 0 where that is not known."""
    if isinstance(transport, abstract.FileDescriptor):
        return len(transport.dataBuffer) - transport.offset + transport._tempDataLen
    lower = getattr(transport, "transport", None)  # TLS over TCP
    return unsent_bytes(lower) if lower is not None else 0


def close(transport: Any) -> None:
    """Close a transport once all that was written is sent.

    Over TLS, Twisted's own way waits for the goodbye of the peer, which may never come, and is not read where
    reading is paused.
    """
    transport.loseConnection()
    if not isinstance(transport, abstract.FileDescriptor):
        lower = getattr(transport, "transport", None)  # TLS over TCP
        if lower is not None:
            lower.loseConnection()
