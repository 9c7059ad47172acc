"""What the document of a cluster scheduler promises."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from asyncsched import (
    ConflictingIdError,
    ConflictingTaskError,
    Finish,
    MemoryStore,
    Retry,
    Scheduler,
    cron,
    current_run,
    every,
    manual,
    once,
)
from asyncsched.tasks import http, shell
from asyncsched.testing import ManualClock
from tests.support.faulty import FaultyStore
from tests.support.stores import SharedMemory
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NEW_YEAR + timedelta(seconds=seconds)


async def nothing() -> None: ...


async def ended(scheduler: Scheduler, count: int) -> None:
    """Return once *count* runs are in the history: a command and a request take their real time."""

    async def there() -> bool:
        return len(await scheduler.history.runs()) == count

    await eventually(there, what=f"the end of {count} runs")


# -- the examples --------------------------------------------------------------------------------------------------------------


async def test_the_quick_start_says_hello_after_a_second_and_then_each_half_minute(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    scheduler.register(shell())
    await scheduler.add_job(
        "shell",
        every(30, anchor=at(1), start=at(1)),
        id="hello-world",
        kwargs={"command": ["echo", "Hello, World!"]},
    )
    for count, seconds in enumerate((1, 30, 30), 1):
        await clock.advance(seconds)
        await ended(scheduler, count)
    runs = await scheduler.history.runs()
    assert [run.fire_time for run in reversed(runs)] == [at(1), at(31), at(61)]
    assert {(run.result["exit_code"], run.result["stdout"]) for run in runs} == {(0, "Hello, World!\n")}


@asynccontextmanager
async def site() -> AsyncIterator[tuple[str, list[str]]]:
    """A server that says the time of day, and the requests that it had."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head.decode().splitlines()[0])
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\n12:00")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1")
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


async def test_a_request_is_repeated_every_five_seconds_from_the_first_of_the_expression_on(
    clock: ManualClock,
) -> None:
    store, trigger = SharedMemory(), cron("1/5 * * * * *")
    first = trigger.next_after(NEW_YEAR)
    assert first == at(1)
    async with site() as (url, asked), Scheduler(store, clock=clock, id="one") as one:
        clock_request = http(f"{url}/now", name="curl-clock", method="GET", allow_networks=["127.0.0.1"])
        one.register(clock_request)
        await one.add_job("curl-clock", trigger, id="curl-now")
        async with Scheduler(store, clock=clock, id="two") as two:
            two.register(clock_request)
            there = await two.add_job("curl-clock", trigger, id="curl-now", on_conflict="keep")
            assert there.next_fire_time == first
            for count, seconds in enumerate((1, 5), 1):
                await clock.advance(seconds)
                await ended(one, count)
            await clock.advance(4)
            assert asked == ["GET /now HTTP/1.1"] * 2, "of two instances one asks"
            assert [run.result["body"] for run in await one.history.runs()] == ["12:00"] * 2


async def test_a_job_for_once_takes_its_payload_along_and_whoever_adds_it_again_is_ignored(
    clock: ManualClock,
) -> None:
    store, cancelled = SharedMemory(), list[tuple[str, bytes]]()
    async with Scheduler(store, clock=clock, id="one") as one, Scheduler(store, clock=clock, id="two") as two:
        for scheduler in (one, two):

            @scheduler.task(name="cancel transaction")
            async def cancel(payload: bytes) -> None:
                cancelled.append((current_run().job_id, payload))

            await scheduler.add_job(
                "cancel transaction", once(delay=1), args=[scheduler.id.encode()], id="tx", on_conflict="keep"
            )
        await clock.advance(5)
        assert cancelled == [("tx", b"one")]
        assert await one.get_jobs() == []


# -- the scheduler -------------------------------------------------------------------------------------------------------------


async def test_a_job_of_a_registered_task_is_run_by_whichever_instance_knows_the_task(
    clock: ManualClock,
) -> None:
    store, ran = SharedMemory(), list[str]()
    async with Scheduler(store, clock=clock) as asks, Scheduler(store, clock=clock) as knows:

        @knows.task(name="work")
        async def work() -> None:
            ran.append("knows")

        asks.register(nothing, "work")
        await asks.add_job("work", once(delay=60), id="a")
        asks.unregister("work")
        await clock.advance(60 + 4)
        # At once or at the first return of the job, which both instances wake for: whoever handed it back looks last.
        assert ran == ["knows"]


