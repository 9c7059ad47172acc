"""The coming fire times of a trigger, with what the clocks do to each."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import NamedTuple

from msgspec.structs import replace

from asyncsched.triggers import AllOf, AnyOf, Calendar, Cron, Excluding, Trigger, Within
from asyncsched.triggers.words import joined, time_of_day
from asyncsched.triggers.zones import in_zone, zone_table
from asyncsched.units import to_datetime

__all__ = ["Coming", "coming"]

_DAY_S = 86400
#: How far on the next look at a zone's offsets is; one look reaches a year to either side.
_LOOK_S = 300 * _DAY_S
#: So many skipped times are named one by one.
_NAMED = 3
#: So many times within one gap are told apart.
_IN_A_GAP = 1000


class Coming(NamedTuple):
    """A fire time; or a time of the clock that is skipped, which is a naive datetime since it has no instant."""

    at: datetime
    note: str = ""
    skipped: bool = False


class _Gap(NamedTuple):
    """An instant at which the clocks of a zone go from one local time to a later one, both in seconds since 1970."""

    at: int
    begin: int
    end: int
    zone: str

    def words(self, shown: str) -> str:
        """What happens, for a reader of times in the zone *shown*."""
        clocks = "the clocks" if shown == self.zone else f"the clocks of {self.zone}"
        return f"{clocks} go from {self.clock(self.begin)} to {self.clock(self.end)}"

    def clock(self, local: int) -> str:
        """A time of the day; with its date where the gap reaches into another day."""
        text = time_of_day(local % _DAY_S)
        return text if self.begin // _DAY_S == self.end // _DAY_S else f"{_naive(local):%Y-%m-%d} {text}"

    def times(self, local: list[int]) -> str:
        if len(local) <= _NAMED:
            return joined([self.clock(second) for second in local])
        return f"{self.clock(local[0])} to {self.clock(local[-1])}"


def coming(trigger: Trigger, count: int, begin: datetime, zone: str) -> list[Coming]:
    """The next *count* fire times after *begin*, shown in *zone*, and between them the times that the clocks skip."""
    fires = [fire.timestamp() for fire in trigger.preview(count, begin)]
    leaves = list(_leaves(trigger))
    found: list[Coming] = []
    for before, fire in pairwise([begin.timestamp(), *fires]):
        found += _skipped(leaves, before, fire, zone)
        note = _moved(leaves, fire, zone) or _repeated(trigger, leaves, fire, zone)
        found.append(Coming(in_zone(fire, zone), note))
    return found


def _leaves(trigger: Trigger) -> Iterator[Cron | Calendar]:
    """The triggers that read a clock on the wall, out of which *trigger* is made."""
    if isinstance(trigger, AnyOf | AllOf):
        for member in trigger.triggers:
            yield from _leaves(member)
    elif isinstance(trigger, Excluding | Within):
        yield from _leaves(trigger.base)
    elif isinstance(trigger, Cron | Calendar):
        yield trigger


# -- gaps ------------------------------------------------------------------------------------------------------------------


def _skipped(leaves: list[Cron | Calendar], before: float, fire: float, zone: str) -> list[Coming]:
    """Times that gaps in (before, fire] take away, and that no run is made for."""
    found = {}
    for leaf in leaves:
        for gap in _gaps(leaf.zone, before, fire):
            lost = _lost(leaf, gap)
            if lost and not _made_up(leaf, gap):
                which = "" if len(lost) == 1 else f" {gap.times(lost)}"
                note = f"skipped{which}: {gap.words(zone)}"
                found[gap.at, note] = Coming(_naive(lost[0]), note, skipped=True)
    return [found[key] for key in sorted(found)]


def _moved(leaves: list[Cron | Calendar], fire: float, zone: str) -> str:
    """What a fire time that no field names stands for; empty for others."""
    for leaf in leaves:
        for gap in _gaps(leaf.zone, fire - _DAY_S, fire):
            if fire not in _made_up(leaf, gap):
                continue
            shifted = isinstance(leaf, Cron) and leaf.dst_gap == "shift"
            lost = [gap.begin + int(fire) - gap.at] if shifted else _lost(leaf, gap)
            return f"moved from {gap.times(lost)}: {gap.words(zone)}"
    return ""


def _lost(leaf: Cron | Calendar, gap: _Gap) -> list[int]:
    """The local times within a gap that a trigger names: all of a few, of many some and the last.

    None where the gap lies outside of its start and end.
    """
    if not (leaf.start or gap.at) <= gap.at <= (leaf.end or gap.at):
        return []
    wall, end = _on_the_wall(leaf), to_datetime(gap.end)
    fires = wall.between(to_datetime(gap.begin), end, _NAMED + 1)
    last = wall.previous_before(end)
    if last is not None and len(fires) > _NAMED:
        fires[-1] = last
    return [int(fire.timestamp()) for fire in fires]


def _made_up(leaf: Cron | Calendar, gap: _Gap) -> list[float]:
    """The fire times after a gap, as long as it, that are there because of it."""
    wall = _on_the_wall(leaf)
    fires = leaf.between(to_datetime(gap.at), to_datetime(gap.at + gap.end - gap.begin), _IN_A_GAP)
    instants = [fire.timestamp() for fire in fires]
    return [at for at in instants if not wall.matches(to_datetime(gap.end + at - gap.at))]


def _on_the_wall(leaf: Cron | Calendar) -> Trigger:
    """The trigger in a zone without gaps, so that local times are its instants."""
    return replace(leaf, tz="UTC", start=None, end=None)


def _gaps(zone: str, after: float, until: float) -> list[_Gap]:
    """The gaps of a zone in (after, until]."""
    found = set()
    for instant in range(int(after), int(until) + _LOOK_S, _LOOK_S):
        starts, offsets = zone_table(zone).around(instant)
        for at, old, new in zip(starts[1:], offsets, offsets[1:], strict=False):
            if after < at <= until and new > old:
                found.add(_Gap(at, at + old, at + new, zone))
    return sorted(found)


def _naive(local: int) -> datetime:
    return datetime.fromtimestamp(local, UTC).replace(tzinfo=None)


# -- folds -----------------------------------------------------------------------------------------------------------------


def _repeated(trigger: Trigger, leaves: list[Cron | Calendar], fire: float, zone: str) -> str:
    """Which pass of a time that comes twice it is, and whether the other one is left out; empty for times that come once."""
    starts, offsets = window = zone_table(zone).around(int(fire))
    i = window.segment(int(fire))
    passed, coming = offsets[i - 1] - offsets[i], offsets[i] - offsets[i + 1]
    if passed > 0 and fire < starts[i] + passed:
        which, other = "second", fire - passed
    elif coming > 0 and fire >= starts[i + 1] - coming:
        which, other = "first", fire + coming
    else:
        return ""
    left_out = any(leaf.zone == zone for leaf in leaves) and not trigger.matches(to_datetime(other))
    return f"{which} pass of two" + ("; the other does not count" if left_out else "")
