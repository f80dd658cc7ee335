"""HTTP: a request submits a job, the response has its outcome.

A connection is one of the server's ``Peers`` like any other: what it submits goes there as packets, and what
the engine writes for it is read as a client reads it. There are no rules of jobs here, only their form in
HTTP.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.internet.interfaces import (
    IAddress,
    IHandshakeListener,
    INegotiated,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.python.failure import Failure
from twisted.web import http
from zope.interface import implementer

from gearman_twisted.client.requests import Request, option_request, submit_request
from gearman_twisted.client.session import (
    Broken,
    ClientSession,
    Completed,
    Created,
    Data,
    Event,
    Failed,
    Raised,
    Refused,
)
from gearman_twisted.errors import LocalProtocolError
from gearman_twisted.runtime.transport import unsent_bytes
from gearman_twisted.server.connection import peer_host, tls_bytes
from gearman_twisted.server.peers import Peers
from gearman_twisted.server.unfinished import Unfinished
from gearman_twisted.wire.codec import Decoder
from gearman_twisted.wire.constants import REQ, RES, ErrorCode, Priority

# Seconds in which something has to come while a request is awaited or read.
_IDLE_SECONDS = 60
# Seconds from the connection, or from the previous response, to the last byte of a request, and for how many
# bytes of a body there is another second; and how many connections may be without a complete request.
_REQUEST_SECONDS = 90
_BYTES_PER_SECOND = 10_000
_MOST_UNFINISHED = 5_000
# What is read of a body after it was refused. Its sender rarely looks at the answer before it is
# through, and would not see it any more if the connection were closed at once.
_REFUSED_BYTES = 1 << 26
# What is kept of further requests while one waits for its job. Twisted stops reading there, and a connection
# that is not read does not show that its client has left.
_PIPELINED_BYTES = 1 << 14

_BODY_METHODS = (b"POST", b"PUT")
_METHODS = (b"GET", b"HEAD", *_BODY_METHODS)
_OTHER_METHODS = (b"CONNECT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE")

_PRIORITIES = {b"high": Priority.HIGH, b"low": Priority.LOW}

# What the server's refusals are in HTTP; any other is its own fault.
_STATUSES = {
    ErrorCode.ARGUMENT_TOO_LARGE: http.REQUEST_ENTITY_TOO_LARGE,
    ErrorCode.QUEUE_ERROR: http.SERVICE_UNAVAILABLE,
}

_STOPPING = b"The job server closed the connection before the job had ended.\n"
# As the engine's refusal of a job.
_OUT_OF_MEMORY = b"QUEUE_ERROR: The server's memory is used up, see its option --max-memory\n"


class HttpRequest(http.Request):
    """One request, with its body in memory, and its response."""

    channel: HttpPeer | None  # type: ignore[assignment]  # None once the connection is lost
    content: BytesIO
    _refused_bytes = 0

    # Called by the channel, in this order.

    def gotLength(self, length: int | None) -> None:
        """Take the headers; a body that is announced as too long is refused before it is read."""
        self.content = BytesIO()
        if length is not None and length > self._peer.max_body_bytes:
            self._refuse_body()

    def handleContentChunk(self, data: bytes) -> None:
        """Keep a part of the body, up to the limit."""
        if self.startedWriting:
            self._refused_bytes += len(data)
            if self._refused_bytes > _REFUSED_BYTES:
                self._peer.abort()
        elif self.content.tell() + len(data) > self._peer.max_body_bytes:
            self._refuse_body()
        else:
            self.content.write(data)
            self._peer.keeps_body(self.content.tell())

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Submit the complete request. Twisted's own would parse the body of a form here."""
        self.method, self.uri, self.clientproto = command, path, version
        if self.startedWriting:
            self.finish()  # type: ignore[no-untyped-call]
        else:
            self._peer.submit(self)

    # The request.

    @property
    def function(self) -> bytes:
        """The function's name: the path without its first slashes, and without its escapes.

        DIFFERS: gearmand has no escapes, and takes the query for a part of the name.
        """
        target = self.uri
        if target.lower().startswith((b"http://", b"https://")):
            target = target.partition(b"//")[2].partition(b"/")[2]
        return unquote_to_bytes(target.partition(b"?")[0].lstrip(b"/"))

    def job(self) -> Request:
        """Return the submission that it stands for.

        Raises:
            LocalProtocolError: it has a function or a unique that cannot be.
        """
        # Without one, gearmand takes that which stands for the workload itself: equal bodies share a job.
        return submit_request(
            self.function,
            self.content.getvalue() if self.method in _BODY_METHODS else b"",
            self.getHeader(b"X-Gearman-Unique") or b"-",
            _PRIORITIES.get((self.getHeader(b"X-Gearman-Priority") or b"").lower(), Priority.NORMAL),
            background=(self.getHeader(b"X-Gearman-Background") or b"").lower() == b"true",
        )

    # The response.

    @property
    def can_stream(self) -> bool:
        """Whether data may be sent on as it comes, its length being unknown."""
        return bool(self.clientproto == b"HTTP/1.1" and self.method != b"HEAD")

    def respond(self, code: int, body: bytes = b"", *, command: bytes = b"", handle: bytes = b"") -> None:
        """Send a whole response, with a body if the method has one."""
        self._respond(code, body, command, handle)
        self.finish()  # type: ignore[no-untyped-call]

    def respond_with_text(self, code: int, text: bytes, *, command: bytes = b"") -> None:
        """Send a text of ours as plain text: it may quote the request, so browsers must not render it."""
        self.responseHeaders.setRawHeaders(b"Content-Type", [b"text/plain; charset=utf-8"])
        self.respond(code, text, command=command)

    def stream(self, data: bytes, handle: bytes) -> None:
        """Send a part of the response's body, behind the headers if it is the first one."""
        if not self.startedWriting:
            self._set_headers(b"WORK_DATA", handle, None)
        self.write(data)  # type: ignore[no-untyped-call]

    def _respond(self, code: int, body: bytes, command: bytes, handle: bytes) -> None:
        # COMPAT: the reason as gearmand writes it.
        self.setResponseCode(code, b"NOT_FOUND" if code == http.NOT_FOUND else None)
        self._set_headers(command, handle, len(body))
        self.write(body)  # type: ignore[no-untyped-call]

    def _refuse_body(self) -> None:
        """Answer at once, and read on for a while; what is there of it is dropped."""
        self.content = BytesIO()
        self._peer.keeps_body(0)
        self._peer.persistent = False
        self.requestHeaders.removeHeader(b"Expect")
        self._respond(http.REQUEST_ENTITY_TOO_LARGE, b"", b"", b"")

    def _set_headers(self, command: bytes, handle: bytes, length: int | None) -> None:
        """Set gearmand's headers, in its order and spelling."""
        closes = self.clientproto == b"HTTP/1.1" and not self._peer.persistent
        of_job = [(b"X-Gearman-Job-Handle", handle), (b"X-Gearman-Command", command)]
        of_server = [(b"Server", self._peer.server_name), (b"Connection", b"close" if closes else b"")]
        of_body = [(b"Content-Length", b"" if length is None else b"%d" % length)]
        order = [*of_job, *of_body, *of_server] if command else [*of_server, *of_body]
        for name, value in order:
            if value:
                self.responseHeaders.setRawHeaders(name, [value])

    @property
    def _peer(self) -> HttpPeer:
        peer = self.channel
        if peer is None:
            raise RuntimeError("a request was used after its connection was lost")
        return peer


