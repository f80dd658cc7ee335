"""A worker's connections in asyncio: each a link to a server, and the session while it is connected."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from gearman_twisted.runtime.asyncio_link import Connection, Link, Place, describe_loss
from gearman_twisted.wire.codec import Decoder
from gearman_twisted.wire.constants import RES, ErrorCode
from gearman_twisted.worker.groups import FunctionGroup
from gearman_twisted.worker.session import Assigned, Broken, Refused, WorkerSession

if TYPE_CHECKING:
    from gearman_twisted.worker.on_asyncio import GearmanWorker

_log = logging.getLogger("gearman_twisted.aio")


class Server:
    """A server of a worker.

    Args:
        place: where it is.
        max_packet_bytes: see below.

    Attributes:
        place: the same.
        max_packet_bytes: the largest packet that it takes, as far as is known.
    """

    def __init__(self, place: Place, max_packet_bytes: int) -> None:
        self.place = place
        self.max_packet_bytes = max_packet_bytes


class Serving:
    """A connection to a server, kept up.

    Args:
        worker: whose.
        server: to which.
        functions: what to offer there.

    Attributes:
        server: the same.
        functions: the same.
        link: connects.
    """

    def __init__(self, worker: GearmanWorker, server: Server, functions: FunctionGroup[Serving]) -> None:
        self.server = server
        self.functions = functions
        self.link = Link(server.place, self)
        self._worker = worker
        self._connection: _WorkerConnection | None = None
        self._is_draining = False
        self._fruitless = 0

    @property
    def session(self) -> WorkerSession | None:
        """The session, while connected."""
        return None if self._connection is None else self._connection.session

    @property
    def is_idle(self) -> bool:
        """Whether no job is at work for this server, and none may be on its way."""
        return self._connection is None or self._connection.session.is_idle

    def offered_now(self) -> dict[bytes, int]:
        """What a new connection offers."""
        return {} if self._is_draining else self.functions.offered_now()

    def drain(self) -> None:
        """Takes no more jobs."""
        self._is_draining = True
        if self._connection is not None:
            self._connection.session.drain()

    def flush(self) -> None:
        """Sends what the session has to send."""
        if self._connection is not None:
            data = self._connection.session.data_to_send()
            if data:
                self._connection.transport.writelines(data)

    # What the link and the connection call.

    def make_connection(self) -> Connection:
        """Called by the link: it is about to connect."""
        return _WorkerConnection(self._worker, self)

    def attempt_failed(self, reason: str) -> None:
        """Called by the link: an attempt to connect has failed."""
        _log.info("Cannot connect to %s: %s", self.server.place.name, reason)

    def retry_delay(self, attempt: int) -> float:
        """Called by the link: how long to wait. Who accepts connections but makes no sense is not there."""
        return self._worker.retry_policy(max(attempt, self._fruitless))

    def connected(self, connection: _WorkerConnection) -> None:
        """Called by the connection."""
        self._connection = connection
        # Until it has said something that makes sense.
        self._fruitless += 1
        if self._is_draining:
            connection.session.drain()
        self.flush()

    def heard(self) -> None:
        """Called by the connection: the server has sent something that makes sense."""
        self._fruitless = 0

    def lost(self, connection: _WorkerConnection) -> None:
        """Called by the connection: it is gone."""
        if self._connection is connection:
            self._connection = None
            connection.session.close()
            self._worker.connection_lost(connection.session)


class _WorkerConnection(Connection):
    """A connection of a worker to a server."""

    session: WorkerSession

    def __init__(self, worker: GearmanWorker, serving: Serving) -> None:
        super().__init__()
        self._worker = worker
        self._serving = serving
        self._decoder = Decoder(RES)
        self._is_given_up = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Offers the worker's functions and asks for the first job."""
        super().connection_made(transport)
        self.session = WorkerSession(
            self._worker.slots,
            self._serving.offered_now(),
            self._worker.client_id,
            self._serving.functions.limit,
        )
        self.watch(self._worker.ping_interval, self._ping, self._give_up_silent)
        self._serving.connected(self)

    def data_received(self, data: bytes) -> None:
        """Has the worker do what came, and answers in one write."""
        self.heard()
        if self._is_given_up:
            return
        for outcome in self.session.receive(self._decoder.feed(data)):
            if isinstance(outcome, Broken):
                self._give_up(str(outcome.reason))
                return
            self._serving.heard()
            if isinstance(outcome, Assigned):
                self._worker.take_job(self._serving, outcome)
            else:
                self._take_refusal(outcome)
        self._worker.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the worker."""
        super().connection_lost(exc)
        self._is_given_up = True
        _log.info("Lost the connection to %s: %s", self._serving.server.place.name, describe_loss(exc))
        self._serving.lost(self)

    def _take_refusal(self, refused: Refused) -> None:
        if refused.code == ErrorCode.ARGUMENT_TOO_LARGE:
            # The job comes again, as the server closes the connection, and would for ever.
            largest = max(self.session.largest_bytes - 1, 1024)
            server = self._serving.server
            server.max_packet_bytes = min(server.max_packet_bytes, largest)
        _log.log(
            logging.DEBUG if refused.is_expected else logging.WARNING,
            "%s did not take what was sent of a job: %s (%s)",
            self._serving.server.place.name,
            refused.text.decode("utf-8", "replace"),
            refused.code.decode("utf-8", "replace"),
        )

    def _ping(self) -> None:
        self.session.ping()
        self._serving.flush()

    def _give_up_silent(self) -> None:
        self._give_up(f"it has not answered for {self._worker.ping_interval:g} seconds")

    def _give_up(self, reason: str) -> None:
        self._is_given_up = True
        _log.error("Gives up the connection to %s: %s", self._serving.server.place.name, reason)
        self.transport.abort()
