"""Group commit, over a store whose commits end when the test says so."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs
from zope.interface import implementer

from gearman_twisted.errors import StoreError, StoreUnavailable
from gearman_twisted.store import batch
from gearman_twisted.store.batch import GroupCommit
from gearman_twisted.store.contract import IJobStore, StoredJob


def jobs(*ids: int, workload: bytes = b"") -> list[StoredJob]:
    return [StoredJob(number, b"H:%d" % number, b"f", b"", workload, 1) for number in ids]


@implementer(IJobStore)
class HeldStore:
    """A store that keeps each commit until the test ends it."""

    durable = True
    sync_interval = 0.0
    max_workload_bytes = None
    description = "held"

    def __init__(self) -> None:
        self.commits: list[tuple[list[int], list[int]]] = []
        self.running: Deferred[None] | None = None
        self.answer: Callable[[], Deferred[None]] | None = None

    def check(self) -> None:
        raise NotImplementedError

    def open(self) -> Deferred[None]:
        raise NotImplementedError

    def replay(self, add: Callable[[Sequence[StoredJob]], None]) -> Deferred[int]:
        raise NotImplementedError

    def load(self, ids: Sequence[int]) -> Deferred[list[StoredJob]]:
        raise NotImplementedError

    def close(self) -> Deferred[None]:
        raise NotImplementedError

    def apply(self, saves: Sequence[StoredJob], forgets: Sequence[int]) -> Deferred[None]:
        assert self.running is None, "one commit at a time"
        self.commits.append(([job.id for job in saves], list(forgets)))
        if self.answer is not None:
            return self.answer()
        self.running = Deferred()
        return self.running

    def done(self) -> None:
        running, self.running = self.running, None
        assert running is not None
        running.callback(None)

    def failed(self, reason: str = "the disk is full") -> None:
        self._end(StoreUnavailable(reason))

    def refused(self, reason: str = "it is too large") -> None:
        self._end(StoreError(reason))

    def _end(self, error: StoreError) -> None:
        running, self.running = self.running, None
        assert running is not None
        running.errback(error)


class Rig:
    def __init__(self, sync_interval: float = 0.0, patience: float = 10.0) -> None:
        self.clock = Clock()
        self.store = HeldStore()
        self.store.sync_interval = sync_interval
        self.answers: list[object] = []
        self.commit = GroupCommit(
            self.store,
            self.answers.append,
            lambda ids, reason: self.answers.append((ids, reason)),
            clock=self.clock,
            patience=patience,
        )
        self.add = self.commit.add


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.store.running = None


@pytest.fixture
def logged() -> Iterator[Sequence[LogEvent]]:
    with capturedLogs() as events:
        yield events


def test_first_job_is_not_kept_waiting(rig: Rig) -> None:
    """A job that comes while nothing runs is given to the store at once, and answered when it has it."""
    rig.add(jobs(1), [])
    assert rig.store.commits == [([1], [])]
    assert rig.answers == []
    rig.store.done()
    assert rig.answers == [[1]]
    assert rig.store.commits == [([1], [])]


def test_jobs_share_the_next_commit(rig: Rig) -> None:
    """All that comes while a commit runs is in the next one, in the order in which it came."""
    rig.add(jobs(1), [])
    rig.add(jobs(3), [])
    rig.add(jobs(2, 5), [1])
    assert rig.commit.pending == 3
    rig.store.done()
    assert rig.commit.pending == 0
    assert rig.store.commits[1:] == [([3, 2, 5], [1])]
    rig.store.done()
    assert rig.answers == [[1], [3, 2, 5]]


def test_nothing_starts_nothing(rig: Rig) -> None:
    """To add nothing does not trouble the store."""
    rig.add([], [])
    assert rig.store.commits == []


def test_forgets_alone(rig: Rig) -> None:
    """Forgets get a commit of their own if there is nothing to save, and no answer."""
    rig.add([], [7])
    assert rig.store.commits == [([], [7])]
    rig.store.done()
    assert rig.answers == []


def test_saved_and_forgotten_before_its_commit(rig: Rig) -> None:
    """A job that ends before its commit starts is neither saved nor forgotten, nor answered."""
    rig.add(jobs(1), [])
    rig.add(jobs(2, 3), [])
    rig.add([], [2])
    rig.add(jobs(4), [4])
    assert rig.commit.pending == 1
    rig.store.done()
    assert rig.store.commits[1:] == [([3], [])]
    rig.store.done()
    assert rig.answers == [[1], [3]]
    assert len(rig.store.commits) == 2


def test_forgotten_job_is_not_kept(rig: Rig) -> None:
    """While the store is away, nothing is left of a job that ends before a commit has tried it."""
    rig.add(jobs(1), [])
    rig.store.failed("restarting")
    workload = bytes(1000)
    before = sys.getrefcount(workload)
    rig.add(jobs(2, workload=workload), [])
    assert sys.getrefcount(workload) > before
    rig.add([], [2])
    assert sys.getrefcount(workload) == before
    rig.clock.advance(1)
    rig.store.done()
    assert rig.store.commits == [([1], []), ([1], [])]
    assert rig.answers == [[1]]


def test_tried_job_is_forgotten(rig: Rig) -> None:
    """A job that ends while its commit is tried may be in the store, whatever that says: it is forgotten."""
    rig.add(jobs(1), [])
    rig.store.failed("restarting")
    rig.add([], [1])
    while not rig.answers:
        rig.clock.advance(1)
        if rig.store.running:
            rig.store.failed("restarting")
    rig.clock.advance(5)
    assert rig.store.commits[-1] == ([], [1])
    rig.store.done()
    assert rig.clock.getDelayedCalls() == []


def test_commit_is_capped(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit takes only so many jobs."""
    monkeypatch.setattr(batch, "MAX_SAVES", 2)
    rig.add(jobs(1), [])
    rig.add(jobs(2, 3, 4, 5, 6), [])
    rig.add([], [1, 4])
    for _ in range(3):
        rig.store.done()
    assert rig.store.commits == [([1], []), ([2, 3], [1]), ([5, 6], [])]
    assert rig.answers == [[1], [2, 3], [5, 6]]


