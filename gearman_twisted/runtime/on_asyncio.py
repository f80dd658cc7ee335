"""asyncio as the event loop of client and worker. Imports no Twisted."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import random
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from ssl import SSLContext
from typing import Any, TypeVar

import attrs

from gearman_twisted.errors import ConfigError
from gearman_twisted.runtime.interfaces import Log, Peer, Place, Process, ProcessPeer, Runtime
from gearman_twisted.runtime.threads import DAEMON_THREADS
from gearman_twisted.wire.hostport import split_host_port

_T = TypeVar("_T")

# Seconds that an attempt to connect may take; as long as Twisted's endpoints try.
_CONNECT_PATIENCE = 30.0


class FuturePromise(asyncio.Future[Any]):
    """A Future that core code settles, whichever loop it runs in.

    Args:
        on_cancel: called at once when it is cancelled, by its task too.
        loop: the loop.
    """

    def __init__(self, on_cancel: Callable[[], object] | None, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._on_cancel = on_cancel

    succeed = asyncio.Future.set_result
    fail = asyncio.Future.set_exception

    def cancel(self, msg: Any = None) -> bool:
        if self.done():
            return False
        if self._on_cancel is not None:
            self._on_cancel()
        return super().cancel(msg)


class _Transport:
    """An asyncio transport as client and worker write to it."""

    __slots__ = ("abort", "close", "is_tls", "unsent", "write")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.is_tls = transport.get_extra_info("ssl_object") is not None
        # Its own methods, to save a call for each.
        self.write: Callable[[bytes], object] = transport.write
        self.unsent: Callable[[], int] = transport.get_write_buffer_size
        self.close: Callable[[], object] = transport.close
        self.abort: Callable[[], object] = transport.abort


class PeerProtocol(asyncio.Protocol):
    """An asyncio protocol that hands everything to a peer.

    Args:
        peer: the protocol of the connection.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        # asyncio calls this one; it saves a call for each read.
        self.data_received = peer.received  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is not None and connection.family != socket.AF_UNIX:
            # Otherwise a server that vanished is waited for, for ever, where pings are turned off.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # asyncio's own 256 KiB are mapped and unmapped for each read, which costs more than the read.
        if hasattr(transport, "max_size"):
            transport.max_size = _READ_BYTES
        self._peer.connected(_Transport(transport))

    def connection_lost(self, exc: Exception | None) -> None:
        self._peer.lost("it was closed" if exc is None else str(exc) or type(exc).__name__)


@attrs.frozen
class AddressPlace(Place):
    """A place that is reached by an address.

    Attributes:
        name: as it was written.
        host: by TCP.
        port: by TCP.
        path: of a UNIX socket, else empty.
        tls: how TLS is spoken, if it is.
    """

    name: str
    host: str
    port: int
    path: str
    tls: SSLContext | None

    @classmethod
    def of(cls, server: str | Place, tls: SSLContext | None = None) -> Place:
        """Return the place of a text: ``host``, ``host:port``, ``[IPv6]:port`` or ``unix:/path``.

        A place is returned as it is.

        Raises:
            ConfigError: it makes no sense.
        """
        if tls is not None:
            import ssl

            if not isinstance(tls, ssl.SSLContext):
                raise ConfigError(f"ssl takes an ssl.SSLContext, not {tls!r}")
        if isinstance(server, Place):
            return server
        if not isinstance(server, str):
            raise ConfigError(f"a server is given as text, not as {server!r}")
        if server.startswith("unix:"):
            path = server.removeprefix("unix:")
            if not path:
                raise ConfigError(f"{server!r} is not an address: write unix:/path")
            return cls(server, "", 0, path, tls)
        host, port = split_host_port(server)
        return cls(server, host, port, "", tls)

    async def connect(self, peer: Peer) -> None:
        try:
            await asyncio.wait_for(self._connect(peer), _CONNECT_PATIENCE)
        except asyncio.TimeoutError:
            raise TimeoutError(f"no answer within {_CONNECT_PATIENCE:g} seconds") from None

    async def _connect(self, peer: Peer) -> None:
        if self.tls is None:
            await self._open(peer)
            return
        import ssl

        try:
            await self._open(peer)
        except ssl.SSLCertVerificationError:
            raise
        except (ssl.SSLError, ConnectionResetError, ConnectionAbortedError) as error:
            reason = str(getattr(error, "reason", None) or error) or "the connection was closed"
            text = reason.lower().replace("_", " ")
            # Who sends an alert speaks TLS.
            question = "" if " alert " in text else "; does it speak TLS there?"
            raise ConnectionError(f"the TLS handshake failed: {text}{question}") from error

    async def _open(self, peer: Peer) -> None:
        loop = asyncio.get_running_loop()
        if self.path:
            await loop.create_unix_connection(
                lambda: PeerProtocol(peer),
                self.path,
                ssl=self.tls,
                server_hostname="localhost" if self.tls else None,
            )
        else:
            await loop.create_connection(lambda: PeerProtocol(peer), self.host, self.port, ssl=self.tls)


