from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from gearman_twisted.commands.twistd.worker import Options, makeService
from gearman_twisted.worker.service.config import FunctionConfig, WorkerConfig
from gearman_twisted.worker.service.configured import load_functions
from tests.kit.gearmand import PATIENCE, Gearmand
from tests.kit.paths import doc_page

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

MARKED = """
import gearman_twisted

@gearman_twisted.function
def plain(job):
    return b"plain"

@gearman_twisted.function("slow", timeout=5, concurrency=2, run_in="thread")
def other(job):
    return b"slow"
"""

TWICE = """
from gearman_twisted import function

@function("f")
def one(job): pass

@function("f")
def two(job): pass
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module of functions in it."""
    (tmp_path / "tap_test_functions.py").write_text(FUNCTIONS)
    (tmp_path / "tap_test_broken.py").write_text("raise RuntimeError('two\\nlines')")
    (tmp_path / "tap_test_marked.py").write_text(MARKED)
    (tmp_path / "tap_test_twice.py").write_text(TWICE)
    (tmp_path / "bare.toml").write_text("[functions.resize]\ntimeout = 5")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    signals = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)}
    yield tmp_path
    for number, handler in signals.items():
        signal.signal(number, handler)
    for name in [name for name in sys.modules if name.startswith("tap_test_")]:
        del sys.modules[name]


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
    """Servers, functions, modules and commands may be given several times."""
    settings = parse(
        "--server=a:1",
        "--server=[::1]:2",
        "--function=reverse=tap_test_functions:reverse",
        "--function=a=b=tap_test_functions:Holder.upper",
        "--function=tap_test_marked",
        "--exec=wc=grep -c 'a=b'",
        "--concurrency=3",
        "--client-id=me",
        "--processes=2",
        "--max-jobs=5",
        "--max-lifetime=7",
    )["settings"]
    assert settings == WorkerConfig(
        servers=("a:1", "[::1]:2"),
        functions={
            "reverse": FunctionConfig(call="tap_test_functions:reverse"),
            "a=b": FunctionConfig(call="tap_test_functions:Holder.upper"),
            "wc": FunctionConfig(exec=("grep", "-c", "a=b")),
        },
        modules=("tap_test_marked",),
        concurrency=3,
        client_id="me",
        processes=2,
        max_jobs=5,
        max_lifetime=7.0,
    )
    default = parse("--function=tap_test_marked")["settings"]
    assert default == WorkerConfig(modules=("tap_test_marked",))


GOOD = "--function=f=tap_test_functions:reverse"
NO_G = "there is no function 'g': it has neither call nor exec, and no module marks it"
SET_TAKES = "--set takes FUNCTION.KEY=VALUE, not "
TAKES = "--function takes NAME=package.module:callable, or a module, not "


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "no function given; use --function NAME=package.module:callable, --function MODULE"),
        (["--function=a:b"], f"{TAKES}'a:b'"),
        (["--function=reverse=module"], f"{TAKES}'reverse=module'"),
        ([GOOD, GOOD], "the function 'f' is given twice"),
        (["--exec=wc"], "--exec takes NAME=\"COMMAND ARGUMENTS\", not 'wc'"),
        (["--exec=wc="], "--exec wc= takes a command, not ''"),
        (["--exec=wc=no-such-command-here -l"], "'wc': the command 'no-such-command-here' is not found"),
        (["--function=no_such_module"], "cannot import 'no_such_module': ModuleNotFoundError: "),
        (["--function=tap_test_functions"], "'tap_test_functions' has no function that is marked with "),
        (["--function=tap_test_twice"], "'tap_test_twice' has two functions marked as 'f'"),
        (["--function=f=no_such_module:f"], "cannot import 'no_such_module': ModuleNotFoundError: "),
        (["--function=f=tap_test_broken:f"], "cannot import 'tap_test_broken': RuntimeError: two lines"),
        (["--function=f=tap_test_functions:nothing"], "'tap_test_functions' has no 'nothing'"),
        (
            ["--function=f=tap_test_functions:number"],
            "tap_test_functions:number is int, not something to call",
        ),
        ([GOOD, "--concurrency=0"], "--concurrency takes a whole number of at least 1, not 0"),
        ([GOOD, "--concurrency=x"], "--concurrency takes a whole number of at least 1, not 'x'"),
        ([GOOD, "--processes=0"], "--processes takes a whole number"),
        ([GOOD, "--max-jobs=0"], "--max-jobs takes a whole number"),
        ([GOOD, "--max-lifetime=0"], "--max-lifetime takes seconds, 1 or more, not 0"),
        ([GOOD, "--drain-timeout=x"], "--drain-timeout takes seconds"),
        ([GOOD, "--drain-timeout=nan"], "--drain-timeout takes seconds"),
        ([GOOD, "--server=a:b"], "'a:b' is not an address"),
        ([GOOD, "--client-id=a b"], "--client-id takes another value: a client id is"),
        (["--config=missing.toml"], "cannot read "),
        (["--config=bare.toml"], "there is no function 'resize': it has neither call nor exec, and no "),
        ([GOOD, "--set=f"], f"{SET_TAKES}'f'; there are the keys call, exec, timeout, server_timeout, "),
        ([GOOD, "--set=timeout=5"], f"{SET_TAKES}'timeout=5'"),
        ([GOOD, "--set=.timeout=5"], f"{SET_TAKES}'.timeout=5'"),
        ([GOOD, "--set=f.timout=5"], "--set f.timout is no key; there are call, exec, timeout, "),
        ([GOOD, "--set=f.timeout="], "--set f.timeout takes seconds, more than 0, not ''"),
        ([GOOD, "--set=f.timeout=30s"], "--set f.timeout takes seconds, more than 0, not '30s'"),
        ([GOOD, "--set=f.timeout=nan"], "--set f.timeout takes seconds, more than 0, not nan"),
        (
            [GOOD, "--set=f.concurrency=1.5"],
            "--set f.concurrency takes a whole number of at least 1, not 1.5",
        ),
        ([GOOD, "--set=f.run_in=fork"], "--set f.run_in takes 'thread' or 'process', not 'fork'"),
        ([GOOD, "--set=f.lines=yes"], "--set f.lines takes true or false, not 'yes'"),
        ([GOOD, "--set=f.lines=true"], "'f': lines is for exec"),
        ([GOOD, "--set=f.processes=2"], "'f': processes is for run_in = \"process\""),
        ([GOOD, "--set=f.exec=wc"], "'f': takes call or exec, not both"),
        (
            [GOOD, "--function=tap_test_marked", "--set=g.timeout=5"],
            f"{NO_G}; there are 'plain', 'slow', 'f'",
        ),
        (["--set=g.timeout=5"], f"{NO_G}; there are no others"),
        (["--exec=\udcff=wc"], r"'\udcff' is not UTF-8"),
        ([GOOD, "--client-id=\udcff"], r"--client-id takes another value: '\udcff' is not UTF-8"),
        (["--frobnicate"], "option --frobnicate not recognized; see twistd gearman-worker --help"),
        (["surplus"], "takes only options, not 'surplus'; see twistd gearman-worker --help"),
    ],
)
def test_bad_options_end_with_one_line(directory: Path, words: list[str], reason: str) -> None:
    """What makes no sense is told in one line, with the command's name before it."""
    with pytest.raises(SystemExit) as caught:
        makeService(parse(*words))
    text = str(caught.value)
    assert text.startswith(f"twistd gearman-worker: {reason}")
    assert "\n" not in text


