"""Start, stop, drain and restart; what frameworks call; and what is left behind: nothing."""

import asyncio
import contextlib
import gc
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncsched import (
    Event,
    MemoryStore,
    NotRunning,
    Retry,
    Scheduler,
    SchedulerStarted,
    SchedulerStopped,
    current_run,
    every,
    once,
    outlast,
)
from asyncsched.testing import ManualClock
from tests.support.running import running
from tests.support.stores import SharedMemory

pytestmark = pytest.mark.anyio

MakeScheduler = Callable[..., Scheduler]


async def until(condition: Callable[[], object], timeout: float = 60.0) -> None:
    """Wait for what happens in real time."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 - it waits for what has no event
            await asyncio.sleep(0.005)


async def nothing() -> None:
    """Do nothing."""


# -- restarts ----------------------------------------------------------------------------------------------------------


def test_a_stopped_scheduler_starts_again_in_another_event_loop(make_scheduler: MakeScheduler) -> None:
    scheduler = make_scheduler()
    ran: list[str] = []

    @scheduler.task(name="note")
    async def note(word: str) -> None:
        ran.append(word)

    @scheduler.on(SchedulerStarted)
    def hear(event: SchedulerStarted) -> None:
        ran.append("started")

    async def life(word: str) -> None:
        async with scheduler:
            await scheduler.enqueue(note, word)
            await until(lambda: word in ran)

    for word in ("a", "b", "c"):
        asyncio.run(life(word))
    assert sorted(ran) == ["a", "b", "c", "started", "started", "started"]


async def test_jobs_stay_in_the_store_over_a_restart(make_scheduler: MakeScheduler) -> None:
    first = make_scheduler(queues=())
    async with first:
        first.register(nothing, "nothing")
        await first.add_job("nothing", every(60), id="x", tags=["kept"])
        before = await first.get_job("x")
    second = make_scheduler(queues=())
    async with second:
        assert await second.get_job("x") == before


async def test_a_successor_of_the_same_id_leaves_alone_what_its_predecessor_holds(clock: ManualClock) -> None:
    """A process that has died holds its jobs until their leases end, also if the next one goes by its name at once."""
    store, fences = SharedMemory(), []

    async def begin() -> None:
        fences.append(current_run().fence)
        await asyncio.Event().wait()

    client = Scheduler(store, queues=(), clock=clock)
    first, second = (Scheduler(store, id="web-1", heartbeat=None, clock=clock) for _ in range(2))
    for scheduler in (client, first, second):
        scheduler.register(begin, "begin")
    async with running(client, clock=clock):
        await client.add_job("begin")
    async with running(first, clock=clock):
        await clock.advance(1)
        async with running(second, clock=clock):
            await clock.advance(1)
            assert len(fences) == 1


async def test_what_came_due_while_nobody_ran_runs_at_the_next_start(make_scheduler: MakeScheduler) -> None:
    first, ran = make_scheduler(queues=()), asyncio.Event()
    first.register(nothing, "ring")
    async with first:
        await first.add_job("ring", once(delay=0.01))
    await asyncio.sleep(0.02)
    second = make_scheduler()

    @second.task(name="ring")
    async def ring() -> None:
        ran.set()

    async with second:
        await asyncio.wait_for(ran.wait(), 10)


async def test_start_and_stop_are_told_as_events(clock: ManualClock) -> None:
    scheduler, heard = Scheduler(clock=clock, id="me"), list[Event]()
    scheduler.on(Event, heard.append)
    await scheduler.start()
    await scheduler.stop()
    assert [type(event) for event in heard] == [SchedulerStarted, SchedulerStopped]
    assert {event.instance for event in heard if isinstance(event, SchedulerStarted)} == {"me"}


# -- stop --------------------------------------------------------------------------------------------------------------


async def test_stop_lets_runs_end(clock: ManualClock) -> None:
    scheduler, ended = Scheduler(clock=clock), list[int]()

    @scheduler.task(name="long")
    async def long() -> None:
        await clock.sleep(10)
        ended.append(1)

    await scheduler.start()
    await scheduler.add_job(long)
    await clock.advance(1)
    stopping = asyncio.get_running_loop().create_task(scheduler.stop(drain=30))
    await clock.advance(1)
    assert scheduler.state == "stopping"
    await clock.advance(9)
    await stopping
    assert ended == [1]
    assert scheduler.state == "stopped"


async def test_a_draining_scheduler_claims_nothing_more(clock: ManualClock) -> None:
    scheduler, ran = Scheduler(clock=clock), list[str]()

    @scheduler.task(name="long")
    async def long() -> None:
        await clock.sleep(10)

    @scheduler.task(name="note")
    async def note() -> None:
        ran.append("x")

    await scheduler.start()
    await scheduler.add_job(long)
    await scheduler.add_job(note, once(delay=5))
    await clock.advance(1)
    stopping = asyncio.get_running_loop().create_task(scheduler.stop(drain=30))
    await clock.advance(20)
    await stopping
    assert ran == []


async def test_a_run_that_outlives_the_drain_is_cancelled_and_made_again_without_spending_an_attempt(
    make_scheduler: MakeScheduler,
) -> None:
    seen: list[tuple[int, str]] = []
    first = make_scheduler()

    @first.task(name="work")
    async def stuck() -> None:
        seen.append((current_run().attempt, current_run().idempotency_key))
        await asyncio.sleep(600)

    await first.start()
    await first.add_job(stuck, id="x", retry=Retry(max_attempts=1))
    await until(lambda: seen)
    began = time.monotonic()
    await first.stop(drain=0.05)
    assert time.monotonic() - began < 15

    second = make_scheduler()

    @second.task(name="work")
    async def quick() -> None:
        seen.append((current_run().attempt, current_run().idempotency_key))

    async with second:
        await until(lambda: len(seen) == 2)
        assert await second.wait_job("x", timeout=10) is None
        outcomes = [run.outcome for run in await second.history.runs("x")]
    assert seen[0] == seen[1]
    assert seen[0][0] == 1
    assert outcomes == ["succeeded", "cancelled"]


async def test_stop_without_a_drain_cancels_at_once(clock: ManualClock) -> None:
    scheduler, cancelled = Scheduler(clock=clock), list[int]()

    @scheduler.task(name="long")
    async def long() -> None:
        try:
            await clock.sleep(1000)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    await scheduler.start()
    await scheduler.add_job(long)
    await clock.advance(1)
    await scheduler.stop(drain=0)
    assert cancelled == [1]


async def test_a_run_that_ignores_its_cancellation_is_abandoned_after_its_grace(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler, free = Scheduler(clock=clock), asyncio.Event()

    @scheduler.task(name="stubborn")
    async def stubborn() -> None:
        while not free.is_set():
            try:
                await free.wait()
            except asyncio.CancelledError:
                continue

    await scheduler.start()
    await scheduler.add_job(stubborn, id="x", cancel_grace=3)
    await clock.advance(1)
    stopping = asyncio.get_running_loop().create_task(scheduler.stop(drain=0))
    await clock.advance(2)
    assert not stopping.done()
    await clock.advance(1)
    await asyncio.wait_for(stopping, 5)
    free.set()
    assert "x@1" in caplog.text
    assert "abandoned" in caplog.text


async def test_stop_from_inside_a_run_returns_at_once_and_lets_the_run_end() -> None:
    scheduler, steps = Scheduler(), list[str]()

    @scheduler.task(name="last")
    async def last() -> None:
        await scheduler.stop()
        steps.append("returned")
        await asyncio.sleep(0.01)
        steps.append("ended")

    await scheduler.start()
    await scheduler.add_job(last, id="x")
    await until(lambda: scheduler.state == "stopped")
    assert steps == ["returned", "ended"]
    async with scheduler:
        assert [run.outcome for run in await scheduler.history.runs("x")] == ["succeeded"]


async def test_a_run_may_still_use_the_scheduler_while_it_drains(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock)

    @scheduler.task(name="long")
    async def long() -> None:
        await clock.sleep(5)
        await scheduler.add_job(long, once(delay=60), id="next")

    await scheduler.start()
    await scheduler.add_job(long)
    await clock.advance(1)
    stopping = asyncio.get_running_loop().create_task(scheduler.stop())
    await clock.advance(5)
    await stopping
    async with scheduler:
        assert [job.id for job in await scheduler.get_jobs()] == ["next"]


class OpenedLater(SharedMemory):
    """Opened when it is told to be."""

    def __init__(self) -> None:
        super().__init__()
        self.opening, self.go = asyncio.Event(), asyncio.Event()

    async def open(self, now: Callable[[], float] | None = None) -> None:
        self.opening.set()
        await self.go.wait()
        await super().open(now)


async def test_stop_while_it_starts_calls_the_start_off(clock: ManualClock) -> None:
    slow, ran = OpenedLater(), []
    scheduler = Scheduler({"default": SharedMemory(), "slow": slow}, clock=clock)

    @scheduler.job(every(60), id="x")
    async def note() -> None:
        ran.append(1)

    starting = asyncio.get_running_loop().create_task(scheduler.start())
    await slow.opening.wait()
    await asyncio.gather(scheduler.stop(), scheduler.stop())
    assert scheduler.state == "stopped"
    with pytest.raises(NotRunning, match="stopped while it started"):
        await starting
    slow.go.set()
    await clock.advance(600)
    assert (scheduler.state, ran) == ("stopped", [])
    async with scheduler:
        await clock.advance(60)
    assert ran == [1]


async def test_a_start_whose_store_keeps_the_cancellation_to_itself_is_called_off() -> None:
    class DeafStore(OpenedLater):
        async def open(self, now: Callable[[], float] | None = None) -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await super().open(now)
            await SharedMemory.open(self, now)

    async def fails() -> None:
        raise ValueError

    async def start() -> None:
        # This leaves its task counted as cancelled, before Python 3.13.
        with contextlib.suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(fails())
        await scheduler.start()

    store = DeafStore()
    scheduler = Scheduler(store)
    starting = asyncio.get_running_loop().create_task(start())
    async with asyncio.timeout(60):
        await store.opening.wait()
        await scheduler.stop()
    assert scheduler.state == "stopped"
    with pytest.raises(NotRunning, match="stopped while it started"):
        await starting


async def test_a_start_that_is_cancelled_leaves_it_stopped_and_is_cancelled(clock: ManualClock) -> None:
    slow = OpenedLater()
    scheduler = Scheduler(slow, clock=clock)
    starting = asyncio.get_running_loop().create_task(scheduler.start())
    await slow.opening.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert scheduler.state == "stopped"


async def test_a_store_that_cannot_be_closed_does_not_keep_the_others_from_it(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    closed = []

    class Refusing(MemoryStore):
        async def close(self) -> None:
            raise RuntimeError("out of order")

    class Closing(MemoryStore):
        async def close(self) -> None:
            closed.append(1)

    scheduler = Scheduler({"default": Refusing(), "other": Closing()}, clock=clock)
    for _ in range(2):
        await scheduler.start()
        await scheduler.stop()
        assert scheduler.state == "stopped"
    assert closed == [1, 1]
    assert "out of order" in caplog.text


async def test_a_memory_store_goes_on_for_another_scheduler_when_one_stops(clock: ManualClock) -> None:
    store, ran = MemoryStore(), []
    scheduler, other = Scheduler(store, clock=clock), Scheduler(store, queues=(), clock=clock)

    @scheduler.task(name="note")
    async def note() -> None:
        ran.append(1)

    async with scheduler:
        async with other:
            await clock.advance(1)
        await scheduler.add_job(note)
        await clock.advance(0)
        assert ran == [1]


async def test_two_stops_at_once_both_wait_for_the_end(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock)
    await scheduler.start()
    await asyncio.gather(scheduler.stop(), scheduler.stop())
    assert scheduler.state == "stopped"
    with pytest.raises(NotRunning):
        await scheduler.stop()


async def test_cancelling_stop_cuts_the_drain_short_but_ends_everything(clock: ManualClock) -> None:
    scheduler, cancelled = Scheduler(clock=clock), list[int]()

    @scheduler.task(name="long")
    async def long() -> None:
        try:
            await clock.sleep(1000)
        finally:
            cancelled.append(1)

    await scheduler.start()
    await scheduler.add_job(long)
    await clock.advance(1)
    stopping = asyncio.get_running_loop().create_task(scheduler.stop(drain=600))
    await clock.advance(1)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert scheduler.state == "stopped"
    assert cancelled == [1]


async def test_a_cancelled_stop_that_takes_too_long_lets_go_of_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outlast, "ENOUGH_S", 0.05)
    scheduler, began, ended = Scheduler(), asyncio.Event(), asyncio.Event()

    @scheduler.task(name="stubborn")
    async def stubborn() -> None:
        if began.is_set():
            ended.set()
            return
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()

    await scheduler.start()
    await scheduler.add_job("stubborn", cancel_grace=600)
    await began.wait()
    async with asyncio.timeout(10):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(scheduler.stop(drain=600), 0.05)
        assert scheduler.state == "stopped"
        async with scheduler:
            await ended.wait()


class Slow(MemoryStore):
    """A memory store whose replies to claims may be held up."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()

    async def claim(self, *args: Any, **options: Any) -> Any:
        claimed = await super().claim(*args, **options)
        await self.gate.wait()
        return claimed


