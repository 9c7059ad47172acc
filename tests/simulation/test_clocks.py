"""Clocks that are set and clocks that are wrong. Elapsed time is monotonic, and every instant is the store's.

==========================================================  ==========================================================
known from other schedulers                                 promised here
==========================================================  ==========================================================
a wall clock set backwards stops or doubles jobs            timeouts, leases and runs under way do not notice; fire
                                                            times are not repeated, and go on with the clock
instances with skewed clocks fire early, twice, or steal    a store with a clock of its own decides; a store on the
live leases                                                 host's clock survives that clock being set
==========================================================  ==========================================================
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from asyncsched import RunFinished, Scheduler, current_run, every, once
from asyncsched.contract import JobStore
from asyncsched.stores.memory import MemoryStore
from asyncsched.testing import ManualClock
from tests.support.clocks import SkewedClock
from tests.support.faulty import FaultyStore
from tests.support.running import running
from tests.support.stores import SharedMemory

pytestmark = pytest.mark.anyio

JUMPS = [
    timedelta(days=-1),
    timedelta(hours=-1),
    timedelta(seconds=-3),
    timedelta(hours=1),
    timedelta(days=1),
]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=[MemoryStore, SharedMemory], ids=["without leases", "with leases"])
def store(request: pytest.FixtureRequest) -> JobStore:
    made: JobStore = request.param()
    return made


@pytest.mark.parametrize("jump", JUMPS, ids=str)
async def test_a_run_under_way_is_neither_cut_nor_doubled_when_the_wall_clock_is_set(
    clock: ManualClock, store: JobStore, jump: timedelta
) -> None:
    scheduler = Scheduler(store, clock=clock, lease=30)
    begun: list[float] = []
    ended: list[float] = []
    async with running(scheduler, clock=clock):

        @scheduler.task(name="long")
        async def long() -> None:
            begun.append(clock.monotonic())
            await clock.sleep(300)
            ended.append(clock.monotonic())

        await scheduler.add_job("long")
        await clock.advance(100)
        await clock.set(clock.now() + jump)
        await clock.advance(400)
        assert await scheduler.get_jobs() == []
    assert begun == [0]
    assert ended == [300]


@pytest.mark.parametrize("jump", JUMPS, ids=str)
async def test_a_timeout_is_elapsed_time_whatever_the_wall_clock_says(
    clock: ManualClock, store: JobStore, jump: timedelta
) -> None:
    scheduler = Scheduler(store, clock=clock)
    cut: list[float] = []
    async with running(scheduler, clock=clock):

        @scheduler.task(name="long", timeout=60)
        async def long() -> None:
            try:
                await clock.sleep(3600)
            finally:
                cut.append(clock.monotonic())

        await scheduler.add_job("long")
        await clock.advance(10)
        await clock.set(clock.now() + jump)
        await clock.advance(100)
    assert cut == [60]


@pytest.mark.parametrize("jump", JUMPS[:3], ids=str)
async def test_no_fire_time_is_repeated_when_the_wall_clock_is_set_backwards(
    clock: ManualClock, store: JobStore, jump: timedelta
) -> None:
    scheduler = Scheduler(store, clock=clock)
    ended: list[RunFinished] = []
    scheduler.on(RunFinished, ended.append)
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(nothing)
        await scheduler.add_job("work", every(60))
        await clock.advance(605)
        await clock.set(clock.now() + jump)
        await clock.advance(-jump)
        await clock.advance(600)
    fire_times = [end.fire_time for end in ended]
    assert len(fire_times) >= 19
    assert fire_times == sorted(set(fire_times))


async def test_jobs_go_on_at_once_when_the_wall_clock_is_set_back_to_where_it_was(
    clock: ManualClock, store: JobStore
) -> None:
    """As after a time server's mistake."""
    scheduler = Scheduler(store, clock=clock)
    ran: list[float] = []
    async with running(scheduler, clock=clock):

        @scheduler.task(name="work")
        async def work() -> None:
            ran.append(clock.monotonic())

        await scheduler.add_job("work", every(60))
        await clock.advance(90)
        await clock.set(clock.now() - timedelta(days=30))
        await clock.advance(5)
        await clock.set(clock.now() + timedelta(days=30))
        ran.clear()
        await clock.advance(600)
    assert len(ran) == 10


