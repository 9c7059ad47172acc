"""Changing jobs: one by one and many at once, from outside and from inside their own runs."""

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from msgspec.structs import replace

from asyncsched import (
    DefinitionError,
    JobLookupError,
    JobPaused,
    Retry,
    Scheduler,
    SerializationError,
    Snooze,
    TooManyRequests,
    current_run,
    every,
    manual,
    once,
)
from asyncsched.testing import ManualClock
from tests.support.running import running
from tests.support.stores import SharedMemory

pytestmark = pytest.mark.anyio

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
PAST = datetime(2020, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NEW_YEAR + timedelta(seconds=seconds)


@pytest.fixture
def ran(scheduler: Scheduler, clock: ManualClock) -> list[float]:
    """When the task ``note`` ran, in seconds since the beginning."""
    ran: list[float] = []

    @scheduler.task(name="note")
    async def note(word: str = "", n: int = 0) -> None:
        ran.append((clock.now() - NEW_YEAR).total_seconds())

    return ran


# -- update ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ({"name": "new"}, "new"),
        ({"args": ("a",)}, ("a",)),
        ({"kwargs": {"n": 3}}, {"n": 3}),
        ({"queue": "mail"}, "mail"),
        ({"priority": 9}, 9),
        ({"tags": ["a", "b"]}, ("a", "b")),
        ({"metadata": {"a": 1}}, {"a": 1}),
    ],
    ids=str,
)
async def test_update_changes_one_field_and_no_other(
    scheduler: Scheduler, ran: list[float], change: dict[str, Any], value: Any
) -> None:
    before = await scheduler.add_job("note", every(60), id="x")
    job = await scheduler.update_job("x", **change)
    assert job == await scheduler.get_job("x")
    [field] = change
    assert getattr(job, field) == value
    same = [name for name in before.__struct_fields__ if name not in (field, "version", "updated_at")]
    assert [getattr(job, name) for name in same] == [getattr(before, name) for name in same]
    assert job.version == before.version + 1


async def test_update_clears_what_is_set_to_nothing(scheduler: Scheduler, ran: list[float]) -> None:
    await scheduler.add_job("note", every(60), id="x", tags=["a"], metadata={"a": 1}, name="b", args=["c"])
    job = await scheduler.update_job("x", tags=(), metadata=None, name=None, args=())
    assert (job.tags, job.metadata, job.name, job.args) == ((), {}, "note", ())


async def test_update_of_policies_takes_effect(scheduler: Scheduler, clock: ManualClock) -> None:
    @scheduler.task(name="long")
    async def long() -> None:
        await clock.sleep(100)

    await scheduler.add_job(long, once(delay=10), id="x", timeout=50)
    await scheduler.update_job("x", timeout=2)
    await clock.advance(13)
    run = (await scheduler.history.runs("x"))[0]
    assert (run.outcome, run.duration) == ("timed_out", 2.0)


async def test_update_with_another_trigger_computes_anew(
    scheduler: Scheduler, clock: ManualClock, ran: list[float]
) -> None:
    await scheduler.add_job("note", every(60), id="x")
    await clock.advance(50)
    job = await scheduler.update_job("x", trigger="@every 90s")
    assert job.next_fire_time == at(140)


async def test_update_with_the_same_trigger_keeps_its_progress(
    scheduler: Scheduler, clock: ManualClock, ran: list[float]
) -> None:
    await scheduler.add_job("note", every(60), id="x")
    await clock.advance(90)
    job = await scheduler.update_job("x", trigger=every(60), tags=["a"])
    assert job.next_fire_time == at(120)


@pytest.mark.parametrize("change", [{"task": "note"}, {"state": "paused"}, {"retires": 3}])
async def test_update_names_what_it_cannot_change(
    scheduler: Scheduler, ran: list[float], change: dict[str, Any]
) -> None:
    await scheduler.add_job("note", every(60), id="x")
    with pytest.raises(DefinitionError, match=next(iter(change))) as caught:
        await scheduler.update_job("x", **change)
    assert caught.value.job_id == "x"


