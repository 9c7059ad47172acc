"""Jobs whose task no live instance registers: seen by several looks, reported, and ended only where that was asked for."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncsched import (
    DefinitionError,
    JobHandedBack,
    JobOrphaned,
    JobPausedEvent,
    JobRemoved,
    JobSpec,
    MemoryStore,
    Scheduler,
    StoreUnavailable,
    every,
)
from asyncsched.codec import encode
from asyncsched.contract import Filter, Record, Update
from asyncsched.definition import OrphanForm
from asyncsched.ids import INSTANCES, instance_mark
from asyncsched.testing import ManualClock
from tests.support.faulty import FaultyStore
from tests.support.stores import SharedMemory
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

#: The tests' day: with an ``orphan_after`` of 14 of them there is one look in each.
DAY_S = 100.0
NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
Make = Callable[..., Scheduler]


async def work() -> None: ...


@pytest.fixture
def make(clock: ManualClock) -> Make:
    """Instances of the same service on a store as on a server, each with the tasks that its code has."""
    store = SharedMemory(clock.time)

    def instance(*tasks: str, **options: Any) -> Scheduler:
        options = {"orphan_after": 14 * DAY_S, "history": False, **options}
        scheduler = Scheduler(store, clock=clock, **options)
        for task in tasks:
            scheduler.register(work, task)
        return scheduler

    return instance


async def days(clock: ManualClock, count: float) -> None:
    """Let the time pass in steps, so that instances show themselves in between."""
    for _ in range(int(count * 4)):
        await clock.advance(DAY_S / 4)


def told(scheduler: Scheduler) -> list[JobOrphaned]:
    found: list[JobOrphaned] = []
    scheduler.on(JobOrphaned, found.append)
    return found


async def test_an_orphan_is_reported_after_two_weeks_and_left_as_it_is(
    make: Make, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with make("old", "new") as scheduler:
        await scheduler.add_job("old", every(days=900), id="orphan", tags=["a"])
        await scheduler.add_job("new", every(days=900), id="fine")
    scheduler = make("new")
    orphaned = told(scheduler)
    async with scheduler:
        await days(clock, 13.5)
        assert orphaned == []
        [waiting] = (await scheduler.plan()).orphans
        assert (waiting.task, waiting.store) == ("old", "default")
        assert waiting.since - NEW_YEAR < timedelta(seconds=DAY_S)
        assert "! task 'old' has jobs in 'default'" in str(await scheduler.plan())
        await days(clock, 1.5)
        [event] = orphaned
        assert (event.job_id, event.task, event.tags, event.since) == ("orphan", "old", ("a",), waiting.since)
        assert [job.state for job in await scheduler.get_jobs()] == ["scheduled", "scheduled"]
    [record] = [r for r in caplog.records if "no live instance" in r.message]
    assert "'old'" in record.message
    assert "'orphan'" in record.message


@pytest.mark.parametrize("policy", ["pause", "remove"])
async def test_an_orphan_is_paused_or_removed_where_that_was_asked_for(
    make_scheduler: Make, clock: ManualClock, policy: Any
) -> None:
    def instance(*tasks: str, **options: Any) -> Scheduler:
        scheduler = make_scheduler(clock=clock, **options)
        for task in tasks:
            scheduler.register(work, task)
        return scheduler

    async with instance("old", "new") as scheduler:
        await scheduler.add_job("old", every(days=900), id="orphan")
        await scheduler.add_job("new", every(days=900), id="fine")
    scheduler = instance("new", orphans=policy, orphan_after=700, heartbeat=20)
    events: list[str] = []
    for kind in (JobOrphaned, JobPausedEvent, JobRemoved):
        scheduler.on(kind, lambda event: events.append(f"{type(event).__name__} {event.job_id}"))
    async with scheduler:

        async def is_over() -> bool:
            await clock.advance(20)
            states = {job.id: job.state for job in await scheduler.get_jobs()}
            return states == (
                {"orphan": "paused", "fine": "scheduled"} if policy == "pause" else {"fine": "scheduled"}
            )

        await eventually(is_over)
        assert clock.time() - NEW_YEAR.timestamp() >= 700
        if policy == "pause":
            # A paused one is done with.
            await days(clock, 0.2)
        told = "JobPausedEvent orphan" if policy == "pause" else "JobRemoved orphan"
        # What has been written is told once its reply is here.
        await eventually(lambda: events == ["JobOrphaned orphan", told])


async def test_a_task_that_another_live_instance_registers_is_no_orphan(
    make: Make, clock: ManualClock
) -> None:
    other, own = make("old", id="other"), make("new", id="own", orphans="remove")
    async with other, own:
        await other.add_job("old", every(days=900), id="theirs")
        await days(clock, 16)
        assert [job.id for job in await own.get_jobs()] == ["theirs"]
        assert (await own.plan()).orphans == ()


async def test_a_client_and_a_dead_instance_run_nothing_so_they_do_not_count(
    make: Make, clock: ManualClock
) -> None:
    client = make("old", id="client", queues=())
    own = make("new", id="own")
    orphaned = told(own)
    async with client, own:
        await client.add_job("old", every(days=900), id="orphan")
        await days(clock, 15)
        assert {event.job_id for event in orphaned} == {"orphan"}


async def test_a_rolling_deploy_hands_back_and_ends_nothing(make: Make, clock: ManualClock) -> None:
    """Now the one is up, now the other: a task is known again before the time is over, and the count begins anew."""
    async with make("old", "new") as scheduler:
        await scheduler.add_job("old", every(3 * DAY_S), id="job")
    handed: list[JobHandedBack] = []
    for _ in range(3):
        scheduler = make("new", orphans="remove")
        orphaned = told(scheduler)
        scheduler.on(JobHandedBack, handed.append)
        async with scheduler:
            await days(clock, 10)
            assert [job.id for job in await scheduler.get_jobs()] == ["job"]
        async with make("old", "new", orphans="remove") as scheduler:
            await days(clock, 2)
            assert (await scheduler.plan()).orphans == ()
            assert (await scheduler.get_job("job")).last_run is not None
        assert orphaned == []
    assert {event.job_id for event in handed} == {"job"}


async def test_what_nobody_watched_for_long_is_not_counted(make: Make, clock: ManualClock) -> None:
    """All were down: what was registered before that is not known, so the count begins anew."""
    async with make("old", "new") as scheduler:
        await scheduler.add_job("old", every(days=900), id="job")
    async with make("new", orphans="remove") as scheduler:
        await days(clock, 1.5)
        assert len((await scheduler.plan()).orphans) == 1
    await clock.advance(30 * DAY_S)
    async with make("new", orphans="remove") as scheduler:
        await days(clock, 13)
        assert [job.id for job in await scheduler.get_jobs()] == ["job"]
        await days(clock, 3)
        assert await scheduler.get_jobs() == []


async def test_a_job_that_an_instance_which_hides_runs_is_no_orphan(make: Make, clock: ManualClock) -> None:
    hidden, own = make("old", heartbeat=None), make("new", orphans="remove")
    async with hidden, own:
        await hidden.add_job("old", every(DAY_S), id="theirs")
        await days(clock, 40)
        assert [job.id for job in await own.get_jobs()] == ["theirs"]


class CountingStore(SharedMemory):
    """Counts the pages of jobs that are read."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__(now)
        self.pages = 0

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        self.pages += where == Filter()
        return await super().page(where, limit, after)


