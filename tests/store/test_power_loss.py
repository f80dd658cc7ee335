"""Jobs in a SQLite file survive a loss of power from the moment at which they are acknowledged.

A server is recorded while it serves; then its files are made anew as they are found when the power goes at
some moment of the recording: with all that had been synced until then, and any part of the rest.
"""

from __future__ import annotations

import random
import secrets
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gearman_twisted.errors import StoreConfigError
from gearman_twisted.store.sql.sqlite import SQLiteFile
from gearman_twisted.store.sql.tables import SqlStore
from gearman_twisted.wire.codec import Decoder, encode
from gearman_twisted.wire.constants import REQ, RES, PacketType
from tests.kit.databases import missing
from tests.kit.disk import SECTOR_BYTES, Disk, Event, events, recorder_of, strace
from tests.kit.servers import ServerProcess, WirePeer

P = PacketType
NAME = "jobs.db"
# All that must outlive the power; what else SQLite keeps it makes anew.
NAMES = {NAME, f"{NAME}-wal", f"{NAME}-journal"}

# So many events of a recording are about a file that is made; the power is lost at each.
FIRST_EVENTS = 50

# A server of which the log is copied to the file, and begun anew, many times in a short recording.
SERVER = """
from gearman_twisted.store.sql import sqlite
sqlite.CHECKPOINT_PAGES = 30
{change}
from twisted.scripts.twistd import run
run()
"""
WEAKER = """
strong = sqlite._set_up
def weak(session):
    strong(session)
    session.execute("PRAGMA synchronous = NORMAL")
sqlite._set_up = weak
"""

Job = tuple[bytes, bytes]


class Promises:
    """The jobs that a recorded server has to have at a moment, by the packets that went to and fro."""

    def __init__(self) -> None:
        self._requests: defaultdict[str, Decoder] = defaultdict(lambda: Decoder(REQ))
        self._responses: defaultdict[str, Decoder] = defaultdict(lambda: Decoder(RES))
        self._unanswered: defaultdict[str, deque[Job]] = defaultdict(deque)
        self.jobs: dict[bytes, Job] = {}
        self.count = 0

    def play(self, event: Event) -> bool:
        """Takes what was sent and received; whether something was promised."""
        before = self.count
        if event.call == "recvfrom":
            for packet in self._requests[event.target].feed(event.data):
                if packet.type == P.SUBMIT_JOB_BG:
                    function, _, workload = packet.args
                    self._unanswered[event.target].append((function, workload))
                elif packet.type == P.WORK_COMPLETE:
                    del self.jobs[packet.args[0]]
        elif event.call == "sendto":
            for packet in self._responses[event.target].feed(event.data):
                assert packet.type != P.ERROR, packet
                if packet.type == P.JOB_CREATED:
                    self.jobs[packet.args[0]] = self._unanswered[event.target].popleft()
                    self.count += 1
        return self.count > before


def submit(peers: list[WirePeer], chance: random.Random) -> None:
    """Submits jobs over several connections at once, and waits until they are acknowledged."""
    bursts = [chance.randint(1, 5) for _ in peers]
    for peer, count in zip(peers, bursts, strict=True):
        workloads = [chance.randbytes(chance.choice((10, 700, 5_000))) for _ in range(count)]
        packets = [encode(REQ, P.SUBMIT_JOB_BG, b"f", b"", workload) for workload in workloads]
        peer.socket.sendall(b"".join(packets))
    for peer, count in zip(peers, bursts, strict=True):
        for _ in range(count):
            answer = peer.receive()
            assert answer is not None
            assert answer.type == P.JOB_CREATED


def start(directory: Path, trace: Path, change: str) -> ServerProcess:
    """A server that is recorded."""
    return ServerProcess(
        directory,
        *strace(trace),
        sys.executable,
        "-c",
        SERVER.format(change=change),
        "--nodaemon",
        "--pidfile=",
        f"--logfile={directory / 'server.log'}",
        "gearman",
        "--listen=tcp:0:interface=127.0.0.1",
        f"--store=sqlite:{directory / NAME}",
    )


