"""Fixtures of the tests that run on both event loops."""

from __future__ import annotations

from tests.kit.loops import loop

__all__ = ["loop"]
