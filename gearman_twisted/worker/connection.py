"""A worker's connections: what is said on one, and what keeps one to each server.

When to ask for a job and what packets mean is for ``worker/session.py``; the jobs are for ``worker/run.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gearman_twisted.runtime.interfaces import Peer, Place, Runtime, Transport
from gearman_twisted.runtime.keepalive import Keepalive
from gearman_twisted.runtime.link import Link, LinkOwner, reason_of_loss
from gearman_twisted.wire.codec import Decoder, passed_on_bytes
from gearman_twisted.wire.constants import DEFAULT_PACKET_BYTES, RES
from gearman_twisted.wire.pieces import write_all
from gearman_twisted.wire.shown import shown
from gearman_twisted.worker.groups import FunctionGroup
from gearman_twisted.worker.session import Broken, Outcome, WorkerSession
from gearman_twisted.worker.slots import Slots


class ServerFacts:
    """What is known of a server, by all connections to it.

    Args:
        name: for the log.
        max_packet_bytes: see below.

    Attributes:
        name: the same.
        max_packet_bytes: the largest packet that it takes, as far as is known.
        has_uniques: whether it knows GRAB_JOB_UNIQ, as far as is known.
        answers_pings: whether it has ever answered one.
    """

    __slots__ = ("answers_pings", "has_uniques", "max_packet_bytes", "name")

    def __init__(self, name: str, max_packet_bytes: int) -> None:
        self.name = name
        self.max_packet_bytes = max_packet_bytes
        self.has_uniques = True
        self.answers_pings = False


class WorkerConnectionOwner(Protocol):
    """The worker, as its connections see it.

    Attributes:
        runtime: the event loop.
        slots: of the worker.
        client_id: sent first, if there is one.
        ping_interval: seconds after which a silent server is given up, or None.
        retry_policy: seconds to wait before connection attempt number n.
        max_packet_bytes: the largest packet that servers take, and so pass on.
    """

    runtime: Runtime
    slots: Slots
    client_id: bytes | None
    ping_interval: float | None
    retry_policy: Callable[[int], float]
    max_packet_bytes: int

    def take(self, connection: WorkerConnection, outcomes: list[Outcome]) -> None:
        """Do what a session learned, and answer in one write."""

    def connection_lost(self, session: WorkerSession) -> None:
        """Note that a connection is gone."""

    def flush(self) -> None:
        """Send what the sessions have to send."""


class WorkerConnection(Peer):
    """A connection of a worker to a server.

    Args:
        link: which of the worker's connections it is.

    Attributes:
        session: what is said on it, once connected.
        server: what is known of the server.
    """

    session: WorkerSession
    transport: Transport

    def __init__(self, link: WorkerLink) -> None:
        self._link = link
        owner = self._owner = link.owner
        # At least the default: lower limits are those of servers that are sent results.
        largest = max(owner.max_packet_bytes, DEFAULT_PACKET_BYTES)
        self._decoder = Decoder(RES, max_packet_bytes=passed_on_bytes(largest))
        self._is_given_up = False
        self._keepalive: Keepalive | None = None
        self.server = link.server

    def connected(self, transport: Transport) -> None:
        owner, link = self._owner, self._link
        self.transport = transport
        self.session = WorkerSession(
            owner.slots,
            link.offered_now(),
            owner.client_id,
            link.functions.limit,
            has_uniques=self.server.has_uniques,
        )
        if owner.ping_interval is not None:
            self._keepalive = Keepalive(
                owner.runtime,
                owner.ping_interval,
                ask=self._ping,
                unsent=transport.unsent,
                give_up=self._give_up_silent,
                owes=lambda: self.session.has_open_grab,
            )
            if self.server.answers_pings:
                self._keepalive.answered()
            self._keepalive.start()
        link.connected(self)

    def received(self, data: bytes) -> None:
        keepalive = self._keepalive
        if keepalive is not None:
            keepalive.heard()
        if self._is_given_up:
            return
        outcomes = self.session.receive(self._decoder.feed(data))
        if not (outcomes and isinstance(outcomes[-1], Broken)):
            self._link.heard()
        if self.session.has_answered_ping and keepalive is not None:
            self.server.answers_pings = True
            keepalive.answered()
        self._owner.take(self, outcomes)

    def lost(self, reason: str) -> None:
        was_given_up, self._is_given_up = self._is_given_up, True
        if self._keepalive is not None:
            self._keepalive.stop()
        self._link.lost(self, reason, is_news=not was_given_up)

    def break_off(self, reason: str) -> None:
        """Drop the connection to a server that makes no sense."""
        self.give_up(self._link.explained(reason, self))

    def give_up(self, reason: str) -> None:
        """Drop the connection to a server; the link makes another one."""
        if not self._is_given_up:
            self._is_given_up = True
            self._owner.runtime.log("worker").error(
                "closing connection to {server}: {reason}",
                server=self.server.name,
                reason=reason,
            )
            self.transport.abort()

    def flush(self) -> None:
        """Send what the session has to send."""
        data = self.session.data_to_send()
        if data:
            write_all(self.transport.write, data)

    def _ping(self) -> None:
        self.session.ping()
        self.flush()

    def _give_up_silent(self) -> None:
        self.give_up(f"it has not answered for {self._owner.ping_interval:g} seconds")


class WorkerLink(LinkOwner):
    """One of the connections of a worker: to one server, for one group of functions, made again when lost.

    Args:
        owner: the worker.
        server: what is known of the server.
        functions: what to offer there.
        place: what to connect to; None where somebody else connects, see ``make_peer``.

    Attributes:
        owner: the same.
        server: the same.
        functions: the same.
    """

    def __init__(
        self,
        owner: WorkerConnectionOwner,
        server: ServerFacts,
        functions: FunctionGroup[WorkerLink],
        place: Place | None,
    ) -> None:
        self.owner = owner
        self.server = server
        self.functions = functions
        self._log = owner.runtime.log("worker")
        self._link = None if place is None else Link(owner.runtime, place, self)
        self._connection: WorkerConnection | None = None
        self._is_draining = False
        # Connections in a row on which the server has said nothing that makes sense.
        self._unproven = 0
        self._reason: str | None = None
        self._is_reason_new = False

    @property
    def session(self) -> WorkerSession | None:
        """The session, while connected."""
        return None if self._connection is None else self._connection.session

    @property
    def is_idle(self) -> bool:
        """Whether no job is at work for this server, and none may be on its way."""
        return self._connection is None or self._connection.session.is_idle

    @property
    def has_no_jobs(self) -> bool:
        """Whether no job is at work for this server; one may be on its way."""
        return self._connection is None or self._connection.session.has_no_jobs

    @property
    def is_running(self) -> bool:
        """Whether it is connected, or connects by itself."""
        return self._connection is not None if self._link is None else self._link.is_running

    @property
    def can_be_replaced(self) -> bool:
        """Whether another link to the same server can be made."""
        return self._link is not None

    def offered_now(self) -> dict[bytes, int]:
        """Return what a new connection offers."""
        return {} if self._is_draining else self.functions.offered_now()

    def start(self) -> None:
        """Connect, and again whenever the connection is lost."""
        self._is_draining = False
        self._reason = None
        if self._link is not None:
            self._link.start()

    def drain(self) -> None:
        """Take no more jobs."""
        self._is_draining = True
        if self._connection is not None:
            self._connection.session.drain()

    async def stop(self) -> None:
        """Disconnect, and wait for that. Idempotent."""
        if self._link is not None:
            await self._link.stop()
        elif self._connection is not None:
            self._connection.transport.close()

    def flush(self) -> None:
        """Send what the session has to send."""
        if self._connection is not None:
            self._connection.flush()

    # Called by the link and the connection.

    def make_peer(self) -> WorkerConnection:
        """Return what to speak on a connection that is about to be made."""
        return WorkerConnection(self)

    def attempt_failed(self, reason: str) -> None:
        self._is_reason_new = reason != self._reason
        self._reason = reason

    def retry_delay(self, attempt: int) -> float:
        # A server that accepts connections and says nothing that makes sense is no server.
        delay = self.owner.retry_policy(max(attempt, self._unproven))
        if self._is_reason_new:
            self._is_reason_new = False
            self._log.info(
                "cannot connect to {server}: {reason}; retrying, first in {delay:.1f} s",
                server=self.server.name,
                reason=self._reason,
                delay=delay,
            )
        return delay

    def connected(self, connection: WorkerConnection) -> None:
        """Note a new connection, and tell the server what it has to know."""
        self._connection = connection
        self._reason = None
        self._unproven += 1
        if self._link is None:
            self.functions.connections.append(self)
        if self._is_draining:
            connection.session.drain()
        names = [shown(name) for name in self.offered_now()]
        self._log.info(
            "connected to {server} (functions: {functions})",
            server=self.server.name,
            functions=list_names(names),
        )
        self.owner.flush()

    def heard(self) -> None:
        """Note that the server has sent something that makes sense."""
        self._unproven = 0

    def explained(self, reason: str, connection: WorkerConnection) -> str:
        """Return why a connection is lost, for logs."""
        has_answered = not self._unproven or self._is_draining
        return reason_of_loss(reason, connection.transport, has_answered=has_answered)

    def lost(self, connection: WorkerConnection, reason: str, *, is_news: bool) -> None:
        """Note that a connection is gone; no news if it was given up."""
        # A server that accepts connections and answers nothing is no news the second time.
        is_first = self._unproven == 1 and not self._is_draining
        log = self._log.warning if is_news and is_first else self._log.info
        if is_news:
            reason = self.explained(reason, connection)
        log("lost {server}: {reason}", server=self.server.name, reason=reason)
        if self._connection is connection:
            self._connection = None
            connection.session.close()
            if self._link is None:
                self.functions.connections.remove(self)
            elif self._is_draining:
                self.owner.runtime.background(self._link.stop())
            self.owner.connection_lost(connection.session)


# More names than these are counted in log lines.
_LISTED_NAMES = 10


def list_names(names: list[str]) -> str:
    """Return names for a log line; of many, the first and how many more there are."""
    if not names:
        return "none"
    more = f" and {len(names) - _LISTED_NAMES} more" if len(names) > _LISTED_NAMES else ""
    return ", ".join(names[:_LISTED_NAMES]) + more
