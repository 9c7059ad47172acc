"""A scheduler on a manual clock, and schedulers over one store that is kept between them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from asyncsched import MemoryStore, Scheduler
from asyncsched.stores import store_from_url
from asyncsched.testing import ManualClock
from tests.servers.running import Servers
from tests.support.patient import PatientClock
from tests.support.stores import url_of

MakeScheduler = Callable[..., Scheduler]


@pytest.fixture
def clock() -> PatientClock:
    return PatientClock()


async def stop_at_once(scheduler: Scheduler, clock: ManualClock) -> None:
    """Stop without a drain; whoever waits for the clock meanwhile gets all the time it wants."""
    if scheduler.state == "stopped":
        return
    stopping = asyncio.get_running_loop().create_task(scheduler.stop(drain=0))
    for _ in range(20):
        await clock.advance(10)
        if stopping.done():
            break
    await stopping


@pytest.fixture
async def scheduler(clock: ManualClock) -> AsyncIterator[Scheduler]:
    """Started, on a memory store and the manual clock; nothing really sleeps."""
    scheduler = Scheduler(clock=clock, id="here")
    await scheduler.start()
    yield scheduler
    await stop_at_once(scheduler, clock)


@pytest.fixture
def make_scheduler(store_kind: str, tmp_path: Path, servers: Servers) -> MakeScheduler:
    """Makes schedulers, each over the same stored jobs, as one process after the other would have them."""
    memory = MemoryStore()
    url = url_of(store_kind, tmp_path, servers)

    def make(**options: Any) -> Scheduler:
        if store_kind == "memory":
            return Scheduler(memory, **options)
        match options.get("clock"):
            case PatientClock() as clock:
                return Scheduler(clock.timing(store_from_url(url)), **options)
            case _:
                return Scheduler(url, **options)

    return make


@pytest.fixture
def sqlite_url(stores: tuple[str, ...], tmp_path: Path) -> str:
    if "sqlite" not in stores:
        pytest.skip("sqlite was left out by --stores")
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def steps(scheduler: Scheduler) -> list[Callable[[], Any]]:
    """What the task ``stepwise`` does: one of these in each run, the last one for good."""
    steps: list[Callable[[], Any]] = []

    @scheduler.task(name="stepwise")
    async def stepwise() -> Any:
        step = steps.pop(0) if len(steps) > 1 else steps[0]
        answer = step()
        return await answer if isinstance(answer, Awaitable) else answer

    return steps
