"""Recurring jobs: SUBMIT_JOB_SCHED."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gearman_twisted.wire.constants import ErrorCode
from gearman_twisted.wire.schedule import Schedule
from tests.kit.engine_farm import Farm, P, Peer, packet

DAY = 86_400


def at(text: str) -> int:
    """Seconds since 1970 of a time in UTC."""
    return int(dt.datetime.fromisoformat(f"{text}+00:00").timestamp())


@pytest.mark.parametrize(
    ("fields", "now", "then"),
    [
        ("* * * * *", "2026-11-21 10:00:00", "2026-11-21 10:01:00"),
        ("* * * * *", "2026-11-21 10:00:59", "2026-11-21 10:01:00"),
        ("0 12 * * *", "2026-11-21 11:59:59", "2026-11-21 12:00:00"),
        ("0 12 * * *", "2026-11-21 12:00:00", "2026-11-22 12:00:00"),
        ("*/20 * * * *", "2026-11-21 10:21:00", "2026-11-21 10:40:00"),
        ("5,35 9-10 * * *", "2026-11-21 10:35:00", "2026-11-22 09:05:00"),
        ("0 0 1 1 *", "2026-11-21 10:00:00", "2027-01-01 00:00:00"),
        ("0 0 29 2 *", "2026-11-21 10:00:00", "2028-02-29 00:00:00"),
        ("0 0 29 2 *", "2096-03-01 00:00:00", "2104-02-29 00:00:00"),
        ("0 0 31 * *", "2026-11-21 10:00:00", "2026-12-31 00:00:00"),
        # 2026-11-21 is a Saturday; Monday is day 0.
        ("0 0 * * 0", "2026-11-21 10:00:00", "2026-11-23 00:00:00"),
        ("0 0 * * 6", "2026-11-21 10:00:00", "2026-11-22 00:00:00"),
        # Either day will do, as in a crontab.
        ("0 0 1 * 0", "2026-11-28 10:00:00", "2026-11-30 00:00:00"),
        ("0 0 1 * 0", "2026-11-30 00:00:00", "2026-12-01 00:00:00"),
    ],
)
def test_next_time(fields: str, now: str, then: str) -> None:
    """The next time is the first one after now that fits all fields."""
    assert Schedule(fields.encode().split()).next_after(at(now)) == at(then)


@given(
    now=st.integers(0, 4_000_000_000),
    minute=st.integers(0, 59),
    hour=st.integers(0, 23),
    day=st.integers(1, 31),
    month=st.integers(1, 12),
)
def test_next_time_is_that_of_the_calendar(now: int, minute: int, hour: int, day: int, month: int) -> None:
    """Whatever the date, the time that is found has the fields that were asked for, and lies ahead."""
    try:
        schedule = Schedule([b"%d" % number for number in (minute, hour, day, month)] + [b"*"])
    except ValueError:
        assert (month, day) in {(2, 30), (2, 31), (4, 31), (6, 31), (9, 31), (11, 31)}
        return
    then = dt.datetime.fromtimestamp(schedule.next_after(now), dt.timezone.utc)
    assert (then.minute, then.hour, then.day, then.month) == (minute, hour, day, month)
    assert now < then.timestamp() <= now + 8 * 366 * DAY


@pytest.mark.parametrize(
    "fields",
    [
        *("60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 13 *", "* * * * 7", "x * * * *"),
        *("5-1 * * * *", "*/0 * * * *", "1,,2 * * * *", "-1 * * * *", "* * 30 2 *", "1-2-3 * * * *"),
    ],
)
def test_nonsense_is_refused(fields: str) -> None:
    """A field out of its range, or a date that never comes, is an ERROR that says so."""
    farm = Farm()
    client = farm.connect()
    client.send(P.SUBMIT_JOB_SCHED, b"f", b"", *fields.encode().split(), b"w")
    [error] = client.read()
    assert (error.type, error.args[0]) == (P.ERROR, ErrorCode.INVALID_ARGUMENT)
    assert client.ask(b"show scheduled") == b".\n"


def recur(client: Peer, fields: bytes = b"0 12 * * *", unique: bytes = b"", workload: bytes = b"w") -> None:
    """Submit a recurring job, and do not wait for the reply."""
    client.send(P.SUBMIT_JOB_SCHED, b"f", unique, *fields.split(), workload)


def recurring(
    client: Peer, fields: bytes = b"0 12 * * *", unique: bytes = b"", workload: bytes = b"w"
) -> bytes:
    """Submit a recurring job and return its handle."""
    recur(client, fields, unique, workload)
    [created] = client.read()
    assert created.type == P.JOB_CREATED
    return created.args[0]


def test_a_job_is_made_each_time() -> None:
    """At each of its times a sleeping worker is woken for a job of its own handle."""
    farm = Farm()
    handle = recurring(farm.connect())
    worker = farm.worker()
    handles = []
    for _ in range(3):
        assert worker.sleep() == []
        farm.wait(DAY)
        assert worker.read_types() == [P.NOOP]
        job = worker.grab()
        assert job is not None
        worker.complete(job)
        handles.append(job)
    assert len({handle, *handles}) == 4


def test_it_is_listed_and_cancelled_by_handle() -> None:
    """Show scheduled has its next time and its fields with names; a cancelled one no longer runs."""
    farm = Farm()
    client = farm.connect()
    handle = recurring(client, b"*/5 * * * 0-4", b"u")
    due = Schedule(b"*/5 * * * 0-4".split()).next_after(farm.now)
    assert client.ask(b"show scheduled") == b"%b\tf\tu\t%d\t*/5 * * * mon-fri\n.\n" % (handle, due)
    assert client.ask(b"show jobs") == b".\n"
    assert client.ask(b"status") == b"f\t0\t0\t0\n.\n"
    assert client.ask(b"cancel job " + handle) == b"OK\r\n"
    assert client.ask(b"show scheduled") == b".\n"
    farm.wait(7 * DAY)
    assert client.ask(b"status") == b"f\t0\t0\t0\n.\n"


def test_it_is_cancelled_by_unique() -> None:
    """Cancel unique ends the recurring job and the one that was made of it."""
    farm = Farm()
    client = farm.connect()
    recurring(client, unique=b"u")
    farm.wait(DAY)
    assert client.ask(b"status") == b"f\t1\t0\t0\n.\n"
    assert client.ask(b"cancel unique f u") == b"OK\r\n"
    assert client.ask(b"status") == b"f\t0\t0\t0\n.\n"
    assert client.ask(b"show scheduled") == b".\n"
    assert client.ask(b"cancel unique f u") == b"ERR UNKNOWN_JOB\r\n"


def test_status_knows_it() -> None:
    """GET_STATUS for its handle says that it is known and does not run."""
    client = Farm().connect()
    handle = recurring(client)
    client.send(P.GET_STATUS, handle)
    assert client.read() == [packet(P.STATUS_RES, handle, b"1", b"0", b"0", b"0")]


def test_the_same_again_is_the_same() -> None:
    """Submitted again with its unique it stays as it is; with another time or workload it is replaced."""
    farm = Farm()
    client = farm.connect()
    handle = recurring(client, unique=b"u")
    assert recurring(client, unique=b"u") == handle
    other = recurring(client, b"0 13 * * *", b"u")
    assert other != handle
    assert recurring(client, b"0 13 * * *", b"u", b"new") not in {handle, other}
    assert client.ask(b"show scheduled").count(b"\n") == 2


def test_without_a_unique_each_is_its_own() -> None:
    """Two recurring jobs without a unique are two."""
    client = Farm().connect()
    assert recurring(client) != recurring(client)


def test_a_run_that_is_not_done_is_not_doubled() -> None:
    """With a unique, no second job is made while the last one waits or runs."""
    farm = Farm()
    client = farm.connect()
    recurring(client, unique=b"u")
    farm.wait(3 * DAY)
    assert client.ask(b"status") == b"f\t1\t0\t0\n.\n"


def test_a_full_queue_is_not_filled_further() -> None:
    """A recurring job makes none beyond the function's limit."""
    farm = Farm()
    client = farm.connect()
    recurring(client)
    assert client.ask(b"maxqueue f 2") == b"OK\r\n"
    farm.wait(5 * DAY)
    assert client.ask(b"status") == b"f\t2\t0\t0\n.\n"


