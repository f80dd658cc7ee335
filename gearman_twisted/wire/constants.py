"""The packet table of the Gearman protocol, its error codes and its limits.

Numbers and layouts are those of the PROTOCOL document, corrected by what gearmand and libgearman
really send: the reduce packets carry four strings, not three.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

REQ = b"\0REQ"
RES = b"\0RES"
HEADER_BYTES = 12

DEFAULT_PORT = 4730

# A unique travels in a 64-byte field (libgearman GEARMAN_MAX_UNIQUE_SIZE).
MAX_UNIQUE_BYTES = 64
# gearmand reads arguments through a buffer of 8192 bytes, so no client can have longer ones.
MAX_ARGUMENT_BYTES = 8191
# A line of the text protocol, its LF included; the same buffer.
MAX_TEXT_LINE_BYTES = 8192
# The length of a packet has 32 bits. A server of ours takes 1 GB by default.
LARGEST_PACKET_BYTES = 0xFFFFFFFF
DEFAULT_PACKET_BYTES = 1_000_000_000
# A reply to a text command, and a line of one: a line of ``workers`` names all functions of a worker.
MAX_REPLY_BYTES = 1_000_000_000
MAX_REPLY_LINE_BYTES = 16 * 1024 * 1024
# gearmand silently cuts a client id to 127 bytes.
MAX_CLIENT_ID_BYTES = 127


class PacketType(enum.IntEnum):
    """The number of each packet, as it stands in the header."""

    # Not packets: made by the decoder for what else comes between packets (see wire/packet.py).
    BAD_STREAM = -3
    BAD_PACKET = -2
    TEXT_LINE = -1

    CAN_DO = 1
    CANT_DO = 2
    RESET_ABILITIES = 3
    PRE_SLEEP = 4
    UNUSED = 5
    NOOP = 6
    SUBMIT_JOB = 7
    JOB_CREATED = 8
    GRAB_JOB = 9
    NO_JOB = 10
    JOB_ASSIGN = 11
    WORK_STATUS = 12
    WORK_COMPLETE = 13
    WORK_FAIL = 14
    GET_STATUS = 15
    ECHO_REQ = 16
    ECHO_RES = 17
    SUBMIT_JOB_BG = 18
    ERROR = 19
    STATUS_RES = 20
    SUBMIT_JOB_HIGH = 21
    SET_CLIENT_ID = 22
    CAN_DO_TIMEOUT = 23
    ALL_YOURS = 24
    WORK_EXCEPTION = 25
    OPTION_REQ = 26
    OPTION_RES = 27
    WORK_DATA = 28
    WORK_WARNING = 29
    GRAB_JOB_UNIQ = 30
    JOB_ASSIGN_UNIQ = 31
    SUBMIT_JOB_HIGH_BG = 32
    SUBMIT_JOB_LOW = 33
    SUBMIT_JOB_LOW_BG = 34
    SUBMIT_JOB_SCHED = 35
    SUBMIT_JOB_EPOCH = 36
    SUBMIT_REDUCE_JOB = 37
    SUBMIT_REDUCE_JOB_BACKGROUND = 38
    GRAB_JOB_ALL = 39
    JOB_ASSIGN_ALL = 40
    GET_STATUS_UNIQUE = 41
    STATUS_RES_UNIQUE = 42


class Direction(enum.Enum):
    """Which way a packet travels."""

    REQUEST = "to the server"
    RESPONSE = "from the server"
    BOTH = "either way"


# No class of attrs here and in the client: to load that takes a fifth of the start of a command.
class PacketSpec(NamedTuple):
    """A row of the packet table.

    Attributes:
        type: the packet's number.
        direction: which way it travels.
        arguments: the names of its arguments in order. All but the last end with a NUL; the last one is
            the rest of the packet. It is named ``data`` if it may hold any bytes.
    """

    type: PacketType
    direction: Direction
    arguments: tuple[str, ...]

    @property
    def has_data(self) -> bool:
        """Whether the packet's last argument is opaque data."""
        return self.arguments[-1:] == ("data",)


