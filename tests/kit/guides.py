"""Runs the Python examples of a documentation page: its blocks in order, in one namespace.

A block is awaited where it awaits something. It has to print what it shows in lines that begin with ``#>``,
and nothing else; ``...`` stands there for what differs from run to run. A block whose first line is a comment
with a file's name, such as ``# shop.tac``, is a program of its own: it is not run here, see ``programs``.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
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
