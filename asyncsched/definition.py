"""What a record's two blobs say: the definition of a job (changed by updates) and its cursor (changed by settlements)."""

from __future__ import annotations

import msgspec

from asyncsched.model import CatchUp, OnExhausted, Outcome, Overlap
from asyncsched.triggers import AnyTrigger

__all__ = [
    "Cursor",
    "Definition",
    "JitterForm",
    "Pending",
    "Policies",
    "Request",
    "RetryForm",
    "RunForm",
    "SpanForm",
    "Tally",
]

#: How many run requests one job may have pending.
MAX_REQUESTS = 100


class RetryForm(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A Retry as it is stored; error classes by ``module:qualname``."""

    max_attempts: int | None = None
    base: float = 1.0
    multiplier: float = 2.0
    max_delay: float | None = None
    spread: float = 0.0
    delays: tuple[float, ...] | None = None
    on: tuple[str, ...] = ("builtins:Exception",)
    never_on: tuple[str, ...] = ()


class JitterForm(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A Jitter as it is stored."""

    seconds: float
    random: bool = False


class Policies(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """How a job is to be run; None: as its task, then as the scheduler says."""

    retry: RetryForm | None = None
    timeout: float | None = None
    cancel_grace: float | None = None
    abandon_after: float | None = None
    on_exhausted: OnExhausted | None = None
    max_crashes: int | None = None
    misfire_grace: float | None = None
    catch_up: CatchUp | None = None
    max_catch_up: int | None = None
    overlap: Overlap | None = None
    max_instances: int | None = None
    jitter: JitterForm | None = None
    max_runs: int | None = None
    pause_after_failures: int | None = None


class Request(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A run that a user asked for. ``no`` is the version at which it was asked."""

    no: int
    at: float
    force: bool = False


class Definition(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A job as its owner wrote it."""

    created_at: float
    updated_at: float
    trigger: AnyTrigger
    #: The version at which the trigger was last changed; a cursor of another one is of another trigger.
    rev: int
    #: The first fire time since then.
    first: float | None
    #: Encoded (args, kwargs); empty when there are none.
    args: bytes = b""
    name: str | None = None
    policies: Policies = Policies()
    tags: tuple[str, ...] = ()
    #: Encoded; empty when there is none.
    metadata: bytes = b""
    paused: bool = False
    #: What passed while it was paused, written down by the next settlement: first, last, count, whether there were more.
    resumed: tuple[float, float, int, bool] | None = None
    requests: tuple[Request, ...] = ()


class Tally(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Stats as they are stored."""

    succeeded: int = 0
    failed: int = 0
    skipped: int = 0
    consecutive_failures: int = 0
    last_run: float | None = None
    last_success: float | None = None
    last_failure: float | None = None
    last_error: str | None = None
    sum_s: float = 0.0
    min_s: float | None = None
    max_s: float | None = None


class Pending(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A fire time that was begun and is to be tried again."""

    fire: float
    due: float
    #: Attempts that have failed so far.
    failed: int
    #: The request that asked for it; 0: the schedule did.
    request: int = 0


class Cursor(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far a job has come."""

    rev: int = 0
    #: The next scheduled fire time; None: there is none.
    next: float | None = None
    pending: Pending | None = None
    #: The last request that has been run.
    request: int = 0
    #: Encoded; what the last run carried over.
    carried: bytes = b""
    tally: Tally = Tally()
    #: The hold that policy put it on, and its wake time: a one-shot out of attempts, or a job that is to rest after that;
    #: ``done`` in its place: it has finished, and is to go though an update kept it.
    over: tuple[str, float | None] | None = None
    #: Fire times that have come to their end, for ``max_runs``.
    runs: int = 0
    #: Fire times up to then passed while the job ran and are queued behind it: each of them runs.
    queued_until: float | None = None


class RunForm(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The body of a log entry of kind ``run`` or ``lost``."""

    outcome: Outcome
    task: str
    due: float
    started: float | None
    finished: float | None
    attempt: int
    instance: str
    error: str | None = None
    traceback: str | None = None
    result: bytes = b""
    metadata: bytes = b""


class SpanForm(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The body of a log entry that is a decision: a span of fire times that did not run."""

    last: float
    count: int
    more: bool = False
    detail: str | None = None
