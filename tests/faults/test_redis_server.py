"""A Redis that does not answer, cuts connections, or loses a node: what the store promises about its calls and its listener."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import NoReturn

import pytest
import redis.asyncio

from asyncsched.contract import Claim, Entry, Filter, Record, Settlement
from asyncsched.errors import StoreError, StoreUnavailable
from asyncsched.stores.redis import RedisStore
from tests.servers.redis import RedisCluster, RedisServer
from tests.support.proxy import Connection, proxied
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def server(stores: Sequence[str]) -> Iterator[RedisServer]:
    if "redis" not in stores:
        pytest.skip("redis was left out by --stores")
    server = RedisServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def url(server: RedisServer) -> str:
    server.ask("FLUSHALL")
    return server.url


@contextlib.asynccontextmanager
async def opened(store: RedisStore) -> AsyncIterator[RedisStore]:
    await store.open(now=lambda: NOW)
    try:
        yield store
    finally:
        await store.close()


def job(id: str, queue: str = "default", wake_at: float | None = NOW) -> Record:
    return Record(id, "birth", queue, 5, "task", wake_at, None, b"body", b"cursor")


def ended(record: Record, *spawn: Record) -> Settlement:
    entries = (Entry(record.id, record.fence, "run", NOW, NOW, b""),)
    return Settlement(
        record.id, record.fence, str(record.holder), record.version, delete=True, entries=entries, spawn=spawn
    )


async def claim(store: RedisStore, token: str = "token", queue: str = "default") -> list[Record]:
    return (await store.claim([queue], token, 10, 30.0)).records


async def in_the_end(call: Callable[[], Awaitable[object]]) -> None:
    """Repeat *call* until the store is there again."""

    async def succeeds() -> bool:
        try:
            await call()
        except StoreUnavailable:
            return False
        return True

    await eventually(succeeds)


async def evaluations(url: str) -> int:
    async with redis.asyncio.Redis.from_url(url) as client:
        found = await client.info("commandstats")
    return int(found.get("cmdstat_evalsha", {"calls": 0})["calls"])


# ---- calls -----------------------------------------------------------------------------------------------------------------


async def test_a_script_whose_reply_was_lost_is_not_executed_again(url: str) -> None:
    """Not even by a client of one's own that was told to repeat, as the driver's clients are by default."""
    async with opened(RedisStore(url)) as near, proxied(url) as proxy:
        await near.add([job(f"{i}") for i in range(3)])
        await claim(near, "warm")
        async with redis.asyncio.Redis.from_url(proxy.of(url)) as client:
            for store in (RedisStore(proxy.of(url)), RedisStore(client=client)):
                async with opened(store):
                    await store.get(["none"])
                    before = await evaluations(url)
                    proxy.lose_reply(b"EVALSHA")
                    with pytest.raises(
                        StoreUnavailable, match="cannot be reached, or has cut the connection"
                    ):
                        await claim(store, "far")
                    assert await evaluations(url) == before + 1


async def test_a_server_that_does_not_answer_ends_the_call_in_time(server: RedisServer, url: str) -> None:
    async with opened(RedisStore(url, timeout=2)) as store:
        await store.add([job("a")])
        server.freeze()
        try:
            async with asyncio.timeout(10):
                with pytest.raises(
                    StoreUnavailable, match=r"did not answer within 2 s: the outcome is unknown"
                ):
                    await store.add([job("b")])
        finally:
            server.thaw()
        await in_the_end(lambda: store.add([job("b")]))
        assert [r.id for r in await claim(store)] == ["a", "b"]


async def test_answers_never_go_to_another_call_than_the_one_that_asked(url: str) -> None:
    """Calls are cancelled in every state; none leaves a half-read answer behind in the pool."""
    async with opened(RedisStore(url, max_connections=3)) as store:
        await store.add([job(f"{i}") for i in range(50)])

        async def read(i: int) -> None:
            assert (await store.get([f"{i}"])).keys() == {f"{i}"}

        for turn in range(40):
            tasks = [asyncio.ensure_future(read(i)) for i in range(20)]
            for _ in range(turn % 10):
                await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(answer is None for answer in done[1::2])
            assert {type(answer) for answer in done[::2]} <= {asyncio.CancelledError, type(None)}


async def test_a_client_of_ones_own_is_not_asked_for_more_connections_than_it_has(url: str) -> None:
    for most, left in ((3, 3), (50, 10)):
        async with redis.asyncio.Redis.from_url(url, max_connections=most) as client:
            async with opened(RedisStore(client=client)) as store:
                store.on_hint(lambda _: None)
                await asyncio.gather(*(store.add([job(f"{most}-{i}")]) for i in range(100)))
                assert len(await store.page(Filter(id_prefix=f"{most}-"), 200)) == 100
            assert len(client.connection_pool._available_connections) <= left


async def test_connections_that_were_cut_cost_one_call(server: RedisServer, url: str) -> None:
    async with opened(RedisStore(url)) as store:
        await asyncio.gather(*(store.get(["none"]) for _ in range(8)))
        async with redis.asyncio.Redis.from_url(url) as client:
            assert await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") >= 2
        failures = 0
        for _ in range(8):
            try:
                await store.get(["none"])
            except StoreUnavailable:
                failures += 1
        assert failures <= 1


async def test_a_server_that_comes_back_is_found_with_all_that_it_had(server: RedisServer, url: str) -> None:
    async with opened(RedisStore(url)) as store:
        await store.add([job("a"), job("b")])
        [held, _] = await claim(store)
        await eventually(lambda: b"aof_pending_bio_fsync:0" in server.ask("INFO", "persistence"))
        await asyncio.to_thread(server.stop)
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            await store.settle([ended(held)])
        await asyncio.to_thread(server.start)
        await in_the_end(lambda: store.get(["a"]))
        assert await store.settle([ended(held)]) == ["done"]


# ---- the listener ------------------------------------------------------------------------------------------------------------


def is_listener(connection: Connection) -> bool:
    return connection.has_sent(b"SUBSCRIBE")


async def test_a_listener_is_remade_and_gives_one_hint_for_what_it_missed(url: str) -> None:
    async with (
        opened(RedisStore(url)) as near,
        proxied(url) as proxy,
        opened(RedisStore(proxy.of(url))) as far,
    ):
        heard: list[float | None] = []
        far.on_hint(heard.append)
        await eventually(lambda: heard == [None], what="the first hint, which says that it listens")
        heard.clear()
        assert proxy.cut(is_listener) == 1
        await near.add([job("a", wake_at=NOW + 9)])
        await eventually(lambda: heard == [None])
        await near.add([job("b", wake_at=NOW + 5)])
        await eventually(lambda: heard == [None, NOW + 5])


async def test_a_listener_that_went_silent_is_noticed_by_itself(url: str) -> None:
    async with (
        opened(RedisStore(url)) as near,
        proxied(url) as proxy,
        opened(RedisStore(proxy.of(url))) as far,
    ):
        heard: list[float | None] = []
        far.on_hint(heard.append)
        await eventually(lambda: heard == [None])
        heard.clear()
        assert proxy.stall(is_listener) == 1
        await near.add([job("a", wake_at=NOW + 9)])
        assert heard == []
        await eventually(lambda: heard == [None])


async def test_a_listener_that_is_asked_and_answers_is_left_alone(url: str) -> None:
    async with proxied(url) as proxy, opened(RedisStore(proxy.of(url))) as store:
        heard: list[float | None] = []
        store.on_hint(heard.append)
        await eventually(lambda: heard == [None])
        [listener] = [connection for connection in proxy.connections if is_listener(connection)]
        await eventually(lambda: bytes(listener.sent).upper().count(b"PING") >= 2)
        assert heard == [None]
        assert listener in proxy.connections


async def test_closing_ends_the_listener(url: str) -> None:
    store = RedisStore(url)
    async with redis.asyncio.Redis.from_url(url) as client, opened(store):
        heard: list[float | None] = []
        store.on_hint(heard.append)
        await eventually(lambda: heard == [None])
        await store.close()

        async def is_gone() -> bool:
            return (await client.pubsub_numsub("{asyncsched}:hints"))[0][1] == 0

        await eventually(is_gone)


# ---- queues apart --------------------------------------------------------------------------------------------------------


async def test_a_record_that_went_to_another_queue_and_has_run_does_not_arrive_again(url: str) -> None:
    """Whoever brought it could not strike it off where it came from."""
    async with opened(RedisStore(url, spread=True)) as store:
        await store.add([job("parent", "parents"), job("other", "children", None)])
        spread = store._spread
        assert spread is not None
        parents, children = spread._shard("parents"), spread._shard("children")
        [held] = await claim(store, "1", "parents")
        assert await parents.settle([ended(held, job("child", "children"))]) == ["done"]
        [(_, sent)] = (await parents.sent()).items()
        await children.arrive("parents", sent)
        [child] = await claim(store, "2", "children")
        assert (child.id, await store.settle([ended(child)])) == ("child", ["done"])
        assert await claim(store, "3", "parents") == []
        assert await parents.sent() == {}, "it was brought once more"
        await children.arrive("parents", sent)
        assert await claim(store, "4", "children") == []


async def test_what_was_taken_before_another_queue_failed_does_not_count_as_lost(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [NOW]
    store = RedisStore(url, spread=True)
    spread = store._spread
    assert spread is not None
    async with opened(store):
        store._given_now = lambda: now[0]
        await store.add([job("a", "a"), job("b", "b")])

        async def away(*_: object) -> NoReturn:
            raise StoreUnavailable("its server is away")

        with monkeypatch.context() as patch:
            patch.setattr(spread._shard("b"), "claim", away)
            for _ in range(6):
                with pytest.raises(StoreUnavailable):
                    await store.claim(["a", "b"], "token", 10, 30.0)
                now[0] += 31
        records = (await store.claim(["a", "b"], "token", 10, 30.0)).records
        assert [(r.id, r.tries, r.prior) for r in records] == [("a", 1, None), ("b", 1, None)]


async def test_the_leases_of_a_queue_that_is_away_end_none_of_the_others(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisStore(url, spread=True)
    spread = store._spread
    assert spread is not None
    async with opened(store), opened(RedisStore(url, spread=True)) as other:
        await store.add([job("a", "a"), job("b", "b")])
        records = (await store.claim(["a", "b"], "token", 10, 30.0)).records
        claims = [Claim(r.id, r.fence, str(r.holder)) for r in records]

        async def away(*_: object) -> NoReturn:
            raise StoreUnavailable("its server is away")

        others = other._spread
        assert others is not None
        await others._known()  # Whoever has not claimed them asks every queue.
        for asked in (spread, others):
            monkeypatch.setattr(asked._shard("b"), "renew", away)
        for at in (store, other):
            assert (await at.renew(claims, 60.0)).versions == {"a": 1, "b": "busy"}
            assert (await store.get(["a"]))["a"].wake_at == NOW + 60
            with pytest.raises(StoreUnavailable, match="away"):
                await store.renew(claims[1:], 60.0)


async def test_a_queue_that_the_server_forgot_is_made_known_again(server: RedisServer, url: str) -> None:
    async with opened(RedisStore(url, spread=True)) as store:
        await store.add([job("a", "a")])
        server.ask("DEL", "{asyncsched}:queues")
        assert [r.id for r in await store.page(Filter(), 10)] == ["a"]
        async with opened(RedisStore(url, spread=True)) as other:
            assert set(await other.get(["a"])) == {"a"}
        await store.erase()
        await store.close()
        await store.open(now=lambda: NOW)
        await store.add([job("a", "a")])
        assert set(await store.get(["a"])) == {"a"}


# ---- a cluster ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(stores: Sequence[str]) -> Iterator[RedisCluster]:
    if "redis" not in stores:
        pytest.skip("redis was left out by --stores")
    cluster = RedisCluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()


async def test_a_client_of_ones_own_for_a_cluster_is_used_and_left_open(cluster: RedisCluster) -> None:
    client = redis.asyncio.RedisCluster.from_url(cluster.nodes[0].url)
    async with client:
        async with opened(RedisStore(client=client, namespace="own", spread=True)) as store:
            heard: list[float | None] = []
            store.on_hint(heard.append)
            await store.add([job(f"{i}", f"q{i}") for i in range(10)])
            held = (await store.claim([f"q{i}" for i in range(10)], "token", 10, 30.0)).records
            assert await store.settle([ended(r) for r in held]) == ["done"] * 10
            assert NOW in heard
        assert await client.ping()


async def test_a_cluster_is_not_taken_for_one_server_nor_one_server_for_a_cluster(
    cluster: RedisCluster, url: str
) -> None:
    for node in cluster.nodes:
        with pytest.raises(StoreError, match=r"is a node of a Redis Cluster: write redis\+cluster://"):
            await RedisStore(node.url).open()
    with pytest.raises(StoreError, match="is no Redis Cluster: leave out cluster=true"):
        await RedisStore(url, cluster=True).open()


async def test_a_cluster_that_cannot_be_reached_is_told_from_one_that_refuses(url: str) -> None:
    with pytest.raises(
        StoreUnavailable, match=r"is a cluster that is not whole at present .*Connect call failed"
    ):
        await RedisStore("redis+cluster://127.0.0.1:1").open()
    with pytest.raises(StoreError, match="refuses this user or password") as refusal:
        await RedisStore(url.replace("redis://", "redis+cluster://nobody:wrongly@")).open()
    assert "wrongly" not in str(refusal.value)
    with pytest.raises(StoreError, match=r"does not take these options .*nonsense"):
        await RedisStore("redis+cluster://127.0.0.1:1", nonsense=1).open()


async def test_many_calls_at_once_wait_for_a_connection(cluster: RedisCluster) -> None:
    async with opened(RedisStore(cluster.url, namespace="many", max_connections=3)) as store:
        await asyncio.gather(*(store.add([job(f"{i}")]) for i in range(200)))
        assert len(await store.page(Filter(), 1_000)) == 200


async def test_a_hint_crosses_the_cluster(cluster: RedisCluster) -> None:
    """The writer's script runs on one node, the listener may be at another."""
    async with (
        opened(RedisStore(cluster.url, namespace="hints", spread=True)) as one,
        opened(RedisStore(cluster.nodes[2].url, cluster=True, namespace="hints", spread=True)) as other,
    ):
        heard: list[float | None] = []
        one.on_hint(heard.append)
        await eventually(lambda: heard == [None])
        for i in range(6):
            await other.add([job(f"{i}", f"q{i}", NOW + i)])
        await eventually(lambda: sorted(at for at in heard if at is not None) == [NOW + i for i in range(6)])


