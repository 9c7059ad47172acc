"""The fields of a cron expression: what they accept, and what each stands for.

Names, ranges that go over the end, ``n/s``, ``H``, ``?`` and the days that depend on a month (``L``, ``nW``, ``d#n``, ``dL``)
are taken out here, where an error can name its place; croniter expands what is left, the ordinary ranges and steps.
"""

from __future__ import annotations

import hashlib
import re
from calendar import monthrange
from collections.abc import Callable, Iterable
from typing import NamedTuple

import croniter as _croniter

from asyncsched.errors import CronError

__all__ = ["FIRST_YEAR", "LAST_YEAR", "MAX_LENGTH", "Days", "Fields", "parse_fields", "uses_hash"]

MAX_LENGTH = 1024
#: Years that a fire time may lie in.
FIRST_YEAR, LAST_YEAR = 1970, 2199
#: From there on each day of a year falls on each weekday that it ever does.
_COMMON_YEAR = 2000
_SATURDAY = 6

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

    def of(self, first: int, last: int) -> tuple[int, ...]:
        """The days, ascending, of a month that begins with the weekday *first* (0 is Sunday) and has *last* days."""
        by_number = {day for day in self.numbers if day <= last}
        for kind, n in self.special:
            found = _SPECIAL[kind](first, last, n)
            if found is not None:
                by_number.add(found)
        by_weekday = {day for day in range(1, last + 1) if (first + day - 1) % 7 in self.weekdays}
        for weekday, n in self.nth:
            earliest = 1 + (weekday - first) % 7
            day = earliest + 7 * (n - 1) if n > 0 else earliest + (last - earliest) // 7 * 7
            if day <= last:
                by_weekday.add(day)
        return tuple(sorted(by_number & by_weekday if self.both else by_number | by_weekday))


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
    return any(part.startswith("h") for part in re.split(r"[\s,]+", expression.lower()))


def parse_fields(expression: str, key: str, both_days: bool) -> Fields:
    """Read an expression of 5, 6 or 7 fields; raises CronError that names field, position, value and allowed range."""
    texts = _split(expression)
    kinds = _KINDS[len(texts)]
    readers = [
        _Reader(kind, text, place, key, expression)
        for place, (kind, text) in enumerate(zip(kinds, texts, strict=True), 1)
    ]
    _expand(readers)
    read = {reader.kind.name: reader for reader in readers}
    day, weekday, second, year = (
        read["day of month"],
        read["day of week"],
        read.get("second"),
        read.get("year"),
    )
    days = Days(
        frozenset(day.values),
        tuple(day.special),
        frozenset(value % 7 for value in weekday.values),
        tuple(weekday.nth),
        both_days or day.is_star or weekday.is_star,
    )
    fields = Fields(
        (0,) if second is None else tuple(sorted(second.values)),
        tuple(sorted(read["minute"].values)),
        tuple(sorted(read["hour"].values)),
        days,
        frozenset(read["month"].values),
        None if year is None or year.text == "*" else tuple(sorted(year.values)),
        read["minute"].is_star or read["hour"].is_star,
    )
    _refuse_never(fields, day)
    return fields


def _split(expression: str) -> list[str]:
    """The texts of the fields, in small letters; as many as are understood."""
    texts = expression.lower().split()
    counts = "5 fields: minute, hour, day of month, month, day of week; 6 with the second in front, 7 with the year behind"
    if len(expression) > MAX_LENGTH:
        raise CronError(
            f"a cron expression has at most {MAX_LENGTH} characters; this one has {len(expression)}",
            field="expression",
            position=1,
            value=expression[:40],
            allowed=f"at most {MAX_LENGTH} characters",
        )
    if len(texts) not in _KINDS:
        surplus = max(_KINDS)
        raise CronError(
            f"cron expression {expression!r} has {len(texts)} fields; allowed: {counts}",
            field="expression",
            position=min(len(texts), surplus) + 1,
            value=texts[surplus] if len(texts) > surplus else "",
            allowed=counts,
        )
    return texts


