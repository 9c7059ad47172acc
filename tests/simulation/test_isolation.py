"""One bad record never stops the others, and nothing is deleted because it could not be understood.

==========================================================  ==========================================================
known from other schedulers                                 promised here
==========================================================  ==========================================================
a trigger that raises kills the scheduler                   that job alone is quarantined
a function that cannot be found gets the job deleted        handed back, with growing pauses, for one that knows it
a body that cannot be decoded kills the scheduler           that job alone is quarantined, kept and shown
a poison job that kills its process is retried for ever     claims are counted; crashes quarantine
default pickle: whoever writes to the store runs code       typed, tagged data; a pickle is refused
job errors that vanish                                      a traceback in history, and a log record
history grows without bound                                 pruned in bounded batches, whatever one of them met
==========================================================  ==========================================================
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from asyncsched import (
    Every,
    Job,
    JobAdded,
    JobHandedBack,
    JobQuarantined,
    JobSpec,
    MemoryStore,
    Retention,
    RunFailed,
    RunSucceeded,
    Scheduler,
    SerializationError,
    Skip,
    current_run,
    every,
    once,
)
from asyncsched.codec import decode_definition, encode
from asyncsched.contract import Entry, Record
from asyncsched.execution import Execution
from asyncsched.ledger import Ledger
from asyncsched.plan import Ended
from asyncsched.testing import ManualClock
from tests.support.faulty import FaultyStore
from tests.support.running import running
from tests.support.stores import SharedMemory

pytestmark = pytest.mark.anyio

#: The version of a stored format stands first, and there will be others.
OF_THE_FUTURE = msgspec.msgpack.encode([99, {"all": "different"}])
BROKEN_BODIES = {
    "empty": b"",
    "of no version": b"\x00\x01\x02",
    "cut in two": b"\x01\x9d\xcbA\xda",
    "another type": b"\x01\xa5hello",
    "noise": b"\x01" + bytes(range(256)),
}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def ran() -> list[str]:
    return []


@pytest.fixture
def scheduler(memory: MemoryStore, clock: ManualClock, ran: list[str]) -> Scheduler:
    scheduler = Scheduler(memory, clock=clock)

    @scheduler.task(name="work")
    async def work() -> None:
        ran.append(current_run().job_id)

    return scheduler


async def spoil(
    memory: MemoryStore, scheduler: Scheduler, id: str, change: Callable[[Record], Record]
) -> None:
    """Put a changed record in the place of a stored one, as another program or a newer version might."""
    record = (await memory.get([id]))[id]
    await memory.remove([id])
    await memory.add([change(record)])


def healthy() -> list[JobSpec]:
    return [JobSpec("work", every(10), id=f"healthy-{n}") for n in range(3)]


def assert_healthy_ones_ran(ran: Sequence[str], times: int) -> None:
    assert {id: ran.count(id) for id in ran if id.startswith("healthy")} == {
        f"healthy-{n}": times for n in range(3)
    }


# -- bodies ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", BROKEN_BODIES.values(), ids=BROKEN_BODIES)
async def test_a_job_whose_body_cannot_be_decoded_is_quarantined_kept_and_shown_and_the_others_run(
    scheduler: Scheduler, clock: ManualClock, memory: MemoryStore, ran: list[str], body: bytes
) -> None:
    heard: list[JobQuarantined] = []
    scheduler.on(JobQuarantined, heard.append)
    async with running(scheduler, clock=clock):
        await scheduler.add_jobs([*healthy(), JobSpec("work", once(delay=10), id="broken")])
        await spoil(memory, scheduler, "broken", lambda record: replace(record, body=body))
        await clock.advance(35)
        jobs = await scheduler.get_jobs()
        [shown] = [job for job in jobs if job.id == "broken"]
        assert shown.state == "quarantined"
        assert shown.task == "work"
        assert (await memory.get(["broken"]))["broken"].body == body
        assert await scheduler.next_fire_time() is not None
        [decision] = await scheduler.history.decisions("broken")
    assert_healthy_ones_ran(ran, 3)
    assert "broken" not in ran
    assert [event.job_id for event in heard] == ["broken"]
    assert (decision.reason, bool(decision.detail)) == ("quarantined", True)


async def test_a_job_whose_progress_cannot_be_decoded_is_quarantined_and_the_others_run(
    scheduler: Scheduler, clock: ManualClock, memory: MemoryStore, ran: list[str]
) -> None:
    async with running(scheduler, clock=clock):
        await scheduler.add_jobs([*healthy(), JobSpec("work", every(10), id="broken")])
        await spoil(memory, scheduler, "broken", lambda record: replace(record, cursor=b"\x01\xc1"))
        await clock.advance(35)
        assert (await scheduler.get_job("broken")).state == "quarantined"
        assert len(await scheduler.get_jobs()) == 4
    assert_healthy_ones_ran(ran, 3)
    assert "broken" not in ran


async def test_a_quarantined_job_can_be_removed(
    scheduler: Scheduler, clock: ManualClock, memory: MemoryStore
) -> None:
    async with running(scheduler, clock=clock):
        await scheduler.add_jobs([*healthy(), JobSpec("work", once(delay=10), id="broken")])
        await spoil(memory, scheduler, "broken", lambda record: replace(record, body=b"\x01"))
        await clock.advance(15)
        assert await scheduler.remove_job("broken") is True
        assert len(await scheduler.get_jobs()) == 3


async def test_a_job_of_a_newer_version_is_left_to_newer_code(
    scheduler: Scheduler, clock: ManualClock, memory: MemoryStore, ran: list[str]
) -> None:
    heard: list[JobHandedBack] = []
    scheduler.on(JobHandedBack, heard.append)
    async with running(scheduler, clock=clock):
        await scheduler.add_jobs([*healthy(), JobSpec("work", once(delay=10), id="newer")])
        await spoil(memory, scheduler, "newer", lambda record: replace(record, body=OF_THE_FUTURE))
        await clock.advance(35)
        record = (await memory.get(["newer"]))["newer"]
    assert (record.hold, record.tries, record.body) == (None, 0, OF_THE_FUTURE)
    assert heard
    assert_healthy_ones_ran(ran, 3)


async def test_arguments_that_are_a_pickle_are_not_unpickled(
    scheduler: Scheduler, clock: ManualClock, memory: MemoryStore, tmp_path: Path
) -> None:
    """Whoever can write to the store must not be able to run code in the workers."""

    class Evil:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return os.mkdir, (str(tmp_path / "owned"),)

    failed: list[RunFailed] = []
    scheduler.on(RunFailed, failed.append)
    evil = pickle.dumps([[Evil()], {}])
    async with running(scheduler, clock=clock):
        for n, arguments in enumerate((b"P" + evil, b"D" + evil, evil)):
            await scheduler.add_job("work", once(delay=10), id=f"evil-{n}")
            await spoil(
                memory,
                scheduler,
                f"evil-{n}",
                lambda record, arguments=arguments: replace(  # type: ignore[misc]  # mypy infers no type for a lambda's default
                    record, body=encode(replace(decode_definition(record.body), args=arguments))
                ),
            )
        await clock.advance(15)
        assert len(await scheduler.get_jobs()) == 3
    assert not (tmp_path / "owned").exists()
    assert len(failed) == 3
    assert all("SerializationError" in (event.error or "") for event in failed)


# -- triggers --------------------------------------------------------------------------------------------------------------


async def test_a_trigger_that_raises_quarantines_its_job_alone(
    scheduler: Scheduler, clock: ManualClock, memory: MemoryStore, ran: list[str]
) -> None:
    def with_raising_trigger(record: Record) -> Record:
        definition = decode_definition(record.body)
        broken = replace(definition, trigger=Every(step_us=0, bound=definition.created_at))
        return replace(record, body=encode(broken))

    async with running(scheduler, clock=clock):
        await scheduler.add_jobs([*healthy(), JobSpec("work", every(10), id="broken")])
        await spoil(memory, scheduler, "broken", with_raising_trigger)
        await clock.advance(35)
        job = await scheduler.get_job("broken")
        [decision] = await scheduler.history.decisions("broken")
    assert job.state == "quarantined"
    assert "ZeroDivisionError" in (decision.detail or "")
    assert "broken" not in ran
    assert_healthy_ones_ran(ran, 3)


async def test_a_trigger_that_raises_after_a_run_quarantines_its_job_and_keeps_the_run(
    scheduler: Scheduler, clock: ManualClock, memory: MemoryStore, ran: list[str]
) -> None:
    """A one-shot's fire time needs no trigger to run; where to go from there does."""

    def with_raising_trigger(record: Record) -> Record:
        definition = decode_definition(record.body)
        broken = replace(definition, trigger=Every(step_us=0, bound=definition.created_at))
        return replace(record, body=encode(broken))

    async with running(scheduler, clock=clock):
        await scheduler.add_jobs([*healthy(), JobSpec("work", every(1000), id="broken")])
        await scheduler.run_job("broken")
        await scheduler.pause()
        await clock.advance(0)
        await spoil(memory, scheduler, "broken", with_raising_trigger)
        await scheduler.resume()
        await clock.advance(1005)
        job = await scheduler.get_job("broken")
    assert job.state == "quarantined"
    assert ran.count("broken") <= 1
    assert_healthy_ones_ran(ran, 100)


