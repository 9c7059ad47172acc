"""How jobs come in: from what a user wrote, checked as a whole, to the shelf that keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec.structs import replace

from asyncsched.engine import Engine
from asyncsched.errors import AsyncSchedError, DefinitionError
from asyncsched.events import JobAdded
from asyncsched.jobs import JobSpec, with_call
from asyncsched.model import Job
from asyncsched.registry import AnyTask, Task, check_lasting, task_name
from asyncsched.shelf import Composed, OnConflict, Shelf

__all__ = ["Errors", "Intake"]

Errors = Literal["raise", "return"]

_BATCH = 5000


class Intake:
    """Resolves, composes and adds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: Jobs that the code declares; at each start the stored ones are made to look like these.
        self.declared: list[JobSpec] = []

    async def add(
        self, specs: Sequence[JobSpec], on_conflict: OnConflict, errors: Errors, connection: object = None
    ) -> list[Job | AsyncSchedError]:
        """Check all, then write, in the transaction of *connection* if there is one; in the answer each job, or with
        errors="return" what is wrong with it, has its place."""
        engine = self._engine
        engine.check_running()
        if on_conflict not in ("error", "replace", "keep"):
            raise DefinitionError(f'on_conflict must be "error", "replace" or "keep", not {on_conflict!r}')
        answers: list[Job | AsyncSchedError | None] = [None] * len(specs)
        trays: dict[str, _Tray] = {}
        for at, given in enumerate(specs):
            try:
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
                self.declared.append(replace(spec, id=pair[0].id))
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
        for start in range(0, len(tray.composed), _BATCH):
            added = await tray.shelf.add(tray.composed[start : start + _BATCH], on_conflict)
            for at, answer in zip(tray.places[start:], added, strict=False):
                answers[at] = answer
                if not isinstance(answer, Job):
                    if errors == "raise":
                        raise answer
                elif is_heard:
                    self._engine.emit_job(JobAdded, answer)

    def resolve(self, spec: JobSpec) -> tuple[JobSpec, AnyTask]:
        """The spec with its call unfolded, and its task, registered."""
        spec = with_call(spec)
        given, registry = spec.task, self._engine.registry
        if isinstance(given, Task):
            if registry.tasks.get(given.name) is not given:
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
                check_lasting(given, spec.store)
            task = Task(given, self._free_name(task_name(given)))
            registry.add(task)
        return spec, task

    def _free_name(self, name: str) -> str:
        """In a store that lives in this process lambdas and local functions may share a name: they are numbered."""
        free, n = name, 1
        while "<" in name and free in self._engine.registry.tasks:
            n += 1
            free = f"{name}~{n}"
        return free

    async def declare(self, specs: Sequence[JobSpec]) -> None:
        """Make stored jobs look like their declarations, and ask for the runs that they want at start."""
        for given in specs:
            spec, task = self.resolve(given)
            shelf = self._engine.shelf(spec.store)
            pair = self._engine.composer.record(spec, task, shelf.now())
            [job] = await shelf.add([pair], "merge")
            if spec.run_on_start and isinstance(job, Job) and job.state != "paused":
                await self._run_on_start(shelf, job.id)

    async def _run_on_start(self, shelf: Shelf, id: str) -> None:
        compose = self._engine.composer.request
        await shelf.change(id, lambda record: compose(record, shelf.now(), force=False))


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
