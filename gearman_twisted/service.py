"""The job server as a service: store, engine and ports, started and stopped in the right order."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet import tcp
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred
from twisted.internet.interfaces import IAddress, IListeningPort, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from gearman_twisted import __version__
from gearman_twisted.config import ConnectionLimits, EngineSettings
from gearman_twisted.engine.jobserver import JobServer
from gearman_twisted.engine.outbox import StoredJob
from gearman_twisted.interfaces import IJobStore
from gearman_twisted.server import GearmanServerFactory
from gearman_twisted.transport import PromptServer

# Seconds that peers have, when the server stops, to take what was sent to them.
_CLOSE_PATIENCE = 5.0


def default_settings(**changes: Any) -> EngineSettings:
    """The engine's settings with what is known of this process and machine filled in."""
    host = "".join(c if c.isascii() and c.isprintable() and c != " " else "-" for c in socket.gethostname())
    known: dict[str, Any] = {
        "handle_prefix": f"H:{host}".encode()[:45],
        "server_version": __version__,
    }
    return EngineSettings(**(known | changes))


class JobServerService(Service):
    """A whole job server, to be run by twistd or carried inside an application.

    Args:
        reactor: what it runs in.
        endpoints: where it listens.
        store: where background jobs are kept.
        settings: how jobs and peers are treated; ``default_settings()`` if None.
        limits: what one peer may make it keep.
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
    ) -> None:
        self._reactor = reactor
        self._endpoints = endpoints
        self._store = store
        # Ids go on from the clock, in microseconds: a restarted server then never gives a handle again
        # that an earlier one gave, even for jobs that the store has forgotten.
        self.engine = JobServer(
            settings or default_settings(), durable=store.durable, last_id=int(reactor.seconds() * 1e6)
        )
        self._factory = GearmanServerFactory(self.engine, store, reactor, limits or ConnectionLimits())
        self._ports: list[IListeningPort] | None = None
        self._outcome: Failure | int | None = None
        self._waiting: list[Deferred[int]] = []
        self._starting: Deferred[None] | None = None

    def listen(self) -> None:
        """Takes the ports; peers that connect are served once the service has started.

        Done by ``privilegedStartService`` unless it was done before: twistd's plugin does it while the
        process is still in the foreground.

        Raises:
            CannotListenError: a port is taken; those that were not are let go again.
        """
        self._ports = []
        for endpoint in self._endpoints:
            failures: list[Failure] = []
            endpoint.listen(self._factory).addCallbacks(self._listening, failures.append)
            if failures:
                for port in self._ports:
                    port.stopListening()
                self._ports = None
                failures[0].raiseException()

    def _listening(self, port: IListeningPort) -> None:
        if isinstance(port, tcp.Port) and port.transport is tcp.Server:
            port.transport = PromptServer
        if self._ports is None:
            port.stopListening()  # an endpoint that took its time, when another one had failed
        else:
            self._ports.append(port)

    @property
    def addresses(self) -> list[IAddress]:
        """Where it listens, in the order of the endpoints; empty when it does not."""
        return [port.getHost() for port in self._ports or ()]

    def when_ready(self) -> Deferred[int]:
        """A new Deferred that fires once the stored jobs are back and peers are served.

        Returns:
            A Deferred that fires with how many jobs the store had, or fails with ``StoreError``, of
            which the service does not recover. Cancelling it only stops the waiting.
        """
        waiting: Deferred[int] = Deferred(self._waiting.remove)
        self._waiting.append(waiting)
        self._tell_waiting()
        return waiting

    def _tell_waiting(self) -> None:
        if self._outcome is not None:
            while self._waiting:
                self._waiting.pop(0).callback(self._outcome)  # a Failure becomes an errback

    def privilegedStartService(self) -> None:
        """Takes the ports while that is still allowed."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        if self._ports is None:
            self.listen()

    def startService(self) -> None:
        """Opens the store, brings its jobs back, then serves peers; see ``when_ready``."""
        if self._ports is None:
            self.listen()
        super().startService()  # type: ignore[no-untyped-call]
        self.engine.process_id = os.getpid()  # not before: twistd goes to the background in between
        self._starting = ensureDeferred(self._start()).addErrback(self._start_failed)

    async def _start(self) -> None:
        await self._store.open()
        self._outcome = await self._store.replay(self._restore)
        self._factory.open()
        self.log.info(
            "Serving on {addresses}; {jobs} jobs were in {store}",
            addresses=", ".join(map(describe_address, self.addresses)),
            jobs=self._outcome,
            store=self._store.description,
        )
        self._tell_waiting()

    def _restore(self, jobs: Sequence[StoredJob]) -> None:
        now = self._reactor.seconds()
        for job in jobs:
            self.engine.restore(job, now)

    def _start_failed(self, failure: Failure) -> None:
        self._outcome = failure
        if not self._waiting:
            self.log.failure("The job server cannot start", failure)
        self._tell_waiting()

    def stopService(self) -> Deferred[None]:
        """Stops listening, finishes what is being saved, answers for it, and lets go of the store.

        Returns:
            A Deferred that fires with None when nothing is left.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        return ensureDeferred(self._stop())

    async def _stop(self) -> None:
        ports, self._ports = self._ports, None
        for port in ports or ():
            await maybeDeferred(port.stopListening)
        if self._starting is not None:
            await self._starting
            await self._factory.close(_CLOSE_PATIENCE)
        await self._store.close()


def describe_address(address: IAddress) -> str:
    """An address as it is written in a command line."""
    if isinstance(address, UNIXAddress):
        return f"unix:{os.fsdecode(address.name or b'')}"
    if not isinstance(address, IPv4Address | IPv6Address):
        return str(address)
    return (
        f"[{address.host}]:{address.port}"
        if isinstance(address, IPv6Address)
        else f"{address.host}:{address.port}"
    )
