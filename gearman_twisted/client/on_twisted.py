"""The client on Twisted: every call returns a Deferred.

What calls do is written once for both event loops, in ``core.py`` and ``many.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from zope.interface import implementer

from gearman_twisted.client.balancing import Choice
from gearman_twisted.client.call import NO_CALLBACKS, Callbacks
from gearman_twisted.client.connection import ClientConnection, ConnectionSettings
from gearman_twisted.client.core import Calls, ClientCore, PoolCore, one_or_more
from gearman_twisted.client.many import JobStream, Task
from gearman_twisted.client.requests import (
    Request,
    echo_request,
    option_request,
    recurring_request,
    reduce_request,
    scheduled_request,
    status_request,
    submit_request,
    unique_status_request,
)
from gearman_twisted.client.session import JobStatus
from gearman_twisted.runtime.address import peer_name
from gearman_twisted.runtime.on_twisted import (
    EndpointPlace,
    PeerProtocol,
    TwistedRuntime,
    default_retry_policy,
)
from gearman_twisted.wire.constants import DEFAULT_PACKET_BYTES, Priority

if TYPE_CHECKING:
    from typing_extensions import Self


class ClientCalls:
    """The calls that a client of one server, a pool of several, and a single connection have in common.

    Every call returns a Deferred, and all errors come through it, those of wrong arguments too
    (``TypeError``, ``LocalProtocolError``; nothing is sent then). It fails with ``NoServers`` when the server
    cannot be reached, ``ConnectionLost`` when the connection is lost before the answer is there (a submitted
    job may still run), ``ServerError`` when the server refuses, and ``RemoteProtocolError`` when what it
    sends makes no sense.

    Cancelling it, directly or by ``addTimeout``, discards its result: what was not sent is not
    sent; a job that was submitted may still run, as the protocol has no way to take it back, and its result
    is dropped.
    """

    _calls: Calls

    def _ask(
        self,
        make_request: Callable[[], Request],
        callbacks: Callbacks = NO_CALLBACKS,
        *,
        key: bytes = b"",
        retry: bool = False,
    ) -> Deferred[Any]:
        return cast("Deferred[Any]", self._calls.ask(make_request, callbacks, key=key, retry=retry))

    def submit(
        self,
        function: str | bytes,
        workload: bytes = b"",
        *,
        unique: bytes = b"",
        priority: Priority | str = Priority.NORMAL,
        retry: bool = False,
        on_created: Callable[[bytes], object] | None = None,
        on_data: Callable[[bytes], object] | None = None,
        on_warning: Callable[[bytes], object] | None = None,
        on_status: Callable[[int, int], object] | None = None,
    ) -> Deferred[bytes]:
        """Run a job and wait for its result.

        The callbacks are called as the packets come; what they return is ignored. One that raises fails this
        Deferred with its exception; the job is then treated as if the call had been cancelled.

        Args:
            function: the function's name, text as UTF-8; 1 to 8191 bytes without NUL.
            workload: what the function is given; any bytes.
            unique: 0 to 64 bytes without NUL. Jobs of a function with the same unique are one job.
            priority: high, normal or low, among the queued jobs; also by name, such as ``"high"``.
            retry: whether to submit it again when the connection is lost before its end. It may run twice. A
                ``GearmanClientProtocol`` has no other connection, and ignores it.
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
            partial(submit_request, function, workload, unique, priority),
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
        priority: Priority | str = Priority.NORMAL,
        retry: bool = False,
    ) -> Deferred[bytes]:
        """Hand a job to the server, which runs it whether or not this client stays.

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
            partial(submit_request, function, workload, unique, priority, background=True),
            key=unique,
            retry=retry,
        )

    def submit_at(
        self,
        function: str | bytes,
        workload: bytes,
        when: float | datetime | timedelta,
        *,
        unique: bytes = b"",
        retry: bool = False,
    ) -> Deferred[bytes]:
        """Hand a background job of normal priority to the server, to be run at a time or later.

        gearmand 1.1.20 wakes no sleeping worker when the time comes; the job waits there for the next grab.

        Args:
            function: see ``submit``.
            workload: see ``submit``.
            when: seconds since 1970, a datetime with a time zone, or a timedelta from now. The protocol knows
                whole seconds; parts are rounded up. A time that has passed means at once.
            unique: see ``submit``.
            retry: see ``submit_background``.

        Returns:
            A Deferred that fires with the job's handle.
        """
        return self._ask(
            lambda: scheduled_request(function, workload, unique, self._calls.seconds(when)),
            key=unique,
            retry=retry,
        )

    def submit_recurring(
        self, function: str | bytes, workload: bytes, schedule: str, *, unique: bytes, retry: bool = False
    ) -> Deferred[bytes]:
        """Have the server make a background job at the times of a schedule. gearmand does not know this.

        Args:
            function: see ``submit``.
            workload: see ``submit``.
            schedule: minute, hour, day of month, month and day of week as in a crontab, such as
                ``30 6 * * MON-FRI``, in UTC.
            unique: see ``submit``. Another schedule or workload with the same unique takes the place of this
                one, and the same one changes nothing: an application may call this each time that it starts.
            retry: see ``submit_background``.

        Returns:
            A Deferred that fires with the handle of the recurring job.
        """
        return self._ask(
            lambda: recurring_request(function, workload, unique, schedule), key=unique, retry=retry
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
        """Run a job whose worker splits it into parts, and another function for each part, on the server.

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
            lambda: reduce_request(function, workload, unique, reducer),
            Callbacks(None, None, on_warning, on_status),
            key=unique,
            retry=retry,
        )

    def submit_many(
        self, tasks: Iterable[Task], *, background: bool = False, outstanding: int = 100, retry: bool = False
    ) -> JobStream:
        """Submit any number of jobs, a bounded number at a time.

        Args:
            tasks: what to submit; taken as results are taken, so it may be a generator without an end.
            background: whether to wait for handles only.
            outstanding: how many are on their way, or ended and not yet taken, at a time.
            retry: see ``submit`` and ``submit_background``.

        Returns:
            An asynchronous iterator of ``Outcome``s, in the order in which the jobs end.
        """
        return self._calls.submit_many(tasks, background=background, outstanding=outstanding, retry=retry)

    def status(self, handle: bytes) -> Deferred[JobStatus]:
        """Ask for the state of a job; one that has ended is not known any more."""
        return self._ask(lambda: status_request(handle))

    def status_by_unique(self, unique: bytes) -> Deferred[JobStatus]:
        """Ask for the state of the job with a unique, and how many clients wait for it."""
        return self._ask(lambda: unique_status_request(unique))

    def echo(self, data: bytes) -> Deferred[bytes]:
        """Have the server send data back: it is there, and everything before this call has reached it."""
        return self._ask(lambda: echo_request(data))

    def ping(self) -> Deferred[float]:
        """Ask whether the server is there; fires with the seconds that its answer took."""
        return cast("Deferred[float]", self._calls.ping())

    def set_option(self, option: str | bytes) -> Deferred[bytes]:
        """Set an option of this connection, until it is lost; fires with its name as the server took it."""
        return self._ask(lambda: option_request(option))


