"""Listening by TCP with options on the socket, for which Twisted's own endpoints have no arguments.

Accepted sockets inherit the options of the one that listens, so nothing else has to know of them.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterable, Sequence
from typing import Any

from twisted.internet import tcp
from twisted.internet.defer import Deferred, execute
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IReactorTime, IStreamServerEndpoint
from twisted.logger import ILogObserver, Logger
from zope.interface import implementer

from gearman_twisted.errors import ConfigError
from gearman_twisted.runtime.address import require_tls_for
from gearman_twisted.runtime.tls import ServerTls
from gearman_twisted.server.settings import ListeningSettings
from gearman_twisted.wire.hostport import port_number, split_host_port

# The arguments of ``setsockopt``.
SocketOption = tuple[int, int, int]

_DEFAULTS = ListeningSettings()

# Seconds between two log lines about connections that could not be accepted.
_REPORT_INTERVAL = 10.0

# Endpoint types; any other word before a port is a host.
_SERVER_TYPES = frozenset({"tcp", "tcp4", "tcp6", "ssl", "unix", "stdio"})

_V6_ONLY = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


@implementer(ILogObserver)
class AcceptLog:
    """Tells the operator, at level ERROR, when connections cannot be accepted.

    Twisted does so at level INFO, where nobody sees that the server is out of file descriptors.

    Args:
        clock: the time, as one line in some seconds is enough.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._next_report = 0.0
        self._refused = 0

    def watch(self, port: tcp.Port) -> None:
        """Report failures of a port from now on."""
        port._logger = Logger(namespace=port._logger.namespace, observer=self)

    def __call__(self, event: dict[str, Any]) -> None:
        # Twisted closes the connections that wait, by means of a descriptor that it has in reserve; or it
        # leaves them where they are.
        if "acceptError" not in event and "address" not in event:
            return
        self._refused += 1
        now = self._clock.seconds()
        if now >= self._next_report:
            self._next_report = now + _REPORT_INTERVAL
            number = getattr(errno, event.get("acceptError", "EMFILE"))
            self.log.error(
                "cannot accept connections: {reason}; {count} refused since the last report",
                reason=os.strerror(number),
                count=self._refused,
            )
            self._refused = 0


def set_defaults(port: tcp.Port) -> None:
    """Set the default options on a port whose endpoint is not one of those here."""
    if getattr(port, "options", None) is None:
        _set_options(port, _DEFAULTS.socket_options())


def _set_options(port: tcp.Port, options: Iterable[SocketOption]) -> None:
    if port.addressFamily in (socket.AF_INET, socket.AF_INET6):
        for option in options:
            port.socket.setsockopt(*option)


class _Port(tcp.Port):
    options: Sequence[SocketOption] = ()

    def _getLogPrefix(self, factory: object) -> str:
        # Twisted logs this and the port: the lines of several addresses could not be told apart.
        return f"{super()._getLogPrefix(factory)} at {self.interface}"

    def createInternetSocket(self) -> socket.socket:
        made: socket.socket = super().createInternetSocket()  # type: ignore[no-untyped-call]
        for option in self.options:
            made.setsockopt(*option)
        return made


@implementer(IStreamServerEndpoint)
class ListeningEndpoint:
    """A place to listen by TCP.

    An IPv6 socket takes IPv6 alone, so that ``0.0.0.0`` and ``::`` can be listened on side by side.

    Args:
        reactor: the reactor that will listen.
        host: an address of either family.
        port: 0 for any free one.
        backlog: how many connections the kernel keeps until they are accepted.
        options: what to set on the socket before it listens; the keep-alive of ``ListeningSettings`` if None.
        tls: how the connections speak TLS, if they do.
    """

    def __init__(
        self,
        reactor: Any,
        host: str,
        port: int,
        *,
        backlog: int = _DEFAULTS.backlog,
        options: Sequence[SocketOption] | None = None,
        tls: ServerTls | None = None,
    ) -> None:
        self._reactor = reactor
        self._host = host
        self._port = port
        self._backlog = backlog
        self._tls = tls
        chosen = _DEFAULTS.socket_options() if options is None else options
        self._options = (*chosen, *([_V6_ONLY] if ":" in host else []))

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:  # noqa: N803
        """Listens.

        Returns:
            A Deferred that has fired already with the port, or failed with ``CannotListenError``.
        """
        return execute(self._listen, protocolFactory)

    def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        factory = factory if self._tls is None else self._tls.wrap(factory)
        port: Any = _Port(self._port, factory, self._backlog, self._host, self._reactor)
        port.options = self._options
        try:
            port.startListening()
        except OSError as error:  # of listen(), which Twisted does not wrap
            raise CannotListenError(self._host, self._port, error) from error  # type: ignore[no-untyped-call]
        listening: IListeningPort = port
        return listening


