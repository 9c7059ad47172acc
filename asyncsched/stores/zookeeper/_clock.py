"""The server's clock, which ZooKeeper tells only by the time that each write bears.

A write that was sent at one instant and answered at another was made in between, and says when in whole milliseconds. So the
server's clock less the monotonic one of this host lies between two bounds, which each write narrows. What is told is the
lower bound: it is behind the server by a round trip at most, and never ahead of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from asyncsched.clock import SystemClock

__all__ = ["ServerClock"]

_MILLISECOND = 0.001
#: What two clocks may drift apart in a second, and for how long they are trusted to.
_DRIFT = 0.0002
_OLD_S = 30.0
_monotonic = SystemClock.monotonic


class ServerClock:
    """Now, by the leader of the ensemble; *given* takes its place in tests."""

    def __init__(self) -> None:
        self.given: Callable[[], float] | None = None
        self._offset = -math.inf
        self._upper = math.inf
        self._read_at = -math.inf

    def now(self) -> float:
        if self.given is not None:
            return self.given()
        return _monotonic() + self._offset

    @property
    def is_old(self) -> bool:
        """Whether a write is wanted, for what it tells."""
        return self.given is None and _monotonic() - self._read_at > _OLD_S

    def read(self, sent_at: float, answered_at: float, milliseconds: int) -> None:
        """A write between two monotonic instants bears the time *milliseconds*, cut off below."""
        made_at = milliseconds / 1000
        lower, upper = made_at - answered_at, made_at + _MILLISECOND - sent_at
        drifted = _DRIFT * max(0.0, answered_at - self._read_at) if self._read_at > -math.inf else 0.0
        known_lower, known_upper = self._offset - drifted, self._upper + drifted
        if lower > known_upper or upper < known_lower:
            # It was set, or another server leads now.
            self._offset, self._upper = lower, upper
        else:
            self._offset, self._upper = max(lower, known_lower), min(upper, known_upper)
        self._read_at = answered_at
