"""Instants and durations: what a user may write, and what is kept (UTC seconds and seconds, floats)."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta

from asyncsched.errors import DefinitionError

__all__ = ["LATEST", "Duration", "parse_duration", "to_datetime", "to_instant", "to_seconds"]

#: Seconds, or a timedelta.
Duration = float | timedelta

_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|w|d|h|m|s)")
#: The last second that a datetime can name, and the first.
LATEST = datetime.max.replace(microsecond=0, tzinfo=UTC).timestamp()
_EARLIEST = datetime.min.replace(tzinfo=UTC).timestamp()
#: Above this an int is no float any more.
_HUGE = 1e300
_UNIT_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def to_seconds(value: Duration, name: str, *, positive: bool = False) -> float:
    """Seconds of a duration; *name* is how the error calls it. Refuses negatives, NaN, infinities, and zero if *positive*."""
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if abs(value) < _HUGE else math.inf
    else:
        raise DefinitionError(f"{name} must be seconds or a timedelta, not {value!r}")
    if not math.isfinite(seconds) or seconds < 0 or (positive and seconds == 0):
        bound = "above zero" if positive else "zero or more"
        raise DefinitionError(f"{name} must be a finite number of seconds {bound}, not {value!r}")
    return seconds


def to_instant(value: datetime, name: str) -> float:
    """UTC seconds of an aware datetime, to the microsecond; naive ones are refused with the remedy."""
    if not isinstance(value, datetime):
        raise DefinitionError(f"{name} must be an aware datetime, not {value!r}")
    if value.tzinfo is None or value.utcoffset() is None:
        raise DefinitionError(
            f"{name} must say its time zone, and {value!r} does not: write datetime(..., tzinfo=UTC) or "
            f"datetime(..., tzinfo=ZoneInfo('Europe/Berlin'))"
        )
    return value.timestamp()


def to_datetime(instant: float) -> datetime:
    """The aware UTC datetime of UTC seconds; beyond the years 1 to 9999 the nearest that there is."""
    try:
        return datetime.fromtimestamp(instant, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(LATEST if instant > 0 else _EARLIEST, UTC)


def parse_duration(text: str, name: str) -> float:
    """Seconds of ``90s``, ``5m``, ``1h30m``, ``1.5d``: numbers with the units w d h m s ms us."""
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text or not text.isascii():
        raise DefinitionError(f"{name} must read like 90s, 5m or 1h30m (units w d h m s ms us), not {text!r}")
    return to_seconds(sum(float(number) * _UNIT_S[unit] for number, unit in parts), name, positive=True)
