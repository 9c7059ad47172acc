"""Backfill: fire times of the past are run after the event, each of them once, beside the regular schedule."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from asyncsched import (
    ConflictError,
    ConflictingIdError,
    DefinitionError,
    JobLookupError,
    Retry,
    Scheduler,
    Skip,
    Trigger,
    WaitTimeout,
    all_of,
    any_of,
    cron,
    current_run,
    every,
    excluding,
    manual,
    once,
)
from asyncsched.definition import Cursor, Definition, Request
from asyncsched.plan import Ended, Start, decide, ended
from asyncsched.testing import ManualClock
from asyncsched.triggers import Within
from tests.support.waiting import eventually
from tests.unit.conftest import MakeScheduler, stop_at_once

pytestmark = pytest.mark.anyio

HOUR = timedelta(hours=1)


class Notes:
    """What the task ``note`` ran for."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.ran: list[datetime] = []
        self.at: list[datetime] = []
        self.of: list[str | None] = []
        self.keys: list[str] = []
        self.steps: list[BaseException | None] = []
        scheduler.register(self.note, "note")

    async def note(self) -> None:
        run = current_run()
        self.ran.append(run.fire_time)
        self.at.append(run.now())
        self.of.append(run.backfill_of)
        self.keys.append(run.idempotency_key)
        if self.steps and (step := self.steps.pop(0)) is not None:
            raise step


@pytest.fixture
def notes(scheduler: Scheduler) -> Notes:
    return Notes(scheduler)


def back(clock: ManualClock, **ago: float) -> datetime:
    return datetime.fromtimestamp(clock.time(), UTC) - timedelta(**ago)


# -- what runs -------------------------------------------------------------------------------------------------------------


async def test_each_fire_time_of_the_range_runs_with_its_own_time_beside_the_schedule(
    scheduler: Scheduler, clock: ManualClock, notes: Notes
) -> None:
    job = await scheduler.add_job(
        "note", every(hours=1, anchor=back(clock)), id="job", tags=["nightly"], priority=2
    )
    expected = [back(clock, hours=n) for n in range(24, 0, -1)]
    before = await scheduler.get_job("job")
    filling = await scheduler.backfill("job", back(clock, hours=24), back(clock))
    assert (filling.count, filling.left_out, filling.job_id) == (24, 0, "job")
    made = await scheduler.get_job(filling.id)
    assert (made.task, made.tags, made.priority) == ("note", ("nightly", "backfill"), 2)
    assert str(made.trigger).startswith("backfill(ANCHOR=")
    await clock.advance(1)
    assert notes.ran == expected
    assert set(notes.of) == {"job"}
    assert await scheduler.get_job("job") == before == job
    # It has ended by itself, and the schedule goes on.
    assert [one.id for one in await scheduler.get_jobs()] == ["job"]
    assert (await filling.progress()).is_over
    await clock.advance(3600)
    assert notes.ran[24:] == [before.next_fire_time]
    assert notes.of[24:] == [None]


async def test_on_every_store_a_backfill_goes_on_where_it_was_after_a_restart(
    make_scheduler: MakeScheduler,
) -> None:
    first, second = make_scheduler(), make_scheduler()
    seen = {first: list[datetime](), second: list[datetime]()}
    enough = asyncio.Event()
    for scheduler in seen:

        async def note(scheduler: Scheduler = scheduler) -> None:
            seen[scheduler].append(current_run().fire_time)
            if scheduler is first and len(seen[first]) == 5:
                enough.set()
                await asyncio.Event().wait()

        scheduler.register(note, "note")
    async with first:
        await first.add_job("note", "@hourly", id="job")
        now = first.now()
        filling = await first.backfill("job", now - 20 * HOUR)
        await enough.wait()
        await first.stop(drain=0)
    async with second:
        again = await second.get_backfill(filling.id)
        assert (again.job_id, again.count, again.start, again.end) == (
            "job",
            filling.count,
            filling.start,
            filling.end,
        )
        await again.wait(timeout=30)
        with pytest.raises(JobLookupError, match="may have finished"):
            await second.get_backfill(filling.id)
    expected = cron("@hourly").between(filling.start, filling.end)
    assert sorted({*seen[first], *seen[second]}) == expected
    assert len(seen[first]) + len(seen[second]) == len(expected) + 1, (
        "the one that was cancelled ran again, and no other"
    )


