"""Run what is due, and return when it has ended."""

from __future__ import annotations

import asyncio

from asyncsched import Event, RunFinished, RunStarted, Scheduler

__all__ = ["run_due"]


#: Between looks.
_LOOK_S = 0.05


async def run_due(scheduler: Scheduler, timeout: float = 10.0) -> list[RunFinished]:
    """Let *scheduler* run every job that is due now, and what becomes due meanwhile; return how the runs ended, in order.

    A scheduler that was started with ``paused=True`` is paused again afterwards, so that a test decides when jobs run.
    Raises TimeoutError after *timeout* real seconds.
    """
    ended: list[RunFinished] = []
    changed = asyncio.Event()
    #: Jobs whose run has begun and whose end has not been told yet: a run is over before its end is written.
    under_way = _begun(scheduler)

    def hear(event: Event) -> None:
        changed.set()
        if isinstance(event, RunStarted):
            under_way.add(event.job_id)
        elif isinstance(event, RunFinished):
            under_way.discard(event.job_id)
            ended.append(event)

    end = scheduler.on(Event, hear)
    was_paused = scheduler.state == "paused"
    if was_paused:
        await scheduler.resume()
    try:
        async with asyncio.timeout(timeout):
            changed.clear()
            # What the store tells first: a job that it shows as held by then is under way, or in a claim that is on its way.
            while await _is_due(scheduler) or under_way or _begun(scheduler) or _is_claiming(scheduler):
                await _either(changed, _LOOK_S)
                changed.clear()
    finally:
        if was_paused:
            await scheduler.pause()
        end()
    return ended


def _begun(scheduler: Scheduler) -> set[str]:
    """The jobs that are under way; one that was claimed ahead of its time is not."""
    now = scheduler.now()
    return {run.job_id for run in scheduler.running() if run.due_at <= now}


def _is_claiming(scheduler: Scheduler) -> bool:
    return any(worker.is_claiming for worker in scheduler._engine.workers.values())


async def _is_due(scheduler: Scheduler) -> bool:
    due = await scheduler.next_fire_time()
    if due is not None and due.timestamp() <= scheduler.now().timestamp():
        return True
    return await scheduler.has_workflow_on_the_move()


async def _either(changed: asyncio.Event, seconds: float) -> None:
    """Until something happened; a look now and then covers what makes no event."""
    try:
        await asyncio.wait_for(changed.wait(), seconds)
    except TimeoutError:
        return
