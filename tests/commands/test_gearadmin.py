"""The command ``gearadmin`` as a child process, against our server and Debian's, and beside Debian's tool."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gearman_twisted.wire.constants import PacketType
from tests.kit.gearmand import Gearmand
from tests.kit.servers import PATIENCE, TwistdGearman, WirePeer, run

GEARADMIN = [sys.executable, "-m", "gearman_twisted.commands.gearadmin"]
NOBODY = "1"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwistdGearman]:
    with TwistdGearman(tmp_path_factory.mktemp("server"), "--store=memory:") as server:
        yield server


@pytest.fixture(params=["ours", "gearmand"])
def port(request: pytest.FixtureRequest) -> int:
    """The port of our server, then that of Debian's."""
    return int(request.getfixturevalue(request.param).port)


def gearadmin(port: int, *words: str) -> subprocess.CompletedProcess[bytes]:
    return run(*GEARADMIN, "-h", "127.0.0.1", "-p", str(port), *words)


def debians(port: int, *words: str) -> subprocess.CompletedProcess[bytes]:
    return run("gearadmin", "-h", "127.0.0.1", "-p", str(port), *words)


@pytest.mark.parametrize(
    "words",
    [
        ["--status"],
        ["--priority-status"],
        ["--workers"],
        ["--show-jobs"],
        ["--show-unique-jobs"],
        ["--getpid"],
        ["--server-version"],
        ["--server-verbose"],
        ["--create-function", "made"],
        ["--drop-function", "unknown"],
        ["--cancel-job", "H:unknown:1"],
        ["--stat"],
    ],
)
def test_same_as_debians(port: int, words: list[str]) -> None:
    """What is printed is to the byte what Debian's tool prints; only a refusal has another exit status."""
    with WirePeer(port) as peer:
        peer.send(PacketType.CAN_DO, b"offered")
        peer.ask(PacketType.SUBMIT_JOB_HIGH_BG, b"queued", b"unique", b"data")
        theirs, done = debians(port, *words), gearadmin(port, *words)
    # The connection of the tool itself is in the list, under a number of its own.
    numbers = re.compile(rb"^\d+ ", re.MULTILINE) if words == ["--workers"] else re.compile(rb"$^")
    assert numbers.sub(b"", done.stdout) == numbers.sub(b"", theirs.stdout)
    assert done.stderr == theirs.stderr
    assert done.returncode == (1 if theirs.stderr else 0)


def test_commands_run_in_the_order_given(port: int) -> None:
    """Several options are answered in their order; one that is refused does not keep the others."""
    words = [
        "--create-function",
        "a-new-one",
        "--drop-function",
        "never-there",
        "--status",
        "--drop-function",
    ]
    done = gearadmin(port, *words, "a-new-one", "--getpid")
    first, *table, last, pid = done.stdout.splitlines()
    assert (first, last) == (b"OK", b"OK")
    assert b"a-new-one\t0\t0\t0" in table
    assert pid.isdigit()
    assert (done.stderr, done.returncode) == (b"Error: function not found\r\n", 1)


def test_long_answers_are_whole(ours: TwistdGearman) -> None:
    """A list of many pieces is printed to its end."""
    names = [b"many-%05d-%b" % (number, b"x" * 200) for number in range(5000)]
    with WirePeer(ours.port) as peer:
        for name in names:
            peer.send(PacketType.CAN_DO, name)
        peer.ask(PacketType.ECHO_REQ, b"all came")
        printed = gearadmin(ours.port, "--status").stdout
    lines = printed.split(b"\n")
    assert lines[-2:] == [b".", b""]
    assert {line.split(b"\t")[0] for line in lines} >= set(names)


def test_max_queue(port: int) -> None:
    """--max-queue limits the queue, for all priorities or for each; without numbers it lifts the limit."""
    with WirePeer(port) as peer:
        peer.ask(PacketType.SUBMIT_JOB_BG, b"limited", b"", b"1")
        for numbers, answer in (["1"], "ERROR"), (["1", "2", "1"], "JOB_CREATED"), ([], "JOB_CREATED"):
            done = gearadmin(port, "--max-queue", "limited", *numbers)
            assert (done.stdout, done.returncode) == (b"OK\n", 0)
            reply = peer.ask(PacketType.SUBMIT_JOB_BG, b"limited", b"", b"1")
            assert reply is not None
            assert PacketType(reply.type).name == answer


@pytest.mark.parametrize("numbers", ["x", "-1", "1 2", "1 2 3 4", "1_0", "1.5", "1 2 x"])
def test_max_queue_takes_numbers(numbers: str) -> None:
    """What a server would take for "no limit" is refused in one line, before a server is looked for."""
    done = gearadmin(1, "--max-queue", "limited", *numbers.split())
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"--max-queue: " in done.stderr
    assert b"limit" in done.stderr


def test_no_server_is_an_error() -> None:
    """Without a server the command exits with 1 and one line that names it."""
    done = run(*GEARADMIN, "-p", NOBODY, "--status")
    assert (done.stdout, done.returncode, done.stderr.count(b"\n")) == (b"", 1, 1)
    assert done.stderr.startswith(b"gearadmin: cannot connect to localhost:1: ")


def test_servers_of_the_environment(gearmand: Gearmand) -> None:
    """The servers of the environment are tried in their order."""
    done = run(*GEARADMIN, "--getpid", GEARMAN_SERVERS=f"127.0.0.1:{NOBODY},{gearmand.address}")
    assert done.stdout == b"%d\n" % gearmand.process.pid


