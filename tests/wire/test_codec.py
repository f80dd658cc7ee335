"""The codec: every packet in both directions, however it is cut, and everything that is not a packet."""

from __future__ import annotations

import struct

import pytest

from gearman_twisted.errors import LocalProtocolError
from gearman_twisted.wire.codec import Decoder, encode, encode_head, respond
from gearman_twisted.wire.constants import PACKETS, REQ, RES, PacketType
from gearman_twisted.wire.packet import Packet

P = PacketType
ECHO = encode(REQ, P.ECHO_REQ, b"next")
ECHOED = Packet(P.ECHO_REQ, [b"next"])


def arguments_of(type_: int) -> list[bytes]:
    """Arguments for a packet, with NULs and line ends where they may be."""
    args = [name.encode() + b"\n\xff" for name in PACKETS[type_].arguments]
    if args:
        args[-1] += b"\0 tail \0"
    return args


def raw(magic: bytes, type_: int, payload: bytes = b"", announced: int | None = None) -> bytes:
    """A packet as bytes, put together without the codec."""
    size = len(payload) if announced is None else announced
    return magic + struct.pack(">II", type_, size) + payload


def feed_bytewise(decoder: Decoder, data: bytes) -> list[Packet]:
    """All that comes out when each byte is read alone."""
    return [packet for byte in data for packet in decoder.feed(bytes([byte]))]


both_ways = pytest.mark.parametrize("magic", [REQ, RES], ids=["REQ", "RES"])
every_packet = pytest.mark.parametrize("type_", list(PACKETS), ids=lambda type_: PacketType(type_).name)


@both_ways
@every_packet
def test_packet_is_encoded_as_the_protocol_says(magic: bytes, type_: int) -> None:
    """Magic, type and length are followed by the arguments with a NUL between them."""
    args = arguments_of(type_)
    assert encode(magic, type_, *args) == raw(magic, type_, b"\0".join(args))


@every_packet
def test_server_responds_as_encode_does(type_: int) -> None:
    """The two quick ways to write a packet give the same bytes as the checked one."""
    args = arguments_of(type_)
    whole = encode(RES, type_, *args)
    assert respond(type_, *args) == whole
    if PACKETS[type_].has_data:
        head = b"".join(arg + b"\0" for arg in args[:-1])
        assert encode_head(RES, type_, head, len(args[-1])) + args[-1] == whole


@both_ways
@every_packet
def test_packet_is_decoded_however_it_is_cut(magic: bytes, type_: int) -> None:
    """Fed whole, byte by byte, split anywhere, or with bytes of the next packet, it comes out the same."""
    args = arguments_of(type_)
    wanted = Packet(type_, args)
    data = encode(magic, type_, *args)
    following = encode(magic, P.ECHO_REQ, b"next")
    assert Decoder(magic).feed(data) == [wanted]
    assert feed_bytewise(Decoder(magic), data + following) == [wanted, ECHOED]
    both = data + following
    for cut in range(len(both) + 1):
        decoder = Decoder(magic)
        first, second = decoder.feed(both[:cut]), decoder.feed(both[cut:])
        assert first + second == [wanted, ECHOED]
        # Never sooner and never later than with its last byte.
        assert len(first) == (cut >= len(data)) + (cut >= len(both))
        assert decoder.buffered_bytes == 0


@pytest.mark.parametrize("type_", [t for t, spec in PACKETS.items() if not spec.arguments])
def test_payload_that_should_not_be_there_is_ignored(type_: int) -> None:
    """Some clients send a payload where PROTOCOL gives none."""
    assert Decoder(REQ).feed(raw(REQ, type_, b"pay\0load") + ECHO) == [Packet(type_, []), ECHOED]


MAY_LACK_DATA = (P.WORK_COMPLETE, P.WORK_DATA, P.WORK_WARNING, P.WORK_EXCEPTION)


@pytest.mark.parametrize("type_", MAY_LACK_DATA)
def test_a_handle_alone_has_empty_data(type_: PacketType) -> None:
    """Perl's worker leaves the NUL out when a result is empty; that is empty data."""
    assert Decoder(REQ).feed(raw(REQ, type_, b"H:x:1") + ECHO) == [Packet(type_, [b"H:x:1", b""]), ECHOED]


@pytest.mark.parametrize(
    "type_", [t for t, spec in PACKETS.items() if len(spec.arguments) > 1 and t not in MAY_LACK_DATA]
)
def test_too_few_arguments_make_one_bad_packet(type_: int) -> None:
    """A packet with too few NULs is refused alone; the next one is still read."""
    count = len(PACKETS[type_].arguments)
    for nuls in range(count - 1):
        bad, good = Decoder(REQ).feed(raw(REQ, type_, b"a" + b"\0" * nuls) + ECHO)
        text = f"{PacketType(type_).name} takes {count} arguments, not {nuls + 1}".encode()
        assert bad == Packet(P.BAD_PACKET, [b"INVALID_PACKET", text])
        assert good == ECHOED


