"""migrate: the jobs of one store, copied into another."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from asyncsched import (
    ConflictError,
    JobStore,
    MemoryStore,
    Scheduler,
    StoreError,
    StoreUnavailable,
    every,
    once,
)
from asyncsched.contract import Entry, Filter, Lease, Record, Settlement, Update
from asyncsched.moving import Found, migrate, survey
from asyncsched.stores.sqlite import SQLiteStore
from asyncsched.testing import ManualClock
from tests.conftest import chosen_stores
from tests.servers.running import Servers
from tests.support.faulty import FaultyStore
from tests.support.running import running
from tests.support.stores import SharedMemory, make_store
from tests.support.waiting import eventually
from tests.unit.conftest import stop_at_once

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``neighbours``: each chosen kind of store and the next one, the last and the first too."""
    if "neighbours" in metafunc.fixturenames:
        kinds = chosen_stores(metafunc.config)
        ring = list(zip(kinds, [*kinds[1:], kinds[0]], strict=True))
        metafunc.parametrize("neighbours", ring, ids=["-".join(pair) for pair in ring], scope="session")


class Hands:
    """The clock of every store of a test, and what a scheduler would do there."""

    def __init__(self) -> None:
        self.now = NOW

    def time(self) -> float:
        return self.now

    async def claim(
        self, store: JobStore, queue: str, lease_s: float = 30.0, limit: int = 100
    ) -> list[Record]:
        return (await store.claim([queue], f"token {queue} {self.now}", limit, lease_s)).records

    async def fill(self, store: JobStore) -> None:
        """A store that has been at work: with jobs in every state, and a history."""
        await store.add(
            [
                record("later", wake_at=NOW + 3_600.123456),
                record("paused", wake_at=None, hold="paused"),
                record("failed", wake_at=NOW + 86_400, hold="failed", priority=9),
                record("waits for a limit", wake_at=NOW + 500, hold="limit/mail", queue="mail"),
                record("newer", wake_at=NOW + 5, body=b"\xff\x00 of a version to come", cursor=b"\xfe\x01"),
                record("été/日本 '%\U0001f680", wake_at=NOW + 5),
                record("#queue/mail", wake_at=None, queue="#marks"),
                record("parent#0", wake_at=NOW + 9),
            ]
        )
        await store.add([record(id, queue=id) for id in ("ran", "lost", "handed back")])
        for _ in range(3):
            [held] = await self.claim(store, "ran")
            entries = [
                entry("ran", held.fence, at=self.now),
                entry("ran", held.fence, "misfire", at=self.now),
            ]
            assert await store.settle([ending(held, entries=entries, wake_at=self.now + 1)]) == ["done"]
            self.now += 1
        await self.update(store, "ran")
        [held] = await self.claim(store, "handed back")
        await store.settle([replace(ending(held, wake_at=NOW + 70), hand_back=True)])
        await self.claim(store, "lost", lease_s=2.0)
        self.now += 3
        await self.claim(store, "lost", lease_s=2.0)
        self.now += 5

    async def update(self, store: JobStore, id: str) -> None:
        there = (await store.get([id]))[id]
        update = Update(
            id=id, version=there.version, body=b"new body", queue=there.queue, priority=3, wake_at=there.wake_at, hold=there.hold
        )  # fmt: skip
        assert await store.update(update) is not None


def record(id: str, **given: Any) -> Record:
    fields = {
        "birth": f"birth of {id}", "queue": "default", "priority": 5, "task": "app:work", "wake_at": NOW, "hold": None,
        "body": b"body", "cursor": b"cursor",
    }  # fmt: skip
    return Record(id=id, **(fields | given))


def entry(job_id: str, fence: int, kind: str = "run", at: float = NOW) -> Entry:
    return Entry(job_id, fence, kind, at - 0.25, at, b"entry")


