"""The documentation can be built, and has what it should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import unescape
from importlib import import_module
from pathlib import Path

import pytest

from gearman_twisted import errors
from tests.kit.paths import DOCS, ROOT, doc_page

PACKAGES = ("aio", "client", "errors", "server", "store", "testing", "worker")


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
    """What the packages export stands on the page of the API, with what its docstring says."""
    source = doc_page("api.md").read_text()
    page = (built / "docs" / "reference" / "api.html").read_text()
    ids = set(re.findall(r'id="(gearman_twisted[\w.]*)"', page))
    packages = re.findall(r"^\.\. public-names:: (\S+)$", source, re.MULTILINE)
    for package in ("gearman_twisted", *(f"gearman_twisted.{name}" for name in PACKAGES)):
        assert package in packages
    documented: set[int] = set()
    for name in packages:
        module = import_module(name)
        for public in getattr(module, "__all__", []):
            if f"{name}.{public}" in ids:
                documented.add(id(getattr(module, public)))
    for name in packages:
        module = import_module(name)
        for public in set(getattr(module, "__all__", [])) - {"__version__"}:
            assert id(getattr(module, public)) in documented, f"{name}.{public}"
    # What a class inherits is shown with the class, or with the base if that is public too.
    for package in ("aio", "client"):
        client = import_module(f"gearman_twisted.{package}").GearmanClient
        assert any(f"gearman_twisted.{package}.{base.__name__}.submit" in ids for base in client.__mro__)
    for error in vars(errors).values():
        assert not isinstance(error, type) or f"gearman_twisted.errors.{error.__name__}" in ids
    text = unescape(re.sub(r"<[^>]+>", "", page)).replace("\N{EN DASH}", "-")
    text = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    # Of each kind of section, that it was understood as one.
    for field in ("Parameters:", "Raises:", "Returns:"):
        assert f"{field}\n" in text, field
    assert re.search(r"^function \(str \| bytes\) - .", text, re.MULTILINE)
    assert re.search(r"^ConfigError - .", text, re.MULTILINE)
    for left_over in ("Args:", "Raises: ", "``", "\\ ", "InterfaceClass"):
        assert left_over not in text


def test_internal_names_are_not_documented(built: Path) -> None:
    """No name on the page of the API begins with an underscore, and none is left out by hand."""
    page = (built / "docs" / "reference" / "api.html").read_text()
    assert not re.findall(r'id="gearman_twisted[\w.]*\._\w*"', page)
    assert "exclude-members" not in doc_page("api.md").read_text()


def test_tables_have_headers(built: Path) -> None:
    """No column of a table has an empty header."""
    for page in built.rglob("*.html"):
        assert not re.search(r'<th class="head[^>]*>(?:<p></p>)?</th>', page.read_text()), page.name


def test_code_is_wrapped(built: Path) -> None:
    """Pages have the style by which long lines of code are wrapped, and a button that copies them."""
    for page in (built / "docs").rglob("*.html"):
        text = page.read_text()
        assert "_static/pages.css" in text
        assert "_static/copybutton.js" in text
    assert "pre-wrap" in (built / "_static" / "pages.css").read_text()
