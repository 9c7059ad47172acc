"""A Redis that has lost writes which it had acknowledged: fences never fall, and everyone is told, once."""

from __future__ import annotations

import logging
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import pytest

from asyncsched import Event, Scheduler, StoreDegraded, StoreRecovered
from asyncsched.contract import Record, Settlement
from asyncsched.errors import StoreUnavailable
from asyncsched.stores.redis import RedisStore
from tests.servers.redis import RedisReplica, RedisServer
from tests.support.proxy import Proxy, proxied
from tests.support.running import running
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000.0


@pytest.fixture
def server(stores: Sequence[str]) -> Iterator[RedisServer]:
    if "redis" not in stores:
        pytest.skip("redis was left out by --stores")
    server = RedisServer(None, "--appendfsync", "always")
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
async def open_store() -> AsyncIterator[Callable[..., RedisStore]]:
    """Makes stores that are closed at the end; they are to be opened."""
    made: list[RedisStore] = []

    def make(url: str, **keywords: bool) -> RedisStore:
        made.append(RedisStore(url, **keywords))
        return made[-1]

    yield make
    for store in made:
        await store.close()


def job(id: str) -> Record:
    return Record(id, "birth", "default", 5, "task", NOW, None, b"body", b"cursor")


async def claimed(store: RedisStore, token: str) -> list[Record]:
    return (await store.claim(["default"], token, 10, 30.0)).records


async def run_some(store: RedisStore, prefix: str, count: int = 5) -> int:
    """Run so many jobs to their end, each with a claim of its own; the last fence."""
    fence = 0
    for i in range(count):
        await store.add([job(f"{prefix}{i}")])
        [held] = await claimed(store, f"{prefix}{i}")
        fence = held.fence
        done = Settlement(held.id, held.fence, str(held.holder), held.version, delete=True)
        assert await store.settle([done]) == ["done"]
    return fence


def restore(server: RedisServer, kept: str) -> None:
    """Bring the server back with the data that was copied earlier."""
    server.kill()
    shutil.rmtree(server.data)
    shutil.copytree(server.folder / kept, server.data)
    for path in [server.data, *server.data.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o666)
    server.start()


@pytest.mark.parametrize("spread", [False, True])
async def test_a_server_restored_from_an_older_copy_is_noticed_and_its_fences_go_on(
    server: RedisServer, open_store: Callable[..., RedisStore], spread: bool, caplog: pytest.LogCaptureFixture
) -> None:
    stores = [open_store(server.url, spread=spread) for _ in range(2)]
    for store in stores:
        await store.open(now=lambda: NOW)
    await run_some(stores[0], "early")
    shutil.copytree(server.data, server.folder / "copy")
    seen = await run_some(stores[0], "late")
    await run_some(stores[1], "later", 1)
    restore(server, "copy")

    caplog.set_level(logging.ERROR)
    for store in stores:
        await until_it_answers(store)
        with pytest.raises(StoreUnavailable, match=r"has lost writes .* that it had acknowledged"):
            await claimed(store, "token")
    assert [r.levelname for r in caplog.records] == ["ERROR", "ERROR"]
    for i, store in enumerate(stores):
        assert await run_some(store, f"after{i}") > seen + 1
    assert len(caplog.records) == 2


async def test_a_client_that_comes_later_has_nothing_to_say(
    server: RedisServer, open_store: Callable[..., RedisStore], caplog: pytest.LogCaptureFixture
) -> None:
    first = open_store(server.url)
    await first.open(now=lambda: NOW)
    await run_some(first, "early")
    other = open_store(server.url)
    await other.open(now=lambda: NOW)
    await run_some(other, "late")
    assert await run_some(first, "again") > 0
    assert caplog.records == []


async def test_a_lease_of_a_server_that_has_lost_writes_has_a_higher_fence(
    server: RedisServer, open_store: Callable[..., RedisStore]
) -> None:
    store = open_store(server.url)
    await store.open(now=lambda: NOW)
    shutil.copytree(server.data, server.folder / "copy")
    seen = await run_some(store, "late")
    restore(server, "copy")
    await until_it_answers(store)
    assert (await store.acquire(["k"], "me", 30.0))["k"].fence > seen
    with pytest.raises(StoreUnavailable, match="has lost writes"):
        await claimed(store, "token")
    assert await run_some(store, "after") > seen


async def test_a_second_loss_is_noticed_though_a_lease_found_it_first(
    server: RedisServer, open_store: Callable[..., RedisStore]
) -> None:
    store = open_store(server.url)
    await store.open(now=lambda: NOW)
    for i in range(3):
        await run_some(store, f"before{i}", 1)
        server.ask("FLUSHALL")
        await store.acquire(["k"], "me", 30.0)
        with pytest.raises(StoreUnavailable, match="has lost writes"):
            await claimed(store, f"token{i}")


async def test_a_replica_that_was_promoted_without_the_last_writes_is_noticed(
    server: RedisServer, open_store: Callable[..., RedisStore], caplog: pytest.LogCaptureFixture
) -> None:
    replica = RedisReplica(server)
    try:
        async with proxied(server.url) as proxy:
            store = open_store(proxy.of(server.url))
            await store.open(now=lambda: NOW)
            await run_some(store, "early")
            replica.start()
            await eventually(lambda: is_level(server, replica))
            replica.promote()
            seen = await run_some(store, "late")
            fail_over(proxy, replica)
            await until_it_answers(store)
            with pytest.raises(StoreUnavailable, match="has lost writes"):
                await claimed(store, "token")
            assert [r.levelname for r in caplog.records if r.name.startswith("asyncsched")] == ["ERROR"]
            assert await run_some(store, "after") > seen
    finally:
        replica.remove()


async def test_a_scheduler_says_that_its_store_has_lost_writes_and_goes_on(server: RedisServer) -> None:
    scheduler = Scheduler(RedisStore(server.url))
    said: list[object] = []
    ran: list[str] = []

    @scheduler.task(name="note")
    async def note(name: str) -> None:
        ran.append(name)

    scheduler.on(Event, said.append)
    async with running(scheduler):
        await scheduler.enqueue(note, "before")
        await eventually(lambda: ran == ["before"])
        server.ask("FLUSHALL")
        await scheduler.enqueue(note, "after")
        await eventually(lambda: ran == ["before", "after"])
        await eventually(lambda: any(isinstance(event, StoreRecovered) for event in said))
    errors = [event.error for event in said if isinstance(event, StoreDegraded)]
    assert len(errors) == 1
    assert "has lost writes" in errors[0]


def is_level(server: RedisServer, replica: RedisServer) -> bool:
    return server.ask("HLEN", "{asyncsched}:claims") == replica.ask("HLEN", "{asyncsched}:claims") and (
        server.ask("HGET", "{asyncsched}:meta", "fence") == replica.ask("HGET", "{asyncsched}:meta", "fence")
    )


def fail_over(proxy: Proxy, replica: RedisServer) -> None:
    """The address leads to the replica from now on."""
    proxy.lead_to("127.0.0.1", replica.port)
    proxy.cut()


async def until_it_answers(store: RedisStore) -> None:
    async def answers() -> bool:
        try:
            await store.get(["none"])
        except StoreUnavailable:
            return False
        return True

    await eventually(answers)