@pytest.mark.parametrize("drain", [0, 5])
async def test_what_a_claim_brings_that_was_on_its_way_when_stop_was_called_is_handed_back(
    clock: ManualClock, drain: float
) -> None:
    store, ran = Slow(), list[int]()
    scheduler = Scheduler(store, clock=clock)

    @scheduler.task(name="note")
    async def note() -> None:
        ran.append(1)

    before = asyncio.all_tasks()
    await scheduler.start()
    await clock.advance(1)
    store.gate.clear()
    await scheduler.add_job(note, id="x")
    await clock.advance(0)
    stopping = asyncio.get_running_loop().create_task(scheduler.stop(drain))
    for _ in range(10):
        await asyncio.sleep(0)
    store.gate.set()
    await asyncio.wait_for(stopping, 10)
    assert ran == []
    assert asyncio.all_tasks() - before == set()
    record = (await store.get(["x"]))["x"]
    assert (record.holder, record.tries) == (None, 0)
    async with scheduler:
        await clock.advance(0)
    assert ran == [1]


# -- the owner of `async with` -----------------------------------------------------------------------------------------


async def test_async_with_starts_and_stops() -> None:
    async with Scheduler() as scheduler:
        assert scheduler.state == "running"
    assert scheduler.state == "stopped"


async def test_async_with_lets_an_error_through_and_stops() -> None:
    scheduler = Scheduler()
    with pytest.raises(KeyError):
        async with scheduler:
            raise KeyError
    assert scheduler.state == "stopped"


