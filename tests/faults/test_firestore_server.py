"""Calls to Firestore that end in their midst: replies that are lost, connections that are cut, callers that give up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import pytest

from asyncsched.contract import Entry, Filter, Record, Settlement
from asyncsched.errors import StoreUnavailable
from asyncsched.stores.firestore import FirestoreStore
from tests.servers.firestore import FrontedFirestoreServer
from tests.servers.running import Servers
from tests.support.proxy import Proxy, proxied
from tests.support.stores import namespaced
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

T = TypeVar("T")

LEASE_S = 60.0


def jobs(count: int) -> list[Record]:
    return [Record(f"{n:03}", "birth", "default", 5, "task", 1.0, None, b"body", b"") for n in range(count)]


def ended(record: Record, *spawn: Record) -> Settlement:
    entry = Entry(record.id, record.fence, "run", 1.0, 1.0, b"")
    return Settlement(
        id=record.id, fence=record.fence, holder=str(record.holder), version=1, delete=True, entries=(entry,), spawn=spawn
    )  # fmt: skip


async def repeated(call: Callable[[], Awaitable[T]]) -> T:
    """As it was, until the store answers."""
    for _ in range(20):
        try:
            return await call()
        except StoreUnavailable:
            await asyncio.sleep(0.05)  # What the scheduler does too, though more patiently.
    raise AssertionError("the store did not come back")


@pytest.fixture
async def url(stores: Sequence[str], servers: Servers) -> str:
    if "firestore" not in stores:
        pytest.skip("firestore was left out by --stores")
    return namespaced(servers.url("firestore"))


@pytest.fixture
async def proxy(url: str) -> AsyncIterator[Proxy]:
    async with proxied(url) as proxy:
        yield proxy


@pytest.fixture
async def store(url: str, proxy: Proxy) -> AsyncIterator[FirestoreStore]:
    store = FirestoreStore.from_url(proxy.of(url))
    await store.open()
    yield store
    await store.close()


async def test_a_claim_whose_write_was_answered_to_nobody_gives_the_same_records_again(
    store: FirestoreStore, proxy: Proxy
) -> None:
    await store.add(jobs(30))
    await store.claim(["none"], "young", 10, LEASE_S)
    proxy.lose_reply(b"token-1")
    with pytest.raises(StoreUnavailable):
        await store.claim(["default"], "token-1", 10, LEASE_S)
    assert proxy.lost == 1
    again = await repeated(lambda: store.claim(["default"], "token-1", 10, LEASE_S))
    assert [(r.id, r.tries) for r in again.records] == [(f"{n:03}", 1) for n in range(10)]
    assert await store.settle([ended(r) for r in again.records]) == ["done"] * 10


async def test_a_settlement_whose_reply_was_lost_counts_once(store: FirestoreStore, proxy: Proxy) -> None:
    await store.add(jobs(10))
    held = (await store.claim(["default"], "token", 10, LEASE_S)).records
    child = Record("child", "birth", "other", 5, "task", 1.0, None, b"", b"")
    batch = [ended(r, child) if r.id == "000" else ended(r) for r in held]
    proxy.lose_reply(b"child")
    with pytest.raises(StoreUnavailable):
        await store.settle(batch)
    assert await repeated(lambda: store.settle(batch)) == ["gone"] * 10
    assert [r.id for r in await store.page(Filter(), 100)] == ["child"]
    assert len(await store.runs()) == 10


async def test_adds_that_are_cut_off_again_and_again_are_all_there_once(
    store: FirestoreStore, proxy: Proxy
) -> None:
    adding = asyncio.ensure_future(repeated(lambda: store.add(jobs(3_000))))
    for _ in range(3):
        seen = proxy.requests
        await eventually(lambda seen=seen: proxy.requests > seen + 1 or adding.done())
        proxy.cut()
    assert await adding == set()
    found = await repeated(lambda: store.page(Filter(), 5_000))
    assert len({r.id for r in found}) == len(found) == 3_000


async def test_a_caller_that_gives_up_leaves_the_store_in_order(store: FirestoreStore) -> None:
    """Wherever in a call: it is made again, and counts once."""
    await store.add(jobs(40))
    for turn in range(20):
        token = f"token-{turn}"
        claim = asyncio.ensure_future(store.claim(["default"], token, 2, LEASE_S))
        await asyncio.wait([claim], timeout=0.002 * turn)
        claim.cancel()
        await asyncio.wait([claim])
        held = (await store.claim(["default"], token, 2, LEASE_S)).records
        assert [r.tries for r in held] == [1, 1]
        settle = asyncio.ensure_future(store.settle([ended(r) for r in held]))
        await asyncio.wait([settle], timeout=0.001 * turn)
        settle.cancel()
        await asyncio.wait([settle])
        assert set(await store.settle([ended(r) for r in held])) <= {"done", "gone"}
    assert await store.page(Filter(), 10) == []
    runs = await store.runs(limit=100)
    assert sorted(e.job_id for e in runs) == [f"{n:03}" for n in range(40)]


async def test_a_store_works_again_as_soon_as_its_server_is_back(stores: Sequence[str]) -> None:
    if "firestore" not in stores:
        pytest.skip("firestore was left out by --stores")
    server = FrontedFirestoreServer()
    try:
        await asyncio.to_thread(server.start)
        store = FirestoreStore.from_url(f"{server.url}&timeout=2")
        await store.open()
        await store.add(jobs(1))
        await asyncio.to_thread(server.kill)
        for _ in range(30):
            with pytest.raises(StoreUnavailable, match=r"emulator at 127\.0\.0\.1"):
                await store.get(["000"])
            await asyncio.sleep(0.1)  # So long that whoever waits ever longer between tries is found out.
        await asyncio.to_thread(server.start)
        loop = asyncio.get_running_loop()
        back_at = loop.time()
        assert (await repeated_for(lambda: store.get(["000"]), 12.0)).keys() == {"000"}
        assert loop.time() - back_at < 10.0
        await store.close()
    finally:
        server.remove()


async def repeated_for(call: Callable[[], Awaitable[T]], seconds: float) -> T:
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await call()
            except StoreUnavailable:
                await asyncio.sleep(0.05)  # As above.
