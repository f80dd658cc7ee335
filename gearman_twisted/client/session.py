"""The client role without I/O: requests in, bytes out, packets in, outcomes out.

Replies do not name their request, so they are matched by order; what a worker sends is matched by the
job's handle (PROTOCOL "Client/Worker Requests"). Nothing here waits, calls back or knows a Deferred.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import attrs

from gearman_twisted.client.requests import Request
from gearman_twisted.errors import RemoteProtocolError
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet

_NUMBER = re.compile(rb"\s*(\d{1,20})")


@attrs.frozen
class JobStatus:
    """What the server knows of a job.

    Attributes:
        is_known: whether the server has the job; it forgets jobs that ended.
        is_running: whether a worker has it.
        numerator: how far the worker says it is, out of ``denominator``; 0 where it said nothing.
        denominator: what ``numerator`` counts towards; 0 where the worker said nothing.
        clients: how many clients wait for the job; None where it was not asked by unique.
    """

    is_known: bool
    is_running: bool
    numerator: int
    denominator: int
    clients: int | None = None


class Created(NamedTuple):
    """The server took the job. The last outcome of a background job's request."""

    request: Request
    handle: bytes


class Data(NamedTuple):
    """A part of the job's result."""

    request: Request
    data: bytes


class Warned(NamedTuple):
    """A warning of the worker."""

    request: Request
    data: bytes


class Progressed(NamedTuple):
    """How far the worker says it is."""

    request: Request
    numerator: int
    denominator: int


class Completed(NamedTuple):
    """The job ended well; its last outcome."""

    request: Request
    data: bytes


class Failed(NamedTuple):
    """The job ended without saying why; its last outcome."""

    request: Request


class Raised(NamedTuple):
    """The job ended with an exception; its last outcome."""

    request: Request
    data: bytes


class Answered(NamedTuple):
    """The reply to a request that is no job; its only outcome."""

    request: Request
    value: JobStatus | bytes


class Refused(NamedTuple):
    """The server answered with an ERROR; the request's only outcome."""

    request: Request
    code: bytes
    text: bytes


class Broken(NamedTuple):
    """The server does not keep to the protocol: nothing after this can be trusted, give it up."""

    reason: RemoteProtocolError


Outcome = (
    Created | Data | Warned | Progressed | Completed | Failed | Raised | Answered | Refused | Broken
)  # fmt: skip


