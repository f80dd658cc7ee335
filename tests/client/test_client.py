from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from gearman_twisted import GearmanClient
from gearman_twisted.client import JobStatus, Priority
from gearman_twisted.errors import (
    ConfigError,
    ConnectionLost,
    JobException,
    JobFailed,
    LocalProtocolError,
    NoServers,
    RemoteProtocolError,
    ServerError,
)
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.gearmand import Gearmand
from tests.kit.peers import MemoryServer, Peer, memory_reactor, response

P = PacketType
OPTION = Packet(P.OPTION_REQ, [b"exceptions"])


def result(deferred: Deferred[Any]) -> Any:
    """What a Deferred has fired with, or the exception that it has failed with."""
    outcome: list[Any] = []
    deferred.addBoth(outcome.append)
    assert outcome, "it has not fired"
    return getattr(outcome[0], "value", outcome[0])


@implementer(IStreamClientEndpoint)
class DeadEndpoint:
    """An endpoint that fails before it returns."""

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:  # noqa: N803 - IStreamClientEndpoint
        """Fails."""
        return defer.fail(OSError("at once"))


class Rig:
    """A client over a reactor in memory."""

    def __init__(self, **options: Any) -> None:
        self.reactor = memory_reactor()
        self.server = MemoryServer(self.reactor)
        options.setdefault("retry_policy", lambda _attempt: 10.0)
        self.client = GearmanClient("127.0.0.1:4730", reactor=self.reactor, **options)

    def connect(self) -> Peer:
        """Connects and takes what the client says first."""
        self.client.startService()
        peer = self.server.accept()
        peer.taken()
        peer.send(P.OPTION_RES, b"exceptions")
        return peer


def test_nothing_is_connected_before_it_is_needed() -> None:
    """A client connects when it is first used, and every call shares the connection."""
    rig = Rig()
    assert rig.server.attempts == 0
    first, second = rig.client.echo(b"1"), rig.client.echo(b"2")
    assert rig.server.attempts == 1
    peer = rig.server.accept()
    assert peer.taken() == [OPTION, Packet(P.ECHO_REQ, [b"1"]), Packet(P.ECHO_REQ, [b"2"])]
    assert peer.transport.writes == 1
    peer.send(P.OPTION_RES, b"exceptions")
    peer.send(P.ECHO_RES, b"1")
    peer.send(P.ECHO_RES, b"2")
    assert (result(first), result(second)) == (b"1", b"2")


def test_connection_opens_with_id_and_option() -> None:
    """The client's id and its wish for exceptions go before all requests, on each connection."""
    rig = Rig(client_id="me")
    echo = rig.client.echo(b"1")
    peer = rig.server.accept()
    assert peer.taken() == [Packet(P.SET_CLIENT_ID, [b"me"]), OPTION, Packet(P.ECHO_REQ, [b"1"])]
    peer.lose()
    assert isinstance(result(echo), ConnectionLost)
    rig.reactor.advance(10)
    assert rig.server.accept().taken() == [Packet(P.SET_CLIENT_ID, [b"me"]), OPTION]


def test_option_can_be_left_out() -> None:
    """A client that wants no exceptions does not ask for them."""
    rig = Rig(exceptions=False)
    rig.client.startService()
    assert rig.server.accept().taken() == []


def test_server_without_the_option_is_fine() -> None:
    """A server that does not know the option refuses it, and nothing else changes."""
    rig = Rig()
    echo = rig.client.echo(b"1")
    peer = rig.server.accept()
    peer.send(P.ERROR, b"UNKNOWN_OPTION", b"Server does not recognize given option")
    peer.send(P.ECHO_RES, b"1")
    assert result(echo) == b"1"


