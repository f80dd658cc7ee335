"""A link keeps a connection up on either event loop, and ends it in order."""

from __future__ import annotations

from typing import Any, cast

import pytest

from gearman_twisted.errors import ConfigError
from gearman_twisted.runtime.interfaces import Peer, Transport
from gearman_twisted.runtime.link import Link, checked_policy
from tests.kit.loops import MemoryPlace, TestLoop


class Owner:
    """Counts what a link tells of."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.delays: list[int] = []
        self.peers: list[Counting] = []

    def make_peer(self) -> Peer:
        self.peers.append(Counting())
        return self.peers[-1]

    def attempt_failed(self, reason: str) -> None:
        self.reasons.append(reason)

    def retry_delay(self, attempt: int) -> float:
        self.delays.append(attempt)
        return float(attempt)


class Counting:
    """A peer that notes what happens to it."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def connected(self, transport: Transport) -> None:
        self.events.append("connected")

    def received(self, data: bytes) -> None:
        self.events.append(data)

    def lost(self, reason: str) -> None:
        self.events.append(f"lost: {reason}")


class Rig:
    """A link, its owner and the place that it connects to."""

    def __init__(self, loop: TestLoop) -> None:
        self.loop = loop
        self.place = MemoryPlace(loop)
        self.owner = Owner()
        self.link = Link(loop.runtime, self.place, self.owner)

    def start(self) -> None:
        self.loop.call(self.link.start)

    def stop(self) -> Any:
        return self.loop.outcome(self.link.stop())


@pytest.fixture
def rig(loop: TestLoop) -> Rig:
    """A link that was not started."""
    return Rig(loop)


def test_bytes_go_to_the_peer(rig: Rig) -> None:
    """What comes is given to the peer that the owner made for the connection."""
    rig.start()
    connection = rig.place.accept()
    connection.send(b"abc")
    assert rig.owner.peers[0].events == ["connected", b"abc"]
    connection.lose()
    rig.stop()


def test_failed_attempts_are_repeated(rig: Rig, loop: TestLoop) -> None:
    """After each failure the policy says how long to wait; it is told how many there were."""
    rig.start()
    rig.place.refuse("no")
    loop.advance(0.9)
    assert rig.place.attempts == []
    loop.advance(0.1)
    rig.place.refuse("no again")
    loop.advance(2)
    rig.place.accept()
    assert (rig.owner.reasons, rig.owner.delays) == (["no", "no again"], [1, 2])
    rig.place.connections[0].lose()
    assert rig.owner.delays == [1, 2, 1]
    loop.advance(1)
    assert len(rig.place.attempts) == 1
    rig.stop()


def test_hurry_ends_the_pause(rig: Rig, loop: TestLoop) -> None:
    """Whoever is in a hurry does not wait for the next attempt, and makes no second one."""
    loop.call(rig.link.hurry)
    rig.place.refuse()
    loop.call(rig.link.hurry)
    assert len(rig.place.attempts) == 1
    loop.call(rig.link.hurry)
    assert len(rig.place.attempts) == 1
    rig.stop()


def test_stop_waits_for_the_end(rig: Rig) -> None:
    """Stopping closes the connection and returns when it is gone; a second stop waits for the same."""
    rig.start()
    connection = rig.place.accept()
    stops = [rig.stop(), rig.stop()]
    assert connection.is_closing
    assert [stop.is_settled for stop in stops] == [False, False]
    connection.lose()
    assert [stop.is_settled for stop in stops] == [True, True]
    assert rig.owner.peers[0].events == ["connected", "lost: it was lost"]


def test_stop_aborts_after_a_while(rig: Rig, loop: TestLoop) -> None:
    """A server that does not take what was sent to it is not waited for longer than five seconds."""
    rig.start()
    connection = rig.place.accept()
    stopped = rig.stop()
    loop.advance(4.9)
    was_aborted = connection.is_aborted
    loop.advance(0.2)
    assert (was_aborted, connection.is_aborted, stopped.is_settled) == (False, True, True)


def test_stop_ends_an_attempt(rig: Rig) -> None:
    """What still connects is given up, and nobody is told of a failure."""
    rig.start()
    assert rig.stop().is_settled
    assert rig.place.attempts == []
    assert rig.owner.reasons == []


def test_stop_ends_a_pause(rig: Rig) -> None:
    """A link that waits for its next attempt stops at once."""
    rig.start()
    rig.place.refuse()
    assert rig.stop().is_settled


def test_stop_before_start(rig: Rig) -> None:
    """A link that was not started has nothing to stop, and can be started after that."""
    assert rig.stop().is_settled
    rig.start()
    assert len(rig.place.attempts) == 1
    rig.stop()


def test_started_again_while_it_closes(rig: Rig) -> None:
    """A new start does not wait for the old connection, whose end changes nothing for the new one."""
    rig.start()
    old = rig.place.accept()
    stopped = rig.stop()
    rig.start()
    new = rig.place.accept()
    old.lose()
    assert stopped.is_settled
    new.send(b"x")
    assert rig.owner.peers[1].events == ["connected", b"x"]
    assert rig.link.is_running
    new.lose()
    rig.stop()


def test_stop_while_the_owner_is_told(rig: Rig, loop: TestLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner that stops its link because an attempt failed has a link that is stopped."""
    stops: list[Any] = []
    monkeypatch.setattr(
        rig.owner, "attempt_failed", lambda _reason: stops.append(loop.runtime.start(rig.link.stop()))
    )
    rig.start()
    rig.place.refuse()
    loop.advance(10)
    assert (rig.link.is_running, rig.place.attempts) == (False, [])


class Failures:
    """A log that keeps failures."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    def failure(self, _text: str, error: BaseException, /, **_fields: object) -> None:
        self.errors.append(error)


@pytest.mark.parametrize(
    "policy",
    [lambda _attempt: 1 / 0, lambda _attempt: None, lambda _attempt: -1, lambda: 1, lambda _attempt: "soon"],
)
def test_policy_that_fails_does_not_end_the_link(policy: object) -> None:
    """Where the user's policy raises, or gives no seconds, that is logged, and the next attempt is made."""
    log = Failures()
    assert checked_policy(policy, cast("Any", log))(1) == 1.0
    assert len(log.errors) == 1


def test_policy_that_works_is_asked() -> None:
    """A policy gets the number of the attempt; nothing is logged."""
    log = Failures()
    policy = checked_policy(lambda attempt: 2 * attempt, cast("Any", log))
    assert (policy(1), policy(3), log.errors) == (2.0, 6.0, [])


def test_policy_has_to_be_callable() -> None:
    """What cannot be called is refused at once."""
    with pytest.raises(ConfigError, match="retry_policy takes a callable, not 3"):
        checked_policy(3, cast("Any", Failures()))