async def test_a_scheduler_stopped_inside_its_async_with_is_no_error() -> None:
    async with Scheduler() as scheduler:
        await scheduler.stop()
    assert scheduler.state == "stopped"


async def _owner(scheduler: Scheduler, began: asyncio.Event, ended: list[str]) -> None:
    @scheduler.task(name="long")
    async def long() -> None:
        began.set()
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.05)
            ended.append("cleaned up")

    async with scheduler:
        await scheduler.add_job(long, id="x")
        await asyncio.sleep(600)


async def test_cancelling_the_owner_stops_at_once_and_completely(make_scheduler: MakeScheduler) -> None:
    scheduler, began, ended = make_scheduler(), asyncio.Event(), list[str]()
    owner = asyncio.get_running_loop().create_task(_owner(scheduler, began, ended))
    await began.wait()
    start = time.monotonic()
    owner.cancel()
    with pytest.raises(asyncio.CancelledError):
        await owner
    assert time.monotonic() - start < 15
    assert scheduler.state == "stopped"
    assert ended == ["cleaned up"]
    async with make_scheduler(queues=()) as after:
        assert [run.outcome for run in await after.history.runs("x")] == ["cancelled"]
        assert (await after.get_job("x")).state == "scheduled"


@asynccontextmanager
async def _slow_to_leave(scheduler: Scheduler) -> AsyncIterator[None]:
    yield
    await asyncio.sleep(0.1)


