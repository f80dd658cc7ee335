"""``twistd gearman-worker`` with processes, limits and commands, against our server."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gearman_twisted.wire.constants import PacketType as P
from tests.kit.servers import BIN, PATIENCE, TwistdGearman, WirePeer, wait_until

TASKS = """
import os
from pathlib import Path
import gearman_twisted

if Path("die").exists():
    os._exit(7)

@gearman_twisted.function
def pid(job):
    return b"%d" % os.getpid()

@gearman_twisted.function
def version(job):
    return b"old"

@gearman_twisted.function(run_in="thread")
def wait(job):
    Path("started").write_bytes(b"yes")
    return Path("gate").read_bytes()
"""

CONFIG = """
modules = ["tasks"]
processes = 1
[functions.wc]
exec = "wc -c"
[functions.cat]
exec = ["cat"]
[functions.fail]
exec = "sh -c 'echo out; echo reason >&2; exit 3'"
[functions.environment]
exec = "sh -c 'echo $GEARMAN_HANDLE $GEARMAN_FUNCTION $GEARMAN_UNIQUE'"
[functions.lines]
exec = "printf 'a\\\\nb\\\\nc'"
lines = true
[functions.stuck]
exec = "sh -c 'echo $$ > stuck.pid; exec sleep 1000'"
timeout = 0.2
"""


def is_there(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TwistdGearman]:
    directory = tmp_path / "server"
    directory.mkdir()
    with TwistdGearman(directory, "--store=memory:") as server:
        yield server


class Worker:
    """A ``twistd gearman-worker`` in a directory of its own."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None
        self.write("tasks.py", TASKS)
        self.write("worker.toml", CONFIG)
        for name in ("started", "gate"):
            os.mkfifo(directory / name)

    def write(self, name: str, text: str) -> None:
        """Writes a file of its directory."""
        (self.directory / name).write_text(text)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Starts it."""
        # Code that changes within a second, to a file of the same size, is new code as well.
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [str(BIN / "twistd"), "--nodaemon", "--pidfile=", "--logfile=worker.log", "gearman-worker"]
        self.process = subprocess.Popen(
            [*command, f"--server=127.0.0.1:{self.port}", *words], cwd=self.directory, env=environment
        )
        return self.process

    def log(self) -> str:
        """What it has logged."""
        path = self.directory / "worker.log"
        return path.read_text() if path.exists() else ""

    def logs(self, text: str, times: int = 1) -> None:
        """Waits until it has logged something, so many times."""
        wait_until(lambda: self.log().count(text) >= times)

    def do(self, function: bytes, workload: bytes = b"") -> list[tuple[P, bytes]]:
        """Has it do a job; what comes of that."""
        with WirePeer(self.port) as client:
            created = client.ask(P.SUBMIT_JOB, function, b"u", workload)
            assert created is not None
            assert created.type == P.JOB_CREATED
            found: list[tuple[P, bytes]] = []
            while not found or found[-1][0] not in (P.WORK_COMPLETE, P.WORK_FAIL):
                packet = client.receive()
                assert packet is not None
                found.append((P(packet.type), b"".join(packet.args[1:])))
            return found

    def result(self, function: bytes, workload: bytes = b"") -> bytes:
        """Has it do a job; its result."""
        [(kind, data)] = self.do(function, workload)
        assert kind == P.WORK_COMPLETE
        return data

    def end(self, number: int = signal.SIGTERM) -> int:
        """Sends it a signal and waits for the end; its status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=PATIENCE)


@pytest.fixture
def worker(tmp_path: Path, server: TwistdGearman) -> Iterator[Worker]:
    worker = Worker(tmp_path, server.port)
    yield worker
    process = worker.process
    if process is not None and process.poll() is None:
        process.kill()
        process.wait()


