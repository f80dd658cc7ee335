"""Conversations as peers have them with a server, and what chance makes of them."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable, Sequence

from gearman_twisted.wire.codec import encode
from gearman_twisted.wire.constants import REQ, RES, PacketType

P = PacketType

HANDLE = b"H:mutated:1"
"""Stands for a handle that the peer was given; ``with_handle`` puts one in."""
SOON = b"1111111111"
"""Stands for a time in a second or two, likewise."""
GIVEN_HANDLE = re.compile(rb"\0RES\0\0\0[\x08\x0b\x1f\x28].{4}(H:[\w.-]+:\d+)", re.DOTALL)
"""Finds the handles that a server gives in JOB_CREATED and the assignments."""

_f, _g = b"mutated f", b"mutated g"


def _packets(*packets: tuple[PacketType | bytes, ...], magic: bytes = REQ) -> list[bytes]:
    return [encode(magic, type_, *args) for type_, *args in packets]  # type: ignore[arg-type]


CLIENTS = (
    _packets(
        (P.OPTION_REQ, b"exceptions"),
        (P.SUBMIT_JOB, _f, b"u1", b"work"),
        (P.SUBMIT_JOB_HIGH, _f, b"u1", b"work"),
        (P.SUBMIT_JOB_LOW, _g, b"", b"w\0rk" * 300),
        (P.GET_STATUS, HANDLE),
        (P.GET_STATUS_UNIQUE, b"u1"),
        (P.ECHO_REQ, b"echo"),
    ),
    _packets(
        (P.SUBMIT_JOB_BG, _f, b"", b"work"),
        (P.SUBMIT_JOB_HIGH_BG, _f, b"u2", b"work"),
        (P.SUBMIT_JOB_LOW_BG, _g, b"-", bytes(40_000)),
        (P.GET_STATUS, HANDLE),
    ),
    _packets(
        (P.SUBMIT_JOB_EPOCH, _f, b"", SOON, b"later"),
        (P.SUBMIT_JOB_SCHED, _g, b"u3", b"0", b"0", b"29", b"2", b"*", b"recurring"),
        (P.SUBMIT_JOB_SCHED, _g, b"u4", b"*", b"*", b"*", b"*", b"*", b"recurring"),
    ),
    _packets(
        (P.SUBMIT_REDUCE_JOB, _f, b"u5", _g, _g, b"parts"),
        (P.SUBMIT_REDUCE_JOB_BACKGROUND, _g, b"", _f, b"", b"parts"),
    ),
)
WORKERS = (
    _packets(
        (P.SET_CLIENT_ID, b"mutated worker"),
        (P.CAN_DO, _f),
        (P.CAN_DO_TIMEOUT, _g, b"1500"),
        (P.PRE_SLEEP,),
        (P.GRAB_JOB_UNIQ,),
        (P.WORK_STATUS, HANDLE, b"1", b"3"),
        (P.WORK_DATA, HANDLE, b"da\0ta"),
        (P.WORK_WARNING, HANDLE, b"warning"),
        (P.WORK_COMPLETE, HANDLE, b"result" * 200),
        (P.GRAB_JOB,),
        (P.WORK_EXCEPTION, HANDLE, b"exception"),
        (P.CANT_DO, _g),
    ),
    _packets(
        (P.ALL_YOURS,),
        (P.CAN_DO, _f),
        (P.CAN_DO, _g),
        (P.GRAB_JOB_ALL,),
        (P.WORK_FAIL, HANDLE),
        (P.GRAB_JOB_ALL,),
        (P.WORK_COMPLETE, HANDLE, b""),
        (P.RESET_ABILITIES,),
        (P.UNUSED,),
    ),
    _packets(
        (P.CAN_DO, _f),
        (P.CAN_DO, _g),
        *((P.GRAB_JOB_UNIQ,), (P.WORK_DATA, HANDLE, b"part"), (P.WORK_COMPLETE, HANDLE, b"result")) * 8,
        (P.PRE_SLEEP,),
    ),
    _packets(
        (P.SUBMIT_JOB_HIGH, _f, b"-", b"of its own"),
        (P.CAN_DO, _f),
        *((P.GRAB_JOB,), (P.WORK_WARNING, HANDLE, b"own"), (P.WORK_COMPLETE, HANDLE, b"own")) * 2,
    ),
)
OPERATORS = (
    [
        line + b"\n"
        for line in (
            *(b"status", b"prioritystatus", b"workers", b"version", b"verbose", b"getpid", b"ready"),
            *(b"show jobs", b"show unique jobs", b"show scheduled", b"cancel job " + HANDLE),
            *(b"cancel unique mutated u1", b"maxqueue mutated 10", b"maxqueue mutated 1 2 3", b"nonsense"),
            *(b"create function mutated", b"drop function mutated", b"shutdown", b"shutdown graceful"),
        )
    ],
)
_RESPONSES = (
    (P.JOB_CREATED, HANDLE),
    (P.NOOP,),
    (P.NO_JOB,),
    (P.JOB_ASSIGN, HANDLE, _f, b"work"),
    (P.JOB_ASSIGN_UNIQ, HANDLE, _f, b"u", b"work"),
    (P.JOB_ASSIGN_ALL, HANDLE, _f, b"u", _g, b"work"),
    (P.ECHO_RES, b"echo"),
    (P.OPTION_RES, b"exceptions"),
    (P.ERROR, b"QUEUE_ERROR", b"no"),
    (P.STATUS_RES, HANDLE, b"1", b"1", b"1", b"2"),
    (P.STATUS_RES_UNIQUE, b"u1", b"1", b"1", b"1", b"2", b"1"),
)
TO_SERVER = (*CLIENTS, *WORKERS, *OPERATORS, _packets(*_RESPONSES), _packets(*_RESPONSES, magic=RES))
"""Conversations of the Gearman protocol with a server, each a list of packets and lines."""

HTTP = (
    [b"GET /mutated%20f HTTP/1.1\r\nHost: x\r\n\r\n"],
    [b"POST /mutated%20f HTTP/1.1\r\nHost: x\r\n", b"Content-Length: 4\r\n", b"\r\n", b"work"] * 2,
    [
        b"PUT /mutated%20g HTTP/1.0\r\n",
        *(b"X-Gearman-Unique: u1\r\n", b"X-Gearman-Background: true\r\n", b"X-Gearman-Priority: high\r\n"),
        *(b"Content-Length: 10\r\n", b"\r\n", b"0123456789"),
    ],
    [
        b"POST /mutated%20f HTTP/1.1\r\nHost: x\r\n",
        b"Transfer-Encoding: chunked\r\nX-Gearman-Background: true\r\n\r\n",
        *(b"4\r\nwork\r\n", b"0\r\n\r\n"),
    ],
    [b"HEAD / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n", b"OPTIONS * HTTP/1.1\r\n\r\n"],
)
"""Conversations of HTTP."""


def with_handle(data: bytes, handle: bytes, now: float) -> bytes:
    """Put in a handle and a time where others stand for them; sizes of packets may be wrong then.

    What was mutated is no stand-in any more, so no job of others is named by chance.
    """
    if HANDLE in data and data[:4] == REQ and len(data) >= 12:
        _, type_, size = struct.unpack_from(">4sII", data)
        if size == len(data) - 12:
            payload = data[12:].replace(HANDLE, handle)
            return REQ + struct.pack(">II", type_, len(payload)) + payload
    return data.replace(HANDLE, handle).replace(SOON, b"%d" % (now + 1))


_SIZES = (0, 1, 3, 8191, 8192, 1 << 20, 1 << 31, 0xFFFFFFFF)
_LONG = (64, 65, 127, 128, 8191, 8192, 70_000)


def _flip(chance: random.Random, piece: bytes, _others: Sequence[bytes]) -> bytes:
    at = chance.randrange(len(piece))
    return piece[:at] + bytes([piece[at] ^ 1 << chance.randrange(8)]) + piece[at + 1 :]


def _byte(chance: random.Random, piece: bytes, _others: Sequence[bytes]) -> bytes:
    at = chance.randrange(len(piece))
    return piece[:at] + chance.choice((b"\0", b"\n", b"\xff", b" ", b"\r", b"9", b"")) + piece[at + 1 :]


def _size(chance: random.Random, piece: bytes, _others: Sequence[bytes]) -> bytes:
    real = len(piece) - 12
    size = chance.choice((*_SIZES, real + 1, real - 1)) & 0xFFFFFFFF
    return piece[:8] + struct.pack(">I", size) + piece[12:]


def _type(chance: random.Random, piece: bytes, _others: Sequence[bytes]) -> bytes:
    type_ = chance.choice((chance.randrange(45), chance.getrandbits(32)))
    return piece[:4] + struct.pack(">I", type_) + piece[8:]


def _truncate(chance: random.Random, piece: bytes, _others: Sequence[bytes]) -> bytes:
    return piece[: chance.randrange(len(piece))]


def _repeat(chance: random.Random, piece: bytes, _others: Sequence[bytes]) -> bytes:
    return piece * min(chance.choice((2, 3, 50, 1000)), 1 + 200_000 // len(piece))


def _interleave(chance: random.Random, piece: bytes, others: Sequence[bytes]) -> bytes:
    other = chance.choice(others)
    return b"".join(piece[at : at + 7] + other[at : at + 7] for at in range(0, min(len(piece), 500), 7))


def _splice(chance: random.Random, piece: bytes, others: Sequence[bytes]) -> bytes:
    other = chance.choice(others)
    return piece[: chance.randrange(len(piece))] + other[chance.randrange(len(other)) :]


def _payload(chance: random.Random, piece: bytes, _others: Sequence[bytes]) -> bytes:
    """Change an argument; the packet's size is right."""
    parts = piece[12:].split(b"\0")
    at = chance.randrange(len(parts))
    long = chance.choice((b"A", b"\xff", b"9", b"\n")) * chance.choice(_LONG)
    # fmt: off
    parts[at : at + 1] = chance.choice((
        [], [b""], [parts[at]] * 2, [b"", parts[at]], [long], [parts[at] + long], [b"-1"], [b"9" * 25],
        [b"0x10"], [b"1e9"], [b"nan"], [b"*/0"], [b"\xc2\x85\xe2\x80\xa8\x1b[2J"],
    ))
    # fmt: on
    payload = b"\0".join(parts)
    return piece[:8] + struct.pack(">I", len(payload)) + payload


