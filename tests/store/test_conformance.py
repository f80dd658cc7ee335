"""Our own stores against the suite that every store runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as default_reactor

from gearman_twisted.store import open_store
from gearman_twisted.store.conformance import CHECKS, LIFECYCLE_CHECKS, Check, name_of, run_all

reactor: Any = default_reactor
ensure_deferred: Callable[[Callable[..., object]], Callable[..., None]] = pytest_twisted.ensureDeferred


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
@ensure_deferred
async def test_sqlite_store_conforms(check: Check, tmp_path: Path) -> None:
    """A SQLite file keeps every promise that IJobStore makes."""
    await check(lambda: open_store(f"sqlite:{tmp_path}/jobs.db", reactor))


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
@ensure_deferred
async def test_postgres_store_conforms(check: Check, postgres_url: str) -> None:
    """A PostgreSQL database keeps every promise that IJobStore makes."""
    await check(lambda: open_store(postgres_url, reactor))


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
@ensure_deferred
async def test_mysql_store_conforms(check: Check, mysql_url: str) -> None:
    """A MariaDB database keeps every promise that IJobStore makes."""
    await check(lambda: open_store(mysql_url, reactor))


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
@ensure_deferred
async def test_redis_store_conforms(check: Check, redis_url: str) -> None:
    """A Redis server keeps every promise that IJobStore makes."""
    await check(lambda: open_store(redis_url, reactor))


@pytest.mark.parametrize("check", LIFECYCLE_CHECKS, ids=name_of)
@ensure_deferred
async def test_memory_store_conforms(check: Check) -> None:
    """The store that keeps nothing can be used as any other."""
    await check(lambda: open_store("memory:", reactor))


@ensure_deferred
async def test_suite_finds_a_store_that_forgets() -> None:
    """The suite fails a store that does not keep what it was given."""
    with pytest.raises(AssertionError, match="found '0 jobs', and should be '14 jobs'"):
        await run_all(lambda: lambda: open_store("memory:", reactor))


def test_every_check_is_listed() -> None:
    """No check is written and then forgotten in the lists."""
    from gearman_twisted.store import conformance

    written = {name for name in vars(conformance) if name.startswith("check_")}
    assert written == {name_of(check) for check in CHECKS}
