"""The client: submits jobs and hears of them, as Deferreds.

What a packet means is for ``engine/client.py``, the connection and the calls on it for
``client_protocol.py``; here is what users call, and when there is a connection at all.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Any

from twisted.application.internet import ClientService, backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from gearman_twisted.address import client_endpoint
from gearman_twisted.client_protocol import Call, GearmanClientFactory, GearmanClientProtocol
from gearman_twisted.engine.client import JobStatus
from gearman_twisted.engine.requests import (
    Request,
    check_client_id,
    echo_request,
    option_request,
    status_request,
    submit_request,
    unique_status_request,
)
from gearman_twisted.errors import GearmanError, LocalProtocolError, NoServers
from gearman_twisted.wire.constants import Priority

__all__ = ["GearmanClient", "GearmanClientFactory", "GearmanClientProtocol", "JobStatus", "Priority"]


class GearmanClient(Service):
    """A client of one job server.

    It connects when it is first used, or as a service when it is started, and again whenever the
    connection is lost, until it is closed. All its requests share one connection and go out in the
    order of the calls; any number may wait at once.

    Every method but ``close`` and those of a service returns a Deferred, and all errors come through
    it, those of wrong arguments too (``TypeError``, ``LocalProtocolError``; nothing is sent then). It fails
    with ``NoServers`` when the server cannot be reached, ``ConnectionLost`` when the connection is lost
    before the answer is there (a submitted job may still run), ``ServerError`` when the server refuses,
    and ``RemoteProtocolError`` when what it sends makes no sense. Cancelling it, directly or by
    ``addTimeout``, means that nobody listens any more: what was not sent is not sent; a job that was
    submitted may still run, as the protocol has no way to take it back, and its result is dropped.

    Args:
        server: ``host``, ``host:port``, ``[IPv6]:port``, the string of a Twisted client endpoint, or an
            ``IStreamClientEndpoint``.
        reactor: the reactor to connect with; the global one if None.
        client_id: the name that the server's command ``workers`` shows for this connection.
        exceptions: whether to ask for the exceptions of workers; without, they come as ``JobFailed``.
        retry_policy: seconds to wait before connection attempt number n, as ``ClientService`` takes it. A
            call does not wait for that: it tries at once.

    Raises:
        ConfigError: the server's address makes no sense.
        LocalProtocolError: the client id cannot be sent.
    """

    def __init__(
        self,
        server: str | IStreamClientEndpoint = "127.0.0.1:4730",
        *,
        reactor: Any = None,
        client_id: str | bytes | None = None,
        exceptions: bool = True,
        retry_policy: Callable[[int], float] | None = None,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self.server_name = server if isinstance(server, str) else repr(server)
        self._client_id = (
            None if client_id is None else check_client_id(_text_or_bytes(client_id, "client_id"))
        )
        self._exceptions = exceptions
        self._retry_policy = retry_policy or backoffPolicy(initialDelay=0.2, maxDelay=15.0)
        self._protocol: GearmanClientProtocol | None = None
        self._unsent: dict[Request, Call] = {}
        self._is_backing_off = False
        self._is_closed = False
        self._connector = ClientService(
            _WatchedEndpoint(client_endpoint(reactor, server), self._attempt_begins, self._attempt_failed),
            GearmanClientFactory(self),
            retryPolicy=self._retry_delay,
            clock=reactor,
            prepareConnection=self._prepare,
        )

    def submit(
        self,
        function: str | bytes,
        workload: bytes = b"",
        *,
        unique: bytes = b"",
        priority: Priority = Priority.NORMAL,
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
            lambda: submit_request(
                _text_or_bytes(function, "function"),
                _bytes(workload, "workload"),
                _bytes(unique, "unique"),
                priority,
            ),
            on_created,
            on_data,
            on_warning,
            on_status,
        )

    def submit_background(
        self,
        function: str | bytes,
        workload: bytes = b"",
        *,
        unique: bytes = b"",
        priority: Priority = Priority.NORMAL,
    ) -> Deferred[bytes]:
        """Hands a job to the server, which runs it whether or not this client stays.

        Returns:
            A Deferred that fires with the job's handle, once the server has taken it.
        """
        return self._ask(
            lambda: submit_request(
                _text_or_bytes(function, "function"),
                _bytes(workload, "workload"),
                _bytes(unique, "unique"),
                priority,
                background=True,
            )
        )

    def submit_at(
        self,
        function: str | bytes,
        workload: bytes,
        when: float | datetime,
        *,
        unique: bytes = b"",
    ) -> Deferred[bytes]:
        """Hands a background job of normal priority to the server, to be run at a time or later.

        gearmand 1.1.20 wakes no sleeping worker when the time comes; the job waits there for the next grab.

        Args:
            function: see ``submit``.
            workload: see ``submit``.
            when: seconds since 1970, or a datetime with a time zone. The protocol knows whole seconds;
                parts are rounded up. A time that has passed means at once.
            unique: see ``submit``.

        Returns:
            A Deferred that fires with the job's handle.
        """
        return self._ask(
            lambda: submit_request(
                _text_or_bytes(function, "function"),
                _bytes(workload, "workload"),
                _bytes(unique, "unique"),
                run_at=_seconds(when),
            )
        )

    def status(self, handle: bytes) -> Deferred[JobStatus]:
        """Asks how a job is doing; a job that ended is not known any more."""
        return self._ask(lambda: status_request(_bytes(handle, "handle")))

    def status_by_unique(self, unique: bytes) -> Deferred[JobStatus]:
        """Asks how the job with a unique is doing, and how many clients wait for it."""
        return self._ask(lambda: unique_status_request(_bytes(unique, "unique")))

    def echo(self, data: bytes) -> Deferred[bytes]:
        """Has the server send data back: whether it is there, and all before this call has reached it."""
        return self._ask(lambda: echo_request(_bytes(data, "data")))

    def set_option(self, option: str | bytes) -> Deferred[bytes]:
        """Sets an option of this connection, until it is lost; fires with its name as the server took it."""
        return self._ask(lambda: option_request(_text_or_bytes(option, "option")))

    def close(self) -> Deferred[None]:
        """Disconnects; all that waits fails. Fires when the connection is closed, and never fails.

        A closed client refuses calls until it is started as a service.
        """
        return self.stopService()

    async def __aenter__(self) -> GearmanClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def startService(self) -> None:
        """Connects, without waiting for the first call."""
        super().startService()  # type: ignore[no-untyped-call]
        self._is_closed = False
        if not self._connector.running:
            self._connector.startService()

    def stopService(self) -> Deferred[None]:
        """Disconnects; see ``close``."""
        if self.running:
            super().stopService()  # type: ignore[no-untyped-call]
        self._is_closed = True
        self._fail_unsent(lambda: NoServers(f"the client of {self.server_name} was closed"))
        return self._connector.stopService() if self._connector.running else succeed(None)

    def connection_ready(self, protocol: GearmanClientProtocol) -> None:
        """Called by the protocol: it takes requests."""
        self._protocol = protocol
        unsent, self._unsent = self._unsent, {}
        for call in unsent.values():
            protocol.send(call)

    def connection_gone(self, protocol: GearmanClientProtocol) -> None:
        """Called by the protocol: it takes no more requests, and is about to be lost if it is not yet."""
        if self._protocol is protocol:
            self._protocol = None

    def _ask(
        self,
        make_request: Callable[[], Request],
        on_created: Callable[[bytes], object] | None = None,
        on_data: Callable[[bytes], object] | None = None,
        on_warning: Callable[[bytes], object] | None = None,
        on_status: Callable[[int, int], object] | None = None,
    ) -> Deferred[Any]:
        try:
            request = make_request()
        except (TypeError, LocalProtocolError):
            return fail()
        return self._begin(Call(request, on_created, on_data, on_warning, on_status))

    def _begin(self, call: Call) -> Deferred[Any]:
        # Asked for first: when the connection fails at once, the call is over before this returns.
        deferred = call.deferred
        if self._protocol is not None:
            self._protocol.send(call)
        elif self._is_closed:
            return fail(NoServers(f"the client of {self.server_name} is closed"))
        else:
            call.wait_in(self._unsent)
            if not self._connector.running:
                self._connector.startService()
            elif self._is_backing_off:
                # Whoever calls now is told now whether the server is there. This makes ClientService
                # forget its timer; it does not go on waiting when it is started.
                self._connector.stopService()
                self._connector.startService()
        return deferred

    def _prepare(self, protocol: Any) -> None:
        """Runs for each new connection. Returns no Deferred: ClientService cannot bear a loss meanwhile."""
        protocol.introduce(self._client_id, self._exceptions)

    def _retry_delay(self, attempt: int) -> float:
        """The policy for ClientService, which asks just when it begins to wait for the next attempt."""
        self._is_backing_off = True
        return 0.0 if self._unsent else self._retry_policy(attempt)

    def _attempt_begins(self) -> None:
        self._is_backing_off = False

    def _attempt_failed(self, failure: Failure) -> None:
        text = failure.getErrorMessage() or type(failure.value).__name__
        self._fail_unsent(lambda: NoServers(f"cannot connect to {self.server_name}: {text}"))

    def _fail_unsent(self, make_error: Callable[[], GearmanError]) -> None:
        # What the errbacks call now belongs to the next attempt; those they cancel are left out.
        for call in list(self._unsent.values()):
            if call.request in self._unsent:
                call.fail(make_error())


@implementer(IStreamClientEndpoint)
class _WatchedEndpoint:
    """An endpoint whose attempts are told of; ``ClientService`` does not say when one begins or fails."""

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        begins: Callable[[], None],
        failed: Callable[[Failure], None],
    ) -> None:
        self._endpoint = endpoint
        self._begins = begins
        self._failed = failed

    def __repr__(self) -> str:
        return repr(self._endpoint)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:  # noqa: N803 - IStreamClientEndpoint
        """Connects."""
        self._begins()
        return self._endpoint.connect(protocolFactory).addErrback(self._pass_on)

    def _pass_on(self, failure: Failure) -> Failure:
        self._failed(failure)
        return failure


def _text_or_bytes(value: object, name: str) -> bytes:
    return value.encode() if isinstance(value, str) else _bytes(value, name)


def _bytes(value: object, name: str) -> bytes:
    if not isinstance(value, bytes):
        hint = "; encode it first" if isinstance(value, str) else ""
        raise TypeError(f"{name} takes bytes, not {type(value).__name__}{hint}")
    return value


def _seconds(when: float | datetime) -> float:
    if isinstance(when, datetime):
        if when.tzinfo is None:
            raise LocalProtocolError(f"when takes a datetime with a time zone, not {when!r}")
        return when.timestamp()
    try:
        return float(when)
    except (ValueError, OverflowError) as error:
        raise LocalProtocolError(f"when takes seconds since 1970 or a datetime, not {when!r}") from error