def ending(held: Record, **given: Any) -> Settlement:
    assert held.holder is not None
    fields: dict[str, Any] = {"cursor": b"next"} | given
    fields["entries"] = tuple(fields.get("entries", ()))
    return Settlement(id=held.id, fence=held.fence, holder=held.holder, version=held.version, **fields)


async def everything(store: JobStore) -> dict[str, Record]:
    return {r.id: r for r in await store.page(Filter(), 100_000)}


def as_copied(r: Record) -> Record:
    return r if r.holder is None else replace(r, holder=None, prior=r.fence)


def first_difference(found: dict[str, Record], expected: dict[str, Record]) -> object:
    assert found.keys() == expected.keys()
    return next(((r, expected[id]) for id, r in found.items() if r != expected[id]), None)


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
async def opened(hands: Hands) -> AsyncIterator[Callable[[JobStore], Any]]:
    """Opens stores on the one clock, and closes them in the end."""
    stores: list[JobStore] = []

    async def open(store: JobStore) -> JobStore:
        stores.append(store)
        await store.open(now=hands.time)
        return store

    yield open
    for store in stores:
        await store.close()


@pytest.fixture
async def source(opened: Any) -> MemoryStore:
    return await opened(SharedMemory())


@pytest.fixture
async def target(opened: Any) -> MemoryStore:
    return await opened(SharedMemory())


# -- between any two stores ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def pair(
    neighbours: tuple[str, str], opened: Any, tmp_path: Path, servers: Servers
) -> tuple[JobStore, JobStore]:
    made = []
    for side, kind in zip(("source", "target"), neighbours, strict=True):
        (tmp_path / side).mkdir()
        made.append(await opened(make_store(kind, tmp_path / side, servers)))
    return made[0], made[1]


async def test_all_that_one_store_has_is_copied_into_the_next(
    pair: tuple[JobStore, JobStore], hands: Hands
) -> None:
    source, target = pair
    await hands.fill(source)
    before, log = await everything(source), await source.runs()
    done = await migrate(source, target, history=True)
    assert done.is_whole
    assert (done.jobs, done.added, done.same) == (len(before), len(before), len(before))
    after = await everything(target)
    assert first_difference(after, {id: as_copied(r) for id, r in before.items()}) is None
    assert await target.runs() == log
    assert done.history is not None
    assert (done.history.entries, done.history.same) == (6, 6)
    assert first_difference(await everything(source), before) is None


async def test_a_copy_that_is_repeated_changes_nothing(pair: tuple[JobStore, JobStore], hands: Hands) -> None:
    source, target = pair
    await hands.fill(source)
    first = await migrate(source, target, history=True)
    copied, log = await everything(target), await target.runs()
    second = await migrate(source, target, history=True)
    assert (second.is_whole, second.added, second.same) == (True, 0, first.same)
    assert second.digest == first.digest == second.target_digest
    assert first_difference(await everything(target), copied) is None
    assert await target.runs() == log


async def test_what_was_copied_goes_on_where_it_stood(pair: tuple[JobStore, JobStore], hands: Hands) -> None:
    """Claimed with a higher fence than any before, its lost claim told, its progress kept."""
    source, target = pair
    await hands.fill(source)
    newest = max(r.fence for r in (await everything(source)).values())
    await migrate(source, target)
    [lost] = await hands.claim(target, "lost")
    [ran] = await hands.claim(target, "ran")
    assert lost.fence > newest
    assert (lost.tries, lost.prior, lost.settled) == (3, newest, 0)
    assert ran.fence > newest
    assert (ran.version, ran.body, ran.cursor, ran.tries) == (2, b"new body", b"next", 1)
    assert await target.settle([ending(ran, wake_at=None), ending(lost, delete=True)]) == ["done", "done"]
    lease = await target.acquire(["lock"], "me", 5.0)
    assert lease["lock"].fence > newest


