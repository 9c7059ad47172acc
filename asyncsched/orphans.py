"""Jobs whose task no live instance registers: found by a look now and then, and reported, paused or removed.

The looks are written down in one record of each store, so that one instance looks at a time and a task is judged by what several
looks have seen, never by the registry of the instance that has just started. A look reads the instances and pages through the
stored jobs, 500 in a call with a pause between the calls; with the default of 14 days there is one a day.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from functools import partial
from typing import Literal

from asyncsched.changes import WaitingTask
from asyncsched.codec import decode_cursor, decode_orphans, encode
from asyncsched.contract import Filter, Record, Update
from asyncsched.definition import OrphanForm
from asyncsched.engine import Engine
from asyncsched.errors import (
    AsyncSchedError,
    ConflictError,
    DefinitionError,
    JobLookupError,
    SerializationError,
)
from asyncsched.events import JobOrphaned, JobPausedEvent, JobRemoved
from asyncsched.flowwork import OUR_TASKS
from asyncsched.ids import new_id
from asyncsched.instances import look_at_instances
from asyncsched.outlast import heeding
from asyncsched.shelf import Shelf
from asyncsched.units import Duration, to_datetime, to_seconds

__all__ = ["OrphanPolicy", "Orphans"]

#: What becomes of a job whose task no live instance registers.
OrphanPolicy = Literal["report", "pause", "remove"]

_MARK = "#orphans"
_POLICIES = ("report", "pause", "remove")
#: So many looks fit into ``orphan_after``; no two of them are further apart than a day.
_LOOKS = 14
_DAY_S = 86400.0
#: When the first look after a start is, at the latest: others have shown themselves by then.
_FIRST_S = 60.0
#: If nobody looked for so many times the pause between looks, it is not known what was registered meanwhile.
_BLIND = 3
_PAGE = 500
_BREATH_S = 0.1
#: One look reads so many pages, keeps so many tasks, and acts on so many jobs; the next one goes on.
_PAGES = 10_000
_TASKS = 1000
_ACTS = 1000


class Orphans:
    """Looks for orphans in the stores of one scheduler."""

    def __init__(self, engine: Engine, policy: OrphanPolicy, after: Duration | None) -> None:
        if policy not in _POLICIES:
            raise DefinitionError(f"orphans must be one of {', '.join(map(repr, _POLICIES))}, not {policy!r}")
        self._engine = engine
        self._policy = policy
        self._after_s = None if after is None else to_seconds(after, "orphan_after", positive=True)
        self._every_s = min(_DAY_S, (self._after_s or _DAY_S * _LOOKS) / _LOOKS)
        # One that serves nothing runs nothing, and one that nobody can see would not be seen by its like.
        if self._after_s is not None and engine.options.queues and engine.options.heartbeat_s is not None:
            engine.attendants.append(self.watch)

    async def watch(self, alias: str) -> None:
        """Look into one store whenever it is time, until cancelled."""
        shelf = self._engine.shelf(alias)
        pause_s = min(self._every_s, _FIRST_S)
        while True:
            await self._engine.clock.sleep(pause_s * random.uniform(1.0, 1.02))
            try:
                pause_s = await heeding(self.look(shelf))
            except Exception as error:
                pause_s = self._every_s
                is_fault = not isinstance(error, AsyncSchedError)
                self._engine.logger.warning(
                    "orphans of store %r are looked for later: %s", alias, error, exc_info=is_fault
                )

    async def look(self, shelf: Shelf) -> float:
        """Look, if it is time and nobody else does; return in how many seconds it is time again."""
        now = shelf.now()
        record, form = await self._read(shelf)
        if form is not None and now < form.looked_at + self._every_s:
            # No longer than that, should the store's clock have been ahead then.
            return min(form.looked_at + self._every_s - now, self._every_s)
        before = form or OrphanForm(now)
        if now - before.judged_at > _BLIND * self._every_s:
            # Looks that did not come to their end have seen nothing.
            before = OrphanForm(now)
        record = await self._write(shelf, record, OrphanForm(now, before.tasks, before.judged_at))
        if record is None:
            return self._every_s
        missing = await self._missing(shelf)
        since = {task: before.tasks.get(task, now) for task in sorted(missing)[:_TASKS]}
        assert self._after_s is not None
        left = _ACTS
        for task, at in since.items():
            if now - at >= self._after_s and left > 0:
                acted = await self._end(shelf, task, at, left)
                if acted is None:
                    since[task] = now
                else:
                    left -= acted
        await self._write(shelf, record, OrphanForm(now, since, now))
        return self._every_s

    async def waiting(self, shelf: Shelf) -> list[WaitingTask]:
        """The tasks that the last look found nobody for, and that are not registered here either."""
        _, form = await self._read(shelf)
        if form is None:
            return []
        here = self._engine.registry.tasks
        return [
            WaitingTask(task, shelf.alias, to_datetime(at))
            for task, at in sorted(form.tasks.items())
            if task not in here
        ]

    # -- one look ------------------------------------------------------------------------------------------------------

    async def _missing(self, shelf: Shelf) -> set[str]:
        """The tasks of stored jobs that nobody registers: neither when it began to read, nor when it had read all."""
        known = await self._registered(shelf)
        if known is None:
            return set()
        found = {record.task async for record in self._records(shelf, Filter()) if record.task not in known}
        known = await self._registered(shelf) if found else set()
        return set() if known is None else found - known

    async def _registered(self, shelf: Shelf) -> set[str] | None:
        """The tasks that live instances register; None: a newer asyncsched is there, whose tasks cannot be read here."""
        instances, unread = await look_at_instances(shelf.store, shelf.alias, shelf.now())
        if unread:
            return None
        shown = {task for one in instances if one.is_alive and not one.is_client for task in one.tasks}
        return shown | set(self._engine.registry.tasks) | OUR_TASKS.keys()

    async def _records(self, shelf: Shelf, where: Filter) -> AsyncIterator[Record]:
        last: Record | None = None
        for _ in range(_PAGES):
            page = await shelf.repeat(partial(shelf.store.page, where, _PAGE, last))
            for record in page:
                if "#" not in record.id and not record.task.startswith("#"):
                    yield record
            if len(page) < _PAGE:
                return
            last = page[-1]
            await self._engine.clock.sleep(_BREATH_S)

    async def _end(self, shelf: Shelf, task: str, since: float, limit: int) -> int | None:
        """Do what is to be done about the jobs of a task; for how many, or None: somebody runs them."""
        found: list[Record] = []
        async for record in self._records(shelf, Filter(task=task)):
            if _was_run(record, since):
                # By an instance that does not show itself.
                return None
            if record.holder is None and (self._policy != "pause" or record.hold != "paused"):
                found.append(record)
            if len(found) == limit:
                break
        if not found:
            return 0
        known = await self._registered(shelf)
        if known is None or task in known:
            # Somebody has come meanwhile who runs them.
            return None
        done = {"report": "left as they are", "pause": "paused", "remove": "removed"}[self._policy]
        self._engine.logger.warning(
            "no live instance has registered task %r since %s; its jobs in store %r are %s: %d%s, such as %r",
            task, to_datetime(since).isoformat(), shelf.alias, done, len(found), " or more" if len(found) == limit else "",
            found[0].id,
        )  # fmt: skip
        for record in found:
            self._emit(shelf, record, since)
        if self._policy == "remove":
            await shelf.remove([record.id for record in found])
            for record in found:
                self._engine.emit_job(JobRemoved, self._engine.composer.job(record, shelf.alias))
        elif self._policy == "pause":
            for record in found:
                await self._pause(shelf, record)
        return len(found)

    async def _pause(self, shelf: Shelf, record: Record) -> None:
        try:
            job, _ = await shelf.change(
                record.id, lambda found: self._engine.editor.pause(found, shelf.now())
            )
        except (ConflictError, JobLookupError, SerializationError) as error:
            self._engine.logger.warning("job %r could not be paused: %s", record.id, error)
        else:
            self._engine.emit_job(JobPausedEvent, job)

    def _emit(self, shelf: Shelf, record: Record, since: float) -> None:
        if not self._engine.bus.subscriptions:
            return
        job = self._engine.composer.job(record, shelf.alias)
        self._engine.bus.emit(
            JobOrphaned(
                at=to_datetime(self._engine.clock.time()),
                store=shelf.alias,
                job_id=job.id,
                task=job.task,
                name=job.name,
                queue=job.queue,
                tags=job.tags,
                since=to_datetime(since),
            )
        )

    # -- what is known -------------------------------------------------------------------------------------------------

    async def _read(self, shelf: Shelf) -> tuple[Record | None, OrphanForm | None]:
        record = await shelf.find(_MARK)
        if record is None:
            return None, None
        try:
            return record, decode_orphans(record.body)
        except SerializationError:
            # It is begun anew.
            return record, None

    async def _write(self, shelf: Shelf, there: Record | None, form: OrphanForm) -> Record | None:
        """The record as it is now, or None: another instance was faster."""
        body = encode(form)
        if there is None:
            record = Record(_MARK, new_id(), _MARK, 0, _MARK, None, None, body, b"")
            return None if await shelf.insert([record]) else record
        return await shelf.update(
            Update(
                id=_MARK, version=there.version, body=body, queue=there.queue, priority=0, wake_at=None, hold=None
            )
        )  # fmt: skip


def _was_run(record: Record, since: float) -> bool:
    try:
        last = decode_cursor(record.cursor).tally.last_run
    except SerializationError:
        return False
    return last is not None and last >= since
