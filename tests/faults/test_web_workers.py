"""A memory store in each of several web workers runs every job once in each; that is said at start where it can be seen."""

import asyncio
import logging
import multiprocessing
from multiprocessing.queues import Queue
from pathlib import Path

import pytest

from asyncsched import Scheduler

pytestmark = pytest.mark.anyio


async def warnings_of(scheduler: Scheduler, caplog: pytest.LogCaptureFixture) -> list[str]:
    with caplog.at_level(logging.WARNING, logger="asyncsched"):
        async with scheduler:
            pass
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("told", ["", "1", "many"])
async def test_a_memory_store_in_the_only_worker_is_not_warned_of(
    told: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", told)
    assert await warnings_of(Scheduler(), caplog) == []


async def test_a_memory_store_in_one_of_several_workers_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    [warning] = await warnings_of(Scheduler(), caplog)
    assert "each of them runs every job" in warning
    assert "sqlite:///" in warning


async def test_a_client_and_a_shared_store_are_not_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    assert await warnings_of(Scheduler(queues=()), caplog) == []
    assert await warnings_of(Scheduler(f"sqlite:///{tmp_path}/jobs.db"), caplog) == []


def start_as_a_worker(said: "Queue[str]") -> None:
    """What a server that starts its workers by multiprocessing does in each."""
    handler = logging.Handler()
    handler.emit = lambda record: said.put(record.getMessage())  # type: ignore[method-assign]  # a handler of one line
    logging.getLogger("asyncsched").addHandler(handler)

    async def serve() -> None:
        async with Scheduler():
            pass

    asyncio.run(serve())


def test_a_worker_that_another_process_has_started_warns() -> None:
    context = multiprocessing.get_context("spawn")
    said: Queue[str] = context.Queue()
    worker = context.Process(target=start_as_a_worker, args=(said,))
    worker.start()
    try:
        assert "each of them runs every job" in said.get(timeout=30)
    finally:
        worker.join(30)
    assert worker.exitcode == 0
