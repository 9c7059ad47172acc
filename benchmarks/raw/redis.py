"""What redis-py can do on this server: due jobs in a sorted set, claimed and deleted by scripts, by the hundred."""

from __future__ import annotations

import time
from typing import Any

__all__ = ["claim_and_delete", "queries"]

_BATCH = 100
_BODY = b"x" * 60
#: The commands that clients of this project send when nothing is due.
_ASKED = {"evalsha", "eval", "ping", "info", "script|load"}


_CLAIM = """
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
if #ids == 0 then return {} end
local moved = {}
for i, id in ipairs(ids) do moved[2 * i - 1] = ARGV[3]; moved[2 * i] = id end
redis.call('ZADD', KEYS[1], unpack(moved))
return redis.call('HMGET', KEYS[2], unpack(ids))
"""
_DELETE = "redis.call('ZREM', KEYS[1], unpack(ARGV)); return redis.call('HDEL', KEYS[2], unpack(ARGV))"


def _client(url: str) -> Any:
    import redis.asyncio

    return redis.asyncio.Redis.from_url(url, decode_responses=False)


async def claim_and_delete(url: str, jobs: int) -> float:
    """Jobs a second."""
    client = _client(url)
    due, bodies = "{raw}due", "{raw}bodies"
    await client.delete(due, bodies)
    ids = [f"{n:036}".encode() for n in range(jobs)]
    for start in range(0, jobs, 1000):
        piece = ids[start : start + 1000]
        await client.zadd(due, dict.fromkeys(piece, 1.0))
        await client.hset(bodies, mapping={id: id + _BODY for id in piece})
    claim, delete = client.register_script(_CLAIM), client.register_script(_DELETE)
    began, done = time.perf_counter(), 0
    while batch := await claim(keys=[due, bodies], args=[2, _BATCH, 1e9]):
        await delete(keys=[due, bodies], args=[body[:36] for body in batch])
        done += len(batch)
    rate = done / (time.perf_counter() - began)
    await client.delete(due, bodies)
    await client.aclose()
    return rate


async def queries(url: str) -> float:
    """How many commands the server has counted so far."""
    client = _client(url)
    found = await client.info("commandstats")
    await client.aclose()
    # Those within scripts are counted there too.
    return float(sum(of["calls"] for name, of in found.items() if name.removeprefix("cmdstat_") in _ASKED))
