"""Silent peers are asked, and given up when those that can answer do not."""

from __future__ import annotations

import pytest

from gearman_twisted.runtime.keepalive import Keepalive
from tests.kit.loops import TestLoop


class Watched:
    """A connection that is watched every three seconds."""

    def __init__(self, loop: TestLoop) -> None:
        self.unsent = 0
        self.asked = 0
        self.given_up = 0
        self.owes = False
        self.keepalive = Keepalive(
            loop.runtime,
            3.0,
            ask=self._ask,
            unsent=lambda: self.unsent,
            give_up=self._give_up,
            owes=lambda: self.owes,
        )
        loop.call(self.keepalive.start)

    def _ask(self) -> None:
        self.asked += 1

    def _give_up(self) -> None:
        self.given_up += 1


@pytest.fixture
def watched(loop: TestLoop) -> Watched:
    """One that has just begun."""
    return Watched(loop)


def test_peer_that_stops_answering_is_given_up(watched: Watched, loop: TestLoop) -> None:
    """A peer that has answered before is given up within one interval."""
    loop.advance(2)
    assert watched.asked == 1
    watched.keepalive.answered()
    watched.keepalive.heard()
    loop.advance(2)
    assert (watched.asked, watched.given_up) == (2, 0)
    loop.advance(1)
    assert watched.given_up == 1


def test_peer_that_never_answered_is_kept(watched: Watched, loop: TestLoop) -> None:
    """Some servers do not know the question: their silence says nothing."""
    loop.advance(60)
    assert (watched.asked, watched.given_up) == (1, 0)
    watched.keepalive.stop()


def test_peer_that_owes_something_is_given_up(watched: Watched, loop: TestLoop) -> None:
    """A peer that never answered the question is given up for what every peer answers, once that is late."""
    loop.advance(2.9)
    watched.owes = True
    loop.advance(0.9)
    assert watched.given_up == 0
    loop.advance(0.3)
    assert watched.given_up == 1


def test_peer_that_talks_is_not_asked(watched: Watched, loop: TestLoop) -> None:
    """What comes, or is taken, is a sign of life."""
    for _ in range(5):
        loop.advance(0.9)
        watched.keepalive.heard()
    watched.unsent = 10_000
    loop.advance(0.9)
    for _ in range(5):
        watched.unsent -= 1000
        loop.advance(0.9)
    assert watched.asked == 0
    watched.keepalive.stop()


def test_answer_that_was_not_read_yet_counts(watched: Watched, loop: TestLoop) -> None:
    """When something blocked the loop, what waits to be read is read before a peer is given up."""
    watched.keepalive.answered()
    loop.advance(2)
    later = loop.runtime.later
    loop.call(lambda: later(0.95, lambda: later(0.05, watched.keepalive.heard)))
    loop.advance(1)
    assert watched.given_up == 0
    watched.keepalive.stop()


def test_stop_is_idempotent(loop: TestLoop) -> None:
    """It can be stopped twice, and before it was started."""
    keepalive = Keepalive(loop.runtime, 3.0, ask=list, unsent=lambda: 0, give_up=list)
    keepalive.stop()
    loop.call(keepalive.start)
    keepalive.stop()
    keepalive.stop()
