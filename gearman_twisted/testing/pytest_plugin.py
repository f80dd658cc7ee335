"""The fixture ``gearman_farm``, found by pytest through an entry point.

pytest imports this wherever the package is installed, so it imports nothing else before the fixture is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gearman_twisted.testing.farm import MemoryFarm


@pytest.fixture
def gearman_farm(request: pytest.FixtureRequest) -> Iterator[MemoryFarm]:
    """A ``gearman_twisted.testing.MemoryFarm``: a job server in memory, with clients and workers as wanted.

    With pytest-twisted the reactor drives it, so that tests can await what clients return. A test that
    asyncio runs takes its clients and workers from ``gearman_farm.on_asyncio()``.
    """
    from gearman_twisted.testing.farm import MemoryFarm

    farm = MemoryFarm()
    if request.config.pluginmanager.hasplugin("twisted"):
        from twisted.internet import reactor

        farm.drive(reactor)
    try:
        yield farm
    finally:
        farm.close()
