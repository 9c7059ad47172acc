"""The policies of time as tables: what is late, what overlaps, what is spread, and where a job ends. No clock, no store."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from asyncsched.definition import Cursor, Definition, JitterForm, Pending, Policies, Tally
from asyncsched.late import newest_of, sort_out
from asyncsched.plan import Ended, Span, Start, Step, decide, due_of, ended, wake_of
from asyncsched.rules import DEFAULT_RULES, Rules, rules_of
from asyncsched.triggers import Every, Once, cron, every

KEY = ("job", "birth")
#: Added at 0, every 10 s: due at 10, 20, 30 ...
EVERY = Definition(0.0, 0.0, every(10).bind(0.0), 1, 10.0)
ONCE = Definition(0.0, 0.0, Once(10.0), 1, 10.0)
NEW = Cursor()
#: It has run at 10.
RAN = Cursor(1, 20.0, tally=Tally(succeeded=1, last_run=11.0))
YEAR_S = 365 * 86400.0


def what(step: Any) -> tuple[Any, ...]:
    """A decision in short, with the spans that it writes down."""
    if isinstance(step, Start):
        return ("run", step.fire, step.spans)
    assert isinstance(step, Step)
    return ("gone" if step.delete else "wait", step.wake_at, step.spans)


def start_of(definition: Definition, cursor: Cursor, now: float, rules: Rules) -> Start:
    step = decide(definition, cursor, None, now, 0.0, rules, KEY)
    assert isinstance(step, Start)
    return step


# -- what is late ----------------------------------------------------------------------------------------------------------

LATE: list[tuple[str, Rules, Definition, Cursor, float, tuple[Any, ...]]] = [
    ("on time", Rules(), EVERY, RAN, 20.0, ("run", 20.0, ())),
    ("late, no grace", Rules(), EVERY, RAN, 29.9, ("run", 20.0, ())),
    ("late, within the grace", Rules(misfire_grace=5.0), EVERY, RAN, 24.9, ("run", 20.0, ())),
    ("late, at the very end of the grace", Rules(misfire_grace=5.0), EVERY, RAN, 25.0, ("run", 20.0, ())),
    ("late, a microsecond over the grace", Rules(misfire_grace=5.0), EVERY, RAN, 25.000001,
        ("wait", 30.0, (Span("misfire", 20.0, 20.0, 1),))),
    ("no grace at all, on time", Rules(misfire_grace=0.0), EVERY, RAN, 20.0, ("run", 20.0, ())),
    ("no grace at all, late", Rules(misfire_grace=0.0), EVERY, RAN, 20.1,
        ("wait", 30.0, (Span("misfire", 20.0, 20.0, 1),))),
    ("a one-shot, late by years", Rules(), ONCE, NEW, 1e9, ("run", 10.0, ())),
    ("a one-shot within its grace", Rules(misfire_grace=5.0), ONCE, NEW, 15.0, ("run", 10.0, ())),
    ("a one-shot too late is over", Rules(misfire_grace=5.0), ONCE, NEW, 15.1,
        ("gone", None, (Span("misfire", 10.0, 10.0, 1),))),
    ("the last of a schedule too late is over", Rules(misfire_grace=5.0),
        replace(EVERY, trigger=replace(EVERY.trigger, end=20.0)), RAN, 26.0,
        ("gone", None, (Span("misfire", 20.0, 20.0, 1),))),
]  # fmt: skip

CATCH_UP: list[tuple[str, Rules, Cursor, float, tuple[Any, ...]]] = [
    ("latest", Rules(), RAN, 65.0, ("run", 60.0, (Span("coalesced", 20.0, 50.0, 4),))),
    ("latest, exactly on a fire time", Rules(), RAN, 60.0, ("run", 60.0, (Span("coalesced", 20.0, 50.0, 4),))),
    ("latest, of two", Rules(), RAN, 30.0, ("run", 30.0, (Span("coalesced", 20.0, 20.0, 1),))),
    ("latest, too late", Rules(misfire_grace=2.0), RAN, 65.0, ("wait", 70.0, (Span("misfire", 20.0, 60.0, 5),))),
    ("latest, not too late", Rules(misfire_grace=5.0), RAN, 65.0, ("run", 60.0, (Span("coalesced", 20.0, 50.0, 4),))),
    ("earliest", Rules(catch_up="earliest"), RAN, 65.0, ("run", 20.0, (Span("coalesced", 30.0, 60.0, 4),))),
    ("earliest within the grace", Rules(catch_up="earliest", misfire_grace=30.0), RAN, 65.0,
        ("run", 40.0, (Span("misfire", 20.0, 30.0, 2), Span("coalesced", 50.0, 60.0, 2)))),
    ("earliest at the very end of the grace", Rules(catch_up="earliest", misfire_grace=25.0), RAN, 65.0,
        ("run", 40.0, (Span("misfire", 20.0, 30.0, 2), Span("coalesced", 50.0, 60.0, 2)))),
    ("earliest, only the newest in time", Rules(catch_up="earliest", misfire_grace=5.0), RAN, 65.0,
        ("run", 60.0, (Span("misfire", 20.0, 50.0, 4),))),
    ("earliest, all too late", Rules(catch_up="earliest", misfire_grace=4.0), RAN, 65.0,
        ("wait", 70.0, (Span("misfire", 20.0, 60.0, 5),))),
    ("all", Rules(catch_up="all"), RAN, 65.0, ("run", 20.0, ())),
    ("all, up to a limit", Rules(catch_up="all", max_catch_up=3), RAN, 65.0,
        ("run", 40.0, (Span("catch_up_limit", 20.0, 30.0, 2),))),
    ("all, a limit that is just met", Rules(catch_up="all", max_catch_up=5), RAN, 65.0, ("run", 20.0, ())),
    ("all, one only", Rules(catch_up="all", max_catch_up=1), RAN, 65.0,
        ("run", 60.0, (Span("catch_up_limit", 20.0, 50.0, 4),))),
    ("all within the grace", Rules(catch_up="all", misfire_grace=25.0), RAN, 65.0,
        ("run", 40.0, (Span("misfire", 20.0, 30.0, 2),))),
    ("all within limit and grace", Rules(catch_up="all", max_catch_up=4, misfire_grace=25.0), RAN, 65.0,
        ("run", 40.0, (Span("catch_up_limit", 20.0, 20.0, 1), Span("misfire", 30.0, 30.0, 1)))),
    ("all, all too late", Rules(catch_up="all", max_catch_up=4, misfire_grace=1.0), RAN, 65.0,
        ("wait", 70.0, (Span("catch_up_limit", 20.0, 20.0, 1), Span("misfire", 30.0, 60.0, 4)))),
    ("none", Rules(catch_up="none"), RAN, 65.0, ("wait", 70.0, (Span("misfire", 20.0, 60.0, 5),))),
    ("none, but the newest is just due", Rules(catch_up="none"), RAN, 60.2,
        ("run", 60.0, (Span("misfire", 20.0, 50.0, 4),))),
    ("none, a tick late", Rules(catch_up="none"), RAN, 20.9, ("run", 20.0, ())),
    ("none, missed", Rules(catch_up="none"), RAN, 24.0, ("wait", 30.0, (Span("misfire", 20.0, 20.0, 1),))),
    ("none, with a longer grace", Rules(catch_up="none", misfire_grace=8.0), RAN, 24.0,
        ("wait", 30.0, (Span("misfire", 20.0, 20.0, 1),))),
    ("all, never run before", Rules(catch_up="all"), NEW, 65.0, ("run", 60.0, (Span("coalesced", 10.0, 50.0, 5),))),
    ("earliest, never run before", Rules(catch_up="earliest"), NEW, 65.0,
        ("run", 60.0, (Span("coalesced", 10.0, 50.0, 5),))),
    ("none, never run before", Rules(catch_up="none"), NEW, 65.0, ("wait", 70.0, (Span("misfire", 10.0, 60.0, 6),))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "definition", "cursor", "now", "expected"),
    [row[1:] for row in LATE],
    ids=[row[0] for row in LATE],
)
def test_what_is_late_runs_within_its_grace(
    rules: Rules, definition: Definition, cursor: Cursor, now: float, expected: tuple[Any, ...]
) -> None:
    assert what(decide(definition, cursor, None, now, 0.0, rules, KEY)) == expected


@pytest.mark.parametrize(
    ("rules", "cursor", "now", "expected"), [row[1:] for row in CATCH_UP], ids=[row[0] for row in CATCH_UP]
)
def test_which_of_the_fire_times_that_nobody_ran_are_caught_up_with(
    rules: Rules, cursor: Cursor, now: float, expected: tuple[Any, ...]
) -> None:
    assert what(decide(EVERY, cursor, None, now, 0.0, rules, KEY)) == expected


@pytest.mark.parametrize(("catch_up", "skipped"), [("latest", 4), ("none", 5), ("earliest", 4)])
def test_the_tally_counts_what_did_not_run(catch_up: Any, skipped: int) -> None:
    rules = Rules(catch_up=catch_up)
    step = decide(EVERY, RAN, None, 65.0, 0.0, rules, KEY)
    if isinstance(step, Start):
        step = ended(EVERY, step, Ended("succeeded", 65.0, 66.0), rules, KEY)
    assert isinstance(step, Step)
    assert step.cursor.tally.skipped == skipped
    assert step.cursor.next == 70.0


def run_off(
    rules: Rules, cursor: Cursor, now: float, took: float, until: float
) -> tuple[list[float], list[Span]]:
    """The fire times that run one after the other, and what is decided on the way."""
    ran: list[float] = []
    spans: list[Span] = []
    while now < until:
        step = decide(EVERY, cursor, None, now, 0.0, rules, KEY)
        assert not isinstance(step, Step) or not step.delete
        if isinstance(step, Start):
            ran.append(step.fire)
            step = ended(EVERY, step, Ended("succeeded", now, now + took), rules, KEY)
            now += took
        assert isinstance(step, Step)
        assert step.wake_at is not None
        spans += step.spans
        now, cursor = max(now, step.wake_at), step.cursor
    return ran, spans


def test_with_all_each_is_caught_up_with_and_then_the_schedule_goes_on() -> None:
    ran, spans = run_off(Rules(catch_up="all"), RAN, 65.0, 0.5, 91.0)
    assert ran == [20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0]
    assert spans == []


def test_with_all_and_a_limit_as_many_are_caught_up_with() -> None:
    ran, spans = run_off(Rules(catch_up="all", max_catch_up=2), RAN, 65.0, 0.5, 71.0)
    assert ran == [50.0, 60.0, 70.0]
    assert spans == [Span("catch_up_limit", 20.0, 40.0, 3)]


def test_a_machine_that_slept_runs_once() -> None:
    """The wall clock is a day ahead after a suspend: what passed is one run and one decision."""
    slept = 86400.0 + 5
    assert what(decide(EVERY, RAN, None, slept, 0.0, Rules(), KEY)) == (
        "run",
        86400.0,
        (Span("coalesced", 20.0, 86390.0, 8638),),
    )
    ran, _ = run_off(Rules(), RAN, slept, 1.0, slept + 8.0)
    assert ran == [86400.0, 86410.0]


@pytest.mark.parametrize("catch_up", ["latest", "earliest", "all", "none"])
def test_a_clock_that_goes_back_fires_nothing_twice(catch_up: Any) -> None:
    rules = Rules(catch_up=catch_up)
    step = ended(EVERY, start_of(EVERY, RAN, 20.0, rules), Ended("succeeded", 20.0, 21.0), rules, KEY)
    for now in (0.0, 10.0, 19.0, 20.0, 29.9):
        assert what(decide(EVERY, step.cursor, None, now, 0.0, rules, KEY)) == ("wait", 30.0, ())


def test_a_clock_that_goes_back_during_a_run_fires_nothing_twice() -> None:
    step = ended(EVERY, start_of(EVERY, RAN, 20.0, Rules()), Ended("succeeded", 20.0, 5.0), Rules(), KEY)
    assert what(step) == ("wait", 30.0, ())


def test_what_passed_during_a_pause_is_one_decision_and_no_backlog() -> None:
    resumed = replace(EVERY, rev=4, first=70.0, resumed=(20.0, 60.0, 5, False))
    for catch_up in ("latest", "earliest", "all", "none"):
        step = decide(resumed, RAN, None, 65.0, 0.0, Rules(catch_up=catch_up), KEY)  # type: ignore[arg-type]  # str here, one of its literals
        assert what(step) == ("wait", 70.0, (Span("paused", 20.0, 60.0, 5),))


# -- bounded time ----------------------------------------------------------------------------------------------------------


class Counting(Every, frozen=True, array_like=True, gc=False, tag="counting"):
    """Counts what it is asked, however it is asked."""

    asked: ClassVar[list[str]] = []

    def next(self, after: float) -> float | None:
        self.asked.append("next")
        return super().next(after)

    def previous(self, until: float) -> float | None:
        self.asked.append("previous")
        return super().previous(until)


@pytest.mark.parametrize(
    ("rules", "most"),
    [
        (Rules(), 20),
        (Rules(catch_up="none"), 20),
        (Rules(catch_up="earliest"), 20),
        (Rules(catch_up="earliest", misfire_grace=3600.0), 20),
        (Rules(catch_up="all"), 120),
        (Rules(catch_up="all", misfire_grace=50.0), 120),
        (Rules(catch_up="earliest", misfire_grace=50.0, jitter=JitterForm(3600.0)), 30),
        (Rules(overlap="queue_all"), 20),
    ],
    ids=str,
)
def test_an_outage_of_ten_years_at_an_interval_of_one_second_costs_no_more_than_its_limit(
    rules: Rules, most: int
) -> None:
    definition = Definition(0.0, 0.0, Counting(1_000_000, bound=0.0), 1, 1.0)
    ran = Cursor(1, 2.0, tally=Tally(last_run=1.0))
    now = 10 * YEAR_S + 0.5
    Counting.asked.clear()
    step = decide(definition, ran, None, now, 0.0, rules, KEY)
    assert len(Counting.asked) <= most
    decided = sum(span.count for span in step.spans)
    runs = 100 if rules.catch_up == "all" else 0 if rules.catch_up == "none" else 1
    if rules.catch_up == "all" and rules.misfire_grace is not None:
        runs = 50
    if rules.catch_up == "none":  # The newest is half a second old, which is on time.
        runs = 1
    assert decided == 10 * YEAR_S - 1 - runs


def test_a_run_of_ten_years_at_an_interval_of_one_second_costs_no_more_than_its_limit() -> None:
    definition = Definition(0.0, 0.0, Counting(1_000_000, bound=0.0), 1, 1.0)
    for overlap in ("skip", "queue_one", "queue_all", "cancel_running"):
        rules = Rules(overlap=overlap)  # type: ignore[arg-type]  # str here, one of its literals
        start = start_of(definition, NEW, 1.0, rules)
        Counting.asked.clear()
        step = ended(definition, start, Ended("succeeded", 1.0, 10 * YEAR_S), rules, KEY)
        assert len(Counting.asked) <= 120
        kept = {"skip": 0, "queue_all": 100}.get(overlap, 1)
        assert sum(span.count for span in step.spans) == 10 * YEAR_S - 1 - kept


def test_more_than_can_be_counted_is_said_to_be_more() -> None:
    """A cron expression is walked, up to a bound."""
    definition = Definition(0.0, 0.0, cron("* * * * *"), 1, 60.0)
    step = decide(definition, NEW, None, YEAR_S, 0.0, Rules(), KEY)
    [span] = step.spans
    assert (span.reason, span.more) == ("coalesced", True)
    assert 1000 <= span.count < YEAR_S / 60


def test_a_limit_above_what_is_counted_holds_all_the_same() -> None:
    trigger = cron("* * * * *")
    rules = Rules(catch_up="all", max_catch_up=2000)
    cursor = Cursor(1, 60.0, tally=Tally(last_run=1.0))
    late = sort_out(trigger, cursor, 60.0, 600_000.0, rules, KEY)
    assert late.fire == 600_000.0 - 1999 * 60
    [span] = late.spans
    assert (span.reason, span.first, span.last, span.more) == ("catch_up_limit", 60.0, late.fire - 60, True)


@pytest.mark.parametrize(
    ("limit", "expected"), [(1, (50.0, 4)), (2, (40.0, 3)), (4, (20.0, 1)), (5, (10.0, 0)), (9, (10.0, 0))]
)
def test_the_newest_are_kept(limit: int, expected: tuple[float, int]) -> None:
    assert newest_of(EVERY.trigger, 10.0, 50.0, 5, limit) == expected


# -- what overlaps ---------------------------------------------------------------------------------------------------------


def after_run(rules: Rules, started: float, finished: float, cursor: Cursor = NEW, **end: Any) -> Step:
    start = start_of(EVERY, cursor, started, rules)
    return ended(EVERY, start, Ended(end.pop("outcome", "succeeded"), started, finished, **end), rules, KEY)


OVERLAP: list[tuple[str, Rules, float, tuple[Any, ...]]] = [
    ("skip, nothing came", Rules(), 19.9, ("wait", 20.0, ())),
    ("skip, one came", Rules(), 25.0, ("wait", 30.0, (Span("overlap", 20.0, 20.0, 1),))),
    ("skip, one came at the very end", Rules(), 20.0, ("wait", 30.0, (Span("overlap", 20.0, 20.0, 1),))),
    ("skip, some came", Rules(), 45.0, ("wait", 50.0, (Span("overlap", 20.0, 40.0, 3),))),
    ("queue_one, nothing came", Rules(overlap="queue_one"), 19.9, ("wait", 20.0, ())),
    ("queue_one, one came", Rules(overlap="queue_one"), 25.0, ("wait", 20.0, ())),
    ("queue_one, some came", Rules(overlap="queue_one"), 45.0, ("wait", 40.0, (Span("overlap", 20.0, 30.0, 2),))),
    ("queue_all, one came", Rules(overlap="queue_all"), 25.0, ("wait", 20.0, ())),
    ("queue_all, some came", Rules(overlap="queue_all"), 45.0, ("wait", 20.0, ())),
    ("queue_all, more came than fit", Rules(overlap="queue_all", max_catch_up=2), 45.0,
        ("wait", 30.0, (Span("buffer_full", 20.0, 20.0, 1),))),
    ("queue_all, as many came as fit", Rules(overlap="queue_all", max_catch_up=3), 45.0, ("wait", 20.0, ())),
    ("cancel_running, it gave way", Rules(overlap="cancel_running"), 20.0, ("wait", 20.0, ())),
    ("cancel_running, it gave way late", Rules(overlap="cancel_running"), 31.0,
        ("wait", 30.0, (Span("overlap", 20.0, 20.0, 1),))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "finished", "expected"), [row[1:] for row in OVERLAP], ids=[row[0] for row in OVERLAP]
)
def test_what_becomes_of_the_fire_times_that_came_while_it_ran(
    rules: Rules, finished: float, expected: tuple[Any, ...]
) -> None:
    assert what(after_run(rules, 10.0, finished)) == expected


def test_one_that_is_queued_runs_at_once_and_then_the_schedule_goes_on() -> None:
    rules = Rules(overlap="queue_one")
    step = after_run(rules, 10.0, 45.0)
    assert what(decide(EVERY, step.cursor, None, 45.0, 0.0, rules, KEY)) == ("run", 40.0, ())
    assert what(after_run(rules, 45.0, 46.0, step.cursor)) == ("wait", 50.0, ())


def test_each_one_that_is_queued_runs_however_late() -> None:
    """What is in the queue came while the job ran: it is neither a misfire nor something to catch up with."""
    rules = Rules(overlap="queue_all", misfire_grace=1.0, catch_up="none")
    step = after_run(rules, 10.0, 45.0)
    ran, spans = run_off(rules, step.cursor, 45.0, 0.5, 61.0)
    assert ran == [20.0, 30.0, 40.0, 50.0, 60.0]
    assert spans == []


def test_what_comes_while_the_queue_is_run_off_is_queued_behind_it() -> None:
    rules = Rules(overlap="queue_all")
    step = after_run(rules, 10.0, 45.0)
    ran, spans = run_off(rules, step.cursor, 45.0, 8.0, 300.0)
    assert ran == [20.0 + 10 * n for n in range(len(ran))]
    assert spans == []


def test_a_queue_that_grows_faster_than_it_is_run_off_stays_within_its_bound() -> None:
    rules = Rules(overlap="queue_all", max_catch_up=3)
    ran, spans = run_off(rules, NEW, 10.0, 25.0, 1000.0)
    assert {span.reason for span in spans} == {"buffer_full"}
    assert ran == sorted(set(ran))
    # Each begins no more than three fire times and the run before it after it came.
    assert all(25.0 * n + 10 - fire <= 3 * 10 + 25.0 for n, fire in enumerate(ran))
    assert len(ran) + sum(span.count for span in spans) >= 90


RETRIED = Pending(10.0, 41.0, 1, began=10.0)


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        ("skip", ("wait", 50.0, (Span("overlap", 20.0, 40.0, 3),))),
        ("queue_one", ("wait", 40.0, (Span("overlap", 20.0, 30.0, 2),))),
        ("queue_all", ("wait", 20.0, ())),
    ],
)
def test_a_pending_retry_counts_as_running(overlap: Any, expected: tuple[Any, ...]) -> None:
    rules = Rules(overlap=overlap)
    waiting = after_run(rules, 10.0, 11.0, outcome="failed", retry_in=30.0)
    assert (waiting.wake_at, waiting.spans, waiting.cursor.pending) == (41.0, (), RETRIED)
    for now in (20.0, 30.0, 40.9):
        assert what(decide(EVERY, waiting.cursor, None, now, 0.0, rules, KEY)) == ("wait", 41.0, ())
    assert what(after_run(rules, 41.0, 42.0, waiting.cursor)) == expected


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        ("skip", ("wait", 50.0, (Span("overlap", 20.0, 40.0, 3),))),
        ("queue_one", ("wait", 40.0, (Span("overlap", 20.0, 30.0, 2),))),
        ("queue_all", ("wait", 20.0, ())),
    ],
)
@pytest.mark.parametrize(
    "end", [{"outcome": "failed", "retry_in": 30.0}, {"outcome": "cancelled", "again_at": 41.0}]
)
def test_what_passed_while_nobody_made_an_attempt_that_was_due_is_caught_up_with(
    overlap: Any, expected: tuple[Any, ...], end: dict[str, Any]
) -> None:
    rules = Rules(overlap=overlap, catch_up="all")
    waiting = after_run(rules, 10.0, 11.0, **end)
    again = after_run(rules, 85.0, 86.0, waiting.cursor)
    assert what(again) == expected
    assert again.wake_at is not None
    ran, spans = run_off(rules, again.cursor, 86.0, 0.5, 95.0)
    assert ran == [10.0 * n for n in range(int(again.wake_at) // 10, 10)]
    assert spans == []


def test_a_pending_retry_gives_way_to_the_next_fire_time_where_a_run_would() -> None:
    rules = Rules(overlap="cancel_running")
    waiting = after_run(rules, 10.0, 11.0, outcome="failed", retry_in=30.0)
    assert waiting.wake_at == 20.0
    start = start_of(EVERY, waiting.cursor, 20.0, rules)
    assert (start.fire, start.attempt, start.cursor.pending) == (20.0, 1, None)


def test_a_retry_that_is_due_before_the_next_fire_time_gives_way_to_nothing() -> None:
    rules = Rules(overlap="cancel_running")
    waiting = after_run(rules, 10.0, 11.0, outcome="failed", retry_in=3.0)
    start = start_of(EVERY, waiting.cursor, 14.0, rules)
    assert (start.fire, start.attempt) == (10.0, 2)


# -- what is spread --------------------------------------------------------------------------------------------------------

FIRES = [10.0 * n for n in range(1, 200)]


def dues(jitter: JitterForm, key: tuple[str, str] = KEY, step_s: float = 10.0) -> list[float]:
    rules = Rules(jitter=jitter)
    return [rules.due(key, fire, fire + step_s) for fire in FIRES]


def test_jitter_delays_by_the_job_and_the_fire_time_and_by_nothing_else() -> None:
    first = dues(JitterForm(5.0))
    assert first == dues(JitterForm(5.0))
    assert first == dues(JitterForm(5.0), ("job", "another birth"))
    assert first != dues(JitterForm(5.0), ("another job", "birth"))
    assert len({round(due - fire, 6) for due, fire in zip(first, FIRES, strict=True)}) > 190


def test_jitter_at_random_differs_from_one_birth_of_the_job_to_the_next() -> None:
    first = dues(JitterForm(5.0, True))
    assert first == dues(JitterForm(5.0, True))
    assert first != dues(JitterForm(5.0, True), ("job", "another birth"))
    assert first != dues(JitterForm(5.0))


@pytest.mark.parametrize("is_random", [False, True])
def test_jitter_spreads_over_its_whole_length_and_not_beyond(is_random: bool) -> None:
    delays = [due - fire for due, fire in zip(dues(JitterForm(5.0, is_random)), FIRES, strict=True)]
    assert all(0 <= delay < 5.0 for delay in delays)
    assert min(delays) < 0.25
    assert max(delays) > 4.75


@pytest.mark.parametrize("at", [0.0, 1_900_000_000.0])
def test_jitter_ends_before_the_next_fire_time(at: float) -> None:
    rules = Rules(jitter=JitterForm(3600.0))
    late = [rules.due(KEY, at + fire, at + fire + 10.0) for fire in FIRES]
    assert all(at + fire <= due < at + fire + 10.0 for due, fire in zip(late, FIRES, strict=True))
    assert late == sorted(set(late))


def test_without_jitter_what_is_due_is_the_fire_time() -> None:
    assert Rules().due(KEY, 10.0, 20.0) == 10.0


JITTERED = Rules(jitter=JitterForm(8.0))
DUE = JITTERED.due(KEY, 20.0, 30.0)


def test_a_fire_time_is_waited_for_until_its_jitter_is_over() -> None:
    assert 20.5 < DUE < 28.0
    assert what(decide(EVERY, RAN, None, 20.0, 0.0, JITTERED, KEY)) == ("wait", DUE, ())
    start = start_of(EVERY, RAN, DUE, JITTERED)
    assert (start.fire, start.due, start.following) == (20.0, DUE, 30.0)


def test_jitter_moves_no_later_fire_time() -> None:
    start = start_of(EVERY, RAN, DUE, JITTERED)
    step = ended(EVERY, start, Ended("succeeded", DUE, DUE + 0.1), JITTERED, KEY)
    assert step.cursor.next == 30.0
    assert step.wake_at == JITTERED.due(KEY, 30.0, 40.0) == due_of(EVERY.trigger, 30.0, JITTERED, KEY)
    assert wake_of(EVERY, step.cursor, DUE, JITTERED, KEY) == step.wake_at


def test_the_grace_begins_when_the_jitter_is_over() -> None:
    rules = replace(JITTERED, misfire_grace=1.0)
    assert start_of(EVERY, RAN, round(DUE + 1.0, 6), rules).fire == 20.0
    step = decide(EVERY, RAN, None, DUE + 1.00001, 0.0, rules, KEY)
    assert step.spans == (Span("misfire", 20.0, 20.0, 1),)


def test_the_newest_that_is_not_due_yet_is_waited_for() -> None:
    now = DUE + 10 * YEAR_S
    newest = now // 10 * 10
    while due_of(EVERY.trigger, newest, JITTERED, KEY) <= newest + 1:
        newest += 10
    step = decide(EVERY, RAN, None, newest + 1, 0.0, JITTERED, KEY)
    assert isinstance(step, Step)
    assert step.wake_at == due_of(EVERY.trigger, newest, JITTERED, KEY)
    assert start_of(EVERY, step.cursor, step.wake_at, JITTERED).fire == newest


@pytest.mark.parametrize("catch_up", ["latest", "earliest", "all"])
def test_what_is_caught_up_with_was_due_with_its_own_jitter(catch_up: Any) -> None:
    rules = Rules(catch_up=catch_up, jitter=JitterForm(1000.0))
    start = start_of(EVERY, RAN, 69.999999, rules)
    assert start.due == due_of(EVERY.trigger, start.fire, rules, KEY) < start.fire + 10.0


def test_jitter_of_a_one_shot_has_no_end_but_its_own() -> None:
    rules = Rules(jitter=JitterForm(1000.0))
    due = due_of(ONCE.trigger, 10.0, rules, KEY)
    assert 10.0 < due < 1010.0
    assert what(decide(ONCE, NEW, None, 10.0, 0.0, rules, KEY)) == ("wait", due, ())
    assert what(decide(ONCE, NEW, None, due, 0.0, rules, KEY)) == ("run", 10.0, ())


# -- where a job ends or rests ---------------------------------------------------------------------------------------------


def test_a_job_ends_after_so_many_fire_times() -> None:
    rules = Rules(max_runs=2)
    first = after_run(rules, 10.0, 11.0)
    assert what(first) == ("wait", 20.0, ())
    second = after_run(rules, 20.0, 21.0, first.cursor)
    assert what(second) == ("gone", None, (Span("ended", 30.0, 30.0, 1, True, "max_runs=2"),))
    assert what(decide(EVERY, second.cursor, None, 30.0, 0.0, rules, KEY)) == ("gone", None, ())


def test_a_retry_is_no_further_fire_time_of_a_bounded_job() -> None:
    rules = Rules(max_runs=1)
    waiting = after_run(rules, 10.0, 11.0, outcome="failed", retry_in=1.0)
    assert what(waiting) == ("wait", 12.0, ())
    assert what(after_run(rules, 12.0, 13.0, waiting.cursor, outcome="failed"))[0] == "gone"


def test_a_fire_time_that_did_not_run_does_not_use_up_a_bounded_job() -> None:
    rules = Rules(max_runs=2, misfire_grace=1.0)
    missed = decide(EVERY, NEW, None, 15.0, 0.0, rules, KEY)
    assert what(missed) == ("wait", 20.0, (Span("misfire", 10.0, 10.0, 1),))
    first = after_run(rules, 20.0, 45.0, missed.cursor)
    assert what(first) == ("wait", 50.0, (Span("overlap", 30.0, 40.0, 2),))
    assert what(after_run(rules, 50.0, 51.0, first.cursor))[0] == "gone"


def test_the_last_run_of_a_schedule_that_ends_anyway_ends_nothing_more() -> None:
    bounded = replace(EVERY, trigger=replace(EVERY.trigger, end=10.0))
    start = start_of(bounded, NEW, 10.0, Rules(max_runs=1))
    step = ended(bounded, start, Ended("succeeded", 10.0, 11.0), Rules(max_runs=1), KEY)
    assert what(step) == ("gone", None, ())


def fail(rules: Rules, cursor: Cursor, now: float, outcome: str = "failed") -> Step:
    return after_run(rules, now, now + 1, cursor, outcome=outcome)


def test_a_job_rests_after_so_many_failures_in_a_row() -> None:
    rules = Rules(pause_after_failures=3)
    step = fail(rules, fail(rules, fail(rules, NEW, 10.0).cursor, 20.0, "timed_out").cursor, 30.0)
    assert (step.wake_at, step.hold, step.delete) == (None, "paused", False)
    again = decide(EVERY, step.cursor, None, 45.0, 0.0, rules, KEY)
    assert isinstance(again, Step)
    assert (again.wake_at, again.hold) == (None, "paused")


def test_a_success_between_failures_lets_the_job_go_on() -> None:
    rules = Rules(pause_after_failures=2)
    succeeded = after_run(rules, 20.0, 21.0, fail(rules, NEW, 10.0).cursor)
    assert fail(rules, succeeded.cursor, 30.0).hold is None
    assert fail(rules, fail(rules, succeeded.cursor, 30.0).cursor, 40.0).hold == "paused"


def test_a_failure_that_is_to_be_retried_does_not_make_the_job_rest() -> None:
    rules = Rules(pause_after_failures=1)
    assert after_run(rules, 10.0, 11.0, outcome="failed", retry_in=1.0).hold is None


@pytest.mark.parametrize("is_paused", [False, True])
def test_a_one_shot_that_succeeded_while_it_was_paused_is_over(is_paused: bool) -> None:
    """Its settlement came too late to remove it: what the pause wrote was newer."""
    step = ended(ONCE, start_of(ONCE, NEW, 10.0, Rules()), Ended("succeeded", 10.0, 35.0), Rules(), KEY)
    paused = replace(ONCE, paused=is_paused)
    assert what(decide(paused, step.cursor, None, 35.0, 0.0, Rules(), KEY)) == ("gone", None, ())


# -- whose policy counts ---------------------------------------------------------------------------------------------------


def test_a_job_s_own_policy_counts_then_the_scheduler_s_then_what_is_assumed() -> None:
    rules = rules_of(Policies(overlap="queue_one"), {"overlap": "skip", "catch_up": "all", "max_runs": None})
    assert (rules.overlap, rules.catch_up, rules.max_runs) == ("queue_one", "all", None)
    assert (
        rules_of(Policies(), {}) == DEFAULT_RULES == Rules(None, "latest", 100, "skip", 10, None, None, None)
    )
