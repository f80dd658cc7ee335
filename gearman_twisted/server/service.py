"""The job server as a service: store, engine and ports, started and stopped in the right order."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet import tcp
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred
from twisted.internet.interfaces import IAddress, IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from gearman_twisted.engine.outbox import Shutdown
from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.server.connection import PeersFactory
from gearman_twisted.server.listening import AcceptLog, set_defaults
from gearman_twisted.server.peers import make_peers
from gearman_twisted.server.readers import Readers
from gearman_twisted.server.settings import ConnectionLimits
from gearman_twisted.server.transport import PromptServer
from gearman_twisted.store.contract import IJobStore


class JobServerService(Service):
    """A whole job server, to be run by twistd or carried inside an application.

    Args:
        reactor: the reactor.
        endpoints: where to listen.
        store: where background jobs are kept.
        settings: how jobs and peers are treated; ``default_settings()`` if None.
        limits: what one peer may make it keep; the defaults if None.
        http_endpoints: where to listen for jobs that are submitted over HTTP, see ``server/web/jobs.py``.
        on_shutdown: called when an operator has ended the server (see ``shutdown``); stops the service if
            None.

    Attributes:
        engine: what the server knows of jobs, functions and connections.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        endpoints: Sequence[IStreamServerEndpoint],
        store: IJobStore,
        *,
        settings: EngineSettings | None = None,
        limits: ConnectionLimits | None = None,
        http_endpoints: Sequence[IStreamServerEndpoint] = (),
        on_shutdown: Callable[[], object] | None = None,
    ) -> None:
        self._reactor = reactor
        self._endpoints = endpoints
        self._http_endpoints = http_endpoints
        self._peers = make_peers(store, reactor, settings, limits)
        self._host = self._peers.host
        self._host.on_ready = self._log_serving
        self._host.on_shutdown = self.shutdown
        self.engine = self._host.engine
        self._factory = PeersFactory(self._peers)
        # Where the system has no epoll, Twisted's own transports do.
        self._readers = (
            Readers(reactor, self._peers.begin_turn, self._peers.end_turn)
            if hasattr(select, "epoll")
            else None
        )
        self._accept_log = AcceptLog(reactor)
        self._on_shutdown = on_shutdown or self.stopService
        # All of them; those for HTTP stand in the other list too.
        self._ports: list[IListeningPort] | None = None
        self._http_ports: list[IListeningPort] = []

    def listen(self) -> None:
        """Bind the ports; peers that connect are served once the service has started.

        Done by ``privilegedStartService`` unless it was done before: twistd's plugin does it while the
        process is still in the foreground.

        Raises:
            CannotListenError: a port is taken; the others are released.
        """
        self._ports = []
        self._http_ports = []
        places: list[tuple[IStreamServerEndpoint, Factory, Callable[[IListeningPort], None]]]
        places = [(endpoint, self._factory, self._listening) for endpoint in self._endpoints]
        if self._http_endpoints:
            # Here, as most servers can do without all that twisted.web brings with it.
            from gearman_twisted.server.web.jobs import HttpFactory

            http_factory = HttpFactory(self._peers, self._reactor)
            places += [(endpoint, http_factory, self._listening_http) for endpoint in self._http_endpoints]
        for endpoint, factory, listening in places:
            failures: list[Failure] = []
            endpoint.listen(factory).addCallbacks(listening, failures.append)
            if failures:
                for port in self._ports:
                    port.stopListening()
                self._ports = None
                failures[0].raiseException()

    def _listening(self, port: IListeningPort) -> None:
        if isinstance(port, tcp.Port):
            set_defaults(port)
            self._accept_log.watch(port)
            if self._readers is not None and port.transport is tcp.Server:
                port.transport = partial(PromptServer, self._readers)  # type: ignore[assignment] # as good as a class
        if self._ports is None:
            port.stopListening()  # an endpoint that took its time, when another one had failed
        else:
            self._ports.append(port)

    def _listening_http(self, port: IListeningPort) -> None:
        self._http_ports.append(port)
        self._listening(port)

    @property
    def addresses(self) -> list[IAddress]:
        """Where it listens, in the order of the endpoints; empty when it does not."""
        return [port.getHost() for port in self._ports or () if port not in self._http_ports]

    @property
    def http_addresses(self) -> list[IAddress]:
        """Where it listens for HTTP, in the order of the endpoints; empty when it does not."""
        return [port.getHost() for port in self._ports or () if port in self._http_ports]

    def when_ready(self) -> Deferred[int]:
        """Wait until the stored jobs are back and peers are served.

        Returns:
            A new Deferred that fires with how many jobs the store had, or fails with ``StoreError``, of
            which the service does not recover. Cancelling it only stops the waiting.
        """
        return self._host.when_ready()

    def privilegedStartService(self) -> None:
        """Bind the ports while that is still allowed, if it was not done before."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        if self._ports is None:
            self.listen()

    def startService(self) -> None:
        """Open the store, read its jobs, then serve peers; see ``when_ready``.

        Until then the text protocol is answered; its command ``ready`` tells the difference.
        """
        if self._ports is None:
            self.listen()
        super().startService()  # type: ignore[no-untyped-call]
        self._host.start()

    def _log_serving(self, jobs: int) -> None:
        self.log.info(
            "Serving on {addresses}; {jobs} jobs were in {store}",
            addresses=", ".join(
                [
                    *map(describe_address, self.addresses),
                    *(f"{describe_address(address)} (HTTP)" for address in self.http_addresses),
                ]
            ),
            jobs=jobs,
            store=self._host.store.description,
        )

    def shutdown(self, how: Shutdown) -> None:
        """End the server, as the text command ``shutdown`` does if it is allowed.

        Args:
            how: at once; or gracefully, which stops listening, serves who is connected, and ends when no job
                is left, be it queued, scheduled or running (gearmand does so on SIGUSR1).
        """
        if how is Shutdown.NOW:
            self._shut_down()
            return
        for port in self._ports or ():
            port.stopListening()
        self._ports = []
        self._host.on_idle = self._shut_down
        if not self.engine.job_count:
            self._shut_down()

    def _shut_down(self) -> None:
        self._host.on_idle = None
        self._on_shutdown()

    def stopService(self) -> Deferred[None]:
        """Stop listening, finish and answer what is being saved, close all connections, and then the store.

        Returns:
            A Deferred that fires with None when nothing is left.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        # At once: it takes a turn until the ports are closed.
        self._host.is_stopping = True
        return ensureDeferred(self._stop())

    async def _stop(self) -> None:
        ports, self._ports = self._ports, None
        for port in ports or ():
            await maybeDeferred(port.stopListening)
        await self._peers.stop()


def describe_address(address: IAddress) -> str:
    """Return an address as it is written in a command line."""
    if isinstance(address, UNIXAddress):
        return f"unix:{os.fsdecode(address.name or b'')}"
    if not isinstance(address, IPv4Address | IPv6Address):
        return str(address)
    return (
        f"[{address.host}]:{address.port}"
        if isinstance(address, IPv6Address)
        else f"{address.host}:{address.port}"
    )
