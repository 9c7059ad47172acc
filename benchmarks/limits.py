"""What the event loop, a heap and SQLite can do without a scheduler around them: nothing that is built on them does more."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from heapq import heappop, heappush
from pathlib import Path

from benchmarks import meter
from benchmarks.meter import CONCURRENCY, PERIOD_S, Drain, Figures, Grid

_LEASE_S = 30.0


async def tasks(jobs: int) -> Figures:
    """asyncio's own: batches of create_task as large as the concurrency, and gather."""
    watch = Drain(jobs)
    watch.begin()
    for _ in range(jobs // CONCURRENCY):
        await asyncio.gather(*[asyncio.create_task(meter.drained_job()) for _ in range(CONCURRENCY)])
    figures = await watch.end()
    watch.check()
    return figures


async def recurring(jobs: int, window_s: float) -> Figures:
    """A heap of (due, job) and one timer: no leases, no policies, no records."""
    grid = Grid(jobs)
    loop = asyncio.get_running_loop()
    heap = [(grid.first_at + i * grid.step_s, i) for i in range(jobs)]
    running: set[asyncio.Task[None]] = set()

    def turn() -> None:
        now = time.time()
        while heap[0][0] <= now:
            due, job = heappop(heap)
            heappush(heap, (due + PERIOD_S, job))
            task = loop.create_task(meter.noted_job())
            running.add(task)
            task.add_done_callback(running.discard)
        loop.call_at(loop.time() + heap[0][0] - now, turn)

    turn()
    return await meter.recurring(grid, window_s)


def sqlite(jobs: int, synchronous: str) -> Figures:
    """Two transactions for each batch, as large as the concurrency: claim what is due, delete it."""
    with tempfile.TemporaryDirectory(prefix="asyncsched-bench-") as folder:
        db = sqlite3.connect(Path(folder) / "raw.db", isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {synchronous}")
        db.execute("CREATE TABLE jobs (id TEXT PRIMARY KEY, wake_at REAL, holder TEXT, body BLOB)")
        db.execute("CREATE INDEX jobs_wake ON jobs (wake_at)")
        body = b"x" * 60
        db.execute("BEGIN")
        db.executemany(
            "INSERT INTO jobs VALUES (?, ?, NULL, ?)", ((f"{i:036}", float(i), body) for i in range(jobs))
        )
        db.execute("COMMIT")
        began, cpu, done = time.perf_counter(), time.process_time(), 0
        while batch := _claimed(db):
            _delete(db, batch)
            done += len(batch)
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        db.close()
        return {"per_s": done / wall_s, "cpu_us": cpu_s / done * 1e6}


def _claimed(db: sqlite3.Connection) -> list[tuple[int, bytes]]:
    db.execute("BEGIN IMMEDIATE")
    due: list[tuple[int, bytes]] = db.execute(
        "SELECT rowid, body FROM jobs WHERE wake_at <= ? ORDER BY wake_at LIMIT ?", (1e9, CONCURRENCY)
    ).fetchall()
    marks = ",".join("?" * len(due))
    db.execute(
        f"UPDATE jobs SET wake_at = ?, holder = ? WHERE rowid IN ({marks})",
        (time.time() + _LEASE_S, "raw", *(row[0] for row in due)),
    )
    db.execute("COMMIT")
    return due


def _delete(db: sqlite3.Connection, batch: list[tuple[int, bytes]]) -> None:
    marks = ",".join("?" * len(batch))
    db.execute("BEGIN IMMEDIATE")
    db.execute(f"DELETE FROM jobs WHERE rowid IN ({marks})", [row[0] for row in batch])
    db.execute("COMMIT")


if __name__ == "__main__":
    meter.main({f.__name__: f for f in (tasks, recurring, sqlite)})
