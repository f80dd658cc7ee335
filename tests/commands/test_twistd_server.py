"""``twistd gearman`` as an operator runs it, with the tools of Debian's gearman-tools."""

from __future__ import annotations

import os
import select
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from gearman_twisted import __version__
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.servers import BIN, PATIENCE, ServerProcess, TwistdGearman, WirePeer, run, wait_until

DEBIAN_GEARMAN = "/usr/bin/gearman"
DEBIAN_GEARADMIN = "/usr/bin/gearadmin"


def twistd(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "twistd", *words], cwd=cwd, capture_output=True, text=True, timeout=PATIENCE)


def test_debian_client_and_worker_meet(tmp_path: Path) -> None:
    """Debian's gearman as client gets its answer from Debian's gearman as worker."""
    with TwistdGearman(tmp_path, "--store=memory:") as server:
        port = str(server.port)
        with subprocess.Popen([DEBIAN_GEARMAN, "-w", "-p", port, "-f", "count", "--", "wc", "-c"]) as worker:
            try:
                done = run(DEBIAN_GEARMAN, "-p", port, "-f", "count", stdin=b"12345")
            finally:
                worker.terminate()
        assert (done.stdout.strip(), done.returncode) == (b"5", 0)


def test_debian_background_job_is_counted(tmp_path: Path) -> None:
    """gearadmin --status shows a background job, --show-jobs its handle, and --cancel-job ends it."""
    with TwistdGearman(tmp_path) as server:
        port = str(server.port)
        created = run(DEBIAN_GEARMAN, "-p", port, "-v", "-b", "-f", "later", "work").stdout
        handle = created.rpartition(b": ")[2].strip().decode()
        assert run(DEBIAN_GEARADMIN, "-p", port, "--status").stdout == b"later\t1\t0\t0\n.\n"
        assert handle.encode() in run(DEBIAN_GEARADMIN, "-p", port, "--show-jobs").stdout
        assert run(DEBIAN_GEARADMIN, "-p", port, "--cancel-job", handle).stdout == b"OK\n"
        assert run(DEBIAN_GEARADMIN, "-p", port, "--status").stdout == b"later\t0\t0\t0\n.\n"


def test_pipelined_text_is_answered_in_one_piece(tmp_path: Path) -> None:
    """Two commands in one write come back in one write, as gearman_top needs it."""
    with TwistdGearman(tmp_path, "--store=memory:") as server, WirePeer(server.port) as peer:
        peer.socket.sendall(b"status\nversion\n")
        assert peer.socket.recv(65536) == f".\nOK {__version__}\n".encode()


def test_queue_beyond_its_memory_survives_and_runs(tmp_path: Path) -> None:
    """With --memory jobs wait in the store alone, are counted, and run in order, also after a restart."""
    words = ("--memory", "10K")
    with TwistdGearman(tmp_path, *words) as server, WirePeer(server.port) as peer:
        for number in range(2_000):
            peer.send(PacketType.SUBMIT_JOB_BG, b"f", b"u%d" % number, b"%d " % number + b"." * 100)
        for _ in range(2_000):
            created = peer.receive()
            assert created is not None
            assert created.type == PacketType.JOB_CREATED
        assert server.end(signal.SIGTERM) == 0
    with TwistdGearman(tmp_path, *words) as server, WirePeer(server.port) as peer:
        assert run(DEBIAN_GEARADMIN, "-p", str(server.port), "--status").stdout == b"f\t2000\t0\t0\n.\n"
        peer.send(PacketType.CAN_DO, b"f")
        ran: list[int] = []
        while len(ran) < 2_000:
            answer = peer.ask(PacketType.GRAB_JOB)
            assert answer is not None
            if answer.type == PacketType.JOB_ASSIGN:
                ran.append(int(answer.args[2].split()[0]))
                peer.send(PacketType.WORK_COMPLETE, answer.args[0], b"")
            else:
                assert peer.ask(PacketType.PRE_SLEEP) == Packet(PacketType.NOOP, [])
        assert ran == list(range(2_000))
        assert run(DEBIAN_GEARADMIN, "-p", str(server.port), "--status").stdout == b"f\t0\t0\t1\n.\n"