async def test_jobs_that_go_through_all_stores_come_home_unchanged(
    stores: Sequence[str], opened: Any, hands: Hands, tmp_path: Path, servers: Servers
) -> None:
    digests = []
    here = first = await opened(SharedMemory())
    await hands.fill(first)
    for number, kind in enumerate([*stores, "memory"]):
        (tmp_path / f"{number}").mkdir()
        there = await opened(make_store(kind, tmp_path / f"{number}", servers))
        done = await migrate(here, there, history=True)
        assert done.is_whole, kind
        digests.append((done.digest, done.target_digest))
        here = there
    assert len(set(digests)) == 1
    copied = {id: as_copied(r) for id, r in (await everything(first)).items()}
    assert first_difference(await everything(here), copied) is None
    assert await here.runs() == await first.runs()


# -- what a scheduler finds ----------------------------------------------------------------------------------------------------


async def test_no_job_is_lost_run_twice_or_forgets_its_pause_by_being_moved(
    stores: Sequence[str], tmp_path: Path
) -> None:
    if "sqlite" not in stores:
        pytest.skip("sqlite was left out by --stores")
    clock = ManualClock()
    ran: list[str] = []

    def scheduler(store: JobStore) -> Scheduler:
        made = Scheduler(store, clock=clock, queues=["default", "slow"])

        @made.task(name="note")
        async def note(word: str) -> None:
            ran.append(word)

        return made

    source, target = SharedMemory(), SQLiteStore(f"{tmp_path}/jobs.db")
    old = scheduler(source)
    await old.start()
    await old.pause(queue="slow", everywhere=True)
    await old.add_job("note", every(60), id="in a paused queue", args=["in a paused queue"], queue="slow")
    await old.add_job("note", once(delay=5), id="soon", args=["soon"])
    await old.add_job("note", once(delay=150), id="later", args=["later"])
    await old.add_job("note", every(60), id="minutely", args=["minutely"])
    await old.add_job("note", every(60), id="paused", args=["paused"])
    await old.pause_job("paused")
    await clock.advance(61)
    await eventually(lambda: sorted(ran) == ["minutely", "soon"])
    shown = await old.get_jobs()
    await stop_at_once(old, clock)

    await source.open()
    await target.open(now=clock.time)
    assert (await migrate(source, target, history=True)).is_whole
    await target.close()

    new = scheduler(target)
    await new.start()
    moved = await new.get_jobs()
    assert [(j.id, j.state, j.next_fire_time, j.last_run) for j in moved] == [
        (j.id, j.state, j.next_fire_time, j.last_run) for j in shown
    ]
    for minutes in (2, 3, 4):
        await clock.advance(60)
        await eventually(lambda minutes=minutes: ran.count("minutely") == minutes)
    await eventually(lambda: "later" in ran)
    assert sorted(ran) == ["later", *["minutely"] * 4, "soon"]
    runs = await target.runs()
    assert sorted(e.job_id for e in runs if e.kind == "run") == sorted(ran)
    await stop_at_once(new, clock)


# -- what is not as it should be -----------------------------------------------------------------------------------------------


async def test_instances_that_hold_jobs_keep_a_migration_from_beginning(
    source: MemoryStore, target: MemoryStore, hands: Hands
) -> None:
    await source.add([record("a"), record("b", queue="q")])
    await hands.claim(source, "default", lease_s=30.0)
    with pytest.raises(ConflictError, match=r"instances are alive.*hold 1 of its jobs.*'a'"):
        await migrate(source, target)
    assert await everything(target) == {}
    assert (await survey(source, target)).live == Found(1, ("a",))


async def test_held_jobs_are_copied_as_due_at_the_end_of_their_lease_when_that_is_wanted(
    source: MemoryStore, target: MemoryStore, hands: Hands
) -> None:
    await source.add([record("a"), record("b", queue="q")])
    [a] = await hands.claim(source, "default", lease_s=30.0)
    await hands.claim(source, "q", lease_s=float("inf"))
    assert (await migrate(source, target, while_running=True)).is_whole
    copied = await everything(target)
    assert copied["a"] == replace(a, holder=None, prior=a.fence)
    assert (copied["a"].wake_at, copied["b"].wake_at) == (NOW + 30.0, NOW)


