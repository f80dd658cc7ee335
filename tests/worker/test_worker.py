from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest

from gearman_twisted import GearmanWorker
from gearman_twisted.errors import ConfigError, JobException, JobFailed, LocalProtocolError, RetryLater
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from gearman_twisted.worker import Job, marks
from gearman_twisted.worker.executors import Executor, in_process
from tests.kit.peers import memory_reactor
from tests.kit.worker_rig import GRAB, Lines, Rig, assign, complete

P = PacketType
MakeRig = Callable[..., Rig]


def test_worker_offers_its_functions_and_does_a_job(make_rig: MakeRig) -> None:
    """Id and functions are told when connected; a result and the next grab are one write."""
    rig = make_rig(client_id="me")

    @rig.function("reverse", timeout=1.5)
    def reverse(job: Job) -> bytes:
        assert (job.function, job.handle, job.unique) == (b"reverse", b"H:1", b"u")
        return job.workload[::-1]

    assert reverse.__name__ == "reverse"
    rig.start()
    peer = rig.accept()
    assert peer.taken() == [
        Packet(P.SET_CLIENT_ID, [b"me"]),
        Packet(P.CAN_DO, [b"wait"]),
        Packet(P.CAN_DO_TIMEOUT, [b"reverse", b"6500"]),
        GRAB,
    ]
    before = peer.connection.writes
    assert assign(peer, b"reverse") == [complete(b"H:1", b"cba"), GRAB]
    assert peer.connection.writes == before + 1


def test_functions_may_wait(make_rig: MakeRig) -> None:
    """Deferreds and coroutines end their jobs when they have a result, in any order."""
    rig = make_rig(concurrency=3)

    async def slow(job: Job) -> bytes:
        return b"slow " + bytes(await rig.wait(job))

    rig.register("slow", slow)
    peer = rig.connect()
    assert assign(peer, b"wait", b"H:1") == [GRAB]
    assert assign(peer, b"slow", b"H:2") == [GRAB]
    assert assign(peer, b"wait", b"H:3") == []
    rig.pending[1][1].succeed(b"two")
    assert peer.taken() == [complete(b"H:2", b"slow two"), GRAB]
    rig.pending[0][1].succeed(None)
    assert peer.taken() == [complete(b"H:1", b"")]


def test_job_tells_of_itself_on_the_way(make_rig: MakeRig) -> None:
    """Data, warnings and progress go to the server at once, and nothing after the end."""
    rig = make_rig()
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
    done.succeed(b"")
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
def test_function_that_fails(
    outcome: object, data: bytes, is_late: bool, logged: list[str], make_rig: MakeRig
) -> None:
    """What a function raises, and a result that is none, is told as an exception and logged once."""
    rig = make_rig()

    def fail(_job: Job) -> Any:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def fail_late(job: Job) -> Any:
        await rig.wait(job)
        return fail(job)

    rig.register("f", fail_late if is_late else fail)
    peer = rig.connect()
    ended = [Packet(P.WORK_EXCEPTION, [b"H:1", data]), Packet(P.WORK_FAIL, [b"H:1"]), GRAB]
    sent = assign(peer)
    if is_late:
        assert sent == []
        rig.pending[0][1].succeed(None)
        sent = peer.taken()
    assert sent == ended
    assert len(logged) == 1
    assert "H:1" in logged[0]
    # What gearmand says of the WORK_FAIL is no news.
    peer.send(P.ERROR, b"JOB_NOT_FOUND", b"Job given in work result not found")
    assert len(logged) == 1
    assert assign(peer, b"wait", b"H:2") == []


def test_function_that_gives_up(logged: list[str], make_rig: MakeRig) -> None:
    """JobFailed fails the job without an exception and without noise."""
    rig = make_rig()

    @rig.function("f")
    def give_up(job: Job) -> bytes:
        raise JobFailed("not today", function=job.function, handle=job.handle)

    peer = rig.connect()
    assert assign(peer) == [Packet(P.WORK_FAIL, [b"H:1"]), GRAB]
    assert logged == []