def test_it_is_promised_when_it_is_saved_and_survives_a_restart() -> None:
    """JOB_CREATED comes with the save; after a restart it has its handle, and goes on with its next time."""
    farm = Farm(durable=True)
    client = farm.connect()
    recur(client, unique=b"u")
    assert client.read() == []
    farm.save_all()
    [created] = client.read()
    farm.restart()
    farm.wait(DAY)
    farm.save_all()
    client, worker = farm.connect(), farm.worker()
    assert client.ask(b"show scheduled").startswith(created.args[0])
    job = worker.grab()
    assert job is not None
    worker.complete(job)
    assert [stored.schedule for stored in farm.kept.values()] == [b"0 12 * * *"]
    client.ask(b"cancel unique f u")
    assert farm.kept == {}


def test_a_save_that_fails_is_told() -> None:
    """A recurring job that the store did not take does not exist."""
    farm = Farm(durable=True)
    client = farm.connect()
    recur(client)
    farm.fail_saves()
    assert client.read_types() == [P.ERROR]
    assert client.ask(b"show scheduled") == b".\n"
    farm.wait(2 * DAY)
    assert farm.saves == []


def test_the_replaced_one_does_not_come_back() -> None:
    """If the server died before the store had forgotten it, the one that took its place is there alone."""
    farm = Farm(durable=True)
    recur(farm.connect(), unique=b"u")
    farm.save_all()
    [old] = farm.kept.values()
    farm.restart()
    new = old._replace(id=old.id + 1, handle=b"H:farm:new", schedule=b"0 13 * * *")
    farm.engine.restore(new, farm.now)
    client = farm.connect()
    assert client.ask(b"show scheduled").startswith(b"H:farm:new\tf\tu\t")
    assert client.ask(b"show scheduled").count(b"\n") == 2
    assert old.id in farm.forgotten


