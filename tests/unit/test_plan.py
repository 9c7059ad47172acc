"""Policy as tables: what a claimed record is to do, and what becomes of it after a run."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from asyncsched.definition import Cursor, Definition, Pending, Request, Tally
from asyncsched.errors import TriggerError
from asyncsched.plan import (
    MAX_CRASHES,
    Ended,
    Span,
    Start,
    Step,
    decide,
    ended,
    is_done,
    is_quarantined,
    synced,
    wake_of,
)
from asyncsched.triggers import Once, cron, every, manual

#: Added at 0, every 10 s: due at 10, 20, 30 ...
EVERY = Definition(0.0, 0.0, every(10).bind(0.0), 1, 10.0)
ONCE = Definition(0.0, 0.0, Once(10.0), 1, 10.0)
MANUAL = Definition(0.0, 0.0, manual(), 1, None)
NEW = Cursor()


def paused(definition: Definition) -> Definition:
    return replace(definition, paused=True)


def asked(definition: Definition, *requests: tuple[int, float, bool]) -> Definition:
    return replace(definition, requests=tuple(Request(*request) for request in requests))


ASKED = asked(EVERY, (2, 3.0, False))
TWICE = asked(EVERY, (2, 3.0, False), (3, 3.5, False))
FORCED = asked(EVERY, (2, 3.0, True))
ONCE_ASKED = asked(ONCE, (2, 3.0, False))
ONCE_FORCED = asked(ONCE, (2, 3.0, True))
BY_HAND = asked(MANUAL, (2, 10.0, False))
BOUNDED = replace(EVERY, trigger=replace(EVERY.trigger, end=10.0))
MOVED = replace(EVERY, rev=5, first=99.0)
RETRYING = Cursor(1, 30.0, Pending(20.0, 25.0, 2))


def what(step: Start | Step) -> tuple[Any, ...]:
    """A decision in short."""
    if isinstance(step, Start):
        return ("run", step.fire, step.due, step.attempt, step.request)
    if step.delete:
        return ("delete",)
    return ("wait", step.wake_at, step.hold)


DECISIONS: list[tuple[str, Definition, Cursor, str | None, float, tuple[Any, ...]]] = [
    ("not due yet", EVERY, NEW, None, 9.0, ("wait", 10.0, None)),
    ("due now", EVERY, NEW, None, 10.0, ("run", 10.0, 10.0, 1, 0)),
    ("late", EVERY, NEW, None, 19.0, ("run", 10.0, 10.0, 1, 0)),
    ("late by more than one", EVERY, NEW, None, 35.0, ("run", 30.0, 30.0, 1, 0)),
    ("a one-shot, late by years", ONCE, NEW, None, 1e9, ("run", 10.0, 10.0, 1, 0)),
    ("with progress", EVERY, Cursor(1, 40.0), None, 41.0, ("run", 40.0, 40.0, 1, 0)),
    ("a retry that is due", EVERY, RETRYING, None, 25.0, ("run", 20.0, 25.0, 3, 0)),
    ("a retry that is not", EVERY, RETRYING, None, 24.0, ("wait", 25.0, None)),
    ("a retry of a request", EVERY, Cursor(1, 30.0, Pending(5.0, 6.0, 1, 7), 7), None, 6.0, ("run", 5.0, 6.0, 2, 7)),
    ("paused", paused(EVERY), NEW, None, 50.0, ("wait", None, "paused")),
    ("paused, with a retry", paused(EVERY), RETRYING, None, 50.0, ("wait", None, "paused")),
    ("failed, kept long enough", ONCE, Cursor(1, None), "failed", 50.0, ("delete",)),
    ("over", ONCE, Cursor(1, None), None, 50.0, ("delete",)),
    ("by hand, unasked", MANUAL, NEW, None, 50.0, ("wait", None, None)),
    ("asked for", ASKED, NEW, None, 4.0, ("run", 3.0, 3.0, 1, 2)),
    ("asked for and run", ASKED, Cursor(1, 10.0, None, 2), None, 4.0, ("wait", 10.0, None)),
    ("asked for twice", TWICE, Cursor(1, 10.0, None, 2), None, 4.0, ("run", 3.5, 3.5, 1, 3)),
    ("asked for while due", asked(EVERY, (2, 11.0, False)), NEW, None, 12.0, ("run", 11.0, 11.0, 1, 2)),
    ("asked for while a retry waits", ASKED, RETRYING, None, 4.0, ("run", 20.0, 3.0, 3, 0)),
    ("asked for while paused", paused(ASKED), NEW, None, 4.0, ("wait", None, "paused")),
    ("forced while paused", paused(FORCED), NEW, "paused", 4.0, ("run", 3.0, 3.0, 1, 2)),
    ("asked for by hand", asked(MANUAL, (2, 3.0, False)), NEW, None, 4.0, ("run", 3.0, 3.0, 1, 2)),
    ("asked for after it failed", asked(ONCE, (2, 60.0, False)), Cursor(1, None), "failed", 60.0, ("run", 60.0, 60.0, 1, 2)),
    ("rescheduled", MOVED, Cursor(1, 20.0), None, 21.0, ("wait", 99.0, None)),
    ("rescheduled, retry forgotten", MOVED, Cursor(1, 20.0, Pending(20.0, 21.0, 1)), None, 21.0, ("wait", 99.0, None)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("definition", "cursor", "hold", "now", "expected"),
    [row[1:] for row in DECISIONS],
    ids=[row[0] for row in DECISIONS],
)
def test_what_a_claimed_record_is_to_do(
    definition: Definition, cursor: Cursor, hold: str | None, now: float, expected: tuple[Any, ...]
) -> None:
    assert what(decide(definition, cursor, hold, now)) == expected


@pytest.mark.parametrize(("ahead", "expected"), [(0.0, "wait"), (0.9, "wait"), (1.0, "run"), (5.0, "run")])
def test_looking_ahead_a_run_is_given_out_early_for_its_time(ahead: float, expected: str) -> None:
    step = decide(EVERY, NEW, None, 9.0, ahead)
    assert what(step)[0] == expected
    if isinstance(step, Start):
        assert (step.due, step.spans) == (10.0, ())


def test_fire_times_that_nobody_ran_are_coalesced_into_the_last() -> None:
    step = decide(EVERY, NEW, None, 35.0)
    assert isinstance(step, Start)
    assert step.spans == (Span("coalesced", 10.0, 20.0, 2),)


def test_what_passed_during_a_pause_is_said_once() -> None:
    resumed = replace(EVERY, rev=4, first=60.0, resumed=(10.0, 50.0, 5, False))
    step = decide(resumed, Cursor(1, 10.0), None, 55.0)
    assert step.spans == (Span("paused", 10.0, 50.0, 5, False),)
    assert decide(resumed, step.cursor, None, 60.0).spans == ()


def test_so_many_lost_claims_in_a_row_are_a_job_that_kills_its_process() -> None:
    assert [is_quarantined(tries, MAX_CRASHES) for tries in (1, 5, 6)] == [False, False, True]


# -- after a run -------------------------------------------------------------------------------------------------------

QUICK = Ended("succeeded", 3.0, 4.0)
OK = Ended("succeeded", 10.0, 11.0)
BAD = Ended("failed", 10.0, 11.0, "error", keep_s=100.0)


def start_of(definition: Definition, now: float, cursor: Cursor = NEW) -> Start:
    step = decide(definition, cursor, None, now)
    assert isinstance(step, Start)
    return step


ENDS: list[tuple[str, Definition, Cursor, float, Ended, tuple[Any, ...]]] = [
    ("a one-shot succeeded", ONCE, NEW, 10.0, OK, ("delete",)),
    ("a one-shot failed", ONCE, NEW, 10.0, BAD, ("wait", 111.0, "failed")),
    ("a one-shot failed, kept for ever", ONCE, NEW, 10.0, replace(BAD, keep_s=None), ("wait", None, "failed")),
    ("a one-shot failed, to be removed", ONCE, NEW, 10.0, replace(BAD, on_exhausted="remove"), ("delete",)),
    ("a one-shot failed, to be paused", ONCE, NEW, 10.0, replace(BAD, on_exhausted="pause"), ("wait", None, "paused")),
    ("a one-shot is to be retried", ONCE, NEW, 10.0, replace(BAD, retry_in=5.0), ("wait", 16.0, None)),
    ("a one-shot snoozed", ONCE, NEW, 10.0, replace(OK, outcome="cancelled", again_at=70.0), ("wait", 70.0, None)),
    ("a one-shot named its next time", ONCE, NEW, 10.0, replace(OK, next_at=70.0), ("wait", 70.0, None)),
    ("a one-shot ran on request before its time", ONCE_ASKED, NEW, 3.0, QUICK, ("wait", 10.0, None)),
    ("recurring, succeeded", EVERY, NEW, 10.0, OK, ("wait", 20.0, None)),
    ("recurring, failed", EVERY, NEW, 10.0, BAD, ("wait", 20.0, None)),
    ("recurring, failed, to be removed", EVERY, NEW, 10.0, replace(BAD, on_exhausted="remove"), ("delete",)),
    ("recurring, failed, to be paused", EVERY, NEW, 10.0, replace(BAD, on_exhausted="pause"), ("wait", None, "paused")),
    ("recurring, to be retried", EVERY, NEW, 10.0, replace(BAD, retry_in=50.0), ("wait", 61.0, None)),
    ("recurring, finished", EVERY, NEW, 10.0, replace(OK, finish=True), ("delete",)),
    ("recurring, took long", EVERY, NEW, 10.0, replace(OK, finished=45.0), ("wait", 50.0, None)),
    ("recurring, ended on a fire time", EVERY, NEW, 10.0, replace(OK, finished=20.0), ("wait", 30.0, None)),
    ("recurring, named its next time", EVERY, NEW, 10.0, replace(OK, next_at=33.0), ("wait", 33.0, None)),
    ("recurring, named its own fire time", EVERY, NEW, 10.0, replace(OK, next_at=10.0), ("wait", 11.0, None)),
    ("recurring, named one that it overlapped", EVERY, NEW, 10.0, replace(OK, finished=35.0, next_at=20.0),
        ("wait", 35.0, None)),
    ("once, named one of the past", ONCE, NEW, 10.0, replace(OK, next_at=3.0), ("wait", 11.0, None)),
    ("recurring, timed out", EVERY, NEW, 10.0, replace(BAD, outcome="timed_out"), ("wait", 20.0, None)),
    ("recurring, shut down", EVERY, NEW, 10.0, replace(OK, outcome="cancelled", again_at=11.0), ("wait", 11.0, None)),
    ("by hand, succeeded", BY_HAND, NEW, 10.0, OK, ("wait", None, None)),
    ("by hand, failed", BY_HAND, NEW, 10.0, BAD, ("wait", None, None)),
    ("by hand, failed, to be removed", BY_HAND, NEW, 10.0, replace(BAD, on_exhausted="remove"), ("delete",)),
    ("by hand, finished", BY_HAND, NEW, 10.0, replace(OK, finish=True), ("delete",)),
    ("on request, schedule untouched", ASKED, NEW, 3.0, QUICK, ("wait", 10.0, None)),
    ("on request, asked again", TWICE, NEW, 3.5, Ended("succeeded", 3.5, 4.0), ("wait", 4.0, None)),
    ("forced while paused", paused(FORCED), NEW, 3.0, QUICK, ("wait", None, "paused")),
    ("forced one-shot while paused", paused(ONCE_FORCED), NEW, 3.0, QUICK, ("wait", None, "paused")),
    ("the last of a bounded schedule", BOUNDED, NEW, 10.0, OK, ("delete",)),
    ("the last of a bounded schedule, failed", BOUNDED, NEW, 10.0, BAD, ("delete",)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("definition", "cursor", "now", "end", "expected"),
    [row[1:] for row in ENDS],
    ids=[row[0] for row in ENDS],
)
def test_what_becomes_of_the_record_after_a_run(
    definition: Definition, cursor: Cursor, now: float, end: Ended, expected: tuple[Any, ...]
) -> None:
    assert what(ended(definition, start_of(definition, now, cursor), end)) == expected


@pytest.mark.parametrize(
    ("definition", "cursor", "now", "end", "expected"),
    [row[1:] for row in ENDS],
    ids=[row[0] for row in ENDS],
)
def test_an_end_that_was_overtaken_by_an_update_is_planned_the_same_again(
    definition: Definition, cursor: Cursor, now: float, end: Ended, expected: tuple[Any, ...]
) -> None:
    """The cursor alone says what is to become of the record: the move or delete itself may have been refused as stale."""
    step = ended(definition, start_of(definition, now, cursor), end)
    again = decide(definition, step.cursor, None, end.finished)
    if expected[:2] == ("wait", end.finished):
        assert isinstance(again, Start)
    else:
        assert what(again) == expected


def test_a_retry_keeps_the_fire_time_and_counts_the_attempt() -> None:
    step = ended(EVERY, start_of(EVERY, 10.0), replace(BAD, retry_in=5.0))
    assert step.cursor.pending == Pending(10.0, 16.0, 1, began=10.0)
    again = start_of(EVERY, 16.0, step.cursor)
    assert (again.fire, again.attempt) == (10.0, 2)


def test_coming_back_spends_no_attempt() -> None:
    step = ended(EVERY, start_of(EVERY, 10.0), replace(OK, outcome="cancelled", again_at=15.0))
    assert start_of(EVERY, 15.0, step.cursor).attempt == 1


def test_fire_times_that_passed_while_it_ran_overlap_it() -> None:
    step = ended(EVERY, start_of(EVERY, 10.0), replace(OK, finished=45.0))
    assert step.spans == (Span("overlap", 20.0, 40.0, 3, False),)
    assert step.cursor.tally.skipped == 3


def test_a_fire_time_that_came_before_a_late_start_stays_due() -> None:
    """It was claimed for 10, started at 25 only: 20 was not overlapped by a run, and is not skipped."""
    start = start_of(EVERY, 10.0)
    step = ended(EVERY, start, Ended("succeeded", 25.0, 26.0))
    assert what(step) == ("wait", 20.0, None)


def test_what_is_carried_stays_unless_something_else_is() -> None:
    carried = ended(EVERY, start_of(EVERY, 10.0), replace(OK, carried=b"x")).cursor
    assert carried.carried == b"x"
    assert ended(EVERY, start_of(EVERY, 20.0, carried), replace(OK, finished=21.0)).cursor.carried == b"x"


def test_the_tally_counts_and_measures() -> None:
    first = ended(EVERY, start_of(EVERY, 10.0), OK).cursor
    second = ended(EVERY, start_of(EVERY, 20.0, first), Ended("failed", 20.0, 24.0, "e")).cursor
    assert second.tally == Tally(1, 1, 0, 1, 24.0, 11.0, 24.0, "e", 5.0, 1.0, 4.0, "failed")


def test_a_success_ends_the_failures_in_a_row_and_keeps_the_last_error() -> None:
    cursor = Cursor(1, 10.0, tally=Tally(failed=3, consecutive_failures=3, last_failure=9.0, last_error="e"))
    tally = ended(EVERY, start_of(EVERY, 10.0, cursor), OK).cursor.tally
    assert (tally.consecutive_failures, tally.last_failure, tally.last_error) == (0, 9.0, "e")


def test_snoozing_counts_as_neither() -> None:
    tally = ended(EVERY, start_of(EVERY, 10.0), replace(OK, outcome="cancelled", again_at=70.0)).cursor.tally
    assert (tally.succeeded, tally.failed, tally.last_run) == (0, 0, None)


# -- what always holds -------------------------------------------------------------------------------------------------

DEFINITIONS = st.sampled_from(
    [EVERY, ONCE, MANUAL, replace(EVERY, trigger=cron("* * * * *"), first=60.0)]
).flatmap(
    lambda definition: st.builds(
        lambda is_paused, requests: replace(definition, paused=is_paused, requests=tuple(requests)),
        st.booleans(),
        st.lists(st.builds(Request, st.integers(2, 5), st.floats(0, 50), st.booleans()), max_size=2),
    )
)
PENDING = st.none() | st.builds(
    Pending, st.floats(0, 50), st.floats(0, 100), st.integers(0, 3), st.integers(0, 2)
)
CURSORS = st.just(NEW) | st.builds(
    Cursor, st.just(1), st.none() | st.integers(0, 9).map(lambda n: n * 10.0), PENDING, st.integers(0, 5)
)
ENDINGS = st.builds(
    lambda outcome, took, retry_in, again, finish, on_exhausted: (
        outcome,
        took,
        retry_in,
        again,
        finish,
        on_exhausted,
    ),
    st.sampled_from(["succeeded", "failed", "timed_out", "cancelled"]),
    st.floats(0, 100),
    st.none() | st.floats(0, 50),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["keep", "remove", "pause"]),
)


@given(DEFINITIONS, CURSORS, st.floats(0, 200))
def test_a_decision_not_to_run_now_wakes_later_or_never(
    definition: Definition, cursor: Cursor, now: float
) -> None:
    """Else the record would be claimed again and again."""
    step = decide(definition, cursor, None, now)
    if isinstance(step, Step) and not step.delete:
        assert step.wake_at is None or step.wake_at > now


@given(DEFINITIONS, CURSORS, st.floats(0, 200), ENDINGS)
def test_every_end_leads_to_a_decision_and_none_to_the_same_fire_time_twice(
    definition: Definition, cursor: Cursor, now: float, ending: tuple[Any, ...]
) -> None:
    start = decide(definition, cursor, None, now)
    if not isinstance(start, Start):
        return
    outcome, took, retry_in, again, finish, on_exhausted = ending
    end = Ended(
        outcome,
        now,
        now + took,
        None,
        retry_in if outcome in ("failed", "timed_out") else None,
        now + took if again and outcome == "cancelled" else None,
        finish and outcome == "succeeded",
        None,
        None,
        on_exhausted,
        60.0,
    )
    step = ended(definition, start, end)
    if step.delete:
        return
    following = decide(definition, step.cursor, step.hold, end.finished + 1000)
    if isinstance(following, Start) and not following.request and step.cursor.pending is None:
        assert following.fire != start.fire or start.request


@given(DEFINITIONS, CURSORS)
def test_synced_twice_is_synced_once(definition: Definition, cursor: Cursor) -> None:
    once = synced(definition, cursor)
    assert synced(definition, once) == once


@given(DEFINITIONS, CURSORS, st.floats(0, 200))
def test_a_record_wakes_when_there_is_something_to_decide(
    definition: Definition, cursor: Cursor, now: float
) -> None:
    wake_at = wake_of(definition, cursor, now)
    if wake_at is not None and not definition.paused:
        step = decide(definition, cursor, None, max(wake_at, now))
        assert isinstance(step, Start) or (isinstance(step, Step) and step.delete)
    if is_done(definition, synced(definition, cursor)):
        # Else nobody would remove it.
        assert wake_at == now


def test_a_trigger_that_does_not_move_on_is_refused_before_its_job_runs_for_ever() -> None:
    stuck = replace(EVERY, trigger=replace(every(10), step_us=-10_000_000, bound=10.0), first=10.0)
    with pytest.raises(TriggerError, match="not later"):
        decide(stuck, NEW, None, 10.0)
