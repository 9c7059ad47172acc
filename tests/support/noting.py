"""A scheduler in this process that notes what it runs and what it is told about its store."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

from asyncsched import Scheduler, StoreDegraded, StoreEvent, StoreRecovered, current_run
from asyncsched.contract import JobStore
from tests.support.waiting import eventually

__all__ = ["Noting"]


class Noting:
    """A scheduler with the task ``work(seconds=0)``."""

    def __init__(self, store: str | JobStore, **options: Any) -> None:
        self.scheduler = Scheduler(store, **options)
        #: (monotonic instant, job id) of each run that began.
        self.begun: list[tuple[float, str]] = []
        #: (monotonic instant, kind of event).
        self.told: list[tuple[float, type[StoreEvent]]] = []

        @self.scheduler.task(name="work")
        async def work(seconds: float = 0.0) -> None:
            self.begun.append((time.monotonic(), current_run().job_id))
            await asyncio.sleep(seconds)

        self.scheduler.on(StoreEvent, lambda event: self.told.append((time.monotonic(), type(event))))

    @property
    def ran(self) -> Counter[str]:
        """How often each job began."""
        return Counter(id for _, id in self.begun)

    def began_since(self, instant: float) -> list[str]:
        return [id for at, id in self.begun if at >= instant]

    def was_told(self, kind: type[StoreEvent], since: float = 0.0) -> bool:
        return any(told is kind and at >= since for at, told in self.told)

    async def all_gone(self, timeout: float = 60.0) -> None:
        """Return once no job is stored any more."""

        async def none() -> bool:
            return not await self.scheduler.get_jobs(limit=1)

        await eventually(none, timeout=timeout, what="the end of all jobs")

    async def outcomes(self) -> Counter[tuple[str, str | None]]:
        """How often the history has each outcome of each job."""
        runs = await self.scheduler.history.runs(limit=1_000_000)
        return Counter((run.job_id, run.outcome) for run in runs)

    def assert_degraded_and_recovered(self, since: float) -> None:
        """It said that the store was away, and afterwards that it was back."""
        kinds = [kind for at, kind in self.told if at >= since]
        assert kinds[:1] == [StoreDegraded], kinds
        assert kinds[-1:] == [StoreRecovered], kinds

    def assert_recovered_each_time(self) -> None:
        """As often as it said that the store was away, it said next that it was back."""
        kinds = [kind for _, kind in self.told]
        assert kinds == [StoreDegraded, StoreRecovered] * (len(kinds) // 2), kinds
