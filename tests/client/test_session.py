from __future__ import annotations

from collections.abc import Callable

import pytest

from gearman_twisted.client.requests import (
    Request,
    echo_request,
    option_request,
    scheduled_request,
    status_request,
    submit_request,
    unique_status_request,
)
from gearman_twisted.client.session import (
    Answered,
    Broken,
    ClientSession,
    Completed,
    Created,
    Data,
    Event,
    Failed,
    JobStatus,
    Progressed,
    Raised,
    Refused,
    Warned,
)
from gearman_twisted.errors import LocalProtocolError
from gearman_twisted.wire.codec import Decoder
from gearman_twisted.wire.constants import RES, PacketType, Priority
from gearman_twisted.wire.names import check_client_id
from gearman_twisted.wire.packet import Packet
from tests.kit.peers import requests, response

P = PacketType


def _open(session: ClientSession, *opened: Request) -> None:
    for request in opened:
        session.send(request)


def _submits(session: ClientSession, *handles: bytes) -> list[Request]:
    """Requests whose jobs are created, with these handles."""
    made = [submit_request(b"f", b"") for _ in handles]
    _open(session, *made)
    session.receive([Packet(P.JOB_CREATED, [handle]) for handle in handles])
    return made


@pytest.mark.parametrize(
    ("request_", "packet"),
    [
        (submit_request(b"f", b"w\0w", b"u"), Packet(P.SUBMIT_JOB, [b"f", b"u", b"w\0w"])),
        (submit_request(b"f", b"", b"", Priority.HIGH), Packet(P.SUBMIT_JOB_HIGH, [b"f", b"", b""])),
        (submit_request(b"f", b"", b"", Priority.LOW), Packet(P.SUBMIT_JOB_LOW, [b"f", b"", b""])),
        (submit_request(b"f", b"w", background=True), Packet(P.SUBMIT_JOB_BG, [b"f", b"", b"w"])),
        (
            submit_request(b"f", b"w", b"", Priority.HIGH, background=True),
            Packet(P.SUBMIT_JOB_HIGH_BG, [b"f", b"", b"w"]),
        ),
        (
            submit_request(b"f", b"w", b"", Priority.LOW, background=True),
            Packet(P.SUBMIT_JOB_LOW_BG, [b"f", b"", b"w"]),
        ),
        (
            scheduled_request(b"f", b"w", b"u", 12.1),
            Packet(P.SUBMIT_JOB_EPOCH, [b"f", b"u", b"13", b"w"]),
        ),
        (scheduled_request(b"f", b"w", b"", -5), Packet(P.SUBMIT_JOB_EPOCH, [b"f", b"", b"0", b"w"])),
        (status_request(b"H:1"), Packet(P.GET_STATUS, [b"H:1"])),
        (unique_status_request(b"u"), Packet(P.GET_STATUS_UNIQUE, [b"u"])),
        (echo_request(b"\0x"), Packet(P.ECHO_REQ, [b"\0x"])),
        (option_request(b"exceptions"), Packet(P.OPTION_REQ, [b"exceptions"])),
    ],
    ids=lambda value: repr(value) if isinstance(value, Packet) else "",
)
def test_request_is_encoded(request_: Request, packet: Packet) -> None:
    """Each request becomes its packet."""
    assert requests(b"".join(ClientSession().send(request_))) == [packet]


@pytest.mark.parametrize(
    "make",
    [
        lambda: submit_request(b"", b""),
        lambda: submit_request(b"f\0", b""),
        lambda: submit_request(b"f" * 8192, b""),
        lambda: submit_request(b"f", b"", b"u" * 65),
        lambda: submit_request(b"f", b"", b"u\0"),
        lambda: scheduled_request(b"f", b"", b"", float("nan")),
        lambda: scheduled_request(b"f", b"", b"", 1e300),
        lambda: status_request(b"h" * 64),
        lambda: status_request(b"h\0"),
        lambda: unique_status_request(b"u" * 65),
        lambda: option_request(b"a\0b"),
        lambda: check_client_id(b"a b"),
        lambda: check_client_id(b""),
        lambda: check_client_id(b"i" * 128),
    ],
)
def test_what_cannot_be_sent_is_refused(make: Callable[[], object]) -> None:
    """An argument that would break the packet, or the server, is refused before anything is sent."""
    with pytest.raises(LocalProtocolError):
        make()


def test_unique_of_64_bytes_is_taken() -> None:
    """The longest unique is 64 bytes."""
    request = submit_request(b"f", b"", b"u" * 64)
    assert requests(b"".join(request.packet))[0].args[1] == b"u" * 64


