"""Jobs that are declared in code: @scheduler.job, before and after start, and again at each start."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from asyncsched import (
    ConflictingIdError,
    ConflictingTaskError,
    DefinitionError,
    MemoryStore,
    Retry,
    Scheduler,
    Task,
    TriggerError,
    UnknownStoreError,
    cron,
    every,
    manual,
    once,
)
from asyncsched.specs import JobSpec
from asyncsched.testing import ManualClock
from tests.support.stores import SharedMemory

pytestmark = pytest.mark.anyio

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NEW_YEAR + timedelta(seconds=seconds)


@pytest.fixture
def deploy(clock: ManualClock) -> Callable[..., Scheduler]:
    """Another version of the same service: one declared job over the store that the version before left."""
    store = MemoryStore()

    def make(trigger: Any, ran: list[float] | None = None, **options: Any) -> Scheduler:
        scheduler = Scheduler(store, clock=clock)

        @scheduler.job(trigger, id="report", **options)
        async def report() -> None:
            if ran is not None:
                ran.append((clock.now() - NEW_YEAR).total_seconds())

        return scheduler

    return make


async def test_a_declared_job_is_added_at_start(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock)

    @scheduler.job(every(60), id="report", tags=["daily"], retry=Retry(max_attempts=2), timeout=5)
    async def report() -> str:
        return "done"

    assert isinstance(report, Task)
    assert await report() == "done"
    async with scheduler:
        job = await scheduler.get_job("report")
        assert (job.task, job.tags, job.next_fire_time) == (report.name, ("daily",), at(60))


async def test_the_id_of_a_declared_job_is_its_tasks_name_unless_given(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock)

    @scheduler.job(every(60))
    async def report() -> None: ...

    async with scheduler:
        assert (await scheduler.get_job(report.name)).task == report.name


async def test_a_job_may_be_declared_after_start(scheduler: Scheduler, clock: ManualClock) -> None:
    ran: list[int] = []

    @scheduler.job(every(60), id="late")
    async def late() -> None:
        ran.append(1)

    await clock.advance(61)
    assert ran == [1]


async def test_a_registered_task_may_be_declared_as_several_jobs(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock)

    @scheduler.task(name="send")
    async def send(to: str) -> None: ...

    scheduler.job(every(60), id="a", args=["a"])(send)
    scheduler.job(every(90), id="b", kwargs={"to": "b"})(send)
    async with scheduler:
        jobs = await scheduler.get_jobs()
    assert [(job.id, job.task, job.args, job.kwargs) for job in jobs] == [
        ("a", "send", ("a",), {}),
        ("b", "send", (), {"to": "b"}),
    ]


async def test_a_declared_one_shot_without_a_backlog_runs_once_in_each_life(
    deploy: Callable[..., Scheduler], clock: ManualClock
) -> None:
    ran: list[float] = []
    async with deploy(once(delay=5), ran):
        await clock.advance(100)
    assert ran == [5]


@pytest.mark.parametrize(
    ("trigger", "options", "error"),
    [
        ("soon", {}, TriggerError),
        (every(60), {"priority": 11}, DefinitionError),
        (every(60), {"id": "a#b"}, DefinitionError),
        (every(60), {"retires": 3}, DefinitionError),
        (every(60), {"args": [1]}, DefinitionError),
        (datetime(2026, 1, 1), {}, DefinitionError),
    ],
    ids=str,
)
def test_a_declaration_that_can_never_work_is_refused_where_it_stands(
    trigger: Any, options: dict[str, Any], error: type[Exception]
) -> None:
    scheduler = Scheduler()

    async def report() -> None: ...

    with pytest.raises(error):
        scheduler.job(trigger, **options)(report)


async def test_a_declaration_for_a_store_that_is_not_there_fails_the_start(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock)

    @scheduler.job(every(60), store="later")
    async def report() -> None: ...

    with pytest.raises(UnknownStoreError, match="later"):
        await scheduler.start()
    assert scheduler.state == "stopped"
    await scheduler.add_store("later", "memory://")
    async with scheduler:
        assert (await scheduler.get_job(report.name)).store == "later"


def test_two_functions_of_one_name_are_refused() -> None:
    scheduler = Scheduler()

    def make() -> Callable[[], Any]:
        async def report() -> None: ...

        return report

    scheduler.job(every(60), id="a")(make())
    with pytest.raises(ConflictingTaskError):
        scheduler.job(every(60), id="b")(make())


# -- again at each start -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trigger", ["@every 60s", cron("* * * * *"), every(60)], ids=str)
async def test_an_unchanged_trigger_keeps_its_progress(
    deploy: Callable[..., Scheduler], clock: ManualClock, trigger: Any
) -> None:
    ran: list[float] = []
    async with deploy(trigger, ran):
        await clock.advance(90)
    async with deploy(trigger, ran) as scheduler:
        job = await scheduler.get_job("report")
        assert (job.next_fire_time, job.last_run) == (at(120), at(60))
        await clock.advance(40)
    assert ran == [60, 120]


async def test_what_came_due_between_two_lives_runs_late(
    deploy: Callable[..., Scheduler], clock: ManualClock
) -> None:
    ran: list[float] = []
    async with deploy(every(60), ran):
        await clock.advance(90)
    await clock.advance(100)
    async with deploy(every(60), ran) as scheduler:
        await clock.advance(60)
        [decision] = await scheduler.history.decisions("report")
        assert (decision.reason, decision.count) == ("coalesced", 1)
    assert ran == [60, 190, 240]


async def test_a_changed_trigger_computes_anew(deploy: Callable[..., Scheduler], clock: ManualClock) -> None:
    ran: list[float] = []
    async with deploy(every(60), ran):
        await clock.advance(90)
    async with deploy(every(100), ran) as scheduler:
        assert (await scheduler.get_job("report")).next_fire_time == at(190)
        assert len(await scheduler.get_jobs()) == 1
        await clock.advance(110)
    assert ran == [60, 190]


async def test_a_changed_trigger_leaves_no_backlog_of_the_old_one(
    deploy: Callable[..., Scheduler], clock: ManualClock
) -> None:
    ran: list[float] = []
    async with deploy(every(60), ran):
        await clock.advance(30)
    await clock.advance(600)
    async with deploy(cron("0 12 * * *"), ran):
        await clock.advance(600)
    assert ran == []


async def test_other_changes_take_effect_and_keep_the_progress(
    deploy: Callable[..., Scheduler], clock: ManualClock
) -> None:
    async with deploy(every(60), tags=["old"]):
        await clock.advance(90)
    async with deploy(every(60), tags=["new"], priority=4) as scheduler:
        job = await scheduler.get_job("report")
        assert (job.tags, job.priority, job.next_fire_time) == (("new",), 4, at(120))


async def test_an_unchanged_declaration_writes_nothing(
    deploy: Callable[..., Scheduler], clock: ManualClock
) -> None:
    async with deploy(every(60), tags=["a"], retry=Retry(max_attempts=2)) as scheduler:
        before = await scheduler.get_job("report")
    await clock.advance(5)
    async with deploy(every(60), tags=["a"], retry=Retry(max_attempts=2)) as scheduler:
        assert await scheduler.get_job("report") == before


@pytest.mark.parametrize("trigger", [every(60), every(100)], ids=["unchanged", "changed"])
async def test_a_paused_job_stays_paused(
    deploy: Callable[..., Scheduler], clock: ManualClock, trigger: Any
) -> None:
    ran: list[float] = []
    async with deploy(every(60), ran) as scheduler:
        await scheduler.pause_job("report")
    async with deploy(trigger, ran) as scheduler:
        await clock.advance(600)
        assert (await scheduler.get_job("report")).state == "paused"
    assert ran == []


async def test_run_on_start_asks_for_one_run_at_each_start(
    deploy: Callable[..., Scheduler], clock: ManualClock
) -> None:
    ran: list[float] = []
    for _ in range(3):
        async with deploy(every(3600), ran, run_on_start=True):
            await clock.advance(10)
    assert ran == [0, 10, 20]


async def test_run_on_start_of_a_paused_job_does_nothing(
    deploy: Callable[..., Scheduler], clock: ManualClock
) -> None:
    ran: list[float] = []
    async with deploy(every(3600), ran, run_on_start=True, paused=True):
        await clock.advance(10)
    assert ran == []


async def test_run_on_start_does_not_end_a_quarantine(clock: ManualClock) -> None:
    """Whoever is restarted because its job has killed it would run that job at each start."""
    store, ran = SharedMemory(), []

    def make(**options: Any) -> Scheduler:
        scheduler = Scheduler(store, clock=clock, **options)

        @scheduler.job(manual(), id="x", run_on_start=True, max_crashes=1)
        async def crash() -> None:
            ran.append(1)

        return scheduler

    async with make(queues=()):
        await store.claim(["default"], "of the dead", 1, 30)
    await clock.advance(60)
    for _ in range(3):
        async with make() as scheduler:
            await clock.advance(60)
            assert (await scheduler.get_job("x")).state == "quarantined"
    assert ran == []


async def test_two_instances_that_declare_the_same_job_run_it_once(
    deploy: Callable[..., Scheduler], clock: ManualClock
) -> None:
    ran: list[float] = []
    async with deploy(every(60), ran), deploy(every(60), ran):
        await clock.advance(130)
    assert ran == [60, 120]


def test_a_declaration_without_its_trigger_is_refused_where_it_stands() -> None:
    """It would be given the function for a trigger, and declare nothing."""
    scheduler = Scheduler()
    with pytest.raises(DefinitionError, match="trigger"):
        scheduler.job(cast(Any, at))


def test_one_id_is_declared_once() -> None:
    scheduler = Scheduler()

    @scheduler.job(every(10))
    async def work() -> None: ...

    with pytest.raises(ConflictingIdError, match=r"declared twice.*give one of them an id"):
        scheduler.job(every(20))(work)
    scheduler.job(every(20), id="another")(work)


def test_a_declaration_does_not_look_through_all_others() -> None:
    class Unread(list[JobSpec]):
        def __iter__(self) -> Iterator[JobSpec]:
            raise AssertionError("what thousands of declarations cost would grow with their square")

    scheduler = Scheduler()
    scheduler._intake.declared = Unread()
    task = scheduler.register(lambda: None, "work")
    for number in range(3):
        scheduler.job(every(10), id=f"{number}")(task)
    assert len(scheduler._intake.declared) == 3


# -- one-shots ---------------------------------------------------------------------------------------------------------


async def test_a_declared_one_shot_that_has_run_does_not_run_again_at_the_next_start(
    deploy: Callable[..., Scheduler], clock: ManualClock
) -> None:
    ran: list[float] = []
    for _ in range(3):
        async with deploy(once(at(60)), ran) as scheduler:
            await clock.advance(100)
            assert await scheduler.get_jobs() == []
            [change] = (await scheduler.plan()).changes
            assert (change.kind, change.reason) == (
                "unchanged",
                "it was there for this instant, and has come to its end",
            )
    assert ran == [60.0]


async def test_a_declared_one_shot_runs_at_each_instant_that_it_is_given(
    deploy: Callable[..., Scheduler], clock: ManualClock
) -> None:
    ran: list[float] = []
    # The last one is past when it is declared: late, not lost.
    for instant in (60, 160, 170, 60):
        async with deploy(once(at(instant)), ran):
            await clock.advance(100)
    assert ran == [60.0, 160.0, 200.0, 300.0]


async def test_a_declared_one_shot_that_was_taken_out_before_its_time_is_there_again_at_the_next_start(
    deploy: Callable[..., Scheduler], clock: ManualClock
) -> None:
    ran: list[float] = []
    async with deploy(once(at(60)), ran) as scheduler:
        await scheduler.remove_job("report")
    async with deploy(once(at(60)), ran):
        await clock.advance(100)
    assert ran == [60.0]


async def test_a_declared_job_whose_last_fire_time_has_passed_keeps_nobody_from_starting(
    deploy: Callable[..., Scheduler], clock: ManualClock
) -> None:
    """The code stays as it is when the day has passed until which a job was to run."""
    ran: list[float] = []
    trigger = every(60, end=at(150))
    first = deploy(trigger, ran)
    async with first:
        await clock.advance(600)
        assert await first.get_jobs() == []
    for scheduler in (first, deploy(trigger, ran)):
        async with scheduler:
            await clock.advance(600)
            assert await scheduler.get_jobs() == []
            [change] = (await scheduler.plan()).changes
            assert (change.kind, change.reason) == ("unchanged", "its last fire time has passed")
    assert ran == [60, 120]


async def test_the_last_fire_time_of_a_declared_job_runs_late_if_nobody_ran_when_it_came(
    deploy: Callable[..., Scheduler], clock: ManualClock
) -> None:
    ran: list[float] = []
    async with deploy(every(60, end=at(150)), ran):
        await clock.advance(60)
    await clock.advance(600)
    async with deploy(every(60, end=at(150)), ran) as scheduler:
        await clock.advance(60)
        assert await scheduler.get_jobs() == []
    assert ran == [60, 660]


async def test_a_delay_that_is_declared_begins_anew_with_each_start(
    deploy: Callable[..., Scheduler], clock: ManualClock
) -> None:
    ran: list[float] = []
    for _ in range(2):
        async with deploy(once(delay=5), ran):
            await clock.advance(100)
    assert ran == [5.0, 105.0]
