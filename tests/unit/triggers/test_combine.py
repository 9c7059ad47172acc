"""Triggers made of others."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsched import Trigger, TriggerError, all_of, any_of, calendar, cron, every, excluding, manual, once
from asyncsched.triggers import Omitted
from tests.support.examples import examples

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
START = NEW_YEAR.timestamp()


def at(seconds: float) -> datetime:
    return NEW_YEAR + timedelta(seconds=seconds)


def offsets(trigger: Trigger, n: int = 4) -> list[float]:
    return [(fire - NEW_YEAR).total_seconds() for fire in trigger.preview(n, NEW_YEAR)]


def test_any_of_fires_when_one_does_and_once_where_several_do() -> None:
    trigger = any_of(every(40, anchor=NEW_YEAR), every(60, anchor=NEW_YEAR))
    assert offsets(trigger, 6) == [40, 60, 80, 120, 160, 180]
    assert trigger.previous(START + 119) == START + 80
    assert trigger.recurs


def test_any_of_ends_with_the_last_of_them() -> None:
    assert offsets(any_of(once(at(60)), every(50, anchor=NEW_YEAR, end=at(100)))) == [50, 60, 100]
    assert any_of(manual()).next_after(NEW_YEAR) is None


def test_any_of_keeps_an_instant_that_is_past() -> None:
    trigger = any_of(once(at(-60)), every(50, anchor=NEW_YEAR))
    assert trigger.first(START) == START - 60
    assert trigger.next(START - 60) == START - 50


def test_all_of_fires_when_all_do() -> None:
    assert offsets(all_of(every(40, anchor=NEW_YEAR), every(60, anchor=NEW_YEAR))) == [120, 240, 360, 480]
    friday = all_of(cron("0 0 13 * *"), cron("0 0 * * fri"))
    assert friday.next_after(NEW_YEAR) == datetime(2026, 2, 13, tzinfo=UTC)
    assert friday.previous_before(NEW_YEAR) == datetime(2025, 6, 13, tzinfo=UTC)
    assert friday.recurs


def test_all_of_ends_when_one_of_them_does() -> None:
    trigger = all_of(every(40, anchor=NEW_YEAR), every(60, anchor=NEW_YEAR, end=at(250)))
    assert offsets(trigger) == [120, 240]
    assert (
        all_of(every(40, anchor=NEW_YEAR, start=at(130)), every(60, anchor=NEW_YEAR)).previous(START + 200)
        is None
    )


def test_all_of_with_a_single_instant_counts_though_it_is_past() -> None:
    trigger = all_of(once(at(-60)), every(60, anchor=NEW_YEAR))
    assert trigger.first(START) == START - 60
    assert not trigger.recurs
    assert all_of(once(at(-60)), once(at(-61))).first(START) is None


def test_a_search_that_gives_up_says_so_and_not_that_there_is_nothing() -> None:
    never = all_of(every(2, anchor=at(0)), every(2, anchor=at(1)))
    for search in (never.next, never.previous, never.first):
        with pytest.raises(TriggerError, match="no time that all of its triggers share"):
            search(START)


def test_excluding_takes_out_dates_of_the_zone_of_its_base() -> None:
    trigger = excluding(cron("0 0 * * *", tz="Asia/Tokyo"), date(2026, 1, 3), date(2026, 1, 2))
    found = trigger.preview(2, NEW_YEAR)
    assert [fire.isoformat() for fire in found] == ["2026-01-04T00:00:00+09:00", "2026-01-05T00:00:00+09:00"]
    assert trigger.previous_before(found[0]) == datetime(2025, 12, 31, 15, tzinfo=UTC)


def test_excluding_takes_out_the_fire_times_of_triggers() -> None:
    trigger = excluding(
        cron("0 * * * *"), cron("0 12-14 * * *"), every(3600, anchor=at(0), start=at(3600), end=at(7200))
    )
    fires = trigger.between(NEW_YEAR, NEW_YEAR + timedelta(days=1))
    assert [fire.hour for fire in fires] == [0, *range(3, 12), *range(15, 24)]


def test_excluding_a_day_of_a_fast_base_costs_no_search() -> None:
    trigger = excluding(cron("* * * * * *"), date(2026, 1, 1), date(2026, 1, 2))
    assert trigger.next_after(NEW_YEAR) == datetime(2026, 1, 3, tzinfo=UTC)
    fast = excluding(every(0.001, anchor=NEW_YEAR), date(2026, 1, 1))
    assert fast.next_after(NEW_YEAR) == datetime(2026, 1, 2, tzinfo=UTC)
    assert fast.previous_before(datetime(2026, 1, 2, tzinfo=UTC)) == at(-0.001)


def test_excluding_too_much_is_an_error_and_not_the_end() -> None:
    nothing = excluding(cron("* * * * *"), cron("* * * * *"))
    for search in (nothing.next, nothing.previous, nothing.first):
        with pytest.raises(TriggerError, match="in a row"):
            search(START)


def test_excluding_what_a_base_of_one_instant_names_leaves_nothing() -> None:
    trigger = excluding(once(at(60)), date(2026, 1, 1))
    assert trigger.first(START) is None
    assert not trigger.recurs
    assert excluding(once(at(-60)), date(2026, 1, 1)).first(START) == START - 60


def test_what_is_excluded_is_told() -> None:
    trigger = excluding(cron("0 * * * *"), cron("0 12-14 * * *"))
    assert trigger.omitted(START, START + 86_400) == (
        Omitted("excluded", START + 12 * 3600, START + 14 * 3600, 3),
    )
    assert trigger.omitted(START, START + 3600) == ()
    fast = excluding(cron("* * * * * *"), date(2026, 1, 1))
    assert fast.omitted(START - 1, START + 86_400) == (Omitted("excluded", START, START + 999, 1000, True),)
    skipping = cron("30 2 * * *", tz="Europe/Berlin", dst_gap="skip")
    gap = datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp()
    for combined in (any_of(skipping, skipping), excluding(skipping, date(2027, 1, 1))):
        assert combined.omitted(gap - 1, gap) == (Omitted("dst_gap", gap, gap, 1),)


def test_members_are_bound_together_with_the_whole() -> None:
    trigger = any_of(
        every(60),
        all_of(cron("H * * * *"), cron("* * * * *")),
        excluding(calendar(days=1), cron("H 0 * * *")),
    )
    bound = trigger.bind(START, "job")
    assert bound != trigger
    assert bound.unbound() == trigger
    assert bound.triggers[0] == every(60).bind(START)
    assert bound.next(START) == START + 60


def test_the_zone_is_the_one_that_all_members_share() -> None:
    tokyo = cron("@daily", tz="Asia/Tokyo")
    assert any_of(tokyo, every(60), once(at(0))).zone == "Asia/Tokyo"
    assert all_of(tokyo, cron("@daily", tz="Asia/Seoul")).zone == "UTC"
    assert excluding(tokyo, cron("@daily")).zone == "Asia/Tokyo"


@pytest.mark.parametrize(
    ("make", "args"),
    [
        (any_of, []),
        (all_of, []),
        (any_of, ["@daily"]),
        (any_of, [every(5, after="finish")]),
        (all_of, [manual(), cron("@daily")]),
        (excluding, [cron("@daily")]),
        (excluding, [cron("@daily"), datetime(2026, 1, 1, tzinfo=UTC)]),
        (excluding, [every(5, after="finish"), date(2026, 1, 1)]),
        (excluding, ["@daily", date(2026, 1, 1)]),
        (any_of, [every(5)] * 101),
    ],
)
def test_what_cannot_be_combined_is_refused(make: Any, args: list[Any]) -> None:
    with pytest.raises(TriggerError):
        make(*args)


def test_warnings_are_those_of_the_members() -> None:
    leap = cron("0 0 29 2 *")
    for trigger in (any_of(leap, leap), all_of(leap, cron("@daily")), excluding(leap, date(2028, 2, 29))):
        assert trigger.warnings == leap.warnings


STEPS = st.integers(1, 20)
BASES = st.builds(lambda step, anchor: every(step, anchor=at(anchor)), STEPS, st.integers(0, 20))


@examples(1500)
@given(a=BASES, b=BASES, c=BASES, begin=st.integers(0, 400))
def test_combinations_are_those_of_sets(a: Trigger, b: Trigger, c: Trigger, begin: int) -> None:
    first, last = at(begin), at(begin + 120)
    fires = [set(trigger.between(first, last)) for trigger in (a, b, c)]
    assert any_of(a, b, c).between(first, last) == sorted(fires[0] | fires[1] | fires[2])
    left = sorted(fires[0] - fires[1])
    if left:
        trigger = excluding(a, b)
        assert trigger.between(first, left[-1] + timedelta(seconds=1)) == left
        assert trigger.previous_before(left[-1] + timedelta(microseconds=1)) == left[-1]
    both = sorted(fires[0] & fires[1])
    if both:
        trigger = all_of(a, b)
        assert trigger.between(first, both[-1] + timedelta(seconds=1)) == both
        assert trigger.previous_before(both[-1] + timedelta(microseconds=1)) == both[-1]
