"""Several job servers as one, in asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from ssl import SSLContext
from typing import Any

from gearman_twisted.client import asking
from gearman_twisted.client.asyncio_calls import ClientCalls
from gearman_twisted.client.choice import Choice, Chooser
from gearman_twisted.client.course import Callbacks
from gearman_twisted.client.on_asyncio import GearmanClient
from gearman_twisted.client.requests import Request
from gearman_twisted.client.session import JobStatus
from gearman_twisted.errors import ConfigError, ConnectionLost, NoServers


class ServerPool(ClientCalls):
    """A client of several job servers, with the calls of ``GearmanClient``.

    It treats servers as ``gearman_twisted.ServerPool`` does: one that cannot be reached is passed over and
    taken back when it is there again, and a call that finds none waits for ``patience`` seconds.

    Args:
        servers: at least one, each as ``GearmanClient`` takes it.
        choice: which server gets a request.
        patience: seconds that a call waits for any server.
        client_id: see ``GearmanClient``; so are exceptions, retry_policy, ping_interval and ssl.
        exceptions: see ``GearmanClient``.
        retry_policy: see ``GearmanClient``.
        ping_interval: see ``GearmanClient``.
        ssl: see ``GearmanClient``.

    Raises:
        ConfigError: there is no server, one is given twice, or a number makes no sense.
        LocalProtocolError: the client id cannot be sent.
    """

    def __init__(
        self,
        servers: Iterable[str],
        *,
        choice: Choice | str = Choice.HASH,
        patience: float = 10.0,
        client_id: str | bytes | None = None,
        exceptions: bool = True,
        retry_policy: Callable[[int], float] | None = None,
        ping_interval: float | None = 30.0,
        ssl: SSLContext | None = None,
    ) -> None:
        if not patience >= 0:
            raise ConfigError(f"patience takes seconds, 0 or more, not {patience!r}")
        self._chooser = Chooser(choice)
        self._patience = patience
        self._waiting: set[asyncio.Future[None]] = set()
        self._is_closed = False
        self._has_begun = False
        self.clients: list[GearmanClient] = []
        for server in servers:
            client = GearmanClient(
                server,
                client_id=client_id,
                exceptions=exceptions,
                retry_policy=retry_policy,
                ping_interval=ping_interval,
                ssl=ssl,
            )
            if any(client.server_name == other.server_name for other in self.clients):
                raise ConfigError(f"the server {client.server_name} is given twice")
            client.watch(self._connection_changed)
            self.clients.append(client)
        if not self.clients:
            raise ConfigError("a pool needs at least one server")

    @property
    def connected(self) -> list[str]:
        """The names of the servers that are connected."""
        return [client.server_name for client in self.clients if client.is_connected]

    async def status(self, handle: bytes) -> JobStatus:
        """Asks all servers how a job is doing; one that ended is known to none of them."""
        asking.status(handle)
        return await self._known(lambda client: client.status(handle))

    async def status_by_unique(self, unique: bytes) -> JobStatus:
        """Asks all servers how the job with a unique is doing, and how many clients wait for it."""
        asking.status_by_unique(unique)
        return await self._known(lambda client: client.status_by_unique(unique))

    async def set_option(self, option: str | bytes) -> bytes:
        """Sets an option of the connections that are there, until they are lost."""
        asking.set_option(option)
        answers: list[bytes] = await self._on_all(lambda client: client.set_option(option))
        return answers[0]

    async def close(self) -> None:
        """Disconnects from all servers; all that waits fails."""
        self._is_closed = True
        for waiting in self._waiting:
            _wake(waiting)
        await asyncio.gather(*(client.close() for client in self.clients))

    async def _perform(
        self, make_request: Callable[[], Request], callbacks: Callbacks, key: bytes, *, retry: bool
    ) -> Any:
        # What is wrong with the arguments is said before anything is connected, as it is by the other calls.
        request: Request | None = make_request()
        deadline = self._deadline()
        while True:
            for client in self._in_order(key):
                if client.is_down:
                    continue
                try:
                    return await self._begin(client, request or make_request(), callbacks, deadline)
                except NoServers:
                    continue  # it was never sent
                except ConnectionLost:
                    if not retry:
                        raise
                finally:
                    request = None
            await self._wait_for_a_server(deadline)

    def _in_order(self, key: bytes) -> list[GearmanClient]:
        return self._chooser.in_order(
            self.clients,
            key,
            name=lambda client: client.server_name,
            is_connected=lambda client: client.is_connected,
        )

    def _deadline(self) -> float:
        """Until when a call that is made now waits for a server."""
        if not self._has_begun:
            self._has_begun = True
            for client in self.clients:
                client.hurry()
        return asyncio.get_running_loop().time() + self._patience

    async def _begin(
        self, client: GearmanClient, request: Request, callbacks: Callbacks, deadline: float
    ) -> Any:
        """Sends a request to a server, if that is connected in time.

        Raises:
            NoServers: it was not; nothing was sent.
        """
        call = client.begin(request, callbacks)
        if client.is_connected:
            return await call.future

        def give_up() -> None:
            if request.packet:  # it has not been sent
                call.fail(NoServers(f"{client.server_name} is not there yet"))

        timer = asyncio.get_running_loop().call_at(deadline, give_up)
        try:
            return await call.future
        finally:
            timer.cancel()

    async def _wait_for_a_server(self, deadline: float) -> None:
        """Returns when one may be there.

        Raises:
            NoServers: it takes too long, or the pool was closed.
        """
        names = ", ".join(client.server_name for client in self.clients)
        loop = asyncio.get_running_loop()
        left = deadline - loop.time()
        if self._is_closed or left <= 0:
            closed, late = "the pool was closed", f"none could be reached in {self._patience:g} s"
            raise NoServers(f"no job server of {names}: {closed if self._is_closed else late}")
        changed: asyncio.Future[None] = loop.create_future()
        self._waiting.add(changed)
        timer = loop.call_later(left, _wake, changed)
        for client in self.clients:
            client.hurry()
        try:
            await changed
        finally:
            timer.cancel()
            self._waiting.discard(changed)

    def _connection_changed(self, client: GearmanClient) -> None:
        if client.is_connected:
            for waiting in self._waiting:
                _wake(waiting)

    async def _known(self, ask: Callable[[GearmanClient], Coroutine[Any, Any, JobStatus]]) -> JobStatus:
        answers: list[JobStatus] = await self._on_all(ask)
        return next((status for status in answers if status.is_known), answers[0])

    async def _on_all(self, ask: Callable[[GearmanClient], Coroutine[Any, Any, Any]]) -> list[Any]:
        """Asks all servers that are there; returns the answers of those that answered, at least one."""
        deadline = self._deadline()
        while True:
            asked = [ask(client) for client in self.clients if not client.is_down]
            answers = []
            for answer in await asyncio.gather(*asked, return_exceptions=True):
                if isinstance(answer, NoServers | ConnectionLost):
                    continue
                if isinstance(answer, BaseException):
                    raise answer
                answers.append(answer)
            if answers:
                return answers
            await self._wait_for_a_server(deadline)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
