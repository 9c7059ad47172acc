"""What the document of a cron library about keeping its jobs promises."""

from datetime import UTC, datetime, timedelta

import pytest

from asyncsched import MemoryStore, RunSucceeded, Scheduler, cron, every
from asyncsched.testing import ManualClock, run_due
from tests.unit.conftest import MakeScheduler

pytestmark = pytest.mark.anyio

MORNING = datetime(2026, 1, 17, 8, 0, tzinfo=UTC)


async def nothing() -> None: ...


async def test_after_a_restart_what_was_missed_is_caught_up_with_once_and_what_is_new_waits_for_its_time(
    make_scheduler: MakeScheduler,
) -> None:
    ran: list[str] = []

    def declare(scheduler: Scheduler, id: str) -> None:
        async def report() -> None:
            ran.append(id)

        scheduler.job(cron("0 9 * * *"), id=id)(scheduler.register(report, f"report {id}"))

    clock = ManualClock(MORNING)
    first = make_scheduler(clock=clock)
    declare(first, "daily-report")
    async with first:
        await first.pause()
        await clock.advance(3600)
        assert [end.fire_time for end in await run_due(first)] == [MORNING + timedelta(hours=1)]

    ran.clear()
    second = make_scheduler(clock=ManualClock(MORNING + timedelta(hours=26)))
    declare(second, "daily-report")
    declare(second, "new-report")
    async with second:
        await second.pause()
        assert (await second.get_job("daily-report")).last_success == MORNING + timedelta(hours=1)
        ends = await run_due(second)
        assert [(end.job_id, end.fire_time) for end in ends] == [
            ("daily-report", MORNING + timedelta(hours=25))
        ]
        assert ran == ["daily-report"]
        tomorrow = MORNING + timedelta(hours=49)
        assert {job.next_fire_time for job in await second.get_jobs()} == {tomorrow}


async def test_all_of_a_job_comes_back_after_a_restart_and_a_paused_one_does_not_run(
    make_scheduler: MakeScheduler,
) -> None:
    def make(clock: ManualClock) -> Scheduler:
        scheduler = make_scheduler(clock=clock)

        @scheduler.task(name="call")
        async def call(endpoint: str) -> None:
            if clock.now() == MORNING + timedelta(hours=2):
                raise ValueError(f"{endpoint} is ill")

        return scheduler

    clock = ManualClock(MORNING)
    async with make(clock) as scheduler:
        await scheduler.pause()
        for id in ("on", "off"):
            endpoint = f"https://{id}.example"
            await scheduler.add_job("call", cron("0 * * * *"), id=id, name=id.upper(), args=[endpoint])
        for _ in range(2):
            await clock.advance(3600)
            assert len(await run_due(scheduler)) == 2
        await clock.advance(60)
        await scheduler.pause_job("off")
        await scheduler.update_job("on", name="still on")
        before = {job.id: job for job in await scheduler.get_jobs()}

    clock = ManualClock(MORNING + timedelta(hours=3))
    async with make(clock) as scheduler:
        await scheduler.pause()
        after = {job.id: job for job in await scheduler.get_jobs()}
        assert after == before
        job = after["on"]
        assert (job.name, str(job.trigger), job.args) == ("still on", "0 * * * *", ("https://on.example",))
        assert (job.last_run, job.last_success) == (
            MORNING + timedelta(hours=2),
            MORNING + timedelta(hours=1),
        )
        assert job.last_error == "ValueError: https://on.example is ill"
        assert (job.created_at, job.updated_at) == (MORNING, MORNING + timedelta(minutes=121))
        assert {id: job.state for id, job in after.items()} == {"on": "scheduled", "off": "paused"}
        assert [end.job_id for end in await run_due(scheduler)] == ["on"]
        await scheduler.resume_job("off")
        await clock.advance(3600)
        assert sorted(end.job_id for end in await run_due(scheduler)) == ["off", "on"]


async def test_every_success_of_a_job_is_told_by_its_id_and_no_failure_is(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    told: list[tuple[str, datetime]] = []
    scheduler.on(RunSucceeded, lambda event: told.append((event.job_id, event.fire_time)))

    @scheduler.task(name="report")
    async def report() -> None:
        if clock.now() == datetime(2026, 1, 1, 0, 2, tzinfo=UTC):
            raise ValueError

    await scheduler.add_job(report, every(60), id="daily-report")
    await clock.advance(180)
    assert told == [("daily-report", datetime(2026, 1, 1, 0, minute, tzinfo=UTC)) for minute in (1, 3)]


async def test_a_job_that_cannot_be_set_up_keeps_no_other_from_being_set_up(clock: ManualClock) -> None:
    store, ran = MemoryStore(), list[str]()
    async with Scheduler(store, clock=clock) as scheduler:
        for task in ("gone", "there"):
            scheduler.register(nothing, task)
            await scheduler.add_job(task, every(60), id=task)
            scheduler.unregister(task)
    async with Scheduler(store, clock=clock) as scheduler:

        @scheduler.task(name="there")
        async def there() -> None:
            ran.append("there")

        await clock.advance(60)
        assert ran == ["there"]
        assert sorted(job.id for job in await scheduler.get_jobs()) == ["gone", "there"]
