"""What users write of a job: the spec of a new one, its policies, and what may be changed later; checked, not yet composed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypedDict, cast, get_args

import msgspec
from msgspec.structs import replace

from asyncsched.codec import retry_to
from asyncsched.definition import JitterForm, Policies
from asyncsched.errors import DefinitionError
from asyncsched.ids import check_encodable, check_name
from asyncsched.model import CatchUp, Jitter, OnExhausted, Overlap, Retry
from asyncsched.rates import check_limit, parse_rate
from asyncsched.registry import Call, Task
from asyncsched.triggers import AnyTrigger, Once, parse_trigger
from asyncsched.units import Duration, to_seconds

__all__ = [
    "EDITABLE", "POLICY_NAMES", "JobChanges", "JobSpec", "PolicyArgs", "TriggerLike", "bound_trigger", "checked_args",
    "checked_flag", "checked_flags", "checked_label", "checked_mapping", "checked_priority",
    "checked_tags", "policies_from", "with_call",
]  # fmt: skip

TriggerLike = AnyTrigger | str


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
    #: Jobs with the same key share a limit, whatever their tasks, queues and instances.
    concurrency_key: str | None
    #: How many runs with the key may be under way (1).
    concurrency_limit: int | None
    #: So many may start in which time: "100/minute"; those over it start later. With a key: of all jobs with the key.
    rate_limit: str | None


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
_TRIGGERS = frozenset(get_args(AnyTrigger))
_DURATIONS = ("timeout", "cancel_grace", "abandon_after", "misfire_grace")
_COUNTS = ("max_crashes", "max_catch_up", "max_instances", "max_runs", "pause_after_failures")
_CHOICES = {
    "on_exhausted": ("keep", "remove", "pause"),
    "catch_up": ("latest", "earliest", "all", "none"),
    "overlap": ("skip", "queue_one", "queue_all", "cancel_running", "allow"),
}
_LONGEST_KEY = 200
_SPEC_FIELDS = {
    field.name: field.default
    for field in msgspec.structs.fields(JobSpec)
    if field.name not in ("task", "args", "kwargs", "policies")
}
#: What ``update_job`` can change.
POLICY_NAMES = frozenset(PolicyArgs.__annotations__)
EDITABLE = frozenset(JobChanges.__annotations__) - POLICY_NAMES


def policies_from(given: Mapping[str, Any]) -> Policies:
    """Checked policies; an unknown one, or one of a wrong value, raises DefinitionError."""
    if not given:
        return _NO_POLICIES
    if not isinstance(given, Mapping):
        raise DefinitionError(f"policies are a mapping, such as {{'timeout': 30}}, not {given!r}")
    checked: dict[str, Any] = {}
    for name, value in given.items():
        if name not in POLICY_NAMES:
            raise DefinitionError(f"unknown policy {name!r}; known: {', '.join(sorted(POLICY_NAMES))}")
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
    if name == "concurrency_key":
        if len(check_name(value, name)) > _LONGEST_KEY:
            raise DefinitionError(
                f"{name} must have 1 to {_LONGEST_KEY} characters; {value[:40]!r} has {len(value)}"
            )
    elif name == "concurrency_limit":
        check_limit(value, name)
    elif name == "rate_limit":
        parse_rate(value)
    if name in _COUNTS and (type(value) is not int or value < 1):
        raise DefinitionError(f"{name} must be 1 or more, not {value!r}")
    return value


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
    if type(trigger) not in _TRIGGERS:
        raise DefinitionError(
            f"a trigger is made by once(), every(), cron() or manual(), or is a string such as '@every 5m'; not {trigger!r}"
        )
    return cast(AnyTrigger, trigger.bind(now, id))


def with_call(spec: JobSpec) -> JobSpec:
    """A bound call's arguments, and its policies where the spec says nothing else."""
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
            if getattr(spec, name) == _SPEC_FIELDS[name]:
                fields[name] = value
        elif name not in policies:
            policies[name] = value
    return replace(spec, **fields, policies=policies)


def checked_tags(tags: Sequence[str]) -> tuple[str, ...]:
    if isinstance(tags, str):
        raise DefinitionError(
            f"tags must be a sequence of strings, not the string {tags!r}: write tags=[{tags!r}]"
        )
    if not isinstance(tags, Collection):
        raise DefinitionError(f"tags must be a sequence of strings, not {tags!r}")
    return tuple(check_name(tag, "a tag") for tag in tags)


def checked_args(args: Sequence[Any]) -> tuple[Any, ...]:
    """As a tuple; a string is no sequence of arguments, and an iterator would be empty when the job is made a second time."""
    if type(args) is tuple:
        return args
    if not isinstance(args, Sequence) or isinstance(args, str | bytes | bytearray):
        raise DefinitionError(f"args must be a list or a tuple, not {args!r}: write args=[...]")
    return tuple(args)


def checked_mapping(value: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    """An empty one for None."""
    if value is not None and not isinstance(value, Mapping):
        raise DefinitionError(f"{name} must be a mapping, not {value!r}: write {name}={{...}}")
    return value or {}


def checked_label(name: str | None) -> str | None:
    """The name of a job, which is for people to read: any text."""
    if name is not None:
        if not isinstance(name, str):
            raise DefinitionError(f"a job's name must be a string or None, not {name!r}")
        check_encodable(name, "a job's name")
    return name


def checked_flags(spec: JobSpec) -> None:
    """Whatever is no bool would be stored as it is, and could not be read back."""
    if not (type(spec.paused) is type(spec.run_immediately) is type(spec.run_on_start) is bool):
        for name in ("paused", "run_immediately", "run_on_start"):
            checked_flag(getattr(spec, name), name)


def checked_flag(value: bool, name: str) -> bool:
    if type(value) is not bool:
        raise DefinitionError(f"{name} must be True or False, not {value!r}")
    return value


def checked_priority(priority: int, id: str) -> int:
    if type(priority) is not int or not 0 <= priority <= 9:
        raise DefinitionError(f"priority must be a whole number from 0 to 9, not {priority!r}", job_id=id)
    return priority
