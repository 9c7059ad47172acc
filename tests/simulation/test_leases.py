"""Who holds a job, for how long, and what becomes of what he does when he no longer does.

==========================================================  ==========================================================
known from other schedulers                                 promised here
==========================================================  ==========================================================
heartbeat period equal to the timeout                       a lease is renewed at a third of its length
a dead peer's expired lease wakes nobody                    another begins within a second of the lease's end
a paused worker overwrites its successor's result           the end of a run that lost its lease is refused
a hung worker goes on for ever beside its successor         trust has a deadline, and the run is cancelled then
a ghost of a removed job settles the one that replaced it   fences never fall
updating a job while it runs loses the update, or progress  both are kept
==========================================================  ==========================================================
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import pytest

from asyncsched import (
    Carry,
    Job,
    JobLookupError,
    RunLost,
    RunSucceeded,
    Scheduler,
    current_run,
    every,
    once,
)
from asyncsched.testing import ManualClock
from tests.support.faulty import FaultyStore
from tests.support.running import running
from tests.support.stores import SharedMemory

pytestmark = pytest.mark.anyio

LEASE_S = 30.0


class Deeds:
    """What the runs of one test did: (what, instance, elapsed seconds)."""

    def __init__(self, clock: ManualClock) -> None:
        self.list: list[tuple[str, str, float]] = []
        self._clock = clock

    def add(self, what: str) -> None:
        self.list.append((what, current_run().instance, self._clock.monotonic()))

    def of(self, what: str) -> list[tuple[str, float]]:
        return [(instance, at) for name, instance, at in self.list if name == what]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def deeds(clock: ManualClock) -> Deeds:
    return Deeds(clock)


@pytest.fixture
def memory() -> SharedMemory:
    return SharedMemory()


Make = Callable[[str], tuple[Scheduler, FaultyStore]]


@pytest.fixture
def make(clock: ManualClock, memory: SharedMemory, deeds: Deeds) -> Make:
    """An instance of that name, on the shared memory, over a link of its own that may fail."""

    def make(name: str) -> tuple[Scheduler, FaultyStore]:
        store = FaultyStore(memory)
        scheduler = Scheduler(store, clock=clock, lease=LEASE_S, id=name)

        @scheduler.task(name="long")
        async def long() -> str:
            deeds.add("begun")
            try:
                await clock.sleep(300)
            except BaseException:
                deeds.add("cancelled")
                raise
            deeds.add("ended")
            return name

        @scheduler.task(name="short")
        async def short() -> str:
            deeds.add("begun")
            await clock.sleep(5)
            deeds.add("ended")
            return name

        return scheduler, store

    return make


async def test_a_lease_is_renewed_at_a_third_of_its_length(clock: ManualClock, make: Make) -> None:
    scheduler, store = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("long")
        await clock.advance(1)
        store.faults.calls.clear()
        await clock.advance(4 * LEASE_S)
        assert 11 <= store.faults.calls["renew"] <= 13


async def test_leases_are_renewed_in_one_call_and_none_is_made_when_nothing_is_held(
    clock: ManualClock, make: Make
) -> None:
    scheduler, store = make("a")
    async with running(scheduler, clock=clock):
        for _ in range(50):
            await scheduler.add_job("long")
        await clock.advance(1)
        store.faults.calls.clear()
        await clock.advance(LEASE_S)
        assert store.faults.calls["renew"] <= 4
        await clock.advance(300 + LEASE_S)
        store.faults.calls.clear()
        await clock.advance(10 * LEASE_S)
        assert store.faults.calls["renew"] == 0


async def test_a_run_of_ten_leases_is_begun_by_one_instance_only(
    clock: ManualClock, make: Make, deeds: Deeds
) -> None:
    (first, _), (second, _) = make("a"), make("b")
    async with running(first, second, clock=clock):
        await first.add_job("long")
        await clock.advance(301)
        assert await first.get_jobs() == []
    assert len(deeds.of("begun")) == len(deeds.of("ended")) == 1


@pytest.mark.parametrize("elapsed", [0.0, 3.21, 9.99])
async def test_what_a_dead_instance_held_begins_again_within_one_second_of_its_lease_s_end(
    clock: ManualClock, make: Make, deeds: Deeds, memory: SharedMemory, elapsed: float
) -> None:
    scheduler, _ = make("heir")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("short", once(delay=100), id="job")
        await clock.advance(100)
        deeds.list.clear()
        await clock.advance(10)
        await scheduler.pause()
        await scheduler.add_job("short", id="of the dead")
        await memory.claim(["default"], "of the dead", 1, LEASE_S)
        await clock.advance(elapsed)
        await scheduler.resume()
        await clock.advance(LEASE_S + 5)
    [(_, begun_at)] = deeds.of("begun")
    assert 0 <= begun_at - (110 + LEASE_S) <= 1


async def test_a_run_whose_lease_cannot_be_renewed_is_cancelled_before_another_may_have_it(
    clock: ManualClock, make: Make, deeds: Deeds
) -> None:
    (first, link), (second, _) = make("cut off"), make("heir")
    lost: list[RunLost] = []
    first.on(RunLost, lost.append)
    async with running(first, second, clock=clock):
        await second.pause()
        await first.add_job("long", id="job")
        await clock.advance(50)
        await second.resume()
        link.faults.go_away()
        await clock.advance(50)
        [(_, cancelled_at)] = deeds.of("cancelled")
        [_, (instance, begun_again_at)] = deeds.of("begun")
        assert cancelled_at <= begun_again_at
        assert instance == "heir"
        assert begun_again_at <= 50 + LEASE_S + 1
        link.faults.come_back()
        await clock.advance(400)
        runs = await second.history.runs("job")
    assert [event.job_id for event in lost] == ["job"]
    assert [run.outcome for run in runs if run.outcome != "lost"] == ["succeeded"]


async def test_a_store_that_comes_back_before_the_deadline_costs_no_lease(
    clock: ManualClock, make: Make, deeds: Deeds
) -> None:
    """A renewal that failed is not put off until the next third of the lease."""
    (first, link), (second, _) = make("a"), make("b")
    async with running(first, second, clock=clock):
        await second.pause()
        await first.add_job("long")
        await clock.advance(1)
        await second.resume()
        link.faults.go_away()
        await clock.advance(20)
        link.faults.come_back()
        await clock.advance(300)
    assert len(deeds.of("begun")) == len(deeds.of("ended")) == 1


async def test_a_lease_is_trusted_from_the_first_time_that_it_was_asked_for(
    clock: ManualClock, make: Make, deeds: Deeds
) -> None:
    """The reply to a claim was lost, and the repeated claim gets what the first one took: not for a whole lease more."""
    (first, link), (second, _) = make("late"), make("heir")
    async with running(first, second, clock=clock):
        await second.pause()
        link.faults.lost["claim"] = 1
        await first.add_job("long", id="job")
        await clock.advance(0)
        assert link.faults.lost["claim"] == 0
        link.faults.go_away()
        await clock.advance(15)
        link.faults.away = {"renew", "settle"}
        await second.resume()
        await clock.advance(60)
        link.faults.come_back()
    begun = deeds.of("begun")
    assert [name for name, _ in begun] == ["late", "heir"]
    assert [name for name, _ in begun[:-1]] == [
        name for name, at in deeds.of("cancelled") if at <= begun[-1][1]
    ]


async def test_a_zombie_cannot_settle_what_its_successor_holds_or_has_settled(
    clock: ManualClock, make: Make, deeds: Deeds
) -> None:
    """Its run has ended while the store was away, and its end arrives after the successor's."""
    (zombie, link), (heir, _) = make("zombie"), make("heir")
    lost: list[RunLost] = []
    zombie.on(RunLost, lost.append)
    async with running(zombie, heir, clock=clock):
        await heir.pause()
        await zombie.add_job("short", every(3600), id="job", run_immediately=True)
        await clock.advance(1)
        link.faults.go_away()
        await clock.advance(10)
        await heir.resume()
        await clock.advance(2 * LEASE_S)
        before = await heir.get_job("job")
        link.faults.come_back()
        await clock.advance(LEASE_S)
        runs = await heir.history.runs("job")
        assert await heir.get_job("job") == before
    assert [instance for instance, _ in deeds.of("ended")] == ["zombie", "heir"]
    assert [(run.outcome, run.result) for run in runs if run.outcome != "lost"] == [("succeeded", "heir")]
    assert len(lost) == 1


