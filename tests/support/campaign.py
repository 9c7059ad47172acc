"""What happened to the jobs of a campaign: the workers' own notes beside the store's history, and what must be true of both."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from asyncsched import Decision, Run, Scheduler
from tests.support.processes import Line

__all__ = ["Campaign", "Lags", "read_runs"]

#: More runs than any campaign has.
_EVERYTHING = 1_000_000


@dataclass
class Campaign:
    """What happened."""

    #: By one-shot job, when it is due.
    due: dict[str, float] = field(default_factory=dict)
    #: By recurring job, all its fire times.
    grid: dict[str, list[float]] = field(default_factory=dict)
    killed_at: list[float] = field(default_factory=list)
    #: The workers that were killed or frozen.
    victims: set[str] = field(default_factory=set)
    took_s: float = 0.0
    cpu_s: float = 0.0
    runs: list[Run] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def fences(self, event: str) -> dict[str, set[int]]:
        """By job, the fences under which the workers wrote down *event*."""
        found: dict[str, set[int]] = defaultdict(set)
        for line in self.lines:
            if line.event == event:
                found[line.job_id].add(line.fence)
        return found

    def settled(self, outcome: str) -> dict[str, list[int]]:
        """By job, the fences of the runs that history has with *outcome*."""
        found: dict[str, list[int]] = defaultdict(list)
        for run in self.runs:
            if run.outcome == outcome:
                found[run.job_id].append(run.fence)
        return found

    def lost(self) -> Counter[str]:
        """By job, how many claims were lost: history has the last of several in a row, with their number as its attempt."""
        found: Counter[str] = Counter()
        for run in self.runs:
            if run.outcome == "lost":
                found[run.job_id] += run.attempt
        return found

    # -- what must be true -----------------------------------------------------------------------------------------------

    def assert_every_one_shot_succeeded_once(self) -> None:
        """Every job ran to its end, and exactly one run of each was settled: one that did run, under an earlier fence where its
        process lost its lease between end and settlement and took it over itself."""
        ended, succeeded = self.fences("ended"), self.settled("succeeded")
        settled = {id: len(fences) for id, fences in succeeded.items() if id not in self.grid}
        assert settled == dict.fromkeys(self.due, 1)
        unended = [
            (id, fence)
            for id, fences in succeeded.items()
            for fence in fences
            if min(ended[id], default=fence + 1) > fence
        ]
        assert unended == []

    def assert_every_fire_time_ran_or_was_decided_once(self) -> None:
        fired: dict[str, list[float]] = defaultdict(list)
        for run in self.runs:
            if run.outcome == "succeeded":
                fired[run.job_id].append(run.fire_time.timestamp())
        for decision in self.decisions:
            grid = self.grid[decision.job_id]
            first, last = decision.first.timestamp(), decision.last.timestamp()
            decided = [fire for fire in grid if first <= fire <= last]
            assert len(decided) == decision.count, decision
            fired[decision.job_id] += decided
        wrong = {
            id: (sorted(set(grid) - set(fired[id])), [f for f, n in Counter(fired[id]).items() if n > 1])
            for id, grid in self.grid.items()
            if sorted(fired[id]) != grid
        }
        assert wrong == {}, "(missing, doubled) fire times by job"

    def assert_every_rerun_had_lost_its_lease(self) -> None:
        """Whatever began beside the runs that were settled had lost its lease, and history counts it; and nothing that was
        settled had lost it."""
        succeeded, lost = self.settled("succeeded"), self.lost()
        besides = {id: len(fences - set(succeeded[id])) for id, fences in self.fences("begun").items()}
        assert {id: count for id, count in besides.items() if count > lost[id]} == {}
        assert [id for id, fences in self.settled("lost").items() if set(fences) & set(succeeded[id])] == []

    def assert_only_victims_lose_runs(self, but: int) -> None:
        """What began and was not settled had begun in a process that was killed or frozen; all *but* so many, for processes that
        the machine itself held up past their lease."""
        succeeded = self.settled("succeeded")
        besides = [
            line for line in self.lines if line.event == "begun" and line.fence not in succeeded[line.job_id]
        ]
        assert len([line for line in besides if line.instance not in self.victims]) <= but

    def assert_nobody_begins_what_a_successor_has_begun(self) -> None:
        """A process that was frozen past its lease may end what it was running; it begins nothing under it any more."""
        begun: dict[str, list[int]] = defaultdict(list)
        for line in self.lines:
            if line.event == "begun":
                begun[line.job_id].append(line.fence)
        assert {id: fences for id, fences in begun.items() if fences != sorted(fences)} == {}

    def assert_fences_rise_with_fire_times(self) -> None:
        for id in self.grid:
            runs = [run for run in self.runs if run.job_id == id and run.outcome == "succeeded"]
            runs.sort(key=lambda run: run.fire_time)
            assert all(a.fence < b.fence for a, b in pairwise(runs)), id

    # -- figures ---------------------------------------------------------------------------------------------------------

    @property
    def begun_again(self) -> int:
        """How many runs were at a fire time that had begun before."""
        begun = [line for line in self.lines if line.event == "begun"]
        return len(begun) - len({(line.job_id, line.fire) for line in begun})

    def longest_recovery_s(self) -> float:
        """From the kill that took a run away to its second beginning, at the most."""
        first: dict[tuple[str, float], float] = {}
        again: list[float] = []
        for line in self.lines:
            if line.event == "begun":
                key = line.job_id, line.fire
                if key in first:
                    killed = (at for at in self.killed_at if first[key] <= at <= line.at)
                    again.append(line.at - min(killed, default=line.at))
                first[key] = line.at
        return max(again, default=0.0)

    def lags(self) -> Lags:
        """How late each fire time began for the first time."""
        first: dict[tuple[str, float], float] = {}
        for line in self.lines:
            if line.event == "begun":
                first.setdefault((line.job_id, line.fire), line.at)
        return Lags.of(at - fire for (_, fire), at in first.items())


@dataclass(frozen=True, slots=True)
class Lags:
    """In seconds."""

    median: float
    p99: float
    longest: float

    @classmethod
    def of(cls, lags: Iterable[float]) -> Lags:
        ordered = sorted(lags)
        return cls(statistics.median(ordered), ordered[int(len(ordered) * 0.99)], ordered[-1])

    def __str__(self) -> str:
        return f"p50 {self.median * 1e3:.0f} ms, p99 {self.p99 * 1e3:.0f} ms, max {self.longest * 1e3:.0f} ms"


async def read_runs(scheduler: Scheduler) -> list[Run]:
    """All of the history."""
    return await scheduler.history.runs(limit=_EVERYTHING)
