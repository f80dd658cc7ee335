"""The store that keeps nothing: for speed, or a clean start."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFromThreads
from zope.interface import implementer

from gearman_twisted.errors import StoreConfigError
from gearman_twisted.store.contract import IJobStore, StoredJob


def open_memory(url: str, _reactor: IReactorFromThreads) -> IJobStore:
    """Return a store that keeps nothing; the URL is ``memory:``.

    Raises:
        StoreConfigError: something follows the colon.
    """
    if url != "memory:":
        raise StoreConfigError(f"memory: takes nothing after the colon, not {url.partition(':')[2]!r}")
    return MemoryStore()


@implementer(IJobStore)
class MemoryStore:
    """A job store that does nothing: jobs are in the server's memory only."""

    durable = False
    sync_interval = 0.0
    max_workload_bytes = None
    description = "memory only, background jobs are lost when the server ends"

    def check(self) -> None:
        """Do nothing: it always works."""

    def open(self) -> Deferred[None]:
        """Do nothing."""
        return succeed(None)

    def replay(self, _add: Callable[[Sequence[StoredJob]], None]) -> Deferred[int]:
        """Return no jobs."""
        return succeed(0)

    def load(self, _ids: Sequence[int]) -> Deferred[list[StoredJob]]:
        """Return no jobs."""
        return succeed([])

    def apply(self, _saves: Sequence[StoredJob], _forgets: Sequence[int]) -> Deferred[None]:
        """Do nothing."""
        return succeed(None)

    def close(self) -> Deferred[None]:
        """Do nothing."""
        return succeed(None)
