"""Over TLS, clients on both event loops compare a server's certificate with its host, unless told not to."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor as installed_reactor
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, UNIXClientEndpoint

from gearman_twisted.client import ClientTls, TlsEndpoint
from gearman_twisted.commands import servers
from gearman_twisted.errors import ConfigError, NoServers
from tests.commands.test_gearmand import Foreground
from tests.kit.certificates import Certificates
from tests.kit.loops import RealLoop, in_real_loop

pytestmark = pytest.mark.usefixtures("no_calls_left")
reactor: Any = installed_reactor


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates, made once."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path, files: Certificates) -> Iterator[Foreground]:
    """A gearmand of ours that speaks TLS, with the certificate that the test names."""
    words = ["--ssl", "--ssl-certificate", files[f"{request.param}.pem"]]
    with Foreground(tmp_path, *words, "--ssl-key", files[f"{request.param}.key"]) as server:
        yield server


def client_of(real: RealLoop, host: str, port: int, files: Certificates, *, check_hostname: bool) -> Any:
    """A client that connects by TLS."""
    make = real.face("client").GearmanClient
    if real.name == "twisted":
        endpoint = HostnameEndpoint(reactor, host, port)
        tls = ClientTls(files["ca.pem"], check_hostname=check_hostname)
        return make(TlsEndpoint(reactor, endpoint, tls), exceptions=False)
    context = ssl.create_default_context(cafile=files["ca.pem"])
    context.check_hostname = check_hostname
    return make(f"{host}:{port}", ssl=context, exceptions=False)


@pytest.mark.parametrize("server", ["local"], indirect=True)
@in_real_loop
async def test_right_host(real: RealLoop, server: Foreground, files: Certificates) -> None:
    """A certificate for the name, or the IP address, that is connected to is good."""
    for host in ("localhost", "127.0.0.1"):
        async with client_of(real, host, server.port, files, check_hostname=True) as client:
            assert await client.echo(b"x") == b"x"


@pytest.mark.parametrize("server", ["elsewhere", "server"], indirect=True)
@in_real_loop
async def test_wrong_host(real: RealLoop, server: Foreground, files: Certificates) -> None:
    """A certificate for another host, or for none, is refused before anything is sent, unless told not to."""
    for host in ("localhost", "127.0.0.1"):
        async with client_of(real, host, server.port, files, check_hostname=True) as client:
            with pytest.raises(NoServers, match=f"(?i)certificate.*{host}"):
                await client.echo(b"x")
    async with client_of(real, "127.0.0.1", server.port, files, check_hostname=False) as client:
        assert await client.echo(b"x") == b"x"


@pytest.mark.parametrize("server", ["elsewhere"], indirect=True)
@in_real_loop
async def test_host_by_name(real: RealLoop, server: Foreground, files: Certificates) -> None:
    """On Twisted the host may be named, where the endpoint leads elsewhere."""
    if real.name == "asyncio":
        return
    tls = ClientTls(files["ca.pem"])
    plain = TCP4ClientEndpoint(reactor, "127.0.0.1", server.port)
    endpoint = TlsEndpoint(reactor, plain, tls, host="elsewhere.example")
    async with real.face("client").GearmanClient(endpoint) as client:
        assert await client.echo(b"x") == b"x"


def test_host_that_is_not_known(files: Certificates) -> None:
    """An endpoint that leads to no host needs its name, or has its certificate not compared."""
    plain = UNIXClientEndpoint(reactor, "/run/gearmand.sock")
    with pytest.raises(ConfigError, match=r"give TlsEndpoint its name as host"):
        TlsEndpoint(reactor, plain, ClientTls(files["ca.pem"]))
    TlsEndpoint(reactor, plain, ClientTls(files["ca.pem"]), host="jobs.example")
    unchecked = TlsEndpoint(reactor, plain, ClientTls(files["ca.pem"], check_hostname=False))
    assert repr(unchecked) == "unix:/run/gearmand.sock with TLS"


def test_commands_do_not_compare_it(files: Certificates) -> None:
    """``gearman`` and ``gearadmin`` look at who has signed the certificate, as libgearman does."""
    tls = servers.client_tls(True, {"GEARMAND_CA_CERTIFICATE": files["ca.pem"]})
    assert tls is not None
    assert not tls.check_hostname
