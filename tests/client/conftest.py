"""Fixtures of the tests that run on both event loops."""

from __future__ import annotations

from tests.kit.loops import loop, real

__all__ = ["loop", "real"]
