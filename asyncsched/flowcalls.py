"""What users do with workflows: start an execution, see how it stands, wait for it, call it off."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, Literal, ParamSpec, Protocol, cast, get_args, overload

from msgspec.structs import replace

from asyncsched.codec import decode_definition
from asyncsched.contract import Filter, Record, Update
from asyncsched.currentrun import CurrentRun
from asyncsched.engine import Engine
from asyncsched.errors import (
    AsyncSchedError,
    ConflictingIdError,
    DefinitionError,
    JobLookupError,
    SerializationError,
    WorkflowFailed,
    WorkflowLookupError,
)
from asyncsched.flowform import END_STATES, FlowForm, StepForm, StepState, begun, cancelled
from asyncsched.flows import FLOW_TASK, FLOWS, KEPT, end_id, flow_form, flow_id, flow_record, unpacked
from asyncsched.flowwork import completed, update_of
from asyncsched.history import History
from asyncsched.ids import check_id, check_name, new_id
from asyncsched.intake import Intake
from asyncsched.model import Run
from asyncsched.outlast import heeding
from asyncsched.registry import Task, task_name
from asyncsched.shelf import Shelf
from asyncsched.units import Duration, to_datetime, to_seconds
from asyncsched.workflow import After, StepStatus, Workflow, WorkflowState, WorkflowStatus

__all__ = ["FlowCalls", "WorkflowRun"]

P = ParamSpec("P")

#: How often to look whether another instance has moved an execution on: soon at first, then less and less often.
_LOOKS_S = (0.02, 0.5)
_PAGE = 200


class WorkflowRun:
    """An execution of a workflow. It can be had again, in another process too, by ``scheduler.workflow(id)``."""

    def __init__(self, id: str, name: str, store: str, calls: _Calls) -> None:
        self.id = id
        #: The workflow's.
        self.name = name
        self.store = store
        self._calls = calls

    def __repr__(self) -> str:
        return f"<WorkflowRun {self.id} of {self.name}>"

    async def status(self) -> WorkflowStatus:
        """How it stands; raises WorkflowLookupError once it was forgotten."""
        return await self._calls.workflow_status(self.id, store=self.store)

    async def wait(self, timeout: Duration | None = None) -> WorkflowStatus:
        """Wait for its end and return how it ended; raises TimeoutError after *timeout* (seconds or timedelta), after which it
        may be called again."""
        return await self._calls.wait_workflow(self.id, timeout, store=self.store)

    async def result(self, timeout: Duration | None = None) -> Mapping[str, Any]:
        """Wait for its end and return what the steps returned that succeeded, by name; raises WorkflowFailed if it did not
        succeed, and TimeoutError as ``wait`` does. A result of more than 32 KiB is None here:
        ``StepStatus.result_error`` says so, and ``runs`` has it."""
        status = await self.wait(timeout)
        if status.state != "succeeded":
            bad = [
                f"{s.name!r} ({s.error})" for s in status.steps.values() if s.state in ("failed", "cancelled")
            ]
            raise WorkflowFailed(
                f"workflow {self.name!r} {self.id} was cancelled"
                if status.state == "cancelled"
                else f"workflow {self.name!r} {self.id} failed in {', '.join(bad)}",
                status=status,
            )
        return {step.name: step.result for step in status.steps.values() if step.state == "succeeded"}

    async def cancel(self) -> bool:
        """Call it off: steps that have not begun never will, the final one included, and runs under way are cancelled,
        in whatever instance. Returns at once, with False if it had ended already; ``wait`` waits until the last run has ended."""
        return await self._calls.cancel_workflow(self.id, store=self.store)

    async def runs(self, limit: int = 50) -> list[Run]:
        """The runs of its steps that the history has, newest first."""
        return await self._calls.workflow_runs(self.id, limit, store=self.store)


class _Calls(Protocol):
    """The scheduler's, as far as executions need them."""

    async def workflow_status(self, id: str, *, store: str | None = None) -> WorkflowStatus: ...

    async def wait_workflow(
        self, id: str, timeout: Duration | None = None, *, store: str | None = None
    ) -> WorkflowStatus: ...

    async def cancel_workflow(self, id: str, *, store: str | None = None) -> bool: ...

    async def workflow_runs(self, id: str, limit: int = 50, *, store: str | None = None) -> list[Run]: ...


