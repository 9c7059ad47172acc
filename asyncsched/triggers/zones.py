"""Time zones as tables of offsets, so that a step in local time is arithmetic and a bisection."""

from __future__ import annotations

from bisect import bisect_right
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from asyncsched.errors import TriggerError
from asyncsched.units import to_datetime

__all__ = ["EPOCH_ORDINAL", "Window", "ZoneTable", "in_zone", "local_ordinal", "zone_of", "zone_table"]

EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_DAY_S = 86400
#: What is looked up at a time; about a year.
_BLOCK_S = 366 * _DAY_S
#: No transition lies this near to where a block begins: what it skips or repeats lies within one block. The longest gap
#: is a day (Apia 2011), and no two transitions of any zone are nearer than six days.
_CLEAR_DAYS = 3
#: So that two transitions that undo each other are not overlooked; a block is a whole number of these.
_PROBE_S = 2 * _DAY_S
#: Where the only segment of a zone without transitions ends: outside of the years that count, and inside of the calendar.
_FAR_S = 5 * 10**10


class Window(NamedTuple):
    """Offsets around an instant. Segment *i* begins at ``starts[i]`` (UTC seconds) with ``offsets[i]`` (seconds east).

    Every segment begins with a transition but for the first two and the last, where the window ends.
    """

    starts: tuple[int, ...]
    offsets: tuple[int, ...]

    def segment(self, instant: int) -> int:
        """The segment of *instant*; there is one before it and one after it."""
        return bisect_right(self.starts, instant) - 1


class ZoneTable:
    """The offsets of one zone, looked up where they are asked for."""

    def __init__(self, zone: tzinfo | None) -> None:
        self._zone = zone
        self._windows: dict[int, Window] = {}
        self._blocks: dict[int, tuple[list[int], list[int]]] = {}
        self._fixed = (
            Window((-2 * _FAR_S, -_FAR_S, _FAR_S), (self._offset(0),) * 3)
            if isinstance(zone, timezone)
            else None
        )

    def around(self, instant: int) -> Window:
        """The offsets from about a year before *instant* to about a year after it."""
        if self._fixed is not None:
            return self._fixed
        number = instant // _BLOCK_S
        window = self._windows.get(number)
        if window is None:
            window = self._windows[number] = self._window(number)
        return window

    def instant(self, local: int) -> int:
        """When the clock shows *local* seconds since 1970: the first time, or at once after the gap that skips them."""
        window = self.around(local)
        starts, offsets = window
        i = max(1, window.segment(local - _DAY_S))
        while local - offsets[i] >= starts[i + 1]:
            i += 1
        return max(local - offsets[i], starts[i])

    def _window(self, number: int) -> Window:
        starts: list[int] = []
        offsets: list[int] = []
        for block in range(number - 1, number + 2):
            for start, offset in zip(*self._block(block), strict=True):
                if not offsets or offset != offsets[-1]:
                    starts.append(start)
                    offsets.append(offset)
        before, behind = starts[0] - _BLOCK_S, self._edge(number + 2)
        return Window((before, *starts, behind), (offsets[0], *offsets, offsets[-1]))

    def _block(self, number: int) -> tuple[list[int], list[int]]:
        if number not in self._blocks:
            self._blocks[number] = self._look_up(self._edge(number), self._edge(number + 1))
        return self._blocks[number]

    def _look_up(self, begin: int, end: int) -> tuple[list[int], list[int]]:
        starts, offsets = [begin], [self._offset(begin)]
        for at in range(begin + _PROBE_S, end + _PROBE_S, _PROBE_S):
            if self._offset(at) != offsets[-1]:
                change = self._change(at - _PROBE_S, at)
                starts.append(change)
                offsets.append(self._offset(change))
        return starts, offsets

    def _edge(self, number: int) -> int:
        edge = number * _BLOCK_S
        while len({self._offset(edge + day * _DAY_S) for day in range(-_CLEAR_DAYS, _CLEAR_DAYS + 1)}) > 1:
            edge += _DAY_S
        return edge

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
        zone = self._zone
        moment = datetime.fromtimestamp(instant, zone or UTC)
        offset = (moment if zone else moment.astimezone()).utcoffset() or timedelta()
        return offset.days * _DAY_S + offset.seconds


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
        raise TriggerError(
            f"unknown time zone {name!r}; use an IANA name such as Europe/Berlin, UTC or local"
        ) from error


@lru_cache(maxsize=1024)
def zone_table(name: str) -> ZoneTable:
    """The offsets of the zone of that name."""
    return ZoneTable(zone_of(name))


def in_zone(instant: float, name: str) -> datetime:
    """The aware datetime of UTC seconds in the zone of that name; near the ends of the calendar in UTC."""
    moment = to_datetime(instant)
    try:
        return moment if name == "UTC" else moment.astimezone(zone_of(name))
    except (OverflowError, ValueError, OSError):
        return moment


def local_ordinal(instant: float, name: str) -> int:
    """The day on the wall's calendar at that instant in the zone of that name, as a proleptic ordinal."""
    return in_zone(instant, name).toordinal()
