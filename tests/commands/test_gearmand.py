"""The command ``gearmand`` as the scripts of an operator run it."""

from __future__ import annotations

import http.client
import os
import re
import select
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gearman_twisted import __version__
from gearman_twisted.commands.gearmand.privileges import find_user
from gearman_twisted.errors import ConfigError
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.gearmand import Gearmand
from tests.kit.servers import PATIENCE, ServerProcess, WirePeer, run

GEARMAND = [sys.executable, "-m", "gearman_twisted.commands.gearmand", "--config-file="]
LOOPBACK = ["-L", "127.0.0.1"]
DEBIAN_GEARMAN = "/usr/bin/gearman"


class Foreground(ServerProcess):
    """A gearmand of ours in the foreground, on a free port of loopback, which logs to standard error."""

    def __init__(self, directory: Path, *args: str, **environment: str) -> None:
        words = [*GEARMAND, *LOOPBACK, "-p", "0", "-l", "stderr", *args]
        super().__init__(directory, *words, **environment)


class Daemon:
    """A gearmand of ours in the background, with its log in ``log`` and its process id in ``pid``."""

    def __init__(self, directory: Path, *args: str) -> None:
        self.pid_file = directory / "pid"
        self.log = directory / "log"
        # Relative names: the directory must not change.
        words = [*LOOPBACK, "-p", "0", "-d", "-P", "pid", "-l", "log", "--verbose", "INFO"]
        self.started = subprocess.run(
            [*GEARMAND, *words, *args], cwd=directory, capture_output=True, text=True, timeout=PATIENCE
        )
        assert self.started.returncode == 0, self.started.stderr
        self.pid = int(self.pid_file.read_text())
        self._process = os.pidfd_open(self.pid)
        found = re.search(r"Serving on 127\.0\.0\.1:(\d+);", self.log.read_text())
        assert found is not None
        self.port = int(found[1])

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.has_ended(patience=0):
            signal.pidfd_send_signal(self._process, signal.SIGKILL)
        os.close(self._process)

    def has_ended(self, patience: float = PATIENCE) -> bool:
        """Whether it has ended, or does within so many seconds."""
        return bool(select.select([self._process], [], [], patience)[0])


