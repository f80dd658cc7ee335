"""The wall clock is set while the server runs: durations do not mind, scheduled jobs follow it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs

from gearman_twisted.engine.jobserver import JobServer
from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.server.connection import PeersFactory
from gearman_twisted.server.host import Host
from gearman_twisted.server.peers import Peers
from gearman_twisted.store.memory import MemoryStore
from gearman_twisted.wire.constants import PacketType
from tests.kit.server_rig import Peer

P = PacketType
# A full hour, so that a time since 1970 and its minute are easy to see.
NOON = 1_800_000_000
HOUR = 3600


class Rig:
    """A job server with a clock that is never set, and a wall clock that is.

    Attributes:
        steady: what its timers go by.
        ahead: how far the wall clock is ahead of it.
    """

    def __init__(self) -> None:
        self.steady = Clock()
        self.steady.advance(5_000)
        self.ahead = float(NOON - 5_000)
        engine = JobServer(EngineSettings(handle_prefix=b"H:x"))
        self.host = Host(engine, MemoryStore(), self.steady, self.wall)
        self.factory = PeersFactory(Peers(self.host))
        self.host.start()
        self.client = self.connect()
        self.worker = self.connect()
        self.worker.send(P.CAN_DO, b"f")

    def wall(self) -> float:
        return self.steady.seconds() + self.ahead

    def connect(self) -> Peer:
        return Peer(self.factory, self.steady)

    def submit_at(self, time: int) -> None:
        self.client.send(P.SUBMIT_JOB_EPOCH, b"f", b"", b"%d" % time, b"w")
        assert [packet.type for packet in self.client.received()] == [P.JOB_CREATED]

    def wait(self, seconds: int) -> None:
        """Let so many seconds pass, one by one."""
        for _ in range(seconds):
            self.steady.advance(1)

    def grab(self) -> bytes | None:
        """The workload of the job that a worker gets now."""
        self.worker.send(P.GRAB_JOB)
        [answer] = self.worker.received()
        return answer.args[2] if answer.args else None


@pytest.fixture
def logged() -> Iterator[Sequence[LogEvent]]:
    with capturedLogs() as events:
        yield events


def warnings(logged: Sequence[LogEvent]) -> list[tuple[str, int]]:
    """The changes of the clock in the log, in whole seconds."""
    return [
        (event["direction"], round(event["seconds"])) for event in logged if event["log_level"].name == "warn"
    ]


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_time_limit_does_not_mind(jump: int) -> None:
    """A job is taken from its worker after its time limit, however the wall clock is set meanwhile."""
    rig = Rig()
    slow = rig.connect()
    slow.send(P.CAN_DO_TIMEOUT, b"f", b"10000")
    rig.client.send(P.SUBMIT_JOB_BG, b"f", b"", b"w")
    slow.send(P.GRAB_JOB)
    rig.ahead += jump
    rig.wait(9)
    assert rig.grab() is None
    rig.wait(1)
    assert rig.grab() == b"w"


def test_scheduled_job_waits_for_its_time_when_the_clock_is_set_back(logged: Sequence[LogEvent]) -> None:
    """A job of 12:01 runs at 12:01, and not a minute later, when the clock is set from 12:00 to 11:00."""
    rig = Rig()
    rig.submit_at(NOON + 60)
    rig.ahead -= HOUR
    rig.wait(HOUR + 59)
    assert rig.grab() is None
    rig.wait(1)
    assert rig.grab() == b"w"
    assert warnings(logged) == [("back", HOUR)]


def test_scheduled_job_runs_soon_when_its_time_has_come_by_a_jump(logged: Sequence[LogEvent]) -> None:
    """A job of 13:00 runs within a second when the clock is set from 12:00 to 13:00."""
    rig = Rig()
    rig.submit_at(NOON + HOUR)
    rig.worker.send(P.PRE_SLEEP)
    rig.ahead += HOUR
    rig.wait(1)
    assert [packet.type for packet in rig.worker.received()] == [P.NOOP]
    assert rig.grab() == b"w"
    assert warnings(logged) == [("forward", HOUR)]


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
def test_jump_is_seen_when_a_job_comes(jump: int, logged: Sequence[LogEvent]) -> None:
    """Where nothing was scheduled nobody watches the clock, but a new job goes by what it shows."""
    rig = Rig()
    assert rig.steady.getDelayedCalls() == []
    rig.ahead += jump
    now = NOON + jump
    rig.submit_at(now)
    assert rig.grab() == b"w"
    rig.submit_at(now + 2)
    assert rig.grab() is None
    rig.wait(2)
    assert rig.grab() == b"w"
    assert len(warnings(logged)) == 1


def recurring(rig: Rig) -> None:
    rig.client.send(P.SUBMIT_JOB_SCHED, b"f", b"u", b"*", b"*", b"*", b"*", b"*", b"w")
    rig.client.received()


def test_recurring_job_goes_on_when_the_clock_is_set_back() -> None:
    """A job of every minute runs in the next minute, and does not wait for an hour to pass again."""
    rig = Rig()
    recurring(rig)
    rig.wait(60)
    assert rig.grab() == b"w"
    rig.worker.send(P.WORK_COMPLETE, b"H:x:2", b"")
    rig.ahead -= HOUR
    rig.wait(59)
    assert rig.grab() is None
    rig.wait(1)
    assert rig.grab() == b"w"


def test_recurring_job_does_not_run_twice_in_its_minute() -> None:
    """A clock that is set back by some seconds does not have a job run for the same minute again."""
    rig = Rig()
    recurring(rig)
    rig.wait(60)
    assert rig.grab() == b"w"
    rig.worker.send(P.WORK_COMPLETE, b"H:x:2", b"")
    rig.ahead -= 30
    rig.wait(89)
    assert rig.grab() is None
    rig.wait(1)
    assert rig.grab() == b"w"


def test_recurring_job_runs_once_for_the_times_that_were_jumped_over() -> None:
    """A clock that is set forward by an hour makes one job of those that were due meanwhile."""
    rig = Rig()
    recurring(rig)
    rig.ahead += HOUR + 10
    rig.wait(1)
    assert rig.grab() == b"w"
    rig.worker.send(P.WORK_COMPLETE, b"H:x:2", b"")
    rig.wait(48)
    assert rig.grab() is None
    rig.wait(1)
    assert rig.grab() == b"w"


def test_small_steps_are_followed_and_not_logged(logged: Sequence[LogEvent]) -> None:
    """Steps of a time service below a second add up, and are no news."""
    rig = Rig()
    rig.submit_at(NOON + 20)
    for _ in range(10):
        rig.ahead += 0.5
        rig.wait(1)
    assert warnings(logged) == []
    rig.wait(4)
    assert rig.grab() is None
    rig.wait(1)
    assert rig.grab() == b"w"


def test_interruption_is_no_jump(logged: Sequence[LogEvent]) -> None:
    """A process that stands still between its looks at the two clocks does not take that for a jump."""
    rig = Rig()
    looks = iter([5.0, 5.0, 0.0, 0.0])

    def interrupted() -> float:
        rig.steady.rightNow += next(looks, 0.0)
        return rig.steady.seconds() + rig.ahead

    rig.host._wall = interrupted
    rig.client.send(P.ECHO_REQ, b"x")
    assert warnings(logged) == []
    assert rig.host.engine.wall_offset == rig.ahead
