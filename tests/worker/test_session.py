from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from gearman_twisted.errors import LocalProtocolError
from gearman_twisted.wire.codec import Decoder
from gearman_twisted.wire.constants import RES, PacketType
from gearman_twisted.wire.packet import Packet
from gearman_twisted.worker.session import Assigned, Broken, Refused, WorkerSession
from gearman_twisted.worker.slots import Limit, Slots
from tests.kit.peers import requests, response

P = PacketType
NO_JOB, NOOP = Packet(P.NO_JOB, []), Packet(P.NOOP, [])
GRAB, PRE_SLEEP = Packet(P.GRAB_JOB_UNIQ, []), Packet(P.PRE_SLEEP, [])


def sent(session: WorkerSession) -> list[Packet]:
    """What the session wants to send now."""
    return requests(b"".join(session.data_to_send()))


def assign(handle: bytes = b"H:1", function: bytes = b"f") -> Packet:
    """A job."""
    return Packet(P.JOB_ASSIGN_UNIQ, [handle, function, b"u", b"w\0w"])


def start(count: int = 1, functions: dict[bytes, int] | None = None) -> WorkerSession:
    """A session that has just sent its first packets."""
    session = WorkerSession(Slots(count), {b"f": 0} if functions is None else functions)
    sent(session)
    return session


def take(session: WorkerSession, handle: bytes = b"H:1", function: bytes = b"f") -> Assigned:
    """A job that the session is given."""
    (job,) = session.receive([assign(handle, function)])
    assert isinstance(job, Assigned)
    return job


def test_session_opens_with_its_name_its_functions_and_a_grab() -> None:
    """The server is told the id and the functions before it is asked for a job."""
    session = WorkerSession(Slots(1), {b"f": 0, b"g": 1500}, b"me")
    assert sent(session) == [
        Packet(P.SET_CLIENT_ID, [b"me"]),
        Packet(P.CAN_DO, [b"f"]),
        Packet(P.CAN_DO_TIMEOUT, [b"g", b"1500"]),
        GRAB,
    ]


def test_session_without_functions_asks_for_nothing() -> None:
    """There is no grab before there is something to do."""
    session = start(functions={})
    assert sent(session) == []
    session.offer(b"f")
    assert sent(session) == [Packet(P.CAN_DO, [b"f"]), GRAB]


def test_job_is_assigned_and_completed() -> None:
    """A result and the next grab go out together."""
    session = start()
    job = take(session)
    assert job == Assigned(b"H:1", b"f", b"u", b"w\0w")
    assert sent(session) == []
    session.send_data(job.handle, b"d")
    session.send_warning(job.handle, b"w")
    session.send_status(job.handle, 1, 2)
    session.complete(job, b"r")
    assert sent(session) == [
        Packet(P.WORK_DATA, [b"H:1", b"d"]),
        Packet(P.WORK_WARNING, [b"H:1", b"w"]),
        Packet(P.WORK_STATUS, [b"H:1", b"1", b"2"]),
        Packet(P.WORK_COMPLETE, [b"H:1", b"r"]),
        GRAB,
    ]


def test_sleep_and_wake() -> None:
    """Without a job the session sleeps, and the server's NOOP makes it ask again."""
    session = start()
    assert session.receive([NO_JOB]) == []
    assert sent(session) == [PRE_SLEEP]
    assert session.receive([NOOP]) == []
    assert sent(session) == [GRAB]
    # A second one, or one that crosses the grab, changes nothing.
    assert session.receive([NOOP, NOOP]) == []
    assert sent(session) == []


def test_no_more_grabs_than_slots() -> None:
    """There is one grab at a time, and none while all slots are taken."""
    session = start(2)
    one = take(session, b"H:1")
    assert sent(session) == [GRAB]
    two = take(session, b"H:2")
    assert sent(session) == []
    session.complete(one, b"")
    assert sent(session)[1:] == [GRAB]
    session.complete(two, b"")
    assert sent(session) == [Packet(P.WORK_COMPLETE, [b"H:2", b""])]


