"""Why a job does what it does: its next runs with their reasons, what holds it now, and why it did not run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple

import msgspec

from asyncsched.codec import decode_cursor, decode_definition
from asyncsched.coming import coming
from asyncsched.contract import Record
from asyncsched.definition import Cursor, Definition
from asyncsched.errors import SerializationError
from asyncsched.health import due_by_schedule
from asyncsched.ids import LIMITS, is_limit
from asyncsched.model import Decision, Job, Run
from asyncsched.plan import due_at, next_request, synced
from asyncsched.rules import Rules
from asyncsched.triggers.base import TICK_S
from asyncsched.units import to_datetime

__all__ = ["ComingRun", "Explanation", "WhyNot", "explain", "why_not"]

_WORDS = {
    "coalesced": "it had passed while nobody ran, and one late run stood for it",
    "misfire": "it would have started too late for misfire_grace, or nothing is caught up with",
    "catch_up_limit": "more than max_catch_up had passed, and it was one of the older ones",
    "overlap": "a run of the job was under way, or an attempt pending",
    "buffer_full": "more than max_catch_up came while the job ran, and it was one of the older ones",
    "max_instances": "as many runs of the job as it may have were under way",
    "paused": "the job was paused",
    "dst_gap": "the clocks went forward over it",
    "excluded": "the trigger's excluding takes it out",
    "ended": "the job had ended before",
    "quarantined": "the job could not be run as it is",
    "backfilled": "a backfill ran it later",
    "locked": "another run held the lock that it needs",
}


#: Decisions about what the trigger leaves out.
_NO_FIRE_TIMES = frozenset({"dst_gap", "excluded"})
_NEW = Cursor()


class ComingRun(NamedTuple):
    """A run that is planned; or a time that the clocks skip, without an instant and so naive."""

    fire_time: datetime
    #: When it starts; later than the fire time where jitter or a retry says so. None: it is skipped.
    due_at: datetime | None
    #: Why it is there, or is not where one looks for it.
    note: str = ""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to say of a job now."""

    job: Job
    #: What it waits for, or what holds it, in a sentence.
    summary: str
    #: The instance that has claimed it, and until when by the store's clock.
    held_by: str | None = None
    held_until: datetime | None = None
    coming: tuple[ComingRun, ...] = ()


class WhyNot(NamedTuple):
    """Why a job did not run at an instant, or that it did."""

    kind: Literal["ran", "running", "skipped", "due", "planned", "no_fire_time", "not_there_yet", "unknown"]
    text: str


class Around(NamedTuple):
    """What there is to know of a job beside its record."""

    now: float
    rules: Rules
    #: Whether its task is registered here.
    is_known: bool
    #: What pauses its queue, or the scheduler.
    pause: str | None = None
    #: The jobs that run under the limit that it waits for.
    sharers: Sequence[str] = ()


def explain(record: Record, job: Job, around: Around, count: int) -> Explanation:
    """What there is to say of *job*, and its next *count* runs."""
    try:
        definition = decode_definition(record.body)
        cursor = synced(definition, decode_cursor(record.cursor))
    except SerializationError as error:
        return Explanation(job=job, summary=f"it cannot be read: {error}")
    summary = _summary(record, definition, cursor, around)
    held_by, held_until = None, None
    if record.holder is not None and record.wake_at is not None:
        held_by, held_until = record.holder.rpartition(":")[0], to_datetime(record.wake_at)
    runs = _coming(record, definition, cursor, around.rules, around.now, count)
    return Explanation(job=job, summary=summary, held_by=held_by, held_until=held_until, coming=tuple(runs))


