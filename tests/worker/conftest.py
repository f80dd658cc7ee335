"""Fixtures of the tests that run on both event loops."""

from __future__ import annotations

from tests.kit.loops import loop
from tests.kit.worker_rig import log, logged, make_rig

__all__ = ["log", "logged", "loop", "make_rig"]
