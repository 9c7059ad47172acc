"""What a worker does with the records of workflows that it claims: it moves executions on, and sees to it that none hangs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from weakref import WeakValueDictionary

from msgspec.structs import replace

from asyncsched.codec import decode_cursor, decode_definition, encode
from asyncsched.contract import JobStore, Record, Settlement, Update
from asyncsched.currentrun import current_run
from asyncsched.definition import Definition, FlowLink
from asyncsched.endings import end_in_log
from asyncsched.errors import NewerFormatError, SerializationError, StoreError, StoreUnavailable
from asyncsched.events import Bus, WorkflowCompleted
from asyncsched.flowform import EndForm, FlowForm, StepForm, opened_by, told
from asyncsched.flows import (
    END_TASK,
    FLOW_TASK,
    FLOWS,
    KEPT,
    cursor_of,
    end_id,
    end_of,
    end_record,
    flow_body,
    flow_form,
    flow_id,
    is_step_of,
    step_record,
)
from asyncsched.link import Link
from asyncsched.plan import synced, wake_of
from asyncsched.registry import AnyTask, Task
from asyncsched.units import to_datetime

__all__ = ["OUR_TASKS", "START_TASK", "FlowWork", "completed", "update_of"]

#: Records that one settlement spawns at most, and after so many bytes of them no other: some stores bound what one
#: transaction writes.
_SPAWNS = 32
_SPAWNED_BYTES = 128 * 1024
#: Executions that one job tells its end to, for the same reason; further ones look for it now and then.
_LINKS = 32
#: What is kept of an error where the store has no room for all of it.
_SHORT_ERROR = 100
#: A job's end that was written down by another instance may seem to be so much older than the job.
_SKEW_S = 1.0
#: After so long an execution is looked at, in case that a step ended without telling; then half as often each time.
_FIRST_LOOK_S = 5.0
_LONGEST_LOOK_S = 60.0
#: While the steps of a cancelled one are ending.
_CANCEL_LOOK_S = 1.0
#: After something went wrong.
_AGAIN_S = 30.0


async def _start(workflow: bytes) -> str:
    """What a job of a workflow runs: it starts an execution, and returns its id, which is the same however often it is run."""
    run = current_run()
    id: str = await run.scheduler.start_packed(workflow, run)
    return id


START_TASK = Task(_start, "asyncsched:workflow")
#: What every worker can run, though nobody has registered it.
OUR_TASKS: Mapping[str, AnyTask] = {START_TASK.name: START_TASK}


class FlowWork:
    """For one store. *cancel* ends a run that is under way here."""

    def __init__(
        self,
        store: JobStore,
        alias: str,
        link: Link,
        bus: Bus,
        now: Callable[[], float],
        cancel: Callable[[Record], None],
        logger: logging.Logger,
    ) -> None:
        self._store = store
        self._alias = alias
        self._link = link
        self._bus = bus
        self._now = now
        self._cancel = cancel
        self._logger = logger
        #: Who tells one execution something stands in its line, so that many ends at once do not all race for one version.
        self._lines: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def takes(self, record: Record) -> bool:
        """Whether *record* is one of ours."""
        return record.task in (FLOW_TASK, END_TASK)

    async def settlement(self, record: Record, definition: Definition) -> Settlement:
        """Do what the claimed *record* asks for; how its claim ends. What fails is tried again later, and logged."""
        work = self._told if record.task == END_TASK else self._looked_at
        try:
            return await work(record, definition)
        except Exception:
            self._logger.exception("workflow record %r could not be worked on; it will be later", record.id)
            wake_at = round(self._now() + _AGAIN_S, 6)
            return replace(_settlement(record), wake_at=wake_at, hand_back=True)

    # -- a step has ended ----------------------------------------------------------------------------------------------

    async def _told(self, record: Record, definition: Definition) -> Settlement:
        """Write down the end of the step, then spawn what may run by it. Repeated after a crash it does the rest."""
        [link] = definition.flows
        end = end_of(definition)
        if end.result_error is not None and not link.is_own:
            # It was told by a look at the job, which does not keep its result.
            logged = await self._logged_end(link.step, 0.0)
            end = logged if logged is not None and logged.fence <= end.fence else end
        line = self._lines.setdefault(link.id, asyncio.Lock())
        async with line:
            form = await self._written(record, link, end)
        done = decode_cursor(record.cursor).request
        opened = [] if form is None else opened_by(form, link.step)
        settled = _settlement(record)
        if form is None or done >= len(opened):
            return replace(settled, delete=True)
        now = self._now()
        taken, spawn = _some_of(form, opened[done:], link, now)
        done += taken
        if done >= len(opened):
            return replace(settled, delete=True, spawn=spawn)
        return replace(settled, spawn=spawn, wake_at=now, cursor=cursor_of(done))

    async def _written(self, record: Record, link: FlowLink, end: EndForm) -> FlowForm | None:
        """The execution with that end in it; None: there is nothing more to do about it."""
        has_finished = False
        while True:
            flow = await self._read(link)
            if flow is None:
                return None
            form = flow_form(flow)
            pair = form.find(link.step)
            if pair is None:
                return None
            if pair[1].state != "open":
                if pair[1].told != record.birth:
                    # Told twice.
                    return None
                # Written, and the reply was lost, or the claim that wrote it.
                if has_finished:
                    self._completed(link.id, form)
                return form
            new = told(form, link.step, end, record.birth, self._now())
            # A job that it waited for may end after it.
            has_finished = form.finished_at is None and new.finished_at is not None
            if await self._link.persist(partial(self._update, flow, new)):
                if has_finished:
                    self._completed(link.id, new)
                return new

    async def _update(self, flow: Record, form: FlowForm) -> bool:
        """Whether the new state was written. One that the store finds too large is written without results, and with
        short errors."""
        try:
            return await self._store.update(update_of(flow, form, self._now())) is not None
        except StoreUnavailable:
            raise
        except StoreError as error:
            bare = _without_results(form)
            if bare == form:
                raise
            self._logger.warning("workflow %s keeps no results: %s", flow.id, error)
            return await self._store.update(update_of(flow, bare, self._now())) is not None

    def _completed(self, id: str, form: FlowForm) -> None:
        if self._bus.subscriptions:
            self._bus.emit(completed(id, self._alias, form))

    # -- a look at the execution ---------------------------------------------------------------------------------------

    async def _looked_at(self, record: Record, definition: Definition) -> Settlement:
        """Begin it, see whether a step ended and could not tell, or remove it when its time has come."""
        form, cursor, now = flow_form(record), decode_cursor(record.cursor), self._now()
        settled = _settlement(record)
        if form.finished_at is not None:
            removal = _removal(form)
            if removal is not None and removal <= now:
                return replace(settled, delete=True)
            return replace(settled, wake_at=removal, hold=KEPT, cursor=cursor_of(cursor.request))
        link = FlowLink(record.id.removeprefix(FLOWS), record.birth, "", record.queue, form.name)
        first = opened_by(form, "")
        done, looks = cursor.request, cursor.runs
        if done < len(first):
            taken, spawn = _some_of(form, first[done:], link, now)
            some = first[done : done + taken]
            foreign = [step for step in some if step.is_foreign and form.cancelled_at is None]
            jobs = await self._get([step.job_id for step in foreign])
            for step in foreign:
                if (end := await self._linked(step, link, jobs.get(step.job_id))) is not None:
                    telling = end_record(replace(link, step=step.name, is_own=False), end, "begun", now)
                    spawn = (*spawn, telling)
            done += taken
            wake_at = now if done < len(first) or form.cancelled_at is not None else now + _FIRST_LOOK_S
        else:
            spawn = tuple(await self._unheard(record, link, form))
            looks += 1
            wake_at = now + min(_FIRST_LOOK_S * 2 ** min(looks, 10), _LONGEST_LOOK_S)
            if len(spawn) >= _SPAWNS:
                wake_at = now
            elif form.cancelled_at is not None:
                wake_at = now + _CANCEL_LOOK_S
        wake_at = round(wake_at, 6)
        return replace(settled, spawn=spawn, wake_at=wake_at, cursor=cursor_of(done, looks))

    async def _linked(self, step: StepForm, link: FlowLink, job: Record | None) -> EndForm | None:
        """Have the end of a job that is no step told; or how it has ended, if it has. One that too many wait for is not asked."""
        mine = replace(link, step=step.name, is_own=False)
        while True:
            if job is None or job.birth != step.birth:
                since = step.since - _SKEW_S
                return await self._logged_end(step.job_id, since) or _unknown_end(step.job_id, self._now())
            definition, cursor, now = decode_definition(job.body), decode_cursor(job.cursor), self._now()
            if definition.trigger.recurs:
                return _endless(job, now)
            if mine in definition.flows:
                return None
            over = synced(definition, cursor).over
            rests = over is not None and over[0] == "paused" and job.holder is None
            if job.hold == "failed" or rests:
                return EndForm(
                    "failed", cursor.tally.last_error, job.settled, finished=cursor.tally.last_failure
                )
            if len(definition.flows) >= _LINKS:
                return None
            update = Update(
                id=job.id,
                version=job.version,
                body=encode(replace(definition, flows=(*definition.flows, mine))),
                queue=job.queue,
                priority=job.priority,
                wake_at=wake_of(definition, cursor, now) if job.hold is None else job.wake_at,
                hold=job.hold,
            )
            if await self._link.persist(partial(self._store.update, update)) is not None:
                return None
            job = (await self._get([step.job_id])).get(step.job_id)

    async def _logged_end(self, job_id: str, since: float) -> EndForm | None:
        """How a job ended that is gone, by its log: what is older than *since* was a job of the same id before it."""
        entries = await self._link.persist(lambda: self._store.runs(job_id, ("run",), 1))
        if not entries or entries[0].at < since:
            return None
        try:
            return end_in_log(entries[0])
        except NewerFormatError:
            # Of a newer instance, which can tell.
            raise
        except SerializationError as error:
            return EndForm(
                "failed",
                f"how job {job_id!r} ended cannot be read: {error}",
                entries[0].fence,
                finished=self._now(),
            )

    async def _unheard(self, flow: Record, link: FlowLink, form: FlowForm) -> list[Record]:
        """Records that tell the ends of those steps which ended without a settlement: removed, quarantined, called off. As
        many as one settlement takes; the others are for the next look.

        The order of the reads is the proof. Whoever opened a step is gone: then its job has been there. The job is gone as well:
        then it has ended, or was removed. If it has ended, that is told by a record that is there still, beside which no other
        is spawned, or it has been written down, and then what is told here is told twice, which changes nothing.
        """
        opened = [(step, state) for step, state in form.items() if state.state == "open"]
        parents = {step.name: end_id(link.id, state.by) for step, state in opened if state.by}
        mine = {step.name: end_id(link.id, step.name) for step, _ in opened}
        waiting = await self._get([*parents.values(), *mine.values()])
        there = [
            step
            for step, _ in opened
            if parents.get(step.name) not in waiting and mine[step.name] not in waiting
        ]
        jobs = await self._get([step.job_id for step in there])
        ends: dict[str, EndForm] = {}
        for step in there:
            end = await self._silent_end(step, link, jobs.get(step.job_id), form)
            if end is not None:
                ends[step.name] = end
            if len(ends) >= _SPAWNS:
                break
        now, foreign = self._now(), {step.name for step in there if step.is_foreign}
        return [
            end_record(replace(link, step=name, is_own=name not in foreign), end, f"look-{flow.fence}", now)
            for name, end in ends.items()
        ]

    async def _silent_end(
        self, step: StepForm, link: FlowLink, job: Record | None, form: FlowForm
    ) -> EndForm | None:
        """How a step has ended that has not told it, as far as that can be seen of its job; None: it goes on."""
        now = self._now()
        if job is None and form.cancelled_at is not None and not step.is_foreign:
            return _called_off(0, now)
        if job is None and not step.is_foreign:
            return _unknown_end(step.job_id, now)
        if job is None or (step.is_foreign and job.hold != "quarantined"):
            return await self._linked(step, link, job)
        if not step.is_foreign and not is_step_of(job, link):
            return EndForm("failed", f"another job has the id {step.job_id!r}", finished=now)
        if job.hold == "quarantined":
            return EndForm("failed", f"job {step.job_id!r} is quarantined", fence=job.fence, finished=now)
        if _recurs(job):
            return _endless(job, now)
        if form.cancelled_at is None or step.is_foreign:
            return None
        if job.holder is not None and job.wake_at is not None and job.wake_at > now:
            await self._end_run(job, now)
            return None
        return _called_off(job.settled, now) if await self._is_taken_away(job, now) else None

    async def _is_taken_away(self, job: Record, now: float) -> bool:
        """Remove the job of a step that must not begin any more. One that was claimed meanwhile is left to the next look."""
        definition = replace(decode_definition(job.body), paused=True, requests=(), updated_at=now)
        update = Update(
            id=job.id,
            version=job.version,
            body=encode(definition),
            queue=job.queue,
            priority=job.priority,
            wake_at=None,
            hold="paused",
            revoke=job.holder is not None,
        )
        stopped = await self._link.persist(lambda: self._store.update(update))
        if stopped is None or stopped.holder is not None:
            return False
        await self._link.persist(lambda: self._store.remove([job.id]))
        return True

    async def _end_run(self, job: Record, now: float) -> None:
        """Ask for the end of a step's run, in whatever instance. Whether it is heard, the next look tells."""
        definition = decode_definition(job.body)
        if definition.cancel == job.fence:
            return
        update = Update(
            id=job.id,
            version=job.version,
            body=encode(replace(definition, cancel=job.fence, updated_at=now)),
            queue=job.queue,
            priority=job.priority,
            wake_at=now,
            hold=job.hold,
        )
        updated = await self._link.persist(lambda: self._store.update(update))
        if updated is not None and updated.fence == job.fence and updated.holder is not None:
            self._cancel(updated)

    # -- reading -------------------------------------------------------------------------------------------------------

    async def _read(self, link: FlowLink) -> Record | None:
        """The record of the execution, if it is there still."""
        id = flow_id(link.id)
        flow = (await self._get([id])).get(id)
        return flow if flow is not None and flow.birth == link.birth else None

    async def _get(self, ids: Sequence[str]) -> dict[str, Record]:
        return await self._link.persist(lambda: self._store.get(ids)) if ids else {}


