"""Clients and workers of other languages as Debian packages them, against a ``twistd gearman``.

What they do is in the scripts beside this file; they print a line for each thing that they saw.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.servers import PATIENCE, TwistdGearman, WirePeer

HERE = Path(__file__).parent
LARGE_BYTES = 5_000_000


class Tool:
    """A language with its Gearman library.

    Args:
        command: what runs its scripts.
        suffix: what the scripts' names end with.
        probe: a command that fails where the library is not installed.
        packages: the Debian packages to install then.
    """

    def __init__(self, command: str, suffix: str, probe: list[str], packages: str) -> None:
        found = shutil.which(command)
        if found is None or subprocess.run([found, *probe], capture_output=True).returncode:
            pytest.fail(f"{command} cannot speak Gearman; on Debian: apt-get install {packages}")
        self._command = found
        self._suffix = suffix

    def client(self, server: TwistdGearman, *words: str) -> list[str]:
        """Runs a case of the client to its end; returns the lines it printed."""
        done = subprocess.run(
            [self._command, HERE / f"client.{self._suffix}", str(server.port), *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout.splitlines()

    def worker(self, server: TwistdGearman, *words: str) -> subprocess.Popen[str]:
        """Starts a worker."""
        worker = subprocess.Popen(
            [self._command, HERE / f"worker.{self._suffix}", str(server.port), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        return worker


@pytest.fixture(scope="module")
def tools() -> dict[str, Tool]:
    """PHP and Perl; fails where a library is missing."""
    return {
        "php": Tool("php", "php", ["-r", "new GearmanClient();"], "php-cli php-gearman"),
        "perl": Tool("perl", "pl", ["-MGearman::Client", "-e1"], "libgearman-client-perl"),
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwistdGearman]:
    """A durable server."""
    with TwistdGearman(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(params=["php", "perl"])
def client(request: pytest.FixtureRequest, tools: dict[str, Tool]) -> Tool:
    """The client's language."""
    return tools[request.param]


@pytest.fixture(params=["php", "perl"])
def worker(request: pytest.FixtureRequest, tools: dict[str, Tool], server: TwistdGearman) -> Iterator[str]:
    """A worker that runs; the name of its language."""
    with tools[request.param].worker(server) as process:
        try:
            yield request.param
        finally:
            process.kill()


@pytest.mark.usefixtures("worker")
def test_foreground_jobs_of_each_priority(client: Tool, server: TwistdGearman) -> None:
    """A client gets the result of a foreground job, whatever its priority."""
    assert client.client(server, "foreground") == ["olleH"] * 3


@pytest.mark.usefixtures("worker")
def test_data_warnings_and_progress(client: Tool, server: TwistdGearman) -> None:
    """What a worker sends while it works reaches the client's callbacks in order, then the result."""
    assert client.client(server, "progress") == [
        "status 1 4",
        "data part",
        "warning careful",
        "status 4 4",
        "complete done",
    ]


@pytest.mark.usefixtures("worker")
def test_many_tasks_at_once(client: Tool, server: TwistdGearman) -> None:
    """Of fifty tasks that are submitted together each gets its own result."""
    assert sorted(client.client(server, "tasks")) == sorted(
        f"unique-{number} {f'task-{number}'[::-1]}" for number in range(50)
    )


@pytest.mark.usefixtures("worker")
def test_large_workloads(client: Tool, server: TwistdGearman) -> None:
    """Five megabytes of any bytes go to the worker and come back."""
    assert client.client(server, "large", str(LARGE_BYTES)) == ["equal"]


@pytest.mark.parametrize("runner", ["php", "perl"])
def test_background_jobs_and_their_status(
    client: Tool, runner: str, server: TwistdGearman, tools: dict[str, Tool]
) -> None:
    """Background jobs are known and queued until a worker comes, which gets them by priority."""
    assert client.client(server, "background") == [
        "normal known queued",
        "high known queued",
        "low known queued",
        "nobody unknown queued",
    ]
    with tools[runner].worker(server, "3") as process:
        assert process.stdout is not None
        ran = process.stdout.read()
    assert ran.splitlines() == ["high", "normal", "low"]


def test_exceptions_of_php(client: Tool, server: TwistdGearman, tools: dict[str, Tool]) -> None:
    """The exception of a PHP worker reaches a client that asks for exceptions with its text."""
    with tools["php"].worker(server) as process:
        try:
            lines = client.client(server, "exception")
        finally:
            process.kill()
    assert lines[0] == "exception out of paper"


