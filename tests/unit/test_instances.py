"""Instances: who is there, who has gone, and what that costs."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

import asyncsched
from asyncsched import DefinitionError, JobLookupError, Retention, Scheduler, once
from asyncsched.contract import Record
from asyncsched.ids import INSTANCES, instance_mark
from asyncsched.testing import ManualClock
from tests.support.faulty import FaultyStore
from tests.support.processes import workers
from tests.support.running import running
from tests.support.stores import SharedMemory
from tests.support.waiting import eventually
from tests.unit.conftest import MakeScheduler

pytestmark = pytest.mark.anyio

HEARTBEAT_S = 30.0
DAY_S = 86_400.0


async def ids(scheduler: Scheduler, *, dead: bool = False) -> list[str]:
    return [instance.id for instance in await scheduler.monitor.instances(dead=dead)]


async def kill(scheduler: Scheduler) -> None:
    """End its tasks without a word to the store."""
    scheduler._engine.presences.clear()
    await scheduler.stop(drain=0)


async def test_an_instance_tells_who_it_is(make_scheduler: MakeScheduler, clock: ManualClock) -> None:
    one = make_scheduler(clock=clock, id="one", queues={"a": None, "b": 3})

    @one.task(name="greet")
    async def greet() -> None: ...

    other = make_scheduler(clock=clock, id="other", queues=())
    async with running(one, other, clock=clock):
        for asked in (one, other):
            found = {instance.id: instance for instance in await asked.monitor.instances()}
            seen = found["one"]
            assert set(found) == {"one", "other"}
            assert (seen.host, seen.pid, seen.version) == (
                socket.gethostname(), os.getpid(), asyncsched.__version__,
            )  # fmt: skip
            assert (seen.started_at, seen.seen_at) == (clock.now(), clock.now())
            assert (seen.tasks, seen.queues, seen.store, seen.running) == (
                ("greet",),
                ("a", "b"),
                "default",
                0,
            )
            assert seen.is_alive
            assert not seen.is_client
            assert abs(seen.skew.offset) <= seen.skew.error + timedelta(seconds=1)
            assert found["other"].is_client


async def test_this_instance_comes_first_and_then_the_others_by_id(
    make_scheduler: MakeScheduler, clock: ManualClock
) -> None:
    schedulers = [make_scheduler(clock=clock, id=id) for id in ("c", "a", "b")]
    async with running(*schedulers, clock=clock):
        assert await ids(schedulers[2]) == ["b", "a", "c"]


async def test_an_instance_that_stops_is_gone_at_once(
    make_scheduler: MakeScheduler, clock: ManualClock
) -> None:
    one, other = make_scheduler(clock=clock, id="one"), make_scheduler(clock=clock, id="other")
    async with running(other, clock=clock):
        async with running(one, clock=clock):
            assert await ids(other) == ["other", "one"]
        assert await ids(other, dead=True) == ["other"]


@pytest.fixture
def shared() -> SharedMemory:
    """A store that outlives its schedulers, whose clock is that of the first of them."""
    return SharedMemory()


async def test_an_instance_stays_alive_by_its_heartbeats(shared: SharedMemory, clock: ManualClock) -> None:
    one, other = (Scheduler(shared, clock=clock, id=id) for id in ("one", "other"))
    async with running(one, other, clock=clock):
        for _ in range(20):
            await clock.advance(HEARTBEAT_S)
            [_, seen] = await other.monitor.instances()
            assert clock.now() - seen.seen_at <= timedelta(seconds=1.1 * HEARTBEAT_S)
        [_, seen] = await other.monitor.instances()
        assert seen.started_at < seen.seen_at


async def test_a_dead_instance_is_gone_after_three_heartbeats_of_its_own(
    shared: SharedMemory, clock: ManualClock
) -> None:
    one = Scheduler(shared, clock=clock, id="one", heartbeat=5)
    other = Scheduler(shared, clock=clock, id="other", heartbeat=600)
    async with running(other, clock=clock):
        await one.start()
        await kill(one)
        await clock.advance(14.9)
        assert await ids(other) == ["other", "one"]
        await clock.advance(0.2)
        assert await ids(other) == ["other"]
        [_, gone] = await other.monitor.instances(dead=True)
        assert (gone.id, gone.is_alive, gone.heartbeat) == ("one", False, 5)


async def test_dead_instances_do_not_pile_up(shared: SharedMemory, clock: ManualClock) -> None:
    watcher = Scheduler(shared, clock=clock, id="watcher", heartbeat=600)
    async with running(watcher, clock=clock):
        for n in range(5):
            dead = Scheduler(shared, clock=clock, id=f"dead-{n}", heartbeat=5)
            await dead.start()
            await kill(dead)
        await clock.advance(DAY_S - 700)
        assert len(await ids(watcher, dead=True)) == 6
        await clock.advance(7200)
        assert await ids(watcher, dead=True) == ["watcher"]


async def test_an_instance_that_was_taken_for_dead_comes_back(
    shared: SharedMemory, clock: ManualClock
) -> None:
    one, other = (Scheduler(shared, clock=clock, id=id) for id in ("one", "other"))
    async with running(one, other, clock=clock):
        await shared.remove([instance_mark("one")])
        assert await ids(other) == ["other"]
        await clock.advance(40)
        assert await ids(other) == ["other", "one"]


async def test_a_new_instance_takes_the_place_of_a_dead_one_of_its_id(
    shared: SharedMemory, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, other = (Scheduler(shared, clock=clock, id=id) for id in ("one", "one", "other"))
    async with running(other, clock=clock):
        await first.start()
        await kill(first)
        await clock.advance(50)
        async with running(second, clock=clock):
            [_, seen] = await other.monitor.instances()
            assert seen.started_at == clock.now()
            await clock.advance(120)
            assert await ids(other) == ["other", "one"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_two_instances_of_one_id_are_told_apart_from_one_and_warned_of_once(
    shared: SharedMemory, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(*(Scheduler(shared, clock=clock, id="same") for _ in range(2)), clock=clock):
        await clock.advance(300)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "another instance has the id of this one, 'same'" in warnings[0]


async def test_a_heartbeat_is_one_write_and_no_read(shared: SharedMemory, clock: ManualClock) -> None:
    store = FaultyStore(shared)
    scheduler = Scheduler(store, clock=clock, queues=(), history=False)
    async with running(scheduler, clock=clock):
        store.faults.calls.clear()
        await clock.advance(10 * HEARTBEAT_S)
        assert 9 <= store.faults.calls.pop("update") <= 11
        assert store.faults.calls["get"] == store.faults.calls["add"] == 0


async def test_a_heartbeat_wakes_nobody(make_scheduler: MakeScheduler) -> None:
    one, other = make_scheduler(id="one", queues=()), make_scheduler(id="other", queues=())
    heard: list[tuple[str, float | None]] = []

    def noting(id: str) -> Callable[[float | None], None]:
        return lambda at: heard.append((id, at))

    @one.task(name="work")
    async def work() -> None: ...

    async with running(one, other):
        for scheduler in (one, other):
            store = scheduler._engine.stores["default"]
            store.on_hint(noting(scheduler.id))
        told = {"one", "other"} if store.capabilities.push_hints else {"one"}

        async def are_listening() -> bool:
            """Whoever has only begun to listen may miss a hint."""
            await one.add_job("work", once(delay=50))
            return {id for id, _ in heard} == told

        async def is_quiet() -> bool:
            """What was written before may be told of late."""
            before = len(heard)
            await asyncio.sleep(1.0)
            return len(heard) == before

        await eventually(are_listening)
        await eventually(is_quiet)
        heard.clear()
        await one._engine.presences["default"]._told(is_first=False)
        assert await is_quiet()
        assert heard == []


async def test_a_store_that_is_away_misses_heartbeats_and_nothing_else(
    shared: SharedMemory, clock: ManualClock
) -> None:
    store = FaultyStore(shared)
    one, other = Scheduler(store, clock=clock, id="one"), Scheduler(shared, clock=clock, id="other")
    async with running(one, other, clock=clock):
        store.faults.go_away({"update", "add", "get"})
        await clock.advance(200)
        assert await ids(other) == ["other"]
        store.faults.come_back()
        await clock.advance(40)
        assert await ids(other) == ["other", "one"]
        assert one.is_running


@pytest.mark.parametrize("method", ["add", "update"])
async def test_a_heartbeat_whose_answer_was_lost_is_followed_by_others(
    shared: SharedMemory, clock: ManualClock, method: str
) -> None:
    store = FaultyStore(shared)
    one, other = Scheduler(store, clock=clock, id="one"), Scheduler(shared, clock=clock, id="other")
    store.faults.lost[method] = 1
    async with running(one, other, clock=clock):
        await clock.advance(120)
        [_, seen] = await other.monitor.instances()
        assert clock.now() - seen.seen_at <= timedelta(seconds=33)
        assert store.faults.lost[method] == 0


async def test_what_is_done_beside_the_runs_goes_on_after_an_error_that_no_store_may_raise(
    shared: SharedMemory, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = FaultyStore(shared)
    retention = Retention(every=600)
    one = Scheduler(store, clock=clock, heartbeat=600, id="one", retention=retention)
    asked = ("update", "prune", "page", "get")
    async with running(one, clock=clock):
        store.faults.broken.update(asked)
        await clock.advance(2 * DAY_S)
        assert {method: store.faults.broken[method] for method in asked} == dict.fromkeys(asked, 0)
        assert await ids(one) == ["one"]
        store.faults.calls.clear()
        await clock.advance(2 * DAY_S)
        assert all(store.faults.calls[method] > 1 for method in asked)
    assert "has failed, and does nothing" not in caplog.text


async def test_a_scheduler_starts_though_its_store_refuses_the_record(
    shared: SharedMemory, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = FaultyStore(shared)
    store.faults.refused["add"] = 3
    async with running(Scheduler(store, clock=clock, id="one"), clock=clock):
        await clock.advance(60)
    assert [r.levelno for r in caplog.records if "shows this instance" in r.getMessage()] == [logging.WARNING]


async def test_a_start_that_is_cancelled_leaves_no_instance_behind(
    shared: SharedMemory, clock: ManualClock
) -> None:
    slow = FaultyStore(SharedMemory())
    slow.faults.delay_s["add"] = 60
    broken = Scheduler({"default": shared, "second": slow}, clock=clock, id="broken")
    other = Scheduler(shared, clock=clock, id="other")
    async with running(other, clock=clock):
        starting = asyncio.create_task(broken.start())
        await eventually(lambda: slow.faults.calls["add"])
        assert await ids(other) == ["other", "broken"]
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert await ids(other, dead=True) == ["other"]


async def test_a_scheduler_without_a_heartbeat_does_not_show_itself(
    make_scheduler: MakeScheduler, clock: ManualClock
) -> None:
    one, other = (
        make_scheduler(clock=clock, id="one", heartbeat=None),
        make_scheduler(clock=clock, id="other"),
    )
    async with running(one, other, clock=clock):
        assert await ids(one, dead=True) == await ids(other, dead=True) == ["other"]


@pytest.mark.parametrize("heartbeat", [0, -1, float("nan")])
def test_a_heartbeat_is_above_zero(heartbeat: float) -> None:
    with pytest.raises(DefinitionError, match="heartbeat must be a finite number of seconds above zero"):
        Scheduler(heartbeat=heartbeat)


async def test_what_a_newer_version_wrote_is_neither_shown_nor_removed(
    shared: SharedMemory, clock: ManualClock
) -> None:
    newer = instance_mark("newer")
    async with running(Scheduler(shared, clock=clock, id="one"), clock=clock):
        body = msgspec.msgpack.encode((99, {"whatever": 1}))
        await shared.add([Record(newer, "b", INSTANCES, 0, INSTANCES, None, None, body, b"")])
        await clock.advance(2 * DAY_S)
        assert newer in await shared.get([newer])


async def test_runs_under_way_are_counted_over_all_instances(make_scheduler: MakeScheduler) -> None:
    scheduler, client = make_scheduler(id="one", heartbeat=0.05), make_scheduler(id="two", queues=())
    gate, begun = asyncio.Event(), 0

    @scheduler.task(name="wait")
    async def wait() -> None:
        nonlocal begun
        begun += 1
        await gate.wait()

    async def counted() -> bool:
        return [await client.monitor.running(), await scheduler.monitor.running()] == [3, 3]

    async with running(scheduler, client):
        for _ in range(3):
            await scheduler.enqueue(wait)
        await eventually(lambda: begun == 3)
        # A memory has no heartbeats: another scheduler of this process knows what there was at the start.
        if scheduler._engine.presences["default"].needs_beats:
            await eventually(counted)
        assert await scheduler.monitor.running() == 3
        gate.set()


async def test_records_of_instances_are_no_jobs(make_scheduler: MakeScheduler, clock: ManualClock) -> None:
    scheduler = make_scheduler(clock=clock, id="one")
    async with running(scheduler, clock=clock):
        assert await scheduler.get_jobs() == []
        assert await scheduler.get_jobs(queue=INSTANCES) == []
        with pytest.raises(JobLookupError):
            await scheduler.get_job(instance_mark("one"))
        assert await scheduler.remove_all_jobs() == 0
        assert (await scheduler.history.stats()).total == 0
        assert await ids(scheduler) == ["one"]


async def test_each_store_knows_the_instances_that_use_it(clock: ManualClock) -> None:
    both, second = SharedMemory(), SharedMemory()
    one = Scheduler({"default": both, "second": second}, clock=clock, id="one")
    other = Scheduler(both, clock=clock, id="other")
    async with running(one, other, clock=clock):
        found = await one.monitor.instances()
        assert [(i.id, i.store) for i in found] == [
            ("one", "default"),
            ("one", "second"),
            ("other", "default"),
        ]
        assert [i.id for i in await one.monitor.instances(store="second")] == ["one"]
        await one.add_store("third", third := SharedMemory())
        assert len(await one.monitor.instances()) == 4
        await one.remove_store("third", drain=0)
        assert len(await one.monitor.instances()) == 3
        assert await third.get([instance_mark("one")]) == {}


async def test_a_process_that_is_killed_is_gone_after_three_heartbeats(
    sqlite_url: str, tmp_path: Path
) -> None:
    with workers(tmp_path, sqlite_url) as cluster:
        async with Scheduler(sqlite_url, queues=(), id="watcher") as watcher:
            first, second = [await cluster.start_ready("--heartbeat", "0.5") for _ in range(2)]
            assert await ids(watcher) == ["watcher", first.name, second.name]
            first.kill()
            assert first.name in await ids(watcher), "nobody can know yet"
            await eventually(lambda: _is_gone(watcher, first.name), timeout=10)
            assert await ids(watcher) == ["watcher", second.name]
            [gone] = [i for i in await watcher.monitor.instances(dead=True) if not i.is_alive]
            assert (gone.id, gone.pid) == (first.name, first.process.pid)
            await second.stop()
            assert await ids(watcher) == ["watcher"]


async def _is_gone(watcher: Scheduler, id: str) -> bool:
    return id not in await ids(watcher)
