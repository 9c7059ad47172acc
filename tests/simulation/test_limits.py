"""Limits over all instances: who runs, who waits, and what becomes of those who wait.

==========================================================  ==========================================================
known from other schedulers                                 promised here
==========================================================  ==========================================================
a counter that a dead worker never counts down              places are leases: those of the dead end by themselves
blocked jobs fill the batch, and others starve behind them  a blocked job is put aside after one look
blocked jobs are polled, and the more wait the more polls   the head of the line looks; the others are woken
a job that waits for its limit is a misfire in the end      waiting is not misfiring
over the rate: skipped, or retried at random                each gets an instant of its own, and starts at that
==========================================================  ==========================================================
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from asyncsched import (
    Every,
    JobLookupError,
    JobSpec,
    Retry,
    Scheduler,
    StoreUnavailable,
    cron,
    current_run,
    every,
    once,
)
from asyncsched.codec import decode_definition, encode
from asyncsched.contract import Filter, Record, Settled, Settlement, Update
from asyncsched.events import JobLimited
from asyncsched.testing import ManualClock
from asyncsched.triggers import Passed
from tests.support.faulty import FaultyStore
from tests.support.running import running
from tests.support.stores import SharedMemory
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

T = TypeVar("T")

LEASE_S = 30.0


class Work:
    """Runs that take so many seconds, and how many of each name were under way at once."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        #: (name, elapsed seconds), in the order of the starts and of the ends.
        self.begun: list[tuple[str, float]] = []
        self.ended: list[str] = []
        self.instances: Counter[str] = Counter()

    async def __call__(self, name: str, seconds: float = 10.0, mark: str = "") -> None:
        self.now[name] += 1
        self.most[name] = max(self.most[name], self.now[name])
        self.begun.append((mark or name, self._clock.monotonic()))
        self.instances[current_run().instance] += 1
        try:
            await self._clock.sleep(seconds)
            self.ended.append(mark or name)
        finally:
            self.now[name] -= 1

    def starts(self) -> list[float]:
        return [at for _, at in self.begun]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def work(clock: ManualClock) -> Work:
    return Work(clock)


@pytest.fixture
def memory() -> SharedMemory:
    return SharedMemory()


Make = Callable[..., tuple[Scheduler, FaultyStore]]


@pytest.fixture
def make(clock: ManualClock, memory: SharedMemory, work: Work) -> Make:
    """An instance of that name, on the shared memory, over a link of its own that may fail."""

    def make(name: str, **options: object) -> tuple[Scheduler, FaultyStore]:
        store = FaultyStore(memory)
        promptly = Retry(base=0.5, max_delay=1)
        scheduler = Scheduler(store, clock=clock, lease=LEASE_S, id=name, store_retry=promptly, **options)  # type: ignore[arg-type]  # whatever a test wants

        scheduler.register(work.__call__, "work")

        @scheduler.task(name="two", max_concurrency=2)
        async def two(name: str = "two", seconds: float = 10.0, mark: str = "") -> None:
            await work(name, seconds, mark)

        @scheduler.task(name="rated", rate_limit="5/10s")
        async def rated(name: str = "rated", seconds: float = 0.0) -> None:
            await work(name, seconds)

        return scheduler, store

    return make


async def advance_until(clock: ManualClock, condition: Callable[[], object], seconds: float) -> None:
    """Move on for at most *seconds*."""
    end = clock.monotonic() + seconds
    while not condition():
        assert clock.monotonic() < end, "it did not come true in that time"
        await clock.advance(1)


async def count(store: SharedMemory) -> int:
    return len([record for record in await store.page(Filter(), 100_000) if "#" not in record.id])


# -- places ----------------------------------------------------------------------------------------------------------------


async def test_no_more_runs_of_a_key_are_under_way_than_its_limit_whatever_the_instances_and_tasks(
    clock: ManualClock, make: Make, work: Work, memory: SharedMemory
) -> None:
    schedulers = [make(name)[0] for name in "abc"]
    async with running(*schedulers, clock=clock):
        for n in range(60):
            key = "xyz"[n % 3]
            await schedulers[n % 3].add_job(
                "work" if n % 2 else "two",
                args=[key, 7.0],
                concurrency_key=key,
                concurrency_limit=2,
            )
        # 20 runs of each key, two at a time.
        await advance_until(clock, lambda: len(work.ended) == 60, 20 / 2 * 7 + 60)
        assert dict(work.most) == {"x": 2, "y": 2, "z": 2}
        assert Counter(work.ended) == {"x": 20, "y": 20, "z": 20}
        assert await count(memory) == 0


async def test_the_limit_of_a_task_holds_for_all_of_its_jobs(
    clock: ManualClock, make: Make, work: Work
) -> None:
    (first, _), (second, _) = make("a"), make("b")
    async with running(first, second, clock=clock):
        for _ in range(20):
            await first.add_job("two")
        await advance_until(clock, lambda: len(work.ended) == 20, 20 / 2 * 10 + 40)
        assert work.most["two"] == 2


async def test_a_key_without_a_limit_has_one_place(clock: ManualClock, make: Make, work: Work) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        for _ in range(3):
            await scheduler.add_job("work", args=["one"], concurrency_key="one")
        await clock.advance(35)
        assert work.most["one"] == 1
        assert len(work.ended) == 3


