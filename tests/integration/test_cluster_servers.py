"""Four processes on one server, of which one is killed every three seconds and one is frozen past its lease: every job runs,
no run is settled twice, and no fire time is missing or doubled."""

from __future__ import annotations

import asyncio
import resource
import signal
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from asyncsched import JobSpec, every, once
from tests.integration.test_cluster import is_empty
from tests.servers.running import SERVERS, Servers
from tests.support.campaign import Campaign, read_runs
from tests.support.processes import HEARS_TROUBLE, Workers, client, workers
from tests.support.stores import url_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

PROCESSES = 4
ONE_SHOTS = 20_000
RECURRING = 200
#: The same of servers that would be more than half busy with as many.
SLOWER = {
    "mongodb": (3_000, 60),
    "etcd": (5_000, 100),
    "zookeeper": (5_000, 100),
    "firestore": (1_000, 40),
}
SPAN_S = 30.0
LONGEST_S = 0.05
#: Long enough for each kill to catch some of them.
RECURRING_S = 0.2
LEASE_S = 2.5
KILL_EVERY_S = 3.0
FREEZE_AFTER_S = 7.0
#: Runs that may lose their lease for no other reason than that the machine was busy.
HELD_UP = 50
#: For the workers to start in, and for what was lost to be made good.
AHEAD_S = 5.0
PATIENCE_S = 180.0


