"""From what a user wrote to a record, and from a record to what a user sees. No I/O."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, cast

from asyncsched.codec import decode_cursor, decode_definition, encode
from asyncsched.contract import Record
from asyncsched.definition import Cursor, Definition, FlowLink, Pending, Policies
from asyncsched.errors import DefinitionError, SerializationError
from asyncsched.ids import check_id, check_name, is_limit, new_id
from asyncsched.model import Job, JobState
from asyncsched.plan import due_at, next_fire, next_request, synced
from asyncsched.registry import Task
from asyncsched.rules import DEFAULT_RULES, Rules, family_of, places_of
from asyncsched.specs import (
    JobSpec,
    bound_trigger,
    checked_args,
    checked_flags,
    checked_label,
    checked_mapping,
    checked_priority,
    checked_tags,
    policies_from,
)
from asyncsched.triggers import Manual, manual
from asyncsched.units import to_datetime

__all__ = ["Composer", "Standing", "is_at_work", "standing_of"]

T = TypeVar("T")

#: What paths to arguments begin with until it is known whether they are positional.
_ROOT = "arguments"
#: Instants that have been datetimes are whole microseconds.
_SAME_S = 1e-6
#: What is due so soon may be held ahead of its time.
_SOON_S = 1.0
#: Holds of what does nothing until somebody wants it to.
_RESTS = ("failed", "paused", "quarantined")
_NEW = Cursor()


class Composer:
    """Makes records of what users write, for one scheduler."""

    def __init__(
        self,
        dump: Callable[[Any, str], bytes],
        load: Callable[[bytes], Any],
        rules: Callable[[Policies], Rules],
    ) -> None:
        #: The rules that policies amount to, the scheduler's defaults included.
        self.rules_of = rules
        self._dump = dump
        self._load = load
        # Of its own, so that two schedulers of one process never take each other's adds for their own lost ones.
        self._births = int.from_bytes(os.urandom(8), "big")

    def record(
        self, spec: JobSpec, task: Task[..., Any], now: float, *, may_have_ended: bool = False
    ) -> tuple[Record, Definition]:
        """The record of a new job; everything about it is checked here, before anything is written. What stands in the code
        stays there when its last fire time has passed, so that may be no error (*may_have_ended*)."""
        id = new_id() if spec.id is None else check_id(spec.id)
        queue = spec.queue if spec.queue == "default" else check_name(spec.queue, "a queue's name")
        priority = checked_priority(spec.priority, id)
        try:
            definition = self._definition(spec, task, now, id, may_have_ended)
        except DefinitionError as error:
            error.job_id, error.store, error.task = error.job_id or spec.id, spec.store, task.name
            raise
        wake_at = None if definition.paused else definition.first
        rules = self.rules_of(definition.policies)
        if wake_at is not None and rules.jitter is not None:
            wake_at = due_at(definition, _NEW, wake_at, rules, (id, f"{self._births + 1:x}"))
        hold = "paused" if definition.paused else None
        self._births += 1
        birth = f"{self._births:x}"
        return Record(
            id, birth, queue, priority, task.name, wake_at, hold, encode(definition), b""
        ), definition

    def _definition(
        self, spec: JobSpec, task: Task[..., Any], now: float, id: str, may_have_ended: bool
    ) -> Definition:
        trigger = bound_trigger(spec.trigger, spec.delay, now, id)
        checked_flags(spec)
        first = now if spec.run_immediately else trigger.first(now)
        has_ended = may_have_ended and first is None and trigger.previous(now) is not None
        if first is None and not has_ended and not isinstance(trigger, Manual):
            raise DefinitionError(f"the trigger {trigger} of task {task.name} will never fire")
        args = checked_args(spec.args)
        kwargs = checked_mapping(spec.kwargs, "kwargs") if spec.kwargs is not None else {}
        task.signature.check(args, kwargs)
        policies = policies_from(spec.policies)
        if policies.concurrency_limit is not None:
            self.check_key(policies, spec.id)
        return Definition(
            now,
            now,
            trigger,
            1,
            first,
            self.arguments(args, kwargs),
            checked_label(spec.name) if spec.name is not None else None,
            policies,
            checked_tags(spec.tags) if spec.tags else (),
            self.packed(spec.metadata) if spec.metadata is not None else b"",
            spec.paused,
        )

    def check_key(self, policies: Policies, id: str | None) -> None:
        if self.rules_of(policies).concurrency_key is None:
            raise DefinitionError(
                "concurrency_limit is for jobs with a concurrency_key: give them one, or the task max_concurrency=",
                job_id=id,
            )

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
        """Encoded; raises SerializationError that names the path to what cannot be."""
        if not args and not kwargs:
            return b""
        try:
            return self._dump([list(args), dict(kwargs)], _ROOT)
        except SerializationError as error:
            message = str(error).replace(f"{_ROOT}[0]", "args", 1).replace(f"{_ROOT}[1]", "kwargs", 1)
            raise SerializationError(message) from error

    def values(self, definition: Definition) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        if not definition.args:
            return (), {}
        args, kwargs = self._load(definition.args)
        return tuple(args), kwargs

    def packed(self, metadata: Mapping[str, Any] | None) -> bytes:
        """Metadata as it is stored; raises SerializationError."""
        given = checked_mapping(metadata, "metadata")
        return self._dump(dict(given), "metadata") if given else b""

    def metadata(self, definition: Definition) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._load(definition.metadata) if definition.metadata else {}
        return found

    def rules(self, record: Record) -> Rules:
        """The policies that count for a job, the scheduler's defaults included."""
        try:
            return self.rules_of(decode_definition(record.body).policies)
        except SerializationError:
            return DEFAULT_RULES

    def family(self, record: Record) -> list[str]:
        """The ids of a job's children, if it may have any."""
        return self.kin(record)[0]

    def kin(self, record: Record) -> tuple[list[str], tuple[FlowLink, ...]]:
        """The ids of a job's children, and the executions of workflows that wait for its end."""
        try:
            definition = decode_definition(record.body)
        except SerializationError:
            return [], ()
        places = max(definition.places, places_of(self.rules_of(definition.policies)))
        return family_of(record.id, places), definition.flows

    # -- showing -------------------------------------------------------------------------------------------------------

    def job(self, record: Record, store: str, definition: Definition | None = None) -> Job:
        """What a user sees of a record; one that cannot be read shows why in its ``last_error``."""
        if definition is not None:
            return _fresh_job(self, record, store, definition)
        try:
            definition = decode_definition(record.body)
            cursor = synced(definition, decode_cursor(record.cursor))
        except SerializationError as error:
            return _unreadable_job(record, store, error)
        nothing: tuple[tuple[Any, ...], Mapping[str, Any]] = ((), {})
        args, kwargs = self._shown(self.values, definition, nothing)
        tally = cursor.tally
        return Job(
            id=record.id,
            name=definition.name or record.task,
            task=record.task,
            trigger=definition.trigger,
            args=args,
            kwargs=kwargs,
            store=store,
            queue=record.queue,
            priority=record.priority,
            tags=definition.tags,
            metadata=self._shown(self.metadata, definition, {}),
            state=_state(record),
            next_fire_time=_at(_next_fire_time(record, definition, cursor)),
            last_run=_at(tally.last_run),
            last_success=_at(tally.last_success),
            last_error=tally.last_error,
            consecutive_failures=tally.consecutive_failures,
            created_at=to_datetime(definition.created_at),
            updated_at=to_datetime(definition.updated_at),
            version=record.version,
        )

    def _shown(self, read: Callable[[Definition], T], definition: Definition, otherwise: T) -> T:
        """Values for the eye: what cannot be read here (its class is not loaded, say) is left out."""
        try:
            return read(definition)
        except SerializationError:
            return otherwise