@implementer(IHandshakeListener)
class HttpPeer(http.HTTPChannel):
    """A peer of the job server that speaks HTTP, one request at a time.

    Attributes:
        number: the peer's number, never given twice.
        max_body_bytes: a longer body is refused.
        server_name: what the header ``Server`` says.
    """

    transport: Any  # ITransport and IPushProducer, with abortConnection: TCP, TLS or UNIX

    def __init__(self, peers: Peers, clock: IReactorTime, unfinished: Unfinished) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._unfinished = unfinished
        self.number = peers.new_number()
        self.max_body_bytes = peers.limits.max_packet_bytes
        self.server_name = b"Gearman/" + peers.host.engine.settings.server_version.encode()
        self.requestFactory = HttpRequest
        self.callLater = clock.callLater  # type: ignore[method-assign, assignment]
        self.timeOut = _IDLE_SECONDS
        self._peers = peers
        self._session = ClientSession()
        self._to_server = Decoder(REQ, max_packet_bytes=peers.limits.max_packet_bytes)
        self._from_server = Decoder(RES, max_packet_bytes=0xFFFFFFFF)
        self._is_reading = True
        self._is_closing = False
        # The request that waits for its job, the job, and data that goes into the response when it ends.
        self._waiting: HttpRequest | None = None
        self._job: Request | None = None
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        # What came behind that request.
        self._pipelined_bytes = 0
        self._body_bytes = 0
        self._tls_bytes = 0

    # What Twisted calls.

    def connectionMade(self) -> None:
        super().connectionMade()  # type: ignore[no-untyped-call]
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpKeepAlive(True)
        if INegotiated.providedBy(self.transport):
            self._peers.handshakes.begin(self)
        self._unfinished.begin(self)
        self._tls_bytes = tls_bytes(self.transport)
        self._peers.connected(self)
        if self._tls_bytes:
            self._peers.keeps(self)
        # There is a status for exceptions, and a place for what they say.
        self._send(option_request(b"exceptions"))

    def handshakeCompleted(self) -> None:
        """TLS is spoken."""
        self._peers.handshakes.end(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._peers.handshakes.end(self)
        self._unfinished.end(self)
        self._take_waiting()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        self._peers.lost(self)

    def rawDataReceived(self, data: bytes) -> None:
        """Take a part of a body, or what comes while a request waits: dropped if it is too much.

        The connection ends with the response then.
        """
        if self._waiting is not None:
            self._pipelined_bytes += len(data)
            if self._pipelined_bytes > _PIPELINED_BYTES:
                self.persistent = False
            if self._pipelined_bytes > _REFUSED_BYTES:
                self.abort()
            if not self.persistent:
                return
        else:
            self._unfinished.grant(self, len(data) / _BYTES_PER_SECOND)
        super().rawDataReceived(data)

    def requestDone(self, request: HttpRequest) -> None:
        """Wait for another request, if the connection is kept."""
        if self.persistent and self._is_reading and not self._is_closing:
            self._unfinished.begin(self)
        super().requestDone(request)  # type: ignore[no-untyped-call]

    def checkPersistence(self, request: HttpRequest, version: bytes) -> bool:
        """Keep the connection for another request only if the client asks for it.

        gearmand closes after each response, and clients may wait for that; none that asks does.
        """
        request.clientproto = version
        headers = request.requestHeaders.getRawHeaders(b"Connection", [])
        options = {option.strip().lower() for option in b",".join(headers).split(b",")}
        return version == b"HTTP/1.1" and b"keep-alive" in options and b"close" not in options

    def lineLengthExceeded(self, _line: bytes) -> None:
        """Refuse a request whose headers are too long, as Twisted does with many that are."""
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.loseConnection()

    def loseConnection(self) -> None:
        """Close the connection once all that was sent is taken. Idempotent."""
        if not self._is_closing:
            self._is_closing = True
            super().loseConnection()  # type: ignore[no-untyped-call]

    def timeoutConnection(self) -> None:
        """Close a connection on which nothing comes."""
        if unsent_bytes(self.transport):
            self.abort()
        else:
            self.loseConnection()

    # What ``Peers`` calls, see ``ConnectedPeer`` there.

    @property
    def peer(self) -> str:
        """The peer's address, without its port."""
        return peer_host(self.transport)

    @property
    def kept_bytes(self) -> int:
        """What it keeps of a request that is not complete, of responses that were not sent, and of TLS."""
        waiting = self._gathered_bytes + self._from_server.buffered_bytes
        kept = self._tls_bytes + self._body_bytes
        return kept + self._pipelined_bytes + waiting + unsent_bytes(self.transport)

    def keeps_body(self, size: int) -> None:
        """Count what is there of the body of a request."""
        self._body_bytes = size
        self._peers.keeps(self)

    def send(self, chunks: list[bytes]) -> None:
        """Respond with what the engine wrote about the job."""
        if self._peers.too_slow(self, unsent_bytes(self.transport)):
            return
        packets = [packet for chunk in chunks for packet in self._from_server.feed(chunk)]
        for outcome in self._session.receive(packets):
            if isinstance(outcome, Broken):
                self._peers.log.error(
                    "closed {peer}: internal error: {why}", peer=self.peer, why=str(outcome.reason)
                )
                self.abort()
            elif self._waiting is not None and outcome.request is self._job:
                self._take(outcome, self._waiting, self._job.handle)
        self._peers.keeps(self)

    def close(self) -> None:
        """Close the connection; answer a request that waits."""
        waiting = self._take_waiting()
        if waiting is not None and not waiting.startedWriting:
            self.persistent = False
            waiting.respond_with_text(http.SERVICE_UNAVAILABLE, _STOPPING)
        else:
            self.loseConnection()

    def abort(self) -> None:
        """Close the connection at once."""
        self._take_waiting()
        self.transport.abortConnection()

    def stop_reading(self) -> None:
        """Take no request until ``start_reading``; no timeout runs meanwhile."""
        self._is_reading = False
        self.setTimeout(None)  # type: ignore[no-untyped-call]
        self._unfinished.end(self)
        self.transport.pauseProducing()

    def start_reading(self) -> None:
        """Read again."""
        self._is_reading = True
        if self._waiting is None:
            self.setTimeout(_IDLE_SECONDS)  # type: ignore[no-untyped-call]
            self._unfinished.begin(self)
        self.transport.resumeProducing()

    # How a request becomes a job.

    def submit(self, request: HttpRequest) -> None:
        """Submit the job of a request, or refuse it."""
        self._unfinished.end(self)
        # Either its workload goes to the engine, or it is dropped with the response.
        self.keeps_body(0)
        if self._peers.is_beyond_memory(self):
            self.persistent = False
            request.respond_with_text(http.SERVICE_UNAVAILABLE, _OUT_OF_MEMORY, command=b"ERROR")
        elif not self._is_reading:
            self.persistent = False
            request.respond_with_text(http.SERVICE_UNAVAILABLE, _STOPPING)
        elif request.method in _OTHER_METHODS:
            request.responseHeaders.setRawHeaders(b"Allow", [b", ".join(_METHODS)])
            request.respond(http.NOT_ALLOWED)
        elif request.method not in _METHODS:
            request.respond(http.NOT_IMPLEMENTED)
        elif not request.function:
            request.respond(http.NOT_FOUND)
        else:
            try:
                job = request.job()
            except LocalProtocolError as error:
                request.respond_with_text(http.BAD_REQUEST, f"{error}\n".encode())
                return
            request.content = BytesIO()
            self._waiting, self._job = request, job
            self._send(job)

    def _send(self, request: Request) -> None:
        for piece in self._session.send(request):
            packets = self._to_server.feed(piece)
        self._peers.received(self, packets)

    def _take(self, outcome: Event, request: HttpRequest, handle: bytes) -> None:
        """Answer a request; of what workers report meanwhile, only data has a place in HTTP."""
        if isinstance(outcome, Created):
            if not outcome.request.is_followed:
                self._take_waiting()
                request.respond(http.OK, command=b"JOB_CREATED", handle=handle)
        elif isinstance(outcome, Data):
            if request.can_stream:
                request.stream(outcome.data, handle)
            else:
                self._gather(outcome.data)
        elif isinstance(outcome, Completed):
            self._complete(request, outcome.data, handle)
        elif isinstance(outcome, Failed | Raised | Refused):
            self._fail(request, outcome, handle)

    def _gather(self, data: bytes) -> None:
        """Keep data for the end: HTTP/1.0 has no chunks."""
        self._gathered.append(data)
        self._gathered_bytes += len(data)
        self._peers.too_slow(self, self._gathered_bytes)

    def _complete(self, request: HttpRequest, data: bytes, handle: bytes) -> None:
        gathered = self._gathered
        self._take_waiting()
        if request.startedWriting:
            request.stream(data, handle)
            request.finish()  # type: ignore[no-untyped-call]
        else:
            body = b"".join([*gathered, data]) if gathered else data
            request.respond(http.OK, body, command=b"WORK_COMPLETE", handle=handle)

    def _fail(self, request: HttpRequest, outcome: Failed | Raised | Refused, handle: bytes) -> None:
        # DIFFERS: gearmand answers all of this with 200.
        self._take_waiting()
        if request.startedWriting:
            # Too late for a status: an unterminated body says that the job failed.
            self.loseConnection()
        elif isinstance(outcome, Refused):
            status = _STATUSES.get(outcome.code, http.INTERNAL_SERVER_ERROR)
            text = b"%b: %b\n" % (outcome.code, outcome.text)
            request.respond_with_text(status, text, command=b"ERROR")
        elif isinstance(outcome, Raised):
            status = http.INTERNAL_SERVER_ERROR
            request.respond(status, outcome.data, command=b"WORK_EXCEPTION", handle=handle)
        else:
            request.respond(http.INTERNAL_SERVER_ERROR, command=b"WORK_FAIL", handle=handle)

    def _take_waiting(self) -> HttpRequest | None:
        """Return the request that waits, and stop waiting for its job."""
        waiting, self._waiting, self._job = self._waiting, None, None
        self._gathered, self._gathered_bytes, self._pipelined_bytes = [], 0, 0
        return waiting


class HttpFactory(Factory):
    """The HTTP connections of a job server.

    Args:
        peers: all connections of the server whose jobs are submitted.
        clock: the time, to close idle connections.
    """

    noisy = False

    def __init__(self, peers: Peers, clock: IReactorTime) -> None:
        self._peers = peers
        self._clock = clock
        self._unfinished = Unfinished(clock, "HTTP request", _REQUEST_SECONDS, _MOST_UNFINISHED)

    def buildProtocol(self, addr: IAddress | None) -> HttpPeer:
        # It has no ``factory``, to which Twisted would report each request for an access log.
        return HttpPeer(self._peers, self._clock, self._unfinished)
