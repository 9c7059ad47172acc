"""The store on a ZooKeeper that freezes, restarts, cuts connections, ends sessions and loses replies."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from asyncsched.contract import Claim, Entry, Filter, Record, Settlement, Update
from asyncsched.errors import StoreUnavailable
from asyncsched.stores.zookeeper import ZooKeeperStore, _wire
from tests.servers.running import Servers
from tests.servers.server import CannotStart
from tests.servers.zookeeper import ZooKeeperServer
from tests.support.proxy import proxied
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def own(stores: Sequence[str]) -> Iterator[ZooKeeperServer]:
    """A server that a test may harm."""
    if "zookeeper" not in stores:
        pytest.skip("zookeeper was left out by --stores")
    server = ZooKeeperServer()
    try:
        try:
            server.start()
        except CannotStart as error:
            pytest.skip(f"there is no ZooKeeper that may be harmed: {error}")
        yield server
    finally:
        server.remove()


@pytest.fixture
def server(own: ZooKeeperServer) -> Iterator[ZooKeeperServer]:
    yield own
    own.thaw()
    if not own.is_alive:
        own.start()


@pytest.fixture
def url(stores: Sequence[str], servers: Servers) -> str:
    if "zookeeper" not in stores:
        pytest.skip("zookeeper was left out by --stores")
    return servers.url("zookeeper")


def job(id: str, wake_at: float | None, body: bytes = b"body") -> Record:
    return Record(id, f"birth of {id}", "default", 5, "task", wake_at, None, body, b"cursor")


def ended(record: Record) -> Settlement:
    entry = Entry(record.id, record.fence, "run", 1.0, 2.0, b"")
    return Settlement(
        record.id, record.fence, str(record.holder), record.version, delete=True, entries=(entry,)
    )


@asynccontextmanager
async def opened(url: str, **keywords: Any) -> AsyncIterator[ZooKeeperStore]:
    store = ZooKeeperStore(url, namespace=f"t{secrets.token_hex(5)}", **keywords)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def answered(call: Callable[[], Awaitable[Any]]) -> Any:
    """The answer, once there is one; the call is repeated as it was."""
    for _ in range(50):
        try:
            return await call()
        except StoreUnavailable:
            await asyncio.sleep(0.05)  # As whoever calls a store does.
    raise AssertionError("the store stays away")


async def test_a_frozen_server_holds_up_no_call_past_its_deadline(server: ZooKeeperServer) -> None:
    async with opened(server.url, timeout=1.0) as store:
        await store.add([job("a", await store.now() - 1)])
        server.freeze()
        for call in (
            lambda: store.get(["a"]),
            lambda: store.claim(["default"], "t", 10, 30.0),
            lambda: store.now(),
        ):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable, match=r"did not answer within 1 s|cannot be reached"):
                await call()
            assert time.monotonic() - began < 6.0
        server.thaw()
        [held] = (await answered(lambda: store.claim(["default"], "t", 10, 30.0))).records
        assert await store.settle([ended(held)]) == ["done"]


async def test_a_store_works_on_after_a_restart_with_all_that_was_acknowledged(
    server: ZooKeeperServer,
) -> None:
    async with opened(server.url) as store:
        now = await store.now()
        await store.add([job(f"{n}", now - 1) for n in range(50)])
        held = (await store.claim(["default"], "first", 20, 30.0)).records
        await asyncio.to_thread(server.kill)
        with pytest.raises(StoreUnavailable):
            await store.get(["0"])
        await asyncio.to_thread(server.start)
        assert await answered(lambda: store.settle([ended(record) for record in held])) == ["done"] * 20
        rest = (await store.claim(["default"], "second", 100, 30.0)).records
        assert {r.id for r in held} | {r.id for r in rest} == {f"{n}" for n in range(50)}
        assert min(r.fence for r in rest) > 0
        assert len(await store.page(Filter(), 100)) == 30


async def test_a_session_that_the_server_has_ended_is_followed_by_another(url: str) -> None:
    async with proxied(url) as proxy, opened(proxy.of(url), session_timeout=1.0, timeout=2.0) as store:
        [lease] = (await store.acquire(["lock"], "me", 60.0)).values()
        await store.add([job("a", await store.now() - 1)])
        [held] = (await store.claim(["default"], "t", 10, 60.0)).records
        assert proxy.stall() == 1
        await eventually(lambda: not store._wire.is_connected)
        # Leases are data with an end: a session that ends takes none of them with it.
        assert await answered(lambda: store.extend([lease], 90.0)) != {}
        assert (await store.renew([Claim(held.id, held.fence, str(held.holder))], 90.0)).versions == {"a": 1}
        assert await store.settle([ended(held)]) == ["done"]
        assert store._wire.connections >= 2


async def test_a_connection_that_is_cut_in_mid_call_leaves_the_store_usable(url: str) -> None:
    async with proxied(url) as proxy, opened(proxy.of(url)) as store:
        now = await store.now()
        done: set[str] = set()
        records = [job(f"{n:03}", now - 1) for n in range(300)]
        for at in range(0, 300, 100):
            adding = asyncio.ensure_future(store.add(records[at : at + 100]))
            await asyncio.sleep(0.002 * at / 100)
            proxy.cut()
            await asyncio.wait([adding])
            adding.exception()
            assert await answered(lambda at=at: store.add(records[at : at + 100])) == set()
        for turn in range(12):
            claiming = asyncio.ensure_future(store.claim(["default"], f"{turn}", 40, 60.0))
            await asyncio.sleep(0.002 * turn)
            proxy.cut()
            await asyncio.wait([claiming])
            claiming.exception()
            held = (await answered(lambda turn=turn: store.claim(["default"], f"{turn}", 40, 60.0))).records
            settlements = [ended(record) for record in held]
            answers = await answered(lambda settlements=settlements: store.settle(settlements))
            assert set(answers) <= {"done", "gone"}
            done |= {record.id for record in held}
        assert done == {record.id for record in records}
        assert len(await store.runs(limit=1000)) == 300


async def test_calls_whose_replies_were_lost_are_repeated_and_count_once(url: str) -> None:
    async with proxied(url) as proxy, opened(proxy.of(url)) as store:
        now = await store.now()
        await store.add([job("a", now - 1), job("b", now + 60)])

        async def repeated(request: bytes, call: Callable[[], Awaitable[Any]]) -> Any:
            before = proxy.lost
            proxy.lose_reply(request)
            with pytest.raises(StoreUnavailable):
                await call()
            assert proxy.lost == before + 1
            return await call()

        base = store._base().encode()
        taken = await repeated(base + b"/leases", lambda: store.acquire(["k"], "me", 60.0))
        assert taken.keys() == {"k"}
        assert (await repeated(base + b"/leases", lambda: store.extend(list(taken.values()), 90.0))) != {}
        update = Update(
            id="b", version=1, body=b"two", queue="default", priority=5, wake_at=now + 50, hold=None
        )
        # The first request of it only reads.
        assert await repeated(base + b"/jobs", lambda: store.update(update)) is not None
        [held] = (await repeated(base + b"/claims", lambda: store.claim(["default"], "t", 10, 60.0))).records
        claim = Claim(held.id, held.fence, str(held.holder))
        assert (await repeated(base + b"/jobs", lambda: store.renew([claim], 120.0))).versions == {"a": 1}
        renewed = (await store.get(["a"]))["a"]
        assert replace(renewed, wake_at=held.wake_at) == held
        assert await repeated(base + b"/entries", lambda: store.settle([ended(held)])) == ["gone"]
        assert len(await store.runs()) == 1
        assert await store.get(["a"]) == {}
        await repeated(base + b"/leases", lambda: store.release(list(taken.values())))
        assert (await store.acquire(["k"], "other", 1.0)).keys() == {"k"}


async def test_what_others_write_is_heard_of_again_after_a_cut(url: str) -> None:
    async with proxied(url) as proxy, opened(proxy.of(url)) as store:
        other = ZooKeeperStore(url, namespace=store._namespace)
        await other.open()
        heard: list[float | None] = []
        store.on_hint(heard.append)
        await eventually(lambda: heard)
        assert proxy.cut() >= 1
        # There was a gap, in which anything may have been said.
        heard.clear()
        await eventually(lambda: None in heard)
        heard.clear()
        await other.add([job("a", 5.0)])
        await eventually(lambda: 5.0 in heard)
        await other.close()


async def test_instances_hear_of_a_leaf_that_was_removed_under_them(url: str) -> None:
    """Whoever plans for a time whose folder another has just removed as empty makes it anew."""
    async with opened(url) as store:
        now = await store.now()
        other = ZooKeeperStore(url, namespace=store._namespace)
        await other.open()
        for turn in range(3):
            await store.add([job("a", now + 86400)])
            assert await store.remove(["a"]) == {"a"}
            # The other comes across the empty leaf, and removes it.
            assert (await other.claim(["default"], f"{turn}", 10, 30.0)).next_wake_at is None
            await other.get(["a"])
        await store.add([job("a", now + 86400)])
        assert (await other.claim(["default"], "last", 10, 30.0)).next_wake_at == now + 86400
        await other.close()


@pytest.fixture(scope="module")
def behind(own: ZooKeeperServer) -> Iterator[ZooKeeperServer]:
    """One that has heard of nothing that the other knows, as a server of an ensemble that lags behind."""
    server = ZooKeeperServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


async def test_a_server_that_lags_behind_is_not_asked(
    server: ZooKeeperServer, behind: ZooKeeperServer
) -> None:
    async with proxied(server.url) as proxy, opened(proxy.of(server.url)) as store:
        await store.add([job(f"{n}", await store.now() - 1) for n in range(10)])
        proxy.lead_to("127.0.0.1", behind.port)
        proxy.cut()
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await store.get(["0"])
        proxy.lead_to("127.0.0.1", server.port)
        assert list(await answered(lambda: store.get(["0"]))) == ["0"]
        [*claimed] = (await answered(lambda: store.claim(["default"], "t", 100, 60.0))).records
        assert len(claimed) == 10


async def test_a_server_that_was_restored_is_asked_after_a_while(
    server: ZooKeeperServer, behind: ZooKeeperServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxied(server.url) as proxy, opened(proxy.of(server.url)) as store:
        await store.add([job("0", await store.now() - 1)])
        monkeypatch.setattr(_wire, "_FORGET_S", 0.5)
        proxy.lead_to("127.0.0.1", behind.port)
        proxy.cut()
        assert await answered(lambda: store.get(["0"])) == {}
