"""Group commit: all that arrives while the store is busy shares its next commit.

An fsync costs the same for one job and for a thousand, so this is where a durable server gets its speed
from. Nothing here knows of threads or of what a store does; the server's one ``GroupCommit`` keeps the
promise that a store is asked for one thing at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from gearman_twisted.errors import StoreError
from gearman_twisted.interfaces import IJobStore, StoredJob

# The first job of a commit waits for its last one. So many small jobs take a SQL store some 50 ms, and
# more would not make a job noticeably cheaper; so many bytes take a usual disk less than a second.
MAX_SAVES = 5_000
MAX_BYTES = 64 * 1024 * 1024
MAX_FORGETS = 20_000

FIRST_RETRY = 1.0
LAST_RETRY = 30.0


class GroupCommit:
    """Gathers saves and forgets, and gives them to a store in one commit after the other.

    A job that was not saved is not tried again, since its client is told. A forget that failed is
    tried again until it works, with other such forgets but without saves, so that one that the store
    can never do does not take jobs down with it.
    """

    def __init__(
        self,
        store: IJobStore,
        saved: Callable[[list[int]], None],
        save_failed: Callable[[list[int], str], None],
        *,
        clock: IReactorTime,
    ) -> None:
        """Makes one for an open store.

        Args:
            store: where the jobs go; nobody else may call its ``apply``.
            saved: called with the ids of the jobs that are on stable storage, in the order in which they
                were added; may call ``add``.
            save_failed: called with the ids of jobs that were not saved, and with why; may call ``add``.
            clock: tells when to try again.
        """
        self._store = store
        self._saved = saved
        self._save_failed = save_failed
        self._clock = clock
        self._saves: deque[StoredJob] = deque()
        self._ids_to_save: set[int] = set()
        self._forgets: list[int] = []
        self._failed_forgets: list[int] = []
        self._retry: IDelayedCall | None = None
        self._retry_delay = FIRST_RETRY
        self._retry_is_due = False
        self._is_running = False
        self._flushes: list[Deferred[None]] = []
        self._log = Logger()

    @property
    def pending(self) -> int:
        """How many saves wait for a commit to start; those in the running commit do not count."""
        return len(self._saves)

    def add(self, saves: Sequence[StoredJob], forgets: Sequence[int]) -> None:
        """Takes jobs to save and to forget; starts a commit at once if none is running.

        Args:
            saves: jobs to keep, may be empty; each is answered with ``saved`` or ``save_failed``, before
                this returns if the store is done at once.
            forgets: ids of jobs to drop, may be empty and may name jobs whose saves still wait.
        """
        self._saves.extend(saves)
        self._ids_to_save.update(job.id for job in saves)
        self._forgets.extend(forgets)
        if self._failed_forgets and self._retry is None:
            self._schedule_retry()
        self._start()

    def flush(self) -> Deferred[None]:
        """Waits for everything, for a service that is about to close the store.

        Forgets that failed before are tried once more without delay. If they fail again they are left
        until the next ``add``, and their jobs run again after a restart; a store that is gone for good
        cannot hold up the end.

        Returns:
            A Deferred that fires with None when nothing waits and nothing runs; it never fails. No delayed
            call is left then. To cancel it changes nothing but that it no longer fires.
        """
        self._retry_is_due = True
        self._start()
        if not self._is_running:
            self._cancel_retry()
            return succeed(None)
        flushed: Deferred[None] = Deferred()
        self._flushes.append(flushed)
        return flushed

    def _start(self) -> None:
        if not self._is_running:
            self._is_running = True
            Deferred.fromCoroutine(self._run()).addErrback(
                lambda failure: self._log.failure("Bug in the group commit", failure)
            )

    async def _run(self) -> None:
        """Commits until nothing waits. What the answers add is gathered, and goes into the next commit."""
        try:
            while True:
                if self._retry_is_due:
                    await self._retry_forgets()
                elif self._saves or self._forgets:
                    await self._commit()
                else:
                    break
        finally:
            self._is_running = False
        flushes, self._flushes = self._flushes, []
        if flushes:
            self._cancel_retry()
        for flushed in flushes:
            flushed.callback(None)

    async def _commit(self) -> None:
        saves, forgets = self._take()
        reason = await self._apply(saves, forgets)
        ids = [job.id for job in saves]
        if reason is not None and forgets:
            self._failed_forgets += forgets
            if self._flushes:
                # Whoever waits for the end waits for one more attempt, and not for a delay.
                self._retry_is_due = True
            elif self._retry is None:
                self._schedule_retry()
        if ids:
            try:
                if reason is None:
                    self._saved(ids)
                else:
                    self._save_failed(ids, reason)
            # A bug in the caller's answer must not keep the jobs that follow from being saved.
            except Exception:  # noqa: BLE001
                self._log.failure("While jobs {ids} were answered", ids=ids)

    async def _retry_forgets(self) -> None:
        self._cancel_retry()
        self._retry_is_due = False
        forgets, self._failed_forgets = self._failed_forgets, []
        while forgets:
            some = forgets[:MAX_FORGETS]
            if await self._apply([], some) is not None:
                self._failed_forgets = forgets + self._failed_forgets
                self._retry_delay = min(self._retry_delay * 2, LAST_RETRY)
                if not self._flushes:
                    self._schedule_retry()
                return
            forgets = forgets[MAX_FORGETS:]
        self._retry_delay = FIRST_RETRY

    async def _apply(self, saves: list[StoredJob], forgets: list[int]) -> str | None:
        """Asks the store, and returns None, or why it failed."""
        # Whatever a store raises, and however, the saves have to be answered.
        try:
            await self._store.apply(saves, forgets)
        except StoreError as error:
            reason = str(error)
            self._log.error(
                "{saves} jobs could not be saved, and {forgets} not be forgotten yet: {reason}",
                saves=len(saves),
                forgets=len(forgets),
                reason=reason,
            )
            return reason
        except Exception as error:  # noqa: BLE001
            self._log.failure(
                "{saves} jobs could not be saved, and {forgets} not be forgotten yet; bug in the job store",
                saves=len(saves),
                forgets=len(forgets),
            )
            return f"the job store failed: {error!r}"
        return None

    def _take(self) -> tuple[list[StoredJob], list[int]]:
        """What the next commit saves and forgets."""
        saves: list[StoredJob] = []
        total_bytes = 0
        while self._saves and len(saves) < MAX_SAVES:
            total_bytes += len(self._saves[0].workload)
            if saves and total_bytes > MAX_BYTES:
                break
            saves.append(self._saves.popleft())
        self._ids_to_save.difference_update(job.id for job in saves)
        forgets, self._forgets = self._forgets[:MAX_FORGETS], self._forgets[MAX_FORGETS:]
        if self._ids_to_save and forgets:
            # To forget a job before it is saved would bring it back at the next start.
            self._forgets += [number for number in forgets if number in self._ids_to_save]
            forgets = [number for number in forgets if number not in self._ids_to_save]
        return saves, forgets

    def _schedule_retry(self) -> None:
        self._retry = self._clock.callLater(self._retry_delay, self._retry_now)

    def _retry_now(self) -> None:
        self._retry = None
        self._retry_is_due = True
        self._start()

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