def test_unknown_function_fails(make_rig: MakeRig) -> None:
    """A job that was not asked for fails, and the worker goes on."""
    peer = make_rig().connect()
    assert assign(peer, b"nonsense") == [Packet(P.WORK_FAIL, [b"H:1"]), GRAB]


def test_functions_come_and_go_while_running(make_rig: MakeRig) -> None:
    """A running worker tells its server what changes; a job that was on its way is still done."""
    rig = make_rig()
    peer = rig.connect()
    rig.register("f", lambda job: job.workload)
    assert peer.taken() == [Packet(P.CAN_DO, [b"f"])]
    rig.unregister("f")
    rig.unregister("never registered")
    assert peer.taken() == []
    assert assign(peer) == [complete(b"H:1", b"abc"), Packet(P.CANT_DO, [b"f"]), GRAB]
    peer.lose()
    rig.advance(5)
    assert rig.accept().taken() == [Packet(P.CAN_DO, [b"wait"]), GRAB]


def test_lost_connection_lets_functions_end(logged: list[str], make_rig: MakeRig) -> None:
    """A function whose connection is lost runs on, keeps its slot, and its result is dropped and logged."""
    rig = make_rig()
    peer = rig.connect()
    assign(peer, b"wait")
    job, done = rig.pending[0]
    peer.lose()
    job.send_data(b"unheard")
    rig.advance(5)
    second = rig.accept()
    assert second.taken() == [Packet(P.CAN_DO, [b"wait"])]
    done.succeed(b"unheard")
    assert second.taken() == [GRAB]
    assert peer.taken() == []
    assert ["H:1" in event for event in logged] == [True]


def test_servers_share_the_slots(make_rig: MakeRig) -> None:
    """With one slot only one server is asked, and the other one when the slot is free."""
    rig = make_rig("127.0.0.1:1", "127.0.0.1:2")
    rig.start()
    one, two = rig.accept(), rig.accept()
    assert (GRAB in one.taken(), GRAB in two.taken()) == (True, False)
    one.send(P.NO_JOB)
    assert (one.types(), two.types()) == ([P.PRE_SLEEP], [P.GRAB_JOB_UNIQ])
    two.lose()
    one.send(P.NOOP)
    assert one.taken() == [GRAB]


def test_garbage_drops_the_connection(logged: list[str], make_rig: MakeRig) -> None:
    """A server that sends nonsense is dropped, with one line in the log, and connected again."""
    rig = make_rig()
    peer = rig.connect()
    peer.send_bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert peer.is_closing()
    peer.send(P.JOB_ASSIGN_UNIQ, b"H:1", b"wait", b"", b"")
    assert rig.pending == []
    assert len(logged) == 1
    peer.lose()
    rig.advance(5)
    assert rig.accept().taken() == [Packet(P.CAN_DO, [b"wait"]), GRAB]


def test_late_result_is_logged(logged: list[str], make_rig: MakeRig) -> None:
    """What the server says of a job that it had taken away is logged, and the open grab stays open."""
    rig = make_rig()
    peer = rig.connect()
    peer.send(P.ERROR, b"JOB_NOT_FOUND", b"Job given in work result not found")
    assert ["JOB_NOT_FOUND" in event for event in logged] == [True]
    assert assign(peer, b"wait") == []
    assert len(rig.pending) == 1


def test_stop_of_an_idle_worker(make_rig: MakeRig) -> None:
    """A worker without jobs disconnects at once and leaves nothing behind."""
    rig = make_rig("127.0.0.1:1", "127.0.0.1:2")
    rig.start()
    peer = rig.accept()
    peer.send(P.NO_JOB)
    stopped = rig.stop()
    assert peer.is_closing()
    peer.lose()
    assert stopped.is_settled
    assert rig.timers() == []
    rig.start()
    assert rig.attempts >= 1


