"""A module that cannot be imported."""

from __future__ import annotations

nothing = 1 // 0
