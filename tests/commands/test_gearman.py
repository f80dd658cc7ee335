"""The command ``gearman`` as a child process, against our server and Debian's, and beside Debian's tool."""

from __future__ import annotations

import io
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gearman_twisted.commands.arguments import parse
from gearman_twisted.commands.gearman.client import workloads
from gearman_twisted.commands.gearman.command import Lines
from gearman_twisted.commands.gearman.unique import unique_of
from gearman_twisted.commands.gearmand.parser import port_number as gearmand_port
from gearman_twisted.commands.servers import server_addresses
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from tests.commands.test_gearmand import Foreground
from tests.kit.certificates import Certificates
from tests.kit.gearmand import Gearmand
from tests.kit.servers import BIN, PATIENCE, TwistdGearman, WirePeer, run

GEARMAN = [sys.executable, "-m", "gearman_twisted.commands.gearman"]
ADMIN = [sys.executable, "-m", "gearman_twisted.commands.gearadmin"]
# A port on which nothing listens, as it takes root to do so.
NOBODY = "1"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwistdGearman]:
    with TwistdGearman(tmp_path_factory.mktemp("server"), "--store=memory:") as server:
        yield server


@pytest.fixture(params=["ours", "gearmand"])
def port(request: pytest.FixtureRequest) -> int:
    """The port of our server, then that of Debian's."""
    return int(request.getfixturevalue(request.param).port)


