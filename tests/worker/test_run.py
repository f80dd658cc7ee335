"""Limits, timeouts, retries, sizes and silent servers: a worker over a reactor in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gearman_twisted.errors import ConfigError, JobException, ResultTooLarge, RetryLater
from gearman_twisted.wire.codec import encode_head
from gearman_twisted.wire.constants import RES, PacketType
from gearman_twisted.wire.packet import Packet
from gearman_twisted.worker import Job
from tests.kit.peers import response
from tests.kit.worker_rig import GRAB, PING, Rig, assign, complete, failed

P = PacketType
MakeRig = Callable[..., Rig]
TIMED_OUT = b"JobTimeout: not finished within 3 seconds"


def retry_at_first(job: Job) -> bytes:
    """Wants a second try after two seconds, and a third one after none."""
    if job.attempt < 3:
        raise RetryLater(2 if job.attempt == 1 else 0)
    return b"%d" % job.attempt


@pytest.mark.parametrize(
    ("options", "milliseconds"),
    [
        ({"timeout": 3}, b"8000"),
        ({"timeout": 3, "server_timeout": 60}, b"60000"),
        ({"server_timeout": 0.0015}, b"2"),
    ],
)
def test_server_has_a_limit_of_its_own(
    options: dict[str, Any], milliseconds: bytes, make_rig: MakeRig
) -> None:
    """The server is told to wait a little longer than the worker, or as long as was said."""
    rig = make_rig()
    rig.register("wait", rig.wait, **options)
    rig.start()
    assert rig.accept().taken() == [Packet(P.CAN_DO_TIMEOUT, [b"wait", milliseconds]), GRAB]


def test_server_may_be_told_no_limit(make_rig: MakeRig) -> None:
    """A limit may hold in the worker only."""
    rig = make_rig()
    rig.register("wait", rig.wait, timeout=3, server_timeout=0)
    rig.start()
    assert rig.accept().taken() == [Packet(P.CAN_DO, [b"wait"]), GRAB]


def test_job_that_takes_too_long_is_cancelled_and_fails(logged: list[str], make_rig: MakeRig) -> None:
    """A Deferred is cancelled; the client hears why; the slot is free."""
    rig = make_rig()
    rig.register("wait", rig.wait, timeout=3)
    peer = rig.connect()
    assign(peer, b"wait")
    rig.advance(2.9)
    assert peer.taken() == []
    rig.advance(0.1)
    assert peer.taken() == [*failed(b"H:1", TIMED_OUT), GRAB]
    assert len(logged) == 1
    assert "H:1" in logged[0]
    # One that is in time leaves no timer behind.
    assign(peer, b"wait", b"H:2")
    rig.pending[1][1].succeed(b"r")
    assert peer.taken() == [complete(b"H:2", b"r"), GRAB]
    rig.advance(10)
    assert peer.taken() == []


def test_function_that_goes_on_after_its_timeout_keeps_its_slot(logged: list[str], make_rig: MakeRig) -> None:
    """The job fails in time, but no other one is taken before the function has really ended."""
    rig = make_rig()

    async def stubborn(job: Job) -> bytes:
        try:
            return bytes(await rig.wait(job))
        except rig.loop.runtime.cancelled:
            return bytes(await rig.wait(job))

    rig.register("f", stubborn, timeout=3)
    peer = rig.connect()
    assign(peer)
    rig.advance(3)
    assert peer.taken() == failed(b"H:1", TIMED_OUT)
    rig.pending[1][0].send_data(b"unheard")
    assert peer.taken() == []
    rig.pending[1][1].succeed(b"late")
    assert peer.taken() == [GRAB]
    assert len(logged) == 1


def test_timeout_of_a_lost_connection_frees_the_slot(make_rig: MakeRig) -> None:
    """A job that nobody waits for any more is ended all the same."""
    rig = make_rig()
    rig.register("wait", rig.wait, timeout=8)
    peer = rig.connect()
    assign(peer, b"wait")
    peer.lose()
    rig.advance(5)
    second = rig.accept()
    assert GRAB not in second.taken()
    rig.advance(3)
    assert second.taken() == [GRAB]


def test_function_with_a_limit_has_its_own_connection(make_rig: MakeRig) -> None:
    """It is not asked for while as many as allowed run, and the others are."""
    rig = make_rig(concurrency=3)
    rig.register("few", rig.wait, concurrency=1)
    rig.start()
    shared, own = rig.accept(), rig.accept()
    assert shared.taken() == [Packet(P.CAN_DO, [b"wait"]), GRAB]
    assert own.taken() == [Packet(P.CAN_DO, [b"few"]), GRAB]
    assert assign(own, b"few", b"H:1") == []
    assert assign(shared, b"wait", b"H:2") == [GRAB]
    rig.pending[0][1].succeed(b"r")
    # Two run then, or are on their way; a third slot is free.
    assert own.taken() == [complete(b"H:1", b"r"), GRAB]
    assert assign(shared, b"wait", b"H:3") == []
    own.send(P.NO_JOB)
    assert (own.types(), shared.types()) == ([P.PRE_SLEEP], [P.GRAB_JOB_UNIQ])


def test_limit_of_a_function_may_change_while_running(make_rig: MakeRig) -> None:
    """New connections take over, and the old ones go when their jobs have ended."""
    rig = make_rig(concurrency=3)
    rig.register("few", rig.wait, concurrency=1)
    rig.start()
    shared, own = rig.accept(), rig.accept()
    assign(own, b"few", b"H:1")
    rig.register("few", rig.wait, concurrency=1)
    assert rig.attempts == 0
    rig.register("few", rig.wait, concurrency=2)
    second = rig.accept()
    assert second.taken() == [Packet(P.CAN_DO, [b"few"]), GRAB]
    assert not own.is_closing()
    rig.pending[0][1].succeed(b"r")
    assert own.taken() == [complete(b"H:1", b"r")]
    assert own.is_closing()
    own.lose()
    shared.taken()
    rig.register("few", rig.wait)
    assert shared.taken() == [Packet(P.CAN_DO, [b"few"])]
    second.send(P.NO_JOB)
    assert second.is_closing()
    second.lose()
    rig.register("few", rig.wait, concurrency=2)
    third = rig.accept()
    rig.unregister("few")
    third.send(P.NO_JOB)
    third.lose()
    rig.stop()
    shared.send(P.NO_JOB)
    assert shared.is_closing()
    shared.lose()
    assert rig.timers() == []
    assert rig.attempts == 0


def test_retry_waits_here_without_a_slot(make_rig: MakeRig) -> None:
    """A job that asks for it runs again here, no earlier than it asked; others run meanwhile."""
    rig = make_rig()
    rig.register("f", retry_at_first)
    peer = rig.connect()
    assert assign(peer) == [GRAB]
    peer.send(P.NO_JOB)
    peer.taken()
    rig.advance(1.9)
    assert peer.taken() == []
    # The third try asks for no pause.
    rig.advance(0.1, 0)
    assert peer.taken() == [complete(b"H:1", b"3")]


def test_retry_that_is_due_stands_in_line_for_a_slot(make_rig: MakeRig) -> None:
    """While another job has the slot it waits on; it is ended on the connection that it came from."""
    rig = make_rig()
    rig.register("f", retry_at_first)
    peer = rig.connect()
    assign(peer)
    assert assign(peer, b"wait", b"H:2") == []
    rig.advance(2)
    assert peer.taken() == []
    rig.pending[0][1].succeed(b"r")
    # Its second try frees the slot again, so the worker asks; the third one is due, and waits for the answer.
    assert peer.taken() == [complete(b"H:2", b"r"), GRAB]
    peer.send(P.NO_JOB)
    assert peer.taken() == [Packet(P.PRE_SLEEP, []), complete(b"H:1", b"3")]


def test_no_more_jobs_wait_than_allowed(make_rig: MakeRig) -> None:
    """Beyond that they keep their slots, and no new jobs are taken."""
    rig = make_rig(max_waiting=1)
    rig.register("f", retry_at_first)
    peer = rig.connect()
    assert assign(peer, handle=b"H:1") == [GRAB]
    assert assign(peer, handle=b"H:2") == []
    rig.advance(2)
    assert peer.taken() == [complete(b"H:2", b"3"), GRAB]
    peer.send(P.NO_JOB)
    rig.advance(0)
    assert peer.taken() == [Packet(P.PRE_SLEEP, []), complete(b"H:1", b"3")]


def test_retry_goes_with_its_connection(make_rig: MakeRig) -> None:
    """The server gives the job to somebody else, so it is not tried again here."""
    rig = make_rig(max_waiting=1, concurrency=2)
    rig.register("f", retry_at_first)
    peer = rig.connect()
    assign(peer, handle=b"H:1")
    assign(peer, handle=b"H:2")
    peer.lose()
    rig.advance(5)
    second = rig.accept()
    assert second.types()[-1] == P.GRAB_JOB_UNIQ
    assign(second, b"wait", b"H:3")
    assert second.taken() == []
    assert assign(second, b"wait", b"H:4") == []
    assert len(rig.pending) == 2


def test_stop_does_not_wait_for_retries(make_rig: MakeRig) -> None:
    """Jobs that wait for another try go back to the server with the connection."""
    rig = make_rig(max_waiting=1, concurrency=2)
    rig.register("f", retry_at_first)
    peer = rig.connect()
    assign(peer, handle=b"H:1")
    assign(peer, handle=b"H:2")
    peer.send(P.NO_JOB)
    stopped = rig.stop()
    assert peer.is_closing()
    peer.lose()
    assert stopped.is_settled
    assert rig.timers() == []


def give_back(_job: Job) -> bytes:
    """Has every job given back."""
    raise RetryLater


def test_job_goes_back_to_its_server(make_rig: MakeRig) -> None:
    """Without a delay the server takes the job back; for a second others are left to do it."""
    rig = make_rig()
    rig.register("f", give_back)
    peer = rig.connect()
    assert assign(peer) == [Packet(P.CANT_DO, [b"f"]), GRAB]
    peer.send(P.NO_JOB)
    peer.taken()
    rig.advance(0.9)
    assert peer.taken() == []
    rig.advance(0.1)
    assert peer.taken() == [Packet(P.CAN_DO, [b"f"]), GRAB]


def test_new_connection_leaves_the_function_to_others_too(make_rig: MakeRig) -> None:
    """The pause holds for the worker, not the connection; it ends with the worker."""
    rig = make_rig(retry_policy=lambda _attempt: 0.5)
    rig.register("f", give_back)
    peer = rig.connect()
    assign(peer)
    peer.lose()
    rig.advance(0.5)
    second = rig.accept()
    assert second.taken() == [Packet(P.CAN_DO, [b"wait"]), GRAB]
    second.send(P.NO_JOB)
    rig.stop()
    second.lose()
    assert rig.timers() == []


def test_giving_back_holds_up_no_other_job(make_rig: MakeRig) -> None:
    """With another job of the function at work, a new connection takes over and the old one ends its job."""
    rig = make_rig(concurrency=3)
    rig.register("f", lambda job: give_back(job) if job.workload == b"back" else rig.wait(job))
    peer = rig.connect()
    assign(peer, handle=b"H:1")
    assert assign(peer, handle=b"H:2", workload=b"back") == [GRAB]
    # Before the answer a job of the function may be on its way.
    assert rig.attempts == 0
    peer.send(P.NO_JOB)
    second = rig.accept()
    assert second.taken() == [Packet(P.CAN_DO, [b"wait"]), GRAB]
    assert not peer.is_closing()
    rig.pending[0][1].succeed(b"r")
    assert peer.taken() == [complete(b"H:1", b"r"), Packet(P.CANT_DO, [b"f"])]
    assert peer.is_closing()
    peer.lose()
    rig.advance(1)
    assert second.taken() == [Packet(P.CAN_DO, [b"f"])]


def test_wait_that_its_server_does_not_bear_is_none(make_rig: MakeRig) -> None:
    """If the server would take the job away before its next try could end, it goes back at once."""
    rig = make_rig()
    rig.register("f", retry_at_first, timeout=10)
    peer = rig.connect()
    assert assign(peer) == [GRAB]
    rig.register("g", retry_at_first, timeout=10, server_timeout=11)
    peer.send(P.NO_JOB)
    peer.taken()
    rig.advance(2)
    assert peer.taken() == [complete(b"H:1", b"3")]
    peer.send(P.NOOP)
    peer.taken()
    assert assign(peer, b"g", b"H:2") == [Packet(P.CANT_DO, [b"g"]), GRAB]


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf")])
def test_delay_that_makes_no_sense_is_refused(delay: float) -> None:
    """A retry is in some seconds, or at the server's choice."""
    with pytest.raises(ConfigError, match="RetryLater takes seconds"):
        RetryLater(delay)


