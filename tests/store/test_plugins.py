"""How kinds of stores are found, and what a wrong URL is answered with."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs
from zope.interface.verify import verifyObject

from gearman_twisted.errors import StoreConfigError
from gearman_twisted.store import installed_stores, open_store
from gearman_twisted.store.contract import IJobStore, IJobStoreFactory
from gearman_twisted.store.plugin import StoreEntry

make_reactor: Any = MemoryReactorClock
reactor: Any = make_reactor()


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of plugins beside the installed ones, as another package would bring it."""
    path = import_module("twisted.plugins").__path__
    monkeypatch.setattr("twisted.plugins.__path__", [*path, str(tmp_path)])
    return tmp_path


def test_our_stores_are_installed() -> None:
    """The stores that come with the package are found, in the order of their schemes."""
    schemes = [factory.scheme for factory in installed_stores()]
    assert {"memory", "sqlite"} <= set(schemes)
    assert schemes == sorted(schemes)


def test_factories_keep_the_interface() -> None:
    """Each of our entries has all that --help-store prints, and makes a store that keeps the interface."""
    for factory in installed_stores():
        assert verifyObject(IJobStoreFactory, factory)
        assert factory.summary
        assert factory.argument_help.startswith(f"{factory.scheme}:")
    assert verifyObject(IJobStore, open_store("sqlite:jobs.db", reactor))
    assert verifyObject(IJobStore, open_store("memory:", reactor))


@pytest.mark.parametrize("url", ["mysqlx://joe:secret@host/db", "sqlite", "", ":", "SQLITE:x"])
def test_unknown_scheme(url: str) -> None:
    """A URL for which there is no store is answered with the schemes there are, without its password."""
    with pytest.raises(StoreConfigError, match=r"memory, .*sqlite.*--help-store") as caught:
        open_store(url, reactor)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite:", "needs the path"),
        ("sqlite::memory:", "write memory:"),
        ("sqlite:jobs.db?mode=ro", "no option 'mode'; it takes sync"),
        ("sqlite:?sync=always", "needs the path"),
        ("memory:x", "takes nothing after the colon, not 'x'"),
    ],
)
def test_url_that_makes_no_sense(url: str, says: str) -> None:
    """A URL that its store cannot make sense of is refused with a hint."""
    with pytest.raises(StoreConfigError, match=says):
        open_store(url, reactor)


def test_broken_plugins_are_left_out(plugins: Path) -> None:
    """Other people's broken plugins are logged, and ours work on."""
    (plugins / "gearman_test_broken.py").write_text("import no_such_module_at_all\n")
    (plugins / "gearman_test_incomplete.py").write_text(
        "from twisted.plugin import IPlugin\n"
        "from zope.interface import implementer\n"
        "from gearman_twisted.store.contract import IJobStoreFactory\n"
        "@implementer(IPlugin, IJobStoreFactory)\n"
        "class Incomplete:\n"
        "    scheme = 'incomplete'\n"
        "incomplete = Incomplete()\n"
    )
    with capturedLogs() as logged:
        schemes = [factory.scheme for factory in installed_stores()]
    assert {"memory", "sqlite"} <= set(schemes)
    assert "incomplete" not in schemes
    assert any("no_such_module_at_all" in str(event.get("log_text")) for event in logged)
    assert any("summary" in str(event.get("error")) for event in logged)


def test_third_party_store(plugins: Path) -> None:
    """A package adds a kind of store with a module of four lines."""
    (plugins / "gearman_test_third.py").write_text(
        "from gearman_twisted.store.plugin import StoreEntry\n"
        "third = StoreEntry('third', 'A third one.', 'third:', 'third.store:open_third')\n"
    )
    assert "third" in [factory.scheme for factory in installed_stores()]


def test_missing_driver() -> None:
    """A store whose driver is not installed says so when it is asked for, not before."""
    entry = StoreEntry("lacking", "", "", "no_such_driver_module:open_it")
    with pytest.raises(StoreConfigError, match="no_such_driver_module"):
        entry.open_store("lacking:", reactor)


def test_plugin_module_is_light() -> None:
    """What `twistd --help` imports brings in no database and no reactor."""
    code = (
        "import sys, twisted.plugins.gearman_twisted_plugins\n"
        "heavy = {'sqlite3', 'twisted.internet.reactor'}\n"
        "heavy.add('gearman_twisted.commands.twistd.server')\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