async def test_an_idle_instance_keeps_a_migration_from_beginning(
    source: SharedMemory, target: MemoryStore
) -> None:
    await source.add([record("a")])
    clock = ManualClock(datetime.fromtimestamp(NOW, UTC))
    async with running(Scheduler(source, clock=clock, id="idle", queues=()), clock=clock):
        with pytest.raises(ConflictError, match=r"instances are alive.*1 were seen.*'idle'"):
            await migrate(source, target)
        assert await everything(target) == {}
        seen = await survey(source, target)
        assert (seen.instances, seen.is_clear, seen.jobs) == (Found(1, ("idle",)), False, 1)
        done = await migrate(source, target, while_running=True)
        assert (done.is_whole, set(await everything(target))) == (True, {"a"}), "what it says of itself stays"
    assert (await survey(source, target)).instances == Found()


async def test_an_instance_that_was_missed_is_in_nobody_s_way(
    source: SharedMemory, target: MemoryStore, hands: Hands
) -> None:
    await source.add([record("a")])
    clock = ManualClock(datetime.fromtimestamp(NOW, UTC))
    async with running(Scheduler(source, clock=clock, id="idle", queues=()), clock=clock):
        hands.now += 91
        assert (await migrate(source, target)).is_whole


async def test_a_target_that_only_instances_use_is_empty(source: MemoryStore, target: SharedMemory) -> None:
    await source.add([record("a")])
    clock = ManualClock(datetime.fromtimestamp(NOW, UTC))
    async with running(Scheduler(target, clock=clock, queues=()), clock=clock):
        assert (await survey(source, target)).target_is_empty
        assert (await migrate(source, target)).is_whole


async def test_a_lease_that_has_ended_is_no_instance_that_is_alive(
    source: MemoryStore, target: MemoryStore, hands: Hands
) -> None:
    await source.add([record("a")])
    await hands.claim(source, "default", lease_s=30.0)
    hands.now += 30.0
    assert (await migrate(source, target)).is_whole


async def test_another_job_under_the_same_id_is_left_alone_and_named(
    source: MemoryStore, target: MemoryStore
) -> None:
    await source.add([record("a"), record("b")])
    await target.add([record("a", birth="another")])
    done = await migrate(source, target)
    assert (done.is_whole, done.taken, done.added) == (False, Found(1, ("a",)), 1)
    assert (await everything(target))["a"] == record("a", birth="another")


@pytest.mark.parametrize(
    "change",
    [
        {"queue": "q"}, {"priority": 4}, {"task": "app:other"}, {"wake_at": NOW + 0.000001}, {"wake_at": None}, {"hold": "why"},
        {"body": b"other"}, {"cursor": b"other"}, {"version": 2}, {"fence": 8}, {"settled": 7}, {"tries": 1}, {"prior": 6},
    ],
    ids=str,
)  # fmt: skip
async def test_a_difference_in_anything_that_is_stored_is_found(
    source: MemoryStore, target: MemoryStore, change: dict[str, Any]
) -> None:
    lived = record("a", fence=7, settled=6, version=1)
    await source.add([lived, record("b")])
    await target.add([replace(lived, **change)])
    done = await migrate(source, target)
    assert (done.is_whole, done.different, done.same) == (False, Found(1, ("a",)), 1)
    assert done.digest != done.target_digest


async def test_what_a_killed_migration_left_is_no_job(source: MemoryStore, target: MemoryStore) -> None:
    """It dies between the raising of the fences and the removal of what raised them."""
    for store in (source, target):
        await store.add(
            [record("#migrate/default", birth="another", wake_at=None, hold="#migrate/", fence=3)]
        )
    await source.add([record("a")])
    done = await migrate(source, target)
    assert (done.is_whole, done.jobs, done.only_on_target) == (True, 1, Found())
    assert (await everything(target)).keys() == {"a"}


