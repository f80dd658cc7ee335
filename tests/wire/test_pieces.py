"""Packets on their way out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gearman_twisted.wire.pieces import joined, with_data, write_all


def test_small_pieces_are_one_write() -> None:
    """Small pieces are joined, in their order, up to a large one, which is written as it is."""
    large = bytes(65_537)
    written: list[bytes] = []
    write_all(written.append, [b"a", b"b", large, b"c", b"d", large])
    assert written == [b"ab", large, b"cd", large]
    assert written[1] is large
    written.clear()
    write_all(written.append, [b"a"] * 1000)
    assert written == [b"a" * 1000]


def test_nothing_is_no_write() -> None:
    """No pieces are no write."""
    write_all(lambda _data: 1 / 0, [])


def test_large_data_is_not_copied() -> None:
    """The data of a small packet is in one piece with its start, that of a large one is a piece by itself."""
    assert with_data(b"start", b"data") == (b"startdata",)
    large = bytes(65_537)
    assert with_data(b"start", large)[1] is large


@given(st.lists(st.sampled_from([0, 1, 100, 30_000, 65_536, 65_537, 200_000]).map(bytes), max_size=30))
def test_pieces_are_joined_up_to_some_length(pieces: list[bytes]) -> None:
    """All bytes come in their order; only a piece that was large by itself is longer than 64 KiB."""
    found = list(joined(pieces))
    assert b"".join(found) == b"".join(pieces)
    assert all(len(piece) <= 65_536 or any(piece is each for each in pieces) for piece in found)
