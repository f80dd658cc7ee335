"""Packets to bytes and bytes to packets, for either end of a connection.

``Decoder.feed`` never confuses "not yet" with "wrong": what is incomplete is kept, what is wrong is
returned as a ``BAD_PACKET`` or ``BAD_STREAM`` in its place among the good ones.
"""

from __future__ import annotations

import struct
from io import BytesIO

from gearman_twisted.errors import LocalProtocolError
from gearman_twisted.wire.constants import (
    DEFAULT_PACKET_BYTES,
    HEADER_BYTES,
    LARGEST_PACKET_BYTES,
    MAX_ARGUMENT_BYTES,
    MAX_TEXT_LINE_BYTES,
    PACKETS,
    REQ,
    RES,
    ErrorCode,
    PacketType,
)
from gearman_twisted.wire.packet import Packet

_HEADER = struct.Struct(">4sII")
_LENGTH = struct.Struct(">I")
_NUL = b"\0"

# Of each type: how many NULs are split at, and how many arguments that gives.
_SPLITS = {type_: (len(spec.arguments) - 1, len(spec.arguments)) for type_, spec in PACKETS.items()}
# What a sender writes before the length, by direction and type.
_PREFIXES = {magic: {type_: magic + _LENGTH.pack(type_) for type_ in PACKETS} for magic in (REQ, RES)}
# COMPAT: Perl's Gearman::Worker leaves the NUL behind the handle out when a result is empty or "0".
_MAY_LACK_DATA = frozenset(
    {PacketType.WORK_COMPLETE, PacketType.WORK_DATA, PacketType.WORK_WARNING, PacketType.WORK_EXCEPTION}
)
_NAMES = {type_: spec.type.name.encode() for type_, spec in PACKETS.items()}


def encode(magic: bytes, type_: int, *args: bytes) -> bytes:
    """Return a whole packet.

    Args:
        magic: ``REQ`` towards the server, ``RES`` from it.
        type_: a packet of the protocol.
        args: as many as the packet table says; only the last may hold a NUL.

    Raises:
        LocalProtocolError: the arguments do not fit the packet, or are more than 4 GiB.
    """
    splits, count = _SPLITS[type_]
    payload = _NUL.join(args)
    # All but the last end at their NUL, so there must be just as many NULs before the last one.
    if len(args) != count or (splits > 0 and payload.count(_NUL, 0, len(payload) - len(args[-1])) != splits):
        raise LocalProtocolError(
            f"{PacketType(type_).name} takes {count} arguments, no NUL but in the last, not {args!r:.200}"
        )
    check_packet_size(type_, len(payload))
    return b"%b%b%b" % (_PREFIXES[magic][type_], _LENGTH.pack(len(payload)), payload)


def check_packet_size(type_: int, size: int) -> None:
    """Check that a packet is not too long to be sent.

    Raises:
        LocalProtocolError: its length does not fit 32 bits.
    """
    if size > LARGEST_PACKET_BYTES:
        raise LocalProtocolError(
            f"{PacketType(type_).name} would be {size:,} bytes; a packet has at most {LARGEST_PACKET_BYTES:,}"
        )


def passed_on_bytes(max_packet_bytes: int) -> int:
    """Return the size of the largest packet that comes from a server that takes packets of some size.

    It adds a handle and names when it passes data on.
    """
    return min(max_packet_bytes + 4 * MAX_ARGUMENT_BYTES, LARGEST_PACKET_BYTES)


# What a client or a worker has to take. Whatever announces more is no server that it wants to talk to.
_DEFAULT_LIMIT = passed_on_bytes(DEFAULT_PACKET_BYTES)


def respond(type_: int, *args: bytes) -> bytes:
    """Return a packet from the server, without checking for NULs: the arguments come from a decoder."""
    payload = _NUL.join(args)
    return b"%b%b%b" % (_PREFIXES[RES][type_], _LENGTH.pack(len(payload)), payload)


def encode_head(magic: bytes, type_: int, head: bytes, data_bytes: int) -> bytes:
    """Return the start of a packet whose data is sent after it, without being copied.

    Args:
        magic: ``REQ`` or ``RES``.
        type_: a packet with data.
        head: all arguments before the data, each with its NUL.
        data_bytes: the length of the data.
    """
    return b"%b%b%b" % (_PREFIXES[magic][type_], _LENGTH.pack(len(head) + data_bytes), head)


# From here on it pays not to copy a packet twice.
_LARGE_BYTES = 16_384
# A chunk costs some 40 bytes beside its own, so a peer that sends byte by byte would take 40 times its share.
_SMALL_BYTES = 4096


