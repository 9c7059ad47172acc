"""Executions of workflows: what runs after what, and that none hangs, whatever becomes of its steps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from asyncsched import (
    Condition,
    ConflictingIdError,
    DefinitionError,
    GiveUp,
    JobLookupError,
    MemoryStore,
    Retention,
    Retry,
    RunFinished,
    Scheduler,
    SerializationError,
    Skip,
    Snooze,
    StepStatus,
    Workflow,
    WorkflowCompleted,
    WorkflowError,
    WorkflowFailed,
    WorkflowLookupError,
    WorkflowRun,
    current_run,
    every,
    on_complete,
    on_failure,
    on_skipped,
    on_success,
    once,
)
from asyncsched.codec import decode_definition
from asyncsched.contract import Entry, Filter, Record, Settlement, Update
from asyncsched.flows import end_id
from asyncsched.testing import ManualClock, run_due
from tests.support.waiting import eventually
from tests.unit.conftest import MakeScheduler

pytestmark = pytest.mark.anyio

Do = Callable[..., Any]


def define(scheduler: Scheduler, ran: list[str] | None = None) -> None:
    """The tasks that these workflows are made of; each notes its step."""
    notes = ran if ran is not None else []

    def note() -> str:
        run = current_run()
        step = "-" if run.workflow is None else run.workflow.step
        notes.append(step)
        return step

    @scheduler.task(name="work")
    async def work(result: Any = None) -> Any:
        step = note()
        return step if result is None else result

    @scheduler.task(name="fail")
    async def fail() -> None:
        note()
        raise ValueError("no")

    @scheduler.task(name="skip")
    async def skip() -> None:
        note()
        raise Skip("holiday", "nobody is here")

    @scheduler.task(name="block")
    async def block() -> None:
        note()
        await asyncio.Event().wait()

    @scheduler.task(name="look")
    async def look() -> Any:
        note()
        workflow = current_run().workflow
        assert workflow is not None
        return {"outcomes": workflow.outcomes, "results": workflow.results, "errors": workflow.errors}


@pytest.fixture
def ran(scheduler: Scheduler) -> list[str]:
    """The steps that have run on ``scheduler``, in order."""
    ran: list[str] = []
    define(scheduler, ran)
    return ran


async def ended(run: WorkflowRun) -> dict[str, str]:
    status = await asyncio.wait_for(run.wait(), 20)
    states: dict[str, str] = {name: step.state for name, step in status.steps.items()}
    return {**states, "": status.state}


async def pass_time(clock: ManualClock, done: Callable[[], bool], step: float = 1.0, most: int = 400) -> None:
    """Let time pass until *done*."""
    for _ in range(most):
        if done():
            return
        await clock.advance(step)
    raise AssertionError("it did not come to pass")


async def ended_in_time(clock: ManualClock, run: WorkflowRun) -> dict[str, str]:
    waiting = asyncio.ensure_future(ended(run))
    await pass_time(clock, waiting.done)
    return waiting.result()


# -- what runs after what ----------------------------------------------------------------------------------------------


async def test_steps_run_after_each_other_and_see_how_those_before_them_ended(
    make_scheduler: MakeScheduler,
) -> None:
    ran: list[str] = []
    scheduler = make_scheduler()
    define(scheduler, ran)
    flow = (
        Workflow("nightly")
        .step("extract", "work", args=[{"rows": 3}])
        .step("check", "fail", after="extract")
        .step("load", "look", after="extract")
        .step("alert", "look", after=[on_failure("check"), on_failure("load")])
        .step("mend", "look", after=[on_failure("check"), on_complete("load")])
        .final("report", "look")
    )
    async with scheduler:
        run = await scheduler.start_workflow(flow, id="n-1")
        status = await asyncio.wait_for(run.wait(), 20)
        with pytest.raises(
            WorkflowFailed, match=r"'nightly' n-1 failed in 'check' \(ValueError: no\)"
        ) as failed:
            await run.result()
    assert {name: step.state for name, step in status.steps.items()} == {
        "extract": "succeeded",
        "check": "failed",
        "load": "succeeded",
        "alert": "skipped",
        "mend": "succeeded",
        "report": "succeeded",
    }
    assert (status.id, status.name, status.state, status.store) == ("n-1", "nightly", "failed", "default")
    assert failed.value.status == status
    results = {name: step.result for name, step in status.steps.items()}
    assert results["extract"] == {"rows": 3}
    assert results["load"] == {
        "outcomes": {"extract": "succeeded"},
        "results": {"extract": {"rows": 3}},
        "errors": {},
    }
    assert results["mend"]["errors"] == {"check": "ValueError: no"}
    assert results["report"]["outcomes"] == {
        "extract": "succeeded",
        "check": "failed",
        "load": "succeeded",
        "alert": "skipped",
        "mend": "succeeded",
    }
    assert ran[0] == "extract"
    assert sorted(ran[1:3]) == ["check", "load"]
    assert ran[3:] == ["mend", "report"]


async def test_a_wide_fan_is_brought_together_again(make_scheduler: MakeScheduler) -> None:
    ran: list[str] = []
    scheduler = make_scheduler()
    define(scheduler, ran)
    flow = Workflow("fan").step("first", "work")
    names = [f"part-{number}" for number in range(80)]
    for name in names:
        flow.step(name, "work", after="first")
    flow.step("last", "look", after=names)
    async with scheduler:
        run = await scheduler.start_workflow(flow)
        result = await run.result(timeout=60)
    assert ran[0] == "first"
    assert sorted(ran[1:-1]) == sorted(names)
    assert ran[-1] == "last"
    assert result["last"]["results"] == {name: name for name in names}


async def test_many_steps_that_wait_for_none_all_run_once(scheduler: Scheduler, ran: list[str]) -> None:
    flow = Workflow("wide")
    names = [f"s{number}" for number in range(100)]
    for name in names:
        flow.step(name, "work")
    await ended(await scheduler.start_workflow(flow))
    assert sorted(ran) == sorted(names)


async def test_a_step_that_raises_skip_is_skipped_and_those_that_wait_for_that_run(
    scheduler: Scheduler, ran: list[str]
) -> None:
    flow = (
        Workflow("w").step("a", "skip").step("b", "work", after="a").step("c", "work", after=on_skipped("a"))
    )
    run = await scheduler.start_workflow(flow)
    assert await ended(run) == {"a": "skipped", "b": "skipped", "c": "succeeded", "": "succeeded"}
    assert ran == ["a", "c"]
    status = await run.status()
    assert (status.steps["a"].error, status.steps["b"].error) == (
        "nobody is here",
        "it runs on success of 'a', which was skipped",
    )
    [decision] = await scheduler.history.decisions(status.steps["a"].job_id)
    assert decision.reason == "holiday"


async def test_a_step_that_says_when_it_comes_back_is_put_off_and_not_skipped(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    times = 0

    @scheduler.task(name="later")
    async def later() -> None:
        nonlocal times
        times += 1
        if times == 1:
            raise Skip("busy", put_off=30)
        if times == 2:
            raise Snooze(current_run().now() + timedelta(seconds=30))

    run = await scheduler.start_workflow(Workflow("w").step("a", later))
    began = clock.time()
    assert (await ended_in_time(clock, run))["a"] == "succeeded"
    assert times == 3
    assert clock.time() - began >= 60


async def test_a_retry_is_no_end_and_the_last_failure_is(scheduler: Scheduler, clock: ManualClock) -> None:
    attempts = 0

    @scheduler.task(name="flaky")
    async def flaky(good_at: int) -> int:
        nonlocal attempts
        attempts += 1
        if attempts < good_at:
            raise ValueError("not yet")
        return attempts

    retry = Retry(max_attempts=3, base=10)
    flow = Workflow("w").step("a", flaky, args=[3], retry=retry).step("b", flaky, args=[99], after="a")
    run = await scheduler.start_workflow(flow)
    began = clock.time()
    assert await ended_in_time(clock, run) == {"a": "succeeded", "b": "failed", "": "failed"}
    status = await run.status()
    assert (status.steps["a"].attempts, status.steps["a"].result) == (3, 3)
    assert clock.time() - began >= 30
    exhausted = await scheduler.start_workflow(
        Workflow("w").step("a", flaky, args=[99], retry=Retry(max_attempts=2, base=10))
    )
    assert (await ended_in_time(clock, exhausted))["a"] == "failed"
    assert (await exhausted.status()).steps["a"].attempts == 2


async def test_a_step_that_takes_too_long_has_failed(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    flow = Workflow("w").step("a", "block", timeout=5).step("b", "work", after=on_failure("a"))
    run = await scheduler.start_workflow(flow)
    assert await ended_in_time(clock, run) == {"a": "failed", "b": "succeeded", "": "failed"}
    assert "timeout of 5 s" in ((await run.status()).steps["a"].error or "")


async def test_a_step_waits_for_its_delay(scheduler: Scheduler, clock: ManualClock, ran: list[str]) -> None:
    flow = Workflow("w").step("a", "work").step("b", "work", after="a", delay=timedelta(minutes=5))
    run = await scheduler.start_workflow(flow)
    began = clock.time()
    await ended_in_time(clock, run)
    assert clock.time() - began >= 300
    assert ran == ["a", "b"]


async def test_a_step_that_would_start_too_late_is_skipped(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    await scheduler.pause(queue="late")
    flow = (
        Workflow("w")
        .step("a", "work", misfire_grace=10, queue="late")
        .step("b", "work", after=on_skipped("a"))
    )
    late = Scheduler(scheduler._engine.stores["default"], queues=["late"], clock=clock)
    run = await scheduler.start_workflow(flow)
    await clock.advance(60)
    define(late)
    async with late:
        assert await ended_in_time(clock, run) == {"a": "skipped", "b": "succeeded", "": "succeeded"}
    assert (await run.status()).steps["a"].error == "misfire"
    assert ran == ["b"]


async def test_queue_priority_middleware_and_policies_count_for_a_step_as_for_any_job() -> None:
    seen: list[tuple[str, str, int, tuple[str, ...]]] = []

    async def watch(run: Any, call_next: Any) -> Any:
        seen.append((run.job_id, run.queue, run.priority, run.tags))
        return await call_next()

    async with Scheduler(middleware=[watch], queues=["default", "mail"]) as scheduler:
        define(scheduler)
        flow = (
            Workflow("w")
            .step("a", "work", queue="mail", priority=3, tags=["x"])
            .step("b", scheduler.tasks["work"].options(priority=5).bind(7), after="a")
            .step("c", "work", after="b")
        )
        run = await scheduler.start_workflow(flow, id="1", priority=2)
        result = await run.result(timeout=20)
    assert seen == [("1/a", "mail", 3, ("x",)), ("1/b", "default", 5, ()), ("1/c", "default", 2, ())]
    assert result["b"] == 7


# -- none hangs --------------------------------------------------------------------------------------------------------


async def test_a_step_whose_run_is_cancelled_counts_as_cancelled_and_its_workflow_goes_on(
    scheduler: Scheduler, ran: list[str]
) -> None:
    flow = (
        Workflow("w").step("a", "block").step("b", "work", after="a").step("c", "work", after=on_failure("a"))
    )
    run = await scheduler.start_workflow(flow)
    await eventually(lambda: ran)
    step = (await run.status()).steps["a"]
    assert (step.state, step.run_id) == ("running", scheduler.running()[0].id)
    await scheduler.cancel_job(step.job_id)
    assert await ended(run) == {"a": "cancelled", "b": "skipped", "c": "succeeded", "": "failed"}


@pytest.mark.parametrize("is_running", [False, True])
async def test_a_step_whose_job_is_removed_counts_as_cancelled_and_its_workflow_goes_on(
    is_running: bool, scheduler: Scheduler, ran: list[str]
) -> None:
    queue = "default" if is_running else "nobody serves it"
    flow = Workflow("w").step("a", "block", queue=queue).step("b", "work", after=on_failure("a"))
    run = await scheduler.start_workflow(flow)
    job_id = f"{run.id}/a"
    await eventually(lambda: ran if is_running else has(scheduler, job_id))
    assert await scheduler.remove_job(job_id)
    # At once: the clock stands.
    assert await ended(run) == {"a": "cancelled", "b": "succeeded", "": "failed"}
    assert "was removed" in ((await run.status()).steps["a"].error or "")


async def has(scheduler: Scheduler, job_id: str) -> bool:
    try:
        await scheduler.get_job(job_id)
    except JobLookupError:
        return False
    return True


async def test_a_step_that_vanished_from_the_store_is_noticed_within_a_minute(clock: ManualClock) -> None:
    store = MemoryStore()
    async with Scheduler(store, clock=clock) as scheduler:
        define(scheduler)
        flow = Workflow("w").step("a", "work", queue="nobody serves it").step("b", "work", after="a")
        run = await scheduler.start_workflow(flow)
        await eventually(lambda: has(scheduler, f"{run.id}/a"))
        began = clock.time()
        await store.remove([f"{run.id}/a"])
        assert await ended_in_time(clock, run) == {"a": "cancelled", "b": "skipped", "": "failed"}
        assert clock.time() - began <= 61


async def test_a_step_that_cannot_be_read_is_quarantined_and_counts_as_failed(clock: ManualClock) -> None:
    store = MemoryStore()
    async with Scheduler(store, clock=clock) as scheduler:
        define(scheduler)
        flow = Workflow("w").step("a", "work", queue="later").step("b", "work", after=on_failure("a"))
        run = await scheduler.start_workflow(flow)
        await eventually(lambda: has(scheduler, f"{run.id}/a"))
        [record] = (await store.get([f"{run.id}/a"])).values()
        await store.update(moved(record, body=b"\xff", queue="default"))
        assert await ended_in_time(clock, run) == {"a": "failed", "b": "succeeded", "": "failed"}
        assert "quarantined" in ((await run.status()).steps["a"].error or "")


def moved(record: Record, *, body: bytes, queue: str) -> Update:
    return Update(
        id=record.id,
        version=record.version,
        body=body,
        queue=queue,
        priority=record.priority,
        wake_at=record.wake_at,
        hold=record.hold,
    )


async def test_a_step_whose_id_another_job_has_fails_and_leaves_that_job_alone(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    other = await scheduler.add_job("work", every(3600), id="1/b")
    flow = Workflow("w").step("a", "work").step("b", "work", after="a").final("c", "work")
    run = await scheduler.start_workflow(flow, id="1")
    assert await ended_in_time(clock, run) == {
        "a": "succeeded",
        "b": "failed",
        "c": "succeeded",
        "": "failed",
    }
    assert "another job has the id '1/b'" in ((await run.status()).steps["b"].error or "")
    assert await scheduler.get_job("1/b") == other
    assert ran == ["a", "c"]


async def test_a_step_whose_task_nobody_knows_waits_for_an_instance_that_does(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    @scheduler.task(name="coming")
    async def coming() -> None: ...

    run = await scheduler.start_workflow(Workflow("w").step("a", coming))
    scheduler.unregister("coming")
    await clock.advance(90)
    assert (await run.status()).steps["a"].state in ("scheduled", "running")
    scheduler.register(coming.function, "coming")
    assert (await ended_in_time(clock, run))["a"] == "succeeded"


async def test_a_step_that_gives_up_has_failed(scheduler: Scheduler) -> None:
    @scheduler.task(name="give up", retry=Retry(max_attempts=9))
    async def give_up() -> None:
        raise GiveUp("there is no use")

    run = await scheduler.start_workflow(Workflow("w").step("a", give_up))
    assert (await ended(run))["a"] == "failed"


async def test_a_paused_step_waits_and_its_workflow_with_it(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    run = await scheduler.start_workflow(
        Workflow("w").step("a", "work", delay=30).step("b", "work", after="a"), id="1"
    )
    await eventually(lambda: has(scheduler, "1/a"))
    await scheduler.pause_job("1/a")
    await clock.advance(600)
    assert (await run.status()).steps["a"].state == "scheduled"
    await scheduler.resume_job("1/a")
    assert (await ended_in_time(clock, run))[""] == "succeeded"
    assert ran == ["a", "b"]


# -- calling it off ----------------------------------------------------------------------------------------------------


async def test_one_that_is_called_off_cancels_what_runs_and_begins_nothing_more(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    flow = (
        Workflow("w")
        .step("a", "block")
        .step("b", "work", queue="nobody serves it")
        .step("c", "work", after=on_complete("a"))
        .final("d", "work")
    )
    run = await scheduler.start_workflow(flow)
    await eventually(lambda: ran)
    assert await run.cancel()
    assert await ended_in_time(clock, run) == dict.fromkeys(["a", "b", "c", "d", ""], "cancelled")
    assert not await run.cancel()
    assert ran == ["a"]
    assert not scheduler.running()
    assert await scheduler.get_jobs() == []
    with pytest.raises(WorkflowFailed, match="was cancelled"):
        await run.result()


async def test_one_that_is_called_off_before_anybody_took_it_up_begins_nothing(clock: ManualClock) -> None:
    scheduler, ran = Scheduler(clock=clock), list[str]()
    define(scheduler, ran)
    await scheduler.start(paused=True)
    run = await scheduler.start_workflow(Workflow("w").step("a", "work").step("b", "work"))
    assert await run.cancel()
    await scheduler.resume()
    assert await ended_in_time(clock, run) == dict.fromkeys(["a", "b", ""], "cancelled")
    assert (await run.status()).steps["a"].error == "the workflow was cancelled"
    assert ran == []
    await scheduler.stop(drain=0)


async def test_one_can_be_called_off_and_waited_for_from_another_process(
    tmp_path: Any, sqlite_url: str
) -> None:
    ran: list[str] = []
    worker, client = Scheduler(sqlite_url), Scheduler(sqlite_url, queues=())
    define(worker, ran)
    define(client)
    async with worker, client:
        run = await client.start_workflow(Workflow("w").step("a", "block").step("b", "work", after="a"))
        await eventually(lambda: ran)
        same = await client.workflow(run.id)
        assert (await same.status()).state == "running"
        assert await same.cancel()
        assert (await same.wait(timeout=20)).state == "cancelled"
        done = await client.start_workflow(Workflow("w").step("a", "work").step("b", "work", after="a"))
        assert await done.result(timeout=20) == {"a": "a", "b": "b"}


# -- starting ----------------------------------------------------------------------------------------------------------


async def test_nothing_is_written_of_a_workflow_that_cannot_run(scheduler: Scheduler, ran: list[str]) -> None:
    store = scheduler._engine.stores["default"]
    bad = [
        (Workflow("w"), WorkflowError, "no steps"),
        (Workflow("w").step("a", "work", after="x"), WorkflowError, "'x'"),
        (Workflow("w").step("a", "nobody"), LookupError, "nobody"),
        (Workflow("w").step("a", "work", args=[1, 2, 3]), DefinitionError, "arguments"),
        (Workflow("w").step("a", "work", args=[object()]), DefinitionError, "args"),
        (Workflow("w").step("a", "work", priority=11), DefinitionError, "priority"),
        (Workflow("w").step("a", "work", priority=-1), DefinitionError, "priority"),
    ]
    for flow, kind, match in bad:
        with pytest.raises(kind, match=match):
            await scheduler.start_workflow(flow)
        with pytest.raises(kind, match=match):
            await scheduler.add_job(flow, every(60))
    for options in ({"id": "a#b"}, {"queue": ""}, {"priority": 10}, {"on_conflict": "replace"}):
        with pytest.raises(DefinitionError):
            await scheduler.start_workflow(Workflow("w").step("a", "work"), **options)
    with pytest.raises(DefinitionError, match="255"):
        await scheduler.start_workflow(Workflow("w").step("a" * 10, "work"), id="x" * 250)
    assert [r for r in await store.page(Filter(), 10) if not r.id.startswith("#instance")] == []


async def test_an_execution_s_id_is_taken_once(scheduler: Scheduler, ran: list[str]) -> None:
    flow = Workflow("w").step("a", "work")
    run = await scheduler.start_workflow(flow, id="today")
    await ended(run)
    with pytest.raises(ConflictingIdError, match="'today'"):
        await scheduler.start_workflow(flow, id="today")
    again = await scheduler.start_workflow(flow, id="today", on_conflict="keep")
    await ended(again)
    assert ran == ["a"]


async def test_one_workflow_makes_many_executions_that_know_nothing_of_each_other(
    scheduler: Scheduler, ran: list[str]
) -> None:
    flow = Workflow("w").step("a", "work").step("b", "work", after="a")
    runs = [await scheduler.start_workflow(flow) for _ in range(20)]
    for run in runs:
        assert await ended(run) == {"a": "succeeded", "b": "succeeded", "": "succeeded"}
    assert (ran.count("a"), ran.count("b")) == (20, 20)
    assert len({run.id for run in runs}) == 20


async def test_a_workflow_with_a_trigger_starts_an_execution_at_each_fire_time(
    make_scheduler: MakeScheduler,
) -> None:
    ran: list[str] = []
    scheduler = make_scheduler()
    define(scheduler, ran)
    flow = Workflow("nightly").step("a", "work").step("b", "look", after="a")
    async with scheduler:
        job = await scheduler.add_job(flow, every(3600), id="n", priority=4)
        assert (job.name, job.priority) == ("nightly", 4)
        again = await scheduler.add_job(flow, every(3600), id="n", priority=4, on_conflict="replace")
        assert again.version == job.version
        for _ in range(2):
            await scheduler.run_job("n")
            await scheduler.wait_job("n", timeout=20)
        started = [run.result for run in await scheduler.history.runs("n")]
        assert len(set(started)) == 2
        for id in started:
            run = await scheduler.workflow(id)
            assert id.startswith("n/")
            assert (await asyncio.wait_for(run.wait(), 20)).state == "succeeded"
        assert [w.id for w in await scheduler.workflows(name="nightly")] == started
        assert (await scheduler.explain("n")).job.name == "nightly"
    assert sorted(ran) == ["a", "a", "b", "b"]


async def test_a_fire_time_that_is_run_twice_starts_one_execution(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    flow = Workflow("w").step("a", "work")
    await scheduler.add_job(flow, every(60), id="n", retry=Retry(max_attempts=2, base=1))
    await clock.advance(60)
    await run_due(scheduler)
    form = (await scheduler.get_job("n")).kwargs["workflow"]

    class Same:
        job_id, store, queue, priority, fire_time = "n", "default", "default", 0, clock.now()
        idempotency_key = "of this fire time"

    before = len(await scheduler.workflows())
    ids = [await scheduler.start_packed(form, Same()) for _ in range(2)]  # type: ignore[arg-type]  # no more of a run than is looked at
    await run_due(scheduler)
    ids.append(await scheduler.start_packed(form, Same()))  # type: ignore[arg-type]  # the same
    await run_due(scheduler)
    assert len(set(ids)) == 1
    assert ran == ["a"] * len(await scheduler.workflows()) == ["a"] * (before + 1)


async def test_a_job_that_is_added_again_for_the_same_instant_has_an_execution_of_its_own(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    flow, at = Workflow("w").step("a", "work"), clock.now() + timedelta(seconds=5)
    for n in range(1, 3):
        await scheduler.add_job(flow, once(at), id="n")
        await clock.advance(10)
        await run_due(scheduler)
        assert ran == ["a"] * n
    assert len({execution.id for execution in await scheduler.workflows()}) == 2


async def test_a_job_whose_executions_could_not_have_ids_is_refused_when_it_is_added(
    scheduler: Scheduler, ran: list[str]
) -> None:
    flow = Workflow("w").step("a" * 100, "work")
    with pytest.raises(DefinitionError, match="step 'aaa"):
        await scheduler.add_job(flow, every(60), id="x" * 150)
    await scheduler.add_job(flow, every(60), id="x" * 130)


async def test_a_workflow_takes_no_arguments(scheduler: Scheduler, ran: list[str]) -> None:
    with pytest.raises(DefinitionError, match="takes no arguments"):
        await scheduler.add_job(Workflow("w").step("a", "work"), every(60), args=[1])


@pytest.mark.parametrize("change", [{"args": [1]}, {"kwargs": {"a": 1}}, {"kwargs": {}}], ids=str)
async def test_the_job_of_a_workflow_is_given_no_arguments_by_an_update(
    scheduler: Scheduler, clock: ManualClock, ran: list[str], change: dict[str, Any]
) -> None:
    before = await scheduler.add_job(Workflow("w").step("a", "work"), every(60), id="w")
    with pytest.raises(DefinitionError, match="do not fit"):
        await scheduler.update_job("w", **change)
    assert await scheduler.get_job("w") == before


# -- what is to be seen ------------------------------------------------------------------------------------------------


async def test_a_run_knows_the_workflow_that_it_is_a_step_of(scheduler: Scheduler) -> None:
    seen: list[Any] = []

    @scheduler.task(name="see")
    async def see() -> None:
        workflow = current_run().workflow
        seen.append(None if workflow is None else (workflow.id, workflow.name, workflow.step))

    await ended(await scheduler.start_workflow(Workflow("w").step("a", see), id="1"))
    await (await scheduler.enqueue(see)).result()
    assert seen == [("1", "w", "a"), None]


async def test_history_knows_the_workflow_and_the_step_of_each_run(
    scheduler: Scheduler, ran: list[str]
) -> None:
    run = await scheduler.start_workflow(Workflow("w").step("a", "work").step("b", "fail", after="a"), id="1")
    await ended(run)
    runs = await run.runs()
    assert [(r.job_id, r.outcome, r.metadata) for r in runs] == [
        ("1/b", "failed", {"workflow": "1", "step": "b"}),
        ("1/a", "succeeded", {"workflow": "1", "step": "a"}),
    ]
    assert (await run.status()).steps["a"].run_id == runs[1].id


async def test_records_of_workflows_are_no_jobs(scheduler: Scheduler, ran: list[str]) -> None:
    run = await scheduler.start_workflow(Workflow("w").step("a", "block"), id="1")
    await eventually(lambda: ran)
    assert [job.id for job in await scheduler.get_jobs()] == ["1/a"]
    await run.cancel()
    await ended(run)
    assert await scheduler.get_jobs() == []
    assert await scheduler.next_fire_time() is None
    assert {r.job_id for r in await scheduler.history.runs()} == {"1/a"}


async def test_a_large_result_and_one_that_cannot_be_stored_are_left_out_and_it_says_so(
    scheduler: Scheduler,
) -> None:
    @scheduler.task(name="much")
    async def much() -> str:
        return "x" * 40_000

    @scheduler.task(name="odd")
    async def odd() -> object:
        return object()

    @scheduler.task(name="read")
    async def read() -> Any:
        workflow = current_run().workflow
        assert workflow is not None
        return workflow.results

    flow = Workflow("w").step("a", much).step("b", odd).step("c", read, after=["a", "b"])
    run = await scheduler.start_workflow(flow)
    assert (await run.result())["c"] == {"a": None, "b": None}
    steps = (await run.status()).steps
    assert "32768" in (steps["a"].result_error or "")
    assert "object" in (steps["b"].result_error or "")
    [a] = await scheduler.history.runs(steps["a"].job_id)
    assert a.result == "x" * 40_000


async def test_the_end_of_a_workflow_is_told_as_an_event(scheduler: Scheduler, ran: list[str]) -> None:
    heard: list[WorkflowCompleted] = []
    scheduler.on(WorkflowCompleted, heard.append)
    flow = Workflow("w").step("a", "fail").step("b", "work", after="a")
    await ended(await scheduler.start_workflow(flow, id="1"))
    await eventually(lambda: heard)
    [event] = heard
    assert (event.id, event.name, event.outcome, event.store) == ("1", "w", "failed", "default")
    assert event.steps == {"a": "failed", "b": "skipped"}
    assert event.duration >= 0


async def test_a_job_that_ends_after_the_workflow_that_waited_for_it_tells_no_second_end(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    ends: list[WorkflowCompleted] = []
    scheduler.on(WorkflowCompleted, ends.append)
    good, bad = await scheduler.add_job("work", delay_of(60)), await scheduler.add_job("fail")
    run = await scheduler.enqueue_after([good, bad], "work")
    assert (await ended_in_time(clock, run))["then"] == "skipped"
    await clock.advance(70)
    await eventually(lambda: has_ended(run, good.id))
    assert [end.id for end in ends] == [run.id]


async def has_ended(run: WorkflowRun, step: str) -> bool:
    return (await run.status()).steps[step].state == "succeeded"


async def test_a_result_of_a_class_that_is_not_known_here_does_not_hide_how_the_steps_stand(
    scheduler: Scheduler, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(data: bytes) -> Any:
        raise SerializationError("the class is not loaded")

    run = await scheduler.start_workflow(Workflow("w").step("a", "work"))
    await ended(run)
    monkeypatch.setattr(scheduler._engine, "load", refuse)
    [status] = await scheduler.workflows()
    step = status.steps["a"]
    assert (step.state, step.result, step.result_error) == ("succeeded", None, "the class is not loaded")


async def test_the_newest_are_listed_so_many_as_were_asked_for(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    for number in range(3):
        await ended(await scheduler.start_workflow(Workflow("w").step("a", "work"), id=str(number)))
        await clock.advance(1)
    assert [w.id for w in await scheduler.workflows(limit=2)] == ["2", "1"]
    assert await scheduler.workflows(limit=0) == []
    with pytest.raises(DefinitionError, match="limit"):
        await scheduler.workflows(limit=-1)


async def test_status_says_what_each_step_waits_for(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    flow = Workflow("w").step("a", "block").step("b", "work", delay=60).step("c", "work", after="b")
    run = await scheduler.start_workflow(flow, id="1")
    await eventually(lambda: ran)
    status = await run.status()
    assert {name: step.state for name, step in status.steps.items()} == {
        "a": "running",
        "b": "scheduled",
        "c": "pending",
    }
    assert status.state == "running"
    assert not status.is_over
    assert status.created_at == datetime.fromtimestamp(clock.time(), UTC)
    assert isinstance(status.steps["a"], StepStatus)
    waiting = asyncio.ensure_future(run.wait(timeout=5))
    await pass_time(clock, waiting.done)
    with pytest.raises(TimeoutError, match="still under way"):
        await waiting
    await run.cancel()


async def test_run_due_goes_through_a_whole_workflow(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock)
    ran: list[str] = []
    define(scheduler, ran)
    await scheduler.start(paused=True)
    run = await scheduler.start_workflow(Workflow("w").step("a", "work").step("b", "work", after="a"))
    assert [type(end) for end in await run_due(scheduler)] != []
    assert ran == ["a", "b"]
    assert (await run.status()).state == "succeeded"
    await scheduler.stop(drain=0)


# -- how long it is kept -----------------------------------------------------------------------------------------------


async def test_one_that_has_ended_is_kept_as_long_as_the_history_and_then_goes_by_itself(
    clock: ManualClock,
) -> None:
    store = MemoryStore()
    async with Scheduler(store, clock=clock, retention=Retention(age=1000)) as scheduler:
        define(scheduler)
        flow = Workflow("w").step("a", "work")
        run = await scheduler.start_workflow(flow)
        short = await scheduler.start_workflow(flow, retention=timedelta(seconds=50))
        await ended(run)
        await ended(short)
        await clock.advance(51)
        await eventually(lambda: is_gone(short))
        await clock.advance(900)
        assert (await run.status()).state == "succeeded"
        await clock.advance(60)
        await eventually(lambda: is_gone(run))
        assert not [r for r in await store.page(Filter(), 10) if r.id.startswith("#flow")]
        with pytest.raises(WorkflowLookupError, match=run.id):
            await scheduler.workflow(run.id)


async def is_gone(run: WorkflowRun) -> bool:
    try:
        await run.status()
    except WorkflowLookupError:
        return True
    return False


async def test_of_those_that_have_ended_the_newest_are_kept_and_none_that_runs_is_forgotten(
    clock: ManualClock,
) -> None:
    retention = Retention(workflows=3, every=60)
    async with Scheduler(clock=clock, retention=retention) as scheduler:
        define(scheduler)
        await scheduler.start_workflow(Workflow("w").step("a", "block"), id="running")
        for number in range(6):
            run = await scheduler.start_workflow(Workflow("w").step("a", "work"), id=str(number))
            await ended(run)
            await clock.advance(1)
        await clock.advance(70)
        await eventually(lambda: count(scheduler, 4))
        assert [w.id for w in await scheduler.workflows()] == ["5", "4", "3", "running"]
        assert [w.id for w in await scheduler.workflows(state="running")] == ["running"]
        await (await scheduler.workflow("running")).cancel()


async def count(scheduler: Scheduler, number: int) -> bool:
    return len(await scheduler.workflows()) == number


def test_retention_refuses_fewer_than_no_workflows() -> None:
    with pytest.raises(DefinitionError, match="workflows"):
        Retention(workflows=-1)


# -- it outlives its instance ------------------------------------------------------------------------------------------


async def test_a_workflow_goes_on_in_the_instance_that_comes_after(make_scheduler: MakeScheduler) -> None:
    ran: list[str] = []
    flow = Workflow("w").step("a", "work").step("b", "block", after="a").step("c", "work", after="b")
    first = make_scheduler()
    define(first, ran)
    async with first:
        run = await first.start_workflow(flow, id="1")
        await eventually(lambda: ran == ["a", "b"])
        await first.stop(drain=0)
    second = make_scheduler()
    define(second, ran)
    second.unregister("block")
    second.register(second.tasks["work"].function, "block")
    async with second:
        run = await second.workflow("1")
        assert await ended(run) == {"a": "succeeded", "b": "succeeded", "c": "succeeded", "": "succeeded"}
    assert ran == ["a", "b", "b", "c"]


async def test_it_is_started_by_one_who_runs_nothing_himself(make_scheduler: MakeScheduler) -> None:
    client = make_scheduler(queues=())
    define(client)
    async with client:
        run = await client.start_workflow(Workflow("w").step("a", "work"), id="1")
        assert (await run.status()).steps["a"].state == "scheduled"
    worker = make_scheduler()
    define(worker)
    ends: list[RunFinished] = []
    worker.on(RunFinished, ends.append)
    async with worker:
        assert await (await worker.workflow("1")).result(timeout=20) == {"a": "a"}


# -- after jobs that are no steps --------------------------------------------------------------------------------------


async def test_a_task_runs_after_a_job_that_was_there_and_sees_its_result(
    make_scheduler: MakeScheduler,
) -> None:
    scheduler = make_scheduler()
    ran: list[str] = []
    define(scheduler, ran)
    go = asyncio.Event()

    @scheduler.task(name="first")
    async def first() -> int:
        await go.wait()
        return 42

    @scheduler.task(name="second")
    async def second(times: int) -> int:
        workflow = current_run().workflow
        assert workflow is not None
        [result] = workflow.results.values()
        return int(result) * times

    async with scheduler:
        receipt = await scheduler.enqueue(first)
        job = await scheduler.add_job("work", delay_of(0.05))
        run = await scheduler.enqueue_after([receipt], second, 2)
        both = await scheduler.enqueue_after([receipt, job], "look")
        assert (await run.status()).steps["then"].state == "pending"
        go.set()
        assert await run.result(timeout=20) == {receipt.job_id: 42, "then": 84}
        looked = (await both.result(timeout=20))["then"]
        assert looked["outcomes"] == {receipt.job_id: "succeeded", job.id: "succeeded"}
        assert looked["results"] == {receipt.job_id: 42, job.id: "-"}


def delay_of(seconds: float) -> Any:
    return once(delay=seconds)


@pytest.mark.parametrize(
    ("task", "condition", "state"),
    [
        ("work", on_success, "succeeded"),
        ("work", on_failure, "skipped"),
        ("fail", on_success, "skipped"),
        ("fail", on_failure, "succeeded"),
        ("fail", on_complete, "succeeded"),
    ],
)
async def test_a_job_that_has_ended_already_is_known_by_the_history(
    scheduler: Scheduler, ran: list[str], task: str, condition: Callable[..., Condition], state: str
) -> None:
    for on_exhausted in ("keep", "remove"):
        job = await scheduler.add_job(task, on_exhausted=on_exhausted)
        await scheduler.wait_job(job.id)
        run = await scheduler.enqueue_after(condition(job), "work")
        status = await asyncio.wait_for(run.wait(), 20)
        assert status.steps["then"].state == state
        assert status.state == "succeeded"


async def test_what_is_known_of_a_job_that_was_updated_in_mid_run_is_its_result_too(
    scheduler: Scheduler, ran: list[str]
) -> None:
    go = asyncio.Event()

    @scheduler.task(name="first")
    async def first() -> int:
        await go.wait()
        return 7

    receipt = await scheduler.enqueue(first)
    await eventually(scheduler.running)
    run = await scheduler.enqueue_after(receipt, "look")
    await eventually(lambda: is_linked(scheduler, receipt.job_id))
    go.set()
    assert (await run.result())["then"]["results"] == {receipt.job_id: 7}


async def is_linked(scheduler: Scheduler, job_id: str) -> bool:
    records = await scheduler._engine.stores["default"].get([job_id])
    return records[job_id].version > 1


async def test_a_job_that_nobody_knows_of_and_one_that_never_ends_are_refused_at_once(
    scheduler: Scheduler, ran: list[str]
) -> None:
    recurring = await scheduler.add_job("work", every(60))
    with pytest.raises(DefinitionError, match="recurs"):
        await scheduler.enqueue_after(recurring, "work")
    gone = await scheduler.add_job("work", delay_of(60))
    await scheduler.remove_job(gone.id)
    with pytest.raises(JobLookupError, match=gone.id):
        await scheduler.enqueue_after(on_complete(gone), "work")
    there = await scheduler.add_job("work", delay_of(60))
    with pytest.raises(DefinitionError, match="trigger"):
        await scheduler.add_job(Workflow("w").step("a", "work", after=there), every(60))
    assert await scheduler.workflows() == []


class TransactionalMemory(MemoryStore):
    """One transaction, which sees what is written in it, and nobody else does before ``commit``."""

    capabilities = replace(MemoryStore.capabilities, transactional_add=True)

    def __init__(self) -> None:
        super().__init__()
        self.joined = MemoryStore()

    @asynccontextmanager
    async def within(self, connection: object) -> AsyncIterator[MemoryStore]:
        yield self.joined

    async def commit(self) -> None:
        await self.add(await self.joined.page(Filter(), 100))


async def test_a_workflow_waits_for_a_job_that_was_added_in_the_same_transaction(clock: ManualClock) -> None:
    store, connection = TransactionalMemory(), object()
    async with Scheduler(store, clock=clock) as scheduler:
        define(scheduler)
        job = await scheduler.add_job("work", delay_of(5), connection=connection)
        flow = Workflow("w").step("a", "work", after=job)
        run = await scheduler.start_workflow(flow, connection=connection)
        with pytest.raises(WorkflowLookupError):
            await run.status()
        await store.commit()
        assert (await ended_in_time(clock, run))["a"] == "succeeded"


async def test_a_job_that_is_removed_while_it_is_waited_for_counts_as_cancelled(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    job = await scheduler.add_job("work", delay_of(600))
    good, bad = (
        await scheduler.enqueue_after(on_failure(job), "work"),
        await scheduler.enqueue_after(job, "work"),
    )
    await eventually(lambda: is_linked(scheduler, job.id))
    await scheduler.remove_job(job.id)
    assert (await ended_in_time(clock, good))["then"] == "succeeded"
    assert (await ended_in_time(clock, bad))["then"] == "skipped"


async def test_an_earlier_job_of_the_same_id_is_not_taken_for_one_that_was_removed(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    await scheduler.add_job("work", id="x")
    await scheduler.wait_job("x")
    await clock.advance(10)
    job = await scheduler.add_job("work", delay_of(600), id="x")
    run = await scheduler.enqueue_after(job, "work")
    await eventually(lambda: is_linked(scheduler, "x"))
    await scheduler.remove_job("x")
    assert await ended_in_time(clock, run) == {"x": "cancelled", "then": "skipped", "": "succeeded"}
    job = await scheduler.add_job("work", delay_of(600), id="x")
    await scheduler.pause()
    run = await scheduler.enqueue_after(job, "work")
    await scheduler.remove_job("x")
    await scheduler.resume()
    assert await ended_in_time(clock, run) == {"x": "cancelled", "then": "skipped", "": "succeeded"}


async def test_a_later_job_of_the_same_id_is_not_taken_for_one_that_was_removed(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    job = await scheduler.add_job("work", delay_of(600), id="x")
    run = await scheduler.enqueue_after(on_complete(job), "work")
    await eventually(lambda: is_linked(scheduler, "x"))
    await scheduler.remove_job("x")
    await scheduler.add_job("work", delay_of(86400), id="x")
    assert await ended_in_time(clock, run) == {"x": "cancelled", "then": "succeeded", "": "succeeded"}


async def test_a_job_that_rests_after_its_last_attempt_has_failed_for_those_that_come_after_it(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    job = await scheduler.add_job("fail", on_exhausted="pause", id="x")
    await eventually(lambda: is_paused(scheduler, "x"))
    run = await scheduler.enqueue_after(on_failure(job), "work")
    assert await ended_in_time(clock, run) == {"x": "failed", "then": "succeeded", "": "succeeded"}


async def is_paused(scheduler: Scheduler, id: str) -> bool:
    return (await scheduler.get_job(id)).state == "paused"


async def test_the_runs_of_a_job_that_was_waited_for_are_none_of_the_workflow_s(
    scheduler: Scheduler, ran: list[str]
) -> None:
    run = await scheduler.enqueue_after(await scheduler.add_job("work"), "work")
    await ended(run)
    assert [one.job_id for one in await run.runs()] == [f"{run.id}/then"]


def test_whatever_ids_there_are_a_record_s_id_is_no_longer_than_stores_take() -> None:
    ids = [end_id("e" * 253, letter * 255) for letter in "ab"]
    assert max(map(len, ids)) <= 300
    assert len(set(ids)) == 2
    assert end_id("1", "a") == "#flow-end/1#a"


async def test_a_job_that_is_waited_for_is_put_off_by_skip_as_it_would_be_otherwise(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    times = 0

    @scheduler.task(name="busy")
    async def busy() -> int:
        nonlocal times
        times += 1
        if times == 1:
            raise Skip
        return times

    job = await scheduler.add_job(busy, delay_of(60))
    run = await scheduler.enqueue_after(job, "busy")
    await eventually(lambda: is_linked(scheduler, job.id))
    assert (await ended_in_time(clock, run))["then"] == "succeeded"
    assert times == 3


async def test_it_ends_when_no_step_of_its_own_can_run_any_more_though_a_job_before_them_goes_on(
    scheduler: Scheduler, ran: list[str]
) -> None:
    good, bad = await scheduler.add_job("work", delay_of(600)), await scheduler.add_job("fail")
    run = await scheduler.enqueue_after([good, bad], "work")
    assert (await ended(run))["then"] == "skipped"
    assert (await run.status()).steps[good.id].state == "scheduled"


async def test_a_job_that_is_replaced_while_it_is_waited_for_still_tells_its_end(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    job = await scheduler.add_job("work", delay_of(60), id="other")
    run = await scheduler.enqueue_after(job, "look")
    await eventually(lambda: is_linked(scheduler, "other"))
    await scheduler.add_job("work", delay_of(90), id="other", args=["new"], on_conflict="replace")
    await scheduler.pause_job("other")
    await scheduler.resume_job("other")
    [record] = (await scheduler._engine.stores["default"].get(["other"])).values()
    assert [link.id for link in decode_definition(record.body).flows] == [run.id]
    waiting = asyncio.ensure_future(run.result())
    await pass_time(clock, waiting.done, step=0.5, most=300)
    assert waiting.result()["then"]["results"] == {"other": "new"}


async def test_to_call_it_off_leaves_the_job_that_it_waits_for_alone(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    job = await scheduler.add_job("work", delay_of(60), id="other")
    run = await scheduler.enqueue_after(job, "work")
    assert await run.cancel()
    assert await ended(run) == {"other": "cancelled", "then": "cancelled", "": "cancelled"}
    waiting = asyncio.ensure_future(scheduler.wait_job("other"))
    await pass_time(clock, waiting.done)
    assert [r.outcome for r in await scheduler.history.runs("other")] == ["succeeded"]


async def test_a_step_and_a_job_that_recur_from_now_on_have_no_end_to_wait_for(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    flow = Workflow("flow").step("first", "work", delay=50).step("then", "work", after=on_failure("first"))
    run = await scheduler.start_workflow(flow, id="flow")
    job = await scheduler.add_job("work", once(delay=50), id="job")
    after = await scheduler.enqueue_after([on_failure(job)], "work")
    await clock.advance(1)
    await scheduler.reschedule_job("flow/first", every(hours=1))
    await scheduler.add_job("work", every(hours=1), id="job", on_conflict="replace")
    assert await ended_in_time(clock, run) == {"first": "failed", "then": "succeeded", "": "failed"}
    assert (await ended_in_time(clock, after))["then"] == "succeeded"
    assert "recurs now" in str((await run.status()).steps["first"].error)


async def test_a_workflow_that_cannot_be_read_hides_no_other_and_keeps_none_from_being_forgotten() -> None:
    clock, store = ManualClock(), MemoryStore()
    scheduler = Scheduler(store, clock=clock, retention=Retention(workflows=1, every=60))
    define(scheduler)
    await scheduler.start()
    for n in range(4):
        await scheduler.start_workflow(Workflow("flow").step("a", "work"), id=f"flow{n}")
        await clock.advance(1)
    [record] = (await store.get(["#flow/flow0"])).values()
    spoilt = Update(
        id=record.id, version=record.version, body=b"\xff", queue=record.queue, priority=record.priority,
        wake_at=record.wake_at, hold=record.hold,
    )  # fmt: skip
    assert await store.update(spoilt) is not None
    assert [status.id for status in await scheduler.workflows()] == ["flow3", "flow2", "flow1"]
    await clock.advance(120)
    assert [status.id for status in await scheduler.workflows()] == ["flow3"]
    stopping = asyncio.create_task(scheduler.stop(0))
    await clock.advance(10)
    await stopping


async def test_without_a_history_a_workflow_waits_for_no_job_of_which_only_that_could_tell() -> None:
    async with Scheduler(history=False, concurrency=1) as scheduler:
        define(scheduler)
        receipt = await scheduler.enqueue("work")
        with pytest.raises(DefinitionError, match="only the history may tell: make it a step"):
            await scheduler.enqueue_after([receipt], "work")
        run = await scheduler.start_workflow(Workflow("flow").step("a", "work").step("b", "work", after="a"))
        assert (await ended(run))["b"] == "succeeded"


async def test_what_is_no_workflow_and_no_state_is_refused_by_name(
    scheduler: Scheduler, ran: list[str]
) -> None:
    wrong: Any = "work"
    with pytest.raises(DefinitionError, match=r"start_workflow\(\) takes a Workflow, not 'work'"):
        await scheduler.start_workflow(wrong)
    for after in ("job", ["job"]):
        given: Any = after
        with pytest.raises(
            DefinitionError, match=r"takes Jobs and Receipts, not the id 'job': await get_job"
        ):
            await scheduler.enqueue_after(given, "work")
    with pytest.raises(DefinitionError, match=r"state must be one of running, .*, not 'work'"):
        await scheduler.workflows(state=wrong)


async def test_a_job_whose_end_cannot_be_read_in_the_log_has_failed_for_those_that_wait_for_it() -> None:
    clock, store = ManualClock(), MemoryStore()
    scheduler = Scheduler(store, clock=clock)
    define(scheduler)
    await scheduler.start()
    receipt = await scheduler.enqueue("work")
    await clock.advance(1)
    entry = Entry(receipt.job_id, 99, "run", clock.time(), clock.time(), b"\x99")
    assert await store.settle([Settlement("#nobody", 0, "#nobody", 0, entries=(entry,))]) == ["gone"]
    run = await scheduler.enqueue_after([on_failure(receipt)], "work")
    assert (await ended_in_time(clock, run))["then"] == "succeeded"
    stopping = asyncio.create_task(scheduler.stop(0))
    await clock.advance(10)
    await stopping
