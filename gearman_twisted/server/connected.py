"""What ``Peers`` needs of a connection, whatever is spoken on it."""

from __future__ import annotations

from typing import Protocol


class ConnectedPeer(Protocol):
    """A connection, whatever is spoken on it.

    It reports to ``Peers``: ``connected``, then ``received`` and ``keeps`` any number of times, then ``lost``
    once.

    Attributes:
        number: what ``Peers.new_number`` gave it.
    """

    number: int

    @property
    def peer(self) -> str:
        """Where it comes from, as the text command ``workers`` shows it."""

    @property
    def kept_bytes(self) -> int:
        """What it keeps: packets that are not complete, output that was not sent yet, and TLS."""

    def send(self, chunks: list[bytes]) -> None:
        """Send packets that the engine wrote: all those of one turn, cut anywhere."""

    def close(self) -> None:
        """Close the connection once all that was sent is taken."""

    def abort(self) -> None:
        """Close the connection at once."""

    def stop_reading(self) -> None:
        """Report nothing as received until ``start_reading``. Idempotent."""

    def start_reading(self) -> None:
        """Read again. Idempotent."""
