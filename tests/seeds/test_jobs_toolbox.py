"""What the document of the jobs toolbox (runner, scheduler, locks, history, pool) promises."""

import asyncio
import logging
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import asyncsched
from asyncsched import (
    ConflictingIdError,
    Cron,
    JobLookupError,
    Lock,
    LockNotAcquired,
    MemoryStore,
    Pool,
    Runner,
    RunnerJob,
    Scheduler,
    cron,
    current_run,
    every,
    exclusive,
)
from asyncsched.testing import ManualClock
from tests.servers.running import Servers
from tests.support.stores import make_store
from tests.support.waiting import eventually
from tests.unit.conftest import MakeScheduler

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parent.parent.parent
NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NEW_YEAR + timedelta(seconds=seconds)


async def nothing() -> None: ...


# -- runner ------------------------------------------------------------------------------------------------------------


async def test_a_runner_has_four_workers_and_room_for_a_hundred_jobs_of_half_a_minute_unless_told_otherwise(
    clock: ManualClock,
) -> None:
    begun: list[int] = []
    failed: list[tuple[int, str]] = []
    runner = Runner(
        clock=clock, on_error=lambda job, error: failed.append((job.payload, type(error).__name__))
    )

    @runner.register("endless")
    async def endless(job: RunnerJob[int]) -> None:
        begun.append(job.payload)
        await clock.sleep(1e6)

    await runner.start()
    for number in range(4):
        assert await runner.enqueue(RunnerJob("endless", number, max_retries=0))
        await clock.advance(0)
    accepted = [await runner.enqueue("endless", number) for number in range(4, 106)]
    assert accepted == [True] * 100 + [False] * 2
    await clock.advance(29)
    assert (begun, failed, await runner.queue_len()) == ([0, 1, 2, 3], [], 100)
    await clock.advance(2)
    assert failed == [(number, "RunTimeout") for number in range(4)]
    assert begun == list(range(8))
    stopping = asyncio.create_task(runner.stop(0))
    await eventually(lambda: passing(clock, stopping))
    assert len(await stopping) == 100, "what was accepted and is not done is named"


async def passing(clock: ManualClock, task: asyncio.Task[object]) -> bool:
    await clock.advance(1)
    return task.done()


async def test_a_runner_tells_its_logger_what_it_could_not_do(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    runner = Runner(1, clock=clock, logger=logging.getLogger("my.runner"))
    runner.register("endless", lambda job: None)
    await runner.start()
    await runner.scheduler.pause()
    assert await runner.enqueue(RunnerJob("endless", None, id="left-behind"))
    with caplog.at_level(logging.INFO):
        stopping = asyncio.create_task(runner.stop(0))
        await eventually(lambda: passing(clock, stopping))
    told = [(record.name, record.getMessage()) for record in caplog.records]
    assert any(name == "my.runner" and "left-behind" in text for name, text in told), told


# -- expressions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "fires"),
    [
        ("0 0 * * *", ["01-02 00:00", "01-03 00:00", "01-04 00:00"]),
        ("*/15 * * * *", ["01-01 00:15", "01-01 00:30", "01-01 00:45"]),
        ("0 9 * * 1-5", ["01-01 09:00", "01-02 09:00", "01-05 09:00"]),
        ("0 9 * * 1", ["01-05 09:00", "01-12 09:00", "01-19 09:00"]),
        ("0 0 1 * *", ["02-01 00:00", "03-01 00:00", "04-01 00:00"]),
        ("0 0 1,15 * *", ["01-15 00:00", "02-01 00:00", "02-15 00:00"]),
        ("30 4 * * sun", ["01-04 04:30", "01-11 04:30", "01-18 04:30"]),
        ("0 */2 * * *", ["01-01 02:00", "01-01 04:00", "01-01 06:00"]),
        ("0 * * * *", ["01-01 01:00", "01-01 02:00", "01-01 03:00"]),
    ],
)
def test_each_example_of_an_expression_fires_when_it_says(expression: str, fires: list[str]) -> None:
    trigger = cron(expression)
    assert [f"{fire:%m-%d %H:%M}" for fire in trigger.preview(3, NEW_YEAR)] == fires


