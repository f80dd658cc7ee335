"""Which functions of a worker share its connections: a function with a limit of its own has its own.

A job is asked for by connection, not by function: the only way to get no jobs of one function is a connection
of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from gearman_twisted.errors import ConfigError
from gearman_twisted.worker.session import WorkerSession
from gearman_twisted.worker.slots import Limit, Slots

_MAX_SECONDS = 4_000_000
# The server's limit for a job is that much longer than the worker's own, which says what happened.
_SERVER_GRACE = 5.0


class HasSession(Protocol):
    """A connection of a worker to a server."""

    @property
    def session(self) -> WorkerSession | None:
        """The session, while connected."""


C = TypeVar("C", bound=HasSession)


class FunctionGroup(Generic[C]):
    """Functions that are served by the same connections.

    Args:
        limit: see below.
        paused: the functions of all groups that are not offered for a moment.

    Attributes:
        limit: how many jobs of the group may run at a time, or None.
        offered: its functions, with the server's limit in milliseconds.
        connections: one to each server.
    """

    def __init__(self, limit: Limit | None, paused: set[bytes]) -> None:
        self.limit = limit
        self.offered: dict[bytes, int] = {}
        self.connections: list[C] = []
        self._paused = paused

    def offered_now(self) -> dict[bytes, int]:
        """Return what a new connection offers."""
        return {name: limit for name, limit in self.offered.items() if name not in self._paused}

    def tell(self, name: bytes) -> None:
        """Offer a function where there is a connection."""
        for connection in self.connections:
            if connection.session is not None:
                connection.session.offer(name, self.offered[name])


class FunctionGroups(Generic[C]):
    """All functions of a worker, in groups. Iterate over it for the groups.

    After each call, send what the sessions have to send.

    Args:
        slots: of the worker.
        connect: makes the connections of a group, one to each server; may be empty.
        retire: has a connection take no more jobs, and close when it has none.
    """

    def __init__(
        self, slots: Slots, *, connect: Callable[[FunctionGroup[C]], list[C]], retire: Callable[[C], object]
    ) -> None:
        self._slots = slots
        self._connect = connect
        self._retire = retire
        self._paused: set[bytes] = set()
        # Those with a limit of their own by name, all others under None.
        self._groups: dict[bytes | None, FunctionGroup[C]] = {}
        self._shared = self._add(None, None)

    def __iter__(self) -> Iterator[FunctionGroup[C]]:
        return iter(list(self._groups.values()))

    def offer(self, name: bytes, timeout_ms: int, concurrency: int | None) -> None:
        """Offer a function, or change its limits.

        Args:
            name: its name.
            timeout_ms: the server's limit for a job in milliseconds, or 0 for none.
            concurrency: how many of its jobs may run at a time, or None.
        """
        group = self._group_for(name, concurrency)
        group.offered[name] = timeout_ms
        self._paused.discard(name)
        group.tell(name)

    def withdraw(self, name: bytes) -> None:
        """Withdraw a function. A no-op for one that is not offered."""
        own = self._groups.pop(name, None)
        if own is not None:
            for connection in own.connections:
                self._retire(connection)
        if self._shared.offered.pop(name, None) is not None:
            for connection in self._shared.connections:
                if connection.session is not None:
                    connection.session.withdraw(name)

    def names(self) -> list[bytes]:
        """Return the names of all functions."""
        return [name for group in self for name in group.offered]

    def pause(self, name: bytes) -> None:
        """Keep new connections from offering a function until it is resumed, or offered again."""
        self._paused.add(name)

    def resume(self, name: bytes) -> None:
        """Offer a function again, if it was not withdrawn."""
        self._paused.discard(name)
        for group in self:
            if name in group.offered:
                group.tell(name)

    def end_pauses(self) -> None:
        """Let new connections offer everything."""
        self._paused.clear()

    def _group_for(self, name: bytes, concurrency: int | None) -> FunctionGroup[C]:
        """Return the group of a function, which leaves the one that it was in before."""
        if concurrency is None or concurrency >= self._slots.count:
            if name in self._groups:
                self.withdraw(name)
            return self._shared
        own = self._groups.get(name)
        if own is None or own.limit is None or own.limit.count != concurrency:
            self.withdraw(name)
            own = self._add(name, Limit(concurrency))
        return own

    def _add(self, name: bytes | None, limit: Limit | None) -> FunctionGroup[C]:
        group: FunctionGroup[C] = FunctionGroup(limit, self._paused)
        self._groups[name] = group
        group.connections = self._connect(group)
        return group


def limit_of_server(timeout: float | None, server_timeout: float | None) -> float:
    """Return the seconds that a server waits for a job of a function, 0 for as long as it takes.

    Args:
        timeout: the seconds that the worker gives it, or None.
        server_timeout: as registered; None to derive it from the timeout.

    Raises:
        ConfigError: a number makes no sense.
    """
    _check_seconds("timeout", timeout)
    if server_timeout is None:
        return 0.0 if timeout is None else timeout + _SERVER_GRACE
    if server_timeout != 0:
        _check_seconds("server_timeout", server_timeout)
    return server_timeout


def _check_seconds(name: str, value: float | None) -> None:
    if value is not None and not (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _MAX_SECONDS
    ):
        raise ConfigError(f"{name} takes seconds, up to {_MAX_SECONDS}, not {value!r}")
