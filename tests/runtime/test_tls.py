"""TLS between our commands, our server, and peers of other makes: openssl, and Python's ssl."""

from __future__ import annotations

import http.client
import os
import re
import select
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from gearman_twisted.client import GearmanClient
from gearman_twisted.commands import servers
from gearman_twisted.errors import ConfigError, NoServers
from gearman_twisted.runtime.tls import ClientTls, ServerTls, TlsEndpoint, require_tls
from gearman_twisted.server.listening import server_endpoints
from gearman_twisted.server.peers import Peers
from gearman_twisted.server.service import JobServerService
from gearman_twisted.store.memory import MemoryStore
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.worker import GearmanWorker
from gearman_twisted.worker.job import Job
from tests.commands.test_gearmand import DEBIAN_GEARMAN, Foreground, gearmand
from tests.kit.certificates import Certificates, TlsPeer, UncheckedPeer
from tests.kit.paths import doc_page
from tests.kit.servers import BIN, PATIENCE, ServerProcess, WirePeer, run

GEARMAN = [sys.executable, "-m", "gearman_twisted.commands.gearman"]
GEARADMIN = [sys.executable, "-m", "gearman_twisted.commands.gearadmin"]
MIB = 1 << 20
reactor: Any = installed_reactor


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates, made once."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


def tls_words(files: Certificates, name: str = "server") -> list[str]:
    """The options of a gearmand that speaks TLS."""
    return ["--ssl", "--ssl-certificate", files[f"{name}.pem"], "--ssl-key", files[f"{name}.key"]]


@pytest.fixture
def server(tmp_path: Path, files: Certificates) -> Iterator[Foreground]:
    """A gearmand of ours that speaks TLS."""
    with Foreground(tmp_path, *tls_words(files)) as server:
        yield server


def at(server: ServerProcess) -> list[str]:
    """Where a server is, as the commands take it."""
    return ["-h", "127.0.0.1", "-p", str(server.port)]


def test_client_and_worker_meet(server: Foreground, files: Certificates) -> None:
    """A client of ours gets its answer from a worker of ours, both over TLS, switched on in either way."""
    trust = {"GEARMAND_CA_CERTIFICATE": files["ca.pem"]}
    worker_words = [*GEARMAN, *at(server), "-w", "-f", "count", "--", "wc", "-c"]
    with subprocess.Popen(worker_words, env={**os.environ, **trust}) as worker:
        try:
            for switch in ([], ["-S"]):
                done = run(*GEARMAN, *at(server), *switch, "-f", "count", stdin=b"x" * MIB, **trust)
                assert (done.stdout.split(), done.stderr, done.returncode) == ([b"1048576"], b"", 0)
        finally:
            worker.terminate()
    assert worker.returncode == 0


def test_gearadmin(server: Foreground, files: Certificates) -> None:
    """gearadmin asks over TLS, switched on in either way, and gets a long answer whole."""
    trust = {"GEARMAND_CA_CERTIFICATE": files["ca.pem"]}
    with TlsPeer(server.port, files["ca.pem"]) as peer:
        for number in range(500):
            peer.ask(PacketType.SUBMIT_JOB_BG, b"function-%d" % number + b"x" * 200, b"", b"")
        for switch in ([], ["-S"]):
            asked = ["--status", "--server-version"]
            done = run(*GEARADMIN, *at(server), *switch, *asked, stdin=b"", **trust)
            assert (done.stdout.count(b"\t1\t0\t0\n"), done.stderr, done.returncode) == (500, b"", 0)


def test_banner_says_tls(server: Foreground) -> None:
    """The server says that its port speaks TLS, and what to try has the option for it."""
    assert re.search(r"listening on +\S+ with TLS\n", server.banner)
    assert re.search(r"try it +\S*gearman -S -h", server.banner)


