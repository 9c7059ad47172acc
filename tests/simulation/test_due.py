"""What a tick costs, and what comes due when.

==========================================================  ==========================================================
known from other schedulers                                 promised here
==========================================================  ==========================================================
a paused, overdue job makes the loop spin                   what is held back causes no claims
scanning all keys each tick                                 idle is idle, however much is stored
one job or key at its limit starves unrelated jobs          a full queue leaves the others alone
a job one second late is silently skipped                   late jobs run
a lost notification leaves jobs waiting for a restart       the poll is bounded
timeouts of ten seconds that nobody asked for               no default timeout
a concurrency counter leaks                                 every way to end a run gives its slot back
one query per run                                           two round trips for a batch
==========================================================  ==========================================================
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from asyncsched import JobSpec, MemoryStore, RunFinished, Scheduler, current_run, every, once
from asyncsched.testing import ManualClock
from tests.support.faulty import FaultyStore
from tests.support.running import running

pytestmark = pytest.mark.anyio

HOUR_S = 3600.0
#: Looks at the memory store in an hour: one each 27 to 33 s.
MOST_POLLS = 140


def make(store: FaultyStore, clock: ManualClock, **options: object) -> Scheduler:
    return Scheduler(store, clock=clock, **options)  # type: ignore[arg-type]  # whatever a test gives


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore(MemoryStore())


# -- what waits costs nothing ----------------------------------------------------------------------------------------------


async def test_a_paused_overdue_job_does_not_make_the_loop_spin(
    clock: ManualClock, store: FaultyStore
) -> None:
    scheduler = make(store, clock)
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(nothing)
        await scheduler.add_job("work", every(10), id="paused")
        await clock.advance(5)
        await scheduler.pause_job("paused")
        store.faults.calls.clear()
        await clock.advance(HOUR_S)
        assert store.faults.calls["claim"] <= MOST_POLLS
        assert store.faults.calls["settle"] == 0


async def test_an_overdue_job_of_a_paused_queue_does_not_make_the_loop_spin(
    clock: ManualClock, store: FaultyStore
) -> None:
    scheduler = make(store, clock, queues=("default", "resting"))
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(nothing)
        await scheduler.pause(queue="resting")
        await scheduler.add_job("work", queue="resting")
        store.faults.calls.clear()
        await clock.advance(HOUR_S)
        assert store.faults.calls["claim"] <= MOST_POLLS


async def test_an_overdue_job_of_a_queue_that_is_not_served_does_not_make_the_loop_spin(
    clock: ManualClock, store: FaultyStore
) -> None:
    scheduler = make(store, clock)
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(nothing)
        await scheduler.add_job("work", queue="of others")
        store.faults.calls.clear()
        await clock.advance(HOUR_S)
        assert store.faults.calls["claim"] <= MOST_POLLS


async def test_an_overdue_job_does_not_make_a_paused_scheduler_spin(
    clock: ManualClock, store: FaultyStore
) -> None:
    scheduler = make(store, clock)
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(nothing)
        await scheduler.pause()
        await scheduler.add_job("work")
        store.faults.calls.clear()
        await clock.advance(HOUR_S)
        assert store.faults.calls["claim"] == 0


async def test_an_overdue_job_does_not_make_a_fully_occupied_scheduler_spin(
    clock: ManualClock, store: FaultyStore
) -> None:
    scheduler = make(store, clock, concurrency=1)
    async with running(scheduler, clock=clock):

        @scheduler.task(name="long")
        async def long() -> None:
            await clock.sleep(2 * HOUR_S)

        await scheduler.add_jobs([JobSpec("long"), JobSpec("long")])
        await clock.advance(1)
        store.faults.calls.clear()
        await clock.advance(HOUR_S)
        assert store.faults.calls["claim"] == 0


async def test_what_is_due_and_not_to_be_had_is_asked_for_with_growing_pauses(
    clock: ManualClock, store: FaultyStore
) -> None:
    """Other instances have locked it, or are taking it at this moment."""
    scheduler = make(store, clock)
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(nothing)
        store.faults.is_withholding = True
        await scheduler.add_job("work")
        await clock.advance(10)
        store.faults.calls.clear()
        await clock.advance(60)
        assert 60 <= store.faults.calls["claim"] <= 120
        store.faults.is_withholding = False
        await clock.advance(1.5)
        assert await scheduler.get_jobs() == []


async def test_an_idle_scheduler_asks_its_store_less_than_once_in_ten_seconds(
    clock: ManualClock, store: FaultyStore
) -> None:
    scheduler = make(store, clock)
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(nothing)
        await scheduler.add_jobs([JobSpec("work", once(delay=10 * HOUR_S)) for _ in range(10_000)])
        await clock.advance(1)
        store.faults.calls.clear()
        await clock.advance(HOUR_S)
        assert sum(store.faults.calls.values()) <= HOUR_S / 10


async def test_a_batch_costs_two_round_trips_and_not_two_for_each_run(
    clock: ManualClock, store: FaultyStore
) -> None:
    scheduler = make(store, clock, concurrency=200)
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(nothing)
        await scheduler.add_jobs([JobSpec("work", once(delay=10)) for _ in range(100)])
        await clock.advance(9)
        store.faults.calls.clear()
        await clock.advance(2)
        assert store.faults.claimed == [100]
        assert store.faults.settled == [100]
        assert set(store.faults.calls) <= {"claim", "settle", "get"}
        assert store.faults.calls["claim"] <= 2


# -- what is due runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [timedelta(seconds=1), timedelta(days=400)], ids=["a second", "a year"])
async def test_a_job_that_is_late_runs(clock: ManualClock, store: FaultyStore, late: timedelta) -> None:
    scheduler = make(store, clock)
    ended: list[RunFinished] = []
    scheduler.on(RunFinished, ended.append)
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(nothing)
        due_at = clock.now() - late
        await scheduler.add_job("work", once(at=due_at))
        await clock.advance(0)
    assert [(end.outcome, end.fire_time) for end in ended] == [("succeeded", due_at)]


async def test_a_full_queue_starves_no_other(clock: ManualClock, store: FaultyStore) -> None:
    scheduler = make(store, clock, queues={"slow": 2, "default": None}, concurrency=10)
    ran: list[str] = []
    async with running(scheduler, clock=clock):

        @scheduler.task(name="slow")
        async def slow() -> None:
            await clock.sleep(HOUR_S)

        @scheduler.task(name="quick")
        async def quick() -> None:
            ran.append(current_run().job_id)

        await scheduler.add_jobs([JobSpec("slow", queue="slow", priority=9) for _ in range(500)])
        await clock.advance(1)
        await scheduler.add_jobs([JobSpec("quick", id=f"quick-{n}") for n in range(20)])
        await clock.advance(0)
        assert len(ran) == 20
        assert len(scheduler.running()) == 2


async def test_a_lost_hint_delays_a_job_by_one_poll_at_most(clock: ManualClock, store: FaultyStore) -> None:
    scheduler = make(store, clock, poll_interval=10, poll_jitter=0.1)
    ran: list[float] = []
    async with running(scheduler, clock=clock):

        @scheduler.task(name="work")
        async def work() -> None:
            ran.append(clock.time())

        await clock.advance(1)
        store.faults.is_mute = True
        added_at = clock.time()
        await scheduler.add_job("work")
        await clock.advance(60)
    assert len(ran) == 1
    assert 0 < ran[0] - added_at <= 11


async def test_there_is_no_timeout_that_nobody_asked_for(clock: ManualClock, store: FaultyStore) -> None:
    scheduler = make(store, clock)
    ended: list[RunFinished] = []
    scheduler.on(RunFinished, ended.append)
    async with running(scheduler, clock=clock):

        @scheduler.task(name="long")
        async def long() -> None:
            await clock.sleep(100 * HOUR_S)

        await scheduler.add_job("long")
        await clock.advance(100 * HOUR_S + 1)
    assert [(end.outcome, end.duration) for end in ended] == [("succeeded", 100 * HOUR_S)]


# -- slots -----------------------------------------------------------------------------------------------------------------


async def test_every_way_to_end_a_run_gives_its_slot_back(clock: ManualClock, store: FaultyStore) -> None:
    scheduler = make(store, clock, concurrency=3, queues={"default": 3})
    together = 0
    most = 0
    async with running(scheduler, clock=clock):

        @scheduler.task(name="fails")
        async def fails() -> None:
            raise ValueError

        @scheduler.task(name="times out", timeout=1)
        async def times_out() -> None:
            await clock.sleep(60)

        @scheduler.task(name="ignores", timeout=1)
        async def ignores() -> None:
            """Goes on for a while though it is cancelled, and is abandoned."""
            for _ in range(2):
                try:
                    await clock.sleep(60)
                except asyncio.CancelledError:
                    continue

        @scheduler.task(name="counts")
        async def counts() -> None:
            nonlocal together, most
            together += 1
            most = max(most, together)
            await clock.sleep(1)
            together -= 1

        names = ["fails", "times out", "ignores"]
        await scheduler.add_jobs([JobSpec(name) for name in names * 5])
        await scheduler.add_job("fails", id="removed while it runs")
        await scheduler.remove_job("removed while it runs")
        await clock.advance(600)
        assert scheduler.running() == []
        await scheduler.add_jobs([JobSpec("counts") for _ in range(12)])
        await clock.advance(3.5)
        assert most == 3
        assert len(scheduler.running()) == 3


async def nothing() -> None:
    """A task that returns at once."""