_MUTATIONS: tuple[Callable[[random.Random, bytes, Sequence[bytes]], bytes], ...] = (
    *(_flip, _byte, _truncate, _repeat, _interleave, _splice),
    *(_size, _type, _payload, _payload, _payload),
)


def mutated(chance: random.Random, conversations: Sequence[Sequence[bytes]]) -> list[bytes]:
    """Draw a conversation, and change it in a few places; some are left as they are.

    Returns:
        What is sent, in pieces; they end anywhere in a packet.
    """
    pieces = list(chance.choice(conversations))
    others = [piece for conversation in conversations for piece in conversation]
    for _ in range(chance.choice((0, 0, 0, 1, 1, 2, 5))):
        if chance.random() < 0.3:
            pieces.insert(chance.randrange(len(pieces) + 1), chance.choice(others))
        if chance.random() < 0.2:
            chance.shuffle(pieces)
        at = chance.randrange(len(pieces))
        if pieces[at]:
            pieces[at] = chance.choice(_MUTATIONS)(chance, pieces[at], others)
    if chance.random() < 0.1:
        del pieces[chance.randrange(len(pieces)) :]
        pieces.append(chance.choice(others)[:7])
    # Packet by packet, so that answers can come between them; or all at once; or cut anywhere.
    how = chance.randrange(3)
    if how == 0:
        return pieces
    data = b"".join(pieces)
    if how == 1:
        return [data]
    places = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice((1, 3, 20))))
    return [data[start:stop] for start, stop in zip([0, *places], [*places, len(data)], strict=True)]
