"""Servers that do not answer a grab, or refuse it: the jobs of other servers do not wait for them."""

from __future__ import annotations

from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from gearman_twisted.worker.session import Assigned, AssignedLate, Broken, GrabRefused, Refused, WorkerSession
from gearman_twisted.worker.slots import Slots
from tests.worker.test_session import GRAB, NO_JOB, NOOP, PRE_SLEEP, assign, sent, start, take

P = PacketType


def test_silent_server_lends_its_slot() -> None:
    """An open grab without an answer gives its slot to others; a late NO_JOB is one as any."""
    slots = Slots(1)
    silent = WorkerSession(slots, {b"f": 0})
    other = WorkerSession(slots, {b"f": 0})
    assert (GRAB in sent(silent), GRAB in sent(other)) == (True, False)
    assert slots.is_wanted
    silent.lend_slot()
    silent.lend_slot()
    assert sent(other) == [GRAB]
    assert silent.receive([NO_JOB]) == []
    assert sent(silent) == [PRE_SLEEP]
    other.receive([NO_JOB])
    assert slots.free == 1


def test_late_job_waits_for_a_slot() -> None:
    """It is parked, and no other job is asked for before it has a slot and is at work."""
    slots = Slots(1)
    silent = WorkerSession(slots, {b"f": 0})
    other = WorkerSession(slots, {b"f": 0})
    silent.lend_slot()
    running = take(other)
    sent(silent)
    (late,) = silent.receive([assign(b"H:2")])
    assert late == AssignedLate(Assigned(b"H:2", b"f", b"u", b"w\0w"))
    assert sent(silent) == []
    other.complete(running, b"")
    # The other session stands in line as well; the caller has reserved the slot for the late job first.
    other.receive([NO_JOB])
    assert slots.reserve(silent)
    silent.unpark(late.job)
    silent.complete(late.job, b"")
    assert sent(silent)[-1] == GRAB


def test_lost_connection_returns_no_slot_twice() -> None:
    """A slot that was lent is not returned again when its connection is lost."""
    slots = Slots(1)
    silent = WorkerSession(slots, {b"f": 0})
    silent.lend_slot()
    silent.close()
    assert slots.free == 1


def test_server_without_uniques_is_asked_without() -> None:
    """An ERROR that answers the first grab: the server does not know GRAB_JOB_UNIQ."""
    session = start()
    error = Packet(P.ERROR, [b"server_error", b"no such command"])
    assert session.receive([error]) == [GrabRefused(b"no such command")]
    assert sent(session) == [Packet(P.GRAB_JOB, [])]
    assert session.receive([Packet(P.JOB_ASSIGN, [b"H:1", b"f", b"w"])]) == [
        Assigned(b"H:1", b"f", b"", b"w")
    ]
    assert session.receive([error]) == [Refused(b"server_error", b"no such command")]
    known = WorkerSession(Slots(1), {b"f": 0}, has_uniques=False)
    assert sent(known)[-1] == Packet(P.GRAB_JOB, [])


def test_server_that_refuses_every_grab_breaks_the_session() -> None:
    """There is nothing left to ask with."""
    session = start()
    error = Packet(P.ERROR, [b"server_error", b"no"])
    session.receive([error])
    (broken,) = session.receive([error, NOOP])
    assert isinstance(broken, Broken)
    assert "refuses GRAB_JOB: no" in str(broken.reason)


def test_job_without_unique_was_not_asked_for() -> None:
    """JOB_ASSIGN does not answer GRAB_JOB_UNIQ."""
    (broken,) = start().receive([Packet(P.JOB_ASSIGN, [b"H:1", b"f", b"w"])])
    assert isinstance(broken, Broken)
