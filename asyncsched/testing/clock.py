"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from datetime import UTC, datetime

from asyncsched.units import Duration, to_datetime, to_instant, to_seconds

__all__ = ["ManualClock"]

_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
#: Turns of the event loop that what was woken may take before the clock moves on.
_TURNS = 500


class _ManualTimer:
    """A callback that waits for the clock."""

    def __init__(self, clock: ManualClock, callback: Callable[[], object]) -> None:
        self.callback = callback
        self.is_pending = True
        self._clock = clock

    def cancel(self) -> None:
        if self.is_pending:
            self.is_pending = False
            self._clock.sleepers -= 1


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class ManualClock:
    """Time for tests: ``await clock.advance(60)`` lets everything happen that one minute brings, in order, at once.

    Give it to a scheduler (``Scheduler(clock=clock)``): its timers, leases, retries and timeouts, and its stores' clocks, are
    driven by it, and nothing really sleeps. *start* is an aware datetime.
    """

    def __init__(self, start: datetime = _EPOCH) -> None:
        # Whole microseconds, so that an instant that is reached is reached exactly.
        self._wall_us = round(to_instant(start, "start") * 1e6)
        self._elapsed_us = 0
        self._timers: list[tuple[int, int, _ManualTimer]] = []
        self._order = itertools.count()
        #: How many timers are pending.
        self.sleepers = 0
        self._changed = asyncio.Event()

    def time(self) -> float:
        """UTC seconds since 1970."""
        return self._wall_us / 1e6

    def monotonic(self) -> float:
        """Seconds that the clock has been advanced by."""
        return self._elapsed_us / 1e6

    def now(self) -> datetime:
        """The wall clock as an aware datetime."""
        return to_datetime(self.time())

    def call_at(self, when: float, callback: Callable[[], object]) -> _ManualTimer:
        timer = _ManualTimer(self, callback)
        when_us = round(when * 1e6)
        heapq.heappush(self._timers, (when_us, next(self._order), timer))
        self.sleepers += 1
        self._changed.set()
        if when_us <= self._elapsed_us:
            asyncio.get_running_loop().call_soon(self._fire_due)
        return timer

    async def sleep(self, delay_s: float) -> None:
        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        over = asyncio.get_running_loop().create_future()
        timer = self.call_at(self.monotonic() + delay_s, lambda: _resolve(over))
        try:
            await over
        finally:
            timer.cancel()

    async def advance(self, by: Duration) -> None:
        """Move both clocks forward by seconds or a timedelta, stopping at each timer on the way to let it act."""
        await self._settle()
        target = self._elapsed_us + round(to_seconds(by, "by") * 1e6)
        while self._timers and self._timers[0][0] <= target:
            self._move(max(self._timers[0][0], self._elapsed_us))
            self._fire_due()
            await self._settle()
        self._move(target)
        await self._settle()

    async def set(self, instant: datetime) -> None:
        """Set the wall clock, forwards or backwards, as an operator or a time server would: no time passes."""
        self._wall_us = round(to_instant(instant, "instant") * 1e6)
        await self._settle()

    async def wait_sleepers(self, n: int, timeout: float = 10.0) -> None:
        """Wait until at least *n* timers are pending; raises after *timeout* real seconds."""
        async with asyncio.timeout(timeout):
            while self.sleepers < n:
                self._changed.clear()
                await self._changed.wait()

    def _move(self, elapsed_us: int) -> None:
        self._wall_us += elapsed_us - self._elapsed_us
        self._elapsed_us = elapsed_us

    def _fire_due(self) -> None:
        while self._timers and self._timers[0][0] <= self._elapsed_us:
            timer = heapq.heappop(self._timers)[2]
            if timer.is_pending:
                timer.cancel()
                timer.callback()

    async def _settle(self) -> None:
        """Let what is ready run, until nothing is (or for so many turns)."""
        ready = getattr(asyncio.get_running_loop(), "_ready", None)
        quiet = 0
        for _ in range(_TURNS):
            await asyncio.sleep(0)
            quiet = quiet + 1 if ready is not None and not ready else 0
            if quiet >= 3:
                return