class Decoder:
    """Cut the bytes of one connection into packets.

    Args:
        magic: what good packets start with: ``REQ`` in a server, ``RES`` in clients and workers.
        takes_text: whether lines of the text protocol may come between packets.
        max_packet_bytes: a packet that announces more is refused before any of it is kept.

    Attributes:
        has_text: whether a line of text has ever come.
    """

    __slots__ = (
        "_broken",
        "_chunks",
        "_have",
        "_large",
        "_magic",
        "_max_packet_bytes",
        "_need",
        "_takes_text",
        "has_text",
    )

    def __init__(
        self, magic: bytes, *, takes_text: bool = False, max_packet_bytes: int = _DEFAULT_LIMIT
    ) -> None:
        self._magic = magic
        self._takes_text = takes_text
        self._max_packet_bytes = max_packet_bytes
        # An incomplete packet: how much has come of it, how long it is (0 if not known), and what has come.
        self._have = 0
        self._need = 0
        self._chunks: list[bytes] = []
        # A large one whose head has come, and its data so far; None for one that is skipped as invalid.
        # A BytesIO grows in place, and gives its bytes away without copying them.
        self._large: tuple[Packet, BytesIO | None] | None = None
        self._broken = False
        self.has_text = False

    @property
    def buffered_bytes(self) -> int:
        """How many bytes of an incomplete packet are kept."""
        return 0 if self._large is not None and self._large[1] is None else self._have

    def feed(self, data: bytes) -> list[Packet]:
        """Take what was read, and return the packets that it completes, in order.

        After a ``BAD_STREAM`` the result is always empty.
        """
        packets: list[Packet] = []
        if self._have:
            data = self._gather(data, packets)
            if self._have:
                return packets
        if self._broken:
            return packets
        position, end = 0, len(data)
        self._need = 0
        while position < end and not self._broken:
            if self._takes_text and data[position]:
                position_after = self._take_line(data, position, packets)
            elif end - position < HEADER_BYTES:
                # A wrong first byte is known at once; a peer that sends one and waits gets its answer.
                position_after = self._break(packets) if not self._may_be_magic(data, position) else position
            else:
                position_after = self._take_packet(data, position, end, packets)
            if position_after == position:
                break
            position = position_after
        if position < end and not self._broken:
            self._keep(data[position:] if position else data)
        return packets

    def _gather(self, data: bytes, packets: list[Packet]) -> bytes:
        """Add what was read to the incomplete packet; return what is to be decoded once that is complete."""
        if self._large is not None:
            packet, body = self._large
            missing = self._need - self._have
            if body is not None:
                body.write(data if len(data) <= missing else memoryview(data)[:missing])
            if len(data) < missing:
                self._have += len(data)
                return b""
            if body is not None:
                packet.args.append(body.getvalue())
            packets.append(packet)
            self._large, self._have = None, 0
            return data[missing:]
        chunks = self._chunks
        self._have += len(data)
        if len(data) + len(chunks[-1]) <= _SMALL_BYTES:
            chunks[-1] += data
        else:
            chunks.append(data)
        if self._have < self._need <= _LARGE_BYTES:
            return b""
        data, self._chunks = b"".join(chunks), []
        if self._have < self._need:
            self._keep(data)
        else:
            self._have = 0
        return data

    def _keep(self, start: bytes) -> None:
        """Keep the start of an incomplete packet."""
        self._have = len(start)
        if self._need > _LARGE_BYTES:
            self._large = self._begin_large(start)
        if self._large is None:
            self._chunks.append(start)

    def _begin_large(self, start: bytes) -> tuple[Packet, BytesIO | None] | None:
        """Return a large packet without its data, and what has come of that; None if its head has not."""
        magic: bytes
        type_: int
        magic, type_, _ = _HEADER.unpack_from(start)
        spec = PACKETS.get(type_)
        if spec is None or magic != self._magic:
            return self._fault(type_), None
        if spec.has_data:
            head = _split_head(start, HEADER_BYTES, len(start), _SPLITS[type_][0])
            if head is not None:
                body = BytesIO()
                body.write(memoryview(start)[head[1] :])
                return Packet(type_, head[0]), body
            if len(start) < HEADER_BYTES + len(spec.arguments) * (MAX_ARGUMENT_BYTES + 1):
                return None
        return _EMPTY.get(type_) or _too_long(type_), None

    def _fault(self, type_: int) -> Packet:
        """Return what stands for a packet of an unknown type, or for one of the wrong direction."""
        if type_ not in _SPLITS:
            return _bad(ErrorCode.INVALID_COMMAND, b"Invalid command expected")
        return _bad(ErrorCode.INVALID_MAGIC, b"Request magic expected")

    def _take_packet(self, data: bytes, position: int, end: int, packets: list[Packet]) -> int:
        """Append the packet at ``position`` if it is complete, and return where the next one starts."""
        magic: bytes
        type_: int
        size: int
        magic, type_, size = _HEADER.unpack_from(data, position)
        start = position + HEADER_BYTES
        stop = start + size
        # Like gearmand, a server answers packets of the wrong direction and reads on; a client that gets one
        # is talking to something else.
        if magic != self._magic and not (self._magic == REQ and magic == RES):
            return self._break(packets)
        if size > self._max_packet_bytes:
            text = b"Packet of %d bytes refused: the limit here is %d" % (size, self._max_packet_bytes)
            return self._break(packets, ErrorCode.ARGUMENT_TOO_LARGE, text)
        if stop > end:
            self._need = stop - position
            return position
        split = _SPLITS.get(type_)
        if split is None or magic != self._magic:
            packets.append(self._fault(type_))
        elif not split[1]:
            # PROTOCOL gives it no payload; some clients send one, and gearmand drops it.
            packets.append(_EMPTY[type_])
        else:
            args = (size > _LARGE_BYTES and _split_large(data, start, stop, split[0])) or (
                data[start:stop].split(_NUL, split[0])
            )
            if len(args) == 1 and type_ in _MAY_LACK_DATA:
                args.append(b"")
            if size > MAX_ARGUMENT_BYTES and _is_too_long(type_, args):
                packets.append(_too_long(type_))
            elif len(args) != split[1]:
                text = b"%b takes %d arguments, not %d" % (_NAMES[type_], split[1], len(args))
                packets.append(_bad(ErrorCode.INVALID_PACKET, text))
            else:
                packets.append(_new_packet(Packet, (type_, args)))
        return stop

    def _take_line(self, data: bytes, position: int, packets: list[Packet]) -> int:
        """Append the line of text at ``position`` if it is complete, and return where the next one starts."""
        stop = data.find(b"\n", position, position + MAX_TEXT_LINE_BYTES)
        if stop >= 0:
            self.has_text = True
            packets.append(Packet(PacketType.TEXT_LINE, [data[position:stop]]))
            return stop + 1
        if len(data) - position >= MAX_TEXT_LINE_BYTES:
            text = b"Neither a packet nor a text command of at most %d bytes" % MAX_TEXT_LINE_BYTES
            return self._break(packets, ErrorCode.INVALID_MAGIC, text)
        self._need = 0
        return position

    def _may_be_magic(self, data: bytes, position: int) -> bool:
        start = data[position : position + 4]
        return self._magic.startswith(start) or (self._magic == REQ and RES.startswith(start))

    def _break(
        self,
        packets: list[Packet],
        code: bytes = ErrorCode.INVALID_MAGIC,
        text: bytes = b"",
    ) -> int:
        """Give the stream up; the position that is returned does not matter."""
        text = text or (b"Request magic expected" if self._magic == REQ else b"Response magic expected")
        packets.append(Packet(PacketType.BAD_STREAM, [code, text]))
        self._broken = True
        return 0


