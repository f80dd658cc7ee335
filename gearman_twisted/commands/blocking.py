"""One connection and some timers, in a process that does nothing else: the client of ``gearman``.

It stands in for an event loop. To load Twisted, or asyncio, takes longer than most calls of the command.
"""

from __future__ import annotations

import heapq
import math
import socket
from collections import deque
from collections.abc import Callable
from itertools import count
from select import POLLIN, POLLOUT, poll
from time import monotonic
from typing import TYPE_CHECKING

from gearman_twisted.commands.connection import reason_of
from gearman_twisted.commands.process import complain

if TYPE_CHECKING:
    from gearman_twisted.runtime.interfaces import Peer

_READ_BYTES = 1 << 20
# What TLS takes at a time has to be less than 2 GiB.
_WRITE_BYTES = 1 << 24


class _Timer:
    __slots__ = ("call",)

    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        self.call = None


class Timers:
    """Calls that are due later."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _Timer]] = []
        self._numbers = count()

    def later(self, delay: float, call: Callable[[], object]) -> _Timer:
        """Arrange for a call in so many seconds."""
        timer = _Timer(call)
        heapq.heappush(self._heap, (monotonic() + delay, next(self._numbers), timer))
        return timer

    def seconds_left(self) -> float | None:
        """Return the seconds until the next call, None if there is none."""
        while self._heap and self._heap[0][2].call is None:
            heapq.heappop(self._heap)
        return max(0.0, self._heap[0][0] - monotonic()) if self._heap else None

    def run_due(self) -> None:
        """Make the calls that are due now, not those that they arrange for."""
        now, newest = monotonic(), next(self._numbers)
        while self._heap and self._heap[0][0] <= now and self._heap[0][1] < newest:
            call = heapq.heappop(self._heap)[2].call
            if call is not None:
                call()


class Line:
    """A connected socket as a peer of ``runtime/`` sees it; nothing happens but in ``turn``.

    Args:
        connected: the socket, with or without TLS.
        peer: the protocol.
        is_tls: whether TLS protects it.
    """

    def __init__(self, connected: socket.socket, peer: Peer, *, is_tls: bool) -> None:
        connected.setblocking(False)
        if connected.family != socket.AF_UNIX:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.is_tls = is_tls
        self.is_open = True
        self._socket = connected
        self._peer = peer
        # What the socket has not taken, and how much that is. Nothing is copied: workloads may be large.
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._poll = poll()
        self._poll.register(connected)
        # What a read or a write raises that has to wait.
        self._waits: tuple[type[OSError], ...] = (BlockingIOError,)
        if is_tls:
            import ssl

            self._waits = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
        peer.connected(self)

    # What a Transport of runtime/ has.

    def write(self, data: bytes, /) -> None:
        """Send bytes, at once where the socket takes them."""
        if data:
            self._unsent.append(memoryview(data))
            self._unsent_bytes += len(data)
        self._send()

    def unsent(self) -> int:
        """Return how many bytes wait for the socket to take them."""
        return self._unsent_bytes

    def close(self) -> None:
        """Close it at once: what was asked has been answered."""
        self._lose("it was closed")

    abort = close

    def turn(self, timers: Timers, *, waits: bool = True) -> None:
        """Wait until something can be done, and do it.

        Args:
            timers: what is due meanwhile.
            waits: whether to wait, rather than do what can be done now.
        """
        left = timers.seconds_left() if waits else 0.0
        self._poll.modify(self._socket, POLLIN | POLLOUT if self._unsent else POLLIN)
        for _, events in self._poll.poll(None if left is None else math.ceil(left * 1000)):
            if events & ~POLLOUT:
                self._receive()
            if events & POLLOUT and self.is_open:
                self._send()
        timers.run_due()

    def _receive(self) -> None:
        # With TLS, more may have been read from the socket than is returned at a time.
        while self.is_open:
            try:
                data = self._socket.recv(_READ_BYTES)
            except self._waits:
                return
            except OSError as error:
                self._lose(reason_of(error, is_connected=True))
                return
            if not data:
                self._lose("the server closed it")
                return
            self._peer.received(data)
            if not self.is_tls:
                return

    def _send(self) -> None:
        try:
            while self._unsent:
                first = self._unsent[0]
                sent = self._socket.send(first[:_WRITE_BYTES])
                self._unsent_bytes -= sent
                if sent < len(first):
                    self._unsent[0] = first[sent:]
                else:
                    self._unsent.popleft()
        except self._waits:
            pass
        except OSError:
            # What has come may say why; the next read finds the end.
            self._unsent.clear()
            self._unsent_bytes = 0

    def _lose(self, reason: str) -> None:
        if self.is_open:
            self.is_open = False
            self._socket.close()
            self._peer.lost(reason)


class ErrorLog:
    """A log that prints errors; the rest is for programs that run long."""

    def debug(self, text: str, /, **fields: object) -> None:
        """Do nothing."""

    info = warning = debug

    def error(self, text: str, /, **fields: object) -> None:
        """Print a line."""
        complain(text.format(**fields))

    def failure(self, text: str, error: BaseException, /, **fields: object) -> None:
        """Print a line."""
        complain(f"{text.format(**fields)}: {error!r}")
