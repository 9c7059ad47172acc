"""How jobs come in: from what a user wrote, checked as a whole, to the shelf that keeps them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from functools import partial
from itertools import islice
from typing import Any, Literal, TypeVar

from msgspec.structs import replace

from asyncsched.codec import encode
from asyncsched.engine import Engine
from asyncsched.errors import AsyncSchedError, ConflictingIdError, DefinitionError
from asyncsched.events import JobAdded
from asyncsched.flowform import FlowForm, StepForm, When
from asyncsched.flows import packed
from asyncsched.flowwork import START_TASK
from asyncsched.ids import check_id, new_id
from asyncsched.model import Job
from asyncsched.registry import AnyTask, Task, check_lasting, task_name
from asyncsched.shelf import Composed, OnConflict, Shelf
from asyncsched.specs import JobSpec, with_call
from asyncsched.units import to_seconds
from asyncsched.workflow import Step, Workflow

__all__ = ["Errors", "Intake"]

Errors = Literal["raise", "return"]

T = TypeVar("T")

#: Jobs in one call of the store, and calls at a time.
_BATCH = 1000
_ABREAST = 3
#: So many are composed before others of the loop have their turn.
_BREATH = 500


class Intake:
    """Resolves, composes and adds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: Jobs that the code declares; at each start the stored ones are made to look like these.
        self.declared: list[JobSpec] = []
        self._taken: set[tuple[str | None, str]] = set()
        #: The ids of those of them that were declared while running.
        self.late: set[str] = set()
        #: Store and id of the jobs that were added with ``run_on_start``: each start of this scheduler asks for a run of them.
        self.run_at_start: dict[tuple[str, str], None] = {}

    async def add(
        self, specs: Sequence[JobSpec], on_conflict: OnConflict, errors: Errors, connection: object = None
    ) -> list[Job | AsyncSchedError]:
        """Check all, then write, in the transaction of *connection* if there is one; in the answer each job, or with
        errors="return" what is wrong with it, has its place."""
        engine = self._engine
        engine.check_running()
        if on_conflict not in ("error", "replace", "keep"):
            raise DefinitionError(f'on_conflict must be "error", "replace" or "keep", not {on_conflict!r}')
        if errors not in ("raise", "return"):
            raise DefinitionError(f'errors must be "raise" or "return", not {errors!r}')
        if not isinstance(specs, Sequence):
            raise DefinitionError(f"add_jobs() takes a list of JobSpec, not {specs!r}")
        answers: list[Job | AsyncSchedError | None] = [None] * len(specs)
        trays: dict[str, _Tray] = {}
        for at, given in enumerate(specs):
            if at % _BREATH == _BREATH - 1:
                await asyncio.sleep(0)
            try:
                if not isinstance(given, JobSpec):
                    raise DefinitionError(f"add_jobs() takes a list of JobSpec, and {given!r} is none")
                spec, task = self.resolve(given)
                if connection is not None and spec.run_on_start:
                    raise DefinitionError(
                        "run_on_start is a declaration of this process, which no transaction takes back: "
                        "add the job without connection="
                    )
                tray = trays.get(spec.store)
                if tray is None:
                    tray = trays[spec.store] = _Tray(engine.shelf(spec.store))
                pair = engine.composer.record(spec, task, tray.now)
                if spec.id is not None:
                    tray.take_id(spec.id)
            except AsyncSchedError as error:
                if errors == "raise":
                    raise
                answers[at] = error
                continue
            tray.places.append(at)
            tray.composed.append(pair)
            if spec.run_on_start:
                tray.run_at_start.add(pair[0].id)
        if connection is None:
            await self._add_trays(list(trays.values()), on_conflict, errors, answers)
        elif trays:
            await self._add_within(connection, list(trays.values()), on_conflict, errors, answers)
        return [answer for answer in answers if answer is not None]

    async def _add_within(
        self,
        connection: object,
        trays: list[_Tray],
        on_conflict: OnConflict,
        errors: Errors,
        answers: list[Job | AsyncSchedError | None],
    ) -> None:
        if len(trays) > 1:
            names = ", ".join(repr(tray.shelf.alias) for tray in trays)
            raise DefinitionError(f"one transaction is in one store, and these jobs are for {names}")
        [tray] = trays
        async with tray.shelf.within(connection) as joined:
            tray.shelf = joined
            await self._add_trays(trays, on_conflict, errors, answers, is_told=False)

    async def _add_trays(
        self,
        trays: list[_Tray],
        on_conflict: OnConflict,
        errors: Errors,
        answers: list[Job | AsyncSchedError | None],
        is_told: bool = True,
    ) -> None:
        """Whether what is added will be there is not known before the user's transaction commits, so then it is not told."""
        if on_conflict == "error" and errors == "raise" and sum(len(tray.composed) for tray in trays) > 1:
            for tray in trays:
                await tray.refuse_taken()
        for tray in trays:
            await self._add_tray(tray, on_conflict, errors, answers, is_told)

    async def _add_tray(
        self,
        tray: _Tray,
        on_conflict: OnConflict,
        errors: Errors,
        answers: list[Job | AsyncSchedError | None],
        is_told: bool,
    ) -> None:
        is_heard = is_told and bool(self._engine.bus.subscriptions)
        # Several at a time, so that this process and the server both have something to do; in a transaction there is one line.
        abreast = _ABREAST if is_told else 1
        calls = [
            partial(tray.shelf.add, tray.composed[start : start + _BATCH], on_conflict)
            for start in range(0, len(tray.composed), _BATCH)
        ]
        places = iter(tray.places)
        async with aclosing(_abreast(calls, abreast)) as batches:
            async for added, met in batches:
                for answer, place in zip(added, places, strict=False):
                    answers[place] = answer
                    if not isinstance(answer, Job):
                        if errors == "raise":
                            raise answer
                        continue
                    if answer.id in tray.run_at_start:
                        self.run_at_start[answer.store, answer.id] = None
                    elif self.run_at_start and on_conflict != "keep":
                        self.run_at_start.pop((answer.store, answer.id), None)
                    kind = met.get(answer.id, JobAdded)
                    if is_heard and kind is not None:
                        self._engine.emit_job(kind, answer)

    def declare(self, spec: JobSpec) -> None:
        """Have it added at start; raises ConflictingIdError where another one was declared under its id."""
        if (spec.id, spec.store) in self._taken:
            raise ConflictingIdError(
                f"a job {spec.id!r} is declared twice in store {spec.store!r}: give one of them an id of its own (id=)",
                job_id=spec.id,
                store=spec.store,
            )
        self._taken.add((spec.id, spec.store))
        self.declared.append(spec)

    def resolve(self, spec: JobSpec) -> tuple[JobSpec, AnyTask]:
        """The spec with its call unfolded, and its task, registered. A workflow's job starts an execution at each fire time."""
        if isinstance(spec.task, Workflow):
            return self._start_of(spec.task, spec), START_TASK
        spec = with_call(spec)
        given, registry = spec.task, self._engine.registry
        if isinstance(given, Task):
            known = registry.tasks.get(given.name)
            if known is not None and known.function is given.function:
                # As it was registered here, which may have been with other options.
                return spec, known
            registry.add(given)
            return spec, given
        if isinstance(given, str):
            return spec, registry.find(given)
        if not callable(given):
            raise DefinitionError(
                f"a job's task is a task, a bound call, a registered name or a function, not {given!r}"
            )
        task = registry.of_function(given)
        if task is None:
            capabilities = self._engine.store(spec.store).capabilities
            if capabilities.durable or capabilities.shared:
                check_lasting(given, spec.store, spec.id)
            task = Task(given, self._free_name(task_name(given)))
            registry.add(task)
        return spec, task

    def workflow(self, workflow: Workflow, store: str) -> FlowForm:
        """*workflow* with its tasks registered and all of it checked, as the form that executions are made of; raises what is
        wrong with it."""
        steps = [self._step(step, store) for step in workflow.sorted_steps()]
        for id, alias in workflow.jobs.items():
            if alias != store:
                raise DefinitionError(
                    f"workflow {workflow.name!r} is started in store {store!r}, and waits for job {id!r} of {alias!r}",
                    job_id=id,
                    store=alias,
                )
            steps.insert(0, StepForm(id, "", (), id, "default", 0, b""))
        return FlowForm(workflow.name, 0.0, None, tuple(steps))

    def _step(self, step: Step, store: str) -> StepForm:
        spec, task = self.resolve(replace(step.spec, store=store))
        _, definition = self._engine.composer.record(
            replace(spec, id=step.name, delay=None, priority=step.priority or spec.priority), task, 0.0
        )
        body = replace(definition, policies=replace(definition.policies, on_exhausted="remove"))
        # What a bound call says of its place counts where the step itself says nothing.
        queue = step.queue or ("" if spec.queue == "default" else spec.queue)
        priority = step.priority if step.priority is not None else (spec.priority or -1)
        delay_s = step.delay_s or (0.0 if spec.delay is None else to_seconds(spec.delay, "delay"))
        after: tuple[tuple[str, When], ...] = tuple((c.step, c.when) for c in step.after)
        return StepForm(
            step.name, task.name, after, step.name, queue, priority, encode(body), delay_s, step.is_final
        )

    def _start_of(self, workflow: Workflow, spec: JobSpec) -> JobSpec:
        if spec.args or spec.kwargs:
            raise DefinitionError(
                f"workflow {workflow.name!r} takes no arguments: its steps have theirs; leave out args= and kwargs="
            )
        if workflow.jobs:
            raise DefinitionError(
                f"workflow {workflow.name!r} waits for {', '.join(workflow.jobs)}, which ends once, so it cannot be given a "
                "trigger: start it with start_workflow()"
            )
        body = packed(self.workflow(workflow, spec.store))
        for name in workflow.steps:
            # An execution's id is made of the job's and the fire time.
            id = f"{spec.id or new_id()}/00000000T000000.000000/{name}"
            check_id(id, f"the id of the job of step {name!r}")
        return replace(spec, task=START_TASK, kwargs={"workflow": body}, name=spec.name or workflow.name)

    def _free_name(self, name: str) -> str:
        """In a store that lives in this process lambdas and local functions may share a name: they are numbered."""
        free, n = name, 1
        while "<" in name and free in self._engine.registry.tasks:
            n += 1
            free = f"{name}~{n}"
        return free


