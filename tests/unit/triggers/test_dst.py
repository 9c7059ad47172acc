"""Where clocks are changed: what a gap skips and a fold repeats, case by case."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from asyncsched import Cron, cron, every
from asyncsched.triggers import Omitted


def fires(expression: str, zone: str, begin: str, end: str, **options: Any) -> list[str]:
    """The fire times in [begin, end) of that zone, with their offsets; walked from both ends."""
    trigger = cron(expression, tz=zone, **options)
    first, last = (datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)) for text in (begin, end))
    forward = trigger.between(first, last)
    backward, at = [], trigger.previous_before(last)
    while at is not None and at >= first:
        backward.append(at)
        at = trigger.previous_before(at)
    assert backward[::-1] == forward
    assert [fire.utcoffset() for fire in backward[::-1]] == [fire.utcoffset() for fire in forward]
    assert all(trigger.matches(fire) for fire in forward)
    return [fire.isoformat().replace(":00+", "+").replace(":00-", "-") for fire in forward]


GAP = ("Europe/Berlin", "2026-03-28T12:00", "2026-03-30T12:00")
FOLD = ("Europe/Berlin", "2026-10-25T00:00", "2026-10-26T00:00")


@pytest.mark.parametrize(
    ("expression", "policy", "expected"),
    [
        ("30 2 * * *", "run", ["2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"]),
        ("30 2 * * *", "skip", ["2026-03-30T02:30+02:00"]),
        ("30 2 * * *", "shift", ["2026-03-29T03:30+02:00", "2026-03-30T02:30+02:00"]),
        # Several times of one gap are one run; those that are shifted keep their distance.
        ("0,20,40 2 29 3 *", "run", ["2026-03-29T03:00+02:00"]),
        (
            "0,20,40 2 29 3 *",
            "shift",
            ["2026-03-29T03:00+02:00", "2026-03-29T03:20+02:00", "2026-03-29T03:40+02:00"],
        ),
        # What is due right after the gap anyway does not run twice.
        ("0 2,3 29 3 *", "run", ["2026-03-29T03:00+02:00"]),
        ("30 2,3 29 3 *", "shift", ["2026-03-29T03:30+02:00"]),
        ("30 2,3 29 3 *", "run", ["2026-03-29T03:00+02:00", "2026-03-29T03:30+02:00"]),
        ("15 30 2 29 3 *", "run", ["2026-03-29T03:00+02:00"]),
        ("15 30 2 29 3 *", "shift", ["2026-03-29T03:30:15+02:00"]),
        ("0 3 29 3 *", "run", ["2026-03-29T03:00+02:00"]),
        (
            "0 0-23 29 3 ?",
            "skip",
            [f"2026-03-29T{h:02}:00+0{1 if h < 3 else 2}:00" for h in range(24) if h != 2],
        ),
        ("59 1 29 3 *", "run", ["2026-03-29T01:59+01:00"]),
    ],
)
def test_what_a_gap_skips_of_a_job_of_a_fixed_time(expression: str, policy: Any, expected: list[str]) -> None:
    assert fires(expression, *GAP, dst_gap=policy) == expected


@pytest.mark.parametrize(
    ("expression", "policy", "expected"),
    [
        ("30 2 * * *", "first", ["2026-10-25T02:30+02:00"]),
        ("30 2 * * *", "second", ["2026-10-25T02:30+01:00"]),
        ("30 2 * * *", "both", ["2026-10-25T02:30+02:00", "2026-10-25T02:30+01:00"]),
        ("0 2,3 * * *", "first", ["2026-10-25T02:00+02:00", "2026-10-25T03:00+01:00"]),
        ("0 2,3 * * *", "second", ["2026-10-25T02:00+01:00", "2026-10-25T03:00+01:00"]),
        ("0,30 2 * * *", "first", ["2026-10-25T02:00+02:00", "2026-10-25T02:30+02:00"]),
        ("15 30 2 * * *", "first", ["2026-10-25T02:30:15+02:00"]),
        # Once a year, and both passes on the same day.
        ("30 2 25 10 *", "both", ["2026-10-25T02:30+02:00", "2026-10-25T02:30+01:00"]),
    ],
)
def test_what_a_fold_repeats_of_a_job_of_a_fixed_time(
    expression: str, policy: Any, expected: list[str]
) -> None:
    assert fires(expression, *FOLD, dst_fold=policy) == expected


@pytest.mark.parametrize("gap", ["run", "skip", "shift"])
@pytest.mark.parametrize("fold", ["first", "second", "both"])
def test_a_job_with_a_star_in_minute_or_hour_follows_the_clock(gap: Any, fold: Any) -> None:
    options = {"dst_gap": gap, "dst_fold": fold}
    for expression in ("*/30 2 * * *", "*/30 2 28-31 3 *"):
        assert not fires(expression, "Europe/Berlin", "2026-03-29T00:00", "2026-03-30T00:00", **options)
    for expression in ("30 * * * *", "30 */1 * * *", "0 30 * * * *"):
        spring = fires(expression, "Europe/Berlin", "2026-03-29T01:00", "2026-03-29T05:00", **options)
        assert spring == ["2026-03-29T01:30+01:00", "2026-03-29T03:30+02:00", "2026-03-29T04:30+02:00"]
        autumn = fires(expression, "Europe/Berlin", "2026-10-25T01:00", "2026-10-25T04:00", **options)
        assert autumn == [
            "2026-10-25T01:30+02:00",
            "2026-10-25T02:30+02:00",
            "2026-10-25T02:30+01:00",
            "2026-10-25T03:30+01:00",
        ]
    assert (
        len(fires("*/15 * * * *", "Europe/Berlin", "2026-10-25T00:00", "2026-10-26T00:00", **options)) == 100
    )
    assert (
        len(fires("*/15 * * * *", "Europe/Berlin", "2026-03-29T00:00", "2026-03-30T00:00", **options)) == 92
    )


@pytest.mark.parametrize(
    ("zone", "expression", "begin", "end", "expected"),
    [
        # A gap and a fold of half an hour.
        (
            "Australia/Lord_Howe",
            "15 2 * * *",
            "2026-10-04T00:00",
            "2026-10-05T00:00",
            ["2026-10-04T02:30+11:00"],
        ),
        (
            "Australia/Lord_Howe",
            "45 1 * * *",
            "2026-04-05T00:00",
            "2026-04-06T00:00",
            ["2026-04-05T01:45+11:00"],
        ),
        (
            "Australia/Lord_Howe",
            "*/15 1 * * *",
            "2026-04-05T00:00",
            "2026-04-06T00:00",
            [f"2026-04-05T01:{m}+11:00" for m in ("00", "15", "30", "45")]
            + [f"2026-04-05T01:{m}+10:30" for m in (30, 45)],
        ),
        # At midnight, so that a day begins at one.
        (
            "America/Sao_Paulo",
            "0 0 * * *",
            "2018-11-03T12:00",
            "2018-11-05T12:00",
            ["2018-11-04T01:00-02:00", "2018-11-05T00:00-02:00"],
        ),
        (
            "America/Sao_Paulo",
            "30 23 * * *",
            "2019-02-16T00:00",
            "2019-02-17T12:00",
            ["2019-02-16T23:30-02:00"],
        ),
        (
            "America/Sao_Paulo",
            "@daily",
            "2019-02-16T12:00",
            "2019-02-18T12:00",
            ["2019-02-17T00:00-03:00", "2019-02-18T00:00-03:00"],
        ),
        (
            "Asia/Beirut",
            "0 0 * * *",
            "2022-03-26T12:00",
            "2022-03-28T12:00",
            ["2022-03-27T01:00+03:00", "2022-03-28T00:00+03:00"],
        ),
        ("Asia/Beirut", "30 23 * * *", "2022-10-29T12:00", "2022-10-30T12:00", ["2022-10-29T23:30+03:00"]),
        (
            "America/Havana",
            "0 0 * * *",
            "2026-03-07T12:00",
            "2026-03-09T12:00",
            ["2026-03-08T01:00-04:00", "2026-03-09T00:00-04:00"],
        ),
        (
            "America/Havana",
            "0 0 * * *",
            "2026-10-31T12:00",
            "2026-11-02T12:00",
            ["2026-11-01T00:00-04:00", "2026-11-02T00:00-05:00"],
        ),
        # A whole day is skipped: 30 December 2011.
        ("Pacific/Apia", "0 12 30 12 *", "2011-12-29T00:00", "2012-01-01T00:00", ["2011-12-31T00:00+14:00"]),
        (
            "Pacific/Apia",
            "0 12 * * *",
            "2011-12-29T00:00",
            "2012-01-01T00:00",
            ["2011-12-29T12:00-10:00", "2011-12-31T00:00+14:00", "2011-12-31T12:00+14:00"],
        ),
        (
            "Pacific/Apia",
            "0 */12 * * *",
            "2011-12-29T06:00",
            "2011-12-31T06:00",
            ["2011-12-29T12:00-10:00", "2011-12-31T00:00+14:00"],
        ),
        # Off the hour.
        (
            "Asia/Kolkata",
            "15 * * * *",
            "2026-01-01T00:00",
            "2026-01-01T02:00",
            ["2026-01-01T00:15+05:30", "2026-01-01T01:15+05:30"],
        ),
        (
            "Asia/Kathmandu",
            "@hourly",
            "2026-01-01T00:00",
            "2026-01-01T02:00",
            ["2026-01-01T00:00+05:45", "2026-01-01T01:00+05:45"],
        ),
        ("Asia/Kathmandu", "7 0 * * *", "1985-12-31T12:00", "1986-01-01T12:00", ["1986-01-01T00:15+05:45"]),
        # Negative DST: winter time is the one that is called so.
        ("Europe/Dublin", "30 1 * * *", "2026-03-29T00:00", "2026-03-30T00:00", ["2026-03-29T02:00+01:00"]),
        ("Europe/Dublin", "30 1 * * *", "2026-10-25T00:00", "2026-10-26T00:00", ["2026-10-25T01:30+01:00"]),
        # To the second: Monrovia went from -0:44:30 to GMT in 1972.
        (
            "Africa/Monrovia",
            "30 0 7 1 *",
            "1972-01-06T12:00",
            "1972-01-07T12:00",
            ["1972-01-07T00:44:30+00:00"],
        ),
        # Where the year begins within a fold of the zone.
        (
            "America/New_York",
            "30 2 8 3 *",
            "2026-03-01T00:00",
            "2026-04-01T00:00",
            ["2026-03-08T03:00-04:00"],
        ),
    ],
)
def test_zones_that_are_changed_in_unusual_ways(
    zone: str, expression: str, begin: str, end: str, expected: list[str]
) -> None:
    expected = [
        text.removesuffix(":00+00:00") + "+00:00" if text.endswith(":00+00:00") else text for text in expected
    ]
    assert fires(expression, zone, begin, end) == expected


def test_a_whole_skipped_day_is_shifted_as_a_whole() -> None:
    found = fires("30 6,18 30 12 *", "Pacific/Apia", "2011-12-29T00:00", "2012-01-02T00:00", dst_gap="shift")
    assert found == ["2011-12-31T06:30+14:00", "2011-12-31T18:30+14:00"]


def test_a_repeated_time_is_not_run_again_by_one_who_asks_anew() -> None:
    trigger = cron("30 2 * * *", tz="Europe/Berlin")
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    for minutes in range(0, 120, 10):
        later = trigger.next_after(first + timedelta(minutes=minutes))
        assert later == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)


def test_fire_times_are_in_the_zone_and_say_which_pass_it_is() -> None:
    trigger = cron("30 2 * * *", tz="Europe/Berlin", dst_fold="both")
    passes = trigger.preview(2, datetime(2026, 10, 25, tzinfo=UTC))
    assert [fire.fold for fire in passes] == [0, 1]
    assert [fire.tzinfo for fire in passes] == [ZoneInfo("Europe/Berlin")] * 2
    assert trigger.matches(passes[1])
    assert not cron("30 2 * * *", tz="Europe/Berlin").matches(passes[1])


def test_an_interval_is_untouched() -> None:
    start = datetime(2026, 10, 24, 23, 30, tzinfo=UTC)
    found = every(minutes=30, anchor=start).preview(6, start)
    assert found == [start + timedelta(minutes=30 * n) for n in range(1, 7)]


SKIPPED = "does not run on days such as 2026-03-29, when the clocks of Europe/Berlin skip from 02:00 to 03:00"


@pytest.mark.parametrize(
    ("expression", "options", "warning"),
    [
        ("30 2 * * *", {"dst_gap": "skip"}, SKIPPED),
        ("*/30 2 * * *", {}, SKIPPED),
        ("30 2 * * *", {}, None),
        ("*/30 2,3 * * *", {}, None),
        ("30 4 * * *", {"dst_gap": "skip"}, None),
        ("* * * * *", {}, None),
        (
            "0 0 31 * *",
            {},
            "does not fire in months without such a day (never has such a day: Feb, Apr, Jun, Sep and Nov)",
        ),
        ("0 0 29 2 *", {}, "does not fire in years in which February has no such day"),
        ("0 0 30 1,2 *", {}, "does not fire in months without such a day (never has such a day: Feb)"),
        ("0 0 28 * *", {}, None),
        ("0 0 L * *", {}, None),
    ],
)
def test_days_on_which_a_job_does_not_run_are_warned_about(
    expression: str, options: dict[str, Any], warning: str | None
) -> None:
    assert cron(expression, tz="Europe/Berlin", **options).warnings == (() if warning is None else (warning,))


def test_times_that_are_skipped_for_good_are_told() -> None:
    trigger = cron("0,30 2 * * *", tz="Europe/Berlin", dst_gap="skip")
    assert isinstance(trigger, Cron)
    gap = datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp()
    assert trigger.omitted(gap - 1, gap) == (Omitted("dst_gap", gap, gap, 2),)
    assert trigger.omitted(gap, gap + 300 * 86_400) == ()
    assert trigger.omitted(gap - 300 * 86_400, gap - 1) == ()
    ten_years = trigger.omitted(gap - 86_400, gap + 3_653 * 86_400)
    assert [datetime.fromtimestamp(span.first, UTC).year for span in ten_years] == list(range(2026, 2036))


@pytest.mark.parametrize(
    ("expression", "options"),
    [
        ("30 2 * * *", {"dst_gap": "run"}),
        ("30 2 * * *", {"dst_gap": "shift"}),
        ("*/30 * * * *", {"dst_gap": "skip"}),
        ("30 4 * * *", {"dst_gap": "skip"}),
        ("30 2 * * *", {"dst_gap": "skip", "start": datetime(2026, 3, 30, tzinfo=UTC)}),
        ("30 2 * * *", {"dst_gap": "skip", "end": datetime(2026, 3, 28, tzinfo=UTC)}),
    ],
)
def test_what_runs_all_the_same_is_not_left_out(expression: str, options: dict[str, Any]) -> None:
    gap = datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp()
    assert cron(expression, tz="Europe/Berlin", **options).omitted(gap - 86_400, gap + 86_400) == ()
