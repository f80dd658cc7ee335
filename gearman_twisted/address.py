"""Where a job server is: the spellings of an address that users may write.

Shared by client, worker, commands and server. It knows endpoints, and opens no connection.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    clientFromString,
    serverFromString,
)
from twisted.internet.interfaces import (
    IStreamClientEndpoint,
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpoint,
)
from twisted.plugin import getPlugins

from gearman_twisted.errors import ConfigError
from gearman_twisted.hostport import port_number, split_host_port
from gearman_twisted.listening import ListeningEndpoint, SocketOption
from gearman_twisted.tls import ServerTls, require_tls
from gearman_twisted.wire.constants import DEFAULT_PORT

__all__ = ["client_endpoint", "server_endpoints", "split_host_port"]

# Connections that the kernel keeps until they are accepted: farms reconnect all at once.
_BACKLOG = 1024

# Endpoint types that are known without looking through the plugins of the machine, which takes a while.
_ENDPOINT_TYPES = frozenset({"tcp", "unix", "ssl", "tls"})
_TLS_TYPES = frozenset({"ssl", "tls"})
# Of servers; any other word before a port is a host.
_SERVER_TYPES = frozenset({"tcp", "tcp4", "tcp6", "ssl", "unix", "stdio"})


def client_endpoint(reactor: Any, address: str | IStreamClientEndpoint) -> IStreamClientEndpoint:
    """What to connect to for an address.

    Args:
        reactor: the reactor that will connect.
        address: what ``split_host_port`` takes, with port 4730 where none is written; or the string of a
            Twisted client endpoint, such as ``unix:/run/gearmand.sock``; or an endpoint, returned as is.

    Raises:
        ConfigError: the address makes no sense.
    """
    if IStreamClientEndpoint.providedBy(address):
        return address
    if not isinstance(address, str):
        raise ConfigError(f"a server is given as text or as an IStreamClientEndpoint, not as {address!r}")
    kind, colon, _ = address.partition(":")
    if colon and kind.lower() in _ENDPOINT_TYPES:
        return _endpoint_from_string(reactor, address)
    try:
        host, port = split_host_port(address, DEFAULT_PORT)
    except ConfigError:
        if colon and kind.lower() in _plugin_types():
            return _endpoint_from_string(reactor, address)
        raise
    # Literal addresses need no resolver, which would ask a thread pool.
    if isIPAddress(host):
        return TCP4ClientEndpoint(reactor, host, port)
    if isIPv6Address(host):
        return TCP6ClientEndpoint(reactor, host, port)  # type: ignore[no-untyped-call]
    return HostnameEndpoint(reactor, host, port)


def server_endpoints(
    reactor: Any,
    address: str,
    *,
    backlog: int = _BACKLOG,
    options: Sequence[SocketOption] = (),
    tls: ServerTls | None = None,
) -> list[IStreamServerEndpoint]:
    """Where to listen for an address.

    Args:
        reactor: the reactor that will listen.
        address: ``port``, on loopback (0 for any free one); ``host:port`` or ``[IPv6]:port``;
            ``*:port``, on all addresses; or the string of a Twisted server endpoint, such as
            ``unix:/run/gearman.sock``.
        backlog: how many connections the kernel keeps until they are accepted; not for endpoint strings.
        options: what is set on each socket besides; not for endpoint strings.
        tls: how the connections speak TLS, if they do; not for endpoint strings, which say so themselves.

    Returns:
        The endpoints, at least one: several where a name or ``*`` stands for several addresses.

    Raises:
        ConfigError: the address makes no sense.
    """

    def tcp(port: int, *hosts: str) -> list[IStreamServerEndpoint]:
        return [
            ListeningEndpoint(reactor, host, port, backlog=backlog, options=options, tls=tls)
            for host in hosts
        ]

    if ":" not in address:
        port = port_number(address, address, lowest=0)
        return tcp(port, *filter(_can_bind, ("127.0.0.1", "::1")))
    kind, _, rest = address.partition(":")
    if kind.lower() in _SERVER_TYPES or not rest.rpartition(":")[2].isdecimal():
        return [_server_from_string(reactor, address)]
    host, port = split_host_port(address, lowest_port=0)
    if host == "*":
        return tcp(port, *filter(_can_bind, ("0.0.0.0", "::")))
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"cannot listen on {address!r}: {host!r}: {error.strerror}") from error
    return tcp(port, *dict.fromkeys(str(info[4][0]) for info in found))


def _can_bind(host: str) -> bool:
    """Whether this machine has the address, which of IPv6 is not sure."""
    if ":" not in host:
        return True
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


def _server_from_string(reactor: Any, address: str) -> IStreamServerEndpoint:
    _require_tls_for(address)
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, address)  # type: ignore[no-untyped-call]
    except Exception as error:
        # Each endpoint type raises what it likes at what it does not understand: ValueError, TypeError, …
        raise ConfigError(f"{address!r} is not a place to listen: {error}") from error
    return endpoint


def _endpoint_from_string(reactor: Any, address: str) -> IStreamClientEndpoint:
    _require_tls_for(address)
    try:
        endpoint: IStreamClientEndpoint = clientFromString(reactor, address)  # type: ignore[no-untyped-call]
    except Exception as error:
        # Each endpoint type raises what it likes at what it does not understand: ValueError, TypeError, …
        raise ConfigError(f"{address!r} is not a client endpoint: {error}") from error
    return endpoint


def _require_tls_for(address: str) -> None:
    if address.partition(":")[0].lower() in _TLS_TYPES:
        require_tls()


def _plugin_types() -> set[str]:
    return {str(plugin.prefix).lower() for plugin in getPlugins(IStreamClientEndpointStringParserWithReactor)}