@pytest.mark.parametrize("jump", [timedelta(minutes=30), timedelta(days=1)], ids=str)
async def test_what_came_due_by_setting_the_wall_clock_forwards_runs_once_within_a_poll(
    clock: ManualClock, store: JobStore, jump: timedelta
) -> None:
    scheduler = Scheduler(store, clock=clock, poll_interval=10)
    ran: list[str] = []
    async with running(scheduler, clock=clock):

        @scheduler.task(name="work")
        async def work() -> None:
            ran.append(current_run().job_id)

        await scheduler.add_job("work", once(delay=1000), id="once")
        await scheduler.add_job("work", every(minutes=20), id="often")
        await clock.advance(5)
        await clock.set(clock.now() + jump)
        await clock.advance(12)
    assert sorted(ran) == ["often", "once"]


@pytest.mark.parametrize("jump", JUMPS, ids=str)
async def test_setting_the_wall_clock_does_not_make_the_loop_spin(
    clock: ManualClock, store: JobStore, jump: timedelta
) -> None:
    counted = FaultyStore(store)
    scheduler = Scheduler(counted, clock=clock, poll_interval=10)
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(nothing)
        await scheduler.add_job("work", every(60))
        await clock.advance(90)
        counted.faults.calls.clear()
        await clock.set(clock.now() + jump)
        await clock.advance(600)
    assert counted.faults.calls["claim"] <= 120


# -- a store with a clock of its own ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew_s", [-3600.0, -2.0, 2.0, 3600.0])
async def test_an_instance_whose_clock_is_wrong_runs_jobs_at_the_store_s_time(
    clock: ManualClock, skew_s: float
) -> None:
    store = SharedMemory(now=clock.time)
    scheduler = Scheduler(store, clock=SkewedClock(clock, skew_s))
    ran: list[float] = []
    async with running(scheduler, clock=clock):

        @scheduler.task(name="work")
        async def work() -> None:
            ran.append(clock.monotonic())

        await scheduler.add_job("work", once(at=clock.now() + timedelta(seconds=100)))
        await scheduler.add_job("work", once(delay=200))
        await clock.advance(300)
    assert ran == pytest.approx([100, 200], abs=0.01)
    assert ran[0] >= 100


@pytest.mark.parametrize("step_s", [-40.0, 40.0])
async def test_jobs_follow_the_store_s_clock_when_that_is_set(clock: ManualClock, step_s: float) -> None:
    """As when a database moves to another server."""
    step = 0.0
    store = SharedMemory(now=lambda: clock.time() + step)
    scheduler = Scheduler(store, clock=clock, poll_interval=5)
    ran: list[float] = []
    async with running(scheduler, clock=clock):

        @scheduler.task(name="work")
        async def work() -> None:
            ran.append(clock.monotonic())

        await scheduler.add_job("work", once(delay=100))
        await clock.advance(10)
        step = step_s
        await clock.advance(10)
        assert scheduler.now().timestamp() == pytest.approx(clock.time() + step_s, abs=0.1)
        await clock.advance(200)
    assert ran == pytest.approx([100 - step_s], abs=0.1)


@pytest.mark.parametrize("skew_s", [-3600.0, -2.0, 2.0, 3600.0])
async def test_instances_with_different_clocks_run_each_fire_time_once(
    clock: ManualClock, skew_s: float
) -> None:
    store = SharedMemory(now=clock.time)
    ended: list[RunFinished] = []

    def make(skew_s: float) -> Scheduler:
        scheduler = Scheduler(store, clock=SkewedClock(clock, skew_s))
        scheduler.task(name="work")(nothing)
        scheduler.on(RunFinished, ended.append)
        return scheduler

    right, wrong = make(0.0), make(skew_s)
    async with running(right, wrong, clock=clock):
        await wrong.add_job("work", every(60))
        await clock.advance(600.5)
    fire_times = [end.fire_time for end in ended]
    assert len(fire_times) == len(set(fire_times)) == 10


@pytest.mark.parametrize("skew_s", [-3600.0, 3600.0])
async def test_an_instance_whose_clock_is_wrong_steals_no_live_lease(
    clock: ManualClock, skew_s: float
) -> None:
    store = SharedMemory(now=clock.time)
    begun: list[str] = []

    def make(name: str, skew_s: float) -> Scheduler:
        scheduler = Scheduler(store, clock=SkewedClock(clock, skew_s), lease=30, id=name)

        @scheduler.task(name="long")
        async def long() -> None:
            begun.append(current_run().instance)
            await clock.sleep(300)

        return scheduler

    right, wrong = make("right", 0.0), make("wrong", skew_s)
    async with running(right, wrong, clock=clock):
        await wrong.pause()
        await right.add_job("long")
        await clock.advance(1)
        await wrong.resume()
        await clock.advance(400)
        assert await right.get_jobs() == []
    assert begun == ["right"]


async def nothing() -> None:
    """A task that returns at once."""
