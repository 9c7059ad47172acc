"""Four processes on one SQLite file, of which one is killed each second, run every job and settle none twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from asyncsched import JobSpec, Scheduler, once
from tests.support.campaign import Campaign, read_runs
from tests.support.processes import Workers, client, workers
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

PROCESSES = 4
JOBS = 5_000
SPAN_S = 20.0
SHORTEST_S, LONGEST_S = 0.05, 0.5
#: Out of step with the kills: with a whole number of seconds what was lost would be recovered just before the next kill.
LEASE_S = 2.5
KILL_EVERY_S = 1.0
#: For the workers to start in, and for what was lost to be made good.
AHEAD_S = 4.0
PATIENCE_S = 180.0


@pytest.fixture
def needs_sqlite(stores: Sequence[str]) -> None:
    if "sqlite" not in stores:
        pytest.skip("sqlite was left out by --stores")


@pytest.mark.usefixtures("needs_sqlite")
async def test_every_job_runs_and_none_is_settled_twice_though_a_process_is_killed_each_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with workers(tmp_path) as cluster:
        campaign = await run_campaign(cluster)
    with capsys.disabled():
        print(figures(campaign))

    assert len(campaign.killed_at) >= 10
    assert sum(campaign.lost().values()) >= 20
    assert {run.outcome for run in campaign.runs} == {"succeeded", "lost"}
    campaign.assert_every_one_shot_succeeded_once()
    campaign.assert_every_rerun_had_lost_its_lease()


async def run_campaign(cluster: Workers) -> Campaign:
    campaign = Campaign()
    async with client(cluster.url) as scheduler, asyncio.timeout(AHEAD_S + SPAN_S + PATIENCE_S):
        first_at = time.time() + AHEAD_S
        specs = [spec_of(number, first_at) for number in range(JOBS)]
        for job in await scheduler.add_jobs(specs):
            assert job.next_fire_time is not None
            campaign.due[job.id] = job.next_fire_time.timestamp()
        start = ["--lease", str(LEASE_S)]
        for _ in range(PROCESSES):
            cluster.start(*start)
        await asyncio.gather(*(worker.ready() for worker in cluster.all))
        while time.time() < first_at + SPAN_S:
            await asyncio.sleep(KILL_EVERY_S)
            if time.time() > first_at:
                victim = next(worker for worker in cluster.all if worker.is_alive)
                victim.kill()
                campaign.killed_at.append(time.time())
                cluster.start(*start)
        await eventually(lambda: is_empty(scheduler), timeout=PATIENCE_S)
        campaign.took_s = time.time() - first_at
        await cluster.stop()
        campaign.runs = await read_runs(scheduler)
    campaign.lines = cluster.lines
    return campaign


async def is_empty(scheduler: Scheduler) -> bool:
    await asyncio.sleep(0.1)
    return not await scheduler.get_jobs(limit=1)


def spec_of(number: int, first_at: float) -> JobSpec:
    due_at = datetime.fromtimestamp(first_at, UTC) + timedelta(seconds=number * SPAN_S / JOBS)
    # 37 has no divisor in common with 100, so that long and short ones are mixed evenly.
    seconds = SHORTEST_S + (LONGEST_S - SHORTEST_S) * (number * 37 % 100) / 99
    return JobSpec("work", once(at=due_at), id=f"job-{number}", args=[seconds])


def figures(campaign: Campaign) -> str:
    return (
        f"\n{JOBS} jobs in {campaign.took_s:.1f} s, {len(campaign.killed_at)} kills, {sum(campaign.lost().values())} leases "
        f"lost, {campaign.begun_again} runs begun again, at most {campaign.longest_recovery_s():.2f} s after the kill "
        f"(lease {LEASE_S:g} s); start lag {campaign.lags()}"
    )
