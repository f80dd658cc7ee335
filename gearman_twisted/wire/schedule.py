"""When a recurring job runs: the five fields of SUBMIT_JOB_SCHED, and the next time that matches them.

PROTOCOL has numbers only, with Monday as day 0 of the week, where a crontab has Sunday. A field may also be
``*`` or empty (any), a list (``1,15``), a range (``0-4``) and have a step (``*/10``); months and days of the
week have names too (``mar``, ``mon-fri``). If both days are restricted, a day that matches either one will
do. All times are UTC: a server has no time zone of its own. ``crontab.py`` has the notation of crontabs.

Each field is a bit mask, so the next match is the lowest bit from some position on. Months and days that do
not match are skipped, not visited: February 29 is found in nine steps at most, one for each year.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

SHORTEST_PERIOD = 60.0
"""Seconds between two times of a schedule, at least."""

MONTHS = tuple(b"jan feb mar apr may jun jul aug sep oct nov dec".split())
WEEKDAYS = tuple(b"mon tue wed thu fri sat sun".split())
_VALUE = rb"[0-9]{1,2}|[a-z]{3}"
_PART = re.compile(rb"(?:\*|(%b)(?:-(%b))?)(?:/([0-9]{1,2}))?" % (_VALUE, _VALUE))
_MINUTES_OF_A_DAY = 1440
_ANY_DAY = 2**32 - 2
_ANY_WEEKDAY = 2**7 - 1
# Multiplied by a mask of weekdays, this repeats it for six weeks: more than any month has.
_SIX_WEEKS = sum(1 << 7 * week for week in range(6))
# For each step the mask of its multiples, so that a range with a step costs the same as a number.
_MULTIPLES = [0, *(sum(1 << number for number in range(0, 60, step)) for step in range(1, 100))]
# 1970-01-01 was a Thursday.
_FIRST_WEEKDAY = 3
_A_LEAP_YEAR = 2000


class Field:
    """The values that a field takes.

    Args:
        name: what errors call the field.
        lowest: the lowest number.
        highest: the highest number.
        names: those of the numbers from ``lowest`` on, in lower case.
        wraps: the number that is the same as ``lowest``; ranges may then go on beyond it (``fri-mon``).
    """

    __slots__ = ("_choice", "_highest", "_lowest", "_name", "_values", "_words", "_wraps")

    def __init__(
        self, name: str, lowest: int, highest: int, names: Sequence[bytes] = (), *, wraps: int = 0
    ) -> None:
        self._name = name
        self._lowest = lowest
        self._highest = highest
        numbers = range(lowest, highest + 1)
        self._words = names or [b"%d" % number for number in numbers]
        self._values = {b"%0*d" % (width, number): number for number in numbers for width in (1, 2)}
        self._values |= {word: number for number, word in enumerate(names, lowest)}
        self._wraps = wraps
        shown = f", or {names[0].decode()} to {names[-1].decode()}" if names else ""
        self._choice = f"{name} takes numbers from {lowest} to {highest}{shown}"

    def parse(self, text: bytes) -> int:
        """Return the mask of the numbers that match; those of a field that wraps go on beyond its end.

        Raises:
            ValueError: the text makes no sense.
        """
        mask = 0
        for part in set(text.lower().split(b",")):
            match = _PART.fullmatch(part)
            if match is None:
                raise self._error(text)
            first = self._values.get(match[1], -1) if match[1] else self._lowest
            last = self._values.get(match[2] or match[1], -1) if match[1] else self._highest
            step = int(match[3] or 1)
            if first > last >= self._lowest:
                last += self._wraps
            if not step:
                raise ValueError(f"{self._name}: a step is at least 1, not {_shown(text)}")
            if not self._lowest <= first <= last:
                raise self._error(text)
            mask |= (_MULTIPLES[step] & (2 << last - first) - 1) << first
        return mask

    def spelled(self, mask: int) -> bytes:
        """Return the text for a mask, with names where there are any; ``*`` for all numbers."""
        if mask == (2 << self._highest) - (1 << self._lowest):
            return b"*"
        parts: list[bytes] = []
        start = _next_bit(mask, 0)
        while start >= 0:
            end = _next_bit(~mask, start)  # behind the last one of this run
            run = self._words[start - self._lowest : end - self._lowest]
            parts += [b"%b-%b" % (run[0], run[-1])] if len(run) > 2 else run
            start = _next_bit(mask, end)
        return b",".join(parts)

    def _error(self, text: bytes) -> ValueError:
        return ValueError(f"{self._choice}, not {_shown(text)}")


def _shown(text: bytes) -> str:
    return f"{text.decode('utf-8', 'replace')!r:.100}"


MINUTE = Field("minute", 0, 59)
HOUR = Field("hour", 0, 23)
DAY = Field("day of month", 1, 31)
MONTH = Field("month", 1, 12, MONTHS)
WEEKDAY = Field("day of week", 0, 6, WEEKDAYS)
_FIELDS = (MINUTE, HOUR, DAY, MONTH, WEEKDAY)


class Schedule:
    """Times of a calendar.

    Attributes:
        text: the five fields, months and days of the week by name: no reader mistakes the latter for the
            numbers of a crontab.

    Args:
        fields: minute, hour, day of month, month and day of week, each as text.

    Raises:
        ValueError: a field makes no sense, or no date ever matches; the message says which.
    """

    __slots__ = ("_days", "_hours", "_minutes", "_months", "_weekdays", "text")

    def __init__(self, fields: Sequence[bytes]) -> None:
        words = [field.strip() or b"*" for field in fields]
        self._minutes, self._hours, self._days, self._months, self._weekdays = (
            field.parse(word) for word, field in zip(words, _FIELDS, strict=True)
        )
        self.text = b" ".join([*words[:3], MONTH.spelled(self._months), WEEKDAY.spelled(self._weekdays)])
        # An unrestricted day is not an alternative to a restricted one.
        if self._weekdays == _ANY_WEEKDAY:
            self._weekdays = 0
        elif self._days == _ANY_DAY:
            self._days = 0
        if not any(self._days_in(_A_LEAP_YEAR, month) for month in range(1, 13)):
            raise ValueError(f"no date fits {self.text.decode()}")

    def next_after(self, now: float) -> int:
        """Return the next time that matches, in seconds since 1970; later than now."""
        today, minute = divmod(int(now // 60) + 1, _MINUTES_OF_A_DAY)
        if self._time_from(minute) < 0:
            today, minute = today + 1, 0
        year, month, first_day = _date(today)
        while (day := _next_bit(self._days_in(year, month), first_day)) < 0:
            month, first_day = _next_bit(self._months, month + 1), 1
            if month < 0:
                year, month = year + 1, _next_bit(self._months, 0)
        date = _day_number(year, month) + day - 1
        return 60 * (date * _MINUTES_OF_A_DAY + self._time_from(minute if date == today else 0))

    def _time_from(self, start: int) -> int:
        """Return the first matching minute of a day from ``start`` on, -1 if none is left."""
        hour, minute = divmod(start, 60)
        found = _next_bit(self._minutes, minute) if self._hours >> hour & 1 else -1
        if found < 0:
            hour, found = _next_bit(self._hours, hour + 1), _next_bit(self._minutes, 0)
        return 60 * hour + found if hour >= 0 else -1

    def _days_in(self, year: int, month: int) -> int:
        """Return the mask of the matching days of a month."""
        if not self._months >> month & 1:
            return 0
        first = _day_number(year, month)
        length = _day_number(year + month // 12, month % 12 + 1) - first
        weekday = (first + _FIRST_WEEKDAY) % 7
        days = self._days | self._weekdays * _SIX_WEEKS >> weekday << 1
        return days & (2 << length) - 2


def _next_bit(mask: int, start: int) -> int:
    """Return the lowest bit that is set in a mask, from ``start`` on, -1 if there is none."""
    rest = mask >> start
    return start + (rest & -rest).bit_length() - 1 if rest else -1


# In both of the following, years begin in March, so that the day that not every year has is the last one.


def _day_number(year: int, month: int) -> int:
    """Return the day since 1970-01-01 of the first of a month, in the Gregorian calendar."""
    year -= month < 3
    return 365 * year + year // 4 - year // 100 + year // 400 + (153 * ((month - 3) % 12) + 2) // 5 - 719_468


def _date(day: int) -> tuple[int, int, int]:
    """Return year, month (1 to 12) and day (1 to 31) of a day since 1970-01-01."""
    cycle, day_of_cycle = divmod(day + 719_468, 146_097)  # 400 years
    year = (day_of_cycle - day_of_cycle // 1460 + day_of_cycle // 36_524 - day_of_cycle // 146_096) // 365
    day_of_year = day_of_cycle - (365 * year + year // 4 - year // 100)
    month = (5 * day_of_year + 2) // 153
    return (
        400 * cycle + year + (month > 9),
        (month + 2) % 12 + 1,
        day_of_year - (153 * month + 2) // 5 + 1,
    )
