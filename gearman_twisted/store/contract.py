"""The contracts between this package and those who extend it."""

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
    the last one's Deferred has fired, and ``load`` meanwhile, then ``close``. All bytes of a ``StoredJob``
    come back as they were saved. ``gearman_twisted.store.conformance`` checks a store against all of this.

    A call that fails with ``StoreUnavailable`` is made again, with the same arguments, after a while: it is
    the store's own affair to connect anew. What fails with any other ``StoreError`` is given up.
    """

    durable = Attribute(
        "Whether a saved job survives the end of this process; if not, nothing is saved. What else it "
        "survives is up to the store: one that was told to do without stable storage is durable all the same."
    )
    sync_interval = Attribute(
        "Seconds that a job may wait for ``apply`` after its client was told that it is safe, float; "
        "0.0 if no client is told before ``apply`` has fired."
    )
    description = Attribute("Where the jobs are, for the operator: one line of str without secrets.")

    def check() -> None:
        """Finds out whether ``open`` is likely to work, without changing or creating anything.

        Called before the process goes to the background, and may block for a moment.

        Raises:
            StoreError: it will not work; the message says what to do.
        """

    def open() -> Deferred[None]:
        """Connects, and creates or migrates what is needed.

        Returns:
            A Deferred that fires with None, or fails with ``StoreConfigError``, ``StoreInUse`` where another
            server has the store open, or another ``StoreUnavailable``.
        """

    def replay(add: Callable[[Sequence[StoredJob]], None]) -> Deferred[int]:
        """Reads every stored job.

        Args:
            add: called in the reactor's thread with batches of jobs, in the order of their ids.

        Returns:
            A Deferred that fires with how many jobs there were, or fails with ``StoreError``.
        """

    def load(ids: Sequence[int]) -> Deferred[list[StoredJob]]:
        """Reads some jobs; may be called while a ``replay`` or an ``apply`` runs.

        Args:
            ids: those of the jobs, each once.

        Returns:
            A Deferred that fires with the jobs in the order of ``ids``, those left out that are not there or
            damaged, or fails with ``StoreError``.
        """

    def apply(saves: Sequence[StoredJob], forgets: Sequence[int]) -> Deferred[None]:
        """Saves and forgets jobs: all of it or nothing, on stable storage.

        Doing it again changes nothing: a saved id is replaced, an unknown one is forgotten without a
        word. An id that is in both is not there afterwards.

        Args:
            saves: jobs to keep, may be empty.
            forgets: ids of jobs to drop, may be empty.

        Returns:
            A Deferred that fires with None once it would survive a power cut. It fails with
            ``StoreUnavailable`` if it may work later; it may then have been done all the same. It fails with
            another ``StoreError`` if it cannot be done, such as for a job that is too large for the store;
            nothing was done then. It cannot be cancelled.
        """

    def close() -> Deferred[None]:
        """Lets go of everything; works before ``open`` and twice.

        Returns:
            A Deferred that fires with None.
        """


class IJobStoreFactory(Interface):
    """Makes stores of one kind; found through ``twisted.plugin``."""

    scheme = Attribute("What its URLs start with, before the colon: str, such as 'sqlite'.")
    summary = Attribute("What it is, in a line of str, for --help-store.")
    argument_help = Attribute("How its URLs are written, in a few lines of str, for --help-store.")

    def open_store(url: str, reactor: Any) -> IJobStore:
        """Makes a store; nothing is connected to or created yet.

        Args:
            url: the whole URL, its scheme included.
            reactor: the reactor that the store will live in.

        Raises:
            StoreConfigError: the URL makes no sense, or a driver is missing.
        """
