"""The middleware that comes with the scheduler: circuit_breaker, log_runs and timeout."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncsched import (
    CurrentRun,
    DefinitionError,
    Finish,
    GiveUp,
    Retry,
    RetryLater,
    Run,
    Scheduler,
    Snooze,
    current_run,
    every,
    once,
)
from asyncsched.middleware import CircuitBreaker, CircuitOpen, circuit_breaker, log_runs, timeout
from asyncsched.testing import ManualClock
from tests.support.running import running
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def seconds(instant: datetime | None) -> float:
    assert instant is not None
    return (instant - NEW_YEAR).total_seconds()


class Service:
    """A task that fails while its service is down, and when it was called."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.error: BaseException | None = ValueError("down")
        self.takes_s = 0.0
        self.calls: list[float] = []

    async def __call__(self) -> str:
        self.calls.append(self.clock.monotonic())
        await self.clock.sleep(self.takes_s)
        if self.error is not None:
            raise self.error
        return "up"


@pytest.fixture
def service(clock: ManualClock) -> Service:
    return Service(clock)


@asynccontextmanager
async def guarded(
    clock: ManualClock, service: Service, breaker: Any, **options: Any
) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(clock=clock, middleware=[breaker], **options)
    scheduler.register(service, "service")
    async with running(scheduler, clock=clock):
        yield scheduler


async def all_runs(scheduler: Scheduler, id: str) -> list[Run]:
    """Oldest first."""
    return list(reversed(await scheduler.history.runs(id)))


async def fail_once(scheduler: Scheduler, clock: ManualClock, id: str) -> None:
    await scheduler.add_job("service", id=id)
    await clock.advance(0.1)


# -- circuit_breaker -----------------------------------------------------------------------------------------------------


async def test_a_task_that_fails_so_often_in_a_row_is_called_no_more_until_the_cooldown_is_over(
    clock: ManualClock, service: Service
) -> None:
    breaker = circuit_breaker(threshold=3, cooldown=60)
    async with guarded(clock, service, breaker) as scheduler:
        await scheduler.add_job("service", every(5), id="x")
        await clock.advance(300)
        assert service.calls == [5, 10, 15, 75, 135, 195, 255]
        assert breaker.state("service") == "open"


async def test_a_refused_run_comes_back_to_its_fire_time_and_has_spent_no_attempt(
    clock: ManualClock, service: Service
) -> None:
    async with guarded(clock, service, circuit_breaker(2, 60)) as scheduler:
        await fail_once(scheduler, clock, "a")
        await fail_once(scheduler, clock, "b")
        await clock.advance(9.8)
        await scheduler.add_job("service", id="x", retry=Retry(max_attempts=2))
        await clock.advance(1)
        service.error = None
        assert len(service.calls) == 2
        await clock.advance(100)
        refused, done = await all_runs(scheduler, "x")
        assert (refused.outcome, done.outcome, done.result) == ("cancelled", "succeeded", "up")
        assert refused.fire_time == done.fire_time
        assert (refused.attempt, done.attempt) == (1, 1)
        assert "circuit of task 'service' is open (failures in a row: 2)" in (refused.error or "")
        assert seconds(done.started_at) == pytest.approx(60.1, abs=0.1)


async def test_of_a_recurring_job_every_fire_time_ran_or_has_a_reason(
    clock: ManualClock, service: Service
) -> None:
    async with guarded(clock, service, circuit_breaker(1, 60)) as scheduler:
        await scheduler.add_job("service", every(10), id="x")
        await clock.advance(25)
        service.error = None
        await clock.advance(76)
        ran = {seconds(run.fire_time) for run in await all_runs(scheduler, "x") if run.outcome != "cancelled"}
        for decision in await scheduler.history.decisions("x"):
            assert decision.reason == "overlap"
            ran |= {seconds(decision.first) + 10 * n for n in range(decision.count)}
        assert ran == {10 * n for n in range(1, 11)}
        # The refused fire time itself, after the cooldown.
        assert service.calls[:2] == [10, 70]
        [came_back] = [run for run in await all_runs(scheduler, "x") if seconds(run.fire_time) == 20][1:]
        assert seconds(came_back.started_at) == 70


async def test_when_the_cooldown_is_over_one_run_goes_through_and_the_others_wait_for_it(
    clock: ManualClock, service: Service
) -> None:
    breaker = circuit_breaker(threshold=1, cooldown=100)
    async with guarded(clock, service, breaker) as scheduler:
        await fail_once(scheduler, clock, "first")
        for n in range(5):
            await scheduler.add_job("service", id=f"x{n}")
        await clock.advance(50)
        service.error, service.takes_s = None, 25
        await clock.advance(55)
        assert breaker.state("service") == "half_open"
        for n in range(3):
            await scheduler.add_job("service", id=f"late{n}")
        await clock.advance(15)
        assert [call for call in service.calls if call > 1] == [pytest.approx(100)]
        await clock.advance(60)
        assert breaker.state("service") == "closed"
        ids = [*(f"x{n}" for n in range(5)), *(f"late{n}" for n in range(3))]
        ends = [[run.outcome for run in await all_runs(scheduler, id)][-1] for id in ids]
        assert ends == ["succeeded"] * 8


