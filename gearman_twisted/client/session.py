"""The client role without I/O: requests in, bytes out, packets in, events out.

Replies do not name their request, so they are matched by order; what a worker sends is matched by the
job's handle (PROTOCOL "Client/Worker Requests"). Nothing here waits, calls back or knows an event loop.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import NamedTuple

from gearman_twisted.client.requests import Request
from gearman_twisted.errors import RemoteProtocolError
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet

# Stands for the code that a server did not send.
NO_ANSWER = b"NO_ANSWER"
_NUMBER = re.compile(rb"\s*(\d{1,20})")


class JobStatus(NamedTuple):
    """What the server knows about a job.

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
    """The server took the job. The last event of a background job's request."""

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
    """The job ended well; its last event."""

    request: Request
    data: bytes


class Failed(NamedTuple):
    """The job ended without saying why; its last event."""

    request: Request


class Raised(NamedTuple):
    """The job ended with an exception; its last event."""

    request: Request
    data: bytes


class Answered(NamedTuple):
    """The reply to a request that is no job; its only event."""

    request: Request
    value: JobStatus | bytes


class Refused(NamedTuple):
    """The server answered with an ERROR; the request's only event."""

    request: Request
    code: bytes
    text: bytes


class Broken(NamedTuple):
    """The server does not keep to the protocol: nothing after this can be trusted, give it up."""

    reason: RemoteProtocolError


Event = (
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

    def send(self, request: Request) -> tuple[bytes, ...]:
        """Return the pieces of a request, in the order of sending; its reply is expected from now on."""
        packet, request.packet = request.packet, ()
        self._open.append(request)
        return packet

    def abandon(self, request: Request) -> None:
        """Make no more events for a request; its reply is still expected, to keep the order."""
        request.is_abandoned = True

    def owes_reply(self) -> bool:
        """Return whether a request that every server answers has no reply yet."""
        return any(not request.is_optional for request in self._open)

    def receive(self, packets: list[Packet]) -> list[Event]:
        """Return what packets from the server mean, in order; may be empty.

        Each request has one last event. If ``Broken`` is among them it is the very last.
        """
        events: list[Event] = []
        try:
            for type_, args in packets:
                take = _TAKERS.get(type_)
                if take is None:
                    raise RemoteProtocolError(_unexpected(type_, args))
                take(self, args, events)
        except RemoteProtocolError as error:
            events.append(Broken(error))
        return events

    def _next_request(self, type_: PacketType, events: list[Event]) -> Request:
        """Return the request that a reply answers."""
        waiting = self._open
        if waiting and waiting[0].reply is not type_:
            self._skip_unanswered(type_, events)
        if not waiting:
            raise RemoteProtocolError(f"the server sent {type_.name}, and nothing was asked")
        if waiting[0].reply is not type_:
            wanted = waiting[0].reply.name
            raise RemoteProtocolError(f"the server sent {type_.name} where {wanted} was due")
        return waiting.popleft()

    def _skip_unanswered(self, type_: PacketType, events: list[Event]) -> None:
        """Refuse the requests that the server has ignored: it answers a later one already."""
        ignored = list(takewhile(lambda each: each.is_optional and each.reply is not type_, self._open))
        if len(ignored) < len(self._open):
            for request in ignored:
                self._open.popleft()
                if not request.is_abandoned:
                    events.append(Refused(request, NO_ANSWER, b"the server has not answered"))

    def _take_created(self, args: list[bytes], events: list[Event]) -> None:
        request = self._next_request(PacketType.JOB_CREATED, events)
        handle = request.handle = args[0].removesuffix(b"\0")
        if request.is_followed:
            self._jobs.setdefault(handle, []).append(request)
        if not request.is_abandoned:
            events.append(Created(request, handle))

    def _take_complete(self, args: list[bytes], events: list[Event]) -> None:
        # The first copy ends all requests; the copies that follow find none, like those of a job that
        # was cancelled and whose worker went on (gearmand lets those through).
        requests = self._jobs.pop(args[0], ())
        events.extend([Completed(request, args[1]) for request in requests if not request.is_abandoned])

    def _take_fail(self, args: list[bytes], events: list[Event]) -> None:
        # gearmand makes it of an exception with a NUL behind the handle.
        requests = self._jobs.pop(args[0].removesuffix(b"\0"), ())
        events.extend([Failed(request) for request in requests if not request.is_abandoned])

    def _take_exception(self, args: list[bytes], events: list[Event]) -> None:
        requests = self._jobs.pop(args[0], ())
        events.extend([Raised(request, args[1]) for request in requests if not request.is_abandoned])

    def _take_data(self, args: list[bytes], events: list[Event]) -> None:
        request = self._next_copy(args[0])
        if request is not None:
            events.append(Data(request, args[1]))

    def _take_warning(self, args: list[bytes], events: list[Event]) -> None:
        request = self._next_copy(args[0])
        if request is not None:
            events.append(Warned(request, args[1]))

    def _take_progress(self, args: list[bytes], events: list[Event]) -> None:
        request = self._next_copy(args[0])
        if request is not None:
            events.append(Progressed(request, _number(args[1]), _number(args[2])))

    def _next_copy(self, handle: bytes) -> Request | None:
        """Return the request that a copy is for: each in turn, also abandoned ones, as the server counts."""
        requests = self._jobs.get(handle)
        if requests is None:
            return None
        request = requests[0]
        if len(requests) > 1:
            requests.append(requests.pop(0))
        return None if request.is_abandoned else request

    def _take_status(self, args: list[bytes], events: list[Event]) -> None:
        request = self._next_request(PacketType.STATUS_RES, events)
        handle, known, running, numerator, denominator = args
        if handle.removesuffix(b"\0") != request.handle:
            raise RemoteProtocolError(f"the server sent the status of {handle!r}, not of {request.handle!r}")
        if not request.is_abandoned:
            status = JobStatus(known == b"1", running == b"1", _number(numerator), _number(denominator))
            events.append(Answered(request, status))

    def _take_unique_status(self, args: list[bytes], events: list[Event]) -> None:
        request = self._next_request(PacketType.STATUS_RES_UNIQUE, events)
        # PROTOCOL calls the first argument a handle, gearmand sends the unique: it proves nothing.
        _, known, running, numerator, denominator, clients = args
        if not request.is_abandoned:
            status = JobStatus(
                known == b"1", running == b"1", _number(numerator), _number(denominator), _number(clients)
            )
            events.append(Answered(request, status))

    def _take_echo(self, args: list[bytes], events: list[Event]) -> None:
        request = self._next_request(PacketType.ECHO_RES, events)
        if args[0] != request.echo:
            raise RemoteProtocolError(f"the server echoed {args[0]!r:.200}, not {request.echo!r:.200}")
        if not request.is_abandoned:
            events.append(Answered(request, args[0]))

    def _take_option(self, args: list[bytes], events: list[Event]) -> None:
        request = self._next_request(PacketType.OPTION_RES, events)
        if not request.is_abandoned:
            events.append(Answered(request, args[0]))

    def _take_error(self, args: list[bytes], events: list[Event]) -> None:
        code, text = args[0], args[1].removesuffix(b"\0")
        if not self._open:
            raise RemoteProtocolError(f"the server sent {_error_text(code, text)}, and nothing was asked")
        request = self._open.popleft()
        if not request.is_abandoned:
            events.append(Refused(request, code, text))


def _number(text: bytes) -> int:
    """Return the number at the start of a text, or 0.

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


_TAKERS: dict[int, Callable[[ClientSession, list[bytes], list[Event]], None]] = {
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
