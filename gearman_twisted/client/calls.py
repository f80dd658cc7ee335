"""What may be asked of job servers: the calls that a client of one and a pool of several have in common."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime

from gearman_twisted.client import asking
from gearman_twisted.client.course import Callbacks
from gearman_twisted.client.parallel import JobStream, Task
from gearman_twisted.client.requests import Request
from gearman_twisted.client.session import JobStatus
from gearman_twisted.errors import LocalProtocolError
from gearman_twisted.wire.constants import Priority


class ClientCalls(abc.ABC):
    """Whatever can submit jobs; see ``GearmanClient`` for what all of its calls share."""

    clock: IReactorTime

    @abc.abstractmethod
    def _perform(
        self, make_request: Callable[[], Request], callbacks: Callbacks, key: bytes, *, retry: bool
    ) -> Deferred[Any]:
        """Sends a request to a server, and fires with its outcome.

        Args:
            make_request: makes the request, anew for each time that it is sent; does not fail.
            callbacks: who else is told.
            key: requests of one key go to one server, as long as it is there; empty for any.
            retry: whether it may be sent again when it is not known whether the server had it.
        """

    def _ask(
        self,
        make_request: Callable[[], Request],
        callbacks: Callbacks | None = None,
        *,
        key: bytes = b"",
        retry: bool = False,
    ) -> Deferred[Any]:
        try:
            first: Request | None = make_request()
        except (TypeError, LocalProtocolError):
            return fail()

        def make() -> Request:
            nonlocal first
            request, first = first, None
            return make_request() if request is None else request

        return self._perform(make, callbacks or Callbacks(), key, retry=retry)

    def submit(
        self,
        function: str | bytes,
        workload: bytes = b"",
        *,
        unique: bytes = b"",
        priority: Priority = Priority.NORMAL,
        retry: bool = False,
        on_created: Callable[[bytes], object] | None = None,
        on_data: Callable[[bytes], object] | None = None,
        on_warning: Callable[[bytes], object] | None = None,
        on_status: Callable[[int, int], object] | None = None,
    ) -> Deferred[bytes]:
        """Runs a job and waits for its result.

        The callbacks are called as the packets come; what they return is not looked at. One that raises
        fails this Deferred with its exception, as if it had been cancelled otherwise.

        Args:
            function: the function's name, text as UTF-8; 1 to 8191 bytes without NUL.
            workload: what the function is given; any bytes.
            unique: 0 to 64 bytes without NUL. Jobs of a function with the same unique are one job.
            priority: whether it goes before or after other waiting jobs.
            retry: whether to submit it again when the connection is lost before its end. It may run twice.
            on_created: called with the job's handle once the server has taken the job.
            on_data: called with each part of the result that the worker sends ahead.
            on_warning: called with each warning; without it they are dropped.
            on_status: called with numerator and denominator of the worker's progress.

        Returns:
            A Deferred that fires with the result: the parts that were sent ahead, unless ``on_data`` took
            them, and what came with the end. Besides the errors that all calls share it fails with
            ``JobFailed`` or ``JobException``.
        """
        return self._ask(
            lambda: asking.submit(function, workload, unique, priority),
            Callbacks(on_created, on_data, on_warning, on_status),
            key=unique,
            retry=retry,
        )

    def submit_background(
        self,
        function: str | bytes,
        workload: bytes = b"",
        *,
        unique: bytes = b"",
        priority: Priority = Priority.NORMAL,
        retry: bool = False,
    ) -> Deferred[bytes]:
        """Hands a job to the server, which runs it whether or not this client stays.

        Args:
            function: see ``submit``; so are workload, unique and priority.
            workload: see ``submit``.
            unique: see ``submit``.
            priority: see ``submit``.
            retry: whether to submit it again when the connection is lost before the server has answered.
                Without a unique it may run twice then. A job that the server has taken is never submitted
                again.

        Returns:
            A Deferred that fires with the job's handle, once the server has taken it.
        """
        return self._ask(
            lambda: asking.submit(function, workload, unique, priority, background=True),
            key=unique,
            retry=retry,
        )

    def submit_at(
        self,
        function: str | bytes,
        workload: bytes,
        when: float | datetime,
        *,
        unique: bytes = b"",
        retry: bool = False,
    ) -> Deferred[bytes]:
        """Hands a background job of normal priority to the server, to be run at a time or later.

        gearmand 1.1.20 wakes no sleeping worker when the time comes; the job waits there for the next grab.

        Args:
            function: see ``submit``.
            workload: see ``submit``.
            when: seconds since 1970, or a datetime with a time zone. The protocol knows whole seconds;
                parts are rounded up. A time that has passed means at once.
            unique: see ``submit``.
            retry: see ``submit_background``.

        Returns:
            A Deferred that fires with the job's handle.
        """
        return self._ask(
            lambda: asking.submit_at(function, workload, unique, when),
            key=unique,
            retry=retry,
        )

    def submit_recurring(
        self, function: str | bytes, workload: bytes, schedule: str, *, unique: bytes, retry: bool = False
    ) -> Deferred[bytes]:
        """Has the server make a background job each time that a schedule says. gearmand knows nothing of it.

        Args:
            function: see ``submit``.
            workload: see ``submit``.
            schedule: minute, hour, day of month, month and day of week as in a crontab, but Monday is 0,
                in UTC.
            unique: see ``submit``. Another schedule or workload with the same unique takes the place of this
                one, and the same one changes nothing: an application may call this each time that it starts.
            retry: see ``submit_background``.

        Returns:
            A Deferred that fires with the handle of the recurring job.
        """
        return self._ask(
            lambda: asking.submit_recurring(function, workload, unique, schedule),
            key=unique,
            retry=retry,
        )

    def submit_reduce(
        self,
        function: str | bytes,
        workload: bytes,
        reducer: str | bytes,
        *,
        unique: bytes = b"",
        retry: bool = False,
        on_warning: Callable[[bytes], object] | None = None,
        on_status: Callable[[int, int], object] | None = None,
    ) -> Deferred[bytes]:
        """Runs a job whose worker splits it into parts, and another function for each part, on the server.

        Each ``send_data`` of the worker is a part. gearmand needs libgearman's partition workers for this.

        Args:
            function: the function that splits the workload.
            workload: see ``submit``.
            reducer: the function that is run for each part; at most 64 bytes.
            unique: see ``submit``; so are retry, on_warning and on_status.
            retry: see ``submit``.
            on_warning: see ``submit``.
            on_status: see ``submit``.

        Returns:
            A Deferred that fires with the results of the parts, joined in the order of the parts. It fails as
            that of ``submit`` does, if the splitting or a part fails.
        """
        return self._ask(
            lambda: asking.submit_reduce(function, workload, unique, reducer),
            Callbacks(None, None, on_warning, on_status),
            key=unique,
            retry=retry,
        )

    def submit_many(
        self,
        tasks: Iterable[Task],
        *,
        background: bool = False,
        outstanding: int = 100,
        retry: bool = False,
    ) -> JobStream:
        """Submits any number of jobs, a bounded number at a time.

        Args:
            tasks: what to submit; taken as results are taken, so it may be a generator without an end.
            background: whether to wait for handles only.
            outstanding: how many are on their way, or ended and not yet taken, at a time.
            retry: see ``submit`` and ``submit_background``.

        Returns:
            An asynchronous iterator of ``Outcome``s, in the order in which the jobs end.
        """
        submit = self.submit_background if background else self.submit
        return JobStream(
            lambda task: submit(
                task.function, task.workload, unique=task.unique, priority=task.priority, retry=retry
            ),
            tasks,
            outstanding,
        )

    def status(self, handle: bytes) -> Deferred[JobStatus]:
        """Asks how a job is doing; a job that ended is not known any more."""
        return self._ask(lambda: asking.status(handle))

    def status_by_unique(self, unique: bytes) -> Deferred[JobStatus]:
        """Asks how the job with a unique is doing, and how many clients wait for it."""
        return self._ask(lambda: asking.status_by_unique(unique))

    def echo(self, data: bytes) -> Deferred[bytes]:
        """Has the server send data back: whether it is there, and all before this call has reached it."""
        return self._ask(lambda: asking.echo(data))

    def ping(self) -> Deferred[float]:
        """Asks whether the server is there; fires with the seconds that its answer took."""
        start = self.clock.seconds()
        return self.echo(b"ping").addCallback(lambda _: self.clock.seconds() - start)

    def set_option(self, option: str | bytes) -> Deferred[bytes]:
        """Sets an option of this connection, until it is lost; fires with its name as the server took it."""
        return self._ask(lambda: asking.set_option(option))
