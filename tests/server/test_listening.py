"""Listening by TCP: which sockets there are, and what is set on them."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory

from gearman_twisted.server.listening import ListeningEndpoint, why_cannot_listen


def endpoint(host: str, port: int = 0, **options: Any) -> ListeningEndpoint:
    return ListeningEndpoint(reactor, host, port, backlog=5, **options)


@pytest_twisted.ensureDeferred
async def test_ipv6_sockets_take_ipv6_alone() -> None:
    """So that the wildcard addresses of both families can be listened on at one port."""
    port: Any = await endpoint("::1").listen(Factory())
    assert port.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
    await maybeDeferred(port.stopListening)


@pytest_twisted.ensureDeferred
async def test_options_are_set_on_the_socket() -> None:
    """What is asked for is on the socket before it accepts anything."""
    option = (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
    port: Any = await endpoint("127.0.0.1", options=[option]).listen(Factory())
    assert port.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
    await maybeDeferred(port.stopListening)


@pytest_twisted.ensureDeferred
async def test_a_taken_port_is_named() -> None:
    """A port that another one has fails the Deferred, with an error that can be told in a line."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(CannotListenError) as caught:
            await endpoint("::1", number).listen(Factory())
    assert why_cannot_listen(caught.value) == f"cannot listen on [::1]:{number}: Address already in use"
