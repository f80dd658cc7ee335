"""What a client asks of a server: each request checked and encoded before anything is sent."""

from __future__ import annotations

import math

import attrs

from gearman_twisted.errors import LocalProtocolError
from gearman_twisted.wire.codec import encode, encode_head
from gearman_twisted.wire.constants import (
    MAX_ARGUMENT_BYTES,
    MAX_UNIQUE_BYTES,
    REQ,
    PacketType,
    Priority,
)
from gearman_twisted.wire.names import check_function, check_unique
from gearman_twisted.wire.schedule import Schedule

# gearmand drops the connection of whoever asks for a longer one; no server makes them so long.
_MAX_HANDLE_BYTES = 63
_MAX_EPOCH = (1 << 63) - 1

_SUBMITS = {
    (Priority.HIGH, False): PacketType.SUBMIT_JOB_HIGH,
    (Priority.NORMAL, False): PacketType.SUBMIT_JOB,
    (Priority.LOW, False): PacketType.SUBMIT_JOB_LOW,
    (Priority.HIGH, True): PacketType.SUBMIT_JOB_HIGH_BG,
    (Priority.NORMAL, True): PacketType.SUBMIT_JOB_BG,
    (Priority.LOW, True): PacketType.SUBMIT_JOB_LOW_BG,
}


@attrs.define(eq=False)
class Request:
    """A request, from when it is made until its reply, or its job's end, has come.

    Attributes:
        packet: the whole packet; empty once it was handed out for sending.
        reply: the type of packet that answers it.
        function: the function of the job that it submits, else empty.
        echo: the data to be echoed, else empty.
        is_followed: whether packets of the job come after the reply.
        handle: the handle of its job once it is known, or the one that it asks about.
        is_abandoned: whether nobody waits for it any more; what comes for it is taken in silence.
    """

    packet: bytes = attrs.field(repr=False)
    reply: PacketType
    function: bytes = b""
    echo: bytes = attrs.field(default=b"", repr=False)
    is_followed: bool = False
    handle: bytes = b""
    is_abandoned: bool = False


def submit_request(
    function: bytes,
    workload: bytes,
    unique: bytes = b"",
    priority: Priority = Priority.NORMAL,
    *,
    background: bool = False,
    run_at: float | None = None,
) -> Request:
    """A job to be submitted.

    Args:
        function: 1 to 8191 bytes without NUL.
        workload: any bytes.
        unique: 0 to 64 bytes without NUL. gearmand 1.1.20 and 2.0 damage the job of one of exactly 64.
        priority: not heeded with ``run_at``, which the protocol has for normal priority only.
        background: whether nothing is to be heard of the job but its handle.
        run_at: seconds since 1970 before which it may not run; makes it a background job.

    Raises:
        LocalProtocolError: an argument cannot be sent.
    """
    check_function(function)
    check_unique(unique)
    if run_at is None:
        type_ = _SUBMITS[priority, background]
        head = b"%b\0%b\0" % (function, unique)
    else:
        type_ = PacketType.SUBMIT_JOB_EPOCH
        background = True
        head = b"%b\0%b\0%d\0" % (function, unique, _epoch(run_at))
    return Request(
        _packet_with_data(type_, head, workload),
        PacketType.JOB_CREATED,
        function=function,
        is_followed=not background,
    )


def recurring_request(function: bytes, workload: bytes, unique: bytes, schedule: str) -> Request:
    """A recurring job to be submitted.

    Args:
        function: 1 to 8191 bytes without NUL.
        workload: any bytes.
        unique: 0 to 64 bytes without NUL.
        schedule: five fields with blanks between them.

    Raises:
        LocalProtocolError: an argument cannot be sent, or is no schedule.
    """
    check_function(function)
    check_unique(unique)
    fields = schedule.encode().split()
    try:
        if len(fields) != 5:
            raise ValueError("it takes five fields with blanks between them")
        Schedule(fields)
    except ValueError as error:
        raise LocalProtocolError(f"{schedule!r} is no schedule: {error}") from error
    head = b"".join(b"%b\0" % each for each in (function, unique, *fields))
    packet = _packet_with_data(PacketType.SUBMIT_JOB_SCHED, head, workload)
    return Request(packet, PacketType.JOB_CREATED, function=function)


def reduce_request(function: bytes, workload: bytes, unique: bytes, reducer: bytes) -> Request:
    """A reduce job to be submitted in the foreground.

    Args:
        function: 1 to 8191 bytes without NUL.
        workload: any bytes.
        unique: 0 to 64 bytes without NUL.
        reducer: the function that is run for each part; 1 to 64 bytes without NUL.

    Raises:
        LocalProtocolError: an argument cannot be sent.
    """
    check_function(function)
    check_function(reducer)
    check_unique(unique)
    if len(reducer) > MAX_UNIQUE_BYTES:
        raise LocalProtocolError(
            f"a reducer's name is at most {MAX_UNIQUE_BYTES} bytes, not {reducer!r:.200}"
        )
    # The fourth string is libgearman's aggregator, which servers ignore.
    head = b"%b\0%b\0%b\0\0" % (function, unique, reducer)
    packet = _packet_with_data(PacketType.SUBMIT_REDUCE_JOB, head, workload)
    return Request(packet, PacketType.JOB_CREATED, function=function, is_followed=True)


def status_request(handle: bytes) -> Request:
    """A question for a job's state by its handle.

    Raises:
        LocalProtocolError: it cannot be a handle: over 63 bytes, or with a NUL.
    """
    if len(handle) > _MAX_HANDLE_BYTES or b"\0" in handle:
        raise LocalProtocolError(
            f"a handle is at most {_MAX_HANDLE_BYTES} bytes without NUL, not {handle!r:.200}"
        )
    packet = encode(REQ, PacketType.GET_STATUS, handle)
    return Request(packet, PacketType.STATUS_RES, handle=handle)


def unique_status_request(unique: bytes) -> Request:
    """A question for a job's state by its unique.

    Raises:
        LocalProtocolError: it cannot be a unique: over 64 bytes, or with a NUL.
    """
    check_unique(unique)
    packet = encode(REQ, PacketType.GET_STATUS_UNIQUE, unique)
    return Request(packet, PacketType.STATUS_RES_UNIQUE)


def echo_request(data: bytes) -> Request:
    """Data that the server shall send back."""
    return Request(_packet_with_data(PacketType.ECHO_REQ, b"", data), PacketType.ECHO_RES, echo=data)


def option_request(option: bytes) -> Request:
    """An option to be set for this connection; ``exceptions`` is the one that servers know.

    Raises:
        LocalProtocolError: it is longer than 8191 bytes or holds a NUL.
    """
    if b"\0" in option or len(option) > MAX_ARGUMENT_BYTES:
        raise LocalProtocolError(
            f"an option is at most {MAX_ARGUMENT_BYTES} bytes without NUL, not {option!r:.200}"
        )
    return Request(encode(REQ, PacketType.OPTION_REQ, option), PacketType.OPTION_RES)


def _packet_with_data(type_: PacketType, head: bytes, data: bytes) -> bytes:
    if len(head) + len(data) > 0xFFFFFFFF:
        raise LocalProtocolError(f"{type_.name} would be {len(head) + len(data)} bytes; 4 GiB is the limit")
    return encode_head(REQ, type_, head, len(data)) + data


def _epoch(run_at: float) -> int:
    """Whole seconds, rounded up: early would break the promise, late does not."""
    if not math.isfinite(run_at) or run_at > _MAX_EPOCH:
        raise LocalProtocolError(f"a job cannot be run at {run_at!r} seconds since 1970")
    return max(0, math.ceil(run_at))
