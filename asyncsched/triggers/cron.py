"""Cron expressions: croniter reads the fields, local times are walked in the trigger's zone."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import croniter as _croniter

from asyncsched.errors import CronError
from asyncsched.triggers.base import Trigger
from asyncsched.units import to_datetime, to_instant

__all__ = ["Cron", "cron"]

#: From 1970 on; 29 February is found across 2100, and years are accepted up to 2099.
_YEARS = 130
_MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


class Cron(Trigger, frozen=True, array_like=True, gc=False, tag="cron"):
    """The fire times of a cron expression in a time zone."""

    expression: str
    tz: str = "UTC"
    start: float | None = None
    end: float | None = None

    def next(self, after: float) -> float | None:
        if self.start is not None and after < self.start:
            after = self.start - 1e-6
        zone = _zone(self.tz)
        walk = _compiled(self.expression)
        try:
            fire: float = walk.get_next(datetime, start_time=to_datetime(after).astimezone(zone)).timestamp()
        except (ValueError, OverflowError):
            return None  # There is none before the calendar ends, or within croniter's search.
        return fire if self.end is None or fire <= self.end else None

    def previous(self, until: float) -> float | None:
        if self.end is not None and until > self.end:
            until = self.end
        start = to_datetime(until + 1e-6).astimezone(_zone(self.tz))
        try:
            fire: float = _compiled(self.expression).get_prev(datetime, start_time=start).timestamp()
        except (ValueError, OverflowError):
            return None  # There is none before the calendar ends, or within croniter's search.
        return fire if self.start is None or fire >= self.start else None

    def __str__(self) -> str:
        return self.expression if self.tz == "UTC" else f"CRON_TZ={self.tz} {self.expression}"


def cron(
    expression: str, *, tz: str | ZoneInfo = "UTC", start: datetime | None = None, end: datetime | None = None
) -> Cron:
    """Fire at the times of a cron expression: 5 fields, or 6 with seconds first, or a macro such as ``@daily``.

    *tz* is the zone whose clock it follows; *start* and *end* bound the fire times. Day of month and day of week are joined
    by OR, as in Vixie cron. A bad expression raises :class:`~asyncsched.errors.CronError`.
    """
    if not isinstance(expression, str):
        raise CronError(f"a cron expression is a string, not {expression!r}")
    name = tz.key if isinstance(tz, ZoneInfo) else tz
    _zone(name)
    text = " ".join(expression.split())
    _compiled(text)
    begin = None if start is None else to_instant(start, "start")
    return Cron(text, name, begin, None if end is None else to_instant(end, "end"))


@lru_cache(maxsize=1024)
def _compiled(expression: str) -> _croniter.croniter:
    fields = _MACROS.get(expression.lower(), expression)
    if len(fields) > 1024:
        raise CronError(f"a cron expression has at most 1024 characters; this one has {len(fields)}")
    if fields.startswith("@"):
        raise CronError(
            f"unknown cron macro {expression!r}; known: {', '.join(_MACROS)}, and @every for an interval"
        )
    if not fields.isascii() or len(fields.split()) not in (5, 6, 7):
        raise CronError(
            f"cron expression {expression!r} has {len(fields.split())} fields; 5, 6 or 7 are understood"
        )
    try:
        compiled = _croniter.croniter(fields, 0.0, second_at_beginning=True, max_years_between_matches=_YEARS)
        compiled.get_next(float)
    except (_croniter.CroniterError, ValueError, KeyError) as error:
        raise CronError(f"bad cron expression {expression!r}: {error}") from error
    return compiled


@lru_cache(maxsize=256)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise CronError(f"unknown time zone {name!r}; use an IANA name such as Europe/Berlin") from error
