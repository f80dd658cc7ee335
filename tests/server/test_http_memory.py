"""What HTTP connections count for the memory budget: in memory under a clock."""

from __future__ import annotations

import pytest

from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.server.settings import ConnectionLimits
from tests.kit.http_server import Browser, Server, post


def test_memory_that_is_used_up_is_503() -> None:
    """A client with a large body beyond the budget is told so, and not that the server stops."""
    server = Server(settings=EngineSettings(max_memory=1_000_000))
    other, browser = Browser(server, post(body=bytes(950_000))[:-1]), Browser(server)
    browser.send(post(b"Connection: keep-alive", body=bytes(50_000)))
    answer = browser.received()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"X-Gearman-Command: ERROR\r\n" in answer
    assert answer.endswith(
        b"\r\n\r\nQUEUE_ERROR: The server's memory is used up, see its option --max-memory\n"
    )
    assert browser.is_closed()
    other.lose()


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"path": b"/"}, 404),
        ({"method": b"DELETE"}, 405),
        ({"method": b"BREW"}, 501),
        ({"path": b"/a%00b"}, 400),
        ({}, None),
    ],
)
def test_bodies_of_requests_that_have_ended_do_not_count(
    options: dict[str, bytes], status: int | None
) -> None:
    """What a connection that is kept has sent of a body is counted until its request is complete."""
    server = Server()
    browser = Browser(server)
    before = server.engine.usage.of_peers
    request = post(b"Connection: keep-alive", body=bytes(100_000), **options)
    browser.send(request[:-1])
    assert server.engine.usage.of_peers - before >= 99_999
    browser.send(request[-1:])
    assert server.engine.usage.of_peers == before
    if status is not None:
        assert browser.status() == status
        assert not browser.is_closed()


def test_a_body_that_was_refused_does_not_count() -> None:
    """What came of a body before it was too long is dropped at once, while the client sends on."""
    server = Server(limits=ConnectionLimits(max_packet_bytes=100_000))
    browser = Browser(server, b"POST /f HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    before = server.engine.usage.of_peers
    for _ in range(2):
        browser.send(b"ea60\r\n" + bytes(60_000) + b"\r\n")
    assert browser.received().startswith(b"HTTP/1.1 413 ")
    assert not browser.is_closed()
    assert server.engine.usage.of_peers == before
