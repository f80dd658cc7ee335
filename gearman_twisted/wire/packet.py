"""A packet, and what else may stand between packets on a Gearman connection."""

from __future__ import annotations

from typing import NamedTuple

from gearman_twisted.wire.constants import PacketType


class Packet(NamedTuple):
    """One packet, cut into its arguments.

    Besides the packets of the protocol the decoder returns three kinds of its own, so that whoever
    reads a stream handles all that may come in one place and in order:

    - ``TEXT_LINE`` (line): a line of the text protocol, without its end;
    - ``BAD_PACKET`` (code, text): a packet that makes no sense; the next one can still be read;
    - ``BAD_STREAM`` (code, text): the stream makes no sense; nothing after it can be read.

    The code and text of the bad ones are those of the ERROR packet that answers them.

    Attributes:
        type: a ``PacketType``, often as the plain int that came over the wire.
        args: as many as the packet table says, the opaque data last; any bytes each.
    """

    type: int
    args: list[bytes]

    def __repr__(self) -> str:
        try:
            name = PacketType(self.type).name
        except ValueError:
            name = str(self.type)
        shown = ", ".join(repr(a) if len(a) <= 64 else f"{a[:64]!r}… {len(a)} bytes" for a in self.args)
        return f"{name}({shown})"
