"""Fixtures that several test modules share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from tests.kit.gearmand import Gearmand


@pytest.fixture
def gearmand(tmp_path: Path) -> Iterator[Gearmand]:
    """Debian's gearmand, listening on loopback; fails where it is not installed."""
    server = Gearmand(tmp_path)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def no_calls_left() -> Iterator[None]:
    """Holds a test to leaving no delayed call in the reactor."""
    from twisted.internet import reactor

    before = set(reactor.getDelayedCalls())
    yield
    # What is due has its turn first, as when Twisted is about to close the pipes of a process that has ended.
    pytest_twisted.blockon(deferLater(reactor, 0))
    assert set(reactor.getDelayedCalls()) <= before
