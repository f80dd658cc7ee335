"""The admin client, on both event loops: over a connection in memory, and with our server and Debian's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gearman_twisted.client import ConnectionInfo, FunctionStatus, JobInfo, PriorityStatus, ScheduledJob
from gearman_twisted.errors import (
    ConfigError,
    ConnectionLost,
    LocalProtocolError,
    NoServers,
    RemoteProtocolError,
    ServerError,
)
from gearman_twisted.wire.constants import PacketType
from tests.kit.client_rig import Calls
from tests.kit.gearmand import Gearmand
from tests.kit.loops import MemoryPlace, Outcome, RealLoop, TestLoop, in_real_loop
from tests.kit.servers import PATIENCE, TwistdGearman, WirePeer

pytestmark = pytest.mark.usefixtures("no_calls_left")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwistdGearman]:
    with TwistdGearman(tmp_path_factory.mktemp("server"), "--store=memory:") as server:
        yield server


@pytest.fixture(params=["ours", "gearmand"])
def port(request: pytest.FixtureRequest) -> int:
    """The port of our server, then that of Debian's."""
    return int(request.getfixturevalue(request.param).port)


class Rig:
    """A client of a server in memory."""

    def __init__(self, loop: TestLoop) -> None:
        self.loop = loop
        self.server = MemoryPlace(loop, "memory:4730")
        self.client = loop.face("client.admin").AdminClient(self.server, **loop.options)
        self.calls = Calls(loop, self.client)


@pytest.fixture
def rig(loop: TestLoop) -> Iterator[Rig]:
    """A client whose server says what the test wants."""
    rig = Rig(loop)
    yield rig
    closed = rig.calls.close()
    for connection in rig.server.connections:
        if connection.is_closing and not connection.is_lost:
            connection.lose()
    assert closed.end() is None


def client_of(real: RealLoop, port: int) -> Any:
    """A client of a server."""
    return real.face("client.admin").AdminClient(f"127.0.0.1:{port}")


@in_real_loop
async def test_tables(real: RealLoop, port: int) -> None:
    """Each list of a server becomes objects with its columns."""
    with WirePeer(port) as peer:
        peer.send(PacketType.SET_CLIENT_ID, b"me")
        peer.send(PacketType.CAN_DO, b"offered")
        created = peer.ask(PacketType.SUBMIT_JOB_HIGH_BG, b"queued", b"unique", b"data")
        assert created is not None
        handle = created.args[0]
        async with client_of(real, port) as client:
            assert FunctionStatus(b"queued", 1, 0, 0) in await client.status()
            assert FunctionStatus(b"offered", 0, 0, 1) in await client.status()
            assert PriorityStatus(b"queued", 1, 0, 0, 0) in await client.priority_status()
            assert JobInfo(handle, 0, False, True) in await client.show_jobs()
            assert b"unique" in await client.show_unique_jobs()
            found = {info.client_id: info for info in await client.workers()}
            assert found[b"me"] == ConnectionInfo(found[b"me"].number, "127.0.0.1", b"me", (b"offered",))
            assert found[b"-"].functions == ()
            await client.cancel(handle)
            # gearmand keeps it until a worker asks for it.
            assert all(job.is_ignored for job in await client.show_jobs())


@in_real_loop
async def test_values_and_changes(real: RealLoop, port: int) -> None:
    """Single values come as such, and changes as None."""
    async with client_of(real, port) as client:
        assert await client.getpid() > 1
        assert (await client.version())[0].isdigit()
        assert (await client.verbose()).isupper()
        assert await client.create_function("grün") is None
        await client.max_queue("grün", 1, 2, 3)
        await client.max_queue("grün")
        assert "grün".encode() in {function.name for function in await client.status()}
        await client.drop_function("grün")
        assert "grün".encode() not in {function.name for function in await client.status()}


@in_real_loop
async def test_jobs_that_wait_for_their_time(real: RealLoop, ours: TwistdGearman) -> None:
    """Scheduled and recurring jobs are listed with names of days, and cancelled by unique."""
    with WirePeer(ours.port) as peer:
        once = peer.ask(PacketType.SUBMIT_JOB_EPOCH, b"later", b"mine", b"4000000000", b"w")
        fields = (b"30", b"6", b"*", b"*", b"0-4")
        each = peer.ask(PacketType.SUBMIT_JOB_SCHED, b"report", b"name", *fields, b"w")
        assert once is not None
        assert each is not None
    async with client_of(real, ours.port) as client:
        assert await client.ready() is True
        first, second = await client.show_scheduled()
        assert first == ScheduledJob(once.args[0], b"later", b"mine", 4_000_000_000, None)
        assert second == ScheduledJob(each.args[0], b"report", b"name", second.due, "30 6 * * mon-fri")
        assert second.due % 86_400 == 6 * 3600 + 30 * 60
        await client.cancel_unique("later", "mine")
        await client.cancel_unique(b"report", b"name")
        assert await client.show_scheduled() == []
        with pytest.raises(ServerError, match="UNKNOWN_JOB"):
            await client.cancel_unique("report", "name")


