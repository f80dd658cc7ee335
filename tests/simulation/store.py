"""A store of which everything can be wished: slow, failing, failing after it came through, and surviving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from gearman_twisted.errors import StoreError, StoreUnavailable
from gearman_twisted.store.contract import IJobStore, StoredJob


@attrs.define(eq=False)
class _Commit:
    """A commit that runs."""

    saves: Sequence[StoredJob]
    forgets: Sequence[int]
    done: Deferred[None] = attrs.field(factory=Deferred)
    call: IDelayedCall | None = None


@implementer(IJobStore)
class SimulatedStore:
    """A durable store whose rows outlive the server.

    Args:
        clock: how long a commit takes is counted in its time.
        random: decides what happens.
        slowness: seconds that a commit takes on average, 0 for at once.
        failures: the share of commits that are reported as failed: half of them are refused, of the others,
            for which the store was out of reach, half came through.
        applied: called with what a commit saves and forgets, before it starts.
        committed: called with what a commit has forgotten that is not reported as failed.

    Attributes:
        rows: what is on stable storage, by id.
        failed: how many commits were reported as failed.
        is_well: nothing fails any more.
    """

    durable = True
    sync_interval = 0.0
    max_workload_bytes = None
    description = "simulated"

    def __init__(
        self,
        clock: Clock,
        random: Random,
        *,
        slowness: float,
        failures: float,
        applied: Callable[[Sequence[StoredJob], Sequence[int]], None],
        committed: Callable[[Sequence[int]], None],
    ) -> None:
        self.rows: dict[int, StoredJob] = {}
        self.failed = 0
        self.is_well = False
        self._clock = clock
        self._random = random.random
        self._slowness = slowness
        self._failures = failures
        self._applied = applied
        self._committed = committed
        self._commit: _Commit | None = None

    def apply(self, saves: Sequence[StoredJob], forgets: Sequence[int]) -> Deferred[None]:
        """Start a commit."""
        if self._commit is not None:
            raise RuntimeError("the store was asked for two things at a time")
        self._applied(saves, forgets)
        if not self._slowness and (self.is_well or not self._failures):
            self._come_through(saves, forgets)
            self._committed(forgets)
            return succeed(None)
        self._commit = commit = _Commit(saves, forgets)
        delay = 2 * self._slowness * self._random()
        if self._random() < 0.02:
            delay *= 30
        commit.call = self._clock.callLater(delay, self._end)
        return commit.done

    def _come_through(self, saves: Sequence[StoredJob], forgets: Sequence[int]) -> None:
        for job in saves:
            self.rows[job.id] = job
        for id_ in forgets:
            self.rows.pop(id_, None)

    def _end(self) -> None:
        commit, self._commit = self._commit, None
        if commit is None:
            return
        fails = not self.is_well and self._random() < self._failures
        is_refused = fails and self._random() < 0.5
        if not fails or (not is_refused and self._random() < 0.5):
            self._come_through(commit.saves, commit.forgets)
        if fails:
            self.failed += 1
            error = StoreError("refused") if is_refused else StoreUnavailable("out of reach")
            commit.done.errback(Failure(error))
        else:
            self._committed(commit.forgets)
            commit.done.callback(None)

    def crash(self) -> None:
        """The server dies: the result of the running commit is lost, which may have succeeded or not."""
        commit, self._commit = self._commit, None
        if commit is not None and self._random() < 0.5:
            self._come_through(commit.saves, commit.forgets)

    def load(self, ids: Sequence[int]) -> Deferred[list[StoredJob]]:
        """Read some rows, which takes as long as a commit, and fails as often."""
        read: Deferred[list[StoredJob]] = Deferred()
        self._clock.callLater(2 * self._slowness * self._random(), self._read, ids, read)
        return read

    def _read(self, ids: Sequence[int], read: Deferred[list[StoredJob]]) -> None:
        if not self.is_well and self._random() < self._failures:
            read.errback(Failure(StoreUnavailable("out of reach")))
        else:
            read.callback([self.rows[id_] for id_ in ids if id_ in self.rows])

    # The rest of the interface is the world's own business.

    def check(self) -> None:
        """Find nothing wrong."""

    def open(self) -> Deferred[None]:
        """Do nothing."""
        return succeed(None)

    def replay(self, add: Callable[[Sequence[StoredJob]], None]) -> Deferred[int]:
        """Read every row."""
        add([self.rows[id_] for id_ in sorted(self.rows)])
        return succeed(len(self.rows))

    def close(self) -> Deferred[None]:
        """Do nothing."""
        return succeed(None)
