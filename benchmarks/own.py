"""asyncsched itself at the work that the peers do."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from asyncsched import JobSpec, Scheduler, every, once
from benchmarks import meter
from benchmarks.meter import CONCURRENCY, PERIOD_S, Drain, Figures, Grid, Size


@asynccontextmanager
async def _paused(store: str, history: bool) -> AsyncIterator[Scheduler]:
    """A scheduler that has been started, and runs nothing before it is resumed."""
    with tempfile.TemporaryDirectory(prefix="asyncsched-bench-") as folder:
        scheduler = Scheduler(store.replace("FOLDER", folder), concurrency=CONCURRENCY, history=history)
        await scheduler.start(paused=True)
        try:
            yield scheduler
        finally:
            if scheduler.state != "stopped":
                await scheduler.stop()


async def drain(jobs: int, store: str = "memory://", history: bool = False) -> Figures:
    """No-op one-shots that are all due."""
    async with _paused(store, history) as scheduler:
        task = scheduler.register(meter.drained_job)
        watch = Drain(jobs)
        await scheduler.add_jobs([JobSpec(task)] * jobs)
        watch.begin()
        await scheduler.resume()
        figures = await watch.end()
        await scheduler.stop()
        watch.check()
        return figures


async def recurring(jobs: int, window_s: float, store: str = "memory://", history: bool = False) -> Figures:
    """No-op jobs, each every ten seconds, spread evenly."""
    async with _paused(store, history) as scheduler:
        task = scheduler.register(meter.noted_job)
        grid = Grid(jobs)
        await scheduler.add_jobs(
            [JobSpec(task, every(PERIOD_S, anchor=grid.phase(i), start=grid.phase(i))) for i in range(jobs)]
        )
        await scheduler.resume()
        return await meter.recurring(grid, window_s)


async def size(jobs: int) -> Figures:
    """Bytes of a recurring job in memory: as it was added, and after its first run."""
    async with _paused("memory://", False) as scheduler:
        task = scheduler.register(meter.drained_job)
        grid = Grid(jobs)
        watch = Drain(jobs)
        bytes_ = Size()
        for begin in range(0, jobs, 1000):
            await scheduler.add_jobs(
                [
                    JobSpec(task, every(3600, anchor=grid.phase(i)), run_immediately=True)
                    for i in range(begin, min(begin + 1000, jobs))
                ]
            )
        fresh = bytes_.per(jobs)
        await scheduler.resume()
        await watch.end()
        await asyncio.sleep(0.5)
        return {"bytes": fresh, "bytes_after_a_run": bytes_.per(jobs)}


async def adding(jobs: int, store: str = "memory://") -> Figures:
    """add_jobs of recurring jobs; their triggers are made beforehand, as for the peers."""
    async with _paused(store, False) as scheduler:
        task = scheduler.register(meter.sleeping_job)
        grid = Grid(jobs)
        triggers = [every(3600, anchor=grid.phase(i)) for i in range(jobs)]
        with meter.timed(jobs) as figures:
            await scheduler.add_jobs([JobSpec(task, trigger) for trigger in triggers])
        return figures


async def idle(jobs: int, window_s: float, store: str = "memory://") -> Figures:
    """Jobs of the far future, and nothing to do."""
    async with _paused(store, True) as scheduler:
        task = scheduler.register(meter.sleeping_job)
        await scheduler.add_jobs([JobSpec(task, once(delay=3600 + i)) for i in range(jobs)])
        await scheduler.resume()
        return await meter.idle(window_s)


def main(leave: bool = True) -> None:
    """Run the measure that the command line names."""
    meter.main({f.__name__: f for f in (drain, recurring, size, adding, idle)}, leave)


if __name__ == "__main__":
    main()
