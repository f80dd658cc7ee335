"""The client: pings, retries, recurring and reduce jobs."""

from __future__ import annotations

from gearman_twisted.errors import ConnectionLost, LocalProtocolError, NoServers
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from tests.client.test_client import OPTION, Rig, result

P = PacketType


def test_silent_server_is_given_up() -> None:
    """A server that says nothing is asked, and given up if it does not answer, all within the interval."""
    rig = Rig(ping_interval=30.0)
    peer = rig.connect()
    job = rig.client.submit("f")
    peer.taken()
    rig.reactor.advance(10)
    assert peer.taken() == []
    rig.reactor.advance(10)
    assert peer.taken() == [Packet(P.ECHO_REQ, [b"ping"])]
    assert not peer.is_aborted()
    rig.reactor.advance(10)
    assert peer.is_aborted()
    peer.lose()
    assert isinstance(result(job), ConnectionLost)


def test_server_that_answers_pings_is_kept() -> None:
    """A job may take for ever, as long as the server answers; replies keep their order."""
    rig = Rig(ping_interval=30.0)
    peer = rig.connect()
    job = rig.client.submit("f")
    peer.taken()
    peer.send(P.JOB_CREATED, b"H:1")
    for _ in range(20):
        rig.reactor.advance(10)
        for packet in peer.taken():
            peer.send(P.ECHO_RES, *packet.args)
    echo = rig.client.echo(b"x")
    peer.send(P.ECHO_RES, b"x")
    peer.send(P.WORK_COMPLETE, b"H:1", b"done")
    assert (result(echo), result(job)) == (b"x", b"done")
    peer.lose()
    rig.reactor.advance(0)
    assert len(rig.reactor.getDelayedCalls()) == 1


def test_pings_can_be_left_out() -> None:
    """Without an interval nothing is sent, and no timer runs."""
    rig = Rig(ping_interval=None)
    peer = rig.connect()
    assert rig.reactor.getDelayedCalls() == []
    rig.reactor.advance(1000)
    assert peer.taken() == []


def test_retry_submits_again_on_the_next_connection() -> None:
    """With ``retry`` a job whose connection is lost is submitted again, as long as there is a server."""
    rig = Rig()
    peer = rig.connect()
    once = rig.client.submit_background("f", b"1")
    again = rig.client.submit("f", b"2", retry=True)
    peer.taken()
    peer.lose()
    assert isinstance(result(once), ConnectionLost)
    rig.reactor.advance(0)
    peer = rig.server.accept()
    assert peer.taken() == [OPTION, Packet(P.SUBMIT_JOB, [b"f", b"", b"2"])]
    peer.lose()
    rig.reactor.advance(0)
    rig.server.refuse()
    assert isinstance(result(again), NoServers)


def test_recurring_and_reduce_requests() -> None:
    """A schedule goes out as five fields, a reduce job with its reducer and an empty aggregator."""
    rig = Rig()
    peer = rig.connect()
    rig.client.submit_recurring("f", b"w", " */5  * * * 0-4 ", unique=b"u")
    rig.client.submit_reduce("split", b"w", "part", unique=b"v")
    assert peer.taken() == [
        Packet(P.SUBMIT_JOB_SCHED, [b"f", b"u", b"*/5", b"*", b"*", b"*", b"0-4", b"w"]),
        Packet(P.SUBMIT_REDUCE_JOB, [b"split", b"v", b"part", b"", b"w"]),
    ]
    for schedule in ("* * * *", "61 * * * *", "x * * * *"):
        assert isinstance(
            result(rig.client.submit_recurring("f", b"", schedule, unique=b"u")), LocalProtocolError
        )
    assert isinstance(result(rig.client.submit_reduce("f", b"", "r" * 65)), LocalProtocolError)
    assert peer.taken() == []
