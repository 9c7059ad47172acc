"""Cron expressions: what a user writes, and the walk that is compiled from it."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from asyncsched.errors import CronError, TriggerError
from asyncsched.triggers.advice import cron_warnings
from asyncsched.triggers.base import TICK_S, Omitted, Trigger, limits
from asyncsched.triggers.fields import parse_fields, uses_hash
from asyncsched.triggers.interval import Every, every
from asyncsched.triggers.options import read_instant, read_text, split_options, with_options
from asyncsched.triggers.walk import FoldPolicy, GapPolicy, Walk
from asyncsched.triggers.words import fields_in_words, limits_in_words
from asyncsched.triggers.zones import zone_of, zone_table

__all__ = ["Cron", "DayPolicy", "cron"]

DayPolicy = Literal["or", "and"]

_MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_EVERY = "@every"
_OPTIONS = ("tz", "cron_tz", "dst_gap", "dst_fold", "day", "hash_key", "start", "end")


class Cron(Trigger, frozen=True, array_like=True, gc=False, tag="cron"):
    """The fire times of a cron expression in a time zone."""

    expression: str
    tz: str = "UTC"
    dst_gap: GapPolicy = "run"
    dst_fold: FoldPolicy = "first"
    day: DayPolicy = "or"
    hash_key: str | None = None
    start: float | None = None
    end: float | None = None
    #: The id of the job; it takes the place of a hash key that was not given.
    bound: str | None = None

    def bind(self, now: float, id: str = "") -> Cron:
        if self.bound is not None or self.hash_key is not None or not _uses_hash(self.expression):
            return self
        return replace(self, bound=id)

    def unbound(self) -> Cron:
        return self if self.bound is None else replace(self, bound=None)

    def next(self, after: float) -> float | None:
        if self.start is not None and after < self.start:
            after = self.start - TICK_S
        fire = self._walk.next(after)
        return fire if self.end is None or fire is None or fire <= self.end else None

    def previous(self, until: float) -> float | None:
        if self.end is not None and until > self.end:
            until = self.end
        fire = self._walk.previous(until)
        return fire if self.start is None or fire is None or fire >= self.start else None

    def omitted(self, after: float, until: float) -> tuple[Omitted, ...]:
        begin = after if self.start is None else max(after, self.start - TICK_S)
        end = until if self.end is None else min(until, self.end)
        return tuple(Omitted("dst_gap", at, at, count) for at, count in self._walk.skipped(begin, end))

    @property
    def zone(self) -> str:
        return self.tz

    @property
    def _walk(self) -> Walk:
        key = self.bound or "" if self.hash_key is None else self.hash_key
        return _compiled(self.expression, self.tz, self.dst_gap, self.dst_fold, self.day, key)

    def describe(self) -> str:
        zone = "" if self.tz == "UTC" else ", local time" if self.tz == "local" else f", {self.tz} time"
        return fields_in_words(self._walk.fields) + zone + limits_in_words(self.start, self.end, self.tz)

    @property
    def warnings(self) -> tuple[str, ...]:
        found = cron_warnings(self._walk, self.tz)
        if _uses_hash(self.expression) and self.hash_key is None and self.bound is None:
            return (
                *found,
                "what H stands for is chosen by the job's id when it is added, and shown here for an empty one",
            )
        return found

    def __str__(self) -> str:
        return with_options(
            {
                "cron_tz": None if self.tz == "UTC" else self.tz,
                "dst_gap": None if self.dst_gap == "run" else self.dst_gap,
                "dst_fold": None if self.dst_fold == "first" else self.dst_fold,
                "day": None if self.day == "or" else self.day,
                "hash_key": self.hash_key,
                "start": self.start,
                "end": self.end,
            },
            self.expression,
        )


def cron(
    expression: str,
    *,
    tz: str | ZoneInfo = "UTC",
    dst_gap: GapPolicy = "run",
    dst_fold: FoldPolicy = "first",
    day: DayPolicy = "or",
    hash_key: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
) -> Cron | Every:
    """Fire at the times of a cron expression: 5 fields, 6 with seconds first, 7 with a year last, or a macro such as ``@daily``.

    *tz* is the zone whose clock it follows ("local": the host's); ``TZ=`` or ``CRON_TZ=`` in front of the expression says the
    same. *start* and *end* bound the fire times. Day of month and day of week are joined by OR, as in Vixie cron, unless one of
    them begins with ``*`` or ``?``, or *day* is "and". ``H`` stands for a value that is chosen by *hash_key*, by default the
    job's id. ``@every 90s`` gives an :class:`Every`.

    A job with ``*`` or ``*/n`` in its minute or hour follows the clock when that is changed: it does not run at times that are
    skipped, and runs at both passes of times that are repeated. For the others, jobs of a fixed time, *dst_gap* says what
    becomes of a time that is skipped: "run" at the first instant after the gap, "skip" it, or "shift" it by as much as the
    clock; *dst_fold* which pass of a repeated time counts: "first", "second" or "both". This is what ISC and Debian cron do.

    A bad expression raises :class:`~asyncsched.errors.CronError` with field, position, value and what is allowed.
    """
    if not isinstance(expression, str):
        raise CronError(f"a cron expression is a string, not {expression!r}", field="expression", position=1)
    options, text = _options(expression)
    text = " ".join(text.split())
    if text.lower().startswith(f"{_EVERY} "):
        return every(text[len(_EVERY) :].strip(), start=start, end=end)
    zone = _zone(tz, options)
    begin, stop = limits(
        start or read_instant(options.get("start"), "start"),
        end or read_instant(options.get("end"), "end"),
        "cron()",
    )
    key = hash_key if hash_key is not None else read_text(options.get("hash_key"))
    if key is not None and not isinstance(key, str):
        raise CronError(f"hash_key is a string, not {key!r}")
    trigger = Cron(
        text.lower() if text.startswith("@") else text,
        zone,
        _choice(options, "dst_gap", dst_gap, GapPolicy),
        _choice(options, "dst_fold", dst_fold, FoldPolicy),
        _choice(options, "day", day, DayPolicy),
        key,
        begin,
        stop,
    )
    trigger._walk  # noqa: B018 - reads the expression, and refuses a bad one
    return trigger


def _options(expression: str) -> tuple[dict[str, str], str]:
    try:
        return split_options(expression, _OPTIONS)
    except TriggerError as error:
        word = expression.split(maxsplit=1)[0]
        raise CronError(
            str(error), field="option", position=1, value=word, allowed=", ".join(_OPTIONS)
        ) from None


def _choice(options: dict[str, str], name: str, value: str, kind: object) -> Any:
    wanted, allowed = options.get(name, value), get_args(kind)
    if wanted not in allowed:
        raise CronError(
            f"{name} must be one of {', '.join(allowed)}, not {wanted!r}",
            field=name,
            position=1,
            value=str(wanted),
            allowed=", ".join(allowed),
        )
    return wanted


def _zone(tz: str | ZoneInfo, options: dict[str, str]) -> str:
    """The name of the zone, of the argument or in front of the expression."""
    name = tz.key if isinstance(tz, ZoneInfo) else tz
    for option in ("tz", "cron_tz"):
        if option in options:
            if name not in ("UTC", options[option]):
                raise CronError(
                    f"tz={name!r} and {option.upper()}={options[option]} are two time zones; leave one out"
                )
            name = options[option]
    try:
        zone_of(name)
    except (TriggerError, TypeError) as error:
        raise CronError(
            f"unknown time zone {name!r}; use an IANA name such as Europe/Berlin, UTC or local",
            field="time zone",
            position=1,
            value=str(name),
            allowed="an IANA name such as Europe/Berlin, UTC or local",
        ) from error
    return name


@lru_cache(maxsize=1024)
def _uses_hash(expression: str) -> bool:
    return uses_hash(expression)


@lru_cache(maxsize=4096)
def _compiled(expression: str, tz: str, gap: GapPolicy, fold: FoldPolicy, day: DayPolicy, key: str) -> Walk:
    return Walk(parse_fields(_fields_of(expression), key, day == "and"), zone_table(tz), gap, fold)


def _fields_of(expression: str) -> str:
    if not expression.startswith("@"):
        return expression
    if expression in _MACROS:
        return _MACROS[expression]
    allowed = ", ".join([*_MACROS, f"{_EVERY} 5m"])
    raise CronError(
        f"unknown cron macro {expression!r}; known: {allowed}",
        field="macro",
        position=1,
        value=expression,
        allowed=allowed,
    )
