"""Finds out that a peer is gone although nobody said so: cables, hosts and firewalls fail in silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Clock(Protocol):
    """What it waits with: Twisted's ``IReactorTime``, or as much of it."""

    def callLater(self, delay: float, callable: Callable[[], object], /) -> Any:  # noqa: A002 - IReactorTime
        """Arranges for a call; returns what has ``cancel``."""


class Keepalive:
    """Watches one connection: a peer that is silent is asked, and given up if it does not answer.

    From the last sign of life to the end it takes two thirds of the interval at least, and all of it at most.

    Args:
        clock: what it waits with.
        interval: seconds.
        ask: sends something that the peer answers.
        unsent: how many bytes are still to be sent; that they become fewer is a sign of life too.
        give_up: ends the connection.
    """

    def __init__(
        self,
        clock: Clock,
        interval: float,
        *,
        ask: Callable[[], None],
        unsent: Callable[[], int],
        give_up: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._step = interval / 3
        self._ask = ask
        self._unsent = unsent
        self._give_up = give_up
        self._is_alive = True
        self._has_asked = False
        self._was_unsent = 0
        self._timer: Any = None

    def start(self) -> None:
        """Begins to watch."""
        self._timer = self._clock.callLater(self._step, self._look)

    def heard(self) -> None:
        """The peer has sent something."""
        self._is_alive = True

    def stop(self) -> None:
        """Watches no longer; works before ``start`` and twice."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _look(self) -> None:
        unsent = self._unsent()
        if self._is_alive or unsent < self._was_unsent:
            self._is_alive = self._has_asked = False
        elif self._has_asked:
            self._timer = None
            self._give_up()
            return
        else:
            self._has_asked = True
            self._ask()
        self._was_unsent = unsent
        self.start()
