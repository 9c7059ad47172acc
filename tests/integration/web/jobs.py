"""The scheduler of the applications that are started as servers, and what they tell of themselves.

``JOBS_STORE`` is the URL of its store, ``JOBS_LOG`` the file that its processes write lines into, ``JOBS_DRAIN_S`` what runs
have to end at a stop, and ``JOBS_CONCURRENCY`` how many of them a process takes at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from asyncsched import JobLookupError, Scheduler, SchedulerStarted, every, once
from tests.integration.worker import Log

__all__ = ["DRAIN_S", "add", "outcome", "resources", "scheduler"]

DRAIN_S = float(os.environ.get("JOBS_DRAIN_S", "20"))

log = Log(os.environ["JOBS_LOG"])
# No process dies here, and one that stands still for a while shall keep its jobs.
scheduler = Scheduler(
    os.environ["JOBS_STORE"], lease=300, concurrency=int(os.environ.get("JOBS_CONCURRENCY", "10"))
)
scheduler.on(SchedulerStarted, lambda event: log.write("ready", instance=scheduler.id))


@scheduler.job(every(0.2), id="tick")
async def tick() -> None:
    log.of_run("ticked")


@scheduler.task(name="work")
async def work(file: str) -> str:
    """Begin, and end when *file* is there; tell of a stop that waits for it."""
    log.of_run("begun")
    is_told = False
    while not is_there(file):
        await asyncio.sleep(0.01)
        if scheduler.state == "stopping" and not is_told:
            log.of_run("draining")
            is_told = True
    log.of_run("ended")
    return file


def is_there(file: str) -> bool:
    return Path(file).exists()


@asynccontextmanager
async def resources(app: object) -> AsyncIterator[None]:
    """What the jobs need: opened before the first of them, and closed after the last."""
    log.write("opened", instance=scheduler.id)
    yield
    log.write("closed", instance=scheduler.id)


async def add(found: Scheduler, id: str, file: str) -> dict[str, str]:
    """What an application does when it is asked for a job; *found* is what it takes for its scheduler."""
    job = await found.add_job(work, once(delay=0), id=id, args=[file])
    return {"job": job.id}


async def outcome(found: Scheduler, id: str) -> dict[str, str]:
    """What an application says about a job."""
    try:
        return {"state": (await found.get_job(id)).state}
    except JobLookupError:
        runs = await found.history.runs(id, limit=1)
        return {"state": (runs[0].outcome if runs else None) or "unknown"}
