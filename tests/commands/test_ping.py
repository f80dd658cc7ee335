"""``gearman --ping``, the health check of gearmand 2.1 and its images."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.kit.certificates import Certificates
from tests.kit.servers import TwistdGearman, run

PING = [sys.executable, "-m", "gearman_twisted.commands.gearman", "--ping"]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwistdGearman]:
    with TwistdGearman(tmp_path_factory.mktemp("server"), "--store=memory:") as server:
        yield server


@pytest.fixture(params=["ours", "gearmand"])
def port(request: pytest.FixtureRequest) -> str:
    """The port of our server, then that of Debian's."""
    return str(request.getfixturevalue(request.param).port)


def test_server_that_answers(port: str) -> None:
    """A server that answers is status 0, without output, or with ``ping OK`` if asked for."""
    done = run(*PING, "-h", "127.0.0.1", "-p", port)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = run(*PING, "-v", "-t", "2000", GEARMAN_SERVERS=f"127.0.0.1:1,127.0.0.1:{port}")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"ping OK\n", b"")


def test_no_server() -> None:
    """Where nothing listens it is status 1 and a line that says so."""
    done = run(*PING, "-p", "1")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"gearman: ping failed: cannot connect to localhost:1: Connection refused\n"


def test_frozen_server() -> None:
    """A server that accepts and never answers is status 1 once the time is up."""
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        done = run(*PING, "-h", f"127.0.0.1:{frozen.getsockname()[1]}", "-t", "100")
    assert done.returncode == 1
    assert b"does not answer: nothing came for 0.1 s" in done.stderr


def test_something_else_listens() -> None:
    """A server of another protocol is status 1."""
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            peer, _ = other.accept()
            with peer:
                peer.recv(100)
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        done = run(*PING, "-h", f"127.0.0.1:{other.getsockname()[1]}")
        thread.join()
    assert done.returncode == 1
    assert b"is not a Gearman job server" in done.stderr


@pytest.mark.parametrize("word", ["-S", "--ssl"])
def test_over_tls(tmp_path_factory: pytest.TempPathFactory, word: str) -> None:
    """With -S the server's certificate is checked; without it the advice is to give it."""
    files = Certificates(tmp_path_factory.mktemp("tls"))
    place = f"ssl:0:privateKey={files['server.key']}:certKey={files['server.pem']}:interface=127.0.0.1"
    with TwistdGearman(tmp_path_factory.mktemp("server"), "--store=memory:", f"--listen={place}") as server:
        ports = [part.split()[0].rstrip(",") for part in server.banner.split("127.0.0.1:")[1:3]]
        words = [*PING, "-h", f"127.0.0.1:{ports[1]}"]
        assert run(*words, word, GEARMAND_CA_CERTIFICATE=files["ca.pem"]).returncode == 0
        done = run(*words, word, GEARMAND_CA_CERTIFICATE=files["other-ca.pem"])
        assert done.returncode == 1
        assert b"does not vouch for its TLS certificate" in done.stderr
        done = run(*words)
        assert done.returncode == 1
        assert b"connect with -S" in done.stderr
