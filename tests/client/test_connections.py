"""The client of one server, on both event loops: its connection is kept up, given up, and closed."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from gearman_twisted.errors import (
    ConfigError,
    ConnectionLost,
    LocalProtocolError,
    NoServers,
    RemoteProtocolError,
    ServerError,
)
from gearman_twisted.wire.codec import encode_head
from gearman_twisted.wire.constants import RES, PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.client_rig import OPTION, PING, ClientRig
from tests.kit.loops import TestLoop
from tests.kit.peers import response

P = PacketType


def test_nothing_is_connected_before_it_is_needed(loop: TestLoop) -> None:
    """A client connects when it is first used, and every call shares the connection."""
    rig = ClientRig(loop)
    assert rig.attempts == 0
    first, second = rig.calls.echo(b"1"), rig.calls.echo(b"2")
    assert rig.attempts == 1
    peer = rig.server.accept_peer()
    assert peer.taken() == [OPTION, Packet(P.ECHO_REQ, [b"1"]), Packet(P.ECHO_REQ, [b"2"])]
    assert peer.connection.writes == 1
    peer.send(P.OPTION_RES, b"exceptions")
    peer.send(P.ECHO_RES, b"1")
    peer.send(P.ECHO_RES, b"2")
    assert (first.end(), second.end()) == (b"1", b"2")


def test_connection_opens_with_id_and_option(loop: TestLoop) -> None:
    """The client's id and its wish for exceptions go before all requests, on each connection."""
    rig = ClientRig(loop, client_id="me")
    echo = rig.calls.echo(b"1")
    peer = rig.server.accept_peer()
    assert peer.taken() == [Packet(P.SET_CLIENT_ID, [b"me"]), OPTION, Packet(P.ECHO_REQ, [b"1"])]
    peer.lose()
    assert isinstance(echo.end(), ConnectionLost)
    loop.advance(10)
    assert rig.server.accept_peer().taken() == [Packet(P.SET_CLIENT_ID, [b"me"]), OPTION]


def test_option_can_be_left_out(loop: TestLoop) -> None:
    """A client that wants no exceptions does not ask for them."""
    rig = ClientRig(loop, exceptions=False)
    rig.start()
    assert rig.server.accept_peer().taken() == []


