"""A server that is killed, frozen or cut off in mid-run: every job runs, each is settled once, and the instance is back to
work by itself soon after the server is."""

from __future__ import annotations

import asyncio
import time

import pytest

from asyncsched import JobSpec, StoreDegraded, StoreRecovered, StoreUnavailable, every, once
from tests.servers.server import Server
from tests.support.noting import Noting
from tests.support.proxy import proxied
from tests.support.running import running
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

JOBS = 300
SPAN_S = 6.0
AWAY_S = 5.0
#: From the server's return to the start of the next job, at the most.
BACK_WITHIN_S = 15.0


def spread_jobs() -> list[JobSpec]:
    return [
        JobSpec("work", once(delay=0.2 + n * SPAN_S / JOBS), id=f"job-{n}", args=[0.05]) for n in range(JOBS)
    ]


def once_each() -> dict[tuple[str, str], int]:
    return {(f"job-{n}", "succeeded"): 1 for n in range(JOBS)}


async def test_all_jobs_run_once_though_the_server_is_killed_and_comes_back_after_five_seconds(
    own_server: Server, own_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [Noting(own_url, id=f"instance-{n}", concurrency=20) for n in range(2)]
    async with running(*(there.scheduler for there in both)):
        await both[0].scheduler.add_jobs(spread_jobs())
        await eventually(lambda: sum(len(there.begun) for there in both) >= JOBS / 5)
        killed_at = time.monotonic()
        await asyncio.to_thread(own_server.kill)
        await asyncio.sleep(AWAY_S)
        for there in both:
            assert there.was_told(StoreDegraded, since=killed_at)
            assert there.began_since(killed_at + 1.0) == []
        await asyncio.to_thread(own_server.start)
        back_at = time.monotonic()
        await eventually(
            lambda: any(there.began_since(back_at) for there in both), BACK_WITHIN_S, "the next job"
        )
        began_s = time.monotonic() - back_at
        await eventually(
            lambda: all(there.was_told(StoreRecovered, since=killed_at) for there in both),
            timeout=BACK_WITHIN_S,
            what="the recovery of both",
        )
        with capsys.disabled():
            kind, all_s = type(own_server).__name__, time.monotonic() - back_at
            print(
                f"\n{kind} is back: the next job began after {began_s:.2f} s, both served after {all_s:.2f} s"
            )
        await both[0].all_gone()
        for there in both:
            there.assert_degraded_and_recovered(since=killed_at)
        assert await both[0].outcomes() == once_each()
    assert both[0].ran + both[1].ran == {f"job-{n}": 1 for n in range(JOBS)}


async def test_recurring_jobs_go_on_where_they_were_when_the_server_is_back(
    own_server: Server, own_url: str
) -> None:
    there = Noting(own_url)
    async with running(there.scheduler):
        trigger = every(0.5)
        await there.scheduler.add_jobs([JobSpec("work", trigger, id=f"recurring-{n}") for n in range(20)])
        await eventually(lambda: len(there.begun) >= 40)
        await asyncio.to_thread(own_server.kill)
        await asyncio.sleep(1.0)
        await asyncio.to_thread(own_server.start)
        back_at = time.monotonic()
        await eventually(
            lambda: len(set(there.began_since(back_at))) == 20, timeout=BACK_WITHIN_S, what="a run of each"
        )
        seen = len(there.begun)
        await eventually(lambda: len(there.begun) >= seen + 60)
        for n in range(20):
            await there.scheduler.pause_job(f"recurring-{n}")
        await eventually(lambda: not there.scheduler.running())
        runs = await there.scheduler.history.runs(limit=10_000)
        decisions = await there.scheduler.history.decisions(limit=10_000)
    assert {run.outcome for run in runs} == {"succeeded"}
    for n in range(20):
        fires = [run.fire_time for run in runs if run.job_id == f"recurring-{n}"]
        passed = sum(decision.count for decision in decisions if decision.job_id == f"recurring-{n}")
        assert len(fires) == len(set(fires))
        # On the grid, from the first to the last, each fire time ran or was decided.
        assert round((max(fires) - min(fires)).total_seconds() / 0.5) + 1 == len(fires) + passed


async def test_all_jobs_run_once_though_connections_are_cut_again_and_again(
    own_server: Server, own_url: str
) -> None:
    async with proxied(own_server.url) as proxy:
        there = Noting(proxy.of(own_url))
        async with running(there.scheduler):
            await there.scheduler.add_jobs(spread_jobs())
            began_at, cut = time.monotonic(), 0
            while len(there.begun) < JOBS and time.monotonic() - began_at < 40:
                await asyncio.sleep(0.7)
                cut += proxy.cut()
            await there.all_gone()
            assert await there.outcomes() == once_each()
        assert cut >= 5
        # A cut between two calls is noticed by a driver whose pool looks, and costs nothing: not each of them degrades.
        there.assert_recovered_each_time()
    assert there.ran == {f"job-{n}": 1 for n in range(JOBS)}


async def test_a_server_that_is_frozen_for_longer_than_the_lease_costs_no_job(
    own_server: Server, own_url: str
) -> None:
    """Nothing refuses and nothing ends: only the deadline of each call tells that the server is away. Runs whose lease cannot
    be renewed are given up, and made again."""
    there = Noting(f"{own_url}&timeout=1", lease=2.0)
    async with running(there.scheduler):
        await there.scheduler.add_jobs([*spread_jobs(), JobSpec("work", id="long", args=[4.5])])
        await eventually(lambda: len(there.begun) >= JOBS / 5)
        frozen_at = time.monotonic()
        own_server.freeze()
        await asyncio.sleep(AWAY_S)
        assert there.was_told(StoreDegraded, since=frozen_at)
        own_server.thaw()
        back_at = time.monotonic()
        await eventually(lambda: there.began_since(back_at), timeout=BACK_WITHIN_S, what="the next job")
        await there.all_gone()
        there.assert_degraded_and_recovered(since=frozen_at)
        outcomes = await there.outcomes()
    succeeded = {id: count for (id, outcome), count in outcomes.items() if outcome == "succeeded"}
    assert succeeded == {**{f"job-{n}": 1 for n in range(JOBS)}, "long": 1}
    assert {outcome for _, outcome in outcomes} <= {"succeeded", "lost"}
    assert there.ran["long"] >= 2
    # A claim that was lost and never begun is in the history too.
    assert {id for id, count in there.ran.items() if count > 1} <= {
        id for id, outcome in outcomes if outcome == "lost"
    }


async def test_a_scheduler_starts_once_the_server_that_refused_it_is_back(
    own_server: Server, own_url: str
) -> None:
    there = Noting(own_url)
    await asyncio.to_thread(own_server.kill)
    with pytest.raises(StoreUnavailable):
        await there.scheduler.start()
    assert there.scheduler.state == "stopped"
    await asyncio.to_thread(own_server.start)
    async with running(there.scheduler):
        await there.scheduler.add_job("work", id="job")
        await eventually(lambda: there.ran == {"job": 1})