async def test_where_the_probe_is_quick_each_of_the_others_is_refused_once(
    clock: ManualClock, service: Service
) -> None:
    async with guarded(clock, service, circuit_breaker(1, 100)) as scheduler:
        await fail_once(scheduler, clock, "first")
        service.error = None
        for n in range(5):
            await scheduler.add_job("service", id=f"x{n}")
        await clock.advance(120)
        outcomes = [[run.outcome for run in await all_runs(scheduler, f"x{n}")] for n in range(5)]
        assert outcomes == [["cancelled", "succeeded"]] * 5
        assert [round(call) for call in service.calls] == [0, 100, 110, 110, 110, 110]


async def test_a_run_that_comes_back_a_little_early_is_not_sent_away_again(
    clock: ManualClock, service: Service
) -> None:
    async with guarded(clock, service, circuit_breaker(1, 100)) as scheduler:
        await fail_once(scheduler, clock, "first")
        for id, delay in (("early", 98.5), ("nearly", 99.5)):
            await scheduler.add_job("service", once(delay=delay), id=id)
        await clock.advance(99.8)
        assert [run.outcome for run in await all_runs(scheduler, "early")] == ["cancelled"]
        assert [run.outcome for run in await all_runs(scheduler, "nearly")] == ["failed"]


async def test_a_probe_that_fails_opens_the_circuit_for_another_cooldown(
    clock: ManualClock, service: Service
) -> None:
    breaker = circuit_breaker(threshold=2, cooldown=60)
    async with guarded(clock, service, breaker) as scheduler:
        await scheduler.add_job("service", every(1), id="x")
        await clock.advance(65)
        assert service.calls == [1, 2, 62]
        assert breaker.state("service") == "open"
        service.error = None
        await clock.advance(60)
        assert service.calls[:5] == [1, 2, 62, 122, 123]
        assert breaker.state("service") == "closed"
        service.error = ValueError()
        await clock.advance(2)
        assert breaker.state("service") == "open"


async def test_a_success_in_between_starts_the_count_anew(clock: ManualClock, service: Service) -> None:
    breaker = circuit_breaker(threshold=2, cooldown=60)
    async with guarded(clock, service, breaker) as scheduler:
        for error in (ValueError(), None, ValueError(), None):
            service.error = error
            await fail_once(scheduler, clock, f"{len(service.calls)}")
        assert len(service.calls) == 4
        assert breaker.state("service") == "closed"


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (ValueError(), True),
        (KeyError(), False),
        (RetryLater(1000), True),
        (GiveUp(), True),
        (Snooze(NEW_YEAR + timedelta(days=1)), False),
        (Finish("done"), False),
    ],
    ids=repr,
)
async def test_only_what_says_that_the_task_is_ill_counts(
    clock: ManualClock, service: Service, error: Exception, counts: bool
) -> None:
    breaker = circuit_breaker(threshold=1, cooldown=60, on=(ValueError,))
    async with guarded(clock, service, breaker) as scheduler:
        service.error = error
        await fail_once(scheduler, clock, "x")
        assert breaker.state("service") == ("open" if counts else "closed")


async def test_a_timed_out_run_counts(clock: ManualClock, service: Service) -> None:
    breaker = circuit_breaker(threshold=1, cooldown=60)
    async with guarded(clock, service, breaker) as scheduler:
        service.takes_s = 3600
        await scheduler.add_job("service", id="x", timeout=5)
        await clock.advance(6)
        assert breaker.state("service") == "open"


async def test_a_run_that_ends_by_a_shutdown_says_nothing(clock: ManualClock, service: Service) -> None:
    breaker = circuit_breaker(threshold=1, cooldown=60)
    async with guarded(clock, service, breaker) as scheduler:
        service.takes_s = 3600
        await scheduler.add_job("service", id="x")
        await clock.advance(1)
    assert len(service.calls) == 1
    assert breaker.state("service") == "closed"


async def test_a_task_that_swallows_its_cancellation_has_not_succeeded_by_that(
    clock: ManualClock, service: Service
) -> None:
    breaker = circuit_breaker(threshold=2, cooldown=60)
    async with guarded(clock, service, breaker) as scheduler:

        @scheduler.task(name="polite")
        async def polite(mode: str) -> None:
            if mode == "fail":
                raise ValueError
            with contextlib.suppress(asyncio.CancelledError):
                await clock.sleep(1000)

        await scheduler.add_job(polite, id="a", args=["fail"])
        await clock.advance(1)
        await scheduler.add_job(polite, every(10), id="b", args=["stay"], overlap="cancel_running")
        await clock.advance(25)
        assert await all_runs(scheduler, "b")
        await scheduler.add_job(polite, id="c", args=["fail"])
        await clock.advance(1)
        assert breaker.state("polite") == "open"


