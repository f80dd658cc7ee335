"""The worker's side of a connection without I/O: packets in, assignments out, bytes gathered until taken.

One session is one connection. It asks for a job only when a slot is free, and holds that slot until the
server has none or the job has ended, so that no job waits here that another worker could run. If the server
does not answer, the slot is lent to other sessions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from gearman_twisted.errors import LocalProtocolError, RemoteProtocolError
from gearman_twisted.wire.codec import check_packet_size, encode, encode_head
from gearman_twisted.wire.constants import REQ, ErrorCode, PacketType
from gearman_twisted.wire.names import check_function, client_id_packet
from gearman_twisted.wire.packet import Packet
from gearman_twisted.worker.slots import Limit, Slots

# gearmand keeps 32 bits of either number of a WORK_STATUS, and more than ten digits break the connection.
_MAX_STATUS_NUMBER = 0xFFFFFFFF
# 32 bits again; seven weeks.
_MAX_TIMEOUT_MS = 0xFFFFFFFF

_GRAB_UNIQ = encode(REQ, PacketType.GRAB_JOB_UNIQ)
_GRAB = encode(REQ, PacketType.GRAB_JOB)
_PRE_SLEEP = encode(REQ, PacketType.PRE_SLEEP)
_PING = encode(REQ, PacketType.ECHO_REQ, b"ping")

# Plain numbers, as packets carry them: comparing enum members costs several times as much.
_ASSIGN_UNIQ = int(PacketType.JOB_ASSIGN_UNIQ)
_ASSIGN = int(PacketType.JOB_ASSIGN)
_NO_JOB = int(PacketType.NO_JOB)
_NOOP = int(PacketType.NOOP)
_ERROR = int(PacketType.ERROR)
_ECHO = int(PacketType.ECHO_RES)

# These answer what was sent of a job, never a grab.
_ERRORS_OF_JOBS = (ErrorCode.JOB_NOT_FOUND, ErrorCode.ARGUMENT_TOO_LARGE)


class Assigned(NamedTuple):
    """The server gave a job; it has to be ended with ``complete``, ``fail`` or ``raise_exception``.

    Attributes:
        handle: the job's handle.
        function: the function that it is for.
        unique: the client's unique, or empty.
        workload: any bytes.
    """

    handle: bytes
    function: bytes
    unique: bytes
    workload: bytes


class AssignedLate(NamedTuple):
    """The server gave a job after its slot was lent; it is parked until ``unpark``."""

    job: Assigned


class Refused(NamedTuple):
    """The server did not take what was sent of a job: it had taken the job away. Only to be logged.

    Attributes:
        code: the code on the wire.
        text: the server's description.
    """

    code: bytes
    text: bytes


class GrabRefused(NamedTuple):
    """The server does not know GRAB_JOB_UNIQ; the session has asked with GRAB_JOB."""

    text: bytes


class Broken(NamedTuple):
    """The server does not keep to the protocol: nothing after this can be trusted, give it up."""

    reason: RemoteProtocolError


Outcome = Assigned | AssignedLate | Refused | GrabRefused | Broken


class WorkerSession:
    """One connection, seen from the worker.

    After each call, take ``data_to_send`` of all sessions that share the slots.

    Args:
        slots: shared with the sessions of the worker's other connections.
        functions: what to offer, by name: the server's limit for a job in milliseconds, or 0 for none.
        client_id: the name that the server's command ``workers`` shows, or None.
        limit: how many jobs may run for this session, and others that share the limit, or None.
        has_uniques: whether the server knows GRAB_JOB_UNIQ, as far as is known.

    Attributes:
        largest_bytes: the size of the largest packet that was to be sent, without its header.
        has_job: no: it wants slots for jobs that it does not have.
        grabs: the number of grabs so far.
        has_answered_ping: whether the server has ever answered ``ping``.
    """

    has_job = False

    __slots__ = (
        "_busy",
        "_changed",
        "_expected_errors",
        "_grab_packet",
        "_has_answered_grab",
        "_is_asleep",
        "_is_closed",
        "_is_draining",
        "_is_grabbing",
        "_is_slot_lent",
        "_offered",
        "_out",
        "_pings",
        "_returning",
        "_running",
        "_slots",
        "_wanted",
        "grabs",
        "has_answered_ping",
        "largest_bytes",
        "limit",
    )

    def __init__(
        self,
        slots: Slots,
        functions: Mapping[bytes, int] | None = None,
        client_id: bytes | None = None,
        limit: Limit | None = None,
        *,
        has_uniques: bool = True,
    ) -> None:
        self._slots = slots
        self.limit = limit
        self.largest_bytes = 0
        self.grabs = 0
        self.has_answered_ping = False
        self._grab_packet = _GRAB_UNIQ if has_uniques else _GRAB
        self._has_answered_grab = False
        # The grab is open, and its slot is used by others.
        self._is_slot_lent = False
        self._out: list[bytes] = []
        self._wanted: dict[bytes, int] = {}
        self._offered: dict[bytes, int] = {}
        # Functions whose registration the server does not have yet; nothing is grabbed before that.
        self._changed: dict[bytes, None] = {}
        # Functions whose jobs the server has to take back.
        self._returning: set[bytes] = set()
        # By function, the jobs that the server counts as running here; and how many of all are at work.
        self._running: dict[bytes, int] = {}
        self._busy = 0
        self._is_grabbing = False
        self._is_asleep = False
        self._is_draining = False
        self._is_closed = False
        self._expected_errors = 0
        self._pings = 0
        if client_id is not None:
            self._out.append(client_id_packet(client_id))
        for function, timeout_ms in (functions or {}).items():
            self._wanted[function] = timeout_ms
            self._tell(function)
        self._grab()

    @property
    def is_idle(self) -> bool:
        """Whether no job is at work and none can come before it is asked for.

        Parked jobs do not count: the server takes them back with the connection.
        """
        return not self._is_grabbing and not self._busy

    @property
    def has_no_jobs(self) -> bool:
        """Whether no job is at work; a grab may be unanswered."""
        return not self._busy

    @property
    def is_held_up(self) -> bool:
        """Whether nothing is grabbed before running jobs end, as the server can only then be told of changes.

        A new connection has no such jobs: it can take over, and this one be drained.
        """
        return bool(self._changed) and not (self._is_grabbing or self._is_draining or self._is_closed)

    @property
    def has_open_grab(self) -> bool:
        """Whether a grab is open, which servers answer at once."""
        return self._is_grabbing

    @property
    def holds_slot_for_grab(self) -> bool:
        """Whether a grab is open that has a slot; ``lend_slot`` frees it."""
        return self._is_grabbing and not self._is_slot_lent

    def data_to_send(self) -> list[bytes]:
        """Return what is to be sent, in pieces, each only once; may be empty."""
        data, self._out = self._out, []
        return data

    def offer(self, function: bytes, timeout_ms: int = 0) -> None:
        """Offer a function, or change its limit.

        Raises:
            LocalProtocolError: its name or the limit cannot be sent.
        """
        check_function(function)
        if not 0 <= timeout_ms <= _MAX_TIMEOUT_MS:
            raise LocalProtocolError(f"a job's limit is 0 to {_MAX_TIMEOUT_MS} ms, not {timeout_ms!r}")
        self._wanted[function] = timeout_ms
        self._tell(function)
        # Servers wake nobody for jobs that waited before the function was offered (gearmand does not).
        self._is_asleep = False
        self._grab()

    def withdraw(self, function: bytes) -> None:
        """Withdraw a function.

        A server takes back the jobs of that function that run on the connection, and would give them to
        another worker as well. So it is told once they have ended; until then no job is grabbed.
        """
        self._wanted.pop(function, None)
        self._tell(function)

    def drain(self) -> None:
        """Take no more jobs, except one that may be on its way."""
        self._is_draining = True
        self._slots.leave(self)

    def close(self) -> None:
        """Note that the connection is gone. Running jobs keep their slots until they end."""
        self._is_closed = True
        self._out.clear()
        self._slots.leave(self)
        if self._is_grabbing:
            self._end_grab()

    def ping(self) -> None:
        """Ask the server for a sign of life; ``receive`` takes the answer."""
        self._pings += 1
        self._out.append(_PING)

    def lend_slot(self) -> None:
        """Let others use the slot of the open grab, as the server does not answer it.

        If it assigns a job after all, that waits for a slot, before any new grab.
        """
        if self.holds_slot_for_grab:
            self._is_slot_lent = True
            self._slots.release(self)

    def receive(self, packets: list[Packet]) -> list[Outcome]:
        """Return what packets from the server mean, in order; may be empty. ``Broken`` is always last."""
        outcomes: list[Outcome] = []
        for type_, args in packets:
            if type_ == _ASSIGN_UNIQ and self._is_grabbing:
                outcomes.append(self._take_job(Assigned._make(args)))
            elif type_ == _NO_JOB and self._is_grabbing:
                self._take_no_job()
            elif type_ == _NOOP:
                # One that crosses a grab says nothing new: the answer to the grab tells all.
                self._is_asleep = False
                self._grab()
            elif type_ == _ERROR:
                outcomes += self._take_error(args[0], args[1].removesuffix(b"\0"))
                if outcomes and isinstance(outcomes[-1], Broken):
                    break
            elif type_ == _ECHO and self._pings:
                self._pings -= 1
                self.has_answered_ping = True
            elif type_ == _ASSIGN and self._is_grabbing and self._grab_packet is _GRAB:
                handle, function, workload = args
                outcomes.append(self._take_job(Assigned(handle, function, b"", workload)))
            else:
                outcomes.append(Broken(RemoteProtocolError(_unexpected(type_, args))))
                break
        return outcomes

    def send_data(self, handle: bytes, data: bytes) -> None:
        """Send a part of a job's result."""
        self._send_with_data(PacketType.WORK_DATA, handle, data)

    def send_warning(self, handle: bytes, data: bytes) -> None:
        """Send a warning."""
        self._send_with_data(PacketType.WORK_WARNING, handle, data)

    def send_status(self, handle: bytes, numerator: int, denominator: int) -> None:
        """Send a job's progress.

        Raises:
            LocalProtocolError: a number is negative or over 32 bits.
        """
        check_progress(numerator, denominator)
        self._out.append(encode(REQ, PacketType.WORK_STATUS, handle, b"%d" % numerator, b"%d" % denominator))

    def complete(self, job: Assigned, data: bytes) -> None:
        """End a job with its result, and ask for the next one in the same write."""
        if not self._is_closed:
            self._send_with_data(PacketType.WORK_COMPLETE, job.handle, data)
        self._end(job)

    def fail(self, job: Assigned, *, keeps_slot: bool = False) -> None:
        """End a job without a reason.

        Args:
            job: the job.
            keeps_slot: its function goes on all the same, until ``free_slot``.
        """
        if not self._is_closed:
            self._out.append(encode(REQ, PacketType.WORK_FAIL, job.handle))
        self._end(job, keeps_slot=keeps_slot)

    def raise_exception(self, job: Assigned, data: bytes, *, keeps_slot: bool = False) -> None:
        """End a job with a reason; otherwise as ``fail``.

        For gearmand the exception is the end, and it answers the WORK_FAIL with an ERROR. For other
        servers only the WORK_FAIL is the end (Perl's Gearman::Server).
        """
        if not self._is_closed:
            self._send_with_data(PacketType.WORK_EXCEPTION, job.handle, data)
            self._out.append(encode(REQ, PacketType.WORK_FAIL, job.handle))
            self._expected_errors += 1
        self._end(job, keeps_slot=keeps_slot)

    def give_back(self, job: Assigned) -> None:
        """Return a job to the server, for another worker or this one.

        PROTOCOL has no packet for that; what servers do is to take the jobs of a function back when it is
        given up. Others of the function that run must not go with it, so the server is told when they have
        ended; see ``is_held_up``. The function is not offered again before ``offer``.
        """
        self._wanted.pop(job.function, None)
        if job.function in self._offered:
            self._returning.add(job.function)
        self._changed[job.function] = None
        self._slots.leave(self)
        self._end(job)

    def park(self, _job: Assigned) -> None:
        """Let others use the slot of a job that waits for another try; see ``unpark``."""
        self._busy -= 1
        self._slots.release(self)
        if not self._is_closed:
            self._go_on()

    def unpark(self, _job: Assigned) -> None:
        """Count a parked job as at work; its slot was reserved from the slots before."""
        self._busy += 1
        if not self._is_closed:
            self._go_on()

    def free_slot(self) -> None:
        """Free the slot of a job that was ended with ``keeps_slot``: its function has ended."""
        self._slots.release(self)
        if not self._is_closed:
            self._go_on()

    def slot_reserved(self) -> None:
        """Ask for a job; called by the slots too, when it is this session's turn."""
        self._is_grabbing = True
        self.grabs += 1
        self._out.append(self._grab_packet)

    def _end(self, job: Assigned, *, keeps_slot: bool = False) -> None:
        left = self._running.pop(job.function) - 1
        if left:
            self._running[job.function] = left
        self._busy -= 1
        if not keeps_slot:
            self._slots.release(self)
        if not self._is_closed:
            self._go_on()

    def _go_on(self) -> None:
        self._tell_changes()
        self._grab()

    def _grab(self) -> None:
        """Ask for a job, or wait for a slot, if there is reason to."""
        if (
            self._is_grabbing
            or self._is_asleep
            or self._is_draining
            or self._is_closed
            or self._changed
            or not self._offered
        ):
            return
        if self._slots.reserve(self):
            self.slot_reserved()

    def _take_job(self, job: Assigned) -> Assigned | AssignedLate:
        self._running[job.function] = self._running.get(job.function, 0) + 1
        self._is_grabbing = False
        self._has_answered_grab = True
        if self._is_slot_lent:
            self._is_slot_lent = False
            # It goes on when this job has a slot: before that, it may ask for no other.
            return AssignedLate(job)
        self._busy += 1
        self._go_on()
        return job

    def _take_no_job(self) -> None:
        self._has_answered_grab = True
        is_slot_lent = self._is_slot_lent
        self._is_grabbing = self._is_slot_lent = False
        self._tell_changes()
        if not self._changed and self._offered and not self._is_draining:
            self._is_asleep = True
            self._out.append(_PRE_SLEEP)
        if not is_slot_lent:
            self._slots.release(self)

    def _end_grab(self) -> None:
        self._is_grabbing = False
        if self._is_slot_lent:
            self._is_slot_lent = False
        else:
            self._slots.release(self)

    def _tell_changes(self) -> None:
        """Send the changes that were held back, as far as they can be sent now."""
        # While a grab is open nothing of it can, and it may be many functions.
        if self._changed and not self._is_grabbing:
            for function in list(self._changed):
                self._tell(function)

    def _tell(self, function: bytes) -> None:
        """Send a change of a function, if that can be done now."""
        wanted, offered = self._wanted.get(function), self._offered.get(function)
        if offered is not None and (wanted != offered or function in self._returning):
            # With a grab under way a job of the function may be too, and would be taken back unseen.
            if self._is_grabbing or function in self._running:
                self._changed[function] = None
                self._slots.leave(self)
                return
            del self._offered[function]
            self._returning.discard(function)
            self._out.append(encode(REQ, PacketType.CANT_DO, function))
            offered = None
        if wanted is not None and offered is None:
            self._offered[function] = wanted
            self._out.append(_can_do(function, wanted))
        self._changed.pop(function, None)
        if not self._offered:
            self._slots.leave(self)

    def _take_error(self, code: bytes, text: bytes) -> list[Outcome]:
        if self._is_grabbing and not self._has_answered_grab and code not in _ERRORS_OF_JOBS:
            # No answer to a grab was ever seen here: this is one.
            if self._grab_packet is _GRAB:
                reason = f"the server refuses GRAB_JOB: {text.decode('utf-8', 'replace')}"
                return [Broken(RemoteProtocolError(reason))]
            self._grab_packet = _GRAB
            self._out.append(_GRAB)
            return [GrabRefused(text)]
        if code == ErrorCode.JOB_NOT_FOUND and self._expected_errors:
            self._expected_errors -= 1
            return []
        return [Refused(code, text)]

    def _send_with_data(self, type_: PacketType, handle: bytes, data: bytes) -> None:
        size = len(handle) + 1 + len(data)
        check_packet_size(type_, size)
        self.largest_bytes = max(self.largest_bytes, size)
        self._out.append(encode_head(REQ, type_, handle + b"\0", len(data)))
        self._out.append(data)


def check_progress(numerator: int, denominator: int) -> None:
    """Check the numbers of ``send_status``.

    Raises:
        LocalProtocolError: a number is negative or over 32 bits.
    """
    for number in (numerator, denominator):
        if not 0 <= number <= _MAX_STATUS_NUMBER:
            raise LocalProtocolError(
                f"progress is told in numbers from 0 to {_MAX_STATUS_NUMBER}, not {number!r}"
            )


def _can_do(function: bytes, timeout_ms: int) -> bytes:
    if timeout_ms:
        return encode(REQ, PacketType.CAN_DO_TIMEOUT, function, b"%d" % timeout_ms)
    return encode(REQ, PacketType.CAN_DO, function)


def _unexpected(type_: int, args: list[bytes]) -> str:
    if type_ in (PacketType.BAD_PACKET, PacketType.BAD_STREAM):
        return f"the server sent something that is no packet: {args[1].decode('utf-8', 'replace')}"
    return f"the server sent {Packet(type_, args)!r:.200}, which a worker did not ask for"