async def test_a_name_is_registered_once_and_an_id_scheduled_once_before_and_after_the_start(
    clock: ManualClock,
) -> None:
    scheduler = Scheduler(clock=clock)
    scheduler.register(nothing, "work")
    with pytest.raises(ConflictingTaskError):
        scheduler.register(
            test_a_job_of_a_registered_task_is_run_by_whichever_instance_knows_the_task, "work"
        )
    async with scheduler:
        with pytest.raises(ConflictingTaskError):
            scheduler.register(ended, "work")
        await scheduler.add_job("work", manual(), id="a")
        with pytest.raises(ConflictingIdError):
            await scheduler.add_job("work", manual(), id="a")


async def test_a_job_shows_what_it_is_how_far_it_is_and_is_gone_once_removed(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    scheduler.register(nothing, "work")
    for id in ("b", "a", "c"):
        await scheduler.add_job("work", every(10), id=id, metadata={"of": id})
    await clock.advance(25)
    assert sorted(job.id for job in await scheduler.get_jobs()) == ["a", "b", "c"]
    job = await scheduler.get_job("a")
    assert (job.task, job.metadata, job.last_error) == ("work", {"of": "a"}, None)
    assert (job.last_success, job.next_fire_time) == (at(20), at(30))
    await scheduler.remove_job("a")
    assert sorted(job.id for job in await scheduler.get_jobs()) == ["b", "c"]
    assert await scheduler.remove_all_jobs() == 2
    assert await scheduler.get_jobs() == []


async def test_a_run_that_finishes_removes_its_job_and_one_that_fails_is_made_again_later_and_later(
    scheduler: Scheduler, clock: ManualClock
) -> None:
    begun: list[float] = []

    @scheduler.task(name="work", retry=Retry(base=10, multiplier=2, max_delay=600))
    async def work() -> None:
        begun.append(clock.monotonic())
        if len(begun) < 5:
            raise ValueError("not yet")
        raise Finish

    added_at = clock.monotonic()
    await scheduler.add_job("work", every(3600, anchor=at(5), start=at(5)), id="a")
    await clock.advance(300)
    assert [round(moment - added_at) for moment in begun] == [5, 15, 35, 75, 155]
    assert await scheduler.get_jobs() == []


async def test_many_threads_may_use_one_scheduler_at_once(sqlite_url: str) -> None:
    ran: list[str] = []

    async with Scheduler(sqlite_url) as scheduler:

        @scheduler.task(name="work")
        async def work(what: str) -> None:
            ran.append(what)

        def use(name: str) -> None:
            for i in range(5):
                scheduler.from_thread.enqueue("work", f"{name}{i}")
                scheduler.from_thread.add_job("work", manual(), id=f"{name}{i}", args=["never"])
                assert scheduler.from_thread.get_job(f"{name}{i}").id == f"{name}{i}"
                scheduler.from_thread.remove_job(f"{name}{i}")

        failed: list[BaseException] = []

        def guarded(name: str) -> None:
            try:
                use(name)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=guarded, args=(name,)) for name in "abcdefgh"]
        for thread in threads:
            thread.start()
        await eventually(lambda: not any(thread.is_alive() for thread in threads))
        assert failed == []
        await eventually(lambda: len(ran) == 40)
        assert sorted(ran) == [f"{name}{i}" for name in "abcdefgh" for i in range(5)]
        assert [
            job.id for job in await scheduler.get_jobs() if job.task == "work" and job.trigger == manual()
        ] == []


async def test_the_time_between_two_looks_at_the_store_is_that_which_was_chosen_and_spread(
    clock: ManualClock,
) -> None:
    store = FaultyStore(MemoryStore())
    async with Scheduler(store, clock=clock, poll_interval=10, poll_jitter=0.5) as scheduler:
        scheduler.register(nothing, "work")
        await scheduler.add_job("work", once(delay=100_000))
        looks: list[float] = []
        before = store.faults.calls["claim"]
        for _ in range(12_000):
            await clock.advance(0.1)
            if store.faults.calls["claim"] > before:
                looks.append(clock.monotonic())
                before = store.faults.calls["claim"]
    pauses = [later - earlier for earlier, later in pairwise(looks)][1:]
    assert len(pauses) > 60
    assert 4.8 <= min(pauses) < 8
    assert 12 < max(pauses) <= 15.2
