"""Triggers: frozen values that name fire times."""

from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsched import (
    AllOf,
    AnyOf,
    Calendar,
    Cron,
    DefinitionError,
    Every,
    Excluding,
    Manual,
    Once,
    Scheduler,
    Trigger,
    TriggerError,
    all_of,
    any_of,
    calendar,
    cron,
    every,
    excluding,
    manual,
    once,
    parse_trigger,
)
from asyncsched.testing import ManualClock
from asyncsched.triggers import AnyTrigger

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
START = NEW_YEAR.timestamp()
BERLIN = ZoneInfo("Europe/Berlin")


def at(seconds: float) -> datetime:
    return NEW_YEAR + timedelta(seconds=seconds)


def offsets(trigger: Trigger, n: int = 3, start: datetime = NEW_YEAR) -> list[float]:
    """The next fire times in seconds since *start*."""
    return [(fire - start).total_seconds() for fire in trigger.preview(n, start)]


# -- all of them -------------------------------------------------------------------------------------------------------

ALL: list[Any] = [
    once(at(60)),
    once(delay=60).bind(START),
    every(7).bind(START),
    every(7, anchor=at(3), start=at(10), end=at(100)),
    cron("*/5 * * * *"),
    cron("30 2 * * *", tz="Europe/Berlin"),
    cron("*/7 * * * * *", start=at(10), end=at(100)),
    cron("H H(0-6) * * *", tz="Europe/Berlin").bind(START, "some-job"),
    cron("30 2 * * *", tz="Europe/Berlin", dst_gap="skip", dst_fold="both", day="and", hash_key="a b;)"),
    calendar(months=1, days=1, at="09:30", tz="Europe/Berlin").bind(START),
    calendar(months=1, start=date(2026, 1, 31), end=date(2026, 12, 31), missing_day="last"),
    any_of(cron("*/5 * * * *"), every(7).bind(START), once(at(60))),
    all_of(cron("*/5 * * * *", tz="Asia/Kolkata"), every(60, anchor=at(0))),
    excluding(cron("*/5 * * * *"), cron("*/15 * * * *"), date(2026, 1, 2)),
    every(90, after="finish").bind(START),
    manual(),
]
WRITTEN = [trigger.unbound() for trigger in ALL]


@pytest.mark.parametrize("trigger", ALL, ids=str)
def test_a_trigger_is_a_frozen_value(trigger: Any) -> None:
    assert isinstance(trigger, Trigger)
    assert hash(trigger) == hash(trigger)
    assert trigger == from_bytes(trigger)
    for field in trigger.__struct_fields__:
        with pytest.raises(AttributeError):
            setattr(trigger, field, None)


def from_bytes(trigger: Any) -> Any:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(trigger), type=AnyTrigger)


@pytest.mark.parametrize("trigger", [*ALL, *WRITTEN], ids=str)
def test_a_trigger_comes_back_from_its_bytes(trigger: Any) -> None:
    restored = from_bytes(trigger)
    assert restored == trigger
    assert type(restored) is type(trigger)
    assert restored.next(START) == trigger.next(START)


@pytest.mark.parametrize(
    "trigger", [*WRITTEN, *map(parse_trigger, ("once", "once after 1ms", "@every 1d1us"))], ids=str
)
def test_a_trigger_comes_back_from_its_string(trigger: Any) -> None:
    restored = parse_trigger(str(trigger))
    assert restored == trigger
    assert str(restored) == str(trigger)


@pytest.mark.parametrize("trigger", ALL, ids=str)
def test_a_bound_trigger_stays_bound_and_is_unbound_again(trigger: Any) -> None:
    bound = trigger.bind(START, "x")
    assert bound.bind(START + 1e6, "y") == bound
    assert bound.unbound() == trigger.unbound()
    assert str(bound) == str(trigger)


@pytest.mark.parametrize("trigger", ALL, ids=str)
def test_each_trigger_describes_itself(trigger: Any) -> None:
    assert trigger.describe()
    assert all(isinstance(warning, str) for warning in trigger.warnings)