async def test_a_child_for_another_queue_arrives_though_its_parent_was_settled_by_a_client_that_is_gone(
    cluster: RedisCluster,
) -> None:
    queues = ["parents", "children"]
    async with opened(RedisStore(cluster.url, namespace="sent", spread=True)) as store:
        await store.add([job("parent", queues[0])])
        [held] = await claim(store, queue=queues[0])
        spread = store._spread
        assert spread is not None
        # As the settlement that is followed by nothing.
        assert await spread._shard(queues[0]).settle([ended(held, job("child", queues[1]))]) == ["done"]
        assert await store.get(["parent", "child"]) == {}
    async with opened(RedisStore(cluster.url, namespace="sent", spread=True)) as other:
        assert await claim(other, "look", queues[0]) == []
        assert [r.id for r in await claim(other, "find", queues[1])] == ["child"]
        assert await claim(other, "again", queues[0]) == []


async def test_the_loss_of_one_node_stops_its_queues_only_until_it_is_back(cluster: RedisCluster) -> None:
    queues = [f"queue-{i}" for i in range(12)]
    async with opened(RedisStore(cluster.url, namespace="loss", spread=True, timeout=3.0)) as store:
        await store.add([job(f"of {queue}", queue) for queue in queues])
        await asyncio.to_thread(cluster.nodes[1].stop)
        reached, lost = [], []
        for queue in queues:
            try:
                reached += await claim(store, f"first {queue}", queue)
            except StoreUnavailable:
                lost.append(queue)
        assert lost
        await asyncio.to_thread(cluster.nodes[1].start)
        await asyncio.to_thread(cluster.wait_until_whole)
        for queue in lost:
            await in_the_end(lambda queue=queue: claim(store, f"second {queue}", queue))
        held = [
            await claim(store, f"{turn} {queue}", queue) for queue in queues for turn in ("first", "second")
        ]
        assert sorted(r.id for some in held for r in some) == sorted(f"of {queue}" for queue in queues)
