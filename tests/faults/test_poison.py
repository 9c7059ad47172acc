"""An end that the store refuses for good: found among the others, written without what is refused, and the job set aside."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncsched import JobQuarantined, JobSpec, Scheduler, current_run, every, once
from asyncsched.codec import decode_run
from asyncsched.contract import Settlement
from asyncsched.definition import RunForm
from tests.servers.running import Servers
from tests.support.faulty import FaultyStore
from tests.support.running import running
from tests.support.stores import make_store
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(store_kind: str, tmp_path: Path, servers: Servers) -> FaultyStore:
    return FaultyStore(make_store(store_kind, tmp_path, servers))


@pytest.fixture
def ran() -> list[str]:
    return []


@pytest.fixture
def scheduler(store: FaultyStore, ran: list[str]) -> Scheduler:
    scheduler = Scheduler(store, concurrency=200)

    @scheduler.task(name="work")
    async def work() -> str:
        ran.append(current_run().job_id)
        return "a result"

    return scheduler


def runs_in(settlement: Settlement) -> list[RunForm]:
    return [decode_run(entry.body) for entry in settlement.entries if entry.kind == "run"]


def refuses_results_of(job_id: str) -> Callable[[Settlement], bool]:
    """As a server does that cannot take a value: whatever else is in the batch is refused with it."""
    return lambda settlement: settlement.id == job_id and any(run.result for run in runs_in(settlement))


async def test_a_poison_settlement_is_found_in_its_batch_and_the_others_are_settled(
    scheduler: Scheduler, store: FaultyStore, ran: list[str]
) -> None:
    heard: list[JobQuarantined] = []
    scheduler.on(JobQuarantined, heard.append)
    store.faults.is_poison = refuses_results_of("job-77")
    async with running(scheduler):
        await scheduler.add_jobs([JobSpec("work", once(delay=0.2), id=f"job-{n}") for n in range(150)])
        await eventually(lambda: len(ran) == 150)
        await remain(scheduler, 1)
        job = await scheduler.get_job("job-77")
        runs = Counter(run.job_id for run in await scheduler.history.runs(limit=1000))
        await asyncio.sleep(0.3)
    assert job.state == "quarantined"
    assert Counter(ran) == {f"job-{n}": 1 for n in range(150)}
    assert runs == {f"job-{n}": 1 for n in range(150)}
    assert [event.job_id for event in heard] == ["job-77"]
    # Halving finds it in few calls: twice the logarithm for each batch that it was in.
    assert store.faults.calls["settle"] <= 30


async def test_what_was_refused_only_once_is_written_and_quarantines_nothing(
    scheduler: Scheduler, store: FaultyStore, ran: list[str]
) -> None:
    heard: list[JobQuarantined] = []
    scheduler.on(JobQuarantined, heard.append)
    async with running(scheduler):
        store.faults.refused["settle"] = 1
        await scheduler.add_job("work", id="job")
        assert await scheduler.wait_job("job", timeout=60) is None
        [run] = await scheduler.history.runs("job")
    assert store.faults.refused["settle"] == 0
    assert (run.outcome, run.result, ran, heard) == ("succeeded", "a result", ["job"], [])


async def test_the_run_whose_end_was_refused_is_in_history_without_its_result(
    scheduler: Scheduler, store: FaultyStore, ran: list[str]
) -> None:
    store.faults.is_poison = refuses_results_of("job")
    async with running(scheduler):
        await scheduler.add_job("work", every(3600), id="job", run_immediately=True)
        await scheduler.add_job("work", every(3600), id="other", run_immediately=True)
        await eventually(lambda: len(ran) == 2)
        await scheduler.wait_job("other", timeout=60)
        job = await scheduler.wait_job("job", timeout=60)
        assert job is not None
        [run] = await scheduler.history.runs("job")
        [decision] = await scheduler.history.decisions("job")
    assert job.state == "quarantined"
    assert (run.outcome, run.result, run.traceback) == ("succeeded", None, None)
    assert decision.reason == "quarantined"
    assert "refused" in (decision.detail or "")


async def test_a_job_whose_end_was_refused_runs_again_when_it_is_resumed(
    scheduler: Scheduler, store: FaultyStore, ran: list[str]
) -> None:
    store.faults.is_poison = refuses_results_of("job")
    async with running(scheduler):
        await scheduler.add_job("work", every(0.3), id="job", run_immediately=True)
        await eventually(lambda: ran)
        job = await scheduler.wait_job("job", timeout=60)
        assert job is not None
        assert job.state == "quarantined"
        store.faults.is_poison = lambda settlement: False
        await scheduler.resume_job("job")
        await eventually(lambda: len(ran) >= 3)
        assert (await scheduler.get_job("job")).state in ("scheduled", "running")


async def test_a_settlement_that_is_refused_whatever_it_says_harms_no_other_job(
    scheduler: Scheduler, store: FaultyStore, ran: list[str]
) -> None:
    store.faults.is_poison = lambda settlement: settlement.id == "job-7"
    async with running(scheduler):
        await scheduler.add_jobs([JobSpec("work", id=f"job-{n}") for n in range(20)])
        await eventually(lambda: len(ran) == 20)
        await remain(scheduler, 1)
        await scheduler.add_job("work", id="later")
        await eventually(lambda: "later" in ran)
        await remain(scheduler, 1)
        assert (await scheduler.get_job("job-7")).id == "job-7"
        assert scheduler.running() == []


async def remain(scheduler: Scheduler, count: int) -> None:
    """Return once so many jobs are stored."""

    async def few() -> bool:
        return len(await scheduler.get_jobs()) <= count

    await eventually(few)
