"""Whatever the policy: every fire time either runs or is in exactly one decision, and none is both or twice.

A job is followed through the pure functions alone, over random intervals, outages, lengths of runs, failures and clocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from asyncsched.definition import Cursor, Definition, JitterForm
from asyncsched.plan import Ended, Span, Spread, Start, Step, decide, ended, spread, wake_of
from asyncsched.rules import Rules
from asyncsched.triggers import AnyTrigger, Every, Excluding, cron, excluding
from tests.support.examples import examples

KEY = ("job", "birth")
MAX_STEPS = 60
#: Seconds. Quarters are exact as floats, so that instants meet.
QUARTERS = st.integers(0, 400).map(lambda n: n / 4)
#: None: on time. Nobody is there for a while: a stop, a full queue, a suspended machine; or the clock goes back.
LATENESS = st.sampled_from([0.0, 0.0, 0.0, 0.25, 3.0, -7.5]) | st.integers(0, 4000).map(lambda n: n / 4)


@dataclass
class Life:
    """What became of a job."""

    ran: list[float] = field(default_factory=list)
    attempts: int = 0
    spans: list[Span] = field(default_factory=list)
    cursor: Cursor = field(default_factory=Cursor)
    is_over: bool = False
    rests: bool = False


@st.composite
def triggers(draw: st.DrawFn) -> AnyTrigger:
    if draw(st.integers(0, 4)) == 0:
        return cron(draw(st.sampled_from(["* * * * *", "*/7 * * * *", "*/20 * * * * *"])))
    step_us = draw(st.integers(1, 240)) * 250_000
    end = draw(st.none() | st.integers(0, 2000).map(lambda n: 1000.0 + n / 4))
    return Every(step_us, end=end).bind(1000.0)


RULES = st.builds(
    Rules,
    misfire_grace=st.none() | QUARTERS,
    catch_up=st.sampled_from(["latest", "earliest", "all", "none"]),
    max_catch_up=st.integers(1, 6) | st.just(100),
    overlap=st.sampled_from(["skip", "queue_one", "queue_all", "cancel_running"]),
    jitter=st.none() | st.builds(JitterForm, QUARTERS, st.booleans()),
    max_runs=st.none() | st.integers(1, 20),
    pause_after_failures=st.none() | st.integers(1, 5),
)
#: How late it is claimed, how long after that it starts, how long it runs, how it ends, and when it is retried.
TURNS = st.lists(
    st.tuples(
        LATENESS,
        st.sampled_from([0.0, 0.0, 0.0, 0.5, 40.0]),
        QUARTERS,
        st.sampled_from(["succeeded", "succeeded", "failed", "cancelled"]),
        st.none() | QUARTERS,
    ),
    min_size=1,
    max_size=MAX_STEPS,
)


def live(definition: Definition, rules: Rules, turns: list[tuple[Any, ...]]) -> Life:
    """Claim, run and settle, as often as there are turns."""
    life = Life()
    wake_at, now = wake_of(definition, life.cursor, 0.0, rules, KEY), 0.0
    for late_s, wait_s, took_s, outcome, retry_in in turns:
        if wake_at is None:
            break
        now = max(now, wake_at) + late_s
        step = decide(definition, life.cursor, None, now, 0.0, rules, KEY)
        assert isinstance(step, Start | Step)
        if isinstance(step, Start):
            assert step.due <= now
            if not life.ran or life.ran[-1] != step.fire:
                life.ran.append(step.fire)
                assert step.attempt == 1
            life.attempts += 1
            end = run(step, rules, now + wait_s, took_s, outcome, retry_in)
            now = end.finished
            step = ended(definition, step, end, rules, KEY)
        else:
            assert step.delete or step.hold or step.wake_at is None or step.wake_at > now
        life.spans += step.spans
        life.cursor, wake_at = step.cursor, step.wake_at
        life.is_over, life.rests = step.delete, step.hold == "paused"
        if step.delete:
            break
    return life


def run(
    start: Start, rules: Rules, started: float, took_s: float, outcome: Any, retry_in: float | None
) -> Ended:
    finished, following = started + took_s, start.following
    if rules.overlap == "cancel_running" and following is not None and started < following < finished:
        return Ended("cancelled", started, following)
    again_at = finished + 1.0 if outcome == "cancelled" and retry_in is not None else None
    retry_in = retry_in if outcome == "failed" else None
    return Ended(outcome, started, finished, retry_in=retry_in, again_at=again_at)


def named(trigger: AnyTrigger, first: float, end: float | None) -> list[float]:
    """The fire times from *first* to before *end*."""
    found: list[float] = []
    fire: float | None = first
    while fire is not None and (end is None or fire < end):
        found.append(fire)
        fire = trigger.next(fire)
    return found


@st.composite
def gapped(draw: st.DrawFn) -> tuple[AnyTrigger, AnyTrigger]:
    """A trigger that leaves out some of what another one names."""
    step_us = draw(st.integers(1, 240)) * 250_000
    base = Every(step_us).bind(1000.0)
    left_out = [
        Every(step_us * draw(st.integers(2, 5))).bind(1000.0 + step_us / 1e6 * draw(st.integers(0, 3)))
    ]
    return base, excluding(base, *left_out)


def assert_conserved(life: Life, trigger: AnyTrigger, first: float, base: AnyTrigger | None = None) -> None:
    """Each fire time from *first* up to where the job has come ran, or is in one decision."""
    end = life.cursor.next
    decided: list[float] = []
    left_out: list[float] = []
    for span in life.spans:
        if span.reason == "ended":
            assert life.is_over
            end = span.first
            continue
        if span.reason == "excluded":
            times = without(base or trigger, trigger, span.first, span.last + 1e-6)
            left_out += times
        else:
            times = named(trigger, span.first, span.last + 1e-6)
            decided += times
        assert times[-1] == span.last
        assert len(times) == span.count or (span.more and len(times) >= span.count)
    assert end is not None or life.is_over or life.rests or life.cursor.pending is not None
    assert sorted(life.ran + decided) == named(trigger, first, end)
    if base is not None and not any(span.more for span in life.spans):
        assert sorted(left_out) == without(base, trigger, first, end)


def without(base: AnyTrigger, trigger: AnyTrigger, first: float, end: float | None) -> list[float]:
    """What *base* names and *trigger* does not."""
    return [fire for fire in named(base, first, end) if trigger.previous(fire) != fire]


@examples(300)
@given(triggers(), RULES, TURNS)
def test_every_fire_time_runs_or_is_in_exactly_one_decision(
    trigger: AnyTrigger, rules: Rules, turns: list[tuple[Any, ...]]
) -> None:
    first = trigger.first(1000.0)
    if first is None:
        return
    life = live(Definition(1000.0, 1000.0, trigger, 1, first), rules, turns)
    assert_conserved(life, trigger, first)


@examples(200)
@given(gapped(), RULES, TURNS)
def test_every_fire_time_that_is_excluded_is_in_exactly_one_decision(
    pair: tuple[AnyTrigger, AnyTrigger], rules: Rules, turns: list[tuple[Any, ...]]
) -> None:
    base, trigger = pair
    first = trigger.first(1000.0)
    assert first is not None
    life = live(Definition(1000.0, 1000.0, trigger, 1, first), rules, turns)
    assert_conserved(life, trigger, first, base)


@examples(200)
@given(triggers(), RULES, TURNS)
def test_runs_come_in_the_order_of_their_fire_times_and_are_counted(
    trigger: AnyTrigger, rules: Rules, turns: list[tuple[Any, ...]]
) -> None:
    first = trigger.first(1000.0)
    if first is None:
        return
    life = live(Definition(1000.0, 1000.0, trigger, 1, first), rules, turns)
    assert all(before < after for before, after in zip(life.ran, life.ran[1:], strict=False))
    if rules.max_runs is not None:
        assert len(life.ran) <= rules.max_runs or rules.overlap == "cancel_running"
    tally = life.cursor.tally
    if not life.is_over:
        assert tally.skipped == sum(span.count for span in life.spans)
        assert tally.succeeded + tally.failed <= life.attempts


@examples(200)
@given(triggers(), RULES, TURNS)
def test_each_policy_gives_its_own_reasons_only(
    trigger: AnyTrigger, rules: Rules, turns: list[tuple[Any, ...]]
) -> None:
    first = trigger.first(1000.0)
    if first is None:
        return
    life = live(Definition(1000.0, 1000.0, trigger, 1, first), rules, turns)
    reasons = {span.reason for span in life.spans}
    allowed = {"ended"} if rules.max_runs else set()
    allowed |= {
        "latest": {"coalesced"},
        "earliest": {"coalesced"},
        "all": {"catch_up_limit", "coalesced"},  # It coalesces before its first run only.
        "none": {"misfire"},
    }[rules.catch_up]
    if rules.misfire_grace is not None:
        allowed.add("misfire")
    allowed.add("buffer_full" if rules.overlap == "queue_all" else "overlap")
    assert reasons <= allowed


@examples(200)
@given(
    triggers() | gapped().map(lambda pair: pair[1]),
    RULES,
    st.lists(st.tuples(LATENESS, st.booleans()), min_size=1),
)
def test_every_fire_time_of_an_overlapping_job_is_given_to_a_child_or_is_in_exactly_one_decision(
    trigger: AnyTrigger, rules: Rules, turns: list[tuple[float, bool]]
) -> None:
    first = trigger.first(1000.0)
    if first is None:
        return
    rules = replace(rules, overlap="allow")
    definition = Definition(1000.0, 1000.0, trigger, 1, first)
    life = Life()
    wake_at, now = wake_of(definition, life.cursor, 0.0, rules, KEY), 0.0
    for late_s, has_slot in turns:
        if wake_at is None:
            break
        now = max(now, wake_at) + late_s
        step = decide(definition, life.cursor, None, now, 0.0, rules, KEY)
        assert not isinstance(step, Start)
        if isinstance(step, Spread):
            life.ran += [step.start.fire] if has_slot else []
            step = spread(definition, step.start, now, rules, KEY, has_slot=has_slot)
        life.spans += step.spans
        life.cursor, wake_at, life.is_over = step.cursor, step.wake_at, step.delete
        if step.delete:
            break
    assert_conserved(life, trigger, first, trigger.base if isinstance(trigger, Excluding) else None)
    if rules.max_runs is not None:
        assert len(life.ran) <= rules.max_runs
