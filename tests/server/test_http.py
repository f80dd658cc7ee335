"""Jobs over HTTP: in memory under a clock, byte for byte."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.errors import StoreError
from gearman_twisted.server.settings import ConnectionLimits
from gearman_twisted.wire.constants import PacketType as P
from tests.kit.http_server import POST, POST_1_0, Browser, Server, ok, post
from tests.kit.server_rig import LoadingStore

# What a job becomes.


@pytest.mark.parametrize("step", [1, 2, 3, 7, 50, 1000])
def test_a_posted_job_is_answered_with_its_result(step: int) -> None:
    """A POST waits for its job and gets the result, in whatever pieces it arrives; then the server closes."""
    server = Server()
    browser = Browser(server)
    browser.send(POST, step)
    assert browser.received() == b""
    assert server.worker().complete(b"done") == b"work"
    assert browser.received() == ok(b"WORK_COMPLETE", b"done")
    assert browser.is_closed()


@pytest.mark.parametrize("cut", range(1, len(POST)))
def test_a_request_may_be_cut_anywhere(cut: int) -> None:
    """A request in two pieces, cut at any byte, is the same request."""
    server = Server()
    browser = Browser(server, POST[:cut])
    assert browser.received() == b""
    browser.send(POST[cut:])
    assert server.worker().complete() == b"work"
    assert browser.received() == ok(b"WORK_COMPLETE", b"done")


@pytest.mark.parametrize("cut", range(len(POST)))
def test_a_client_that_leaves_within_its_request_has_asked_nothing(cut: int) -> None:
    """A request that did not come whole makes no job and leaves nothing behind."""
    server = Server()
    Browser(server, POST[:cut]).lose()
    assert server.engine.snapshot().connections == []
    assert not server.worker().has_job()


@pytest.mark.parametrize(
    ("method", "workload", "body"),
    [(b"POST", b"work", b"done"), (b"PUT", b"work", b"done"), (b"GET", b"", b"done"), (b"HEAD", b"", b"")],
)
def test_methods_that_submit(method: bytes, workload: bytes, body: bytes) -> None:
    """POST and PUT bring a workload, GET and HEAD none; HEAD gets the headers of GET and no body."""
    server = Server()
    browser = Browser(server, post(method=method))
    assert server.worker().complete() == workload
    assert browser.received() == ok(b"WORK_COMPLETE", b"done").removesuffix(b"done") + body


@pytest.mark.parametrize(
    ("path", "function"),
    [
        (b"/f", b"f"),
        (b"///f", b"f"),
        (b"f", b"f"),
        (b"/a/b/", b"a/b/"),
        (b"/a%20b%3Fc", b"a b?c"),
        (b"/%2Ff", b"/f"),
        (b"/f?x=1&y=2", b"f"),
        (b"http://example.org:8080/f", b"f"),
        (b"/50%", b"50%"),
    ],
)
def test_the_path_is_the_function(path: bytes, function: bytes) -> None:
    """The function is the path without its first slashes, escapes and query."""
    server = Server()
    Browser(server, post(path=path))
    assert server.worker(function).has_job()


def test_only_true_means_background() -> None:
    """Any other word leaves the client to wait for its result."""
    server = Server()
    browser = Browser(server, post(b"X-Gearman-Background: yes"))
    assert browser.received() == b""
    server.worker().complete()
    assert browser.received() == ok(b"WORK_COMPLETE", b"done")


def test_headers_may_be_longer_than_gearmands() -> None:
    """Request line and headers of more than 8 KiB, as cookies make them, are read."""
    server = Server()
    Browser(server, post(b"Cookie: " + b"x" * 9000, path=b"/f?" + b"q" * 3000))
    assert server.worker().complete() == b"work"


def test_a_form_is_a_workload_like_any_other() -> None:
    """The body is not looked into, whatever its type says: curl -d calls everything a form."""
    server = Server()
    for kind in (b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x"):
        Browser(server, post(b"Content-Type: " + kind, body=b"a=1&b=%zz"))
        assert server.worker().complete() == b"a=1&b=%zz"


def test_a_chunked_body_is_a_workload() -> None:
    """A body of unknown length is taken, and who waits for leave to send it gets it."""
    server = Server()
    browser = Browser(
        server, b"POST /f HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    )
    assert browser.received() == b"HTTP/1.1 100 Continue\r\n\r\n"
    browser.send(b"2\r\nwo\r\n2\r\nrk\r\n0\r\n\r\n")
    assert server.worker().complete() == b"work"
    assert browser.received() == ok(b"WORK_COMPLETE", b"done")


def test_a_background_job_is_acknowledged_after_its_save() -> None:
    """The response to a background job comes when the store has the job, and carries its handle."""
    server = Server(durable=True)
    browser = Browser(server, post(b"x-gearman-background: TRUE"))
    assert browser.received() == b""
    server.store.finish()
    assert browser.received() == ok(b"JOB_CREATED")
    assert server.worker().has_job()


def test_a_job_that_the_store_refused_is_503() -> None:
    """A background job that could not be stored is refused, with the reason."""
    server = Server(durable=True)
    browser = Browser(server, post(b"X-Gearman-Background: true"))
    server.store.finish(StoreError("disk full"))
    answer = browser.received()
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"X-Gearman-Command: ERROR\r\n" in answer
    assert answer.endswith(b"\r\n\r\nQUEUE_ERROR: The job was not stored: disk full\n")


def test_priorities() -> None:
    """Jobs of high priority go first and those of low priority last; anything else is normal."""
    server = Server()
    for name in (b"low", b"normal", b"urgent", b"HIGH"):
        Browser(server, post(b"X-Gearman-Priority: " + name, b"X-Gearman-Background: true", body=name))
    worker = server.worker()
    assert [worker.complete() for _ in range(4)] == [b"HIGH", b"normal", b"urgent", b"low"]


@pytest.mark.parametrize("headers", [(), (b"X-Gearman-Unique:",), (b"X-Gearman-Unique: -",)])
def test_equal_bodies_share_a_job(headers: tuple[bytes, ...]) -> None:
    """Without a unique, requests of one function with the same body are one job, which answers all."""
    server = Server()
    browsers = [Browser(server, post(*headers)) for _ in range(3)]
    other = Browser(server, post(*headers, body=b"other"))
    assert server.worker().complete(b"once") == b"work"
    for browser in browsers:
        assert browser.received() == ok(b"WORK_COMPLETE", b"once")
    assert other.received() == b""


def test_a_unique_tells_jobs_apart_and_joins_them() -> None:
    """Requests with one unique are one job; with two they are two, however equal."""
    server = Server()
    for unique in (b"a", b"b", b"a"):
        Browser(server, post(b"X-Gearman-Unique: " + unique, b"X-Gearman-Background: true"))
    assert server.text(b"show unique jobs") == b"a\nb\n.\n"


def test_status_and_warning_do_not_end_a_request() -> None:
    """What a worker says on the way has no place in HTTP; the request goes on to wait for the result."""
    server = Server()
    browser, worker = Browser(server, POST), server.worker()
    handle, _ = worker.grab()
    worker.send(P.WORK_STATUS, handle, b"1", b"2")
    worker.send(P.WORK_WARNING, handle, b"careful")
    assert browser.received() == b""
    worker.send(P.WORK_COMPLETE, handle, b"done")
    assert browser.received() == ok(b"WORK_COMPLETE", b"done")


def test_data_is_streamed() -> None:
    """Data of a job that runs is sent on as it comes, in chunks, and the result is the last of them."""
    server = Server()
    browser, worker = Browser(server, POST), server.worker()
    handle, _ = worker.grab()
    worker.send(P.WORK_DATA, handle, b"one")
    head, _, body = browser.received().partition(b"\r\n\r\n")
    assert sorted(head.splitlines()) == [
        b"Connection: close",
        b"HTTP/1.1 200 OK",
        b"Server: Gearman/9",
        b"Transfer-Encoding: chunked",
        b"X-Gearman-Command: WORK_DATA",
        b"X-Gearman-Job-Handle: H:localhost:1",
    ]
    assert body == b"3\r\none\r\n"
    worker.send(P.WORK_DATA, handle, b"")
    assert browser.received() == b""
    worker.send(P.WORK_COMPLETE, handle, b"two")
    assert browser.received() == b"3\r\ntwo\r\n0\r\n\r\n"
    assert browser.is_closed()


@pytest.mark.parametrize("request_", [POST_1_0, post(method=b"HEAD"), POST_1_0.replace(b"POST", b"HEAD")])
def test_data_is_gathered_where_it_cannot_be_streamed(request_: bytes) -> None:
    """HTTP/1.0 and HEAD get one response at the end, whose length counts all data."""
    server = Server()
    browser, worker = Browser(server, request_), server.worker()
    handle, _ = worker.grab()
    worker.send(P.WORK_DATA, handle, b"one")
    assert browser.received() == b""
    worker.send(P.WORK_COMPLETE, handle, b"two")
    head, _, body = browser.received().partition(b"\r\n\r\n")
    assert b"Content-Length: 6\r\n" in head
    assert b"WORK_COMPLETE" in head
    assert body == (b"" if b"HEAD" in request_ else b"onetwo")


def test_too_much_to_gather_is_given_up() -> None:
    """What is gathered for one client is bounded like all that waits for a peer."""
    server = Server(limits=ConnectionLimits(max_output_bytes=65536))
    browser, worker = Browser(server, POST_1_0), server.worker()
    handle, _ = worker.grab()
    for _ in range(3):
        worker.send(P.WORK_DATA, handle, bytes(40_000))
    worker.send(P.WORK_COMPLETE, handle, b"")
    assert browser.received() == b""
    assert browser.is_closed()


# What goes wrong.


def test_a_failed_job_is_500() -> None:
    """A job that failed is no success, and the response names it."""
    server = Server()
    browser, worker = Browser(server, POST), server.worker()
    worker.send(P.WORK_FAIL, worker.grab()[0])
    assert browser.received() == (
        b"HTTP/1.1 500 Internal Server Error\r\nX-Gearman-Job-Handle: H:localhost:1\r\n"
        b"X-Gearman-Command: WORK_FAIL\r\nContent-Length: 0\r\nServer: Gearman/9\r\nConnection: close\r\n\r\n"
    )


def test_an_exception_is_500_with_its_text() -> None:
    """A job that raised gets what the worker says of it, whether or not the server was told --exceptions."""
    server = Server()
    browser, worker = Browser(server, POST), server.worker()
    worker.send(P.WORK_EXCEPTION, worker.grab()[0], b"no such file")
    head, _, body = browser.received().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 500 ")
    assert b"X-Gearman-Command: WORK_EXCEPTION\r\nContent-Length: 12\r\n" in head
    assert body == b"no such file"


def test_a_job_that_fails_after_its_first_data_has_no_end() -> None:
    """When the status has gone out, the body lacks its last chunk, which clients take for an error."""
    server = Server()
    browser, worker = Browser(server, POST), server.worker()
    handle, _ = worker.grab()
    worker.send(P.WORK_DATA, handle, b"one")
    worker.send(P.WORK_FAIL, handle)
    assert browser.received().endswith(b"\r\n\r\n3\r\none\r\n")
    assert browser.is_closed()


def test_gathered_data_of_a_failed_job_is_dropped() -> None:
    """HTTP/1.0 gets a real status even when data came first."""
    server = Server()
    browser, worker = Browser(server, POST_1_0), server.worker()
    handle, _ = worker.grab()
    worker.send(P.WORK_DATA, handle, b"one")
    worker.send(P.WORK_FAIL, handle)
    answer = browser.received()
    assert answer.startswith(b"HTTP/1.0 500 ")
    assert answer.endswith(b"Content-Length: 0\r\nServer: Gearman/9\r\n\r\n")


def test_a_full_queue_is_503() -> None:
    """A job beyond maxqueue is refused, with the reason."""
    server = Server()
    server.text(b"maxqueue f 1")
    Browser(server, post(body=b"first"))
    answer = Browser(server, post(body=b"second")).received()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b"\r\n\r\nQUEUE_ERROR: Job queue is full\n")


ALLOWED = b"Allow: GET, HEAD, POST, PUT"


@pytest.mark.parametrize(
    ("request_", "status", "has"),
    [
        (
            post(path=b"/"),
            404,
            b"404 NOT_FOUND\r\nServer: Gearman/9\r\nConnection: close\r\nContent-Length: 0",
        ),
        (post(path=b"//", method=b"GET"), 404, b"Content-Length: 0"),
        (post(path=b"/", method=b"HEAD"), 404, b"Content-Length: 0"),
        (post(path=b"http://x"), 404, b"Content-Length: 0"),
        (post(method=b"TRACE", body=b""), 405, ALLOWED),
        (post(method=b"DELETE"), 405, ALLOWED),
        (post(method=b"OPTIONS", path=b"*"), 405, ALLOWED),
        (post(method=b"post"), 501, b"Content-Length: 0"),
        (post(method=b"BREW"), 501, b"Content-Length: 0"),
        (post(b"X-Gearman-Unique: " + b"u" * 65), 400, b"text/plain"),
        (post(path=b"/a%00b"), 400, b"text/plain"),
        (post(path=b"/" + b"f" * 8192), 400, b"text/plain"),
        (b"nonsense\r\n\r\n", 400, b""),
        (b"GET /f\r\n\r\n", 400, b""),
        (b"GET /f HTTP/2.0\r\n\r\n", 400, b""),
        (b"GET /f http/1.1\r\n\r\n", 400, b""),
        (b"GET /f HTTP/1.1\r\nno colon\r\n\r\n", 400, b""),
        (b"POST /f HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, b""),
        (b"POST /f HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400, b""),
        (post(b"X: " + b"x" * 20_000), 400, b""),
        (post(*[b"X-%d: y" % n for n in range(600)]), 400, b""),
        (b"GET /" + b"f" * 20_000, 400, b""),
    ],
)
@pytest.mark.parametrize("step", [1, 1 << 30], ids=["bytewise", "whole"])
def test_refusals(request_: bytes, status: int, has: bytes, step: int) -> None:
    """A request that makes no sense gets a status that says so, makes no job, and is closed."""
    server = Server()
    browser = Browser(server)
    browser.send(request_, step)
    answer = browser.received()
    assert int(answer.split(b" ")[1]) == status
    assert has in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert browser.is_closed()
    assert server.text(b"show jobs") == b".\n"
    assert server.engine.snapshot().connections == []


@pytest.mark.parametrize(
    "head", [b"Content-Length: 2000000000", b"Transfer-Encoding: chunked", b"Content-Length: 2000"]
)
def test_a_body_that_is_too_long_is_413(head: bytes) -> None:
    """A body beyond max_packet_bytes is refused at once, before it is sent by those who ask first."""
    server = Server(limits=ConnectionLimits(max_packet_bytes=1024))
    browser = Browser(server, b"POST /f HTTP/1.1\r\nExpect: 100-continue\r\n%b\r\n\r\n" % head)
    if b"chunked" in head:
        assert browser.received() == b"HTTP/1.1 100 Continue\r\n\r\n"
        browser.send(b"7d0\r\n" + bytes(2000))
    answer = browser.received()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b"Connection: close\r\nContent-Length: 0\r\n\r\n")
    assert not browser.is_closed()
    browser.send(b"\r\n0\r\n\r\n" if b"chunked" in head else bytes(2000))
    assert browser.received() == b""
    if head.endswith(b"000000"):
        browser.send(bytes(1 << 20) * 64)
    assert browser.is_closed()
    assert server.text(b"show jobs") == b".\n"


@pytest.mark.parametrize(("size", "status"), [(1020, 200), (1021, 413), (1024, 413)])
def test_a_body_that_only_just_fits_no_packet_is_413_too(size: int, status: int) -> None:
    """The limit is that of the packet, in which the function and the unique stand too."""
    server = Server(limits=ConnectionLimits(max_packet_bytes=1024))
    browser = Browser(server, post(b"X-Gearman-Background: true", body=bytes(size)))
    assert browser.status() == status
    assert browser.is_closed()


def test_a_lost_worker_is_not_the_end() -> None:
    """A job whose worker is lost goes to the next one, and its client waits on."""
    server = Server()
    browser, worker = Browser(server, POST), server.worker()
    worker.grab()
    worker.lose()
    assert browser.received() == b""
    server.worker().complete()
    assert browser.received() == ok(b"WORK_COMPLETE", b"done")


def test_a_job_that_lost_its_last_worker_is_500() -> None:
    """With a limit of attempts, a job that used them up has failed."""
    server = Server(settings=EngineSettings(job_retries=1))
    browser, worker = Browser(server, POST), server.worker()
    worker.grab()
    worker.lose()
    assert browser.status() == 500


def test_a_client_that_leaves_abandons_its_job() -> None:
    """A job that waits for a client that has left is not run; a background job is."""
    server = Server()
    Browser(server, POST).lose()
    assert server.text(b"show jobs") == b".\n"
    Browser(server, post(b"X-Gearman-Background: true")).lose()
    assert server.worker().has_job()


def test_a_client_that_leaves_a_running_job_harms_nobody() -> None:
    """The worker goes on, and its result goes nowhere."""
    server = Server()
    browser, worker = Browser(server, POST), server.worker()
    handle, _ = worker.grab()
    worker.send(P.WORK_DATA, handle, b"one")
    browser.lose()
    worker.send(P.WORK_DATA, handle, b"two")
    worker.send(P.WORK_COMPLETE, handle, b"three")
    assert worker.received() == []
    assert server.text(b"show jobs") == b".\n"


def test_a_cancelled_job_is_500() -> None:
    """A job that an operator cancels has failed for its client."""
    server = Server()
    browser = Browser(server, POST)
    assert server.text(b"cancel job H:localhost:1") == b"OK\r\n"
    assert browser.status() == 500


PIECES = st.sampled_from(
    [
        *(b"GET ", b"POST ", b"HEAD ", b"/f", b"/", b"%00", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\r\n\r\n"),
        *(
            b"Content-Length: 3",
            b"Transfer-Encoding: chunked",
            b"Connection: keep-alive",
            b"Expect: 100-continue",
        ),
        *(
            b"X-Gearman-Background: true",
            b"X-Gearman-Unique: u",
            b"3\r\nabc\r\n",
            b"0\r\n\r\n",
            POST,
            POST_1_0,
        ),
        *(post(b"Connection: keep-alive"), post(b"Connection: keep-alive", b"X-Gearman-Background: true")),
    ]
)


@given(st.lists(PIECES | st.binary(max_size=8), max_size=12), st.integers(1, 40))
def test_no_bytes_do_harm(pieces: list[bytes], step: int) -> None:
    """Whatever comes, nothing is raised, others are served, and a client that left leaves nothing behind."""
    server = Server()
    browser = Browser(server)
    browser.send(b"".join(pieces), step)
    browser.received()
    if not browser.is_lost:
        browser.lose()
    assert server.engine.snapshot().connections == []
    assert b"\t0\t0\t0\n" not in server.text(b"show jobs")  # a foreground job
    other = Browser(server, post(path=b"/other"))
    server.worker(b"other").complete()
    assert other.status() == 200


# Connections.


def test_a_connection_is_kept_for_who_asks() -> None:
    """With Connection: keep-alive requests may follow, pipelined too, and are answered in order."""
    server = Server()
    browser = Browser(server, post(b"Connection: keep-alive", body=b"1") + post(body=b"2") + post(body=b"3"))
    worker = server.worker()
    assert worker.complete() == b"1"
    assert browser.received() == ok(b"WORK_COMPLETE", b"done").replace(b"Connection: close\r\n", b"")
    assert not browser.is_closed()
    assert worker.complete() == b"2"
    assert browser.received() == ok(b"WORK_COMPLETE", b"done", 2)
    assert browser.is_closed()
    assert not worker.has_job()


@pytest.mark.parametrize("options", [b"close", b"Keep-Alive, close", b"upgrade"])
def test_a_connection_is_closed_otherwise(options: bytes) -> None:
    """Otherwise the stream ends with the response, and what was sent behind the request is not run."""
    server = Server()
    browser = Browser(server, post(b"Connection: " + options) * 2)
    worker = server.worker()
    worker.complete()
    assert browser.received() == ok(b"WORK_COMPLETE", b"done")
    assert browser.is_closed()
    assert not worker.has_job()


@pytest.mark.parametrize("options", [b"keep-alive", b"close"])
def test_a_client_that_sends_on_is_read(options: bytes) -> None:
    """Much behind a request that waits is dropped: the connection is read on, and ends with the response."""
    server = Server()
    browser = Browser(server, post(b"Connection: " + options))
    for _ in range(50):
        browser.send(post(body=bytes(1_000)))
        assert browser.transport.producerState == "producing"
    worker = server.worker()
    assert worker.complete() == b"work"
    assert browser.received() == ok(b"WORK_COMPLETE", b"done")
    assert browser.is_closed()
    assert not worker.has_job()


def test_a_client_that_never_stops_sending_is_closed() -> None:
    """What is dropped behind a request that waits has an end as well."""
    server = Server()
    browser = Browser(server, post())
    for _ in range(65):
        browser.send(bytes(1 << 20))
    assert browser.is_closed()


def test_http_1_0_is_answered_in_kind() -> None:
    """HTTP/1.0 gets HTTP/1.0, which closes without saying so."""
    server = Server()
    browser = Browser(server, POST_1_0.replace(b"Host: x", b"Connection: keep-alive"))
    server.worker().complete()
    assert browser.received() == ok(b"WORK_COMPLETE", b"done").replace(b"1.1", b"1.0").replace(
        b"Connection: close\r\n", b""
    )
    assert browser.is_closed()


def test_a_connection_is_a_peer_like_any_other() -> None:
    """The text command workers lists it, and the numbers are those of all connections."""
    server = Server()
    Browser(server)
    assert re.fullmatch(rb"1 192\.168\.1\.1 - :\n2 192\.168\.1\.1 - :\n\.\n", server.text(b"workers"))


def test_a_connection_on_which_nothing_comes_is_closed() -> None:
    """An idle connection is closed after a minute; one that waits for its job is not."""
    server = Server()
    idle, half, waiting = Browser(server), Browser(server, POST[:20]), Browser(server, POST)
    server.clock.advance(61)
    assert (idle.is_closed(), half.is_closed(), waiting.is_closed()) == (True, True, False)
    for browser in (idle, half, waiting):
        browser.lose()
    assert server.clock.getDelayedCalls() == []


def test_nothing_is_read_before_the_stored_jobs_are_back() -> None:
    """Who connects early is not read, nor taken for idle, until the server is open."""
    store = LoadingStore()
    server = Server(store=store)
    browser = Browser(server)
    assert browser.transport.producerState == "paused"
    server.clock.advance(1000)
    assert not browser.is_closed()
    store.loaded.callback(0)
    assert browser.transport.producerState == "producing"
    browser.send(POST)
    server.worker().complete()
    assert browser.status() == 200


def test_a_server_that_stops_answers_who_waits() -> None:
    """Stopping answers 503 for a job that has not ended, and finishes what is being saved."""
    server = Server(durable=True)
    waiting, saving = Browser(server, POST), Browser(server, post(b"X-Gearman-Background: true", body=b"b"))
    streaming, idle = Browser(server, post(path=b"/g")), Browser(server, POST[:10])
    worker = server.worker(b"g")
    worker.send(P.WORK_DATA, worker.grab()[0], b"one")
    assert streaming.received().endswith(b"\r\n3\r\none\r\n")
    closed: list[None] = []
    server.rig.stop().addCallback(closed.append)
    idle.send(POST[10:])  # it was underway
    assert idle.status() == 503
    assert waiting.received() == b""
    server.store.finish()
    answer = waiting.received()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b"\r\n\r\nThe job server closed the connection before the job had ended.\n")
    assert saving.received() == ok(b"JOB_CREATED", number=2)
    assert streaming.received() == b""
    assert streaming.is_closed()
    worker.lose()
    assert closed == [None]
    assert server.clock.getDelayedCalls() == []
