"""Jobs that are changed by their own runs, or in mid-run."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncsched import (
    Finish,
    Retry,
    Scheduler,
    every,
    once,
)
from asyncsched.testing import ManualClock

pytestmark = pytest.mark.anyio

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NEW_YEAR + timedelta(seconds=seconds)


# -- from inside its own run -------------------------------------------------------------------------------------------


def own_run(scheduler: Scheduler, change: Any, fail: bool = False) -> list[int]:
    """Register ``own``: it makes *change* in its first run, and counts its runs."""
    ran: list[int] = []

    @scheduler.task(name="own")
    async def own() -> None:
        ran.append(1)
        if len(ran) == 1:
            await change()
        if fail:
            raise ValueError

    return ran


@pytest.mark.parametrize(
    "change",
    [{"tags": ("a",)}, {"name": "new"}, {"metadata": {"a": 1}}, {"priority": 7}, {"queue": "mail"}],
    ids=str,
)
async def test_a_recurring_job_that_updates_itself_is_updated(
    clock: ManualClock, change: dict[str, Any]
) -> None:
    async with Scheduler(clock=clock, queues=["default", "mail"]) as scheduler:
        ran = own_run(scheduler, lambda: scheduler.update_job("x", **change))
        await scheduler.add_job("own", every(60), id="x")
        await clock.advance(61)
        job = await scheduler.get_job("x")
        [(field, value)] = change.items()
        assert (getattr(job, field), job.state, job.next_fire_time) == (value, "scheduled", at(120))
        assert len(ran) == 1
        await clock.advance(60)
        assert len(ran) == 2


async def test_a_one_shot_that_updates_itself_runs_once(scheduler: Scheduler, clock: ManualClock) -> None:
    ran = own_run(scheduler, lambda: scheduler.update_job("x", tags=["a"]))
    await scheduler.add_job("own", id="x")
    await clock.advance(60)
    assert len(ran) == 1
    assert await scheduler.get_jobs() == []


async def test_a_one_shot_that_updates_itself_and_fails_is_kept_as_failed(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    ran = own_run(scheduler, lambda: scheduler.update_job("x", tags=["a"]), fail=True)
    await scheduler.add_job("own", id="x")
    await clock.advance(60)
    assert len(ran) == 1
    job = await scheduler.get_job("x")
    assert (job.state, job.tags, job.last_error) == ("failed", ("a",), "ValueError")


async def test_a_job_that_updates_itself_and_fails_is_retried_as_it_would_be(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    ran = own_run(scheduler, lambda: scheduler.update_job("x", tags=["a"]), fail=True)
    await scheduler.add_job("own", id="x", retry=Retry(max_attempts=3, base=10, multiplier=1))
    await clock.advance(5)
    assert len(ran) == 1
    await clock.advance(100)
    assert [run.attempt for run in await scheduler.history.runs("x")] == [3, 2, 1]
    assert (await scheduler.get_job("x")).state == "failed"


async def test_a_job_that_reschedules_itself_is_rescheduled(scheduler: Scheduler, clock: ManualClock) -> None:
    ran = own_run(scheduler, lambda: scheduler.reschedule_job("x", every(100)))
    await scheduler.add_job("own", every(60), id="x")
    await clock.advance(61)
    assert (await scheduler.get_job("x")).next_fire_time == at(160)
    await clock.advance(100)
    assert len(ran) == 2


async def test_a_one_shot_that_reschedules_itself_runs_again(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    ran = own_run(scheduler, lambda: scheduler.reschedule_job("x", once(delay=30)))
    await scheduler.add_job("own", id="x")
    await clock.advance(29)
    assert len(ran) == 1
    await clock.advance(60)
    assert len(ran) == 2
    assert await scheduler.get_jobs() == []


@pytest.mark.parametrize("trigger", [every(60), once(delay=60)], ids=str)
async def test_a_job_that_pauses_itself_is_paused(
    scheduler: Scheduler, clock: ManualClock, trigger: Any
) -> None:
    ran = own_run(scheduler, lambda: scheduler.pause_job("x"))
    await scheduler.add_job("own", trigger, id="x")
    await clock.advance(600)
    assert len(ran) == 1
    if trigger.recurs:
        assert (await scheduler.get_job("x")).state == "paused"
        await scheduler.resume_job("x")
        await clock.advance(60)
        assert len(ran) == 2


async def test_a_job_that_removes_itself_is_gone(scheduler: Scheduler, clock: ManualClock) -> None:
    ran = own_run(scheduler, lambda: scheduler.remove_job("x"))
    await scheduler.add_job("own", every(60), id="x")
    await clock.advance(600)
    assert len(ran) == 1
    assert await scheduler.get_jobs() == []
    assert [run.outcome for run in await scheduler.history.runs("x")] == ["succeeded"]


async def test_a_job_that_removes_and_adds_itself_again_is_the_new_one(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    async def change() -> None:
        await scheduler.remove_job("x")
        await scheduler.add_job("own", once(delay=30), id="x", tags=["new"])

    ran = own_run(scheduler, change)
    await scheduler.add_job("own", every(60), id="x")
    await clock.advance(61)
    assert (await scheduler.get_job("x")).tags == ("new",)
    await clock.advance(600)
    assert len(ran) == 2


async def test_a_job_that_asks_for_one_more_run_of_itself_gets_one(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    ran = own_run(scheduler, lambda: scheduler.run_job("x"))
    await scheduler.add_job("own", every(60), id="x")
    await clock.advance(100)
    assert len(ran) == 2
    assert (await scheduler.get_job("x")).next_fire_time == at(120)


async def test_a_job_that_updates_itself_and_finishes_is_finished(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    async def change() -> None:
        await scheduler.update_job("x", tags=["a"])
        raise Finish

    ran = own_run(scheduler, change)
    await scheduler.add_job("own", every(60), id="x")
    await clock.advance(600)
    assert len(ran) == 1
    assert await scheduler.get_jobs() == []


async def test_replacing_a_job_in_mid_run_holds_from_its_end(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    gate = asyncio.Event()

    @scheduler.task(name="gated")
    async def gated() -> None:
        await gate.wait()

    await scheduler.add_job(gated, every(60), id="x")
    await clock.advance(61)
    await scheduler.add_job(gated, every(60), id="x", priority=5, tags=["a"], on_conflict="replace")
    gate.set()
    await clock.advance(1)
    job = await scheduler.get_job("x")
    assert (job.priority, job.tags, job.next_fire_time) == (5, ("a",), at(120))
