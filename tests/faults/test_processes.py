"""Processes that are killed, that are frozen and thawed, and that their own jobs kill: on one SQLite file.

==========================================================  ==========================================================
known from other schedulers                                 promised here
==========================================================  ==========================================================
a process stopped past its lease overwrites its successor   its end is refused, the successor's is kept
a poison job that kills its process is retried for ever     quarantined after so many lost claims
a crash spends no attempt, or is seen by nobody             each claim counts when it is made, and history tells
==========================================================  ==========================================================
"""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from asyncsched import Scheduler, every
from tests.support.processes import WorkerProcess, Workers, client, workers
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

LEASE_S = 1.0
SHORT_LEASE = ("--lease", str(LEASE_S), "--hear")


@pytest.fixture(autouse=True)
def needs_sqlite(stores: Sequence[str]) -> None:
    if "sqlite" not in stores:
        pytest.skip("sqlite was left out by --stores")


def is_stopped(worker: WorkerProcess) -> bool:
    stat = Path(f"/proc/{worker.process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc whether a process is stopped")
@pytest.mark.parametrize("recurs", [True, False], ids=["a recurring job", "a one-shot"])
async def test_a_process_that_is_frozen_past_its_lease_is_refused_and_its_successor_s_end_is_kept(
    tmp_path: Path, recurs: bool
) -> None:
    with workers(tmp_path) as cluster:
        async with client(cluster.url) as scheduler:
            frozen = await cluster.start_ready(*SHORT_LEASE, "--freezes")
            if recurs:
                await scheduler.add_job("freeze", every(3600), id="job", run_immediately=True)
            else:
                await scheduler.add_job("freeze", id="job")
            await eventually(lambda: frozen.wrote("begun", "job") and is_stopped(frozen))
            heir = await cluster.start_ready(*SHORT_LEASE)
            await eventually(lambda: heir.wrote("RunSucceeded", "job"))
            before = await scheduler.get_jobs()
            frozen.signal(signal.SIGCONT)
            await eventually(lambda: frozen.wrote("ended", "job"))
            await eventually(lambda: frozen.wrote("RunLost", "job"), what="the refusal")
            runs = await scheduler.history.runs("job")
            assert await scheduler.get_jobs() == before
    assert [run.outcome for run in runs] == ["succeeded", "lost"]
    assert runs[0].result == heir.name
    assert runs[0].fence > runs[1].fence
    assert [line.fence for line in frozen.lines if line.event == "begun"] == [runs[1].fence]
    assert not frozen.wrote("RunSucceeded")


async def test_a_frozen_process_that_holds_no_write_lock_holds_up_nobody(tmp_path: Path) -> None:
    with workers(tmp_path) as cluster:
        async with client(cluster.url) as scheduler:
            frozen = await cluster.start_ready(*SHORT_LEASE)
            await asyncio.sleep(0.2)
            frozen.signal(signal.SIGSTOP)
            other = await cluster.start_ready(*SHORT_LEASE)
            await scheduler.add_job("work", id="job", args=[0.0])
            await eventually(lambda: other.wrote("RunSucceeded", "job"))


async def test_a_job_that_kills_its_process_is_quarantined_after_so_many_lost_claims(tmp_path: Path) -> None:
    with workers(tmp_path) as cluster:
        async with client(cluster.url) as scheduler:
            await scheduler.add_job("die", id="poison", max_crashes=3)
            await scheduler.add_job("work", every(0.5), id="healthy", args=[0.0])
            await keep_one_alive(cluster, until=lambda: deaths(cluster) >= 3)
            last = await cluster.start_ready(*SHORT_LEASE)
            await eventually(lambda: is_quarantined(scheduler, "poison"))
            ran = count(last, "ended", "healthy")
            await eventually(lambda: count(last, "ended", "healthy") >= ran + 2)
            decisions = await scheduler.history.decisions("poison")
            runs = await scheduler.history.runs("poison")
            assert last.is_alive
    begun = [line.fence for line in cluster.lines if (line.event, line.job_id) == ("begun", "poison")]
    assert len(begun) == len(set(begun)) == 3
    assert [decision.reason for decision in decisions] == ["quarantined"]
    assert {run.outcome for run in runs} == {"lost"}
    assert max(run.attempt for run in runs) == 3


async def test_a_job_that_killed_its_process_runs_again_when_it_is_resumed(tmp_path: Path) -> None:
    with workers(tmp_path) as cluster:
        async with client(cluster.url) as scheduler:
            await scheduler.add_job("die", id="poison", max_crashes=1)
            await keep_one_alive(cluster, until=lambda: deaths(cluster) >= 1)
            await cluster.start_ready(*SHORT_LEASE)
            await eventually(lambda: is_quarantined(scheduler, "poison"))
            await scheduler.resume_job("poison")
            await eventually(lambda: deaths(cluster) >= 2)


async def test_a_process_that_is_told_to_stop_hands_over_what_it_cannot_finish(tmp_path: Path) -> None:
    """Its drain is five seconds; the run takes a minute, and another begins it anew without waiting for a lease to end."""
    with workers(tmp_path) as cluster:
        async with client(cluster.url) as scheduler:
            leaving = await cluster.start_ready("--lease", "120")
            await scheduler.add_job("work", id="long", args=[60.0])
            await eventually(lambda: leaving.wrote("begun", "long"))
            heir = await cluster.start_ready("--lease", "120")
            leaving.signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            assert leaving.is_alive
            leaving.signal(signal.SIGTERM)  # The second one ends the drain.
            await eventually(lambda: heir.wrote("begun", "long"), timeout=30)
            await eventually(lambda: not leaving.is_alive)
            runs = await scheduler.history.runs("long")
    assert leaving.wrote("stopped")
    assert leaving.process.returncode == 0
    assert [run.outcome for run in runs] == ["cancelled"]


async def test_a_killed_writer_leaves_a_sound_file(tmp_path: Path) -> None:
    with workers(tmp_path) as cluster:
        async with client(cluster.url) as scheduler:
            for number in range(20):
                await scheduler.add_job("work", every(0.02), id=f"busy-{number}", args=[0.0])
            for _ in range(3):
                worker = await cluster.start_ready(*SHORT_LEASE)
                await eventually(lambda worker=worker: worker.wrote("ended"))  # type: ignore[misc]  # bound by its default
                await asyncio.sleep(0.1)
                worker.kill()
            assert len(await scheduler.get_jobs()) == 20
    database = sqlite3.connect(tmp_path / "jobs.db")
    try:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    finally:
        database.close()


async def is_quarantined(scheduler: Scheduler, job_id: str) -> bool:
    return (await scheduler.get_job(job_id)).state == "quarantined"


async def keep_one_alive(cluster: Workers, until: Callable[[], bool]) -> None:
    """Start a worker whenever there is none, until enough of them have died."""
    async with asyncio.timeout(30):
        while not until():
            if not any(worker.is_alive for worker in cluster.all):
                cluster.start(*SHORT_LEASE)
            await asyncio.sleep(0.02)


def deaths(cluster: Workers) -> int:
    return sum(worker.process.poll() == 9 for worker in cluster.all)


def count(worker: WorkerProcess, event: str, job_id: str) -> int:
    return sum((line.event, line.job_id) == (event, job_id) for line in worker.lines)
