"""Jobs that are changed between their end and what is to come of that: one whose run was under way when it was updated is
removed, or laid to rest, by its next claim, and a change that comes before that must neither keep it for ever nor have it run
again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest

from asyncsched import Retention, Scheduler, every, once
from asyncsched.contract import Filter, Settled, Settlement
from asyncsched.model import OnExhausted
from asyncsched.testing import ManualClock
from tests.support.running import running
from tests.support.stores import SharedMemory

pytestmark = pytest.mark.anyio


class Intruded(SharedMemory):
    """Has *between* done, once, when the end of a job that was updated meanwhile has been written."""

    between: Callable[[], Awaitable[object]] | None = None
    #: The same, before a job is deleted.
    before: Callable[[], Awaitable[object]] | None = None

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        if self.before is not None and any(settlement.delete for settlement in settlements):
            before, self.before = self.before, None
            await before()
        answers = await super().settle(settlements)
        if "stale" in answers and self.between is not None:
            between, self.between = self.between, None
            await between()
        return answers


CHANGES: dict[str, Callable[[Scheduler], Awaitable[object]]] = {
    "update": lambda scheduler: scheduler.update_job("brief", tags=["b"]),
    "pause": lambda scheduler: scheduler.pause_job("brief"),
}


def pair(store: Intruded, clock: ManualClock) -> tuple[Scheduler, Scheduler]:
    """One that runs jobs, and keeps failed ones for an hour, and one that only calls."""
    here = Scheduler(store, clock=clock, heartbeat=None, id="here", retention=Retention(age=3600))
    return here, Scheduler(store, clock=clock, heartbeat=None, id="there", queues=["elsewhere"])


async def pass_time(clock: ManualClock, seconds: float, times: int = 20) -> None:
    for _ in range(times):
        await clock.advance(seconds / times)


@pytest.mark.parametrize("change", CHANGES)
async def test_a_job_that_is_changed_between_its_end_and_its_removal_is_removed(
    clock: ManualClock, change: str
) -> None:
    store = Intruded()
    scheduler = Scheduler(store, clock=clock, heartbeat=None, id="here")
    other = Scheduler(store, clock=clock, heartbeat=None, id="there", queues=["elsewhere"])
    ran: list[str] = []

    async def brief() -> None:
        ran.append("brief")
        await other.update_job("brief", tags=["a"])

    scheduler.register(brief, "brief")
    async with running(scheduler, other, clock=clock):
        store.between = lambda: CHANGES[change](other)
        await scheduler.add_job("brief", once(delay=1), id="brief")
        for _ in range(40):
            await clock.advance(0.1)
        assert store.between is None
        assert await store.page(Filter(), 10) == []
    assert ran == ["brief"]


async def test_a_one_shot_that_was_paused_while_it_ran_is_not_run_again_when_it_is_resumed(
    clock: ManualClock,
) -> None:
    store = Intruded()
    scheduler, other = pair(store, clock)
    ran: list[str] = []

    async def brief() -> None:
        ran.append("brief")
        await other.pause_job("brief")

    scheduler.register(brief, "brief")
    async with running(scheduler, other, clock=clock):
        store.between = lambda: other.resume_job("brief")
        await scheduler.add_job("brief", once(delay=1), id="brief")
        await pass_time(clock, 4)
        assert store.between is None
        assert await store.page(Filter(), 10) == []
    assert ran == ["brief"]


@pytest.mark.parametrize(("on_exhausted", "state"), [("keep", "failed"), ("pause", "paused")])
async def test_a_failed_job_that_is_changed_before_it_is_laid_to_rest_rests_and_can_be_resumed(
    clock: ManualClock, on_exhausted: OnExhausted, state: str
) -> None:
    store = Intruded()
    scheduler, other = pair(store, clock)
    ran: list[str] = []

    async def brief() -> None:
        ran.append("brief")
        if len(ran) == 1:
            await other.update_job("brief", tags=["a"])
            raise ValueError("it fails")

    scheduler.register(brief, "brief")
    async with running(scheduler, other, clock=clock):
        store.between = lambda: other.update_job("brief", tags=["b"])
        await scheduler.add_job("brief", once(delay=1), id="brief", on_exhausted=on_exhausted)
        await pass_time(clock, 4)
        assert store.between is None
        assert (await scheduler.get_job("brief")).state == state
        await scheduler.resume_job("brief")
        await pass_time(clock, 1)
        assert await scheduler.get_jobs() == []
    assert len(ran) == 2


async def test_a_failed_job_that_is_resumed_while_it_is_being_removed_is_tried_again(
    clock: ManualClock,
) -> None:
    store = Intruded()
    scheduler, other = pair(store, clock)
    ran: list[str] = []

    async def brief() -> None:
        ran.append("brief")
        if len(ran) == 1:
            raise ValueError("it fails")

    scheduler.register(brief, "brief")
    async with running(scheduler, other, clock=clock):
        await scheduler.add_job("brief", id="brief")
        await pass_time(clock, 1)
        store.before = lambda: other.resume_job("brief")
        await pass_time(clock, 4_000)
        assert store.before is None
        assert await scheduler.get_jobs() == []
    assert len(ran) == 2


async def test_a_forced_run_of_a_paused_job_is_made_though_the_job_is_changed_before_it(
    clock: ManualClock,
) -> None:
    store = Intruded()
    scheduler, other = pair(store, clock)
    ran: list[str] = []

    async def brief() -> None:
        ran.append("brief")
        if len(ran) == 1:
            await other.pause_job("brief")
            await other.run_job("brief", force=True)

    scheduler.register(brief, "brief")
    async with running(scheduler, other, clock=clock):
        store.between = lambda: other.update_job("brief", tags=["b"])
        await scheduler.add_job("brief", every(hours=1), id="brief", run_immediately=True)
        await pass_time(clock, 4)
        assert store.between is None
        assert (await scheduler.get_job("brief")).state == "paused"
    assert len(ran) == 2
