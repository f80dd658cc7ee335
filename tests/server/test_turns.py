"""How peers share a turn of the reactor: one that sends very much does not keep others waiting."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from twisted.internet.task import Clock

from gearman_twisted.server.settings import ConnectionLimits
from gearman_twisted.wire.codec import Decoder, encode
from gearman_twisted.wire.constants import REQ, RES, PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.server_rig import Peer, ServerRig, SlowStore

P = PacketType

FLOODS = {
    "packets": [encode(REQ, P.ECHO_REQ, b"%d" % number) for number in range(5000)],
    "lines": [b"version\n"] * 5000,
    "lines between packets": [encode(REQ, P.ECHO_REQ, b"x"), b"version\n"] * 2500,
    "packets without an answer": [*[encode(REQ, P.CAN_DO, b"f")] * 5000, encode(REQ, P.GRAB_JOB)],
}


class TurningClock(Clock):
    """A clock whose ``turn`` makes those calls only that were due when it began, as a reactor does."""

    def turn(self) -> None:
        """Make the calls that are due now."""
        due = [call for call in self.calls if call.getTime() <= self.seconds()]
        for call in due:
            if call.active():
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)


class CountingRig(ServerRig):
    """A server that counts what its engine is given, and whose engine may take its time.

    Attributes:
        handled: how many packets each peer has had handled, by its number.
        slowness: seconds that each packet takes.
    """

    def __init__(self, **options: Any) -> None:
        self.turning = TurningClock()
        super().__init__(clock=self.turning, **options)
        self.handled: dict[int, int] = {}
        self.slowness = 0.0
        receive = self.engine.receive

        def counting_receive(conn: int, packets: Any, now: float) -> Any:
            self.handled[conn] = self.handled.get(conn, 0) + len(packets)
            self.clock.rightNow += self.slowness * len(packets)
            return receive(conn, packets, now)

        self.engine.receive = counting_receive  # type: ignore[method-assign]

    def handled_of(self, peer: Peer) -> int:
        """How many packets of a peer were handled so far."""
        return self.handled.get(peer.protocol.number, 0)


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_packets_of_a_turn_are_bounded(flood: list[bytes]) -> None:
    """A peer has so many packets handled in a turn and is not read meanwhile; all are answered, in order."""
    rig = CountingRig()
    peer, other = rig.connect(), rig.connect()
    peer.protocol.dataReceived(b"".join(flood))
    assert peer.transport.producerState == "paused"
    turns = 0
    seen = rig.handled_of(peer)
    assert seen < 1000
    while peer.transport.producerState == "paused":
        other.protocol.dataReceived(encode(REQ, P.ECHO_REQ, b"alive"))
        rig.turning.turn()
        assert Decoder(RES).feed(other.transport.value()) == [Packet(P.ECHO_RES, [b"alive"])]
        other.transport.clear()
        assert rig.handled_of(peer) - seen < 1000
        seen = rig.handled_of(peer)
        turns += 1
    assert turns >= 5
    assert seen == len(flood)
    rig.turning.turn()
    answers = peer.transport.value()
    if flood is FLOODS["packets"]:
        assert answers == b"".join(encode(RES, P.ECHO_RES, b"%d" % number) for number in range(5000))
    elif flood is FLOODS["lines"]:
        assert answers == b"OK 0\n" * 5000
    elif flood is FLOODS["lines between packets"]:
        assert answers == (encode(RES, P.ECHO_RES, b"x") + b"OK 0\n") * 2500
    else:
        assert answers == encode(RES, P.NO_JOB)
    rig.turning.turn()
    assert rig.clock.getDelayedCalls() == []


def test_time_of_a_turn_is_bounded() -> None:
    """Where packets take long, a turn ends sooner, however many peers send floods."""
    rig = CountingRig()
    rig.slowness = 0.001
    floods = [rig.connect() for _ in range(10)]
    other = rig.connect()
    for peer in floods:
        peer.protocol.dataReceived(encode(REQ, P.ECHO_REQ, b"x") * 1000)
    while any(peer.transport.producerState == "paused" for peer in floods):
        other.send(P.ECHO_REQ, b"alive")
        began = rig.clock.seconds()
        rig.turning.turn()
        # One slice of each, and no more.
        assert rig.clock.seconds() - began <= 10 * 0.065
        assert Decoder(RES).feed(other.transport.value()) == [Packet(P.ECHO_RES, [b"alive"])]
        other.transport.clear()
    assert [rig.handled_of(peer) for peer in floods] == [1000] * 10


def test_bytes_of_answers_of_a_turn_are_bounded() -> None:
    """A peer that asks for large answers gets no more than about a megabyte of them in a turn."""
    rig = CountingRig()
    peer = rig.connect()
    peer.protocol.dataReceived(encode(REQ, P.ECHO_REQ, bytes(20_000)) * 200)
    progress = [rig.handled_of(peer)]
    while peer.transport.producerState == "paused":
        rig.turning.turn()
        progress.append(rig.handled_of(peer))
    assert progress == [64, 128, 192, 200]


def test_what_comes_meanwhile_waits_behind() -> None:
    """What is read, or was read already, while packets of a peer wait is handled after them."""
    rig = CountingRig()
    peer = rig.connect()
    peer.protocol.dataReceived(encode(REQ, P.ECHO_REQ, b"1") * 1000)
    peer.protocol.dataReceived(encode(REQ, P.ECHO_REQ, b"2") + b"version\n")
    for _ in range(5):
        rig.turning.turn()
    assert peer.transport.value() == (
        encode(RES, P.ECHO_RES, b"1") * 1000 + encode(RES, P.ECHO_RES, b"2") + b"OK 0\n"
    )
    assert peer.transport.producerState == "producing"


def test_unsaved_jobs_are_bounded_within_a_read() -> None:
    """Of a read with very many submits, those beyond max_unsaved_jobs wait until half are saved."""
    store = SlowStore()
    rig = CountingRig(store=store, limits=ConnectionLimits(max_unsaved_jobs=100))
    peer = rig.connect()
    peer.protocol.dataReceived(encode(REQ, P.SUBMIT_JOB_BG, b"f", b"", b"w") * 1000)
    for _ in range(5):
        rig.turning.turn()
    assert rig.handled_of(peer) <= 200
    while rig.handled_of(peer) < 1000:
        assert peer.transport.producerState == "paused"
        store.finish()
        rig.turning.turn()
    while any(not done.called for _, _, done in store.commits):
        store.finish()
    rig.turning.turn()
    assert len(Decoder(RES).feed(peer.transport.value())) == 1000
    assert peer.transport.producerState == "producing"


def slow_down_disconnects(rig: ServerRig) -> None:
    """Have the engine take 0.1 s to end what a peer had."""
    disconnect = rig.engine.disconnect

    def slow_disconnect(conn: int, now: float) -> Any:
        rig.clock.rightNow += 0.1
        return disconnect(conn, now)

    rig.engine.disconnect = slow_disconnect  # type: ignore[method-assign]


def connections(rig: ServerRig) -> int:
    """How many connections the engine knows."""
    return len(rig.engine.snapshot().connections)


def test_peers_that_leave_together_share_turns() -> None:
    """Where the end of each takes long, the engine ends one in a turn, and others are served in between."""
    rig = CountingRig()
    peers, other = [rig.connect() for _ in range(5)], rig.connect()
    for number, peer in enumerate(peers):
        peer.send(P.CAN_DO, b"f%d" % number)
    slow_down_disconnects(rig)
    for peer in peers:
        peer.lose()
    left = []
    for _ in range(6):
        left.append(connections(rig) - 1)
        other.send(P.ECHO_REQ, b"x")
        rig.turning.turn()
    assert left == [4, 3, 2, 1, 0, 0]
    rig.turning.turn()
    assert len(Decoder(RES).feed(other.transport.value())) == 6
    assert rig.clock.getDelayedCalls() == []


@pytest.mark.parametrize("is_slow", [False, True], ids=["little", "much"])
def test_peers_that_leave_do_not_wait_for_floods(is_slow: bool) -> None:
    """While others use up each turn, the job of a worker that is gone is queued again; all make progress."""
    rig = CountingRig()
    worker, *leavers = [rig.connect() for _ in range(5)]
    floods = [rig.connect() for _ in range(20)]
    worker.send(P.CAN_DO, b"f")
    floods[0].send(P.SUBMIT_JOB_BG, b"f", b"", b"")
    worker.send(P.GRAB_JOB)
    rig.slowness = 0.001
    if is_slow:
        slow_down_disconnects(rig)
    for peer in floods:
        peer.protocol.dataReceived((encode(REQ, P.CAN_DO, b"g") + encode(REQ, P.CANT_DO, b"g")) * 200)
    for peer in (worker, *leavers):
        peer.lose()
    [running] = [each for each in rig.engine.snapshot().functions if each.running]
    assert connections(rig) == 25
    rig.turning.turn()
    [queued] = [each for each in rig.engine.snapshot().functions if each.name == running.name]
    assert queued.running == 0
    handled = sum(rig.handled.values())
    for _ in range(4):
        rig.turning.turn()
    assert connections(rig) == 20
    assert sum(rig.handled.values()) >= handled + 4 * 64
    while any(peer.transport.producerState == "paused" for peer in floods):
        rig.turning.turn()
    rig.turning.turn()
    assert rig.clock.getDelayedCalls() == []


def test_nothing_is_left_of_peers_that_leave_a_server_that_stops() -> None:
    """What was still to be ended when the last connection closes needs no further turn."""
    rig = CountingRig()
    peers = [rig.connect() for _ in range(5)]
    slow_down_disconnects(rig)
    for peer in peers[1:]:
        peer.lose()
    stopped = rig.stop()
    peers[0].lose()
    assert stopped.called
    rig.turning.turn()
    assert connections(rig) == 4
    assert rig.clock.getDelayedCalls() == []


def test_slow_lines_of_many_peers_share_turns() -> None:
    """A turn that is over takes no line of any other peer; all get their answers in turn."""
    rig = CountingRig()
    rig.slowness = 0.1
    peers = [rig.connect() for _ in range(5)]
    for peer in peers:
        peer.protocol.dataReceived(b"show jobs\n" * 3)
    progress = []
    for _ in range(15):
        progress.append([rig.handled_of(peer) for peer in peers])
        rig.turning.turn()
    assert all(sum(after) - sum(before) == 1 for before, after in pairwise(progress))
    assert max(max(each) - min(each) for each in progress) <= 2
    assert [rig.handled_of(peer) for peer in peers] == [3] * 5
    assert all(peer.transport.producerState == "producing" for peer in peers)


class ListingRig(CountingRig):
    """A server with very many functions, whose engine takes 4 ms for each piece of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.worker, self.other = self.connect(), self.connect()
        self.names = [b"%05d" % number for number in range(20_000)]
        for name in self.names:
            self.worker.protocol.dataReceived(encode(REQ, P.CAN_DO, name))
        go_on = self.engine.go_on

        def slow_go_on(conn: int, now: float) -> Any:
            self.clock.rightNow += 0.004
            return go_on(conn, now)

        self.engine.go_on = slow_go_on  # type: ignore[method-assign]

    def turn_and_ask(self) -> None:
        """Let a turn pass in which another peer is served."""
        self.other.send(P.ECHO_REQ, b"alive")
        self.turning.turn()
        assert Decoder(RES).feed(self.other.transport.value()) == [Packet(P.ECHO_RES, [b"alive"])]
        self.other.transport.clear()