async def test_days_without_the_time_and_what_is_excluded_are_no_fire_times(
    clock: ManualClock,
) -> None:
    clock = ManualClock(datetime(2026, 4, 2, tzinfo=UTC))
    async with Scheduler(clock=clock) as scheduler:
        notes = Notes(scheduler)
        trigger = excluding(
            cron("30 2 * * *", tz="Europe/Berlin", dst_gap="skip"), datetime(2026, 3, 31).date()
        )
        await scheduler.add_job("note", trigger, id="job")
        filling = await scheduler.backfill("job", datetime(2026, 3, 27, tzinfo=UTC))
        await clock.advance(1)
        assert notes.ran == trigger.between(filling.start, filling.end)
        assert [ran.day for ran in notes.ran] == [27, 28, 30, 1]
        reasons = {d.reason: d.count for d in await scheduler.history.decisions(filling.id)}
        assert reasons == {"dst_gap": 1, "excluded": 1}


async def test_fire_times_before_the_job_was_added_are_filled_too(
    scheduler: Scheduler, clock: ManualClock, notes: Notes
) -> None:
    await scheduler.add_job("note", "@daily", id="job")
    filling = await scheduler.backfill("job", back(clock, days=400))
    for _ in range(3):
        await clock.advance(1)
    assert len(notes.ran) == filling.count == 400


# -- what has run already --------------------------------------------------------------------------------------------------


async def test_what_has_succeeded_is_left_out_unless_it_is_asked_for_again(
    scheduler: Scheduler, clock: ManualClock, notes: Notes
) -> None:
    await scheduler.add_job("note", every(hours=1), id="job")
    begin = back(clock, seconds=-1)
    notes.steps = [None, ValueError("no"), None, None]
    await clock.advance(4 * 3600 + 5)
    assert len(notes.ran) == 4
    failed = notes.ran[1]
    filling = await scheduler.backfill("job", begin)
    assert (filling.count, filling.left_out, filling.known_since) == (1, 3, None)
    await clock.advance(1)
    assert notes.ran[4:] == [failed]
    # The run that failed and the one that makes up for it have one key, and the log of the job tells of both.
    assert notes.keys[4] == notes.keys[1]
    assert (await scheduler.why_not("job", failed)).kind == "ran"
    assert [(d.reason, d.first) for d in await scheduler.history.decisions("job")] == [("backfilled", failed)]
    # So a later one knows what the earlier one did, though its range is another.
    earlier = await scheduler.backfill("job", begin - HOUR)
    assert (earlier.count, earlier.left_out, earlier.known_since) == (1, 4, None)
    await clock.advance(1)
    notes.ran.clear()
    again = await scheduler.backfill("job", begin, again=True)
    assert (again.count, again.left_out) == (4, 0)
    await clock.advance(1)
    assert len(notes.ran) == 4
    assert not set(notes.keys[-4:]) & set(notes.keys[:-4])


async def test_a_long_backfill_leaves_the_history_of_its_job_readable(
    scheduler: Scheduler, clock: ManualClock, notes: Notes
) -> None:
    await scheduler.add_job("note", "@hourly", id="job")
    begin, end = back(clock, hours=200), back(clock)
    notes.steps = [ValueError() if n == 50 else None for n in range(200)]
    await scheduler.backfill("job", begin, end)
    for _ in range(3):
        await clock.advance(1)
    told = await scheduler.history.decisions("job")
    assert {d.reason for d in told} == {"backfilled"}
    assert sum(d.count for d in told) == 199
    assert len(told) <= 12
    again = await scheduler.backfill("job", begin, end)
    assert (again.count, again.left_out) == (1, 199)
    assert (await scheduler.why_not("job", begin + HOUR)).text.startswith(
        "backfilled: a backfill ran it later (by job/backfill/"
    )


