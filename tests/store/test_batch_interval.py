"""Group commit with a ``sync_interval``: jobs are answered when they come, and stored at a distance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from twisted.internet.defer import succeed
from twisted.logger import LogEvent, capturedLogs

from gearman_twisted.store import batch
from tests.store.test_batch import Rig, jobs


@pytest.fixture
def logged() -> Iterator[Sequence[LogEvent]]:
    with capturedLogs() as events:
        yield events


@pytest.fixture
def slow() -> Rig:
    """A rig whose store is given jobs every two seconds."""
    return Rig(sync_interval=2.0)


def test_interval_answers_at_once_and_commits_later(slow: Rig) -> None:
    """With an interval jobs are answered when they come, and stored together when it is over."""
    slow.add(jobs(1), [])
    slow.clock.advance(1)
    slow.add(jobs(2), [7])
    assert slow.answers == [[1], [2]]
    assert slow.store.commits == []
    slow.clock.advance(1)
    assert slow.store.commits == [([1, 2], [7])]
    slow.store.done()
    assert slow.answers == [[1], [2]]
    assert slow.clock.getDelayedCalls() == []


def test_interval_spares_what_ends_before(slow: Rig) -> None:
    """A job that ends before its commit never reaches the store, nor does its forget."""
    slow.add(jobs(1, 2, 3), [])
    slow.add([], [1, 3])
    slow.clock.advance(2)
    assert slow.store.commits == [([2], [])]
    slow.add([], [2])
    slow.store.done()
    assert slow.store.commits[1:] == [([], [2])]


def test_interval_does_not_let_too_many_wait(slow: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many jobs as a commit takes are stored before the interval is over."""
    monkeypatch.setattr(batch, "MAX_SAVES", 3)
    slow.add(jobs(1, 2), [])
    assert slow.store.commits == []
    slow.add(jobs(3), [])
    assert slow.store.commits == [([1, 2, 3], [])]


def test_interval_promises_nothing_while_the_store_is_gone(slow: Rig) -> None:
    """What was answered is tried for ever; what comes later is answered when it is stored."""
    slow.add(jobs(1), [])
    slow.clock.advance(2)
    slow.store.failed()
    slow.add(jobs(2), [])
    slow.add([], [1])
    assert slow.answers == [[1]]
    while len(slow.answers) == 1:
        slow.clock.advance(0.1)
        if slow.store.running:
            slow.store.failed()
    assert slow.answers[1:] == [([2], "the disk is full")]
    slow.clock.advance(5)
    assert slow.store.commits[-1] == ([], [1])
    slow.store.done()
    slow.add(jobs(3), [])
    assert slow.answers[2:] == [[3]]


def lose(rig: Rig) -> None:
    """Have attempts fail until the patience with the store is over, and it is tried again later."""
    over = rig.clock.seconds() + 11
    while rig.clock.seconds() < over:
        if rig.store.running:
            rig.store.failed()
        rig.clock.advance(0.1)
    if rig.store.running:
        rig.store.failed()


def test_interval_forgets_what_was_tried(slow: Rig) -> None:
    """A job that was answered, and ends after its commit has failed, is forgotten and not saved again."""
    slow.add(jobs(1, 2), [])
    slow.clock.advance(2)
    lose(slow)
    assert slow.commit.pending == 2
    slow.add([], [1])
    assert slow.commit.pending == 1
    slow.clock.advance(5)
    assert slow.store.commits[-1] == ([2], [1])
    slow.store.done()
    assert slow.commit.has([1, 2])
    assert slow.answers == [[1, 2]]
    assert slow.clock.getDelayedCalls() == []


def test_interval_job_does_not_come_back(slow: Rig) -> None:
    """A job whose commit is refused, and then lost, is not saved after it was forgotten."""
    slow.add(jobs(1), [])
    slow.clock.advance(2)
    slow.store.failed()
    slow.add([], [1])
    lose(slow)
    slow.clock.advance(5)
    slow.store.refused()
    while slow.store.running and slow.store.commits[-1][0]:
        slow.store.failed()
        if not slow.store.running:
            slow.clock.advance(slow.clock.getDelayedCalls()[0].getTime() - slow.clock.seconds())
    slow.store.answer = lambda: succeed(None)
    if slow.store.running:
        slow.store.done()
    slow.clock.advance(100)
    rows: set[int] = set()
    for saves, forgets in slow.store.commits:
        rows = rows.union(saves).difference(forgets)
    assert rows == set()


def test_interval_refused_job_is_reported(slow: Rig, logged: Sequence[LogEvent]) -> None:
    """A job that was answered and that the store refuses is named in the log, and not failed."""
    slow.add(jobs(1), [])
    slow.clock.advance(2)
    slow.store.refused()
    assert slow.answers == [[1]]
    assert [event["handle"] for event in logged if "handle" in event] == ["H:1"]


def test_interval_flush_stores_at_once(slow: Rig) -> None:
    """A flush does not wait for the interval to be over."""
    fired: list[None] = []
    slow.add(jobs(1), [])
    slow.commit.flush().addCallback(fired.append)
    assert slow.store.commits == [([1], [])]
    slow.store.done()
    assert fired == [None]
    assert slow.clock.getDelayedCalls() == []


def test_interval_flush_of_what_has_ended(slow: Rig) -> None:
    """A flush does not leave the delayed call of a commit that has become empty."""
    slow.add(jobs(1), [])
    slow.add([], [1])
    assert slow.commit.flush().called
    assert slow.store.commits == []
    assert slow.clock.getDelayedCalls() == []


def test_interval_flush_reports_what_is_lost(slow: Rig, logged: Sequence[LogEvent]) -> None:
    """If the store is gone at the end, the log says how many jobs of the last interval are lost."""
    slow.add(jobs(1, 2), [])
    slow.commit.flush()
    slow.store.failed()
    assert [event["count"] for event in logged if "count" in event] == [2]
    assert slow.clock.getDelayedCalls() == []