async def test_a_blocked_key_holds_back_no_others(clock: ManualClock, make: Make, work: Work) -> None:
    scheduler, _ = make("a", concurrency=10)
    async with running(scheduler, clock=clock):
        for _ in range(100):
            await scheduler.add_job("work", args=["blocked", 1000.0], concurrency_key="blocked")
        for _ in range(9):
            await scheduler.add_job("work", args=["free", 10.0])
        await clock.advance(1)
        assert work.now == {"blocked": 1, "free": 9}


async def test_those_who_wait_are_served_in_the_order_in_which_they_became_due(
    clock: ManualClock, make: Make, work: Work
) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        marks = [f"{n:02}" for n in range(30)]
        for at, mark in enumerate(marks):
            # Ids that would have them in another order.
            await scheduler.add_job(
                "work",
                once(delay=at / 100),
                id=f"job-{at * 7 % 30}",
                args=["line", 40.0, mark],
                concurrency_key="line",
            )
        await advance_until(clock, lambda: len(work.ended) == 30, 30 * 40 + 60)
        assert work.ended == marks


async def test_short_runs_keep_the_order_too(clock: ManualClock, make: Make, work: Work) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        marks = [f"{n:03}" for n in range(100)]
        await scheduler.pause()
        for mark in marks:
            await scheduler.add_job("work", args=["line", 0.1, mark], concurrency_key="line")
            await clock.advance(0.001)
        await scheduler.resume()
        await advance_until(clock, lambda: len(work.ended) == 100, 60)
        assert work.ended == marks


async def test_ten_thousand_who_wait_cost_no_more_looks_than_ten(
    clock: ManualClock, make: Make, work: Work
) -> None:
    async def looks_of(jobs: int) -> tuple[int, int]:
        (first, one), (second, two) = make(f"a{jobs}"), make(f"b{jobs}")
        key = f"key-{jobs}"
        async with running(first, second, clock=clock):
            for start in range(0, jobs, 1000):
                for n in range(start, min(start + 1000, jobs)):
                    await first.add_job("work", args=[key, 1e6], concurrency_key=key, id=f"{key}-{n}")
                await clock.advance(1)
            one.faults.claimed.clear()
            two.faults.claimed.clear()
            one.faults.calls.clear()
            two.faults.calls.clear()
            await clock.advance(1200)
            claimed = sum(one.faults.claimed) + sum(two.faults.claimed)
            calls = one.faults.calls.total() + two.faults.calls.total()
            assert work.now[key] == 1
            await first.remove_all_jobs()
        return claimed, calls

    few, many = await looks_of(10), await looks_of(10_000)
    # Each instance keeps a head of the line at most.
    assert many[0] <= 2 * few[0] + 10
    assert many[1] <= 2 * few[1] + 50


async def test_an_instance_that_dies_frees_its_places_when_its_leases_end(
    clock: ManualClock, make: Make, work: Work
) -> None:
    (first, link), (second, _) = make("a"), make("b")
    async with running(first, clock=clock):
        await first.add_job("work", args=["key", 300.0, "first"], concurrency_key="key", id="first")
        await first.add_job("work", args=["key", 5.0, "second"], concurrency_key="key", id="second")
        await clock.advance(1)
        assert work.begun == [("first", 0.0)]
        async with running(second, clock=clock):
            assert (await second.get_job("second")).state == "limited"
            link.faults.go_away()
            await clock.advance(LEASE_S - 5)
            assert len(work.begun) == 1
            await clock.advance(LEASE_S)
            assert work.most["key"] == 1
            assert work.instances["b"] >= 1
            await advance_until(clock, lambda: len(work.ended) == 2, 400)
            assert work.most["key"] == 1
        link.faults.come_back()


async def test_somebody_looks_even_if_whoever_had_the_place_never_comes_back(
    clock: ManualClock, make: Make, work: Work
) -> None:
    (first, link), (second, _) = make("a"), make("b")
    async with running(first, clock=clock):
        for mark, seconds in (("first", 5.0), ("second", 1000.0), ("third", 5.0), ("fourth", 5.0)):
            await first.add_job("work", args=["k", seconds, mark], concurrency_key="k", id=mark)
            await clock.advance(0.1)
        await clock.advance(10)
        assert [mark for mark, _ in work.begun] == ["first", "second"]
        link.faults.go_away()
        async with running(second, clock=clock):
            # Nobody will make that run again, and so nobody will wake the next one.
            await second.remove_job("second")
            await clock.advance(3 * LEASE_S)
            assert work.ended == ["first", "third", "fourth"]
        link.faults.come_back()


async def test_who_comes_after_the_head_has_its_place_looks_in_its_stead(
    clock: ManualClock, make: Make, work: Work
) -> None:
    (first, link), (second, _) = make("a"), make("b")
    async with running(first, clock=clock):
        for mark, seconds in (("first", 2.0), ("second", 1000.0)):
            await first.add_job("work", args=["k", seconds, mark], concurrency_key="k", id=mark)
            await clock.advance(0.1)
        await clock.advance(3)
        assert [mark for mark, _ in work.begun] == ["first", "second"]
        await first.add_job("work", args=["k", 5.0, "third"], concurrency_key="k")
        await clock.advance(1)
        link.faults.go_away()
        async with running(second, clock=clock):
            # Nobody will make that run again, and so nobody will wake the next one.
            await second.remove_job("second")
            await clock.advance(3 * LEASE_S)
            assert work.ended == ["first", "third"]
        link.faults.come_back()


