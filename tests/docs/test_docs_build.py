"""The documentation can be built, and has what it should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

import gearman_twisted
from tests.kit.paths import DOCS, ROOT, doc_page

OURS = re.compile(r"^\.\. auto(?:module|class|function):: (gearman_twisted[\w.]*)", re.MULTILINE)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as HTML, made as ``make docs`` makes them."""
    directory = tmp_path_factory.mktemp("docs")
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "."]
    done = subprocess.run(
        [*words, directory / "html", "-d", directory / "read"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return directory / "html"


def test_makefile_builds_it_in_the_same_way() -> None:
    """The target of the Makefile is what is tested here."""
    words = " -m sphinx -q -W --keep-going -c docs . build/docs "
    assert words in (ROOT / "Makefile").read_text()


def test_all_pages_are_there(built: Path) -> None:
    """Each page is built, and the table of contents on the first one leads to it; so does the entry."""
    index = (built / "docs" / "index.html").read_text()
    for page in [*DOCS.rglob("*.md"), *(ROOT / "examples").glob("**/README.md")]:
        name = page.relative_to(ROOT).with_suffix(".html")
        assert (built / name).is_file()
        link = Path(os.path.relpath(name, "docs")).as_posix()
        assert page.name == "index.md" or f'href="{link}"' in index, name
    assert "url=docs/index.html" in (built / "index.html").read_text()


def test_public_names_are_documented(built: Path) -> None:
    """What the package offers by name stands on the page of the API, with what its docstring says."""
    page = (built / "docs" / "reference" / "api.html").read_text()
    for name in set(gearman_twisted.__all__) - {"__version__"}:
        assert re.search(rf'id="gearman_twisted(\.[a-z_]+)*\.{name}"', page), name
    for name in OURS.findall(doc_page("api.md").read_text()):
        assert name in page
    text = unescape(re.sub(r"<[^>]+>", "", page)).replace("\N{EN DASH}", "-")
    text = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    # Of each kind of section, that it was understood as one.
    assert "function (str | bytes) - the function's name, text as UTF-8; 1 to 8191 bytes without NUL." in text
    assert "ConfigError - the server's address makes no sense." in text
    assert "An asynchronous iterator of Outcomes, in the order in which the jobs end." in text
    assert "the server can still hear of the job: it has not ended, and the connection is there." in text
    for left_over in ("Args:", "Raises: ", "``", "\\ ", "InterfaceClass"):
        assert left_over not in text
