"""The values that users meet: Job, Run, Retry, Retention, and what a task may return or raise to steer its job."""

from __future__ import annotations

import math
import random as _random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from asyncsched.errors import DefinitionError
from asyncsched.triggers import AnyTrigger
from asyncsched.units import Duration, to_instant, to_seconds

__all__ = [
    "Carry",
    "CatchUp",
    "ClockSkew",
    "Decision",
    "Finish",
    "GiveUp",
    "Jitter",
    "Job",
    "JobState",
    "Outcome",
    "Overlap",
    "Retention",
    "Retry",
    "RetryLater",
    "Run",
    "Skip",
    "Snooze",
    "Stats",
    "Steering",
]

#: How a run ended. A fire time that never ran has a Decision instead.
Outcome = Literal["succeeded", "failed", "timed_out", "cancelled", "lost"]

#: ``scheduled``: waits for its time. ``running``: an instance holds it. ``paused``: by a user. ``failed``: a one-shot out of
#: attempts, kept until retention removes it. ``quarantined``: it cannot be run as it is; ``resume_job`` tries again.
#: ``limited``: it is due, and waits for a place under a limit.
JobState = Literal["scheduled", "running", "limited", "paused", "failed", "quarantined"]

OnExhausted = Literal["keep", "remove", "pause"]
#: Which of the fire times that passed while nobody ran are run: the last, the first, each (within a bound), or none.
CatchUp = Literal["latest", "earliest", "all", "none"]
#: What becomes of fire times that come while the job runs.
Overlap = Literal["skip", "queue_one", "queue_all", "cancel_running", "allow"]

#: Delays are cut here (about 31 years) so that no exponent overflows.
_LONGEST_S = 1e9
#: More attempts than this change no delay any more.
_MANY = 10**18


@dataclass(frozen=True, slots=True)
class Retry:
    """How a failed run is tried again: base * multiplier ** (failed attempts - 1), spread at random, up to *max_delay*.

    Delays are seconds or timedelta and run from the attempt's end. *delays* gives them one by one instead (the last one
    repeats if *max_attempts* allows more; else there are as many retries as delays). *spread* = 0.1 moves a delay by up to
    10 % either way; *max_delay* holds after the spread. *max_attempts* counts the first attempt too; None: no limit.
    An error is retried if it is one of *on* and none of *never_on*: each an exception class, or a tuple of them.
    """

    max_attempts: int | None = None
    base: Duration = 1.0
    multiplier: float = 2.0
    max_delay: Duration | None = None
    spread: float = 0.0
    delays: Sequence[Duration] | None = None
    on: type[BaseException] | tuple[type[BaseException], ...] = (Exception,)
    never_on: type[BaseException] | tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if self.max_attempts is not None and (
            not isinstance(self.max_attempts, int) or self.max_attempts < 1
        ):
            raise DefinitionError(
                f"Retry(max_attempts=) must be 1 or more, or None, not {self.max_attempts!r}"
            )
        if not (math.isfinite(self.multiplier) and self.multiplier > 0):
            raise DefinitionError(f"Retry(multiplier=) must be above zero, not {self.multiplier!r}")
        if not 0 <= self.spread <= 1:
            raise DefinitionError(f"Retry(spread=) must lie between 0 and 1, not {self.spread!r}")
        set_ = object.__setattr__
        set_(self, "base", to_seconds(self.base, "Retry(base=)"))
        if self.max_delay is not None:
            set_(self, "max_delay", to_seconds(self.max_delay, "Retry(max_delay=)"))
        if self.delays is not None:
            delays = tuple(to_seconds(delay, "Retry(delays=)") for delay in self.delays)
            if not delays:
                raise DefinitionError("Retry(delays=) must hold one delay or more, or be None")
            set_(self, "delays", delays)
        for name in ("on", "never_on"):
            set_(self, name, _error_types(getattr(self, name), name))

    def delay(self, failed_attempt: int, *, random: Callable[[], float] = _random.random) -> timedelta | None:
        """The wait after the given failed attempt (1, 2, ...); None when there is no further attempt.

        *random* gives numbers in [0, 1) for the spread.
        """
        if failed_attempt < 1:
            raise DefinitionError(f"Retry.delay() counts failed attempts from 1, not {failed_attempt!r}")
        seconds = self._seconds(failed_attempt)
        if seconds is None:
            return None
        if self.spread:
            seconds *= 1 + self.spread * (2 * random() - 1)
        cap = _LONGEST_S if self.max_delay is None else min(_LONGEST_S, _plain(self.max_delay))
        return timedelta(seconds=min(seconds, cap))

    def applies_to(self, error: BaseException) -> bool:
        """Whether this error is one to try again after."""
        return isinstance(error, self.on) and not isinstance(error, self.never_on)

    def _seconds(self, failed_attempt: int) -> float | None:
        if self.max_attempts is not None and failed_attempt >= self.max_attempts:
            return None
        if self.delays is not None:
            if failed_attempt > len(self.delays) and self.max_attempts is None:
                return None
            return _plain(self.delays[min(failed_attempt, len(self.delays)) - 1])
        base = _plain(self.base)
        if base == 0:
            return 0.0
        exponent = min(failed_attempt - 1, _MANY) * math.log(self.multiplier)
        return base * math.exp(exponent) if exponent + math.log(base) < math.log(_LONGEST_S) else _LONGEST_S


