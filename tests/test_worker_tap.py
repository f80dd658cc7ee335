from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gearman_twisted.worker_tap import Options
from tests.gearmand import PATIENCE, Gearmand

# The console scripts stand beside the interpreter that runs the tests.
TWISTD = str(Path(sys.executable).parent / "twistd")

FUNCTIONS = """
from pathlib import Path
from twisted.internet.threads import deferToThread

number = 7

class Holder:
    @staticmethod
    def upper(job):
        return job.workload.upper()

def reverse(job):
    return job.workload[::-1]

def wait(job):
    Path("started").write_bytes(b"yes")
    return deferToThread(Path("gate").read_bytes)
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module of functions in it."""
    (tmp_path / "tap_test_functions.py").write_text(FUNCTIONS)
    (tmp_path / "tap_test_broken.py").write_text("raise RuntimeError('two\\nlines')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("tap_test_functions", None)


def parse(*words: str) -> Any:
    """The options that a command line gives."""
    options = Options()
    options.parseOptions(list(words))
    return options


def start(directory: Path, *words: str) -> subprocess.Popen[str]:
    """Starts the command."""
    return subprocess.Popen(
        [TWISTD, "--nodaemon", "--pidfile=", "--logfile=worker.log", "gearman-worker", *words],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_options_are_taken(directory: Path) -> None:
    """Servers and functions may be given several times; functions are found in the working directory."""
    options = parse(
        "--server=a:1",
        "--server=[::1]:2",
        "--function=reverse=tap_test_functions:reverse",
        "--function=a=b=tap_test_functions:Holder.upper",
        "--concurrency=3",
        "--client-id=me",
    )
    assert options["servers"] == ["a:1", "[::1]:2"]
    assert sorted(options["functions"]) == ["a=b", "reverse"]
    assert all(callable(function) for function in options["functions"].values())
    assert (options["concurrency"], options["client-id"], options["drain-timeout"]) == (3, "me", 10.0)
    assert parse("--function=reverse=tap_test_functions:reverse")["servers"] == ["127.0.0.1:4730"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "no function given; use --function NAME=package.module:callable"),
        (["--function=reverse"], "--function takes NAME=package.module:callable, not 'reverse'"),
        (
            ["--function=reverse=module"],
            "--function takes NAME=package.module:callable, not 'reverse=module'",
        ),
        (["--function=f=no_such_module:f"], "cannot import 'no_such_module': ModuleNotFoundError: "),
        (["--function=f=tap_test_broken:f"], "cannot import 'tap_test_broken': RuntimeError: two lines"),
        (["--function=f=tap_test_functions:nothing"], "'tap_test_functions' has no 'nothing'"),
        (
            ["--function=f=tap_test_functions:number"],
            "tap_test_functions:number is int, not something to call",
        ),
        (
            ["--function=f=tap_test_functions:reverse", "--concurrency=0"],
            "--concurrency takes a whole number",
        ),
        (
            ["--function=f=tap_test_functions:reverse", "--concurrency=x"],
            "--concurrency takes a whole number",
        ),
        (["--function=f=tap_test_functions:reverse", "--drain-timeout=x"], "--drain-timeout takes seconds"),
        (["--function=f=tap_test_functions:reverse", "--drain-timeout=nan"], "--drain-timeout takes seconds"),
        (["--function=f=tap_test_functions:reverse", "--server=a:b"], "'a:b' is not an address"),
        (["--function=f=tap_test_functions:reverse", "--client-id=a b"], "a client id is"),
        (["--frobnicate"], "option --frobnicate not recognized; see twistd gearman-worker --help"),
        (["surplus"], "takes only options, not 'surplus'; see twistd gearman-worker --help"),
    ],
)
def test_bad_options_end_with_one_line(directory: Path, words: list[str], reason: str) -> None:
    """What makes no sense is told in one line, with the command's name before it."""
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    text = str(caught.value)
    assert text.startswith(f"twistd gearman-worker: {reason}")
    assert "\n" not in text


def test_bad_options_end_the_process(directory: Path) -> None:
    """The line goes to stderr, without the whole help, and the exit status is 1."""
    process = start(directory, "--function=f=tap_test_functions:nothing")
    output, errors = process.communicate(timeout=PATIENCE)
    assert errors == "twistd gearman-worker: 'tap_test_functions' has no 'nothing'\n"
    assert output == ""
    assert process.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_works_and_drains(directory: Path, gearmand: Gearmand, number: int) -> None:
    """A signal lets the job that runs end; then the process ends with status 0."""
    os.mkfifo(directory / "started")
    os.mkfifo(directory / "gate")
    process = start(
        directory,
        f"--server={gearmand.address}",
        "--function=reverse=tap_test_functions:reverse",
        "--function=wait=tap_test_functions:wait",
    )
    client = None
    try:
        assert gearmand.run_client("-f", "reverse", "hello") == b"olleh"
        client = subprocess.Popen(gearmand.command("-f", "wait", "x"), stdout=subprocess.PIPE)
        assert (directory / "started").read_bytes() == b"yes"
        process.send_signal(number)
        (directory / "gate").write_bytes(b"waited")
        assert client.communicate(timeout=PATIENCE)[0] == b"waited"
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, (directory / "worker.log").read_text()
    finally:
        for child in (process, client):
            if child is not None and child.poll() is None:
                child.kill()
                child.communicate()
