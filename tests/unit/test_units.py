"""Instants and durations as users write them."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsched import DefinitionError
from asyncsched.units import parse_duration, to_datetime, to_instant, to_seconds

INSTANTS = st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))


@pytest.mark.parametrize(
    ("value", "seconds"), [(0, 0.0), (5, 5.0), (0.25, 0.25), (timedelta(minutes=1, milliseconds=5), 60.005)]
)
def test_a_duration_is_seconds_or_a_timedelta(value: Any, seconds: float) -> None:
    assert to_seconds(value, "x") == seconds


@pytest.mark.parametrize(
    "value", [-1, -0.001, float("nan"), float("inf"), True, "5", None, timedelta(seconds=-1), 10**400]
)
def test_what_is_no_duration_is_refused_by_name(value: Any) -> None:
    with pytest.raises(DefinitionError, match="the_name"):
        to_seconds(value, "the_name")


@pytest.mark.parametrize("value", [0, 0.0, timedelta(0)])
def test_zero_may_be_refused(value: Any) -> None:
    assert to_seconds(value, "x") == 0
    with pytest.raises(DefinitionError, match="above zero"):
        to_seconds(value, "x", positive=True)


@given(INSTANTS)
def test_instants_keep_their_microseconds(value: datetime) -> None:
    assert to_datetime(to_instant(value, "x")) == value


def test_the_zone_of_an_instant_does_not_matter() -> None:
    berlin = datetime(2026, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    assert to_instant(berlin, "x") == to_instant(datetime(2026, 7, 1, 10, tzinfo=UTC), "x")
    assert to_datetime(to_instant(berlin, "x")).tzinfo is UTC


def test_the_two_instants_of_a_repeated_hour_are_told_apart() -> None:
    early = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))
    assert to_instant(early.replace(fold=1), "x") - to_instant(early, "x") == 3600


@pytest.mark.parametrize("value", [datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=None)])
def test_a_naive_datetime_is_refused_with_the_remedy(value: datetime) -> None:
    with pytest.raises(DefinitionError, match=r"the_name.*tzinfo=UTC"):
        to_instant(value, "the_name")


@pytest.mark.parametrize("value", [5, "2026-01-01", None, timedelta(1)])
def test_what_is_no_datetime_is_no_instant(value: Any) -> None:
    with pytest.raises(DefinitionError, match="the_name"):
        to_instant(value, "the_name")


def test_a_fixed_offset_is_a_zone() -> None:
    value = datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    assert to_instant(value, "x") == to_instant(datetime(2026, 1, 1, tzinfo=UTC), "x")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5d", 129_600),
        ("2w", 1_209_600),
        ("250ms", 0.25),
        ("10us", 1e-5),
        ("1m500ms", 60.5),
    ],
)
def test_a_written_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text, "x") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "m",
        "5 m",
        "-5m",
        "5x",
        "1h 30m",
        "5m!",
        "\N{ARABIC-INDIC DIGIT FIVE}m",
        "0s",
        "1e3s",
        "9" * 400 + "s",
    ],
)
def test_what_reads_like_no_duration_is_refused(text: str) -> None:
    with pytest.raises(DefinitionError, match="the_name"):
        parse_duration(text, "the_name")
