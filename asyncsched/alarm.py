"""When a worker claims again: at the wake time that the store told, or at once when something wakes it before."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable

from asyncsched.clock import Clock, Timer
from asyncsched.model import Retry
from asyncsched.storeclock import StoreClock

__all__ = ["AT_ONCE", "NEVER", "Alarm", "Turns"]

#: Claim again at once, and: nothing is planned.
AT_ONCE, NEVER = -math.inf, math.inf
#: The shortest sleep.
_NAP_S = 0.0002
#: Of the pace: from one claim to the next, so that what is left is for its way.
_CLAIM_PACE = 0.6
_EMPTY_BACKOFF = Retry(base=0.01, max_delay=1.0, spread=0.5)
_HAND_BACK = Retry(base=1.0, max_delay=30.0, spread=0.3)
_MAX_HANDED = 10_000
#: Behind all others, which woke for the same job.
_SHY_S = 0.05


class Alarm:
    """Sleeps until the next wake time of one store. Instants are the store's."""

    def __init__(self, clock: Clock, store_clock: StoreClock, lookahead_s: float, pace_s: float) -> None:
        self._clock = clock
        self._store_clock = store_clock
        self._lookahead_s = lookahead_s
        self._pace_s = pace_s * _CLAIM_PACE
        self._waiter: asyncio.Future[None] | None = None
        self._is_woken = False
        #: The earliest that was hinted at while a claim was on its way.
        self._hinted_at = NEVER
        self._planned = AT_ONCE
        self._claimed_at = AT_ONCE
        self._patience = _Patience()

    def hand_back(self, id: str) -> tuple[float, bool]:
        """Until when a job that cannot be run here is left to others; and whether this is the first time."""
        return self._patience.next(id, self._store_clock.now())

    def claiming(self) -> None:
        """A claim begins: what comes from now on may have come too late for it."""
        self._is_woken, self._hinted_at = False, NEVER
        self._planned = AT_ONCE
        self._claimed_at = self._clock.monotonic()

    def wake(self) -> None:
        """Claim again as soon as may be."""
        self._is_woken = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def hint(self, wake_at: float | None) -> None:
        """While a claim is on its way whatever comes is kept; while asleep, what comes before the planned wake counts."""
        if wake_at is None:
            self.wake()
        elif self._waiter is None:
            self._hinted_at = min(self._hinted_at, wake_at)
        elif wake_at - self._lookahead_s < self._planned:
            self.wake()

    async def sleep(self, until: float) -> None:
        """Return at *until*, or when woken."""
        if until != NEVER:
            until = min(until, self._hinted_at - self._lookahead_s)
            if self._patience.is_left_at(until + self._lookahead_s):
                until += _SHY_S
        # Nothing that becomes due is of interest to a worker that cannot claim.
        self._planned = AT_ONCE if until == NEVER else until
        # Or will be due before the shortest sleep is over.
        is_due = self._hinted_at <= self._store_clock.now() + self._pace_s
        if until == AT_ONCE or self._is_woken or is_due:
            await asyncio.sleep(0)
            return
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        timer: Timer | None = None
        if until < NEVER:
            # Never less than a nap: jobs due within microseconds of each other are one turn, not many. And what is claimed
            # before it is due can be claimed together, and starts on its own timer.
            nap = max(self._clock.monotonic() + _NAP_S, self._claimed_at + self._pace_s)
            timer = self._clock.call_at(max(self._store_clock.instant(until), nap), self.wake)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()


class Turns:
    """When to claim next, by what the last claim brought. Instants are the store's."""

    def __init__(self, now: Callable[[], float], poll_s: float, poll_jitter: float) -> None:
        self._now = now
        self._poll_s = poll_s
        self._poll_jitter = poll_jitter
        self._empty = 0

    def next(self, taken: int, next_wake: float, claimed_at: float) -> float:
        """After a claim at the instant *claimed_at* that took so many, and told that there is something from *next_wake* on."""
        now, poll_s = self._now(), self._poll_s
        if taken or next_wake > now:
            self._empty = 0
        elif self._empty == 0 and next_wake > claimed_at:
            # It became due while the answer was on its way.
            self._empty = 1
            return AT_ONCE
        else:
            # Due, and not to be had: another instance is taking it, or it is locked.
            self._empty += 1
            pause = _EMPTY_BACKOFF.delay(self._empty)
            next_wake = now + (1.0 if pause is None else pause.total_seconds())
        if next_wake < now + poll_s / 2:
            return next_wake
        return min(next_wake, now + poll_s * (1 + self._poll_jitter * (2 * random.random() - 1)))


class _Patience:
    """For how long jobs that cannot be run here are left to others.

    And who left one looks for it last: the first of two that wake together for it would be the same each time.
    """

    def __init__(self) -> None:
        self._times: dict[str, int] = {}
        self._left_until_ms: set[int] = set()

    def next(self, id: str, now: float) -> tuple[float, bool]:
        """Until when: longer each time; and whether this is the first."""
        if len(self._times) > _MAX_HANDED:
            self._times.clear()
        if len(self._left_until_ms) > _MAX_HANDED:
            self._left_until_ms.clear()
        times = self._times[id] = self._times.get(id, 0) + 1
        pause = _HAND_BACK.delay(times)
        until_ms = math.ceil((now + (30.0 if pause is None else pause.total_seconds())) * 1e3)
        self._left_until_ms.add(until_ms)
        return until_ms / 1e3, times == 1

    def is_left_at(self, instant: float) -> bool:
        """Whether a job that was left becomes due again at that instant."""
        return abs(instant) < NEVER and round(instant * 1e3) in self._left_until_ms
