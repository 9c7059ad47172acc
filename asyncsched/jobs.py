"""From what a user wrote to a record, and back: composing, editing and showing jobs. No I/O."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, TypedDict, TypeVar, cast

import msgspec
from msgspec.structs import replace

from asyncsched.codec import decode_cursor, decode_definition, encode, retry_to
from asyncsched.contract import Record, Update
from asyncsched.definition import MAX_REQUESTS, Cursor, Definition, JitterForm, Policies, Request
from asyncsched.errors import DefinitionError, JobPaused, SerializationError, TooManyRequests
from asyncsched.ids import check_id, check_name, new_id
from asyncsched.model import CatchUp, Jitter, Job, JobState, OnExhausted, Overlap, Retry
from asyncsched.plan import due_of, next_fire, next_request, synced, wake_of
from asyncsched.registry import Call, Task
from asyncsched.rules import Rules, family_of
from asyncsched.triggers import AnyTrigger, Manual, Once, Trigger, manual, parse_trigger
from asyncsched.units import Duration, to_datetime, to_seconds

__all__ = ["Composer", "JobChanges", "JobSpec", "PolicyArgs", "policies_from", "with_call"]

TriggerLike = AnyTrigger | str
T = TypeVar("T")


class PolicyArgs(TypedDict, total=False):
    """How a job is to be run; what is left out is as its task says, then as the scheduler's defaults say."""

    retry: Retry | None
    #: Seconds or timedelta; the run is cancelled then.
    timeout: Duration | None
    #: How long a cancelled run may take to end.
    cancel_grace: Duration
    #: How long a cancelled thread is waited for; by default until it returns.
    abandon_after: Duration
    on_exhausted: OnExhausted
    #: Lost claims in a row before the job is quarantined.
    max_crashes: int
    #: A fire time does not run if it would start later than this after it was due (seconds or timedelta; None: however late).
    misfire_grace: Duration | None
    #: Which fire times run of those that passed while nobody ran; the others are decisions.
    catch_up: CatchUp
    #: How many fire times are caught up with, or queue behind a run; the newest are kept.
    max_catch_up: int
    #: What becomes of fire times that come while the job runs.
    overlap: Overlap
    #: With overlap="allow": how many runs may be under way at once (10).
    max_instances: int
    #: Start up to so much later, by the job and the fire time; Jitter(30, random=True): without a pattern.
    jitter: Duration | Jitter | None
    #: The job ends after so many fire times.
    max_runs: int | None
    #: The job is paused after so many failures in a row.
    pause_after_failures: int | None


class JobChanges(PolicyArgs, total=False):
    """What ``update_job`` can change; what is left out stays as it is."""

    name: str | None
    args: Sequence[Any]
    kwargs: Mapping[str, Any] | None
    trigger: TriggerLike
    queue: str
    priority: int
    tags: Sequence[str]
    metadata: Mapping[str, Any] | None


class JobSpec(msgspec.Struct, frozen=True):
    """One job to add with ``add_jobs``; the fields are the arguments of ``add_job``."""

    task: Task[..., Any] | Call | Callable[..., Any] | str
    trigger: TriggerLike | None = None
    id: str | None = None
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] | None = None
    name: str | None = None
    store: str = "default"
    queue: str = "default"
    priority: int = 0
    tags: Sequence[str] = ()
    metadata: Mapping[str, Any] | None = None
    paused: bool = False
    run_immediately: bool = False
    run_on_start: bool = False
    policies: PolicyArgs = {}  # msgspec copies empty defaults
    delay: Duration | None = None


_NO_POLICIES = Policies()
#: What paths to arguments begin with until it is known whether they are positional.
_ROOT = "arguments"
_DURATIONS = ("timeout", "cancel_grace", "abandon_after", "misfire_grace")
_COUNTS = ("max_crashes", "max_catch_up", "max_instances", "max_runs", "pause_after_failures")
_CHOICES = {
    "on_exhausted": ("keep", "remove", "pause"),
    "catch_up": ("latest", "earliest", "all", "none"),
    "overlap": ("skip", "queue_one", "queue_all", "cancel_running", "allow"),
}
_SPEC_FIELDS = frozenset(JobSpec.__struct_fields__) - {"task", "args", "kwargs", "policies"}
_POLICY_NAMES = frozenset(PolicyArgs.__annotations__)