def gearmand(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs it to its end; the port is any free one unless the words say otherwise."""
    return subprocess.run(
        [*GEARMAND, *LOOPBACK, "-p", "0", "-l", "stderr", *words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_debians_client_and_worker_meet(tmp_path: Path) -> None:
    """Debian's gearman as client gets its answer from Debian's gearman as worker."""
    with Foreground(tmp_path) as server:
        port = str(server.port)
        with subprocess.Popen([DEBIAN_GEARMAN, "-w", "-p", port, "-f", "count", "--", "wc", "-c"]) as worker:
            try:
                done = run(DEBIAN_GEARMAN, "-p", port, "-f", "count", stdin=b"12345")
            finally:
                worker.terminate()
        assert (done.stdout.strip(), done.returncode) == (b"5", 0)
    assert list(tmp_path.iterdir()) == []  # neither a store nor a pid file that nobody asked for


def test_settings_reach_the_engine(tmp_path: Path) -> None:
    """Log level, handle prefix and the leave to be shut down are what the options say."""
    with (
        Foreground(tmp_path, "--verbose=INFO", "--job-handle-prefix=J", "--allow-shutdown") as server,
        WirePeer(server.port) as peer,
    ):
        assert peer.text(b"verbose", b"\n") == b"OK INFO\n"
        created = peer.ask(PacketType.SUBMIT_JOB_BG, b"f", b"", b"w")
        assert created is not None
        assert created.args[0].startswith(b"J:")
        peer.text(b"shutdown", b"\n")
        assert server.process.wait(PATIENCE) == 0


def test_attempts_and_exceptions_are_as_the_options_say(tmp_path: Path) -> None:
    """With -j 1 a job whose worker is lost has failed, and with --exceptions nobody has to ask for them."""
    with Foreground(tmp_path, "-j", "1", "--exceptions") as server, WirePeer(server.port) as client:
        handles: list[bytes] = []
        with WirePeer(server.port) as worker:
            worker.send(PacketType.CAN_DO, b"f")
            for _ in range(2):
                created = client.ask(PacketType.SUBMIT_JOB, b"f", b"", b"")
                assert created is not None
                handles += created.args
                assigned = worker.ask(PacketType.GRAB_JOB)
                assert assigned == Packet(PacketType.JOB_ASSIGN, [handles[-1], b"f", b""])
            worker.send(PacketType.WORK_EXCEPTION, handles[0], b"why")
            assert client.receive() == Packet(PacketType.WORK_EXCEPTION, [handles[0], b"why"])
        assert client.receive() == Packet(PacketType.WORK_FAIL, [handles[1]])


def test_it_daemonizes(tmp_path: Path) -> None:
    """The first process ends with 0 when the server serves; pid file, log and directory are as asked for."""
    with Daemon(tmp_path) as daemon:
        assert (daemon.started.stdout, daemon.started.stderr) == ("", "")
        assert daemon.pid_file.read_bytes() == b"%d\n" % daemon.pid
        assert os.getsid(daemon.pid) == daemon.pid
        process = Path(f"/proc/{daemon.pid}")
        assert (process / "cwd").resolve() == tmp_path
        assert {str((process / "fd" / str(number)).readlink()) for number in range(3)} == {"/dev/null"}
        with WirePeer(daemon.port) as peer:
            assert peer.text(b"getpid", b"\n") == b"OK %d\n" % daemon.pid
            os.kill(daemon.pid, signal.SIGTERM)
            assert daemon.has_ended()
        assert not daemon.pid_file.exists()


def test_old_pid_file_is_replaced(tmp_path: Path) -> None:
    """A pid file that is there is a new one after the start, which all may read and nobody may run."""
    (tmp_path / "pid").write_text("1\n")
    (tmp_path / "pid").chmod(0o600)
    umask = os.umask(0o022)
    try:
        with Foreground(tmp_path, "-P", "pid") as server:
            assert (tmp_path / "pid").read_text() == f"{server.process.pid}\n"
            assert stat.S_IMODE((tmp_path / "pid").stat().st_mode) == 0o644
    finally:
        os.umask(umask)


def test_pid_file_of_a_successor_is_left(tmp_path: Path) -> None:
    """A server that ends after another has taken its pid file over does not remove it."""
    with Daemon(tmp_path) as daemon:
        daemon.pid_file.write_text("1\n")
        os.kill(daemon.pid, signal.SIGTERM)
        assert daemon.has_ended()
        assert daemon.pid_file.read_text() == "1\n"


@pytest.mark.parametrize("how", [[], ["-d"]])
def test_what_keeps_it_from_starting_is_one_line(tmp_path: Path, how: list[str]) -> None:
    """A taken port, a store or a pid file that cannot be ends also the first process with 1 and one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for words, says in (
            (["-p", port], f"cannot listen on 127.0.0.1:{port}: Address already in use"),
            (["-L", "no.such.host.invalid"], "'no.such.host.invalid'"),
            (["--store", "sqlite:/no/such/place/x.db"], "/no/such/place"),
            (["--store", "paper:x"], "paper"),
            (["-P", "/no/such/place/pid"], "/no/such/place/pid: No such file or directory"),
            (["-u", "no-such-user"], "no-such-user"),
            (["-f", "1073741824"], "-f 1073741824"),
        ):
            ended = gearmand(*how, "-P", "pid", *words, cwd=tmp_path)
            assert ended.returncode == 1, words
            assert ended.stderr.startswith("gearmand: "), words
            assert ended.stderr.count("\n") == 1, ended.stderr
            assert says in ended.stderr
            assert ended.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [[], ["-d"]])
