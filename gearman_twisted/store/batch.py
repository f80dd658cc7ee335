"""Group commit: everything that arrives while the store is busy goes into its next commit.

An fsync costs the same for one job as for a thousand, so this is where a durable server gets its speed from.

    add(saves, forgets)
      │
      ▼                    ┌── done ─────────── saved(ids)
    queue ──▶ one commit ──┼── unavailable ──── retry it with growing pauses; after ``patience`` the saves
      ▲     (store.apply)  │                    fail: save_failed(ids), and the forgets go back
      │                    └── refused ──────── split it, until the job that is to blame fails alone;
      └──── forgets that are not done ◀──────── refused forgets wait for REFUSED_RETRY

- One commit runs at a time, which is the promise that ``IJobStore.apply`` relies on.
- A job that is forgotten while its save waits is not saved any more, and its workload not kept. So a forget
  never overtakes the save of its job, which would come back at the next start.
- A save is answered once, unless its job was forgotten before. A forget is never given up; who waits for it
  is told when it is done or has failed.
- With a ``sync_interval`` saves are answered when they come, and commits start at that distance. While the
  store is unreachable that is suspended, so that no more than one interval's jobs are at risk.

Nothing here knows of threads or of what a store does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from gearman_twisted.errors import StoreError, StoreUnavailable
from gearman_twisted.store.contract import IJobStore, StoredJob
from gearman_twisted.wire.shown import shown

# The first job of a commit waits for the last one. This many small jobs take a SQL store some 50 ms, and
# more would not make a job noticeably cheaper; this many bytes take a usual disk less than a second.
MAX_SAVES = 5_000
MAX_BYTES = 64 * 1024 * 1024
MAX_FORGETS = 20_000

# Seconds between attempts to reach a store: the first pause, which doubles, and the longest.
FIRST_RETRY = 0.1
LAST_RETRY = 5.0
# Seconds until forgets are retried that a store refuses although it can be reached.
REFUSED_RETRY = 30.0

# How often a refused commit is split in two to find the job that the store cannot take: enough for a few
# among MAX_SAVES. A store that refuses more than that refuses everything, and is not asked job by job.
MAX_SPLITS = 64
# Timers are not exact: an attempt this long before the end of patience is the last one.
_EPSILON = 0.001


class GroupCommit:
    """Write saves and forgets to a store, in one commit after the other.

    Args:
        store: an open store; nobody else may call its ``apply``.
        saved: called with the ids of jobs that are on stable storage, in the order in which they were added;
            may call ``add``.
        save_failed: called with the ids of jobs that were not saved, and the reason; may call ``add``.
        clock: schedules retries.
        patience: seconds that a job waits for a store that cannot be reached.
    """

    def __init__(
        self,
        store: IJobStore,
        saved: Callable[[list[int]], None],
        save_failed: Callable[[list[int], str], None],
        *,
        clock: IReactorTime,
        patience: float = 30.0,
    ) -> None:
        self._store = store
        self._saved = saved
        self._save_failed = save_failed
        self._clock = clock
        self._patience = patience
        self._interval = store.sync_interval
        # What waits for a commit, saves by id: no job is in both.
        self._saves: dict[int, StoredJob] = {}
        self._forgets: list[int] = []
        # Jobs that were answered before they are stored, and those that wait after a commit with them has
        # failed: the store may have them all the same.
        self._answered: set[int] = set()
        self._tried: set[int] = set()
        # Forgets that the running commit has taken and that are not decided yet, and those that were refused.
        self._taken_forgets: list[int] = []
        self._refused_forgets: list[int] = []
        # Who waits for the forgets so far: those who came before the last commit began, with the forgets that
        # are not done yet, and those who came since.
        self._awaited: set[int] = set()
        self._awaiting: list[Callable[[str | None], None]] = []
        self._new_awaiting: list[Callable[[str | None], None]] = []
        self._retry: IDelayedCall | None = None
        self._next_commit: IDelayedCall | None = None
        self._unreachable_since: float | None = None
        self._delay = FIRST_RETRY
        self._pause: tuple[IDelayedCall, Deferred[None]] | None = None
        self._is_running = False
        self._splits_left = 0
        self._flushes: list[Deferred[None]] = []
        self._log = Logger()

    @property
    def pending(self) -> int:
        """The number of saves that wait for a commit to start, without those in the running commit."""
        return len(self._saves)

    def add(self, saves: Sequence[StoredJob], forgets: Sequence[int]) -> None:
        """Add jobs to save and to forget; start a commit if none is running.

        Args:
            saves: jobs to keep, may be empty; each is answered with ``saved`` or ``save_failed``, before
                this returns if the store is done at once.
            forgets: ids of jobs to drop, may be empty; if their saves are still waiting, these are dropped,
                and need not be answered.
        """
        for job in saves:
            self._saves[job.id] = job
        for number in forgets:
            if not self._drop(number):
                self._forgets.append(number)
        self._schedule_retry()
        is_early = bool(saves) and self._interval > 0 and self._unreachable_since is None
        ids = [job.id for job in saves if job.id in self._saves] if is_early else []
        self._answered.update(ids)
        self._start()
        self._answer(lambda: self._saved(ids), ids)

    def _drop(self, number: int) -> bool:
        """Do not save a job, if it waits for that; return whether the store cannot have it."""
        if self._saves.pop(number, None) is None:
            return False
        self._answered.discard(number)
        if number in self._tried:
            self._tried.discard(number)
            return False
        return True

    def when_forgotten(self, call: Callable[[str | None], None]) -> None:
        """Wait until the store has forgotten all that was added so far, also with a ``sync_interval``.

        Args:
            call: called once, before this returns if nothing is to be forgotten: with None, or with the
                reason why the store did not do it. It is retried then.
        """
        if self._has_forgets():
            self._new_awaiting.append(call)
            self._retry_refused()
        else:
            self._tell([call], None)

    def has(self, ids: Sequence[int]) -> bool:
        """Return whether the store has all of these jobs, which were answered as saved.

        If not, their commit is started before its interval is over: ask again soon.
        """
        if self._answered.isdisjoint(ids):
            return True
        self._run()
        return False

    def flush(self) -> Deferred[None]:
        """Commit everything, for a service that is about to close the store.

        A store that cannot be reached is tried once more and then given up, so that it cannot delay the end:
        saves fail; jobs whose forgets are lost run again after a restart.

        Returns:
            A Deferred that fires with None when nothing runs and no delayed call is left; it never fails.
            Cancelling it only keeps it from firing.
        """
        flushed: Deferred[None] = Deferred()
        self._flushes.append(flushed)
        self._retry_refused()
        self._wake()
        if not self._is_running:
            self._end_flushes()
        return flushed

    def _has_forgets(self) -> bool:
        """Return whether the store may still have anything that it was to forget."""
        return bool(self._forgets or self._taken_forgets or self._refused_forgets)

    def _start(self) -> None:
        if self._is_running or not (self._saves or self._forgets or self._new_awaiting):
            return
        is_urgent = self._flushes or self._new_awaiting or self._unreachable_since is not None
        if self._interval and not is_urgent and len(self._saves) < MAX_SAVES:
            if self._next_commit is None:
                self._next_commit = self._clock.callLater(self._interval, self._run)
            return
        self._run()

    def _run(self) -> None:
        if self._next_commit is not None and self._next_commit.active():
            self._next_commit.cancel()
        self._next_commit = None
        if not self._is_running:
            self._is_running = True
            Deferred.fromCoroutine(self._commit_all()).addErrback(
                lambda failure: self._log.failure("Bug in the group commit", failure)
            )

    async def _commit_all(self) -> None:
        """Commit until nothing waits. What answers add goes into the next commit."""
        try:
            while self._saves or self._forgets or self._new_awaiting:
                self._splits_left = MAX_SPLITS
                if not self._awaiting:
                    self._awaiting, self._new_awaiting = self._new_awaiting, []
                    self._awaited = set(self._forgets) if self._awaiting else set()
                    self._note_forgotten(())
                saves, forgets = self._take()
                self._taken_forgets = forgets
                if saves or forgets:
                    await self._commit(saves, forgets)
                if self._unreachable_since is not None:
                    if self._flushes:
                        break
                    await self._wait()
        finally:
            self._is_running = False
            self._end_flushes()

    async def _commit(self, saves: list[StoredJob], forgets: list[int]) -> None:
        """Commit some jobs and answer them; split the commit if it is refused."""
        error = await self._try(saves, forgets)
        if error is None:
            if forgets:
                self._taken_forgets = []
                self._note_forgotten(forgets)
            ids = [job.id for job in saves]
            if self._answered:
                unanswered = [number for number in ids if number not in self._answered]
                self._answered.difference_update(ids)
                ids = unanswered
            self._answer(lambda: self._saved(ids), ids)
        elif isinstance(error, StoreUnavailable):
            self._give_up(saves, forgets, str(error))
            if saves and forgets and not self._flushes:
                await self._forget_alone(forgets)
            # The queue may be empty: the forgets of a commit that was split come with its last part.
            self._tell_awaiting(str(error) if self._has_forgets() else None)
        elif self._splits_left and len(saves) + bool(forgets) > 1:
            self._splits_left -= 1
            half = len(saves) if forgets else len(saves) // 2
            await self._commit(saves[:half], [])
            await self._commit(saves[half:], forgets)
        else:
            self._log.error(
                "job store refused {saves} saves, and {forgets} forgets, which are retried: {reason}",
                saves=len(saves),
                forgets=len(forgets),
                reason=str(error),
            )
            if forgets:
                self._taken_forgets = []
                self._refused_forgets += forgets
                self._schedule_retry()
                self._tell_awaiting(str(error))
            self._fail(saves, str(error))

    async def _forget_alone(self, forgets: list[int]) -> None:
        """Retry the forgets of a commit that was given up: a full store takes them, and has room then."""
        if await self._apply([], forgets) is None:
            forgotten = set(forgets)
            self._forgets = [number for number in self._forgets if number not in forgotten]
            self._note_forgotten(forgets)

    async def _try(self, saves: list[StoredJob], forgets: list[int]) -> StoreError | None:
        """Apply until the store can be reached or patience ends; return the error, None if it is done."""
        while True:
            error = await self._apply(saves, forgets)
            if not isinstance(error, StoreUnavailable):
                self._is_reached()
                return error
            now = self._clock.seconds()
            if self._unreachable_since is None:
                self._unreachable_since = now
                self._log.error(
                    "job store unreachable; submissions are held until it is back: {reason}",
                    reason=str(error),
                )
            remaining = self._unreachable_since + self._patience - now
            if self._flushes or remaining < _EPSILON:
                return error
            await self._wait(remaining)

    async def _apply(self, saves: list[StoredJob], forgets: list[int]) -> StoreError | None:
        # Whatever a store raises, the saves have to be answered.
        try:
            await self._store.apply(saves, forgets)
        except StoreError as error:
            return error
        except MemoryError:
            return StoreError("out of memory")
        except Exception as error:  # noqa: BLE001
            self._log.failure("Bug in the job store")
            return StoreError(f"the job store failed: {error!r}")
        return None

    def _is_reached(self) -> None:
        if self._unreachable_since is not None:
            seconds = self._clock.seconds() - self._unreachable_since
            self._log.info("job store reachable again after {seconds:.1f} s", seconds=seconds)
            self._unreachable_since = None
            self._delay = FIRST_RETRY

    def _give_up(self, saves: list[StoredJob], forgets: list[int], reason: str) -> None:
        """Fail all waiting saves, except those that were answered already; keep the forgets."""
        if forgets:
            self._taken_forgets = []
            self._forgets = forgets + self._forgets
        if self._answered:
            # Those that ended meanwhile are to be forgotten, not to be saved.
            ended = self._answered.intersection([job.id for job in saves], self._forgets)
            self._answered -= ended
            saves = [job for job in saves if job.id not in ended]
        waiting = [*saves, *self._saves.values()]
        kept = [job for job in waiting if job.id in self._answered]
        failed = [job for job in waiting if job.id not in self._answered]
        self._saves = {job.id: job for job in kept}
        self._tried.update(job.id for job in saves if job.id in self._answered)
        if kept and self._flushes:
            self._log.error("lost {count} jobs of the last sync interval: not stored", count=len(kept))
            self._saves.clear()
            self._answered.clear()
            self._tried.clear()
        self._fail(failed, reason)

    def _fail(self, saves: list[StoredJob], reason: str) -> None:
        """Answer jobs that are not stored; those that were answered before stay in memory only."""
        ids = [job.id for job in saves if job.id not in self._answered]
        for job in saves:
            if job.id in self._answered:
                self._answered.discard(job.id)
                self._log.error(
                    "job {handle} was accepted but cannot be stored; it is lost if the server ends first: "
                    "{reason}",
                    handle=shown(job.handle),
                    reason=reason,
                )
        self._answer(lambda: self._save_failed(ids, reason), ids)

    def _answer(self, answer: Callable[[], None], ids: list[int]) -> None:
        if ids:
            # A bug in the callback must not keep later jobs from being saved.
            try:
                answer()
            except Exception:  # noqa: BLE001
                self._log.failure("Bug in a callback of the group commit, for jobs {ids}", ids=ids)

    def _note_forgotten(self, forgets: Sequence[int]) -> None:
        """The store has forgotten these: tell those for whom they were the last ones."""
        if self._awaiting:
            self._awaited.difference_update(forgets)
            if not self._awaited:
                awaiting, self._awaiting = self._awaiting, []
                self._tell(awaiting, None)

    def _tell_awaiting(self, reason: str | None) -> None:
        """Tell all who wait for forgets that they are done, or why not; they are retried then."""
        awaiting = self._awaiting + self._new_awaiting
        self._awaiting, self._new_awaiting, self._awaited = [], [], set()
        self._tell(awaiting, reason)

    def _tell(self, calls: list[Callable[[str | None], None]], reason: str | None) -> None:
        for call in calls:
            try:
                call(reason)
            except Exception:  # noqa: BLE001, PERF203 - a bug in one must not keep the others waiting
                self._log.failure("Bug in a callback of the group commit")

    def _take(self) -> tuple[list[StoredJob], list[int]]:
        """Remove from the queue what the next commit saves and forgets."""
        saves: list[StoredJob] = []
        total_bytes = 0
        for job in self._saves.values():
            total_bytes += len(job.workload)
            if saves and (total_bytes > MAX_BYTES or len(saves) >= MAX_SAVES):
                break
            saves.append(job)
        if len(saves) == len(self._saves):
            self._saves = {}
        else:
            for job in saves:
                del self._saves[job.id]
        if self._tried:
            self._tried.difference_update(job.id for job in saves)
        forgets, self._forgets = self._forgets[:MAX_FORGETS], self._forgets[MAX_FORGETS:]
        return saves, forgets

    def _schedule_retry(self) -> None:
        if self._refused_forgets and self._retry is None:
            self._retry = self._clock.callLater(REFUSED_RETRY, self._retry_refused)

    def _retry_refused(self) -> None:
        if self._retry is not None and self._retry.active():
            self._retry.cancel()
        self._retry = None
        self._forgets += self._refused_forgets
        self._refused_forgets = []
        self._start()

    def _wait(self, limit: float = LAST_RETRY) -> Deferred[None]:
        """Pause before the next attempt, for at most ``limit`` seconds; a flush ends the pause."""
        over: Deferred[None] = Deferred()
        self._pause = self._clock.callLater(min(self._delay, limit), self._wake), over
        self._delay = min(self._delay * 2, LAST_RETRY)
        return over

    def _wake(self) -> None:
        if self._pause is not None:
            (call, over), self._pause = self._pause, None
            if call.active():
                call.cancel()
            over.callback(None)

    def _end_flushes(self) -> None:
        flushes, self._flushes = self._flushes, []
        if flushes:
            self._tell_awaiting("the server is stopping")
            # What a commit was to be started for may have ended meanwhile.
            for call in (self._retry, self._next_commit):
                if call is not None:
                    call.cancel()
            self._retry = self._next_commit = None
        for flushed in flushes:
            flushed.callback(None)
