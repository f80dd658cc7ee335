"""Several servers as one, on both event loops: choice, fail-over, and what is never sent twice."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from gearman_twisted.client import Choice
from gearman_twisted.errors import ConfigError, ConnectionLost, LocalProtocolError, NoServers, ServerError
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.client_rig import PING, Calls, MemoryServer, ServerEnd
from tests.kit.loops import Outcome, TestLoop
from tests.kit.peers import response

P = PacketType


class Rig:
    """A pool of three servers in memory: one, two and three."""

    def __init__(self, loop: TestLoop, **options: Any) -> None:
        self.loop = loop
        self.servers = [MemoryServer(loop, name) for name in ("one", "two", "three")]
        options.setdefault("retry_policy", lambda _attempt: 5.0)
        self.pool = loop.face("client").ServerPool(self.servers, exceptions=False, **loop.options, **options)
        self.calls = Calls(loop, self.pool)
        loop.at_end(self.close)

    def start(self, *there: bool) -> list[ServerEnd]:
        """Start it; tells which servers are there, and returns their ends."""
        self.loop.call(self.pool._core.hurry)
        peers = []
        for server, is_there in zip(self.servers, there, strict=False):
            if is_there:
                peers.append(server.accept_peer())
            else:
                server.refuse()
        return peers

    @property
    def attempts(self) -> int:
        """How many attempts to connect wait for an answer."""
        return sum(len(server.attempts) for server in self.servers)

    def close(self) -> None:
        """Close the pool, and its connections at the servers' ends."""
        self.calls.close()
        for server in self.servers:
            for connection in server.connections:
                if connection.is_closing and not connection.is_lost:
                    connection.lose()


def submissions(peers: list[ServerEnd]) -> list[list[bytes]]:
    """The workloads that each server has got since the last time."""
    return [[packet.args[-1] for packet in peer.taken()] for peer in peers]


def test_first_that_is_there(loop: TestLoop) -> None:
    """With ``first`` the first server gets all, and the next one when it goes; it is taken back."""
    rig = Rig(loop, choice="first")
    peers = rig.start(True, True, True)
    rig.calls.submit("f", b"1")
    assert submissions(peers) == [[b"1"], [], []]
    peers[0].lose()
    rig.calls.submit("f", b"2")
    assert submissions(peers[1:]) == [[b"2"], []]
    loop.advance(5)
    back = rig.servers[0].accept_peer()
    rig.calls.submit("f", b"3")
    assert submissions([back, *peers[1:]]) == [[b"3"], [], []]


def test_round_robin(loop: TestLoop) -> None:
    """With ``round_robin`` the servers that are there take turns."""
    rig = Rig(loop, choice=Choice.ROUND_ROBIN)
    peers = rig.start(True, False, True)
    for number in range(6):
        rig.calls.submit("f", b"%d" % number)
    first, second = submissions(peers)
    assert sorted(first + second) == [b"%d" % number for number in range(6)]
    assert min(len(first), len(second)) >= 2


def test_hash_keeps_a_unique_on_its_server(loop: TestLoop) -> None:
    """With ``hash`` one unique goes to one server; when that goes, no other unique moves."""
    rig = Rig(loop)
    peers = rig.start(True, True, True)
    uniques = [b"u%d" % number for number in range(60)]
    for unique in uniques * 2:
        rig.calls.submit("f", unique, unique=unique)
    homes = submissions(peers)
    assert all(sorted(home) == sorted(list(dict.fromkeys(home)) * 2) for home in homes)
    assert all(len(home) > 10 for home in homes)
    peers[2].lose()
    for unique in uniques:
        rig.calls.submit("f", unique, unique=unique)
    after = submissions(peers[:2])
    for before, now in zip(homes, after, strict=False):
        assert set(before) <= set(now)
    assert sorted(after[0] + after[1]) == sorted(uniques)


def test_server_that_refuses_the_connection_is_passed_over(loop: TestLoop) -> None:
    """What was never sent goes to the next server without an error."""
    rig = Rig(loop, choice="first")
    rig.start()
    job = rig.calls.submit_background("f", b"1")
    rig.servers[0].refuse()
    peer = rig.servers[1].accept_peer()
    assert submissions([peer]) == [[b"1"]]
    peer.send(P.JOB_CREATED, b"H:2")
    assert job.end() == b"H:2"


