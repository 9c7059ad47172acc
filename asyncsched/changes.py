"""What a deploy would change, as a value: the jobs that the code declares beside those that are stored, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple

import msgspec

from asyncsched.contract import Record, Update
from asyncsched.definition import Cursor, Definition
from asyncsched.errors import TriggerError
from asyncsched.plan import synced
from asyncsched.triggers import AnyTrigger
from asyncsched.triggers.zones import in_zone
from asyncsched.units import to_datetime, to_seconds

__all__ = [
    "Change",
    "ChangeKind",
    "Effect",
    "FieldChange",
    "FireTimes",
    "GonePolicy",
    "Outlook",
    "Plan",
    "WaitingTask",
    "differences",
    "outlook",
]

#: ``left``: a newer revision has declared it, or it cannot be read here, so nothing is done about it.
ChangeKind = Literal["added", "changed", "unchanged", "gone", "left"]
#: What becomes of a job that the code does not declare any more.
GonePolicy = Literal["report", "keep", "pause", "remove"]

_SIGNS: Mapping[ChangeKind, str] = {"added": "+", "changed": "~", "unchanged": "=", "gone": "-", "left": "!"}
#: Of what a user may hold for a secret only that it changes is told.
_SECRET = frozenset({"args", "metadata"})
#: So many fire times are named.
_NAMED = 5
_DAY_HOURS = 24.0


class FieldChange(NamedTuple):
    """One field of a job, as it is stored and as the code has it; None: there is none, or it is not shown."""

    name: str
    old: str | None
    new: str | None

    def __str__(self) -> str:
        if self.old is None and self.new is None:
            return f"{self.name}: changed"
        return f"{self.name}: {_shown(self.old)} -> {_shown(self.new)}"


class Outlook(msgspec.Struct, frozen=True, gc=False):
    """A trigger, and the fire time at which it goes on; None: it never does."""

    trigger: AnyTrigger
    next: float | None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One job of a plan."""

    kind: ChangeKind
    id: str
    #: The alias of its store.
    store: str
    task: str
    #: What is different; of an added job nothing.
    fields: tuple[FieldChange, ...] = ()
    #: What becomes of a job that is gone.
    action: GonePolicy | None = None
    #: Why a job is left alone, or what becomes of it, in words.
    reason: str = ""
    before: Outlook | None = None
    after: Outlook | None = None

    def __str__(self) -> str:
        return f"{_SIGNS[self.kind]} {self.id}: {self.kind}" + (f", {self.reason}" if self.reason else "")


class FireTimes(msgspec.Struct, frozen=True, kw_only=True):
    """The fire times of a span."""

    count: int = 0
    #: The count is a lower bound.
    more: bool = False
    #: The first five of them, in the zone of the trigger.
    first: tuple[datetime, ...] = ()

    def __str__(self) -> str:
        times = f"{self.count}{' or more' if self.more else ''}"
        return f"{times} from {self.first[0].isoformat()}" if self.first else times


class Effect(NamedTuple):
    """What a change does to the fire times of a job."""

    id: str
    store: str
    before: FireTimes
    after: FireTimes

    def __str__(self) -> str:
        return f"{self.before} -> {self.after}"