async def test_what_a_forgetful_history_cannot_know_is_said(
    scheduler: Scheduler, clock: ManualClock, notes: Notes
) -> None:
    await scheduler.add_job("note", every(hours=1), id="job")
    begin = back(clock, seconds=-1)
    await clock.advance(3 * 3600 + 5)
    store = scheduler._engine.stores["default"]
    await store.prune(None, 1, 100)
    filling = await scheduler.backfill("job", begin, dry_run=True)
    assert (filling.count, filling.left_out) == (2, 1)
    assert filling.known_since is not None
    assert filling.known_since > begin + 2 * HOUR
    assert filling.jobs == ()
    assert len(await scheduler.get_jobs()) == 1


async def test_fire_times_that_the_schedule_has_not_come_to_are_left_to_it(
    scheduler: Scheduler, clock: ManualClock, notes: Notes
) -> None:
    await scheduler.add_job("note", every(hours=1, anchor=back(clock)), id="job", catch_up="all")
    await scheduler.pause()
    begin = back(clock, hours=2)
    await clock.advance(3 * 3600)
    # All that passed since is the schedule's; what was before it is not.
    filling = await scheduler.backfill("job", begin)
    assert filling.count == 3
    assert (await scheduler.backfill("job", begin, again=True, dry_run=True)).count == 5
    await scheduler.resume()
    await clock.advance(1)
    assert sorted(ran for ran, of in zip(notes.ran, notes.of, strict=True) if of) == [
        begin,
        begin + HOUR,
        begin + 2 * HOUR,
    ]
    assert len(set(notes.ran)) == len(notes.ran)


async def test_a_range_in_which_everything_ran_needs_no_job(
    scheduler: Scheduler, clock: ManualClock, notes: Notes
) -> None:
    await scheduler.add_job("note", every(hours=1), id="job")
    begin = back(clock, seconds=-1)
    await clock.advance(2 * 3600 + 5)
    filling = await scheduler.backfill("job", begin)
    assert (filling.count, filling.left_out, filling.jobs) == (0, 2, ())
    assert (await filling.progress()).is_over
    await filling.wait()
    assert await filling.cancel() == 0
    assert len(await scheduler.get_jobs()) == 1


async def test_what_ran_amid_the_range_is_left_out_of_it(
    scheduler: Scheduler, clock: ManualClock, notes: Notes
) -> None:
    await scheduler.add_job("note", every(hours=1), id="job")
    begin = back(clock, seconds=-1)
    fails = [n % 3 == 0 or n in (4, 5, 6) for n in range(20)]
    notes.steps = [ValueError() if is_bad else None for is_bad in fails]
    await clock.advance(20 * 3600)
    bad = [ran for ran, is_bad in zip(notes.ran, fails, strict=True) if is_bad]
    notes.ran.clear()
    await scheduler.backfill("job", begin, overlap="allow", max_instances=3)
    await clock.advance(1)
    assert sorted(notes.ran) == bad


# -- rate and overlap ------------------------------------------------------------------------------------------------------


async def test_a_rate_spaces_the_starts(scheduler: Scheduler, clock: ManualClock, notes: Notes) -> None:
    await scheduler.add_job("note", "@hourly", id="job")
    filling = await scheduler.backfill("job", back(clock, hours=5), rate="10/minute")
    await clock.advance(0)
    assert len(notes.ran) == 1
    await clock.advance(13)
    assert len(notes.ran) == 3
    assert (await filling.progress()).done == 3
    # A pause, and whatever else changes the job, does not make it faster.
    await scheduler.pause_job(filling.id)
    await clock.advance(1)
    await scheduler.resume_job(filling.id)
    await clock.advance(60)
    assert len(notes.ran) == filling.count
    gaps = [(b - a).total_seconds() for a, b in pairwise(notes.at)]
    assert min(gaps) == pytest.approx(6, abs=0.001)


