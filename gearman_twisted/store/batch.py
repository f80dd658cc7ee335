"""Group commit: all that arrives while the store is busy shares its next commit.

An fsync costs the same for one job and for a thousand, so this is where a durable server gets its speed
from. Nothing here knows of threads or of what a store does; the server's one ``GroupCommit`` keeps the
promise that a store is asked for one thing at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from gearman_twisted.errors import StoreError, StoreUnavailable
from gearman_twisted.store.contract import IJobStore, StoredJob

# The first job of a commit waits for its last one. So many small jobs take a SQL store some 50 ms, and
# more would not make a job noticeably cheaper; so many bytes take a usual disk less than a second.
MAX_SAVES = 5_000
MAX_BYTES = 64 * 1024 * 1024
MAX_FORGETS = 20_000

# Seconds between attempts to reach a store: the first, from which they double, and the most.
FIRST_RETRY = 0.1
LAST_RETRY = 5.0
# Seconds until forgets are tried again that a store refuses although it can be reached.
REFUSED_RETRY = 30.0

# How often a refused commit is cut in two to find the job that the store cannot take: enough for a few
# among MAX_SAVES. Behind that the store refuses everything, and is not asked job by job.
MAX_CUTS = 64


class GroupCommit:
    """Gathers saves and forgets, and gives them to a store in one commit after the other.

    While the store cannot be reached, a commit is tried again with growing pauses, and what arrives waits
    for it. When that has gone on for longer than ``patience``, all saves that wait fail, and so do later ones
    at the next attempt that fails; forgets wait on. A job that the store refuses fails alone.

    With a store whose ``sync_interval`` is not 0, saves are answered at once and reach the store in commits
    of that distance; what ends before its commit never does. While the store cannot be reached nothing is
    answered before it is stored, so that no more jobs are at risk than one interval's.
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
        """Makes one for an open store.

        Args:
            store: where the jobs go; nobody else may call its ``apply``.
            saved: called with the ids of the jobs that are on stable storage, in the order in which they
                were added; may call ``add``.
            save_failed: called with the ids of jobs that were not saved, and with why; may call ``add``.
            clock: tells when to try again.
            patience: seconds that a job waits for a store that cannot be reached.
        """
        self._store = store
        self._saved = saved
        self._save_failed = save_failed
        self._clock = clock
        self._patience = patience
        self._interval = store.sync_interval
        self._saves: deque[StoredJob] = deque()
        self._ids_to_save: set[int] = set()
        self._forgets: list[int] = []
        # Jobs that were answered before they are stored, and those of them that no commit has tried yet.
        self._early: set[int] = set()
        self._fresh: set[int] = set()
        self._refused_forgets: list[int] = []
        self._retry: IDelayedCall | None = None
        self._next_commit: IDelayedCall | None = None
        self._unreachable_since: float | None = None
        self._delay = FIRST_RETRY
        self._pause: tuple[IDelayedCall, Deferred[None]] | None = None
        self._is_running = False
        self._cuts = 0
        self._flushes: list[Deferred[None]] = []
        self._log = Logger()

    @property
    def pending(self) -> int:
        """How many saves wait for a commit to start; those in the running commit do not count."""
        return len(self._ids_to_save)

    def add(self, saves: Sequence[StoredJob], forgets: Sequence[int]) -> None:
        """Takes jobs to save and to forget; starts a commit at once if none is running.

        Args:
            saves: jobs to keep, may be empty; each is answered with ``saved`` or ``save_failed``, before
                this returns if the store is done at once.
            forgets: ids of jobs to drop, may be empty and may name jobs whose saves still wait.
        """
        ids = [job.id for job in saves]
        self._saves.extend(saves)
        self._ids_to_save.update(ids)
        for number in forgets:
            if number in self._fresh:
                self._fresh.discard(number)
                self._early.discard(number)
                self._ids_to_save.discard(number)
            else:
                self._forgets.append(number)
        self._schedule_retry()
        is_early = bool(ids) and self._interval > 0 and self._unreachable_since is None
        if is_early:
            self._early.update(ids)
            self._fresh.update(ids)
        self._start()
        if is_early:
            self._answer(lambda: self._saved(ids), ids)

    def has(self, ids: Sequence[int]) -> bool:
        """Whether the store can be asked for jobs that were answered as saved.

        Has those stored soon whose interval is not over yet.
        """
        if self._early.isdisjoint(ids):
            return True
        self._run()
        return False

    def flush(self) -> Deferred[None]:
        """Waits for everything, for a service that is about to close the store.

        A store that cannot be reached is tried once more, and then left: it cannot hold up the end. What it
        was to save fails; jobs that it was to forget run again after a restart.

        Returns:
            A Deferred that fires with None when nothing runs; it never fails. No delayed call is left then.
            To cancel it changes nothing but that it no longer fires.
        """
        flushed: Deferred[None] = Deferred()
        self._flushes.append(flushed)
        self._retry_refused()
        self._wake()
        if not self._is_running:
            self._end_flushes()
        return flushed

    def _start(self) -> None:
        if self._is_running or not (self._saves or self._forgets):
            return
        can_wait = self._interval and self._unreachable_since is None and not self._flushes
        if can_wait and len(self._saves) < MAX_SAVES:
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
        """Commits until nothing waits. What the answers add is gathered, and goes into the next commit."""
        try:
            while self._saves or self._forgets:
                self._cuts = MAX_CUTS
                await self._commit(*self._take())
                if self._unreachable_since is not None:
                    if self._flushes:
                        break
                    await self._wait()
        finally:
            self._is_running = False
            self._end_flushes()

    async def _commit(self, saves: list[StoredJob], forgets: list[int]) -> None:
        """Brings some jobs to the store and answers them, in parts if it does not take them all."""
        error = await self._try(saves, forgets)
        if error is None:
            ids = [job.id for job in saves]
            if self._early:
                unanswered = [number for number in ids if number not in self._early]
                self._early.difference_update(ids)
                ids = unanswered
            self._answer(lambda: self._saved(ids), ids)
        elif isinstance(error, StoreUnavailable):
            self._give_up(saves, forgets, str(error))
            if saves and forgets and not self._flushes:
                await self._forget_alone(saves, forgets)
        elif self._cuts and len(saves) + bool(forgets) > 1:
            self._cuts -= 1
            half = len(saves) if forgets else len(saves) // 2
            # The saves first: an id may be in both.
            await self._commit(saves[:half], [])
            await self._commit(saves[half:], forgets)
        else:
            self._log.error(
                "{saves} jobs could not be saved, and {forgets} not be forgotten yet: {reason}",
                saves=len(saves),
                forgets=len(forgets),
                reason=str(error),
            )
            self._refused_forgets += forgets
            self._schedule_retry()
            self._fail(saves, str(error))

    async def _forget_alone(self, saves: list[StoredJob], forgets: list[int]) -> None:
        """Tries a part of what was given up: a store that is full takes it, and may have room then."""
        ids_to_save = {job.id for job in saves}
        alone = [number for number in forgets if number not in ids_to_save]
        if alone and await self._apply([], alone) is None:
            forgotten = set(alone)
            self._forgets = [number for number in self._forgets if number not in forgotten]

    async def _try(self, saves: list[StoredJob], forgets: list[int]) -> StoreError | None:
        """Asks the store until it can be reached or patience is at its end; returns why it failed."""
        while True:
            error = await self._apply(saves, forgets)
            if not isinstance(error, StoreUnavailable):
                self._is_reached()
                return error
            now = self._clock.seconds()
            if self._unreachable_since is None:
                self._unreachable_since = now
                self._log.error(
                    "The job store cannot be reached, jobs wait for it: {reason}", reason=str(error)
                )
            if self._flushes or now - self._unreachable_since >= self._patience:
                return error
            await self._wait()

    async def _apply(self, saves: list[StoredJob], forgets: list[int]) -> StoreError | None:
        # Whatever a store raises, and however, the saves have to be answered.
        try:
            await self._store.apply(saves, forgets)
        except StoreError as error:
            return error
        except Exception as error:  # noqa: BLE001
            self._log.failure("Bug in the job store")
            return StoreError(f"the job store failed: {error!r}")
        return None

    def _is_reached(self) -> None:
        if self._unreachable_since is not None:
            seconds = self._clock.seconds() - self._unreachable_since
            self._log.info("The job store can be reached again, after {seconds:.1f} s", seconds=seconds)
            self._unreachable_since = None
            self._delay = FIRST_RETRY

    def _give_up(self, saves: list[StoredJob], forgets: list[int], reason: str) -> None:
        """Fails all that wait for a store that cannot be reached, but for what cannot fail any more."""
        waiting = [*saves, *(job for job in self._saves if job.id in self._ids_to_save)]
        kept = [job for job in waiting if job.id in self._early]
        failed = [job for job in waiting if job.id not in self._early]
        self._saves = deque(kept)
        self._ids_to_save = {job.id for job in kept}
        self._forgets = forgets + self._forgets
        if kept and self._flushes:
            self._log.error("{count} jobs of the last interval are not stored, and lost", count=len(kept))
            self._saves.clear()
            self._ids_to_save.clear()
            self._early.clear()
        self._fail(failed, reason)

    def _fail(self, saves: list[StoredJob], reason: str) -> None:
        """Answers jobs that are not stored; those that were answered before stay in memory alone."""
        ids = [job.id for job in saves if job.id not in self._early]
        for job in saves:
            if job.id in self._early:
                self._early.discard(job.id)
                self._log.error(
                    "The job {handle} was accepted, and is in memory alone until it ends: {reason}",
                    handle=job.handle.decode("utf-8", "replace"),
                    reason=reason,
                )
        self._answer(lambda: self._save_failed(ids, reason), ids)

    def _answer(self, answer: Callable[[], None], ids: list[int]) -> None:
        if ids:
            # A bug in the caller's answer must not keep the jobs that follow from being saved.
            try:
                answer()
            except Exception:  # noqa: BLE001
                self._log.failure("While jobs {ids} were answered", ids=ids)

    def _take(self) -> tuple[list[StoredJob], list[int]]:
        """What the next commit saves and forgets."""
        saves: list[StoredJob] = []
        total_bytes = 0
        while self._saves and len(saves) < MAX_SAVES:
            job = self._saves[0]
            if job.id in self._ids_to_save:
                total_bytes += len(job.workload)
                if saves and total_bytes > MAX_BYTES:
                    break
                saves.append(job)
            self._saves.popleft()
        ids = [job.id for job in saves]
        self._ids_to_save.difference_update(ids)
        self._fresh.difference_update(ids)
        forgets, self._forgets = self._forgets[:MAX_FORGETS], self._forgets[MAX_FORGETS:]
        if self._ids_to_save and forgets:
            # To forget a job before it is saved would bring it back at the next start.
            self._forgets += [number for number in forgets if number in self._ids_to_save]
            forgets = [number for number in forgets if number not in self._ids_to_save]
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

    def _wait(self) -> Deferred[None]:
        """A pause before the store is tried again; a flush ends it."""
        over: Deferred[None] = Deferred()
        self._pause = self._clock.callLater(self._delay, self._wake), over
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
        if flushes and self._retry is not None:
            self._retry.cancel()
            self._retry = None
        for flushed in flushes:
            flushed.callback(None)
