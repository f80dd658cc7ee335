"""The admin client: over a connection in memory, and against our server and Debian's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport

from gearman_twisted.client.admin import AdminClient, ConnectionInfo, FunctionStatus, JobInfo, PriorityStatus
from gearman_twisted.errors import (
    ConnectionLost,
    LocalProtocolError,
    NoServers,
    RemoteProtocolError,
    ServerError,
)
from gearman_twisted.wire.constants import PacketType
from tests.kit.servers import TwistdGearman, WirePeer

pytestmark = pytest.mark.usefixtures("no_calls_left")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwistdGearman]:
    with TwistdGearman(tmp_path_factory.mktemp("server"), "--store=memory:") as server:
        yield server


@pytest.fixture(params=["ours", "gearmand"])
def port(request: pytest.FixtureRequest) -> int:
    """The port of our server, then that of Debian's."""
    return int(request.getfixturevalue(request.param).port)


class ScriptedServer(Protocol):
    """A server whose answers are given by the test.

    Attributes:
        received: all that came.
    """

    transport: Any

    def __init__(self) -> None:
        self.received = b""
        self._waiting: list[tuple[int, Deferred[None]]] = []

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        for wanted, waiting in list(self._waiting):
            if self.received.count(b"\n") >= wanted:
                self._waiting.remove((wanted, waiting))
                waiting.callback(None)

    def lines(self, wanted: int) -> Deferred[None]:
        """Fires when so many lines have come in all."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append((wanted, waiting))
        self.dataReceived(b"")
        return waiting


class Rig:
    """A scripted server and a client for it."""

    def __init__(self) -> None:
        from twisted.internet import reactor as installed

        reactor: Any = installed
        self._accepted: list[ScriptedServer] = []
        self._waiting: list[Deferred[ScriptedServer]] = []
        self.port = reactor.listenTCP(0, Factory.forProtocol(self._build), interface="127.0.0.1")
        self.client = AdminClient(f"127.0.0.1:{self.port.getHost().port}")

    def _build(self) -> ScriptedServer:
        server = ScriptedServer()
        self._accepted.append(server)
        if self._waiting:
            self._waiting.pop().callback(self._accepted.pop())
        return server

    def accept(self) -> Deferred[ScriptedServer]:
        """Fires with the next connection."""
        waiting: Deferred[ScriptedServer] = Deferred()
        if self._accepted:
            waiting.callback(self._accepted.pop())
        else:
            self._waiting.append(waiting)
        return waiting


@pytest_twisted.async_yield_fixture
async def rig() -> AsyncIterator[Rig]:
    """A client and a server that says what the test wants."""
    rig = Rig()
    yield rig
    await rig.client.close()
    await rig.port.stopListening()


async def failure_of(deferred: Deferred[Any]) -> Exception:
    """The exception that a Deferred fails with."""
    try:
        await deferred
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return error
    raise AssertionError("it did not fail")


@pytest_twisted.ensureDeferred
async def test_tables(port: int) -> None:
    """Each list of a server becomes objects with its columns."""
    with WirePeer(port) as peer:
        peer.send(PacketType.SET_CLIENT_ID, b"me")
        peer.send(PacketType.CAN_DO, b"offered")
        created = peer.ask(PacketType.SUBMIT_JOB_HIGH_BG, b"queued", b"unique", b"data")
        assert created is not None
        async with AdminClient(f"127.0.0.1:{port}") as client:
            assert FunctionStatus(b"queued", 1, 0, 0) in await client.status()
            assert FunctionStatus(b"offered", 0, 0, 1) in await client.status()
            assert PriorityStatus(b"queued", 1, 0, 0, 0) in await client.priority_status()
            assert await client.show_jobs() == [JobInfo(created.args[0], 0, False, True)]
            found = {info.client_id: info for info in await client.workers()}
            assert found[b"me"] == ConnectionInfo(found[b"me"].number, "127.0.0.1", b"me", (b"offered",))
            assert found[b"-"].functions == ()
            await client.cancel(created.args[0])
            # gearmand keeps it until a worker asks for it.
            assert all(job.is_ignored for job in await client.show_jobs())


@pytest_twisted.ensureDeferred
async def test_values_and_changes(port: int) -> None:
    """Single values come as such, and changes as None."""
    async with AdminClient(f"127.0.0.1:{port}") as client:
        assert await client.getpid() > 1
        assert (await client.version())[0].isdigit()
        assert (await client.verbose()).isupper()
        await client.create_function("grün")
        await client.max_queue("grün", 1, 2, 3)
        await client.max_queue("grün")
        assert "grün".encode() in {function.name for function in await client.status()}
        await client.drop_function("grün")
        assert "grün".encode() not in {function.name for function in await client.status()}


@pytest_twisted.ensureDeferred
async def test_pipelined_commands_are_answered_in_order(port: int) -> None:
    """Commands that are given at once have their own answers, also around an error."""
    async with AdminClient(f"127.0.0.1:{port}") as client:
        await client.create_function("there")
        asked = [client.command(line) for line in ("version", "status", "nonsense", b"SHOW JOBS", "getpid")]
        version, status, nonsense, jobs, pid = [await reply for reply in asked]
    assert version.startswith(b"OK ")
    assert status.endswith(b"\n.\n")
    assert nonsense == b"ERR UNKNOWN_COMMAND Unknown+server+commandnonsense\r\n"
    assert jobs == b".\n"
    assert int(pid.removeprefix(b"OK ")) > 1


@pytest_twisted.ensureDeferred
async def test_refusals_are_server_errors(port: int) -> None:
    """A command that the server refuses fails with its code, where it has one, and its text."""
    async with AdminClient(f"127.0.0.1:{port}") as client:
        error = await failure_of(client.cancel(b"H:unknown:1"))
        assert isinstance(error, ServerError)
        assert error.code == "UNKNOWN_JOB"
        error = await failure_of(client.drop_function("unknown"))
        assert isinstance(error, ServerError)
        assert (error.code, error.text) == ("ERR", "function not found")


def test_replies_may_come_in_any_pieces() -> None:
    """An answer is complete when its last byte is there, not when the server pauses."""
    reactor = MemoryReactorClock()
    client = AdminClient("127.0.0.1:4730", reactor=reactor)
    answers: list[object] = []
    for asked in (client.status(), client.version(), client.show_jobs()):
        asked.addCallback(answers.append)
    transport = StringTransport()
    protocol = reactor.tcpClients[0][2].buildProtocol(None)
    assert protocol is not None
    protocol.makeConnection(transport)
    assert transport.value() == b"status\r\nversion\r\nshow jobs\r\n"
    for byte in b"a.\t0\t0\t0\nb\t1\t2\t3\n.\nOK 1.0\n.\n":
        protocol.dataReceived(bytes([byte]))
    assert answers == [[FunctionStatus(b"a.", 0, 0, 0), FunctionStatus(b"b", 1, 2, 3)], "1.0", []]


@pytest_twisted.ensureDeferred
async def test_lost_connection_fails_what_waits(rig: Rig) -> None:
    """When the connection is lost all that waits fails, and the next command connects again."""
    waiting: list[Deferred[Any]] = [rig.client.status(), rig.client.command("version")]
    server = await rig.accept()
    await server.lines(2)
    server.transport.loseConnection()
    for deferred in waiting:
        error = await failure_of(deferred)
        assert isinstance(error, ConnectionLost)
        assert rig.client.server_name in str(error)
    again = rig.client.version()
    server = await rig.accept()
    await server.lines(1)
    server.transport.write(b"OK again\n")
    assert await again == "again"


@pytest_twisted.ensureDeferred
async def test_cancelled_command_keeps_its_place(rig: Rig) -> None:
    """The answer to a cancelled command is not taken for that of the next."""
    cancelled, next_one = rig.client.version(), rig.client.verbose()
    cancelled.addErrback(lambda _: None)
    cancelled.cancel()
    server = await rig.accept()
    await server.lines(2)
    server.transport.write(b"OK first\nOK second\n")
    assert await next_one == "second"


@pytest.mark.parametrize(
    ("ask", "reply"),
    [
        (AdminClient.status, b"a\t1\n.\n"),
        (AdminClient.status, b"a\tx\ty\tz\n.\n"),
        (AdminClient.workers, b"1 ::1\n.\n"),
        (AdminClient.getpid, b"OK many\n"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_nonsense_is_a_protocol_error(
    rig: Rig, ask: Callable[[AdminClient], Deferred[Any]], reply: bytes
) -> None:
    """An answer that cannot be read fails its command only."""
    asked, next_one = ask(rig.client), rig.client.version()
    server = await rig.accept()
    await server.lines(2)
    server.transport.write(reply + b"OK good\n")
    assert isinstance(await failure_of(asked), RemoteProtocolError)
    assert await next_one == "good"


@pytest_twisted.ensureDeferred
async def test_workers_with_odd_peers(rig: Rig) -> None:
    """Addresses with colons and ids with blanks are read as they are meant."""
    asked = rig.client.workers()
    server = await rig.accept()
    await server.lines(1)
    server.transport.write(b"7 ::1 an id : f g\n8 - - :\n.\n")
    assert await asked == [
        ConnectionInfo(7, "::1", b"an id", (b"f", b"g")),
        ConnectionInfo(8, "-", b"-", ()),
    ]


@pytest_twisted.ensureDeferred
async def test_refused_connection_names_the_server() -> None:
    """Without a server all commands fail with NoServers, which says where it should be."""
    client = AdminClient("127.0.0.1:1")
    for deferred in (client.status(), client.version()):
        error = await failure_of(deferred)
        assert isinstance(error, NoServers)
        assert "127.0.0.1:1" in str(error)
    await client.close()


@pytest_twisted.ensureDeferred
async def test_commands_that_cannot_be_sent() -> None:
    """What would be another command, or another name, for the server is not sent at all."""
    client = AdminClient("127.0.0.1:1")
    for deferred in (
        client.command("status\nversion"),
        client.command(b"x" * 8191),
        client.create_function("two words"),
        client.cancel(b""),
    ):
        assert isinstance(await failure_of(deferred), LocalProtocolError)
