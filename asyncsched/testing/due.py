"""Run what is due, and return when it has ended."""

from __future__ import annotations

import asyncio

from asyncsched import Event, RunFinished, Scheduler

__all__ = ["run_due"]


async def run_due(scheduler: Scheduler, timeout: float = 10.0) -> list[RunFinished]:
    """Let *scheduler* run every job that is due now, and what becomes due meanwhile; return how the runs ended, in order.

    A scheduler that was started with ``paused=True`` is paused again afterwards, so that a test decides when jobs run.
    Raises TimeoutError after *timeout* real seconds.
    """
    ended: list[RunFinished] = []
    changed = asyncio.Event()

    def hear(event: Event) -> None:
        changed.set()
        if isinstance(event, RunFinished):
            ended.append(event)

    end = scheduler.on(Event, hear)
    was_paused = scheduler.state == "paused"
    if was_paused:
        await scheduler.resume()
    try:
        async with asyncio.timeout(timeout):
            while await _is_busy(scheduler):
                changed.clear()
                if await _is_busy(scheduler):
                    await _either(changed)
        await asyncio.sleep(0)
    finally:
        if was_paused:
            await scheduler.pause()
        end()
    return ended


async def _is_busy(scheduler: Scheduler) -> bool:
    if scheduler.running():
        return True
    due = await scheduler.next_fire_time()
    return due is not None and due.timestamp() <= scheduler.now().timestamp()


async def _either(changed: asyncio.Event) -> None:
    """Until something happened; a look now and then covers what makes no event."""
    try:
        await asyncio.wait_for(changed.wait(), 0.05)
    except TimeoutError:
        return
