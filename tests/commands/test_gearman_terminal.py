"""What ``gearman`` shows to a person on a terminal, and keeps from everybody else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gearman_twisted.wire.constants import PacketType
from tests.kit.servers import PATIENCE, TwistdGearman, WirePeer

GEARMAN = [sys.executable, "-m", "gearman_twisted.commands.gearman", "-h", "127.0.0.1"]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwistdGearman]:
    with TwistdGearman(tmp_path_factory.mktemp("server"), "--store=memory:") as server:
        yield server


class Terminal:
    """A terminal with a process on it."""

    def __init__(self, *words: str, is_for_results: bool) -> None:
        self._ours, theirs = pty.openpty()
        self.shown = b""
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=theirs if is_for_results else subprocess.PIPE,
            stderr=theirs,
        )
        os.close(theirs)

    def read_until(self, text: bytes) -> None:
        """Read until something is shown; fails if the process ends before."""
        while text not in self.shown:
            self.shown += os.read(self._ours, 4096)

    def end(self) -> bytes:
        """Wait for the end of the process; returns what it wrote elsewhere."""
        printed, _ = self.process.communicate(timeout=PATIENCE)
        try:
            while data := os.read(self._ours, 4096):
                self.shown += data
        except OSError:  # nobody has the other end open any more
            os.close(self._ours)
        return printed or b""


@contextmanager
def assigned(peer: WirePeer, terminal: Terminal) -> Iterator[bytes]:
    """Take the job of a process on a terminal; its handle."""
    peer.send(PacketType.CAN_DO, b"f")
    try:
        while (packet := peer.ask(PacketType.GRAB_JOB)) is None or packet.type != PacketType.JOB_ASSIGN:
            assert peer.ask(PacketType.PRE_SLEEP) is not None
        yield packet.args[0]
    finally:
        if terminal.process.poll() is None:
            terminal.process.kill()


@pytest.mark.parametrize("is_for_results", [True, False])
def test_progress(ours: TwistdGearman, is_for_results: bool) -> None:
    """A terminal is shown a bar, gone before the result; a file gets the lines of the original."""
    words = [*GEARMAN, "-p", str(ours.port), "-f", "f", "-s"]
    with WirePeer(ours.port) as peer:
        terminal = Terminal(*words, is_for_results=is_for_results)
        with assigned(peer, terminal) as handle:
            peer.send(PacketType.WORK_STATUS, handle, b"1", b"3")
            peer.send(PacketType.WORK_STATUS, handle, b"5", b"4")
            peer.send(PacketType.WORK_COMPLETE, handle, b"done")
            printed = terminal.end()
    if is_for_results:
        third, all_ = b"#" * 9 + b" " * 21, b"#" * 30
        assert terminal.shown == (b"\rf [%b] 33 %%\x1b[K\rf [%b] 125 %%\x1b[K\r\x1b[Kdone" % (third, all_))
    else:
        assert (printed, terminal.shown) == (b"33% Complete\n125% Complete\ndone", b"")


def test_job_that_nobody_takes(ours: TwistdGearman) -> None:
    """After two seconds a terminal is told that no worker has taken the job."""
    words = [*GEARMAN, "-p", str(ours.port), "-f", "f", "-s"]
    terminal = Terminal(*words, is_for_results=True)
    terminal.read_until(
        b"gearman: no worker has taken the job yet; gearadmin --status shows who offers f\r\n"
    )
    with WirePeer(ours.port) as peer, assigned(peer, terminal) as handle:
        peer.send(PacketType.WORK_COMPLETE, handle, b"done")
        terminal.end()
    assert terminal.process.returncode == 0


def test_job_that_runs_long(ours: TwistdGearman) -> None:
    """Of a job that a worker has taken nothing is said."""
    words = [*GEARMAN, "-p", str(ours.port), "-f", "f", "-s", "-t", "3000"]
    with WirePeer(ours.port) as peer:
        terminal = Terminal(*words, is_for_results=True)
        with assigned(peer, terminal):
            terminal.end()
    assert b"no worker" not in terminal.shown
    assert b"no news of the job for 3000 ms" in terminal.shown
