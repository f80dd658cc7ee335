"""The notation of crontabs for recurring jobs, and the same times as fields of SUBMIT_JOB_SCHED.

They differ in the day of the week: 0 and 7 are Sunday here, 0 is Monday on the wire. They also differ in what
holds if both days are given. cron looks at the first character: days that match *either* field count, but
days that match *both* if one of the two begins with ``*``, as in ``*/2``. The protocol knows *either* only.
"""

from __future__ import annotations

from gearman_twisted.wire.schedule import DAY, HOUR, MINUTE, MONTH, WEEKDAYS, Field

_SUNDAY_FIRST = Field("day of week", 0, 7, (WEEKDAYS[-1], *WEEKDAYS[:-1]), wraps=7)
# As the fields are sent: PROTOCOL has no names.
_WIRE_MONTH = Field("month", 1, 12)
_WIRE_WEEKDAY = Field("day of week", 0, 6)


def wire_fields(line: bytes) -> list[bytes]:
    """Return the five fields of SUBMIT_JOB_SCHED for the time fields of a crontab line.

    Args:
        line: minute, hour, day of month, month, day of week, with blanks between them.

    Raises:
        ValueError: they make no sense, or the protocol has no fields for these days.
    """
    fields = line.split()
    if len(fields) != 5:
        raise ValueError("it takes five fields: minute, hour, day of month, month, day of week")
    for part in b",".join(fields).split(b","):
        if b"/" in part and b"-" not in part and not part.startswith(b"*"):
            # Some crons leave the step out, some begin a range up to the highest number.
            raise ValueError(
                f"a step needs a range or *, as in 5-59/10, not {part.decode('utf-8', 'replace')!r:.100}"
            )
    minute, hour, day, month, weekday = fields
    MINUTE.parse(minute)
    HOUR.parse(hour)
    is_any_day = DAY.spelled(DAY.parse(day)) == b"*"
    sunday_first = _SUNDAY_FIRST.parse(weekday)
    sunday_first = (sunday_first | sunday_first >> 7) & 0x7F
    weekdays = _WIRE_WEEKDAY.spelled(sunday_first >> 1 | (sunday_first & 1) << 6)
    if day.startswith(b"*") or weekday.startswith(b"*"):
        if not is_any_day and weekdays != b"*":
            raise ValueError(
                f"cron would run it on days that match both {day.decode()} and {weekday.decode()}, a job "
                "server on days that match either one; give only one of them"
            )
    elif is_any_day or weekdays == b"*":
        day = weekdays = b"*"
    return [minute, hour, b"*" if is_any_day else day, _WIRE_MONTH.spelled(MONTH.parse(month)), weekdays]
