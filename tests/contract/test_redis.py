"""The store contract, held by the store on one Redis and on a Redis Cluster, with one hash tag and with a tag for each queue."""

from collections.abc import Iterator, Sequence

import pytest
import redis.asyncio
from msgspec.structs import replace

from asyncsched.errors import StoreError
from asyncsched.stores.redis import RedisStore
from asyncsched.testing import StoreContract
from asyncsched.testing._contract.trial import NOW, QUEUE, Trial, job, settlement, update_of
from tests.servers.redis import RedisCluster
from tests.servers.running import Servers


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


class TestRedisStore(StoreContract):
    spread = False

    @pytest.fixture(autouse=True)
    def chosen(self, stores: Sequence[str], servers: Servers) -> None:
        if "redis" not in stores:
            pytest.skip("redis was left out by --stores")
        self.url = servers.url("redis")

    def make_store(self, namespace: str) -> RedisStore:
        return RedisStore(self.url, namespace=namespace, spread=self.spread)

    async def drop_namespace(self, namespace: str) -> None:
        async with redis.asyncio.Redis.from_url(self.url) as client:
            for pattern in (f"{{{namespace}}}:*", f"{{{namespace}|*"):
                async for key in client.scan_iter(match=pattern):
                    await client.delete(key)


class TestRedisCluster(TestRedisStore):
    @pytest.fixture(autouse=True)
    def chosen(self, cluster: RedisCluster) -> None:
        self.url = cluster.url
        self.nodes = [node.url for node in cluster.nodes]

    async def drop_namespace(self, namespace: str) -> None:
        for url in self.nodes:
            async with redis.asyncio.Redis.from_url(url) as client:
                await client.flushall()


class SpreadRules:
    """What reads otherwise where queues may live on different servers."""

    spread = True

    async def test_priority_counts_before_the_order_of_queues(self, trial: Trial) -> None:
        """Queues are claimed one after the other: no script sees two of them."""
        await trial.add(job("p5", queue="p", priority=5), job("q7", queue="q", priority=7))
        await trial.add(job("q5", queue="q", priority=5), job("p7", queue="p", priority=7))
        taken = [await trial.claim_ids(1, queues=["p", "q"]) for _ in range(4)]
        assert taken == [["p7"], ["p5"], ["q7"], ["q5"]]

    async def test_one_claim_returns_its_records_in_that_order(self, trial: Trial) -> None:
        await trial.add(
            job("d", priority=1, wake_at=NOW - 90), job("c", queue="q"), job("b"), job("a", wake_at=NOW - 9)
        )
        await trial.add(job("e", priority=9, queue="q"))
        assert await trial.claim_ids(queues=[QUEUE, "q"]) == ["a", "b", "d", "e", "c"]

    async def test_a_repeated_claim_leaves_out_what_was_let_go(self, trial: Trial) -> None:
        """Without the job that is moved to another queue, since none can be."""
        await trial.add(job("settled"), job("removed"), job("kept"))
        first = {r.id: r for r in (await trial.claim(token="mine")).records}
        await trial.settle(settlement(first["settled"], wake_at=NOW + 5_000))
        await trial.store.remove(["removed"])
        assert (await trial.claim(token="mine")).records == [first["kept"]]

    async def test_a_repeated_claim_of_several_queues_takes_no_more_than_its_limit(
        self, trial: Trial
    ) -> None:
        await trial.add(job("a", queue="p"), job("b", queue="q"))
        assert len((await trial.claim(2, token="mine", queues=["p", "q"])).records) == 2
        await trial.add(job("c", queue="p"))
        again = (await trial.claim(2, token="mine", queues=["p", "q"])).records
        assert [r.id for r in again] == ["a", "c"]
        [left] = (await trial.claim(queues=["p", "q"])).records
        assert (left.id, left.tries, left.prior) == ("b", 1, None)

    async def test_an_update_moves_an_unheld_record(self, trial: Trial) -> None:
        """To another priority and time; to another queue it cannot, since that may live on another server."""
        await trial.add(job("a"))
        updated = await trial.store.update(
            replace(update_of(job("a")), priority=8, wake_at=NOW + 7, hold="why")
        )
        assert updated is not None
        assert (updated.priority, updated.wake_at, updated.hold) == (8, NOW + 7, "why")
        with pytest.raises(StoreError, match="'a' is in queue 'default' and cannot move to 'q'"):
            await trial.store.update(replace(update_of(updated), queue="q"))
        assert await trial.read("a") == updated

    async def test_an_update_of_a_held_record_leaves_wake_at_and_hold_to_its_holder(
        self, trial: Trial
    ) -> None:
        held = await trial.held()
        update = replace(update_of(held, body=b"two"), priority=1, wake_at=None, hold="paused")
        expected = replace(held, body=b"two", priority=1, version=2)
        assert await trial.store.update(update) == expected
        assert await trial.read("a") == expected

    async def test_a_held_record_that_was_given_another_lane_is_settled_and_claimed_there(
        self, trial: Trial
    ) -> None:
        held = await trial.held()
        assert await trial.store.update(replace(update_of(held), priority=1)) is not None
        assert await trial.settle(settlement(held)) == "stale"
        claimed = await trial.claim()
        assert [(r.id, r.queue, r.priority) for r in claimed.records] == [("a", QUEUE, 1)]

    async def test_a_revoke_writes_what_a_held_record_would_refuse(self, trial: Trial) -> None:
        held = await trial.held()
        await trial.store.update(replace(update_of(held, revoke=True), priority=2, hold="why"))
        record = await trial.read("a")
        assert (record.priority, record.hold) == (2, "why")
        assert await trial.claim_ids() == ["a"]

    async def test_an_id_is_unique_within_its_queue(self, trial: Trial) -> None:
        assert await trial.store.add([job("a", queue="p"), job("a", queue="q", birth="other")]) == set()
        claimed = [(await trial.claimed(queue)).birth for queue in ("p", "q")]
        assert claimed == ["birth of a", "other"]

    async def test_queues_have_hash_tags_of_their_own(self, trial: Trial) -> None:
        assert isinstance(trial.store, RedisStore)
        await trial.add(*(job(f"{i}", queue=f"q{i}") for i in range(20)))
        own = {f"{{{trial.namespaces[0]}|q{i}}}:jobs".encode() for i in range(20)}
        server = trial.store._server
        assert [await server.command("HLEN", key, key=key) for key in sorted(own)] == [1] * 20


class TestSpreadRedisStore(SpreadRules, TestRedisStore):
    """Each queue under a hash tag of its own, on one server."""


class TestSpreadRedisCluster(SpreadRules, TestRedisCluster):
    """Each queue under a hash tag of its own, on three servers."""

    async def test_queues_live_on_all_servers(self, trial: Trial) -> None:
        await trial.add(*(job(f"{i}", queue=f"q{i}") for i in range(30)))
        sizes = []
        for url in self.nodes:
            async with redis.asyncio.Redis.from_url(url) as client:
                sizes.append(len(await client.keys("*:jobs")))
        assert sum(sizes) == 30
        assert all(sizes)
