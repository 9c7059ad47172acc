"""APScheduler 4 (4.0.0a6): its AsyncScheduler, with a hundred jobs of one task at a time and one worker."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler import AsyncScheduler, TaskDefaults
from apscheduler.datastores.memory import MemoryDataStore
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from benchmarks import meter
from benchmarks.meter import CONCURRENCY, PERIOD_S, Drain, Figures, Grid, Size

#: No task is limited: at a limit of its own the memory store would walk over the whole backlog at each claim.
_TASK_DEFAULTS = TaskDefaults(max_running_jobs=1_000_000, misfire_grace_time=None)


@asynccontextmanager
async def _waiting(store: Any = None) -> AsyncIterator[AsyncScheduler]:
    """A scheduler that takes jobs, and runs none before start_in_background()."""
    scheduler = AsyncScheduler(
        store or MemoryDataStore(), max_concurrent_jobs=CONCURRENCY, task_defaults=_TASK_DEFAULTS
    )
    async with scheduler:
        yield scheduler


async def drain(jobs: int, store: str = "memory") -> Figures:
    with tempfile.TemporaryDirectory(prefix="asyncsched-bench-") as folder:
        kept: Any = None
        if store == "sqlite":
            from apscheduler.datastores.sqlalchemy import SQLAlchemyDataStore

            kept = SQLAlchemyDataStore(f"sqlite+aiosqlite:///{folder}/jobs.db")
        async with _waiting(kept) as scheduler:
            watch = Drain(jobs)
            for _ in range(jobs):
                await scheduler.add_job(meter.drained_job)
            watch.begin()
            await scheduler.start_in_background()
            figures = await watch.end()
            await scheduler.stop()
            await scheduler.wait_until_stopped()
            watch.check()
            return figures


async def recurring(jobs: int, window_s: float) -> Figures:
    async with _waiting() as scheduler:
        grid = Grid(jobs, adds_per_s=8_000)
        for i in range(jobs):
            await scheduler.add_schedule(meter.noted_job, _trigger(grid.phase(i), PERIOD_S))
        await scheduler.start_in_background()
        return await meter.recurring(grid, window_s)


async def size(jobs: int) -> Figures:
    async with _waiting() as scheduler:
        grid = Grid(jobs)
        bytes_ = Size()
        for i in range(jobs):
            await scheduler.add_schedule(meter.sleeping_job, _trigger(grid.phase(i), 3600))
        return {"bytes": bytes_.per(jobs)}


async def adding(jobs: int) -> Figures:
    async with _waiting() as scheduler:
        grid = Grid(jobs)
        triggers = [_trigger(grid.phase(i), 3600) for i in range(jobs)]
        with meter.timed(jobs) as figures:
            for trigger in triggers:
                await scheduler.add_schedule(meter.sleeping_job, trigger)
        return figures


async def idle(jobs: int, window_s: float) -> Figures:
    async with _waiting() as scheduler:
        now = datetime.now(UTC)
        for i in range(jobs):
            await scheduler.add_schedule(meter.sleeping_job, DateTrigger(now + timedelta(seconds=3600 + i)))
        await scheduler.start_in_background()
        return await meter.idle(window_s)


def _trigger(first: datetime, period_s: float) -> IntervalTrigger:
    return IntervalTrigger(seconds=int(period_s), start_time=first)


if __name__ == "__main__":
    meter.main({f.__name__: f for f in (drain, recurring, size, adding, idle)})
