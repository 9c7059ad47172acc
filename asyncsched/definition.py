"""What a record's two blobs say: the definition of a job (changed by updates) and its cursor (changed by settlements)."""

from __future__ import annotations

import msgspec

from asyncsched.model import CatchUp, OnExhausted, Outcome, Overlap
from asyncsched.triggers import AnyTrigger

__all__ = [
    "Cursor",
    "Declared",
    "Definition",
    "FlowLink",
    "InstanceForm",
    "JitterForm",
    "OrphanForm",
    "Pending",
    "Policies",
    "Request",
    "RetryForm",
    "Roster",
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
    concurrency_key: str | None = None
    concurrency_limit: int | None = None
    #: As it was written: ``100/minute``.
    rate_limit: str | None = None


class Request(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A run that a user asked for. ``no`` is the version at which it was asked."""

    no: int
    at: float
    force: bool = False


class FlowLink(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """That the end of a job is told to an execution of a workflow."""

    #: The execution's id, and its record's birth.
    id: str
    birth: str
    step: str
    #: Where the execution's own records are.
    queue: str
    #: The workflow's name.
    name: str
    #: Whether the execution made the job; else it waits for one that was there.
    is_own: bool = True
    #: How the steps ended that it came after; encoded.
    before: bytes = b""


class Declared(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """That a job stands in somebody's code, and did not come by a call."""

    #: The application whose code it is.
    by: str
    #: The highest revision of that application which has declared it.
    revision: int | None = None
    #: It was paused because the code does not declare it any more; it goes on when it does again.
    gone: bool = False


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
    #: The fence of a run that a user wants to end; later ones are higher.
    cancel: int = 0
    #: Executions of workflows that wait for its end.
    flows: tuple[FlowLink, ...] = ()
    #: None: it was added by a call.
    declared: Declared | None = None
    #: How many children it may have from before its policies were changed, if that is more than it may have now.
    places: int = 0


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
    #: Of the last run.
    last_outcome: Outcome | None = None


class Pending(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A fire time that was begun and is to be tried again."""

    fire: float
    due: float
    #: Attempts that have failed so far.
    failed: int
    #: The request that asked for it; 0: the schedule did.
    request: int = 0
    #: When its first attempt started: a fire time that had come before is due behind it, and does not overlap it.
    began: float | None = None


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
    #: The next fire time of a backfill is not due before.
    not_before: float | None = None
    #: The instant at which a rate lets the pending fire time start.
    admitted: float | None = None
    #: How it waits in the line of a limit: 0: it does not; 1: to be woken; 2: it looks by itself now and then.
    waits: int = 0
    #: Of a backfill: fire times that have succeeded, and that the log of their job does not tell of yet: first, last, count.
    filled: tuple[float, float, int] | None = None
    #: Whether a further rate is still to give an instant, once the one at which it is admitted has come.
    owes: bool = False


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
    #: Of a run beside others of its job: ``#0`` and its like. Two of them may have been claimed together, under one fence.
    slot: str = ""


class SpanForm(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The body of a log entry that is a decision: a span of fire times that did not run."""

    last: float
    count: int
    more: bool = False
    detail: str | None = None


class InstanceForm(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The body of the record in which an instance says that it is alive. Instants are the store's."""

    host: str
    pid: int
    version: str
    started_at: float
    seen_at: float
    #: It says so again within so many seconds; 0: it lives and dies with the store.
    heartbeat_s: float
    #: Runs under way.
    running: int = 0
    #: The store's clock less the host's, and how well that is known.
    skew_s: float = 0.0
    skew_error_s: float = 0.0
    tasks: tuple[str, ...] = ()
    #: Those that it serves; none: a client.
    queues: tuple[str, ...] = ()
    revision: int | None = None


class Roster(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The body of the record that says which jobs of a store an application declares."""

    revision: int | None = None
    #: Those that went from the code and were left alone are among them.
    ids: tuple[str, ...] = ()
    #: By id, the instants of one-shots that have been in the store: one that is gone again has ended, and is not added anew.
    had: dict[str, float] = {}  # msgspec copies empty defaults


class OrphanForm(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The body of the record that says which tasks no live instance knows. Instants are the store's."""

    looked_at: float
    #: By task, since when.
    tasks: dict[str, float] = {}  # msgspec copies empty defaults
    #: The last look that came to its end.
    judged_at: float = 0.0