def test_commit_is_capped_by_bytes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit takes only so many bytes, but always one job."""
    monkeypatch.setattr(batch, "MAX_BYTES", 10)
    rig.add(jobs(1, workload=b"x" * 99) + jobs(2, 3, 4, workload=b"x" * 5), [])
    for _ in range(3):
        rig.store.done()
    assert rig.store.commits == [([1], []), ([2, 3], []), ([4], [])]


def raise_at_once() -> Deferred[None]:
    raise KeyError("bug")


@pytest.mark.parametrize(
    "answer", [raise_at_once, lambda: fail(ZeroDivisionError("bug")), lambda: fail(StoreError("bug"))]
)
def test_any_exception_is_a_failed_save(rig: Rig, answer: Callable[[], Deferred[None]]) -> None:
    """Whatever a store raises, now or later, its jobs are answered, and the next ones are saved."""
    rig.store.answer = answer
    rig.add(jobs(1), [])
    assert len(rig.answers) == 1
    assert str(rig.answers[0]).startswith("([1], ")
    assert "bug" in str(rig.answers[0])
    rig.store.answer = lambda: succeed(None)
    rig.add(jobs(2), [])
    assert rig.answers[1:] == [[2]]


def test_answers_may_add(rig: Rig) -> None:
    """What is added while jobs are answered shares the next commit, however long that goes on."""
    store = HeldStore()
    store.answer = lambda: succeed(None)
    seen: list[int] = []

    def saved(ids: list[int]) -> None:
        seen.extend(ids)
        if ids[0] < 5_000:
            commit.add(jobs(ids[0] + 1), [])
            commit.add([], ids)

    commit = GroupCommit(store, saved, lambda _ids, _reason: None, clock=Clock())
    commit.add(jobs(1), [])
    assert seen == list(range(1, 5_001))
    assert store.commits[1] == ([2], [1])


def test_caller_that_fails(logged: Sequence[LogEvent]) -> None:
    """A bug in the caller's answer is logged, and the jobs that follow are saved."""
    store = HeldStore()

    def saved(ids: list[int]) -> None:
        raise ZeroDivisionError

    commit = GroupCommit(store, saved, lambda _ids, _reason: None, clock=Clock())
    commit.add(jobs(1), [])
    commit.add(jobs(2), [])
    store.done()
    assert store.commits[1:] == [([2], [])]
    assert [event["ids"] for event in logged] == [[1]]


def test_flush_waits_for_all(rig: Rig) -> None:
    """A flush fires when nothing waits and nothing runs, what came after it included."""
    fired: list[None] = []
    rig.commit.flush().addCallback(fired.append)
    assert fired == [None]
    rig.add(jobs(1), [])
    rig.commit.flush().addCallback(fired.append)
    rig.commit.flush().addCallback(fired.append)
    rig.add(jobs(2), [])
    rig.store.done()
    assert fired == [None]
    rig.store.done()
    assert fired == [None] * 3
    assert rig.answers == [[1], [2]]


def test_cancelled_flush(rig: Rig) -> None:
    """A flush that is cancelled changes nothing for the jobs, nor for another flush."""
    rig.add(jobs(1), [])
    cancelled, other = rig.commit.flush(), rig.commit.flush()
    cancelled.addErrback(lambda _failure: None)
    cancelled.cancel()
    rig.store.done()
    assert rig.answers == [[1]]
    assert other.called