def test_a_damaged_schedule_does_not_stop_the_others() -> None:
    """A stored schedule that makes no sense is an error of its own, and nothing is left of it."""
    farm = Farm(durable=True)
    client = farm.connect()
    recur(client)
    farm.save_all()
    [stored] = farm.kept.values()
    farm.restart()
    with pytest.raises(ValueError, match="minute"):
        farm.engine.restore(stored._replace(id=99, schedule=b"x * * * *"), farm.now)
    assert farm.connect().ask(b"show scheduled").count(b"\n") == 2


def test_nothing_is_left_of_a_cancelled_one() -> None:
    """A function whose recurring job was cancelled can be dropped, and before that it cannot."""
    farm = Farm()
    client = farm.connect()
    handle = recurring(client, unique=b"u")
    assert client.ask(b"drop function f").startswith(b"ERR there are still")
    client.ask(b"cancel job " + handle)
    assert client.ask(b"drop function f") == b"OK\r\n"
    client.leave()
    assert farm.leftovers() == {}


def test_status_by_unique() -> None:
    """A recurring job is found by its unique; while a job that was made of it is there, that one."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    handle = recurring(client, unique=b"u")

    def known_and_running() -> tuple[bytes, bytes]:
        client.send(P.GET_STATUS_UNIQUE, b"u")
        [answer] = client.read()
        return answer.args[1], answer.args[2]

    assert known_and_running() == (b"1", b"0")
    farm.wait(DAY)
    job = worker.grab()
    assert job is not None
    assert known_and_running() == (b"1", b"1")
    worker.complete(job)
    assert known_and_running() == (b"1", b"0")
    farm.engine.operations.cancel(handle)
    assert known_and_running() == (b"0", b"0")
