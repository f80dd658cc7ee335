"""Those who wait for the same thing, each of whom may stop waiting."""

from __future__ import annotations

from gearman_twisted.runtime.interfaces import Promise, Runtime


class Waiters:
    """Promises that are settled together. One that is cancelled leaves the others alone.

    Args:
        runtime: the event loop.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._promises: dict[Promise[None], None] = {}

    def __bool__(self) -> bool:
        return bool(self._promises)

    def add(self) -> Promise[None]:
        """Return a promise that is settled at the next ``settle``."""
        promise: Promise[None] = self._runtime.promise(lambda: self._promises.pop(promise, None))
        self._promises[promise] = None
        return promise

    def settle(self) -> None:
        """Settle the promises of now; those that are added meanwhile wait for the next time."""
        for promise in list(self._promises):
            # Whoever is told first may have cancelled the others.
            if promise in self._promises:
                del self._promises[promise]
                promise.succeed(None)
