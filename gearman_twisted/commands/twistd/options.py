"""What the options of both twistd plugins have in common.

Invalid options are refused in one line, as ``usage.UsageError`` would bury the reason under a page of
help; and help has groups, as that of the other commands.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from twisted.python import usage

from gearman_twisted.commands.twistd.log import keep_log_file
from gearman_twisted.package import __version__


class OneLineOptions(usage.Options):
    """Options of a twistd plugin.

    Attributes:
        command: what the user typed to get here, for error messages.
        longdesc: what stands before the options in the help, with its line ends as they are.
        examples: what stands after them, likewise.
        groups: the headings of the help, each with the long options under it.
        takes: per option with a value, what stands for the value in the help.
    """

    command = "twistd"
    longdesc = ""
    examples = ""
    groups: Sequence[tuple[str, Sequence[str]]] = ()
    takes: Mapping[str, str] = {}

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def parseArgs(self, *words: str) -> None:
        """Refuse words that are no options."""
        if words:
            raise usage.UsageError(f"takes only options, not {words[0]!r}")

    def parseOptions(self, options: Any = None) -> None:
        """Parse the words behind the command."""
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            self.refuse(f"{error}; see {self.command} --help")

    def postOptions(self) -> None:
        """Have a log file that can be reopened, and in the foreground no pid file unless one was asked for.

        A process in the foreground needs no pid file. Twisted's default, ``twistd.pid`` in the working
        directory, keeps a second service there from starting, and also the same one in a container that was
        killed: there the process of the file is always alive, as both are process 1.
        """
        daemon = self.parent
        if daemon is None:
            return
        keep_log_file(daemon)
        # twistd looks at the file after it has parsed these options. It does not keep which were given.
        is_given = any(word.startswith("--pid") for word in sys.argv)
        if (daemon["nodaemon"] or daemon["debug"]) and not is_given:
            daemon["pidfile"] = ""

    def getUsage(self, width: int | None = None) -> str:
        """Return the help."""
        parser = argparse.ArgumentParser(
            usage=argparse.SUPPRESS,
            description=self.longdesc,
            epilog=self.examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
        )
        shorts = {long: f"-{short}" for short, long in self.synonyms.items() if len(short) == 1}
        for title, names in self.groups:
            group = parser.add_argument_group(title)
            for name in names:
                kind: dict[str, Any] = {"metavar": self.takes[name]} if f"{name}=" in self.longOpt else {}
                group.add_argument(
                    *([shorts[name]] if name in shorts else []),
                    f"--{name}",
                    help=self.docs[name].replace("%", "%%"),
                    **(kind or {"action": "store_true"}),
                )
        return parser.format_help()

    def opt_version(self) -> NoReturn:
        """show the version of gearman_twisted, and exit"""  # noqa: D403, D415 - a line of the help
        sys.stdout.write(f"gearman_twisted {__version__}\n")
        raise SystemExit(0)

    def opt_help(self) -> NoReturn:
        """show this, and exit"""  # noqa: D403, D415
        sys.stdout.write(f"{self}\n")
        raise SystemExit(0)

    @classmethod
    def refuse(cls, reason: str) -> NoReturn:
        """End the process with status 1 and one line on standard error, whatever the reason quotes."""
        raise SystemExit(f"{cls.command}: {' '.join(reason.split())}")