class GearmanClientProtocol(PeerProtocol, ClientCalls):
    """A connection to a job server, with the calls of ``GearmanClient``; made by ``GearmanClientFactory``.

    When the connection is lost its calls fail with ``ConnectionLost``, and so do later ones. It can be closed
    with ``transport.loseConnection()``.
    """

    def __init__(self, runtime: TwistedRuntime, settings: ConnectionSettings) -> None:
        self._connection = ClientConnection(runtime, settings, "a server", runtime.log("client"))
        super().__init__(self._connection)
        self._calls = Calls(runtime, self._connection)

    def connectionMade(self) -> None:
        self._connection.server_name = peer_name(self.transport.getPeer())
        super().connectionMade()


@implementer(IProtocolFactory)
class GearmanClientFactory(Factory):
    """Makes connections to job servers, for any endpoint, or for a ``ClientService``.

    ``protocol = await endpoint.connect(GearmanClientFactory())`` gives a ``GearmanClientProtocol`` that takes
    calls at once. ``GearmanClient`` is what connects by itself.

    Args:
        client_id: the name that the server's command ``workers`` shows for these connections.
        exceptions: whether to ask for the exceptions of workers; without, they come as ``JobFailed``.
        ping_interval: seconds after which a silent server is given up; None to leave that to the system,
            which may take hours.
        max_packet_bytes: the largest packet that the server takes: calls with larger ones fail with
            ``LocalProtocolError``, and a server that announces more is given up.
        reactor: the reactor, for the time; the global one if None.

    Raises:
        ConfigError: the interval makes no sense.
        LocalProtocolError: the client id cannot be sent.
    """

    noisy = False

    def __init__(
        self,
        *,
        client_id: str | bytes | None = None,
        exceptions: bool = True,
        ping_interval: float | None = 30.0,
        max_packet_bytes: int = DEFAULT_PACKET_BYTES,
        reactor: Any = None,
    ) -> None:
        self._settings = ConnectionSettings.of(client_id, exceptions, ping_interval, max_packet_bytes)
        self._runtime = runtime_of(reactor)

    def buildProtocol(self, addr: IAddress | None) -> GearmanClientProtocol:
        protocol = GearmanClientProtocol(self._runtime, self._settings)
        protocol.factory = self
        return protocol


class ServiceCalls(Service, ClientCalls):
    """What a client of one server and a pool have in common: they are services, opened and closed."""

    _runtime: TwistedRuntime
    _core: ClientCore | PoolCore

    def close(self) -> Deferred[None]:
        """Disconnect; all that waits fails. Fires when that is done, and never fails.

        Calls are refused from then on, until it is started as a service, or entered with ``async with``.
        """
        return self._runtime.start(self._core.close())

    async def __aenter__(self) -> Self:
        self._core.open()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def startService(self) -> None:
        """Connect, without waiting for the first call."""
        super().startService()  # type: ignore[no-untyped-call]
        self._core.open()
        self._core.hurry()

    def stopService(self) -> Deferred[None]:
        """Disconnect; see ``close``."""
        if self.running:
            super().stopService()  # type: ignore[no-untyped-call]
        return self.close()