def test_openssl_reads_the_text_protocol(server: Foreground, files: Certificates) -> None:
    """``openssl s_client`` finds the certificate good, and gets answers to text commands."""
    words = ["-connect", f"127.0.0.1:{server.port}", "-CAfile", files["ca.pem"], "-verify_return_error"]
    openssl = shutil.which("openssl")
    assert openssl is not None, "openssl is not installed; on Debian: apt-get install openssl"
    with subprocess.Popen(
        [openssl, "s_client", "-quiet", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"getpid\ncreate function f\nstatus\n")
        client.stdin.flush()
        answers = [client.stdout.readline() for _ in range(4)]
        client.terminate()
    assert answers == [b"OK %d\n" % server.process.pid, b"OK\r\n", b"f\t0\t0\t0\n", b".\n"]


def test_large_jobs_of_another_implementation(server: Foreground, files: Certificates) -> None:
    """A workload and a result of 10 MiB pass unharmed between two peers that use Python's ssl."""
    workload, result = os.urandom(10 * MIB), os.urandom(10 * MIB)
    with TlsPeer(server.port, files["ca.pem"]) as client, TlsPeer(server.port, files["ca.pem"]) as worker:
        assert isinstance(client.socket, ssl.SSLSocket)
        assert client.socket.version() == "TLSv1.3"
        assert client.ask(PacketType.SUBMIT_JOB, b"f", b"", workload) is not None
        worker.send(PacketType.CAN_DO, b"f")
        assigned = worker.ask(PacketType.GRAB_JOB)
        assert assigned is not None
        assert assigned.args[2] == workload
        worker.send(PacketType.WORK_COMPLETE, assigned.args[0], result)
        completed = client.receive()
        assert completed is not None
        assert completed.args[1] == result


def test_plain_and_silent_peers_do_no_harm(server: Foreground, files: Certificates) -> None:
    """Peers without TLS are closed; those who say nothing, or stop half-way, keep nobody waiting."""
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
    for peer in silent[:25]:
        peer.sendall(b"\x16\x03\x01\x02\x00\x01\x00")  # the beginning of a handshake
    with TlsPeer(server.port, files["ca.pem"]) as before:
        with WirePeer(server.port) as plain:
            plain.socket.sendall(b"status\n")
            received = b""
            while data := plain.socket.recv(4096):
                received += data
            assert received[:1] in {b"", b"\x15"}  # at most an alert of TLS, and no answer
        with WirePeer(server.port) as plain:
            plain.send(PacketType.SUBMIT_JOB_BG, b"f", b"", b"w")
            while plain.socket.recv(4096):
                pass
        with TlsPeer(server.port, files["ca.pem"]) as after:
            assert before.text(b"status", b"\n") == after.text(b"status", b"\n") == b".\n"
    for peer in silent:
        peer.close()


def test_debians_gearman_is_told_nothing(server: Foreground, files: Certificates) -> None:
    """Debian's gearman, built without TLS, loses the connection at once, with -S too."""
    for switch in ([], ["-S"]):
        done = run(
            *[DEBIAN_GEARMAN, *at(server), *switch, "-b", "-f", "f", "w"],
            GEARMAND_CA_CERTIFICATE=files["ca.pem"],
        )
        assert b"lost connection" in done.stderr
    with TlsPeer(server.port, files["ca.pem"]) as peer:
        assert peer.text(b"status", b"\n") == b".\n"


def test_http_stays_plain(tmp_path: Path, files: Certificates) -> None:
    """With --ssl the port for HTTP speaks plain HTTP, as with gearmand."""
    with Foreground(tmp_path, *tls_words(files), "-r", "http", "--http-port", "0") as server:
        place = re.search(r"HTTP on +(\S+):(\d+)", server.banner)
        assert place is not None
        client = http.client.HTTPConnection(place[1], int(place[2]), timeout=PATIENCE)
        client.request("POST", "/f", b"work", {"X-Gearman-Background": "true"})
        assert client.getresponse().status == 200
        client.close()
        with TlsPeer(server.port, files["ca.pem"]) as peer:
            assert list(peer.drain(b"f")) == [b"work"]


@pytest.mark.parametrize("command", [[*GEARMAN, "-b", "-f", "f", "w"], [*GEARADMIN, "--create-function=f"]])
def test_bad_certificate_of_a_server_is_refused(
    tmp_path: Path, files: Certificates, command: list[str]
) -> None:
    """A server whose certificate nobody vouches for, or is too old, is sent nothing; status 1, one line."""
    for name, ca, says in (
        ("server", "other-ca", "other-ca.pem does not vouch for its TLS certificate"),
        ("expired", "ca", "its TLS certificate, or one behind it, has expired"),
    ):
        with Foreground(tmp_path, *tls_words(files, name)) as server:
            trust = {"GEARMAND_CA_CERTIFICATE": files[f"{ca}.pem"]}
            done = run(*command[:3], *at(server), *command[3:], stdin=b"", **trust)
            with UncheckedPeer(server.port) as peer:
                assert peer.text(b"status", b"\n") == b".\n"
        assert (done.stdout, done.returncode, done.stderr.count(b"\n")) == (b"", 1, 1)
        assert f"cannot connect to 127.0.0.1:{server.port}: ".encode() in done.stderr
        assert says.encode() in done.stderr


def test_the_next_server_is_tried(server: Foreground, tmp_path: Path, files: Certificates) -> None:
    """A server whose certificate is refused is passed over, like one that is down."""
    (tmp_path / "other").mkdir()
    with Foreground(tmp_path / "other", *tls_words(files, "expired")) as expired:
        done = run(
            *[*GEARADMIN, "--getpid"],
            GEARMAN_SERVERS=f"127.0.0.1:{expired.port},127.0.0.1:{server.port}",
            GEARMAND_CA_CERTIFICATE=files["ca.pem"],
        )
    assert done.stdout == b"%d\n" % server.process.pid


def test_certificates_between_are_sent(tmp_path: Path, files: Certificates) -> None:
    """A client that has the CA's certificate alone finds good what was signed by way of another one."""
    with (
        Foreground(tmp_path, *tls_words(files, "chained")) as server,
        TlsPeer(server.port, files["ca.pem"]) as peer,
    ):
        assert peer.text(b"status", b"\n") == b".\n"
        done = run(*GEARADMIN, *at(server), "--getpid", GEARMAND_CA_CERTIFICATE=files["ca.pem"])
        assert done.stdout == b"%d\n" % server.process.pid


def test_environment_goes_before_the_options(tmp_path: Path, files: Certificates) -> None:
    """What the environment says of the server's files counts, whatever the command line says."""
    wrong = ["--ssl", "--ssl-ca-file=/no/ca", "--ssl-certificate=/no/certificate", "--ssl-key=/no/key"]
    right = {
        "GEARMAND_CA_CERTIFICATE": files["ca.pem"],
        "GEARMAND_SERVER_PEM": files["server.pem"],
        "GEARMAND_SERVER_KEY": files["server.key"],
    }
    with Foreground(tmp_path, *wrong, **right) as server, TlsPeer(server.port, files["ca.pem"]) as peer:
        assert peer.text(b"status", b"\n") == b".\n"


@pytest.mark.parametrize("how", [[], ["-d"]])
def test_files_that_are_of_no_use_end_it(tmp_path: Path, files: Certificates, how: list[str]) -> None:
    """A file that is missing, unfit or of another pair ends also the first process with 1 and one line."""
    (tmp_path / "garbage").write_text("no certificate, no key\n")
    good = {"certificate": files["server.pem"], "key": files["server.key"], "ca-file": files["ca.pem"]}
    for option, path, says in (
        ("certificate", "/no/such/file", "the TLS certificate /no/such/file cannot be read: No such file"),
        ("key", "/no/such/file", "the TLS key /no/such/file cannot be read: No such file or directory"),
        ("ca-file", "/no/such/file", "the TLS CA certificates /no/such/file cannot be read: No such file"),
        ("certificate", "garbage", "the TLS certificate garbage cannot be used: no start line"),
        ("key", "garbage", "the TLS key garbage cannot be used: it is not a private key in PEM"),
        ("ca-file", "garbage", "the TLS CA certificates garbage cannot be used: "),
        ("key", files["client.key"], f"client.key does not fit the certificate {files['server.pem']}"),
        ("key", files["server.encrypted.key"], "is encrypted; give one without a passphrase"),
        ("certificate", str(tmp_path), f"the TLS certificate {tmp_path} cannot be read: Is a directory"),
    ):
        words = [f"--ssl-{name}={value}" for name, value in {**good, option: path}.items()]
        ended = gearmand(*how, "-P", "pid", "--ssl", *words, cwd=tmp_path)
        assert says in ended.stderr
        assert ended.stderr.startswith("gearmand: the TLS ")
        assert "--ssl-certificate" in ended.stderr
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["garbage"]


def test_default_files_of_the_server(tmp_path: Path) -> None:
    """Without options the files are where gearmand has them; that of the CA need not be there."""
    ended = gearmand("--ssl", cwd=tmp_path)
    assert "the TLS certificate /etc/ssl/certs/gearmand.pem cannot be read" in ended.stderr


@pytest.mark.parametrize("option", ["--ssl-ca-file", "--ssl-certificate", "--ssl-key"])
def test_files_without_ssl_are_refused(tmp_path: Path, option: str) -> None:
    """Whoever names a file of TLS and forgets --ssl is not served in the clear."""
    ended = gearmand(option, "x", cwd=tmp_path)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert f"{option} has no effect without --ssl" in ended.stderr


def test_key_of_root_is_read_before_the_user_changes(files: Certificates) -> None:
    """With -u, certificate and key may be files that only root can read."""
    assert os.geteuid() == 0, "run the tests as root, as CI does"
    assert Path(files["server.key"]).stat().st_uid == 0
    Path(files["server.key"]).chmod(0o600)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        with (
            Foreground(directory, *tls_words(files), "-u", "nobody") as server,
            TlsPeer(server.port, files["ca.pem"]) as peer,
        ):
            assert peer.text(b"status", b"\n") == b".\n"


# The files of the commands.


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("GEARMAND_CA_CERTIFICATE", "the TLS CA certificates /no/such/file cannot be read: No such file"),
        ("GEARMAN_CLIENT_PEM", "the TLS certificate /no/such/file cannot be read: No such file or directory"),
        ("GEARMAN_CLIENT_KEY", "the TLS key /no/such/file cannot be read: No such file or directory"),
    ],
)
@pytest.mark.parametrize("command", [[*GEARMAN, "-S", "-f", "f", "w"], [*GEARADMIN, "-S", "--status"]])
def test_files_that_are_of_no_use_end_the_commands(
    files: Certificates, command: list[str], variable: str, says: str
) -> None:
    """A file that the environment names and that cannot be used is named, in one line, with status 1."""
    good = {
        "GEARMAND_CA_CERTIFICATE": files["ca.pem"],
        "GEARMAN_CLIENT_PEM": files["client.pem"],
        "GEARMAN_CLIENT_KEY": files["client.key"],
    }
    done = run(*command, stdin=b"", **{**good, variable: "/no/such/file"})
    assert (done.stdout, done.returncode, done.stderr.count(b"\n")) == (b"", 1, 1)
    assert says.encode() in done.stderr
    assert variable.encode() in done.stderr


