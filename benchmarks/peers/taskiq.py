"""taskiq with its stream broker, which acknowledges what has run. ``fill URL JOBS`` and ``work URL BOARD ROW``."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker

from benchmarks.board import Board, until

_QUEUE = "taskiq-bench"
_board: Board | None = None


def _broker(url: str) -> RedisStreamBroker:
    broker = RedisStreamBroker(url, queue_name=_QUEUE, consumer_id="0")
    broker.register_task(_job, "job")
    return broker


async def _job() -> None:
    assert _board is not None
    _board.started()


async def fill(url: str, jobs: int) -> None:
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(url)
    await client.delete(_QUEUE)
    await client.aclose()
    broker = _broker(url)
    await broker.startup()
    task = broker.find_task("job")
    assert task is not None
    for start in range(0, jobs, 100):
        await asyncio.gather(*(task.kiq() for _ in range(min(100, jobs - start))))
    await broker.shutdown()


async def work(url: str, board: Board) -> None:
    global _board
    _board = board
    broker = _broker(url)
    broker.is_worker_process = True
    await broker.startup()
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    board.spent()
    board.ready()
    await until(lambda: board.is_going or over.is_set())
    running = asyncio.create_task(run_receiver_task(broker, max_async_tasks=100))
    while not over.is_set():
        board.spent()
        await asyncio.wait([running], timeout=0.25)
    # Its reader does not end before its next message.
    os._exit(0)


def main() -> None:
    if sys.argv[1] == "fill":
        asyncio.run(fill(sys.argv[2], int(sys.argv[3])))
    else:
        asyncio.run(work(sys.argv[2], Board(Path(sys.argv[3]), int(sys.argv[4]))))


if __name__ == "__main__":
    main()
