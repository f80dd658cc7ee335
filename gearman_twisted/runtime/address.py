"""Addresses of job servers, as users write them, and the endpoints that they stand for.

Shared by client, worker, commands and server. It knows endpoints, and opens no connection.
"""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    clientFromString,
)
from twisted.internet.interfaces import (
    IStreamClientEndpoint,
    IStreamClientEndpointStringParserWithReactor,
)
from twisted.plugin import getPlugins

from gearman_twisted.errors import ConfigError
from gearman_twisted.runtime.tls import endpoint_name, require_tls
from gearman_twisted.wire.constants import DEFAULT_PORT
from gearman_twisted.wire.hostport import split_host_port

__all__ = ["client_endpoint", "endpoint_name", "split_host_port"]

# Endpoint types that need no search for plugins, which is slow.
_ENDPOINT_TYPES = frozenset({"tcp", "unix", "ssl", "tls"})
_TLS_TYPES = frozenset({"ssl", "tls"})


def client_endpoint(reactor: Any, address: str | IStreamClientEndpoint) -> IStreamClientEndpoint:
    """Return the endpoint of an address.

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


def peer_name(address: Any) -> str:
    """Return the address of a connection's peer, an ``IAddress``, for people."""
    host, path = getattr(address, "host", None), getattr(address, "name", None)
    if host is not None:
        return f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"
    return f"unix:{os.fsdecode(path)}" if path else str(address)


def _endpoint_from_string(reactor: Any, address: str) -> IStreamClientEndpoint:
    require_tls_for(address)
    try:
        endpoint: IStreamClientEndpoint = clientFromString(reactor, address)  # type: ignore[no-untyped-call]
    except Exception as error:
        # Each endpoint type raises what it likes at what it does not understand: ValueError, TypeError, …
        raise ConfigError(f"{address!r} is not a client endpoint: {error}") from error
    return endpoint


def require_tls_for(address: str) -> None:
    """Make sure that what TLS needs is installed, if an endpoint string asks for TLS."""
    if address.partition(":")[0].lower() in _TLS_TYPES:
        require_tls()


def _plugin_types() -> set[str]:
    return {str(plugin.prefix).lower() for plugin in getPlugins(IStreamClientEndpointStringParserWithReactor)}
