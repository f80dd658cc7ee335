"""Shared by the programs in Python; imports only the standard library, as some have their own environment."""

from __future__ import annotations

import sys

FUNCTION = "load"
WORKLOAD = bytes(32)


def begin() -> None:
    """Mark the start of the measurement."""
    _say("begin")


def end() -> None:
    """Mark the end of the measurement, and wait until its figures are taken."""
    _say("end")
    sys.stdin.read()


def names(count: int) -> list[str]:
    """Return names of functions, of which the last one has a job."""
    return [*(f"{FUNCTION}-{number}" for number in range(1, count)), FUNCTION]


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()