@pytest.mark.parametrize("trigger", [trigger for trigger in ALL if not trigger.after_finish], ids=str)
def test_next_previous_matches_and_between_agree(trigger: Any) -> None:
    fires = trigger.preview(4, NEW_YEAR)
    assert all(trigger.matches(fire) for fire in fires)
    if fires:
        assert trigger.between(fires[0], fires[-1]) == fires[:-1]
        assert trigger.between(fires[0], fires[-1] + timedelta(microseconds=1)) == fires
        assert trigger.between(fires[0], fires[-1], 1) == fires[:-1][:1]
        assert [trigger.previous_before(fire) for fire in fires[1:]] == fires[:-1]
        assert not trigger.matches(fires[0] + timedelta(microseconds=1))
        assert trigger.previous_before(fires[0] + timedelta(microseconds=1)) == fires[0]
    assert trigger.preview(0, NEW_YEAR) == []


@pytest.mark.parametrize("trigger", ALL, ids=str)
@given(seconds=st.floats(-1e6, 1e6))
def test_next_after_is_strictly_later_and_leaves_no_fire_time_out(trigger: Any, seconds: float) -> None:
    start = round(START + seconds, 6)
    fire = trigger.next(start)
    if fire is not None:
        assert fire > start
        if trigger.after_finish:
            return
        assert trigger.previous(fire) == pytest.approx(fire, abs=1e-6)
        middle = (start + fire) / 2
        if start < middle < fire - 2e-6:
            assert trigger.next(middle) == fire


@pytest.mark.parametrize("trigger", ALL, ids=str)
@given(seconds=st.floats(0, 5e3), span=st.floats(0, 5e3))
def test_passed_counts_what_walking_would(trigger: Any, seconds: float, span: float) -> None:
    after, until = round(START + seconds, 6), round(START + seconds + span, 6)
    walked, fire = [], trigger.next(after)
    while fire is not None and fire <= until:
        walked.append(fire)
        fire = trigger.next(fire)
    passed = trigger.passed(after, until)
    assert passed.next == fire
    assert passed.count == (len(walked) if not passed.more else passed.count)
    assert passed.last == (walked[-1] if walked else None)


@pytest.mark.parametrize("trigger", ALL, ids=str)
def test_next_after_takes_and_gives_aware_datetimes(trigger: Any) -> None:
    fire = trigger.next_after(NEW_YEAR)
    assert fire is None or str(fire.tzinfo) == trigger.zone
    assert trigger.next_after(NEW_YEAR.astimezone(BERLIN)) == fire
    with pytest.raises(DefinitionError, match="tzinfo=UTC"):
        trigger.next_after(datetime(2026, 1, 1))


# -- once --------------------------------------------------------------------------------------------------------------


def test_once_names_one_instant() -> None:
    assert offsets(once(at(60))) == [60]
    assert once(at(60)).next_after(at(60)) is None


def test_once_with_a_delay_begins_when_the_job_is_added() -> None:
    assert once(delay=timedelta(minutes=1)).first(START) == START + 60
    bound = once(delay=60).bind(START)
    assert bound.bind(START + 500) == bound
    assert bound.unbound() == once(delay=60)


def test_once_of_the_past_is_due_at_once() -> None:
    assert once(at(-60)).first(START) == START - 60


def test_once_takes_an_instant_or_a_delay() -> None:
    with pytest.raises(TriggerError):
        once(at(60), delay=60)


@pytest.mark.parametrize("delay", [-1, float("nan"), "5"])
def test_a_delay_is_a_duration(delay: Any) -> None:
    with pytest.raises(DefinitionError):
        once(delay=delay)


# -- every -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trigger",
    [
        every(5430),
        every("1h30m30s"),
        every(timedelta(seconds=5430)),
        every(hours=1, minutes=30, seconds=30),
        every(minutes=90.5),
        parse_trigger("@every 1h30m30s"),
        parse_trigger("@EVERY  5430s "),
    ],
    ids=repr,
)
def test_an_interval_may_be_written_in_many_ways(trigger: Trigger) -> None:
    assert trigger == every(5430)