@pytest.mark.parametrize("everywhere", [True, False], ids=["paused for all", "paused here"])
async def test_those_who_cannot_come_when_they_are_woken_keep_nobody_from_the_place(
    clock: ManualClock, make: Make, work: Work, everywhere: bool
) -> None:
    scheduler, _ = make("a", queues={"shut": None, "open": None})
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", args=["k", 100.0, "first"], queue="open", concurrency_key="k")
        await clock.advance(1)
        for mark in ("shut", "shut", "shut", "open", "open", "open"):
            await scheduler.add_job("work", args=["k", 5.0, mark], queue=mark, concurrency_key="k")
            await clock.advance(0.1)
        await clock.advance(50)
        await scheduler.pause(queue="shut", everywhere=everywhere)
        # The end of the first run wakes two that nobody claims.
        await clock.advance(50 + 3 * LEASE_S)
        assert work.ended == ["first", "open", "open", "open"]


async def test_a_place_that_is_not_taken_for_a_rate_goes_to_the_next_in_line(
    clock: ManualClock, make: Make, work: Work
) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", args=["k", 20.0, "first"], concurrency_key="k")
        await clock.advance(1)
        for _ in range(4):
            await scheduler.add_job("rated", args=["k", 1.0], rate_limit="1/hour", concurrency_key="k")
            await clock.advance(0.1)
        for _ in range(3):
            await scheduler.add_job("work", args=["k", 2.0, "free"], concurrency_key="k")
            await clock.advance(0.1)
        await clock.advance(30)
        # One has the token of this hour, and the others are to come later.
        assert sorted(work.ended) == ["first", "free", "free", "free", "k"]
        assert work.most["k"] == 1


async def test_a_run_that_needs_two_places_takes_both_or_none(
    clock: ManualClock, make: Make, work: Work
) -> None:
    schedulers = [make(name)[0] for name in "ab"]
    async with running(*schedulers, clock=clock):
        await schedulers[0].add_job("two", args=["busy", 100.0], concurrency_key="k")
        await clock.advance(1)
        for _ in range(5):
            await schedulers[0].add_job("two", args=["both", 10.0], concurrency_key="k")
        await clock.advance(1)
        # The key's only place is taken; the task's second one is free, and nobody sits on it.
        await schedulers[1].add_job("two", args=["other", 10.0])
        await clock.advance(1)
        assert work.now == {"busy": 1, "other": 1}
        await advance_until(clock, lambda: len(work.ended) == 7, 300)
        assert work.most["both"] == 1


async def test_a_wait_is_told_once_and_shown(clock: ManualClock, make: Make, work: Work) -> None:
    scheduler, _ = make("a")
    heard: list[JobLimited] = []
    scheduler.on(JobLimited, heard.append)
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", args=["k", 100.0], concurrency_key="k", id="runs")
        await clock.advance(1)
        added = await scheduler.add_job("work", args=["k", 1.0], concurrency_key="k", id="waits")
        await clock.advance(90)
        assert [(event.job_id, event.limit, event.until) for event in heard] == [("waits", "key/k", None)]
        job = await scheduler.get_job("waits")
        assert (job.state, job.next_fire_time) == ("limited", added.next_fire_time)
        assert [job.id for job in await scheduler.get_jobs(state="limited")] == ["waits"]
        assert [job.id for job in await scheduler.get_jobs(state="running")] == ["runs"]
        assert await scheduler.get_jobs(state="scheduled") == []
        summary = (await scheduler.explain("waits")).summary
        assert "limited by 'key/k'" in summary
        assert "'runs'" in summary
        with pytest.raises(TimeoutError):
            await scheduler.wait_job("waits", timeout=0)
        await clock.advance(15)
        assert [(event.job_id) for event in heard] == ["waits"]
        with suppress(JobLookupError):
            assert await scheduler.wait_job("waits", timeout=0) is None


# -- what else may be done to one who waits ----------------------------------------------------------------------------------


async def test_waiting_is_neither_misfiring_nor_an_attempt(
    clock: ManualClock, make: Make, work: Work
) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", args=["k", 100.0], concurrency_key="k")
        await clock.advance(1)
        waiting = await scheduler.add_job(
            "work", args=["k", 1.0, "late"], concurrency_key="k", misfire_grace=5, catch_up="none", id="late"
        )
        await clock.advance(110)
        assert work.ended == ["k", "late"]
        assert await scheduler.history.decisions("late") == []
        [run] = await scheduler.history.runs("late")
        assert (run.outcome, run.attempt, run.fire_time) == ("succeeded", 1, waiting.next_fire_time)


async def test_the_fire_times_that_come_while_a_recurring_job_waits_overlap_the_one_that_waits(
    clock: ManualClock, make: Make, work: Work
) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", args=["k", 95.0], concurrency_key="k")
        await clock.advance(1)
        tick = await scheduler.add_job(
            "work", every(30), args=["k", 1.0, "tick"], concurrency_key="k", id="tick"
        )
        assert tick.next_fire_time is not None
        await clock.advance(32)
        why = await scheduler.why_not("tick", tick.next_fire_time)
        assert (why.kind, "limited by 'key/k'" in why.text) == ("due", True)
        [first, *_] = (await scheduler.explain("tick")).coming
        assert (first.fire_time, first.due_at) == (tick.next_fire_time, tick.next_fire_time)
        assert first.note == "attempt 1 of this fire time, as soon as its limit has a place for it"
        await clock.advance(168)
        decisions = await scheduler.history.decisions("tick")
        runs = await scheduler.history.runs("tick")
        assert {decision.reason for decision in decisions} == {"overlap"}
        # Each of the six fire times ran or was decided.
        assert sum(decision.count for decision in decisions) + len(runs) == 6
        assert len(runs) >= 3


