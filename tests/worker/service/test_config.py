"""The file of ``twistd gearman-worker --config``."""

from __future__ import annotations

from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from gearman_twisted.errors import ConfigError
from gearman_twisted.worker.service.config import (
    FUNCTION_KEYS,
    FunctionConfig,
    WorkerConfig,
    from_word,
    read_config,
    worker_config,
)

ALL = """
servers = ["a:1", "b"]
client_id = "me"
concurrency = 2
drain_timeout = 0.5
processes = 3
max_jobs = 4
max_lifetime = 60
modules = "tasks"

[functions.resize]
call = "images:resize"
timeout = 30
server_timeout = 0
concurrency = 1
run_in = "process"
processes = 2
max_jobs = 5
on_death = "requeue"

[functions."a b"]
exec = "wc -l 'a file'"
lines = true
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "worker.toml"


def test_every_key_is_taken(file: Path) -> None:
    """A file may say all that there is, and another process gets the same settings."""
    file.write_text(ALL)
    config = worker_config({}, file)
    assert config == WorkerConfig(
        servers=("a:1", "b"),
        client_id="me",
        concurrency=2,
        drain_timeout=0.5,
        processes=3,
        max_jobs=4,
        max_lifetime=60.0,
        modules=("tasks",),
        functions={
            "resize": FunctionConfig(
                call="images:resize",
                timeout=30.0,
                server_timeout=0.0,
                concurrency=1,
                run_in="process",
                processes=2,
                max_jobs=5,
                on_death="requeue",
            ),
            "a b": FunctionConfig(exec=("wc", "-l", "a file"), lines=True),
        },
    )
    assert WorkerConfig.from_json(config.to_json()) == config


def test_the_command_line_wins(file: Path) -> None:
    """What both say holds as on the command line; functions and modules of both are offered."""
    file.write_text(ALL)
    own = FunctionConfig(call="mine:resize")
    config = worker_config({"processes": 1, "functions": {"resize": own}, "modules": ["more"]}, file)
    assert (config.processes, config.concurrency) == (1, 2)
    assert config.functions["resize"] == own
    assert sorted(config.functions) == ["a b", "resize"]
    assert config.modules == ("tasks", "more")


def test_single_settings_win_over_the_file_and_leave_the_rest(file: Path) -> None:
    """What the command line says of one key of a function holds; its other keys are as in the file."""
    file.write_text(ALL)
    changes: dict[str, dict[str, Any]] = {
        "resize": {"on_death": "fail", "timeout": 5.0},
        "a b": {"lines": False},
        "marked": {"concurrency": 7},
        "given": {"timeout": 2.0},
    }
    given = {"functions": {"given": FunctionConfig(call="mine:given")}}
    functions = worker_config(given, file, changes).functions
    assert functions == {
        "resize": FunctionConfig(
            call="images:resize",
            timeout=5.0,
            server_timeout=0.0,
            concurrency=1,
            run_in="process",
            processes=2,
            max_jobs=5,
            on_death="fail",
        ),
        "a b": FunctionConfig(exec=("wc", "-l", "a file"), lines=False),
        "given": FunctionConfig(call="mine:given", timeout=2.0),
        "marked": FunctionConfig(concurrency=7),
    }


@pytest.mark.parametrize(
    ("key", "word", "value"),
    [
        ("call", "5:6", "5:6"),
        ("exec", "true 5", ("true", "5")),
        ("timeout", "30", 30.0),
        ("timeout", "1e-3", 0.001),
        ("server_timeout", "0", 0.0),
        ("concurrency", "2", 2),
        ("run_in", "thread", "thread"),
        ("processes", "3", 3),
        ("max_jobs", "1000000", 1_000_000),
        ("on_death", "requeue", "requeue"),
        ("lines", "true", True),
        ("lines", "false", False),
    ],
)
def test_words_are_taken_as_the_file_would_have_them(key: str, word: str, value: object) -> None:
    """On the command line all are words; what a word stands for depends on the key."""
    taken = from_word(FUNCTION_KEYS, key, word)
    assert (taken, type(taken)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "a function's name is 1 to 8191 bytes without NUL, not b''"),
        ("x" * 8192, "a function's name is 1 to 8191 bytes without NUL, not b'xxx"),
        ("\udcff", r"'\udcff' is not UTF-8"),
    ],
)
def test_names_that_cannot_be_sent_are_refused(name: str, reason: str) -> None:
    """The name of a function is held to the rules of the protocol."""
    with pytest.raises(ConfigError) as caught:
        worker_config({"functions": {name: FunctionConfig(call="a:b")}})
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x", " is not TOML: "),
        ("proceses = 2", ": proceses is no key; there are servers, client_id, "),
        ("processes = 0", ": processes takes a whole number of at least 1, not 0"),
        ("processes = '2'", ": processes takes a whole number of at least 1, not '2'"),
        ("concurrency = true", ": concurrency takes a whole number of at least 1, not True"),
        ("drain_timeout = nan", ": drain_timeout takes seconds, 0 or more, not nan"),
        ("max_lifetime = 0.5", ": max_lifetime takes seconds, 1 or more, not 0.5"),
        ("servers = [1]", ": servers takes a list of texts, not [1]"),
        ("client_id = 'a b'", ": client_id takes another value: "),
        ("functions = 1", ": functions takes a table, not 1"),
        ("functions.f = 1", ": functions.f takes a table, not 1"),
        ("functions.f.cal = 1", ": functions.f.cal is no key; there are call, exec, "),
        ("functions.f.call = 'f'", ": functions.f.call takes \"package.module:callable\", not 'f'"),
        ('functions.f.exec = "it\'s"', ': functions.f.exec takes a command, and "it\'s" is none: '),
        ("functions.f.exec = ''", ": functions.f.exec takes a command, not ''"),
        ("functions.f.timeout = 0", ": functions.f.timeout takes seconds, more than 0, not 0"),
        ("functions.f.run_in = 'x'", ": functions.f.run_in takes 'thread' or 'process', not 'x'"),
        ("functions.f.lines = 1", ": functions.f.lines takes true or false, not 1"),
    ],
)
def test_what_makes_no_sense_is_refused(file: Path, text: str, reason: str) -> None:
    """The message has the file, the key and what that takes."""
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(file)
    assert str(caught.value).startswith(f"{file}{reason}")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (FunctionConfig(call="a:b", exec=("wc",)), "takes call or exec, not both"),
        (FunctionConfig(exec=("wc",), run_in="thread"), "run_in is for call: "),
        (FunctionConfig(call="a:b", lines=True), "lines is for exec"),
        (FunctionConfig(call="a:b", lines=False), "lines is for exec"),
        (FunctionConfig(call="a:b", processes=2), 'processes is for run_in = "process"'),
        (FunctionConfig(call="a:b", run_in="thread", max_jobs=2), 'max_jobs is for run_in = "process"'),
        (FunctionConfig(exec=("wc",), on_death="fail"), 'on_death is for run_in = "process"'),
    ],
)
def test_what_makes_no_sense_together_is_refused(function: FunctionConfig, reason: str) -> None:
    """Each value may be right, and one too many; the message has the key."""
    with pytest.raises(ConfigError) as caught:
        function.check()
    assert str(caught.value).startswith(reason)


def test_missing_file_is_refused(file: Path) -> None:
    """So is a file that is not there."""
    with pytest.raises(ConfigError, match=r"cannot read .*: No such file"):
        read_config(file)


def test_python_without_tomllib_gets_tomli() -> None:
    """The file is read by ``tomli`` before Python 3.11, which has the same in its standard library."""
    [tomli] = [one for one in map(Requirement, requires("gearman-twisted") or ()) if one.name == "tomli"]
    assert tomli.marker is not None
    needs = {
        version: tomli.marker.evaluate({"python_version": version})
        for version in ("3.10", "3.11", "3.12", "3.14")
    }
    assert needs == {"3.10": True, "3.11": False, "3.12": False, "3.14": False}
