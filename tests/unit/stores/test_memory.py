"""What the memory costs: nothing in it grows with what is over, and nothing is looked through."""

from collections.abc import Iterator
from typing import Any

import pytest

from asyncsched import MemoryStore
from asyncsched.contract import Entry, Record, Settlement, Update

pytestmark = pytest.mark.anyio


def job(id: str, **fields: Any) -> Record:
    common = {"birth": id, "queue": "q", "priority": 5, "task": "t", "hold": None, "body": b"", "cursor": b""}
    return Record(id=id, **{"wake_at": 1.0, **common, **fields})


class NeverScanned(dict[str, Record]):
    """Records that are only looked up."""

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("all records were looked through")

    def values(self) -> Any:
        raise AssertionError("all records were looked through")

    items = values


@pytest.fixture
async def store() -> MemoryStore:
    store = MemoryStore()
    await store.open(now=lambda: 100.0)
    return store


async def settled(store: MemoryStore, **fields: Any) -> None:
    [held] = (await store.claim(["q"], "token", 1, 30)).records
    fields |= {"id": held.id, "fence": held.fence, "holder": "token", "version": held.version}
    assert await store.settle([Settlement(**fields)]) == ["done"]


async def test_unparking_looks_at_what_is_parked_only(store: MemoryStore) -> None:
    await store.add([job(f"parked-{i}", hold="limit", wake_at=1000.0 - i) for i in range(500)])
    await store.add([job(f"idle-{i}", wake_at=5000.0) for i in range(500)])
    await store.add([job("running")])
    store._records = store._parked._records = NeverScanned(store._records)
    await settled(store, delete=True, unpark=("limit", 2))
    there = await store.get(["parked-499", "parked-498", "parked-497"])
    assert [there[id].hold for id in ("parked-499", "parked-498", "parked-497")] == [None, None, "limit"]


async def test_what_is_parked_again_and_again_leaves_nothing_behind(store: MemoryStore) -> None:
    await store.add([job("a", hold="limit")])
    for i in range(10_000):
        await settled(store, hold="limit", wake_at=i / 1000)
    assert sum(map(len, store._parked._heaps.values())) <= 1_026
    await store.add([job("b", wake_at=-1.0)])
    await settled(store, delete=True, unpark=("limit", 5))
    assert (await store.get(["a"]))["a"].hold is None


async def test_pausing_and_resuming_leaves_nothing_behind(store: MemoryStore) -> None:
    await store.add([job("a")])
    for version in range(1, 10_001):
        hold = "paused" if version % 2 else None
        update = Update(id="a", version=version, body=b"", queue="q", priority=5, wake_at=None, hold=hold)
        assert await store.update(update)
    assert sum(map(len, store._parked._heaps.values())) <= 1_026


async def test_named_leases_that_ended_long_ago_are_forgotten() -> None:
    now = 0.0
    store = MemoryStore()
    await store.open(now=lambda: now)
    [kept] = (await store.acquire(["kept"], "me", 1e9)).values()
    fences = []
    for i in range(20_000):
        [lease] = (await store.acquire([f"key-{i}"], "me", 1.0)).values()
        fences.append(lease.fence)
        now += 1.0
    # What ended within the last hour is kept, so that who is late can still extend it; and as much again at the most.
    assert len(store._leases) < 2 * 3_600 + 2
    assert await store.extend([kept], 1.0) == {"kept": kept}
    [again] = (await store.acquire(["key-0"], "other", 1.0)).values()
    assert again.fence > max(fences)


async def test_leases_that_are_released_leave_nothing_behind(store: MemoryStore) -> None:
    for i in range(5_000):
        taken = await store.acquire([f"key-{i % 7}"], "me", 1.0)
        await store.release(list(taken.values()))
    assert len(store._leases) == 0
    assert len(store._taken) <= 2


async def test_an_entry_that_is_written_again_after_it_was_pruned_is_there_once() -> None:
    store = MemoryStore()
    await store.open(now=lambda: 100.0)
    old, new = (Entry(id, 1, "run", at, at, b"") for id, at in (("old", 1.0), ("new", 99.0)))
    first, second = (
        Settlement(id=entry.job_id, fence=1, holder="h", version=1, entries=(entry,)) for entry in (old, new)
    )
    await store.settle([first, second])
    assert await store.prune(50.0, None, 10) == 1
    await store.settle([first])
    assert await store.runs() == [new, old]
    assert await store.prune(50.0, None, 10) == 1
    assert await store.runs() == [new]
