"""How the twistd plugins read their options: what makes no sense is refused in one line.

``usage.UsageError``, as twistd shows it, would bury the reason under a page of help.
"""

from __future__ import annotations

from typing import Any, NoReturn

from twisted.python import usage


class OneLineOptions(usage.Options):
    """Options of a twistd plugin.

    Attributes:
        command: what the user typed to get here, for the messages.
        examples: what follows the options in the help, with its line ends as they are.
    """

    command = "twistd"
    examples = ""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def parseArgs(self, *words: str) -> None:
        """Takes no words but options."""
        if words:
            raise usage.UsageError(f"takes only options, not {words[0]!r}")

    def parseOptions(self, options: Any = None) -> None:
        """Parses the words behind the command."""
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            self.refuse(f"{error}; see {self.command} --help")

    def getUsage(self, width: int | None = None) -> str:
        """The help: Twisted's, which wraps all that it is given, and the examples."""
        return f"{super().getUsage(width)}{self.examples}\n"

    @classmethod
    def refuse(cls, reason: str) -> NoReturn:
        """Ends the process with status 1 and one line on standard error, whatever the reason quotes."""
        raise SystemExit(f"{cls.command}: {' '.join(reason.split())}")
