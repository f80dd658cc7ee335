"""What client and worker need of an event loop; ``on_twisted.py`` and ``on_asyncio.py`` provide it.

A Deferred and a Future are both awaitable, each in its own loop. So one coroutine serves both loops as long
as it awaits nothing but promises, what ``Runtime.start`` returned, and other such coroutines.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)


class Timer(Protocol):
    """A call that is due later."""

    def cancel(self) -> object:
        """Do not make the call. A no-op once it was made or cancelled."""


class Promise(Awaitable[_T_co], Protocol[_T_co]):
    """A result that is not there yet: a Deferred or a Future, as the caller's loop has it.

    It is settled at most once, by ``succeed`` or ``fail``; ``cancel`` settles it too.
    """

    def succeed(self, value: Any) -> object:
        """Settle it with a value."""

    def fail(self, error: BaseException) -> object:
        """Settle it with an error."""

    def cancel(self) -> object:
        """Call ``on_cancel``, then settle it with the loop's error of cancellation. A no-op once settled."""


class Started(Awaitable[_T_co], Protocol[_T_co]):
    """A coroutine that runs."""

    def cancel(self) -> object:
        """Raise the loop's error of cancellation where it waits."""


LOOP_ENDS = "the event loop ends"
"""What ``Peer.lost`` is given when the connection was closed here because its event loop ends."""


class Transport(Protocol):
    """A connection, to write to.

    Attributes:
        is_tls: whether TLS protects it.
    """

    is_tls: bool

    def write(self, data: bytes, /) -> object:
        """Send bytes, at once where the socket takes them; never blocks."""

    def unsent(self) -> int:
        """Return how many bytes wait for the socket to take them."""

    def close(self) -> object:
        """Close it once all that was written is sent."""

    def abort(self) -> object:
        """Close it at once."""


class Peer(Protocol):
    """The protocol of a connection. ``connected`` is called first, ``lost`` last, each once."""

    def connected(self, transport: Transport) -> None:
        """The connection was made."""

    def received(self, data: bytes) -> None:
        """Bytes came; at least one."""

    def lost(self, reason: str) -> None:
        """The connection is gone; the reason is for people."""


@runtime_checkable
class Place(Protocol):
    """Where a server is, and how to connect to it.

    Attributes:
        name: as the user wrote it; for logs and errors.
    """

    @property
    def name(self) -> str: ...

    def connect(self, peer: Peer) -> Awaitable[object]:
        """Connect, once; done when ``peer.connected`` was called.

        Raises:
            Exception: the connection failed; its text is for users.
        """


class ProcessPeer(Protocol):
    """Receives the events of a child process."""

    def output(self, descriptor: int, data: bytes) -> None:
        """Take what the process wrote to one of its descriptors."""

    def pipe_closed(self, descriptor: int) -> None:
        """Note that the pipe at one of its descriptors is closed."""

    def exited(self, status: int) -> None:
        """Note that the process has ended; what it wrote before may still be unread.

        Args:
            status: its exit status, or the number of a signal below zero.
        """


class Process(Protocol):
    """A child process, and the pipes to it. All methods are no-ops once it has ended.

    Attributes:
        pid: its number.
    """

    @property
    def pid(self) -> int: ...

    def write(self, descriptor: int, data: bytes) -> object:
        """Send to the process, as it reads; never blocks."""

    def close_pipe(self, descriptor: int) -> object:
        """Close a pipe to the process once all that was written is sent."""

    def signal(self, number: int) -> object:
        """Send it a signal."""

    def close(self) -> object:
        """Close all pipes at once: what is unread or unsent is dropped."""


class Log(Protocol):
    """A log. Texts have ``{name}`` where a field's value goes."""

    def debug(self, text: str, /, **fields: object) -> None: ...

    def info(self, text: str, /, **fields: object) -> None: ...

    def warning(self, text: str, /, **fields: object) -> None: ...

    def error(self, text: str, /, **fields: object) -> None: ...

    def failure(self, text: str, error: BaseException, /, **fields: object) -> None:
        """Log an error with its traceback."""


class Timers(Protocol):
    """Arranges for calls in the future."""

    def later(self, delay: float, call: Callable[[], object]) -> Timer:
        """Arrange for a call in so many seconds."""


class Runtime(Timers, Protocol):
    """An event loop, as client and worker see it.

    Attributes:
        cancelled: what is raised in a coroutine that is cancelled.
        can_spawn: whether it starts processes; tests in memory do not.
    """

    cancelled: type[BaseException]
    can_spawn: bool

    def now(self) -> float:
        """Return the time in seconds, from any start, that timers go by."""

    def wall_time(self) -> float:
        """Return the time of the wall clock, in seconds since 1970."""

    def from_thread(self, call: Callable[..., object], *arguments: object) -> None:
        """Arrange for a call in the loop's thread; the only method that other threads may use."""

    def promise(self, on_cancel: Callable[[], object] | None = None) -> Promise[Any]:
        """Make a promise.

        Args:
            on_cancel: called at once when the waiting call is cancelled.
        """

    def start(self, work: Coroutine[Any, Any, _T]) -> Started[_T]:
        """Run a coroutine; the caller awaits it."""

    def background(self, work: Coroutine[Any, Any, object]) -> Started[object]:
        """Run a coroutine that nobody awaits. An error that it raises is a bug, and logged as one."""

    def watch(
        self, result: object, ended: Callable[[object, BaseException | None], object]
    ) -> Callable[[], object] | None:
        """Call back when what a function of the user's has returned is settled.

        Args:
            result: a Deferred or coroutine, or something to await; or a plain value.
            ended: called once, with its value or its error; maybe before this returns.

        Returns:
            What cancels it; None for a plain value, for which nothing is called.
        """

    def in_thread(self, call: Callable[[], object]) -> None:
        """Make a call that raises nothing in a thread; one that goes on does not keep the process alive."""

    def spawn(
        self,
        words: Callable[[Mapping[int, int]], Sequence[str | bytes]],
        peer: ProcessPeer,
        *,
        writes: Sequence[int] = (),
        reads: Sequence[int] = (),
        environment: Mapping[bytes, bytes] | None = None,
    ) -> Process:
        """Start a process.

        Args:
            words: called for the program and its arguments, with the numbers that the descriptors of
                ``writes`` and ``reads`` have in the process: above 2, they may differ.
            peer: receives its events, never before this returns.
            writes: descriptors of the process that are pipes to it. Without 0, its input is empty.
            reads: those that are pipes from it. Its standard output and error are inherited if they are not
                among them.
            environment: its environment; that of this process if None.

        Raises:
            OSError: it cannot be started.
        """

    def log(self, name: str) -> Log:
        """Return the log of a part of the package.

        Args:
            name: the part, such as ``client``.
        """