async def test_an_end_that_could_not_be_written_until_after_its_lease_counts_if_nobody_took_over(
    clock: ManualClock, make: Make, deeds: Deeds
) -> None:
    scheduler, link = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("short", id="job")
        await clock.advance(1)
        link.faults.go_away()
        await clock.advance(10 * LEASE_S)
        link.faults.come_back()
        await clock.advance(LEASE_S)
        runs = await scheduler.history.runs("job")
        assert await scheduler.get_jobs() == []
    assert len(deeds.of("begun")) == 1
    assert [run.outcome for run in runs if run.outcome != "lost"] == ["succeeded"]


async def test_an_end_that_waits_while_its_own_instance_gets_the_job_again_is_written_and_nothing_begins_anew(
    clock: ManualClock, make: Make, deeds: Deeds
) -> None:
    scheduler, link = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("short", every(3600), id="job", run_immediately=True)
        await clock.advance(1)
        link.faults.go_away({"settle", "renew"})
        link.faults.claimed.clear()
        await clock.advance(2 * LEASE_S + 5)
        assert link.faults.claimed == [1, 1]
        link.faults.come_back()
        await clock.advance(15)
        runs = await scheduler.history.runs("job")
        job = await scheduler.get_job("job")
    assert len(deeds.of("begun")) == 1
    assert [run.outcome for run in runs if run.outcome != "lost"] == ["succeeded"]
    assert job.state == "scheduled"


