"""How much room a runner's queue has."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from asyncsched.clock import Clock

__all__ = ["Room"]

#: So soon after a look that found the queue full the next one may be made; and at least so many times as long as that took.
_LOOK_S = 0.05
_LOOK_SHARE = 10.0


class Room:
    """How many more jobs may be accepted, without counting all that wait each time.

    A look counts them. What is left then may be taken without another look, where only this process enqueues; else a share of it,
    so that several together overshoot little. A job that begins gives its room back, a retry takes one.
    """

    def __init__(
        self, size: int, count: Callable[[int], Awaitable[int]], clock: Clock, *, is_shared: bool
    ) -> None:
        #: How many of those that wait there are, counted up to the given number.
        self._count = count
        self._size = size
        self._clock = clock
        self._is_shared = is_shared
        self._looking = asyncio.Lock()
        self._free = 0
        #: So much room may come back without another look: of what begins here, others may have enqueued the most.
        self._most = 0 if is_shared else size
        #: Accepted, and perhaps not yet in the store.
        self._coming = 0
        self._look_again_at = -math.inf
        self._change = asyncio.Event()

    async def take(self) -> bool:
        async with self._looking:
            if self._free <= 0:
                await self._look()
            if self._free <= 0:
                return False
            self._free -= 1
            self._coming += 1
            return True

    async def _look(self) -> None:
        began = self._clock.monotonic()
        if began < self._look_again_at:
            return
        # Those that reach the store during the count may have been passed by it.
        coming = self._coming
        waiting = await self._count(self._size) + coming
        took = self._clock.monotonic() - began
        free = self._size - waiting
        self._look_again_at = began + took + max(_LOOK_S, _LOOK_SHARE * took) if free <= 0 else -math.inf
        if self._is_shared:
            free = min(free, -(-free // 4))
            self._most = max(free, 1)
        self._free = free

    def settled(self) -> None:
        """What was taken is in the store, or will not be."""
        self._coming -= 1

    def give_back(self) -> None:
        self._free += 1

    def begun(self) -> None:
        self._free = min(self._free + 1, self._most)
        self._change.set()

    def returned(self) -> None:
        self._free -= 1

    async def wait(self) -> None:
        """Until there may be room."""
        clock = self._clock
        self._change.clear()
        timer = clock.call_at(max(clock.monotonic() + _LOOK_S, self._look_again_at), self._change.set)
        try:
            await self._change.wait()
        finally:
            timer.cancel()