def test_every_fires_first_one_interval_after_the_job_was_added() -> None:
    assert offsets(every(60).bind(START + 7)) == [7, 67, 127]
    assert every(60).bind(START + 7).first(START + 7) == START + 67


def test_every_keeps_to_its_anchor() -> None:
    assert offsets(every(60, anchor=at(-10))) == [50, 110, 170]
    assert offsets(every(60, anchor=at(1_000_010))) == [50, 110, 170]


def test_every_begins_at_its_start_and_ends_at_its_end() -> None:
    assert offsets(every(60, start=at(90)).bind(START)) == [90, 150, 210]
    assert offsets(every(60, start=at(-90)).bind(START)) == [30, 90, 150]
    assert offsets(every(60, start=at(120), end=at(180)).bind(START)) == [120, 180]
    assert offsets(every(60, anchor=at(0), start=at(90))) == [120, 180, 240]


def test_every_does_not_drift() -> None:
    trigger = every(0.1).bind(START)
    assert trigger.next(START + 86_400 * 365 * 10) == START + 86_400 * 365 * 10 + 0.1


def test_every_knows_no_time_zones() -> None:
    before = datetime(2026, 3, 29, 0, 30, tzinfo=UTC)
    assert offsets(every(3600, anchor=before), 4, before) == [3600, 7200, 10_800, 14_400]


@pytest.mark.parametrize("interval", [0, "0s", 1e-7, None, timedelta(0)])
def test_every_needs_an_interval_above_zero(interval: Any) -> None:
    with pytest.raises(DefinitionError):
        every(interval)


@pytest.mark.parametrize("interval", [-5, "soon", "5", float("inf"), timedelta(seconds=-1), True])
def test_what_is_no_interval_is_refused(interval: Any) -> None:
    with pytest.raises(DefinitionError):
        every(interval)


def test_every_takes_one_interval_or_its_parts() -> None:
    with pytest.raises(TriggerError):
        every(60, minutes=1)


def test_every_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(TriggerError):
        every(60, start=at(60), end=at(0))


def test_an_interval_after_the_finish_counts_from_it() -> None:
    trigger = every(60, after="finish").bind(START)
    assert trigger.after_finish
    assert not every(60).after_finish
    assert trigger.first(START) == START + 60
    assert trigger.next(START + 61.5) == START + 121.5
    assert "estimate" in trigger.warnings[0]


def test_an_interval_after_the_finish_keeps_to_its_start_and_end() -> None:
    trigger = every(60, after="finish", start=at(100), end=at(200)).bind(START)
    assert trigger.first(START) == START + 100
    assert trigger.next(START + 140) == START + 200
    assert trigger.next(START + 140.5) is None


def test_an_interval_after_the_finish_has_no_anchor() -> None:
    with pytest.raises(TriggerError, match="anchor"):
        every(60, after="finish", anchor=at(0))
    with pytest.raises(TriggerError, match="finish"):
        every(60, after="end")  # type: ignore[arg-type]  # mypy is right: that is what is tested


# -- manual ------------------------------------------------------------------------------------------------------------


def test_manual_never_fires_by_itself() -> None:
    assert manual().next_after(NEW_YEAR) is None
    assert manual().preview(5, NEW_YEAR) == []


