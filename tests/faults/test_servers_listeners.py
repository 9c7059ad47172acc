"""The connection that hears of other instances' writes is lost: jobs are found by looking, and soon by hearing again."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from asyncsched import Scheduler
from asyncsched.stores import store_from_url
from tests.servers.server import Server
from tests.support.noting import Noting
from tests.support.proxy import Connection, Proxy, proxied
from tests.support.running import running
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

#: How soon a job of another instance begins while its hint arrives; far below the pause between two looks.
PROMPT_S = 1.0
#: Between two looks of an instance that hears hints, with its jitter, and what the machine needs.
LOOKS_EVERY_S = 5.0 * 1.1 + 5.0
#: By then a lost listener is noticed and there again.
HEARS_AGAIN_WITHIN_S = 30.0

Lose = Callable[[Proxy, Server], Awaitable[None]]


def is_listener(connection: Connection) -> bool:
    return connection.has_sent(b"LISTEN ", b"SUBSCRIBE", b"/hints", b"Watch/Watch")


async def stalled(proxy: Proxy, server: Server) -> None:
    """It stays open, and nothing comes any more."""
    assert proxy.stall(is_listener) >= 1


async def cut(proxy: Proxy, server: Server) -> None:
    assert proxy.cut(is_listener) >= 1


async def ended_by_the_server(proxy: Proxy, server: Server) -> None:
    """As an administrator or a server's limit does."""
    if server.url.startswith("etcd:"):
        pytest.skip("etcd has no command that ends a connection")
    if server.url.startswith("zk:"):
        pytest.skip("ZooKeeper has no command that ends a connection")
    if server.url.startswith("redis"):
        from redis.asyncio import Redis

        async with Redis.from_url(server.url) as redis:
            assert await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub") >= 1
        return
    import asyncpg

    ports = [c.server.get_extra_info("sockname")[1] for c in proxy.connections if is_listener(c)]
    connection = await asyncpg.connect(server.url)
    try:
        ended = await connection.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE client_port = ANY($1)", ports
        )
    finally:
        await connection.close()
    assert len(ended) >= 1


class Pair:
    """An instance that runs jobs, and another that adds them."""

    def __init__(self, there: Noting, client: Scheduler) -> None:
        self.there, self._client, self._added = there, client, 0

    async def pickup_s(self, timeout: float) -> float:
        """How long it takes for a job of the one to begin in the other."""
        self._added += 1
        id = f"job-{self._added}"
        began_at = time.monotonic()
        await self._client.add_job("work", id=id)
        await eventually(lambda: self.there.ran[id], timeout=timeout, what=f"the start of {id}")
        return time.monotonic() - began_at

    async def hears(self) -> bool:
        return await self.pickup_s(LOOKS_EVERY_S) < PROMPT_S

    async def keeps_hearing(self) -> bool:
        """It stays so: most of six are no accident of looks that were due just then; a busy machine may hold up one."""
        return sum([await self.hears() for _ in range(6)]) >= 5


@asynccontextmanager
async def paired(server: Server, url: str) -> AsyncIterator[tuple[Pair, Proxy]]:
    if not store_from_url(url).capabilities.push_hints:
        pytest.skip("this store has no listener: its instances look each second")
    async with proxied(server.url) as proxy:
        there, adder = Noting(proxy.of(url)), Noting(url, queues=())
        async with running(there.scheduler, adder.scheduler, timeout=120):
            yield Pair(there, adder.scheduler), proxy


async def test_a_job_of_another_instance_begins_at_once(own_server: Server, own_url: str) -> None:
    async with paired(own_server, own_url) as (pair, _):
        await eventually(pair.hears)
        assert await pair.keeps_hearing()


@pytest.mark.parametrize("lose", [stalled, cut, ended_by_the_server], ids=lambda lose: lose.__name__)
async def test_jobs_run_though_the_listener_is_lost_in_silence_and_it_is_there_again_soon(
    own_server: Server, own_url: str, lose: Lose
) -> None:
    async with paired(own_server, own_url) as (pair, proxy):
        await eventually(pair.hears)
        await lose(proxy, own_server)
        lost_at = time.monotonic()
        await pair.pickup_s(LOOKS_EVERY_S)
        await eventually(pair.hears, timeout=HEARS_AGAIN_WITHIN_S, what="hints to be heard again")
        assert time.monotonic() - lost_at < HEARS_AGAIN_WITHIN_S + 3 * LOOKS_EVERY_S
        assert await pair.keeps_hearing()