def test_stop_waits_for_running_jobs(make_rig: MakeRig) -> None:
    """A stopping worker takes no job, ends those it has, and then disconnects."""
    rig = make_rig(concurrency=2)
    peer = rig.connect()
    assert assign(peer, b"wait") == [GRAB]
    stopped = rig.stop()
    peer.send(P.NO_JOB)
    assert peer.taken() == []
    rig.pending[0][1].succeed(b"done")
    assert peer.taken() == [complete(b"H:1", b"done")]
    assert peer.is_closing()
    peer.lose()
    assert stopped.is_settled
    assert rig.timers() == []


def test_stop_does_not_wait_for_ever(logged: list[str], make_rig: MakeRig) -> None:
    """After the drain timeout the worker disconnects, and says which jobs it leaves."""
    rig = make_rig(drain_timeout=3)
    peer = rig.connect()
    assign(peer, b"wait")
    stopped = rig.stop()
    rig.advance(2.9)
    assert not peer.is_closing()
    rig.advance(0.1)
    assert peer.is_closing()
    peer.lose()
    assert stopped.is_settled
    assert "H:1" in logged[0]
    rig.pending[0][1].succeed(b"late")
    assert peer.taken() == []
    assert rig.timers() == []


def test_stop_twice_ends_the_waiting(make_rig: MakeRig) -> None:
    """Who asks a second time does not want to wait."""
    rig = make_rig()
    peer = rig.connect()
    assign(peer, b"wait")
    rig.stop()
    rig.stop()
    assert peer.is_closing()
    peer.lose()
    rig.pending[0][1].succeed(b"late")
    rig.advance(10)
    assert rig.timers() == []


def test_connection_lost_while_stopping(make_rig: MakeRig) -> None:
    """A connection that is lost during the drain is not made again."""
    rig = make_rig()
    peer = rig.connect()
    assign(peer, b"wait")
    stopped = rig.stop()
    peer.lose()
    was_settled = stopped.is_settled
    rig.pending[0][1].succeed(b"late")
    assert (was_settled, stopped.is_settled) == (False, True)
    assert rig.attempts == 0
    assert rig.timers() == []


def test_worker_may_be_started_again(make_rig: MakeRig) -> None:
    """After a stop it connects as before, and offers everything, also what was paused."""
    rig = make_rig()

    def give_back(_job: Job) -> bytes:
        raise RetryLater

    rig.register("f", give_back)
    peer = rig.connect()
    assign(peer)
    peer.send(P.NO_JOB)
    stopped = rig.stop()
    peer.lose()
    stopped.get()
    assert rig.stop().is_settled
    again = rig.connect()
    assert not again.is_closing()
    assert assign(again, b"wait", b"H:2") == []
    rig.pending[0][1].succeed(b"r")
    assert again.taken() == [complete(b"H:2", b"r"), GRAB]


def test_worker_that_stops_is_not_started(make_rig: MakeRig) -> None:
    """Starting twice is a no-op; starting while it stops is refused."""
    rig = make_rig()
    peer = rig.connect()
    rig.start()
    assert rig.attempts == 0
    assign(peer, b"wait")
    rig.stop()
    with pytest.raises(RuntimeError, match="the worker is stopping"):
        rig.start()


def test_registering_ends_the_pause_of_a_function(make_rig: MakeRig) -> None:
    """A function that was left to others for a moment is offered at once when it is registered anew."""
    rig = make_rig()

    def give_back(_job: Job) -> bytes:
        raise RetryLater

    rig.register("f", give_back)
    peer = rig.connect()
    assert assign(peer) == [Packet(P.CANT_DO, [b"f"]), GRAB]
    peer.send(P.NO_JOB)
    peer.taken()
    rig.register("f", lambda job: job.workload)
    assert peer.taken() == [Packet(P.CAN_DO, [b"f"]), GRAB]
    rig.advance(2)
    assert assign(peer) == [complete(b"H:1", b"abc"), GRAB]


