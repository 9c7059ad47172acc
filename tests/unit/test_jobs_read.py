"""Reading jobs: by id, by filter, in order and page by page; and waiting for them."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncsched import (
    DefinitionError,
    Job,
    JobLookupError,
    MemoryStore,
    Run,
    Scheduler,
    UnknownStoreError,
    every,
    manual,
    once,
)
from asyncsched.contract import Record
from asyncsched.testing import ManualClock
from tests.support.naming import shown

pytestmark = pytest.mark.anyio

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


async def nothing() -> None:
    """Do nothing."""


async def fails() -> None:
    raise ValueError("spoilt")


def ids(jobs: list[Job]) -> list[str]:
    return [job.id for job in jobs]


@pytest.fixture
async def many(scheduler: Scheduler, clock: ManualClock) -> AsyncIterator[Scheduler]:
    """One job in each state, in two queues, with tags."""
    gate = asyncio.Event()

    @scheduler.task(name="long")
    async def long() -> None:
        await gate.wait()

    scheduler.register(nothing, "nothing")
    scheduler.register(fails, "fails")
    await scheduler.add_job("long", id="a/running", tags=["red"])
    await scheduler.add_job("fails", id="a/failed", tags=["red", "green"])
    await clock.advance(1)
    await scheduler.add_job("nothing", every(60), id="b/late", tags=["green"])
    await scheduler.add_job("nothing", every(30), id="b/soon", queue="mail")
    await scheduler.add_job("nothing", every(5), id="a/paused", queue="mail", paused=True)
    await scheduler.add_job("nothing", manual(), id="b/manual")
    yield scheduler
    gate.set()


# -- by id -------------------------------------------------------------------------------------------------------------


async def test_a_job_that_is_not_there_is_a_lookup_error_that_names_it(scheduler: Scheduler) -> None:
    with pytest.raises(JobLookupError, match="nowhere") as caught:
        await scheduler.get_job("nowhere")
    assert (caught.value.job_id, caught.value.store) == ("nowhere", "default")
    assert isinstance(caught.value, LookupError)


@pytest.mark.parametrize("id", ["", "a#b", "#queue/default", "\0", 5, None])
async def test_what_can_be_no_id_is_not_there_either(scheduler: Scheduler, id: Any) -> None:
    await scheduler.pause(queue="default", everywhere=True)
    with pytest.raises(JobLookupError):
        await scheduler.get_job(id)


async def test_a_job_is_looked_for_in_the_named_store_only(scheduler: Scheduler) -> None:
    await scheduler.add_store("other", "memory://")
    await scheduler.add_job(nothing, every(60), id="x", store="other")
    assert (await scheduler.get_job("x", store="other")).store == "other"
    with pytest.raises(JobLookupError) as caught:
        await scheduler.get_job("x", store="default")
    assert caught.value.store == "default"
    with pytest.raises(UnknownStoreError):
        await scheduler.get_job("x", store="nowhere")


# -- filters and order -------------------------------------------------------------------------------------------------


async def test_jobs_come_by_next_fire_time_and_paused_ones_last(many: Scheduler) -> None:
    jobs = await many.get_jobs()
    assert ids(jobs)[:2] == ["b/soon", "b/late"]
    assert ids(jobs)[-1] == "a/paused"
    assert set(ids(jobs)[2:-1]) == {"a/running", "a/failed", "b/manual"}


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ({"queue": "mail"}, {"b/soon", "a/paused"}),
        ({"queue": "nowhere"}, set()),
        ({"task": "long"}, {"a/running"}),
        ({"tags": ["green"]}, {"a/failed", "b/late"}),
        ({"tags": ["red", "green"]}, {"a/failed"}),
        ({"id_prefix": "a/"}, {"a/running", "a/failed", "a/paused"}),
        ({"id_prefix": ""}, {"a/running", "a/failed", "a/paused", "b/late", "b/soon", "b/manual"}),
        ({"state": "scheduled"}, {"b/late", "b/soon", "b/manual"}),
        ({"state": "running"}, {"a/running"}),
        ({"state": "paused"}, {"a/paused"}),
        ({"state": "failed"}, {"a/failed"}),
        ({"state": "quarantined"}, set()),
        ({"due_before": NEW_YEAR + timedelta(seconds=40)}, {"b/soon"}),
        ({"due_before": NEW_YEAR + timedelta(seconds=31)}, set()),
        ({"due_before": NEW_YEAR + timedelta(seconds=31, microseconds=1)}, {"b/soon"}),
        ({"queue": "mail", "state": "scheduled"}, {"b/soon"}),
        ({"store": "default"}, {"a/running", "a/failed", "a/paused", "b/late", "b/soon", "b/manual"}),
    ],
    ids=shown,
)
async def test_each_filter_finds_what_it_says(
    many: Scheduler, where: dict[str, Any], found: set[str]
) -> None:
    assert set(ids(await many.get_jobs(**where))) == found


async def test_a_task_itself_is_a_filter(many: Scheduler) -> None:
    assert ids(await many.get_jobs(task=many.tasks["fails"])) == ["a/failed"]


@pytest.mark.parametrize(
    "filters",
    [
        {"tags": "red"},
        {"tags": 5},
        {"state": "Running"},
        {"task": nothing},
        {"queue": 5},
        {"id_prefix": 5},
        {"limit": -1},
        {"limit": "5"},
        {"limit": True},
    ],
    ids=shown,
)
async def test_a_filter_that_could_find_nothing_is_refused_by_name(
    many: Scheduler, filters: dict[str, Any]
) -> None:
    [name] = filters
    with pytest.raises(DefinitionError, match=name):
        await many.get_jobs(**filters)
    if name != "limit":
        with pytest.raises(DefinitionError, match=name):
            await many.remove_jobs(**filters)


async def test_a_naive_due_before_is_refused_with_the_remedy(scheduler: Scheduler) -> None:
    with pytest.raises(DefinitionError, match="tzinfo=UTC"):
        await scheduler.get_jobs(due_before=datetime(2026, 1, 1))


async def test_a_prefix_is_taken_literally(make_scheduler: Any) -> None:
    async with make_scheduler(queues=()) as scheduler:
        for id in ("a%b", "axb", "a_b", "A%b", "a%"):
            await scheduler.add_job(nothing, every(60), id=id)
        assert set(ids(await scheduler.get_jobs(id_prefix="a%"))) == {"a%b", "a%"}


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_pages_are_disjoint_complete_and_in_order(make_scheduler: Any, limit: int) -> None:
    async with make_scheduler(queues=()) as scheduler:
        for n in range(10):
            await scheduler.add_job(nothing, once(delay=100 + n % 4), id=f"j{n}")
        await scheduler.add_job(nothing, every(60), id="paused", paused=True)
        everything = await scheduler.get_jobs()
        pages: list[Job] = []
        while page := await scheduler.get_jobs(limit=limit, after=pages[-1] if pages else None):
            assert len(page) <= limit
            pages += page
            assert len(pages) <= 11
        assert pages == everything


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_pages_hold_every_state_once(many: Scheduler, limit: int) -> None:
    pages: list[Job] = []
    while page := await many.get_jobs(limit=limit, after=pages[-1] if pages else None):
        pages += page
        assert len(pages) <= 6
    assert sorted(ids(pages)) == sorted(ids(await many.get_jobs()))


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_pages_go_over_all_stores(scheduler: Scheduler, limit: int) -> None:
    await scheduler.add_store("other", "memory://")
    for n in range(6):
        await scheduler.add_job(nothing, once(delay=10 + n), id=f"j{n}", store=("default", "other")[n % 2])
    pages: list[Job] = []
    while page := await scheduler.get_jobs(limit=limit, after=pages[-1] if pages else None):
        pages += page
        assert len(pages) <= 6
    assert ids(pages) == [f"j{n}" for n in range(6)]


async def test_after_may_be_an_id(scheduler: Scheduler) -> None:
    for n in range(4):
        await scheduler.add_job(nothing, once(delay=10 + n), id=f"j{n}")
    assert ids(await scheduler.get_jobs(after="j1")) == ["j2", "j3"]


async def test_after_a_job_that_is_not_there_is_a_lookup_error(scheduler: Scheduler) -> None:
    with pytest.raises(JobLookupError):
        await scheduler.get_jobs(after="nowhere")


async def test_a_job_that_cannot_be_read_hides_no_other(clock: ManualClock) -> None:
    store = MemoryStore()
    async with Scheduler(store, queues=(), clock=clock) as scheduler:
        await store.add([Record("bad", "birth", "default", 0, "t", clock.time(), None, b"\x01\xc1", b"")])
        await scheduler.add_job(nothing, every(60), id="good")
        assert "good" in ids(await scheduler.get_jobs())
        assert await scheduler.next_fire_time() is not None
        assert await scheduler.remove_all_jobs() == 2
        assert await store.get(["good", "bad"]) == {}


# -- running -----------------------------------------------------------------------------------------------------------


async def test_running_shows_what_is_under_way(many: Scheduler, clock: ManualClock) -> None:
    [run] = many.running()
    assert isinstance(run, Run)
    assert (run.job_id, run.task, run.id) == ("a/running", "long", f"a/running@{run.fence}")
    assert (run.started_at, run.finished_at, run.outcome, run.duration) == (NEW_YEAR, None, None, None)
    assert (run.attempt, run.instance) == (1, "here")
    assert many.running("a/running") == [run]
    assert many.running("b/late") == []


async def test_nothing_is_running_once_it_has_ended(scheduler: Scheduler, clock: ManualClock) -> None:
    await scheduler.add_job(nothing)
    await clock.advance(0)
    assert scheduler.running() == []


# -- waiting -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def gates(scheduler: Scheduler) -> dict[str, asyncio.Event]:
    gates = {"a": asyncio.Event(), "b": asyncio.Event()}

    @scheduler.task(name="gated")
    async def gated(gate: str) -> None:
        await gates[gate].wait()

    return gates


async def test_wait_job_waits_for_a_one_shot_to_run(
    scheduler: Scheduler, clock: ManualClock, gates: dict[str, asyncio.Event]
) -> None:
    job = await scheduler.add_job("gated", once(delay=5), args=["a"])
    waiting = asyncio.get_running_loop().create_task(scheduler.wait_job(job.id))
    await clock.advance(10)
    assert not waiting.done()
    gates["a"].set()
    await clock.advance(0)
    assert waiting.done()
    assert await waiting is None


async def test_wait_job_waits_for_a_recurring_jobs_run_only(
    scheduler: Scheduler, clock: ManualClock, gates: dict[str, asyncio.Event]
) -> None:
    await scheduler.add_job("gated", every(60), id="x", args=["a"])
    idle = await scheduler.wait_job("x")
    assert idle is not None
    assert idle.last_run is None
    await clock.advance(61)
    waiting = asyncio.get_running_loop().create_task(scheduler.wait_job("x"))
    await clock.advance(1)
    assert not waiting.done()
    gates["a"].set()
    await clock.advance(0)
    job = await waiting
    assert job is not None
    assert job.last_success == NEW_YEAR + timedelta(seconds=62)


async def test_wait_job_returns_a_failed_one_shot(scheduler: Scheduler, clock: ManualClock) -> None:
    await scheduler.add_job(fails, id="x")
    waiting = asyncio.get_running_loop().create_task(scheduler.wait_job("x"))
    await clock.advance(1)
    job = await waiting
    assert job is not None
    assert job.state == "failed"


async def test_wait_job_of_one_that_has_run_already_returns_at_once(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    await scheduler.add_job(nothing, id="x")
    await clock.advance(1)
    assert await scheduler.wait_job("x") is None


async def test_wait_job_of_one_that_never_was_is_a_lookup_error(scheduler: Scheduler) -> None:
    with pytest.raises(JobLookupError):
        await scheduler.wait_job("nowhere")


async def test_wait_job_gives_up_at_its_timeout(
    scheduler: Scheduler, clock: ManualClock, gates: dict[str, asyncio.Event]
) -> None:
    await scheduler.add_job("gated", id="x", args=["a"])
    waiting = asyncio.get_running_loop().create_task(scheduler.wait_job("x", timedelta(seconds=3)))
    await clock.advance(2.9)
    assert not waiting.done()
    await clock.advance(0.1)
    with pytest.raises(TimeoutError, match="x"):
        await waiting
    gates["a"].set()


async def test_those_who_wait_for_different_jobs_do_not_disturb_each_other(
    scheduler: Scheduler, clock: ManualClock, gates: dict[str, asyncio.Event]
) -> None:
    loop = asyncio.get_running_loop()
    for name in gates:
        await scheduler.add_job("gated", id=name, args=[name])
    await clock.advance(0)
    waiting = {name: loop.create_task(scheduler.wait_job(name)) for name in gates}
    await clock.advance(0)
    for name in gates:
        assert not waiting[name].done()
        gates[name].set()
        await clock.advance(0)
        assert waiting[name].done()


async def test_wait_job_ends_when_the_job_is_removed(
    scheduler: Scheduler, clock: ManualClock, gates: dict[str, asyncio.Event]
) -> None:
    await scheduler.add_job("gated", once(delay=100), id="x", args=["a"])
    waiting = asyncio.get_running_loop().create_task(scheduler.wait_job("x"))
    await clock.advance(1)
    await scheduler.remove_job("x")
    await clock.advance(1)
    assert await waiting is None


async def test_waiting_for_a_job_waits_for_the_run_that_was_just_asked_for(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    ran: list[int] = []

    @scheduler.task(name="asked")
    async def asked() -> None:
        ran.append(1)

    await scheduler.add_job("asked", every(hours=1), id="hourly")
    await scheduler.pause()
    await scheduler.run_job("hourly")
    waiting = asyncio.ensure_future(scheduler.wait_job("hourly"))
    await clock.advance(5)
    assert not waiting.done()
    await scheduler.resume()
    await clock.advance(5)
    job = await waiting
    assert job is not None
    assert ran == [1]


async def test_while_a_run_that_was_asked_for_is_under_way_the_next_fire_time_is_that_of_the_schedule(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    @scheduler.task(name="slow")
    async def slow() -> None:
        await clock.sleep(60)

    before = await scheduler.add_job("slow", every(hours=1), id="hourly")
    await scheduler.run_job("hourly")
    await clock.advance(5)
    during = await scheduler.get_job("hourly")
    assert during.state == "running"
    assert during.next_fire_time == before.next_fire_time
