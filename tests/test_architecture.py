"""Holds the project to its layout: who may import whom, who may know Twisted, no circles, file sizes."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import attrs
import pytest

from tests.kit.paths import ROOT

PACKAGE = ROOT / "gearman_twisted"
PLUGINS = ROOT / "twisted" / "plugins" / "gearman_twisted_plugins.py"

MAX_LINES = 600

# A folder, or a file in the root of the package, and the others that it may import besides itself.
_EVERYTHING_PURE = {"package", "errors", "wire"}
MAY_IMPORT: dict[str, set[str]] = {
    "package": set(),
    "errors": set(),
    "wire": {"errors"},
    "engine": {"errors", "wire"},
    "runtime": _EVERYTHING_PURE,
    "store": {*_EVERYTHING_PURE, "engine"},
    "client": {*_EVERYTHING_PURE, "runtime"},
    "worker": {*_EVERYTHING_PURE, "runtime"},
    "server": {*_EVERYTHING_PURE, "engine", "runtime", "store", "client"},
    "testing": {*_EVERYTHING_PURE, "engine", "runtime", "store", "client", "worker", "server"},
    "commands": {*_EVERYTHING_PURE, "engine", "runtime", "store", "client", "worker", "server"},
    "aio": {*_EVERYTHING_PURE, "runtime", "client", "worker", "testing"},
    "__init__": {*_EVERYTHING_PURE, "runtime", "store", "client", "worker", "server"},
}

# What the pure files may not even know of: time, chance and the outside come in as arguments.
IMPURE = {
    *("twisted", "zope", "time", "random", "secrets", "uuid", "datetime"),
    *("socket", "ssl", "select", "selectors", "os", "pathlib", "signal", "subprocess"),
    *("logging", "asyncio", "threading", "multiprocessing", "concurrent"),
}
PURE_FOLDERS = {"wire", "engine"}
PURE_FILES = {
    *("client/balancing.py", "client/call.py", "client/requests.py", "client/session.py"),
    *("worker/groups.py", "worker/session.py", "worker/slots.py"),
}

# Only these folders, files named ``on_twisted.py``, and what ``runtime/`` has for Twisted may import Twisted.
# The worker's service is a command of twistd.
TWISTED_FOLDERS = ("server/", "store/", "commands/", "testing/", "worker/service/")
TWISTED_FILES = ("runtime/address.py", "runtime/tls.py", "runtime/transport.py", "runtime/signals.py")


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


every_module = pytest.mark.parametrize("path", modules(), ids=name_of)


def module_of(path: Path) -> str:
    """The dotted name of a file of the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in modules()}


def imported_modules(path: Path) -> set[str]:
    """The modules of the package that a file imports, those under ``TYPE_CHECKING`` and in functions too."""
    found = set()
    for each in imports_of(path):
        # ``from package import module`` imports both.
        names = {each.module, each.module.rpartition(".")[0]} & MODULES.keys()
        found |= names - {module_of(path)}
    return found


def folder_of(module: str) -> str:
    """The folder, or the file in the root, that a module of the package belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """All sets of nodes that reach one another."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        todo = [start]
        while todo:
            new = graph[todo.pop()] - seen
            seen |= new
            todo += new
        reached[start] = seen
    found = {frozenset(b for b in reached[a] if a in reached[b]) for a in graph if a in reached[a]}
    return [set(each) for each in sorted(found, key=sorted)]


@every_module
def test_folder_imports_only_what_it_may(path: Path) -> None:
    """A folder imports from those before it in the order, never the other way; a new one has to say where."""
    own = folder_of(module_of(path))
    foreign = {folder_of(module) for module in imported_modules(path)} - {own}
    assert foreign <= MAY_IMPORT[own]


def test_no_import_circles() -> None:
    """No module imports itself by way of others, not even for types: each can be read on its own."""
    found = circles({module_of(path): imported_modules(path) for path in modules()})
    assert found == []


def test_circles_are_found() -> None:
    """Two nodes that reach each other are a circle; one that only reaches it is not in it."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [{"b", "c"}]


@every_module
def test_pure_files_stay_pure(path: Path) -> None:
    """No clock, no chance, no I/O and no Twisted where the rules are, not even in a function or for types."""
    name = path.relative_to(PACKAGE).as_posix()
    if name.split("/")[0] not in PURE_FOLDERS and name not in PURE_FILES:
        return
    impure = [
        f"line {found.line}: {found.module}"
        for found in imports_of(path)
        if found.module.split(".")[0] in IMPURE
    ]
    assert impure == []


@every_module
def test_twisted_is_imported_where_it_may_be(path: Path) -> None:
    """What is written once for both event loops imports neither; asyncio programs never load Twisted."""
    name = path.relative_to(PACKAGE).as_posix()
    if name.startswith(TWISTED_FOLDERS) or path.name == "on_twisted.py" or name in TWISTED_FILES:
        return
    assert not any(found.module.split(".")[0] in {"twisted", "zope"} for found in imports_of(path))


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


@every_module
def test_public_names_have_docstrings(path: Path) -> None:
    """What users may call says what it does; a method that overrides another inherits its docstring."""
    if path.name == "__main__.py":
        return
    module = importlib.import_module(module_of(path))
    public = [
        value
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    bare = [value.__name__ for value in public if callable(value) and not inspect.getdoc(value)]
    for cls in filter(inspect.isclass, public):
        if getattr(cls, "_is_protocol", False):
            continue  # some of their methods say all by their name
        for name in vars(cls):
            member = inspect.getattr_static(cls, name)
            if not name.startswith("_") and isinstance(member, FunctionType | property | classmethod):
                bare += [f"{cls.__name__}.{name}"] if not inspect.getdoc(getattr(cls, name)) else []
    assert bare == []


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
