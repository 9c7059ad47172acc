"""What a deploy does to declared jobs: planned and shown first, applied at start or by hand, and never by an older instance."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from asyncsched import (
    AlreadyRunning,
    DeclarationsLeft,
    DefinitionError,
    Event,
    JobAdded,
    JobEvent,
    JobGone,
    JobPausedEvent,
    JobRemoved,
    JobUpdated,
    MemoryStore,
    Plan,
    PlanOutdated,
    Retry,
    Scheduler,
    cron,
    every,
    excluding,
    manual,
    once,
)
from asyncsched.codec import decode_definition, encode
from asyncsched.contract import Filter, Record, Update
from asyncsched.testing import ManualClock
from tests.support.stores import SharedMemory
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
Make = Callable[..., Scheduler]
Code = Callable[..., Scheduler]


async def work(*args: Any, **kwargs: Any) -> None: ...


def at(seconds: float) -> datetime:
    return NEW_YEAR + timedelta(seconds=seconds)


def written(scheduler: Scheduler, jobs: Mapping[str, Any]) -> Scheduler:
    """The code of one version of a service: jobs by id, each a trigger, or its options."""
    for id, given in jobs.items():
        options = given if isinstance(given, dict) else {"trigger": given}
        options = {"trigger": every(60), **options}
        scheduler.job(id=id, **options)(scheduler.register(work, "work"))
    return scheduler


@pytest.fixture
def code(make_scheduler: Make, clock: ManualClock) -> Code:
    def make(jobs: Mapping[str, Any], application: str | None = "shop", **options: Any) -> Scheduler:
        return written(make_scheduler(clock=clock, application=application, **options), jobs)

    return make


@pytest.fixture
def memory(clock: ManualClock) -> Code:
    """As *code*, where the store does not matter."""
    store = MemoryStore()

    def make(jobs: Mapping[str, Any], application: str | None = "shop", **options: Any) -> Scheduler:
        return written(Scheduler(store, clock=clock, application=application, **options), jobs)

    return make


@contextmanager
def heard(*schedulers: Scheduler, kind: type[Event] = JobEvent) -> Iterator[list[tuple[str, str]]]:
    """(event, job) of what they tell."""
    told: list[tuple[str, str]] = []
    for scheduler in schedulers:
        scheduler.on(kind, lambda event: told.append((type(event).__name__, getattr(event, "job_id", ""))))
    yield told


async def has_run(clock: ManualClock, scheduler: Scheduler, id: str, at: datetime) -> None:
    """Return once the fire time *at* of a job has run and that is written down; the clock may go a little further."""

    async def is_so() -> bool:
        # Whoever was in a call of the store when the time came takes a nap before the next one.
        await clock.advance(0.001)
        return bool(await scheduler.runs_at(id, at))

    await eventually(is_so, what=f"the run of {id} at {at}")


async def until(clock: ManualClock, seconds: float) -> None:
    await clock.advance(at(seconds) - clock.now())


def kinds(plan: Plan) -> dict[str, str]:
    return {change.id: change.kind for change in plan.changes}


async def ids(scheduler: Scheduler) -> list[str]:
    return sorted(job.id for job in await scheduler.get_jobs())


# -- the plan --------------------------------------------------------------------------------------------------------------


async def test_a_plan_tells_what_is_added_changed_unchanged_and_gone_and_changes_nothing(
    code: Code, clock: ManualClock
) -> None:
    async with code({"same": every(60), "other": every(60), "old": every(60)}) as scheduler:
        before = await scheduler.get_jobs()
    new = {
        "same": every(60),
        "other": {"trigger": every(100), "tags": ["a"], "timeout": 5, "priority": 3, "name": "x"},
        "new": every(60),
    }
    async with code(new, gone="remove").client() as client:
        plan = await client.plan()
        assert await client.get_jobs() == before
    assert kinds(plan) == {"new": "added", "other": "changed", "old": "gone", "same": "unchanged"}
    assert [change.id for change in plan.added + plan.changed + plan.gone + plan.unchanged] == [
        "new",
        "other",
        "old",
        "same",
    ]
    [other] = plan.changed
    assert {field.name: (field.old, field.new) for field in other.fields} == {
        "priority": ("0", "3"),
        "trigger": (str(every(60)), str(every(100))),
        "name": (None, "x"),
        "tags": ("[]", "['a']"),
        "timeout": (None, "5.0"),
    }
    assert plan.gone[0].action == "remove"
    assert not plan.is_empty


async def test_apply_makes_it_so(code: Code, clock: ManualClock) -> None:
    async with code({"same": every(60), "other": every(60), "old": every(60)}) as scheduler:
        await clock.advance(60)
        for id in ("same", "other", "old"):
            await has_run(clock, scheduler, id, at(60))
        await until(clock, 90)
    scheduler = code({"same": every(60), "other": every(100), "new": every(60)}, gone="remove")
    async with scheduler.client() as client:
        with heard(client) as told:
            await client.apply(await client.plan())
            jobs = {job.id: job.next_fire_time for job in await client.get_jobs()}
            assert jobs == {"same": at(120), "other": at(190), "new": at(150)}
            assert (await client.plan()).is_empty
    assert told == [("JobAdded", "new"), ("JobUpdated", "other"), ("JobRemoved", "old"), ("JobGone", "old")]


async def test_a_start_is_an_apply(code: Code, clock: ManualClock) -> None:
    async with code({"same": every(60), "other": every(60), "old": every(60)}) as scheduler:
        await clock.advance(60)
        for id in ("same", "other", "old"):
            await has_run(clock, scheduler, id, at(60))
        await until(clock, 90)
    scheduler = code({"same": every(60), "other": every(100), "new": every(60)}, gone="remove")
    with heard(scheduler) as told:
        async with scheduler:
            assert {job.id: job.next_fire_time for job in await scheduler.get_jobs()} == {
                "same": at(120),
                "other": at(190),
                "new": at(150),
            }
            assert (await scheduler.plan()).is_empty
    assert set(told) == {
        (JobAdded.__name__, "new"),
        (JobUpdated.__name__, "other"),
        (JobRemoved.__name__, "old"),
        (JobGone.__name__, "old"),
    }


async def test_an_unchanged_job_is_not_written_whatever_happened_to_it(
    code: Code, clock: ManualClock
) -> None:
    release = asyncio.Event()

    async def slow() -> None:
        await release.wait()

    first = code({"still": every(60)})
    first.job(every(60), id="slow")(first.register(slow, "slow"))
    async with first as scheduler:
        await until(clock, 60)

        async def is_running() -> bool:
            await clock.advance(0.001)
            return bool(scheduler.running("slow"))

        await eventually(is_running)
        await scheduler.cancel_job("slow")
        await has_run(clock, scheduler, "slow", at(60))
        await scheduler.pause_job("still")
        before = {job.id: job.version for job in await scheduler.get_jobs()}
    again = code({"still": every(60)})
    again.job(every(60), id="slow")(again.register(slow, "slow"))
    async with again as scheduler:
        assert {job.id: job.version for job in await scheduler.get_jobs()} == before


class CountingStore(MemoryStore):
    """Counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    async def get(self, ids: Sequence[str]) -> dict[str, Record]:
        self.calls["get"] += 1
        return await super().get(ids)

    async def add(self, records: Sequence[Record]) -> set[str]:
        # Instances show themselves, whatever is declared.
        self.calls["add"] += any(not record.id.startswith("#instance/") for record in records)
        return await super().add(records)

    async def update(self, update: Update) -> Record | None:
        self.calls["update"] += 1
        return await super().update(update)

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        self.calls["page"] += 1
        return await super().page(where, limit, after)


