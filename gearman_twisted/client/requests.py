"""What a client asks of a server: arguments checked, and encoded, before anything is sent."""

from __future__ import annotations

import math

from gearman_twisted.errors import LocalProtocolError
from gearman_twisted.wire.codec import check_packet_size, encode, encode_head
from gearman_twisted.wire.constants import (
    MAX_ARGUMENT_BYTES,
    MAX_UNIQUE_BYTES,
    REQ,
    PacketType,
    Priority,
)
from gearman_twisted.wire.names import check_function, check_unique, only_bytes, text_or_bytes
from gearman_twisted.wire.pieces import with_data

# gearmand drops the connection of a client that asks for a longer one; no server makes them so long.
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
_PRIORITIES = {priority.name.lower(): priority for priority in Priority}


class Request:
    """A request, from when it is made until its reply, or its job's end, has come.

    Attributes:
        packet: the whole packet in pieces; empty once it was handed out for sending.
        reply: the type of packet that answers it.
        function: the function of the job that it submits, else empty.
        echo: the data to be echoed, else empty.
        is_followed: whether packets of the job come after the reply.
        is_optional: whether some servers do not answer it.
        handle: the handle of its job once it is known, or the one that it asks about.
        is_abandoned: whether nobody waits for it any more; what comes for it is dropped.
    """

    __slots__ = (
        *("echo", "function", "handle", "is_abandoned", "is_followed", "is_optional", "packet", "reply"),
    )

    def __init__(
        self,
        packet: tuple[bytes, ...],
        reply: PacketType,
        *,
        function: bytes = b"",
        echo: bytes = b"",
        is_followed: bool = False,
        is_optional: bool = False,
        handle: bytes = b"",
    ) -> None:
        self.packet = packet
        self.reply = reply
        self.function = function
        self.echo = echo
        self.is_followed = is_followed
        self.is_optional = is_optional
        self.handle = handle
        self.is_abandoned = False


# All of these raise TypeError, or LocalProtocolError, if an argument cannot be sent.


def submit_request(
    function: str | bytes,
    workload: bytes,
    unique: bytes = b"",
    priority: Priority | str = Priority.NORMAL,
    *,
    background: bool = False,
) -> Request:
    """Return the request that submits a job.

    Args:
        function: 1 to 8191 bytes without NUL; text as UTF-8.
        workload: any bytes.
        unique: 0 to 64 bytes without NUL. gearmand 1.1.20 and 2.0 damage the job of one of exactly 64.
        priority: also by its name.
        background: whether nothing is to be heard of the job but its handle.
    """
    name = _function(function)
    try:
        type_ = _SUBMITS[priority, background]  # type: ignore[index]
    except (KeyError, TypeError):
        type_ = _SUBMITS[_priority(priority), bool(background)]
    head = b"%b\0%b\0" % (name, _unique(unique))
    packet = _packet_with_data(type_, head, workload)
    return Request(packet, PacketType.JOB_CREATED, function=name, is_followed=not background)


def scheduled_request(function: str | bytes, workload: bytes, unique: bytes, run_at: float) -> Request:
    """Return the request that submits a background job of normal priority, to be run at a time or later.

    Args:
        function: see ``submit_request``; so are workload and unique.
        workload: see ``submit_request``.
        unique: see ``submit_request``.
        run_at: seconds since 1970.
    """
    name = _function(function)
    head = b"%b\0%b\0%d\0" % (name, _unique(unique), _epoch(run_at))
    packet = _packet_with_data(PacketType.SUBMIT_JOB_EPOCH, head, workload)
    return Request(packet, PacketType.JOB_CREATED, function=name)


def recurring_request(function: str | bytes, workload: bytes, unique: bytes, schedule: str) -> Request:
    """Return the request that submits a recurring job.

    Args:
        function: see ``submit_request``; so are workload and unique.
        workload: see ``submit_request``.
        unique: see ``submit_request``.
        schedule: the time fields of a crontab line.
    """
    # Seldom used, and commands pay for what is loaded.
    from gearman_twisted.wire.crontab import wire_fields
    from gearman_twisted.wire.schedule import Schedule

    name = _function(function)
    if not isinstance(schedule, str):
        raise TypeError(f"schedule takes text, not {type(schedule).__name__}")
    try:
        fields = wire_fields(schedule.encode())
        Schedule(fields)
    except ValueError as error:
        raise LocalProtocolError(f"{schedule!r} is no schedule: {error}") from error
    head = b"".join(b"%b\0" % each for each in (name, _unique(unique), *fields))
    packet = _packet_with_data(PacketType.SUBMIT_JOB_SCHED, head, workload)
    return Request(packet, PacketType.JOB_CREATED, function=name)