def test_job_from_submit_to_end() -> None:
    """A job's packets become its request's outcomes, in order."""
    session = ClientSession()
    request = submit_request(b"f", b"")
    session.send(request)
    assert session.receive(
        [
            Packet(P.JOB_CREATED, [b"H:1"]),
            Packet(P.WORK_DATA, [b"H:1", b"a"]),
            Packet(P.WORK_WARNING, [b"H:1", b"w"]),
            Packet(P.WORK_STATUS, [b"H:1", b"1", b"2"]),
            Packet(P.WORK_COMPLETE, [b"H:1", b"b"]),
        ]
    ) == [
        Created(request, b"H:1"),
        Data(request, b"a"),
        Warned(request, b"w"),
        Progressed(request, 1, 2),
        Completed(request, b"b"),
    ]


def test_replies_are_matched_by_order() -> None:
    """Each reply, an error too, answers the oldest request that has none yet."""
    session = ClientSession()
    made = [
        submit_request(b"f", b""),
        echo_request(b"x"),
        submit_request(b"g", b"", background=True),
        status_request(b"H:9"),
        submit_request(b"h", b""),
        unique_status_request(b"u"),
        option_request(b"exceptions"),
    ]
    _open(session, *made)
    assert session.receive(
        [
            Packet(P.JOB_CREATED, [b"H:1\0"]),
            Packet(P.ECHO_RES, [b"x"]),
            Packet(P.ERROR, [b"QUEUE_ERROR", b"full"]),
            Packet(P.STATUS_RES, [b"H:9", b"1", b"0", b"0", b"0"]),
            Packet(P.JOB_CREATED, [b"H:2"]),
            Packet(P.STATUS_RES_UNIQUE, [b"u", b"1", b"1", b"2", b"3", b"4"]),
            Packet(P.OPTION_RES, [b"exceptions"]),
            Packet(P.WORK_FAIL, [b"H:2\0"]),
            Packet(P.WORK_EXCEPTION, [b"H:1", b"why"]),
        ]
    ) == [
        Created(made[0], b"H:1"),
        Answered(made[1], b"x"),
        Refused(made[2], b"QUEUE_ERROR", b"full"),
        Answered(made[3], JobStatus(True, False, 0, 0)),
        Created(made[4], b"H:2"),
        Answered(made[5], JobStatus(True, True, 2, 3, 4)),
        Answered(made[6], b"exceptions"),
        Failed(made[4]),
        Raised(made[0], b"why"),
    ]


@pytest.mark.parametrize(
    ("packet", "outcome"),
    [
        (Packet(P.WORK_COMPLETE, [b"H:1", b"r"]), lambda request: Completed(request, b"r")),
        (Packet(P.WORK_FAIL, [b"H:1"]), Failed),
        (Packet(P.WORK_EXCEPTION, [b"H:1", b"r"]), lambda request: Raised(request, b"r")),
    ],
)
def test_coalesced_requests_end_together(packet: Packet, outcome: Callable[[Request], Event]) -> None:
    """The first copy of an ending ends all requests that share the handle; the other copies are ignored."""
    session = ClientSession()
    made = _submits(session, b"H:1", b"H:1", b"H:1")
    assert session.receive([packet]) == [outcome(request) for request in made]
    assert session.receive([packet, packet]) == []


def test_copies_are_dealt_in_turn() -> None:
    """Of the copies that the server sends, each request that shares the handle gets one, in turn."""
    session = ClientSession()
    one, two = _submits(session, b"H:1", b"H:1")
    copies = [Packet(P.WORK_DATA, [b"H:1", data]) for data in (b"a", b"a", b"b", b"b")]
    status = [Packet(P.WORK_STATUS, [b"H:1", b"1", b"2"])] * 2
    assert session.receive(copies + status) == [
        Data(one, b"a"),
        Data(two, b"a"),
        Data(one, b"b"),
        Data(two, b"b"),
        Progressed(one, 1, 2),
        Progressed(two, 1, 2),
    ]


def test_late_request_gets_only_what_comes_later() -> None:
    """A request that joins a running job gets its copies from then on."""
    session = ClientSession()
    (one,) = _submits(session, b"H:1")
    assert session.receive([Packet(P.WORK_DATA, [b"H:1", b"a"])]) == [Data(one, b"a")]
    (two,) = _submits(session, b"H:1")
    copies = [Packet(P.WORK_DATA, [b"H:1", b"b"])] * 2
    assert session.receive(copies) == [Data(one, b"b"), Data(two, b"b")]


def test_abandoned_request_takes_its_copies_in_silence() -> None:
    """The server goes on to send copies for an abandoned request, and they go to nobody else."""
    session = ClientSession()
    one, two = _submits(session, b"H:1", b"H:1")
    session.abandon(one)
    copies = [Packet(P.WORK_DATA, [b"H:1", b"a"])] * 2
    assert session.receive(copies) == [Data(two, b"a")]
    assert session.receive([Packet(P.WORK_COMPLETE, [b"H:1", b""])]) == [Completed(two, b"")]


