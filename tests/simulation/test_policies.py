"""The policies of time under a scheduler: what history says is what the pure functions decide.

==========================================================  ==========================================================
known from other schedulers                                 promised here
==========================================================  ==========================================================
jitter that delays nothing, or shifts the next fire time    it delays the start, and no fire time
a job one second late is silently skipped                   it runs, late; every skip is a decision with a reason
catch-up after an outage runs thousands of times            a window, a limit, and a count of what was skipped
==========================================================  ==========================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncsched import (
    Decision,
    Jitter,
    MemoryStore,
    Retention,
    Retry,
    Scheduler,
    current_run,
    every,
    once,
)
from asyncsched.definition import Cursor, Definition
from asyncsched.model import Overlap
from asyncsched.plan import Ended, Span, Start, Step, decide, ended
from asyncsched.rules import rules_of
from asyncsched.specs import policies_from
from asyncsched.testing import ManualClock
from tests.support.running import running
from tests.support.stores import SharedMemory

pytestmark = pytest.mark.anyio

START = datetime(2026, 1, 1, tzinfo=UTC)
START_S = START.timestamp()


def since(instant: datetime | None) -> float:
    """Seconds since the start of the clock."""
    assert instant is not None
    return (instant - START).total_seconds()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def scheduler(clock: ManualClock) -> Scheduler:
    return Scheduler(MemoryStore(), clock=clock, retention=Retention(age=None, per_job=None))


class Taking:
    """A task whose runs take so long, one after the other; the last length goes on."""

    def __init__(self, clock: ManualClock, *seconds: float) -> None:
        self._clock = clock
        self._seconds = list(seconds)
        self.began: list[float] = []

    async def __call__(self) -> None:
        self.began.append(self._clock.time() - START_S)
        await self._clock.sleep(self._seconds.pop(0) if len(self._seconds) > 1 else self._seconds[0])


async def runs_of(scheduler: Scheduler, id: str = "job") -> list[tuple[float, float, str | None]]:
    """Fire time, start and outcome of each run that has ended, in their order."""
    runs = await scheduler.history.runs(id, limit=1000)
    return [(since(run.fire_time), round(since(run.started_at), 1), run.outcome) for run in reversed(runs)]


async def fires_of(scheduler: Scheduler, id: str = "job") -> list[float]:
    return [fire for fire, _, _ in await runs_of(scheduler, id)]


async def decisions_of(scheduler: Scheduler, id: str = "job") -> list[tuple[Any, ...]]:
    found = await scheduler.history.decisions(id, limit=1000)
    return sorted(map(short, found), key=lambda row: row[1])


def short(decision: Decision) -> tuple[Any, ...]:
    return (decision.reason, since(decision.first), since(decision.last), decision.count, decision.more)


# -- the same as the pure functions say ------------------------------------------------------------------------------------


@dataclass
class Story:
    """A job at an interval of ten seconds: how long its runs take, and when the scheduler takes no job."""

    policies: dict[str, Any]
    takes: tuple[float, ...] = (0.5,)
    outages: tuple[tuple[float, float], ...] = ()
    until: float = 124.0
    ran: list[tuple[float, float, str]] = field(default_factory=list)
    decided: list[tuple[Any, ...]] = field(default_factory=list)

    def foretell(self) -> None:
        """What the pure functions make of it."""
        rules, key = rules_of(policies_from(self.policies), {}), ("job", "any birth")
        definition = Definition(START_S, START_S, every(10).bind(START_S), 1, START_S + 10)
        takes, cursor, now = list(self.takes), Cursor(), START_S
        wake_at: float | None = now + 10
        while wake_at is not None and max(now, wake_at) <= START_S + self.until:
            now = max(now, wake_at)
            for begin, end in self.outages:
                now = START_S + end if begin <= now - START_S < end else now
            step = decide(definition, cursor, None, now, 0.0, rules, key)
            if isinstance(step, Start):
                took = takes.pop(0) if len(takes) > 1 else takes[0]
                end_ = Ended("succeeded", now, now + took)
                gives_way = rules.overlap == "cancel_running" and step.following is not None
                if gives_way and step.following < now + took:  # type: ignore[operator]  # gives_way says that there is one
                    end_ = Ended("cancelled", now, step.following)  # type: ignore[arg-type]  # likewise
                if end_.finished > START_S + self.until:
                    return
                self.ran.append((step.fire - START_S, round(now - START_S, 1), end_.outcome))
                now, step = end_.finished, ended(definition, step, end_, rules, key)
            assert isinstance(step, Step)
            self.decided += [self._short(span) for span in step.spans]
            cursor, wake_at = step.cursor, step.wake_at

    @staticmethod
    def _short(span: Span) -> tuple[Any, ...]:
        return (span.reason, span.first - START_S, span.last - START_S, span.count, span.more)


AWAY = ((15.0, 64.0),)
STORIES = {
    "latest": Story({}, outages=AWAY),
    "earliest": Story({"catch_up": "earliest"}, outages=AWAY),
    "all": Story({"catch_up": "all"}, outages=AWAY),
    "all, up to a limit": Story({"catch_up": "all", "max_catch_up": 2}, outages=AWAY),
    "none": Story({"catch_up": "none"}, outages=AWAY),
    "none, before the first run": Story({"catch_up": "none"}, outages=((5.0, 64.0),)),
    "all, before the first run": Story({"catch_up": "all"}, outages=((5.0, 64.0),)),
    "too late": Story({"misfire_grace": 3}, outages=AWAY),
    "late, within the grace": Story({"misfire_grace": 5}, outages=AWAY),
    "earliest within the grace": Story({"misfire_grace": 25, "catch_up": "earliest"}, outages=AWAY),
    "all within the grace": Story({"misfire_grace": 25, "catch_up": "all"}, outages=AWAY),
    "two outages": Story({}, outages=((15.0, 33.0), (51.0, 99.0))),
    "skip": Story({}, takes=(25.0, 0.5)),
    "skip, each too long": Story({}, takes=(12.0,)),
    "queue_one": Story({"overlap": "queue_one"}, takes=(35.0, 0.5)),
    "queue_one, each too long": Story({"overlap": "queue_one"}, takes=(23.0,)),
    "queue_all": Story({"overlap": "queue_all"}, takes=(35.0, 0.5)),
    "queue_all, slowly run off": Story({"overlap": "queue_all"}, takes=(33.0, 7.3)),
    "queue_all, more than fit": Story({"overlap": "queue_all", "max_catch_up": 2}, takes=(45.0, 0.5)),
    "cancel_running": Story({"overlap": "cancel_running"}, takes=(0.5, 25.0, 25.0, 0.5)),
    "overlap and an outage": Story({"overlap": "queue_one"}, takes=(35.0, 0.5), outages=((55.0, 83.0),)),
    "jitter": Story({"jitter": 8}),
    "jitter and an outage": Story({"jitter": 8}, outages=AWAY),
    "jitter and a grace": Story({"jitter": 8, "misfire_grace": 1}, outages=AWAY),
    "max_runs": Story({"max_runs": 4}),
    "max_runs, with overlap": Story({"max_runs": 2}, takes=(25.0, 0.5)),
}  # fmt: skip


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES.keys())
async def test_history_says_what_the_pure_functions_decide(
    clock: ManualClock, scheduler: Scheduler, story: Story
) -> None:
    story.foretell()
    assert story.ran
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(Taking(clock, *story.takes).__call__)
        await scheduler.add_job("work", every(10), id="job", **story.policies)
        for begin, end in story.outages:
            await clock.advance(begin - (clock.time() - START_S))
            await scheduler.pause()
            await clock.advance(end - begin)
            await scheduler.resume()
        await clock.advance(story.until - (clock.time() - START_S))
        assert await runs_of(scheduler) == story.ran
        assert await decisions_of(scheduler) == sorted(story.decided, key=lambda row: row[1])


# -- what comes while it runs ----------------------------------------------------------------------------------------------


async def test_a_run_is_cancelled_when_its_next_fire_time_comes(
    clock: ManualClock, scheduler: Scheduler
) -> None:
    async with running(scheduler, clock=clock):
        work = Taking(clock, 3600.0)
        scheduler.task(name="work")(work.__call__)
        await scheduler.add_job("work", every(10), id="job", overlap="cancel_running")
        await clock.advance(35)
        assert [round(began) for began in work.began] == [10, 20, 30]
        runs = list(reversed(await scheduler.history.runs("job")))
        assert [(run.outcome, run.duration) for run in runs] == [("cancelled", 10.0), ("cancelled", 10.0)]
        assert runs[0].error == "cancelled for its next fire time"
        assert await decisions_of(scheduler) == []


async def test_a_run_that_ends_in_time_is_not_cancelled(clock: ManualClock, scheduler: Scheduler) -> None:
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(Taking(clock, 9.9).__call__)
        await scheduler.add_job("work", every(10), id="job", overlap="cancel_running")
        await clock.advance(35)
        assert [outcome for _, _, outcome in await runs_of(scheduler)] == ["succeeded", "succeeded"]


async def test_a_retry_that_waits_gives_way_to_the_next_fire_time(
    clock: ManualClock, scheduler: Scheduler
) -> None:
    async with running(scheduler, clock=clock):

        @scheduler.task(name="fails")
        async def fails() -> None:
            raise ValueError

        await scheduler.add_job(
            "fails", every(10), id="job", overlap="cancel_running", retry=Retry(delays=[3, 60])
        )
        await clock.advance(25)
        runs = list(reversed(await scheduler.history.runs("job")))
        assert [(since(run.fire_time), run.attempt) for run in runs] == [(10, 1), (10, 2), (20, 1), (20, 2)]


async def test_a_retry_that_waits_counts_as_running(clock: ManualClock, scheduler: Scheduler) -> None:
    async with running(scheduler, clock=clock):

        @scheduler.task(name="fails")
        async def fails() -> None:
            raise ValueError

        await scheduler.add_job("fails", every(10), id="job", retry=Retry(delays=[25]))
        await clock.advance(45)
        assert await fires_of(scheduler) == [10, 10, 40]
        assert await decisions_of(scheduler) == [("overlap", 20, 30, 2, False)]


async def test_a_run_asked_for_by_hand_overlaps_what_comes_meanwhile(
    clock: ManualClock, scheduler: Scheduler
) -> None:
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(Taking(clock, 12.0, 0.5).__call__)
        await scheduler.add_job("work", every(10), id="job")
        await clock.advance(5)
        await scheduler.run_job("job")
        await clock.advance(27)
        assert await fires_of(scheduler) == [5, 20, 30]
        assert await decisions_of(scheduler) == [("overlap", 10, 10, 1, False)]


async def test_a_run_asked_for_by_hand_overlaps_one_fire_time_of_a_job_that_waits_for_the_end_of_runs(
    clock: ManualClock, scheduler: Scheduler
) -> None:
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(Taking(clock, 32.0, 0.0).__call__)
        await scheduler.add_job("work", every(10, after="finish"), id="job")
        await clock.advance(5)
        await scheduler.run_job("job")
        await clock.advance(53)
        assert await fires_of(scheduler) == [5, 47, 57]
        assert await decisions_of(scheduler) == [("overlap", 10, 10, 1, False)]


# -- jitter ----------------------------------------------------------------------------------------------------------------


async def test_jitter_delays_the_start_and_no_fire_time(clock: ManualClock, scheduler: Scheduler) -> None:
    async with running(scheduler, clock=clock):
        work = Taking(clock, 0.1)
        scheduler.task(name="work")(work.__call__)
        await scheduler.add_job("work", every(10), id="job", jitter=9)
        await clock.advance(1000)
        runs = list(reversed(await scheduler.history.runs("job", limit=1000)))
        assert [since(run.fire_time) for run in runs] == [10.0 * n for n in range(1, 100)]
        delays = [(run.due_at - run.fire_time).total_seconds() for run in runs]
        assert all(0 <= delay < 9 for delay in delays)
        assert len({round(delay, 3) for delay in delays}) > 90
        assert all(run.started_at is not None and run.started_at >= run.due_at for run in runs)
        late = [(run.started_at - run.due_at).total_seconds() for run in runs if run.started_at]
        assert max(late) < 0.01


async def test_jobs_of_one_fire_time_start_apart(clock: ManualClock, scheduler: Scheduler) -> None:
    async with running(scheduler, clock=clock):
        work = Taking(clock, 0.0)
        scheduler.task(name="work")(work.__call__)
        for number in range(20):
            await scheduler.add_job("work", every(hours=1), id=f"job-{number}", jitter=Jitter(600))
        await clock.advance(2 * 3600)
        assert len(work.began) >= 20
        assert len({round(began) for began in work.began[:20]}) > 15


async def test_a_job_shows_when_it_is_due_with_its_jitter(clock: ManualClock, scheduler: Scheduler) -> None:
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(Taking(clock, 0.1).__call__)
        job = await scheduler.add_job("work", every(10), id="job", jitter=8)
        due = since((await scheduler.get_job("job")).next_fire_time)
        assert 10 <= due < 18
        assert since(job.next_fire_time) == due
        await clock.advance(due + 0.2)
        [run] = await scheduler.history.runs("job")
        assert since(run.due_at) == due


# -- where it ends or rests ------------------------------------------------------------------------------------------------


async def test_a_job_is_gone_after_so_many_fire_times(clock: ManualClock, scheduler: Scheduler) -> None:
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(Taking(clock, 0.1).__call__)
        await scheduler.add_job("work", every(10), id="job", max_runs=3)
        await clock.advance(100)
        assert await fires_of(scheduler) == [10, 20, 30]
        assert await scheduler.get_jobs() == []
        [decision] = await scheduler.history.decisions("job")
        assert (decision.reason, decision.detail, decision.more) == ("ended", "max_runs=3", True)


async def test_a_job_rests_after_so_many_failures_until_it_is_resumed(
    clock: ManualClock, scheduler: Scheduler
) -> None:
    async with running(scheduler, clock=clock):

        @scheduler.task(name="fails")
        async def fails() -> None:
            raise ValueError

        await scheduler.add_job("fails", every(10), id="job", pause_after_failures=2)
        await clock.advance(45)
        assert await fires_of(scheduler) == [10, 20]
        assert (await scheduler.get_job("job")).state == "paused"
        await scheduler.resume_job("job")
        await clock.advance(20)
        assert await fires_of(scheduler) == [10, 20, 50, 60]
        assert (await scheduler.get_job("job")).state == "paused"
        assert await decisions_of(scheduler) == [("paused", 30, 40, 2, False)]


async def test_a_paused_job_keeps_no_backlog(clock: ManualClock, scheduler: Scheduler) -> None:
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(Taking(clock, 0.1).__call__)
        await scheduler.add_job("work", every(10), id="job", catch_up="all")
        await clock.advance(15)
        await scheduler.pause_job("job")
        await clock.advance(50)
        await scheduler.resume_job("job")
        await clock.advance(10)
        assert await fires_of(scheduler) == [10, 70]
        assert await decisions_of(scheduler) == [("paused", 20, 60, 5, False)]


async def test_a_one_shot_that_is_too_late_is_gone_with_its_decision(
    clock: ManualClock, scheduler: Scheduler
) -> None:
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(Taking(clock, 0.1).__call__)
        await scheduler.add_job("work", once(delay=10), id="job", misfire_grace=5)
        await scheduler.pause()
        await clock.advance(15.1)
        await scheduler.resume()
        await clock.advance(1)
        assert await scheduler.get_jobs() == []
        assert await decisions_of(scheduler) == [("misfire", 10, 10, 1, False)]


# -- clocks ----------------------------------------------------------------------------------------------------------------


async def test_a_machine_that_slept_runs_once(clock: ManualClock, scheduler: Scheduler) -> None:
    async with running(scheduler, clock=clock):
        work = Taking(clock, 0.1)
        scheduler.task(name="work")(work.__call__)
        await scheduler.add_job("work", every(10), id="job")
        await clock.advance(15)
        await clock.set(clock.now() + timedelta(days=1))
        await clock.advance(60)
        # Its timers slept as well, and come five seconds after it woke.
        assert (await fires_of(scheduler))[:3] == [10, 86420, 86430]
        assert await decisions_of(scheduler) == [("coalesced", 20, 86410, 8640, False)]


async def test_a_clock_that_goes_back_runs_nothing_twice(clock: ManualClock, scheduler: Scheduler) -> None:
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(Taking(clock, 0.1).__call__)
        await scheduler.add_job("work", every(10), id="job", catch_up="all")
        await clock.advance(35)
        await clock.set(clock.now() - timedelta(seconds=25))
        await clock.advance(45)
        assert await fires_of(scheduler) == [10, 20, 30, 40, 50]
        assert await decisions_of(scheduler) == []


# -- whose policy counts ---------------------------------------------------------------------------------------------------


async def test_the_scheduler_s_defaults_hold_where_the_job_says_nothing(clock: ManualClock) -> None:
    scheduler = Scheduler(MemoryStore(), clock=clock, defaults={"overlap": "queue_all", "max_runs": 4})
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(Taking(clock, 35.0, 0.5).__call__)
        await scheduler.add_job("work", every(10), id="job")
        await scheduler.add_job("work", every(10), id="other", overlap="skip", max_runs=1)
        await clock.advance(100)
        assert await scheduler.get_jobs() == []
        assert len(await fires_of(scheduler)) == 4
        assert len(await fires_of(scheduler, "other")) == 1


async def test_a_policy_that_is_changed_holds_from_the_next_claim(
    clock: ManualClock, scheduler: Scheduler
) -> None:
    async with running(scheduler, clock=clock):
        scheduler.task(name="work")(Taking(clock, 0.1).__call__)
        await scheduler.add_job("work", every(10), id="job")
        await clock.advance(15)
        await scheduler.update_job("job", jitter=8)
        assert since((await scheduler.get_job("job")).next_fire_time) > 20
        await scheduler.update_job("job", jitter=None, max_runs=2)
        await clock.advance(30)
        assert await fires_of(scheduler) == [10, 20]


@pytest.mark.parametrize("overlap", ["skip", "queue_one", "queue_all", "cancel_running"])
async def test_what_is_caught_up_with_runs_though_one_of_them_is_tried_again(
    clock: ManualClock, scheduler: Scheduler, overlap: Overlap
) -> None:
    """A fire time that passed before the attempt began overlaps nothing."""
    began: list[tuple[float, int]] = []
    async with running(scheduler, clock=clock):

        @scheduler.task(name="work")
        async def work() -> None:
            run = current_run()
            began.append((since(run.fire_time), run.attempt))
            await clock.sleep(0.1)
            if len(began) == 3:
                raise ValueError("once")

        await scheduler.add_job(
            "work", every(100), id="job", catch_up="all", overlap=overlap, retry=Retry(delays=[2])
        )
        await clock.advance(101)
        await scheduler.pause()
        await clock.advance(500)
        await scheduler.resume()
        await clock.advance(50)
        assert began == [(100, 1), (200, 1), (300, 1), (300, 2), (400, 1), (500, 1), (600, 1)]
        assert await scheduler.history.decisions("job") == []


async def test_what_passed_after_a_stop_that_cancelled_the_run_is_caught_up_with(clock: ManualClock) -> None:
    store = SharedMemory()
    first, second = Scheduler(store, clock=clock), Scheduler(store, clock=clock)
    for scheduler in (first, second):
        scheduler.task(name="work")(Taking(clock, 2.5).__call__)
    async with running(first, clock=clock):
        await first.add_job("work", every(10), id="job", catch_up="all")
        await clock.advance(21)
    await clock.advance(34)
    async with running(second, clock=clock):
        await clock.advance(19)
        assert await runs_of(second) == [
            (10, 10, "succeeded"),
            (20, 20, "cancelled"),
            (20, 55, "succeeded"),
            (30, 57.5, "succeeded"),
            (40, 60, "succeeded"),
            (50, 62.5, "succeeded"),
            (60, 65, "succeeded"),
            (70, 70, "succeeded"),
        ]
        assert await decisions_of(second) == []
