"""Clear text to a port of TLS, and TLS to one without: errors and logs ask whether it speaks TLS there."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet import reactor as installed_reactor
from twisted.internet.endpoints import HostnameEndpoint

from gearman_twisted.client import ClientTls, TlsEndpoint
from gearman_twisted.errors import ConnectionLost, NoServers
from tests.commands.test_gearmand import Foreground
from tests.kit.certificates import Asking, Certificates
from tests.kit.loops import RealLoop, in_real_loop
from tests.kit.servers import PATIENCE, TwistdGearman, run

pytestmark = pytest.mark.usefixtures("no_calls_left")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def with_tls(tmp_path_factory: pytest.TempPathFactory, files: Certificates) -> Iterator[int]:
    """The port of a server that speaks TLS."""
    words = ["--ssl", "--ssl-certificate", files["local.pem"], "--ssl-key", files["local.key"]]
    with Foreground(tmp_path_factory.mktemp("server"), *words) as server:
        yield server.port


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server that does not."""
    with TwistdGearman(tmp_path_factory.mktemp("server"), "--store=memory:") as server:
        yield server.port


@in_real_loop
async def test_client_in_the_clear(real: RealLoop, with_tls: int) -> None:
    """The error of a call has the question."""
    async with real.face("client").GearmanClient(f"127.0.0.1:{with_tls}") as client:
        with pytest.raises(ConnectionLost, match=r"was lost: .*does it speak TLS there\?"):
            await client.echo(b"x")


@in_real_loop
async def test_client_with_tls(real: RealLoop, without: int, files: Certificates) -> None:
    """The error of a call has the question."""
    server: Any = f"127.0.0.1:{without}"
    options = {}
    if real.name == "twisted":
        endpoint = HostnameEndpoint(installed_reactor, "127.0.0.1", without)
        server = TlsEndpoint(installed_reactor, endpoint, ClientTls(files["ca.pem"]))
    else:
        options["ssl"] = ssl.create_default_context(cafile=files["ca.pem"])
    async with real.face("client").GearmanClient(server, **options) as client:
        with pytest.raises(NoServers, match=r"wrong version number; does it speak TLS there\?"):
            await client.echo(b"x")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@in_real_loop
async def test_library_passes_the_alert_on(
    real: RealLoop, files: Certificates, version: ssl.TLSVersion
) -> None:
    """The error of a call has the server's alert as text, and does not ask whether it speaks TLS there."""
    with Asking(files, version) as server:
        place: Any = f"127.0.0.1:{server.port}"
        options = {}
        if real.name == "twisted":
            endpoint = HostnameEndpoint(installed_reactor, "127.0.0.1", int(server.port))
            place = TlsEndpoint(installed_reactor, endpoint, ClientTls(files["ca.pem"], check_hostname=False))
        else:
            options["ssl"] = ssl.create_default_context(cafile=files["ca.pem"])
            options["ssl"].check_hostname = False
        client = real.face("client").GearmanClient(place, **options)
        with pytest.raises((ConnectionLost, NoServers)) as raised:
            await client.echo(b"x")
        closed = client.close()
    await closed
    assert re.search(" alert (certificate required|handshake failure)", str(raised.value))
    assert "[(" not in str(raised.value)
    assert "there?" not in str(raised.value)


_CLIENT = """
import sys

from twisted.internet import reactor

from gearman_twisted import GearmanClient

client = GearmanClient(f"127.0.0.1:{sys.argv[1]}")
client.submit("f", b"x").addErrback(lambda failure: print(failure.getErrorMessage()))
reactor.run()
"""


def test_no_question_when_the_client_ends() -> None:
    """A client that is ended while its server is frozen closes the connection itself, so it asks nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = [sys.executable, "-c", _CLIENT, str(server.getsockname()[1])]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as client:
            taken, _ = server.accept()
            with taken:
                taken.settimeout(PATIENCE)
                assert taken.recv(1 << 16)
                client.terminate()
                printed, _ = client.communicate(timeout=PATIENCE)
    assert b"was lost: the event loop ends" in printed
    assert b"TLS" not in printed


@pytest.mark.parametrize("words", ["gearman -f f x", "gearman --ping", "gearadmin --status", "gearman -wf f"])
def test_commands(with_tls: int, without: int, files: Certificates, words: str) -> None:
    """The commands ask, or advise -S; a worker says so in its log."""
    command, *rest = words.split()
    if "-wf" in rest:
        rest += ["-c", "1", "-t", "700"]
    for port, environment, says in (
        (with_tls, {}, ("TLS there?", "if it speaks TLS, connect with -S")),
        (without, {"GEARMAND_CA_CERTIFICATE": files["ca.pem"]}, ("TLS there?", "it does not speak TLS")),
    ):
        module = f"gearman_twisted.commands.{command}"
        done = run(sys.executable, "-m", module, "-p", str(port), *rest, **environment)  # type: ignore[arg-type]
        assert any(each in done.stderr.decode() for each in says)
        assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("words", ["gearadmin --status", "gearman -f f x", "gearman --ping"])
@pytest.mark.parametrize(
    ("shown", "says"),
    [("", b"asks? for a certificate; name"), ("other-ca", b"does not take this certificate; name")],
)
def test_server_that_asks_for_a_certificate(
    files: Certificates, version: ssl.TLSVersion, words: str, shown: str, says: bytes
) -> None:
    """A command that has no certificate, or one that the server does not take, says how to name one."""
    environment = {"GEARMAND_CA_CERTIFICATE": files["ca.pem"]}
    if shown:
        environment |= {
            "GEARMAN_CLIENT_PEM": files[f"{shown}.pem"],
            "GEARMAN_CLIENT_KEY": files[f"{shown}.key"],
        }
    with Asking(files, version) as server:
        command, *rest = words.split()
        module = f"gearman_twisted.commands.{command}"
        at = ("-h", "127.0.0.1", "-p", server.port)
        done = run(sys.executable, "-m", module, *rest, *at, **environment)  # type: ignore[arg-type]
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert re.search(says, done.stderr)
    assert b"GEARMAN_CLIENT_PEM" in done.stderr