async def test_a_job_that_comes_to_an_empty_target_meanwhile_is_named(
    source: MemoryStore, target: MemoryStore
) -> None:
    class Busy(FaultyStore):
        async def add(self, records: Sequence[Record]) -> set[str]:
            await target.add([record("own")])
            return await super().add(records)

    await source.add([record("a")])
    done = await migrate(source, Busy(target))
    assert (done.is_whole, done.has_changed, done.only_on_target) == (False, False, Found(1, ("own",)))


async def test_a_job_that_went_on_at_the_target_is_left_alone_and_named(
    source: MemoryStore, target: MemoryStore, hands: Hands
) -> None:
    await source.add([record("a"), record("b", wake_at=NOW + 50)])
    await migrate(source, target)
    [held] = await hands.claim(target, "default")
    await target.settle([ending(held, wake_at=NOW + 60)])
    before = await everything(target)
    done = await migrate(source, target)
    assert (done.is_whole, done.different, done.added, done.same) == (False, Found(1, ("a",)), 0, 1)
    assert await everything(target) == before


async def test_what_is_held_at_the_target_is_named_though_nothing_else_of_it_has_changed(
    source: MemoryStore, target: MemoryStore, hands: Hands
) -> None:
    await source.add([record("a")])
    await migrate(source, target)
    target._records["a"] = replace(target._records["a"], holder="somebody")
    assert (await migrate(source, target)).different == Found(1, ("a",))


async def test_a_job_that_has_run_and_gone_at_the_target_is_not_copied_again(
    source: MemoryStore, target: MemoryStore, hands: Hands
) -> None:
    await source.add([record("a")])
    await migrate(source, target, history=True)
    [held] = await hands.claim(target, "default")
    await target.settle([ending(held, delete=True, entries=[entry("a", held.fence)])])
    done = await migrate(source, target, history=True)
    assert (done.is_whole, done.ran, done.added) == (False, Found(1, ("a",)), 0)
    assert await everything(target) == {}


async def test_a_job_under_an_id_that_was_used_before_is_copied_beside_a_history_of_its_predecessor(
    source: MemoryStore, target: MemoryStore, hands: Hands
) -> None:
    await source.add([record("a")])
    [held] = await hands.claim(source, "default")
    await source.settle([ending(held, entries=[entry("a", held.fence)], delete=True)])
    assert (await migrate(source, target, history=True)).is_whole
    await source.add([record("a", birth="another")])
    done = await migrate(source, target, history=True)
    assert (done.is_whole, done.added, done.ran) == (True, 1, Found())


@pytest.mark.parametrize("is_held", [False, True], ids=["due", "held"])
async def test_a_job_that_has_run_and_gone_at_the_source_between_two_copies_is_named(
    source: MemoryStore, target: MemoryStore, hands: Hands, is_held: bool
) -> None:
    await source.add([record("a"), record("b", wake_at=None)])
    await target.add([record("own")])
    held = await hands.claim(source, "default") if is_held else []
    assert (await migrate(source, target, while_running=True)).is_whole
    [held_now] = held or await hands.claim(source, "default")
    await source.settle([ending(held_now, entries=[entry("a", held_now.fence)], delete=True)])
    hands.now += 60
    done = await migrate(source, target)
    assert (done.is_whole, done.ran_on_source, done.only_on_target) == (
        False, Found(1, ("a",)), Found(1, ("own",)),
    )  # fmt: skip
    await target.remove(["a"])
    assert (await migrate(source, target)).is_whole


async def test_a_history_that_was_copied_before_its_job_does_not_keep_the_job_out(
    source: MemoryStore, target: MemoryStore, hands: Hands
) -> None:
    await hands.fill(source)
    await migrate(source, target, history=True)
    await target.remove(["ran"])
    done = await migrate(source, target)
    assert (done.is_whole, done.added) == (True, 1)


