"""Clients and workers of other libraries are measured beside ours, all on the same server.

Each library has a program in ``libraries/``, which is called with one of these:

- ``version`` prints what it is;
- ``client PORT JOBS OUTSTANDING`` submits foreground jobs of the function ``load`` and has their results;
- ``worker PORT`` works for ``load`` until it is ended, and sends workloads back;
- ``functions PORT COUNT`` registers functions, of which the last is ``load``, and takes one job.

The first and the last print ``begin`` when what is measured begins, and ``end`` when it has ended; then they
stay until their input is closed. What is measured has a core of its own, and all else has the other one.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.measures import Bench, Figures, Side
from benchmarks.programs import Missing, RunFailed, Server, end, figures, gearmand, pinned, program

_ROOT = Path(__file__).parents[1]
_PROGRAMS = Path(__file__).with_name("libraries")
_START_TIMEOUT = 60.0
# What takes longer than this is ended.
_PATIENCE = 300.0
_POLL = 0.01


def cores() -> tuple[int, int]:
    """Return the core of the measured process and that of the others; the same one if there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def submitting(bench: Bench, side: Side, directory: Path, words: str) -> Figures:
    """Measure a client that submits jobs to a worker of the load generator.

    Raises:
        RunFailed: not all jobs came back, or the library is not here.
    """
    jobs = _jobs(bench, words)
    command = _command(bench, side)
    with gearmand(directory, core=cores()[1]) as server, _fast_worker(bench, server):
        command += ["client", str(server.port), str(jobs), *side.words]
        seconds, cpu = _between_marks(command, directory)
    return {"jobs_per_s": jobs / seconds, "cpu_us_per_job": cpu * 1e6 / jobs}


def working(bench: Bench, side: Side, directory: Path, words: str) -> Figures:
    """Measure a worker that runs jobs of the load generator's clients.

    Raises:
        RunFailed: not all jobs came back, or the library is not here.
    """
    command = _command(bench, side)
    measured, others = cores()
    with (
        gearmand(directory, core=others) as server,
        _started([*command, "worker", str(server.port)], directory, measured) as worker,
    ):
        _wait_for_worker(server, worker, directory)
        try:
            with bench.load.start(Server(server.port, worker, 0.0), bench.scaled(words), core=others) as load:
                return figures(load)
        except RunFailed:
            if worker.poll() is None:
                raise
            raise RunFailed(_how_it_ended(worker, "", directory)) from None


def registering(bench: Bench, side: Side, directory: Path, words: str) -> Figures:
    """Measure a worker that registers functions and takes the job that waits for the last one.

    Raises:
        RunFailed: it did not get the job, or the library is not here.
    """
    count = _jobs(bench, words)
    command = _command(bench, side)
    with gearmand(directory, core=cores()[1]) as server:
        bench.load.run(server, ["submit", "--clients=1", "--jobs=1"])
        command += ["functions", str(server.port), str(count)]
        seconds, cpu = _between_marks(command, directory)
    return {"register_s": seconds, "register_cpu_us": cpu * 1e6 / count}


def _jobs(bench: Bench, words: str) -> int:
    options = dict(word.partition("=")[::2] for word in bench.scaled(words))
    return int(options["--jobs"])


# The programs.


def _command(bench: Bench, side: Side) -> list[str]:
    """Return the program of a side's library; it is prepared and tried once.

    Raises:
        RunFailed: it cannot run here, which leaves out this side only.
    """
    if side.kind not in bench.commands:
        try:
            command = LIBRARIES[side.kind](bench.load.directory)
            version = _version(command)
            if not side.is_ours:  # ours is known with its commit
                bench.versions[side.kind] = version
            bench.commands[side.kind] = command
        except Missing as error:
            bench.commands[side.kind] = str(error)
    found = bench.commands[side.kind]
    if isinstance(found, str):
        raise RunFailed(found)
    return [*found]


def _version(command: Sequence[str]) -> str:
    done = subprocess.run([*command, "version"], capture_output=True, text=True, check=False, cwd=_ROOT)
    if done.returncode:
        raise Missing(f"it does not run here: {_last_line(done.stderr)}")
    return done.stdout.strip()


def _python(module: str) -> Callable[[Path], list[str]]:
    return lambda _directory: [sys.executable, "-m", f"benchmarks.libraries.{module}"]


def _from_pypi(package: str) -> Callable[[Path], list[str]]:
    """Return a program in Python with a package in an environment of its own."""

    def install(directory: Path) -> list[str]:
        environment = directory / f"environment-{package}"
        python = str(environment / "bin" / "python")
        for words in (
            [sys.executable, "-m", "venv", str(environment)],
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package],
        ):
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                said = _last_line(done.stderr or done.stdout)
                raise Missing(f"{package} could not be installed from PyPI: {said}")
        return [python, "-m", f"benchmarks.libraries.with_{package}"]

    return install