def policies_from(given: Mapping[str, Any]) -> Policies:
    """Checked policies; an unknown one, or one of a wrong value, raises DefinitionError."""
    if not given:
        return _NO_POLICIES
    checked: dict[str, Any] = {}
    for name, value in given.items():
        if name not in _POLICY_NAMES:
            raise DefinitionError(f"unknown policy {name!r}; known: {', '.join(sorted(_POLICY_NAMES))}")
        if value is not None:
            checked[name] = _checked_policy(name, value)
    return Policies(**checked)


def _checked_policy(name: str, value: Any) -> Any:
    if name == "retry":
        if not isinstance(value, Retry):
            raise DefinitionError(f"retry must be a Retry, such as Retry(max_attempts=3), not {value!r}")
        return retry_to(value)
    if name in _DURATIONS:
        return to_seconds(value, name, positive=name == "timeout")
    if name == "jitter":
        jitter = value if isinstance(value, Jitter) else Jitter(value)
        return JitterForm(cast(float, jitter.seconds), jitter.random)
    if name in _CHOICES and value not in _CHOICES[name]:
        choices = ", ".join(f'"{choice}"' for choice in _CHOICES[name])
        raise DefinitionError(f"{name} must be one of {choices}, not {value!r}")
    if name in _COUNTS and (type(value) is not int or value < 1):
        raise DefinitionError(f"{name} must be 1 or more, not {value!r}")
    return value


