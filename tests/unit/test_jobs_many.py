"""Many jobs in one add_jobs(): more than go into one call of the store."""

import asyncio

import pytest

from asyncsched import JobSpec, MemoryStore, Scheduler, StoreError, once
from asyncsched.shelf import Shelf
from tests.support.faulty import FaultyStore
from tests.support.running import running
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

MANY = 11_000


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore(MemoryStore())


def specs(count: int) -> list[JobSpec]:
    return [JobSpec("work", once(delay=3600), id=f"job-{n}") for n in range(count)]


def adds_under_way() -> int:
    return sum(Shelf.add.__qualname__ in repr(task.get_coro()) for task in asyncio.all_tasks())


async def test_they_are_answered_in_their_order_though_several_calls_are_under_way(
    store: FaultyStore,
) -> None:
    scheduler = Scheduler(store)
    async with running(scheduler):
        scheduler.task(name="work")(_work)
        store.faults.calls.clear()
        added = await scheduler.add_jobs(specs(MANY))
        assert [job.id for job in added] == [f"job-{n}" for n in range(MANY)]
        assert store.faults.calls["add"] == 11
        again = await scheduler.add_jobs(specs(MANY + 1), errors="return")
        assert [isinstance(answer, Exception) for answer in again] == [True] * MANY + [False]


async def test_no_call_is_under_way_when_it_was_refused_or_cancelled(store: FaultyStore) -> None:
    scheduler = Scheduler(store)
    async with running(scheduler):
        scheduler.task(name="work")(_work)
        store.faults.refused["add"] = 1
        with pytest.raises(StoreError):
            await scheduler.add_jobs(specs(MANY))
        # The calls beside it have ended, and none came after them.
        assert len(await scheduler.get_jobs()) == 2_000
        assert not adds_under_way()

        store.faults.delay_s["add"] = 3600.0
        adding = asyncio.create_task(scheduler.add_jobs(specs(MANY), errors="return"))
        store.faults.calls.clear()
        await eventually(lambda: store.faults.calls["add"] == 3)
        assert adds_under_way()
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        assert not adds_under_way()


async def _work() -> None: ...
