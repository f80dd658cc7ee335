"""The queued jobs of one function and priority, first in, first out; some may be in the store only.

Theory of operation. Jobs enter at the right and leave at the left::

             front                       behind
    pop <- [ job job job ]  [ Segment 7 8 9 … ][ job ][ Segment 14 15 … ]  <- push, push_offloaded

- ``front`` holds jobs whose workloads are in memory; only these can be popped.
- ``behind`` exists while at least one job is in the store only. It starts with a segment, which keeps nothing
  of its jobs but ids and uniques. A job that has to stay in memory stands between segments, in its turn.
- When less than half of a read-ahead is left in front, ``next_to_load`` names the first ids of the first
  segment. The owner has the store read them, and ``deliver`` appends them to the front. With the last id of a
  segment, the jobs behind it up to the next segment move to the front too.
- A job that is cancelled stays where it is as a dead entry: a state other than QUEUED. It is dropped when it
  surfaces, or when the dead outnumber the living. ``live`` counts the others, wherever they are.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from gearman_twisted.engine.states import State

# Dead entries that may pile up before they are removed.
DEAD_ENTRIES = 64

# How far a lane reads ahead in the store. Enough for a quarter of a second at full speed, in which a commit
# may be before it; few lanes have both workers and more jobs than fit the memory, so it may be so much.
READ_AHEAD_JOBS = 4_096
READ_AHEAD_BYTES = 8 * 1024 * 1024

# The front of a lane that nothing was ever pushed to: an empty deque takes 760 bytes.
_UNUSED: deque[Any] = deque(maxlen=0)

SEGMENT_IDS = 65_536


class Entry(Protocol):
    """What a lane needs to know of a job."""

    state: State


EntryT = TypeVar("EntryT", bound=Entry)


class Segment:
    """Neighbours in a lane that are in the store only.

    Attributes:
        ids: theirs, rising.
        uniques: theirs, in the same order.
        loaded: how many of them, the first ones, were loaded and are here no more.
    """

    __slots__ = ("ids", "loaded", "uniques")

    def __init__(self) -> None:
        self.ids = array("q")
        self.uniques: list[bytes] = []
        self.loaded = 0

    def unique_of(self, id_: int) -> bytes | None:
        """Return the unique of one of them, None if the id is not here."""
        place = bisect_left(self.ids, id_, self.loaded)
        return self.uniques[place] if place < len(self.ids) and self.ids[place] == id_ else None


class Lane(Generic[EntryT]):
    """The queued jobs of one function and priority.

    Attributes:
        live: how many are queued, wherever they are.
        is_loading: whether jobs were requested from the store and have not been delivered.
    """

    __slots__ = ("_behind", "_front", "_offloaded", "_offloaded_bytes", "is_loading", "live")

    def __init__(self) -> None:
        self._front: deque[EntryT] = _UNUSED
        self._behind: deque[EntryT | Segment] | None = None
        self._offloaded = 0
        self._offloaded_bytes = 0
        self.live = 0
        self.is_loading = False

    @property
    def overflows(self) -> bool:
        """Whether some of its jobs are in the store only."""
        return self._behind is not None

    def push(self, job: EntryT) -> None:
        """Add a job that is QUEUED at the end."""
        if self._behind is not None:
            self._behind.append(job)
        elif self._front is _UNUSED:
            self._front = deque((job,))
        else:
            self._front.append(job)
        self.live += 1

    def push_offloaded(self, id_: int, unique: bytes, size: int) -> Segment:
        """Add a job whose other data is in the store only.

        Args:
            id_: the job's.
            unique: the job's.
            size: the length of its workload, 0 if that is not known.

        Returns:
            Where it is kept.
        """
        if self._behind is None:
            self._behind = deque()
        segment = self._behind[-1] if self._behind else None
        if not isinstance(segment, Segment) or segment.ids[-1] > id_ or len(segment.ids) == SEGMENT_IDS:
            segment = Segment()
            self._behind.append(segment)
        segment.ids.append(id_)
        segment.uniques.append(unique)
        self._offloaded += 1
        self._offloaded_bytes += size
        self.live += 1
        return segment

    def pop(self) -> EntryT | None:
        """Take the first job; None if it is in the store, or there is none."""
        front = self._front
        while front:
            job = front.popleft()
            if job.state is State.QUEUED:
                self.live -= 1
                return job
        return None

    @property
    def can_pop(self) -> bool:
        """Whether ``pop`` finds a job; may be wrong after a job was dropped, until ``pop`` is called."""
        return bool(self._front)

    def drop(self) -> None:
        """Count out a job that is no longer QUEUED."""
        self.live -= 1
        if len(self._front) > 2 * self.live + DEAD_ENTRIES:
            self._front = deque(job for job in self._front if job.state is State.QUEUED)
        if self._behind is not None and len(self._behind) > 2 * self.live + DEAD_ENTRIES:
            self._behind = deque(
                entry for entry in self._behind if isinstance(entry, Segment) or entry.state is State.QUEUED
            )

    # What is in the store only.

    def next_to_load(self) -> Sequence[tuple[int, bytes]]:
        """Return ids and uniques of jobs to load now; empty if enough are in memory or on their way."""
        if self._behind is None or self.is_loading:
            return ()
        size = self._offloaded_bytes // max(self._offloaded, 1)
        ahead = min(READ_AHEAD_JOBS, READ_AHEAD_BYTES // max(size, 1) or 1)
        if len(self._front) * 2 > ahead:
            return ()
        segment = self._behind[0]
        assert isinstance(segment, Segment)
        part = slice(segment.loaded, segment.loaded + ahead)
        return list(zip(segment.ids[part], segment.uniques[part], strict=True))

    def deliver(self, jobs: Sequence[EntryT], asked: int) -> Segment | None:
        """Bring loaded jobs to the front.

        Args:
            jobs: those that are QUEUED, in their order.
            asked: how many ids were requested; those without a job are gone.

        Returns:
            The segment that is used up, if one is.
        """
        behind = self._behind
        assert behind is not None
        segment = behind[0]
        assert isinstance(segment, Segment)
        segment.loaded += asked
        self._offloaded_bytes -= self._offloaded_bytes // self._offloaded * asked
        self._offloaded -= asked
        if self._front is _UNUSED:
            self._front = deque()
        self._front.extend(jobs)
        if segment.loaded < len(segment.ids):
            return None
        behind.popleft()
        while behind:
            job = behind[0]
            if isinstance(job, Segment):
                return segment
            behind.popleft()
            if job.state is State.QUEUED:
                self._front.append(job)
        self._behind = None
        return segment

    def clear(self) -> list[Segment]:
        """Drop all entries, of jobs that have ended; return the segments."""
        segments = list(self.segments())
        self._front.clear()
        self._behind = None
        self._offloaded = self._offloaded_bytes = 0
        return segments

    def segments(self) -> Iterator[Segment]:
        """Iterate over the segments."""
        return (entry for entry in self._behind or () if isinstance(entry, Segment))

    def offloaded(self) -> Iterator[tuple[int, bytes]]:
        """Iterate over ids and uniques of all offloaded jobs, also of those that were cancelled."""
        for segment in self.segments():
            yield from zip(segment.ids[segment.loaded :], segment.uniques[segment.loaded :], strict=True)