def test_result_holds_the_parts_that_were_sent_ahead() -> None:
    """Without on_data the parts are put before what comes with the end."""
    rig = Rig()
    peer = rig.connect()
    job = rig.client.submit("reverse", b"abc", unique=b"u", priority=Priority.HIGH)
    assert peer.taken() == [Packet(P.SUBMIT_JOB_HIGH, [b"reverse", b"u", b"abc"])]
    peer.send(P.JOB_CREATED, b"H:1")
    peer.send(P.WORK_DATA, b"H:1", b"c")
    peer.send(P.WORK_WARNING, b"H:1", b"ignored")
    peer.send(P.WORK_STATUS, b"H:1", b"1", b"2")
    peer.send(P.WORK_DATA, b"H:1", b"b")
    peer.send(P.WORK_COMPLETE, b"H:1", b"a")
    assert result(job) == b"cba"


def test_callbacks_are_told_on_the_way() -> None:
    """Each callback gets what it is for, and data that was told is not in the result."""
    rig = Rig()
    peer = rig.connect()
    told: list[object] = []
    job = rig.client.submit(
        b"f",
        on_created=told.append,
        on_data=told.append,
        on_warning=told.append,
        on_status=lambda *numbers: told.append(numbers),
    )
    peer.send_bytes(
        response(P.JOB_CREATED, b"H:1")
        + response(P.WORK_DATA, b"H:1", b"data")
        + response(P.WORK_WARNING, b"H:1", b"warning")
        + response(P.WORK_STATUS, b"H:1", b"1", b"2")
        + response(P.WORK_COMPLETE, b"H:1", b"end")
    )
    assert told == [b"H:1", b"data", b"warning", (1, 2)]
    assert result(job) == b"end"


@pytest.mark.parametrize(
    ("packet", "callback"),
    [
        ((P.JOB_CREATED, b"H:1"), "on_created"),
        ((P.WORK_DATA, b"H:1", b""), "on_data"),
        ((P.WORK_WARNING, b"H:1", b""), "on_warning"),
        ((P.WORK_STATUS, b"H:1", b"1", b"2"), "on_status"),
    ],
)
def test_callback_that_raises_fails_its_own_job_only(packet: tuple[Any, ...], callback: str) -> None:
    """The Deferred fails with the callback's exception, and the connection goes on."""
    rig = Rig()
    peer = rig.connect()
    error = ZeroDivisionError("mine")

    def fail(*_args: object) -> None:
        raise error

    options: Any = {callback: fail}
    job, other = rig.client.submit("f", **options), rig.client.submit("g")
    if callback != "on_created":
        peer.send(P.JOB_CREATED, b"H:1")
    peer.send(*packet)
    assert result(job) is error
    peer.send(P.JOB_CREATED, b"H:2")
    peer.send(P.WORK_COMPLETE, b"H:1", b"dropped")
    peer.send(P.WORK_COMPLETE, b"H:2", b"taken")
    assert result(other) == b"taken"


def test_failures_say_which_job() -> None:
    """A job that fails tells its function and handle, and an exception its data."""
    rig = Rig()
    peer = rig.connect()
    failed, raised, refused = rig.client.submit("f"), rig.client.submit("g"), rig.client.submit("h")
    peer.send(P.JOB_CREATED, b"H:1")
    peer.send(P.JOB_CREATED, b"H:2")
    peer.send(P.ERROR, b"QUEUE_ERROR", b"Job queue is full")
    peer.send(P.WORK_EXCEPTION, b"H:2", b"\xffwhy")
    peer.send(P.WORK_FAIL, b"H:1")
    error = result(failed)
    assert (type(error), error.function, error.handle) == (JobFailed, b"f", b"H:1")
    error = result(raised)
    assert (type(error), error.function, error.handle, error.data) == (JobException, b"g", b"H:2", b"\xffwhy")
    error = result(refused)
    assert (type(error), error.code, error.text) == (ServerError, "QUEUE_ERROR", "Job queue is full")