async def test_one_run_waits_for_the_one_before_it_and_with_allow_several_share_the_range(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    running, most, ran = 0, 0, list[datetime]()

    @scheduler.task(name="slow")
    async def slow() -> None:
        nonlocal running, most
        ran.append(current_run().fire_time)
        running += 1
        most = max(most, running)
        await clock.sleep(10)
        running -= 1

    await scheduler.add_job("slow", "@hourly", id="job")
    begin, end = back(clock, hours=12), back(clock)
    for overlap, at_once, duration in [("queue_all", None, 120), ("allow", 3, 40), ("allow", 50, 10)]:
        ran.clear()
        most = 0
        options: dict[str, Any] = {"overlap": overlap, "max_instances": at_once, "again": True}
        filling = await scheduler.backfill("job", begin, end, **options)
        await clock.advance(duration - 0.5)
        progress = await filling.progress()
        assert (progress.is_over, progress.is_running) == (False, True)
        await clock.advance(1)
        assert (await filling.progress()).is_over
        assert sorted(ran) == cron("@hourly").between(begin, end)
        assert most == min(at_once or 1, 12)


async def test_parts_keep_the_rate_together(scheduler: Scheduler, clock: ManualClock, notes: Notes) -> None:
    await scheduler.add_job("note", "@hourly", id="job")
    filling = await scheduler.backfill(
        "job", back(clock, hours=12), rate="1/second", overlap="allow", max_instances=4
    )
    assert len(filling.jobs) == 4
    assert len(await scheduler.get_jobs(tags=["backfill"])) == 4
    for second in range(12):
        await clock.advance(0 if second == 0 else 1)
        assert len(notes.ran) == second + 1
    assert (await filling.progress()).is_over


# -- failures, retries, ends -----------------------------------------------------------------------------------------------


async def test_retries_and_failures_leave_out_no_fire_time(
    scheduler: Scheduler, clock: ManualClock, notes: Notes
) -> None:
    await scheduler.add_job(
        "note",
        "@hourly",
        id="job",
        retry=Retry(max_attempts=2, base=30),
        misfire_grace=1,
        catch_up="none",
        overlap="cancel_running",
    )
    notes.steps = [ValueError(), None, ValueError(), ValueError(), Skip("not_today"), None]
    filling = await scheduler.backfill("job", back(clock, hours=6))
    await clock.advance(300)
    expected = cron("@hourly").between(filling.start, filling.end)
    assert sorted({*notes.ran}) == expected
    assert (await filling.progress()).is_over
    decisions = await scheduler.history.decisions(filling.id)
    assert [d.reason for d in decisions] == ["not_today"]


async def test_a_failing_backfill_rests_where_its_job_would(
    scheduler: Scheduler, clock: ManualClock, notes: Notes
) -> None:
    await scheduler.add_job("note", "@hourly", id="job", pause_after_failures=3)
    notes.steps = [ValueError()] * 3
    filling = await scheduler.backfill("job", back(clock, hours=10))
    await clock.advance(10)
    progress = await filling.progress()
    assert (progress.done, progress.left, progress.is_held, progress.is_over) == (
        3,
        filling.count - 3,
        True,
        False,
    )
    with pytest.raises(WaitTimeout, match="not over yet"):
        await filling.wait(timeout=0)


async def test_a_cancelled_backfill_runs_no_more(
    scheduler: Scheduler, clock: ManualClock, notes: Notes
) -> None:
    await scheduler.add_job("note", "@hourly", id="job")
    filling = await scheduler.backfill(
        "job", back(clock, hours=10), rate="1/minute", overlap="allow", max_instances=2
    )
    await clock.advance(120)
    done = len(notes.ran)
    assert 0 < done < filling.count
    assert await filling.cancel() == filling.count - done
    await clock.advance(3000)
    assert len(notes.ran) == done
    assert [job.id for job in await scheduler.get_jobs()] == ["job"]


async def test_a_wait_ends_with_the_backfill(make_scheduler: MakeScheduler) -> None:
    async with make_scheduler() as scheduler:
        notes = Notes(scheduler)
        await scheduler.add_job("note", "@hourly", id="job")
        filling = await scheduler.backfill("job", scheduler.now() - 30 * HOUR, overlap="allow")
        await filling.wait(timeout=30)
        await eventually(lambda: len(notes.ran) == filling.count)
        assert sorted(notes.ran) == cron("@hourly").between(filling.start, filling.end)


# -- what is refused -------------------------------------------------------------------------------------------------------


async def test_what_cannot_be_filled_is_refused_with_the_remedy(
    scheduler: Scheduler, clock: ManualClock, notes: Notes
) -> None:
    now, begin = back(clock), back(clock, days=30)
    triggers: dict[str, Trigger] = {
        "hourly": cron("@hourly"), "once": once(delay=100), "manual": manual(), "finish": every(hours=1, after="finish"),
    }  # fmt: skip
    for id, trigger in triggers.items():
        await scheduler.add_job("note", trigger, id=id)  # type: ignore[arg-type]  # each of these triggers is one that users make
    refusals: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
        ("once", (begin,), {}, r"names no times to fill: run_job\(\)"),
        ("manual", (begin,), {}, r"names no times to fill: run_job\(\)"),
        ("finish", (begin,), {}, "depend on when runs end"),
        ("hourly", (now, begin), {}, "begins before it ends"),
        ("hourly", (begin, now + HOUR), {}, "ends now at the latest"),
        ("hourly", (datetime(2020, 1, 1),), {}, "start must say its time zone"),
        ("hourly", (begin, datetime(2020, 1, 1)), {}, "end must say its time zone"),
        (
            "hourly",
            (begin,),
            {"limit": 719},
            "more than 719 fire times .* fill a shorter range, or say limit=",
        ),
        ("hourly", (begin,), {"limit": 0}, "limit=.* must be 1 or more"),
        ("hourly", (begin,), {"rate": "fast"}, "^rate must say .*100/minute"),
        ("hourly", (begin,), {"overlap": "skip"}, "leaves some of them out"),
        ("hourly", (begin,), {"max_instances": 2}, 'goes with overlap="allow"'),
        ("hourly", (begin,), {"overlap": "allow", "max_instances": 0}, "must be 1 to 100, not 0"),
        ("hourly", (begin,), {"priority": 10}, "priority must be a whole number from 0 to 9"),
        ("hourly", (begin,), {"backfill_id": "a#b"}, "must not contain"),
    ]
    for id, range_, options, message in refusals:
        with pytest.raises(DefinitionError, match=message):
            await scheduler.backfill(id, *range_, **options)
    with pytest.raises(JobLookupError):
        await scheduler.backfill("nobody", begin)
    with pytest.raises(JobLookupError):
        await scheduler.get_backfill("hourly")
    assert len(await scheduler.get_jobs()) == 4


