"""A client or pool of the user's own, given by its class method: used, and never closed."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import pytest

from asyncsched.contract import JobStore
from asyncsched.testing._contract.trial import job
from tests.servers.running import Servers

pytestmark = pytest.mark.anyio

#: The store, what closes the client, and what shows that it is open still.
Given = tuple[JobStore, Callable[[], Awaitable[Any]], Callable[[], Awaitable[Any]]]


async def redis(url: str, namespace: str) -> Given:
    from redis.asyncio import Redis

    from asyncsched.stores.redis import RedisStore

    client = Redis.from_url(url)
    return RedisStore.from_client(client, namespace=namespace), client.aclose, client.ping


async def postgres(url: str, namespace: str) -> Given:
    import asyncpg

    from asyncsched.stores.postgres import PostgresStore

    pool = await asyncpg.create_pool(url, min_size=1, max_size=4)
    return PostgresStore.from_pool(pool, namespace=namespace), pool.close, lambda: pool.fetchval("SELECT 1")


async def mariadb(url: str, namespace: str) -> Given:
    import aiomysql

    from asyncsched.stores.mysql import MySQLStore

    parts = urlsplit(url)
    pool = await aiomysql.create_pool(
        host=parts.hostname, port=parts.port, user=parts.username, db=parts.path.strip("/"), maxsize=4
    )

    async def close() -> None:
        pool.close()
        await pool.wait_closed()

    async def ask() -> None:
        async with pool.acquire() as connection:
            await connection.ping()

    return MySQLStore.from_pool(pool, namespace=namespace), close, ask


async def mongodb(url: str, namespace: str) -> Given:
    from pymongo import AsyncMongoClient

    from asyncsched.stores.mongodb import MongoStore

    client: Any = AsyncMongoClient(url)
    store = MongoStore.from_client(client, database=urlsplit(url).path.strip("/"), namespace=namespace)
    return store, client.close, lambda: client.admin.command("ping")


async def zookeeper(url: str, namespace: str) -> Given:
    from aiozk import ZKClient

    from asyncsched.stores.zookeeper import ZooKeeperStore

    client = ZKClient(urlsplit(url).netloc)
    await client.start()
    return ZooKeeperStore.from_client(client, namespace=namespace), client.close, lambda: client.exists("/")


@pytest.mark.parametrize("make", [redis, postgres, mariadb, mongodb, zookeeper])
async def test_it_is_used_and_left_open(
    make: Callable[[str, str], Awaitable[Given]], stores: Sequence[str], servers: Servers
) -> None:
    kind = make.__name__
    if kind not in stores:
        pytest.skip(f"{kind} was left out by --stores")
    store, close, ask = await make(servers.url(kind), "own-client")
    try:
        await store.open()
        await store.add([job("a")])
        assert (await store.get(["a"])).keys() == {"a"}
        await store.remove(["a"])
        await store.close()
        await ask()
    finally:
        await close()
