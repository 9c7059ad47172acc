"""The scheduler itself: what making one does, who may call it, and when it claims."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from asyncsched import (
    AlreadyRunning,
    DefinitionError,
    JobLookupError,
    MemoryStore,
    NotRunning,
    Retention,
    Retry,
    Scheduler,
    StoreUnavailable,
    UnknownStoreError,
    WrongLoopError,
    every,
    once,
)
from asyncsched.contract import Claimed, Record
from asyncsched.testing import ManualClock, run_due
from tests.support.naming import shown
from tests.support.stores import SharedMemory
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


async def nothing() -> None:
    """Do nothing."""


# -- making one --------------------------------------------------------------------------------------------------------


def test_making_one_needs_no_event_loop_and_touches_no_file(sqlite_url: str, tmp_path: Path) -> None:
    scheduler = Scheduler(sqlite_url)
    scheduler.register(nothing)
    scheduler.job(every(60), id="tick")(nothing)
    assert scheduler.state == "stopped"
    assert list(tmp_path.iterdir()) == []


def test_making_one_starts_no_thread(sqlite_url: str) -> None:
    before = threading.active_count()
    Scheduler(sqlite_url)
    assert threading.active_count() == before


def test_durations_may_be_timedeltas() -> None:
    Scheduler(
        lease=timedelta(seconds=30),
        lookahead=timedelta(milliseconds=100),
        poll_interval=timedelta(seconds=1),
        store_retry=Retry(base=timedelta(seconds=1)),
        retention=Retention(age=timedelta(days=1), every=timedelta(minutes=1)),
        defaults={"timeout": timedelta(minutes=5)},
    )


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"concurrency": True},
        {"lease": 0},
        {"lease": -1},
        {"lookahead": -1},
        {"poll_interval": 0},
        {"poll_jitter": 1.5},
        {"queues": "default"},
        {"queues": {"default": 0}},
        {"queues": [""]},
        {"defaults": {"retries": 3}},
        {"defaults": {"timeout": -1}},
        {"defaults": 5},
        {"queues": 5},
        {"poll_jitter": "0.1"},
        {"retention": 7},
        {"store_retry": 3},
        {"health": 3},
        {"history": "no"},
        {"middleware": nothing},
        {"middleware": [5]},
        {"lifespan": 5},
        {"id": ""},
        {"store": {"other": "memory://"}},
        {"store": "memory://with/a/path"},
    ],
    ids=shown,
)
def test_an_option_that_can_never_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        Scheduler(**options)


@pytest.mark.parametrize("url", ["nowhere://x", "jobs.db", ""])
def test_a_store_url_that_nothing_serves_is_refused(url: str) -> None:
    with pytest.raises(UnknownStoreError):
        Scheduler(url)


async def test_a_store_object_is_taken_as_it_is() -> None:
    store = MemoryStore()
    async with Scheduler(store, queues=()) as scheduler:
        job = await scheduler.add_job(nothing)
        assert job.id in await store.get([job.id])


# -- states ------------------------------------------------------------------------------------------------------------


async def test_the_states_of_a_life() -> None:
    scheduler = Scheduler()
    seen = [(scheduler.state, scheduler.is_running)]
    await scheduler.start()
    seen.append((scheduler.state, scheduler.is_running))
    await scheduler.pause()
    seen.append((scheduler.state, scheduler.is_running))
    await scheduler.resume()
    seen.append((scheduler.state, scheduler.is_running))
    await scheduler.stop()
    seen.append((scheduler.state, scheduler.is_running))
    assert seen == [
        ("stopped", False),
        ("running", True),
        ("paused", True),
        ("running", True),
        ("stopped", False),
    ]


async def test_two_starts_are_refused() -> None:
    async with Scheduler() as scheduler:
        with pytest.raises(AlreadyRunning):
            await scheduler.start()
        assert scheduler.state == "running"


CALLS: dict[str, Callable[[Scheduler], Any]] = {
    "add_job": lambda s: s.add_job(nothing),
    "add_jobs": lambda s: s.add_jobs([]),
    "enqueue": lambda s: s.enqueue(nothing),
    "get_job": lambda s: s.get_job("x"),
    "get_jobs": lambda s: s.get_jobs(),
    "update_job": lambda s: s.update_job("x", name="y"),
    "reschedule_job": lambda s: s.reschedule_job("x", every(1)),
    "pause_job": lambda s: s.pause_job("x"),
    "resume_job": lambda s: s.resume_job("x"),
    "remove_job": lambda s: s.remove_job("x", missing_ok=True),
    "remove_all_jobs": lambda s: s.remove_all_jobs(),
    "run_job": lambda s: s.run_job("x"),
    "wait_job": lambda s: s.wait_job("x"),
    "next_fire_time": lambda s: s.next_fire_time(),
    "pause": lambda s: s.pause(),
    "resume": lambda s: s.resume(),
    "stop": lambda s: s.stop(),
    "history.runs": lambda s: s.history.runs(),
    "history.stats": lambda s: s.history.stats(),
}


@pytest.mark.parametrize("name", CALLS)
async def test_use_before_start_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(NotRunning):
        await CALLS[name](Scheduler())


@pytest.mark.parametrize("name", CALLS)
async def test_use_after_stop_is_refused(name: str) -> None:
    async with Scheduler() as scheduler:
        pass
    with pytest.raises(NotRunning):
        await CALLS[name](scheduler)


def test_running_before_start_is_refused() -> None:
    with pytest.raises(NotRunning):
        Scheduler().running()


async def test_the_message_of_not_running_names_start() -> None:
    with pytest.raises(NotRunning, match=r"start\(\)"):
        await Scheduler().add_job(nothing)


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_from_another_event_loop_is_refused(name: str) -> None:
    async with Scheduler() as scheduler:

        def elsewhere() -> None:
            async def call() -> None:
                with pytest.raises(WrongLoopError):
                    await CALLS[name](scheduler)

            asyncio.run(call())

        await asyncio.to_thread(elsewhere)
        assert scheduler.state == "running"


async def test_a_start_that_fails_leaves_it_stopped_and_ready_to_start_again(
    sqlite_url: str, tmp_path: Path
) -> None:
    blocker = tmp_path / "jobs.db"
    blocker.mkdir()
    scheduler = Scheduler(sqlite_url)
    with pytest.raises(Exception, match=r"jobs\.db"):
        await scheduler.start()
    assert scheduler.state == "stopped"
    blocker.rmdir()
    async with scheduler:
        assert scheduler.is_running


# -- other threads -----------------------------------------------------------------------------------------------------


async def test_from_thread_makes_calls_that_wait_for_their_answer() -> None:
    async with Scheduler() as scheduler:

        def elsewhere() -> list[str]:
            calls = scheduler.from_thread
            job = calls.add_job(nothing, every(60), id="x")
            assert calls.get_job("x").id == job.id
            assert calls.pause_job("x").state == "paused"
            assert calls.resume_job("x").state == "scheduled"
            assert calls.update_job("x", name="new").name == "new"
            assert calls.reschedule_job("x", every(90)).trigger != job.trigger
            assert calls.run_job("x").job_id == "x"
            assert calls.enqueue(nothing).task.endswith("nothing")
            ids = [job.id for job in calls.get_jobs(id_prefix="x")]
            assert calls.remove_job("x") is True
            return ids

        assert await asyncio.to_thread(elsewhere) == ["x"]


async def test_from_thread_raises_what_the_call_raises() -> None:
    async with Scheduler() as scheduler:
        with pytest.raises(JobLookupError):
            await asyncio.to_thread(scheduler.from_thread.get_job, "nowhere")


async def test_from_thread_in_the_loop_itself_is_refused_instead_of_waiting_for_ever() -> None:
    async with Scheduler() as scheduler:
        with pytest.raises(WrongLoopError):
            scheduler.from_thread.get_jobs()


def test_from_thread_before_start_is_refused() -> None:
    with pytest.raises(NotRunning):
        Scheduler().from_thread.get_jobs()


async def test_a_job_added_from_another_thread_runs_at_once() -> None:
    ran = asyncio.Event()
    async with Scheduler(poll_interval=600) as scheduler:

        @scheduler.task(name="ring")
        async def ring() -> None:
            ran.set()

        await asyncio.sleep(0.01)
        await asyncio.to_thread(scheduler.from_thread.enqueue, ring)
        await asyncio.wait_for(ran.wait(), 5)


# -- clients, queues and limits ----------------------------------------------------------------------------------------


async def test_a_client_adds_and_reads_but_runs_nothing(clock: ManualClock) -> None:
    async with Scheduler(queues=(), clock=clock) as client:
        job = await client.add_job(nothing)
        await clock.advance(120)
        assert (await client.get_job(job.id)).state == "scheduled"
        assert await client.history.runs() == []


async def test_a_client_gives_jobs_to_a_worker_on_the_same_file(sqlite_url: str) -> None:
    ran = asyncio.Event()

    async def ring() -> None:
        ran.set()

    client, worker = Scheduler(sqlite_url, queues=()), Scheduler(sqlite_url, poll_interval=0.05)
    worker.register(ring, "ring")
    async with client, worker:
        client.register(nothing, "ring")
        job = await client.add_job("ring")
        await asyncio.wait_for(ran.wait(), 10)
        assert await client.wait_job(job.id, timeout=10) is None


async def test_an_instance_serves_its_own_queues_only(clock: ManualClock) -> None:
    ran: list[str] = []
    async with Scheduler(queues=["mail"], clock=clock) as scheduler:

        @scheduler.task(name="note")
        async def note(word: str) -> None:
            ran.append(word)

        await scheduler.add_job(note, args=["mail"], queue="mail")
        await scheduler.add_job(note, args=["default"])
        await clock.advance(60)
    assert ran == ["mail"]


@pytest.mark.parametrize(("options", "most"), [({"concurrency": 2}, 2), ({"queues": {"default": 3}}, 3)])
async def test_never_more_runs_are_under_way_than_allowed(
    clock: ManualClock, options: Any, most: int
) -> None:
    now, peak, ran = 0, 0, 0
    async with Scheduler(clock=clock, **options) as scheduler:

        @scheduler.task(name="work")
        async def work() -> None:
            nonlocal now, peak, ran
            now += 1
            peak = max(peak, now)
            await clock.sleep(1)
            now -= 1
            ran += 1

        for _ in range(10):
            await scheduler.enqueue(work)
        await clock.advance(30)
    assert (peak, ran) == (most, 10)


async def test_a_full_queue_does_not_hold_up_another(clock: ManualClock) -> None:
    ran: list[str] = []
    async with Scheduler(queues={"slow": 1, "fast": None}, clock=clock) as scheduler:

        @scheduler.task(name="slow")
        async def slow() -> None:
            await clock.sleep(1000)

        @scheduler.task(name="fast")
        async def fast() -> None:
            ran.append("fast")

        for _ in range(50):
            await scheduler.add_job(slow, queue="slow")
        await scheduler.add_job(fast, queue="fast")
        await clock.advance(1)
        assert ran == ["fast"]
        assert len(scheduler.running()) == 1
        await scheduler.remove_all_jobs()
        await clock.advance(1001)


async def test_higher_priorities_go_first(clock: ManualClock) -> None:
    ran: list[int] = []
    async with Scheduler(concurrency=1, clock=clock) as scheduler:
        await scheduler.pause()

        @scheduler.task(name="note")
        async def note(n: int) -> None:
            ran.append(n)

        for priority in (0, 5, 9, 3):
            await scheduler.add_job(note, args=[priority], priority=priority)
        await scheduler.resume()
        await clock.advance(1)
    assert ran == [9, 5, 3, 0]


# -- pausing -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def ran(scheduler: Scheduler) -> list[str]:
    ran: list[str] = []

    @scheduler.task(name="note")
    async def note(word: str) -> None:
        ran.append(word)

    return ran


async def test_a_paused_instance_claims_nothing_until_resumed(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    await scheduler.pause()
    await scheduler.add_job("note", args=["a"])
    await clock.advance(100)
    assert ran == []
    await scheduler.resume()
    await clock.advance(0)
    assert ran == ["a"]


async def test_an_instance_may_start_paused(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock)
    scheduler.register(nothing, "nothing")
    await scheduler.start(paused=True)
    assert scheduler.state == "paused"
    await scheduler.add_job("nothing")
    await clock.advance(60)
    assert await scheduler.history.runs() == []
    assert [end.outcome for end in await run_due(scheduler)] == ["succeeded"]
    await scheduler.stop()


async def test_pausing_leaves_runs_under_way_alone(scheduler: Scheduler, clock: ManualClock) -> None:
    ended = []

    @scheduler.task(name="long")
    async def long() -> None:
        await clock.sleep(10)
        ended.append(1)

    await scheduler.add_job(long)
    await clock.advance(1)
    await scheduler.pause()
    await clock.advance(10)
    assert ended == [1]


async def test_one_store_may_be_paused(scheduler: Scheduler, clock: ManualClock, ran: list[str]) -> None:
    await scheduler.add_store("other", "memory://")
    await scheduler.pause(store="other")
    assert scheduler.state == "running"
    await scheduler.add_job("note", args=["default"])
    await scheduler.add_job("note", args=["other"], store="other")
    await clock.advance(60)
    assert ran == ["default"]
    await scheduler.resume(store="other")
    await clock.advance(0)
    assert ran == ["default", "other"]


async def test_resuming_one_store_leaves_the_pause_of_all_as_it_is_and_the_other_way_round(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    await scheduler.add_store("other", "memory://")
    await scheduler.pause()
    await scheduler.resume(store="other")
    await scheduler.add_job("note", args=["a"], store="other")
    await clock.advance(60)
    assert (scheduler.state, ran) == ("paused", [])
    await scheduler.pause(store="other")
    await scheduler.resume()
    await clock.advance(60)
    assert (scheduler.state, ran) == ("running", [])
    await scheduler.resume(store="other")
    await clock.advance(0)
    assert ran == ["a"]


async def test_resuming_a_queue_of_one_store_leaves_its_pause_in_all_as_it_is(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    await scheduler.pause(queue="default")
    await scheduler.resume(queue="default", store="default")
    await scheduler.add_job("note", args=["a"])
    await clock.advance(60)
    assert ran == []


async def test_a_queue_that_is_paused_is_paused_in_a_store_that_is_added_later(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    await scheduler.pause(queue="default")
    await scheduler.add_store("other", "memory://")
    await scheduler.add_job("note", args=["a"], store="other")
    await clock.advance(60)
    assert ran == []
    await scheduler.resume(queue="default")
    await clock.advance(0)
    assert ran == ["a"]


@pytest.mark.parametrize("queue", [5, ["mail"], ""])
async def test_what_is_no_name_of_a_queue_is_not_paused(scheduler: Scheduler, queue: Any) -> None:
    with pytest.raises(DefinitionError, match="queue"):
        await scheduler.pause(queue=queue)


async def test_a_run_that_pauses_its_scheduler_while_that_stops_does_not_make_it_take_calls_again(
    clock: ManualClock,
) -> None:
    scheduler, go, states = Scheduler(clock=clock), asyncio.Event(), []

    @scheduler.task(name="late")
    async def late() -> None:
        await go.wait()
        await scheduler.pause()
        states.append(scheduler.state)

    await scheduler.start()
    await scheduler.add_job(late)
    await clock.advance(1)
    stopping = asyncio.get_running_loop().create_task(scheduler.stop(drain=10))
    await clock.advance(1)
    go.set()
    await stopping
    assert states == ["stopping"]


async def test_one_queue_may_be_paused(clock: ManualClock) -> None:
    ran: list[str] = []
    async with Scheduler(queues=["default", "mail"], clock=clock) as scheduler:

        @scheduler.task(name="note")
        async def note(word: str) -> None:
            ran.append(word)

        await scheduler.pause(queue="mail")
        await scheduler.add_job(note, args=["default"])
        await scheduler.add_job(note, args=["mail"], queue="mail")
        await clock.advance(60)
        assert ran == ["default"]
        await scheduler.resume(queue="mail")
        await clock.advance(0)
        assert ran == ["default", "mail"]


async def test_a_queue_paused_everywhere_is_paused_in_other_instances(clock: ManualClock) -> None:
    store = MemoryStore()
    ran: list[str] = []

    async def note() -> None:
        ran.append("x")

    client, worker = Scheduler(store, queues=(), clock=clock), Scheduler(store, clock=clock)
    for scheduler in (client, worker):
        scheduler.register(note, "note")
    async with worker, client:
        await client.pause(queue="default", everywhere=True)
        await clock.advance(10)
        await client.add_job("note")
        await clock.advance(100)
        assert ran == []
        await client.resume(queue="default", everywhere=True)
        await clock.advance(60)
        assert ran == ["x"]


async def test_a_queue_paused_everywhere_is_left_alone_by_who_serves_it_later(clock: ManualClock) -> None:
    store = MemoryStore()
    ran: list[str] = []
    client, worker = Scheduler(store, queues=(), clock=clock), Scheduler(store, clock=clock)
    for scheduler in (client, worker):
        scheduler.register(lambda: ran.append("x"), "note")
    async with worker, client:
        await client.pause(queue="late", everywhere=True)
        await client.add_job("note", queue="late")
        await clock.advance(1)
        worker.serve("late")
        await clock.advance(1)
        assert ran == []
        await client.resume(queue="late", everywhere=True)
        await clock.advance(60)
        await eventually(lambda: ran == ["x"])


async def test_a_queue_paused_everywhere_stays_paused_after_a_restart(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock)
    ran: list[str] = []

    @scheduler.task(name="note")
    async def note() -> None:
        ran.append("x")

    async with scheduler:
        await scheduler.pause(queue="default", everywhere=True)
    async with scheduler:
        await scheduler.add_job(note)
        await clock.advance(100)
        assert ran == []
        assert [job.task for job in await scheduler.get_jobs()] == ["note"]
        await scheduler.resume(queue="default", everywhere=True)
        await clock.advance(10)
    assert ran == ["x"]


async def test_everywhere_without_a_queue_is_refused(scheduler: Scheduler) -> None:
    with pytest.raises(DefinitionError, match="queue="):
        await scheduler.pause(everywhere=True)


async def test_a_paused_overdue_job_costs_no_claims(scheduler: Scheduler, clock: ManualClock) -> None:
    store = MemoryStore()
    claims = 0
    claim = store.claim

    async def counting(*args: Any) -> Any:
        nonlocal claims
        claims += 1
        return await claim(*args)

    store.claim = counting  # type: ignore[method-assign]  # the test takes its place
    await scheduler.add_store("watched", store)
    job = await scheduler.add_job(nothing, once(delay=1), store="watched")
    await scheduler.pause_job(job.id)
    await clock.advance(60)
    claims = 0
    await clock.advance(300)
    assert claims <= 12


async def test_what_becomes_due_while_a_claim_is_on_its_way_is_claimed_at_once(clock: ManualClock) -> None:
    class Slow(SharedMemory):
        gate: asyncio.Event | None = None

        async def claim(self, *arguments: Any, **options: Any) -> Claimed:
            claimed = await super().claim(*arguments, **options)
            if self.gate is not None:
                await self.gate.wait()
            return claimed

    ran, store = list[str](), Slow()
    async with Scheduler(store, clock=clock) as scheduler:
        scheduler.register(nothing, "note")
        await scheduler.add_job("note", once(delay=60), id="a")
    store.gate = asyncio.Event()
    scheduler = Scheduler(store, clock=clock)

    @scheduler.task(name="note")
    async def note() -> None:
        ran.append("note")

    async with scheduler:
        await clock.advance(60)
        assert ran == []
        store.gate.set()
        await clock.advance(0)
        assert ran == ["note"]


# -- several stores ----------------------------------------------------------------------------------------------------


async def test_a_store_can_be_added_and_removed_while_running(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    await scheduler.add_store("other", "memory://")
    await scheduler.add_job("note", args=["a"], store="other")
    await clock.advance(0)
    assert ran == ["a"]
    await scheduler.remove_store("other")
    with pytest.raises(UnknownStoreError) as caught:
        await scheduler.add_job("note", args=["b"], store="other")
    assert caught.value.store == "other"


async def test_a_store_can_be_added_before_start(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock)
    await scheduler.add_store("other", "memory://")
    async with scheduler:
        assert (await scheduler.add_job(nothing, every(5), store="other")).store == "other"


async def test_the_jobs_of_a_removed_store_stay_in_it(scheduler: Scheduler, clock: ManualClock) -> None:
    store = MemoryStore()
    await scheduler.add_store("other", store)
    job = await scheduler.add_job(nothing, every(60), store="other")
    await scheduler.remove_store("other")
    with pytest.raises(JobLookupError):
        await scheduler.get_job(job.id)
    await scheduler.add_store("again", store)
    assert (await scheduler.get_job(job.id)).store == "again"


async def test_removing_a_store_lets_its_runs_end(scheduler: Scheduler, clock: ManualClock) -> None:
    ended = []

    @scheduler.task(name="long")
    async def long() -> None:
        await clock.sleep(10)
        ended.append(1)

    await scheduler.add_store("other", "memory://")
    await scheduler.add_job(long, store="other")
    await clock.advance(1)
    removing = asyncio.get_running_loop().create_task(scheduler.remove_store("other", drain=60))
    await clock.advance(20)
    await removing
    assert ended == [1]


async def test_a_store_is_removed_once_however_many_ask_for_it(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    @scheduler.task(name="long")
    async def long() -> None:
        await clock.sleep(10)

    await scheduler.add_store("other", "memory://")
    await scheduler.add_job(long, store="other")
    await clock.advance(1)
    removing = asyncio.get_running_loop().create_task(scheduler.remove_store("other", drain=60))
    await clock.advance(1)
    with pytest.raises(UnknownStoreError, match="being removed already"):
        await scheduler.remove_store("other")
    await clock.advance(20)
    await removing
    with pytest.raises(UnknownStoreError):
        await scheduler.remove_store("other")


async def test_a_store_whose_removal_was_given_up_goes_on_and_can_be_removed_later(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    @scheduler.task(name="long")
    async def long() -> None:
        await clock.sleep(10)

    await scheduler.add_store("other", "memory://")
    await scheduler.add_job(long, store="other")
    await clock.advance(1)
    removing = asyncio.get_running_loop().create_task(scheduler.remove_store("other", drain=60))
    await clock.advance(1)
    removing.cancel()
    await asyncio.wait([removing])
    await scheduler.add_job("note", args=["a"], store="other")
    await clock.advance(20)
    assert ran == ["a"]
    await scheduler.remove_store("other")
    with pytest.raises(UnknownStoreError):
        await scheduler.get_jobs(store="other")


@pytest.mark.parametrize("where", ["disappear", "close"])
async def test_a_removal_that_is_cancelled_at_its_end_comes_to_its_end(
    scheduler: Scheduler, clock: ManualClock, where: str
) -> None:
    """Half removed, its jobs would be taken and never run, or the alias be lost."""
    reached, go = asyncio.Event(), asyncio.Event()

    class Slow(MemoryStore):
        async def remove(self, ids: Sequence[str]) -> set[str]:
            if where == "disappear":
                reached.set()
                await go.wait()
            return await super().remove(ids)

        async def close(self) -> None:
            if where == "close":
                reached.set()
                await go.wait()
            await super().close()

    await scheduler.add_store("other", Slow())
    removing = asyncio.get_running_loop().create_task(scheduler.remove_store("other", drain=0))
    await reached.wait()
    removing.cancel()
    await clock.advance(0)
    go.set()
    await asyncio.wait([removing])
    assert removing.cancelled()
    with pytest.raises(UnknownStoreError):
        await scheduler.add_job(nothing, store="other")
    await scheduler.add_store("other", "memory://")
    assert (await scheduler.add_job(nothing, store="other")).store == "other"


async def test_a_store_that_is_away_can_be_removed(scheduler: Scheduler) -> None:
    class Away(MemoryStore):
        async def close(self) -> None:
            raise StoreUnavailable("away")

    await scheduler.add_store("other", Away())
    await scheduler.remove_store("other")
    await scheduler.add_store("other", "memory://")


async def test_a_store_that_is_opened_while_the_scheduler_stops_is_not_worked_on(clock: ManualClock) -> None:
    go, ran = asyncio.Event(), []

    class Slow(MemoryStore):
        async def open(self, now: Callable[[], float] | None = None) -> None:
            await super().open(now)
            await go.wait()

    scheduler, store = Scheduler(clock=clock), Slow()
    other = Scheduler(store, queues=(), clock=clock)

    @scheduler.task(name="note")
    async def note() -> None:
        ran.append(1)

    await scheduler.start()
    adding = asyncio.get_running_loop().create_task(scheduler.add_store("other", store))
    await clock.advance(0)
    await scheduler.stop()
    go.set()
    with pytest.raises(NotRunning):
        await adding
    async with other:
        other.register(note.function, "note")
        await other.add_job("note")
        await clock.advance(60)
    assert (ran, list(scheduler.stores), scheduler.state) == ([], ["default"], "stopped")


async def test_a_store_that_is_removed_while_the_scheduler_stops_is_no_error(clock: ManualClock) -> None:
    scheduler = Scheduler(dict.fromkeys(["default", "a", "b"], "memory://"), clock=clock)
    go = asyncio.Event()

    @scheduler.task(name="long")
    async def long() -> None:
        await go.wait()

    await scheduler.start()
    await scheduler.add_job(long, store="a")
    await clock.advance(1)
    ending = [
        asyncio.get_running_loop().create_task(call)
        for call in (scheduler.remove_store("a", drain=60), scheduler.stop(drain=60))
    ]
    await clock.advance(1)
    go.set()
    await asyncio.gather(*ending)
    assert (scheduler.state, list(scheduler.stores)) == ("stopped", ["default", "b"])


@pytest.mark.parametrize("state", ["starting", "stopping"])
async def test_stores_stay_as_they_are_while_the_scheduler_starts_or_stops(
    clock: ManualClock, state: str
) -> None:
    refused = []

    async def change(scheduler: Scheduler) -> None:
        assert scheduler.state == state
        for call in (scheduler.add_store("more", "memory://"), scheduler.remove_store("other")):
            with pytest.raises(NotRunning, match=state):
                await call
            refused.append(1)

    @asynccontextmanager
    async def lifespan(scheduler: Scheduler) -> AsyncIterator[None]:
        if state == "starting":
            await change(scheduler)
        yield
        if state == "stopping":
            await change(scheduler)

    async with Scheduler(
        dict.fromkeys(["default", "other"], "memory://"), lifespan=lifespan, clock=clock
    ) as scheduler:
        assert scheduler.state == "running"
    assert len(refused) == 2
    assert list(scheduler.stores) == ["default", "other"]


@pytest.mark.parametrize("given", [Path("jobs.db"), 5, None, MemoryStore], ids=["path", "5", "none", "class"])
async def test_what_is_no_store_is_refused(scheduler: Scheduler, given: Any) -> None:
    with pytest.raises(DefinitionError, match="sqlite:///"):
        await scheduler.add_store("other", given)
    with pytest.raises(DefinitionError, match="sqlite:///"):
        Scheduler(given)
    assert list(scheduler.stores) == ["default"]


async def test_one_store_has_one_alias(scheduler: Scheduler) -> None:
    """To remove it under one would close it under the other."""
    with pytest.raises(DefinitionError, match="is store 'default'"):
        await scheduler.add_store("other", scheduler.stores["default"])


async def test_a_store_whose_removal_is_given_up_when_its_worker_has_gone_is_removed(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    class Slow(MemoryStore):
        async def close(self) -> None:
            await clock.sleep(1)

    await scheduler.add_store("other", Slow())
    removing = asyncio.get_running_loop().create_task(scheduler.remove_store("other", drain=0))
    await clock.advance(0)
    removing.cancel()
    await clock.advance(2)
    assert removing.cancelled()
    with pytest.raises(UnknownStoreError, match="no store 'other'"):
        await scheduler.add_job("note", args=["a"], store="other")
    await scheduler.add_store("other", "memory://")
    await scheduler.add_job("note", args=["b"], store="other")
    await clock.advance(1)
    assert ran == ["b"]


async def test_a_store_that_goes_while_all_are_paused_is_no_error(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    class Slow(MemoryStore):
        async def add(self, records: Sequence[Record]) -> set[str]:
            if records[0].hold == "paused":
                removing.append(
                    asyncio.get_running_loop().create_task(scheduler.remove_store("third", drain=0))
                )
                await asyncio.wait(removing)
            return await super().add(records)

    removing: list[asyncio.Task[None]] = []
    await scheduler.add_store("second", Slow())
    await scheduler.add_store("third", "memory://")
    await scheduler.pause(queue="mail", everywhere=True)
    assert [task.exception() for task in removing] == [None]


async def test_a_taken_alias_is_refused(scheduler: Scheduler) -> None:
    with pytest.raises(DefinitionError):
        await scheduler.add_store("default", "memory://")


async def test_a_store_that_cannot_be_opened_is_not_kept(
    scheduler: Scheduler, sqlite_url: str, tmp_path: Path
) -> None:
    (tmp_path / "jobs.db").mkdir()
    with pytest.raises(Exception, match=r"jobs\.db"):
        await scheduler.add_store("other", sqlite_url)
    with pytest.raises(UnknownStoreError):
        await scheduler.get_jobs(store="other")


async def test_jobs_of_all_stores_are_found_without_naming_one(scheduler: Scheduler) -> None:
    await scheduler.add_store("other", "memory://")
    await scheduler.add_job(nothing, once(delay=20), id="here")
    await scheduler.add_job(nothing, once(delay=10), id="there", store="other")
    assert (await scheduler.get_job("there")).store == "other"
    assert [job.id for job in await scheduler.get_jobs()] == ["there", "here"]
    assert [job.id for job in await scheduler.get_jobs(store="default")] == ["here"]


async def test_next_fire_time_is_the_earliest_of_all_stores(scheduler: Scheduler, clock: ManualClock) -> None:
    assert await scheduler.next_fire_time() is None
    await scheduler.add_store("other", "memory://")
    await scheduler.add_job(nothing, once(delay=20))
    await scheduler.add_job(nothing, once(delay=10), store="other")
    assert await scheduler.next_fire_time() == datetime(2026, 1, 1, 0, 0, 10, tzinfo=UTC)


async def test_now_is_the_stores_clock(scheduler: Scheduler, clock: ManualClock) -> None:
    await clock.advance(7.25)
    assert scheduler.now() == clock.now()


async def test_without_the_default_store_there_is_no_clock_to_ask(scheduler: Scheduler) -> None:
    await scheduler.remove_store("default")
    with pytest.raises(UnknownStoreError, match="no store 'default'"):
        scheduler.now()


async def test_with_lookahead_a_job_still_starts_at_its_time(clock: ManualClock) -> None:
    started: list[datetime] = []
    async with Scheduler(lookahead=2, clock=clock) as scheduler:

        @scheduler.task(name="note")
        async def note() -> None:
            started.append(clock.now())

        job = await scheduler.add_job(note, once(delay=5))
        await clock.advance(4)
        assert (await scheduler.get_job(job.id)).state == "running"
        assert started == []
        await clock.advance(1)
    assert started == [datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC)]
