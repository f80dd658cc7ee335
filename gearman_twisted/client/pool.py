"""Several job servers as one: which of them gets a request, and what happens when one goes away."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from twisted.application.internet import backoffPolicy
from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IStreamClientEndpoint

from gearman_twisted.client.calls import ClientCalls
from gearman_twisted.client.choice import Choice, Chooser
from gearman_twisted.client.course import Callbacks
from gearman_twisted.client.on_twisted import GearmanClient
from gearman_twisted.client.requests import Request
from gearman_twisted.client.session import JobStatus
from gearman_twisted.errors import ConfigError, ConnectionLost, NoServers

__all__ = ["Choice", "ServerPool"]


class ServerPool(MultiService, ClientCalls):
    """A client of several job servers, with the calls of ``GearmanClient``.

    A server that cannot be reached is passed over and taken back when it is there again; it is looked for
    with growing pauses that differ a little from client to client. A call that finds none waits for
    ``patience`` seconds, then fails with ``NoServers``.

    A request whose connection is lost before its answer fails with ``ConnectionLost``, unless it was
    submitted with ``retry=True``: then it goes to the next server. A background job that a server has taken
    is never submitted again. A status is asked of all servers that are there.

    It connects to all of them when it is first used, or as a service when it is started.

    Args:
        servers: at least one, each as ``GearmanClient`` takes it.
        choice: which server gets a request.
        patience: seconds that a call waits for any server.
        reactor: the reactor to connect with; the global one if None.
        client_id: see ``GearmanClient``; so are exceptions, retry_policy and ping_interval.
        exceptions: see ``GearmanClient``.
        retry_policy: see ``GearmanClient``.
        ping_interval: see ``GearmanClient``.

    Raises:
        ConfigError: there is no server, one is given twice, or a number makes no sense.
        LocalProtocolError: the client id cannot be sent.
    """

    def __init__(
        self,
        servers: Iterable[str | IStreamClientEndpoint],
        *,
        choice: Choice | str = Choice.HASH,
        patience: float = 10.0,
        reactor: Any = None,
        client_id: str | bytes | None = None,
        exceptions: bool = True,
        retry_policy: Callable[[int], float] | None = None,
        ping_interval: float | None = 30.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if reactor is None:
            from twisted.internet import reactor
        if not patience >= 0:
            raise ConfigError(f"patience takes seconds, 0 or more, not {patience!r}")
        self._chooser = Chooser(choice)
        self.clock = reactor
        self._patience = patience
        self._waiting: list[Deferred[None]] = []
        self._is_closed = False
        self._has_begun = False
        self.clients: list[GearmanClient] = []
        for server in servers:
            client = GearmanClient(
                server,
                reactor=reactor,
                client_id=client_id,
                exceptions=exceptions,
                retry_policy=retry_policy or backoffPolicy(initialDelay=0.2, maxDelay=15.0),
                ping_interval=ping_interval,
            )
            if any(client.server_name == other.server_name for other in self.clients):
                raise ConfigError(f"the server {client.server_name} is given twice")
            client.watch(self._connection_changed)
            client.setServiceParent(self)  # type: ignore[no-untyped-call]
            self.clients.append(client)
        if not self.clients:
            raise ConfigError("a pool needs at least one server")

    @property
    def connected(self) -> list[str]:
        """The names of the servers that are connected."""
        return [client.server_name for client in self.clients if client.is_connected]

    def status(self, handle: bytes) -> Deferred[JobStatus]:
        """Asks all servers how a job is doing; one that ended is known to none of them."""
        return Deferred.fromCoroutine(self._known(lambda client: client.status(handle)))

    def status_by_unique(self, unique: bytes) -> Deferred[JobStatus]:
        """Asks all servers how the job with a unique is doing, and how many clients wait for it."""
        return Deferred.fromCoroutine(self._known(lambda client: client.status_by_unique(unique)))

    def set_option(self, option: str | bytes) -> Deferred[bytes]:
        """Sets an option of the connections that are there, until they are lost; see ``GearmanClient``."""
        return Deferred.fromCoroutine(self._on_all(lambda client: client.set_option(option)))

    def close(self) -> Deferred[Any]:
        """Disconnects from all servers; all that waits fails. Never fails itself."""
        return self.stopService()

    async def __aenter__(self) -> ServerPool:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def startService(self) -> None:
        """Connects to all servers, without waiting for the first call."""
        self._is_closed = False
        super().startService()  # type: ignore[no-untyped-call]

    def stopService(self) -> Deferred[Any]:
        """Disconnects; see ``close``."""
        self._is_closed = True
        stopped: Deferred[Any] = super().stopService()  # type: ignore[no-untyped-call]
        self._connection_changed(None)
        return stopped

    def _perform(
        self, make_request: Callable[[], Request], callbacks: Callbacks, key: bytes, *, retry: bool
    ) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._perform_somewhere(make_request, callbacks, key, retry=retry))

    async def _perform_somewhere(
        self, make_request: Callable[[], Request], callbacks: Callbacks, key: bytes, *, retry: bool
    ) -> Any:
        deadline = self._deadline()
        while True:
            for client in self._in_order(key):
                if client.is_down:
                    continue
                try:
                    return await self._begin(client, make_request(), callbacks, deadline)
                except NoServers:
                    continue  # it was never sent
                except ConnectionLost:
                    if not retry:
                        raise
            await self._wait_for_a_server(deadline)

    def _deadline(self) -> float:
        """Until when a call that is made now waits for a server."""
        if not self._has_begun:
            self._has_begun = True
            for client in self.clients:
                client.hurry()
        return float(self.clock.seconds() + self._patience)

    async def _begin(
        self, client: GearmanClient, request: Request, callbacks: Callbacks, deadline: float
    ) -> Any:
        """Sends a request to a server, if that is connected in time.

        Raises:
            NoServers: it was not; nothing was sent.
        """
        answer = client.begin(request, callbacks)
        if client.is_connected:
            return await answer
        is_late = False

        def give_up() -> None:
            nonlocal is_late
            if request.packet:  # it has not been sent
                is_late = True
                answer.cancel()

        timer = self.clock.callLater(max(0.0, deadline - self.clock.seconds()), give_up)
        try:
            return await answer
        except CancelledError:
            if is_late:
                raise NoServers(f"{client.server_name} is not there yet") from None
            raise
        finally:
            if timer.active():
                timer.cancel()

    def _in_order(self, key: bytes) -> list[GearmanClient]:
        """The servers, the one to be asked first in front."""
        return self._chooser.in_order(
            self.clients,
            key,
            name=lambda client: client.server_name,
            is_connected=lambda client: client.is_connected,
        )

    async def _wait_for_a_server(self, deadline: float) -> None:
        """Returns when one may be there.

        Raises:
            NoServers: it takes too long, or the pool was closed.
        """
        names = ", ".join(client.server_name for client in self.clients)
        left = deadline - self.clock.seconds()
        if self._is_closed or left <= 0:
            closed, late = "the pool was closed", f"none could be reached in {self._patience:g} s"
            raise NoServers(f"no job server of {names}: {closed if self._is_closed else late}")
        changed: Deferred[None] = Deferred()
        self._waiting.append(changed)
        timer = self.clock.callLater(left, self._connection_changed, None)
        for client in self.clients:
            client.hurry()
        try:
            await changed
        finally:
            if changed in self._waiting:
                self._waiting.remove(changed)
            if timer.active():
                timer.cancel()

    def _connection_changed(self, client: GearmanClient | None) -> None:
        if client is None or client.is_connected:
            waiting, self._waiting = self._waiting, []
            for changed in waiting:
                changed.callback(None)

    async def _known(self, ask: Callable[[GearmanClient], Deferred[JobStatus]]) -> JobStatus:
        answers: list[JobStatus] = await self._on_all_that_answer(ask)
        return next((status for status in answers if status.is_known), answers[0])

    async def _on_all(self, ask: Callable[[GearmanClient], Deferred[bytes]]) -> bytes:
        answers: list[bytes] = await self._on_all_that_answer(ask)
        return answers[0]

    async def _on_all_that_answer(self, ask: Callable[[GearmanClient], Deferred[Any]]) -> list[Any]:
        deadline = self._deadline()
        while True:
            # All are asked before the first answer is waited for.
            asked = [ask(client) for client in self.clients if not client.is_down]
            answers = []
            for position, answer in enumerate(asked):
                try:
                    answers.append(await answer)
                except (NoServers, ConnectionLost):  # noqa: PERF203 - there are few servers
                    continue
                except BaseException:
                    for other in asked[position + 1 :]:
                        other.addErrback(lambda _failure: None)
                        other.cancel()
                    raise
            if answers:
                return answers
            await self._wait_for_a_server(deadline)
