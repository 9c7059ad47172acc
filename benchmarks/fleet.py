"""A worker process of asyncsched: ``python -m benchmarks.fleet URL BOARD ROW``; it works from go until SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from asyncsched import Scheduler
from benchmarks.board import Board, until
from benchmarks.meter import CONCURRENCY

__all__ = ["main"]


async def serve(url: str, board: Board, concurrency: int) -> None:
    scheduler = Scheduler(url, concurrency=concurrency)

    async def job() -> None:
        board.started()

    scheduler.register(job, "job")
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    await scheduler.start(paused=True)
    board.spent()
    board.ready()
    await until(lambda: board.is_going or over.is_set())
    await scheduler.resume()
    while not over.is_set():
        board.spent()
        await asyncio.wait([asyncio.ensure_future(over.wait())], timeout=0.25)
    board.spent()
    await scheduler.stop()


def main() -> None:
    url, path, row = sys.argv[1:4]
    concurrency = int(sys.argv[4]) if len(sys.argv) > 4 else CONCURRENCY
    asyncio.run(serve(url, Board(Path(path), int(row)), concurrency))


if __name__ == "__main__":
    main()
