"""What a worker function is given: the job, and ways to tell of it before it is done."""

from __future__ import annotations

from collections.abc import Callable

from gearman_twisted.engine.worker import Assigned, WorkerSession


class Job:
    """A job that a worker has to do.

    Attributes:
        function: the name of the function that it is for.
        handle: the job's handle on its server.
        unique: what the client gave as its unique, or empty.
        workload: what the function is to work on; any bytes, may be empty.
    """

    __slots__ = ("_flush", "_session", "assigned", "function", "handle", "unique", "workload")

    def __init__(self, assigned: Assigned, session: WorkerSession, flush: Callable[[], None]) -> None:
        self.assigned = assigned
        self.handle, self.function, self.unique, self.workload = assigned
        self._session: WorkerSession | None = session
        self._flush = flush

    def __repr__(self) -> str:
        handle, function = self.handle.decode("utf-8", "replace"), self.function.decode("utf-8", "replace")
        return f"<Job {handle} for {function!r}, {len(self.workload)} bytes>"

    @property
    def is_connected(self) -> bool:
        """Whether the server can still hear of the job: it has not ended, and the connection is there."""
        return self._session is not None

    def send_data(self, data: bytes) -> None:
        """Sends a part of the result ahead. Ignored once the job has ended or its connection is lost.

        Raises:
            TypeError: it is not bytes.
        """
        if not isinstance(data, bytes):
            raise TypeError(f"send_data takes bytes, not {type(data).__name__}")
        if self._session is not None:
            self._session.send_data(self.handle, data)
            self._flush()

    def send_warning(self, data: bytes) -> None:
        """Sends a warning. Ignored once the job has ended or its connection is lost.

        Raises:
            TypeError: it is not bytes.
        """
        if not isinstance(data, bytes):
            raise TypeError(f"send_warning takes bytes, not {type(data).__name__}")
        if self._session is not None:
            self._session.send_warning(self.handle, data)
            self._flush()

    def send_status(self, numerator: int, denominator: int) -> None:
        """Says how far the job is. Ignored once the job has ended or its connection is lost.

        Raises:
            LocalProtocolError: a number is negative or over 32 bits.
        """
        if self._session is not None:
            self._session.send_status(self.handle, numerator, denominator)
            self._flush()

    def detach(self) -> None:
        """Called by the worker: nothing can be sent any more."""
        self._session = None
