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

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

import pytest

from asyncsched import (
    Carry,
    Job,
    JobLookupError,
    Retry,
    RunFinished,
    RunLost,
    RunSucceeded,
    Scheduler,
    current_run,
    every,
    once,
)
from asyncsched.contract import Claim, Renewal, Settled, Settlement
from asyncsched.errors import StoreUnavailable
from asyncsched.testing import ManualClock
from tests.support.faulty import FaultyStore
from tests.support.running import running
from tests.support.stores import SharedMemory

pytestmark = pytest.mark.anyio

T = TypeVar("T")

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
        promptly = Retry(base=0.5, max_delay=1)
        scheduler = Scheduler(store, clock=clock, lease=LEASE_S, id=name, store_retry=promptly)

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


async def _nothing() -> None: ...


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


async def test_whoever_is_given_the_id_of_an_instance_gets_nothing_that_it_held_before_its_lease_s_end(
    clock: ManualClock, make: Make, deeds: Deeds
) -> None:
    """A process that was killed comes back under its fixed id: its first claim is no repetition of the first one before it."""
    (killed, link), (again, _), (client, _) = make("pod-0"), make("pod-0"), make("client")
    async with running(client, killed, clock=clock):
        await client.pause()
        await killed.add_job("short", id="job")
        await clock.advance(1)
        link.faults.go_away()
        await clock.advance(10)
        async with running(again, clock=clock):
            await clock.advance(2 * LEASE_S)
            runs = await client.history.runs("job")
        link.faults.come_back()
        await clock.advance(2)
    [_, (_, begun_again_at)] = deeds.of("begun")
    assert LEASE_S <= begun_again_at <= LEASE_S + 1
    assert [(run.outcome, run.fence) for run in runs] == [("succeeded", 2), ("lost", 1)]


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
        await clock.advance(3)
        await first.pause()
        await second.resume()
        await clock.advance(60)
        link.faults.come_back()
    assert [name for name, _ in deeds.of("begun")] == ["late", "heir"]
    (_, cancelled_at), (_, begun_again_at) = deeds.of("cancelled")[0], deeds.of("begun")[1]
    assert cancelled_at <= begun_again_at