def test_server_without_the_option_is_fine(loop: TestLoop) -> None:
    """A server that does not know the option refuses it, and nothing else changes."""
    rig = ClientRig(loop)
    echo = rig.calls.echo(b"1")
    peer = rig.server.accept_peer()
    peer.send(P.ERROR, b"UNKNOWN_OPTION", b"Server does not recognize given option")
    peer.send(P.ECHO_RES, b"1")
    assert echo.end() == b"1"


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"client_id": "a b"}, LocalProtocolError, "client id"),
        ({"client_id": 5}, TypeError, "client_id takes"),
        ({"ping_interval": 0}, ConfigError, "ping_interval takes"),
        ({"ping_interval": "3"}, ConfigError, "ping_interval takes 0.1 to 86400 seconds or None, not '3'"),
        ({"retry_policy": 5}, ConfigError, "retry_policy takes a callable, not 5"),
        ({"max_packet_bytes": 1023}, ConfigError, "max_packet_bytes takes 1024 to 4294967295, not 1023"),
        ({"max_packet_bytes": 1 << 32}, ConfigError, "max_packet_bytes takes"),
        ({"max_packet_bytes": "1G"}, ConfigError, "max_packet_bytes takes"),
    ],
)
def test_wrong_settings_are_refused(
    loop: TestLoop, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    """A setting that makes no sense is refused when the client is made, in our own words."""
    with pytest.raises(error, match=says):
        ClientRig(loop, **options)


@pytest.mark.parametrize(
    ("options", "announced", "is_taken"),
    [
        ({}, 1_000_000_000, True),
        ({}, 1_001_000_000, False),
        ({"max_packet_bytes": 100_000}, 200_000, False),
        ({"max_packet_bytes": 0xFFFFFFFF}, 0xFFFFFFFF, True),
    ],
)
def test_results_may_be_as_large_as_packets(
    loop: TestLoop, options: dict[str, Any], announced: int, is_taken: bool
) -> None:
    """A server that announces more than max_packet_bytes is given up, before any of it is kept."""
    rig = ClientRig(loop, **options)
    peer = rig.connect()
    job = rig.calls.submit("f")
    peer.send(P.JOB_CREATED, b"H:1")
    peer.send_bytes(encode_head(RES, P.WORK_COMPLETE, b"H:1\0", announced - 4) + b"begun")
    assert rig.client.is_connected is is_taken
    if not is_taken:
        assert isinstance(job.end(), RemoteProtocolError)


def test_larger_packets_are_not_sent(loop: TestLoop) -> None:
    """A request of more than max_packet_bytes fails before any of it is sent; the connection goes on."""
    rig = ClientRig(loop, max_packet_bytes=100_000)
    early = rig.calls.submit("f", bytes(200_000))
    peer = rig.connect()
    largest, late = rig.calls.submit("f", bytes(100_000 - 3)), rig.calls.submit("f", bytes(100_000 - 2))
    echo = rig.calls.echo(bytes(100_001))
    for refused in early, late, echo:
        error = refused.end()
        assert isinstance(error, LocalProtocolError)
        assert "max_packet_bytes is 100,000" in str(error)
    assert peer.taken() == [Packet(P.SUBMIT_JOB, [b"f", b"", bytes(100_000 - 3)])]
    peer.send(P.JOB_CREATED, b"H:1")
    peer.send(P.WORK_COMPLETE, b"H:1", b"done")
    assert largest.end() == b"done"


def test_wrong_addresses_are_refused(loop: TestLoop) -> None:
    """So is an address."""
    for server in ("host:port", 4730):
        with pytest.raises(ConfigError):
            loop.face("client").GearmanClient(server, **loop.options)


def test_refused_connection_is_told_at_once(loop: TestLoop) -> None:
    """All calls that wait fail with the server's name when it cannot be reached; the next one tries again."""
    rig = ClientRig(loop)
    calls = [rig.calls.echo(b"1"), rig.calls.submit("f")]
    rig.server.refuse()
    for call in calls:
        error = call.end()
        assert isinstance(error, NoServers)
        assert "memory:4730" in str(error)
    # Nobody has to wait until the policy lets ClientService try again.
    again = rig.calls.echo(b"2")
    assert rig.attempts == 1
    peer = rig.server.accept_peer()
    peer.send(P.OPTION_RES, b"exceptions")
    peer.send(P.ECHO_RES, b"2")
    assert again.end() == b"2"


def test_lost_connection_fails_what_waits_and_nothing_else(loop: TestLoop) -> None:
    """Every call that waits for an answer fails with its function and handle; the next call reconnects."""
    rig = ClientRig(loop)
    peer = rig.connect()
    running, asked, status = rig.calls.submit("f"), rig.calls.submit("g"), rig.calls.status(b"H:7")
    peer.send(P.JOB_CREATED, b"H:1")
    peer.lose()
    errors = [running.end(), asked.end(), status.end()]
    assert [type(error) for error in errors] == [ConnectionLost] * 3
    assert [(error.function, error.handle) for error in errors] == [
        (b"f", b"H:1"),
        (b"g", b""),
        (b"", b"H:7"),
    ]
    assert "memory:4730" in str(errors[0])
    rig.calls.echo(b"again")
    assert rig.server.accept_peer().taken() == [OPTION, Packet(P.ECHO_REQ, [b"again"])]


def test_call_right_after_a_lost_connection_is_sent_on_the_next(loop: TestLoop) -> None:
    """Whoever tries again at once does not wait for the retry policy."""
    rig = ClientRig(loop)
    peer = rig.connect()

    async def submit() -> bytes:
        try:
            await rig.client.submit("f")
        except ConnectionLost:
            answer: bytes = await rig.client.echo(b"again")
            return answer
        raise AssertionError("it was not lost")

    again = loop.outcome(submit())
    peer.lose()
    loop.advance(0)
    second = rig.server.accept_peer()
    second.send(P.OPTION_RES, b"exceptions")
    second.send(P.ECHO_RES, b"again")
    assert again.end() == b"again"


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        response(P.JOB_CREATED, b"H:1"),
        response(P.ECHO_RES, b"another"),
        response(P.NOOP),
        b"\0RES\0\0\0\x63\0\0\0\0",
        b"\0REQ\0\0\0\x11\0\0\0\0",
    ],
)
def test_garbage_drops_the_connection(loop: TestLoop, garbage: bytes) -> None:
    """Calls that wait fail with RemoteProtocolError, the connection is dropped, and the next one is made."""
    rig = ClientRig(loop)
    peer = rig.connect()

    async def try_again() -> bytes:
        with pytest.raises(RemoteProtocolError):
            await rig.client.echo(b"0")
        answer: bytes = await rig.client.echo(b"again")
        return answer

    again = loop.outcome(try_again())
    calls = [rig.calls.echo(b"1"), rig.calls.echo(b"2")]
    peer.taken()
    peer.send_bytes(garbage + response(P.ECHO_RES, b"again"))
    for call in calls:
        error = call.end()
        assert isinstance(error, RemoteProtocolError)
        assert "memory:4730" in str(error)
    assert peer.connection.is_aborted
    assert peer.taken() == []
    second = rig.server.accept_peer()
    assert second.taken() == [OPTION, Packet(P.ECHO_REQ, [b"again"])]
    second.send(P.OPTION_RES, b"exceptions")
    second.send(P.ECHO_RES, b"again")
    assert again.end() == b"again"


