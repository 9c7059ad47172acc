"""Several instances on one store through storms that are drawn from a seed: calls that are late, or lost before or after they
took effect, hints that are lost, clocks that are wrong, processes that freeze, die or stop, and users who change jobs meanwhile.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate, pairwise
from typing import Any, TypeVar, cast

import pytest

from asyncsched import (
    Decision,
    JobLookupError,
    JobSpec,
    Retry,
    Run,
    Scheduler,
    current_run,
    every,
    manual,
    once,
)
from asyncsched.clock import Timer
from asyncsched.errors import StoreUnavailable
from asyncsched.specs import PolicyArgs
from asyncsched.testing import ManualClock
from asyncsched.triggers import AnyTrigger
from asyncsched.units import to_datetime
from tests.support.faulty import FaultyStore
from tests.support.running import stopped
from tests.support.stores import SharedMemory

pytestmark = pytest.mark.anyio

T = TypeVar("T")

LEASE_S = 10.0
STORM_S = 240.0
#: After it everything must have come to its end within so long.
CALM_S = 240.0
ONE_SHOTS = 40
PERIOD_S = 6
#: Seeds of the ordinary tests, and of the long ones.
SHORT, LONG = 6, 200


KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"queue": "narrow"},
    {"concurrency_key": "one"},
    {"concurrency_key": "three", "concurrency_limit": 3},
    {"retry": Retry(max_attempts=3, base=2)},
)


class Host:
    """The clock of one process: wrong by some seconds, and deaf while the process is frozen."""

    def __init__(self, clock: ManualClock, skew_s: float) -> None:
        self._clock = clock
        self._skew_s = skew_s
        self.monotonic = clock.monotonic
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._missed: list[Callable[[], object]] = []

    def time(self) -> float:
        return self._clock.time() + self._skew_s

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        missed = self._missed

        class Late:
            def cancel(self) -> None:
                timer.cancel()
                if fire in missed:
                    missed.remove(fire)

        def fire() -> None:
            if self._thawed.is_set():
                callback()
            else:
                missed.append(fire)

        timer = self._clock.call_at(when, fire)
        return Late()

    async def sleep(self, delay_s: float) -> None:
        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        over = asyncio.Event()
        timer = self.call_at(self.monotonic() + delay_s, over.set)
        try:
            await over.wait()
        finally:
            timer.cancel()

    def freeze(self) -> None:
        self._thawed.clear()

    def thaw(self) -> None:
        self._thawed.set()
        missed, self._missed[:] = list(self._missed), []
        for fire in missed:
            fire()

    async def wait_thawed(self) -> None:
        await self._thawed.wait()


class Weather(FaultyStore):
    """The way of one process to the store."""

    def __init__(self, memory: SharedMemory, clock: ManualClock, host: Host, dice: random.Random) -> None:
        super().__init__(memory)
        self._clock = clock
        self._host = host
        self._dice = dice
        #: How likely a call is lost before or after it took effect, or late; and the seconds that it may be late.
        self.loss = self.delay = 0.0
        self.longest_s = 0.0
        self.is_cut = False
        #: Calls by whole seconds.
        self.pace: Counter[int] = Counter()

    async def _through(self, method: str, call: Callable[[], Awaitable[T]]) -> T:
        self.faults.calls[method] += 1
        self.pace[int(self._clock.monotonic())] += 1
        # What is on its way to the store for longer than a lease has left when it is sent, nothing there would refuse.
        await self._lag(min(self.longest_s, LEASE_S / 5))
        self._may_be_lost(method)
        answer = await call()
        await self._lag(self.longest_s)
        await self._host.wait_thawed()
        self._may_be_lost(method)
        return answer

    async def _lag(self, at_most_s: float) -> None:
        if self._dice.random() < self.delay:
            await self._clock.sleep(self._dice.uniform(0.001, at_most_s))

    def _may_be_lost(self, method: str) -> None:
        if self.is_cut or self._dice.random() < self.loss / 2:
            raise StoreUnavailable(f"{method}() was lost")

    def on_hint(self, callback: Callable[[float | None], None]) -> Callable[[], None]:
        def hear(wake_at: float | None) -> None:
            if not self.is_cut and self._dice.random() >= self.loss:
                callback(wake_at)

        return self.inner.on_hint(hear)


class Storm:
    """One simulation."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.clock = ManualClock()
        self.memory = SharedMemory(self.clock.time)
        self.hosts: list[Host] = []
        self.links: list[Weather] = []
        self.schedulers: list[Scheduler] = []
        self.stopping: list[asyncio.Task[None]] = []
        self.specs: dict[str, JobSpec] = {}
        #: By job and fence: when its run really began and ended, whatever the clock of its host was.
        self.spans: dict[tuple[str, int], tuple[float, float]] = {}
        #: How many runs of each job came to their end, and how many of each were asked for by hand.
        self.ended = Counter[str]()
        self.asked = Counter[str]()
        #: The fire times that jobs were moved to, and since when those that were removed are there anew.
        self.moved: dict[str, datetime] = {}
        self.added_at: dict[str, float] = {}

    async def work(self, seconds: float = 1.0, fails: bool = False) -> None:
        run = current_run()
        key, began_at = (run.job_id, run.fence), self.clock.monotonic()
        self.spans[key] = (began_at, math.inf)
        try:
            await run.scheduler._engine.clock.sleep(seconds)
        finally:
            self.spans[key] = (began_at, self.clock.monotonic())
        if fails and run.attempt == 1:
            raise ValueError("the first time")
        self.ended[run.job_id] += 1

    def register(self, scheduler: Scheduler) -> Scheduler:
        scheduler.register(self.work, "work")
        scheduler.register(self.work, "pair", max_concurrency=2)
        return scheduler

    async def begin_instance(self) -> None:
        host = Host(self.clock, self.dice.uniform(-3.0, 3.0))
        link = Weather(self.memory, self.clock, host, self.dice)
        scheduler = Scheduler(
            link, clock=host, lease=LEASE_S, concurrency=8, queues={"default": None, "narrow": 1}, heartbeat=20,
            store_retry=Retry(base=0.2, max_delay=1.5, spread=0.5),
        )  # fmt: skip
        await self.register(scheduler).start()
        self.hosts.append(host)
        self.links.append(link)
        self.schedulers.append(scheduler)

    async def add_jobs(self, client: Scheduler) -> None:
        def spec(
            id: str, trigger: AnyTrigger, task: str = "work", longest: float = 15.0, **policies: Any
        ) -> JobSpec:
            queue = policies.pop("queue", "default")
            args = [self.dice.choice((0.0, 3.0, longest)), "retry" in policies]
            # A process that dies is not the fault of its jobs.
            return JobSpec(
                task,
                trigger,
                id,
                args,
                queue=queue,
                policies=cast(PolicyArgs, {"max_crashes": 1000, **policies}),
            )

        def soon() -> AnyTrigger:
            return once(delay=self.dice.uniform(0.0, 0.8 * STORM_S))

        specs = [
            spec(
                f"once-{n}",
                soon(),
                self.dice.choice(("work", "work", "pair")),
                25.0,
                **self.dice.choice(KINDS),
            )
            for n in range(ONE_SHOTS)
        ]
        specs += [spec(f"moved-{n}", soon()) for n in range(8)]
        specs += [spec(f"asked-{n}", manual()) for n in range(4)]
        specs += [spec(f"anew-{n}", soon()) for n in range(4)]
        specs += [spec(f"every-{n}", every(PERIOD_S), catch_up="all") for n in range(3)]
        await client.add_jobs(specs)
        self.specs = {spec.id or "": spec for spec in specs}

    async def blow(self, client: Scheduler) -> None:
        """The storm."""
        end = self.clock.monotonic() + STORM_S
        while self.clock.monotonic() < end:
            self._change()
            await self._meddle(client)
            if len(self.schedulers) < 3:
                await self.begin_instance()
            await self.clock.advance(self.dice.uniform(0.5, 12.0))

    async def calm_down(self, client: Scheduler) -> None:
        """All that is alive can work from now on."""
        for at in range(len(self.schedulers)):
            self._clear(at)
        await self.clock.advance(CALM_S)
        for id in self.specs:
            if id.startswith(("every", "asked")):
                await client.remove_job(id)
        await self.clock.advance(60)

    def _change(self) -> None:
        at = self.dice.randrange(len(self.schedulers))
        host, link = self.hosts[at], self.links[at]
        match self.dice.choice(("freeze", "thaw", "cut", "mend", "lose", "slow", "clear", "kill", "stop")):
            case "freeze":
                host.freeze()
            case "thaw":
                host.thaw()
            case "cut":
                link.is_cut = True
            case "mend":
                link.is_cut = False
            case "lose":
                link.loss = self.dice.uniform(0.0, 0.6)
            case "slow":
                link.delay, link.longest_s = (
                    self.dice.uniform(0.0, 1.0),
                    self.dice.choice((0.1, 1.0, 4.0, 12.0)),
                )
            case "clear":
                self._clear(at)
            case "kill" if self.dice.random() < 0.3:
                link.is_cut = True
                host.freeze()
                self._forget(at)
            case "stop" if self.dice.random() < 0.5:
                self._clear(at)
                stop = self._forget(at).stop(self.dice.choice((0, 3, 30)))
                self.stopping.append(asyncio.get_running_loop().create_task(stop))

    def _clear(self, at: int) -> None:
        link = self.links[at]
        link.loss = link.delay = 0.0
        link.is_cut = False
        self.hosts[at].thaw()

    def _forget(self, at: int) -> Scheduler:
        del self.hosts[at], self.links[at]
        return self.schedulers.pop(at)

    async def _meddle(self, client: Scheduler) -> None:
        """What users do meanwhile."""
        n = self.dice.randrange(4)
        match self.dice.choice(("move", "ask", "add anew")):
            case "move":
                at = to_datetime(self.clock.time() + self.dice.uniform(0.0, 60.0))
                id = f"moved-{self.dice.randrange(8)}"
                with suppress(JobLookupError):
                    await client.reschedule_job(id, once(at))
                    self.moved[id] = at
            case "ask":
                await client.run_job(f"asked-{n}")
                self.asked[f"asked-{n}"] += 1
            case "add anew":
                id = f"anew-{n}"
                await client.remove_job(id, missing_ok=True)
                await client.add_job("work", once(delay=1), id=id, args=self.specs[id].args, max_crashes=1000)
                self.added_at[id] = self.clock.time()


