"""Runs: what a task sees of its own, how it steers its job, and how runs end."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncsched import (
    Carry,
    CurrentRun,
    DefinitionError,
    Event,
    Finish,
    GiveUp,
    NoCurrentRun,
    Retry,
    RetryLater,
    Run,
    RunFinished,
    RunSkipped,
    RunSucceeded,
    Scheduler,
    SerializationError,
    Skip,
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
    fields = (record.job_id, record.task, record.attempt, record.fence)  # type: ignore[attr-defined]  # the fields that the run's logger adds
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


async def test_skip_puts_a_decision_in_the_place_of_a_run_and_the_job_goes_on(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    heard: list[Event] = []
    scheduler.on(Event, heard.append)
    steps[:] = [raising(Skip("holiday", "nobody is here")), lambda: "done"]
    await scheduler.add_job("stepwise", every(60), id="x", max_runs=1)
    await clock.advance(121)
    [run] = await runs(scheduler)
    assert (run.fire_time, run.result) == (at(120), "done")
    [skipped, _] = reversed(await scheduler.history.decisions("x"))
    assert (skipped.reason, skipped.detail, skipped.first, skipped.count) == (
        "holiday", "nobody is here", at(60), 1,
    )  # fmt: skip
    stats = await scheduler.history.stats("x")
    assert (stats.succeeded, stats.failed) == (1, 0)
    told = [event for event in heard if isinstance(event, RunSkipped | RunFinished)]
    assert [type(event) for event in told] == [RunSkipped, RunSkipped, RunSucceeded]


@pytest.mark.parametrize("put_off", [None, 5])
async def test_skip_is_a_decision_about_one_fire_time_of_a_job_whose_runs_overlap(
    scheduler: Scheduler, clock: ManualClock, steps: Steps, put_off: float | None
) -> None:
    steps[:] = [raising(Skip("holiday", put_off=put_off)), lambda: "done"]
    await scheduler.add_job("stepwise", every(60), id="x", overlap="allow")
    await clock.advance(121)
    assert [(run.fire_time, run.result) for run in await runs(scheduler)] == [(at(120), "done")]
    [skipped] = await scheduler.history.decisions("x")
    assert (skipped.reason, skipped.first, skipped.count) == ("holiday", at(60), 1)


async def test_what_has_no_next_fire_time_is_put_off_by_skip(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    steps[:] = [raising(Skip(put_off=5)), raising(Skip(put_off=5)), lambda: "done"]
    await scheduler.add_job("stepwise", id="x", retry=Retry(max_attempts=1))
    await clock.advance(9)
    assert (await scheduler.get_job("x")).next_fire_time == at(10)
    await clock.advance(1)
    assert [(run.outcome, run.attempt) for run in await runs(scheduler)] == [
        ("cancelled", 1), ("cancelled", 1), ("succeeded", 1),
    ]  # fmt: skip
    assert await scheduler.history.decisions("x") == []


async def test_a_further_attempt_is_put_off_by_skip(
    scheduler: Scheduler, clock: ManualClock, steps: Steps
) -> None:
    """Its fire time has run."""
    steps[:] = [raising(ValueError()), raising(Skip()), lambda: "done"]
    await scheduler.add_job("stepwise", every(60), id="x", retry=Retry(base=1, max_attempts=2))
    await clock.advance(65)
    assert [(run.outcome, run.fire_time) for run in await runs(scheduler)] == [
        ("failed", at(60)), ("cancelled", at(60)), ("succeeded", at(60)),
    ]  # fmt: skip
    assert await scheduler.history.decisions("x") == []


@pytest.mark.parametrize("reason", ["", "run", "lost", "Two words", 5])
def test_the_reason_of_a_skip_is_a_word(reason: str) -> None:
    with pytest.raises(DefinitionError, match="lower-case word"):
        Skip(reason)


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