def _summary(record: Record, definition: Definition, cursor: Cursor, around: Around) -> str:
    now, pause, error = around.now, around.pause, cursor.tally.last_error
    held = _held(record, now)
    if held:
        return held
    if record.hold == "failed":
        return f"it has failed and is out of attempts ({error}); resume_job() tries it again"
    if record.hold == "quarantined":
        return f"it is quarantined, since it cannot be run as it is ({error}); resume_job() tries it again"
    if record.hold == "paused" or definition.paused:
        if definition.paused:
            return "it is paused; resume_job() ends that"
        return f"it rests after {cursor.tally.consecutive_failures} failures in a row ({error}); resume_job() ends that"
    if is_limit(record.hold):
        return _limited(record, definition, cursor, around.sharers)
    if record.hold is not None:
        return f"it waits for {record.hold}"
    if record.wake_at is None:
        return "it never runs by itself: run_job() runs it"
    due = due_by_schedule(record, definition, cursor, now, around.rules)
    due = record.wake_at if due is None else min(due, record.wake_at)
    if due > now:
        if cursor.admitted == record.wake_at:
            return f"its rate_limit lets it start at {_iso(due)}"
        if cursor.pending is not None:
            return f"attempt {cursor.pending.failed + 1} waits for {_iso(due)}"
        return f"it waits for {_iso(due)}"
    if pause is not None:
        return f"it is due since {_iso(due)}, and {pause}"
    here = "" if around.is_known else f"; here no task is registered as {record.task!r}"
    if record.wake_at > now:
        again = f"whoever claimed it could not run it, and it may be claimed again at {_iso(record.wake_at)}"
        return f"it is due since {_iso(due)}; {again}{here}"
    return f"it is due since {_iso(due)}, and no instance that serves queue {record.queue!r} has claimed it yet{here}"


def _limited(record: Record, definition: Definition, cursor: Cursor, sharers: Sequence[str]) -> str:
    name = (record.hold or "").removeprefix(LIMITS)
    kind, _, shown = name.partition("/")
    whose = f"of its concurrency_key {shown!r}" if kind == "key" else "of its task (max_concurrency)"
    request = next_request(definition, cursor)
    due = cursor.pending.due if cursor.pending is not None else definition.created_at
    since = _iso(due if request is None else request.at)
    held = ", which these jobs have now: " + ", ".join(map(repr, sharers)) if sharers else ""
    return f"it is due since {since}, and limited by {name!r}: it waits for a place under the limit {whose}{held}"


def _held(record: Record, now: float) -> str:
    if record.holder is None or record.wake_at is None:
        return ""
    instance, end = record.holder.rpartition(":")[0], _iso(record.wake_at)
    if record.wake_at > now:
        return f"it runs in {instance} as {record.id}@{record.fence}; unless that is renewed, its lease ends at {end}"
    return f"{instance} claimed it, and its lease ended at {end} without a renewal: whoever looks next runs it again"


def _coming(
    record: Record, definition: Definition, cursor: Cursor, rules: Rules, now: float, count: int
) -> list[ComingRun]:
    found: list[ComingRun] = []
    trigger, pending, next_ = definition.trigger, cursor.pending, cursor.next
    request = next_request(definition, cursor) if definition.requests else None
    is_running = record.holder is not None and record.wake_at is not None and record.wake_at > now
    if is_running and pending is not None:
        pending = None
    elif is_running and request is not None and (next_ is None or request.at < next_):
        request = None
    elif is_running and next_ is not None:
        next_ = trigger.next(next_) if trigger.recurs else None
    policies = "overlap= and catch_up=" if is_running else "catch_up= and misfire_grace="
    if request is not None:
        found.append(ComingRun(to_datetime(request.at), to_datetime(request.at), "asked for by run_job()"))
    if pending is not None:
        note = f"attempt {pending.failed + 1} of this fire time"
        if is_limit(record.hold):
            note += ", as soon as its limit has a place for it"
        elif cursor.admitted is not None:
            note += ", when its rate_limit lets it start"
        found.append(ComingRun(to_datetime(pending.fire), to_datetime(pending.due), note))
    found = found[:count]
    if next_ is None or definition.paused or cursor.over is not None:
        return found
    key = (record.id, record.birth)
    begin = to_datetime(next_ - 1e-6)
    for one in coming(trigger, max(count - len(found), 0), begin, trigger.zone):
        if one.skipped:
            found.append(ComingRun(one.at, None, one.note))
            continue
        fire = one.at.timestamp()
        due = due_at(definition, _NEW, fire, rules, key)
        notes = [one.note] if one.note else []
        if due > fire:
            notes.append(f"jitter puts it off by {due - fire:.1f} s")
        if pending is not None and (pending.began or 0.0) < fire <= pending.due and not trigger.is_backfill:
            notes.append("it comes while an attempt is pending: overlap= decides")
        elif fire < now - 1 and not trigger.is_backfill:
            notes.append(f"it has passed: {policies} decide")
        found.append(ComingRun(one.at, to_datetime(due), "; ".join(notes)))
    return found


