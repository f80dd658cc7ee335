"""The notation of crontabs: compared with what crontab(5) says, day by day."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gearman_twisted.wire.crontab import wire_fields
from gearman_twisted.wire.schedule import Schedule

MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]


def values(field: str, lowest: int, highest: int, names: list[str], cycle: int = 0) -> set[int]:
    """The numbers of a crontab field."""
    found: set[int] = set()
    numbers = {name: number for number, name in enumerate(names, lowest)}
    for part in field.lower().split(","):
        span, _, step = part.partition("/")
        if span == "*":
            low, high = lowest, highest
        else:
            ends = [numbers[word] if word in numbers else int(word) for word in span.split("-")]
            low, high = ends[0], ends[-1]
            high += cycle * (high < low)
        found |= set(range(low, high + 1, int(step or 1)))
    return found


class Cron:
    """When cron runs a line, as crontab(5) of Debian explains it."""

    def __init__(self, fields: list[str]) -> None:
        self.minutes = sorted(values(fields[0], 0, 59, []))
        self.hours = sorted(values(fields[1], 0, 23, []))
        self.days = values(fields[2], 1, 31, [])
        self.months = values(fields[3], 1, 12, MONTHS)
        self.weekdays = {number % 7 for number in values(fields[4], 0, 7, DAYS, cycle=7)}
        self.needs_both = fields[2].startswith("*") or fields[4].startswith("*")

    def runs_on(self, date: dt.date) -> bool:
        matches = (date.day in self.days, date.isoweekday() % 7 in self.weekdays)
        return date.month in self.months and (all if self.needs_both else any)(matches)

    def next_after(self, now: int) -> int | None:
        """The next time, within eight years."""
        times = [3600 * hour + 60 * minute for hour in self.hours for minute in self.minutes]
        for number in range(now // 86_400, now // 86_400 + 8 * 366 + 1):
            if self.runs_on(dt.date(1970, 1, 1) + dt.timedelta(number)):
                found = next((at for time in times if (at := 86_400 * number + time) > now), None)
                if found is not None:
                    return found
        return None


@st.composite
def field(draw: st.DrawFn, lowest: int, highest: int, names: list[str]) -> str:
    """A field with all that may stand in one."""

    def spelled(number: int) -> str:
        spellings = [str(number)]
        if number - lowest < len(names):
            name = names[number - lowest]
            spellings += [name, name.upper(), name.title()]
        return draw(st.sampled_from(spellings))

    parts = []
    for _ in range(draw(st.integers(1, 3))):
        first = draw(st.integers(lowest, highest))
        # Only ranges of the week may go on beyond its end.
        last = draw(st.integers(lowest if highest == 7 else first, highest))
        step = draw(st.sampled_from(["", "", "/1", "/2", "/7", "/30", "/99"]))
        some = draw(st.sampled_from([f"*{step}", spelled(first), f"{spelled(first)}-{spelled(last)}{step}"]))
        parts.append(some)
    return ",".join(parts)


FIELDS: list[tuple[int, int, list[str]]] = [
    (0, 59, []),
    (0, 23, []),
    (1, 31, []),
    (1, 12, MONTHS),
    (0, 7, DAYS),
]
lines = st.tuples(*(st.one_of(st.just("*"), field(*limits)) for limits in FIELDS)).map(list)


@settings(max_examples=400, deadline=None)
@given(fields=lines, now=st.integers(0, 8_000_000_000))
def test_times_are_those_of_cron(fields: list[str], now: int) -> None:
    """A recurring job runs when cron would run the line; what a job server cannot do is refused."""
    cron = Cron(fields)
    found = cron.next_after(now)
    if cron.needs_both and len(cron.days) < 31 and len(cron.weekdays) < 7:
        with pytest.raises(ValueError, match="match both"):
            wire_fields(" ".join(fields).encode())
        return
    on_the_wire = wire_fields(" ".join(fields).encode())
    try:
        schedule = Schedule(on_the_wire)
    except ValueError:
        assert found is None
        return
    assert schedule.next_after(now) == found
    # What a list shows can be submitted again, in either notation.
    assert Schedule(schedule.text.split()).next_after(now) == found
    assert wire_fields(schedule.text)[3:] == on_the_wire[3:]


@pytest.mark.parametrize(
    ("line", "fields", "shown"),
    [
        ("30 6 * * MON-FRI", "30 6 * * 0-4", "30 6 * * mon-fri"),
        ("30 6 * * 1-5", "30 6 * * 0-4", "30 6 * * mon-fri"),
        ("0 0 * * 0", "0 0 * * 6", "0 0 * * sun"),
        ("0 0 * * 7", "0 0 * * 6", "0 0 * * sun"),
        ("0 0 * * sun,Wed", "0 0 * * 2,6", "0 0 * * wed,sun"),
        ("0 0 * * 5-7", "0 0 * * 4-6", "0 0 * * fri-sun"),
        ("0 0 * * FRI-MON", "0 0 * * 0,4-6", "0 0 * * mon,fri-sun"),
        ("0 0 * * 5-1/2", "0 0 * * 4,6", "0 0 * * fri,sun"),
        ("0 0 * * */2", "0 0 * * 1,3,5,6", "0 0 * * tue,thu,sat,sun"),
        ("0 0 * * 0-7", "0 0 * * *", "0 0 * * *"),
        ("0 0 1 JAN,jul *", "0 0 1 1,7 *", "0 0 1 jan,jul *"),
        ("0 0 1 */3 *", "0 0 1 1,4,7,10 *", "0 0 1 jan,apr,jul,oct *"),
        ("5-59/10 */2 1,15 * 1", "5-59/10 */2 1,15 * 0", "5-59/10 */2 1,15 * mon"),
        ("0 0 1-31 * 1", "0 0 * * *", "0 0 * * *"),
        ("0 0 15 * 0-6", "0 0 * * *", "0 0 * * *"),
        ("0 0 */1 * 1", "0 0 * * 0", "0 0 * * mon"),
        ("0 0 */2 * *", "0 0 */2 * *", "0 0 */2 * *"),
    ],
)
def test_lines_are_translated(line: str, fields: str, shown: str) -> None:
    """The packet has the numbers of the protocol; the lists of the server have names."""
    assert wire_fields(line.encode()) == fields.encode().split()
    assert Schedule(fields.encode().split()).text == shown.encode()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("* * * *", "five fields"),
        ("@daily", "five fields"),
        ("60 * * * *", "minute takes numbers from 0 to 59, not '60'"),
        ("* mon * * *", "hour takes numbers from 0 to 23, not 'mon'"),
        ("* * 0 * *", "day of month takes numbers from 1 to 31"),
        ("* * * 13 *", "month takes numbers from 1 to 12, or jan to dec"),
        ("* * * nov-feb *", "month takes"),
        ("* * * * 8", "day of week takes numbers from 0 to 7, or sun to sat, not '8'"),
        ("* * * * mon-xyz", "day of week takes"),
        ("* * * * xyz-mon", "day of week takes"),
        ("* * * * monday", "day of week takes"),
        ("* * * * */0", "day of week: a step is at least 1, not '*/0'"),
        ("5/10 * * * *", "a step needs a range or *, as in 5-59/10, not '5/10'"),
        ("0 0 */2 * 1", "match both"),
        ("0 0 1 * */2", "match both"),
        ("0 0 */2 * */2", "match both"),
    ],
)
def test_lines_that_make_no_sense(line: str, reason: str) -> None:
    """What is wrong is said in a sentence that names the field."""
    with pytest.raises(ValueError, match=reason.replace("*", r"\*")):
        wire_fields(line.encode())
