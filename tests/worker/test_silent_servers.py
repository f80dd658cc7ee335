"""Servers that do not answer a grab, or refuse it: the jobs of other servers do not wait for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from gearman_twisted.worker.session import Assigned, AssignedLate, Broken, GrabRefused, Refused, WorkerSession
from gearman_twisted.worker.slots import Slots
from tests.kit.worker_rig import PING, Lines, Rig, complete
from tests.kit.worker_rig import assign as assign_to
from tests.worker.test_session import GRAB, NO_JOB, NOOP, PRE_SLEEP, assign, sent, start, take

P = PacketType
MakeRig = Callable[..., Rig]


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


def connect_two(rig: Rig) -> tuple[Any, Any]:
    """Start a worker of two servers; the first one has the only slot's grab, and does not answer."""
    rig.start()
    silent, healthy = rig.accept(), rig.accept()
    assert (GRAB in silent.taken(), GRAB in healthy.taken()) == (True, False)
    return silent, healthy


def test_silent_server_does_not_stop_the_others(make_rig: MakeRig) -> None:
    """A job of a healthy server starts within a second or so, whatever another server does."""
    rig = make_rig("silent:1", "healthy:1")
    silent, healthy = connect_two(rig)
    rig.advance(1.0)
    assert healthy.taken() == [GRAB]
    assert assign_to(healthy, b"wait") == []
    rig.pending[0][1].succeed(b"r")
    assert healthy.taken() == [complete(b"H:1", b"r"), GRAB]
    assert silent.taken() == []
    healthy.send(P.NO_JOB)
    # Its late answer is one as any.
    silent.send(P.NO_JOB)
    assert silent.taken() == [PRE_SLEEP]
    silent.send(P.NOOP)
    assert silent.taken() == [GRAB]


def test_late_job_of_a_silent_server_is_done(make_rig: MakeRig) -> None:
    """With a slot free it runs at once."""
    rig = make_rig("silent:1", "healthy:1")
    silent, healthy = connect_two(rig)
    rig.advance(1.0)
    healthy.send(P.NO_JOB)
    assert assign_to(silent, b"wait") == []
    rig.pending[0][1].succeed(b"r")
    assert silent.taken() == [complete(b"H:1", b"r"), GRAB]


def test_late_job_comes_before_new_ones(make_rig: MakeRig) -> None:
    """Without a free slot it waits for the next one, and no server is asked for more before it runs."""
    rig = make_rig("silent:1", "healthy:1")
    silent, healthy = connect_two(rig)
    rig.advance(1.0)
    assign_to(healthy, b"wait", b"H:1")
    assert assign_to(silent, b"wait", b"H:2") == []
    healthy.taken()
    assert len(rig.pending) == 1
    rig.pending[0][1].succeed(b"one")
    assert healthy.taken() == [complete(b"H:1", b"one")]
    assert [job.handle for job, _ in rig.pending] == [b"H:1", b"H:2"]
    rig.pending[1][1].succeed(b"two")
    assert silent.taken()[0] == complete(b"H:2", b"two")


def test_late_job_goes_back_with_its_connection(make_rig: MakeRig) -> None:
    """One that still waits for a slot is dropped when its connection is lost, or the worker stops."""
    rig = make_rig("silent:1", "healthy:1")
    silent, healthy = connect_two(rig)
    rig.advance(1.0)
    assign_to(healthy, b"wait", b"H:1")
    assign_to(silent, b"wait", b"H:2")
    stopped = rig.stop()
    assert silent.is_closing()
    silent.lose()
    rig.pending[0][1].succeed(b"one")
    healthy.lose()
    assert stopped.is_settled
    assert len(rig.pending) == 1
    assert rig.core.slots.free == 1