class _Watch:
    """A task for something that a function returned."""

    def __init__(
        self, result: Awaitable[object], ended: Callable[[object, BaseException | None], object]
    ) -> None:
        self._result = result
        self._ended = ended
        self._has_begun = False
        self._is_cancelled = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    def cancel(self) -> None:
        self._is_cancelled = True
        if self._has_begun:
            self._task.cancel()

    async def _run(self) -> None:
        self._has_begun = True
        if self._is_cancelled:
            # A task that is cancelled before it has begun would tell nobody.
            self._task.cancel()
        try:
            value = await self._result
        except BaseException as error:  # noqa: BLE001 - SystemExit too ends a job, not the loop
            self._ended(None, error)
        else:
            self._ended(value, None)


_READ_BYTES = 1 << 16


class _Process(Process):
    """A child process, and the pipes to it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, peer: ProcessPeer) -> None:
        self._loop = loop
        self._peer = peer
        self._readers: dict[int, int] = {}
        self._writers: dict[int, int] = {}
        self._unsent: dict[int, bytearray] = {}
        self._closing: set[int] = set()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def start(
        self,
        words: Callable[[Mapping[int, int]], Sequence[str | bytes]],
        writes: Sequence[int],
        reads: Sequence[int],
        environment: Mapping[bytes, bytes] | None,
    ) -> None:
        """Start it.

        Raises:
            OSError: it cannot be started.
        """
        theirs: dict[int, int] = {}
        try:
            for descriptor in writes:
                theirs[descriptor], self._writers[descriptor] = os.pipe()
            for descriptor in reads:
                self._readers[descriptor], theirs[descriptor] = os.pipe()
            self._popen = subprocess.Popen(
                words(theirs),
                stdin=theirs.get(0, subprocess.DEVNULL),
                stdout=theirs.get(1),
                stderr=theirs.get(2),
                pass_fds=[number for descriptor, number in theirs.items() if descriptor > 2],
                env=environment,
            )
        except OSError:
            for number in (*self._readers.values(), *self._writers.values()):
                os.close(number)
            raise
        finally:
            for number in theirs.values():
                os.close(number)
        for number in (*self._readers.values(), *self._writers.values()):
            os.set_blocking(number, False)
        for descriptor, number in self._readers.items():
            self._loop.add_reader(number, self._read, descriptor, number)
        DAEMON_THREADS.call(self._wait)

    def write(self, descriptor: int, data: bytes) -> None:
        if descriptor not in self._writers:
            return
        unsent = self._unsent.setdefault(descriptor, bytearray())
        was_empty = not unsent
        unsent += data
        if was_empty:
            self._send(descriptor)

    def close_pipe(self, descriptor: int) -> None:
        self._closing.add(descriptor)
        if not self._unsent.get(descriptor):
            self._close_writer(descriptor)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(number)

    def close(self) -> None:
        for descriptor in list(self._writers):
            self._close_writer(descriptor)
        for number in self._readers.values():
            self._loop.remove_reader(number)
            os.close(number)
        self._readers.clear()

    def _wait(self) -> None:
        status = self._popen.wait()
        # The loop may have been closed.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._peer.exited, status)

    def _read(self, descriptor: int, number: int) -> None:
        try:
            data = os.read(number, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._peer.output(descriptor, data)
        else:
            self._loop.remove_reader(number)
            os.close(number)
            del self._readers[descriptor]
            self._peer.pipe_closed(descriptor)

    def _send(self, descriptor: int) -> None:
        number, unsent = self._writers[descriptor], self._unsent[descriptor]
        try:
            del unsent[: os.write(number, unsent)]
        except BlockingIOError:
            pass
        except OSError:
            # The reader is gone. Not at once: the caller of write expects no callback.
            self._close_writer(descriptor)
            self._loop.call_soon(self._peer.pipe_closed, descriptor)
            return
        if unsent:
            self._loop.add_writer(number, self._send, descriptor)
            return
        self._loop.remove_writer(number)
        if descriptor in self._closing:
            self._close_writer(descriptor)

    def _close_writer(self, descriptor: int) -> None:
        number = self._writers.pop(descriptor, None)
        if number is not None:
            self._loop.remove_writer(number)
            os.close(number)


class _AsyncioLog(Log):
    """The log of a part of the package, in the standard library's logging."""

    def __init__(self, name: str) -> None:
        self._log = logging.getLogger(name)

    def _emit(
        self, level: int, text: str, fields: dict[str, object], error: BaseException | None = None
    ) -> None:
        if self._log.isEnabledFor(level):
            self._log.log(level, "%s", text.format_map(fields), exc_info=error)

    def debug(self, text: str, /, **fields: object) -> None:
        self._emit(logging.DEBUG, text, fields)

    def info(self, text: str, /, **fields: object) -> None:
        self._emit(logging.INFO, text, fields)

    def warning(self, text: str, /, **fields: object) -> None:
        self._emit(logging.WARNING, text, fields)

    def error(self, text: str, /, **fields: object) -> None:
        self._emit(logging.ERROR, text, fields)

    def failure(self, text: str, error: BaseException, /, **fields: object) -> None:
        self._emit(logging.ERROR, text, fields, error)