def test_lost_before_the_answer_is_an_error(loop: TestLoop) -> None:
    """A request that may have arrived is not sent again unless it was asked for."""
    rig = Rig(loop, choice="first")
    peers = rig.start(True, True, True)
    jobs = [rig.calls.submit_background("f", b"1"), rig.calls.submit("f", b"2")]
    peers[0].lose()
    assert [type(job.end()) for job in jobs] == [ConnectionLost, ConnectionLost]
    assert submissions(peers[1:]) == [[], []]


def test_retry_goes_to_the_next_server(loop: TestLoop) -> None:
    """With ``retry`` an unanswered submission is sent to another server, foreground jobs until their end."""
    rig = Rig(loop, choice="first")
    peers = rig.start(True, True, True)
    background = rig.calls.submit_background("f", b"1", retry=True)
    foreground = rig.calls.submit("f", b"2", retry=True)
    peers[0].send(P.JOB_CREATED, b"H:a")
    peers[0].send(P.JOB_CREATED, b"H:b")
    assert background.end() == b"H:a"
    waiting = rig.calls.submit_background("f", b"3", retry=True)
    peers[0].lose()
    assert submissions(peers[1:]) == [[b"2", b"3"], []]
    peers[1].send(P.JOB_CREATED, b"H:c")
    peers[1].send(P.JOB_CREATED, b"H:d")
    peers[1].send(P.WORK_COMPLETE, b"H:c", b"done")
    assert (foreground.end(), waiting.end()) == (b"done", b"H:d")


def test_call_waits_for_a_server_for_some_time(loop: TestLoop) -> None:
    """With no server there a call looks for one at once, waits, and is sent when one comes."""
    rig = Rig(loop, patience=10.0, retry_policy=lambda _attempt: 100.0)
    rig.start(False, False, False)
    job = rig.calls.submit_background("f", b"1")
    assert rig.attempts == 3
    loop.advance(9)
    peer = rig.servers[0].accept_peer()
    assert submissions([peer]) == [[b"1"]]
    peer.send(P.JOB_CREATED, b"H:1")
    assert job.end() == b"H:1"


def test_patience_ends(loop: TestLoop) -> None:
    """Without a server a call fails when its patience is at its end, and says which were tried."""
    rig = Rig(loop, patience=10.0)
    rig.start(False, False, False)
    job = rig.calls.echo(b"x")
    loop.advance(9.9)
    assert not job.is_settled
    loop.advance(0.2)
    error = job.end()
    assert isinstance(error, NoServers)
    assert "one, two, three: none could be reached in 10 s" in str(error)


def test_server_that_does_not_answer_at_all_is_not_waited_for(loop: TestLoop) -> None:
    """A connection that is not made in time is given up for the next server, and nothing is sent twice."""
    rig = Rig(loop, choice="hash", patience=3.0)
    rig.start()
    jobs = [rig.calls.submit_background("f", b"%d" % number, unique=b"%d" % number) for number in range(9)]
    rig.servers[0].refuse()
    peer = rig.servers[1].accept_peer()
    loop.advance(3)
    assert sorted(submissions([peer])[0]) == [b"%d" % number for number in range(9)]
    late = rig.servers[2].accept_peer()
    assert submissions([late]) == [[]]
    assert not any(job.is_settled for job in jobs)


def test_cancelled_call_is_not_sent(loop: TestLoop) -> None:
    """Whoever cancels while the pool waits for a server is not heard of any more."""
    rig = Rig(loop)
    rig.start(False, False, False)
    job = rig.calls.submit_background("f", b"1")
    job.cancel()
    assert submissions([rig.servers[0].accept_peer()]) == [[]]
    loop.advance(100)
    assert isinstance(job.end(), loop.runtime.cancelled)


def test_close_fails_what_waits(loop: TestLoop) -> None:
    """A pool that is closed fails all that waits, and later calls at once."""
    rig = Rig(loop)
    peers = rig.start(True, False, False)
    sent = rig.calls.submit("f")
    rig.calls.close()
    peers[0].lose()
    assert isinstance(sent.end(), ConnectionLost)
    assert isinstance(rig.calls.submit("f").end(), NoServers)
    alone = Rig(loop)
    alone.start(False, False, False)
    waiting = alone.calls.submit("f")
    alone.calls.close()
    assert "the pool was closed" in str(waiting.end())