class WaitingTask(NamedTuple):
    """A task that has jobs, and that no live instance registers."""

    task: str
    store: str
    #: The first look that found no instance.
    since: datetime


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What it would take to make the stored jobs look like the code. A value: nothing has been changed.

    Print it, or ask it what it does to the coming fire times with ``effect()``; ``scheduler.apply(plan)`` makes it so.
    """

    application: str
    #: That of this code.
    revision: int | None
    #: When it was made, by the default store's clock.
    made_at: datetime
    changes: tuple[Change, ...] = ()
    #: By store, the revision that was applied last, where there is one.
    stored_revisions: Mapping[str, int | None] = msgspec.field(default_factory=dict)
    #: Tasks of stored jobs that neither this code nor a live instance registers.
    orphans: tuple[WaitingTask, ...] = ()
    #: It goes back to this revision though a newer one was applied.
    rollback: bool = False
    shows_arguments: bool = False
    #: What it was made of: by (store, id) the birth and version of each job.
    basis: Mapping[tuple[str, str], tuple[str, int]] = msgspec.field(default_factory=dict)

    def __str__(self) -> str:
        return self.describe()

    @property
    def added(self) -> list[Change]:
        """Declared, and not stored."""
        return self._of("added")

    @property
    def changed(self) -> list[Change]:
        """Stored otherwise than it is declared."""
        return self._of("changed")

    @property
    def unchanged(self) -> list[Change]:
        """Stored as it is declared."""
        return self._of("unchanged")

    @property
    def gone(self) -> list[Change]:
        """Declared by an earlier revision of this application, and by the code no more."""
        return self._of("gone")

    @property
    def left(self) -> list[Change]:
        """Left alone, for the reason that it gives: a newer revision has declared it, say."""
        return self._of("left")

    @property
    def is_empty(self) -> bool:
        """Whether it would change no job."""
        return not (
            self.added or self.changed or any(change.action in ("pause", "remove") for change in self.gone)
        )

    def effect(self, hours: float = _DAY_HOURS) -> list[Effect]:
        """The fire times of the next so many *hours*, before and after, of each job that changes.

        Jobs whose fire times stay as they are have none. Jitter, retries and what overlaps are left out of account.
        """
        begin, span_s = self.made_at.timestamp(), to_seconds(hours, "hours") * 3600
        found: list[Effect] = []
        for change in self.changes:
            if change.before == change.after:
                continue
            before, after = (_times(one, begin, begin + span_s) for one in (change.before, change.after))
            found.append(Effect(change.id, change.store, before, after))
        return found

    def describe(self, hours: float = _DAY_HOURS) -> str:
        """For the eye: a line for each job that changes, what is different, and what comes of it in so many *hours*."""
        effects = {(effect.store, effect.id): effect for effect in self.effect(hours)}
        lines = [self._headline()]
        for change in self.changes:
            if change.kind == "unchanged":
                continue
            lines.append(str(change))
            lines += [f"    {field}" for field in change.fields]
            effect = effects.get((change.store, change.id))
            if effect is not None:
                lines.append(f"    fire times, next {hours:g} h: {effect}")
        if self.unchanged:
            lines.append(f"= {len(self.unchanged)} unchanged")
        lines += [
            f"! task {task!r} has jobs in {store!r}, and no live instance has registered it since {since.isoformat()}"
            for task, store, since in self.orphans
        ]
        return "\n".join(lines)

    def _headline(self) -> str:
        stored = sorted({revision for revision in self.stored_revisions.values() if revision is not None})
        line = f"application {self.application!r}"
        if self.revision is not None:
            line += f", revision {self.revision}"
        if stored and stored != [self.revision]:
            line += f" (stored: {', '.join(map(str, stored))})"
        return f"{line}: no changes" if self.is_empty else line

    def _of(self, kind: ChangeKind) -> list[Change]:
        return [change for change in self.changes if change.kind == kind]


def _shown(value: str | None) -> str:
    return "none" if value is None else value


# -- making one ------------------------------------------------------------------------------------------------------------


def outlook(definition: Definition, cursor: Cursor, *, is_held: bool = False) -> Outlook | None:
    """How a job goes on; None for one that rests."""
    cursor = synced(definition, cursor)
    if definition.paused or cursor.over is not None:
        return None
    following = cursor.next
    if is_held and following is not None:
        # That one is under way.
        following = _behind(definition.trigger, following)
    return Outlook(definition.trigger, following)


def _behind(trigger: AnyTrigger, fire: float) -> float | None:
    try:
        return trigger.next(fire) if trigger.recurs else None
    except TriggerError:
        # It gives its search up; whoever claims the job quarantines it.
        return None


def differences(
    record: Record,
    old: Definition,
    update: Update,
    new: Definition,
    reveal: Callable[[str, Definition], object] | None,
) -> tuple[FieldChange, ...]:
    """The fields in which a stored job and what it is to become differ; *reveal* gives secrets, where they are to be seen."""
    pairs: list[tuple[str, Any, Any]] = [
        ("task", record.task, update.task or record.task),
        ("queue", record.queue, update.queue),
        ("priority", record.priority, update.priority),
        ("trigger", old.trigger.unbound(), new.trigger.unbound()),
        ("args", old.args, new.args),
        ("name", old.name, new.name),
        ("tags", list(old.tags), list(new.tags)),
        ("metadata", old.metadata, new.metadata),
        ("paused", old.paused, new.paused),
        ("application", old.declared and old.declared.by, new.declared and new.declared.by),
    ]
    pairs += [
        (name, getattr(old.policies, name), getattr(new.policies, name))
        for name in type(new.policies).__struct_fields__
    ]
    found: list[FieldChange] = []
    for name, before, after in pairs:
        # That a job which was added by a call is declared from now on is no change to it.
        if before == after or (name == "application" and before is None):
            continue
        if name not in _SECRET:
            found.append(FieldChange(name, _text(before), _text(after)))
        elif reveal is None:
            found.append(FieldChange(name, None, None))
        else:
            found.append(FieldChange(name, str(reveal(name, old)), str(reveal(name, new))))
    return tuple(found)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, msgspec.Struct) and not hasattr(value, "unbound"):
        fields = [(f.name, getattr(value, f.name), f.default) for f in msgspec.structs.fields(value)]
        return ", ".join(f"{name}={now!r}" for name, now, default in fields if now != default)
    return str(value)


def _times(one: Outlook | None, begin: float, end: float) -> FireTimes:
    if one is None or one.next is None or one.next > end:
        return FireTimes()
    trigger, first = one.trigger, in_zone(one.next, one.trigger.zone)
    if not trigger.recurs:
        return FireTimes(count=1, first=(first,))
    # What is late runs once, and then as if it had not been.
    since = max(one.next, begin)
    try:
        passed = trigger.passed(since, end)
        later = trigger.preview(min(_NAMED - 1, passed.count), to_datetime(since)) if passed.count else []
    except TriggerError:
        # It gave its search up: there may be others.
        return FireTimes(count=1, more=True, first=(first,))
    return FireTimes(count=1 + passed.count, more=passed.more, first=(first, *later))