def update_of(flow: Record, form: FlowForm, now: float, *, is_due: bool = False) -> Update:
    """The update that writes an execution's new state; *is_due*: and has it looked at now."""
    # The end of a claim's lease is not when it is to be looked at.
    wake_at = round(now + _FIRST_LOOK_S, 6) if flow.holder is not None else flow.wake_at
    if form.finished_at is not None:
        wake_at = _removal(form)
    elif is_due:
        wake_at = now
    return Update(
        id=flow.id,
        version=flow.version,
        body=flow_body(form, now),
        queue=flow.queue,
        priority=flow.priority,
        wake_at=wake_at,
        hold=None if form.finished_at is None else KEPT,
    )


def completed(id: str, store: str, form: FlowForm) -> WorkflowCompleted:
    """The event that an execution has ended."""
    finished = form.finished_at or form.created_at
    return WorkflowCompleted(
        at=to_datetime(finished),
        store=store,
        id=id,
        name=form.name,
        outcome=form.outcome or "",
        steps={step.name: state.state for step, state in form.items()},
        duration=finished - form.created_at,
    )


def _settlement(record: Record) -> Settlement:
    return Settlement(record.id, record.fence, record.holder or "", record.version)


def _removal(form: FlowForm) -> float | None:
    if form.finished_at is None or form.keep_s is None:
        return None
    return round(form.finished_at + form.keep_s, 6)


