"""Runs the examples of a page: blocks of Python in order, in one namespace; commands of a console.

A block of Python is awaited if it awaits something. It has to print exactly the lines that begin with ``#>``;
``...`` matches anything. A block whose first line is a comment with a file's name, such as ``# shop.tac``, is
a program: it is not part of the namespace, see ``programs``.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_PATIENCE = 30.0
_SHOWN = re.compile(r"^[ ]*#> ?(.*)$", re.MULTILINE)
_FILE = re.compile(r"# (\S+\.(?:py|tac))\n")


class Block(NamedTuple):
    """A block of Python on a page.

    Attributes:
        line: where it begins on the page, from 1; its fence is the line before.
        code: what stands in it.
    """

    line: int
    code: str

    @property
    def file_name(self) -> str | None:
        """The name of the file that it is, None for one that belongs to the page."""
        named = _FILE.match(self.code)
        return named and named[1]

    @property
    def shown(self) -> list[str]:
        """The lines that it says to print; may be empty."""
        return _SHOWN.findall(self.code)


class Printed:
    """What a block prints, in place of ``print``."""

    def __init__(self) -> None:
        self._text = io.StringIO()

    def __call__(self, *values: object, **options: Any) -> None:
        print(*values, **options, file=self._text)

    @property
    def lines(self) -> list[str]:
        """The lines so far."""
        return self._text.getvalue().splitlines()


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of Python on a page, in order."""
    text = page.read_text()
    for found in _BLOCK.finditer(text):
        yield Block(text.count("\n", 0, found.start(1)) + 1, found[1])


def programs(page: Path, replacements: Mapping[str, str]) -> dict[str, str]:
    """The blocks that are programs of their own, by their file names.

    Args:
        page: where they stand.
        replacements: what stands in their text for something else, such as addresses.
    """
    return {block.file_name: _replaced(block.code, replacements) for block in blocks(page) if block.file_name}


def expect_lines(found: list[str], shown: list[str], where: str) -> None:
    """Compares what was printed with what a page shows.

    Raises:
        AssertionError: they differ; it begins with ``where``.
    """
    pattern = "\n".join(re.escape(line).replace(re.escape("..."), ".*") for line in shown)
    assert re.fullmatch(pattern, "\n".join(found)), f"{where} shows\n{shown}\nand prints\n{found}"


async def run_page(
    page: Path, replacements: Mapping[str, str], namespace: dict[str, Any] | None = None
) -> None:
    """Runs the blocks of a page that are not programs of their own.

    Args:
        page: the page.
        replacements: what stands in their text for something else, such as addresses.
        namespace: where they run; it may hold something already, and holds afterwards all that they made.

    Raises:
        AssertionError: a block does not print what it shows.
        Exception: whatever a block raises; the traceback has the line of the page.
    """
    variables = {} if namespace is None else namespace
    for block in blocks(page):
        if block.file_name is None:
            printed = variables["print"] = Printed()
            awaitable = _start(page, block, replacements, variables)
            if awaitable is not None:
                await awaitable
            shown = [_replaced(line, replacements) for line in block.shown]
            expect_lines(printed.lines, shown, f"{page.name}, line {block.line},")


def _start(
    page: Path, block: Block, replacements: Mapping[str, str], variables: dict[str, Any]
) -> Awaitable[None] | None:
    """Runs a block; if it awaits something, what is to be awaited."""
    source = "\n" * (block.line - 1) + _replaced(block.code, replacements)
    code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if not code.co_flags & inspect.CO_COROUTINE:
        exec(code, variables)
        return None
    # With the flag, what eval makes of such code is a coroutine.
    run = cast("Callable[..., Awaitable[None]]", eval)
    return run(code, variables)


def _replaced(text: str, replacements: Mapping[str, str]) -> str:
    # In one go: a port that was put in may begin with the one that stands in the text.
    old = "|".join(map(re.escape, replacements))
    return re.sub(old, lambda found: replacements[found[0]], text) if old else text


class Typed(NamedTuple):
    """A command that a page shows as typed on a console.

    Attributes:
        line: where it is on the page, from 1.
        command: what is typed.
        shown: the lines that it prints, according to the page.
    """

    line: int
    command: str
    shown: list[str]


def typed(page: Path) -> list[Typed]:
    """Return the commands of the ``console`` blocks of a page, in order."""
    commands: list[Typed] = []
    text = page.read_text()
    for found in _CONSOLE.finditer(text):
        number = text.count("\n", 0, found.start(1)) + 1
        for line in found[1].splitlines():
            if line.startswith("$ "):
                commands.append(Typed(number, line[2:], []))
            else:
                commands[-1].shown.append(line)
            number += 1
    return commands


class Console:
    """Runs what a page shows as typed, in one directory.

    Args:
        page: the page.
        directory: where its files are written and its commands run.
        environment: the environment of its commands.
        replacements: text of the page that is replaced, such as addresses.
    """

    def __init__(
        self, page: Path, directory: Path, environment: Mapping[str, str], replacements: Mapping[str, str]
    ) -> None:
        self._page = page
        self._directory = directory
        self._environment = dict(environment)
        self._replacements = replacements
        self._started: list[subprocess.Popen[bytes]] = []
        for name, code in programs(page, replacements).items():
            (directory / name).write_text(code)

    def run(self, typed: Typed) -> None:
        """Run a command, and compare what it prints; leave it in the background if it ends with ``&``.

        A command that answers something else is repeated for some seconds: programs need time to start.
        """
        command = _replaced(typed.command, self._replacements)
        if command.endswith(" &"):
            with (self._directory / "background.log").open("ab") as log:
                words = ["sh", "-c", f"exec {command.removesuffix(' &')}"]
                self._started.append(
                    subprocess.Popen(
                        words, cwd=self._directory, env=self._environment, stdout=log, stderr=log
                    )
                )
            return
        where = f"{self._page.name}, line {typed.line},"
        deadline = time.monotonic() + _PATIENCE
        while True:
            done = self._run(command)
            try:
                expect_lines(done.stdout.splitlines(), typed.shown, where)
                assert done.returncode == 0, (where, done)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def program(self, name: str) -> None:
        """Run a Python program of the page, and compare what it prints."""
        [block] = [block for block in blocks(self._page) if block.file_name == name]
        done = self._run(f"python {name}")
        assert done.returncode == 0, (name, done)
        expect_lines(done.stdout.splitlines(), block.shown, f"{self._page.name}, {name},")

    def close(self) -> None:
        """Kill what runs in the background."""
        for process in self._started:
            process.kill()
            process.wait()

    def _run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", command],
            cwd=self._directory,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
        )
