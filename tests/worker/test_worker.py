from __future__ import annotations

import os
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, formatEvent

from gearman_twisted import GearmanClient, GearmanWorker
from gearman_twisted.errors import ConfigError, JobException, JobFailed, LocalProtocolError
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from gearman_twisted.worker import Job
from tests.kit.gearmand import Gearmand
from tests.kit.peers import memory_reactor
from tests.kit.worker_rig import GRAB, Rig, assign, complete, log_warnings

P = PacketType


logged = pytest.fixture(log_warnings)


def test_worker_offers_its_functions_and_does_a_job() -> None:
    """Id and functions are told when connected; a result and the next grab are one write."""
    rig = Rig(client_id="me")

    @rig.worker.function("reverse", timeout=1.5)
    def reverse(job: Job) -> bytes:
        assert (job.function, job.handle, job.unique) == (b"reverse", b"H:1", b"u")
        return job.workload[::-1]

    assert reverse.__name__ == "reverse"
    rig.worker.startService()
    peer = rig.server.accept()
    assert peer.taken() == [
        Packet(P.SET_CLIENT_ID, [b"me"]),
        Packet(P.CAN_DO, [b"wait"]),
        Packet(P.CAN_DO_TIMEOUT, [b"reverse", b"6500"]),
        GRAB,
    ]
    before = peer.transport.writes
    assert assign(peer, b"reverse") == [complete(b"H:1", b"cba"), GRAB]
    assert peer.transport.writes == before + 1


def test_functions_may_wait() -> None:
    """Deferreds and coroutines end their jobs when they have a result, in any order."""
    rig = Rig(concurrency=3)

    async def slow(job: Job) -> bytes:
        return b"slow " + bytes(await rig.wait(job))

    rig.worker.register("slow", slow)
    peer = rig.connect()
    assert assign(peer, b"wait", b"H:1") == [GRAB]
    assert assign(peer, b"slow", b"H:2") == [GRAB]
    assert assign(peer, b"wait", b"H:3") == []
    rig.pending[1][1].callback(b"two")
    assert peer.taken() == [complete(b"H:2", b"slow two"), GRAB]
    rig.pending[0][1].callback(None)
    assert peer.taken() == [complete(b"H:1", b"")]


def test_job_tells_of_itself_on_the_way() -> None:
    """Data, warnings and progress go to the server at once, and nothing after the end."""
    rig = Rig()
    peer = rig.connect()
    assign(peer, b"wait")
    job, done = rig.pending[0]
    job.send_data(b"d")
    job.send_warning(b"w")
    job.send_status(1, 2)
    assert peer.taken() == [
        Packet(P.WORK_DATA, [b"H:1", b"d"]),
        Packet(P.WORK_WARNING, [b"H:1", b"w"]),
        Packet(P.WORK_STATUS, [b"H:1", b"1", b"2"]),
    ]
    wrong: Any = "text"
    with pytest.raises(TypeError, match="bytes"):
        job.send_data(wrong)
    with pytest.raises(TypeError, match="bytes"):
        job.send_warning(wrong)
    with pytest.raises(LocalProtocolError):
        job.send_status(-1, 2)
    done.callback(b"")
    peer.taken()
    job.send_data(b"late")
    job.send_warning(b"late")
    job.send_status(2, 2)
    assert peer.taken() == []


@pytest.mark.parametrize(
    ("outcome", "data"),
    [
        (ValueError("no \udcff"), b"ValueError: no \\udcff"),
        (SystemExit(3), b"SystemExit: 3"),
        (JobException(b"\xff\0", function=b"f"), b"\xff\0"),
        ("text", b"TypeError: a worker function returns bytes or None, not str"),
        (7, b"TypeError: a worker function returns bytes or None, not int"),
    ],
)
@pytest.mark.parametrize("is_late", [False, True])
def test_function_that_fails(outcome: object, data: bytes, is_late: bool, logged: list[LogEvent]) -> None:
    """What a function raises, and a result that is none, is told as an exception and logged once."""
    rig = Rig()

    def fail(_job: Job) -> Any:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    rig.worker.register("f", (lambda job: rig.wait(job).addCallback(fail)) if is_late else fail)
    peer = rig.connect()
    ended = [Packet(P.WORK_EXCEPTION, [b"H:1", data]), Packet(P.WORK_FAIL, [b"H:1"]), GRAB]
    sent = assign(peer)
    if is_late:
        assert sent == []
        rig.pending[0][1].callback(None)
        sent = peer.taken()
    assert sent == ended
    assert len(logged) == 1
    assert "H:1" in str(formatEvent(logged[0]))
    # What gearmand says of the WORK_FAIL is no news.
    peer.send(P.ERROR, b"JOB_NOT_FOUND", b"Job given in work result not found")
    assert len(logged) == 1
    assert assign(peer, b"wait", b"H:2") == []


