"""Jobs over HTTP through real sockets: ``twistd gearman``, stock clients, and Debian's gearmand beside it."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.error import CannotListenError
from twisted.internet.threads import deferToThread

from gearman_twisted import __version__
from gearman_twisted.server.listening import ListeningEndpoint
from gearman_twisted.server.service import JobServerService
from gearman_twisted.server.settings import ConnectionLimits
from gearman_twisted.store import open_store
from gearman_twisted.wire.constants import PacketType as P
from tests.kit.gearmand import Gearmand
from tests.kit.servers import BIN, PATIENCE, TwistdGearman, WirePeer, run

reactor: Any = installed_reactor

LARGE = bytes(range(251)) * 20_000


def http_port(server: TwistdGearman) -> int:
    """Where a server takes HTTP, as it says itself."""
    found = re.search(r"HTTP on +127\.0\.0\.1:(\d+)\n", server.banner)
    assert found is not None, server.banner
    return int(found[1])


@contextmanager
def twistd_gearman(directory: Path, *args: str) -> Iterator[tuple[TwistdGearman, int]]:
    """A server in a process of its own, and its HTTP port."""
    words = ("--store=memory:", "--http", "tcp:0:interface=127.0.0.1", *args)
    with TwistdGearman(directory, *words) as server:
        yield server, http_port(server)


def connect(port: int) -> socket.socket:
    """A connection for raw bytes."""
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def read_all(peer: socket.socket) -> bytes:
    """All that comes until the other end closes."""
    return b"".join(iter(lambda: peer.recv(65536), b""))


def ask(port: int, request: bytes) -> bytes:
    """The whole answer to raw bytes."""
    with connect(port) as peer:
        peer.sendall(request)
        return read_all(peer)


class Worker(WirePeer):
    """A worker for the function ``f``."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.send(P.CAN_DO, b"f")

    def __enter__(self) -> Worker:
        return self

    def grab(self) -> tuple[bytes, bytes]:
        """Wait for a job: its handle and its workload."""
        noop = self.ask(P.PRE_SLEEP)
        assert noop is not None
        assert noop.type == P.NOOP
        assigned = self.ask(P.GRAB_JOB)
        assert assigned is not None
        return assigned.args[0], assigned.args[2]


def test_five_megabytes_there_and_back(tmp_path: Path) -> None:
    """A large workload and a large result come through whole."""
    with twistd_gearman(tmp_path) as (server, port), Worker(server.port) as worker:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        client.request("POST", "/f", LARGE)
        handle, workload = worker.grab()
        assert workload == LARGE
        worker.send(P.WORK_COMPLETE, handle, workload[::-1])
        response = client.getresponse()
        assert response.status == 200
        assert response.headers["X-Gearman-Job-Handle"] == handle.decode()
        assert response.read() == LARGE[::-1]
        client.close()


def test_data_is_there_before_the_end(tmp_path: Path) -> None:
    """The first data is read while the job runs; if the job fails then, the body is incomplete."""
    with twistd_gearman(tmp_path) as (server, port), Worker(server.port) as worker:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        client.request("GET", "/f")
        handle, _ = worker.grab()
        worker.send(P.WORK_DATA, handle, b"one")
        response = client.getresponse()
        assert response.read(3) == b"one"
        worker.send(P.WORK_FAIL, handle)
        with pytest.raises(http.client.IncompleteRead):
            response.read()
        client.close()


def test_a_connection_that_is_kept_serves_many(tmp_path: Path) -> None:
    """A client that asks for it sends request after request on one connection."""
    with twistd_gearman(tmp_path) as (_, port):
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        client.connect()
        first = client.sock
        headers = {"Connection": "keep-alive", "X-Gearman-Background": "true"}
        handles = set()
        for number in range(100):
            client.request("POST", "/f", b"%d" % number, headers)
            response = client.getresponse()
            assert response.read() == b""
            handles.add(response.headers["X-Gearman-Job-Handle"])
        assert len(handles) == 100
        assert client.sock is first
        client.close()


def test_curl_gets_a_result(tmp_path: Path) -> None:
    """The example of the documentation: curl posts, a stock worker works, curl prints."""
    with twistd_gearman(tmp_path) as (server, port):
        words = ["gearman", "-w", "-h", "127.0.0.1", "-p", str(server.port), "-f", "count", "--", "wc", "-c"]
        with subprocess.Popen(words) as worker:
            try:
                url = f"http://127.0.0.1:{port}/count"
                done = run("curl", "--silent", "--fail", "--data-binary", "@-", url, stdin=LARGE)
            finally:
                worker.terminate()
        assert (done.stdout.strip(), done.returncode) == (b"%d" % len(LARGE), 0)