def test_daemon_says_what_is_wrong_with_a_file(files: Certificates) -> None:
    """``gearman -d`` looks at the files while there is someone who reads what it says of them."""
    done = run(*GEARMAN, "-d", "-w", "-f", "f", GEARMAND_CA_CERTIFICATE="/no/such/file")
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"/no/such/file cannot be read" in done.stderr


def test_default_files_of_the_commands(
    tmp_path: Path, files: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-S takes the files from where libgearman has them; only that of the CA has to be there."""
    monkeypatch.setattr(servers, "TLS_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(servers, "DEFAULT_CA_FILE", str(tmp_path / "gearmand-ca.pem"))
    with pytest.raises(ConfigError, match=r"gearmand-ca\.pem cannot be read"):
        servers.client_tls(True, {})
    shutil.copy(files["ca.pem"], tmp_path / "gearmand-ca.pem")
    assert servers.client_tls(True, {}) is not None
    (tmp_path / "gearman.pem").write_text("garbage")
    assert servers.client_tls(True, {}) is not None  # one without the other is not taken
    (tmp_path / "gearman.key").write_text("garbage")
    with pytest.raises(ConfigError, match=r"gearman\.pem cannot be used"):
        servers.client_tls(True, {})
    assert servers.client_tls(False, {"GEARMAND_CA_CERTIFICATE": ""}) is None


@pytest.mark.parametrize(
    ("key", "certificate", "says"),
    [
        ("ca.pem", "", r"the TLS key \S*/ca\.pem cannot be used: it is not a private key in PEM"),
        ("ca.pem", "local.pem", r"the TLS key \S*/ca\.pem cannot be used: it is not a private key in PEM"),
        ("local.key", "", r"the TLS certificate \S*/local\.key cannot be used"),
        ("missing", "local.pem", r"the TLS key \S*/missing cannot be read: No such file"),
    ],
)
def test_unfit_file_of_an_endpoint_is_named(
    files: Certificates, key: str, certificate: str, says: str
) -> None:
    """Of an ``ssl:`` address whose file cannot be used, the error says which one and why."""
    own = f":certKey={files[certificate]}" if certificate else ""
    with pytest.raises(ConfigError, match=says):
        server_endpoints(reactor, f"ssl:0:privateKey={files[key]}{own}")


@pytest.mark.parametrize("name", ["OpenSSL", "service_identity"])
def test_what_is_missing_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pyOpenSSL or service_identity there is no TLS, and the message says how to install it."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"{name}, which is not .* pip install 'twisted\[tls\]>="):
        require_tls()
    with pytest.raises(ConfigError, match=name):
        server_endpoints(reactor, "ssl:0:privateKey=x")


# Connecting.


async def connects(
    server: type[Protocol], tls: ClientTls, clock: Any = reactor
) -> tuple[Any, Deferred[Any], Deferred[Any]]:
    """Connects with TLS to a server in this process; its port, the attempt, and when the server has it."""
    accepted: Deferred[Any] = Deferred()

    class Server(server):  # type: ignore[valid-type,misc]
        def connectionMade(self) -> None:
            super().connectionMade()
            accepted.callback(self)

    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Factory.forProtocol(Server))
    plain = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
    return port, TlsEndpoint(clock, plain, tls).connect(Factory.forProtocol(Protocol)), accepted


@pytest_twisted.ensureDeferred
async def test_silent_server_is_given_up(files: Certificates) -> None:
    """A server that never answers the handshake, as it waits for text, is given up and disconnected."""
    clock = Clock()
    closed: Deferred[None] = Deferred()

    class Silent(Protocol):
        def connectionLost(self, *_: object) -> None:
            closed.callback(None)

    port, attempt, accepted = await connects(Silent, ClientTls(files["ca.pem"]), clock)
    await accepted
    while not clock.getDelayedCalls():
        await deferToThread(lambda: None)
    clock.advance(30)
    with pytest.raises(NoServers, match="no answer to the TLS handshake within 30 seconds"):
        await attempt
    await closed
    assert clock.getDelayedCalls() == []
    await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_plain_server_is_told_from_one_with_tls(files: Certificates) -> None:
    """A server that answers without TLS, or closes, makes the attempt fail with what that may mean."""

    class Plain(Protocol):
        def connectionMade(self) -> None:
            self.transport.write(b"ERR something\r\n")  # type: ignore[union-attr]

    class Closing(Protocol):
        def connectionMade(self) -> None:
            self.transport.loseConnection()  # type: ignore[union-attr]

    for server in (Plain, Closing):
        port, attempt, _ = await connects(server, ClientTls(files["ca.pem"]))
        with pytest.raises(NoServers, match=r"the TLS handshake failed: .*; does it speak TLS there\?"):
            await attempt
        await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_attempt_can_be_cancelled(files: Certificates) -> None:
    """Who gives up during the handshake is disconnected at once."""
    closed: Deferred[None] = Deferred()

    class Silent(Protocol):
        def connectionLost(self, *_: object) -> None:
            closed.callback(None)

    port, attempt, accepted = await connects(Silent, ClientTls(files["ca.pem"]))
    await accepted
    attempt.addErrback(lambda _: None)
    attempt.cancel()
    await closed
    await port.stopListening()


@pytest.mark.parametrize("has_own", [True, False])
@pytest_twisted.ensureDeferred
async def test_certificate_is_shown_to_a_server_that_asks(files: Certificates, has_own: bool) -> None:
    """A server of another make that asks for a certificate gets that of the client, if it has one."""
    own = (files["client.pem"], files["client.key"]) if has_own else ()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["local.pem"], files["local.key"])
    context.load_verify_locations(files["ca.pem"])
    context.verify_mode = ssl.CERT_OPTIONAL
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)

        def serve() -> object:
            with context.wrap_socket(listener.accept()[0], server_side=True) as peer:
                peer.sendall(b"x")
                return peer.getpeercert()

        served = deferToThread(serve)
        plain = TCP4ClientEndpoint(reactor, "127.0.0.1", listener.getsockname()[1])
        endpoint = TlsEndpoint(reactor, plain, ClientTls(files["ca.pem"], *own))
        lost: Deferred[None] = Deferred()

        class Client(Protocol):
            def connectionLost(self, *_: object) -> None:
                lost.callback(None)

        await endpoint.connect(Factory.forProtocol(Client))
        shown: Any = await served
        await lost  # the server closes
    assert bool(shown) == has_own
    assert not has_own or shown["subject"] == ((("commonName", "client"),),)


# The service.


# Of Twisted's endpoint, which may be older than pyOpenSSL.
without_deprecations = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


def tls_endpoints(files: Certificates, kind: str) -> list[IStreamServerEndpoint]:
    """Where to listen with TLS, by our own endpoint or by Twisted's."""
    if kind == "ours":
        tls = ServerTls(files["local.pem"], files["local.key"], files["ca.pem"])
        return server_endpoints(reactor, "127.0.0.1:0", tls=tls)
    return server_endpoints(
        reactor, f"ssl:0:interface=127.0.0.1:privateKey={files['local.key']}:certKey={files['local.pem']}"
    )


async def started(files: Certificates, kind: str) -> tuple[JobServerService, int]:
    """A server in this process, and its port."""
    service = JobServerService(reactor, tls_endpoints(files, kind), MemoryStore())
    service.startService()
    await service.when_ready()
    address: Any = service.addresses[0]
    return service, address.port


@without_deprecations
@pytest.mark.parametrize("kind", ["ours", "twisted"])
@pytest_twisted.ensureDeferred
async def test_many_connections_with_large_jobs(files: Certificates, kind: str) -> None:
    """Fifty clients each get their own result, one of them of 10 MiB, through one server with TLS."""
    service, port = await started(files, kind)
    tls = ClientTls(files["ca.pem"])

    def endpoint() -> TlsEndpoint:
        return TlsEndpoint(reactor, TCP4ClientEndpoint(reactor, "127.0.0.1", port), tls)

    async def turn_around(job: Job) -> bytes:
        return job.workload[::-1]

    worker = GearmanWorker([endpoint()], reactor=reactor)
    worker.register(b"turn", turn_around)
    worker.startService()
    clients = [GearmanClient(endpoint(), reactor=reactor) for _ in range(50)]
    workloads = [os.urandom(10 * MIB if number == 7 else 3000) for number in range(50)]
    results = await gatherResults(
        [client.submit(b"turn", workload) for client, workload in zip(clients, workloads, strict=True)]
    ).addTimeout(2 * PATIENCE, reactor)
    assert all(result == workload[::-1] for result, workload in zip(results, workloads, strict=True))
    for client in clients:
        await client.close()
    await worker.stopService()
    await service.stopService()


@without_deprecations
@pytest.mark.parametrize("kind", ["ours", "twisted"])
@pytest_twisted.ensureDeferred
async def test_it_stops_without_the_goodbye_of_its_peers(
    files: Certificates, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that stops says goodbye to its peers by TLS, and does not wait for theirs."""
    monkeypatch.setattr(Peers.stop, "__defaults__", (10 * PATIENCE,))
    service, port = await started(files, kind)
    peer = await deferToThread(TlsPeer, port, files["ca.pem"])
    assert await deferToThread(peer.text, b"status", b"\n") == b".\n"
    stopped = service.stopService().addTimeout(PATIENCE, reactor)
    assert await deferToThread(peer.receive) is None
    await stopped
    peer.socket.close()


@pytest_twisted.ensureDeferred
async def test_peer_that_breaks_the_protocol_is_closed(files: Certificates) -> None:
    """A peer that is closed for garbage gets its ERROR first, and loses its TCP connection then."""
    service, port = await started(files, "ours")

    def play() -> tuple[Any, Any]:
        with TlsPeer(port, files["ca.pem"]) as peer:
            peer.socket.sendall(b"\0BAD" + bytes(8))
            answers = peer.receive(), peer.receive()
            # TLS has ended; what is below has to end too, without a word of ours.
            below = socket.socket(fileno=peer.socket.detach())
            assert select.select([below], [], [], PATIENCE)[0]
            assert below.recv(100) == b""
            below.close()
            return answers

    error, end = await deferToThread(play)
    assert error.args[0] == b"INVALID_MAGIC"
    assert end is None
    await service.stopService()


def test_endpoint_string_of_the_documentation(tmp_path: Path, files: Certificates) -> None:
    """What docs/run/server.md says of ``twistd gearman`` with TLS is so."""
    found = re.search(r"twistd gearman --listen (ssl:4730:\S+)", doc_page("server.md").read_text())
    assert found is not None
    for name in ("server.pem", "server.key"):
        shutil.copy(files[name], tmp_path)
    listen = found[1].replace(":4730:", ":0:interface=127.0.0.1:")
    words = [str(BIN / "twistd"), "--nodaemon", "--pidfile=", "--logfile=log", "gearman", "--store=memory:"]
    with ServerProcess(tmp_path, *words, f"--listen={listen}") as server:
        done = run(*GEARADMIN, *at(server), "--getpid", GEARMAND_CA_CERTIFICATE=files["ca.pem"])
        assert done.stdout == b"%d\n" % server.process.pid
        assert server.end() == 0