class Composer:
    """Makes records of what users write, for one scheduler."""

    def __init__(
        self,
        dump: Callable[[Any, str], bytes],
        load: Callable[[bytes], Any],
        rules: Callable[[Policies], Rules],
    ) -> None:
        self._rules = rules
        self._dump = dump
        self._load = load
        # Of its own, so that two schedulers of one process never take each other's adds for their own lost ones.
        self._births = int.from_bytes(os.urandom(8), "big")

    def record(self, spec: JobSpec, task: Task[..., Any], now: float) -> tuple[Record, Definition]:
        """The record of a new job; everything about it is checked here, before anything is written."""
        id = new_id() if spec.id is None else check_id(spec.id)
        queue = spec.queue if spec.queue == "default" else check_name(spec.queue, "a queue's name")
        if type(spec.priority) is not int or not 0 <= spec.priority <= 9:
            raise DefinitionError(
                f"priority must be a whole number from 0 to 9, not {spec.priority!r}", job_id=id
            )
        try:
            definition = self._definition(spec, task, now, id)
        except DefinitionError as error:
            error.job_id, error.store, error.task = error.job_id or spec.id, spec.store, task.name
            raise
        wake_at = None if definition.paused else definition.first
        if wake_at is not None and definition.policies.jitter is not None and not spec.run_immediately:
            rules = self._rules(definition.policies)
            wake_at = due_of(definition.trigger, wake_at, rules, (id, f"{self._births + 1:x}"))
        hold = "paused" if definition.paused else None
        self._births += 1
        birth = f"{self._births:x}"
        return Record(
            id, birth, queue, spec.priority, task.name, wake_at, hold, encode(definition), b""
        ), definition

    def _definition(self, spec: JobSpec, task: Task[..., Any], now: float, id: str) -> Definition:
        trigger = bound_trigger(spec.trigger, spec.delay, now, id)
        first = now if spec.run_immediately else trigger.first(now)
        if first is None and not isinstance(trigger, Manual):
            raise DefinitionError(f"the trigger {trigger} of task {task.name} will never fire")
        args, kwargs = tuple(spec.args), spec.kwargs or {}
        task.signature.check(args, kwargs)
        return Definition(
            now,
            now,
            trigger,
            1,
            first,
            self.arguments(args, kwargs),
            spec.name,
            policies_from(spec.policies),
            _tags(spec.tags) if spec.tags else (),
            self._dump(dict(spec.metadata), "metadata") if spec.metadata else b"",
            spec.paused,
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

    def metadata(self, definition: Definition) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._load(definition.metadata) if definition.metadata else {}
        return found

    def family(self, record: Record) -> list[str]:
        """The ids of a job's children, if it may have any."""
        try:
            definition = decode_definition(record.body)
        except SerializationError:
            return []
        return family_of(record.id, self._rules(definition.policies))

    # -- edits: each gives the update that makes it, or None where nothing would change ---------------------------------

    def merge(self, record: Record, wanted: Record, written: Definition, now: float) -> Update | None:
        """The stored job as it is now wanted: an unchanged trigger keeps its progress, and a pause stays."""
        old = decode_definition(record.body)
        same_trigger = old.trigger.unbound() == written.trigger.unbound()
        new = replace(
            written,
            created_at=old.created_at,
            updated_at=old.updated_at,
            trigger=old.trigger if same_trigger else written.trigger,
            rev=old.rev if same_trigger else record.version + 1,
            first=old.first if same_trigger else written.first,
            paused=old.paused or written.paused,
            resumed=old.resumed,
            requests=old.requests,
        )
        placed = (record.queue, record.priority, record.task) == (wanted.queue, wanted.priority, wanted.task)
        if new == old and placed:
            return None
        update = self._update(record, replace(new, updated_at=now), now, clear=not same_trigger)
        return replace(update, queue=wanted.queue, priority=wanted.priority, task=wanted.task)

    def edit(
        self, record: Record, task: Task[..., Any] | None, changes: Mapping[str, Any], now: float
    ) -> Update:
        """Some fields of a job changed."""
        old = decode_definition(record.body)
        fields: dict[str, Any] = {"updated_at": now}
        policies = {name: value for name, value in changes.items() if name in _POLICY_NAMES}
        unknown = set(changes) - _POLICY_NAMES - _EDITABLE
        if unknown:
            raise DefinitionError(
                f"update_job() cannot change {', '.join(sorted(unknown))}; it can change "
                f"{', '.join(sorted(_EDITABLE | _POLICY_NAMES))}",
                job_id=record.id,
            )
        if policies:
            given = policies_from(policies)
            fields["policies"] = replace(old.policies, **{name: getattr(given, name) for name in policies})
        if "args" in changes or "kwargs" in changes:
            fields["args"] = self._new_arguments(old, task, changes)
        if "name" in changes:
            fields["name"] = changes["name"]
        if "tags" in changes:
            fields["tags"] = _tags(changes["tags"])
        if "metadata" in changes:
            fields["metadata"] = (
                self._dump(dict(changes["metadata"]), "metadata") if changes["metadata"] else b""
            )
        clear = "trigger" in changes
        if clear:
            trigger = bound_trigger(changes["trigger"], None, now, record.id)
            if trigger.unbound() != old.trigger.unbound():
                fields |= {"trigger": trigger, "rev": record.version + 1, "first": trigger.first(now)}
        update = self._update(record, replace(old, **fields), now, clear=clear)
        priority = changes.get("priority", record.priority)
        if type(priority) is not int or not 0 <= priority <= 9:
            raise DefinitionError(
                f"priority must be a whole number from 0 to 9, not {priority!r}", job_id=record.id
            )
        queue = check_name(changes.get("queue", record.queue), "a queue's name")
        return replace(update, queue=queue, priority=priority)

    def _new_arguments(
        self, old: Definition, task: Task[..., Any] | None, changes: Mapping[str, Any]
    ) -> bytes:
        args, kwargs = self.values(old)
        args = tuple(changes.get("args", args) or ())
        kwargs = changes.get("kwargs", kwargs) or {}
        if task is not None:
            task.signature.check(args, kwargs)
        return self.arguments(args, kwargs)

    def reschedule(self, record: Record, trigger: TriggerLike, now: float) -> Update:
        """Another trigger: fire times are computed anew, and what was pending for the old one is forgotten."""
        old = decode_definition(record.body)
        bound = bound_trigger(trigger, None, now, record.id)
        new = replace(
            old, updated_at=now, trigger=bound, rev=record.version + 1, first=bound.first(now), resumed=None
        )
        return self._update(record, new, now, clear=True)

    def pause(self, record: Record, now: float) -> Update | None:
        old = decode_definition(record.body)
        if old.paused and (record.hold == "paused" or record.holder is not None):
            return None
        return self._update(record, replace(old, updated_at=now, paused=True), now, clear=True)

    def resume(self, record: Record, now: float) -> Update | None:
        """No backlog: a recurring job takes its next fire time from now, and what passed is one decision."""
        old = decode_definition(record.body)
        if not old.paused and record.hold is None:
            return None
        cursor = synced(old, decode_cursor(record.cursor))
        new = replace(old, updated_at=now, paused=False)
        if not old.trigger.recurs:
            if next_fire(cursor) is None:
                new = replace(new, rev=record.version + 1, first=now)
        elif (old.paused or record.hold == "paused") and cursor.next is not None:
            new = replace(new, rev=record.version + 1, **_resumed(old.trigger, cursor.next, now))
        return self._update(record, new, now, clear=True)

    def is_asked_for(self, record: Record) -> bool:
        """Whether a run was asked for that has not been made."""
        try:
            definition = decode_definition(record.body)
            return next_request(definition, synced(definition, decode_cursor(record.cursor))) is not None
        except SerializationError:
            return False

    def request(self, record: Record, now: float, *, force: bool) -> Update:
        """One more run, now; the schedule stays as it is."""
        old = decode_definition(record.body)
        if (old.paused or record.hold == "paused") and not force:
            raise JobPaused(
                f"job {record.id!r} is paused; resume it, or run_job(..., force=True)", job_id=record.id
            )
        done = decode_cursor(record.cursor).request
        waiting = tuple(request for request in old.requests if request.no > done)
        if len(waiting) >= MAX_REQUESTS:
            raise TooManyRequests(
                f"job {record.id!r} has {len(waiting)} run requests pending already; wait for it",
                job_id=record.id,
            )
        new = replace(old, requests=(*waiting, Request(record.version + 1, now, force)))
        update = self._update(record, new, now, clear=record.hold in ("failed", "quarantined"))
        return replace(update, wake_at=now)

    def _update(self, record: Record, new: Definition, now: float, *, clear: bool) -> Update:
        """The update that writes *new*. Without *clear* a record that is held back stays so."""
        cursor = decode_cursor(record.cursor)
        hold, wake_at = (
            ("paused", None)
            if new.paused
            else (None, wake_of(new, cursor, now, self._rules(new.policies), (record.id, record.birth)))
        )
        if record.hold is not None and not clear:
            hold, wake_at = record.hold, record.wake_at
        return Update(
            id=record.id,
            version=record.version,
            body=encode(new),
            queue=record.queue,
            priority=record.priority,
            wake_at=wake_at,
            hold=hold,
        )

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


_EDITABLE = frozenset(JobChanges.__annotations__) - _POLICY_NAMES


def bound_trigger(
    trigger: TriggerLike | None, delay: Duration | None, now: float, id: str = ""
) -> AnyTrigger:
    """What a user gave as a trigger, bound to the instant of adding."""
    if trigger is None:
        if delay is None:
            return Once(now)
        return Once(Once(None, to_seconds(delay, "delay")).bind(now).at)
    if delay is not None:
        raise DefinitionError(
            "delay= is for a job without a trigger; use once(delay=...) or a trigger's start="
        )
    if isinstance(trigger, str):
        trigger = parse_trigger(trigger)
    if not isinstance(trigger, Trigger):
        raise DefinitionError(
            f"a trigger is made by once(), every(), cron() or manual(), or is a string such as '@every 5m'; not {trigger!r}"
        )
    return cast(AnyTrigger, trigger.bind(now, id))


def _resumed(trigger: AnyTrigger, fire: float, now: float) -> dict[str, Any]:
    """The first fire time after a rest that began before *fire*, and what passed in it."""
    if fire > now:
        return {"first": fire, "resumed": None}
    passed = trigger.passed(fire, now)
    last = fire if passed.last is None else passed.last
    return {"first": passed.next, "resumed": (fire, last, passed.count + 1, passed.more)}


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
    return "scheduled" if record.holder is None else "running"


def _next_fire_time(record: Record, definition: Definition, cursor: Cursor) -> float | None:
    if record.hold in ("paused", "failed", "quarantined"):
        return None
    if record.holder is None:
        return record.wake_at
    fire = cursor.next
    request = next_request(definition, cursor)
    if request is not None and fire is not None and request.at < fire:
        # It is the request's run that is under way.
        return fire
    return definition.trigger.next(fire) if fire is not None and definition.trigger.recurs else None


def with_call(spec: JobSpec) -> JobSpec:
    """A bound call's arguments and policies, in the place of the spec's."""
    call = spec.task
    if not isinstance(call, Call):
        return spec
    if spec.args or spec.kwargs:
        raise DefinitionError(
            "a bound call has its arguments already: leave out args= and kwargs=", task=call.task.name
        )
    fields: dict[str, Any] = {"task": call.task, "args": call.args, "kwargs": call.kwargs}
    policies = dict(spec.policies)
    for name, value in call.policies.items():
        if name in _SPEC_FIELDS:
            fields[name] = value
        elif name not in policies:
            policies[name] = value
    return replace(spec, **fields, policies=policies)


def _tags(tags: Sequence[str]) -> tuple[str, ...]:
    if isinstance(tags, str):
        raise DefinitionError(
            f"tags must be a sequence of strings, not the string {tags!r}: write tags=[{tags!r}]"
        )
    return tuple(check_name(tag, "a tag") for tag in tags)


def _at(instant: float | None) -> Any:
    return None if instant is None else to_datetime(instant)
