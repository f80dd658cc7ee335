"""For tests of programs that use Gearman: servers, clients and workers in memory, under one clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gearman_twisted.package import lazy_names

if TYPE_CHECKING:
    from gearman_twisted.testing.farm import (
        DurableMemoryStore,
        EndlessLoop,
        GearmanTestMixin,
        MemoryFarm,
        MemoryServer,
        NotFinished,
    )
    from gearman_twisted.testing.on_asyncio import AsyncioFarm

__all__ = [
    "AsyncioFarm",
    "DurableMemoryStore",
    "EndlessLoop",
    "GearmanTestMixin",
    "MemoryFarm",
    "MemoryServer",
    "NotFinished",
]

__getattr__ = lazy_names(
    __name__,
    {
        "GearmanTestMixin": "gearman_twisted.testing.farm",
        "AsyncioFarm": "gearman_twisted.testing.on_asyncio",
        "DurableMemoryStore": "gearman_twisted.testing.farm",
        "MemoryFarm": "gearman_twisted.testing.farm",
        "MemoryServer": "gearman_twisted.testing.farm",
        "EndlessLoop": "gearman_twisted.testing.farm",
        "NotFinished": "gearman_twisted.testing.farm",
    },
)
