"""Stores as ``gearman-store`` uses them: opened for a while, and read to the end."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import attrs

from gearman_twisted.commands.store.progress import progress
from gearman_twisted.errors import StoreConfigError, StoreInUse
from gearman_twisted.store import open_store
from gearman_twisted.store.contract import IJobStore, StoredJob


def make_store(url: str, reactor: Any) -> IJobStore:
    """Make a store that keeps something; nothing is opened yet.

    Raises:
        StoreConfigError: there is no such store, or it keeps nothing.
    """
    store = open_store(url, reactor)
    if not store.durable:
        # Only the scheme is quoted, as what follows may hold a password.
        scheme = url.partition(":")[0]
        raise StoreConfigError(f"{scheme}: keeps no jobs; name a store that does, such as sqlite:PATH")
    return store


def is_there(url: str) -> bool | None:
    """Return whether a store exists already; None if that is not known before it is opened."""
    scheme, _, rest = url.partition(":")
    return Path(rest.partition("?")[0]).exists() if scheme == "sqlite" else None


@asynccontextmanager
async def opened(store: IJobStore) -> AsyncIterator[None]:
    """Open a store, and close it at the end.

    Raises:
        StoreError: it cannot be opened.
    """
    try:
        store.check()
        await store.open()
    except StoreInUse as error:
        raise StoreInUse(
            f"{error}; while a server runs on the store, gearadmin --show-jobs lists its jobs"
        ) from error
    try:
        yield
    finally:
        await store.close()


@asynccontextmanager
async def opened_to_read(url: str, reactor: Any) -> AsyncIterator[IJobStore]:
    """Open a store that exists already.

    Raises:
        StoreError: it is not there, or cannot be opened.
    """
    store = make_store(url, reactor)
    if is_there(url) is False:
        raise StoreConfigError(f"there is no {store.description}; name one that a server has made")
    async with opened(store):
        yield store


class _EnoughError(Exception):
    """As much has been read as was wanted."""


async def read(store: IJobStore, take: Callable[[Sequence[StoredJob]], bool]) -> None:
    """Read the jobs of a store in the order of their ids.

    Args:
        store: which is open.
        take: called with some of them; returns whether it wants more.

    Raises:
        StoreError: it failed.
    """

    def add(jobs: Sequence[StoredJob]) -> None:
        if not take(jobs):
            raise _EnoughError

    try:
        await store.replay(add)
    except _EnoughError:
        return


@attrs.define
class Catalogue:
    """What a store holds.

    Attributes:
        digests: per id, in the order of the ids, what the job comes to.
        sizes: the workloads' bytes, in the same order.
        handles: those of all jobs.
        damaged: how many rows are no jobs; a store logs each of them.
    """

    digests: dict[int, bytes] = attrs.field(factory=dict)
    sizes: array[int] = attrs.field(factory=lambda: array("q"))
    handles: set[bytes] = attrs.field(factory=set)
    damaged: int = 0


async def catalogue(store: IJobStore, title: str) -> Catalogue:
    """Read all that a store holds, and keep what is needed to compare it with another.

    Args:
        store: which is open.
        title: what is shown beside the progress.

    Raises:
        StoreError: it failed.
    """
    result = Catalogue()
    damaged = _skipped(store)
    with progress(title, None) as advance:

        def take(jobs: Sequence[StoredJob]) -> bool:
            for job in jobs:
                result.digests[job.id] = _digest(job)
                result.sizes.append(len(job.workload))
                result.handles.add(job.handle)
            advance(len(jobs))
            return True

        await read(store, take)
    result.damaged = _skipped(store) - damaged
    return result


def _skipped(store: IJobStore) -> int:
    """Return how many records a store has skipped so far; stores of other packages need not count them."""
    skipped: int = getattr(store, "damaged", 0)
    return skipped


def _digest(job: StoredJob) -> bytes:
    digest = blake2b(digest_size=16)
    for value in job:
        part = value if isinstance(value, bytes) else b"%d" % value
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()


def size_text(size: int) -> str:
    """Return a number of bytes as people read it."""
    if size < 1000:
        return f"{size} bytes"
    value = float(size)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 1000 or unit == "GB":
            break
    return f"{value:.1f} {unit}"


def counted(number: int, noun: str = "job") -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