def test_result_that_is_too_large_fails_the_job(logged: list[str], make_rig: MakeRig) -> None:
    """Nothing that the server refuses is sent: the client hears of it, and the worker goes on."""
    rig = make_rig(max_packet_bytes=1024)
    peer = rig.connect()
    assign(peer, b"wait")
    job, done = rig.pending[0]
    assert job.max_data_bytes == 960
    job.send_data(bytes(960))
    with pytest.raises(ResultTooLarge, match="961 bytes are more than the 960"):
        job.send_data(bytes(961))
    with pytest.raises(ResultTooLarge, match="961 bytes"):
        job.send_warning(bytes(961))
    peer.taken()
    done.succeed(bytes(961))
    text = b"ResultTooLarge: 961 bytes are more than the 960 that the server takes at a time"
    assert peer.taken() == [*failed(b"H:1", text), GRAB]
    assign(peer, b"wait", b"H:2")
    rig.pending[1][1].fail(JobException(bytes(961)))
    assert peer.taken() == [*failed(b"H:2", b"ResultTooLarge: an exception of 961 bytes"), GRAB]
    assign(peer, b"wait", b"H:3")
    rig.pending[2][1].fail(RuntimeError("x" * 2000))
    assert len(peer.taken()[0].args[1]) == 960
    assign(peer, b"wait", b"H:4")
    rig.pending[3][1].succeed(bytes(960))
    assert peer.taken() == [complete(b"H:4", bytes(960)), GRAB]
    assert len(logged) == 3


