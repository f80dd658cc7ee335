"""One job server: engine, store and clock. The only place where an Outbox is performed.

What the engine writes is handed to an ``Output``, which knows the connections.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gearman_twisted.engine.jobserver import JobServer
from gearman_twisted.engine.outbox import GivenUp, Outbox, Shutdown
from gearman_twisted.store.batch import GroupCommit
from gearman_twisted.store.contract import IJobStore, StoredJob
from gearman_twisted.wire.packet import Packet
from gearman_twisted.wire.shown import shown

# Seconds until jobs are asked for again that the store could not give back.
_LOAD_RETRY = 1.0

# Seconds after which a commit that was just begun may be over.
_COMMIT_TIME = 0.05

# Seconds until the engine's timer runs again after a bug in it.
_TICK_RETRY = 1.0

# Seconds between two looks at the wall clock, at most, while jobs wait for it.
_WALL_INTERVAL = 1.0

# By so many seconds the wall clock may differ from what the engine knows; from so many on the log says so.
_MAX_DRIFT = 0.1
_REPORTED_CHANGE = 1.0

# How often the clocks are compared, as the process may be interrupted between the two.
_MEASUREMENTS = 3

_NEVER = float("inf")


class Output(Protocol):
    """Where the engine's output goes."""

    def send(self, writes: dict[int, list[bytes]], closes: Sequence[int]) -> None:
        """Send chunks to connections by their numbers, then close some; numbers may be gone."""

    def opened(self) -> None:
        """The stored jobs are back: every packet may be handled from now on."""

    def saves_answered(self) -> None:
        """The store has done or failed something, and those who waited for it were told."""

    def memory_used_up(self) -> None:
        """A job was refused because the memory is used up."""


class _StoppedError(Exception):
    """The host was stopped before the stored jobs were back."""


