"""Runs: what a task sees of its own, how it steers its job, and how runs end."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncsched import (
    Carry,
    CurrentRun,
    DefinitionError,
    Finish,
    GiveUp,
    NoCurrentRun,
    Retry,
    RetryLater,
    Run,
    Scheduler,
    SerializationError,
    Snooze,
    current_run,
    every,
    manual,
    once,
)
from asyncsched.testing import ManualClock

pytestmark = pytest.mark.anyio

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NEW_YEAR + timedelta(seconds=seconds)


Steps = list[Callable[[], Any]]


@pytest.fixture
def steps(scheduler: Scheduler) -> Steps:
    """What the task ``stepwise`` does: one of these in each run, the last one for good."""
    steps: Steps = []

    @scheduler.task(name="stepwise")
    async def stepwise() -> Any:
        step = steps.pop(0) if len(steps) > 1 else steps[0]
        answer = step()
        return await answer if isinstance(answer, Awaitable) else answer

    return steps


def raising(error: BaseException) -> Callable[[], Any]:
    def step() -> None:
        raise error

    return step


async def outcomes(scheduler: Scheduler, id: str = "x") -> list[str | None]:
    """Of all runs, oldest first."""
    return [run.outcome for run in reversed(await scheduler.history.runs(id))]


async def runs(scheduler: Scheduler, id: str = "x") -> list[Run]:
    """All runs, oldest first."""
    return list(reversed(await scheduler.history.runs(id)))


# -- what a task sees --------------------------------------------------------------------------------------------------


async def test_a_run_knows_all_about_itself(scheduler: Scheduler, clock: ManualClock) -> None:
    seen: list[CurrentRun] = []
    values: dict[str, Any] = {}

    @scheduler.task(name="look")
    async def look(a: int, b: str = "") -> None:
        run = current_run()
        seen.append(run)
        values.update(
            {name: getattr(run, name) for name in dir(run) if not name.startswith("_") and name != "logger"}
        )

    await scheduler.add_job(
        look, once(delay=5), id="x", args=[1], kwargs={"b": "c"}, name="a look", priority=3, tags=["t"]
    )
    await clock.advance(6)
    [run] = await runs(scheduler)
    assert values["id"] == run.id == f"x@{run.fence}"
    assert (values["job_id"], values["name"], values["task"]) == ("x", "a look", "look")
    assert (values["store"], values["queue"], values["priority"]) == ("default", "default", 3)
    assert values["tags"] == ("t",)
    assert (values["args"], values["kwargs"]) == ((1,), {"b": "c"})
    assert (values["attempt"], values["fence"], values["instance"]) == (1, run.fence, "here")
    assert values["fire_time"] == values["due_at"] == values["started_at"] == at(5)
    assert values["scheduler"] is scheduler
    assert (values["carried"], values["cancelled"], values["metadata"]) == (None, False, {})
    assert repr(seen[0]).startswith("<CurrentRun x@")


async def test_outside_of_a_run_there_is_no_current_run(scheduler: Scheduler) -> None:
    with pytest.raises(NoCurrentRun):
        current_run()


async def test_tasks_that_a_run_starts_are_part_of_it(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    async def inner() -> str:
        return current_run().job_id

    steps.append(lambda: asyncio.get_running_loop().create_task(inner()))
    await scheduler.add_job("stepwise", id="x")
    await clock.advance(1)
    assert (await runs(scheduler))[0].result == "x"


async def test_the_logger_of_a_run_says_which_run_it_is(
    scheduler: Scheduler, clock: ManualClock, steps: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    steps.append(lambda: current_run().logger.warning("hello"))
    await scheduler.add_job("stepwise", id="x")
    with caplog.at_level(logging.WARNING):
        await clock.advance(1)
    [record] = [record for record in caplog.records if record.message == "hello"]
    fields = (record.job_id, record.task, record.attempt, record.fence)  # type: ignore[attr-defined]
    assert fields == ("x", "stepwise", 1, (await runs(scheduler))[0].fence)


async def test_annotations_are_kept_in_history(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    def step() -> dict[str, Any]:
        current_run().annotate(rows=3, file="a")
        current_run().annotate(rows=4)
        return dict(current_run().metadata)

    steps.append(step)
    await scheduler.add_job("stepwise", id="x")
    await clock.advance(1)
    [run] = await runs(scheduler)
    assert run.metadata == run.result == {"rows": 4, "file": "a"}


async def test_an_annotation_that_cannot_be_stored_is_refused_where_it_is_made(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    def step() -> str:
        try:
            current_run().annotate(thing=object())
        except SerializationError as error:
            return str(error)
        return ""

    steps.append(step)
    await scheduler.add_job("stepwise", id="x")
    await clock.advance(1)
    assert "thing" in (await runs(scheduler))[0].result


async def test_the_idempotency_key_is_the_same_for_every_attempt_and_no_other_fire_time(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    keys: list[str] = []

    def step() -> None:
        keys.append(current_run().idempotency_key)
        if len(keys) in (1, 2):
            raise ValueError
        if len(keys) == 3:
            raise Snooze(at(50))

    steps.append(step)
    await scheduler.add_job("stepwise", every(20), id="x", retry=Retry(base=1))
    await clock.advance(100)
    assert len(set(keys[:4])) == 1
    assert len(set(keys[3:])) == len(keys[3:]) >= 2


async def test_the_idempotency_key_tells_a_job_from_its_successor_of_the_same_id(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps.append(lambda: current_run().idempotency_key)
    for _ in range(2):
        await scheduler.add_job("stepwise", once(at(5)), id="x")
        await scheduler.run_job("x")
        await clock.advance(0)
        await scheduler.remove_job("x")
    first, second = [run.result for run in await runs(scheduler)]
    assert first != second


async def test_fences_rise_with_each_run_even_over_remove_and_add(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps.append(lambda: current_run().fence)
    for _ in range(5):
        await scheduler.add_job("stepwise", id="x")
        await clock.advance(1)
    fences = [run.result for run in await runs(scheduler)]
    assert fences == sorted(set(fences))
    assert len(fences) == 5


# -- steering: Carry, RetryLater, GiveUp, Snooze, Finish ----------------------------------------------------------------


async def test_what_is_carried_is_given_to_the_next_run(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    def step() -> Carry:
        carried = current_run().carried or {"n": 0, "since": NEW_YEAR}
        return Carry({**carried, "n": carried["n"] + 1}, result=carried["n"])

    steps.append(step)
    await scheduler.add_job("stepwise", every(10), id="x")
    await clock.advance(35)
    assert [run.result for run in await runs(scheduler)] == [0, 1, 2]


async def test_what_is_carried_survives_a_failure_and_a_plain_return(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps[:] = [lambda: Carry("kept"), raising(ValueError()), lambda: None, lambda: current_run().carried]
    await scheduler.add_job("stepwise", every(10), id="x")
    await clock.advance(45)
    assert (await runs(scheduler))[-1].result == "kept"


async def test_carry_may_name_the_next_fire_time(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps[:] = [lambda: Carry(1, next_at=at(25)), lambda: None]
    await scheduler.add_job("stepwise", every(10), id="x")
    await clock.advance(11)
    assert (await scheduler.get_job("x")).next_fire_time == at(25)
    await clock.advance(30)
    assert [run.fire_time for run in await runs(scheduler)] == [at(10), at(25), at(30), at(40)]


async def test_carry_lets_a_one_shot_go_on(scheduler: Scheduler, clock: ManualClock, steps: Steps) -> None:
    steps[:] = [lambda: Carry("a", next_at=at(30)), lambda: current_run().carried]
    await scheduler.add_job("stepwise", once(delay=5), id="x")
    await clock.advance(60)
    assert [(run.fire_time, run.result) for run in await runs(scheduler)] == [(at(5), None), (at(30), "a")]
    assert await scheduler.get_jobs() == []


async def test_carrying_what_cannot_be_stored_fails_the_run_and_keeps_what_was_carried(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps[:] = [lambda: Carry("kept"), lambda: Carry(object()), lambda: current_run().carried]
    await scheduler.add_job("stepwise", every(10), id="x")
    await clock.advance(35)
    _, second, third = await runs(scheduler)
    assert second.outcome == "failed"
    assert "SerializationError" in (second.error or "")
    assert third.result == "kept"


@pytest.mark.parametrize("make", [lambda naive: Carry(1, next_at=naive), Snooze])
def test_steering_by_a_naive_datetime_is_refused_with_the_remedy(make: Any) -> None:
    with pytest.raises(DefinitionError, match="tzinfo=UTC"):
        make(datetime(2026, 1, 1))


async def test_retry_later_tries_the_same_fire_time_again_without_a_retry_policy(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps[:] = [raising(RetryLater(timedelta(seconds=7), "busy")), lambda: "done"]
    await scheduler.add_job("stepwise", every(60), id="x")
    await clock.advance(61)
    job = await scheduler.get_job("x")
    assert (job.next_fire_time, job.consecutive_failures) == (at(67), 1)
    await clock.advance(10)
    first, second = await runs(scheduler)
    assert (first.outcome, first.attempt, first.fire_time) == ("failed", 1, at(60))
    assert "busy" in (first.error or "")
    assert (second.outcome, second.attempt, second.fire_time) == ("succeeded", 2, at(60))
    assert second.due_at == at(67)
    assert (await scheduler.get_job("x")).next_fire_time == at(120)


async def test_retry_later_does_not_go_beyond_the_attempts_of_the_policy(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps.append(raising(RetryLater(1)))
    await scheduler.add_job("stepwise", id="x", retry=Retry(max_attempts=3))
    await clock.advance(60)
    assert await outcomes(scheduler) == ["failed"] * 3
    assert (await scheduler.get_job("x")).state == "failed"


async def test_give_up_makes_no_further_attempt(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps[:] = [raising(GiveUp("hopeless")), lambda: "next"]
    await scheduler.add_job("stepwise", every(60), id="x", retry=Retry(max_attempts=9))
    await clock.advance(125)
    first, second = await runs(scheduler)
    assert (first.outcome, first.error) == ("failed", "GiveUp: hopeless")
    assert (second.fire_time, second.attempt) == (at(120), 1)


async def test_snooze_comes_back_to_the_same_fire_time_without_spending_an_attempt(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps[:] = [raising(Snooze(at(80))), lambda: "done"]
    await scheduler.add_job("stepwise", every(60), id="x", retry=Retry(max_attempts=1))
    await clock.advance(61)
    job = await scheduler.get_job("x")
    assert (job.next_fire_time, job.consecutive_failures, job.last_error) == (at(80), 0, None)
    await clock.advance(30)
    first, second = await runs(scheduler)
    assert (first.outcome, second.outcome, second.result) == ("cancelled", "succeeded", "done")
    assert (second.fire_time, second.attempt) == (at(60), 1)
    stats = await scheduler.history.stats("x")
    assert (stats.succeeded, stats.failed) == (1, 0)


async def test_finish_ends_the_recurrence_with_a_success(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps.append(raising(Finish("all done")))
    await scheduler.add_job("stepwise", every(60), id="x")
    await clock.advance(300)
    [run] = await runs(scheduler)
    assert (run.outcome, run.result, run.error) == ("succeeded", "all done", None)
    assert await scheduler.get_jobs() == []


async def test_finish_ends_a_manual_job(scheduler: Scheduler, clock: ManualClock, steps: Steps) -> None:
    steps.append(raising(Finish()))
    await scheduler.add_job("stepwise", manual(), id="x")
    await scheduler.run_job("x")
    await clock.advance(1)
    assert await scheduler.get_jobs() == []


@pytest.mark.parametrize("delay", [-1, float("nan"), "5"])
def test_retry_later_refuses_what_is_no_duration(delay: Any) -> None:
    with pytest.raises(DefinitionError):
        RetryLater(delay)


# -- failing -----------------------------------------------------------------------------------------------------------


async def test_without_a_retry_there_is_one_attempt(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps.append(raising(ValueError("spoilt")))
    await scheduler.add_job("stepwise", id="x")
    await clock.advance(600)
    [run] = await runs(scheduler)
    assert (run.outcome, run.error) == ("failed", "ValueError: spoilt")
    assert "raise error" in (run.traceback or "")


async def test_delays_run_from_the_attempts_end(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    async def slow() -> None:
        await clock.sleep(5)
        raise ValueError

    steps.append(slow)
    await scheduler.add_job("stepwise", id="x", retry=Retry(max_attempts=3, base=10))
    await clock.advance(600)
    assert [run.started_at for run in await runs(scheduler)] == [at(0), at(15), at(40)]
    assert [run.attempt for run in await runs(scheduler)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "attempts"),
    [
        ({"on": (KeyError,)}, 1),
        ({"on": (ValueError,)}, 3),
        ({"on": (Exception,), "never_on": (ValueError,)}, 1),
        ({"delays": [1, 1, 1, 1]}, 3),
    ],
    ids=str,
)
async def test_only_the_named_errors_are_retried(
    scheduler: Scheduler, clock: ManualClock, steps: Steps, options: dict[str, Any], attempts: int
) -> None:
    steps.append(raising(UnicodeError("a ValueError too")))
    await scheduler.add_job("stepwise", id="x", retry=Retry(max_attempts=3, **options))
    await clock.advance(60)
    assert len(await runs(scheduler)) == attempts


async def test_the_retry_of_the_job_goes_before_the_tasks_and_the_tasks_before_the_default(
    clock: ManualClock,
) -> None:
    async with Scheduler(clock=clock, defaults={"retry": Retry(max_attempts=2)}) as scheduler:

        async def fails() -> None:
            raise ValueError

        scheduler.register(fails, "plain")
        scheduler.register(fails, "own", retry=Retry(max_attempts=3))
        await scheduler.add_job("plain", id="default")
        await scheduler.add_job("own", id="task")
        await scheduler.add_job("own", id="job", retry=Retry(max_attempts=4))
        await clock.advance(60)
        assert [len(await runs(scheduler, id)) for id in ("default", "task", "job")] == [2, 3, 4]


async def test_a_recurring_job_goes_on_after_its_attempts_have_run_out(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps.append(raising(ValueError()))
    await scheduler.add_job("stepwise", every(60), id="x", retry=Retry(max_attempts=2, base=1))
    await clock.advance(190)
    assert [(run.fire_time, run.attempt) for run in await runs(scheduler)] == [
        (at(60), 1),
        (at(60), 2),
        (at(120), 1),
        (at(120), 2),
        (at(180), 1),
        (at(180), 2),
    ]


@pytest.mark.parametrize(
    ("trigger", "policy", "state"),
    [
        (once(), "keep", "failed"),
        (once(), "pause", "paused"),
        (once(), "remove", None),
        (every(60), "keep", "scheduled"),
        (every(60), "pause", "paused"),
        (every(60), "remove", None),
        (manual(), "keep", "scheduled"),
    ],
    ids=str,
)
async def test_on_exhausted_says_what_becomes_of_the_job(
    scheduler: Scheduler, clock: ManualClock, steps: Steps, trigger: Any, policy: Any, state: str | None
) -> None:
    steps.append(raising(ValueError()))
    await scheduler.add_job("stepwise", trigger, id="x", on_exhausted=policy)
    if str(trigger) == "@manual":
        await scheduler.run_job("x")
    await clock.advance(61)
    states = [job.state for job in await scheduler.get_jobs()]
    assert states == ([] if state is None else [state])
    assert await outcomes(scheduler) == ["failed"]


async def test_an_error_that_cannot_be_shown_is_still_a_failure(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    class Mean(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    steps.append(raising(Mean()))
    await scheduler.add_job("stepwise", id="x")
    await clock.advance(1)
    [run] = await runs(scheduler)
    assert run.outcome == "failed"
    assert "Mean" in (run.error or "")


@pytest.mark.parametrize(
    "error", [SystemExit(3), asyncio.CancelledError(), BaseExceptionGroup("g", [KeyboardInterrupt()])]
)
async def test_a_task_that_raises_what_is_no_exception_ends_its_run_only(
    scheduler: Scheduler, clock: ManualClock, steps: Steps, error: BaseException
) -> None:
    steps[:] = [raising(error), lambda: "next"]
    await scheduler.add_job("stepwise", every(60), id="x")
    await clock.advance(125)
    first, second = await runs(scheduler)
    assert first.outcome in ("failed", "cancelled")
    assert second.result == "next"


async def test_texts_of_errors_are_bounded(scheduler: Scheduler, clock: ManualClock, steps: Steps) -> None:
    def deep(n: int) -> None:
        if n == 0:
            raise ValueError("x" * 1_000_000)
        deep(n - 1)

    steps.append(lambda: deep(50))
    await scheduler.add_job("stepwise", id="x")
    await clock.advance(1)
    [run] = await runs(scheduler)
    assert len(run.error or "") <= 2000
    assert len(run.traceback or "") < 20_000
    assert (run.traceback or "").startswith("Traceback")


# -- results -----------------------------------------------------------------------------------------------------------


async def test_a_result_is_kept_as_it_was(scheduler: Scheduler, clock: ManualClock, steps: Steps) -> None:
    value = {"a": (1, 2.5, None), "at": NEW_YEAR, 3: {"x"}}
    steps.append(lambda: value)
    await scheduler.add_job("stepwise", id="x")
    await clock.advance(1)
    assert (await runs(scheduler))[0].result == value


@pytest.mark.parametrize(
    "value", [object(), b"x" * (2 << 20), "\ud800", [object()]], ids=["object", "big", "text", "list"]
)
async def test_a_result_that_cannot_be_stored_does_not_fail_the_run(
    scheduler: Scheduler, clock: ManualClock, steps: Steps, value: Any
) -> None:
    steps.append(lambda: value)
    await scheduler.add_job("stepwise", id="x", retry=Retry(max_attempts=3))
    await clock.advance(60)
    [run] = await runs(scheduler)
    assert (run.outcome, run.result) == ("succeeded", None)
    assert "result" in run.metadata["result_error"]


# -- timeouts ----------------------------------------------------------------------------------------------------------


async def test_a_run_is_cancelled_at_its_timeout(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps.append(lambda: clock.sleep(100))
    await scheduler.add_job("stepwise", id="x", timeout=timedelta(seconds=3))
    await clock.advance(10)
    [run] = await runs(scheduler)
    assert (run.outcome, run.duration) == ("timed_out", 3.0)
    assert "3 s" in (run.error or "")


async def test_a_timeout_is_retried_like_a_failure(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps[:] = [lambda: clock.sleep(100), lambda: "done"]
    await scheduler.add_job("stepwise", id="x", timeout=3, retry=Retry(max_attempts=2))
    await clock.advance(60)
    assert await outcomes(scheduler) == ["timed_out", "succeeded"]


async def test_without_a_timeout_a_run_may_take_as_long_as_it_likes(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps.append(lambda: clock.sleep(86_400 * 3))
    await scheduler.add_job("stepwise", id="x")
    await clock.advance(86_400 * 3)
    assert await outcomes(scheduler) == ["succeeded"]


async def test_the_timeout_of_the_job_goes_before_the_tasks_and_the_tasks_before_the_default(
    clock: ManualClock,
) -> None:
    async with Scheduler(clock=clock, defaults={"timeout": 1}) as scheduler:

        async def long() -> None:
            await clock.sleep(100)

        scheduler.register(long, "plain")
        scheduler.register(long, "own", timeout=2)
        await scheduler.add_job("plain", id="default")
        await scheduler.add_job("own", id="task")
        await scheduler.add_job("own", id="job", timeout=3)
        await clock.advance(60)
        durations = [(await runs(scheduler, id))[0].duration for id in ("default", "task", "job")]
    assert durations == [1, 2, 3]


async def test_a_timed_out_run_may_clean_up_within_its_grace(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    cleaned: list[int] = []

    async def careful() -> None:
        try:
            await clock.sleep(100)
        finally:
            await clock.sleep(4)
            cleaned.append(1)

    steps.append(careful)
    await scheduler.add_job("stepwise", id="x", timeout=3)
    await clock.advance(6.5)
    assert scheduler.running("x")
    await clock.advance(1)
    [run] = await runs(scheduler)
    assert (run.outcome, run.duration, cleaned) == ("timed_out", 7.0, [1])


async def test_a_run_that_swallows_its_cancellation_has_timed_out_all_the_same(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    async def deaf() -> str:
        try:
            await clock.sleep(100)
        except asyncio.CancelledError:
            return "not me"
        return ""

    steps.append(deaf)
    await scheduler.add_job("stepwise", id="x", timeout=3)
    await clock.advance(10)
    assert await outcomes(scheduler) == ["timed_out"]


async def test_a_run_that_outlives_its_grace_is_abandoned_and_frees_its_slot(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    free = asyncio.Event()
    async with Scheduler(clock=clock, concurrency=1) as scheduler:

        @scheduler.task(name="stubborn")
        async def stubborn() -> None:
            while not free.is_set():
                try:
                    await free.wait()
                except asyncio.CancelledError:
                    continue

        @scheduler.task(name="next")
        async def next_() -> str:
            return "ran"

        await scheduler.add_job(stubborn, id="x", timeout=3, cancel_grace=2)
        await clock.advance(1)
        await scheduler.add_job(next_, id="next")
        await clock.advance(3.5)
        assert await outcomes(scheduler) == []
        await clock.advance(1)
        [run] = await runs(scheduler)
        assert (run.outcome, run.duration) == ("timed_out", 5.0)
        assert (await runs(scheduler, "next"))[0].result == "ran"
        free.set()
    assert "abandoned" in caplog.text


async def test_a_thread_that_times_out_sees_it_and_keeps_its_slot_until_it_returns() -> None:
    seen, release = threading.Event(), threading.Event()
    async with Scheduler(concurrency=1) as scheduler:

        @scheduler.task(name="threaded")
        def threaded() -> None:
            run = current_run()
            while not run.cancelled:
                release.wait(0.005)
            seen.set()
            release.wait(10)

        await scheduler.add_job(threaded, id="x", timeout=0.05, cancel_grace=0.01)
        assert await asyncio.to_thread(seen.wait, 10)
        await asyncio.sleep(0.05)
        assert len(scheduler.running("x")) == 1
        release.set()
        await scheduler.wait_job("x", timeout=10)
        assert await outcomes(scheduler) == ["timed_out"]


async def test_a_thread_that_does_not_return_is_abandoned_when_that_was_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    release = threading.Event()
    async with Scheduler(concurrency=1) as scheduler:

        @scheduler.task(name="threaded")
        def threaded() -> None:
            release.wait(10)

        await scheduler.add_job(threaded, id="x", timeout=0.05, abandon_after=0.05)
        await scheduler.wait_job("x", timeout=5)
        assert await outcomes(scheduler) == ["timed_out"]
        assert scheduler.running() == []
        release.set()
    assert "abandoned" in caplog.text


# -- overlaps and what did not run -------------------------------------------------------------------------------------


async def test_fire_times_that_pass_while_a_run_is_under_way_are_one_decision(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps[:] = [lambda: clock.sleep(45), lambda: None]
    await scheduler.add_job("stepwise", every(10), id="x")
    await clock.advance(65)
    [decision] = await scheduler.history.decisions("x")
    assert (decision.reason, decision.first, decision.last, decision.count) == ("overlap", at(20), at(50), 4)
    assert (decision.more, decision.decided_at) == (False, at(55))
    assert [run.fire_time for run in await runs(scheduler)] == [at(10), at(60)]
    assert (await scheduler.history.stats("x")).skipped == 4


async def test_fire_times_that_pass_while_a_retry_is_pending_overlap_it(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps[:] = [raising(RetryLater(25)), lambda: None]
    await scheduler.add_job("stepwise", every(10), id="x")
    await clock.advance(41)
    assert [run.fire_time for run in await runs(scheduler)] == [at(10), at(10), at(40)]
    [decision] = await scheduler.history.decisions("x")
    assert (decision.reason, decision.first, decision.last, decision.count) == ("overlap", at(20), at(30), 2)


async def test_fire_times_that_pass_while_nobody_runs_are_coalesced_into_the_last(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps.append(lambda: None)
    await scheduler.add_job("stepwise", every(10), id="x")
    await scheduler.pause()
    await clock.advance(55)
    await scheduler.resume()
    await clock.advance(0)
    [run] = await runs(scheduler)
    assert (run.fire_time, run.started_at) == (at(50), at(55))
    [decision] = await scheduler.history.decisions("x")
    assert (decision.reason, decision.first, decision.last, decision.count) == (
        "coalesced",
        at(10),
        at(40),
        4,
    )
    assert (await scheduler.get_job("x")).next_fire_time == at(60)


async def test_years_of_missed_seconds_cost_one_run_and_one_decision(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps.append(lambda: None)
    await scheduler.add_job("stepwise", every(1), id="interval")
    await scheduler.add_job("stepwise", "* * * * * *", id="cron")
    await scheduler.pause()
    await clock.set(NEW_YEAR + timedelta(days=3650))
    await clock.advance(0.5)
    await scheduler.resume()
    await clock.advance(0)
    for id in ("interval", "cron"):
        assert len(await runs(scheduler, id)) == 1
        [decision] = await scheduler.history.decisions(id)
        assert decision.reason == "coalesced"
        assert decision.count >= 999
    [exact] = await scheduler.history.decisions("interval")
    assert (exact.count, exact.more) == (3650 * 86_400 - 1, False)
    [bounded] = await scheduler.history.decisions("cron")
    assert bounded.more is True


# -- middleware --------------------------------------------------------------------------------------------------------


async def test_middleware_surrounds_a_run_in_the_order_given(clock: ManualClock) -> None:
    steps: list[str] = []

    def make(name: str) -> Any:
        async def middleware(run: CurrentRun, call_next: Any) -> Any:
            steps.append(f"{name} in {run.job_id}")
            result = await (call_next() if name == "a" else call_next(run))
            steps.append(f"{name} out")
            return result

        return middleware

    async with Scheduler(clock=clock, middleware=[make("a"), make("b")]) as scheduler:

        @scheduler.task(name="t")
        async def task(word: str) -> str:
            steps.append(f"task {word}")
            return word

        await scheduler.add_job(task, id="x", args=["hi"])
        await clock.advance(1)
        assert (await runs(scheduler))[0].result == "hi"
    assert steps == ["a in x", "b in x", "task hi", "b out", "a out"]


async def test_middleware_sees_and_may_change_how_a_run_ends(clock: ManualClock) -> None:
    async def mend(run: CurrentRun, call_next: Any) -> Any:
        try:
            return f"changed {await call_next()}"
        except ValueError:
            return "mended"

    async with Scheduler(clock=clock, middleware=[mend]) as scheduler:

        @scheduler.task(name="t")
        async def task(fail: bool) -> str:
            if fail:
                raise ValueError
            return "result"

        await scheduler.add_job(task, id="good", args=[False])
        await scheduler.add_job(task, id="bad", args=[True])
        await clock.advance(1)
        assert (await runs(scheduler, "good"))[0].result == "changed result"
        assert (await runs(scheduler, "bad"))[0].result == "mended"


async def test_a_middleware_that_fails_fails_the_run(clock: ManualClock) -> None:
    async def broken(run: CurrentRun, call_next: Any) -> Any:
        raise RuntimeError("no entry")

    async with Scheduler(clock=clock, middleware=[broken]) as scheduler:
        called: list[int] = []

        @scheduler.task(name="t")
        async def task() -> None:
            called.append(1)

        await scheduler.add_job(task, id="x")
        await clock.advance(1)
        assert (await runs(scheduler))[0].error == "RuntimeError: no entry"
    assert called == []


async def test_run_job_goes_through_the_same_middleware_and_limits(clock: ManualClock) -> None:
    seen: list[str] = []

    async def note(run: CurrentRun, call_next: Any) -> Any:
        seen.append(run.job_id)
        return await call_next()

    async with Scheduler(clock=clock, middleware=[note], concurrency=1) as scheduler:

        @scheduler.task(name="t")
        async def task() -> None:
            assert len(scheduler.running()) == 1
            await clock.sleep(1)

        for id in ("a", "b"):
            await scheduler.add_job(task, every(600), id=id)
            await scheduler.run_job(id)
        await clock.advance(10)
        assert await outcomes(scheduler, "a") == await outcomes(scheduler, "b") == ["succeeded"]
    assert sorted(seen) == ["a", "b"]


async def test_middleware_counts_into_the_timeout(clock: ManualClock) -> None:
    async def slow(run: CurrentRun, call_next: Any) -> Any:
        await clock.sleep(10)
        return await call_next()

    async with Scheduler(clock=clock, middleware=[slow]) as scheduler:

        @scheduler.task(name="t")
        async def task() -> None: ...

        await scheduler.add_job(task, id="x", timeout=5)
        await clock.advance(20)
        assert await outcomes(scheduler) == ["timed_out"]