@in_real_loop
async def test_commands_that_gearmand_does_not_know(real: RealLoop, gearmand: Gearmand) -> None:
    """The refusal names the command; so does that of our server for a shutdown that is not allowed."""
    async with client_of(real, gearmand.port) as client:
        for ask, command in (
            (client.ready, "ready"),
            (client.show_scheduled, "show scheduled"),
            (lambda: client.cancel_unique("f", "u"), "cancel unique f u"),
            (client.shutdown, "shutdown"),
        ):
            with pytest.raises(ServerError, match=f"the command '{command}'") as refused:
                await ask()
            assert refused.value.code.startswith("UNKNOWN_")


@pytest.mark.parametrize("graceful", [False, True])
@in_real_loop
async def test_shutdown(real: RealLoop, tmp_path: Path, graceful: bool) -> None:
    """A server that allows it is ended; with graceful once the last connection has no job."""
    with TwistdGearman(tmp_path, "--store=memory:", "--allow-shutdown") as server:
        async with client_of(real, server.port) as client:
            await client.shutdown(graceful=graceful)
        assert server.process.wait(PATIENCE) == 0


def test_a_server_that_loads(rig: Rig) -> None:
    """A server that reads its stored jobs is not ready."""
    asked = rig.calls.ready()
    rig.server.accept().send(b"ERR LOADING The+stored+jobs+are+being+read,+7+so+far\r\n")
    assert asked.end() is False


@in_real_loop
async def test_pipelined_commands_are_answered_in_order(real: RealLoop, port: int) -> None:
    """Commands that are given at once have their own answers, also around an error."""
    async with client_of(real, port) as client:
        await client.create_function("there")
        lines = ("version", "status", "nonsense", b"SHOW JOBS", "getpid")
        asked = [real.start(client.command(line)) for line in lines]
        version, status, nonsense, jobs, pid = [await reply for reply in asked]
    assert version.startswith(b"OK ")
    assert status.endswith(b"\n.\n")
    assert nonsense == b"ERR UNKNOWN_COMMAND Unknown+server+commandnonsense\r\n"
    assert jobs == b".\n"
    assert int(pid.removeprefix(b"OK ")) > 1


@in_real_loop
async def test_refusals_are_server_errors(real: RealLoop, port: int) -> None:
    """A command that the server refuses fails with its code, where it has one, and its text."""
    async with client_of(real, port) as client:
        with pytest.raises(ServerError) as unknown:
            await client.cancel(b"H:unknown:1")
        assert unknown.value.code == "UNKNOWN_JOB"
        with pytest.raises(ServerError) as refused:
            await client.drop_function("unknown")
        assert (refused.value.code, refused.value.text) == ("ERR", "function not found")


@in_real_loop
async def test_refused_connection_names_the_server(real: RealLoop) -> None:
    """Without a server all commands fail with NoServers, which says where it should be."""
    client = client_of(real, 1)
    for ask in (client.status, client.version):
        with pytest.raises(NoServers, match=r"cannot connect to 127\.0\.0\.1:1"):
            await ask()
    await client.close()


def test_replies_may_come_in_any_pieces(rig: Rig) -> None:
    """An answer is complete when its last byte is there, not when the server pauses."""
    assert rig.server.attempts == []
    answers = [rig.calls.status(), rig.calls.version(), rig.calls.show_jobs()]
    server = rig.server.accept()
    assert server.take() == b"status\r\nversion\r\nshow jobs\r\n"
    for byte in b"a.\t0\t0\t0\nb\t1\t2\t3\n.\nOK 1.0\n.\n":
        server.send(bytes([byte]))
    assert [answer.end() for answer in answers] == [
        [FunctionStatus(b"a.", 0, 0, 0), FunctionStatus(b"b", 1, 2, 3)],
        "1.0",
        [],
    ]


def test_lost_connection_fails_what_waits(rig: Rig) -> None:
    """When the connection is lost all that waits fails, and the next command connects again."""
    waiting = [rig.calls.status(), rig.calls.command("version")]
    rig.server.accept().lose()
    for each in waiting:
        error = each.end()
        assert isinstance(error, ConnectionLost)
        assert rig.client.server_name in str(error)
    again = rig.calls.version()
    rig.server.accept().send(b"OK again\n")
    assert again.end() == "again"


