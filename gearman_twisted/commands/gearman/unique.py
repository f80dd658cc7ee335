"""The unique that stands for a workload, as libgearman makes it of the unique ``#``.

Clients of both kinds then agree which jobs are the same.
"""

from __future__ import annotations

import struct

_MASK = 0xFFFFFFFF


def unique_of(workload: bytes) -> bytes:
    """Return MurmurHash3 (32 bits for x86) of a workload, in decimal."""
    # libhashkit seeds it with the length.
    value = 0xDEADBEEF * len(workload) & _MASK
    whole = len(workload) & ~3
    for (block,) in struct.iter_unpack("<I", memoryview(workload)[:whole]):
        value ^= _mixed(block)
        value = (value << 13 | value >> 19) & _MASK
        value = value * 5 + 0xE6546B64 & _MASK
    value ^= _mixed(int.from_bytes(workload[whole:], "little"))
    value ^= len(workload) & _MASK
    value = (value ^ value >> 16) * 0x85EBCA6B & _MASK
    value = (value ^ value >> 13) * 0xC2B2AE35 & _MASK
    return b"%d" % (value ^ value >> 16)


def _mixed(block: int) -> int:
    block = block * 0xCC9E2D51 & _MASK
    return (block << 15 | block >> 17) * 0x1B873593 & _MASK
