"""A call that was performed and whose reply was lost is made again, and then counts once: no job runs twice, none is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from asyncsched import (
    ConflictingIdError,
    JobSpec,
    Retry,
    RunFinished,
    Scheduler,
    StoreUnavailable,
    current_run,
    every,
    manual,
    once,
)
from asyncsched.contract import Filter, Record
from tests.servers.running import Servers
from tests.support.faulty import Faults, FaultyStore
from tests.support.running import running
from tests.support.stores import make_store
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

PROMPTLY = Retry(base=0.01, max_delay=0.05)


@pytest.fixture
def store(store_kind: str, tmp_path: Path, servers: Servers) -> FaultyStore:
    return FaultyStore(make_store(store_kind, tmp_path, servers))


@pytest.fixture
def faults(store: FaultyStore) -> Faults:
    return store.faults


@pytest.fixture
def ran() -> list[str]:
    return []


@pytest.fixture
def scheduler(store: FaultyStore, ran: list[str]) -> Scheduler:
    scheduler = Scheduler(store, store_retry=PROMPTLY, poll_interval=0.2, heartbeat=None)

    @scheduler.task(name="work")
    async def work(*seen: object) -> None:
        ran.append(current_run().job_id)

    return scheduler


async def outcomes(scheduler: Scheduler) -> Counter[tuple[str, str | None]]:
    return Counter((run.job_id, run.outcome) for run in await scheduler.history.runs(limit=10_000))


@pytest.mark.parametrize("times", [1, 3])
async def test_a_claim_whose_reply_is_lost_runs_each_job_once(
    scheduler: Scheduler, faults: Faults, ran: list[str], times: int
) -> None:
    async with running(scheduler):
        await asyncio.sleep(0.05)
        faults.lost["claim"] = times
        await scheduler.add_jobs([JobSpec("work", id=f"job-{n}") for n in range(50)])
        await eventually(lambda: len(ran) >= 50)
        await all_gone(scheduler)
        assert faults.lost["claim"] == 0
        assert await outcomes(scheduler) == {(f"job-{n}", "succeeded"): 1 for n in range(50)}
    assert Counter(ran) == {f"job-{n}": 1 for n in range(50)}


@pytest.mark.parametrize("times", [1, 3])
async def test_a_settlement_whose_reply_is_lost_is_written_once_and_nothing_runs_again(
    scheduler: Scheduler, faults: Faults, ran: list[str], times: int
) -> None:
    told: list[tuple[str, str]] = []
    scheduler.on(RunFinished, lambda event: told.append((event.job_id, event.outcome)))
    async with running(scheduler):
        faults.lost["settle"] = times
        await scheduler.add_jobs([JobSpec("work", id=f"job-{n}") for n in range(50)])
        await scheduler.add_job("work", every(3600), id="recurring", run_immediately=True)
        await eventually(lambda: len(ran) >= 51 and not faults.lost["settle"])
        await scheduler.wait_job("recurring", timeout=60)
        await all_gone(scheduler, but=1)
        await asyncio.sleep(0.3)
        job = await scheduler.get_job("recurring")
        assert await outcomes(scheduler) == {(id, "succeeded"): 1 for id in ran}
        assert (await scheduler.history.stats("recurring")).total == 1
    assert len(ran) == len(set(ran)) == 51
    assert Counter(told) == {(id, "succeeded"): 1 for id in ran}
    assert job.state == "scheduled"


async def test_a_claim_that_overtakes_the_repetition_of_a_settlement_is_a_run_of_its_own(
    store: FaultyStore, faults: Faults
) -> None:
    """The settlement was written and its reply lost; before it is repeated the job is due again, and claimed."""
    scheduler = Scheduler(store, store_retry=Retry(base=0.5), id="here")
    fired: list[float] = []

    @scheduler.task(name="work")
    async def work() -> None:
        fired.append(current_run().fire_time.timestamp())

    async with running(scheduler):
        await scheduler.add_job("work", every(0.1), id="job")
        await eventually(lambda: fired)
        faults.lost["settle"] = 1
        await eventually(lambda: not faults.lost["settle"])
        seen = len(fired)
        await eventually(lambda: len(fired) >= seen + 5, what="the next runs")
        await scheduler.pause_job("job")
        await eventually(lambda: not scheduler.running())

        async def are_written() -> bool:
            return len(await scheduler.history.runs("job", limit=1000)) == len(fired)

        await eventually(are_written)
        assert (await outcomes(scheduler)).keys() == {("job", "succeeded")}
        runs = await scheduler.history.runs("job", limit=1000)
    assert len(fired) == len(set(fired))
    assert sorted(run.fire_time.timestamp() for run in runs) == fired


@pytest.mark.parametrize("count", [1, 200])
async def test_an_add_whose_reply_is_lost_adds_once_and_is_no_conflict_with_itself(
    scheduler: Scheduler, store: FaultyStore, faults: Faults, ran: list[str], count: int
) -> None:
    async with running(scheduler):
        faults.lost["add"] = 1
        added = await scheduler.add_jobs([JobSpec("work", id=f"job-{n}") for n in range(count)])
        assert faults.lost["add"] == 0
        await eventually(lambda: len(ran) >= count)
        await all_gone(scheduler)
        await asyncio.sleep(0.2)
    assert [job.id for job in added] == [f"job-{n}" for n in range(count)]
    assert Counter(ran) == {f"job-{n}": 1 for n in range(count)}


class LateReply(FaultyStore):
    """The reply to the first add is lost only when its jobs have run and are gone."""

    has_lost = False

    async def add(self, records: Sequence[Record]) -> set[str]:
        taken = await super().add(records)
        if not self.has_lost:
            self.has_lost = True
            ids = [record.id for record in records]
            await eventually(lambda: self.is_empty_of(ids))
            raise StoreUnavailable("the reply was lost")
        return taken

    async def is_empty_of(self, ids: Sequence[str]) -> bool:
        return not await self.inner.get(ids)


async def test_a_job_that_ran_before_its_add_is_repeated_is_not_added_again(
    store_kind: str, tmp_path: Path, servers: Servers
) -> None:
    store = LateReply(make_store(store_kind, tmp_path, servers))
    scheduler = Scheduler(store, store_retry=PROMPTLY, poll_interval=0.2, heartbeat=None)
    ran: list[str] = []

    @scheduler.task(name="work")
    async def work() -> None:
        ran.append(current_run().job_id)

    async with running(scheduler):
        added = await scheduler.add_jobs([JobSpec("work", id=f"job-{n}") for n in range(20)])
        await asyncio.sleep(0.5)  # Longer than a poll: they would run again.
    assert [job.id for job in added] == [f"job-{n}" for n in range(20)]
    assert Counter(ran) == {f"job-{n}": 1 for n in range(20)}


async def test_an_add_whose_reply_is_lost_is_still_a_conflict_with_another_job(
    scheduler: Scheduler, faults: Faults
) -> None:
    async with running(scheduler):
        await scheduler.add_job("work", manual(), id="taken")
        faults.lost["add"] = 1
        with pytest.raises(ConflictingIdError):
            await scheduler.add_job("work", manual(), id="taken")


async def test_an_update_whose_reply_is_lost_is_made_once(
    scheduler: Scheduler, faults: Faults, ran: list[str]
) -> None:
    async with running(scheduler):
        await scheduler.add_job("work", manual(), id="job", args=[1])
        faults.lost["update"] = 1
        job = await scheduler.update_job("job", args=[2])
        assert faults.lost["update"] == 0
        assert (job.args, job.version) == ((2,), 2)
        assert await scheduler.get_job("job") == job


async def test_a_run_request_whose_reply_is_lost_runs_the_job_once(
    scheduler: Scheduler, faults: Faults, ran: list[str]
) -> None:
    async with running(scheduler):
        await scheduler.add_job("work", manual(), id="job")
        faults.lost["update"] = 1
        await scheduler.run_job("job")
        assert faults.lost["update"] == 0
        await eventually(lambda: ran)
        await scheduler.wait_job("job", timeout=60)
        await asyncio.sleep(0.3)
    assert ran == ["job"]


async def test_a_pause_whose_reply_is_lost_holds(
    scheduler: Scheduler, faults: Faults, ran: list[str]
) -> None:
    async with running(scheduler):
        await scheduler.add_job("work", every(0.5), id="job")
        faults.lost["update"] = 1
        assert (await scheduler.pause_job("job")).state == "paused"
        assert faults.lost["update"] == 0
        await asyncio.sleep(0.8)
    assert ran == []


async def test_a_removal_whose_reply_is_lost_tells_that_the_job_was_there(
    scheduler: Scheduler, faults: Faults
) -> None:
    async with running(scheduler):
        await scheduler.add_job("work", manual(), id="job")
        faults.lost["remove"] = 1
        assert await scheduler.remove_job("job") is True
        assert faults.lost["remove"] == 0
        assert await scheduler.remove_job("job", missing_ok=True) is False


async def test_renewals_whose_replies_are_lost_cost_no_lease(
    store: FaultyStore, faults: Faults, store_kind: str
) -> None:
    if store_kind == "memory":
        pytest.skip("leases in the memory of one process do not end")
    scheduler = Scheduler(store, store_retry=PROMPTLY, lease=1.5)
    begun: list[str] = []

    @scheduler.task(name="long")
    async def long() -> None:
        begun.append(current_run().job_id)
        await asyncio.sleep(3.0)

    async with running(scheduler):
        await asyncio.sleep(0.05)
        faults.lost["renew"] = 2
        await scheduler.add_job("long", id="job")
        await eventually(lambda: begun)
        await scheduler.wait_job("job", timeout=60)
        assert faults.lost["renew"] == 0
        assert await outcomes(scheduler) == {("job", "succeeded"): 1}
    assert begun == ["job"]


async def test_jobs_run_once_each_though_every_third_reply_of_every_call_is_lost(
    scheduler: Scheduler, store: FaultyStore, faults: Faults, ran: list[str]
) -> None:
    losable = ("claim", "settle", "add", "get", "page", "runs")
    async with running(scheduler):
        faults.loses = lambda method: method in losable and faults.calls[method] % 3 == 0
        for batch in range(10):
            await scheduler.add_jobs(
                [JobSpec("work", once(delay=0.05 * batch), id=f"job-{batch}-{n}") for n in range(30)]
            )
        await eventually(lambda: len(ran) >= 300)
        faults.loses = lambda method: False
        await all_gone(scheduler)
        await asyncio.sleep(0.3)
        assert await outcomes(scheduler) == {(id, "succeeded"): 1 for id in ran}
        assert await store.inner.page(Filter(), 10) == []
    assert len(ran) == len(set(ran)) == 300


async def all_gone(scheduler: Scheduler, but: int = 0) -> None:
    """Return once no more than so many jobs are stored."""

    async def few() -> bool:
        return len(await scheduler.get_jobs()) <= but

    await eventually(few)
