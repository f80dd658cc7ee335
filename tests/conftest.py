"""Fixtures that several test modules share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from tests.kit.gearmand import Gearmand
from tests.kit.quick import is_quick


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--quick``, which is what ``make quick`` runs."""
    parser.addoption(
        "--quick", action="store_true", help="only test files that stay in memory, see tests/kit/quick.py"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files that are not quick, before they are imported."""
    is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if config.getoption("quick") and is_test and not is_quick(collection_path) else None


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
