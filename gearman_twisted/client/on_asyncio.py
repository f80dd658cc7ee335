"""The client in asyncio: every call is a coroutine. Imports no Twisted.

What calls do is written once for both event loops, in ``core.py``, ``many.py`` and ``admin.py``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from functools import partial
from ssl import SSLContext
from typing import TYPE_CHECKING

from gearman_twisted.client.balancing import Choice
from gearman_twisted.client.call import NO_CALLBACKS, Callbacks
from gearman_twisted.client.connection import ConnectionSettings
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
from gearman_twisted.runtime.interfaces import Place
from gearman_twisted.runtime.on_asyncio import AddressPlace, AsyncioRuntime, default_retry_policy
from gearman_twisted.wire.constants import DEFAULT_PACKET_BYTES, Priority

if TYPE_CHECKING:
    from typing_extensions import Self


class ClientCalls:
    """The calls that a client of one server and a pool of several have in common.

    They are those of ``gearman_twisted.GearmanClient``, as coroutines; the details of arguments, results and
    errors are in the documentation there.

    A call that is cancelled, by ``asyncio.wait_for`` or otherwise, is one to which nobody listens any more:
    what was not sent is not sent; a job that was submitted may still run, and its result is dropped. Other
    calls are not touched by that.
    """

    _calls: Calls
    _core: ClientCore | PoolCore
    _runtime: AsyncioRuntime

    def _ask(
        self,
        make_request: Callable[[], Request],
        callbacks: Callbacks = NO_CALLBACKS,
        *,
        key: bytes = b"",
        retry: bool = False,
    ) -> Awaitable[bytes]:
        return self._calls.ask(make_request, callbacks, key=key, retry=retry)

    def _ask_status(self, make_request: Callable[[], Request]) -> Awaitable[JobStatus]:
        return self._calls.ask(make_request)

    async def submit(
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
    ) -> bytes:
        """Run a job and return its result.

        The callbacks are called as the packets come. One that raises ends this call with its exception.

        Raises:
            JobFailed: the job failed.
            JobException: the job failed, and its worker says why.
            ServerError: the server refused it.
            ConnectionLost: the connection was lost before the end; the job may still run.
            NoServers: the server cannot be reached.
        """
        return await self._ask(
            partial(submit_request, function, workload, unique, priority),
            Callbacks(on_created, on_data, on_warning, on_status),
            key=unique,
            retry=retry,
        )

    async def submit_background(
        self,
        function: str | bytes,
        workload: bytes = b"",
        *,
        unique: bytes = b"",
        priority: Priority | str = Priority.NORMAL,
        retry: bool = False,
    ) -> bytes:
        """Hand a job to the server, which runs it whether or not this client stays; return its handle."""
        return await self._ask(
            partial(submit_request, function, workload, unique, priority, background=True),
            key=unique,
            retry=retry,
        )

    async def submit_at(
        self,
        function: str | bytes,
        workload: bytes,
        when: float | datetime | timedelta,
        *,
        unique: bytes = b"",
        retry: bool = False,
    ) -> bytes:
        """Hand a background job to the server, to be run at a time or later; return its handle.

        ``when`` is seconds since 1970, a datetime with a time zone, or a timedelta from now.
        """
        return await self._ask(
            lambda: scheduled_request(function, workload, unique, self._calls.seconds(when)),
            key=unique,
            retry=retry,
        )

    async def submit_recurring(
        self, function: str | bytes, workload: bytes, schedule: str, *, unique: bytes, retry: bool = False
    ) -> bytes:
        """Have the server make a background job at the times of a schedule; return a handle."""
        return await self._ask(
            lambda: recurring_request(function, workload, unique, schedule), key=unique, retry=retry
        )

    async def submit_reduce(
        self,
        function: str | bytes,
        workload: bytes,
        reducer: str | bytes,
        *,
        unique: bytes = b"",
        retry: bool = False,
        on_warning: Callable[[bytes], object] | None = None,
        on_status: Callable[[int, int], object] | None = None,
    ) -> bytes:
        """Run a job whose worker splits it, and another function for each part; return what they made."""
        return await self._ask(
            lambda: reduce_request(function, workload, unique, reducer),
            Callbacks(None, None, on_warning, on_status),
            key=unique,
            retry=retry,
        )

    def submit_many(
        self, tasks: Iterable[Task], *, background: bool = False, outstanding: int = 100, retry: bool = False
    ) -> JobStream:
        """Submit any number of jobs, a bounded number at a time; iterate over it with ``async for``."""
        return self._calls.submit_many(tasks, background=background, outstanding=outstanding, retry=retry)

    async def status(self, handle: bytes) -> JobStatus:
        """Return the state of a job; one that has ended is not known any more."""
        return await self._ask_status(lambda: status_request(handle))

    async def status_by_unique(self, unique: bytes) -> JobStatus:
        """Return the state of the job with a unique, and how many clients wait for it."""
        return await self._ask_status(lambda: unique_status_request(unique))

    async def echo(self, data: bytes) -> bytes:
        """Have the server send data back."""
        return await self._ask(lambda: echo_request(data))

    async def ping(self) -> float:
        """Ask whether the server is there; return the seconds that its answer took."""
        seconds: float = await self._calls.ping()
        return seconds

    async def set_option(self, option: str | bytes) -> bytes:
        """Set an option of this connection, until it is lost; return its name as the server took it."""
        return await self._ask(lambda: option_request(option))

    async def close(self) -> None:
        """Disconnect; all that waits fails. Idempotent.

        Calls are refused from then on, until it is entered again with ``async with``, in any event loop.
        """
        await self._core.close()
        self._runtime.release()

    async def __aenter__(self) -> Self:
        self._core.open()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()


class GearmanClient(ClientCalls):
    """A client of one job server.

    It connects when it is first used, and again whenever the connection is lost, until it is closed. All its
    calls share one connection, any number of them at a time; they belong to one event loop.

    Args:
        server: ``host``, ``host:port``, ``[IPv6]:port`` or ``unix:/path``.
        client_id: the name that the server's command ``workers`` shows for this connection.
        exceptions: whether to ask for the exceptions of workers; without, they come as ``JobFailed``.
        retry_policy: seconds to wait before connection attempt number n. A call does not wait for that: it
            tries at once.
        ping_interval: seconds after which a silent server is given up; None to leave that to the system,
            which may take hours. A server that has never answered a ping is not given up for that.
        max_packet_bytes: the largest packet that the server takes: calls with larger ones fail with
            ``LocalProtocolError``, and a server that announces more is given up.
        ssl: how TLS is spoken, if it is.
        runtime: the event loop and its time; the loop that runs if None. A farm gives its own.

    Raises:
        ConfigError: the server's address, or a setting, makes no sense.
        LocalProtocolError: the client id cannot be sent.
    """

    def __init__(
        self,
        server: str | Place = "127.0.0.1:4730",
        *,
        client_id: str | bytes | None = None,
        exceptions: bool = True,
        retry_policy: Callable[[int], float] | None = None,
        ping_interval: float | None = 30.0,
        max_packet_bytes: int = DEFAULT_PACKET_BYTES,
        ssl: SSLContext | None = None,
        runtime: AsyncioRuntime | None = None,
    ) -> None:
        place = AddressPlace.of(server, ssl)
        self._runtime = runtime or AsyncioRuntime(f"the client of {place.name}", is_strict=True)
        self._core: ClientCore = ClientCore(
            self._runtime,
            place,
            ConnectionSettings.of(client_id, exceptions, ping_interval, max_packet_bytes),
            default_retry_policy() if retry_policy is None else retry_policy,
        )
        self._calls = Calls(self._runtime, self._core)

    @property
    def server_name(self) -> str:
        """The server's address, for logs and errors."""
        return self._core.name

    @property
    def is_connected(self) -> bool:
        """Whether requests can be sent now."""
        return self._core.is_ready