def test_status_is_asked_of_all(loop: TestLoop) -> None:
    """The server that knows the job is heard, whichever it is; so for uniques."""
    rig = Rig(loop)
    peers = rig.start(True, True, False)
    status = rig.calls.status(b"H:x")
    peers[0].send(P.STATUS_RES, b"H:x", b"0", b"0", b"0", b"0")
    assert not status.is_settled
    peers[1].send(P.STATUS_RES, b"H:x", b"1", b"1", b"3", b"4")
    assert status.end().numerator == 3
    unknown = rig.calls.status_by_unique(b"u")
    for peer in peers:
        peer.send(P.STATUS_RES_UNIQUE, b"u", b"0", b"0", b"0", b"0", b"0")
    assert not unknown.end().is_known


def test_ping_and_names(loop: TestLoop) -> None:
    """A ping tells how long an answer takes; the pool knows who is there."""
    rig = Rig(loop, choice="first")
    peers = rig.start(True, False, True)
    assert rig.pool.connected == ["one", "three"]
    ping = rig.calls.ping()
    loop.advance(0.25)
    peers[0].send(P.ECHO_RES, b"ping")
    assert ping.end() == 0.25


@pytest.mark.parametrize(
    ("servers", "options", "says"),
    [
        ([], {}, "at least one server"),
        (["10.0.0.1:1", "10.0.0.2:1", "10.0.0.1:1"], {}, "10.0.0.1:1 is given twice"),
        (["10.0.0.1:1"], {"choice": "best"}, "choice takes one of hash, first, round_robin, not 'best'"),
        (["10.0.0.1:1"], {"patience": -1}, "patience takes seconds"),
        (["10.0.0.1:1"], {"patience": "3"}, "patience takes seconds, 0 or more, not '3'"),
        (["10.0.0.1:1"], {"patience": float("nan")}, "patience takes seconds"),
        (["10.0.0.1:1"], {"ping_interval": 0}, "ping_interval takes"),
        (["10.0.0.1:1"], {"retry_policy": 5}, "retry_policy takes a callable, not 5"),
        ([5], {}, "not as 5"),
        (5, {}, "not as 5"),
        ("host:port", {}, "'host:port' is not an address"),
    ],
)
def test_nonsense_is_refused(loop: TestLoop, servers: Any, options: dict[str, Any], says: str) -> None:
    """What makes no sense is an error that says so."""
    with pytest.raises(ConfigError, match=says):
        loop.face("client").ServerPool(servers, **loop.options, **options)


def test_one_address_is_one_server(loop: TestLoop) -> None:
    """A pool of one server needs no list around its address."""
    pool = loop.face("client").ServerPool("10.0.0.3:4730", **loop.options)
    assert [core.name for core in pool._core._cores] == ["10.0.0.3:4730"]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda calls: calls.submit("f", "text"), TypeError),
        (lambda calls: calls.submit("f\0"), LocalProtocolError),
        (lambda calls: calls.submit_at("f", b"", datetime(2033, 1, 1)), LocalProtocolError),
        (lambda calls: calls.submit_recurring("f", b"", "daily", unique=b"u"), LocalProtocolError),
        (lambda calls: calls.status("H:1"), TypeError),
        (lambda calls: calls.status_by_unique("u"), TypeError),
        (lambda calls: calls.set_option("a\0"), LocalProtocolError),
    ],
)
def test_wrong_argument_fails_the_call_and_sends_nothing(
    loop: TestLoop, call: Callable[[Calls], Outcome], error: type[Exception]
) -> None:
    """What cannot be sent fails its call before anything is connected."""
    rig = Rig(loop)
    assert type(call(rig.calls).end()) is error
    assert rig.attempts == 0


def test_option_is_set_on_all(loop: TestLoop) -> None:
    """An option is set on all connections; servers that are lost meanwhile do not matter, a refusal does."""
    rig = Rig(loop)
    peers = rig.start(True, True, False)
    option = rig.calls.set_option("exceptions")
    peers[0].send(P.OPTION_RES, b"exceptions")
    peers[1].lose()
    assert option.end() == b"exceptions"
    refused = rig.calls.set_option("nonsense")
    peers[0].send(P.ERROR, b"UNKNOWN_OPTION", b"no")
    assert isinstance(refused.end(), ServerError)


