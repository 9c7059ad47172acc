"""What the author of a cron expression may not expect of it."""

from __future__ import annotations

from datetime import UTC, date, datetime

from asyncsched.triggers.fields import Fields
from asyncsched.triggers.walk import Walk
from asyncsched.triggers.words import joined, time_of_day
from asyncsched.triggers.zones import EPOCH_ORDINAL, zone_table

__all__ = ["cron_warnings"]

_DAY_S = 86400
_LENGTHS = ((31,), (28, 29), (31,), (30,), (31,), (30,), (31,), (31,), (30,), (31,), (30,), (31,))
_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
#: Gaps are looked for in these years, so that an example lies neither far back nor far ahead.
_FROM = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
_YEARS = 5


def cron_warnings(walk: Walk, tz: str) -> tuple[str, ...]:
    """In sentences: days that few months have, and days on which the clocks skip the job."""
    found = (_about_months(walk.fields), _about_gaps(walk, tz))
    return tuple(warning for warning in found if warning is not None)


def _about_months(fields: Fields) -> str | None:
    always_absent = [month for month in sorted(fields.months) if _absences(fields, month) == 2]
    at_times = [month for month in sorted(fields.months) if _absences(fields, month) == 1]
    if not always_absent and not at_times:
        return None
    if at_times == [2] and len(fields.months) - len(always_absent) == 1:
        return "does not fire in years in which February has no such day"
    parts = []
    if always_absent:
        parts.append(f"never has such a day: {joined([_NAMES[month - 1] for month in always_absent])}")
    if at_times:
        parts.append(f"lacks it in some years: {joined([_NAMES[month - 1] for month in at_times])}")
    return f"does not fire in months without such a day ({'; '.join(parts)})"


def _absences(fields: Fields, month: int) -> int:
    """0: each such month has a matching day; 1: some have; 2: none has."""
    has = [bool(fields.days.of(weekday, length)) for weekday in range(7) for length in _LENGTHS[month - 1]]
    return 0 if all(has) else 1 if any(has) else 2


def _about_gaps(walk: Walk, tz: str) -> str | None:
    """The first gap that takes a run away, of a job of a fixed time; of one that follows the clock, its whole day."""
    if not walk.skips_gaps:
        return None
    for year in range(_YEARS):
        starts, offsets = zone_table(tz).around(_FROM + year * 366 * _DAY_S)
        for i in range(2, len(starts)):
            begin, end = starts[i] + offsets[i - 1], starts[i] + offsets[i]
            if starts[i] < _FROM or begin >= end or not walk.skips(begin, end):
                continue
            midnight = begin - begin % _DAY_S
            rest = walk.skips(midnight, begin) or walk.skips(end, max(end, midnight + _DAY_S))
            if not (walk.fields.follows_clock and rest):
                day = date.fromordinal(begin // _DAY_S + EPOCH_ORDINAL)
                return (
                    f"does not run on days such as {day}, when the clocks of {tz} skip from "
                    f"{time_of_day(begin % _DAY_S)} to {time_of_day(end % _DAY_S)}"
                )
    return None
