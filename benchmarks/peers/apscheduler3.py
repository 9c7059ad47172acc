"""APScheduler 3: its AsyncIOScheduler, with the executor that it takes by default.

It limits no concurrency over all jobs, and starts everything that is due in one go; a one-shot is a job with a date trigger.
A job that is late is run all the same, as here (its own default is to drop it).
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from benchmarks import meter
from benchmarks.meter import PERIOD_S, Drain, Figures, Grid, Size


def _paused(store: Any = None) -> AsyncIOScheduler:
    scheduler = AsyncIOScheduler(
        jobstores={"default": store or MemoryJobStore()},
        job_defaults={"misfire_grace_time": None},
        timezone=UTC,
    )
    scheduler.start(paused=True)
    return scheduler


def _store_at(url: str) -> Any:
    parts = urlsplit(url)
    if parts.scheme == "redis":
        from apscheduler.jobstores.redis import RedisJobStore

        return RedisJobStore(host=parts.hostname, port=parts.port)
    from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

    return SQLAlchemyJobStore(parts._replace(scheme="postgresql+psycopg2").geturl())


async def drain(jobs: int, store: str = "memory") -> Figures:
    with tempfile.TemporaryDirectory(prefix="asyncsched-bench-") as folder:
        kept: Any = None
        if store == "sqlite":
            from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

            kept = SQLAlchemyJobStore(f"sqlite:///{folder}/jobs.db")
        scheduler = _paused(kept)
        watch = Drain(jobs)
        now = datetime.now(UTC)
        for _ in range(jobs):
            scheduler.add_job(meter.drained_job, DateTrigger(now))
        watch.begin()
        scheduler.resume()
        figures = await watch.end()
        scheduler.shutdown()
        watch.check()
        return figures


async def recurring(jobs: int, window_s: float, url: str = "") -> Figures:
    """With *url* in the store of that server, which takes far longer to fill."""
    scheduler = _paused(_store_at(url) if url else None)
    grid = Grid(jobs, adds_per_s=400 if url else 8_000)
    for i in range(jobs):
        scheduler.add_job(meter.noted_job, _trigger(grid.phase(i), PERIOD_S))
    scheduler.resume()
    return await meter.recurring(grid, window_s)


async def size(jobs: int) -> Figures:
    scheduler = _paused()
    grid = Grid(jobs)
    bytes_ = Size()
    for i in range(jobs):
        scheduler.add_job(meter.sleeping_job, _trigger(grid.phase(i), 3600))
    return {"bytes": bytes_.per(jobs)}


async def adding(jobs: int) -> Figures:
    scheduler = _paused()
    grid = Grid(jobs)
    triggers = [_trigger(grid.phase(i), 3600) for i in range(jobs)]
    with meter.timed(jobs) as figures:
        for trigger in triggers:
            scheduler.add_job(meter.sleeping_job, trigger)
    return figures


async def idle(jobs: int, window_s: float) -> Figures:
    scheduler = _paused()
    now = datetime.now(UTC)
    for i in range(jobs):
        scheduler.add_job(meter.sleeping_job, DateTrigger(now + timedelta(seconds=3600 + i)))
    scheduler.resume()
    return await meter.idle(window_s)


def _trigger(first: datetime, period_s: float) -> IntervalTrigger:
    return IntervalTrigger(seconds=period_s, start_date=first, timezone=UTC)


if __name__ == "__main__":
    meter.main({f.__name__: f for f in (drain, recurring, size, adding, idle)})
