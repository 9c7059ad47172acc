"""The jobs of one store, as users see them: add, read, change, remove."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from functools import partial
from typing import Literal, TypeVar

import msgspec

from asyncsched.codec import decode_definition
from asyncsched.commits import transactional
from asyncsched.contract import Filter, JobStore, Record, Update
from asyncsched.definition import Definition
from asyncsched.edits import Editor
from asyncsched.errors import (
    AsyncSchedError,
    ConflictError,
    ConflictingIdError,
    JobLookupError,
    SerializationError,
    StoreUnavailable,
    TriggerError,
)
from asyncsched.events import JobAdded, JobEvent, JobUpdated
from asyncsched.flows import flow_id, looked_at_now
from asyncsched.ids import queue_mark
from asyncsched.jobs import Composer
from asyncsched.model import Job, JobState
from asyncsched.units import to_instant

__all__ = ["OnConflict", "Query", "Shelf"]

T = TypeVar("T")
OnConflict = Literal["error", "replace", "keep"]
Composed = tuple[Record, Definition]

_PAGE = 500
_REMOVE_BATCH = 5000
_TRIES = 3
_RACES = 50


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs; everything that is given must match."""

    queue: str | None = None
    task: str | None = None
    tags: Sequence[str] = ()
    id_prefix: str | None = None
    state: JobState | None = None
    due_before: datetime | None = None

    def filter(self) -> Filter:
        """The part of it that a store decides."""
        hold = None
        if self.state is not None:
            # A limit's holds have many names, and one who has waited there keeps the name while it runs.
            hold = {"scheduled": "", "running": None, "limited": None}.get(self.state, self.state)
        return Filter(queue=self.queue, task=self.task, hold=hold, id_prefix=self.id_prefix)

    def accepts(self, job: Job) -> bool:
        """The rest of it."""
        if self.state is not None and job.state != self.state:
            return False
        if not set(self.tags) <= set(job.tags):
            return False
        if self.due_before is None:
            return True
        return job.next_fire_time is not None and job.next_fire_time < self.due_before


