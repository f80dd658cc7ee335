"""Peers that mean no good, or do not know better: they get an error or are closed, and all others go on."""

from __future__ import annotations

import resource
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.server.settings import ConnectionLimits
from gearman_twisted.wire.codec import Decoder, encode
from gearman_twisted.wire.constants import PACKETS, REQ, RES, PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.server_rig import ServerRig
from tests.kit.servers import PATIENCE, TwistdGearman, WirePeer, resident_bytes

P = PacketType

MIB = 1024 * 1024
# What a server with nothing to do takes, generously; it is Python and Twisted for the most part.
IDLE_BYTES = 80 * MIB
IDLE_CONNECTIONS = 10_000
# Of one that says nothing, in the server.
CONNECTION_BYTES = 16 * 1024


def header(type_: int, size: int, magic: bytes = REQ) -> bytes:
    """The start of a packet that may lie about its size."""
    return struct.pack(">4sII", magic, type_, size)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwistdGearman]:
    """A server that many hostile peers in turn talk to; in the end its log has no exception."""
    with TwistdGearman(tmp_path_factory.mktemp("server"), "--store=memory:") as running:
        yield running
        assert running.end() == 0
        assert "Traceback" not in running.log.read_text()


@pytest.fixture
def other(server: TwistdGearman) -> Iterator[WirePeer]:
    """A peer that was there before; when the test has ended it is still served, well and soon."""
    with WirePeer(server.port) as peer:
        yield peer
        assert peer.ask(P.ECHO_REQ, b"still here") == Packet(P.ECHO_RES, [b"still here"])
        handle = b""
        peer.send(P.CAN_DO, b"other")
        created = peer.ask(P.SUBMIT_JOB, b"other", b"", b"work")
        assert created is not None
        [handle] = created.args
        assert peer.ask(P.GRAB_JOB) == Packet(P.JOB_ASSIGN, [handle, b"other", b"work"])
        assert peer.ask(P.WORK_COMPLETE, handle, b"done") == Packet(P.WORK_COMPLETE, [handle, b"done"])
        assert resident_bytes(server) < IDLE_BYTES


ENDS = {
    "bad magic": (b"\0XYZ" + bytes(8), b"INVALID_MAGIC"),
    "the first byte of a magic, and then another": (b"\0A", b"INVALID_MAGIC"),
    "a packet of 4 GiB": (header(P.SUBMIT_JOB_BG, 0xFFFFFFFF), b"ARGUMENT_TOO_LARGE"),
    "a packet of a byte more than allowed": (header(P.ECHO_REQ, 1_000_000_001), b"ARGUMENT_TOO_LARGE"),
    "4 GiB of an unknown type": (header(0xFFFFFFFF, 0xFFFFFFFF), b"ARGUMENT_TOO_LARGE"),
    "a line without end": (b"A" * 8192, b"INVALID_MAGIC"),
    "bad magic behind a good packet": (encode(REQ, P.CAN_DO, b"f") + b"\0\0\0\0", b"INVALID_MAGIC"),
}


@pytest.mark.parametrize("case", ENDS)
def test_broken_stream_is_answered_and_closed(server: TwistdGearman, other: WirePeer, case: str) -> None:
    """What makes the rest of the stream unreadable is answered with an ERROR, then closed."""
    data, code = ENDS[case]
    with WirePeer(server.port) as peer:
        peer.socket.sendall(data)
        answer = peer.receive()
        assert answer is not None
        assert (answer.type, answer.args[0]) == (P.ERROR, code)
        assert peer.receive() is None


GOES_ON = {
    "an unknown type": (header(999, 3) + b"abc", b"INVALID_COMMAND"),
    "type 0": (header(0, 0), b"INVALID_COMMAND"),
    "no NUL where two are due": (header(P.SUBMIT_JOB, 8) + b"function", b"INVALID_PACKET"),
    "one NUL where two are due": (header(P.SUBMIT_JOB_BG, 9) + b"function\0", b"INVALID_PACKET"),
    "an empty payload": (header(P.CAN_DO_TIMEOUT, 0), b"INVALID_PACKET"),
    "a response": (encode(REQ, P.JOB_CREATED, b"H:a:1"), b"INVALID_COMMAND"),
    "the magic of responses": (encode(RES, P.NOOP), b"INVALID_MAGIC"),
    "too long a name": (encode(REQ, P.CAN_DO, b"f" * 8192), b"ARGUMENT_TOO_LARGE"),
    "too long a unique": (encode(REQ, P.SUBMIT_JOB, b"f", b"u" * 65, b""), b"ARGUMENT_TOO_LARGE"),
    "a result for no job": (encode(REQ, P.WORK_COMPLETE, b"H:a:1", b""), b"JOB_NOT_FOUND"),
    "a time limit without sense": (encode(REQ, P.CAN_DO_TIMEOUT, b"f", b"9" * 1000), b"INVALID_ARGUMENT"),
    "an epoch without end": (
        encode(REQ, P.SUBMIT_JOB_EPOCH, b"f", b"", b"9" * 100, b""),
        b"INVALID_ARGUMENT",
    ),
}