def test_background_and_questions() -> None:
    """The other calls fire with what the server answers."""
    rig = Rig()
    peer = rig.connect()
    calls: list[Deferred[Any]] = [
        rig.client.submit_background("f", b"w", priority=Priority.LOW),
        rig.client.submit_at("f", b"w", 1000.5, unique=b"u"),
        rig.client.submit_at("f", b"w", datetime(2033, 5, 18, 3, 33, 20, tzinfo=timezone.utc)),
        rig.client.status(b"H:1"),
        rig.client.status_by_unique(b"u"),
        rig.client.set_option("exceptions"),
    ]
    assert peer.taken() == [
        Packet(P.SUBMIT_JOB_LOW_BG, [b"f", b"", b"w"]),
        Packet(P.SUBMIT_JOB_EPOCH, [b"f", b"u", b"1001", b"w"]),
        Packet(P.SUBMIT_JOB_EPOCH, [b"f", b"", b"2000000000", b"w"]),
        Packet(P.GET_STATUS, [b"H:1"]),
        Packet(P.GET_STATUS_UNIQUE, [b"u"]),
        OPTION,
    ]
    for handle in (b"H:1", b"H:2", b"H:3"):
        peer.send(P.JOB_CREATED, handle)
    peer.send(P.STATUS_RES, b"H:1", b"1", b"1", b"5", b"10")
    peer.send(P.STATUS_RES_UNIQUE, b"u", b"1", b"0", b"0", b"0", b"3")
    peer.send(P.OPTION_RES, b"exceptions")
    assert [result(call) for call in calls] == [
        b"H:1",
        b"H:2",
        b"H:3",
        JobStatus(True, True, 5, 10),
        JobStatus(True, False, 0, 0, 3),
        b"exceptions",
    ]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda client: client.submit("f", "text"), TypeError),
        (lambda client: client.submit("f", b"", unique="text"), TypeError),
        (lambda client: client.submit(None, b""), TypeError),
        (lambda client: client.submit_background("f", bytearray(b"x")), TypeError),
        (lambda client: client.echo("text"), TypeError),
        (lambda client: client.status("H:1"), TypeError),
        (lambda client: client.status_by_unique("u"), TypeError),
        (lambda client: client.submit("f\0", b""), LocalProtocolError),
        (lambda client: client.submit("f", b"", unique=b"u" * 65), LocalProtocolError),
        (lambda client: client.submit("f", b"", unique=b"\0"), LocalProtocolError),
        (lambda client: client.set_option("a\0"), LocalProtocolError),
        (lambda client: client.submit_at("f", b"", datetime(2033, 1, 1)), LocalProtocolError),
        (lambda client: client.submit_at("f", b"", 10**400), LocalProtocolError),
        (lambda client: client.submit_at("f", b"", None), TypeError),
    ],
)
def test_wrong_argument_fails_the_call_and_sends_nothing(
    call: Callable[[GearmanClient], Deferred[Any]], error: type
) -> None:
    """What cannot be sent fails its Deferred at once, and does not even connect."""
    rig = Rig()
    assert type(result(call(rig.client))) is error
    assert rig.server.attempts == 0


def test_wrong_settings_are_refused() -> None:
    """A server or an id that makes no sense is refused when the client is made."""
    with pytest.raises(ConfigError):
        GearmanClient("host:port", reactor=memory_reactor())
    with pytest.raises(LocalProtocolError):
        Rig(client_id="a b")


def test_refused_connection_is_told_at_once() -> None:
    """All calls that wait fail with the server's name when it cannot be reached; the next one tries again."""
    rig = Rig()
    calls = [rig.client.echo(b"1"), rig.client.submit("f")]
    rig.server.refuse()
    for call in calls:
        error = result(call)
        assert isinstance(error, NoServers)
        assert "127.0.0.1:4730" in str(error)
    # Nobody has to wait until the policy lets ClientService try again.
    again = rig.client.echo(b"2")
    assert rig.server.attempts == 1
    peer = rig.server.accept()
    peer.send(P.OPTION_RES, b"exceptions")
    peer.send(P.ECHO_RES, b"2")
    assert result(again) == b"2"


