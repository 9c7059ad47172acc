"""Threads, listeners, lifespans, locks and stores that do what they should not, or at a bad moment: nothing hangs, is lost, or is
told wrong for it."""

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from asyncsched import (
    Event,
    Job,
    JobNotRunning,
    Leader,
    Lock,
    LockLost,
    MemoryStore,
    NotRunning,
    Retry,
    RetryLater,
    RunSucceeded,
    Scheduler,
    StoreUnavailable,
    current_run,
    every,
    lifespans,
    once,
)
from asyncsched.contract import Claim, Lease, Renewal
from asyncsched.testing import ManualClock
from tests.support.faulty import FaultyStore
from tests.support.stores import SharedMemory
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


async def nothing() -> None:
    """Do nothing."""


async def fails() -> None:
    raise ValueError("spoilt")


async def failing_group() -> None:
    """Before Python 3.13 whoever calls this counts as cancelled once more."""
    with contextlib.suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fails())


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [asyncio.CancelledError, concurrent.futures.CancelledError])
def test_a_thread_that_answers_its_cancellation_with_one_of_its_own_ends(error: type[BaseException]) -> None:
    outcomes: list[str | None] = []

    async def main() -> None:
        async with Scheduler() as scheduler:

            @scheduler.task(name="work", timeout=0.05)
            def work() -> None:
                run = current_run()
                while not run.cancelled:
                    time.sleep(0.01)  # A thread asks now and then whether it is to end.
                raise error

            receipt = await scheduler.enqueue(work)
            await scheduler.wait_job(receipt.job_id, timeout=60)
            outcomes.extend(run.outcome for run in await scheduler.history.runs())

    # The event loop itself would never come back.
    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    thread.join(60)
    assert outcomes == ["timed_out"]


class Hasty(RetryLater):
    """Made without what it is made of."""

    def __init__(self) -> None:
        Exception.__init__(self, "hasty")


