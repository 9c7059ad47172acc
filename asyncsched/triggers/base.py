"""What a trigger is: a frozen value that names fire times, and reads no clock."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from asyncsched.errors import TriggerError
from asyncsched.triggers.zones import in_zone
from asyncsched.units import LATEST, to_instant

__all__ = ["COUNT_LIMIT", "TICK_S", "Omitted", "Passed", "Trigger", "limits"]

#: More fire times than this are not counted one by one where a trigger can only be walked.
COUNT_LIMIT = 1000
#: Two instants that differ are this far apart.
TICK_S = 1e-6


class Passed(msgspec.Struct, frozen=True, gc=False):
    """The fire times of a span: how many, the last of them, and the first after the span (None: there is none)."""

    count: int
    last: float | None
    next: float | None
    #: The count is a lower bound: the span holds more than was walked.
    more: bool = False


class Omitted(msgspec.Struct, frozen=True, gc=False):
    """Fire times that a trigger leaves out though its author may expect them: why, the first, the last, and how many."""

    reason: Literal["dst_gap", "excluded"]
    first: float
    last: float
    count: int
    #: The count is a lower bound: the span holds more than was walked.
    more: bool = False


class Trigger(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The times at which a job is due, as a value. Made by functions such as :func:`every` and :func:`cron`, or from a string.

    Inside, instants are UTC seconds; the methods for users speak in aware datetimes, and answer in the trigger's zone.
    """

    def bind(self, now: float, id: str = "") -> Trigger:
        """The trigger as it counts for a job of that id that is added at *now*."""
        return self

    def unbound(self) -> Trigger:
        """The trigger as it was written, to tell whether an edit changed it."""
        return self

    def next(self, after: float) -> float | None:
        """The first fire time strictly later than *after*; None when there is none."""
        raise TriggerError(f"{type(self).__name__} does not say when it fires")

    def first(self, now: float) -> float | None:
        """The first fire time of a job that is added at *now*."""
        return self.next(now)

    def passed(self, after: float, until: float) -> Passed:
        """The fire times in (after, until], and the first one behind them."""
        count, last = 0, None
        fire = self.next(after)
        while fire is not None and fire <= until:
            count, last = count + 1, fire
            if count >= COUNT_LIMIT:
                return self._passed_many(count, until)
            fire = self.next(fire)
        return Passed(count, last, fire)

    def _passed_many(self, count: int, until: float) -> Passed:
        return Passed(count, self.previous(until), self.next(until), more=True)

    def omitted(self, after: float, until: float) -> tuple[Omitted, ...]:
        """What is left out in (after, until]: times that a gap skips and policy does not make up for, and what is excluded."""
        return ()

    def previous(self, until: float) -> float | None:
        """The last fire time at or before *until*; None when there is none."""
        raise TriggerError(f"{type(self).__name__} does not say when it fires")

    @property
    def recurs(self) -> bool:
        """Whether it may name more than one time."""
        return True

    @property
    def after_finish(self) -> bool:
        """Whether the next fire time counts from the end of a run: ``next`` wants the finishing instant then."""
        return False

    @property
    def is_backfill(self) -> bool:
        """Whether each of its fire times runs, however late that is, and whatever comes meanwhile."""
        return False

    @property
    def zone(self) -> str:
        """The name of the time zone that it speaks in."""
        return "UTC"

    def next_after(self, instant: datetime) -> datetime | None:
        """The first fire time strictly later than *instant*; None when there is none."""
        return self._shown(self.next(to_instant(instant, "instant")))

    def previous_before(self, instant: datetime) -> datetime | None:
        """The last fire time strictly earlier than *instant*; None when there is none."""
        return self._shown(self.previous(to_instant(instant, "instant") - TICK_S))

    def matches(self, instant: datetime) -> bool:
        """Whether *instant* is a fire time."""
        at = to_instant(instant, "instant")
        return self.previous(at) == at

    def between(self, begin: datetime, end: datetime, limit: int = 1000) -> list[datetime]:
        """The fire times in [begin, end): the first *limit* of them."""
        last = to_instant(end, "end")
        return self._listed(self.next(to_instant(begin, "begin") - TICK_S), last, limit)

    def preview(self, n: int, start: datetime) -> list[datetime]:
        """The next *n* fire times after *start*; an estimate where they count from the end of runs (see ``warnings``)."""
        return self._listed(self.next(to_instant(start, "start")), None, n)

    def _listed(self, fire: float | None, end: float | None, limit: int) -> list[datetime]:
        found: list[datetime] = []
        while fire is not None and len(found) < limit and (end is None or fire < end):
            found.append(in_zone(fire, self.zone))
            fire = self.next(fire)
        return found

    def describe(self) -> str:
        """When it fires, in plain English."""
        raise TriggerError(f"{type(self).__name__} does not say when it fires")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What its author may not expect of it: days on which it does not fire, and times that are estimates."""
        return ()

    def _shown(self, fire: float | None) -> datetime | None:
        return None if fire is None else in_zone(fire, self.zone)


def limits(start: datetime | None, end: datetime | None, name: str) -> tuple[float | None, float | None]:
    """The instants between which a trigger may fire; refuses an end before the start."""
    begin = None if start is None else min(to_instant(start, "start"), LATEST)
    stop = None if end is None else min(to_instant(end, "end"), LATEST)
    if begin is not None and stop is not None and stop < begin:
        raise TriggerError(f"{name}: end ({end}) lies before start ({start})")
    return begin, stop
