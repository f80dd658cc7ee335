"""Which job servers a command talks to, from its options and its environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.abstract import isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from zope.interface import implementer

from gearman_twisted.commands.arguments import CA_VARIABLE, DEFAULT_CA_FILE, TLS_DIRECTORY
from gearman_twisted.errors import ConfigError
from gearman_twisted.runtime.address import client_endpoint
from gearman_twisted.runtime.tls import ClientTls, TlsEndpoint, require_tls
from gearman_twisted.wire.constants import DEFAULT_PORT


def server_addresses(host: str | None, port: int | None, environ: Mapping[str, str]) -> list[str]:
    """The addresses of the servers, at least one, in the order in which to try them.

    Args:
        host: option ``-h``, if it was given: a host, or any address that ``client_endpoint`` takes.
        port: option ``-p``, if it was given.
        environ: the environment.
    """
    addresses = _split(environ.get("GEARMAN_SERVER", ""))
    if not addresses and (host is not None or port is not None):
        addresses.append(_join(host or "localhost", port))
    # DIFFERS: there, the default is tried before GEARMAN_SERVERS, so a server that happens to run on this
    # machine takes the jobs that are meant for others.
    addresses += _split(environ.get("GEARMAN_SERVERS", ""))
    return addresses or [_join("localhost", None)]


def client_tls(is_wanted: bool, environ: Mapping[str, str]) -> ClientTls | None:
    """How to connect with TLS; None where that is not wanted.

    Args:
        is_wanted: option ``-S``.
        environ: the environment, in which a CA certificate is a wish for TLS too.

    Raises:
        ConfigError: TLS is wanted, and a file that it needs cannot be used.
    """
    ca_file = environ.get(CA_VARIABLE)
    if not is_wanted and not ca_file:
        return None
    named = [environ.get("GEARMAN_CLIENT_PEM"), environ.get("GEARMAN_CLIENT_KEY")]
    certificate, key = [
        name or f"{TLS_DIRECTORY}/{default}"
        for name, default in zip(named, ("gearman.pem", "gearman.key"), strict=True)
    ]
    # DIFFERS: libgearman, which does not look at the server's certificate, wants these two to exist.
    has_own = any(named) or all(os.access(file, os.R_OK) for file in (certificate, key))
    require_tls()
    try:
        # COMPAT: as in libgearman, it counts who has signed the certificate, and not for which host it is.
        own = (certificate, key) if has_own else ()
        return ClientTls(ca_file or DEFAULT_CA_FILE, *own, check_hostname=False)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; name another one with {CA_VARIABLE}, GEARMAN_CLIENT_PEM and GEARMAN_CLIENT_KEY "
            "in the environment"
        ) from error


def _split(servers: str) -> list[str]:
    # An empty host means localhost, as in libgearman.
    parts = [part.strip() for part in servers.split(",")]
    return [f"localhost{part}" if part.startswith(":") else part for part in parts if part]


def _join(host: str, port: int | None) -> str:
    if isIPv6Address(host):
        host = f"[{host}]"
    elif ":" in host and not host.startswith("["):
        return host  # host:port, or unix:/run/gearmand.sock
    return f"{host}:{port or DEFAULT_PORT}"


@implementer(IStreamClientEndpoint)
class FirstThatConnects:
    """Several addresses of which the first that can be connected to is used, at each connection again.

    Args:
        reactor: what to connect with.
        addresses: at least one, as ``client_endpoint`` takes them. ``localhost`` is both loopback addresses,
            and asks no resolver.
        on_connected: called after each success.
        on_failed: called with the reason when none could be reached.
        tls: how to connect with TLS; None for without.

    Raises:
        ConfigError: an address makes no sense.
    """

    def __init__(
        self,
        reactor: Any,
        addresses: Sequence[str],
        on_connected: Callable[[], object] = lambda: None,
        on_failed: Callable[[str], object] = lambda _: None,
        *,
        tls: ClientTls | None = None,
    ) -> None:
        self._name = ", ".join(addresses)
        self._endpoints = [
            client_endpoint(reactor, spelt) for address in addresses for spelt in _loopbacks(address)
        ]
        if tls is not None:
            self._endpoints = [TlsEndpoint(reactor, endpoint, tls) for endpoint in self._endpoints]
        self._on_connected = on_connected
        self._on_failed = on_failed

    def __repr__(self) -> str:
        return self._name

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:  # noqa: N803 - IStreamClientEndpoint
        """Connects; fails with the error of the first address."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        errors: list[Exception] = []
        for endpoint in self._endpoints:
            try:
                protocol: IProtocol = await endpoint.connect(factory)
            except Exception as error:  # noqa: BLE001, PERF203 - whatever it is, the next address is tried
                errors.append(error)
            else:
                self._on_connected()
                return protocol
        self._on_failed(str(errors[0]))
        raise errors[0]


def _loopbacks(address: str) -> list[str]:
    host, colon, port = address.partition(":")
    return [f"127.0.0.1{colon}{port}", f"[::1]{colon}{port}"] if host == "localhost" else [address]
