"""The store that keeps nothing, for those who want speed or a clean start rather than durability."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFromThreads
from zope.interface import implementer

from gearman_twisted.errors import StoreConfigError
from gearman_twisted.store.contract import IJobStore, StoredJob


def open_memory(url: str, _reactor: IReactorFromThreads) -> IJobStore:
    """Makes a MemoryStore.

    Args:
        url: ``memory:``, and nothing else.

    Raises:
        StoreConfigError: something follows the colon.
    """
    if url != "memory:":
        raise StoreConfigError(f"memory: takes nothing after the colon, not {url.partition(':')[2]!r}")
    return MemoryStore()


@implementer(IJobStore)
class MemoryStore:
    """A job store that does nothing: what the server holds in memory is all there is."""

    durable = False
    sync_interval = 0.0
    description = "memory only, background jobs are lost when the server ends"

    def check(self) -> None:
        """Finds nothing that could stand in the way."""

    def open(self) -> Deferred[None]:
        """Does nothing."""
        return succeed(None)

    def replay(self, _add: Callable[[Sequence[StoredJob]], None]) -> Deferred[int]:
        """Finds no jobs."""
        return succeed(0)

    def load(self, _ids: Sequence[int]) -> Deferred[list[StoredJob]]:
        """Finds no jobs."""
        return succeed([])

    def apply(self, _saves: Sequence[StoredJob], _forgets: Sequence[int]) -> Deferred[None]:
        """Does nothing."""
        return succeed(None)

    def close(self) -> Deferred[None]:
        """Does nothing."""
        return succeed(None)