def test_function_that_cancels_itself_fails(make_rig: MakeRig) -> None:
    """Its job fails without an exception, and the worker goes on."""
    rig = make_rig()

    async def cancels_itself(_job: Job) -> bytes:
        raise rig.loop.runtime.cancelled

    rig.register("f", cancels_itself)
    assert assign(rig.connect()) == [Packet(P.WORK_FAIL, [b"H:1"]), GRAB]


def test_what_still_runs_at_the_end_is_cancelled(make_rig: MakeRig) -> None:
    """A function that does not end in time may clean up; only then has the worker stopped."""
    rig = make_rig(drain_timeout=3)
    cleaned: list[bool] = []

    async def stuck(job: Job) -> bytes:
        try:
            return bytes(await rig.wait(job))
        finally:
            await rig.wait(job)
            cleaned.append(True)

    rig.register("f", stuck)
    peer = rig.connect()
    assign(peer)
    stopped = rig.stop()
    rig.advance(3)
    peer.lose()
    states = [stopped.is_settled]
    rig.pending[1][1].succeed(None)
    states.append(stopped.is_settled)
    assert states == [False, True]
    assert cleaned == [True]


def test_cleaning_up_has_an_end_too(make_rig: MakeRig) -> None:
    """What goes on although it was cancelled is not waited for, for ever."""
    rig = make_rig(drain_timeout=3)

    async def stuck(job: Job) -> bytes:
        try:
            return bytes(await rig.wait(job))
        finally:
            await rig.wait(job)

    rig.register("f", stuck)
    peer = rig.connect()
    assign(peer)
    stopped = rig.stop()
    rig.advance(3)
    peer.lose()
    states = [stopped.is_settled]
    rig.advance(3)
    states.append(stopped.is_settled)
    assert states == [False, True]
    rig.pending[1][1].succeed(None)


def test_who_waits_for_the_stop_may_give_up(make_rig: MakeRig) -> None:
    """The worker stops all the same."""
    rig = make_rig()
    peer = rig.connect()
    assign(peer, b"wait")
    stopping = rig.loop.call(rig.core.stop)
    waiting = rig.loop.outcome(stopping)
    rig.loop.call(stopping.cancel)
    assert isinstance(waiting.error, rig.loop.runtime.cancelled)
    rig.pending[0][1].succeed(b"")
    peer.lose()
    assert not rig.core.is_running


@pytest.mark.parametrize("has_parentheses", [False, True])
def test_decorator_needs_no_name(make_rig: MakeRig, *, has_parentheses: bool) -> None:
    """Without a name, or parentheses, a function is registered under its own name."""
    rig = make_rig()

    def reverse(job: Job) -> bytes:
        return job.workload[::-1]

    decorated = rig.function()(reverse) if has_parentheses else rig.function(reverse)
    assert decorated is reverse
    assert assign(rig.connect(), b"reverse") == [complete(b"H:1", b"cba"), GRAB]
    with pytest.raises(ConfigError, match="has no name of its own"):
        rig.function()(partial(reverse))


def test_changes_of_connections_are_logged(make_rig: MakeRig, log: Lines) -> None:
    """One line for each change: the start, no connection and why, a connection, its loss and why."""
    rig = make_rig("a:1", concurrency=3)
    rig.register("few", rig.wait, concurrency=1)
    rig.start()
    for reason in ("refused", "refused", "no route"):
        for _ in range(2):
            rig.places[0].refuse(reason)
        rig.advance(5)
    peers = [rig.accept(), rig.accept()]
    peers[0].lose()
    cannot = ["cannot connect to a:1: {0}; retrying, first in 5.0 s"] * 2
    assert log.lines == [
        "worker starts: functions wait, few; servers a:1; concurrency 3",
        *(line.format("refused") for line in cannot),
        *(line.format("no route") for line in cannot),
        "connected to a:1 (functions: wait)",
        "connected to a:1 (functions: few)",
        "lost a:1: it was lost; does it speak TLS there?",
    ]