async def test_cancelling_the_owner_again_and_again_does_not_leave_before_the_stop_has_ended() -> None:
    scheduler, began, ended = Scheduler(lifespan=_slow_to_leave), asyncio.Event(), list[str]()
    owner = asyncio.get_running_loop().create_task(_owner(scheduler, began, ended))
    await began.wait()
    while not owner.done():
        owner.cancel()
        await asyncio.sleep(0.001)
    assert owner.cancelled()
    assert scheduler.state == "stopped"


async def test_a_cancel_scope_around_the_owner_does_not_leave_before_the_stop_has_ended() -> None:
    scheduler, began, ended = Scheduler(lifespan=_slow_to_leave), asyncio.Event(), list[str]()
    with anyio.move_on_after(0.2):
        await _owner(scheduler, began, ended)
    assert began.is_set()
    assert scheduler.state == "stopped"


# -- run() -------------------------------------------------------------------------------------------------------------

STAND_ALONE = """
    import asyncio, sys
    from asyncsched import Scheduler

    scheduler = Scheduler()

    @scheduler.task(name="long")
    async def long():
        print("began", flush=True)
        try:
            await asyncio.sleep(float(sys.argv[1]))
        except asyncio.CancelledError:
            print("cancelled", flush=True)
            raise
        print("ended", flush=True)

    @scheduler.job("@every 1h", id="long", run_on_start=True)
    async def declared():
        await long()

    asyncio.run(scheduler.run(drain=float(sys.argv[2])))
    print("left in peace", scheduler.state, flush=True)
"""