def why_not(
    at: datetime,
    runs: Sequence[Run],
    decisions: Sequence[Decision],
    record: Record | None,
    around: Around | None,
    children: Sequence[Record] = (),
) -> WhyNot:
    """*runs*: those of that fire time, the last first; *decisions*: those of the job, newest first; *record* may be gone, and
    *children* are those of its runs that go on beside each other."""
    if runs:
        attempts = f" at attempt {runs[0].attempt}" if runs[0].attempt > 1 else ""
        return WhyNot("ran", f"it ran as {runs[0].id}: {runs[0].outcome}{attempts}")
    unknown = "the job is not stored any more, and the history has nothing about that instant"
    definition, cursor = None, Cursor()
    try:
        if record is not None:
            definition = decode_definition(record.body)
            cursor = synced(definition, decode_cursor(record.cursor))
    except SerializationError as error:
        unknown = f"the job cannot be read: {error}; and the history has nothing about that instant"
        record = None
    decision = _decision_about(at, definition, decisions)
    if decision is not None:
        words = _WORDS.get(decision.reason, "")
        told = ": ".join(filter(None, (decision.reason, words)))
        return WhyNot("skipped", told + (f" ({decision.detail})" if decision.detail else ""))
    if record is None or definition is None or around is None:
        return WhyNot("unknown", unknown)
    trigger, fire = definition.trigger, at.timestamp()
    if fire < definition.created_at:
        return WhyNot("not_there_yet", f"the job was added later, at {_iso(definition.created_at)}")
    if not trigger.matches(at):
        before, after = trigger.previous_before(at), trigger.next_after(at)
        near = " and ".join(one.isoformat() for one in (before, after) if one is not None)
        return WhyNot(
            "no_fire_time",
            f"it is no fire time of {trigger}" + (f"; those beside it are {near}" if near else ""),
        )
    for child in children:
        its = decode_definition(child.body)
        if its.first is not None and abs(its.first - fire) < 1e-6:
            return _under_way(child, its, decode_cursor(child.cursor), around)
    due = due_at(definition, _NEW, fire, around.rules, (record.id, record.birth))
    if due > around.now:
        late = f"; jitter puts it off until {_iso(due)}" if due > fire else ""
        return WhyNot("planned", f"its time has not come yet{late}")
    is_pending = cursor.pending is not None and abs(cursor.pending.fire - fire) < 1e-6
    if is_pending or (cursor.next is not None and cursor.next < fire + 1e-6):
        return _under_way(record, definition, cursor, around)
    return WhyNot(
        "unknown", "the history has nothing about that instant; it may have forgotten it (retention=)"
    )


def _decision_about(
    at: datetime, definition: Definition | None, decisions: Sequence[Decision]
) -> Decision | None:
    """The newest decision that has *at* among its fire times; spans of several reasons may lie over each other, and what lies
    between the first and the last of one may be no fire time."""
    over: list[Decision] = []
    for decision in decisions:
        if at in (decision.first, decision.last):
            return decision
        if decision.first < at < decision.last and decision.count > 2:
            over.append(decision)
    if definition is None or not over:
        return over[0] if over else None
    trigger, instant = definition.trigger, at.timestamp()
    is_fire = trigger.matches(at)
    left_out = {omitted.reason for omitted in trigger.omitted(instant - TICK_S, instant)}
    for decision in over:
        if decision.reason in left_out or (is_fire and decision.reason not in _NO_FIRE_TIMES):
            return decision
        if definition.updated_at > decision.decided_at.timestamp():
            # It may have been another trigger's.
            return decision
    return None


def _under_way(record: Record, definition: Definition, cursor: Cursor, around: Around) -> WhyNot:
    """Its time has come, and has not ended."""
    kind: Literal["due", "running"] = "due" if record.holder is None else "running"
    return WhyNot(kind, _summary(record, definition, cursor, around))


def _iso(instant: float) -> str:
    return to_datetime(instant).isoformat()
