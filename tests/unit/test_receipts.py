"""Receipts: what became of the run that was asked for."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from asyncsched import (
    DefinitionError,
    JobLookupError,
    MemoryStore,
    Retry,
    RunLookupError,
    RunTimeout,
    Scheduler,
    TaskFailed,
    every,
    manual,
    once,
)
from asyncsched.contract import Record
from asyncsched.testing import ManualClock
from asyncsched.triggers import AnyTrigger
from tests.support.stores import SharedMemory
from tests.unit.conftest import MakeScheduler

pytestmark = pytest.mark.anyio


class Odd(Exception):
    """One that nobody else knows."""


async def give(value: int) -> int:
    return value


async def test_on_every_store_the_result_is_what_the_task_returned(make_scheduler: MakeScheduler) -> None:
    async with make_scheduler() as scheduler:
        task = scheduler.register(give)
        receipts = [await scheduler.enqueue(task, number) for number in range(5)]
        assert [await receipt.result(timeout=20) for receipt in receipts] == list(range(5))
        assert await receipts[0].result(timeout=20) == 0, "it may be asked for again"
        assert await receipts[0].status() == "succeeded"


async def test_its_retries_are_waited_for(scheduler: Scheduler, clock: ManualClock) -> None:
    attempts = 0

    @scheduler.task(name="third", retry=Retry(base=10, max_attempts=3))
    async def third() -> str:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise ValueError(attempts)
        return "at last"

    receipt = await scheduler.enqueue("third")
    waiting = asyncio.create_task(receipt.result())
    await clock.advance(5)
    assert not waiting.done()
    assert await receipt.status() == "scheduled"
    await clock.advance(40)
    assert await waiting == "at last"


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (ValueError("no such order"), ValueError, "no such order"),
        (KeyError("k"), KeyError, "k"),
        (Odd("who knows"), TaskFailed, "Odd: who knows"),
        (SystemError(), SystemError, "^$"),
        (TimeoutError("of the database"), TaskFailed, "^TimeoutError: of the database"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "why"), TaskFailed, "UnicodeDecodeError"),
    ],
)
async def test_the_error_of_the_task_is_raised(
    scheduler: Scheduler, clock: ManualClock, error: Exception, expected: type[Exception], text: str
) -> None:
    @scheduler.task(name="fails")
    async def fails() -> None:
        raise error

    receipt = await scheduler.enqueue("fails")
    await clock.advance(0)
    with pytest.raises(expected, match=text):
        await receipt.result()
    assert await receipt.status() == "failed"


async def test_a_run_that_took_too_long_raises_run_timeout(scheduler: Scheduler, clock: ManualClock) -> None:
    @scheduler.task(name="long", timeout=5)
    async def long() -> None:
        await clock.sleep(1000)

    receipt = await scheduler.enqueue("long")
    await clock.advance(6)
    with pytest.raises(RunTimeout, match="longer than its timeout of 5 s"):
        await receipt.result()
    assert await receipt.status() == "timed_out"


async def test_who_waits_no_longer_may_come_back(scheduler: Scheduler, clock: ManualClock) -> None:
    @scheduler.task(name="long")
    async def long() -> str:
        await clock.sleep(100)
        return "done"

    receipt = await scheduler.enqueue("long")
    waiting = asyncio.create_task(receipt.result(timeout=timedelta(seconds=10)))
    await clock.advance(11)
    with pytest.raises(TimeoutError):
        await waiting
    assert await receipt.status() == "running"
    await clock.advance(100)
    assert await receipt.result() == "done"


async def test_the_run_of_a_recurring_job_that_was_asked_for_has_its_own_result(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    numbers = iter(range(100))

    @scheduler.task(name="count")
    async def count() -> int:
        return next(numbers)

    await scheduler.add_job("count", every(60), id="x")
    await clock.advance(61)
    receipt = await scheduler.run_job("x")
    await clock.advance(120)
    assert await receipt.result() == 1
    assert receipt.fire_time.timestamp() % 60 == 1


async def test_it_works_from_another_process(clock: ManualClock) -> None:
    store = SharedMemory()
    async with Scheduler(store, clock=clock) as worker, Scheduler(store, clock=clock, queues=()) as client:
        worker.register(give, "give")
        client.register(give, "give")
        receipt = await client.enqueue("give", 7)
        again = await client.receipt(receipt.job_id)
        waiting = asyncio.create_task(receipt.result())
        await clock.advance(1)
        assert await waiting == 7
        assert await again.result() == 7
        assert await (await worker.receipt(receipt.job_id)).result() == 7


async def test_a_run_can_be_cancelled_before_and_while_it_runs(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    @scheduler.task(name="long")
    async def long() -> None:
        await clock.sleep(100)

    later = await scheduler.add_job("long", once(delay=50), id="later")
    receipt = await scheduler.receipt("later")
    assert (receipt.fire_time, await receipt.status()) == (later.next_fire_time, "scheduled")
    assert await receipt.cancel()
    assert await receipt.status() == "removed"
    assert not await receipt.cancel()
    with pytest.raises(JobLookupError):
        await receipt.result()

    receipt = await scheduler.enqueue("long")
    await clock.advance(1)
    assert await receipt.cancel()
    await clock.advance(0)
    with pytest.raises(TaskFailed, match="cancelled on request"):
        await receipt.result()
    assert not await receipt.cancel()


async def test_a_run_that_ends_while_it_is_looked_for_is_not_cancelled_any_more(clock: ManualClock) -> None:
    class OneLook(MemoryStore):
        """Removes a job once it was looked at so often."""

        looks = 0

        async def get(self, ids: Sequence[str]) -> dict[str, Record]:
            found = await super().get(ids)
            if "brief" in ids:
                self.looks -= 1
                if self.looks == 0:
                    await self.remove(["brief"])
            return found

    store = OneLook()
    async with Scheduler(store, clock=clock, queues=()) as scheduler:
        scheduler.register(give, "give")
        for looks in range(1, 3):
            await scheduler.add_job("give", id="brief", args=[1], on_conflict="keep")
            receipt = await scheduler.receipt("brief")
            store.looks = looks
            assert not await receipt.cancel()


async def test_a_failed_run_is_not_cancelled_any_more(scheduler: Scheduler, clock: ManualClock) -> None:
    @scheduler.task(name="fails")
    async def fails() -> None:
        raise ValueError

    receipt = await scheduler.enqueue("fails")
    await clock.advance(0)
    assert not await receipt.cancel()
    assert (await scheduler.get_job(receipt.job_id)).state == "failed"


async def test_without_a_history_it_says_so(clock: ManualClock) -> None:
    async with Scheduler(clock=clock, history=False) as scheduler:
        scheduler.register(give, "give")
        receipt = await scheduler.enqueue("give", 7)
        with pytest.raises(DefinitionError, match="history=False"):
            await receipt.result()


async def test_a_run_that_the_history_has_forgotten_says_so(scheduler: Scheduler, clock: ManualClock) -> None:
    scheduler.register(give, "give")
    await scheduler.add_job("give", every(60), id="x", args=[1])
    receipt = await scheduler.receipt("x")
    await clock.advance(1)
    with pytest.raises(RunLookupError, match="retention"):
        await receipt.result()


async def test_a_receipt_of_nothing_is_refused(scheduler: Scheduler) -> None:
    with pytest.raises(JobLookupError, match="'none'"):
        await scheduler.receipt("none")


@pytest.mark.parametrize("trigger", [manual(), every(hours=5)], ids=str)
async def test_the_retries_of_a_run_of_a_recurring_job_are_waited_for(
    scheduler: Scheduler, clock: ManualClock, trigger: AnyTrigger
) -> None:
    attempts = 0

    @scheduler.task(name="third", retry=Retry(base=10, max_attempts=3))
    async def third() -> str:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise ValueError(attempts)
        return "at last"

    await scheduler.add_job("third", trigger, id="x")
    receipt = await scheduler.run_job("x")
    waiting = asyncio.create_task(receipt.result())
    for _ in range(50):
        await clock.advance(1)
    assert await waiting == "at last"


async def test_a_run_that_is_asked_for_while_a_retry_is_pending_is_that_retry(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    attempts = 0

    @scheduler.task(name="second", retry=Retry(base=1000, max_attempts=3))
    async def second() -> int:
        nonlocal attempts
        attempts += 1
        if attempts < 2:
            raise ValueError(attempts)
        return attempts

    await scheduler.add_job("second", every(hours=5), id="x", run_immediately=True)
    await clock.advance(10)
    receipt = await scheduler.run_job("x")
    waiting = asyncio.create_task(receipt.result())
    for _ in range(10):
        await clock.advance(1)
    assert await waiting == 2
    assert await receipt.status() == "succeeded"


@pytest.mark.parametrize("trigger", [manual(), every(hours=5), once(delay=5000)], ids=str)
async def test_a_run_that_was_asked_for_and_has_failed_says_so_while_its_job_goes_on(
    scheduler: Scheduler, clock: ManualClock, trigger: AnyTrigger
) -> None:
    @scheduler.task(name="fails", retry=Retry(base=10, max_attempts=2))
    async def fails() -> None:
        raise ValueError

    await scheduler.add_job("fails", trigger, id="x")
    receipt = await scheduler.run_job("x")
    await clock.advance(1)
    assert await receipt.status() == "scheduled"
    await clock.advance(20)
    assert await receipt.status() == "failed"
    assert not await receipt.cancel()
    assert (await scheduler.get_job("x")).state == "scheduled"


async def test_a_run_that_has_ended_ends_no_later_one(scheduler: Scheduler, clock: ManualClock) -> None:
    with_long_runs(scheduler, clock)
    await scheduler.add_job("long", every(100), id="x")
    receipt = await scheduler.run_job("x")
    await clock.advance(51)
    assert await receipt.result() == "done"
    await clock.advance(51)
    assert [run.fire_time.second for run in scheduler.running("x")] == [40]
    assert not await receipt.cancel()
    await clock.advance(50)
    assert [run.outcome for run in await scheduler.history.runs("x")] == ["succeeded", "succeeded"]


async def test_a_run_that_waits_for_another_one_ends_not_that(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    with_long_runs(scheduler, clock)
    await scheduler.add_job("long", every(100), id="x")
    await clock.advance(101)
    asked, coming = await scheduler.run_job("x"), await scheduler.receipt("x")
    for receipt in (asked, coming):
        assert await receipt.status() == "scheduled"
        assert not await receipt.cancel()
    await clock.advance(50)
    assert [run.outcome for run in await scheduler.history.runs("x")] == ["succeeded"]
    assert await asked.status() == "running"
    assert await asked.cancel()
    await clock.advance(0)
    assert await asked.status() == "cancelled"


async def test_a_run_that_is_called_off_before_it_began_leaves_the_one_that_was_planned(
    clock: ManualClock,
) -> None:
    async with Scheduler(clock=clock) as scheduler:
        with_long_runs(scheduler, clock)
        await scheduler.add_job("long", once(delay=100), id="x")
        planned = await scheduler.receipt("x")
        await scheduler.pause()
        receipt = await scheduler.run_job("x")
        assert not await receipt.cancel(), "it is not taken back"
        await scheduler.resume()
        await clock.advance(1)
        assert await receipt.status() == "running"
        assert await receipt.cancel()
        await clock.advance(150)
        assert (await receipt.status(), await planned.status()) == ("cancelled", "succeeded")


async def test_a_run_that_is_held_ahead_of_its_time_is_called_off(clock: ManualClock) -> None:
    ran: list[str] = []
    async with Scheduler(SharedMemory(), clock=clock, lookahead=5) as scheduler:
        scheduler.register(ran.append, "note")
        await scheduler.add_job("note", once(delay=4), id="x", args=["x"])
        await clock.advance(1)
        assert (await scheduler.get_job("x")).state == "running"
        assert await (await scheduler.receipt("x")).cancel()
        await clock.advance(10)
    assert ran == []


async def test_the_run_of_an_overlapping_job_is_waited_for_and_is_cancelled_alone(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    with_long_runs(scheduler, clock)
    await scheduler.add_job("long", every(100), id="x", overlap="allow")
    await clock.advance(101)
    receipts = [await scheduler.run_job("x")]
    await clock.advance(1)
    receipts.append(await scheduler.run_job("x"))
    waiting = asyncio.create_task(receipts[1].result())
    await clock.advance(1)
    assert [await receipt.status() for receipt in receipts] == ["running", "running"]
    assert await receipts[0].cancel()
    await clock.advance(1)
    assert [await receipt.status() for receipt in receipts] == ["cancelled", "running"]
    assert not await receipts[0].cancel()
    assert len(scheduler.running("x")) == 2
    await clock.advance(50)
    assert await waiting == "done"


async def test_the_retries_of_a_run_of_an_overlapping_job_are_waited_for(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    attempts = 0

    @scheduler.task(name="second", retry=Retry(base=10, max_attempts=2))
    async def second() -> int:
        nonlocal attempts
        attempts += 1
        if attempts < 2:
            raise ValueError(attempts)
        return attempts

    await scheduler.add_job("second", manual(), id="x", overlap="allow")
    receipt = await scheduler.run_job("x")
    waiting = asyncio.create_task(receipt.result())
    await clock.advance(5)
    assert await receipt.status() == "scheduled"
    await clock.advance(10)
    assert await waiting == 2


async def test_a_wait_for_an_overlapping_job_ends_with_its_runs_though_the_job_ends_before(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    with_long_runs(scheduler, clock)
    await scheduler.add_job("long", every(10), id="x", overlap="allow", max_runs=2)
    await clock.advance(11)
    waiting = asyncio.create_task(scheduler.wait_job("x"))
    await clock.advance(58)
    assert await scheduler.get_jobs() == []
    assert not waiting.done()
    await clock.advance(2)
    assert await waiting is None


def with_long_runs(scheduler: Scheduler, clock: ManualClock) -> None:
    @scheduler.task(name="long")
    async def long() -> str:
        await clock.sleep(50)
        return "done"