def test_closed_client_fails_what_waits_and_refuses_calls(loop: TestLoop) -> None:
    """Closing fails all calls; a closed client refuses more, and does not connect again; twice is once."""
    rig = ClientRig(loop)
    waiting = rig.calls.submit("f")
    closed = rig.calls.close()
    assert isinstance(waiting.end(), NoServers)
    assert "was closed" in str(waiting.end())
    refused = rig.calls.echo(b"")
    assert isinstance(refused.end(), NoServers)
    assert "is closed" in str(refused.end())
    assert closed.end() is None
    rig = ClientRig(loop)
    peer = rig.connect()
    job = rig.calls.submit("f")
    closings = [rig.calls.close(), rig.calls.close()]
    assert peer.connection.is_closing
    assert [closing.is_settled for closing in closings] == [False, False]
    peer.lose()
    assert isinstance(job.end(), ConnectionLost)
    assert [closing.end() for closing in closings] == [None, None]
    assert rig.attempts == 0
    assert loop.timers() == 0


def test_closed_client_can_be_opened_again(loop: TestLoop) -> None:
    """``async with`` opens a client again after it was closed, also while the old connection still closes."""
    rig = ClientRig(loop)

    async def use(data: bytes) -> bytes:
        async with rig.client:
            answer: bytes = await rig.client.echo(data)
            return answer

    for _ in range(2):
        first = loop.outcome(use(b"1"))
        old = rig.server.accept_peer()
        old.send(P.OPTION_RES, b"exceptions")
        old.send(P.ECHO_RES, b"1")
        assert old.connection.is_closing
        second = loop.outcome(use(b"2"))
        new = rig.server.accept_peer()
        assert new.taken() == [OPTION, Packet(P.ECHO_REQ, [b"2"])]
        old.lose()
        assert first.end() == b"1"
        new.send(P.OPTION_RES, b"exceptions")
        new.send(P.ECHO_RES, b"2")
        new.lose()
        assert second.end() == b"2"


def test_close_before_use_is_fine(loop: TestLoop) -> None:
    """A client that was never used has nothing to close."""
    assert ClientRig(loop).calls.close().end() is None


def test_silent_server_is_given_up(loop: TestLoop) -> None:
    """A server that says nothing is asked, and given up if it does not answer, all within the interval."""
    rig = ClientRig(loop, ping_interval=30.0)
    peer = rig.connect()
    job = rig.calls.submit("f")
    peer.taken()
    loop.advance(10)
    assert peer.taken() == []
    loop.advance(10)
    assert peer.taken() == [PING]
    was_aborted = peer.connection.is_aborted
    loop.advance(10)
    assert (was_aborted, peer.connection.is_aborted) == (False, True)
    assert isinstance(job.end(), ConnectionLost)
    assert "no answer within 30 seconds" in str(job.end())


