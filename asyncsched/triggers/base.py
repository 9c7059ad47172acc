"""What a trigger is: a frozen value that names fire times, and reads no clock."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import msgspec

from asyncsched.errors import TriggerError
from asyncsched.units import to_datetime, to_instant

__all__ = ["Passed", "Trigger"]

#: More fire times than this are not counted one by one where a trigger can only be walked.
COUNT_LIMIT = 1000


class Passed(msgspec.Struct, frozen=True, gc=False):
    """The fire times of a span: how many, the last of them, and the first after the span (None: there is none)."""

    count: int
    last: float | None
    next: float | None
    #: The count is a lower bound: the span holds more than was walked.
    more: bool = False


class Trigger(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The times at which a job is due, as a value. Made by :func:`once`, :func:`every`, :func:`cron` and :func:`manual`.

    Inside, instants are UTC seconds; ``next_after`` and ``preview`` speak in aware datetimes.
    """

    def bind(self, now: float) -> Trigger:
        """The trigger as it counts for a job that is added at *now*."""
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

    def previous(self, until: float) -> float | None:
        """The last fire time at or before *until*; None when there is none."""
        raise TriggerError(f"{type(self).__name__} does not say when it fires")

    @property
    def recurs(self) -> bool:
        """Whether it may name more than one time."""
        return True

    def next_after(self, instant: datetime) -> datetime | None:
        """The first fire time strictly later than *instant*; None when there is none."""
        fire = self.next(to_instant(instant, "instant"))
        return None if fire is None else to_datetime(fire)

    def preview(self, n: int, start: datetime) -> list[datetime]:
        """The next *n* fire times after *start*."""
        return list(self._walk(n, start))

    def _walk(self, n: int, start: datetime) -> Iterator[datetime]:
        instant: datetime | None = start
        for _ in range(n):
            instant = None if instant is None else self.next_after(instant)
            if instant is None:
                return
            yield instant
