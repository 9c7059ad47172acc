"""A process with a runner that is killed in mid-work: another one finishes what it had accepted."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from asyncsched import Runner, RunnerJob, Scheduler
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
JOBS = 20
VICTIM = """
import asyncio, sys
from asyncsched import Runner, RunnerJob, Scheduler

async def main(url, log):
    scheduler = Scheduler(url, lease=1)
    runner = Runner(scheduler=scheduler, workers=3)

    @runner.register("note")
    async def note(job: RunnerJob[int]) -> None:
        with open(log, "a") as file:
            file.write(f"{job.payload}\\n")
        if job.payload >= 5:
            await asyncio.Event().wait()

    async with scheduler, runner:
        for number in range(20):
            assert await runner.enqueue(RunnerJob("note", number, id=f"job-{number}"))
        print("accepted", flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


def started(url: str, log: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", VICTIM, url, str(log)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


async def test_what_a_killed_runner_had_accepted_is_finished_by_another(
    tmp_path: Path, stores: Sequence[str]
) -> None:
    if "sqlite" not in stores:
        pytest.skip("sqlite was left out by --stores")
    url, log = f"sqlite:///{tmp_path}/jobs.db", tmp_path / "log"
    victim = started(url, log)
    try:
        assert victim.stdout is not None
        assert await asyncio.to_thread(victim.stdout.readline) == b"accepted\n"
        # Three that never end are under way, and the others wait behind them.
        await eventually(lambda: log.exists() and len(log.read_text().split()) == 8)
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
    scheduler, done = Scheduler(url, lease=1), list[tuple[int, int]]()
    heir = Runner(scheduler=scheduler)

    @heir.register("note")
    async def note(job: RunnerJob[int]) -> None:
        done.append((job.payload, job.attempts))

    async with scheduler, heir:
        await eventually(lambda: len(done) == JOBS - 5)
        assert await heir.queue_len() == 0
    assert sorted(done) == [(number, 1) for number in range(5, JOBS)]