@implementer(IStreamServerEndpoint)
class TunedEndpoint:
    """An endpoint of Twisted, whose ports by TCP are given the server's options once they listen.

    Args:
        endpoint: the endpoint.
        backlog: how many connections the kernel keeps until they are accepted; None to leave it as it is.
        options: what to set on the socket.
    """

    def __init__(
        self, endpoint: IStreamServerEndpoint, backlog: int | None, options: Sequence[SocketOption]
    ) -> None:
        self._endpoint = endpoint
        self._backlog = backlog
        self._options = options

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:  # noqa: N803
        """Listen, as the endpoint does."""
        return self._endpoint.listen(protocolFactory).addCallback(self._tune)

    def _tune(self, port: IListeningPort) -> IListeningPort:
        # Nothing is accepted before the reactor's next turn.
        if isinstance(port, tcp.Port) and port.addressFamily in (socket.AF_INET, socket.AF_INET6):
            tuned: Any = port
            tuned.options = self._options
            _set_options(port, self._options)
            if self._backlog is not None:
                port.socket.listen(self._backlog)
        return port


def server_endpoints(
    reactor: Any,
    address: str,
    *,
    backlog: int = _DEFAULTS.backlog,
    options: Sequence[SocketOption] | None = None,
    tls: ServerTls | None = None,
) -> list[IStreamServerEndpoint]:
    """Return the endpoints of an address.

    Args:
        reactor: the reactor that will listen.
        address: ``port``, on loopback (0 for any free one); ``host:port`` or ``[IPv6]:port``;
            ``*:port``, on all addresses; or the string of a Twisted server endpoint, such as
            ``unix:/run/gearman.sock``.
        backlog: how many connections the kernel keeps until they are accepted; an endpoint string may have
            its own.
        options: what to set on each socket of TCP; the keep-alive of ``ListeningSettings`` if None.
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
        chosen = _DEFAULTS.socket_options() if options is None else options
        own_backlog = None if ":backlog=" in address else backlog
        return [TunedEndpoint(_server_from_string(reactor, address), own_backlog, chosen)]
    host, port = split_host_port(address, lowest_port=0)
    if host == "*":
        return tcp(port, *filter(_can_bind, ("0.0.0.0", "::")))
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"cannot listen on {address!r}: {host!r}: {error.strerror}") from error
    return tcp(port, *dict.fromkeys(str(info[4][0]) for info in found))


def why_cannot_listen(error: CannotListenError) -> str:
    """Say in a line for the operator which place cannot be listened on, and why."""
    host = f"[{error.interface}]" if ":" in str(error.interface) else error.interface
    where = f"{host}:{error.port}" if isinstance(error.port, int) else str(error.port)
    reason = getattr(error.socketError, "strerror", None) or error.socketError
    return f"cannot listen on {where}: {reason}"


def _can_bind(host: str) -> bool:
    """Return whether this machine has the address; some have no IPv6."""
    if ":" not in host:
        return True
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


def _server_from_string(reactor: Any, address: str) -> IStreamServerEndpoint:
    require_tls_for(address)
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, address)  # type: ignore[no-untyped-call]
    except Exception as error:
        _check_files(address)
        # Each endpoint type raises what it likes at what it does not understand: ValueError, TypeError, …
        raise ConfigError(f"{address!r} is not a place to listen: {error}") from error
    return endpoint


def _check_files(address: str) -> None:
    """Check the files of an ``ssl:`` address; Twisted does not say which one is unfit.

    Raises:
        ConfigError: one cannot be used.
    """
    if not address.lower().startswith("ssl:"):
        return
    given = dict(re.findall(r":(privateKey|certKey)=((?:[^:\\]|\\.)*)", address))
    files = {name: re.sub(r"\\(.)", r"\1", path) for name, path in given.items()}
    # Twisted's defaults.
    key = files.get("privateKey", "server.pem")
    try:
        ServerTls(files.get("certKey", key), key)
    except ConfigError as error:
        raise ConfigError(f"{address!r} is not a place to listen: {error}") from error