def _stand_alone(tmp_path: Path, takes: float, drain: float, signals: list[int]) -> list[str]:
    script = tmp_path / "stand_alone.py"
    script.write_text(textwrap.dedent(STAND_ALONE))
    process = subprocess.Popen(
        [sys.executable, str(script), str(takes), str(drain)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
    )
    with process:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip()]
        for number in signals:
            process.send_signal(number)
            time.sleep(0.2)  # Signals of one kind that come together are one.
        try:
            rest, _ = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0
    return lines + rest.split("\n")[:-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_drains_on_a_signal_and_returns(tmp_path: Path, number: int) -> None:
    assert _stand_alone(tmp_path, 0.6, 30, [number]) == ["began", "ended", "left in peace stopped"]


def test_run_cancels_what_outlives_the_drain(tmp_path: Path) -> None:
    assert _stand_alone(tmp_path, 600, 0.1, [signal.SIGTERM]) == [
        "began",
        "cancelled",
        "left in peace stopped",
    ]


def test_a_second_signal_ends_the_drain(tmp_path: Path) -> None:
    assert _stand_alone(tmp_path, 600, 600, [signal.SIGTERM, signal.SIGTERM]) == [
        "began",
        "cancelled",
        "left in peace stopped",
    ]


async def test_an_embedded_scheduler_installs_no_signal_handlers() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with Scheduler():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# -- what is left ------------------------------------------------------------------------------------------------------


def _threads() -> set[threading.Thread]:
    """All but those of the event loop itself, which looks names up in them, and keeps them."""
    # gRPC's own ends with the last of its objects.
    gc.collect()
    return {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}


def _connections() -> int:
    return sum(isinstance(thing, sqlite3.Connection) and _is_open(thing) for thing in gc.get_objects())


def _is_open(connection: sqlite3.Connection) -> bool:
    try:
        _ = connection.in_transaction
        _ = connection.total_changes
    except sqlite3.ProgrammingError as error:
        return "closed" not in str(error)
    return True


async def _busy_life(scheduler: Scheduler, leave: Callable[[Scheduler], Awaitable[Any]]) -> None:
    """Use whatever starts a task, a thread or a connection."""
    threads_ran, heard = list[int](), list[Event]()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 600)
            yield
            group.cancel_scope.cancel()

    @scheduler.task(name="threaded", lifespan=lifespan)
    def threaded() -> None:
        threads_ran.append(threading.get_ident())

    @scheduler.task(name="long")
    async def long() -> None:
        await asyncio.sleep(600)

    scheduler.on(Event, heard.append)

    @scheduler.on(Event)
    async def slow(event: Event) -> None:
        await asyncio.sleep(0)

    await scheduler.start()
    await scheduler.add_store("other", "memory://")
    for _ in range(5):
        await scheduler.enqueue(threaded)
    await scheduler.add_job(long)
    await scheduler.add_job(threaded, every(60), store="other")
    scheduler.job(every(60), id="declared")(long)
    await until(lambda: len(threads_ran) == 5 and len(scheduler.running()) == 1)
    await leave(scheduler)


