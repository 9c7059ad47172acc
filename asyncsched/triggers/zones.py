"""Time zones as tables of offsets, so that a step in local time is arithmetic and a bisection."""

from __future__ import annotations

from bisect import bisect_right
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from asyncsched.errors import TriggerError

__all__ = ["EPOCH_ORDINAL", "ZoneTable", "zone_of", "zone_table"]

EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_DAY_S = 86400


class ZoneTable:
    """The offsets of one zone. Segment *i* begins at ``starts[i]`` (UTC seconds) with ``offsets[i]`` (seconds east).

    Years are looked up when they are asked for. A segment ends where the next one starts; each year begins one, so a segment
    boundary need not be a transition.
    """

    def __init__(self, zone: tzinfo | None) -> None:
        self._zone = zone
        self.starts: list[int] = []
        self.offsets: list[int] = []
        self._years: tuple[int, int] | None = None

    def index(self, instant: float) -> int:
        """The segment of *instant*; the one before and the two after it are there too."""
        year = date.fromordinal(int(instant // _DAY_S) + EPOCH_ORDINAL).year
        years = self._years
        if years is None or not years[0] < year < years[1]:
            self._cover(year)
        return bisect_right(self.starts, instant) - 1

    def _cover(self, year: int) -> None:
        """Look up this year and its neighbours, and what lies between them and the years that are known."""
        first, last = self._years or (year, year - 1)
        while first > year - 1:
            first -= 1
            starts, offsets = self._year(first)
            self.starts[:0], self.offsets[:0] = starts, offsets
        while last < year + 1:
            last += 1
            starts, offsets = self._year(last)
            self.starts += starts
            self.offsets += offsets
        self._years = (first, last)

    def _year(self, year: int) -> tuple[list[int], list[int]]:
        begin = (date(year, 1, 1).toordinal() - EPOCH_ORDINAL) * _DAY_S
        end = (date(year + 1, 1, 1).toordinal() - EPOCH_ORDINAL) * _DAY_S
        starts, offsets = [begin], [self._offset(begin)]
        if isinstance(self._zone, timezone):
            return starts, offsets
        for at in range(begin + _DAY_S, end + 1, _DAY_S):
            if self._offset(at) != offsets[-1]:
                change = self._change(at - _DAY_S, at)
                if change < end:
                    starts.append(change)
                    offsets.append(self._offset(change))
        return starts, offsets

    def _change(self, before: int, after: int) -> int:
        """The first second in (before, after] with another offset than *before*."""
        old = self._offset(before)
        while after - before > 1:
            middle = (before + after) // 2
            if self._offset(middle) == old:
                before = middle
            else:
                after = middle
        return after

    def _offset(self, instant: int) -> int:
        moment = datetime.fromtimestamp(instant, UTC).astimezone(self._zone)
        return round((moment.utcoffset() or timedelta()).total_seconds())


@lru_cache(maxsize=1024)
def zone_of(name: str) -> tzinfo | None:
    """The zone of that name; None stands for the host's own ("local"). Raises TriggerError for an unknown one."""
    if name == "UTC":
        return UTC
    if name == "local":
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise TriggerError(f"unknown time zone {name!r}; use an IANA name such as Europe/Berlin, UTC or local") from error


@lru_cache(maxsize=1024)
def zone_table(name: str) -> ZoneTable:
    """The offsets of the zone of that name."""
    return ZoneTable(zone_of(name))
