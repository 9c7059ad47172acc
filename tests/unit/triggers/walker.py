"""A second opinion on cron: expressions that are made with their values, and a clock that is watched minute by minute.

Nothing here is shared with the package but the zones' rules, which zoneinfo reads.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

MINUTE, DAY = 60, 86400
EPOCH = datetime(1970, 1, 1)
FIRST = int(datetime(1970, 1, 3, tzinfo=UTC).timestamp())
LAST = int(datetime(2101, 1, 1, tzinfo=UTC).timestamp())
#: The zones that the issue of clocks is known for, and some of each continent.
ZONES = (
    "UTC", "Europe/Berlin", "Europe/Dublin", "America/New_York", "America/Sao_Paulo", "America/Havana", "America/St_Johns",
    "Asia/Beirut", "Asia/Gaza", "Asia/Kolkata", "Asia/Kathmandu", "Asia/Tehran", "Africa/Casablanca", "Africa/Monrovia",
    "Africa/Cairo", "Australia/Lord_Howe", "Pacific/Apia", "Pacific/Kwajalein", "Pacific/Chatham", "Antarctica/Troll",
)  # fmt: skip


# -- expressions -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """The text of a field, and its values."""

    text: str
    values: frozenset[int]

    @property
    def is_star(self) -> bool:
        return self.text.startswith("*")


def make_field(n: int, low: int, high: int, forms: Sequence[str]) -> Field:
    """The field of number *n*; a low number gives a simple one."""
    n, form = divmod(n, len(forms))
    n, a = divmod(n, high - low + 1)
    n, b = divmod(n, high - low + 1)
    step = 1 + n % 9
    a, b, every = low + a, low + b, range(low, high + 1)
    match forms[form]:
        case "*":
            return Field("*", frozenset(every))
        case "*/s":
            return Field(f"*/{min(step, high - low)}", frozenset(every[:: min(step, high - low)]))
        case "a":
            return Field(str(a), frozenset([a]))
        case "a,b":
            return Field(f"{a},{b}", frozenset([a, b]))
        case "a-b" | "a-b/s" if a == b:
            # Equal bounds are the whole field to croniter.
            return Field(str(a), frozenset([a]))
        case "a-b":
            a, b = sorted((a, b))
            return Field(f"{a}-{b}", frozenset(range(a, b + 1)))
        case "a-b/s":
            a, b = sorted((a, b))
            step = min(step, high - low)
            return Field(f"{a}-{b}/{step}", frozenset(range(a, b + 1, step)))
        case "a/s":
            step = min(step, high - low)
            return Field(f"{a}/{step}", frozenset(range(a, high + 1, step)))
        case "wrap":
            a, b = max(a, b), min(a, b)
            if a == b:
                return Field(str(a), frozenset([a]))
            return Field(f"{a}-{b}", frozenset([*range(a, high + 1), *range(low, b + 1)]))
        case _:
            raise AssertionError(forms[form])


@dataclass(frozen=True)
class Expression:
    """Five fields, and whether a local minute matches them; Sunday is 0."""

    minute: Field
    hour: Field
    day: Field
    month: Field
    weekday: Field

    def __str__(self) -> str:
        return " ".join(field.text for field in (self.minute, self.hour, self.day, self.month, self.weekday))

    @property
    def follows_clock(self) -> bool:
        return self.minute.is_star or self.hour.is_star

    def has_day(self, day: date) -> bool:
        by_number = day.day in self.day.values
        by_weekday = day.isoweekday() % 7 in self.weekday.values
        both = self.day.is_star or self.weekday.is_star
        return day.month in self.month.values and (
            by_number and by_weekday if both else by_number or by_weekday
        )

    def matches(self, local: datetime) -> bool:
        return (
            local.minute in self.minute.values
            and local.hour in self.hour.values
            and self.has_day(local.date())
        )


# -- the clock -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watched:
    """Local minutes as a clock shows them: (UTC seconds, wall time, whether and at which pass), and its jumps ahead."""

    shown: tuple[tuple[int, datetime, str], ...]
    #: The first second after the gap, and the wall times between which nothing was shown.
    gaps: tuple[tuple[int, datetime, datetime], ...]


def watch(zone: str, begin: int, end: int) -> Watched:
    """Watch the clock of a zone in [begin, end) UTC seconds: at each second 0 of it."""
    info = ZoneInfo(zone)
    shown, gaps = [], []
    at = begin
    while at < end:
        local = datetime.fromtimestamp(at, info)
        if local.second == 0:
            shown.append((at, local.replace(tzinfo=None, fold=0), _pass(local)))
        later = min(at + MINUTE - local.second, end)
        if later < end and _offset(info, later) != local.utcoffset():
            change = next(
                second for second in range(at + 1, later + 1) if _offset(info, second) != local.utcoffset()
            )
            before, after = _wall(info, change - 1) + timedelta(seconds=1), _wall(info, change)
            if after > before:
                gaps.append((change, before, after))
            later = change
        at = later
    return Watched(tuple(shown), tuple(gaps))


def _wall(zone: ZoneInfo, at: int) -> datetime:
    return datetime.fromtimestamp(at, zone).replace(tzinfo=None, fold=0)


def _offset(zone: ZoneInfo, at: int) -> timedelta | None:
    return datetime.fromtimestamp(at, zone).utcoffset()


def _pass(local: datetime) -> str:
    """Whether this time is shown once, or for the first or second time."""
    if local.fold:
        return "second"
    return "first" if local.replace(fold=1).utcoffset() != local.utcoffset() else "once"


def fires(expression: Expression, watched: Watched, gap: str, fold: str) -> list[int]:
    """The fire times of an expression while the clock was watched."""
    if expression.follows_clock:
        return [at for at, local, _ in watched.shown if expression.matches(local)]
    passes = {"first": ("once", "first"), "second": ("once", "second"), "both": ("once", "first", "second")}[
        fold
    ]
    found = {at for at, local, which in watched.shown if which in passes and expression.matches(local)}
    for change, before, after in watched.gaps:
        for skipped in _minutes(before, after):
            if gap != "skip" and expression.matches(skipped):
                found.add(change if gap == "run" else change + round((skipped - before).total_seconds()))
    return sorted(found)


def _minutes(before: datetime, after: datetime) -> Iterator[datetime]:
    local = before if before.second == 0 else before.replace(second=0) + timedelta(minutes=1)
    while local < after:
        yield local
        local += timedelta(minutes=1)


def transitions(zone: str, step_s: int = 7 * 3600) -> list[int]:
    """The first seconds at which the offset of a zone has changed, looked for in steps."""
    return list(_transitions(zone, step_s))


@lru_cache(maxsize=1024)
def _transitions(zone: str, step_s: int) -> tuple[int, ...]:
    info, found = ZoneInfo(zone), []
    before = _offset(info, FIRST)
    for at in range(FIRST + step_s, LAST, step_s):
        after = _offset(info, at)
        if after != before:
            seconds = range(at - step_s + 1, at + 1)
            found.append(seconds[bisect_left(seconds, True, key=_changed(info, before))])
        before = after
    return tuple(found)


def _changed(info: ZoneInfo, before: timedelta | None) -> Callable[[int], bool]:
    return lambda at: _offset(info, at) != before
