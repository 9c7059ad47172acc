"""Adding jobs: in each form, with each trigger, and what is refused before anything is written."""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest
from msgspec.structs import replace

from asyncsched import (
    AsyncSchedError,
    ConflictingIdError,
    CronError,
    DefinitionError,
    Job,
    JobSpec,
    Receipt,
    Retry,
    Scheduler,
    SerializationError,
    Trigger,
    TriggerError,
    UnknownStoreError,
    UnknownTaskError,
    any_of,
    cron,
    every,
    manual,
    once,
)
from asyncsched.testing import ManualClock
from tests.support.naming import shown

pytestmark = pytest.mark.anyio

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)

Ran = list[tuple[datetime, Any]]


async def module_level(word: str = "") -> str:
    return word


@pytest.fixture
def ran(scheduler: Scheduler, clock: ManualClock) -> Ran:
    """What the task ``note`` was called with, and when."""
    ran: Ran = []

    @scheduler.task(name="note")
    async def note(word: Any = None) -> None:
        ran.append((clock.now(), word))

    return ran


def words(ran: Ran) -> list[Any]:
    return [word for _, word in ran]


def times(ran: Ran) -> list[float]:
    return [(at - NEW_YEAR).total_seconds() for at, _ in ran]


# -- what is added -----------------------------------------------------------------------------------------------------


async def test_a_task_is_added_with_its_arguments(scheduler: Scheduler, clock: ManualClock, ran: Ran) -> None:
    note = scheduler.tasks["note"]
    await scheduler.add_job(note, args=["a"])
    await scheduler.add_job(note, kwargs={"word": "b"})
    await clock.advance(0)
    assert words(ran) == ["a", "b"]


async def test_a_bound_call_is_added(scheduler: Scheduler, clock: ManualClock, ran: Ran) -> None:
    await scheduler.add_job(scheduler.tasks["note"].bind("a"))
    await clock.advance(0)
    assert words(ran) == ["a"]


async def test_a_bound_call_takes_no_further_arguments(scheduler: Scheduler, ran: Ran) -> None:
    with pytest.raises(DefinitionError, match="bound call"):
        await scheduler.add_job(scheduler.tasks["note"].bind("a"), args=["b"])


async def test_a_registered_name_is_added(scheduler: Scheduler, clock: ManualClock, ran: Ran) -> None:
    await scheduler.add_job("note", args=["a"])
    await clock.advance(0)
    assert words(ran) == ["a"]


