"""Runs: each function here starts a server, loads it, and returns figures by name."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import attrs

from benchmarks.attacks import ATTACKS, PEERS, Attackers
from benchmarks.places import KINDS, Place
from benchmarks.programs import Load, RunFailed, Server, figures, gearmand, ours

Figures = dict[str, float]

# A store that stands still, in seconds: background jobs come before it does, foreground jobs a little later,
# and both go on until it moves again.
STALL = 5
# The side of a server under attack that is not attacked.
CALM = "without"
# How long is measured; an attack that takes longer ends a second before.
_ATTACK_SECONDS = 5
_BEFORE_STALL = 1.0
_FIRST_JOB_TIMEOUT = 1800.0
_FUNCTION = b"load"


@attrs.frozen
class Side:
    """One of the programs that are compared.

    Attributes:
        title: what it is called in tables.
        kind: where a server keeps jobs, one of ``KINDS``; or a library, one of ``LIBRARIES``.
        is_ours: whether it is ours, or else gearmand or somebody else's library.
        words: options of the server beside those of the place; or more words for the library's program.
    """

    title: str
    kind: str = "memory"
    is_ours: bool = True
    words: tuple[str, ...] = ()

    def start(
        self, directory: Path, place: Place, *, is_awaited: bool = True
    ) -> AbstractContextManager[Server]:
        """Run its server, see ``programs.ours``."""
        if self.is_ours:
            return ours(directory, f"--store={place.url}", *self.words, is_awaited=is_awaited)
        return gearmand(directory, *place.words, *self.words, is_awaited=is_awaited)


@attrs.define
class Bench:
    """The options that all runs share.

    Attributes:
        load: the load generator.
        scale: what the numbers of jobs are multiplied with.
        versions: those of the databases and libraries that were used, by kind; filled by the runs.
        commands: the programs of the libraries that were used, by kind, or why there is none; filled by the
            runs.
    """

    load: Load
    scale: float = 1.0
    versions: dict[str, str] = attrs.Factory(dict)
    commands: dict[str, list[str] | str] = attrs.Factory(dict)

    def scaled(self, words: str) -> list[str]:
        """Return the arguments of a load, with the number of jobs scaled."""
        scaled = []
        for word in words.split():
            name, _, value = word.partition("=")
            scaled.append(f"{name}={max(1, round(int(value) * self.scale))}" if name == "--jobs" else word)
        return scaled

    @contextlib.contextmanager
    def place(self, side: Side, directory: Path) -> Iterator[Place]:
        """Return an empty place of the kind that a side uses."""
        with KINDS[side.kind](directory) as place:
            self.versions[side.kind] = place.version
            yield place


Measure = Callable[[Bench, Side, Path, str], Figures]
"""Measures a side in a directory, with the arguments of the load."""


def under_load(bench: Bench, side: Side, directory: Path, words: str) -> Figures:
    """Start a server and load it.

    Raises:
        RunFailed: not all jobs came back.
    """
    with bench.place(side, directory) as place, side.start(directory, place) as server:
        return _all_taken(bench.load.run(server, bench.scaled(words)))


def while_store_stands(bench: Bench, side: Side, directory: Path, words: str) -> Figures:
    """Stall the store of a server with background jobs, and measure foreground jobs meanwhile.

    The jobs of both are submitted at a steady rate, whatever the server does with them, and the time of each
    is counted from when it was due. The same without the hold-up comes first.
    """
    with bench.place(side, directory) as place, side.start(directory, place) as server:
        calm = _beside_background_jobs(bench, server, words, contextlib.nullcontext)
        found = _beside_background_jobs(bench, server, words, place.held)
    return found | {"calm_p99_us": calm["p99_us"], "refused": calm["refused"] + found["refused"]}


def _beside_background_jobs(
    bench: Bench, server: Server, words: str, held: Callable[[], AbstractContextManager[None]]
) -> Figures:
    background = f"submit --clients=2 --rate=50 --jobs=100000 --seconds={STALL + 2}"
    with bench.load.start(server, background.split()) as others:
        time.sleep(_BEFORE_STALL)
        with bench.load.start(server, words.split()) as measured:
            time.sleep(_BEFORE_STALL / 2)
            with held():
                time.sleep(STALL)
            found = figures(measured)
        return found | {"refused": figures(others)["refused"]}


def until_first_job(bench: Bench, side: Side, directory: Path, words: str) -> Figures:
    """Fill the store of a server, restart it, and wait until a worker has the first job."""
    with bench.place(side, directory) as place:
        if side.is_ours:
            with side.start(directory, place) as server:
                _all_taken(bench.load.run(server, bench.scaled(words)))
        else:
            with side.start(directory, place):
                pass  # it has made its table
            _fill_table_of_gearmand(directory / "jobs.db", bench.scaled(words))
        with side.start(directory, place, is_awaited=False) as server:
            ready = _first_job(server) - server.started
            rss_mib = _rss_mib(server)
    return {"ready_s": ready, "rss_mib": rss_mib}


def under_attack(bench: Bench, side: Side, directory: Path, words: str) -> Figures:
    """Measure foreground jobs, one at a time, while others send what keeps a server busy; or without."""
    attack = ATTACKS[words]
    load = f"foreground --clients=1 --workers=1 --depth=1 --jobs=1000000 --seconds={_ATTACK_SECONDS}"
    with bench.place(side, directory) as place, side.start(directory, place) as server:
        attackers = Attackers(server.port, attack, max(1, round(PEERS * bench.scale)))
        with contextlib.closing(attackers), bench.load.start(server, load.split()) as measured:
            started = time.monotonic()
            if side.title != CALM:
                time.sleep(_BEFORE_STALL / 2)
                attackers.send(started + _ATTACK_SECONDS - 1)
            attack_s = time.monotonic() - started - _BEFORE_STALL / 2
            found = figures(measured)
    return {
        "max_ms": found["max_us"] / 1000,
        "p99_ms": found["p99_us"] / 1000,
        "attack_s": attack_s if side.title != CALM else 0.0,
    }


def with_idle_workers(bench: Bench, side: Side, directory: Path, words: str) -> Figures:
    """Connect workers, one after the other, that register a function and sleep."""
    # CAN_DO, PRE_SLEEP, and ECHO_REQ, whose answer says that all is done.
    packets = b"\0REQ\0\0\0\1\0\0\0\4" + _FUNCTION + b"\0REQ\0\0\0\4\0\0\0\0" + b"\0REQ\0\0\0\x10\0\0\0\0"
    with (
        bench.place(side, directory) as place,
        side.start(directory, place) as server,
        contextlib.ExitStack() as connections,
    ):
        before = _rss_mib(server)
        for _ in range(max(1, round(int(words) * bench.scale))):
            worker = connections.enter_context(
                socket.create_connection(("127.0.0.1", server.port), timeout=60)
            )
            worker.sendall(packets)
            if not worker.recv(12):
                raise RunFailed("the server has closed a connection: it may have run out of file descriptors")
        after = _rss_mib(server)
    return {"rss_mib": after, "added_rss_mib": after - before}


def _rss_mib(server: Server) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text("ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def _all_taken(found: Figures) -> Figures:
    if found.get("refused"):
        raise RunFailed(f"{found['refused']:.0f} jobs were refused")
    return found


def _first_job(server: Server) -> float:
    """Return when a worker had a job, by ``time.monotonic``."""
    deadline = server.started + _FIRST_JOB_TIMEOUT
    while server.process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port)) as worker:
            worker.settimeout(max(0.1, deadline - time.monotonic()))
            # CAN_DO, then GRAB_JOB; the answer begins with the number of its type.
            worker.sendall(b"\0REQ\0\0\0\1\0\0\0\4" + _FUNCTION + b"\0REQ\0\0\0\x09\0\0\0\0")
            if worker.recv(12).startswith(b"\0RES\0\0\0\x0b"):
                return time.monotonic()
        time.sleep(0.01)
    raise RunFailed("no job came from the restarted server")


def _fill_table_of_gearmand(path: Path, words: Sequence[str]) -> None:
    """Insert the jobs of a load into gearmand's table; through gearmand it would take hours."""
    given = dict(word.lstrip("-").partition("=")[::2] for word in words[1:])
    workload = bytes(int(given.get("bytes", 32)))
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany(
            "INSERT INTO gearman_queue (unique_key, function_name, priority, data, when_to_run) "
            "VALUES (?, ?, 1, ?, 0)",
            ((str(number), _FUNCTION.decode(), workload) for number in range(int(given["jobs"]))),
        )
