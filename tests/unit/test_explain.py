"""What a job waits for, what is to come, and why a fire time did not run."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from asyncsched import (
    DefinitionError,
    JobLookupError,
    Retry,
    Scheduler,
    cron,
    every,
    excluding,
    manual,
    once,
)
from asyncsched.testing import ManualClock
from tests.support.running import running
from tests.support.stores import SharedMemory
from tests.unit.test_runs import at

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def task(scheduler: Scheduler, clock: ManualClock) -> None:
    @scheduler.task(name="work")
    async def work(seconds: float = 0.0, fails: bool = False) -> None:
        await clock.sleep(seconds)
        if fails:
            raise ValueError("no")


# -- explain -----------------------------------------------------------------------------------------------------------


async def test_a_job_that_waits_says_for_what(scheduler: Scheduler) -> None:
    await scheduler.add_job("work", every(60), id="x")
    told = await scheduler.explain("x", 3)
    assert told.summary == f"it waits for {at(60).isoformat()}"
    assert (told.held_by, told.held_until) == (None, None)
    assert [(run.fire_time, run.due_at, run.note) for run in told.coming] == [
        (at(60 * n), at(60 * n), "") for n in (1, 2, 3)
    ]
    assert told.job == await scheduler.get_job("x")


async def test_a_job_that_runs_says_where_and_for_how_long(clock: ManualClock) -> None:
    store = SharedMemory()
    async with Scheduler(store, clock=clock, id="over-there", lease=30) as worker:

        @worker.task(name="work")
        async def work() -> None:
            await clock.sleep(100)

        await worker.add_job("work", id="x")
        await clock.advance(1)
        async with Scheduler(store, clock=clock, queues=()) as client:
            told = await client.explain("x")
            assert told.held_by == "over-there"
            assert told.held_until is not None
            assert told.held_until > clock.now()
            assert told.summary.startswith("it runs in over-there as x@")
            assert told.coming == (), "that it runs is no run to come"
        await worker.cancel_job("x")


async def test_the_run_under_way_is_none_of_those_to_come(scheduler: Scheduler, clock: ManualClock) -> None:
    async def coming() -> list[tuple[datetime, str]]:
        return [(run.fire_time, run.note) for run in (await scheduler.explain("x", 2)).coming]

    await scheduler.add_job("work", every(60), id="x", args=[100])
    await clock.advance(61)
    assert await coming() == [(at(120), ""), (at(180), "")]
    asked = await scheduler.run_job("x")
    assert await coming() == [(asked.fire_time, "asked for by run_job()"), (at(120), "")]
    await clock.advance(62)
    assert (await coming())[1] == (at(120), "it has passed: overlap= and catch_up= decide")


async def test_an_attempt_and_a_request_are_among_what_is_to_come(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    await scheduler.add_job("work", every(3600), id="x", kwargs={"fails": True}, retry=Retry(base=100))
    await clock.advance(3601)
    told = await scheduler.explain("x", 2)
    assert told.summary.startswith("attempt 2 waits for ")
    first, second = told.coming
    assert (first.fire_time, first.note) == (at(3600), "attempt 2 of this fire time")
    assert first.due_at is not None
    assert first.due_at >= at(3700)
    assert second.fire_time == at(7200)

    await scheduler.pause()
    await scheduler.run_job("x")
    told = await scheduler.explain("x", 1)
    assert [run.note for run in told.coming] == ["asked for by run_job()"]
    assert told.summary.endswith("and this scheduler is paused")


async def test_fire_times_that_come_while_a_retry_waits_are_said_to_overlap_it(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    await scheduler.add_job("work", every(100), id="x", kwargs={"fails": True}, retry=Retry(delays=[250]))
    await clock.advance(230)
    told = await scheduler.explain("x", 4)
    overlaps = "it comes while an attempt is pending: overlap= decides"
    assert [run.note for run in told.coming[1:]] == [overlaps, overlaps, ""]
    assert told.coming[1].fire_time == at(200)


async def test_what_the_clocks_and_jitter_do_is_said(scheduler: Scheduler) -> None:
    berlin = cron("30 2 * * *", tz="Europe/Berlin", start=datetime(2026, 3, 28, 12, tzinfo=UTC))
    await scheduler.add_job("work", berlin, id="gap")
    [coming, *_] = (await scheduler.explain("gap", 1)).coming
    assert "clocks go from 02:00 to 03:00" in coming.note
    await scheduler.add_job("work", every(3600), id="x", jitter=600)
    [coming] = (await scheduler.explain("x", 1)).coming
    assert coming.due_at is not None
    assert coming.fire_time < coming.due_at <= coming.fire_time + timedelta(seconds=600)
    assert coming.note.startswith("jitter puts it off by ")


async def test_what_holds_a_job_back_is_said(scheduler: Scheduler, clock: ManualClock) -> None:
    async def summary(id: str) -> str:
        return (await scheduler.explain(id)).summary

    await scheduler.add_job("work", every(60), id="paused")
    await scheduler.pause_job("paused")
    assert await summary("paused") == "it is paused; resume_job() ends that"
    assert (await scheduler.explain("paused")).coming == ()

    await scheduler.add_job("work", id="failed", kwargs={"fails": True})
    await scheduler.add_job("work", every(60), id="tired", kwargs={"fails": True}, pause_after_failures=1)
    await scheduler.add_job("work", manual(), id="by hand")
    await clock.advance(61)
    assert await summary("failed") == (
        "it has failed and is out of attempts (ValueError: no); resume_job() tries it again"
    )
    assert await summary("tired") == (
        "it rests after 1 failures in a row (ValueError: no); resume_job() ends that"
    )
    assert await summary("by hand") == "it never runs by itself: run_job() runs it"


async def test_a_job_that_nobody_claims_says_so(clock: ManualClock) -> None:
    async with Scheduler(SharedMemory(), clock=clock, queues=()) as client:
        client.register(_nothing, "far")
        await client.add_job("far", id="x", queue="mail")
        client.unregister("far")
        await clock.advance(5)
        due = f"it is due since {at(0).isoformat()}, and no instance that serves queue 'mail' has claimed it yet"
        assert (await client.explain("x")).summary == due, "it has no tasks at all"
        client.register(_nothing, "near")
        assert (await client.explain("x")).summary == f"{due}; here no task is registered as 'far'"


async def _nothing() -> None: ...


async def test_a_job_whose_task_no_instance_knows_is_due_and_waits_for_nothing(clock: ManualClock) -> None:
    store = SharedMemory()
    owner, other = Scheduler(store, clock=clock, queues=()), Scheduler(store, clock=clock)
    owner.register(_nothing, "far")
    other.register(_nothing, "near")
    async with running(owner, other, clock=clock):
        await owner.add_job("far", once(delay=10), id="x")
        assert (await owner.explain("x")).summary == f"it waits for {at(10).isoformat()}"
        await clock.advance(300)
        due = f"it is due since {at(10).isoformat()}; whoever claimed it could not run it"
        assert (await owner.explain("x")).summary.startswith(due)
        told = (await other.explain("x")).summary
        assert told.startswith(due)
        assert told.endswith("; here no task is registered as 'far'")


@pytest.mark.parametrize(
    ("paused", "said"),
    [
        ({"queue": "default"}, "queue 'default' is paused in this scheduler"),
        ({"store": "default"}, "store 'default' is paused in this scheduler"),
    ],
)
async def test_what_this_scheduler_was_told_to_leave_alone_is_said(
    scheduler: Scheduler, clock: ManualClock, paused: dict[str, Any], said: str
) -> None:
    await scheduler.pause(**paused)
    await scheduler.add_job("work", id="x")
    await clock.advance(1)
    assert (await scheduler.explain("x")).summary.endswith(said)


async def test_a_paused_queue_is_said(scheduler: Scheduler, clock: ManualClock) -> None:
    await scheduler.pause(queue="default", everywhere=True)
    await scheduler.add_job("work", id="x")
    await clock.advance(5)
    assert (await scheduler.explain("x")).summary.endswith("queue 'default' is paused for all instances")


async def test_what_is_not_there_cannot_be_explained(scheduler: Scheduler) -> None:
    with pytest.raises(JobLookupError):
        await scheduler.explain("none")
    with pytest.raises(JobLookupError):
        await scheduler.why_not("none", at(0))
    with pytest.raises(DefinitionError, match="time zone"):
        await scheduler.why_not("none", datetime(2026, 1, 1))


# -- why_not -----------------------------------------------------------------------------------------------------------


async def test_why_not_knows_what_ran_what_was_skipped_and_what_is_no_fire_time(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    async def kind(seconds: float, id: str = "x") -> str:
        return (await scheduler.why_not(id, at(seconds))).kind

    await clock.advance(10)
    await scheduler.add_job("work", every(60, anchor=at(0)), id="x", args=[100])
    await clock.advance(120)
    assert await kind(60) == "running"
    await clock.advance(100)
    assert await kind(60) == "ran"
    skipped = await scheduler.why_not("x", at(120))
    assert skipped == ("skipped", "overlap: a run of the job was under way, or an attempt pending")
    no = await scheduler.why_not("x", at(90))
    assert (no.kind, no.text.endswith(f"beside it are {at(60).isoformat()} and {at(120).isoformat()}")) == (
        "no_fire_time",
        True,
    )
    assert await kind(0) == "not_there_yet"
    assert await kind(6000) == "planned"


async def test_why_not_knows_a_pause_and_an_exclusion(scheduler: Scheduler, clock: ManualClock) -> None:
    holiday = excluding(cron("0 12 * * *"), at(86400).date())
    await scheduler.add_job("work", holiday, id="x")
    await clock.advance(3 * 86400)
    assert (await scheduler.why_not("x", at(86400 + 43200))).text.startswith("excluded: ")
    await scheduler.add_job("work", every(60), id="y")
    await scheduler.pause_job("y")
    await clock.advance(600)
    await scheduler.resume_job("y")
    await clock.advance(61)
    told = await scheduler.why_not("y", at(3 * 86400 + 300))
    assert (told.kind, told.text) == ("skipped", "paused: the job was paused")


async def test_why_not_knows_what_holds_back_a_fire_time_that_has_come(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    async def told(id: str, seconds: float) -> tuple[str, str]:
        return await scheduler.why_not(id, at(seconds))

    await scheduler.add_job("work", every(60), id="paused")
    await scheduler.pause_job("paused")
    await scheduler.add_job("work", every(60), id="rests", kwargs={"fails": True}, pause_after_failures=1)
    await scheduler.add_job("work", every(60), id="behind", kwargs={"fails": True}, retry=Retry(base=100))
    await scheduler.add_job("work", every(7200, anchor=at(7200)), id="jitter", jitter=600)
    await clock.advance(121)
    assert await told("paused", 120) == ("due", "it is paused; resume_job() ends that")
    assert (await told("rests", 120))[1].startswith("it rests after 1 failures in a row (ValueError: no)")
    kind, text = await told("behind", 120)
    assert (kind, text.partition(" for ")[0]) == ("due", "attempt 2 waits")
    await clock.advance(7200 - 121)
    due = (await scheduler.get_job("jitter")).next_fire_time
    assert due is not None
    assert await told("jitter", 7200) == (
        "planned",
        f"its time has not come yet; jitter puts it off until {due.isoformat()}",
    )


async def test_an_instant_among_skipped_fire_times_is_none_of_them(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    await scheduler.add_job("work", every(60, anchor=at(0)), id="x")
    await scheduler.pause()
    await clock.advance(330)
    await scheduler.resume()
    await clock.advance(5)
    assert (await scheduler.why_not("x", at(180))).text.startswith("coalesced: ")
    assert (await scheduler.why_not("x", at(190))).kind == "no_fire_time"


async def test_what_cannot_be_read_is_said_and_its_history_told(clock: ManualClock) -> None:
    store = SharedMemory()
    async with Scheduler(store, clock=clock) as scheduler:
        scheduler.register(_nothing, "work")
        await scheduler.add_job("work", every(60), id="x")
        await clock.advance(61)
        [record] = (await store.get(["x"])).values()
        await store.remove(["x"])
        await store.add([replace(record, cursor=b"\xff", wake_at=None)])
        assert (await scheduler.why_not("x", at(60))).kind == "ran"
        assert (await scheduler.explain("x")).summary.startswith("it cannot be read: ")
        kind, text = await scheduler.why_not("x", at(120))
        assert (kind, text.partition(":")[0]) == ("unknown", "the job cannot be read")


async def test_why_not_knows_runs_that_go_on_beside_each_other(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    await scheduler.add_job("work", every(60), id="x", args=[100], overlap="allow")
    await clock.advance(125)
    for seconds in (60, 120):
        kind, text = await scheduler.why_not("x", at(seconds))
        assert (kind, " as x#" in text) == ("running", True)


async def test_why_not_tells_reasons_apart_whose_spans_lie_over_each_other(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    await scheduler.add_job("work", excluding(every(10), every(30)), id="x")
    await clock.advance(15)
    await scheduler.pause()
    await clock.advance(180)
    await scheduler.resume()
    await clock.advance(1)
    told = [(await scheduler.why_not("x", at(seconds))).text for seconds in (50, 80, 60, 90)]
    assert [text.partition(":")[0] for text in told] == ["coalesced", "coalesced", "excluded", "excluded"]
    assert (await scheduler.why_not("x", at(55))).kind == "no_fire_time"
    await scheduler.reschedule_job("x", every(7))
    assert (await scheduler.why_not("x", at(80))).kind == "skipped"


async def test_a_run_under_way_says_nothing_of_fire_times_that_the_history_has_forgotten(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    await scheduler.add_job("work", every(60), id="x", args=[30.0])
    await clock.advance(100)
    await scheduler.stores["default"].prune(0, None, 100)
    await clock.advance(25)
    assert (await scheduler.get_job("x")).state == "running"
    assert (await scheduler.why_not("x", at(120))).kind == "running"
    assert (await scheduler.why_not("x", at(60))).kind == "unknown"


async def test_why_not_asks_the_history_of_a_job_that_is_gone(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    await scheduler.add_job("work", once(delay=5), id="x")
    await clock.advance(6)
    assert (await scheduler.why_not("x", at(5))).kind == "ran"
    assert (await scheduler.why_not("x", at(50))).kind == "unknown"
