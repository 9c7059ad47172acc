"""Walking the local calendar from one matching second to the next, and through gaps and folds of a zone."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from calendar import monthrange
from datetime import date
from typing import Literal

from asyncsched.triggers.fields import FIRST_YEAR, LAST_YEAR, Fields
from asyncsched.triggers.zones import EPOCH_ORDINAL, Window, ZoneTable

__all__ = ["FoldPolicy", "GapPolicy", "Walk"]

GapPolicy = Literal["run", "skip", "shift"]
FoldPolicy = Literal["first", "second", "both"]

_DAY_S = 86400
_LAST_SECOND = (date(LAST_YEAR, 12, 31).toordinal() - EPOCH_ORDINAL + 1) * _DAY_S - 1
_FIRST_SECOND = (date(FIRST_YEAR, 1, 1).toordinal() - EPOCH_ORDINAL) * _DAY_S


class Walk:
    """The fire times of parsed fields in a zone. Local times are seconds of a clock on the wall since 1970."""

    def __init__(self, fields: Fields, zone: ZoneTable, gap: GapPolicy, fold: FoldPolicy) -> None:
        self.fields = fields
        self._zone = zone
        # A job that follows the clock runs when its hands show a time: not at times that a gap skips, at both of a fold.
        self._gap: GapPolicy = "skip" if fields.follows_clock else gap
        self._fold: FoldPolicy = "both" if fields.follows_clock else fold
        self._days = _Days(fields)
        self._times = _Times(fields)

    def next(self, after: float) -> float | None:
        """The first fire time strictly later than *after*."""
        at = max(int(after // 1) + 1, _FIRST_SECOND)
        while at <= _LAST_SECOND:
            window = self._zone.around(at)
            i = window.segment(at)
            fire = self._first(window, i, at)
            if fire is not None:
                return float(fire)
            starts, offsets = window
            # From there on nothing comes but what the next transition repeats or skips.
            local = self._next_local(starts[i + 1] + min(offsets[i], offsets[i + 1]))
            if local is None:
                return None
            at = max(starts[i + 1], local - offsets[i] - 2 * _DAY_S)
        return None

    def previous(self, until: float) -> float | None:
        """The last fire time at or before *until*."""
        at = min(int(until // 1), _LAST_SECOND)
        while at >= _FIRST_SECOND:
            window = self._zone.around(at)
            i = window.segment(at)
            fire = self._last(window, i, at)
            if fire is not None:
                return float(fire) if fire >= _FIRST_SECOND else None
            starts, offsets = window
            local = self._previous_local(starts[i] + max(offsets[i], offsets[i - 1]) - 1)
            if local is None:
                return None
            at = min(starts[i] - 1, local - offsets[i] + 2 * _DAY_S)
        return None

    @property
    def skips_gaps(self) -> bool:
        """Whether local times that a gap skips are not made up for."""
        return self._gap == "skip"

    def skips(self, begin: int, end: int) -> bool:
        """Whether a local time in [begin, end) matches."""
        local = self._next_local(begin)
        return local is not None and local < end

    def skipped(self, after: float, until: float) -> list[tuple[int, int]]:
        """The ends of the gaps in (after, until], and how many times of a job of a fixed time each takes away."""
        found: list[tuple[int, int]] = []
        if self._gap != "skip" or self.fields.follows_clock:
            return found
        at = max(int(after // 1) + 1, _FIRST_SECOND)
        while at <= min(until, _LAST_SECOND):
            starts, offsets = window = self._zone.around(at)
            i = window.segment(at)
            if starts[i] == at:
                count = self._count(at + offsets[i - 1], at + offsets[i])
                found += [(at, count)] if count else []
            at = starts[i + 1]
        return found

    def _count(self, begin: int, end: int) -> int:
        """How many local times in [begin, end) match."""
        count = 0
        while begin < end:
            local = self._next_local(begin)
            if local is None or local >= end:
                break
            count, begin = count + 1, local + 1
        return count

    def _first(self, window: Window, i: int, at: int) -> int | None:
        """The first fire time of segment *i* at or after *at*."""
        starts, offsets = window
        offset, before = offsets[i], offsets[i - 1]
        low = at + offset
        if offset < before and self._fold == "first":
            low = max(low, starts[i] + before)
        local = self._next_local(low)
        best = local - offset if local is not None and local < self._end(window, i) else None
        if offset <= before or self._gap == "skip":
            return best
        moved = self._moved_from_gap(window, i, at)
        return moved if best is None or (moved is not None and moved < best) else best

    def _end(self, window: Window, i: int) -> int:
        """The local time at which segment *i* ends; where "second" counts, it ends before what the next one repeats."""
        offset, following = window.offsets[i], window.offsets[i + 1]
        return window.starts[i + 1] + (following if self._fold == "second" and following < offset else offset)

    def _moved_from_gap(self, window: Window, i: int, at: int) -> int | None:
        """When the gap at the start of segment *i* makes a fixed-time job run, at or after *at*."""
        start = window.starts[i]
        begin, end = start + window.offsets[i - 1], start + window.offsets[i]
        if self._gap == "run":
            return start if at <= start and self.skips(begin, end) else None
        local = self._next_local(max(begin, begin + at - start))
        return start + local - begin if local is not None and local < end else None

    def _last(self, window: Window, i: int, at: int) -> int | None:
        """The last fire time of segment *i* at or before *at*."""
        start, offset, before = window.starts[i], window.offsets[i], window.offsets[i - 1]
        low = start + (before if self._fold == "first" and offset < before else offset)
        local = self._previous_local(min(self._end(window, i) - 1, at + offset))
        best = local - offset if local is not None and local >= low else None
        begin, end = start + before, start + offset
        if self._gap == "skip" or begin >= end:
            return best
        last = end - 1 if self._gap == "run" else min(end - 1, begin + at - start)
        local = self._previous_local(last)
        if local is None or local < begin:
            return best
        moved = start if self._gap == "run" else start + local - begin
        return moved if best is None or moved > best else best

    def _next_local(self, local: int) -> int | None:
        """The first matching local second at or after *local*."""
        day, second = divmod(local, _DAY_S)
        times = self._times
        if second > times.last:
            day, second = day + 1, 0
        found = self._days.at_or_after(day)
        if found is None:
            return None
        return found * _DAY_S + (times.at_or_after(second) if found == day else times.first)

    def _previous_local(self, local: int) -> int | None:
        """The last matching local second at or before *local*."""
        day, second = divmod(local, _DAY_S)
        times = self._times
        if second < times.first:
            day, second = day - 1, _DAY_S - 1
        found = self._days.at_or_before(day)
        if found is None:
            return None
        return found * _DAY_S + (times.at_or_before(second) if found == day else times.last)


class _Days:
    """The days that match, counted from 1970-01-01.

    A month is one of 28 kinds, by its length and the weekday that it begins with; its days follow from that.
    """

    def __init__(self, fields: Fields) -> None:
        self._days = fields.days
        self._by_kind: dict[tuple[int, int], tuple[int, ...]] = {}
        #: The days of the months that were asked for, by year * 12 + month.
        self._by_month: dict[int, tuple[int, ...]] = {}
        self._months = tuple(sorted(fields.months))
        self._years = fields.years or range(FIRST_YEAR, LAST_YEAR + 1)

    def at_or_after(self, day: int) -> int | None:
        """The first matching day at or after *day*."""
        moment = date.fromordinal(day + EPOCH_ORDINAL)
        year, month, number = moment.year, moment.month, moment.day
        days = self._by_month.get(year * 12 + month)
        if days is None:
            days = self._of(year, month)
        i = bisect_left(days, number)
        if i < len(days):
            return day + days[i] - number
        found = self._first_in(year, bisect_right(self._months, month))
        if found is not None:
            return found
        for later in self._years[bisect_right(self._years, year) :]:
            found = self._first_in(later, 0)
            if found is not None:
                return found
        return None

    def at_or_before(self, day: int) -> int | None:
        """The last matching day at or before *day*."""
        moment = date.fromordinal(day + EPOCH_ORDINAL)
        year, month = moment.year, moment.month
        days = self._of(year, month)
        i = bisect_right(days, moment.day)
        if i > 0:
            return day + days[i - 1] - moment.day
        found = self._last_in(year, bisect_left(self._months, month))
        if found is not None:
            return found
        for earlier in reversed(self._years[: bisect_left(self._years, year)]):
            found = self._last_in(earlier, len(self._months))
            if found is not None:
                return found
        return None

    def _first_in(self, year: int, begin: int) -> int | None:
        for month in self._months[begin:]:
            days = self._of(year, month)
            if days:
                return date(year, month, days[0]).toordinal() - EPOCH_ORDINAL
        return None

    def _last_in(self, year: int, end: int) -> int | None:
        for month in reversed(self._months[:end]):
            days = self._of(year, month)
            if days:
                return date(year, month, days[-1]).toordinal() - EPOCH_ORDINAL
        return None

    def _of(self, year: int, month: int) -> tuple[int, ...]:
        """The matching days of a month, ascending."""
        days = self._by_month.get(year * 12 + month)
        if days is None:
            days = self._by_month[year * 12 + month] = self._read(year, month)
        return days

    def _read(self, year: int, month: int) -> tuple[int, ...]:
        if month not in self._months or year not in self._years:
            return ()
        weekday, length = monthrange(year, month)
        kind = (weekday + 1) % 7, length
        if kind not in self._by_kind:
            self._by_kind[kind] = self._days.of(*kind)
        return self._by_kind[kind]


class _Times:
    """The times of a day, in seconds."""

    def __init__(self, fields: Fields) -> None:
        self._hours, self._minutes, self._seconds = fields.hours, fields.minutes, fields.seconds
        self._first_in_hour = fields.minutes[0] * 60 + fields.seconds[0]
        self._last_in_hour = fields.minutes[-1] * 60 + fields.seconds[-1]
        self.first = fields.hours[0] * 3600 + self._first_in_hour
        self.last = fields.hours[-1] * 3600 + self._last_in_hour

    def at_or_after(self, second: int) -> int:
        """The first time of the day at or after *second*, which is not later than the last one."""
        hour, rest = divmod(second, 3600)
        hours = self._hours
        i = bisect_left(hours, hour)
        if hours[i] == hour:
            if rest <= self._last_in_hour:
                return hour * 3600 + self._in_hour(rest)
            i += 1
        return hours[i] * 3600 + self._first_in_hour

    def _in_hour(self, rest: int) -> int:
        minute, second = divmod(rest, 60)
        minutes, seconds = self._minutes, self._seconds
        if second > seconds[-1]:
            minute, second = minute + 1, 0
        j = bisect_left(minutes, minute)
        if minutes[j] > minute:
            return minutes[j] * 60 + seconds[0]
        return minute * 60 + seconds[bisect_left(seconds, second)]

    def at_or_before(self, second: int) -> int:
        """The last time of the day at or before *second*, which is not earlier than the first one."""
        hour, rest = divmod(second, 3600)
        hours = self._hours
        i = bisect_right(hours, hour) - 1
        if hours[i] == hour:
            if rest >= self._first_in_hour:
                return hour * 3600 + self._in_hour_before(rest)
            i -= 1
        return hours[i] * 3600 + self._last_in_hour

    def _in_hour_before(self, rest: int) -> int:
        minute, second = divmod(rest, 60)
        minutes, seconds = self._minutes, self._seconds
        if second < seconds[0]:
            minute, second = minute - 1, 59
        j = bisect_right(minutes, minute) - 1
        if minutes[j] < minute:
            return minutes[j] * 60 + seconds[-1]
        return minute * 60 + seconds[bisect_right(seconds, second) - 1]
