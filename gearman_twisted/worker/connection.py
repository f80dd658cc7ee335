"""A worker's connections: each server's, kept up by a service, and the protocol on it.

When to ask for a job and what packets mean is for ``worker/session.py``; the jobs are for
``worker/on_twisted.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.application.internet import ClientService
from twisted.internet.interfaces import IAddress, IProtocolFactory, IStreamClientEndpoint, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gearman_twisted.runtime.keepalive import Keepalive
from gearman_twisted.runtime.on_twisted import TwistedRuntime
from gearman_twisted.runtime.transport import sender, unsent_bytes
from gearman_twisted.wire.codec import Decoder
from gearman_twisted.wire.constants import RES
from gearman_twisted.worker.groups import FunctionGroup
from gearman_twisted.worker.session import Broken, WorkerSession

if TYPE_CHECKING:
    from gearman_twisted.worker.on_twisted import GearmanWorker


class Server:
    """A server of a worker.

    Args:
        name: for the log.
        endpoint: where it is.
        retry_policy: how long to wait before it is connected again.
        max_packet_bytes: see below.

    Attributes:
        max_packet_bytes: the largest packet that it takes, as far as is known.
    """

    def __init__(
        self,
        name: str,
        endpoint: IStreamClientEndpoint,
        retry_policy: Callable[[int], float],
        max_packet_bytes: int,
    ) -> None:
        self.name = name
        self.endpoint = endpoint
        self.retry_policy = retry_policy
        self.max_packet_bytes = max_packet_bytes


class WorkerConnection:
    """What a worker has of one server: a service that connects, and the session while it is connected.

    Args:
        worker: whose connection it is.
        server: where it is, and how to reach it.
        functions: what to offer there.
    """

    def __init__(
        self, worker: GearmanWorker, server: Server, functions: FunctionGroup[WorkerConnection]
    ) -> None:
        self._worker = worker
        self._protocol: GearmanWorkerProtocol | None = None
        self._is_draining = False
        self._fruitless = 0
        self.server = server
        self.functions = functions
        self.service = ClientService(
            server.endpoint,
            GearmanWorkerFactory(worker, self),
            retryPolicy=self._retry_delay,
            clock=worker.reactor,
        )

    @property
    def session(self) -> WorkerSession | None:
        """The session, while connected."""
        return None if self._protocol is None else self._protocol.session

    @property
    def is_idle(self) -> bool:
        """Whether no job is at work for this server, and none may be on its way."""
        return self._protocol is None or self._protocol.session.is_idle

    @property
    def is_finished(self) -> bool:
        """Whether it was drained, and will not be connected again."""
        return self._is_draining and self._protocol is None and not self.service.running

    def connected(self, protocol: GearmanWorkerProtocol) -> None:
        """Called by the protocol: sends what a server has to know."""
        self._protocol = protocol
        self._is_draining = False
        # Until it has said something that makes sense.
        self._fruitless += 1
        self.flush()

    def heard(self) -> None:
        """Called by the protocol: the server has sent something that makes sense."""
        self._fruitless = 0

    def lost(self, protocol: GearmanWorkerProtocol) -> None:
        """Called by the protocol: the connection is gone, or given up."""
        if self._protocol is protocol:
            self._protocol = None
            protocol.session.close()
            if self._is_draining:
                self.service.stopService()
            self._worker.connection_lost(protocol)

    def drain(self) -> None:
        """Takes no more jobs."""
        self._is_draining = True
        if self._protocol is not None:
            self._protocol.session.drain()

    def stop_if_idle(self) -> None:
        """Disconnects if it was drained and nothing is left to do."""
        if self._is_draining and self.is_idle and self.service.running:
            self.service.stopService()

    def abort(self) -> None:
        """Disconnects at once, whatever is still to be sent."""
        if self._protocol is not None:
            self._protocol.transport.abortConnection()

    def flush(self) -> None:
        """Sends what the session has to send."""
        if self._protocol is not None:
            data = self._protocol.session.data_to_send()
            if data:
                self._protocol.write(b"".join(data))

    def _retry_delay(self, attempt: int) -> float:
        """ClientService counts attempts from the last one that was accepted, by whomever."""
        return self.server.retry_policy(max(attempt, self._fruitless))


class GearmanWorkerProtocol(Protocol):
    """A connection of a worker to a server.

    Args:
        worker: whose connection it is.
        connection: which of its connections.
    """

    _log = Logger()

    transport: Any  # ITransport with abortConnection: TCP, TLS or UNIX

    def __init__(self, worker: GearmanWorker, connection: WorkerConnection) -> None:
        self._worker = worker
        self._connection = connection
        self._decoder = Decoder(RES)
        self._is_given_up = False
        self._keepalive: Keepalive | None = None
        self._heard_bytes = 0
        self.server = connection.server

    def connectionMade(self) -> None:
        """Offers the worker's functions and asks for the first job."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            # For jobs that run longer than the worker is asked to look after its connection itself.
            self.transport.setTcpKeepAlive(True)
        self.write = sender(self.transport)
        functions = self._connection.functions
        self.session = WorkerSession(
            self._worker.slots, functions.offered_now(), self._worker.client_id, functions.limit
        )
        if self._worker.ping_interval is not None:
            self._keepalive = Keepalive(
                TwistedRuntime(self._worker.reactor),
                self._worker.ping_interval,
                ask=self._ping,
                unsent=lambda: unsent_bytes(self.transport),
                give_up=self._doubt,
            )
            self._keepalive.answered()
            self._keepalive.start()
        self._connection.connected(self)

    def dataReceived(self, data: bytes) -> None:
        """Has the worker do what came."""
        self._heard_bytes += len(data)
        if self._keepalive is not None:
            self._keepalive.heard()
        if not self._is_given_up:
            outcomes = self.session.receive(self._decoder.feed(data))
            if not (outcomes and isinstance(outcomes[-1], Broken)):
                self._connection.heard()
            self._worker.take(self, outcomes)

    def give_up(self, reason: str) -> None:
        """Drops the connection to a server that makes no sense, or is not there; another one will be made."""
        self._is_given_up = True
        self._log.error(
            "Gives up the connection to {server}: {reason}", server=self.server.name, reason=reason
        )
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tells the worker."""
        self._is_given_up = True
        if self._keepalive is not None:
            self._keepalive.stop()
        self._log.info(
            "Lost the connection to {server}: {reason}", server=self.server.name, reason=reason.value
        )
        self._connection.lost(self)

    def _ping(self) -> None:
        self.session.ping()
        self._connection.flush()

    def _doubt(self) -> None:
        """The server has not answered; or it has, and a function blocked the reactor, which did not read."""
        if not self._is_given_up:
            self._worker.reactor.callLater(0, self._decide, self._heard_bytes)

    def _decide(self, heard_bytes: int) -> None:
        if self._keepalive is None or self._is_given_up:
            return
        if self._heard_bytes != heard_bytes:
            self._keepalive.start()
        else:
            self.give_up(f"it has not answered for {self._worker.ping_interval:g} seconds")


@implementer(IProtocolFactory)
class GearmanWorkerFactory(Factory):
    """Makes the connections of a worker to one server.

    Args:
        worker: whose connections they are.
        connection: what keeps the one that there is.
    """

    noisy = False

    def __init__(self, worker: GearmanWorker, connection: WorkerConnection) -> None:
        self._worker = worker
        self._connection = connection

    def buildProtocol(self, addr: IAddress | None) -> GearmanWorkerProtocol:
        """A connection that was just made."""
        return GearmanWorkerProtocol(self._worker, self._connection)
