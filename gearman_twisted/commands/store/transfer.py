"""``gearman-store copy`` and ``import``: jobs on their way into a store of ours.

Both may be ended at any moment, and run again: what is in the store already is left as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from gearman_twisted.commands.process import complain
from gearman_twisted.commands.store.opening import (
    Catalogue,
    catalogue,
    counted,
    is_there,
    make_store,
    opened,
    opened_to_read,
    size_text,
)
from gearman_twisted.commands.store.progress import progress
from gearman_twisted.commands.store.queue import HANDLE_PREFIX, Found, Source, Unusable
from gearman_twisted.commands.store.sources import open_source
from gearman_twisted.errors import StoreConfigError, StoreError
from gearman_twisted.runtime.clocks import wall_clock
from gearman_twisted.store.contract import IJobStore, StoredJob

# A batch of jobs ends after so many bytes, however many jobs it may have.
_BATCH_BYTES = 8 * 1024 * 1024
_SHOWN_COMPLAINTS = 20
COMMAND = "gearman-store"


async def copy(reactor: Any, from_url: str, to_url: str, *, batch: int, is_dry_run: bool) -> int:
    """Copy all jobs of a store into another one, with their ids and handles.

    Args:
        reactor: what the stores live in.
        from_url: the store that is read.
        to_url: the store that is written to; it may hold jobs.
        batch: how many jobs are saved at once.
        is_dry_run: only says what would be done.

    Returns:
        The exit status.

    Raises:
        StoreError: a store failed, or the two hold different jobs under one id.
    """
    target = make_store(to_url, reactor)
    async with opened_to_read(from_url, reactor) as source:
        if source.description == target.description:
            raise StoreConfigError(f"both stores are the same: {source.description}")
        wanted = await catalogue(source, "reading FROM")
        total = f"{counted(len(wanted.digests))} ({size_text(sum(wanted.sizes))})"
        if is_dry_run and not is_there(to_url):
            target.check()
            print(f"would copy {total} from {source.description} to {_not_opened(target, to_url)}")
            return _damaged(wanted)
        async with opened(target):
            present = await catalogue(target, "reading TO")
            missing = _missing(wanted, present)
            _refuse_others(wanted, present, missing)
            _refuse_large(wanted, missing, target)
            there = len(wanted.digests) - len(missing)
            rest = f"from {source.description} to {target.description}; {there:,} were there already"
            if is_dry_run:
                print(f"would copy {len(missing):,} of {total} {rest}")
                return _damaged(wanted)
            await _copy_missing(source, target, wanted, missing, batch)
            present = await catalogue(target, "checking TO")
            lost = _missing(wanted, present)
            if lost:
                raise StoreError(
                    f"{counted(len(lost))} of {total} are not in {target.description} after copying, "
                    f"such as id {lost[0]}; run the command again"
                )
            print(f"copied {len(missing):,} of {total} {rest}; all are there")
    return _damaged(wanted)


def _not_opened(target: IJobStore, url: str) -> str:
    """Describe a target that a dry run does not open, as that would make its file or its tables."""
    if is_there(url) is False:
        return f"{target.description}, which is new"
    return f"{target.description}, except for those that are there already"


def _missing(wanted: Catalogue, present: Catalogue) -> list[int]:
    return [id_ for id_, digest in wanted.digests.items() if present.digests.get(id_) != digest]


def _refuse_others(wanted: Catalogue, present: Catalogue, missing: Sequence[int]) -> None:
    """Refuse to overwrite other jobs."""
    others = [id_ for id_ in missing if id_ in present.digests]
    if others:
        raise StoreError(
            f"{counted(len(others), 'id')} of FROM stand for other jobs in TO, such as {others[0]}: the two "
            f"stores were filled by different servers; nothing was copied"
        )
    # Each job that is there already has its handle there too, and no other may.
    twins = len(present.handles & wanted.handles) - (len(wanted.digests) - len(missing))
    if twins > 0:
        raise StoreError(
            f"{counted(twins, 'handle')} of FROM stand in TO under other ids, as if both had imported the "
            f"same queue; nothing was copied"
        )


def _refuse_large(wanted: Catalogue, missing: Sequence[int], target: IJobStore) -> None:
    """Refuse to copy a part of the jobs, where the target does not take all."""
    limit = target.max_workload_bytes
    sizes = dict(zip(wanted.digests, wanted.sizes, strict=True))
    large = [id_ for id_ in missing if limit is not None and sizes[id_] > limit]
    if large:
        raise StoreError(
            f"{target.description} takes workloads of up to {limit:,} bytes, too few for "
            f"{counted(len(large))} of FROM, such as id {large[0]} with {sizes[large[0]]:,}; "
            f"nothing was copied"
        )


async def _copy_missing(
    source: IJobStore, target: IJobStore, wanted: Catalogue, missing: Sequence[int], batch: int
) -> None:
    sizes = dict(zip(wanted.digests, wanted.sizes, strict=True))
    with progress("copying", len(missing)) as advance:
        for ids in _batches(missing, sizes, batch):
            await target.apply(await source.load(ids), ())
            advance(len(ids))


def _batches(ids: Sequence[int], sizes: dict[int, int], batch: int) -> Iterator[list[int]]:
    part: list[int] = []
    size = 0
    for id_ in ids:
        if part and (len(part) == batch or size + sizes[id_] > _BATCH_BYTES):
            yield part
            part, size = [], 0
        part.append(id_)
        size += sizes[id_]
    if part:
        yield part


def _damaged(wanted: Catalogue) -> int:
    if not wanted.damaged:
        return 0
    complain(f"{counted(wanted.damaged, 'row')} of FROM are damaged, and were left there", COMMAND)
    return 1


@attrs.define
class _Import:
    """One import: what is known of the target, and what has been done.

    Attributes:
        source: what is read.
        in_thread: calls something of the source.
        max_bytes: the longest workload that the target takes, as far as is known; None for no limit.
        known: the handles of all jobs that were imported into the target, now or before.
        last_id: the highest id in the target.
        present: how many jobs were there already.
        taken: how many jobs are new.
        taken_bytes: the size of their workloads.
        unusable: what cannot be imported.
        sizes: per id of a job that was saved, the bytes of its workload.
    """

    source: Source
    in_thread: Callable[..., Deferred[Any]]
    max_bytes: int | None
    known: set[bytes]
    last_id: int
    present: int = 0
    taken: int = 0
    taken_bytes: int = 0
    unusable: list[Unusable] = attrs.field(factory=list)
    sizes: dict[int, int] = attrs.field(factory=dict)

    def jobs_of(self, found: Sequence[Found | Unusable]) -> list[StoredJob]:
        """Return the jobs to save of what was found."""
        jobs = []
        for one in found:
            if isinstance(one, Unusable):
                self.unusable.append(one)
                continue
            handle = one.handle(self.source.description)
            if handle in self.known:
                self.present += 1
                continue
            if self.max_bytes is not None and len(one.workload) > self.max_bytes:
                self.unusable.append(one.too_large(self.max_bytes))
                continue
            self.known.add(handle)
            self.last_id += 1
            self.taken += 1
            self.taken_bytes += len(one.workload)
            jobs.append(one.job(self.last_id, handle))
        return jobs

    def is_as_imported(self, job: StoredJob) -> bool:
        """Return whether a job in the target is what its handle says."""
        found = Found(job.function, job.unique, job.workload, job.priority, job.run_at)
        return found.handle(self.source.description) == job.handle


async def import_queue(
    reactor: Any, from_url: str, to_url: str, *, functions: Sequence[bytes], batch: int, is_dry_run: bool
) -> int:
    """Import all jobs of a queue of the original gearmand.

    Args:
        reactor: what the store lives in.
        from_url: the queue.
        to_url: the store that is written to; it may hold jobs.
        functions: names of functions, to tell old keys in Redis apart.
        batch: how many jobs are saved at once.
        is_dry_run: only says what would be done.

    Returns:
        The exit status.

    Raises:
        StoreError: the queue or the store failed.
    """
    source = open_source(from_url, functions)
    target = make_store(to_url, reactor)
    # One thread, so that what is closed is not being read any more.
    thread = ThreadPool(1, 1, name="gearman queue")
    thread.start()
    in_thread: Callable[..., Deferred[Any]] = partial(deferToThreadPool, reactor, thread)
    try:
        await in_thread(source.open)
        warning = await in_thread(source.warning)
        if warning is not None:
            complain(warning, COMMAND)
        if is_dry_run and not is_there(to_url):
            target.check()
            run = _Import(source, in_thread, target.max_workload_bytes, set(), 0)
            await _take(run, None, batch)
            _report(run, _not_opened(target, to_url), is_dry_run=True)
        else:
            async with opened(target):
                present = await catalogue(target, "reading TO")
                imported = {handle for handle in present.handles if handle.startswith(HANDLE_PREFIX)}
                last_id = max(int(wall_clock(reactor)() * 1e6), max(present.digests, default=0))
                run = _Import(source, in_thread, target.max_workload_bytes, imported, last_id)
                await _take(run, None if is_dry_run else target, batch)
                if not is_dry_run:
                    await _check(run, target, batch)
            there = f"{target.description}; {run.present:,} were there already"
            _report(run, there, is_dry_run=is_dry_run)
    finally:
        try:
            await in_thread(source.close)
        finally:
            thread.stop()
    return 1 if run.unusable else 0


async def _take(run: _Import, target: IJobStore | None, batch: int) -> None:
    """Read the queue, and save what is new in the target if there is one."""
    total = await run.in_thread(run.source.count)
    parts = _parts(run.source.read(), batch)
    try:
        with progress("importing" if target else "reading FROM", total) as advance:
            while (found := await run.in_thread(next, parts, None)) is not None:
                jobs = run.jobs_of(found)
                if target is not None and jobs:
                    await target.apply(jobs, ())
                    run.sizes.update((job.id, len(job.workload)) for job in jobs)
                advance(len(found))
    finally:
        await run.in_thread(parts.close)


def _parts(found: Iterator[Found | Unusable], batch: int) -> Generator[list[Found | Unusable], None, None]:
    part: list[Found | Unusable] = []
    size = 0
    for one in found:
        part.append(one)
        size += len(one.workload) if isinstance(one, Found) else 0
        if len(part) == batch or size > _BATCH_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


async def _check(run: _Import, target: IJobStore, batch: int) -> None:
    """Read what was imported once more.

    Raises:
        StoreError: not all is there.
    """
    right = 0
    with progress("checking TO", len(run.sizes)) as advance:
        for ids in _batches(list(run.sizes), run.sizes, batch):
            right += sum(map(run.is_as_imported, await target.load(ids)))
            advance(len(ids))
    if right < len(run.sizes):
        raise StoreError(
            f"{counted(len(run.sizes) - right)} of {len(run.sizes):,} are not in {target.description} after "
            f"the import; run the command again"
        )


def _report(run: _Import, target: str, *, is_dry_run: bool) -> None:
    for one in run.unusable[:_SHOWN_COMPLAINTS]:
        complain(f"not imported: {one.where}: {one.reason}", COMMAND)
    if len(run.unusable) > _SHOWN_COMPLAINTS:
        complain(f"not imported: {len(run.unusable) - _SHOWN_COMPLAINTS:,} more", COMMAND)
    done = "would import" if is_dry_run else "imported"
    end = "" if is_dry_run else "; all are there"
    print(
        f"{done} {counted(run.taken)} ({size_text(run.taken_bytes)}) from {run.source.description} "
        f"to {target}{end}"
    )
    if not is_dry_run:
        print("The queue was left as it is: no gearmand may run on it any more, or its jobs run twice.")
    sys.stdout.flush()
