"""Job stores that wait for a disk or a network: their work is done in a thread of its own."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import TypeVar

from twisted.internet.defer import Deferred, DeferredLock, fail, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from gearman_twisted.errors import StoreConfigError, StoreError
from gearman_twisted.store.contract import IJobStore, StoredJob

_T = TypeVar("_T")


class BlockingStore(abc.ABC):
    """What a ``ThreadedStore`` asks for. All but ``check`` is called in the store's one thread.

    A lost connection is made anew by whichever call comes next, together with all that it held: a call
    fails with ``StoreUnavailable`` while that cannot be done, and the caller comes again.

    Attributes:
        description: see ``IJobStore``; so are durable, sync_interval and damaged.
    """

    description: str
    damaged: int = 0
    durable: bool = True
    sync_interval: float = 0.0

    @abc.abstractmethod
    def check(self) -> None:
        """Does what ``IJobStore.check`` says; in the reactor's thread."""

    @abc.abstractmethod
    def connect(self) -> None:
        """Takes what must be held while the store is open, connects, and creates or migrates what is needed.

        Raises:
            StoreConfigError: it cannot be used as configured; nothing is held.
            StoreUnavailable: it cannot be used now; nothing is held.
        """

    @abc.abstractmethod
    def disconnect(self) -> None:
        """Lets go of all that ``connect`` took; never fails."""

    @abc.abstractmethod
    def page(self, after: int) -> tuple[list[StoredJob], int | None]:
        """Reads the jobs that follow an id, in the order of their ids, as many as are worth a call.

        What is not a job is logged, kept and skipped.

        Returns:
            The jobs, and the id after which to go on, or None at the end.

        Raises:
            StoreError: it failed.
        """

    @abc.abstractmethod
    def load(self, ids: Sequence[int]) -> list[StoredJob]:
        """Does what ``IJobStore.load`` says.

        Raises:
            StoreError: it failed.
        """

    @abc.abstractmethod
    def apply(self, saves: Sequence[StoredJob], forgets: Sequence[int]) -> None:
        """Does what ``IJobStore.apply`` says; at least one of both is not empty.

        Raises:
            StoreUnavailable: it may work later; whether it was done is not known.
            StoreError: it cannot be done; nothing was.
        """


@implementer(IJobStore)
class ThreadedStore:
    """A job store that works in a thread of its own.

    Args:
        store: what does the work.
        reactor: the reactor that the store lives in.
    """

    def __init__(self, store: BlockingStore, reactor: IReactorFromThreads) -> None:
        self.description = store.description
        self.durable = store.durable
        self.sync_interval = store.sync_interval
        self._store = store
        self._reactor = reactor
        self._open_and_close = DeferredLock()
        self._thread: ThreadPool | None = None

    @property
    def damaged(self) -> int:
        """Return how many records were skipped so far, as they are no jobs."""
        return self._store.damaged

    def check(self) -> None:
        """Finds out whether ``open`` is likely to work, without changing or creating anything.

        Raises:
            StoreError: it will not work; the message says what to do.
        """
        self._store.check()

    def open(self) -> Deferred[None]:
        """Connects, and creates or migrates what is needed.

        Returns:
            A Deferred that fires with None, or fails with ``StoreConfigError`` or ``StoreUnavailable``,
            after which nothing is held and ``open`` may be tried again.
        """
        return self._open_and_close.run(lambda: Deferred.fromCoroutine(self._open()))

    def replay(self, add: Callable[[Sequence[StoredJob]], None]) -> Deferred[int]:
        """Reads every stored job, a page at a time. What is not a job is logged, kept and skipped.

        Args:
            add: called in the reactor's thread with batches of jobs, in the order of their ids.

        Returns:
            A Deferred that fires with how many jobs there were, or fails with ``StoreError``.
        """
        return Deferred.fromCoroutine(self._replay(add))

    def load(self, ids: Sequence[int]) -> Deferred[list[StoredJob]]:
        """Reads some jobs; may be called while other calls run.

        Args:
            ids: those of the jobs.

        Returns:
            A Deferred that fires with the jobs in the order of ``ids``, those left out that are not there, or
            fails with ``StoreError``.
        """
        return self._run(self._store.load, tuple(ids)) if ids else succeed([])

    def apply(self, saves: Sequence[StoredJob], forgets: Sequence[int]) -> Deferred[None]:
        """Saves and forgets jobs, all or nothing.

        Args:
            saves: jobs to keep, may be empty.
            forgets: ids of jobs to drop, may be empty.

        Returns:
            A Deferred that fires with None once it is on stable storage, or fails with ``StoreError``; see
            ``IJobStore``. It cannot be cancelled.
        """
        if self._thread is not None and not saves and not forgets:
            return succeed(None)
        return self._run(self._store.apply, tuple(saves), tuple(forgets))

    def close(self) -> Deferred[None]:
        """Finishes what runs, and lets go of everything; works before ``open`` and twice.

        Returns:
            A Deferred that fires with None.
        """
        return self._open_and_close.run(lambda: Deferred.fromCoroutine(self._close()))

    def _run(self, function: Callable[..., _T], *args: object) -> Deferred[_T]:
        if self._thread is None:
            return fail(StoreError(f"the job store is not open: {self.description}"))
        return deferToThreadPool(self._reactor, self._thread, function, *args)

    async def _open(self) -> None:
        if self._thread is not None:
            raise StoreConfigError(f"the job store is already open: {self.description}")
        thread = ThreadPool(1, 1, name="gearman job store")
        thread.start()
        try:
            await deferToThreadPool(self._reactor, thread, self._store.connect)
        except BaseException:
            thread.stop()
            raise
        self._thread = thread

    async def _close(self) -> None:
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        try:
            # The pool has one thread, so this waits for whatever still runs.
            await deferToThreadPool(self._reactor, thread, self._store.disconnect)
        finally:
            thread.stop()

    async def _replay(self, add: Callable[[Sequence[StoredJob]], None]) -> int:
        after: int | None = -(2**63)
        count = 0
        while after is not None:
            page, after = await self._run(self._store.page, after)
            if page:
                add(page)
            count += len(page)
        return count
