"""What outlives a process: its jobs, their schedules and their progress; and who takes over what it was doing."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from asyncsched import Job, Scheduler, cron, current_run, every, manual, once
from asyncsched.stores import store_from_url
from tests.support.processes import client, workers
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

LEASE_S = 2.0
#: Recovery begins within one second of the lease's end, on a machine that has the time; one that has not gets more tries.
RECOVERED_WITHIN_S = 1.0
TRIES = 3


async def test_a_job_whose_process_is_killed_in_mid_run_begins_again_within_one_second_of_its_lease_s_end(
    tmp_path: Path, url: str
) -> None:
    late_s = []
    for number in range(TRIES):
        (tmp_path / f"{number}").mkdir()
        with workers(tmp_path / f"{number}", url) as cluster:
            async with client(url) as scheduler:
                victim = await cluster.start_ready("--lease", str(LEASE_S))
                id = f"long-{number}"
                await scheduler.add_job("work", id=id, args=[60.0])
                await eventually(lambda victim=victim, id=id: victim.wrote("begun", id))
                await asyncio.sleep(LEASE_S)  # By now the first lease is over: it is a renewed one that ends.
                heir = await cluster.start_ready("--lease", str(LEASE_S))
                victim.kill()
                lease_end = await wake_at_of(url, id)
                assert (await scheduler.get_job(id)).state == "running"
                await eventually(lambda heir=heir, id=id: heir.wrote("begun", id))
                [begun] = [line for line in heir.lines if line.event == "begun"]
                [run] = [line for line in victim.lines if line.event == "begun"]
                assert begun.fence > run.fence
                heir.kill()
                await scheduler.remove_job(id)
        late_s.append(begun.at - lease_end)
        assert late_s[-1] >= 0.0
        if late_s[-1] <= RECOVERED_WITHIN_S:
            return
    raise AssertionError(f"recovery began {late_s} s after the leases' ends")


async def test_jobs_that_a_process_had_claimed_and_not_begun_are_run_by_another(
    tmp_path: Path, url: str
) -> None:
    """Claim and start are one write: a process that dies between the two loses nothing."""
    store = store_from_url(url)
    with workers(tmp_path, url) as cluster:
        async with client(url) as scheduler:
            for number in range(20):
                await scheduler.add_job("work", id=f"job-{number}", args=[0.0])
            await store.open()
            claimed = await store.claim(["default"], "of the dead", 20, 0.5)
            await store.close()
            assert len(claimed.records) == 20
            await cluster.start_ready("--lease", str(LEASE_S))
            for number in range(20):
                assert await scheduler.wait_job(f"job-{number}", timeout=60) is None
            runs = await scheduler.history.runs(limit=100)
    assert sorted(run.outcome or "" for run in runs) == ["lost"] * 20 + ["succeeded"] * 20


async def test_a_restart_keeps_every_schedule_as_it_was(url: str) -> None:
    in_a_day = datetime.now(UTC) + timedelta(days=1)
    async with client(url) as scheduler:
        await scheduler.add_job(
            "work", every(hours=1), id="hourly", args=[1.5], tags=["a"], metadata={"k": [1]}
        )
        await scheduler.add_job(
            "work", cron("30 4 * * *", tz="Europe/Berlin"), id="nightly", args=[0.1], priority=7
        )
        await scheduler.add_job("work", once(at=in_a_day), id="later", kwargs={"seconds": 2.0}, queue="slow")
        await scheduler.add_job("work", manual(), id="by hand", args=[0.0], name="by hand")
        await scheduler.add_job("work", every(60), id="resting", args=[0.0], paused=True)
        before = await scheduler.get_jobs()
    async with client(url) as scheduler:
        after = await scheduler.get_jobs()
    assert len(before) == 5
    assert after == before


async def test_a_killed_process_keeps_every_schedule_as_it_was(tmp_path: Path, url: str) -> None:
    with workers(tmp_path, url) as cluster:
        async with client(url) as scheduler:
            await scheduler.add_job("work", every(3600), id="hourly", args=[0.0])
            await scheduler.add_job("work", every(3600), id="twin", args=[0.0], run_immediately=True)
            worker = await cluster.start_ready("--lease", str(LEASE_S))
            await scheduler.run_job("hourly")
            await eventually(lambda: worker.wrote("ended", "hourly") and worker.wrote("ended", "twin"))
            await settled(scheduler, "hourly", "twin")
            before = await scheduler.get_jobs()
            worker.kill()
        async with client(url) as scheduler:
            after = await scheduler.get_jobs()
    assert [job.last_success is not None for job in before] == [True, True]
    assert after == before


async def settled(scheduler: Scheduler, *ids: str) -> None:
    jobs = await asyncio.gather(*(scheduler.wait_job(id, timeout=60) for id in ids))
    assert all(isinstance(job, Job) for job in jobs)


async def test_what_came_due_while_nobody_ran_runs_once_at_the_start(url: str) -> None:
    ran: list[str] = []
    async with client(url) as scheduler:
        await scheduler.add_job("work", once(delay=0.2), id="one", args=[0.0])
        await scheduler.add_job("work", every(0.1), id="many", args=[0.0])
    await asyncio.sleep(0.5)
    later = Scheduler(url)

    @later.task(name="work")
    async def work(seconds: float) -> None:
        ran.append(current_run().job_id)

    async with later:
        await eventually(lambda: {"one", "many"} <= set(ran))
        await later.pause_job("many")
        await eventually(lambda: not later.running())
        await eventually(lambda: later.history.decisions("many"))
        decisions = await later.history.decisions("many")
    assert ran.count("one") == 1
    assert decisions[-1].reason == "coalesced"
    assert decisions[-1].count >= 3


async def test_a_schedule_that_was_changed_in_the_code_replaces_the_one_that_is_stored(url: str) -> None:
    async with declaring(url, hours=1) as scheduler:
        first = await scheduler.get_job("report")
    async with declaring(url, hours=2) as scheduler:
        [job] = await scheduler.get_jobs()
    assert job.trigger.unbound() == every(hours=2)
    assert job.next_fire_time is not None
    assert first.next_fire_time is not None
    assert job.next_fire_time > first.next_fire_time + timedelta(minutes=30)


async def test_a_schedule_that_is_unchanged_in_the_code_keeps_its_progress(url: str) -> None:
    async with declaring(url, hours=1) as scheduler:
        await scheduler.run_job("report")
        await scheduler.wait_job("report", timeout=60)
        await eventually(lambda: not scheduler.running())
        before = await scheduler.get_job("report")
    async with declaring(url, hours=1) as scheduler:
        assert await scheduler.get_jobs() == [before]
    assert before.last_success is not None


def declaring(url: str, *, hours: int) -> Scheduler:
    scheduler = Scheduler(url)

    @scheduler.job(every(hours=hours), id="report")
    async def report() -> None: ...

    return scheduler


async def wake_at_of(url: str, job_id: str) -> float:
    """The end of the lease, read from the record."""
    store = store_from_url(url)
    await store.open()
    try:
        record = (await store.get([job_id]))[job_id]
    finally:
        await store.close()
    assert record.holder is not None
    assert record.wake_at is not None
    return record.wake_at