def test_function_that_gives_up(logged: list[LogEvent]) -> None:
    """JobFailed fails the job without an exception and without noise."""
    rig = Rig()

    @rig.worker.function("f")
    def give_up(job: Job) -> bytes:
        raise JobFailed("not today", function=job.function, handle=job.handle)

    peer = rig.connect()
    assert assign(peer) == [Packet(P.WORK_FAIL, [b"H:1"]), GRAB]
    assert logged == []


def test_unknown_function_fails() -> None:
    """A job that was not asked for fails, and the worker goes on."""
    peer = Rig().connect()
    assert assign(peer, b"nonsense") == [Packet(P.WORK_FAIL, [b"H:1"]), GRAB]


def test_functions_come_and_go_while_running() -> None:
    """A running worker tells its server what changes; a job that was on its way is still done."""
    rig = Rig()
    peer = rig.connect()
    rig.worker.register("f", lambda job: job.workload)
    assert peer.taken() == [Packet(P.CAN_DO, [b"f"])]
    rig.worker.unregister("f")
    rig.worker.unregister("never registered")
    assert peer.taken() == []
    assert assign(peer) == [complete(b"H:1", b"abc"), Packet(P.CANT_DO, [b"f"]), GRAB]
    peer.lose()
    rig.reactor.advance(5)
    assert rig.server.accept().taken() == [Packet(P.CAN_DO, [b"wait"]), GRAB]


def test_lost_connection_lets_functions_end(logged: list[LogEvent]) -> None:
    """A function whose connection is lost runs on, keeps its slot, and its result is dropped and logged."""
    rig = Rig()
    peer = rig.connect()
    assign(peer, b"wait")
    job, done = rig.pending[0]
    peer.lose()
    job.send_data(b"unheard")
    rig.reactor.advance(5)
    second = rig.server.accept()
    assert second.taken() == [Packet(P.CAN_DO, [b"wait"])]
    done.callback(b"unheard")
    assert second.taken() == [GRAB]
    assert peer.taken() == []
    assert ["H:1" in str(formatEvent(event)) for event in logged] == [True]


def test_servers_share_the_slots() -> None:
    """With one slot only one server is asked, and the other one when the slot is free."""
    rig = Rig("127.0.0.1:1", "127.0.0.1:2")
    rig.worker.startService()
    one, two = rig.server.accept(), rig.server.accept()
    assert (GRAB in one.taken(), GRAB in two.taken()) == (True, False)
    one.send(P.NO_JOB)
    assert (one.types(), two.types()) == ([P.PRE_SLEEP], [P.GRAB_JOB_UNIQ])
    two.lose()
    one.send(P.NOOP)
    assert one.taken() == [GRAB]


def test_garbage_drops_the_connection(logged: list[LogEvent]) -> None:
    """A server that sends nonsense is dropped, with one line in the log, and connected again."""
    rig = Rig()
    peer = rig.connect()
    peer.send_bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert peer.is_closing()
    peer.send(P.JOB_ASSIGN_UNIQ, b"H:1", b"wait", b"", b"")
    assert rig.pending == []
    assert len(logged) == 1
    peer.lose()
    rig.reactor.advance(5)
    assert rig.server.accept().taken() == [Packet(P.CAN_DO, [b"wait"]), GRAB]


def test_late_result_is_logged(logged: list[LogEvent]) -> None:
    """What the server says of a job that it had taken away is logged, and the open grab stays open."""
    rig = Rig()
    peer = rig.connect()
    peer.send(P.ERROR, b"JOB_NOT_FOUND", b"Job given in work result not found")
    assert ["JOB_NOT_FOUND" in str(formatEvent(event)) for event in logged] == [True]
    assert assign(peer, b"wait") == []
    assert len(rig.pending) == 1


def test_stop_of_an_idle_worker() -> None:
    """A worker without jobs disconnects at once and leaves nothing behind."""
    rig = Rig("127.0.0.1:1", "127.0.0.1:2")
    rig.worker.startService()
    peer = rig.server.accept()
    peer.send(P.NO_JOB)
    stopped = rig.worker.stopService()
    assert peer.is_closing()
    peer.lose()
    assert stopped.called
    assert rig.reactor.getDelayedCalls() == []
    rig.worker.startService()
    assert rig.server.attempts >= 1


def test_stop_waits_for_running_jobs() -> None:
    """A stopping worker takes no job, ends those it has, and then disconnects."""
    rig = Rig(concurrency=2)
    peer = rig.connect()
    assert assign(peer, b"wait") == [GRAB]
    stopped = rig.worker.stopService()
    peer.send(P.NO_JOB)
    assert peer.taken() == []
    rig.pending[0][1].callback(b"done")
    assert peer.taken() == [complete(b"H:1", b"done")]
    assert peer.is_closing()
    peer.lose()
    assert stopped.called
    assert rig.reactor.getDelayedCalls() == []