def _libgearman(directory: Path) -> list[str]:
    compiled = directory / "with_libgearman"
    source = _PROGRAMS / "with_libgearman.c"
    words = [program("cc", "gcc libc6-dev"), "-O2", "-Wall", "-Wextra", "-o", str(compiled), str(source)]
    done = subprocess.run([*words, "-lgearman"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing("libgearman's headers are not installed; on Debian: apt-get install libgearman-dev")
    return [str(compiled)]


def _php(_directory: Path) -> list[str]:
    command = [program("php", "php-cli php-gearman"), str(_PROGRAMS / "with_php.php")]
    modules = subprocess.run([command[0], "-m"], capture_output=True, text=True, check=False).stdout
    if "gearman" not in modules.split():
        raise Missing("PHP's extension is not installed; on Debian: apt-get install php-gearman")
    return command


def _perl(_directory: Path) -> list[str]:
    command = [program("perl", "perl")]
    modules = [*command, "-MGearman::Client", "-MGearman::Worker", "-e1"]
    if subprocess.run(modules, capture_output=True, check=False).returncode:
        raise Missing("Gearman::Client is not installed; on Debian: apt-get install libgearman-client-perl")
    return [*command, str(_PROGRAMS / "with_perl.pl")]


LIBRARIES: dict[str, Callable[[Path], list[str]]] = {
    "ours": _python("ours"),
    "aio": _python("ours_aio"),
    "gear": _from_pypi("gear"),
    "gearman3": _from_pypi("gearman3"),
    "libgearman": _libgearman,
    "php": _php,
    "perl": _perl,
}
"""By name, a function that prepares a library's program in a directory, and returns its command line."""


# Processes.


@contextlib.contextmanager
def _started(command: Sequence[str], directory: Path, core: int) -> Iterator[subprocess.Popen[bytes]]:
    with (directory / "complaints").open("wb") as complaints:
        process = subprocess.Popen(
            pinned(command, core),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            cwd=_ROOT,
        )
    with process:
        try:
            yield process
        finally:
            # First, as a program that waits for its input may not be able to end before.
            process.stdin.close()  # type: ignore[union-attr] # it is a pipe
            end(process)


def _between_marks(command: Sequence[str], directory: Path) -> tuple[float, float]:
    """Return wall time and CPU time of a program from its first mark to its second."""
    with _started(command, directory, cores()[0]) as process:
        killer = threading.Timer(_PATIENCE, process.kill)
        killer.start()
        try:
            _wait_for_mark(process, b"begin\n", directory)
            begun, cpu = time.monotonic(), _cpu_seconds(process)
            _wait_for_mark(process, b"end\n", directory)
            return time.monotonic() - begun, _cpu_seconds(process) - cpu
        finally:
            killer.cancel()


def _wait_for_mark(process: subprocess.Popen[bytes], mark: bytes, directory: Path) -> None:
    assert process.stdout is not None
    said = process.stdout.readline()
    if said != mark:
        raise RunFailed(_how_it_ended(process, said.decode("utf-8", "replace"), directory))


def _how_it_ended(process: subprocess.Popen[bytes], said: str, directory: Path) -> str:
    end(process)
    complaint = _last_line((directory / "complaints").read_text("utf-8", "replace") or said)
    return f"the program ended with status {process.returncode}: {complaint}"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1].rstrip(".")


def _cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """Return the CPU time of a process, user and system, of all its threads."""
    # After the name, which may contain anything: the 12th and the 13th field.
    fields = Path(f"/proc/{process.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _fast_worker(bench: Bench, server: Server) -> Iterator[None]:
    """Start a worker of the load generator that accepts more jobs than there will be."""
    words = ["drain", "--workers=1", "--jobs=10000000", "--patience=3600"]
    with bench.load.start(server, words, core=cores()[1]) as worker:
        try:
            yield
        finally:
            worker.terminate()


def _wait_for_worker(server: Server, worker: subprocess.Popen[bytes], directory: Path) -> None:
    """Wait until the server has a worker for the function."""
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline:
        if worker.poll() is not None:
            raise RunFailed(_how_it_ended(worker, "", directory))
        with socket.create_connection(("127.0.0.1", server.port), 5) as peer:
            peer.sendall(b"status\n")
            if peer.recv(1000).startswith(b"load\t0\t0\t1\n"):
                return
        time.sleep(_POLL)
    raise RunFailed("the worker did not register its function")