class Standing(NamedTuple):
    """What the store says of one fire time of a job."""

    job: Job
    #: The id of its run that is under way; None: there is none.
    run_id: str | None = None
    #: A run was asked for at that instant, and has not ended.
    is_asked_for: bool = False
    #: It was attempted, and is to be again.
    is_tried_again: bool = False


def standing_of(record: Record, children: Iterable[Record], job: Job, fire: float, now: float) -> Standing:
    """How a fire time of a job stands, by its record and those of its children."""
    child = next((child for child in children if _stands_for(child, fire)), None)
    if child is not None:
        return Standing(job, _run_id(child), is_tried_again=child.hold not in _RESTS)
    try:
        definition = decode_definition(record.body)
        cursor = synced(definition, decode_cursor(record.cursor))
    except SerializationError:
        return Standing(job)
    pending, first = cursor.pending, next_request(definition, cursor)
    asked = [r for r in definition.requests if r.no > cursor.request and abs(r.at - fire) <= _SAME_S]
    # What was due before it was asked for goes first.
    is_next = first in asked and (pending is not None or cursor.next is None or fire < cursor.next)
    is_only = first is None and not definition.trigger.recurs
    is_its_turn = is_next if asked else is_only or fire <= now + _SOON_S
    return Standing(
        job,
        _run_id(record) if is_its_turn else None,
        is_asked_for=bool(asked),
        is_tried_again=pending is not None
        and pending.fire <= fire + _SAME_S
        and record.hold not in ("failed", "quarantined"),
    )