def test_jobs_that_cannot_be_brought_back_keep_it_from_starting(tmp_path: Path, how: list[str]) -> None:
    """A store that is damaged inside ends also the first process with 1 and one line, once it is read."""
    path = tmp_path / "jobs.db"
    with Foreground(tmp_path, "--store", f"sqlite:{path}") as server, WirePeer(server.port) as peer:
        for _ in range(200):
            peer.send(PacketType.SUBMIT_JOB_BG, b"f", b"", bytes(1000))
        for _ in range(200):
            assert peer.receive() is not None
        assert server.end() == 0
    content = bytearray(path.read_bytes())
    for start in range(20 * 4096, len(content), 4096):
        content[start : start + 200] = b"\xff" * 200
    path.write_bytes(content)
    ended = gearmand(*how, "--store", f"sqlite:{path}", cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert re.fullmatch(r"gearmand: .*jobs\.db: .*malformed.*\n", ended.stderr)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_status_0(tmp_path: Path, number: int) -> None:
    """SIGTERM and SIGINT end it in order, with peers connected, and with exit status 0."""
    with Foreground(tmp_path, "-P", "pid") as server, WirePeer(server.port) as peer:
        peer.ask(PacketType.ECHO_REQ, b"")
        assert (tmp_path / "pid").read_text() == f"{server.process.pid}\n"
        assert server.end(number) == 0
        assert server.printed == ""
    assert not (tmp_path / "pid").exists()


def test_jobs_survive_with_libsqlite3(tmp_path: Path) -> None:
    """With -q libsqlite3 an acknowledged background job is there again after a restart."""
    words = ("-q", "libsqlite3", "--libsqlite3-db", str(tmp_path / "jobs.db"))
    with Foreground(tmp_path, *words) as server, WirePeer(server.port) as peer:
        assert peer.ask(PacketType.SUBMIT_JOB_BG, b"f", b"", b"kept") is not None
        server.end()
    with Foreground(tmp_path, *words) as server, WirePeer(server.port) as peer:
        assert list(peer.drain(b"f")) == [b"kept"]


def test_queue_of_gearmand_is_left_alone(tmp_path: Path) -> None:
    """The SQLite file of the original is refused with what to do, and not a byte of it is changed."""
    path = tmp_path / "queue.db"
    original = Gearmand(tmp_path, "-q", "libsqlite3", "--libsqlite3-db", str(path), "-P", str(tmp_path / "p"))
    try:
        original.run_client("-b", "-f", "f", "work")
        original.end()
    finally:
        original.close()
    before = path.read_bytes()
    ended = gearmand("-q", "libsqlite3", "--libsqlite3-db", str(path), cwd=tmp_path)
    assert ended.returncode == 1
    assert f"{path} is the queue of the original gearmand" in ended.stderr
    assert "--libsqlite3-db a new file" in ended.stderr
    assert path.read_bytes() == before


def test_other_databases_are_refused_as_such(tmp_path: Path) -> None:
    """A database that is not gearmand's either is not taken for its queue."""
    path = tmp_path / "books.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE books (title TEXT)")
    other.close()
    ended = gearmand("-q", "libsqlite3", "--libsqlite3-db", str(path), cwd=tmp_path)
    assert ended.returncode == 1
    assert "something else" in ended.stderr


def test_sigusr1_ends_it_when_no_job_is_left(tmp_path: Path) -> None:
    """SIGUSR1 closes the port, serves who is connected, and ends with 0 after the last job."""
    with Foreground(tmp_path) as server, WirePeer(server.port) as peer:
        peer.ask(PacketType.SUBMIT_JOB_BG, b"f", b"", b"one")
        server.process.send_signal(signal.SIGUSR1)
        while _is_open(server.port):
            peer.text(b"version", b"\n")
        peer.ask(PacketType.SUBMIT_JOB_BG, b"f", b"", b"two")
        peer.send(PacketType.CAN_DO, b"f")
        for workload in (b"one", b"two"):
            assigned = peer.ask(PacketType.GRAB_JOB)
            assert assigned is not None
            assert assigned.args[2] == workload
            peer.send(PacketType.WORK_COMPLETE, assigned.args[0], b"")
        assert peer.receive() is None
        assert server.process.wait(PATIENCE) == 0


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_sigusr1_ends_it_at_once_without_jobs(tmp_path: Path) -> None:
    """With nothing to wait for, SIGUSR1 ends it at once."""
    with Foreground(tmp_path) as server:
        assert server.end(signal.SIGUSR1) == 0


def test_sighup_opens_the_log_anew(tmp_path: Path) -> None:
    """After logrotate has moved the log away, SIGHUP makes it go on in a new file."""
    with Daemon(tmp_path) as daemon, WirePeer(daemon.port) as peer:
        daemon.log.rename(tmp_path / "log.1")
        before = (tmp_path / "log.1").read_bytes()
        os.kill(daemon.pid, signal.SIGHUP)
        while not daemon.log.exists():
            peer.text(b"version", b"\n")
        os.kill(daemon.pid, signal.SIGTERM)
        assert daemon.has_ended()
        assert "has ended" in daemon.log.read_text()
        assert (tmp_path / "log.1").read_bytes() == before


@pytest.mark.parametrize("place", ["stderr", "none"])
def test_sighup_makes_no_file_without_a_log_file(tmp_path: Path, place: str) -> None:
    """With -l stderr or none, SIGHUP neither ends it nor makes a file of that name."""
    with Foreground(tmp_path, "-l", place) as server, WirePeer(server.port) as peer:
        server.process.send_signal(signal.SIGHUP)
        peer.text(b"version", b"\n")
        assert server.end() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_log_file_that_cannot_be_opened(tmp_path: Path) -> None:
    """It is named, and the log goes to standard error."""
    with Foreground(tmp_path, "-l", "/no/such/place/log", "--verbose=INFO") as server:
        server.end()
        assert "gearmand: cannot open the log file /no/such/place/log" in server.printed
        assert " [  main ] Serving on " in server.printed


