"""Load balancing: which of several servers gets a request."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import TypeVar

from gearman_twisted.errors import ConfigError

_T = TypeVar("_T")


class Choice(enum.Enum):
    """Which of the servers that are there gets a request.

    Members:
        HASH: jobs with the same unique go to the same server, where they coalesce; others take turns.
        FIRST: the first one that is there, in the order in which they were given.
        ROUND_ROBIN: they take turns.
    """

    HASH = "hash"
    FIRST = "first"
    ROUND_ROBIN = "round_robin"


class Balancer:
    """Puts servers in the order in which they are to be asked.

    Args:
        choice: how, or its value.

    Raises:
        ConfigError: there is no such choice.
    """

    def __init__(self, choice: Choice | str) -> None:
        try:
            self._choice = Choice(choice)
        except ValueError as error:
            known = ", ".join(each.value for each in Choice)
            raise ConfigError(f"choice takes one of {known}, not {choice!r}") from error
        self._turn = -1

    def in_order(
        self,
        servers: Sequence[_T],
        key: bytes,
        *,
        name: Callable[[_T], str],
        is_ready: Callable[[_T], bool],
    ) -> list[_T]:
        """Return the servers, the one to be asked first in front.

        Args:
            servers: all of them.
            key: requests of one key go to one server, as long as it is there; empty for any.
            name: what a server is called.
            is_ready: whether it can be asked at once.
        """
        if self._choice is Choice.FIRST:
            return sorted(servers, key=lambda server: not is_ready(server))
        if self._choice is Choice.HASH and key and key != b"-":
            # By the weights of all pairs, so that a server that goes or comes changes nothing for the jobs of
            # the others (rendezvous hashing).
            return sorted(servers, key=lambda server: _weight(name(server), key), reverse=True)
        self._turn += 1
        start = self._turn % len(servers)
        turned = [*servers[start:], *servers[:start]]
        return sorted(turned, key=lambda server: not is_ready(server))


def _weight(server_name: str, key: bytes) -> bytes:
    return blake2b(key, key=server_name.encode()[:64], digest_size=8).digest()