async def test_a_trigger_that_raises_for_a_run_beside_others_quarantines_its_job_alone(
    scheduler: Scheduler, clock: ManualClock, memory: MemoryStore, ran: list[str]
) -> None:
    def with_raising_trigger(record: Record) -> Record:
        definition = decode_definition(record.body)
        broken = replace(definition, trigger=Every(step_us=0, bound=definition.created_at))
        return replace(record, body=encode(broken))

    async with running(scheduler, clock=clock):
        await scheduler.pause()
        await scheduler.add_jobs(healthy())
        await scheduler.add_job("work", every(1000), id="broken", overlap="allow", jitter=1)
        await scheduler.run_job("broken")
        await spoil(memory, scheduler, "broken", with_raising_trigger)
        await scheduler.resume()
        await clock.advance(35)
        assert (await scheduler.get_job("broken")).state == "quarantined"
    assert_healthy_ones_ran(ran, 3)


async def test_a_trigger_that_raises_for_what_a_run_is_to_give_way_to_quarantines_its_job_alone(
    scheduler: Scheduler, clock: ManualClock, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    next_of_every = Every.next

    def bounded(trigger: Every, after: float) -> float | None:
        if trigger.step_us == 17_000_000 and after >= (trigger.bound or 0.0) + 30:
            raise OverflowError("no time")
        return next_of_every(trigger, after)

    async with running(scheduler, clock=clock):
        await scheduler.add_jobs(healthy())
        await scheduler.add_job("work", every(17), id="broken", overlap="cancel_running", jitter=1)
        monkeypatch.setattr(Every, "next", bounded)
        await clock.advance(35)
        assert (await scheduler.get_job("broken")).state == "quarantined"
    assert_healthy_ones_ran(ran, 3)


# -- what cannot be written --------------------------------------------------------------------------------------------------


async def test_the_text_of_an_error_that_has_no_encoding_is_kept_as_far_as_it_can_be(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    """As that of a file name that is not UTF-8."""

    @scheduler.task(name="raises")
    async def raises() -> None:
        raise ValueError("no file \ud800 here")

    @scheduler.task(name="skips")
    async def skips() -> None:
        raise Skip("missing", "no file \ud800 here")

    async with running(scheduler, clock=clock):
        await scheduler.add_jobs(healthy())
        await scheduler.add_job("raises", id="raises")
        await scheduler.add_job("skips", every(10), id="skips")
        await clock.advance(35)
        [run] = await scheduler.history.runs("raises")
        assert (run.outcome, run.error) == ("failed", "ValueError: no file \\ud800 here")
        decisions = await scheduler.history.decisions("skips")
        assert {decision.detail for decision in decisions} == {"no file \\ud800 here"}
    assert_healthy_ones_ran(ran, 3)


async def test_a_run_whose_end_cannot_be_put_in_writing_quarantines_its_job_alone(
    scheduler: Scheduler, clock: ManualClock, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_entry(ledger: Ledger, execution: Execution, end: Ended) -> Entry:
        if execution.record.id == "odd":
            raise OverflowError("\ud800")
        return written(ledger, execution, end)

    written = Ledger._run_entry
    monkeypatch.setattr(Ledger, "_run_entry", run_entry)
    async with running(scheduler, clock=clock):
        await scheduler.add_jobs(healthy())
        await scheduler.add_job("work", every(10), id="odd")
        await clock.advance(35)
        assert (await scheduler.get_job("odd")).state == "quarantined"
    assert_healthy_ones_ran(ran, 3)


# -- tasks -----------------------------------------------------------------------------------------------------------------


async def test_a_job_of_an_unknown_task_is_handed_back_with_growing_pauses_and_run_by_one_that_knows_it(
    clock: ManualClock,
) -> None:
    store = SharedMemory()
    link = FaultyStore(store)
    heard: list[JobHandedBack] = []
    ran: list[str] = []
    knows, does_not = Scheduler(store, clock=clock, id="knows"), Scheduler(link, clock=clock, id="does not")
    does_not.on(JobHandedBack, heard.append)

    @knows.task(name="special")
    async def special() -> None:
        ran.append(current_run().instance)

    async with running(knows, does_not, clock=clock):
        await knows.pause()
        await knows.add_job("special", id="job")
        link.faults.calls.clear()
        await clock.advance(600)
        pauses = [(after.at - before.at).total_seconds() for before, after in pairwise(heard)]
        assert (await knows.get_job("job")).state == "scheduled"
        await knows.resume()
        await clock.advance(600)
    assert ran == ["knows"]
    assert 0.5 <= pauses[0] <= 2.5
    assert pauses[1] < pauses[3] < pauses[5]
    assert max(pauses) <= 31
    assert 10 <= len(pauses) <= 40
    assert link.faults.calls["claim"] <= 700


async def test_a_job_of_an_unknown_task_runs_once_the_task_is_registered(
    scheduler: Scheduler, clock: ManualClock, memory: MemoryStore, ran: list[str]
) -> None:
    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", id="job", paused=True)
        task = scheduler.tasks["work"]
        scheduler.unregister("work")
        await scheduler.resume_job("job")
        await clock.advance(60)
        assert ran == []
        scheduler.register(task.function, "work")
        await clock.advance(40)
    assert ran == ["job"]


async def test_a_job_whose_claims_are_lost_is_quarantined_after_so_many(
    clock: ManualClock,
) -> None:
    """Each claim counts as an attempt at the moment it is made, so a job that kills whoever runs it is stopped."""
    store = SharedMemory()
    scheduler = Scheduler(store, clock=clock, lease=30)
    ran: list[str] = []
    heard: list[JobQuarantined] = []
    scheduler.on(JobQuarantined, heard.append)

    @scheduler.task(name="work")
    async def work() -> None:
        ran.append(current_run().job_id)

    async with running(scheduler, clock=clock):
        await scheduler.pause()
        await scheduler.add_job("work", id="kills", max_crashes=4)
        await scheduler.add_job("work", id="survives", max_crashes=5)
        for n in range(4):
            await store.claim(["default"], f"dead-{n}", 10, 30)
            await clock.advance(31)
        await scheduler.resume()
        await clock.advance(1)
        job = await scheduler.get_job("kills")
        [run] = [run for run in await scheduler.history.runs("kills") if run.outcome == "lost"]
    assert ran == ["survives"]
    assert job.state == "quarantined"
    assert [event.job_id for event in heard] == ["kills"]
    assert run.attempt == 4


# -- what else may fail ----------------------------------------------------------------------------------------------------


@dataclass
class Point:
    x: int


class Odd(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


async def half_made() -> Point:
    return object.__new__(Point)


async def contains_itself() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


async def no_data() -> object:
    return object()


async def odd() -> None:
    raise Odd


async def leaves() -> None:
    raise SystemExit(3)


async def huge() -> str:
    return "x" * (4 << 20)


@pytest.mark.parametrize(
    "task", [half_made, contains_itself, no_data, odd, leaves, huge], ids=lambda t: t.__name__
)
async def test_whatever_a_run_returns_or_raises_the_others_go_on(
    scheduler: Scheduler, clock: ManualClock, ran: list[str], task: Callable[[], Awaitable[Any]]
) -> None:
    scheduler.register(task, "odd one")
    async with running(scheduler, clock=clock):
        await scheduler.add_jobs([*healthy(), JobSpec("odd one", every(10), id="odd one")])
        await clock.advance(35)
        runs = await scheduler.history.runs("odd one")
        assert scheduler.running() == []
        assert (await scheduler.get_job("odd one")).state == "scheduled"
    assert len(runs) == 3
    assert_healthy_ones_ran(ran, 3)


async def test_a_serializer_that_fails_in_its_own_way_fails_no_other_job(
    clock: ManualClock, ran: list[str]
) -> None:
    class Failing:
        tag = b"F"

        def dumps(self, value: Any, path: str) -> bytes:
            raise RuntimeError("out of order")

        def loads(self, data: bytes) -> Any:
            raise RuntimeError("out of order")

    scheduler = Scheduler(clock=clock, serializer=Failing())

    @scheduler.task(name="work")
    async def work() -> None:
        ran.append(current_run().job_id)

    @scheduler.task(name="gives")
    async def gives() -> int:
        return 1

    async with running(scheduler, clock=clock):
        await scheduler.add_jobs([*healthy(), JobSpec("gives", every(10), id="gives")])
        with pytest.raises(SerializationError):
            await scheduler.add_job("gives", metadata={"a": 1})
        await clock.advance(35)
        assert len(await scheduler.get_jobs()) == 4
    assert_healthy_ones_ran(ran, 3)


async def test_the_error_of_a_run_is_in_history_with_its_traceback_and_in_the_log(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    @scheduler.task(name="fails")
    async def fails() -> None:
        raise LookupError("no such customer")

    failed: list[RunFailed] = []
    scheduler.on(RunFailed, failed.append)
    async with running(scheduler, clock=clock):
        await scheduler.add_job("fails", id="job")
        await clock.advance(0)
        [run] = await scheduler.history.runs("job")
        job = await scheduler.get_job("job")
    assert (run.outcome, run.error) == ("failed", "LookupError: no such customer")
    assert "in fails" in (run.traceback or "")
    assert (job.state, job.last_error) == ("failed", run.error)
    assert [event.error for event in failed] == [run.error]


async def test_a_failing_listener_harms_nobody_and_is_logged(
    scheduler: Scheduler, clock: ManualClock, ran: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def fails(event: object) -> None:
        raise ValueError("listener out of order")

    heard: list[RunSucceeded] = []
    scheduler.on(RunSucceeded, fails)
    scheduler.on(RunSucceeded, heard.append)
    async with running(scheduler, clock=clock):
        await scheduler.add_jobs(healthy())
        await clock.advance(35)
    assert len(heard) == 9
    assert_healthy_ones_ran(ran, 3)
    assert "listener out of order" in caplog.text


async def test_a_listener_that_never_returns_harms_nobody(
    scheduler: Scheduler, clock: ManualClock, ran: list[str]
) -> None:
    async def hangs(event: object) -> None:
        await clock.sleep(1e9)

    heard: list[JobAdded] = []
    subscription = scheduler.on(JobAdded, hangs)
    scheduler.on(JobAdded, heard.append)
    async with running(scheduler, clock=clock):
        for batch in range(4):
            await scheduler.add_jobs([JobSpec("work", once(delay=10), id=f"{batch}-{n}") for n in range(500)])
        await clock.advance(20)
    assert len(ran) == 2000
    assert subscription.dropped >= 900


async def test_pruning_goes_on_after_the_store_refused_it_once(clock: ManualClock) -> None:
    store = FaultyStore(MemoryStore())
    scheduler = Scheduler(store, clock=clock, retention=Retention(per_job=2, every=60))

    @scheduler.task(name="work")
    async def work() -> None: ...

    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", every(10), id="job")
        store.faults.refused["prune"] = 1
        await clock.advance(100)
        assert store.faults.refused["prune"] == 0
        await clock.advance(600)
        await scheduler.pause_job("job")
        await clock.advance(100)
        assert len(await scheduler.history.runs("job")) == 2


async def test_a_refused_claim_does_not_end_the_claiming(clock: ManualClock, ran: list[str]) -> None:
    store = FaultyStore(MemoryStore())
    scheduler = Scheduler(store, clock=clock, poll_interval=10)

    @scheduler.task(name="work")
    async def work() -> None:
        ran.append(current_run().job_id)

    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", once(delay=5), id="job")
        await clock.advance(1)
        store.faults.refused["claim"] = 3
        await clock.advance(60)
        jobs: list[Job] = await scheduler.get_jobs()
    assert store.faults.refused["claim"] == 0
    assert ran == ["job"]
    assert jobs == []


@pytest.mark.parametrize("method", ["claim", "settle", "renew", "get"])
async def test_an_error_that_no_store_may_raise_is_told_and_ends_nothing(
    method: str, clock: ManualClock, ran: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    store = FaultyStore(SharedMemory())
    scheduler = Scheduler(store, clock=clock, poll_interval=2, lease=6, heartbeat=None)

    @scheduler.task(name="work")
    async def work(seconds: float) -> None:
        ran.append(current_run().job_id)
        await clock.sleep(seconds)

    async with running(scheduler, clock=clock):
        await scheduler.add_job("work", once(delay=5), args=[10.0], id="long")
        await scheduler.add_job("work", every(5), args=[0.0], id="recurring")
        await clock.advance(1)
        store.faults.broken[method] = 2
        await clock.advance(30)
        assert store.faults.broken[method] == 0
        outcomes = [run.outcome for run in await scheduler.history.runs("long")]
        recurring = len(await scheduler.history.runs("recurring"))
    assert outcomes == ["succeeded"]
    assert ran.count("long") == 1
    assert recurring >= 4
    assert f"{method}() forgot something" in caplog.text
    assert "an error that no store may raise" in caplog.text