# A store that cannot be reached.


def test_unreachable_store_is_tried_again_with_growing_pauses(rig: Rig, logged: Sequence[LogEvent]) -> None:
    """The same commit is tried ever later until it works; nobody is answered before; it is logged once."""
    rig.add(jobs(1, 2), [9])
    rig.store.failed("restarting")
    for delay in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2):
        before = len(rig.store.commits)
        rig.clock.advance(delay - 0.01)
        assert len(rig.store.commits) == before
        rig.clock.advance(0.02)
        assert rig.store.commits[before:] == [([1, 2], [9])]
        rig.add(jobs(10 + before), [])
        assert rig.answers == []
        if delay < 3.2:
            rig.store.failed("restarting")
    rig.store.done()
    assert rig.answers == [[1, 2]]
    assert rig.store.commits[-1] == ([11, 12, 13, 14, 15, 16], [])
    rig.store.done()
    assert rig.clock.getDelayedCalls() == []
    assert [event["log_level"].name for event in logged] == ["error", "info"]
    assert logged[0]["reason"] == "restarting"


def test_patience_ends(rig: Rig) -> None:
    """When the store was gone for long all that waits fails, later jobs at the next attempt."""
    rig.add(jobs(1), [8])
    rig.store.failed("gone")
    rig.add(jobs(2), [9])
    while not rig.answers:
        rig.clock.advance(0.1)
        if rig.store.running:
            rig.store.failed("gone")
    rig.store.failed("gone")
    assert rig.clock.seconds() == pytest.approx(10, abs=0.11)
    assert rig.answers == [([1, 2], "gone")]
    rig.add(jobs(3), [])
    assert rig.store.running is None
    rig.clock.advance(5)
    assert rig.store.commits[-1] == ([3], [8, 9])
    rig.store.failed("still gone")
    assert rig.answers[1:] == [([3], "still gone")]
    assert rig.store.commits[-1] == ([], [8, 9])
    rig.store.failed("still gone")
    rig.clock.advance(5)
    assert rig.store.commits[-1] == ([], [8, 9])
    rig.add(jobs(4), [])
    rig.store.done()
    rig.store.done()
    assert rig.answers[2:] == [[4]]
    assert rig.clock.getDelayedCalls() == []


@pytest.mark.parametrize("patience", [0.05, 1.0, 8.0, 30.0, 33.3])
@pytest.mark.parametrize("lost_at", [0.0, 1_790_000_000.123])
def test_last_attempt_is_made_when_patience_ends(patience: float, lost_at: float) -> None:
    """No pause goes beyond the patience: jobs fail after as many seconds as the operator has set."""
    rig = Rig(patience=patience)
    rig.clock.advance(lost_at)
    rig.store.answer = lambda: fail(StoreUnavailable("gone"))
    rig.add(jobs(1), [])
    while not rig.answers:
        rig.clock.advance(rig.clock.getDelayedCalls()[0].getTime() - rig.clock.seconds())
    assert rig.answers == [([1], "gone")]
    assert rig.clock.seconds() - lost_at == pytest.approx(patience, abs=0.002)


def test_full_store_forgets_though_it_cannot_save(rig: Rig) -> None:
    """When a commit is given up, what it was to forget is tried alone, which may make room."""
    rig.store.answer = lambda: fail(StoreUnavailable("full")) if rig.store.commits[-1][0] else succeed(None)
    rig.add(jobs(1, 2), [8, 9])
    rig.add([], [2])
    while not rig.answers:
        rig.clock.advance(1)
    assert rig.answers == [([1, 2], "full")]
    assert rig.store.commits[-1] == ([], [8, 9])
    rig.clock.advance(10)
    assert rig.store.commits[-1] == ([], [2])
    assert rig.clock.getDelayedCalls() == []


def test_patience_begins_anew(rig: Rig) -> None:
    """After the store was reached, the next time that it is gone is waited out as patiently."""
    for number in range(1, 4):
        rig.add(jobs(number), [])
        rig.store.failed()
        rig.clock.advance(9)
        rig.store.failed()
        rig.clock.advance(5)
        rig.store.done()
    assert rig.answers == [[1], [2], [3]]


def test_flush_tries_an_unreachable_store_once_more(rig: Rig) -> None:
    """A flush ends the pause; if the store is still gone the saves fail, and the end is not held up."""
    fired: list[None] = []
    rig.add(jobs(1), [7])
    rig.store.failed()
    rig.add(jobs(2), [8])
    rig.commit.flush().addCallback(fired.append)
    assert rig.store.commits[1:] == [([1], [7])]
    rig.store.failed()
    assert rig.answers == [([1, 2], "the disk is full")]
    assert fired == [None]
    assert rig.clock.getDelayedCalls() == []
    assert len(rig.store.commits) == 2


