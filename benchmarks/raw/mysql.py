"""What aiomysql can do on this server: due jobs in a table, claimed and deleted by the hundred."""

from __future__ import annotations

import time
import warnings
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["claim_and_delete", "queries"]

_BATCH = 100
_BODY = b"x" * 60


async def _connection(url: str) -> Any:
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


async def claim_and_delete(url: str, jobs: int) -> float:
    """Jobs a second."""
    connection = await _connection(url)
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


async def queries(url: str) -> float:
    """How many statements the server has counted so far."""
    connection = await _connection(url)
    async with connection.cursor() as cursor:
        await cursor.execute("SHOW GLOBAL STATUS LIKE 'Questions'")
        _, value = await cursor.fetchone()
    connection.close()
    return float(value)
