"""Four processes on one SQLite file, of which one is killed each second, run every job and settle none twice."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from asyncsched import JobSpec, Run, Scheduler, once
from tests.support.processes import Line, Workers, client, workers
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
PATIENCE_S = 60.0


@dataclass
class Campaign:
    """What happened."""

    due: dict[str, float] = field(default_factory=dict)
    killed_at: list[float] = field(default_factory=list)
    took_s: float = 0.0
    runs: list[Run] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def fences(self, event: str) -> dict[str, set[int]]:
        """By job, the fences under which the workers wrote down *event*."""
        found: dict[str, set[int]] = defaultdict(set)
        for line in self.lines:
            if line.event == event:
                found[line.job_id].add(line.fence)
        return found

    def settled(self, outcome: str) -> dict[str, list[int]]:
        """By job, the fences of the runs that history has with *outcome*."""
        found: dict[str, list[int]] = defaultdict(list)
        for run in self.runs:
            if run.outcome == outcome:
                found[run.job_id].append(run.fence)
        return found

    def lost_in_a_row(self, job_id: str) -> int:
        """How many claims of the job were lost: history has the last of several in a row, with their number as its attempt."""
        lost = (run.attempt for run in self.runs if run.job_id == job_id and run.outcome == "lost")
        return max(lost, default=0)


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

    begun, ended = campaign.fences("begun"), campaign.fences("ended")
    succeeded, lost = campaign.settled("succeeded"), campaign.settled("lost")
    assert len(campaign.killed_at) >= 10
    assert sum(map(len, lost.values())) >= 20
    assert Counter(run.outcome for run in campaign.runs).keys() == {"succeeded", "lost"}
    # Every job ran to its end, and exactly one run of each was settled: one that did run.
    assert set(ended) == set(campaign.due)
    assert {job_id: len(fences) for job_id, fences in succeeded.items()} == dict.fromkeys(campaign.due, 1)
    assert [job_id for job_id, [fence] in succeeded.items() if fence not in ended[job_id]] == []
    # Whatever began beside the run that was settled had lost its lease, and history counts it.
    begun_besides = {job_id: len(fences - set(succeeded[job_id])) for job_id, fences in begun.items()}
    unexplained = {
        job_id: count for job_id, count in begun_besides.items() if count > campaign.lost_in_a_row(job_id)
    }
    assert unexplained == {}
    # And nothing that was settled had lost it.
    assert [job_id for job_id, fences in lost.items() if set(fences) & set(succeeded[job_id])] == []


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
        campaign.runs = await scheduler.history.runs(limit=10 * JOBS)
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
    lost = sum(map(len, campaign.settled("lost").values()))
    begun = [line for line in campaign.lines if line.event == "begun"]
    first: dict[str, float] = {}
    again: list[float] = []
    for line in begun:
        if line.job_id in first:
            killed = [at for at in campaign.killed_at if at <= line.at]
            again.append(line.at - min((at for at in killed if at >= first[line.job_id]), default=line.at))
        first[line.job_id] = line.at
    lags = sorted(min(line.at for line in lines) - campaign.due[id] for id, lines in by_job(begun).items())
    return (
        f"\n{JOBS} jobs in {campaign.took_s:.1f} s, {len(campaign.killed_at)} kills, {lost} leases lost, "
        f"{len(begun) - JOBS} runs begun again; start lag p50 {statistics.median(lags) * 1e3:.0f} ms, "
        f"p99 {lags[int(len(lags) * 0.99)] * 1e3:.0f} ms, max {lags[-1] * 1e3:.0f} ms; "
        f"begun again at most {max(again, default=0.0):.2f} s after the kill (lease {LEASE_S:g} s)"
    )


def by_job(lines: list[Line]) -> dict[str, list[Line]]:
    found: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        found[line.job_id].append(line)
    return found
