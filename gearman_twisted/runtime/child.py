"""Child processes: their output as lines, how they are ended, and when they and their output are gone."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Mapping, Sequence

from gearman_twisted.runtime.interfaces import Process, ProcessPeer, Runtime, Timer
from gearman_twisted.wire.shown import shown_lines

# Seconds that a process that was told to end may take to clean up.
END_PATIENCE = 3.0
# Seconds that output is waited for after the end: something that the process left behind may have it open.
READ_PATIENCE = 3.0
# A longer line is cut for the log.
MAX_LINE_BYTES = 4096


class Child(ProcessPeer):
    """A child process. Subclasses say what is done with its lines, and when it is gone.

    Args:
        runtime: the event loop.
        reads: its descriptors that are read.
        awaited: those of them that are read to their end before it is gone; all if None.

    Attributes:
        read_patience: seconds that output is waited for after the end, or None for as long as it takes.
    """

    read_patience: float | None = READ_PATIENCE

    def __init__(
        self, runtime: Runtime, reads: Sequence[int], awaited: Collection[int] | None = None
    ) -> None:
        self._runtime = runtime
        self._reads = reads
        self._open = set(reads if awaited is None else awaited)
        self._rest = dict.fromkeys(reads, b"")
        self._process: Process | None = None
        self._timers: set[Timer] = set()
        self._kill_timer: Timer | None = None
        self._status: int | None = None
        self._is_gone = False
        self._whenever_gone: list[Callable[[], object]] = []

    @property
    def pid(self) -> int:
        """Its number, once started."""
        assert self._process is not None
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended; what it wrote may be unread."""
        return self._status is not None

    def start(
        self,
        words: Callable[[Mapping[int, int]], Sequence[str | bytes]],
        *,
        writes: Sequence[int] = (),
        environment: Mapping[bytes, bytes] | None = None,
    ) -> None:
        """Start it; see ``Runtime.spawn``.

        Raises:
            OSError: it cannot be started.
        """
        self._process = self._runtime.spawn(
            words, self, writes=writes, reads=self._reads, environment=environment
        )

    def write(self, descriptor: int, data: bytes) -> None:
        """Send to the process, as it reads."""
        assert self._process is not None
        self._process.write(descriptor, data)

    def close_pipe(self, descriptor: int) -> None:
        """Close a pipe to the process."""
        assert self._process is not None
        self._process.close_pipe(descriptor)

    def signal(self, number: int) -> None:
        """Send it a signal. A no-op once it has ended."""
        if not self.has_ended and self._process is not None:
            self._process.signal(number)

    def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)

    def kill_in(self, seconds: float | None = None) -> None:
        """End it if it has not ended in so many seconds, or ``END_PATIENCE``; an earlier call is replaced."""
        if self._kill_timer is not None:
            self._kill_timer.cancel()
            self._kill_timer = None
        if not self.has_ended:
            self._kill_timer = self._runtime.later(
                END_PATIENCE if seconds is None else seconds, self.too_late
            )

    def terminate(self) -> None:
        """Tell it to end, and kill it if it does not."""
        self.signal(signal.SIGTERM)
        self.kill_in()

    def whenever_gone(self, call: Callable[[], object]) -> None:
        """Make a call when the process has ended and its output was read; at once if that is so."""
        if self._is_gone:
            call()
        else:
            self._whenever_gone.append(call)

    # For subclasses.

    def took_line(self, descriptor: int, line: str) -> None:
        """Take a line of output, without its end; not empty."""

    def gone(self, status: int) -> None:
        """Note that the process has ended and its output was read."""

    def too_late(self) -> None:
        """Kill a process that did not end when it was told."""
        self.kill()

    def after(self, delay: float, call: Callable[[], object]) -> None:
        """Make a call, if the process is not gone by then."""

        def due() -> None:
            self._timers.discard(timer)
            call()

        timer = self._runtime.later(delay, due)
        self._timers.add(timer)

    # Called by the runtime.

    def output(self, descriptor: int, data: bytes) -> None:
        *lines, rest = (self._rest[descriptor] + data).split(b"\n")
        while len(rest) > MAX_LINE_BYTES:
            lines.append(rest[:MAX_LINE_BYTES])
            rest = rest[MAX_LINE_BYTES:]
        self._rest[descriptor] = rest
        for line in lines:
            text = shown_lines(line.rstrip())
            if text:
                self.took_line(descriptor, text)

    def pipe_closed(self, descriptor: int) -> None:
        self._open.discard(descriptor)
        self._check_gone()

    def exited(self, status: int) -> None:
        self._status = status
        if self._kill_timer is not None:
            self._kill_timer.cancel()
            self._kill_timer = None
        if self._open and self.read_patience is not None:
            self.after(self.read_patience, self._read_enough)
        self._check_gone()

    def _read_enough(self) -> None:
        self._open.clear()
        self._check_gone()

    def _check_gone(self) -> None:
        if self._open or self._status is None or self._is_gone:
            return
        self._is_gone = True
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for descriptor, rest in self._rest.items():
            if rest:
                self.output(descriptor, b"\n")
        if self._process is not None:
            self._process.close()
        self.gone(self._status)
        waiting, self._whenever_gone = self._whenever_gone, []
        for call in waiting:
            call()


def how_it_ended(status: int) -> str:
    """Return for a person how a process ended, such as ``ended with status 3``."""
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