def test_stop_does_not_wait_for_ever(logged: list[LogEvent]) -> None:
    """After the drain timeout the worker disconnects, and says which jobs it leaves."""
    rig = Rig(drain_timeout=3)
    peer = rig.connect()
    assign(peer, b"wait")
    stopped = rig.worker.stopService()
    rig.reactor.advance(2.9)
    assert not peer.is_closing()
    rig.reactor.advance(0.1)
    assert peer.is_closing()
    peer.lose()
    assert stopped.called
    assert "H:1" in str(formatEvent(logged[0]))
    rig.pending[0][1].callback(b"late")
    assert peer.taken() == []
    assert rig.reactor.getDelayedCalls() == []


def test_stop_twice_ends_the_waiting() -> None:
    """Who asks a second time does not want to wait."""
    rig = Rig()
    peer = rig.connect()
    assign(peer, b"wait")
    rig.worker.stopService()
    rig.worker.stopService()
    assert peer.is_closing()
    peer.lose()
    rig.pending[0][1].callback(b"late")
    rig.reactor.advance(10)
    assert rig.reactor.getDelayedCalls() == []


def test_connection_lost_while_stopping() -> None:
    """A connection that is lost during the drain is not made again."""
    rig = Rig()
    peer = rig.connect()
    assign(peer, b"wait")
    stopped: list[object] = []
    rig.worker.stopService().addCallback(stopped.append)
    peer.lose()
    assert stopped == []
    rig.pending[0][1].callback(b"late")
    assert len(stopped) == 1
    assert rig.server.attempts == 0
    assert rig.reactor.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"servers": ()}, ConfigError),
        ({"servers": "host:port"}, ConfigError),
        ({"concurrency": 0}, ConfigError),
        ({"drain_timeout": -1}, ConfigError),
        ({"drain_timeout": float("nan")}, ConfigError),
        ({"client_id": "a b"}, LocalProtocolError),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    """A setting that makes no sense is refused when the worker is made."""
    with pytest.raises(error):
        GearmanWorker(reactor=memory_reactor(), **options)


def test_wrong_registration_is_refused() -> None:
    """A name that cannot be sent, or a limit that makes no sense, is refused."""
    worker = Rig().worker
    with pytest.raises(LocalProtocolError):
        worker.register("", lambda _job: b"")
    with pytest.raises(ConfigError):
        worker.register("f", lambda _job: b"", timeout=0)


@pytest_twisted.ensureDeferred
async def test_debian_client_gets_our_result(gearmand: Gearmand, no_calls_left: None) -> None:
    """Debian's client has our worker reverse its data, through gearmand."""
    worker = GearmanWorker(gearmand.address, client_id="ours")
    worker.register("reverse", lambda job: job.workload[::-1])
    worker.startService()
    assert await deferToThread(gearmand.run_client, "-f", "reverse", "hello") == b"olleh"
    await worker.stopService()


@pytest_twisted.ensureDeferred
async def test_worker_comes_back_after_a_restart_of_gearmand(gearmand: Gearmand, no_calls_left: None) -> None:
    """A worker connects again to a server that was restarted, and offers its functions again."""
    worker = GearmanWorker(gearmand.address, retry_policy=lambda _attempt: 0.05)
    worker.register("reverse", lambda job: job.workload[::-1])
    worker.startService()
    async with GearmanClient(gearmand.address) as client:
        assert await client.submit("reverse", b"one") == b"eno"
    gearmand.end()
    gearmand.start()
    async with GearmanClient(gearmand.address) as client:
        assert await client.submit("reverse", b"two") == b"owt"
    await worker.stopService()


@pytest_twisted.ensureDeferred
async def test_exception_reaches_our_client_through_gearmand(
    gearmand: Gearmand, no_calls_left: None, logged: list[LogEvent]
) -> None:
    """What a worker function raises is what the client's Deferred fails with."""
    worker = GearmanWorker(gearmand.address, concurrency=4)

    @worker.function("fail")
    async def fail(job: Job) -> bytes:
        job.send_status(1, 2)
        raise ValueError(os.fsdecode(job.workload))

    worker.startService()
    async with GearmanClient(gearmand.address) as client:
        for number in range(3):
            told: list[tuple[int, int]] = []
            with pytest.raises(JobException) as caught:
                await client.submit("fail", b"%d" % number, on_status=lambda *numbers: told.append(numbers))  # noqa: B023
            assert caught.value.data == b"ValueError: %d" % number
            assert told == [(1, 2)]
    await worker.stopService()
    assert len(logged) == 3