class GearmanClient(ServiceCalls):
    """A client of one job server.

    It connects when it is first used, or as a service when it is started, and again whenever the
    connection is lost, until it is closed. All its requests share one connection and go out in the
    order of the calls; any number may wait at once.

    Args:
        server: ``host``, ``host:port``, ``[IPv6]:port``, the string of a Twisted client endpoint, or an
            ``IStreamClientEndpoint``.
        reactor: the reactor to connect with; the global one if None.
        client_id: the name that the server's command ``workers`` shows for this connection.
        exceptions: whether to ask for the exceptions of workers; without, they come as ``JobFailed``.
        retry_policy: seconds to wait before connection attempt number n, as ``ClientService`` takes it. A
            call does not wait for that: it tries at once.
        ping_interval: seconds after which a silent server is given up; None to leave that to the system,
            which may take hours. A server that has never answered a ping is not given up for that.
        max_packet_bytes: the largest packet that the server takes: calls with larger ones fail with
            ``LocalProtocolError``, and a server that announces more is given up.

    Raises:
        ConfigError: the server's address, or a setting, makes no sense.
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
        max_packet_bytes: int = DEFAULT_PACKET_BYTES,
    ) -> None:
        runtime = self._runtime = runtime_of(reactor)
        self._core: ClientCore = ClientCore(
            runtime,
            EndpointPlace.of(runtime.reactor, server),
            ConnectionSettings.of(client_id, exceptions, ping_interval, max_packet_bytes),
            default_retry_policy() if retry_policy is None else retry_policy,
        )
        self._calls = Calls(runtime, self._core)

    @property
    def server_name(self) -> str:
        """The server's address, for logs and errors."""
        return self._core.name

    @property
    def is_connected(self) -> bool:
        """Whether requests can be sent now."""
        return self._core.is_ready


class ServerPool(ServiceCalls):
    """A client of several job servers, with the calls of ``GearmanClient``.

    A server that cannot be reached is passed over and taken back when it is there again; it is looked for
    with growing pauses that differ a little from client to client. One that was given up for its silence is
    taken back when it has answered something. A call that finds no server waits for ``patience`` seconds,
    then fails with ``NoServers``.

    A request whose connection is lost before its answer fails with ``ConnectionLost``, unless it was
    submitted with ``retry=True``: then it goes to the next server. A background job that a server has taken
    is never submitted again. A status is asked of all servers that are there.

    It connects to all of them when it is first used, or as a service when it is started.

    Args:
        servers: at least one, each as ``GearmanClient`` takes it.
        choice: which server gets a request.
        patience: seconds that a call waits for any server.
        reactor: the reactor to connect with; the global one if None.
        client_id: see ``GearmanClient``; so is what follows.
        exceptions: see ``GearmanClient``.
        retry_policy: see ``GearmanClient``.
        ping_interval: see ``GearmanClient``.
        max_packet_bytes: see ``GearmanClient``.

    Raises:
        ConfigError: there is no server, one is given twice, or a setting makes no sense.
        LocalProtocolError: the client id cannot be sent.
    """

    def __init__(
        self,
        servers: Iterable[str | IStreamClientEndpoint] | str | IStreamClientEndpoint,
        *,
        choice: Choice | str = Choice.HASH,
        patience: float = 10.0,
        reactor: Any = None,
        client_id: str | bytes | None = None,
        exceptions: bool = True,
        retry_policy: Callable[[int], float] | None = None,
        ping_interval: float | None = 30.0,
        max_packet_bytes: int = DEFAULT_PACKET_BYTES,
    ) -> None:
        runtime = self._runtime = runtime_of(reactor)
        self._core: PoolCore = PoolCore(
            runtime,
            [EndpointPlace.of(runtime.reactor, server) for server in one_or_more(servers)],
            ConnectionSettings.of(client_id, exceptions, ping_interval, max_packet_bytes),
            default_retry_policy() if retry_policy is None else retry_policy,
            choice=choice,
            patience=patience,
        )
        self._calls = Calls(runtime, self._core)

    @property
    def connected(self) -> list[str]:
        """The names of the servers that are connected."""
        return self._core.connected

    def status(self, handle: bytes) -> Deferred[JobStatus]:
        """Ask all servers for the state of a job; one that has ended is known to none of them."""
        return self._runtime.start(self._core.status(lambda: status_request(handle)))

    def status_by_unique(self, unique: bytes) -> Deferred[JobStatus]:
        """Ask all servers for the state of the job with a unique, and how many clients wait for it."""
        return self._runtime.start(self._core.status(lambda: unique_status_request(unique)))

    def set_option(self, option: str | bytes) -> Deferred[bytes]:
        """Set an option of the connections that are there, until they are lost; see ``GearmanClient``."""
        return self._runtime.start(self._core.set_option(lambda: option_request(option)))


def runtime_of(reactor: Any) -> TwistedRuntime:
    """Return the runtime of a reactor, that of the global one for None."""
    if reactor is None:
        from twisted.internet import reactor
    return TwistedRuntime(reactor)
