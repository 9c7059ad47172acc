"""The fields of a cron expression: what they accept, and what each stands for.

croniter reads lists, ranges, steps and names, and refuses what is out of range; what it lacks (``?``, ``L-n``, ``nW``, ``LW``,
``d#n``, ``dL``, ``H`` and steps that begin at a number) is taken out before, and put back as days of a month.
"""

from __future__ import annotations

import hashlib
import re
from calendar import monthrange
from collections.abc import Callable
from datetime import date
from functools import lru_cache
from typing import NamedTuple

import croniter as _croniter

from asyncsched.errors import CronError

__all__ = ["MAX_LENGTH", "Days", "Fields", "parse_fields", "uses_hash"]

MAX_LENGTH = 1024
#: Years that a fire time may lie in.
FIRST_YEAR, LAST_YEAR = 1970, 2199

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


class _Kind(NamedTuple):
    """One field: its name, its range, its names, and the place that croniter gives it."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        words = f", {self.names[0]}-{self.names[-1]}" if self.names else ""
        return f"{self.low}-{self.high}{words}"


_SECOND = _Kind("second", 0, 59)
_MINUTE = _Kind("minute", 0, 59)
_HOUR = _Kind("hour", 0, 23)
_DAY = _Kind("day of month", 1, 31)
_MONTH = _Kind("month", 1, 12, _MONTHS)
_WEEKDAY = _Kind("day of week", 0, 7, _WEEKDAYS)
_YEAR = _Kind("year", FIRST_YEAR, LAST_YEAR)
_KINDS = {
    5: (_MINUTE, _HOUR, _DAY, _MONTH, _WEEKDAY),
    6: (_SECOND, _MINUTE, _HOUR, _DAY, _MONTH, _WEEKDAY),
    7: (_SECOND, _MINUTE, _HOUR, _DAY, _MONTH, _WEEKDAY, _YEAR),
}

_PLAIN = re.compile(r"(\*|[0-9a-z]+)(?:-([0-9a-z]+))?(?:/([0-9]+))?")
_HASHED = re.compile(r"h(?:\(([0-9]+)-([0-9]+)\))?(?:/([0-9]+))?")


class Days(NamedTuple):
    """Which days of a month; the two day fields joined."""

    #: Days of the month, and those that depend on it: ("last", n), ("nearest", n) or ("last weekday", 0).
    numbers: frozenset[int]
    special: tuple[tuple[str, int], ...]
    #: Days of the week (0 is Sunday), and (day, n) for the nth of a month, n = -1 for the last.
    weekdays: frozenset[int]
    nth: tuple[tuple[int, int], ...]
    #: Both must match: one of the fields begins with ``*`` or ``?``, or the user says so.
    both: bool

    def of(self, year: int, month: int) -> tuple[int, ...]:
        """The days of this month, ascending."""
        return _days_of(self, year, month)


class Fields(NamedTuple):
    """A parsed expression: ascending values for each field."""

    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: Days
    months: frozenset[int]
    #: None: every year.
    years: tuple[int, ...] | None
    #: The minute or the hour begins with ``*``: the job follows the clock through gaps and folds.
    follows_clock: bool


def uses_hash(expression: str) -> bool:
    """Whether an ``H`` stands in the expression, which then needs a key."""
    return any(part.startswith("h") and part != "hourly" for part in re.split(r"[\s,]+", expression.lower()))


def parse_fields(expression: str, key: str, both_days: bool) -> Fields:
    """Read an expression of 5, 6 or 7 fields; raises CronError that names field, position, value and allowed range."""
    if len(expression) > MAX_LENGTH:
        raise CronError(f"a cron expression has at most {MAX_LENGTH} characters; this one has {len(expression)}")
    if not expression.isascii():
        raise CronError(f"a cron expression is written in ASCII, and {expression!r} is not")
    texts = expression.lower().split()
    kinds = _KINDS.get(len(texts))
    if kinds is None:
        raise CronError(
            f"cron expression {expression!r} has {len(texts)} fields; 5 are minute, hour, day of month, month, day of week; "
            f"6 have the second in front, 7 the year behind as well"
        )
    read = {kind: _Reader(kind, text, place, key) for place, (kind, text) in enumerate(zip(kinds, texts, strict=True), 1)}
    day, weekday = read[_DAY], read[_WEEKDAY]
    days = Days(
        frozenset(day.values),
        tuple(day.special),
        frozenset(value % 7 for value in weekday.values),
        tuple(weekday.nth),
        both_days or day.is_star or weekday.is_star,
    )
    years = read[_YEAR] if _YEAR in read else None
    fields = Fields(
        tuple(sorted(read[_SECOND].values)) if _SECOND in read else (0,),
        tuple(sorted(read[_MINUTE].values)),
        tuple(sorted(read[_HOUR].values)),
        days,
        frozenset(read[_MONTH].values),
        None if years is None or years.text == "*" else tuple(sorted(years.values)),
        read[_MINUTE].is_star or read[_HOUR].is_star,
    )
    _refuse_never(fields, expression, day)
    return fields


class _Reader:
    """One field of one expression."""

    def __init__(self, kind: _Kind, text: str, place: int, key: str) -> None:
        self.kind, self.text, self.place, self.key = kind, text, place, key
        self.values: set[int] = set()
        self.special: list[tuple[str, int]] = []
        self.nth: list[tuple[int, int]] = []
        self.is_star = text[0] in "*?"
        for part in text.split(","):
            self._read(part)

    def _read(self, part: str) -> None:
        if not part:
            raise self.error(part, "has an empty place in its list")
        if part == "?":
            if self.kind not in (_DAY, _WEEKDAY):
                raise self.error(part, "may stand in the two day fields only")
            part = "*"
        if self._read_special(part):
            return
        hashed = _HASHED.fullmatch(part)
        if hashed is not None:
            self._read_hashed(part, *hashed.groups())
            return
        plain = _PLAIN.fullmatch(part)
        if plain is None:
            raise self.error(part, "is not understood")
        self._read_plain(part, *plain.groups())

    def _read_plain(self, part: str, low: str, high: str | None, step: str | None) -> None:
        kind = self.kind
        if step is not None and not 1 <= int(step) <= kind.high - kind.low + 1:
            raise self.error(part, f"has a step that is not between 1 and {kind.high - kind.low + 1}")
        if low == "*":
            if high is not None:
                raise self.error(part, "has a range that begins with *")
            first, last = kind.low, kind.high if kind is not _WEEKDAY else 6
        else:
            first = self._number(low, part)
            last = first if high is None else self._number(high, part)
            if high is None and step is not None:
                last = kind.high if kind is not _WEEKDAY else 6
        for a, b in self._unwrapped(first, last, part):
            self.values |= self._expanded(a, b, step, part)

    def _unwrapped(self, first: int, last: int, part: str) -> list[tuple[int, int]]:
        """A range that goes over the end (FRI-MON, 22-2) as the one that it is, counted on past the end."""
        kind = self.kind
        if kind is _WEEKDAY and first == 7 and last != 7:
            first = 0
        if first <= last:
            return [(first, last)]
        if kind is _YEAR:
            raise self.error(part, "has a range that ends before it begins")
        span = 7 if kind is _WEEKDAY else kind.high - kind.low + 1
        return [(first, last + span)]

    def _expanded(self, first: int, last: int, step: str | None, part: str) -> set[int]:
        """Through croniter where the range is an ordinary one."""
        kind, each = self.kind, int(step or 1)
        if last > kind.high:
            span = 7 if kind is _WEEKDAY else kind.high - kind.low + 1
            return {(value - kind.low) % span + kind.low for value in range(first, last + 1, each)}
        if kind is _YEAR or first == last or (each == 1 and (first, last) == (kind.low, kind.high)):
            return set(range(first, last + 1, each))
        text = f"{first}-{last}/{each}" if last > first else str(first)
        place = _CRONITER_PLACES[kind]
        expression = " ".join(text if i == place else "*" for i in range(6))
        try:
            found = _croniter.croniter.expand(expression)[0][place]
        except _croniter.CroniterError as error:
            raise self.error(part, f"is refused: {error}") from error
        top = 6 if kind is _WEEKDAY else kind.high
        return set(range(kind.low, top + 1)) if found == ["*"] else {int(value) for value in found}

    def _number(self, text: str, part: str) -> int:
        if text in self.kind.names:
            return self.kind.names.index(text) + self.kind.low
        if not text.isdigit() or not self.kind.low <= int(text) <= self.kind.high:
            raise self.error(part, f"has {text!r}, which is out of range")
        return int(text)

    def _read_special(self, part: str) -> bool:
        if self.kind is _DAY:
            return self._read_special_day(part)
        return self.kind is _WEEKDAY and self._read_special_weekday(part)

    def _read_special_day(self, part: str) -> bool:
        if part == "lw":
            self.special.append(("last weekday", 0))
        elif part == "l":
            self.special.append(("last", 0))
        elif part.startswith("l-") and part[2:].isdigit() and 1 <= int(part[2:]) <= 30:
            self.special.append(("last", int(part[2:])))
        elif part.endswith("w") and part[:-1].isdigit():
            self.special.append(("nearest", self._number(part[:-1], part)))
        else:
            return False
        return True

    def _read_special_weekday(self, part: str) -> bool:
        day, mark, n = part.partition("#")
        if mark:
            if not (n.isdigit() and 1 <= int(n) <= 5):
                raise self.error(part, "needs a number from 1 to 5 behind the #")
            self.nth.append((self._number(day, part) % 7, int(n)))
        elif part == "l":
            self.values.add(6)
        elif part.endswith("l") and part[:-1]:
            self.nth.append((self._number(part[:-1], part) % 7, -1))
        else:
            return False
        return True

    def _read_hashed(self, part: str, low: str | None, high: str | None, step: str | None) -> None:
        """A value that is chosen by the key: spread over the jobs, the same for each job for ever."""
        kind = self.kind
        # Days that every month has.
        top = 28 if kind is _DAY else 6 if kind is _WEEKDAY else kind.high
        first = kind.low if low is None else self._number(low, part)
        last = top if high is None else self._number(high, part)
        if last < first:
            raise self.error(part, "has a range that ends before it begins")
        number = int.from_bytes(hashlib.blake2b(f"{kind.name}:{self.key}".encode(), digest_size=8).digest(), "big")
        if step is None:
            self.values.add(first + number % (last - first + 1))
            return
        if not 1 <= int(step) <= last - first + 1:
            raise self.error(part, f"has a step that is not between 1 and {last - first + 1}")
        self.values |= set(range(first + number % int(step), last + 1, int(step)))

    def error(self, part: str, problem: str) -> CronError:
        return CronError(
            f"cron field {self.place} ({self.kind.name}): {part or self.text!r} {problem}; allowed: {self.kind.allowed}",
            field=self.kind.name,
            position=self.place,
            value=part or self.text,
            allowed=self.kind.allowed,
        )


_CRONITER_PLACES = {_MINUTE: 0, _HOUR: 1, _DAY: 2, _MONTH: 3, _WEEKDAY: 4, _SECOND: 5}


def _refuse_never(fields: Fields, expression: str, day: _Reader) -> None:
    """Raise CronError for days that do not exist, such as 30 February. The calendar repeats after 400 years."""
    years = fields.years if fields.years is not None else range(2000, 2400)
    for year in years:
        for month in sorted(fields.months):
            if fields.days.of(year, month):
                return
    raise day.error(day.text, f"never comes: {expression!r} names no day that any of its months has")


@lru_cache(maxsize=8192)
def _days_of(days: Days, year: int, month: int) -> tuple[int, ...]:
    first_weekday, last = monthrange(year, month)
    sunday_based = (first_weekday + 1) % 7
    by_number = {day for day in days.numbers if day <= last}
    for kind, n in days.special:
        found = _SPECIAL[kind](year, month, last, n)
        if found is not None:
            by_number.add(found)
    by_weekday = {day for day in range(1, last + 1) if (sunday_based + day - 1) % 7 in days.weekdays}
    for weekday, n in days.nth:
        first = 1 + (weekday - sunday_based) % 7
        day = first + 7 * (n - 1) if n > 0 else first + (last - first) // 7 * 7
        if day <= last:
            by_weekday.add(day)
    return tuple(sorted(by_number & by_weekday if days.both else by_number | by_weekday))


def _last(year: int, month: int, last: int, n: int) -> int | None:
    return last - n if n < last else None


def _nearest_weekday(year: int, month: int, last: int, n: int) -> int | None:
    """The weekday (Monday to Friday) nearest to a day, in the same month; None where the month lacks the day."""
    if n > last:
        return None
    weekday = date(year, month, n).weekday()
    if weekday == 5:
        return n - 1 if n > 1 else n + 2
    if weekday == 6:
        return n + 1 if n < last else n - 2
    return n


def _last_weekday(year: int, month: int, last: int, n: int) -> int | None:
    return _nearest_weekday(year, month, last, last)


_SPECIAL: dict[str, Callable[[int, int, int, int], int | None]] = {
    "last": _last,
    "nearest": _nearest_weekday,
    "last weekday": _last_weekday,
}