async def test_a_waiting_job_can_be_paused_resumed_changed_and_removed(
    clock: ManualClock, make: Make, work: Work
) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", args=["k", 100.0, "runs"], concurrency_key="k")
        await clock.advance(1)
        for id in ("paused", "freed", "removed", "stays"):
            await scheduler.add_job("work", args=["k", 1.0, id], concurrency_key="k", id=id)
        await clock.advance(1)
        await scheduler.pause_job("paused")
        assert (await scheduler.get_job("paused")).state == "paused"
        await scheduler.update_job("freed", concurrency_key=None)
        await scheduler.remove_job("removed")
        assert (await scheduler.resume_job("stays")).state == "limited"
        await clock.advance(2)
        assert work.ended == ["freed"]
        await clock.advance(110)
        assert work.ended == ["freed", "runs", "stays"]
        await scheduler.resume_job("paused")
        await clock.advance(5)
        assert work.ended[-1] == "paused"
        assert await scheduler.get_jobs() == []


async def test_a_run_that_is_asked_for_waits_too_and_is_not_forgotten(
    clock: ManualClock, make: Make, work: Work
) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", args=["k", 50.0, "runs"], concurrency_key="k")
        await clock.advance(1)
        yearly = cron("0 0 1 1 *")
        await scheduler.add_job("work", yearly, args=["k", 1.0, "asked"], concurrency_key="k", id="job")
        await scheduler.add_job(
            "work", yearly, args=["k", 1.0, "forced"], concurrency_key="k", id="rests", paused=True
        )
        await scheduler.run_job("job")
        await scheduler.run_job("rests", force=True)
        await clock.advance(5)
        assert work.ended == []
        assert (await scheduler.get_job("job")).state == "limited"
        await clock.advance(60)
        assert sorted(work.ended) == ["asked", "forced", "runs"]
        assert (await scheduler.get_job("job")).state == "scheduled"
        assert (await scheduler.get_job("rests")).state == "paused"
        assert len(await scheduler.history.runs("job")) == 1


async def test_a_place_is_free_while_a_retry_waits(clock: ManualClock, make: Make, work: Work) -> None:
    scheduler, _ = make("a")
    failed: list[int] = []

    @scheduler.task(name="fails", max_concurrency=1)
    async def fails() -> None:
        failed.append(current_run().attempt)
        raise ValueError("no")

    async with running(scheduler, clock=clock):
        await scheduler.add_job("fails", retry=Retry(max_attempts=3, base=20.0), id="one")
        await scheduler.add_job("fails", retry=Retry(max_attempts=3, base=20.0), id="two")
        await clock.advance(5)
        assert failed == [1, 1]
        await clock.advance(100)
        assert sorted(failed) == [1, 1, 2, 2, 3, 3]


async def test_a_run_keeps_its_place_though_its_job_was_removed_and_is_there_anew(
    clock: ManualClock, make: Make, work: Work
) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", id="job", args=["work", 5 * LEASE_S], concurrency_key="one")
        await clock.advance(1)
        await scheduler.remove_job("job")
        await scheduler.add_job("work", id="job", args=["work", 1.0], concurrency_key="one")
        await clock.advance(7 * LEASE_S)
    assert len(work.ended) == 2
    assert work.most["work"] == 1


async def test_runs_beside_each_other_keep_to_the_limit(clock: ManualClock, make: Make, work: Work) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("two", every(1), args=["allowed", 5.0], overlap="allow", max_runs=6, id="job")
        await advance_until(clock, lambda: len(work.ended) == 6, 60)
        assert work.most["allowed"] == 2


async def test_a_run_whose_end_the_store_refuses_leaves_its_place(
    clock: ManualClock, make: Make, work: Work
) -> None:
    scheduler, store = make("a")
    store.faults.is_poison = lambda settlement: settlement.id == "bad" and settlement.hold is None
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", args=["k", 5.0], concurrency_key="k", id="bad")
        await clock.advance(1)
        await scheduler.add_job("work", args=["k", 5.0, "next"], concurrency_key="k", id="next")
        await clock.advance(15)
        assert work.ended == ["k", "next"]
        assert (await scheduler.get_job("bad")).state == "quarantined"


async def test_a_run_that_has_lost_its_place_to_another_is_cancelled_and_comes_back(
    clock: ManualClock, make: Make, work: Work, memory: SharedMemory
) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", args=["k", 100.0], concurrency_key="k", id="job")
        await clock.advance(1)
        # As if the server had forgotten the lease.
        [lease] = (lease for lease in memory._leases.values() if lease.key.startswith("limit/"))
        await memory.release([lease])
        await memory.acquire([lease.key], "somebody else", 60.0)
        await clock.advance(LEASE_S)
        assert work.now["k"] == 0
        assert (await scheduler.get_job("job")).state == "limited"
        await advance_until(clock, lambda: work.ended, 300)
        runs = await scheduler.history.runs("job")
        assert [(run.outcome, run.attempt) for run in runs] == [("succeeded", 1), ("cancelled", 1)]