class Shelf:
    """One store and the way its records become jobs."""

    def __init__(
        self,
        alias: str,
        store: JobStore,
        composer: Composer,
        editor: Editor,
        now: Callable[[], float],
        tries: int = _TRIES,
    ) -> None:
        self.alias = alias
        self.store = store
        self.composer = composer
        self.editor = editor
        self.now = now
        self._tries = tries

    @asynccontextmanager
    async def within(self, connection: object) -> AsyncIterator[Shelf]:
        """This shelf in the user's transaction, where nothing can be repeated; raises DefinitionError."""
        async with transactional(self.store, self.alias).within(connection) as joined:
            yield Shelf(self.alias, joined, self.composer, self.editor, self.now, tries=1)

    # -- adding --------------------------------------------------------------------------------------------------------

    async def add(
        self, composed: Sequence[Composed], on_conflict: OnConflict
    ) -> tuple[list[Job | AsyncSchedError], dict[str, type[JobEvent] | None]]:
        """Add what was composed. An id that is taken gives in its place the job that is there, or an error; of those jobs by id
        what has been done to them, if anything."""
        met: dict[str, type[JobEvent] | None] = {}
        if not composed:
            return [], met
        records = [record for record, _ in composed]
        taken = await self.insert(records)
        answers: list[Job | AsyncSchedError] = []
        for record, definition in composed:
            if not taken or record.id not in taken:
                answers.append(self.composer.job(record, self.alias, definition))
            elif on_conflict == "error":
                answers.append(self.conflict(record.id, record.task))
            else:
                meet = self._kept if on_conflict == "keep" else self._replaced
                try:
                    job, met[record.id] = await meet(record, definition)
                except (ConflictError, SerializationError, TriggerError) as error:
                    error.job_id, error.store = record.id, self.alias
                    answers.append(error)
                else:
                    answers.append(job)
        return answers, met

    async def taken(self, ids: Sequence[str]) -> set[str]:
        """Which of these ids are stored already."""
        return set(await self.repeat(lambda: self.store.get(ids)))

    def conflict(self, id: str, task: str | None = None) -> ConflictingIdError:
        return ConflictingIdError(
            f"a job {id!r} is stored already in {self.alias!r}; choose another id, or on_conflict='replace' or 'keep'",
            job_id=id,
            store=self.alias,
            task=task,
        )

    async def _kept(self, record: Record, definition: Definition) -> tuple[Job, type[JobEvent] | None]:
        for _ in range(_RACES):
            there = await self.find(record.id)
            if there is not None:
                return self.composer.job(there, self.alias), None
            if not await self.insert([record]):
                return self.composer.job(record, self.alias, definition), JobAdded
        raise self._race(record.id)

    async def _replaced(self, record: Record, definition: Definition) -> tuple[Job, type[JobEvent] | None]:
        for _ in range(_RACES):
            there = await self.find(record.id)
            if there is None:
                if not await self.insert([record]):
                    return self.composer.job(record, self.alias, definition), JobAdded
                continue
            update = self.editor.merge(there, record, definition, self.now())
            if update is None:
                return self.composer.job(there, self.alias), None
            updated = await self.update(update)
            if updated is not None:
                return self.composer.job(updated, self.alias), JobUpdated
        raise self._race(record.id)

    # -- reading -------------------------------------------------------------------------------------------------------

    async def find(self, id: str) -> Record | None:
        return (await self.repeat(lambda: self.store.get([id]))).get(id)

    async def find_all(self, ids: Sequence[str]) -> dict[str, Record]:
        """The records of those *ids* that exist."""
        return await self.repeat(lambda: self.store.get(ids)) if ids else {}

    async def job(self, id: str) -> Job:
        """The job of that id; raises JobLookupError."""
        record = await self.find(id)
        if record is None:
            raise self.missing(id)
        return self.composer.job(record, self.alias)

    def missing(self, id: str) -> JobLookupError:
        return JobLookupError(
            f"no job {id!r} is stored in {self.alias!r}; it may have finished or been removed",
            job_id=id,
            store=self.alias,
        )

    async def jobs(self, query: Query, after: Record | None = None) -> AsyncIterator[tuple[Record, Job]]:
        """Those that match, by (wake time, id), those without a wake time last; from behind *after* on."""
        if query.due_before is not None:
            to_instant(query.due_before, "due_before")
        last = after
        where = query.filter()
        while True:
            page = await self.repeat(partial(self.store.page, where, _PAGE, last))
            for record in page:
                if "#" not in record.id:
                    job = self.composer.job(record, self.alias)
                    if query.accepts(job):
                        yield record, job
            if len(page) < _PAGE:
                return
            last = page[-1]

    # -- changing ------------------------------------------------------------------------------------------------------

    async def change(self, id: str, edit: Callable[[Record], Update | None]) -> tuple[Job, bool]:
        """The job after *edit*, and whether that changed it. Repeated while others change it too; raises JobLookupError."""
        for _ in range(_RACES):
            record = await self.find(id)
            if record is None:
                raise self.missing(id)
            update = edit(record)
            if update is None:
                return self.composer.job(record, self.alias), False
            updated = await self.update(update)
            if updated is not None:
                return self.composer.job(updated, self.alias), True
        raise self._race(id)

    async def change_record(self, id: str, edit: Callable[[Record], Update | None]) -> bool:
        """As ``change``, for a record that is no job; whether it is there."""
        for _ in range(_RACES):
            record = await self.find(id)
            if record is None:
                return False
            update = edit(record)
            if update is None or await self.update(update) is not None:
                return True
        raise self._race(id)

    async def cancel(self, id: str, fence: int | None) -> Record | None:
        """Ask for the end of the run under way (with *fence*: of that one); the record that says so, or None: there is none."""
        for _ in range(_RACES):
            record = await self.find(id)
            if record is None or not _is_held(record, self.now()) or fence not in (None, record.fence):
                return None
            updated = await self.update(self.editor.cancel(record, self.now()))
            if updated is not None:
                return updated if updated.fence == record.fence and updated.holder else None
        raise self._race(id)

    async def update(self, update: Update) -> Record | None:
        """The updated record, or None if another was faster. A lost reply is resolved by reading back; what was not written is
        tried again, and StoreUnavailable raised in the end."""
        for _ in range(self._tries - 1):
            try:
                return await self.store.update(update)
            except StoreUnavailable:
                record = await self.find(update.id)
                if record is None:
                    return None
                if record.version != update.version:
                    is_written = record.version == update.version + 1 and record.body == update.body
                    # A run is not asked for twice because somebody else has changed the job since.
                    return record if is_written or _is_asked_by(update, record) else None
        return await self.store.update(update)

    async def change_family(self, id: str, edit: Callable[[Record], Update | None]) -> tuple[Job, bool]:
        """As ``change``, for a job and the children that it has."""
        record = await self.find(id)
        for child in self.composer.family(record) if record is not None else ():
            with suppress(JobLookupError):
                await self.change(child, edit)
        return await self.change(id, edit)

    async def remove(self, ids: Sequence[str]) -> set[str]:
        """Remove; the ids that were found."""
        found: set[str] = set()
        for start in range(0, len(ids), _REMOVE_BATCH):
            batch = ids[start : start + _REMOVE_BATCH]
            there = await self.repeat(partial(self.store.get, batch))
            kin = [self.composer.kin(record) for record in there.values()]
            every = [*batch, *(child for children, _ in kin for child in children)]
            await self.repeat(partial(self.store.remove, every))
            for flow in {flow_id(link.id) for _, links in kin for link in links}:
                # Nobody else tells it that this step will not end any more; if this is lost, it looks by itself.
                await self.change_record(flow, lambda record: looked_at_now(record, self.now()))
            found |= there.keys()
        return found

    async def mark_queue(self, queue: str, is_paused: bool) -> None:
        """Write or remove the record that says that a queue is paused for all."""
        id = queue_mark(queue)
        if is_paused:
            await self.store.add([Record(id, "mark", queue, 0, "#queue", None, "paused", b"", b"")])
        else:
            await self.store.remove([id])

    def _race(self, id: str) -> ConflictError:
        return ConflictError(
            f"job {id!r} was changed by others {_RACES} times in a row; try again later",
            job_id=id,
            store=self.alias,
        )

    async def insert(self, records: Sequence[Record]) -> set[str]:
        """Add; the ids that another birth holds.

        Where the reply to the first try was lost, a job may have been added, run and deleted since: to add that again would be
        to run it twice. So what is not there any more and has an entry in the log since then was added.
        """
        began = self.now()
        try:
            return await self.store.add(records)
        except StoreUnavailable:
            if self._tries == 1:
                raise
        there = await self.repeat(lambda: self.store.get([record.id for record in records]))
        left = [
            record
            for record in records
            if record.id not in there and not await self._was_logged(record, began)
        ]
        taken = {
            record.id for record in records if record.id in there and there[record.id].birth != record.birth
        }
        return taken | (await self.repeat(lambda: self.store.add(left)) if left else set())

    async def _was_logged(self, record: Record, since: float) -> bool:
        if record.wake_at is None or record.wake_at > self.now():
            # It cannot have run.
            return False
        newest = await self.repeat(lambda: self.store.runs(record.id, limit=1))
        return bool(newest) and newest[0].at >= since

    async def repeat(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call that may have lost its reply; each that goes through here may be made again as it is."""
        for _ in range(self._tries - 1):
            try:
                return await call()
            except StoreUnavailable:
                continue
        return await call()


def _is_asked_by(update: Update, record: Record) -> bool:
    """Whether *update* asks for a run, and the record says so."""
    with suppress(SerializationError):
        asked = () if update.id.startswith("#") else decode_definition(update.body).requests
        if asked and asked[-1].no == update.version + 1:
            return asked[-1] in decode_definition(record.body).requests
    return False


def _is_held(record: Record, now: float) -> bool:
    return record.holder is not None and record.wake_at is not None and record.wake_at > now
