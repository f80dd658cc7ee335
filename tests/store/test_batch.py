"""Group commit, over a store whose commits end when the test says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs
from zope.interface import implementer

from gearman_twisted.errors import StoreError, StoreUnavailable
from gearman_twisted.interfaces import IJobStore, StoredJob
from gearman_twisted.store import batch
from gearman_twisted.store.batch import GroupCommit


def jobs(*ids: int, workload: bytes = b"") -> list[StoredJob]:
    return [StoredJob(number, b"H:%d" % number, b"f", b"", workload, 1) for number in ids]


@implementer(IJobStore)
class HeldStore:
    """A store that keeps each commit until the test ends it."""

    durable = True
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
        running, self.running = self.running, None
        assert running is not None
        running.errback(StoreUnavailable(reason))


class Rig:
    def __init__(self) -> None:
        self.clock = Clock()
        self.store = HeldStore()
        self.answers: list[object] = []
        self.commit = GroupCommit(
            self.store,
            self.answers.append,
            lambda ids, reason: self.answers.append((ids, reason)),
            clock=self.clock,
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


def test_failed_saves_are_answered_once(rig: Rig, logged: Sequence[LogEvent]) -> None:
    """Jobs that were not saved are answered with the reason, logged once, and not tried again."""
    rig.add(jobs(1), [])
    rig.add(jobs(2, 3), [])
    rig.store.failed("no room")
    assert rig.answers == [([1], "no room")]
    assert rig.store.commits[1:] == [([2, 3], [])]
    rig.store.done()
    assert rig.answers[1:] == [[2, 3]]
    rig.clock.advance(100)
    assert len(rig.store.commits) == 2
    assert [event.get("reason") for event in logged] == ["no room"]


def test_failed_forgets_are_tried_again(rig: Rig) -> None:
    """A forget that failed is tried again after 1 s, then ever later up to 30 s, until it works."""
    rig.add([], [1])
    rig.store.failed()
    for delay in (1, 2, 4, 8, 16, 30, 30):
        before = len(rig.store.commits)
        rig.clock.advance(delay - 0.01)
        assert len(rig.store.commits) == before
        rig.clock.advance(0.01)
        assert rig.store.commits[before:] == [([], [1])]
        rig.store.failed()
    rig.clock.advance(30)
    rig.store.done()
    assert rig.clock.getDelayedCalls() == []
    rig.add([], [2])
    rig.store.failed()
    assert [call.getTime() - rig.clock.seconds() for call in rig.clock.getDelayedCalls()] == [
        batch.FIRST_RETRY
    ]


def test_failed_forgets_do_not_hold_up_saves(rig: Rig) -> None:
    """While forgets wait to be tried again, saves are committed as ever, and not together with them."""
    rig.add(jobs(1), [8])
    rig.store.failed()
    rig.add(jobs(2), [9])
    rig.store.done()
    rig.add(jobs(3), [])
    rig.clock.advance(1)
    assert rig.store.commits == [([1], [8]), ([2], [9]), ([3], [])]
    rig.store.done()
    assert rig.store.commits[3:] == [([], [8])]
    rig.add(jobs(4), [])
    rig.store.failed()
    assert rig.store.commits[4:] == [([4], [])]
    rig.store.done()
    rig.clock.advance(2)
    rig.store.done()
    assert rig.store.commits[5:] == [([], [8])]
    assert rig.answers == [([1], "the disk is full"), [2], [3], [4]]
    assert rig.clock.getDelayedCalls() == []


def test_saved_and_forgotten_before_its_commit(rig: Rig) -> None:
    """A job that ends before its commit starts is saved and forgotten in the same one, and answered."""
    rig.add(jobs(1), [])
    rig.add(jobs(2), [])
    rig.add([], [2])
    rig.store.done()
    assert rig.store.commits[1:] == [([2], [2])]
    rig.store.done()
    assert rig.answers == [[1], [2]]


def test_commit_is_capped(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit takes only so many jobs, and a job is never forgotten in a commit before its own."""
    monkeypatch.setattr(batch, "MAX_SAVES", 2)
    rig.add(jobs(1), [])
    rig.add(jobs(2, 3, 4, 5, 6), [1, 3, 4, 6])
    for _ in range(4):
        rig.store.done()
    assert rig.store.commits == [([1], []), ([2, 3], [1, 3]), ([4, 5], [4]), ([6], [6])]
    assert rig.answers == [[1], [2, 3], [4, 5], [6]]


def test_commit_is_capped_by_bytes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit takes only so many bytes, but always one job."""
    monkeypatch.setattr(batch, "MAX_BYTES", 10)
    rig.add(jobs(1, workload=b"x" * 99) + jobs(2, 3, 4, workload=b"x" * 5), [])
    for _ in range(3):
        rig.store.done()
    assert rig.store.commits == [([1], []), ([2, 3], []), ([4], [])]


def test_forgets_are_capped(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets are cut into commits too, and none is lost if one of these fails."""
    monkeypatch.setattr(batch, "MAX_FORGETS", 2)
    rig.add([], [1, 2, 3])
    rig.store.failed()
    rig.store.failed()
    rig.clock.advance(1)
    rig.store.done()
    rig.store.failed()
    rig.clock.advance(2)
    rig.store.done()
    assert rig.store.commits == [([], [1, 2]), ([], [3]), ([], [1, 2]), ([], [3]), ([], [3])]
    assert rig.clock.getDelayedCalls() == []


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


def test_flush_tries_failed_forgets_once_more(rig: Rig) -> None:
    """A flush does not wait out the delay of failed forgets, and a store that is gone does not hold it up."""
    fired: list[None] = []
    rig.add([], [1])
    rig.store.failed()
    rig.commit.flush().addCallback(fired.append)
    assert rig.store.commits[1:] == [([], [1])]
    rig.store.failed()
    assert fired == [None]
    assert rig.clock.getDelayedCalls() == []
    rig.add(jobs(2), [])
    rig.store.done()
    rig.clock.advance(2)
    assert rig.store.commits[2:] == [([2], []), ([], [1])]


def test_flush_while_forgets_fail(rig: Rig) -> None:
    """Forgets that fail during a flush are tried once more before it fires, and leave no delayed call."""
    fired: list[None] = []
    rig.add(jobs(1), [9])
    rig.commit.flush().addCallback(fired.append)
    rig.store.failed()
    assert rig.store.commits[1:] == [([], [9])]
    assert fired == []
    rig.store.failed()
    assert fired == [None]
    assert rig.clock.getDelayedCalls() == []


def test_cancelled_flush(rig: Rig) -> None:
    """A flush that is cancelled changes nothing for the jobs, nor for another flush."""
    rig.add(jobs(1), [])
    cancelled, other = rig.commit.flush(), rig.commit.flush()
    cancelled.addErrback(lambda _failure: None)
    cancelled.cancel()
    rig.store.done()
    assert rig.answers == [[1]]
    assert other.called
