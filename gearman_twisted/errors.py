"""Every exception that this package raises on purpose, in one tree; any other that leaves it is a bug.

The first line of each docstring is a sentence fit for an operator. An error that is answered on the
wire carries its code there, the name that libgearman maps to a return code (PROTOCOL "ERROR").
"""

from __future__ import annotations

# Seven weeks: as long as a server's own limit for a job may be.
_MAX_DELAY = 4_000_000


class GearmanError(Exception):
    """Something went wrong in gearman_twisted."""


class ConfigError(GearmanError):
    """A setting or an option is invalid; the message says which one and what it takes."""


class ProtocolError(GearmanError):
    """The Gearman protocol was violated."""


class LocalProtocolError(ProtocolError):
    """We were about to send something that the protocol does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol does not allow."""


class ResultTooLarge(LocalProtocolError):
    """A worker's result, or a part of it, is larger than its server takes."""


class ServerError(GearmanError):
    """The job server refused a request.

    Attributes:
        code: the code on the wire, such as ``QUEUE_ERROR``.
        text: the server's explanation.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{text} ({code})")
        self.code = code
        self.text = text


class JobError(GearmanError):
    """A job did not end well.

    Attributes:
        function: the job's function; empty if the error is not about a certain job.
        handle: the job's handle; empty if the server had not assigned one yet.
    """

    def __init__(self, message: str, *, function: bytes = b"", handle: bytes = b"") -> None:
        job = "job" if function or handle else ""
        of = f" {handle.decode('utf-8', 'replace')}" if handle else ""
        for_ = f" for {function.decode('utf-8', 'replace')!r}" if function else ""
        super().__init__(f"{job}{of}{for_}: {message}" if job else message)
        self.function = function
        self.handle = handle


class JobFailed(JobError):
    """The worker, or the server on its behalf, reported that the job failed."""


class JobException(JobError):
    """The worker reported that the job failed, and why.

    Attributes:
        data: what the worker sent, any bytes.
    """

    def __init__(self, data: bytes, *, function: bytes = b"", handle: bytes = b"") -> None:
        super().__init__(data.decode("utf-8", "replace"), function=function, handle=handle)
        self.data = data


class JobTimeout(JobError):
    """The job was not finished within the time that was allowed."""


class ProcessDied(JobError):
    """The process that ran the job ended before the job did."""


class RetryLater(JobError):
    """Raised by a worker function to have its job retried.

    Attributes:
        delay: seconds until this worker calls the function again for the job; None returns the job to its
            server, for any worker.
    """

    def __init__(self, delay: float | None = None) -> None:
        if delay is not None and not 0 <= delay <= _MAX_DELAY:
            raise ConfigError(f"RetryLater takes seconds, 0 to {_MAX_DELAY}, or None, not {delay!r}")
        super().__init__("to be tried again" if delay is None else f"to be tried again in {delay:g} seconds")
        self.delay = delay


class ConnectionLost(JobError):
    """The connection to the job server was lost before the job's outcome was known."""


class NoServers(GearmanError):
    """No job server could be reached."""


class StoreError(GearmanError):
    """The job store failed."""


class StoreConfigError(StoreError):
    """The job store cannot be used as configured; the message says what to change."""


class StoreUnavailable(StoreError):
    """The job store cannot be used at the moment; the message says why."""


class StoreInUse(StoreUnavailable):
    """Another job server has the store open; the message says which one, as far as the store knows."""
