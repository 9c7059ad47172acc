"""Ending a run from anywhere: that very run, and no later one."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from asyncsched import (
    JobLookupError,
    JobNotRunning,
    Retry,
    RetryLater,
    RunCancelled,
    RunLookupError,
    Scheduler,
    Snooze,
    current_run,
    every,
    once,
)
from asyncsched.contract import Claim, Claimed, Renewal, Update
from asyncsched.stores import store_from_url
from asyncsched.testing import ManualClock
from tests.servers.running import Servers
from tests.support.stores import SharedMemory, url_of
from tests.unit.conftest import MakeScheduler
from tests.unit.test_runs import at

pytestmark = pytest.mark.anyio


def with_work(scheduler: Scheduler, clock: ManualClock) -> list[str]:
    """A scheduler with the task ``work``; what its runs had to say."""
    said: list[str] = []

    @scheduler.task(name="work")
    async def work() -> str:
        said.append(current_run().id)
        try:
            await clock.sleep(1000)
        except asyncio.CancelledError:
            said.append(f"cancelled: {current_run().cancel_reason}")
            raise
        return "done"

    return said


async def test_the_run_of_a_one_shot_is_ended_and_the_job_is_over(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    said = with_work(scheduler, clock)
    heard: list[RunCancelled] = []
    scheduler.on(RunCancelled, heard.append)
    receipt = await scheduler.enqueue("work")
    await clock.advance(5)
    await scheduler.cancel_job(receipt.job_id)
    await clock.advance(0)
    [run] = await scheduler.history.runs()
    assert (run.outcome, run.error, said) == (
        "cancelled",
        "cancelled on request",
        [run.id, "cancelled: cancel"],
    )
    assert await scheduler.get_jobs() == []
    assert [f"{event.job_id}@{event.fence}" for event in heard] == [run.id]


async def test_a_recurring_job_goes_on_at_its_next_fire_time_and_the_run_is_not_made_again(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    with_work(scheduler, clock)
    await scheduler.add_job("work", every(60), id="x", retry=Retry(max_attempts=5), overlap="skip")
    await clock.advance(61)
    [run] = scheduler.running("x")
    await scheduler.cancel_run(run.id)
    await clock.advance(1)
    assert (await scheduler.get_job("x")).next_fire_time == at(120)
    assert [r.outcome for r in await scheduler.history.runs("x")] == ["cancelled"]
    await clock.advance(60)
    assert [r.fire_time for r in scheduler.running("x")] == [at(120)]


@pytest.mark.parametrize(
    "answer", [ValueError("the rollback failed"), RetryLater(1), Snooze(at(50))], ids=repr
)
async def test_a_run_that_answers_its_cancellation_with_an_error_is_not_made_again(
    scheduler: Scheduler, clock: ManualClock, answer: Exception
) -> None:
    ran: list[str] = []

    @scheduler.task(name="fails to clean up", retry=Retry(base=1, max_attempts=3))
    async def fails_to_clean_up() -> None:
        ran.append(current_run().id)
        try:
            await clock.sleep(1000)
        except asyncio.CancelledError:
            raise answer from None

    receipt = await scheduler.enqueue("fails to clean up")
    await clock.advance(5)
    await scheduler.cancel_job(receipt.job_id)
    await clock.advance(100)
    [run] = await scheduler.history.runs()
    assert (run.outcome, run.error, ran) == ("cancelled", "cancelled on request", [run.id])
    assert type(answer).__name__ in (run.traceback or ""), "what went wrong is told still"
    assert await scheduler.get_jobs() == []


async def test_a_later_run_is_never_ended_in_the_place_of_the_one_that_was_meant(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    with_work(scheduler, clock)
    await scheduler.add_job("work", every(2000), id="x")
    await clock.advance(2001)
    [first] = scheduler.running("x")
    await clock.advance(2000)
    [second] = scheduler.running("x")
    with pytest.raises(JobNotRunning, match="has ended already: succeeded"):
        await scheduler.cancel_run(first.id)
    await clock.advance(10)
    assert [run.id for run in scheduler.running("x")] == [second.id]


async def test_what_is_unknown_and_what_does_not_run_are_told_apart(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    with_work(scheduler, clock)
    await scheduler.add_job("work", once(delay=100), id="later")
    with pytest.raises(JobNotRunning, match="'later'"):
        await scheduler.cancel_job("later")
    with pytest.raises(JobLookupError):
        await scheduler.cancel_job("nowhere")
    for id in ("later@1", "nowhere@1", "nonsense", "later@\u00b2", "later@" + 5000 * "9"):
        with pytest.raises(RunLookupError):
            await scheduler.cancel_run(id)


async def test_a_child_of_an_overlapping_job_can_be_ended_by_its_id(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    with_work(scheduler, clock)
    await scheduler.add_job("work", every(60), id="x", overlap="allow", max_instances=3)
    await clock.advance(125)
    first, second = sorted(scheduler.running("x"), key=lambda run: run.fire_time)
    await scheduler.cancel_run(second.id)
    await clock.advance(0)
    assert [run.id for run in scheduler.running("x")] == [first.id]
    await scheduler.cancel_job("x")
    await clock.advance(0)
    assert scheduler.running("x") == []


class Mute(SharedMemory):
    """Tells nobody of what others write."""

    def on_hint(self, callback: Callable[[float | None], None]) -> Callable[[], None]:
        return lambda: None


async def test_without_hints_a_run_in_another_instance_is_ended_within_a_third_of_its_lease(
    clock: ManualClock,
) -> None:
    store = Mute()
    async with Scheduler(store, clock=clock, lease=30) as holder:
        said = with_work(holder, clock)
        await holder.add_job("work", every(3600), id="x", run_immediately=True)
        await clock.advance(15)
        async with Scheduler(store, clock=clock, queues=()) as other:
            other.register(_nothing, "work")
            await other.cancel_job("x")
            await clock.advance(10)
            assert said[1:] == ["cancelled: cancel"]
            [run] = await other.history.runs("x")
            assert (run.outcome, run.error) == ("cancelled", "cancelled on request")
            assert (await other.get_job("x")).next_fire_time == at(3600)
            with pytest.raises(JobNotRunning):
                await other.cancel_job("x")


async def _nothing() -> None: ...


async def test_on_every_store_a_run_is_ended(make_scheduler: MakeScheduler) -> None:
    async with make_scheduler() as scheduler:
        begun, ended = asyncio.Event(), asyncio.Event()

        @scheduler.task(name="work")
        async def work() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        receipt = await scheduler.enqueue("work")
        async with asyncio.timeout(60):
            await begun.wait()
            await scheduler.cancel_job(receipt.job_id)
            await ended.wait()
        await scheduler.wait_job(receipt.job_id, timeout=60)
        [run] = await scheduler.history.runs(receipt.job_id)
        assert run.outcome == "cancelled"
        assert await scheduler.get_jobs() == []


async def test_where_the_store_has_hints_a_run_in_another_instance_is_ended_at_once(
    store_kind: str, tmp_path: Path, servers: Servers
) -> None:
    url = url_of(store_kind, tmp_path, servers)
    mine = store_from_url(url)
    theirs = mine if store_kind == "memory" else store_from_url(url)
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    # By a renewal of its lease it would be heard of after 20 s.
    async with Scheduler(mine, lease=60) as holder, Scheduler(theirs, lease=60, queues=()) as other:
        if not mine.capabilities.push_hints:
            pytest.skip(f"{store_kind} has no hints")
        holder.register(work, "work")
        other.register(_nothing, "work")
        receipt = await holder.enqueue("work")
        async with asyncio.timeout(60):
            await begun.wait()
        async with asyncio.timeout(15):
            await other.cancel_job(receipt.job_id)
            await ended.wait()
        await other.wait_job(receipt.job_id, timeout=60)
        assert [run.outcome for run in await other.history.runs(receipt.job_id)] == ["cancelled"]


class Counting(SharedMemory):
    """Knows how often it was asked to renew and to claim."""

    def __init__(self) -> None:
        super().__init__()
        self.renewals = self.claims = 0

    async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
        self.renewals += 1
        return await super().renew(claims, lease_s)

    async def claim(
        self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
    ) -> Claimed:
        self.claims += 1
        return await super().claim(queues, token, limit, lease_s, ahead_s)


async def test_many_updates_of_what_is_held_are_looked_at_together(clock: ManualClock) -> None:
    store = Counting()
    async with Scheduler(store, clock=clock, lease=30) as holder:
        with_work(holder, clock)
        await holder.add_job("work", every(3600), id="x", run_immediately=True)
        await clock.advance(1)
        store.renewals = store.claims = 0
        for _ in range(15):
            for _ in range(5):
                await _touch(store, "x")
            await clock.advance(0.01)
        soon = (store.renewals, store.claims)
        await clock.advance(1)
        at_last = (store.renewals, store.claims)
        await holder.cancel_job("x")
    # In 0.15 s: the first at once, the others once in a tenth of a second.
    assert (soon, at_last) == ((2, 2), (3, 3))


async def _touch(store: SharedMemory, id: str) -> None:
    record = (await store.get([id]))[id]
    assert await store.update(
        Update(
            id=id,
            version=record.version,
            body=record.body,
            queue=record.queue,
            priority=record.priority,
            wake_at=record.wake_at,
            hold=record.hold,
        )
    )


async def test_a_run_that_is_asked_for_while_a_cancelled_one_still_ends_is_made(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    ran: list[str] = []

    @scheduler.task(name="slow to end")
    async def slow_to_end() -> None:
        ran.append(current_run().id)
        if len(ran) == 1:
            try:
                await clock.sleep(1000)
            finally:
                await clock.sleep(10)

    await scheduler.add_job("slow to end", once(delay=1), id="x", cancel_grace=60)
    await clock.advance(2)
    await scheduler.cancel_job("x")
    await clock.advance(1)
    await scheduler.run_job("x")
    await clock.advance(20)
    assert len(ran) == 2
    assert [run.outcome for run in await scheduler.history.runs("x")] == ["succeeded", "cancelled"]
    assert await scheduler.get_jobs() == []