def test_asleep_session_does_not_ask_when_a_job_ends() -> None:
    """Once the server said that there is no job, only a NOOP is reason to ask again."""
    session = start(2)
    job = take(session)
    session.receive([NO_JOB])
    sent(session)
    session.complete(job, b"")
    assert sent(session) == [Packet(P.WORK_COMPLETE, [b"H:1", b""])]


def test_noop_without_a_slot_is_remembered() -> None:
    """A NOOP that comes while all slots are taken is acted on when one is free."""
    slots = Slots(1)
    busy, idle = WorkerSession(slots, {b"f": 0}), WorkerSession(slots)
    sent(busy)
    job = take(busy)
    idle.offer(b"f")
    assert sent(idle) == [Packet(P.CAN_DO, [b"f"])]
    idle.receive([NOOP])
    assert sent(idle) == []
    # The busy one stands in line since it got its job, before the other.
    busy.complete(job, b"")
    assert sent(busy)[1:] == [GRAB]
    busy.receive([NO_JOB])
    assert sent(busy) == [PRE_SLEEP]
    assert sent(idle) == [GRAB]


def test_busy_servers_take_turns() -> None:
    """A slot goes to the server that has waited longest."""
    slots = Slots(1)
    one, two = WorkerSession(slots, {b"f": 0}), WorkerSession(slots, {b"f": 0})
    served = []
    sent(one), sent(two)
    session, other = one, two
    for _ in range(4):
        job = take(session)
        served.append(session)
        session.complete(job, b"")
        assert GRAB in sent(other)
        assert GRAB not in sent(session)
        session, other = other, session
    assert served == [one, two, one, two]


def test_exception_is_followed_by_fail() -> None:
    """An exception ends the job on every kind of server; an ERROR for the second packet is not news."""
    session = start()
    session.raise_exception(take(session), b"ValueError: no")
    assert sent(session) == [
        Packet(P.WORK_EXCEPTION, [b"H:1", b"ValueError: no"]),
        Packet(P.WORK_FAIL, [b"H:1"]),
        GRAB,
    ]
    error = Packet(P.ERROR, [b"JOB_NOT_FOUND", b"text\0"])
    assert session.receive([error, error]) == [
        Refused(b"JOB_NOT_FOUND", b"text"),
    ]


def test_error_does_not_answer_a_grab() -> None:
    """An ERROR about a late result leaves the grab open."""
    session = start()
    session.fail(take(session))
    assert sent(session) == [Packet(P.WORK_FAIL, [b"H:1"]), GRAB]
    outcomes = session.receive([Packet(P.ERROR, [b"JOB_NOT_FOUND", b"text"]), assign(b"H:2")])
    assert outcomes == [Refused(b"JOB_NOT_FOUND", b"text"), Assigned(b"H:2", b"f", b"u", b"w\0w")]


def test_job_given_twice_is_counted_twice() -> None:
    """A server that took a job back may give it to the same connection again while it still runs."""
    session = start(2)
    one, two = take(session), take(session)
    session.complete(one, b"")
    session.complete(two, b"")
    sent(session)
    session.receive([NO_JOB])
    assert session.is_idle


def test_new_function_is_asked_for_at_once() -> None:
    """A sleeping session that offers more asks again, as servers do not wake it for jobs that waited."""
    session = start()
    session.receive([NO_JOB])
    sent(session)
    session.offer(b"g", 2000)
    assert sent(session) == [Packet(P.CAN_DO_TIMEOUT, [b"g", b"2000"]), GRAB]


def test_function_is_withdrawn_at_once_when_idle() -> None:
    """A sleeping session takes a function back at once, and sleeps on."""
    session = start(functions={b"f": 0, b"g": 0})
    session.receive([NO_JOB])
    sent(session)
    session.withdraw(b"g")
    session.withdraw(b"never offered")
    assert sent(session) == [Packet(P.CANT_DO, [b"g"])]


