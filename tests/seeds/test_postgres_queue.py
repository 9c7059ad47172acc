"""What the document of the queue on PostgreSQL promises, on every store."""

import asyncio
import logging
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import asyncsched
from asyncsched import Carry, Retention, Retry, Scheduler, cron, current_run, every
from asyncsched.middleware import log_runs
from asyncsched.testing import ManualClock
from tests.servers.running import Servers
from tests.support.stores import SharedMemory, url_of
from tests.support.waiting import eventually
from tests.unit.conftest import MakeScheduler

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parent.parent.parent


async def test_a_recurring_job_and_one_that_runs_once_live_in_one_store(
    make_scheduler: MakeScheduler,
) -> None:
    ran: list[tuple[str, datetime]] = []
    scheduler = make_scheduler()

    @scheduler.job(cron("* * * * * *"), id="recurring")
    async def recurring() -> None:
        ran.append(("recurring", current_run().fire_time))

    @scheduler.task(name="one-time")
    async def one_time() -> None:
        ran.append(("one-time", current_run().fire_time))

    async with scheduler:
        await scheduler.add_job(one_time, id="one-time")
        await eventually(lambda: {name for name, _ in ran} == {"one-time", "recurring"} and len(ran) > 2)
        assert [job.id for job in await scheduler.get_jobs()] == ["recurring"]
    assert [name for name, _ in ran].count("one-time") == 1
    fires = [fire for name, fire in ran if name == "recurring"]
    assert len(set(fires)) == len(fires)
    assert {fire.microsecond for fire in fires} == {0}


async def test_every_attempt_has_the_arguments_that_its_own_job_was_given(
    make_scheduler: MakeScheduler,
) -> None:
    seen: dict[str, list[Any]] = {"a": [], "b": []}
    scheduler = make_scheduler()

    @scheduler.task(name="one-time", retry=Retry(max_attempts=4, base=0.01))
    async def one_time(key1: str, key2: int) -> None:
        seen[current_run().job_id].append({"key1": key1, "key2": key2})
        raise ConnectionError("a passing fault")

    async with scheduler:
        for id, number in (("a", 42), ("b", 43)):
            await scheduler.add_job(one_time, id=id, kwargs={"key1": "value1", "key2": number})
        await eventually(lambda: [len(calls) for calls in seen.values()] == [4, 4])
        await eventually(lambda: has_failed(scheduler, "a"))
    assert seen["a"] == [{"key1": "value1", "key2": 42}] * 4
    assert seen["b"] == [{"key1": "value1", "key2": 43}] * 4


async def has_failed(scheduler: Scheduler, id: str) -> bool:
    return (await scheduler.get_job(id)).state == "failed"


async def test_a_recurring_job_runs_in_one_of_several_instances_at_a_time(
    store_kind: str, tmp_path: Path, servers: Servers
) -> None:
    memory = SharedMemory()
    url = url_of(store_kind, tmp_path, servers)
    under_way, most, ended = 0, 0, list[datetime]()

    async def work() -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.12)  # Longer than the interval: others could begin meanwhile.
        under_way -= 1
        ended.append(current_run().fire_time)

    instances = [Scheduler(memory if store_kind == "memory" else url, lease=5) for _ in range(3)]
    for instance in instances:
        instance.job(every(0.1), id="recurring")(instance.register(work, "work"))
        await instance.start()
    await eventually(lambda: len(ended) >= 4)
    for instance in instances:
        await instance.stop()
    assert most == 1
    assert len(set(ended)) == len(ended), "a fire time has one run"


async def test_long_work_can_be_done_in_pieces(scheduler: Scheduler, clock: ManualClock) -> None:
    done: list[range] = []

    @scheduler.task(name="pieces")
    async def pieces() -> Carry | None:
        begin = current_run().carried or 0
        done.append(range(begin, begin + 100))
        return Carry(begin + 100, next_at=clock.now()) if begin < 200 else None

    await scheduler.add_job(pieces)
    await clock.advance(1)
    assert done == [range(100), range(100, 200), range(200, 300)]
    assert await scheduler.get_jobs() == []


async def test_it_tells_what_happens_to_the_logger_that_it_was_given(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("my.jobs")
    async with Scheduler(clock=clock, logger=logger, middleware=[log_runs()]) as scheduler:

        @scheduler.task(name="stores_nothing")
        async def task() -> object:
            return object()

        with caplog.at_level(logging.INFO):
            await scheduler.add_job(task, id="x")
            await clock.advance(0)
    told = [(record.name, record.getMessage()) for record in caplog.records if "asyncio" not in record.name]
    assert {name for name, _ in told} == {"my.jobs"}
    assert any("the result of job 'x' is not kept" in text for _, text in told)
    assert len(told) >= 3, "the beginning and the end of the run too"


async def test_history_is_looked_after_as_often_as_asked(clock: ManualClock) -> None:
    async with Scheduler(clock=clock, retention=Retention(age=60, every=600)) as scheduler:

        @scheduler.task(name="nothing")
        async def nothing() -> None: ...

        await scheduler.add_job(nothing)
        await clock.advance(500)
        assert len(await scheduler.history.runs()) == 1
        await clock.advance(200)
        assert await scheduler.history.runs() == []


def test_the_package_and_every_extra_that_a_page_installs_are_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    asked = [
        line.split('"')[1]
        for page in pages
        for line in page.read_text().splitlines()
        if line.startswith('$ pip install "')
    ]
    assert asked
    for requirement in asked:
        name, _, extras = requirement.rstrip("]").partition("[")
        assert name == project["name"] == asyncsched.__name__
        assert {extra.strip() for extra in extras.split(",")} <= set(project["optional-dependencies"])