@dataclass
class Log:
    """What history says after a storm."""

    storm: Storm
    runs: list[Run]
    decisions: list[Decision]
    succeeded: dict[str, list[Run]] = field(init=False)

    def __post_init__(self) -> None:
        self.succeeded = defaultdict(list)
        for run in self.runs:
            if run.outcome == "succeeded":
                self.succeeded[run.job_id].append(run)

    def assert_each_job_was_run_to_its_end_once(self) -> None:
        storm, succeeded = self.storm, self.succeeded
        ids = [id for id in storm.specs if id.startswith("once")]
        assert {id: len(succeeded[id]) for id in ids} == dict.fromkeys(ids, 1)
        assert [id for id, runs in succeeded.items() if len(runs) > storm.ended[id]] == []
        for id, at in storm.moved.items():
            assert len([run for run in succeeded[id] if run.fire_time == at]) == 1, id
        for id, added_at in storm.added_at.items():
            assert [run for run in succeeded[id] if run.fire_time.timestamp() >= added_at], id
        for id, times in storm.asked.items():
            # One that was asked for while an attempt was to be made again is that attempt.
            assert 0 < len(succeeded[id]) <= times

    def assert_each_fire_time_ran_or_was_decided_once(self) -> None:
        fired: dict[str, list[float]] = defaultdict(list)
        for id, runs in self.succeeded.items():
            fired[id] += [run.fire_time.timestamp() for run in runs]
        for decision in self.decisions:
            first = decision.first.timestamp()
            fired[decision.job_id] += [first + n * PERIOD_S for n in range(decision.count)]
        for id in ("every-0", "every-1", "every-2"):
            assert {later - earlier for earlier, later in pairwise(sorted(fired[id]))} == {PERIOD_S}, id

    def assert_every_rerun_had_lost_its_lease(self) -> None:
        settled = {(run.job_id, run.fence) for run in self.runs if run.outcome != "lost"}
        lost = {(run.job_id, run.fence) for run in self.runs if run.outcome == "lost"}
        assert settled & lost == set()
        times = Counter[str]()
        for run in self.runs:
            if run.outcome == "lost":
                times[run.job_id] += run.attempt
        # A job that was removed takes with it what nobody has written down yet.
        besides = Counter(id for id, fence in self.storm.spans.keys() - settled if not id.startswith("anew"))
        assert {id: count for id, count in besides.items() if count > times[id]} == {}

    def assert_nothing_ran_beside_itself_or_beyond_its_limit(self) -> None:
        groups: dict[str, list[Run]] = defaultdict(list)
        for run in self.runs:
            if run.outcome in ("succeeded", "failed"):
                spec = self.storm.specs[run.job_id]
                groups[run.job_id].append(run)
                groups[f"queue {spec.queue} of {run.instance}"].append(run)
                groups[f"key {spec.policies.get('concurrency_key')}"].append(run)
                groups[f"task {run.task}"].append(run)
        limits = {"key one": 1, "key three": 3, "task pair": 2, **dict.fromkeys(self.storm.specs, 1)}
        for name, runs in groups.items():
            limit = limits.get(name, 1 if name.startswith("queue narrow") else math.inf)
            assert self._most_together(runs) <= limit, name

    def _most_together(self, runs: list[Run]) -> int:
        spans = [span for run in runs if (span := self.storm.spans.get((run.job_id, run.fence)))]
        edges = sorted([(began, 1) for began, _ in spans] + [(ended, -1) for _, ended in spans])
        return max(accumulate(step for _, step in edges), default=0)