def test_withdrawal_waits_for_running_jobs() -> None:
    """A server takes running jobs back with their function, so it is told when they have ended."""
    session = start(2, {b"f": 0, b"g": 0})
    job = take(session)
    sent(session)
    session.withdraw(b"f")
    assert sent(session) == []
    session.receive([NO_JOB])
    assert sent(session) == []
    session.complete(job, b"")
    assert sent(session) == [Packet(P.WORK_COMPLETE, [b"H:1", b""]), Packet(P.CANT_DO, [b"f"]), GRAB]


def test_withdrawal_waits_for_the_answer_to_a_grab() -> None:
    """A job that is on its way when its function is withdrawn is done, not lost."""
    session = start()
    session.withdraw(b"f")
    assert sent(session) == []
    job = take(session)
    assert sent(session) == []
    session.complete(job, b"")
    assert sent(session) == [Packet(P.WORK_COMPLETE, [b"H:1", b""]), Packet(P.CANT_DO, [b"f"])]
    session.offer(b"f")
    assert sent(session) == [Packet(P.CAN_DO, [b"f"]), GRAB]


def test_change_of_the_limit_replaces_the_offer() -> None:
    """A function with another limit is taken back and offered anew."""
    session = start()
    session.offer(b"f", 3000)
    assert sent(session) == []
    session.receive([NO_JOB])
    assert sent(session) == [
        Packet(P.CANT_DO, [b"f"]),
        Packet(P.CAN_DO_TIMEOUT, [b"f", b"3000"]),
        PRE_SLEEP,
    ]


def test_change_while_in_line_for_a_slot() -> None:
    """A session with a change to tell gives up its place in the line, and asks once it has told."""
    session = start()
    job = take(session)
    session.offer(b"f", 3000)
    session.complete(job, b"")
    assert sent(session) == [
        Packet(P.WORK_COMPLETE, [b"H:1", b""]),
        Packet(P.CANT_DO, [b"f"]),
        Packet(P.CAN_DO_TIMEOUT, [b"f", b"3000"]),
        GRAB,
    ]


def test_drain_takes_no_more() -> None:
    """A draining session takes the job that is on its way, and asks for no other."""
    session = start()
    session.drain()
    assert not session.is_idle
    job = take(session)
    session.receive([NOOP])
    assert not session.is_idle
    session.complete(job, b"")
    assert sent(session) == [Packet(P.WORK_COMPLETE, [b"H:1", b""])]
    assert session.is_idle


def test_drain_without_a_job() -> None:
    """A draining session does not go to sleep: it would be woken for jobs that it does not take."""
    session = start()
    session.drain()
    session.receive([NO_JOB])
    assert sent(session) == []
    assert session.is_idle


def test_lost_connection_gives_its_grab_back() -> None:
    """The slot of a grab that will not be answered serves another session."""
    slots = Slots(1)
    one, two = WorkerSession(slots, {b"f": 0}), WorkerSession(slots, {b"f": 0})
    sent(one), sent(two)
    one.close()
    assert sent(two) == [GRAB]
    assert sent(one) == []


def test_job_of_a_lost_connection_keeps_its_slot() -> None:
    """A function that still runs counts, though its result is discarded."""
    slots = Slots(1)
    one, two = WorkerSession(slots, {b"f": 0}), WorkerSession(slots)
    job = take(one)
    one.close()
    two.offer(b"f")
    assert sent(two) == [Packet(P.CAN_DO, [b"f"])]
    one.raise_exception(job, b"")
    assert sent(one) == []
    assert sent(two) == [GRAB]


@pytest.mark.parametrize("end", [lambda s, j: s.complete(j, b"r"), lambda s, j: s.fail(j)])
def test_end_after_the_connection_is_lost_sends_nothing(
    end: Callable[[WorkerSession, Assigned], None],
) -> None:
    """What cannot be sent is dropped."""
    session = start()
    job = take(session)
    session.close()
    end(session, job)
    assert sent(session) == []


