"""A workflow survives the death of the process in its middle: another one finishes it, and no step that had ended runs again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from asyncsched import Workflow, every, on_complete
from tests.support.processes import WorkerProcess, client, workers
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

LEASE = ("--lease", "1.5")


def pipeline() -> Workflow:
    """Two steps at once, one that takes long, then one more, and an end."""
    return (
        Workflow("pipeline")
        .step("first", "work", args=[0.0])
        .step("left", "work", args=[0.0], after="first")
        .step("right", "work", args=[0.0], after="first")
        .step("long", "work", args=[3.0], after=["left", "right"])
        .step("last", "work", args=[0.0], after="long")
        .final("end", "work", args=[0.0], after=on_complete("last"))
    )


async def test_a_workflow_whose_process_is_killed_in_its_middle_is_finished_by_another(
    tmp_path: Path, url: str
) -> None:
    with workers(tmp_path, url) as cluster:
        async with client(url) as scheduler:
            victim = await cluster.start_ready(*LEASE)
            run = await scheduler.start_workflow(pipeline(), id="p")
            await eventually(lambda: victim.wrote("begun", "p/long"))
            victim.kill()
            status = await run.status()
            assert status.state == "running"
            assert status.steps["left"].state == "succeeded"
            assert status.steps["last"].state == "pending"
            heir = await cluster.start_ready(*LEASE)
            status = await run.wait(timeout=90)
            assert status.state == "succeeded"
            lines = [*victim.lines, *heir.lines]
            begun = Counter(line.job_id for line in lines if line.event == "begun")
            assert begun == {"p/first": 1, "p/left": 1, "p/right": 1, "p/long": 2, "p/last": 1, "p/end": 1}
            assert not heir.wrote("begun", "p/first")
            assert heir.wrote("ended", "p/end")


async def test_processes_that_are_killed_at_any_moment_lose_no_step_of_any_workflow(
    tmp_path: Path, url: str
) -> None:
    """Each of them dies while dozens of workflows are between two steps; what had ended is not begun again."""
    flow = Workflow("chain").step("0", "work", args=[0.05])
    for number in range(1, 6):
        flow.step(str(number), "work", args=[0.05], after=str(number - 1))
    with workers(tmp_path, url) as cluster:
        async with client(url) as scheduler:
            runs = [await scheduler.start_workflow(flow, id=f"w{number}") for number in range(30)]
            for number in (1, 30, 60):
                victim = await cluster.start_ready(*LEASE)
                await eventually(lambda v=victim, n=number: begun(v) >= n)  # type: ignore[misc]  # mypy infers no type for a lambda's default
                victim.kill()
            await cluster.start_ready(*LEASE)
            for run in runs:
                status = await run.wait(timeout=90)
                assert status.state == "succeeded"
                assert {step.state for step in status.steps.values()} == {"succeeded"}
            history = [one for run in runs for one in await run.runs(limit=100)]
    assert sum(one.outcome == "lost" for one in history) > 0
    succeeded = Counter(one.job_id for one in history if one.outcome == "succeeded")
    assert succeeded == {f"w{number}/{step}": 1 for number in range(30) for step in range(6)}


def begun(worker: WorkerProcess) -> int:
    return sum(line.event == "begun" for line in worker.lines)


async def test_the_executions_that_a_schedule_starts_outlive_their_process_too(
    tmp_path: Path, url: str
) -> None:
    with workers(tmp_path, url) as cluster:
        async with client(url) as scheduler:
            victim = await cluster.start_ready(*LEASE)
            await scheduler.add_job(pipeline(), every(3600), id="nightly", run_immediately=True)
            await eventually(lambda: any(line.job_id.endswith("/long") for line in victim.lines))
            victim.kill()
            await cluster.start_ready(*LEASE)
            [status] = await scheduler.workflows(name="pipeline")
            assert status.id.startswith("nightly/")
            run = await scheduler.workflow(status.id)
            assert (await run.wait(timeout=90)).state == "succeeded"
