"""When a recurring job runs: the five fields of SUBMIT_JOB_SCHED, and the next time that fits them.

PROTOCOL has numbers only, with Monday as day 0 of the week. As in a crontab a field may also be ``*`` or
empty (any), a list (``1,15``), a range (``0-4``) and have a step (``*/10``); and if both days are
given, a day that fits either will do. All times are UTC: a server has no time zone of its own.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

_FIELDS = (
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day of month", 1, 31),
    ("month", 1, 12),
    ("day of week", 0, 6),
)
_PART = re.compile(rb"(?:\*|([0-9]{1,2})(?:-([0-9]{1,2}))?)(?:/([0-9]{1,2}))?")
_MINUTES_OF_A_DAY = 1440
# Every date comes around in eight years, February 29 over the end of a century included.
_DAYS_TO_LOOK = 8 * 366
# 1970-01-01 was a Thursday.
_FIRST_WEEKDAY = 3


class Schedule:
    """Times of a calendar.

    Args:
        fields: minute, hour, day of month, month and day of week, each as text.

    Raises:
        ValueError: a field makes no sense, or no date fits; the message says which.
    """

    __slots__ = ("_days", "_is_any_day", "_is_any_weekday", "_minutes", "_months", "_weekdays", "text")

    def __init__(self, fields: Sequence[bytes]) -> None:
        self.text = b" ".join(field.strip() or b"*" for field in fields)
        minutes, hours, self._days, self._months, self._weekdays = (
            _parse(field.strip() or b"*", *limits) for field, limits in zip(fields, _FIELDS, strict=True)
        )
        self._minutes = sorted(60 * hour + minute for hour in hours for minute in minutes)
        self._is_any_day = len(self._days) == 31
        self._is_any_weekday = len(self._weekdays) == 7
        if self._next_after(0) is None:
            raise ValueError(f"no date fits {self.text.decode()}")

    def next_after(self, now: float) -> int:
        """The next time that fits, in seconds since 1970; later than now."""
        found = self._next_after(now)
        if found is None:
            raise RuntimeError(f"a schedule that fitted once fits no more: {self.text!r}")
        return found

    def _next_after(self, now: float) -> int | None:
        day, minute = divmod(int(now // 60) + 1, _MINUTES_OF_A_DAY)
        for candidate in range(day, day + _DAYS_TO_LOOK):
            if self._fits(candidate):
                index = bisect_left(self._minutes, minute)
                if index < len(self._minutes):
                    return 60 * (candidate * _MINUTES_OF_A_DAY + self._minutes[index])
            minute = 0
        return None

    def _fits(self, day: int) -> bool:
        month, day_of_month = _month_and_day(day)
        if month not in self._months:
            return False
        fits_day = day_of_month in self._days
        fits_weekday = (day + _FIRST_WEEKDAY) % 7 in self._weekdays
        if self._is_any_day or self._is_any_weekday:
            return fits_day and fits_weekday
        return fits_day or fits_weekday


def _parse(field: bytes, name: str, lowest: int, highest: int) -> frozenset[int]:
    numbers: set[int] = set()
    for part in field.split(b","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"{name} takes numbers from {lowest} to {highest}, not {field!r:.100}")
        first = int(match[1]) if match[1] else lowest
        last = int(match[2] or match[1]) if match[1] else highest
        step = int(match[3]) if match[3] else 1
        if not lowest <= first <= last <= highest or not step:
            raise ValueError(f"{name} takes numbers from {lowest} to {highest}, not {field!r:.100}")
        numbers.update(range(first, last + 1, step))
    return frozenset(numbers)


def _month_and_day(day: int) -> tuple[int, int]:
    """Month (1 to 12) and day (1 to 31) of a day since 1970-01-01, in the Gregorian calendar."""
    # The year is taken to begin in March, so that the day that is not always there is its last one.
    day_of_cycle = (day + 719_468) % 146_097  # 400 years
    year = (day_of_cycle - day_of_cycle // 1460 + day_of_cycle // 36_524 - day_of_cycle // 146_096) // 365
    day_of_year = day_of_cycle - (365 * year + year // 4 - year // 100)
    month = (5 * day_of_year + 2) // 153
    return (month + 2) % 12 + 1, day_of_year - (153 * month + 2) // 5 + 1
