"""Scripts for the differential test: what peers do, step by step, and strategies that make them up.

A script says nothing of answers. Handles are named by the order in which they were given, connections by
their place among those that are open, so that a script means the same to both servers, and shrinks well.
In every argument ``@`` stands for a tag of the script's own: scripts do not see each other's functions.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import attrs
from hypothesis import strategies as st

from gearman_twisted.wire.constants import PACKETS, REQ, Direction, PacketType
from tests.kit.submits import PLAIN_SUBMITS

P = PacketType
T = TypeVar("T")


@attrs.frozen
class Handle:
    """The handle of a job that was created, counted from the newest; one that never was if there is none.

    Attributes:
        back: how many were given since.
        mine: only those that the sending connection was assigned count.
        tail: what comes behind it.
    """

    back: int = 0
    mine: bool = False
    tail: bytes = b""


Argument = bytes | Handle


@attrs.frozen
class Request:
    """A packet with as many arguments as it should have."""

    type: int
    args: tuple[Argument, ...] = ()
    magic: bytes = REQ


@attrs.frozen
class Line:
    """A line of the text protocol."""

    words: tuple[Argument, ...]
    end: bytes = b"\n"


@attrs.frozen
class Fatal:
    """Bytes after which gearmand closes the connection, or cannot be understood on it any more.

    Attributes:
        rule: the name of the allowed difference that says so.
        data: the bytes, or a packet's payload.
        type: the packet's type, None for bytes that are none.
        is_heard: gearmand closes at once; otherwise the connection is of no use to it, and both are left.
    """

    rule: str
    data: bytes
    type: int | None = None
    is_heard: bool = True


Piece = Request | Line | Fatal


@attrs.frozen
class Connect:
    """A peer connects."""


@attrs.frozen
class Leave:
    """A peer closes its connection: the ``who``-th of those that are open, counted round."""

    who: int = 0


@attrs.frozen
class Send:
    """A peer sends some pieces in one write, or in two.

    Attributes:
        who: the connection, as in ``Leave``.
        pieces: what it sends; a ``Fatal`` comes alone.
        cut: where the first of two writes ends, 0 for one write.
    """

    who: int
    pieces: tuple[Piece, ...]
    cut: int = 0


Step = Connect | Leave | Send


@attrs.frozen
class Script:
    """What is played to both servers.

    Attributes:
        steps: what peers do; two are connected at the start.
        profile: how the servers are set up, see ``player.PROFILES``.
    """

    steps: tuple[Step, ...]
    profile: str = "plain"


def send(who: int, *pieces: Piece, cut: int = 0) -> Send:
    """A step that sends."""
    return Send(who, pieces, cut)


def ask(type_: int, *args: Argument) -> Request:
    """A packet."""
    return Request(type_, args)


def line(text: bytes, end: bytes = b"\n") -> Line:
    """A line of text without handles."""
    return Line((text,), end)


def packet(type_: int, payload: bytes, magic: bytes = REQ) -> bytes:
    """The bytes of a packet, whatever is in it."""
    return struct.pack(">4sII", magic, type_, len(payload)) + payload


# The strategies. Few functions and uniques, so that jobs meet; odd values are seldom.


@st.composite
def often(draw: st.DrawFn, *weighted: tuple[int, st.SearchStrategy[T]]) -> T:
    """One of several strategies, each as often as its number says; ``one_of`` knows no weights."""
    which = draw(st.integers(0, sum(weight for weight, _ in weighted) - 1))
    for weight, strategy in weighted:
        which -= weight
        if which < 0:
            return draw(strategy)
    raise AssertionError("unreachable")


FUNCTIONS = st.sampled_from([b"@f", b"@f", b"@f", b"@g", b"@g", b"@h"])
LONG = b"@" + b"u" * 80
UNIQUES = st.sampled_from(
    [b"", b"", b"", b"@u", b"@u", b"@v", b"-", b"-", b"@" + b"m" * 57, b"@" + b"l" * 58, LONG]
)
WORKLOADS = st.sampled_from([b"", b"w", b"w", b"x\0y", b"\0", b"\0REQ", b"status\n", b"z" * 9000])
EPOCHS = st.sampled_from([b"0", b"1", b"-5", b"abc", b"", b" 7", b"99999999999", b"4000000000x", b"0x10"])
NUMBERS = st.sampled_from(
    [b"0", b"1", b"50", b"50%", b"abc", b"", b" 3", b"+4", b"0005", b"4294967295", b"-1", b"9999999999"]
)
ANY_HANDLE = st.builds(Handle, st.integers(0, 4), tail=st.sampled_from([b"", b"", b"", b"\0"]))
MY_HANDLE = st.builds(Handle, st.integers(0, 1), mine=st.just(True))
ODD_HANDLES = st.sampled_from([b"", b"H:nobody:1", b"x" * 63, b"\0"])
HANDLES: st.SearchStrategy[Argument] = often((6, MY_HANDLE), (3, ANY_HANDLE), (1, ODD_HANDLES))
TIMEOUTS = st.sampled_from([b"0", b"60000", b"-1", b"abc", b"", b"99999999999"])
OPTIONS = st.sampled_from(
    [b"exceptions", b"exceptions", b"EXCEPTIONS", b"exceptions\0", b"other", b"", b"x" * 63]
)
IDS = st.sampled_from([b"@id", b"-", b"", b"two words", b"i" * 127, b"i" * 130])


def _request(
    type_: PacketType, *args: st.SearchStrategy[Argument] | st.SearchStrategy[bytes]
) -> st.SearchStrategy[Piece]:
    return st.builds(Request, st.just(int(type_)), st.tuples(*args))


_SUBMIT = st.builds(
    Request, st.sampled_from([int(t) for t in PLAIN_SUBMITS]), st.tuples(FUNCTIONS, UNIQUES, WORKLOADS)
)
_GRAB = st.sampled_from([Request(int(t)) for t in (P.GRAB_JOB, P.GRAB_JOB_UNIQ, P.GRAB_JOB_ALL)])
_CAN_DO = _request(P.CAN_DO, FUNCTIONS)
_SLEEP = st.just(Request(int(P.PRE_SLEEP)))
_DATA = st.builds(
    Request,
    st.sampled_from(
        [
            int(P.WORK_DATA),
            int(P.WORK_WARNING),
            int(P.WORK_COMPLETE),
            int(P.WORK_COMPLETE),
            int(P.WORK_EXCEPTION),
        ]
    ),
    st.tuples(HANDLES, WORKLOADS),
)

# What a peer of good sense sends.
USUAL: st.SearchStrategy[Piece] = often(
    (5, _SUBMIT),
    (5, _GRAB),
    (3, _CAN_DO),
    (3, _SLEEP),
    (4, _DATA),
    (1, _request(P.WORK_FAIL, HANDLES)),
    (2, _request(P.WORK_STATUS, HANDLES, NUMBERS, NUMBERS)),
    (2, _request(P.GET_STATUS, HANDLES)),
    (1, _request(P.GET_STATUS_UNIQUE, UNIQUES.filter(lambda unique: len(unique) < 59))),
    (1, _request(P.CANT_DO, FUNCTIONS)),
)

_UNEXPECTED = [
    int(type_)
    for type_, spec in PACKETS.items()
    if spec.direction is Direction.RESPONSE or type_ in (P.UNUSED, P.ALL_YOURS)
]


def _of_type(type_: int) -> Request:
    return Request(type_, (b"a",) * len(PACKETS[type_].arguments))


# What is seldom sent, but has an answer.
UNUSUAL: st.SearchStrategy[Piece] = st.one_of(
    _request(P.RESET_ABILITIES),
    _request(P.CAN_DO_TIMEOUT, FUNCTIONS, TIMEOUTS),
    _request(P.SUBMIT_JOB_EPOCH, FUNCTIONS, UNIQUES, EPOCHS, WORKLOADS),
    st.builds(
        Request,
        st.sampled_from([int(P.SUBMIT_REDUCE_JOB), int(P.SUBMIT_REDUCE_JOB_BACKGROUND)]),
        st.tuples(
            FUNCTIONS,
            UNIQUES.filter(lambda unique: len(unique) < 59),
            st.sampled_from([b"@r", b"r" * 64, b"r" * 65]),
            st.sampled_from([b"", b"a"]),
            WORKLOADS,
        ),
    ),
    _request(P.SET_CLIENT_ID, IDS),
    _request(P.OPTION_REQ, OPTIONS),
    _request(P.ECHO_REQ, WORKLOADS),
    st.sampled_from(_UNEXPECTED).map(_of_type),
    st.sampled_from(_UNEXPECTED).map(_of_type).map(lambda r: attrs.evolve(r, magic=b"\0RES")),
    # A payload where there should be none is dropped.
    st.builds(
        Request,
        st.sampled_from([int(P.GRAB_JOB), int(P.PRE_SLEEP), int(P.RESET_ABILITIES)]),
        st.just((b"more",)),
    ),
)

_LF, _CRLF = b"\n", b"\r\n"
_COMMANDS = [
    b"status", b"prioritystatus", b"workers", b"show jobs", b"show unique jobs", b"version", b"getpid",
    b"verbose", b"STATUS", b"Show Jobs", b"status a b c d", b"version  x", b"workers ", b" status", b"",
    b"nonsense", b"NonSense x", b"show", b"show ", b"show jobs ", b"show unique", b"show foo",
    b"show unique jobs x", b"show jobs x", b"cancel", b"cancel job", b"cancel foo bar",
    b"cancel job nobody", b"cancel job x y", b"CANCEL JOB nobody", b"create", b"CREATE",
    b"create function", b"create foo @f", b"Drop", b"drop function", b"drop function @nobody",
    b"maxqueue", b"MAXQUEUE", b"shutdown", b"cancel job ",
]  # fmt: skip
_CHANGES = [
    b"create function @f", b"create function @g", b"Create Function @d", b"create function @d extra",
    b"drop function @d", b"drop function @D", b"drop function @d x", b"maxqueue @f", b"maxqueue @f 1",
    b"maxqueue @f 2", b"maxqueue @f 1 2", b"maxqueue @f 1 2 3", b"maxqueue @f 0", b"maxqueue @g -1",
    b"maxqueue @f x", b"maxqueue @g 2x", b"maxqueue @g +1",
]  # fmt: skip
TEXT: st.SearchStrategy[Piece] = st.one_of(
    st.builds(line, st.sampled_from(_COMMANDS[:5]), st.sampled_from([_LF, _CRLF])),
    st.builds(line, st.sampled_from(_COMMANDS), st.sampled_from([_LF, _CRLF])),
    # Only with CRLF: see the rule "bare LF".
    st.builds(line, st.sampled_from(_CHANGES), st.just(_CRLF)),
    st.builds(lambda handle: Line((b"cancel job ", handle)), ANY_HANDLE),
)

FATAL = st.sampled_from(
    [
        Fatal("bad magic", b"\0BAD" + b"\0" * 8),
        Fatal("bad magic", b"\0\0\0\0" * 3),
        Fatal("unknown type", b"", 0),
        Fatal("unknown type", b"some", 43),
        Fatal("unknown type", b"", 0x7FFFFFFF),
        Fatal("sixth word", b"maxqueue @f 1 2 3 4\r\n"),
        Fatal("handle without NUL", b"H:nobody:1", P.WORK_COMPLETE, is_heard=False),
        Fatal("long line", b"x" * 9000 + b"\n"),
        Fatal("long argument", b"x" * 9000, P.CAN_DO),
        Fatal("long argument", b"x" * 9000 + b"\0\0", P.SUBMIT_JOB),
        Fatal("long number", b"@f\0" + b"1" * 21, P.CAN_DO_TIMEOUT),
        Fatal("long number", b"@f\0\0" + b"9" * 20 + b"\0w", P.SUBMIT_JOB_EPOCH),
        Fatal("long handle", b"x" * 64, P.GET_STATUS),
        Fatal("long handle", b"x" * 64, P.GET_STATUS_UNIQUE),
        Fatal("too few arguments", b"@f\0", P.SUBMIT_JOB, is_heard=False),
        Fatal("too few arguments", b"x", P.WORK_STATUS, is_heard=False),
        Fatal("too few arguments", b"@f", P.CAN_DO_TIMEOUT, is_heard=False),
        Fatal("too few arguments", b"@f\0@u\0", P.SUBMIT_JOB_EPOCH, is_heard=False),
    ]
)

_WHO = st.integers(0, 3)
_CUT = st.sampled_from([0, 0, 0, 0, 0, 1, 5, 12, 13, 20])
_ANY: st.SearchStrategy[Piece] = often((6, USUAL), (2, UNUSUAL), (1, TEXT))
_PIECES = often((8, st.tuples(_ANY)), (2, st.lists(_ANY, min_size=2, max_size=4).map(tuple)))
STEPS: st.SearchStrategy[Step] = often(
    (50, st.builds(Send, _WHO, _PIECES, _CUT)),
    (3, st.builds(Leave, _WHO)),
    (3, st.just(Connect())),
    (2, st.builds(lambda who, fatal: Send(who, (fatal,)), _WHO, FATAL)),
)
# Workers and clients from the start, so that short scripts do something too.
_OPENINGS = st.sampled_from(
    [
        (),
        (send(0, ask(P.CAN_DO, b"@f")), send(1, ask(P.SUBMIT_JOB, b"@f", b"@u", b"w"))),
        (send(0, ask(P.CAN_DO, b"@f"), ask(P.PRE_SLEEP)), send(1, ask(P.CAN_DO, b"@f"), ask(P.PRE_SLEEP))),
        (
            send(0, ask(P.CAN_DO, b"@f"), ask(P.CAN_DO, b"@g")),
            send(1, ask(P.SUBMIT_JOB_BG, b"@f", b"@u", b"w")),
        ),
        (send(1, ask(P.SUBMIT_JOB_BG, b"@f", b"", b"w")), send(0, ask(P.CAN_DO, b"@f"), ask(P.GRAB_JOB))),
    ]
)
SCRIPTS = st.builds(
    lambda opening, steps, profile: Script((*opening, *steps), profile),
    _OPENINGS,
    often((1, st.lists(STEPS, min_size=1, max_size=15)), (2, st.lists(STEPS, min_size=15, max_size=45))),
    st.sampled_from(["plain", "plain", "strict"]),
)