def test_file_changes_what_a_module_marks(directory: Path) -> None:
    """A function that a module marks can have other numbers in the file, which keep its other marks."""
    sys.path.insert(0, str(directory))
    (directory / "more.toml").write_text("modules = ['tap_test_marked']\n[functions.slow]\ntimeout = 9")
    loaded = load_functions(parse("--config=more.toml")["settings"])
    assert sorted(loaded) == ["plain", "slow"]
    assert loaded["slow"].config == FunctionConfig(timeout=9.0, concurrency=2, run_in="thread")


def test_settings_of_single_functions_are_taken(directory: Path) -> None:
    """--set reaches functions of all origins, and wins over a mark and a file; of two the later one holds."""
    sys.path.insert(0, str(directory))
    (directory / "more.toml").write_text("[functions.wc]\nexec = 'wc -l'\nlines = true\ntimeout = 9")
    settings = parse(
        "--config=more.toml",
        "--set=wc.timeout=2",
        "--set=wc.lines=false",
        "--function=tap_test_marked",
        "--set=slow.concurrency=3",
        "--set=slow.concurrency=4",
        "--set=slow.run_in=process",
        "--set=slow.processes=2",
        "--function=a.b=tap_test_functions:reverse",
        "--set=a.b.timeout=7",
        "--function=c=d=tap_test_functions:reverse",
        "--set=c=d.timeout=8",
        "--exec=tr=tr a b",
        "--set=tr.exec=tr .a= .b=",
    )["settings"]
    loaded = load_functions(WorkerConfig.from_json(settings.to_json()))
    assert {name: one.config for name, one in loaded.items()} == {
        "plain": FunctionConfig(),
        "slow": FunctionConfig(timeout=5, concurrency=4, run_in="process", processes=2),
        "wc": FunctionConfig(exec=("wc", "-l"), lines=False, timeout=2.0),
        "a.b": FunctionConfig(call="tap_test_functions:reverse", timeout=7.0),
        "c=d": FunctionConfig(call="tap_test_functions:reverse", timeout=8.0),
        "tr": FunctionConfig(exec=("tr", ".a=", ".b=")),
    }


def test_commands_of_the_guide_are_taken(directory: Path) -> None:
    """Each command of the guide, with the guide's own file, is one that is taken."""
    page = doc_page("worker-service.md").read_text()
    [file] = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (directory / "worker.toml").write_text(file)
    commands = re.findall(r"^twistd -n gearman-worker (.*)$", page, re.MULTILINE)
    assert sum("--set" in command for command in commands) >= 4
    for command in commands:
        parse(*shlex.split(command, comments=True))


def test_help_teaches(directory: Path) -> None:
    """The help has examples, their line ends kept."""
    shown = Options().getUsage()
    assert '\n  twistd -n gearman-worker --exec wc="wc -c" ' in shown
    assert (
        "\n  twistd -n gearman-worker -f images --set resize.timeout=30 --set resize.concurrency=2\n" in shown
    )
    assert f"\n  {', '.join(attrs.fields_dict(FunctionConfig))}\n" in shown


@pytest.mark.parametrize("words", [[], ["--processes=1"]])
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (["--function=f=tap_test_functions:nothing"], "'tap_test_functions' has no 'nothing'"),
        ([GOOD, "--set=f.run_in=fork"], "--set f.run_in takes 'thread' or 'process', not 'fork'"),
        ([GOOD, "--set=f.max_jobs=1"], "'f': max_jobs is for run_in = \"process\""),
    ],
)
def test_bad_options_end_the_process(
    directory: Path, words: list[str], wrong: list[str], reason: str
) -> None:
    """The line goes to stderr, without the whole help, and the exit status is 1."""
    process = start(directory, *wrong, *words)
    output, errors = process.communicate(timeout=PATIENCE)
    assert errors == f"twistd gearman-worker: {reason}\n"
    assert output == ""
    assert process.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
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
