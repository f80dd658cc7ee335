"""What a worker function is given: the job, and ways to report on it before it is done.

The function may run in the reactor's thread, in another one or in another process; a ``JobReports`` stands
between it and the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gearman_twisted.errors import JobException, JobFailed, ResultTooLarge
from gearman_twisted.wire.constants import LARGEST_PACKET_BYTES
from gearman_twisted.wire.shown import shown
from gearman_twisted.worker.session import Assigned, WorkerSession, check_progress

# The handle, of at most 63 bytes, and a NUL stand before the data in a packet of at most 4 GiB.
_HEAD_BYTES = 64
_MAX_DATA_BYTES = LARGEST_PACKET_BYTES - _HEAD_BYTES


class JobReports(Protocol):
    """Takes the reports of a job."""

    @property
    def is_open(self) -> bool:
        """Whether reports still reach the server."""

    def send_data(self, data: bytes) -> None:
        """Send a part of the result."""

    def send_warning(self, data: bytes) -> None:
        """Send a warning."""

    def send_status(self, numerator: int, denominator: int) -> None:
        """Send the progress."""


class Job:
    """A job for a worker function.

    Args:
        assigned: the job as the server assigned it.
        reports: takes its reports.
        attempt: see below.
        max_data_bytes: see below.

    Attributes:
        function: the name of the function that it is for.
        handle: the job's handle on its server.
        unique: what the client gave as its unique, or empty.
        workload: what the function is to work on; any bytes, may be empty.
        attempt: 1, and one more each time the function is called again because it asked for that with
            ``RetryLater`` and a delay. Attempts of other workers are not known.
        max_data_bytes: how much may be sent at a time, and be the result.
    """

    __slots__ = (
        "_reports",
        "assigned",
        "attempt",
        "function",
        "handle",
        "max_data_bytes",
        "unique",
        "workload",
    )

    def __init__(
        self,
        assigned: Assigned,
        reports: JobReports,
        *,
        attempt: int = 1,
        max_data_bytes: int = _MAX_DATA_BYTES,
    ) -> None:
        self.assigned = assigned
        self.handle, self.function, self.unique, self.workload = assigned
        self.attempt = attempt
        self.max_data_bytes = max_data_bytes
        self._reports = reports

    def __repr__(self) -> str:
        handle, function = shown(self.handle), shown(self.function)
        return f"<Job {handle} for {function!r}, {len(self.workload)} bytes>"

    @property
    def is_connected(self) -> bool:
        """Whether the job can still report to the server: it has not ended, and the connection is there."""
        return self._reports.is_open

    def send_data(self, data: bytes) -> None:
        """Send a part of the result ahead. A no-op once the job has ended or its connection is lost.

        Raises:
            TypeError: it is not bytes.
            ResultTooLarge: the server does not take so much; several smaller parts have no such limit.
        """
        self.check_data(data, "send_data takes bytes")
        if self._reports.is_open:
            self._reports.send_data(data)

    def send_warning(self, data: bytes) -> None:
        """Send a warning. A no-op once the job has ended or its connection is lost.

        Raises:
            TypeError: it is not bytes.
            ResultTooLarge: the server does not take so much.
        """
        self.check_data(data, "send_warning takes bytes")
        if self._reports.is_open:
            self._reports.send_warning(data)

    def send_status(self, numerator: int, denominator: int) -> None:
        """Send the progress. A no-op once the job has ended or its connection is lost.

        Raises:
            LocalProtocolError: a number is negative or over 32 bits.
        """
        check_progress(numerator, denominator)
        if self._reports.is_open:
            self._reports.send_status(numerator, denominator)

    def check_data(self, data: object, takes: str) -> bytes:
        """Return data that can be sent.

        Raises:
            TypeError: it is not bytes.
            ResultTooLarge: it is more than the server takes.
        """
        if not isinstance(data, bytes):
            raise TypeError(f"{takes}, not {type(data).__name__}")
        if len(data) > self.max_data_bytes:
            raise ResultTooLarge(
                f"{len(data)} bytes are more than the {self.max_data_bytes} that the server takes at a time"
            )
        return data

    def check_result(self, result: object) -> bytes:
        """Return the result of a function as bytes.

        Raises:
            TypeError: it is neither bytes nor None.
            ResultTooLarge: it is more than the server takes.
        """
        return self.check_data(b"" if result is None else result, "a worker function returns bytes or None")

    def with_reports(self, reports: JobReports) -> Job:
        """Return the same job with other reports."""
        return Job(self.assigned, reports, attempt=self.attempt, max_data_bytes=self.max_data_bytes)


def data_limit(max_packet_bytes: int) -> int:
    """Return how many bytes of data fit a packet of a size."""
    return min(max_packet_bytes - _HEAD_BYTES, _MAX_DATA_BYTES)


def exception_data(error: BaseException, max_data_bytes: int) -> bytes | None:
    """Return the data of an exception for the server; None if the job just failed."""
    if isinstance(error, JobFailed):
        return None
    if isinstance(error, JobException):
        if len(error.data) <= max_data_bytes:
            return error.data
        error = ResultTooLarge(f"an exception of {len(error.data)} bytes")
    text = f"{type(error).__name__}: {describe(error)}"
    return text.encode("utf-8", "backslashreplace")[:max_data_bytes]


def describe(error: BaseException) -> str:
    """Return the text of an error, whatever its class makes of that."""
    try:
        return str(error)
    except Exception as another:  # noqa: BLE001 - the text is the function's own affair
        return f"(no text: {type(another).__name__})"


class ThreadReports(JobReports):
    """Reports from another thread, handed to the thread of the event loop.

    Args:
        job: the job in the event loop.
        call: calls a function there, with arguments.
    """

    def __init__(self, job: Job, call: Callable[..., object]) -> None:
        self._job = job
        self._call = call

    @property
    def is_open(self) -> bool:
        return self._job.is_connected

    def send_data(self, data: bytes) -> None:
        self._call(self._job.send_data, data)

    def send_warning(self, data: bytes) -> None:
        self._call(self._job.send_warning, data)

    def send_status(self, numerator: int, denominator: int) -> None:
        self._call(self._job.send_status, numerator, denominator)


class SessionReports:
    """Reports that go to the connection that a job came from, until they are closed.

    Args:
        session: of that connection.
        handle: of the job.
        flush: sends what the session has to send.
    """

    __slots__ = ("_flush", "_handle", "_session", "is_open")

    def __init__(self, session: WorkerSession, handle: bytes, flush: Callable[[], None]) -> None:
        self._session = session
        self._handle = handle
        self._flush = flush
        self.is_open = True

    def send_data(self, data: bytes) -> None:
        """Send a part of the result."""
        if self.is_open:
            self._session.send_data(self._handle, data)
            self._flush()

    def send_warning(self, data: bytes) -> None:
        """Send a warning."""
        if self.is_open:
            self._session.send_warning(self._handle, data)
            self._flush()

    def send_status(self, numerator: int, denominator: int) -> None:
        """Send the progress."""
        if self.is_open:
            self._session.send_status(self._handle, numerator, denominator)
            self._flush()
