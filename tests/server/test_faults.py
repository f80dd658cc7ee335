"""A bug that one peer runs into costs that peer alone, on every kind of connection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from twisted.logger import capturedLogs, formatEvent

from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.store.contract import StoredJob
from gearman_twisted.wire.codec import encode
from gearman_twisted.wire.constants import REQ, PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.http_server import POST, Browser, Server
from tests.kit.server_rig import LoadingStore, Peer, ServerRig

P = PacketType
BUG = encode(REQ, P.ECHO_REQ, b"bug")


def break_engine(rig: ServerRig) -> None:
    """Have the engine raise at packets that have ``bug`` for an argument, and at peers that send them."""
    receive, disconnect = rig.engine.receive, rig.engine.disconnect
    unlucky: set[int] = set()

    def broken_receive(conn: int, packets: Any, now: float) -> Any:
        if any(b"bug" in packet.args for packet in packets):
            unlucky.add(conn)
            raise RuntimeError("this is the bug")
        return receive(conn, packets, now)

    def broken_disconnect(conn: int, now: float) -> Any:
        if conn in unlucky:
            raise RuntimeError("this is another bug")
        return disconnect(conn, now)

    rig.engine.receive = broken_receive  # type: ignore[method-assign]
    rig.engine.disconnect = broken_disconnect  # type: ignore[method-assign]


def failures(events: Sequence[dict[str, Any]]) -> list[str]:
    """What was logged as a bug."""
    return [event["log_failure"].getErrorMessage() for event in events if "log_failure" in event]


def is_alive(peer: Peer) -> bool:
    """Whether a peer is served."""
    peer.send(P.ECHO_REQ, b"alive")
    return peer.received()[-1:] == [Packet(P.ECHO_RES, [b"alive"])]


READS: dict[str, bytes] = {
    "one packet": BUG,
    "among others": encode(REQ, P.ECHO_REQ, b"x") + BUG + encode(REQ, P.ECHO_REQ, b"y"),
    "in a flood": encode(REQ, P.ECHO_REQ, b"x") * 2000 + BUG + encode(REQ, P.ECHO_REQ, b"y") * 100,
    "behind text": b"version\n" + BUG,
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_packet(read: bytes) -> None:
    """A packet that the engine cannot handle ends its connection; others go on, and the bug is logged."""
    rig = ServerRig()
    break_engine(rig)
    peer, other = rig.connect(), rig.connect()
    with capturedLogs() as events:
        peer.protocol.dataReceived(read)
        rig.clock.advance(0)
    assert failures(events) == ["this is the bug", "this is another bug"]
    assert peer.transport.disconnected
    assert is_alive(other)
    peer.protocol.dataReceived(BUG)  # some transports hand over what they have read already
    peer.lose()
    assert is_alive(other)
    assert rig.clock.getDelayedCalls() == []


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_packets_behind_a_bug_while_a_turn_is_over(read: bytes) -> None:
    """Nothing more is handled of a peer that was aborted, though its end in the engine has to wait."""
    rig = ServerRig()
    break_engine(rig)
    peer = rig.connect()
    handled: list[int] = []
    receive = rig.engine.receive

    def slow_receive(conn: int, packets: Any, now: float) -> Any:
        handled.append(conn)
        rig.clock.rightNow += 1
        return receive(conn, packets, now)

    rig.engine.receive = slow_receive  # type: ignore[method-assign]
    rig.connect().protocol.dataReceived(b"version\n")
    with capturedLogs() as events:
        peer.protocol.dataReceived(BUG)
        assert failures(events) == ["this is the bug"]
        handled.clear()
        peer.protocol.dataReceived(read)
        rig.clock.advance(0)
    assert handled == []
    assert failures(events) == ["this is the bug", "this is another bug"]
    assert rig.clock.getDelayedCalls() == []


def test_packet_that_was_postponed() -> None:
    """A bug in what has waited for the stored jobs does not keep the server from being ready."""
    store = LoadingStore()
    rig = ServerRig(store)
    break_engine(rig)
    peers = [rig.connect() for _ in range(3)]
    for peer, name in zip(peers, [b"f", b"bug", b"f"], strict=True):
        peer.send(P.CAN_DO, name)
        peer.send(P.GRAB_JOB)
    store.add([StoredJob(number, b"H:x:%d" % number, b"f", b"", b"w", 1) for number in (1, 2)])
    ready = rig.host.when_ready()
    with capturedLogs() as events:
        store.loaded.callback(2)
        answers = [peer.received() for peer in peers]
    assert ready.called
    assert failures(events) == ["this is the bug", "this is another bug"]
    assert [[packet.type for packet in each] for each in answers] == [[P.JOB_ASSIGN], [], [P.JOB_ASSIGN]]


def test_output_and_closing() -> None:
    """A connection that cannot send, or be closed, is aborted; the others have their output."""
    rig = ServerRig()
    peers = [rig.connect() for _ in range(4)]

    def fail(*_arguments: object) -> None:
        raise RuntimeError("this is the bug")

    peers[0].transport.write = fail  # type: ignore[method-assign]
    peers[1].transport.loseConnection = fail  # type: ignore[method-assign]
    peers[1].transport.abortConnection = peers[1].lose  # type: ignore[method-assign]
    with capturedLogs() as events:
        peers[0].send(P.ECHO_REQ, b"a")
        peers[1].protocol.dataReceived(b"\0BAD" + bytes(20))
        peers[2].send(P.ECHO_REQ, b"a")
        assert [packet.args for packet in peers[2].received()] == [[b"a"]]
    assert failures(events) == ["this is the bug"] * 2
    assert peers[0].transport.disconnected
    assert is_alive(peers[3])
    assert len(rig.peers) == 2


def test_http() -> None:
    """An HTTP connection is a peer like any other."""
    server = Server()
    break_engine(server.rig)
    with capturedLogs() as events:
        unlucky = Browser(server, POST.replace(b"/f", b"/bug"))
    assert failures(events) == ["this is the bug", "this is another bug"]
    assert unlucky.transport.disconnected
    fine = Browser(server, POST)
    server.worker().complete()
    assert fine.status() == 200


def test_timer() -> None:
    """A bug in what is due by time is logged, and does not stop what is due later."""
    rig = ServerRig()
    tick: Callable[[float], Any] = rig.engine.tick
    bugs = [RuntimeError("this is the bug")]

    def broken_tick(now: float) -> Any:
        if bugs:
            raise bugs.pop()
        return tick(now)

    rig.engine.tick = broken_tick  # type: ignore[method-assign]
    worker = rig.connect()
    worker.send(P.CAN_DO, b"f")
    worker.send(P.PRE_SLEEP)
    worker.send(P.SUBMIT_JOB_EPOCH, b"f", b"", b"1000005", b"")
    worker.received()
    with capturedLogs() as events:
        rig.clock.advance(5)
    assert failures(events) == ["this is the bug"]
    rig.clock.advance(1)
    assert [packet.type for packet in worker.received()] == [P.NOOP]


def test_memory_that_is_used_up() -> None:
    """A peer whose packets take more memory than there is costs a line in the log, and that peer."""
    rig = ServerRig()
    peer, other = rig.connect(), rig.connect()
    receive = rig.engine.receive

    def receive_in_little_memory(conn: int, packets: Any, now: float) -> Any:
        if conn == peer.protocol.number:
            raise MemoryError
        return receive(conn, packets, now)

    rig.engine.receive = receive_in_little_memory  # type: ignore[method-assign]
    with capturedLogs() as events:
        peer.send(P.ECHO_REQ, b"x")
        rig.clock.advance(0)
    assert failures(events) == []
    assert [(event["log_level"].name, event["log_format"]) for event in events] == [
        ("error", "closed {peer}: out of memory")
    ]
    assert peer.transport.disconnected
    assert is_alive(other)


def test_names_in_the_log_stay_in_their_line() -> None:
    """Neither a job that is given up nor one that is accepted makes lines of the log by its names."""
    settings = EngineSettings(job_retries=1, notes_accepted=True)
    rig = ServerRig(settings=settings)
    client, worker = rig.connect(), rig.connect()
    function, unique = "f\x85\u2028x".encode(), "u\x9b\n\u2029x".encode()
    with capturedLogs() as events:
        worker.send(P.CAN_DO, function)
        client.send(P.SUBMIT_JOB_BG, function, unique, b"")
        worker.send(P.GRAB_JOB)
        worker.lose()
    accepted, given_up = (formatEvent(event) for event in events)
    assert accepted == "accepted,f??x,u???x,0"
    assert "of 'f??x', unique 'u???x'" in given_up
    assert len(given_up.splitlines()) == 1
