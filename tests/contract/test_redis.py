"""The store contract, held by the store on Redis."""

from collections.abc import Sequence

import pytest
import redis.asyncio

from asyncsched.stores.redis import RedisStore
from asyncsched.testing.contract import StoreContract
from tests.servers.running import Servers


class TestRedisStore(StoreContract):
    @pytest.fixture(autouse=True)
    def chosen(self, stores: Sequence[str], servers: Servers) -> None:
        if "redis" not in stores:
            pytest.skip("redis was left out by --stores")
        self.url = servers.url("redis")

    def make_store(self, namespace: str) -> RedisStore:
        return RedisStore(self.url, namespace=namespace)

    async def drop_namespace(self, namespace: str) -> None:
        async with redis.asyncio.Redis.from_url(self.url) as client:
            async for key in client.scan_iter(match=f"{{{namespace}}}:*"):
                await client.delete(key)