@pytest.mark.parametrize(
    "number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE]
)
def test_it_dies_of_what_kills(tmp_path: Path, number: signal.Signals) -> None:
    """Supervisors see by which signal it died."""
    with Foreground(tmp_path) as server:
        assert server.end(number) == -number


def test_sigpipe_does_it_no_harm(tmp_path: Path) -> None:
    """Neither the signal nor a peer that is gone when it is answered ends the server."""
    with Foreground(tmp_path) as server, WirePeer(server.port) as peer:
        server.process.send_signal(signal.SIGPIPE)
        with WirePeer(server.port) as other:
            for _ in range(100):
                other.send(PacketType.ECHO_REQ, bytes(10_000))
        assert peer.ask(PacketType.ECHO_REQ, b"x") == Packet(PacketType.ECHO_RES, [b"x"])
        assert server.end() == 0


def test_only_jobs_that_are_given_up_are_logged_at_their_end(tmp_path: Path) -> None:
    """A job that has used up its attempts is an error in the log; one that is done has no line."""
    with Foreground(tmp_path, "--verbose=NOTICE", "-j", "1") as server, WirePeer(server.port) as client:
        for _ in range(2):
            client.ask(PacketType.SUBMIT_JOB, b"f", b"", b"")
        with WirePeer(server.port) as worker:
            worker.send(PacketType.CAN_DO, b"f")
            done = worker.ask(PacketType.GRAB_JOB)
            assert done is not None
            worker.send(PacketType.WORK_COMPLETE, done.args[0], b"")
            assert worker.ask(PacketType.GRAB_JOB) is not None
        endings = [client.receive(), client.receive()]
        assert [ending and ending.type for ending in endings] == [
            PacketType.WORK_COMPLETE,
            PacketType.WORK_FAIL,
        ]
        server.end()
        [line] = [line for line in server.printed.splitlines() if "accepted,f,,0" not in line]
        assert line.startswith("  ERROR ")
        assert " of 'f', unique '': taken from its worker too often: 1" in line


def test_it_can_start_again_at_once(tmp_path: Path) -> None:
    """Connections of its predecessor that linger in the kernel do not keep it from its port."""
    port = free_port()
    for _ in range(2):
        with Foreground(tmp_path, "-p", str(port)) as server, WirePeer(port) as peer:
            peer.ask(PacketType.ECHO_REQ, b"")
            assert server.end() == 0  # it closes first, so what lingers is on its side


def test_more_peers_than_open_files(tmp_path: Path) -> None:
    """Who comes when no more files may be open is closed; the others are served, and later ones again."""
    with Foreground(tmp_path, "-f", "40") as server, WirePeer(server.port) as first:
        crowd = [WirePeer(server.port) for _ in range(60)]
        try:
            assert crowd[-1].receive() is None
            assert first.ask(PacketType.ECHO_REQ, b"x") == Packet(PacketType.ECHO_RES, [b"x"])
        finally:
            for peer in crowd:
                peer.socket.close()
        while first.text(b"workers", b"\n.\n").count(b"\n") > 2:
            pass
        with WirePeer(server.port) as late:
            assert late.ask(PacketType.ECHO_REQ, b"y") == Packet(PacketType.ECHO_RES, [b"y"])


def test_options_without_effect_are_told(tmp_path: Path) -> None:
    """--threads is answered on standard error and in the log, --keepalive in the log alone."""
    with Foreground(tmp_path, "-t", "4", "--keepalive", "--verbose=NOTICE") as server:
        server.end()
        lines = server.printed.splitlines()
    assert lines[0].startswith("gearmand: --threads has no effect: ")
    assert [re.sub(r" \d.*\]", "", line).partition(" has")[0] for line in lines[1:]] == [
        " NOTICE --threads",
        " NOTICE --keepalive",
    ]


def test_port_from_the_environment(tmp_path: Path) -> None:
    """GEARMAND_PORT is where it listens."""
    port = free_port()
    with Foreground(tmp_path, "-p", "4730", GEARMAND_PORT=str(port)) as server:
        assert server.port == port