async def test_a_record_too_large_for_the_target_is_told_before_anything_is_written(
    source: MemoryStore, opened: Any
) -> None:
    class Small(SharedMemory):
        capabilities = replace(SharedMemory.capabilities, largest_record=100)

    target = await opened(Small())
    await source.add([record("a"), record("b", body=b"x" * 60, cursor=b"y" * 41)])
    await source.add([record("c", body=b"x" * 60, cursor=b"y" * 40)])
    with pytest.raises(StoreError, match=r"larger than the 100 bytes.*Small.*1 of the jobs \('b'\)"):
        await migrate(source, target)
    assert await everything(target) == {}
    assert (await survey(source, target)).too_large == Found(1, ("b",))


async def test_a_target_whose_fences_would_fall_is_refused(
    source: MemoryStore, opened: Any, hands: Hands
) -> None:
    class Falling(SharedMemory):
        async def acquire(
            self, keys: Sequence[str], holder: str, lease_s: float, limit: int | None = None
        ) -> dict[str, Lease]:
            leases = await super().acquire(keys, holder, lease_s, limit)
            return {key: lease._replace(fence=1) for key, lease in leases.items()}

    target = await opened(Falling())
    await hands.fill(source)
    with pytest.raises(StoreError, match=r"Falling gave the fence 1 .* later fences are higher"):
        await migrate(source, target)
    assert await everything(target) == {}


async def test_a_store_is_not_copied_into_itself(source: MemoryStore) -> None:
    await source.add([record("a")])
    with pytest.raises(ConflictError, match="it is the source itself"):
        await migrate(source, source)


async def test_two_migrations_of_one_source_do_not_meet(
    source: MemoryStore, target: MemoryStore, opened: Any
) -> None:
    await source.add([record(f"{i}") for i in range(1000)])
    answers = await asyncio.gather(
        migrate(Slow(source), target),
        migrate(Slow(source), await opened(SharedMemory())),
        return_exceptions=True,
    )
    assert [type(answer).__name__ for answer in answers] == ["Migration", "ConflictError"]
    assert (await migrate(source, target)).is_whole, "the leases were released"


class Slow(FaultyStore):
    """Others have their turn at each page."""

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        await asyncio.sleep(0)
        return await super().page(where, limit, after)


async def test_a_migration_that_lost_its_lease_stops(
    source: MemoryStore, target: MemoryStore, hands: Hands
) -> None:
    class Standing(FaultyStore):
        async def add(self, records: Sequence[Record]) -> set[str]:
            hands.now += 31
            await source.acquire(["#migrate"], "another", 30.0)
            return await super().add(records)

    await source.add([record(f"{i}") for i in range(1000)])
    with pytest.raises(ConflictError, match="stood still for 30 s"):
        await migrate(source, Standing(target))


async def test_a_long_look_at_a_large_source_keeps_the_lease(
    source: MemoryStore, target: MemoryStore, hands: Hands
) -> None:
    class Far(FaultyStore):
        async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
            hands.now += 6
            others.append(await source.acquire(["#migrate"], "another", 1.0))
            return await super().page(where, limit, after)

    others: list[dict[str, Lease]] = []
    await source.add([record(f"{i}", wake_at=NOW + 1e6) for i in range(2000)])
    assert (await migrate(Far(source), target)).is_whole
    assert len(others) > 6
    assert not any(others), "nobody else began"


# -- a source that is changed meanwhile ---------------------------------------------------------------------------------------


class Changing(FaultyStore):
    """The first page of all records that is asked for the *nth* time is preceded by *change*."""

    def __init__(self, store: JobStore, nth: int, change: Callable[[], Any]) -> None:
        super().__init__(store)
        self._nth = nth
        self._change = change

    async def page(self, where: Filter, limit: int, after: Record | None = None) -> list[Record]:
        if after is None and where == Filter():
            self._nth -= 1
            if self._nth == 0:
                await self._change()
        return await super().page(where, limit, after)


#: The pass over the source that follows: the first look is the first, the copy the second, the comparison the third.
COPY, COMPARISON = 2, 3


