"""The file of ``twistd gearman-worker --config``."""

from __future__ import annotations

from pathlib import Path

import pytest

from gearman_twisted.errors import ConfigError
from gearman_twisted.worker_config import FunctionConfig, WorkerConfig, read_config, worker_config

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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x", " is not TOML: "),
        ("proceses = 2", ": there is no key 'proceses'; there are servers, client_id, "),
        ("processes = 0", ": processes takes a whole number of at least 1, not 0"),
        ("processes = '2'", ": processes takes a whole number of at least 1, not '2'"),
        ("concurrency = true", ": concurrency takes a whole number of at least 1, not True"),
        ("drain_timeout = nan", ": drain_timeout takes seconds, 0 or more, not nan"),
        ("max_lifetime = 0.5", ": max_lifetime takes seconds, 1 or more, not 0.5"),
        ("servers = [1]", ": servers takes a list of texts, not [1]"),
        ("client_id = 'a b'", ": client_id takes another value: "),
        ("functions = 1", ": functions takes a table, not 1"),
        ("functions.f = 1", ": functions.f takes a table, not 1"),
        ("functions.f.cal = 1", ": there is no key 'functions.f.cal'; there are call, exec, "),
        ("functions.f.call = 'f'", ": functions.f.call takes \"package.module:callable\", not 'f'"),
        ('functions.f.exec = "it\'s"', ': functions.f.exec takes a command, and "it\'s" is none: '),
        ("functions.f.exec = ''", ": functions.f.exec takes a command, not ''"),
        ("functions.f.timeout = 0", ": functions.f.timeout takes seconds, more than 0, not 0"),
        ("functions.f.run_in = 'x'", ": functions.f.run_in takes 'thread' or 'process', not 'x'"),
        ("functions.f.lines = 1", ": functions.f.lines takes true or false, not 1"),
        ("functions.f = {call = 'a:b', exec = 'wc'}", ": functions.f takes call or exec, not both"),
        ("functions.f = {exec = 'wc', run_in = 'thread'}", ": functions.f.run_in is for call: "),
        ("functions.f = {call = 'a:b', lines = true}", ": functions.f.lines is for exec"),
        ("functions.f = {call = 'a:b', processes = 2}", ': functions.f.processes is for run_in = "process"'),
    ],
)
def test_what_makes_no_sense_is_refused(file: Path, text: str, reason: str) -> None:
    """The message has the file, the key and what that takes."""
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(file)
    assert str(caught.value).startswith(f"{file}{reason}")


def test_missing_file_is_refused(file: Path) -> None:
    """So is a file that is not there."""
    with pytest.raises(ConfigError, match=r"cannot read .*: No such file"):
        read_config(file)