@pytest.mark.parametrize("case", GOES_ON)
def test_bad_packet_is_answered(server: TwistdGearman, other: WirePeer, case: str) -> None:
    """A packet that makes no sense is answered with an ERROR; the ones behind it are served."""
    data, code = GOES_ON[case]
    with WirePeer(server.port) as peer:
        peer.socket.sendall(data + encode(REQ, P.ECHO_REQ, b"next"))
        answer = peer.receive()
        assert answer is not None
        assert (answer.type, answer.args[0]) == (P.ERROR, code)
        assert peer.receive() == Packet(P.ECHO_RES, [b"next"])


def test_text_stands_between_packets(server: TwistdGearman, other: WirePeer) -> None:
    """A line of text in a binary stream is a text command, whatever is in it."""
    echo = encode(REQ, P.ECHO_REQ, b"x")
    with WirePeer(server.port) as peer:
        peer.socket.sendall(echo + b"\xff\xfe nonsense \0\n" + echo + b"getpid\r\n" + echo)
        received = b""
        while received.count(RES) < 3:
            received += peer.socket.recv(65536)
        first, second, third = received.split(encode(RES, P.ECHO_RES, b"x"))[:3]
        assert first == b""
        assert second.startswith(b"ERR UNKNOWN_COMMAND")
        assert third == b"OK %d\n" % server.process.pid


@pytest.mark.parametrize("size", [1, 3, 11, 12, 13, 30_000])
def test_truncated_packet_leaves_nothing(server: TwistdGearman, other: WirePeer, size: int) -> None:
    """A connection that ends in the middle of a packet is gone, and what it began has not happened."""
    data = encode(REQ, P.SUBMIT_JOB_BG, b"truncated", b"", bytes(32_000))
    with WirePeer(server.port) as peer:
        peer.socket.sendall(data[:size])
        peer.socket.shutdown(socket.SHUT_WR)
        assert peer.receive() is None
    assert b"truncated" not in other.text(b"status", b".\n")


def test_half_packets_and_silence(server: TwistdGearman, other: WirePeer) -> None:
    """Two hundred peers that send half a packet and then nothing keep nobody waiting."""
    packet = encode(REQ, P.SUBMIT_JOB_BG, b"f", b"", bytes(20_000))
    peers = [WirePeer(server.port) for _ in range(200)]
    try:
        for peer in peers:
            peer.socket.sendall(packet[:10_000])
        _wait_for_peers(other, 200)
        assert resident_bytes(server) < IDLE_BYTES
    finally:
        for peer in peers:
            peer.socket.close()


def test_announced_size_takes_no_memory(server: TwistdGearman, other: WirePeer) -> None:
    """Memory is taken for what has come of a packet, and not for what it says will come."""
    peers = [WirePeer(server.port) for _ in range(50)]
    try:
        for peer in peers:
            peer.socket.sendall(header(P.ECHO_REQ, 1_000_000_000) + b"x")
        assert other.ask(P.ECHO_REQ, b"") == Packet(P.ECHO_RES, [b""])
        assert resident_bytes(server) < IDLE_BYTES
    finally:
        for peer in peers:
            peer.socket.close()


def test_endless_line_is_closed(server: TwistdGearman, other: WirePeer) -> None:
    """A peer that sends text without ever ending the line is closed, and nothing of it is kept."""
    with WirePeer(server.port) as peer, pytest.raises(OSError, match=r"reset|pipe"):  # noqa: PT012
        # More than any socket buffers on the way, so the end shows.
        for _ in range(64):
            peer.socket.sendall(b"A" * MIB)


def test_flood_of_lists_is_survived(server: TwistdGearman, other: WirePeer) -> None:
    """A peer that asks for many long lists at once, and reads none of them, holds nobody up for long."""
    with WirePeer(server.port) as client:
        client.socket.sendall(encode(REQ, P.SUBMIT_JOB, b"listed", b"", b"") * 1000)
        for _ in range(1000):
            assert client.receive() is not None
        with WirePeer(server.port) as peer:
            peer.socket.sendall(b"show jobs\n" * 500)
            for _ in range(3):
                assert other.ask(P.ECHO_REQ, b"") == Packet(P.ECHO_RES, [b""])
            assert resident_bytes(server) < IDLE_BYTES + 50 * MIB
    assert b"listed\t0\t" in _status_when_gone(other, b"listed\t0\t")


def _wait_for_peers(other: WirePeer, count: int) -> None:
    """Ask until the server has accepted so many others; it may be a few behind."""
    deadline = time.monotonic() + PATIENCE
    while (lines := other.text(b"workers", b"\n.\n").count(b"\n")) < count + 2:
        assert time.monotonic() < deadline, f"{lines - 2} of {count} were accepted"


def _status_when_gone(other: WirePeer, line: bytes) -> bytes:
    """The answer to ``status`` once it has this line, which comes when the server has seen a peer leave."""
    deadline = time.monotonic() + PATIENCE
    while line not in (status := other.text(b"status", b".\n")):
        assert time.monotonic() < deadline, status
    return status


