"""Steps on the wall's calendar."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsched import TriggerError, calendar, parse_trigger
from tests.support.examples import examples

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def fires(n: int, after: datetime = NEW_YEAR, **options: Any) -> list[str]:
    trigger = calendar(**options)
    found = trigger.preview(n, after)
    for earlier, later in pairwise(found):
        assert trigger.previous_before(later) == earlier
    return [
        fire.isoformat(timespec="minutes").removesuffix("+00:00").removesuffix("T00:00") for fire in found
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"months": 1}, ["2026-02-28", "2026-03-28", "2026-04-28"]),
        ({"days": 3}, ["2026-02-28", "2026-03-03", "2026-03-06"]),
        ({"weeks": 1, "days": 1}, ["2026-02-28", "2026-03-08", "2026-03-16"]),
        ({"years": 1, "months": 1}, ["2026-02-28", "2027-03-28", "2028-04-28"]),
        ({"months": 1, "days": 1}, ["2026-02-28", "2026-03-29", "2026-04-30", "2026-05-31", "2026-07-02"]),
    ],
)
def test_each_step_is_counted_from_the_first_date(options: dict[str, int], expected: list[str]) -> None:
    assert fires(len(expected), start=date(2026, 2, 28), **options) == expected


def test_a_day_that_a_month_lacks_is_left_out() -> None:
    assert fires(4, months=1, start=date(2026, 1, 31)) == [
        "2026-01-31",
        "2026-03-31",
        "2026-05-31",
        "2026-07-31",
    ]
    assert fires(2, years=1, start=date(2096, 2, 29)) == ["2096-02-29", "2104-02-29"]
    assert "without a 31st" in calendar(months=1, start=date(2026, 1, 31)).warnings[0]


def test_a_day_that_a_month_lacks_may_be_its_last_and_nothing_drifts() -> None:
    found = fires(4, months=1, start=date(2026, 1, 31), missing_day="last")
    assert found == ["2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30"]
    assert calendar(months=1, start=date(2026, 1, 31), missing_day="last").warnings == ()


def test_without_a_start_the_first_date_is_that_of_adding() -> None:
    berlin = calendar(days=2, at="09:00", tz="Europe/Berlin").bind(
        datetime(2025, 12, 31, 23, 30, tzinfo=UTC).timestamp()
    )
    assert [fire.isoformat() for fire in berlin.preview(2, NEW_YEAR)] == [
        "2026-01-01T09:00:00+01:00",
        "2026-01-03T09:00:00+01:00",
    ]


def test_it_follows_the_clock_of_its_zone_over_gaps_and_folds() -> None:
    begin = datetime(2026, 3, 28, tzinfo=UTC)
    assert fires(2, begin, days=1, at="02:30", tz="Europe/Berlin", start=date(2026, 3, 29)) == [
        "2026-03-29T03:00+02:00",
        "2026-03-30T02:30+02:00",
    ]
    autumn = datetime(2026, 10, 24, 12, tzinfo=UTC)
    assert fires(2, autumn, days=1, at="02:30", tz="Europe/Berlin", start=date(2026, 1, 1)) == [
        "2026-10-25T02:30+02:00",
        "2026-10-26T02:30+01:00",
    ]


def test_a_date_that_a_zone_skips_runs_once() -> None:
    begin = datetime(2011, 12, 29, 12, tzinfo=ZoneInfo("Pacific/Apia"))
    assert fires(2, begin, days=1, tz="Pacific/Apia", start=date(2011, 1, 1)) == [
        "2011-12-31T00:00+14:00",
        "2012-01-01T00:00+14:00",
    ]


def test_start_and_end_are_dates_or_instants() -> None:
    assert fires(9, days=1, at="12:00", start=date(2026, 5, 1), end=date(2026, 5, 2)) == [
        "2026-05-01T12:00",
        "2026-05-02T12:00",
    ]
    noon = datetime(2026, 5, 1, 12, 0, 1, tzinfo=UTC)
    assert fires(9, days=1, at="12:00", start=noon, end=noon + timedelta(days=1)) == ["2026-05-02T12:00"]
    trigger = calendar(days=1, at="12:00", start=noon)
    assert trigger.previous_before(noon + timedelta(hours=1)) is None


def test_it_ends_where_the_calendar_does() -> None:
    trigger = calendar(months=1, start=date(2199, 11, 30))
    assert len(trigger.preview(9, NEW_YEAR)) == 2
    assert trigger.next_after(datetime(9999, 1, 1, tzinfo=UTC)) is None
    assert trigger.previous_before(datetime(9999, 1, 1, tzinfo=UTC)) == datetime(2199, 12, 30, tzinfo=UTC)
    assert calendar(days=100_000, start=date(1970, 1, 1)).next_after(NEW_YEAR) is None
    assert calendar(years=100_000, start=date(1970, 1, 1)).next_after(NEW_YEAR) is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"days": 0},
        {"days": -1},
        {"days": 1.5},
        {"days": True},
        {"days": 100_001},
        {"days": 1, "at": "25:00"},
        {"days": 1, "at": "9"},
        {"days": 1, "at": "09:00:00.5"},
        {"days": 1, "at": "09:00+01:00"},
        {"days": 1, "at": None},
        {"days": 1, "tz": "Nowhere"},
        {"days": 1, "missing_day": "first"},
        {"days": 1, "start": date(2026, 1, 2), "end": date(2026, 1, 1)},
        {"days": 1, "start": NEW_YEAR, "end": NEW_YEAR - timedelta(seconds=1)},
        {"days": 1, "start": date(1969, 12, 31)},
    ],
    ids=repr,
)
def test_what_is_no_step_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TriggerError):
        calendar(**options)


@examples(1500)
@given(
    start=st.dates(date(1990, 1, 1), date(2090, 1, 1)),
    months=st.integers(0, 14),
    days=st.integers(0, 40),
    missing=st.sampled_from(["skip", "last"]),
    offset=st.integers(-400, 350),
)
def test_it_names_what_a_walk_over_all_steps_does(
    start: date, months: int, days: int, missing: Any, offset: int
) -> None:
    if not months and not days:
        months = 1
    trigger = calendar(months=months, days=days, at="06:00", start=start, missing_day=missing)
    assert parse_trigger(str(trigger)) == trigger
    dates = []
    for n in range(400):
        year, month = divmod(start.year * 12 + start.month - 1 + n * months, 12)
        day = start.day
        length = ((date(year + month // 11, (month + 1) % 12 + 1, 1)) - timedelta(days=1)).day
        if day > length and missing == "skip":
            continue
        found = date(year, month + 1, min(day, length)) + timedelta(days=n * days)
        dates.append(datetime(found.year, found.month, found.day, 6, tzinfo=UTC))
        if found > start + timedelta(days=offset + 3500):
            break
    after = datetime(start.year, start.month, start.day, 6, tzinfo=UTC) + timedelta(days=offset)
    limit = datetime(2199, 12, 31, 6, tzinfo=UTC)
    assert trigger.next_after(after) == min((at for at in dates if after < at <= limit), default=None)
    assert trigger.previous_before(after) == max((at for at in dates if at < after), default=None)