async def test_one_instance_looks_once_a_day_and_reads_page_by_page(clock: ManualClock) -> None:
    store = CountingStore(clock.time)
    schedulers = [
        Scheduler(store, clock=clock, id=f"i{n}", orphan_after=14 * DAY_S, history=False) for n in range(4)
    ]
    for scheduler in schedulers:
        scheduler.register(work, "work")
        await scheduler.start()
    await schedulers[0].add_jobs([JobSpec("work", every(days=900)) for _ in range(1100)])
    before = store.pages
    await days(clock, 3)
    # 1100 jobs, and what is not shown, are three pages; on three days, and the first look.
    assert 9 <= store.pages - before <= 12
    for scheduler in schedulers:
        await scheduler.stop(0)


@pytest.mark.parametrize(
    "options",
    [{"orphans": "keep"}, {"orphan_after": 0}, {"orphan_after": -1}, {"orphan_after": "2w"}],
    ids=str,
)
def test_what_can_never_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        Scheduler(**options)


async def test_nobody_looks_where_that_is_not_wanted(make: Make, clock: ManualClock) -> None:
    async with make("old") as scheduler:
        await scheduler.add_job("old", every(days=900), id="job")
    scheduler = make("new", orphan_after=None, orphans="remove")
    orphaned = told(scheduler)
    async with scheduler:
        await days(clock, 20)
        assert (await scheduler.plan()).orphans == ()
    assert orphaned == []


