"""Listening by TCP with options on the socket, which Twisted's own endpoints have no words for.

What is set on a listening socket, those that it accepts inherit; so nothing else has to know of it.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from twisted.internet import tcp
from twisted.internet.defer import Deferred, execute
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from zope.interface import implementer

from gearman_twisted.tls import ServerTls

# The arguments of ``setsockopt``.
SocketOption = tuple[int, int, int]

_V6_ONLY = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


class _Port(tcp.Port):
    options: Sequence[SocketOption] = ()

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
        options: what is set on the socket besides, before it listens.
        tls: how the connections speak TLS, if they do.
    """

    def __init__(
        self,
        reactor: Any,
        host: str,
        port: int,
        *,
        backlog: int,
        options: Sequence[SocketOption] = (),
        tls: ServerTls | None = None,
    ) -> None:
        self._reactor = reactor
        self._host = host
        self._port = port
        self._backlog = backlog
        self._tls = tls
        self._options = (*options, *([_V6_ONLY] if ":" in host else []))

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
        except OSError as error:  # of listen(), which Twisted lets through as it is
            raise CannotListenError(self._host, self._port, error) from error  # type: ignore[no-untyped-call]
        listening: IListeningPort = port
        return listening


def why_cannot_listen(error: CannotListenError) -> str:
    """Which place cannot be listened on and why, in a line for the operator."""
    host = f"[{error.interface}]" if ":" in str(error.interface) else error.interface
    where = f"{host}:{error.port}" if isinstance(error.port, int) else str(error.port)
    reason = getattr(error.socketError, "strerror", None) or error.socketError
    return f"cannot listen on {where}: {reason}"
