"""Several processes on one store keep to the limits together, by what the runs themselves wrote down."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from asyncsched import JobSpec
from tests.integration.test_cluster import is_empty
from tests.support.processes import HEARS_TROUBLE, Line, client, workers
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

PROCESSES = 4
LEASE_S = 2.5
PATIENCE_S = 240.0

KEYS = 5
PLACES = 2
JOBS = 200
RUN_S = 0.1

RATE = 50
RATED = 250
#: How much longer than it must a busy machine may take for all of them.
LATE_S = 30.0


async def test_no_more_runs_of_a_key_are_under_way_than_its_limit_though_a_process_is_killed(
    url: str, store_kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed: dict[str, float] = {}
    start = ["--lease", str(LEASE_S), *HEARS_TROUBLE]
    with workers(tmp_path, url) as cluster:
        async with client(url) as scheduler, asyncio.timeout(2 * PATIENCE_S):
            for _ in range(PROCESSES):
                cluster.start(*start)
            await asyncio.gather(*(worker.ready() for worker in cluster.all))
            began = asyncio.get_running_loop().time()
            await scheduler.add_jobs(keyed_jobs(RUN_S))
            await eventually(
                lambda: len(cluster.lines) > JOBS // 2, timeout=PATIENCE_S, what="the first jobs"
            )
            # One that is at work.
            victim = max(cluster.all, key=lambda worker: sum(line.event == "begun" for line in worker.lines))
            victim.kill()
            killed[victim.name] = max(line.at for line in cluster.lines)
            await eventually(lambda: is_empty(scheduler), timeout=PATIENCE_S, what="the end of all jobs")
            took_s = asyncio.get_running_loop().time() - began
            succeeded = {
                run.job_id
                for run in await scheduler.history.runs(limit=10 * JOBS)
                if run.outcome == "succeeded"
            }
        await cluster.stop()
        most = most_at_once(cluster.lines, killed)
    with capsys.disabled():
        print(f"\n{store_kind}: {JOBS} jobs in {took_s:.1f} s, at most {most}")
    assert len(succeeded) == JOBS
    assert set(most) == {f"key-{n}" for n in range(KEYS)}
    assert max(most.values()) == PLACES


async def test_whoever_finds_no_place_is_woken_when_there_is_one(
    url: str, store_kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with workers(tmp_path, url) as cluster:
        async with client(url) as scheduler, asyncio.timeout(PATIENCE_S):
            for _ in range(3):
                # Who would have to look by himself would do that half a minute later.
                cluster.start("--lease", "60")
            await asyncio.gather(*(worker.ready() for worker in cluster.all))
            await scheduler.add_jobs(keyed_jobs(0.005))
            await eventually(lambda: is_empty(scheduler), timeout=PATIENCE_S, what="the end of all jobs")
        await cluster.stop()
        starts = [line.at for line in cluster.lines if line.event == "begun"]
        most = most_at_once(cluster.lines, {})
    longest_s = max(later - earlier for earlier, later in pairwise(starts))
    with capsys.disabled():
        by = Counter(line.instance for line in cluster.lines if line.event == "begun")
        print(
            f"\n{store_kind}: {len(starts)} starts in {starts[-1] - starts[0]:.1f} s, the longest pause {longest_s:.2f} s, {by}"
        )
    assert len(starts) == JOBS
    assert max(most.values()) == PLACES
    assert longest_s < 10


def keyed_jobs(seconds: float) -> list[JobSpec]:
    return [
        JobSpec(
            "work",
            id=f"key-{n % KEYS}:{n}",
            args=[seconds],
            policies={"concurrency_key": f"key-{n % KEYS}", "concurrency_limit": PLACES},
        )
        for n in range(JOBS)
    ]


def most_at_once(lines: list[Line], killed: dict[str, float]) -> dict[str, int]:
    """By key, how many runs were under way at most; those of a killed process ended when it was killed, at the latest."""
    changes: dict[str, list[tuple[float, int]]] = defaultdict(list)
    ended = {(line.job_id, line.fence): line.at for line in lines if line.event == "ended"}
    for line in lines:
        if line.event == "begun":
            end = ended.get((line.job_id, line.fence), killed.get(line.instance))
            assert end is not None, line
            changes[line.job_id.partition(":")[0]] += [(line.at, 1), (end, -1)]
    most = {}
    for key, steps in changes.items():
        under_way = 0
        most[key] = 0
        # An end and a beginning at the same microsecond are one after the other.
        for _, step in sorted(steps):
            under_way += step
            most[key] = max(most[key], under_way)
    return most


async def test_three_processes_start_no_more_than_their_rate_together(
    url: str, store_kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with workers(tmp_path, url) as cluster:
        async with client(url) as scheduler, asyncio.timeout(PATIENCE_S):
            for _ in range(3):
                cluster.start("--concurrency", "100")
            await asyncio.gather(*(worker.ready() for worker in cluster.all))
            specs = [
                JobSpec("work", args=[0.0], policies={"rate_limit": f"{RATE}/second"}) for _ in range(RATED)
            ]
            asked_at = time.time()
            await scheduler.add_jobs(specs)
            await eventually(lambda: is_empty(scheduler), timeout=PATIENCE_S, what="the end of all jobs")
        await cluster.stop()
        starts = sorted(line.at for line in cluster.lines if line.event == "begun")
    with capsys.disabled():
        lasted_s = starts[-1] - starts[0]
        print(f"\n{store_kind}: {RATED} starts of {RATE}/second in {lasted_s:.2f} s")
    assert len(starts) == RATED
    # As many as the bucket holds at once, then one for each that comes back: however late a machine is, none is too early.
    for number, start in enumerate(starts, 1):
        assert start - asked_at >= (number - RATE) / RATE
    assert starts[-1] - asked_at <= (RATED - RATE) / RATE + LATE_S
