"""What README and the tutorial tell a new user to type does what they say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tests.kit.guides import Console, blocks, typed
from tests.kit.paths import ROOT, doc_page
from tests.kit.servers import BIN, ServerProcess, TwistdGearman, run

START = "make run"
ACTIVATE = ". .venv/bin/activate"


class FirstServer(ServerProcess):
    """What ``make run`` runs, on another port."""

    def __init__(self, directory: Path, place: str) -> None:
        words = [str(BIN / "twistd"), "--nodaemon", "gearman", f"--listen={place}"]
        super().__init__(directory, *words)


@contextmanager
def console(page: Path, directory: Path, port: int) -> Iterator[Console]:
    """A console with the page's files, whose commands and programs find the server at its port."""
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(directory),
        "GEARMAN_SERVER": f"127.0.0.1:{port}",
    }
    replacements = {
        "127.0.0.1:4730": f"127.0.0.1:{port}",
        "gearman-worker": f"gearman-worker --server 127.0.0.1:{port}",
    }
    with closing(Console(page, directory, environment, replacements)) as opened:
        yield opened


def test_make_run_is_what_the_pages_say() -> None:
    """``make run`` starts the server in the foreground, on its default port and store."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    [run_line] = [after for line, after in pairwise(lines) if line.startswith("run:")]
    assert run_line == "\t$(BIN)/twistd --nodaemon gearman $(ARGS)"


def test_readme(tmp_path: Path) -> None:
    """README's commands and program run as they are printed."""
    page = ROOT / "README.md"
    with TwistdGearman(tmp_path) as server, console(page, tmp_path, server.port) as opened:
        first, *others = typed(page)
        assert first.command == START
        for command in others:
            opened.run(command)
        opened.program("hello.py")


def test_tutorial(tmp_path: Path) -> None:
    """The tutorial runs as it is printed; its job survives the kill of the server."""
    page = doc_page("tutorial.md")
    first, activate, *others = typed(page)
    assert (first.command, activate.command) == (START, ACTIVATE)
    submit, status, again, *later = others
    with FirstServer(tmp_path, "tcp:0:interface=127.0.0.1") as server:
        with console(page, tmp_path, server.port) as opened:
            opened.run(submit)
            opened.run(status)
        server.process.kill()
        port = server.port
    with FirstServer(tmp_path, f"tcp:{port}:interface=127.0.0.1"), console(page, tmp_path, port) as opened:
        for command in (again, *later):
            opened.run(command)
        opened.program("ask.py")


@pytest.mark.parametrize("name", ["README.md", "tutorial.md"])
def test_nothing_is_left_untried(name: str) -> None:
    """Each block of Python is a file, and each command is on a console; the rest installs."""
    page = ROOT / name if name == "README.md" else doc_page(name)
    assert all(block.file_name for block in blocks(page))
    others = [
        line for part in page.read_text().split("```sh\n")[1:] for line in part.split("```")[0].splitlines()
    ]
    assert all("install" in line for line in others)


def test_installing_is_what_the_extras_are() -> None:
    """The page about installing names every extra that is for users."""
    page = doc_page("install.md").read_text()
    for extra in ("tls", "postgres", "mysql", "redis", "progress", "examples"):
        assert f"| `{extra}` |" in page
    for command in ("gearmand", "gearman", "gearadmin", "gearman-store"):
        assert run(BIN / command, "--version").returncode == 0
