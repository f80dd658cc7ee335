"""What ``gearman`` shows to a person on a terminal while a job runs."""

from __future__ import annotations

from typing import BinaryIO

_CELLS = 30


class ProgressBar:
    """A line on a terminal that is written over again, and makes room for all else.

    Args:
        file: the terminal.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._is_shown = False

    def show(self, function: bytes, percent: int) -> None:
        """Show how far a job is; workers may report more than 100 %."""
        full = min(percent, 100) * _CELLS // 100
        self._file.write(b"\r%b [%-*b] %d %%\x1b[K" % (function, _CELLS, b"#" * full, percent))
        self._file.flush()
        self._is_shown = True

    def clear(self) -> None:
        """Take the line away. Idempotent."""
        if self._is_shown:
            self._is_shown = False
            self._file.write(b"\r\x1b[K")
            self._file.flush()
