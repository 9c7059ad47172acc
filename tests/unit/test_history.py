"""History: finished runs, decisions, counts that outlive them, and what retention removes."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from asyncsched import (
    DefinitionError,
    JobSpec,
    Retention,
    RunLookupError,
    Scheduler,
    SerializationError,
    Stats,
    every,
    once,
)
from asyncsched.contract import Entry
from asyncsched.testing import ManualClock
from tests.support.running import running
from tests.support.stores import SharedMemory
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NEW_YEAR + timedelta(seconds=seconds)


async def alternating(scheduler: Scheduler, clock: ManualClock, **options: Any) -> None:
    """The job ``x`` takes 1, 2, 3 ... s; every third run fails."""
    n = 0

    @scheduler.task(name="alternating")
    async def task() -> int:
        nonlocal n
        n += 1
        await clock.sleep(n)
        if n % 3 == 0:
            raise ValueError(f"no {n}")
        return n

    await scheduler.add_job(task, every(60), id="x", **options)


async def test_runs_come_newest_first_and_page_by_page(scheduler: Scheduler, clock: ManualClock) -> None:
    await alternating(scheduler, clock)
    await clock.advance(7 * 60 + 30)
    everything = await scheduler.history.runs()
    assert [run.fire_time for run in everything] == [at(60 * n) for n in range(7, 0, -1)]
    pages = await scheduler.history.runs("x", limit=3)
    while page := await scheduler.history.runs("x", limit=3, before=pages[-1]):
        pages += page
    assert pages == everything


async def test_runs_of_one_job_or_of_all(scheduler: Scheduler, clock: ManualClock) -> None:
    await alternating(scheduler, clock)
    await scheduler.add_job("alternating", once(delay=5), id="y")
    await clock.advance(90)
    assert {run.job_id for run in await scheduler.history.runs()} == {"x", "y"}
    assert {run.job_id for run in await scheduler.history.runs("y")} == {"y"}
    assert await scheduler.history.runs("nowhere") == []


@pytest.mark.parametrize("limit", [-1, 2.5])
async def test_a_limit_is_no_less_than_nothing(scheduler: Scheduler, clock: ManualClock, limit: Any) -> None:
    await alternating(scheduler, clock)
    await clock.advance(70)
    for read in (scheduler.history.runs, scheduler.history.decisions):
        assert await read(limit=0) == []
        with pytest.raises(DefinitionError, match="limit must be 0 or more"):
            await read(limit=limit)


async def test_a_run_is_kept_as_it_was(scheduler: Scheduler, clock: ManualClock) -> None:
    await alternating(scheduler, clock)
    await clock.advance(190)
    failed = (await scheduler.history.runs())[0]
    assert failed == await scheduler.history.run(failed.id)
    assert (failed.job_id, failed.task, failed.instance, failed.attempt) == ("x", "alternating", "here", 1)
    assert (failed.fire_time, failed.due_at, failed.started_at) == (at(180), at(180), at(180))
    assert (failed.finished_at, failed.duration) == (at(183), 3.0)
    assert (failed.outcome, failed.error, failed.result) == ("failed", "ValueError: no 3", None)
    assert "ValueError: no 3" in (failed.traceback or "")
    assert failed.id == f"x@{failed.fence}"


@pytest.mark.parametrize("id", ["", "x", "x@", "x@99", "y@1", "@", "x@one", "x@-1", "x@²", "x@" + "9" * 5000])
async def test_a_run_that_is_not_there_is_a_lookup_error(
    scheduler: Scheduler, clock: ManualClock, id: str
) -> None:
    await alternating(scheduler, clock)
    await clock.advance(70)
    with pytest.raises(RunLookupError):
        await scheduler.history.run(id)


async def test_a_job_id_may_hold_the_mark_of_run_ids(scheduler: Scheduler, clock: ManualClock) -> None:
    @scheduler.task(name="t")
    async def task() -> None: ...

    await scheduler.add_job(task, id="me@example.org@2")
    await clock.advance(1)
    [run] = await scheduler.history.runs()
    assert (await scheduler.history.run(run.id)).job_id == "me@example.org@2"


async def test_stats_count_and_measure(scheduler: Scheduler, clock: ManualClock) -> None:
    await alternating(scheduler, clock)
    assert await scheduler.history.stats("x") == Stats()
    await clock.advance(4 * 60 + 30)
    assert await scheduler.history.stats("x") == Stats(
        total=4,
        succeeded=3,
        failed=1,
        skipped=0,
        last_run=at(244),
        last_success=at(244),
        last_failure=at(183),
        last_error="ValueError: no 3",
        mean_duration=2.5,
        min_duration=1.0,
        max_duration=4.0,
    )


async def test_stats_of_all_jobs_are_their_sum(scheduler: Scheduler, clock: ManualClock) -> None:
    await alternating(scheduler, clock)

    @scheduler.task(name="t")
    async def task() -> None: ...

    for _ in range(5):
        await scheduler.add_job(task)
    await clock.advance(4 * 60 + 30)
    stats = await scheduler.history.stats()
    assert (stats.total, stats.succeeded, stats.failed) == (9, 8, 1)
    assert (stats.min_duration, stats.max_duration, stats.last_error) == (0.0, 4.0, "ValueError: no 3")


async def test_runs_that_overlap_are_counted_for_their_job_and_for_all(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock, defaults={"overlap": "allow"})

    @scheduler.task(name="t")
    async def task(seconds: float) -> None:
        await clock.sleep(seconds)

    async with running(scheduler, clock=clock):
        await scheduler.add_job(task, every(60), id="by default", args=[100])
        await scheduler.add_job(task, every(60), id="itself", args=[100], overlap="allow")
        await scheduler.add_job(task, every(60), id="skips", args=[100], overlap="skip")
        await clock.advance(305)
        counts = [await scheduler.history.stats(id) for id in ("by default", "itself", "skips")]
        assert [(stats.succeeded, stats.skipped) for stats in counts] == [(3, 0), (3, 0), (2, 2)]
        of_all = await scheduler.history.stats()
        assert (of_all.total, of_all.succeeded, of_all.skipped) == (8, 8, 2)


async def test_stats_of_a_one_shot_that_is_gone_come_from_the_log(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    @scheduler.task(name="t")
    async def task() -> None: ...

    await scheduler.add_job(task, id="x")
    await clock.advance(1)
    stats = await scheduler.history.stats("x")
    assert (stats.total, stats.succeeded) == (1, 1)


async def test_pruning_keeps_the_newest_of_each_job_and_changes_no_stats(clock: ManualClock) -> None:
    async with Scheduler(clock=clock, retention=Retention(per_job=2, every=10)) as scheduler:
        await alternating(scheduler, clock)
        await clock.advance(5 * 60 + 50)
        assert [run.fire_time for run in await scheduler.history.runs("x")] == [at(300), at(240)]
        stats = await scheduler.history.stats("x")
        assert (stats.total, stats.succeeded, stats.failed) == (5, 4, 1)
        assert stats.last_error == "ValueError: no 3"


async def test_pruning_removes_what_is_older_than_the_age(clock: ManualClock) -> None:
    async with Scheduler(
        clock=clock, retention=Retention(age=timedelta(minutes=3), per_job=None, every=10)
    ) as scheduler:
        await alternating(scheduler, clock)
        await clock.advance(10 * 60 + 30)
        assert [run.fire_time for run in await scheduler.history.runs("x")] == [at(600), at(540), at(480)]


async def test_without_bounds_everything_is_kept(clock: ManualClock) -> None:
    retention = Retention(age=None, per_job=None, every=10)
    async with Scheduler(clock=clock, retention=retention) as scheduler:
        await alternating(scheduler, clock)
        await clock.advance(5 * 60 + 50)
        assert len(await scheduler.history.runs("x")) == 5


async def test_who_writes_no_history_takes_no_others_away_and_has_old_leases_forgotten(
    clock: ManualClock,
) -> None:
    class Noting(SharedMemory):
        async def prune(self, older_than_s: float | None, per_job: int | None, limit: int) -> int:
            asked.append((older_than_s, per_job))
            return await super().prune(older_than_s, per_job, limit)

    asked = list[tuple[float | None, int | None]]()
    store, retention = Noting(), Retention(age=60, per_job=2, every=10)
    async with Scheduler(store, clock=clock, retention=retention, history=False):
        await clock.advance(30)
    assert set(asked) == {(None, None)}
    asked.clear()
    async with Scheduler(store, clock=clock, retention=retention):
        await clock.advance(30)
    assert set(asked) == {(60.0, 2)}


@pytest.mark.parametrize("age", [timedelta(hours=1), None])
async def test_a_failed_one_shot_is_kept_until_retention_removes_it(
    clock: ManualClock, age: timedelta | None
) -> None:
    async with Scheduler(clock=clock, retention=Retention(age=age)) as scheduler:

        @scheduler.task(name="fails")
        async def fails() -> None:
            raise ValueError

        await scheduler.add_job(fails, id="x")
        await clock.advance(3599)
        assert (await scheduler.get_job("x")).state == "failed"
        await clock.advance(2)
        assert len(await scheduler.get_jobs()) == (0 if age else 1)
        assert len(await scheduler.history.runs("x")) <= 1


async def test_without_history_nothing_is_written_down_but_the_counts(clock: ManualClock) -> None:
    async with Scheduler(clock=clock, history=False) as scheduler:
        await alternating(scheduler, clock)
        await clock.advance(190)
        assert await scheduler.history.runs() == []
        assert (await scheduler.history.stats("x")).total == 3


async def test_decisions_of_one_job_or_of_all(scheduler: Scheduler, clock: ManualClock) -> None:
    @scheduler.task(name="t")
    async def task() -> None: ...

    for id in "xy":
        await scheduler.add_job(task, every(10), id=id)
    await scheduler.pause()
    await clock.advance(35)
    await scheduler.resume()
    await clock.advance(0)
    assert [decision.count for decision in await scheduler.history.decisions("x")] == [2]
    assert {decision.job_id for decision in await scheduler.history.decisions()} == {"x", "y"}
    assert len(await scheduler.history.decisions(limit=1)) == 1


async def test_history_looks_into_every_store(scheduler: Scheduler, clock: ManualClock) -> None:
    @scheduler.task(name="t")
    async def task() -> None: ...

    await scheduler.add_store("other", "memory://")
    await scheduler.add_job(task, once(delay=1), id="a")
    await scheduler.add_job(task, once(delay=2), id="b", store="other")
    await clock.advance(3)
    assert [run.job_id for run in await scheduler.history.runs()] == ["b", "a"]
    assert (await scheduler.history.stats()).total == 2
    [run] = await scheduler.history.runs("b")
    assert await scheduler.history.run(run.id) == run


async def test_an_entry_that_cannot_be_read_hides_no_other(clock: ManualClock) -> None:
    class Damaged(SharedMemory):
        async def runs(self, *args: Any, **kwargs: Any) -> list[Entry]:
            found = await super().runs(*args, **kwargs)
            return [
                replace(e, body=b"\x92\x63\x80") if e.fire_at == at(120).timestamp() else e for e in found
            ]

    scheduler = Scheduler(Damaged(), clock=clock)
    async with running(scheduler, clock=clock):
        await alternating(scheduler, clock, overlap="skip")
        await clock.advance(200)
        last, newer, first = await scheduler.history.runs("x")
        assert (last.outcome, first.outcome, newer.outcome) == ("failed", "succeeded", None)
        assert (newer.fire_time, newer.fence) == (at(120), 2)
        assert "cannot be read: stored in format 99" in (newer.error or "")
        assert await scheduler.history.run(newer.id) == newer
        await scheduler.remove_job("x")
        # Of a job that is gone the log alone tells.
        assert (await scheduler.history.stats("x")).total == 2


async def test_a_decision_that_cannot_be_read_is_shown_as_one(clock: ManualClock) -> None:
    class Damaged(SharedMemory):
        async def runs(self, *args: Any, **kwargs: Any) -> list[Entry]:
            return [replace(e, body=b"\xc1") for e in await super().runs(*args, **kwargs)]

    scheduler = Scheduler(Damaged(), clock=clock)
    async with running(scheduler, clock=clock):

        @scheduler.task(name="long")
        async def long() -> None:
            await clock.sleep(15)

        await scheduler.add_job(long, every(10), id="x", overlap="skip")
        await clock.advance(40)
        [decision, *_] = await scheduler.history.decisions("x")
        assert decision.first == decision.last
        assert "cannot be read" in (decision.detail or "")
        assert (await scheduler.history.stats("x")).skipped > 0
        receipt = await scheduler.enqueue(long)
        await clock.advance(20)
        for asked in (receipt.status, receipt.result):
            with pytest.raises(SerializationError, match=r"how run .* has ended is not known"):
                await asked()


@pytest.mark.parametrize("options", [{"per_job": -1}, {"age": -1}, {"every": 0}, {"age": "7d"}])
def test_a_retention_that_can_never_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Retention"):
        Retention(**options)


async def test_runs_read_one_by_one_behind_the_last_are_each_read_once() -> None:
    async with Scheduler() as scheduler:
        scheduler.register(nothing, "nothing")
        await scheduler.add_jobs([JobSpec("nothing", id=f"job-{n}") for n in range(100)])
        await eventually(lambda: has_runs(scheduler, 100))
        read: list[str] = []
        last = None
        while page := await scheduler.history.runs(limit=1, before=last):
            [last] = page
            read.append(last.id)
            assert len(read) <= 100
    assert len(set(read)) == len(read) == 100


async def has_runs(scheduler: Scheduler, count: int) -> bool:
    return len(await scheduler.history.runs(limit=count)) == count


async def nothing() -> None: ...
