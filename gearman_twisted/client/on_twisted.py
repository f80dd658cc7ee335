"""The client: submits jobs and hears of them, as Deferreds.

What a packet means is for ``client/session.py``, the connection and the calls on it for
``client/connection.py``; here is what users call, and when there is a connection at all.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from twisted.application.internet import ClientService, backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from gearman_twisted.client.calls import ClientCalls
from gearman_twisted.client.connection import Call, GearmanClientFactory, GearmanClientProtocol
from gearman_twisted.client.course import Callbacks
from gearman_twisted.client.requests import Request
from gearman_twisted.client.session import JobStatus
from gearman_twisted.errors import ConfigError, ConnectionLost, GearmanError, NoServers
from gearman_twisted.runtime.address import client_endpoint
from gearman_twisted.wire.constants import Priority
from gearman_twisted.wire.names import check_client_id, text_or_bytes

__all__ = ["GearmanClient", "GearmanClientFactory", "GearmanClientProtocol", "JobStatus", "Priority"]


class GearmanClient(Service, ClientCalls):
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
        ping_interval: seconds after which a server that has fallen silent without a word is given up; None
            to leave that to the system, which may take hours.

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
        ping_interval: float | None = 30.0,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        if ping_interval is not None and not 0.1 <= ping_interval <= 86_400:
            raise ConfigError(f"ping_interval takes 0.1 to 86400 seconds or None, not {ping_interval!r}")
        self.server_name = server if isinstance(server, str) else repr(server)
        self.ping_interval = ping_interval
        self.clock = reactor
        self._watchers: list[Callable[[GearmanClient], object]] = []
        self._client_id = (
            None if client_id is None else check_client_id(text_or_bytes(client_id, "client_id"))
        )
        self._exceptions = exceptions
        self._is_down = False
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
        self._is_down = False
        unsent, self._unsent = self._unsent, {}
        for call in unsent.values():
            protocol.send(call)
        self._tell_watchers()

    def connection_gone(self, protocol: GearmanClientProtocol) -> None:
        """Called by the protocol: it takes no more requests, and is about to be lost if it is not yet."""
        if self._protocol is protocol:
            self._protocol = None
            self._is_down = True
            self._tell_watchers()

    # What a pool of servers needs to know.

    @property
    def is_connected(self) -> bool:
        """Whether requests can be sent now."""
        return self._protocol is not None

    @property
    def is_down(self) -> bool:
        """Whether the last attempt to connect failed, or the connection was lost, and it is not back."""
        return self._is_down

    def watch(self, watcher: Callable[[GearmanClient], object]) -> None:
        """Has a callable told, with this client, whenever it has connected or lost its connection."""
        self._watchers.append(watcher)

    def hurry(self) -> None:
        """Connects now if it waits for the next attempt, or was not started."""
        if self._is_closed or self._protocol is not None:
            return
        if not self._connector.running:
            self._connector.startService()
        elif self._is_backing_off:
            # This makes ClientService forget its timer; it does not go on waiting when it is started.
            self._connector.stopService()
            self._connector.startService()

    def begin(self, request: Request, callbacks: Callbacks) -> Deferred[Any]:
        """Sends a request, once; see the class for how that ends."""
        call = Call(request, callbacks)
        # Asked for first: when the connection fails at once, the call is over before this returns.
        deferred = call.deferred
        if self._protocol is not None:
            self._protocol.send(call)
        elif self._is_closed:
            return fail(NoServers(f"the client of {self.server_name} is closed"))
        else:
            call.wait_in(self._unsent)
            # Whoever calls now is told now whether the server is there.
            self.hurry()
        return deferred

    def _tell_watchers(self) -> None:
        for watcher in self._watchers:
            watcher(self)

    def _perform(
        self, make_request: Callable[[], Request], callbacks: Callbacks, _key: bytes, *, retry: bool
    ) -> Deferred[Any]:
        if not retry:
            return self.begin(make_request(), callbacks)
        return Deferred.fromCoroutine(self._perform_again(make_request, callbacks))

    async def _perform_again(self, make_request: Callable[[], Request], callbacks: Callbacks) -> Any:
        while True:
            try:
                return await self.begin(make_request(), callbacks)
            except ConnectionLost:  # noqa: PERF203 - once per connection
                continue  # NoServers ends it if the server does not come back

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
        self._is_down = True
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
