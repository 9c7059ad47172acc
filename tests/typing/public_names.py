"""How the public names are used and what their types come out as: read by mypy and pyright, never run."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, assert_type

from asyncsched import (
    AsyncSchedError,
    Backfill,
    BackfillProgress,
    Call,
    CallNext,
    Carry,
    Change,
    Condition,
    CurrentRun,
    CurrentWorkflow,
    Decision,
    Effect,
    Event,
    Figures,
    Finish,
    Future,
    Health,
    HealthRule,
    Instance,
    Job,
    JobAdded,
    JobEvent,
    JobLimited,
    JobLookupError,
    JobSpec,
    JobStore,
    MemoryStore,
    Monitor,
    Plan,
    Pool,
    Receipt,
    Retention,
    Retry,
    RetryLater,
    Run,
    RunFinished,
    Runner,
    RunnerJob,
    Scheduler,
    Snooze,
    Stats,
    StepStatus,
    StoreSummary,
    Summary,
    Task,
    Trigger,
    Workflow,
    WorkflowRun,
    WorkflowStatus,
    all_of,
    any_of,
    calendar,
    cron,
    current_run,
    every,
    excluding,
    manual,
    on_complete,
    on_failure,
    once,
    parse_trigger,
)
from asyncsched.middleware import CircuitBreaker, CircuitState, circuit_breaker, log_runs, timeout
from asyncsched.tasks import HttpResult, ShellResult, echo, http, shell
from asyncsched.testing import ManualClock, run_due

if TYPE_CHECKING:
    from collections.abc import Coroutine


# -- making one --------------------------------------------------------------------------------------------------------


async def middleware(run: CurrentRun, call_next: CallNext) -> Any:
    assert_type(run.job_id, str)
    await call_next()
    return await call_next(run)


@asynccontextmanager
async def lifespan(scheduler: Scheduler) -> AsyncIterator[None]:
    yield


scheduler = Scheduler("sqlite:///jobs.db")
everything = Scheduler(
    {"default": "memory://", "file": "sqlite:///jobs.db", "mine": MemoryStore()},
    concurrency=10,
    queues={"default": None, "mail": 5},
    lease=timedelta(seconds=30),
    lookahead=0.5,
    poll_interval=1,
    poll_jitter=0.1,
    store_retry=Retry(base=0.1),
    retention=Retention(age=timedelta(days=7), per_job=100, every=60),
    history=True,
    defaults={"timeout": 60, "retry": Retry(max_attempts=3)},
    application="shop",
    revision=7,
    gone="remove",
    orphans="pause",
    orphan_after=timedelta(days=30),
    middleware=[middleware],
    lifespan=lifespan,
    clock=ManualClock(),
    id="one",
    logger=logging.getLogger("jobs"),
)
client = Scheduler(MemoryStore(), queues=())


def takes_a_store(store: JobStore) -> None: ...


takes_a_store(MemoryStore())

# -- tasks -------------------------------------------------------------------------------------------------------------


@scheduler.task
async def send(to: str, subject: str = "") -> int:
    return len(to) + len(subject)


@scheduler.task(
    name="plain",
    timeout=5,
    retry=Retry(max_attempts=2),
    executor="thread",
    max_concurrency=3,
    rate_limit="5/s",
)
def plain(n: int) -> bytes:
    return bytes(n)


@scheduler.job(every(60), id="tick", tags=["a"], timeout=5, retry=Retry())
async def tick() -> None:
    run = current_run()
    assert_type(run, CurrentRun)
    assert_type(run.id, str)
    assert_type(run.attempt, int)
    assert_type(run.fence, int)
    assert_type(run.fire_time, datetime)
    assert_type(run.started_at, datetime)
    assert_type(run.args, tuple[Any, ...])
    assert_type(run.kwargs, Mapping[str, Any])
    assert_type(run.idempotency_key, str)
    assert_type(run.cancelled, bool)
    run.annotate(rows=3)
    run.logger.info("running")


@scheduler.job("@every 5m")
async def reports() -> Carry:
    if current_run().carried is None:
        raise RetryLater(timedelta(seconds=5))
    if current_run().attempt > 3:
        raise Finish("done")
    raise Snooze(datetime.now().astimezone())


registered = scheduler.register(len, name="length", executor="thread")


async def use_tasks() -> None:
    assert_type(await send("a@example.org"), int)
    assert_type(await send("a@example.org", subject="hi"), int)
    assert_type(plain(5), bytes)
    assert_type(plain.function(n=5), bytes)
    assert_type(plain.bind(5), Call)
    assert_type(send.bind("a@example.org", subject="hi"), Call)
    assert_type(send.options(queue="mail", delay=5, id="x", priority=3).bind("a@example.org"), Call)
    assert_type(scheduler.tasks, Mapping[str, Task[..., Any]])
    assert_type(registered(["a"]), int)
    scheduler.unregister("plain")
    scheduler.unregister(send)

    send.bind(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    send.bind()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    send.options(queue="mail").bind("a", nobody=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    plain("5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# -- jobs --------------------------------------------------------------------------------------------------------------


async def use_jobs(at: datetime) -> None:
    async with scheduler as same:
        assert_type(same, Scheduler)
    await scheduler.start(paused=True)

    assert_type(await scheduler.add_job(send, once(delay=5), args=["a"], kwargs={"subject": "b"}), Job)
    await scheduler.add_job(send.bind("a"), "0 9 * * mon-fri", on_conflict="keep")
    await scheduler.add_job(send, args=["a"], concurrency_key="k", concurrency_limit=2, rate_limit="5/s")
    await scheduler.add_job("plain", cron("@daily", tz="Europe/Berlin"), args=[5], run_immediately=True)
    await scheduler.add_job(plain, manual(), args=(5,), on_exhausted="pause", retry=Retry(), timeout=5)
    await scheduler.add_job(len, once(at), args=[[]], store="file", queue="mail", priority=9)
    await scheduler.add_job(send, on_conflict="whatever")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    specs = [JobSpec(send, every(5), args=["a"]), JobSpec(send.bind("a"), policies={"timeout": 5})]
    assert_type(await scheduler.add_jobs(specs), list[Job])
    assert_type(await scheduler.add_jobs(specs, errors="raise", on_conflict="replace"), list[Job])
    assert_type(await scheduler.add_jobs(specs, errors="return"), list[Job | AsyncSchedError])

    assert_type(await scheduler.enqueue(send, "a", subject="b"), Receipt)
    assert_type(await scheduler.enqueue("by-name", "a", subject="b"), Receipt)
    await scheduler.enqueue(send, 5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await scheduler.enqueue(send)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]

    job = await scheduler.get_job("x")
    assert_type(job.next_fire_time, datetime | None)
    assert_type(job.tags, tuple[str, ...])
    assert_type(job.args, tuple[Any, ...])
    found = await scheduler.get_jobs(
        queue="mail", task=send, tags=["a"], id_prefix="a/", state="paused", due_before=at, limit=5, after=job
    )
    assert_type(found, list[Job])
    assert_type(await scheduler.update_job("x", tags=["a"], timeout=timedelta(seconds=5)), Job)
    assert_type(await scheduler.reschedule_job("x", "@hourly"), Job)
    assert_type(await scheduler.pause_job("x"), Job)
    assert_type(await scheduler.resume_job("x"), Job)
    assert_type(await scheduler.remove_job("x", missing_ok=True), bool)
    assert_type(await scheduler.remove_all_jobs(), int)
    assert_type(await scheduler.run_job("x", force=True), Receipt)
    assert_type(await scheduler.wait_job("x", timeout=timedelta(minutes=1)), Job | None)
    assert_type(await scheduler.next_fire_time(), datetime | None)
    assert_type(scheduler.running("x"), list[Run])
    assert_type(scheduler.is_running, bool)
    await scheduler.pause(queue="mail", everywhere=True)
    await scheduler.add_store("file", "sqlite:///other.db")
    await scheduler.remove_store("file")
    await scheduler.stop(drain=timedelta(seconds=5))
    await scheduler.run()


async def use_history() -> None:
    runs = await scheduler.history.runs("x", limit=5)
    assert_type(runs, list[Run])
    assert_type(await scheduler.history.runs(before=runs[-1]), list[Run])
    assert_type(await scheduler.history.run("x@1"), Run)
    assert_type(await scheduler.history.decisions("x"), list[Decision])
    assert_type(await scheduler.history.stats(), Stats)
    assert_type(runs[0].duration, float | None)


def use_from_thread() -> None:
    calls = scheduler.from_thread
    assert_type(calls.add_job(send, every(5), args=["a"], id="x"), Job)
    assert_type(calls.get_job("x"), Job)
    assert_type(calls.get_jobs(queue="mail"), list[Job])
    assert_type(calls.update_job("x", tags=["a"]), Job)
    assert_type(calls.remove_job("x", missing_ok=True), bool)
    assert_type(calls.run_job("x"), Receipt)
    calls.remove_job(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    calls.add_job(send, colour="red")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# -- triggers and values -----------------------------------------------------------------------------------------------


def use_values(at: datetime) -> None:
    triggers: Sequence[Trigger] = [
        once(at),
        every("5m"),
        every(minutes=5, start=at),
        cron(
            "* * * * *",
            tz="local",
            dst_gap="skip",
            dst_fold="both",
            day="and",
            hash_key="x",
            start=at,
            end=at,
        ),
        calendar(months=1, at="09:00", missing_day="last", start=at.date()),
        any_of(cron("@daily"), every(5)),
        all_of(cron("@daily"), every(5)),
        excluding(cron("@daily"), every(5), at.date()),
        every(5, after="finish"),
        manual(),
    ]
    assert_type(triggers[0].next_after(at), datetime | None)
    assert_type(triggers[0].preview(5, at), list[datetime])
    assert_type(triggers[0].previous_before(at), datetime | None)
    assert_type(triggers[0].between(at, at, 5), list[datetime])
    assert_type(triggers[0].matches(at), bool)
    assert_type(triggers[0].warnings, tuple[str, ...])
    text: Trigger = parse_trigger("@daily")
    assert_type(text.recurs, bool)
    assert_type(Retry(delays=[1, timedelta(seconds=2)]).delay(1), timedelta | None)
    assert_type(JobLookupError("x").job_id, str | None)


# -- events ------------------------------------------------------------------------------------------------------------


def hear_limited(event: JobLimited) -> None:
    assert_type(event.limit, str)
    assert_type(event.until, datetime | None)


def hear_added(event: JobAdded) -> None:
    assert_type(event.job_id, str)


@scheduler.on(RunFinished)
async def hear_finished(event: RunFinished) -> None:
    assert_type(event.outcome in ("failed", "timed_out"), bool)
    assert_type(event.duration, float)
    assert_type(event.fire_time, datetime)


@scheduler.on(JobEvent)
def hear_all_of_jobs(event: Event) -> str:
    return event.at.isoformat()


def use_events() -> None:
    end = scheduler.on(JobAdded, hear_added)
    assert_type(end.dropped, int)
    assert_type(end(), None)
    assert_type(hear_all_of_jobs(JobAdded(at=datetime.min, store="s", job_id="x", task="t")), str)
    scheduler.on(Event, print)
    scheduler.on(RunFinished, hear_added)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# -- pool --------------------------------------------------------------------------------------------------------------


async def length_of(text: str) -> int:
    return len(text)


def repeat(text: str, times: int = 2) -> str:
    return text * times


async def use_a_pool(texts: Sequence[str], stream: AsyncIterator[str]) -> None:
    async with Pool(10, queue_size=5, clock=ManualClock()) as pool:
        assert_type(await pool.go(length_of, "a"), None)
        assert_type(pool.try_go(repeat, "a", times=3), bool)
        future = pool.submit(length_of, "a")
        assert_type(future, Future[int])
        assert_type(await future, int)
        assert_type(await future.wait(timedelta(seconds=5)), int)
        assert_type(future.ready, bool)
        assert_type(pool.submit(repeat, "a", 5), Future[str])
        assert_type(await pool.map(length_of, texts), list[int])
        assert_type(await pool.map(repeat, stream), list[str])
        assert_type(await pool.wait(5), bool)
        assert_type(pool.running, int)
        assert_type(await pool.close(timeout=5), bool)
        await pool.go(length_of, 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        pool.try_go(repeat)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# -- monitoring --------------------------------------------------------------------------------------------------------


async def use_the_monitor(task: Task[[str], int]) -> None:
    monitor = Scheduler(heartbeat=timedelta(seconds=10), health=HealthRule(failures=2, grace=5)).monitor
    assert_type(monitor, Monitor)
    assert_type(await monitor.health("x", rule=HealthRule()), Health)
    async for health in monitor.health(store="default", tags=["a"]):
        assert_type(health, Health)
        assert_type(health.late_by, timedelta | None)
    assert_type(await monitor.failure_rate("x", 3600), float | None)
    assert_type(await monitor.average_duration(task=task, window=timedelta(hours=1)), float | None)
    assert_type(await monitor.p95("x"), float | None)
    assert_type(await monitor.figures(), Figures)
    assert_type(await monitor.lag(queue="mail"), timedelta)
    assert_type(await monitor.overdue(limit=5, grace=1), list[Job])
    assert_type(await monitor.instances(dead=True), list[Instance])
    assert_type(await monitor.running(), int)
    summary = await monitor.summary(timeout=1, max_lag=60)
    assert_type(summary, Summary)
    assert_type(summary.ok, bool)
    assert_type(summary.stores, tuple[StoreSummary, ...])
    assert_type(summary.as_dict(), dict[str, Any])


# -- runner and backfill -----------------------------------------------------------------------------------------------


def told(job: RunnerJob[Any]) -> None: ...


async def told_of_a_retry(job: RunnerJob[Any], error: Exception, attempt: int) -> None: ...


runner = Runner(
    workers=4,
    queue_size=100,
    store="memory://",
    name="mail",
    max_retries=5,
    retry_delay=timedelta(seconds=2),
    timeout=None,
    on_start=told,
    on_retry=told_of_a_retry,
)


@runner.register("length")
async def length(job: RunnerJob[str]) -> int:
    assert_type(job.payload, str)
    assert_type(job.created_at, datetime | None)
    return len(job.payload)


async def use_the_runner() -> None:
    assert_type(await length(RunnerJob("length", "abc")), int)
    runner.register("plain", told)
    async with runner:
        assert_type(await runner.enqueue("length", "abc"), bool)
        assert_type(await runner.enqueue(length, "abc"), bool)
        await runner.enqueue(length, 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
        await runner.put(RunnerJob("length", "abc", id="1", priority=9, max_retries=0, timeout=5))
        assert_type(await runner.queue_len(), int)
        assert_type(await runner.stop(timeout=timedelta(seconds=3)), list[RunnerJob[Any]])
    Runner(scheduler=scheduler, store="file")
    scheduler.serve("mail", 3)
    assert_type(scheduler.queues, Mapping[str, int | None])


async def use_backfills(start: datetime, end: datetime) -> None:
    filling = await scheduler.backfill(
        "x", start, end, rate="10/minute", overlap="allow", max_instances=3, again=True
    )
    assert_type(filling, Backfill)
    assert_type(filling.known_since, datetime | None)
    progress = await filling.progress()
    assert_type(progress, BackfillProgress)
    assert_type(progress.is_over, bool)
    await filling.wait(timeout=timedelta(minutes=1))
    assert_type(await filling.cancel(), int)
    assert_type(await scheduler.get_backfill("x"), Backfill)
    assert_type(current_run().backfill_of, str | None)


# -- built-in tasks and middleware -------------------------------------------------------------------------------------


async def use_what_comes_along() -> None:
    clock = scheduler.register(http(name="curl-clock", url="http://example.org/"))
    assert_type(await clock(), HttpResult)
    files = scheduler.register(shell(["ls"], cwd="/"))
    result = await files()
    assert_type(result, ShellResult)
    assert_type(result["exit_code"], int)
    assert_type(await echo("hello")(), str)
    breaker = circuit_breaker(3, timedelta(minutes=1), on=(ConnectionError,))
    assert_type(breaker, CircuitBreaker)
    assert_type(breaker.state("charge"), CircuitState)
    Scheduler(middleware=[breaker, log_runs(level=logging.DEBUG), timeout(600)])


# -- deploying ---------------------------------------------------------------------------------------------------------


async def deploy() -> None:
    async with scheduler.client("sqlite:///copy.db") as copy:
        assert_type(copy, Scheduler)
        plan = await copy.plan(rollback=True, show_arguments=True)
        assert_type(plan, Plan)
        assert_type(plan.added, list[Change])
        for change in plan.changed:
            assert_type([field.new for field in change.fields], list[str | None])
        for effect in plan.effect(hours=48):
            assert_type(effect, Effect)
            assert_type(effect.after.first, tuple[datetime, ...])
        assert_type(plan.is_empty, bool)
        await copy.apply(plan)


# -- testing kit -------------------------------------------------------------------------------------------------------


async def use_the_kit() -> None:
    clock = ManualClock()
    await clock.advance(timedelta(minutes=5))
    await clock.wait_sleepers(1)
    assert_type(await run_due(Scheduler(clock=clock)), list[RunFinished])


def awaits(thing: Awaitable[int]) -> None: ...


def coroutine_functions_stay_what_they_are() -> None:
    call: Coroutine[Any, Any, int] = send("a")
    awaits(call)


# -- workflows ---------------------------------------------------------------------------------------------------------


async def workflows() -> None:
    flow = (
        Workflow("nightly")
        .step("a", send, args=["a"], retry=Retry(max_attempts=2))
        .step("b", send.bind("a"), after="a")
    )
    assert_type(flow, Workflow)
    assert_type(flow.final("c", "by name", after=[on_failure("a"), "b"], queue="mail", delay=5), Workflow)
    flow.step("d", send, max_attempts=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    flow.step("e", send, after=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(on_complete("a"), Condition)
    run = await scheduler.start_workflow(flow, id="today", priority=3, retention=timedelta(days=1))
    assert_type(run, WorkflowRun)
    assert_type(await run.wait(timeout=5), WorkflowStatus)
    assert_type(await run.result(), Mapping[str, Any])
    assert_type(await run.cancel(), bool)
    assert_type(await run.runs(), list[Run])
    assert_type((await run.status()).steps, Mapping[str, StepStatus])
    assert_type(await scheduler.workflow("today"), WorkflowRun)
    assert_type(await scheduler.workflows(state="failed"), list[WorkflowStatus])
    assert_type(await scheduler.add_job(flow, cron("0 2 * * *")), Job)
    receipt = await scheduler.enqueue(send, "a", subject="b")
    assert_type(await scheduler.enqueue_after([receipt, on_failure(receipt)], send, "a"), WorkflowRun)
    assert_type(await scheduler.enqueue_after(receipt, "by-name", "a", subject="b"), WorkflowRun)
    await scheduler.enqueue_after(receipt, send, 5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    step = current_run().workflow
    assert_type(step, CurrentWorkflow | None)
    assert step is not None
    assert_type(step.results, Mapping[str, Any])
    assert_type(step.outcomes, Mapping[str, str])