def test_long_list_is_sent_in_pieces() -> None:
    """A list of many rows takes several turns, in which others are served; what follows it waits."""
    rig = ListingRig()
    peer = rig.connect()
    peer.protocol.dataReceived(
        encode(REQ, P.SUBMIT_JOB, rig.names[0], b"", b"") + b"status\nstatus\nversion\n"
    )
    rig.turn_and_ask()
    rig.worker.send(P.GRAB_JOB)
    rig.turn_and_ask()
    [assigned] = Decoder(RES).feed(rig.worker.transport.value())
    rig.worker.send(P.WORK_COMPLETE, assigned.args[0], b"result")
    turns = 0
    while peer.transport.producerState == "paused":
        rig.turn_and_ask()
        turns += 1
    assert turns > 5
    rig.turning.turn()
    first = b"00000\t1\t0\t1\n" + b"".join(b"%b\t0\t0\t1\n" % name for name in rig.names[1:]) + b".\n"
    second = first.replace(b"00000\t1", b"00000\t0")
    created = encode(RES, P.JOB_CREATED, assigned.args[0])
    result = encode(RES, P.WORK_COMPLETE, assigned.args[0], b"result")
    assert peer.transport.value() == created + first + result + second + b"OK 0\n"
    assert rig.clock.getDelayedCalls() == []