class AsyncioRuntime(Runtime):
    """asyncio's event loop: the one that runs when it is used first, and no other.

    Args:
        owner: what uses it, for the error message.
        is_strict: whether another event loop is refused even when the first one is closed, until ``release``.
    """

    cancelled: type[BaseException] = asyncio.CancelledError
    can_spawn = True

    def __init__(self, owner: str, *, is_strict: bool = False) -> None:
        self._owner = owner
        self._is_strict = is_strict
        self._loop: asyncio.AbstractEventLoop | None = None
        # Tasks that nobody awaits: the loop itself keeps only weak references to them.
        self._tasks: set[asyncio.Task[object]] = set()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that runs.

        Raises:
            RuntimeError: none runs, or another one than before.
        """
        running = asyncio.get_running_loop()
        if self._loop is not running:
            if self._loop is not None and (self._is_strict or not self._loop.is_closed()):
                raise RuntimeError(f"{self._owner} is used in another event loop")
            self._loop = running
        return running

    def release(self) -> None:
        """Allow another event loop: nothing waits in this one any more."""
        self._loop = None

    def now(self) -> float:
        return self.loop.time()

    def wall_time(self) -> float:
        return time.time()

    def later(self, delay: float, call: Callable[[], object]) -> asyncio.TimerHandle:
        return self.loop.call_later(delay, call)

    def from_thread(self, call: Callable[..., object], *arguments: object) -> None:
        # The loop may have been closed: the thread goes on.
        with contextlib.suppress(RuntimeError):
            assert self._loop is not None
            self._loop.call_soon_threadsafe(call, *arguments)

    def promise(self, on_cancel: Callable[[], object] | None = None) -> FuturePromise:
        return FuturePromise(on_cancel, self.loop)

    def start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        return self.loop.create_task(work)

    def background(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._background_done)
        return task

    def watch(
        self, result: object, ended: Callable[[object, BaseException | None], object]
    ) -> Callable[[], object] | None:
        return _Watch(result, ended).cancel if inspect.isawaitable(result) else None

    def in_thread(self, call: Callable[[], object]) -> None:
        DAEMON_THREADS.call(call)

    def spawn(
        self,
        words: Callable[[Mapping[int, int]], Sequence[str | bytes]],
        peer: ProcessPeer,
        *,
        writes: Sequence[int] = (),
        reads: Sequence[int] = (),
        environment: Mapping[bytes, bytes] | None = None,
    ) -> _Process:
        process = _Process(self.loop, peer)
        process.start(words, writes, reads, environment)
        return process

    def log(self, name: str) -> Log:
        return _AsyncioLog(f"gearman_twisted.{name}")

    def _background_done(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.log("runtime").failure("Bug in a background task", error)


def default_retry_policy() -> Callable[[int], float]:
    """Return the seconds to wait before connection attempt number n, a little different each time."""
    return lambda attempt: min(15.0, 0.2 * 1.5 ** min(attempt, 20)) * random.uniform(0.8, 1.2)
