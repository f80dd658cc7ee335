from __future__ import annotations

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
)

from gearman_twisted.commands.endpoint import FirstThatConnects
from gearman_twisted.errors import ConfigError
from gearman_twisted.runtime.address import client_endpoint, endpoint_name, peer_name, split_host_port
from tests.kit.peers import memory_reactor


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost", ("localhost", 4730)),
        ("localhost:1", ("localhost", 1)),
        ("10.0.0.1:65535", ("10.0.0.1", 65535)),
        ("[::1]", ("::1", 4730)),
        ("[::1]:7003", ("::1", 7003)),
    ],
)
def test_address_is_split(text: str, expected: tuple[str, int]) -> None:
    """Host and port are told apart, and the default port fills in."""
    assert split_host_port(text, 4730) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "write host or host:port"),
        (":4730", "write host or host:port"),
        ("a b:1", "write host or host:port"),
        ("host:", "number from 1 to 65535"),
        ("host:http", "number from 1 to 65535"),
        ("host:0", "number from 1 to 65535"),
        ("host:65536", "number from 1 to 65535"),
        ("host:-1", "number from 1 to 65535"),
        ("host:1_0", "number from 1 to 65535"),
        ("host:\u0663", "number from 1 to 65535"),
        ("host:" + "9" * 5000, "number from 1 to 65535"),
        ("::1", "in brackets, as in"),
        ("fe80::1:4730", "in brackets, as in"),
        ("[::1", "[IPv6 address]"),
        ("[::1]4730", "[IPv6 address]"),
        ("[localhost]:1", "[IPv6 address]"),
    ],
)
def test_nonsense_address_is_explained(text: str, reason: str) -> None:
    """An address that makes no sense is refused with a message that says how to write it."""
    with pytest.raises(ConfigError) as caught:
        split_host_port(text, 4730)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1", TCP4ClientEndpoint),
        ("127.0.0.1:1", TCP4ClientEndpoint),
        ("[::1]:1", TCP6ClientEndpoint),
        ("localhost:1", HostnameEndpoint),
        ("unix:/run/x.sock", UNIXClientEndpoint),
        ("tcp:host=127.0.0.1:port=1", TCP4ClientEndpoint),
    ],
)
def test_endpoint_fits_the_address(address: str, kind: type) -> None:
    """Addresses and endpoint strings alike become endpoints."""
    assert isinstance(client_endpoint(memory_reactor(), address), kind)


def test_endpoint_is_taken_as_it_is() -> None:
    """An endpoint needs no address."""
    endpoint = TCP4ClientEndpoint(memory_reactor(), "127.0.0.1", 1)
    assert client_endpoint(memory_reactor(), endpoint) is endpoint


@pytest.mark.parametrize("address", ["tcp:", "tcp:host", "nonsense:x:y", "host:x", None, 4730])
def test_nonsense_endpoint_is_refused(address: str) -> None:
    """What is neither an address nor an endpoint string is a ConfigError, whatever its parser raises."""
    with pytest.raises(ConfigError):
        client_endpoint(memory_reactor(), address)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("127.0.0.1:4730", "127.0.0.1:4730"),
        ("[::1]:1", "[::1]:1"),
        ("tcp:host.example:7", "host.example:7"),
        ("unix:/run/gearmand.sock", "unix:/run/gearmand.sock"),
    ],
)
def test_endpoint_is_named_by_its_address(address: str, name: str) -> None:
    """Logs and errors show where an endpoint leads, not what object it is; a plugin's own shows itself."""
    assert endpoint_name(client_endpoint(memory_reactor(), address)) == name


def test_unknown_endpoint_is_named_by_itself() -> None:
    """An endpoint whose address is not known is shown as it wants to be."""
    assert endpoint_name(FirstThatConnects(memory_reactor(), ["a", "b:1"])) == "a, b:1"


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (IPv4Address("TCP", "127.0.0.1", 4730), "127.0.0.1:4730"),
        (IPv6Address("TCP", "::1", 4730), "[::1]:4730"),
        (UNIXAddress("/run/gearmand.sock"), "unix:/run/gearmand.sock"),
        (UNIXAddress(None), "UNIXAddress(None)"),
    ],
)
def test_peer_is_named_by_its_address(address: object, name: str) -> None:
    """A connection shows where it leads."""
    assert peer_name(address) == name