async def test_a_probe_that_was_cancelled_leaves_its_place_to_the_next(
    clock: ManualClock, service: Service
) -> None:
    breaker = circuit_breaker(threshold=1, cooldown=60)
    async with guarded(clock, service, breaker) as scheduler:
        await scheduler.add_job("service", every(60), id="x", overlap="cancel_running")
        await clock.advance(61)
        service.takes_s, service.error = 1000, None
        # The probe gives way to its next fire time, again and again; that one is let through.
        await clock.advance(180)
        assert service.calls == [60, 120, 180, 240]
        assert breaker.state("service") == "half_open"


async def test_a_probe_that_does_not_stop_when_it_is_cancelled_blocks_nobody_for_ever(
    clock: ManualClock, service: Service
) -> None:
    release = asyncio.Event()
    breaker = circuit_breaker(threshold=1, cooldown=60)
    async with guarded(clock, service, breaker) as scheduler:

        @scheduler.task(name="stubborn")
        async def stubborn(mode: str) -> None:
            if mode == "fail":
                raise ValueError
            while mode == "hang" and not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue

        await scheduler.add_job(stubborn, id="a", args=["fail"])
        await clock.advance(61)
        await scheduler.add_job(stubborn, id="b", args=["hang"], timeout=5, cancel_grace=5)
        await clock.advance(1)
        assert breaker.state("stubborn") == "half_open"
        await scheduler.add_job(stubborn, id="c", args=["work"])
        await clock.advance(60)
        assert [run.outcome for run in await all_runs(scheduler, "b")] == ["timed_out"]
        assert [run.outcome for run in await all_runs(scheduler, "c")][-1] == "succeeded"
        assert breaker.state("stubborn") == "closed"
        release.set()
        await clock.advance(1)
        assert breaker.state("stubborn") == "closed"


async def test_what_began_before_the_circuit_opened_does_not_close_it(
    clock: ManualClock, service: Service
) -> None:
    breaker = circuit_breaker(threshold=1, cooldown=60)
    async with guarded(clock, service, breaker) as scheduler:
        service.takes_s, service.error = 10, None
        await scheduler.add_job("service", id="slow")
        await clock.advance(1)
        service.takes_s, service.error = 0, ValueError()
        await fail_once(scheduler, clock, "quick")
        service.error = None
        await clock.advance(20)
        assert [run.outcome for run in await all_runs(scheduler, "slow")] == ["succeeded"]
        assert breaker.state("service") == "open"


async def test_each_task_has_a_circuit_of_its_own(clock: ManualClock, service: Service) -> None:
    breaker = circuit_breaker(threshold=1, cooldown=60)
    async with guarded(clock, service, breaker) as scheduler:

        @scheduler.task(name="healthy")
        async def healthy() -> str:
            return "well"

        await fail_once(scheduler, clock, "x")
        await scheduler.add_job(healthy, id="y")
        await clock.advance(1)
        assert (breaker.state("service"), breaker.state("healthy")) == ("open", "closed")
        assert [run.outcome for run in await all_runs(scheduler, "y")] == ["succeeded"]


async def test_a_circuit_can_be_closed_by_hand(clock: ManualClock, service: Service) -> None:
    breaker = circuit_breaker(threshold=1, cooldown=60)
    async with guarded(clock, service, breaker) as scheduler:
        await fail_once(scheduler, clock, "a")
        breaker.reset("another")
        assert breaker.state("service") == "open"
        breaker.reset()
        assert breaker.state("service") == "closed"
        service.error = None
        await fail_once(scheduler, clock, "b")
        assert len(service.calls) == 2


async def test_middleware_further_out_sees_that_the_circuit_is_open(
    clock: ManualClock, service: Service
) -> None:
    seen: list[BaseException] = []

    async def look(run: CurrentRun, call_next: Any) -> Any:
        try:
            return await call_next()
        except CircuitOpen as refusal:
            seen.append(refusal)
            raise

    scheduler = Scheduler(clock=clock, middleware=[look, circuit_breaker(1, 60)])
    scheduler.register(service, "service")
    async with running(scheduler, clock=clock):
        for id in "ab":
            await fail_once(scheduler, clock, id)
    [refusal] = seen
    assert "failures in a row: 1" in str(refusal)