class FlowCalls:
    """The part of a scheduler that is about workflows."""

    _engine: Engine
    _intake: Intake
    history: History

    async def start_workflow(
        self,
        workflow: Workflow,
        *,
        id: str | None = None,
        store: str = "default",
        queue: str = "default",
        priority: int = 0,
        retention: Duration | None = None,
        on_conflict: Literal["error", "keep"] = "error",
        connection: object = None,
    ) -> WorkflowRun:
        """Start an execution of *workflow*; it goes on though this process dies, in whatever instance serves *queue*.

        A step is a job of the id ``ID/STEP``. All is checked before anything is written: raises WorkflowError, and what
        ``add_job`` raises. An *id* that is taken raises ConflictingIdError, or with "keep" that execution is returned. After its
        end it is kept for *retention* (unless given as long as the history, ``Retention(age=)``). With *connection* it is started
        in the user's own transaction, as by ``add_job``.
        """
        self._engine.check_running()
        if on_conflict not in ("error", "keep"):
            raise DefinitionError(f'on_conflict must be "error" or "keep", not {on_conflict!r}')
        if not isinstance(workflow, Workflow):
            raise DefinitionError(
                f"start_workflow() takes a Workflow, not {workflow!r}: for a task there are enqueue() and add_job()"
            )
        form = self._intake.workflow(workflow, store)
        id = new_id() if id is None else check_id(id, "a workflow execution's id")
        keep_s = None if retention is None else to_seconds(retention, "retention")
        shelf = self._engine.shelf(store)
        if connection is None:
            form = await self._with_foreign(shelf, form)
            await self._begin(shelf, form, id, queue, priority, keep_s, on_conflict)
        else:
            async with shelf.within(connection) as joined:
                form = await self._with_foreign(joined, form)
                await self._begin(joined, form, id, queue, priority, keep_s, on_conflict)
        return WorkflowRun(id, workflow.name, store, self)

    @overload
    async def enqueue_after(
        self, after: After, task: Task[P, Any] | Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> WorkflowRun: ...

    @overload
    async def enqueue_after(self, after: After, task: str, /, *args: Any, **kwargs: Any) -> WorkflowRun: ...

    async def enqueue_after(self, after: After, task: Any, /, *args: Any, **kwargs: Any) -> WorkflowRun:
        """Run *task* with these arguments after the end of one-shots: *after* takes Jobs, Receipts, and conditions of them, all
        of which must hold (a bare one: it succeeded). They may have ended by now, if the history knows how. It is a workflow of
        the one step ``then``; each job before it stands in its results by its id.

        Raises JobLookupError for a job that nobody knows of, and DefinitionError for a recurring one, which has no end.
        """
        for one in (
            [after] if isinstance(after, str) else after if isinstance(after, list | tuple | set) else []
        ):
            if isinstance(one, str):
                raise DefinitionError(
                    f"enqueue_after() takes Jobs and Receipts, not the id {one!r}: await get_job({one!r}) or receipt({one!r})"
                )
        flow = Workflow(task if isinstance(task, str) else task_name(getattr(task, "function", task)))
        flow.step("then", task, after=after, args=args, kwargs=kwargs)
        store = next(iter(flow.jobs.values()), "default")
        return await self.start_workflow(flow, store=store)

    async def _with_foreign(self, shelf: Shelf, form: FlowForm) -> FlowForm:
        """The form with the births of the jobs that are waited for, so that no other of the same id is taken for one of them.
        Raises JobLookupError or DefinitionError for one that will never end, as far as that is known."""
        ids = [step.job_id for step in form.steps if step.is_foreign]
        if ids and not self._engine.options.keeps_history:
            raise DefinitionError(
                f"workflow {form.name!r} waits for job {ids[0]!r}, and how that ended only the history may tell: make it a "
                "step, or leave out history=False",
                job_id=ids[0],
                store=shelf.alias,
            )
        there = await shelf.find_all(ids)
        for id in ids:
            record = there.get(id)
            if record is None:
                if not await shelf.repeat(partial(shelf.store.runs, id, ("run",), 1)):
                    raise JobLookupError(
                        f"no job {id!r} is stored in {shelf.alias!r}, and the history does not know how it ended",
                        job_id=id,
                        store=shelf.alias,
                    )
            elif self._engine.composer.job(record, shelf.alias).trigger.recurs:
                raise DefinitionError(
                    f"job {id!r} recurs, so it has no end to wait for: wait for a one-shot, or make both steps of a "
                    "workflow that has the trigger",
                    job_id=id,
                    store=shelf.alias,
                )
        steps = tuple(
            replace(step, birth=record.birth, since=decode_definition(record.body).created_at)
            if step.is_foreign and (record := there.get(step.job_id)) is not None
            else step
            for step in form.steps
        )
        return replace(form, steps=steps)

    async def start_packed(self, workflow: bytes, run: CurrentRun) -> str:
        """Start the execution that belongs to a fire time of a workflow's job; the same one however often it is asked for."""
        id = f"{run.job_id}/{run.fire_time:%Y%m%dT%H%M%S.%f}"
        form, shelf = unpacked(workflow), self._engine.shelf(run.store)
        birth = blake2b(run.idempotency_key.encode(), digest_size=16).hexdigest()
        try:
            await self._begin(shelf, form, id, run.queue, run.priority, None, "error", birth)
        except ConflictingIdError:
            # An earlier job of this id had the same instant, and this one is to have its execution too.
            id = f"{id}-{birth[:8]}"
            await self._begin(shelf, form, id, run.queue, run.priority, None, "error", birth)
        return id

    async def _begin(
        self,
        shelf: Shelf,
        form: FlowForm,
        id: str,
        queue: str,
        priority: int,
        keep_s: float | None,
        on_conflict: Literal["error", "keep"],
        birth: str | None = None,
    ) -> None:
        now = round(shelf.now(), 6)
        if keep_s is None:
            keep_s = cast("float | None", self._engine.options.retention.age)
        steps = tuple(
            replace(
                step,
                job_id=step.job_id
                if step.is_foreign
                else check_id(f"{id}/{step.name}", f"the id of the job of step {step.name!r}"),
                queue=step.queue or check_name(queue, "a queue's name"),
                priority=_priority(priority) if step.priority < 0 else step.priority,
            )
            for step in form.steps
        )
        form = begun(replace(form, created_at=now, keep_s=keep_s, steps=steps), now)
        record = flow_record(id, birth or new_id(), queue, form, now)
        if await shelf.insert([record]) and on_conflict == "error":
            raise ConflictingIdError(
                f"an execution {id!r} of a workflow is already in {shelf.alias!r}; choose another id, or on_conflict='keep'",
                store=shelf.alias,
            )

    # -- reading -------------------------------------------------------------------------------------------------------

    async def workflow(self, id: str, *, store: str | None = None) -> WorkflowRun:
        """The execution of that id; raises WorkflowLookupError."""
        shelf, record = await self._find_flow(id, store)
        return WorkflowRun(id, flow_form(record).name, shelf.alias, self)

    async def workflows(
        self,
        *,
        name: str | None = None,
        state: WorkflowState | None = None,
        store: str | None = None,
        limit: int = 100,
    ) -> list[WorkflowStatus]:
        """The executions that match, newest first."""
        if type(limit) is not int or limit < 0:
            raise DefinitionError(f"limit must be 0 or more, not {limit!r}")
        if state is not None and state not in get_args(WorkflowState):
            raise DefinitionError(f"state must be one of {', '.join(get_args(WorkflowState))}, not {state!r}")
        found: list[tuple[Shelf, Record, FlowForm]] = []
        for shelf in self._engine.some_shelves(store):
            after: Record | None = None
            where = Filter(task=FLOW_TASK, id_prefix=FLOWS)
            while page := await shelf.repeat(partial(shelf.store.page, where, _PAGE, after)):
                after = page[-1]
                some = [(shelf, record, form) for record, form in self._readable(page)]
                found += [
                    (shelf, record, form)
                    for shelf, record, form in some
                    if name in (None, form.name) and state in (None, form.outcome or "running")
                ]
                # With all of their steps they would be too many to hold, where many are kept.
                found.sort(key=lambda one: (one[2].created_at, one[1].id), reverse=True)
                del found[limit:]
        return [await self._status(shelf, record) for shelf, record, _ in found]

    async def workflow_status(self, id: str, *, store: str | None = None) -> WorkflowStatus:
        """How an execution stands; raises WorkflowLookupError."""
        return await self._status(*await self._find_flow(id, store))

    async def wait_workflow(
        self, id: str, timeout: Duration | None = None, *, store: str | None = None
    ) -> WorkflowStatus:
        """Wait for the end of an execution; raises WorkflowLookupError, and TimeoutError after *timeout*."""
        shelf, _ = await self._find_flow(id, store)
        clock, worker = self._engine.clock, self._engine.worker(shelf.alias)
        over = None if timeout is None else clock.monotonic() + to_seconds(timeout, "timeout")
        look_s, longest_s = _LOOKS_S
        mine = end_id(id, "")
        while True:
            changed = asyncio.Event()

            def settled(job_id: str, changed: asyncio.Event = changed) -> None:
                if job_id.startswith(mine):
                    changed.set()

            worker.on_settled.append(settled)
            try:
                status = await self._status(*await self._find_flow(id, shelf.alias))
                if status.is_over:
                    return status
                now = clock.monotonic()
                if over is not None and now >= over:
                    raise TimeoutError(f"workflow {status.name!r} {id} was still under way")
                timer = clock.call_at(now + look_s if over is None else min(now + look_s, over), changed.set)
                try:
                    await changed.wait()
                finally:
                    timer.cancel()
                look_s = min(look_s * 1.5, longest_s)
            finally:
                worker.on_settled.remove(settled)

    async def workflow_runs(self, id: str, limit: int = 50, *, store: str | None = None) -> list[Run]:
        """The runs of an execution's steps, newest first; raises WorkflowLookupError."""
        _, record = await self._find_flow(id, store)
        runs: list[Run] = []
        for step in flow_form(record).steps:
            if step.is_foreign:
                continue
            runs += await self.history.runs(step.job_id, limit)
        runs.sort(key=lambda run: (run.finished_at or run.fire_time, run.fence), reverse=True)
        return runs[:limit]

    # -- changing ------------------------------------------------------------------------------------------------------

    async def cancel_workflow(self, id: str, *, store: str | None = None) -> bool:
        """Call an execution off, as ``WorkflowRun.cancel`` does; raises WorkflowLookupError."""
        shelf, _ = await self._find_flow(id, store)
        was_over = False
        new: FlowForm | None = None

        def call_off(record: Record) -> Update | None:
            nonlocal was_over, new
            form, now = flow_form(record), shelf.now()
            new = cancelled(form, now)
            was_over = form.finished_at is not None
            return None if new is form else update_of(record, new, now, is_due=True)

        if not await shelf.change_record(flow_id(id), call_off):
            raise _missing(id, shelf.alias)
        if (
            new is not None
            and new.finished_at is not None
            and not was_over
            and self._engine.bus.subscriptions
        ):
            self._engine.bus.emit(completed(id, shelf.alias, new))
        return not was_over

    # -- below ---------------------------------------------------------------------------------------------------------

    def _readable(self, page: Sequence[Record]) -> Iterator[tuple[Record, FlowForm]]:
        """Those that can be read here: another, which a newer version wrote for example, hides none of them."""
        for record in page:
            try:
                yield record, flow_form(record)
            except SerializationError as error:
                self._engine.logger.warning("workflow record %r is left out: %s", record.id, error)

    async def _trim(self, store: str) -> int:
        """Forget the executions that have ended beyond the newest ``Retention(workflows=)``; return how many went."""
        keep, shelf = self._engine.options.retention.workflows, self._engine.shelf(store)
        if keep is None:
            return 0
        ended: list[tuple[float, str]] = []
        after: Record | None = None
        where = Filter(task=FLOW_TASK, id_prefix=FLOWS, hold=KEPT)
        while page := await shelf.repeat(partial(shelf.store.page, where, _PAGE, after)):
            after = page[-1]
            ended += [(form.finished_at or 0.0, record.id) for record, form in self._readable(page)]
        ended.sort(reverse=True)
        old = [id for _, id in ended[keep:]]
        for start in range(0, len(old), _PAGE):
            await shelf.repeat(partial(shelf.store.remove, old[start : start + _PAGE]))
        return len(old)

    async def _trim_for_ever(self, store: str) -> None:
        """``_trim`` every so often."""
        every = cast(float, self._engine.options.retention.every)
        while True:
            await self._engine.clock.sleep(every * random.uniform(0.9, 1.1))
            try:
                await heeding(self._trim(store))
            except Exception as error:
                is_fault = not isinstance(error, AsyncSchedError)
                self._engine.logger.warning("workflows are forgotten later: %s", error, exc_info=is_fault)

    async def has_workflow_on_the_move(self) -> bool:
        """Whether the execution of a workflow goes on at this moment, between two steps."""
        for shelf in self._engine.some_shelves(None):
            where = Filter(id_prefix="#flow", hold="")
            for record in await shelf.repeat(partial(shelf.store.page, where, _PAGE)):
                if record.holder is not None or (
                    record.wake_at is not None and record.wake_at <= shelf.now()
                ):
                    return True
        return False

    async def _find_flow(self, id: str, store: str | None) -> tuple[Shelf, Record]:
        shelves = self._engine.some_shelves(store)
        for shelf in shelves:
            record = await shelf.find(flow_id(check_id(id, "a workflow execution's id")))
            if record is not None:
                return shelf, record
        raise _missing(id, ", ".join(shelf.alias for shelf in shelves))

    async def _status(self, shelf: Shelf, record: Record) -> WorkflowStatus:
        form = flow_form(record)
        opened = [step.job_id for step, state in form.items() if state.state == "open"]
        jobs = await shelf.find_all(opened)
        steps = {
            step.name: self._step_status(step, state, jobs.get(step.job_id)) for step, state in form.items()
        }
        return WorkflowStatus(
            id=record.id.removeprefix(FLOWS),
            name=form.name,
            store=shelf.alias,
            state=form.outcome or "running",
            created_at=to_datetime(form.created_at),
            finished_at=None if form.finished_at is None else to_datetime(form.finished_at),
            cancelled_at=None if form.cancelled_at is None else to_datetime(form.cancelled_at),
            steps=steps,
        )

    def _step_status(self, step: StepForm, state: StepState, job: Record | None) -> StepStatus:
        status = StepStatus(
            name=step.name,
            job_id=step.job_id,
            task=step.task,
            state="pending",
            opened_at=None if state.opened_at is None else to_datetime(state.opened_at),
        )
        if state.state == "open":
            is_running = job is not None and job.holder is not None
            run_id = f"{step.job_id}@{job.fence}" if job is not None and job.fence else None
            return replace(status, state="running" if is_running else "scheduled", run_id=run_id)
        end = state.end
        if end is None or state.state not in END_STATES:
            return status
        result, result_error = None, end.result_error
        try:
            result = self._engine.load(end.result) if end.result else None
        except SerializationError as error:
            # Whoever looks need not know the classes of those who ran it.
            result_error = str(error)
        return replace(
            status,
            state=end.state,
            run_id=f"{step.job_id}@{end.fence}" if end.fence else None,
            attempts=end.attempt,
            started_at=None if end.started is None else to_datetime(end.started),
            finished_at=None if end.finished is None else to_datetime(end.finished),
            error=end.error,
            result=result,
            result_error=result_error,
        )


def _missing(id: str, stores: str) -> WorkflowLookupError:
    return WorkflowLookupError(
        f"no execution {id!r} of a workflow is stored in {stores}; it may have been forgotten after its end (retention=)"
    )


def _priority(priority: int) -> int:
    if type(priority) is not int or not 0 <= priority <= 9:
        raise DefinitionError(f"priority must be a whole number from 0 to 9, not {priority!r}")
    return priority
