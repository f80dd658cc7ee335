"""What commands load before they do something: each call of one pays for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.kit.servers import TwistdGearman, run

# Runs a command in this process, and prints the modules that it has loaded.
_SCRIPT = """
import importlib, sys
command, *words = sys.argv[1:]
main = importlib.import_module(f"gearman_twisted.commands.{command}").main
try:
    status = main(words)
finally:
    print("LOADED", *[name for name, module in sys.modules.items() if module], file=sys.stderr)
"""
# Of whatever stands in the path of packages: the plugins of Twisted, and what their search loads.
_PLUGINS = {"twisted.plugins", "twisted.plugins.gearman_twisted_plugins"}
_SLOW = {"sqlalchemy", "OpenSSL", "cryptography", "ssl", "sqlite3", "rich", "twisted.web", *_PLUGINS}
_LOOPS = {"twisted", "zope", "asyncio"}
_SERVER = {f"gearman_twisted.{folder}" for folder in ("engine", "server", "store", "testing")}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwistdGearman]:
    with TwistdGearman(tmp_path_factory.mktemp("server"), "--store=memory:") as server:
        yield server


@pytest.mark.parametrize(
    ("command", "words", "left_out", "most"),
    [
        ("gearadmin", ["--status"], {*_LOOPS, "gearman_twisted.client", "attr"}, 150),
        ("gearman.__main__", ["--ping"], {*_LOOPS, "gearman_twisted.client", "attr"}, 150),
        ("gearman.__main__", ["-f", "x", "-b", "-s"], {*_LOOPS, "gearman_twisted.worker", "attr"}, 150),
        ("gearman.__main__", ["-w", "-c", "1", "-t", "1", "-f", "x"], set(), 450),
    ],
)
def test_slow_modules_are_left_out(
    ours: TwistdGearman, command: str, words: list[str], left_out: set[str], most: int
) -> None:
    """A command that asks a server in the clear loads neither TLS nor stores nor plugins, nor the server."""
    done = run(sys.executable, "-c", _SCRIPT, command, "-h", "127.0.0.1", "-p", str(ours.port), *words)
    loaded = set(done.stderr.decode().partition("LOADED ")[2].split())
    assert len(loaded) > 50, done.stderr
    forbidden = (_SLOW | _SERVER | left_out) - ({"ssl"} if "asyncio" in loaded else set())
    assert (
        sorted(name for name in loaded if any(f"{name}.".startswith(f"{slow}.") for slow in forbidden)) == []
    )
    assert len(loaded) <= most
