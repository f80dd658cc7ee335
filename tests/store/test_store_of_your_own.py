"""The store in the documentation, taken from the page as it stands there, is a store like any other."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as default_reactor

from gearman_twisted.errors import StoreConfigError, StoreUnavailable
from gearman_twisted.store import installed_stores, open_store
from gearman_twisted.store.conformance import CHECKS, Check, a_job, name_of
from gearman_twisted.store.contract import IJobStore
from gearman_twisted.wire.constants import PacketType
from tests.kit.paths import doc_page
from tests.kit.servers import TwistdGearman, WirePeer

reactor: Any = default_reactor
ensure_deferred: Callable[[Callable[..., object]], Callable[..., None]] = pytest_twisted.ensureDeferred
PAGE = doc_page("stores.md")
MAX_LINES = 60


def files() -> dict[str, str]:
    """The files that the page tells to write, by their paths."""
    section = PAGE.read_text().partition("## A store of your own\n")[2]
    return dict(
        re.findall(r"^`([\w/]+\.py)`,[^\n]*:\n\n```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    )


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with these files, on Python's path as a package would be that brings them."""
    root = tmp_path / "package"
    for name, text in files().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.syspath_prepend(str(root))
    # Twisted looks once, when it is imported, where there are plugins.
    plugins = import_module("twisted.plugins").__path__
    monkeypatch.setattr("twisted.plugins.__path__", [*plugins, str(root / "twisted" / "plugins")])
    monkeypatch.delitem(sys.modules, "jsonlines_store", raising=False)
    return root


@pytest.fixture
def url(package: Path, tmp_path: Path) -> str:
    """The URL of an empty store."""
    assert package.exists()
    return f"jsonlines:{tmp_path}/jobs.txt"


def test_it_is_as_short_as_the_page_says() -> None:
    """The page has the store and its plugin, and the store has at most 60 lines."""
    assert list(files()) == ["jsonlines_store.py", "twisted/plugins/jsonlines_plugin.py"]
    assert len(files()["jsonlines_store.py"].splitlines()) <= MAX_LINES
    assert f"{MAX_LINES} lines" in PAGE.read_text()


def test_it_is_found(url: str) -> None:
    """Its plugin makes it a kind of store."""
    assert "jsonlines" in [factory.scheme for factory in installed_stores()]
    assert open_store(url, reactor).description.startswith("JSON lines in /")


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
@ensure_deferred
async def test_it_conforms(check: Check, url: str) -> None:
    """It keeps every promise that IJobStore makes."""
    await check(lambda: open_store(url, reactor))


async def replayed(store: IJobStore) -> list[int]:
    """The ids of all that it has."""
    ids: list[int] = []
    await store.open()
    await store.replay(lambda jobs: ids.extend(job.id for job in jobs))
    await store.close()
    return ids


@ensure_deferred
async def test_a_commit_that_was_cut_short_is_left_out(url: str) -> None:
    """Whatever a crash left of the last commit, those before it are there, and more can follow."""
    path = Path(url.partition(":")[2])
    store = open_store(url, reactor)
    await store.open()
    await store.apply([a_job(1)], [])
    whole = path.read_bytes()
    await store.apply([a_job(2), a_job(3)], [1])
    await store.close()
    added = path.read_bytes()[len(whole) :]
    for kept in (0, 1, 2, len(added) // 2, len(added) - 2):
        for rest in (b"", bytes(len(added) - kept)):
            path.write_bytes(whole + added[:kept] + rest)
            assert await replayed(open_store(url, reactor)) == [1]
            assert await replayed(open_store(url, reactor)) == [1]


@ensure_deferred
async def test_it_refuses_what_it_cannot_have(url: str) -> None:
    """A file that another server has, is damaged or something else is refused, and left as it is."""
    path = Path(url.partition(":")[2])
    store = open_store(url, reactor)
    await store.open()
    with pytest.raises(StoreUnavailable, match="in use"):
        await open_store(url, reactor).open()
    await store.apply([a_job(1)], [])
    await store.close()
    damaged = path.read_bytes()[:20] + b"\0\n" + path.read_bytes()
    path.write_bytes(damaged)
    with pytest.raises(StoreUnavailable, match="damaged"):
        await open_store(url, reactor).open()
    assert path.read_bytes() == damaged
    path.write_bytes(b"[section]\n")
    for place in (url, "jsonlines:/", "jsonlines:/no/such/directory/jobs"):
        with pytest.raises(StoreConfigError, match="name another file"):
            open_store(place, reactor).check()
    assert path.read_bytes() == b"[section]\n"


def test_a_server_uses_it(package: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was killed with it has its jobs again."""
    monkeypatch.setenv("PYTHONPATH", str(package))
    with TwistdGearman(package, f"--store={url}") as server, WirePeer(server.port) as client:
        for number in range(20):
            created = client.ask(PacketType.SUBMIT_JOB_BG, b"f", b"", b"%d" % number)
            assert created is not None
            assert created.type == PacketType.JOB_CREATED
        server.end(signal.SIGKILL)
    with TwistdGearman(package, f"--store={url}") as server, WirePeer(server.port) as worker:
        assert list(worker.drain(b"f")) == [b"%d" % number for number in range(20)]
        assert server.end() == 0