def test_slow_answers_lend_nothing(make_rig: MakeRig) -> None:
    """A server that answers each grab within half a second keeps its turn."""
    rig = make_rig("slow:1", "other:1")
    slow, other = connect_two(rig)
    for number in range(4):
        rig.advance(0.4)
        assign_to(slow, b"wait", b"H:%d" % number)
        rig.pending[-1][1].succeed(b"")
        assert GRAB in other.taken()
        rig.advance(0.4)
        other.send(P.NO_JOB)
        other.taken()
        other.send(P.NOOP)
        assert slow.taken()[-1] == GRAB
        assert other.taken() == []


def test_worker_without_rivals_looks_at_nothing(make_rig: MakeRig) -> None:
    """One server keeps the slot of its open grab, and no timer runs for it."""
    rig = make_rig(ping_interval=None)
    peer = rig.connect()
    rig.advance(100)
    assert rig.timers() == []
    assert assign_to(peer, b"wait") == []
    assert len(rig.pending) == 1


def test_server_that_refuses_uniques_is_asked_without(make_rig: MakeRig, log: Lines) -> None:
    """It is remembered for later connections, and logged once."""
    rig = make_rig(retry_policy=lambda _attempt: 1.0)
    peer = rig.connect()
    peer.send(P.ERROR, b"server_error", b"no such command")
    assert peer.taken() == [Packet(P.GRAB_JOB, [])]
    peer.send(P.JOB_ASSIGN, b"H:1", b"wait", b"w")
    assert [(job.unique, job.workload) for job, _ in rig.pending] == [(b"", b"w")]
    peer.lose()
    rig.advance(1)
    rig.pending[0][1].succeed(b"")
    assert Packet(P.GRAB_JOB, []) in rig.accept().taken()
    assert sum("does not know GRAB_JOB_UNIQ" in line for line in log.lines) == 1


def test_server_that_refuses_all_grabs_is_given_up(make_rig: MakeRig, logged: list[str]) -> None:
    """It is connected again later, and keeps no slot meanwhile."""
    rig = make_rig()
    peer = rig.connect()
    for _ in range(2):
        peer.send(P.ERROR, b"server_error", b"no")
    assert peer.is_closing()
    assert rig.core.slots.free == 1
    assert logged == ["closing connection to 127.0.0.1:4730: the server refuses GRAB_JOB: no"]


@pytest.mark.parametrize("is_known", [False, True])
def test_server_that_never_answers_pings_is_kept(make_rig: MakeRig, *, is_known: bool) -> None:
    """Some servers do not know the question; one that has answered on an earlier connection does."""
    rig = make_rig(ping_interval=9, retry_policy=lambda _attempt: 1.0)
    peer = rig.connect()
    peer.send(P.NO_JOB)
    rig.advance(6)
    assert PING in peer.taken()
    if is_known:
        peer.send(P.ECHO_RES, b"ping")
    peer.lose()
    rig.advance(1)
    again = rig.accept()
    again.send(P.NO_JOB)
    rig.advance(30)
    assert again.is_closing() == is_known


def test_server_that_never_answers_a_grab_is_given_up(make_rig: MakeRig, logged: list[str]) -> None:
    """Every server knows grabs, so a silent one is found out, whether it knows pings or not."""
    rig = make_rig(ping_interval=9)
    peer = rig.connect()
    rig.advance(8)
    was_closing = peer.is_closing()
    rig.advance(1)
    assert (was_closing, peer.is_closing()) == (False, True)
    assert logged == ["closing connection to 127.0.0.1:4730: it has not answered for 9 seconds"]


def test_worker_that_stops_does_not_wait_for_a_silent_server(make_rig: MakeRig) -> None:
    """A grab that is not answered within two seconds does not hold up the end; a job that runs does."""
    rig = make_rig("silent:1", "busy:1")
    silent, busy = connect_two(rig)
    rig.advance(1.0)
    assign_to(busy, b"wait")
    stopped = rig.stop()
    rig.advance(1.9)
    was_closing = silent.is_closing()
    rig.advance(0.2)
    assert (was_closing, silent.is_closing(), busy.is_closing()) == (False, True, False)
    silent.lose()
    rig.pending[0][1].succeed(b"")
    busy.lose()
    assert stopped.end() is None
