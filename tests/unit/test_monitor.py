"""Monitor: health by a rule, rates, delays, the summary, and the events of jobs that become unhealthy and recover."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from asyncsched import (
    DefinitionError,
    Health,
    HealthRule,
    JobHealthy,
    JobLookupError,
    JobUnhealthy,
    MemoryStore,
    Retry,
    RunFinished,
    Scheduler,
    cron,
    every,
    excluding,
    once,
)
from asyncsched.codec import decode_definition, encode
from asyncsched.contract import Claimed, Filter, Record
from asyncsched.definition import JitterForm
from asyncsched.testing import ManualClock
from tests.support.faulty import FaultyStore
from tests.support.running import running
from tests.support.stores import SharedMemory
from tests.support.waiting import eventually
from tests.unit.conftest import MakeScheduler

pytestmark = pytest.mark.anyio

Steps = list[Callable[[], Any]]


def fail() -> None:
    raise ValueError("no luck")


def work() -> str:
    return "done"


async def status(scheduler: Scheduler, id: str = "x", **options: Any) -> tuple[str, tuple[str, ...]]:
    health = await scheduler.monitor.health(id, **options)
    assert isinstance(health, Health)
    return health.status, health.reasons


# -- the rule ------------------------------------------------------------------------------------------------------------


async def test_a_job_that_has_not_run_is_healthy_and_has_no_outcome(
    scheduler: Scheduler, steps: Steps
) -> None:
    await scheduler.add_job("stepwise", every(60), id="x")
    health = await scheduler.monitor.health("x")
    assert health == Health(job_id="x", store="default", task="stepwise", status="healthy")
    assert not health.is_unhealthy


async def test_failures_in_a_row_make_it_degraded_and_then_unhealthy_and_a_success_heals_it(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps[:] = [work, fail, fail, fail, work]
    await scheduler.add_job("stepwise", every(60), id="x")
    seen = []
    for _ in range(5):
        await clock.advance(60)
        health = await scheduler.monitor.health("x")
        seen.append((health.status, health.reasons, health.last_outcome, health.consecutive_failures))
    assert seen == [
        ("healthy", (), "succeeded", 0),
        ("degraded", ("last_run_failed",), "failed", 1),
        ("degraded", ("last_run_failed",), "failed", 2),
        ("unhealthy", ("failing",), "failed", 3),
        ("healthy", (), "succeeded", 0),
    ]
    health = await scheduler.monitor.health("x")
    assert (health.last_error, health.last_run) == ("ValueError: no luck", clock.now())


async def test_the_threshold_is_the_scheduler_s_or_that_of_the_call(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock, health=HealthRule(failures=1))

    @scheduler.task(name="fails")
    async def fails() -> None:
        fail()

    async with running(scheduler, clock=clock):
        await scheduler.add_job("fails", every(60), id="x")
        await clock.advance(61)
        assert await status(scheduler) == ("unhealthy", ("failing",))
        assert await status(scheduler, rule=HealthRule(failures=2)) == ("degraded", ("last_run_failed",))


async def test_a_timeout_is_a_failure_and_a_cancellation_is_none(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps[:] = [lambda: clock.sleep(1000)]
    await scheduler.add_job("stepwise", every(60), id="x", timeout=10)
    await clock.advance(75)
    health = await scheduler.monitor.health("x")
    assert (health.status, health.last_outcome) == ("degraded", "timed_out")
    await clock.advance(50)
    await scheduler.cancel_job("x")
    await clock.advance(1)
    health = await scheduler.monitor.health("x")
    assert (health.status, health.last_outcome, health.consecutive_failures) == ("healthy", "cancelled", 1)


async def test_a_paused_job_is_neither_healthy_nor_unhealthy(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps[:] = [fail]
    await scheduler.add_job("stepwise", every(60), id="x")
    await clock.advance(200)
    await scheduler.pause_job("x")
    await clock.advance(1000)
    assert await status(scheduler) == ("paused", ("paused",))


async def test_a_job_that_rests_after_failures_is_unhealthy(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps[:] = [fail]
    await scheduler.add_job("stepwise", every(60), id="x", pause_after_failures=2)
    await clock.advance(121)
    assert await status(scheduler) == ("unhealthy", ("resting",))


async def test_a_one_shot_out_of_attempts_is_unhealthy(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps[:] = [fail]
    await scheduler.add_job("stepwise", once(delay=5), id="x")
    await clock.advance(6)
    assert await status(scheduler) == ("unhealthy", ("failed",))


async def test_a_job_that_cannot_be_run_as_it_is_is_unhealthy(clock: ManualClock) -> None:
    store = MemoryStore()
    async with running(scheduler := Scheduler(store, clock=clock), clock=clock):
        corrupt = Record("x", "b", "default", 0, "t", clock.time(), None, b"\xc1", b"")
        await store.add([corrupt])
        assert await status(scheduler) == ("unhealthy", ("unreadable",))
        newer = Record("y", "b", "default", 0, "t", clock.time() + 9, None, b"\x92\x63\x80", b"")
        await store.add([newer])
        assert await status(scheduler, "y") == ("unknown", ("newer_format",))


async def test_an_unknown_job_is_refused(scheduler: Scheduler) -> None:
    with pytest.raises(JobLookupError):
        await scheduler.monitor.health("nowhere")
    rule: Any = 5
    with pytest.raises(DefinitionError, match="takes a HealthRule, not 5"):
        await scheduler.monitor.health("nowhere", rule=rule)


# -- lateness ------------------------------------------------------------------------------------------------------------


async def test_lateness_is_counted_from_its_own_schedule_and_grace_is_inclusive(clock: ManualClock) -> None:
    client = Scheduler(clock=clock, queues=())

    @client.task(name="work")
    async def work() -> None: ...

    async with running(client, clock=clock):
        await client.add_job("work", cron("0 1 * * *", tz="UTC"), id="nightly")
        await client.add_job("work", every(60), id="minutely")
        await clock.advance(50)
        assert (await client.monitor.health("minutely")).late_by is None
        await clock.advance(70)
        health = await client.monitor.health("minutely")
        assert (health.status, health.late_by) == ("healthy", timedelta(seconds=60))
        await clock.advance(1)
        assert await status(client, "minutely") == ("unhealthy", ("overdue",))
        assert await status(client, "nightly") == ("healthy", ())
        await clock.advance(3700)
        assert (await client.monitor.health("nightly")).late_by == timedelta(seconds=221)


async def test_jitter_and_the_wait_for_a_retry_are_no_lateness(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps[:] = [fail]
    await scheduler.add_job("stepwise", every(3600), id="x", retry=Retry(base=1800, max_attempts=2))
    await clock.advance(3600 + 900)
    health = await scheduler.monitor.health("x")
    assert (health.status, health.late_by) == ("degraded", None)


async def test_a_run_under_way_is_not_late_however_long_it_takes(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps[:] = [lambda: clock.sleep(5000)]
    await scheduler.add_job("stepwise", every(60), id="x")
    await clock.advance(4000)
    assert await status(scheduler) == ("healthy", ())


async def test_what_is_put_off_for_want_of_its_task_is_late_all_the_same(clock: ManualClock) -> None:
    store = SharedMemory()
    owner, other = Scheduler(store, clock=clock, queues=()), Scheduler(store, clock=clock)

    @owner.task(name="work")
    async def work() -> None: ...

    async with running(owner, other, clock=clock):
        await owner.add_job("work", once(delay=10), id="x")
        await clock.advance(300)
        [record] = (await store.get(["x"])).values()
        assert record.wake_at is not None
        assert record.wake_at > clock.time(), "it is looked at again later"
        health = await owner.monitor.health("x")
        assert (health.reasons, health.late_by) == (("overdue",), timedelta(seconds=290))
        assert [job.id for job in await owner.monitor.overdue()] == ["x"]


async def test_a_job_of_a_queue_that_is_paused_for_all_is_paused(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock)

    @scheduler.task(name="work")
    async def work() -> None: ...

    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", once(delay=10), id="x")
        await scheduler.pause(queue="default", everywhere=True)
        await clock.advance(200)
        assert await status(scheduler) == ("paused", ("paused",))


async def test_a_run_whose_instance_died_counts_as_lost_and_its_job_is_overdue(clock: ManualClock) -> None:
    store = SharedMemory()
    client = Scheduler(store, clock=clock, queues=())

    @client.task(name="work")
    async def work() -> None: ...

    async with running(client, clock=clock):
        await client.add_job("work", id="x")
        await store.claim(["default"], "dead:1", 1, 30.0)
        assert await status(client) == ("healthy", ())
        await clock.advance(31)
        health = await client.monitor.health("x")
        assert (health.status, health.last_outcome, health.consecutive_failures) == ("degraded", "lost", 1)
        assert health.late_by == timedelta(seconds=1)
        await clock.advance(60)
        assert await status(client) == ("unhealthy", ("overdue",))


# -- all jobs ------------------------------------------------------------------------------------------------------------


async def test_the_health_of_all_jobs_comes_page_by_page(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler()

    @scheduler.task(name="fails")
    async def fails() -> None:
        fail()

    async with running(scheduler):
        await scheduler.add_job("fails", id="broken", tags=["a"])
        await scheduler.add_job("fails", every(60), id="fine", tags=["a"])
        await scheduler.add_job("fails", every(60), id="rests", paused=True)
        await eventually(lambda: has_failed(scheduler, "broken"))
        found = {h.job_id: h.status async for h in scheduler.monitor.health()}
        assert found == {"broken": "unhealthy", "fine": "healthy", "rests": "paused"}
        assert {h.job_id async for h in scheduler.monitor.health(tags=["a"])} == {"broken", "fine"}
        with pytest.raises(DefinitionError, match="unknown filter colour"):
            [h async for h in scheduler.monitor.health(colour="red")]


async def has_failed(scheduler: Scheduler, id: str) -> bool:
    return (await scheduler.get_job(id)).state == "failed"


async def test_jobs_whose_runs_overlap_are_judged_by_the_log(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps[:] = [work, fail, fail, fail]
    await scheduler.add_job("stepwise", every(60), id="x", overlap="allow")
    await clock.advance(181)
    health = await scheduler.monitor.health("x")
    assert (health.status, health.last_outcome, health.consecutive_failures) == ("degraded", "failed", 2)
    await clock.advance(60)
    assert await status(scheduler) == ("unhealthy", ("failing",))


# -- rates ---------------------------------------------------------------------------------------------------------------


async def test_without_runs_there_are_no_rates_and_no_durations(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    monitor = scheduler.monitor
    assert await monitor.failure_rate("nowhere", 3600) is None
    assert await monitor.average_duration("nowhere") is None
    assert await monitor.p95("nowhere") is None
    figures = await monitor.figures()
    assert (figures.runs, figures.failed, figures.longest, figures.is_cut) == (0, 0, None, False)


async def test_rates_and_durations_of_a_window(scheduler: Scheduler, clock: ManualClock) -> None:
    n = 0

    @scheduler.task(name="varies")
    async def varies() -> None:
        nonlocal n
        n += 1
        await clock.sleep(n)
        if n % 4 == 0:
            fail()

    await scheduler.add_job(varies, every(60), id="x")
    await clock.advance(630)
    monitor = scheduler.monitor
    assert await monitor.failure_rate("x") == 0.2
    assert await monitor.average_duration("x") == 5.5
    assert await monitor.p95("x") == 10
    figures = await monitor.figures("x")
    assert (figures.runs, figures.failed, figures.p50, figures.p99, figures.longest) == (10, 2, 5, 10, 10)
    assert (await monitor.figures("x", timedelta(minutes=2))).runs == 2
    assert (await monitor.figures(task=varies, window=80)).runs == 1
    assert (await monitor.figures(task="other")).runs == 0
    assert await monitor.failure_rate(window=10_000) == 0.2


async def test_rates_are_those_of_the_log_of_any_store(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler()

    @scheduler.task(name="maybe")
    async def maybe(fails: bool) -> None:
        if fails:
            fail()

    async with running(scheduler):
        for n in range(4):
            await scheduler.add_job("maybe", id=f"job-{n}", args=[n == 3])
        await eventually(lambda: has_runs(scheduler, 4))
        figures = await scheduler.monitor.figures(window=600)
        assert (figures.runs, figures.failed, figures.failure_rate) == (4, 1, 0.25)
        assert figures.longest is not None
        assert 0 <= figures.longest < 10
        assert await scheduler.monitor.failure_rate("job-3", 600) == 1.0


async def has_runs(scheduler: Scheduler, count: int) -> bool:
    return len(await scheduler.history.runs()) == count


async def test_cancelled_runs_count_for_nothing(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps[:] = [lambda: clock.sleep(1000), work]
    await scheduler.add_job("stepwise", every(60), id="x")
    await clock.advance(70)
    await scheduler.cancel_job("x")
    await clock.advance(60)
    figures = await scheduler.monitor.figures("x")
    assert (figures.runs, figures.failure_rate) == (1, 0.0)


@pytest.mark.parametrize("window", [0, -1, float("nan"), float("inf"), "1h"])
async def test_a_window_is_a_duration_above_zero(scheduler: Scheduler, window: Any) -> None:
    with pytest.raises(DefinitionError, match="window must be"):
        await scheduler.monitor.failure_rate("x", window)


# -- delays --------------------------------------------------------------------------------------------------------------


async def test_lag_is_how_long_the_first_of_what_is_due_has_been_so(
    make_scheduler: MakeScheduler, clock: ManualClock
) -> None:
    client = make_scheduler(clock=clock, queues=())

    @client.task(name="work")
    async def work() -> None: ...

    async with running(client, clock=clock):
        assert await client.monitor.lag() == timedelta()
        await client.add_job("work", once(delay=10), id="first")
        await client.add_job("work", once(delay=20), id="second", queue="mail")
        await client.add_job("work", once(delay=1), id="paused", paused=True)
        assert await client.monitor.lag() == timedelta()
        await clock.advance(100)
        lags = [await client.monitor.lag(), await client.monitor.lag(queue="mail")]
        assert [lag.total_seconds() for lag in lags] == pytest.approx([90, 80], abs=1)
        assert await client.monitor.lag(queue="none") == timedelta()


async def test_overdue_jobs_come_in_order_and_so_many_at_most(
    make_scheduler: MakeScheduler, clock: ManualClock
) -> None:
    client = make_scheduler(clock=clock, queues=())

    @client.task(name="work")
    async def work() -> None: ...

    async with running(client, clock=clock):
        for n in range(5):
            await client.add_job("work", once(delay=10 * n + 1), id=f"job-{n}")
        await clock.advance(62)
        overdue = client.monitor.overdue
        assert [job.id for job in await overdue()] == ["job-0"]
        assert [job.id for job in await overdue(grace=25)] == ["job-0", "job-1", "job-2", "job-3"]
        assert [job.id for job in await overdue(2, grace=0)] == ["job-0", "job-1"]
        assert await overdue(0) == []
        for limit in (-1, 1.5):
            with pytest.raises(DefinitionError, match="limit must be 0 or more"):
                await overdue(limit)  # type: ignore[arg-type]  # mypy is right: that is what is tested


# -- all in all ----------------------------------------------------------------------------------------------------------


async def test_the_summary_of_a_scheduler_in_order(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler(id="one")

    @scheduler.task(name="fails")
    async def fails() -> None:
        fail()

    async with running(scheduler):
        await scheduler.add_job("fails", id="x")
        await eventually(lambda: has_failed(scheduler, "x"))
        summary = await scheduler.monitor.summary()
        [store] = summary.stores
        assert (summary.ok, summary.problems, summary.state, summary.instance) == (True, (), "running", "one")
        assert (store.is_reached, store.instances, store.workers, store.failed) == (True, 1, 1, 1)
        assert (summary.unhealthy, store.overdue, store.quarantined) == (1, 0, 0)
        shown = json.loads(json.dumps(summary.as_dict()))
        assert (shown["ok"], shown["unhealthy"], shown["stores"][0]["name"]) == (True, 1, "default")


async def test_the_summary_of_a_paused_scheduler_is_ok_and_of_a_stopped_one_is_not(
    clock: ManualClock,
) -> None:
    scheduler = Scheduler(clock=clock)
    before = await scheduler.monitor.summary()
    assert (before.ok, before.problems) == (False, ("the scheduler is stopped",))
    async with running(scheduler, clock=clock):
        await scheduler.pause()
        summary = await scheduler.monitor.summary()
        assert (summary.ok, summary.state) == (True, "paused")


async def test_a_store_that_does_not_answer_is_named_without_its_secrets(clock: ManualClock) -> None:
    store = FaultyStore(MemoryStore())
    scheduler = Scheduler({"default": MemoryStore(), "other": store}, clock=clock)
    async with running(scheduler, clock=clock):
        store.faults.go_away()
        summary = await scheduler.monitor.summary()
        assert not summary.ok
        assert summary.problems == ("store 'other' does not answer: StoreUnavailable",)
        assert [s.is_reached for s in summary.stores] == [True, False]
        store.faults.come_back()
        store.faults.delay_s["page"] = 60
        summary = await scheduler.monitor.summary(timeout=0.05)
        assert summary.problems == ("store 'other' does not answer: TimeoutError",)
        store.faults.delay_s.clear()
        store.faults.broken["page"] = 1
        summary = await scheduler.monitor.summary()
        assert [s.is_reached for s in summary.stores] == [True, False]


async def test_a_summary_can_hold_the_lag_against_it(clock: ManualClock) -> None:
    client = Scheduler(clock=clock, queues=())

    @client.task(name="work")
    async def work() -> None: ...

    async with running(client, clock=clock):
        await client.add_job("work", id="x")
        await clock.advance(90)
        assert (await client.monitor.summary()).ok
        assert (await client.monitor.summary(max_lag=90)).ok
        late = await client.monitor.summary(max_lag=89)
        assert late.problems == ("what is due in store 'default' is 90 s behind",)


# -- events --------------------------------------------------------------------------------------------------------------


def listening(scheduler: Scheduler) -> list[tuple[str, str, tuple[str, ...]]]:
    heard: list[tuple[str, str, tuple[str, ...]]] = []

    @scheduler.on(JobUnhealthy)
    def unhealthy(event: JobUnhealthy) -> None:
        heard.append(("unhealthy", event.job_id, event.reasons))

    @scheduler.on(JobHealthy)
    def healthy(event: JobHealthy) -> None:
        heard.append(("healthy", event.job_id, ()))

    return heard


async def test_failing_and_recovering_are_told_once_for_each_change(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    heard = listening(scheduler)
    steps[:] = [fail] * 6 + [work] * 3 + [fail] * 3 + [work]
    await scheduler.add_job("stepwise", every(60), id="x")
    seen = []
    for _ in range(13):
        await clock.advance(60)
        seen.append(len(heard))
    assert heard == [("unhealthy", "x", ("failing",)), ("healthy", "x", ())] * 2
    assert seen == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 4]


@pytest.mark.parametrize(
    ("trigger", "policies", "reason"),
    [
        (once(delay=1), {}, "failed"),
        (every(60), {"pause_after_failures": 1}, "resting"),
        (every(60), {"on_exhausted": "pause"}, "resting"),
    ],
)
async def test_a_job_that_is_put_away_is_told_of_and_so_is_its_return(
    scheduler: Scheduler, clock: ManualClock, steps: Steps, trigger: Any, policies: Any, reason: str
) -> None:
    heard = listening(scheduler)
    steps[:] = [fail, work]
    await scheduler.add_job("stepwise", trigger, id="x", **policies)
    await clock.advance(61)
    assert heard == [("unhealthy", "x", (reason,))]
    await scheduler.resume_job("x")
    await clock.advance(130)
    assert heard == [("unhealthy", "x", (reason,)), ("healthy", "x", ())]


async def test_a_quarantined_job_is_told_of_and_that_it_is_gone(clock: ManualClock) -> None:
    store = MemoryStore()
    scheduler = Scheduler(store, clock=clock)
    heard = listening(scheduler)
    async with running(scheduler, clock=clock):
        await store.add([Record("x", "b", "default", 0, "t", clock.time(), None, b"\xc1", b"")])
        await clock.advance(1)
        assert heard == [("unhealthy", "x", ("quarantined",))]
        await clock.advance(100)
        assert len(heard) == 1
        await scheduler.remove_job("x")
        await clock.advance(40)
        assert heard[1:] == [("healthy", "x", ())]


async def test_lateness_is_told_at_a_heartbeat_and_so_is_its_end(clock: ManualClock) -> None:
    store = SharedMemory()
    watcher, worker = Scheduler(store, clock=clock, queues=()), Scheduler(store, clock=clock)
    heard = listening(watcher)

    @watcher.task(name="work")
    async def work() -> None: ...

    worker.register(work, "work")
    async with running(watcher, clock=clock):
        await watcher.add_job("work", every(1000), id="x", run_immediately=True)
        await clock.advance(55)
        assert heard == []
        await clock.advance(60)
        assert heard == [("unhealthy", "x", ("overdue",))]
        await clock.advance(200)
        assert len(heard) == 1
        async with running(worker, clock=clock):
            await clock.advance(40)
            assert heard[1:] == [("healthy", "x", ())]


async def test_overlapping_runs_that_fail_are_told_of(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    heard = listening(scheduler)
    steps[:] = [fail] * 4 + [work]
    await scheduler.add_job("stepwise", every(60), id="x", overlap="allow")
    await clock.advance(241)
    assert heard == [("unhealthy", "x", ("failing",))]
    await clock.advance(60)
    assert heard[1:] == [("healthy", "x", ())]


class Looked(MemoryStore):
    """Counts the looks at what is due."""

    looks = 0

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        self.looks += where == Filter(hold="")
        return await super().page(where, limit, after)


async def test_lateness_costs_a_query_for_each_heartbeat_if_somebody_listens_and_else_nothing(
    clock: ManualClock,
) -> None:
    store = Looked()
    scheduler = Scheduler(store, clock=clock)
    async with running(scheduler, clock=clock):
        scheduler.on(RunFinished, lambda event: None)
        await clock.advance(600)
        assert store.looks == 0
        scheduler.on(JobUnhealthy, lambda event: None)
        await clock.advance(600)
        assert 17 <= store.looks <= 23


@pytest.mark.parametrize("rule", [{"failures": 0}, {"failures": 1.5}, {"failures": True}, {"grace": -1}])
def test_a_rule_is_checked(rule: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match=r"HealthRule\("):
        HealthRule(**rule)


# -- one bad job, and queues that are paused for all ---------------------------------------------------------------------


async def test_a_trigger_that_gives_up_its_search_spoils_no_health_check_and_no_heartbeat(
    clock: ManualClock,
) -> None:
    store = SharedMemory()
    client = Scheduler(store, clock=clock, queues=())
    client.register(work, "work")
    told: list[str] = []
    client.on(JobUnhealthy, lambda event: told.append(event.job_id))
    async with running(client, clock=clock):
        begin, last = clock.now(), clock.time() + 60
        trigger = excluding(every(1), every(1, start=begin + timedelta(seconds=61)))
        await client.add_job("work", trigger, id="x")
        [record] = (await store.get(["x"])).values()
        definition = decode_definition(record.body)
        # With jitter its due time depends on the fire time behind the last one.
        jittered = replace(definition.policies, jitter=JitterForm(5.0))
        body = encode(replace(definition, policies=jittered, first=last))
        await store.remove(["x"])
        await store.add([replace(record, body=body, wake_at=last)])
        await clock.advance(60 + 61)
        assert await status(client) == ("unhealthy", ("overdue",))
        summary = await client.monitor.summary()
        assert (summary.ok, summary.stores[0].overdue) == (True, 1)
        await clock.advance(200)
        assert told == ["x"]
        beat = [task for task in client._engine._work["default"] if "beat" in task.get_name()]
        assert [task.done() for task in beat] == [False]


async def test_a_queue_that_is_paused_for_all_is_neither_behind_nor_overdue(clock: ManualClock) -> None:
    told: list[str] = []
    client = Scheduler(SharedMemory(), clock=clock, queues=())
    client.on(JobUnhealthy, lambda event: told.append(event.job_id))
    client.register(work, "work")
    async with running(client, clock=clock):
        await client.pause(queue="mail", everywhere=True)
        for n in range(600):
            await client.add_job("work", every(60), id=f"mail-{n}", queue="mail")
        await clock.advance(400)
        summary = await client.monitor.summary(max_lag=100)
        assert (summary.ok, summary.stores[0].overdue, summary.stores[0].lag) == (True, 0, 0.0)
        assert await client.monitor.lag(queue="mail") == timedelta()
        assert told == []
        await client.add_job("work", every(60), id="other")
        await clock.advance(200)
        assert await client.monitor.lag() == timedelta(seconds=140)
        assert [job.id for job in await client.monitor.overdue()] == ["other"]
        await client.resume(queue="mail", everywhere=True)
        assert await client.monitor.lag(queue="mail") == timedelta(seconds=540)


async def test_failures_of_overlapping_jobs_are_counted_however_many_have_failed_before(
    clock: ManualClock,
) -> None:
    scheduler = Scheduler(clock=clock, health=HealthRule(failures=2))
    scheduler.register(fail, "fail")
    told: list[str] = []
    scheduler.on(JobUnhealthy, lambda event: told.append(event.job_id))
    async with running(scheduler, clock=clock):
        for n in range(1000):
            await scheduler.add_job("fail", every(1), id=f"x{n}", overlap="allow", max_runs=1)
        await clock.advance(1)
        await eventually(lambda: _has_ended(scheduler, clock))
        await scheduler.add_job("fail", every(10), id="last", overlap="allow")

        async def is_told() -> bool:
            await clock.advance(10)
            return told == ["last"]

        await eventually(is_told)


async def _has_ended(scheduler: Scheduler, clock: ManualClock) -> bool:
    await clock.advance(0.01)
    return not await scheduler.get_jobs()


async def test_a_store_that_is_removed_meanwhile_is_left_out_of_the_summary(clock: ManualClock) -> None:
    class Slow(MemoryStore):
        closing = asyncio.Event()

        async def close(self) -> None:
            self.closing.set()
            await asyncio.sleep(0.01)

        async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
            await self.closing.wait()
            return await super().page(where, limit, after)

    scheduler = Scheduler({"default": MemoryStore(), "second": Slow()}, clock=clock, orphan_after=None)
    async with running(scheduler, clock=clock):
        looking = asyncio.create_task(scheduler.monitor.summary())
        await clock.advance(0)
        await scheduler.remove_store("second", drain=0)
        summary = await looking
        assert summary.ok
        assert [store.name for store in summary.stores] == ["default"]


async def test_a_store_whose_adding_was_cancelled_is_no_store_of_the_scheduler(clock: ManualClock) -> None:
    class Hanging(MemoryStore):
        async def add(self, records: Sequence[Record]) -> set[str]:
            await asyncio.sleep(3600)
            return set()

    async with running(scheduler := Scheduler(clock=clock), clock=clock):
        adding = asyncio.create_task(scheduler.add_store("second", Hanging()))
        await clock.advance(0)
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        assert list(scheduler.stores) == ["default"]
        summary = await scheduler.monitor.summary()
        assert (summary.ok, [store.name for store in summary.stores]) == (True, ["default"])


async def test_a_worker_that_failed_is_told_at_once_and_makes_the_summary_not_ok(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Fatal(BaseException): ...

    class Broken(MemoryStore):
        is_broken = False

        async def claim(
            self, queues: Sequence[str], token: str, limit: int, lease_s: float, ahead_s: float = 0.0
        ) -> Claimed:
            if self.is_broken:
                raise Fatal("what no instance outlives")
            return await super().claim(queues, token, limit, lease_s, ahead_s)

    store = Broken()
    async with running(scheduler := Scheduler(store, clock=clock), clock=clock):
        scheduler.register(work, "work")
        store.is_broken = True
        await scheduler.add_job("work", every(5), id="x")
        await clock.advance(40)
        summary = await scheduler.monitor.summary()
        assert (summary.ok, summary.problems) == (
            False,
            ("the worker of store 'default' has failed: it runs nothing",),
        )
        assert "asyncsched-worker-default has failed" in caplog.text