@pytest.mark.parametrize(
    ("macro", "expression"),
    [
        ("@yearly", "0 0 1 1 *"),
        ("@monthly", "0 0 1 * *"),
        ("@weekly", "0 0 * * 0"),
        ("@daily", "0 0 * * *"),
        ("@hourly", "0 * * * *"),
    ],
)
def test_each_macro_stands_for_its_expression(macro: str, expression: str) -> None:
    assert cron(macro).preview(30, NEW_YEAR) == cron(expression).preview(30, NEW_YEAR)


def test_names_of_months_and_days_stand_for_their_numbers() -> None:
    months = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
    days = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
    pairs = [(f"0 0 1 {name} *", f"0 0 1 {n} *") for n, name in enumerate(months, 1)]
    pairs += [(f"0 0 * * {name}", f"0 0 * * {n}") for n, name in enumerate(days)]
    for named, numbered in pairs:
        assert cron(named).preview(4, NEW_YEAR) == cron(numbered).preview(4, NEW_YEAR), named


# -- named jobs --------------------------------------------------------------------------------------------------------


async def test_jobs_are_found_listed_run_and_removed_by_their_names(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    ran: list[str] = []

    @scheduler.task(name="backup")
    async def backup() -> None:
        ran.append("backup")

    scheduler.register(nothing, "report")
    await scheduler.add_job(backup, "0 0 * * *", id="nightly")
    await scheduler.add_job("report", every(3600), id="hourly")
    job = await scheduler.get_job("nightly")
    assert (job.id, job.task, job.next_fire_time) == ("nightly", "backup", at(86400))
    assert isinstance(job.trigger, Cron)
    listed = [(job.id, str(job.trigger)) for job in await scheduler.get_jobs()]
    assert listed == [("hourly", str(every(3600))), ("nightly", str(cron("0 0 * * *")))]
    with pytest.raises(ConflictingIdError):
        await scheduler.add_job(backup, every(60), id="nightly")

    await scheduler.run_job("nightly")
    await clock.advance(1)
    assert ran == ["backup"]
    assert (await scheduler.get_job("nightly")).next_fire_time == at(86400)

    assert await scheduler.remove_job("nightly", missing_ok=True)
    assert not await scheduler.remove_job("nightly", missing_ok=True)
    with pytest.raises(JobLookupError):
        await scheduler.run_job("nightly")
    assert [job.id for job in await scheduler.get_jobs()] == ["hourly"]


async def test_the_simple_forms_are_decorators(clock: ManualClock) -> None:
    ran: list[str] = []
    scheduler = Scheduler(clock=clock)

    @scheduler.job(every(60), id="health", run_on_start=True)
    async def health() -> None:
        ran.append("health")

    @scheduler.job("*/2 * * * *", id="queue")
    async def queue() -> None:
        ran.append("queue")

    assert not scheduler.is_running
    async with scheduler:
        assert scheduler.is_running
        await clock.advance(1)
        assert ran == ["health"], "once at the start"
        await clock.advance(120)
        assert sorted(ran) == ["health"] * 3 + ["queue"]
    assert not scheduler.is_running


# -- locks -------------------------------------------------------------------------------------------------------------


async def test_a_job_skips_while_another_instance_holds_its_lock_and_runs_when_it_is_free(
    make_scheduler: MakeScheduler,
) -> None:
    ran: list[datetime] = []
    scheduler = make_scheduler(middleware=[exclusive("hourly", {"work"})])

    @scheduler.task(name="work")
    async def work() -> None:
        ran.append(current_run().fire_time)

    async with scheduler:
        async with scheduler.lock("hourly"):
            await scheduler.add_job(work, every(0.1), id="x")
            await eventually(lambda: is_skipped(scheduler, "x"))
            assert ran == []
        await eventually(lambda: ran)


async def is_skipped(scheduler: Scheduler, id: str) -> bool:
    return any(decision.reason == "locked" for decision in await scheduler.history.decisions(id))


async def test_two_holders_of_one_process_share_no_lock(clock: ManualClock) -> None:
    store = MemoryStore()
    await store.open(clock.time)
    first, second = Lock(store, "task", ttl=300, clock=clock), Lock(store, "task", ttl=300, clock=clock)
    assert await first.try_acquire()
    assert not await second.try_acquire()
    with pytest.raises(LockNotAcquired):
        await second.acquire(timeout=0)
    await first.release()
    assert await second.acquire(timeout=0) > 0
    await second.release()
    await store.close()


async def test_locks_of_two_namespaces_are_two_locks(
    store_kind: str, tmp_path: Path, servers: Servers
) -> None:
    stores = [make_store(store_kind, tmp_path / name, servers) for name in ("a", "b")]
    for name, store in zip(("a", "b"), stores, strict=True):
        (tmp_path / name).mkdir()
        await store.open()
    locks = [Lock(store, "myapp") for store in stores]
    assert [await lock.try_acquire() for lock in locks] == [True, True]
    for lock, store in zip(locks, stores, strict=True):
        await lock.release()
        await store.close()


# -- history -----------------------------------------------------------------------------------------------------------


async def test_history_keeps_a_hundred_runs_of_each_job_for_seven_days_unless_told_otherwise(
    clock: ManualClock,
) -> None:
    async with Scheduler(clock=clock) as scheduler:
        scheduler.register(nothing, "nothing")
        for id in "ab":
            await scheduler.add_job("nothing", every(1, end=at(130)), id=id)
        await clock.advance(300)
        for id in "ab":
            kept = await scheduler.history.runs(id, limit=1000)
            assert [run.fire_time for run in kept] == [at(n) for n in range(130, 30, -1)]
        await clock.advance(7 * 86400 - 300)
        assert len(await scheduler.history.runs(limit=1000)) == 200
        await clock.advance(300)
        assert await scheduler.history.runs() == []


async def test_a_service_with_recurring_jobs_a_lock_a_history_and_a_monitor(clock: ManualClock) -> None:
    alarms: list[tuple[str, int]] = []
    scheduler = Scheduler(clock=clock, middleware=[exclusive("one-at-a-time", {"backup", "report"})])

    @scheduler.job(every(60), id="health-check")
    async def health_check() -> None:
        raise ConnectionError("no answer")

    @scheduler.task(name="backup")
    async def backup() -> None:
        await clock.sleep(600)

    scheduler.job("0 0 * * *", id="nightly-backup")(backup)
    scheduler.register(nothing, "report")

    async with scheduler:
        await scheduler.add_job("report", "1 0 * * *", id="daily-report")
        for minute in range(1, 4):
            await clock.advance(60)
            alarms += [(h.job_id, minute) async for h in scheduler.monitor.health() if h.is_unhealthy]
        assert alarms == [("health-check", 3)], "three failures in a row"
        assert await scheduler.monitor.failure_rate("health-check", 86400) == 1.0

        await clock.advance(86400)
        [run] = await scheduler.history.runs("daily-report")
        assert run.fire_time == at(60), "the first one found no lock taken"
        [skipped] = await scheduler.history.decisions("daily-report")
        assert (skipped.reason, skipped.first) == ("locked", at(86400 + 60))
        began_at, stopping = clock.monotonic(), asyncio.create_task(scheduler.stop(drain=30))
        await eventually(lambda: passing(clock, stopping))
        await stopping
        assert 29 < clock.monotonic() - began_at < 35, "the backup was given its time, and no more"


# -- pool --------------------------------------------------------------------------------------------------------------


async def test_a_pool_has_four_workers_unless_told_otherwise() -> None:
    open_, begun = asyncio.Event(), list[int]()

    async def work(n: int) -> None:
        begun.append(n)
        await open_.wait()

    async with Pool() as pool:
        assert [pool.try_go(work, n) for n in range(5)] == [True] * 4 + [False]
        await asyncio.sleep(0)
        assert (begun, pool.running) == ([0, 1, 2, 3], 4)
        open_.set()


# -- the page on choosing ----------------------------------------------------------------------------------------------


def test_the_page_on_choosing_names_tools_that_exist() -> None:
    page = (ROOT / "docs" / "explanation" / "choosing.md").read_text(encoding="utf-8")
    tables = "\n".join(line for line in page.splitlines() if line.startswith("|"))
    named = re.findall(r"`([A-Z]\w+)[^`]*`", tables)
    assert {"Scheduler", "Runner", "Pool", "Lock", "Workflow"} <= set(named)
    assert set(named) <= set(asyncsched.__all__)
    for method in re.findall(r"`scheduler\.(\w+)[^`]*`", tables):
        assert hasattr(Scheduler(), method), method
