"""What the programs in Python share; it needs nothing but Python, as some have their own environment."""

from __future__ import annotations

import sys

FUNCTION = "load"
WORKLOAD = bytes(32)


def begin() -> None:
    """Says that what is measured begins."""
    _say("begin")


def end() -> None:
    """Says that what is measured has ended, and waits until its figures are taken."""
    _say("end")
    sys.stdin.read()


def names(count: int) -> list[str]:
    """Names of functions, of which the last one has a job."""
    return [*(f"{FUNCTION}-{number}" for number in range(1, count)), FUNCTION]


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()
