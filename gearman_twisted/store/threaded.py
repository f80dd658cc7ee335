"""Job stores with blocking calls, which run in a thread of their own."""

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
    """The interface of a store with blocking calls. All but ``check`` are called in the store's one thread.

    After a lost connection the next call reconnects and takes again whatever the connection held. While that
    is impossible, calls fail with ``StoreUnavailable``, and are retried by the caller.

    Attributes:
        description: see ``IJobStore``; so are durable, sync_interval, max_workload_bytes and damaged.
    """

    description: str
    damaged: int = 0
    durable: bool = True
    sync_interval: float = 0.0
    max_workload_bytes: int | None = None

    @abc.abstractmethod
    def check(self) -> None:
        """Do what ``IJobStore.check`` says; in the reactor's thread."""

    @abc.abstractmethod
    def connect(self) -> None:
        """Connect, take what must be held while the store is open, and create or migrate what is needed.

        Raises:
            StoreConfigError: the store cannot be used as configured; nothing is held.
            StoreUnavailable: the store cannot be used at the moment; nothing is held.
        """

    @abc.abstractmethod
    def disconnect(self) -> None:
        """Release all that ``connect`` took; never fails."""

    @abc.abstractmethod
    def page(self, after: int) -> tuple[list[StoredJob], int | None]:
        """Read some jobs that follow an id, in the order of their ids, as many as are worth a call.

        Damaged jobs are logged, kept and skipped.

        Returns:
            The jobs, and the id after which to go on, or None at the end.

        Raises:
            StoreError: it failed.
        """

    @abc.abstractmethod
    def load(self, ids: Sequence[int]) -> list[StoredJob]:
        """Do what ``IJobStore.load`` says.

        Raises:
            StoreError: it failed.
        """

    @abc.abstractmethod
    def apply(self, saves: Sequence[StoredJob], forgets: Sequence[int]) -> None:
        """Do what ``IJobStore.apply`` says; at least one of both is not empty.

        Raises:
            StoreUnavailable: a retry may work; the outcome is unknown.
            StoreError: it is impossible; nothing was changed.
        """


@implementer(IJobStore)
class ThreadedStore:
    """A job store that runs a ``BlockingStore`` in a thread of its own.

    Args:
        store: the store with blocking calls.
        reactor: the reactor that the store uses.
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
    def max_workload_bytes(self) -> int | None:
        """See ``IJobStore``."""
        return self._store.max_workload_bytes

    @property
    def damaged(self) -> int:
        """Return how many records were skipped so far, as they are no jobs."""
        return self._store.damaged

    def check(self) -> None:
        """See ``IJobStore.check``."""
        self._store.check()

    def open(self) -> Deferred[None]:
        """See ``IJobStore.open``. After a failure nothing is held, and it may be called again."""
        return self._open_and_close.run(lambda: Deferred.fromCoroutine(self._open()))

    def replay(self, add: Callable[[Sequence[StoredJob]], None]) -> Deferred[int]:
        """See ``IJobStore.replay``. Damaged jobs are logged, kept and skipped."""
        return Deferred.fromCoroutine(self._replay(add))

    def load(self, ids: Sequence[int]) -> Deferred[list[StoredJob]]:
        """See ``IJobStore.load``."""
        return self._run(self._store.load, tuple(ids)) if ids else succeed([])

    def apply(self, saves: Sequence[StoredJob], forgets: Sequence[int]) -> Deferred[None]:
        """See ``IJobStore.apply``."""
        if self._thread is not None and not saves and not forgets:
            return succeed(None)
        return self._run(self._store.apply, tuple(saves), tuple(forgets))

    def close(self) -> Deferred[None]:
        """See ``IJobStore.close``."""
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