def test_limit_of_a_server_is_learned(logged: list[str], make_rig: MakeRig) -> None:
    """A job whose result the server refused comes again; then it fails in a way that its client hears of."""
    rig = make_rig()
    peer = rig.connect()
    assign(peer, b"wait")
    rig.pending[0][1].succeed(bytes(5000))
    peer.send(P.ERROR, b"ARGUMENT_TOO_LARGE", b"Packet of 5004 bytes refused: the limit here is 4096")
    peer.lose()
    rig.advance(5)
    second = rig.accept()
    second.taken()
    assign(second, b"wait")
    rig.pending[1][1].succeed(bytes(5000))
    assert second.types() == [P.WORK_EXCEPTION, P.WORK_FAIL, P.GRAB_JOB_UNIQ]
    assert "ARGUMENT_TOO_LARGE" in logged[0]


def test_silent_server_is_given_up(logged: list[str], make_rig: MakeRig) -> None:
    """A server that falls silent is detected within the interval, and the worker reconnects."""
    rig = make_rig(ping_interval=9)
    peer = rig.connect()
    peer.send(P.NO_JOB)
    peer.taken()
    rig.advance(3, 3)
    assert peer.taken() == [PING]
    # It is known to answer.
    peer.send(P.ECHO_RES, b"ping")
    rig.advance(3, 3)
    assert peer.taken() == [PING]
    assert not peer.is_closing()
    rig.advance(3, 0)
    assert peer.is_closing()
    assert ["has not answered for 9 seconds" in event for event in logged] == [True]
    peer.lose()
    rig.advance(5)
    assert rig.accept().taken() == [Packet(P.CAN_DO, [b"wait"]), GRAB]