def _table() -> dict[int, PacketSpec]:
    p, request, response, both = PacketType, Direction.REQUEST, Direction.RESPONSE, Direction.BOTH
    job = ("function", "unique", "data")
    schedule = ("minute", "hour", "day_of_month", "month", "day_of_week")
    rows: list[tuple[PacketType, Direction, tuple[str, ...]]] = [
        (p.CAN_DO, request, ("function",)),
        (p.CANT_DO, request, ("function",)),
        (p.RESET_ABILITIES, request, ()),
        (p.PRE_SLEEP, request, ()),
        (p.UNUSED, request, ()),
        (p.NOOP, response, ()),
        (p.SUBMIT_JOB, request, job),
        (p.JOB_CREATED, response, ("handle",)),
        (p.GRAB_JOB, request, ()),
        (p.NO_JOB, response, ()),
        (p.JOB_ASSIGN, response, ("handle", "function", "data")),
        (p.WORK_STATUS, both, ("handle", "numerator", "denominator")),
        (p.WORK_COMPLETE, both, ("handle", "data")),
        (p.WORK_FAIL, both, ("handle",)),
        (p.GET_STATUS, request, ("handle",)),
        (p.ECHO_REQ, request, ("data",)),
        (p.ECHO_RES, response, ("data",)),
        (p.SUBMIT_JOB_BG, request, job),
        (p.ERROR, response, ("code", "text")),
        (p.STATUS_RES, response, ("handle", "known", "running", "numerator", "denominator")),
        (p.SUBMIT_JOB_HIGH, request, job),
        (p.SET_CLIENT_ID, request, ("client_id",)),
        (p.CAN_DO_TIMEOUT, request, ("function", "timeout_ms")),
        (p.ALL_YOURS, request, ()),
        (p.WORK_EXCEPTION, both, ("handle", "data")),
        (p.OPTION_REQ, request, ("option",)),
        (p.OPTION_RES, response, ("option",)),
        (p.WORK_DATA, both, ("handle", "data")),
        (p.WORK_WARNING, both, ("handle", "data")),
        (p.GRAB_JOB_UNIQ, request, ()),
        (p.JOB_ASSIGN_UNIQ, response, ("handle", "function", "unique", "data")),
        (p.SUBMIT_JOB_HIGH_BG, request, job),
        (p.SUBMIT_JOB_LOW, request, job),
        (p.SUBMIT_JOB_LOW_BG, request, job),
        (p.SUBMIT_JOB_SCHED, request, ("function", "unique", *schedule, "data")),
        (p.SUBMIT_JOB_EPOCH, request, ("function", "unique", "epoch", "data")),
        # PROTOCOL shows three strings; libgearman sends, and gearmand takes, four. The last is ignored.
        (p.SUBMIT_REDUCE_JOB, request, ("function", "unique", "reducer", "aggregator", "data")),
        (p.SUBMIT_REDUCE_JOB_BACKGROUND, request, ("function", "unique", "reducer", "aggregator", "data")),
        (p.GRAB_JOB_ALL, request, ()),
        (p.JOB_ASSIGN_ALL, response, ("handle", "function", "unique", "reducer", "data")),
        (p.GET_STATUS_UNIQUE, request, ("unique",)),
        (
            p.STATUS_RES_UNIQUE,
            response,
            ("unique", "known", "running", "numerator", "denominator", "clients"),
        ),
    ]
    return {type_: PacketSpec(type_, direction, arguments) for type_, direction, arguments in rows}


PACKETS = _table()
"""Every packet of the protocol, by its number."""


class ErrorCode:
    """The codes that an ERROR packet may carry: libgearman's return codes without ``GEARMAN_``."""

    ARGUMENT_TOO_LARGE = b"ARGUMENT_TOO_LARGE"
    INVALID_ARGUMENT = b"INVALID_ARGUMENT"
    INVALID_COMMAND = b"INVALID_COMMAND"
    INVALID_MAGIC = b"INVALID_MAGIC"
    INVALID_PACKET = b"INVALID_PACKET"
    JOB_NOT_FOUND = b"JOB_NOT_FOUND"
    QUEUE_ERROR = b"QUEUE_ERROR"
    SHUTDOWN = b"SHUTDOWN"
    UNKNOWN_OPTION = b"UNKNOWN_OPTION"


class Priority(enum.IntEnum):
    """How urgent a job is; the numbers are those that gearmand's queues store."""

    HIGH = 0
    NORMAL = 1
    LOW = 2