def test_exceptions_of_perl(server: TwistdGearman, tools: dict[str, Tool]) -> None:
    """What a Perl worker died of reaches a Perl client; it is a frozen Perl value, for nobody else."""
    with tools["perl"].worker(server) as process:
        try:
            lines = tools["perl"].client(server, "exception")
        finally:
            process.kill()
    assert lines[0] == "exception out of paper"


def wait_for_status(client: WirePeer, handle: bytes, is_running: bytes) -> None:
    """Wait until a job runs, or does not."""
    deadline = time.monotonic() + PATIENCE
    while (status := client.ask(PacketType.GET_STATUS, handle)) is None or status.args[2] != is_running:
        assert time.monotonic() < deadline, status


def reverse(client: WirePeer) -> Packet | None:
    """Have a worker reverse a word."""
    client.ask(PacketType.SUBMIT_JOB, b"reverse", b"", b"Hello")
    return client.receive()


@pytest.mark.parametrize("runner", ["php", "perl"])
def test_worker_survives_an_exception(runner: str, server: TwistdGearman, tools: dict[str, Tool]) -> None:
    """A worker whose function failed takes the next job."""
    with tools[runner].worker(server) as process, WirePeer(server.port) as client:
        client.ask(PacketType.SUBMIT_JOB, b"throws", b"", b"")
        failed, reversed_ = client.receive(), reverse(client)
        process.kill()
    assert failed is not None
    assert failed.type == PacketType.WORK_FAIL
    assert reversed_ is not None
    assert reversed_.args[1:] == [b"olleH"]


@pytest.mark.parametrize("is_begun", [False, True])
@pytest.mark.parametrize("runner", ["php", "perl"])
def test_worker_that_exceeds_its_limit_goes_on(
    runner: str, is_begun: bool, server: TwistdGearman, tools: dict[str, Tool]
) -> None:
    """Its late result ends a job that still waits, and counts for nothing if another worker has begun it."""
    with (
        tools[runner].worker(server) as process,
        WirePeer(server.port) as client,
        WirePeer(server.port) as other,
    ):
        created = client.ask(PacketType.SUBMIT_JOB, b"slow", b"", b"")
        assert created is not None
        [handle] = created.args
        wait_for_status(client, handle, b"1")
        wait_for_status(client, handle, b"0")
        if is_begun:
            other.send(PacketType.CAN_DO, b"slow")
            other.ask(PacketType.GRAB_JOB)
        assert process.stdin is not None
        process.stdin.write("late\n")
        process.stdin.flush()
        if is_begun:
            # Grabbed only when the late result was sent, and its answer read.
            reversed_ = reverse(client)
            other.send(PacketType.WORK_COMPLETE, handle, b"in time")
            result = client.receive()
        else:
            result, reversed_ = client.receive(), reverse(client)
        process.kill()
    assert result is not None
    assert result.args == [handle, b"in time" if is_begun else b"late"]
    assert reversed_ is not None
    assert reversed_.args[1:] == [b"olleH"]


@pytest.mark.usefixtures("worker")
def test_equal_tasks_are_one_job(server: TwistdGearman, tools: dict[str, Tool]) -> None:
    """Perl's client gets an ending for each of three tasks with equal workloads and the unique ``-``."""
    assert tools["perl"].client(server, "same") == ["emas"] * 3


def test_php_echo(server: TwistdGearman, tools: dict[str, Tool]) -> None:
    """PHP's ping, an ECHO_REQ, is answered."""
    assert tools["php"].client(server, "ping") == ["pong"]


def test_exception_ends_debians_client(tmp_path: Path) -> None:
    """A client that did not ask for exceptions hears of one as a failure, and does not wait for ever."""
    with TwistdGearman(tmp_path, "--store=memory:") as server, WirePeer(server.port) as worker:
        worker.send(PacketType.CAN_DO, b"f")
        words = ["gearman", "-h", "127.0.0.1", "-p", str(server.port), "-f", "f", "x"]
        with subprocess.Popen(words) as client:
            assigned = None
            while assigned is None or assigned.type == PacketType.NO_JOB:
                assigned = worker.ask(PacketType.GRAB_JOB)
            worker.send(PacketType.WORK_EXCEPTION, assigned.args[0], b"why")
            assert client.wait(PATIENCE) == 1
