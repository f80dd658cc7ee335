"""What a decoder returns: packets, and what else comes between packets."""

from __future__ import annotations

from typing import NamedTuple

from gearman_twisted.wire.constants import PacketType


class Packet(NamedTuple):
    """One packet, cut into its arguments.

    Besides the packets of the protocol the decoder returns three types of its own, so that a reader handles
    everything in one place and in order:

    - ``TEXT_LINE`` (line): a line of the text protocol, without its LF;
    - ``BAD_PACKET`` (code, text): an invalid packet; the next one can still be read;
    - ``BAD_STREAM`` (code, text): an invalid stream; nothing after it can be read.

    Code and text of the latter two are those of the ERROR packet that answers them.

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