class _Reader:
    """One field of one expression."""

    def __init__(self, kind: _Kind, text: str, place: int, key: str, expression: str) -> None:
        self.kind, self.text, self.place, self.key, self.expression = kind, text, place, key, expression
        self.values: set[int] = set()
        #: First, last and step of the ranges that are not expanded yet.
        self.ranges: list[tuple[int, int, int]] = []
        self.special: list[tuple[str, int]] = []
        self.nth: list[tuple[int, int]] = []
        self.is_star = text[0] in "*?"
        if not text.isascii():
            raise self.error(text, "is not written in ASCII")
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
        if hashed is not None and self.kind is not _YEAR:
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
        self._add(first, last, int(step or 1), part)

    def _add(self, first: int, last: int, step: int, part: str) -> None:
        """A range, counted on past the end where it goes over it (FRI-MON, 22-2)."""
        kind = self.kind
        if kind is _WEEKDAY and first == 7 and last != 7:
            first = 0
        if first <= last:
            self.ranges.append((first, last, step))
            return
        if kind is _YEAR:
            raise self.error(part, "has a range that ends before it begins")
        span = 7 if kind is _WEEKDAY else kind.high - kind.low + 1
        self.values |= {(value - kind.low) % span + kind.low for value in range(first, last + span + 1, step)}

    def _number(self, text: str, part: str) -> int:
        if text in self.kind.names:
            return self.kind.names.index(text) + self.kind.low
        if not text.isdigit() or not self.kind.low <= int(text) <= self.kind.high:
            raise self.error(
                part, "is out of range" if text == part else f"has {text!r}, which is out of range"
            )
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
        number = int.from_bytes(
            hashlib.blake2b(f"{kind.name}:{self.key}".encode(), digest_size=8).digest(), "big"
        )
        if step is None:
            self.values.add(first + number % (last - first + 1))
            return
        if not 1 <= int(step) <= last - first + 1:
            raise self.error(part, f"has a step that is not between 1 and {last - first + 1}")
        self.values |= set(range(first + number % int(step), last + 1, int(step)))

    def is_whole(self, first: int, last: int, step: int) -> bool:
        """Whether a range is the whole field."""
        return step == 1 and last - first >= (6 if self.kind is _WEEKDAY else self.kind.high - self.kind.low)

    def error(self, part: str, problem: str) -> CronError:
        return CronError(
            f"bad cron expression {self.expression!r}: field {self.place} ({self.kind.name}): "
            f"{part or self.text!r} {problem}; allowed: {self.kind.allowed}",
            field=self.kind.name,
            position=self.place,
            value=part or self.text,
            allowed=self.kind.allowed,
        )


#: Where croniter wants a field, by its name. It knows the years up to 2099 only.
_PLACES = {"minute": 0, "hour": 1, "day of month": 2, "month": 3, "day of week": 4, "second": 5}
#: It takes about 7 us for each value, so the ranges that hold many are counted out here.
_CRONITER_VALUES = 8


def _expand(readers: Iterable[_Reader]) -> None:
    """Put the values of all ranges into *readers*: in one call of croniter for those that it has to look at."""
    texts = ["*"] * 6
    asked: list[_Reader] = []
    room = _CRONITER_VALUES
    for reader in readers:
        size = sum((last - first) // step + 1 for first, last, step in reader.ranges)
        is_plain = all(
            first == last or reader.is_whole(first, last, step) for first, last, step in reader.ranges
        )
        if is_plain or size > room or reader.kind is _YEAR:
            for first, last, step in reader.ranges:
                reader.values.update(range(first, last + 1, step))
            continue
        room -= size
        asked.append(reader)
        # Equal bounds are the whole field to croniter, as in Jan-Jan.
        parts = [
            str(first) if first == last else f"{first}-{last}/{step}" for first, last, step in reader.ranges
        ]
        texts[_PLACES[reader.kind.name]] = ",".join(parts)
    if not asked:
        return
    # The second comes last; without it a field less is read.
    found = _croniter.croniter.expand(" ".join(texts if texts[-1] != "*" else texts[:-1]))[0]
    for reader in asked:
        values = found[_PLACES[reader.kind.name]]
        whole = values == ["*"]
        reader.values.update(range(reader.kind.low, reader.kind.high + 1) if whole else map(int, values))


def _refuse_never(fields: Fields, day: _Reader) -> None:
    """Raise CronError for days that do not exist, such as 30 February."""
    years = fields.years or range(_COMMON_YEAR, LAST_YEAR + 1)
    for year in years:
        for month in fields.months:
            weekday, length = monthrange(year, month)
            if fields.days.of((weekday + 1) % 7, length):
                return
    raise day.error(day.text, "never comes: no month that is named has such a day")


def _last(first: int, last: int, n: int) -> int | None:
    return last - n if n < last else None


def _nearest_weekday(first: int, last: int, n: int) -> int | None:
    """The weekday (Monday to Friday) nearest to a day, in the same month; None where the month lacks the day."""
    if n > last:
        return None
    weekday = (first + n - 1) % 7
    if weekday == _SATURDAY:
        return n - 1 if n > 1 else n + 2
    if weekday == 0:
        return n + 1 if n < last else n - 2
    return n


def _last_weekday(first: int, last: int, n: int) -> int | None:
    return _nearest_weekday(first, last, last)


_SPECIAL: dict[str, Callable[[int, int, int], int | None]] = {
    "last": _last,
    "nearest": _nearest_weekday,
    "last weekday": _last_weekday,
}
