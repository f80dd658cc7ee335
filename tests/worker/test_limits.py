"""Limits of functions, and slots that must not get lost, whatever ends when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gearman_twisted.errors import ResultTooLarge, RetryLater
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from gearman_twisted.worker.job import Job
from tests.kit.worker_rig import GRAB, Rig, assign, complete, failed

P = PacketType
MakeRig = Callable[..., Rig]


def retry_once(job: Job) -> bytes:
    """Want another try after as many seconds as its workload says."""
    if job.attempt == 1:
        raise RetryLater(float(job.workload))
    return b"%d" % job.attempt


def can_do(name: bytes) -> Packet:
    """What offers a function."""
    return Packet(P.CAN_DO, [name])


def test_function_comes_and_goes_before_the_start(make_rig: MakeRig) -> None:
    """What was decided last holds; nothing connects for what was taken back."""
    rig = make_rig(concurrency=3)
    for concurrency in [1, 2, None, 1]:
        rig.register("wait", rig.wait, concurrency=concurrency)
    rig.register("gone", rig.wait, concurrency=1)
    rig.unregister("gone")
    rig.start()
    assert rig.attempts == 2
    assert (rig.accept().taken(), rig.accept().taken()) == ([], [can_do(b"wait"), GRAB])


def test_no_connection_is_made_during_the_stop(make_rig: MakeRig) -> None:
    """A worker that stops makes no connection for a new function, nor again for one that is lost."""
    rig = make_rig(concurrency=2, retry_policy=lambda _attempt: 0.0)
    peer = rig.connect()
    assert assign(peer, b"wait") == [GRAB]
    stopped = rig.stop()
    rig.register("few", rig.wait, concurrency=1)
    peer.lose()
    rig.advance(1)
    assert rig.attempts == 0
    rig.pending[0][1].succeed(b"")
    assert stopped.is_settled


def test_lost_connection_of_a_limited_function_comes_again(make_rig: MakeRig) -> None:
    """It offers the same, and its limit counts what runs for the old one."""
    rig = make_rig(concurrency=3)
    rig.register("few", rig.wait, concurrency=1)
    rig.start()
    shared, own = rig.accept(), rig.accept()
    shared.taken()
    assign(own, b"few", b"H:1")
    own.lose()
    rig.advance(5)
    again = rig.accept()
    assert again.taken() == [can_do(b"few")]
    assert assign(shared, b"wait", b"H:2") == [GRAB]
    rig.pending[0][1].succeed(b"r")
    assert again.taken() == [GRAB]


def test_limit_of_a_server_is_learned_for_all_connections(make_rig: MakeRig) -> None:
    """What one connection was refused for its size, no other one sends."""
    rig = make_rig(concurrency=2)
    rig.register("large", lambda _job: bytes(5000))
    rig.register("few", lambda _job: bytes(5000), concurrency=1)
    rig.start()
    shared, own = rig.accept(), rig.accept()
    shared.taken()
    own.taken()
    assert assign(shared, b"large") == [complete(b"H:1", bytes(5000)), GRAB]
    shared.send(P.ERROR, b"ARGUMENT_TOO_LARGE", b"too large")
    for peer, name in ((shared, b"large"), (own, b"few")):
        answer = assign(peer, name, b"H:2")[0]
        assert answer.type == P.WORK_EXCEPTION
        assert answer.args[1].startswith(ResultTooLarge.__name__.encode())


def test_retry_in_line_goes_with_its_connection(make_rig: MakeRig) -> None:
    """One that waits for a slot, when its connection is lost, takes none."""
    rig = make_rig(concurrency=2)
    rig.register("f", retry_once)
    peer = rig.connect()
    assert assign(peer, b"wait", b"H:2") == [GRAB]
    assert assign(peer, b"f", b"H:1", b"1") == [GRAB]
    assign(peer, b"wait", b"H:3")
    rig.advance(1)
    peer.lose()
    rig.advance(5)
    again = rig.accept()
    assert again.taken() == [can_do(b"wait"), can_do(b"f")]
    rig.pending[0][1].succeed(b"r")
    rig.pending[1][1].succeed(b"r")
    assert again.taken() == [GRAB]
    assert assign(again, b"wait", b"H:4") == [GRAB]


def test_new_connection_of_a_limit_leaves_the_function_to_others_too(make_rig: MakeRig) -> None:
    """After a job was given back the function is not offered for a second, and is then."""
    rig = make_rig(concurrency=2, client_id="me", retry_policy=lambda _attempt: 0.5)

    def give_back(_job: Job) -> bytes:
        raise RetryLater

    rig.register("f", give_back, concurrency=1)
    name = Packet(P.SET_CLIENT_ID, [b"me"])
    rig.start()
    _, own = rig.accept(), rig.accept()
    assert own.taken() == [name, can_do(b"f"), GRAB]
    assert assign(own) == [Packet(P.CANT_DO, [b"f"])]
    own.lose()
    rig.advance(0.5)
    again = rig.accept()
    assert again.taken() == [name]
    rig.advance(0.5)
    assert again.taken() == [can_do(b"f"), GRAB]


def test_lost_job_is_not_tried_again(make_rig: MakeRig) -> None:
    """A function that wants another try for a job that was lost with its connection does not get it."""
    rig = make_rig()
    attempts: list[int] = []

    async def retry(job: Job) -> bytes:
        attempts.append(job.attempt)
        await rig.wait(job)
        raise RetryLater(0)

    rig.register("retry", retry)
    peer = rig.connect()
    assign(peer, b"retry")
    peer.lose()
    rig.advance(5)
    again = rig.accept()
    assert GRAB not in again.taken()
    rig.pending[0][1].succeed(None)
    assert again.taken() == [GRAB]
    assert attempts == [1]


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0RES\0\0\0\x15\0\0\0\0"])
def test_garbage_ends_the_connection(data: bytes, make_rig: MakeRig) -> None:
    """A server that makes no sense is given up and connected again, later each time."""
    delays: list[int] = []

    def retry(attempt: int) -> float:
        delays.append(attempt)
        return 1.0

    rig = make_rig(retry_policy=retry)
    rig.start()
    for _ in range(3):
        peer = rig.accept()
        peer.send_bytes(data)
        assert peer.is_closing()
        peer.lose()
        rig.advance(1)
    assert assign(rig.accept(), b"wait")[-1] == GRAB
    assert delays == [1, 2, 3]


def test_error_without_a_text_fails_its_job_only(make_rig: MakeRig) -> None:
    """Whatever a function's own error class does, the client is told its name."""
    rig = make_rig()

    class Unprintable(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    def unprintable(_job: Job) -> bytes:
        raise Unprintable

    rig.register("f", unprintable)
    assert assign(rig.connect()) == [
        *failed(b"H:1", b"Unprintable: (no text: ZeroDivisionError)"),
        GRAB,
    ]


@pytest.mark.parametrize("is_lost", [False, True])
@pytest.mark.parametrize("max_waiting", [0, 1])
@pytest.mark.parametrize("stage", range(4))
def test_no_slot_is_lost_when_the_end_comes(
    max_waiting: int, stage: int, make_rig: MakeRig, *, is_lost: bool
) -> None:
    """However a slot that becomes free and the end of the wait for it fall together, all are free then."""
    rig = make_rig(concurrency=2, max_waiting=max_waiting, drain_timeout=0)
    rig.register("f", retry_once)
    peer = rig.connect()
    assert assign(peer, b"wait", b"H:1") == [GRAB]
    if assign(peer, b"f", b"H:2", b"1") == [GRAB]:
        assign(peer, b"wait", b"H:3")
    steps: list[Callable[[], Any]] = [
        lambda: None,
        lambda: rig.advance(0.5),
        lambda: rig.advance(1),
        lambda: rig.pending[0][1].succeed(b""),
    ]
    for step in steps[: stage + 1]:
        step()
    if is_lost:
        peer.lose()
    rig.stop()
    rig.close()
    assert rig.core.slots.free == 2
