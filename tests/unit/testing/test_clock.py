"""The manual clock: time that moves when a test says so, and lets everything happen on the way."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from asyncsched import DefinitionError
from asyncsched.testing import ManualClock

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def test_it_stands_still_until_it_is_advanced(clock: ManualClock) -> None:
    before = (clock.time(), clock.monotonic())
    await asyncio.sleep(0.01)
    assert (clock.time(), clock.monotonic()) == before


async def test_advancing_moves_both_clocks(clock: ManualClock) -> None:
    start = clock.now()
    await clock.advance(90)
    await clock.advance(timedelta(minutes=1, microseconds=1))
    assert clock.now() - start == timedelta(seconds=150, microseconds=1)
    assert clock.monotonic() == 150.000001


async def test_many_small_steps_do_not_drift(clock: ManualClock) -> None:
    for _ in range(1000):
        await clock.advance(0.1)
    assert clock.monotonic() == 100.0


async def test_it_starts_where_it_is_told_to() -> None:
    start = datetime(2030, 5, 5, tzinfo=UTC)
    assert ManualClock(start).now() == start
    with pytest.raises(DefinitionError, match="tzinfo=UTC"):
        ManualClock(datetime(2030, 5, 5))


async def test_timers_fire_in_order_each_at_its_time(clock: ManualClock) -> None:
    fired: list[tuple[str, float]] = []
    for name, when in (("b", 2.0), ("a", 1.0), ("c", 2.0), ("late", 9.0)):
        clock.call_at(when, lambda name=name: fired.append((name, clock.monotonic())))  # type: ignore[misc]  # mypy infers no type for a lambda's default
    await clock.advance(5)
    assert fired == [("a", 1.0), ("b", 2.0), ("c", 2.0)]


async def test_a_timer_never_fires_early(clock: ManualClock) -> None:
    fired: list[int] = []
    clock.call_at(1.0, lambda: fired.append(1))
    await clock.advance(0.999999)
    assert fired == []
    await clock.advance(0.000001)
    assert fired == [1]


async def test_a_cancelled_timer_does_not_fire(clock: ManualClock) -> None:
    fired: list[int] = []
    timer = clock.call_at(1.0, lambda: fired.append(1))
    assert clock.sleepers == 1
    timer.cancel()
    timer.cancel()
    assert clock.sleepers == 0
    await clock.advance(2)
    assert fired == []


async def test_a_timer_for_the_past_fires_without_an_advance(clock: ManualClock) -> None:
    fired = asyncio.Event()
    clock.call_at(0.0, fired.set)
    await asyncio.wait_for(fired.wait(), 1)


async def test_what_is_woken_on_the_way_may_sleep_again(clock: ManualClock) -> None:
    ticks: list[float] = []

    async def tick() -> None:
        for _ in range(5):
            await clock.sleep(1)
            ticks.append(clock.monotonic())

    task = asyncio.get_running_loop().create_task(tick())
    await clock.advance(10)
    assert ticks == [1, 2, 3, 4, 5]
    await task


async def test_sleeping_for_no_time_returns(clock: ManualClock) -> None:
    await clock.sleep(0)
    await clock.sleep(-1)


async def test_a_cancelled_sleeper_leaves_no_timer(clock: ManualClock) -> None:
    task = asyncio.get_running_loop().create_task(clock.sleep(5))
    await clock.wait_sleepers(1)
    task.cancel()
    await asyncio.wait([task])
    assert clock.sleepers == 0


async def test_setting_the_wall_clock_lets_no_time_pass(clock: ManualClock) -> None:
    fired: list[int] = []
    clock.call_at(1.0, lambda: fired.append(1))
    for year in (2040, 2020):
        await clock.set(datetime(year, 1, 1, tzinfo=UTC))
        assert clock.now() == datetime(year, 1, 1, tzinfo=UTC)
        assert clock.monotonic() == 0
    assert fired == []
    await clock.advance(1)
    assert clock.now() == datetime(2020, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert fired == [1]


async def test_setting_it_to_a_naive_datetime_is_refused(clock: ManualClock) -> None:
    with pytest.raises(DefinitionError, match="tzinfo=UTC"):
        await clock.set(datetime(2026, 1, 1))


@pytest.mark.parametrize("by", [-1, timedelta(seconds=-1), float("nan"), "5"])
async def test_it_cannot_be_advanced_backwards(clock: ManualClock, by: float) -> None:
    with pytest.raises(DefinitionError):
        await clock.advance(by)


async def test_waiting_for_sleepers_ends_when_there_are_so_many(clock: ManualClock) -> None:
    loop = asyncio.get_running_loop()
    waiting = loop.create_task(clock.wait_sleepers(3))
    sleepers = [loop.create_task(clock.sleep(5)) for _ in range(3)]
    await asyncio.wait_for(waiting, 1)
    assert clock.sleepers == 3
    await clock.advance(5)
    await asyncio.gather(*sleepers)


async def test_waiting_for_sleepers_gives_up(clock: ManualClock) -> None:
    with pytest.raises(TimeoutError):
        await clock.wait_sleepers(1, timeout=0.02)
