"""The client of one server, on both event loops: its calls, and how they end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from gearman_twisted.client import JobStatus, Priority
from gearman_twisted.errors import (
    JobException,
    JobFailed,
    LocalProtocolError,
    ServerError,
)
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.client_rig import OPTION, ClientRig
from tests.kit.loops import Outcome, TestLoop
from tests.kit.peers import response

P = PacketType


def test_result_holds_the_parts_that_were_sent_ahead(loop: TestLoop) -> None:
    """Without on_data the parts are put before what comes with the end."""
    rig = ClientRig(loop)
    peer = rig.connect()
    job = rig.calls.submit("reverse", b"abc", unique=b"u", priority=Priority.HIGH)
    assert peer.taken() == [Packet(P.SUBMIT_JOB_HIGH, [b"reverse", b"u", b"abc"])]
    peer.send(P.JOB_CREATED, b"H:1")
    peer.send(P.WORK_DATA, b"H:1", b"c")
    peer.send(P.WORK_WARNING, b"H:1", b"ignored")
    peer.send(P.WORK_STATUS, b"H:1", b"1", b"2")
    peer.send(P.WORK_DATA, b"H:1", b"b")
    peer.send(P.WORK_COMPLETE, b"H:1", b"a")
    assert job.end() == b"cba"


def test_callbacks_are_told_on_the_way(loop: TestLoop) -> None:
    """Each callback gets what it is for, and data that was told is not in the result."""
    rig = ClientRig(loop)
    peer = rig.connect()
    told: list[object] = []
    job = rig.calls.submit(
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
    assert job.end() == b"end"


@pytest.mark.parametrize(
    ("packet", "callback"),
    [
        ((P.JOB_CREATED, b"H:1"), "on_created"),
        ((P.WORK_DATA, b"H:1", b""), "on_data"),
        ((P.WORK_WARNING, b"H:1", b""), "on_warning"),
        ((P.WORK_STATUS, b"H:1", b"1", b"2"), "on_status"),
    ],
)
def test_callback_that_raises_fails_its_own_job_only(
    loop: TestLoop, packet: tuple[Any, ...], callback: str
) -> None:
    """The call fails with the callback's exception, and the connection goes on."""
    rig = ClientRig(loop)
    peer = rig.connect()
    error = ZeroDivisionError("mine")

    def fail(*_args: object) -> None:
        raise error

    options: Any = {callback: fail}
    job, other = rig.calls.submit("f", **options), rig.calls.submit("g")
    if callback != "on_created":
        peer.send(P.JOB_CREATED, b"H:1")
    peer.send(*packet)
    assert job.end() is error
    peer.send(P.JOB_CREATED, b"H:2")
    peer.send(P.WORK_COMPLETE, b"H:1", b"dropped")
    peer.send(P.WORK_COMPLETE, b"H:2", b"taken")
    assert other.end() == b"taken"


def test_failures_say_which_job(loop: TestLoop) -> None:
    """A job that fails tells its function and handle, and an exception its data."""
    rig = ClientRig(loop)
    peer = rig.connect()
    failed, raised, refused = rig.calls.submit("f"), rig.calls.submit("g"), rig.calls.submit("h")
    peer.send(P.JOB_CREATED, b"H:1")
    peer.send(P.JOB_CREATED, b"H:2")
    peer.send(P.ERROR, b"QUEUE_ERROR", b"Job queue is full")
    peer.send(P.WORK_EXCEPTION, b"H:2", b"\xffwhy")
    peer.send(P.WORK_FAIL, b"H:1")
    error = failed.end()
    assert (type(error), error.function, error.handle) == (JobFailed, b"f", b"H:1")
    error = raised.end()
    assert (type(error), error.function, error.handle, error.data) == (JobException, b"g", b"H:2", b"\xffwhy")
    error = refused.end()
    assert (type(error), error.code, error.text) == (ServerError, "QUEUE_ERROR", "Job queue is full")