def reduce_request(function: str | bytes, workload: bytes, unique: bytes, reducer: str | bytes) -> Request:
    """Return the request that submits a reduce job in the foreground.

    Args:
        function: see ``submit_request``; so are workload and unique.
        workload: see ``submit_request``.
        unique: see ``submit_request``.
        reducer: the function that is run for each part; 1 to 64 bytes without NUL.
    """
    name = _function(function)
    reducer = check_function(text_or_bytes(reducer, "reducer"))
    if len(reducer) > MAX_UNIQUE_BYTES:
        raise LocalProtocolError(
            f"a reducer's name is at most {MAX_UNIQUE_BYTES} bytes, not {reducer!r:.200}"
        )
    # The fourth string is libgearman's aggregator, which servers ignore.
    head = b"%b\0%b\0%b\0\0" % (name, _unique(unique), reducer)
    packet = _packet_with_data(PacketType.SUBMIT_REDUCE_JOB, head, workload)
    return Request(packet, PacketType.JOB_CREATED, function=name, is_followed=True)


def status_request(handle: bytes) -> Request:
    """Return the request for a job's state by its handle: at most 63 bytes without NUL."""
    only_bytes(handle, "handle")
    if len(handle) > _MAX_HANDLE_BYTES or b"\0" in handle:
        raise LocalProtocolError(
            f"a handle is at most {_MAX_HANDLE_BYTES} bytes without NUL, not {handle!r:.200}"
        )
    packet = (encode(REQ, PacketType.GET_STATUS, handle),)
    return Request(packet, PacketType.STATUS_RES, handle=handle)


def unique_status_request(unique: bytes) -> Request:
    """Return the request for a job's state by its unique: at most 64 bytes without NUL."""
    packet = (encode(REQ, PacketType.GET_STATUS_UNIQUE, _unique(unique)),)
    return Request(packet, PacketType.STATUS_RES_UNIQUE)


def echo_request(data: bytes) -> Request:
    """Return the request to send data back."""
    packet = _packet_with_data(PacketType.ECHO_REQ, b"", data, "data")
    return Request(packet, PacketType.ECHO_RES, echo=data)


def ping_request() -> Request:
    """Return the request of a ping; no call waits for its reply, and some servers send none."""
    request = echo_request(b"ping")
    request.is_optional = True
    return request


def option_request(option: str | bytes) -> Request:
    """Return the request to set an option of this connection; servers know ``exceptions``.

    Args:
        option: at most 8191 bytes without NUL.
    """
    name = text_or_bytes(option, "option")
    if b"\0" in name or len(name) > MAX_ARGUMENT_BYTES:
        raise LocalProtocolError(
            f"an option is at most {MAX_ARGUMENT_BYTES} bytes without NUL, not {name!r:.200}"
        )
    packet = (encode(REQ, PacketType.OPTION_REQ, name),)
    return Request(packet, PacketType.OPTION_RES, is_optional=True)


def _function(function: str | bytes) -> bytes:
    return check_function(text_or_bytes(function, "function"))


def _unique(unique: bytes) -> bytes:
    check_unique(only_bytes(unique, "unique"))
    return unique


def _priority(priority: object) -> Priority:
    if not isinstance(priority, str):
        raise TypeError(f"priority takes a Priority or its name, not {type(priority).__name__}")
    try:
        return _PRIORITIES[priority.lower()]
    except KeyError:
        raise LocalProtocolError(f"priority takes {', '.join(_PRIORITIES)}, not {priority!r}") from None


def _packet_with_data(
    type_: PacketType, head: bytes, data: bytes, name: str = "workload"
) -> tuple[bytes, ...]:
    only_bytes(data, name)
    check_packet_size(type_, len(head) + len(data))
    return with_data(encode_head(REQ, type_, head, len(data)), data)


def _epoch(run_at: float) -> int:
    """Whole seconds, rounded up: early would break the promise, late does not."""
    if not math.isfinite(run_at) or run_at > _MAX_EPOCH:
        raise LocalProtocolError(f"a job cannot be run at {run_at!r} seconds since 1970")
    return max(0, math.ceil(run_at))
