"""Jobs that stand in the code: what is stored is made to look like them, at each start and by ``apply``.

In each store an application has one record, its *roster*: the ids that it declares there, and its revision. Since the roster is
written first, and compared when it is, an older instance that starts beside a newer one is seen by neither of them too late. To
look costs one read per store, whatever is stored, and one more if something is gone; nothing is written where nothing changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from asyncsched.changes import Change, GonePolicy, Outlook, Plan, WaitingTask, differences, outlook
from asyncsched.codec import decode_cursor, decode_definition, decode_roster, encode
from asyncsched.contract import Record, Update
from asyncsched.definition import Cursor, Declared, Definition, Roster
from asyncsched.engine import Engine
from asyncsched.errors import (
    ConflictError,
    DefinitionError,
    JobLookupError,
    JobPaused,
    NewerFormatError,
    PlanOutdated,
    SerializationError,
    TriggerError,
)
from asyncsched.events import (
    DeclarationsLeft,
    JobAdded,
    JobEvent,
    JobGone,
    JobPausedEvent,
    JobRemoved,
    JobUpdated,
)
from asyncsched.ids import check_name, new_id, roster_mark
from asyncsched.intake import Intake
from asyncsched.orphans import Orphans
from asyncsched.shelf import Composed, Shelf
from asyncsched.specs import JobSpec
from asyncsched.triggers import Manual, Once
from asyncsched.units import to_datetime

__all__ = ["Declarations"]

#: How often it is tried again while other instances write the same.
_RACES = 50
_BATCH = 2500
#: So many ids are named in one line of the log, or in an error.
_NAMED = 20
_HAS_RUN = "it was there for this instant, and has come to its end"
_HAS_ENDED = "its last fire time has passed"
_POLICIES = ("report", "keep", "pause", "remove")
_ENDS = {
    "report": "reported, and left as it is",
    "keep": "kept as it is",
    "pause": "paused until it is declared again",
    "remove": "removed",
}


Edit = Callable[[Record, float], Update | None]


@dataclass(slots=True)
class _Entry:
    """One job of a survey."""

    change: Change
    #: What is to be added.
    new: Composed | None = None
    #: What is stored.
    there: Record | None = None
    update: Update | None = None


@dataclass(slots=True)
class _Survey:
    """What one store has, beside what is declared for it."""

    shelf: Shelf
    record: Record | None
    roster: Roster
    #: A newer revision was here: all is left as it is.
    is_older: bool
    #: The ids that belong in the roster; None: it is not to be written.
    enrolled: frozenset[str] | None = None
    #: By id, the instants of those that are one-shots.
    instants: dict[str, float] = field(default_factory=dict)
    entries: list[_Entry] = field(default_factory=list)
    #: Ids that the roster names without need: removed, or another's.
    dropped: set[str] = field(default_factory=set)

    def of(self, *kinds: str) -> list[_Entry]:
        return [entry for entry in self.entries if entry.change.kind in kinds]


class Declarations:
    """The declared jobs of one scheduler, and the stores that are to have them."""

    def __init__(
        self,
        engine: Engine,
        intake: Intake,
        orphans: Orphans,
        application: str | None,
        revision: int | None,
        gone: GonePolicy,
    ) -> None:
        if revision is not None and (type(revision) is not int or revision < 0):
            raise DefinitionError(f"revision must be a whole number of 0 or more, or None, not {revision!r}")
        if gone not in _POLICIES:
            raise DefinitionError(f"gone must be one of {', '.join(map(repr, _POLICIES))}, not {gone!r}")
        if application is None and gone in ("pause", "remove"):
            raise DefinitionError(
                f"gone={gone!r} is for jobs of this application alone, so it needs a name that no other one on the same stores "
                f"has: give application='...'"
            )
        self.application = (
            "default" if application is None else check_name(application, "an application's name")
        )
        self.revision = revision
        self.gone: GonePolicy = gone
        self._engine = engine
        self._intake = intake
        self._orphans = orphans
        self._begun_with = 0

    # -- at start ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Make what is stored look like the code, and ask for the runs that are wanted at start."""
        specs = list(self._intake.declared)
        self._begun_with = len(specs)
        if specs:
            # Nothing is judged gone by one that runs nothing, or declares nothing: it may not have loaded all of the code.
            await self._settle(specs, judges=bool(self._engine.options.queues))
        for spec in specs:
            if spec.run_on_start:
                await self._run_declared(spec)
        for alias, id in list(self._intake.run_at_start):
            # Its store may have been removed since.
            if alias not in self._engine.shelves or not await self._run_on_start(
                self._engine.shelf(alias), id
            ):
                del self._intake.run_at_start[alias, id]

    def missed(self) -> Sequence[JobSpec]:
        """Those that were declared while the start was under way, too late for it."""
        return self._intake.declared[self._begun_with :]

    async def add(self, spec: JobSpec) -> None:
        """One that was declared while running: it is in no roster, so it never counts as gone."""
        await self._settle([spec], judges=False, enrols=False)
        if spec.run_on_start:
            await self._run_declared(spec)

    async def _settle(self, specs: Sequence[JobSpec], *, judges: bool, enrols: bool = True) -> None:
        once: set[tuple[str, str]] = set()
        for _ in range(_RACES):
            surveys = await self._surveys(specs, judges=judges, enrols=enrols)
            if all([await self._write(survey, once) for survey in surveys]):
                return
        raise ConflictError(
            f"the declared jobs were changed by others {_RACES} times in a row; try again later"
        )

    async def _run_declared(self, spec: JobSpec) -> None:
        task = self._intake.resolve(spec)[1]
        await self._run_on_start(self._engine.shelf(spec.store), spec.id or task.name)

    async def _run_on_start(self, shelf: Shelf, id: str) -> bool:
        """Ask for a run of the job, unless it is paused or quarantined; False: there is no such job."""
        compose = self._engine.editor.request
        record = await shelf.find(id)
        if record is None:
            return False
        # A request would end a quarantine, and each restart of a process that its job has killed would be one.
        if self._engine.composer.job(record, shelf.alias).state in ("paused", "quarantined"):
            return True
        # One job that cannot be asked for is no reason not to start.
        try:
            await shelf.change(id, lambda record: compose(record, shelf.now(), force=False))
        except JobLookupError:
            return False
        except JobPaused:
            pass
        except (ConflictError, SerializationError) as error:
            self._engine.logger.warning("job %r of store %r is not run at start: %s", id, shelf.alias, error)
        return True

    # -- plan and apply ------------------------------------------------------------------------------------------------

    async def plan(self, *, rollback: bool, shows_arguments: bool) -> Plan:
        self._engine.check_running()
        surveys = await self._surveys(
            self._intake.declared, judges=True, rollback=rollback, shows=shows_arguments
        )
        orphans = [one for survey in surveys for one in await self._orphans.waiting(survey.shelf)]
        return self._plan_of(surveys, rollback, shows_arguments, orphans)

    async def apply(self, plan: Plan) -> None:
        self._engine.check_running()
        if not isinstance(plan, Plan):
            raise DefinitionError(f"apply() takes what plan() gave, not {plan!r}")
        if (plan.application, plan.revision) != (self.application, self.revision):
            raise DefinitionError(
                f"this plan is of application {plan.application!r}, revision {plan.revision}, and this scheduler is of "
                f"{self.application!r}, revision {self.revision}: make another one with its plan()"
            )
        surveys = await self._surveys(
            self._intake.declared, judges=True, rollback=plan.rollback, shows=plan.shows_arguments
        )
        changed = _otherwise(plan, self._plan_of(surveys, plan.rollback, plan.shows_arguments, []))
        if changed:
            raise PlanOutdated(
                f"nothing was applied, since it has changed after the plan was made: {_listed(changed)}. Make another plan"
            )
        for survey in surveys:
            if not await self._write(survey, set(), is_asked=True):
                raise PlanOutdated(
                    f"jobs of store {survey.shelf.alias!r} were changed while the plan was applied, or it did not answer: what "
                    f"had been written by then stays. Make another plan for the rest"
                )

    def _plan_of(
        self, surveys: Sequence[_Survey], rollback: bool, shows: bool, orphans: Sequence[WaitingTask]
    ) -> Plan:
        entries = [entry for survey in surveys for entry in survey.entries]
        order = ["added", "changed", "gone", "left", "unchanged"]
        changes = sorted(
            (entry.change for entry in entries),
            key=lambda change: (order.index(change.kind), change.store, change.id),
        )
        return Plan(
            application=self.application,
            revision=self.revision,
            made_at=to_datetime((self._engine.shelves.get("default") or surveys[0].shelf).now()),
            changes=tuple(changes),
            stored_revisions={s.shelf.alias: s.roster.revision for s in surveys if s.record is not None},
            orphans=tuple(orphans),
            rollback=rollback,
            shows_arguments=shows,
            basis={
                (entry.change.store, entry.change.id): (entry.there.birth, entry.there.version)
                for entry in entries
                if entry.there is not None
            },
        )

    # -- looking -------------------------------------------------------------------------------------------------------

    async def _surveys(
        self,
        specs: Sequence[JobSpec],
        *,
        judges: bool,
        enrols: bool = True,
        rollback: bool = False,
        shows: bool = False,
    ) -> list[_Survey]:
        wanted: dict[str, dict[str, JobSpec]] = {}
        for given in specs:
            spec, task = self._intake.resolve(given)
            alias = self._engine.shelf(spec.store).alias
            wanted.setdefault(alias, {})[spec.id or task.name] = given
        aliases = self._engine.shelves if judges else wanted
        return [
            await self._survey(
                self._engine.shelves[alias], wanted.get(alias, {}), judges, enrols, rollback, shows
            )
            for alias in aliases
        ]

    async def _survey(
        self,
        shelf: Shelf,
        wanted: dict[str, JobSpec],
        judges: bool,
        enrols: bool,
        rollback: bool,
        shows: bool,
    ) -> _Survey:
        mark = roster_mark(self.application)
        there = await shelf.find_all([mark, *wanted])
        record = there.pop(mark, None)
        roster, is_older = Roster(), False
        if record is not None:
            try:
                roster = decode_roster(record.body)
                is_older = not rollback and _rank(roster.revision) > _rank(self.revision)
            except NewerFormatError:
                is_older = True
            except SerializationError as error:
                self._engine.logger.error(
                    "the record %r of store %r is written anew: %s", mark, shelf.alias, error
                )
        survey = _Survey(shelf, record, roster, is_older)
        late = self._intake.late
        if enrols and (wanted or record is not None):
            survey.enrolled = frozenset(id for id in wanted if id not in late)
        for id, spec in wanted.items():
            new = self._composed(spec, shelf, Declared(self.application, self.revision))
            trigger = new[1].trigger
            if isinstance(trigger, Once) and trigger.delay is None and id in (survey.enrolled or ()):
                survey.instants[id] = trigger.at or 0.0
            survey.entries.append(self._compared(survey, there.get(id), new, rollback, shows))
        if judges:
            missing = [id for id in roster.ids if id not in wanted]
            found = await shelf.find_all(missing)
            for id in missing:
                self._judge(survey, id, found.get(id), rollback)
        return survey

    def _composed(self, spec: JobSpec, shelf: Shelf, mark: Declared) -> Composed:
        resolved, task = self._intake.resolve(spec)
        record, definition = self._engine.composer.record(resolved, task, shelf.now(), may_have_ended=True)
        definition = replace(definition, declared=mark)
        return replace(record, body=encode(definition)), definition

    def _compared(
        self, survey: _Survey, there: Record | None, new: Composed, rollback: bool, shows: bool
    ) -> _Entry:
        """What is stored of a declared job, beside its declaration."""
        record, definition = new
        alias = survey.shelf.alias
        newer = f"revision {survey.roster.revision} was applied"
        if there is None:
            if survey.is_older:
                return _Entry(Change(kind="left", id=record.id, store=alias, task=record.task, reason=newer))
            instant = survey.instants.get(record.id)
            reason = None
            if (
                instant is not None
                and instant == survey.roster.had.get(record.id)
                and instant <= survey.shelf.now()
            ):
                # To add it again would be to run it again.
                reason = _HAS_RUN
            elif definition.first is None and not isinstance(definition.trigger, Manual):
                reason = _HAS_ENDED
            if reason is not None:
                return _Entry(
                    Change(kind="unchanged", id=record.id, store=alias, task=record.task, reason=reason)
                )
            after = outlook(definition, Cursor())
            return _Entry(Change(kind="added", id=record.id, store=alias, task=record.task, after=after), new)
        left = newer if survey.is_older else ""
        old, update = None, None
        try:
            old = decode_definition(there.body)
            left = left or ("" if rollback else self._why_left(old))
            update = (
                None if left else self._engine.editor.merge(there, record, definition, survey.shelf.now())
            )
        except SerializationError as error:
            left = left or f"what is stored cannot be read here: {error}"
        except TriggerError as error:
            left = left or f"what passed while it rested cannot be told: {error}"
        if left:
            return _Entry(
                Change(kind="left", id=there.id, store=alias, task=there.task, reason=left), there=there
            )
        assert old is not None
        if update is None:
            return _Entry(Change(kind="unchanged", id=there.id, store=alias, task=there.task), there=there)
        then = decode_definition(update.body)
        fields = differences(there, old, update, then, self._reveal if shows else None)
        return _Entry(
            Change(
                kind="changed" if fields else "unchanged",
                id=there.id,
                store=alias,
                task=record.task,
                fields=fields,
                before=_outlook_of(there, old),
                after=_outlook_of(replace(there, hold=update.hold), then),
            ),
            there=there,
            update=update,
        )

    def _why_left(self, old: Definition) -> str:
        mark = old.declared
        if mark is None or mark.by != self.application or _rank(mark.revision) <= _rank(self.revision):
            return ""
        return f"revision {mark.revision} was applied"

    def _reveal(self, name: str, definition: Definition) -> object:
        composer = self._engine.composer
        try:
            return composer.values(definition) if name == "args" else composer.metadata(definition)
        except SerializationError:
            return "cannot be read here"

    def _judge(self, survey: _Survey, id: str, there: Record | None, rollback: bool) -> None:
        """A job that was declared once and is not any more."""
        if there is None:
            survey.dropped.add(id)
            return
        fields: dict[str, Any] = {"id": id, "store": survey.shelf.alias, "task": there.task}
        try:
            definition = decode_definition(there.body)
            before = _outlook_of(there, definition)
            is_ended = self.gone in ("pause", "remove")
            update = self._engine.editor.retire(there, survey.shelf.now()) if is_ended else None
        except SerializationError as error:
            change = Change(kind="left", reason=f"what is stored cannot be read here: {error}", **fields)
            survey.entries.append(_Entry(change, there=there))
            return
        mark = definition.declared
        if mark is None or mark.by != self.application:
            # Another application has taken it over, or somebody by a call.
            survey.dropped.add(id)
            return
        left = f"revision {survey.roster.revision} was applied" if survey.is_older else ""
        left = left or ("" if rollback else self._why_left(definition))
        if left:
            survey.entries.append(_Entry(Change(kind="left", reason=left, **fields), there=there))
            return
        action: GonePolicy = "keep" if self.gone == "pause" and update is None else self.gone
        after = None if action in ("pause", "remove") else before
        change = Change(
            kind="gone", action=action, reason=_ENDS[action], before=before, after=after, **fields
        )
        survey.entries.append(_Entry(change, there=there, update=update))

    # -- writing -------------------------------------------------------------------------------------------------------

    async def _write(self, survey: _Survey, once: set[tuple[str, str]], *, is_asked: bool = False) -> bool:
        """Make it so; False where another was faster somewhere: what was written by then stays, and the rest is to be looked at
        anew. Whoever asked for it has seen the plan, so it is not logged. *once* remembers the one-shots that were there."""
        if survey.is_older:
            self._tell_left(survey, is_asked)
            return True
        ids = {*survey.roster.ids, *(survey.enrolled or ())}
        if survey.enrolled is not None and not await self._enrol(survey, ids):
            return False
        if not await self._add(survey, once):
            return False
        for entry in survey.of("changed", "unchanged"):
            if entry.update is not None and not await self._update(survey, entry):
                return False
        for entry in survey.of("gone"):
            if not await self._end(survey, entry):
                return False
        left = ids - survey.dropped
        if survey.enrolled is not None or left != ids:
            had = {**survey.roster.had, **survey.instants}
            if not await self._enrol(survey, left, {id: at for id, at in had.items() if id in left}):
                return False
        if not is_asked:
            self._tell(survey)
        return True

    async def _enrol(self, survey: _Survey, ids: set[str], had: dict[str, float] | None = None) -> bool:
        """Write the roster, if it is another one. So the newest revision is known before anything of it is done."""
        roster = Roster(self.revision, tuple(sorted(ids)), survey.roster.had if had is None else had)
        there, shelf = survey.record, survey.shelf
        if there is None:
            mark = roster_mark(self.application)
            record = Record(mark, new_id(), "#declared", 0, "#declared", None, None, encode(roster), b"")
            if await shelf.insert([record]):
                return False
            survey.record, survey.roster = record, roster
            return True
        if roster == survey.roster:
            return True
        update = Update(
            id=there.id, version=there.version, body=encode(roster), queue=there.queue, priority=0, wake_at=None, hold=None
        )  # fmt: skip
        written = await shelf.update(update)
        if written is None:
            return False
        survey.record, survey.roster = written, roster
        return True

    async def _add(self, survey: _Survey, once: set[tuple[str, str]]) -> bool:
        alias = survey.shelf.alias
        new = [
            entry.new
            for entry in survey.of("added")
            if entry.new is not None and (alias, entry.change.id) not in once
        ]
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            taken = await survey.shelf.insert([record for record, _ in batch])
            # What is missing at the next look has run meanwhile, and would run again.
            once |= {(alias, record.id) for record, definition in batch if not definition.trigger.recurs}
            for record, _ in batch:
                if record.id not in taken:
                    self._emit(JobAdded, survey.shelf, record)
            if taken:
                return False
        return True

    async def _update(self, survey: _Survey, entry: _Entry) -> bool:
        assert entry.update is not None
        assert entry.there is not None
        written = await survey.shelf.update(entry.update)
        if written is None:
            return False
        if entry.change.kind == "changed":
            self._emit(JobUpdated, survey.shelf, written)
        for name, old, _ in entry.change.fields:
            if name == "application":
                self._engine.logger.warning(
                    "job %r of store %r was declared by application %r, and is now by %r: one of them should give it another id",
                    written.id, survey.shelf.alias, old, self.application,
                )  # fmt: skip
        if entry.change.before is None and entry.change.after is not None:
            await self._with_children(survey.shelf, entry.there, self._engine.editor.resume)
        return True

    async def _end(self, survey: _Survey, entry: _Entry) -> bool:
        """What becomes of a job that is gone. One that is removed rests first, by its version, and is looked at once more with
        the roster, so that another instance which declares it at this moment is not overlooked."""
        change, shelf, there = entry.change, survey.shelf, entry.there
        assert there is not None
        if entry.update is not None:
            written = await shelf.update(entry.update)
            if written is None:
                return False
            there = written
        if change.action == "remove":
            if not await self._is_as_before(survey, there):
                return False
            await shelf.remove([change.id])
            survey.dropped.add(change.id)
            self._emit(JobRemoved, shelf, there)
        elif change.action == "pause":
            await self._with_children(shelf, there, self._engine.editor.pause)
            self._emit(JobPausedEvent, shelf, there)
        if change.action != "keep":
            self._emit(JobGone, shelf, there)
        return True

    async def _is_as_before(self, survey: _Survey, there: Record) -> bool:
        """Whether nobody has written the roster or the job meanwhile."""
        known = [there] if survey.record is None else [survey.record, there]
        found = await survey.shelf.find_all([record.id for record in known])
        return all(
            (now := found.get(record.id)) is not None
            and (now.birth, now.version) == (record.birth, record.version)
            for record in known
        )

    async def _with_children(self, shelf: Shelf, record: Record, edit: Edit) -> None:
        for child in self._engine.composer.family(record):
            with suppress(JobLookupError):
                await shelf.change(child, lambda found: edit(found, shelf.now()))

    # -- telling -------------------------------------------------------------------------------------------------------

    def _emit(self, kind: type[JobEvent], shelf: Shelf, record: Record) -> None:
        if self._engine.bus.subscriptions:
            self._engine.emit_job(kind, self._engine.composer.job(record, shelf.alias))

    def _tell(self, survey: _Survey) -> None:
        log, alias = self._engine.logger, survey.shelf.alias
        for action in ("report", "pause", "remove"):
            ids = [entry.change.id for entry in survey.of("gone") if entry.change.action == action]
            if ids:
                log.warning(
                    "no longer declared by application %r in store %r, and %s: %s%s",
                    self.application, alias, _ENDS[action].replace("it is", "they are"), _listed(ids),
                    ". Remove what is not wanted, or say what becomes of them (gone=); if another application declares them, "
                    "give each its own name (application=)" if action == "report" else "",
                )  # fmt: skip
        for entry in survey.of("left"):
            log.warning(
                "declared job %r of store %r is left as it is: %s",
                entry.change.id,
                alias,
                entry.change.reason,
            )

    def _tell_left(self, survey: _Survey, is_asked: bool) -> None:
        stored = survey.roster.revision
        if not is_asked:
            self._engine.logger.warning(
                "the declared jobs of store %r stay as %s of application %r has them, and this is %s. To go back to that for "
                "good, apply it as a rollback",
                survey.shelf.alias,
                "a newer asyncsched" if stored is None else f"revision {stored}",
                self.application,
                "no revision" if self.revision is None else f"revision {self.revision}",
            )
        if self._engine.bus.subscriptions:
            self._engine.bus.emit(
                DeclarationsLeft(
                    at=to_datetime(self._engine.clock.time()),
                    instance=self._engine.id,
                    store=survey.shelf.alias,
                    application=self.application,
                    revision=self.revision,
                    stored_revision=stored,
                )
            )


def _rank(revision: int | None) -> int:
    """No revision is older than any."""
    return -1 if revision is None else revision


def _outlook_of(record: Record, definition: Definition) -> Outlook | None:
    if record.hold is not None and (record.hold != "paused" or definition.paused):
        return None
    return outlook(definition, decode_cursor(record.cursor), is_held=record.holder is not None)


def _otherwise(plan: Plan, now: Plan) -> list[str]:
    """The jobs that are not any more what they were for the plan."""
    then, fresh = (
        {(c.store, c.id): (c.kind, c.action, c.fields, one.basis.get((c.store, c.id))) for c in one.changes}
        for one in (plan, now)
    )
    changed = {id for store, id in {*then, *fresh} if then.get((store, id)) != fresh.get((store, id))}
    if plan.stored_revisions != now.stored_revisions:
        changed |= {
            f"the revision of store {alias!r}" for alias in {*plan.stored_revisions, *now.stored_revisions}
        }
    return sorted(changed)


def _listed(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _NAMED} others" if len(ids) > _NAMED else ""
    return ", ".join(map(repr, ids[:_NAMED])) + more
