"""What a campaign must not let pass: each assertion fails for what it is there for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from asyncsched import Decision, Run
from tests.support.campaign import Campaign
from tests.support.processes import Line


def moment(instant: float) -> datetime:
    return datetime.fromtimestamp(instant, UTC)


def run(job_id: str, fence: int, outcome: Any = "succeeded", fire: float = 100.0, attempt: int = 1) -> Run:
    at = moment(fire)
    return Run(
        id=f"{job_id}@{fence}", job_id=job_id, task="work", fire_time=at, due_at=at, started_at=at, finished_at=at,
        outcome=outcome, attempt=attempt, fence=fence, instance="here",
    )  # fmt: skip


def lines(
    job_id: str, fence: int, fire: float = 100.0, ended: bool = True, instance: str = "here"
) -> list[Line]:
    events = ("begun", "ended") if ended else ("begun",)
    return [Line(event, job_id, fence, instance, fire, fire) for event in events]


def decision(job_id: str, first: float, last: float, count: int) -> Decision:
    return Decision(
        job_id=job_id, reason="coalesced", first=moment(first), last=moment(last), count=count, more=False,
        decided_at=moment(last),
    )  # fmt: skip


@pytest.fixture
def campaign() -> Campaign:
    """A good one: a job that ran, one whose first run was lost, and a recurring one with a decision."""
    return Campaign(
        victims={"victim"},
        due={"one": 100.0, "two": 100.0},
        grid={"many": [100.0, 101.0, 102.0, 103.0]},
        runs=[
            run("one", 1),
            run("two", 2, "lost"),
            run("two", 5),
            run("many", 3, fire=100.0),
            run("many", 7, fire=103.0),
        ],
        decisions=[decision("many", 101.0, 102.0, 2)],
        lines=[
            *lines("one", 1),
            *lines("two", 2, ended=False, instance="victim"),
            *lines("two", 5),
            *lines("many", 3),
            *lines("many", 7, 103.0),
        ],
    )


def check(campaign: Campaign) -> None:
    campaign.assert_every_one_shot_succeeded_once()
    campaign.assert_every_fire_time_ran_or_was_decided_once()
    campaign.assert_every_rerun_had_lost_its_lease()
    campaign.assert_only_victims_lose_runs(but=0)
    campaign.assert_nobody_begins_what_a_successor_has_begun()
    campaign.assert_fences_rise_with_fire_times()


def test_a_good_campaign_passes(campaign: Campaign) -> None:
    check(campaign)
    assert campaign.begun_again == 1


def lose_a_job(campaign: Campaign) -> None:
    del campaign.runs[0]


def settle_twice(campaign: Campaign) -> None:
    campaign.runs.append(run("one", 9))
    campaign.lines += lines("one", 9)


def settle_what_did_not_end(campaign: Campaign) -> None:
    campaign.lines.remove(lines("one", 1)[1])


def fire_twice(campaign: Campaign) -> None:
    campaign.runs.append(run("many", 9, fire=103.0))


def decide_what_ran(campaign: Campaign) -> None:
    campaign.decisions.append(decision("many", 103.0, 103.0, 1))


def miss_a_fire_time(campaign: Campaign) -> None:
    campaign.decisions.clear()


def miscount(campaign: Campaign) -> None:
    campaign.decisions[0] = decision("many", 101.0, 102.0, 1)


def fire_off_the_grid(campaign: Campaign) -> None:
    campaign.runs.append(run("many", 9, fire=103.5))


def begin_again_for_no_reason(campaign: Campaign) -> None:
    campaign.lines += lines("one", 9)


def begin_again_more_often_than_was_lost(campaign: Campaign) -> None:
    campaign.lines += lines("two", 4, ended=False)


def lose_the_run_of_a_healthy_process(campaign: Campaign) -> None:
    campaign.victims.clear()


def settle_what_was_lost(campaign: Campaign) -> None:
    campaign.runs[1] = run("two", 5, "lost")


def let_a_zombie_begin(campaign: Campaign) -> None:
    zombie = lines("two", 2, ended=False, instance="victim")
    campaign.lines = [line for line in campaign.lines if line not in zombie] + zombie


def let_the_fence_fall(campaign: Campaign) -> None:
    campaign.runs[-1] = run("many", 1, fire=103.0)
    campaign.lines += lines("many", 1, 103.0)


@pytest.mark.parametrize(
    "spoil",
    [
        lose_a_job, settle_twice, settle_what_did_not_end, fire_twice, decide_what_ran, miss_a_fire_time, miscount,
        fire_off_the_grid, begin_again_for_no_reason, begin_again_more_often_than_was_lost, settle_what_was_lost,
        lose_the_run_of_a_healthy_process, let_a_zombie_begin, let_the_fence_fall,
    ],
)  # fmt: skip
def test_a_bad_campaign_fails(campaign: Campaign, spoil: Callable[[Campaign], None]) -> None:
    spoil(campaign)
    with pytest.raises(AssertionError):
        check(campaign)
