"""PgQueuer at its fastest: batches of 100, no cap on concurrent tasks. ``fill URL JOBS`` and ``work URL BOARD ROW``."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from benchmarks.board import Board, until

_BATCH = 100


async def fill(url: str, jobs: int) -> None:
    connection = await asyncpg.connect(url)
    queries = Queries(AsyncpgDriver(connection))
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await queries.install()
    for start in range(0, jobs, 1000):
        count = min(1000, jobs - start)
        await queries.enqueue(["job"] * count, [None] * count, [0] * count)
    await connection.close()


async def work(url: str, board: Board) -> None:
    connection = await asyncpg.connect(url)
    queue = PgQueuer(AsyncpgDriver(connection))

    @queue.entrypoint("job")
    async def job(job: Job) -> None:
        board.started()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, queue.shutdown.set)
    board.spent()
    board.ready()
    await until(lambda: board.is_going or queue.shutdown.is_set())
    running = asyncio.create_task(queue.run(batch_size=_BATCH))
    while not running.done():
        board.spent()
        await asyncio.wait([running], timeout=0.25)


def main() -> None:
    if sys.argv[1] == "fill":
        asyncio.run(fill(sys.argv[2], int(sys.argv[3])))
    else:
        asyncio.run(work(sys.argv[2], Board(Path(sys.argv[3]), int(sys.argv[4]))))


if __name__ == "__main__":
    main()
