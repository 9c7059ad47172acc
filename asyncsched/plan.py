"""Policy, pure: what a claimed record is to do now, and what becomes of it when a run has ended.

No clock, no store, no event loop: (definition, cursor, instants) in, decisions out. Fire times are computed from the nominal
ones, never from jittered or finishing instants.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import msgspec
from msgspec.structs import replace

from asyncsched.definition import Cursor, Definition, Pending, Request, Tally
from asyncsched.errors import TriggerError
from asyncsched.model import Outcome
from asyncsched.triggers import Manual

__all__ = [
    "Ended",
    "Span",
    "Start",
    "Step",
    "decide",
    "ended",
    "is_quarantined",
    "next_fire",
    "next_request",
    "synced",
    "wake_of",
]

#: Claims in a row that may be lost before a job is quarantined.
MAX_CRASHES = 5
#: In the place of a hold: the record is to go.
_DONE = "done"


class Span(msgspec.Struct, frozen=True, gc=False):
    """Fire times that do not run, and why."""

    reason: str
    first: float
    last: float
    count: int
    more: bool = False
    detail: str | None = None


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
    #: The fire time after this one, where that is known already; None: it is not.
    following: float | None = None


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
    return replace(cursor, rev=definition.rev, next=definition.first, pending=pending, over=None)


def decide(
    definition: Definition, cursor: Cursor, hold: str | None, now: float, ahead_s: float = 0.0
) -> Start | Step:
    """What a record claimed at *now* is to do. With *ahead_s* it may be due so much later."""
    spans: tuple[Span, ...] = ()
    if cursor.rev != definition.rev:
        spans = _resumed(definition)
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
    if definition.paused:
        return Step(cursor, None, "paused", spans=spans)
    if hold == "failed":
        return Step(cursor, None, delete=True)
    if cursor.over is not None:
        hold, wake_at = cursor.over
        return Step(cursor, None, delete=True) if hold == _DONE else Step(cursor, wake_at, hold, spans=spans)
    horizon = now + ahead_s
    if pending is not None:
        if pending.due > horizon:
            return Step(cursor, pending.due, spans=spans)
        return Start(pending.fire, pending.due, pending.failed + 1, pending.request, cursor, spans)
    fire = cursor.next
    if fire is None:
        return Step(cursor, None, delete=not _stays(definition), spans=spans)
    if fire > horizon:
        return Step(cursor, fire, spans=spans)
    return _due(definition, cursor, fire, now, spans)


def next_request(definition: Definition, cursor: Cursor) -> Request | None:
    """The first request that has not run yet and may; a paused job runs only what was forced."""
    for request in definition.requests:
        if request.no > cursor.request and (request.force or not definition.paused):
            return request
    return None


def _resumed(definition: Definition) -> tuple[Span, ...]:
    return () if definition.resumed is None else (Span("paused", *definition.resumed),)


def _stays(definition: Definition) -> bool:
    """Whether the job is there to be run by hand, its schedule being no reason to end it."""
    return isinstance(definition.trigger, Manual)


def _moved_on(following: float | None, fire: float) -> float | None:
    """Refuse a fire time that is not later than the one before it: the job would run again and again."""
    if following is not None and following <= fire:
        raise TriggerError(
            f"the trigger names {following!r} as the fire time after {fire!r}, which is not later"
        )
    return following


def _due(definition: Definition, cursor: Cursor, fire: float, now: float, spans: tuple[Span, ...]) -> Start:
    """The latest fire time that has come runs; the ones before it are coalesced into it."""
    trigger = definition.trigger
    if not trigger.recurs:
        return Start(fire, fire, 1, 0, cursor, spans)
    following = _moved_on(trigger.next(fire), fire)
    if following is None or following > now:
        return Start(fire, fire, 1, 0, cursor, spans, following)
    passed = trigger.passed(fire, now)
    if passed.last is None:
        return Start(fire, fire, 1, 0, cursor, spans)
    before = trigger.previous(passed.last - 1e-6)
    last = fire if before is None or before < fire else before
    span = Span("coalesced", fire, last, passed.count, passed.more)
    return Start(passed.last, passed.last, 1, 0, cursor, (*spans, span), passed.next)


def ended(definition: Definition, start: Start, end: Ended) -> Step:
    """What becomes of the record after a run.

    The cursor of a step that deletes says that the job is over, for the case that it was updated meanwhile and stays.
    """
    trigger = definition.trigger
    recurs = trigger.recurs
    if (
        end.outcome == "succeeded"
        and not recurs
        and not start.request
        and end.next_at is None
        and not definition.requests
    ):
        return Step(_done(definition.rev), None, None, True, start.spans)
    cursor = start.cursor
    following = start.following
    if (
        following is not None
        and following > end.finished
        and end.outcome == "succeeded"
        and cursor.over is None
        and not (
            end.finish
            or end.next_at
            or end.carried
            or definition.requests
            or start.request
            or definition.paused
        )
    ):
        # The way of most recurring runs, and so the shortest.
        tally = _counted(cursor.tally, end, sum(span.count for span in start.spans))
        return Step(
            Cursor(cursor.rev, following, None, cursor.request, cursor.carried, tally),
            following,
            spans=start.spans,
        )
    next_, passed = _advanced(definition, start, end)
    spans = start.spans + passed
    pending = _pending(start, end)
    if end.next_at is not None and pending is None:
        next_ = end.next_at
    rests = cursor.over is not None and cursor.over[0] == "paused"
    cursor = Cursor(
        cursor.rev,
        None if end.finish else next_,
        pending,
        cursor.request,
        cursor.carried if end.carried is None else end.carried,
        _counted(cursor.tally, end, sum(span.count for span in spans)),
        cursor.over if rests and not end.finish else None,
    )
    is_out_of_attempts = end.outcome in ("failed", "timed_out") and pending is None
    if is_out_of_attempts and recurs and end.on_exhausted != "keep":
        return _exhausted(cursor, end, spans)
    requested = bool(definition.requests) and next_request(definition, cursor) is not None and not end.finish
    if requested or cursor.over or next_fire(cursor) is not None or (_stays(definition) and not end.finish):
        hold = "paused" if definition.paused or cursor.over else None
        return Step(cursor, wake_of(definition, cursor, end.finished), hold, spans=spans)
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
        return Pending(start.fire, round(end.again_at, 6), start.attempt - 1, start.request)
    if end.retry_in is not None:
        return Pending(start.fire, round(end.finished + end.retry_in, 6), start.attempt, start.request)
    return None


def _exhausted(cursor: Cursor, end: Ended, spans: tuple[Span, ...]) -> Step:
    if end.on_exhausted == "remove":
        return Step(replace(cursor, next=None, over=(_DONE, None)), None, delete=True, spans=spans)
    hold, wake_at = "paused", None
    if end.on_exhausted == "keep":
        hold, wake_at = "failed", None if end.keep_s is None else end.finished + end.keep_s
    return Step(replace(cursor, over=(hold, wake_at)), wake_at, hold, spans=spans)


def _advanced(definition: Definition, start: Start, end: Ended) -> tuple[float | None, tuple[Span, ...]]:
    """The next scheduled fire time after the run, and those that it overlapped.

    A pending attempt counts as running. A fire time that came before a first attempt started stays due.
    """
    trigger = definition.trigger
    first_of_schedule = start.request == 0 and start.cursor.pending is None
    if not trigger.recurs:
        return (None if start.request == 0 else start.cursor.next), ()
    first = start.cursor.next
    if first_of_schedule:
        first = (
            _moved_on(trigger.next(start.fire), start.fire) if start.following is None else start.following
        )
    if first is None or first > end.finished or (start.cursor.pending is None and first <= end.started):
        return first, ()
    passed = trigger.passed(first, end.finished)
    last = first if passed.last is None else passed.last
    return passed.next, (Span("overlap", first, last, passed.count + 1, passed.more),)


def wake_of(definition: Definition, cursor: Cursor, now: float) -> float | None:
    """When the record wants attention next: a request now, else the pending attempt, else the next fire time."""
    cursor = synced(definition, cursor)
    if definition.requests and next_request(definition, cursor) is not None:
        return now
    if definition.paused:
        return None
    return next_fire(cursor) if cursor.over is None else cursor.over[1]


def next_fire(cursor: Cursor) -> float | None:
    """The pending attempt, else the next fire time: what comes due while an attempt is pending overlaps it."""
    return cursor.next if cursor.pending is None else cursor.pending.due


def _counted(tally: Tally, end: Ended, skipped: int) -> Tally:
    if end.again_at is not None:
        return replace(tally, skipped=tally.skipped + skipped)
    duration = end.finished - end.started
    good = end.outcome == "succeeded"
    return Tally(
        tally.succeeded + good,
        tally.failed + (not good),
        tally.skipped + skipped,
        0 if good else tally.consecutive_failures + 1,
        end.finished,
        end.finished if good else tally.last_success,
        tally.last_failure if good else end.finished,
        tally.last_error if good else end.error,
        tally.sum_s + duration,
        duration if tally.min_s is None or duration < tally.min_s else tally.min_s,
        duration if tally.max_s is None or duration > tally.max_s else tally.max_s,
    )
