"""The codec against random packets, random cuts and random garbage."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearman_twisted.errors import LocalProtocolError
from gearman_twisted.wire.codec import Decoder, encode
from gearman_twisted.wire.constants import PACKETS, REQ, RES, PacketType
from gearman_twisted.wire.packet import Packet

MIB = 1024 * 1024
READ = 64 * 1024


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    """Any packet of the protocol."""
    type_ = draw(st.sampled_from(list(PACKETS)))
    names = PACKETS[type_].arguments
    plain = st.binary(max_size=20).map(lambda arg: arg.replace(b"\0", b"0"))
    args = [draw(plain) for _ in names[:-1]] + [draw(st.binary(max_size=20)) for _ in names[-1:]]
    return Packet(type_, args)


lines = st.binary(max_size=20).map(
    lambda line: Packet(PacketType.TEXT_LINE, [line.replace(b"\n", b"").lstrip(b"\0")])
)


def as_bytes(packet: Packet, magic: bytes) -> bytes:
    """What a peer sends."""
    if packet.type == PacketType.TEXT_LINE:
        return packet.args[0] + b"\n"
    return encode(magic, packet.type, *packet.args)


def cut(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    """The data in pieces, some of which may be empty."""
    start = 0
    for stop in sorted(position % (len(data) + 1) for position in cuts):
        yield data[start:stop]
        start = stop
    yield data[start:]


def feed(decoder: Decoder, data: bytes, cuts: list[int]) -> list[Packet]:
    """All that comes out of the pieces."""
    return [packet for piece in cut(data, cuts) for packet in decoder.feed(piece)]


@given(st.lists(packets() | lines), st.lists(st.integers(min_value=0)))
def test_requests_come_out_as_they_went_in(sent: list[Packet], cuts: list[int]) -> None:
    """A server reads what was sent to it, packets and lines, however the bytes arrive."""
    data = b"".join(as_bytes(packet, REQ) for packet in sent)
    assert feed(Decoder(REQ, takes_text=True), data, cuts) == sent


@given(st.lists(packets()), st.lists(st.integers(min_value=0)))
def test_responses_come_out_as_they_went_in(sent: list[Packet], cuts: list[int]) -> None:
    """A client reads what was sent to it, however the bytes arrive."""
    data = b"".join(as_bytes(packet, RES) for packet in sent)
    assert feed(Decoder(RES), data, cuts) == sent


# Garbage that gets past the first byte: pieces of headers among random bytes.
garbage = st.lists(
    st.sampled_from([REQ, RES, b"\0", b"\n", b"\0\0\0\x07", b"\0\0\0\x0e", b"\0\0\0\0", b"\0\0\0\x02"])
    | st.binary(max_size=16)
).map(b"".join)


@given(garbage, st.lists(st.integers(min_value=0)), st.booleans(), st.sampled_from([REQ, RES]))
def test_garbage_is_never_an_exception(data: bytes, cuts: list[int], takes_text: bool, magic: bytes) -> None:
    """Any bytes give packets or complaints; how they are cut changes nothing; a broken stream is the end."""
    decoder = Decoder(magic, takes_text=takes_text, max_packet_bytes=1000)
    found = feed(decoder, data, cuts)
    assert found == Decoder(magic, takes_text=takes_text, max_packet_bytes=1000).feed(data)
    broken = [number for number, packet in enumerate(found) if packet.type == PacketType.BAD_STREAM]
    if broken:
        assert broken == [len(found) - 1]
        assert decoder.feed(encode(magic, PacketType.NOOP)) == []
        assert decoder.buffered_bytes == 0
    for type_, args in found:
        if type_ >= 0:
            assert len(args) == len(PACKETS[type_].arguments)


@given(st.sampled_from(list(PACKETS)), st.lists(st.binary(max_size=8), max_size=7))
def test_what_encode_takes_comes_back(type_: int, args: list[bytes]) -> None:
    """Arguments either cannot be sent, or arrive as they are."""
    try:
        data = encode(REQ, type_, *args)
    except LocalProtocolError:
        return
    assert Decoder(REQ).feed(data) == [Packet(type_, args)]


class CountedBytes(bytes):
    """Bytes that count how many of them are looked at when they are added to others."""

    copied = 0

    def __add__(self, other: bytes) -> CountedBytes:  # type: ignore[override]
        raise AssertionError("reads are gathered in a list, not added up")

    __radd__ = __add__


@pytest.mark.parametrize("cut", [1, 12, 13, 16, 20])
def test_large_packet_is_never_copied_as_a_whole(cut: int) -> None:
    """A packet of 64 MiB that comes in 1024 reads takes 64 MiB, also when it is complete."""
    size = 64 * MIB
    head = encode(REQ, PacketType.SUBMIT_JOB, b"function", b"u", b"")
    head = head[:8] + (size + len(b"function.u.")).to_bytes(4, "big") + head[12:]
    decoder = Decoder(REQ)
    tracemalloc.start()
    try:
        assert decoder.feed(head[:cut]) == []
        assert decoder.feed(head[cut:]) == []
        for _ in range(size // READ - 1):
            assert decoder.feed(CountedBytes(READ)) == []
        assert decoder.buffered_bytes == len(head) + size - READ
        [packet] = decoder.feed(CountedBytes(READ))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert packet == Packet(PacketType.SUBMIT_JOB, [b"function", b"u", bytes(size)])
    assert decoder.buffered_bytes == 0
    # It grows ahead by an eighth, which the system does not give before something is written there.
    assert peak < 1.15 * size


@pytest.mark.parametrize(
    "head", [b"\0REQ\0\0\x10\0", b"\0REQ\0\0\0\7", b"\0REQ\0\0\0\1", b"\0REQ\0\0\0\t", b"\0RES\0\0\0\7"]
)
def test_nothing_is_kept_of_a_large_invalid_packet(head: bytes) -> None:
    """A packet of 64 MiB that will be refused, or has no arguments, takes no memory; the next one is read."""
    decoder = Decoder(REQ)
    tracemalloc.start()
    try:
        assert decoder.feed(head + (64 * MIB).to_bytes(4, "big")) == []
        for _ in range(64 * MIB // READ - 1):
            assert decoder.feed(b"x" * READ) == []
        assert decoder.buffered_bytes == 0
        found = decoder.feed(b"x" * READ + encode(REQ, PacketType.ECHO_REQ, b"next"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 2
    assert found[1] == Packet(PacketType.ECHO_REQ, [b"next"])
    assert peak < 4 * READ


@pytest.mark.parametrize("count", [1, 1000])
def test_many_packets_in_one_read_are_not_copied_for_each(count: int) -> None:
    """The rest of a read is not cut off anew for every packet in it."""
    data = encode(REQ, PacketType.ECHO_REQ, b"x" * 1000) * count
    decoder = Decoder(REQ)
    tracemalloc.start()
    try:
        found = decoder.feed(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == count
    assert peak < 2 * len(data) + 10_000


def test_packet_that_comes_byte_by_byte_costs_what_it_is_long() -> None:
    """Reads of a byte each do not keep an object each."""
    data = encode(REQ, PacketType.SUBMIT_JOB, b"f", b"u", b"w" * 200_000)
    pieces = [data[number : number + 1] for number in range(len(data))]
    decoder = Decoder(REQ)
    tracemalloc.start()
    try:
        for piece in pieces[:-1]:
            assert decoder.feed(piece) == []
        gathered, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert gathered < 1.2 * len(data)
    assert decoder.feed(pieces[-1]) == [Packet(PacketType.SUBMIT_JOB, [b"f", b"u", b"w" * 200_000])]