@dataclass(frozen=True, slots=True)
class Jitter:
    """Start up to so much later than the trigger says, so that jobs of one time do not all start at once.

    The delay follows from the job and the fire time, so it is the same wherever it is computed; with *random* it differs from
    one fire time to the next without any pattern. It never reaches the next fire time, and shifts none.
    """

    seconds: Duration
    random: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", to_seconds(self.seconds, "Jitter(seconds=)"))


@dataclass(frozen=True, slots=True)
class Retention:
    """What history keeps: entries younger than *age*, and the newest *per_job* of each job; None: no bound.

    Looked after *every* so often, in small batches. A failed one-shot is kept for *age* too, and so is an execution of a workflow
    after its end; of those that have ended the newest *workflows* are kept (None: no bound).
    """

    age: Duration | None = 7 * 86400.0
    per_job: int | None = 100
    every: Duration = 60.0
    workflows: int | None = None

    def __post_init__(self) -> None:
        if self.age is not None:
            object.__setattr__(self, "age", to_seconds(self.age, "Retention(age=)"))
        if self.per_job is not None and self.per_job < 0:
            raise DefinitionError(f"Retention(per_job=) must be 0 or more, or None, not {self.per_job!r}")
        if self.workflows is not None and self.workflows < 0:
            raise DefinitionError(f"Retention(workflows=) must be 0 or more, or None, not {self.workflows!r}")
        object.__setattr__(self, "every", to_seconds(self.every, "Retention(every=)", positive=True))


class Job(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A durable request to run a task, as it was when it was read. Change it with ``update_job`` and its kin."""

    id: str
    name: str
    #: The registered name of its task.
    task: str
    trigger: AnyTrigger
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = msgspec.field(default_factory=dict)
    store: str = "default"
    queue: str = "default"
    #: 0 to 9; higher goes first.
    priority: int = 0
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = msgspec.field(default_factory=dict)
    state: JobState = "scheduled"
    #: When it is due next (a pending retry included), or may be claimed again where no instance could run it; None: never by
    #: itself.
    next_fire_time: datetime | None = None
    last_run: datetime | None = None
    last_success: datetime | None = None
    last_error: str | None = None
    consecutive_failures: int = 0
    created_at: datetime
    updated_at: datetime
    version: int = 1


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One claimed attempt at one fire time, identified by its id."""

    #: ``job_id@fence``; with ``overlap="allow"`` ``job_id#n@fence``, since several runs may have been claimed at once.
    id: str
    job_id: str
    task: str
    #: The nominal instant that the trigger named; retries keep it.
    fire_time: datetime
    #: When this attempt was due.
    due_at: datetime
    started_at: datetime | None
    #: None while it runs.
    finished_at: datetime | None = None
    #: None while it runs, and where the history has an entry that cannot be read: ``error`` says so.
    outcome: Outcome | None = None
    #: 1, 2, ... within one fire time.
    attempt: int = 1
    fence: int
    #: The id of the scheduler instance that ran it.
    instance: str
    error: str | None = None
    traceback: str | None = None
    result: Any = None
    metadata: Mapping[str, Any] = msgspec.field(default_factory=dict)

    @property
    def duration(self) -> float | None:
        """Seconds from start to finish; None before that."""
        if self.started_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.started_at).total_seconds()


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Why fire times did not run: one row for a span of them."""

    job_id: str
    #: misfire, coalesced, overlap, paused, quarantined, ended, snoozed, ...
    reason: str
    #: The first and the last fire time of the span.
    first: datetime
    last: datetime
    #: How many fire times the span holds; a lower bound where ``more`` is set.
    count: int
    more: bool = False
    decided_at: datetime
    detail: str | None = None


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a job's runs since it was added, pruned history included. Durations are seconds."""

    total: int = 0
    succeeded: int = 0
    #: Failed, timed out, cancelled and lost runs.
    failed: int = 0
    #: Fire times that did not run.
    skipped: int = 0
    last_run: datetime | None = None
    last_success: datetime | None = None
    last_failure: datetime | None = None
    last_error: str | None = None
    mean_duration: float | None = None
    min_duration: float | None = None
    max_duration: float | None = None