def _some_of(
    form: FlowForm, steps: Sequence[StepForm], link: FlowLink, now: float
) -> tuple[int, tuple[Record, ...]]:
    """As many of these open steps as one settlement takes, how many that are, and their jobs; none begins once the execution
    was called off."""
    spawn: list[Record] = []
    size = taken = 0
    for step in steps[:_SPAWNS]:
        if size >= _SPAWNED_BYTES:
            break
        taken += 1
        if step.body and form.cancelled_at is None:
            job = step_record(form, step, link, now)
            spawn.append(job)
            size += len(job.body)
    return taken, tuple(spawn)


def _called_off(fence: int, now: float) -> EndForm:
    return EndForm("cancelled", "the workflow was cancelled", fence=fence, finished=now)


def _recurs(job: Record) -> bool:
    try:
        return decode_definition(job.body).trigger.recurs
    except SerializationError:
        # Somebody else can tell, or it is about to be quarantined.
        return False


def _endless(job: Record, now: float) -> EndForm:
    """It was given another trigger since."""
    return EndForm("failed", f"job {job.id!r} recurs now, so it has no end", fence=job.settled, finished=now)


def _unknown_end(job_id: str, now: float) -> EndForm:
    return EndForm("cancelled", f"job {job_id!r} was removed", finished=now)


def _without_results(form: FlowForm) -> FlowForm:
    states = tuple(
        state if state.end is None else replace(state, end=_shortened(state.end)) for state in form.states
    )
    return replace(form, states=states)


def _shortened(end: EndForm) -> EndForm:
    if end.error is not None and len(end.error) > _SHORT_ERROR:
        end = replace(end, error=end.error[:_SHORT_ERROR])
    return replace(end, result=b"", result_error="the store has no room for it") if end.result else end
