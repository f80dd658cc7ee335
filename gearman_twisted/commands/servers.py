"""Which job servers a command talks to, and how, from its options and its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from gearman_twisted.commands.arguments import CA_VARIABLE, DEFAULT_CA_FILE, TLS_DIRECTORY
from gearman_twisted.errors import ConfigError
from gearman_twisted.wire.constants import DEFAULT_PORT
from gearman_twisted.wire.hostport import is_ipv6

if TYPE_CHECKING:
    from gearman_twisted.runtime.tls import ClientTls


class TlsFiles(NamedTuple):
    """The files of TLS: of the CA, and of the certificate for a server that asks for one, if any."""

    ca_file: str
    certificate: str | None = None
    key: str | None = None


def server_addresses(host: str | None, port: int | None, environ: Mapping[str, str]) -> list[str]:
    """Return the addresses of the servers, at least one, in the order in which to try them.

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


def tls_files(is_wanted: bool, environ: Mapping[str, str]) -> TlsFiles | None:
    """Return the files of TLS, which may not exist; None if TLS is not wanted.

    Args:
        is_wanted: option ``-S``.
        environ: the environment, in which a CA certificate is a wish for TLS too.
    """
    ca_file = environ.get(CA_VARIABLE)
    if not is_wanted and not ca_file:
        return None
    named = [environ.get("GEARMAN_CLIENT_PEM"), environ.get("GEARMAN_CLIENT_KEY")]
    own = [
        name or f"{TLS_DIRECTORY}/{default}"
        for name, default in zip(named, ("gearman.pem", "gearman.key"), strict=True)
    ]
    # DIFFERS: libgearman, which does not look at the server's certificate, wants these two to exist.
    has_own = any(named) or all(os.access(file, os.R_OK) for file in own)
    return TlsFiles(ca_file or DEFAULT_CA_FILE, *(own if has_own else ()))


def client_tls(is_wanted: bool, environ: Mapping[str, str]) -> ClientTls | None:
    """Return how to connect with TLS on Twisted; None if that is not wanted.

    Args:
        is_wanted: see ``tls_files``.
        environ: likewise.

    Raises:
        ConfigError: TLS is wanted, and a file that it needs cannot be used.
    """
    files = tls_files(is_wanted, environ)
    if files is None:
        return None
    from gearman_twisted.runtime.tls import ClientTls, require_tls

    require_tls()
    try:
        # COMPAT: as in libgearman, the certificate's CA is checked, its host name is not.
        return ClientTls(*files, check_hostname=False)
    except ConfigError as error:
        raise name_another(error) from error


def name_another(error: ConfigError) -> ConfigError:
    """Return an error about a file of TLS with how to name another one."""
    return ConfigError(
        f"{error}; name another one with {CA_VARIABLE}, GEARMAN_CLIENT_PEM and GEARMAN_CLIENT_KEY "
        "in the environment"
    )


def _split(servers: str) -> list[str]:
    # An empty host means localhost, as in libgearman.
    parts = [part.strip() for part in servers.split(",")]
    return [f"localhost{part}" if part.startswith(":") else part for part in parts if part]


def _join(host: str, port: int | None) -> str:
    if is_ipv6(host):
        host = f"[{host}]"
    elif "]:" in host or (":" in host and not host.startswith("[")):
        return host  # host:port, [IPv6]:port, or unix:/run/gearmand.sock
    return f"{host}:{port or DEFAULT_PORT}"


def loopbacks(address: str) -> list[str]:
    """Return an address, or both loopback addresses for ``localhost``, which then asks no resolver."""
    host, colon, port = address.partition(":")
    return [f"127.0.0.1{colon}{port}", f"[::1]{colon}{port}"] if host == "localhost" else [address]