def is_at_work(child: Record, fire: float | None) -> bool:
    """Whether a child of an overlapping job runs, or is about to; with *fire*: whether that fire time is still to end in it."""
    if fire is not None:
        return child.hold not in _RESTS and _stands_for(child, fire)
    pending = _pending_of(child)
    is_first = pending is not None and not pending.failed
    return child.holder is not None or (child.hold not in _RESTS and is_first)


def _stands_for(child: Record, fire: float) -> bool:
    pending = _pending_of(child)
    return pending is not None and abs(pending.fire - fire) <= _SAME_S


def _pending_of(child: Record) -> Pending | None:
    try:
        return synced(decode_definition(child.body), decode_cursor(child.cursor)).pending
    except SerializationError:
        return None


def _run_id(record: Record) -> str | None:
    return None if record.holder is None else f"{record.id}@{record.fence}"


def _fresh_job(composer: Composer, record: Record, store: str, definition: Definition) -> Job:
    """The job of a record that was just made: nothing has happened to it yet."""
    args, kwargs = composer.values(definition)
    created = _cached_datetime(definition.created_at)
    return Job(
        id=record.id,
        name=definition.name or record.task,
        task=record.task,
        trigger=definition.trigger,
        args=args,
        kwargs=kwargs,
        store=store,
        queue=record.queue,
        priority=record.priority,
        tags=definition.tags,
        metadata=composer.metadata(definition) if definition.metadata else {},
        state="paused" if definition.paused else "scheduled",
        next_fire_time=None if record.wake_at is None else _cached_datetime(record.wake_at),
        created_at=created,
        updated_at=created,
    )


@lru_cache(maxsize=64)
def _cached_datetime(instant: float) -> datetime:
    """Jobs that are added together have the same instants."""
    return to_datetime(instant)


def _unreadable_job(record: Record, store: str, error: SerializationError) -> Job:
    at = to_datetime(record.wake_at or 0.0)
    return Job(
        id=record.id,
        name=record.task,
        task=record.task,
        trigger=manual(),
        store=store,
        queue=record.queue,
        priority=record.priority,
        state=_state(record),
        last_error=f"cannot be read: {error}",
        created_at=at,
        updated_at=at,
        version=record.version,
    )


def _state(record: Record) -> JobState:
    if record.hold in ("paused", "failed", "quarantined"):
        return cast(JobState, record.hold)
    if record.holder is not None:
        return "running"
    return "limited" if is_limit(record.hold) else "scheduled"


def _next_fire_time(record: Record, definition: Definition, cursor: Cursor) -> float | None:
    if record.hold in ("paused", "failed", "quarantined"):
        return None
    request = next_request(definition, cursor)
    if record.holder is None:
        if not is_limit(record.hold):
            return record.wake_at
        # It is due; its wake time is when it looks by itself.
        return request.at if request is not None else next_fire(cursor)
    fire = cursor.next
    if request is not None and fire is not None and request.at < fire:
        # It is the request's run that is under way.
        return fire
    return definition.trigger.next(fire) if fire is not None and definition.trigger.recurs else None


def _at(instant: float | None) -> Any:
    return None if instant is None else to_datetime(instant)
