"""Steps on the wall's calendar: every third day, the 31st of each month or its last day."""

from __future__ import annotations

from bisect import bisect_right
from calendar import monthrange
from collections.abc import Callable
from datetime import date, datetime, time
from typing import Any, Literal
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from asyncsched.errors import TriggerError
from asyncsched.triggers.base import TICK_S, Trigger
from asyncsched.triggers.fields import FIRST_YEAR, LAST_YEAR
from asyncsched.triggers.options import instant_text
from asyncsched.triggers.words import joined, limits_in_words, ordinal, time_of_day
from asyncsched.triggers.zones import EPOCH_ORDINAL, local_ordinal, zone_of, zone_table
from asyncsched.units import to_instant

__all__ = ["Calendar", "calendar", "parse_calendar"]

MissingDay = Literal["skip", "last"]

_DAY_S = 86400
_MAX_STEP = 100_000
_LAST_DAY = date(LAST_YEAR, 12, 31).toordinal()


class Calendar(Trigger, frozen=True, array_like=True, gc=False, tag="calendar"):
    """Dates at a whole number of steps from a first date, each at one time of the day."""

    months: int
    days: int
    #: Seconds since midnight.
    at: int = 0
    tz: str = "UTC"
    missing_day: MissingDay = "skip"
    #: The first date, as a proleptic ordinal.
    day: int | None = None
    start: float | None = None
    end: float | None = None
    #: The date at which the job was added; it takes the place of a first date that was not given.
    bound: int | None = None

    def bind(self, now: float, id: str = "") -> Calendar:
        if self.day is not None or self.bound is not None:
            return self
        return replace(self, bound=local_ordinal(now, self.tz))

    def unbound(self) -> Calendar:
        return self if self.bound is None else replace(self, bound=None)

    def next(self, after: float) -> float | None:
        if self.start is not None and after < self.start:
            after = self.start - TICK_S
        # The date of a fire time is never later than that of what comes after it.
        n = max(self._steps_to(local_ordinal(after, self.tz) - 1) - 1, 0)
        while (ordinal := self._date(n)) is None or ordinal <= _LAST_DAY:
            fire = None if ordinal is None else self._fire(ordinal)
            if fire is not None and fire > after:
                return fire if self.end is None or fire <= self.end else None
            n += 1
            if self._earliest(n) > _LAST_DAY:
                return None
        return None

    def previous(self, until: float) -> float | None:
        if self.end is not None and until > self.end:
            until = self.end
        n = self._steps_to(min(local_ordinal(until, self.tz) + 1, _LAST_DAY))
        while n >= 0:
            ordinal = self._date(n)
            fire = None if ordinal is None else self._fire(ordinal)
            if fire is not None and fire <= until:
                return fire if self.start is None or fire >= self.start else None
            n -= 1
        return None

    @property
    def zone(self) -> str:
        return self.tz

    @property
    def _first_day(self) -> int:
        """The date of step 0."""
        first = self.bound if self.day is None else self.day
        return EPOCH_ORDINAL if first is None else first

    def _steps_to(self, ordinal: int) -> int:
        """The last step whose month's first day is not later than *ordinal*, in days added too; -1: none is."""
        span = range(1 + max(0, ordinal - self._first_day + 31) // max(self.days + 28 * self.months, 1) + 1)
        return bisect_right(span, ordinal, key=self._earliest) - 1

    def _earliest(self, n: int) -> int:
        """A day that step *n* does not come before; it grows with *n*."""
        return self._in_month(n, "first") or 0

    def _date(self, n: int) -> int | None:
        """The date of step *n* as an ordinal; None where its month has no such day."""
        return self._in_month(n, self.missing_day)

    def _in_month(self, n: int, missing: str) -> int | None:
        first = date.fromordinal(self._first_day)
        if self.months == 0:
            return self._first_day + n * self.days
        year, month = divmod(first.year * 12 + first.month - 1 + n * self.months, 12)
        if year > LAST_YEAR + 1:
            return _LAST_DAY + 1
        last = monthrange(year, month + 1)[1]
        if missing == "skip" and first.day > last:
            return None
        day = 1 if missing == "first" else min(first.day, last)
        return date(year, month + 1, day).toordinal() + n * self.days

    def _fire(self, ordinal: int) -> float:
        return float(zone_table(self.tz).instant((ordinal - EPOCH_ORDINAL) * _DAY_S + self.at))

    def describe(self) -> str:
        years, months = divmod(self.months, 12)
        weeks, days = divmod(self.days, 7)
        parts = [("year", years), ("month", months), ("week", weeks), ("day", days)]
        given = [(word, n) for word, n in parts if n]
        if len(given) == 1 and given[0][1] == 1:
            text = f"every {given[0][0]}"
        else:
            text = "every " + joined([f"{n} {word}{'s' if n > 1 else ''}" for word, n in given])
        text += f" at {time_of_day(self.at)}"
        first = date.fromordinal(self._first_day)
        if self.months and not self.days and first.day > 28 and (self.day or self.bound):
            which = "or its last day" if self.missing_day == "last" else "in months that have it"
            text += (
                f" on day {first.day}, {which}" if self.months % 12 != 0 else f" on {first:%d %B}, {which}"
            )
        zone = "" if self.tz == "UTC" else ", local time" if self.tz == "local" else f", {self.tz} time"
        begin = f", from {first}" if self.day is not None and self.start is None else ""
        return text + zone + begin + limits_in_words(self.start, self.end, self.tz)

    @property
    def warnings(self) -> tuple[str, ...]:
        day = date.fromordinal(self._first_day).day
        if not self.months or self.missing_day == "last" or day <= 28:
            return ()
        return (
            f'does not fire in months without a {ordinal(day)}; with missing_day="last" it fires on their last day',
        )

    def __str__(self) -> str:
        years, months = divmod(self.months, 12)
        weeks, days = divmod(self.days, 7)
        start = instant_text(self.start) if self.start is not None else None
        if start is None and self.day is not None:
            start = date.fromordinal(self.day).isoformat()
        options = {
            "years": years or None,
            "months": months or None,
            "weeks": weeks or None,
            "days": days or None,
            "at": str(time(*_clock(self.at))),
            "tz": None if self.tz == "UTC" else self.tz,
            "start": start,
            "end": None if self.end is None else instant_text(self.end),
            "missing_day": None if self.missing_day == "skip" else self.missing_day,
        }
        return " ".join(
            ["@calendar", *(f"{name}={value}" for name, value in options.items() if value is not None)]
        )


def calendar(
    *,
    years: int = 0,
    months: int = 0,
    weeks: int = 0,
    days: int = 0,
    at: str = "00:00:00",
    tz: str | ZoneInfo = "UTC",
    start: date | datetime | None = None,
    end: date | datetime | None = None,
    missing_day: MissingDay = "skip",
) -> Calendar:
    """Fire at every so many years, months, weeks and days on the calendar of *tz*, at the time of the day *at*.

    Steps are counted from the first date: that of *start*, or the one at which the job was added. What a month lacks, such as
    its 31st, is left out, or taken to be its last day with ``missing_day="last"``; the next step is counted from the first date
    all the same. A time that the clocks skip is made up for right after the gap; of one that they repeat the first counts.
    """
    units = {"years": years, "months": months, "weeks": weeks, "days": days}
    for name, n in units.items():
        if type(n) is not int or not 0 <= n <= _MAX_STEP:
            raise TriggerError(f"calendar(): {name} is a whole number from 0 to {_MAX_STEP:,}, not {n!r}")
    if not any(units.values()):
        raise TriggerError("calendar() needs a step above zero: try calendar(months=1)")
    if missing_day not in ("skip", "last"):
        raise TriggerError(f'calendar(): missing_day is "skip" or "last", not {missing_day!r}')
    zone = tz.key if isinstance(tz, ZoneInfo) else tz
    zone_of(zone)
    begin = to_instant(start, "start") if isinstance(start, datetime) else None
    day = local_ordinal(begin, zone) if begin is not None else None if start is None else start.toordinal()
    if day is not None and not FIRST_YEAR <= date.fromordinal(day).year <= LAST_YEAR:
        raise TriggerError(f"calendar(): start lies in the years {FIRST_YEAR} to {LAST_YEAR}, not at {start}")
    stop = _end(end, zone)
    if (
        stop is not None
        and day is not None
        and (local_ordinal(stop, zone) < day or (begin is not None and stop < begin))
    ):
        raise TriggerError(f"calendar(): end ({end}) lies before start ({start})")
    return Calendar(years * 12 + months, weeks * 7 + days, _seconds(at), zone, missing_day, day, begin, stop)


def _end(end: date | datetime | None, zone: str) -> float | None:
    """The last instant; a date counts to its end."""
    if end is None or isinstance(end, datetime):
        return None if end is None else to_instant(end, "end")
    return float(zone_table(zone).instant((end.toordinal() + 1 - EPOCH_ORDINAL) * _DAY_S) - 1)


def _seconds(at: str) -> int:
    try:
        moment = time.fromisoformat(at)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is not None or moment.microsecond or ":" not in at:
        raise TriggerError(f'calendar(): at is a time of the day such as "09:00" or "09:00:30", not {at!r}')
    return moment.hour * 3600 + moment.minute * 60 + moment.second


def _clock(second: int) -> tuple[int, int, int]:
    return second // 3600, second % 3600 // 60, second % 60


def parse_calendar(text: str) -> Calendar:
    """The trigger of its string: ``months=1 at=09:00:00``."""
    given: dict[str, Any] = {}
    for word in text.split():
        name, mark, value = word.partition("=")
        if not mark or name in given or name not in _READERS:
            raise TriggerError(
                f"@calendar takes {', '.join(_READERS)}, each once and as name=value; not {word!r}"
            )
        given[name] = value
    try:
        return calendar(**{name: _READERS[name](value) for name, value in given.items()})
    except ValueError as error:
        raise (
            error if isinstance(error, TriggerError) else TriggerError(f"@calendar {text}: {error}")
        ) from error


def _read_date(text: str) -> date | datetime:
    return datetime.fromisoformat(text) if "T" in text else date.fromisoformat(text)


_READERS: dict[str, Callable[[str], Any]] = {
    "years": int,
    "months": int,
    "weeks": int,
    "days": int,
    "at": str,
    "tz": str,
    "start": _read_date,
    "end": _read_date,
    "missing_day": str,
}