async def _abreast(
    calls: Sequence[Callable[[], Coroutine[Any, Any, T]]], width: int
) -> AsyncGenerator[T, None]:
    """Their answers in order, while up to *width* calls are under way; whatever happens, none is when this has ended."""
    if len(calls) == 1 or width == 1:
        for call in calls:
            yield await call()
        return
    under_way: deque[asyncio.Task[T]] = deque()
    left = iter(calls)
    try:
        while True:
            for following in islice(left, width - len(under_way)):
                under_way.append(asyncio.create_task(following()))
            if not under_way:
                return
            yield await under_way[0]
            under_way.popleft()
    except asyncio.CancelledError:
        for task in under_way:
            task.cancel()
        raise
    finally:
        await asyncio.gather(*under_way, return_exceptions=True)


class _Tray:
    """What goes into one store."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.now = shelf.now()
        self.composed: list[Composed] = []
        #: Where each stands in the call.
        self.places: list[int] = []
        #: Ids that the user chose; made ones cannot be taken.
        self._ids: set[str] = set()
        self.run_at_start: set[str] = set()

    def take_id(self, id: str) -> None:
        """Raise DefinitionError where an id stands twice in one call."""
        if id in self._ids:
            raise DefinitionError(
                f"the id {id!r} stands twice in one add_jobs() call", job_id=id, store=self.shelf.alias
            )
        self._ids.add(id)

    async def refuse_taken(self) -> None:
        """Raise ConflictingIdError before anything is written."""
        taken = await self.shelf.taken(sorted(self._ids)) if self._ids else set()
        if taken:
            raise self.shelf.conflict(min(taken))
