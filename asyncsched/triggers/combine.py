"""Triggers made of others."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from datetime import date, datetime
from typing import TypeAlias, cast

from msgspec.structs import replace

from asyncsched.errors import TriggerError
from asyncsched.triggers.base import COUNT_LIMIT, TICK_S, Omitted, Trigger
from asyncsched.triggers.calendar import Calendar
from asyncsched.triggers.cron import Cron
from asyncsched.triggers.interval import Every
from asyncsched.triggers.once import Manual, Once
from asyncsched.triggers.words import joined
from asyncsched.triggers.zones import EPOCH_ORDINAL, local_ordinal, zone_table
from asyncsched.units import to_datetime

__all__ = ["AllOf", "AnyOf", "AnyTrigger", "Excluding", "Within", "all_of", "any_of", "excluding"]

_DAY_S = 86400
#: Steps of a search, after which it is given up: a fraction of a second.
SEARCH_LIMIT = 10_000
_MAX_MEMBERS = 100


class AnyOf(Trigger, frozen=True, array_like=True, gc=False, tag="any_of"):
    """The fire times of all its members; one that several share counts once."""

    triggers: tuple[AnyTrigger, ...]

    def bind(self, now: float, id: str = "") -> AnyOf:
        return replace(self, triggers=_bound(self.triggers, now, id))

    def unbound(self) -> AnyOf:
        return replace(self, triggers=_unbound(self.triggers))

    def next(self, after: float) -> float | None:
        return min(_found(trigger.next(after) for trigger in self.triggers), default=None)

    def first(self, now: float) -> float | None:
        return min(_found(trigger.first(now) for trigger in self.triggers), default=None)

    def previous(self, until: float) -> float | None:
        return max(_found(trigger.previous(until) for trigger in self.triggers), default=None)

    def omitted(self, after: float, until: float) -> tuple[Omitted, ...]:
        return tuple(
            dict.fromkeys(span for trigger in self.triggers for span in trigger.omitted(after, until))
        )

    @property
    def zone(self) -> str:
        return _common_zone(self.triggers)

    def describe(self) -> str:
        return "; or ".join(trigger.describe() for trigger in self.triggers)

    @property
    def warnings(self) -> tuple[str, ...]:
        return _warnings(self.triggers)

    def __str__(self) -> str:
        return f"any_of({'; '.join(map(str, self.triggers))})"


class AllOf(Trigger, frozen=True, array_like=True, gc=False, tag="all_of"):
    """The fire times that all its members share, to the microsecond."""

    triggers: tuple[AnyTrigger, ...]

    def bind(self, now: float, id: str = "") -> AllOf:
        return replace(self, triggers=_bound(self.triggers, now, id))

    def unbound(self) -> AllOf:
        return replace(self, triggers=_unbound(self.triggers))

    def next(self, after: float) -> float | None:
        """Raises TriggerError when the search gives up: that is not the end of the fire times."""
        for _ in range(SEARCH_LIMIT // len(self.triggers)):
            fires = [trigger.next(after) for trigger in self.triggers]
            if None in fires:
                return None
            latest = max(_found(fires))
            if all(fire == latest for fire in fires):
                return latest
            after = latest - TICK_S
        raise self._exhausted("after", after)

    def first(self, now: float) -> float | None:
        """A single instant among the members counts though it is past, as it does by itself."""
        once = [
            trigger.at for trigger in self.triggers if isinstance(trigger, Once) and trigger.at is not None
        ]
        return self.next(min([now, *(at - TICK_S for at in once)]))

    def previous(self, until: float) -> float | None:
        """As for next."""
        for _ in range(SEARCH_LIMIT // len(self.triggers)):
            fires = [trigger.previous(until) for trigger in self.triggers]
            if None in fires:
                return None
            until = min(_found(fires))
            if all(fire == until for fire in fires):
                return until
        raise self._exhausted("before", until)

    def _exhausted(self, where: str, instant: float) -> TriggerError:
        return TriggerError(
            f"{self}: no time that all of its triggers share was found in {SEARCH_LIMIT:,} steps {where} the instant asked for, "
            f"and the search ended at {instant:.0f} UTC seconds; make them share more"
        )

    @property
    def recurs(self) -> bool:
        return all(trigger.recurs for trigger in self.triggers)

    @property
    def zone(self) -> str:
        return _common_zone(self.triggers)

    def describe(self) -> str:
        return "whenever these fall together: " + "; and ".join(
            trigger.describe() for trigger in self.triggers
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        return _warnings(self.triggers)

    def __str__(self) -> str:
        return f"all_of({'; '.join(map(str, self.triggers))})"


class Excluding(Trigger, frozen=True, array_like=True, gc=False, tag="excluding"):
    """The fire times of a base but for those of other triggers, and for those on certain dates."""

    base: AnyTrigger
    triggers: tuple[AnyTrigger, ...] = ()
    #: As proleptic ordinals, ascending, in the zone of the base.
    dates: tuple[int, ...] = ()

    def bind(self, now: float, id: str = "") -> Excluding:
        base = cast("AnyTrigger", self.base.bind(now, id))
        return replace(self, base=base, triggers=_bound(self.triggers, now, id))

    def unbound(self) -> Excluding:
        return replace(self, base=self.base.unbound(), triggers=_unbound(self.triggers))

    def next(self, after: float) -> float | None:
        """Raises TriggerError when too many fire times in a row are taken out: that is not the end of them."""
        return self._search(self.base.next(after))

    def first(self, now: float) -> float | None:
        return self._search(self.base.first(now))

    def _search(self, fire: float | None) -> float | None:
        for _ in range(SEARCH_LIMIT):
            if fire is None or not self.excludes(fire):
                return fire
            fire = self.base.next(
                max(fire, self._midnight(fire, 1) - TICK_S) if self._on_a_date(fire) else fire
            )
        raise self._exhausted()

    def previous(self, until: float) -> float | None:
        """As for next."""
        fire = self.base.previous(until)
        for _ in range(SEARCH_LIMIT):
            if fire is None or not self.excludes(fire):
                return fire
            end = self._midnight(fire, 0) if self._on_a_date(fire) else fire
            fire = self.base.previous(min(fire, end) - TICK_S)
        raise self._exhausted()

    def omitted(self, after: float, until: float) -> tuple[Omitted, ...]:
        fires: list[float] = []
        walked, fire = 0, self.base.next(after)
        while fire is not None and fire <= until and walked < COUNT_LIMIT:
            walked += 1
            if self.excludes(fire):
                fires.append(fire)
            fire = self.base.next(fire)
        more = fire is not None and fire <= until
        spans = (Omitted("excluded", fires[0], fires[-1], len(fires), more),) if fires else ()
        return (*self.base.omitted(after, until), *spans)

    def excludes(self, fire: float) -> bool:
        """Whether a fire time of the base is taken out."""
        return self._on_a_date(fire) or any(trigger.previous(fire) == fire for trigger in self.triggers)

    def _on_a_date(self, fire: float) -> bool:
        return bool(self.dates) and local_ordinal(fire, self.zone) in self.dates

    def _midnight(self, fire: float, days: int) -> float:
        """When the day of a fire time begins, or one so many days later."""
        day = local_ordinal(fire, self.zone) + days - EPOCH_ORDINAL
        return float(zone_table(self.zone).instant(day * _DAY_S))

    def _exhausted(self) -> TriggerError:
        return TriggerError(f"{self}: {SEARCH_LIMIT:,} fire times in a row are taken out; leave more of them")

    @property
    def recurs(self) -> bool:
        return self.base.recurs

    @property
    def zone(self) -> str:
        return self.base.zone

    def describe(self) -> str:
        without = [date.fromordinal(day).isoformat() for day in self.dates]
        parts = [f"on {joined(without)}"] if without else []
        return f"{self.base.describe()}, except {joined(parts + [trigger.describe() for trigger in self.triggers])}"

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.base.warnings

    def __str__(self) -> str:
        dates = [date.fromordinal(day).isoformat() for day in self.dates]
        return f"excluding({'; '.join([str(self.base), *map(str, self.triggers), *dates])})"


class Within(Trigger, frozen=True, array_like=True, gc=False, tag="within"):
    """The fire times of a job's trigger in [begin, end), but for some: what a backfill of that job runs, one after another."""

    base: AnyTrigger
    begin: float
    end: float
    #: How many there are.
    count: int
    #: The first and the last fire time of each span that is left out, ascending.
    without: tuple[tuple[float, float], ...] = ()
    #: From the start of one run to the start of the next, in seconds.
    gap: float = 0.0
    #: The id of the job, and its birth; that is empty where these runs are others than the job's own would be.
    of: str = ""
    birth: str = ""
    #: Of the whole backfill, which may be in several parts: its begin and end, how many fire times, and how many parts.
    whole: tuple[float, float, int, int] = (0.0, 0.0, 0, 1)

    def next(self, after: float) -> float | None:
        fire = self.base.next(max(after, self.begin - TICK_S))
        while fire is not None and (span := self._left_out(fire)) is not None:
            fire = self.base.next(span[1])
        return fire if fire is not None and fire < self.end else None

    def first(self, now: float) -> float | None:
        return self.next(self.begin - TICK_S)

    def previous(self, until: float) -> float | None:
        fire = self.base.previous(min(until, self.end - TICK_S))
        while fire is not None and (span := self._left_out(fire)) is not None:
            fire = self.base.previous(span[0] - TICK_S)
        return fire if fire is not None and fire >= self.begin else None

    def _left_out(self, fire: float) -> tuple[float, float] | None:
        """The span in which it lies, if it is to be left out."""
        at = bisect_right(self.without, fire, key=_begin_of) - 1
        return self.without[at] if at >= 0 and fire <= self.without[at][1] else None

    def omitted(self, after: float, until: float) -> tuple[Omitted, ...]:
        return self.base.omitted(max(after, self.begin - TICK_S), min(until, self.end - TICK_S))

    @property
    def is_backfill(self) -> bool:
        return True

    @property
    def zone(self) -> str:
        return self.base.zone

    def describe(self) -> str:
        begin, end = (f"{to_datetime(at):%Y-%m-%d %H:%M:%S}" for at in (self.begin, self.end))
        return f"backfill of: {self.base.describe()}; from {begin} to before {end} UTC"

    def __str__(self) -> str:
        begin, end = (to_datetime(at).isoformat() for at in (self.begin, self.end))
        return f"backfill({self.base}; {begin}; {end})"


