"""What the drivers can do on these servers: due jobs in a table or a sorted set, claimed and deleted by the hundred.

No fences, no lanes, no log, no policies: nothing that is built on these drivers does more with one connection.
"""

from __future__ import annotations

import time
import warnings
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["claim_and_delete", "queries"]

_BATCH = 100
_BODY = b"x" * 60
#: The commands that clients of this project send when nothing is due.
_ASKED = {"evalsha", "eval", "ping", "info", "script|load"}


async def claim_and_delete(kind: str, url: str, jobs: int) -> float:
    """Jobs a second."""
    measured: dict[str, Any] = {"redis": _redis, "postgres": _postgres}
    return float(await measured.get(kind, _mysql)(url, jobs))


async def queries(kind: str, url: str) -> float:
    """How many queries (PostgreSQL: transactions) the server has counted so far."""
    if kind == "redis":
        client = _redis_client(url)
        found = await client.info("commandstats")
        await client.aclose()
        # Those within scripts are counted there too.
        return float(
            sum(of["calls"] for name, of in found.items() if name.removeprefix("cmdstat_") in _ASKED)
        )
    if kind == "postgres":
        connection = await _postgres_connection(url)
        await connection.execute("SELECT pg_stat_clear_snapshot()")
        value = await connection.fetchval(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        )
        await connection.close()
        return float(value)
    connection = await _mysql_connection(url)
    async with connection.cursor() as cursor:
        await cursor.execute("SHOW GLOBAL STATUS LIKE 'Questions'")
        _, value = await cursor.fetchone()
    connection.close()
    return float(value)


# -- Redis -----------------------------------------------------------------------------------------------------------------

_CLAIM = """
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
if #ids == 0 then return {} end
local moved = {}
for i, id in ipairs(ids) do moved[2 * i - 1] = ARGV[3]; moved[2 * i] = id end
redis.call('ZADD', KEYS[1], unpack(moved))
return redis.call('HMGET', KEYS[2], unpack(ids))
"""
_DELETE = "redis.call('ZREM', KEYS[1], unpack(ARGV)); return redis.call('HDEL', KEYS[2], unpack(ARGV))"


def _redis_client(url: str) -> Any:
    import redis.asyncio

    return redis.asyncio.Redis.from_url(url, decode_responses=False)


async def _redis(url: str, jobs: int) -> float:
    client = _redis_client(url)
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


# -- PostgreSQL ------------------------------------------------------------------------------------------------------------


async def _postgres_connection(url: str) -> Any:
    import asyncpg

    return await asyncpg.connect(url.replace("postgres://", "postgresql://"))


async def _postgres(url: str, jobs: int) -> float:
    connection = await _postgres_connection(url)
    await connection.execute("DROP TABLE IF EXISTS raw_jobs")
    await connection.execute(
        "CREATE TABLE raw_jobs (id text PRIMARY KEY, wake_at float8, holder text, body bytea)"
    )
    await connection.execute("CREATE INDEX ON raw_jobs (wake_at)")
    await connection.copy_records_to_table(
        "raw_jobs", records=[(f"{n:036}", float(n), None, _BODY) for n in range(jobs)]
    )
    await connection.execute("ANALYZE raw_jobs")
    claim = await connection.prepare(
        "UPDATE raw_jobs SET wake_at = $1, holder = 'me' WHERE id = ANY(ARRAY("
        "SELECT id FROM raw_jobs WHERE wake_at <= $2 ORDER BY wake_at LIMIT $3 FOR UPDATE SKIP LOCKED)) "
        "RETURNING id, body"
    )
    delete = await connection.prepare("DELETE FROM raw_jobs WHERE id = ANY($1::text[])")
    began, done = time.perf_counter(), 0
    while batch := await claim.fetch(1e9, 1e8, _BATCH):
        await delete.fetch([row[0] for row in batch])
        done += len(batch)
    rate = done / (time.perf_counter() - began)
    await connection.execute("DROP TABLE raw_jobs")
    await connection.close()
    return rate


# -- MariaDB and MySQL -----------------------------------------------------------------------------------------------------


async def _mysql_connection(url: str) -> Any:
    import aiomysql

    parts = urlsplit(url)
    return await aiomysql.connect(
        host=parts.hostname or "127.0.0.1",
        port=parts.port or 3306,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        db=parts.path.lstrip("/"),
        autocommit=False,
    )


async def _mysql(url: str, jobs: int) -> float:
    connection = await _mysql_connection(url)
    cursor = await connection.cursor()
    await cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
    with warnings.catch_warnings(action="ignore"):
        await cursor.execute("DROP TABLE IF EXISTS raw_jobs")
    await cursor.execute(
        "CREATE TABLE raw_jobs (id VARCHAR(40) PRIMARY KEY, wake_at DOUBLE, holder VARCHAR(40), body BLOB, KEY (wake_at)) "
        "ENGINE = InnoDB"
    )
    for start in range(0, jobs, 1000):
        rows = [(f"{n:036}", float(n), _BODY) for n in range(start, min(jobs, start + 1000))]
        await cursor.executemany("INSERT INTO raw_jobs (id, wake_at, body) VALUES (%s, %s, %s)", rows)
    await connection.commit()
    began, done = time.perf_counter(), 0
    while True:
        await cursor.execute(
            "SELECT id, body FROM raw_jobs WHERE wake_at <= 1e8 ORDER BY wake_at LIMIT %s FOR UPDATE SKIP LOCKED",
            (_BATCH,),
        )
        batch = await cursor.fetchall()
        ids = [row[0] for row in batch]
        if not ids:
            await connection.commit()
            break
        await cursor.execute("UPDATE raw_jobs SET wake_at = 1e9, holder = 'me' WHERE id IN %s", (ids,))
        await connection.commit()
        await cursor.execute("DELETE FROM raw_jobs WHERE id IN %s", (ids,))
        await connection.commit()
        done += len(ids)
    rate = done / (time.perf_counter() - began)
    await cursor.execute("DROP TABLE raw_jobs")
    connection.close()
    return rate