def test_background_and_questions(loop: TestLoop) -> None:
    """The other calls fire with what the server answers."""
    rig = ClientRig(loop)
    peer = rig.connect()
    calls = [
        rig.calls.submit_background("f", b"w", priority=Priority.LOW),
        rig.calls.submit_at("f", b"w", 1000.5, unique=b"u"),
        rig.calls.submit_at("f", b"w", datetime(2033, 5, 18, 3, 33, 20, tzinfo=timezone.utc)),
        rig.calls.status(b"H:1"),
        rig.calls.status_by_unique(b"u"),
        rig.calls.set_option("exceptions"),
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
    assert [call.end() for call in calls] == [
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
        (lambda client: client.submit_at("f", b"", "soon"), TypeError),
        (lambda client: client.submit_at("f", b"", float("nan")), LocalProtocolError),
        (lambda client: client.submit("f", priority="urgent"), LocalProtocolError),
        (lambda client: client.submit("f", priority=None), TypeError),
        (lambda client: client.submit("f", on_data=b"x"), TypeError),
        (lambda client: client.submit_recurring("f", b"", "daily", unique=b"u"), LocalProtocolError),
        (lambda client: client.submit_recurring("f", b"", None, unique=b"u"), TypeError),
    ],
)
def test_wrong_argument_fails_the_call_and_sends_nothing(
    loop: TestLoop, call: Callable[[Any], Outcome], error: type
) -> None:
    """What cannot be sent fails its call at once, and does not even connect."""
    rig = ClientRig(loop)
    assert type(call(rig.calls).end()) is error
    assert rig.attempts == 0


@pytest.mark.parametrize("priority", ["high", "HIGH", Priority.HIGH, 0])
def test_priority_by_name(loop: TestLoop, priority: Any) -> None:
    """A priority may be given by its name."""
    rig = ClientRig(loop)
    peer = rig.connect()
    rig.calls.submit("f", priority=priority)
    rig.calls.submit_background("f", priority=priority)
    assert [packet.type for packet in peer.taken()] == [P.SUBMIT_JOB_HIGH, P.SUBMIT_JOB_HIGH_BG]


