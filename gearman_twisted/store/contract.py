"""The interfaces that a job store implements, ours or another package's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from gearman_twisted.engine.outbox import StoredJob

__all__ = ["IJobStore", "IJobStoreFactory", "StoredJob"]


class IJobStore(Interface):
    """Where jobs survive a restart.

    The server calls ``open`` once, then ``replay`` once, then ``apply`` one call at a time, never before
    the last one's Deferred has fired, with ``load`` at any time between, then ``close``. All bytes of a
    ``StoredJob`` come back unchanged. ``gearman_twisted.store.conformance`` checks a store against all this.

    A call that fails with ``StoreUnavailable`` is retried later with the same arguments; to reconnect is up
    to the store. A call that fails with any other ``StoreError`` is given up.
    """

    durable = Attribute(
        "Whether a saved job survives the end of this process; if not, nothing is saved. What else it "
        "survives is up to the store: one that was told to do without stable storage still counts as durable."
    )
    sync_interval = Attribute(
        "Seconds that a job may wait for ``apply`` after its client was told that it is safe, float; "
        "0.0 if no client is told before ``apply`` has fired."
    )
    max_workload_bytes = Attribute(
        "The longest workload that it can save, int, or None where it has no limit; known once it is open. "
        "A job with a longer one is refused at once, and never part of an ``apply``."
    )
    description = Attribute("Where the jobs are, for the operator: one line of str without secrets.")

    def check() -> None:
        """Find out whether ``open`` is likely to work, without changing or creating anything.

        Called before the process goes to the background, and may block for a moment.

        Raises:
            StoreError: it will not work; the message says what to do.
        """

    def open() -> Deferred[None]:
        """Connect, and create or migrate what is needed.

        Returns:
            A Deferred that fires with None, or fails with ``StoreConfigError``, ``StoreInUse`` if another
            server has the store open, or another ``StoreUnavailable``.
        """

    def replay(add: Callable[[Sequence[StoredJob]], None]) -> Deferred[int]:
        """Read every stored job.

        Args:
            add: called in the reactor's thread with batches of jobs, in the order of their ids.

        Returns:
            A Deferred that fires with how many jobs there were, or fails with ``StoreError``.
        """

    def load(ids: Sequence[int]) -> Deferred[list[StoredJob]]:
        """Read some jobs; may be called while a ``replay`` or an ``apply`` runs.

        Args:
            ids: the ids of the jobs, each once.

        Returns:
            A Deferred that fires with the jobs in the order of ``ids``, without those that are missing or
            damaged, or fails with ``StoreError``.
        """

    def apply(saves: Sequence[StoredJob], forgets: Sequence[int]) -> Deferred[None]:
        """Save and forget jobs on stable storage, all or nothing. Idempotent.

        A saved job replaces one with the same id; forgetting an unknown id is a no-op. A job that is both
        saved and forgotten is gone afterwards.

        Args:
            saves: jobs to keep, may be empty.
            forgets: ids of jobs to drop, may be empty.

        Returns:
            A Deferred that fires with None once the changes would survive a power cut. It fails with
            ``StoreUnavailable`` if a retry may work; the outcome is unknown then. It fails with another
            ``StoreError`` if the changes are impossible, such as a job that is too large for the store;
            nothing was changed then. It cannot be cancelled.
        """

    def close() -> Deferred[None]:
        """Finish running calls, and release everything. Idempotent, also before ``open``.

        Returns:
            A Deferred that fires with None.
        """


class IJobStoreFactory(Interface):
    """Makes stores of one kind; found through ``twisted.plugin``."""

    scheme = Attribute("What its URLs start with, before the colon: str, such as 'sqlite'.")
    summary = Attribute("What it is, in a line of str, for --help-store.")
    argument_help = Attribute("How its URLs are written, in a few lines of str, for --help-store.")

    def open_store(url: str, reactor: Any) -> IJobStore:
        """Return a store; nothing is connected to or created yet.

        Args:
            url: the whole URL, including the scheme.
            reactor: the reactor that the store will use.

        Raises:
            StoreConfigError: the URL is invalid, or a driver is missing.
        """
