"""Stopping ends: what runs may finish, what does not is cancelled, and what ignores that is left behind and reported."""

from __future__ import annotations

import asyncio
import threading

import pytest

from asyncsched import JobSpec, Retry, Run, Scheduler, current_run, once
from asyncsched.testing import ManualClock
from tests.support.faulty import FaultyStore
from tests.support.running import running, stopped
from tests.support.stores import SharedMemory
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def test_stop_cancels_no_run_that_ends_within_the_drain(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock)
    ended: list[str] = []
    async with running(scheduler, clock=clock):

        @scheduler.task(name="work")
        async def work() -> None:
            await clock.sleep(20)
            ended.append("by itself")

        await scheduler.add_job("work")
        await clock.advance(1)
        took_s = await stopped(scheduler, clock, drain=30)
    assert ended == ["by itself"]
    assert 19 <= took_s < 20


async def test_stop_returns_though_a_run_goes_on_for_ever(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = Scheduler(clock=clock)
    over = asyncio.Event()
    async with running(scheduler, clock=clock):

        @scheduler.task(name="stubborn")
        async def stubborn() -> None:
            while not over.is_set():
                try:
                    await clock.sleep(1)
                except asyncio.CancelledError:
                    continue

        await scheduler.add_job("stubborn", cancel_grace=5)
        await clock.advance(1)
        took_s = await stopped(scheduler, clock, drain=10)
    over.set()
    await clock.advance(2)
    assert 15 <= took_s < 16
    assert "abandoned" in caplog.text


async def test_stop_returns_though_a_thread_goes_on(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread cannot be cancelled, and by default it is waited for as long as it takes; but not by stop."""
    scheduler = Scheduler(clock=clock)
    over = threading.Event()
    try:
        async with running(scheduler, clock=clock):

            @scheduler.task(name="stuck", executor="thread")
            def stuck() -> None:
                over.wait(30)

            await scheduler.add_job("stuck")
            await clock.advance(1)
            took_s = await stopped(scheduler, clock, drain=10)
    finally:
        over.set()
    assert 10 <= took_s < 16
    assert "abandoned" in caplog.text


async def test_nothing_is_claimed_once_stop_was_called(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock)
    begun: list[str] = []
    async with running(scheduler, clock=clock):

        @scheduler.task(name="work")
        async def work() -> None:
            begun.append(current_run().job_id)
            await clock.sleep(20)

        await scheduler.add_job("work", id="runs")
        await scheduler.add_job("work", once(delay=10), id="due during the drain")
        await clock.advance(1)
        stopping = asyncio.create_task(scheduler.stop(drain=30))
        await clock.advance(30)
        await stopping
    assert begun == ["runs"]


@pytest.mark.parametrize("cleans_up", [True, False])
async def test_a_run_that_a_stop_cancels_is_made_again_without_having_spent_an_attempt(
    clock: ManualClock, cleans_up: bool
) -> None:
    store = SharedMemory()
    attempts: list[int] = []

    def make() -> Scheduler:
        scheduler = Scheduler(store, clock=clock)

        @scheduler.task(name="work", retry=Retry(max_attempts=1))
        async def work() -> None:
            attempts.append(current_run().attempt)
            try:
                await clock.sleep(60)
            except asyncio.CancelledError:
                if cleans_up:
                    raise
                raise ConnectionError("the rollback failed") from None

        return scheduler

    first, second = make(), make()
    async with running(first, clock=clock):
        await first.add_job("work", id="job")
        await clock.advance(1)
    async with running(second, clock=clock):
        await clock.advance(61)
        runs: list[Run] = await second.history.runs("job")
    assert attempts == [1, 1]
    assert [run.outcome for run in runs] == ["succeeded", "cancelled"]


@pytest.mark.parametrize("turns", range(10))
async def test_a_run_that_had_not_taken_its_first_step_is_cancelled_at_once(
    clock: ManualClock, caplog: pytest.LogCaptureFixture, turns: int
) -> None:
    """The event loop throws a cancellation into a task that has not begun before the task's first line."""
    scheduler = Scheduler(clock=clock, concurrency=3)
    async with running(scheduler, clock=clock):

        @scheduler.task(name="short")
        async def short() -> None: ...

        @scheduler.task(name="long")
        async def long() -> None:
            await clock.sleep(60)

        await scheduler.add_jobs([JobSpec("short"), *[JobSpec("long")] * 5])
        for _ in range(turns):
            await asyncio.sleep(0)
        stopping = asyncio.create_task(scheduler.stop(drain=0))
        await clock.advance(0)
        assert stopping.done()
    assert "abandoned" not in caplog.text


async def test_a_drain_that_is_cut_while_a_claim_is_on_its_way_does_not_begin() -> None:
    store = FaultyStore(SharedMemory())
    scheduler = Scheduler(store)
    begun = asyncio.Event()
    await scheduler.start()

    @scheduler.task(name="long")
    async def long() -> None:
        begun.set()
        await asyncio.Event().wait()

    await scheduler.enqueue("long")
    await begun.wait()
    store.faults.delay_s["claim"] = 0.3
    asked = store.faults.calls["claim"]
    await scheduler.enqueue("long")
    await eventually(lambda: store.faults.calls["claim"] > asked)
    stopping = asyncio.create_task(scheduler.stop(drain=600))
    await asyncio.sleep(0)
    stopping.cancel()
    async with asyncio.timeout(10):
        await asyncio.wait([stopping])
    assert scheduler.state == "stopped"
