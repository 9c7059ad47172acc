"""Workflows on stores that lose replies and go away, and with records that die in the middle: every step runs once, none is
forgotten, and the execution ends as it would have."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest
from msgspec.structs import replace

from asyncsched import (
    Condition,
    Retry,
    Scheduler,
    Workflow,
    WorkflowRun,
    WorkflowStatus,
    current_run,
    on_complete,
    on_failure,
    on_skipped,
    on_success,
    once,
)
from asyncsched.contract import Claim, JobStore, Record, Settlement, Update
from asyncsched.definition import FlowLink
from asyncsched.errors import StoreError, StoreUnavailable
from asyncsched.flowform import END_STATES, EndForm
from asyncsched.flows import end_record
from asyncsched.testing import ManualClock
from tests.servers.running import Servers
from tests.support.faulty import FaultyStore
from tests.support.running import running, stopped
from tests.support.stores import SharedMemory, make_store
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

T = TypeVar("T")

PROMPTLY = Retry(base=0.01, max_delay=0.05)
LOSABLE = ("claim", "settle", "update", "get", "add")
MEETS = {
    "success": {"succeeded"},
    "failure": {"failed", "cancelled"},
    "skipped": {"skipped"},
    "complete": set(END_STATES),
}


class LosingStore(FaultyStore):
    """Loses the reply of one call, the *left*th of *method* from now on."""

    method = ""
    left = 0

    async def _through(self, method: str, call: Callable[[], Awaitable[T]]) -> T:
        if method == self.method:
            self.left -= 1
            if self.left == 0:
                self.faults.lost[method] = 1
        return await super()._through(method, call)


@pytest.fixture
def store(store_kind: str, tmp_path: Path, servers: Servers) -> LosingStore:
    return LosingStore(make_store(store_kind, tmp_path, servers))


@pytest.fixture
def ran() -> Counter[str]:
    return Counter()


@pytest.fixture
def scheduler(store: FaultyStore, ran: Counter[str]) -> Scheduler:
    scheduler = Scheduler(store, store_retry=PROMPTLY, poll_interval=0.2, heartbeat=None)
    define(scheduler, ran)
    return scheduler


def define(scheduler: Scheduler, ran: Counter[str]) -> None:
    @scheduler.task(name="good")
    async def good() -> str:
        ran[current_run().job_id] += 1
        return current_run().job_id

    @scheduler.task(name="bad")
    async def bad() -> None:
        ran[current_run().job_id] += 1
        raise ValueError("no")


def diamond() -> Workflow:
    return (
        Workflow("diamond")
        .step("top", "good")
        .step("left", "good", after="top")
        .step("right", "bad", after="top")
        .step("bottom", "good", after=["left", on_failure("right")])
        .final("end", "good")
    )


EVERY_STEP = {"1/top": 1, "1/left": 1, "1/right": 1, "1/bottom": 1, "1/end": 1}


@pytest.mark.parametrize("method", LOSABLE)
async def test_a_reply_that_is_lost_at_any_point_runs_no_step_twice_and_leaves_none_out(
    method: str, scheduler: Scheduler, store: LosingStore, ran: Counter[str]
) -> None:
    calls, lost = 10, 0
    async with scheduler:
        for number in range(1, calls + 1):
            store.method, store.left = method, number
            run = await scheduler.start_workflow(diamond(), id=f"{number}")
            status = await run.wait(timeout=60)
            assert status.state == "failed"
            lost += store.left <= 0
    assert lost >= (1 if method == "add" else 4)
    assert ran == {f"{n}/{step[2:]}": 1 for n in range(1, calls + 1) for step in EVERY_STEP}


async def test_a_store_that_goes_away_in_the_middle_only_delays_a_workflow(
    scheduler: Scheduler, store: FaultyStore, ran: Counter[str]
) -> None:
    async with scheduler:
        run = await scheduler.start_workflow(diamond(), id="1")
        await eventually(lambda: ran["1/top"])
        store.faults.go_away(["claim", "settle", "update", "get"])
        await asyncio.sleep(0.2)
        store.faults.come_back()
        assert (await run.wait(timeout=60)).state == "failed"
    assert ran == EVERY_STEP


async def test_whoever_dies_after_he_wrote_down_an_end_is_followed_by_one_who_begins_what_comes_after_it(
    ran: Counter[str],
) -> None:
    """The state is written, the next steps are not there yet: the record that told the end is claimed again."""
    store = SharedMemory()
    faulty = FaultyStore(store)

    def is_about_the_top(settlement: Settlement) -> bool:
        return settlement.id == "#flow-end/1#top"

    first = Scheduler(faulty, lease=0.5, heartbeat=None, store_retry=PROMPTLY)
    define(first, ran)
    held: list[Settlement] = []
    inner = faulty.inner.settle

    async def settle(settlements: list[Settlement]) -> list[str]:
        """What tells the end of the top step never comes through, as if its writer had died before."""
        held.extend(one for one in settlements if is_about_the_top(one))
        rest = [one for one in settlements if not is_about_the_top(one)]
        answers = iter(await inner(rest))
        return ["lost" if is_about_the_top(one) else next(answers) for one in settlements]

    faulty.settle = settle  # type: ignore[assignment, method-assign]  # the test takes its place
    async with first:
        run = await first.start_workflow(diamond(), id="1")
        await eventually(lambda: held)
        assert (await run.status()).steps["left"].state == "scheduled"
        assert "1/left" not in await store.get(["1/left"])
        await first.stop(drain=0)
    second = Scheduler(store, lease=0.5, heartbeat=None)
    define(second, ran)
    async with second:
        run = await second.workflow("1")
        assert (await run.wait(timeout=60)).state == "failed"
        # And he who seemed to have died comes back, and is refused.
        zombie = held[0]
        assert {record.id for record in zombie.spawn} == {"1/left", "1/right"}
        assert await store.settle([zombie]) != ["done"]
        assert await store.get(["1/left", "1/right"]) == {}
    assert ran == EVERY_STEP


async def test_a_look_takes_no_step_for_removed_that_somebody_is_about_to_begin(ran: Counter[str]) -> None:
    """The end of the top step is written down, and who wrote it has not begun the next ones: he may yet."""
    clock = ManualClock()
    store = SharedMemory()
    faulty = FaultyStore(store)
    inner = faulty.inner.settle
    held: list[Settlement] = []

    async def settle(settlements: list[Settlement]) -> list[str]:
        held.extend(one for one in settlements if one.id == "#flow-end/1#top" and not held)
        rest = [one for one in settlements if one not in held]
        answers = iter(await inner(rest))
        return ["lost" if one in held else next(answers) for one in settlements]

    faulty.settle = settle  # type: ignore[assignment, method-assign]  # the test takes its place
    scheduler = Scheduler(faulty, lease=300, clock=clock, heartbeat=None)
    define(scheduler, ran)
    async with running(scheduler, clock=clock):
        run = await scheduler.start_workflow(diamond(), id="1")
        await eventually(lambda: held)
        looks = (await store.get(["#flow/1"]))["#flow/1"].fence
        for _ in range(30):
            await clock.advance(5)
        assert (await store.get(["#flow/1"]))["#flow/1"].fence >= looks + 3
        assert (await run.status()).steps["left"].state == "scheduled"
        for _ in range(40):
            await clock.advance(5)
        await eventually(lambda: ran["1/end"])
        waiting = asyncio.ensure_future(run.wait())
        await clock.advance(1)
        assert (await waiting).state == "failed"
    assert ran == EVERY_STEP


async def test_an_end_that_is_told_twice_begins_nothing_twice(ran: Counter[str]) -> None:
    """The step after it has ended, and that has not been written down yet. What is told to an execution of the same id that was
    before is nothing to this one."""
    store = SharedMemory()
    scheduler = Scheduler(store, heartbeat=None)
    define(scheduler, ran)
    async with scheduler:
        flow = Workflow("w").step("a", "good").step("b", "good", after="a", queue="nobody serves it")
        run = await scheduler.start_workflow(flow, id="1")
        await eventually(lambda: has(store, "1/b"))
        await eventually(lambda: is_gone(store, "#flow-end/1#a"))
        await store.remove(["1/b"])
        execution = (await store.get(["#flow/1"]))["#flow/1"]
        link = FlowLink("1", execution.birth, "a", "default", "w")
        again = end_record(link, EndForm("succeeded"), "told again", 0.0)
        other = end_record(replace(link, step="b", birth="another's"), EndForm("failed"), "of another", 0.0)
        for record in (again, other):
            await store.add([record])
            await eventually(lambda record=record: is_gone(store, record.id))  # type: ignore[misc]  # mypy infers no type for a lambda's default
        states = {name: step.state for name, step in (await run.status()).steps.items()}
        assert states == {"a": "succeeded", "b": "scheduled"}
        assert await store.get(["1/b"]) == {}
    assert ran == {"1/a": 1}


async def is_gone(store: SharedMemory, id: str) -> bool:
    return id not in await store.get([id])


async def test_a_zombie_of_a_step_cannot_move_its_workflow_on(ran: Counter[str]) -> None:
    store = SharedMemory()
    scheduler = Scheduler(store, heartbeat=None)
    define(scheduler, ran)
    async with scheduler:
        run = await scheduler.start_workflow(
            Workflow("w").step("a", "good", queue="slow").step("b", "good", after="a"), id="1"
        )
        await eventually(lambda: has(store, "1/a"))
        [zombie] = (await store.claim(["slow"], "zombie", 1, 0.01)).records
        await eventually(lambda: taken_over(store))
        [heir] = held = [(await store.get(["1/a"]))["1/a"]]
        assert heir.fence > zombie.fence
        end = Settlement(
            zombie.id, zombie.fence, zombie.holder or "", zombie.version, delete=True,
            spawn=(replace(zombie, id="#flow-end/1#a", task="#flow-end", queue="default"),),
        )  # fmt: skip
        assert await store.settle([end]) == ["lost"]
        assert (await run.status()).steps["b"].state == "pending"
        assert (await store.renew([Claim(h.id, h.fence, h.holder or "") for h in held], 1)).versions == {
            "1/a": 1
        }


async def has(store: JobStore, id: str) -> bool:
    return id in await store.get([id])


async def taken_over(store: SharedMemory) -> bool:
    return bool((await store.claim(["slow"], "heir", 1, 30)).records)


async def test_a_step_whose_end_the_store_refuses_for_good_counts_as_failed(
    scheduler: Scheduler, store: FaultyStore, ran: Counter[str]
) -> None:
    """What is left of it, its quarantine, tells the workflow."""
    store.faults.is_poison = lambda settlement: settlement.id == "1/left" and settlement.delete
    async with scheduler:
        run = await scheduler.start_workflow(diamond(), id="1")
        status = await run.wait(timeout=60)
        assert (await scheduler.get_job("1/left")).state == "quarantined"
    assert {name: step.state for name, step in status.steps.items()} == {
        "top": "succeeded",
        "left": "failed",
        "right": "failed",
        "bottom": "skipped",
        "end": "succeeded",
    }
    assert "quarantined" in (status.steps["left"].error or "")


async def test_a_step_that_kills_one_process_after_the_other_counts_as_failed(ran: Counter[str]) -> None:
    store = SharedMemory()
    scheduler = Scheduler(store, heartbeat=None, queues=["default", "deadly"])
    define(scheduler, ran)
    async with Scheduler(store, heartbeat=None) as first:
        define(first, ran)
        flow = (
            Workflow("w")
            .step("a", "good", queue="deadly", max_crashes=3)
            .step("b", "good", after=on_failure("a"))
        )
        run = await first.start_workflow(flow, id="1")
        await eventually(lambda: has(store, "1/a"))
        for number in range(3):
            await eventually(lambda n=number: claimed_by(store, f"victim-{n}"))  # type: ignore[misc]  # mypy infers no type for a lambda's default
    async with scheduler:
        run = await scheduler.workflow("1")
        status = await run.wait(timeout=60)
    assert {name: step.state for name, step in status.steps.items()} == {"a": "failed", "b": "succeeded"}
    assert "claims in a row were lost" in (status.steps["a"].error or "")
    assert ran == {"1/b": 1}


async def claimed_by(store: SharedMemory, token: str) -> bool:
    return bool((await store.claim(["deadly"], token, 1, 0.01)).records)


# -- stores that take only so much -------------------------------------------------------------------------------------


def is_too_much(settlement: Settlement) -> bool:
    """As some stores bound what one transaction writes."""
    return len(settlement.spawn) > 100 or sum(len(record.body) for record in settlement.spawn) > 1_000_000


async def test_many_waiting_steps_are_called_off_on_a_store_that_takes_few_records_at_once() -> None:
    clock, store = ManualClock(), FaultyStore(SharedMemory())
    store.faults.is_poison = is_too_much
    scheduler = Scheduler(store, clock=clock, heartbeat=None)
    define(scheduler, Counter())
    async with running(scheduler, clock=clock):
        flow = Workflow("w")
        for number in range(300):
            flow.step(f"s{number}", "good", queue="nobody serves it")
        run = await scheduler.start_workflow(flow, id="1")
        await eventually(lambda: has(store.inner, "1/s299"))
        await run.cancel()
        for _ in range(30):
            await clock.advance(1)
        status = await run.status()
        assert status.state == "cancelled"
        assert {step.state for step in status.steps.values()} == {"cancelled"}
        assert await scheduler.get_jobs() == []


@pytest.mark.parametrize("id", ["#flow/1", "#flow-end/1#top"])
async def test_what_a_store_refused_of_a_workflow_is_tried_again(id: str, ran: Counter[str]) -> None:
    clock, store, refusals = ManualClock(), FaultyStore(SharedMemory()), 0

    def is_refused(settlement: Settlement) -> bool:
        nonlocal refusals
        refusals += settlement.id == id
        return settlement.id == id and refusals < 4

    store.faults.is_poison = is_refused
    scheduler = Scheduler(store, clock=clock, heartbeat=None)
    define(scheduler, ran)
    async with running(scheduler, clock=clock):
        run = await scheduler.start_workflow(diamond(), id="1")
        for _ in range(100):
            await clock.advance(5)
        assert (await run.status()).state == "failed"
    assert ran == EVERY_STEP


async def test_large_results_go_to_many_steps_on_a_store_that_takes_few_bytes_at_once() -> None:
    clock, store = ManualClock(), FaultyStore(SharedMemory())
    store.faults.is_poison = is_too_much
    scheduler = Scheduler(store, clock=clock, heartbeat=None)
    define(scheduler, Counter())

    @scheduler.task(name="large")
    async def large() -> str:
        return "x" * 30_000

    async with running(scheduler, clock=clock):
        flow = Workflow("w")
        names = [f"large{number}" for number in range(15)]
        for name in names:
            flow.step(name, "large")
        for number in range(40):
            flow.step(f"s{number}", "good", after=names)
        run = await scheduler.start_workflow(flow, id="1")
        for _ in range(30):
            await clock.advance(1)
        assert (await run.status()).state == "succeeded"


async def test_a_job_that_many_wait_for_tells_no_more_at_once_than_a_store_takes(ran: Counter[str]) -> None:
    clock, store = ManualClock(), FaultyStore(SharedMemory())
    store.faults.is_poison = is_too_much
    scheduler = Scheduler(store, clock=clock, heartbeat=None)
    define(scheduler, ran)

    @scheduler.task(name="large")
    async def large() -> str:
        ran["large"] += 1
        return "x" * 30_000

    @scheduler.task(name="length")
    async def length() -> int:
        workflow = current_run().workflow
        assert workflow is not None
        return len(workflow.results["job"])

    async with running(scheduler, clock=clock):
        job = await scheduler.add_job("large", once(delay=60), id="job")
        runs = [await scheduler.enqueue_after(job, "length") for _ in range(110)]
        for _ in range(60):
            await clock.advance(5)
        steps = [(await run.status()).steps["then"] for run in runs[::10]]
        assert {(step.state, step.result) for step in steps} == {("succeeded", 30_000)}
    assert ran == {"large": 1}


async def test_errors_that_a_store_has_no_room_for_are_shortened() -> None:
    class SmallStore(SharedMemory):
        async def update(self, update: Update) -> Record | None:
            if len(update.body) > 60_000:
                raise StoreError(f"{update.id!r} is too large")
            return await super().update(update)

    clock = ManualClock()
    scheduler = Scheduler(SmallStore(), clock=clock, heartbeat=None)

    @scheduler.task(name="bad")
    async def bad() -> None:
        raise ValueError("no" * 900)

    async with running(scheduler, clock=clock):
        flow = Workflow("w")
        for number in range(50):
            flow.step(f"s{number}", "bad")
        run = await scheduler.start_workflow(flow, id="1")
        for _ in range(30):
            await clock.advance(1)
        status = await run.status()
        assert status.state == "failed"
        assert all((step.error or "").startswith("ValueError: nono") for step in status.steps.values())


async def test_a_step_that_is_claimed_while_it_is_called_off_is_cancelled_and_not_lost_sight_of() -> None:
    clock, store = ManualClock(), SharedMemory()
    faulty = FaultyStore(store)
    first, second = (
        Scheduler(s, clock=clock, heartbeat=None, queues=[q])
        for s, q in ((faulty, "default"), (store, "later"))
    )
    started = 0

    for scheduler in (first, second):

        @scheduler.task(name="block")
        async def block() -> None:
            nonlocal started
            started += 1
            await asyncio.Event().wait()

    async with running(first, clock=clock):
        flow = Workflow("w").step("a", "block", queue="later")
        run = await first.start_workflow(flow, id="1")
        await eventually(lambda: has(store, "1/a"))
        inner, has_begun = store.update, False

        async def update(update: Update) -> Record | None:
            """Between the look at the step and what is written of it, another instance begins it."""
            nonlocal has_begun
            if update.id == "1/a" and not has_begun:
                has_begun = True
                await second.start()
                await eventually(lambda: started)
            return await inner(update)

        store.update = update  # type: ignore[method-assign]  # the test takes its place
        await run.cancel()
        await eventually(lambda: started)
        for _ in range(10):
            await clock.advance(1)
        assert (await run.status()).steps["a"].state == "cancelled"
        assert has_begun
        assert second.running() == []
        await stopped(second, clock)


async def test_many_ends_at_once_do_not_race_for_one_execution(ran: Counter[str]) -> None:
    class SlowStore(SharedMemory):
        updates = 0

        async def update(self, update: Update) -> Record | None:
            self.updates += update.id == "#flow/1"
            await asyncio.sleep(0.001)
            return await super().update(update)

    store = SlowStore()
    async with Scheduler(store, heartbeat=None) as scheduler:
        define(scheduler, ran)
        flow = Workflow("w")
        for number in range(100):
            flow.step(f"s{number}", "good")
        run = await scheduler.start_workflow(flow, id="1")
        assert (await run.wait(timeout=60)).state == "succeeded"
    assert store.updates <= 120


# -- any workflow, any losses ------------------------------------------------------------------------------------------


def any_workflow(chance: random.Random) -> tuple[Workflow, dict[str, list[Condition]], dict[str, str]]:
    """One that is made up: what each step comes after, and which task it is."""
    flow = Workflow("any")
    after: dict[str, list[Condition]] = {}
    tasks: dict[str, str] = {}
    kinds = [on_success, on_success, on_failure, on_skipped, on_complete]
    for number in range(chance.randint(1, 8)):
        name = f"s{number}"
        before = chance.sample(sorted(after), min(len(after), chance.randint(0, 2)))
        after[name] = [chance.choice(kinds)(one) for one in before]
        tasks[name] = chance.choice(["good", "good", "bad"])
        flow.step(name, tasks[name], after=after[name])
    if chance.random() < 0.5:
        after["end"], tasks["end"] = [], "good"
        flow.final("end", "good")
    return flow, after, tasks


def as_it_must_be(after: dict[str, list[Condition]], tasks: dict[str, str]) -> dict[str, str]:
    """How the steps end, by a model that knows nothing of stores."""
    states: dict[str, str] = {}
    for name, conditions in after.items():
        runs = all(states[condition.step] in MEETS[condition.when] for condition in conditions)
        states[name] = {"good": "succeeded", "bad": "failed"}[tasks[name]] if runs else "skipped"
    return states


async def end_of(run: WorkflowRun) -> WorkflowStatus:
    """Where replies are lost in a row, whoever waits is told that the store is away, and asks again."""
    while True:
        with suppress(StoreUnavailable):
            return await run.wait(timeout=60)


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_replies_are_lost_any_workflow_ends_as_it_must(
    seed: int, scheduler: Scheduler, store: FaultyStore, ran: Counter[str]
) -> None:
    chance = random.Random(seed)
    expected: dict[str, dict[str, str]] = {}
    ended: dict[str, WorkflowStatus] = {}
    async with scheduler:
        runs = []
        for number in range(10):
            flow, after, tasks = any_workflow(chance)
            runs.append(await scheduler.start_workflow(flow, id=f"w{number}"))
            expected[f"w{number}"] = as_it_must_be(after, tasks)
            store.faults.lost[chance.choice(LOSABLE)] += 1
        # By calls, not by time: where every call is slow, most of them get through all the same.
        store.faults.loses = lambda method: method in LOSABLE and chance.random() < 0.2
        for run in runs:
            ended[run.id] = await end_of(run)
    assert {
        id: {name: step.state for name, step in status.steps.items()} for id, status in ended.items()
    } == expected
    must_run = {
        f"{id}/{name}" for id, steps in expected.items() for name in steps if steps[name] != "skipped"
    }
    assert ran == dict.fromkeys(must_run, 1)
