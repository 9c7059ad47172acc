"""A store's clock, as it is known here: all instants are the store's, and elapsed time is measured on the monotonic clock."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from datetime import timedelta

from asyncsched.clock import Clock
from asyncsched.model import ClockSkew

__all__ = ["StoreClock"]

#: How often the clock is asked at a start; the shortest round trip tells it best.
_SAMPLES = 3
#: By so much may two clocks come apart in a second, as fast as NTP slews one of them.
_DRIFT = 0.0005
#: A clock that goes back by more was set back.
_MOMENT_S = 0.5


class StoreClock:
    """What is known of a store's clock. Anchored anew by each claim and renewal, so that neither drift nor a step stays."""

    def __init__(self, clock: Clock, *, is_host: bool) -> None:
        #: Whether the store reads the clock of this host.
        self.is_host = is_host
        #: The store's instant less the monotonic one.
        self.offset = clock.time() - clock.monotonic()
        self._clock = clock
        self._best_trip_s = math.inf
        self._read_at = clock.monotonic()
        self._reached = -math.inf

    def now(self) -> float:
        """The store's clock."""
        return self._clock.monotonic() + self.offset

    def reached(self) -> float:
        """An instant that the store's clock has reached, in whole microseconds: what is due then is due.

        A better sample may put the clock back by a moment; what was told before stays reached.
        """
        instant = math.floor((self.now() - self.slack_s) * 1e6) / 1e6
        if not self.is_host and 0 < self._reached - instant < _MOMENT_S:
            return self._reached
        self._reached = instant
        return instant

    @property
    def slack_s(self) -> float:
        """By how much ``now`` may be ahead of the store's clock."""
        return 0.0 if self.is_host else self._best_trip_s / 2

    def instant(self, at: float) -> float:
        """The monotonic instant at which this clock has surely reached *at*."""
        return at - self.offset + self.slack_s

    def skew(self) -> ClockSkew:
        """The store's clock less this host's."""
        if self.is_host:
            return ClockSkew(timedelta(), timedelta())
        return ClockSkew(
            timedelta(seconds=self.now() - self._clock.time()), timedelta(seconds=self._best_trip_s / 2)
        )

    async def sample(self, ask: Callable[[], Awaitable[float]]) -> None:
        """Ask for the store's clock some times."""
        for _ in range(1 if self.is_host else _SAMPLES):
            asked_at = self._clock.monotonic()
            self.read(asked_at, await ask())

    def read(self, asked_at: float, store_now: float) -> None:
        """The store, asked at the monotonic instant *asked_at*, has just answered that it is *store_now*.

        It read its clock within the round trip. So the shorter that was the better it tells, and a long one is believed only
        where it shows that what was known cannot be. The host's own clock is simply read.
        """
        answered_at = self._clock.monotonic()
        if self.is_host:
            self.offset = self._clock.time() - answered_at
            return
        trip_s = answered_at - asked_at
        # What was known grows old.
        self._best_trip_s += _DRIFT * (answered_at - self._read_at)
        self._read_at = answered_at
        if trip_s <= self._best_trip_s:
            self._best_trip_s = trip_s
            self.offset = store_now - (asked_at + answered_at) / 2
        else:
            self.offset = min(max(self.offset, store_now - answered_at), store_now - asked_at)
