"""The arithmetic of rates and of the lines of limits: pure, and so checked by properties."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsched import DefinitionError, Scheduler, cron
from asyncsched.ids import fitted
from asyncsched.rates import EMPTY, Line, Rate, parse_rate


@pytest.mark.parametrize(
    ("text", "count", "period_s"),
    [
        ("100/minute", 100, 60.0),
        ("5/second", 5, 1.0),
        ("1000/hour", 1000, 3600.0),
        ("20/day", 20, 86400.0),
        ("10/30s", 10, 30.0),
        ("3 / 2 minutes", 3, 120.0),
        ("1/s", 1, 1.0),
    ],
)
def test_a_rate_is_read_as_it_is_said(text: str, count: int, period_s: float) -> None:
    assert parse_rate(text) == Rate(count, period_s)


@pytest.mark.parametrize(
    "text", ["", "5", "/s", "0/s", "-1/s", "5/0s", "5/week", "1.5/s", "5 per second", "9999999/s", "5/s\n6"]
)
def test_what_is_no_rate_is_refused_with_its_value_and_the_remedy(text: str) -> None:
    with pytest.raises(DefinitionError, match="100/minute") as refused:
        parse_rate(text)
    assert repr(text) in str(refused.value)


def test_wrong_limits_are_refused_where_they_are_written() -> None:
    scheduler = Scheduler()

    async def task() -> None: ...

    for wrong in (0, -1, 1001, True, 1.5, "3"):
        with pytest.raises(DefinitionError, match="max_concurrency must be a whole number from 1 to 1,000"):
            scheduler.register(task, "task", max_concurrency=wrong)  # type: ignore[arg-type]  # that is the point
        with pytest.raises(DefinitionError, match="concurrency_limit must be a whole number from 1 to 1,000"):
            scheduler.job(cron("* * * * *"), concurrency_key="k", concurrency_limit=wrong)(task)  # type: ignore[arg-type]  # likewise
    with pytest.raises(DefinitionError, match="rate_limit"):
        scheduler.register(task, "task", rate_limit="fast")
    with pytest.raises(DefinitionError, match="rate_limit"):
        Scheduler(defaults={"rate_limit": "fast"})
    with pytest.raises(DefinitionError, match="concurrency_key"):
        scheduler.job(cron("* * * * *"), concurrency_key="k" * 201)(task)
    with pytest.raises(DefinitionError, match="concurrency_limit is for jobs with a concurrency_key"):
        scheduler.job(cron("* * * * *"), concurrency_limit=3)(task)


rates = st.builds(Rate, st.integers(1, 50), st.sampled_from([1.0, 10.0, 60.0, 3600.0]))
#: Seconds between those who ask.
gaps = st.lists(st.one_of(st.just(0.0), st.floats(0, 20)), min_size=1, max_size=120)


def starts_of(rate: Rate, gaps: list[float], began: float = 1.7e9) -> tuple[list[float], list[float]]:
    asked, given_, bucket, now = [], [], EMPTY, began
    for gap in gaps:
        now += gap
        at, bucket = rate.draw(bucket, now)
        asked.append(now)
        given_.append(at)
    return asked, given_


@given(rates, gaps)
def test_no_window_sees_more_starts_than_the_burst_and_what_comes_back_in_it(
    rate: Rate, gaps: list[float]
) -> None:
    _, starts = starts_of(rate, gaps)
    for first in range(len(starts)):
        for last in range(first, len(starts)):
            window = starts[last] - starts[first]
            assert last - first + 1 <= rate.count + (window + 2e-4) / rate.interval_s + 1e-3


@given(rates, gaps)
def test_nobody_starts_before_he_asks_and_all_in_the_order_of_asking(rate: Rate, gaps: list[float]) -> None:
    asked, starts = starts_of(rate, gaps)
    assert all(at >= now for at, now in zip(starts, asked, strict=True))
    assert all(earlier <= later for earlier, later in pairwise(starts))


@given(rates, gaps)
def test_nobody_waits_longer_than_it_takes_for_a_token_of_his_own(rate: Rate, gaps: list[float]) -> None:
    asked, starts = starts_of(rate, gaps)
    for n, (now, at) in enumerate(zip(asked, starts, strict=True)):
        assert at - now <= max(0, n + 1 - rate.count) * rate.interval_s + 1e-3


@given(rates, st.integers(0, 300))
def test_a_bucket_that_has_rested_is_as_good_as_a_new_one(rate: Rate, draws: int) -> None:
    bucket, now = EMPTY, 1.7e9
    for _ in range(draws):
        _, bucket = rate.draw(bucket, now)
    rested = max(bucket, now) + rate.period_s
    assert [draw_n(rate, bucket, rested, n) for n in (1, rate.count)] == [rested, rested]
    assert draw_n(rate, bucket, rested, rate.count + 1) == pytest.approx(rested + rate.interval_s, abs=1e-3)


def draw_n(rate: Rate, bucket: float, now: float, n: int) -> float:
    at = now
    for _ in range(n):
        at, bucket = rate.draw(bucket, now)
    return at


def test_the_head_of_a_line_looks_soon_and_the_others_an_hour_later_and_apart() -> None:
    line = Line(30.0, lambda: 0.0)
    places = [line.place("a", f"job-{n}", 1000.0, 0, is_woken=True) for n in range(5)]
    assert places == [(1030.0, 2), (4600.0, 1), (4601.0, 1), (4602.0, 1), (4603.0, 1)]
    assert line.place("b", "job-9", 1000.0, 0, is_woken=True) == (1030.0, 2)


def test_who_was_at_the_head_or_was_woken_goes_back_to_the_head() -> None:
    line = Line(30.0, lambda: 0.0)
    for n in range(5):
        line.place("a", f"job-{n}", 1000.0, 0, is_woken=True)
    assert line.place("a", "job-1", 1001.0, 1, is_woken=True) == (1031.0, 2)
    assert line.place("a", "job-0", 1001.0, 2, is_woken=False) == (1031.0, 2)
    assert line.place("a", "job-2", 1001.0, 1, is_woken=False) == (4604.0, 1)


def test_where_the_head_has_left_its_line_the_next_who_comes_is_the_head() -> None:
    line = Line(30.0, lambda: 0.0)
    assert line.place("a", "job-0", 1000.0, 0, is_woken=True) == (1030.0, 2)
    line.leave("a", "job-0")
    assert line.place("a", "job-1", 1001.0, 0, is_woken=True) == (1031.0, 2)
    assert line.place("a", "job-2", 1001.0, 0, is_woken=True) == (4601.0, 1)


def test_who_was_woken_stays_before_those_who_sleep_however_many_were_woken_before() -> None:
    line = Line(30.0, lambda: 0.0)
    line.place("a", "head", 1000.0, 0, is_woken=True)
    waits = {line.place("a", f"job-{n}", 1000.0 + n / 10, 1, is_woken=True)[1] for n in range(100)}
    assert waits == {2}


@given(st.lists(st.integers(0, 2), max_size=300))
def test_there_are_never_many_at_the_head_who_were_not_woken(comers: list[int]) -> None:
    line = Line(30.0, lambda: 0.0)
    places = [line.place("a", f"job-{n}", 1000.0, waits, is_woken=False) for n, waits in enumerate(comers)]
    assert sum(waits == 2 for _, waits in places) <= 16
    sleeping = [at for at, waits in places if waits == 1]
    assert all(later - earlier >= 1 for earlier, later in pairwise(sleeping))


def test_long_names_are_cut_and_told_apart() -> None:
    one, two = fitted("x" * 254 + "1"), fitted("x" * 254 + "2")
    assert len(one) == 200
    assert one != two
    assert fitted("short") == "short"
