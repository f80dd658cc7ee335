"""Read numbers in arguments of packets as C does."""

from __future__ import annotations

import re

# No more digits than 64 bits have, and one: Python refuses to convert thousands of them.
_DIGITS = re.compile(rb"\s*([+-]?)0*([0-9]{1,20})")


def up_to_nul(text: bytes) -> bytes:
    """Return what C sees of a text; a NUL inside would shift the arguments of the reply."""
    return text.partition(b"\0")[0]


def leading_int(text: bytes) -> int:
    """Return the number that a text starts with, 0 if it starts with none."""
    match = _DIGITS.match(text)
    return int(match[1] + match[2]) if match else 0


def progress_number(text: bytes) -> bytes:
    """Return a progress number as it is shown: not negative, and in the 32 bits that clients keep."""
    return b"%d" % min(max(leading_int(text[:20]), 0), 0xFFFFFFFF)