def test_server_that_answers_is_kept(make_rig: MakeRig) -> None:
    """Whatever a server sends is a sign of life; the answer to a ping is one and no more."""
    rig = make_rig(ping_interval=9)
    peer = rig.connect()
    for _ in range(5):
        rig.advance(3, 3)
        assert PING in peer.taken()
        peer.send(P.ECHO_RES, b"ping")
    assert not peer.is_closing()


def test_answer_that_could_not_be_read_in_time_counts(logged: list[str], make_rig: MakeRig) -> None:
    """A function that blocks the reactor for long does not make a worker give up its server."""
    rig = make_rig(ping_interval=9)
    peer = rig.connect()
    rig.advance(3, 3)
    assert PING in peer.taken()
    # Time has passed in a function; the answer is there, and is read after the timers were looked at.
    answer = response(P.ECHO_RES, b"ping")
    rig.loop.call(lambda: rig.loop.runtime.later(3, lambda: peer.connection._peer.received(answer)))
    rig.advance(3, 0, 0)
    assert not peer.is_closing()
    rig.advance(3, 3)
    assert PING in peer.taken()
    rig.advance(3, 0)
    assert peer.is_closing()
    assert len(logged) == 1


def test_nobody_is_asked_if_that_is_not_wanted(make_rig: MakeRig) -> None:
    """Pings can be switched off."""
    rig = make_rig(ping_interval=None)
    peer = rig.connect()
    rig.advance(10_000)
    assert peer.taken() == []