@pytest.mark.soak
def test_peer_that_never_reads_is_closed(tmp_path: Path) -> None:
    """A peer that asks for much and reads nothing is closed; until then it takes no more than 400 MiB."""
    with TwistdGearman(tmp_path, "--store=memory:") as server, WirePeer(server.port) as other:
        request = encode(REQ, P.ECHO_REQ, bytes(MIB))
        with WirePeer(server.port) as peer, pytest.raises(OSError, match=r"reset|pipe"):  # noqa: PT012
            for _ in range(2000):
                peer.socket.sendall(request)
                assert resident_bytes(server) < 400 * MIB
        assert other.ask(P.ECHO_REQ, b"") == Packet(P.ECHO_RES, [b""])
        assert "not reading" in server.log.read_text()
        assert server.end() == 0


@pytest.mark.soak
def test_ten_thousand_silent_connections(tmp_path: Path) -> None:
    """Ten thousand connections that say nothing take little memory, and nobody waits for them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = IDLE_CONNECTIONS + 200
    assert hard >= need or hard == resource.RLIM_INFINITY, f"needs {need} open files; ulimit -Hn is {hard}"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(need, soft), hard))
    peers: list[socket.socket] = []
    try:
        with TwistdGearman(tmp_path, "--store=memory:") as server, WirePeer(server.port) as other:
            before = resident_bytes(server)
            for number in range(IDLE_CONNECTIONS):
                peers.append(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE))
                if number % 40 == 0:
                    # As many as fit the queue of the listening socket have been accepted then.
                    assert other.ask(P.ECHO_REQ, b"") == Packet(P.ECHO_RES, [b""])
            _wait_for_peers(other, IDLE_CONNECTIONS)
            assert resident_bytes(server) < before + IDLE_CONNECTIONS * CONNECTION_BYTES
            assert list(other.drain(b"f")) == []
            assert not select.select(peers[:1000:100], [], [], 0)[0], "one of them was closed"
            assert server.end() == 0
    finally:
        for peer in peers:
            peer.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class _Transport(StringTransport):
    """A transport in memory that can be aborted."""

    def abortConnection(self) -> None:
        """Close at once."""
        self.disconnecting = True


def _garbage() -> st.SearchStrategy[bytes]:
    """Bytes of all kinds: any, packets with any payload, good packets, text, and pieces of all of these."""
    payload = st.lists(
        st.sampled_from(
            [b"\0", b"f", b"u", b"-", b"H:t:1", b"H:t:2", b"9" * 25, b"1", b"*", b"exceptions", b"\xff"]
        )
    ).map(b"".join)
    size = st.sampled_from([-1, 0, 0, 0, 0, 1, 0xFFFFFFF0])
    packets = st.builds(
        lambda magic, type_, data, more: header(type_, (len(data) + more) & 0xFFFFFFFF, magic) + data,
        st.sampled_from([REQ, REQ, REQ, RES]),
        st.sampled_from(list(PACKETS)) | st.integers(0, 0xFFFFFFFF),
        payload | st.binary(max_size=40),
        size,
    )
    words = st.sampled_from(
        b"show jobs unique scheduled cancel job H:t:1 maxqueue f 1 -1 create function drop status workers "
        b"shutdown graceful \0 \xff ".split(b" ")
    )
    lines = st.builds(
        lambda tokens, end: b" ".join(tokens) + end,
        st.lists(words, max_size=7),
        st.sampled_from([b"\n", b"\r\n", b""]),
    )
    return st.binary(max_size=60) | packets | packets | lines


@given(
    reads=st.lists(st.tuples(st.integers(0, 3), _garbage()), max_size=25),
    seconds=st.sampled_from([0.0, 0.5, 5.0]),
)
@settings(max_examples=400, deadline=None)
def test_no_bytes_raise(reads: list[tuple[int, bytes]], seconds: float) -> None:
    """Whatever several peers send, nothing escapes as an exception, and a peer that behaves is served."""
    rig = ServerRig(
        settings=EngineSettings(handle_prefix=b"H:t", allows_shutdown=True),
        limits=ConnectionLimits(max_packet_bytes=100_000),
        clock=Clock(),
    )
    clock = rig.clock
    protocols = [rig.factory.buildProtocol(None) for _ in range(5)]
    transports = [_Transport() for _ in protocols]
    for protocol, transport in zip(protocols, transports, strict=True):
        protocol.makeConnection(transport)
    for number, data in reads:
        if not transports[number].disconnecting:
            protocols[number].dataReceived(data)
        clock.advance(seconds)
    good, sent = protocols[4], transports[4]
    good.dataReceived(encode(REQ, P.ECHO_REQ, b"still here"))
    clock.advance(0)
    assert Decoder(RES).feed(sent.value()) == [Packet(P.ECHO_RES, [b"still here"])]
    for protocol in protocols:
        protocol.connectionLost(Failure(ConnectionDone()))
    clock.advance(60)
    assert rig.engine.snapshot().connections == []