def test_time_from_now(loop: TestLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's time may be given as a timedelta from now."""
    rig = ClientRig(loop)
    monkeypatch.setattr(rig.client._runtime, "wall_time", lambda: 1000.5)
    peer = rig.connect()
    rig.calls.submit_at("f", b"w", timedelta(minutes=1))
    assert peer.taken() == [Packet(P.SUBMIT_JOB_EPOCH, [b"f", b"", b"1061", b"w"])]


def test_cancelled_before_the_connection_is_never_sent(loop: TestLoop) -> None:
    """A call that is cancelled while it waits for the connection is forgotten."""
    rig = ClientRig(loop)
    first, second = rig.calls.submit("f"), rig.calls.echo(b"2")
    first.cancel()
    assert isinstance(first.end(), loop.runtime.cancelled)
    assert rig.server.accept_peer().taken() == [OPTION, Packet(P.ECHO_REQ, [b"2"])]
    second.cancel()
    assert isinstance(second.end(), loop.runtime.cancelled)


@pytest.mark.parametrize("packets_before", range(4))
def test_cancelled_job_does_not_disturb_others(loop: TestLoop, packets_before: int) -> None:
    """Wherever a job is when it is cancelled, what comes for it goes to nobody."""
    rig = ClientRig(loop)
    peer = rig.connect()
    job, other = rig.calls.submit("f"), rig.calls.submit("f")
    packets = [
        response(P.JOB_CREATED, b"H:1"),
        response(P.WORK_DATA, b"H:1", b"x"),
        response(P.WORK_STATUS, b"H:1", b"1", b"2"),
        response(P.JOB_CREATED, b"H:2") + response(P.WORK_COMPLETE, b"H:1", b"dropped"),
    ]
    for packet in packets[:packets_before]:
        peer.send_bytes(packet)
    job.cancel()
    assert isinstance(job.end(), loop.runtime.cancelled)
    for packet in packets[packets_before:]:
        peer.send_bytes(packet)
    peer.send(P.WORK_COMPLETE, b"H:2", b"taken")
    assert other.end() == b"taken"


def test_refusal_of_a_cancelled_call_is_nobodys(loop: TestLoop, caplog: pytest.LogCaptureFixture) -> None:
    """An error for a call that was cancelled is neither another call's nor logged."""
    rig = ClientRig(loop)
    peer = rig.connect()
    cancelled, kept = rig.calls.submit("f"), rig.calls.submit("g")
    cancelled.cancel()
    peer.send(P.ERROR, b"QUEUE_ERROR", b"full")
    peer.send(P.JOB_CREATED, b"H:2")
    peer.send(P.WORK_COMPLETE, b"H:2", b"done")
    assert kept.end() == b"done"
    assert caplog.text == ""


def test_cancelled_by_its_own_data(loop: TestLoop) -> None:
    """A job that is cancelled by a callback hears nothing more, though its end came in the same read."""
    rig = ClientRig(loop)
    peer = rig.connect()
    told: list[bytes] = []

    def take(data: bytes) -> None:
        told.append(data)
        job.cancel()

    job = rig.calls.submit("f", on_data=take)
    peer.send_bytes(
        response(P.JOB_CREATED, b"H:1")
        + response(P.WORK_DATA, b"H:1", b"part") * 2
        + response(P.WORK_COMPLETE, b"H:1", b"end")
    )
    assert isinstance(job.end(), loop.runtime.cancelled)
    assert told == [b"part"]
    echo = rig.calls.echo(b"1")
    peer.send(P.ECHO_RES, b"1")
    assert echo.end() == b"1"


def test_cancelled_from_a_callback_in_the_same_read(loop: TestLoop) -> None:
    """A call that is cancelled by another's callback hears nothing of what was read with it."""
    rig = ClientRig(loop)
    peer = rig.connect()
    told: list[bytes] = []
    second: Outcome
    first = rig.calls.submit("f", on_created=lambda _: second.cancel())
    second = rig.calls.submit("f", on_created=told.append)
    peer.send_bytes(response(P.JOB_CREATED, b"H:1") + response(P.JOB_CREATED, b"H:2"))
    assert isinstance(second.end(), loop.runtime.cancelled)
    assert told == []
    peer.send(P.WORK_COMPLETE, b"H:1", b"done")
    assert first.end() == b"done"


def test_cancelled_from_its_own_callback(loop: TestLoop) -> None:
    """A callback may cancel its own call, and may raise afterwards, without harm to others."""
    rig = ClientRig(loop)
    peer = rig.connect()

    def stop(_data: bytes) -> None:
        job.cancel()
        raise ZeroDivisionError

    job = rig.calls.submit("f", on_data=stop)
    other = rig.calls.echo(b"x")
    peer.send(P.JOB_CREATED, b"H:1")
    peer.send_bytes(response(P.WORK_DATA, b"H:1", b"") + response(P.ECHO_RES, b"x"))
    assert isinstance(job.end(), loop.runtime.cancelled)
    assert other.end() == b"x"


def test_coalesced_jobs_share_their_result(loop: TestLoop) -> None:
    """Submits with one unique on one connection all fire with the result of the one job."""
    rig = ClientRig(loop)
    peer = rig.connect()
    jobs = [rig.calls.submit("f", unique=b"u") for _ in range(2)]
    for packet in [
        response(P.JOB_CREATED, b"H:1"),
        response(P.WORK_DATA, b"H:1", b"a"),
        response(P.WORK_COMPLETE, b"H:1", b"b"),
    ]:
        peer.send_bytes(packet * 2)
    assert [job.end() for job in jobs] == [b"ab", b"ab"]


def test_recurring_and_reduce_requests(loop: TestLoop) -> None:
    """A schedule goes out with the protocol's numbers, a reduce job with its reducer and no aggregator."""
    rig = ClientRig(loop)
    peer = rig.connect()
    rig.calls.submit_recurring("f", b"w", " */5  * * jan-MAR mon-5 ", unique=b"u")
    rig.calls.submit_reduce("split", b"w", "part", unique=b"v")
    assert peer.taken() == [
        Packet(P.SUBMIT_JOB_SCHED, [b"f", b"u", b"*/5", b"*", b"*", b"1-3", b"0-4", b"w"]),
        Packet(P.SUBMIT_REDUCE_JOB, [b"split", b"v", b"part", b"", b"w"]),
    ]
    for schedule in ("* * * *", "61 * * * *", "x * * * *", "0 0 */2 * 1"):
        refused = rig.calls.submit_recurring("f", b"", schedule, unique=b"u")
        assert isinstance(refused.end(), LocalProtocolError)
    assert isinstance(rig.calls.submit_reduce("f", b"", "r" * 65).end(), LocalProtocolError)
    assert peer.taken() == []
