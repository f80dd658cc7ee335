"""Several servers as one: choice, fail-over, and what is never sent twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock

from gearman_twisted import ServerPool
from gearman_twisted.client.pool import Choice
from gearman_twisted.errors import ConfigError, ConnectionLost, NoServers
from gearman_twisted.wire.constants import PacketType
from tests.client.test_client import result
from tests.kit.peers import MemoryServer, Peer
from tests.kit.servers import TwistdGearman

P = PacketType
reactor: Any = installed_reactor


class Rig:
    """A pool over a reactor in memory, whose servers are one:1, two:1 and three:1."""

    def __init__(self, **options: Any) -> None:
        self.reactor = MemoryReactorClock()
        self.server = MemoryServer(self.reactor)
        options.setdefault("retry_policy", lambda _attempt: 5.0)
        self.pool = ServerPool(
            ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"], reactor=self.reactor, exceptions=False, **options
        )

    def start(self, *there: bool) -> list[Peer]:
        """Starts it; tells which servers are there, and returns their ends."""
        self.pool.startService()
        peers = []
        for is_there in there:
            if is_there:
                peers.append(self.server.accept())
            else:
                self.server.refuse()
        return peers


def submissions(peers: list[Peer]) -> list[list[bytes]]:
    """The workloads that each server has got since the last time."""
    return [[packet.args[-1] for packet in peer.taken()] for peer in peers]


def test_first_that_is_there() -> None:
    """With ``first`` the first server gets all, and the next one when it goes; it is taken back."""
    rig = Rig(choice="first")
    peers = rig.start(True, True, True)
    rig.pool.submit("f", b"1")
    assert submissions(peers) == [[b"1"], [], []]
    peers[0].lose()
    rig.pool.submit("f", b"2")
    assert submissions(peers[1:]) == [[b"2"], []]
    rig.reactor.advance(5)
    back = rig.server.accept()
    rig.pool.submit("f", b"3")
    assert submissions([back, *peers[1:]]) == [[b"3"], [], []]


def test_round_robin() -> None:
    """With ``round_robin`` the servers that are there take turns."""
    rig = Rig(choice=Choice.ROUND_ROBIN)
    peers = rig.start(True, False, True)
    for number in range(6):
        rig.pool.submit("f", b"%d" % number)
    first, second = submissions(peers)
    assert sorted(first + second) == [b"%d" % number for number in range(6)]
    assert min(len(first), len(second)) >= 2


def test_hash_keeps_a_unique_on_its_server() -> None:
    """With ``hash`` one unique goes to one server; when that goes, no other unique moves."""
    rig = Rig()
    peers = rig.start(True, True, True)
    uniques = [b"u%d" % number for number in range(60)]
    for unique in uniques * 2:
        rig.pool.submit("f", unique, unique=unique)
    homes = submissions(peers)
    assert all(sorted(home) == sorted(list(dict.fromkeys(home)) * 2) for home in homes)
    assert all(len(home) > 10 for home in homes)
    peers[2].lose()
    for unique in uniques:
        rig.pool.submit("f", unique, unique=unique)
    after = submissions(peers[:2])
    for before, now in zip(homes, after, strict=False):
        assert set(before) <= set(now)
    assert sorted(after[0] + after[1]) == sorted(uniques)


def test_server_that_refuses_the_connection_is_passed_over() -> None:
    """What was never sent goes to the next server without a word."""
    rig = Rig(choice="first")
    rig.pool.startService()
    job = rig.pool.submit_background("f", b"1")
    rig.server.refuse()
    peer = rig.server.accept()
    assert submissions([peer]) == [[b"1"]]
    peer.send(P.JOB_CREATED, b"H:2")
    assert result(job) == b"H:2"


def test_lost_before_the_answer_is_an_error() -> None:
    """A request that may have arrived is not sent again unless it was asked for."""
    rig = Rig(choice="first")
    peers = rig.start(True, True, True)
    jobs = [rig.pool.submit_background("f", b"1"), rig.pool.submit("f", b"2")]
    peers[0].lose()
    assert [type(result(job)) for job in jobs] == [ConnectionLost, ConnectionLost]
    assert submissions(peers[1:]) == [[], []]


def test_retry_goes_to_the_next_server() -> None:
    """With ``retry`` an unanswered submission is sent to another server, foreground jobs until their end."""
    rig = Rig(choice="first")
    peers = rig.start(True, True, True)
    background = rig.pool.submit_background("f", b"1", retry=True)
    foreground = rig.pool.submit("f", b"2", retry=True)
    peers[0].send(P.JOB_CREATED, b"H:a")
    peers[0].send(P.JOB_CREATED, b"H:b")
    assert result(background) == b"H:a"
    waiting = rig.pool.submit_background("f", b"3", retry=True)
    peers[0].lose()
    assert submissions(peers[1:]) == [[b"2", b"3"], []]
    peers[1].send(P.JOB_CREATED, b"H:c")
    peers[1].send(P.JOB_CREATED, b"H:d")
    peers[1].send(P.WORK_COMPLETE, b"H:c", b"done")
    assert (result(foreground), result(waiting)) == (b"done", b"H:d")


def test_call_waits_for_a_server_for_some_time() -> None:
    """With no server there a call looks for one at once, waits, and is sent when one comes."""
    rig = Rig(patience=10.0, retry_policy=lambda _attempt: 100.0)
    rig.start(False, False, False)
    job = rig.pool.submit_background("f", b"1")
    assert rig.server.attempts == 3
    rig.reactor.advance(9)
    peer = rig.server.accept()
    assert submissions([peer]) == [[b"1"]]
    peer.send(P.JOB_CREATED, b"H:1")
    assert result(job) == b"H:1"


def test_patience_ends() -> None:
    """Without a server a call fails when its patience is at its end, and says which were tried."""
    rig = Rig(patience=10.0)
    rig.start(False, False, False)
    job = rig.pool.echo(b"x")
    rig.reactor.advance(9.9)
    assert not job.called
    rig.reactor.advance(0.2)
    error = result(job)
    assert isinstance(error, NoServers)
    assert "127.0.0.1:1, 127.0.0.1:2, 127.0.0.1:3: none could be reached in 10 s" in str(error)


def test_server_that_does_not_answer_at_all_is_not_waited_for() -> None:
    """A connection that is not made in time is given up for the next server, and nothing is sent twice."""
    rig = Rig(choice="hash", patience=3.0)
    rig.pool.startService()
    jobs = [rig.pool.submit_background("f", b"%d" % number, unique=b"%d" % number) for number in range(9)]
    rig.server.refuse()
    peer = rig.server.accept()
    rig.reactor.advance(3)
    assert sorted(submissions([peer])[0]) == [b"%d" % number for number in range(9)]
    late = rig.server.accept()
    assert submissions([late]) == [[]]
    assert not any(job.called for job in jobs)


def test_cancelled_call_is_not_sent() -> None:
    """Whoever cancels while the pool waits for a server is not heard of any more."""
    rig = Rig()
    rig.start(False, False, False)
    job = rig.pool.submit_background("f", b"1")
    job.addErrback(lambda _failure: None)
    job.cancel()
    assert submissions([rig.server.accept()]) == [[]]
    rig.reactor.advance(100)


def test_close_fails_what_waits() -> None:
    """A pool that is closed fails all that waits, and later calls at once."""
    rig = Rig()
    peers = rig.start(True, False, False)
    sent = rig.pool.submit("f")
    rig.pool.close()
    peers[0].lose()
    assert isinstance(result(sent), ConnectionLost)
    assert isinstance(result(rig.pool.submit("f")), NoServers)
    alone = Rig()
    alone.start(False, False, False)
    waiting = alone.pool.submit("f")
    alone.pool.close()
    assert "the pool was closed" in str(result(waiting))


def test_status_is_asked_of_all() -> None:
    """The server that knows the job is heard, whichever it is; so for uniques."""
    rig = Rig()
    peers = rig.start(True, True, False)
    status = rig.pool.status(b"H:x")
    peers[0].send(P.STATUS_RES, b"H:x", b"0", b"0", b"0", b"0")
    assert not status.called
    peers[1].send(P.STATUS_RES, b"H:x", b"1", b"1", b"3", b"4")
    assert result(status).numerator == 3
    unknown = rig.pool.status_by_unique(b"u")
    for peer in peers:
        peer.send(P.STATUS_RES_UNIQUE, b"u", b"0", b"0", b"0", b"0", b"0")
    assert not result(unknown).is_known


def test_ping_and_names() -> None:
    """A ping tells how long an answer takes; the pool knows who is there."""
    rig = Rig(choice="first")
    peers = rig.start(True, False, True)
    assert rig.pool.connected == ["127.0.0.1:1", "127.0.0.1:3"]
    ping = rig.pool.ping()
    rig.reactor.advance(0.25)
    peers[0].send(P.ECHO_RES, b"ping")
    assert result(ping) == 0.25


@pytest.mark.parametrize(
    ("servers", "options", "says"),
    [
        ([], {}, "at least one server"),
        (["a:1", "b:1", "a:1"], {}, "a:1 is given twice"),
        (["a:1"], {"choice": "best"}, "choice takes one of hash, first, round_robin, not 'best'"),
        (["a:1"], {"patience": -1}, "patience takes seconds"),
        (["a:1"], {"ping_interval": 0}, "ping_interval takes"),
    ],
)
def test_nonsense_is_refused(servers: list[str], options: dict[str, Any], says: str) -> None:
    """What makes no sense is an error that says so."""
    with pytest.raises(ConfigError, match=says):
        ServerPool(servers, reactor=MemoryReactorClock(), **options)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[TwistdGearman]]:
    """Two servers."""
    directories = [tmp_path / name for name in ("one", "two")]
    for directory in directories:
        directory.mkdir()
    with (
        TwistdGearman(directories[0], "--store=memory:") as one,
        TwistdGearman(directories[1], "--store=memory:") as two,
    ):
        yield [one, two]


@pytest_twisted.ensureDeferred
async def test_real_servers_fail_over(servers: list[TwistdGearman]) -> None:
    """Of two real servers one is killed; calls go on with the other, and no job is with both."""
    names = [f"127.0.0.1:{server.port}" for server in servers]
    async with ServerPool(names, choice="round_robin") as pool:
        await pool.ping()
        while len(pool.connected) < 2:
            await deferLater(reactor, 0.01)
        handles = [await pool.submit_background("f", b"%d" % number) for number in range(20)]
        servers[0].process.kill()
        servers[0].process.wait()
        handles += [await pool.submit_background("f", b"%d" % number, retry=True) for number in range(20)]
        assert len(set(handles)) == 40
        known = [await pool.status(handle) for handle in handles]
        assert sum(status.is_known for status in known) == 30
        assert pool.connected == [names[1]]