class ClientSession:
    """One connection, seen from the client: which request the next packet belongs to.

    A new connection takes a new session.
    """

    __slots__ = ("_jobs", "_open")

    def __init__(self) -> None:
        self._open: deque[Request] = deque()
        # Submits with one unique share a job and its handle. A server that knows of two sends each of the
        # job's packets twice, one copy after the other.
        self._jobs: dict[bytes, list[Request]] = {}

    def send(self, request: Request) -> bytes:
        """The bytes of a request, whose reply is expected from now on. Call it in the order of sending."""
        packet, request.packet = request.packet, b""
        self._open.append(request)
        return packet

    def abandon(self, request: Request) -> None:
        """Makes no more outcomes for a request. Its reply is awaited all the same, to keep the order."""
        request.is_abandoned = True

    def receive(self, packets: list[Packet]) -> list[Outcome]:
        """What packets from the server mean, in order; may be empty.

        Each request has one last outcome. If ``Broken`` is among them it is the very last.
        """
        outcomes: list[Outcome] = []
        try:
            for type_, args in packets:
                take = _TAKERS.get(type_)
                if take is None:
                    raise RemoteProtocolError(_unexpected(type_, args))
                take(self, args, outcomes)
        except RemoteProtocolError as error:
            outcomes.append(Broken(error))
        return outcomes

    def _next_request(self, type_: PacketType) -> Request:
        """The request that a reply answers."""
        if not self._open:
            raise RemoteProtocolError(f"the server sent {type_.name}, and nothing was asked")
        if self._open[0].reply is not type_:
            wanted = self._open[0].reply.name
            raise RemoteProtocolError(f"the server sent {type_.name} where {wanted} was due")
        return self._open.popleft()

    def _take_created(self, args: list[bytes], outcomes: list[Outcome]) -> None:
        request = self._next_request(PacketType.JOB_CREATED)
        handle = request.handle = args[0].removesuffix(b"\0")
        if request.is_followed:
            self._jobs.setdefault(handle, []).append(request)
        if not request.is_abandoned:
            outcomes.append(Created(request, handle))

    def _take_complete(self, args: list[bytes], outcomes: list[Outcome]) -> None:
        # The first copy ends all requests; the copies that follow find none, like those of a job that
        # was cancelled and whose worker went on (gearmand lets those through).
        requests = self._jobs.pop(args[0], ())
        outcomes.extend([Completed(request, args[1]) for request in requests if not request.is_abandoned])

    def _take_fail(self, args: list[bytes], outcomes: list[Outcome]) -> None:
        # gearmand makes it of an exception with a NUL behind the handle.
        requests = self._jobs.pop(args[0].removesuffix(b"\0"), ())
        outcomes.extend([Failed(request) for request in requests if not request.is_abandoned])

    def _take_exception(self, args: list[bytes], outcomes: list[Outcome]) -> None:
        requests = self._jobs.pop(args[0], ())
        outcomes.extend([Raised(request, args[1]) for request in requests if not request.is_abandoned])

    def _take_data(self, args: list[bytes], outcomes: list[Outcome]) -> None:
        request = self._next_copy(args[0])
        if request is not None:
            outcomes.append(Data(request, args[1]))

    def _take_warning(self, args: list[bytes], outcomes: list[Outcome]) -> None:
        request = self._next_copy(args[0])
        if request is not None:
            outcomes.append(Warned(request, args[1]))

    def _take_progress(self, args: list[bytes], outcomes: list[Outcome]) -> None:
        request = self._next_copy(args[0])
        if request is not None:
            outcomes.append(Progressed(request, _number(args[1]), _number(args[2])))

    def _next_copy(self, handle: bytes) -> Request | None:
        """The request that a copy is for: each in turn, the abandoned ones too, as the server counts them."""
        requests = self._jobs.get(handle)
        if requests is None:
            return None
        request = requests[0]
        if len(requests) > 1:
            requests.append(requests.pop(0))
        return None if request.is_abandoned else request

    def _take_status(self, args: list[bytes], outcomes: list[Outcome]) -> None:
        request = self._next_request(PacketType.STATUS_RES)
        handle, known, running, numerator, denominator = args
        if handle.removesuffix(b"\0") != request.handle:
            raise RemoteProtocolError(f"the server sent the status of {handle!r}, not of {request.handle!r}")
        if not request.is_abandoned:
            status = JobStatus(known == b"1", running == b"1", _number(numerator), _number(denominator))
            outcomes.append(Answered(request, status))

    def _take_unique_status(self, args: list[bytes], outcomes: list[Outcome]) -> None:
        request = self._next_request(PacketType.STATUS_RES_UNIQUE)
        # PROTOCOL calls the first argument a handle, gearmand sends the unique: it proves nothing.
        _, known, running, numerator, denominator, clients = args
        if not request.is_abandoned:
            status = JobStatus(
                known == b"1", running == b"1", _number(numerator), _number(denominator), _number(clients)
            )
            outcomes.append(Answered(request, status))

    def _take_echo(self, args: list[bytes], outcomes: list[Outcome]) -> None:
        request = self._next_request(PacketType.ECHO_RES)
        if args[0] != request.echo:
            raise RemoteProtocolError(f"the server echoed {args[0]!r:.200}, not {request.echo!r:.200}")
        if not request.is_abandoned:
            outcomes.append(Answered(request, args[0]))

    def _take_option(self, args: list[bytes], outcomes: list[Outcome]) -> None:
        request = self._next_request(PacketType.OPTION_RES)
        if not request.is_abandoned:
            outcomes.append(Answered(request, args[0]))

    def _take_error(self, args: list[bytes], outcomes: list[Outcome]) -> None:
        code, text = args[0], args[1].removesuffix(b"\0")
        if not self._open:
            raise RemoteProtocolError(f"the server sent {_error_text(code, text)}, and nothing was asked")
        request = self._open.popleft()
        if not request.is_abandoned:
            outcomes.append(Refused(request, code, text))


def _number(text: bytes) -> int:
    """The number at the start of a text, or 0.

    Workers may send anything at all as their status, and servers forward it as it is; they read it so.
    """
    found = _NUMBER.match(text)
    return int(found[1]) if found else 0


def _error_text(code: bytes, text: bytes) -> str:
    return f"ERROR {code.decode('utf-8', 'replace')} ({text.decode('utf-8', 'replace')})"


def _unexpected(type_: int, args: list[bytes]) -> str:
    if type_ in (PacketType.BAD_PACKET, PacketType.BAD_STREAM):
        return f"the server sent something that is no packet: {args[1].decode('utf-8', 'replace')}"
    return f"the server sent {Packet(type_, args)!r:.200}, which is not for a client"


_TAKERS: dict[int, Callable[[ClientSession, list[bytes], list[Outcome]], None]] = {
    PacketType.JOB_CREATED: ClientSession._take_created,
    PacketType.WORK_COMPLETE: ClientSession._take_complete,
    PacketType.WORK_FAIL: ClientSession._take_fail,
    PacketType.WORK_EXCEPTION: ClientSession._take_exception,
    PacketType.WORK_DATA: ClientSession._take_data,
    PacketType.WORK_WARNING: ClientSession._take_warning,
    PacketType.WORK_STATUS: ClientSession._take_progress,
    PacketType.STATUS_RES: ClientSession._take_status,
    PacketType.STATUS_RES_UNIQUE: ClientSession._take_unique_status,
    PacketType.ECHO_RES: ClientSession._take_echo,
    PacketType.OPTION_RES: ClientSession._take_option,
    PacketType.ERROR: ClientSession._take_error,
}