@pytest.mark.parametrize("kind", SERVERS)
async def test_none_is_lost_and_none_is_settled_twice_though_processes_are_killed_and_frozen(
    kind: str, stores: Sequence[str], servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind not in stores:
        pytest.skip(f"{kind} was left out by --stores")
    with workers(tmp_path, url_of(kind, tmp_path, servers)) as cluster:
        campaign = await run_campaign(cluster, tmp_path, *SLOWER.get(kind, (ONE_SHOTS, RECURRING)))
    with capsys.disabled():
        print(f"\n{kind}: {figures(campaign)}")

    assert len(campaign.killed_at) >= 8
    assert sum(campaign.lost().values()) >= 8
    assert {run.outcome for run in campaign.runs} == {"succeeded", "lost"}
    times = Counter(run.id for run in campaign.runs)
    assert [run for run in campaign.runs if times[run.id] > 1] == []
    campaign.assert_every_one_shot_succeeded_once()
    campaign.assert_every_fire_time_ran_or_was_decided_once()
    campaign.assert_every_rerun_had_lost_its_lease()
    campaign.assert_only_victims_lose_runs(but=HELD_UP)
    campaign.assert_nobody_begins_what_a_successor_has_begun()
    campaign.assert_fences_rise_with_fire_times()
    assert {decision.reason for decision in campaign.decisions} <= {"coalesced", "overlap"}
    assert_the_late_settlement_was_refused(campaign)


def assert_the_late_settlement_was_refused(campaign: Campaign) -> None:
    """The frozen run went on to its end, was told that it had lost its lease, and its successor's end is what counts."""
    begun, ended = campaign.fences("begun")["freeze"], campaign.fences("ended")["freeze"]
    [succeeded] = campaign.settled("succeeded")["freeze"]
    # Told once of each run: its own, and those of successors that a busy machine held up.
    zombie, *others = sorted(campaign.fences("RunLost")["freeze"])
    assert zombie == min(begun) < succeeded
    assert zombie in ended
    assert len({zombie, succeeded, *others}) == 2 + len(others)
    assert campaign.lost()["freeze"] >= 1


async def run_campaign(cluster: Workers, folder: Path, once_each: int, often: int) -> Campaign:
    campaign = Campaign()
    cpu_s = cpu_of_ended_children()
    async with client(cluster.url) as scheduler, asyncio.timeout(AHEAD_S + SPAN_S + PATIENCE_S):
        first_at = float(round(time.time() + AHEAD_S))
        specs = [*one_shots(campaign, first_at, once_each), *recurring(campaign, first_at, often)]
        assert len(await scheduler.add_jobs(specs)) == once_each + often + 1
        start = ["--lease", str(LEASE_S), *HEARS_TROUBLE, "--freezes-once", str(folder / "frozen")]
        for _ in range(PROCESSES):
            cluster.start(*start)
        await asyncio.gather(*(worker.ready() for worker in cluster.all))
        async with asyncio.TaskGroup() as troubles:
            troubles.create_task(kill_often(cluster, campaign, first_at, start))
            troubles.create_task(thaw_late(cluster, campaign))
        await eventually(lambda: is_empty(scheduler), timeout=PATIENCE_S, what="the end of all jobs")
        campaign.took_s = time.time() - first_at
        await cluster.stop()
        campaign.cpu_s = cpu_of_ended_children() - cpu_s
        campaign.runs = await read_runs(scheduler)
        campaign.decisions = await scheduler.history.decisions(limit=10 * ONE_SHOTS)
    campaign.lines = cluster.lines
    return campaign


def one_shots(campaign: Campaign, first_at: float, count: int) -> list[JobSpec]:
    specs = []
    for number in range(count):
        due = campaign.due[f"job-{number}"] = round(first_at + number * SPAN_S / count, 6)
        # 37 has no divisor in common with 100, so that long and short ones are mixed evenly.
        seconds = LONGEST_S * (number * 37 % 100) / 99
        specs.append(JobSpec("work", once(at=moment(due)), id=f"job-{number}", args=[seconds]))
    due = campaign.due["freeze"] = first_at + FREEZE_AFTER_S
    return [*specs, JobSpec("freeze", once(at=moment(due)), id="freeze")]


def recurring(campaign: Campaign, first_at: float, count: int) -> list[JobSpec]:
    """Half of them run every fire time that they missed, the other half the latest only."""
    specs = []
    for number in range(count):
        id, interval = f"recurring-{number}", 1 + number % 5
        anchor, end = round(first_at + number / count, 6), first_at + SPAN_S
        campaign.grid[id] = [anchor + step * interval for step in range(int((end - anchor) // interval) + 1)]
        trigger = every(interval, anchor=moment(anchor), start=moment(anchor), end=moment(end))
        policy = {"catch_up": "all", "max_catch_up": 100} if number % 2 else {}
        specs.append(JobSpec("work", trigger, id=id, args=[RECURRING_S], policies=policy))
    return specs


async def kill_often(cluster: Workers, campaign: Campaign, first_at: float, start: Sequence[str]) -> None:
    """Each time the oldest that is not the frozen one, with another in its place."""
    while time.time() < first_at + SPAN_S:
        await asyncio.sleep(KILL_EVERY_S)
        if time.time() > first_at:
            victim = next(w for w in cluster.all if w.is_alive and not w.wrote("begun", "freeze"))
            victim.kill()
            campaign.killed_at.append(time.time())
            campaign.victims.add(victim.name)
            cluster.start(*start)


async def thaw_late(cluster: Workers, campaign: Campaign) -> None:
    await eventually(
        lambda: any(w.wrote("begun", "freeze") for w in cluster.all),
        timeout=AHEAD_S + FREEZE_AFTER_S + PATIENCE_S,
    )
    frozen = next(worker for worker in cluster.all if worker.wrote("begun", "freeze"))
    campaign.victims.add(frozen.name)
    # Before another has claimed the job it could claim it again itself, and go on with its run.
    await eventually(
        lambda: any(w.wrote("begun", "freeze") for w in cluster.all if w is not frozen),
        timeout=PATIENCE_S,
        what="the successor of the frozen run",
    )
    frozen.signal(signal.SIGCONT)
    await eventually(lambda: frozen.wrote("RunLost", "freeze"), what="the refusal of the late settlement")


def moment(instant: float) -> datetime:
    return datetime.fromtimestamp(instant, UTC)


def cpu_of_ended_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def figures(campaign: Campaign) -> str:
    return (
        f"{len(campaign.runs)} runs in {campaign.took_s:.1f} s, {len(campaign.killed_at)} kills, "
        f"{sum(campaign.lost().values())} leases lost, {campaign.begun_again} runs begun again, "
        f"at most {campaign.longest_recovery_s():.2f} s after the kill (lease {LEASE_S:g} s), "
        f"{sum(d.count for d in campaign.decisions)} fire times decided; start lag {campaign.lags()}; "
        f"workers' CPU {campaign.cpu_s:.0f} s"
    )
