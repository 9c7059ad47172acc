"""What asyncpg can do on this server: due jobs in a table, claimed and deleted by the hundred."""

from __future__ import annotations

import time
from typing import Any

__all__ = ["claim_and_delete", "queries"]

_BATCH = 100
_BODY = b"x" * 60


async def _connection(url: str) -> Any:
    import asyncpg

    return await asyncpg.connect(url.replace("postgres://", "postgresql://"))


async def claim_and_delete(url: str, jobs: int) -> float:
    """Jobs a second."""
    connection = await _connection(url)
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


async def queries(url: str) -> float:
    """How many transactions the server has counted so far."""
    connection = await _connection(url)
    await connection.execute("SELECT pg_stat_clear_snapshot()")
    value = await connection.fetchval(
        "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
    )
    await connection.close()
    return float(value)
