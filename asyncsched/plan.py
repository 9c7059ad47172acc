"""Policy, pure: what a claimed record is to do now, and what becomes of it when a run has ended.

No clock, no store, no event loop: (definition, cursor, instants) in, decisions out. Fire times are computed from the nominal
ones, never from jittered or finishing instants.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import msgspec
from msgspec.structs import replace

from asyncsched.definition import Cursor, Definition, Pending, Request, Tally
from asyncsched.late import Key, Span, moved_on, newest_of, sort_out
from asyncsched.model import Outcome
from asyncsched.rules import DEFAULT_RULES, Rules
from asyncsched.triggers import AnyTrigger, Manual, Once, Passed, Within

__all__ = [
    "Ended",
    "Span",
    "Spread",
    "Start",
    "Step",
    "child_of",
    "decide",
    "due_at",
    "due_of",
    "ended",
    "has_ended",
    "is_done",
    "is_quarantined",
    "next_fire",
    "next_request",
    "put_off",
    "spread",
    "synced",
    "wake_of",
]

#: Claims in a row that may be lost before a job is quarantined.
MAX_CRASHES = 5
#: Jitter of a job that has none needs no key.
NO_KEY: Key = ("", "")
#: In the place of a hold: the record is to go.
_DONE = "done"
#: Two instants that differ are this far apart.
_TICK_S = 1e-6
#: No fire time, where None says that it is not known.
_NONE = math.inf
#: Decisions about fire times that passed while nobody ran.
_LATE = frozenset({"coalesced", "misfire", "catch_up_limit"})


class Start(msgspec.Struct, frozen=True, gc=False):
    """Run now."""

    fire: float
    due: float
    #: 1, 2, ...
    attempt: int
    #: The request that asked for it; 0: the schedule did.
    request: int
    cursor: Cursor
    #: Fire times that this run stands for.
    spans: tuple[Span, ...] = ()
    #: The fire time after this one, where that is known already; infinity: there is none; None: it is not known.
    following: float | None = None


class Spread(msgspec.Struct, frozen=True, gc=False):
    """Run beside what runs already: in a child of the job, while the job itself goes on to its next fire time."""

    start: Start


class Step(msgspec.Struct, frozen=True, gc=False):
    """Do not run: the record moves, is held back, or goes."""

    cursor: Cursor
    wake_at: float | None
    hold: str | None = None
    delete: bool = False
    spans: tuple[Span, ...] = ()


class Ended(msgspec.Struct, frozen=True, gc=False):
    """How a run ended, as policy sees it."""

    outcome: Outcome
    started: float
    finished: float
    error: str | None = None
    #: Seconds until the next attempt; None: there is none.
    retry_in: float | None = None
    #: Come back to the same fire time then, without spending an attempt (snoozed, or cancelled by a shutdown).
    again_at: float | None = None
    #: The job is over.
    finish: bool = False
    #: Encoded; None: leave what is carried.
    carried: bytes | None = None
    #: The task itself names the next fire time.
    next_at: float | None = None
    on_exhausted: Literal["keep", "remove", "pause"] = "keep"
    #: For how long a failed one-shot is kept.
    keep_s: float | None = None
    #: The reason and detail of the decision that stands in its place: the task says that this fire time does not run.
    skip: tuple[str, str | None] | None = None


def is_quarantined(tries: int, max_crashes: int) -> bool:
    """Whether so many claims since the last settlement mean that the job kills whoever runs it."""
    return tries > max_crashes


def synced(definition: Definition, cursor: Cursor) -> Cursor:
    """The cursor under this definition: a changed trigger computes anew, and forgets what was pending for the old one."""
    if cursor.rev == definition.rev:
        return cursor
    if not cursor.rev:
        return Cursor(definition.rev, definition.first)
    pending = cursor.pending if cursor.pending is not None and cursor.pending.request else None
    first = definition.first
    if _goes_on_after_rest(definition) and first is not None and cursor.next is not None:
        # A run that was under way at the end of the rest may have moved it further on.
        first = max(first, cursor.next)
    # A new start also for the count of failures that pauses a job.
    tally = replace(cursor.tally, consecutive_failures=0)
    return replace(
        cursor,
        rev=definition.rev,
        next=first,
        pending=pending,
        over=None,
        queued_until=None,
        tally=tally,
        admitted=None,
        waits=0,
    )


def decide(
    definition: Definition,
    cursor: Cursor,
    hold: str | None,
    now: float,
    ahead_s: float = 0.0,
    rules: Rules = DEFAULT_RULES,
    key: Key = NO_KEY,
) -> Start | Spread | Step:
    """What a record claimed at *now* is to do. With *ahead_s* it may be due so much later."""
    step = _decided(definition, cursor, hold, now, ahead_s, rules, key)
    if rules.overlap == "allow" and isinstance(step, Start) and definition.trigger.recurs:
        return Spread(step)
    return step


def _decided(
    definition: Definition,
    cursor: Cursor,
    hold: str | None,
    now: float,
    ahead_s: float,
    rules: Rules,
    key: Key,
) -> Start | Step:
    spans: tuple[Span, ...] = ()
    if cursor.rev != definition.rev:
        spans = _resumed(definition, cursor)
        cursor = synced(definition, cursor)
    pending = cursor.pending
    if definition.requests:
        request = next_request(definition, cursor)
        if request is not None:
            cursor = replace(cursor, request=request.no)
            if cursor.over is not None and cursor.over[0] == "failed":
                cursor = replace(cursor, over=None)
            if pending is None:
                return Start(request.at, request.at, 1, request.no, cursor, spans)
            return Start(pending.fire, request.at, pending.failed + 1, pending.request, cursor, spans)
    if is_done(definition, cursor):
        return Step(cursor, None, delete=True, spans=spans)
    if definition.paused:
        return Step(cursor, None, "paused", spans=spans)
    if cursor.over is not None:
        if hold == "failed":
            return Step(cursor, None, delete=True)
        return Step(cursor, cursor.over[1], cursor.over[0], spans=spans)
    horizon = now + ahead_s
    fire = cursor.next
    if pending is not None and not _gives_way(definition.trigger, cursor, rules, key, now):
        if pending.due > horizon:
            return Step(cursor, wake_of(definition, cursor, now, rules, key), spans=spans)
        return Start(pending.fire, pending.due, pending.failed + 1, pending.request, cursor, spans, fire)
    if fire is None:
        return Step(cursor, None, spans=spans)
    due = due_at(definition, cursor, fire, rules, key)
    if due > horizon:
        return Step(cursor, due, spans=spans)
    if pending is not None:
        if not pending.failed and (cursor.waits or cursor.admitted is not None):
            # A limit has put it off until now, so it has not run at all.
            spans += (Span("overlap", pending.fire, pending.fire, 1),)
        cursor = replace(cursor, pending=None)
    return _due(definition, cursor, fire, due, now, horizon, spans, rules, key)


def is_done(definition: Definition, cursor: Cursor) -> bool:
    """Whether the job is to go: it has come to its end, and no run of it was asked for that a pause holds back."""
    return has_ended(definition, cursor) and not _is_asked_for(definition, cursor)


def has_ended(definition: Definition, cursor: Cursor) -> bool:
    """Whether the job has come to its end, and is there still only because it was updated while it ran."""
    if cursor.over is not None:
        return cursor.over[0] == _DONE
    return next_fire(cursor) is None and not _stays(definition)


def _gives_way(trigger: AnyTrigger, cursor: Cursor, rules: Rules, key: Key, now: float) -> bool:
    """Whether a pending attempt is dropped for the next fire time, as a running one would be cancelled for it."""
    return _may_give_way(cursor, rules) and due_of(trigger, cursor.next or 0.0, rules, key) <= now


def _may_give_way(cursor: Cursor, rules: Rules) -> bool:
    """Not to one that passed before the first attempt began: that waits behind it."""
    if rules.overlap != "cancel_running" or cursor.next is None or cursor.pending is None:
        return False
    return cursor.pending.began is None or cursor.next > cursor.pending.began


def next_request(definition: Definition, cursor: Cursor) -> Request | None:
    """The first request that has not run yet and may; a paused job runs only what was forced, and what was asked for before
    that, since they are met in order."""
    waiting = [request for request in definition.requests if request.no > cursor.request]
    if waiting and (not definition.paused or any(request.force for request in waiting)):
        return waiting[0]
    return None


def _is_asked_for(definition: Definition, cursor: Cursor) -> bool:
    """Whether a run was asked for that has not been made, be it that a pause holds it back."""
    return any(request.no > cursor.request for request in definition.requests)


def _resumed(definition: Definition, cursor: Cursor) -> tuple[Span, ...]:
    """What passed in a rest, but for what a run has decided about that was under way when it ended; and what had been put off
    until then, apart, since there may be others between the two."""
    if definition.resumed is None:
        return ()
    first, last, _, _ = definition.resumed
    pending, next_ = cursor.pending, cursor.next
    spans: tuple[Span, ...] = (Span("paused", *definition.resumed),)
    if next_ is not None and next_ > first and _goes_on_after_rest(definition):
        passed = definition.trigger.passed(next_, last)
        spans = (Span("paused", next_, last, passed.count + 1, passed.more),) if next_ <= last else ()
    is_put_off = pending is not None and not (pending.request or pending.failed)
    if pending is not None and is_put_off and (not spans or pending.fire < spans[0].first):
        spans = (Span("paused", pending.fire, pending.fire, 1), *spans)
    return spans


def _goes_on_after_rest(definition: Definition) -> bool:
    """Whether its trigger is the one of before: it goes on at the fire time behind those that passed in a rest."""
    resumed, trigger = definition.resumed, definition.trigger
    return resumed is not None and trigger.recurs and trigger.next(resumed[1]) == definition.first


def _stays(definition: Definition) -> bool:
    """Whether the job is there to be run by hand, its schedule being no reason to end it."""
    return isinstance(definition.trigger, Manual)


def _due(
    definition: Definition,
    cursor: Cursor,
    fire: float,
    due: float,
    now: float,
    horizon: float,
    spans: tuple[Span, ...],
    rules: Rules,
    key: Key,
) -> Start | Step:
    """A fire time has come: run it, or what policy puts in its place."""
    late = sort_out(definition.trigger, cursor, fire, now, rules, key)
    spans += late.spans
    if late.fire is not None:
        if late.fire != fire:
            due = due_at(definition, cursor, late.fire, rules, key)
            cursor = replace(cursor, next=late.fire)
        if due <= horizon:
            return Start(
                late.fire, due, 1, 0, cursor, spans, _NONE if late.following is None else late.following
            )
    skipped = sum(span.count for span in spans if span.reason != "paused")
    tally = replace(cursor.tally, skipped=cursor.tally.skipped + skipped)
    next_ = late.following if late.fire is None else late.fire
    cursor = replace(cursor, next=next_, tally=tally, queued_until=None)
    spans += _omitted(definition.trigger, fire, next_)
    if next_ is None:
        return Step(cursor, None, delete=not _stays(definition), spans=spans)
    return Step(cursor, due_of(definition.trigger, next_, rules, key), spans=spans)


def ended(
    definition: Definition, start: Start, end: Ended, rules: Rules = DEFAULT_RULES, key: Key = NO_KEY
) -> Step:
    """What becomes of the record after a run.

    The cursor of a step that deletes says that the job is over, for the case that it was updated meanwhile and stays.
    """
    trigger = definition.trigger
    recurs = trigger.recurs
    if end.outcome == "succeeded" and not (
        end.finish or end.next_at or end.carried or start.request or definition.requests
    ):
        if not recurs:
            return Step(_done(definition.rev), None, None, True, start.spans)
        if _goes_on(definition, start, end, rules):
            return _gone_on(trigger, start, end, rules, key)
    next_, passed, queued_until = _advanced(definition, start, end, rules)
    spans = start.spans + passed
    pending = _pending(start, end)
    if end.next_at is not None and pending is None:
        next_ = _named_by_task(end.next_at, start, end, spans)
    spans += _omitted(trigger, _begun(start), next_)
    if end.skip is not None:
        spans += (Span(end.skip[0], start.fire, start.fire, 1, False, end.skip[1]),)
    cursor = start.cursor
    rests = cursor.over is not None and cursor.over[0] == "paused"
    cursor = Cursor(
        cursor.rev,
        None if end.finish else next_,
        pending,
        cursor.request,
        cursor.carried if end.carried is None else end.carried,
        _counted(cursor.tally, end, sum(span.count for span in spans)),
        cursor.over if rests and not end.finish else None,
        cursor.runs + (pending is None and start.request == 0 and (end.skip is None or trigger.is_backfill)),
        queued_until,
        _paced(trigger, end),
        filled=cursor.filled,
    )
    return _step_after(definition, cursor, end, spans, rules, key)


def _named_by_task(next_at: float, start: Start, end: Ended, spans: tuple[Span, ...]) -> float:
    """The next fire time that a task names: at once where that is one which has run or been decided about, or lies before it."""
    last = max((start.fire, *(span.last for span in spans)))
    return next_at if next_at > last else round(max(end.finished, last + _TICK_S), 6)


def put_off(
    definition: Definition,
    before: Cursor,
    start: Start,
    until: float,
    now: float,
    rules: Rules = DEFAULT_RULES,
    key: Key = NO_KEY,
) -> Step:
    """Where a start goes that a limit puts off: it spends no attempt, and is no misfire when its turn comes.

    *before* is the cursor that the start was decided from. A request is left unmet, so that it stays one.
    """
    if start.cursor.request != before.request:
        return Step(replace(start.cursor, request=before.request), until, spans=start.spans)
    return ended(definition, start, Ended("cancelled", now, now, again_at=until), rules, key)


def child_of(definition: Definition, start: Start) -> Definition:
    """The definition of a run of its own, at one fire time of an overlapping job."""
    policies = replace(
        definition.policies,
        on_exhausted="remove",
        overlap="skip",
    )
    return replace(
        definition,
        trigger=Once(start.fire),
        rev=1,
        first=start.fire,
        policies=policies,
        paused=False,
        requests=(),
        cancel=0,
        resumed=None,
        places=0,
    )


def spread(
    definition: Definition, start: Start, now: float, rules: Rules, key: Key, *, has_slot: bool
) -> Step:
    """Where an overlapping job goes on to, its child having been spawned; without a slot for one the fire time does not run."""
    spans = start.spans
    if not has_slot:
        spans = (*spans, Span("max_instances", start.fire, start.fire, 1))
    cursor = start.cursor
    next_ = cursor.next
    if start.request == 0 and cursor.pending is None:
        next_ = _following(definition.trigger, start)
    spans += _omitted(definition.trigger, _begun(start), next_)
    skipped = sum(span.count for span in spans)
    tally = replace(cursor.tally, skipped=cursor.tally.skipped + skipped, last_run=now)
    runs = cursor.runs + (has_slot and start.request == 0)
    # A further attempt that was pending, for which the job was not an overlapping one yet, is the child's now.
    cursor = replace(
        cursor, next=next_, pending=None, tally=tally, runs=runs, admitted=None, waits=0, owes=False
    )
    ended_ = Ended("succeeded", now, now)
    return _step_after(definition, cursor, ended_, spans, rules, key)


def _goes_on(definition: Definition, start: Start, end: Ended, rules: Rules) -> bool:
    """Whether a recurring job just goes on to its following fire time: the way of most runs, and so the shortest."""
    following, cursor = start.following, start.cursor
    return (
        following is not None
        and end.finished < following < _NONE
        and cursor.over is None
        and not definition.paused
        and rules.max_runs is None
        and not definition.trigger.after_finish
    )


def _gone_on(trigger: AnyTrigger, start: Start, end: Ended, rules: Rules, key: Key) -> Step:
    cursor, following = start.cursor, start.following
    assert following is not None
    tally = _counted(cursor.tally, end, sum(span.count for span in start.spans))
    cursor = Cursor(cursor.rev, following, None, cursor.request, cursor.carried, tally, None, cursor.runs + 1)
    spans = start.spans + _omitted(trigger, _begun(start), following)
    return Step(cursor, due_of(trigger, following, rules, key), spans=spans)


def _begun(start: Start) -> float | None:
    """From where the schedule moves on: the first fire time that this start decides about, or the next one after an attempt
    that has moved it on before, or a run that somebody asked for."""
    if start.request or start.cursor.pending is not None:
        return start.cursor.next
    return min((start.fire, *(span.first for span in start.spans if span.reason in _LATE)))


def _omitted(trigger: AnyTrigger, begin: float | None, next_: float | None) -> tuple[Span, ...]:
    """What the trigger itself leaves out where the schedule moves on."""
    if begin is None or next_ is None:
        return ()
    return tuple(Span(o.reason, o.first, o.last, o.count, o.more) for o in trigger.omitted(begin, next_))


def _step_after(
    definition: Definition, cursor: Cursor, end: Ended, spans: tuple[Span, ...], rules: Rules, key: Key
) -> Step:
    """What becomes of a record whose cursor has been moved on."""
    recurs = definition.trigger.recurs
    if (
        end.outcome in ("failed", "timed_out")
        and cursor.pending is None
        and recurs
        and (cursor.next is not None or _stays(definition))
    ):
        limit = rules.pause_after_failures
        if end.on_exhausted == "remove":
            return _exhausted(cursor, end, spans)
        if end.on_exhausted == "pause" or (limit is not None and cursor.tally.consecutive_failures >= limit):
            cursor = replace(cursor, over=("paused", None))
            # Not before the runs have been made that were asked for.
            return Step(cursor, wake_of(definition, cursor, end.finished, rules, key), "paused", spans=spans)
    requested = not end.finish and _is_asked_for(definition, cursor)
    if rules.max_runs is not None and cursor.pending is None and cursor.runs >= rules.max_runs and recurs:
        if cursor.next is not None:
            spans = (*spans, Span("ended", cursor.next, cursor.next, 1, True, f"max_runs={rules.max_runs}"))
        cursor = replace(cursor, next=None, over=(_DONE, None))
        if not requested:
            return Step(cursor, None, delete=True, spans=spans)
    if requested or cursor.over or next_fire(cursor) is not None or (_stays(definition) and not end.finish):
        rests = cursor.over is not None and cursor.over[0] != _DONE
        hold = "paused" if definition.paused or rests else None
        return Step(cursor, wake_of(definition, cursor, end.finished, rules, key), hold, spans=spans)
    if end.outcome == "succeeded" or end.finish or recurs:
        return Step(replace(cursor, over=(_DONE, None)), None, delete=True, spans=spans)
    return _exhausted(cursor, end, spans)


@lru_cache(maxsize=64)
def _done(rev: int) -> Cursor:
    """The cursor of a one-shot that has succeeded at its first run."""
    return Cursor(rev, tally=Tally(succeeded=1))


def _pending(start: Start, end: Ended) -> Pending | None:
    """The further attempt at the same fire time, if there is to be one."""
    if end.again_at is not None:
        due, failed = end.again_at, start.attempt - 1
    elif end.retry_in is not None:
        due, failed = end.finished + end.retry_in, start.attempt
    else:
        return None
    return Pending(start.fire, round(due, 6), failed, start.request, _first_began(start, end))


def _first_began(start: Start, end: Ended) -> float | None:
    """When the first attempt at this fire time started."""
    pending = start.cursor.pending
    return end.started if pending is None else pending.began


def _exhausted(cursor: Cursor, end: Ended, spans: tuple[Span, ...]) -> Step:
    if end.on_exhausted == "remove":
        return Step(replace(cursor, next=None, over=(_DONE, None)), None, delete=True, spans=spans)
    hold, wake_at = "paused", None
    if end.on_exhausted == "keep":
        hold, wake_at = "failed", None if end.keep_s is None else end.finished + end.keep_s
    return Step(replace(cursor, over=(hold, wake_at)), wake_at, hold, spans=spans)


def _advanced(
    definition: Definition, start: Start, end: Ended, rules: Rules
) -> tuple[float | None, tuple[Span, ...], float | None]:
    """The next scheduled fire time after the run, those that it overlapped, and until when they are queued.

    A pending attempt counts as running until it is due. A fire time that came before the first attempt started, or while nobody
    made an attempt that was due, stays due: ``catch_up`` decides about it. What comes while a job rests overlaps no run that was
    forced: ``resume`` decides about it.
    """
    trigger, cursor = definition.trigger, start.cursor
    first_of_schedule = start.request == 0 and cursor.pending is None
    if not trigger.recurs:
        return (None if start.request == 0 else cursor.next), (), None
    if trigger.after_finish and start.request == 0:
        return trigger.next(end.finished), (), None
    first = _following(trigger, start) if first_of_schedule else cursor.next
    if trigger.is_backfill:
        return first, (), None
    queued = cursor.queued_until
    is_of_queue = rules.overlap == "queue_all" and queued is not None and start.fire <= queued
    began = _first_began(start, end)
    came_before = first is not None and began is not None and first <= began and not is_of_queue
    rests = definition.paused or cursor.over is not None
    until = _busy_until(trigger, cursor, end)
    if first is None or first > until or came_before or rests:
        return first, (), queued if first is not None and queued is not None and first <= queued else None
    # What counts from the end of runs names no further one before that.
    passed = Passed(0, None, trigger.next(until)) if trigger.after_finish else trigger.passed(first, until)
    last = first if passed.last is None else passed.last
    return _overlapped(trigger, first, last, passed, until, rules)


def _busy_until(trigger: AnyTrigger, cursor: Cursor, end: Ended) -> float:
    """Until when fire times overlap the run: its end; or when a further attempt was due, if others came before it was made."""
    pending = cursor.pending
    if pending is None or cursor.waits:
        return end.finished
    following = trigger.next(pending.due)
    is_idle = following is not None and following <= end.started
    return pending.due if is_idle else end.finished


def _following(trigger: AnyTrigger, start: Start) -> float | None:
    """The fire time after the one that ran."""
    if start.following is None:
        return moved_on(trigger.next(start.fire), start.fire)
    return start.following if start.following < _NONE else None


def _overlapped(
    trigger: AnyTrigger, first: float, last: float, passed: Passed, until: float, rules: Rules
) -> tuple[float | None, tuple[Span, ...], float | None]:
    """What becomes of the fire times that came while the job ran."""
    count, more = passed.count + 1, passed.more
    if rules.overlap == "queue_all":
        kept, dropped = newest_of(trigger, first, last, count, rules.max_catch_up, more)
        before = trigger.previous(kept - 1e-6)
        spans = (Span("buffer_full", first, before or first, dropped, more),) if dropped else ()
        return kept, spans, until
    if rules.overlap in ("queue_one", "cancel_running"):
        before = trigger.previous(last - 1e-6)
        spans = (Span("overlap", first, before or first, count - 1, more),) if count > 1 else ()
        return last, spans, last
    return passed.next, (Span("overlap", first, last, count, more),), None


def wake_of(
    definition: Definition, cursor: Cursor, now: float, rules: Rules = DEFAULT_RULES, key: Key = NO_KEY
) -> float | None:
    """When the record wants attention next: a request now, else the pending attempt, else when the next fire time is due; one
    that has come to its end is there for whoever claims it next to remove it."""
    cursor = synced(definition, cursor)
    if definition.requests and next_request(definition, cursor) is not None:
        return now
    if is_done(definition, cursor):
        return now
    if definition.paused:
        return None
    if cursor.over is not None:
        return cursor.over[1]
    due = None if cursor.next is None else due_at(definition, cursor, cursor.next, rules, key)
    if cursor.pending is None:
        return due
    if due is None or not _may_give_way(cursor, rules):
        return cursor.pending.due
    return min(due, cursor.pending.due)


def due_of(trigger: AnyTrigger, fire: float, rules: Rules, key: Key) -> float:
    """When a fire time is due: with its jitter, which ends before the next one."""
    return fire if rules.jitter is None else rules.due(key, fire, trigger.next(fire))


def due_at(definition: Definition, cursor: Cursor, fire: float, rules: Rules, key: Key) -> float:
    """When the next fire time of a job is due: without jitter, where it was to run as soon as it was added."""
    is_at_once = fire == definition.created_at and definition.trigger.recurs
    due = fire if is_at_once else due_of(definition.trigger, fire, rules, key)
    return due if cursor.not_before is None else max(due, cursor.not_before)


def _paced(trigger: AnyTrigger, end: Ended) -> float | None:
    """When the next run of a backfill may start: when this one has ended, and so long after its start."""
    return max(end.finished, round(end.started + trigger.gap, 6)) if isinstance(trigger, Within) else None


def next_fire(cursor: Cursor) -> float | None:
    """The pending attempt, else the next fire time: what comes due while an attempt is pending overlaps it."""
    return cursor.next if cursor.pending is None else cursor.pending.due


def _counted(tally: Tally, end: Ended, skipped: int) -> Tally:
    if end.again_at is not None or end.skip is not None:
        return replace(tally, skipped=tally.skipped + skipped)
    duration = end.finished - end.started
    good = end.outcome == "succeeded"
    return Tally(
        tally.succeeded + good,
        tally.failed + (not good),
        tally.skipped + skipped,
        0 if good else tally.consecutive_failures + (end.outcome != "cancelled"),
        end.finished,
        end.finished if good else tally.last_success,
        tally.last_failure if good else end.finished,
        tally.last_error if good else end.error,
        tally.sum_s + duration,
        duration if tally.min_s is None or duration < tally.min_s else tally.min_s,
        duration if tally.max_s is None or duration > tally.max_s else tally.max_s,
        end.outcome,
    )
