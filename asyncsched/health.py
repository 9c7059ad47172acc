"""How a job is, by one rule: what holds it back, how its last runs ended, and how late it is. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Literal

import msgspec

from asyncsched.codec import decode_cursor, decode_definition
from asyncsched.contract import Record
from asyncsched.definition import Cursor, Definition, Policies
from asyncsched.errors import DefinitionError, NewerFormatError, SerializationError, TriggerError
from asyncsched.model import Outcome
from asyncsched.plan import next_request, synced, wake_of
from asyncsched.rules import Rules
from asyncsched.units import Duration, to_datetime, to_seconds

__all__ = [
    "FAILURES",
    "Health",
    "HealthRule",
    "HealthStatus",
    "Reason",
    "due_by_schedule",
    "health_of",
    "late_s",
]

HealthStatus = Literal["healthy", "degraded", "unhealthy", "paused", "unknown"]

#: What there is to say of a job, in one word each.
#: ``quarantined``: it cannot be run as it is. ``failed``: a one-shot that is out of attempts. ``resting``: paused by
#: ``pause_after_failures`` or ``on_exhausted``. ``failing``: so many runs in a row have failed. ``overdue``: it should have
#: started, and no instance has taken it. ``unreadable``: what is stored of it is corrupt. These make it unhealthy.
#: ``last_run_failed``: the last run, and fewer than would make it failing. ``paused``: by a user, it or its queue.
#: ``newer_format``: stored by a newer version, which this one cannot judge.
Reason = Literal[
    "quarantined",
    "failed",
    "resting",
    "failing",
    "overdue",
    "unreadable",
    "last_run_failed",
    "paused",
    "newer_format",
]

#: Outcomes that speak against a job. A run that was cancelled speaks neither for it nor against it.
FAILURES: tuple[Outcome, ...] = ("failed", "timed_out", "lost")


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRule:
    """From when on a job is unhealthy.

    :param failures: its last so many runs have failed, timed out or been lost; attempts count each by itself.
    :param grace: it should have started so long ago (seconds or timedelta), and neither runs nor waits for a limit.
    """

    failures: int = 3
    grace: Duration = 60.0

    def __post_init__(self) -> None:
        if type(self.failures) is not int or self.failures < 1:
            raise DefinitionError(f"HealthRule(failures=) must be 1 or more, not {self.failures!r}")
        object.__setattr__(self, "grace", to_seconds(self.grace, "HealthRule(grace=)"))

    @property
    def grace_s(self) -> float:
        """The grace in seconds."""
        return self.grace.total_seconds() if isinstance(self.grace, timedelta) else self.grace


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How a job is."""

    job_id: str
    store: str
    #: The registered name of its task.
    task: str
    #: ``healthy``; ``degraded``: its last run failed, and it is not unhealthy yet; ``unhealthy``; ``paused``: by a user, so
    #: nothing is expected of it; ``unknown``: a newer version has written it.
    status: HealthStatus
    #: Why it is not healthy; empty if it is.
    reasons: tuple[Reason, ...] = ()
    #: How its last run ended; None: it has not run.
    last_outcome: Outcome | None = None
    last_run: datetime | None = None
    #: The error of the last run that failed, however long ago.
    last_error: str | None = None
    #: Runs that have failed, timed out or been lost since the last one that succeeded.
    consecutive_failures: int = 0
    #: For how long it has been due; None: it is not, or it runs, rests, or waits for a limit.
    late_by: timedelta | None = None

    @property
    def is_unhealthy(self) -> bool:
        """Whether somebody should look at it."""
        return self.status == "unhealthy"


def health_of(
    record: Record,
    store: str,
    now: float,
    rules_of: Callable[[Policies], Rules],
    rule: HealthRule,
    *,
    last: Sequence[Outcome] | None = None,
    is_queue_paused: bool = False,
) -> Health:
    """The health of the job that *record* is, at *now* by its store's clock.

    *last*: the outcomes of its last runs, the newest first, where they are known apart from the record.
    """
    shown = partial(Health, job_id=record.id, store=store, task=record.task)
    try:
        definition = decode_definition(record.body)
        cursor = synced(definition, decode_cursor(record.cursor))
    except NewerFormatError:
        return shown(status="unknown", reasons=("newer_format",))
    except SerializationError as error:
        return shown(status="unhealthy", reasons=("unreadable",), last_error=str(error))
    outcome, failures = _last(record, cursor, now) if last is None else _of_log(last)
    late = late_s(record, definition, cursor, now, rules_of(definition.policies))
    reasons: tuple[Reason, ...] = _reasons(record, definition, failures, late, rule)
    status: HealthStatus = "unhealthy" if reasons else "healthy"
    if (definition.paused and record.hold == "paused") or (reasons == ("overdue",) and is_queue_paused):
        status, reasons = "paused", ("paused",)
    elif not reasons and outcome in FAILURES:
        status, reasons = "degraded", ("last_run_failed",)
    tally = cursor.tally
    return shown(
        status=status,
        reasons=reasons,
        last_outcome=outcome,
        last_run=None if tally.last_run is None else to_datetime(tally.last_run),
        last_error=tally.last_error,
        consecutive_failures=failures,
        late_by=None if late is None else timedelta(seconds=late),
    )


def late_s(record: Record, definition: Definition, cursor: Cursor, now: float, rules: Rules) -> float | None:
    """For how many seconds a job has been due by its own schedule (jitter, retries and run requests included), or its holder
    been dead; None: it is not due, or it runs, rests, or waits for a limit."""
    if record.hold is not None or record.wake_at is None:
        return None
    due = (
        record.wake_at
        if record.holder is not None
        else due_by_schedule(record, definition, cursor, now, rules)
    )
    return now - due if due is not None and due < now else None


def due_by_schedule(
    record: Record, definition: Definition, cursor: Cursor, now: float, rules: Rules
) -> float | None:
    """When a job that nobody holds is due by its own schedule. Not its wake time: whoever does not know its task puts that off
    again and again."""
    request = next_request(definition, cursor)
    if request is not None:
        return request.at
    try:
        return wake_of(definition, cursor, now, rules, (record.id, record.birth))
    except TriggerError:
        # It gives its search up; whoever claims the job quarantines it.
        return record.wake_at


def _last(record: Record, cursor: Cursor, now: float) -> tuple[Outcome | None, int]:
    """How the last run ended, and how many in a row have failed, claims that were lost included."""
    is_held = record.holder is not None and record.wake_at is not None and record.wake_at > now
    lost = max(record.tries - is_held, 0)
    outcome: Outcome | None = "lost" if lost else cursor.tally.last_outcome
    return outcome, cursor.tally.consecutive_failures + lost


def _of_log(last: Sequence[Outcome]) -> tuple[Outcome | None, int]:
    failures = 0
    for outcome in last:
        if outcome == "succeeded":
            break
        failures += outcome in FAILURES
    return (last[0] if last else None), failures


def _reasons(
    record: Record, definition: Definition, failures: int, late: float | None, rule: HealthRule
) -> tuple[Reason, ...]:
    """What makes it unhealthy."""
    found: list[Reason] = []
    if record.hold == "quarantined":
        found.append("quarantined")
    elif record.hold == "failed":
        found.append("failed")
    elif record.hold == "paused" and not definition.paused:
        found.append("resting")
    if failures >= rule.failures:
        found.append("failing")
    if late is not None and late > rule.grace_s:
        found.append("overdue")
    return tuple(found)