def test_server_that_only_accepts_is_left_in_peace(logged: list[str], make_rig: MakeRig) -> None:
    """Attempts are counted from the last time that the server made sense, so the pauses grow."""
    attempts: list[int] = []

    def policy(attempt: int) -> float:
        attempts.append(attempt)
        return 5.0

    rig = make_rig(retry_policy=policy)
    rig.start()
    for _ in range(3):
        peer = rig.accept()
        peer.send_bytes(b"SSH-2.0-OpenSSH_9.2p1\r\n")
        assert peer.is_closing()
        peer.lose()
        rig.advance(5)
    assert attempts == [1, 2, 3]
    peer = rig.accept()
    peer.send(P.NO_JOB)
    peer.lose()
    assert attempts == [1, 2, 3, 1]
    assert len(logged) == 3


def test_jobs_may_come_byte_by_byte(make_rig: MakeRig) -> None:
    """Frames that are split anywhere make the same jobs."""
    rig = make_rig()
    rig.register("reverse", lambda job: job.workload[::-1])
    peer = rig.connect()
    stream = response(P.JOB_ASSIGN_UNIQ, b"H:1", b"reverse", b"u", b"a\0b") + response(P.NO_JOB)
    for position in range(len(stream)):
        peer.send_bytes(stream[position : position + 1])
    assert peer.taken() == [complete(b"H:1", b"b\0a"), GRAB, Packet(P.PRE_SLEEP, [])]


@pytest.mark.parametrize(
    ("limit", "announced", "is_taken"),
    [
        (1024, 1_000_000_000, True),
        (1_000_000_000, 1_001_000_000, False),
        (0xFFFFFFFF, 0xFFFFFFFF, True),
    ],
)
def test_workloads_may_be_as_large_as_packets(
    make_rig: MakeRig, limit: int, announced: int, is_taken: bool
) -> None:
    """A higher max_packet_bytes is for workloads too; a lower one says what a server takes of results."""
    rig = make_rig(max_packet_bytes=limit)
    rig.register("f", lambda job: job.workload)
    peer = rig.connect()
    head = b"H:1\0f\0\0"
    peer.send_bytes(encode_head(RES, P.JOB_ASSIGN_UNIQ, head, announced - len(head)) + b"begun")
    assert peer.connection.is_aborted is not is_taken


@pytest.mark.parametrize(
    "options",
    [
        {"ping_interval": 0},
        {"max_packet_bytes": 1023},
        {"max_packet_bytes": 1 << 32},
        {"max_waiting": -1},
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], make_rig: MakeRig) -> None:
    """A setting that makes no sense is refused when the worker is made."""
    with pytest.raises(ConfigError, match=next(iter(options))):
        make_rig(**options)


@pytest.mark.parametrize("options", [{"timeout": -1}, {"server_timeout": -1}, {"concurrency": 0}])
def test_wrong_registration_is_refused(options: dict[str, Any], make_rig: MakeRig) -> None:
    """So is what makes no sense of a function."""
    with pytest.raises(ConfigError, match=next(iter(options))):
        make_rig().register("f", lambda _job: b"", **options)


def test_many_functions_are_registered_at_once(make_rig: MakeRig) -> None:
    """Ten thousand functions go to the server in a few writes, and more come one packet each."""
    rig = make_rig()
    for number in range(10_000):
        rig.register(b"f%d" % number, rig.wait)
    rig.start()
    peer = rig.accept()
    assert peer.connection.writes < 10
    assert len(peer.taken()) == 10_002
    for number in range(10_000):
        rig.register(b"g%d" % number, rig.wait)
    assert peer.types() == [P.CAN_DO] * 10_000


def test_result_that_is_there_before_has_no_timer(make_rig: MakeRig) -> None:
    """What is settled when the function returns needs no limit."""
    rig = make_rig()

    def at_once(_job: Job) -> Any:
        done = rig.loop.runtime.promise()
        done.succeed(b"r")
        return done

    rig.register("f", at_once, timeout=3)
    peer = rig.connect()
    before = len(rig.timers())
    assert assign(peer) == [complete(b"H:1", b"r"), GRAB]
    assert len(rig.timers()) == before
