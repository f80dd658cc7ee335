"""The queued jobs of one function and priority, of which some may be in the store alone."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence

from gearman_twisted.engine.job import Job, State

# Dead entries that may lie about before it is worth to clear them out.
DEAD_ENTRIES = 64

# How far a lane reads ahead in the store. Enough for a quarter of a second at full speed, in which a commit
# may be before it; few lanes have both workers and more jobs than fit the memory, so it may be so much.
READ_AHEAD_JOBS = 4_096
READ_AHEAD_BYTES = 8 * 1024 * 1024

_SEGMENT_IDS = 65_536


class Segment:
    """Neighbours in a lane that are in the store alone.

    Attributes:
        ids: theirs, rising.
        uniques: theirs, in the same order.
        gone: how many of them, the first ones, are here no more.
    """

    __slots__ = ("gone", "ids", "uniques")

    def __init__(self) -> None:
        self.ids = array("q")
        self.uniques: list[bytes] = []
        self.gone = 0

    def unique_of(self, id_: int) -> bytes | None:
        """The unique of one of them, None if it is not one of them."""
        place = bisect_left(self.ids, id_, self.gone)
        return self.uniques[place] if place < len(self.ids) and self.ids[place] == id_ else None


class Lane:
    """The queued jobs of one function and priority, first in, first out.

    Attributes:
        live: how many are queued, wherever they are.
        is_loading: whether some that are in the store were asked for and are not there yet.
    """

    __slots__ = ("_away", "_away_bytes", "_behind", "_front", "is_loading", "live")

    def __init__(self) -> None:
        # The first ones, all in memory; and from the first one that is not on, all that follow.
        self._front: deque[Job] = deque()
        self._behind: deque[Job | Segment] | None = None
        self._away = 0
        self._away_bytes = 0
        self.live = 0
        self.is_loading = False

    @property
    def overflows(self) -> bool:
        """Whether some of its jobs are in the store alone."""
        return self._behind is not None

    def push(self, job: Job) -> None:
        """Adds a job that is QUEUED at the end."""
        if self._behind is None:
            self._front.append(job)
        else:
            self._behind.append(job)
        self.live += 1

    def push_away(self, id_: int, unique: bytes, size: int) -> None:
        """Adds a job of which nothing else is kept here.

        Args:
            id_: the job's.
            unique: the job's.
            size: the length of its workload, 0 if that is not known.
        """
        if self._behind is None:
            self._behind = deque()
        segment = self._behind[-1] if self._behind else None
        if not isinstance(segment, Segment) or segment.ids[-1] > id_ or len(segment.ids) == _SEGMENT_IDS:
            segment = Segment()
            self._behind.append(segment)
        segment.ids.append(id_)
        segment.uniques.append(unique)
        self._away += 1
        self._away_bytes += size
        self.live += 1

    def pop(self) -> Job | None:
        """Takes the first job; None if it is in the store, or there is none."""
        front = self._front
        while front:
            job = front.popleft()
            if job.state is State.QUEUED:
                self.live -= 1
                return job
        return None

    @property
    def can_pop(self) -> bool:
        """Whether ``pop`` finds a job; after a job was dropped it may be wrong until ``pop`` was called."""
        return bool(self._front)

    def drop(self) -> None:
        """Counts out a job that is no longer QUEUED."""
        self.live -= 1
        if len(self._front) > 2 * self.live + DEAD_ENTRIES:
            self._front = deque(job for job in self._front if job.state is State.QUEUED)
        if self._behind is not None and len(self._behind) > 2 * self.live + DEAD_ENTRIES:
            self._behind = deque(
                entry for entry in self._behind if isinstance(entry, Segment) or entry.state is State.QUEUED
            )

    # What is in the store alone.

    def wanted(self) -> Sequence[tuple[int, bytes]]:
        """The ids and uniques of jobs to read now; empty if enough are in memory or on their way."""
        if self._behind is None or self.is_loading:
            return ()
        size = self._away_bytes // max(self._away, 1)
        ahead = min(READ_AHEAD_JOBS, READ_AHEAD_BYTES // max(size, 1) or 1)
        if len(self._front) * 2 > ahead:
            return ()
        segment = self._behind[0]
        assert isinstance(segment, Segment)
        part = slice(segment.gone, segment.gone + ahead)
        return list(zip(segment.ids[part], segment.uniques[part], strict=True))

    def deliver(self, jobs: Sequence[Job], asked: int) -> None:
        """The jobs that were wanted are in memory.

        Args:
            jobs: those that are QUEUED, in their order.
            asked: how many ids were asked for; those without a job are gone.
        """
        behind = self._behind
        assert behind is not None
        segment = behind[0]
        assert isinstance(segment, Segment)
        segment.gone += asked
        self._away_bytes -= self._away_bytes // self._away * asked
        self._away -= asked
        self._front.extend(jobs)
        if segment.gone < len(segment.ids):
            return
        behind.popleft()
        while behind and not isinstance(behind[0], Segment):
            job = behind.popleft()
            assert isinstance(job, Job)
            if job.state is State.QUEUED:
                self._front.append(job)
        if not behind:
            self._behind = None

    def clear(self) -> None:
        """Drops what it keeps of jobs that are away, and of dead ones; there is no live job."""
        self._front.clear()
        self._behind = None
        self._away = self._away_bytes = 0

    def unique_of(self, id_: int) -> bytes | None:
        """The unique of a job that is away, or was when it was cancelled; None if it is not here."""
        found = (entry.unique_of(id_) for entry in self._behind or () if isinstance(entry, Segment))
        return next((unique for unique in found if unique is not None), None)

    def away(self) -> Iterator[tuple[int, bytes]]:
        """The ids and uniques of all jobs that are away, or were when they were cancelled."""
        for entry in self._behind or ():
            if isinstance(entry, Segment):
                yield from zip(entry.ids[entry.gone :], entry.uniques[entry.gone :], strict=True)
