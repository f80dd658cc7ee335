"""Detect peers that are gone without closing the connection: cables, hosts and firewalls fail silently."""

from __future__ import annotations

from collections.abc import Callable

from gearman_twisted.runtime.interfaces import Timer, Timers


class Keepalive:
    """Watches one connection: a silent peer is asked, and given up if it does not answer.

    From the last sign of life to the end it takes two thirds of the interval at least, and all of it at most.
    A peer that has never answered is asked, but not given up, unless it owes something else: some servers do
    not know the question.

    Args:
        runtime: what it waits with.
        interval: seconds.
        ask: sends something that the peer answers.
        unsent: how many bytes are still to be sent; that they become fewer is a sign of life too.
        give_up: ends the connection.
        owes: whether the peer has to send something without delay, whatever it knows.
    """

    def __init__(
        self,
        runtime: Timers,
        interval: float,
        *,
        ask: Callable[[], object],
        unsent: Callable[[], int],
        give_up: Callable[[], object],
        owes: Callable[[], bool] = lambda: False,
    ) -> None:
        self._runtime = runtime
        self._step = interval / 3
        self._ask = ask
        self._unsent = unsent
        self._give_up = give_up
        self._owes = owes
        self._is_alive = True
        self._has_asked = False
        self._has_answered = False
        self._has_owed = False
        self._was_unsent = 0
        self._timer: Timer | None = None

    def start(self) -> None:
        """Watch."""
        self._timer = self._runtime.later(self._step, self._look)

    def heard(self) -> None:
        """Note that the peer has sent something."""
        self._is_alive = True

    def answered(self) -> None:
        """Note that the peer has answered a question: it can be expected to answer the next one."""
        self._has_answered = True

    def stop(self) -> None:
        """Stop watching. Idempotent, also before ``start``."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _look(self) -> None:
        unsent = self._unsent()
        if self._is_alive or unsent < self._was_unsent:
            self._is_alive = self._has_asked = False
        elif not self._has_asked:
            self._has_asked = True
            self._has_owed = self._owes()
            self._ask()
        elif self._has_answered or self._has_owed:
            # Something may have blocked the loop, so that the answer was not read yet.
            self._timer = self._runtime.later(0, self._decide)
            return
        else:
            self._has_owed = self._owes()
        self._was_unsent = unsent
        self.start()

    def _decide(self) -> None:
        self._timer = None
        if self._is_alive:
            self.start()
        else:
            self._give_up()