async def test_the_cost_of_a_start_is_one_read_where_nothing_changed(clock: ManualClock) -> None:
    store = CountingStore()
    jobs = {f"job-{n}": every(60) for n in range(200)}
    for cost in (Counter(get=1, add=2), Counter(get=1)):
        scheduler = written(Scheduler(store, clock=clock), jobs)
        await scheduler.start(paused=True)
        assert store.calls - Counter(add=0) == cost
        await scheduler.stop(0)
        store.calls.clear()


async def test_arguments_and_metadata_are_not_shown_unless_asked_for(memory: Code) -> None:
    old = {"job": {"args": ["hunter2"], "metadata": {"key": "sesame"}}}
    new = {"job": {"args": ["correcthorse"], "metadata": {"key": "tapioca"}}, "more": {"args": ["openup"]}}
    async with memory(old):
        pass
    async with memory(new).client() as client:
        plan = await client.plan()
        shown = await client.plan(show_arguments=True)
    for text in (str(plan), repr(plan)):
        assert "args" in text
        assert not any(
            secret in text for secret in ("hunter2", "sesame", "correcthorse", "tapioca", "openup")
        )
    assert "args: changed" in str(plan)
    assert "args: (('hunter2',), {}) -> (('correcthorse',), {})" in str(shown)
    assert "metadata: {'key': 'sesame'} -> {'key': 'tapioca'}" in str(shown)


