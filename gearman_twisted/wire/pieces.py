"""Packets on their way out: small ones joined into one write, the data of large ones as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

# Up to here, copying costs less than another write.
_SMALL_BYTES = 65_536


def with_data(start: bytes, data: bytes) -> tuple[bytes, ...]:
    """Return a packet in one piece if it is small; else its data is not copied."""
    return (start + data,) if len(data) <= _SMALL_BYTES else (start, data)


def write_all(write: Callable[[bytes], object], pieces: Sequence[bytes]) -> None:
    """Write pieces in their order: small ones together, large ones without copying them."""
    for piece in joined(pieces):
        write(piece)


def joined(pieces: Sequence[bytes]) -> Iterator[bytes]:
    """Yield pieces in their order: small ones joined up to some length, large ones as they are.

    Not all small ones at once: many may be copies of one packet, which take no memory until they are joined.
    """
    small: list[bytes] = []
    size = 0
    for piece in pieces:
        is_small = len(piece) <= _SMALL_BYTES
        if small and (not is_small or size + len(piece) > _SMALL_BYTES):
            yield b"".join(small)
            small, size = [], 0
        if is_small:
            small.append(piece)
            size += len(piece)
        else:
            yield piece
    if small:
        yield b"".join(small)