def _split_large(data: bytes, start: int, stop: int, nuls: int) -> list[bytes] | None:
    """Split a part of the data with one copy less than ``split``; None if one is missing or too long."""
    head = _split_head(data, start, stop, nuls)
    return None if head is None else [*head[0], data[head[1] : stop]]


def _split_head(data: bytes, start: int, stop: int, nuls: int) -> tuple[list[bytes], int] | None:
    """Return the first ``nuls`` arguments, and where the next one starts; None as above."""
    args = []
    for _ in range(nuls):
        nul = data.find(_NUL, start, min(stop, start + MAX_ARGUMENT_BYTES + 1))
        if nul < 0:
            return None
        args.append(data[start:nul])
        start = nul + 1
    return args, start


def _bad(code: bytes, text: bytes) -> Packet:
    return Packet(PacketType.BAD_PACKET, [code, text])


def _too_long(type_: int) -> Packet:
    text = b"An argument of %b is longer than %d bytes" % (_NAMES[type_], MAX_ARGUMENT_BYTES)
    return _bad(ErrorCode.ARGUMENT_TOO_LARGE, text)


def _is_too_long(type_: int, args: list[bytes]) -> bool:
    spec = PACKETS[type_]
    limited = args[:-1] if spec.has_data and len(args) == len(spec.arguments) else args
    return any(len(arg) > MAX_ARGUMENT_BYTES for arg in limited)


# Half the cost of Packet(…): there is one for every packet that comes in.
_new_packet = tuple.__new__
_EMPTY = {int(type_): Packet(int(type_), []) for type_, spec in PACKETS.items() if not spec.arguments}