def test_commands_do_jobs(worker: Worker) -> None:
    """The workload is what a command reads, its output the result, and its failure that of the job."""
    worker.start("--config=worker.toml")
    large = os.urandom(3_000_000)
    assert worker.result(b"wc", b"12345").split() == [b"5"]
    assert worker.result(b"cat", large) == large
    handle, *rest = worker.result(b"environment").split()
    assert handle.startswith(b"H:")
    assert rest == [b"environment", b"u"]
    *_, (warned, warning), (kind, _) = worker.do(b"fail")
    assert (warned, warning, kind) == (P.WORK_WARNING, b"sh ended with status 3: reason", P.WORK_FAIL)
    assert (P.WORK_DATA, b"out\n") in worker.do(b"fail")
    parts = worker.do(b"lines")
    assert b"".join(data for _, data in parts) == b"a\nb\nc"
    assert parts[0][0] == P.WORK_DATA
    assert parts[-1] == (P.WORK_COMPLETE, b"c")


def test_command_may_have_any_name(worker: Worker) -> None:
    """A command whose name is not UTF-8 fails its job like any other."""
    script = worker.directory / "\udcff"
    script.write_text("#!/bin/sh\nexit 3")
    script.chmod(0o755)
    worker.start("--exec=odd=./\udcff", "--processes=1")
    assert worker.do(b"odd") == [(P.WORK_WARNING, rb"./\udcff ended with status 3"), (P.WORK_FAIL, b"")]


def test_stuck_command_is_ended(worker: Worker) -> None:
    """A command whose job has timed out does not live on."""
    worker.start("--config=worker.toml")
    assert worker.do(b"stuck")[-1][0] == P.WORK_FAIL
    pid = int((worker.directory / "stuck.pid").read_text())
    wait_until(lambda: not is_there(pid))


def test_settings_of_the_command_line_hold(worker: Worker) -> None:
    """--set changes functions of the file, of a module and of the command line; so it does after a reload."""
    process = worker.start(
        "--config=worker.toml",
        "--set=lines.lines=false",
        "--function=elsewhere=tasks:pid",
        "--set=elsewhere.run_in=process",
        "--set=elsewhere.max_jobs=1",
        "--exec=slow=sleep 1000",
        "--set=slow.timeout=0.1",
    )
    for reloads in (1, 2):
        assert worker.do(b"lines") == [(P.WORK_COMPLETE, b"a\nb\nc")]
        assert worker.do(b"slow")[-1][0] == P.WORK_FAIL
        assert len({worker.result(b"pid"), worker.result(b"elsewhere"), worker.result(b"elsewhere")}) == 3
        process.send_signal(signal.SIGHUP)
        worker.logs("] reloaded", reloads)


def test_limit_of_the_command_line_holds(worker: Worker) -> None:
    """With --set a function has one job at a time, although its worker has slots for others."""
    worker.start("--function=tasks", "--concurrency=5", "--set=wait.concurrency=1")
    with WirePeer(worker.port) as client:
        for unique in (b"1", b"2"):
            client.ask(P.SUBMIT_JOB, b"wait", unique, b"")
        for ended in (0, 1):
            assert (worker.directory / "started").read_bytes() == b"yes"
            # What comes behind it is done meanwhile.
            assert worker.result(b"version") == b"old"
            assert b"wait\t%d\t1\t1\n" % (2 - ended) in client.text(b"status", b".\n")
            (worker.directory / "gate").write_bytes(b"waited")
            packet = client.receive()
            assert packet is not None
            assert packet.args[1] == b"waited"


def test_dead_process_is_replaced(worker: Worker) -> None:
    """A process that is killed is replaced; all end with their supervisor, which ends with 0."""
    worker.start("--function=tasks", "--processes=1")
    first = int(worker.result(b"pid"))
    os.kill(first, signal.SIGKILL)
    second = int(worker.result(b"pid"))
    assert second != first
    assert f"(pid {first}) was ended by signal 9; restarting in " in worker.log()
    assert worker.end() == 0
    assert not is_there(second)


def test_processes_that_die_at_once_are_started_less_and_less_often(worker: Worker) -> None:
    """The log says how many have died in a row; when the cause has gone, so has the trouble."""
    worker.start("--function=tasks", "--processes=1")
    first = int(worker.result(b"pid"))
    worker.write("die", "")
    os.kill(first, signal.SIGKILL)
    worker.logs("ended with status 7; restarting in ")
    worker.logs("(death 2 in a row)")
    (worker.directory / "die").unlink()
    assert int(worker.result(b"pid")) != first