async def test_a_range_that_is_being_filled_is_not_filled_twice(
    scheduler: Scheduler, clock: ManualClock, notes: Notes
) -> None:
    await scheduler.add_job("note", "@hourly", id="job")
    begin, end = back(clock, hours=10), back(clock)
    filling = await scheduler.backfill("job", begin, end, rate="1/minute")
    several: dict[str, Any] = {"overlap": "allow", "max_instances": 3}
    for parts in ({}, several):
        with pytest.raises(ConflictingIdError):
            await scheduler.backfill("job", begin, end, **parts)
    with pytest.raises(DefinitionError, match="is a backfill itself: fill job 'job'"):
        await scheduler.backfill(filling.id, begin)
    other = await scheduler.backfill("job", begin, end, backfill_id="mine", queue="elsewhere", priority=0)
    assert (await scheduler.get_job("mine")).queue == "elsewhere"
    assert other.id == "mine"


async def test_what_an_earlier_backfill_has_still_to_run_is_not_run_by_another(
    scheduler: Scheduler, clock: ManualClock, notes: Notes
) -> None:
    await scheduler.add_job("note", "@hourly", id="job")
    await scheduler.add_job("note", "@hourly", id="job/backfill/odd")
    begin, end = back(clock, hours=10), back(clock)
    first = await scheduler.backfill("job", begin, end, rate="1/minute", overlap="allow", max_instances=2)
    await clock.advance(90)
    for start, stop in ((begin, None), (begin - HOUR, end), (end - HOUR, end + timedelta(seconds=1))):
        with pytest.raises(ConflictError, match=r"'job/backfill/.*/\d' has fire times of job 'job' from"):
            await scheduler.backfill("job", start, stop)
    before = await scheduler.backfill("job", begin - 5 * HOUR, begin)
    await clock.advance(3600)
    assert (await first.progress()).is_over
    assert (await before.progress()).is_over
    assert (await scheduler.backfill("job", begin - 5 * HOUR, end)).count == 0, "all of it ran"
    regular = (await scheduler.get_job("job")).last_run is not None
    assert len(notes.ran) == 10 + 5 + 2 * regular


