"""Plain English for what triggers name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from asyncsched.triggers.fields import Days, Fields
from asyncsched.triggers.zones import in_zone

__all__ = [
    "compact_duration",
    "fields_in_words",
    "joined",
    "limits_in_words",
    "ordinal",
    "plural",
    "time_of_day",
]

_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_UNITS_US = (
    ("d", "day", 86_400_000_000),
    ("h", "hour", 3_600_000_000),
    ("m", "minute", 60_000_000),
    ("s", "second", 1_000_000),
)
#: So many times of a day are listed one by one.
_LISTED = 4


def compact_duration(us: int) -> str:
    """As ``every`` reads it, to the microsecond: ``1h30m``."""
    parts = []
    for letter, _, size in _UNITS_US:
        n, us = divmod(us, size)
        if n:
            parts.append(f"{n}{letter}")
    if us:
        parts.append(f"{us}us")
    return "".join(parts) or "0s"


def plural(us: int) -> str:
    """A duration in words: ``1 hour and 30 minutes``."""
    parts = []
    for _, word, size in _UNITS_US[:-1]:
        n, us = divmod(us, size)
        if n:
            parts.append(_counted(str(n), word))
    if us:
        parts.append(_counted(f"{us / 1e6:.6f}".rstrip("0").rstrip("."), "second"))
    return joined(parts or ["0 seconds"])


def _counted(n: str, word: str) -> str:
    return f"{n} {word}" if n == "1" else f"{n} {word}s"


def joined(parts: Sequence[str], word: str = "and") -> str:
    """``a, b and c``."""
    return f"{', '.join(parts[:-1])} {word} {parts[-1]}" if len(parts) > 1 else parts[0]


def ordinal(n: int) -> str:
    """``1st``, ``2nd``, ``11th``."""
    return f"{n}{'th' if 10 <= n % 100 <= 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"


def time_of_day(second: int) -> str:
    """``09:00``, or ``09:00:30`` where there are seconds."""
    hours, rest = divmod(second, 3600)
    text = f"{hours:02}:{rest // 60:02}"
    return f"{text}:{rest % 60:02}" if rest % 60 else text


def limits_in_words(start: float | None, end: float | None, zone: str) -> str:
    """`` from ... until ...``, as far as there is a start and an end."""
    text = "" if start is None else f", from {_moment(start, zone)}"
    return text if end is None else f"{text}, until {_moment(end, zone)}"


def _moment(instant: float, zone: str) -> str:
    moment = in_zone(instant, zone)
    return moment.replace(tzinfo=None).isoformat(" ", "minutes" if instant % 60 == 0 else "auto")


def fields_in_words(fields: Fields) -> str:
    """When the fields of a cron expression match: ``at 09:00 on Monday to Friday``."""
    days = _days(fields)
    time, is_listed = _time(fields)
    if not days:
        return f"{time} every day" if is_listed else time
    return f"{time} {days}"


# -- times -----------------------------------------------------------------------------------------------------------------


def _time(fields: Fields) -> tuple[str, bool]:
    """The times of a day, and whether they are listed."""
    hours, minutes, seconds = fields.hours, fields.minutes, fields.seconds
    if len(hours) * len(minutes) * len(seconds) <= _LISTED:
        times = [time_of_day(h * 3600 + m * 60 + s) for h in hours for m in minutes for s in seconds]
        return f"at {joined(times)}", True
    within = _within_hours(hours, minutes)
    if seconds == (0,):
        return _cycle(minutes, 60, "minute") + within, False
    text = _cycle(seconds, 60, "second")
    if len(minutes) < 60:
        text += f" of {_of(minutes, 60, 'minute')}"
    elif text.startswith("at"):
        text += " of every minute"
    return text + within, False


def _within_hours(hours: tuple[int, ...], minutes: tuple[int, ...]) -> str:
    if len(hours) == 24:
        return "" if _step(minutes, 60) else " of every hour"
    step = _step(hours, 24)
    if step:
        return f" of every {ordinal(step)} hour"
    runs = _runs(hours)
    if _step(minutes, 60):
        return " from " + joined([f"{a:02}:00 to {b:02}:59" for a, b in runs])
    if len(hours) == 1:
        return f" of hour {hours[0]}"
    return " of the hours " + joined([f"{a} to {b}" if a != b else str(a) for a, b in runs])


def _cycle(values: tuple[int, ...], size: int, word: str) -> str:
    """``every 5 minutes``, ``at minute 7``, ``at minutes 1 to 5 and 9``."""
    step = _step(values, size)
    if step:
        return f"every {word}" if step == 1 else f"every {step} {word}s"
    return f"at {_named(values, word)}"


def _of(values: tuple[int, ...], size: int, word: str) -> str:
    step = _step(values, size)
    return f"every {ordinal(step)} {word}" if step else _named(values, word)


def _named(values: tuple[int, ...], word: str) -> str:
    if len(values) == 1:
        return f"{word} {values[0]}"
    return f"{word}s " + joined([f"{a} to {b}" if a != b else str(a) for a, b in _runs(values)])


def _step(values: tuple[int, ...], size: int) -> int | None:
    """The step of values that go evenly round; None for others."""
    step = size // len(values)
    return step if len(values) > 1 and size % step == 0 and values == tuple(range(0, size, step)) else None


def _runs(values: Iterable[int]) -> list[tuple[int, int]]:
    """Runs of three and more as (first, last); others one by one."""
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][-1] == value - 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return [pair for run in runs for pair in ([(run[0], run[-1])] if len(run) > 2 else [(v, v) for v in run])]


# -- days ------------------------------------------------------------------------------------------------------------------


def _days(fields: Fields) -> str:
    """``on day 1 of every month``; empty for every day."""
    days = fields.days
    months = sorted(fields.months)
    in_months = "" if len(months) == 12 else joined(_names(months, _MONTHS, 1))
    years = (
        ""
        if fields.years is None
        else f" in {joined([f'{a} to {b}' if a != b else str(a) for a, b in _runs(fields.years)])}"
    )
    numbers, weekdays = _numbers(days), _weekdays(days)
    if not days.both:
        every = len(days.numbers) == 31 or len(days.weekdays) == 7
        numbers, weekdays = ("", "") if every else (numbers, weekdays)
    if not numbers and not weekdays:
        return (f"on every day of {in_months}" if in_months else "on every day" if years else "") + years
    month = f" of {in_months or 'every month'}"
    if numbers and weekdays:
        link = "if it is" if days.both else "and on"
        on = f"on {numbers}{month} {link} {weekdays}"
    elif numbers:
        on = f"on {numbers}{month}"
    elif days.nth:
        on = f"on {weekdays}{month}"
    else:
        on = f"on {weekdays}" + (f" in {in_months}" if in_months else "")
    return on + years


def _numbers(days: Days) -> str:
    if len(days.numbers) == 31:
        return ""
    parts = []
    if days.numbers:
        runs = [f"{a} to {b}" if a != b else str(a) for a, b in _runs(sorted(days.numbers))]
        parts.append(f"day{'s' if len(days.numbers) > 1 else ''} {joined(runs)}")
    for kind, n in days.special:
        if kind == "last":
            parts.append("the last day" if n == 0 else f"the {ordinal(n + 1)} last day")
        elif kind == "nearest":
            parts.append(f"the weekday nearest to the {ordinal(n)}")
        else:
            parts.append("the last weekday from Monday to Friday")
    return joined(parts)


def _weekdays(days: Days) -> str:
    if len(days.weekdays) == 7:
        return ""
    # A week begins on Monday here, so that Saturday and Sunday stand together.
    names = _names(sorted((day + 6) % 7 for day in days.weekdays), (*_WEEKDAYS[1:], _WEEKDAYS[0]), 0)
    for day, n in days.nth:
        names.append(f"the {'last' if n == -1 else ordinal(n)} {_WEEKDAYS[day]}")
    return joined(names)


def _names(values: Sequence[int], names: Sequence[str], low: int) -> list[str]:
    return [names[a - low] if a == b else f"{names[a - low]} to {names[b - low]}" for a, b in _runs(values)]
