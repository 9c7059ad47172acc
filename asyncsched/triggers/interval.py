"""A fixed distance in time, whatever the clocks on the wall do."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from msgspec.structs import replace

from asyncsched.errors import TriggerError
from asyncsched.triggers.base import Passed, Trigger, limits
from asyncsched.triggers.options import with_options
from asyncsched.triggers.words import compact_duration, limits_in_words, plural
from asyncsched.units import LATEST, Duration, parse_duration, to_instant, to_seconds

__all__ = ["Every", "every"]

From = Literal["start", "finish"]


class Every(Trigger, frozen=True, array_like=True, gc=False, tag="every"):
    """Fire times at anchor + n * step. Whole microseconds, so that nothing drifts however many steps there are."""

    step_us: int
    anchor: float | None = None
    start: float | None = None
    end: float | None = None
    #: When the job was added; it takes the place of an anchor where neither that nor a start was given.
    bound: float | None = None
    #: What the next interval is counted from: the fire time, or the end of the run.
    after: From = "start"

    def bind(self, now: float, id: str = "") -> Every:
        return self if self.bound is not None else replace(self, bound=now)

    def unbound(self) -> Every:
        return replace(self, bound=None)

    def next(self, after: float) -> float | None:
        if self.after == "finish":
            return self._within(max((round(after * 1e6) + self.step_us) / 1e6, self.start or -LATEST))
        # All in whole microseconds, so that a fire time is never found to lie a fraction of one before the start.
        after_us = round(after * 1e6)
        if self.start is not None:
            after_us = max(after_us, round(self.start * 1e6) - 1)
        anchor_us = round(self._anchor * 1e6)
        steps = (after_us - anchor_us) // self.step_us + 1
        fire = (anchor_us + steps * self.step_us) / 1e6
        return self._within(fire)

    def _within(self, fire: float) -> float | None:
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
        stop = until if self.end is None else min(until, self.end)
        first_us = round(first * 1e6)
        count = (round(stop * 1e6) - first_us) // self.step_us + 1
        last = (first_us + (count - 1) * self.step_us) / 1e6
        return Passed(count, last, self.next(last))

    @property
    def after_finish(self) -> bool:
        return self.after == "finish"

    @property
    def _anchor(self) -> float:
        """What the grid goes through: what was given, else its start, else when the job was added."""
        return next((at for at in (self.anchor, self.start, self.bound) if at is not None), 0.0)

    def describe(self) -> str:
        text = plural(self.step_us)
        # "every minute", not "every 1 minute".
        text = text.removeprefix("1 ") if "and" not in text and "," not in text else text
        text = f"{plural(self.step_us)} after the end of each run" if self.after_finish else f"every {text}"
        return text + limits_in_words(self.start, self.end, "UTC")

    @property
    def warnings(self) -> tuple[str, ...]:
        return (
            ("previews are an estimate: they leave out how long each run takes",) if self.after_finish else ()
        )

    def __str__(self) -> str:
        options = {
            "anchor": self.anchor,
            "start": self.start,
            "end": self.end,
            "after": self.after if self.after_finish else None,
        }
        return with_options(options, f"@every {compact_duration(self.step_us)}")


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
    after: From = "start",
) -> Every:
    """Fire every *interval* ("90s", "1h30m", seconds, a timedelta) or weeks, days, hours, minutes and seconds together.

    The first fire time is one interval after the job was added; with *start* that instant, or where it has passed the next one
    a whole number of intervals from it. An *anchor* is a place on the grid that sets no beginning. *end* is the last instant
    at which it may fire. Elapsed time: time zones do not matter.

    With ``after="finish"`` an interval begins when a run has ended, not at its fire time; previews are an estimate then.
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
    begin, stop = limits(start, end, "every()")
    if after not in ("start", "finish"):
        raise TriggerError(f'every(): after is "start" or "finish", not {after!r}')
    if after == "finish" and anchor is not None:
        raise TriggerError(
            'every(): an anchor is a place on a grid, and after="finish" knows none; use start='
        )
    anchored = None if anchor is None else min(to_instant(anchor, "anchor"), LATEST)
    return Every(step_us, anchored, begin, stop, None, after)