def test_abandoned_request_keeps_the_order() -> None:
    """The reply to an abandoned request is taken for no other request's."""
    session = ClientSession()
    one, two = submit_request(b"f", b""), submit_request(b"f", b"")
    three, four = echo_request(b"3"), echo_request(b"4")
    _open(session, one, two, three, four)
    session.abandon(one)
    session.abandon(three)
    assert session.receive(
        [
            Packet(P.JOB_CREATED, [b"H:1"]),
            Packet(P.JOB_CREATED, [b"H:2"]),
            Packet(P.ECHO_RES, [b"3"]),
            Packet(P.WORK_COMPLETE, [b"H:1", b"one"]),
            Packet(P.ECHO_RES, [b"4"]),
            Packet(P.WORK_COMPLETE, [b"H:2", b"two"]),
        ]
    ) == [Created(two, b"H:2"), Answered(four, b"4"), Completed(two, b"two")]


def test_packets_of_unknown_jobs_are_ignored() -> None:
    """A job that ended, or that was never ours, has no outcomes."""
    packets = [
        Packet(P.WORK_DATA, [b"H:7", b""]),
        Packet(P.WORK_STATUS, [b"H:7", b"1", b"1"]),
        Packet(P.WORK_COMPLETE, [b"H:7", b""]),
        Packet(P.WORK_FAIL, [b"H:7"]),
        Packet(P.WORK_EXCEPTION, [b"H:7", b""]),
    ]
    assert ClientSession().receive(packets) == []


def test_background_job_is_not_followed() -> None:
    """A background request ends with its handle, even if it shares the job of a foreground one."""
    session = ClientSession()
    (one,) = _submits(session, b"H:1")
    background = submit_request(b"f", b"", background=True)
    session.send(background)
    assert session.receive(
        [Packet(P.JOB_CREATED, [b"H:1"]), Packet(P.WORK_DATA, [b"H:1", b"a"]), Packet(P.WORK_FAIL, [b"H:1"])]
    ) == [Created(background, b"H:1"), Data(one, b"a"), Failed(one)]


@pytest.mark.parametrize(
    ("text", "number"),
    [(b"50%", 50), (b"abc", 0), (b"", 0), (b"-1", 0), (b"7\0", 7), (b"1_0", 1), (b" 3", 3)],
)
def test_odd_status_numbers_are_read_like_a_server_would(text: bytes, number: int) -> None:
    """Workers may send any text as their progress; it never breaks the connection."""
    session = ClientSession()
    (one,) = _submits(session, b"H:1")
    assert session.receive([Packet(P.WORK_STATUS, [b"H:1", text, text])]) == [Progressed(one, number, number)]


@pytest.mark.parametrize(
    ("opened", "packet"),
    [
        ([], Packet(P.JOB_CREATED, [b"H:1"])),
        ([], Packet(P.ERROR, [b"X", b"text"])),
        ([], Packet(P.NOOP, [])),
        ([], Packet(P.BAD_PACKET, [b"INVALID_COMMAND", b"text"])),
        ([], Packet(P.BAD_STREAM, [b"INVALID_MAGIC", b"text"])),
        ([echo_request(b"x")], Packet(P.JOB_CREATED, [b"H:1"])),
        ([echo_request(b"x")], Packet(P.ECHO_RES, [b"y"])),
        ([status_request(b"H:1")], Packet(P.STATUS_RES, [b"H:2", b"0", b"0", b"0", b"0"])),
        ([submit_request(b"f", b"")], Packet(P.STATUS_RES, [b"H:2", b"0", b"0", b"0", b"0"])),
    ],
)
def test_wrong_packet_breaks_the_session(opened: list[Request], packet: Packet) -> None:
    """A packet that cannot be right ends the session, after the outcomes of what came before it."""
    session = ClientSession()
    (one,) = _submits(session, b"H:7")
    _open(session, *opened)
    outcomes = session.receive([Packet(P.WORK_FAIL, [b"H:7"]), packet, Packet(P.NOOP, [])])
    assert outcomes[0] == Failed(one)
    assert [type(outcome) for outcome in outcomes[1:]] == [Broken]


def test_frames_may_be_split_anywhere() -> None:
    """Wherever the reads end, the outcomes are the same."""
    stream = (
        response(P.JOB_CREATED, b"H:1")
        + response(P.WORK_DATA, b"H:1", b"\0RES\0")
        + response(P.WORK_STATUS, b"H:1", b"1", b"2")
        + response(P.WORK_COMPLETE, b"H:1", b"done")
        + response(P.ECHO_RES, b"")
    )
    for cut in range(len(stream) + 1):
        session, decoder = ClientSession(), Decoder(RES)
        submit, echo = submit_request(b"f", b""), echo_request(b"")
        _open(session, submit, echo)
        outcomes = session.receive(decoder.feed(stream[:cut])) + session.receive(decoder.feed(stream[cut:]))
        assert outcomes == [
            Created(submit, b"H:1"),
            Data(submit, b"\0RES\0"),
            Progressed(submit, 1, 2),
            Completed(submit, b"done"),
            Answered(echo, b""),
        ], cut