@pytest.mark.parametrize("nth", [COPY, COMPARISON])
async def test_a_job_added_meanwhile_is_noticed(source: MemoryStore, target: MemoryStore, nth: int) -> None:
    await source.add([record("a")])
    done = await migrate(Changing(source, nth, lambda: source.add([record("b")])), target)
    assert (done.has_changed, done.is_whole) == (True, False)
    assert done.missing == (Found(1, ("b",)) if nth == COMPARISON else Found())


async def test_a_job_that_ran_meanwhile_is_named(
    source: MemoryStore, target: MemoryStore, hands: Hands
) -> None:
    async def run() -> None:
        [held] = await hands.claim(source, "default")
        await source.settle([ending(held, wake_at=NOW + 60)])

    await source.add([record("a"), record("b", wake_at=None)])
    done = await migrate(Changing(source, COMPARISON, run), target)
    assert (done.has_changed, done.is_whole, done.different) == (True, False, Found(1, ("a",)))


async def test_a_job_removed_meanwhile_is_named_as_one_of_the_target_only(
    source: MemoryStore, target: MemoryStore
) -> None:
    await source.add([record("a"), record("b")])
    done = await migrate(Changing(source, COMPARISON, lambda: source.remove(["a"])), target)
    assert (done.has_changed, done.is_whole, done.only_on_target) == (True, False, Found(1, ("a",)))


async def test_jobs_that_the_target_had_before_are_told_and_no_fault(
    source: MemoryStore, target: MemoryStore
) -> None:
    await source.add([record("a")])
    await target.add([record("own")])
    done = await migrate(source, target)
    assert (done.is_whole, done.only_on_target) == (True, Found(1, ("own",)))


async def test_a_job_paused_and_resumed_meanwhile_has_changed_the_source(
    source: MemoryStore, target: MemoryStore, hands: Hands
) -> None:
    await source.add([record("a")])
    done = await migrate(Changing(source, COMPARISON, lambda: hands.update(source, "a")), target)
    assert done.has_changed


# -- stores that falter -------------------------------------------------------------------------------------------------------