async def test_a_look_that_the_store_refuses_is_made_later(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Away(MemoryStore):
        is_away = False

        async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
            if self.is_away:
                raise StoreUnavailable("away")
            return await super().page(where, limit, after)

    store = Away()
    async with Scheduler(store, clock=clock, orphan_after=1400) as scheduler:
        store.is_away = True
        await clock.advance(300)
        assert [r.levelno for r in caplog.records if "orphans of store" in r.message][:1] == [logging.WARNING]
        store.is_away = False
        await clock.advance(300)
        assert scheduler.is_running


async def test_a_job_that_others_keep_changing_does_not_end_the_looking(clock: ManualClock) -> None:
    class Contended(SharedMemory):
        is_contended = True

        async def update(self, update: Update) -> Record | None:
            return None if update.id == "job" and self.is_contended else await super().update(update)

    store = Contended(clock.time)
    async with Scheduler(store, clock=clock) as scheduler:
        scheduler.register(work, "old")
        await scheduler.add_job("old", every(days=900), id="job")
    async with Scheduler(
        store, clock=clock, orphans="pause", orphan_after=14 * DAY_S, history=False
    ) as scheduler:
        await days(clock, 16)
        store.is_contended = False
        await days(clock, 2)
        assert (await scheduler.get_job("job")).state == "paused"


async def test_nothing_is_an_orphan_beside_an_instance_whose_tasks_cannot_be_read(clock: ManualClock) -> None:
    """It is of a newer asyncsched."""
    store = SharedMemory(clock.time)
    async with Scheduler(store, clock=clock) as scheduler:
        scheduler.register(work, "old")
        await scheduler.add_job("old", every(days=900), id="job")
    mark = instance_mark("newer")
    await store.add([Record(mark, "b", INSTANCES, 0, INSTANCES, None, None, b"\x92\x63\x90", b"")])
    async with Scheduler(
        store, clock=clock, orphans="remove", orphan_after=14 * DAY_S, history=False
    ) as scheduler:
        await days(clock, 20)
        assert [job.id for job in await scheduler.get_jobs()] == ["job"]
        await store.remove([mark])
        await days(clock, 16)
        assert await scheduler.get_jobs() == []


async def test_looks_that_fail_half_way_count_for_nothing(clock: ManualClock) -> None:
    """The task was known all the while, but for the first look and the last one."""
    store = SharedMemory(clock.time)
    faulty = FaultyStore(store)

    def knows_it() -> Scheduler:
        other = Scheduler(store, clock=clock, id="other", orphan_after=None)
        other.register(work, "old")
        return other

    async with knows_it() as other:
        await other.add_job("old", every(days=900), id="job")
    async with Scheduler(
        faulty, clock=clock, orphans="remove", orphan_after=14 * DAY_S, history=False
    ) as own:
        await days(clock, 2)
        assert len((await own.plan()).orphans) == 1
        faulty.faults.go_away({"page"})
        async with knows_it():
            await days(clock, 13)
        faulty.faults.come_back()
        await days(clock, 2)
        assert [job.id for job in await own.get_jobs()] == ["job"]


async def test_an_instance_that_comes_while_a_look_is_about_to_act_keeps_its_jobs(clock: ManualClock) -> None:
    class Meeting(SharedMemory):
        other: Scheduler | None = None

        async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
            found = await super().page(where, limit, after)
            if where.task == "old" and self.other is not None and not self.other.is_running:
                await self.other.start()
            return found

    store = Meeting(clock.time)
    other = Scheduler(store, clock=clock, id="other", orphan_after=None, history=False)
    other.register(work, "old")
    async with other:
        await other.add_job("old", every(days=900), id="job")
    async with Scheduler(store, clock=clock, orphans="remove", orphan_after=14 * DAY_S, history=False) as own:
        store.other = other
        await days(clock, 16)
        assert other.is_running
        assert [job.id for job in await own.get_jobs()] == ["job"]
    await other.stop(0)


async def test_a_clock_that_was_ahead_once_does_not_put_the_looks_off(clock: ManualClock) -> None:
    store = CountingStore(clock.time)
    ahead = OrphanForm(clock.time() + 1e8)
    async with Scheduler(store, clock=clock, orphan_after=14 * DAY_S) as scheduler:
        await store.add([Record("#orphans", "b", "#orphans", 0, "#orphans", None, None, encode(ahead), b"")])
        assert await scheduler._orphans.look(scheduler._engine.shelf("default")) <= DAY_S