async def test_an_instance_that_does_not_know_the_task_may_ask_for_a_backfill(
    make_scheduler: MakeScheduler,
) -> None:
    async with make_scheduler() as worker:
        notes = Notes(worker)
        await worker.add_job("note", "@hourly", id="job")
        if worker._engine.stores["default"].capabilities.shared:
            async with make_scheduler(queues=()) as client:
                filling = await client.backfill("job", client.now() - 5 * HOUR)
        else:
            filling = await worker.backfill("job", worker.now() - 5 * HOUR)
        await eventually(lambda: len(notes.ran) == filling.count)


async def test_explain_tells_of_a_backfill(scheduler: Scheduler, clock: ManualClock, notes: Notes) -> None:
    await scheduler.add_job("note", "@hourly", id="job")
    filling = await scheduler.backfill("job", back(clock, hours=10), rate="1/minute")
    await clock.advance(30)
    told = await scheduler.explain(filling.id)
    assert told.coming[0].fire_time == notes.ran[0] + HOUR
    assert told.coming[0].note == ""
    await stop_at_once(scheduler, clock)


# -- conservation ----------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.sampled_from(["succeeded", "failed", "retried", "skipped", "snoozed", "asked for"]), max_size=60
    ),
    st.sampled_from([0.0, 6.0]),
    st.sets(st.integers(0, 19), max_size=10),
)
def test_whatever_becomes_of_runs_each_fire_time_ends_once_in_order_and_spaced(
    ends: list[str], gap_s: float, left_out: set[int]
) -> None:
    fires = [3600.0 * n for n in range(1, 21)]
    spans = tuple((fires[at], fires[at]) for at in sorted(left_out))
    expected = [fire for at, fire in enumerate(fires) if at not in left_out]
    trigger = Within(cron("@hourly"), 3600.0, 20 * 3600.0 + 1, len(expected), spans, gap_s)  # type: ignore[arg-type]  # cron() gives a trigger that can be filled
    definition = Definition(1e6, 1e6, trigger, 1, trigger.first(0.0))
    cursor, now, ended_at, starts = (
        Cursor(1, trigger.first(0.0), not_before=1e6),
        1e6,
        list[float](),
        list[float](),
    )
    requests = 0
    while True:
        kind = ends.pop() if ends else "succeeded"
        if kind == "asked for":
            requests += 1
            definition = replace(definition, requests=(Request(requests, now),))
        start = decide(definition, cursor, None, now)
        assert isinstance(start, Start)
        assert start.spans == ()
        if not start.request:
            assert start.fire in expected
            if start.attempt == 1 and cursor.pending is None:
                starts.append(now)
        finished = now + 1.0
        end = {
            "failed": Ended("failed", now, finished, "no"),
            "retried": Ended("failed", now, finished, "no", retry_in=30.0),
            "skipped": Ended("cancelled", now, finished, skip=("not_today", None)),
            "snoozed": Ended("cancelled", now, finished, again_at=finished + 100),
        }.get(kind, Ended("succeeded", now, finished))
        step = ended(definition, start, end)
        reasons = [span.reason for span in step.spans]
        assert reasons == (["not_today"] if kind == "skipped" else [])
        if not start.request and step.cursor.pending is None:
            ended_at.append(start.fire)
            assert step.cursor.runs == len(ended_at)
        if step.delete:
            break
        assert step.wake_at is not None
        cursor, now = step.cursor, max(finished, step.wake_at)
    assert ended_at == expected
    assert all(b - a >= max(gap_s, 1.0) for a, b in pairwise(starts))