def test_question_to_all_can_be_cancelled(loop: TestLoop) -> None:
    """A question that is cancelled leaves nothing behind, whether servers were asked or waited for."""
    rig = Rig(loop)
    peers = rig.start(True, True, False)
    status = rig.calls.status(b"H:x")
    status.cancel()
    assert isinstance(status.end(), loop.runtime.cancelled)
    for peer in peers:
        peer.send(P.STATUS_RES, b"H:x", b"0", b"0", b"0", b"0")
    alone = Rig(loop)
    alone.start(False, False, False)
    waiting = alone.calls.status(b"H:x")
    waiting.cancel()
    assert isinstance(waiting.end(), loop.runtime.cancelled)


def test_question_waits_for_a_server(loop: TestLoop) -> None:
    """A question waits for a server as other calls do, also for one that still connects, but not longer."""
    rig = Rig(loop, patience=10.0)
    rig.start(False, False, False)
    status = rig.calls.status(b"H:x")
    peer = rig.servers[1].accept_peer()
    loop.advance(9)
    assert not status.is_settled
    peer.send(P.STATUS_RES, b"H:x", b"1", b"0", b"0", b"0")
    assert status.end().is_known
    silent = Rig(loop, patience=10.0)
    silent.start()
    status = silent.calls.status(b"H:x")
    loop.advance(10)
    assert isinstance(status.end(), NoServers)


def test_frozen_server_is_passed_over(loop: TestLoop) -> None:
    """A server that was given up for its silence gets no call until it has answered, though it connects."""
    rig = Rig(loop, choice="first", ping_interval=30.0)
    peers = rig.start(True, True, False)
    rig.calls.ping()
    peers[0].send(P.ECHO_RES, b"ping")
    first = rig.calls.submit_background("f", b"1")
    assert submissions(peers)[0][-1] == b"1"
    for _ in range(3):
        loop.advance(10)
        peers[1].send_bytes(b"".join(response(P.ECHO_RES, *packet.args) for packet in peers[1].taken()))
    assert isinstance(first.end(), ConnectionLost)
    # The system takes connections for a process that is frozen.
    loop.advance(5)
    frozen = rig.servers[0].accept_peer()
    assert frozen.taken() == [PING]
    assert rig.pool.connected == ["two"]
    for _ in range(3):
        second = rig.calls.submit_background("f", b"2")
        assert submissions([peers[1]]) == [[b"2"]]
        peers[1].send(P.JOB_CREATED, b"H:2")
        assert second.end() == b"H:2"
    frozen.send(P.ECHO_RES, b"ping")
    assert rig.pool.connected == ["one", "two"]
    rig.calls.submit_background("f", b"3")
    assert submissions([frozen, peers[1]]) == [[b"3"], []]


def test_call_waits_for_a_frozen_server_to_answer(loop: TestLoop) -> None:
    """When the only servers are frozen, a call waits until one answers, or its patience ends."""
    rig = Rig(loop, ping_interval=30.0, patience=10.0)
    peers = rig.start(True, False, False)
    rig.calls.ping()
    peers[0].send(P.ECHO_RES, b"ping")
    loop.advance(30)
    waiting, late = rig.calls.echo(b"1"), rig.calls.echo(b"2")
    frozen = rig.servers[0].accept_peer()
    late.cancel()
    assert frozen.taken() == [PING]
    frozen.send(P.ECHO_RES, b"ping")
    assert frozen.taken() == [Packet(P.ECHO_REQ, [b"1"])]
    frozen.send(P.ECHO_RES, b"1")
    assert waiting.end() == b"1"


def test_pool_can_be_opened_again(loop: TestLoop) -> None:
    """``async with`` opens a pool again after it was closed."""
    rig = Rig(loop, choice="first")

    async def use() -> bytes:
        async with rig.pool:
            answer: bytes = await rig.pool.echo(b"1")
            return answer

    for _ in range(2):
        echo = loop.outcome(use())
        peer = rig.servers[0].accept_peer()
        peer.send(P.ECHO_RES, b"1")
        peer.lose()
        assert echo.end() == b"1"
        assert isinstance(rig.calls.echo(b"2").end(), NoServers)
