"""A MongoDB that does not answer, cuts connections or goes away: what the store promises about its calls."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
from motor.motor_asyncio import AsyncIOMotorClient

from asyncsched.contract import Entry, Record, Settlement
from asyncsched.errors import StoreUnavailable
from asyncsched.stores.mongodb import MongoStore
from tests.servers.mongodb import MongoServer
from tests.servers.running import url_given_for
from tests.support.proxy import proxied
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def server(stores: Sequence[str]) -> Iterator[MongoServer]:
    if "mongodb" not in stores:
        pytest.skip("mongodb was left out by --stores")
    if url_given_for("mongodb") is not None:
        pytest.skip("the mongodb server that is given is not to be harmed")
    server = MongoServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def namespace() -> str:
    return f"fault-{uuid.uuid4().hex[:10]}"


@contextlib.asynccontextmanager
async def opened(store: MongoStore) -> AsyncIterator[MongoStore]:
    await store.open(now=lambda: NOW)
    try:
        yield store
    finally:
        await store.close()


def job(id: str, wake_at: float | None = NOW) -> Record:
    return Record(id, f"birth of {id}", "default", 5, "task", wake_at, None, b"body", b"cursor")


def ended(record: Record, *spawn: Record) -> Settlement:
    entries = (Entry(record.id, record.fence, "run", NOW, NOW, b""),)
    return Settlement(
        record.id, record.fence, str(record.holder), record.version, delete=True, entries=entries, spawn=spawn
    )


async def claim(store: MongoStore, token: str = "token", limit: int = 100) -> list[Record]:
    return (await store.claim(["default"], token, limit, 30.0)).records


async def test_a_server_that_is_frozen_costs_a_call_its_deadline_and_no_more(
    server: MongoServer, namespace: str
) -> None:
    async with opened(MongoStore(server.url, namespace=namespace, timeout=1.0)) as store:
        await store.add([job("a")])
        server.freeze()
        try:
            began_at = time.monotonic()
            with pytest.raises(StoreUnavailable, match="did not answer within 1 s: the outcome is unknown"):
                await store.get(["a"])
            assert time.monotonic() - began_at < 6.0
        finally:
            server.thaw()
        assert (await store.get(["a"])).keys() == {"a"}


async def test_a_claim_whose_reply_was_cut_off_is_repeated_with_its_token(
    server: MongoServer, namespace: str
) -> None:
    async with (
        proxied(server.url) as proxy,
        opened(MongoStore(proxy.of(server.url), namespace=namespace)) as store,
    ):
        await store.add([job(f"{n}") for n in range(5)])
        proxy.lose_reply(b"TRIES")
        with pytest.raises(StoreUnavailable):
            await claim(store, "mine", 3)
        assert proxy.lost == 1
        again = await claim(store, "mine", 3)
        assert ([r.id for r in again], {r.tries for r in again}) == (["0", "1", "2"], {1})
        assert [r.id for r in await claim(store, "other")] == ["3", "4"]


@pytest.mark.parametrize("step", range(6))
async def test_a_settlement_whose_reply_was_cut_off_at_any_step_counts_once(
    step: int, server: MongoServer, namespace: str
) -> None:
    async with (
        proxied(server.url) as proxy,
        opened(MongoStore(proxy.of(server.url), namespace=namespace)) as store,
    ):
        await store.add([job("parent"), job("other")])
        held = await claim(store)
        batch = [ended(held[1], job("child", NOW + 5)), ended(held[0])]
        proxy.lose_reply(after=step)
        with contextlib.suppress(StoreUnavailable):
            await store.settle(batch)
        lost = proxy.lost
        proxy.forget_losses()
        assert set(await store.settle(batch)) == {"gone"}
        assert sorted(entry.job_id for entry in await store.runs()) == ["other", "parent"]
        assert (await store.get(["parent", "other", "child"])).keys() == {"child"}
        assert lost == 1 or step > 4


# PyMongo leaves a socket to the garbage collector where a call is cancelled while it connects.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_cancelled_calls_leave_no_reply_behind_for_others_to_read(
    server: MongoServer, namespace: str
) -> None:
    chance = random.Random(5)
    async with opened(MongoStore(server.url, namespace=namespace, max_connections=3)) as store:
        await store.add([job(f"{n:03}", NOW + 100) for n in range(200)])

        async def ask(n: int) -> None:
            ids = [f"{n:03}", f"{(n * 7) % 200:03}"]
            task = asyncio.ensure_future(store.get(ids))
            if n % 3:
                await asyncio.sleep(chance.random() * 0.004)
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                assert (await task).keys() == set(ids)

        for start in range(0, 200, 10):
            await asyncio.gather(*(ask(n) for n in range(start, start + 10)))
        assert len(await store.get([f"{n:03}" for n in range(200)])) == 200


async def test_connections_that_were_cut_are_made_anew(server: MongoServer, namespace: str) -> None:
    async with (
        proxied(server.url) as proxy,
        opened(MongoStore(proxy.of(server.url), namespace=namespace, timeout=3.0)) as store,
    ):
        await store.add([job("a")])

        async def answers() -> bool:
            with contextlib.suppress(StoreUnavailable):
                return (await store.get(["a"])).keys() == {"a"}
            return False

        for _ in range(3):
            assert proxy.cut() >= 1
            await eventually(answers)


@pytest.mark.parametrize("own_client", [False, True], ids=["url", "motor"])
async def test_what_was_acknowledged_is_there_after_a_kill(
    own_client: bool, server: MongoServer, namespace: str
) -> None:
    client: Any = AsyncIOMotorClient(server.url, serverSelectionTimeoutMS=2_000) if own_client else None
    made = (
        MongoStore(client=client, database="test", namespace=namespace, timeout=3.0)
        if own_client
        else MongoStore(server.url, namespace=namespace, timeout=3.0)
    )
    async with opened(made) as store:
        await store.add([job(f"{n}") for n in range(20)])
        held = await claim(store, limit=10)
        assert set(await store.settle([ended(r) for r in held])) == {"done"}
        await asyncio.to_thread(server.kill)
        with pytest.raises(StoreUnavailable):
            await store.get(["1"])
        await asyncio.to_thread(server.start)

        async def is_back() -> bool:
            with contextlib.suppress(StoreUnavailable):
                return len(await store.runs()) == 10
            return False

        await eventually(is_back)
        assert len(await claim(store, "next")) == 10
    if client is not None:
        client.close()


async def test_an_engine_that_is_away_behind_its_gateway_is_unavailable_and_not_refusing(
    server: MongoServer, namespace: str
) -> None:
    """The server answers, with errors: what was asked is not condemned by them."""
    async with opened(MongoStore(server.url, namespace=namespace, timeout=3.0)) as store:
        await store.add([job("a")])
        await asyncio.to_thread(server._engine.kill)
        try:
            with pytest.raises(StoreUnavailable):
                await store.get(["a"])
        finally:
            await asyncio.to_thread(server._engine.start)

        async def is_back() -> bool:
            with contextlib.suppress(StoreUnavailable):
                return (await store.get(["a"])).keys() == {"a"}
            return False

        await eventually(is_back)
