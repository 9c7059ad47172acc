"""run_due: run what is due, and return how it ended."""

import asyncio
from collections.abc import Callable

import pytest

from asyncsched import RunFailed, RunSucceeded, Scheduler, every, once
from asyncsched.testing import ManualClock, run_due

pytestmark = pytest.mark.anyio


@pytest.fixture
def ran(scheduler: Scheduler) -> list[str]:
    ran: list[str] = []

    @scheduler.task(name="note")
    async def note(word: str) -> str:
        ran.append(word)
        return word

    return ran


async def test_it_runs_what_is_due_and_nothing_else(scheduler: Scheduler, ran: list[str]) -> None:
    await scheduler.add_job("note", args=["a"])
    await scheduler.add_job("note", once(delay=5), args=["later"])
    [end] = await run_due(scheduler)
    assert isinstance(end, RunSucceeded)
    assert (end.result, ran) == ("a", ["a"])


async def test_it_tells_failures_in_their_order(scheduler: Scheduler, ran: list[str]) -> None:
    @scheduler.task(name="fails")
    async def fails() -> None:
        raise ValueError("spoilt")

    await scheduler.pause()
    await scheduler.add_job(fails)
    await scheduler.add_job("note", args=["a"])
    ends = await run_due(scheduler)
    assert {type(end) for end in ends} == {RunFailed, RunSucceeded}
    assert [end.error for end in ends if isinstance(end, RunFailed)] == ["ValueError: spoilt"]


async def test_it_runs_what_becomes_due_meanwhile(scheduler: Scheduler, ran: list[str]) -> None:
    @scheduler.task(name="chain")
    async def chain(n: int) -> None:
        if n:
            await scheduler.enqueue(chain, n - 1)

    await scheduler.enqueue(chain, 5)
    assert len(await run_due(scheduler)) == 6


async def test_it_tells_the_end_of_what_ran_already_when_it_was_called(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    gate = asyncio.Event()

    @scheduler.task(name="gated")
    async def gated() -> None:
        await gate.wait()

    await scheduler.add_job(gated, id="x")
    await clock.advance(0)
    gate.set()
    assert [end.job_id for end in await run_due(scheduler)] == ["x"]


async def test_each_fire_time_that_was_reached_is_run(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    await scheduler.pause()
    await scheduler.add_job("note", every(60), args=["tick"])
    for _ in range(3):
        await clock.advance(60)
        assert len(await run_due(scheduler)) == 1
    assert ran == ["tick"] * 3


async def test_a_paused_scheduler_is_paused_again(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    await scheduler.pause()
    await scheduler.add_job("note", args=["a"])
    await run_due(scheduler)
    assert scheduler.state == "paused"
    await scheduler.add_job("note", args=["b"])
    await clock.advance(60)
    assert ran == ["a"]


async def test_with_nothing_due_it_returns_at_once(scheduler: Scheduler, ran: list[str]) -> None:
    await scheduler.add_job("note", once(delay=5), args=["later"])
    assert await asyncio.wait_for(run_due(scheduler), 1) == []


async def test_what_was_claimed_ahead_of_its_time_is_not_due(clock: ManualClock) -> None:
    async with Scheduler(clock=clock, lookahead=10) as scheduler:

        @scheduler.task(name="t")
        async def task() -> None: ...

        await scheduler.add_job(task, once(delay=5))
        await clock.advance(1)
        assert len(scheduler.running()) == 1
        assert await asyncio.wait_for(run_due(scheduler), 1) == []
        await clock.advance(4)


async def test_a_run_that_does_not_end_is_a_timeout(scheduler: Scheduler, clock: ManualClock) -> None:
    @scheduler.task(name="long")
    async def long() -> None:
        await clock.sleep(100)

    await scheduler.add_job(long)
    with pytest.raises(TimeoutError):
        await run_due(scheduler, timeout=0.1)


async def test_it_works_in_real_time_on_each_store(make_scheduler: Callable[[], Scheduler]) -> None:
    async with make_scheduler() as scheduler:
        await scheduler.pause()

        @scheduler.task(name="t")
        async def task() -> int:
            return 5

        for _ in range(20):
            await scheduler.enqueue(task)
        ends = await run_due(scheduler)
    assert [end.result for end in ends] == [5] * 20
