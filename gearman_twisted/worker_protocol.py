"""A worker's connections: each server's, kept up by a service, and the protocol on it.

When to ask for a job and what packets mean is for ``engine/worker.py``; the jobs are for ``worker.py``.
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

from gearman_twisted.engine.worker import Broken, WorkerSession
from gearman_twisted.wire.codec import Decoder
from gearman_twisted.wire.constants import RES

if TYPE_CHECKING:
    from gearman_twisted.worker import GearmanWorker


class WorkerConnection:
    """What a worker has of one server: a service that connects, and the session while it is connected.

    Args:
        worker: whose connection it is.
        server_name: the server, for the log.
        endpoint: where it is.
        clock: what the service waits with before it connects again.
        retry_policy: how long.
    """

    def __init__(
        self,
        worker: GearmanWorker,
        server_name: str,
        endpoint: IStreamClientEndpoint,
        clock: Any,
        retry_policy: Callable[[int], float],
    ) -> None:
        self._worker = worker
        self._protocol: GearmanWorkerProtocol | None = None
        self._is_draining = False
        self.server_name = server_name
        self.service = ClientService(
            endpoint, GearmanWorkerFactory(worker, self), retryPolicy=retry_policy, clock=clock
        )

    @property
    def session(self) -> WorkerSession | None:
        """The session, while connected."""
        return None if self._protocol is None else self._protocol.session

    @property
    def is_idle(self) -> bool:
        """Whether no job runs for this server, and none may be on its way."""
        return self._protocol is None or self._protocol.session.is_idle

    def connected(self, protocol: GearmanWorkerProtocol) -> None:
        """Called by the protocol: sends what a server has to know."""
        self._protocol = protocol
        self._is_draining = False
        self.flush()

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
        """Disconnects if nothing is left to do; not again before the next drain."""
        if self._is_draining and self.is_idle:
            self._is_draining = False
            self.service.stopService()

    def flush(self) -> None:
        """Sends what the session has to send."""
        if self._protocol is not None:
            data = self._protocol.session.data_to_send()
            if data:
                self._protocol.transport.writeSequence(data)


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
        self.server_name = connection.server_name

    def connectionMade(self) -> None:
        """Offers the worker's functions and asks for the first job."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            # Otherwise a worker sleeps for ever on the connection to a server that vanished without a word.
            self.transport.setTcpKeepAlive(True)
        self.session = WorkerSession(self._worker.slots, self._worker.offered, self._worker.client_id)
        self._connection.connected(self)

    def dataReceived(self, data: bytes) -> None:
        """Has the worker do what came."""
        if not self._is_given_up:
            self._worker.take(self, self.session.receive(self._decoder.feed(data)))

    def give_up(self, broken: Broken) -> None:
        """Drops the connection to a server that does not keep to the protocol; another one will be made."""
        self._is_given_up = True
        self._log.error(
            "Gives up the connection to {server}: {reason}",
            server=self.server_name,
            reason=str(broken.reason),
        )
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tells the worker."""
        self._log.info(
            "Lost the connection to {server}: {reason}", server=self.server_name, reason=reason.value
        )
        self._connection.lost(self)


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
