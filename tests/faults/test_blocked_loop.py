"""A task that blocks the event loop past its lease: no second attempt starts beside it in the same instance, and what another
instance has taken over meanwhile is not overwritten."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from asyncsched import RunLost, Scheduler, current_run, every
from tests.support.processes import workers
from tests.support.running import running
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

LEASE_S = 0.6


@pytest.fixture(autouse=True)
def needs_sqlite(stores: Sequence[str]) -> None:
    if "sqlite" not in stores:
        pytest.skip("sqlite was left out by --stores")


class Attempts:
    """How many attempts there were, and how many of them at the same time."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.under_way = 0
        self.most = 0

    def begin(self) -> None:
        self.begun.append(current_run().fence)
        self.under_way += 1
        self.most = max(self.most, self.under_way)

    def end(self) -> None:
        self.under_way -= 1


@pytest.mark.parametrize("after_s", [0.0, 0.05, 1.0], ids=["ends at once", "ends soon", "goes on"])
async def test_a_task_that_blocks_the_loop_past_its_lease_has_no_second_attempt_beside_it(
    tmp_path: Path, after_s: float
) -> None:
    scheduler = Scheduler(f"sqlite:///{tmp_path}/jobs.db", lease=LEASE_S, poll_interval=0.1)
    attempts = Attempts()
    blocked = False

    @scheduler.task(name="blocks")
    async def blocks() -> None:
        nonlocal blocked
        attempts.begin()
        try:
            if not blocked:
                blocked = True
                time.sleep(3 * LEASE_S)  # noqa: ASYNC251 - this is the fault
            if after_s:
                await asyncio.sleep(after_s)
        finally:
            attempts.end()

    async with running(scheduler):
        await scheduler.add_job("blocks", id="job")
        await eventually(lambda: attempts.begun)
        await scheduler.wait_job("job", timeout=60)
        runs = await scheduler.history.runs("job")
    assert attempts.most == 1
    assert [run.outcome for run in runs if run.outcome != "lost"] == ["succeeded"]
    if not after_s:
        assert len(attempts.begun) == 1


async def test_a_stubborn_task_whose_lease_is_lost_goes_on_alone(tmp_path: Path) -> None:
    """It ignores the cancellation that the end of trust brings; the instance that claims its job again is the same one."""
    scheduler = Scheduler(f"sqlite:///{tmp_path}/jobs.db", lease=LEASE_S, poll_interval=0.1)
    attempts = Attempts()

    @scheduler.task(name="stubborn")
    async def stubborn() -> None:
        attempts.begin()
        if len(attempts.begun) == 1:
            time.sleep(2 * LEASE_S)  # noqa: ASYNC251 - this is the fault
        end_at = time.monotonic() + 1.5
        while time.monotonic() < end_at:
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue
        attempts.end()

    async with running(scheduler):
        await scheduler.add_job("stubborn", id="job", cancel_grace=30)
        await eventually(lambda: attempts.begun)
        await scheduler.wait_job("job", timeout=60)
    assert attempts.most == 1


async def test_a_blocked_instance_does_not_overwrite_what_another_did_meanwhile(tmp_path: Path) -> None:
    lost: list[RunLost] = []
    with workers(tmp_path) as cluster:
        scheduler = Scheduler(cluster.url, lease=LEASE_S, id="blocked")
        scheduler.on(RunLost, lost.append)

        @scheduler.task(name="freeze")
        async def freeze() -> str:
            """Block the loop until another process has claimed the job, run it and settled it."""
            heir = cluster.start("--lease", str(LEASE_S), "--hear")
            over = time.monotonic() + 20
            while not heir.wrote("RunSucceeded") and time.monotonic() < over:
                time.sleep(0.05)  # noqa: ASYNC251 - this is the fault
            return "blocked"

        async with running(scheduler):
            await scheduler.add_job("freeze", every(3600), id="job", run_immediately=True)
            await eventually(lambda: lost)
            [heir] = cluster.all
            await asyncio.sleep(0.5)
            runs = await scheduler.history.runs("job")
            job = await scheduler.get_job("job")
    assert [(run.outcome, run.result) for run in runs if run.outcome != "lost"] == [("succeeded", heir.name)]
    assert [event.job_id for event in lost] == ["job"]
    assert job.state == "scheduled"


async def test_what_was_claimed_and_had_not_begun_when_the_loop_stood_still_begins_under_a_new_claim(
    tmp_path: Path,
) -> None:
    """By the end of the standstill another instance may be at it, so it must be claimed again first."""
    scheduler = Scheduler(f"sqlite:///{tmp_path}/jobs.db", lease=LEASE_S, poll_interval=0.1)
    fences: dict[str, list[int]] = {"first": [], "second": []}

    @scheduler.task(name="notes")
    async def notes() -> None:
        run = current_run()
        fences[run.job_id].append(run.fence)
        if run.job_id == "first":
            time.sleep(2 * LEASE_S)  # noqa: ASYNC251 - this is the fault

    await scheduler.start(paused=True)
    await scheduler.add_job("notes", id="first", priority=9)
    await scheduler.add_job("notes", id="second")
    async with asyncio.timeout(60):
        await scheduler.resume()
        await eventually(lambda: bool(fences["second"]))
        await scheduler.wait_job("second", timeout=60)
        begun = {run.id for run in await scheduler.history.runs("second") if run.outcome == "succeeded"}
        await scheduler.stop()
    # Both were claimed in one go, each lane under a fence of its own; the second one's claim was handed back.
    assert fences["second"][0] > fences["first"][0] + 1
    assert begun == {f"second@{fences['second'][0]}"}
    assert len(fences["second"]) == 1
