"""Jobs whose runs may go on beside each other: overlap="allow"."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from asyncsched import (
    MemoryStore,
    Retry,
    Scheduler,
    Snooze,
    current_run,
    every,
)
from asyncsched.testing import ManualClock
from tests.support.running import running
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def scheduler(clock: ManualClock) -> Scheduler:
    return Scheduler(MemoryStore(), clock=clock)


class Work:
    """Runs of one length, and which of them are under way."""

    def __init__(self, clock: ManualClock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self.now: list[float] = []
        self.most = 0
        self.began: list[float] = []

    async def __call__(self) -> None:
        fire = since(current_run().fire_time)
        self.began.append(fire)
        self.now.append(fire)
        self.most = max(self.most, len(self.now))
        try:
            await self._clock.sleep(self._seconds)
        finally:
            self.now.remove(fire)


def since(instant: datetime | None) -> float:
    assert instant is not None
    return (instant - START).total_seconds()


async def decisions_of(scheduler: Scheduler) -> list[tuple[str, float, float, int]]:
    found = await scheduler.history.decisions("job", limit=1000)
    return sorted((d.reason, since(d.first), since(d.last), d.count) for d in found)


async def test_runs_go_on_beside_each_other(clock: ManualClock, scheduler: Scheduler) -> None:
    async with running(scheduler, clock=clock):
        work = Work(clock, 25)
        scheduler.task(name="work")(work.__call__)
        await scheduler.add_job("work", every(10), id="job", overlap="allow")
        await clock.advance(55)
        assert work.began == [10, 20, 30, 40, 50]
        assert sorted(work.now) == [40, 50] or sorted(work.now) == [30, 40, 50]
        assert work.most == 3
        assert await decisions_of(scheduler) == []


async def test_no_more_than_max_instances_are_under_way_and_the_others_are_decisions(
    clock: ManualClock, scheduler: Scheduler
) -> None:
    async with running(scheduler, clock=clock):
        work = Work(clock, 35)
        scheduler.task(name="work")(work.__call__)
        await scheduler.add_job("work", every(10), id="job", overlap="allow", max_instances=2)
        await clock.advance(75)
        assert work.most == 2
        assert work.began == [10, 20, 50, 60]
        assert await decisions_of(scheduler) == [("max_instances", fire, fire, 1) for fire in (30, 40, 70)]


async def test_each_run_is_in_the_history_of_the_job(clock: ManualClock, scheduler: Scheduler) -> None:
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(Work(clock, 25).__call__)
        await scheduler.add_job("work", every(10), id="job", overlap="allow")
        await clock.advance(58)
        runs = await scheduler.history.runs("job")
        assert sorted(since(run.fire_time) for run in runs) == [10, 20, 30]
        assert {run.outcome for run in runs} == {"succeeded"}
        assert (await scheduler.history.stats("job")).succeeded == 3


async def test_a_retry_of_one_run_does_not_hold_up_the_others(
    clock: ManualClock, scheduler: Scheduler
) -> None:
    async with running(scheduler, clock=clock):
        attempts: list[tuple[float, int]] = []

        @scheduler.task(name="fails")
        async def fails() -> None:
            run = current_run()
            attempts.append((since(run.fire_time), run.attempt))
            if since(run.fire_time) == 10:
                raise ValueError

        await scheduler.add_job("fails", every(10), id="job", overlap="allow", retry=Retry(delays=[25]))
        await clock.advance(39)
        assert attempts == [(10, 1), (20, 1), (30, 1), (10, 2)]
        assert await decisions_of(scheduler) == []


async def test_the_runs_of_a_job_that_is_removed_may_end_and_have_no_further_attempt(
    clock: ManualClock, scheduler: Scheduler
) -> None:
    async with running(scheduler, clock=clock):
        work = Work(clock, 25)

        @scheduler.task(name="fails", retry=Retry(delays=[1]))
        async def fails() -> None:
            await work()
            raise ValueError

        await scheduler.add_job("fails", every(10), id="job", overlap="allow")
        await clock.advance(31)
        assert work.now == [10, 20, 30]
        await scheduler.remove_job("job")
        await clock.advance(100)
        assert (work.began, work.now) == ([10, 20, 30], [])
        assert await scheduler.get_jobs() == []
        assert len(await scheduler.history.runs("job")) == 3


async def test_a_job_that_is_paused_begins_no_further_run(clock: ManualClock, scheduler: Scheduler) -> None:
    async with running(scheduler, clock=clock):
        work = Work(clock, 25)
        scheduler.task(name="work")(work.__call__)
        await scheduler.add_job("work", every(10), id="job", overlap="allow")
        await clock.advance(25)
        await scheduler.pause_job("job")
        await clock.advance(40)
        assert work.began == [10, 20]
        await scheduler.resume_job("job")
        await clock.advance(10)
        assert work.began == [10, 20, 70]
        assert await decisions_of(scheduler) == [("paused", 30, 60, 4)]


async def test_children_are_jittered_and_late_with_their_parent_only(clock: ManualClock) -> None:
    scheduler = Scheduler(
        MemoryStore(), clock=clock, defaults={"overlap": "allow", "jitter": 8, "misfire_grace": 5}
    )
    async with running(scheduler, clock=clock):
        work = Work(clock, 1)
        scheduler.task(name="work")(work.__call__)
        await scheduler.add_job("work", every(10), id="job")
        await clock.advance(105)
        runs = await scheduler.history.runs("job")
        assert len(runs) >= 9
        for run in runs:
            assert timedelta(0) <= run.due_at - run.fire_time < timedelta(seconds=8)
            assert run.started_at is not None
            assert run.started_at - run.due_at < timedelta(seconds=0.01)


async def test_an_overlapping_job_ends_after_so_many_fire_times_and_its_last_runs_go_on(
    clock: ManualClock, scheduler: Scheduler
) -> None:
    async with running(scheduler, clock=clock):
        work = Work(clock, 25)
        scheduler.task(name="work")(work.__call__)
        await scheduler.add_job("work", every(10), id="job", overlap="allow", max_runs=3)
        await clock.advance(100)
        assert work.began == [10, 20, 30]
        runs = await scheduler.history.runs("job")
        assert [run.outcome for run in runs] == ["succeeded"] * 3
        assert await scheduler.get_jobs() == []


async def test_after_an_outage_an_overlapping_job_catches_up_as_any_other(
    clock: ManualClock, scheduler: Scheduler
) -> None:
    async with running(scheduler, clock=clock):
        work = Work(clock, 25)
        scheduler.task(name="work")(work.__call__)
        await scheduler.add_job("work", every(10), id="job", overlap="allow", catch_up="all", max_catch_up=2)
        await clock.advance(15)
        await scheduler.pause()
        await clock.advance(50)
        await scheduler.resume()
        await clock.advance(1)
        assert work.began == [10, 50, 60]
        assert sorted(work.now) == [50, 60]
        assert await decisions_of(scheduler) == [("catch_up_limit", 20, 40, 3)]


async def test_runs_that_were_claimed_together_are_told_apart(tmp_path: Path) -> None:
    scheduler = Scheduler(f"sqlite:///{tmp_path}/jobs.db")
    again_at = datetime.now(UTC) + timedelta(seconds=1.5)
    under_way: list[str] = []
    async with running(scheduler):

        @scheduler.task(name="work")
        async def work() -> None:
            if datetime.now(UTC) < again_at:
                raise Snooze(again_at)
            under_way.append(current_run().id)
            await asyncio.sleep(60)

        await scheduler.add_job("work", every(0.2), id="job", overlap="allow", max_runs=2)
        await eventually(lambda: len(under_way) == 2)
        assert len({run.fence for run in scheduler.running()}) == 1
        one, other = sorted(under_way)
        assert one != other
        await scheduler.cancel_run(one)
        await eventually(lambda: [run.id for run in scheduler.running()] == [other])
        await scheduler.cancel_run(other)
        await eventually(lambda: not scheduler.running())
        runs = await scheduler.history.runs("job")
    assert sorted(run.id for run in runs if run.id in under_way) == [one, other]


async def test_a_retry_that_is_pending_when_a_job_becomes_an_overlapping_one_is_made_once(
    clock: ManualClock, scheduler: Scheduler
) -> None:
    attempts: list[tuple[float, int]] = []

    async def second() -> None:
        attempts.append((since(current_run().fire_time), current_run().attempt))
        if len(attempts) == 1:
            raise ValueError("it fails")

    scheduler.register(second, "second")
    async with running(scheduler, clock=clock, timeout=10):
        await scheduler.add_job("second", every(100), id="job", retry=Retry(max_attempts=3, base=30))
        await clock.advance(110)
        await scheduler.update_job("job", overlap="allow")
        for _ in range(10):
            await clock.advance(10)
        assert attempts == [(100, 1), (100, 2), (200, 1)]
        assert await decisions_of(scheduler) == []