async def test_a_lost_reply_loses_and_doubles_nothing(
    source: MemoryStore, target: MemoryStore, hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncsched.moving._reading._PAUSE_S", 0.0)
    await hands.fill(source)
    copies = [FaultyStore(source), FaultyStore(target)]
    for store in copies:
        for method in ("acquire", "extend", "page", "get", "add", "remove", "settle", "runs", "now"):
            store.faults.lost[method] = 2
    done = await migrate(*copies, history=True)
    assert done.is_whole
    assert len(await everything(target)) == done.jobs


async def test_a_store_that_stays_away_ends_the_migration(
    source: MemoryStore, target: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncsched.moving._reading._PAUSE_S", 0.0)
    await source.add([record("a")])
    faulty = FaultyStore(target)
    faulty.faults.go_away(["add"])
    with pytest.raises(StoreUnavailable):
        await migrate(source, faulty)
    faulty.faults.come_back()
    assert (await migrate(source, faulty)).is_whole


async def test_an_entry_that_the_target_refuses_is_named_and_the_others_are_copied(
    source: MemoryStore, target: MemoryStore, hands: Hands
) -> None:
    await source.add([record("a")])
    [held] = await hands.claim(source, "default")
    entries = [entry("a", fence, at=NOW - fence) for fence in range(1, 26)]
    await source.settle([ending(held, wake_at=NOW + 60, entries=entries)])
    faulty = FaultyStore(target)
    faulty.faults.is_poison = lambda s: any(e.fence == 13 for e in s.entries)
    done = await migrate(source, faulty, history=True)
    assert done.history is not None
    assert (done.is_whole, done.history.same) == (False, 24)
    assert done.history.missing == Found(1, ("a (fence 13, run)",))
    assert {e.fence for e in await target.runs()} == set(range(1, 26)) - {13}


async def test_a_history_is_copied_beside_the_one_that_the_target_has(
    source: MemoryStore, target: MemoryStore
) -> None:
    carrier = Settlement(id="none", fence=0, holder="none", version=0)
    shown = [entry("a", fence, at=NOW + 10 * fence) for fence in range(5)]
    own = [entry("own", fence, at=NOW + 5 * fence) for fence in range(15)]
    await source.settle([replace(carrier, entries=tuple(shown))])
    await target.settle([replace(carrier, entries=tuple(own))])
    done = await migrate(source, target, history=True)
    assert done.history is not None
    assert (done.is_whole, done.history.same) == (True, 5)
    assert await target.runs() == sorted(shown + own, key=lambda e: (e.at, e.job_id), reverse=True)


async def test_a_store_that_does_not_keep_entries_of_unknown_jobs_is_found_out(
    source: MemoryStore, target: MemoryStore
) -> None:
    class Loses(FaultyStore):
        async def settle(self, settlements: Sequence[Settlement]) -> list[Any]:
            return ["lost" for _ in settlements]

    await source.settle([Settlement(id="none", fence=0, holder="none", version=0, entries=(entry("a", 1),))])
    with pytest.raises(StoreError, match=r"Loses answers {'lost'} for '#migrated'"):
        await migrate(source, Loses(target), history=True)


async def test_entries_of_one_instant_are_compared_whatever_their_order(
    source: MemoryStore, target: MemoryStore, hands: Hands
) -> None:
    """The log of a store that keeps microseconds has another order within one of them."""
    ats = [NOW + 0.0000002 * i for i in range(8)]
    carrier = Settlement(id="none", fence=0, holder="none", version=0)
    shown = [entry(f"{(i * 5) % 8}", 1, at=at) for i, at in enumerate(ats)]
    await source.settle([replace(carrier, entries=tuple(shown))])
    rounded = [replace(e, at=round(e.at, 6), fire_at=round(e.fire_at, 6)) for e in shown]
    await target.settle(
        [replace(carrier, entries=tuple(rounded[:-1])), replace(carrier, entries=(entry("own", 9),))]
    )
    done = await migrate(FaultyStore(source), Deaf(target), history=True)
    assert done.history is not None
    assert (done.history.entries, done.history.same) == (8, 7)
    assert done.history.missing.ids == (f"{shown[-1].job_id} (fence 1, run)",)


class Deaf(FaultyStore):
    """Says that it keeps what it is told, and does not."""

    async def settle(self, settlements: Sequence[Settlement]) -> list[Any]:
        return ["gone" for _ in settlements]


# -- many ---------------------------------------------------------------------------------------------------------------------


async def test_ten_thousand_jobs_whose_copy_is_broken_off_are_all_there_when_it_is_repeated(
    stores: Sequence[str], opened: Any, tmp_path: Path
) -> None:
    if "sqlite" not in stores:
        pytest.skip("sqlite was left out by --stores")
    source = await opened(SQLiteStore(f"{tmp_path}/from.db"))
    target = await opened(SQLiteStore(f"{tmp_path}/to.db"))
    jobs = [
        record(hashlib.sha1(b"%d" % i).hexdigest(), wake_at=NOW + i % 100, queue=f"q{i % 7}", body=b"b" * 300)
        for i in range(10_000)
    ]
    await source.add(jobs)
    seen: list[int] = []
    broken_off = asyncio.Event()

    def watch(doing: str, done: int, total: int | None) -> None:
        if doing == "copying" and done >= 5_000:
            broken_off.set()

    work = asyncio.get_running_loop().create_task(migrate(source, target, progress=watch))
    await broken_off.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    copied = len(await everything(target))
    assert 5_000 <= copied < 10_000

    def note(doing: str, done: int, total: int | None) -> None:
        if doing == "copying":
            assert total == 10_000
            seen.append(done)

    done = await migrate(source, target, progress=note)
    assert (done.is_whole, done.added, done.same) == (True, 10_000 - copied, 10_000)
    assert seen == sorted(seen)
    assert seen[-1] == 10_000
    assert first_difference(await everything(target), {r.id: r for r in jobs}) is None