@pytest.mark.parametrize("way", ["stop", "cancel"])
async def test_no_task_thread_or_connection_is_left_after_stop(
    make_scheduler: MakeScheduler, way: str
) -> None:
    async def leave(scheduler: Scheduler) -> None:
        if way == "stop":
            await scheduler.stop(drain=0.01)
            return
        stopping = asyncio.get_running_loop().create_task(scheduler.stop(drain=600))
        await asyncio.sleep(0.01)
        stopping.cancel()
        await asyncio.wait([stopping])

    gc.collect()
    tasks, threads, connections = asyncio.all_tasks(), _threads(), _connections()
    scheduler = make_scheduler(retention=None)
    await _busy_life(scheduler, leave)
    assert scheduler.state == "stopped"
    assert asyncio.all_tasks() - tasks == set()
    await until(lambda: not _threads() - threads)
    gc.collect()
    assert _connections() == connections


async def test_a_start_that_fails_leaves_nothing(make_scheduler: MakeScheduler) -> None:
    gc.collect()
    tasks, threads, connections = asyncio.all_tasks(), _threads(), _connections()

    @asynccontextmanager
    async def lifespan(given: Scheduler) -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    with pytest.raises(RuntimeError):
        await make_scheduler(lifespan=lifespan).start()
    assert asyncio.all_tasks() - tasks == set()
    await until(lambda: not _threads() - threads)
    gc.collect()
    assert _connections() == connections


async def test_a_file_can_be_removed_after_stop(sqlite_url: str, tmp_path: Path) -> None:
    async with Scheduler(sqlite_url):
        assert (tmp_path / "jobs.db").exists()
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection, connection:
        connection.execute("BEGIN EXCLUSIVE")
    connection.close()
    assert not (tmp_path / "jobs.db-wal").exists()


async def test_stop_ends_the_run_of_a_job_that_was_removed_and_added_again(clock: ManualClock) -> None:
    scheduler = Scheduler(clock=clock, id="here")
    said: list[str] = []

    @scheduler.task(name="sleep")
    async def sleep() -> None:
        said.append("began")
        try:
            await clock.sleep(1000)
        finally:
            said.append("ended")

    async with scheduler:
        for _ in range(2):
            await scheduler.add_job("sleep", id="x")
            await clock.advance(1)
            await scheduler.remove_job("x")
        assert said == ["began", "began"]
        await scheduler.stop(drain=0)
        assert said == ["began", "began", "ended", "ended"]
