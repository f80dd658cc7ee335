"""For each allowed difference a script that shows it: a rule cannot outlive its reason."""

from __future__ import annotations

from gearman_twisted.wire.constants import PacketType
from tests.differential.script import (
    Connect,
    Fatal,
    Handle,
    Leave,
    Line,
    Request,
    Script,
    Step,
    ask,
    line,
    send,
)

P = PacketType
_CAN = ask(P.CAN_DO, b"@f")
_SLEEP = ask(P.PRE_SLEEP)
_GRAB = ask(P.GRAB_JOB_UNIQ)
_LAST = Handle()


def _submit(type_: PacketType = P.SUBMIT_JOB, unique: bytes = b"@u", function: bytes = b"@f") -> Request:
    return ask(type_, function, unique, b"w")


def _fatal(rule: str, data: bytes, type_: int | None = None, *, is_heard: bool = True) -> tuple[Step, ...]:
    return (send(0, Fatal(rule, data, type_, is_heard)), send(0, line(b"status")))


_STEPS: dict[str, tuple[Step, ...]] = {
    "joined foreground job": (
        send(0, _submit()),
        send(1, _submit(P.SUBMIT_JOB_BG)),
        Leave(0),
        send(0, _CAN),
        send(0, _GRAB),
    ),
    "joined background job": (
        send(0, _submit(P.SUBMIT_JOB_BG)),
        send(1, _submit()),
        Leave(1),
        send(0, _CAN),
        send(0, _GRAB),
    ),
    "abandoned job": (send(0, _submit()), Leave(0), send(0, ask(P.GET_STATUS, _LAST)), send(0, _submit())),
    "cancelled job": (
        send(0, _submit()),
        send(1, _CAN),
        send(1, _GRAB),
        send(1, Line((b"cancel job ", _LAST))),
        send(1, ask(P.WORK_COMPLETE, _LAST, b"done")),
    ),
    # What comes next is kept where the workload of the job that ended was.
    "freed workload": (
        send(0, _CAN, _submit(P.SUBMIT_JOB_BG)),
        send(
            0, _GRAB, ask(P.WORK_FAIL, _LAST), ask(P.SUBMIT_JOB_BG, b"@g", b"", b"y"), ask(P.ECHO_REQ, b"z")
        ),
    ),
    "unique of 64 bytes": (send(0, _submit(unique=b"@" + b"l" * 58)), send(1, _CAN), send(1, _GRAB)),
    "progress": (
        send(0, _submit()),
        send(1, _CAN),
        send(1, _GRAB),
        send(1, ask(P.WORK_STATUS, _LAST, b"-1", b"9999999999")),
        send(0, ask(P.GET_STATUS, _LAST)),
    ),
    "wakes all": (send(0, _CAN), send(0, _SLEEP), send(1, _CAN), send(1, _SLEEP), send(1, _submit())),
    "scheduled job wakes": (
        send(0, _CAN),
        send(0, _SLEEP),
        send(1, ask(P.SUBMIT_JOB_EPOCH, b"@f", b"", b"99999999999", b"w")),
    ),
    "scheduled job hides": (
        send(1, ask(P.SUBMIT_JOB_EPOCH, b"@f", b"", b"99999999999", b"w")),
        send(1, _submit(P.SUBMIT_JOB_LOW_BG)),
        send(0, _CAN),
        send(0, _GRAB),
    ),
    "reduce job": (
        send(0, ask(P.SUBMIT_REDUCE_JOB, b"@f", b"", b"@r", b"", b"w")),
        send(1, _CAN),
        send(1, _GRAB),
        send(1, ask(P.WORK_DATA, _LAST, b"part")),
        send(1, ask(P.WORK_COMPLETE, _LAST, b"")),
    ),
    "exception": (
        send(1, _CAN),
        send(0, _submit()),
        send(1, _GRAB),
        send(1, ask(P.WORK_EXCEPTION, _LAST, b"why")),
    ),
    "failure after exception": (
        send(1, _CAN),
        send(0, _submit()),
        send(1, _GRAB),
        send(1, ask(P.WORK_EXCEPTION, _LAST, b"why")),
        send(1, ask(P.WORK_FAIL, _LAST)),
    ),
    "registers asleep": (send(0, _submit()), send(1, _SLEEP), send(1, _CAN)),
    "gives up asleep": (
        send(0, _submit()),
        send(1, _CAN),
        send(1, _GRAB),
        send(1, _SLEEP),
        send(1, ask(P.CANT_DO, b"@f")),
    ),
    "sleeps again": (
        send(0, _CAN),
        send(0, _SLEEP),
        send(1, _submit(P.SUBMIT_JOB_BG)),
        send(1, _CAN),
        send(1, _GRAB),
        send(0, _SLEEP),
        send(1, _submit(P.SUBMIT_JOB_BG, b"@v")),
    ),
    "registered twice": (send(0, _CAN), send(0, _CAN), send(0, line(b"status"))),
    "bad magic": _fatal("bad magic", b"\0BAD" + b"\0" * 8),
    "unknown type": _fatal("unknown type", b"", 43),
    "too few arguments": _fatal("too few arguments", b"@f\0", P.SUBMIT_JOB, is_heard=False),
    "handle without NUL": _fatal("handle without NUL", b"H:nobody:1", P.WORK_COMPLETE, is_heard=False),
    "long argument": _fatal("long argument", b"x" * 9000, P.CAN_DO),
    "long number": _fatal("long number", b"@f\0" + b"1" * 21, P.CAN_DO_TIMEOUT),
    "long handle": _fatal("long handle", b"x" * 64, P.GET_STATUS),
    "long line": _fatal("long line", b"x" * 9000 + b"\n"),
    "sixth word": _fatal("sixth word", b"maxqueue @f 1 2 3 4\r\n"),
    "limit of an unknown function": (
        send(0, line(b"maxqueue @f 1", b"\r\n")),
        send(0, _submit(P.SUBMIT_JOB_BG)),
        send(0, _submit(P.SUBMIT_JOB_BG, b"@v")),
    ),
}

EXAMPLES = {rule: Script((*steps, Connect())) for rule, steps in _STEPS.items()}
