"""A fixed distance in time, whatever the clocks on the wall do."""

from __future__ import annotations

from datetime import datetime

from msgspec.structs import replace

from asyncsched.errors import TriggerError
from asyncsched.triggers.base import Passed, Trigger
from asyncsched.units import LATEST, Duration, parse_duration, to_instant, to_seconds

__all__ = ["Every", "every"]


class Every(Trigger, frozen=True, array_like=True, gc=False, tag="every"):
    """Fire times at anchor + n * step. Whole microseconds, so that nothing drifts however many steps there are."""

    step_us: int
    anchor: float | None = None
    start: float | None = None
    end: float | None = None
    #: When the job was added; it takes the place of an anchor that was not given.
    bound: float | None = None

    def bind(self, now: float) -> Every:
        return self if self.bound is not None else replace(self, bound=now)

    def unbound(self) -> Every:
        return replace(self, bound=None)

    def next(self, after: float) -> float | None:
        # All in whole microseconds, so that a fire time is never found to lie a fraction of one before the start.
        after_us = round(after * 1e6)
        if self.start is not None:
            after_us = max(after_us, round(self.start * 1e6) - 1)
        anchor_us = round(self._anchor * 1e6)
        steps = (after_us - anchor_us) // self.step_us + 1
        fire = (anchor_us + steps * self.step_us) / 1e6
        return fire if fire <= (LATEST if self.end is None else self.end) else None

    def previous(self, until: float) -> float | None:
        if self.end is not None and until > self.end:
            until = self.end
        anchor_us = round(self._anchor * 1e6)
        fire = (anchor_us + (round(until * 1e6) - anchor_us) // self.step_us * self.step_us) / 1e6
        return fire if self.start is None or fire >= self.start else None

    def passed(self, after: float, until: float) -> Passed:
        first = self.next(after)
        if first is None or first > until:
            return Passed(0, None, first)
        last = self.previous(until)
        if last is None or last < first:
            last = first
        count = (round(last * 1e6) - round(first * 1e6)) // self.step_us + 1
        return Passed(count, last, self.next(last))

    @property
    def _anchor(self) -> float:
        if self.anchor is not None:
            return self.anchor
        if self.bound is not None:
            return self.bound
        return self.start or 0.0

    def __str__(self) -> str:
        return f"@every {self.step_us / 1e6:g}s"


def every(
    interval: str | Duration | None = None,
    /,
    *,
    weeks: float = 0,
    days: float = 0,
    hours: float = 0,
    minutes: float = 0,
    seconds: float = 0,
    anchor: datetime | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
) -> Every:
    """Fire every *interval* ("90s", "1h30m", seconds, a timedelta) or weeks, days, hours, minutes and seconds together.

    The first fire time is one interval after the job was added, or the first at or after *start* that lies a whole number
    of intervals from *anchor*. *end* is the last instant at which it may fire. Elapsed time: time zones do not matter.
    """
    parts = {"weeks": weeks, "days": days, "hours": hours, "minutes": minutes, "seconds": seconds}
    units = {"weeks": 604800.0, "days": 86400.0, "hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
    given = sum(to_seconds(value, name) * units[name] for name, value in parts.items())
    if interval is not None:
        if given:
            raise TriggerError("every() takes one interval, or its parts by name, not both")
        given = (
            parse_duration(interval, "interval")
            if isinstance(interval, str)
            else to_seconds(interval, "interval")
        )
    step_us = round(given * 1e6)
    if step_us <= 0:
        raise TriggerError(
            f"every() needs an interval above zero, not {given!r} seconds: try every(minutes=5)"
        )
    begin, stop = _instant(start, "start"), _instant(end, "end")
    if begin is not None and stop is not None and stop < begin:
        raise TriggerError(f"every(): end ({end}) lies before start ({start})")
    return Every(step_us, _instant(anchor, "anchor"), begin, stop)


def _instant(value: datetime | None, name: str) -> float | None:
    return None if value is None else min(to_instant(value, name), LATEST)