def test_reply_that_nobody_asked_for(rig: Rig) -> None:
    """A server that sends more than was asked for is given up, and the next command connects again."""
    first = rig.calls.version()
    server = rig.server.accept()
    server.send(b"OK 1\nOK 2\n")
    assert first.end() == "1"
    assert server.is_aborted
    second = rig.calls.version()
    rig.server.accept().send(b"OK 3\n")
    assert second.end() == "3"


def test_endless_line_is_given_up(rig: Rig) -> None:
    """A server whose reply has a line without end is given up before it fills the memory."""
    version, status = rig.calls.version(), rig.calls.status()
    server = rig.server.accept()
    for _ in range(17):
        server.send(b"x" * (1 << 20))
    for waiting in (version, status):
        error = waiting.end()
        assert isinstance(error, RemoteProtocolError)
        assert "a line of more than 16777216 bytes" in str(error)
    assert server.is_aborted


def test_cancelled_command_keeps_its_place(rig: Rig) -> None:
    """The answer to a cancelled command is not taken for that of the next."""
    cancelled, next_one, last = rig.calls.version(), rig.calls.verbose(), rig.calls.command("getpid")
    cancelled.cancel()
    server = rig.server.accept()
    assert server.take() == b"version\r\nverbose\r\ngetpid\r\n"
    last.cancel()
    server.send(b"OK first\nOK second\nOK third\n")
    assert next_one.end() == "second"
    assert isinstance(cancelled.end(), rig.loop.runtime.cancelled)


@pytest.mark.parametrize(
    ("ask", "reply"),
    [
        (lambda calls: calls.status(), b"a\t1\n.\n"),
        (lambda calls: calls.status(), b"a\tx\ty\tz\n.\n"),
        (lambda calls: calls.workers(), b"1 ::1\n.\n"),
        (lambda calls: calls.getpid(), b"OK many\n"),
        (lambda calls: calls.show_scheduled(), b"H:1\tf\tu\tsoon\t-\n.\n"),
        (lambda calls: calls.create_function("f"), b"HTTP/1.1 400 Bad Request\r\n"),
        (lambda calls: calls.cancel(b"H:1"), b"\n"),
    ],
)
def test_nonsense_is_a_protocol_error(rig: Rig, ask: Callable[[Calls], Outcome], reply: bytes) -> None:
    """An answer that cannot be read fails its command only."""
    asked, next_one = ask(rig.calls), rig.calls.version()
    rig.server.accept().send(reply + b"OK good\n")
    assert isinstance(asked.end(), RemoteProtocolError)
    assert next_one.end() == "good"


def test_workers_with_odd_peers(rig: Rig) -> None:
    """Addresses with colons and ids with blanks are read as they are meant."""
    asked = rig.calls.workers()
    rig.server.accept().send(b"7 ::1 an id : f g\n8 - - :\n.\n")
    assert asked.end() == [
        ConnectionInfo(7, "::1", b"an id", (b"f", b"g")),
        ConnectionInfo(8, "-", b"-", ()),
    ]


def test_commands_that_cannot_be_sent(rig: Rig) -> None:
    """What would be another command, or another name, for the server is not sent at all."""
    for refused in (
        rig.calls.command("status\nversion"),
        rig.calls.command(b"x" * 8191),
        rig.calls.create_function("two words"),
        rig.calls.cancel(b""),
        rig.calls.cancel_unique("f", "two words"),
        rig.calls.max_queue("f", 1, 2),
        rig.calls.max_queue("f", 1, 2, 3, 4),
        *(rig.calls.max_queue("f", limit) for limit in ("x", -1, None, 1.5, True, 10**18)),
    ):
        assert isinstance(refused.end(), LocalProtocolError)
    assert rig.server.attempts == []


def test_close_fails_what_waits(rig: Rig) -> None:
    """Closing fails what waits, with and without a connection; what is asked later connects again."""
    waiting = rig.calls.version()
    assert rig.calls.close().end() is None
    assert isinstance(waiting.end(), NoServers)
    sent = rig.calls.version()
    server = rig.server.accept()
    closed = rig.calls.close()
    assert server.is_closing
    later = rig.calls.version()
    server.lose()
    assert closed.end() is None
    assert isinstance(sent.end(), ConnectionLost)
    rig.server.accept().send(b"OK later\n")
    assert later.end() == "later"


def test_close_does_not_wait_for_ever(rig: Rig) -> None:
    """A server that does not take what was sent to it is not waited for longer than five seconds."""
    rig.calls.version()
    server = rig.server.accept()
    closed = rig.calls.close()
    rig.loop.advance(5)
    assert server.is_aborted
    assert closed.end() is None


def test_addresses_that_make_no_sense(loop: TestLoop) -> None:
    """An address is checked when the client is made."""
    with pytest.raises(ConfigError):
        loop.face("client.admin").AdminClient("host:port", **loop.options)