@pytest.mark.parametrize("behind", [b"", LARGE], ids=["one request", "much behind it"])
def test_a_client_that_leaves_is_noticed(tmp_path: Path, behind: bytes) -> None:
    """When a client closes its end, its job, which nobody else wants, is gone."""
    with twistd_gearman(tmp_path) as (server, port), WirePeer(server.port) as operator:
        with connect(port) as client:
            client.sendall(b"POST /f HTTP/1.1\r\nContent-Length: 1\r\n\r\nx" + behind)
            while b"\t1\t0\t0\n" not in operator.text(b"status", b".\n"):
                pass
        while b"\t0\t0\t0\n" not in operator.text(b"status", b".\n"):
            pass


def test_a_server_that_ends_answers_503(tmp_path: Path) -> None:
    """SIGTERM ends the server with status 0, and a request that waits learns of it."""
    with twistd_gearman(tmp_path) as (server, port), Worker(server.port) as worker, connect(port) as client:
        client.sendall(b"POST /f HTTP/1.1\r\nContent-Length: 1\r\n\r\nx")
        worker.grab()
        assert server.end() == 0
        assert read_all(client).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert "POST" not in server.log.read_text()


def test_both_ports_are_named(tmp_path: Path) -> None:
    """The banner and the log say where HTTP is taken; it is not by default."""
    with twistd_gearman(tmp_path) as (server, port), WirePeer(server.port) as peer:
        peer.ask(P.ECHO_REQ, b"")
        assert f"127.0.0.1:{port} (HTTP)" in server.log.read_text()
    with TwistdGearman(tmp_path) as server:
        assert "HTTP" not in server.banner


def test_a_place_that_cannot_be_is_one_clear_line(tmp_path: Path) -> None:
    """A place for HTTP that makes no sense or is taken ends the process, with a line that names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        for where, says in (("nonsense", "nonsense"), (place, f"{place}: Address already in use")):
            words = ["--nodaemon", "--pidfile=", "gearman", "--store=memory:", "--listen=0", "--http", where]
            ended = run(BIN / "twistd", *words)
            assert ended.returncode == 1
            assert says.encode() in ended.stderr
            assert ended.stderr.count(b"\n") == 1


def loopback(port: int = 0) -> ListeningEndpoint:
    return ListeningEndpoint(reactor, "127.0.0.1", port, backlog=50)


def service_with(limits: ConnectionLimits) -> JobServerService:
    store = open_store("memory:", reactor)
    return JobServerService(reactor, [loopback()], store, limits=limits, http_endpoints=[loopback()])


def ports_of(service: JobServerService) -> tuple[int, int]:
    (gearman,), (http_,) = service.addresses, service.http_addresses
    return gearman.port, http_.port  # type: ignore[attr-defined]


@pytest_twisted.ensureDeferred
async def test_a_client_that_sends_too_much_sees_why() -> None:
    """The answer to a body that is too long reaches a client that looks only when it has sent all of it."""
    service = service_with(ConnectionLimits(max_packet_bytes=1 << 20))
    service.startService()
    await service.when_ready()

    def send() -> int:
        client = http.client.HTTPConnection("127.0.0.1", ports_of(service)[1], timeout=PATIENCE)
        client.request("POST", "/f", LARGE)
        status = client.getresponse().status
        client.close()
        return status

    assert await deferToThread(send) == 413
    await service.stopService()
    assert service.http_addresses == []


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_is_closed() -> None:
    """Data that a client does not take is not kept beyond max_output_bytes."""
    service = service_with(ConnectionLimits(max_output_bytes=1 << 20))
    service.startService()
    await service.when_ready()

    def flood() -> None:
        port, http_ = ports_of(service)
        with Worker(port) as worker, connect(http_) as client:
            client.sendall(b"GET /f HTTP/1.1\r\n\r\n")
            handle, _ = worker.grab()
            # What the two kernels' buffers take of it is not the server's to keep.
            for _ in range(2000):
                worker.send(P.WORK_DATA, handle, bytes(1 << 17))
            assert worker.ask(P.ECHO_REQ, b"still here") is not None
            with pytest.raises(ConnectionError):
                read_all(client)

    await deferToThread(flood)
    await service.stopService()


@pytest_twisted.ensureDeferred
async def test_a_taken_http_port_lets_go_of_the_other() -> None:
    """If the HTTP port is taken, the service does not listen at all."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = loopback(taken.getsockname()[1])
        service = JobServerService(
            reactor, [loopback()], open_store("memory:", reactor), http_endpoints=[endpoint]
        )
        with pytest.raises(CannotListenError):
            service.listen()
    assert (service.addresses, service.http_addresses) == ([], [])
    await service.stopService()