def client(port: int, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return run(*GEARMAN, "-h", "127.0.0.1", "-p", str(port), *words, stdin=stdin)


@contextmanager
def worker(port: int, *words: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that runs meanwhile."""
    child = subprocess.Popen(
        [*GEARMAN, "-w", "-h", "127.0.0.1", "-p", str(port), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def line_of(child: subprocess.Popen[bytes]) -> bytes:
    """The next line that a child writes to standard error."""
    assert child.stderr is not None
    return child.stderr.readline()


def printed_line(child: subprocess.Popen[bytes]) -> bytes:
    """The next line that a child writes to standard output; fails if none comes."""
    assert child.stdout is not None
    assert select.select([child.stdout], [], [], PATIENCE)[0], "nothing came"
    return child.stdout.readline()


def test_documented_commands_work_as_written(ours: TwistdGearman) -> None:
    """The commands that every Gearman tutorial begins with do what the tutorials say."""
    script = """
        gearman -w -f wc -- wc -l & W1=$!
        gearman -w -f reverse -- rev & W2=$!
        gearman -f wc < /etc/passwd
        gearman -f reverse "Hello World!"
        gearman -b -f wc ignored
        kill $W1 $W2
        wait $W1 && wait $W2
    """
    done = run(
        "sh", "-c", script, PATH=f"{BIN}:{os.environ['PATH']}", GEARMAN_SERVER=f"127.0.0.1:{ours.port}"
    )
    lines = Path("/etc/passwd").read_bytes().count(b"\n")
    assert (done.stdout, done.stderr, done.returncode) == (b"%d\n!dlroW olleH" % lines, b"", 0)


@pytest.mark.parametrize(
    ("words", "stdin"),
    [
        (["-f", "cat", "one", "two"], b"unread"),
        (["-f", "cat"], b"a\nb\0\xff"),
        (["-f", "cat", "-P"], b""),
        (["-f", "cat", "-P", "one", "two"], b""),
        (["-f", "cat", "-n", "-P"], b"a\nb\nc"),
        (["-f", "cat", "-N", "-P"], b"a\nb\n"),
        (["-f", "cat", "-s", "-P"], b"unread"),
        (["-f", "cat", "-b", "one"], b""),
        (["-Pf", "fail", "one", "two"], b""),
        (["-f", "fail", "one"], b""),
        (["-f", "cat", "-I", "-t", "20000", "-u", "key", "one"], b""),
    ],
)
def test_same_as_debians(port: int, words: list[str], stdin: bytes) -> None:
    """Output, complaints and exit status of the client are those of Debian's tool."""
    debians = ["gearman", "-h", "127.0.0.1", "-p", str(port)]
    with worker(port, "-f", "cat", "--", "cat"), worker(port, "-f", "fail", "--", "sh", "-c", "cat; exit 3"):
        theirs = run(*debians, *words, stdin=stdin)
        done = client(port, *words, stdin=stdin)
    assert (done.stdout, done.stderr, done.returncode) == (theirs.stdout, theirs.stderr, theirs.returncode)


def test_debians_client_and_our_worker_by_lines(port: int) -> None:
    """A worker with -n or -N sends each line of output as a packet of its own, and nothing twice."""
    script = r"printf 'a\n\nb'"
    with worker(port, "-n", "-f", "n", "--", "sh", "-c", script):
        theirs = run("gearman", "-h", "127.0.0.1", "-p", str(port), "-P", "-f", "n", "-s")
        assert theirs.stdout == b"n: a\nn: \nn: bn: "
    with worker(port, "-N", "-f", "N", "--", "sh", "-c", script):
        assert client(port, "-P", "-f", "N", "-s").stdout == b"N: aN: N: bN: "


def test_several_functions_run_together(port: int) -> None:
    """With several -f there is one job for each, and one that fails does not keep the others."""
    with worker(port, "-f", "a", "-f", "b", "--", "cat"), worker(port, "-f", "c", "--", "false"):
        done = client(port, "-P", "-f", "a", "-f", "b", "-f", "c", "x")
    assert sorted([done.stdout[:4], done.stdout[4:]]) == [b"a: x", b"b: x"]
    assert (done.stderr, done.returncode) == (b"c: Job failed\n", 1)


def test_functions_of_a_workload_run_side_by_side(ours: TwistdGearman, tmp_path: Path) -> None:
    """The jobs of several -f are all submitted at once, and their results are printed as they come."""
    os.mkfifo(tmp_path / "go-on")
    with (
        worker(ours.port, "-f", "slow", "--", "cat", str(tmp_path / "go-on")),
        worker(ours.port, "-f", "quick", "--", "echo", "soon"),
    ):
        asking = subprocess.Popen(
            [*GEARMAN, "-p", str(ours.port), "-P", "-f", "slow", "-f", "quick", "x"], stdout=subprocess.PIPE
        )
        assert printed_line(asking) == b"quick: soon\n"
        (tmp_path / "go-on").write_bytes(b"late")
        assert asking.communicate(timeout=PATIENCE)[0] == b"slow: late"
        assert asking.returncode == 0


def test_each_line_is_run_before_the_next_is_read(ours: TwistdGearman) -> None:
    """With -n the result of a line is there before the next line has to be."""
    with worker(ours.port, "-f", "cat", "--", "cat"):
        asking = subprocess.Popen(
            [*GEARMAN, "-p", str(ours.port), "-n", "-f", "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert asking.stdin is not None
        for line in (b"one\n", b"two\n"):
            asking.stdin.write(line)
            assert printed_line(asking) == line
        asking.communicate(timeout=PATIENCE)
        assert asking.returncode == 0


def test_priorities_and_uniques(ours: TwistdGearman) -> None:
    """-I goes first, -L last; without -u each job has a unique of its own; -b prints nothing."""
    for words in (["-L", "low"], ["normal"], ["-I", "high"], ["normal"]):
        done = client(ours.port, "-b", "-f", "ordered", *words)
        assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 0)
    with WirePeer(ours.port) as peer:
        peer.send(PacketType.CAN_DO, b"ordered")
        jobs: list[Packet] = []
        for _ in range(4):
            job = peer.ask(PacketType.GRAB_JOB_UNIQ)
            assert job is not None
            peer.send(PacketType.WORK_COMPLETE, job.args[0], b"")
            jobs.append(job)
    assert [job.args[3] for job in jobs] == [b"high", b"normal", b"normal", b"low"]
    uniques = {job.args[2] for job in jobs}
    assert len(uniques) == 4
    assert {len(unique) for unique in uniques} == {36}


def test_lines_that_debians_client_damages(port: int) -> None:
    """An empty line under -N, or an empty word, is an empty workload; long and last lines stay whole."""
    long = b"x" * 20_000
    with worker(port, "-f", "cat", "--", "cat"):
        assert client(port, "-f", "cat", "-NP", stdin=b"a\n\nbc").stdout == b"cat: acat: cat: bc"
        assert client(port, "-f", "cat", "-nP", stdin=long + b"\n").stdout == b"cat: " + long + b"\n"
        assert client(port, "-f", "cat", "-P", "").stdout == b"cat: "


def test_large_workload_does_not_hang(port: int) -> None:
    """A command that writes while it reads gets and gives far more than a pipe holds."""
    data = os.urandom(3_000_000)
    with worker(port, "-f", "cat", "--", "cat"):
        assert client(port, "-f", "cat", stdin=data).stdout == data


def test_command_that_does_not_read_succeeds(ours: TwistdGearman) -> None:
    """A command that ends before it has read its workload decides by its status."""
    with worker(ours.port, "-f", "true", "--", "true"):
        assert client(ours.port, "-f", "true", stdin=bytes(3_000_000)).returncode == 0


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["sh", "-c", "kill -KILL $$"], b"was killed by signal 9"),
        (["no-such-command"], b"is not found, or not executable"),
        (["sh", "-c", "exit 7"], b"ended with status 7"),
    ],
)
def test_command_that_fails_fails_the_job(ours: TwistdGearman, command: list[str], complaint: bytes) -> None:
    """A command that is killed, not found or ends badly fails its job; the worker says why and goes on."""
    with worker(ours.port, "-f", "bad", "--", *command) as child:
        for _ in range(2):
            done = client(ours.port, "-f", "bad", "x")
            assert (done.stdout, done.stderr, done.returncode) == (b"", b"Job failed\n", 1)
            assert complaint in line_of(child)


