"""What a careless reimplementation of the others would miss."""

from datetime import UTC, datetime, timedelta

import pytest

from asyncsched import Carry, Retry, Scheduler, current_run, every
from asyncsched.testing import ManualClock, run_due
from tests.unit.conftest import MakeScheduler

pytestmark = pytest.mark.anyio

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NEW_YEAR + timedelta(seconds=seconds)


async def test_attempts_are_counted_over_a_restart_and_anew_after_a_success(
    make_scheduler: MakeScheduler,
) -> None:
    attempts: list[tuple[datetime, int]] = []

    def make(seconds: float) -> Scheduler:
        scheduler = make_scheduler(clock=ManualClock(at(seconds)))

        @scheduler.task(name="work")
        async def work() -> None:
            run = current_run()
            attempts.append((run.fire_time, run.attempt))
            if len(attempts) < 5:
                raise ValueError("not yet")

        return scheduler

    async with make(0) as scheduler:
        await scheduler.add_job("work", every(60), id="a", retry=Retry(max_attempts=3, base=5, multiplier=1))
    for seconds, failures in ((60, 1), (65, 2), (70, 3), (120, 4), (125, 0), (180, 0)):
        async with make(seconds) as scheduler:
            await run_due(scheduler)
            assert (await scheduler.get_job("a")).consecutive_failures == failures
    assert attempts == [(at(60), 1), (at(60), 2), (at(60), 3), (at(120), 1), (at(120), 2), (at(180), 1)]


async def test_what_a_run_leaves_behind_is_there_for_the_next_one_after_a_restart(
    make_scheduler: MakeScheduler,
) -> None:
    found: list[int | None] = []

    def make(seconds: float) -> Scheduler:
        scheduler = make_scheduler(clock=ManualClock(at(seconds)))

        @scheduler.task(name="count")
        async def count() -> Carry:
            found.append(current_run().carried)
            return Carry((found[-1] or 0) + 1)

        return scheduler

    async with make(0) as scheduler:
        await scheduler.add_job("count", every(60), id="a")
    for seconds in (60, 120, 180):
        async with make(seconds) as scheduler:
            await run_due(scheduler)
    assert found == [None, 1, 2]