async def test_the_effect_of_a_plan_is_the_fire_times_before_and_after(
    memory: Code, clock: ManualClock
) -> None:
    old = {
        "faster": every(3600),
        "kept": every(60),
        "gone": cron("0 9 * * *", tz="Europe/Berlin"),
        "resting": {"trigger": every(60), "paused": True},
        "tagged": every(60),
    }
    async with memory(old):
        await clock.advance(90)
    new = {
        "faster": every(1800),
        "kept": every(60),
        "new": once(delay=60),
        "resting": {"trigger": every(90)},
        "tagged": {"trigger": every(60), "tags": ["a"]},
        "hand": manual(),
    }
    async with memory(new, gone="remove").client() as client:
        plan = await client.plan()
    effects = {one.id: (one.before.count, one.after.count) for one in plan.effect()}
    assert effects == {"faster": (24, 48), "gone": (1, 0), "new": (0, 1), "hand": (0, 0)}
    [gone] = [one for one in plan.effect() if one.id == "gone"]
    assert [time.isoformat() for time in gone.before.first] == ["2026-01-01T09:00:00+01:00"]
    [faster] = [one for one in plan.effect(hours=2.5) if one.id == "faster"]
    assert faster.before.first == (at(3600), at(7200))
    assert faster.after.first == tuple(at(90 + n * 1800) for n in range(1, 6))
    assert "fire times, next 24 h: 24 from 2026-01-01T01:00:00+00:00 -> 48 from" in str(plan)


async def test_the_effect_of_a_busy_job_is_bounded(memory: Code) -> None:
    async with memory({"busy": every(1)}):
        pass
    async with memory({"busy": cron("* * * * * *")}).client() as client:
        [effect] = (await client.plan()).effect(hours=24 * 365)
    assert (effect.after.more, len(effect.after.first)) == (True, 5)
    assert effect.before.count > 1000


# -- apply refuses ---------------------------------------------------------------------------------------------------------


async def test_a_plan_is_refused_once_its_jobs_have_changed_and_names_them(code: Code) -> None:
    async with code({"a": every(60), "b": every(60)}):
        pass
    scheduler = code({"a": every(100), "b": every(100), "c": every(60)})
    async with scheduler.client() as client:
        plan = await client.plan()
        await client.update_job("b", tags=["by hand"])
        await client.add_job(work, every(5), id="c")
        with pytest.raises(PlanOutdated, match=r"nothing was applied.*: 'b', 'c'. Make another plan"):
            await client.apply(plan)
        assert (await client.get_job("a")).trigger.unbound() == every(60)
        await client.apply(await client.plan())
        assert (await client.get_job("a")).trigger.unbound() == every(100)
        assert (await client.get_job("c")).trigger.unbound() == every(60)


async def test_a_plan_is_not_outdated_by_runs(code: Code, clock: ManualClock) -> None:
    async with code({"a": every(60)}) as running:
        scheduler = code({"a": every(100)})
        async with scheduler.client() as client:
            plan = await client.plan()
            await clock.advance(60)
            await has_run(clock, running, "a", at(60))
            await client.apply(plan)
        assert (await running.get_job("a")).trigger.unbound() == every(100)


async def test_a_plan_of_another_revision_is_refused(memory: Code) -> None:
    async with memory({"a": every(60)}, revision=1).client() as client:
        plan = await client.plan()
    async with memory({"a": every(60)}, revision=2).client() as client:
        with pytest.raises(DefinitionError, match="revision 1, and this scheduler is of 'shop', revision 2"):
            await client.apply(plan)
        assert await client.get_jobs() == []


async def test_what_is_no_plan_is_refused(memory: Code) -> None:
    wrong: Any = "plan"
    async with memory({"a": every(60)}).client() as client:
        with pytest.raises(DefinitionError, match=r"apply\(\) takes what plan\(\) gave, not 'plan'"):
            await client.apply(wrong)


