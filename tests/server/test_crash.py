"""Nothing that was acknowledged is lost when the server is killed."""

from __future__ import annotations

import os
import random
import secrets
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gearman_twisted.wire.codec import encode
from gearman_twisted.wire.constants import REQ, PacketType
from tests.kit.load import Ledger, Load, drain, jobs_left
from tests.kit.servers import BIN, PATIENCE, ServerProcess, TwistdGearman, WirePeer

JOBS = 2000
# A kill comes so many seconds after the server was up, at most; some while it reads its store.
MAX_LIFE = 0.5
# What keeps some servers from having room for all jobs, so that they take most of them from the store.
LITTLE_MEMORY = "--memory=64K"


def submit_until(server: TwistdGearman, acknowledged: int, number: int) -> set[bytes]:
    """Submit JOBS jobs at once, end the server with a signal after some were acknowledged.

    Returns:
        The workloads of all that were acknowledged, also those whose acknowledgement came later.
    """
    with WirePeer(server.port) as peer:
        workloads = [b"job %d" % index for index in range(JOBS)]
        packets = [encode(REQ, PacketType.SUBMIT_JOB_BG, b"f", b"", workload) for workload in workloads]
        peer.socket.sendall(b"".join(packets))
        seen = 0
        while seen < acknowledged:
            packet = peer.receive()
            assert packet is not None
            assert packet.type == PacketType.JOB_CREATED
            seen += 1
        server.process.send_signal(number)
        while (packet := peer.receive()) is not None:
            assert packet.type == PacketType.JOB_CREATED
            seen += 1
    server.process.communicate()
    return set(workloads[:seen])


def jobs_after_restart(directory: Path) -> list[bytes]:
    """What runs when a new server takes over the store."""
    with TwistdGearman(directory) as server:
        with WirePeer(server.port) as worker:
            ran = list(worker.drain(b"f"))
        assert server.end() == 0
    with TwistdGearman(directory) as server, WirePeer(server.port) as worker:
        assert list(worker.drain(b"f")) == [], "finished jobs came back"
    return ran


def check(directory: Path, acknowledged: int, number: int) -> None:
    with TwistdGearman(directory) as server:
        promised = submit_until(server, acknowledged, number)
        if number == signal.SIGTERM:
            assert server.process.returncode == 0
    ran = jobs_after_restart(directory)
    assert promised <= set(ran)
    assert len(ran) == len(set(ran)), "a job was stored twice"
    assert ran == sorted(ran, key=lambda workload: int(workload[4:])), "the order was lost"


@pytest.mark.parametrize("acknowledged", [0, 1, 1000])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_acknowledged_jobs_survive(tmp_path: Path, acknowledged: int, number: int) -> None:
    """Each of 2,000 background jobs that was acknowledged before the server was ended runs afterwards."""
    check(tmp_path, acknowledged, number)


def test_a_job_that_was_running_runs_again(tmp_path: Path) -> None:
    """A job that a worker had when the server was killed is given out again: at least once."""
    with TwistdGearman(tmp_path) as server, WirePeer(server.port) as worker:
        assert worker.ask(PacketType.SUBMIT_JOB_BG, b"f", b"", b"work") is not None
        worker.send(PacketType.CAN_DO, b"f")
        assigned = worker.ask(PacketType.GRAB_JOB)
        assert assigned is not None
        server.end(signal.SIGKILL)
    assert jobs_after_restart(tmp_path) == [b"work"]


# Campaigns: a server under load is killed and started again, over and over


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints a line, also when the test passes."""

    def say_it(text: str) -> None:
        with capsys.disabled():
            print(f"\n    {text}", end="")  # noqa: T201

    return say_it


def live_shortly(directory: Path, ledger: Ledger, chance: random.Random, *options: str) -> None:
    """A server with a load, killed at a random moment."""
    life = chance.uniform(0, MAX_LIFE)
    load_chance = random.Random(chance.getrandbits(64))
    with ServerProcess(
        directory,
        BIN / "twistd",
        "--nodaemon",
        "--pidfile=",
        f"--logfile={directory / 'server.log'}",
        "gearman",
        "--listen=tcp:0:interface=127.0.0.1",
        *options,
    ) as server:
        # Nothing is waited for here: what passes is the time in which it may be killed.
        timer = threading.Timer(life, server.process.kill)
        with Load(server.port, ledger, load_chance, is_killed=True):
            timer.start()
            server.process.wait(PATIENCE)


def campaign(directory: Path, kills: int, seed: int, *options: str) -> Ledger:
    """Kills a server so many times on the same store; returns what was promised and what ran."""
    chance = random.Random(seed)
    ledger = Ledger()
    directory.mkdir()
    for _ in range(kills):
        live_shortly(directory, ledger, chance, *options)
    with TwistdGearman(directory, *options) as server:
        drain(server.port, ledger, chance)
        assert server.end() == 0
    with TwistdGearman(directory, *options) as server, WirePeer(server.port) as peer:
        assert jobs_left(peer) == 0, "finished jobs came back"
    return ledger


def test_a_server_that_is_killed_again_and_again(tmp_path: Path) -> None:
    """What was acknowledged under load before any of three kills runs, also from a store beyond --memory."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")  # noqa: T201
    ledger = campaign(tmp_path / "store", 3, seed, LITTLE_MEMORY)
    assert ledger.check() == []
    assert ledger.promises


def test_a_campaign_finds_what_is_lost(tmp_path: Path) -> None:
    """With a server that answers before it saves, the same campaign finds jobs that are lost."""
    ledger = Ledger()
    directory = tmp_path / "store"
    directory.mkdir()
    options = ("--store=sqlite:jobs.db?sync=interval=3600",)
    with (
        TwistdGearman(directory, *options) as server,
        Load(server.port, ledger, random.Random(1), submits_later=True, is_killed=True),
    ):
        assert ledger.await_(lambda: len(ledger.promises) > 100)
        server.process.kill()
    with TwistdGearman(directory, *options) as server:
        drain(server.port, ledger, random.Random(2))
    wrong = ledger.check()
    assert wrong
    assert all(text.startswith("lost: ") for text in wrong)


@pytest.mark.soak
def test_200_kills_under_load(tmp_path: Path, say: Callable[[str], None]) -> None:
    """None of the jobs that were acknowledged before any of 200 kills is lost.

    The variable CRASH_SEED repeats the load and the moments of an earlier run.
    """
    seed = int(os.environ.get("CRASH_SEED") or secrets.randbits(32))
    say(f"CRASH_SEED={seed}")
    start = time.monotonic()
    # Two stores at a time, as most of the time goes into starting servers.
    with ThreadPoolExecutor(2) as pool:
        campaigns = [
            pool.submit(campaign, tmp_path / "unlimited", 100, seed),
            pool.submit(campaign, tmp_path / "limited", 100, seed + 1, LITTLE_MEMORY),
        ]
        for name, each in zip(("unlimited", "limited"), campaigns, strict=True):
            ledger = each.result()
            say(f"100 kills, memory {name}: {ledger}; {time.monotonic() - start:.0f} s")
            assert ledger.check() == []
            assert len(ledger.promises) > 1_000
