"""Cron: the grammar, and the fire times of expressions where no clock is changed."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import croniter
import pytest

from asyncsched import Cron, CronError, DefinitionError, Every, Trigger, cron, every, parse_trigger
from asyncsched.triggers.cron import _compiled
from asyncsched.triggers.fields import parse_fields

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")


def at(seconds: float) -> datetime:
    return NEW_YEAR + timedelta(seconds=seconds)


def offsets(trigger: Trigger, n: int = 3, start: datetime = NEW_YEAR) -> list[float]:
    """The next fire times in seconds since *start*."""
    return [(fire - start).total_seconds() for fire in trigger.preview(n, start)]


def days(expression: str, n: int, start: str = "2026-01-01", **options: Any) -> list[str]:
    """The dates of the next *n* fire times after *start*."""
    begin = datetime.fromisoformat(start).replace(tzinfo=UTC) - timedelta(seconds=1)
    return [fire.date().isoformat() for fire in cron(expression, **options).preview(n, begin)]


# -- expressions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "fires"),
    [
        ("* * * * *", ["2026-01-01T00:01", "2026-01-01T00:02"]),
        ("*/15 * * * *", ["2026-01-01T00:15", "2026-01-01T00:30"]),
        ("30 4 * * *", ["2026-01-01T04:30", "2026-01-02T04:30"]),
        ("0 9 * * mon-fri", ["2026-01-01T09:00", "2026-01-02T09:00", "2026-01-05T09:00"]),
        ("0 0 29 2 *", ["2028-02-29T00:00", "2032-02-29T00:00"]),
        ("0 0 1 jan *", ["2027-01-01T00:00"]),
        ("0 0 13 * fri", ["2026-01-02T00:00", "2026-01-09T00:00", "2026-01-13T00:00"]),
        ("15 30 4 * * *", ["2026-01-01T04:30:15", "2026-01-02T04:30:15"]),
        ("@hourly", ["2026-01-01T01:00", "2026-01-01T02:00"]),
        ("@daily", ["2026-01-02T00:00"]),
        ("@midnight", ["2026-01-02T00:00"]),
        ("@weekly", ["2026-01-04T00:00", "2026-01-11T00:00"]),
        ("@monthly", ["2026-02-01T00:00"]),
        ("@yearly", ["2027-01-01T00:00"]),
        ("@annually", ["2027-01-01T00:00"]),
    ],
)
def test_cron_fires_at_the_times_of_its_expression(expression: str, fires: list[str]) -> None:
    expected = [datetime.fromisoformat(fire).replace(tzinfo=UTC) for fire in fires]
    assert cron(expression).preview(len(fires), NEW_YEAR) == expected


def test_cron_follows_the_clock_of_its_zone() -> None:
    trigger = cron("0 9 * * *", tz="Europe/Berlin")
    assert trigger == cron("0 9 * * *", tz=BERLIN)
    winter, summer = (trigger.next_after(datetime(2026, month, 10, tzinfo=UTC)) for month in (1, 7))
    assert (winter, summer) == (
        datetime(2026, 1, 10, 8, tzinfo=UTC),
        datetime(2026, 7, 10, 7, tzinfo=UTC),
    )


def test_cron_begins_at_its_start_and_ends_at_its_end() -> None:
    trigger = cron("* * * * *", start=at(120), end=at(180))
    assert offsets(trigger) == [120, 180]


def test_spaces_in_an_expression_do_not_matter() -> None:
    assert cron(" 0   9 * *  * ") == cron("0 9 * * *")


@pytest.mark.parametrize("expression", [None, 5, b"* * * * *"])
def test_an_expression_is_a_string(expression: Any) -> None:
    with pytest.raises(CronError):
        cron(expression)


@pytest.mark.parametrize("zone", ["Nowhere/Land", "", "../etc/passwd", "Europe/"])
def test_an_unknown_zone_is_a_cron_error_that_names_it(zone: str) -> None:
    with pytest.raises(CronError, match="zone"):
        cron("* * * * *", tz=zone)


# -- days --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        # Joined by OR, unless one begins with a star or a question mark.
        ("0 0 13 * fri", ["2026-01-02", "2026-01-09", "2026-01-13"]),
        ("0 0 13 * *", ["2026-01-13", "2026-02-13"]),
        ("0 0 * * fri", ["2026-01-02", "2026-01-09"]),
        ("0 0 ? * fri", ["2026-01-02", "2026-01-09"]),
        ("0 0 13 * ?", ["2026-01-13", "2026-02-13"]),
        ("0 0 */2 * fri", ["2026-01-09", "2026-01-23", "2026-02-13"]),
        ("0 0 13 * */5", ["2026-02-13", "2026-03-13", "2026-09-13", "2026-11-13", "2026-12-13"]),
        # Sunday is 0 and 7; names in any case; ranges over the end.
        ("0 0 * * 0", ["2026-01-04", "2026-01-11"]),
        ("0 0 * * 7", ["2026-01-04", "2026-01-11"]),
        ("0 0 * * SuN", ["2026-01-04", "2026-01-11"]),
        ("0 0 * * fri-mon", ["2026-01-02", "2026-01-03", "2026-01-04", "2026-01-05", "2026-01-09"]),
        ("0 0 * * 5-7", ["2026-01-02", "2026-01-03", "2026-01-04", "2026-01-09"]),
        ("0 0 * * 6-7/1", ["2026-01-03", "2026-01-04", "2026-01-10"]),
        ("0 0 * * 7-1", ["2026-01-04", "2026-01-05", "2026-01-11"]),
        ("0 0 * * mon/2", ["2026-01-02", "2026-01-05", "2026-01-07", "2026-01-09"]),
        ("0 0 1 nov-feb *", ["2026-01-01", "2026-02-01", "2026-11-01", "2026-12-01", "2027-01-01"]),
        ("0 0 30-2 * *", ["2026-01-01", "2026-01-02", "2026-01-30", "2026-01-31", "2026-02-01"]),
        ("0 0 1 JAN,oct/2 *", ["2026-01-01", "2026-10-01", "2026-12-01"]),
        # The ends of months.
        ("0 0 L * *", ["2026-01-31", "2026-02-28", "2026-03-31"]),
        ("0 0 l 2 *", ["2026-02-28", "2027-02-28", "2028-02-29"]),
        ("0 0 L-2 * *", ["2026-01-29", "2026-02-26", "2026-03-29"]),
        ("0 0 L-30 * *", ["2026-01-01", "2026-03-01", "2026-05-01"]),
        ("0 0 1,L * *", ["2026-01-01", "2026-01-31", "2026-02-01"]),
        # Weekdays near a day: never in another month.
        ("0 0 15W * *", ["2026-01-15", "2026-02-16", "2026-03-16"]),
        (
            "0 0 1W * *",
            [
                "2026-01-01",
                "2026-02-02",
                "2026-03-02",
                "2026-04-01",
                "2026-05-01",
                "2026-06-01",
                "2026-07-01",
                "2026-08-03",
            ],
        ),
        ("0 0 31W * *", ["2026-01-30", "2026-03-31", "2026-05-29"]),
        ("0 0 28W 2 *", ["2026-02-27", "2027-02-26"]),
        ("0 0 LW * *", ["2026-01-30", "2026-02-27", "2026-03-31", "2026-04-30", "2026-05-29"]),
        # The nth of a weekday.
        ("0 0 * * 2#1", ["2026-01-06", "2026-02-03"]),
        ("0 0 * * FRI#5", ["2026-01-30", "2026-05-29", "2026-07-31"]),
        ("0 0 * * 7#2", ["2026-01-11", "2026-02-08"]),
        ("0 0 * * 5L", ["2026-01-30", "2026-02-27"]),
        ("0 0 * * sunL,1#1", ["2026-01-05", "2026-01-25", "2026-02-02"]),
        ("0 0 15 * 5L", ["2026-01-15", "2026-01-30", "2026-02-15"]),
        ("0 0 * * L", ["2026-01-03", "2026-01-10"]),
        # Years.
        ("0 0 0 1 1 ? 2027-2031/2", ["2027-01-01", "2029-01-01", "2031-01-01"]),
        ("0 0 0 1 1 ? *", ["2026-01-01", "2027-01-01"]),
        ("0 0 0 29 2 ? 2028,2032", ["2028-02-29", "2032-02-29"]),
    ],
)
def test_cron_fires_on_the_days_of_its_expression(expression: str, expected: list[str]) -> None:
    assert days(expression, len(expected)) == expected


def test_day_and_joins_the_two_day_fields_by_and() -> None:
    assert days("0 0 13 * fri", 3, day="and") == ["2026-02-13", "2026-03-13", "2026-11-13"]
    assert cron("DAY=and 0 0 13 * fri") == cron("0 0 13 * fri", day="and")


def test_29_february_is_found_across_2100() -> None:
    assert days("0 0 29 2 *", 3, "2092-01-01") == ["2092-02-29", "2096-02-29", "2104-02-29"]
    assert days("0 0 29 2 1", 2, "2088-03-01", day="and") == ["2112-02-29", "2140-02-29"]
    back = cron("0 0 29 2 *").previous_before(datetime(2104, 2, 29, tzinfo=UTC))
    assert back == datetime(2096, 2, 29, tzinfo=UTC)


def test_a_year_that_is_over_ends_it() -> None:
    trigger = cron("0 0 0 1 1 ? 2027")
    assert trigger.preview(5, NEW_YEAR) == [datetime(2027, 1, 1, tzinfo=UTC)]
    assert trigger.previous_before(datetime(2027, 1, 1, tzinfo=UTC)) is None
    assert trigger.next_after(datetime(1960, 1, 1, tzinfo=UTC)) == datetime(2027, 1, 1, tzinfo=UTC)
    assert trigger.previous_before(datetime(2500, 1, 1, tzinfo=UTC)) == datetime(2027, 1, 1, tzinfo=UTC)


# -- times -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("*", range(60)),
        ("*/7", range(0, 60, 7)),
        ("*/60", [0]),
        ("7", [7]),
        ("007", [7]),
        ("5-5", [5]),
        ("5-8", [5, 6, 7, 8]),
        ("10-50/15", [10, 25, 40]),
        ("40/5", [40, 45, 50, 55]),
        ("59/15", [59]),
        ("58-2", [0, 1, 2, 58, 59]),
        ("50-20/15", [5, 20, 50]),
        ("1,5-7,*/30", [0, 1, 5, 6, 7, 30]),
        ("0-59", range(60)),
        ("3,1,2,1", [1, 2, 3]),
    ],
)
def test_a_field_stands_for_its_values(field: str, expected: list[int]) -> None:
    assert parse_fields(f"{field} * * * *", "", False).minutes == tuple(expected)
    assert parse_fields(f"{field} 0 * * * *", "", False).seconds == tuple(expected)


def test_ranges_and_steps_are_read_by_croniter(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    expand = croniter.croniter.expand
    monkeypatch.setattr(croniter.croniter, "expand", lambda text: asked.append(text) or expand(text))
    parse_fields("*/20 9-12 * * mon-fri/2", "", False)
    assert asked == ["0-59/20 9-12/1 * * *"]
    parse_fields("5,10 * * * *", "", False)
    parse_fields("1-3 0 * * * *", "", False)
    assert asked[1:] == ["* * * * * 1-3/1"]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 22-2 * * *", ["00:00", "01:00", "02:00", "22:00", "23:00"]),
        ("30 20/2 * * *", ["20:30", "22:30"]),
        ("59 59 23 * * *", ["23:59:59"]),
        ("*/30 0 12 * * *", ["12:00", "12:00:30"]),
    ],
)
def test_cron_fires_at_the_times_of_a_day(expression: str, expected: list[str]) -> None:
    fires = cron(expression).between(NEW_YEAR, NEW_YEAR + timedelta(days=1))
    assert [fire.time().isoformat().removesuffix(":00") for fire in fires] == expected


# -- H -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "allowed", "count"),
    [
        ("H", range(60), 1),
        ("H(10-20)", range(10, 21), 1),
        ("H/15", range(60), 4),
        ("H(0-29)/10", range(30), 3),
    ],
)
def test_h_stands_for_values_that_the_key_chooses(part: str, allowed: range, count: int) -> None:
    seen = set()
    for key in map(str, range(1000)):
        minutes = parse_fields(f"{part} * * * *", key, False).minutes
        assert minutes == parse_fields(f"{part.lower()} * * * *", key, False).minutes
        assert len(minutes) == count
        assert set(minutes) <= set(allowed)
        seen.update(minutes)
    assert seen == set(allowed)


def test_h_in_a_day_field_is_a_day_that_every_month_has() -> None:
    fields = [parse_fields("0 0 H H H", str(key), False) for key in range(500)]
    assert {day for each in fields for day in each.days.numbers} == set(range(1, 29))
    assert {day for each in fields for day in each.days.weekdays} == set(range(7))
    assert {month for each in fields for month in each.months} == set(range(1, 13))


def test_fields_of_one_key_are_chosen_apart() -> None:
    fields = [parse_fields("H H H * * *", str(key), False) for key in range(100)]
    assert any(each.seconds != each.minutes for each in fields)


def test_h_is_the_same_for_ever() -> None:
    fields = parse_fields("H H H H *", "nightly-report", False)
    assert (fields.minutes, fields.hours, fields.days.numbers, fields.months) == ((9,), (17,), {16}, {10})


def test_h_is_chosen_by_the_job_id_unless_a_key_is_given() -> None:
    trigger = cron("H H * * *")
    bound = trigger.bind(0.0, "one")
    assert bound.preview(3, NEW_YEAR) == cron("H H * * *", hash_key="one").preview(3, NEW_YEAR)
    assert bound.preview(1, NEW_YEAR) != trigger.bind(0.0, "two").preview(1, NEW_YEAR)
    assert bound.unbound() == trigger
    assert str(bound) == "H H * * *"
    given = cron("H H * * *", hash_key="mine")
    assert given.bind(0.0, "one") == given
    assert cron("HASH_KEY=a%20b H H * * *") == cron("H H * * *", hash_key="a b")


def test_without_h_the_job_id_does_not_matter() -> None:
    for text in ("0 0 * * thu", "@hourly", "0 0 * mar *"):
        assert cron(text).bind(0.0, "one") == cron(text)


# -- zones and options in front ----------------------------------------------------------------------------------------


def test_the_zone_may_stand_in_front() -> None:
    expected = cron("0 9 * * *", tz="Europe/Berlin")
    assert cron("TZ=Europe/Berlin 0 9 * * *") == expected
    assert cron("CRON_TZ=Europe/Berlin   0 9 * * *") == expected
    assert cron("cron_tz=Europe/Berlin 0 9 * * *", tz=BERLIN) == expected
    assert cron("TZ=Europe/Berlin @daily") == cron("@daily", tz="Europe/Berlin")


def test_two_different_zones_are_refused() -> None:
    with pytest.raises(CronError, match="two time zones"):
        cron("TZ=Europe/Berlin 0 9 * * *", tz="Asia/Tokyo")


def test_the_local_zone_is_that_of_the_host() -> None:
    script = (
        "from datetime import *; from asyncsched import cron;"
        "print(cron('0 9 * * *', tz='local').next_after(datetime(2026, 7, 1, tzinfo=UTC)).isoformat(),"
        "cron('30 2 * * *', tz='local').next_after(datetime(2026, 3, 28, 12, tzinfo=UTC)).isoformat())"
    )
    for zone, expected in [
        ("Asia/Kathmandu", "2026-07-01T09:00:00+05:45 2026-03-29T02:30:00+05:45"),
        ("Europe/Berlin", "2026-07-01T09:00:00+02:00 2026-03-29T03:00:00+02:00"),
    ]:
        answer = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "TZ": zone},
            capture_output=True,
            text=True,
            check=True,
        )
        assert answer.stdout.strip() == expected


def test_every_is_understood_where_cron_is() -> None:
    assert cron("@every 90s") == every(90)
    assert cron("@EVERY 1h30m", start=at(10), end=at(9000)) == every("1h30m", start=at(10), end=at(9000))
    assert isinstance(parse_trigger("@every 5m"), Every)


def test_a_macro_keeps_its_name() -> None:
    trigger = cron("@Daily")
    assert isinstance(trigger, Cron)
    assert trigger.expression == "@daily"
    assert trigger.preview(3, NEW_YEAR) == cron("0 0 * * *").preview(3, NEW_YEAR)


def test_an_expression_is_compiled_once() -> None:
    before = _compiled.cache_info().misses
    for _ in range(3):
        assert cron("17 3 * * *", tz="Asia/Kolkata").next_after(NEW_YEAR)
    assert _compiled.cache_info().misses == before + 1


def test_an_end_before_the_start_is_refused() -> None:
    with pytest.raises(DefinitionError, match="before start"):
        cron("* * * * *", start=at(60), end=at(0))


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "field", "position", "value", "allowed"),
    [
        ("61 * * * *", "minute", 1, "61", "0-59"),
        ("* 24 * * *", "hour", 2, "24", "0-23"),
        ("* * 32 * *", "day of month", 3, "32", "1-31"),
        ("* * 0 * *", "day of month", 3, "0", "1-31"),
        ("* * * 13 *", "month", 4, "13", "1-12, jan-dec"),
        ("* * * foo *", "month", 4, "foo", "1-12, jan-dec"),
        ("* * * * 8", "day of week", 5, "8", "0-7, sun-sat"),
        ("60 * * * * *", "second", 1, "60", "0-59"),
        ("0 0 0 1 1 ? 1969", "year", 7, "1969", "1970-2199"),
        ("0 0 0 1 1 ? 2030-2020", "year", 7, "2030-2020", "1970-2199"),
        ("0 0 0 1 1 ? H", "year", 7, "h", "1970-2199"),
        ("1,,2 * * * *", "minute", 1, "1,,2", "0-59"),
        (",1 * * * *", "minute", 1, ",1", "0-59"),
        ("*-5 * * * *", "minute", 1, "*-5", "0-59"),
        ("+5 * * * *", "minute", 1, "+5", "0-59"),
        ("-5 * * * *", "minute", 1, "-5", "0-59"),
        ("5- * * * *", "minute", 1, "5-", "0-59"),
        ("5-5/0 * * * *", "minute", 1, "5-5/0", "0-59"),
        ("*/0 * * * *", "minute", 1, "*/0", "0-59"),
        ("*/61 * * * *", "minute", 1, "*/61", "0-59"),
        ("5-1-2 * * * *", "minute", 1, "5-1-2", "0-59"),
        ("1.5 * * * *", "minute", 1, "1.5", "0-59"),
        ("0x5 * * * *", "minute", 1, "0x5", "0-59"),
        ("a * * * *", "minute", 1, "a", "0-59"),
        ("\u0663 * * * *", "minute", 1, "\u0663", "0-59"),
        ("* \uff11 * * *", "hour", 2, "\uff11", "0-23"),
        ("? * * * *", "minute", 1, "?", "0-59"),
        ("* * ?/2 * *", "day of month", 3, "?/2", "1-31"),
        ("* L * * *", "hour", 2, "l", "0-23"),
        ("* * L-31 * *", "day of month", 3, "l-31", "1-31"),
        ("* * L-0 * *", "day of month", 3, "l-0", "1-31"),
        ("* * 0W * *", "day of month", 3, "0w", "1-31"),
        ("* * 1-5W * *", "day of month", 3, "1-5w", "1-31"),
        ("* * * * 1#6", "day of week", 5, "1#6", "0-7, sun-sat"),
        ("* * * * 1#0", "day of week", 5, "1#0", "0-7, sun-sat"),
        ("* * * * 8#1", "day of week", 5, "8#1", "0-7, sun-sat"),
        ("* * * * 8L", "day of week", 5, "8l", "0-7, sun-sat"),
        ("H(5-70) * * * *", "minute", 1, "h(5-70)", "0-59"),
        ("H(9-5) * * * *", "minute", 1, "h(9-5)", "0-59"),
        ("H/61 * * * *", "minute", 1, "h/61", "0-59"),
        ("H(0-9)/11 * * * *", "minute", 1, "h(0-9)/11", "0-59"),
        ("0 0 30 2 *", "day of month", 3, "30", "1-31"),
        ("0 0 31 4,6,9,11 *", "day of month", 3, "31", "1-31"),
        ("0 0 0 29 2 ? 2027", "day of month", 4, "29", "1-31"),
        ("0 0 0 29 2 ? 2100", "day of month", 4, "29", "1-31"),
    ],
)
def test_a_bad_field_is_named(expression: str, field: str, position: int, value: str, allowed: str) -> None:
    with pytest.raises(CronError) as caught:
        cron(expression)
    error = caught.value
    assert (error.field, error.position, error.value, error.allowed) == (field, position, value, allowed)
    assert value in str(error)
    assert allowed in str(error)


@pytest.mark.parametrize(
    ("expression", "field", "position", "value", "allowed"),
    [
        ("", "expression", 1, "", "5 fields"),
        ("   ", "expression", 1, "", "5 fields"),
        ("* * * *", "expression", 5, "", "5 fields"),
        ("* * * * * * * x", "expression", 8, "x", "5 fields"),
        ("* " * 600, "expression", 1, "* * * *", "at most 1024"),
        ("@fortnightly", "macro", 1, "@fortnightly", "@weekly"),
        ("@", "macro", 1, "@", "@weekly"),
        ("TZ=0 * * * * *", "time zone", 1, "0", "Europe/Berlin"),
        ("CRON_TZ= * * * * *", "time zone", 1, "", "Europe/Berlin"),
        ("SHELL=sh * * * * *", "option", 1, "SHELL=sh", "cron_tz"),
        ("TZ=UTC TZ=UTC * * * * *", "option", 1, "TZ=UTC", "cron_tz"),
        ("DST_GAP=jump * * * * *", "dst_gap", 1, "jump", "run, skip, shift"),
        ("DST_FOLD=third * * * * *", "dst_fold", 1, "third", "first, second, both"),
        ("DAY=xor * * * * *", "day", 1, "xor", "or, and"),
    ],
)
def test_what_is_no_expression_at_all_is_explained(
    expression: str, field: str, position: int, value: str, allowed: str
) -> None:
    with pytest.raises(CronError) as caught:
        cron(expression)
    error = caught.value
    assert (error.field, error.position) == (field, position)
    assert error.value is not None
    assert error.value.startswith(value)
    assert error.allowed is not None
    assert allowed in error.allowed


@pytest.mark.parametrize(
    "options",
    [{"dst_gap": "no"}, {"dst_fold": None}, {"day": 5}, {"hash_key": 5}, {"tz": None}, {"tz": 5}],
    ids=repr,
)
def test_a_bad_option_is_a_cron_error(options: dict[str, Any]) -> None:
    with pytest.raises(CronError):
        cron("* * * * *", **options)


def test_the_longest_expression_is_understood() -> None:
    text = ",".join(["1"] * 508) + " * * * *"
    assert len(text) == 1023
    assert cron(text) != cron("1 * * * *")
    with pytest.raises(CronError, match="1024"):
        cron(f"1,{text}")