def test_output_of_a_command_that_fails_is_sent(ours: TwistdGearman) -> None:
    """What a command wrote before it ended badly reaches the client, and then the failure does."""
    with worker(ours.port, "-f", "half", "--", "sh", "-c", "cat; exit 3"):
        done = client(ours.port, "-f", "half", "so far")
    assert (done.stdout, done.stderr, done.returncode) == (b"so far", b"Job failed\n", 1)


def test_command_knows_its_job(ours: TwistdGearman) -> None:
    """The command finds the job's handle, function and unique in its environment."""
    script = 'printf "$GEARMAN_HANDLE $GEARMAN_FUNCTION $GEARMAN_UNIQUE"'
    with worker(ours.port, "-f", "env", "--", "sh", "-c", script):
        done = client(ours.port, "-v", "-f", "env", "-u", "key", "x")
    created, result = done.stdout.split(b"\n")
    assert result == created.removeprefix(b"Task created: ") + b" env key"


def test_worker_without_command_prints_workloads(ours: TwistdGearman) -> None:
    """A worker without a command writes the data to its own output; -c ends it after so many jobs."""
    with worker(ours.port, "-f", "print", "-c", "2") as child:
        assert client(ours.port, "-f", "print", "one", "two").stdout == b""
        assert child.communicate(timeout=PATIENCE) == (b"onetwo", b"")
        assert child.returncode == 0


def test_counting_worker_leaves_the_other_jobs(ours: TwistdGearman) -> None:
    """A worker with -c takes no job more than it may."""
    assert client(ours.port, "-b", "-f", "count", "1", "2", "3").returncode == 0
    for printed in (b"12", b"3"):
        with worker(ours.port, "-f", "count", "-c", str(len(printed))) as child:
            assert child.communicate(timeout=PATIENCE)[0] == printed


