"""Where a call to the store takes a while, runs share their claims and settlements, and none is late or early for that."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from asyncsched import JobSpec, Scheduler, current_run, once
from asyncsched.testing import ManualClock
from tests.support.faulty import FaultyStore
from tests.support.stores import SharedMemory
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


JOBS = 400
SPAN_S = 0.8
#: Claims that nobody waits for are 12 ms apart, settlements 6 ms.
MOST_CLAIMS, MOST_SETTLEMENTS = 2 * SPAN_S / 0.012, 2 * SPAN_S / 0.006


async def test_jobs_due_one_after_the_other_share_claims_and_settlements_and_start_at_their_times() -> None:
    store = FaultyStore(SharedMemory(now=time.time))
    lags: list[timedelta] = []
    async with Scheduler(store) as scheduler:

        @scheduler.task(name="note")
        async def note() -> None:
            lags.append(scheduler.now() - current_run().due_at)

        begin = datetime.now(UTC) + timedelta(seconds=0.3)
        step = timedelta(seconds=SPAN_S / JOBS)
        await scheduler.add_jobs([JobSpec("note", once(begin + i * step)) for i in range(JOBS)])
        asked = store.faults.calls.copy()
        await eventually(lambda: len(lags) == JOBS)
        asked = store.faults.calls - asked

    assert min(lags) >= timedelta()
    assert asked["claim"] <= MOST_CLAIMS
    assert asked["settle"] <= MOST_SETTLEMENTS


async def test_what_was_claimed_before_it_was_due_does_not_begin_in_a_scheduler_that_stops(
    clock: ManualClock,
) -> None:
    store = SharedMemory()
    began: list[str] = []
    async with Scheduler(store, lookahead=2, clock=clock) as scheduler:
        over = asyncio.Event()

        @scheduler.task(name="long")
        async def long() -> None:
            await over.wait()

        @scheduler.task(name="note")
        async def note() -> None:
            began.append(current_run().job_id)

        await scheduler.enqueue("long")
        await scheduler.add_job("note", once(delay=1), id="soon")
        await clock.advance(0)
        assert (await scheduler.get_job("soon")).state == "running"
        stopping = asyncio.create_task(scheduler.stop(drain=60))
        await clock.advance(2)
        over.set()
        await stopping
    assert began == []

    async with Scheduler(store, clock=clock) as successor:

        @successor.task(name="note")
        async def note_again() -> None:
            began.append(current_run().job_id)

        await clock.advance(0)
        assert began == ["soon"]
        assert [run.outcome for run in await successor.history.runs("soon")] == ["succeeded"]
