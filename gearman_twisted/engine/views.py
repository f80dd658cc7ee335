"""Read-only views of the engine, for the text protocol, metrics and web pages."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from gearman_twisted.engine.arguments import up_to_nul
from gearman_twisted.engine.backlog import Backlog
from gearman_twisted.engine.outbox import Turn
from gearman_twisted.engine.queues import Queues
from gearman_twisted.engine.records import Connection, FunctionQueue, Job
from gearman_twisted.engine.register import Register
from gearman_twisted.engine.saves import Saves
from gearman_twisted.engine.states import State
from gearman_twisted.engine.uniques import Entry
from gearman_twisted.wire.codec import respond
from gearman_twisted.wire.constants import PacketType


@attrs.frozen
class FunctionView:
    """A function.

    Attributes:
        name: the function's name.
        total: jobs that have not ended, in whatever state.
        running: jobs that are with a worker.
        queued: jobs that a worker could grab now, by priority: high, normal, low.
        workers: connections that registered it.
    """

    name: bytes
    total: int
    running: int
    queued: tuple[int, int, int]
    workers: int

    @classmethod
    def of(cls, queue: FunctionQueue) -> FunctionView:
        """Return the view of a function as it is now."""
        high, normal, low = queue.lanes
        return cls(
            queue.name, queue.total, queue.running, (high.live, normal.live, low.live), len(queue.workers)
        )


@attrs.frozen
class ConnectionView:
    """A connection.

    Attributes:
        number: its own, never given twice.
        peer: its address.
        client_id: what it calls itself.
        functions: what it registered, newest first unless they took turns since.
    """

    number: int
    peer: str
    client_id: bytes
    functions: list[bytes]

    @classmethod
    def of(cls, conn: Connection) -> ConnectionView:
        """Return the view of a connection as it is now."""
        return cls(conn.number, conn.peer, conn.client_id, [queue.name for queue in reversed(conn.abilities)])


@attrs.frozen
class Snapshot:
    """The server at one moment.

    Attributes:
        functions: every function, in the order in which they were first heard of.
        connections: every connection, oldest first.
        jobs: how many jobs have not ended.
        saving: how many of them wait for the store.
    """

    functions: list[FunctionView]
    connections: list[ConnectionView]
    jobs: int
    saving: int


@attrs.define(eq=False)
class Views:
    """What can be asked about jobs, functions and connections.

    Args:
        turn: the call being handled.
        register, queues, backlog, saves, connections: the parts to look at.

    Attributes:
        process_id: what ``getpid`` answers; for its owner to set.
        is_loading: whether stored jobs are still to be restored; for its owner to set.
    """

    _turn: Turn
    _register: Register
    _queues: Queues
    _backlog: Backlog
    _saves: Saves
    _connections: dict[int, Connection]
    process_id: int = 0
    is_loading: bool = False

    @property
    def job_count(self) -> int:
        """How many jobs have not ended, recurring ones left out."""
        return len(self._register.jobs) + self._backlog.offloaded_count

    # Of what there is now; those that end before their turn comes are left out. So a long list may be made
    # in pieces.

    def jobs(self) -> Iterator[Job]:
        """Iterate over all jobs that have not ended, recurring ones left out."""
        return (job for job in list(self._backlog.jobs()) if job.state is not State.DONE)

    def scheduled(self) -> Iterator[Job]:
        """Iterate over all jobs that wait for their time, the recurring ones last."""
        waiting = (State.SCHEDULED, State.RECURRING)
        jobs = [*self._register.scheduled.values(), *self._register.recurring.values()]
        return (job for job in jobs if job.state in waiting)

    def functions(self) -> Iterator[FunctionView]:
        """Iterate over all functions, in the order in which they were first heard of."""
        return (FunctionView.of(queue) for queue in list(self._queues.functions.values()))

    def connections(self) -> Iterator[ConnectionView]:
        """Iterate over all connections, oldest first."""
        return (ConnectionView.of(conn) for conn in list(self._connections.values()) if conn.is_open)

    def snapshot(self) -> Snapshot:
        """Return all at one moment; costs as much as there are functions and connections."""
        return Snapshot(list(self.functions()), list(self.connections()), self.job_count, len(self._saves))

    # Packets.

    def get_status(self, conn: Connection, args: list[bytes]) -> None:
        """Handle GET_STATUS."""
        handle = up_to_nul(args[0])
        status = _status_of(self._backlog.find(handle))
        conn.write(self._turn.out, respond(PacketType.STATUS_RES, handle, *status))

    def get_status_unique(self, conn: Connection, args: list[bytes]) -> None:
        """Handle GET_STATUS_UNIQUE."""
        unique = up_to_nul(args[0])
        # The packet names no function; the newest job counts.
        indexes = (self._register.uniques, self._register.recurring_uniques)
        found = [self._found(unique, each) for uniques in indexes if (each := uniques.newest(unique))]
        job = max(filter(None, found), key=lambda job: job.id, default=None)
        clients = b"%d" % (job.client_count if job else 0)
        reply = respond(PacketType.STATUS_RES_UNIQUE, unique, *_status_of(job), clients)
        conn.write(self._turn.out, reply)

    def _found(self, unique: bytes, newest: tuple[FunctionQueue, Entry]) -> Job | None:
        function, entry = newest
        return self._backlog.find_unique(function, unique) if isinstance(entry, int) else entry


def _status_of(job: Job | None) -> tuple[bytes, bytes, bytes, bytes]:
    """Return known, running, numerator and denominator."""
    if job is None:
        return b"0", b"0", b"0", b"0"
    is_running = job.worker is not None or job.state is State.REDUCING
    return b"1", b"1" if is_running else b"0", *job.progress