@pytest.mark.parametrize(
    "make",
    [
        lambda: circuit_breaker(0, 60),
        lambda: circuit_breaker(True, 60),
        lambda: circuit_breaker(3, 0),
        lambda: circuit_breaker(3, 60, on=("ValueError",)),  # type: ignore[arg-type]  # refused at run time too
        lambda: timeout(0),
    ],
)
def test_options_that_can_never_work_are_refused(make: Callable[[], CircuitBreaker]) -> None:
    with pytest.raises(DefinitionError):
        make()


# -- log_runs ------------------------------------------------------------------------------------------------------------


async def logged(
    clock: ManualClock, caplog: pytest.LogCaptureFixture, function: Any, **job: Any
) -> list[Any]:
    """(level, message) of each record about a run of *function*."""
    logger = logging.getLogger("of.the.application")
    scheduler = Scheduler(clock=clock, middleware=[log_runs(logger)])
    scheduler.register(function, "task")
    with caplog.at_level(logging.DEBUG, "of.the.application"):
        async with running(scheduler, clock=clock):
            await scheduler.add_job("task", id="x", **job)
            await clock.advance(30)
    assert all(vars(record)["job_id"] == "x" for record in caplog.records if record.name == logger.name)
    return [
        (record.levelname, record.getMessage().partition(" of task task ")[2])
        for record in caplog.records
        if record.name == logger.name
    ]


async def test_the_beginning_and_the_end_of_a_run_are_logged_without_what_it_was_given(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def task(password: str) -> str:
        await current_run().clock.sleep(2.5)
        return password

    lines = await logged(clock, caplog, task, args=["sesame"])
    assert lines == [("INFO", "begins, attempt 1"), ("INFO", "succeeded after 2.500 s")]
    assert "sesame" not in caplog.text


@pytest.mark.parametrize(
    ("error", "level", "text"),
    [
        (ValueError("two\nlines"), "WARNING", "failed (ValueError: two lines) after 0.000 s"),
        (KeyError(), "WARNING", "failed (KeyError) after 0.000 s"),
        (GiveUp("no use"), "WARNING", "failed (GiveUp: no use) after 0.000 s"),
        (Finish("done"), "INFO", "ended: finished after 0.000 s"),
    ],
    ids=repr,
)
async def test_how_a_run_ended_is_logged(
    clock: ManualClock, caplog: pytest.LogCaptureFixture, error: Exception, level: str, text: str
) -> None:
    async def task() -> None:
        raise error

    assert (await logged(clock, caplog, task))[1:] == [(level, text)]


async def test_a_timeout_is_logged(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    async def task() -> None:
        await clock.sleep(3600)

    assert (await logged(clock, caplog, task, timeout=3))[1:] == [("WARNING", "timed out after 3.000 s")]


# -- timeout -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("of_job", "ends"), [(None, 10), (3, 3), (60, 10)])
async def test_no_run_takes_longer_than_the_ceiling_whatever_its_job_says(
    clock: ManualClock, of_job: float | None, ends: float
) -> None:
    scheduler = Scheduler(clock=clock, middleware=[timeout(10)])

    @scheduler.task(name="slow")
    async def slow() -> None:
        await clock.sleep(3600)

    async with running(scheduler, clock=clock):
        await scheduler.add_job(slow, id="x", timeout=of_job)
        await clock.advance(100)
        [run] = await all_runs(scheduler, "x")
        assert (run.outcome, run.error) == (
            "timed_out",
            f"RunTimeout: took longer than its timeout of {ends} s",
        )
        assert run.duration == ends


async def test_a_run_that_ends_in_time_is_left_alone(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock, middleware=[timeout(timedelta(seconds=10))])

    @scheduler.task(name="quick")
    async def quick() -> str:
        await clock.sleep(9.9)
        return "done"

    async with running(scheduler, clock=clock):
        await clock.advance(1)
        sleepers = clock.sleepers
        await scheduler.add_job(quick, id="x")
        await clock.advance(9.95)
        assert [run.result for run in await all_runs(scheduler, "x")] == ["done"]
        assert clock.sleepers == sleepers


async def test_a_thread_is_asked_to_stop_at_the_ceiling_and_keeps_its_slot_until_it_does() -> None:
    seen: list[bool] = []
    release = threading.Event()

    def stubborn() -> None:
        run = current_run()
        while not run.cancelled:
            release.wait(0.01)
        seen.append(run.cancelled)
        release.wait(20)

    scheduler = Scheduler(middleware=[timeout(0.1)])
    scheduler.register(stubborn, "stubborn")
    async with running(scheduler):
        await scheduler.add_job("stubborn", id="x")
        await eventually(lambda: seen)
        assert len(scheduler.running("x")) == 1
        release.set()
        await scheduler.wait_job("x", timeout=20)
        [run] = await all_runs(scheduler, "x")
        assert run.outcome == "timed_out"
