"""Events: typed facts, heard by whom they concern, and listeners that harm nobody."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncsched import (
    DefinitionError,
    Event,
    GiveUp,
    JobAdded,
    JobEvent,
    JobExhausted,
    JobHandedBack,
    JobPausedEvent,
    JobQuarantined,
    JobRemoved,
    JobResumed,
    JobUnhealthy,
    JobUpdated,
    MemoryStore,
    Retry,
    RunCancelled,
    RunEvent,
    RunFailed,
    RunFinished,
    RunSkipped,
    RunStarted,
    RunSucceeded,
    RunTimedOut,
    Scheduler,
    SchedulerEvent,
    SchedulerPaused,
    SchedulerResumed,
    SchedulerStarted,
    SchedulerStopped,
    Snooze,
    StoreDegraded,
    StoreEvent,
    StoreRecovered,
    StoreUnavailable,
    every,
    once,
)
from asyncsched.contract import Record
from asyncsched.events import Bus
from asyncsched.testing import ManualClock

pytestmark = pytest.mark.anyio

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NEW_YEAR + timedelta(seconds=seconds)


async def nothing() -> None:
    """Do nothing."""


async def fails() -> None:
    raise ValueError("spoilt")


@pytest.fixture
async def heard(scheduler: Scheduler) -> list[Event]:
    heard: list[Event] = []
    scheduler.register(nothing, "nothing")
    scheduler.register(fails, "fails")
    scheduler.on(Event, heard.append)
    return heard


def names(heard: list[Event]) -> list[str]:
    return [type(event).__name__ for event in heard]


# -- who hears what ----------------------------------------------------------------------------------------------------


async def test_a_run_is_told_from_adding_to_its_end(
    scheduler: Scheduler, clock: ManualClock, heard: list[Event]
) -> None:
    await scheduler.add_job("nothing", once(delay=5), id="x", name="a job", queue="default", tags=["t"])
    await clock.advance(6)
    added, started, succeeded = heard
    assert isinstance(added, JobAdded)
    assert isinstance(started, RunStarted)
    assert isinstance(succeeded, RunSucceeded)
    for event in (added, started, succeeded):
        assert isinstance(event, JobEvent)
        assert (event.store, event.job_id, event.task, event.name) == ("default", "x", "nothing", "a job")
        assert (event.queue, event.tags) == ("default", ("t",))
    assert (added.at, started.at) == (at(0), at(5))
    assert (started.fire_time, started.attempt) == (at(5), 1)
    assert started.fence == succeeded.fence == (await scheduler.history.runs("x"))[0].fence
    assert (succeeded.outcome, succeeded.duration, succeeded.error) == ("succeeded", 0.0, None)


async def test_a_failure_tells_its_error_and_that_its_attempts_have_run_out(
    scheduler: Scheduler, clock: ManualClock, heard: list[Event]
) -> None:
    await scheduler.add_job("fails", id="x", retry=Retry(max_attempts=2))
    await clock.advance(10)
    assert names(heard) == [
        "JobAdded",
        "RunStarted",
        "RunFailed",
        "RunStarted",
        "RunFailed",
        "JobExhausted",
        "JobUnhealthy",
    ]
    failed = [event for event in heard if isinstance(event, RunFailed)]
    assert [event.attempt for event in failed] == [1, 2]
    assert {event.error for event in failed} == {"ValueError: spoilt"}
    exhausted, unhealthy = heard[-2:]
    assert isinstance(exhausted, JobExhausted)
    assert isinstance(unhealthy, JobUnhealthy)
    assert exhausted.error == unhealthy.error == "ValueError: spoilt"
    assert unhealthy.reasons == ("failed",)


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (lambda: GiveUp(), RunFailed),
        (lambda: Snooze(at(3600)), RunCancelled),
        (lambda: ValueError(), RunFailed),
    ],
)
async def test_each_end_has_its_event(
    scheduler: Scheduler, clock: ManualClock, heard: list[Event], step: Any, kind: type[Event]
) -> None:
    @scheduler.task(name="ends")
    async def ends() -> None:
        raise step()

    await scheduler.add_job(ends)
    await clock.advance(1)
    assert [type(event) for event in heard if isinstance(event, RunFinished)] == [kind]


async def test_a_timeout_has_its_event(scheduler: Scheduler, clock: ManualClock, heard: list[Event]) -> None:
    @scheduler.task(name="long")
    async def long() -> None:
        await clock.sleep(100)

    await scheduler.add_job(long, timeout=3)
    await clock.advance(5)
    [event] = [event for event in heard if isinstance(event, RunFinished)]
    assert isinstance(event, RunTimedOut)
    assert (event.outcome, event.duration) == ("timed_out", 3.0)


async def test_changes_of_jobs_have_their_events(
    scheduler: Scheduler, clock: ManualClock, heard: list[Event]
) -> None:
    await scheduler.add_job("nothing", every(60), id="x")
    await scheduler.update_job("x", name="new")
    await scheduler.reschedule_job("x", every(90))
    await scheduler.pause_job("x")
    await scheduler.pause_job("x")
    await scheduler.resume_job("x")
    await scheduler.remove_job("x")
    await clock.advance(0)
    assert [type(event) for event in heard] == [
        JobAdded,
        JobUpdated,
        JobUpdated,
        JobPausedEvent,
        JobResumed,
        JobRemoved,
    ]


async def test_a_job_that_is_there_is_told_by_what_becomes_of_it(
    scheduler: Scheduler, clock: ManualClock, heard: list[Event]
) -> None:
    await scheduler.add_job("nothing", every(60), id="x", on_conflict="keep")
    await scheduler.add_job("nothing", every(60), id="x", on_conflict="keep")
    await scheduler.add_job("nothing", every(60), id="x", on_conflict="replace")
    await scheduler.add_job("nothing", every(90), id="x", on_conflict="replace")
    await scheduler.add_job("nothing", every(60), id="y", on_conflict="replace")
    await clock.advance(0)
    assert [(type(event), event.job_id) for event in heard if isinstance(event, JobEvent)] == [
        (JobAdded, "x"),
        (JobUpdated, "x"),
        (JobAdded, "y"),
    ]


async def test_bulk_changes_tell_each_job(
    scheduler: Scheduler, clock: ManualClock, heard: list[Event]
) -> None:
    for id in "ab":
        await scheduler.add_job("nothing", every(60), id=id)
    await scheduler.pause_jobs()
    await scheduler.remove_all_jobs()
    await clock.advance(0)
    assert names(heard) == ["JobAdded"] * 2 + ["JobPausedEvent"] * 2 + ["JobRemoved"] * 2


async def test_pausing_the_instance_has_its_events(
    scheduler: Scheduler, clock: ManualClock, heard: list[Event]
) -> None:
    await scheduler.pause()
    await scheduler.resume()
    await clock.advance(0)
    assert [type(event) for event in heard] == [SchedulerPaused, SchedulerResumed]


async def test_what_does_not_run_is_told_with_its_reason_and_count(
    scheduler: Scheduler, clock: ManualClock, heard: list[Event]
) -> None:
    await scheduler.add_job("nothing", every(10), id="x")
    await scheduler.pause()
    await clock.advance(35)
    await scheduler.resume()
    await clock.advance(0)
    [event] = [event for event in heard if isinstance(event, RunSkipped)]
    assert (event.reason, event.count, event.fire_time) == ("coalesced", 2, at(10))


async def test_an_unknown_task_is_told_and_its_job_kept(
    scheduler: Scheduler, clock: ManualClock, heard: list[Event]
) -> None:
    await scheduler.add_job("nothing", once(delay=5), id="x")
    scheduler.unregister("nothing")
    await clock.advance(6)
    told = [event for event in heard if isinstance(event, JobHandedBack)]
    assert "nothing" in (told[0].error or "")
    await clock.advance(300)
    told = [event for event in heard if isinstance(event, JobHandedBack)]
    assert 8 <= len(told) <= 25, "it is tried after 1, 2, 4 .. 30 s"
    assert (await scheduler.get_job("x")).state == "scheduled"
    scheduler.register(nothing, "nothing")
    await clock.advance(60)
    assert (await scheduler.history.runs("x"))[0].outcome == "succeeded"


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (Event, ["JobAdded", "RunStarted", "RunSucceeded", "SchedulerPaused"]),
        (JobEvent, ["JobAdded", "RunStarted", "RunSucceeded"]),
        (RunEvent, ["RunStarted", "RunSucceeded"]),
        (RunFinished, ["RunSucceeded"]),
        (RunSucceeded, ["RunSucceeded"]),
        (RunFailed, []),
        (SchedulerEvent, ["SchedulerPaused"]),
        (StoreEvent, []),
    ],
)
async def test_a_class_hears_itself_and_its_subclasses(
    scheduler: Scheduler, clock: ManualClock, kind: type[Event], found: list[str]
) -> None:
    heard: list[Event] = []
    scheduler.on(kind, heard.append)
    await scheduler.add_job(nothing)
    await clock.advance(0)
    await scheduler.pause()
    await clock.advance(0)
    assert names(heard) == found


async def test_on_returns_what_ends_the_hearing(scheduler: Scheduler, clock: ManualClock) -> None:
    heard: list[Event] = []
    end = scheduler.on(JobAdded, heard.append)
    await scheduler.add_job(nothing, every(60))
    await clock.advance(0)
    end()
    end()
    await scheduler.add_job(nothing, every(60))
    await clock.advance(0)
    assert len(heard) == 1


async def test_on_is_a_decorator_that_gives_the_function_back(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    heard: list[Event] = []

    @scheduler.on(JobAdded)
    def hear(event: JobAdded) -> str:
        heard.append(event)
        return "called"

    await scheduler.add_job(nothing, every(60))
    await clock.advance(0)
    assert len(heard) == 1
    assert hear(heard[0]) == "called"  # type: ignore[arg-type]  # it is a JobAdded: the first that is told


async def test_a_listener_may_be_async(scheduler: Scheduler, clock: ManualClock) -> None:
    heard: list[Event] = []

    @scheduler.on(JobAdded)
    async def hear(event: JobAdded) -> None:
        await asyncio.sleep(0)
        heard.append(event)

    await scheduler.add_job(nothing, every(60))
    await clock.advance(0)
    assert len(heard) == 1


@pytest.mark.parametrize("kind", [int, "JobAdded", None, Event(at=NEW_YEAR), list])
def test_what_is_no_event_class_is_refused(kind: Any) -> None:
    with pytest.raises(DefinitionError):
        Scheduler().on(kind, print)


async def test_listeners_added_before_start_hear_the_start(clock: ManualClock) -> None:
    heard: list[Event] = []
    scheduler = Scheduler(clock=clock)
    scheduler.on(SchedulerEvent, heard.append)
    async with scheduler:
        pass
    assert [type(event) for event in heard] == [SchedulerStarted, SchedulerStopped]


def test_an_event_cannot_be_changed() -> None:
    event = SchedulerStarted(at=NEW_YEAR, instance="x")
    with pytest.raises(AttributeError):
        event.instance = "y"  # type: ignore[misc]  # it is refused


# -- who harms nobody --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_failing_listener_harms_no_run_and_no_other_listener(
    scheduler: Scheduler,
    clock: ManualClock,
    heard: list[Event],
    caplog: pytest.LogCaptureFixture,
    is_async: bool,
) -> None:
    calls: list[int] = []

    def broken(event: Event) -> None:
        calls.append(1)
        raise RuntimeError("deaf")

    async def broken_later(event: Event) -> None:
        broken(event)

    scheduler.on(Event, broken_later if is_async else broken)
    await scheduler.add_job("nothing", every(60), id="x")
    await clock.advance(130)
    assert names(heard) == ["JobAdded"] + ["RunStarted", "RunSucceeded"] * 2
    assert len(calls) == 5
    assert "deaf" in caplog.text


async def test_a_listener_whose_wait_is_cancelled_hears_what_follows(
    scheduler: Scheduler, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    async def cancelled(event: Event) -> None:
        calls.append(1)
        waited = asyncio.get_running_loop().create_future()
        waited.cancel()
        await waited

    scheduler.on(RunFinished, cancelled)
    await scheduler.add_job(nothing, every(60), id="x")
    await clock.advance(130)
    assert len(calls) == 2
    assert "CancelledError" in caplog.text


async def test_a_stuck_listener_only_fills_its_own_queue_and_what_it_drops_is_counted(
    clock: ManualClock,
) -> None:
    gate, late, quick = asyncio.Event(), list[Event](), list[Event]()

    async def stuck(event: Event) -> None:
        await gate.wait()
        late.append(event)

    async with Scheduler(clock=clock, queues=()) as scheduler:
        slow, fast = scheduler.on(JobAdded, stuck), scheduler.on(JobAdded, quick.append)
        for _ in range(1500):
            await scheduler.add_job(nothing, every(60))
            await asyncio.sleep(0)
        await clock.advance(0)
        assert len(quick) == 1500
        assert fast.dropped == 0
        assert 0 < slow.dropped <= 500
        gate.set()
        await clock.advance(0)
        assert len(late) + slow.dropped == 1500


async def test_a_stuck_listener_does_not_hold_up_stop(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock)

    @scheduler.on(Event)
    async def stuck(event: Event) -> None:
        await asyncio.Event().wait()

    await scheduler.start()
    await scheduler.enqueue(nothing)
    await clock.advance(0)
    await asyncio.wait_for(scheduler.stop(), 10)
    assert scheduler.state == "stopped"


async def test_whoever_is_cancelled_while_it_delivers_leaves_no_listener_behind() -> None:
    bus = Bus(logging.getLogger("asyncsched"))

    async def stuck(event: Event) -> None:
        await asyncio.Event().wait()

    bus.add(Event, stuck)
    others = asyncio.all_tasks()
    bus.start()
    bus.emit(SchedulerStopped(at=datetime.now(UTC), instance="a"))
    stopping = asyncio.create_task(bus.stop(60))
    await asyncio.sleep(0.01)  # Until it waits for the listener.
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert asyncio.all_tasks() == others


async def test_what_was_told_before_stop_is_heard_before_it_returns(clock: ManualClock) -> None:
    heard: list[Event] = []
    async with Scheduler(clock=clock) as scheduler:

        @scheduler.on(Event)
        async def slow(event: Event) -> None:
            await asyncio.sleep(0.01)
            heard.append(event)

        await scheduler.enqueue(nothing)
        await clock.advance(0)
    assert names(heard) == ["JobAdded", "RunStarted", "RunSucceeded", "SchedulerStopped"]


async def test_the_events_of_a_job_come_in_order(scheduler: Scheduler, clock: ManualClock) -> None:
    heard: dict[str, list[str]] = {}

    @scheduler.on(JobEvent)
    async def hear(event: JobEvent) -> None:
        await asyncio.sleep(0)
        heard.setdefault(event.job_id, []).append(type(event).__name__)

    scheduler.register(nothing, "nothing")
    for n in range(20):
        await scheduler.add_job("nothing", every(1), id=f"j{n}")
    await clock.advance(5.5)
    for n in range(20):
        assert heard[f"j{n}"] == ["JobAdded"] + ["RunStarted", "RunSucceeded"] * 5


async def test_a_listener_may_use_the_scheduler(scheduler: Scheduler, clock: ManualClock) -> None:
    ran: list[str] = []

    @scheduler.task(name="note")
    async def note(word: str) -> None:
        ran.append(word)

    @scheduler.on(RunSucceeded)
    async def chain(event: RunSucceeded) -> None:
        if len(ran) < 3:
            await scheduler.enqueue(note, event.job_id)

    await scheduler.add_job(note, id="x", args=["first"])
    await clock.advance(1)
    assert len(ran) == 3
    assert ran[:2] == ["first", "x"]


# -- stores that go away -----------------------------------------------------------------------------------------------


class Flaky(MemoryStore):
    """A memory store whose server can be switched off."""

    is_away = False

    async def claim(self, *args: Any, **options: Any) -> Any:
        if self.is_away:
            raise StoreUnavailable("switched off")
        return await super().claim(*args, **options)

    async def settle(self, *args: Any, **options: Any) -> Any:
        if self.is_away:
            raise StoreUnavailable("switched off")
        return await super().settle(*args, **options)


async def test_a_store_that_goes_away_and_comes_back_is_told_once_each(clock: ManualClock) -> None:
    store, heard, ran = Flaky(), list[Event](), list[float]()
    async with Scheduler({"default": "memory://", "flaky": store}, clock=clock) as scheduler:
        scheduler.on(StoreEvent, heard.append)

        @scheduler.task(name="note")
        async def note() -> None:
            ran.append(clock.time() - NEW_YEAR.timestamp())

        await scheduler.add_job(note, every(10), store="flaky")
        await clock.advance(15)
        store.is_away = True
        await clock.advance(60)
        assert [(type(event), event.store) for event in heard] == [(StoreDegraded, "flaky")]  # type: ignore[attr-defined]  # they are StoreEvents, or this fails
        assert "switched off" in (heard[0].error or "")  # type: ignore[attr-defined]  # likewise
        store.is_away = False
        await clock.advance(30)
        assert [type(event) for event in heard] == [StoreDegraded, StoreRecovered]
    assert ran[0] == 10
    assert ran[-1] == 100


async def test_a_store_that_is_away_does_not_hold_up_another(clock: ManualClock) -> None:
    store, ran = Flaky(), list[int]()
    async with Scheduler({"default": "memory://", "flaky": store}, clock=clock) as scheduler:

        @scheduler.task(name="note")
        async def note() -> None:
            ran.append(1)

        store.is_away = True
        await scheduler.add_job(note, store="flaky")
        await scheduler.add_job(note, every(10))
        await clock.advance(61)
        assert len(ran) == 6
        store.is_away = False
        await clock.advance(11)
        assert len(ran) == 8


async def test_an_end_that_could_not_be_written_is_written_when_the_store_returns(clock: ManualClock) -> None:
    store = Flaky()
    async with Scheduler(store, clock=clock) as scheduler:

        @scheduler.task(name="long")
        async def long() -> str:
            await clock.sleep(5)
            return "done"

        await scheduler.add_job(long, id="x")
        await clock.advance(1)
        store.is_away = True
        await clock.advance(60)
        assert await scheduler.history.runs("x") == []
        store.is_away = False
        await clock.advance(30)
        [run] = await scheduler.history.runs("x")
        assert (run.result, run.duration) == ("done", 5.0)


# -- quarantine --------------------------------------------------------------------------------------------------------


async def test_a_job_that_cannot_be_planned_is_quarantined_told_and_kept(clock: ManualClock) -> None:
    store, heard = MemoryStore(), list[Event]()
    async with Scheduler(store, clock=clock) as scheduler:
        scheduler.on(JobQuarantined, heard.append)
        await store.add([Record("x", "birth", "default", 0, "t", clock.time(), None, b"\x01\xc1", b"")])
        await scheduler.enqueue(nothing)
        await clock.advance(1)
        assert len(heard) == 1
        assert (await store.get(["x"]))["x"].hold == "quarantined"
        assert (await scheduler.history.stats()).succeeded == 1