class ServerPool(ClientCalls):
    """A client of several job servers, with the calls of ``GearmanClient``.

    It treats servers as ``gearman_twisted.ServerPool`` does: one that cannot be reached is passed over and
    taken back when it is there again, and a call that finds none waits for ``patience`` seconds.

    Args:
        servers: at least one, each as ``GearmanClient`` takes it.
        choice: which server gets a request.
        patience: seconds that a call waits for any server.
        client_id: see ``GearmanClient``; so is what follows.
        exceptions: see ``GearmanClient``.
        retry_policy: see ``GearmanClient``.
        ping_interval: see ``GearmanClient``.
        max_packet_bytes: see ``GearmanClient``.
        ssl: see ``GearmanClient``.
        runtime: see ``GearmanClient``.

    Raises:
        ConfigError: there is no server, one is given twice, or a setting makes no sense.
        LocalProtocolError: the client id cannot be sent.
    """

    def __init__(
        self,
        servers: Iterable[str | Place] | str,
        *,
        choice: Choice | str = Choice.HASH,
        patience: float = 10.0,
        client_id: str | bytes | None = None,
        exceptions: bool = True,
        retry_policy: Callable[[int], float] | None = None,
        ping_interval: float | None = 30.0,
        max_packet_bytes: int = DEFAULT_PACKET_BYTES,
        ssl: SSLContext | None = None,
        runtime: AsyncioRuntime | None = None,
    ) -> None:
        self._runtime = runtime or AsyncioRuntime("the pool", is_strict=True)
        self._core: PoolCore = PoolCore(
            self._runtime,
            [AddressPlace.of(server, ssl) for server in one_or_more(servers)],
            ConnectionSettings.of(client_id, exceptions, ping_interval, max_packet_bytes),
            default_retry_policy() if retry_policy is None else retry_policy,
            choice=choice,
            patience=patience,
        )
        self._calls = Calls(self._runtime, self._core)

    @property
    def connected(self) -> list[str]:
        """The names of the servers that are connected."""
        return self._core.connected

    async def status(self, handle: bytes) -> JobStatus:
        """Ask all servers for the state of a job; one that has ended is known to none of them."""
        return await self._core.status(lambda: status_request(handle))

    async def status_by_unique(self, unique: bytes) -> JobStatus:
        """Ask all servers for the state of the job with a unique, and how many clients wait for it."""
        return await self._core.status(lambda: unique_status_request(unique))

    async def set_option(self, option: str | bytes) -> bytes:
        """Set an option of the connections that are there, until they are lost."""
        return await self._core.set_option(lambda: option_request(option))
