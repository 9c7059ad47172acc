"""A clock that goes wrong by a fixed amount."""

from __future__ import annotations

from collections.abc import Callable

from asyncsched.clock import Timer
from asyncsched.testing import ManualClock

__all__ = ["SkewedClock"]


class SkewedClock:
    """The wall clock of *clock*, wrong by *skew_s*; elapsed time is right."""

    def __init__(self, clock: ManualClock, skew_s: float) -> None:
        self._clock = clock
        self._skew_s = skew_s
        self.monotonic = clock.monotonic
        self.sleep = clock.sleep

    def time(self) -> float:
        return self._clock.time() + self._skew_s

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        return self._clock.call_at(when, callback)