async def test_a_place_that_was_lost_to_nobody_is_taken_back(
    clock: ManualClock, make: Make, work: Work, memory: SharedMemory
) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", args=["k", 100.0], concurrency_key="k", id="job")
        await clock.advance(1)
        [lease] = (lease for lease in memory._leases.values() if lease.key.startswith("limit/"))
        await memory.release([lease])
        await clock.advance(LEASE_S)
        assert work.now["k"] == 1
        assert await memory.acquire([lease.key], "somebody else", 60.0) == {}


async def test_many_places_of_a_second_limit_that_become_free_together_are_all_taken_again(
    clock: ManualClock, make: Make, work: Work
) -> None:
    scheduler, _ = make("a")

    @scheduler.task(name="ten", max_concurrency=10)
    async def ten() -> None:
        await work("ten", 10.0)

    async with running(scheduler, clock=clock):
        for n in range(40):
            await scheduler.add_job("ten", concurrency_key=f"key-{n}")
        for wave in (1, 2, 3, 4):
            await clock.advance(5)
            assert (work.now["ten"], len(work.begun)) == (10, 10 * wave)
            await clock.advance(5.2)
        assert len(work.ended) == 40


class Gated(FaultyStore):
    """Calls of one method have been performed, and their answers are kept back while the gate is shut."""

    def __init__(self, store: SharedMemory, method: str) -> None:
        super().__init__(store)
        self.gate = asyncio.Event()
        self.gate.set()
        self._method = method

    async def _through(self, method: str, call: Callable[[], Awaitable[T]]) -> T:
        answer = await super()._through(method, call)
        if method == self._method:
            await self.gate.wait()
        return answer


async def test_a_place_that_is_taken_back_while_its_run_leaves_is_free(
    clock: ManualClock, memory: SharedMemory, work: Work
) -> None:
    store = Gated(memory, "acquire")
    scheduler = Scheduler(store, clock=clock, lease=LEASE_S)
    scheduler.register(work.__call__, "work")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", args=["k", LEASE_S / 3 + 2], concurrency_key="k")
        await clock.advance(1)
        [lease] = (lease for lease in memory._leases.values() if lease.key.startswith("limit/"))
        await memory.release([lease])
        store.gate.clear()
        await clock.advance(LEASE_S / 3 + 3)
        assert work.ended == ["k"]
        store.gate.set()
        await clock.advance(1)
        assert [lease for lease in memory._leases.values() if lease.key.startswith("limit/")] == []


async def test_a_run_that_goes_on_under_another_fence_while_it_leaves_its_place_is_settled(
    clock: ManualClock, memory: SharedMemory, work: Work
) -> None:
    store = Gated(memory, "release")
    scheduler = Scheduler(store, clock=clock, lease=LEASE_S)
    scheduler.register(work.__call__, "work")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", args=["k", 2.0], concurrency_key="k", id="job")
        await clock.advance(1)
        store.gate.clear()
        store.faults.go_away(["renew"])
        await clock.advance(LEASE_S + 20)
        store.faults.come_back()
        store.gate.set()
        await clock.advance(5)
        assert await scheduler.get_jobs() == []
        await scheduler.add_job("work", args=["k", 2.0, "next"], concurrency_key="k")
        await clock.advance(5)
        assert work.ended == ["k", "next"]


async def test_a_run_whose_place_cannot_be_freed_is_settled_all_the_same(
    clock: ManualClock, make: Make, work: Work
) -> None:
    scheduler, store = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", every(100), args=["k", 5.0], concurrency_key="k", id="job")
        await clock.advance(101)
        store.faults.refused["release"] = 1
        await clock.advance(5)
        assert (await scheduler.get_job("job")).state == "scheduled"
        assert [run.outcome for run in await scheduler.history.runs("job")] == ["succeeded"]


async def test_a_refusal_of_one_limit_leaves_no_places_of_others_taken(
    clock: ManualClock, make: Make, work: Work, memory: SharedMemory
) -> None:
    scheduler, store = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.pause()
        for key, limit in (("x", 5), ("y", 5), ("z", 5)):
            await scheduler.add_job("work", args=[key, 1.0], concurrency_key=key, concurrency_limit=limit)
        await clock.advance(1)
        store.faults.refused["acquire"] = 1
        store.faults.calls.clear()
        await scheduler.resume()
        await clock.advance(0.1)
        assert store.faults.calls["acquire"] == 3
        assert [lease for lease in memory._leases.values() if lease.key.startswith("limit/")] == []
        await clock.advance(20)
        assert sorted(work.ended) == ["x", "y", "z"]


@pytest.mark.parametrize("policies", [{"concurrency_key": "k"}, {"rate_limit": "1/25s"}])
async def test_each_fire_time_that_gives_way_before_it_has_run_is_decided(
    clock: ManualClock, make: Make, work: Work, policies: dict[str, Any]
) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", args=["k", 95.0], concurrency_key="k")
        await clock.advance(1)
        added = await scheduler.add_job(
            "work", every(10), args=["tick", 1.0], id="tick", overlap="cancel_running", **policies
        )
        assert added.next_fire_time is not None
        await clock.advance(197)
        await scheduler.pause_job("tick")
        runs = await scheduler.history.runs("tick")
        decisions = await scheduler.history.decisions("tick")
        last = max(run.fire_time for run in runs)
        told = len(runs) + sum(decision.count for decision in decisions if decision.last <= last)
        assert told == (last - added.next_fire_time).total_seconds() // 10 + 1