class ClockSkew(NamedTuple):
    """How far a store's clock is from this host's, as the last samples tell."""

    #: The store's clock less this host's; nothing where the store reads the host's own clock.
    offset: timedelta
    #: The offset is known to this much: half of the round trip that told it.
    error: timedelta


T = TypeVar("T")

#: A word that is no kind of run in the log.
_REASON = re.compile(r"(?!(?:run|lost)$)[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True, slots=True)
class Carry:
    """Returned by a task: keep *value* with the job and give it to the next run as ``current_run().carried``.

    *result* is what history shows; *next_at* (an aware datetime) moves the next fire time; one that is not later
    than those that have run or been decided about is now.
    """

    value: Any
    result: Any = None
    next_at: datetime | None = None

    def __post_init__(self) -> None:
        if self.next_at is not None:
            to_instant(self.next_at, "Carry(next_at=)")


class Steering(Exception):
    """Raised by a task to say what becomes of its job. Not an error of this package."""


@dataclass(eq=False)
class RetryLater(Steering):
    """This attempt failed; try the same fire time again after *delay* (seconds or timedelta)."""

    delay: Duration
    reason: str | None = None

    def __post_init__(self) -> None:
        self.delay = to_seconds(self.delay, "RetryLater(delay=)")
        super().__init__(self.reason or f"retry in {self.delay:g} s")


@dataclass(eq=False)
class GiveUp(Steering):
    """This attempt failed, and no other shall be made at this fire time."""

    reason: str | None = None

    def __post_init__(self) -> None:
        super().__init__(self.reason or "gave up")


@dataclass(eq=False)
class Snooze(Steering):
    """Not now: come back to this fire time at *until* (an aware datetime) without spending an attempt."""

    until: datetime
    _: KW_ONLY
    at: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.at = to_instant(self.until, "Snooze(until=)")
        super().__init__(f"snoozed until {self.until.isoformat()}")


@dataclass(eq=False)
class Finish(Steering):
    """This run succeeded with *result*, and the job has no further ones."""

    result: Any = None

    def __post_init__(self) -> None:
        super().__init__("finished")


@dataclass(eq=False)
class Skip(Steering):
    """This fire time does not run: history has a decision with *reason* in place of a run, and the job goes on to its next one.

    What has no next one (a one-shot, a run that was asked for), or has had an attempt at this fire time, is put off instead: it
    comes back after *put_off* (seconds or timedelta; a second unless given), without having spent an attempt. A step of a
    workflow is over: it counts as skipped, unless *put_off* is given.
    """

    reason: str = "skipped"
    detail: str | None = None
    put_off: Duration | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.reason, str) or not _REASON.fullmatch(self.reason):
            raise DefinitionError(
                f"Skip(reason=) must be a lower-case word of 1 to 40 letters (not run, not lost), not {self.reason!r}"
            )
        if self.put_off is not None:
            self.put_off = to_seconds(self.put_off, "Skip(put_off=)", positive=True)
        super().__init__(self.detail or self.reason)


def _error_types(value: object, name: str) -> tuple[type[BaseException], ...]:
    types: tuple[Any, ...] = value if isinstance(value, tuple) else (value,)
    for type_ in types:
        if not (isinstance(type_, type) and issubclass(type_, BaseException)):
            raise DefinitionError(f"Retry({name}=) takes exception classes, not {type_!r}")
    return types


def _plain(value: Duration) -> float:
    return value.total_seconds() if isinstance(value, timedelta) else value