@pytest.mark.parametrize("method", ["claim", "acquire"])
async def test_a_lease_whose_run_begins_late_is_renewed_in_time(
    clock: ManualClock, memory: SharedMemory, deeds: Deeds, method: str
) -> None:
    """The store took half a lease to answer to the claim, or to say that there is a place for the run."""

    class Slow(FaultyStore):
        async def _through(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
            answer = await super()._through(name, call)
            if name == method:
                await clock.sleep(LEASE_S / 2)
            return answer

    scheduler = Scheduler(Slow(memory), clock=clock, lease=LEASE_S, heartbeat=None)

    async def work() -> None:
        deeds.add("begun")
        await clock.sleep(100)
        deeds.add("ended")

    scheduler.register(work, "work", max_concurrency=1)
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", id="job")
        await clock.advance(200)
        runs = await scheduler.history.runs("job")
    assert len(deeds.of("begun")) == len(deeds.of("ended")) == 1
    assert [run.outcome for run in runs] == ["succeeded"]


async def test_what_has_begun_is_kept_while_others_of_its_batch_wait_for_their_places(
    clock: ManualClock, make: Make, deeds: Deeds
) -> None:
    (first, link), (second, _) = make("a"), make("b")
    for scheduler in (first, second):
        scheduler.register(_nothing, "limited", max_concurrency=1)
    async with running(first, second, clock=clock):
        await first.pause()
        await second.pause()
        await first.add_job("long")
        await first.add_job("limited")
        link.faults.go_away({"acquire"})
        await first.resume()
        await clock.advance(1)
        await second.resume()
        await clock.advance(310)
        link.faults.come_back()
        await clock.advance(5)
        assert await first.get_jobs() == []
    assert [instance for instance, _ in deeds.of("begun")] == ["a"]
    assert len(deeds.of("ended")) == 1


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


async def test_an_update_is_kept_though_its_own_instance_gets_the_job_again_before_the_end_is_written(
    clock: ManualClock, make: Make, deeds: Deeds
) -> None:
    (scheduler, link), (client, _) = make("a"), make("client")
    async with running(scheduler, client, clock=clock):
        await client.pause()
        for id in ("moved", "asked for"):
            await client.add_job("short", id=id)
        await clock.advance(1)
        link.faults.go_away({"settle", "renew"})
        link.faults.claimed.clear()
        await clock.advance(6)
        await client.reschedule_job("moved", once(delay=1000))
        await client.run_job("asked for")
        await clock.advance(LEASE_S)
        assert sum(link.faults.claimed) == 2
        link.faults.come_back()
        await clock.advance(20)
        assert [job.id for job in await client.get_jobs()] == ["moved"]
        assert [run.outcome for run in await client.history.runs("asked for")] == [
            "succeeded",
            "succeeded",
            "lost",
        ]
        await clock.advance(1000)
        assert [run.outcome for run in await client.history.runs("moved")] == [
            "succeeded",
            "succeeded",
            "lost",
        ]
    assert len(deeds.of("begun")) == 4


async def test_a_run_gives_back_the_slot_of_the_queue_that_it_began_in(
    clock: ManualClock, memory: SharedMemory, deeds: Deeds
) -> None:
    """Its job was moved to another queue before its own instance got it again."""
    link = FaultyStore(memory)
    scheduler = Scheduler(link, queues={"slow": 1, "other": 1}, clock=clock, lease=LEASE_S, heartbeat=None)
    client = Scheduler(memory, queues=(), clock=clock, heartbeat=None)

    async def stubborn() -> None:
        deeds.add("begun")
        end_at = clock.monotonic() + 2 * LEASE_S
        while clock.monotonic() < end_at:
            with suppress(BaseException):
                await clock.sleep(end_at - clock.monotonic())

    for one in (scheduler, client):
        one.register(stubborn, "stubborn")
        one.register(_nothing, "nothing")
    async with running(scheduler, client, clock=clock):
        await client.add_job("stubborn", id="moved", queue="slow", cancel_grace=1000)
        await clock.advance(1)
        link.faults.go_away()
        await client.update_job("moved", queue="other")
        await clock.advance(LEASE_S + 5)
        link.faults.come_back()
        await clock.advance(4 * LEASE_S)
        await client.add_job("nothing", id="next", queue="slow")
        await clock.advance(1)
        assert await client.history.runs("next") != []


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


async def test_the_end_of_a_run_is_written_though_that_of_its_removed_predecessor_waits_with_it(
    clock: ManualClock, memory: SharedMemory
) -> None:
    link = FaultyStore(memory)
    scheduler = Scheduler(
        link, clock=clock, lease=LEASE_S, heartbeat=None, store_retry=Retry(base=0.5, max_delay=1)
    )
    begun: list[str] = []

    @scheduler.task(name="sleep")
    async def sleep(seconds: float) -> None:
        begun.append(current_run().job_id)
        await clock.sleep(seconds)

    async with running(scheduler, clock=clock):
        await scheduler.add_job("sleep", args=[7], id="job")
        await clock.advance(1)
        await scheduler.remove_job("job")
        await scheduler.add_job("sleep", args=[5], id="job")
        await scheduler.add_job("sleep", args=[4], id="first to end")
        await clock.advance(1)
        link.faults.go_away({"settle", "renew"})
        await clock.advance(19)
        link.faults.come_back()
        await clock.advance(3 * LEASE_S)
        runs = await scheduler.history.runs("job")
    assert Counter(begun) == {"job": 2, "first to end": 1}
    assert "succeeded" in [run.outcome for run in runs]


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


async def test_a_run_whose_job_is_removed_and_added_again_may_end_in_peace(
    clock: ManualClock, make: Make, deeds: Deeds
) -> None:
    scheduler, _ = make("a")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("long", id="job")
        await clock.advance(1)
        await scheduler.remove_job("job")
        await scheduler.add_job("short", once(delay=5000), id="job")
        await clock.advance(400)
    assert len(deeds.of("ended")) == 1


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


async def test_an_end_that_may_reach_the_store_after_its_lease_is_written_under_a_longer_one(
    clock: ManualClock, memory: SharedMemory
) -> None:
    class Strained(FaultyStore):
        """Renews at one instant only, and takes half a lease to settle."""

        renews_at = 0.0

        async def renew(self, claims: Sequence[Claim], lease_s: float) -> Renewal:
            if clock.monotonic() != self.renews_at:
                raise StoreUnavailable("not now")
            return await super().renew(claims, lease_s)

        async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
            await clock.sleep(LEASE_S / 2)
            return await super().settle(settlements)

    strained, begun = Strained(memory), []
    first = Scheduler(strained, clock=clock, lease=LEASE_S, id="first", heartbeat=None)
    second = Scheduler(memory, clock=clock, lease=LEASE_S, id="second", heartbeat=None)

    async def work() -> None:
        begun.append(current_run().instance)
        await clock.sleep(19.77)
        strained.renews_at = clock.monotonic()

    for one in (first, second):
        one.register(work, "work")
    async with running(first, second, clock=clock):
        await second.pause()
        await first.add_job("work", once(delay=0.31), id="job")
        await clock.advance(1)
        await second.resume()
        await clock.advance(3 * LEASE_S)
        assert [run.outcome for run in await second.history.runs("job")] == ["succeeded"]
    assert begun == ["first"]


@pytest.mark.parametrize("method", ["renew", "release"])
async def test_an_end_is_not_written_by_an_answer_that_is_older_than_its_lease(
    clock: ManualClock, memory: SharedMemory, deeds: Deeds, method: str
) -> None:
    """A process freezes between the last look at its lease, or the release of its place, and the settlement."""

    class Freezing(FaultyStore):
        is_freezing = False

        async def _through(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
            if name != method or not self.is_freezing:
                return await super()._through(name, call)
            self.is_freezing = False
            answer = await call()
            self.faults.go_away()
            await clock.sleep(3 * LEASE_S)
            self.faults.come_back()
            return answer

    link = Freezing(memory)
    frozen = Scheduler(link, clock=clock, lease=LEASE_S, id="frozen", heartbeat=None)
    heir = Scheduler(memory, clock=clock, lease=LEASE_S, id="heir", heartbeat=None)

    async def work() -> None:
        deeds.add("begun")
        await clock.sleep(20)
        if current_run().instance == "frozen":
            link.faults.come_back()
            link.is_freezing = True

    for one in (frozen, heir):
        one.register(work, "work", max_concurrency=1)
    async with running(frozen, heir, clock=clock):
        await heir.pause()
        link.faults.go_away({"renew"})
        await frozen.add_job("work", id="job")
        await clock.advance(1)
        await heir.resume()
        await clock.advance(5 * LEASE_S)
        assert not link.is_freezing
        runs = await heir.history.runs("job")
    assert [instance for instance, _ in deeds.of("begun")] == ["frozen", "heir"]
    assert [(run.outcome, run.instance) for run in runs if run.outcome != "lost"] == [("succeeded", "heir")]


async def test_a_run_that_lost_its_lease_is_cancelled_though_its_successor_has_deleted_the_job(
    clock: ManualClock, memory: SharedMemory
) -> None:
    """The first thing that its process hears when it goes on is that the job is gone, as if it had been removed."""
    scheduler = Scheduler(memory, clock=clock, lease=LEASE_S, heartbeat=None)
    told: list[str] = []
    scheduler.on(RunFinished, lambda event: told.append(event.outcome))

    async def stands_still() -> None:
        await clock.sleep(LEASE_S / 3 - 0.5)
        clock._move(round((clock.monotonic() + 3 * LEASE_S) * 1e6))
        [record] = (await memory.claim(["default"], "heir", 1, LEASE_S)).records
        await memory.settle([Settlement(record.id, record.fence, "heir", record.version, delete=True)])
        await clock.sleep(LEASE_S)

    scheduler.register(stands_still, "stands still")
    async with running(scheduler, clock=clock):
        await scheduler.add_job("stands still", id="job")
        await clock.advance(6 * LEASE_S)
        assert await scheduler.history.runs("job") == []
    assert told == ["lost"]