@pytest.mark.parametrize(
    "change",
    [
        {"priority": 10},
        {"queue": ""},
        {"tags": "a"},
        {"tags": None},
        {"name": 5},
        {"metadata": "a"},
        {"args": "w"},
        {"kwargs": ["word"]},
        {"trigger": None},
        {"timeout": 0},
        {"args": [1, 2, 3]},
        {"kwargs": {"z": 1}},
        {"concurrency_limit": 3},
        {"trigger": every(60, end=PAST)},
    ],
    ids=str,
)
async def test_update_with_what_can_never_work_is_refused_and_changes_nothing(
    scheduler: Scheduler, ran: list[float], change: dict[str, Any]
) -> None:
    before = await scheduler.add_job("note", every(60), id="x")
    with pytest.raises(DefinitionError):
        await scheduler.update_job("x", **change)
    assert await scheduler.get_job("x") == before


async def test_update_with_an_argument_that_cannot_be_stored_names_it(scheduler: Scheduler) -> None:
    @scheduler.task(name="any")
    async def any_(thing: object) -> None: ...

    await scheduler.add_job(any_, every(60), id="x", args=[1])
    with pytest.raises(SerializationError, match=r"^args\[0\]"):
        await scheduler.update_job("x", args=[object()])


async def test_update_leaves_a_paused_job_paused(scheduler: Scheduler, ran: list[float]) -> None:
    await scheduler.add_job("note", every(60), id="x", paused=True)
    assert (await scheduler.update_job("x", tags=["a"])).state == "paused"
    assert (await scheduler.update_job("x", trigger=every(5))).state == "paused"


MISSING = ["update_job", "reschedule_job", "pause_job", "resume_job", "run_job", "remove_job"]


@pytest.mark.parametrize("name", MISSING)
async def test_changing_a_job_that_is_not_there_is_a_lookup_error(scheduler: Scheduler, name: str) -> None:
    arguments = (every(60),) if name == "reschedule_job" else ()
    with pytest.raises(JobLookupError) as caught:
        await getattr(scheduler, name)("nowhere", *arguments)
    assert caught.value.job_id == "nowhere"


# -- reschedule --------------------------------------------------------------------------------------------------------


async def test_reschedule_computes_anew_from_now(
    scheduler: Scheduler, clock: ManualClock, ran: list[float]
) -> None:
    await scheduler.add_job("note", every(60), id="x")
    await clock.advance(90)
    job = await scheduler.reschedule_job("x", every(60))
    assert job.next_fire_time == at(150)
    await clock.advance(60)
    assert ran == [60, 150]


async def test_reschedule_makes_a_recurring_job_of_a_one_shot(
    scheduler: Scheduler, clock: ManualClock, ran: list[float]
) -> None:
    await scheduler.add_job("note", once(delay=5), id="x")
    await scheduler.reschedule_job("x", "@every 10s")
    await clock.advance(25)
    assert ran == [10, 20]


async def test_reschedule_to_no_trigger_is_refused_and_keeps_the_job(
    scheduler: Scheduler, clock: ManualClock, ran: list[float]
) -> None:
    """As a value that is missing would have it: the job would run now, and be gone."""
    before = await scheduler.add_job("note", every(60), id="x")
    with pytest.raises(DefinitionError, match=r"'x'.*no trigger"):
        await scheduler.reschedule_job("x", cast(Any, None))
    await clock.advance(1)
    assert await scheduler.get_job("x") == before


async def test_reschedule_to_what_never_fires_is_refused_and_keeps_the_job(
    scheduler: Scheduler, clock: ManualClock, ran: list[float]
) -> None:
    before = await scheduler.add_job("note", every(60), id="x")
    with pytest.raises(DefinitionError, match="will never fire, which would be the end of job 'x'"):
        await scheduler.reschedule_job("x", every(60, end=PAST))
    await clock.advance(1)
    assert await scheduler.get_job("x") == before


async def test_reschedule_forgets_a_pending_retry(scheduler: Scheduler, clock: ManualClock) -> None:
    ran: list[datetime] = []

    @scheduler.task(name="fails")
    async def fails() -> None:
        ran.append(clock.now())
        raise ValueError

    await scheduler.add_job(fails, once(delay=1), id="x", retry=Retry(base=10))
    await clock.advance(2)
    await scheduler.reschedule_job("x", once(delay=100))
    await clock.advance(50)
    assert ran == [at(1)]


