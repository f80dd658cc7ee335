"""A read-only view of the server, for the text protocol, metrics and web pages."""

from __future__ import annotations

import attrs

from gearman_twisted.engine.connections import Connection
from gearman_twisted.engine.queues import FunctionQueue


@attrs.frozen
class FunctionView:
    """What one function looks like.

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
        """The view of a queue as it is now."""
        high, normal, low = queue.lanes
        return cls(
            queue.name, queue.total, queue.running, (high.live, normal.live, low.live), len(queue.workers)
        )


@attrs.frozen
class ConnectionView:
    """What one connection looks like.

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
        """The view of a connection as it is now."""
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