async def test_a_trigger_that_raises_where_its_job_is_put_off_quarantines_that_job_alone(
    clock: ManualClock, make: Make, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(trigger: Every, after: float, until: float) -> Passed:
        raise OverflowError("no time")

    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", args=["k", 100.0], concurrency_key="k")
        await clock.advance(1)
        await scheduler.add_job("work", every(10), args=["tick"], concurrency_key="k", id="broken")
        await clock.advance(12)
        monkeypatch.setattr(Every, "passed", raising)
        await clock.advance(50)
        assert (await scheduler.get_job("broken")).state == "quarantined"
        await scheduler.add_job("work", args=["free", 1.0])
        await clock.advance(2)
        assert work.ended == ["free"]


async def test_a_stored_rate_that_this_version_cannot_read_quarantines_its_job_alone(
    clock: ManualClock, make: Make, work: Work, memory: SharedMemory
) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", once(delay=1), args=["k"], rate_limit="1/day", id="odd")
        record = (await memory.get(["odd"]))["odd"]
        definition = decode_definition(record.body)
        policies = replace(definition.policies, rate_limit="1/fortnight")
        await memory.remove(["odd"])
        await memory.add([replace(record, body=encode(replace(definition, policies=policies)))])
        await clock.advance(2)
        await scheduler.add_job("work", args=["free", 1.0])
        await clock.advance(2)
        assert work.ended == ["free"]
        [odd] = await memory.page(Filter(hold="quarantined"), 10)
        assert odd.id == "odd"


async def test_a_stop_frees_the_places(clock: ManualClock, make: Make, work: Work) -> None:
    (first, _), (second, _) = make("a"), make("b")
    async with running(first, clock=clock):
        await first.add_job("work", args=["k", 1000.0], concurrency_key="k")
        await clock.advance(1)
    async with running(second, clock=clock):
        await clock.advance(1)
        assert work.now["k"] == 1
        assert work.instances == {"a": 1, "b": 1}


async def test_jobs_without_limits_cost_no_calls_of_the_store(
    clock: ManualClock, make: Make, work: Work
) -> None:
    scheduler, store = make("a")
    async with running(scheduler, clock=clock):
        store.faults.calls.clear()
        for _ in range(10):
            await scheduler.add_job("work", args=["free", 1.0])
        await clock.advance(5)
        assert len(work.ended) == 10
        assert set(store.faults.calls) <= {"add", "claim", "settle", "get", "renew"}
        assert store.faults.calls["acquire"] == 0


async def test_a_batch_of_limited_jobs_asks_once_for_all_of_its_places(
    clock: ManualClock, make: Make, work: Work
) -> None:
    scheduler, store = make("a")
    await store.open(clock.time)
    async with running(scheduler, clock=clock):
        await scheduler.pause()
        for n in range(20):
            await scheduler.add_job("work", args=["k", 1.0], concurrency_key=f"tenant-{n}")
        await clock.advance(1)
        store.faults.calls.clear()
        await scheduler.resume()
        await clock.advance(0.5)
        assert work.now["k"] == 20
        assert store.faults.calls["acquire"] == 1
        await clock.advance(2)
        assert len(work.ended) == 20
        assert store.faults.calls["release"] <= 2


# -- rates -------------------------------------------------------------------------------------------------------------------


async def test_a_rate_lets_so_many_start_at_once_and_then_one_after_the_other(
    clock: ManualClock, make: Make, work: Work
) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        for _ in range(12):
            await scheduler.add_job("rated")
        await clock.advance(30)
        begun = [at - work.starts()[0] for at in work.starts()]
        assert begun == pytest.approx([0, 0, 0, 0, 0, 2, 4, 6, 8, 10, 12, 14], abs=0.01)


async def test_a_rate_holds_over_all_instances_and_each_job_is_looked_at_twice_at_most(
    clock: ManualClock, make: Make, work: Work
) -> None:
    pairs = [make(name) for name in "abc"]
    schedulers = [scheduler for scheduler, _ in pairs]
    async with running(*schedulers, clock=clock):
        began = clock.monotonic()
        for n in range(65):
            await schedulers[n % 3].add_job("rated")
        await clock.advance(125)
        begun = [at - began for at in work.starts()]
        assert len(begun) == 65
        assert begun[4] < 0.1
        assert begun[5:] == pytest.approx([2.0 * n for n in range(1, 61)], abs=0.05)
        assert sum(sum(store.faults.claimed) for _, store in pairs) <= 65 + 60


async def test_a_rate_costs_one_read_and_one_write_for_a_batch(
    clock: ManualClock, make: Make, work: Work
) -> None:
    scheduler, store = make("a")
    async with running(scheduler, clock=clock):
        for calls in ({"get": 1, "add": 1}, {"get": 1, "update": 1}):
            await scheduler.pause()
            for _ in range(30):
                await scheduler.add_job("work", args=["k", 0.0], rate_limit="20/minute")
            await clock.advance(6)
            store.faults.calls.clear()
            await scheduler.resume()
            await clock.advance(0.5)
            counted = {name: n for name, n in store.faults.calls.items() if name not in ("claim", "settle")}
            # The worker itself looks whether its queue was paused for all.
            assert counted == {**calls, "get": 2}
        await advance_until(clock, lambda: len(work.ended) == 60, 200)


async def test_the_rate_of_a_job_with_a_key_is_the_keys(clock: ManualClock, make: Make, work: Work) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        for n in range(12):
            key = "xyz"[n % 3]
            await scheduler.add_job(
                "work", args=[key, 0.0], concurrency_key=key, concurrency_limit=100, rate_limit="2/minute"
            )
        await clock.advance(1)
        assert Counter(work.ended) == {"x": 2, "y": 2, "z": 2}
        await clock.advance(60)
        assert Counter(work.ended) == {"x": 4, "y": 4, "z": 4}


async def test_who_is_over_the_rate_is_late_and_neither_skipped_nor_forgotten(
    clock: ManualClock, make: Make, work: Work
) -> None:
    scheduler, _ = make("a")
    heard: list[JobLimited] = []
    scheduler.on(JobLimited, heard.append)
    async with running(scheduler, clock=clock):
        for _ in range(5):
            await scheduler.add_job("rated", args=["first"])
        await scheduler.add_job(
            "rated", every(100), args=["tick"], misfire_grace=0.5, catch_up="none", id="tick"
        )
        await clock.advance(99)
        assert "tick" not in work.ended
        for _ in range(8):
            await scheduler.add_job("rated", args=["more"])
        await clock.advance(0.9)
        await clock.advance(15)
        assert work.ended.count("tick") == 1
        assert work.ended.count("more") == 8
        assert await scheduler.history.decisions("tick") == []
        [told] = [event for event in heard if event.job_id == "tick"]
        assert told.limit == "task/rated"
        assert told.until is not None


async def test_a_delayed_job_keeps_its_instant_when_it_is_updated(
    clock: ManualClock, make: Make, work: Work
) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        for _ in range(6):
            await scheduler.add_job("rated")
        last = await scheduler.add_job("rated", args=["last"], id="last")
        await clock.advance(0.5)
        before = (await scheduler.get_job("last")).next_fire_time
        assert before is not None
        assert last.next_fire_time is not None
        assert (before - last.next_fire_time).total_seconds() == pytest.approx(4, abs=0.01)
        assert "rate_limit lets it start" in (await scheduler.explain("last")).summary
        assert "rate_limit lets it start" in (await scheduler.why_not("last", last.next_fire_time)).text
        await scheduler.update_job("last", name="other")
        await scheduler.run_job("last")
        await clock.advance(0.5)
        assert (await scheduler.get_job("last")).next_fire_time == before
        await clock.advance(10)
        assert work.ended.count("last") == 1


async def test_starts_that_missed_their_instants_do_not_all_come_together(
    clock: ManualClock, make: Make, work: Work
) -> None:
    scheduler, store = make("a")
    async with running(scheduler, clock=clock):
        for _ in range(45):
            await scheduler.add_job("rated")
        await clock.advance(1)
        assert len(work.ended) == 5
        store.faults.go_away()
        await clock.advance(60)
        store.faults.come_back()
        await clock.advance(3)
        # Thirty instants have passed. As many start at once as the rate allows at once, beside those whose instant is now.
        assert len(work.ended) <= 5 + 5 + 5
        await advance_until(clock, lambda: len(work.ended) == 45, 120)


async def test_a_rate_and_a_limit_hold_together(clock: ManualClock, make: Make, work: Work) -> None:
    schedulers = [make(name)[0] for name in "ab"]
    async with running(*schedulers, clock=clock):
        for n in range(20):
            await schedulers[n % 2].add_job(
                "rated", args=["k", 3.0], concurrency_key="k", concurrency_limit=2
            )
        await advance_until(clock, lambda: len(work.ended) == 20, 120)
        assert work.most["k"] == 2
        starts = work.starts()
        assert all(later - earlier > 9.9 for earlier, later in zip(starts, starts[10:], strict=False))


async def test_a_slow_rate_of_a_key_takes_no_tokens_of_the_task_from_other_keys(
    clock: ManualClock, make: Make, work: Work
) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        began = clock.monotonic()
        for _ in range(5):
            await scheduler.add_job(
                "rated",
                args=["slow"],
                concurrency_key="slow",
                concurrency_limit=10,
                rate_limit="1/hour",
            )
        await clock.advance(1)
        await scheduler.add_job("rated", args=["other"])
        await clock.advance(1)
        assert work.ended == ["slow", "other"]
        await clock.advance(4 * 3600)
        assert [at - began for name, at in work.begun if name == "slow"] == pytest.approx(
            [0, 3600, 7200, 10800, 14400], abs=0.1
        )


async def test_starts_of_two_rates_keep_to_both(clock: ManualClock, make: Make, work: Work) -> None:
    schedulers = [make(name)[0] for name in "ab"]
    async with running(*schedulers, clock=clock):
        for n in range(48):
            await schedulers[n % 2].add_job(
                "rated",
                args=["x"],
                concurrency_key=f"key-{n % 8}",
                concurrency_limit=9,
                rate_limit="2/minute",
            )
        await advance_until(clock, lambda: len(work.ended) == 48, 240)
        starts = work.starts()
        # Twice as many where those that were given instants by their keys have missed them.
        assert all(later - earlier > 9.9 for earlier, later in zip(starts, starts[10:], strict=False))


async def test_who_finds_a_bucket_changed_each_time_is_given_no_instant_by_it(
    clock: ManualClock, memory: SharedMemory, work: Work
) -> None:
    class Contended(FaultyStore):
        is_contended = False

        async def update(self, update: Update) -> Record | None:
            if self.is_contended and update.id.startswith("#rate/"):
                return None
            return await super().update(update)

    store = Contended(memory)
    scheduler = Scheduler(store, clock=clock, lease=LEASE_S)
    scheduler.register(work.__call__, "work")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", args=["k", 0.0], rate_limit="2/hour")
        await clock.advance(1)
        store.is_contended = True
        for _ in range(10):
            await scheduler.add_job("work", args=["k", 0.0], rate_limit="2/hour")
        await clock.advance(20)
        assert len(work.ended) == 1
        store.is_contended = False
        await clock.advance(20)
        assert len(work.ended) == 2
        await clock.advance(1800)
        assert len(work.ended) == 3


async def test_buckets_that_nobody_uses_are_forgotten(
    clock: ManualClock, make: Make, work: Work, memory: SharedMemory
) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        for n in range(5):
            await scheduler.add_job("work", args=["k", 0.0], concurrency_key=f"k{n}", rate_limit="1/s")
        await scheduler.add_job("rated", every(600), id="ticks")
        # Users may call their queues as they like.
        await scheduler.add_job("work", once(delay=86400), id="rare", args=["rare"], queue="#rate")
        await clock.advance(1)
        assert len(await memory.page(Filter(id_prefix="#rate/"), 100)) == 5
        await clock.advance(3 * 3600)
        assert [record.id for record in await memory.page(Filter(id_prefix="#rate/"), 100)] == [
            "#rate/task/rated"
        ]
        assert [job.id for job in await scheduler.get_jobs()] == ["ticks", "rare"]


# -- all of it together --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
async def test_limits_hold_and_nothing_is_lost_whatever_happens_to_the_instances(
    seed: int, clock: ManualClock, make: Make, work: Work, memory: SharedMemory
) -> None:
    dice = random.Random(seed)
    pairs = [make(name) for name in "abc"]
    schedulers = [scheduler for scheduler, _ in pairs]
    limits = {f"key-{n}": dice.randint(1, 3) for n in range(4)}
    jobs = 0
    async with running(*schedulers, clock=clock):
        for _ in range(40):
            scheduler = dice.choice(schedulers)
            for _ in range(dice.randint(0, 6)):
                key = dice.choice(list(limits))
                jobs += 1
                with suppress(StoreUnavailable):
                    await scheduler.add_job(
                        "work",
                        once(delay=dice.choice([0, 0, 1, 20])),
                        id=f"job-{jobs}",
                        args=[key, dice.choice([0.0, 1.0, 15.0, 70.0])],
                        concurrency_key=key,
                        concurrency_limit=limits[key],
                        rate_limit=dice.choice([None, "10/20s"]),
                    )
            faults = dice.choice(pairs)[1].faults
            what = dice.randint(0, 5)
            if what == 0:
                faults.go_away()
            elif what == 1:
                faults.lost[dice.choice(["acquire", "release", "settle", "claim", "extend", "update"])] += 1
            elif what == 2:
                for _, store in pairs:
                    store.faults.come_back()
            elif what == 3 and jobs:
                with suppress(JobLookupError, StoreUnavailable):
                    await scheduler.run_job(f"job-{dice.randint(1, jobs)}")
            await clock.advance(dice.choice([0.1, 1, 5, 20]))
        for _, store in pairs:
            store.faults.come_back()
            store.faults.lost.clear()
        for _ in range(1500):
            await clock.advance(10)
            if not await count(memory):
                break
        assert await count(memory) == 0
        assert {key: most for key, most in work.most.items() if most > limits[key]} == {}
        succeeded = {entry.job_id for entry in await memory.runs(limit=100_000) if entry.kind == "run"}
        assert len(succeeded) >= 30
        left = [lease.key for lease in memory._leases.values() if lease.until > clock.time()]
        assert [key for key in left if key.startswith("limit/")] == []


async def test_where_places_cannot_be_renewed_runs_are_kept_all_the_same(
    clock: ManualClock, make: Make, work: Work
) -> None:
    scheduler, store = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", args=["k", 4 * LEASE_S], concurrency_key="k")
        await scheduler.add_job("work", args=["free", 4 * LEASE_S], id="free")
        await clock.advance(1)
        store.faults.refused["extend"] = 1000
        await clock.advance(5 * LEASE_S)
        assert store.faults.refused["extend"] < 1000
        assert [run.outcome for run in await scheduler.history.runs("free")] == ["succeeded"]
        assert work.ended.count("free") == 1


class Forgetful(FaultyStore):
    """A settlement here wakes nobody who is parked in the same call, as the contract allows; and each call takes a while."""

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        await asyncio.sleep(0.005)
        first = sorted(settlements, key=lambda settlement: settlement.unpark is None)
        answers = dict(zip((s.id for s in first), await super().settle(first), strict=True))
        return [answers[settlement.id] for settlement in settlements]


async def test_who_is_parked_in_the_call_that_frees_its_place_is_woken(memory: SharedMemory) -> None:
    ended: list[str] = []
    schedulers = [Scheduler(Forgetful(memory), lease=60, id=name) for name in ("a", "b", "c")]
    for scheduler in schedulers:

        @scheduler.task(name="work")
        async def work(mark: str) -> None:
            await asyncio.sleep(0.002)
            ended.append(mark)

    async with running(*schedulers):
        for turn in range(12):
            marks = [f"{turn}-{n}" for n in range(8)]
            await schedulers[0].add_jobs(
                [JobSpec("work", args=[mark], policies={"concurrency_key": f"k{turn % 3}"}) for mark in marks]
            )
            # The head of the line would look by itself after half a minute.
            await eventually(lambda marks=marks: set(marks) <= set(ended), timeout=15, what="the end of all")