def test_it_says_where_it_is(tmp_path: Path) -> None:
    """The banner names the address, the store's file, and a command to try."""
    with TwistdGearman(tmp_path) as server:
        assert f"127.0.0.1:{server.port}" in server.banner
        assert str(tmp_path / "gearman.db") in server.banner
        assert f"gearman -h 127.0.0.1 -p {server.port} -f wc" in server.banner


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_status_0(tmp_path: Path, number: int) -> None:
    """SIGTERM and SIGINT end it in order, with peers connected, and with exit status 0."""
    with TwistdGearman(tmp_path) as server, WirePeer(server.port) as peer:
        peer.ask(PacketType.ECHO_REQ, b"")
        assert server.end(number) == 0


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    """A port that is taken ends the process with a line that names it, and status 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for nodaemon in (["-n"], []):
            ended = twistd(*nodaemon, "gearman", "--listen", f"127.0.0.1:{port}", cwd=tmp_path)
            assert ended.returncode == 1
            assert ended.stderr == (
                f"twistd gearman: cannot listen on 127.0.0.1:{port}: Address already in use; "
                "choose another place with --listen\n"
            )
        assert list(tmp_path.glob("*.pid")) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--listen", "nonsense"], "nonsense"),
        (["--listen", "127.0.0.1:99999"], "99999"),
        (["--listen", "tcp:x"], "tcp:x"),
        (["--store", "paper:x"], "paper"),
        (["--store", "sqlite:"], "sqlite:"),
        (["--store", "sqlite:/no/such/place/x.db"], "/no/such/place"),
        (["--job-retries", "many"], "many"),
        (["--job-retries", "256"], "256"),
        (["--memory", "much"], "--memory takes a size such as 268435456, 256M or 2G, not 'much'"),
        (["--save-timeout", "soon"], "--save-timeout takes seconds, not 'soon'"),
        (["--save-timeout", "-1"], "--save-timeout takes a number from 0"),
        (["--handle-prefix", "a b"], "--handle-prefix takes 1 to 45"),
        (["--frobnicate"], "frobnicate"),
        (["surplus"], "surplus"),
    ],
)
def test_nonsense_is_one_clear_line(tmp_path: Path, words: list[str], says: str) -> None:
    """An option that makes no sense ends the process with one line that quotes it, and status 1."""
    ended = twistd("-n", "--pidfile=", "gearman", *words, cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("twistd gearman: ")
    assert ended.stderr.count("\n") == 1
    assert says in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_database_is_left_alone(tmp_path: Path) -> None:
    """A database of something else is refused by name, and not a byte of it is changed."""
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE books (title TEXT)")
    other.close()
    before = path.read_bytes()
    ended = twistd("-n", "gearman", "--listen", "tcp:0", "--store", f"sqlite:{path}", cwd=tmp_path)
    assert ended.returncode == 1
    assert str(path) in ended.stderr
    assert path.read_bytes() == before


# Root may write everywhere, unless it gives that up.
AS_ANYONE = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


@pytest.mark.parametrize(
    ("what", "mode", "says"),
    [("gearman.db", 0o444, "not readable and writable"), (".", 0o555, "not writable")],
)
def test_a_read_only_store_is_refused(tmp_path: Path, what: str, mode: int, says: str) -> None:
    """A file, or a directory, that may not be written is named, with status 1, and left as it is."""
    with TwistdGearman(tmp_path) as server:
        server.end()
    before = (tmp_path / "gearman.db").read_bytes()
    (tmp_path / what).chmod(mode)
    try:
        words = ["-n", "--pidfile=", "gearman", "--listen", "tcp:0"]
        ended = subprocess.run(
            [*AS_ANYONE, BIN / "twistd", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    finally:
        (tmp_path / what).chmod(0o755)
    assert ended.returncode == 1
    assert ended.stderr.startswith("twistd gearman: ")
    assert says in ended.stderr
    assert str(tmp_path) in ended.stderr
    assert (tmp_path / "gearman.db").read_bytes() == before


def test_a_second_server_on_one_store_is_refused(tmp_path: Path) -> None:
    """Two servers on one file would run every job twice: the second one says who has it."""
    with TwistdGearman(tmp_path) as server, WirePeer(server.port) as peer:
        peer.ask(PacketType.ECHO_REQ, b"")  # it has opened its store when it answers
        ended = twistd("-n", "--pidfile=", "gearman", "--listen", "tcp:0", cwd=tmp_path)
        assert ended.returncode == 1
        assert str(server.process.pid) in ended.stderr


def test_help_shows_options_and_stores(tmp_path: Path) -> None:
    """--help, --help-store and --version answer and exit with status 0."""
    shown = twistd("gearman", "--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert "--listen" in shown.stdout
    stores = twistd("gearman", "--help-store", cwd=tmp_path)
    assert stores.returncode == 0
    assert "sqlite:" in stores.stdout
    assert "memory:" in stores.stdout
    assert twistd("gearman", "--version", cwd=tmp_path).stdout == f"gearman_twisted {__version__}\n"


def test_twistd_lists_both_plugins(tmp_path: Path) -> None:
    """twistd --help names the server and the worker."""
    shown = twistd("--help", cwd=tmp_path).stdout
    assert "gearman " in shown
    assert "gearman-worker" in shown


def test_it_daemonizes(tmp_path: Path) -> None:
    """In the background it keeps its port, its store and its pid file, and gives them back at the end."""
    # The port has to be known to find the daemon again; nothing else on loopback uses it meanwhile.
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = twistd("gearman", "--listen", str(port), cwd=tmp_path)
    assert started.returncode == 0, started.stderr
    pid = int((tmp_path / "twistd.pid").read_text())
    daemon = os.pidfd_open(pid)
    try:
        with WirePeer(port) as peer:
            assert peer.ask(PacketType.SUBMIT_JOB_BG, b"f", b"", b"w") is not None
            assert peer.text(b"getpid", b"\n") == b"OK %d\n" % pid
            os.kill(pid, signal.SIGTERM)
            assert peer.receive() is None
        select.select([daemon], [], [], PATIENCE)  # readable once it has ended
    finally:
        os.close(daemon)
    assert not (tmp_path / "twistd.pid").exists()
    assert (tmp_path / "gearman.db").exists()


# Starts twistd as process 1 of a process namespace, as in a container.
AS_PROCESS_1 = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def is_closed(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


class Foreground(ServerProcess):
    """A ``twistd -n gearman`` whose options for twistd itself are given."""

    def __init__(
        self, directory: Path, *words: str, store: str = "gearman.db", prefix: Sequence[str] = ()
    ) -> None:
        command: list[str | Path] = [
            BIN / "twistd",
            *words,
            "-n",
            "gearman",
            "--listen=tcp:0:interface=127.0.0.1",
        ]
        super().__init__(directory, *prefix, *command, f"--store=sqlite:{store}")
        with WirePeer(self.port) as peer:
            peer.text(b"version", b"\n")  # it runs, and no longer only listens


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes process namespaces")
def test_process_1_starts_again_after_a_kill(tmp_path: Path) -> None:
    """In a container a server that was killed starts again: no pid file names process 1, as it is itself."""
    for _ in range(2):
        with Foreground(tmp_path, prefix=AS_PROCESS_1) as server, WirePeer(server.port) as peer:
            assert peer.text(b"getpid", b"\n") == b"OK 1\n"
            server.process.kill()
            assert peer.receive() is None
    assert list(tmp_path.glob("*.pid")) == []


def test_foreground_has_a_pid_file_only_if_asked_for(tmp_path: Path) -> None:
    """Two servers run in one directory; a pid file that was asked for is there, and guards as ever."""
    with Foreground(tmp_path) as first, Foreground(tmp_path, "--pidfile=mine.pid", store="b.db") as second:
        assert (tmp_path / "mine.pid").read_text() == str(second.process.pid)
        ended = twistd("-n", "--pidfile=mine.pid", "gearman", "--store=memory:", cwd=tmp_path)
        assert "Another twistd server is running" in ended.stderr
        assert first.end() == second.end() == 0
    assert list(tmp_path.glob("*.pid")) == []


def test_hangup_reopens_the_log(tmp_path: Path) -> None:
    """After SIGHUP the log goes to a new file of its name; on standard output the signal changes nothing."""
    log = tmp_path / "server.log"
    with TwistdGearman(tmp_path) as server:
        log.rename(tmp_path / "old.log")
        server.process.send_signal(signal.SIGHUP)
        wait_until(log.exists)
        assert server.end() == 0
    assert "Main loop terminated" in log.read_text()
    with Foreground(tmp_path) as foreground, WirePeer(foreground.port) as peer:
        foreground.process.send_signal(signal.SIGHUP)
        assert peer.text(b"version", b"\n").startswith(b"OK ")
        assert foreground.end() == 0


def test_a_log_that_cannot_be_reopened_is_kept(tmp_path: Path) -> None:
    """If the file cannot be opened the server says so in the old one, and runs on."""
    directory = tmp_path / "logs"
    directory.mkdir()
    with Foreground(tmp_path, f"--logfile={directory / 'a.log'}") as server, WirePeer(server.port) as peer:
        directory.rename(tmp_path / "moved")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "cannot reopen log file" in (tmp_path / "moved" / "a.log").read_text())
        assert peer.text(b"version", b"\n").startswith(b"OK ")
        assert server.end() == 0


def test_usr1_ends_with_the_last_job(tmp_path: Path) -> None:
    """SIGUSR1 closes the port, serves who is connected, and ends the server when no job is left."""
    with TwistdGearman(tmp_path) as server, WirePeer(server.port) as peer:
        assert peer.ask(PacketType.SUBMIT_JOB_BG, b"f", b"", b"w") is not None
        server.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: is_closed(server.port))
        assert list(peer.drain(b"f")) == [b"w"]
        assert server.process.wait(PATIENCE) == 0


def test_zero_retries_are_told_aloud(tmp_path: Path) -> None:
    """``--job-retries=0``, which once meant no limit, is explained on standard error at the start."""
    with TwistdGearman(tmp_path, "--job-retries=0") as server:
        assert server.end() == 0
    assert "twistd gearman: --job-retries 0 gives up a job" in server.printed


def test_ipv6_and_unix_sockets(tmp_path: Path) -> None:
    """It listens on several places at once, of any kind."""
    path = tmp_path / "socket"
    with TwistdGearman(
        tmp_path, "--store=memory:", "--listen", "[::1]:0", "--listen", f"unix:{path}"
    ) as server:
        assert "[::1]:" in server.banner
        with socket.socket(socket.AF_UNIX) as local:
            local.connect(str(path))
            local.sendall(b"version\n")
            assert local.recv(100) == f"OK {__version__}\n".encode()


def test_shutdown_by_text(tmp_path: Path) -> None:
    """With --allow-shutdown the text command ends the server with status 0, after it has answered."""
    with (
        TwistdGearman(tmp_path, "--store=memory:", "--allow-shutdown") as server,
        WirePeer(server.port) as peer,
    ):
        assert peer.text(b"shutdown", b"\n") == b"OK\r\n"
        assert peer.receive() is None
        assert server.process.wait(PATIENCE) == 0


def test_graceful_shutdown_by_text(tmp_path: Path) -> None:
    """Shutdown graceful refuses new connections, serves those that are there, and ends with the last job."""
    with TwistdGearman(tmp_path, "--allow-shutdown") as server, WirePeer(server.port) as peer:
        assert peer.ask(PacketType.SUBMIT_JOB_BG, b"f", b"", b"w") is not None
        assert peer.text(b"shutdown graceful", b"\n") == b"OK\r\n"
        peer.send(PacketType.CAN_DO, b"f")
        assigned = peer.ask(PacketType.GRAB_JOB)
        assert assigned is not None
        with pytest.raises(ConnectionRefusedError):
            WirePeer(server.port)
        peer.send(PacketType.WORK_COMPLETE, assigned.args[0], b"")
        assert peer.receive() is None
        assert server.process.wait(PATIENCE) == 0


def test_recurring_job_survives_a_restart(tmp_path: Path) -> None:
    """A recurring job is listed by the server that takes over the store, with its handle."""
    with TwistdGearman(tmp_path) as server, WirePeer(server.port) as peer:
        fields = (b"0", b"12", b"*", b"*", b"*")
        created = peer.ask(PacketType.SUBMIT_JOB_SCHED, b"f", b"noon", *fields, b"w")
        assert created is not None
        assert created.type == PacketType.JOB_CREATED
        before = peer.text(b"show scheduled", b".\n")
        server.end(signal.SIGKILL)
    with TwistdGearman(tmp_path) as server, WirePeer(server.port) as peer:
        assert peer.text(b"show scheduled", b".\n") == before
        assert before.startswith(created.args[0] + b"\tf\tnoon\t")
