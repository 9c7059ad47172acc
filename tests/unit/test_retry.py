"""Retry: how long to wait after which failed attempt."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsched import DefinitionError, Retry

seconds = st.floats(min_value=0, max_value=1e12, allow_nan=False)
retries = st.builds(
    Retry,
    base=seconds,
    multiplier=st.floats(min_value=1e-300, max_value=1e300, exclude_min=True),
    max_delay=st.none() | seconds,
    spread=st.floats(min_value=0, max_value=1),
    delays=st.none() | st.lists(seconds, min_size=1, max_size=5),
)


def delays(retry: Retry, n: int = 5) -> list[float | None]:
    found = [retry.delay(attempt) for attempt in range(1, n + 1)]
    return [None if delay is None else delay.total_seconds() for delay in found]


def test_by_default_delays_double_without_end() -> None:
    assert delays(Retry()) == [1, 2, 4, 8, 16]


@pytest.mark.parametrize(
    ("retry", "expected"),
    [
        (Retry(base=3, multiplier=1), [3, 3, 3, 3, 3]),
        (Retry(base=timedelta(milliseconds=500)), [0.5, 1, 2, 4, 8]),
        (Retry(multiplier=3, max_delay=10), [1, 3, 9, 10, 10]),
        (Retry(multiplier=0.5), [1, 0.5, 0.25, 0.125, 0.0625]),
        (Retry(base=0), [0, 0, 0, 0, 0]),
        (Retry(max_delay=0), [0, 0, 0, 0, 0]),
        (Retry(max_attempts=3), [1, 2, None, None, None]),
        (Retry(max_attempts=1), [None] * 5),
        (Retry(delays=[5, timedelta(minutes=1)]), [5, 60, None, None, None]),
        (Retry(delays=[5, 60], max_attempts=5), [5, 60, 60, 60, None]),
        (Retry(delays=[5, 60, 70], max_attempts=3), [5, 60, None, None, None]),
        (Retry(delays=[5, 60], max_delay=30), [5, 30, None, None, None]),
    ],
    ids=str,
)
def test_delays_of_each_form(retry: Retry, expected: list[float | None]) -> None:
    assert delays(retry) == [None if delay is None else pytest.approx(delay) for delay in expected]


@given(retries, st.integers(min_value=1) | st.sampled_from([10**3, 10**9, 10**30, 10**400]))
def test_no_attempt_overflows(retry: Retry, attempt: int) -> None:
    delay = retry.delay(attempt)
    assert delay is None or timedelta(0) <= delay <= timedelta(seconds=1e9)


@pytest.mark.parametrize("multiplier", [1e-300, 0.5, 1, 1.0000001, 2, 1e300])
@pytest.mark.parametrize("attempt", [2, 1075, 10**9, 10**18, 10**400])
def test_no_multiplier_overflows(multiplier: float, attempt: int) -> None:
    delay = Retry(multiplier=multiplier, max_delay=3600).delay(attempt)
    assert delay is not None
    assert timedelta(0) <= delay <= timedelta(hours=1)


@given(retries, st.integers(1, 1000), st.floats(0, 1, exclude_max=True))
def test_the_cap_holds_after_the_spread(retry: Retry, attempt: int, random: float) -> None:
    delay = retry.delay(attempt, random=lambda: random)
    if delay is not None and retry.max_delay is not None:
        assert delay.total_seconds() <= retry.max_delay + 1e-6  # type: ignore[operator]  # a Retry holds seconds once it is made


def test_the_spread_moves_a_delay_either_way_by_its_share() -> None:
    retry = Retry(base=100, multiplier=1, spread=0.1)
    found = [retry.delay(1, random=lambda r=r: r) for r in (0.0, 0.5, 0.999999)]  # type: ignore[misc]  # mypy infers no type for a lambda's default
    assert [round(delay.total_seconds(), 3) for delay in found if delay is not None] == [90, 100, 110]


def test_without_a_spread_the_random_source_is_not_asked() -> None:
    def random() -> float:
        raise AssertionError

    assert Retry().delay(1, random=random) == timedelta(seconds=1)


def test_the_spread_differs_from_call_to_call() -> None:
    retry = Retry(base=100, spread=0.5)
    assert len({retry.delay(1) for _ in range(20)}) > 1


def test_errors_are_retried_if_named_and_not_excluded() -> None:
    retry = Retry(on=(ValueError, OSError), never_on=(UnicodeError,))
    assert retry.applies_to(ValueError())
    assert retry.applies_to(ConnectionError())
    assert not retry.applies_to(UnicodeError())
    assert not retry.applies_to(KeyError())


def test_by_default_every_exception_is_retried_and_no_exit() -> None:
    assert Retry().applies_to(Exception())
    assert not Retry().applies_to(KeyboardInterrupt())


def test_a_single_class_may_stand_for_a_tuple() -> None:
    retry = Retry(on=ValueError)
    assert retry.applies_to(ValueError())
    assert retry == Retry(on=(ValueError,))


@pytest.mark.parametrize(
    "options",
    [
        {"max_attempts": 0},
        {"max_attempts": 1.5},
        {"base": -1},
        {"base": float("nan")},
        {"base": "1"},
        {"multiplier": 0},
        {"multiplier": -1},
        {"multiplier": float("inf")},
        {"max_delay": -1},
        {"spread": -0.1},
        {"spread": 1.1},
        {"delays": []},
        {"delays": [1, -1]},
        {"on": ("ValueError",)},
        {"never_on": (int,)},
        {"on": (ValueError(),)},
    ],
    ids=str,
)
def test_what_can_never_work_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match=next(iter(options))):
        Retry(**options)


@pytest.mark.parametrize("attempt", [0, -1])
def test_attempts_count_from_one(attempt: int) -> None:
    with pytest.raises(DefinitionError):
        Retry().delay(attempt)


def test_a_retry_is_a_value() -> None:
    assert Retry(base=1, delays=[1, 2]) == Retry(base=timedelta(seconds=1), delays=(1.0, 2.0))
    assert hash(Retry(delays=[1])) == hash(Retry(delays=[1]))
    with pytest.raises(AttributeError):
        Retry().base = 2  # type: ignore[misc]  # it is refused
