"""How far ``gearman-store`` is, on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TextIO

# Seconds between two states of the line: terminals are slow.
_PAUSE = 0.1


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show on standard error how far something is, if that is a terminal: with ``rich`` if it is installed.

    Args:
        title: what is done.
        total: how many jobs it is about, if that is known.

    Yields:
        What is called with the number of jobs that were done since the last call.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
    elif find_spec("rich") is None:
        with _Line(sys.stderr, title, total) as line:
            yield line.advance
    else:
        with _rich_bar(title, total) as advance:
            yield advance


@contextmanager
def _rich_bar(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda number: bar.advance(task, number)


class _Line:
    """A line that is written over again, and is gone at the end: ``copying: 42 % (420 of 1,000)``."""

    def __init__(self, file: TextIO, title: str, total: int | None) -> None:
        self._file = file
        self._title = title
        self._total = total
        self._done = 0
        self._next = 0.0

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._write("")

    def advance(self, number: int) -> None:
        self._done += number
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _PAUSE
        text = f"{self._title}: {self._done:,}"
        if self._total:
            text = f"{self._title}: {self._done * 100 // self._total} % ({self._done:,} of {self._total:,})"
        self._write(text)

    def _write(self, text: str) -> None:
        self._file.write(f"\r{text}\x1b[K")
        self._file.flush()
