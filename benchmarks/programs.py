"""The measured programs and the load generator, as child processes on loopback."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import attrs

START_TIMEOUT = 30.0
STOP_TIMEOUT = 60.0
# How often a server that starts is asked whether it is there.
_POLL = 0.01


class RunFailed(Exception):
    """A run has failed; the text says why."""


class Missing(Exception):
    """A program that a measurement needs is missing; the text says what to do."""


def program(name: str, package: str) -> str:
    """Return the path of a program of the system.

    Args:
        name: the program.
        package: Debian's package of it.

    Raises:
        Missing: it is not installed.
    """
    # Not by PATH, where in an activated environment our own commands of these names come first.
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if found is None:
        raise Missing(f"{name} is not installed; on Debian: apt-get install {package}")
    return found


def free_port() -> int:
    """Return a free port of loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def pinned(command: Sequence[str], core: int | None) -> list[str]:
    """Return a command that runs on one core only; on all of them for None.

    Raises:
        Missing: there is no ``taskset``.
    """
    if core is None:
        return [*command]
    return [program("taskset", "util-linux"), "--cpu-list", str(core), *command]


class Load:
    """The load generator, ``load.c``, compiled.

    Args:
        directory: where the program goes.

    Attributes:
        directory: the same; other programs that are made to be measured go there too.

    Raises:
        Missing: there is no compiler, or it refuses the source.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._program = directory / "load"
        source = Path(__file__).with_name("load.c")
        words = [
            program("cc", "gcc libc6-dev"),
            "-O2",
            "-Wall",
            "-Wextra",
            "-o",
            str(self._program),
            str(source),
        ]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Missing(f"cc cannot compile {source}: {done.stderr}")

    def start(
        self, server: Server, words: Sequence[str], *, core: int | None = None
    ) -> subprocess.Popen[str]:
        """Start it against a server; ``figures`` waits for its end.

        Args:
            server: whom to load.
            words: a mode, and options other than ``--port`` and ``--server``.
            core: the only one that it runs on.
        """
        command = [str(self._program), *words, f"--port={server.port}", f"--server={server.process.pid}"]
        return subprocess.Popen(
            pinned(command, core),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, server: Server, words: Sequence[str]) -> dict[str, float]:
        """Load a server, and return the figures.

        Raises:
            RunFailed: not all jobs came back.
        """
        with self.start(server, words) as running:
            return figures(running)


def figures(running: subprocess.Popen[str]) -> dict[str, float]:
    """Wait for a load generator to end, and return its figures.

    Raises:
        RunFailed: not all jobs came back.
    """
    printed, complaint = running.communicate()
    if running.returncode:
        raise RunFailed(
            complaint.strip().removeprefix("load: ")
            or f"the load generator ended with status {running.returncode}"
        )
    found: dict[str, Any] = json.loads(printed)
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


@attrs.frozen
class Server:
    """A job server that runs.

    Attributes:
        port: where it listens, on 127.0.0.1.
        process: its process.
        started: when it was started, by ``time.monotonic``.
    """

    port: int
    process: subprocess.Popen[bytes]
    started: float


@contextlib.contextmanager
def ours(directory: Path, *words: str, is_awaited: bool = True) -> Iterator[Server]:
    """Run a ``twistd gearman`` for the time of a context.

    Args:
        directory: its working directory.
        words: options of it, such as ``--store=memory:``.
        is_awaited: whether to wait until its stored jobs are back.

    Raises:
        RunFailed: it did not start, or ended while it was measured.
    """
    port = free_port()
    # As twistd itself does it, with the interpreter that runs the measurements.
    command = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
    command += ["--nodaemon", "--pidfile=", "--logfile=server.log", "gearman"]
    command += [f"--listen=tcp:{port}:interface=127.0.0.1", *words]
    with _running(command, directory, port) as server:
        if is_awaited:
            _wait_for_answer(server, b"ready\n", b"OK")
        yield server


@contextlib.contextmanager
def gearmand(
    directory: Path, *words: str, is_awaited: bool = True, core: int | None = None
) -> Iterator[Server]:
    """Run Debian's gearmand for the time of a context.

    Args:
        directory: its working directory.
        words: options of it, such as ``--queue-type=libsqlite3``.
        is_awaited: whether to wait until its stored jobs are back.
        core: the only one that it runs on.

    Raises:
        RunFailed: it did not start, or ended while it was measured.
        Missing: it is not installed.
    """
    port = free_port()
    command = [program("gearmand", "gearman-job-server"), "--listen=127.0.0.1", f"--port={port}"]
    command += ["--log-file=stderr", "--verbose=ERROR", *words]
    with _running(pinned(command, core), directory, port) as server:
        if is_awaited:
            _wait_for_answer(server, b"version\n", b"OK")
        yield server


@contextlib.contextmanager
def _running(command: Sequence[str], directory: Path, port: int) -> Iterator[Server]:
    with (directory / "output").open("w+b") as output:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=directory)
        try:
            yield Server(port, process, started)
        except RunFailed as error:
            raise RunFailed(f"{error}{_end_of(process, output)}") from error
        else:
            if ended := _end_of(process, output):
                raise RunFailed(ended.removeprefix("; "))
        finally:
            end(process)


def _end_of(process: subprocess.Popen[bytes], output: IO[bytes]) -> str:
    """Return how a server has ended unexpectedly; empty while it runs."""
    if process.poll() is None:
        return ""
    output.seek(0)
    lines = output.read().decode("utf-8", "replace").strip().splitlines()
    return f"; the server ended with status {process.returncode}{': ' if lines else ''}{''.join(lines[-1:])}"


def end(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> None:
    """Terminate a process, wait for it, and kill it if it does not end. Idempotent."""
    process.send_signal(number)
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_for_answer(server: Server, line: bytes, answer: bytes) -> None:
    """Wait until a text command has the answer of a server that is up."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and server.process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 5) as peer:
            peer.sendall(line)
            if peer.recv(100).startswith(answer):
                return
        time.sleep(_POLL)
    raise RunFailed("the server does not answer")


@contextlib.contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """A temporary directory; in a given one, or the system's."""
    with tempfile.TemporaryDirectory(prefix="gearman-benchmark-", dir=parent) as name:
        yield Path(name)
