"""A process that does nothing but work: the demonstration starts it, kills it in mid-job, and starts another.

``python -m asyncsched.cli.demo_worker FILE NAME`` serves the queue ``reports`` of the store in FILE until its stdin ends,
and says on stdout, line by line, what it does.
"""

from __future__ import annotations

import asyncio
import sys
import threading

from asyncsched import RunFinished, RunStarted, Scheduler, current_run
from asyncsched.stores.sqlite import SQLiteStore

__all__ = ["LEASE_S", "PAGES", "QUEUE", "TASK", "build_report"]

QUEUE = "reports"
TASK = "build_report"
#: Short, so that the demonstration need not wait long for a dead worker's lease to end.
LEASE_S = 3.0
PAGES = 6
_PAGE_S = 0.5


async def build_report(customer: str) -> str:
    """A slow job: it takes three seconds, and is killed in the midst of them once."""
    for page in range(1, PAGES + 1):
        await asyncio.sleep(_PAGE_S)
        print(f"{current_run().job_id}: page {page} of {PAGES}", flush=True)
    return f"{PAGES} pages for {customer}"


async def work(path: str, name: str) -> None:
    """Run the jobs of the queue until stdin ends; whoever started this holds the other end."""
    scheduler = Scheduler(SQLiteStore(path), id=name, queues=[QUEUE], lease=LEASE_S)
    scheduler.register(build_report, TASK)

    @scheduler.on(RunStarted)
    def say_started(event: RunStarted) -> None:
        print(f"{event.job_id}: started with fence {event.fence}", flush=True)

    @scheduler.on(RunFinished)
    def say_finished(event: RunFinished) -> None:
        print(f"{event.job_id}: {event.outcome} after {event.duration:.1f} s", flush=True)

    async with scheduler:
        print("ready", flush=True)
        await _end_of_stdin()


async def _end_of_stdin() -> None:
    """A pipe ends when its other end is closed or its process is gone, so no worker outlives the demonstration."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def read() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=read, daemon=True).start()
    await ended.wait()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], sys.argv[2]))