@pytest.mark.parametrize("type_", [0, 43, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_unknown_type_is_refused_alone(type_: int) -> None:
    """A number that no packet has is refused with its payload, and the next packet is still read."""
    refused = Packet(P.BAD_PACKET, [b"INVALID_COMMAND", b"Invalid command expected"])
    for payload in (b"", b"x\0y"):
        assert Decoder(REQ).feed(raw(REQ, type_, payload) + ECHO) == [refused, ECHOED]


def test_response_is_refused_alone_by_a_server() -> None:
    """A packet with the magic of responses is answered with an ERROR, and the next one is still read."""
    refused = Packet(P.BAD_PACKET, [b"INVALID_MAGIC", b"Request magic expected"])
    assert Decoder(REQ).feed(encode(RES, P.ECHO_REQ, b"x") + ECHO) == [refused, ECHOED]


def test_request_ends_the_stream_at_a_client() -> None:
    """A client that gets a request is talking to something else than a server."""
    broken = Packet(P.BAD_STREAM, [b"INVALID_MAGIC", b"Response magic expected"])
    decoder = Decoder(RES)
    assert decoder.feed(encode(RES, P.NOOP) + ECHO + encode(RES, P.NOOP)) == [Packet(P.NOOP, []), broken]
    assert decoder.feed(encode(RES, P.NOOP)) == []


@pytest.mark.parametrize("start", [b"\0REX", b"\0QER", b"\0\0\0\0", b"\0RE\0", b"\0x", b"\0R\n"])
def test_bad_magic_ends_the_stream(start: bytes) -> None:
    """Behind bytes that no packet starts with, nothing can be read any more."""
    broken = [Packet(P.BAD_STREAM, [b"INVALID_MAGIC", b"Request magic expected"])]
    decoder = Decoder(REQ, takes_text=True)
    assert decoder.feed(ECHO + start.ljust(12, b"z") + ECHO) == [ECHOED, *broken]
    assert decoder.feed(ECHO) == []
    assert decoder.feed(b"status\n") == []
    assert decoder.buffered_bytes == 0
    assert feed_bytewise(Decoder(REQ, takes_text=True), start.ljust(12, b"z") + ECHO) == broken


def test_bad_magic_is_known_at_once() -> None:
    """A peer that sends a wrong start and waits gets its answer: the decoder does not wait for more."""
    assert [packet.type for packet in Decoder(REQ).feed(b"\0X")] == [P.BAD_STREAM]
    assert [packet.type for packet in Decoder(RES).feed(b"H")] == [P.BAD_STREAM]


def test_client_is_told_what_was_expected() -> None:
    """At a client, the text names the magic that a server should have sent."""
    [bad] = Decoder(RES).feed(b"HTTP/1.1 400 Bad Request\r\n")
    assert bad == Packet(P.BAD_STREAM, [b"INVALID_MAGIC", b"Response magic expected"])


def test_packet_that_announces_too_much_is_refused_before_it_comes() -> None:
    """A header that announces 4 GiB is answered at once, and nothing is kept for it."""
    decoder = Decoder(REQ, max_packet_bytes=1000)
    [bad] = decoder.feed(raw(REQ, P.ECHO_REQ, announced=0xFFFFFFFF))
    assert bad == Packet(
        P.BAD_STREAM, [b"ARGUMENT_TOO_LARGE", b"Packet of 4294967295 bytes refused: the limit here is 1000"]
    )
    assert decoder.feed(b"x" * 1000) == []
    assert decoder.buffered_bytes == 0


def test_packet_of_just_the_limit_is_taken() -> None:
    """The limit itself is allowed."""
    data = raw(REQ, P.ECHO_REQ, b"x" * 1000)
    assert Decoder(REQ, max_packet_bytes=1000).feed(data) == [Packet(P.ECHO_REQ, [b"x" * 1000])]
    assert Decoder(REQ, max_packet_bytes=999).feed(data)[0].type == P.BAD_STREAM


@both_ways
def test_default_limit_is_that_of_our_servers(magic: bytes) -> None:
    """What a server of ours takes can be passed on, names included; what announces 4 GiB is refused."""
    passed_on = raw(magic, P.JOB_ASSIGN_ALL, b"H:x:1\0f\0", announced=1_000_000_000 + 3 * 8192)
    assert Decoder(magic).feed(passed_on) == []
    [bad] = Decoder(magic).feed(raw(magic, P.WORK_COMPLETE, b"H:x:1\0", announced=0xFFFFFFFF))
    assert (bad.type, bad.args[0]) == (P.BAD_STREAM, b"ARGUMENT_TOO_LARGE")


def test_announced_bytes_are_not_reserved() -> None:
    """A packet that announces 4 GiB where that is allowed costs only what was sent of it."""
    decoder = Decoder(REQ, max_packet_bytes=0xFFFFFFFF)
    assert decoder.feed(raw(REQ, P.ECHO_REQ, b"abc", announced=0xFFFFFFFF)) == []
    assert decoder.buffered_bytes == 15


@pytest.mark.parametrize("position", range(3))
def test_argument_of_8192_bytes_is_refused_alone(position: int) -> None:
    """No argument but data may be longer than gearmand's buffer takes; the next packet is still read."""
    for size, fits in ((8191, True), (8192, position == 2)):
        args = [b"f", b"u", b"w"]
        args[position] = b"x" * size
        first, second = Decoder(REQ).feed(encode(REQ, P.SUBMIT_JOB, *args) + ECHO)
        if fits:
            assert first == Packet(P.SUBMIT_JOB, args)
        else:
            text = b"An argument of SUBMIT_JOB is longer than 8191 bytes"
            assert first == Packet(P.BAD_PACKET, [b"ARGUMENT_TOO_LARGE", text])
        assert second == ECHOED


@pytest.mark.parametrize("type_", [P.CAN_DO, P.WORK_FAIL, P.OPTION_REQ])
def test_last_argument_without_data_is_limited_too(type_: int) -> None:
    """An argument that ends with its packet is no data, and has the same limit."""
    assert Decoder(REQ).feed(encode(REQ, type_, b"x" * 8191))[0].type == type_
    assert Decoder(REQ).feed(encode(REQ, type_, b"x" * 8192))[0].type == P.BAD_PACKET


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_text_line_is_a_packet_of_its_own_kind(end: bytes) -> None:
    """A line between packets comes out in its place, without its LF; its CR is left to who reads it."""
    data = ECHO + b"status" + end + ECHO + b"\n" + b"version" + end
    kept = end[:-1]
    wanted = [
        ECHOED,
        Packet(P.TEXT_LINE, [b"status" + kept]),
        ECHOED,
        Packet(P.TEXT_LINE, [b""]),
        Packet(P.TEXT_LINE, [b"version" + kept]),
    ]
    assert Decoder(REQ, takes_text=True).feed(data) == wanted
    assert feed_bytewise(Decoder(REQ, takes_text=True), data) == wanted
    for cut in range(len(data)):
        decoder = Decoder(REQ, takes_text=True)
        assert decoder.feed(data[:cut]) + decoder.feed(data[cut:]) == wanted


@pytest.mark.parametrize("size", [8191, 8192])
def test_text_line_of_8192_bytes_is_taken(size: int) -> None:
    """A line may have as many bytes as gearmand's buffer, its LF included."""
    line = b"x" * (size - 1)
    assert Decoder(REQ, takes_text=True).feed(line + b"\n" + ECHO) == [Packet(P.TEXT_LINE, [line]), ECHOED]
    assert feed_bytewise(Decoder(REQ, takes_text=True), line + b"\n") == [Packet(P.TEXT_LINE, [line])]


def test_longer_text_line_ends_the_stream() -> None:
    """What is neither a packet nor a line of bearable length is given up, with or without its LF."""
    text = b"Neither a packet nor a text command of at most 8192 bytes"
    broken = [Packet(P.BAD_STREAM, [b"INVALID_MAGIC", text])]
    assert Decoder(REQ, takes_text=True).feed(b"x" * 8192 + b"\n" + ECHO) == broken
    assert Decoder(REQ, takes_text=True).feed(b"x" * 8192) == broken
    decoder = Decoder(REQ, takes_text=True)
    assert decoder.feed(b"x" * 8191) == []
    assert decoder.feed(b"x") == broken
    assert decoder.feed(ECHO) == []


def test_client_takes_no_text() -> None:
    """Where no text is expected, a line is a broken stream."""
    assert [packet.type for packet in Decoder(REQ).feed(b"status\n" + ECHO)] == [P.BAD_STREAM]


@pytest.mark.parametrize(
    "args",
    [(b"f", b"u"), (b"f", b"u", b"w", b"x"), (b"f\0", b"u", b"w"), (b"f", b"u\0", b"w"), (b"\0", b"\0", b"")],
)
def test_packet_that_would_be_cut_elsewhere_is_refused(args: tuple[bytes, ...]) -> None:
    """The wrong number of arguments, or a NUL before the last one, cannot be sent."""
    with pytest.raises(LocalProtocolError, match="SUBMIT_JOB takes 3 arguments, no NUL but in the last"):
        encode(REQ, P.SUBMIT_JOB, *args)


def test_packet_without_arguments_takes_none() -> None:
    """GRAB_JOB has no room for an argument, CAN_DO has for one."""
    with pytest.raises(LocalProtocolError, match="GRAB_JOB takes 0 arguments"):
        encode(REQ, P.GRAB_JOB, b"")
    with pytest.raises(LocalProtocolError, match="CAN_DO takes 1 arguments"):
        encode(REQ, P.CAN_DO)


def test_packet_shows_what_it_is() -> None:
    """Logs and failed tests show the packet's name, and not megabytes."""
    assert repr(Packet(P.ECHO_REQ, [b"x" * 65])) == f"ECHO_REQ({b'x' * 64!r}… 65 bytes)"
    assert repr(Packet(99, [b"a", b"b"])) == "99(b'a', b'b')"


@pytest.mark.parametrize("size", [100, 50_000])
@pytest.mark.parametrize("data", [b"w", b"\0", b"a\0b"])
def test_large_packets_are_cut_up_as_small_ones(size: int, data: bytes) -> None:
    """The quicker way for large packets finds the same arguments, and the same faults."""
    data *= size
    submit = encode(REQ, PacketType.SUBMIT_JOB, b"f", b"u", data)
    assert Decoder(REQ).feed(submit) == [Packet(PacketType.SUBMIT_JOB, [b"f", b"u", data])]
    echo = encode(REQ, PacketType.ECHO_REQ, data)
    assert Decoder(REQ).feed(echo) == [Packet(PacketType.ECHO_REQ, [data])]
    nul_less = b"x" * size
    [bad] = Decoder(REQ).feed(
        b"\0REQ" + PacketType.SUBMIT_JOB.to_bytes(4, "big") + size.to_bytes(4, "big") + nul_less
    )
    code = b"INVALID_PACKET" if size < 8192 else b"ARGUMENT_TOO_LARGE"
    assert (bad.type, bad.args[0]) == (PacketType.BAD_PACKET, code)
    long_name = encode(REQ, PacketType.SUBMIT_JOB, b"f" * 9_000, b"u", data)
    [bad] = Decoder(REQ).feed(long_name)
    assert (bad.type, bad.args[0]) == (PacketType.BAD_PACKET, b"ARGUMENT_TOO_LARGE")


LARGE = bytes(range(256)) * 100


@pytest.mark.parametrize(
    ("frame", "is_good"),
    [
        (encode(REQ, PacketType.SUBMIT_JOB, b"f", b"unique", LARGE), True),
        (encode(REQ, PacketType.WORK_COMPLETE, b"H:1", LARGE), True),
        (encode(REQ, PacketType.ECHO_REQ, LARGE), True),
        (encode(REQ, PacketType.SUBMIT_JOB, b"f" * 8191, b"u", LARGE), True),
        (encode(REQ, PacketType.SUBMIT_JOB, b"f" * 8192, b"u", LARGE), False),
        (encode(REQ, PacketType.SUBMIT_JOB, b"f", b"u" * 8192, LARGE), False),
        (encode(REQ, PacketType.CAN_DO, LARGE.replace(b"\0", b"x")), False),
        (encode(RES, PacketType.WORK_COMPLETE, b"H:1", LARGE), False),
        (struct.pack(">4sII", REQ, PacketType.SUBMIT_JOB, 20_000) + b"f" * 20_000, False),
        (struct.pack(">4sII", REQ, PacketType.SUBMIT_JOB, 60_000) + b"f" * 60_000, False),
        (struct.pack(">4sII", REQ, PacketType.SUBMIT_JOB, 60_000) + b"f\0" + b"u" * 59_998, False),
        (struct.pack(">4sII", REQ, PacketType.GRAB_JOB, len(LARGE)) + LARGE, True),
        (struct.pack(">4sII", REQ, 4711, len(LARGE)) + LARGE, False),
    ],
)
@pytest.mark.parametrize("first", [1, 11, 12, 13, 16, 4_000, 9_000, 17_000])
@pytest.mark.parametrize("piece", [5_000, 100_000])
def test_large_packet_in_pieces_is_what_it_is_in_one(
    frame: bytes, is_good: bool, first: int, piece: int
) -> None:
    """Where reads happen to end changes nothing, whatever is in a large packet and behind it."""
    stream = frame + encode(REQ, PacketType.ECHO_REQ, b"behind") + b"\0RE"
    whole = Decoder(REQ, takes_text=True)
    expected = whole.feed(stream)
    decoder = Decoder(REQ, takes_text=True)
    packets = decoder.feed(stream[:first])
    for start in range(first, len(stream), piece):
        packets += decoder.feed(stream[start : start + piece])
    assert packets == expected
    assert packets[1:] == [Packet(PacketType.ECHO_REQ, [b"behind"])]
    assert (packets[0].type != PacketType.BAD_PACKET) is is_good
    assert decoder.buffered_bytes == whole.buffered_bytes == 3
