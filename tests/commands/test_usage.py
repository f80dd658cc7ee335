"""What ``gearman`` and ``gearadmin`` have in common: how they refuse nonsense, and that help is quick."""

from __future__ import annotations

import sys

import pytest

from tests.kit.servers import run


@pytest.mark.parametrize(
    ("command", "words", "complaint"),
    [
        ("gearman", ["x"], "no function was given"),
        ("gearman", ["-f", ""], "cannot be empty"),
        ("gearman", ["-f"], "-f: expected one argument"),
        ("gearman", ["-f", "f", "-Z"], "unrecognized arguments: -Z"),
        ("gearman", ["-f", "f", "-p", "70000"], "is not a port"),
        ("gearman", ["-f", "f", "-p", "http-no"], "is not a port"),
        ("gearman", ["-f", "f", "-t", "soon"], "invalid int value"),
        ("gearman", ["-f", "f", "-w", "-c", "-1"], "is not a number of jobs"),
        ("gearman", ["-f", "f", "--max-packet-bytes", "1023"], "is not a size from 1024 to 4G"),
        ("gearman", ["-f", "f", "--max-packet-bytes", "5G"], "is not a size from 1024 to 4G"),
        ("gearman", ["-f", "f", "--max-packet-bytes", "much"], "takes a size such as"),
        ("gearman", ["-f", "f", "-u", "u" * 65], "at most 64 bytes"),
        ("gearadmin", [], "nothing to do was given"),
        ("gearadmin", ["--bogus"], "unrecognized arguments: --bogus"),
        ("gearadmin", ["--status", "--bogus"], "unrecognized arguments: --bogus"),
        ("gearadmin", ["--cancel-job"], "expected one argument"),
        ("gearadmin", ["--s"], "ambiguous option"),
        ("gearadmin", ["--create-function", "two words"], "a name is one word"),
        ("gearadmin", ["--create-function", ""], "a name is one word"),
        ("gearadmin", ["-p", "0", "--status"], "is not a port"),
    ],
)
def test_usage_errors_are_one_line(command: str, words: list[str], complaint: str) -> None:
    """Options that make no sense end the command with 1 and one line that says what is wrong."""
    done = run(sys.executable, "-m", f"gearman_twisted.commands.{command}", *words)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert done.stderr.startswith(f"{command}: ".encode())
    assert complaint.encode() in done.stderr


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *(("gearman", option) for option in ("-H", "--help", "--version")),
        *(("gearadmin", option) for option in ("--help", "--version")),
    ],
)
def test_help_is_quick(command: str, option: str) -> None:
    """Help goes to standard output with status 0, and loads neither Twisted nor a store."""
    script = f"""if True:
        import importlib, sys
        command = importlib.import_module("gearman_twisted.commands.{command}")
        if hasattr(command, "__path__"):
            command = importlib.import_module(command.__name__ + ".__main__")
        try:
            command.main([sys.argv[1]])
        finally:
            assert not [name for name in sys.modules if name.split(".")[0] in ("twisted", "sqlalchemy")]
    """
    done = run(sys.executable, "-c", script, option)
    assert (done.returncode, done.stderr) == (0, b"")
    shown = b"gearman_twisted" if option == "--version" else f"usage: {command} ".encode()
    assert done.stdout.startswith(shown)