# -- strings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("* * * * *", Cron),
        (" @daily ", Cron),
        ("@DAILY", Cron),
        ("@every 5m", Every),
        ("@manual", Manual),
        ("*/5 0 * * * *", Cron),
        ("CRON_TZ=Asia/Kathmandu 0 0 * * *", Cron),
        ("once after 5m", Once),
        ("once at 2026-01-01T00:00:00", Once),
        ("@calendar months=1", Calendar),
        ("any_of(@daily; @weekly)", AnyOf),
        ("ALL_OF(@daily; any_of(@weekly; 0 0 H(1-5) * *))", AllOf),
        ("excluding(@daily; 2026-12-24; 2026-12-25)", Excluding),
    ],
)
def test_a_string_stands_for_a_trigger(text: str, kind: type) -> None:
    assert isinstance(parse_trigger(text), kind)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "@every",
        "@every ",
        "@every soon",
        "@never",
        "5m",
        "once upon a time",
        "once at noon",
        "once after noon",
        "@every 5m 5m",
        "FOO=1 @every 5m",
        "END=x @every 5m",
        "AFTER=x @every 5m",
        "@calendar",
        "@calendar x",
        "@calendar days=x",
        "@calendar days=1 days=2",
        "@calendar hours=1",
        "@calendar days=1 start=2026-13-01",
        "any_of(@daily",
        "any_of()",
        "any_of(@daily;)",
        "excluding(@daily)",
        "all_of(@manual)",
        "any_of(" * 12 + "@daily" + ")" * 12,
        "any_of(AFTER=finish @every 5m)",
        "@daily " * 2000,
        None,
    ],
)
def test_a_string_that_stands_for_no_trigger_is_refused(text: Any) -> None:
    with pytest.raises(DefinitionError):
        parse_trigger(text)


# -- the end of the calendar -------------------------------------------------------------------------------------------

LAST_YEAR = datetime(9999, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "trigger",
    [
        every(86_400 * 365),
        every(60, end=datetime.max.replace(tzinfo=UTC)),
        cron("0 0 1 1 *"),
        cron("0 0 1 1 *", tz="Pacific/Kiritimati"),
        cron("0 0 1 1 *", start=datetime.max.replace(tzinfo=UTC)),
    ],
    ids=str,
)
def test_where_the_calendar_ends_the_fire_times_end(trigger: Trigger) -> None:
    fire: datetime | None = LAST_YEAR
    for _ in range(100_000):
        fire = trigger.next_after(fire)
        if fire is None:
            break
    assert fire is None


@pytest.mark.anyio
@pytest.mark.parametrize("trigger", [once(delay=1e12), every(1e12)], ids=str)
async def test_a_time_that_no_calendar_reaches_is_refused(
    scheduler: Scheduler, clock: ManualClock, trigger: Any
) -> None:
    scheduler.register(nothing, "nothing")
    with pytest.raises(DefinitionError):
        await scheduler.add_job("nothing", trigger)
    assert await scheduler.get_jobs() == []


@pytest.mark.anyio
@pytest.mark.parametrize("instant", [datetime.max, datetime.min])
async def test_the_ends_of_the_calendar_can_be_named(scheduler: Scheduler, instant: datetime) -> None:
    scheduler.register(nothing, "nothing")
    await scheduler.pause()
    job = await scheduler.add_job("nothing", once(instant.replace(tzinfo=UTC)), id="x")
    assert await scheduler.get_jobs() == [job]
    assert job.next_fire_time is not None
    assert job.next_fire_time.year == instant.year
    assert isinstance(job.trigger, Once)


async def nothing() -> None:
    """Do nothing."""


def test_a_trigger_that_does_not_say_when_it_fires_is_refused() -> None:
    with pytest.raises(TriggerError, match="does not say when"):
        Trigger().next(0.0)
    with pytest.raises(TriggerError, match="does not say when"):
        Trigger().previous(0.0)


@pytest.mark.parametrize("fraction_us", [0.0, 0.1, 0.24, 0.25, 0.4, 0.49, 0.5, 0.51, 0.75, 0.9])
def test_an_interval_that_starts_within_a_microsecond_moves_on(fraction_us: float) -> None:
    start = 1_800_000_000 + fraction_us / 1e6
    trigger = Every(10_000_000, anchor=start, start=start)
    first = trigger.first(start - 100)
    assert first is not None
    following = trigger.next(first)
    assert following is not None
    assert round(following - first, 6) == 10
