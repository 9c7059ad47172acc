"""Fire times that passed while nobody ran: which of them run, which do not, and why. Pure."""

from __future__ import annotations

import msgspec

from asyncsched.definition import Cursor
from asyncsched.errors import TriggerError
from asyncsched.rules import Rules
from asyncsched.triggers import AnyTrigger, Passed

__all__ = ["Late", "Span", "moved_on", "newest_of", "sort_out"]

#: A fire time counts as kept, not as caught up with, if it starts within so many seconds.
_ON_TIME_S = 1.0

Key = tuple[str, str]


class Span(msgspec.Struct, frozen=True, gc=False):
    """Fire times that do not run, and why."""

    reason: str
    first: float
    last: float
    count: int
    more: bool = False
    detail: str | None = None


class Late(msgspec.Struct, frozen=True, gc=False):
    """What is to run now (None: nothing of what has come), the fire time after it, and what does not run."""

    fire: float | None
    following: float | None
    spans: tuple[Span, ...] = ()


def moved_on(following: float | None, fire: float) -> float | None:
    """Refuse a fire time that is not later than the one before it: the job would run again and again."""
    if following is not None and following <= fire:
        raise TriggerError(
            f"the trigger names {following!r} as the fire time after {fire!r}, which is not later"
        )
    return following


def sort_out(trigger: AnyTrigger, cursor: Cursor, fire: float, now: float, rules: Rules, key: Key) -> Late:
    """*fire* has come, and maybe others behind it."""
    if not trigger.recurs:
        return _kept_or_missed(fire, None, now, rules, key, ())
    following = moved_on(trigger.next(fire), fire)
    if cursor.queued_until is not None and fire <= cursor.queued_until:
        return Late(fire, following)
    if following is None or following > now:
        return _kept_or_missed(fire, following, now, rules, key, ())
    passed = trigger.passed(fire, now)
    if passed.last is None:
        return _kept_or_missed(fire, following, now, rules, key, ())
    mode = rules.catch_up
    if mode in ("all", "earliest") and cursor.tally.last_run is None:
        # What has never run has nothing to catch up with.
        mode = "latest"
    if mode == "earliest":
        return _earliest(trigger, fire, following, passed, now, rules, key)
    if mode == "all":
        return _all(trigger, fire, passed, now, rules, key)
    before = _previous(trigger, passed.last, fire)
    reason = "coalesced" if mode == "latest" else "misfire"
    spans = (Span(reason, fire, before, passed.count, passed.more),)
    return _kept_or_missed(passed.last, passed.next, now, rules, key, spans)


def _kept_or_missed(
    fire: float, following: float | None, now: float, rules: Rules, key: Key, spans: tuple[Span, ...]
) -> Late:
    """The fire time, unless it is too late for it."""
    late_s = now - rules.due(key, fire, following)
    grace = rules.misfire_grace
    if rules.catch_up == "none":
        grace = _ON_TIME_S if grace is None else min(grace, _ON_TIME_S)
    # To the microsecond, which is what instants are kept to.
    if grace is None or round(late_s, 6) <= grace:
        return Late(fire, following, spans)
    return Late(None, following, (*spans, Span("misfire", fire, fire, 1)))


def _earliest(
    trigger: AnyTrigger, fire: float, following: float, passed: Passed, now: float, rules: Rules, key: Key
) -> Late:
    """The first that is not too late; it stands for those behind it."""
    kept = _within_grace(trigger, fire, passed.last or fire, now, rules, key)
    if kept is None:
        return Late(
            None, passed.next, (Span("misfire", fire, passed.last or fire, passed.count + 1, passed.more),)
        )
    spans: tuple[Span, ...] = ()
    if kept > fire:
        missed = trigger.passed(fire, kept - 1e-6)
        spans = (Span("misfire", fire, _previous(trigger, kept, fire), missed.count + 1, missed.more),)
    rest = trigger.passed(kept, now)
    if rest.count and rest.last is not None:
        first = trigger.next(kept)
        spans = (
            *spans,
            Span("coalesced", first if first is not None else kept, rest.last, rest.count, rest.more),
        )
    return Late(kept, passed.next, spans)


def _all(trigger: AnyTrigger, fire: float, passed: Passed, now: float, rules: Rules, key: Key) -> Late:
    """The oldest of those that are caught up with; the others come after it."""
    last = passed.last or fire
    first_kept, dropped = newest_of(trigger, fire, last, passed.count + 1, rules.max_catch_up)
    spans: tuple[Span, ...] = ()
    if first_kept > fire:
        before = _previous(trigger, first_kept, fire)
        spans = (Span("catch_up_limit", fire, before, dropped, passed.more),)
    kept = _within_grace(trigger, first_kept, last, now, rules, key)
    if kept is None:
        count = min(passed.count + 1, rules.max_catch_up)
        return Late(None, passed.next, (*spans, Span("misfire", first_kept, last, count)))
    if kept > first_kept:
        missed = trigger.passed(first_kept, kept - 1e-6)
        spans = (*spans, Span("misfire", first_kept, _previous(trigger, kept, first_kept), missed.count + 1))
    return Late(kept, moved_on(trigger.next(kept), kept), spans)


def newest_of(trigger: AnyTrigger, first: float, last: float, count: int, limit: int) -> tuple[float, int]:
    """The first of the newest *limit* fire times of a span, and how many stand before it. Bounded by *limit*."""
    if count <= limit:
        return first, 0
    kept = last
    for _ in range(limit - 1):
        kept = _previous(trigger, kept, first)
    return kept, count - limit


def _within_grace(
    trigger: AnyTrigger, fire: float, last: float, now: float, rules: Rules, key: Key
) -> float | None:
    """The first fire time from *fire* to *last* that is not too late; None when all are."""
    grace = rules.misfire_grace
    if grace is None or round(now - rules.due(key, fire, None), 6) <= grace:
        return fire
    jitter_s = 0.0 if rules.jitter is None else rules.jitter.seconds
    found: float | None = trigger.next(now - grace - jitter_s - 1e-6)
    while found is not None and found <= last:
        if found >= fire and round(now - rules.due(key, found, None), 6) <= grace:
            return found
        found = trigger.next(found)
    return None


def _previous(trigger: AnyTrigger, fire: float, floor: float) -> float:
    """The fire time before *fire*, not below *floor*."""
    before = trigger.previous(fire - 1e-6)
    return floor if before is None or before < floor else before