def test_ping_that_is_lost_is_nobodys(loop: TestLoop, caplog: pytest.LogCaptureFixture) -> None:
    """A ping that is never answered fails nobody's call, and no error is left that nobody took."""
    events: list[Any] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        events.append(event)

    rig = ClientRig(loop, ping_interval=30.0)
    peer = rig.connect()
    loop.advance(20)
    assert peer.taken() == [PING]
    globalLogPublisher.addObserver(observe)
    try:
        loop.advance(10)
        assert peer.connection.is_lost
        rig.close()
        gc.collect()
    finally:
        globalLogPublisher.removeObserver(observe)
    assert [event for event in events if "log_failure" in event] == []
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_server_that_knows_neither_options_nor_pings(loop: TestLoop) -> None:
    """A server that answers neither is used without exceptions; its silence under a job means nothing."""
    rig = ClientRig(loop, ping_interval=30.0)
    background, job = rig.calls.submit_background("f"), rig.calls.submit("g")
    option = rig.calls.set_option("exceptions")
    peer = rig.server.accept_peer()
    peer.send(P.JOB_CREATED, b"H:1")
    assert background.end() == b"H:1"
    peer.send(P.JOB_CREATED, b"H:2")
    loop.advance(3600)
    assert [packet for packet in peer.taken() if packet == PING] == [PING]
    assert not peer.connection.is_aborted
    status = rig.calls.status(b"H:2")
    peer.send(P.STATUS_RES, b"H:2", b"1", b"1", b"0", b"0")
    assert status.end().is_running
    assert isinstance(option.end(), ServerError)
    peer.send(P.WORK_COMPLETE, b"H:2", b"done")
    assert job.end() == b"done"


def test_server_that_owes_a_reply_is_given_up(loop: TestLoop) -> None:
    """A server that never said anything is frozen if it does not even take a job."""
    rig = ClientRig(loop, ping_interval=30.0)
    job = rig.calls.submit_background("f")
    peer = rig.server.accept_peer()
    loop.advance(30)
    assert peer.connection.is_aborted
    assert isinstance(job.end(), ConnectionLost)


def test_server_that_answers_pings_is_kept(loop: TestLoop) -> None:
    """A job may take for ever, as long as the server answers; replies keep their order."""
    rig = ClientRig(loop, ping_interval=30.0)
    peer = rig.connect()
    job = rig.calls.submit("f")
    peer.taken()
    peer.send(P.JOB_CREATED, b"H:1")
    for _ in range(20):
        loop.advance(10)
        for packet in peer.taken():
            peer.send(P.ECHO_RES, *packet.args)
    echo = rig.calls.echo(b"x")
    peer.send(P.ECHO_RES, b"x")
    peer.send(P.WORK_COMPLETE, b"H:1", b"done")
    assert (echo.end(), job.end()) == (b"x", b"done")
    peer.lose()
    assert loop.timers() == 1


def test_pings_can_be_left_out(loop: TestLoop) -> None:
    """Without an interval nothing is sent, and no timer runs."""
    rig = ClientRig(loop, ping_interval=None)
    peer = rig.connect()
    assert loop.timers() == 0
    loop.advance(1000)
    assert peer.taken() == []


def test_retry_submits_again_on_the_next_connection(loop: TestLoop) -> None:
    """With ``retry`` a job whose connection is lost is submitted again, as long as there is a server."""
    rig = ClientRig(loop)
    peer = rig.connect()
    once = rig.calls.submit_background("f", b"1")
    again = rig.calls.submit("f", b"2", retry=True)
    peer.taken()
    peer.lose()
    assert isinstance(once.end(), ConnectionLost)
    loop.advance(0)
    peer = rig.server.accept_peer()
    assert peer.taken() == [OPTION, Packet(P.SUBMIT_JOB, [b"f", b"", b"2"])]
    peer.lose()
    loop.advance(0)
    rig.server.refuse()
    assert isinstance(again.end(), NoServers)


def test_connections_are_logged_once_per_change(loop: TestLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says that a server cannot be reached, one that it is there, and one that it was lost."""
    rig = ClientRig(loop)
    lines: list[str] = []
    for level in ("info", "warning", "error"):
        monkeypatch.setattr(
            rig.client._core._log, level, lambda text, **fields: lines.append(text.format_map(fields))
        )
    rig.start()
    for reason in ("refused", "refused", "unreachable"):
        rig.server.refuse(reason)
        loop.advance(10)
    peer = rig.server.accept_peer()
    peer.lose()
    loop.advance(10)
    rig.server.accept_peer()
    rig.close()
    assert lines == [
        "cannot connect to memory:4730: refused; retrying at least every 10 s",
        "cannot connect to memory:4730: unreachable; retrying at least every 10 s",
        "connected to memory:4730",
        "lost memory:4730: it was lost; does it speak TLS there?",
        "connected to memory:4730",
        "closed the connection to memory:4730",
    ]


def test_connection_is_made_again_by_itself(loop: TestLoop) -> None:
    """A client that has nothing to ask is connected again too."""
    rig = ClientRig(loop)
    rig.start()
    for _ in range(3):
        rig.server.accept_peer().lose()
        assert not rig.client.is_connected
        loop.advance(10)
    rig.server.accept_peer()
    assert rig.client.is_connected