async def test_a_client_is_made_of_a_scheduler_that_is_stopped_and_runs_nothing(
    memory: Code, clock: ManualClock
) -> None:
    entered: list[int] = []
    scheduler = memory({"a": {"trigger": every(1), "run_on_start": True}})
    scheduler.register(work, "other", lifespan=lambda: entered.append(1))  # type: ignore[arg-type,return-value]  # no context manager, but it is never to be entered
    async with scheduler:
        await clock.advance(5)
        with pytest.raises(AlreadyRunning, match="ask itself"):
            scheduler.client()
        runs = len(await scheduler.history.runs())
    async with scheduler.client() as client:
        await clock.advance(100)
        assert len(await client.history.runs()) == runs
        assert await client.monitor.instances() == []
    assert entered == []


# -- gone ------------------------------------------------------------------------------------------------------------------


async def test_what_is_gone_is_reported_at_each_start_and_left_as_it_is(
    code: Code, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with code({"kept": every(60), "old": every(60)}):
        pass
    for minute in (1, 2):
        caplog.clear()
        scheduler = code({"kept": every(60)})
        with heard(scheduler) as told:
            async with scheduler:
                assert await ids(scheduler) == ["kept", "old"]
                await until(clock, 60 * minute)
                await has_run(clock, scheduler, "old", at(60 * minute))
        assert ("JobGone", "old") in told
        [record] = [r for r in caplog.records if r.levelno == logging.WARNING]
        assert "no longer declared by application 'shop'" in record.message
        assert "'old'" in record.message


async def test_what_is_gone_may_be_kept_without_a_word(code: Code, caplog: pytest.LogCaptureFixture) -> None:
    async with code({"kept": every(60), "old": every(60)}):
        pass
    scheduler = code({"kept": every(60)}, gone="keep")
    with heard(scheduler) as told:
        async with scheduler:
            [gone] = (await scheduler.plan()).gone
            assert (gone.id, gone.action, await ids(scheduler)) == ("old", "keep", ["kept", "old"])
    assert told == []
    assert not caplog.records


async def test_what_is_gone_rests_until_it_is_declared_again_and_has_no_backlog(
    code: Code, clock: ManualClock
) -> None:
    async with code({"kept": every(600), "old": every(60)}) as scheduler:
        await clock.advance(60)
        await has_run(clock, scheduler, "old", at(60))
        await until(clock, 90)
    scheduler = code({"kept": every(600)}, gone="pause")
    with heard(scheduler) as told:
        async with scheduler:
            await clock.advance(300)
            assert (await scheduler.get_job("old")).state == "paused"
            assert (await scheduler.plan()).is_empty
    assert told == [(JobPausedEvent.__name__, "old"), ("JobGone", "old")]
    async with code({"kept": every(600), "old": every(60)}, gone="pause") as scheduler:
        job = await scheduler.get_job("old")
        assert (job.state, job.next_fire_time) == ("scheduled", at(420))
        await clock.advance(30)
        await has_run(clock, scheduler, "old", at(420))
        [decision] = await scheduler.history.decisions("old")
        assert (decision.reason, decision.count) == ("paused", 5)


async def test_a_users_pause_outlives_a_job_that_was_gone(memory: Code) -> None:
    both = {"kept": every(60), "old": every(60)}
    async with memory(both) as scheduler:
        await scheduler.pause_job("old")
    async with memory({"kept": every(60)}, gone="pause"):
        pass
    async with memory(both, gone="pause") as scheduler:
        assert (await scheduler.get_job("old")).state == "paused"


async def test_a_gone_job_that_a_user_resumed_is_not_paused_again(memory: Code) -> None:
    async with memory({"kept": every(60), "old": every(60)}):
        pass
    async with memory({"kept": every(60)}, gone="pause") as scheduler:
        await scheduler.resume_job("old")
    async with memory({"kept": every(60)}, gone="pause") as scheduler:
        assert (await scheduler.get_job("old")).state == "scheduled"


async def test_what_was_removed_is_reported_once(code: Code) -> None:
    async with code({"kept": every(60), "old": every(60)}):
        pass
    for expected in ([("JobRemoved", "old"), ("JobGone", "old")], []):
        scheduler = code({"kept": every(60)}, gone="remove")
        with heard(scheduler) as told:
            async with scheduler:
                assert await ids(scheduler) == ["kept"]
        assert told == expected


async def test_jobs_of_other_applications_and_of_calls_are_never_gone(code: Code) -> None:
    async with code({"theirs": every(60)}, application="crm"):
        pass
    async with code({"ours": every(60), "taken": every(60)}) as scheduler:
        await scheduler.add_job("work", every(60), id="called")
        # Somebody has replaced a declared job by a call: it is the caller's now.
        await scheduler.add_job("work", every(90), id="taken", on_conflict="replace")
        await scheduler.add_job("work", every(90), id="onstart", run_on_start=True)
    async with code({"ours": every(60)}, gone="remove") as scheduler:
        assert await ids(scheduler) == ["called", "onstart", "ours", "taken", "theirs"]


async def test_a_job_that_moves_to_another_application_is_not_gone(
    memory: Code, caplog: pytest.LogCaptureFixture
) -> None:
    async with memory({"a": every(60), "moved": every(60)}):
        pass
    async with memory({"moved": every(60)}, application="crm"):
        pass
    assert "was declared by application 'shop', and is now by 'crm'" in caplog.text
    async with memory({"a": every(60)}, gone="remove") as scheduler:
        assert await ids(scheduler) == ["a", "moved"]


async def test_who_declares_nothing_or_runs_nothing_judges_nothing_gone_at_its_start(memory: Code) -> None:
    async with memory({"a": every(60), "b": every(60)}):
        pass
    async with memory({}, gone="remove") as scheduler:
        assert await ids(scheduler) == ["a", "b"]
    async with memory({"a": every(60)}, gone="remove", queues=()) as scheduler:
        assert await ids(scheduler) == ["a", "b"]
    async with memory({}, gone="remove").client() as client:
        plan = await client.plan()
        assert kinds(plan) == {"a": "gone", "b": "gone"}
        await client.apply(plan)
        assert await ids(client) == []


async def test_what_is_declared_while_running_is_never_gone(memory: Code, clock: ManualClock) -> None:
    for _ in range(2):
        scheduler = memory({"a": every(60)}, gone="remove")
        async with scheduler:
            written(scheduler, {"late": every(60)})
            await clock.advance(0)
            assert await ids(scheduler) == ["a", "late"]
            assert (await scheduler.get_job("late")).version == 1


async def test_a_scheduler_that_starts_again_keeps_what_was_declared_while_it_ran_out_of_the_roster(
    memory: Code, clock: ManualClock
) -> None:
    scheduler = memory({"a": every(60)})
    async with scheduler:
        written(scheduler, {"late": every(60)})
        await clock.advance(0)
    async with scheduler:
        assert await ids(scheduler) == ["a", "late"]
    async with memory({"a": every(60)}, gone="remove") as scheduler:
        assert await ids(scheduler) == ["a", "late"]


async def test_a_job_that_moves_to_another_store_is_gone_from_the_first(clock: ManualClock) -> None:
    stores = {"default": MemoryStore(), "second": MemoryStore()}

    def make(store: str) -> Scheduler:
        scheduler = Scheduler(stores, clock=clock, application="shop", gone="remove")
        return written(scheduler, {"a": {"store": store}})

    async with make("default"):
        pass
    async with make("second") as scheduler:
        assert [(job.id, job.store) for job in await scheduler.get_jobs()] == [("a", "second")]


@pytest.mark.parametrize("gone", ["pause", "remove"])
def test_only_a_named_application_may_end_what_is_gone(gone: Any) -> None:
    with pytest.raises(DefinitionError, match="give application="):
        Scheduler(gone=gone)


@pytest.mark.parametrize(
    "options",
    [{"gone": "delete"}, {"revision": -1}, {"revision": "1"}, {"revision": True}, {"application": ""}],
    ids=str,
)
def test_what_can_never_work_is_refused_by_the_constructor(options: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        Scheduler(**options)


# -- revisions -------------------------------------------------------------------------------------------------------------


async def test_an_older_revision_that_starts_later_overwrites_nothing(
    code: Code, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    old = {"same": every(60), "changed": every(60), "dropped": every(60)}
    new = {"same": every(60), "changed": every(100), "added": every(60)}
    async with code(old, revision=4, gone="remove"):
        pass
    async with code(new, revision=5, gone="remove") as newer:
        before = await newer.get_jobs()
        older = code(old, revision=4, gone="remove")
        left: list[DeclarationsLeft] = []
        older.on(DeclarationsLeft, left.append)
        with heard(older) as told:
            async with older:
                assert kinds(await older.plan()) == dict.fromkeys(
                    ["same", "changed", "added", "dropped"], "left"
                )
                assert (await older.plan()).is_empty
        assert await newer.get_jobs() == before
    assert [(one.application, one.revision, one.stored_revision) for one in left] == [("shop", 4, 5)]
    assert told == []
    assert "stay as revision 5 of application 'shop' has them, and this is revision 4" in caplog.text


async def test_each_job_knows_its_revision_should_that_of_the_application_be_lost(clock: ManualClock) -> None:
    store = MemoryStore()

    def make(revision: int, jobs: Mapping[str, Any]) -> Scheduler:
        return written(Scheduler(store, clock=clock, application="shop", revision=revision), jobs)

    async with make(5, {"a": every(100)}) as newer:
        assert await store.remove(["#declared/shop"])
        async with make(4, {"a": every(60)}) as older:
            assert kinds(await older.plan()) == {"a": "left"}
        assert (await newer.get_job("a")).trigger.unbound() == every(100)


async def test_an_instance_without_a_revision_is_older_than_any(code: Code) -> None:
    async with code({"a": every(100)}, revision=0):
        pass
    async with code({"a": every(60), "b": every(60)}) as scheduler:
        assert [job.trigger.unbound() for job in await scheduler.get_jobs()] == [every(100)]


async def test_an_instance_shows_its_revision(memory: Code) -> None:
    async with memory({}, revision=7) as scheduler:
        assert [one.revision for one in await scheduler.monitor.instances()] == [7]


async def test_without_revisions_the_last_one_to_start_wins(code: Code) -> None:
    async with code({"a": every(100)}):
        pass
    async with code({"a": every(60)}) as scheduler:
        assert (await scheduler.get_job("a")).trigger.unbound() == every(60)


async def test_an_older_instance_adds_no_job_that_is_declared_while_it_runs(
    memory: Code, clock: ManualClock
) -> None:
    async with memory({"a": every(60)}, revision=4) as older, memory({"a": every(60)}, revision=5):
        written(older, {"late": every(60)})
        await clock.advance(0)
        assert await ids(older) == ["a"]


async def test_a_rollback_is_planned_and_applied_and_holds(code: Code) -> None:
    async with code({"a": every(60), "b": every(60)}, revision=4):
        pass
    async with code({"a": every(100), "c": every(60)}, revision=5, gone="remove"):
        pass
    back = code({"a": every(60), "b": every(60)}, revision=4, gone="remove")
    async with back.client() as client:
        plan = await client.plan(rollback=True)
        assert kinds(plan) == {"a": "changed", "b": "added", "c": "gone"}
        await client.apply(plan)
    async with back as scheduler:
        assert await ids(scheduler) == ["a", "b"]
        assert (await scheduler.plan()).is_empty


@pytest.mark.parametrize("order", [1, -1], ids=["older first", "newer first"])
async def test_revisions_that_start_together_leave_what_the_newest_declares(code: Code, order: int) -> None:
    jobs = [{"a": every(60 + n), f"only-{n}": every(60), "b": {"tags": [f"r{n}"]}} for n in range(5)]
    schedulers = [code(jobs[n], revision=n, gone="report") for n in range(5)][::order]
    await asyncio.gather(*(scheduler.start(paused=True) for scheduler in schedulers))
    try:
        by_id = {job.id: job for job in await schedulers[0].get_jobs()}
        assert by_id["a"].trigger.unbound() == every(64)
        assert by_id["b"].tags == ("r4",)
        assert "only-4" in by_id
        assert (await schedulers[0].plan()).stored_revisions == {"default": 4}
    finally:
        for scheduler in schedulers:
            await scheduler.stop(0)


@pytest.mark.parametrize("is_paused", [False, True], ids=["due", "paused"])
async def test_a_newer_revision_that_comes_while_an_older_one_removes_what_is_gone_keeps_its_job(
    clock: ManualClock, is_paused: bool
) -> None:
    class Racing(SharedMemory):
        newer: Scheduler | None = None

        async def update(self, update: Update) -> Record | None:
            written = await super().update(update)
            if self.newer is not None and update.id == ("a" if is_paused else "x"):
                newer, self.newer = self.newer, None
                await newer.start(paused=True)
            return written

    store = Racing()

    def make(revision: int, *ids: str) -> Scheduler:
        scheduler = Scheduler(store, clock=clock, application="shop", revision=revision, gone="remove")
        return written(scheduler, {id: {"tags": [f"r{revision}"]} for id in ids})

    async with make(1, "a", "x") as scheduler:
        if is_paused:
            await scheduler.pause_job("x")
    newer = store.newer = make(3, "a", "x")
    async with make(2, "a") as scheduler:
        assert {job.id: job.tags for job in await scheduler.get_jobs()} == {"a": ("r3",), "x": ("r3",)}
        assert ((await scheduler.get_job("x")).state == "paused") is is_paused
    await newer.stop(0)


async def test_what_a_newer_asyncsched_has_stored_is_left_as_it_is(clock: ManualClock, memory: Code) -> None:
    store = MemoryStore()

    def make() -> Scheduler:
        return written(Scheduler(store, clock=clock), {"a": every(60), "b": every(60)})

    async with make():
        await clock.advance(1)
        [record] = (await store.get(["a"])).values()
        unreadable = replace(record, body=b"\x92\x63\x90")
        await store.remove(["a"])
        await store.add([unreadable])
    scheduler = make()
    async with scheduler:
        [left] = (await scheduler.plan()).left
        assert left.id == "a"
        assert "format 99" in left.reason
        assert (await store.get(["a"]))["a"].body == unreadable.body
        assert (await scheduler.get_job("b")).state == "scheduled"


async def test_jobs_of_before_marks_are_taken_over_without_a_change_to_be_seen(memory: Code) -> None:
    async with memory({}) as scheduler:
        scheduler.register(work, "work")
        await scheduler.add_job("work", every(60), id="a")
    async with memory({"a": every(60)}).client() as client:
        plan = await client.plan()
        assert kinds(plan) == {"a": "unchanged"}
        assert plan.is_empty
        await client.apply(plan)
    async with memory({"b": every(60)}).client() as client:
        assert kinds(await client.plan()) == {"a": "gone", "b": "added"}


async def test_policies_are_shown_in_words(memory: Code) -> None:
    async with memory({"a": {"retry": Retry(max_attempts=2)}}):
        pass
    async with memory({"a": {"retry": Retry(max_attempts=3)}}).client() as client:
        text = str(await client.plan())
    assert text.splitlines() == [
        "application 'shop'",
        "~ a: changed",
        "    retry: max_attempts=2 -> max_attempts=3",
    ]


# -- a start that goes on, whatever one job is like ------------------------------------------------------------------------


async def stored_as(store: MemoryStore, id: str, **fields: Any) -> None:
    [record] = (await store.get([id])).values()
    await store.remove([id])
    await store.add([replace(record, **fields)])


async def test_a_job_that_cannot_be_asked_for_at_start_does_not_keep_the_scheduler_from_starting(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = SharedMemory()

    def make() -> Scheduler:
        jobs = {"a": {"run_on_start": True, "queue": "elsewhere"}, "b": {"run_on_start": True}}
        return written(Scheduler(store, clock=clock), jobs)

    for _ in range(101):
        scheduler = make()
        await scheduler.start(paused=True)
        await scheduler.stop(0)
    assert "job 'a' of store 'default' is not run at start: job 'a' has 100 run requests" in caplog.text
    await stored_as(store, "b", body=b"\x92\x63\x90")
    async with make() as scheduler:
        assert scheduler.is_running
    assert "job 'b' of store 'default' is not run at start: stored in format 99" in caplog.text


async def test_a_job_that_is_paused_while_a_start_asks_for_it_stays_paused(clock: ManualClock) -> None:
    class Pausing(SharedMemory):
        other: Scheduler | None = None

        async def get(self, ids: Sequence[str]) -> dict[str, Record]:
            found = await super().get(ids)
            if self.other is not None and ids == ["a"]:
                other, self.other = self.other, None
                await other.pause_job("a")
            return found

    store = Pausing()
    async with written(Scheduler(store, clock=clock), {"a": every(60)}) as other:
        store.other = other
        async with written(Scheduler(store, clock=clock), {"a": {"run_on_start": True}}):
            assert store.other is None
            assert (await other.get_job("a")).state == "paused"


@pytest.mark.parametrize("gone", ["pause", "remove"])
async def test_a_quarantined_job_of_which_the_progress_is_corrupt_is_left_when_it_is_gone(
    clock: ManualClock, gone: Any
) -> None:
    store = SharedMemory()

    def make(jobs: Mapping[str, Any]) -> Scheduler:
        return written(Scheduler(store, clock=clock, application="shop", gone=gone), jobs)

    async with make({"a": every(60), "b": every(60)}):
        pass
    await stored_as(store, "b", cursor=b"\xc1", hold="quarantined", wake_at=None)
    async with make({"a": every(60)}) as scheduler:
        assert [(change.id, change.kind) for change in (await scheduler.plan()).left] == [("b", "left")]
        assert await ids(scheduler) == ["a", "b"]


async def test_arguments_that_cannot_be_read_here_do_not_keep_a_plan_from_being_shown(
    clock: ManualClock,
) -> None:
    store = SharedMemory()

    def make(argument: int) -> Scheduler:
        return written(Scheduler(store, clock=clock), {"a": {"args": [argument]}})

    async with make(1):
        pass
    [record] = (await store.get(["a"])).values()
    await stored_as(store, "a", body=encode(replace(decode_definition(record.body), args=b"?")))
    async with make(2).client() as client:
        plan = await client.plan(show_arguments=True)
    assert "args: cannot be read here -> ((2,), {})" in str(plan)


async def test_a_trigger_that_gives_up_its_search_can_be_replaced_while_its_job_runs(
    clock: ManualClock,
) -> None:
    store = SharedMemory()
    # Its last fire time is the one at 60 s.
    trigger = excluding(every(1), every(1, start=at(61)))
    async with written(Scheduler(store, clock=clock), {"a": trigger}):
        pass
    [record] = (await store.get(["a"])).values()
    body = encode(replace(decode_definition(record.body), first=at(60).timestamp()))
    await stored_as(store, "a", body=body, holder="somebody", fence=1, wake_at=at(90).timestamp())
    async with written(Scheduler(store, clock=clock), {"a": every(60)}) as scheduler:
        assert (await scheduler.get_job("a")).trigger.unbound() == every(60)


async def test_a_one_shot_is_added_once_by_a_start_that_has_to_look_again(clock: ManualClock) -> None:
    """It has run and gone by the time of the second look."""
    runs: list[int] = []

    async def count() -> None:
        runs.append(1)

    async def has_counted() -> bool:
        await clock.advance(0.01)
        return bool(runs)

    class Racing(SharedMemory):
        other: Scheduler | None = None

        async def update(self, update: Update) -> Record | None:
            if update.id == "raced" and self.other is not None:
                other, self.other = self.other, None
                await eventually(has_counted)
                await other.update_job("raced", tags=["x"])
            return await super().update(update)

    store = Racing()
    other = Scheduler(store, clock=clock)
    other.register(count, "count")
    async with written(other, {"raced": every(600)}):
        store.other = other
        scheduler = written(Scheduler(store, clock=clock), {"raced": every(500)})
        scheduler.job(once(), id="one")(scheduler.register(count, "count"))
        async with scheduler:
            await clock.advance(1)
    assert store.other is None
    assert len(runs) == 1


async def test_a_job_that_is_declared_while_the_scheduler_starts_is_added(clock: ManualClock) -> None:
    class Declaring(SharedMemory):
        scheduler: Scheduler | None = None

        async def add(self, records: Sequence[Record]) -> set[str]:
            if self.scheduler is not None and records[0].id == "a":
                written(self.scheduler, {"b": every(60)})
            return await super().add(records)

    store = Declaring()
    store.scheduler = written(Scheduler(store, clock=clock), {"a": every(60)})
    async with store.scheduler as scheduler:
        await clock.advance(1)
        assert await ids(scheduler) == ["a", "b"]


async def test_a_pause_by_a_user_after_a_job_was_gone_stays_when_it_is_declared_again(memory: Code) -> None:
    both = {"kept": every(60), "old": every(60)}
    async with memory(both):
        pass
    async with memory({"kept": every(60)}, gone="pause") as scheduler:
        await scheduler.resume_job("old")
        await scheduler.pause_job("old")
    async with memory(both, gone="pause") as scheduler:
        assert (await scheduler.get_job("old")).state == "paused"


async def test_a_plan_is_made_without_the_default_store(clock: ManualClock) -> None:
    scheduler = Scheduler({"default": MemoryStore(), "other": MemoryStore()}, clock=clock)
    async with written(scheduler, {"a": {"store": "other"}}):
        await scheduler.remove_store("default")
        assert kinds(await scheduler.plan()) == {"a": "unchanged"}