class Host:
    """Runs the engine of a job server: performs what it decides, and tells it what happens.

    Args:
        engine: the rules.
        store: where background jobs are saved, if it is durable.
        clock: the time, and the one timer; a clock that is never set, if the program has one.
        wall: tells the seconds since 1970; the clock does if None.

    Attributes:
        engine: the same.
        store: the same.
        clock: the same.
        output: where output goes; set by the owner of the connections.
        on_ready: called with the number of stored jobs once they are back, before others are told.
        on_shutdown: called when an operator ends the server.
        on_idle: called each time that no job is left; None for not.
        is_loading: the stored jobs are not back yet.
        is_stopping: no more stored jobs are read, nor timers set; ``finish`` sets it, others may before.
    """

    log = Logger()
    output: Output

    def __init__(
        self,
        engine: JobServer,
        store: IJobStore,
        clock: IReactorTime,
        wall: Callable[[], float] | None = None,
    ) -> None:
        self.engine = engine
        self.store = store
        self.clock = clock
        self.on_ready: Callable[[int], object] = lambda _jobs: None
        self.on_shutdown: Callable[[Shutdown], object] = lambda _how: None
        self.on_idle: Callable[[], object] | None = None
        self.is_loading = True
        self.is_stopping = False
        self._commits = GroupCommit(
            store, self._saved, self._save_failed, clock=clock, patience=engine.settings.save_timeout
        )
        # What to forget once the store has been read.
        self._forgets: list[int] = []
        self._starting: Deferred[None] | None = None
        self._outcome: Failure | int | None = None
        self._waiting: list[Deferred[int]] = []
        self._timer: IDelayedCall | None = None
        self._timer_at = _NEVER
        self._wall = wall or clock.seconds
        engine.set_wall_clock(self._measure_offset())

    @property
    def is_started(self) -> bool:
        """Whether ``start`` was called."""
        return self._starting is not None

    @property
    def unsaved(self) -> int:
        """How many jobs wait for a commit to start."""
        return self._commits.pending

    def start(self) -> None:
        """Open the store and bring its jobs back, then handle what waits for them; see ``when_ready``."""
        self.engine.process_id = os.getpid()
        self.engine.is_loading = True
        self._starting = ensureDeferred(self._start()).addErrback(self._start_failed)

    def when_ready(self) -> Deferred[int]:
        """Wait until the stored jobs are back.

        Returns:
            A new Deferred that fires with how many there were, or fails with ``StoreError``, after which the
            host cannot be used. Cancelling it only stops the waiting.
        """
        waiting: Deferred[int] = Deferred(self._waiting.remove)
        self._waiting.append(waiting)
        self._tell_waiting()
        return waiting

    async def finish(self) -> None:
        """Finish what is being saved, and stop the timer. Running jobs stay in the store."""
        self.is_stopping = True
        if self._starting is not None:
            await self._starting
        self.is_loading = False
        await self._commits.flush()
        self._set_timer()

    # What happens to connections.

    def connect(self, number: int, peer: str) -> None:
        """Tell the engine of a new connection.

        Args:
            number: of the connection, never given twice.
            peer: the address.
        """
        self.perform(self.engine.connect(number, peer, self._now()))

    def receive(self, number: int, packets: list[Packet]) -> bool:
        """Have the engine handle packets of a connection; return whether replies may wait for the store."""
        out = self.engine.receive(number, packets, self._now())
        self.perform(out)
        return bool(out.has_gaps)

    def go_on(self, number: int) -> None:
        """Have the engine send more of a list to a connection."""
        self.perform(self.engine.go_on(number, self._now()))

    def disconnect(self, number: int) -> None:
        """Tell the engine that a connection is gone."""
        self.perform(self.engine.disconnect(number, self._now()))

    # What the engine wants.

    def perform(self, out: Outbox) -> None:
        """Do what the engine decided."""
        if out.writes or out.closes:
            self.output.send(out.writes, out.closes)
        if out.saves or out.forgets:
            if self.is_loading:
                self._forgets += out.forgets
            else:
                self._commits.add(out.saves, out.forgets)
        if out.awaits:
            self._commits.when_forgotten(partial(self._forgotten, out.awaits))
        for number, ids in out.loads:
            self._load(number, ids)
        if self.engine.due_by < self._timer_at:
            self._set_timer()
        if out.accepted is not None:
            self._log_accepted(out.accepted)
        if out.is_out_of_memory:
            self.output.memory_used_up()
        if out.given_up:
            self._log_given_up(out.given_up)
        if out.shutdown is not None:
            self.on_shutdown(out.shutdown)
        if self.on_idle is not None and not self.engine.job_count:
            self.on_idle()

    def _log_accepted(self, submissions: list[tuple[bytes, bytes, bytes]]) -> None:
        # COMPAT: for those who take gearmand's log apart.
        for submission in submissions:
            names = map(shown, submission)
            self.log.info("accepted,{names}", names=",".join(names), gearmand_level="NOTICE")

    def _log_given_up(self, jobs: list[GivenUp]) -> None:
        for job in jobs:
            self.log.error(
                "gave up job {handle} of {function!r}, unique {unique!r}: {reason}",
                handle=shown(job.handle),
                function=shown(job.function),
                unique=shown(job.unique),
                reason=shown(job.reason),
            )

    # The start.

    async def _start(self) -> None:
        try:
            await self.store.open()
            self.engine.limit_workloads(self.store.max_workload_bytes, self.store.description)
            jobs = await self.store.replay(self._restore)
        except _StoppedError:
            return
        if self.is_stopping:
            return
        self.engine.is_loading = False
        self.is_loading = False
        self._commits.add([], self._forgets)
        self.output.opened()
        self._set_timer()
        self._outcome = jobs
        self.on_ready(jobs)
        self._tell_waiting()

    def _restore(self, jobs: Sequence[StoredJob]) -> None:
        if self.is_stopping:
            raise _StoppedError
        now = self._now()
        for job in jobs:
            try:
                self.engine.restore(job, now)
            except ValueError as error:  # noqa: PERF203 - one damaged job does not keep the others back
                self.log.error(
                    "stored job {handle} is damaged; it is kept, but not run: {reason}",
                    handle=shown(job.handle),
                    reason=shown(str(error)),
                )

    def _start_failed(self, failure: Failure) -> None:
        self._outcome = failure
        if not self._waiting:
            self.log.failure("job server cannot start", failure)
        self._tell_waiting()

    def _tell_waiting(self) -> None:
        if self._outcome is not None:
            while self._waiting:
                self._waiting.pop(0).callback(self._outcome)  # a Failure becomes an errback

    # The store.

    def _saved(self, ids: Sequence[int]) -> None:
        self.perform(self.engine.saved(ids, self._now()))
        self.output.saves_answered()

    def _save_failed(self, ids: Sequence[int], reason: str) -> None:
        self.perform(self.engine.save_failed(ids, reason, self._now()))
        self.output.saves_answered()

    def _forgotten(self, number: int, error: str | None) -> None:
        self.perform(self.engine.forgotten(number, error, self._now()))
        self.output.saves_answered()

    def _load(self, number: int, ids: Sequence[int]) -> None:
        """Read jobs that the engine wants back; retried without end, since workers wait for them."""
        if self.is_stopping:
            return
        if not self._commits.has(ids):
            self.clock.callLater(_COMMIT_TIME, self._load, number, ids)
            return
        self.store.load(ids).addCallbacks(
            lambda jobs: self.perform(self.engine.loaded(number, jobs, self._now())),
            self._load_failed,
            errbackArgs=(number, ids),
        ).addErrback(lambda failure: self.log.failure("Bug in reading jobs back", failure))

    def _load_failed(self, failure: Failure, number: int, ids: Sequence[int]) -> None:
        self.log.error(
            "job store: {count} jobs cannot be read, retrying: {reason}",
            count=len(ids),
            reason=failure.getErrorMessage(),
        )
        self.clock.callLater(_LOAD_RETRY, self._load, number, ids)

    # The clocks.

    def _now(self) -> float:
        """Return the time for a call of the engine, whose wall clock is put right before."""
        now = self.clock.seconds()
        if not -_MAX_DRIFT < self._wall() - now - self.engine.wall_offset < _MAX_DRIFT:
            self._follow_wall_clock()
        return now

    def _measure_offset(self) -> float:
        """Return how far the wall clock is ahead, as it was measured with the shortest interruption."""
        best = _NEVER, 0.0
        for _ in range(_MEASUREMENTS):
            before = self.clock.seconds()
            wall = self._wall()
            best = min(best, (self.clock.seconds() - before, wall - before))
        return best[1]

    def _follow_wall_clock(self) -> None:
        offset = self._measure_offset()
        change = offset - self.engine.wall_offset
        if abs(change) < _MAX_DRIFT:
            return
        self.engine.set_wall_clock(offset)
        if abs(change) >= _REPORTED_CHANGE:
            self.log.warn(
                "the system clock was set {direction} by {seconds:.0f} s; scheduled jobs follow it",
                direction="back" if change < 0 else "forward",
                seconds=abs(change),
            )
        self._set_timer()

    # The timer.

    def _set_timer(self) -> None:
        """Set the timer for what is due next; if it is set too early, it finds nothing and is set again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        is_running = not (self.is_loading or self.is_stopping)
        self._timer_at = self.engine.next_deadline() if is_running else _NEVER
        if self._timer_at < _NEVER:
            delay = max(0.0, self._timer_at - self.clock.seconds())
            if self.engine.waits_for_wall_clock and self._wall != self.clock.seconds:
                delay = min(delay, _WALL_INTERVAL)
            self._timer = self.clock.callLater(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._timer_at = _NEVER
        try:
            self.perform(self.engine.tick(self._now()))
        except Exception:  # noqa: BLE001 - jobs that are due later must not wait for ever
            self.log.failure("Bug in the engine's timer")
            self._timer_at = self.clock.seconds() + _TICK_RETRY
            self._timer = self.clock.callLater(_TICK_RETRY, self._tick)
        else:
            self._set_timer()
