"""Whether the job server that has a store still runs is said only where that is certain."""

from __future__ import annotations

import subprocess
import sys

import attrs
import pytest

from gearman_twisted.store import holder
from gearman_twisted.store.holder import Holder
from tests.kit.databases import missing

# Another process: prints itself, and lives until its input ends.
OTHER = """
import sys
from gearman_twisted.store.holder import Holder
print(Holder.me(), flush=True)
sys.stdin.read()
"""


def other(*before: str) -> tuple[Holder, subprocess.Popen[str]]:
    """Another process, as it describes itself."""
    process = subprocess.Popen(
        [*before, sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    text = process.stdout.readline().rstrip("\n")
    known = Holder.parse(text)
    if known is None:
        process.communicate()
        missing(f"{before[0]} does not work here")
    assert str(known) == text
    return known, process


def test_process_of_this_machine() -> None:
    """A process is alive until it has ended, whether its parent has noticed that or not."""
    known, process = other()
    assert known.is_alive() is True
    process.kill()
    process.wait()
    assert known.is_alive() is False
    process.communicate()


def test_process_id_that_was_reused() -> None:
    """A process with the id of a dead one has another start; where that is unknown, it counts as alive."""
    me = Holder.me()
    assert me.is_alive() is True
    assert attrs.evolve(me, started="1").is_alive() is False
    assert attrs.evolve(me, started="-").is_alive() is True
    assert attrs.evolve(me, process=2**70).is_alive() is False


def test_process_of_another_container() -> None:
    """A process of another namespace is neither alive nor dead, even if its id exists here or does not."""
    known, process = other("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    assert known.process < 10
    assert known.host == Holder.me().host
    assert known.is_alive() is None
    process.communicate()
    assert known.is_alive() is None


def test_files_of_another_namespace() -> None:
    """Where /proc shows another namespace, nothing is certain, so nothing is said."""
    known, process = other("unshare", "--pid", "--fork", "--kill-child")
    assert known.machine == "-"
    assert known.is_alive() is None
    process.communicate()


@pytest.mark.parametrize("machine", ["-", "0123456789ab"], ids=["unknown", "another boot"])
def test_machine_that_is_another(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process ids say nothing on another machine, after a boot, or where neither is known."""
    dead = attrs.evolve(Holder.me(), process=2**22 + 1, machine=machine)
    assert dead.is_alive() is None
    monkeypatch.setattr(holder, "machine", lambda: "-")
    assert dead.is_alive() is None


@pytest.mark.parametrize("text", ["", "gearman", "psql", "gearman x - - host", "gearman ² - - host"])
def test_text_of_something_else(text: str) -> None:
    """What is not the text of a job server names none."""
    assert Holder.parse(text) is None


def test_long_name_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of 63 bytes, which is all that PostgreSQL keeps, has all that the judgement needs."""
    monkeypatch.setattr("socket.gethostname", lambda: "a-very-long-name-" * 4)
    me = Holder.me()
    cut = Holder.parse(str(attrs.evolve(me, process=4194304))[:63])
    assert cut is not None
    assert (cut.machine, cut.started) == (me.machine, me.started)
