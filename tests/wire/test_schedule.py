"""When recurring jobs run: compared with a plain scan of the calendar, and in counted steps."""

from __future__ import annotations

import datetime as dt
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gearman_twisted.wire import schedule as module
from gearman_twisted.wire.schedule import Schedule

LIMITS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))


def numbers(field: str, lowest: int, highest: int) -> set[int]:
    """The numbers of a field, as PROTOCOL and crontab(5) define them."""
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        low, high = (lowest, highest) if span == "*" else (int(first), int(last or first))
        found |= set(range(low, high + 1, int(step or 1)))
    return found


def scanned(fields: list[str], now: int, days_to_scan: int) -> int | None:
    """The next time that matches, found by a look at each day and each of its minutes."""
    minutes, hours, days, months, weekdays = (
        numbers(field, *limits) for field, limits in zip(fields, LIMITS, strict=True)
    )
    is_either = len(days) < 31 and len(weekdays) < 7
    start = dt.datetime.fromtimestamp(now, dt.timezone.utc)
    for number in range(days_to_scan):
        date = start.date() + dt.timedelta(number)
        matches = (date.day in days, date.weekday() in weekdays)
        if date.month not in months or not (any(matches) if is_either else all(matches)):
            continue
        midnight = int(dt.datetime.combine(date, dt.time(), dt.timezone.utc).timestamp())
        times = (midnight + 3600 * hour + 60 * minute for hour in sorted(hours) for minute in sorted(minutes))
        found = next((time for time in times if time > now), None)
        if found is not None:
            return found
    return None


@st.composite
def field(draw: st.DrawFn, lowest: int, highest: int) -> str:
    """A field with all that may stand in one."""
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        first = draw(st.integers(lowest, highest))
        step = draw(st.sampled_from(["", "", "/1", "/2", "/7", "/30", "/99"]))
        last = draw(st.integers(first, highest))
        parts.append(draw(st.sampled_from(["*", f"{first}", f"{first}-{last}"])) + step)
    return ",".join(parts)


schedules = st.tuples(*(st.one_of(st.just("*"), field(*limits)) for limits in LIMITS)).map(list)


@settings(max_examples=300, deadline=None)
@given(fields=schedules, now=st.integers(0, 8_000_000_000))
def test_next_time_is_that_of_a_plain_scan(fields: list[str], now: int) -> None:
    """Whatever the fields and the date, the time is that which a scan of eight years finds, if any."""
    found = scanned(fields, now, 8 * 366 + 1)
    try:
        schedule = Schedule([each.encode() for each in fields])
    except ValueError:
        assert found is None
        return
    assert schedule.next_after(now) == found
    assert Schedule(schedule.text.split()).next_after(now) == found


def test_names_stand_for_numbers() -> None:
    """Months and days of the week may be named in a packet, in upper or lower case; the text names them."""
    for fields in (b"0 6 * 3-5 0,4", b"0 6 * MAR-may mon,Fri"):
        assert Schedule(fields.split()).text == b"0 6 * mar-may mon,fri"
    for wrong in (b"* * * * fri-mon", b"* * * * 7", b"* * * mon *", b"* jan * * *"):
        with pytest.raises(ValueError, match="takes numbers from"):
            Schedule(wrong.split())


@pytest.mark.parametrize("century", [2096, 2196, 2296])
@pytest.mark.parametrize("fields", ["0 0 29 2 *", "59 23 29 2 *", "0 0 31 */2 *", "0 0 * 2 6", "0 0 29 2 6"])
def test_next_times_over_the_end_of_a_century(fields: str, century: int) -> None:
    """Years without a February 29 are passed over, day by day as a scan does it."""
    now = int(dt.datetime(century, 2, 27, tzinfo=dt.timezone.utc).timestamp())
    schedule = Schedule(fields.encode().split())
    for _ in range(8):
        found = schedule.next_after(now)
        assert found == scanned(fields.split(), now, 8 * 366 + 1)
        now = found


def lines_run(call: Any) -> int:
    """How many lines of the module a call runs."""
    count = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != module.__file__:
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


@settings(max_examples=200, deadline=None)
@given(fields=schedules, now=st.integers(0, 8_000_000_000))
def test_steps_of_any_schedule_are_few(fields: list[str], now: int) -> None:
    """Neither making a schedule nor asking it for the next time scans days or minutes."""
    made: list[Schedule] = []
    try:
        assert lines_run(lambda: made.append(Schedule([each.encode() for each in fields]))) < 300
    except ValueError:
        return
    assert lines_run(lambda: made[0].next_after(now)) < 200


@pytest.mark.parametrize("fields", ["0 0 30 2 *", "0 0 31 2,4,6,9,11 *", "59 23 30-31 2 */1"])
def test_date_that_never_comes_is_refused_in_few_steps(fields: str) -> None:
    """A date that no year has is an error, which a peer may cause ten thousand times without being felt."""

    def refused() -> None:
        with pytest.raises(ValueError, match="no date fits"):
            Schedule(fields.encode().split())

    assert lines_run(refused) < 300


def test_longest_fields_cost_as_much_as_they_are_long() -> None:
    """A part of a list costs the same whether it is a number or a range, and each is looked at once."""
    repeated, different = b",".join([b"*"] * 4000), b",".join(b"%d-59" % n for n in range(60))
    assert lines_run(lambda: Schedule([repeated, *[b"*"] * 4])) < 300
    assert lines_run(lambda: Schedule([different, *[b"*"] * 4])) < 800
