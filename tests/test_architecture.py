"""Holds the project to its layers: who may import whom, and how large a file may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gearman_twisted"
PLUGINS = ROOT / "twisted" / "plugins" / "gearman_twisted_plugins.py"

MAX_LINES = 600

# Lowest first. A name stands for a module, or for a package with all that is in it. A module imports from
# the layers below it, and sparingly from its own.
LAYERS = (
    ("errors",),
    ("config",),
    ("wire",),
    ("engine",),
    ("interfaces",),
    (
        "address",
        "asking",
        "codecs",
        "hostport",
        "job",
        "keepalive",
        "listening",
        "memory_network",
        "metrics",
        "options",
        "signals",
        "store",
        "tasks",
        "tls",
        "transport",
        "readers",
    ),
    (
        "aio",
        "server",
        "http",
        "service",
        "client",
        "worker",
        "calls",
        "client_protocol",
        "parallel",
        "executors",
        "processes",
        "executor_child",
        "command_process",
        "exec_function",
        "functions",
        "configured_worker",
        "worker_config",
        "worker_child",
        "supervisor",
        "worker_protocol",
        "worker_runs",
        "pool",
        "admin",
        "testing",
    ),
    ("cli", "pytest_plugin", "startup", "tap", "worker_tap", "web"),
)
# What the pure layers may not even know of: time, chance and the outside come in as arguments.
IMPURE = {
    *("twisted", "zope", "time", "random", "secrets", "uuid", "datetime"),
    *("socket", "ssl", "select", "selectors", "os", "pathlib", "signal", "subprocess"),
    *("logging", "asyncio", "threading", "multiprocessing", "concurrent"),
}


@attrs.frozen
class Import:
    """One import of a module.

    Attributes:
        module: what is imported, by its full name.
        line: where.
        is_for_types: it is under ``if TYPE_CHECKING``, and so never happens.
        is_at_import: it happens when the module is imported, and not when a function is called.
    """

    module: str
    line: int
    is_for_types: bool
    is_at_import: bool


def imports_of(path: Path) -> Iterator[Import]:
    """All imports of a file, wherever they stand in it."""
    return _imports_in(ast.parse(path.read_text(encoding="utf-8")), is_for_types=False, is_at_import=True)


def _imports_in(node: ast.AST, *, is_for_types: bool, is_at_import: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, node.lineno, is_for_types, is_at_import)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: imports are absolute"
        for alias in node.names:
            # Of ``from package import name`` the name may be a module.
            yield Import(f"{node.module}.{alias.name}", node.lineno, is_for_types, is_at_import)
    is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        is_guarded = (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and child in node.body
        )
        yield from _imports_in(
            child,
            is_for_types=is_for_types or is_guarded,
            is_at_import=is_at_import and not is_function,
        )


def modules() -> list[Path]:
    """Every file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """A file as it is shown."""
    return str(path.relative_to(ROOT))


def layer_of(name: str) -> int | None:
    """The layer of a module of ours by its name within the package, None for the package itself."""
    first = name.split(".", maxsplit=1)[0]
    for number, layer in enumerate(LAYERS):
        if first in layer:
            return number
    return None


every_module = pytest.mark.parametrize("path", modules(), ids=name_of)


@every_module
def test_module_has_a_layer(path: Path) -> None:
    """A new module has to say where it belongs: add it to ``LAYERS``."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert first in {"__init__", "__main__"} or layer_of(first) is not None


@every_module
def test_module_imports_only_downward(path: Path) -> None:
    """No module imports one of a layer above it; within a layer, only for types or sparingly."""
    relative = path.relative_to(PACKAGE)
    own = layer_of(relative.parts[0].removesuffix(".py"))
    if own is None:
        return
    upward = []
    for found in imports_of(path):
        package, _, name = found.module.partition(".")
        layer = layer_of(name) if package == "gearman_twisted" else None
        if layer is not None and layer > own:
            upward.append(f"line {found.line}: {found.module}")
    assert upward == []


@pytest.mark.parametrize(
    "path", [path for path in modules() if path.parent.name in {"wire", "engine"}], ids=name_of
)
def test_wire_and_engine_are_pure(path: Path) -> None:
    """No clock, no chance, no I/O and no Twisted in the pure layers, not even in a function or for types."""
    impure = [
        f"line {found.line}: {found.module}"
        for found in imports_of(path)
        if found.module.split(".")[0] in IMPURE
    ]
    assert impure == []


@every_module
def test_no_reactor_at_module_level(path: Path) -> None:
    """Importing the package never chooses a reactor: reactor and clock are parameters."""
    early = [
        found.line
        for found in imports_of(path)
        if found.module.startswith("twisted.internet.reactor")
        and found.is_at_import
        and not found.is_for_types
    ]
    assert early == []


def test_plugin_file_is_light() -> None:
    """``twistd --help`` imports the plugin file, so it imports two names and nothing else."""
    assert {found.module for found in imports_of(PLUGINS)} == {
        "twisted.application.service.ServiceMaker",
        "gearman_twisted.store.plugin.StoreEntry",
    }


@pytest.mark.parametrize("path", [*modules(), PLUGINS, *sorted((ROOT / "tests").rglob("*.py"))], ids=name_of)
def test_file_is_not_too_long(path: Path) -> None:
    """A file past 600 lines wants to be two."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_walk_finds_what_it_should(tmp_path: Path) -> None:
    """The walk sees imports in functions, under conditions and for types, and tells them apart."""
    source = tmp_path / "module.py"
    source.write_text(
        "import os.path\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from a import b\nelse:\n    import c\n"
        "def f():\n    from twisted.internet import reactor\n"
        "try:\n    import d\nexcept ImportError:\n    pass\n"
    )
    assert list(imports_of(source)) == [
        Import("os.path", 1, False, True),
        Import("typing.TYPE_CHECKING", 2, False, True),
        Import("a.b", 4, True, True),
        Import("c", 6, False, True),
        Import("twisted.internet.reactor", 8, False, False),
        Import("d", 10, False, True),
    ]
