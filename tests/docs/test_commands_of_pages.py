"""The commands that pages show in ``sh`` blocks are commands that are taken."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from gearman_twisted.commands.arguments import parse as parse_gearman
from gearman_twisted.commands.gearmand.options import parse as parse_gearmand
from gearman_twisted.commands.twistd.server import Options
from tests.kit.certificates import Certificates
from tests.kit.paths import DOCS, ROOT

# Other people's commands; the worker's and those of gearadmin and gearman-store have tests of their own.
OTHERS = {
    *("apt-get", "curl", "mariadb", "pip", "pipx", "redis-cli", "sqlite3", "sudo"),
    *("gearadmin", "gearman-store", "gearman-worker", "-y"),
}
TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def shown() -> Iterator[tuple[str, str]]:
    """Yield each line of the ``sh`` blocks of README and docs, and the page that it is on."""
    for page in (ROOT / "README.md", *sorted(DOCS.rglob("*.md"))):
        for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
            for line in block.splitlines():
                yield page.name, line


def command_of(line: str) -> tuple[str, list[str]]:
    """Return the command of a line and its arguments; of ``twistd`` what it runs."""
    words = shlex.split(line.partition(" | ")[0], comments=True)
    while re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    if words[0] == "twistd":
        words = words[2:] if words[1] == "-n" else words[1:]
        words[0] = {"gearman": "twistd gearman"}.get(words[0], words[0])
    return words[0], words[1:]


SHOWN = list(shown())


@pytest.mark.parametrize(("page", "line"), SHOWN, ids=[f"{page}: {line}" for page, line in SHOWN])
def test_command_is_taken(page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our commands take the options that pages show, and ``make`` has the targets."""
    monkeypatch.chdir(tmp_path)  # where the certificates of the pages are
    command, words = command_of(line)
    if command == "twistd gearman":
        Options().parseOptions(words)
    elif command == "gearmand":
        Certificates(tmp_path)
        parse_gearmand([*words, "--config-file="], {})
    elif command == "gearman":
        parse_gearman(words)
    elif command == "make":
        assert words[0] in TARGETS
    else:
        assert command in OTHERS, f"{page}: {command}"