async def test_reschedule_leaves_a_paused_job_paused(scheduler: Scheduler, ran: list[float]) -> None:
    await scheduler.add_job("note", every(60), id="x", paused=True)
    assert (await scheduler.reschedule_job("x", every(5))).state == "paused"


# -- pause and resume --------------------------------------------------------------------------------------------------


async def test_a_paused_job_does_not_run_until_resumed(
    scheduler: Scheduler, clock: ManualClock, ran: list[float]
) -> None:
    await scheduler.add_job("note", every(60), id="x")
    await clock.advance(61)
    job = await scheduler.pause_job("x")
    assert (job.state, job.next_fire_time) == ("paused", None)
    await clock.advance(300)
    job = await scheduler.resume_job("x")
    assert (job.state, job.next_fire_time) == ("scheduled", at(420))
    await clock.advance(60)
    assert ran == [60, 420]


async def test_what_passed_during_a_pause_is_one_decision(
    scheduler: Scheduler, clock: ManualClock, ran: list[float]
) -> None:
    await scheduler.add_job("note", every(60), id="x")
    await scheduler.pause_job("x")
    await clock.advance(200)
    await scheduler.resume_job("x")
    await clock.advance(60)
    [decision] = await scheduler.history.decisions("x")
    assert (decision.reason, decision.first, decision.last, decision.count) == ("paused", at(60), at(180), 3)
    assert ran == [240]


async def test_a_paused_one_shot_runs_when_it_is_resumed_late(
    scheduler: Scheduler, clock: ManualClock, ran: list[float]
) -> None:
    await scheduler.add_job("note", once(delay=5), id="x")
    await scheduler.pause_job("x")
    await clock.advance(60)
    await scheduler.resume_job("x")
    await clock.advance(0)
    assert ran == [60]


async def test_pausing_and_resuming_twice_changes_nothing_more(
    scheduler: Scheduler, ran: list[float]
) -> None:
    await scheduler.add_job("note", every(60), id="x")
    paused = await scheduler.pause_job("x")
    assert await scheduler.pause_job("x") == paused
    resumed = await scheduler.resume_job("x")
    assert await scheduler.resume_job("x") == resumed


async def test_pausing_lets_a_run_end_and_then_rests(scheduler: Scheduler, clock: ManualClock) -> None:
    ended: list[int] = []

    @scheduler.task(name="long")
    async def long() -> None:
        await clock.sleep(10)
        ended.append(1)

    await scheduler.add_job(long, every(60), id="x")
    await clock.advance(61)
    await scheduler.pause_job("x")
    await clock.advance(300)
    assert ended == [1]
    assert (await scheduler.get_job("x")).state == "paused"