# -- the trigger -----------------------------------------------------------------------------------------------------------

BASES: list[Trigger] = [
    every(minutes=7),
    cron("*/20 * * * *"),
    cron("30 2 * * *", tz="Europe/Berlin"),
    any_of(every(minutes=50), cron("@hourly")),
    all_of(every(minutes=30, anchor=datetime.fromtimestamp(0, UTC)), cron("@hourly")),
    excluding(cron("@hourly"), cron("0 3 * * *")),
]


@given(
    st.sampled_from(BASES), st.integers(0, 86400 * 3), st.integers(1, 86400 * 3), st.sets(st.integers(0, 60))
)
def test_its_fire_times_are_those_of_the_base_in_the_range_but_for_the_spans(
    base: Any, begin: int, length: int, ran: Iterable[int]
) -> None:
    begin += 1_774_600_000
    base = base.bind(1_774_000_000.0)
    start, end = (datetime.fromtimestamp(at, UTC) for at in (begin, begin + length))
    fires = base.between(start, end)
    out = {fires[at] for at in ran if at < len(fires)}
    spans = tuple((fire.timestamp(), fire.timestamp()) for fire in sorted(out))
    within = Within(base, float(begin), float(begin + length), len(fires), spans)
    expected = [fire for fire in fires if fire not in out]
    assert within.between(start - HOUR, end + HOUR) == expected
    backwards, at = list[datetime](), end + HOUR
    while (previous := within.previous_before(at)) is not None:
        backwards.append(previous)
        at = previous
    assert backwards == expected[::-1]
    assert within.first(0.0) == (expected[0].timestamp() if expected else None)


def test_it_says_what_it_is() -> None:
    within = Within(cron("@hourly"), 0.0, 7200.0, 2)
    assert within.describe().endswith("from 1970-01-01 00:00:00 to before 1970-01-01 02:00:00 UTC")
    assert within.is_backfill
    assert not within.base.is_backfill


async def test_what_ran_under_a_rate_limit_is_known_to_have_run(
    scheduler: Scheduler, clock: ManualClock, notes: Notes
) -> None:
    await scheduler.add_job("note", every(hours=1, anchor=back(clock)), id="job", rate_limit="6/minute")
    begin, end = back(clock, hours=30), back(clock)
    filling = await scheduler.backfill("job", begin, end)
    for _ in range(filling.count):
        await clock.advance(10)
    assert (await filling.progress()).is_over
    again = await scheduler.backfill("job", begin, end, dry_run=True)
    assert (again.count, again.left_out) == (0, filling.count)


@pytest.mark.parametrize("cancels", [False, True])
async def test_what_an_unfinished_backfill_has_run_is_not_run_by_another(
    scheduler: Scheduler, clock: ManualClock, notes: Notes, cancels: bool
) -> None:
    await scheduler.add_job("note", "@hourly", id="job")
    begin = back(clock, hours=96)
    first = await scheduler.backfill("job", begin, rate="1/minute")
    await clock.advance(181)
    done = len(notes.ran)
    assert 1 < done < first.count // 10, "too few for a span in the log"
    if cancels:
        await first.cancel()
    other = await scheduler.backfill("job", begin, begin + done * HOUR)
    assert (other.count, other.left_out) == (0, done)
    await clock.advance(1)
    assert len(notes.ran) == done


async def test_the_scheduler_s_max_runs_ends_no_backfill(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock, defaults={"max_runs": 3})
    notes = Notes(scheduler)
    await scheduler.start()
    await scheduler.add_job("note", "@hourly", id="job")
    filling = await scheduler.backfill("job", back(clock, hours=10))
    await clock.advance(60)
    assert len(notes.ran) == filling.count == 10
    await stop_at_once(scheduler, clock)
