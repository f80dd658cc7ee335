"""The documentation says what the program does."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from docs.diagram import page_with_diagram
from tests.kit.paths import DOCS, ROOT, doc_page

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
PACKAGE_FOLDERS = [init.parent for init in (ROOT / "gearman_twisted").glob("*/__init__.py")]
FOLDERS = "benchmarks|client|commands|docs|engine|examples|runtime|server|store|testing|tests|wire|worker"


def test_the_diagram_is_that_of_the_table() -> None:
    """The state diagram in the documentation is the one that the engine goes by."""
    page = doc_page("architecture.md").read_text()
    assert page_with_diagram(page) == page, "run: python docs/diagram.py"


@pytest.mark.parametrize("folder", PACKAGE_FOLDERS, ids=lambda folder: folder.name)
def test_the_table_of_files_is_complete(folder: Path) -> None:
    """The table of folders in the architecture names every module and every folder of the package."""
    table = doc_page("architecture.md").read_text().partition("gearman_twisted/\n")[2].partition("```")[0]
    lines = table.partition(f"\n  {folder.name}/ ")[2].splitlines()[1:]
    part = "\n".join(itertools.takewhile(lambda line: line.startswith("    "), lines))
    names = {path.name for path in folder.iterdir() if (path / "__init__.py").exists()}
    names |= {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert not names - set(re.findall(r"\w+", part))


def test_the_demo_prints_the_result() -> None:
    """The demo says what it does, runs a job through server, worker and client, and ends."""
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "examples" / "demo.py"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    roles = [line.split()[0] for line in done.stdout.splitlines()]
    assert roles == ["server", "worker", "client", "client"]
    assert done.stdout.endswith("client   has the result: !dlroW olleH\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every link to a file of the project leads to one."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_modules_exist(page: Path) -> None:
    """Every file that the documentation names by its path exists."""
    text = page.read_text()
    for name in re.findall(rf"`((?:{FOLDERS})/[\w/-]+\.(?:py|md|c))`", text):
        assert (ROOT / name).exists() or (ROOT / "gearman_twisted" / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_compile(page: Path) -> None:
    """Every Python example is Python."""
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        compile(code, str(page), "exec", flags=0x2000)  # PyCF_ALLOW_TOP_LEVEL_AWAIT


def test_all_options_are_documented() -> None:
    """Every option of twistd gearman stands in its documentation."""
    from gearman_twisted.commands.twistd.server import Options

    page = doc_page("server.md").read_text()
    for name in Options().longOpt:
        assert f"--{name.rstrip('=')}" in page


def test_all_options_and_keys_of_the_worker_are_documented() -> None:
    """Every option of twistd gearman-worker, and every key of its file, stands in its documentation."""
    from gearman_twisted.commands.twistd.worker import Options
    from gearman_twisted.worker.service.config import FunctionConfig, WorkerConfig

    page = doc_page("worker-service.md").read_text()
    for name in Options().longOpt:
        assert f"--{name.rstrip('=')}" in page
    for key in (*attrs.fields_dict(WorkerConfig), *attrs.fields_dict(FunctionConfig)):
        assert f"`{key}`" in page or key == "functions", key


@pytest.mark.parametrize("command", ["gearman", "gearadmin"])
def test_all_options_of_the_commands_are_documented(command: str) -> None:
    """Every long option in the help of gearadmin, and what gearman has beyond the original, is on a page."""
    page = doc_page("commands.md").read_text()
    words = [sys.executable, "-m", f"gearman_twisted.commands.{command}", "--help"]
    text = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
    for option in set(re.findall(r"^  (?:-\w.*, )?(--[a-z-]+)", text, re.MULTILINE)):
        assert f"`{option}" in page or option in {"--host", "--port", "--ssl", "--version"}, option
