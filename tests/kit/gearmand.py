"""Debian's gearmand and its tools as children of the tests, on loopback."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

PATIENCE = 30.0


def _program(name: str, package: str) -> str:
    # Not by PATH, where in an activated environment our own commands of these names come first.
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if found is None:
        pytest.fail(f"{name} is not installed; on Debian: apt-get install {package}")
    return found


class Gearmand:
    """A gearmand on a port that was free; it can be ended and started again on the same port.

    Args:
        directory: where it and the tools run.
        extra: further arguments.
    """

    def __init__(self, directory: Path, *extra: str) -> None:
        self._directory = directory
        self._extra = extra
        self._children: list[subprocess.Popen[bytes]] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Starts it and waits until it listens."""
        program = _program("gearmand", "gearman-job-server")
        with (self._directory / "gearmand.log").open("ab") as log:
            self.process = subprocess.Popen(
                [program, "-L", "127.0.0.1", "-p", str(self.port), "-l", "stderr", *self._extra],
                stderr=log,
                cwd=self._directory,
            )
        deadline = time.monotonic() + PATIENCE
        while not self._listens():
            # Not a sleep: it ends as soon as there is nothing more to wait for.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=0.02)
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"gearmand does not listen: {(self._directory / 'gearmand.log').read_text()}")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def end(self) -> None:
        """Ends it; all connections are lost."""
        self.process.terminate()
        self.process.wait(timeout=PATIENCE)

    def command(self, *words: str) -> list[str]:
        """The command line of ``gearman`` for this server."""
        return [_program("gearman", "gearman-tools"), "-h", "127.0.0.1", "-p", str(self.port), *words]

    def start_worker(self, *words: str) -> None:
        """Starts ``gearman -w``, which is ended with the server."""
        self._children.append(subprocess.Popen(self.command("-w", *words), cwd=self._directory))

    def run_client(self, *words: str) -> bytes:
        """Runs ``gearman`` to its end and returns what it printed."""
        done = subprocess.run(
            self.command(*words), stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=True
        )
        return done.stdout

    def close(self) -> None:
        """Ends all that was started."""
        for child in self._children:
            child.kill()
            child.wait(timeout=PATIENCE)
        self.process.kill()
        self.process.wait(timeout=PATIENCE)