def test_idle_timeout_is_a_round(ours: TwistdGearman) -> None:
    """A worker with -t and -c ends when no job comes, without a message; with 1 if it never had a server."""
    for port, status in ((str(ours.port), 0), (NOBODY, 1)):
        with worker(int(port), "-f", "idle", "-c", "2", "-t", "400") as child:
            printed, said = child.communicate(timeout=PATIENCE)
            assert (printed, child.returncode) == (b"", status)
            assert said.count(b"\n") == status  # that there is no server


def test_worker_that_is_told_to_stop_ends_its_job(ours: TwistdGearman, tmp_path: Path) -> None:
    """SIGTERM lets the running job end, and its result arrives; then the worker exits with 0."""
    os.mkfifo(tmp_path / "go-on")
    script = f"echo running >&2; cat {tmp_path / 'go-on'}"
    with worker(ours.port, "-f", "slow", "--", "sh", "-c", script) as child:
        asking = subprocess.Popen(
            [*GEARMAN, "-p", str(ours.port), "-f", "slow", "x"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert line_of(child) == b"running\n"
        child.terminate()
        (tmp_path / "go-on").write_bytes(b"done")
        assert asking.communicate(timeout=PATIENCE) == (b"done", b"")
        assert child.wait(timeout=PATIENCE) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_client_dies_of_signals(ours: TwistdGearman, number: signal.Signals) -> None:
    """A client that waits for its job dies by SIGINT and SIGTERM, so that scripts stop."""
    asking = subprocess.Popen(
        [*GEARMAN, "-v", "-p", str(ours.port), "-f", "nobody-does-this", "x"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert asking.stdout is not None
    assert asking.stdout.readline().startswith(b"Task created: H:")
    asking.send_signal(number)
    assert asking.communicate(timeout=PATIENCE) == (b"", b"")
    assert asking.returncode == -number


def test_worker_waits_for_its_server(gearmand: Gearmand) -> None:
    """A worker whose server is down says so once and comes back to it."""
    with worker(gearmand.port, "-f", "cat", "--", "cat") as child:
        assert gearmand.run_client("-f", "cat", "x") == b"x"
        gearmand.end()
        assert line_of(child).startswith(b"gearman: cannot connect to 127.0.0.1:%d, goes on" % gearmand.port)
        gearmand.start()
        assert gearmand.run_client("-f", "cat", "y") == b"y"
        assert line_of(child) == b"gearman: connected to 127.0.0.1:%d\n" % gearmand.port


@pytest.mark.parametrize("words", [["x", "y"], ["-b", "x"]])
def test_no_server_is_an_error(words: list[str]) -> None:
    """Without a server the client exits with 1 and one line that names it."""
    done = run(*GEARMAN, "-p", NOBODY, "-f", "cat", *words)
    assert (done.stdout, done.returncode) == (b"", 1)
    assert done.stderr.startswith(b"gearman: cannot connect to localhost:1: ")
    assert done.stderr.count(b"\n") == 1


def test_lost_server_is_an_error(gearmand: Gearmand) -> None:
    """A client whose server goes away while it waits says so and exits with 1."""
    asking = subprocess.Popen(
        gearmand_client(gearmand, "-v", "-f", "nobody-does-this", "x", "y"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert asking.stdout is not None
    asking.stdout.readline()
    gearmand.end()
    printed, said = asking.communicate(timeout=PATIENCE)
    assert (printed, asking.returncode, said.count(b"\n")) == (b"", 1, 1)
    assert b"was lost" in said


def gearmand_client(gearmand: Gearmand, *words: str) -> list[str]:
    return [*GEARMAN, "-p", str(gearmand.port), *words]


def test_refused_job_is_an_error(ours: TwistdGearman) -> None:
    """A job that the server refuses is named, and the exit status is 1; further jobs are tried."""
    assert run(*ADMIN, "-p", str(ours.port), "--max-queue", "full", "1").returncode == 0
    done = client(ours.port, "-b", "-v", "-f", "full", "1", "2", "3")
    assert (done.stdout.count(b"Task created"), done.returncode) == (1, 1)
    assert done.stderr.count(b"gearman: full: the server refused the job: ") == 2


def test_timeout_gives_the_job_up(ours: TwistdGearman) -> None:
    """With -t a job of which nothing is heard is given up, with exit status 1; 0 is for ever."""
    with worker(ours.port, "-f", "cat", "--", "cat"):
        assert client(ours.port, "-t", "0", "-f", "cat", "x").stdout == b"x"
    done = client(ours.port, "-t", "50", "-f", "nobody-does-this", "x")
    assert (done.stdout, done.returncode) == (b"", 1)
    assert b"nobody-does-this: no news of the job for 50 ms" in done.stderr


def test_progress_warnings_and_exceptions_are_shown(ours: TwistdGearman) -> None:
    """Progress goes to standard output, warnings and exceptions to standard error; 0 of 0 harms nobody."""
    command = [*GEARMAN, "-p", str(ours.port), "-P", "-f", "tells", "x"]
    with WirePeer(ours.port) as peer:
        peer.send(PacketType.CAN_DO, b"tells")
        asking = subprocess.Popen([*command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        peer.send(PacketType.PRE_SLEEP)
        assert peer.receive() == (PacketType.NOOP, [])
        assigned = peer.ask(PacketType.GRAB_JOB)
        assert assigned is not None
        handle = assigned.args[0]
        for numerator, denominator in ((b"1", b"3"), (b"0", b"0"), (b"5", b"4")):
            peer.send(PacketType.WORK_STATUS, handle, numerator, denominator)
        peer.send(PacketType.WORK_WARNING, handle, b"careful\n")
        peer.send(PacketType.WORK_DATA, handle, b"part\n")
        peer.send(PacketType.WORK_EXCEPTION, handle, b"it broke")
        printed, said = asking.communicate(timeout=PATIENCE)
    assert printed == b"tells: 33% Complete\ntells: 0% Complete\ntells: 125% Complete\ntells: part\n"
    assert said == b"tells: careful\ntells: it broke\ntells: Job failed\n"
    assert asking.returncode == 1


def test_hash_of_data_is_that_of_debians(port: int) -> None:
    """With -u '#' equal data has the same unique as with Debian's tool, so the jobs are one."""
    for data in ("", "a", "hello", "hello world!", "grün"):
        words = ["-b", "-f", "hash", "-u", "#", *([data] if data else ["-s"])]
        assert client(port, *words).returncode == 0
        assert run("gearman", "-h", "127.0.0.1", "-p", str(port), *words).returncode == 0
    uniques = run("gearadmin", "-h", "127.0.0.1", "-p", str(port), "--show-unique-jobs").stdout.split()
    wanted = {unique_of(data.encode()) for data in ("", "a", "hello", "hello world!", "grün")}
    assert sorted(unique for unique in uniques if unique in wanted) == sorted(wanted)
    assert len(wanted) == 5


def test_server_that_restarts_between_two_lines(gearmand: Gearmand) -> None:
    """A server that was restarted while input was waited for is connected to again."""
    asking = subprocess.Popen(
        gearmand_client(gearmand, "-n", "-v", "-b", "-f", "f"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    assert asking.stdin is not None
    for restarts in (True, False):
        asking.stdin.write(b"a line\n")
        assert printed_line(asking).startswith(b"Task created")
        if restarts:
            gearmand.end()
            gearmand.start()
    asking.communicate(timeout=PATIENCE)
    assert asking.returncode == 0


def test_large_jobs_with_tls(tmp_path: Path) -> None:
    """Over TLS a workload and a result of many records, and several jobs at a time, come through whole."""
    files = Certificates(tmp_path)
    words = ["--ssl", "--ssl-certificate", files["local.pem"], "--ssl-key", files["local.key"]]
    ca = {"GEARMAND_CA_CERTIFICATE": files["ca.pem"]}
    data = os.urandom(3_000_000)
    with (
        Foreground(tmp_path, *words) as server,
        worker(server.port, "-f", "a", "--", "cat", **ca),
        worker(server.port, "-f", "b", "--", "cat", **ca),
    ):
        asking = [*GEARMAN, "-p", str(server.port), "-f", "a", "-f", "b"]
        assert run(*asking, stdin=data, **ca).stdout == data * 2


def test_broken_pipe_is_silent(ours: TwistdGearman) -> None:
    """A client whose reader has gone ends as others do in a pipeline, without a traceback."""
    with worker(ours.port, "-f", "cat", "--", "cat"):
        asking = subprocess.Popen(
            [*GEARMAN, "-n", "-f", "cat", "-p", str(ours.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert asking.stdout is not None
        asking.stdout.close()
        assert asking.stdin is not None
        assert asking.stderr is not None
        asking.stdin.write(b"a\n" * 10)
        asking.stdin.close()
        assert asking.stderr.read() == b""
        asking.stderr.close()
        assert asking.wait(timeout=PATIENCE) == -signal.SIGPIPE


def test_closed_streams_are_empty(ours: TwistdGearman) -> None:
    """Standard streams that are closed are taken for empty ones, as under some supervisors."""
    words = [*GEARMAN, "-p", str(ours.port), "-f", "closed", "-b"]
    assert run("sh", "-c", f"{subprocess.list2cmdline(words)} <&- >&- 2>&-").returncode == 0


def test_daemon_goes_on_in_the_background(ours: TwistdGearman, tmp_path: Path) -> None:
    """With -d the command returns when the daemon is ready; the pid file is the daemon's, while it runs."""
    file = tmp_path / "pid"
    words = ["-d", "-i", str(file), "-w", "-f", "daemon", "-c", "1", "--", "cat"]
    assert client(ours.port, *words).returncode == 0
    daemon = os.pidfd_open(int(file.read_text()))
    try:
        assert client(ours.port, "-f", "daemon", "x").stdout == b"x"
        assert select.select([daemon], [], [], PATIENCE)[0]
    finally:
        os.close(daemon)
    assert not file.exists()


def test_daemon_that_cannot_start_says_so(tmp_path: Path) -> None:
    """With -d a pid file that cannot be written is still an error of the command."""
    done = run(*GEARMAN, "-d", "-i", str(tmp_path / "no" / "pid"), "-w", "-f", "x")
    assert (done.stdout, done.returncode) == (b"", 1)
    assert done.stderr.endswith(b"no/pid: No such file or directory\n")


def test_servers_of_the_environment(ours: TwistdGearman) -> None:
    """The first server of GEARMAN_SERVER that can be connected to is used, in place of -h and -p."""
    words = ["-b", "-v", "-f", "environment", "x"]
    servers = f"127.0.0.1:{NOBODY},127.0.0.1:{ours.port}"
    assert run(*GEARMAN, *words, GEARMAN_SERVER=servers).stdout.startswith(b"Task created")
    assert run(*GEARMAN, *words, GEARMAN_SERVERS=servers).stdout.startswith(b"Task created")


def test_first_server_is_used(ours: TwistdGearman, gearmand: Gearmand) -> None:
    """Of two servers that are there the first one gets the job."""
    servers = f"{gearmand.address},127.0.0.1:{ours.port}"
    assert run(*GEARMAN, "-b", "-f", "first", "x", GEARMAN_SERVER=servers).returncode == 0
    for port, has_it in ((gearmand.port, True), (ours.port, False)):
        assert (b"first\t" in run(*ADMIN, "-p", str(port), "--status").stdout) is has_it


def test_port_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port may be given by the name of its service, where the machine knows it."""
    monkeypatch.setattr(socket, "getservbyname", lambda name, _kind: {"jobs": 4747}[name])
    assert parse(["-f", "f", "-p", "jobs"]).port == 4747


@pytest.mark.parametrize("spelt", ["{0}", " {0}", "+{0}", "0{0}"])
def test_ports_are_spelt_as_in_debians(ours: TwistdGearman, spelt: str) -> None:
    """A number may have blanks, a plus sign and zeros before it, for Debian's commands and ours."""
    port = spelt.format(ours.port)
    for command in (["gearman"], GEARMAN):
        done = run(*command, "-h", "127.0.0.1", f"-p{port}", "-v", "-b", "-f", "spelt", "x")
        assert done.stdout.startswith(b"Task created"), done.stderr
    for command in (["gearadmin"], ADMIN):
        assert run(*command, "-h", "127.0.0.1", "-p", port, "--getpid").returncode == 0
    assert gearmand_port(port) == ours.port


@pytest.mark.parametrize("spelt", ["x", "4730x", "-1", "1_0", "65536", "0", "٣"])
def test_ports_that_make_no_sense(capsys: pytest.CaptureFixture[str], spelt: str) -> None:
    """What Debian's tool takes for another port, or for the default, is refused."""
    with pytest.raises(SystemExit):
        parse(["-f", "f", f"-p{spelt}"])
    assert "is not a port" in capsys.readouterr().err


def test_localhost_is_ipv6_too(tmp_path: Path) -> None:
    """A server that listens on ::1 only is found without -h."""
    with TwistdGearman(tmp_path, "--store=memory:", r"--listen=tcp6:0:interface=\:\:1") as server:
        port = server.banner.partition("[::1]:")[2].split()[0]
        for host in ([], ["-h", "::1"], ["-h", "localhost"]):
            done = run(*GEARMAN, *host, "-p", port, "-b", "-v", "-f", "six", "x")
            assert done.stdout.startswith(b"Task created"), done.stderr


def test_options_may_stand_anywhere() -> None:
    """As in Debian's tool, options may come behind data and be joined; behind -- nothing is an option."""
    options = parse(["-bIvf", "a", "one", "-n", "two", "-fb", "--", "-L", "--", "three"])
    assert options.functions == ["a", "b"]
    assert options.words == ["one", "two", "-L", "--", "three"]
    assert (options.background, options.verbose, options.lines, options.priority) == (
        True,
        True,
        "-n",
        "high",
    )


def test_words_may_be_any_bytes() -> None:
    """Data on the command line is passed on as the bytes that the shell gave."""
    options = parse(["-f", "f", os.fsdecode(b"\xff\xfe")])
    assert list(workloads(options, io.BytesIO(b"unread"))) == [b"\xff\xfe"]


@pytest.mark.parametrize(
    ("host", "port", "environment", "addresses"),
    [
        (None, None, {}, ["localhost:4730"]),
        (None, 1, {}, ["localhost:1"]),
        ("::1", 1, {}, ["[::1]:1"]),
        ("a", None, {"GEARMAN_SERVER": "b:2, c"}, ["b:2", "c"]),
        ("a", None, {"GEARMAN_SERVERS": "b:2,:3"}, ["a:4730", "b:2", "localhost:3"]),
        (None, None, {"GEARMAN_SERVERS": "b:2,"}, ["b:2"]),
        ("unix:/run/gearmand", None, {}, ["unix:/run/gearmand"]),
    ],
)
def test_choice_of_servers(
    host: str | None, port: int | None, environment: dict[str, str], addresses: list[str]
) -> None:
    """GEARMAN_SERVER takes the place of options, GEARMAN_SERVERS comes after them or replaces the default."""
    assert server_addresses(host, port, environment) == addresses


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_lines_do_not_depend_on_reads(size: int) -> None:
    """Output is cut into the same lines however the reads fall."""
    output = b"one\n\ntwo\r\nlong " + b"x" * 50 + b"\nlast"
    sent: list[bytes] = []
    lines = Lines(sent.append, keeps_ends=True)
    for start in range(0, len(output), size):
        lines.feed(output[start : start + size])
    lines.close()
    assert sent == output.splitlines(keepends=True)