def test_lost_connection_fails_what_waits_and_nothing_else() -> None:
    """Every call that waits for an answer fails with its function and handle; the next call connects anew."""
    rig = Rig()
    peer = rig.connect()
    running, asked, status = rig.client.submit("f"), rig.client.submit("g"), rig.client.status(b"H:7")
    peer.send(P.JOB_CREATED, b"H:1")
    peer.lose()
    errors = [result(running), result(asked), result(status)]
    assert [type(error) for error in errors] == [ConnectionLost] * 3
    assert [(error.function, error.handle) for error in errors] == [
        (b"f", b"H:1"),
        (b"g", b""),
        (b"", b"H:7"),
    ]
    assert "127.0.0.1:4730" in str(errors[0])
    rig.client.echo(b"again")
    assert rig.server.accept().taken() == [OPTION, Packet(P.ECHO_REQ, [b"again"])]


def test_call_from_the_errback_of_a_lost_connection_is_sent_on_the_next() -> None:
    """Whoever tries again at once does not wait for the retry policy."""
    rig = Rig()
    peer = rig.connect()
    again: list[Deferred[bytes]] = []
    rig.client.submit("f").addErrback(lambda _: again.append(rig.client.echo(b"again")))
    peer.lose()
    rig.reactor.advance(0)
    second = rig.server.accept()
    second.send(P.OPTION_RES, b"exceptions")
    second.send(P.ECHO_RES, b"again")
    assert result(again[0]) == b"again"


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        response(P.JOB_CREATED, b"H:1"),
        b"\0RES\0\0\0\x63\0\0\0\0",
        b"\0REQ\0\0\0\x11\0\0\0\0",
    ],
)
def test_garbage_drops_the_connection(garbage: bytes) -> None:
    """Calls that wait fail with RemoteProtocolError, the connection is dropped, and the next one is made."""
    rig = Rig()
    peer = rig.connect()
    again: list[Deferred[bytes]] = []
    calls = [rig.client.echo(b"1"), rig.client.echo(b"2")]

    def try_again(failure: Failure) -> Failure:
        again.append(rig.client.echo(b"again"))
        return failure

    calls[0].addErrback(try_again)
    peer.taken()
    peer.send_bytes(garbage)
    for call in calls:
        error = result(call)
        assert isinstance(error, RemoteProtocolError)
        assert "127.0.0.1:4730" in str(error)
    assert peer.is_closing()
    assert peer.taken() == []
    peer.send(P.ECHO_RES, b"again")
    peer.lose()
    rig.reactor.advance(0)
    second = rig.server.accept()
    assert second.taken() == [OPTION, Packet(P.ECHO_REQ, [b"again"])]
    second.send(P.OPTION_RES, b"exceptions")
    second.send(P.ECHO_RES, b"again")
    assert result(again[0]) == b"again"


def test_cancelled_before_the_connection_is_never_sent() -> None:
    """A call that is cancelled while it waits for the connection is forgotten."""
    rig = Rig()
    first, second = rig.client.submit("f"), rig.client.echo(b"2")
    first.cancel()
    assert isinstance(result(first), CancelledError)
    assert rig.server.accept().taken() == [OPTION, Packet(P.ECHO_REQ, [b"2"])]
    second.cancel()
    assert isinstance(result(second), CancelledError)


@pytest.mark.parametrize("packets_before", range(4))
def test_cancelled_job_does_not_disturb_others(packets_before: int) -> None:
    """Wherever a job is when it is cancelled, what comes for it goes to nobody."""
    rig = Rig()
    peer = rig.connect()
    job, other = rig.client.submit("f"), rig.client.submit("f")
    packets = [
        response(P.JOB_CREATED, b"H:1"),
        response(P.WORK_DATA, b"H:1", b"x"),
        response(P.WORK_STATUS, b"H:1", b"1", b"2"),
        response(P.JOB_CREATED, b"H:2") + response(P.WORK_COMPLETE, b"H:1", b"dropped"),
    ]
    for packet in packets[:packets_before]:
        peer.send_bytes(packet)
    job.cancel()
    assert isinstance(result(job), CancelledError)
    for packet in packets[packets_before:]:
        peer.send_bytes(packet)
    peer.send(P.WORK_COMPLETE, b"H:2", b"taken")
    assert result(other) == b"taken"