def _begin_of(span: tuple[float, float]) -> float:
    return span[0]


#: Every trigger that can be stored.
AnyTrigger: TypeAlias = Once | Every | Cron | Calendar | Manual | AnyOf | AllOf | Excluding | Within


def any_of(*triggers: Trigger) -> AnyOf:
    """Fire whenever one of *triggers* does; where several name the same instant, once."""
    return AnyOf(_members(triggers, "any_of()", 1))


def all_of(*triggers: Trigger) -> AllOf:
    """Fire at the instants that all of *triggers* name.

    The search for the next one is bounded: when it gives up it raises :class:`~asyncsched.errors.TriggerError`, since that is not
    to say that there is none.
    """
    members = _members(triggers, "all_of()", 1)
    if any(isinstance(trigger, Manual) for trigger in members):
        raise TriggerError("all_of(): manual() names no time that others could share")
    return AllOf(members)


def excluding(base: Trigger, *excluded: Trigger | date) -> Excluding:
    """Fire when *base* does, but not at the fire times of the triggers in *excluded*, nor on the dates in it.

    Dates are those of the base's time zone.
    """
    (member,) = _members([base], "excluding()", 1)
    dates, triggers = set(), []
    for item in excluded:
        if isinstance(item, datetime):
            raise TriggerError(
                f"excluding(): a date or a trigger is taken out, not the instant {item!r}; use once(at=...)"
            )
        if isinstance(item, date):
            dates.add(item.toordinal())
        else:
            triggers.append(item)
    if not excluded:
        raise TriggerError("excluding() needs what to take out: triggers or dates")
    return Excluding(member, _members(triggers, "excluding()", 0), tuple(sorted(dates)))