@pytest.mark.parametrize(
    "seed", [*range(SHORT), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(SHORT, LONG))]
)
async def test_whatever_the_weather_each_job_is_run_and_settled_once(seed: int) -> None:
    random.seed(seed)
    storm = Storm(seed)
    client = storm.register(Scheduler(storm.memory, queues=(), clock=storm.clock, heartbeat=None))
    async with asyncio.timeout(120), client:
        await storm.add_jobs(client)
        for _ in range(3):
            await storm.begin_instance()
        await storm.blow(client)
        await storm.calm_down(client)
        assert await client.get_jobs() == []
        assert all(stopping.done() for stopping in storm.stopping)
        await asyncio.gather(*storm.stopping)
        for link in storm.links:
            link.faults.calls.clear()
        await storm.clock.advance(60)
        for link in storm.links:
            assert link.faults.calls["claim"] <= 60
            assert max(link.pace.values()) <= 150
        log = Log(
            storm, await client.history.runs(limit=100_000), await client.history.decisions(limit=100_000)
        )
        for scheduler in storm.schedulers:
            assert await stopped(scheduler, storm.clock, drain=5) < 12
    log.assert_each_job_was_run_to_its_end_once()
    log.assert_each_fire_time_ran_or_was_decided_once()
    log.assert_every_rerun_had_lost_its_lease()
    log.assert_nothing_ran_beside_itself_or_beyond_its_limit()