def test_cancelled_from_a_callback_in_the_same_read() -> None:
    """A call that is cancelled by another's callback hears nothing of what was read with it."""
    rig = Rig()
    peer = rig.connect()
    told: list[bytes] = []
    second: Deferred[bytes]
    first = rig.client.submit("f", on_created=lambda _: second.cancel())
    second = rig.client.submit("f", on_created=told.append)
    peer.send_bytes(response(P.JOB_CREATED, b"H:1") + response(P.JOB_CREATED, b"H:2"))
    assert isinstance(result(second), CancelledError)
    assert told == []
    peer.send(P.WORK_COMPLETE, b"H:1", b"done")
    assert result(first) == b"done"


def test_cancelled_from_its_own_callback() -> None:
    """A callback may cancel its own call, and may raise afterwards, without harm to others."""
    rig = Rig()
    peer = rig.connect()

    def stop(_data: bytes) -> None:
        job.cancel()
        raise ZeroDivisionError

    job = rig.client.submit("f", on_data=stop)
    other = rig.client.echo(b"x")
    peer.send(P.JOB_CREATED, b"H:1")
    peer.send_bytes(response(P.WORK_DATA, b"H:1", b"") + response(P.ECHO_RES, b"x"))
    assert isinstance(result(job), CancelledError)
    assert result(other) == b"x"


def test_connection_that_fails_at_once_is_told() -> None:
    """An endpoint that fails before it returns fails the call that made it connect."""
    reactor = memory_reactor()
    client = GearmanClient(DeadEndpoint(), reactor=reactor)
    for _ in range(2):
        error = result(client.echo(b""))
        assert isinstance(error, NoServers)
        assert "at once" in str(error)
    result(client.close())
    assert reactor.getDelayedCalls() == []


def test_timeout_is_a_cancellation() -> None:
    """A call can be given a time limit."""
    rig = Rig()
    peer = rig.connect()
    job, other = rig.client.submit("f").addTimeout(5, rig.reactor), rig.client.echo(b"x")
    rig.reactor.advance(5)
    assert isinstance(result(job), defer.TimeoutError)
    peer.send(P.JOB_CREATED, b"H:1")
    peer.send(P.ECHO_RES, b"x")
    assert result(other) == b"x"


def test_coalesced_jobs_share_their_result() -> None:
    """Submits with one unique on one connection all fire with the result of the one job."""
    rig = Rig()
    peer = rig.connect()
    jobs = [rig.client.submit("f", unique=b"u") for _ in range(2)]
    for packet in [
        response(P.JOB_CREATED, b"H:1"),
        response(P.WORK_DATA, b"H:1", b"a"),
        response(P.WORK_COMPLETE, b"H:1", b"b"),
    ]:
        peer.send_bytes(packet * 2)
    assert [result(job) for job in jobs] == [b"ab", b"ab"]


def test_calls_from_callbacks_go_out_in_one_write() -> None:
    """What is submitted while results come in is sent together."""
    rig = Rig()
    peer = rig.connect()
    for _ in range(3):
        rig.client.echo(b"x").addCallback(lambda _: rig.client.echo(b"y"))
    before = peer.transport.writes
    peer.send_bytes(response(P.ECHO_RES, b"x") * 3)
    assert peer.transport.writes == before + 1


def test_closed_client_fails_what_waits_and_refuses_calls() -> None:
    """Closing fails calls with and without a connection, and a closed client does not connect again."""
    rig = Rig()
    waiting = rig.client.submit("f")
    closed = rig.client.close()
    assert isinstance(result(waiting), NoServers)
    assert isinstance(result(rig.client.echo(b"")), NoServers)
    assert result(closed) is None
    rig = Rig()
    peer = rig.connect()
    job = rig.client.submit("f")
    closed = rig.client.close()
    assert peer.is_closing()
    peer.lose()
    assert isinstance(result(job), ConnectionLost)
    assert result(closed) is None
    assert rig.reactor.getDelayedCalls() == []
    rig.client.startService()
    assert rig.server.attempts == 1