def test_ready(ours: TwistdGearman, gearmand: Gearmand) -> None:
    """--ready is for probes: status 0 when the server has its jobs, 1 where nobody says so."""
    done = gearadmin(ours.port, "--ready")
    assert (done.stdout, done.returncode) == (b"OK\n", 0)
    done = gearadmin(gearmand.port, "--ready")
    assert (done.stdout, done.returncode) == (b"", 1)
    assert b"UNKNOWN_COMMAND" in done.stderr
    assert gearadmin(1, "--ready").returncode == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--ready"],
        ["--show-scheduled"],
        ["--cancel-unique", "f", "u"],
        ["--shutdown"],
        ["--shutdown-graceful"],
    ],
)
def test_commands_that_gearmand_does_not_know(gearmand: Gearmand, words: list[str]) -> None:
    """The refusal of a command that only our server has names it."""
    done = gearadmin(gearmand.port, *words)
    command = " ".join(words)[2:].replace("-", " ")
    assert (done.stdout, done.returncode) == (b"", 1)
    assert done.stderr.splitlines()[1:] == [
        f"gearadmin: the server does not know, or not allow, the command '{command}'".encode()
    ]


@pytest.mark.parametrize("option", ["--shutdown", "--shutdown-graceful"])
def test_shutdown(ours: TwistdGearman, tmp_path: Path, option: str) -> None:
    """A server that allows it is ended; another one refuses."""
    with TwistdGearman(tmp_path, "--store=memory:", "--allow-shutdown") as server:
        assert gearadmin(server.port, option).stdout == b"OK\n"
        assert server.process.wait(PATIENCE) == 0
    done = gearadmin(ours.port, option)
    assert done.returncode == 1
    assert b"not allow" in done.stderr


def test_frozen_server_is_given_up(ours: TwistdGearman) -> None:
    """A server that accepts and never answers ends the command with 1 and one line once the time is up."""
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        port = frozen.getsockname()[1]
        for words in ["--ready"], ["--status", "--workers"]:
            done = gearadmin(port, "--timeout", "0.2", *words)
            assert (done.stdout, done.returncode, done.stderr.count(b"\n")) == (b"", 1, 1)
            assert b"does not answer: nothing came for 0.2 s" in done.stderr
    assert gearadmin(ours.port, "--timeout", "10", "--ready").returncode == 0


def test_default_time_limits() -> None:
    """A probe waits for 5 seconds, all else for 10."""
    shown = run(*GEARADMIN, "--help").stdout
    assert b"(default: 10; 5 for --ready)" in b" ".join(shown.split())


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "1e9"])
def test_time_limit_makes_sense(text: str) -> None:
    """A time limit that is none is refused in one line."""
    done = gearadmin(1, f"--timeout={text}", "--status")
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"--timeout: takes seconds" in done.stderr


def test_ipv6_address_with_port(tmp_path: Path) -> None:
    """-h takes an IPv6 address with its port, in brackets, and without either."""
    with TwistdGearman(tmp_path, "--store=memory:", "--listen=[::1]:0") as server:
        port = server.banner.partition("[::1]:")[2].split()[0].rstrip(",")
        for words in ["-h", f"[::1]:{port}"], ["-h", "[::1]", "-p", port], ["-h", "::1", "-p", port]:
            assert run(*GEARADMIN, *words, "--ready").stdout == b"OK\n"


def test_unix_socket(tmp_path: Path) -> None:
    """-h takes the path of a Unix socket."""
    path = tmp_path / "socket"
    with TwistdGearman(tmp_path, "--store=memory:", f"--listen=unix:{path}"):
        assert run(*GEARADMIN, "-h", f"unix:{path}", "--ready").stdout == b"OK\n"


def test_scheduled_jobs_are_shown_and_cancelled_by_unique(ours: TwistdGearman) -> None:
    """--show-scheduled lists what waits for its time, --cancel-unique takes it away."""
    with WirePeer(ours.port) as peer:
        created = peer.ask(PacketType.SUBMIT_JOB_EPOCH, b"later", b"mine", b"4000000000", b"w")
        assert created is not None
    shown = gearadmin(ours.port, "--show-scheduled").stdout
    assert shown == created.args[0] + b"\tlater\tmine\t4000000000\t-\n.\n"
    done = gearadmin(ours.port, "--cancel-unique", "later", "mine", "--show-scheduled")
    assert (done.stdout, done.returncode) == (b"OK\n.\n", 0)
    assert gearadmin(ours.port, "--cancel-unique", "later", "mine").returncode == 1


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"\x15\x03\x03\x00\x02\x02\x28", b"speaks TLS; connect with -S"),
        (b"", b"closed the connection before it answered; if it speaks TLS, connect with -S"),
    ],
)
def test_tls_is_asked_for(answer: bytes, says: bytes) -> None:
    """A server that answers a command in the clear as one of TLS does, or not at all, makes -S the advice."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = ["-h", "127.0.0.1", "-p", str(server.getsockname()[1]), "--status"]
        with subprocess.Popen([*GEARADMIN, *words], stderr=subprocess.PIPE) as process:
            peer, _ = server.accept()
            with peer:
                peer.recv(100)
                peer.sendall(answer)
            _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert says in said