def serve(server: ServerProcess, rounds: int, chance: random.Random) -> None:
    """Submits jobs, and runs some of them."""
    with (
        WirePeer(server.port) as one,
        WirePeer(server.port) as other,
        WirePeer(server.port) as worker,
    ):
        worker.send(P.CAN_DO, b"f")
        for _ in range(rounds):
            submit([one, other], chance)
            for _ in range(chance.randint(0, 5)):
                packet = worker.ask(P.GRAB_JOB)
                if packet is not None and packet.type == P.JOB_ASSIGN:
                    worker.send(P.WORK_COMPLETE, packet.args[0], b"")
        # What is answered comes behind all that was to be forgotten, so the store rests afterwards.
        worker.ask(P.ECHO_REQ, b"")
        submit([one], chance)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the recorded server works; needs strace, and the right to use it."""
    if shutil.which("strace") is None or subprocess.run(["strace", "-o", "/dev/null", "true"]).returncode:
        missing("strace is not installed here, or may not trace")
    path = tmp_path / "server"
    path.mkdir()
    return path


def record(directory: Path, rounds: int, chance: random.Random, change: str = "") -> list[Event]:
    """What servers did that followed each other on a store: one stopped, one killed, one stopped."""
    disk = Disk(directory, NAMES)
    recorded: list[Event] = []
    for number, end in enumerate((signal.SIGTERM, signal.SIGKILL, signal.SIGTERM)):
        trace = directory / f"trace{number}"
        with start(directory, trace, change) as server, recorder_of(server.process.pid):
            serve(server, rounds, chance)
            server.end(end)
        for event in events(trace):
            # Sockets may have the same names in two processes.
            is_packet = event.call in {"sendto", "recvfrom"}
            kept = event._replace(target=f"{number} {event.target}") if is_packet else event
            if disk.play(kept) or is_packet:
                recorded.append(kept)
        actual = {name: (directory / name).read_bytes() for name in NAMES if (directory / name).exists()}
        assert disk.content() == actual, "the recording is not complete"
    return recorded


def jobs_found(directory: Path, files: dict[str, bytes]) -> dict[bytes, Job]:
    """What our store has when it opens files after a loss of power; they are sound."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    store = SqlStore(SQLiteFile(directory / NAME))
    store.connect()
    try:
        found: dict[bytes, Job] = {}
        after: int | None = -(2**63)
        while after is not None:
            jobs, after = store.page(after)
            found |= {job.handle: (job.function, job.workload) for job in jobs}
    finally:
        store.disconnect()
    with closing(sqlite3.connect(directory / NAME)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return found


def losses(directory: Path, recorded: list[Event], chance: random.Random, density: float) -> Iterator[int]:
    """Takes the power away at many moments; yields for each how many promised jobs were lost."""
    disk = Disk(directory, NAMES)
    promises = Promises()
    for number, event in enumerate(recorded):
        is_moment = promises.play(event) or disk.play(event)
        if not is_moment or (number > FIRST_EVENTS and chance.random() > density):
            continue
        # Nothing but what was synced; then some of the rest, or most of it.
        for share in (0.0, chance.random(), chance.choice((0.05, 0.95))):
            found = jobs_found(directory / "after", disk.after_power_loss(chance, share))
            yield sum(found.get(handle) != job for handle, job in promises.jobs.items())
    assert promises.count > 100


def test_acknowledged_jobs_survive_a_loss_of_power(directory: Path) -> None:
    """Whenever the power goes, all jobs that were acknowledged and not ended are there, in a sound file."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    recorded = record(directory, 15, chance)
    assert {event.call for event in recorded} >= {"create", "write", "sync", "truncate", "unlink"}
    assert sum(losses(directory, recorded, chance, 0.05)) == 0


def hot_journal(pages: int) -> bytes:
    """SQLite's journal of a transaction that was cut short before it changed a file of so many pages."""
    header = bytes.fromhex("d9d505f920a163d7") + struct.pack(">5I", 0, 1, pages, SECTOR_BYTES, 4096)
    return header.ljust(SECTOR_BYTES, b"\0")


def test_a_file_that_was_being_made(tmp_path: Path) -> None:
    """If the power goes while the file is made, which may leave anything in it, the server still starts."""
    half_made = {NAME: bytes(4096), f"{NAME}-journal": hot_journal(0)}
    assert jobs_found(tmp_path / "after", half_made) == {}


def test_another_file_that_was_cut_short(tmp_path: Path) -> None:
    """The database of something else is left as it is, also if a transaction in it was cut short."""
    path = tmp_path / NAME
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE other (one INTEGER)")
    content = path.read_bytes()
    Path(f"{path}-journal").write_bytes(hot_journal(len(content) // 4096))
    store = SqlStore(SQLiteFile(path))
    for _ in range(2):
        with pytest.raises(StoreConfigError, match="something else"):
            store.connect()
    assert path.read_bytes() == content


def test_a_store_that_does_not_sync_is_found_out(directory: Path) -> None:
    """With synchronous=NORMAL, which leaves the log to the system, the same moments show lost jobs."""
    chance = random.Random(1)
    recorded = record(directory, 10, chance, WEAKER)
    assert sum(losses(directory, recorded, chance, 0.02)) > 0


@pytest.mark.soak
def test_power_is_lost_at_thousands_of_moments(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same at about every third write, sync and acknowledgement of a longer recording."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    recorded = record(directory, 40, chance)
    lost = list(losses(directory, recorded, chance, 0.3))
    with capsys.disabled():
        print(f"\n    {len(lost)} losses of power: {sum(lost)} jobs lost", end="")  # noqa: T201
    assert sum(lost) == 0