def test_config_file(tmp_path: Path) -> None:
    """--config-file is read, below the command line."""
    (tmp_path / "gearmand.conf").write_text("--verbose=DEBUG --job-handle-prefix=C\n")
    words = ["--config-file", "gearmand.conf", "--verbose=FATAL"]
    with Foreground(tmp_path, *words) as server, WirePeer(server.port) as peer:
        assert peer.text(b"verbose", b"\n") == b"OK FATAL\n"
        created = peer.ask(PacketType.SUBMIT_JOB_BG, b"f", b"", b"w")
        assert created is not None
        assert created.args[0].startswith(b"C:")


def test_keepalive_is_set_on_connections(tmp_path: Path) -> None:
    """A connection's first probe comes after --keepalive-idle seconds; the system's default is two hours."""
    with Foreground(tmp_path, "--keepalive-idle", "1000") as server, WirePeer(server.port) as peer:
        peer.ask(PacketType.ECHO_REQ, b"")
        here = f"0100007F:{server.port:04X} 0100007F:{peer.socket.getsockname()[1]:04X} "
        (line,) = (line for line in Path("/proc/net/tcp").read_text().splitlines() if here in line)
        timer, _, ticks = line.split()[5].partition(":")
        assert timer == "02"  # keepalive
        assert 900 < int(ticks, 16) / 100 <= 1000


def test_file_descriptors(tmp_path: Path) -> None:
    """-f is the process's limit of open files."""
    with Foreground(tmp_path, "-f", "777") as server:
        limits = Path(f"/proc/{server.process.pid}/limits").read_text()
    found = re.search(r"Max open files +(\d+) ", limits)
    assert found is not None
    assert found[1] == "777"


def test_http(tmp_path: Path) -> None:
    """With -r http a job can be submitted over HTTP at --http-port."""
    with Foreground(tmp_path, "-r", "http", "--http-port", "0") as server:
        place = re.search(r"HTTP on +(\S+):(\d+)", server.banner)
        assert place is not None
        client = http.client.HTTPConnection(place[1], int(place[2]), timeout=PATIENCE)
        client.request("POST", "/f", b"work", {"X-Gearman-Background": "true"})
        assert client.getresponse().getheader("X-Gearman-Command") == "JOB_CREATED"
        client.close()
        with WirePeer(server.port) as peer:
            assert list(peer.drain(b"f")) == [b"work"]
    with Foreground(tmp_path, "--http-port", "0") as server:
        assert "HTTP" not in server.banner


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory that every user can reach, and nobody owns."""
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, 65534, 65534)
        Path(name).chmod(0o755)
        yield Path(name)


def test_it_becomes_another_user(public_directory: Path) -> None:
    """With -u it runs as that user, in no other group, and all its files are that user's."""
    assert os.geteuid() == 0, "run the tests as root, as CI does"
    with Daemon(public_directory, "-u", "nobody", "--store", "sqlite:jobs.db") as daemon:
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        assert re.search(r"^Uid:\t65534\t65534\t65534\t65534$", status, re.MULTILINE)
        assert re.search(r"^Groups:\s*$", status, re.MULTILINE)
        owners = {path.name: path.stat().st_uid for path in public_directory.iterdir()}
        assert owners.keys() >= {"pid", "log", "jobs.db"}
        assert set(owners.values()) == {65534}
        with WirePeer(daemon.port) as peer:
            assert peer.ask(PacketType.SUBMIT_JOB_BG, b"f", b"", b"w") is not None
        os.kill(daemon.pid, signal.SIGTERM)
        assert daemon.has_ended()
        assert not daemon.pid_file.exists()


def test_another_user_may_have_a_port_of_roots(public_directory: Path) -> None:
    """The ports are taken before the user changes, so those below 1024 can be had."""
    assert os.geteuid() == 0, "run the tests as root, as CI does"
    for number in range(1023, 512, -1):
        if not _is_open(number):
            break
    with Daemon(public_directory, "-u", "nobody", "-p", str(number)) as daemon:
        assert daemon.port == number
        with WirePeer(number) as peer:
            assert peer.ask(PacketType.ECHO_REQ, b"x") == Packet(PacketType.ECHO_RES, [b"x"])


def test_only_root_can_become_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """-u is refused to everyone else."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="only root"):
        find_user("nobody")


def test_version_and_help(tmp_path: Path) -> None:
    """--version answers as gearmand does, an empty line first; --help shows options and examples."""
    shown = gearmand("--version", cwd=tmp_path)
    assert shown.returncode == 0
    assert re.fullmatch(rf"\ngearmand {re.escape(__version__)} - .*http://\S+\n", shown.stdout)
    shown = gearmand("-h", cwd=tmp_path)
    assert shown.returncode == 0
    assert "--queue-type" in shown.stdout
    assert "examples:" in shown.stdout
