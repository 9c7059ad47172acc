"""Schedulers that run for the length of a block, all of it bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from asyncsched import Scheduler
from asyncsched.testing import ManualClock

__all__ = ["running", "stopped"]


@asynccontextmanager
async def running(
    *schedulers: Scheduler, clock: ManualClock | None = None, timeout: float = 60.0
) -> AsyncIterator[None]:
    """Started, and at the end stopped without a drain; fails after *timeout* real seconds."""
    async with asyncio.timeout(timeout):
        try:
            for scheduler in schedulers:
                await scheduler.start()
            yield
        finally:
            for scheduler in schedulers:
                if scheduler.is_running:
                    await stopped(scheduler, clock)


async def stopped(scheduler: Scheduler, clock: ManualClock | None = None, drain: float = 0) -> float:
    """Stop it, moving the manual clock along; the seconds of that clock that it took."""
    if clock is None:
        await scheduler.stop(drain)
        return 0.0
    began_at = clock.monotonic()
    stopping = asyncio.create_task(scheduler.stop(drain))
    await clock.advance(0)
    while not stopping.done():
        await clock.advance(0.5)
    await stopping
    return clock.monotonic() - began_at
