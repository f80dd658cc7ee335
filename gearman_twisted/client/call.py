"""A request on its way, and how it ends for its caller: events in, callbacks on the way, one end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from gearman_twisted.client.requests import Request
from gearman_twisted.client.session import (
    Answered,
    Completed,
    Created,
    Data,
    Event,
    Progressed,
    Raised,
    Refused,
    Warned,
)
from gearman_twisted.errors import GearmanError, JobException, JobFailed, ServerError
from gearman_twisted.runtime.interfaces import Timer


class Callbacks(NamedTuple):
    """What is called while a job runs; see ``GearmanClient.submit``."""

    on_created: Callable[[bytes], object] | None = None
    on_data: Callable[[bytes], object] | None = None
    on_warning: Callable[[bytes], object] | None = None
    on_status: Callable[[int, int], object] | None = None

    def check(self) -> None:
        """Check that they can be called.

        Raises:
            TypeError: one cannot.
        """
        for name, callback in zip(self._fields, self, strict=True):
            if callback is not None and not callable(callback):
                raise TypeError(f"{name} takes a callable, not {type(callback).__name__}")


NO_CALLBACKS = Callbacks()


class Receiver(Protocol):
    """Is told how a call ends: a promise, or what stands in its place."""

    def succeed(self, value: Any) -> object:
        """Take the result."""

    def fail(self, error: Exception) -> object:
        """Take the error."""


class ReceiverOf(Receiver):
    """A receiver that calls a function with the result, or with the error.

    Args:
        ended: called with the result and None, or None and the error.
    """

    __slots__ = ("_ended",)

    def __init__(self, ended: Callable[[Any, Exception | None], object]) -> None:
        self._ended = ended

    def succeed(self, value: Any) -> None:
        self._ended(value, None)

    def fail(self, error: Exception) -> None:
        self._ended(None, error)


class Call:
    """A request, its callbacks, and its result.

    Args:
        request: the request.
        callbacks: what is called while the job runs.
        key: calls of one key go to one server of a pool; empty for any.
        renew: makes the same request again, if it may be sent again after a lost connection; else None.

    Attributes:
        request: the request.
        key: see above.
        receiver: told of the end, unless the call is cancelled before.
        recover: called with this call and its error; returns whether it goes on elsewhere.
        home: the server of a pool whose connection it waits for.
        timer: limits how long it waits to be sent.
    """

    __slots__ = (
        *("_chunks", "_holder", "_on_created", "_on_data", "_on_status", "_on_warning", "_renew"),
        *("home", "key", "receiver", "recover", "request", "timer"),
    )

    receiver: Receiver

    def __init__(
        self,
        request: Request,
        callbacks: Callbacks = NO_CALLBACKS,
        key: bytes = b"",
        renew: Callable[[], Request] | None = None,
    ) -> None:
        self.request = request
        self.key = key
        self.recover: Callable[[Call, Exception], bool] | None = None
        self.home: object = None
        self.timer: Timer | None = None
        self._on_created, self._on_data, self._on_warning, self._on_status = callbacks
        self._renew = renew
        self._chunks: list[bytes] | None = None
        self._holder = _NOWHERE

    @property
    def may_be_sent_again(self) -> bool:
        """Whether it may be sent again when it is not known whether the server had it."""
        return self._renew is not None

    @property
    def is_waiting(self) -> bool:
        """Whether it waits, to be sent or to end."""
        return self.request in self._holder

    def wait_in(self, holder: dict[Request, Call]) -> None:
        """Wait in a dictionary until it is sent, ended or cancelled; it takes itself out."""
        self._holder = holder
        holder[self.request] = self

    def leave(self) -> None:
        """Wait no longer where it waits."""
        self._holder.pop(self.request, None)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def renew(self) -> None:
        """Begin again with a new request, if this one was sent."""
        if not self.request.packet:
            assert self._renew is not None
            self.request = self._renew()
            self._chunks = None

    def take(self, event: Event) -> Exception | None:
        """Take an event of its request. If a callback raises, the call ends with its error.

        Returns:
            What a callback raised after it had cancelled its own call; nothing else reports it.
        """
        if isinstance(event, Completed):
            self._succeed(event.data if self._chunks is None else b"".join([*self._chunks, event.data]))
        elif isinstance(event, Created) and self._on_created is None:
            if not self.request.is_followed:
                self._succeed(event.handle)
        elif isinstance(event, Created | Data | Progressed | Warned):
            try:
                self._tell(event)
            except Exception as error:  # noqa: BLE001 - the caller's own callback; it fails the caller's own call
                self.request.is_abandoned = True
                if not self.is_waiting:
                    return error
                self._leave_receiver().fail(error)
        elif isinstance(event, Answered):
            self._succeed(event.value)
        else:
            self.fail(self._error(event))
        return None

    def fail(self, error: Exception) -> None:
        """End with an error, unless the call can go on elsewhere."""
        self.leave()
        if self.recover is None or not self.recover(self, error):
            self._leave_receiver().fail(error)

    def cancel(self) -> None:
        """End without telling the receiver. What was not sent is not sent. A no-op once it has ended."""
        # The reply is still expected, or it would be taken for that of another request.
        self.request.is_abandoned = True
        if self.is_waiting:
            self._leave_receiver()

    def _succeed(self, value: Any) -> None:
        self._leave_receiver().succeed(value)

    def _leave_receiver(self) -> Receiver:
        self.leave()
        # A promise and its call would keep each other alive until the garbage collector comes.
        receiver = self.receiver
        del self.receiver
        return receiver

    def _tell(self, event: Created | Data | Progressed | Warned) -> None:
        if isinstance(event, Data):
            if self._on_data is not None:
                self._on_data(event.data)
            elif self._chunks is None:
                self._chunks = [event.data]
            else:
                self._chunks.append(event.data)
        elif isinstance(event, Progressed):
            if self._on_status is not None:
                self._on_status(event.numerator, event.denominator)
        elif isinstance(event, Warned):
            if self._on_warning is not None:
                self._on_warning(event.data)
        elif self._on_created is not None:
            self._on_created(event.handle)

    def _error(self, event: Any) -> GearmanError:
        if isinstance(event, Refused):
            return ServerError(event.code.decode("utf-8", "replace"), event.text.decode("utf-8", "replace"))
        function, handle = self.request.function, self.request.handle
        if isinstance(event, Raised):
            return JobException(event.data, function=function, handle=handle)
        return JobFailed("the job failed", function=function, handle=handle)


# Where calls are that do not wait.
_NOWHERE: dict[Request, Call] = {}