@pytest.mark.parametrize(
    "packet",
    [
        NO_JOB,
        assign(b"H:2"),
        Packet(P.JOB_ASSIGN, [b"H:2", b"f", b""]),
        Packet(P.JOB_CREATED, [b"H:2"]),
        Packet(P.BAD_PACKET, [b"X", b"text"]),
        Packet(P.BAD_STREAM, [b"X", b"text"]),
    ],
)
def test_wrong_packet_breaks_the_session(packet: Packet) -> None:
    """A packet that cannot be right ends the session, after what came before it."""
    session = start()
    outcomes = session.receive([assign(), packet, NOOP])
    assert [type(outcome) for outcome in outcomes] == [Assigned, Broken]


@pytest.mark.parametrize(
    "misuse",
    [
        lambda session: session.send_status(b"H:1", -1, 1),
        lambda session: session.send_status(b"H:1", 1, 1 << 32),
        lambda session: session.offer(b""),
        lambda session: session.offer(b"f", -1),
    ],
)
def test_what_cannot_be_sent_is_refused(misuse: Callable[[WorkerSession], None]) -> None:
    """A value that would break the connection is refused."""
    with pytest.raises(LocalProtocolError):
        misuse(start())


def test_frames_may_be_split_anywhere() -> None:
    """Wherever the reads end, the outcomes and what is sent are the same."""
    stream = (
        response(P.NO_JOB)
        + response(P.NOOP)
        + response(P.ERROR, b"JOB_NOT_FOUND", b"text")
        + response(P.JOB_ASSIGN_UNIQ, b"H:1", b"f", b"u", b"\0RES\0")
    )
    for cut in range(len(stream) + 1):
        session, decoder = start(), Decoder(RES)
        outcomes = session.receive(decoder.feed(stream[:cut])) + session.receive(decoder.feed(stream[cut:]))
        assert outcomes == [
            Refused(b"JOB_NOT_FOUND", b"text"),
            Assigned(b"H:1", b"f", b"u", b"\0RES\0"),
        ], cut
        assert sent(session) == [PRE_SLEEP, GRAB]


def test_ping_is_answered_in_silence() -> None:
    """The answer to a ping is no news; one that was not asked for breaks the session."""
    session = start()
    session.ping()
    assert sent(session) == [Packet(P.ECHO_REQ, [b"ping"])]
    echo = Packet(P.ECHO_RES, [b"ping"])
    assert session.receive([echo]) == []
    assert [type(outcome) for outcome in session.receive([echo])] == [Broken]


def test_limit_bounds_the_sessions_that_share_it() -> None:
    """Of a function with a limit no more jobs are asked for, on any server, while others get the slots."""
    slots, limit = Slots(3), Limit(1)
    one = WorkerSession(slots, {b"f": 0}, limit=limit)
    two = WorkerSession(slots, {b"f": 0}, limit=limit)
    other = WorkerSession(slots, {b"g": 0})
    assert [GRAB in sent(session) for session in (one, two, other)] == [True, False, True]
    job = take(one)
    assert sent(one) == sent(two) == []
    take(other, b"H:2", b"g")
    assert sent(other) == [GRAB]
    one.complete(job, b"")
    # Whoever waited longest is next.
    assert GRAB in sent(two)
    assert GRAB not in sent(one)
    two.receive([NO_JOB])
    assert sent(one) == [GRAB]


def test_turn_that_comes_without_room_in_the_limit_is_passed_on() -> None:
    """A session that stands in line for a slot does not take one that its limit forbids."""
    slots, limit = Slots(1), Limit(1)
    busy = WorkerSession(slots, {b"g": 0})
    one = WorkerSession(slots, {b"f": 0}, limit=limit)
    two = WorkerSession(slots, {b"f": 0}, limit=limit)
    job = take(busy, b"H:1", b"g")
    for session in (busy, one, two):
        sent(session)
    slots.count, slots.free = 2, 1
    busy.complete(job, b"")
    assert [GRAB in sent(session) for session in (one, two, busy)] == [True, False, True]
    one.close()
    assert sent(two) == [GRAB]