async def test_a_failed_one_shot_is_tried_again_when_resumed(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    ran: list[int] = []

    @scheduler.task(name="flaky")
    async def flaky() -> None:
        ran.append(1)
        if len(ran) == 1:
            raise ValueError

    await scheduler.add_job(flaky, id="x")
    await clock.advance(1)
    assert (await scheduler.get_job("x")).state == "failed"
    await scheduler.resume_job("x")
    await clock.advance(1)
    assert ran == [1, 1]
    assert await scheduler.get_jobs() == []


# -- remove ------------------------------------------------------------------------------------------------------------


async def test_a_removed_job_does_not_run(scheduler: Scheduler, clock: ManualClock, ran: list[float]) -> None:
    await scheduler.add_job("note", every(60), id="x")
    assert await scheduler.remove_job("x") is True
    await clock.advance(300)
    assert ran == []


async def test_removing_what_is_not_there_may_be_allowed(scheduler: Scheduler) -> None:
    assert await scheduler.remove_job("nowhere", missing_ok=True) is False


async def test_remove_all_jobs_counts_them(scheduler: Scheduler, ran: list[float]) -> None:
    await scheduler.add_store("other", "memory://")
    for n in range(3):
        await scheduler.add_job("note", every(60), store=("default", "other")[n % 2])
    assert await scheduler.remove_all_jobs(store="other") == 1
    assert await scheduler.remove_all_jobs() == 2
    assert await scheduler.get_jobs() == []


async def test_removing_a_job_in_mid_run_lets_the_run_end_and_keeps_its_history(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    @scheduler.task(name="long")
    async def long() -> str:
        await clock.sleep(10)
        return "ended"

    await scheduler.add_job(long, every(60), id="x")
    await clock.advance(61)
    await scheduler.remove_job("x")
    await clock.advance(200)
    assert [run.result for run in await scheduler.history.runs("x")] == ["ended"]
    assert await scheduler.get_jobs() == []


# -- run now -----------------------------------------------------------------------------------------------------------


async def test_run_job_runs_now_and_leaves_the_schedule_alone(
    scheduler: Scheduler, clock: ManualClock, ran: list[float]
) -> None:
    await scheduler.add_job("note", every(60), id="x")
    await clock.advance(10)
    receipt = await scheduler.run_job("x")
    assert (receipt.job_id, receipt.store, receipt.task) == ("x", "default", "note")
    await clock.advance(0)
    assert (await scheduler.get_job("x")).next_fire_time == at(60)
    await clock.advance(60)
    assert ran == [10, 60]


async def test_run_job_of_a_manual_job_is_the_way_to_run_it(
    scheduler: Scheduler, clock: ManualClock, ran: list[float]
) -> None:
    await scheduler.add_job("note", manual(), id="x")
    for _ in range(3):
        await clock.advance(10)
        await scheduler.run_job("x")
    await clock.advance(0)
    assert ran == [10, 20, 30]
    assert (await scheduler.get_job("x")).state == "scheduled"


async def test_run_job_of_a_one_shot_leaves_its_own_time_alone(
    scheduler: Scheduler, clock: ManualClock, ran: list[float]
) -> None:
    await scheduler.add_job("note", once(delay=60), id="x")
    await scheduler.run_job("x")
    await clock.advance(100)
    assert ran == [0, 60]


async def test_run_job_while_it_runs_makes_a_run_after_it(scheduler: Scheduler, clock: ManualClock) -> None:
    spans: list[tuple[float, float]] = []

    @scheduler.task(name="long")
    async def long() -> None:
        began = clock.time() - NEW_YEAR.timestamp()
        await clock.sleep(10)
        spans.append((began, began + 10))

    await scheduler.add_job(long, every(60), id="x")
    await clock.advance(61)
    await scheduler.run_job("x")
    await clock.advance(40)
    assert spans == [(60, 70), (70, 80)]
    assert (await scheduler.get_job("x")).next_fire_time == at(120)


async def test_run_job_while_a_one_shot_runs_makes_one_more_run(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    ran: list[int] = []

    @scheduler.task(name="long")
    async def long() -> None:
        ran.append(1)
        await clock.sleep(10)

    await scheduler.add_job(long, id="x")
    await clock.advance(1)
    await scheduler.run_job("x")
    await clock.advance(60)
    assert len(ran) == 2
    assert await scheduler.get_jobs() == []


async def test_each_request_is_one_run(scheduler: Scheduler, clock: ManualClock, ran: list[float]) -> None:
    await scheduler.add_job("note", every(60), id="x")
    await scheduler.pause()
    for _ in range(5):
        await scheduler.run_job("x")
    await scheduler.resume()
    await clock.advance(30)
    assert len(ran) == 5


async def test_requests_are_bounded(scheduler: Scheduler, ran: list[float]) -> None:
    await scheduler.add_job("note", every(60), id="x")
    await scheduler.pause()

    async def ask_on_and_on() -> None:
        for _ in range(1000):
            await scheduler.run_job("x")

    with pytest.raises(TooManyRequests) as caught:
        await ask_on_and_on()
    assert caught.value.job_id == "x"


async def test_run_job_of_a_paused_job_is_refused(
    scheduler: Scheduler, clock: ManualClock, ran: list[float]
) -> None:
    await scheduler.add_job("note", every(60), id="x", paused=True)
    with pytest.raises(JobPaused) as caught:
        await scheduler.run_job("x")
    assert caught.value.job_id == "x"
    await clock.advance(100)
    assert ran == []


@pytest.mark.parametrize("trigger", [every(60), once(delay=60), once(), manual()], ids=str)
async def test_a_forced_run_of_a_paused_job_leaves_it_there_and_paused(
    scheduler: Scheduler, clock: ManualClock, ran: list[float], trigger: Any
) -> None:
    await scheduler.add_job("note", trigger, id="x", paused=True)
    await clock.advance(10)
    await scheduler.run_job("x", force=True)
    await clock.advance(300)
    assert ran == [10]
    assert (await scheduler.get_job("x")).state == "paused"


async def test_run_job_tries_a_failed_one_shot_again(scheduler: Scheduler, clock: ManualClock) -> None:
    ran: list[int] = []

    @scheduler.task(name="flaky")
    async def flaky() -> None:
        ran.append(1)
        if len(ran) == 1:
            raise ValueError

    await scheduler.add_job(flaky, id="x")
    await clock.advance(1)
    await scheduler.run_job("x")
    await clock.advance(1)
    assert len(ran) == 2


# -- many at once ------------------------------------------------------------------------------------------------------


async def test_bulk_calls_take_the_filters_of_get_jobs(
    scheduler: Scheduler, clock: ManualClock, ran: list[float]
) -> None:
    for n in range(4):
        await scheduler.add_job("note", every(60), id=f"j{n}", tags=["even" if n % 2 == 0 else "odd"])
    assert await scheduler.pause_jobs(tags=["even"]) == 2
    assert [job.id for job in await scheduler.get_jobs(state="paused")] == ["j0", "j2"]
    assert await scheduler.resume_jobs(id_prefix="j2") == 1
    assert await scheduler.run_jobs(tags=["odd"]) == 2
    await clock.advance(0)
    assert len(ran) == 2
    assert await scheduler.remove_jobs(state="paused") == 1
    assert [job.id for job in await scheduler.get_jobs()] == ["j1", "j2", "j3"]


async def test_a_job_that_refuses_is_told_when_the_others_have_had_their_turn(
    scheduler: Scheduler, clock: ManualClock, ran: list[float]
) -> None:
    for id in "abc":
        await scheduler.add_job("note", manual(), id=id)
    await scheduler.pause_job("a")
    with pytest.raises(JobPaused) as paused:
        await scheduler.run_jobs()
    await clock.advance(0)
    assert (paused.value.job_id, len(ran)) == ("a", 2)

    store = scheduler.stores["default"]
    [record] = (await store.get(["b"])).values()
    await store.remove(["b"])
    await store.add([replace(record, body=b"nonsense")])
    with pytest.raises(SerializationError) as unreadable:
        await scheduler.pause_jobs()
    assert unreadable.value.job_id == "b"
    assert [job.id for job in await scheduler.get_jobs(state="paused")] == ["a", "c"]


@pytest.mark.parametrize("name", ["pause_jobs", "resume_jobs", "remove_jobs", "run_jobs"])
async def test_an_unknown_filter_is_named_and_touches_nothing(
    scheduler: Scheduler, ran: list[float], name: str
) -> None:
    await scheduler.add_job("note", every(60), id="x")
    with pytest.raises(DefinitionError, match="colour"):
        await getattr(scheduler, name)(colour="red")
    assert (await scheduler.get_job("x")).version == 1


# -- paused by its own failure -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["update", "replace"])
async def test_runs_that_overlapped_are_found_when_the_job_may_not_overlap_any_more(
    scheduler: Scheduler, clock: ManualClock, change: str
) -> None:
    begun: list[float] = []

    @scheduler.task(name="flaky", retry=Retry(max_attempts=9, base=10, multiplier=1))
    async def flaky() -> None:
        begun.append((clock.now() - NEW_YEAR).total_seconds())
        raise ValueError

    await scheduler.add_job(flaky, every(60), id="x", overlap="allow")
    await clock.advance(61)
    if change == "update":
        await scheduler.update_job("x", overlap="skip")
        await scheduler.update_job("x", max_instances=2)
    else:
        await scheduler.add_job(flaky, every(60), id="x", on_conflict="replace")
    await scheduler.pause_job("x")
    await clock.advance(60)
    assert begun == [60]
    await scheduler.resume_job("x")
    await clock.advance(20)
    assert len(begun) > 1
    await scheduler.remove_job("x")
    begun.clear()
    await clock.advance(300)
    assert begun == []


@pytest.fixture
async def spoilt(scheduler: Scheduler, clock: ManualClock) -> list[float]:
    """The job ``x`` was paused by its first failure, at 60 s; it would succeed from now on."""
    ran: list[float] = []

    @scheduler.task(name="flaky")
    async def flaky() -> None:
        ran.append((clock.now() - NEW_YEAR).total_seconds())
        if len(ran) == 1:
            raise ValueError

    await scheduler.add_job(flaky, every(60), id="x", on_exhausted="pause")
    await clock.advance(61)
    return ran


async def test_a_job_paused_by_its_failure_is_paused(
    scheduler: Scheduler, clock: ManualClock, spoilt: list[float]
) -> None:
    await clock.advance(300)
    assert (await scheduler.get_job("x")).state == "paused"
    assert spoilt == [60]
    with pytest.raises(JobPaused):
        await scheduler.run_job("x")


async def test_a_forced_run_of_a_job_paused_by_its_failure_leaves_it_paused(
    scheduler: Scheduler, clock: ManualClock, spoilt: list[float]
) -> None:
    await scheduler.run_job("x", force=True)
    await clock.advance(300)
    assert spoilt == [60, 61]
    assert (await scheduler.get_job("x")).state == "paused"


async def test_a_job_paused_by_its_failure_is_resumed_without_a_backlog(
    scheduler: Scheduler, clock: ManualClock, spoilt: list[float]
) -> None:
    await clock.advance(200)
    job = await scheduler.resume_job("x")
    assert job.next_fire_time == at(300)
    await clock.advance(60)
    assert spoilt == [60, 300]


async def test_update_with_the_same_trigger_leaves_a_job_that_rests_at_rest(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    ran: list[int] = []

    @scheduler.task(name="fail")
    async def fail() -> None:
        ran.append(1)
        raise ValueError("it fails")

    await scheduler.add_job("fail", every(10), id="x", pause_after_failures=1)
    await clock.advance(15)
    assert (await scheduler.update_job("x", trigger=every(10), tags=["a"])).state == "paused"
    assert (await scheduler.resume_job("x")).next_fire_time == at(20)
    await clock.advance(10)
    assert len(ran) == 2


async def test_a_manual_job_that_was_paused_by_its_failure_stays_resumed(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    outcomes = [ValueError("it fails"), None, None]

    @scheduler.task(name="step")
    async def step() -> None:
        if error := outcomes.pop(0):
            raise error

    await scheduler.add_job("step", manual(), id="x", pause_after_failures=1)
    states: list[str] = []
    for _ in range(2):
        await scheduler.run_job("x")
        await clock.advance(1)
        states.append((await scheduler.get_job("x")).state)
        await scheduler.resume_job("x")
    assert states == ["paused", "scheduled"]


async def test_a_forced_run_of_a_paused_job_is_made_under_another_trigger_too(clock: ManualClock) -> None:
    store = SharedMemory()
    ran: list[float] = []

    async def note() -> None:
        ran.append(clock.time())

    client = Scheduler(store, clock=clock, queues=["elsewhere"])
    worker = Scheduler(store, clock=clock)
    for scheduler in (client, worker):
        scheduler.register(note, "note")
    async with running(client, clock=clock):
        await client.add_job("note", every(60), id="x", paused=True)
        await client.run_job("x", force=True)
        await client.reschedule_job("x", every(90))
        async with running(worker, clock=clock):
            await clock.advance(1)
            assert (await client.get_job("x")).state == "paused"
    assert len(ran) == 1


async def test_what_passed_in_two_pauses_is_told_once_and_in_full(
    scheduler: Scheduler, clock: ManualClock, ran: list[float]
) -> None:
    await scheduler.add_job("note", every(100), id="x")
    for _ in range(2):
        await scheduler.pause_job("x")
        await clock.advance(500)
        await scheduler.resume_job("x")
        await clock.advance(10)
    await clock.advance(100)
    found = [(d.reason, d.first, d.last, d.count) for d in await scheduler.history.decisions("x")]
    assert found == [("paused", at(100), at(1000), 10)]
    await scheduler.update_job("x", trigger=every(50))
    await clock.advance(100)
    assert len(await scheduler.history.decisions("x")) == 1


async def test_a_fire_time_that_waits_under_a_limit_when_its_job_is_paused_is_not_forgotten(
    scheduler: Scheduler, clock: ManualClock, ran: list[float]
) -> None:
    @scheduler.task(name="long")
    async def long() -> None:
        await clock.sleep(100)

    await scheduler.add_job("note", every(1000), id="x", concurrency_key="k")
    await clock.advance(950)
    await scheduler.add_job("long", concurrency_key="k")
    await clock.advance(60)
    assert (await scheduler.get_job("x")).state == "limited"
    await scheduler.pause_job("x")
    await scheduler.resume_job("x")
    await clock.advance(1000)
    [decision] = await scheduler.history.decisions("x")
    assert (decision.reason, decision.first, decision.count, ran) == ("paused", at(1000), 1, [2000.0])


async def test_a_job_that_was_paused_and_resumed_while_it_ran_goes_on_as_if_it_had_not_been(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    attempts: list[int] = []

    @scheduler.task(name="long", retry=Retry(max_attempts=2, base=5))
    async def long() -> None:
        attempts.append(current_run().attempt)
        if len(attempts) == 1:
            await clock.sleep(20)
            raise ValueError("it fails")

    await scheduler.add_job("long", every(100), id="x")
    await clock.advance(105)
    await scheduler.pause_job("x")
    await scheduler.resume_job("x")
    await clock.advance(50)
    assert attempts == [1, 2]
    assert await scheduler.history.decisions("x") == []


@pytest.mark.parametrize(
    ("paused_at", "forced_after", "resumed_after"),
    [(10, 5, 235), (10, 5, 60), (90, 160, 10), (90, 160, 320), (110, 160, 10), (110, 160, 280)],
)
async def test_a_job_that_is_resumed_while_it_runs_decides_once_about_each_fire_time(
    scheduler: Scheduler, clock: ManualClock, paused_at: float, forced_after: float, resumed_after: float
) -> None:
    """A run is asked for, and the job resumed, while that run or the one before it is under way."""
    fires: list[datetime] = []

    @scheduler.task(name="long")
    async def long() -> None:
        fires.append(current_run().fire_time)
        await clock.sleep(450 if len(fires) == 1 else 1)

    await scheduler.add_job("long", every(100), id="x")
    await clock.advance(paused_at)
    await scheduler.pause_job("x")
    await clock.advance(forced_after)
    await scheduler.run_job("x", force=True)
    await clock.advance(resumed_after)
    await scheduler.resume_job("x")
    await clock.advance(1000)
    decided = [
        at(seconds)
        for d in await scheduler.history.decisions("x")
        for seconds in range(100, 2000, 100)
        if d.first <= at(seconds) <= d.last
    ]
    named = {at(seconds) for seconds in range(100, 2000, 100)}
    seen = sorted([*decided, *named.intersection(fires)])
    assert seen == [at(seconds) for seconds in range(100, 100 + 100 * len(seen), 100)]
    assert len(seen) >= 10


async def test_what_had_been_put_off_when_a_pause_began_is_told_apart_from_what_passed_in_it(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    @scheduler.task(name="snoozes")
    async def snoozes() -> None:
        await clock.sleep(250)
        raise Snooze(at(5000))

    await scheduler.add_job("snoozes", every(100), id="x")
    await clock.advance(360)
    await scheduler.pause_job("x")
    await clock.advance(290)
    await scheduler.resume_job("x")
    await clock.advance(310)
    found = [(d.reason, d.first, d.last, d.count) for d in await scheduler.history.decisions("x")]
    assert sorted(found)[:3] == [
        ("overlap", at(200), at(300), 2),
        ("overlap", at(800), at(900), 2),
        ("paused", at(100), at(100), 1),
    ]
    assert sorted(found)[3:] == [("paused", at(400), at(600), 3)]


@pytest.mark.parametrize("end", [None, at(150)])
async def test_a_retry_that_waits_is_made_after_a_pause_in_which_no_fire_time_came(
    scheduler: Scheduler, clock: ManualClock, end: datetime | None
) -> None:
    attempts: list[tuple[datetime, int]] = []

    @scheduler.task(name="fails", retry=Retry(delays=[10]))
    async def fails() -> None:
        run = current_run()
        attempts.append((run.fire_time, run.attempt))
        if run.attempt == 1:
            raise ValueError("it fails")

    await scheduler.add_job("fails", every(100, end=end), id="x")
    await clock.advance(105)
    await scheduler.pause_job("x")
    await clock.advance(45)
    assert attempts == [(at(100), 1)]
    await scheduler.resume_job("x")
    await clock.advance(100)
    assert attempts[:2] == [(at(100), 1), (at(100), 2)]
    assert await scheduler.history.decisions("x") == []


async def test_a_run_that_was_asked_for_waits_for_the_end_of_a_pause_though_the_one_shot_is_over(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    ran: list[str] = []

    @scheduler.task(name="brief")
    async def brief() -> None:
        ran.append("brief")
        if len(ran) == 1:
            await scheduler.run_job("x")
            await scheduler.pause_job("x")

    await scheduler.add_job("brief", once(delay=1), id="x")
    await clock.advance(5)
    assert ((await scheduler.get_job("x")).state, len(ran)) == ("paused", 1)
    await scheduler.resume_job("x")
    await clock.advance(5)
    assert (await scheduler.get_jobs(), len(ran)) == ([], 2)


async def test_runs_that_were_asked_for_are_made_though_the_job_has_had_its_last_one(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    ran: list[str] = []

    @scheduler.task(name="brief")
    async def brief() -> None:
        ran.append("brief")
        if len(ran) == 1:
            await scheduler.run_job("x")
            await scheduler.run_job("x")

    await scheduler.add_job("brief", every(10), id="x", max_runs=1)
    await clock.advance(30)
    assert (await scheduler.get_jobs(), len(ran)) == ([], 3)


async def test_a_number_of_runs_that_was_reached_before_is_refused(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    ran: list[str] = []

    @scheduler.task(name="brief")
    async def brief() -> None:
        ran.append("brief")

    await scheduler.add_job("brief", every(10), id="x")
    await clock.advance(25)
    for most in (1, 2):
        with pytest.raises(DefinitionError, match="'x' is reached, since 2 fire times have run: give more"):
            await scheduler.update_job("x", max_runs=most)
    await clock.advance(10)
    assert len(ran) == 3
    await scheduler.update_job("x", max_runs=4)
    await clock.advance(60)
    assert (await scheduler.get_jobs(), len(ran)) == ([], 4)


@pytest.mark.parametrize("policy", [{"pause_after_failures": 1}, {"on_exhausted": "pause"}], ids=str)
async def test_runs_that_were_asked_for_are_made_though_the_first_of_them_has_the_job_rest(
    scheduler: Scheduler, clock: ManualClock, policy: Any
) -> None:
    ran: list[str] = []

    @scheduler.task(name="step")
    async def step() -> None:
        ran.append("step")
        if len(ran) == 1:
            await scheduler.run_job("x")
            await scheduler.run_job("x")
        if len(ran) == 2:
            raise ValueError("it fails")

    await scheduler.add_job("step", every(10), id="x", **policy)
    await clock.advance(30)
    assert ((await scheduler.get_job("x")).state, len(ran)) == ("paused", 3)


async def test_a_forced_run_comes_after_those_that_were_asked_for_before_the_pause(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    ran: list[str] = []

    @scheduler.task(name="step")
    async def step() -> None:
        ran.append("step")
        if len(ran) == 1:
            await scheduler.run_job("x")
            await scheduler.pause_job("x")

    await scheduler.add_job("step", every(10), id="x")
    await clock.advance(30)
    assert ((await scheduler.get_job("x")).state, len(ran)) == ("paused", 1)
    await scheduler.run_job("x", force=True)
    await clock.advance(30)
    assert ((await scheduler.get_job("x")).state, len(ran)) == ("paused", 3)
