"""``gearman-store list``, ``count`` and ``show``: what is in a store, for people and for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from gearman_twisted.commands.store.opening import counted, opened_to_read, read, size_text
from gearman_twisted.commands.store.progress import progress
from gearman_twisted.errors import StoreError
from gearman_twisted.runtime.clocks import wall_clock
from gearman_twisted.store.contract import IJobStore, StoredJob

_PRIORITIES = ("high", "normal", "low")
_PREVIEW_BYTES = 200
_LIST_TITLES = ("HANDLE", "FUNCTION", "UNIQUE", "PRIORITY", "BYTES", "WHEN")
_COUNT_TITLES = ("FUNCTION", "HIGH", "NORMAL", "LOW", "LATER", "TOTAL", "BYTES")


async def list_jobs(
    reactor: Any, url: str, *, function: bytes | None, limit: int | None, is_json: bool
) -> int:
    """Print a line for each job, in the order of their ids.

    Args:
        reactor: what the store lives in.
        url: the store.
        function: only jobs of this one.
        limit: at most so many.
        is_json: each line is an object.

    Returns:
        The exit status.

    Raises:
        StoreError: the store failed.
    """
    printed = 0
    table = _Table(_LIST_TITLES)

    def take(jobs: Sequence[StoredJob]) -> bool:
        nonlocal printed
        chosen = [job for job in jobs if function is None or job.function == function]
        chosen = chosen if limit is None else chosen[: limit - printed]
        printed += len(chosen)
        if is_json:
            _print_lines(map(_as_json, chosen))
        else:
            table.print(list(map(_as_cells, chosen)))
        return limit is None or printed < limit

    async with opened_to_read(url, reactor) as store:
        await read(store, take)
    return 0


@attrs.define
class _Count:
    """The jobs of a function: by priority, those of them that wait for their time, and their bytes."""

    by_priority: list[int] = attrs.field(factory=lambda: [0, 0, 0])
    later: int = 0
    size: int = 0

    @property
    def total(self) -> int:
        """Return the number of jobs."""
        return sum(self.by_priority)

    @property
    def cells(self) -> tuple[str, ...]:
        """Return the row of the table."""
        return (*map(str, self.by_priority), str(self.later), str(self.total), str(self.size))


async def count_jobs(reactor: Any, url: str, *, is_json: bool) -> int:
    """Print how many jobs there are of each function.

    Args:
        reactor: what the store lives in.
        url: the store.
        is_json: as one object per function.

    Returns:
        The exit status.

    Raises:
        StoreError: the store failed.
    """
    counts: dict[bytes, _Count] = {}
    now = wall_clock(reactor)()

    async with opened_to_read(url, reactor) as store:
        with progress("counting", None) as advance:

            def take(jobs: Sequence[StoredJob]) -> bool:
                for job in jobs:
                    count = counts.setdefault(job.function, _Count())
                    count.by_priority[job.priority] += 1
                    count.later += bool(job.schedule) or job.run_at > now
                    count.size += len(job.workload)
                advance(len(jobs))
                return True

            await read(store, take)
    functions = sorted(counts)
    if is_json:
        _print_lines(
            json.dumps(
                {"function": _text(name), "later": count.later, "total": count.total, "bytes": count.size}
                | dict(zip(_PRIORITIES, count.by_priority, strict=True))
            )
            for name, count in ((name, counts[name]) for name in functions)
        )
        return 0
    _Table(_COUNT_TITLES).print([(shown(name), *counts[name].cells) for name in functions])
    size = sum(count.size for count in counts.values())
    total = sum(count.total for count in counts.values())
    print(f"{counted(total)} of {counted(len(counts), 'function')}, {size_text(size)}", flush=True)
    return 0


async def show_job(reactor: Any, url: str, which: bytes, *, is_workload: bool) -> int:
    """Print one job.

    Args:
        reactor: what the store lives in.
        url: the store.
        which: its handle or its id.
        is_workload: only its workload, byte by byte.

    Returns:
        The exit status.

    Raises:
        StoreError: the store failed, or there is no such job.
    """
    async with opened_to_read(url, reactor) as store:
        job = await _find(store, which)
    if job is None:
        raise StoreError(f"there is no job {shown(which)} in {store.description}")
    if is_workload:
        sys.stdout.buffer.write(job.workload)
        sys.stdout.buffer.flush()
        return 0
    preview = shown(job.workload[:_PREVIEW_BYTES])
    more = "…" if len(job.workload) > _PREVIEW_BYTES else ""
    lines = {
        "handle": shown(job.handle),
        "id": str(job.id),
        "function": shown(job.function),
        "unique": shown(job.unique),
        "priority": _PRIORITIES[job.priority],
        "when": _when(job),
        "reducer": shown(job.reducer),
        "bytes": str(len(job.workload)),
        "workload": preview + more,
    }
    _print_lines(f"{name:<9} {value}".rstrip() for name, value in lines.items())
    return 0


async def _find(store: IJobStore, which: bytes) -> StoredJob | None:
    number = which.rpartition(b":")[2]
    # The handles that a server gives end with the id; those of imported jobs do not.
    if number.isdigit() and len(number) < 19:
        for job in await store.load([int(number)]):
            if which in {number, job.handle}:
                return job
    found: list[StoredJob] = []

    def take(jobs: Sequence[StoredJob]) -> bool:
        found.extend(job for job in jobs if job.handle == which)
        return not found

    await read(store, take)
    return found[0] if found else None


class _Table:
    """Lines with aligned columns; their widths are those that the first lines need."""

    def __init__(self, titles: Sequence[str]) -> None:
        self._titles = titles
        self._widths: list[int] = []

    def print(self, rows: Sequence[Sequence[str]]) -> None:
        """Print rows, before the first of them the titles."""
        if not self._widths:
            rows = [self._titles, *rows]
            self._widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        _print_lines(
            "  ".join(cell.ljust(width) for cell, width in zip(row, self._widths, strict=True)).rstrip()
            for row in rows
        )


def _print_lines(lines: Iterable[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


def _as_cells(job: StoredJob) -> tuple[str, ...]:
    return (
        shown(job.handle),
        shown(job.function),
        shown(job.unique) or "-",
        _PRIORITIES[job.priority],
        str(len(job.workload)),
        _when(job),
    )


def _as_json(job: StoredJob) -> str:
    return json.dumps(
        {
            "id": job.id,
            "handle": _text(job.handle),
            "function": _text(job.function),
            "unique": _text(job.unique),
            "priority": _PRIORITIES[job.priority],
            "bytes": len(job.workload),
            "run_at": job.run_at,
            "schedule": _text(job.schedule),
            "reducer": _text(job.reducer),
        }
    )


def _when(job: StoredJob) -> str:
    if job.schedule:
        return f"each {shown(job.schedule)}"
    return shown_time(job.run_at) if job.run_at else "now"


def shown_time(seconds: int) -> str:
    """Return a time in UTC, or its number if it is out of range."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def _text(data: bytes) -> str:
    """Return bytes for JSON; what is not UTF-8 becomes surrogates, as with ``surrogateescape``."""
    return data.decode("utf-8", "surrogateescape")


def shown(data: bytes) -> str:
    """Return bytes as text for a terminal; control characters are escaped."""
    text = data.decode("utf-8", "backslashreplace")
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
