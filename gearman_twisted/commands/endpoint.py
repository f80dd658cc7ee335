"""The endpoint of ``gearman``: the first of several servers that can be connected to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from zope.interface import implementer

from gearman_twisted.commands.servers import loopbacks
from gearman_twisted.runtime.address import client_endpoint
from gearman_twisted.runtime.tls import ClientTls, TlsEndpoint


@implementer(IStreamClientEndpoint)
class FirstThatConnects:
    """An endpoint for several addresses; each connection goes to the first that can be connected to.

    Args:
        reactor: what to connect with.
        addresses: at least one, as ``client_endpoint`` takes them. ``localhost`` is both loopback addresses,
            and asks no resolver.
        on_connected: called after each success.
        on_failed: called with the reason when none could be reached.
        tls: how to connect with TLS; None for without.

    Raises:
        ConfigError: an address is invalid.
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
            client_endpoint(reactor, spelt) for address in addresses for spelt in loopbacks(address)
        ]
        if tls is not None:
            self._endpoints = [TlsEndpoint(reactor, endpoint, tls) for endpoint in self._endpoints]
        self._on_connected = on_connected
        self._on_failed = on_failed

    def __repr__(self) -> str:
        return self._name

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:  # noqa: N803 - IStreamClientEndpoint
        """Connect; fails with the error of the first address."""
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