def test_many_functions_are_counted_in_the_log(make_rig: MakeRig, log: Lines) -> None:
    """A line has ten names at most."""
    rig = make_rig()
    for number in range(11):
        rig.register(f"f{number}", rig.wait)
    rig.connect()
    assert "f8 and 2 more" in log.lines[-1]
    none = make_rig()
    none.unregister("wait")
    none.connect()
    assert log.lines[-1].endswith("(functions: none)")


@marks.function
def marked(job: Job) -> bytes:
    return job.workload


@marks.function("threaded", run_in="thread", timeout=3)
@marks.function("other", run_in="process")
def twice_marked(_job: Job) -> bytes:
    return b""


def test_marked_functions_are_registered() -> None:
    """Functions and modules that are marked can be given to a worker, with what their marks say."""
    found: dict[str, tuple[Any, Any]] = {}

    def register(name: str, function: Any, *, timeout: Any, concurrency: Any) -> None:
        assert concurrency is None
        found[name] = function, timeout

    marks.register_marked(register, [sys.modules[__name__]])
    assert found.pop("marked") == (marked, None)
    assert {name: (isinstance(one, Executor), timeout) for name, (one, timeout) in found.items()} == {
        "threaded": (True, 3),
        "other": (True, None),
    }
    found.clear()
    marks.register_marked(register, cast("Any", marked))
    assert list(found) == ["marked"]
    with pytest.raises(ConfigError, match="has no function that is marked"):
        marks.register_marked(register, [len])
    namesake = marks.function("marked")(lambda job: job.workload)
    with pytest.raises(ConfigError, match="two functions are marked as 'marked'"):
        marks.register_marked(register, [marked, namesake])


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        (("x", b"1"), {}, "register takes a name and a function, and bytes is not a function"),
        ((len, "x"), {}, "a function's name is text or bytes, not builtin_function_or_method"),
        (("x", len), {"timeout": "3"}, "timeout takes seconds, up to 4000000, not '3'"),
        (("x", len), {"timeout": True}, "timeout takes seconds"),
        (("x", len), {"server_timeout": "3"}, "server_timeout takes seconds"),
        (("x", len), {"concurrency": "3"}, "concurrency takes a whole number of at least 1, not '3'"),
        (("x", len), {"concurrency": 1.5}, "concurrency takes a whole number of at least 1, not 1.5"),
    ],
)
def test_obvious_mistakes_are_refused_at_once(
    arguments: tuple[Any, Any], options: dict[str, Any], text: str, make_rig: MakeRig
) -> None:
    """What cannot work says so when it is registered, in words that name the argument."""
    with pytest.raises(ConfigError, match=re.escape(text)):
        make_rig().register(*arguments, **options)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("nomod:fn", "in_process cannot find the module 'nomod'"),
        ("no.such.module:fn", "in_process cannot find the module 'no.such.module'"),
        ("..:fn", "in_process cannot find the module '..'"),
        ("tests.kit.worker_rig:nothing", "in_process cannot find 'nothing' in"),
    ],
)
def test_name_that_leads_nowhere_is_refused_at_once(target: str, text: str) -> None:
    """A module that is not there is found out without importing anything."""
    with pytest.raises(ConfigError, match=re.escape(text)):
        in_process(target)


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


def test_wrong_registration_is_refused(make_rig: MakeRig) -> None:
    """A name that cannot be sent, or a limit that makes no sense, is refused."""
    worker = make_rig().core
    with pytest.raises(LocalProtocolError):
        worker.register("", lambda _job: b"")
    with pytest.raises(ConfigError):
        worker.register("f", lambda _job: b"", timeout=0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"concurrency": 1.5}, "concurrency takes a whole number of at least 1, not 1.5"),
        ({"max_waiting": 0.5}, "max_waiting takes a whole number of at least 0, not 0.5"),
        ({"retry_policy": 5}, "retry_policy takes a callable, not 5"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused(
    options: dict[str, Any], text: str, make_rig: MakeRig
) -> None:
    """Half a slot would be no limit at all, and a policy that cannot be called no new connection."""
    with pytest.raises(ConfigError, match=re.escape(text)):
        make_rig(**options)