# Beside gearmand. 1.1.20 answers HTTP/1.1 with HTTP/1.0; from 2.0 on the version is repeated.

BACKGROUND = b"Content-Length: 4\r\nX-Gearman-Background: true\r\n"
SAME = {
    "post": b"POST /f HTTP/1.0\r\nContent-Length: 4\r\n\r\nwork",
    "put": b"PUT ///f HTTP/1.0\r\ncontent-length: 4\r\n\r\nwork",
    "get": b"GET /f HTTP/1.0\r\n\r\n",
    "no slash": b"GET f HTTP/1.0\r\n\r\n",
    "body of a get": b"GET /f HTTP/1.0\r\nContent-Length: 4\r\n\r\nwork",
    "high": b"POST /f HTTP/1.0\r\nContent-Length: 4\r\nX-Gearman-Priority: high\r\n\r\nwork",
    "low": b"POST /f HTTP/1.0\r\nContent-Length: 4\r\nX-Gearman-Priority: LOW\r\n\r\nwork",
    "unique": b"POST /f HTTP/1.0\r\nContent-Length: 4\r\nX-Gearman-Unique: u\r\n\r\nwork",
    "background": b"POST /g HTTP/1.0\r\n" + BACKGROUND + b"\r\none!",
    "background again": b"POST /g HTTP/1.0\r\n" + BACKGROUND + b"\r\none!",
    "empty unique": b"POST /g HTTP/1.0\r\n" + BACKGROUND + b"X-Gearman-Unique:\r\n\r\ntwo!",
    "with a unique": b"POST /g HTTP/1.0\r\n" + BACKGROUND.upper() + b"X-Gearman-Unique: u\r\n\r\none!",
    "no function": b"POST / HTTP/1.0\r\nContent-Length: 4\r\n\r\nwork",
    "get nothing": b"GET // HTTP/1.0\r\n\r\n",
}


def transcript(port: int, http_: int, version: bytes) -> dict[str, bytes]:
    """What a server answers to all of ``SAME``, and what it lists then."""
    answers = {}
    with subprocess.Popen(
        ["gearman", "-w", "-h", "127.0.0.1", "-p", str(port), "-f", "f", "--", "rev"]
    ) as worker:
        try:
            for name, request in SAME.items():
                answers[name] = ask(http_, request)
        finally:
            worker.terminate()
    with WirePeer(port) as operator:
        answers["uniques"] = operator.text(b"show unique jobs", b".\n")
        answers["jobs"] = operator.text(b"show jobs", b".\n")
    handles: dict[bytes, bytes] = {}

    def rename(found: re.Match[bytes]) -> bytes:
        return handles.setdefault(found[0], b"HANDLE-%d" % len(handles))

    return {
        name: re.sub(rb"H:[\w.-]+:\d+", rename, answer).replace(b"Gearman/" + version, b"Gearman/VERSION")
        for name, answer in answers.items()
    }


def test_what_gearmand_gets_right_is_the_same(tmp_path: Path) -> None:
    """Requests that gearmand answers well get the same bytes here, but for version and handles."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free: int = probe.getsockname()[1]
    theirs = Gearmand(tmp_path, "-r", "http", "--http-port", str(free))
    try:
        with WirePeer(theirs.port) as peer:
            version = peer.text(b"version", b"\n").split()[1]
        expected = transcript(theirs.port, free, version)
    finally:
        theirs.close()
    with twistd_gearman(tmp_path) as (server, port):
        found = transcript(server.port, port, __version__.encode())
    # Both list jobs, in an order of their own.
    for lists in (expected, found):
        for name in ("uniques", "jobs"):
            lists[name] = b"".join(sorted(lists[name].splitlines(keepends=True)))
    assert found == expected