def test_flush_while_the_store_is_tried(rig: Rig) -> None:
    """An attempt that works during a flush brings all that waits to the store."""
    fired: list[None] = []
    rig.add(jobs(1), [])
    rig.store.failed()
    rig.clock.advance(0.1)
    rig.add(jobs(2), [1])
    rig.commit.flush().addCallback(fired.append)
    rig.store.done()
    assert fired == []
    assert rig.store.commits[-1] == ([2], [1])
    rig.store.done()
    assert rig.answers == [[1], [2]]
    assert fired == [None]


# A store that refuses something.


def test_refused_job_fails_alone(rig: Rig) -> None:
    """Of a commit that is refused all jobs but the one that cannot be saved are saved, in their order."""
    rig.store.answer = lambda: succeed(None)
    bad = 777

    def answer() -> Deferred[None]:
        return fail(StoreError("it is too large")) if bad in rig.store.commits[-1][0] else succeed(None)

    rig.store.answer = answer
    rig.add(jobs(*range(1, 1001)), [2000, 2001])
    answered = [number for ids in rig.answers if isinstance(ids, list) for number in ids]
    assert answered == [number for number in range(1, 1001) if number != bad]
    assert [ids for ids in rig.answers if isinstance(ids, tuple)] == [([bad], "it is too large")]
    assert sum(forgets == [2000, 2001] for saves, forgets in rig.store.commits if bad not in saves) == 1
    assert len(rig.store.commits) < 30


def test_store_that_refuses_everything_is_not_asked_job_by_job(rig: Rig, logged: Sequence[LogEvent]) -> None:
    """A commit is cut up only so often; each job is answered once, and a refused job is not tried again."""
    rig.store.answer = lambda: fail(StoreError("no"))
    rig.add(jobs(*range(1, 1001)), [])
    assert len(rig.store.commits) <= 2 * batch.MAX_SPLITS + 1
    failed = [number for answer in rig.answers if isinstance(answer, tuple) for number in answer[0]]
    assert failed == list(range(1, 1001))
    rig.clock.advance(100)
    assert rig.clock.getDelayedCalls() == []
    assert {event.get("reason") for event in logged} == {"no"}


def test_refused_forgets_are_tried_again_later(rig: Rig) -> None:
    """Forgets that the store refuses do not take saves with them, nor does the server ask without rest."""
    refuses = True
    rig.store.answer = lambda: (
        fail(StoreError("locked row")) if refuses and rig.store.commits[-1][1] else succeed(None)
    )
    rig.add(jobs(1), [8])
    rig.add(jobs(2), [])
    assert rig.answers == [[1], [2]]
    commits = len(rig.store.commits)
    rig.clock.advance(batch.REFUSED_RETRY)
    assert rig.store.commits[commits:] == [([], [8])]
    refuses = False
    rig.add(jobs(3), [])
    rig.clock.advance(batch.REFUSED_RETRY)
    assert rig.store.commits[commits + 1 :] == [([3], []), ([], [8])]
    assert rig.clock.getDelayedCalls() == []


def test_refused_forgets_need_nothing_else_to_be_tried_again(rig: Rig) -> None:
    """A server that has nothing more to do forgets all the same what ended."""
    rig.add([], [1])
    rig.store.refused()
    rig.clock.advance(batch.REFUSED_RETRY)
    assert rig.store.commits == [([], [1]), ([], [1])]
    rig.store.done()
    assert rig.clock.getDelayedCalls() == []


def test_refused_forgets_do_not_hold_up_a_flush(rig: Rig) -> None:
    """A flush tries refused forgets once more, and leaves no delayed call."""
    fired: list[None] = []
    rig.store.answer = lambda: fail(StoreError("no"))
    rig.add([], [8])
    rig.commit.flush().addCallback(fired.append)
    assert rig.store.commits == [([], [8]), ([], [8])]
    assert fired == [None]
    assert rig.clock.getDelayedCalls() == []


def test_forgets_are_capped(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets are cut into commits too, and none is lost if one of these fails."""
    monkeypatch.setattr(batch, "MAX_FORGETS", 2)
    rig.add([], [1, 2, 3])
    rig.store.failed()
    rig.clock.advance(0.1)
    rig.store.done()
    rig.store.done()
    assert rig.store.commits == [([], [1, 2]), ([], [1, 2]), ([], [3])]
    assert rig.clock.getDelayedCalls() == []
