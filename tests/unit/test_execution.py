"""Execution: failures, retries, timeouts, threads, and the middleware around it all."""

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncsched import (
    CurrentRun,
    Retry,
    Run,
    Scheduler,
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
            release.wait(60)

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
            release.wait(60)

        await scheduler.add_job(threaded, id="x", timeout=0.05, abandon_after=0.05)
        await scheduler.wait_job("x", timeout=50)
        assert await outcomes(scheduler) == ["timed_out"]
        assert scheduler.running() == []
        release.set()
    assert "abandoned" in caplog.text


async def test_a_thread_that_was_abandoned_takes_no_other_runs_place() -> None:
    release = threading.Event()
    async with Scheduler(concurrency=1) as scheduler:

        @scheduler.task(name="stuck")
        def stuck() -> None:
            release.wait(60)

        @scheduler.task(name="quick")
        def quick() -> str:
            return "ran"

        for _ in range(2):
            await scheduler.add_job(stuck, id="x", timeout=0.05, abandon_after=0.05, on_exhausted="remove")
            await scheduler.wait_job("x", timeout=50)
            receipt = await scheduler.enqueue(quick)
            assert await receipt.result(timeout=50) == "ran"
        release.set()


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