def test_lost_session_leaves_the_line_of_its_limit() -> None:
    """A slot is not given to a session that is gone."""
    slots, limit = Slots(2), Limit(1)
    one = WorkerSession(slots, {b"f": 0}, limit=limit)
    two = WorkerSession(slots, {b"f": 0}, limit=limit)
    two.close()
    sent(one)
    one.receive([NO_JOB])
    assert (slots.free, limit.free) == (2, 1)


def test_job_is_given_back() -> None:
    """A server takes a job back with its function, which is offered again when that is asked for."""
    session = start(functions={b"f": 0, b"g": 0})
    session.give_back(take(session))
    assert sent(session) == [Packet(P.CANT_DO, [b"f"]), GRAB]
    session.receive([NO_JOB])
    sent(session)
    session.offer(b"f")
    assert sent(session) == [Packet(P.CAN_DO, [b"f"]), GRAB]


def test_last_function_is_given_back() -> None:
    """With nothing else to do there is no grab before the function is offered again."""
    session = start()
    session.give_back(take(session))
    assert sent(session) == [Packet(P.CANT_DO, [b"f"])]
    assert session.is_idle
    session.offer(b"f")
    assert sent(session) == [Packet(P.CAN_DO, [b"f"]), GRAB]


def test_job_is_given_back_when_others_of_its_function_have_ended() -> None:
    """They would be taken back with it, and run twice."""
    session = start(2)
    one, two = take(session, b"H:1"), take(session, b"H:2")
    sent(session)
    session.give_back(one)
    assert sent(session) == []
    assert session.is_held_up
    # Even if it is offered again by then.
    session.offer(b"f")
    assert sent(session) == []
    session.complete(two, b"r")
    assert sent(session) == [
        Packet(P.WORK_COMPLETE, [b"H:2", b"r"]),
        Packet(P.CANT_DO, [b"f"]),
        Packet(P.CAN_DO, [b"f"]),
        GRAB,
    ]
    assert not session.is_held_up


def test_parked_job_frees_its_slot() -> None:
    """Another job has its slot; with a slot of its own again it is ended as any."""
    slots = Slots(1)
    session = WorkerSession(slots, {b"f": 0, b"g": 0})
    sent(session)
    one = take(session, b"H:1")
    session.park(one)
    assert sent(session) == [GRAB]
    session.receive([NO_JOB])
    was_idle = session.is_idle
    assert slots.reserve(session)
    session.unpark(one)
    assert (was_idle, session.is_idle) == (True, False)
    session.complete(one, b"")
    assert slots.free == 1


def test_end_that_keeps_the_slot() -> None:
    """The server hears of the end, and no other job is taken before the function has come to its own."""
    session = start()
    session.raise_exception(take(session), b"late", keeps_slot=True)
    assert sent(session) == [Packet(P.WORK_EXCEPTION, [b"H:1", b"late"]), Packet(P.WORK_FAIL, [b"H:1"])]
    session.free_slot()
    assert sent(session) == [GRAB]


def steps(call: Callable[[], object]) -> int:
    """How many lines of the session's module a call runs through."""
    code = WorkerSession.receive.__code__.co_filename
    count = 0

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename != code:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("is_grabbing", [False, True])
def test_many_functions_cost_the_same_each(is_grabbing: bool) -> None:
    """Ten times as many functions, registered and withdrawn while running, take ten times the steps."""

    def come_and_go(number: int) -> int:
        session = start()
        if not is_grabbing:
            session.receive([NO_JOB])

        def run() -> None:
            for index in range(number):
                session.offer(b"f%d" % index)
            if not is_grabbing:
                session.receive([NO_JOB])
            for index in range(number):
                session.withdraw(b"f%d" % index)
            if is_grabbing:
                session.receive([NO_JOB])

        taken = steps(run)
        packets = sent(session)
        assert sum(packet.type == P.CAN_DO for packet in packets) == number
        assert sum(packet.type == P.CANT_DO for packet in packets) == number
        return taken

    assert come_and_go(1000) <= 10 * come_and_go(100) + 100
