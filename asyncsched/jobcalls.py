"""What users do with jobs: add, read, change, run and remove them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, ParamSpec, Unpack, cast, overload

from asyncsched.backfill import Backfill, BackfillOverlap, Backfills, Order
from asyncsched.contract import Record, Update
from asyncsched.desk import Desk, query_of
from asyncsched.engine import Engine
from asyncsched.errors import AsyncSchedError, JobLookupError, JobNotRunning
from asyncsched.events import (
    JobEvent,
    JobPausedEvent,
    JobRemoved,
    JobResumed,
    JobUpdated,
)
from asyncsched.explain import Around, Explanation, WhyNot, explain, why_not
from asyncsched.flowwork import OUR_TASKS
from asyncsched.history import History
from asyncsched.ids import LIMITS, base_id, is_limit, queue_mark
from asyncsched.intake import Intake
from asyncsched.jobs import Standing
from asyncsched.limits import sharers_of
from asyncsched.model import ClockSkew, Job, JobState, Run
from asyncsched.receipts import Receipt
from asyncsched.registry import AnyTask, Call, Task
from asyncsched.shelf import OnConflict, Shelf
from asyncsched.specs import JobChanges, JobSpec, PolicyArgs, TriggerLike
from asyncsched.units import Duration, to_datetime, to_instant, to_seconds
from asyncsched.workflow import Workflow

__all__ = ["JobCalls", "TaskLike"]

P = ParamSpec("P")

#: So many of a job's decisions are looked through.
_DECISIONS = 10_000
#: Digits of a 64-bit integer.
_LONGEST_FENCE = 19

TaskLike = AnyTask | Call | Workflow | Callable[..., Any] | str


class JobCalls:
    """The part of a scheduler that is about its jobs."""

    _engine: Engine
    _intake: Intake
    _desk: Desk
    history: History

    @property
    def keeps_history(self) -> bool:
        """Whether runs, their results and decisions are written down."""
        return self._engine.options.keeps_history

    # -- adding --------------------------------------------------------------------------------------------------------

    async def add_job(
        self,
        task: TaskLike,
        trigger: TriggerLike | None = None,
        *,
        id: str | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        store: str = "default",
        queue: str = "default",
        priority: int = 0,
        tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        on_conflict: OnConflict = "error",
        paused: bool = False,
        run_immediately: bool = False,
        run_on_start: bool = False,
        connection: object = None,
        **policies: Unpack[PolicyArgs],
    ) -> Job:
        """Add a job: *task* is a Task, a bound call, a registered name, a module-level function, or a Workflow, of which each
        fire time starts an execution.

        *trigger* is made by ``once``, ``every``, ``cron`` or ``manual``, or is a string (cron expression, macro, "@every 5m");
        without one the job is due now. An id that is taken raises ConflictingIdError, or with ``on_conflict="replace"`` the job
        is made to look like this (an unchanged trigger keeps its progress, and a delay counts from this call), or with "keep" the
        one that is there is returned.
        *run_immediately* makes the first run due now; *run_on_start* asks for a run at each start of this process's scheduler.

        With *connection* the job is added in the user's own transaction (PostgreSQL and MySQL stores): it is there once that
        commits, and never if it rolls back. It is the driver's connection, or an AsyncConnection or AsyncSession of SQLAlchemy;
        where no transaction is open on it, one is made for this call. No JobAdded is told, since nobody here hears the commit.
        """
        spec = JobSpec(
            cast(Any, task), trigger, id, args, kwargs, name, store, queue, priority, tags, metadata,
            paused, run_immediately, run_on_start, policies,
        )  # fmt: skip
        answers = await self.add_jobs([spec], on_conflict=on_conflict, connection=connection)
        return answers[0]

    @overload
    async def add_jobs(
        self,
        specs: Sequence[JobSpec],
        *,
        on_conflict: OnConflict = "error",
        errors: Literal["raise"] = "raise",
        connection: object = None,
    ) -> list[Job]: ...

    @overload
    async def add_jobs(
        self,
        specs: Sequence[JobSpec],
        *,
        on_conflict: OnConflict = "error",
        errors: Literal["return"],
        connection: object = None,
    ) -> list[Job | AsyncSchedError]: ...

    async def add_jobs(
        self,
        specs: Sequence[JobSpec],
        *,
        on_conflict: OnConflict = "error",
        errors: Literal["raise", "return"] = "raise",
        connection: object = None,
    ) -> Any:
        """Add many jobs in few round trips; all of them are checked before any is written.

        With ``errors="return"`` what is wrong with one stands in its place in the answer, and the others are added.
        *connection* is that of ``add_job``.
        """
        return await self._intake.add(specs, on_conflict, errors, connection)

    @overload
    async def enqueue(
        self, task: Task[P, Any] | Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> Receipt: ...

    @overload
    async def enqueue(self, task: str, /, *args: Any, **kwargs: Any) -> Receipt: ...

    async def enqueue(self, task: Any, /, *args: Any, **kwargs: Any) -> Receipt:
        """Run *task* with these arguments as soon as may be; for policies use ``task.options(...).bind(...)`` and add_job."""
        job = await self.add_job(task, args=args, kwargs=kwargs)
        return self._receipt(job, job.next_fire_time)

    async def receipt(
        self, job_id: str, fire_time: datetime | None = None, *, store: str | None = None
    ) -> Receipt:
        """The receipt of a run again, of a job that is stored still or has run; without *fire_time* of its latest or next one."""
        runs = await self.history.runs(job_id, limit=1)
        with contextlib.suppress(JobLookupError):
            job = await self.get_job(job_id, store=store)
            is_over = runs and job.state == "failed"
            return self._receipt(job, fire_time or (runs[0].fire_time if is_over else job.next_fire_time))
        if not runs:
            raise JobLookupError(f"no job {job_id!r} is stored, and none has run", job_id=job_id)
        alias = store or next(iter(self._engine.stores))
        return Receipt(
            job_id=job_id,
            store=alias,
            task=runs[0].task,
            fire_time=fire_time or runs[0].fire_time,
            _calls=self,
        )

    def _receipt(self, job: Job, fire_time: datetime | None) -> Receipt:
        if fire_time is None:
            # It runs at this moment.
            fire_time = next((run.fire_time for run in self.running(job.id)), self.now())
        return Receipt(job_id=job.id, store=job.store, task=job.task, fire_time=fire_time, _calls=self)

    async def runs_at(self, job_id: str, fire_time: datetime, *, is_asked: bool = False) -> list[Run]:
        """The attempts that the history has of one fire time of a job, the last one first. With *is_asked* those of another one
        where there are none: of the fire time that was pending when a run was asked for at that instant, which was that run."""
        found: list[Run] = []
        met: Run | None = None
        last: Run | None = None
        while page := await self.history.runs(job_id, before=last):
            found += [run for run in page if run.fire_time == fire_time]
            met = next((run for run in page if run.due_at == fire_time), met)
            last = page[-1]
            if (last.finished_at or last.fire_time) < fire_time:
                break
        return await self.runs_at(job_id, met.fire_time) if is_asked and met and not found else found

    async def standing(self, job_id: str, fire_time: datetime, *, store: str | None = None) -> Standing:
        """What the store says of a fire time that has not ended; raises JobLookupError."""
        return await self._desk.standing(job_id, store, to_instant(fire_time, "fire_time"))

    # -- reading -------------------------------------------------------------------------------------------------------

    async def get_job(self, id: str, *, store: str | None = None) -> Job:
        """The job of that id; raises JobLookupError."""
        shelf, _ = await self._engine.find(id, store)
        return await shelf.job(id)

    async def get_jobs(
        self,
        *,
        store: str | None = None,
        queue: str | None = None,
        task: str | Task[..., Any] | None = None,
        tags: Sequence[str] = (),
        id_prefix: str | None = None,
        state: JobState | None = None,
        due_before: datetime | None = None,
        limit: int | None = None,
        after: Job | str | None = None,
    ) -> list[Job]:
        """The jobs that match, by next fire time, those without one last, paused ones at the very end.

        *limit* and *after* (the last job of the page before) page through them by wake time: there a job that runs now stands
        where its lease ends, and a failed one where it will be removed.
        """
        query = query_of(
            queue=queue, task=task, tags=tags, id_prefix=id_prefix, state=state, due_before=due_before
        )
        return await self._desk.jobs(query, store, limit, after)

    def running(self, job_id: str | None = None) -> list[Run]:
        """The runs that are under way in this instance, of one job or of all."""
        self._engine.check_running()
        executions = [
            e for worker in self._engine.workers.values() for e in worker.held.values() if e.end is None
        ]
        return [e.as_run() for e in executions if job_id is None or base_id(e.record.id) == job_id]

    async def wait_job(
        self,
        id: str,
        timeout: Duration | None = None,
        *,
        store: str | None = None,
        fire_time: datetime | None = None,
    ) -> Job | None:
        """Wait until nothing of the job is under way: a recurring job's run has ended, a one-shot has run. With *fire_time* also
        until that fire time of a recurring job is not tried again.

        Returns the job, or None once it is gone; raises TimeoutError after *timeout*.
        """
        limit_s = None if timeout is None else to_seconds(timeout, "timeout")
        fire = None if fire_time is None else to_instant(fire_time, "fire_time")
        try:
            return await self._desk.wait(id, limit_s, store, fire)
        except JobLookupError:
            if await self._desk.has_run(id):
                return None
            raise

    def now(self) -> datetime:
        """The default store's clock, as far as it is known here; every instant is by it."""
        self._engine.check_running()
        return to_datetime(self._engine.shelf("default").now())

    def clock_skew(self, store: str = "default") -> ClockSkew:
        """How far the store's clock is from this host's. Jobs go by the store's, so that instances need not agree."""
        self._engine.check_running()
        self._engine.store(store)
        return self._engine.store_clocks[store].skew()

    async def next_fire_time(self) -> datetime | None:
        """When the earliest job of all stores is due; None: nothing is planned."""
        earliest = await self._desk.earliest()
        return None if earliest is None else earliest.next_fire_time

    async def explain(self, id: str, count: int = 5, *, store: str | None = None) -> Explanation:
        """What a job waits for or what holds it now, and its next *count* runs with their reasons. Raises JobLookupError."""
        shelf, record = await self._engine.find(id, store)
        job = self._engine.composer.job(record, shelf.alias)
        return explain(record, job, await self._around(shelf, record), count)

    async def why_not(self, id: str, at: datetime, *, store: str | None = None) -> WhyNot:
        """Why a job did not run at the fire time *at* (an aware datetime), by its history: or that it did, or will."""
        instant = to_datetime(to_instant(at, "at"))
        record: Record | None = None
        around: Around | None = None
        children: Sequence[Record] = ()
        with contextlib.suppress(JobLookupError):
            shelf, record = await self._engine.find(id, store)
            around = await self._around(shelf, record)
            ids = self._engine.composer.family(record)
            children = list((await shelf.store.get(ids)).values()) if ids else ()
        # The history last: what ends meanwhile is in it.
        runs, decisions = await self.runs_at(id, instant), await self.history.decisions(id, limit=_DECISIONS)
        if record is None and not decisions and not await self.history.runs(id, limit=1):
            raise JobLookupError(f"no job {id!r} is stored, and the history knows none", job_id=id)
        return why_not(instant, runs, decisions, record, around, children)

    async def _around(self, shelf: Shelf, record: Record) -> Around:
        engine, marked = self._engine, queue_mark(record.queue)
        pause = None
        if engine.state == "paused":
            pause = "this scheduler is paused"
        elif marked in await shelf.store.get([marked]):
            pause = f"queue {record.queue!r} is paused for all instances"
        elif (worker := engine.workers.get(shelf.alias)) is not None and worker.is_paused:
            pause = f"store {shelf.alias!r} is paused in this scheduler"
        elif worker is not None and record.queue in worker.paused_here:
            pause = f"queue {record.queue!r} is paused in this scheduler"
        sharers: Sequence[str] = ()
        if record.hold is not None and is_limit(record.hold):
            name = record.hold.removeprefix(LIMITS)
            sharers = await sharers_of(shelf.store, name, engine.registry.tasks, engine.rules)
        tasks = engine.registry.tasks
        # Whoever has no tasks at all, as the command line, has nothing to say of this one.
        is_known = not tasks or record.task in tasks or record.task in OUR_TASKS
        return Around(shelf.now(), engine.composer.rules(record), is_known, pause, sharers)

    # -- changing ------------------------------------------------------------------------------------------------------

    async def update_job(self, id: str, *, store: str | None = None, **changes: Unpack[JobChanges]) -> Job:
        """Change fields and policies of a job: name, args, kwargs, trigger, queue, priority, tags, metadata, retry, timeout ...

        A run under way keeps what it was started with. An unchanged trigger keeps its progress; a delay counts from
        this call.
        """
        shelf, record = await self._engine.find(id, store)
        task = self._engine.registry.tasks.get(record.task) or OUR_TASKS.get(record.task)
        return await self._change(
            shelf, id, lambda r: self._engine.editor.edit(r, task, changes, shelf.now()), JobUpdated
        )

    async def reschedule_job(self, id: str, trigger: TriggerLike, *, store: str | None = None) -> Job:
        """Give a job another trigger; its fire times are computed anew."""
        shelf, _ = await self._engine.find(id, store)
        return await self._change(
            shelf, id, lambda r: self._engine.editor.reschedule(r, trigger, shelf.now()), JobUpdated
        )

    async def pause_job(self, id: str, *, store: str | None = None) -> Job:
        """Let a job rest until ``resume_job``; a run under way ends as it would."""
        shelf, _ = await self._engine.find(id, store)
        return await self._change(
            shelf, id, lambda r: self._engine.editor.pause(r, shelf.now()), JobPausedEvent
        )

    async def resume_job(self, id: str, *, store: str | None = None) -> Job:
        """End a job's rest: a recurring one goes on at its next fire time from now, without a backlog, unless its run was under
        way all the time. A failed one-shot and a quarantined job are tried again."""
        shelf, _ = await self._engine.find(id, store)
        return await self._change(shelf, id, lambda r: self._engine.editor.resume(r, shelf.now()), JobResumed)

    async def run_job(self, id: str, force: bool = False, *, store: str | None = None) -> Receipt:
        """Run a job now, beside its schedule, which stays as it is; after the run under way if there is one.

        Where a further attempt is pending, that is the run. A paused job raises JobPaused unless *force*.
        """
        shelf, _ = await self._engine.find(id, store)
        now = 0.0

        def request(record: Record) -> Update:
            nonlocal now
            now = shelf.now()
            return self._engine.editor.request(record, now, force=force)

        job, _ = await shelf.change(id, request)
        return self._receipt(job, to_datetime(now))

    async def backfill(
        self,
        id: str,
        start: datetime,
        end: datetime | None = None,
        *,
        rate: str | None = None,
        overlap: BackfillOverlap = "queue_all",
        max_instances: int | None = None,
        again: bool = False,
        limit: int = 10_000,
        backfill_id: str | None = None,
        queue: str | None = None,
        priority: int | None = None,
        dry_run: bool = False,
        store: str | None = None,
    ) -> Backfill:
        """Run the fire times that the job's trigger names in [*start*, *end*), which may lie before it was added; until now
        unless *end* is given.

        They are run by a job of its own with the same task, arguments and policies, tagged ``backfill``, beside the regular
        schedule, the oldest first. *rate* ("10/minute") spaces the starts evenly; with ``overlap="allow"`` up to *max_instances*
        (4) run at once. Unless *again*, those are left out that have succeeded by the history, and those that the schedule has
        not come to yet. More than *limit* are refused; *dry_run* counts, and adds nothing.

        Raises JobLookupError, ConflictError where this range, or a part of it, is being filled already (not with *again* or a
        *backfill_id*), and DefinitionError for a range that is reversed or ends in the future, and for a trigger that names no
        times of the past.
        """
        shelf, record = await self._engine.find(id, store)
        order = Order(
            start, end, rate, overlap, max_instances, again, limit, backfill_id, queue, priority, dry_run
        )
        return await Backfills(self._engine).make(shelf, record, order)

    async def get_backfill(self, id: str, *, store: str | None = None) -> Backfill:
        """A backfill that is under way, by its id. Raises JobLookupError for one that has finished or was cancelled."""
        return await Backfills(self._engine).find(id, store)

    async def cancel_job(self, id: str, *, store: str | None = None) -> None:
        """End the run of a job that is under way, in whatever instance. Raises JobLookupError, or JobNotRunning.

        The run is cancelled as by a timeout: at once if it is in this instance, or if the store has push hints, else when its
        instance renews its lease the next time, which is within a third of ``lease``. It is settled as cancelled, and not
        made again; a recurring job goes on at its next fire time, a one-shot is over.
        """
        shelf, record = await self._engine.find(id, store)
        ids = [record.id, *self._engine.composer.family(record)]
        if not await self._cancel(shelf, ids, None):
            raise JobNotRunning(f"job {id!r} has no run under way", job_id=id, store=shelf.alias)

    async def cancel_run(self, run_id: str, *, store: str | None = None) -> None:
        """End that very run, and no later one, as ``cancel_job`` does. Raises RunLookupError for a run that nobody knows of, and
        JobNotRunning for one that has ended."""
        id, _, fence = run_id.rpartition("@")
        if fence.isdecimal() and len(fence) <= _LONGEST_FENCE and base_id(id):
            # A run beside others may outlive its job.
            for shelf in self._engine.some_shelves(store):
                if await self._cancel(shelf, [id], int(fence)):
                    return
        run = await self.history.run(run_id)
        raise JobNotRunning(f"run {run_id!r} has ended already: {run.outcome}", job_id=run.job_id)

    async def _cancel(self, shelf: Shelf, ids: Sequence[str], fence: int | None) -> bool:
        asked = [found for id in ids if (found := await shelf.cancel(id, fence)) is not None]
        for one in asked:
            # In a store that was removed meanwhile nothing runs here.
            if (worker := self._engine.workers.get(shelf.alias)) is not None:
                worker.cancel(one)
        return bool(asked)

    async def remove_job(self, id: str, missing_ok: bool = False, *, store: str | None = None) -> bool:
        """Remove a job; a run under way may end, and has no further ones. Returns whether it was there.

        One that is not raises JobLookupError unless *missing_ok*.
        """
        try:
            shelf, record = await self._engine.find(id, store)
        except JobLookupError:
            if missing_ok:
                return False
            raise
        await shelf.remove([id])
        self._intake.run_at_start.pop((shelf.alias, id), None)
        self._engine.emit_job(JobRemoved, self._engine.composer.job(record, shelf.alias))
        return True

    async def remove_all_jobs(self, *, store: str | None = None) -> int:
        """Remove every job of one store, or of all; return how many there were."""
        return await self.remove_jobs(store=store)

    async def remove_jobs(self, *, store: str | None = None, **filters: Any) -> int:
        """Remove the jobs that match (filters as for ``get_jobs``); return how many."""
        jobs = await self._desk.matching(store, filters)
        for alias in {job.store for job in jobs}:
            await self._engine.shelves[alias].remove([job.id for job in jobs if job.store == alias])
        for job in jobs:
            self._intake.run_at_start.pop((job.store, job.id), None)
            self._engine.emit_job(JobRemoved, job)
        return len(jobs)

    async def pause_jobs(self, *, store: str | None = None, **filters: Any) -> int:
        """Pause the jobs that match (filters as for ``get_jobs``); return how many. If one cannot be paused, that is raised
        when the others have been."""
        return await self._desk.each(self.pause_job, store, filters)

    async def resume_jobs(self, *, store: str | None = None, **filters: Any) -> int:
        """Resume the jobs that match (filters as for ``get_jobs``); return how many."""
        return await self._desk.each(self.resume_job, store, filters)

    async def run_jobs(self, *, store: str | None = None, force: bool = False, **filters: Any) -> int:
        """Run the jobs that match now (filters as for ``get_jobs``); return how many. If one cannot be run (it is paused, say),
        that is raised when the others have been asked for."""

        async def run_one(id: str, *, store: str | None = None) -> Receipt:
            return await self.run_job(id, force, store=store)

        return await self._desk.each(run_one, store, filters)

    async def _change(
        self, shelf: Shelf, id: str, edit: Callable[[Record], Any], kind: type[JobEvent]
    ) -> Job:
        job, is_changed = (
            await shelf.change_family(id, edit)
            if kind in (JobPausedEvent, JobResumed)
            else await shelf.change(id, edit)
        )
        if is_changed:
            self._engine.emit_job(kind, job)
        return job