async def test_a_steering_error_that_cannot_be_followed_is_a_failure(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    @scheduler.task(name="work")
    async def work() -> None:
        raise Hasty

    await scheduler.add_job("work", id="x")
    await clock.advance(1)
    assert scheduler.running() == []
    assert [run.outcome for run in await scheduler.history.runs("x")] == ["failed"]


# -- start and stop ----------------------------------------------------------------------------------------------------


async def test_a_run_in_a_thread_may_still_use_the_scheduler_while_it_drains() -> None:
    store, began, gate = MemoryStore(), threading.Event(), threading.Event()
    scheduler = Scheduler(store)
    scheduler.register(nothing, "next")

    @scheduler.task(name="work")
    def work() -> None:
        began.set()
        gate.wait(60)
        current_run().scheduler.from_thread.add_job("next", id="after it")

    await scheduler.start()
    await scheduler.add_job("work", id="x")
    await eventually(began.is_set)
    stopping = asyncio.create_task(scheduler.stop(drain=60))
    await eventually(lambda: scheduler.state == "stopping")
    gate.set()
    await stopping
    assert "after it" in await store.get(["after it"])


async def test_a_start_that_follows_a_failed_one_at_once_is_another_one(clock: ManualClock) -> None:
    problems = [ValueError("no database")]

    @asynccontextmanager
    async def lifespan(_: Scheduler) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        if problems:
            raise problems.pop()
        await asyncio.sleep(0.02)  # The second start is under way when the first one ends.
        yield

    scheduler = Scheduler(clock=clock, lifespan=lifespan)

    async def again() -> None:
        while scheduler.state != "stopped":  # noqa: ASYNC110 - in the very turn in which it has stopped
            await asyncio.sleep(0)
        await scheduler.start()

    failing = asyncio.create_task(scheduler.start())
    await asyncio.sleep(0)
    await again()
    assert isinstance((await asyncio.gather(failing, return_exceptions=True))[0], ValueError)
    assert scheduler.state == "running"
    await scheduler.stop(drain=0)


async def test_run_returns_when_a_run_has_stopped_the_scheduler() -> None:
    scheduler = Scheduler()

    @scheduler.task(name="last")
    async def last() -> None:
        await scheduler.stop()

    running = asyncio.create_task(scheduler.run())
    await eventually(lambda: scheduler.is_running)
    await scheduler.enqueue(last)
    await asyncio.wait_for(running, 60)
    assert scheduler.state == "stopped"


async def test_a_store_that_was_being_opened_over_a_restart_has_one_worker() -> None:
    gate, ran = asyncio.Event(), list[int]()

    class Slow(MemoryStore):
        opened = 0

        async def open(self, now: Callable[[], float] | None = None) -> None:
            self.opened += 1
            if self.opened == 1:
                await gate.wait()
            await super().open(now)

    scheduler = Scheduler()

    @scheduler.task(name="work")
    async def work() -> None:
        ran.append(1)

    await scheduler.start()
    adding = asyncio.create_task(scheduler.add_store("b", Slow()))
    await asyncio.sleep(0)
    await scheduler.stop(drain=0)
    await scheduler.start()
    gate.set()
    await adding
    await scheduler.add_job("work", every(0.01), store="b")
    await eventually(lambda: ran)
    await scheduler.stop(drain=0)
    ran.clear()
    await asyncio.sleep(0.1)  # Nothing tells of a run that does not come.
    assert ran == [], "after its stop"


# -- listeners ---------------------------------------------------------------------------------------------------------


async def test_a_listener_that_ends_its_own_hearing_goes_on_to_its_end(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    steps: list[str] = []

    async def once_only(event: Event) -> None:
        subscription()
        steps.append("heard")
        await asyncio.sleep(0)
        steps.append("done")

    subscription = scheduler.on(RunSucceeded, once_only)
    scheduler.register(nothing, "nothing")
    await scheduler.add_job("nothing", every(10))
    await clock.advance(35)
    assert steps == ["heard", "done"]


# -- locks -------------------------------------------------------------------------------------------------------------


async def test_a_block_whose_tasks_have_failed_ends_with_the_loss_of_its_lock(clock: ManualClock) -> None:
    store = FaultyStore(SharedMemory())
    await store.open(clock.time)

    async def work() -> None:
        async with Lock(store, "a", 10, clock=clock):
            await failing_group()
            await clock.sleep(1000)

    working = asyncio.create_task(work())
    await clock.advance(1)
    store.faults.go_away()
    await clock.advance(20)
    with pytest.raises(LockLost):
        await working


async def test_a_lock_is_let_go_though_its_renewal_swallows_a_cancellation() -> None:
    class Deaf(MemoryStore):
        asked = asyncio.Event()

        async def extend(self, leases: Sequence[Lease], lease_s: float) -> dict[str, Lease]:
            if lease_s == 0.3 and any(task.get_name() == "asyncsched-lock-a" for task in asyncio.all_tasks()):
                self.asked.set()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.05)  # Long enough to be cancelled in.
            return await super().extend(leases, lease_s)

    store = Deaf()
    await store.open()

    async def work() -> None:
        async with Lock(store, "a", 0.3):
            await store.asked.wait()

    await asyncio.wait_for(work(), 60)


async def test_a_leader_stands_though_a_call_was_cancelled_by_its_driver() -> None:
    class Astray(MemoryStore):
        left = 1

        async def acquire(
            self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
        ) -> dict[str, Lease]:
            if self.left:
                self.left -= 1
                raise asyncio.CancelledError
            return await super().acquire(keys, holder, lease_s, limit)

    store = Astray()
    await store.open()
    async with Leader(Lock(store, "a")) as leader:
        assert await asyncio.wait_for(leader.wait_elected(), 60)


# -- lifespans ---------------------------------------------------------------------------------------------------------


async def test_a_lifespan_that_failed_when_nobody_waited_is_entered_anew(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    gate, problems = asyncio.Event(), [ValueError("no database")]

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await gate.wait()
        if problems:
            raise problems.pop()
        yield

    scheduler.register(nothing, "work", lifespan=lifespan)
    await scheduler.add_job("work", id="first")
    await clock.advance(1)
    await scheduler.cancel_job("first")
    await clock.advance(1)
    gate.set()
    await clock.advance(60)
    await scheduler.add_job("work", id="second")
    await clock.advance(1)
    assert [run.outcome for run in await scheduler.history.runs("second")] == ["succeeded"]


async def test_a_start_whose_lifespan_raises_stop_iteration_fails() -> None:
    scheduler = Scheduler(lifespan=lambda _: next(iter(())))
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(scheduler.start(), 60)


async def test_a_lifespan_that_is_never_left_does_not_hold_up_the_stop_for_ever(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lifespans, "ENOUGH_S", 0.05)

    @asynccontextmanager
    async def lifespan(_: Scheduler) -> AsyncIterator[None]:
        yield
        await asyncio.Event().wait()

    scheduler = Scheduler(clock=clock, lifespan=lifespan)
    await scheduler.start()
    await asyncio.wait_for(scheduler.stop(drain=0), 60)
    assert scheduler.state == "stopped"
    assert "was not left within" in caplog.text


# -- waiting and cancelling --------------------------------------------------------------------------------------------


async def test_whoever_waits_for_a_job_is_told_that_the_scheduler_was_stopped() -> None:
    store = FaultyStore(MemoryStore())
    scheduler = Scheduler(store)
    scheduler.register(nothing, "nothing")
    await scheduler.start()
    await scheduler.add_job("nothing", once(delay=3600), id="x")
    looked = store.faults.calls["get"]
    waiting = asyncio.create_task(scheduler.wait_job("x"))
    await eventually(lambda: store.faults.calls["get"] > looked)
    await scheduler.stop(drain=0)
    with pytest.raises(NotRunning):
        await asyncio.wait_for(waiting, 60)


@pytest.mark.parametrize("turns", range(8))
async def test_a_run_that_is_cancelled_while_it_asks_for_its_place_ends(turns: int) -> None:
    scheduler = Scheduler()
    await scheduler.start()

    @scheduler.task(name="work", max_concurrency=1)
    async def work() -> None:
        await asyncio.Event().wait()

    await scheduler.add_job("work", id="x")
    for _ in range(turns):
        await asyncio.sleep(0)
    try:
        await scheduler.cancel_job("x")
    except JobNotRunning:
        # It has not been claimed yet, or asks still.
        await eventually(lambda: scheduler.running("x"))
        await scheduler.cancel_job("x")
    await scheduler.wait_job("x", timeout=30)
    assert [run.outcome for run in await scheduler.history.runs("x")] == ["cancelled"]
    await scheduler.stop(drain=0)


async def test_a_receipt_that_is_cancelled_as_its_job_comes_due_sees_to_it_that_it_does_not_run() -> None:
    clock, ran = ManualClock(), list[int]()

    class Slow(FaultyStore):
        """So long takes a removal that the job comes due meanwhile."""

        async def remove(self, ids: Sequence[str]) -> set[str]:
            await clock.advance(60)
            return await super().remove(ids)

    async with Scheduler(Slow(MemoryStore()), clock=clock) as scheduler:

        @scheduler.task(name="work")
        async def work() -> None:
            ran.append(1)

        await scheduler.add_job("work", once(delay=30), id="x")
        receipt = await scheduler.receipt("x")
        assert await receipt.cancel()
        await clock.advance(60)
        assert (ran, await receipt.status()) == ([], "removed")


async def test_a_receipt_that_is_cancelled_between_two_attempts_leaves_no_paused_job_behind() -> None:
    clock, gate, ran = ManualClock(), asyncio.Event(), list[int]()
    async with Scheduler(clock=clock) as scheduler:

        class Calls:
            """The job begins before it is held back, and its run ends before it is called off."""

            def __getattr__(self, name: str) -> Any:
                return getattr(scheduler, name)

            async def pause_job(self, id: str, *, store: str | None = None) -> Job:
                await clock.advance(30)
                return await scheduler.pause_job(id, store=store)

            async def cancel_run(self, id: str, *, store: str | None = None) -> None:
                gate.set()
                await clock.advance(0)
                await scheduler.cancel_run(id, store=store)

        @scheduler.task(name="work", retry=Retry(3, 60))
        async def work() -> None:
            ran.append(1)
            await gate.wait()
            raise ValueError("once more")

        await scheduler.add_job("work", once(delay=30), id="x")
        receipt = replace(await scheduler.receipt("x"), _calls=Calls())
        assert await receipt.cancel()
        await clock.advance(600)
        assert (ran, await scheduler.get_jobs()) == ([1], [])


# -- limits and leases -------------------------------------------------------------------------------------------------


async def test_a_line_moves_on_though_the_store_goes_away_between_leaving_and_settling(
    clock: ManualClock,
) -> None:
    class Flapping(FaultyStore):
        answers: list[bool] | None = None

        async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
            if self.answers is not None and not (self.answers.pop(0) if self.answers else True):
                raise StoreUnavailable("away")
            return await super().renew(claims, lease_s)

    store, gate, began = Flapping(SharedMemory()), asyncio.Event(), dict[str, float]()
    scheduler = Scheduler(store, clock=clock, lease=30, heartbeat=None)

    @scheduler.task(name="work", max_concurrency=1)
    async def work(name: str) -> None:
        began[name] = clock.monotonic()
        if name == "first":
            await gate.wait()

    await scheduler.start()
    for name in ("first", "second"):
        await scheduler.add_job("work", id=name, args=[name])
        await clock.advance(0.1)
    store.answers = [False] * 100
    await clock.advance(17)
    store.answers = [True, False]
    ended_at = clock.monotonic()
    gate.set()
    for _ in range(100):
        await clock.advance(0.1)
    assert began["second"] - ended_at < 5, "the head of a line looks about once in a lease"
    stopping = asyncio.create_task(scheduler.stop(drain=0))
    await clock.advance(10)
    await stopping


async def test_a_thread_that_ends_after_its_job_was_claimed_again_here_has_run_it() -> None:
    store, began, gate, ran = FaultyStore(SharedMemory()), threading.Event(), threading.Event(), list[int]()
    async with Scheduler(store, lease=2.0, heartbeat=None) as scheduler:

        @scheduler.task(name="work")
        def work() -> None:
            ran.append(1)
            began.set()
            gate.wait(60)

        await scheduler.add_job("work", id="x")
        await eventually(began.is_set)
        store.faults.go_away(["renew"])
        [first] = scheduler.running("x")
        await eventually(lambda: scheduler.running("x")[0].fence > first.fence)
        store.faults.come_back()
        gate.set()
        await scheduler.wait_job("x", timeout=60)
        runs = await scheduler.history.runs("x")
    assert ran == [1]
    assert [run.outcome for run in runs] == ["succeeded", "lost"]
