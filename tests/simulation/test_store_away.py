"""A store that is away: seen, waited for without a storm, and nothing that happened meanwhile is dropped.

==========================================================  ==========================================================
known from other schedulers                                 promised here
==========================================================  ==========================================================
the database restarts and the worker never claims again     calls are repeated with backoff; degraded, then recovered
one store that is down stops the jobs of the others         a worker for each store
a result that could not be written is dropped               ends are held, and written when the store is back
ends pile up without bound meanwhile                        claiming stops at the bound
==========================================================  ==========================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import pytest

from asyncsched import (
    JobSpec,
    MemoryStore,
    Retry,
    RunSucceeded,
    Scheduler,
    StoreDegraded,
    StoreEvent,
    StoreRecovered,
    StoreUnavailable,
    current_run,
    every,
    once,
)
from asyncsched.contract import Filter, JobStore, Record
from asyncsched.testing import ManualClock
from asyncsched.worker import MAX_UNSETTLED
from tests.support.faulty import FaultyStore
from tests.support.running import running
from tests.support.stores import SharedMemory

pytestmark = pytest.mark.anyio

T = TypeVar("T")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore(MemoryStore())


def make(store: JobStore | Mapping[str, JobStore], clock: ManualClock, **options: object) -> Scheduler:
    scheduler = Scheduler(store, clock=clock, **options)  # type: ignore[arg-type]  # whatever a test gives

    @scheduler.task(name="work")
    async def work() -> str:
        return current_run().job_id

    return scheduler


async def test_a_store_that_goes_away_and_comes_back_is_told_once_each(
    clock: ManualClock, store: FaultyStore
) -> None:
    scheduler = make(store, clock)
    told: list[StoreEvent] = []
    scheduler.on(StoreEvent, told.append)
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", every(10))
        await clock.advance(25)
        assert told == []
        store.faults.go_away()
        await clock.advance(100)
        assert [type(event) for event in told] == [StoreDegraded]
        store.faults.come_back()
        await clock.advance(60)
    assert [type(event) for event in told] == [StoreDegraded, StoreRecovered]
    assert told[0].store == "default"
    assert told[0].error


async def test_jobs_run_again_within_the_longest_pause_after_the_store_is_back(
    clock: ManualClock, store: FaultyStore
) -> None:
    scheduler = make(store, clock, store_retry=Retry(base=0.1, max_delay=10.0, spread=0.5))
    ran: list[float] = []

    @scheduler.task(name="notes")
    async def notes() -> None:
        ran.append(clock.monotonic())

    async with running(scheduler, clock=clock):
        await scheduler.add_job("notes", every(10))
        await clock.advance(5)
        store.faults.go_away()
        await clock.advance(3600)
        assert ran == []
        store.faults.come_back()
        await clock.advance(20)
    assert 0 < ran[0] - 3605 <= 10


async def test_a_store_that_is_away_is_asked_with_growing_and_spread_pauses(
    clock: ManualClock, store: FaultyStore
) -> None:
    asked: list[float] = []
    scheduler = make(store, clock, store_retry=Retry(base=0.1, max_delay=10.0, spread=0.5))
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", every(10))
        await clock.advance(5)
        store.faults.go_away()
        store.faults.calls.clear()
        for _ in range(36_000):
            before = store.faults.calls["claim"] + store.faults.calls["get"]
            await clock.advance(0.1)
            if store.faults.calls["claim"] + store.faults.calls["get"] > before:
                asked.append(clock.monotonic())
        store.faults.come_back()
    pauses = [later - earlier for earlier, later in pairwise(asked)]
    assert len(asked) <= 3600 / 5 + 20
    assert pauses[0] <= 0.5
    assert max(pauses) <= 10.2
    assert len({round(pause, 1) for pause in pauses[20:]}) > 5


async def test_the_jobs_of_other_stores_run_on_time_while_one_is_away(clock: ManualClock) -> None:
    away, other = FaultyStore(MemoryStore()), FaultyStore(MemoryStore())
    scheduler = make({"default": away, "other": other}, clock, concurrency=5)
    ran: list[tuple[str, float]] = []

    @scheduler.task(name="notes")
    async def notes() -> None:
        ran.append((current_run().store, clock.monotonic()))

    async with running(scheduler, clock=clock):
        await scheduler.add_jobs([JobSpec("notes", every(10), store=name) for name in ("default", "other")])
        await clock.advance(5)
        away.faults.go_away()
        await clock.advance(100)
        assert ran == [("other", at) for at in range(10, 101, 10)]
        away.faults.come_back()


@pytest.mark.parametrize("queues", [{"default": None}, {"default": 3, "other": None}])
async def test_claims_of_several_stores_at_once_start_no_more_than_there_are_slots(
    clock: ManualClock, queues: dict[str, int | None]
) -> None:
    class Slow(FaultyStore):
        async def _through(self, method: str, call: Callable[[], Awaitable[T]]) -> T:
            if method == "claim":
                await clock.sleep(0.1)
            return await super()._through(method, call)

    stores: dict[str, JobStore] = {
        "default": Slow(SharedMemory()),
        "other": Slow(SharedMemory()),
        "quick": SharedMemory(),
    }
    scheduler = make(stores, clock, queues=queues, concurrency=10 if queues["default"] else 3)
    under_way = most = 0
    ran = Counter[str]()

    @scheduler.task(name="works")
    async def works() -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            await clock.sleep(5)
            ran[current_run().store] += 1
        finally:
            under_way -= 1

    async with running(scheduler, clock=clock):
        await scheduler.add_jobs([JobSpec("works", store=name) for name in stores for _ in range(10)])
        await clock.advance(21)
    left = [record for store in stores.values() for record in await store.page(Filter(), 100)]
    assert [record for record in left if record.holder is not None] == []
    assert len([record for record in left if record.task == "works"]) == 30 - ran.total()
    async with running(scheduler, clock=clock):
        await clock.advance(50)
    assert most == 3
    assert dict(ran) == dict.fromkeys(stores, 10)


async def test_ends_that_are_held_for_one_store_take_no_slots_from_the_others(clock: ManualClock) -> None:
    away, other = FaultyStore(MemoryStore()), FaultyStore(MemoryStore())
    scheduler = make({"default": away, "other": other}, clock, concurrency=5)
    ran: list[str] = []

    @scheduler.task(name="notes")
    async def notes() -> None:
        ran.append(current_run().store)

    async with running(scheduler, clock=clock):
        await scheduler.add_jobs([JobSpec("notes", once(delay=1)) for _ in range(50)])
        away.faults.go_away({"settle"})
        await clock.advance(5)
        assert ran == ["default"] * 50
        await scheduler.add_jobs([JobSpec("notes", store="other") for _ in range(50)])
        await clock.advance(0)
        assert ran[50:] == ["other"] * 50
        away.faults.come_back()
        await clock.advance(20)


async def test_no_end_is_dropped_while_the_store_is_away_and_each_is_written_once(
    clock: ManualClock, store: FaultyStore
) -> None:
    scheduler = make(store, clock, concurrency=200)
    async with running(scheduler, clock=clock):
        await scheduler.add_jobs([JobSpec("work", once(delay=1), id=f"job-{n}") for n in range(600)])
        store.faults.go_away({"settle"})
        await clock.advance(3600)
        store.faults.come_back()
        await clock.advance(15)
        runs = await scheduler.history.runs(limit=10_000)
        assert await scheduler.get_jobs() == []
    assert Counter((run.outcome, run.job_id, run.result) for run in runs) == {
        ("succeeded", f"job-{n}", f"job-{n}"): 1 for n in range(600)
    }


async def test_claiming_stops_when_too_many_ends_are_unwritten_and_goes_on_when_they_are(
    clock: ManualClock, store: FaultyStore
) -> None:
    scheduler = make(store, clock, concurrency=100)
    async with running(scheduler, clock=clock):
        await scheduler.add_jobs([JobSpec("work", once(delay=1)) for _ in range(3 * MAX_UNSETTLED)])
        store.faults.go_away({"settle"})
        await clock.advance(10)
        claimed = sum(store.faults.claimed)
        assert MAX_UNSETTLED <= claimed < MAX_UNSETTLED + 100
        store.faults.calls.clear()
        await clock.advance(600)
        assert sum(store.faults.claimed) == claimed
        assert store.faults.calls["claim"] == 0
        store.faults.come_back()
        await clock.advance(15)
        runs = await scheduler.history.runs(limit=10_000)
    assert len({run.job_id for run in runs}) == len(runs) == 3 * MAX_UNSETTLED


async def test_a_run_that_fails_while_the_store_is_away_is_retried_when_it_is_back(
    clock: ManualClock, store: FaultyStore
) -> None:
    scheduler = make(store, clock)
    attempts: list[int] = []

    @scheduler.task(name="fails once", retry=Retry(max_attempts=3, base=5))
    async def fails_once() -> None:
        attempts.append(current_run().attempt)
        if len(attempts) == 1:
            raise ValueError

    async with running(scheduler, clock=clock):
        await scheduler.add_job("fails once", once(delay=1))
        store.faults.go_away({"settle"})
        await clock.advance(60)
        assert attempts == [1]
        store.faults.come_back()
        await clock.advance(30)
        assert await scheduler.get_jobs() == []
    assert attempts == [1, 2]


async def test_calls_of_users_fail_visibly_while_the_store_is_away_and_work_when_it_is_back(
    clock: ManualClock, store: FaultyStore
) -> None:
    scheduler = make(store, clock)
    async with running(scheduler, clock=clock):
        store.faults.go_away()
        with pytest.raises(StoreUnavailable):
            await scheduler.add_job("work", once(delay=5), id="job")
        with pytest.raises(StoreUnavailable):
            await scheduler.get_jobs()
        store.faults.come_back()
        assert await scheduler.get_jobs() == []
        await scheduler.add_job("work", once(delay=5), id="job")
        await clock.advance(60)
        assert [run.job_id for run in await scheduler.history.runs()] == ["job"]


async def test_a_scheduler_whose_store_is_away_stops_within_its_bounds(
    clock: ManualClock, store: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = make(store, clock)
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", once(delay=1))
        store.faults.go_away({"settle"})
        await clock.advance(5)
        assert len(store.faults.settled) > 0
    assert scheduler.state == "stopped"
    assert "runs will be made again" in caplog.text


async def test_a_start_with_a_store_that_is_away_fails_and_leaves_nothing_behind(
    clock: ManualClock, store: FaultyStore
) -> None:
    scheduler = make(store, clock)
    store.faults.go_away()
    with pytest.raises(StoreUnavailable):
        await scheduler.start()
    assert scheduler.state == "stopped"
    store.faults.come_back()
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", id="job")
        await clock.advance(1)
        assert [run.job_id for run in await scheduler.history.runs()] == ["job"]


async def test_a_store_that_is_away_for_renewals_only_is_told_as_recovered_when_they_get_through(
    clock: ManualClock,
) -> None:
    """A worker without a free slot has no claims to notice it by."""
    store = FaultyStore(SharedMemory())
    scheduler = make(store, clock, concurrency=1, lease=30)
    told: list[StoreEvent] = []
    scheduler.on(StoreEvent, told.append)

    @scheduler.task(name="long")
    async def long() -> None:
        await clock.sleep(600)

    async with running(scheduler, clock=clock):
        await scheduler.add_job("long")
        await clock.advance(5)
        store.faults.go_away({"renew"})
        await clock.advance(12)
        store.faults.come_back()
        await clock.advance(30)
        assert [type(event) for event in told] == [StoreDegraded, StoreRecovered]
        assert len(scheduler.running()) == 1


async def test_a_claim_that_overtakes_the_repetition_of_a_settlement_begins_the_next_run(
    clock: ManualClock,
) -> None:
    """The settlement was applied and its reply lost: the job may be due again before the settlement is repeated."""
    store = FaultyStore(SharedMemory())
    pauses = Retry(delays=(5.0,), base=5.0)
    scheduler = make(store, clock, store_retry=pauses, lease=30.0)
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", every(1.0), id="job")
        store.faults.lost["settle"] = 1
        await clock.advance(20.0)
        runs = await scheduler.history.runs("job")
    assert {run.outcome for run in runs} == {"succeeded"}
    # But for the seconds in which nothing could be written.
    assert len(runs) >= 15
    assert len({run.fire_time for run in runs}) == len(runs)


async def test_the_run_of_a_job_that_was_removed_does_not_end_the_job_that_was_added_under_its_id(
    clock: ManualClock,
) -> None:
    store = SharedMemory()
    scheduler = Scheduler(store, clock=clock, lease=30.0)
    begun: list[int] = []

    @scheduler.task(name="slow")
    async def slow() -> None:
        begun.append(current_run().fence)
        await clock.sleep(60.0)

    async with running(scheduler, clock=clock):
        await scheduler.add_job("slow", id="job")
        await clock.advance(1.0)
        await scheduler.remove_job("job")
        await scheduler.add_job("slow", id="job")
        await clock.advance(1.0)
        assert len(begun) == 2
        await clock.advance(120.0)
        runs = await scheduler.history.runs("job")
    # What runs for a job that is no more has lost it to the new one.
    assert [run.fence for run in runs if run.outcome == "succeeded"] == [begun[1]]


async def test_a_store_that_takes_long_to_say_which_queues_are_paused_does_not_keep_jobs_from_running(
    clock: ManualClock,
) -> None:
    class Slow(FaultyStore):
        async def get(self, ids: Sequence[str]) -> dict[str, Record]:
            await clock.sleep(8)
            return await super().get(ids)

    scheduler = make(Slow(MemoryStore()), clock, queues={"default": 5})
    ran: list[str] = []
    scheduler.on(RunSucceeded, lambda event: ran.append(event.job_id))
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", once(delay=1), id="job")
        await clock.advance(30)
        assert ran == ["job"]
