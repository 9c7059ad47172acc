"""Reading: which jobs there are over all stores, in order, and waiting until one has come to rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from asyncsched.contract import Record
from asyncsched.engine import Engine
from asyncsched.errors import DefinitionError, JobLookupError
from asyncsched.model import Job
from asyncsched.registry import Task
from asyncsched.shelf import Query

__all__ = ["Desk"]

#: How often to look whether another instance has ended a run that is waited for.
_LOOK_S = 0.5


class Desk:
    """Answers questions about jobs, whatever store they are in."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def jobs(
        self, query: Query, store: str | None, limit: int | None, after: Job | str | None
    ) -> list[Job]:
        """By next fire time; a page (limit, after) by wake time, which is what the stores know."""
        shelves = self._engine.some_shelves(store)
        floor = None
        if isinstance(after, Job):
            _, floor = await self._engine.find(after.id, after.store)
        elif after is not None:
            _, floor = await self._engine.find(after, store)
        found: list[tuple[Record, Job]] = []
        for shelf in shelves:
            taken = 0
            async for pair in shelf.jobs(query, floor):
                found.append(pair)
                taken += 1
                if taken == limit:
                    break
        if limit is None and after is None:
            return sorted((job for _, job in found), key=_by_fire_time)
        found.sort(key=lambda pair: _by_wake_time(pair[0]))
        return [job for _, job in found[:limit]]

    async def matching(self, store: str | None, filters: Mapping[str, Any]) -> list[Job]:
        """The jobs that match filters given by name; an unknown filter raises DefinitionError."""
        unknown = set(filters) - set(Query.__struct_fields__)
        if unknown:
            known = ", ".join(Query.__struct_fields__)
            raise DefinitionError(f"unknown filter {', '.join(sorted(unknown))}; known: {known}")
        query = query_of(**filters)
        return [job for shelf in self._engine.some_shelves(store) async for _, job in shelf.jobs(query)]

    async def earliest(self) -> Job | None:
        """The job that is due first."""
        first: list[Job] = []
        for shelf in self._engine.some_shelves(None):
            async for _, job in shelf.jobs(Query()):
                if job.next_fire_time is not None:
                    first.append(job)
                    break
        return min(first, key=_by_fire_time, default=None)

    async def wait(self, id: str, limit_s: float | None, store: str | None) -> Job | None:
        """The job once nothing of it is under way, or None once it is gone; raises TimeoutError after *limit_s*."""
        shelf, _ = await self._engine.find(id, store)
        clock, worker = self._engine.clock, self._engine.workers[shelf.alias]
        over = None if limit_s is None else clock.monotonic() + limit_s
        while True:
            changed = asyncio.Event()
            listener = _setter(changed, id)
            worker.on_settled.append(listener)
            try:
                record = await shelf.find(id)
                if record is None:
                    return None
                job = self._engine.composer.job(record, shelf.alias)
                if _is_quiet(record, job) and not self._engine.composer.is_asked_for(record):
                    return job
                await self._pause(changed, over, id)
            finally:
                worker.on_settled.remove(listener)

    async def _pause(self, changed: asyncio.Event, over: float | None, id: str) -> None:
        """Until *changed*, or it is time to look into the store again; raises TimeoutError at *over*."""
        clock = self._engine.clock
        now = clock.monotonic()
        if over is not None and now >= over:
            raise TimeoutError(f"job {id!r} was still under way")
        timer = clock.call_at(now + _LOOK_S if over is None else min(now + _LOOK_S, over), changed.set)
        try:
            await changed.wait()
        finally:
            timer.cancel()

    async def has_run(self, id: str) -> bool:
        """Whether the log knows a job that is not stored any more."""
        for store in self._engine.opened_stores().values():
            if await store.runs(id, limit=1):
                return True
        return False

    async def each(self, act: Callable[..., Any], store: str | None, filters: Mapping[str, Any]) -> int:
        """Await *act* for each job that matches; return for how many it was there."""
        done = 0
        for job in await self.matching(store, filters):
            try:
                await act(job.id, store=job.store)
            except JobLookupError:
                continue
            done += 1
        return done


def query_of(*, task: Any = None, **filters: Any) -> Query:
    """A Query, in which *task* may be a Task."""
    return Query(task=task.name if isinstance(task, Task) else task, **filters)


def _by_fire_time(job: Job) -> tuple[int, float, str]:
    if job.next_fire_time is None:
        return (2 if job.state == "paused" else 1, 0.0, job.id)
    return (0, job.next_fire_time.timestamp(), job.id)


def _by_wake_time(record: Record) -> tuple[bool, float, str]:
    return (record.wake_at is None, record.wake_at or 0.0, record.id)


def _setter(event: asyncio.Event, id: str) -> Callable[[str], None]:
    def settled(job_id: str) -> None:
        if job_id == id:
            event.set()

    return settled


def _is_quiet(record: Record, job: Job) -> bool:
    if record.holder is not None:
        return False
    return record.hold is not None or record.wake_at is None or job.trigger.recurs