def test_peer_that_leaves_amid_a_long_list() -> None:
    """Nothing is left of it."""
    rig = ListingRig()
    peer = rig.connect()
    peer.protocol.dataReceived(b"status\n" * 3)
    rig.turn_and_ask()
    assert peer.transport.producerState == "paused"
    peer.lose()
    for _ in range(3):
        rig.turn_and_ask()
    assert len(rig.engine.snapshot().connections) == 2
    assert rig.clock.getDelayedCalls() == []


def test_long_list_waits_for_the_store() -> None:
    """A list behind a submission that is being saved comes after its reply, and whole."""
    store = SlowStore()
    rig = ServerRig(store=store)
    peer = rig.connect()
    peer.protocol.dataReceived(encode(REQ, P.CAN_DO, b"f"))
    for number in range(3_000):
        peer.protocol.dataReceived(b"create function %d\n" % number)
    rig.clock.advance(0)
    peer.transport.clear()
    peer.protocol.dataReceived(encode(REQ, P.SUBMIT_JOB_BG, b"f", b"", b"") + b"status\nversion\n")
    for _ in range(5):
        rig.clock.advance(0)
    assert peer.transport.value() == b""
    store.finish()
    rig.clock.advance(0)
    names = [b"f", *(b"%d" % number for number in range(3_000))]
    rows = b"".join(b"%b\t%d\t0\t%d\n" % (name, name == b"f", name == b"f") for name in names)
    answer = peer.transport.value()
    assert answer.startswith(b"\0RES" + P.JOB_CREATED.to_bytes(4, "big"))
    assert answer.endswith(rows + b".\nOK 0\n")
