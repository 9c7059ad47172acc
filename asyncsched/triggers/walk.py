"""Walking the local calendar from one matching second to the next, and through gaps and folds of a zone."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from datetime import date
from typing import Literal

from asyncsched.triggers.fields import FIRST_YEAR, LAST_YEAR, Fields
from asyncsched.triggers.zones import EPOCH_ORDINAL, ZoneTable

__all__ = ["FoldPolicy", "GapPolicy", "Walk"]

GapPolicy = Literal["run", "skip", "shift"]
FoldPolicy = Literal["first", "second", "both"]

_DAY_S = 86400
_LAST_SECOND = (date(LAST_YEAR, 12, 31).toordinal() - EPOCH_ORDINAL + 1) * _DAY_S - 1
_FIRST_SECOND = (date(FIRST_YEAR, 1, 1).toordinal() - EPOCH_ORDINAL) * _DAY_S


class Walk:
    """The fire times of parsed fields in a zone. Local times are seconds of a clock on the wall since 1970."""

    def __init__(self, fields: Fields, zone: ZoneTable, gap: GapPolicy, fold: FoldPolicy) -> None:
        self._fields = fields
        self._zone = zone
        # A job that follows the clock runs when its hands show a time: not at times that a gap skips, at both of a fold.
        self._gap: GapPolicy = "skip" if fields.follows_clock else gap
        self._fold: FoldPolicy = "both" if fields.follows_clock else fold
        self._times = _Times(fields)

    def next(self, after: float) -> float | None:
        """The first fire time strictly later than *after*."""
        at = max(int(after // 1) + 1, _FIRST_SECOND)
        zone = self._zone
        while at < _LAST_SECOND:
            i = zone.index(at)
            fire = self._first(i, at)
            if fire is not None:
                return float(fire)
            local = self._next_local(zone.starts[i + 1] + zone.offsets[i])
            if local is None:
                return None
            # Nothing lies between the segment's end and there but what a fold repeats or a gap moves, within a day of it.
            at = max(zone.starts[i + 1], local - zone.offsets[i] - 2 * _DAY_S)
        return None

    def previous(self, until: float) -> float | None:
        """The last fire time at or before *until*."""
        at = min(int(until // 1), _LAST_SECOND)
        zone = self._zone
        while at >= _FIRST_SECOND:
            i = zone.index(at)
            fire = self._last(i, at)
            if fire is not None:
                return float(fire)
            local = self._previous_local(zone.starts[i] + zone.offsets[i] - 1)
            if local is None:
                return None
            at = min(zone.starts[i] - 1, local - zone.offsets[i] + 2 * _DAY_S)
        return None

    def gap_at(self, i: int) -> tuple[int, int] | None:
        """The local times [a, b) that the start of segment *i* skips."""
        zone = self._zone
        a, b = zone.starts[i] + zone.offsets[i - 1], zone.starts[i] + zone.offsets[i]
        return (a, b) if b > a else None

    def _bounds(self, i: int) -> tuple[int, int]:
        """The local times [low, high) that belong to segment *i* under the policy for folds."""
        zone = self._zone
        low = zone.starts[i] + zone.offsets[i]
        high = zone.starts[i + 1] + zone.offsets[i]
        if self._fold == "first":
            low = max(low, zone.starts[i] + zone.offsets[i - 1]) if zone.offsets[i] < zone.offsets[i - 1] else low
        elif self._fold == "second" and zone.offsets[i + 1] < zone.offsets[i]:
            high = zone.starts[i + 1] + zone.offsets[i + 1]
        return low, high

    def _first(self, i: int, at: int) -> int | None:
        """The first fire time of segment *i* at or after *at*."""
        zone = self._zone
        offset = zone.offsets[i]
        low, high = self._bounds(i)
        local = self._next_local(max(low, at + offset))
        best = local - offset if local is not None and local < high else None
        if self._gap == "skip" or zone.offsets[i - 1] >= offset:
            return best
        moved = self._moved_from_gap(i, at)
        return moved if best is None or (moved is not None and moved < best) else best

    def _moved_from_gap(self, i: int, at: int) -> int | None:
        """When the gap at the start of segment *i* makes a fixed-time job run, at or after *at*."""
        start = self._zone.starts[i]
        gap = self.gap_at(i)
        if gap is None:
            return None
        begin, end = gap
        if self._gap == "run":
            local = self._next_local(begin) if at <= start else None
            return start if local is not None and local < end else None
        local = self._next_local(max(begin, begin + at - start))
        return start + local - begin if local is not None and local < end else None

    def _last(self, i: int, at: int) -> int | None:
        """The last fire time of segment *i* at or before *at*."""
        zone = self._zone
        offset = zone.offsets[i]
        low, high = self._bounds(i)
        local = self._previous_local(min(high - 1, at + offset))
        best = local - offset if local is not None and local >= low else None
        gap = self.gap_at(i)
        if self._gap == "skip" or gap is None:
            return best
        begin, end = gap
        start = zone.starts[i]
        last = end - 1 if self._gap == "run" else min(end - 1, begin + at - start)
        local = self._previous_local(last)
        if local is None or local < begin:
            return best
        moved = start if self._gap == "run" else start + local - begin
        return moved if best is None or moved > best else best

    def _next_local(self, local: int) -> int | None:
        """The first matching local second at or after *local*."""
        ordinal, second = divmod(local, _DAY_S)
        day = date.fromordinal(ordinal + EPOCH_ORDINAL)
        fields = self._fields
        days: tuple[int, ...] = ()
        if day.month in fields.months and (fields.years is None or day.year in fields.years):
            days = fields.days.of(day.year, day.month)
            if day.day in days:
                found = self._times.at_or_after(second)
                if found is not None:
                    return ordinal * _DAY_S + found
            i = bisect_right(days, day.day)
            if i < len(days):
                return (ordinal + days[i] - day.day) * _DAY_S + self._times.first
        return self._first_of_later_month(day.year, day.month)

    def _first_of_later_month(self, year: int, month: int) -> int | None:
        fields = self._fields
        while year <= LAST_YEAR:
            month += 1
            if month > 12:
                year, month = _later_year(fields.years, year), 1
                if year > LAST_YEAR:
                    return None
            if month in fields.months and (fields.years is None or year in fields.years):
                days = fields.days.of(year, month)
                if days:
                    return (date(year, month, days[0]).toordinal() - EPOCH_ORDINAL) * _DAY_S + self._times.first
        return None

    def _previous_local(self, local: int) -> int | None:
        """The last matching local second at or before *local*."""
        ordinal, second = divmod(local, _DAY_S)
        day = date.fromordinal(ordinal + EPOCH_ORDINAL)
        fields = self._fields
        if day.month in fields.months and (fields.years is None or day.year in fields.years):
            days = fields.days.of(day.year, day.month)
            if day.day in days:
                found = self._times.at_or_before(second)
                if found is not None:
                    return ordinal * _DAY_S + found
            i = bisect_left(days, day.day)
            if i > 0:
                return (ordinal + days[i - 1] - day.day) * _DAY_S + self._times.last
        return self._last_of_earlier_month(day.year, day.month)

    def _last_of_earlier_month(self, year: int, month: int) -> int | None:
        fields = self._fields
        while year >= FIRST_YEAR:
            month -= 1
            if month < 1:
                year, month = year - 1, 12
            if year < FIRST_YEAR:
                return None
            if month in fields.months and (fields.years is None or year in fields.years):
                days = fields.days.of(year, month)
                if days:
                    return (date(year, month, days[-1]).toordinal() - EPOCH_ORDINAL) * _DAY_S + self._times.last
        return None


class _Times:
    """The times of a day, in seconds."""

    def __init__(self, fields: Fields) -> None:
        self._hours, self._minutes, self._seconds = fields.hours, fields.minutes, fields.seconds
        self._first_in_hour = fields.minutes[0] * 60 + fields.seconds[0]
        self._last_in_hour = fields.minutes[-1] * 60 + fields.seconds[-1]
        self.first = fields.hours[0] * 3600 + self._first_in_hour
        self.last = fields.hours[-1] * 3600 + self._last_in_hour

    def at_or_after(self, second: int) -> int | None:
        """The first time of the day at or after *second*."""
        hour, rest = divmod(second, 3600)
        hours = self._hours
        i = bisect_left(hours, hour)
        if i == len(hours):
            return None
        if hours[i] == hour:
            found = self._in_hour(rest)
            if found is not None:
                return hour * 3600 + found
            i += 1
            if i == len(hours):
                return None
        return hours[i] * 3600 + self._first_in_hour

    def _in_hour(self, rest: int) -> int | None:
        minute, second = divmod(rest, 60)
        minutes, seconds = self._minutes, self._seconds
        j = bisect_left(minutes, minute)
        if j < len(minutes) and minutes[j] == minute:
            k = bisect_left(seconds, second)
            if k < len(seconds):
                return minute * 60 + seconds[k]
            j += 1
        return minutes[j] * 60 + seconds[0] if j < len(minutes) else None

    def at_or_before(self, second: int) -> int | None:
        """The last time of the day at or before *second*."""
        hour, rest = divmod(second, 3600)
        hours = self._hours
        i = bisect_right(hours, hour) - 1
        if i < 0:
            return None
        if hours[i] == hour:
            found = self._in_hour_before(rest)
            if found is not None:
                return hour * 3600 + found
            i -= 1
            if i < 0:
                return None
        return hours[i] * 3600 + self._last_in_hour

    def _in_hour_before(self, rest: int) -> int | None:
        minute, second = divmod(rest, 60)
        minutes, seconds = self._minutes, self._seconds
        j = bisect_right(minutes, minute) - 1
        if j >= 0 and minutes[j] == minute:
            k = bisect_right(seconds, second) - 1
            if k >= 0:
                return minute * 60 + seconds[k]
            j -= 1
        return minutes[j] * 60 + seconds[-1] if j >= 0 else None


def _later_year(years: tuple[int, ...] | None, year: int) -> int:
    if years is None:
        return year + 1
    i = bisect_right(years, year)
    return years[i] if i < len(years) else LAST_YEAR + 1
