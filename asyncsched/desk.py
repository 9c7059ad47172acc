"""Reading: which jobs there are over all stores, in order, and waiting until one has come to rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, get_args

from asyncsched.codec import decode_cursor, decode_definition
from asyncsched.contract import Record
from asyncsched.engine import Engine
from asyncsched.errors import ConflictError, DefinitionError, JobLookupError, SerializationError
from asyncsched.ids import base_id, is_limit
from asyncsched.jobs import Standing, is_at_work, standing_of
from asyncsched.model import Job, JobState
from asyncsched.plan import next_request, synced
from asyncsched.registry import Task
from asyncsched.shelf import Query
from asyncsched.specs import checked_tags

__all__ = ["Desk"]

#: How often to look whether another instance has ended a run that is waited for: soon at first, then less and less often.
_LOOKS_S = (0.02, 0.5)


class Desk:
    """Answers questions about jobs, whatever store they are in."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def jobs(
        self, query: Query, store: str | None, limit: int | None, after: Job | str | None
    ) -> list[Job]:
        """By next fire time; a page (limit, after) by wake time, which is what the stores know."""
        shelves = self._engine.some_shelves(store)
        if limit is not None and (type(limit) is not int or limit < 0):
            raise DefinitionError(f"limit must be a whole number of 0 or more, or None, not {limit!r}")
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

    async def wait(
        self, id: str, limit_s: float | None, store: str | None, fire: float | None = None
    ) -> Job | None:
        """The job once nothing of it is under way, or None once it is gone; raises TimeoutError after *limit_s*. With *fire* no
        further attempt at that fire time is to come either."""
        shelf, found = await self._engine.find(id, store)
        family = self._engine.composer.family(found)
        clock, worker = self._engine.clock, self._engine.worker(shelf.alias)
        over = None if limit_s is None else clock.monotonic() + limit_s
        look_s, longest_s = _LOOKS_S
        while True:
            if self._engine.workers.get(shelf.alias) is not worker:
                # Stopped, or the store was removed: nothing would ever change.
                self._engine.check_running()
                worker = self._engine.worker(shelf.alias)
            changed = asyncio.Event()
            listener = _setter(changed, id)
            worker.on_settled.append(listener)
            try:
                record = await shelf.find(id)
                # After it: a run that was asked for is met by the same write that makes its child.
                children = await shelf.find_all(family)
                is_beside = any(is_at_work(child, fire) for child in children.values())
                if record is None and not is_beside:
                    return None
                if record is not None and not is_beside:
                    job = self._engine.composer.job(record, shelf.alias)
                    if (
                        _is_quiet(record, job)
                        and not _is_asked_for(record)
                        and not (fire is not None and _is_tried_again(record, fire))
                    ):
                        return job
                await self._pause(changed, look_s, over, id)
                look_s = min(look_s * 1.5, longest_s)
            finally:
                worker.on_settled.remove(listener)

    async def _pause(self, changed: asyncio.Event, look_s: float, over: float | None, id: str) -> None:
        """Until *changed*, or it is time to look into the store again; raises TimeoutError at *over*."""
        clock = self._engine.clock
        now = clock.monotonic()
        if over is not None and now >= over:
            raise TimeoutError(f"job {id!r} was still under way")
        timer = clock.call_at(now + look_s if over is None else min(now + look_s, over), changed.set)
        try:
            await changed.wait()
        finally:
            timer.cancel()

    async def standing(self, id: str, store: str | None, fire: float) -> Standing:
        """How a fire time of a job stands; raises JobLookupError."""
        shelf, record = await self._engine.find(id, store)
        composer = self._engine.composer
        children = await shelf.find_all(composer.family(record))
        return standing_of(record, children.values(), composer.job(record, shelf.alias), fire, shelf.now())

    async def has_run(self, id: str) -> bool:
        """Whether the log knows a job that is not stored any more."""
        for store in self._engine.opened_stores().values():
            if await store.runs(id, limit=1):
                return True
        return False

    async def each(self, act: Callable[..., Any], store: str | None, filters: Mapping[str, Any]) -> int:
        """Await *act* for each job that matches; return for how many it was there. One that refuses is raised when all others
        have had their turn."""
        done, refused = 0, None
        for job in await self.matching(store, filters):
            try:
                await act(job.id, store=job.store)
            except JobLookupError:
                continue
            except (ConflictError, SerializationError) as error:
                error.job_id = job.id
                refused = refused or error
                continue
            done += 1
        if refused is not None:
            raise refused
        return done


def query_of(
    *,
    queue: Any = None,
    task: Any = None,
    tags: Any = (),
    id_prefix: Any = None,
    state: Any = None,
    due_before: Any = None,
) -> Query:
    """A Query, in which *task* may be a Task. What could match no job is refused with DefinitionError."""
    name_of_task = task.name if isinstance(task, Task) else task
    for name, value in (("queue", queue), ("task", name_of_task), ("id_prefix", id_prefix)):
        if value is not None and not isinstance(value, str):
            raise DefinitionError(f"the filter {name}= takes a string, not {value!r}")
    if state is not None and state not in get_args(JobState):
        raise DefinitionError(
            f"the filter state= takes one of {', '.join(get_args(JobState))}, not {state!r}"
        )
    return Query(
        queue=queue,
        task=name_of_task,
        tags=checked_tags(tags),
        id_prefix=id_prefix,
        state=state,
        due_before=due_before,
    )


def _by_fire_time(job: Job) -> tuple[int, float, str]:
    if job.next_fire_time is None:
        return (2 if job.state == "paused" else 1, 0.0, job.id)
    return (0, job.next_fire_time.timestamp(), job.id)


def _by_wake_time(record: Record) -> tuple[bool, float, str]:
    return (record.wake_at is None, record.wake_at or 0.0, record.id)


def _setter(event: asyncio.Event, id: str) -> Callable[[str], None]:
    def settled(job_id: str) -> None:
        if base_id(job_id) == id:
            event.set()

    return settled


def _is_quiet(record: Record, job: Job) -> bool:
    if record.holder is not None or is_limit(record.hold):
        return False
    return record.hold is not None or record.wake_at is None or job.trigger.recurs


def _is_asked_for(record: Record) -> bool:
    """Whether a run was asked for that has not been made."""
    try:
        definition = decode_definition(record.body)
        return next_request(definition, synced(definition, decode_cursor(record.cursor))) is not None
    except SerializationError:
        return False


def _is_tried_again(record: Record, fire: float) -> bool:
    """Whether a further attempt is to come at a fire time, or at an earlier one, which that waits behind or was met by."""
    try:
        pending = synced(decode_definition(record.body), decode_cursor(record.cursor)).pending
    except SerializationError:
        return False
    return record.hold is None and pending is not None and pending.fire <= fire + 1e-6