async def test_a_ghost_of_a_removed_job_settles_nothing_of_the_one_that_has_its_id_now(
    clock: ManualClock, make: Make, deeds: Deeds
) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("long", id="job")
        await clock.advance(1)
        await scheduler.remove_job("job")
        await scheduler.add_job("short", once(delay=500), id="job")
        added = await scheduler.get_job("job")
        await clock.advance(400)
        assert await scheduler.get_job("job") == added
        await clock.advance(200)
        with pytest.raises(JobLookupError):
            await scheduler.get_job("job")
    assert [at for _, at in deeds.of("begun")] == pytest.approx([0, 501], abs=1)


async def test_a_run_whose_job_is_removed_may_end_in_peace(
    clock: ManualClock, make: Make, deeds: Deeds
) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("long", id="job")
        await clock.advance(1)
        await scheduler.remove_job("job")
        await clock.advance(400)
        runs = await scheduler.history.runs("job")
    assert len(deeds.of("ended")) == 1
    assert [run.outcome for run in runs] == ["succeeded"]


async def test_updating_a_job_while_it_runs_keeps_the_update_and_the_progress(
    clock: ManualClock, memory: SharedMemory
) -> None:
    scheduler = Scheduler(memory, clock=clock, lease=LEASE_S)
    seen: list[tuple[str, object]] = []
    async with running(scheduler, clock=clock):

        @scheduler.task(name="counts")
        async def counts(label: str) -> Carry:
            seen.append((label, current_run().carried))
            await clock.sleep(10)
            return Carry((current_run().carried or 0) + 1)

        await scheduler.add_job("counts", every(60), id="job", args=["old"])
        await clock.advance(65)
        assert (await scheduler.get_job("job")).state == "running"
        await scheduler.update_job("job", args=["new"], tags=["changed"])
        await clock.advance(60)
        job = await scheduler.get_job("job")
        await clock.advance(70)
        stats = await scheduler.history.stats("job")
    assert seen == [("old", None), ("new", 1), ("new", 2)]
    assert job.tags == ("changed",)
    assert stats.succeeded == 3


async def test_a_job_that_is_paused_while_it_runs_ends_its_run_and_rests(
    clock: ManualClock, make: Make, deeds: Deeds
) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("short", every(60), id="job")
        await clock.advance(62)
        await scheduler.pause_job("job")
        await clock.advance(600)
        job: Job = await scheduler.get_job("job")
    assert len(deeds.of("ended")) == 1
    assert job.state == "paused"
    assert job.last_success is not None


async def test_a_run_that_ignores_its_cancellation_is_not_begun_beside_itself(
    clock: ManualClock, memory: SharedMemory
) -> None:
    """Its lease is lost and this instance gets the job again: not before the attempt under way has ended."""
    link = FaultyStore(memory)
    scheduler = Scheduler(link, clock=clock, lease=LEASE_S)
    together = 0
    most = 0
    async with running(scheduler, clock=clock):

        @scheduler.task(name="stubborn")
        async def stubborn() -> None:
            nonlocal together, most
            together += 1
            most = max(most, together)
            end_at = clock.monotonic() + 200
            while clock.monotonic() < end_at:
                with suppress(BaseException):
                    await clock.sleep(end_at - clock.monotonic())
            together -= 1

        await scheduler.add_job("stubborn", id="job", cancel_grace=1000)
        await clock.advance(1)
        link.faults.go_away()
        await clock.advance(60)
        link.faults.come_back()
        await clock.advance(500)
    assert most == 1


async def test_an_abandoned_loser_leaves_the_job_to_whoever_has_it(
    clock: ManualClock, make: Make, deeds: Deeds
) -> None:
    """Two instances, one of which loses its lease and comes back: at no instant do both believe that they hold the job."""
    (first, link), (second, _) = make("a"), make("b")
    async with running(first, second, clock=clock):
        await second.pause()
        await first.add_job("long", id="job")
        await clock.advance(5)
        await second.resume()
        for _ in range(3):
            link.faults.go_away()
            await clock.advance(timedelta(seconds=40))
            link.faults.come_back()
            await clock.advance(timedelta(seconds=40))
        await clock.advance(400)
        assert await second.get_jobs() == []
    under_way = 0
    for what, _, _ in deeds.list:
        under_way += 1 if what == "begun" else -1
        assert under_way in (0, 1)


async def test_a_zombie_of_a_one_shot_is_refused_though_its_successor_has_deleted_the_job(
    clock: ManualClock, make: Make
) -> None:
    (first, link), (second, _) = make("zombie"), make("heir")
    told: list[str] = []
    first.on(RunSucceeded, lambda event: told.append(f"zombie {event.outcome}"))
    second.on(RunSucceeded, lambda event: told.append(f"heir {event.outcome}"))
    async with running(first, second, clock=clock):
        await second.pause()
        await first.add_job("short", id="job")
        await clock.advance(1)
        await second.resume()
        link.faults.go_away()
        await clock.advance(3 * LEASE_S)
        link.faults.come_back()
        await clock.advance(3 * LEASE_S)
        runs = await second.history.runs("job")
    assert told == ["heir succeeded"]
    assert [(run.outcome, run.result) for run in runs if run.outcome != "lost"] == [("succeeded", "heir")]