def test_close_before_use_is_fine() -> None:
    """A client that was never used has nothing to close."""
    assert result(Rig().client.close()) is None


@pytest_twisted.async_yield_fixture
async def client(gearmand: Gearmand, no_calls_left: None) -> AsyncIterator[GearmanClient]:
    """A client of a real gearmand."""
    async with GearmanClient(gearmand.address) as made:
        yield made


@pytest_twisted.ensureDeferred
async def test_debian_worker_counts_for_us(gearmand: Gearmand, client: GearmanClient) -> None:
    """Our client has Debian's worker run a command, through gearmand."""
    gearmand.start_worker("-f", "wc", "--", "wc", "-c")
    created: list[bytes] = []
    assert (await client.submit("wc", b"x" * 1234, on_created=created.append)).split() == [b"1234"]
    assert len(created) == 1
    assert await client.status(created[0]) == JobStatus(False, False, 0, 0)


@pytest_twisted.ensureDeferred
async def test_debian_worker_fails_for_us(gearmand: Gearmand, client: GearmanClient) -> None:
    """A command that fails is a job that fails."""
    gearmand.start_worker("-f", "no", "--", "false")
    with pytest.raises(JobFailed):
        await client.submit("no", b"x")


@pytest_twisted.ensureDeferred
async def test_large_and_many_jobs(gearmand: Gearmand, client: GearmanClient) -> None:
    """A large workload, and many jobs at once, come back whole and to whom they belong."""
    gearmand.start_worker("-f", "echo", "--", "cat")
    workloads = [b"%d" % number for number in range(50)]
    assert await gatherResults([client.submit("echo", workload) for workload in workloads]) == workloads
    large = bytes(range(256)) * 4096
    assert await client.echo(large) == large


@pytest_twisted.ensureDeferred
async def test_coalesced_jobs_through_gearmand(gearmand: Gearmand, client: GearmanClient) -> None:
    """Each of the submits that share a unique gets one of the copies that gearmand sends."""
    jobs = [client.submit("wc", b"12345", unique=b"u") for _ in range(3)]
    status = await client.status_by_unique(b"u")
    assert status == JobStatus(True, False, 0, 0, 3)
    gearmand.start_worker("-f", "wc", "--", "wc", "-c")
    assert [answer.strip() for answer in await gatherResults(jobs)] == [b"5"] * 3
    assert await client.echo(b"in step") == b"in step"


@pytest_twisted.ensureDeferred
async def test_background_jobs_through_gearmand(gearmand: Gearmand, client: GearmanClient) -> None:
    """Background and scheduled jobs are known by their handles."""
    handle = await client.submit_background("later", b"x", unique=b"u")
    assert await client.status(handle) == JobStatus(True, False, 0, 0)
    when = datetime.now(timezone.utc) + timedelta(hours=1)
    assert (await client.status(await client.submit_at("later", b"x", when))).is_known


@pytest_twisted.ensureDeferred
async def test_refused_submit_through_gearmand(client: GearmanClient) -> None:
    """An option that gearmand does not know is refused with its words, and the connection goes on."""
    with pytest.raises(ServerError) as caught:
        await client.set_option("nonsense")
    assert caught.value.code == "UNKNOWN_OPTION"
    assert await client.echo(b"x") == b"x"


@pytest_twisted.ensureDeferred
async def test_client_survives_a_restart_of_gearmand(gearmand: Gearmand, client: GearmanClient) -> None:
    """A lost job and a dead server are reported at once, and the new server is used when it is there."""
    job = client.submit("nobody", b"")
    assert await client.echo(b"x") == b"x"
    gearmand.end()
    with pytest.raises(ConnectionLost):
        await job
    with pytest.raises(NoServers, match=gearmand.address):
        await client.echo(b"x")
    gearmand.start()
    assert await client.echo(b"x") == b"x"
