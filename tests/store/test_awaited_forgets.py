"""Who waits for forgets: an operator that cancels a job is told when it cannot come back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.defer import fail, succeed

from gearman_twisted.errors import StoreUnavailable
from gearman_twisted.store import batch
from tests.store.test_batch import Rig, jobs


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.store.running = None


def wait(rig: Rig) -> list[str | None]:
    """What those who wait for all forgets so far are told: a list that grows when they are."""
    told: list[str | None] = []
    rig.commit.when_forgotten(told.append)
    return told


def test_nothing_to_forget(rig: Rig) -> None:
    """Who waits for nothing is told at once, and the store is not troubled."""
    assert wait(rig) == [None]
    assert rig.store.commits == []


def test_told_after_the_commit(rig: Rig) -> None:
    """Who waits is told when the commit with the forgets is done, also if it runs already."""
    rig.add([], [1])
    running = wait(rig)
    rig.add([], [2])
    queued = wait(rig)
    rig.store.done()
    assert running == queued == []  # both wait for all that is queued when the next commit begins
    rig.store.done()
    assert running == queued == [None]
    assert rig.store.commits == [([], [1]), ([], [2])]


def test_later_forgets_are_not_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets that come after a commit has begun do not delay those who wait for it."""
    monkeypatch.setattr(batch, "MAX_FORGETS", 2)
    rig.add([], [1])
    rig.add([], [2, 3, 4, 5])
    told = wait(rig)
    rig.store.done()
    rig.add([], [6, 7, 8, 9])
    rig.store.done()
    assert told == []
    rig.store.done()
    assert told == [None]
    assert rig.store.commits == [([], [1]), ([], [2, 3]), ([], [4, 5]), ([], [6, 7])]


def test_save_that_runs_comes_first(rig: Rig) -> None:
    """Who waits for the forget of a job whose save runs is told after both."""
    rig.add(jobs(1), [])
    rig.add([], [1])
    told = wait(rig)
    rig.store.done()
    assert told == []
    rig.store.done()
    assert told == [None]
    assert rig.store.commits[-1] == ([], [1])


def test_save_that_waits_is_dropped(rig: Rig) -> None:
    """A job that no commit has taken cannot come back: nobody waits for the store."""
    rig.add(jobs(1), [])
    rig.add(jobs(2), [])
    rig.add([], [2])
    assert wait(rig) == [None]


def test_saves_are_not_waited_for(rig: Rig) -> None:
    """Who waits for forgets alone does not wait for the saves that are queued behind them."""
    rig.add([], [1])
    told = wait(rig)
    rig.add(jobs(2), [])
    rig.store.done()
    assert told == [None]


def test_unreachable_store(rig: Rig) -> None:
    """Who waits is told the reason when the patience with the store ends; the forgets are kept."""
    rig.add([], [1])
    told = wait(rig)
    while rig.clock.seconds() < 9.9:
        rig.store.failed("gone")
        rig.clock.advance(rig.clock.getDelayedCalls()[0].getTime() - rig.clock.seconds())
    assert told == []
    rig.store.failed("gone")
    assert told == ["gone"]
    again = wait(rig)
    rig.clock.advance(5)
    rig.store.done()
    assert again == [None]
    assert told == ["gone"]
    assert rig.store.commits[-1] == ([], [1])
    assert rig.clock.getDelayedCalls() == []


def test_store_that_is_back_in_time(rig: Rig) -> None:
    """A retry that works is as good as the first attempt."""
    rig.add([], [1])
    told = wait(rig)
    rig.store.failed("restarting")
    rig.clock.advance(1)
    rig.store.done()
    assert told == [None]


def test_full_store(rig: Rig) -> None:
    """A store that takes no saves, but forgets, is good enough."""
    rig.store.answer = lambda: fail(StoreUnavailable("full")) if rig.store.commits[-1][0] else succeed(None)
    rig.add(jobs(1), [2])
    told = wait(rig)
    while not rig.answers:
        rig.clock.advance(1)
    assert rig.store.commits[-1] == ([], [2])
    assert told == [None]


@pytest.mark.parametrize("came", ["before", "meanwhile"])
def test_refused_forgets(rig: Rig, came: str) -> None:
    """Who waits for forgets that are refused is told so at once; they are retried at the next question."""
    rig.add(jobs(9), [])
    rig.add([], [1])
    told = wait(rig) if came == "before" else []
    rig.store.done()
    if came == "meanwhile":
        told = wait(rig)
    rig.store.refused("read-only")
    assert told == ["read-only"]
    again = wait(rig)
    assert rig.store.commits[-1] == ([], [1])
    assert again == []
    rig.store.done()
    assert again == [None]
    assert rig.clock.getDelayedCalls() == []


def test_sync_interval_is_not_waited_for() -> None:
    """With a ``sync_interval`` who waits for forgets has their commit start at once."""
    rig = Rig(sync_interval=60.0)
    rig.add(jobs(1), [])
    rig.add([], [8])
    told = wait(rig)
    assert rig.store.commits == [([1], [8])]
    rig.store.done()
    assert told == [None]
    rig.add(jobs(2), [])
    rig.add([], [2])
    assert wait(rig) == [None]  # it never came to the store
    assert rig.store.commits == [([1], [8])]


@pytest.mark.parametrize("is_lost", [True, False])
def test_stop(rig: Rig, is_lost: bool) -> None:
    """At the end of the service everybody who waits is told, also if the store is lost."""
    rig.add([], [1])
    told = wait(rig)
    rig.add([], [2])
    more = wait(rig)
    rig.commit.flush()
    if is_lost:
        rig.store.failed("gone")
    else:
        rig.store.done()
        rig.store.done()
    assert told == more == (["gone"] if is_lost else [None])
    assert rig.clock.getDelayedCalls() == []


def test_caller_that_fails(rig: Rig) -> None:
    """A bug in one who waits keeps no other one waiting."""

    def raise_error(_reason: str | None) -> None:
        raise ZeroDivisionError

    rig.add([], [1])
    rig.commit.when_forgotten(raise_error)
    told = wait(rig)
    rig.store.done()
    assert told == [None]
    rig.add([], [2])
    assert rig.store.commits[-1] == ([], [2])


@pytest.mark.parametrize("came", ["before", "meanwhile"])
def test_refused_then_unreachable(rig: Rig, came: str) -> None:
    """When a refused commit is split and the store is lost, its forgets are not taken for done."""
    rig.add(jobs(1), [])
    rig.add(jobs(2), [7])
    told = wait(rig) if came == "before" else []
    rig.store.done()
    if came == "meanwhile":
        told = wait(rig)
    rig.store.refused()
    assert rig.store.commits[1:] == [([2], [7]), ([2], [])]
    rig.store.failed("gone")
    while not rig.answers[1:]:
        rig.clock.advance(rig.clock.getDelayedCalls()[0].getTime() - rig.clock.seconds())
        assert told == []
        rig.store.failed("gone")
    assert rig.store.commits[-1] == ([], [7])
    assert told == ["gone"]
    rig.store.done()
    assert wait(rig) == [None]


def test_nothing_to_forget_while_the_store_is_away(rig: Rig) -> None:
    """Who waits for nothing does not wait for the saves that are tried."""
    rig.add(jobs(1), [])
    rig.store.failed("gone")
    assert wait(rig) == [None]