def _members(triggers: Iterable[Trigger], name: str, at_least: int) -> tuple[AnyTrigger, ...]:
    members = tuple(triggers)
    for trigger in members:
        if not isinstance(trigger, AnyTrigger):
            raise TriggerError(f"{name} is made of triggers, such as cron('@daily'); not of {trigger!r}")
        if trigger.after_finish:
            raise TriggerError(f'{name}: every(after="finish") depends on runs, and cannot be combined')
    if not at_least <= len(members) <= _MAX_MEMBERS:
        raise TriggerError(f"{name} takes {at_least} to {_MAX_MEMBERS} triggers, not {len(members)}")
    return cast("tuple[AnyTrigger, ...]", members)


def _bound(triggers: tuple[AnyTrigger, ...], now: float, id: str) -> tuple[AnyTrigger, ...]:
    return cast("tuple[AnyTrigger, ...]", tuple(trigger.bind(now, id) for trigger in triggers))


def _unbound(triggers: tuple[AnyTrigger, ...]) -> tuple[AnyTrigger, ...]:
    return cast("tuple[AnyTrigger, ...]", tuple(trigger.unbound() for trigger in triggers))


def _found(fires: Iterable[float | None]) -> list[float]:
    return [fire for fire in fires if fire is not None]


def _common_zone(triggers: tuple[AnyTrigger, ...]) -> str:
    zones = {trigger.zone for trigger in triggers if not isinstance(trigger, Once | Every | Manual)}
    return zones.pop() if len(zones) == 1 else "UTC"


def _warnings(triggers: tuple[AnyTrigger, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(warning for trigger in triggers for warning in trigger.warnings))
