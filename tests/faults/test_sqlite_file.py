"""What can happen to a SQLite file while schedulers use it: another program's lock, a full disk, a writer that dies."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from asyncsched import JobSpec, Retry, Scheduler, StoreDegraded, StoreEvent, StoreRecovered, current_run, once
from asyncsched.stores.sqlite import SQLiteStore
from tests.support.running import running
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def needs_sqlite(stores: Sequence[str]) -> None:
    if "sqlite" not in stores:
        pytest.skip("sqlite was left out by --stores")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def store(path: Path) -> SQLiteStore:
    return SQLiteStore(path, busy_timeout=0.1)


@pytest.fixture
def ran() -> list[str]:
    return []


@pytest.fixture
def told() -> list[type[StoreEvent]]:
    return []


@pytest.fixture
def scheduler(store: SQLiteStore, ran: list[str], told: list[type[StoreEvent]]) -> Scheduler:
    scheduler = Scheduler(
        store, store_retry=Retry(base=0.02, max_delay=0.2), poll_interval=0.2, concurrency=20
    )

    @scheduler.task(name="work")
    async def work() -> None:
        ran.append(current_run().job_id)

    scheduler.on(StoreEvent, lambda event: told.append(type(event)))
    return scheduler


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """Another program holds the write lock."""
    other = sqlite3.connect(path, isolation_level=None, timeout=10)
    try:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("COMMIT")
    finally:
        other.close()


async def settled_once(scheduler: Scheduler, count: int) -> None:
    async def are_gone() -> bool:
        return not await scheduler.get_jobs(limit=1)

    await eventually(are_gone)
    runs = await scheduler.history.runs(limit=10_000)
    assert Counter((run.job_id, run.outcome) for run in runs) == {
        (f"job-{n}", "succeeded"): 1 for n in range(count)
    }


async def test_jobs_run_once_each_though_another_program_locks_the_file_for_longer_than_the_patience(
    scheduler: Scheduler, path: Path, ran: list[str], told: list[type[StoreEvent]]
) -> None:
    async with running(scheduler):
        await scheduler.add_jobs([JobSpec("work", once(delay=0.01 * n), id=f"job-{n}") for n in range(200)])
        for _ in range(2):
            await asyncio.sleep(0.2)
            async with locked(path):
                await asyncio.sleep(1.0)
        await settled_once(scheduler, 200)
    assert Counter(ran) == {f"job-{n}": 1 for n in range(200)}
    assert told[:2] == [StoreDegraded, StoreRecovered]


async def test_ends_wait_for_a_full_disk_to_have_room_again(
    scheduler: Scheduler, store: SQLiteStore, ran: list[str], told: list[type[StoreEvent]]
) -> None:
    async with running(scheduler):
        await scheduler.add_jobs([JobSpec("work", once(delay=0.3), id=f"job-{n}") for n in range(400)])
        await limit_size(store, 1)
        await eventually(lambda: StoreDegraded in told)
        await asyncio.sleep(0.5)
        assert len(ran) < 400
        await limit_size(store, 1 << 30)
        await settled_once(scheduler, 400)
    assert Counter(ran) == {f"job-{n}": 1 for n in range(400)}
    assert told == [StoreDegraded, StoreRecovered]


async def limit_size(store: SQLiteStore, pages: int) -> None:
    """Let the file of this connection grow no further than so many pages (or than it is)."""
    await store._line.hop(lambda: store._line.db.execute(f"PRAGMA max_page_count = {pages}").fetchall())


async def test_a_reader_that_keeps_an_old_snapshot_open_holds_up_nobody(
    scheduler: Scheduler, path: Path, ran: list[str], told: list[type[StoreEvent]]
) -> None:
    """As a backup or a report does."""
    async with running(scheduler):
        await scheduler.add_jobs([JobSpec("work", once(delay=0.2), id=f"job-{n}") for n in range(200)])
        reader = sqlite3.connect(path, isolation_level=None)
        try:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM asyncsched_jobs").fetchone()
            await settled_once(scheduler, 200)
        finally:
            reader.close()
    assert told == []


async def test_several_schedulers_on_one_file_run_each_job_once(path: Path) -> None:
    """Three in this process, each over a connection of its own, all after the same jobs."""
    ran: list[str] = []

    def make(number: int) -> Scheduler:
        scheduler = Scheduler(f"sqlite:///{path}", concurrency=10, poll_interval=0.1, id=f"instance-{number}")

        @scheduler.task(name="work")
        async def work() -> None:
            ran.append(current_run().job_id)
            await asyncio.sleep(0.005)

        return scheduler

    schedulers = [make(number) for number in range(3)]
    async with running(*schedulers):
        await schedulers[0].add_jobs([JobSpec("work", once(delay=0.5), id=f"job-{n}") for n in range(300)])
        await settled_once(schedulers[0], 300)
        runs = await schedulers[0].history.runs(limit=1000)
    assert Counter(ran) == {f"job-{n}": 1 for n in range(300)}
    assert len({run.instance for run in runs}) >= 2
