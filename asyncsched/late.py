"""Fire times that passed while nobody ran: which of them run, which do not, and why. Pure."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

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
        if rules.catch_up == "none":
            # That is about fire times that others follow.
            rules = replace(rules, catch_up="latest")
        return _kept_or_missed(fire, None, now, rules, key)
    if trigger.after_finish:
        # Nothing passes before it has run: it counts from its own end.
        return _kept_or_missed(fire, trigger.next(now), now, rules, key)
    following = moved_on(trigger.next(fire), fire)
    if trigger.is_backfill or (cursor.queued_until is not None and fire <= cursor.queued_until):
        return Late(fire, following)
    if following is None or following > now:
        return _kept_or_missed(fire, following, now, rules, key)
    passed = trigger.passed(fire, now)
    if passed.last is None:
        return _kept_or_missed(fire, following, now, rules, key)
    mode = rules.catch_up
    if mode in ("all", "earliest") and cursor.tally.last_run is None:
        # What has never run has nothing to catch up with.
        mode = "latest"
    if mode == "earliest":
        return _earliest(trigger, fire, passed, now, rules, key)
    if mode == "all":
        return _all(trigger, fire, passed, now, rules, key)
    kept = _kept_or_missed(passed.last, passed.next, now, rules, key)
    if kept.fire is None:
        # The newest is too late, and so are all before it.
        return replace(kept, spans=(Span("misfire", fire, passed.last, passed.count + 1, passed.more),))
    before = _previous(trigger, passed.last, fire)
    reason = "coalesced" if mode == "latest" else "misfire"
    return replace(kept, spans=(Span(reason, fire, before, passed.count, passed.more),))


def _kept_or_missed(fire: float, following: float | None, now: float, rules: Rules, key: Key) -> Late:
    """The fire time, unless it is too late for it."""
    grace = rules.misfire_grace
    if rules.catch_up == "none":
        grace = _ON_TIME_S if grace is None else min(grace, _ON_TIME_S)
    if grace is None or _is_within(grace, fire, following, now, rules, key):
        return Late(fire, following)
    return Late(None, following, (Span("misfire", fire, fire, 1),))


def _is_within(
    grace: float, fire: float, following: float | None, now: float, rules: Rules, key: Key
) -> bool:
    # To the microsecond, which is what instants are kept to.
    return round(now - rules.due(key, fire, following), 6) <= grace


def _earliest(trigger: AnyTrigger, fire: float, passed: Passed, now: float, rules: Rules, key: Key) -> Late:
    """The first that is not too late; it stands for those behind it."""
    last = passed.last or fire
    kept = _first_within_grace(trigger, fire, last, now, rules, key)
    if kept is None:
        return Late(None, passed.next, (Span("misfire", fire, last, passed.count + 1, passed.more),))
    spans = _missed_before(trigger, kept, fire)
    rest = trigger.passed(kept, now)
    if rest.last is not None:
        first = moved_on(trigger.next(kept), kept)
        spans = (*spans, Span("coalesced", first or rest.last, rest.last, rest.count, rest.more))
    return Late(kept, passed.next, spans)


def _all(trigger: AnyTrigger, fire: float, passed: Passed, now: float, rules: Rules, key: Key) -> Late:
    """The oldest of those that are caught up with; the others come after it."""
    last = passed.last or fire
    count = passed.count + 1
    first_kept, dropped = newest_of(trigger, fire, last, count, rules.max_catch_up, passed.more)
    spans: tuple[Span, ...] = ()
    if first_kept > fire:
        before = _previous(trigger, first_kept, fire)
        spans = (Span("catch_up_limit", fire, before, dropped, passed.more),)
    kept = _first_within_grace(trigger, first_kept, last, now, rules, key)
    if kept is None:
        return Late(None, passed.next, (*spans, Span("misfire", first_kept, last, count - dropped)))
    spans += _missed_before(trigger, kept, first_kept)
    return Late(kept, moved_on(trigger.next(kept), kept), spans)


def _missed_before(trigger: AnyTrigger, kept: float, first: float) -> tuple[Span, ...]:
    """Those from *first* on that come before *kept* and are too late."""
    if kept <= first:
        return ()
    before = _previous(trigger, kept, first)
    missed = trigger.passed(first, before)
    return (Span("misfire", first, before, missed.count + 1, missed.more),)


def newest_of(
    trigger: AnyTrigger, first: float, last: float, count: int, limit: int, more: bool = False
) -> tuple[float, int]:
    """The first of the newest *limit* fire times of a span, and how many stand before it. Bounded by *limit*.

    *more*: the count is a lower bound, and so is the one that is returned.
    """
    if count <= limit and not more:
        return first, 0
    kept = last
    for _ in range(limit - 1):
        if kept <= first:
            return first, 0
        kept = _previous(trigger, kept, first)
    return kept, max(count - limit, 1 if kept > first else 0)


def _first_within_grace(
    trigger: AnyTrigger, fire: float, last: float, now: float, rules: Rules, key: Key
) -> float | None:
    """The first fire time from *fire* to *last* that is not too late; None when all are.

    Each is due before the one behind it, so it is the last one before the grace began or one of the next two.
    """
    grace = rules.misfire_grace
    if grace is None:
        return fire
    before = trigger.previous(round(now - grace, 6))
    found: float | None = fire if before is None or before < fire else before
    while found is not None and found <= last:
        following = trigger.next(found)
        if _is_within(grace, found, following, now, rules, key):
            return found
        found = moved_on(following, found)
    return None


def _previous(trigger: AnyTrigger, fire: float, floor: float) -> float:
    """The fire time before *fire*, not below *floor*."""
    before = trigger.previous(fire - 1e-6)
    return floor if before is None or before < floor else before
