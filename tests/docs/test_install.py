"""Whatever says how to install something names a command that works: there is no package on an index."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gearman_twisted.package import install_command
from tests.kit.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
USERS = ["mysql", "postgres", "progress", "redis", "tls"]


def sources() -> list[Path]:
    """Everything in the checkout that a user reads, or is shown."""
    folders = ["benchmarks", "changelog.d", "contrib", "docs", "examples", "gearman_twisted", "twisted"]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    return [*ROOT.glob("*.md"), ROOT / "Makefile", *(path for path in files if path.is_file())]


def test_nothing_is_installed_by_the_name_of_the_package() -> None:
    """No page, message or note says to install our package by its name; one page says that this fails."""
    by_name = re.compile(r"(?:pip|pipx) install ['\"]?gearman[-_]twisted(?![-_.]*\d| @)")
    said = {path.name for path in sources() if by_name.search(path.read_text("utf-8", "replace"))}
    assert said == {"install.md"}
    page = (ROOT / "docs/run/install.md").read_text()
    assert len(by_name.findall(page)) == 1
    assert "`pip install gearman-twisted` finds nothing" in page


@pytest.mark.parametrize("extra", USERS)
def test_command_for_an_extra(extra: str) -> None:
    """It has the packages of the extra, for the Python that runs, and works."""
    words = shlex.split(install_command(f"gearman-twisted[{extra}]"))
    assert words[:4] == [sys.executable, "-m", "pip", "install"]
    assert words[4:] == [requirement.replace(" ", "") for requirement in EXTRAS[extra]]
    # All is installed where the tests run, so nothing is looked up.
    done = subprocess.run([*words, "--no-index"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_command_for_another_package() -> None:
    """A store of someone else's is installed as it says."""
    assert install_command("their-store>=2").endswith("pip install 'their-store>=2'")


def test_command_in_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an installation there is no list of packages, but a checkout."""

    def requires(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert install_command("gearman-twisted[tls]") == "pip install '.[tls]' in a checkout"