async def test_a_module_level_function_is_added_and_registered(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    job = await scheduler.add_job(module_level, args=["a"])
    await clock.advance(0)
    assert job.task == f"{__name__}:module_level"
    assert job.task in scheduler.tasks
    assert (await scheduler.history.runs(job.id))[0].result == "a"


async def test_the_function_of_a_registered_task_is_that_task(scheduler: Scheduler) -> None:
    scheduler.register(module_level, name="named")
    assert (await scheduler.add_job(module_level, every(60))).task == "named"


async def test_an_unknown_name_is_refused(scheduler: Scheduler) -> None:
    with pytest.raises(UnknownTaskError, match="nobody") as caught:
        await scheduler.add_job("nobody")
    assert caught.value.task == "nobody"


@pytest.mark.parametrize("thing", [None, 3, ["note"]])
async def test_what_is_no_task_is_refused(scheduler: Scheduler, thing: Any) -> None:
    with pytest.raises(DefinitionError):
        await scheduler.add_job(thing)


async def test_an_unknown_store_is_refused(scheduler: Scheduler) -> None:
    with pytest.raises(UnknownStoreError) as caught:
        await scheduler.add_job(module_level, store="nowhere")
    assert caught.value.store == "nowhere"


async def test_enqueue_runs_a_task_now(scheduler: Scheduler, clock: ManualClock, ran: Ran) -> None:
    note = scheduler.tasks["note"]
    receipt = await scheduler.enqueue(note, "a")
    await scheduler.enqueue(note, word="b")
    await clock.advance(0)
    assert words(ran) == ["a", "b"]
    assert isinstance(receipt, Receipt)
    assert (receipt.task, receipt.store) == ("note", "default")
    assert (await scheduler.history.runs(receipt.job_id))[0].outcome == "succeeded"


async def test_enqueue_checks_the_call(scheduler: Scheduler, ran: Ran) -> None:
    with pytest.raises(DefinitionError):
        await scheduler.enqueue("note", "a", "b")
    assert await scheduler.get_jobs() == []


async def test_enqueue_leaves_keyword_names_to_the_task(scheduler: Scheduler, clock: ManualClock) -> None:
    seen: dict[str, Any] = {}

    @scheduler.task(name="odd")
    async def odd(*, task: int, store: int, id: int, args: int, trigger: int) -> None:
        seen.update(task=task, store=store, id=id, args=args, trigger=trigger)

    await scheduler.enqueue(odd, task=1, store=2, id=3, args=4, trigger=5)
    await clock.advance(0)
    assert seen == {"task": 1, "store": 2, "id": 3, "args": 4, "trigger": 5}


# -- when it is due ----------------------------------------------------------------------------------------------------


async def test_without_a_trigger_a_job_is_due_now_and_runs_once(
    scheduler: Scheduler, clock: ManualClock, ran: Ran
) -> None:
    job = await scheduler.add_job("note")
    assert job.next_fire_time == clock.now()
    await clock.advance(600)
    assert times(ran) == [0.0]
    assert await scheduler.get_jobs() == []


@pytest.mark.parametrize(
    ("trigger", "fires"),
    [
        (once(delay=90), [90]),
        (once(delay=timedelta(minutes=2)), [120]),
        (once(NEW_YEAR + timedelta(seconds=45)), [45]),
        (once(NEW_YEAR - timedelta(days=1)), [0]),
        (once(), [0]),
        (every(60), [60, 120, 180]),
        (every("1m30s"), [90, 180]),
        (every(minutes=1, seconds=5), [65, 130, 195]),
        (every(60, start=NEW_YEAR + timedelta(seconds=100)), [100, 160]),
        (every(60, end=NEW_YEAR + timedelta(seconds=130)), [60, 120]),
        (cron("* * * * *"), [60, 120, 180]),
        (cron("30 * * * * *"), [30, 90, 150]),
        (manual(), []),
        ("* * * * *", [60, 120, 180]),
        ("@every 1m", [60, 120, 180]),
        ("@every 100s", [100, 200]),
        ("@hourly", []),
        ("@manual", []),
    ],
    ids=str,
)
async def test_each_trigger_fires_at_its_times(
    scheduler: Scheduler, clock: ManualClock, ran: Ran, trigger: Any, fires: list[float]
) -> None:
    await scheduler.add_job("note", trigger)
    await clock.advance(200)
    assert times(ran) == fires


async def test_macros_and_strings_give_the_same_triggers(scheduler: Scheduler, ran: Ran) -> None:
    job = await scheduler.add_job("note", "@daily")
    assert job.next_fire_time == datetime(2026, 1, 2, tzinfo=UTC)
    assert job.trigger == cron("@daily")


@pytest.mark.parametrize("text", ["", "soon", "* * *", "61 * * * *", "@fortnightly"])
async def test_a_string_that_is_no_trigger_is_refused(scheduler: Scheduler, ran: Ran, text: str) -> None:
    with pytest.raises(TriggerError):
        await scheduler.add_job("note", text)


async def test_a_bad_cron_expression_is_a_cron_error_that_shows_it(scheduler: Scheduler, ran: Ran) -> None:
    with pytest.raises(CronError, match=re.escape("0 25 * * *")):
        await scheduler.add_job("note", "0 25 * * *")


@pytest.mark.parametrize("trigger", [60, timedelta(minutes=1), datetime(2026, 1, 1, tzinfo=UTC), every])
async def test_what_is_no_trigger_is_refused(scheduler: Scheduler, ran: Ran, trigger: Any) -> None:
    with pytest.raises(DefinitionError):
        await scheduler.add_job("note", trigger)


class EveryHour(Trigger, frozen=True, array_like=True, gc=False, tag="hour"):
    """One of a user's own, which no store can read back."""

    def next(self, after: float) -> float:
        return after + 3600

    def previous(self, until: float) -> float:
        return until


async def test_a_trigger_that_could_not_be_read_back_is_refused(scheduler: Scheduler, ran: Ran) -> None:
    with pytest.raises(DefinitionError, match="EveryHour"):
        await scheduler.add_job("note", cast(Any, EveryHour()))
    with pytest.raises(TriggerError, match="EveryHour"):
        any_of(EveryHour())


async def test_a_recurring_trigger_that_never_fires_is_refused(scheduler: Scheduler, ran: Ran) -> None:
    with pytest.raises(DefinitionError, match="never fire"):
        await scheduler.add_job("note", every(60, end=NEW_YEAR - timedelta(days=1)))


@pytest.mark.parametrize(
    "make",
    [
        lambda naive: once(naive),
        lambda naive: every(60, start=naive),
        lambda naive: every(60, end=naive),
        lambda naive: every(60, anchor=naive),
        lambda naive: cron("* * * * *", start=naive),
        lambda naive: cron("* * * * *", end=naive),
        lambda naive: every(60).next_after(naive),
    ],
)
def test_naive_datetimes_are_refused_with_the_remedy(make: Any) -> None:
    with pytest.raises(DefinitionError, match="tzinfo=UTC"):
        make(datetime(2026, 1, 1))


async def test_a_job_that_is_late_runs_and_is_not_skipped(
    scheduler: Scheduler, clock: ManualClock, ran: Ran
) -> None:
    await scheduler.pause()
    await scheduler.add_job("note", once(delay=1))
    await clock.advance(86_400)
    await scheduler.resume()
    await clock.advance(0)
    assert times(ran) == [86_400]


async def test_a_job_may_be_added_paused(scheduler: Scheduler, clock: ManualClock, ran: Ran) -> None:
    job = await scheduler.add_job("note", every(60), id="x", paused=True)
    assert (job.state, job.next_fire_time) == ("paused", None)
    await clock.advance(200)
    assert ran == []
    resumed = await scheduler.resume_job("x")
    assert resumed.next_fire_time == NEW_YEAR + timedelta(seconds=240)


async def test_run_immediately_makes_the_first_run_due_now(
    scheduler: Scheduler, clock: ManualClock, ran: Ran
) -> None:
    await scheduler.add_job("note", every(60), run_immediately=True)
    await clock.advance(130)
    assert times(ran) == [0, 60, 120]


async def test_run_immediately_is_not_put_off_by_jitter(
    scheduler: Scheduler, clock: ManualClock, ran: Ran
) -> None:
    job = await scheduler.add_job("note", every(60), id="x", run_immediately=True, jitter=50)
    explained = await scheduler.explain("x", 2)
    assert job.next_fire_time == NEW_YEAR == explained.coming[0].due_at
    await clock.advance(130)
    assert times(ran)[0] == 0
    assert 60 < times(ran)[1] < 110


async def test_a_new_job_shows_the_jitter_that_is_the_scheduler_s_default(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock, defaults={"jitter": 50})
    scheduler.task(name="note")(_nothing)
    async with scheduler:
        job = await scheduler.add_job("note", every(60), id="x")
        await clock.advance(60)
        assert job.next_fire_time == (await scheduler.get_job("x")).next_fire_time


async def _nothing() -> None: ...


async def test_run_on_start_asks_for_a_run_at_each_start(clock: ManualClock) -> None:
    scheduler, ran = Scheduler(clock=clock), list[int]()

    @scheduler.task(name="note")
    async def note() -> None:
        ran.append(1)

    async with scheduler:
        await scheduler.add_job(note, every(600), id="x", run_on_start=True)
        await clock.advance(10)
        assert ran == []
    for _ in range(2):
        async with scheduler:
            await clock.advance(10)
            assert (await scheduler.get_job("x")).next_fire_time == NEW_YEAR + timedelta(seconds=600)
    assert ran == [1, 1]


async def test_run_on_start_brings_no_job_back_that_is_gone(clock: ManualClock) -> None:
    scheduler, ran = Scheduler(clock=clock), list[str]()

    @scheduler.task(name="note")
    async def note(word: str) -> None:
        ran.append(word)

    async with scheduler:
        await scheduler.add_job(note.bind("once"), run_on_start=True)
        await scheduler.add_job(note.bind("removed"), every(600), id="removed", run_on_start=True)
        await scheduler.add_job(note.bind("anew"), every(600), id="anew", run_on_start=True)
        await clock.advance(10)
        assert await scheduler.remove_jobs(id_prefix="") == 2
        await scheduler.add_job(note.bind("anew"), every(600), id="anew")
    async with scheduler:
        await clock.advance(10)
        assert [job.id for job in await scheduler.get_jobs()] == ["anew"]
    assert ran == ["once"]


@pytest.mark.parametrize("name", ["remove_job", "remove_jobs"])
async def test_run_on_start_ends_with_its_job(clock: ManualClock, name: str) -> None:
    """Not so the next one of its id, whatever that was added for."""
    scheduler, ran = Scheduler(clock=clock), []

    @scheduler.task(name="note")
    async def note() -> None:
        ran.append(1)

    async with scheduler:
        await scheduler.add_job(note, manual(), id="x", run_on_start=True)
        await (scheduler.remove_job("x") if name == "remove_job" else scheduler.remove_jobs(task="note"))
        await scheduler.add_job(note, manual(), id="x", on_conflict="keep")
    async with scheduler:
        await clock.advance(1)
    assert ran == []


async def test_run_on_start_of_a_job_that_was_refused_leaves_the_one_that_is_there(
    clock: ManualClock,
) -> None:
    scheduler, ran = Scheduler(clock=clock), list[str]()

    @scheduler.task(name="note")
    async def note(word: str) -> None:
        ran.append(word)

    async with scheduler:
        theirs = await scheduler.add_job(note.bind("theirs"), every(600), id="x")
        with pytest.raises(ConflictingIdError):
            await scheduler.add_job(note.bind("ours"), every(60), id="x", run_on_start=True)
    async with scheduler:
        await clock.advance(10)
        assert await scheduler.get_job("x") == theirs
    assert ran == []


async def test_run_on_start_of_a_job_in_a_store_that_was_removed_is_forgotten(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock)
    scheduler.register(module_level)
    async with scheduler:
        await scheduler.add_store("other", "memory://")
        await scheduler.add_job(module_level, every(600), store="other", run_on_start=True)
        await scheduler.remove_store("other")
    async with scheduler:
        assert await scheduler.get_jobs() == []


# -- how it is kept ----------------------------------------------------------------------------------------------------


async def test_a_job_shows_how_it_was_added(scheduler: Scheduler, clock: ManualClock, ran: Ran) -> None:
    job = await scheduler.add_job(
        "note",
        every(60),
        id="x",
        args=[{"a": (1, 2)}],
        name="a note",
        queue="mail",
        priority=7,
        tags=["red", "green"],
        metadata={"owner": "me", "since": NEW_YEAR},
        timeout=5,
        retry=Retry(max_attempts=3),
    )
    assert job == await scheduler.get_job("x")
    assert (job.id, job.name, job.task, job.store, job.queue) == ("x", "a note", "note", "default", "mail")
    assert job.trigger.unbound() == every(60)
    assert (job.args, job.kwargs) == (({"a": (1, 2)},), {})
    assert (job.priority, job.tags) == (7, ("red", "green"))
    assert job.metadata == {"owner": "me", "since": NEW_YEAR}
    assert (job.state, job.version, job.consecutive_failures) == ("scheduled", 1, 0)
    assert (job.last_run, job.last_success, job.last_error) == (None, None, None)
    assert job.created_at == job.updated_at == NEW_YEAR
    assert job.next_fire_time == NEW_YEAR + timedelta(seconds=60)


async def test_a_jobs_name_is_its_tasks_unless_given(scheduler: Scheduler, ran: Ran) -> None:
    assert (await scheduler.add_job("note", every(60))).name == "note"


async def test_a_job_shows_how_its_runs_went(scheduler: Scheduler, clock: ManualClock) -> None:
    @scheduler.task(name="flaky")
    async def flaky() -> None:
        if clock.now() > NEW_YEAR + timedelta(seconds=70):
            raise ValueError("spoilt")

    await scheduler.add_job(flaky, every(60), id="x")
    await clock.advance(60)
    good = await scheduler.get_job("x")
    await clock.advance(120)
    bad = await scheduler.get_job("x")
    assert good.last_run == good.last_success == NEW_YEAR + timedelta(seconds=60)
    assert (good.last_error, good.consecutive_failures) == (None, 0)
    assert (bad.last_run, bad.last_success) == (NEW_YEAR + timedelta(seconds=180), good.last_success)
    assert (bad.last_error, bad.consecutive_failures) == ("ValueError: spoilt", 2)


async def test_a_job_that_runs_says_so(scheduler: Scheduler, clock: ManualClock) -> None:
    @scheduler.task(name="long")
    async def long() -> None:
        await clock.sleep(10)

    await scheduler.add_job(long, every(60), id="x")
    await clock.advance(61)
    job = await scheduler.get_job("x")
    assert (job.state, job.next_fire_time) == ("running", NEW_YEAR + timedelta(seconds=120))
    await clock.advance(20)
    assert (await scheduler.get_job("x")).state == "scheduled"


# -- ids ---------------------------------------------------------------------------------------------------------------


async def test_an_id_is_made_that_is_a_rising_uuid7(scheduler: Scheduler, ran: Ran) -> None:
    ids = [(await scheduler.add_job("note", every(60))).id for _ in range(50)]
    assert ids == sorted(ids)
    assert {UUID(id).version for id in ids} == {7}
    assert len(set(ids)) == 50


@pytest.mark.parametrize(
    "id", ["x", "a/b/c", "welcome 42", "é漢字🙂", "x" * 255, "🙂" * 255, "'; DROP TABLE jobs; --", "%_", "@"]
)
async def test_legal_ids_are_kept_as_they_are(make_scheduler: Any, id: str) -> None:
    async with make_scheduler(queues=()) as scheduler:
        await scheduler.add_job(module_level, every(60), id=id)
        assert (await scheduler.get_job(id)).id == id
        assert [job.id for job in await scheduler.get_jobs(id_prefix=id)] == [id]
        assert await scheduler.remove_job(id)


@pytest.mark.parametrize("id", ["", "x" * 256, "a\0b", "a#b", "\ud800", 5, b"x"], ids=repr)
async def test_illegal_ids_are_refused(scheduler: Scheduler, ran: Ran, id: Any) -> None:
    with pytest.raises(DefinitionError, match="id"):
        await scheduler.add_job("note", every(60), id=id)
    assert await scheduler.get_jobs() == []


async def test_a_taken_id_is_refused_by_default(scheduler: Scheduler, ran: Ran) -> None:
    first = await scheduler.add_job("note", every(60), id="x", args=["first"])
    with pytest.raises(ConflictingIdError) as caught:
        await scheduler.add_job("note", every(90), id="x", args=["second"])
    assert (caught.value.job_id, caught.value.store, caught.value.task) == ("x", "default", "note")
    assert await scheduler.get_job("x") == first


async def test_on_conflict_keep_gives_the_job_that_is_there(scheduler: Scheduler, ran: Ran) -> None:
    first = await scheduler.add_job("note", every(60), id="x", args=["first"])
    kept = await scheduler.add_job("note", every(90), id="x", args=["second"], on_conflict="keep")
    assert kept == first


async def test_on_conflict_replace_makes_the_job_look_like_this(
    scheduler: Scheduler, clock: ManualClock, ran: Ran
) -> None:
    await scheduler.add_job("note", every(60), id="x", args=["first"], tags=["old"], priority=1)
    await clock.advance(30)
    scheduler.register(module_level, "other")
    job = await scheduler.add_job(
        "other", every(90), id="x", args=["second"], queue="q", priority=2, on_conflict="replace"
    )
    assert job == await scheduler.get_job("x")
    assert (job.task, job.args, job.tags, job.queue, job.priority) == ("other", ("second",), (), "q", 2)
    assert job.next_fire_time == NEW_YEAR + timedelta(seconds=120)
    assert job.created_at == NEW_YEAR
    assert job.updated_at == NEW_YEAR + timedelta(seconds=30)


async def test_on_conflict_replace_with_an_unchanged_trigger_keeps_its_progress(
    scheduler: Scheduler, clock: ManualClock, ran: Ran
) -> None:
    await scheduler.add_job("note", every(60), id="x", args=["first"])
    await clock.advance(90)
    job = await scheduler.add_job("note", every(60), id="x", args=["second"], on_conflict="replace")
    assert (job.args, job.next_fire_time) == (("second",), NEW_YEAR + timedelta(seconds=120))
    assert job.last_run == NEW_YEAR + timedelta(seconds=60)


async def test_on_conflict_replace_with_a_delay_asks_for_a_run_so_long_after_this_call(
    clock: ManualClock,
) -> None:
    """Whether the one of before is waited for, under way, or has failed."""
    scheduler, begun = Scheduler(clock=clock), list[float]()

    @scheduler.task(name="report")
    async def report() -> None:
        begun.append((clock.now() - NEW_YEAR).total_seconds())
        await clock.sleep(30)
        if len(begun) > 1:
            raise ValueError("it fails")

    async def ask() -> None:
        await scheduler.add_job(report, once(delay=60), id="x", on_conflict="replace")

    async with scheduler:
        await ask()
        await clock.advance(50)
        await ask()
        await clock.advance(70)
        assert begun == [110]
        await ask()
        await clock.advance(100)
        assert begun == [110, 180]
        assert (await scheduler.get_job("x")).state == "failed"
        await ask()
        await clock.advance(100)
        assert begun == [110, 180, 280]


async def test_on_conflict_replace_leaves_a_pause_alone(scheduler: Scheduler, ran: Ran) -> None:
    await scheduler.add_job("note", every(60), id="x")
    await scheduler.pause_job("x")
    job = await scheduler.add_job("note", every(90), id="x", on_conflict="replace")
    assert job.state == "paused"


async def test_replacing_a_job_by_itself_changes_nothing(scheduler: Scheduler, ran: Ran) -> None:
    first = await scheduler.add_job("note", every(60), id="x", tags=["a"])
    again = await scheduler.add_job("note", every(60), id="x", tags=["a"], on_conflict="replace")
    assert again == first


async def test_an_unknown_on_conflict_is_refused(scheduler: Scheduler, ran: Ran) -> None:
    with pytest.raises(DefinitionError, match="on_conflict"):
        await scheduler.add_job("note", on_conflict="ignore")  # type: ignore[arg-type]  # mypy is right: that is what is tested


async def test_an_id_is_free_again_once_its_job_has_run(
    scheduler: Scheduler, clock: ManualClock, ran: Ran
) -> None:
    for word in ("a", "b"):
        await scheduler.add_job("note", id="x", args=[word])
        await clock.advance(0)
    assert words(ran) == ["a", "b"]


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"priority": 10}, "priority"),
        ({"priority": -1}, "priority"),
        ({"priority": True}, "priority"),
        ({"queue": ""}, "queue"),
        ({"tags": "red"}, "tags"),
        ({"tags": [1]}, "tag"),
        ({"retires": 3}, "retires"),
        ({"retry": 3}, "Retry"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"cancel_grace": -1}, "cancel_grace"),
        ({"abandon_after": -1}, "abandon_after"),
        ({"on_exhausted": "explode"}, "on_exhausted"),
        ({"max_crashes": 0}, "max_crashes"),
        ({"metadata": {"a": object()}}, r"metadata\.a"),
        ({"metadata": "a"}, "metadata"),
        ({"name": 5}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"paused": "no"}, "paused"),
        ({"paused": 1}, "paused"),
        ({"run_immediately": "no"}, "run_immediately"),
        ({"run_on_start": None}, "run_on_start"),
        ({"tags": 5}, "tags"),
        ({"args": "w"}, "args"),
        ({"args": iter(["w"])}, "args"),
        ({"args": {"word": "w"}}, "args"),
        ({"kwargs": [("word", "w")]}, "kwargs"),
    ],
    ids=shown,
)
async def test_a_policy_that_can_never_work_is_refused_by_name(
    scheduler: Scheduler, ran: Ran, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(DefinitionError, match=named):
        await scheduler.add_job("note", every(60), **options)
    assert await scheduler.get_jobs() == []


@pytest.mark.parametrize(
    ("args", "kwargs", "path"),
    [
        ([object()], {}, r"args\[0\]"),
        ([[1, {"a": object()}]], {}, r"args\[0\]\[1\]\.a"),
        ([], {"word": {"deep": [object()]}}, r"kwargs\.word\.deep\[0\]"),
    ],
)
async def test_an_argument_that_cannot_be_stored_is_refused_with_the_path_to_it(
    scheduler: Scheduler, ran: Ran, args: Any, kwargs: Any, path: str
) -> None:
    with pytest.raises(SerializationError, match=f"^{path}: ") as caught:
        await scheduler.add_job("note", id="x", args=args, kwargs=kwargs)
    assert (caught.value.job_id, caught.value.task) == ("x", "note")
    assert await scheduler.get_jobs() == []


@pytest.mark.parametrize(("args", "kwargs"), [([1, 2], {}), ([], {"nothing": 1}), (["a"], {"word": "b"})])
async def test_arguments_that_do_not_fit_the_signature_are_refused(
    scheduler: Scheduler, ran: Ran, args: Any, kwargs: Any
) -> None:
    with pytest.raises(DefinitionError) as caught:
        await scheduler.add_job("note", args=args, kwargs=kwargs)
    assert caught.value.task == "note"


async def test_arguments_of_the_wrong_type_are_refused(scheduler: Scheduler) -> None:
    with pytest.raises(DefinitionError, match=r"args\[0\]"):
        await scheduler.add_job(module_level, args=[5])


async def test_arguments_are_kept_as_they_were_when_the_job_was_added(
    scheduler: Scheduler, clock: ManualClock, ran: Ran
) -> None:
    words_ = ["a"]
    await scheduler.add_job("note", args=[words_])
    words_.append("b")
    await clock.advance(0)
    assert words(ran) == [["a"]]


# -- many at once ------------------------------------------------------------------------------------------------------


async def test_add_jobs_adds_all_in_the_order_given(
    scheduler: Scheduler, clock: ManualClock, ran: Ran
) -> None:
    jobs = await scheduler.add_jobs([JobSpec("note", id=f"j{i}", args=[i]) for i in range(10)])
    assert [job.id for job in jobs] == [f"j{i}" for i in range(10)]
    await clock.advance(0)
    assert sorted(words(ran)) == list(range(10))


async def test_add_jobs_of_several_batches_answers_in_the_order_given(clock: ManualClock) -> None:
    async with Scheduler(clock=clock) as scheduler:
        scheduler.register(module_level)
        ids = [f"j{i}" for i in range(6_001)]
        jobs = await scheduler.add_jobs([JobSpec(module_level, every(60), id=id) for id in ids])
        assert [job.id for job in jobs] == ids
        assert (await scheduler.get_job("j6000")).id == "j6000"


async def test_add_jobs_of_many_lets_others_have_their_turn(scheduler: Scheduler, ran: Ran) -> None:
    turns, seen = 0, list[int]()

    class Watched(list[JobSpec]):
        def __iter__(self) -> Iterator[JobSpec]:
            for spec in super().__iter__():
                seen.append(turns)
                yield spec

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        other = group.create_task(others())
        await scheduler.add_jobs(Watched([JobSpec("note", every(60), args=[1])] * 4_000))
        other.cancel()
    assert len(seen) == 4_000
    assert max(Counter(seen).values()) <= 500


async def test_add_jobs_writes_nothing_if_one_is_wrong(scheduler: Scheduler, ran: Ran) -> None:
    with pytest.raises(DefinitionError):
        await scheduler.add_jobs([JobSpec("note", every(60)), JobSpec("note", args=[1, 2])])
    assert await scheduler.get_jobs() == []


async def test_add_jobs_writes_nothing_if_one_id_is_taken(scheduler: Scheduler, ran: Ran) -> None:
    await scheduler.add_job("note", every(60), id="b")
    with pytest.raises(ConflictingIdError) as caught:
        await scheduler.add_jobs([JobSpec("note", every(60), id=id) for id in "abc"])
    assert caught.value.job_id == "b"
    assert [job.id for job in await scheduler.get_jobs()] == ["b"]


async def test_add_jobs_writes_nothing_to_any_store_if_one_is_wrong(scheduler: Scheduler, ran: Ran) -> None:
    await scheduler.add_store("other", "memory://")
    await scheduler.add_job("note", every(60), id="b", store="other")
    with pytest.raises(ConflictingIdError):
        await scheduler.add_jobs(
            [JobSpec("note", every(60), id="a"), JobSpec("note", every(60), id="b", store="other")]
        )
    assert [job.id for job in await scheduler.get_jobs()] == ["b"]


async def test_add_jobs_can_return_the_errors_in_their_places(scheduler: Scheduler, ran: Ran) -> None:
    await scheduler.add_job("note", every(60), id="taken")
    answers = await scheduler.add_jobs(
        [
            JobSpec("note", every(60), id="a"),
            JobSpec("nobody"),
            JobSpec("note", every(60), id="taken"),
            JobSpec("note", args=[object()]),
            JobSpec("note", every(60), id="b"),
        ],
        errors="return",
    )
    assert [type(answer) for answer in answers] == [
        Job,
        UnknownTaskError,
        ConflictingIdError,
        SerializationError,
        Job,
    ]
    assert all(isinstance(answer, Job | AsyncSchedError) for answer in answers)
    assert {job.id for job in await scheduler.get_jobs()} == {"a", "b", "taken"}


@pytest.mark.parametrize(
    "specs", [None, JobSpec("note"), ["note"], [("note", "@hourly")], (JobSpec("note") for _ in range(2))]
)
async def test_what_is_no_list_of_specs_is_refused(scheduler: Scheduler, ran: Ran, specs: Any) -> None:
    with pytest.raises(DefinitionError, match="JobSpec"):
        await scheduler.add_jobs(specs)


async def test_policies_of_a_spec_that_are_no_mapping_are_refused(scheduler: Scheduler, ran: Ran) -> None:
    with pytest.raises(DefinitionError, match="policies"):
        await scheduler.add_jobs([JobSpec("note", policies=cast(Any, "timeout"))])


async def test_a_wrong_word_for_errors_is_refused_and_does_not_hide_them(
    scheduler: Scheduler, ran: Ran
) -> None:
    with pytest.raises(DefinitionError, match="errors"):
        await scheduler.add_jobs([JobSpec("nobody")], errors=cast(Any, "Raise"))


async def test_a_job_that_cannot_be_replaced_is_an_error_in_its_place(scheduler: Scheduler, ran: Ran) -> None:
    await scheduler.add_job("note", every(60), id="x")
    store = scheduler.stores["default"]
    [record] = (await store.get(["x"])).values()
    await store.remove(["x"])
    await store.add([replace(record, body=b"nonsense")])
    specs = [JobSpec("note", every(60), id=id) for id in "axb"]
    answers = await scheduler.add_jobs(specs, on_conflict="replace", errors="return")
    assert [type(answer) for answer in answers] == [Job, SerializationError, Job]
    with pytest.raises(SerializationError) as caught:
        await scheduler.add_jobs(specs, on_conflict="replace")
    assert caught.value.job_id == "x"


async def test_an_id_that_stands_twice_in_one_call_is_refused(scheduler: Scheduler, ran: Ran) -> None:
    with pytest.raises(DefinitionError, match="twice"):
        await scheduler.add_jobs([JobSpec("note", every(60), id="x"), JobSpec("note", every(90), id="x")])
    assert await scheduler.get_jobs() == []


async def test_an_id_that_stands_twice_is_returned_as_an_error_in_its_place(
    scheduler: Scheduler, ran: Ran
) -> None:
    answers = await scheduler.add_jobs(
        [
            JobSpec("note", every(60), id="x"),
            JobSpec("note", every(90), id="x"),
            JobSpec("note", every(60), id="y"),
        ],
        errors="return",
    )
    assert [type(answer) for answer in answers] == [Job, DefinitionError, Job]


async def test_add_jobs_replaces_and_keeps(scheduler: Scheduler, ran: Ran) -> None:
    await scheduler.add_job("note", every(60), id="x", args=["first"])
    specs = [JobSpec("note", every(60), id="x", args=["second"]), JobSpec("note", every(60), id="y")]
    kept = await scheduler.add_jobs(specs, on_conflict="keep")
    assert kept[0].args == ("first",)
    replaced = await scheduler.add_jobs(specs, on_conflict="replace")
    assert replaced[0].args == ("second",)


async def test_add_jobs_of_nothing_is_nothing(scheduler: Scheduler) -> None:
    assert await scheduler.add_jobs([]) == []


async def test_a_spec_carries_policies(scheduler: Scheduler, clock: ManualClock) -> None:
    @scheduler.task(name="long")
    async def long() -> None:
        await clock.sleep(100)

    [job] = await scheduler.add_jobs([JobSpec(long, policies={"timeout": 5})])
    await clock.advance(10)
    assert (await scheduler.history.runs(job.id))[0].outcome == "timed_out"
