"""Rates as users write them (``100/minute``), and the arithmetic of a bucket of tokens. Pure.

A bucket is one instant: when it will be full again (the theoretical arrival time of the generic cell rate algorithm, ITU-T
I.371). One that lies in the past is a full bucket, so a bucket that nobody has used for a while is the same as none.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import msgspec

from asyncsched.errors import DefinitionError

__all__ = ["EMPTY", "Line", "Rate", "check_limit", "parse_rate"]

#: A bucket that nobody has drawn from.
EMPTY = 0.0

T = TypeVar("T")

#: How long those sleep who are to be woken, and how far apart they look.
_SLEEP_S, _APART_S = 3600.0, 1.0
_MOST_HEADS = 16
_MOST_KNOWN = 20
#: Sums of instants are inexact by less, and nobody is sent away for that.
_SLACK_S = 1e-4
_MOST_LINES = 10_000
_UNITS = {
    "s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400,
}  # fmt: skip
_FORM = re.compile(r"\s*(\d{1,9})\s*/\s*(\d{0,6})\s*([a-z]+)\s*", re.ASCII)
_MOST = 1_000_000
#: The places of a limit are named one by one.
_MOST_PLACES = 1000


class Rate(msgspec.Struct, frozen=True, gc=False):
    """So many starts in so many seconds: as many at once where none came before, and then one each ``interval_s``."""

    count: int
    period_s: float

    @property
    def interval_s(self) -> float:
        return self.period_s / self.count

    def draw(self, bucket: float, earliest: float) -> tuple[float, float]:
        """The first instant, *earliest* or later, that has a token, and the bucket after it was drawn.

        Tokens are drawn one after the other: what was given an instant keeps it, and the next one comes an interval later.
        """
        # All but one of the tokens come back in this time.
        room_s = self.period_s - self.interval_s
        at = bucket - room_s
        if at < earliest + _SLACK_S:
            at = earliest
        return at, max(bucket, at) + self.interval_s


class Line:
    """When those look by themselves who wait in the lines of limits, as one instance sees them.

    The head of a line looks about as often as a lease lasts. The others are woken; should that fail, they look too, an hour after
    they came at the earliest, and no more than one of them a second.
    """

    def __init__(self, look_s: float, random: Callable[[], float]) -> None:
        self._look_s = look_s
        self._random = random
        #: By line: when the ones at its head look next, by their ids, and when the last of the others does.
        self._heads: dict[str, dict[str, float]] = {}
        self._last: dict[str, float] = {}
        #: By line: the ids of the last of them.
        self._sleepers: dict[str, dict[str, None]] = {}

    def place(self, line: str, id: str, now: float, waits: int, *, is_woken: bool) -> tuple[float, int]:
        """When the one of this *id*, who finds no place, looks by itself, and how it waits: 1: to be woken, 2: at the head.

        *waits*: how it waited before (0: it did not). *is_woken*: it did not come by itself. Who was woken was the first in the
        line, and stays it, however many are there: no more are woken at once than places become free, and one.
        """
        heads = {other: at for other, at in self._heads.get(line, {}).items() if at > now and other != id}
        if (waits and is_woken) or not heads or (waits == 2 and len(heads) < _MOST_HEADS):
            at = now + self._look_s * (1 + self._random() / 4)
            self._bound(self._heads)[line] = dict([*heads.items(), (id, at)][-_MOST_HEADS:])
            self._sleepers.get(line, {}).pop(id, None)
            return at, 2
        at = max(now + _SLEEP_S, self._last.get(line, 0.0) + _APART_S)
        self._bound(self._last)[line] = at
        sleepers = self._bound(self._sleepers).setdefault(line, {})
        sleepers.pop(id, None)
        sleepers[id] = None
        if len(sleepers) > _MOST_KNOWN:
            del sleepers[next(iter(sleepers))]
        return at, 1

    def leave(self, line: str, id: str) -> None:
        """It has its place, or waits no more: another one is to look."""
        self._heads.get(line, {}).pop(id, None)
        self._sleepers.get(line, {}).pop(id, None)

    def has_sleepers(self) -> bool:
        """Whether any wait to be woken, as far as is known."""
        return any(self._sleepers.values())

    def headless(self, now: float) -> list[str]:
        """The lines in which some wait to be woken, and at whose head nobody is known to be."""
        return [
            line
            for line, ids in self._sleepers.items()
            if ids and all(at <= now for at in self._heads.get(line, {}).values())
        ]

    def known(self, line: str) -> list[str]:
        """The ids of those who were put into it last."""
        return [*self._heads.get(line, {}), *self._sleepers.get(line, {})]

    def led(self, line: str, id: str, at: float) -> None:
        """This one is at its head, and looks then."""
        self._bound(self._heads)[line] = {id: at}

    def _bound(self, lines: dict[str, T]) -> dict[str, T]:
        if len(lines) > _MOST_LINES:
            lines.clear()
        return lines


@lru_cache(maxsize=1024)
def parse_rate(text: str) -> Rate:
    """``100/minute``, ``5/second``, ``1000/hour``, ``20/day``, ``10/30s``; raises DefinitionError for anything else."""
    found = _FORM.fullmatch(text) if isinstance(text, str) else None
    unit = None if found is None else _UNITS.get(_singular(found[3]))
    if found is None or unit is None or found[2].strip("0") == "" != found[2]:
        raise _wrong(text)
    count = int(found[1])
    if not 1 <= count <= _MOST:
        raise _wrong(text)
    return Rate(count, float(int(found[2] or 1) * unit))


def check_limit(value: int, what: str) -> int:
    """*value* if that many runs may be under way; raises DefinitionError."""
    if type(value) is not int or not 1 <= value <= _MOST_PLACES:
        raise DefinitionError(f"{what} must be a whole number from 1 to {_MOST_PLACES:,}, not {value!r}")
    return value


def _singular(unit: str) -> str:
    return unit[:-1] if len(unit) > 2 and unit.endswith("s") else unit


def _wrong(text: object) -> DefinitionError:
    return DefinitionError(
        f"rate_limit must say how many may start in which time, such as '100/minute', '5/second', '1000/hour' or '10/30s' "
        f"(1 to {_MOST:,} in a second, minute, hour or day, or in a number of these), not {text!r}"
    )
