"""What becomes of a request, as its caller sees it: outcomes in, callbacks on the way, one end."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gearman_twisted.client.requests import Request
from gearman_twisted.client.session import (
    Answered,
    Broken,
    Completed,
    Created,
    Data,
    Failed,
    JobStatus,
    Outcome,
    Progressed,
    Raised,
    Refused,
    Warned,
)
from gearman_twisted.errors import GearmanError, JobException, JobFailed, ServerError


class Callbacks(NamedTuple):
    """Whom a call tells on the way; see ``GearmanClient.submit``."""

    on_created: Callable[[bytes], object] | None = None
    on_data: Callable[[bytes], object] | None = None
    on_warning: Callable[[bytes], object] | None = None
    on_status: Callable[[int, int], object] | None = None


class Ended(NamedTuple):
    """The end of a request.

    Attributes:
        value: what was asked for, unless there is an error.
        error: why it is not there.
    """

    value: JobStatus | bytes
    error: GearmanError | None = None


class Course:
    """A request from its sending to its end.

    Args:
        request: the request.
        callbacks: whom to tell on the way.
    """

    __slots__ = ("_chunks", "_on_created", "_on_data", "_on_status", "_on_warning", "request")

    def __init__(self, request: Request, callbacks: Callbacks) -> None:
        self.request = request
        self._on_created, self._on_data, self._on_warning, self._on_status = callbacks
        self._chunks: list[bytes] = []

    def take(self, outcome: Outcome) -> Ended | None:
        """Hears of an outcome; returns the end, if it is that.

        Raises:
            Exception: what a callback raised. It is the end too: nothing more is to be heard then.
        """
        if isinstance(outcome, Completed):
            return Ended(b"".join([*self._chunks, outcome.data]) if self._chunks else outcome.data)
        if isinstance(outcome, Created):
            if self._on_created is not None:
                self._on_created(outcome.handle)
            return None if self.request.is_followed else Ended(outcome.handle)
        if isinstance(outcome, Data):
            if self._on_data is None:
                self._chunks.append(outcome.data)
            else:
                self._on_data(outcome.data)
        elif isinstance(outcome, Progressed):
            if self._on_status is not None:
                self._on_status(outcome.numerator, outcome.denominator)
        elif isinstance(outcome, Warned):
            if self._on_warning is not None:
                self._on_warning(outcome.data)
        elif isinstance(outcome, Answered):
            return Ended(outcome.value)
        else:
            return Ended(b"", self._error(outcome))
        return None

    def _error(self, outcome: Failed | Raised | Refused | Broken) -> GearmanError:
        if isinstance(outcome, Broken):
            return outcome.reason
        if isinstance(outcome, Refused):
            return ServerError(
                outcome.code.decode("utf-8", "replace"), outcome.text.decode("utf-8", "replace")
            )
        function, handle = self.request.function, self.request.handle
        if isinstance(outcome, Raised):
            return JobException(outcome.data, function=function, handle=handle)
        return JobFailed("the job failed", function=function, handle=handle)
