"""Decides which test files are quick: pure or in memory, without sockets, processes and databases.

A file is quick if neither it nor a helper that it imports uses anything in ``OUTSIDE``. Nobody marks tests
by hand: a file that begins to start processes leaves ``make quick`` by itself.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from tests.kit.paths import ROOT

OUTSIDE = (
    *("subprocess", "socket", "sqlite3", "multiprocessing", "signal"),
    *("twisted.internet.endpoints", "twisted.internet.reactor", "pytest_twisted"),
    *("gearman_twisted.store.open_store", "gearman_twisted.store.sql", "gearman_twisted.store.redis"),
    *("gearman_twisted.worker.in_process", "gearman_twisted.worker.executors"),
    *("benchmarks", "docs"),
)


def is_quick(path: Path) -> bool:
    """Return whether a test file stays in memory."""
    return not any(f"{name}.".startswith(f"{outside}.") for name in _reached(path) for outside in OUTSIDE)


def _reached(path: Path) -> set[str]:
    """Return what a file imports, and what the helpers among that import."""
    names: set[str] = set()
    waiting = [path]
    while waiting:
        new = _imported(waiting.pop()) - names
        names |= new
        helpers = [
            ROOT.joinpath(*name.split(".")).with_suffix(".py") for name in new if name.startswith("tests.")
        ]
        waiting += [helper for helper in helpers if helper.exists()]
    return names


@cache
def _imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names