def test_running_job_ends_before_its_process(worker: Worker) -> None:
    """SIGTERM waits for jobs that run in the processes."""
    worker.start("--function=tasks", "--processes=2")
    with WirePeer(worker.port) as client:
        client.ask(P.SUBMIT_JOB, b"wait", b"", b"")
        assert (worker.directory / "started").read_bytes() == b"yes"
        assert worker.process is not None
        worker.process.send_signal(signal.SIGTERM)
        (worker.directory / "gate").write_bytes(b"waited")
        packet = client.receive()
        assert packet is not None
        assert packet.args[1] == b"waited"
    assert worker.process.wait(timeout=PATIENCE) == 0


def test_job_that_outlasts_the_drain_timeout_goes_back(worker: Worker) -> None:
    """A job that does not end in time does not keep its process."""
    process = worker.start("--function=tasks", "--processes=1", "--drain-timeout=0.1")
    with WirePeer(worker.port) as client:
        client.ask(P.SUBMIT_JOB, b"wait", b"", b"")
        assert (worker.directory / "started").read_bytes() == b"yes"
        assert worker.end() == 0
        assert process.returncode == 0
    assert "; 1 running jobs go back to their servers" in worker.log()


@pytest.mark.parametrize("words", [["--max-jobs=2"], ["--max-lifetime=1"]])
def test_single_process_ends_itself(worker: Worker, words: list[str]) -> None:
    """Without --processes the end is one with status 0, for whoever starts it again."""
    process = worker.start("--function=tasks", *words)
    assert worker.result(b"pid") == worker.result(b"pid")
    assert process.wait(timeout=PATIENCE) == 0


def test_process_is_replaced_after_its_jobs(worker: Worker) -> None:
    """With --processes another one goes on."""
    worker.start("--function=tasks", "--processes=1", "--max-jobs=2")
    pids = [worker.result(b"pid") for _ in range(6)]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4] == pids[5]


def test_hangup_brings_new_code(worker: Worker) -> None:
    """The new process is at work before the old one has done its last job, which is not lost."""
    worker.start("--config=worker.toml")
    assert worker.result(b"version") == b"old"
    with WirePeer(worker.port) as client:
        client.ask(P.SUBMIT_JOB, b"wait", b"", b"")
        assert (worker.directory / "started").read_bytes() == b"yes"
        worker.write("tasks.py", TASKS.replace('b"old"', 'b"new"'))
        assert worker.process is not None
        worker.process.send_signal(signal.SIGHUP)
        assert worker.result(b"version") == b"new"
        (worker.directory / "gate").write_bytes(b"waited")
        packet = client.receive()
        assert packet is not None
        assert packet.args[1] == b"waited"
    worker.logs("reloaded")
    worker.write("worker.toml", CONFIG.replace("processes = 1", "processes = 2"))
    worker.process.send_signal(signal.SIGHUP)
    worker.logs("process 2 (pid ")
    assert worker.end() == 0


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("worker.toml", "processes = 'many'", "processes takes a whole number of at least 1, not 'many'"),
        ("tasks.py", "syntax error", "cannot start: cannot import 'tasks': SyntaxError: "),
    ],
)
def test_bad_news_at_a_hangup_change_nothing(worker: Worker, name: str, text: str, reason: str) -> None:
    """Settings or code that make no sense are told of in the log, and the old process goes on."""
    process = worker.start("--config=worker.toml")
    before = worker.result(b"pid")
    worker.write(name, text)
    process.send_signal(signal.SIGHUP)
    worker.logs(reason)
    assert "not reloaded" in worker.log()
    assert worker.result(b"pid") == before


def test_hangup_of_a_single_process_is_explained(worker: Worker) -> None:
    """Without --processes it goes on as it is, and says what to do."""
    process = worker.start("--function=tasks")
    before = worker.result(b"pid")
    process.send_signal(signal.SIGHUP)
    worker.logs("SIGHUP: log reopened; to load code again restart it, or start it with --processes 1")
    assert worker.result(b"pid") == before


def test_processes_end_with_a_killed_supervisor(worker: Worker) -> None:
    """Nobody works on behind the back of a supervisor that was started again."""
    worker.start("--function=tasks", "--processes=1")
    pid = int(worker.result(b"pid"))
    worker.end(signal.SIGKILL)
    wait_until(lambda: not is_there(pid))
